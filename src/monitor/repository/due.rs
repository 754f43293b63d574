//! Which windows may close, which wait, and which is next.

use chrono::{DateTime, Utc};
use sqlx::MySql;
use sqlx::MySqlPool;
use sqlx::query_builder::QueryBuilder;
use uuid::Uuid;

use super::obstacles::WITHOUT_OBSTACLE;
use super::windows::{COLUMNS, stored};
use super::{chunks, push_list};
use crate::db;
use crate::monitor::closing::ClosingRules;
use crate::monitor::window::StoredWindow;
use crate::wire::Timestamp;

/// Most windows, and most slots, that one claim takes.
#[derive(Clone, Copy, Debug)]
pub(in crate::monitor) struct ClaimLimits {
    pub(in crate::monitor) windows: u32,
    pub(in crate::monitor) slots: u32,
}

/// Windows that may close, locked for this transaction; none that another transaction holds. Those
/// that go by the clock come first, then those that the watermark has passed, then those that have
/// been held for too long, each in the order of their end. At least one, if any may close.
pub(in crate::monitor) async fn claim_due(
    connection: &mut db::Connection,
    rules: &ClosingRules,
    limits: ClaimLimits,
) -> Result<Vec<StoredWindow>, db::Error> {
    let mut claimed = Claimed { windows: Vec::new(), slots: 0, limits };
    let at = |instant: Timestamp| DateTime::<Utc>::from(instant);
    let mut by_clock = QueryBuilder::<MySql>::new(COLUMNS);
    by_clock.push("WHERE status = 'OPEN' AND via_stream = FALSE AND due_at <= ");
    by_clock.push_bind(at(rules.by_clock()));
    claimed.add(connection, by_clock).await?;
    let mut by_watermark = QueryBuilder::<MySql>::new(COLUMNS);
    by_watermark.push("WHERE status = 'OPEN' AND via_stream = TRUE AND due_at <= ");
    by_watermark.push_bind(at(rules.by_watermark())).push(WITHOUT_OBSTACLE);
    claimed.add(connection, by_watermark).await?;
    let mut held_too_long = QueryBuilder::<MySql>::new(COLUMNS);
    held_too_long.push("WHERE status = 'OPEN' AND via_stream = TRUE AND held_from_us <= ");
    held_too_long.push_bind(rules.held_too_long_us()).push(" AND due_at <= ");
    held_too_long.push_bind(at(rules.by_clock()));
    claimed.add(connection, held_too_long).await?;
    Ok(claimed.windows)
}

struct Claimed {
    windows: Vec<StoredWindow>,
    slots: u32,
    limits: ClaimLimits,
}

impl Claimed {
    /// Adds what a query finds, as far as there is room.
    async fn add(
        &mut self,
        connection: &mut db::Connection,
        mut query: QueryBuilder<MySql>,
    ) -> Result<(), db::Error> {
        let taken = u32::try_from(self.windows.len()).unwrap_or(u32::MAX);
        let room = self.limits.windows.saturating_sub(taken);
        if room == 0 || self.slots >= self.limits.slots {
            return Ok(());
        }
        query.push(" ORDER BY due_at LIMIT ").push_bind(room).push(" FOR UPDATE SKIP LOCKED");
        for row in &query.build().fetch_all(connection).await? {
            // One row that cannot be read must not keep the others open.
            let Ok(window) = stored(row).inspect_err(|error| tracing::error!(%error, "not closed"))
            else {
                continue;
            };
            self.slots = self.slots.saturating_add(window.window.slots());
            if self.slots > self.limits.slots && !self.windows.is_empty() {
                break;
            }
            // One that has been held may have become due since.
            if self.windows.iter().all(|claimed| claimed.id != window.id) {
                self.windows.push(window);
            }
        }
        Ok(())
    }
}

/// One window, locked for this transaction.
pub(in crate::monitor) async fn lock_window(
    connection: &mut db::Connection,
    uuid: Uuid,
) -> Result<Option<StoredWindow>, db::Error> {
    let mut query = QueryBuilder::<MySql>::new(COLUMNS);
    query.push("WHERE window_uuid = ").push_bind(uuid.to_string()).push(" FOR UPDATE");
    let row = query.build().fetch_optional(connection).await?;
    row.as_ref().map(stored).transpose()
}

/// Open windows that are over by the clock, earliest end first of each kind.
pub(in crate::monitor) async fn over(
    connection: &mut db::Connection,
    now: Timestamp,
    limit: u32,
) -> Result<Vec<StoredWindow>, db::Error> {
    let mut over = Vec::new();
    for via_stream in [false, true] {
        let mut query = QueryBuilder::<MySql>::new(COLUMNS);
        query.push("WHERE status = 'OPEN' AND via_stream = ").push_bind(via_stream);
        query.push(" AND due_at <= ").push_bind(DateTime::<Utc>::from(now));
        query.push(" ORDER BY due_at LIMIT ").push_bind(limit);
        for row in &query.build().fetch_all(&mut *connection).await? {
            over.extend(stored(row).inspect_err(|error| tracing::error!(%error, "not shown")));
        }
    }
    Ok(over)
}

/// When the next window may close: of those that go by the clock, and of those that go by the
/// watermark, without the grace.
pub(in crate::monitor) async fn due_next(
    pool: &MySqlPool,
) -> Result<[Option<Timestamp>; 2], db::Error> {
    let mut next = [None; 2];
    for (via_stream, next) in [false, true].into_iter().zip(&mut next) {
        let due_at: Option<DateTime<Utc>> = sqlx::query_scalar(
            "SELECT MIN(due_at) FROM windows WHERE status = 'OPEN' AND via_stream = ?",
        )
        .bind(via_stream)
        .fetch_one(pool)
        .await?;
        *next = due_at.map(Timestamp::from);
    }
    Ok(next)
}

/// Notes from when on some windows are held that should have closed before an instant; none that
/// another transaction holds. Answers how many.
pub(in crate::monitor) async fn hold(
    connection: &mut db::Connection,
    over: Timestamp,
    running_us: i64,
    limit: u32,
) -> Result<usize, db::Error> {
    let ids: Vec<i64> = sqlx::query_scalar(
        "SELECT id FROM windows WHERE status = 'OPEN' AND via_stream = TRUE \
         AND held_from_us IS NULL AND due_at <= ? ORDER BY due_at LIMIT ? FOR UPDATE SKIP LOCKED",
    )
    .bind(DateTime::<Utc>::from(over))
    .bind(limit)
    .fetch_all(&mut *connection)
    .await?;
    for chunk in chunks(&ids) {
        let mut query = QueryBuilder::<MySql>::new("UPDATE windows SET held_from_us = ");
        query.push_bind(running_us).push(" WHERE id IN ");
        push_list(&mut query, chunk.iter().copied());
        query.build().execute(&mut *connection).await?;
    }
    Ok(ids.len())
}
