//! Migrations that are broken off at each of their statements: by a killed process, and by a full disk.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use heartbeat::db::{self, Schema};
use heartbeat::local::{Options, Servers};
use sqlx::{AssertSqlSafe, MySqlPool, Row};
use tokio::process::Child;

use super::between::Between;
use super::first_window;
use crate::support::{Ground, Process, pool};

/// Names the directory of a small disk to the process that fills it.
const SMALL_DISK: &str = "HEARTBEAT_TEST_SMALL_DISK";
/// Size of the small disk: the servers' own files, and some room.
const SMALL_DISK_MIB: u32 = 900;
/// Room that is left on a full disk: enough for logs, too little for a table.
const LEFT_BYTES: u64 = 48 * 1024;

/// Everything that a schema is made of, and the rows that migrations put into it.
pub async fn shape(pool: &MySqlPool) -> Vec<String> {
    let tables = "SELECT CAST(TABLE_NAME AS CHAR), CAST(TABLE_TYPE AS CHAR) \
        FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() \
        AND TABLE_NAME <> '_sqlx_migrations' ORDER BY TABLE_NAME";
    let mut shape = Vec::new();
    for table in sqlx::query(tables).fetch_all(pool).await.unwrap() {
        let (name, kind): (String, String) = (table.get(0), table.get(1));
        let show = if kind == "VIEW" { "VIEW" } else { "TABLE" };
        let statement = AssertSqlSafe(format!("SHOW CREATE {show} `{name}`"));
        let row = sqlx::raw_sql(statement).fetch_one(pool).await.unwrap();
        let text: String = row.get(1);
        let database: String =
            sqlx::query_scalar("SELECT DATABASE()").fetch_one(pool).await.unwrap();
        let text = text.replace(&format!("`{database}`."), "");
        shape.push(text.split(" AUTO_INCREMENT=").next().unwrap().to_owned());
    }
    for table in ["counting", "retention", "report_windows", "report_audit"] {
        let count = AssertSqlSafe(format!("SELECT COUNT(*) FROM {table}"));
        let rows: Result<i64, _> = sqlx::query_scalar(count).fetch_one(pool).await;
        shape.push(format!("{table}: {}", rows.unwrap_or(-1)));
    }
    shape
}

/// `heartbeat migrate`, through something that stands between.
fn migrate(word: &str, url: &str, between: &Path) -> Child {
    let (address, _) = url.split_once("?socket=").expect("a unix socket");
    let through = format!("{address}?ssl-mode=DISABLED&socket={}", between.display());
    let mut command = Process::command(&["migrate", word]);
    command.env("DATABASE_URL", through).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// The socket that an address names.
fn socket(url: &str) -> PathBuf {
    let (_, socket) = url.split_once("?socket=").expect("a unix socket");
    let socket = socket.split('&').next().unwrap();
    PathBuf::from(socket.replace("%2F", "/"))
}

/// Brings a schema up to date while each statement, the first time that it comes, kills the process:
/// once before it is done, and once after. Answers how many there were.
async fn kill_at_each_statement(word: &str, url: &str) -> usize {
    let path = std::env::temp_dir().join(format!("heartbeat-{}-{word}.sock", std::process::id()));
    let mut between = Between::start(&socket(url), path);
    let (mut not_done, mut done) = (BTreeSet::new(), BTreeSet::new());
    loop {
        let mut child = migrate(word, url, &between.socket);
        let is_killed = loop {
            let ended = async {
                child.wait().await.unwrap();
            };
            let Some(held) = between.next(ended).await else { break false };
            if not_done.insert(held.statement.clone()) {
                child.kill().await.unwrap();
                break true;
            }
            let is_first = done.insert(held.statement.clone());
            held.pass().await;
            if is_first {
                child.kill().await.unwrap();
                break true;
            }
        };
        if !is_killed {
            let output = child.wait_with_output().await.unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{said}");
            assert_eq!(not_done, done);
            return done.len();
        }
    }
}

/// How many statements a schema's migrations have, where each ends with a line.
fn statements(schema: &Schema) -> usize {
    let code = |sql: &str| sql.lines().filter(|line| line.ends_with(';')).count();
    schema.iter().map(|migration| code(migration.sql.as_str())).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_goes_on_after_a_kill_at_each_of_its_statements() {
    let whole = Ground::new().await;
    let broken = Ground::new().await;
    for ground in [&whole, &broken] {
        let payments = pool(&ground.payments_url).await;
        first_window(&payments).await;
    }
    for (word, schema, whole, broken) in [
        ("payments", &db::PAYMENTS_SCHEMA, &whole.payments_url, &broken.payments_url),
        ("monitor", &db::MONITOR_SCHEMA, &whole.monitor_url, &broken.monitor_url),
    ] {
        let (whole, after) = (pool(whole).await, pool(broken).await);
        db::migrate(&whole, schema, word).await.unwrap();
        // The foreign key that is taken away is a statement as well.
        let more = usize::from(word == "payments");
        assert_eq!(kill_at_each_statement(word, broken).await, statements(schema) + more);
        assert_eq!(shape(&after).await, shape(&whole).await);
    }
}

/// Fills a disk but for a little.
fn fill(directory: &Path) -> PathBuf {
    let path = directory.join("filler");
    let mut file = File::create(&path).unwrap();
    let block = vec![0; 1024 * 1024];
    while file.write_all(&block).is_ok() {}
    let small = vec![0; 4096];
    while file.write_all(&small).is_ok() {}
    let length = file.metadata().unwrap().len();
    file.set_len(length - LEFT_BYTES).unwrap();
    path
}

/// Brings a schema up to date on a disk that is full whenever a statement comes for the first time.
/// Answers how many were not done for that.
async fn fill_at_each_statement(word: &str, url: &str, disk: &Path) -> usize {
    let mut between = Between::start(&socket(url), disk.join(format!("{word}.sock")));
    let (mut seen, mut failed) = (BTreeSet::new(), 0);
    loop {
        let mut child = migrate(word, url, &between.socket);
        let mut filler = None;
        loop {
            let ended = async {
                child.wait().await.unwrap();
            };
            let Some(held) = between.next(ended).await else { break };
            if seen.insert(held.statement.clone()) && filler.is_none() {
                filler = Some(fill(disk));
            }
            held.pass().await;
        }
        let output = child.wait_with_output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if let Some(filler) = filler {
            std::fs::remove_file(filler).unwrap();
        }
        if output.status.success() {
            return failed;
        }
        failed += 1;
        let advice = ["see whether its disk is full", "which goes on from there: nothing is lost"];
        assert!(advice.iter().all(|advice| said.contains(advice)), "{said}");
        assert!(failed < 200, "it does not come to an end: {said}");
    }
}

/// Runs in a process of its own, on a disk of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "another test starts it on a small disk"]
async fn on_a_small_disk() {
    let disk = PathBuf::from(std::env::var_os(SMALL_DISK).unwrap());
    let databases = ["payments", "monitor", "whole_payments", "whole_monitor"];
    let options = Options {
        mysqld: std::env::var_os("HEARTBEAT_TEST_MYSQLD").map(PathBuf::from),
        databases: databases.map(ToOwned::to_owned).to_vec(),
        buffer_pool_mib: 32,
        ..Options::default()
    };
    let servers = Servers::start(&disk.join("servers"), &options).await.unwrap();
    for (word, schema) in [("payments", &db::PAYMENTS_SCHEMA), ("monitor", &db::MONITOR_SCHEMA)] {
        let whole = pool(&servers.database.url(&format!("whole_{word}"))).await;
        let url = servers.database.url(word);
        let broken = pool(&url).await;
        if word == "payments" {
            for pool in [&whole, &broken] {
                first_window(pool).await;
            }
        }
        db::migrate(&whole, schema, word).await.unwrap();
        let failed = fill_at_each_statement(word, &url, &disk).await;
        println!("{word}: {failed} of {} statements met a full disk", statements(schema));
        assert!(failed > 0, "the disk was never full");
        assert_eq!(shape(&broken).await, shape(&whole).await);
    }
    servers.stop().await.unwrap();
}

#[tokio::test]
async fn a_migration_goes_on_after_the_disk_was_full_at_each_of_its_statements() {
    let disk = tempfile::tempdir().unwrap();
    let this = std::env::current_exe().unwrap();
    let mount = format!(
        "mount -t tmpfs -o size={SMALL_DISK_MIB}m tmpfs \"${SMALL_DISK}\" && exec \"$0\" --exact \
         schema::broken_off::on_a_small_disk --ignored --nocapture"
    );
    let mut command = tokio::process::Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c", &mount]).arg(this);
    command.env(SMALL_DISK, disk.path()).kill_on_drop(true);
    let ended = tokio::time::timeout(Duration::from_mins(3), command.output()).await;
    let output = ended.expect("it ends").unwrap();
    let said = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    if said[1].contains("unshare failed") && std::env::var_os("CI").is_none() {
        eprintln!("skipped: this machine lets nobody mount a disk of one's own: {}", said[1]);
        return;
    }
    assert!(output.status.success(), "{said:?}");
}
