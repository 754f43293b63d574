//! What the monitor is asked: windows, totals, days and services, page by page.

use std::time::Duration;

use heartbeat::clock;
use heartbeat::monitor::{Monitor, counting, ingest, sweep};
use heartbeat::wire::{Announcement, Heartbeat, Rates, Status, Tick, Timestamp, Window};
use reqwest::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Api, Ground, announcement, entry_id, error, eventually, heartbeat};

/// A window of a service with so many slots of 10 s.
pub fn window(service: &str, from: Timestamp, slots: i64) -> Window {
    let to = from.plus_micros(slots * Tick::DEFAULT.micros());
    let service = service.parse().unwrap();
    Window::new(Uuid::new_v4(), service, (from, to), Tick::DEFAULT, Rates::default()).unwrap()
}

/// Three windows of two services: `a` 20 and 10 minutes ago, of which slot 1 says that it fails and
/// slot 2 is missing, and `b` now, which is open.
pub async fn three_windows(monitor: &Monitor) -> [Window; 3] {
    let now = clock::now();
    let ago = |minutes| now.minus(Duration::from_mins(minutes));
    let windows = [window("a", ago(20), 3), window("a", ago(10), 3), window("b", ago(1), 60)];
    let told = windows.iter().map(announcement).collect();
    ingest::announce(monitor, told, now).await.unwrap();
    for window in &windows {
        let sent = |slot: u32| Heartbeat {
            stream_id: Some(entry_id(window.due(slot).plus(Duration::from_millis(100)))),
            ..heartbeat(window, slot)
        };
        let failing = Heartbeat { status: Status::Error(Some("boom".to_owned())), ..sent(1) };
        let at = window.due(1).plus(Duration::from_millis(250));
        ingest::ingest(monitor, vec![sent(0), failing], at).await.unwrap();
    }
    sweep::sweep_all(monitor, now).await.unwrap();
    counting::count_all(monitor, now).await.unwrap();
    windows
}

/// A window of a service with very many slots, which began ten minutes ago.
pub fn large_window(service: &str, slots: u32) -> Window {
    let (tick, service) = (Tick::from_seconds(0.05).unwrap(), service.parse().unwrap());
    let from = clock::now().minus(Duration::from_mins(10));
    let to = from.plus(tick.duration() * slots);
    Window::new(Uuid::new_v4(), service, (from, to), tick, Rates::default()).unwrap()
}

#[tokio::test]
async fn a_page_of_windows_ends_early_where_much_would_be_counted() {
    let api = Api::new().await;
    let windows = ["a", "b", "c", "d"].map(|service| large_window(service, 9_000));
    ingest::announce(&api.monitor, windows.iter().map(announcement).collect(), clock::now())
        .await
        .unwrap();
    let (mut pages, mut cursor) = (Vec::new(), String::new());
    loop {
        let (_, page) = api.get(&format!("/api/monitor/windows?status=open{cursor}")).await;
        pages.push(page["windows"].as_array().unwrap().len());
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(pages, [2, 2]);
    let largest = large_window("e", 100_000);
    ingest::announce(&api.monitor, vec![announcement(&largest)], clock::now()).await.unwrap();
    let (_, page) = api.get("/api/monitor/windows?service=e").await;
    assert_eq!(page["windows"].as_array().unwrap().len(), 1, "one is shown, however large");
}

/// Whatever is asked for at a time, heartbeats find a connection.
#[tokio::test]
async fn lists_leave_connections_to_heartbeats() {
    let api = Api::new().await;
    let mut other = api.monitor.pool.acquire().await.unwrap();
    sqlx::raw_sql("LOCK TABLES report_totals WRITE").execute(&mut *other).await.unwrap();
    let asked = (0..20).map(|_| api.get("/api/monitor/stats/daily"));
    let answering = async {
        let asked = futures_util::future::join_all(asked).await;
        asked.iter().filter(|(status, _)| *status == StatusCode::OK).count()
    };
    let taking = async {
        let now = clock::now();
        let window = window("a", now, 20);
        for slot in 0..20 {
            ingest::ingest(&api.monitor, vec![heartbeat(&window, slot)], now).await.unwrap();
        }
        // By now each of the others waits for the table, or has been sent away.
        let waiting = "SELECT COUNT(*) FROM information_schema.PROCESSLIST \
            WHERE DB = DATABASE() AND STATE LIKE 'Waiting for table%'";
        eventually("four wait", async || {
            let asking = sqlx::query_scalar(waiting).fetch_one(&api.monitor.pool);
            let found: i64 = asking.await.ok()?;
            (found == 4).then_some(())
        })
        .await;
        let (status, refused) = api.get("/api/monitor/services").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(error(&refused).contains("too many lists"), "{refused}");
        sqlx::raw_sql("UNLOCK TABLES").execute(&mut *other).await.unwrap();
    };
    let (answered, ()) = tokio::join!(answering, taking);
    assert!((4..20).contains(&answered), "{answered} were answered");
    assert_eq!(api.get("/api/monitor/services").await.0, StatusCode::OK);
}

#[tokio::test]
async fn what_cannot_be_answered_is_refused_by_name() {
    let api = Api::new().await;
    for (query, expected) in [
        ("events?status=late", "status must be ok, error or missing"),
        ("events?service=%20", "service must be"),
        ("events?window_uuid=7", "window_uuid must be a UUID"),
        ("events?from=soon", "from must be an ISO 8601 time"),
        ("events?to=2026-13-01T00:00:00Z", "to must be"),
        ("events?from=2026-11-21T10:00:00Z&to=2026-11-21T10:00:00Z", "from must be before to"),
        ("events?limit=0", "limit must be from 1 to 500"),
        ("events?limit=many", "limit"),
        ("events?cursor=1-2", "cursor must be the `next` of an earlier answer"),
        ("events?slot=1", "slot"),
        ("summary?period=2h", "period must be 1h, 24h or 7d"),
        ("summary?service=", "service must be"),
        ("stats/daily?from=2026-11-21T10:00:00Z", "from must be a day of UTC such as"),
        ("stats/daily?from=2026-11-22&to=2026-11-21", "from must be before to"),
        ("stats/daily?cursor=x", "cursor must be"),
        ("stats/daily?limit=501", "limit must be from 1 to 500"),
        ("services?limit=51", "limit must be from 1 to 50"),
        ("services?cursor=*", "cursor must be"),
    ] {
        let (status, body) = api.get(&format!("/api/monitor/{query}")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{query}: {body}");
        assert!(error(&body).contains(expected), "{query}: {body}");
    }
}

#[tokio::test]
async fn a_summary_adds_up_what_closed_windows_say() {
    let api = Api::new().await;
    let [oldest, ..] = three_windows(&api.monitor).await;
    for query in ["", "?period=1h", "?period=7d&service=a"] {
        let (status, shown) = api.get(&format!("/api/monitor/summary{query}")).await;
        assert_eq!(status, StatusCode::OK, "{shown}");
        let open = i64::from(!query.contains("service"));
        assert_eq!(shown["windows"], json!({"open": open, "closed": 0, "alert": 2}), "{query}");
        for (name, expected) in [
            ("expected_reports", json!(6)),
            ("received_reports", json!(4)),
            ("error_reports", json!(2)),
            ("missing_reports", json!(2)),
            ("unobserved_reports", json!(0)),
            ("late_reports", json!(0)),
            ("unscheduled_reports", json!(0)),
            ("error_rate", json!(0.5)),
            ("missing_rate", json!(1.0 / 3.0)),
            ("verdicts", json!({"on_time": 4, "unknown": 2})),
            ("uncounted_windows", json!(0)),
            ("rebuilding", json!(false)),
        ] {
            assert_eq!(shown[name], expected, "{query} {name}: {shown}");
        }
        // Slot 0 took 10.25 s, slot 1 took 0.25 s: each is rounded up by 6 % at the most.
        let seconds = |name: &str| shown["delivery_latency_seconds"][name].as_f64().unwrap();
        assert!((0.25..0.27).contains(&seconds("p50")), "{shown}");
        assert!((10.25..10.9).contains(&seconds("p99")), "{shown}");
    }
    let (_, none) = api.get("/api/monitor/summary?service=nobody").await;
    assert_eq!((&none["expected_reports"], &none["error_rate"]), (&json!(0), &Value::Null));
    assert_eq!(none["delivery_latency_seconds"]["p99"], Value::Null);
    ingest::ingest(&api.monitor, vec![heartbeat(&oldest, 2)], clock::now()).await.unwrap();
    let (_, late) = api.get("/api/monitor/summary").await;
    assert_eq!((&late["uncounted_windows"], &late["missing_reports"]), (&json!(1), &json!(2)));
}

#[tokio::test]
async fn days_are_listed_by_service_and_can_be_counted_anew() {
    let token = "a-token-of-many-characters";
    let monitor = Ground::new().await.monitor().await;
    let api = Api::of(Monitor { admin_token: Some(token.parse().unwrap()), ..monitor }).await;
    let midnight = clock::now().minus(Duration::from_hours(72));
    let begin = heartbeat::monitor::totals::Span::Day.begin(midnight);
    let over_midnight = begin.plus(Duration::from_hours(24)).minus(Duration::from_secs(20));
    for service in ["a", "b"] {
        // Two slots of the first day, and one of the second.
        let told = Announcement { ..announcement(&window(service, over_midnight, 3)) };
        ingest::announce(&api.monitor, vec![told], clock::now()).await.unwrap();
    }
    sweep::sweep_all(&api.monitor, clock::now()).await.unwrap();
    counting::count_all(&api.monitor, clock::now()).await.unwrap();
    let pages = async |filter: &str| {
        let (mut found, mut cursor) = (Vec::new(), String::new());
        loop {
            let path = format!("/api/monitor/stats/daily?limit=1{filter}{cursor}");
            let (status, page) = api.get(&path).await;
            assert_eq!(status, StatusCode::OK, "{page}");
            found.extend(page["days"].as_array().unwrap().iter().map(|day| {
                (day["day"].clone(), day["service"].clone(), day["missing_reports"].clone())
            }));
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return found,
            }
        }
    };
    let day = |days: u64| begin.plus(Duration::from_hours(24 * days)).to_string()[..10].to_owned();
    let row =
        |days, service: &str, missing: i64| (json!(day(days)), json!(service), json!(missing));
    let all = [row(1, "a", 1), row(1, "b", 1), row(0, "a", 2), row(0, "b", 2)];
    assert_eq!(pages("").await, all);
    assert_eq!(pages("&service=b").await, [row(1, "b", 1), row(0, "b", 2)]);
    assert_eq!(pages(&format!("&from={}", day(1))).await, all[..2]);
    assert_eq!(pages(&format!("&to={}", day(1))).await, all[2..]);

    assert_eq!(api.post("stats/rebuild", "").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(api.post_as("stats/rebuild", token).await.0, StatusCode::ACCEPTED);
    counting::count_once(&api.monitor, clock::now()).await.unwrap();
    let (_, shown) = api.get("/api/monitor/summary?period=7d").await;
    assert_eq!((&shown["rebuilding"], &shown["expected_reports"]), (&json!(true), &json!(0)));
    for list in ["stats/daily", "services"] {
        let (_, shown) = api.get(&format!("/api/monitor/{list}")).await;
        assert_eq!(shown["rebuilding"], true, "{list}");
    }
    counting::count_all(&api.monitor, clock::now()).await.unwrap();
    assert_eq!(pages("").await, all);
}

#[tokio::test]
async fn services_are_listed_with_what_is_known_of_each() {
    let api = Api::new().await;
    let [_, older, open] = three_windows(&api.monitor).await;
    let (status, first) = api.get("/api/monitor/services?limit=1").await;
    assert_eq!((status, &first["next"]), (StatusCode::OK, &json!("a")));
    let a = &first["services"][0];
    assert_eq!((&a["service"], &a["open_window"]), (&json!("a"), &Value::Null));
    assert_eq!(a["last_heartbeat"]["timestamp"], older.due(1).to_string());
    assert_eq!(a["success_rate"], json!(1.0 / 3.0));
    // Entries of the stream know milliseconds only.
    let skew = |name: &str| a["clock_skew"][name].as_f64().unwrap();
    assert!((0.099..=0.1).contains(&skew("sender_behind_stream_seconds")), "{a}");
    assert!((0.15..=0.151).contains(&skew("stream_behind_monitor_seconds")), "{a}");
    let (_, second) = api.get("/api/monitor/services?limit=1&cursor=a").await;
    assert_eq!(second["next"], Value::Null);
    let b = &second["services"][0];
    assert_eq!((&b["service"], &b["success_rate"]), (&json!("b"), &Value::Null));
    assert_eq!(b["open_window"]["window_uuid"], open.uuid.to_string());
    assert_eq!(b["last_heartbeat"]["timestamp"], open.due(1).to_string());
    let (_, none) = api.get("/api/monitor/services?cursor=b").await;
    assert_eq!(none, json!({"services": [], "next": null, "rebuilding": false}));
}

#[tokio::test]
async fn the_last_heartbeat_is_the_last_that_arrived_and_never_goes_back() {
    let api = Api::new().await;
    let now = clock::now();
    let ago = |seconds| now.minus(Duration::from_secs(seconds));
    let (first, second) = (window("a", ago(60), 10), window("a", ago(5), 10));
    let last = async || {
        let (_, shown) = api.get("/api/monitor/services").await;
        let last = &shown["services"][0]["last_heartbeat"]["timestamp"];
        last.as_str().unwrap_or_default().to_owned()
    };
    // The sender's clock was ahead, and has been set right since.
    let ahead = Heartbeat { timestamp: now.plus(Duration::from_hours(1)), ..heartbeat(&first, 0) };
    ingest::ingest(&api.monitor, vec![ahead], ago(30)).await.unwrap();
    ingest::ingest(&api.monitor, vec![heartbeat(&first, 1)], ago(20)).await.unwrap();
    assert_eq!(last().await, first.due(1).to_string());
    ingest::announce(&api.monitor, vec![announcement(&second)], now).await.unwrap();
    assert_eq!(last().await, first.due(1).to_string(), "nothing of the second has arrived");
    let over = first.ends_at().plus(Duration::from_secs(3));
    sweep::sweep_all(&api.monitor, over).await.unwrap();
    counting::count_all(&api.monitor, over).await.unwrap();
    assert_eq!(last().await, first.due(1).to_string(), "it is kept of the first");
    ingest::ingest(&api.monitor, vec![heartbeat(&second, 0)], now).await.unwrap();
    assert_eq!(last().await, second.due(0).to_string());
}

/// Whatever closed after it or has yet to start. Of those that start together it is the one stored last.
#[tokio::test]
async fn the_open_window_is_the_one_that_started_last() {
    let api = Api::new().await;
    let now = clock::now();
    let ago = |seconds| now.minus(Duration::from_secs(seconds));
    let shown = async || {
        let (_, page) = api.get("/api/monitor/services").await;
        let services = page["services"].as_array().unwrap().clone();
        let open = |service: &Value| service["open_window"]["window_uuid"].clone();
        services.iter().map(open).collect::<Vec<_>>()
    };
    let tell = async |windows: &[&Window]| {
        let told = windows.iter().map(|window| announcement(window)).collect();
        ingest::announce(&api.monitor, told, now).await.unwrap();
    };
    let [long, short] = [(600, 100), (300, 1)].map(|(start, slots)| window("a", ago(start), slots));
    let coming = window("a", now.plus(Duration::from_mins(5)), 3);
    tell(&[&long, &short, &coming, &window("b", now.plus(Duration::from_mins(5)), 3)]).await;
    sweep::sweep_all(&api.monitor, now).await.unwrap();
    assert_eq!(shown().await, [json!(long.uuid), Value::Null]);
    let together = [window("a", ago(5), 10), window("a", ago(5), 10)];
    for window in &together {
        tell(&[window]).await;
    }
    assert_eq!(shown().await, [json!(together[1].uuid), Value::Null]);
}
