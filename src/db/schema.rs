//! The schemas of both databases, and bringing one up to date.
//!
//! A migration is done one statement after the other. MySQL and MariaDB do each of these whole or
//! not at all, and commit it at once, so that a process that dies leaves a schema between two
//! statements. A version that was begun is therefore begun again, from its first statement: one that
//! the database refuses because it was done before counts as done, once everything that it leaves is
//! found there. No schema is ever left that only a backup mends.

mod adoption;
mod notes;
mod pending;
mod presence;
mod statements;

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use sqlx::migrate::{Migration, Migrator};
use sqlx::{AssertSqlSafe, MySqlPool};

use self::notes::{NOTES, Noted};
use self::pending::Pending;
use self::presence::is_there;
use self::statements::{Statement, statements};
use super::{Class, Connection, Error};

/// Schema of the payments database.
pub static PAYMENTS_SCHEMA: LazyLock<Schema> =
    LazyLock::new(|| Schema::new(sqlx::migrate!("migrations/payments")));
/// Schema of the monitor database.
pub static MONITOR_SCHEMA: LazyLock<Schema> =
    LazyLock::new(|| Schema::new(sqlx::migrate!("migrations/monitor")));

/// How long to wait for another process that changes the schema, in seconds.
const PATIENCE_SECONDS: u32 = 60;
/// How long a statement waits for those who use its table. Whoever comes after it waits as well.
const LOCK_PATIENCE_SECONDS: u32 = 5;
/// How often a statement is tried that has to wait for others.
const MOST_ATTEMPTS: u32 = 12;
/// Pause before it is tried again, in which the others go on.
const PAUSE: Duration = Duration::from_secs(1);

/// Something was there before that a statement makes: a table, a column, a row of that key, a key; or
/// is gone that it takes away.
const DONE_BEFORE: [u16; 4] = [1050, 1060, 1061, 1091];
/// A row with that key is there.
const ROW_EXISTS: u16 = 1062;
/// Others held the table, or rows of it, for too long.
const LOCK_WAIT_TIMEOUT: u16 = 1205;
/// Numbers of the database, and of its operating system, for a disk that is full.
const DISK_FULL: [u16; 8] = [3, 1005, 1021, 1026, 1030, 1114, 1180, 3675];

/// The versions of a schema, each a migration. Schemas only grow, so that during an upgrade an older
/// program goes on with a newer schema.
#[derive(Debug)]
pub struct Schema {
    migrations: Migrator,
}

impl Schema {
    fn new(migrations: Migrator) -> Self {
        Self { migrations }
    }

    /// Its versions, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Migration> {
        self.migrations.iter()
    }

    /// The versions that are not done.
    fn pending(&self, noted: &BTreeMap<i64, Noted>) -> Vec<Pending<'_>> {
        let pending = self.iter().filter_map(|migration| {
            let noted = noted.get(&migration.version);
            noted.is_none_or(|noted| !noted.is_done).then(|| Pending {
                migration,
                statements: statements(migration.sql.as_str()),
                before: Vec::new(),
                is_begun: noted.is_some(),
                refused: noted.and_then(|noted| noted.refused),
            })
        });
        pending.collect()
    }

    /// Whether what is noted is of this schema.
    fn check(&self, noted: &BTreeMap<i64, Noted>) -> anyhow::Result<()> {
        let is_other = |migration: &&Migration| {
            let noted = noted.get(&migration.version);
            noted.is_some_and(|noted| noted.checksum != *migration.checksum)
        };
        if let Some(Migration { version, .. }) = self.iter().find(is_other) {
            bail!(
                "its table {NOTES} notes version {version} of another program, or of heartbeat's other \
                 schema: each needs a database of its own; nothing was changed"
            );
        }
        Ok(())
    }
}

/// Brings a schema up to date, or checks that it is. `what` names the database to a person, such as
/// "monitor database".
///
/// # Errors
/// A schema that is behind and may not be changed, or cannot be changed.
pub async fn prepare_schema(
    pool: &MySqlPool,
    schema: &'static Schema,
    what: &str,
    may_change: bool,
) -> anyhow::Result<()> {
    let reading = || format!("reading the schema of the {what}");
    let noted = notes::all(&mut *pool.acquire().await?).await.with_context(reading)?;
    schema.check(&noted).with_context(reading)?;
    let pending = schema.pending(&noted);
    let Some(first) = pending.first() else {
        // Nothing is written, so that a role also starts while its database takes no writes.
        return Ok(());
    };
    if may_change {
        return migrate(pool, schema, what).await;
    }
    let how = format!(
        "run `heartbeat migrate {}` with its address as --database-url, or start its role with \
         CREATE_SCHEMA_ON_STARTUP=true",
        word(what)
    );
    let (found, wanted) = (first.migration.version - 1, pending.len());
    if first.is_begun {
        bail!(
            "version {} of the schema of the {what} was begun and not finished: {how}",
            found + 1
        );
    }
    bail!(
        "the schema of the {what} is at version {found} and this program needs {}: {how}",
        found + i64::try_from(wanted).unwrap_or(0)
    )
}

/// Brings a schema up to date. Several processes may do so at once: one works, the others wait.
///
/// # Errors
/// A sentence for a person: what is in the way, and what to do. Whatever was done stays, and the next
/// call goes on from there.
pub async fn migrate(pool: &MySqlPool, schema: &'static Schema, what: &str) -> anyhow::Result<()> {
    let (pool, name) = (pool.clone(), what.to_owned());
    let migrated = tokio::spawn(async move { migrate_alone(&pool, schema, &name).await }).await?;
    migrated.with_context(|| format!("bringing the schema of the {what} up to date"))
}

/// Does what is missing while no other process does.
async fn migrate_alone(
    pool: &MySqlPool,
    schema: &'static Schema,
    what: &str,
) -> anyhow::Result<()> {
    let mut connection = pool.acquire().await?;
    // A server that has a statement of a dead process at work keeps the lock for it.
    let settings = format!(
        "SET SESSION wait_timeout = 86400; SET SESSION lock_wait_timeout = {LOCK_PATIENCE_SECONDS}; \
         SET SESSION innodb_lock_wait_timeout = {LOCK_PATIENCE_SECONDS}"
    );
    sqlx::raw_sql(AssertSqlSafe(settings)).execute(&mut *connection).await?;
    let lock = format!(
        "SELECT GET_LOCK(LEFT(CONCAT('heartbeat schema ', DATABASE()), 64), {PATIENCE_SECONDS})"
    );
    let locked: Option<i64> =
        sqlx::query_scalar(AssertSqlSafe(lock)).fetch_one(&mut *connection).await?;
    if locked != Some(1) {
        bail!("another process has been at it for {PATIENCE_SECONDS} s; try again later");
    }
    let done = apply_missing(&mut connection, schema, what).await;
    // Closing ends the lock as well, and the settings.
    connection.close().await.ok();
    done
}

async fn apply_missing(
    connection: &mut Connection,
    schema: &Schema,
    what: &str,
) -> anyhow::Result<()> {
    let noted = notes::all(connection).await?;
    schema.check(&noted)?;
    let pending = schema.pending(&noted);
    adoption::refuse_strangers(connection, &pending).await?;
    notes::create(connection).await?;
    for mut version in pending {
        adoption::adapt(connection, &mut version).await?;
        let Migration { version: number, description, .. } = version.migration;
        apply(connection, version).await.map_err(|Stopped { place, step, error }| {
            anyhow!(
                "version {number}, {place} ({step}), was not done: {error}; {}, and run `heartbeat \
                 migrate {}` again, which goes on from there: nothing is lost",
                advice(&error),
                word(what),
            )
        })?;
        tracing::info!(version = number, %description, "the {what} has a new version of its schema");
    }
    Ok(())
}

/// Where a version stopped, and why.
struct Stopped {
    place: String,
    step: String,
    error: Error,
}

impl Stopped {
    fn at(place: String, step: &Statement, error: Error) -> Self {
        Self { place, step: step.title(), error }
    }
}

/// Does what is left of one version.
async fn apply(connection: &mut Connection, version: Pending<'_>) -> Result<(), Stopped> {
    let Pending { migration, statements, before, is_begun, refused } = version;
    let noting = |error| Stopped { place: "its note".to_owned(), step: NOTES.to_owned(), error };
    if !is_begun {
        notes::begun(connection, migration).await.map_err(noting)?;
    }
    for step in &before {
        let done = perform(connection, step, false).await;
        done.map_err(|error| Stopped::at("what goes before".to_owned(), step, error))?;
    }
    let count = statements.len();
    for (place, step) in statements.iter().enumerate() {
        if refused == Some(place) {
            notes::refused(connection, migration, None).await.map_err(noting)?;
        }
        // What was refused was not done, and nothing after it was tried.
        let may_be_done = is_begun && refused.is_none_or(|refused| place < refused);
        if let Err(error) = perform(connection, step, may_be_done).await {
            if error.number().is_some() {
                notes::refused(connection, migration, Some(place)).await.ok();
            }
            return Err(Stopped::at(format!("statement {} of {count}", place + 1), step, error));
        }
    }
    notes::done(connection, migration).await.map_err(noting)
}

/// Does one statement, and waits for others who hold its table. Of a version that was begun before it
/// may be done already.
async fn perform(
    connection: &mut Connection,
    statement: &Statement,
    may_be_done: bool,
) -> Result<(), Error> {
    let mut attempt = 1;
    loop {
        let text = AssertSqlSafe(statement.text().to_owned());
        let Err(error) = sqlx::raw_sql(text).execute(&mut *connection).await else { return Ok(()) };
        let error = Error::from(error);
        let number = error.number().unwrap_or(0);
        if may_be_done
            && (DONE_BEFORE.contains(&number) || (number == ROW_EXISTS && statement.is_insert()))
        {
            return if is_there(connection, &statement.leaves()).await? {
                Ok(())
            } else {
                Err(error)
            };
        }
        let is_held = number == LOCK_WAIT_TIMEOUT || error.class == Class::Retry;
        if !is_held || attempt == MOST_ATTEMPTS {
            return Err(error);
        }
        attempt += 1;
        tokio::time::sleep(PAUSE).await;
    }
}

/// What to do about a statement that was not done.
fn advice(error: &Error) -> &'static str {
    match error.number() {
        Some(number) if DISK_FULL.contains(&number) => "see whether its disk is full, make room",
        Some(LOCK_WAIT_TIMEOUT) => {
            "end the transaction that has held the table for a minute (SHOW PROCESSLIST)"
        }
        Some(number) if DONE_BEFORE.contains(&number) => {
            "rename what has that name and is not heartbeat's"
        }
        _ => "put that right",
    }
}

/// The schema that `heartbeat migrate` names so.
fn word(what: &str) -> &str {
    what.trim_end_matches(" database")
}
