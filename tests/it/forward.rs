//! What each answer of a monitor means to a relay.

use std::time::Duration;

use heartbeat::config::MonitorUrl;
use heartbeat::relay::forward::{Answer, Forwarder};
use heartbeat::relay::item::Item;
use heartbeat::stream::{Entry, Source, StreamId};
use serde_json::{Value, json};
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::support::{heartbeat, window};

async fn answer_to(template: ResponseTemplate, items: usize) -> Answer {
    let server = MockServer::start().await;
    Mock::given(any()).respond_with(template).mount(&server).await;
    let monitor: MonitorUrl = server.uri().parse().unwrap();
    let forwarder = Forwarder::new(monitor, Duration::from_millis(300)).unwrap();
    let window = window("payments-a", 5);
    let items: Vec<Item> = (0..items)
        .map(|number| {
            let id = StreamId { millis: number as u64, sequence: 0 };
            let payload = heartbeat(&window, 0).to_json().into_bytes();
            Item::read(Entry {
                source: Source::Heartbeats,
                id,
                payload: Some(payload),
                is_deleted: false,
            })
            .unwrap()
        })
        .collect();
    forwarder.send(Source::Heartbeats, &items).await
}

fn kind(answer: &Answer) -> &'static str {
    match answer {
        Answer::Taken(_) => "taken",
        Answer::Refused(_) => "refused",
        Answer::OneByOne | Answer::NotForOldMonitors => "old",
        Answer::Failed(_) => "failed",
        Answer::Unavailable { .. } => "unavailable",
        Answer::Misconfigured(_) => "misconfigured",
    }
}

#[tokio::test]
async fn each_answer_of_a_monitor_has_its_meaning() {
    let expected = [
        ("refused", &[400, 413, 422][..]),
        ("failed", &[500]),
        ("unavailable", &[408, 425, 429, 502, 503, 504, 507]),
        ("misconfigured", &[301, 302, 307, 401, 403, 404, 405, 407, 409, 410, 415, 421, 501, 505]),
    ];
    for (meaning, statuses) in expected {
        for status in statuses {
            let template = ResponseTemplate::new(*status).set_body_json(json!({"error": "why"}));
            assert_eq!(kind(&answer_to(template, 2).await), meaning, "{status}");
        }
    }
    // What refuses in another form is no monitor, and refuses whatever it is sent.
    for status in [400, 413, 422] {
        let answer = answer_to(ResponseTemplate::new(status).set_body_string("<html>"), 1).await;
        assert_eq!(kind(&answer), "misconfigured", "{status}");
    }
    assert_eq!(kind(&answer_to(ResponseTemplate::new(413), 2).await), "refused");
    let ok = |body: Value| answer_to(ResponseTemplate::new(200).set_body_json(body), 2);
    let both = ok(json!([{"outcome": "late"}, {"outcome": "rejected", "reason": "why"}])).await;
    assert_eq!(both, Answer::Taken(vec![Ok(()), Err("why".to_owned())]));
    for body in [
        json!([]),
        json!([{"outcome": "recorded"}]),
        json!([{"outcome": "deferred"}, {"outcome": "late"}]),
        json!({"ok": true}),
        json!("hello"),
    ] {
        assert_eq!(kind(&ok(body.clone()).await), "misconfigured", "{body}");
    }
    let slow = ResponseTemplate::new(200).set_delay(Duration::from_secs(2));
    assert_eq!(kind(&answer_to(slow, 2).await), "unavailable");
    let wait = |seconds: &str| {
        answer_to(ResponseTemplate::new(503).insert_header("retry-after", seconds), 1)
    };
    let waits =
        [wait("7").await, wait("86400").await, wait("soon").await].map(|answer| match answer {
            Answer::Unavailable { wait, .. } => wait,
            other => panic!("{other:?}"),
        });
    assert_eq!(waits, [Some(Duration::from_secs(7)), Some(Duration::from_mins(1)), None]);
}
