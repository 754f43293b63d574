//! What each role occupies, idle and under a backlog of a million entries, and what it costs.

use std::time::Duration;

use super::ground::Ground;
use super::load::{self, SLOTS};
use super::process::Process;
use super::table::{Table, Target};

/// Windows of which all heartbeats wait: a million.
const WINDOWS: usize = 10_000;
/// How long idle roles are left alone before they are looked at.
const IDLE: Duration = Duration::from_secs(3);

/// Measures memory and processor time.
pub async fn measure(ground: &Ground, table: &mut Table) {
    let database = ground.database().await;
    let mut redis = ground.redis().await;
    let monitor = Process::monitor(&database).await;
    let payments = [
        ("REDIS_URL", ground.redis_url()),
        ("STREAM_NAME", "idle".to_owned()),
        ("DATABASE_URL", ground.payments_url()),
        ("CREATE_SCHEMA_ON_STARTUP", "true".to_owned()),
        ("SERVICE_NAME", "payments-a".to_owned()),
    ];
    let idle = [
        Process::relay(ground, "idle", &monitor).await,
        Process::start("payments", &payments).await,
    ];
    tokio::time::sleep(IDLE).await;
    let most = idle.iter().chain([&monitor]).map(Process::rss_mib).fold(0.0, f64::max);
    table.add("rss_idle_mib", most, "MiB", Target::AtMost(25.0));
    drop(idle);

    load::fill(&mut redis, "memory", &load::windows(WINDOWS, SLOTS)).await;
    let cpu_before = monitor.cpu_seconds();
    let relay = Process::relay(ground, "memory", &monitor).await;
    let mut most: f64 = 0.0;
    let draining = load::drained(&mut redis, "memory");
    tokio::pin!(draining);
    loop {
        tokio::select! {
            () = &mut draining => break,
            () = tokio::time::sleep(Duration::from_millis(100)) => {
                most = most.max(relay.rss_mib()).max(monitor.rss_mib());
            }
        }
    }
    table.add("rss_load_mib", most, "MiB", Target::AtMost(80.0));
    let cpu = relay.cpu_seconds() + monitor.cpu_seconds() - cpu_before;
    let millions = (WINDOWS * SLOTS as usize) as f64 / 1e6;
    table.add("cpu_seconds_per_million", cpu / millions, "s", Target::AtMost(12.0));
    drop((relay, monitor));
    database.drop().await;
}
