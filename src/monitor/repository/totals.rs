//! Rows of `report_totals`, and of the archive in it that outlives its events.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use sqlx::mysql::MySqlRow;
use sqlx::query_builder::QueryBuilder;
use sqlx::{MySql, Row};

use super::{MAX_CHUNK, chunks, filled, push_list};
use crate::db;
use crate::monitor::totals::{Count, Span, Totals};
use crate::wire::{ServiceName, Timestamp};

type Key = (Span, String, Timestamp);

/// Which totals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::monitor) enum Sums {
    /// Those of all windows.
    Live,
    /// The part of them that comes from windows without events.
    Archived,
}

impl Sums {
    /// The table that holds them.
    pub(in crate::monitor) const fn table(self) -> &'static str {
        match self {
            Self::Live => "report_totals",
            Self::Archived => "archived_totals",
        }
    }
}

/// The columns of what is counted.
fn columns() -> String {
    let counts = Count::ALL.map(Count::name).join(", ");
    format!("service_name, begins_at, {counts}, verdicts, latencies")
}

/// Adds to totals. Only whoever has the turn may, so that nobody writes between reading and writing.
pub(in crate::monitor) async fn add_totals(
    connection: &mut db::Connection,
    to: Sums,
    changes: &[(Key, Totals)],
) -> Result<(), db::Error> {
    for chunk in chunks(changes) {
        let before = totals_at(connection, to, chunk).await?;
        let mut query = QueryBuilder::<MySql>::new("INSERT INTO ");
        query.push(to.table()).push(" (span, ").push(columns()).push(") ");
        let mut rows = Vec::with_capacity(chunk.len());
        for (key, change) in chunk {
            let mut totals = before.get(key).cloned().unwrap_or_default();
            totals.add(change, 1);
            let text = |what: serde_json::Result<String>| {
                what.map_err(|error| db::Error::bad_row(format!("totals of {key:?}: {error}")))
            };
            let verdicts = text(serde_json::to_string(&totals.verdicts))?;
            let latencies = text(serde_json::to_string(&totals.latencies))?;
            rows.push((key, totals.counts, verdicts, latencies));
        }
        query.push_values(
            rows,
            |mut values, ((span, service, begin), counts, verdicts, latencies)| {
                values.push_bind(span.as_sql()).push_bind(service.as_str());
                values.push_bind(DateTime::<Utc>::from(*begin));
                for count in counts {
                    values.push_bind(count);
                }
                values.push_bind(verdicts).push_bind(latencies);
            },
        );
        query.push(
            " ON DUPLICATE KEY UPDATE verdicts = VALUES(verdicts), latencies = VALUES(latencies)",
        );
        for name in Count::ALL.map(Count::name) {
            query.push(format!(", {name} = VALUES({name})"));
        }
        query.build().execute(&mut *connection).await?;
    }
    Ok(())
}

/// Copies to the totals what is archived, in the order of the key, behind the last of them. Answers
/// how many rows; none once all are there.
pub(in crate::monitor) async fn restore_archived(
    connection: &mut db::Connection,
    most: u32,
) -> Result<u64, db::Error> {
    let last = "SELECT span, service_name, begins_at FROM report_totals \
         ORDER BY span DESC, service_name DESC, begins_at DESC LIMIT 1";
    let last: Option<(String, String, DateTime<Utc>)> =
        sqlx::query_as(last).fetch_optional(&mut *connection).await?;
    let mut query = QueryBuilder::<MySql>::new("INSERT INTO report_totals (span, ");
    query.push(columns()).push(") SELECT span, ").push(columns()).push(" FROM archived_totals ");
    if let Some((span, service, begin)) = last {
        query.push("WHERE span > ").push_bind(span.clone());
        query.push(" OR (span = ").push_bind(span.clone());
        query.push(" AND service_name > ").push_bind(service.clone());
        query.push(") OR (span = ").push_bind(span).push(" AND service_name = ");
        query.push_bind(service).push(" AND begins_at > ").push_bind(begin).push(") ");
    }
    query.push("ORDER BY span, service_name, begins_at LIMIT ").push_bind(most);
    Ok(query.build().execute(connection).await?.rows_affected())
}

async fn totals_at(
    connection: &mut db::Connection,
    of: Sums,
    changes: &[(Key, Totals)],
) -> Result<HashMap<Key, Totals>, db::Error> {
    let mut query = QueryBuilder::<MySql>::new("SELECT span, ");
    query.push(columns()).push(" FROM ").push(of.table()).push(" WHERE ");
    let mut alternatives = query.separated(" OR ");
    for ((span, service, begin), _) in changes {
        alternatives.push("(span = ").push_bind_unseparated(span.as_sql());
        alternatives.push_unseparated(" AND service_name = ");
        alternatives.push_bind_unseparated(service.as_str());
        alternatives.push_unseparated(" AND begins_at = ");
        alternatives.push_bind_unseparated(DateTime::<Utc>::from(*begin));
        alternatives.push_unseparated(")");
    }
    let mut found = HashMap::with_capacity(changes.len());
    for row in &query.build().fetch_all(connection).await? {
        let name: String = row.try_get("span")?;
        let span = Span::ALL.into_iter().find(|span| span.as_sql() == name);
        let span = span.ok_or_else(|| bad("span", &name))?;
        let (service, begin, totals) = totals(row)?;
        found.insert((span, service, begin), totals);
    }
    Ok(found)
}

/// The totals of spans of one length that begin in a span of time, of one service or of all
/// together, added up.
pub(in crate::monitor) async fn sum(
    connection: &mut db::Connection,
    span: Span,
    service: Option<&ServiceName>,
    (from, to): (Timestamp, Timestamp),
) -> Result<Totals, db::Error> {
    let mut query = QueryBuilder::<MySql>::new("SELECT ");
    query.push(columns()).push(" FROM report_totals WHERE span = ").push_bind(span.as_sql());
    query.push(" AND service_name = ").push_bind(service.map_or("", ServiceName::as_str));
    query.push(" AND begins_at >= ").push_bind(DateTime::<Utc>::from(from));
    query.push(" AND begins_at < ").push_bind(DateTime::<Utc>::from(to));
    let mut sum = Totals::default();
    for row in &query.build().fetch_all(&mut *connection).await? {
        sum.add(&totals(row)?.2, 1);
    }
    Ok(sum)
}

/// How many windows are open, of one service or of all.
pub(in crate::monitor) async fn count_open(
    connection: &mut db::Connection,
    service: Option<&ServiceName>,
) -> Result<i64, db::Error> {
    let mut query =
        QueryBuilder::<MySql>::new("SELECT COUNT(*) FROM windows WHERE status = 'OPEN'");
    if let Some(service) = service {
        query.push(" AND service_name = ").push_bind(service.as_str());
    }
    Ok(query.build_query_scalar().fetch_one(connection).await?)
}

/// Expected, received and error reports of services, in hours that begin at or after an instant.
pub(in crate::monitor) async fn successes(
    connection: &mut db::Connection,
    services: &[String],
    from: Timestamp,
) -> Result<HashMap<String, (i64, i64, i64)>, db::Error> {
    let mut found = HashMap::with_capacity(services.len());
    for chunk in filled(services, MAX_CHUNK) {
        let mut query = QueryBuilder::<MySql>::new(
            "SELECT service_name, CAST(SUM(expected_reports) AS SIGNED), \
             CAST(SUM(received_reports) AS SIGNED), CAST(SUM(error_reports) AS SIGNED) \
             FROM report_totals WHERE span = 'hour' AND begins_at >= ",
        );
        query.push_bind(DateTime::<Utc>::from(from)).push(" AND service_name IN ");
        push_list(&mut query, chunk.into_iter().map(String::as_str));
        query.push(" GROUP BY service_name");
        let rows =
            query.build_query_as::<(String, i64, i64, i64)>().fetch_all(&mut *connection).await?;
        found.extend(
            rows.into_iter()
                .map(|(name, expected, received, errors)| (name, (expected, received, errors))),
        );
    }
    Ok(found)
}

/// Which days to list.
#[derive(Clone, Debug, Default)]
pub(in crate::monitor) struct DayFilter {
    pub(in crate::monitor) service: Option<ServiceName>,
    /// Days that begin at or after this instant.
    pub(in crate::monitor) from: Option<Timestamp>,
    /// Days that begin before this instant.
    pub(in crate::monitor) to: Option<Timestamp>,
    /// Days behind this place of the list.
    pub(in crate::monitor) after: Option<(Timestamp, ServiceName)>,
}

/// A page of the totals of services and days: the latest day first, and its services by name.
pub(in crate::monitor) async fn days(
    connection: &mut db::Connection,
    filter: &DayFilter,
    limit: u32,
) -> Result<Vec<(String, Timestamp, Totals)>, db::Error> {
    let mut query = QueryBuilder::<MySql>::new("SELECT ");
    query.push(columns()).push(" FROM report_totals WHERE span = 'day' AND service_name ");
    match &filter.service {
        Some(service) => query.push("= ").push_bind(service.as_str()),
        None => query.push("<> ''"),
    };
    if let Some(from) = filter.from {
        query.push(" AND begins_at >= ").push_bind(DateTime::<Utc>::from(from));
    }
    if let Some(to) = filter.to {
        query.push(" AND begins_at < ").push_bind(DateTime::<Utc>::from(to));
    }
    if let Some((day, service)) = &filter.after {
        let day = DateTime::<Utc>::from(*day);
        query.push(" AND begins_at <= ").push_bind(day);
        query.push(" AND (begins_at < ").push_bind(day);
        query.push(" OR service_name > ").push_bind(service.as_str()).push(")");
    }
    query.push(" ORDER BY begins_at DESC, service_name LIMIT ").push_bind(limit);
    query.build().fetch_all(connection).await?.iter().map(totals).collect()
}

fn totals(row: &MySqlRow) -> Result<(String, Timestamp, Totals), db::Error> {
    let mut counts = [0; Count::ALL.len()];
    for (count, name) in counts.iter_mut().zip(Count::ALL.map(Count::name)) {
        *count = row.try_get(name)?;
    }
    let totals =
        Totals { counts, verdicts: json(row, "verdicts")?, latencies: json(row, "latencies")? };
    let begin = row.try_get::<DateTime<Utc>, _>("begins_at")?.into();
    Ok((row.try_get("service_name")?, begin, totals))
}

fn json<T: DeserializeOwned>(row: &MySqlRow, column: &str) -> Result<T, db::Error> {
    let text: String = row.try_get(column)?;
    serde_json::from_str(&text).map_err(|error| bad(column, &error))
}

fn bad(column: &str, why: &dyn std::fmt::Display) -> db::Error {
    db::Error::bad_row(format!("table report_totals, column {column}: {why}"))
}
