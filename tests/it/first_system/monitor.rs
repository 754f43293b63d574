//! The monitor of the first system. It reads a window, changes its counts in memory and writes them
//! back, each step on its own: of two requests at a time, one may not be counted.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use chrono::{DateTime, NaiveDateTime, Utc};
use heartbeat::clock;
use heartbeat::wire::Timestamp;
use serde_json::{Value, json};
use sqlx::mysql::{MySqlPoolOptions, MySqlRow};
use sqlx::{MySqlPool, Row};
use tokio::net::TcpListener;

use super::{number, setting, tables};

/// What a heartbeat must have.
const REQUIRED: [&str; 6] =
    ["service", "status", "window_uuid", "window_from", "window_to", "timestamp"];

type Answer = (StatusCode, Json<Value>);
type Stored<T> = Result<T, sqlx::Error>;

struct Heartbeat {
    service: String,
    window_uuid: String,
    from: NaiveDateTime,
    to: NaiveDateTime,
    timestamp: NaiveDateTime,
    error: Option<String>,
}

/// Serves until it is killed.
pub async fn run() {
    let options = MySqlPoolOptions::new().max_connections(10);
    let pool = options.connect(&setting("DATABASE_URL")).await.unwrap();
    sqlx::raw_sql(tables::MONITOR).execute(&pool).await.unwrap();
    let router = Router::new()
        .route("/health", get(async || Json(json!({"ok": true}))))
        .route("/api/monitor/heartbeats", post(take))
        .route("/api/monitor/windows/sweep", post(sweep))
        .with_state(pool);
    let listener = TcpListener::bind(setting("LISTEN")).await.unwrap();
    println!("\nready");
    axum::serve(listener, router).await.unwrap();
}

async fn take(State(pool): State<MySqlPool>, body: String) -> Answer {
    let body: Value = serde_json::from_str(&body).unwrap_or_default();
    let missing: Vec<&str> =
        REQUIRED.into_iter().filter(|name| body[name].as_str().is_none()).collect();
    if !missing.is_empty() {
        let error = json!({"error": "missing required fields", "fields": missing});
        return (StatusCode::BAD_REQUEST, Json(error));
    }
    match record(&pool, &heartbeat(&body)).await {
        Ok(taken) => (StatusCode::ACCEPTED, Json(taken)),
        Err(error) => failed(&error),
    }
}

fn failed(error: &sqlx::Error) -> Answer {
    eprintln!("the monitor of the first system failed: {error}");
    (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({"error": "internal server error"})))
}

fn heartbeat(body: &Value) -> Heartbeat {
    let text = |name: &str| body[name].as_str().unwrap().to_owned();
    let time = |name: &str| {
        DateTime::<Utc>::from(Timestamp::parse(body[name].as_str().unwrap()).unwrap()).naive_utc()
    };
    Heartbeat {
        service: text("service"),
        window_uuid: text("window_uuid"),
        from: time("window_from"),
        to: time("window_to"),
        timestamp: time("timestamp"),
        error: text("status").strip_prefix("error:").map(str::to_owned),
    }
}

async fn record(pool: &MySqlPool, heartbeat: &Heartbeat) -> Stored<Value> {
    let window = match find(pool, &heartbeat.window_uuid).await? {
        Some(window) => window,
        None => create(pool, heartbeat).await?,
    };
    let (id, service) = (window.get::<i32, _>("id"), &heartbeat.service);
    let received = window.get::<i32, _>("received_reports") + 1;
    let errors = window.get::<i32, _>("error_reports") + i32::from(heartbeat.error.is_some());
    let status = if heartbeat.error.is_some() { "ERROR" } else { "OK" };
    let told = (heartbeat.timestamp, heartbeat.error.as_deref());
    let event = add_event(pool, (id, service), status, told).await?;
    sqlx::query(
        "UPDATE monitoring_windows SET received_reports = ?, error_reports = ?, updated_at = ? \
         WHERE id = ?",
    )
    .bind(received)
    .bind(errors)
    .bind(now())
    .bind(id)
    .execute(pool)
    .await?;
    Ok(json!({
        "heartbeat": {"id": event, "service": service, "status": status.to_lowercase()},
        "window": {"window_uuid": heartbeat.window_uuid, "received_reports": received},
    }))
}

async fn find(pool: &MySqlPool, uuid: &str) -> Stored<Option<MySqlRow>> {
    let find = "SELECT * FROM monitoring_windows WHERE window_uuid = ?";
    sqlx::query(find).bind(uuid).fetch_optional(pool).await
}

/// It expects one heartbeat more than there are ticks in the window.
async fn create(pool: &MySqlPool, heartbeat: &Heartbeat) -> Stored<MySqlRow> {
    let length = (heartbeat.to - heartbeat.from).num_seconds();
    sqlx::query(
        "INSERT INTO monitoring_windows (window_uuid, service_name, status, expected_reports, \
         received_reports, error_reports, missing_reports, window_from, window_to, created_at, \
         updated_at) VALUES (?, ?, 'OPEN', ?, 0, 0, 0, ?, ?, ?, ?)",
    )
    .bind(&heartbeat.window_uuid)
    .bind(&heartbeat.service)
    .bind(length / number("HEARTBEAT_INTERVAL_SECONDS") + 1)
    .bind(heartbeat.from)
    .bind(heartbeat.to)
    .bind(now())
    .bind(now())
    .execute(pool)
    .await?;
    Ok(find(pool, &heartbeat.window_uuid).await?.unwrap())
}

async fn add_event(
    pool: &MySqlPool,
    (window_id, service): (i32, &str),
    status: &str,
    (timestamp, error): (NaiveDateTime, Option<&str>),
) -> Stored<u64> {
    let added = sqlx::query(
        "INSERT INTO heartbeat_events (window_id, service_name, status, report_timestamp, \
         error_message, created_at) VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(window_id)
    .bind(service)
    .bind(status)
    .bind(timestamp)
    .bind(error)
    .bind(now())
    .execute(pool)
    .await?;
    Ok(added.last_insert_id())
}

async fn sweep(State(pool): State<MySqlPool>) -> Answer {
    match close_all(&pool).await {
        Ok(closed) => (StatusCode::OK, Json(json!({"closed_windows": closed}))),
        Err(error) => failed(&error),
    }
}

async fn close_all(pool: &MySqlPool) -> Stored<Vec<String>> {
    let over = "SELECT * FROM monitoring_windows WHERE status = 'OPEN' AND window_to < ?";
    let mut closed = Vec::new();
    for window in sqlx::query(over).bind(now()).fetch_all(pool).await? {
        let id = window.get::<i32, _>("id");
        let [expected, received] =
            ["expected_reports", "received_reports"].map(|name| window.get::<i32, _>(name));
        let missing = (expected - received).max(0);
        for _ in 0..missing {
            let service: String = window.get("service_name");
            add_event(pool, (id, &service), "MISSING", (now(), None)).await?;
        }
        sqlx::query(
            "UPDATE monitoring_windows SET status = ?, missing_reports = ?, closed_at = ?, \
             updated_at = ? WHERE id = ?",
        )
        .bind(if missing > 0 { "ALERT" } else { "CLOSED" })
        .bind(missing)
        .bind(now())
        .bind(now())
        .bind(id)
        .execute(pool)
        .await?;
        closed.push(window.get("window_uuid"));
    }
    Ok(closed)
}

fn now() -> NaiveDateTime {
    DateTime::<Utc>::from(clock::now()).naive_utc()
}
