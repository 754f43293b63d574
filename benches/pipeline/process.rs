//! The executable as a process, and what it uses.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use heartbeat::http;
use tokio::process::{Child, Command};
use tokio::time::sleep;

use super::ground::{Database, Ground};

/// Options that a role takes from our environment, to try what they are worth.
const PASSED_ON: [&str; 3] = ["PATH", "BATCH_SIZE", "CONCURRENCY"];
/// How long a role may take to be ready.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running role; killed when dropped.
pub struct Process {
    child: Child,
    /// Where it listens.
    pub address: String,
}

impl Process {
    /// A monitor on a database, ready.
    pub async fn monitor(database: &Database) -> Self {
        Self::start("monitor", &[("DATABASE_URL", database.url.clone())]).await
    }

    /// A relay from a stream to a monitor, ready.
    pub async fn relay(ground: &Ground, stream: &str, monitor: &Self) -> Self {
        let environment = [
            ("REDIS_URL", ground.redis_url()),
            ("STREAM_NAME", stream.to_owned()),
            ("MONITOR_URL", format!("http://{}", monitor.address)),
        ];
        Self::start("relay", &environment).await
    }

    /// Any role, ready.
    pub async fn start(role: &str, environment: &[(&str, String)]) -> Self {
        let process = Self::spawn(role, environment);
        let url = format!("http://{}/ready", process.address);
        let client = http::client(Duration::from_secs(1)).unwrap();
        let is_ready = async {
            while !client.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, is_ready).await.expect("the role is ready");
        process
    }

    /// Any role, which may not be ready yet.
    pub fn spawn(role: &str, environment: &[(&str, String)]) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let child = Command::new(env!("CARGO_BIN_EXE_heartbeat"))
            .args([role, "--listen", &address])
            .env_clear()
            .envs(std::env::vars().filter(|(name, _)| PASSED_ON.contains(&name.as_str())))
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log(role))
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { child, address }
    }

    /// Kills it.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Processor time that it has used, user and system, in seconds.
    pub fn cpu_seconds(&self) -> f64 {
        const TICKS_PER_SECOND: f64 = 100.0;
        let stat = self.read("stat");
        // The second field is the program's name in brackets, which may hold blanks.
        let after_name = stat.rsplit_once(')').unwrap().1;
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        let ticks: f64 = fields[11..13].iter().map(|field| field.parse::<f64>().unwrap()).sum();
        ticks / TICKS_PER_SECOND
    }

    /// Memory that it occupies now, in MiB.
    pub fn rss_mib(&self) -> f64 {
        let status = self.read("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1_024.0
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id().unwrap())).unwrap()
    }
}

/// Where a role logs: as much as it does by default, because that is part of its work.
fn log(role: &str) -> File {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../bench");
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join(format!("{role}.log"));
    File::options().create(true).append(true).open(path).unwrap()
}
