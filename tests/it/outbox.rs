//! The audit as the outbox: what it says, and does not say, when something goes wrong on the way.

use std::time::Duration;

use heartbeat::payments::emitter;
use heartbeat::payments::publish::{self, Progress};
use nix::sys::signal::Signal;
use redis::AsyncCommands;
use serde_json::json;

use crate::payments::{opened, payloads, sent_and_not};
use crate::support::{Ground, Process, eventually};

#[tokio::test]
async fn what_redis_did_not_take_is_not_marked_as_sent() {
    let ground = Ground::new().await;
    let payments = ground.payments("payments-a").await;
    let plan = opened(&payments).await;
    for slot in 0..10 {
        emitter::tick_once(&payments, &plan, slot, plan.window.due(slot)).await.unwrap();
    }
    let mut redis = ground.redis().await;
    let mut progress = Progress::default();
    for key in [ground.stream.windows(), ground.stream.reports()] {
        redis.set::<_, _, ()>(key, "no stream").await.unwrap();
        publish::publish_once(&payments, &plan, &mut progress).await.unwrap_err();
        let announced: i64 =
            sqlx::query_scalar("SELECT COUNT(announcement_id) FROM report_windows")
                .fetch_one(&payments.pool)
                .await
                .unwrap();
        assert_eq!(announced == 1, key == ground.stream.reports(), "{key}");
        assert_eq!(sent_and_not(&payments).await, (0, 10), "{key}");
        redis.del::<_, ()>(key).await.unwrap();
    }
    publish::publish_once(&payments, &plan, &mut progress).await.unwrap();
    assert_eq!(sent_and_not(&payments).await, (9, 1), "the omitted one stays unsent");
    assert_eq!(payloads(&ground, ground.stream.reports()).await.len(), 9);
}

/// As after a laptop was closed, or on a host that gives it no processor.
#[tokio::test]
async fn a_process_that_stood_still_back_dates_nothing() {
    let ground = Ground::new().await;
    let state = ground.payments("payments-a").await;
    let service = Process::payments(&ground, "payments-a", &[]).await;
    let request = json!({"duration_sec": 60, "tick_seconds": 0.2, "error_status_no_reportado": 0});
    let client = heartbeat::http::client(Duration::from_secs(10)).unwrap();
    let open = client.post(service.url("/report-windows")).body(request.to_string());
    assert_eq!(open.send().await.unwrap().status(), 202);
    let stored_more_than = async |before: i64| {
        eventually("more is stored", async || {
            let stored = sqlx::query_scalar("SELECT COUNT(*) FROM report_audit");
            let stored: i64 = stored.fetch_one(&state.pool).await.unwrap();
            (stored > before).then_some(stored)
        })
        .await
    };
    let before = stored_more_than(2).await;
    service.signal(Signal::SIGSTOP);
    // Long enough for several ticks to pass.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    service.signal(Signal::SIGCONT);
    stored_more_than(before + 3).await;
    let too_late: Vec<i32> = sqlx::query_scalar(
        "SELECT slot FROM report_audit \
         WHERE timestamp NOT BETWEEN window_from + INTERVAL 200000 * slot MICROSECOND \
         AND window_from + INTERVAL 200000 * (slot + 1) MICROSECOND",
    )
    .fetch_all(&state.pool)
    .await
    .unwrap();
    assert!(too_late.is_empty(), "stored in another slot's time: {too_late:?}");
}
