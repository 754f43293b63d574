//! How long people wait for an answer of the monitor when ten million events are stored.
//!
//! Eight clients ask beside heartbeats that arrive at a steady rate, each its next question a moment
//! after an answer. A time is that from the question to the whole answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use heartbeat::db;
use tokio::task::JoinSet;

use super::client::Client;
use super::ground::{Database, Ground};
use super::history::{self, LARGEST};
use super::latency::percentile;
use super::load::{self, SLOTS};
use super::process::Process;
use super::questions::{Endpoint, Questions};
use super::table::{Table, Target};

const CLIENTS: usize = 8;
/// Time between an answer and the next question of a client.
const PAUSE: Duration = Duration::from_millis(50);
/// Questions to each endpoint by each client, of which the first ones warm everything up.
const QUESTIONS: usize = 150;
const WARM_UP: usize = 20;
/// Heartbeats that arrive in a second, and time between two pipelines of their sender.
const RATE: u32 = 1_500;
const SEND_EVERY: Duration = Duration::from_millis(5);
/// Windows that they belong to: enough for two minutes.
const WINDOWS: u32 = 2 * 60 * RATE / SLOTS;
/// Questions of each endpoint that are shown because they took longest.
const SLOWEST: usize = 3;
/// Questions for the largest window.
const OF_LARGEST: usize = 5;

type Times = BTreeMap<Endpoint, Vec<(Duration, String)>>;

/// Measures the time to an answer, for each endpoint.
pub async fn measure(ground: &Ground, table: &mut Table) {
    let database = history::stored(ground).await;
    let audit = ground.database_of(&db::PAYMENTS_SCHEMA).await;
    history::fill_audit(&database, &audit).await;
    let addresses =
        [("DATABASE_URL", database.url.clone()), ("AUDIT_DATABASE_URL", audit.url.clone())];
    let monitor = Process::start("monitor", &addresses).await;
    let relay = Process::relay(ground, "api", &monitor).await;
    let mut questions = Questions::new(&database, &audit).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let arriving = tokio::spawn(arrive(ground.redis().await, Arc::clone(&is_over)));
    let mut times = ask_all(&monitor, &mut questions).await;
    is_over.store(true, Ordering::Relaxed);
    arriving.await.unwrap();
    load::drained(&mut ground.redis().await, "api").await;
    tell(&mut times, table);
    let mut largest = ask_for_largest(&monitor, &database).await;
    table.add("api_window_100000_p50_ms", percentile(&mut largest, 50.0), "ms", Target::None);
    drop((relay, monitor));
    audit.drop().await;
    // The next scenario prunes it.
    ground.history.lock().await.replace(database);
}

/// Adds the figure of each endpoint, and says which questions took longest.
fn tell(times: &mut Times, table: &mut Table) {
    for endpoint in Endpoint::ALL {
        let mut measured = times.remove(&endpoint).unwrap();
        measured.sort();
        for (time, path) in measured.iter().rev().take(SLOWEST) {
            eprintln!("  {:.0} ms: {path}", time.as_secs_f64() * 1_000.0);
        }
        let mut measured: Vec<Duration> = measured.into_iter().map(|(time, _)| time).collect();
        let p99 = percentile(&mut measured, 99.0);
        table.add(&endpoint.figure(), p99, "ms", Target::AtMost(50.0));
    }
}

/// Has all clients ask. Each asks for everything in turn, and each begins elsewhere.
async fn ask_all(monitor: &Process, questions: &mut Questions) -> Times {
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let mut paths = Vec::with_capacity(QUESTIONS * Endpoint::ALL.len());
        for turn in 0..QUESTIONS * Endpoint::ALL.len() {
            let endpoint = Endpoint::ALL[(number + turn) % Endpoint::ALL.len()];
            paths.push((endpoint, questions.ask(endpoint)));
        }
        clients.spawn(ask(monitor.address.clone(), paths));
    }
    let mut times = Times::new();
    for (endpoint, time, path) in clients.join_all().await.into_iter().flatten() {
        times.entry(endpoint).or_default().push((time, path));
    }
    times
}

async fn ask(address: String, paths: Vec<(Endpoint, String)>) -> Vec<(Endpoint, Duration, String)> {
    let mut client = Client::connect(&address).await.unwrap();
    let mut measured = Vec::with_capacity(paths.len());
    for (number, (endpoint, path)) in paths.into_iter().enumerate() {
        tokio::time::sleep(PAUSE).await;
        let start = Instant::now();
        let status = client.get(&path).await.unwrap();
        assert_eq!(status, 200, "{path}");
        if number >= WARM_UP * Endpoint::ALL.len() {
            measured.push((endpoint, start.elapsed(), path));
        }
    }
    measured
}

/// Sends heartbeats of a hundred services at a steady rate until it is over.
async fn arrive(mut redis: redis::aio::MultiplexedConnection, is_over: Arc<AtomicBool>) {
    let windows = load::windows(WINDOWS as usize, SLOTS);
    let mut beat = tokio::time::interval(SEND_EVERY);
    let start = Instant::now();
    let mut next = 0;
    while !is_over.load(Ordering::Relaxed) {
        beat.tick().await;
        let first = next;
        while next < WINDOWS * SLOTS
            && start + Duration::from_secs(1) * next / RATE <= Instant::now()
        {
            next += 1;
        }
        let payload = |number: u32| {
            let window = &windows[(number % WINDOWS) as usize];
            load::heartbeat(window, number / WINDOWS).to_json()
        };
        let payloads: Vec<String> = (first..next).map(payload).collect();
        load::write(&mut redis, "api", &payloads).await;
    }
}

/// One after the other, with nothing else to do.
async fn ask_for_largest(monitor: &Process, database: &Database) -> Vec<Duration> {
    let uuid: String = sqlx::query_scalar("SELECT window_uuid FROM windows WHERE id = ?")
        .bind(LARGEST)
        .fetch_one(&database.pool)
        .await
        .unwrap();
    let mut client = Client::connect(&monitor.address).await.unwrap();
    let mut times = Vec::with_capacity(OF_LARGEST);
    for _ in 0..OF_LARGEST {
        let start = Instant::now();
        assert_eq!(client.get(&format!("/api/monitor/windows/{uuid}")).await.unwrap(), 200);
        times.push(start.elapsed());
    }
    times
}
