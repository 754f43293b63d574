//! A Redis that stands still while windows end: nobody is alerted about a healthy service.

use std::time::Duration;

use heartbeat::local::{Options, Redis};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

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
