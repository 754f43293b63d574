//! How fast a backlog in the stream is carried into the database.

use std::time::Instant;

use super::ground::{Database, Ground};
use super::load::{self, SLOTS};
use super::process::Process;
use super::table::{Table, Target};

/// Windows of which all heartbeats wait: 500,000.
const WINDOWS: usize = 5_000;

/// Measures with one relay and one monitor, and with two of each.
pub async fn measure(ground: &Ground, table: &mut Table) {
    let raw = table.value("raw_insert_rate");
    let database = ground.database().await;
    let rate = backlog(ground, &database, "drain", WINDOWS, 1).await;
    database.drop().await;
    table.add("drain_rate", rate, "rows/s", Target::AtLeast(20_000.0));
    table.add("drain_ratio", rate / raw, "of raw", Target::AtLeast(0.6));
    let database = ground.database().await;
    let rate_2x2 = backlog(ground, &database, "drain2x2", WINDOWS, 2).await;
    database.drop().await;
    table.add("drain_ratio_2x2", rate_2x2 / raw, "of raw", Target::AtLeast(0.9 * rate / raw));
}

/// What has come: the sweep may write of other windows that something is missing.
const ARRIVED: &str = "SELECT COUNT(*) FROM events WHERE status <> 'MISSING'";

/// Fills a stream, lets so many relays and monitors drain it, and answers the heartbeats per second,
/// from the start of the relays until everything is committed and acknowledged.
pub async fn backlog(
    ground: &Ground,
    database: &Database,
    stream: &str,
    windows: usize,
    pairs: usize,
) -> f64 {
    let mut redis = ground.redis().await;
    load::fill(&mut redis, stream, &load::windows(windows, SLOTS)).await;
    load::rewritten(&mut redis).await;
    let before = database.count(ARRIVED).await;
    let mut monitors = Vec::new();
    for _ in 0..pairs {
        monitors.push(Process::monitor(database).await);
    }
    let start = Instant::now();
    let relays = monitors.iter().map(|monitor| Process::relay(ground, stream, monitor));
    let relays = futures_util::future::join_all(relays).await;
    load::drained(&mut redis, stream).await;
    let took = start.elapsed().as_secs_f64();
    drop((relays, monitors));
    let expected = windows * SLOTS as usize;
    let after = database.count(ARRIVED).await;
    assert_eq!(after - before, expected as u64, "each is stored, once");
    let keys = [stream.to_owned(), format!("{{{stream}}}:windows")];
    redis::cmd("UNLINK").arg(&keys).query_async::<()>(&mut redis).await.unwrap();
    expected as f64 / took
}
