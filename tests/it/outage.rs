//! A Redis that stands still while windows end: nobody is alerted about a healthy service. And one
//! that loads its data: a role that starts waits for it.

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
use tokio::process::{Child, Command};

use crate::support::{Ground, Process, answer, eventually, free_address};

/// Longer than a window's grace, shorter than whoever asks Redis waits for an answer twice.
const STANDS_STILL: Duration = Duration::from_millis(4_500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_stands_still_alerts_nobody() {
    let ground = Ground::new().await;
    let directory = tempfile::tempdir().unwrap();
    let redis = Redis::start(directory.path(), &Options::default()).await.unwrap();
    let redis_url = redis.url();
    let quick = ["--sweep-interval", "100ms", "--replay-grace", "5s"];
    let monitor = Process::monitor(&ground, &quick).await;
    let monitor_url = monitor.url("");
    let at = [("REDIS_URL", redis_url.as_str()), ("MONITOR_URL", monitor_url.as_str())];
    let _relay = Process::role("relay", &["--consumer-name", "one"], &at).await;
    let environment = [
        ("REDIS_URL", redis_url.as_str()),
        ("DATABASE_URL", ground.payments_url.as_str()),
        ("SERVICE_NAME", "payments-a"),
    ];
    let payments = Process::role_at(free_address(), "payments", &[], &environment).await;
    let client = heartbeat::http::client(Duration::from_secs(10)).unwrap();
    // They end before, while and just after Redis stands still.
    for tenths in 10..70_u32 {
        let request = json!({
            "duration_sec": f64::from(tenths) / 10.0,
            "tick_seconds": 0.25,
            "error_status_no_reportado": 0,
        });
        let post = client.post(payments.url("/report-windows")).body(request.to_string());
        assert_eq!(answer(post.send().await.unwrap()).await.0, 202);
    }
    let state = ground.monitor().await;
    let count = async |condition: &str| -> i64 {
        let counting = sqlx::AssertSqlSafe(format!("SELECT COUNT(*) FROM {condition}"));
        sqlx::query_scalar(counting).fetch_one(&state.pool).await.unwrap()
    };
    eventually("all are known", async || (count("windows").await == 60).then_some(())).await;
    let pid = Pid::from_raw(i32::try_from(redis.pid()).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    tokio::time::sleep(STANDS_STILL).await;
    kill(pid, Signal::SIGCONT).unwrap();
    eventually("all are closed", async || {
        (count("windows WHERE status <> 'OPEN'").await == 60).then_some(())
    })
    .await;
    assert_eq!(count("window_history WHERE status = 'ALERT'").await, 0);
    redis.stop().await.unwrap();
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
