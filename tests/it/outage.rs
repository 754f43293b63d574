//! A Redis that stands still while windows end: nobody is alerted about a healthy service. And one
//! that loads its data: a role that starts waits for it.

use std::ops::Range;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use heartbeat::config::RedisUrl;
use heartbeat::local::{Options, Redis};
use heartbeat::stream::Link;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redis::cmd;
use serde_json::json;
use sqlx::Connection;
use sqlx::mysql::MySqlConnection;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::support::{Ground, Process, answer, eventually, free_address};

/// Longer than a window's grace, shorter than whoever asks Redis waits for an answer twice.
const STANDS_STILL: Duration = Duration::from_millis(4_500);
/// Longer than a relay takes to report and a monitor to close, shorter than the grace for what is sent
/// again.
const IS_SLOWER: Duration = Duration::from_secs(3);

/// A sender, a relay and a monitor, whose Redis can stand still.
struct Stage {
    redis: Redis,
    _directory: TempDir,
    ground: Ground,
    monitor: Process,
    _relay: Process,
    payments: Process,
}

impl Stage {
    async fn new() -> Self {
        let ground = Ground::new().await;
        let directory = tempfile::tempdir().unwrap();
        let redis = Redis::start(directory.path(), &Options::default()).await.unwrap();
        let redis_url = redis.url();
        let quick = ["--sweep-interval", "100ms", "--replay-grace", "5s"];
        let monitor = Process::monitor(&ground, &quick).await;
        let monitor_url = monitor.url("");
        let at = [("REDIS_URL", redis_url.as_str()), ("MONITOR_URL", monitor_url.as_str())];
        let relay = Process::role("relay", &["--consumer-name", "one"], &at).await;
        let environment = [
            ("REDIS_URL", redis_url.as_str()),
            ("DATABASE_URL", ground.payments_url.as_str()),
            ("SERVICE_NAME", "payments-a"),
        ];
        let payments = Process::role_at(free_address(), "payments", &[], &environment).await;
        Self { redis, _directory: directory, ground, monitor, _relay: relay, payments }
    }

    /// Opens windows that end after so many tenths of a second, and waits until the monitor knows them.
    async fn open(&self, tenths: Range<u32>) {
        let client = heartbeat::http::client(Duration::from_secs(10)).unwrap();
        for tenths in tenths.clone() {
            let request = json!({
                "duration_sec": f64::from(tenths) / 10.0,
                "tick_seconds": 0.25,
                "error_status_no_reportado": 0,
            });
            let post = client.post(self.payments.url("/report-windows")).body(request.to_string());
            assert_eq!(answer(post.send().await.unwrap()).await.0, 202);
        }
        let all = i64::try_from(tenths.len()).unwrap();
        eventually("all are known", async || (self.count("windows").await == all).then_some(()))
            .await;
    }

    async fn count(&self, condition: &str) -> i64 {
        let mut connection = MySqlConnection::connect(&self.ground.monitor_url).await.unwrap();
        let counting = sqlx::AssertSqlSafe(format!("SELECT COUNT(*) FROM {condition}"));
        sqlx::query_scalar(counting).fetch_one(&mut connection).await.unwrap()
    }

    fn tell_redis(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.redis.pid()).unwrap()), signal).unwrap();
    }

    /// Waits until all windows are closed. None has ever been an alert.
    async fn closes_without_an_alert(self) {
        eventually("all are closed", async || {
            (self.count("windows WHERE status = 'OPEN'").await == 0).then_some(())
        })
        .await;
        assert_eq!(self.count("window_history WHERE status = 'ALERT'").await, 0);
        drop((self.payments, self.monitor));
        self.redis.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_stands_still_alerts_nobody() {
    let stage = Stage::new().await;
    // They end before, while and just after Redis stands still.
    stage.open(10..70).await;
    stage.tell_redis(Signal::SIGSTOP);
    tokio::time::sleep(STANDS_STILL).await;
    stage.tell_redis(Signal::SIGCONT);
    stage.closes_without_an_alert().await;
}

/// What a sender has not been able to publish is waited for, although the relay is back before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_is_slower_to_come_back_than_the_relay_is_waited_for() {
    let stage = Stage::new().await;
    stage.open(20..35).await;
    stage.tell_redis(Signal::SIGSTOP);
    tokio::time::sleep(STANDS_STILL).await;
    // All windows are over, and what they had to send waits in the outbox.
    stage.payments.signal(Signal::SIGSTOP);
    stage.tell_redis(Signal::SIGCONT);
    tokio::time::sleep(IS_SLOWER).await;
    stage.payments.signal(Signal::SIGCONT);
    stage.closes_without_an_alert().await;
}

/// A Redis of its own in a directory, with more options.
fn redis_in(directory: &Path, options: &[&str]) -> Child {
    let path = directory.to_str().unwrap();
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--unixsocket", &format!("{path}/socket"), "--dir", path]);
    command.args(options).stdout(Stdio::null()).kill_on_drop(true).spawn().unwrap()
}

#[tokio::test]
async fn a_role_that_starts_waits_while_redis_loads_its_data() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("redis+unix://{}/socket", directory.path().display());
    let client = redis::Client::open(url.clone()).unwrap();
    let connected = async || {
        eventually("Redis answers", async || client.get_multiplexed_async_connection().await.ok())
            .await
    };
    let mut redis = redis_in(directory.path(), &["--enable-debug-command", "yes"]);
    let mut connection = connected().await;
    let populate = ["POPULATE", "3000", "key", "100"];
    cmd("DEBUG").arg(&populate).query_async::<()>(&mut connection).await.unwrap();
    cmd("SHUTDOWN").arg("SAVE").query_async::<()>(&mut connection).await.ok();
    redis.wait().await.unwrap();

    // Redis names no unit: microseconds for each key, and how many bytes it reads between two answers.
    let slowly = ["--key-load-delay", "500", "--loading-process-events-interval-bytes", "1024"];
    let _redis = redis_in(directory.path(), &slowly);
    let mut connection = connected().await;
    let info: redis::InfoDict =
        cmd("INFO").arg("persistence").query_async(&mut connection).await.unwrap();
    assert_eq!(info.get::<u8>("loading"), Some(1), "this test needs one that is loading");
    let url: RedisUrl = url.parse().unwrap();
    let link = Link::new(&url).unwrap();
    link.wait_until_ready(&url, Duration::from_secs(30)).await.unwrap();
    link.ping().await.unwrap();
}
