//! What heartbeats notice of pruning, while most of ten million events are too old to be kept.

use std::time::Instant;

use super::ground::Ground;
use super::history;
use super::latency::{at_rate, percentile};
use super::process::Process;
use super::table::{Table, Target};

/// Heartbeats that arrive in a second.
const RATE: u32 = 1_500;
const OLD: &str = "SELECT COUNT(*) FROM events WHERE window_id IN (SELECT id FROM windows \
    WHERE over_since < NOW() - INTERVAL 1 DAY)";

/// Measures how long heartbeats take meanwhile, and how many rows go in a second, which must be as
/// many as come.
pub async fn measure(ground: &Ground, table: &mut Table) {
    let database = history::stored(ground).await;
    let before = database.count(OLD).await;
    let start = Instant::now();
    let environment = [("DATABASE_URL", database.url.clone()), ("RETAIN_EVENTS", "1d".to_owned())];
    let monitor = Process::start("monitor", &environment).await;
    let mut times = at_rate(ground, (&database, &monitor), RATE).await;
    let seconds = start.elapsed().as_secs_f64();
    drop(monitor);
    let pruned = before - database.count(OLD).await;
    database.drop().await;
    let p99 = percentile(&mut times, 99.0);
    table.add("prune_latency_1500_p99_ms", p99, "ms", Target::AtMost(50.0));
    table.add("prune_rate", pruned as f64 / seconds, "rows/s", Target::AtLeast(f64::from(RATE)));
}
