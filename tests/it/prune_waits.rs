//! What pruning waits for, and what it does not let others wait for.

use std::time::Duration;

use heartbeat::clock;
use heartbeat::monitor::ingest::Outcome;
use heartbeat::monitor::retention::{Retain, RetentionArgs};
use heartbeat::monitor::{Monitor, counting, ingest, pipeline, prune, sweep};
use heartbeat::wire::{Announcement, Timestamp, Window};
use sqlx::AssertSqlSafe;

use crate::prune::{DAY, missed, rows, window_at};
use crate::support::{Ground, announcement, at, entry_id, heartbeat, report, window};
use crate::totals::give_up_on_one;

/// Windows that ended long ago, counted and judged; and a time at which they are too old.
async fn old(monitor: &Monitor, number: usize) -> (Vec<Window>, Timestamp) {
    let windows: Vec<Window> = (0..number).map(|_| window("payments-a", 2)).collect();
    missed(monitor, &windows).await;
    let later = windows[0].ends_at().plus(31 * DAY);
    counting::count_all(monitor, later).await.unwrap();
    (windows, later)
}

async fn run(monitor: &Monitor, statement: &str) {
    let statement = AssertSqlSafe(statement.to_owned());
    sqlx::raw_sql(statement).execute(&monitor.pool).await.unwrap();
}

/// Neither an open window, nor one of which something could not be observed, however old.
#[tokio::test]
async fn what_is_not_decided_is_kept() {
    let monitor = Ground::new().await.monitor().await;
    let monitor = Monitor { max_hold: Duration::ZERO, ..monitor };
    let open = window("payments-a", 2);
    let told = Announcement { stream_id: Some(entry_id(open.from())), ..announcement(&open) };
    pipeline::accept(&monitor, report(at("2026-11-21T09:00:00Z")), open.from()).await.unwrap();
    give_up_on_one(&monitor, open.from()).await;
    ingest::announce(&monitor, vec![told], open.from()).await.unwrap();
    ingest::ingest(&monitor, vec![heartbeat(&open, 0)], open.from()).await.unwrap();
    assert_eq!(rows(&monitor, "windows WHERE unobserved_reports > 0").await, 1);
    let later = open.ends_at().plus(1_000 * DAY);
    counting::count_all(&monitor, later).await.unwrap();
    let pruned = prune::prune_all(&monitor, later).await.unwrap();
    assert_eq!((pruned.let_go, pruned.deleted.get("events")), (0, None));
    assert_eq!((rows(&monitor, "windows").await, rows(&monitor, "events").await), (2, 4));
    let (kept, retention) = (Retain::Forever, monitor.retention);
    let forever = RetentionArgs { retain_events: kept, retain_windows: kept };
    let monitor = Monitor { retention: forever, ..monitor };
    pipeline::accept(&monitor, report(later), later).await.unwrap();
    sweep::sweep_all(&monitor, later).await.unwrap();
    let much_later = later.plus(DAY);
    counting::count_all(&monitor, much_later).await.unwrap();
    assert_eq!(prune::prune_all(&monitor, much_later).await.unwrap().let_go, 0);
    let monitor = Monitor { retention, ..monitor };
    assert_eq!(prune::prune_all(&monitor, much_later.plus(31 * DAY)).await.unwrap().let_go, 2);
}

/// A monitor claims windows, asks both ledgers about them, and stores what they say: in between they
/// may not be archived with the verdicts of before.
#[tokio::test]
async fn what_is_being_judged_is_not_archived() {
    let monitor = Ground::new().await.monitor().await;
    let (_, later) = old(&monitor, 3).await;
    let claimed = later.plus(Duration::from_mins(2));
    run(&monitor, &format!("UPDATE counted_windows SET judge_at = '{}'", sql(claimed))).await;
    assert_eq!(prune::prune_all(&monitor, later).await.unwrap().let_go, 0);
    run(&monitor, "UPDATE counted_windows SET judge_at = NULL").await;
    assert_eq!(prune::prune_all(&monitor, later).await.unwrap().let_go, 3);
}

/// More of them have to wait than one step looks at: judged over and over, set aside by counting, or
/// with rows that nobody can read.
#[tokio::test]
async fn what_has_to_wait_keeps_nothing_waiting() {
    let monitor = Ground::new().await.monitor().await;
    let (_, later) = old(&monitor, 200).await;
    run(
        &monitor,
        &format!(
            "UPDATE counted_windows SET judge_at = '{at}' ORDER BY window_id LIMIT 70; \
             INSERT INTO uncounted_windows (window_id, not_before) SELECT window_id, '{at}' \
             FROM counted_windows WHERE judge_at > '{at}' ORDER BY window_id LIMIT 70; \
             UPDATE counted_windows SET added = 'unreadable' ORDER BY window_id DESC LIMIT 1",
            at = sql(later.plus(Duration::from_mins(1)))
        ),
    )
    .await;
    let pruned = prune::prune_all(&monitor, later).await.unwrap();
    assert_eq!(pruned.let_go, 59, "{pruned:?}");
    assert_eq!(rows(&monitor, "windows WHERE events_kept").await, 141);
    assert_eq!(pruned.deleted.get("events"), Some(&118));
}

/// Windows of many slots fill a step before all that it looks at are archived: the rest is next.
#[tokio::test]
async fn what_a_step_has_no_room_for_is_next() {
    let monitor = Ground::new().await.monitor().await;
    let windows: Vec<Window> = (0..66).map(|_| window("payments-a", 400)).collect();
    missed(&monitor, &windows).await;
    let later = windows[0].ends_at().plus(31 * DAY);
    counting::count_all(&monitor, later).await.unwrap();
    let mut steps = Vec::new();
    while steps.iter().sum::<usize>() < 66 {
        let step = prune::prune_once(&monitor, later).await.unwrap();
        steps.extend((step.let_go > 0).then_some(step.let_go));
    }
    assert_eq!(steps, [50, 16]);
}

/// Whoever counts has the totals to itself, for a moment; a monitor that prunes comes back for it soon.
#[tokio::test]
async fn what_waits_for_the_count_says_so() {
    let monitor = Ground::new().await.monitor().await;
    let (_, later) = old(&monitor, 2).await;
    let mut counting = monitor.pool.begin().await.unwrap();
    sqlx::raw_sql("SELECT 1 FROM counting FOR UPDATE").execute(&mut *counting).await.unwrap();
    let waiting = prune::prune_once(&monitor, later).await.unwrap();
    assert!(waiting.has_to_wait && waiting.let_go == 0, "{waiting:?}");
    counting.rollback().await.unwrap();
    let pruned = prune::prune_once(&monitor, later).await.unwrap();
    assert!(!pruned.has_to_wait && pruned.let_go == 2, "{pruned:?}");
}

/// Of a window that nobody has heard of yet, everything may still be in the stream.
#[tokio::test]
async fn what_an_outage_holds_up_is_not_taken_for_gone() {
    let monitor = Ground::new().await.monitor().await;
    let day = Retain::For(DAY);
    let retention = RetentionArgs { retain_events: day, retain_windows: day };
    let monitor = Monitor { retention, ..monitor };
    let (windows, later) = old(&monitor, 2).await;
    let from = windows[0].ends_at();
    pipeline::accept(&monitor, report(from.plus(DAY)), later).await.unwrap();
    let pruned = prune::prune_all(&monitor, later).await.unwrap();
    assert_eq!(pruned.deleted.get("windows"), Some(&2), "{pruned:?}");
    let held_up = window_at("payments-b", from.plus(2 * DAY), 2);
    let sent = vec![heartbeat(&held_up, 0)];
    assert_eq!(ingest::ingest(&monitor, sent, later).await.unwrap(), [Outcome::Recorded]);
}

/// What is old goes by the clock alone, so that one that jumps ahead must not say it.
#[tokio::test]
async fn a_clock_that_is_ahead_of_the_databases_prunes_nothing() {
    let monitor = Ground::new().await.monitor().await;
    let now = clock::now();
    for (minutes, is_right) in [(0, true), (9, true), (11, false), (60 * 24 * 31, false)] {
        let at = now.plus(Duration::from_mins(minutes));
        assert_eq!(prune::is_clock_right(&monitor, at).await.unwrap(), is_right, "{minutes}");
    }
    assert!(prune::is_clock_right(&monitor, now.minus(31 * DAY)).await.unwrap());
}

/// An instant as both databases write it.
fn sql(at: Timestamp) -> String {
    at.to_string().replace('T', " ").replace('Z', "")
}
