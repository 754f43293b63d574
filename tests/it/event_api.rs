//! Events, page by page.

use std::time::Duration;

use heartbeat::clock;
use heartbeat::monitor::{Monitor, ingest};
use heartbeat::wire::{Heartbeat, Rates, Status, Tick, Window};
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::plans::numbers;
use crate::query_api::{large_window, three_windows, window};
use crate::support::{Api, heartbeat};

fn listed(page: &Value) -> Vec<(String, i64, String)> {
    let events = page["events"].as_array().unwrap_or_else(|| panic!("no events in {page}"));
    let listed = events.iter().map(|event| {
        let text = |name: &str| event[name].as_str().unwrap().to_owned();
        (text("window_uuid"), event["slot"].as_i64().unwrap(), text("status"))
    });
    listed.collect()
}

#[tokio::test]
async fn events_are_listed_page_by_page_the_newest_first() {
    let api = Api::new().await;
    let [oldest, older, open] = three_windows(&api.monitor).await;
    let (status, all) = api.get("/api/monitor/events").await;
    assert_eq!((status, &all["next"]), (StatusCode::OK, &Value::Null));
    let row =
        |window: &Window, slot, status: &str| (window.uuid.to_string(), slot, status.to_owned());
    let expected = [
        row(&open, 1, "error"),
        row(&open, 0, "ok"),
        row(&older, 2, "missing"),
        row(&older, 1, "error"),
        row(&older, 0, "ok"),
        row(&oldest, 2, "missing"),
        row(&oldest, 1, "error"),
        row(&oldest, 0, "ok"),
    ];
    assert_eq!(listed(&all), expected);
    let event = &all["events"][3];
    assert_eq!((&event["service"], &event["error_message"]), (&json!("a"), &json!("boom")));
    assert_eq!((&event["late"], &event["deliveries"]), (&json!(false), &json!(1)));
    assert_eq!((&event["conflicts"], &event["cause"]), (&json!(0), &Value::Null));
    assert!(event["stream_id"].is_string() && event["recorded_at"].is_string());
    assert_eq!(event["timestamp"], older.due(1).to_string());
    for limit in 1..=8 {
        assert_eq!(pages(&api, &format!("limit={limit}")).await, expected, "limit {limit}");
    }
}

/// All pages of events.
async fn pages(api: &Api, query: &str) -> Vec<(String, i64, String)> {
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let (_, page) = api.get(&format!("/api/monitor/events?{query}{cursor}")).await;
        found.extend(listed(&page));
        let Some(next) = page["next"].as_str() else { return found };
        cursor = format!("&cursor={next}");
    }
}

/// However long a window is, and though its first heartbeat was stamped a little early.
#[tokio::test]
async fn events_between_two_instants_are_found_in_windows_that_reach_into_them() {
    let api = Api::new().await;
    let now = clock::now();
    let ago = |hours| now.minus(Duration::from_hours(hours));
    let (hour, service) = (Tick::from_micros(3_600_000_000).unwrap(), "long".parse().unwrap());
    let span = (ago(50), ago(2));
    let long = Window::new(Uuid::new_v4(), service, span, hour, Rates::default()).unwrap();
    let [old, short] = [window("short", ago(49), 3), window("short", ago(3), 3)];
    let early = Heartbeat {
        timestamp: short.from().minus(Duration::from_millis(900)),
        slot: None,
        ..heartbeat(&short, 0)
    };
    let mut sent: Vec<Heartbeat> = (0..48).map(|slot| heartbeat(&long, slot)).collect();
    sent.extend([heartbeat(&old, 0), early, heartbeat(&short, 1)]);
    ingest::ingest(&api.monitor, sent, now).await.unwrap();
    let row = |window: &Window, slot| (window.uuid.to_string(), slot, "ok".to_owned());
    let (from, to) = (long.due(45), short.from());
    let expected = [row(&short, 0), row(&long, 46), row(&long, 45)];
    for limit in 1..=4 {
        let found = pages(&api, &format!("from={from}&to={to}&limit={limit}")).await;
        assert_eq!(found, expected, "limit {limit}");
    }
    assert_eq!(pages(&api, &format!("from={from}&to={to}&service=short")).await, expected[..1]);
}

#[tokio::test]
async fn a_page_of_events_looks_at_a_part_of_a_large_window() {
    let api = Api::new().await;
    let window = large_window("a", 25_000);
    let sent = [3, 9_999, 24_999]
        .map(|slot| Heartbeat { status: Status::Error(None), ..heartbeat(&window, slot) });
    ingest::ingest(&api.monitor, sent.into(), clock::now()).await.unwrap();
    let row = |slot| (window.uuid.to_string(), slot, "error".to_owned());
    for filter in ["status=error".to_owned(), format!("window_uuid={}", window.uuid)] {
        let found = pages(&api, &filter).await;
        assert_eq!(found, [row(24_999), row(9_999), row(3)], "{filter}");
        let (_, first) = api.get(&format!("/api/monitor/events?{filter}")).await;
        assert_eq!(listed(&first), [row(24_999)], "{filter}: {first}");
    }
    assert_eq!(pages(&api, "status=missing").await, []);
}

#[tokio::test]
async fn events_are_filtered() {
    let api = Api::new().await;
    let [oldest, older, open] = three_windows(&api.monitor).await;
    let (from, to) = (older.due(1), older.due(2).plus_micros(1));
    for (query, expected) in [
        ("service=b".to_owned(), 2),
        ("service=nobody".to_owned(), 0),
        ("status=missing".to_owned(), 2),
        ("status=ERROR&service=a".to_owned(), 2),
        ("status=ok".to_owned(), 3),
        (format!("window_uuid={}", oldest.uuid), 3),
        (format!("window_uuid={}&service=b", oldest.uuid), 0),
        (format!("window_uuid={}&status=missing", open.uuid), 0),
        (format!("window_uuid={}", Uuid::new_v4()), 0),
        (format!("from={from}&to={to}"), 2),
        (format!("from={}", open.due(1)), 1),
        (format!("to={}", oldest.due(1)), 1),
        (format!("from={}&status=error&service=a", oldest.due(2)), 1),
    ] {
        let (status, page) = api.get(&format!("/api/monitor/events?{query}")).await;
        assert_eq!(status, StatusCode::OK, "{query}: {page}");
        assert_eq!(listed(&page).len(), expected, "{query}: {page}");
    }
}

/// Stores windows of `a` whose events are gone, one a minute up to so many hours ago.
async fn store_emptied(monitor: &Monitor, hours: u32) {
    let (thousands, many) = (numbers(3), numbers(1_000));
    let statement = format!(
        "INSERT INTO windows (window_uuid, service_name, status, window_from, window_to, ends_at, \
         tick_us, expected_reports, received_reports, created_at, updated_at, closed_at, \
         events_kept) SELECT UUID(), 'a', 'CLOSED', begins, ends, ends, 10000000, 6, 6, ends, \
         ends, ends, FALSE FROM (SELECT begins, begins + INTERVAL 1 MINUTE AS ends \
         FROM (SELECT UTC_TIMESTAMP(6) - INTERVAL {hours} HOUR \
         - INTERVAL t.n * 1000 + m.n MINUTE AS begins FROM {thousands} t CROSS JOIN {many} m) b) w"
    );
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&monitor.pool).await.unwrap();
}

/// However many windows have no events any more: those behind them are found at once.
#[tokio::test]
async fn a_page_passes_over_windows_whose_events_are_gone() {
    let api = Api::new().await;
    let ago = |hours| clock::now().minus(Duration::from_hours(hours));
    let [old, older, last] =
        [("b", 60), ("a", 130), ("a", 140)].map(|(service, hours)| window(service, ago(hours), 3));
    let open = window("a", clock::now(), 3);
    store_emptied(&api.monitor, 1).await;
    store_emptied(&api.monitor, 70).await;
    let sent = [&open, &old, &older, &last].map(|window| heartbeat(window, 0));
    ingest::ingest(&api.monitor, sent.into(), clock::now()).await.unwrap();
    let row = |window: &Window| (window.uuid.to_string(), 0, "ok".to_owned());
    for (query, expected) in [
        ("status=ok", vec![&open, &old, &older, &last]),
        ("service=a", vec![&open, &older, &last]),
        ("service=b", vec![&old]),
    ] {
        let expected: Vec<_> = expected.into_iter().map(row).collect();
        let (_, page) = api.get(&format!("/api/monitor/events?{query}")).await;
        assert_eq!((listed(&page), &page["next"]), (expected.clone(), &Value::Null), "{query}");
        assert_eq!(pages(&api, &format!("{query}&limit=1")).await, expected, "{query}");
    }
}
