//! The relay: what it delivers, what it sets aside, and what it takes over.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use heartbeat::http;
use heartbeat::monitor::{Monitor, api};
use heartbeat::stream::StreamId;
use heartbeat::wire::Window;
use redis::streams::{StreamPendingReply, StreamRangeReply};
use redis::{AsyncCommands, cmd};
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::{
    Ground, Process, announcement, eventually, free_address, get, heartbeat, pending, received,
    run, shared, window,
};

/// Options that make a relay notice a dead one soon.
const QUICK: [&str; 4] = ["--lease", "1s", "--http-timeout", "300ms"];

/// Serves a router on a port of its own.
pub async fn serve(router: Router) -> (String, DropGuard) {
    let listener = http::bind("127.0.0.1:0".parse().unwrap(), "a test").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    tokio::spawn(http::serve(listener, router, api::MAX_BODY_BYTES, stop.clone()));
    (url, stop.drop_guard())
}

async fn monitor(ground: &Ground) -> (Monitor, String, DropGuard) {
    let monitor = ground.monitor().await;
    let (url, stop) = serve(api::router(monitor.clone())).await;
    (monitor, url, stop)
}

/// The dead letters' fields by name.
pub async fn dead_letters(ground: &Ground) -> Vec<Vec<(String, Vec<u8>)>> {
    let reply: StreamRangeReply =
        ground.redis().await.xrange_all(ground.stream.dead()).await.unwrap();
    let fields = |entry: &redis::streams::StreamId| {
        let names = entry.map.keys().cloned();
        names.map(|name| (name.clone(), entry.get(&name).unwrap())).collect()
    };
    reply.ids.iter().map(fields).collect()
}

pub fn field(letter: &[(String, Vec<u8>)], name: &str) -> String {
    let value = letter.iter().find(|(field, _)| field == name).map(|(_, value)| value.clone());
    String::from_utf8_lossy(&value.unwrap_or_default()).into_owned()
}

/// Messages that the monitor cannot take, and what each dead letter says.
fn poison(window: &Window) -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let with =
        |what: &str, other: &str| heartbeat(window, 0).to_json().replace(what, other).into_bytes();
    let sql = "x'; DROP TABLE windows; --";
    let (from, to) = ("2026-11-21T10:00:00Z", "2026-11-21T10:03:20Z");
    vec![
        ("payload", b"not json".to_vec(), "not a JSON object"),
        ("payload", b"[1,2]".to_vec(), "not a JSON object"),
        ("payload", b"{\"service\":\"\xff\"}".to_vec(), "not a JSON object"),
        ("payload", b"{\"a\":\"\0\"}".to_vec(), "not a JSON object"),
        ("payload", b"{}".to_vec(), "missing required fields"),
        ("payload", b"{\"service\":5}".to_vec(), "service has the wrong type"),
        ("payload", with("payments-a", &"n".repeat(5_000)), "service must be"),
        ("payload", with("payments-a", sql), "service must be"),
        ("payload", with(from, "0001-01-01T00:00:00Z"), "in the years 2000"),
        ("payload", with(to, "2026-11-21T09:00:00Z"), "must be later"),
        ("payload", with(to, "2027-03-21T09:00:00Z"), "at most 100000"),
        ("payload", vec![b'x'; 10 * 1024 * 1024], "not a JSON object"),
        ("body", b"{}".to_vec(), "no field named payload"),
    ]
}

#[tokio::test]
async fn what_is_committed_is_acknowledged_and_poison_takes_nothing_along() {
    let ground = Ground::new().await;
    let (monitor, url, _stop) = monitor(&ground).await;
    let window = window("payments-a", 20);
    let mut redis = ground.redis().await;
    let stream = ground.stream.reports();
    let poison = poison(&window);
    let bad_announcement = announcement(&window).to_json().replace("payments-a", "bad name");
    ground.announce(bad_announcement).await;
    for (slot, (name, body, _)) in (0..).zip(&poison) {
        ground.send(heartbeat(&window, slot).to_json()).await;
        let add = cmd("XADD").arg(stream).arg("*").arg(name).arg(body).to_owned();
        add.query_async::<String>(&mut redis).await.unwrap();
    }
    let relay = Process::relay(&ground, &url, &[]).await;
    let letters = eventually("all are settled", async || {
        let letters = dead_letters(&ground).await;
        let settled = letters.len() > poison.len() && pending(&ground).await == 0;
        settled.then_some(letters)
    })
    .await;
    assert_eq!(letters.len(), poison.len() + 1, "nothing else is set aside");
    assert!(letters.iter().any(|letter| field(letter, "stream") == ground.stream.windows()));
    for (_, _, expected) in &poison {
        let found = letters.iter().filter(|letter| field(letter, "reason").contains(expected));
        assert!(found.count() >= 1, "a dead letter says {expected:?}");
    }
    let first = &letters.iter().find(|letter| field(letter, "payload") == "not json").unwrap();
    assert_eq!(field(first, "stream"), stream);
    assert!(field(first, "id").parse::<StreamId>().is_ok());
    assert!(!field(first, "at").is_empty() && !field(first, "consumer").is_empty());
    assert_eq!(field(first, "attempts"), "1", "the stream gave it out once");
    let big = letters.iter().any(|letter| field(letter, "payload").len() == 10 * 1024 * 1024);
    assert!(big, "a body is kept whole");
    assert_eq!(received(&monitor).await as usize, poison.len());
    let id: String = sqlx::query_scalar("SELECT stream_id FROM events WHERE slot = 0")
        .fetch_one(&monitor.pool)
        .await
        .unwrap();
    assert!(id.parse::<StreamId>().is_ok(), "the relay adds the entry's id");
    let (status, took) = relay.terminate().await;
    assert!(status.success() && took < Duration::from_secs(10), "{status} {took:?}");
}

#[tokio::test]
async fn own_pending_entries_come_first_and_those_of_the_dead_are_taken_over() {
    let ground = Ground::new().await;
    let (monitor, url, _stop) = monitor(&ground).await;
    let window = window("payments-a", 500);
    for slot in 0..400 {
        ground.send(heartbeat(&window, slot).to_json()).await;
    }
    let mut redis = ground.redis().await;
    let stream = ground.stream.reports();
    cmd("XGROUP")
        .arg(&["CREATE", stream, "monitor-queue-group", "0"])
        .query_async::<()>(&mut redis)
        .await
        .unwrap();
    // Two relays read, and died before they delivered anything.
    for consumer in ["me", "gone"] {
        let read =
            ["GROUP", "monitor-queue-group", consumer, "COUNT", "200", "STREAMS", stream, ">"];
        cmd("XREADGROUP").arg(&read).query_async::<redis::Value>(&mut redis).await.unwrap();
    }
    assert_eq!(pending(&ground).await, 400);
    let options = [&QUICK[..], &["--consumer-name", "me", "--batch-size", "50"]].concat();
    let _relay = Process::relay(&ground, &url, &options).await;
    eventually("all are delivered", async || (pending(&ground).await == 0).then_some(())).await;
    assert_eq!(received(&monitor).await, 400);
    assert!(dead_letters(&ground).await.is_empty());
}

#[tokio::test]
async fn a_lost_group_and_an_emptied_redis_are_recovered() {
    let ground = Ground::new().await;
    let (monitor, url, _stop) = monitor(&ground).await;
    let window = window("payments-a", 30);
    let _relay = Process::relay(&ground, &url, &[]).await;
    let mut redis = ground.redis().await;
    let streams = [ground.stream.reports(), ground.stream.windows()];
    for round in 0..3_u32 {
        match round {
            0 => (),
            1 => {
                let destroy = ["DESTROY", streams[0], "monitor-queue-group"];
                cmd("XGROUP").arg(&destroy).query_async::<()>(&mut redis).await.unwrap();
            }
            _ => redis.del::<_, ()>(&streams).await.unwrap(),
        }
        for slot in 0..10 {
            let beat = heartbeat(&window, round * 10 + slot).to_json();
            ground.send(beat).await;
        }
        let wanted = (round + 1) * 10;
        eventually(&format!("round {round} arrives"), async || {
            (received(&monitor).await == wanted).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_monitor_that_is_away_costs_nothing_but_time() {
    let ground = Ground::new().await;
    let away = crate::support::free_address();
    let relay = Process::relay(&ground, &format!("http://{away}"), &[]).await;
    let window = window("payments-a", 10);
    ground.announce(announcement(&window).to_json()).await;
    for slot in 0..10 {
        ground.send(heartbeat(&window, slot).to_json()).await;
    }
    eventually("the relay says why it is not ready", async || {
        let answer = get(&relay.url("/ready")).await.unwrap();
        let unready = answer.status() == reqwest::StatusCode::SERVICE_UNAVAILABLE;
        let text = answer.text().await.unwrap();
        (unready && text.contains("monitor: the monitor cannot be reached")).then_some(())
    })
    .await;
    let environment = [("DATABASE_URL", ground.monitor_url.as_str())];
    let _monitor = Process::role_at(away, "monitor", &[], &environment).await;
    let monitor = ground.monitor().await;
    eventually("all arrive", async || (received(&monitor).await == 10).then_some(())).await;
    eventually("all are acknowledged", async || (pending(&ground).await == 0).then_some(())).await;
    eventually("its next report is taken too", async || {
        let ready = get(&relay.url("/ready")).await.unwrap();
        ready.status().is_success().then_some(())
    })
    .await;
    assert!(dead_letters(&ground).await.is_empty());
}

#[tokio::test]
async fn two_relays_cannot_share_a_name() {
    let ground = Ground::new().await;
    let first = Process::relay(&ground, "http://127.0.0.1:9", &["--consumer-name", "one"]).await;
    let stream = ground.stream.to_string();
    let listen = free_address().to_string();
    let arguments = ["relay", "--consumer-name", "one", "--listen", &listen];
    let environment =
        [("REDIS_URL", shared().redis_url.as_str()), ("STREAM_NAME", stream.as_str())];
    let (code, _, err) = run(&arguments, &environment).await;
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("another relay runs under the name one"), "{err}");
    assert!(get(&first.url("/health")).await.unwrap().status().is_success());
    // Who stops lets go of the name, and who is killed keeps it for a moment only.
    first.terminate().await;
    let second = Process::relay(&ground, "http://127.0.0.1:9", &["--consumer-name", "one"]).await;
    second.kill().await;
    Process::relay(&ground, "http://127.0.0.1:9", &["--consumer-name", "one"]).await;
}

/// Largest resident memory of a process so far, in MiB.
fn peak_mib(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[tokio::test]
async fn memory_does_not_grow_with_the_backlog() {
    let ground = Ground::new().await;
    let take = async |body: String| {
        let items: Vec<&serde_json::value::RawValue> = serde_json::from_str(&body).unwrap();
        Json(vec![json!({"outcome": "recorded"}); items.len()])
    };
    let (url, _stop) =
        serve(Router::new().route("/api/monitor/heartbeats/batch", post(take))).await;
    let fill =
        "for i = 1, tonumber(ARGV[1]) do redis.call('XADD', KEYS[1], '*', 'payload', ARGV[2]) end";
    let mut redis = ground.redis().await;
    let payload = heartbeat(&window("payments-a", 1), 0).to_json();
    // In steps, because Redis does nothing else meanwhile, and other tests use it too.
    for _ in 0..100 {
        let mut step = cmd("EVAL");
        step.arg(fill).arg(1).arg(ground.stream.reports()).arg(10_000).arg(&payload);
        step.query_async::<()>(&mut redis).await.unwrap();
    }
    let relay = Process::relay(&ground, &url, &[]).await;
    eventually("it has delivered a good part", async || {
        let groups: redis::streams::StreamInfoGroupsReply =
            redis.xinfo_groups(ground.stream.reports()).await.unwrap();
        (groups.groups.first()?.entries_read? > 100_000).then_some(())
    })
    .await;
    let peak = peak_mib(&relay);
    assert!(peak < 80, "{peak} MiB");
    redis.unlink::<_, ()>(ground.stream.reports()).await.unwrap();
}

/// A monitor as it was before batches and announcements.
fn old_monitor(seen: Arc<std::sync::Mutex<Vec<Value>>>) -> Router {
    let take = move |body: String| async move { old_answer(&seen, &body) };
    Router::new().route("/api/monitor/heartbeats", post(take))
}

fn old_answer(seen: &std::sync::Mutex<Vec<Value>>, body: &str) -> Response {
    let body: Value = serde_json::from_str(body).unwrap_or_default();
    match body["service"].as_str() {
        None => {
            let answer = json!({"error": "missing required fields", "fields": ["service"]});
            (StatusCode::BAD_REQUEST, Json(answer)).into_response()
        }
        Some("payments-x") => {
            (StatusCode::BAD_REQUEST, Json(json!({"error": "no such service"}))).into_response()
        }
        Some(_) => {
            let answer = json!({"heartbeat": {"id": 1}, "window": {}});
            seen.lock().unwrap().push(body);
            (StatusCode::ACCEPTED, Json(answer)).into_response()
        }
    }
}

#[tokio::test]
async fn an_old_monitor_gets_heartbeats_one_by_one_and_no_announcements() {
    let ground = Ground::new().await;
    let seen = Arc::default();
    let (url, _stop) = serve(old_monitor(Arc::clone(&seen))).await;
    let (good, bad) = (window("payments-a", 5), window("payments-x", 5));
    ground.announce(announcement(&good).to_json()).await;
    for slot in 0..5 {
        for window in [&good, &bad] {
            ground.send(heartbeat(window, slot).to_json()).await;
        }
    }
    let full_path = format!("{url}/api/monitor/heartbeats");
    let _relay = Process::relay(&ground, &full_path, &[]).await;
    eventually("all are settled", async || {
        let taken = seen.lock().unwrap().len();
        let refused = dead_letters(&ground).await.len();
        (taken == 5 && refused == 5 && pending(&ground).await == 0).then_some(())
    })
    .await;
    let announcements: StreamPendingReply = ground
        .redis()
        .await
        .xpending(ground.stream.windows(), "monitor-queue-group")
        .await
        .unwrap();
    assert_eq!(announcements.count(), 0, "announcements are acknowledged and skipped");
}

/// A monitor that fails on every request that holds a certain service's heartbeat.
async fn allergic_monitor(body: String) -> Response {
    if body.contains("payments-x") {
        return (StatusCode::INTERNAL_SERVER_ERROR, "boom").into_response();
    }
    let items: Vec<Value> = serde_json::from_str(&body).unwrap();
    Json(items.iter().map(|_| json!({"outcome": "recorded"})).collect::<Vec<_>>()).into_response()
}

#[tokio::test]
async fn a_single_heartbeat_reaches_an_old_monitor_too() {
    let ground = Ground::new().await;
    let seen = Arc::default();
    let (url, _stop) = serve(old_monitor(Arc::clone(&seen))).await;
    let beat = heartbeat(&window("payments-a", 5), 0).to_json();
    ground.send(beat).await;
    let _relay = Process::relay(&ground, &url, &[]).await;
    eventually("it is taken", async || {
        (seen.lock().unwrap().len() == 1 && pending(&ground).await == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_message_that_alone_makes_the_monitor_fail_is_given_up_in_the_end() {
    let ground = Ground::new().await;
    let (url, _stop) =
        serve(Router::new().route("/api/monitor/heartbeats/batch", post(allergic_monitor))).await;
    let (good, bad) = (window("payments-a", 5), window("payments-x", 1));
    for slot in 0..5 {
        ground.send(heartbeat(&good, slot).to_json()).await;
    }
    ground.send(heartbeat(&bad, 0).to_json()).await;
    let _relay = Process::relay(&ground, &url, &["--max-retries", "2"]).await;
    let mut slots = (0..5).cycle();
    let letters = eventually("one is given up", async || {
        // Others go on passing, which is what proves that the message is at fault.
        let beat = heartbeat(&good, slots.next().unwrap()).to_json();
        ground.send(beat).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let letters = dead_letters(&ground).await;
        (letters.len() == 1).then_some(letters)
    })
    .await;
    assert!(field(&letters[0], "payload").contains("payments-x"));
    assert!(field(&letters[0], "reason").contains("2 times while others passed"));
}
