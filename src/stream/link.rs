//! A connection to Redis that is made again after it broke.

use std::time::Duration;

use anyhow::{Context, bail};
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, InfoDict, IntoConnectionInfo,
    Pipeline, RedisError, ServerErrorKind,
};
use tokio::sync::Mutex;

use super::{OLDEST_MAJOR_VERSION, StreamError};
use crate::config::RedisUrl;

/// How long making a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an answer to a command that does not block may take.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause between two attempts to reach Redis at start.
const START_RETRY: Duration = Duration::from_millis(300);

/// A connection that is opened when first needed and again after any failure that may have left
/// it broken. Commands share it; a reader that blocks has a link of its own.
#[derive(Debug)]
pub struct Link {
    client: Client,
    config: AsyncConnectionConfig,
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    connection: Option<MultiplexedConnection>,
    /// Counts connections, so that a late failure of an old one does not close its successor.
    generation: u64,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "connection {}", self.generation)
    }
}

impl Link {
    /// A link for commands that the server answers at once.
    ///
    /// # Errors
    /// An address that Redis' client cannot use.
    pub fn new(url: &RedisUrl) -> anyhow::Result<Self> {
        Self::with_blocking(url, Duration::ZERO)
    }

    /// A link for reads that the server may hold back for up to `block`.
    ///
    /// # Errors
    /// An address that Redis' client cannot use.
    pub fn with_blocking(url: &RedisUrl, block: Duration) -> anyhow::Result<Self> {
        // Without TCP_NODELAY each small command waits for the acknowledgement of the last one.
        let info = url
            .expose()
            .into_connection_info()
            .with_context(|| format!("{url} is no address of a Redis"))?
            .set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT + block));
        let client = Client::open(info).with_context(|| format!("opening {url}"))?;
        Ok(Self { client, config, current: Mutex::default() })
    }

    /// Waits until Redis answers and is new enough, for a role that starts.
    ///
    /// # Errors
    /// A sentence for a person: nobody answers within `patience`, wrong credentials, too old.
    pub async fn wait_until_ready(&self, url: &RedisUrl, patience: Duration) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            match self.look().await {
                Ok(info) => return check_version(&info),
                Err(StreamError::Unavailable(_)) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(START_RETRY).await;
                }
                Err(StreamError::Unavailable(error)) => {
                    bail!("cannot reach Redis at {url}: {error}; start it, or set --redis-url")
                }
                Err(error) => bail!(
                    "Redis at {url} does not let us in: {error}; check user and password in \
                     --redis-url"
                ),
            }
        }
    }

    /// What Redis says about itself, once it serves: this it says already while it loads its data.
    async fn look(&self) -> Result<InfoDict, StreamError> {
        let info = self.query(redis::cmd("INFO").arg("server")).await?;
        self.ping().await?;
        Ok(info)
    }

    /// Asks whether Redis answers.
    ///
    /// # Errors
    /// That it does not.
    pub async fn ping(&self) -> Result<(), StreamError> {
        self.query::<String>(&redis::cmd("PING")).await.map(drop)
    }

    /// Sends one command.
    pub(super) async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StreamError> {
        let (mut connection, generation) = self.connection().await?;
        let answer = command.query_async(&mut connection).await;
        self.settle(answer, generation).await
    }

    /// Sends several commands in one round trip.
    pub(super) async fn query_all<T: FromRedisValue>(
        &self,
        pipeline: &Pipeline,
    ) -> Result<T, StreamError> {
        let (mut connection, generation) = self.connection().await?;
        let answer = pipeline.query_async(&mut connection).await;
        self.settle(answer, generation).await
    }

    async fn connection(&self) -> Result<(MultiplexedConnection, u64), StreamError> {
        let mut current = self.current.lock().await;
        if let Some(connection) = &current.connection {
            return Ok((connection.clone(), current.generation));
        }
        let connection =
            self.client.get_multiplexed_async_connection_with_config(&self.config).await?;
        current.generation += 1;
        current.connection = Some(connection.clone());
        Ok((connection, current.generation))
    }

    /// Drops the connection after a failure that does not prove it whole.
    async fn settle<T>(
        &self,
        answer: Result<T, RedisError>,
        generation: u64,
    ) -> Result<T, StreamError> {
        if answer.as_ref().is_err_and(leaves_connection_in_doubt) {
            let mut current = self.current.lock().await;
            if current.generation == generation {
                current.connection = None;
            }
        }
        Ok(answer?)
    }
}

/// Whether to connect anew: the connection may be broken or out of step, or it leads to a server
/// that has stopped being the one to write to.
fn leaves_connection_in_doubt(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Server(kind) => matches!(
            kind,
            ServerErrorKind::ReadOnly
                | ServerErrorKind::MasterDown
                | ServerErrorKind::Moved
                | ServerErrorKind::BusyLoading
                | ServerErrorKind::ClusterDown
        ),
        ErrorKind::Extension => matches!(error.code(), Some("NOAUTH")),
        _ => true,
    }
}

fn check_version(info: &InfoDict) -> anyhow::Result<()> {
    let version: String = info.get("redis_version").unwrap_or_default();
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    match major {
        Some(major) if major < OLDEST_MAJOR_VERSION => bail!(
            "this Redis is version {version}; heartbeat needs {OLDEST_MAJOR_VERSION}.0 or newer \
             (or Valkey 7.2): upgrade it"
        ),
        _ => Ok(()),
    }
}
