//! What the tests stand on: shared servers, a ground of one's own in them, and processes.

mod api;
mod collector;
mod ground;
mod process;
mod proxy;
mod scrape;
mod servers;

pub use api::{Api, error};
pub use collector::{Collector, Seen};
pub use ground::{Ground, monitor_at, pool};
pub use process::{Process, free_address, run};
pub use proxy::Proxy;
pub use scrape::Scrape;
pub use servers::shared;

use std::time::{Duration, Instant};

use heartbeat::monitor::{Monitor, latest_windows};
use heartbeat::wire::{
    Announcement, Breaker, Heartbeat, PipelineReport, Rates, Status, StreamId, StreamState, Tick,
    Timestamp, Window,
};
use redis::AsyncCommands;
use redis::streams::StreamPendingReply;
use reqwest::StatusCode;
use serde_json::Value;
use uuid::Uuid;

/// An instant that tests start from.
pub const START: &str = "2026-11-21T10:00:00Z";

/// An instant by its text.
pub fn at(text: &str) -> Timestamp {
    Timestamp::parse(text).unwrap()
}

/// A window of a service from [`START`] with so many slots of 10 s.
pub fn window(service: &str, slots: u32) -> Window {
    let from = at(START);
    let to = from.plus_micros(i64::from(slots) * Tick::DEFAULT.micros());
    let service = service.parse().unwrap();
    Window::new(Uuid::new_v4(), service, (from, to), Tick::DEFAULT, Rates::default()).unwrap()
}

/// The announcement of a window, which does not say when it was made.
pub fn announcement(window: &Window) -> Announcement {
    Announcement { window: window.clone(), announced_at: None, stream_id: None }
}

/// The heartbeat of a slot, sent when it was due.
pub fn heartbeat(window: &Window, slot: u32) -> Heartbeat {
    Heartbeat {
        window: window.clone(),
        status: Status::Ok,
        timestamp: window.due(slot),
        slot: Some(i64::from(slot)),
        stream_id: None,
    }
}

/// The id of an entry that Redis took at an instant.
pub fn entry_id(written: Timestamp) -> StreamId {
    StreamId { millis: u64::try_from(written.micros() / 1_000).unwrap(), sequence: 0 }
}

/// A relay's report that everything written before an instant is delivered or dead.
pub fn report(watermark: Timestamp) -> PipelineReport {
    PipelineReport {
        relay: "relay-1".to_owned(),
        group: "monitor-queue-group".to_owned(),
        stream: "reports".to_owned(),
        redis_identity: "run.replication.epoch".to_owned(),
        redis_time: watermark,
        watermark,
        recovered_at: None,
        windows: StreamState::default(),
        heartbeats: StreamState::default(),
        breaker: Breaker::Closed,
        suspects: Vec::new(),
        resending: Vec::new(),
        resent: Vec::new(),
        dead_letters_total: 0,
        dead_letters: Vec::new(),
        silent_groups: Vec::new(),
    }
}

/// The status and the JSON body of an answer.
pub async fn answer(response: reqwest::Response) -> (StatusCode, Value) {
    let status = response.status();
    let body = response.bytes().await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or_else(|_| panic!("no JSON: {body:?}")))
}

/// Asks for a page.
pub async fn get(url: &str) -> reqwest::Result<reqwest::Response> {
    heartbeat::http::client(Duration::from_secs(10))?.get(url).send().await
}

/// How many distinct heartbeats a monitor has received, over all windows.
pub async fn received(monitor: &Monitor) -> u32 {
    let windows = latest_windows(&monitor.pool, 100).await.unwrap();
    windows.iter().map(|window| window.counts.received).sum()
}

/// How many heartbeats the relays' group has read and not acknowledged.
pub async fn pending(ground: &Ground) -> usize {
    let group = "monitor-queue-group";
    let reply: StreamPendingReply =
        ground.redis().await.xpending(ground.stream.reports(), group).await.unwrap();
    reply.count()
}

/// Waits until something holds, looking again and again. Whoever expects that it never does sets
/// `HEARTBEAT_TEST_PATIENCE_SECONDS`.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let seconds = std::env::var("HEARTBEAT_TEST_PATIENCE_SECONDS").ok();
    let patience = Duration::from_secs(seconds.map_or(30, |seconds| seconds.parse().unwrap()));
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(start.elapsed() < patience, "{what}: not within {patience:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
