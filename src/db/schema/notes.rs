//! What is noted of each version, in the table of the driver's own migrations.
//!
//! Older versions of this program wrote it by the driver, and go on reading it.

use std::collections::BTreeMap;

use sqlx::Row;
use sqlx::migrate::{Migrate, MigrateError, Migration};

use super::presence::is_there;
use super::statements::Thing;
use crate::db::{Connection, Error};

/// Where it is noted what was done.
pub(super) const NOTES: &str = "_sqlx_migrations";
/// The time that a version has taken which is begun, as the driver notes it.
const BEGUN: i64 = -1;
/// The same where its first statement was refused; one less for each statement further on.
const REFUSED: i64 = -2;

/// What is noted of a version.
pub(super) struct Noted {
    pub(super) checksum: Vec<u8>,
    pub(super) is_done: bool,
    /// The statement that the database refused when it was tried last.
    pub(super) refused: Option<usize>,
}

/// Makes the table, if need be.
pub(super) async fn create(connection: &mut Connection) -> Result<(), MigrateError> {
    connection.ensure_migrations_table(NOTES).await
}

/// What is noted of each version; nothing without the table, which only a migration makes.
pub(super) async fn all(connection: &mut Connection) -> Result<BTreeMap<i64, Noted>, Error> {
    if !is_there(connection, &[Thing::Table(NOTES.to_owned())]).await? {
        return Ok(BTreeMap::new());
    }
    let sql = "SELECT version, checksum, success, execution_time FROM _sqlx_migrations";
    let rows = sqlx::query(sql).fetch_all(connection).await?;
    let noted = rows.iter().map(|row| {
        let mark: i64 = row.try_get("execution_time")?;
        let noted = Noted {
            checksum: row.try_get("checksum")?,
            is_done: row.try_get("success")?,
            refused: usize::try_from(REFUSED - mark).ok(),
        };
        Ok((row.try_get("version")?, noted))
    });
    noted.collect()
}

/// Notes which statement of a version the database has refused; none while one is tried, after which
/// nobody may know whether it was done.
pub(super) async fn refused(
    connection: &mut Connection,
    migration: &Migration,
    place: Option<usize>,
) -> Result<(), Error> {
    let place = place.and_then(|place| i64::try_from(place).ok());
    sqlx::query("UPDATE _sqlx_migrations SET execution_time = ? WHERE version = ?")
        .bind(place.map_or(BEGUN, |place| REFUSED - place))
        .bind(migration.version)
        .execute(connection)
        .await?;
    Ok(())
}

/// Notes that a version is begun.
pub(super) async fn begun(connection: &mut Connection, migration: &Migration) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (?, ?, FALSE, ?, ?)",
    )
    .bind(migration.version)
    .bind(&*migration.description)
    .bind(&*migration.checksum)
    .bind(BEGUN)
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes that a version is done.
pub(super) async fn done(connection: &mut Connection, migration: &Migration) -> Result<(), Error> {
    sqlx::query("UPDATE _sqlx_migrations SET success = TRUE WHERE version = ?")
        .bind(migration.version)
        .execute(connection)
        .await?;
    Ok(())
}
