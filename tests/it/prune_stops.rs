//! Pruning that is interrupted: a step happens or does not, and somebody goes on.

use std::time::Duration;

use heartbeat::clock;
use heartbeat::monitor::{counting, prune};
use heartbeat::wire::Window;

use crate::prune::{DAY, leftovers, missed, rows, totals, window_at};
use crate::support::{Ground, Process, Scrape, eventually, window};
use crate::totals::ledger;

/// A window of many slots goes in many steps. Whatever stops in between, the rest is as it was, and
/// another monitor goes on.
#[tokio::test]
async fn a_step_is_small_and_happens_or_does_not() {
    let ground = Ground::new().await;
    let (monitor, other) = (ground.monitor().await, ground.monitor().await);
    let large = window("payments-a", 5_000);
    missed(&monitor, std::slice::from_ref(&large)).await;
    let later = large.ends_at().plus(31 * DAY);
    counting::count_all(&monitor, later).await.unwrap();
    let before = totals(&monitor, "'', 'payments-a'").await;
    let run = async |statement| sqlx::raw_sql(statement).execute(&monitor.pool).await.unwrap();
    // The last statement of the transaction that archives, as if the process died before it.
    run("CREATE TRIGGER stop BEFORE DELETE ON counted_windows FOR EACH ROW \
         SIGNAL SQLSTATE '45000'")
    .await;
    assert!(prune::prune_once(&monitor, later).await.is_err());
    run("DROP TRIGGER stop").await;
    assert_eq!(rows(&monitor, "windows_to_empty").await, 0);
    assert_eq!(rows(&monitor, "archived_totals").await, 0);
    assert_eq!(rows(&monitor, "windows WHERE events_kept").await, 1);
    assert_eq!(ledger(&monitor).await[0], 5_000);

    let first = prune::prune_once(&monitor, later).await.unwrap();
    assert_eq!((first.let_go, first.deleted.get("events")), (1, None), "{first:?}");
    let mut steps = 0;
    while rows(&other, "windows_to_empty").await > 0 {
        // The caller gives up, and the transaction ends by itself.
        let step = prune::prune_once(&other, later);
        drop(tokio::time::timeout(Duration::from_millis(1), step).await);
        let step = prune::prune_once(&monitor, later).await.unwrap();
        assert!(step.deleted.get("events").is_none_or(|rows| *rows <= 1_000), "{step:?}");
        steps += 1;
    }
    assert!(steps >= 2, "{steps}");
    prune::prune_all(&monitor, later).await.unwrap();
    assert_eq!((rows(&monitor, "events").await, leftovers(&monitor).await), (0, 0));
    assert_eq!(totals(&monitor, "'', 'payments-a'").await, before);
    assert_eq!(rows(&monitor, "report_totals WHERE span = 'slice'").await, 0);
}

/// A monitor that is killed while it prunes, one that is told to stop, and one that finishes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn monitors_that_die_or_stop_leave_nothing_half_done() {
    let ground = Ground::new().await;
    let monitor = ground.monitor().await;
    let from = clock::now().minus(40 * DAY);
    let windows: Vec<Window> = (0..600).map(|_| window_at("payments-a", from, 100)).collect();
    missed(&monitor, &windows).await;
    counting::count_all(&monitor, clock::now()).await.unwrap();
    let (before, all) = (totals(&monitor, "''").await, rows(&monitor, "events").await);
    let left = async |fewer: i64| {
        eventually("some is pruned", async || {
            let left = rows(&monitor, "events").await;
            (left < fewer).then_some(left)
        })
        .await
    };
    let process = Process::monitor(&ground, &[]).await;
    let first = left(all - 4_000).await;
    process.kill().await;
    assert!(first > 4_000, "{first} left: it was killed at work");
    let process = Process::monitor(&ground, &[]).await;
    let pruned = "heartbeat_monitor_pruned_rows_total{table=\"events\"}";
    eventually("it is counted", async || {
        (Scrape::role(&process).await.get(pruned) > 0.0).then_some(())
    })
    .await;
    let oldest = "heartbeat_monitor_oldest_kept_age_seconds{of=\"windows\"}";
    let age = Scrape::role(&process).await.get(oldest);
    assert!((39.0 * 86_400.0..41.0 * 86_400.0).contains(&age), "{age}");
    let (status, took) = process.terminate().await;
    assert!(status.success() && took < Duration::from_secs(5), "{status} {took:?}");
    prune::prune_all(&monitor, clock::now()).await.unwrap();
    assert_eq!((rows(&monitor, "events").await, leftovers(&monitor).await), (0, 0));
    assert_eq!(totals(&monitor, "''").await, before);
    counting::rebuild(&monitor).await.unwrap();
    counting::count_all(&monitor, clock::now()).await.unwrap();
    assert_eq!(totals(&monitor, "''").await, before);
}
