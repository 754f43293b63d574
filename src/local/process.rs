//! One server as a child process: watched, stopped and killed.

use std::fs;
use std::future::Future;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::time::{sleep, timeout};

use super::launch::Launch;

/// Pause between two looks at a server that starts or stops.
pub(super) const PAUSE: Duration = Duration::from_millis(20);
/// How long the end of a process may take that was killed.
pub(super) const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// A server that was started. Dropping it asks it to stop.
pub(super) struct Process {
    launch: Launch,
    child: Child,
    pid: Pid,
}

impl Process {
    pub(super) fn new(launch: Launch, child: Child, pid: Pid) -> Self {
        Self { launch, child, pid }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// Waits until `answers` says that the server does.
    ///
    /// # Errors
    /// The server ends first, or does not answer within `patience`.
    pub(super) async fn ready<A>(
        &mut self,
        patience: Duration,
        answers: impl Fn() -> A,
    ) -> anyhow::Result<()>
    where
        A: Future<Output = bool>,
    {
        let answered = async {
            while !answers().await {
                sleep(PAUSE).await;
            }
        };
        tokio::select! {
            status = self.child.wait() => {
                Err(self.launch.failure(&format!("ended while starting ({})", status?)))
            }
            answered = timeout(patience, answered) => answered.map_err(|_| {
                let what = format!("does not answer after {} s", patience.as_secs());
                self.launch.failure(&what)
            }),
        }
    }

    /// Waits for the end of a program that does its work and leaves.
    ///
    /// # Errors
    /// It fails, or is not done within `patience`.
    pub(super) async fn done(mut self, patience: Duration) -> anyhow::Result<()> {
        let Ok(status) = timeout(patience, self.child.wait()).await else {
            let what = format!("is not done after {} s", patience.as_secs());
            let failure = self.launch.failure(&what);
            self.kill().await?;
            return Err(failure);
        };
        self.forget_pid();
        match status? {
            status if status.success() => Ok(()),
            status => Err(self.launch.failure(&format!("failed ({status})"))),
        }
    }

    /// Waits until the server ends by itself.
    pub(super) async fn ended(&mut self) -> anyhow::Error {
        match self.child.wait().await {
            Ok(status) => self.launch.failure(&format!("ended by itself ({status})")),
            Err(error) => anyhow::Error::new(error).context("waiting for a server"),
        }
    }

    /// Stops the server in order, or kills it if that takes too long.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        if self.is_running() {
            send(self.pid, Signal::SIGTERM)?;
        }
        let patience = self.launch.stop_patience;
        if timeout(patience, self.child.wait()).await.is_err() {
            let name = self.launch.name;
            tracing::warn!(
                server = name,
                patience_s = patience.as_secs(),
                "killing a server that does not stop"
            );
            self.kill().await?;
        }
        self.forget_pid();
        Ok(())
    }

    /// Kills the server and waits until it is gone.
    pub(super) async fn kill(&mut self) -> anyhow::Result<ExitStatus> {
        if self.is_running() {
            send(self.pid, Signal::SIGKILL)?;
        }
        let status = timeout(KILL_PATIENCE, self.child.wait()).await;
        let status = status.with_context(|| format!("{} outlives its killing", self.launch.name));
        self.forget_pid();
        Ok(status??)
    }

    /// Whether the process exists, so that its id cannot have become another's.
    fn is_running(&self) -> bool {
        self.child.id().is_some()
    }

    fn forget_pid(&self) {
        fs::remove_file(self.launch.pid_file()).ok();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            send(self.pid, Signal::SIGTERM).ok();
        }
    }
}

/// Signals a server and whatever it has started. One that is stopped halfway is woken, or it would
/// never see the signal.
pub(super) fn send(leader: Pid, signal: Signal) -> anyhow::Result<()> {
    for signal in [signal, Signal::SIGCONT] {
        match killpg(leader, signal) {
            Ok(()) | Err(nix::Error::ESRCH) => (),
            Err(error) => {
                return Err(error).with_context(|| format!("sending {signal} to {leader}"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::launch::tests::launch;
    use super::*;

    #[tokio::test]
    async fn a_server_that_ends_at_once_shows_its_log() {
        let run = tempfile::tempdir().unwrap();
        let launch = launch(run.path(), "/bin/sh", &["-c", "echo the disk is full; exit 3"]);
        let mut process = launch.start().await.unwrap();
        let ready = process.ready(Duration::from_secs(10), || std::future::ready(false)).await;
        let error = ready.unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("the disk is full"), "{error}");
    }

    #[tokio::test]
    async fn a_server_that_ignores_the_word_is_killed() {
        let run = tempfile::tempdir().unwrap();
        let script = "trap '' TERM; echo up; while :; do sleep 1; done";
        let launch = launch(run.path(), "/bin/sh", &["-c", script]);
        let mut process = launch.start().await.unwrap();
        let up = || async { fs::read_to_string(launch.log()).is_ok_and(|log| !log.is_empty()) };
        process.ready(Duration::from_secs(10), up).await.unwrap();
        let pid = process.pid();
        process.stop().await.unwrap();
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        assert!(!launch.pid_file().exists());
    }
}
