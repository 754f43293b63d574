//! The payments services' SQL, on tables that they share with older senders.

mod audit;
mod resending;
mod windows;

use chrono::{DateTime, Utc};
use sqlx::mysql::MySqlRow;
use sqlx::{MySqlPool, Row};

use crate::db;
use crate::wire::Timestamp;

pub(super) use audit::{AuditRow, StoredTick, audit, insert_tick, mark_sent, totals, unsent_ticks};
pub use audit::{AuditTotals, totals_by_window};
pub(super) use resending::{
    Elsewhere, announced_elsewhere, known_redis, note_delivered, published_elsewhere,
    remember_redis,
};
pub use windows::PlannedWindow;
pub(super) use windows::{
    ListedWindow, claim_windows, finish, insert_window, last_continuous_end, list_windows,
    mark_announced, owned_windows, release_leases, renew_leases, windows_of_owner,
};

/// A value bound to a statement.
#[derive(Clone, Debug)]
enum Value {
    Text(String),
    Number(i64),
    Time(Timestamp),
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<Timestamp> for Value {
    fn from(at: Timestamp) -> Self {
        Self::Time(at)
    }
}

/// Runs one statement that changes something, in a transaction of its own. Answers the affected
/// rows.
async fn update(
    pool: &MySqlPool,
    name: &'static str,
    statement: &'static str,
    values: Vec<Value>,
) -> Result<u64, db::Error> {
    db::transaction(pool, name, move |connection| {
        let values = values.clone();
        Box::pin(async move {
            let mut query = sqlx::query(statement);
            for value in values {
                query = match value {
                    Value::Text(text) => query.bind(text),
                    Value::Number(number) => query.bind(number),
                    Value::Time(at) => query.bind(DateTime::<Utc>::from(at)),
                };
            }
            Ok(query.execute(connection).await?.rows_affected())
        })
    })
    .await
}

fn at(row: &MySqlRow, column: &str) -> Result<Timestamp, db::Error> {
    Ok(row.try_get::<DateTime<Utc>, _>(column)?.into())
}

fn bad(column: &str, row: &str, why: &dyn std::fmt::Display) -> db::Error {
    db::Error::bad_row(format!("payments database, column {column}, row {row}: {why}"))
}
