//! Windows that another monitor kept before us: their rows as they are then, closed ones too.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use sqlx::MySql;
use sqlx::query_builder::QueryBuilder;
use uuid::Uuid;

use super::closing::{End, remember};
use super::counting::mark_uncounted;
use super::windows::windows_by_uuid;
use super::{chunks, push_list};
use crate::db;
use crate::monitor::window::{Counts, WindowStatus};
use crate::wire::{Timestamp, Window};

/// A window as another monitor left it.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::monitor) struct PastWindow {
    pub(in crate::monitor) window: Window,
    pub(in crate::monitor) created_at: Timestamp,
    pub(in crate::monitor) updated_at: Timestamp,
    /// How it ended; none while it is open.
    pub(in crate::monitor) end: Option<PastEnd>,
}

/// How a window ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::monitor) struct PastEnd {
    pub(in crate::monitor) counts: Counts,
    pub(in crate::monitor) closed_at: Timestamp,
}

/// Inserts windows that are not known, with the history of those that are closed, which are to be
/// counted. Answers their rows. All of them came through the stream.
///
/// One that has become known meanwhile is an error, as [`db::Error::is_taken`].
pub(in crate::monitor) async fn insert_past_windows(
    connection: &mut db::Connection,
    windows: &[PastWindow],
) -> Result<BTreeMap<Uuid, i64>, db::Error> {
    for chunk in chunks(windows) {
        past_rows(chunk).build().execute(&mut *connection).await?;
    }
    let uuids: Vec<_> = windows.iter().map(|past| past.window.uuid).collect();
    let stored = windows_by_uuid(connection, &uuids).await?;
    let rows: BTreeMap<_, _> = stored.into_iter().map(|(uuid, window)| (uuid, window.id)).collect();
    let ends = windows.iter().filter_map(|past| {
        let PastEnd { counts, closed_at: at } = past.end?;
        Some(End { window_id: *rows.get(&past.window.uuid)?, counts, at })
    });
    let mut ends: Vec<End> = ends.collect();
    ends.sort_unstable_by_key(|end| end.window_id);
    remember(connection, &ends).await?;
    let closed: Vec<i64> = ends.iter().map(|end| end.window_id).collect();
    mark_uncounted(connection, &closed).await?;
    Ok(rows)
}

fn past_rows(chunk: &[PastWindow]) -> QueryBuilder<MySql> {
    let mut query = QueryBuilder::<MySql>::new(
        "INSERT INTO windows (window_uuid, service_name, status, window_from, window_to, ends_at, \
         tick_us, expected_reports, received_reports, error_reports, missing_reports, \
         error_status_generado, error_status_no_reportado, via_stream, created_at, updated_at, \
         closed_at) ",
    );
    query.push_values(chunk, |mut values, PastWindow { window, created_at, updated_at, end }| {
        let counts = end.map_or(Counts::default(), |end| end.counts);
        let status = end.map_or(WindowStatus::Open, |end| end.counts.verdict());
        values
            .push_bind(window.uuid.to_string())
            .push_bind(window.service.as_str())
            .push_bind(status.as_sql())
            .push_bind(DateTime::<Utc>::from(window.from()))
            .push_bind(DateTime::<Utc>::from(window.to()))
            .push_bind(DateTime::<Utc>::from(window.ends_at()))
            .push_bind(window.tick().micros())
            .push_bind(window.slots())
            .push_bind(counts.received)
            .push_bind(counts.errors)
            .push_bind(counts.missing)
            .push_bind(window.rates.error_status_generado)
            .push_bind(window.rates.error_status_no_reportado)
            .push("TRUE")
            .push_bind(DateTime::<Utc>::from(*created_at))
            .push_bind(DateTime::<Utc>::from(*updated_at))
            .push_bind(end.map(|end| DateTime::<Utc>::from(end.closed_at)));
    });
    query
}

/// Those of some windows that are open, which they stay until the transaction ends.
pub(in crate::monitor) async fn hold_open(
    connection: &mut db::Connection,
    ids: &[i64],
) -> Result<BTreeSet<i64>, db::Error> {
    let mut open = BTreeSet::new();
    for chunk in chunks(ids) {
        let mut query = QueryBuilder::<MySql>::new("SELECT id FROM windows WHERE id IN ");
        push_list(&mut query, chunk.iter().copied());
        query.push(" AND status = 'OPEN' ORDER BY id FOR UPDATE");
        open.extend(query.build_query_scalar::<i64>().fetch_all(&mut *connection).await?);
    }
    Ok(open)
}
