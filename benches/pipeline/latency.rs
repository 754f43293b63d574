//! From XADD to the committed row, at a steady rate.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use heartbeat::wire::Window;
use sqlx::MySqlPool;
use uuid::Uuid;

use super::ground::{Database, Ground};
use super::load;
use super::process::Process;
use super::table::{Table, Target};

const LASTS: Duration = Duration::from_secs(30);
/// Time between two pipelines of the sender.
const SEND_EVERY: Duration = Duration::from_millis(5);
/// Time between two looks for new rows, which is how exact the figures are.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Slots of a window, as many as one may have.
const SLOTS: u32 = 100_000;

/// Measures at both rates.
pub async fn measure(ground: &Ground, table: &mut Table) {
    for (rate, most_p99_ms) in [(1_500, 50.0), (10_000, 150.0)] {
        let database = ground.database().await;
        let monitor = Process::monitor(&database).await;
        let mut times = at_rate(ground, (&database, &monitor), rate).await;
        drop(monitor);
        database.drop().await;
        for (name, part) in [("p50", 50.0), ("p99", 99.0), ("p999", 99.9)] {
            let target = if name == "p99" { Target::AtMost(most_p99_ms) } else { Target::None };
            let name = format!("latency_{rate}_{name}_ms");
            table.add(&name, percentile(&mut times, part), "ms", target);
        }
    }
}

/// The value below which a part of some times lies, in percent, in milliseconds.
pub fn percentile(times: &mut [Duration], part: f64) -> f64 {
    times.sort_unstable();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is an index")]
    let index = ((times.len() as f64 * part / 100.0) as usize).min(times.len() - 1);
    times[index].as_secs_f64() * 1_000.0
}

/// How long heartbeats take to a monitor's database that arrive at a steady rate, in a second.
pub async fn at_rate(
    ground: &Ground,
    (database, monitor): (&Database, &Process),
    rate: u32,
) -> Vec<Duration> {
    let stream = format!("latency-{}", Uuid::new_v4());
    let relay = Process::relay(ground, &stream, monitor).await;
    let total = rate * u32::try_from(LASTS.as_secs()).unwrap();
    let windows = load::windows(total.div_ceil(SLOTS) as usize, SLOTS);
    let sent = Arc::new(Mutex::new(Vec::with_capacity(total as usize)));
    let sending = send(ground, &stream, &windows, (rate, total), Arc::clone(&sent));
    let looking = tokio::spawn(look(database.pool.clone(), windows.clone(), total));
    sending.await;
    let seen = looking.await.unwrap();
    drop(relay);
    let sent = sent.lock().unwrap();
    sent.iter().zip(seen).map(|(sent, seen)| seen.duration_since(*sent)).collect()
}

/// Sends at a steady rate, and notes when each heartbeat was due to be sent: what a slow Redis holds
/// up counts.
async fn send(
    ground: &Ground,
    stream: &str,
    windows: &[Window],
    (rate, total): (u32, u32),
    sent: Arc<Mutex<Vec<Instant>>>,
) {
    let mut redis = ground.redis().await;
    let mut beat = tokio::time::interval(SEND_EVERY);
    let start = Instant::now();
    let due = |number: u32| start + Duration::from_secs(1) * number / rate;
    let mut next = 0;
    while next < total {
        beat.tick().await;
        let now = Instant::now();
        let first = next;
        while next < total && due(next) <= now {
            next += 1;
        }
        let payload = |number: u32| {
            let window = &windows[(number / SLOTS) as usize];
            load::heartbeat(window, number % SLOTS).to_json()
        };
        let payloads: Vec<String> = (first..next).map(payload).collect();
        sent.lock().unwrap().extend((first..next).map(due));
        load::write(&mut redis, stream, &payloads).await;
    }
}

/// Looks for rows until all are there. Answers when each was seen first.
async fn look(pool: MySqlPool, windows: Vec<Window>, total: u32) -> Vec<Instant> {
    let mut connection = pool.acquire().await.unwrap();
    let mut all = Vec::with_capacity(total as usize);
    for window in windows {
        let slots = SLOTS.min(total - u32::try_from(all.len()).unwrap());
        let mut seen: Vec<Option<Instant>> = vec![None; slots as usize];
        let mut first_unseen = 0;
        while first_unseen < seen.len() {
            let slots: Vec<i32> = sqlx::query_scalar(
                "SELECT slot FROM events WHERE window_id = (SELECT id FROM windows \
                 WHERE window_uuid = ?) AND slot >= ? ORDER BY slot LIMIT 5000",
            )
            .bind(window.uuid.to_string())
            .bind(u32::try_from(first_unseen).unwrap())
            .fetch_all(&mut *connection)
            .await
            .unwrap();
            let now = Instant::now();
            for slot in slots {
                seen[usize::try_from(slot).unwrap()].get_or_insert(now);
            }
            while seen.get(first_unseen).is_some_and(Option::is_some) {
                first_unseen += 1;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        all.extend(seen.into_iter().flatten());
    }
    all
}
