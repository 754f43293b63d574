//! The servers that everything is measured on, and databases in them.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use heartbeat::config::{DatabaseArgs, DatabaseUrl};
use heartbeat::db;
use heartbeat::local::{Engine, Options, Servers};
use redis::aio::MultiplexedConnection;

use sqlx::mysql::MySqlPoolOptions;
use sqlx::{AssertSqlSafe, MySqlPool};
use tokio::sync::Mutex;

/// Memory in which the database keeps pages: enough for what is stored.
const BUFFER_POOL_MIB: u32 = 4_096;

/// A private Redis and a private database.
pub struct Ground {
    servers: Servers,
    directory: PathBuf,
    databases: AtomicU32,
    /// Ten million events, once a scenario has stored them.
    pub history: Mutex<Option<Database>>,
}

/// One database.
pub struct Database {
    /// Its address.
    pub url: String,
    /// Plain connections to it.
    pub pool: MySqlPool,
}

impl Ground {
    /// Starts the servers.
    pub async fn start(engine: Engine, mysqld: Option<&Path>) -> Self {
        let directory =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{}", std::process::id()));
        let options = Options {
            engine: Some(engine),
            mysqld: mysqld.map(Path::to_owned),
            databases: vec!["scratch".to_owned(), "payments".to_owned()],
            buffer_pool_mib: BUFFER_POOL_MIB,
            ..Options::default()
        };
        let servers = Servers::start(&directory, &options).await.unwrap();
        Self { servers, directory, databases: AtomicU32::new(0), history: Mutex::default() }
    }

    /// What is measured on.
    pub fn describe(&self) -> String {
        let Servers { redis, database } = &self.servers;
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        format!(
            "{cores} cores; {} {} with innodb_flush_log_at_trx_commit=1 and sync_binlog=1; \
             Redis {} with appendfsync always; unix sockets",
            database.engine(),
            database.version(),
            redis.version(),
        )
    }

    /// A new, empty database with the monitor's schema.
    pub async fn database(&self) -> Database {
        self.database_of(&db::MONITOR_SCHEMA).await
    }

    /// A new, empty database with some schema.
    pub async fn database_of(&self, schema: &'static LazyLock<db::Schema>) -> Database {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("bench_{number}");
        let scratch = pool(&self.servers.database.url("scratch")).await;
        let statement = AssertSqlSafe(format!("CREATE DATABASE {name}"));
        sqlx::raw_sql(statement).execute(&scratch).await.unwrap();
        scratch.close().await;
        let url = self.servers.database.url(&name);
        let parsed: DatabaseUrl = url.parse().unwrap();
        let migrating =
            db::connect(&parsed, ("database", DatabaseArgs::OPTION), Duration::from_secs(5))
                .await
                .unwrap();
        db::migrate(&migrating, schema, "database").await.unwrap();
        migrating.close().await;
        Database { pool: pool(&url).await, url }
    }

    /// Address of a database for payments services.
    pub fn payments_url(&self) -> String {
        self.servers.database.url("payments")
    }

    /// Address of the Redis.
    pub fn redis_url(&self) -> String {
        self.servers.redis.url()
    }

    /// A plain connection to the Redis.
    pub async fn redis(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.redis_url()).unwrap();
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
        client.get_multiplexed_async_connection_with_config(&config).await.unwrap()
    }

    /// Stops the servers and deletes what they hold.
    pub async fn stop(self) {
        self.servers.stop().await.unwrap();
        std::fs::remove_dir_all(self.directory).unwrap();
    }
}

impl Database {
    /// Drops it: what is not needed any more should not be written out by the next measurement.
    pub async fn drop(self) {
        let name = self.name().await;
        let statement = AssertSqlSafe(format!("DROP DATABASE {name}"));
        sqlx::raw_sql(statement).execute(&self.pool).await.unwrap();
        self.pool.close().await;
    }

    /// What the server calls it.
    pub async fn name(&self) -> String {
        sqlx::query_scalar("SELECT DATABASE()").fetch_one(&self.pool).await.unwrap()
    }

    /// A sum that a statement answers.
    pub async fn sum(&self, statement: &str) -> i64 {
        let statement = AssertSqlSafe(statement.to_owned());
        sqlx::query_scalar(statement).fetch_one(&self.pool).await.unwrap()
    }

    /// A number that a statement answers.
    pub async fn count(&self, statement: &'static str) -> u64 {
        let count: i64 = sqlx::query_scalar(statement).fetch_one(&self.pool).await.unwrap();
        count.unsigned_abs()
    }
}

async fn pool(url: &str) -> MySqlPool {
    MySqlPoolOptions::new().max_connections(8).connect(url).await.unwrap()
}
