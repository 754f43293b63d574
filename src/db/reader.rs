//! A database that is read and never written, and that nobody waits for.

use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection};
use sqlx::{ConnectOptions, Connection as _};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::{Connection, Error, FAREWELL, IDLE_TIMEOUT};
use crate::config::DatabaseUrl;

/// Most connections that one reader has at a time.
const MAX_CONNECTIONS: usize = 4;

/// Reads a database that belongs to others. It connects when it is first asked, and every session
/// of it is read-only, whatever its user may do.
///
/// It keeps its connections itself. The driver's pool asks a connection that comes back whether it
/// is alive, and waits for that answer without end, which a host that vanishes never gives.
#[derive(Clone, Debug)]
pub struct Reader {
    options: MySqlConnectOptions,
    patience: Duration,
    places: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<(Instant, MySqlConnection)>>>,
}

impl Reader {
    /// A reader that takes no longer than `patience` over anything.
    #[must_use]
    pub fn new(url: &DatabaseUrl, patience: Duration) -> Self {
        Self {
            options: url.options().clone().disable_statement_logging(),
            patience,
            places: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            idle: Arc::default(),
        }
    }

    /// Asks questions on one connection, and once more on a new one if they failed on one that was
    /// kept: its server may have been restarted. A connection whose question was given up is
    /// closed.
    ///
    /// # Errors
    /// The body's failure, or that it did not come to an end in time.
    pub async fn read<T, F>(&self, body: F) -> Result<T, Error>
    where
        F: for<'c> Fn(&'c mut Connection) -> BoxFuture<'c, Result<T, Error>>,
    {
        let asking = async {
            // Nobody closes it.
            let _place = self.places.acquire().await.map_err(|_| sqlx::Error::PoolClosed)?;
            if let Some(mut connection) = self.kept() {
                match body(&mut connection).await {
                    Ok(answer) => return Ok(self.keep(connection, answer)),
                    Err(_) => self.idle().clear(),
                }
            }
            let mut connection = self.connect().await?;
            let answer = body(&mut connection).await?;
            Ok(self.keep(connection, answer))
        };
        let asked = timeout(self.patience, asking).await;
        asked.unwrap_or_else(|_| {
            let why = format!("no answer within {:?}", self.patience);
            Err(sqlx::Error::Io(std::io::Error::new(ErrorKind::TimedOut, why)).into())
        })
    }

    async fn connect(&self) -> Result<MySqlConnection, Error> {
        let mut connection = MySqlConnection::connect_with(&self.options).await?;
        let settings = "SET SESSION TRANSACTION READ ONLY; \
            SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; \
            SET SESSION wait_timeout = 30";
        sqlx::raw_sql(settings).execute(&mut connection).await?;
        Ok(connection)
    }

    /// A connection that was used a moment ago.
    fn kept(&self) -> Option<MySqlConnection> {
        let mut idle = self.idle();
        idle.retain(|(since, _)| since.elapsed() < IDLE_TIMEOUT);
        idle.pop().map(|(_, connection)| connection)
    }

    /// Keeps a connection whose question was answered.
    fn keep<T>(&self, connection: MySqlConnection, answer: T) -> T {
        self.idle().push((Instant::now(), connection));
        answer
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(Instant, MySqlConnection)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says farewell to the database, but waits for no answer that does not come.
    pub async fn close(&self) {
        let idle = std::mem::take(&mut *self.idle());
        let farewells = idle.into_iter().map(|(_, connection)| connection.close());
        timeout(FAREWELL, futures_util::future::join_all(farewells)).await.ok();
    }
}
