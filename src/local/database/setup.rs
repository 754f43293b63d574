//! Preparing a database server: its configuration, its accounts and its system tables.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::unistd::geteuid;
use secrecy::ExposeSecret;

use super::super::Options;
use super::super::directory::{Directory, create_private, write_private};
use super::super::identity::{Identity, Product};
use super::super::launch::Launch;
use super::super::programs::{self, Program};
use super::{ACCOUNT, STOP_PATIENCE};

/// How long it may take to create the system tables.
const INITIALISE_PATIENCE: Duration = Duration::from_mins(3);

/// Writes the generated files and says how to start the server with them.
pub(super) fn configure(
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
pub(super) async fn prepare(directory: &Directory, program: &Program) -> anyhow::Result<()> {
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
    // Without `--force` it gives up on a machine that cannot look up its own name.
    let flags = ["--auth-root-authentication-method=normal", "--skip-test-db", "--force"];
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
