//! Closing windows whose time is over, against the same statements done raw.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::query_builder::QueryBuilder;
use sqlx::{MySql, MySqlPool};
use tokio::task::JoinSet;

use super::ground::Ground;
use super::process::Process;
use super::stored;
use super::table::{Table, Target};

const WINDOWS: u32 = 100_000;
const SLOTS: u32 = 12;
const MISSING: u32 = 2;
/// Windows that one raw transaction closes.
const RAW_STEP: u32 = 500;

/// Measures the windows that are closed per second, and what is possible.
pub async fn measure(ground: &Ground, table: &mut Table) {
    let mut raw: f64 = 0.0;
    for clients in [1, 2] {
        let database = ground.database().await;
        stored::fill(&database, WINDOWS, SLOTS, MISSING, "OPEN").await;
        raw = raw.max(raw_rate(&database.pool, clients).await);
        database.drop().await;
    }
    let database = ground.database().await;
    stored::fill(&database, WINDOWS, SLOTS, MISSING, "OPEN").await;
    let start = Instant::now();
    let monitor = Process::spawn("monitor", &[("DATABASE_URL", database.url.clone())]);
    while database.count("SELECT EXISTS (SELECT 1 FROM windows WHERE status = 'OPEN')").await == 1 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let rate = f64::from(WINDOWS) / start.elapsed().as_secs_f64();
    let missing = database.count("SELECT COUNT(*) FROM events WHERE status = 'MISSING'").await;
    assert_eq!(missing, u64::from(WINDOWS * MISSING));
    drop(monitor);
    database.drop().await;
    table.add("sweep_rate", rate, "windows/s", Target::None);
    table.add("sweep_ratio", rate / raw, "of raw", Target::AtLeast(0.5));
}

/// Does the same UPDATE of the windows and the same INSERT of missing slots, knowing all beforehand.
async fn raw_rate(pool: &MySqlPool, clients: u32) -> f64 {
    let start = Instant::now();
    let mut closing = JoinSet::new();
    let share = WINDOWS / clients;
    for client in 0..clients {
        let pool = pool.clone();
        closing.spawn(async move {
            for first in (client * share..(client + 1) * share).step_by(RAW_STEP as usize) {
                close(&pool, first + 1).await;
            }
        });
    }
    closing.join_all().await;
    f64::from(WINDOWS) / start.elapsed().as_secs_f64()
}

async fn close(pool: &MySqlPool, first: u32) {
    let windows = first..first + RAW_STEP;
    let now = DateTime::<Utc>::from(heartbeat::clock::now());
    let mut transaction = pool.begin().await.unwrap();
    let mut insert = QueryBuilder::<MySql>::new(
        "INSERT INTO events (window_id, slot, status, report_timestamp, recorded_at, deliveries) ",
    );
    let missing =
        windows.clone().flat_map(|id| (SLOTS - MISSING..SLOTS).map(move |slot| (id, slot)));
    insert.push_values(missing, |mut values, (id, slot)| {
        values
            .push_bind(id)
            .push_bind(slot)
            .push("'MISSING'")
            .push_bind(now)
            .push_bind(now)
            .push("0");
    });
    insert.build().execute(&mut *transaction).await.unwrap();
    sqlx::query(
        "UPDATE windows SET status = 'ALERT', received_reports = ?, missing_reports = ?, \
         closed_at = ?, updated_at = ? WHERE id >= ? AND id < ?",
    )
    .bind(SLOTS - MISSING)
    .bind(MISSING)
    .bind(now)
    .bind(now)
    .bind(windows.start)
    .bind(windows.end)
    .execute(&mut *transaction)
    .await
    .unwrap();
    transaction.commit().await.unwrap();
}
