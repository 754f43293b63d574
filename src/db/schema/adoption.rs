//! What may be in a database before we are: the first system's tables, and those of strangers.

use anyhow::bail;
use sqlx::Row;
use sqlx::mysql::MySqlRow;

use super::pending::Pending;
use super::presence::is_there;
use super::statements::{Statement, Thing};
use crate::db::{Connection, Error};

/// Tables of the first system's senders, which become ours with their data, and the columns that these
/// write.
const ADOPTED: [(&str, &[&str]); 2] = [
    (
        "report_windows",
        &[
            "window_uuid",
            "service",
            "window_from",
            "window_to",
            "error_status_generado",
            "error_status_no_reportado",
            "created_at",
        ],
    ),
    (
        "report_audit",
        &[
            "id",
            "window_uuid",
            "service",
            "status",
            "window_from",
            "window_to",
            "timestamp",
            "sent_to_queue",
            "created_at",
        ],
    ),
];
/// The version that begins a schema.
const FIRST: i64 = 1;
/// Tables of the first system's monitor. In our schema they are views.
const FIRST_LEDGER: [&str; 2] = ["monitoring_windows", "heartbeat_events"];

/// Refuses a database that holds a table or a view which a version is still to make: it is not ours.
///
/// # Errors
/// A sentence for a person. Nothing is changed then.
pub(super) async fn refuse_strangers(
    connection: &mut Connection,
    pending: &[Pending<'_>],
) -> anyhow::Result<()> {
    let present = tables(connection).await?;
    for version in pending {
        for thing in version.statements.iter().filter_map(Statement::makes) {
            let (Thing::Table(name) | Thing::View(name)) = &thing else { continue };
            let Some(found) = present.iter().find(|table| table.name == *name) else { continue };
            let is_same = found.is_view() == matches!(thing, Thing::View(_));
            if version.is_begun && is_same {
                continue;
            }
            if !found.is_view() && FIRST_LEDGER.contains(&name.as_str()) {
                bail!(
                    "it holds the table {name} of the first system's monitor, and was left as it is: \
                     take an empty database, and take its ledger over with `heartbeat migrate monitor \
                     --adopt-from` and the address of this one"
                );
            }
            bail!(
                "it holds a table or view {name} that is not heartbeat's: take an empty database"
            );
        }
        let is_payments = version.statements.iter().any(adopts_first_tables);
        if version.migration.version == FIRST {
            refuse_other_schema(&present, is_payments)?;
        }
        if is_payments {
            for table in &present {
                check_adopted(connection, table).await?;
            }
        }
    }
    Ok(())
}

/// Refuses a database in which the other schema lives, or the first system's other tables.
fn refuse_other_schema(present: &[Table], is_payments: bool) -> anyhow::Result<()> {
    let is_of_senders = |table: &&Table| is_adopted(&table.name);
    let is_of_monitor = |table: &&Table| FIRST_LEDGER.contains(&table.name.as_str());
    let (found, whose, word) = if is_payments {
        (present.iter().find(is_of_monitor), "monitor", "payments")
    } else {
        (present.iter().find(is_of_senders), "senders", "monitor")
    };
    let Some(Table { name, .. }) = found else { return Ok(()) };
    if !is_payments && present.iter().any(|table| is_of_monitor(&table)) {
        // What is said of a first ledger leads further.
        return Ok(());
    }
    bail!(
        "it holds the table {name} of the {whose}, and was left as it is: is --database-url the address \
         of the {word} database?"
    )
}

/// Whether a statement takes the first senders' tables for its own if they are there.
fn adopts_first_tables(statement: &Statement) -> bool {
    let begins =
        |table| statement.text().starts_with(&format!("CREATE TABLE IF NOT EXISTS {table} "));
    ADOPTED.iter().any(|(table, _)| begins(table))
}

/// Refuses a table that has the name of one of the first senders' and is another.
async fn check_adopted(connection: &mut Connection, table: &Table) -> anyhow::Result<()> {
    let name = &table.name;
    let is_named = |(adopted, _): &&(&str, _)| adopted.eq_ignore_ascii_case(name);
    let Some((adopted, columns)) = ADOPTED.iter().find(is_named) else { return Ok(()) };
    if adopted != name {
        bail!(
            "its table {name} is named in another case than {adopted}, so that it would be left beside a \
             new one: rename it, or take an empty database"
        );
    }
    let Some(engine) = &table.engine else {
        bail!("its {name} is a view and not the first system's table: take an empty database");
    };
    if engine != "InnoDB" {
        bail!(
            "its table {name} is kept by {engine}, which loses what is half written: give `ALTER TABLE \
             {name} ENGINE = InnoDB`, and run `heartbeat migrate payments` again"
        );
    }
    let mut lacking = Vec::new();
    for column in *columns {
        let wanted = Thing::Column(name.clone(), (*column).to_owned());
        if !is_there(connection, &[wanted]).await? {
            lacking.push(*column);
        }
    }
    if !lacking.is_empty() {
        bail!(
            "its table {name} is not as the first system's senders write it, because it lacks {}: add \
             these columns, or take an empty database; nothing was changed",
            lacking.join(", ")
        );
    }
    Ok(())
}

/// A table or a view.
struct Table {
    name: String,
    /// What keeps its rows; none of a view.
    engine: Option<String>,
}

impl Table {
    const fn is_view(&self) -> bool {
        self.engine.is_none()
    }
}

/// The tables and views of the database.
async fn tables(connection: &mut Connection) -> Result<Vec<Table>, Error> {
    let rows = sqlx::query(
        "SELECT CAST(TABLE_NAME AS CHAR) AS name, \
         IF(TABLE_TYPE = 'BASE TABLE', CAST(ENGINE AS CHAR), NULL) AS engine \
         FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE()",
    )
    .fetch_all(connection)
    .await?;
    let table =
        |row: &MySqlRow| Ok(Table { name: row.try_get("name")?, engine: row.try_get("engine")? });
    rows.iter().map(table).collect()
}

/// Adapts a version to what the first senders' program has made: takes foreign keys away before columns
/// change, and keeps the defaults of columns.
///
/// # Errors
/// A sentence for a person, if others refer to these tables, or these to others.
pub(super) async fn adapt(
    connection: &mut Connection,
    version: &mut Pending<'_>,
) -> anyhow::Result<()> {
    if !version.statements.iter().any(changes_first_columns) {
        return Ok(());
    }
    version.before = drop_foreign_keys(connection).await?;
    for statement in &mut version.statements {
        if changes_first_columns(statement) && has_default(connection, statement.table()).await? {
            *statement = keeping_default(statement);
        }
    }
    Ok(())
}

/// What takes the foreign key between the first senders' two tables away: no column changes its type
/// while it is in one. Nobody misses it: a window is stored before its rows, by their program as by
/// ours.
async fn drop_foreign_keys(connection: &mut Connection) -> anyhow::Result<Vec<Statement>> {
    let mut drops = Vec::new();
    for ForeignKey { name, table, refers_to } in foreign_keys(connection).await? {
        if ![&table, &refers_to].iter().all(|table| is_adopted(table)) {
            bail!(
                "the foreign key {name} of table {table} refers to table {refers_to}, so that its \
                 columns cannot become what heartbeat needs: drop that foreign key, and run `heartbeat \
                 migrate payments` again"
            );
        }
        let (table, name) = (quoted(&table), quoted(&name));
        drops.push(Statement(format!("ALTER TABLE {table} DROP FOREIGN KEY {name}")));
    }
    Ok(drops)
}

/// Whether the database itself says when a row of a table was created. A program of the first system
/// may rely on it.
async fn has_default(connection: &mut Connection, table: &str) -> Result<bool, Error> {
    let defaults: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE() \
         AND TABLE_NAME = ? AND COLUMN_NAME = 'created_at' \
         AND LOWER(COLUMN_DEFAULT) LIKE 'current_timestamp%'",
    )
    .bind(table)
    .fetch_one(connection)
    .await?;
    Ok(defaults > 0)
}

/// A statement after which the database goes on to say when a row was created.
fn keeping_default(statement: &Statement) -> Statement {
    let lines = statement.text().lines().map(|line| match line.strip_suffix(',') {
        Some(part) if part.trim_start().starts_with("MODIFY created_at ") => {
            format!("{part} DEFAULT CURRENT_TIMESTAMP(6),")
        }
        _ => line.to_owned(),
    });
    Statement(lines.collect::<Vec<_>>().join("\n"))
}

fn is_adopted(name: &str) -> bool {
    ADOPTED.iter().any(|(table, _)| *table == name)
}

/// Whether a statement changes columns that the first senders' program may have tied together.
fn changes_first_columns(statement: &Statement) -> bool {
    let begins = |table| statement.text().starts_with(&format!("ALTER TABLE {table}\n"));
    ADOPTED.iter().any(|(table, _)| begins(table)) && statement.text().contains("MODIFY ")
}

/// A foreign key.
struct ForeignKey {
    name: String,
    table: String,
    refers_to: String,
}

/// The foreign keys of and to the first senders' tables.
async fn foreign_keys(connection: &mut Connection) -> Result<Vec<ForeignKey>, Error> {
    let rows = sqlx::query(
        "SELECT DISTINCT CAST(CONSTRAINT_NAME AS CHAR) AS name, \
         CAST(TABLE_NAME AS CHAR) AS of_table, CAST(REFERENCED_TABLE_NAME AS CHAR) AS refers_to \
         FROM information_schema.KEY_COLUMN_USAGE WHERE TABLE_SCHEMA = DATABASE() \
         AND REFERENCED_TABLE_NAME IS NOT NULL AND (TABLE_NAME IN (?, ?) \
         OR REFERENCED_TABLE_NAME IN (?, ?))",
    )
    .bind(ADOPTED[0].0)
    .bind(ADOPTED[1].0)
    .bind(ADOPTED[0].0)
    .bind(ADOPTED[1].0)
    .fetch_all(connection)
    .await?;
    let keys = rows.iter().map(|row| {
        Ok(ForeignKey {
            name: row.try_get("name")?,
            table: row.try_get("of_table")?,
            refers_to: row.try_get("refers_to")?,
        })
    });
    keys.collect()
}

/// A name as SQL takes it, whatever is in it.
fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}
