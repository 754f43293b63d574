//! What is known of each service: its windows, and its last heartbeat.

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use sqlx::mysql::MySqlRow;
use sqlx::query_builder::QueryBuilder;
use sqlx::{MySql, Row};

use super::counting::LastHeartbeat;
use super::{MAX_CHUNK, filled, push_list};
use crate::db;
use crate::monitor::window::WindowStatus;
use crate::wire::Timestamp;

/// Most services, or windows, that one statement asks for one by one. A statement has its table open as
/// often as it names it, and MySQL keeps 250 tables open for a connection and those beside it: where
/// it needs more, it opens them anew each time.
const NAMES_AT_ONCE: usize = 64;
/// Most open windows of a service in which a heartbeat is looked for.
const OPEN_LOOKED_AT: u32 = 16;

/// A service that has windows.
#[derive(Clone, Debug)]
pub(in crate::monitor) struct KnownService {
    pub(in crate::monitor) name: String,
    /// The open window that started last.
    pub(in crate::monitor) open: Option<CurrentWindow>,
    /// How far the sender's clock is behind the stream's, in microseconds, at the most, by the
    /// window that started last.
    pub(in crate::monitor) clock_offset_us: Option<i64>,
    pub(in crate::monitor) last: Option<LastHeartbeat>,
}

/// A window in which heartbeats are due.
#[derive(Clone, Debug)]
pub(in crate::monitor) struct CurrentWindow {
    pub(in crate::monitor) uuid: String,
    pub(in crate::monitor) from: Timestamp,
    pub(in crate::monitor) to: Timestamp,
    pub(in crate::monitor) expected: i32,
}

/// A page of services by name, behind a name.
pub(in crate::monitor) async fn services(
    connection: &mut db::Connection,
    after: &str,
    now: Timestamp,
    limit: u32,
) -> Result<Vec<KnownService>, db::Error> {
    let names = names(connection, after, limit).await?;
    let latest = latest_windows(connection, &names, Which::Any, now).await?;
    let mut counted = last_counted(connection, &names).await?;
    // Nearly always the window that started last is the open one, and something of it has arrived.
    let mut open = latest.clone();
    open.retain(|_, window| window.is_open);
    let others = latest_windows(connection, &missing(&names, &open), Which::Open, now).await?;
    open.extend(others.into_iter().filter(|(_, window)| window.is_open));
    let mut heard = last_of_open(connection, &ids(&open)).await?;
    let mut current = open.clone();
    current.retain(|_, window| heard.contains_key(&window.id));
    let unheard = missing(open.keys(), &current);
    let others = latest_heard(connection, &unheard, now).await?;
    heard.extend(last_of_open(connection, &ids(&others)).await?);
    current.extend(others);
    let known = names.into_iter().map(|name| {
        let in_open = current.get(&name).and_then(|window| heard.remove(&window.id));
        KnownService {
            clock_offset_us: latest.get(&name).and_then(|window| window.clock_offset_us),
            open: open.remove(&name).map(|window| window.current),
            last: in_open.max(counted.remove(&name)),
            name,
        }
    });
    Ok(known.collect())
}

/// The names that have no window in a list.
fn missing<'n>(
    names: impl IntoIterator<Item = &'n String>,
    windows: &HashMap<String, Found>,
) -> Vec<String> {
    names.into_iter().filter(|name| !windows.contains_key(*name)).cloned().collect()
}

fn ids(windows: &HashMap<String, Found>) -> Vec<i64> {
    windows.values().map(|window| window.id).collect()
}

/// Names behind a name. Each is one step into the windows' index, however many windows there are:
/// MySQL would read the whole index to find them all by one condition.
///
/// A step needs the name before. Services that have been counted give a guess at those, so that all
/// steps are one question; the index itself says what comes behind each, and so what was not guessed.
async fn names(
    connection: &mut db::Connection,
    after: &str,
    limit: u32,
) -> Result<Vec<String>, db::Error> {
    let guessed = "SELECT service_name FROM last_heartbeats WHERE service_name > ? \
        ORDER BY service_name LIMIT ?";
    let mut before: Vec<String> =
        sqlx::query_scalar(guessed).bind(after).bind(limit).fetch_all(&mut *connection).await?;
    before.insert(0, after.to_owned());
    let mut asked = BTreeSet::new();
    let mut found = BTreeSet::new();
    while !before.is_empty() {
        found.extend(next_names(connection, &before).await?);
        asked.extend(before);
        let names = found.iter().take(limit as usize);
        before = names.filter(|name| !asked.contains(*name)).cloned().collect();
    }
    Ok(found.into_iter().take(limit as usize).collect())
}

/// The next name behind each of some names, where there is one.
async fn next_names(
    connection: &mut db::Connection,
    before: &[String],
) -> Result<Vec<String>, db::Error> {
    let mut found = Vec::with_capacity(before.len());
    for chunk in filled(before, NAMES_AT_ONCE) {
        let mut query = QueryBuilder::<MySql>::new("");
        let mut parts = query.separated(" UNION ALL ");
        for name in chunk {
            parts.push("SELECT MIN(service_name) FROM windows WHERE service_name > ");
            parts.push_bind_unseparated(name.as_str());
        }
        let next: Vec<Option<String>> =
            query.build_query_scalar().fetch_all(&mut *connection).await?;
        found.extend(next.into_iter().flatten());
    }
    Ok(found)
}

/// A window as it is found for its service.
#[derive(Clone, Debug)]
struct Found {
    id: i64,
    is_open: bool,
    clock_offset_us: Option<i64>,
    current: CurrentWindow,
}

const COLUMNS: &str = "SELECT id, service_name, window_uuid, status, window_from, window_to, \
    expected_reports, clock_offset_us FROM ";

/// Which windows of a service to look at for the one that started last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Any,
    Open,
}

impl Which {
    /// The beginning of a question about those of one service. The index is named because MySQL would
    /// otherwise read every window of a service.
    const fn windows(self) -> &'static str {
        match self {
            Self::Any => "windows FORCE INDEX (windows_by_service) WHERE service_name = ",
            Self::Open => {
                "windows FORCE INDEX (windows_of_service_by_status) \
                 WHERE status = 'OPEN' AND service_name = "
            }
        }
    }
}

/// The window that started last, of each of some services that have one.
///
/// The latest starts come first, and then, of windows that started at the same time, the one that was
/// stored last: each is one step into the index. Asked for by their order, MySQL would take four times
/// as long.
async fn latest_windows(
    connection: &mut db::Connection,
    names: &[String],
    which: Which,
    now: Timestamp,
) -> Result<HashMap<String, Found>, db::Error> {
    let now = DateTime::<Utc>::from(now);
    let mut ids = Vec::with_capacity(names.len());
    for chunk in filled(names, NAMES_AT_ONCE) {
        let mut query = QueryBuilder::<MySql>::new("");
        let mut parts = query.separated(" UNION ALL ");
        for (number, name) in chunk.iter().enumerate() {
            parts.push(format!("SELECT {number}, MAX(window_from) FROM "));
            parts.push_unseparated(which.windows()).push_bind_unseparated(name.as_str());
            parts.push_unseparated(" AND window_from <= ").push_bind_unseparated(now);
        }
        let query = query.build_query_as::<(i64, Option<DateTime<Utc>>)>();
        let starts =
            query.fetch_all(&mut *connection).await?.into_iter().filter_map(|(number, start)| {
                Some((*chunk.get(usize::try_from(number).ok()?)?, start?))
            });
        ids.extend(last_stored(connection, starts.collect(), which).await?);
    }
    let mut windows = HashMap::with_capacity(ids.len());
    for chunk in filled(&ids, MAX_CHUNK) {
        let mut query = QueryBuilder::<MySql>::new(COLUMNS);
        query.push("windows WHERE id IN ");
        push_list(&mut query, chunk.iter().copied());
        for row in &query.build().fetch_all(&mut *connection).await? {
            windows.extend([found(row)?]);
        }
    }
    Ok(windows)
}

/// Of the windows of each service that started at an instant, the one that was stored last.
async fn last_stored(
    connection: &mut db::Connection,
    starts: Vec<(&String, DateTime<Utc>)>,
    which: Which,
) -> Result<Vec<i64>, db::Error> {
    let mut ids = Vec::with_capacity(starts.len());
    for chunk in filled(&starts, NAMES_AT_ONCE) {
        let mut query = QueryBuilder::<MySql>::new("");
        let mut parts = query.separated(" UNION ALL ");
        for (name, start) in chunk {
            parts.push("SELECT MAX(id) FROM ").push_unseparated(which.windows());
            parts.push_bind_unseparated(name.as_str());
            parts.push_unseparated(" AND window_from = ").push_bind_unseparated(*start);
        }
        let found: Vec<Option<i64>> =
            query.build_query_scalar().fetch_all(&mut *connection).await?;
        ids.extend(found.into_iter().flatten());
    }
    Ok(ids)
}

/// The open window that started last of which something has arrived, among the latest, of each of
/// some services that have one.
async fn latest_heard(
    connection: &mut db::Connection,
    names: &[String],
    now: Timestamp,
) -> Result<HashMap<String, Found>, db::Error> {
    let now = DateTime::<Utc>::from(now);
    let mut windows = HashMap::with_capacity(names.len());
    for chunk in filled(names, NAMES_AT_ONCE) {
        let mut query = QueryBuilder::<MySql>::new("");
        let mut parts = query.separated(" UNION ALL ");
        for name in chunk.into_iter().map(String::as_str) {
            parts.push("(").push_unseparated(COLUMNS).push_unseparated("(");
            parts.push_unseparated(COLUMNS).push_unseparated(Which::Open.windows());
            parts.push_bind_unseparated(name);
            parts.push_unseparated(" AND window_from <= ").push_bind_unseparated(now);
            parts.push_unseparated(" ORDER BY window_from DESC, id DESC LIMIT ");
            parts.push_bind_unseparated(OPEN_LOOKED_AT);
            parts.push_unseparated(") latest WHERE EXISTS (SELECT 1 FROM events e ");
            parts.push_unseparated("WHERE e.window_id = latest.id) ");
            parts.push_unseparated("ORDER BY window_from DESC, id DESC LIMIT 1)");
        }
        for row in &query.build().fetch_all(&mut *connection).await? {
            windows.extend([found(row)?]);
        }
    }
    Ok(windows)
}

fn found(row: &MySqlRow) -> Result<(String, Found), db::Error> {
    let current = CurrentWindow {
        uuid: row.try_get("window_uuid")?,
        from: row.try_get::<DateTime<Utc>, _>("window_from")?.into(),
        to: row.try_get::<DateTime<Utc>, _>("window_to")?.into(),
        expected: row.try_get("expected_reports")?,
    };
    let found = Found {
        id: row.try_get("id")?,
        is_open: row.try_get::<String, _>("status")? == WindowStatus::Open.as_sql(),
        clock_offset_us: row.try_get("clock_offset_us")?,
        current,
    };
    Ok((row.try_get("service_name")?, found))
}

/// The last heartbeats of services in windows that have been counted.
async fn last_counted(
    connection: &mut db::Connection,
    names: &[String],
) -> Result<HashMap<String, LastHeartbeat>, db::Error> {
    let mut counted = HashMap::with_capacity(names.len());
    for chunk in filled(names, MAX_CHUNK) {
        let mut query = QueryBuilder::<MySql>::new(
            "SELECT service_name, report_timestamp, recorded_at, stream_id FROM last_heartbeats \
             WHERE service_name IN ",
        );
        push_list(&mut query, chunk.into_iter().map(String::as_str));
        for row in &query.build().fetch_all(&mut *connection).await? {
            counted.insert(row.try_get("service_name")?, last_heartbeat(row)?);
        }
    }
    Ok(counted)
}

/// The heartbeats of the highest slot of open windows, where none counts as missing yet. Each is one
/// step into the key of events: asked by a join, MySQL would read every event of the windows.
async fn last_of_open(
    connection: &mut db::Connection,
    ids: &[i64],
) -> Result<HashMap<i64, LastHeartbeat>, db::Error> {
    let mut found = HashMap::with_capacity(ids.len());
    for chunk in filled(ids, NAMES_AT_ONCE) {
        let mut query = QueryBuilder::<MySql>::new("");
        let mut parts = query.separated(" UNION ALL ");
        for id in chunk {
            parts.push("(SELECT window_id, status, report_timestamp, recorded_at, stream_id ");
            parts.push_unseparated("FROM events WHERE window_id = ").push_bind_unseparated(*id);
            parts.push_unseparated(" ORDER BY slot DESC LIMIT 1)");
        }
        for row in &query.build().fetch_all(&mut *connection).await? {
            if row.try_get::<String, _>("status")? != "MISSING" {
                found.insert(row.try_get("window_id")?, last_heartbeat(row)?);
            }
        }
    }
    Ok(found)
}

fn last_heartbeat(row: &MySqlRow) -> Result<LastHeartbeat, db::Error> {
    Ok(LastHeartbeat {
        timestamp: row.try_get::<DateTime<Utc>, _>("report_timestamp")?.into(),
        recorded_at: row.try_get::<DateTime<Utc>, _>("recorded_at")?.into(),
        stream_id: row.try_get("stream_id")?,
    })
}
