//! Each role on the real executable: told to stop, killed, and started again.

use std::net::SocketAddr;
use std::time::Duration;

use heartbeat::monitor::latest_windows;
use heartbeat::monitor::window::{Counts, WindowStatus};
use heartbeat::wire::Heartbeat;
use redis::AsyncCommands;
use serde_json::{Value, json};

use crate::support::{
    Ground, Process, announcement, answer, eventually, free_address, get, heartbeat, pending,
    received, window,
};

/// A role must have stopped by then, and well before its own deadline of 10 s.
const SOON: Duration = Duration::from_secs(9);

/// Entries that the group has not read.
async fn unread(ground: &Ground) -> u32 {
    let groups: redis::streams::StreamInfoGroupsReply =
        ground.redis().await.xinfo_groups(ground.stream.reports()).await.unwrap();
    u32::try_from(groups.groups[0].lag.unwrap()).unwrap()
}

async fn open(payments: &Process, request: &Value) -> Value {
    let client = heartbeat::http::client(Duration::from_secs(10)).unwrap();
    let request = client.post(payments.url("/report-windows")).body(request.to_string());
    let (status, body) = answer(request.send().await.unwrap()).await;
    assert_eq!(status, 202, "{body}");
    body
}

async fn stats(payments: &Process, uuid: &str) -> Value {
    answer(get(&payments.url(&format!("/report-windows/{uuid}/stats"))).await.unwrap()).await.1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_monitor_told_to_stop_answers_what_it_has_begun() {
    let ground = Ground::new().await;
    let monitor = Process::monitor(&ground, &[]).await;
    let window = window("payments-a", 1_000);
    let client = heartbeat::http::client(Duration::from_secs(10)).unwrap();
    let url = monitor.url("/api/monitor/heartbeats/batch");
    let mut posts = tokio::task::JoinSet::new();
    for post in 0..10_u32 {
        let batch: Vec<String> =
            (post * 100..post * 100 + 100).map(|slot| heartbeat(&window, slot).to_json()).collect();
        let request = client.post(&url).body(format!("[{}]", batch.join(",")));
        posts.spawn(async move { request.send().await.map(|answer| answer.status().is_success()) });
    }
    tokio::time::sleep(Duration::from_millis(30)).await;
    let (status, took) = monitor.terminate().await;
    assert!(status.success() && took < SOON, "{status} {took:?}");
    let answered =
        posts.join_all().await.into_iter().filter(|post| matches!(post, Ok(true))).count();
    let stored = received(&ground.monitor().await).await;
    assert!(stored as usize >= answered * 100, "{answered} answered, {stored} stored");
}

#[tokio::test]
async fn a_monitor_that_is_killed_loses_nothing_it_has_answered() {
    let ground = Ground::new().await;
    let address = free_address();
    let environment = [("DATABASE_URL", ground.monitor_url.as_str())];
    let monitor = Process::role_at(address, "monitor", &[], &environment).await;
    let _relay =
        Process::relay(&ground, &format!("http://{address}"), &["--batch-size", "10"]).await;
    let window = window("payments-a", 300);
    let state = ground.monitor().await;
    for slot in 0..300 {
        ground.send(heartbeat(&window, slot).to_json()).await;
        if slot == 150 {
            eventually("some arrive", async || (received(&state).await > 20).then_some(())).await;
        }
    }
    monitor.kill().await;
    let stored = received(&state).await;
    let unread = unread(&ground).await;
    let acknowledged = 300 - unread - u32::try_from(pending(&ground).await).unwrap();
    assert!(stored >= acknowledged, "{acknowledged} acknowledged, {stored} stored");
    let _again = Process::role_at(address, "monitor", &[], &environment).await;
    eventually("all arrive", async || (received(&state).await == 300).then_some(())).await;
    eventually("all are acknowledged", async || (pending(&ground).await == 0).then_some(())).await;
}

#[tokio::test]
async fn a_relay_that_is_killed_or_told_to_stop_hands_on_what_it_holds() {
    let ground = Ground::new().await;
    let away = free_address();
    let monitor_url = format!("http://{away}");
    let window = window("payments-a", 40);
    for slot in 0..20 {
        ground.send(heartbeat(&window, slot).to_json()).await;
    }
    let name = ["--consumer-name", "one"];
    let held = async || (pending(&ground).await == 20).then_some(());
    let killed = Process::relay(&ground, &monitor_url, &name).await;
    eventually("it holds them", held).await;
    killed.kill().await;
    let stopped = Process::relay(&ground, &monitor_url, &name).await;
    eventually("it works on them again", async || {
        let ready = get(&stopped.url("/ready")).await.ok()?.text().await.ok()?;
        ready.contains("the monitor cannot be reached").then_some(())
    })
    .await;
    let (status, took) = stopped.terminate().await;
    assert!(status.success() && took < SOON, "{status} {took:?}");
    assert_eq!(pending(&ground).await, 20, "nothing is acknowledged that nobody took");

    let environment = [("DATABASE_URL", ground.monitor_url.as_str())];
    let _monitor = Process::role_at(away, "monitor", &[], &environment).await;
    // Under another name, with a lease far longer than the test waits: what was handed back is free.
    let other = ["--consumer-name", "two", "--lease", "48s"];
    let _relay = Process::relay(&ground, &monitor_url, &other).await;
    let state = ground.monitor().await;
    eventually("all arrive", async || (received(&state).await == 20).then_some(())).await;
    eventually("all are acknowledged", async || (pending(&ground).await == 0).then_some(())).await;
}

#[tokio::test]
async fn a_payments_service_resumes_its_window_after_each_kind_of_end() {
    let ground = Ground::new().await;
    let request = json!({
        "duration_sec": 20, "tick_seconds": 0.2, "error_status_no_reportado": 0, "seed": 1,
    });
    let first = Process::payments(&ground, "payments-a", &[]).await;
    let opened = open(&first, &request).await;
    let uuid = opened["window_uuid"].as_str().unwrap();
    let sent_more_than = async |payments: &Process, before: i64| {
        eventually("more is sent", async || {
            let sent = stats(payments, uuid).await["sent_to_queue"].as_i64().unwrap();
            (sent > before).then_some(sent)
        })
        .await
    };
    let sent = sent_more_than(&first, 5).await;
    let (status, took) = first.terminate().await;
    assert!(status.success() && took < SOON, "{status} {took:?}");
    // Told to stop, it hands its window back: the next process goes on at once.
    let state = ground.payments("payments-a").await;
    let leases = "SELECT COUNT(*) FROM report_windows WHERE owner IS NOT NULL OR leased_until > 0";
    let held: i64 = sqlx::query_scalar(leases).fetch_one(&state.pool).await.unwrap();
    assert_eq!(held, 0);
    let second = Process::payments(&ground, "payments-a", &[]).await;
    let sent = sent_more_than(&second, sent + 3).await;
    second.kill().await;
    // Killed, its lease has to run out first.
    let third = Process::payments(&ground, "payments-a", &[]).await;
    sent_more_than(&third, sent + 3).await;
    eventually("the window is finished", async || {
        let done = "SELECT window_uuid FROM report_windows WHERE finished_at IS NOT NULL";
        sqlx::query(done).fetch_optional(&state.pool).await.unwrap()
    })
    .await;
    let totals = stats(&third, uuid).await;
    assert_eq!(totals["sent_to_queue"], totals["audit_total"], "every audited tick is sent");
    let stream: usize = ground.redis().await.xlen(ground.stream.reports()).await.unwrap();
    assert!(stream >= usize::try_from(totals["sent_to_queue"].as_i64().unwrap()).unwrap());
}

/// The whole way on real processes, with a relay and a monitor killed on the way: in the end the
/// monitor's counts equal the audit.
#[tokio::test]
async fn what_the_audit_says_was_sent_is_what_the_monitor_received() {
    let ground = Ground::new().await;
    let monitor_at: SocketAddr = free_address();
    let monitor_url = format!("http://{monitor_at}");
    let environment = [("DATABASE_URL", ground.monitor_url.as_str())];
    let quick = ["--sweep-interval", "200ms", "--grace", "5s", "--replay-grace", "5s"];
    let monitor = Process::role_at(monitor_at, "monitor", &quick, &environment).await;
    let relay = Process::relay(&ground, &monitor_url, &["--consumer-name", "one"]).await;
    let mut services = Vec::new();
    for name in ["payments-a", "payments-b", "payments-c"] {
        services.push((Process::payments(&ground, name, &[]).await, Vec::new()));
    }
    for (service, windows) in &mut services {
        for seed in 0..3 {
            let request = json!({"duration_sec": 4, "tick_seconds": 0.1, "seed": seed});
            windows.push(open(service, &request).await["window_uuid"].as_str().unwrap().to_owned());
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    relay.kill().await;
    let _relay = Process::relay(&ground, &monitor_url, &["--consumer-name", "one"]).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    monitor.kill().await;
    let _monitor = Process::role_at(monitor_at, "monitor", &quick, &environment).await;

    let state = ground.monitor().await;
    eventually("every window is closed", async || {
        let windows = latest_windows(&state.pool, 100).await.unwrap();
        let closed = windows.iter().filter(|window| window.status != WindowStatus::Open).count();
        (closed == 9).then_some(())
    })
    .await;
    let windows = latest_windows(&state.pool, 100).await.unwrap();
    for (service, uuids) in &services {
        for uuid in uuids {
            let audit = stats(service, uuid).await;
            let window =
                windows.iter().find(|window| window.window.uuid.to_string() == *uuid).unwrap();
            let count = |name: &str| u32::try_from(audit[name].as_u64().unwrap()).unwrap();
            let expected = Counts {
                received: count("sent_to_queue"),
                errors: count("error_count"),
                // A tick that a busy machine has missed was not sent either.
                missing: 40 - count("sent_to_queue"),
                unobserved: 0,
            };
            assert_eq!(window.counts, expected, "{audit}");
            assert_eq!(window.status, WindowStatus::Alert, "each omits at least one");
            assert!(count("no_reported") > 0, "{audit}");
        }
    }
}

/// A sender that dies before its first heartbeat is still missed, because it announced its window.
#[tokio::test]
async fn a_window_without_any_heartbeat_is_an_alert() {
    let ground = Ground::new().await;
    let monitor = Process::monitor(&ground, &["--sweep-interval", "100ms"]).await;
    let _relay = Process::relay(&ground, &monitor.url(""), &[]).await;
    let window = window("payments-a", 3);
    ground.announce(announcement(&window).to_json()).await;
    let url = monitor.url(&format!("/api/monitor/windows/{}", window.uuid));
    let shown = eventually("it is closed", async || {
        let (_, shown) = answer(get(&url).await.unwrap()).await;
        (shown["status"] == "alert").then_some(shown)
    })
    .await;
    assert_eq!((&shown["missing_reports"], &shown["received_reports"]), (&json!(3), &json!(0)));
    let beat = Heartbeat { stream_id: None, ..heartbeat(&window, 1) };
    ground.send(beat.to_json()).await;
    eventually("the late one revises it", async || {
        let (_, shown) = answer(get(&url).await.unwrap()).await;
        (shown["missing_reports"] == 2 && shown["slots"][1]["late"] == true).then_some(())
    })
    .await;
}
