//! Private servers, started for real.
//!
//! `HEARTBEAT_TEST_MYSQLD` names the `mysqld` or `mariadbd` to use; without it the first one found.

use std::env;
use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use heartbeat::local::{Engine, Options, Redis, Servers};
use sqlx::{Connection, MySqlConnection};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// Names the data directory to a process that starts servers and is then killed.
const KILLED_PARENT: &str = "HEARTBEAT_TEST_KILLED_PARENT";

fn options() -> Options {
    Options {
        mysqld: env::var_os("HEARTBEAT_TEST_MYSQLD").map(PathBuf::from),
        tcp: true,
        databases: vec!["payments".to_owned()],
        ..Options::default()
    }
}

async fn run(url: &str, sql: &'static str) -> Result<u64> {
    let mut connection = MySqlConnection::connect(url).await?;
    Ok(sqlx::raw_sql(sql).execute(&mut connection).await?.rows_affected())
}

async fn number(url: &str, sql: &'static str) -> Result<i64> {
    let mut connection = MySqlConnection::connect(url).await?;
    Ok(sqlx::query_scalar(sql).fetch_one(&mut connection).await?)
}

/// Sends inline commands over TCP, after the password that the address holds.
async fn redis(url: &str, commands: &str, answer: &str) -> Result {
    let (password, address) =
        url.split_once("://:").and_then(|(_, rest)| rest.split_once('@')).ok_or("no password")?;
    let mut stream = TcpStream::connect(address.trim_end_matches("/0")).await?;
    stream.write_all(format!("AUTH {password}\r\n{commands}").as_bytes()).await?;
    let mut heard = vec![0; "+OK\r\n".len() + answer.len()];
    stream.read_exact(&mut heard).await?;
    assert_eq!(String::from_utf8(heard)?, format!("+OK\r\n{answer}"));
    Ok(())
}

fn is_running(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|arguments| !arguments.is_empty())
}

fn refusal(started: anyhow::Result<Servers>) -> String {
    started.err().map_or_else(String::new, |error| format!("{error:#}"))
}

#[tokio::test]
async fn servers_keep_their_data_over_a_stop_and_over_a_crash() -> Result {
    let parent = tempfile::tempdir()?;
    let data = parent.path().join("da ta#1");
    let mut servers = Servers::start(&data, &options()).await?;
    let (url, redis_url) =
        (servers.database.url("payments"), servers.redis.tcp_url().ok_or("no port")?);
    run(&url, "CREATE TABLE kept (id INT PRIMARY KEY); INSERT INTO kept VALUES (1)").await?;
    redis(&redis_url, "SET kept 1\r\n", "+OK\r\n").await?;

    servers.database.kill().await?;
    servers.redis.kill().await?;
    assert!(run(&url, "SELECT 1").await.is_err());
    servers.database.restart().await?;
    servers.redis.restart().await?;
    run(&url, "INSERT INTO kept VALUES (2)").await?;
    redis(&redis_url, "INCR kept\r\n", ":2\r\n").await?;
    let pids = [servers.database.pid(), servers.redis.pid()];
    servers.stop().await?;
    assert!(!pids.into_iter().any(is_running));

    let servers = Servers::start(&data, &options()).await?;
    assert_eq!(number(&servers.database.url("payments"), "SELECT COUNT(*) FROM kept").await?, 2);
    let redis_url = servers.redis.tcp_url().ok_or("no port")?;
    redis(&redis_url, "INCR kept\r\n", ":3\r\n").await?;
    assert!(refusal(Servers::start(&data, &options()).await).contains("in use by process"));
    Ok(servers.stop().await?)
}

#[tokio::test]
async fn accounts_need_the_password_and_may_create_databases() -> Result {
    let data = tempfile::tempdir()?;
    let servers = Servers::start(data.path(), &options()).await?;
    let tcp = servers.database.tcp_url("payments").ok_or("no port")?;
    // The first login of a fresh account over TCP is the one that needs TLS on MySQL.
    run(&tcp, "CREATE DATABASE another").await?;
    run(&servers.database.url("another"), "CREATE TABLE t (id INT PRIMARY KEY)").await?;

    let url = servers.database.url("mysql");
    let socket = url.split_once('?').ok_or("no socket")?.1;
    for account in ["root", "heartbeat", "nobody"] {
        let open = format!("mysql://{account}@localhost/mysql?{socket}");
        assert!(run(&open, "SELECT 1").await.is_err(), "{account} needs no password");
    }
    let unprotected = "SELECT COUNT(*) FROM mysql.user WHERE User = ''";
    assert_eq!(number(&url, unprotected).await?, 0);
    let durable = "SELECT CAST(@@innodb_flush_log_at_trx_commit + @@sync_binlog AS SIGNED)";
    assert_eq!(number(&url, durable).await?, 2);

    for pid in [servers.redis.pid(), servers.database.pid()] {
        let password = fs::read_to_string(data.path().join("password"))?;
        let arguments =
            String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline"))?).into_owned();
        assert!(!arguments.contains(&password));
    }
    for secret in ["password", "run/redis.conf", "run/accounts.sql"] {
        let mode = fs::metadata(data.path().join(secret))?.permissions().mode();
        assert_eq!(mode & 0o077, 0, "{secret}");
    }
    Ok(servers.stop().await?)
}

#[tokio::test]
async fn data_of_another_engine_is_refused() -> Result {
    let data = tempfile::tempdir()?;
    let servers = Servers::start(data.path(), &options()).await?;
    let (engine, version) = (servers.database.engine(), servers.database.version());
    servers.stop().await?;

    let record = data.path().join("mysql/ENGINE");
    assert_eq!(fs::read_to_string(&record)?, format!("{engine} {version}\n"));
    let other = match engine {
        Engine::MySql => Engine::MariaDb,
        Engine::MariaDb => Engine::MySql,
    };
    fs::write(&record, format!("{other} {version}\n"))?;
    let told = refusal(Servers::start(data.path(), &options()).await);
    assert!(told.contains(&format!("was written by {other} {version}")), "{told}");

    fs::write(&record, format!("{engine} {}.0.0\n", version.major + 1))?;
    assert!(refusal(Servers::start(data.path(), &options()).await).contains("must not open it"));

    fs::write(&record, format!("{engine} {version}\n"))?;
    fs::write(data.path().join("redis/ENGINE"), "Redis 99.0.0\n")?;
    assert!(refusal(Servers::start(data.path(), &options()).await).contains("Redis 99.0.0"));
    Ok(())
}

#[tokio::test]
async fn half_created_data_is_created_anew() -> Result {
    let data = tempfile::tempdir()?;
    fs::create_dir_all(data.path().join("mysql/data.new/mysql"))?;
    fs::write(data.path().join("mysql/data.new/ibdata1"), "half")?;
    let servers = Servers::start(data.path(), &options()).await?;
    run(&servers.database.url("payments"), "CREATE TABLE t (id INT PRIMARY KEY)").await?;
    assert!(!data.path().join("mysql/data.new").exists());
    Ok(servers.stop().await?)
}

#[tokio::test]
async fn a_server_that_ends_by_itself_is_noticed() -> Result {
    let data = tempfile::tempdir()?;
    let mut redis = Redis::start(data.path(), &options()).await?;
    let pid = i32::try_from(redis.pid())?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)?;
    let told = redis.ended().await.to_string();
    assert!(told.contains("redis ended by itself"), "{told}");
    redis.restart().await?;
    Ok(redis.stop().await?)
}

#[tokio::test]
async fn a_dropped_server_stops_and_does_not_stand_in_the_way() -> Result {
    let data = tempfile::tempdir()?;
    let first = Redis::start(data.path(), &options()).await?;
    let pid = first.pid();
    drop(first);
    let second = Redis::start(data.path(), &options()).await?;
    assert!(!is_running(pid));
    Ok(second.stop().await?)
}

#[tokio::test]
async fn sockets_of_a_deep_directory_work() -> Result {
    let parent = tempfile::tempdir()?;
    let data = parent.path().join("deep".repeat(30));
    let servers = Servers::start(&data, &options()).await?;
    run(&servers.database.url("payments"), "CREATE TABLE t (id INT PRIMARY KEY)").await?;
    let note = fs::read_to_string(data.join("run/SOCKETS"))?;
    assert!(Path::new(&note).join("redis.sock").exists());
    servers.stop().await?;
    assert!(!Path::new(&note).exists());
    Ok(())
}

#[tokio::test]
async fn the_servers_of_a_killed_process_are_stopped_by_the_next_start() -> Result {
    let data = tempfile::tempdir()?;
    let test = concat!(module_path!(), "::holds_servers_until_it_is_killed");
    let test = test.split_once("::").ok_or("no module")?.1;
    let mut parent = Command::new(env::current_exe()?)
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(KILLED_PARENT, data.path())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(parent.stdout.take().ok_or("no output")?).lines();
    let pids = loop {
        let line = lines.next_line().await?.ok_or("the other process started nothing")?;
        if let Some(pids) = line.strip_prefix("pids ") {
            break pids.split(' ').map(str::parse).collect::<std::result::Result<Vec<u32>, _>>()?;
        }
    };
    parent.kill().await?;
    assert!(pids.iter().all(|pid| is_running(*pid)));

    let servers = Servers::start(data.path(), &options()).await?;
    assert!(!pids.iter().any(|pid| is_running(*pid)));
    Ok(servers.stop().await?)
}

#[tokio::test]
#[ignore = "the part of another test that runs in a process of its own"]
async fn holds_servers_until_it_is_killed() -> Result {
    let Some(data) = env::var_os(KILLED_PARENT) else {
        return Ok(());
    };
    let servers = Servers::start(Path::new(&data), &options()).await?;
    println!("\npids {} {}", servers.redis.pid(), servers.database.pid());
    tokio::time::sleep(Duration::from_mins(1)).await;
    Ok(servers.stop().await?)
}
