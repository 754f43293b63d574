//! The first system, played by stand-ins that behave exactly as its programs do, each in a process of
//! its own, and how it and ours work together.

mod consumer;
mod ledgers;
mod mixes;
mod monitor;
mod part;
mod replacement;
mod sender;
pub mod tables;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::cmd;
use reqwest::StatusCode;
use serde_json::{Value, json};

use self::ledgers::{Counts, audited, counted, drained, number_of};
use self::part::{Program, Running, Theirs, their_consumer, their_monitor, their_sender};
use crate::support::{Ground, answer, eventually, free_address, get, pool};

/// Names the part of the first system that a process plays.
const PART: &str = "HEARTBEAT_TEST_FIRST_SYSTEM";
/// Whether this process was told to end after what it has begun.
static ENOUGH: AtomicBool = AtomicBool::new(false);

/// What a part was told.
fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

fn number(name: &str) -> i64 {
    setting(name).parse().unwrap()
}

#[tokio::test]
#[ignore = "the part of other tests that runs in processes of its own"]
async fn part() {
    let Ok(part) = std::env::var(PART) else { return };
    // It ends with whoever started it, however that ends: its input closes then.
    std::thread::spawn(|| {
        for _ in std::io::stdin().lines() {
            ENOUGH.store(true, Ordering::Relaxed);
        }
        std::process::exit(0);
    });
    match part.as_str() {
        "sender" => sender::run().await,
        "consumer" => consumer::run().await,
        "monitor" => monitor::run().await,
        other => panic!("the first system has no {other}"),
    }
}

async fn post(url: &str, body: String) -> (StatusCode, Value) {
    let client = heartbeat::http::client(Duration::from_secs(10)).unwrap();
    answer(client.post(url).body(body).send().await.unwrap()).await
}

/// A heartbeat as its senders write it.
fn beat(second: u32) -> Value {
    json!({
        "service": "payments-a",
        "status": "ok",
        "window_uuid": "6f1c1f0e-5f0c-4f43-9a55-0d2b1f2a7f10",
        "window_from": "2026-11-21T10:00:00+00:00",
        "window_to": "2026-11-21T10:00:50+00:00",
        "timestamp": format!("2026-11-21T10:00:{second:02}+00:00"),
    })
}

#[tokio::test]
async fn alone_it_counts_all_that_was_sent_and_one_tick_more_than_a_window_has() {
    let ground = Ground::new().await;
    let address = free_address();
    let _monitor = their_monitor(address, &ground.monitor_url).start().await;
    let _consumer = their_consumer(&ground, address).start().await;
    let mut senders = Vec::new();
    for service in ["old-a", "old-b"] {
        let Running::Theirs(sender) = their_sender(&ground, service, (2, 4)).start().await else {
            unreachable!()
        };
        senders.push(sender);
    }
    for sender in senders {
        sender.end().await;
    }
    drained(&ground, "monitor-queue-group").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (_, swept) =
        post(&format!("http://{address}/api/monitor/windows/sweep"), String::new()).await;
    assert_eq!(swept["closed_windows"].as_array().unwrap().len(), 4);

    let monitor = pool(&ground.monitor_url).await;
    let windows = audited(&ground).await;
    assert_eq!(windows.len(), 4);
    for window in windows {
        assert_eq!((window.slots, window.sent_after), (4, 1), "one tick too many: {window:?}");
        assert!(window.omitted > 0, "{window:?}");
        assert_eq!(window.sent + window.omitted, 4, "{window:?}");
        let counts = counted(&monitor, &window.uuid).await;
        let (received, missing) = (window.sent + 1, window.omitted);
        let expected = Counts { status: "ALERT".to_owned(), expected: 5, received, missing };
        assert_eq!(counts, expected);
        let events = "SELECT COUNT(*) FROM heartbeat_events e JOIN monitoring_windows w \
                      ON w.id = e.window_id WHERE e.status = 'MISSING' AND w.window_uuid = ?";
        assert_eq!(number_of(&monitor, events, &window.uuid).await, missing);
    }
}

#[tokio::test]
async fn its_monitor_has_one_endpoint_and_loses_count_of_requests_at_a_time() {
    let ground = Ground::new().await;
    let address = free_address();
    let _monitor = their_monitor(address, &ground.monitor_url).start().await;
    let url = |path: &str| format!("http://{address}{path}");
    let heartbeats = url("/api/monitor/heartbeats");
    let (status, refusal) = post(&heartbeats, json!({"service": "payments-a"}).to_string()).await;
    assert_eq!(status, 400);
    let fields = ["status", "window_uuid", "window_from", "window_to", "timestamp"];
    assert_eq!(refusal, json!({"error": "missing required fields", "fields": fields}));
    let (status, taken) = post(&heartbeats, beat(0).to_string()).await;
    assert_eq!(status, 202);
    assert!(taken["heartbeat"]["id"].is_u64() && taken["window"].is_object(), "{taken}");
    assert_eq!(get(&url("/health")).await.unwrap().status(), 200);
    for path in ["/ready", "/api/monitor/windows", "/api/monitor/pipeline"] {
        assert_eq!(get(&url(path)).await.unwrap().status(), 404, "{path}");
    }

    let posts = (1..40).map(|second| post(&heartbeats, beat(second).to_string()));
    for (status, _) in futures_util::future::join_all(posts).await {
        assert_eq!(status, 202);
    }
    let monitor = pool(&ground.monitor_url).await;
    let uuid = beat(0)["window_uuid"].as_str().unwrap().to_owned();
    let counts = counted(&monitor, &uuid).await;
    assert_eq!(counts.expected, 51);
    assert!(counts.received < 40, "some of the 40 are not counted: {counts:?}");
    let events = "SELECT COUNT(*) FROM heartbeat_events e JOIN monitoring_windows w \
                  ON w.id = e.window_id WHERE w.window_uuid = ?";
    assert_eq!(number_of(&monitor, events, &uuid).await, 40, "but all are stored");
}

#[tokio::test]
async fn its_consumer_acknowledges_what_it_gives_up() {
    let ground = Ground::new().await;
    ground.send("{}").await;
    let Program::Theirs(part, mut settings) = their_consumer(&ground, free_address()) else {
        unreachable!()
    };
    settings.retain(|(name, _)| !name.ends_with("PAUSE_MS"));
    settings.push(("PAUSE_MS", "20".to_owned()));
    settings.push(("LONGEST_PAUSE_MS", "500".to_owned()));
    let consumer = Theirs::start(part, &settings).await;
    let began = std::time::Instant::now();
    eventually("it gives up", async || (consumer.said("gave up").len() == 1).then_some(())).await;
    assert!(began.elapsed() > Duration::from_secs(3), "{:?}", began.elapsed());
    drained(&ground, "monitor-queue-group").await;

    // What it held when it was killed, it delivers first.
    consumer.kill().await;
    ground.send(beat(0).to_string()).await;
    let read =
        ["GROUP", "monitor-queue-group", "consumer-1", "STREAMS", ground.stream.reports(), ">"];
    let mut redis = ground.redis().await;
    cmd("XREADGROUP").arg(&read).query_async::<redis::Value>(&mut redis).await.unwrap();
    let address = free_address();
    let _monitor = their_monitor(address, &ground.monitor_url).start().await;
    let _consumer = their_consumer(&ground, address).start().await;
    drained(&ground, "monitor-queue-group").await;
    let monitor = pool(&ground.monitor_url).await;
    let uuid = beat(0)["window_uuid"].as_str().unwrap().to_owned();
    assert_eq!(counted(&monitor, &uuid).await.received, 1);
}
