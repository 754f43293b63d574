//! Private servers: a Redis and a MySQL of our own, as child processes on a data directory.
//!
//! For one machine, for tests and for benchmarks. Whatever is installed of Redis or Valkey, and of
//! MySQL or MariaDB, is started with settings under which an answered write is a kept write.
//!
//! The data directory holds everything:
//!
//! | path | what it is |
//! |---|---|
//! | `lock` | held for as long as the directory is in use |
//! | `password` | the password of every account, made once |
//! | `redis/ENGINE`, `mysql/ENGINE` | which product and version wrote the data |
//! | `redis/data`, `mysql/data` | the data; `mysql/data` appears only when it is complete |
//! | `run` | sockets, pid files, logs, and the generated configuration |
//!
//! The servers lead process groups of their own, so that Ctrl-C in a terminal does not reach them
//! before whoever uses them. A run that was killed leaves them behind; the next one on the same
//! directory stops them first. Dropping a handle asks its server to stop and waits for nothing.

mod database;
mod directory;
mod identity;
mod launch;
mod process;
mod programs;
mod redis;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ValueEnum;

use directory::Directory;

pub use database::Database;
pub use identity::Version;
pub use redis::Redis;

/// A product that serves a MySQL database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// MySQL, or a build of it such as Percona Server.
    #[value(name = "mysql")]
    MySql,
    /// MariaDB.
    #[value(name = "mariadb")]
    MariaDb,
}

impl fmt::Display for Engine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::MySql => "MySQL",
            Self::MariaDb => "MariaDB",
        })
    }
}

/// How to start private servers. The default suits one person's machine.
#[derive(Clone, Debug)]
pub struct Options {
    /// Use this product only; otherwise the first `mysqld` or `mariadbd` that is found.
    pub engine: Option<Engine>,
    /// Use this `mysqld` or `mariadbd`, and do not search.
    pub mysqld: Option<PathBuf>,
    /// Use this `redis-server` or `valkey-server`, and do not search.
    pub redis_server: Option<PathBuf>,
    /// Listen on random ports of 127.0.0.1 too, not only on unix sockets.
    pub tcp: bool,
    /// Databases to create where they are missing.
    pub databases: Vec<String>,
    /// Memory in which the database keeps pages, in MiB.
    pub buffer_pool_mib: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            engine: None,
            mysqld: None,
            redis_server: None,
            tcp: false,
            databases: Vec::new(),
            buffer_pool_mib: 128,
        }
    }
}

/// A running Redis and a running database that share a data directory.
pub struct Servers {
    /// The Redis.
    pub redis: Redis,
    /// The database.
    pub database: Database,
}

impl Servers {
    /// Starts both at once and returns when both answer. The directory is created if need be.
    ///
    /// # Errors
    /// A sentence for a person: a program that is not installed, a directory that is in use or was
    /// written by another product, or a server that does not start, with the end of its log.
    pub async fn start(data_dir: &Path, options: &Options) -> anyhow::Result<Self> {
        let redis = redis::find(options).await?;
        let database = database::find(options).await?;
        let directory = Arc::new(Directory::open(data_dir)?);
        let (redis, database) = tokio::join!(
            Redis::launch(Arc::clone(&directory), redis, options),
            Database::launch(directory, database, options),
        );
        match (redis, database) {
            (Ok(redis), Ok(database)) => Ok(Self { redis, database }),
            (Ok(redis), Err(error)) => {
                redis.stop().await?;
                Err(error)
            }
            (Err(error), Ok(database)) => {
                database.stop().await?;
                Err(error)
            }
            (Err(error), Err(_)) => Err(error),
        }
    }

    /// Waits until one of them ends although nobody stopped it, and says which, with the end of
    /// its log. May be abandoned and called again.
    pub async fn ended(&mut self) -> anyhow::Error {
        tokio::select! {
            error = self.redis.ended() => error,
            error = self.database.ended() => error,
        }
    }

    /// Stops both in order, so that nothing is left to recover; kills what does not stop in time.
    ///
    /// # Errors
    /// When a server can be neither signalled nor waited for.
    pub async fn stop(self) -> anyhow::Result<()> {
        let (redis, database) = tokio::join!(self.redis.stop(), self.database.stop());
        redis.and(database)
    }
}

/// A port of 127.0.0.1 that nobody listens on now.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
