//! One Redis and one database for the whole run.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{OnceLock, mpsc};

use heartbeat::local::{Options, Servers};

/// The servers that every test shares.
pub struct Shared {
    /// Address of the Redis.
    pub redis_url: String,
    /// Address of the Redis over TCP.
    pub redis_tcp_url: String,
    database_url: String,
    database_tcp_url: String,
    _leash: ChildStdin,
}

impl Shared {
    /// Address of a database on the shared server.
    pub fn database_url(&self, name: &str) -> String {
        self.database_url.replace("/scratch", &format!("/{name}"))
    }

    /// Address of a database on the shared server over TCP.
    pub fn database_tcp_url(&self, name: &str) -> String {
        self.database_tcp_url.replace("/scratch", &format!("/{name}"))
    }
}

/// Starts the servers at the first call.
pub fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let (sender, receiver) = mpsc::channel();
        // A runtime of their own: that of a test ends with the test.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let (shared, servers) = start().await;
                sender.send(shared).unwrap();
                std::future::pending::<()>().await;
                drop(servers);
            });
        });
        receiver.recv().expect("the servers start")
    })
}

async fn start() -> (Shared, Servers) {
    let directory =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("servers-{}", std::process::id()));
    let options = Options {
        mysqld: std::env::var_os("HEARTBEAT_TEST_MYSQLD").map(PathBuf::from),
        tcp: true,
        databases: vec!["scratch".to_owned()],
        ..Options::default()
    };
    let servers = Servers::start(&directory, &options).await.expect("starting the servers");
    let pids = [servers.redis.pid(), servers.database.pid()];
    let shared = Shared {
        redis_url: servers.redis.url(),
        redis_tcp_url: servers.redis.tcp_url().unwrap(),
        database_url: servers.database.url("scratch"),
        database_tcp_url: servers.database.tcp_url("scratch").unwrap(),
        _leash: leash(&directory, &pids),
    };
    (shared, servers)
}

/// A child that ends the servers when this process ends, however it ends: its input closes then.
fn leash(directory: &Path, pids: &[u32]) -> ChildStdin {
    let mut command = Command::new("sh");
    command.args(["-c", "read line; kill -KILL \"$@\"; sleep 0.2; rm -rf \"$0\""]);
    command.arg(directory).args(pids.iter().map(u32::to_string));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let mut input = command.spawn().expect("sh").stdin.take().expect("its input");
    input.flush().ok();
    input
}
