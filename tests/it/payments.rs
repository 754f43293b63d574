//! A payments service: its API, its plan and outbox, and what it resumes.

use std::time::Duration;

use heartbeat::http;
use heartbeat::payments::continuous;
use heartbeat::payments::emitter::{self, Emitter};
use heartbeat::payments::plan::{Overrides, Plan};
use heartbeat::payments::{Payments, api, publish};
use heartbeat::wire::{Announcement, Heartbeat, Tick};
use redis::AsyncCommands;
use redis::streams::StreamRangeReply;
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::Row;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use crate::support::{Ground, answer, at, eventually, get};

/// A plan of 10 slots of 10 s that omits one.
pub fn plan(payments: &Payments) -> Plan {
    let overrides = Overrides {
        duration_sec: Some(100.0),
        error_status_no_reportado: Some(0.1),
        seed: Some(3),
        ..Overrides::default()
    };
    let identity = (Uuid::new_v4(), payments.service.clone());
    Plan::draw(&overrides, identity, at("2026-11-21T10:00:00Z"), Tick::DEFAULT, 0).unwrap()
}

pub async fn opened(payments: &Payments) -> Plan {
    let plan = plan(payments);
    let (emitter, _queue) = Emitter::new(payments.clone());
    assert!(emitter.open(plan.clone()).await.unwrap());
    plan
}

/// The payloads of a stream, in order.
pub async fn payloads(ground: &Ground, key: &str) -> Vec<Vec<u8>> {
    let reply: StreamRangeReply = ground.redis().await.xrange_all(key).await.unwrap();
    reply.ids.iter().map(|entry| entry.get("payload").unwrap()).collect()
}

pub async fn sent_and_not(payments: &Payments) -> (i64, i64) {
    let row = sqlx::query(
        "SELECT COUNT(IF(stream_id IS NOT NULL AND sent_to_queue, 1, NULL)) AS sent, \
         COUNT(IF(stream_id IS NULL AND NOT sent_to_queue, 1, NULL)) AS unsent FROM report_audit",
    )
    .fetch_one(&payments.pool)
    .await
    .unwrap();
    (row.get("sent"), row.get("unsent"))
}

#[tokio::test]
async fn a_tick_is_audited_before_it_is_sent_and_marked_after() {
    let ground = Ground::new().await;
    let payments = ground.payments("payments-a").await;
    let plan = opened(&payments).await;
    for slot in 0..10 {
        emitter::tick_once(&payments, &plan, slot, plan.window.due(slot)).await.unwrap();
    }
    assert_eq!(sent_and_not(&payments).await, (0, 10));
    assert!(payloads(&ground, ground.stream.reports()).await.is_empty());

    let mut progress = publish::Progress::default();
    let more = publish::publish_once(&payments, &plan, &mut progress).await.unwrap();
    assert!(progress.announced && !more);
    assert_eq!(sent_and_not(&payments).await, (9, 1), "the omitted one stays unsent");
    let announcements = payloads(&ground, ground.stream.windows()).await;
    assert_eq!(announcements.len(), 1);
    assert_eq!(Announcement::parse(&announcements[0], Tick::DEFAULT).unwrap().window, plan.window);
    let heartbeats = payloads(&ground, ground.stream.reports()).await;
    for payload in &heartbeats {
        let heartbeat = Heartbeat::parse(payload, Tick::DEFAULT).unwrap();
        let slot = u32::try_from(heartbeat.slot.unwrap()).unwrap();
        assert_eq!(heartbeat.timestamp, plan.window.due(slot));
        assert_eq!(Some(heartbeat.status), plan.intent(slot).status());
    }
    assert_eq!(heartbeats.len(), 9);

    publish::publish_once(&payments, &plan, &mut progress).await.unwrap();
    assert_eq!(payloads(&ground, ground.stream.reports()).await.len(), 9, "nothing is sent twice");
}

#[tokio::test]
async fn a_tick_that_is_stored_again_changes_nothing() {
    let ground = Ground::new().await;
    let payments = ground.payments("payments-a").await;
    let plan = opened(&payments).await;
    let due = plan.window.due(0);
    emitter::tick_once(&payments, &plan, 0, due).await.unwrap();
    publish::publish_once(&payments, &plan, &mut publish::Progress::default()).await.unwrap();
    let before = sent_and_not(&payments).await;
    emitter::tick_once(&payments, &plan, 0, due.plus_micros(999)).await.unwrap();
    assert_eq!(sent_and_not(&payments).await, before);
    let at: chrono::DateTime<chrono::Utc> =
        sqlx::query_scalar("SELECT timestamp FROM report_audit")
            .fetch_one(&payments.pool)
            .await
            .unwrap();
    assert_eq!(heartbeat::wire::Timestamp::from(at), due);
}

#[tokio::test]
async fn old_senders_go_on_writing_into_the_shared_tables() {
    let payments = Ground::new().await.payments("payments-a").await;
    let uuid = Uuid::new_v4().to_string();
    sqlx::query(
        "INSERT INTO report_windows (window_uuid, service, window_from, window_to, \
         error_status_generado, error_status_no_reportado, created_at) \
         VALUES (?, 'payments-old', '2026-11-21 10:00:00', '2026-11-21 10:02:00', 0.1, 0.2, NOW())",
    )
    .bind(&uuid)
    .execute(&payments.pool)
    .await
    .unwrap();
    for slot in 0..3 {
        sqlx::query(
            "INSERT INTO report_audit (window_uuid, service, status, window_from, window_to, \
             timestamp, sent_to_queue, created_at) VALUES (?, 'payments-old', ?, \
             '2026-11-21 10:00:00', '2026-11-21 10:02:00', '2026-11-21 10:00:00', ?, NOW())",
        )
        .bind(&uuid)
        .bind(if slot == 0 { "no_reported" } else { "ok" })
        .bind(slot != 0)
        .execute(&payments.pool)
        .await
        .unwrap();
    }
    let service = Service::new(&payments).await;
    let (status, stats) = service.get(&format!("/report-windows/{uuid}/stats")).await;
    assert_eq!(status, StatusCode::OK);
    let expected = json!({
        "ok": true, "window_uuid": uuid, "service": "payments-old", "audit_total": 3,
        "sent_to_queue": 2, "no_reported": 1, "ok_count": 2, "error_count": 0,
    });
    assert_eq!(stats, expected);
}

#[tokio::test]
async fn a_process_resumes_what_another_left_and_back_dates_nothing() {
    let ground = Ground::new().await;
    let payments = ground.payments("payments-a").await;
    let overrides = Overrides {
        duration_sec: Some(4.0),
        tick_seconds: Some(0.2),
        error_status_no_reportado: Some(0.0),
        ..Overrides::default()
    };
    let from = heartbeat::clock::now().minus(Duration::from_millis(1_900));
    let identity = (Uuid::new_v4(), payments.service.clone());
    let plan = Plan::draw(&overrides, identity, from, Tick::DEFAULT, 1).unwrap();
    let (emitter, _queue) = Emitter::new(payments.clone());
    emitter.open(plan.clone()).await.unwrap();
    // The process that opened it stored two ticks, sent none of them, and died.
    for slot in 0..2 {
        emitter::tick_once(&payments, &plan, slot, plan.window.due(slot)).await.unwrap();
    }
    sqlx::query("UPDATE report_windows SET leased_until = UTC_TIMESTAMP(6) - INTERVAL 1 SECOND")
        .execute(&payments.pool)
        .await
        .unwrap();

    let next = Payments { owner: Uuid::new_v4(), ..payments.clone() };
    let (_emitter, queue) = Emitter::new(next.clone());
    let stop = CancellationToken::new();
    let running = tokio::spawn(emitter::run(next, queue, stop.clone()));
    eventually("the window is finished", async || {
        let done = "SELECT window_uuid FROM report_windows WHERE finished_at IS NOT NULL";
        sqlx::query(done).fetch_optional(&payments.pool).await.unwrap()
    })
    .await;
    stop.cancel();
    running.await.unwrap().unwrap();

    let slots: Vec<i32> = sqlx::query_scalar("SELECT slot FROM report_audit ORDER BY slot")
        .fetch_all(&payments.pool)
        .await
        .unwrap();
    assert_eq!(slots[..2], [0, 1]);
    assert!(slots[2] >= 9, "ticks that passed while it was down stay without a row: {slots:?}");
    assert_eq!(slots.last(), Some(&19), "the rest is carried out");
    let (sent, unsent) = sent_and_not(&payments).await;
    assert_eq!((sent, unsent), (i64::try_from(slots.len()).unwrap(), 0), "all are sent, once");
    let stream = payloads(&ground, ground.stream.reports()).await;
    let read = |payload: &Vec<u8>| serde_json::from_slice::<Value>(payload).unwrap();
    let sent: Vec<_> = stream.iter().map(|payload| read(payload)["slot"].clone()).collect();
    assert_eq!(json!(sent), json!(slots), "what was left unsent goes first");
}

#[tokio::test]
async fn a_live_replicas_window_and_an_old_senders_window_are_left_alone() {
    let ground = Ground::new().await;
    let payments = ground.payments("payments-a").await;
    opened(&payments).await;
    sqlx::query(
        "INSERT INTO report_windows (window_uuid, service, window_from, window_to, created_at) \
         VALUES ('old', 'payments-a', NOW(), NOW() + INTERVAL 1 MINUTE, NOW())",
    )
    .execute(&payments.pool)
    .await
    .unwrap();
    let replica = Payments { owner: Uuid::new_v4(), ..payments.clone() };
    let (_emitter, queue) = Emitter::new(replica.clone());
    let stop = CancellationToken::new();
    let running = tokio::spawn(emitter::run(replica.clone(), queue, stop.clone()));
    tokio::time::sleep(Duration::from_millis(300)).await;
    // While it runs: a process that stops hands back what it has taken.
    let owners: Vec<Option<String>> =
        sqlx::query_scalar("SELECT owner FROM report_windows ORDER BY plan IS NULL")
            .fetch_all(&payments.pool)
            .await
            .unwrap();
    stop.cancel();
    running.await.unwrap().unwrap();
    assert_eq!(owners, [Some(payments.owner.to_string()), None]);
}

async fn count(payments: &Payments) -> i64 {
    let windows = "SELECT COUNT(*) FROM report_windows";
    sqlx::query_scalar(windows).fetch_one(&payments.pool).await.unwrap()
}

#[tokio::test]
async fn windows_follow_each_other_without_a_gap_and_replicas_open_each_once() {
    let ground = Ground::new().await;
    let payments = ground.payments("payments-a").await;
    let asked_for = opened(&payments).await;
    let (emitter, _queue) = Emitter::new(payments.clone());
    let length = Some(Duration::from_mins(1));
    let start = at("2026-11-21T10:00:00Z");
    let open = async |now| continuous::open_next(&payments, &emitter, length, now).await.unwrap();
    assert_eq!(open(start).await, Duration::ZERO);
    assert_eq!(open(start).await, Duration::from_secs(55), "the next is opened before this ends");
    let before_the_end = start.plus(Duration::from_secs(56));
    assert_eq!(open(before_the_end).await, Duration::ZERO);
    let spans: Vec<(chrono::DateTime<chrono::Utc>, chrono::DateTime<chrono::Utc>)> =
        sqlx::query_as("SELECT window_from, window_to FROM report_windows WHERE window_uuid <> ? ORDER BY window_from")
            .bind(asked_for.window.uuid.to_string())
            .fetch_all(&payments.pool)
            .await
            .unwrap();
    assert_eq!(spans.len(), 2);
    assert_eq!(spans[0].1, spans[1].0);
    // A replica that looks a moment later means the same window, which stands already.
    let far = start.plus(Duration::from_hours(2));
    let replica = Payments { owner: Uuid::new_v4(), ..payments.clone() };
    let (its_emitter, _queue) = Emitter::new(replica.clone());
    let before = count(&payments).await;
    open(far).await;
    sqlx::raw_sql("UPDATE report_windows SET continuous = FALSE")
        .execute(&payments.pool)
        .await
        .unwrap();
    let a_moment_later = far.plus(Duration::from_millis(3));
    continuous::open_next(&replica, &its_emitter, length, a_moment_later).await.unwrap();
    assert_eq!(count(&payments).await, before + 1);
    sqlx::raw_sql("DELETE FROM report_windows").execute(&payments.pool).await.unwrap();
    let long_after = start.plus(Duration::from_hours(1));
    open(long_after).await;
    let last: chrono::DateTime<chrono::Utc> =
        sqlx::query_scalar("SELECT MAX(window_from) FROM report_windows")
            .fetch_one(&payments.pool)
            .await
            .unwrap();
    assert_eq!(heartbeat::wire::Timestamp::from(last), long_after, "nothing is back-dated");
}

/// A payments service that serves on a port of its own.
struct Service {
    base: String,
    _stop: DropGuard,
}

impl Service {
    async fn new(payments: &Payments) -> Self {
        let listener = http::bind("127.0.0.1:0".parse().unwrap(), "a test").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let (emitter, queue) = Emitter::new(payments.clone());
        let router = api::router(payments.clone(), emitter);
        tokio::spawn(http::serve(listener, router, api::MAX_BODY_BYTES, stop.clone()));
        tokio::spawn(emitter::run(payments.clone(), queue, stop.clone()));
        Self { base, _stop: stop.drop_guard() }
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        answer(get(&format!("{}{path}", self.base)).await.unwrap()).await
    }

    async fn open(&self, body: &str) -> (StatusCode, Value) {
        let client = http::client(Duration::from_secs(10)).unwrap();
        let url = format!("{}/report-windows", self.base);
        answer(client.post(url).body(body.to_owned()).send().await.unwrap()).await
    }
}

#[tokio::test]
async fn a_window_is_opened_at_random_or_as_asked() {
    let ground = Ground::new().await;
    let service = Service::new(&ground.payments("payments-a").await).await;
    let (status, random) = service.open("").await;
    assert_eq!(status, StatusCode::ACCEPTED);
    assert_eq!((&random["ok"], &random["service"]), (&json!(true), &json!("payments-a")));
    let seconds = random["duration_sec"].as_u64().unwrap();
    assert!((60..=300).contains(&seconds));
    assert_eq!(random["tick_seconds"], 10);
    let span = at(random["window_from"].as_str().unwrap())
        .until(at(random["window_to"].as_str().unwrap()));
    assert_eq!(span.as_secs(), seconds);

    let asked = json!({
        "duration_sec": 2, "tick_seconds": 0.25, "error_status_generado": 0.5,
        "error_status_no_reportado": 0, "seed": 9,
    });
    let (status, opened) = service.open(&asked.to_string()).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    for name in ["duration_sec", "tick_seconds", "error_status_generado", "seed"] {
        assert_eq!(opened[name], asked[name], "{name}");
    }
    let uuid = opened["window_uuid"].as_str().unwrap();
    let stats = eventually("all eight are sent", async || {
        let (_, stats) = service.get(&format!("/report-windows/{uuid}/stats")).await;
        (stats["sent_to_queue"] == 8).then_some(stats)
    })
    .await;
    assert_eq!((&stats["ok_count"], &stats["error_count"]), (&json!(4), &json!(4)));
    let (_, audit) = service.get(&format!("/report-windows/{uuid}/audit?limit=3&offset=2")).await;
    let slots: Vec<_> = audit["audit"].as_array().unwrap().iter().map(|row| &row["slot"]).collect();
    assert_eq!(slots, [2, 3, 4]);
    let (_, list) = service.get("/report-windows").await;
    assert_eq!(list["windows"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_process_works_on_a_bounded_number_of_windows() {
    let ground = Ground::new().await;
    let payments = ground.payments("payments-a").await;
    let (emitter, _queue) = Emitter::new(payments.clone());
    for _ in 0..emitter::MAX_OPEN_WINDOWS - 1 {
        emitter.open(plan(&payments)).await.unwrap();
    }
    let listener = http::bind("127.0.0.1:0".parse().unwrap(), "a test").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    let router = api::router(payments.clone(), emitter);
    tokio::spawn(http::serve(listener, router, api::MAX_BODY_BYTES, stop.clone()));
    let service = Service { base, _stop: stop.drop_guard() };
    assert_eq!(service.open("").await.0, StatusCode::ACCEPTED);
    let (status, answer) = service.open("").await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer["error"], "200 windows are open here already: wait until some end");
}

#[tokio::test]
async fn what_cannot_be_opened_is_refused_with_the_reason() {
    let ground = Ground::new().await;
    let service = Service::new(&ground.payments("payments-a").await).await;
    let table = [
        ("{\"duration_sec\": 0}", "duration_sec must be a number from 1"),
        ("{\"duration_sec\": 1e9}", "duration_sec must be a number from 1"),
        ("{\"duration_sec\": \"60\"}", "the body cannot be used: duration_sec"),
        ("{\"duration\": 60}", "the body cannot be used: duration: unknown field"),
        ("{\"tick_seconds\": 0.01}", "tick_seconds must be a number from 0.05 to 3600"),
        ("{\"error_status_generado\": 2}", "error_status_generado must be a number from 0 to 1"),
        ("{\"error_status_no_reportado\": -1}", "error_status_no_reportado must be"),
        ("{\"seed\": -1}", "the body cannot be used: seed"),
        ("{\"duration_sec\": 600000, \"tick_seconds\": 0.05}", "a window may have at most 100000"),
        ("[]", "the body must be a JSON object"),
        ("{", "the body cannot be used"),
        ("{\"seed\": 1}\0", "something follows"),
    ];
    for (body, expected) in table {
        let (status, answer) = service.open(body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        let error = answer["error"].as_str().unwrap();
        assert!(error.starts_with(expected), "{body}: {error}");
    }
    let (status, _) = service.open(&" ".repeat(100_000)).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    let unknown = Uuid::new_v4();
    for path in ["stats", "audit"] {
        let (status, _) = service.get(&format!("/report-windows/{unknown}/{path}")).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        let (status, _) = service.get(&format!("/report-windows/x/{path}")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
    }
    for query in ["limit=100000", "offset=1"] {
        let (status, _) = service.get(&format!("/report-windows?{query}")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{query}");
    }
    assert_eq!(
        service.get("/health").await,
        (StatusCode::OK, json!({"ok": true, "service": "payments-a"}))
    );
    assert_eq!(service.get("/ready").await, (StatusCode::OK, json!({"ready": true})));
}
