//! Before an original monitor, which reads its counters, changes them and writes them back, and
//! counts a heartbeat as often as it comes: one at a time, and each once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use heartbeat::payments::Payments;
use heartbeat::payments::resend::Watch;
use heartbeat::stream::Repeats;
use redis::AsyncCommands;
use serde_json::{Value, json};
use tokio_util::sync::DropGuard;

use crate::relay::serve;
use crate::resend::sent;
use crate::support::{Ground, Process, Scrape, eventually, heartbeat, pending, window};

/// An original monitor.
#[derive(Clone, Default)]
struct Original {
    counter: Arc<AtomicU64>,
    /// The slots of each window, in the order in which they came.
    slots: Arc<Mutex<HashMap<String, Vec<i64>>>>,
    /// Heartbeats of this slot are never answered.
    silent_about: Option<i64>,
    /// How long it is at work on the first heartbeat that it gets, whether or not anybody waits.
    slow_at_first: Duration,
    /// Heartbeats that it is at work on, and the most at a time so far.
    busy: Arc<(AtomicU64, AtomicU64)>,
}

impl Original {
    async fn serve(&self) -> (String, DropGuard) {
        let original = self.clone();
        let take = move |body: String| {
            let original = original.clone();
            async move { original.take(&body).await }
        };
        serve(Router::new().route("/api/monitor/heartbeats", post(take))).await
    }

    async fn take(&self, body: &str) -> Response {
        let body: Value = serde_json::from_str(body).unwrap();
        let (Some(window), Some(slot)) = (body["window_uuid"].as_str(), body["slot"].as_i64())
        else {
            let answer = json!({"error": "missing required fields"});
            return (StatusCode::BAD_REQUEST, Json(answer)).into_response();
        };
        self.slots.lock().unwrap().entry(window.to_owned()).or_default().push(slot);
        if self.silent_about == Some(slot) {
            std::future::pending::<()>().await;
        }
        let is_first = self.posts() == 1;
        let working =
            self.clone().count(if is_first { self.slow_at_first } else { Duration::ZERO });
        // It goes on when whoever asked has left.
        tokio::spawn(working).await.unwrap();
        (StatusCode::ACCEPTED, Json(json!({"heartbeat": {"id": 1}}))).into_response()
    }

    async fn count(self, slowly: Duration) {
        let (busy, most) = &*self.busy;
        most.fetch_max(busy.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        let counted = self.counter.load(Ordering::Relaxed);
        tokio::time::sleep(slowly + Duration::from_millis(1)).await;
        self.counter.store(counted + 1, Ordering::Relaxed);
        busy.fetch_sub(1, Ordering::Relaxed);
    }

    fn counted(&self) -> u64 {
        self.counter.load(Ordering::Relaxed)
    }

    fn posts(&self) -> usize {
        self.slots.lock().unwrap().values().map(Vec::len).sum()
    }
}

#[tokio::test]
async fn two_relays_make_an_old_monitor_count_each_heartbeat_once() {
    const EACH: u32 = 200;
    let ground = Ground::new().await;
    let original = Original::default();
    let (url, _stop) = original.serve().await;
    let send = async |service| {
        let window = window(service, EACH);
        for slot in 0..EACH {
            ground.send(heartbeat(&window, slot).to_json()).await;
        }
    };
    send("payments-a").await;
    let small = ["--batch-size", "20"];
    let _first = Process::relay(&ground, &url, &small).await;
    let _second = Process::relay(&ground, &url, &small).await;
    send("payments-b").await;
    eventually("all are settled", async || {
        (original.posts() >= 2 * EACH as usize && pending(&ground).await == 0).then_some(())
    })
    .await;
    assert_eq!((original.posts(), original.counted()), (2 * EACH as usize, u64::from(2 * EACH)));
}

/// It may be at work on a heartbeat of which the relay hears no more.
#[tokio::test]
async fn a_monitor_that_does_not_answer_in_time_gets_nothing_beside() {
    let ground = Ground::new().await;
    let slow_at_first = Duration::from_secs(3);
    let original = Original { slow_at_first, ..Original::default() };
    let (url, _stop) = original.serve().await;
    let window = window("payments-a", 20);
    let quick = ["--lease", "3s", "--http-timeout", "1s", "--batch-size", "5"];
    let _first = Process::relay(&ground, &url, &quick).await;
    let _second = Process::relay(&ground, &url, &quick).await;
    for slot in 0..20 {
        ground.send(heartbeat(&window, slot).to_json()).await;
    }
    eventually("all are settled", async || {
        (original.posts() >= 21 && pending(&ground).await == 0).then_some(())
    })
    .await;
    assert_eq!(original.busy.1.load(Ordering::Relaxed), 1, "one at a time");
    assert_eq!(original.counted(), 21, "that one is counted again, and no count is lost");
}

/// Somebody else's key must not keep everybody from sending.
#[tokio::test]
async fn a_turn_without_an_end_is_nobodys() {
    let ground = Ground::new().await;
    let original = Original::default();
    let (url, _stop) = original.serve().await;
    let turn = format!("{{{}}}:turn:monitor-queue-group", ground.stream);
    ground.redis().await.set::<_, _, ()>(&turn, "a stranger").await.unwrap();
    let window = window("payments-a", 3);
    for slot in 0..3 {
        ground.send(heartbeat(&window, slot).to_json()).await;
    }
    let _relay = Process::relay(&ground, &url, &[]).await;
    eventually("all are counted", async || (original.counted() == 3).then_some(())).await;
}

#[tokio::test]
async fn an_old_monitor_gets_heartbeats_in_their_order() {
    let ground = Ground::new().await;
    let original = Original::default();
    let (url, _stop) = original.serve().await;
    let window = window("payments-a", 100);
    for slot in 0..100 {
        ground.send(heartbeat(&window, slot).to_json()).await;
    }
    let _relay = Process::relay(&ground, &url, &["--batch-size", "7"]).await;
    eventually("all are counted", async || (original.counted() == 100).then_some(())).await;
    let slots = original.slots.lock().unwrap()[&window.uuid.to_string()].clone();
    assert!(slots.is_sorted(), "{slots:?}");
}

/// Who is killed while it sends blocks the others for seconds only.
#[tokio::test]
async fn a_relay_that_is_killed_in_its_turn_lets_another_go_on() {
    let ground = Ground::new().await;
    let mut original = Original { silent_about: Some(0), ..Original::default() };
    let (url, stop) = original.serve().await;
    let quick = ["--lease", "3s", "--http-timeout", "1s"];
    let first = Process::relay(&ground, &url, &quick).await;
    let window = window("payments-a", 6);
    ground.send(heartbeat(&window, 0).to_json()).await;
    eventually("it is sending", async || (original.posts() == 1).then_some(())).await;
    first.kill().await;
    let turn = format!("{{{}}}:turn:monitor-queue-group", ground.stream);
    assert!(ground.redis().await.exists::<_, bool>(&turn).await.unwrap(), "it had the turn");
    drop(stop);
    original.silent_about = None;
    let (url, _stop) = original.serve().await;
    let _second = Process::relay(&ground, &url, &quick).await;
    for slot in 1..6 {
        ground.send(heartbeat(&window, slot).to_json()).await;
    }
    eventually("all are counted", async || (original.counted() == 6).then_some(())).await;
}

/// A service that has sent 20 heartbeats, all of which an old monitor has got and the service knows
/// of.
struct Stage {
    ground: Ground,
    original: Original,
    url: String,
    _stop: DropGuard,
    relay: Option<Process>,
    payments: Payments,
    watch: Watch,
}

impl Stage {
    async fn new() -> Self {
        let ground = Ground::new().await;
        let original = Original::default();
        let (url, stop) = original.serve().await;
        let relay = Process::relay(&ground, &url, &[]).await;
        let payments = ground.payments("payments-a").await;
        let mut watch = Watch::default();
        watch.look(&payments).await.unwrap();
        sent(&payments, 20).await;
        let sent_at = heartbeat::clock::now();
        let relay = Some(relay);
        let stage = Self { ground, original, url, _stop: stop, relay, payments, watch };
        stage.arrived(20).await;
        eventually("the service can know", async || {
            let seen = stage.ground.observe().await.unwrap();
            (seen.repeats == Repeats::CountedAgain && seen.watermark? > sent_at).then_some(())
        })
        .await;
        stage
    }

    /// Waits until so many are counted and nothing is under way.
    async fn arrived(&self, heartbeats: u64) {
        eventually(&format!("{heartbeats} are counted"), async || {
            let is_done = self.original.counted() >= heartbeats && pending(&self.ground).await == 0;
            is_done.then_some(())
        })
        .await;
    }

    /// Looks so often that everything is sent again that ever will be, and sends something new.
    async fn look_and_go_on(&mut self) {
        for _ in 0..12 {
            self.watch.look(&self.payments).await.unwrap();
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        sent(&self.payments, 5).await;
        self.arrived(25).await;
        assert_eq!(self.original.posts(), 25, "each is sent once");
        assert_eq!(self.original.counted(), 25);
    }
}

#[tokio::test]
async fn an_emptied_redis_makes_an_old_monitor_count_nothing_twice() {
    let mut stage = Stage::new().await;
    stage.watch.look(&stage.payments).await.unwrap();
    stage.ground.empty_redis().await;
    stage.look_and_go_on().await;
}

/// The service knows how far delivery had come, and sends nothing of it for good measure.
#[tokio::test]
async fn a_relay_that_starts_with_an_emptied_redis_sends_nothing_twice() {
    let mut stage = Stage::new().await;
    stage.watch.look(&stage.payments).await.unwrap();
    stage.relay.take().unwrap().kill().await;
    stage.ground.empty_redis().await;
    stage.relay = Some(Process::relay(&stage.ground, &stage.url, &[]).await);
    stage.look_and_go_on().await;
}

/// The service does not know it, and the relay knows what the monitor has confirmed.
#[tokio::test]
async fn a_service_that_starts_with_an_emptied_redis_makes_nothing_count_twice() {
    let mut stage = Stage::new().await;
    stage.ground.empty_redis().await;
    stage.watch = Watch::default();
    stage.look_and_go_on().await;
    let repeats =
        Scrape::role(stage.relay.as_ref().unwrap()).await.get("heartbeat_relay_repeats_total");
    assert!(repeats >= 20.0, "{repeats}");
}

#[tokio::test]
async fn a_group_that_is_destroyed_makes_an_old_monitor_count_nothing_twice() {
    let mut stage = Stage::new().await;
    let destroy = ["DESTROY", stage.ground.stream.reports(), "monitor-queue-group"];
    let mut redis = stage.ground.redis().await;
    redis::cmd("XGROUP").arg(&destroy).query_async::<()>(&mut redis).await.unwrap();
    stage.look_and_go_on().await;
}
