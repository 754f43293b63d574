//! Whose fault it is when a message cannot be delivered: a monitor that fails costs no message, and
//! a message that makes the monitor fail holds up no other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::relay::{dead_letters, field, serve};
use crate::support::{Ground, Process, eventually, heartbeat, pending, window};

/// A monitor that counts what it is sent.
#[derive(Clone, Default)]
struct Counting {
    requests: Arc<AtomicUsize>,
    taken: Arc<AtomicUsize>,
}

impl Counting {
    /// What it refuses, and how: everything that holds the text is answered with the status.
    fn router(&self, refused: &'static str, status: StatusCode) -> Router {
        let counting = self.clone();
        let take = move |body: String| async move { counting.answer(&body, refused, status) };
        Router::new().route("/api/monitor/heartbeats/batch", post(take))
    }

    fn answer(&self, body: &str, refused: &str, status: StatusCode) -> Response {
        if body == "[]" {
            // A relay that has found no resource for reports asks whether there is this one.
            return Json(json!([])).into_response();
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        if body.contains(refused) {
            return (status, Json(json!({"error": "no"}))).into_response();
        }
        let items: Vec<Value> = serde_json::from_str(body).unwrap();
        self.taken.fetch_add(items.len(), Ordering::Relaxed);
        let outcomes = items.iter().map(|_| json!({"outcome": "recorded"}));
        Json(outcomes.collect::<Vec<_>>()).into_response()
    }

    async fn requests(&self, wanted: usize) {
        eventually(&format!("{wanted} requests"), async || {
            (self.requests.load(Ordering::Relaxed) >= wanted).then_some(())
        })
        .await;
    }

    async fn taken(&self, wanted: usize) {
        eventually(&format!("{wanted} are taken"), async || {
            (self.taken.load(Ordering::Relaxed) >= wanted).then_some(())
        })
        .await;
    }
}

async fn publish(ground: &Ground, service: &str, heartbeats: u32) {
    let window = window(service, heartbeats);
    for slot in 0..heartbeats {
        ground.send(heartbeat(&window, slot).to_json()).await;
    }
}

/// Whatever the fault is: the service, the way to it, or the credentials.
#[tokio::test]
async fn a_monitor_that_refuses_everything_makes_no_dead_letter() {
    let statuses =
        [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::SERVICE_UNAVAILABLE, StatusCode::FORBIDDEN];
    let refused = statuses.map(|status| async move {
        let ground = Ground::new().await;
        let counting = Counting::default();
        let (url, _stop) = serve(counting.router("", status)).await;
        publish(&ground, "payments-a", 1).await;
        let _relay = Process::relay(&ground, &url, &["--max-retries", "1"]).await;
        counting.requests(3).await;
        assert!(dead_letters(&ground).await.is_empty(), "{status}");
        assert_eq!(pending(&ground).await, 1, "{status}");
    });
    futures_util::future::join_all(refused).await;
}

/// With one delivery at a time, so that whoever keeps it keeps all others out.
#[tokio::test]
async fn a_message_that_makes_the_monitor_fail_holds_up_no_other() {
    let ground = Ground::new().await;
    let counting = Counting::default();
    let allergic = counting.router("payments-x", StatusCode::INTERNAL_SERVER_ERROR);
    let (url, _stop) = serve(allergic).await;
    publish(&ground, "payments-x", 1).await;
    let _relay = Process::relay(&ground, &url, &["--concurrency", "1"]).await;
    // More than enough failures in a row to take the monitor for dead.
    counting.requests(4).await;
    publish(&ground, "payments-a", 5).await;
    counting.taken(5).await;
    assert!(dead_letters(&ground).await.is_empty());
}

#[tokio::test]
async fn a_batch_that_is_refused_as_a_whole_is_cut_until_the_culprit_is_alone() {
    let ground = Ground::new().await;
    let counting = Counting::default();
    let (url, _stop) = serve(counting.router("payments-x", StatusCode::BAD_REQUEST)).await;
    for service in ["payments-a", "payments-x", "payments-b"] {
        publish(&ground, service, if service == "payments-x" { 1 } else { 5 }).await;
    }
    let _relay = Process::relay(&ground, &url, &[]).await;
    eventually("all are settled", async || {
        (pending(&ground).await == 0 && !dead_letters(&ground).await.is_empty()).then_some(())
    })
    .await;
    let letters = dead_letters(&ground).await;
    assert_eq!(letters.len(), 1);
    assert!(field(&letters[0], "payload").contains("payments-x"));
    assert_eq!(counting.taken.load(Ordering::Relaxed), 10);
}

/// The stream is the queue: it holds the backlog while the monitor is away.
#[tokio::test]
async fn nothing_is_read_while_the_monitor_takes_nothing() {
    // Only the first says that it is too much, so that the relay gives up places for requests.
    let statuses = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::FORBIDDEN];
    let refused = statuses.map(|status| async move {
        let ground = Ground::new().await;
        let counting = Counting::default();
        let (url, _stop) = serve(counting.router("payments-x", status)).await;
        publish(&ground, "payments-a", 6).await;
        let _relay = Process::relay(&ground, &url, &["--batch-size", "1"]).await;
        counting.taken(6).await;
        publish(&ground, "payments-x", 1).await;
        // The third failure shuts the gate; a read that had begun is over before the first probe.
        counting.requests(10).await;
        publish(&ground, "payments-x", 1).await;
        counting.requests(11).await;
        assert_eq!(pending(&ground).await, 1, "{status}: the second stays in the stream");
    });
    futures_util::future::join_all(refused).await;
}
