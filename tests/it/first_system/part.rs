//! Parts of either system, as processes that are killed and started again.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use super::PART;
use crate::support::{Ground, Process, eventually, free_address, shared};

/// Values by the names of environment variables.
pub type Settings = Vec<(&'static str, String)>;

/// A part of the first system: this test binary, in another process.
pub struct Theirs {
    child: Child,
    /// It ends when this closes.
    input: ChildStdin,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Theirs {
    /// Starts a part and waits until it is at work.
    pub async fn start(part: &str, settings: &Settings) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "first_system::part", "--ignored", "--nocapture"]);
        command.env(PART, part).envs(settings.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&lines);
        tokio::spawn(async move {
            while let Ok(Some(line)) = output.next_line().await {
                heard.lock().unwrap().push(line);
            }
        });
        let theirs = Self { input: child.stdin.take().unwrap(), child, lines };
        eventually(&format!("the first system's {part} is at work"), async || {
            (!theirs.said("ready").is_empty() || !theirs.said("window").is_empty()).then_some(())
        })
        .await;
        theirs
    }

    /// What it has said about something.
    pub fn said(&self, word: &str) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        let about = lines.iter().filter_map(|line| line.strip_prefix(word));
        about.map(|rest| rest.trim().to_owned()).collect()
    }

    /// Tells a sender to end when its window is over, and waits.
    pub async fn finish(mut self) {
        self.input.write_all(b"enough\n").await.unwrap();
        self.input.flush().await.unwrap();
        self.end().await;
    }

    /// Whether it is still at work.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until it has ended by itself.
    pub async fn end(mut self) {
        let status = self.child.wait().await.unwrap();
        eventually("it has said so", async || (!self.said("done").is_empty()).then_some(())).await;
        assert!(status.success(), "{status}: {:?}", self.lines.lock().unwrap());
    }

    /// Sends SIGKILL and waits.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

/// What a part needs that is started again.
#[derive(Clone)]
pub enum Program {
    /// One of ours: its role, its address, arguments and environment.
    Ours(&'static str, SocketAddr, Vec<String>, Settings),
    /// One of the first system, by name, and its environment.
    Theirs(&'static str, Settings),
}

/// A running one.
pub enum Running {
    /// One of ours.
    Ours(Process),
    /// One of the first system.
    Theirs(Theirs),
}

impl Program {
    /// Starts it and waits until it is at work.
    pub async fn start(&self) -> Running {
        match self {
            Self::Ours(role, address, arguments, settings) => {
                let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                let settings: Vec<(&str, &str)> =
                    settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
                Running::Ours(Process::role_at(*address, role, &arguments, &settings).await)
            }
            Self::Theirs(part, settings) => Running::Theirs(Theirs::start(part, settings).await),
        }
    }
}

impl Running {
    /// Sends SIGKILL and waits.
    pub async fn kill(self) {
        match self {
            Self::Ours(process) => process.kill().await,
            Self::Theirs(theirs) => theirs.kill().await,
        }
    }

    /// Heartbeats that a consumer of the first system has dropped.
    pub fn dropped(&self) -> usize {
        match self {
            Self::Ours(_) => 0,
            Self::Theirs(theirs) => theirs.said("gave up").len(),
        }
    }
}

/// A sender of the first system, which opens so many windows of so many ticks.
pub fn their_sender(ground: &Ground, service: &str, (windows, ticks): (u32, u32)) -> Program {
    let settings = vec![
        ("DATABASE_URL", ground.payments_url.clone()),
        ("REDIS_URL", shared().redis_url.clone()),
        ("STREAM_NAME", ground.stream.to_string()),
        ("SERVICE_NAME", service.to_owned()),
        ("WINDOWS", windows.to_string()),
        ("TICKS", ticks.to_string()),
    ];
    Program::Theirs("sender", settings)
}

/// The consumer of the first system, before a monitor. The pauses that it makes are so long that its
/// 12 tries outlast a monitor that is started again.
pub fn their_consumer(ground: &Ground, monitor: SocketAddr) -> Program {
    let settings = vec![
        ("REDIS_URL", shared().redis_url.clone()),
        ("STREAM_NAME", ground.stream.to_string()),
        ("CONSUMER_GROUP", "monitor-queue-group".to_owned()),
        ("CONSUMER_NAME", "consumer-1".to_owned()),
        ("MONITOR_URL", format!("http://{monitor}")),
        ("PAUSE_MS", "100".to_owned()),
        ("LONGEST_PAUSE_MS", "2000".to_owned()),
    ];
    Program::Theirs("consumer", settings)
}

/// The monitor of the first system.
pub fn their_monitor(address: SocketAddr, database_url: &str) -> Program {
    let settings = vec![
        ("DATABASE_URL", database_url.to_owned()),
        ("LISTEN", address.to_string()),
        ("HEARTBEAT_INTERVAL_SECONDS", "1".to_owned()),
    ];
    Program::Theirs("monitor", settings)
}

/// Our monitor, which reads the senders' audit.
pub fn our_monitor(ground: &Ground, address: SocketAddr, database_url: &str) -> Program {
    let arguments = ["--heartbeat-interval-seconds", "1", "--grace", "500ms"];
    let more = ["--sweep-interval", "200ms", "--replay-grace", "2s"];
    let settings = vec![
        ("DATABASE_URL", database_url.to_owned()),
        ("AUDIT_DATABASE_URL", ground.payments_url.clone()),
    ];
    let arguments = arguments.into_iter().chain(more).map(str::to_owned).collect();
    Program::Ours("monitor", address, arguments, settings)
}

/// Our relay, in a group.
pub fn our_relay(ground: &Ground, group: &str, monitor: SocketAddr) -> Program {
    let settings = vec![
        ("REDIS_URL", shared().redis_url.clone()),
        ("STREAM_NAME", ground.stream.to_string()),
        ("CONSUMER_GROUP", group.to_owned()),
        ("MONITOR_URL", format!("http://{monitor}")),
    ];
    Program::Ours("relay", free_address(), Vec::new(), settings)
}

/// Our sender.
pub fn our_sender(ground: &Ground, service: &str) -> Program {
    let settings = vec![
        ("REDIS_URL", shared().redis_url.clone()),
        ("STREAM_NAME", ground.stream.to_string()),
        ("DATABASE_URL", ground.payments_url.clone()),
        ("SERVICE_NAME", service.to_owned()),
    ];
    let arguments = ["--heartbeat-interval-seconds", "1"].map(str::to_owned).to_vec();
    Program::Ours("payments", free_address(), arguments, settings)
}
