//! The databases: pools, schema versions, transactions, and what each failure means.
//!
//! Three rules that keep acknowledged rows from being lost:
//! - Every write runs in a task of its own, so that a caller who gives up cannot cancel it halfway.
//!   The driver would hand the connection on inside a transaction that it does not know of.
//! - Each connection is rolled back before it is lent, which clears such a transaction all the same.
//! - A transaction that lost a deadlock is tried again; its body must therefore be repeatable.

mod connections;
mod error;
mod reader;

use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::future::BoxFuture;
use sqlx::migrate::{AppliedMigration, Migrate, MigrateError, Migration, Migrator};
use sqlx::mysql::{MySqlConnection, MySqlPoolOptions, MySqlQueryResult};
use sqlx::{Acquire, ConnectOptions, Connection as _, MySqlPool};

pub use self::connections::{Connections, Pool, connections};
pub use self::error::{Class, Error, classify};
pub use self::reader::Reader;
use crate::config::DatabaseUrl;

/// A connection inside a transaction, as [`transaction`] hands it to its body.
pub type Connection = MySqlConnection;

/// Schema of the payments database.
pub static PAYMENTS_SCHEMA: LazyLock<Migrator> =
    LazyLock::new(|| only_growing(sqlx::migrate!("migrations/payments")));
/// Schema of the monitor database.
pub static MONITOR_SCHEMA: LazyLock<Migrator> =
    LazyLock::new(|| only_growing(sqlx::migrate!("migrations/monitor")));

/// Most connections that one process opens to one database.
const MAX_CONNECTIONS: u32 = 16;
/// How long to wait for a connection: less than any client of ours waits for an answer.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one attempt at a transaction, or one answer to a question, may take. A host that
/// vanishes without a word would otherwise be waited for until the end of days.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one attempt may take that writes very many rows.
pub const LONG_PATIENCE: Duration = Duration::from_mins(1);
/// How long closing all connections may take.
const FAREWELL: Duration = Duration::from_secs(1);
/// How often a transaction is tried that lost a deadlock or met a read-only server.
const MAX_ATTEMPTS: u32 = 5;
/// How long an unused connection is kept: less than the server keeps one from which it hears
/// nothing, whose locks would otherwise outlive a client that has vanished.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// Prepared statements that one connection keeps: all shapes that we use.
const STATEMENT_CACHE: usize = 256;
/// How long to wait for another process that changes the schema, in seconds.
const MIGRATION_PATIENCE_SECONDS: u32 = 60;
/// Pause between two attempts to reach a database at start.
const START_RETRY: Duration = Duration::from_millis(300);

/// Schemas only grow, so that during an upgrade an older program goes on with a newer schema.
fn only_growing(mut schema: Migrator) -> Migrator {
    schema.set_ignore_missing(true);
    schema
}

/// Opens a pool and waits until the database answers.
///
/// `what` names the database to a person, such as "monitor database", and `option` where its
/// address is given.
///
/// # Errors
/// A sentence for a person: nobody answers within `patience`, wrong credentials, no such database.
pub async fn connect(
    url: &DatabaseUrl,
    (what, option): (&str, &str),
    patience: Duration,
) -> anyhow::Result<MySqlPool> {
    let pool = pool(url);
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        match knock(url).await {
            Ok(()) => return Ok(pool),
            Err(error) if error.class == Class::Configuration => bail!(
                "the {what} at {url} does not let us in: {error}; check user, password and \
                 database name in {option}"
            ),
            Err(error) if tokio::time::Instant::now() >= deadline => {
                bail!("cannot reach the {what} at {url}: {error}; start it, or set {option}")
            }
            Err(_) => tokio::time::sleep(START_RETRY).await,
        }
    }
}

/// Connects once, outside of any pool: a pool would keep the reason of a failure to itself.
async fn knock(url: &DatabaseUrl) -> Result<(), Error> {
    let connecting = MySqlConnection::connect_with(url.options());
    match tokio::time::timeout(ACQUIRE_TIMEOUT, connecting).await {
        Ok(connection) => {
            // On a unix socket the server may be gone before our farewell, which harms nobody.
            connection?.close().await.ok();
            Ok(())
        }
        Err(_) => Err(sqlx::Error::PoolTimedOut.into()),
    }
}

fn pool(url: &DatabaseUrl) -> MySqlPool {
    // The driver would log statements in its own words; a failure is logged where it is handled.
    let options = url.options().clone().statement_cache_capacity(STATEMENT_CACHE);
    let options = options.disable_statement_logging();
    MySqlPoolOptions::new()
        .max_connections(MAX_CONNECTIONS)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .max_lifetime(Duration::from_mins(10))
        .idle_timeout(IDLE_TIMEOUT)
        .test_before_acquire(false)
        .before_acquire(|connection, _| {
            Box::pin(async move {
                sqlx::raw_sql("ROLLBACK").execute(connection).await?;
                Ok(true)
            })
        })
        .after_connect(|connection, _| {
            Box::pin(async move {
                sqlx::raw_sql(
                    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; \
                     SET SESSION sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES'); \
                     SET SESSION innodb_lock_wait_timeout = 2; \
                     SET SESSION wait_timeout = 30",
                )
                .execute(connection)
                .await?;
                Ok(())
            })
        })
        .connect_lazy_with(options)
}

/// Says farewell to the database, but waits for no answer that does not come.
pub async fn close(pool: &MySqlPool) {
    tokio::time::timeout(FAREWELL, pool.close()).await.ok();
}

/// Asks whether the database answers.
///
/// # Errors
/// That it does not.
pub async fn ping(pool: &MySqlPool) -> Result<(), Error> {
    sqlx::raw_sql("SELECT 1").execute(pool).await?;
    Ok(())
}

/// Brings a schema up to date, or checks that it is. `what` is as in [`connect`].
///
/// # Errors
/// A schema that is behind and may not be changed, or cannot be changed.
pub async fn prepare_schema(
    pool: &MySqlPool,
    schema: &'static Migrator,
    what: &str,
    may_change: bool,
) -> anyhow::Result<()> {
    let applied = applied(pool, schema, what).await?;
    // Asked second, because another process may be at it: what it has begun is not applied yet.
    let unfinished = pool.acquire().await?.dirty_version(&schema.table_name).await.unwrap_or(None);
    let is_applied = |migration: &Migration| {
        let same = |known: &AppliedMigration| {
            known.version == migration.version && known.checksum == migration.checksum
        };
        applied.iter().any(same)
    };
    if unfinished.is_none() && schema.iter().all(is_applied) {
        // Nothing is written, so that a role also starts while its database takes no writes.
        return Ok(());
    }
    if may_change {
        return migrate(pool, schema, what).await;
    }
    if let Some(version) = unfinished {
        bail!(
            "version {version} of the schema of the {what} was begun and not finished: run \
             `heartbeat migrate` to see why"
        );
    }
    let wanted = schema.iter().map(|migration| migration.version).max().unwrap_or(0);
    let found = applied.iter().map(|migration| migration.version).max().unwrap_or(0);
    if found < wanted {
        bail!(
            "the schema of the {what} is at version {found} and this program needs {wanted}: run \
             `heartbeat migrate {}` with its address as --database-url, or start its role with \
             CREATE_SCHEMA_ON_STARTUP=true",
            what.trim_end_matches(" database")
        );
    }
    Ok(())
}

/// The migrations that were applied.
async fn applied(
    pool: &MySqlPool,
    schema: &Migrator,
    what: &str,
) -> anyhow::Result<Vec<AppliedMigration>> {
    let mut connection = pool.acquire().await?;
    match connection.list_applied_migrations(&schema.table_name).await {
        Ok(applied) => Ok(applied),
        // Without the table, which only a migration makes, none was applied.
        Err(MigrateError::Execute(error)) if classify(&error) == Class::Configuration => {
            Ok(Vec::new())
        }
        Err(error) => Err(error).with_context(|| format!("reading the schema of the {what}")),
    }
}

/// Brings a schema up to date. Several processes may do so at once: one works, the others wait.
///
/// # Errors
/// When a migration fails.
pub async fn migrate(
    pool: &MySqlPool,
    schema: &'static Migrator,
    what: &str,
) -> anyhow::Result<()> {
    let pool = pool.clone();
    let applied = tokio::spawn(async move { migrate_alone(&pool, schema).await }).await?;
    applied.with_context(|| format!("bringing the schema of the {what} up to date"))
}

/// Applies what is missing while no other process does. The driver's own lock waits for ever, which
/// MariaDB takes for not at all.
async fn migrate_alone(pool: &MySqlPool, schema: &'static Migrator) -> anyhow::Result<()> {
    const NAME: &str = "CONCAT('heartbeat schema ', DATABASE())";
    let mut connection = pool.acquire().await?;
    // It says nothing while the schema changes, for as long as that takes, and must keep the lock.
    sqlx::raw_sql("SET SESSION wait_timeout = 86400").execute(&mut *connection).await?;
    let lock =
        sqlx::AssertSqlSafe(format!("SELECT GET_LOCK({NAME}, {MIGRATION_PATIENCE_SECONDS})"));
    let locked: Option<i64> = sqlx::query_scalar(lock).fetch_one(&mut *connection).await?;
    if locked != Some(1) {
        bail!("another process has been at it for {MIGRATION_PATIENCE_SECONDS} s; try again later");
    }
    let applied = schema.run(pool).await;
    // Closing ends the lock as well, whatever became of the migration.
    connection.close().await.ok();
    match applied {
        Err(MigrateError::Dirty(version)) => bail!(
            "version {version} was begun and not finished; restore the database from a backup, or \
             finish it by hand and set `success` in the table _sqlx_migrations"
        ),
        other => Ok(other?),
    }
}

/// Waits for the answer to a question, but not for ever.
///
/// # Errors
/// The question's failure, or that it was not answered in time.
pub async fn patiently<T, E: Into<Error>>(
    question: impl Future<Output = Result<T, E>>,
) -> Result<T, Error> {
    match tokio::time::timeout(PATIENCE, question).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(sqlx::Error::PoolTimedOut.into()),
    }
}

/// Runs a transaction to its end in a task of its own, and again if it lost a deadlock.
///
/// `name` appears in the log. The answer comes only after the commit. After an error of class
/// [`Class::Unavailable`] the transaction may or may not have been committed, so that whatever it
/// does must be harmless when done twice.
///
/// # Errors
/// The last failure.
pub async fn transaction<T, F>(pool: &MySqlPool, name: &'static str, body: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: for<'c> Fn(&'c mut Connection) -> BoxFuture<'c, Result<T, Error>> + Send + Sync + 'static,
{
    run_to_its_end(pool, name, PATIENCE, body).await
}

/// The same for a transaction that may write very many rows and takes its time.
///
/// # Errors
/// As for [`transaction`].
pub async fn long_transaction<T, F>(
    pool: &MySqlPool,
    name: &'static str,
    body: F,
) -> Result<T, Error>
where
    T: Send + 'static,
    F: for<'c> Fn(&'c mut Connection) -> BoxFuture<'c, Result<T, Error>> + Send + Sync + 'static,
{
    run_to_its_end(pool, name, LONG_PATIENCE, body).await
}

async fn run_to_its_end<T, F>(
    pool: &MySqlPool,
    name: &'static str,
    patience: Duration,
    body: F,
) -> Result<T, Error>
where
    T: Send + 'static,
    F: for<'c> Fn(&'c mut Connection) -> BoxFuture<'c, Result<T, Error>> + Send + Sync + 'static,
{
    let pool = pool.clone();
    let task = tokio::spawn(async move {
        let mut attempt = 1;
        loop {
            match try_once(&pool, patience, &body).await {
                Err(error)
                    if matches!(error.class, Class::Retry | Class::Reconnect)
                        && attempt < MAX_ATTEMPTS =>
                {
                    tracing::debug!(transaction = name, attempt, %error, "trying again");
                    tokio::time::sleep(Duration::from_millis(rand::random_range(5..50))).await;
                    attempt += 1;
                }
                ended => return ended,
            }
        }
    });
    task.await.unwrap_or_else(|_| Err(sqlx::Error::WorkerCrashed.into()))
}

async fn try_once<T, F>(pool: &MySqlPool, patience: Duration, body: &F) -> Result<T, Error>
where
    F: for<'c> Fn(&'c mut Connection) -> BoxFuture<'c, Result<T, Error>>,
{
    let mut connection = pool.acquire().await?;
    let Ok(ended) = tokio::time::timeout(patience, within(&mut connection, body)).await else {
        // Nobody knows what state it is in, so that nobody may get it again.
        drop(connection.detach());
        return Err(sqlx::Error::PoolTimedOut.into());
    };
    if let Err(Error { class: Class::Reconnect, .. }) = ended {
        // A pool would go on lending this connection to a server that takes no writes.
        connection.close().await.ok();
    }
    ended
}

async fn within<T, F>(connection: &mut Connection, body: &F) -> Result<T, Error>
where
    F: for<'c> Fn(&'c mut Connection) -> BoxFuture<'c, Result<T, Error>>,
{
    let mut transaction = sqlx::Connection::begin(connection).await?;
    match body(transaction.acquire().await?).await {
        Ok(value) => {
            transaction.commit().await?;
            Ok(value)
        }
        Err(error) => {
            transaction.rollback().await.ok();
            Err(error)
        }
    }
}

/// Whether an insert put its rows in; false if one of them was there already, so that none is.
///
/// # Errors
/// Any other failure.
pub fn is_inserted(outcome: Result<MySqlQueryResult, sqlx::Error>) -> Result<bool, Error> {
    match outcome {
        Ok(_) => Ok(true),
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Cuts a list into chunks whose lengths are powers of two up to `longest`, longest first, so that
/// statements over them come in few shapes and each connection prepares each shape once.
pub fn chunks<T>(mut rows: &[T], longest: usize) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let length = longest.min(1 << rows.len().checked_ilog2()?);
        let (chunk, rest) = rows.split_at(length);
        rows = rest;
        Some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_have_few_lengths_and_lose_nothing() {
        let rows: Vec<usize> = (0..1_333).collect();
        let lengths: Vec<usize> = chunks(&rows, 512).map(<[usize]>::len).collect();
        assert_eq!(lengths, [512, 512, 256, 32, 16, 4, 1]);
        assert_eq!(chunks(&rows, 512).flatten().copied().collect::<Vec<_>>(), rows);
        assert_eq!(chunks::<u8>(&[], 512).count(), 0);
    }
}
