//! The yardstick: the same rows into the same table by multi-row INSERT, in the order of the primary
//! key, by clients that do nothing else.

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
const ROWS_PER_STATEMENT: u32 = 1_000;

/// Measures the best of one, two and four clients.
pub async fn measure(ground: &Ground, table: &mut Table) {
    let mut best: f64 = 0.0;
    for clients in [1, 2, 4] {
        best = best.max(rate(ground, clients).await);
    }
    table.add("raw_insert_rate", best, "rows/s", Target::None);
}

async fn rate(ground: &Ground, clients: usize) -> f64 {
    let database = ground.database().await;
    let windows = load::windows(ROWS / SLOTS as usize, SLOTS);
    let start = Instant::now();
    let mut inserting = JoinSet::new();
    let share = windows.len() / clients;
    for (client, windows) in windows.chunks(share).enumerate() {
        let first = i64::try_from(client * share + 1).unwrap();
        inserting.spawn(insert(database.pool.clone(), first, windows.to_vec()));
    }
    inserting.join_all().await;
    let took = start.elapsed().as_secs_f64();
    assert_eq!(database.count("SELECT COUNT(*) FROM events").await, ROWS as u64);
    database.drop().await;
    ROWS as f64 / took
}

/// Inserts the heartbeats of windows whose rows have the numbers from `first` on.
async fn insert(pool: MySqlPool, first: i64, windows: Vec<Window>) {
    let now = DateTime::<Utc>::from(heartbeat::clock::now());
    let windows_per_statement = (ROWS_PER_STATEMENT / SLOTS) as usize;
    for (number, chunk) in windows.chunks(windows_per_statement).enumerate() {
        let first = first + i64::try_from(number * windows_per_statement).unwrap();
        let rows = chunk.iter().zip(first..).flat_map(|(window, id)| {
            (0..window.slots()).map(move |slot| (id, slot, load::heartbeat(window, slot)))
        });
        let mut query = QueryBuilder::<MySql>::new(
            "INSERT INTO events (window_id, slot, status, report_timestamp, error_message, \
             stream_id, recorded_at, deliveries, conflicts) ",
        );
        query.push_values(rows, |mut values, (id, slot, heartbeat)| {
            values
                .push_bind(id)
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
