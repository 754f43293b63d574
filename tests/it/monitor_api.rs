//! The monitor's HTTP API: its answers, and a clear refusal of everything that is wrong.

use std::collections::BTreeSet;

use heartbeat::monitor::api;
use heartbeat::wire::{Heartbeat, Tick, Window};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use crate::support::{Api, announcement, at, error, heartbeat};

/// A window that lies in the past, so that a sweep closes it.
fn window() -> Window {
    crate::support::window("payments-a", 3)
}

#[tokio::test]
async fn a_heartbeat_is_answered_with_itself_and_its_window() {
    let api = Api::new().await;
    let window = window();
    let beat = Heartbeat { status: "error:boom".parse().unwrap(), ..heartbeat(&window, 1) };
    let (status, body) = api.post("heartbeats", beat.to_json()).await;
    assert_eq!((status, &body["outcome"]), (StatusCode::ACCEPTED, &json!("recorded")));
    let heartbeat = &body["heartbeat"];
    assert_eq!(heartbeat["id"], format!("{}:1", window.uuid));
    assert_eq!(heartbeat["service"], "payments-a");
    assert_eq!(heartbeat["status"], "error");
    assert_eq!(heartbeat["error_message"], "boom");
    assert_eq!(heartbeat["timestamp"], "2026-11-21T10:00:10Z");
    assert_eq!(heartbeat["window_uuid"], window.uuid.to_string());
    assert_eq!(heartbeat["window_from"], "2026-11-21T10:00:00Z");
    assert_eq!(heartbeat["window_to"], "2026-11-21T10:00:30Z");
    assert!(at(heartbeat["ingested_at"].as_str().unwrap()) > window.from());
    let shown = &body["window"];
    assert_eq!(shown["status"], "open");
    let counts = ["expected_reports", "received_reports", "error_reports", "missing_reports"];
    assert_eq!(counts.map(|name| shown[name].as_u64()), [Some(3), Some(1), Some(1), Some(0)]);
    assert_eq!(shown["closed_at"], Value::Null);
    for name in ["error_status_no_reportado", "error_status_generado", "created_at", "updated_at"] {
        assert!(shown.get(name).is_some(), "{name}");
    }
}

#[tokio::test]
async fn the_oldest_senders_payload_is_accepted_again_late_and_unscheduled() {
    let api = Api::new().await;
    let uuid = Uuid::new_v4();
    let payload = |timestamp: &str| {
        json!({
            "service": "payments-a", "status": "OK", "window_uuid": uuid,
            "window_from": "2026-11-21T10:00:00", "window_to": "2026-11-21T10:00:30",
            "timestamp": timestamp,
        })
        .to_string()
    };
    for timestamp in ["2026-11-21T10:00:00", "2026-11-21T10:00:00", "2026-11-21T10:00:30+00:00"] {
        let (status, _) = api.post("heartbeats", payload(timestamp)).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{timestamp}");
    }
    let (status, swept) = api.post("windows/sweep", "").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(swept["closed_windows"][0]["status"], "alert");
    assert_eq!(swept["closed_windows"][0]["missing_reports"], 2);
    assert_eq!(swept["held_windows"], json!([]));
    let (status, late) = api.post("heartbeats", payload("2026-11-21T10:00:10.000001")).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    assert_eq!(late["window"]["received_reports"], 2);
    assert_eq!(late["window"]["missing_reports"], 1);
    assert_eq!(late["window"]["unscheduled_reports"], 1);
}

#[tokio::test]
async fn a_batch_is_answered_item_by_item_in_order() {
    let api = Api::new().await;
    let window = window();
    let good = |slot| serde_json::from_str::<Value>(&heartbeat(&window, slot).to_json()).unwrap();
    let batch = json!([good(0), {"service": 5}, good(0), "x", good(7), good(1), {}]);
    let (status, body) = api.post("heartbeats/batch", batch.to_string()).await;
    assert_eq!(status, StatusCode::OK);
    let outcomes: Vec<&str> =
        body.as_array().unwrap().iter().map(|item| item["outcome"].as_str().unwrap()).collect();
    assert_eq!(
        outcomes,
        ["recorded", "rejected", "duplicate", "rejected", "unscheduled", "recorded", "rejected"]
    );
    assert!(body[1]["reason"].as_str().unwrap().starts_with("service has the wrong type"));
    assert!(body[6]["reason"].as_str().unwrap().starts_with("missing required fields: service"));
    assert_eq!(api.post("heartbeats/batch", "[]").await, (StatusCode::OK, json!([])));
}

#[tokio::test]
async fn announcements_and_windows_are_shown_slot_by_slot() {
    let api = Api::new().await;
    let window = window();
    let (status, body) = api.post("windows", announcement(&window).to_json()).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    assert_eq!(body["window"]["received_reports"], 0);
    let batch = format!("[{},{{}}]", announcement(&window).to_json());
    let (_, outcomes) = api.post("windows/batch", batch).await;
    assert_eq!(
        (&outcomes[0]["outcome"], &outcomes[1]["outcome"]),
        (&json!("duplicate"), &json!("rejected"))
    );
    api.post("heartbeats", heartbeat(&window, 0).to_json()).await;
    api.post("windows/sweep", json!({"window_uuid": window.uuid}).to_string()).await;

    let (status, shown) = api.get(&format!("/api/monitor/windows/{}", window.uuid)).await;
    assert_eq!(status, StatusCode::OK);
    let slots = shown["slots"].as_array().unwrap();
    let brief: Vec<_> = slots
        .iter()
        .map(|slot| (slot["due"].as_str().unwrap(), slot["status"].as_str().unwrap()))
        .collect();
    assert_eq!(
        brief,
        [
            ("2026-11-21T10:00:00Z", "ok"),
            ("2026-11-21T10:00:10Z", "missing"),
            ("2026-11-21T10:00:20Z", "missing")
        ]
    );
    for slot in 0..3 {
        api.post("heartbeats", heartbeat(&window, slot).to_json()).await;
    }
    let (_, shown) = api.get(&format!("/api/monitor/windows/{}", window.uuid)).await;
    let history = shown["history"].as_array().unwrap();
    let changes: Vec<_> =
        history.iter().map(|change| (&change["status"], &change["missing_reports"])).collect();
    assert_eq!(changes, [(&json!("alert"), &json!(2)), (&json!("closed"), &json!(0))]);
    let (status, body) = api.get(&format!("/api/monitor/windows/{}", Uuid::new_v4())).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{body}");
}

#[tokio::test]
async fn windows_are_listed_in_pages_and_filtered() {
    let api = Api::new().await;
    let windows: Vec<Window> =
        ["a", "b", "a", "a", "b"].map(|service| crate::support::window(service, 2)).into();
    let batch: Vec<Value> = windows
        .iter()
        .map(|window| serde_json::from_str(&announcement(window).to_json()).unwrap())
        .collect();
    api.post("windows/batch", json!(batch).to_string()).await;
    let mut seen = Vec::new();
    let mut path = "/api/monitor/windows?service=a&limit=2".to_owned();
    loop {
        let (status, page) = api.get(&path).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        let uuids = page["windows"].as_array().unwrap();
        seen.extend(uuids.iter().map(|window| window["window_uuid"].as_str().unwrap().to_owned()));
        match page["next"].as_str() {
            Some(next) => path = format!("/api/monitor/windows?service=a&limit=2&cursor={next}"),
            None => break,
        }
    }
    let mut expected: Vec<String> =
        [0, 2, 3].map(|index: usize| windows[index].uuid.to_string()).into();
    expected.sort();
    seen.sort();
    assert_eq!(seen, expected);
    let (_, page) = api.get("/api/monitor/windows?limit=5").await;
    assert_eq!((page["windows"].as_array().unwrap().len(), &page["next"]), (5, &Value::Null));
    let (_, none) = api.get("/api/monitor/windows?status=alert").await;
    assert_eq!(none, json!({"windows": [], "next": null}));
    let (_, later) = api.get("/api/monitor/windows?from=2026-11-21T10:00:01Z").await;
    assert_eq!(later["windows"], json!([]));
    let table = [
        ("status=shut", "status must be"),
        ("service=a%20b", "service must be"),
        ("limit=0", "limit must be from 1 to 500"),
        ("limit=501", "limit must be from 1 to 500"),
        ("limit=x", "the query cannot be used: limit"),
        ("cursor=x", "cursor must be"),
        ("cursor=253402300800000000-1", "cursor must be"),
        ("from=yesterday", "from must be an ISO 8601 time"),
        ("colour=red", "the query cannot be used: "),
    ];
    for (query, expected) in table {
        let (status, body) = api.get(&format!("/api/monitor/windows?{query}")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{query}");
        assert!(error(&body).starts_with(expected), "{query}: {body}");
    }
}

/// Bodies that no endpoint can use, and how the refusal begins.
fn bad_bodies() -> Vec<(Vec<u8>, &'static str)> {
    let with = |name: &str, value: Value| {
        let mut message: Value = serde_json::from_str(&heartbeat(&window(), 0).to_json()).unwrap();
        message[name] = value;
        message.to_string().into_bytes()
    };
    vec![
        (b"".to_vec(), "the message is not JSON"),
        (b"not json".to_vec(), "the message is not JSON"),
        (b"{\"service\":\"a\0b\"}".to_vec(), "the message is not JSON"),
        (b"{\"service\":\"\xff\xfe\"}".to_vec(), "the message is not valid UTF-8"),
        (b"[]".to_vec(), "the message must be one JSON object"),
        (b"null".to_vec(), "the message must be one JSON object"),
        (b"{}".to_vec(), "missing required fields"),
        (with("service", json!(7)), "service has the wrong type"),
        (with("service", json!("x'; DROP TABLE windows; --")), "service must be"),
        (with("service", json!("n".repeat(5_000))), "service must be"),
        (with("service", json!("a\u{0}b")), "service must be"),
        (with("window_from", json!("9999-99-99")), "window_from must be an ISO 8601 time"),
        (with("window_from", json!("0001-01-01T00:00:00Z")), "window_from must be a time in the"),
        (with("window_to", json!("2026-11-21T09:59:59Z")), "window_to must be later"),
        (with("window_to", json!("2027-03-17T00:00:00Z")), "a window may have at most 100000"),
        (with("tick_seconds", json!(0)), "tick_seconds must be"),
        (with("window_uuid", json!("1 OR 1=1")), "window_uuid must be a UUID"),
    ]
}

#[tokio::test]
async fn every_bad_body_is_refused_with_the_reason_and_the_monitor_goes_on() {
    let api = Api::new().await;
    for (body, expected) in bad_bodies() {
        for path in ["heartbeats", "windows"] {
            let (status, answer) = api.post(path, body.clone()).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {expected}");
            assert!(error(&answer).starts_with(expected), "{path}: {answer}");
        }
    }
    let (_, answer) = api.post("heartbeats", "{}").await;
    let all = ["service", "status", "window_uuid", "window_from", "window_to", "timestamp"];
    assert_eq!(answer, json!({"error": "missing required fields", "fields": all}));
    for body in ["{}", "nonsense", "7", "[1,"] {
        for path in ["heartbeats/batch", "windows/batch"] {
            let (status, answer) = api.post(path, body).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {body}");
            assert!(error(&answer).starts_with("the body must be a JSON array"), "{answer}");
        }
    }
    for (body, expected) in [
        ("[]", "the body must be a JSON object"),
        ("{\"window_uuid\":\"x\"}", "the body cannot be used"),
        ("{\"windows\":1}", "the body cannot be used"),
    ] {
        let (status, answer) = api.post("windows/sweep", body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(error(&answer).starts_with(expected), "{answer}");
    }
    let unknown = json!({"window_uuid": Uuid::new_v4()}).to_string();
    assert_eq!(api.post("windows/sweep", unknown).await.0, StatusCode::NOT_FOUND);
    let (status, _) = api.post("heartbeats", heartbeat(&window(), 0).to_json()).await;
    assert_eq!(status, StatusCode::ACCEPTED, "it goes on");
}

#[tokio::test]
async fn what_is_too_much_is_refused_as_too_much() {
    let api = Api::new().await;
    let ten_megabytes = vec![b' '; 10 * 1024 * 1024];
    for path in ["heartbeats", "heartbeats/batch", "windows", "windows/batch", "windows/sweep"] {
        let (status, answer) = api.post(path, ten_megabytes.clone()).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{path}");
        assert!(error(&answer).contains("too large"), "{answer}");
    }
    let item = heartbeat(&window(), 0).to_json();
    let many = format!("[{}]", vec![item.as_str(); api::MAX_BATCH_ITEMS + 1].join(","));
    let (status, answer) = api.post("heartbeats/batch", many).await;
    assert_eq!(
        (status, error(&answer)),
        (StatusCode::PAYLOAD_TOO_LARGE, "a batch may have at most 1000 items")
    );
    let long = Heartbeat {
        status: "error:x".parse().unwrap(),
        ..Heartbeat::parse(item.as_bytes(), Tick::DEFAULT).unwrap()
    };
    let long = long.to_json().replace("error:x", &format!("error:{}", "x".repeat(1_001)));
    let (status, answer) = api.post("heartbeats", long).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(error(&answer).contains("at most 1000 characters"), "{answer}");
}

#[tokio::test]
async fn other_paths_and_methods_are_refused_in_the_same_shape() {
    let api = Api::new().await;
    let (status, body) = api.get("/nothing").await;
    assert_eq!((status, error(&body)), (StatusCode::NOT_FOUND, "there is nothing at this path"));
    let (status, body) = api.get("/api/monitor/heartbeats").await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    assert!(error(&body).contains("method"));
    let (status, _) = api.get("/api/monitor/windows/not-a-uuid").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let foreign = Heartbeat { window: crate::support::window("b", 1), ..heartbeat(&window(), 0) };
    api.post("heartbeats", foreign.to_json()).await;
    let mut stolen = foreign;
    stolen.window.service = "thief".parse().unwrap();
    let (status, body) = api.post("heartbeats", stolen.to_json()).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(error(&body).contains("belongs to another service"));
}

#[tokio::test]
async fn a_window_too_far_ahead_means_a_wrong_clock() {
    let api = Api::new().await;
    let payload = json!({
        "service": "a", "status": "ok", "window_uuid": Uuid::new_v4(),
        "window_from": "2190-01-01T00:00:00Z", "window_to": "2190-01-01T00:01:00Z",
        "timestamp": "2190-01-01T00:00:00Z",
    });
    for path in ["heartbeats", "windows"] {
        let (status, body) = api.post(path, payload.to_string()).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{path}");
        assert!(error(&body).contains("check the sender's clock"), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_clients_that_post_the_same_heartbeats_make_exact_counts() {
    let api = std::sync::Arc::new(Api::new().await);
    let windows = [crate::support::window("a", 20), crate::support::window("b", 20)];
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..64_u32 {
        let (api, windows) = (std::sync::Arc::clone(&api), windows.clone());
        clients.spawn(async move {
            for step in 0..10 {
                let window = &windows[((client + step) % 2) as usize];
                let beat = heartbeat(window, (client * 3 + step) % 20).to_json();
                while api.post("heartbeats", beat.clone()).await.0 != StatusCode::ACCEPTED {}
            }
        });
    }
    clients.join_all().await;
    for (parity, window) in (0..).zip(&windows) {
        let posts = (0..64_u32).flat_map(|client| (0..10).map(move |step| (client, step)));
        let here = posts.filter(|(client, step)| (client + step) % 2 == parity);
        let slots: BTreeSet<u32> = here.map(|(client, step)| (client * 3 + step) % 20).collect();
        let (_, shown) = api.get(&format!("/api/monitor/windows/{}", window.uuid)).await;
        assert_eq!(shown["received_reports"], slots.len());
        let all = shown["slots"].as_array().unwrap();
        let deliveries: u64 = all.iter().filter_map(|slot| slot["deliveries"].as_u64()).sum();
        assert!(deliveries >= 320, "each post is counted: {deliveries}");
    }
}

/// Clients that open connections and say nothing must not keep others out.
#[tokio::test]
async fn silent_clients_do_not_keep_others_out() {
    let api = Api::new().await;
    let address = api.base.trim_start_matches("http://");
    let mut silent = Vec::new();
    for _ in 0..300 {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(b"POST /api/monitor/heartbeats HTTP/1.1\r\nHost:").await.unwrap();
        silent.push(stream);
    }
    assert_eq!(api.get("/health").await.0, StatusCode::OK);
}

#[tokio::test]
async fn health_and_readiness_answer() {
    let api = Api::new().await;
    assert_eq!(
        api.get("/health").await,
        (StatusCode::OK, json!({"ok": true, "service": "monitor"}))
    );
    assert_eq!(api.get("/ready").await, (StatusCode::OK, json!({"ready": true})));
}
