//! What may be in a database before we are: the first system's tables, and those of strangers.

use std::collections::BTreeSet;

use anyhow::bail;
use sqlx::Row;

use super::Pending;
use super::statements::{Statement, Thing};
use crate::db::{Connection, Error};

/// Tables of the first system's senders, which become ours with their data.
const ADOPTED: [&str; 2] = ["report_windows", "report_audit"];
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
            let is_ours = |is_view: bool| matches!(thing, Thing::View(_)) == is_view;
            let found = present.iter().find(|(table, _)| table == name);
            let Some((_, is_view)) =
                found.filter(|(_, is_view)| !version.is_begun || !is_ours(*is_view))
            else {
                continue;
            };
            if !is_view && FIRST_LEDGER.contains(&name.as_str()) {
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
    }
    Ok(())
}

/// The tables and views of the database, and which of them are views.
async fn tables(connection: &mut Connection) -> Result<BTreeSet<(String, bool)>, Error> {
    let rows = sqlx::query(
        "SELECT CAST(TABLE_NAME AS CHAR) AS name, TABLE_TYPE <> 'BASE TABLE' AS is_view \
         FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE()",
    )
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok((row.try_get("name")?, row.try_get("is_view")?))).collect()
}

/// A foreign key.
struct ForeignKey {
    name: String,
    table: String,
    refers_to: String,
}

/// What must be done before some statements: no column changes its type while it is in a foreign key,
/// and the first senders' program has made one between its two tables, which is taken away. Nobody
/// misses it: a window is stored before its rows, by their program as by ours.
///
/// # Errors
/// A sentence for a person, if others refer to these tables, or these to others.
pub(super) async fn before(
    connection: &mut Connection,
    statements: &[Statement],
) -> anyhow::Result<Vec<Statement>> {
    if !statements.iter().any(changes_first_columns) {
        return Ok(Vec::new());
    }
    let mut drops = Vec::new();
    for ForeignKey { name, table, refers_to } in foreign_keys(connection).await? {
        if ![&table, &refers_to].iter().all(|table| ADOPTED.contains(&table.as_str())) {
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

/// Whether a statement changes columns that the first senders' program may have tied together.
fn changes_first_columns(statement: &Statement) -> bool {
    let begins = |table| statement.text().starts_with(&format!("ALTER TABLE {table}\n"));
    ADOPTED.iter().any(begins) && statement.text().contains("MODIFY ")
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
    .bind(ADOPTED[0])
    .bind(ADOPTED[1])
    .bind(ADOPTED[0])
    .bind(ADOPTED[1])
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
