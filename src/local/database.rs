//! A private MySQL or MariaDB.

mod setup;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use super::directory::{Directory, percent_encoded};
use super::identity::{Identity, Product, Version};
use super::launch::Launch;
use super::process::Process;
use super::programs::{self, Program, Wanted};
use super::{Engine, Options, free_port};

/// How long it may take to recover from a crash and create the accounts.
const START_PATIENCE: Duration = Duration::from_mins(1);
const STOP_PATIENCE: Duration = Duration::from_secs(20);
/// The account that [`Database::url`] names. It may do everything.
const ACCOUNT: &str = "heartbeat";

/// A running private MySQL or MariaDB, where a committed transaction is on disk.
pub struct Database {
    launch: Launch,
    process: Process,
    identity: Identity,
    port: Option<u16>,
    directory: Arc<Directory>,
}

/// Finds a program that [`Database::launch`] can start.
pub(super) async fn find(options: &Options) -> anyhow::Result<Program> {
    let (products, advice) = match options.engine {
        None => (
            vec![Product::MySql, Product::MariaDb],
            "install the Debian package mariadb-server, or MySQL's own packages",
        ),
        Some(Engine::MariaDb) => {
            (vec![Product::MariaDb], "install the Debian package mariadb-server")
        }
        Some(Engine::MySql) => (vec![Product::MySql], "install MySQL and put its mysqld on PATH"),
    };
    let wanted = Wanted {
        given: options.mysqld.as_deref(),
        names: &["mysqld", "mariadbd"],
        products: &products,
        advice,
    };
    programs::find(&wanted).await
}

impl Database {
    /// Starts a database server alone on a data directory, and returns when it answers.
    ///
    /// # Errors
    /// As for [`super::Servers::start`].
    pub async fn start(data_dir: &Path, options: &Options) -> anyhow::Result<Self> {
        let program = find(options).await?;
        Self::launch(Arc::new(Directory::open(data_dir)?), program, options).await
    }

    pub(super) async fn launch(
        directory: Arc<Directory>,
        program: Program,
        options: &Options,
    ) -> anyhow::Result<Self> {
        let identity = program.identity;
        let port = options.tcp.then(free_port).transpose()?;
        let launch = setup::configure(&directory, &program, options, port)?;
        launch.stop_leftover().await?;
        setup::prepare(&directory, &program).await?;
        let process = ready(&launch, &directory).await?;
        tracing::info!(server = %identity, pid = process.pid(), "the private database answers");
        Ok(Self { launch, process, identity, port, directory })
    }

    /// Address of one of its databases, on a unix socket and with the password.
    #[must_use]
    pub fn url(&self, name: &str) -> String {
        let password = self.directory.password().expose_secret();
        let socket = percent_encoded(&self.directory.mysql_socket());
        format!("mysql://{ACCOUNT}:{password}@localhost/{name}?socket={socket}")
    }

    /// Address of one of its databases on 127.0.0.1, if it was asked to listen there.
    #[must_use]
    pub fn tcp_url(&self, name: &str) -> Option<String> {
        let password = self.directory.password().expose_secret();
        self.port.map(|port| format!("mysql://{ACCOUNT}:{password}@127.0.0.1:{port}/{name}"))
    }

    /// Which product it is.
    #[must_use]
    pub fn engine(&self) -> Engine {
        match self.identity.product {
            Product::MariaDb => Engine::MariaDb,
            _ => Engine::MySql,
        }
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.identity.version
    }

    /// Its process id, also after it has ended.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits until it ends although nobody stopped it, and says so with the end of its log.
    pub async fn ended(&mut self) -> anyhow::Error {
        self.process.ended().await
    }

    /// Kills it as a crash would, and waits until it is gone.
    ///
    /// # Errors
    /// When it can be neither signalled nor waited for.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill().await.map(drop)
    }

    /// Starts it again at the same addresses, killing it first if it still runs.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.process.kill().await?;
        self.process = ready(&self.launch, &self.directory).await?;
        Ok(())
    }

    /// Stops it in order; kills it if that takes more than 20 s.
    ///
    /// # Errors
    /// When it can be neither signalled nor waited for.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.process.stop().await
    }
}

async fn ready(launch: &Launch, directory: &Directory) -> anyhow::Result<Process> {
    let socket = directory.mysql_socket();
    // Their lock file names a process; after a crash that number may be another's.
    for stale in [socket.clone(), socket.with_added_extension("lock")] {
        fs::remove_file(stale).ok();
    }
    let mut process = launch.start().await?;
    process.ready(START_PATIENCE, || greets(&socket)).await?;
    Ok(process)
}

/// Whether the server greets: a packet with a header of four bytes that begins with the protocol's
/// version, 10. It does so only after it has run the file of accounts.
async fn greets(socket: &Path) -> bool {
    let listen = async {
        let mut packet = [0; 5];
        UnixStream::connect(socket).await?.read_exact(&mut packet).await?;
        std::io::Result::Ok(packet[4] == 10)
    };
    listen.await.unwrap_or(false)
}
