//! Closing on the watermark: what the monitor makes of the relays' reports, and of their silence.

use std::time::Duration;

use heartbeat::monitor::window::{StoredWindow, UNOBSERVED, WindowStatus};
use heartbeat::monitor::{Monitor, ingest, latest_windows, pipeline, sweep};
use heartbeat::wire::{
    Announcement, Breaker, DeadLetterReport, PipelineReport, StreamId, StreamState, Suspect,
    SuspectReport, Timestamp, Window,
};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{
    Ground, Process, START, announcement, answer, at, eventually, get, heartbeat, window,
};

/// A stream id of an instant.
fn id(at: Timestamp) -> StreamId {
    StreamId { millis: u64::try_from(at.micros() / 1_000).unwrap(), sequence: 0 }
}

/// A report that delivery has come so far.
fn report(watermark: Timestamp) -> PipelineReport {
    PipelineReport {
        relay: "relay-1".to_owned(),
        group: "monitor-queue-group".to_owned(),
        stream: "reports".to_owned(),
        redis_identity: "run.replication.epoch".to_owned(),
        redis_time: watermark.plus(Duration::from_secs(1)),
        watermark,
        recovered_at: None,
        windows: StreamState::default(),
        heartbeats: StreamState { lag: Some(3), pending: 2, oldest_pending_at: Some(watermark) },
        breaker: Breaker::Closed,
        suspects: Vec::new(),
        resending: Vec::new(),
        dead_letters_total: 0,
        dead_letters: Vec::new(),
        silent_groups: Vec::new(),
    }
}

/// A window that was announced through the stream when it began, by a sender whose clock is right.
async fn announced(monitor: &Monitor, service: &str, slots: u32) -> Window {
    let window = window(service, slots);
    let told = Announcement {
        stream_id: Some(id(window.from())),
        ..Announcement::new(window.clone(), window.from())
    };
    ingest::announce(monitor, vec![told], window.from()).await.unwrap();
    window
}

async fn stored(monitor: &Monitor, window: &Window) -> StoredWindow {
    let windows = latest_windows(&monitor.pool, 100).await.unwrap();
    windows.into_iter().find(|stored| stored.window.uuid == window.uuid).unwrap()
}

async fn reason_held(monitor: &Monitor, window: &Window, now: Timestamp) -> String {
    let swept = sweep::sweep_window(monitor, window.uuid, now).await.unwrap().unwrap();
    swept.held.into_iter().map(|(_, reason)| reason).next().unwrap_or_default()
}

async fn conditions(monitor: &Monitor) -> Vec<(String, bool)> {
    sqlx::query_as("SELECT kind, lasting IS NOT NULL FROM pipeline_conditions ORDER BY id")
        .fetch_all(&monitor.pool)
        .await
        .unwrap()
}

/// The monitor has been running from one second to another, and found nothing else to do.
async fn run(monitor: &Monitor, from: Timestamp, seconds: u32) -> Timestamp {
    for second in 0..=seconds {
        let now = from.plus(Duration::from_secs(second.into()));
        pipeline::watch_once(monitor, now).await.unwrap();
    }
    from.plus(Duration::from_secs(seconds.into()))
}

#[tokio::test]
async fn a_window_of_the_stream_waits_for_the_watermark_and_a_direct_one_does_not() {
    let monitor = Ground::new().await.monitor().await;
    let streamed = announced(&monitor, "payments-a", 3).await;
    let direct = window("payments-b", 3);
    ingest::announce(&monitor, vec![announcement(&direct)], direct.from()).await.unwrap();
    let over = streamed.ends_at().plus(Duration::from_mins(5));
    let closes_at = streamed.ends_at().plus(monitor.grace);

    let behind = closes_at.plus_micros(-1);
    pipeline::accept(&monitor, report(behind), over).await.unwrap();
    assert_eq!(sweep::sweep_all(&monitor, over).await.unwrap(), 1);
    assert_eq!(stored(&monitor, &direct).await.status, WindowStatus::Alert);
    assert_eq!(stored(&monitor, &streamed).await.status, WindowStatus::Open);
    let reason = reason_held(&monitor, &streamed, over).await;
    assert!(reason.contains("still be on their way"), "{reason}");
    assert_eq!(sweep::sweep_on_request(&monitor, over).await.unwrap().held.len(), 1);

    pipeline::accept(&monitor, report(closes_at), over).await.unwrap();
    let early = closes_at.plus_micros(-1);
    assert_eq!(sweep::sweep_all(&monitor, early).await.unwrap(), 0, "the clock has to pass it too");
    assert_eq!(sweep::sweep_all(&monitor, over).await.unwrap(), 1);
    let alert = stored(&monitor, &streamed).await;
    assert_eq!((alert.status, alert.counts.cause()), (WindowStatus::Alert, None));
}

#[tokio::test]
async fn without_any_report_everything_goes_by_the_clock() {
    let monitor = Ground::new().await.monitor().await;
    let window = announced(&monitor, "payments-a", 3).await;
    let closes_at = window.ends_at().plus(monitor.grace);
    assert_eq!(sweep::sweep_all(&monitor, closes_at).await.unwrap(), 1);
}

#[tokio::test]
async fn the_senders_clock_moves_the_end_of_its_windows() {
    let monitor = Ground::new().await.monitor().await;
    let window = window("payments-a", 3);
    // Its clock is 5 s behind; the way to Redis took up to half a second.
    let behind =
        |millis: u64, sent: Timestamp| id(sent.plus(Duration::from_millis(5_000 + millis)));
    let told = Announcement {
        stream_id: Some(behind(500, window.from())),
        ..Announcement::new(window.clone(), window.from())
    };
    ingest::announce(&monitor, vec![told], window.from()).await.unwrap();
    assert_eq!(stored(&monitor, &window).await.clock_offset_us, Some(5_500_000));
    let mut beats = [heartbeat(&window, 0), heartbeat(&window, 1)];
    beats[0].stream_id = Some(behind(100, beats[0].timestamp));
    beats[1].stream_id = Some(behind(300, beats[1].timestamp));
    ingest::ingest(&monitor, beats.to_vec(), window.from()).await.unwrap();
    assert_eq!(stored(&monitor, &window).await.clock_offset_us, Some(5_100_000));
    let closes_at = window.ends_at().plus(monitor.grace).plus_micros(5_100_000);
    assert_eq!(sweep::sweep_all(&monitor, closes_at.plus_micros(-1)).await.unwrap(), 0);
    assert_eq!(sweep::sweep_all(&monitor, closes_at).await.unwrap(), 1);
}

#[tokio::test]
async fn a_window_first_seen_directly_belongs_to_the_stream_once_it_comes_that_way() {
    let monitor = Ground::new().await.monitor().await;
    let window = window("payments-a", 3);
    let mut beats = [heartbeat(&window, 0), heartbeat(&window, 1)];
    ingest::ingest(&monitor, vec![beats[0].clone()], window.from()).await.unwrap();
    assert!(!stored(&monitor, &window).await.via_stream);
    beats[1].stream_id = Some(id(beats[1].timestamp));
    ingest::ingest(&monitor, vec![beats[1].clone()], window.from()).await.unwrap();
    let known = stored(&monitor, &window).await;
    assert_eq!((known.via_stream, known.clock_offset_us), (true, Some(0)));
}

#[tokio::test]
async fn a_suspect_holds_up_its_own_window_only() {
    let monitor = Ground::new().await.monitor().await;
    let suspected = announced(&monitor, "payments-a", 3).await;
    let other = announced(&monitor, "payments-b", 3).await;
    let over = suspected.ends_at().plus(Duration::from_mins(1));
    let suspect = Suspect {
        stream: "reports".to_owned(),
        stream_id: id(suspected.due(1)),
        report: SuspectReport {
            window_uuid: Some(suspected.uuid),
            slot: Some(1),
            reason: "500".to_owned(),
            since: over,
        },
    };
    let told = PipelineReport { suspects: vec![suspect], ..report(over) };
    pipeline::accept(&monitor, told, over).await.unwrap();
    assert_eq!(sweep::sweep_all(&monitor, over).await.unwrap(), 1);
    assert_eq!(stored(&monitor, &other).await.status, WindowStatus::Alert);
    let reason = reason_held(&monitor, &suspected, over).await;
    assert!(reason.contains("makes the monitor fail"), "{reason}");
    let later = over.plus(Duration::from_secs(2));
    pipeline::accept(&monitor, report(later), later).await.unwrap();
    assert_eq!(sweep::sweep_all(&monitor, later).await.unwrap(), 1);
}

#[tokio::test]
async fn a_service_that_sends_again_holds_up_its_own_windows_only() {
    let monitor = Ground::new().await.monitor().await;
    let resent = announced(&monitor, "payments-a", 3).await;
    let other = announced(&monitor, "payments-b", 3).await;
    let over = resent.ends_at().plus(Duration::from_mins(1));
    let told = PipelineReport { resending: vec!["payments-a".to_owned()], ..report(over) };
    pipeline::accept(&monitor, told, over).await.unwrap();
    assert_eq!(sweep::sweep_all(&monitor, over).await.unwrap(), 1);
    assert_eq!(stored(&monitor, &other).await.status, WindowStatus::Alert);
    let reason = reason_held(&monitor, &resent, over).await;
    assert!(reason.contains("is sending again"), "{reason}");
    ingest::ingest(&monitor, (0..3).map(|slot| heartbeat(&resent, slot)).collect(), over)
        .await
        .unwrap();
    let later = over.plus(Duration::from_secs(2));
    pipeline::accept(&monitor, report(later), later).await.unwrap();
    assert_eq!(sweep::sweep_all(&monitor, later).await.unwrap(), 1);
    assert_eq!(stored(&monitor, &resent).await.status, WindowStatus::Closed);
}

#[tokio::test]
async fn time_in_which_no_monitor_runs_does_not_count() {
    let monitor = Ground::new().await.monitor().await;
    let start = at(START);
    pipeline::watch_once(&monitor, start).await.unwrap();
    pipeline::accept(&monitor, report(start), start).await.unwrap();
    for hour in 1..3 {
        let later = start.plus(Duration::from_hours(hour));
        pipeline::watch_once(&monitor, later).await.unwrap();
    }
    assert!(conditions(&monitor).await.is_empty());
    run(&monitor, start.plus(Duration::from_hours(2)), 5).await;
    assert_eq!(conditions(&monitor).await, [("stalled".to_owned(), true)]);
}

#[tokio::test]
async fn a_stall_is_recorded_once_and_ends_with_the_next_report() {
    let monitor = Ground::new().await.monitor().await;
    let start = at(START);
    pipeline::watch_once(&monitor, start).await.unwrap();
    pipeline::accept(&monitor, report(start), start).await.unwrap();
    let now = run(&monitor, start, 14).await;
    assert!(conditions(&monitor).await.is_empty());
    let later = now.plus(Duration::from_secs(1));
    let (one, other) = (monitor.clone(), monitor.clone());
    tokio::join!(run(&one, later, 20), run(&other, later, 20));
    assert_eq!(conditions(&monitor).await, [("stalled".to_owned(), true)]);
    pipeline::accept(&monitor, report(later), later).await.unwrap();
    assert_eq!(conditions(&monitor).await, [("stalled".to_owned(), false)]);
}

#[tokio::test]
async fn what_was_held_too_long_is_closed_as_unobserved_and_settled_when_the_truth_is_known() {
    let monitor =
        Monitor { max_hold: Duration::from_secs(30), ..Ground::new().await.monitor().await };
    // The watermark stops when the first slot of both windows has been observed.
    let [kept, broken] =
        [announced(&monitor, "payments-a", 3).await, announced(&monitor, "payments-b", 3).await];
    ingest::ingest(&monitor, vec![heartbeat(&kept, 0)], kept.from()).await.unwrap();
    let observed = kept.due(1).plus(monitor.grace).plus_micros(-1);
    pipeline::accept(&monitor, report(observed), observed).await.unwrap();

    let over = kept.ends_at().plus(monitor.grace);
    let now = run(&monitor, over, 34).await;
    assert_eq!(sweep::sweep_all(&monitor, now).await.unwrap(), 0, "held for 29 s");
    let now = run(&monitor, now, 2).await;
    assert_eq!(sweep::sweep_all(&monitor, now).await.unwrap(), 2);
    let unobserved = stored(&monitor, &kept).await;
    assert_eq!(unobserved.status, WindowStatus::Alert);
    assert_eq!((unobserved.counts.missing, unobserved.counts.unobserved), (2, 2));
    assert_eq!(unobserved.counts.cause(), Some(UNOBSERVED));
    let alert = stored(&monitor, &broken).await;
    assert_eq!((alert.counts.missing, alert.counts.unobserved), (3, 2));
    assert_eq!(alert.counts.cause(), None, "one slot is missing for certain");

    // One of the two arrives; of the other it becomes known that it will not.
    ingest::ingest(&monitor, vec![heartbeat(&kept, 1)], now).await.unwrap();
    assert_eq!(sweep::settle_once(&monitor, now).await.unwrap(), 0, "the watermark stands still");
    let later = now.plus(Duration::from_secs(1));
    pipeline::accept(&monitor, report(later), later).await.unwrap();
    assert_eq!(sweep::settle_once(&monitor, later).await.unwrap(), 2);
    assert_eq!(sweep::settle_once(&monitor, later).await.unwrap(), 0);
    let settled = stored(&monitor, &kept).await;
    assert_eq!((settled.counts.received, settled.counts.missing), (2, 1));
    assert_eq!(settled.counts.cause(), None);
    ingest::ingest(&monitor, vec![heartbeat(&kept, 2)], later).await.unwrap();
    let history: Vec<(String, Option<String>)> = sqlx::query_as(
        "SELECT h.status, h.cause FROM window_history h JOIN windows w ON w.id = h.window_id \
         WHERE w.window_uuid = ? ORDER BY h.id",
    )
    .bind(kept.uuid.to_string())
    .fetch_all(&monitor.pool)
    .await
    .unwrap();
    let alert = |cause: Option<&str>| ("ALERT".to_owned(), cause.map(str::to_owned));
    assert_eq!(history, [alert(Some(UNOBSERVED)), alert(None), ("CLOSED".to_owned(), None)]);
}

#[tokio::test]
async fn dead_letters_are_remembered_for_good_and_silent_groups_while_they_are() {
    let monitor = Ground::new().await.monitor().await;
    let start = at(START);
    let letter = DeadLetterReport {
        stream: "reports".to_owned(),
        stream_id: id(start),
        window_uuid: None,
        slot: Some(1),
        reason: "why".to_owned(),
        at: start,
    };
    let told = |second| PipelineReport {
        dead_letters: vec![letter.clone()],
        silent_groups: vec!["auditors".to_owned()],
        ..report(start.plus(Duration::from_secs(second)))
    };
    for second in 0..3 {
        pipeline::accept(&monitor, told(second), start).await.unwrap();
    }
    let letters: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM dead_letters")
        .fetch_one(&monitor.pool)
        .await
        .unwrap();
    assert_eq!(letters, 1);
    assert_eq!(conditions(&monitor).await, [("group_silent".to_owned(), true)]);
    pipeline::accept(&monitor, report(start.plus(Duration::from_secs(3))), start).await.unwrap();
    assert_eq!(conditions(&monitor).await, [("group_silent".to_owned(), false)]);
}

#[tokio::test]
async fn the_api_takes_reports_and_shows_them_and_forgets_on_demand() {
    let ground = Ground::new().await;
    let token = "a-token-of-many-characters";
    let monitor = Process::monitor(&ground, &["--admin-token", token]).await;
    let client = heartbeat::http::client(Duration::from_secs(10)).unwrap();
    let url = monitor.url("/api/monitor/pipeline");
    let post = async |body: Value| {
        answer(client.post(&url).body(body.to_string()).send().await.unwrap()).await
    };
    let good = serde_json::to_value(report(at(START))).unwrap();
    assert_eq!(post(good.clone()).await.0, StatusCode::ACCEPTED);
    for (name, value, expected) in [
        ("relay", json!(""), "1 to 200 bytes"),
        ("group", json!("x".repeat(201)), "1 to 200 bytes"),
        ("watermark", json!("soon"), "watermark"),
        ("breaker", json!({"state": "ajar"}), "breaker"),
        ("silent_groups", json!(vec!["g"; 1_001]), "at most 1000"),
    ] {
        let mut bad = good.clone();
        bad[name] = value;
        let (status, body) = post(bad).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{name}");
        assert!(body["error"].as_str().unwrap().contains(expected), "{name}: {body}");
    }
    let (status, shown) = answer(get(&url).await.unwrap()).await;
    assert_eq!((status, &shown["watermark"]), (StatusCode::OK, &json!(START)));
    let known = &shown["pipelines"][0];
    assert_eq!(known["heartbeats"]["lag"], 3);
    assert_eq!(known["relays"][0]["breaker"]["state"], "closed");
    assert_eq!(known["stalled"], false);

    let forget = |token: Option<&str>, group: &str| {
        let request = client.delete(format!("{url}?stream=reports&group={group}"));
        match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    };
    let mut statuses = Vec::new();
    for (token, group) in [
        (None, "monitor-queue-group"),
        (Some("another-token-of-many"), "monitor-queue-group"),
        (Some(token), "nobody"),
        (Some(token), "monitor-queue-group"),
    ] {
        statuses.push(answer(forget(token, group).send().await.unwrap()).await.0.as_u16());
    }
    assert_eq!(statuses, [401, 401, 404, 200]);
    let (_, shown) = answer(get(&url).await.unwrap()).await;
    assert_eq!((&shown["watermark"], &shown["pipelines"]), (&Value::Null, &json!([])));

    let without = Process::monitor(&Ground::new().await, &[]).await;
    let delete = client.delete(without.url("/api/monitor/pipeline?stream=a&group=b"));
    assert_eq!(
        answer(delete.bearer_auth("x").send().await.unwrap()).await.0,
        StatusCode::FORBIDDEN
    );
}

/// The whole way: a real relay reports, and its breaker is seen.
#[tokio::test]
async fn a_relay_reports_and_says_when_its_breaker_is_open() {
    let ground = Ground::new().await;
    let monitor = Process::monitor(&ground, &[]).await;
    let relay = Process::relay(&ground, &monitor.url(""), &["--consumer-name", "one"]).await;
    let url = monitor.url("/api/monitor/pipeline");
    eventually("it is shown", async || {
        let (_, shown) = answer(get(&url).await.unwrap()).await;
        (shown["pipelines"][0]["relays"][0]["relay"] == "one").then_some(())
    })
    .await;
    ground.send("poison").await;
    eventually("its dead letter is known", async || {
        let (_, shown) = answer(get(&url).await.unwrap()).await;
        (shown["pipelines"][0]["dead_letters"] == 1).then_some(())
    })
    .await;
    let letters = ground.monitor().await.pool;
    eventually("and remembered", async || {
        let found: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM dead_letters")
            .fetch_one(&letters)
            .await
            .unwrap();
        (found == 1).then_some(())
    })
    .await;
    monitor.kill().await;
    ground.send(heartbeat(&window("payments-a", 1), 0).to_json()).await;
    eventually("the breaker opens", async || {
        let shown = get(&relay.url("/ready")).await.unwrap().text().await.unwrap();
        (shown.contains("breaker: open") && shown.contains("reporting:")).then_some(())
    })
    .await;
}
