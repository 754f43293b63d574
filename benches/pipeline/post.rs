//! Single heartbeats by HTTP, each answered after its commit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::client::Client;
use super::ground::Ground;
use super::latency::percentile;
use super::load::{self, SLOTS};
use super::process::Process;
use super::table::{Table, Target};

const CLIENTS: usize = 256;
const WARM_UP: Duration = Duration::from_secs(2);
const MEASURED: Duration = Duration::from_secs(10);

/// Measures the rate and the time to an answer.
pub async fn measure(ground: &Ground, table: &mut Table) {
    let database = ground.database().await;
    let monitor = Process::monitor(&database).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let begins = Instant::now() + WARM_UP;
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(post(monitor.address.clone(), begins, Arc::clone(&is_over)));
    }
    tokio::time::sleep(WARM_UP + MEASURED).await;
    is_over.store(true, Ordering::Relaxed);
    let mut posted = 0;
    let mut times = Vec::new();
    for (all, measured) in clients.join_all().await {
        posted += all;
        times.extend(measured);
    }
    assert_eq!(database.count("SELECT COUNT(*) FROM events").await, posted, "each is committed");
    drop(monitor);
    database.drop().await;
    let rate = times.len() as f64 / MEASURED.as_secs_f64();
    table.add("post_rate", rate, "posts/s", Target::None);
    let ratio = rate / table.value("raw_insert_rate");
    table.add("post_ratio", ratio, "of raw", Target::AtLeast(0.25));
    table.add("post_p95_ms", percentile(&mut times, 95.0), "ms", Target::AtMost(350.0));
    table.add("post_p99_ms", percentile(&mut times, 99.0), "ms", Target::AtMost(700.0));
}

/// Posts until it is over. Answers how many, and the times of those since `begins`.
async fn post(address: String, begins: Instant, is_over: Arc<AtomicBool>) -> (u64, Vec<Duration>) {
    let mut client = Client::connect(&address).await.unwrap();
    let mut posted = 0;
    let mut times = Vec::new();
    loop {
        let window = load::windows(1, SLOTS).remove(0);
        for slot in 0..SLOTS {
            if is_over.load(Ordering::Relaxed) {
                return (posted, times);
            }
            let body = load::heartbeat(&window, slot).to_json();
            let start = Instant::now();
            let status = client.post("/api/monitor/heartbeats", &body).await.unwrap();
            assert_eq!(status, 202);
            posted += 1;
            if start >= begins {
                times.push(start.elapsed());
            }
        }
    }
}
