//! The real executable, as a process.

use std::net::{SocketAddr, TcpListener};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use super::{Ground, eventually, get};

/// An address of this host that nobody listens on. Its port is below those that the system hands to
/// outgoing connections, so that none of these takes it before it is used.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = 10_000 + std::process::id() % 200 * 100;
    std::iter::repeat_with(|| first + NEXT.fetch_add(1, Ordering::Relaxed))
        .map(|port| format!("127.0.0.1:{port}"))
        .find(|address| TcpListener::bind(address).is_ok())
        .and_then(|address| address.parse().ok())
        .expect("a free port")
}

/// A running `heartbeat`, killed when dropped.
pub struct Process {
    child: Child,
    /// Where it listens, if it is a role.
    pub address: SocketAddr,
}

impl Process {
    /// The executable with arguments and no environment of ours.
    pub fn command(arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_heartbeat"));
        command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Starts a role on a free port and waits until it answers `/health`.
    pub async fn role(role: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::role_at(free_address(), role, arguments, environment).await
    }

    /// Starts a role at an address and waits until it answers `/health`.
    pub async fn role_at(
        address: SocketAddr,
        role: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let listen = address.to_string();
        let mut command = Self::command(&[role, "--listen", &listen]);
        let child = command.args(arguments).envs(environment.iter().copied()).spawn().unwrap();
        let process = Self { child, address };
        let url = process.url("/health");
        eventually(&format!("{role} answers {url}"), async || {
            get(&url).await.ok().filter(|answer| answer.status().is_success())
        })
        .await;
        process
    }

    /// A monitor on a ground.
    pub async fn monitor(ground: &Ground, arguments: &[&str]) -> Self {
        let environment = [("DATABASE_URL", ground.monitor_url.as_str())];
        Self::role("monitor", arguments, &environment).await
    }

    /// A relay on a ground, towards a monitor.
    pub async fn relay(ground: &Ground, monitor_url: &str, arguments: &[&str]) -> Self {
        let stream = ground.stream.to_string();
        let environment = [
            ("REDIS_URL", super::shared().redis_url.as_str()),
            ("STREAM_NAME", stream.as_str()),
            ("MONITOR_URL", monitor_url),
        ];
        Self::role("relay", arguments, &environment).await
    }

    /// A payments service on a ground.
    pub async fn payments(ground: &Ground, name: &str, arguments: &[&str]) -> Self {
        let stream = ground.stream.to_string();
        let environment = [
            ("REDIS_URL", super::shared().redis_url.as_str()),
            ("STREAM_NAME", stream.as_str()),
            ("DATABASE_URL", ground.payments_url.as_str()),
            ("SERVICE_NAME", name),
        ];
        Self::role("payments", arguments, &environment).await
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// The address of one of its paths.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// Sends SIGTERM and waits. Answers how it ended and how long that took.
    pub async fn terminate(mut self) -> (ExitStatus, Duration) {
        let start = Instant::now();
        self.signal(Signal::SIGTERM);
        let status = tokio::time::timeout(Duration::from_secs(20), self.child.wait()).await;
        (status.expect("it ends").unwrap(), start.elapsed())
    }

    /// Sends SIGKILL and waits.
    pub async fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().await.unwrap();
    }
}

/// Runs the executable to its end. Answers its exit code, standard output and standard error.
pub async fn run(arguments: &[&str], environment: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = Process::command(arguments);
    command.envs(environment.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let reading =
        async { tokio::join!(stdout.read_to_string(&mut out), stderr.read_to_string(&mut err)) };
    tokio::time::timeout(Duration::from_mins(1), reading).await.expect("it ends").0.unwrap();
    let status = child.wait().await.unwrap();
    (status.code().unwrap_or(-1), out, err)
}
