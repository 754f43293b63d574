//! How a server is started, and how one is recognised that an earlier run has left behind.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use super::directory::{create_private, write_private};
use super::process::{KILL_PATIENCE, PAUSE, Process, send};

/// How much of a log to show when a server fails.
const SHOWN_LOG_LINES: usize = 15;

/// How to start a server, as often as needed.
#[derive(Clone, Debug)]
pub(super) struct Launch {
    /// Name of its log and pid file in `run`.
    pub(super) name: &'static str,
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<OsString>,
    /// Directory of logs and pid files.
    pub(super) run: PathBuf,
    /// Where it keeps its data, and works.
    pub(super) data: PathBuf,
    /// A path among its arguments that no other process has.
    pub(super) mark: PathBuf,
    /// How long it may take to stop.
    pub(super) stop_patience: Duration,
}

impl Launch {
    /// The same with more arguments.
    pub(super) fn with(mut self, arguments: impl IntoIterator<Item = OsString>) -> Self {
        self.arguments.extend(arguments);
        self
    }

    pub(super) fn log(&self) -> PathBuf {
        self.run.join(self.name).with_extension("log")
    }

    pub(super) fn pid_file(&self) -> PathBuf {
        self.run.join(self.name).with_extension("pid")
    }

    /// Stops what a killed run has left behind, then starts the server.
    pub(super) async fn start(&self) -> anyhow::Result<Process> {
        self.stop_leftover().await?;
        let child = self.spawn().with_context(|| format!("starting {}", self.program.display()))?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
        let pid = pid.with_context(|| format!("{} has no process id", self.name))?;
        let process = Process::new(self.clone(), child, pid);
        write_private(&self.pid_file(), &format!("{pid}\n"))?;
        Ok(process)
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        let log = self.log();
        if log.exists() {
            fs::rename(&log, log.with_added_extension("old"))?;
        }
        let log = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let temporary = self.run.join("tmp");
        create_private(&temporary)?;
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .current_dir(&self.data)
            // MariaDB deletes other servers' temporary tables from a directory that it shares.
            .env("TMPDIR", temporary)
            // The service manager's socket is for us, not for our children.
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        Ok(child)
    }

    /// Stops the server of an earlier run that was killed, if there is one.
    pub(super) async fn stop_leftover(&self) -> anyhow::Result<()> {
        let Some(pid) = self.leftover() else {
            return Ok(());
        };
        tracing::warn!(server = self.name, %pid, "stopping a server that an earlier run left behind");
        for (signal, patience) in
            [(Signal::SIGTERM, self.stop_patience), (Signal::SIGKILL, KILL_PATIENCE)]
        {
            send(pid, signal)?;
            let deadline = Instant::now() + patience;
            while Instant::now() < deadline {
                if self.leftover().is_none() {
                    return Ok(());
                }
                sleep(PAUSE).await;
            }
        }
        bail!("{} of an earlier run, process {pid}, does not stop: stop it by hand", self.name)
    }

    /// The process that the pid file names, if it still is this server on this directory.
    fn leftover(&self) -> Option<Pid> {
        let pid: i32 = fs::read_to_string(self.pid_file()).ok()?.trim().parse().ok()?;
        let process = Path::new("/proc").join(pid.to_string());
        let arguments = fs::read(process.join("cmdline")).ok()?;
        let works_here = fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == self.data);
        (pid > 1 && self.is_this_server(&arguments, works_here)).then(|| Pid::from_raw(pid))
    }

    /// Whether a command line is that of this server: one that names our mark, or, since some
    /// servers rewrite theirs, one that names the program and works in our data.
    fn is_this_server(&self, arguments: &[u8], works_here: bool) -> bool {
        let mark = self.mark.as_os_str().as_encoded_bytes();
        let has_mark = arguments.split(|byte| *byte == 0).any(|argument| {
            let value = argument.iter().position(|byte| *byte == b'=').map_or(0, |at| at + 1);
            argument == mark || &argument[value..] == mark
        });
        let first_word = arguments.split(|byte| matches!(byte, 0 | b' ')).next().unwrap_or(&[]);
        let program = self.program.file_name().map(OsStr::as_encoded_bytes);
        has_mark || (works_here && program.is_some_and(|program| first_word.ends_with(program)))
    }

    /// The last lines of the log, after those before them that are marked as errors.
    fn end_of_log(&self) -> String {
        let text = fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let (before, end) = lines.split_at(lines.len().saturating_sub(SHOWN_LOG_LINES));
        let errors = before.iter().filter(|line| line.contains("ERROR")).take(SHOWN_LOG_LINES);
        errors.chain(end).copied().collect::<Vec<_>>().join("\n")
    }

    /// An error that shows why, as far as the log tells.
    pub(super) fn failure(&self, what: &str) -> anyhow::Error {
        let log = self.log();
        let (name, end) = (self.name, self.end_of_log());
        anyhow!("{name} {what}; {} ends with:\n{end}", log.display())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A launch for tests of this module and of those that carry launches out.
    pub(in crate::local) fn launch(run: &Path, program: &str, arguments: &[&str]) -> Launch {
        Launch {
            name: "test",
            program: program.into(),
            arguments: arguments.iter().map(Into::into).collect(),
            run: run.to_owned(),
            data: run.canonicalize().unwrap(),
            mark: run.join("mark"),
            stop_patience: Duration::from_millis(200),
        }
    }

    #[test]
    fn a_server_is_known_by_its_mark_or_by_program_and_place() {
        let run = Path::new("/tmp");
        let launch =
            Launch { mark: "/data/my.cnf".into(), ..launch(run, "/usr/bin/redis-server", &[]) };
        let table: [(&[u8], bool, bool); 7] = [
            (b"mysqld\0--defaults-file=/data/my.cnf\0", false, true),
            (b"redis-server\0/data/my.cnf\0", false, true),
            (b"/usr/bin/redis-server *:0", true, true),
            (b"/usr/bin/redis-server *:0", false, false),
            (b"mysqld\0--defaults-file=/other/data/my.cnf\0", false, false),
            (b"-bash\0", true, false),
            (b"", true, false),
        ];
        for (arguments, works_here, expected) in table {
            let text = String::from_utf8_lossy(arguments);
            assert_eq!(launch.is_this_server(arguments, works_here), expected, "{text}");
        }
    }

    #[tokio::test]
    async fn a_pid_that_became_another_process_is_left_alone() {
        let run = tempfile::tempdir().unwrap();
        let launch = launch(run.path(), "/bin/sh", &["-c", "exit 0"]);
        fs::write(launch.pid_file(), std::process::id().to_string()).unwrap();
        assert_eq!(launch.leftover(), None);
        launch.start().await.unwrap().done(Duration::from_secs(10)).await.unwrap();
    }
}
