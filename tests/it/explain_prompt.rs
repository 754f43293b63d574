//! What a repair does about what happens while a person makes up their mind.

use std::process::Stdio;
use std::time::Duration;

use heartbeat::clock;
use heartbeat::wire::PipelineReport;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

use crate::explain_repair::Sent;
use crate::support::{pool, report, shared};

/// Runs `explain --repair` on a terminal of its own, which `script` gives it, and says yes once
/// something has happened. Answers the exit code and what was shown.
async fn answered(sent: &Sent, meanwhile: impl Future<Output = ()>) -> (i32, String) {
    let line = format!("exec {} explain --repair {}", env!("CARGO_BIN_EXE_heartbeat"), sent.uuid);
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").env("SHELL", "/bin/sh");
    command.env("MONITOR_URL", sent.monitor.url("")).env("REDIS_URL", &shared().redis_url);
    command.env("STREAM_NAME", sent.ground.stream.to_string());
    command.env("PAYMENTS_DATABASE_URL", &sent.ground.payments_url);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("script is installed");
    let (mut typed, mut shown) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut seen = Vec::new();
    let talking = async {
        while !String::from_utf8_lossy(&seen).contains("[y/N]") {
            assert!(shown.read_buf(&mut seen).await.unwrap() > 0, "it asks");
        }
        meanwhile.await;
        typed.write_all(b"y\n").await.unwrap();
        shown.read_to_end(&mut seen).await.unwrap();
        child.wait().await.unwrap()
    };
    let ended = timeout(Duration::from_secs(30), talking).await.expect("it ends");
    (ended.code().unwrap_or(-1), String::from_utf8_lossy(&seen).into_owned())
}

#[tokio::test]
async fn only_what_was_shown_and_is_still_lost_is_sent_again() {
    let sent = Sent::new().await;
    sent.drop_messages(sent.ground.stream.reports(), 3).await;
    let relay = sent.relay().await;
    sent.explained("3 slots are unexplained: lost.").await;
    relay.terminate().await;
    let last = sent.last_entry().await;
    let audit = pool(&sent.ground.payments_url).await;
    let ledger = pool(&sent.ground.monitor_url).await;

    // The audit goes away: nobody knows any more what is lost.
    let (code, shown) = answered(&sent, async {
        let taken = sqlx::raw_sql("RENAME TABLE report_windows TO taken_away").execute(&audit);
        taken.await.unwrap();
    })
    .await;
    let back = sqlx::raw_sql("RENAME TABLE taken_away TO report_windows").execute(&audit);
    back.await.unwrap();
    assert_eq!(code, 2, "{shown}");
    assert!(shown.contains("the monitor cannot read the audit of window"), "{shown}");
    assert!(!shown.contains("no more in need"), "{shown}");
    assert_eq!(sent.last_entry().await, last);

    // One more is lost.
    let (code, shown) = answered(&sent, async {
        let lost = sqlx::raw_sql("DELETE FROM events WHERE slot = 5").execute(&ledger);
        assert_eq!(lost.await.unwrap().rows_affected(), 1);
    })
    .await;
    assert_eq!(code, 0, "{shown}");
    assert!(shown.contains("sent 3 lost heartbeats again; "), "{shown}");

    // The relays' Redis becomes another: a group that reads it reports.
    let last = sent.last_entry().await;
    let (code, shown) = answered(&sent, async {
        let report = PipelineReport {
            group: "another".to_owned(),
            stream: sent.ground.stream.reports().to_owned(),
            ..report(clock::now())
        };
        let body = serde_json::to_string(&report).unwrap();
        let client = heartbeat::http::client(Duration::from_secs(10)).unwrap();
        let post = client.post(sent.monitor.url("/api/monitor/pipeline")).body(body);
        assert!(post.send().await.unwrap().status().is_success());
    })
    .await;
    assert_eq!(code, 2, "{shown}");
    assert!(shown.contains("this Redis is not the one whose stream"), "{shown}");
    assert_eq!(sent.last_entry().await, last);
}
