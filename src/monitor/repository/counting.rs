//! Rows that lead from closed windows to totals: marks of what is to be counted, what each window
//! has added, and whose turn it is.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use sqlx::mysql::MySqlRow;
use sqlx::query_builder::QueryBuilder;
use sqlx::{MySql, MySqlPool, Row};

use super::windows::{COLUMNS, stored};
use super::{begin_anew, chunks, push_list};
use crate::db;
use crate::monitor::totals::{Added, ArrivedSlot, CountedSlot};
use crate::monitor::window::StoredWindow;
use crate::verdict::Verdict;
use crate::wire::Timestamp;

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
    /// While all closed windows are counted anew: those up to this one have been.
    pub(in crate::monitor) recounted_to: Option<i64>,
    /// Slices that begin before this instant are not kept.
    pub(in crate::monitor) slices_from: Timestamp,
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

/// Waits for the turn.
pub(in crate::monitor) async fn await_turn(
    connection: &mut db::Connection,
) -> Result<Turn, db::Error> {
    let row = sqlx::query(
        "SELECT epoch, recounted_to, slices_from FROM counting WHERE id = 1 FOR UPDATE",
    )
    .fetch_one(connection)
    .await?;
    turn(&row)
}

fn turn(row: &MySqlRow) -> Result<Turn, db::Error> {
    Ok(Turn {
        epoch: row.try_get("epoch")?,
        recounted_to: row.try_get("recounted_to")?,
        slices_from: row.try_get::<DateTime<Utc>, _>("slices_from")?.into(),
    })
}

/// Whether all closed windows are being counted anew.
pub(in crate::monitor) async fn is_recounting(pool: &MySqlPool) -> Result<bool, db::Error> {
    let recounting = "SELECT recounted_to IS NOT NULL FROM counting WHERE id = 1";
    Ok(sqlx::query_scalar(recounting).fetch_one(pool).await?)
}

/// Empties the totals but for what is archived, and has every closed window counted anew.
pub(in crate::monitor) async fn begin_recount(
    connection: &mut db::Connection,
) -> Result<(), db::Error> {
    await_turn(connection).await?;
    begin_anew(connection).await?;
    sqlx::query("UPDATE counting SET epoch = epoch + 1, recounted_to = 0 WHERE id = 1")
        .execute(connection)
        .await?;
    Ok(())
}

/// Notes how far the closed windows have been counted anew; none if all of them have.
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

/// Marks, oldest first: their number, and the window.
pub(in crate::monitor) async fn marks(
    connection: &mut db::Connection,
    limit: u32,
) -> Result<Vec<(i64, i64)>, db::Error> {
    let marks = sqlx::query_as("SELECT id, window_id FROM uncounted_windows ORDER BY id LIMIT ?");
    Ok(marks.bind(limit).fetch_all(connection).await?)
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

/// Those of some windows that have closed and whose events are kept, by their rows. One that cannot be
/// read is left out.
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
            if let Ok(window) =
                stored(row).inspect_err(|error| tracing::error!(%error, "not counted"))
            {
                found.insert(window.id, window);
            }
        }
    }
    Ok(found)
}

/// A heartbeat that may be the last of its service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::monitor) struct LastHeartbeat {
    /// The sender's clock.
    pub(in crate::monitor) timestamp: Timestamp,
    /// The monitor's clock.
    pub(in crate::monitor) recorded_at: Timestamp,
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
        added.add_window(&windows[id], unscheduled.get(id).copied().unwrap_or(0));
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
    Ok((slot, Some(LastHeartbeat { timestamp, recorded_at, stream_id })))
}

async fn unscheduled(
    connection: &mut db::Connection,
    ids: &[i64],
) -> Result<HashMap<i64, i64>, db::Error> {
    let mut counted = HashMap::new();
    for chunk in chunks(ids) {
        let mut query = QueryBuilder::<MySql>::new(
            "SELECT window_id, COUNT(*) FROM unscheduled_events WHERE window_id IN ",
        );
        push_list(&mut query, chunk.iter().copied());
        query.push(" GROUP BY window_id");
        counted.extend(query.build_query_as::<(i64, i64)>().fetch_all(&mut *connection).await?);
    }
    Ok(counted)
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

/// Windows of which it is time to ask both ledgers why slots are missing.
pub(in crate::monitor) async fn to_judge(
    pool: &MySqlPool,
    now: Timestamp,
    limit: u32,
) -> Result<Vec<i64>, db::Error> {
    let due = "SELECT window_id FROM counted_windows WHERE judge_at <= ? ORDER BY judge_at LIMIT ?";
    let due = sqlx::query_scalar(due).bind(DateTime::<Utc>::from(now)).bind(limit);
    Ok(due.fetch_all(pool).await?)
}

/// Takes away when to judge some windows.
pub(in crate::monitor) async fn forget_to_judge(
    connection: &mut db::Connection,
    ids: &BTreeSet<i64>,
) -> Result<(), db::Error> {
    let ids: Vec<i64> = ids.iter().copied().collect();
    for chunk in chunks(&ids) {
        let mut query = QueryBuilder::<MySql>::new(
            "UPDATE counted_windows SET judge_at = NULL WHERE window_id IN ",
        );
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
    const IS_LATER: &str = "(VALUES(report_timestamp) > report_timestamp OR \
         (VALUES(report_timestamp) = report_timestamp AND VALUES(recorded_at) > recorded_at))";
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
            "recorded_at = CASE WHEN VALUES(report_timestamp) > report_timestamp THEN \
             VALUES(recorded_at) WHEN VALUES(report_timestamp) = report_timestamp THEN \
             GREATEST(recorded_at, VALUES(recorded_at)) ELSE recorded_at END, \
             report_timestamp = GREATEST(report_timestamp, VALUES(report_timestamp))",
        );
        query.build().execute(&mut *connection).await?;
    }
    Ok(())
}
