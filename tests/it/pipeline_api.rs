//! The pipeline's API: it takes reports, shows them, and forgets a group on demand.

use std::time::Duration;

use heartbeat::wire::{PipelineReport, StreamState};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{
    Ground, Process, START, answer, at, eventually, get, heartbeat, report, window,
};

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
    let heartbeats = StreamState { lag: Some(3), ..StreamState::default() };
    let good = serde_json::to_value(PipelineReport { heartbeats, ..report(at(START)) }).unwrap();
    assert_eq!(post(good.clone()).await.0, StatusCode::ACCEPTED);
    for (name, value, expected) in [
        ("relay", json!(""), "1 to 200 bytes"),
        ("group", json!("x".repeat(201)), "1 to 200 bytes"),
        ("watermark", json!("soon"), "watermark"),
        ("breaker", json!({"state": "ajar"}), "breaker"),
        ("silent_groups", json!(vec!["g"; 1_001]), "at most 1000"),
        ("dead_letters_total", json!(1_u64 << 53), "a count may be at most 9007199254740991"),
        ("heartbeats", json!({"lag": u64::MAX, "pending": 0}), "a count may be at most"),
    ] {
        let mut bad = good.clone();
        bad[name] = value;
        let (status, body) = post(bad).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{name}");
        assert!(body["error"].as_str().unwrap().contains(expected), "{name}: {body}");
    }
    let twice = answer(client.post(&url).body(format!("{good}{good}")).send().await.unwrap()).await;
    assert_eq!(twice.0, StatusCode::BAD_REQUEST, "what follows the report is not ignored");
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
    let refusal = forget(None, "monitor-queue-group").send().await.unwrap();
    assert_eq!(refusal.headers()["www-authenticate"], "Bearer");
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
