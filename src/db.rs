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
mod schema;

use std::time::Duration;

use anyhow::bail;
use futures_util::future::BoxFuture;
use sqlx::mysql::{MySqlConnection, MySqlPoolOptions, MySqlQueryResult};
use sqlx::{Acquire, ConnectOptions, Connection as _, MySqlPool};

pub use self::connections::{Connections, Pool, connections};
pub use self::error::{Class, Error, classify};
pub use self::reader::Reader;
pub use self::schema::{MONITOR_SCHEMA, PAYMENTS_SCHEMA, Schema, migrate, prepare_schema};
use crate::config::DatabaseUrl;

/// A connection inside a transaction, as [`transaction`] hands it to its body.
pub type Connection = MySqlConnection;

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
/// Pause between two attempts to reach a database at start.
const START_RETRY: Duration = Duration::from_millis(300);

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
