//! Finding and deleting what is kept no longer, a bounded number of rows at a time.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use chrono::{DateTime, Utc};
use sqlx::query_builder::QueryBuilder;
use sqlx::{MySql, MySqlExecutor, MySqlPool};

use super::windows::{COLUMNS, stored};
use super::{Sums, chunks, push_list};
use crate::db;
use crate::monitor::totals::{Added, Count};
use crate::monitor::window::StoredWindow;
use crate::wire::Timestamp;

/// Closed windows whose events are kept and that were over by an instant, oldest first. Those of
/// which something could not be observed are left until the truth is known. `behind` is the last one
/// of a page before; each comes with the instant at which it was over.
pub(in crate::monitor) async fn old_windows(
    connection: &mut db::Connection,
    before: Timestamp,
    behind: Option<(i64, Timestamp)>,
    limit: u32,
) -> Result<Vec<(i64, Timestamp)>, db::Error> {
    let mut query = QueryBuilder::<MySql>::new(
        "SELECT id, over_since FROM windows WHERE events_kept = TRUE AND over_since <= ",
    );
    query.push_bind(DateTime::<Utc>::from(before));
    if let Some((id, over_since)) = behind {
        let over_since = DateTime::<Utc>::from(over_since);
        query.push(" AND over_since >= ").push_bind(over_since);
        query.push(" AND (over_since > ").push_bind(over_since);
        query.push(" OR id > ").push_bind(id).push(")");
    }
    query.push(" AND unobserved_reports = 0 ORDER BY over_since, id LIMIT ").push_bind(limit);
    let rows = query.build_query_as::<(i64, DateTime<Utc>)>().fetch_all(connection).await?;
    Ok(rows.into_iter().map(|(id, over_since)| (id, over_since.into())).collect())
}

/// What time it is by the database's clock.
pub(in crate::monitor) async fn database_clock(pool: &MySqlPool) -> Result<Timestamp, db::Error> {
    let now: DateTime<Utc> = sqlx::query_scalar("SELECT UTC_TIMESTAMP(6)").fetch_one(pool).await?;
    Ok(now.into())
}

/// Those of some windows that are still as [`old_windows`] has them, locked; none that another
/// transaction holds.
pub(in crate::monitor) async fn claim_old(
    connection: &mut db::Connection,
    ids: &[i64],
) -> Result<BTreeMap<i64, StoredWindow>, db::Error> {
    let mut claimed = BTreeMap::new();
    for chunk in chunks(ids) {
        let mut query = QueryBuilder::<MySql>::new(COLUMNS);
        query.push("WHERE id IN ");
        push_list(&mut query, chunk.iter().copied());
        query.push(
            " AND status <> 'OPEN' AND events_kept = TRUE AND unobserved_reports = 0 \
             FOR UPDATE SKIP LOCKED",
        );
        for row in &query.build().fetch_all(&mut *connection).await? {
            if let Ok(window) =
                stored(row).inspect_err(|error| tracing::error!(%error, "not pruned"))
            {
                claimed.insert(window.id, window);
            }
        }
    }
    Ok(claimed)
}

/// Windows that are to be counted, also those that were set aside; none if there are so many marks
/// beside those.
pub(in crate::monitor) async fn marked(
    connection: &mut db::Connection,
    most: u32,
) -> Result<Option<HashSet<i64>>, db::Error> {
    let waiting = "SELECT COUNT(*) FROM (SELECT 1 FROM uncounted_windows WHERE not_before IS NULL \
         LIMIT ?) u";
    let waiting: i64 = sqlx::query_scalar(waiting).bind(most).fetch_one(&mut *connection).await?;
    if waiting >= most.into() {
        return Ok(None);
    }
    let marked = sqlx::query_scalar("SELECT window_id FROM uncounted_windows");
    Ok(Some(marked.fetch_all(connection).await?.into_iter().collect()))
}

/// Those of some windows that have been counted in an epoch; with what they added, unless both ledgers
/// are to be asked by an instant why slots of them are missing, or nobody can read what they added.
pub(in crate::monitor) async fn counted(
    connection: &mut db::Connection,
    ids: &[i64],
    epoch: i32,
    to_judge: Timestamp,
) -> Result<BTreeMap<i64, Option<Added>>, db::Error> {
    let mut found = BTreeMap::new();
    for chunk in chunks(ids) {
        let mut query =
            QueryBuilder::<MySql>::new("SELECT window_id, added, COALESCE(judge_at <= ");
        query.push_bind(DateTime::<Utc>::from(to_judge));
        query.push(", FALSE) FROM counted_windows WHERE epoch = ").push_bind(epoch);
        query.push(" AND window_id IN ");
        push_list(&mut query, chunk.iter().copied());
        let rows =
            query.build_query_as::<(i64, String, bool)>().fetch_all(&mut *connection).await?;
        for (id, added, is_to_judge) in rows {
            let added = serde_json::from_str(&added).inspect_err(
                |error| tracing::error!(window = id, %error, "not pruned: what it added is unreadable"),
            );
            found.insert(id, added.ok().filter(|_| !is_to_judge));
        }
    }
    Ok(found)
}

/// Takes the events of windows out of the ledger, and notes that they are to be deleted.
pub(in crate::monitor) async fn let_go(
    connection: &mut db::Connection,
    windows: &BTreeMap<i64, Added>,
) -> Result<(), db::Error> {
    let mut alike: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for (id, added) in windows {
        let unscheduled = added.slices().map(|(_, totals)| totals.of(Count::Unscheduled)).sum();
        alike.entry(unscheduled).or_default().push(*id);
    }
    for (unscheduled, ids) in &alike {
        for chunk in chunks(ids) {
            let mut query = QueryBuilder::<MySql>::new(
                "UPDATE windows SET events_kept = FALSE, unscheduled_reports = ",
            );
            query.push_bind(unscheduled).push(" WHERE id IN ");
            push_list(&mut query, chunk.iter().copied());
            query.build().execute(&mut *connection).await?;
        }
    }
    let ids: Vec<i64> = windows.keys().copied().collect();
    for chunk in chunks(&ids) {
        let mut query = QueryBuilder::<MySql>::new("INSERT INTO windows_to_empty (window_id) ");
        query.push_values(chunk, |mut values, id| {
            values.push_bind(id);
        });
        query.build().execute(&mut *connection).await?;
    }
    delete_of(connection, "counted_windows", &ids, u64::MAX).await?;
    Ok(())
}

/// Windows whose events are to be deleted, locked; none that another transaction holds.
pub(in crate::monitor) async fn claim_to_empty(
    connection: &mut db::Connection,
    limit: u32,
) -> Result<Vec<i64>, db::Error> {
    let claimed = "SELECT window_id FROM windows_to_empty ORDER BY window_id LIMIT ? \
         FOR UPDATE SKIP LOCKED";
    Ok(sqlx::query_scalar(claimed).bind(limit).fetch_all(connection).await?)
}

/// Deletes rows of windows in a table that names them by `window_id`, so many at the most. Answers
/// how many; fewer than that, and none is left.
pub(in crate::monitor) async fn delete_of(
    connection: &mut db::Connection,
    table: &str,
    ids: &[i64],
    most: u64,
) -> Result<u64, db::Error> {
    let mut deleted = 0;
    for chunk in chunks(ids) {
        if deleted >= most {
            break;
        }
        let mut query = QueryBuilder::<MySql>::new("DELETE FROM ");
        query.push(table).push(" WHERE window_id IN ");
        push_list(&mut query, chunk.iter().copied());
        query.push(" LIMIT ").push_bind(most - deleted);
        deleted += query.build().execute(&mut *connection).await?.rows_affected();
    }
    Ok(deleted)
}

/// Windows without events that were over by an instant, oldest first.
pub(in crate::monitor) async fn empty_windows(
    pool: &MySqlPool,
    before: Timestamp,
    limit: u32,
) -> Result<Vec<i64>, db::Error> {
    let empty = "SELECT id FROM windows WHERE events_kept = FALSE AND over_since <= ? \
         ORDER BY over_since LIMIT ?";
    let empty = sqlx::query_scalar(empty).bind(DateTime::<Utc>::from(before)).bind(limit);
    Ok(empty.fetch_all(pool).await?)
}

/// Up to when windows ended that may be gone.
pub(in crate::monitor) async fn gone_until(
    executor: impl MySqlExecutor<'_>,
) -> Result<Timestamp, db::Error> {
    let gone = "SELECT windows_gone_until FROM retention WHERE id = 1";
    let gone: DateTime<Utc> = sqlx::query_scalar(gone).fetch_one(executor).await?;
    Ok(gone.into())
}

/// The same, which stays so until the transaction ends.
pub(in crate::monitor) async fn hold_gone_until(
    connection: &mut db::Connection,
) -> Result<Timestamp, db::Error> {
    let gone = "SELECT windows_gone_until FROM retention WHERE id = 1 LOCK IN SHARE MODE";
    let gone: DateTime<Utc> = sqlx::query_scalar(gone).fetch_one(connection).await?;
    Ok(gone.into())
}

/// Notes that windows which ended up to an instant may be gone.
pub(in crate::monitor) async fn store_gone_until(
    connection: &mut db::Connection,
    until: Timestamp,
) -> Result<(), db::Error> {
    let until = DateTime::<Utc>::from(until);
    sqlx::query(
        "UPDATE retention SET windows_gone_until = ? WHERE id = 1 AND windows_gone_until < ?",
    )
    .bind(until)
    .bind(until)
    .execute(connection)
    .await?;
    Ok(())
}

/// Those of some windows without events whose last row is deleted, by their uuid, locked; none that
/// another transaction holds.
pub(in crate::monitor) async fn claim_empty(
    connection: &mut db::Connection,
    ids: &[i64],
) -> Result<BTreeMap<i64, String>, db::Error> {
    let mut claimed = BTreeMap::new();
    for chunk in chunks(ids) {
        let mut query =
            QueryBuilder::<MySql>::new("SELECT id, window_uuid FROM windows WHERE id IN ");
        push_list(&mut query, chunk.iter().copied());
        query.push(" AND events_kept = FALSE FOR UPDATE SKIP LOCKED");
        claimed.extend(query.build_query_as::<(i64, String)>().fetch_all(&mut *connection).await?);
    }
    for chunk in chunks(ids) {
        let mut query = QueryBuilder::<MySql>::new(
            "SELECT window_id FROM windows_to_empty WHERE window_id IN ",
        );
        push_list(&mut query, chunk.iter().copied());
        for id in query.build_query_scalar::<i64>().fetch_all(&mut *connection).await? {
            claimed.remove(&id);
        }
    }
    Ok(claimed)
}

/// Deletes what is known of dead letters of windows, so many rows at the most.
pub(in crate::monitor) async fn delete_letters_of(
    connection: &mut db::Connection,
    uuids: &[&str],
    most: u64,
) -> Result<u64, db::Error> {
    let mut deleted = 0;
    for chunk in chunks(uuids) {
        if deleted >= most {
            break;
        }
        let mut query =
            QueryBuilder::<MySql>::new("DELETE FROM dead_letters WHERE window_uuid IN ");
        push_list(&mut query, chunk.iter().copied());
        query.push(" LIMIT ").push_bind(most - deleted);
        deleted += query.build().execute(&mut *connection).await?.rows_affected();
    }
    Ok(deleted)
}

/// Deletes windows.
pub(in crate::monitor) async fn delete_windows(
    connection: &mut db::Connection,
    ids: &[i64],
) -> Result<u64, db::Error> {
    let mut deleted = 0;
    for chunk in chunks(ids) {
        let mut query = QueryBuilder::<MySql>::new("DELETE FROM windows WHERE id IN ");
        push_list(&mut query, chunk.iter().copied());
        deleted += query.build().execute(&mut *connection).await?.rows_affected();
    }
    Ok(deleted)
}

/// Deletes what is known of dead letters that belong to no window that is known. Looks at so many of
/// those that were set aside before an instant, the oldest; the letters of a window go with it.
pub(in crate::monitor) async fn delete_stray_letters(
    connection: &mut db::Connection,
    before: Timestamp,
    most: u64,
) -> Result<u64, db::Error> {
    let stray = "SELECT l.stream, l.stream_id FROM (SELECT stream, stream_id, window_uuid \
         FROM dead_letters WHERE dead_at <= ? ORDER BY dead_at LIMIT ?) l \
         LEFT JOIN windows w ON w.window_uuid = l.window_uuid WHERE w.id IS NULL";
    let stray = sqlx::query_as::<_, (String, String)>(stray);
    let stray = stray.bind(DateTime::<Utc>::from(before)).bind(most);
    let mut deleted = 0;
    for chunk in chunks(&stray.fetch_all(&mut *connection).await?) {
        let mut query = QueryBuilder::<MySql>::new("DELETE FROM dead_letters WHERE ");
        let mut keys = query.separated(" OR ");
        for (stream, stream_id) in chunk {
            keys.push("(stream = ").push_bind_unseparated(stream);
            keys.push_unseparated(" AND stream_id = ").push_bind_unseparated(stream_id);
            keys.push_unseparated(")");
        }
        deleted += query.build().execute(&mut *connection).await?.rows_affected();
    }
    Ok(deleted)
}

/// Notes from when on slices are kept and counted. Only whoever has the turn may.
pub(in crate::monitor) async fn store_slices_from(
    connection: &mut db::Connection,
    from: Timestamp,
) -> Result<(), db::Error> {
    sqlx::query("UPDATE counting SET slices_from = ? WHERE id = 1")
        .bind(DateTime::<Utc>::from(from))
        .execute(connection)
        .await?;
    Ok(())
}

/// Deletes slices that begin before those that are kept, so many at the most. Nobody counts in them
/// any more.
pub(in crate::monitor) async fn delete_slices(
    connection: &mut db::Connection,
    of: Sums,
    before: Timestamp,
    most: u64,
) -> Result<u64, db::Error> {
    // The key is asked for by the index that has the order, which a DELETE cannot be told to use.
    let mut old = QueryBuilder::<MySql>::new("SELECT begins_at, service_name FROM ");
    old.push(of.table()).push(" FORCE INDEX (report_totals_by_time) WHERE span = 'slice' ");
    old.push("AND begins_at < ").push_bind(DateTime::<Utc>::from(before));
    old.push(" ORDER BY begins_at LIMIT ").push_bind(most);
    let old = old.build_query_as::<(DateTime<Utc>, String)>();
    let old = old.fetch_all(&mut *connection).await?;
    let mut deleted = 0;
    for chunk in chunks(&old) {
        let mut query = QueryBuilder::<MySql>::new("DELETE FROM ");
        query.push(of.table()).push(" WHERE ");
        let mut keys = query.separated(" OR ");
        for (begin, service) in chunk {
            keys.push("(span = 'slice' AND service_name = ").push_bind_unseparated(service);
            keys.push_unseparated(" AND begins_at = ").push_bind_unseparated(begin);
            keys.push_unseparated(")");
        }
        deleted += query.build().execute(&mut *connection).await?.rows_affected();
    }
    Ok(deleted)
}

/// Since when the oldest window that is closed is over, of those with events and of all.
pub(in crate::monitor) async fn oldest_kept(
    pool: &MySqlPool,
) -> Result<[Option<Timestamp>; 2], db::Error> {
    let oldest = "SELECT over_since FROM windows WHERE events_kept = ? AND over_since IS NOT NULL \
         ORDER BY over_since LIMIT 1";
    let mut found = [None; 2];
    for (events_kept, found) in [true, false].into_iter().zip(&mut found) {
        let oldest = sqlx::query_scalar::<_, DateTime<Utc>>(oldest).bind(events_kept);
        *found = oldest.fetch_optional(pool).await?.map(Timestamp::from);
    }
    let [with_events, without] = found;
    Ok([with_events, with_events.into_iter().chain(without).min()])
}

/// Those of some windows whose events are kept, which stays so until the transaction ends.
pub(in crate::monitor) async fn hold_kept(
    connection: &mut db::Connection,
    ids: &BTreeSet<i64>,
) -> Result<BTreeSet<i64>, db::Error> {
    let ids: Vec<i64> = ids.iter().copied().collect();
    let mut kept = BTreeSet::new();
    for chunk in chunks(&ids) {
        let mut query =
            QueryBuilder::<MySql>::new("SELECT id, events_kept FROM windows WHERE id IN ");
        push_list(&mut query, chunk.iter().copied());
        query.push(" ORDER BY id FOR UPDATE");
        let rows = query.build_query_as::<(i64, bool)>().fetch_all(&mut *connection).await?;
        kept.extend(rows.into_iter().filter(|(_, kept)| *kept).map(|(id, _)| id));
    }
    Ok(kept)
}

/// Whether the events of a window are kept.
pub(in crate::monitor) async fn are_events_kept(
    connection: &mut db::Connection,
    id: i64,
) -> Result<bool, db::Error> {
    let kept = sqlx::query_scalar("SELECT events_kept FROM windows WHERE id = ?").bind(id);
    Ok(kept.fetch_optional(connection).await?.unwrap_or(false))
}
