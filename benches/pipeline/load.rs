//! Heartbeats to measure with: in memory, in a stream.

use std::time::Duration;

use heartbeat::clock;
use heartbeat::wire::{Announcement, Heartbeat, Rates, Status, Tick, Timestamp, Window};
use redis::aio::MultiplexedConnection;
use uuid::Uuid;

/// Entries that one pipeline writes.
const PIPELINE: usize = 1_000;
/// Slots of a window, unless a scenario wants others.
pub const SLOTS: u32 = 100;

/// Windows that are open during the whole run.
pub fn windows(count: usize, slots: u32) -> Vec<Window> {
    // Shortest ticks for many slots, so that none lies further ahead than is taken.
    let tick = Tick::from_seconds(if slots > 1_000 { 0.05 } else { 10.0 }).unwrap();
    let from = clock::now();
    (0..count).map(|number| window(number, from, tick, slots)).collect()
}

fn window(number: usize, from: Timestamp, tick: Tick, slots: u32) -> Window {
    let service = format!("payments-{}", number % 100).parse().unwrap();
    let to = from.plus(tick.duration() * slots);
    Window::new(Uuid::new_v4(), service, (from, to), tick, Rates::default()).unwrap()
}

/// The heartbeat of a slot. One in ten reports an error.
pub fn heartbeat(window: &Window, slot: u32) -> Heartbeat {
    let status = match slot % 10 {
        9 => Status::Error(Some("ledger write failed".to_owned())),
        _ => Status::Ok,
    };
    Heartbeat {
        window: window.clone(),
        status,
        timestamp: window.due(slot).plus_micros(1_234),
        slot: Some(i64::from(slot)),
        stream_id: None,
    }
}

/// Writes the announcements of windows and then every heartbeat of theirs, in the order in which
/// services that run side by side would have sent them.
pub async fn fill(redis: &mut MultiplexedConnection, stream: &str, windows: &[Window]) {
    let now = clock::now();
    let announcement = |window: &Window| Announcement::new(window.clone(), now).to_json();
    let announcements: Vec<String> = windows.iter().map(announcement).collect();
    write(redis, &format!("{{{stream}}}:windows"), &announcements).await;
    let slots = windows.first().map_or(0, Window::slots);
    for slot in 0..slots {
        let heartbeat = |window| heartbeat(window, slot).to_json();
        let heartbeats: Vec<String> = windows.iter().map(heartbeat).collect();
        write(redis, stream, &heartbeats).await;
    }
}

/// Writes messages to a stream.
pub async fn write(redis: &mut MultiplexedConnection, key: &str, payloads: &[String]) {
    for chunk in payloads.chunks(PIPELINE) {
        let mut pipeline = redis::pipe();
        for payload in chunk {
            pipeline.cmd("XADD").arg(&[key, "*", "payload", payload]).ignore();
        }
        pipeline.query_async::<()>(redis).await.unwrap();
    }
}

/// Waits until Redis has rewritten its log, as it does after so much was written to it at once.
pub async fn rewritten(redis: &mut MultiplexedConnection) {
    let is_rewriting = ["aof_rewrite_in_progress:1", "aof_rewrite_scheduled:1"];
    loop {
        let info: String = redis::cmd("INFO").arg("persistence").query_async(redis).await.unwrap();
        if !is_rewriting.iter().any(|sign| info.contains(sign)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the relays' group has read and acknowledged everything in both streams.
pub async fn drained(redis: &mut MultiplexedConnection, stream: &str) {
    for key in [format!("{{{stream}}}:windows"), stream.to_owned()] {
        while !is_drained(redis, &key).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn is_drained(redis: &mut MultiplexedConnection, key: &str) -> bool {
    let groups: redis::streams::StreamInfoGroupsReply =
        redis::cmd("XINFO").arg(&["GROUPS", key]).query_async(redis).await.unwrap_or_default();
    groups.groups.iter().any(|group| group.lag == Some(0) && group.pending == 0)
}
