//! Rows of `events` and `unscheduled_events`: what is known of each slot.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use sqlx::mysql::MySqlRow;
use sqlx::query_builder::QueryBuilder;
use sqlx::{MySql, Row};

use super::counting::mark_uncounted;
use super::{chunks, push_list};
use crate::db;
use crate::monitor::ingest::Arrival;
use crate::wire::Timestamp;

/// One row to write: the first heartbeat of an identity, and how many more the batch held.
#[derive(Clone, Debug)]
pub(in crate::monitor) struct EventRow {
    first: Arrival,
    deliveries: u32,
    conflicts: u32,
}

impl EventRow {
    /// Adds a heartbeat to the rows of a batch. Answers whether it is the first of its identity.
    pub(in crate::monitor) fn add<K: Ord>(
        rows: &mut BTreeMap<K, Self>,
        key: K,
        arrival: &Arrival,
    ) -> bool {
        match rows.entry(key) {
            Entry::Vacant(vacant) => {
                vacant.insert(Self { first: arrival.clone(), deliveries: 1, conflicts: 0 });
                true
            }
            Entry::Occupied(mut row) => {
                let row = row.get_mut();
                let says_the_same = row.first.heartbeat.says_the_same(&arrival.heartbeat);
                row.deliveries += 1;
                row.conflicts += u32::from(!says_the_same);
                false
            }
        }
    }

    /// Whether it reports an error.
    pub(in crate::monitor) fn is_error(&self) -> bool {
        self.first.heartbeat.status.is_error()
    }
}

/// What a slot's row was before a batch wrote to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::monitor) enum Stored {
    /// Not there.
    New,
    /// A heartbeat that had arrived.
    Before,
    /// The verdict that it is missing, which the batch has replaced.
    Late,
}

/// What is known of one slot.
#[derive(Clone, Debug)]
pub(in crate::monitor) struct SlotEvent {
    /// `OK`, `ERROR` or `MISSING`.
    pub(in crate::monitor) status: String,
    pub(in crate::monitor) report_timestamp: Timestamp,
    pub(in crate::monitor) error_message: Option<String>,
    pub(in crate::monitor) stream_id: Option<String>,
    pub(in crate::monitor) recorded_at: Timestamp,
    pub(in crate::monitor) late: bool,
    pub(in crate::monitor) deliveries: i32,
    pub(in crate::monitor) conflicts: i32,
    /// Why it is missing, if not because nothing arrived.
    pub(in crate::monitor) cause: Option<String>,
}

/// The update runs from left to right, and `status` comes last because the others look at it. A row
/// that counted as missing becomes what arrived; any other row keeps its first content.
const ON_EVENT_EXISTS: &str = " ON DUPLICATE KEY UPDATE \
    conflicts = conflicts + VALUES(conflicts) + IF(status = 'MISSING' OR (\
        status = VALUES(status) AND report_timestamp = VALUES(report_timestamp) \
        AND error_message <=> VALUES(error_message)), 0, VALUES(deliveries) - VALUES(conflicts)), \
    late = IF(status = 'MISSING', TRUE, late), \
    report_timestamp = IF(status = 'MISSING', VALUES(report_timestamp), report_timestamp), \
    error_message = IF(status = 'MISSING', VALUES(error_message), error_message), \
    stream_id = IF(status = 'MISSING', VALUES(stream_id), stream_id), \
    recorded_at = IF(status = 'MISSING', VALUES(recorded_at), recorded_at), \
    cause = NULL, \
    deliveries = deliveries + VALUES(deliveries), \
    status = IF(status = 'MISSING', VALUES(status), status)";

const ON_UNSCHEDULED_EXISTS: &str = " ON DUPLICATE KEY UPDATE \
    conflicts = conflicts + VALUES(conflicts) + IF(status = VALUES(status) \
        AND report_timestamp = VALUES(report_timestamp) \
        AND error_message <=> VALUES(error_message), 0, VALUES(deliveries) - VALUES(conflicts)), \
    deliveries = deliveries + VALUES(deliveries)";

/// What is there stays as it is.
const KEEP: &str = " ON DUPLICATE KEY UPDATE slot = slot";

/// Writes heartbeats of which nothing is there yet. Cheaper than what [`insert_events`] does; fails
/// as [`db::Error::is_taken`] if one was there, and the transaction is then of no use any more: it has
/// locked that row for reading, and so may another.
pub(in crate::monitor) async fn insert_new_events(
    connection: &mut db::Connection,
    rows: &BTreeMap<(i64, u32), EventRow>,
) -> Result<(), db::Error> {
    let rows: Vec<_> = rows.iter().map(|((id, slot), row)| (*id, i64::from(*slot), row)).collect();
    insert(connection, "events", "", &rows).await.map(drop)
}

/// Writes heartbeats. Answers the affected rows as MySQL counts them: 1 for a new row, 2 for one
/// that was there.
pub(in crate::monitor) async fn insert_events(
    connection: &mut db::Connection,
    rows: &BTreeMap<(i64, u32), EventRow>,
) -> Result<u64, db::Error> {
    let rows: Vec<_> = rows.iter().map(|((id, slot), row)| (*id, i64::from(*slot), row)).collect();
    insert(connection, "events", ON_EVENT_EXISTS, &rows).await
}

/// Writes heartbeats where nothing is known of their slot, and leaves what is there as it is.
pub(in crate::monitor) async fn insert_lacking_events(
    connection: &mut db::Connection,
    rows: &BTreeMap<(i64, u32), EventRow>,
) -> Result<(), db::Error> {
    let rows: Vec<_> = rows.iter().map(|((id, slot), row)| (*id, i64::from(*slot), row)).collect();
    insert(connection, "events", KEEP, &rows).await.map(drop)
}

/// The same for heartbeats that lie outside of their window's slots.
pub(in crate::monitor) async fn insert_lacking_unscheduled(
    connection: &mut db::Connection,
    rows: &BTreeMap<(i64, i64), EventRow>,
) -> Result<(), db::Error> {
    let rows: Vec<_> = rows.iter().map(|((id, slot), row)| (*id, *slot, row)).collect();
    insert(connection, "unscheduled_events", KEEP, &rows).await.map(drop)
}

/// Writes heartbeats that lie outside of their window's slots. Their windows are to be counted also
/// if they are open: they may be closing now.
pub(in crate::monitor) async fn insert_unscheduled(
    connection: &mut db::Connection,
    rows: &BTreeMap<(i64, i64), EventRow>,
) -> Result<(), db::Error> {
    let windows: BTreeSet<i64> = rows.keys().map(|(id, _)| *id).collect();
    let rows: Vec<_> = rows.iter().map(|((id, slot), row)| (*id, *slot, row)).collect();
    insert(connection, "unscheduled_events", ON_UNSCHEDULED_EXISTS, &rows).await?;
    mark_uncounted(connection, &Vec::from_iter(windows)).await
}

async fn insert(
    connection: &mut db::Connection,
    table: &str,
    on_exists: &str,
    rows: &[(i64, i64, &EventRow)],
) -> Result<u64, db::Error> {
    let mut affected = 0;
    for chunk in chunks(rows) {
        let mut query = QueryBuilder::<MySql>::new("INSERT INTO ");
        query.push(table).push(
            " (window_id, slot, status, report_timestamp, error_message, stream_id, recorded_at, \
             deliveries, conflicts) ",
        );
        query.push_values(chunk, |mut values, (window_id, slot, row)| {
            let Arrival { heartbeat, at } = &row.first;
            values
                .push_bind(window_id)
                .push_bind(slot)
                .push_bind(if heartbeat.status.is_error() { "ERROR" } else { "OK" })
                .push_bind(DateTime::<Utc>::from(heartbeat.timestamp))
                .push_bind(heartbeat.status.message())
                .push_bind(heartbeat.stream_id.map(|id| id.to_string()))
                .push_bind(DateTime::<Utc>::from(*at))
                .push_bind(row.deliveries)
                .push_bind(row.conflicts);
        });
        query.push(on_exists);
        affected += query.build().execute(&mut *connection).await?.rows_affected();
    }
    Ok(affected)
}

/// The verdict that a slot is missing.
#[derive(Clone, Copy, Debug)]
pub(in crate::monitor) struct MissingSlot {
    pub(in crate::monitor) window_id: i64,
    pub(in crate::monitor) slot: u32,
    /// When it was due.
    pub(in crate::monitor) due: Timestamp,
    /// When it was found to be missing.
    pub(in crate::monitor) found_at: Timestamp,
    /// Why it is missing, if not because nothing arrived.
    pub(in crate::monitor) cause: Option<&'static str>,
}

/// Writes verdicts in the order of the primary key, where nothing is known of the slot. Answers
/// whether that was so everywhere; if not, a heartbeat was faster.
pub(in crate::monitor) async fn insert_missing(
    connection: &mut db::Connection,
    missing: &[MissingSlot],
) -> Result<bool, db::Error> {
    let mut all_new = true;
    for chunk in chunks(missing) {
        if !db::is_inserted(missing_rows(chunk).build().execute(&mut *connection).await)? {
            all_new = false;
            let mut query = missing_rows(chunk);
            query.push(KEEP);
            query.build().execute(&mut *connection).await?;
        }
    }
    Ok(all_new)
}

fn missing_rows(chunk: &[MissingSlot]) -> QueryBuilder<MySql> {
    let mut query = QueryBuilder::<MySql>::new(
        "INSERT INTO events \
         (window_id, slot, status, report_timestamp, recorded_at, cause, deliveries) ",
    );
    query.push_values(chunk, |mut values, missing| {
        values
            .push_bind(missing.window_id)
            .push_bind(missing.slot)
            .push("'MISSING'")
            .push_bind(DateTime::<Utc>::from(missing.due))
            .push_bind(DateTime::<Utc>::from(missing.found_at))
            .push_bind(missing.cause)
            .push("0");
    });
    query
}

/// What has arrived of an open window.
#[derive(Clone, Debug, Default)]
pub(in crate::monitor) struct Arrived {
    pub(in crate::monitor) slots: BTreeSet<u32>,
    /// How many of them report an error.
    pub(in crate::monitor) errors: u32,
}

/// What has arrived of open windows; nothing for a window of which nothing has.
pub(in crate::monitor) async fn arrived(
    connection: &mut db::Connection,
    window_ids: &[i64],
) -> Result<HashMap<i64, Arrived>, db::Error> {
    let mut arrived: HashMap<i64, Arrived> = HashMap::with_capacity(window_ids.len());
    for chunk in chunks(window_ids) {
        let mut query = QueryBuilder::<MySql>::new(
            "SELECT window_id, slot, status = 'ERROR' FROM events WHERE window_id IN ",
        );
        push_list(&mut query, chunk.iter().copied());
        for row in query.build().fetch_all(&mut *connection).await? {
            let window = arrived.entry(row.try_get(0)?).or_default();
            window.slots.insert(slot_number(row.try_get(1)?)?);
            window.errors += u32::from(row.try_get::<i64, _>(2)? != 0);
        }
    }
    Ok(arrived)
}

/// What the rows of a batch were before it wrote them. Ask in the same transaction.
pub(in crate::monitor) async fn read_back(
    connection: &mut db::Connection,
    rows: &BTreeMap<(i64, u32), EventRow>,
) -> Result<HashMap<(i64, u32), Stored>, db::Error> {
    let keys: Vec<&(i64, u32)> = rows.keys().collect();
    let mut stored = HashMap::with_capacity(keys.len());
    for chunk in chunks(&keys) {
        let mut query = QueryBuilder::<MySql>::new(
            "SELECT window_id, slot, late, deliveries FROM events WHERE ",
        );
        let mut alternatives = query.separated(" OR ");
        for (window_id, slot) in chunk {
            alternatives.push("(window_id = ");
            alternatives.push_bind_unseparated(window_id);
            alternatives.push_unseparated(" AND slot = ");
            alternatives.push_bind_unseparated(slot);
            alternatives.push_unseparated(")");
        }
        for row in query.build().fetch_all(&mut *connection).await? {
            let slot: i32 = row.try_get("slot")?;
            let key = (row.try_get("window_id")?, slot_number(slot)?);
            let deliveries: i32 = row.try_get("deliveries")?;
            let mine = rows.get(&key).map_or(0, |row| row.deliveries);
            let before = match (i64::from(deliveries) > i64::from(mine), row.try_get("late")?) {
                (true, _) => Stored::Before,
                (false, true) => Stored::Late,
                (false, false) => Stored::New,
            };
            stored.insert(key, before);
        }
    }
    Ok(stored)
}

/// Everything that is known of a window's slots.
pub(in crate::monitor) async fn slot_events(
    connection: &mut db::Connection,
    window_id: i64,
) -> Result<HashMap<u32, SlotEvent>, db::Error> {
    let rows = sqlx::query(
        "SELECT slot, status, report_timestamp, error_message, stream_id, recorded_at, late, \
         deliveries, conflicts, cause FROM events WHERE window_id = ?",
    )
    .bind(window_id)
    .fetch_all(connection)
    .await?;
    rows.iter().map(slot_event).collect()
}

pub(super) fn slot_event(row: &MySqlRow) -> Result<(u32, SlotEvent), db::Error> {
    let event = SlotEvent {
        status: row.try_get("status")?,
        report_timestamp: row.try_get::<DateTime<Utc>, _>("report_timestamp")?.into(),
        error_message: row.try_get("error_message")?,
        stream_id: row.try_get("stream_id")?,
        recorded_at: row.try_get::<DateTime<Utc>, _>("recorded_at")?.into(),
        late: row.try_get("late")?,
        deliveries: row.try_get("deliveries")?,
        conflicts: row.try_get("conflicts")?,
        cause: row.try_get("cause")?,
    };
    Ok((slot_number(row.try_get("slot")?)?, event))
}

pub(super) fn slot_number(slot: i32) -> Result<u32, db::Error> {
    u32::try_from(slot)
        .map_err(|_| db::Error::bad_row(format!("table events, column slot: {slot} is negative")))
}
