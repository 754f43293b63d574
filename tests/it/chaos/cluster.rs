//! Everything that a run is made of: private servers, processes of the real executable, and a
//! network of pairs between them.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use heartbeat::local::{Database, Options, Redis, Servers};
use heartbeat::stream::StreamName;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redis::aio::MultiplexedConnection;
use sqlx::mysql::MySqlPoolOptions;
use sqlx::{AssertSqlSafe, MySqlPool};
use tokio::process::Child;

use super::leash::Leash;
use super::network::Network;
use super::proxy::Pair;
use crate::support::{Process, eventually, get};

/// The monitors' options.
pub const GRACE: Duration = Duration::from_secs(2);
/// How long a window waits for what cannot be observed.
pub const MAX_HOLD: Duration = Duration::from_secs(14);
/// How long nothing is closed once Redis has become another.
pub const REPLAY_GRACE: Duration = Duration::from_secs(10);
/// The group that the relays share.
pub const GROUP: &str = "monitor-queue-group";
/// An account that, unlike an administrator's, may not write to a read-only database.
pub const ACCOUNT: &str = "chaos";
/// How long our own look at a server may take.
const PATIENCE: Duration = Duration::from_millis(500);

/// A running cluster, killed when dropped.
pub struct Cluster {
    /// Its data, its sockets and its logs.
    pub directory: PathBuf,
    /// The processes, by number.
    pub roles: Vec<Role>,
    /// Every way from a process to what it talks to.
    pub pairs: Vec<Pair>,
    /// The private Redis.
    pub redis: tokio::sync::Mutex<Redis>,
    /// The private database server.
    pub database: tokio::sync::Mutex<Database>,
    /// Our own way to the payments database, which no proxy disturbs.
    pub payments: MySqlPool,
    /// Our own way to the monitor database.
    pub monitor: MySqlPool,
    /// The streams' names.
    pub stream: StreamName,
    /// How often a process ended although nobody had killed it.
    pub ended_by_themselves: AtomicUsize,
    redis_url: String,
    leash: Leash,
}

/// A process of the real executable, which may be killed and started again at its address.
pub struct Role {
    /// Its name, such as `relay-1`.
    pub name: String,
    /// How far its clock is ahead, in milliseconds.
    pub clock_offset_millis: i64,
    address: SocketAddr,
    arguments: Vec<String>,
    environment: BTreeMap<&'static str, String>,
    log: PathBuf,
    /// Held by whoever does something to it; none while it is dead.
    child: tokio::sync::Mutex<Option<Child>>,
}

impl Role {
    /// A process that is not started yet. Its name begins with its role.
    pub fn new<const N: usize>(
        name: &str,
        address: SocketAddr,
        directory: &Path,
        arguments: &[&str],
        environment: [(&'static str, String); N],
    ) -> Self {
        let role = name.split_once('-').unwrap().0;
        let listen = address.to_string();
        // A process that starts while a server is away waits for it.
        let common = [role, "--listen", &listen, "--connect-timeout", "1m"];
        Self {
            name: name.to_owned(),
            clock_offset_millis: 0,
            address,
            arguments: common.iter().chain(arguments).map(ToString::to_string).collect(),
            environment: environment.into(),
            log: directory.join(format!("{name}.log")),
            child: tokio::sync::Mutex::default(),
        }
    }

    /// The address of one of its paths.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Holds the process, so that nobody else takes it for one that ended by itself.
    pub async fn hold(&self) -> tokio::sync::MutexGuard<'_, Option<Child>> {
        self.child.lock().await
    }

    /// Whether nobody does anything to it.
    pub fn is_left_alone(&self) -> bool {
        self.child.try_lock().is_ok()
    }
}

impl Cluster {
    /// Starts everything in a directory, with the clock of one sender off by so many milliseconds.
    pub async fn start(directory: PathBuf, clock_offset_millis: i64) -> Self {
        fs::create_dir_all(&directory).unwrap();
        let directory = directory.canonicalize().unwrap();
        let options = Options {
            mysqld: std::env::var_os("HEARTBEAT_TEST_MYSQLD").map(PathBuf::from),
            tcp: true,
            databases: vec!["payments".to_owned(), "monitor".to_owned()],
            ..Options::default()
        };
        let Servers { redis, database } = Servers::start(&directory, &options).await.unwrap();
        let leash = Leash::new();
        leash.hold(redis.pid());
        leash.hold(database.pid());
        let payments = pool(&database.url("payments"));
        create_account(&payments, &database).await;
        let mut network = Network::new(&redis, &database);
        let roles = network.roles(&directory, clock_offset_millis).await;
        let cluster = Self {
            monitor: pool(&database.url("monitor")),
            payments,
            redis_url: redis.url(),
            redis: redis.into(),
            database: database.into(),
            pairs: network.pairs,
            stream: "reports".parse().unwrap(),
            ended_by_themselves: AtomicUsize::new(0),
            roles,
            directory,
            leash,
        };
        for role in &cluster.roles {
            cluster.launch(role, &mut *role.hold().await);
        }
        for role in &cluster.roles {
            let url = role.url("/ready");
            let ready = async || get(&url).await.ok().filter(|answer| answer.status().is_success());
            eventually(&format!("{} is ready", role.name), ready).await;
        }
        cluster
    }

    /// Starts a process that is dead, as it was started before.
    pub fn launch(&self, role: &Role, child: &mut Option<Child>) {
        let log = OpenOptions::new().create(true).append(true).open(&role.log).unwrap();
        let arguments: Vec<&str> = role.arguments.iter().map(String::as_str).collect();
        let mut command = Process::command(&arguments);
        command.envs(&role.environment).stdout(log.try_clone().unwrap()).stderr(log);
        let started = command.spawn().unwrap();
        self.leash.hold(started.id().unwrap());
        *child = Some(started);
    }

    /// Kills a process and waits until it is gone.
    pub async fn kill(&self, child: &mut Option<Child>) {
        let mut child = child.take().unwrap();
        let pid = child.id();
        child.kill().await.unwrap();
        if let Some(pid) = pid {
            self.leash.release(pid);
        }
    }

    /// Starts processes again that ended although nobody killed them, as any supervisor does.
    pub async fn supervise(&self) {
        loop {
            for role in &self.roles {
                let Ok(mut child) = role.child.try_lock() else { continue };
                let pid = child.as_ref().and_then(Child::id);
                let ended =
                    child.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None)));
                if let Some(pid) = pid.filter(|_| ended) {
                    self.leash.release(pid);
                    self.ended_by_themselves.fetch_add(1, Ordering::Relaxed);
                    self.launch(role, &mut child);
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Makes sure that a server that was started again ends with us.
    pub fn hold_server(&self, before: u32, now: u32) {
        self.leash.release(before);
        self.leash.hold(now);
    }

    /// A connection to Redis of our own; none if it does not answer.
    pub async fn redis_connection(&self) -> Option<MultiplexedConnection> {
        let client = redis::Client::open(self.redis_url.as_str()).unwrap();
        tokio::time::timeout(PATIENCE, client.get_multiplexed_async_connection()).await.ok()?.ok()
    }

    /// Ends the processes and the servers, which have nothing left to do.
    pub async fn stop(self) {
        for role in &self.roles {
            self.kill(&mut *role.hold().await).await;
        }
        self.payments.close().await;
        self.monitor.close().await;
        let (redis, database) = (self.redis.into_inner(), self.database.into_inner());
        let pids = [redis.pid(), database.pid()];
        redis.stop().await.unwrap();
        database.stop().await.unwrap();
        for pid in pids {
            self.leash.release(pid);
        }
    }
}

/// Sends a signal to a process that we started.
pub fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

fn pool(url: &str) -> MySqlPool {
    let options = MySqlPoolOptions::new().max_connections(4).acquire_timeout(PATIENCE * 4);
    options.connect_lazy(url).unwrap()
}

async fn create_account(pool: &MySqlPool, database: &Database) {
    let url = reqwest::Url::parse(&database.tcp_url("payments").unwrap()).unwrap();
    let password = url.password().unwrap();
    let account = format!("'{ACCOUNT}'@'127.0.0.1'");
    let mut statements = vec![format!("CREATE USER {account} IDENTIFIED BY '{password}'")];
    for name in ["payments", "monitor"] {
        statements.push(format!("GRANT ALL PRIVILEGES ON {name}.* TO {account}"));
    }
    for statement in statements {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(pool).await.unwrap();
    }
}
