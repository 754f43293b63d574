//! Rows that lead from closed windows to totals: marks of what is to be counted, what each window
//! has added, and whose turn it is.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use sqlx::mysql::MySqlRow;
use sqlx::query_builder::QueryBuilder;
use sqlx::{MySql, Row};

use super::windows::{COLUMNS, stored, unscheduled};
use super::{chunks, push_list, restore_archived};
use crate::db;
use crate::monitor::totals::{Added, ArrivedSlot, CountedSlot};
use crate::monitor::window::StoredWindow;
use crate::verdict::Verdict;
use crate::wire::Timestamp;

/// What stands for how far a rebuild has come while the totals are emptied.
const EMPTYING: i64 = -1;
/// The same while what is archived is copied to them.
const RESTORING: i64 = -2;
/// Most totals that are deleted or copied at a time.
const REFILLED_AT_ONCE: u32 = 5_000;

/// Notes that windows are to be counted, in the transaction that closes or changes them. It only
/// ever adds rows, so that nobody waits for anybody.
pub(in crate::monitor) async fn mark_uncounted(
    connection: &mut db::Connection,
    windows: &[i64],
) -> Result<(), db::Error> {
    for chunk in chunks(windows) {
        let mut query = QueryBuilder::<MySql>::new("INSERT INTO uncounted_windows (window_id) ");
        query.push_values(chunk, |mut values, id| {
            values.push_bind(id);
        });
        query.build().execute(&mut *connection).await?;
    }
    Ok(())
}

/// The right to count, which ends with the transaction.
#[derive(Clone, Copy, Debug)]
pub(in crate::monitor) struct Turn {
    /// Of the rebuild that began last.
    pub(in crate::monitor) epoch: i32,
    /// While all closed windows are counted anew: those up to this one have been marked for it.
    pub(in crate::monitor) recounted_to: Option<i64>,
    /// Slices that begin before this instant are not kept.
    pub(in crate::monitor) slices_from: Timestamp,
}

impl Turn {
    /// Whether the totals are being emptied or begun with what is archived, so that nothing may be
    /// added to them.
    pub(in crate::monitor) fn is_refilling(&self) -> bool {
        matches!(self.recounted_to, Some(EMPTYING | RESTORING))
    }
}

/// Takes the turn, unless another monitor has it.
pub(in crate::monitor) async fn take_turn(
    connection: &mut db::Connection,
) -> Result<Option<Turn>, db::Error> {
    let row = sqlx::query(
        "SELECT epoch, recounted_to, slices_from FROM counting WHERE id = 1 FOR UPDATE SKIP LOCKED",
    )
    .fetch_optional(connection)
    .await?;
    row.as_ref().map(turn).transpose()
}

fn turn(row: &MySqlRow) -> Result<Turn, db::Error> {
    Ok(Turn {
        epoch: row.try_get("epoch")?,
        recounted_to: row.try_get("recounted_to")?,
        slices_from: row.try_get::<DateTime<Utc>, _>("slices_from")?.into(),
    })
}

/// Whether all closed windows are being counted anew.
pub(in crate::monitor) async fn is_recounting(
    connection: &mut db::Connection,
) -> Result<bool, db::Error> {
    let recounting = "SELECT recounted_to IS NOT NULL FROM counting WHERE id = 1";
    Ok(sqlx::query_scalar(recounting).fetch_one(connection).await?)
}

/// Has the totals emptied but for what is archived, and then every closed window counted anew.
pub(in crate::monitor) async fn begin_recount(
    connection: &mut db::Connection,
) -> Result<(), db::Error> {
    sqlx::query("UPDATE counting SET epoch = epoch + 1, recounted_to = ? WHERE id = 1")
        .bind(EMPTYING)
        .execute(connection)
        .await?;
    Ok(())
}

/// Deletes some of the totals that are being emptied. Once there are none, copies some of what is
/// archived. Once that is done, counting anew begins.
pub(in crate::monitor) async fn refill_some(
    connection: &mut db::Connection,
    turn: Turn,
) -> Result<(), db::Error> {
    let (moved, then) = if turn.recounted_to == Some(EMPTYING) {
        let some = "DELETE FROM report_totals ORDER BY span, service_name, begins_at LIMIT ?";
        let deleted = sqlx::query(some).bind(REFILLED_AT_ONCE).execute(&mut *connection).await?;
        (deleted.rows_affected(), RESTORING)
    } else {
        (restore_archived(connection, REFILLED_AT_ONCE).await?, 0)
    };
    if moved == 0 {
        store_recounted(connection, Some(then)).await?;
    }
    Ok(())
}

/// Notes how far the closed windows have been marked for being counted anew; none if all of them
/// have been counted.
pub(in crate::monitor) async fn store_recounted(
    connection: &mut db::Connection,
    recounted_to: Option<i64>,
) -> Result<(), db::Error> {
    sqlx::query("UPDATE counting SET recounted_to = ? WHERE id = 1")
        .bind(recounted_to)
        .execute(connection)
        .await?;
    Ok(())
}

/// Marks, oldest first: their number, and the window. Where there are no others, one that was set
/// aside and is to be tried again, alone.
pub(in crate::monitor) async fn marks(
    connection: &mut db::Connection,
    limit: u32,
    now: Timestamp,
) -> Result<Vec<(i64, i64)>, db::Error> {
    let fresh = "SELECT id, window_id FROM uncounted_windows WHERE not_before IS NULL \
        ORDER BY id LIMIT ?";
    let fresh = sqlx::query_as(fresh).bind(limit).fetch_all(&mut *connection).await?;
    if !fresh.is_empty() {
        return Ok(fresh);
    }
    let again = "SELECT id, window_id FROM uncounted_windows WHERE not_before <= ? \
        ORDER BY not_before LIMIT 1";
    Ok(sqlx::query_as(again).bind(DateTime::<Utc>::from(now)).fetch_all(connection).await?)
}

/// Sets a mark aside until an instant, because its window cannot be counted.
pub(in crate::monitor) async fn set_mark_aside(
    connection: &mut db::Connection,
    mark: i64,
    not_before: Timestamp,
) -> Result<(), db::Error> {
    sqlx::query("UPDATE uncounted_windows SET not_before = ? WHERE id = ?")
        .bind(DateTime::<Utc>::from(not_before))
        .bind(mark)
        .execute(connection)
        .await?;
    Ok(())
}

/// How many marks there are, but no more than `most`.
pub(in crate::monitor) async fn count_marks(
    connection: &mut db::Connection,
    most: u32,
) -> Result<i64, db::Error> {
    let counted = "SELECT COUNT(*) FROM (SELECT 1 FROM uncounted_windows LIMIT ?) u";
    Ok(sqlx::query_scalar(counted).bind(most).fetch_one(connection).await?)
}

/// Takes marks away.
pub(in crate::monitor) async fn delete_marks(
    connection: &mut db::Connection,
    marks: &[i64],
) -> Result<(), db::Error> {
    for chunk in chunks(marks) {
        let mut query = QueryBuilder::<MySql>::new("DELETE FROM uncounted_windows WHERE id IN ");
        push_list(&mut query, chunk.iter().copied());
        query.build().execute(&mut *connection).await?;
    }
    Ok(())
}

/// Closed windows behind a row, in the order of their rows.
pub(in crate::monitor) async fn closed_after(
    connection: &mut db::Connection,
    id: i64,
    limit: u32,
) -> Result<Vec<i64>, db::Error> {
    let closed = "SELECT id FROM windows WHERE id > ? AND status <> 'OPEN' ORDER BY id LIMIT ?";
    Ok(sqlx::query_scalar(closed).bind(id).bind(limit).fetch_all(connection).await?)
}

/// Those of some windows that have closed and whose events are kept, by their rows.
pub(in crate::monitor) async fn closed_windows(
    connection: &mut db::Connection,
    ids: &BTreeSet<i64>,
) -> Result<BTreeMap<i64, StoredWindow>, db::Error> {
    let ids: Vec<i64> = ids.iter().copied().collect();
    let mut found = BTreeMap::new();
    for chunk in chunks(&ids) {
        let mut query = QueryBuilder::<MySql>::new(COLUMNS);
        query.push("WHERE status <> 'OPEN' AND events_kept = TRUE AND id IN ");
        push_list(&mut query, chunk.iter().copied());
        for row in &query.build().fetch_all(&mut *connection).await? {
            let window = stored(row)?;
            found.insert(window.id, window);
        }
    }
    Ok(found)
}

/// A heartbeat that may be the last of its service: the last that arrived, by the monitor's clock.
/// A sender's clock may be ahead.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::monitor) struct LastHeartbeat {
    /// The monitor's clock.
    pub(in crate::monitor) recorded_at: Timestamp,
    /// The sender's clock.
    pub(in crate::monitor) timestamp: Timestamp,
    pub(in crate::monitor) stream_id: Option<String>,
}

/// What windows add to the totals as their events are now, and the last heartbeat of each service.
/// `judged` is what both ledgers said of slots that are missing.
pub(in crate::monitor) async fn add_up(
    connection: &mut db::Connection,
    windows: &BTreeMap<i64, StoredWindow>,
    judged: &HashMap<(i64, u32), Verdict>,
) -> Result<(BTreeMap<i64, Added>, BTreeMap<String, LastHeartbeat>), db::Error> {
    let ids: Vec<i64> = windows.keys().copied().collect();
    let mut added: BTreeMap<i64, Added> = ids.iter().map(|id| (*id, Added::default())).collect();
    let mut last: BTreeMap<String, LastHeartbeat> = BTreeMap::new();
    for chunk in chunks(&ids) {
        let mut query = QueryBuilder::<MySql>::new(
            "SELECT window_id, slot, status, late, cause IS NOT NULL AS unobserved, \
             report_timestamp, recorded_at, stream_id FROM events WHERE window_id IN ",
        );
        push_list(&mut query, chunk.iter().copied());
        let mut rows = query.build().fetch(&mut *connection);
        while let Some(row) = rows.try_next().await? {
            let id: i64 = row.try_get("window_id")?;
            let (Some(window), Some(added)) = (windows.get(&id), added.get_mut(&id)) else {
                continue;
            };
            let (slot, heartbeat) = counted_slot(&row)?;
            added.add_slot(window, &slot, judged.get(&(id, slot.slot)).copied());
            let Some(heartbeat) = heartbeat else { continue };
            let service = window.window.service.as_str();
            if last.get(service).is_none_or(|last| *last < heartbeat) {
                last.insert(service.to_owned(), heartbeat);
            }
        }
    }
    let unscheduled = unscheduled(connection, &ids).await?;
    for (id, added) in &mut added {
        added.add_window(&windows[id], unscheduled.get(id).copied().unwrap_or(0).into());
    }
    Ok((added, last))
}

fn counted_slot(row: &MySqlRow) -> Result<(CountedSlot, Option<LastHeartbeat>), db::Error> {
    let slot = super::events::slot_number(row.try_get("slot")?)?;
    let status: String = row.try_get("status")?;
    if status == "MISSING" {
        let is_unobserved = row.try_get("unobserved")?;
        return Ok((CountedSlot { slot, arrived: None, is_unobserved }, None));
    }
    let timestamp = Timestamp::from(row.try_get::<DateTime<Utc>, _>("report_timestamp")?);
    let recorded_at = Timestamp::from(row.try_get::<DateTime<Utc>, _>("recorded_at")?);
    let arrived = ArrivedSlot {
        is_error: status == "ERROR",
        is_late: row.try_get("late")?,
        latency_us: recorded_at.micros() - timestamp.micros(),
    };
    let slot = CountedSlot { slot, arrived: Some(arrived), is_unobserved: false };
    let stream_id = row.try_get("stream_id")?;
    Ok((slot, Some(LastHeartbeat { recorded_at, timestamp, stream_id })))
}

/// What windows have added to the totals of an epoch so far; nothing for one that has not.
pub(in crate::monitor) async fn added_before(
    connection: &mut db::Connection,
    windows: &BTreeMap<i64, StoredWindow>,
    epoch: i32,
) -> Result<BTreeMap<i64, Added>, db::Error> {
    let ids: Vec<i64> = windows.keys().copied().collect();
    let mut found = BTreeMap::new();
    for chunk in chunks(&ids) {
        let mut query = QueryBuilder::<MySql>::new(
            "SELECT window_id, added FROM counted_windows WHERE epoch = ",
        );
        query.push_bind(epoch).push(" AND window_id IN ");
        push_list(&mut query, chunk.iter().copied());
        for (id, added) in
            query.build_query_as::<(i64, String)>().fetch_all(&mut *connection).await?
        {
            let added = serde_json::from_str(&added).map_err(|error| {
                db::Error::bad_row(format!("table counted_windows, row {id}, added: {error}"))
            })?;
            found.insert(id, added);
        }
    }
    Ok(found)
}

/// Stores what windows have added to the totals of an epoch, and when to judge each.
pub(in crate::monitor) async fn store_added(
    connection: &mut db::Connection,
    epoch: i32,
    added: &[(i64, &Added, Option<Timestamp>)],
) -> Result<(), db::Error> {
    for chunk in chunks(added) {
        let mut rows = Vec::with_capacity(chunk.len());
        for (id, added, judge_at) in chunk {
            let text = serde_json::to_string(added)
                .map_err(|error| db::Error::bad_row(format!("totals of window {id}: {error}")))?;
            rows.push((id, text, judge_at.map(DateTime::<Utc>::from)));
        }
        let mut query = QueryBuilder::<MySql>::new(
            "INSERT INTO counted_windows (window_id, epoch, added, judge_at) ",
        );
        query.push_values(rows, |mut values, (id, text, judge_at)| {
            values.push_bind(id).push_bind(epoch).push_bind(text).push_bind(judge_at);
        });
        query.push(
            " ON DUPLICATE KEY UPDATE epoch = VALUES(epoch), added = VALUES(added), \
             judge_at = VALUES(judge_at)",
        );
        query.build().execute(&mut *connection).await?;
    }
    Ok(())
}

/// Windows of which it is time to ask both ledgers why slots are missing, the newest first, locked
/// for this transaction; none that another transaction holds.
pub(in crate::monitor) async fn to_judge(
    connection: &mut db::Connection,
    now: Timestamp,
    limit: u32,
) -> Result<Vec<i64>, db::Error> {
    let due = "SELECT window_id FROM counted_windows WHERE judge_at <= ? \
        ORDER BY judge_at DESC, window_id DESC LIMIT ? FOR UPDATE SKIP LOCKED";
    let due = sqlx::query_scalar(due).bind(DateTime::<Utc>::from(now)).bind(limit);
    Ok(due.fetch_all(connection).await?)
}

/// Notes when to judge some windows; none stands for never.
pub(in crate::monitor) async fn set_judge_at(
    connection: &mut db::Connection,
    ids: &[i64],
    judge_at: Option<Timestamp>,
) -> Result<(), db::Error> {
    for chunk in chunks(ids) {
        let mut query = QueryBuilder::<MySql>::new("UPDATE counted_windows SET judge_at = ");
        query.push_bind(judge_at.map(DateTime::<Utc>::from)).push(" WHERE window_id IN ");
        push_list(&mut query, chunk.iter().copied());
        query.build().execute(&mut *connection).await?;
    }
    Ok(())
}

/// Stores the last heartbeat of each service, unless a later one is known.
pub(in crate::monitor) async fn store_last(
    connection: &mut db::Connection,
    last: &BTreeMap<String, LastHeartbeat>,
) -> Result<(), db::Error> {
    const IS_LATER: &str = "(VALUES(recorded_at) > recorded_at OR \
         (VALUES(recorded_at) = recorded_at AND VALUES(report_timestamp) > report_timestamp))";
    let rows: Vec<(&String, &LastHeartbeat)> = last.iter().collect();
    for chunk in chunks(&rows) {
        let mut query = QueryBuilder::<MySql>::new(
            "INSERT INTO last_heartbeats (service_name, report_timestamp, recorded_at, stream_id) ",
        );
        query.push_values(chunk, |mut values, (service, last)| {
            values
                .push_bind(service.as_str())
                .push_bind(DateTime::<Utc>::from(last.timestamp))
                .push_bind(DateTime::<Utc>::from(last.recorded_at))
                .push_bind(last.stream_id.as_deref());
        });
        // It runs from left to right: the time of recording is compared before it changes.
        query.push(" ON DUPLICATE KEY UPDATE ");
        query.push(format!("stream_id = IF({IS_LATER}, VALUES(stream_id), stream_id), "));
        query.push(
            "report_timestamp = CASE WHEN VALUES(recorded_at) > recorded_at THEN \
             VALUES(report_timestamp) WHEN VALUES(recorded_at) = recorded_at THEN \
             GREATEST(report_timestamp, VALUES(report_timestamp)) ELSE report_timestamp END, \
             recorded_at = GREATEST(recorded_at, VALUES(recorded_at))",
        );
        query.build().execute(&mut *connection).await?;
    }
    Ok(())
}
