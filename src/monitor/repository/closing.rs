//! The end of a window, its revision, and the history of both.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::query_builder::QueryBuilder;
use sqlx::{MySql, Row};

use super::counting::mark_uncounted;
use super::obstacles::WITHOUT_OBSTACLE;
use super::windows::counts;
use super::{chunks, push_list};
use crate::db;
use crate::monitor::window::{Counts, WindowStatus};
use crate::wire::Timestamp;

/// A change of a window's status, or of its cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::monitor) struct StatusChange {
    pub(in crate::monitor) changed_at: Timestamp,
    pub(in crate::monitor) status: WindowStatus,
    pub(in crate::monitor) received: i32,
    pub(in crate::monitor) missing: i32,
    pub(in crate::monitor) cause: Option<String>,
}

/// The end of a window, or its revision.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) window_id: i64,
    pub(super) counts: Counts,
    pub(super) at: Timestamp,
}

/// Writes the ends of open windows.
pub(in crate::monitor) async fn close(
    connection: &mut db::Connection,
    windows: &[(i64, Counts)],
    now: Timestamp,
) -> Result<(), db::Error> {
    let at = DateTime::<Utc>::from(now);
    // Most windows share their counts with many others.
    let mut alike: BTreeMap<Counts, Vec<i64>> = BTreeMap::new();
    for (id, counts) in windows {
        alike.entry(*counts).or_default().push(*id);
    }
    for (counts, ids) in &alike {
        for chunk in chunks(ids) {
            let mut query = QueryBuilder::<MySql>::new("UPDATE windows SET status = ");
            query.push_bind(counts.verdict().as_sql());
            query.push(", received_reports = ").push_bind(counts.received);
            query.push(", error_reports = ").push_bind(counts.errors);
            query.push(", missing_reports = ").push_bind(counts.missing);
            query.push(", unobserved_reports = ").push_bind(counts.unobserved);
            query.push(", closed_at = ").push_bind(at).push(", updated_at = ").push_bind(at);
            query.push(" WHERE status = 'OPEN' AND id IN ");
            push_list(&mut query, chunk.iter().copied());
            query.build().execute(&mut *connection).await?;
        }
    }
    let ends = windows.iter().map(|(id, counts)| End { window_id: *id, counts: *counts, at: now });
    remember(connection, &ends.collect::<Vec<_>>()).await?;
    let ids: Vec<i64> = windows.iter().map(|(id, _)| *id).collect();
    mark_uncounted(connection, &ids).await
}

/// Counts closed windows again, after heartbeats arrived for slots that they were missing, or after
/// it became known that others will not. Their order must be that of their rows. Answers the status
/// of those that were unobserved before, and are not any more.
pub(in crate::monitor) async fn revise_closed(
    connection: &mut db::Connection,
    ids: &[i64],
    now: Timestamp,
) -> Result<Vec<(i64, WindowStatus)>, db::Error> {
    let mut settled = Vec::new();
    for id in ids {
        let status = revise_one(connection, *id, now).await?;
        settled.extend(status.map(|status| (*id, status)));
    }
    mark_uncounted(connection, ids).await?;
    Ok(settled)
}

/// The lock comes before the count: of two transactions that revise the same window, the second
/// then sees what the first has changed.
async fn revise_one(
    connection: &mut db::Connection,
    id: i64,
    now: Timestamp,
) -> Result<Option<WindowStatus>, db::Error> {
    let before = sqlx::query(
        "SELECT status, missing_reports, unobserved_reports FROM windows WHERE id = ? FOR UPDATE",
    )
    .bind(id)
    .fetch_one(&mut *connection)
    .await?;
    let missing_before: i32 = before.try_get("missing_reports")?;
    let unobserved_before: i32 = before.try_get("unobserved_reports")?;
    let was_unobserved = missing_before > 0 && missing_before == unobserved_before;
    let status_before: String = before.try_get("status")?;
    let counted = counts(connection, &[id]).await?;
    let (counts, _) = counted.get(&id).copied().unwrap_or((Counts::default(), now));
    let status = counts.verdict().as_sql();
    let is_settled = was_unobserved && counts.cause().is_none();
    sqlx::query(
        "UPDATE windows SET status = ?, received_reports = ?, error_reports = ?, \
         missing_reports = ?, unobserved_reports = ?, updated_at = ? \
         WHERE id = ? AND status <> 'OPEN'",
    )
    .bind(status)
    .bind(counts.received)
    .bind(counts.errors)
    .bind(counts.missing)
    .bind(counts.unobserved)
    .bind(DateTime::<Utc>::from(now))
    .bind(id)
    .execute(&mut *connection)
    .await?;
    if status_before != status || was_unobserved != counts.cause().is_some() {
        remember(connection, &[End { window_id: id, counts, at: now }]).await?;
    }
    Ok(is_settled.then(|| counts.verdict()))
}

/// Windows of which it is known by now that what could not be observed will not come, and whose they
/// are, locked for this transaction; none that another transaction holds.
pub(in crate::monitor) async fn claim_unobserved(
    connection: &mut db::Connection,
    due_by: Timestamp,
    limit: u32,
) -> Result<Vec<(i64, String)>, db::Error> {
    let mut query = QueryBuilder::<MySql>::new(
        "SELECT id, service_name FROM windows WHERE unobserved_reports > 0 AND due_at <= ",
    );
    query.push_bind(DateTime::<Utc>::from(due_by)).push(WITHOUT_OBSTACLE);
    query.push(" ORDER BY unobserved_reports, due_at LIMIT ").push_bind(limit);
    query.push(" FOR UPDATE SKIP LOCKED");
    Ok(query.build_query_as().fetch_all(connection).await?)
}

/// Notes that what could not be observed of closed windows is missing indeed. Answers as
/// [`revise_closed`]. A late heartbeat locks the event first and the window second, so that either
/// of the two may have to be tried again.
pub(in crate::monitor) async fn settle_unobserved(
    connection: &mut db::Connection,
    ids: &[i64],
    now: Timestamp,
) -> Result<Vec<(i64, WindowStatus)>, db::Error> {
    for id in ids {
        sqlx::query("UPDATE events SET cause = NULL WHERE window_id = ? AND cause IS NOT NULL")
            .bind(id)
            .execute(&mut *connection)
            .await?;
    }
    revise_closed(connection, ids, now).await
}

/// Adds changes of windows' status to their history.
pub(super) async fn remember(
    connection: &mut db::Connection,
    ends: &[End],
) -> Result<(), db::Error> {
    for chunk in chunks(ends) {
        let mut query = QueryBuilder::<MySql>::new(
            "INSERT INTO window_history (window_id, changed_at, status, received_reports, \
             error_reports, missing_reports, unobserved_reports, cause) ",
        );
        query.push_values(chunk, |mut values, End { window_id, counts, at }| {
            values
                .push_bind(window_id)
                .push_bind(DateTime::<Utc>::from(*at))
                .push_bind(counts.verdict().as_sql())
                .push_bind(counts.received)
                .push_bind(counts.errors)
                .push_bind(counts.missing)
                .push_bind(counts.unobserved)
                .push_bind(counts.cause());
        });
        query.build().execute(&mut *connection).await?;
    }
    Ok(())
}

/// Every change of a window's status, first to last; none while it is open.
pub(in crate::monitor) async fn history(
    connection: &mut db::Connection,
    id: i64,
) -> Result<Vec<StatusChange>, db::Error> {
    let rows = sqlx::query(
        "SELECT changed_at, status, received_reports, missing_reports, cause FROM window_history \
         WHERE window_id = ? ORDER BY id",
    )
    .bind(id)
    .fetch_all(connection)
    .await?;
    let changes = rows.iter().map(|row| {
        let status: String = row.try_get("status")?;
        Ok(StatusChange {
            changed_at: row.try_get::<DateTime<Utc>, _>("changed_at")?.into(),
            status: status.parse().map_err(|error| {
                db::Error::bad_row(format!("table window_history, window {id}, status: {error}"))
            })?,
            received: row.try_get("received_reports")?,
            missing: row.try_get("missing_reports")?,
            cause: row.try_get("cause")?,
        })
    });
    changes.collect()
}
