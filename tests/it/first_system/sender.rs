//! A sender of the first system. It writes down that it has sent a heartbeat, and then sends it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, Utc};
use heartbeat::clock;
use heartbeat::wire::Timestamp;
use serde_json::json;
use sqlx::MySqlPool;
use uuid::Uuid;

use super::{ENOUGH, number, setting, tables};
use crate::support::pool;

/// Its tick, in microseconds. That of the original is 10 s; whole seconds survive its tables.
const TICK_US: i64 = 1_000_000;
/// What it writes of a tick that it leaves out.
const OMITTED: &str = "no_reported";
/// Shares of the ticks that it leaves out, and that it reports as errors.
const RATES: (f64, f64) = (0.1, 0.2);

struct Window {
    uuid: String,
    service: String,
    from: i64,
    to: i64,
}

/// Opens windows one after the other, until it has opened so many or is told that it is enough.
pub async fn run() {
    let pool = pool(&setting("DATABASE_URL")).await;
    sqlx::raw_sql(tables::PAYMENTS).execute(&pool).await.unwrap();
    for _ in 0..number("WINDOWS") {
        let began = clock::now().micros();
        let from = began.div_euclid(TICK_US) * TICK_US + TICK_US;
        let window = Window {
            uuid: Uuid::new_v4().to_string(),
            service: setting("SERVICE_NAME"),
            from,
            to: from + number("TICKS") * TICK_US,
        };
        open(&pool, &window).await;
        println!("\nwindow {}", window.uuid);
        carry_out(&pool, &window, began).await;
        if ENOUGH.load(Ordering::Relaxed) {
            break;
        }
    }
    println!("\ndone");
}

async fn open(pool: &MySqlPool, window: &Window) {
    sqlx::query(
        "INSERT INTO report_windows (window_uuid, service, window_from, window_to, \
         error_status_generado, error_status_no_reportado, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&window.uuid)
    .bind(&window.service)
    .bind(stored(window.from))
    .bind(stored(window.to))
    .bind(RATES.1)
    .bind(RATES.0)
    .bind(stored(clock::now().micros()))
    .execute(pool)
    .await
    .unwrap();
}

/// Each tick when it is due, up to one tick before the time that it states; the last at the window's
/// end, where none is promised any more.
async fn carry_out(pool: &MySqlPool, window: &Window, began: i64) {
    let ticks = (window.to - window.from) / TICK_US;
    let statuses = statuses(ticks);
    for (tick, status) in (0..).zip(statuses) {
        let pause = began + tick * TICK_US - clock::now().micros();
        tokio::time::sleep(Duration::from_micros(pause.try_into().unwrap_or(0))).await;
        let stamp = window.from + tick * TICK_US;
        audit(pool, window, &status, stamp).await;
        if status != OMITTED
            && let Err(error) = send(window, &status, stamp).await
        {
            eprintln!("a sender of the first system could not send: {error}");
        }
    }
}

/// What it plans, one tick more than the window promises, with at least one left out.
fn statuses(ticks: i64) -> Vec<String> {
    let mut drawn: Vec<String> = (0..ticks)
        .map(|tick| match rand::random::<f64>() {
            share if share < RATES.0 => OMITTED.to_owned(),
            share if share < RATES.0 + RATES.1 => format!("error:simulated failure {tick}"),
            _ => "ok".to_owned(),
        })
        .collect();
    if !drawn.iter().any(|status| status == OMITTED) {
        let at = rand::random_range(0..drawn.len());
        OMITTED.clone_into(&mut drawn[at]);
    }
    drawn.push("ok".to_owned());
    drawn
}

async fn audit(pool: &MySqlPool, window: &Window, status: &str, stamp: i64) {
    sqlx::query(
        "INSERT INTO report_audit (window_uuid, service, status, window_from, window_to, \
         timestamp, sent_to_queue, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&window.uuid)
    .bind(&window.service)
    .bind(status)
    .bind(stored(window.from))
    .bind(stored(window.to))
    .bind(stored(stamp))
    .bind(status != OMITTED)
    .bind(stored(clock::now().micros()))
    .execute(pool)
    .await
    .unwrap();
}

/// Once, whatever comes of it.
async fn send(window: &Window, status: &str, stamp: i64) -> redis::RedisResult<String> {
    let payload = json!({
        "service": window.service,
        "status": status,
        "window_uuid": window.uuid,
        "window_from": said(window.from),
        "window_to": said(window.to),
        "timestamp": said(stamp),
    });
    let client = redis::Client::open(setting("REDIS_URL"))?;
    let mut redis = client.get_multiplexed_async_connection().await?;
    let add = ["*", "payload", &payload.to_string()];
    redis::cmd("XADD").arg(setting("STREAM_NAME")).arg(&add).query_async(&mut redis).await
}

/// As Python writes a time in UTC.
fn said(micros: i64) -> String {
    DateTime::<Utc>::from(Timestamp::from_micros(micros))
        .format("%Y-%m-%dT%H:%M:%S+00:00")
        .to_string()
}

fn stored(micros: i64) -> NaiveDateTime {
    DateTime::<Utc>::from(Timestamp::from_micros(micros)).naive_utc()
}
