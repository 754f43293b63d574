//! What the first system's monitor wrote, in a database of its own: read, and never written.
//!
//! Values come as text, whatever the types and collations of the columns are, so that a row which is of
//! no use can be named and harms no other.

use std::collections::BTreeMap;

use sqlx::mysql::MySqlRow;
use sqlx::query_builder::QueryBuilder;
use sqlx::{AssertSqlSafe, MySql, Row};

use super::{chunks, push_list};
use crate::db;

/// Its two tables, and the columns without which their rows say nothing.
const TABLES: [(&str, &[&str]); 2] = [(WINDOWS, WINDOW_COLUMNS), (EVENTS, EVENT_COLUMNS)];
const WINDOWS: &str = "monitoring_windows";
const WINDOW_COLUMNS: &[&str] =
    &["id", "window_uuid", "service_name", "status", "window_from", "window_to"];
const EVENTS: &str = "heartbeat_events";
const EVENT_COLUMNS: &[&str] = &["id", "window_id", "status", "report_timestamp"];

/// The tables and views of a database that have the names of the first system's tables, and the types
/// of their columns, in lower case.
#[derive(Clone, Debug, Default)]
pub(in crate::monitor) struct FirstTables {
    pub(in crate::monitor) tables: Vec<String>,
    pub(in crate::monitor) views: Vec<String>,
    types: BTreeMap<(String, String), String>,
}

impl FirstTables {
    /// What lacks for them to be those of the first system.
    pub(in crate::monitor) fn lacking(&self) -> Vec<String> {
        let mut lacking = Vec::new();
        for (table, columns) in TABLES {
            if self.tables.iter().any(|known| known == table) {
                let absent =
                    columns.iter().filter(|column| self.data_type(table, column).is_none());
                lacking.extend(absent.map(|column| format!("{table}.{column}")));
            } else {
                lacking.push(table.to_owned());
            }
        }
        lacking
    }

    fn data_type(&self, table: &str, column: &str) -> Option<&str> {
        self.types.get(&(table.to_owned(), column.to_owned())).map(String::as_str)
    }

    /// A column as text; null where the table has none of that name.
    fn text(&self, table: &str, column: &str) -> String {
        match self.data_type(table, column) {
            Some(_) => format!("CAST({column} AS CHAR) AS {column}"),
            None => format!("NULL AS {column}"),
        }
    }

    /// A column as a number of double precision; null where the table has none of that name.
    fn number(&self, table: &str, column: &str) -> String {
        match self.data_type(table, column) {
            Some(_) => format!("{column} + 0e0 AS {column}"),
            None => format!("NULL AS {column}"),
        }
    }

    /// Whether a column holds its numbers with the precision of a FLOAT.
    fn is_float(&self, column: &str) -> bool {
        self.data_type(WINDOWS, column) == Some("float")
    }
}

/// A window as it stands there.
#[derive(Clone, Debug, Default)]
pub(in crate::monitor) struct FirstWindow {
    pub(in crate::monitor) id: i64,
    pub(in crate::monitor) window_uuid: Option<String>,
    pub(in crate::monitor) service_name: Option<String>,
    pub(in crate::monitor) status: Option<String>,
    pub(in crate::monitor) window_from: Option<String>,
    pub(in crate::monitor) window_to: Option<String>,
    pub(in crate::monitor) expected_reports: Option<f64>,
    pub(in crate::monitor) received_reports: Option<f64>,
    pub(in crate::monitor) error_status_generado: Option<f64>,
    pub(in crate::monitor) error_status_no_reportado: Option<f64>,
    pub(in crate::monitor) created_at: Option<String>,
    pub(in crate::monitor) updated_at: Option<String>,
    pub(in crate::monitor) closed_at: Option<String>,
}

/// An event as it stands there.
#[derive(Clone, Debug, Default)]
pub(in crate::monitor) struct FirstEvent {
    pub(in crate::monitor) id: i64,
    /// The row of its window.
    pub(in crate::monitor) window_id: i64,
    pub(in crate::monitor) status: Option<String>,
    pub(in crate::monitor) report_timestamp: Option<String>,
    pub(in crate::monitor) error_message: Option<String>,
    pub(in crate::monitor) created_at: Option<String>,
}

impl FirstEvent {
    /// Whether it says that nothing arrived.
    pub(in crate::monitor) fn is_missing(&self) -> bool {
        self.status.as_deref().is_some_and(|status| status.trim().eq_ignore_ascii_case("MISSING"))
    }
}

/// What a database has under the names of the first system's tables.
pub(in crate::monitor) async fn first_tables(
    connection: &mut db::Connection,
) -> Result<FirstTables, db::Error> {
    let mut found = FirstTables::default();
    let tables: Vec<(String, String)> = sqlx::query_as(
        "SELECT LOWER(CAST(table_name AS CHAR)), UPPER(CAST(table_type AS CHAR)) \
         FROM information_schema.tables WHERE table_schema = DATABASE() \
         AND table_name IN ('monitoring_windows', 'heartbeat_events') ORDER BY 1",
    )
    .fetch_all(&mut *connection)
    .await?;
    for (name, kind) in tables {
        let list = if kind == "VIEW" { &mut found.views } else { &mut found.tables };
        list.push(name);
    }
    let columns: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT LOWER(CAST(table_name AS CHAR)), LOWER(CAST(column_name AS CHAR)), \
         LOWER(CAST(data_type AS CHAR)) FROM information_schema.columns \
         WHERE table_schema = DATABASE() \
         AND table_name IN ('monitoring_windows', 'heartbeat_events')",
    )
    .fetch_all(connection)
    .await?;
    found.types = columns.into_iter().map(|(table, name, kind)| ((table, name), kind)).collect();
    Ok(found)
}

/// The windows behind a row, in the order of rows.
pub(in crate::monitor) async fn first_windows(
    connection: &mut db::Connection,
    tables: &FirstTables,
    after: i64,
    limit: u32,
) -> Result<Vec<FirstWindow>, db::Error> {
    let texts = WINDOW_COLUMNS[1..].iter().chain(&["created_at", "updated_at", "closed_at"]);
    let numbers = [
        "expected_reports",
        "received_reports",
        "error_status_generado",
        "error_status_no_reportado",
    ];
    let columns: Vec<String> = texts
        .map(|column| tables.text(WINDOWS, column))
        .chain(numbers.map(|column| tables.number(WINDOWS, column)))
        .collect();
    let statement = format!(
        "SELECT CAST(id AS SIGNED) AS row_id, {} FROM {WINDOWS} WHERE id > ? ORDER BY id LIMIT ?",
        columns.join(", ")
    );
    let asked = sqlx::query(AssertSqlSafe(statement)).bind(after).bind(limit);
    let rows = asked.fetch_all(connection).await?;
    rows.iter().map(|row| first_window(row, tables)).collect()
}

fn first_window(row: &MySqlRow, tables: &FirstTables) -> Result<FirstWindow, db::Error> {
    let rate = |column: &str| -> Result<Option<f64>, db::Error> {
        let rate: Option<f64> = row.try_get(column)?;
        Ok(rate.map(|rate| if tables.is_float(column) { of_float(rate) } else { rate }))
    };
    Ok(FirstWindow {
        id: row.try_get("row_id")?,
        window_uuid: row.try_get("window_uuid")?,
        service_name: row.try_get("service_name")?,
        status: row.try_get("status")?,
        window_from: row.try_get("window_from")?,
        window_to: row.try_get("window_to")?,
        expected_reports: row.try_get("expected_reports")?,
        received_reports: row.try_get("received_reports")?,
        error_status_generado: rate("error_status_generado")?,
        error_status_no_reportado: rate("error_status_no_reportado")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
        closed_at: row.try_get("closed_at")?,
    })
}

/// The number that was written to a FLOAT, of which about seven digits are kept.
fn of_float(number: f64) -> f64 {
    (number * 1e7).round() / 1e7
}

/// The events of windows, in the order of their rows within each.
pub(in crate::monitor) async fn first_events(
    connection: &mut db::Connection,
    tables: &FirstTables,
    windows: &[i64],
) -> Result<Vec<FirstEvent>, db::Error> {
    let texts = ["status", "report_timestamp", "error_message", "created_at"];
    let columns = texts.map(|column| tables.text(EVENTS, column)).join(", ");
    let mut events = Vec::new();
    for chunk in chunks(windows) {
        let mut query = QueryBuilder::<MySql>::new(format!(
            "SELECT CAST(id AS SIGNED) AS row_id, CAST(window_id AS SIGNED) AS of_window, {columns} \
             FROM {EVENTS} WHERE window_id IN "
        ));
        push_list(&mut query, chunk.iter().copied());
        query.push(" ORDER BY id");
        for row in query.build().fetch_all(&mut *connection).await? {
            events.push(FirstEvent {
                id: row.try_get("row_id")?,
                window_id: row.try_get("of_window")?,
                status: row.try_get("status")?,
                report_timestamp: row.try_get("report_timestamp")?,
                error_message: row.try_get("error_message")?,
                created_at: row.try_get("created_at")?,
            });
        }
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_what_was_written_to_its_float() {
        for rate in [0.2623, 0.1, 0.15, 0.0333, 0.3, 1.0, 0.0] {
            #[expect(clippy::cast_possible_truncation, reason = "that is what a FLOAT does")]
            let stored = f64::from(rate as f32);
            assert_eq!(of_float(stored).to_string(), rate.to_string());
        }
    }
}
