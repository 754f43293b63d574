//! Everything in one process, as a newcomer starts it.

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::process::Child;

use crate::support::{Process, Scrape, answer, eventually, free_address, get, run};

/// The options of one installation: its directory and its ports.
struct Installation {
    directory: tempfile::TempDir,
    monitor: String,
    others: [String; 4],
}

impl Installation {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            monitor: free_address().to_string(),
            others: std::array::from_fn(|_| free_address().to_string()),
        }
    }

    fn start(&self, demo: bool) -> Child {
        let [relay, services @ ..] = &self.others;
        let data_dir = self.directory.path().join("data");
        let mut command = Process::command(&["standalone", "--monitor-listen", &self.monitor]);
        command.args(["--relay-listen", relay, "--payments-listen", &services.join(",")]);
        command.arg("--data-dir").arg(data_dir).args(demo.then_some("--demo"));
        if let Some(mysqld) = std::env::var_os("HEARTBEAT_TEST_MYSQLD") {
            command.env("MYSQLD", mysqld);
        }
        command.stdout(Stdio::piped()).spawn().unwrap()
    }

    async fn windows(&self) -> Option<Vec<Value>> {
        let url = format!("http://{}/api/monitor/windows", self.monitor);
        let (_, body) = answer(get(&url).await.ok()?).await;
        body["windows"].as_array().cloned()
    }

    /// Several roles in one process count apart.
    async fn each_role_shows_its_own_metrics(&self) {
        let [relay, services @ ..] = &self.others;
        let roles = [(&self.monitor, "monitor"), (relay, "relay")];
        for (address, role) in roles.into_iter().chain(services.iter().map(|at| (at, "payments"))) {
            let text = Scrape::of(&format!("http://{address}/metrics")).await.text;
            assert!(text.contains(&format!("heartbeat_build_info{{role=\"{role}\"")), "{text}");
            for other in ["monitor", "relay", "payments"] {
                assert_eq!(text.contains(&format!("heartbeat_{other}_")), role == other, "{text}");
            }
        }
        for service in services {
            eventually("each service counts its own window and no other", async || {
                let scrape = Scrape::of(&format!("http://{service}/metrics")).await;
                (scrape.get("heartbeat_payments_open_windows") == 1.0).then_some(())
            })
            .await;
        }
    }

    /// Waits until each of three services has an open window with so many heartbeats.
    async fn heartbeats(&self, wanted: u64) -> Vec<Value> {
        eventually("three services send", async || {
            let windows = self.windows().await?;
            let sending = |window: &&Value| window["received_reports"].as_u64() >= Some(wanted);
            (windows.iter().filter(sending).count() >= 3).then_some(windows)
        })
        .await
    }
}

/// Presses Ctrl-C. Answers what it printed.
async fn interrupt(mut child: Child) -> String {
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
    let mut printed = String::new();
    let mut out = child.stdout.take().unwrap();
    let ended = async {
        out.read_to_string(&mut printed).await.unwrap();
        child.wait().await.unwrap()
    };
    let status = tokio::time::timeout(Duration::from_secs(40), ended).await.expect("it stops");
    assert!(status.success(), "{status}");
    printed
}

#[tokio::test]
async fn a_demo_shows_windows_within_a_minute_and_the_next_start_goes_on() {
    let installation = Installation::new();
    let first = installation.start(true);
    let windows = installation.heartbeats(2).await;
    assert_eq!(windows.len(), 3);
    installation.each_role_shows_its_own_metrics().await;
    let (code, _, err) = run(&["standalone", "--monitor-listen", &installation.monitor], &[]).await;
    assert_eq!(code, 1);
    let busy = format!("{} is in use, so the monitor cannot listen there", installation.monitor);
    assert!(err.contains(&busy), "{err}");
    let printed = interrupt(first).await;
    for name in
        ["window", "service", "expected", "sent", "omitted", "received", "missing", "status"]
    {
        assert!(printed.contains(name), "{printed}");
    }
    for window in &windows {
        let uuid = window["window_uuid"].as_str().unwrap();
        let row = printed.lines().find(|line| line.contains(uuid)).unwrap();
        assert!(row.contains("OPEN") && row.contains(" 40 "), "{row}");
    }

    let again = installation.start(false);
    let resumed = eventually("the windows go on", async || {
        let now = installation.windows().await?;
        let more = |before: &Value| {
            now.iter().any(|window| {
                window["window_uuid"] == before["window_uuid"]
                    && window["received_reports"].as_u64() > Some(8)
            })
        };
        windows.iter().all(more).then_some(now)
    })
    .await;
    assert_eq!(resumed.len(), 3, "without --demo none is opened");
    interrupt(again).await;
}

#[tokio::test]
async fn after_a_kill_the_next_start_stops_the_servers_left_behind_and_goes_on() {
    let installation = Installation::new();
    let mut first = installation.start(true);
    let windows = installation.heartbeats(2).await;
    first.start_kill().unwrap();
    first.wait().await.unwrap();
    let again = installation.start(false);
    let before: Vec<&Value> = windows.iter().map(|window| &window["window_uuid"]).collect();
    let found =
        eventually("the windows are still there", async || installation.windows().await).await;
    for uuid in before {
        assert!(found.iter().any(|window| window["window_uuid"] == *uuid), "{uuid}");
    }
    interrupt(again).await;
}
