//! A private MySQL or MariaDB.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::unistd::geteuid;
use secrecy::ExposeSecret;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use super::directory::{Directory, create_private, percent_encoded, write_private};
use super::identity::{Identity, Product, Version};
use super::process::{Launch, Process};
use super::programs::{self, Program, Wanted};
use super::{Engine, Options, free_port};

/// How long it may take to create the system tables.
const INITIALISE_PATIENCE: Duration = Duration::from_mins(3);
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
        let launch = configure(&directory, &program, options, port)?;
        launch.stop_leftover().await?;
        prepare(&directory, &program).await?;
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

/// Writes the generated files and says how to start the server with them.
fn configure(
    directory: &Directory,
    program: &Program,
    options: &Options,
    port: Option<u16>,
) -> anyhow::Result<Launch> {
    let config = directory.run().join("my.cnf");
    let accounts = directory.run().join("accounts.sql");
    write_private(&accounts, &accounts_sql(directory, &options.databases)?)?;
    write_private(&config, &configuration(directory, program.identity, options, port))?;
    let mut defaults = OsString::from("--defaults-file=");
    defaults.push(&config);
    let launch = Launch {
        name: "mysql",
        program: program.path.clone(),
        arguments: vec![defaults],
        run: directory.run(),
        data: directory.path("mysql/data"),
        mark: config,
        stop_patience: STOP_PATIENCE,
    };
    Ok(launch.with(as_root()))
}

/// Servers refuse to run as root unless they are told to in so many words.
fn as_root() -> Option<OsString> {
    geteuid().is_root().then(|| "--user=root".into())
}

fn configuration(
    directory: &Directory,
    identity: Identity,
    options: &Options,
    port: Option<u16>,
) -> String {
    let run = directory.run();
    let network = port.map_or("skip-networking".to_owned(), |port| {
        format!("bind-address=127.0.0.1\nport={port}")
    });
    let of_product = match identity.product {
        Product::MariaDb => "",
        _ => {
            "mysqlx=0\nsecure-file-priv=NULL\nmax_binlog_size=64M\n\
             binlog_expire_logs_seconds=86400\n"
        }
    };
    format!(
        "[mysqld]\n\
         datadir=\"{data}\"\n\
         socket=\"{socket}\"\n\
         pid-file=\"{run}/mysql.pid\"\n\
         init-file=\"{run}/accounts.sql\"\n\
         {network}\n\
         skip-name-resolve\n\
         character-set-server=utf8mb4\n\
         default-time-zone=+00:00\n\
         transaction-isolation=READ-COMMITTED\n\
         max_connections=300\n\
         innodb_flush_log_at_trx_commit=1\n\
         sync_binlog=1\n\
         innodb_buffer_pool_size={pool}M\n\
         performance_schema=OFF\n\
         {of_product}",
        data = directory.path("mysql/data").display(),
        socket = directory.mysql_socket().display(),
        run = run.display(),
        pool = options.buffer_pool_mib,
    )
}

/// What the server runs at each start, one statement a line: accounts that have our password, and
/// the databases. Root has no password until this has run, and nobody can connect before.
fn accounts_sql(directory: &Directory, databases: &[String]) -> anyhow::Result<String> {
    let password = directory.password().expose_secret();
    let mut lines = vec![format!("ALTER USER 'root'@'localhost' IDENTIFIED BY '{password}';\n")];
    for host in ["localhost", "127.0.0.1"] {
        let account = format!("'{ACCOUNT}'@'{host}'");
        lines.push(format!("CREATE USER IF NOT EXISTS {account} IDENTIFIED BY '{password}';\n"));
        lines.push(format!("ALTER USER {account} IDENTIFIED BY '{password}';\n"));
        lines.push(format!("GRANT ALL PRIVILEGES ON *.* TO {account} WITH GRANT OPTION;\n"));
    }
    for name in databases {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(plain) {
            bail!("{name:?} is no name for a database: use letters, digits and underscores");
        }
        lines.push(format!("CREATE DATABASE IF NOT EXISTS `{name}`;\n"));
    }
    Ok(lines.concat())
}

/// Checks who wrote the data, or creates it. It appears under its name only when it is complete.
async fn prepare(directory: &Directory, program: &Program) -> anyhow::Result<()> {
    let record = directory.path("mysql/ENGINE");
    let data = directory.path("mysql/data");
    if data.exists() {
        program.identity.check_record(&record)?;
        return write_record(&record, program.identity);
    }
    tracing::info!(server = %program.identity, "creating a private database");
    let unfinished = directory.path("mysql/data.new");
    let launch = initialisation(directory, program, &unfinished)?;
    launch.stop_leftover().await?;
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).context("removing an unfinished database")?;
    }
    create_private(&unfinished)?;
    launch.start().await?.done(INITIALISE_PATIENCE).await?;
    write_record(&record, program.identity)?;
    fs::rename(&unfinished, &data).context("naming the finished database")
}

fn write_record(record: &Path, identity: Identity) -> anyhow::Result<()> {
    write_private(record, &format!("{identity}\n"))
}

/// How to create the system tables in `unfinished`.
fn initialisation(
    directory: &Directory,
    program: &Program,
    unfinished: &Path,
) -> anyhow::Result<Launch> {
    let mut datadir = OsString::from("--datadir=");
    datadir.push(unfinished);
    let launch = Launch {
        name: "mysql-create",
        program: program.path.clone(),
        arguments: vec!["--no-defaults".into(), datadir],
        run: directory.run(),
        data: unfinished.to_owned(),
        mark: unfinished.to_owned(),
        stop_patience: STOP_PATIENCE,
    };
    if program.identity.product == Product::MariaDb {
        return mariadb_initialisation(launch);
    }
    let flags = ["--initialize-insecure", "--mysqlx=0", "--secure-file-priv=NULL"];
    Ok(launch.with(flags.map(OsString::from)).with(as_root()))
}

fn mariadb_initialisation(launch: Launch) -> anyhow::Result<Launch> {
    let script = install_script(&launch.program)?;
    let flags = ["--auth-root-authentication-method=normal", "--skip-test-db"];
    // The script takes `--user` for itself, and then changes the owner of system directories, and
    // of the data only if its path has no spaces. The short form goes straight to the server.
    let as_root = as_root().map(|_| OsString::from("-uroot"));
    Ok(Launch { program: script, ..launch }.with(flags.map(OsString::from)).with(as_root))
}

/// The script that creates MariaDB's system tables: beside the server, or on PATH.
fn install_script(server: &Path) -> anyhow::Result<PathBuf> {
    let name = "mariadb-install-db";
    let prefix = server.parent().and_then(Path::parent).unwrap_or(Path::new("/usr"));
    let beside = ["bin", "scripts"].map(|part| prefix.join(part).join(name));
    let found =
        beside.into_iter().filter(|path| path.is_file()).chain(programs::on_path(name)).next();
    found.with_context(|| format!("found no {name}: install the Debian package mariadb-server"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_become_databases() {
        let parent = tempfile::tempdir().unwrap();
        let directory = Directory::open(parent.path()).unwrap();
        let sql = accounts_sql(&directory, &["monitor_1".to_owned()]).unwrap();
        assert!(sql.ends_with("CREATE DATABASE IF NOT EXISTS `monitor_1`;\n"), "{sql}");
        for name in ["", "a`b", "a-b", "ü"] {
            assert!(accounts_sql(&directory, &[name.to_owned()]).is_err(), "{name}");
        }
    }
}
