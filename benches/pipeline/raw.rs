//! The yardstick: the same rows into the same table by multi-row INSERT, in the order of the primary
//! key, by clients that do nothing else. And the same in the order in which heartbeats arrive, where
//! the rows of one statement lie far apart in the table: no pipeline can choose the other order.

use std::time::Instant;

use chrono::{DateTime, Utc};
use heartbeat::wire::Window;
use sqlx::query_builder::QueryBuilder;
use sqlx::{MySql, MySqlPool};
use tokio::task::JoinSet;

use super::ground::Ground;
use super::load::{self, SLOTS};
use super::table::{Table, Target};

/// Rows that are inserted.
const ROWS: usize = 500_000;
/// Rows of one statement, which is a transaction.
const ROWS_PER_STATEMENT: usize = 1_000;

/// A row: the number of its window, and its slot.
type Key = (usize, u32);

/// Measures the best of one, two and four clients, in both orders.
pub async fn measure(ground: &Ground, table: &mut Table) {
    let windows = ROWS / SLOTS as usize;
    let of_window = |window| (0..SLOTS).map(move |slot| (window, slot));
    let by_key: Vec<Key> = (0..windows).flat_map(of_window).collect();
    let of_slot = |slot| (0..windows).map(move |window| (window, slot));
    let as_they_arrive: Vec<Key> = (0..SLOTS).flat_map(of_slot).collect();
    for (name, rows) in [("raw_insert_rate", by_key), ("raw_arrival_rate", as_they_arrive)] {
        let mut best: f64 = 0.0;
        for clients in [1, 2, 4] {
            best = best.max(rate(ground, &rows, clients).await);
        }
        table.add(name, best, "rows/s", Target::None);
    }
}

async fn rate(ground: &Ground, rows: &[Key], clients: usize) -> f64 {
    let database = ground.database().await;
    let windows = load::windows(ROWS / SLOTS as usize, SLOTS);
    let start = Instant::now();
    let mut inserting = JoinSet::new();
    for rows in rows.chunks(ROWS / clients) {
        inserting.spawn(insert(database.pool.clone(), windows.clone(), rows.to_vec()));
    }
    inserting.join_all().await;
    let took = start.elapsed().as_secs_f64();
    assert_eq!(database.count("SELECT COUNT(*) FROM events").await, ROWS as u64);
    database.drop().await;
    ROWS as f64 / took
}

async fn insert(pool: MySqlPool, windows: Vec<Window>, rows: Vec<Key>) {
    let now = DateTime::<Utc>::from(heartbeat::clock::now());
    for chunk in rows.chunks(ROWS_PER_STATEMENT) {
        let mut query = QueryBuilder::<MySql>::new(
            "INSERT INTO events (window_id, slot, status, report_timestamp, error_message, \
             stream_id, recorded_at, deliveries, conflicts) ",
        );
        query.push_values(chunk, |mut values, (window, slot)| {
            let heartbeat = load::heartbeat(&windows[*window], *slot);
            values
                .push_bind(i64::try_from(*window).unwrap())
                .push_bind(slot)
                .push_bind(if heartbeat.status.is_error() { "ERROR" } else { "OK" })
                .push_bind(DateTime::<Utc>::from(heartbeat.timestamp))
                .push_bind(heartbeat.status.message().map(str::to_owned))
                .push_bind(Some("1795255212500-3"))
                .push_bind(now)
                .push_bind(1)
                .push_bind(0);
        });
        query.build().execute(&pool).await.unwrap();
    }
}
