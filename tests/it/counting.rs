//! Counting and judging when something stands in the way: rows that cannot be read, a turn that
//! somebody keeps, a database that says nothing, and more work than one step takes.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use heartbeat::config::{DatabaseArgs, DatabaseUrl};
use heartbeat::db;
use heartbeat::monitor::{Monitor, counting, ingest, pipeline, sweep};
use heartbeat::wire::{DeadLetterReport, PipelineReport, Rates, Tick, Timestamp, Window};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::support::{
    Ground, Proxy, announcement, at, entry_id, eventually, heartbeat, report, window,
};

async fn run(monitor: &Monitor, statement: &str) {
    let statement = AssertSqlSafe(statement.to_owned());
    sqlx::raw_sql(statement).execute(&monitor.pool).await.unwrap();
}

async fn number(monitor: &Monitor, question: &str) -> i64 {
    let question = AssertSqlSafe(question.to_owned());
    sqlx::query_scalar(question).fetch_one(&monitor.pool).await.unwrap()
}

/// Heartbeats in the totals of all services and days.
async fn received(monitor: &Monitor) -> i64 {
    let sum = "SELECT CAST(COALESCE(SUM(received_reports), 0) AS SIGNED) FROM report_totals \
        WHERE span = 'day' AND service_name = ''";
    number(monitor, sum).await
}

/// Marks that wait to be counted.
async fn marks(monitor: &Monitor) -> i64 {
    number(monitor, "SELECT COUNT(*) FROM uncounted_windows").await
}

/// When windows are to be judged, soonest first; never is not listed.
async fn judge_at(monitor: &Monitor) -> Vec<Timestamp> {
    let due = "SELECT judge_at FROM counted_windows WHERE judge_at IS NOT NULL ORDER BY judge_at";
    let due: Vec<DateTime<Utc>> = sqlx::query_scalar(due).fetch_all(&monitor.pool).await.unwrap();
    due.into_iter().map(Timestamp::from).collect()
}

/// Windows of two slots that have closed without a heartbeat. Answers them in the order of their
/// rows, and an instant a minute after their end.
async fn closed(monitor: &Monitor, number: usize) -> (Vec<Window>, Timestamp) {
    let windows: Vec<Window> = (0..number).map(|_| window("payments-a", 2)).collect();
    let over = windows[0].ends_at().plus(Duration::from_mins(1));
    for window in &windows {
        ingest::announce(monitor, vec![announcement(window)], window.from()).await.unwrap();
    }
    sweep::sweep_all(monitor, over).await.unwrap();
    (windows, over)
}

#[tokio::test]
async fn totals_are_emptied_in_steps_before_they_are_counted_anew() {
    let monitor = Ground::new().await.monitor().await;
    let (windows, over) = closed(&monitor, 3).await;
    ingest::ingest(&monitor, vec![heartbeat(&windows[0], 1)], over).await.unwrap();
    counting::count_all(&monitor, over).await.unwrap();
    let counted = number(&monitor, "SELECT COUNT(*) FROM report_totals").await;
    run(
        &monitor,
        "INSERT INTO report_totals SELECT 'slice', CONCAT('gone-', n), NOW(6), 1, 1, 0, 0, 0, 0, 0, \
         1, 0, '{}', '{}' FROM (SELECT a.n * 1000 + b.n AS n FROM \
         (WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 10) SELECT n FROM n) a, \
         (WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 999) SELECT n FROM n) b) n",
    )
    .await;
    counting::rebuild(&monitor).await.unwrap();
    let later = over.plus(Duration::from_hours(1));
    let mut sizes = Vec::new();
    while sizes.last() != Some(&0) {
        assert_eq!(counting::judge_once(&monitor, later).await.unwrap(), 0, "nothing is added");
        counting::count_once(&monitor, later).await.unwrap();
        sizes.push(number(&monitor, "SELECT COUNT(*) FROM report_totals").await);
    }
    assert_eq!(sizes, [6_000 + counted, 1_000 + counted, 0]);
    counting::count_all(&monitor, later).await.unwrap();
    assert_eq!(number(&monitor, "SELECT COUNT(*) FROM report_totals").await, counted);
    assert_eq!(received(&monitor).await, 1);
}

/// Of one, what it has added before cannot be read; of another, nothing can.
#[tokio::test]
async fn a_window_that_cannot_be_counted_holds_up_no_other() {
    let monitor = Ground::new().await.monitor().await;
    let (windows, over) = closed(&monitor, 6).await;
    counting::count_all(&monitor, over).await.unwrap();
    run(
        &monitor,
        "UPDATE counted_windows SET added = CONCAT('?', added) ORDER BY window_id LIMIT 1; \
         UPDATE windows SET service_name = '' ORDER BY id DESC LIMIT 1",
    )
    .await;
    for window in &windows[..5] {
        ingest::ingest(&monitor, vec![heartbeat(window, 0)], over).await.unwrap();
    }
    run(&monitor, "INSERT INTO uncounted_windows (window_id) SELECT MAX(id) FROM windows").await;
    counting::count_all(&monitor, over).await.unwrap();
    assert_eq!((received(&monitor).await, marks(&monitor).await), (4, 2));

    // They are tried again, but not at once.
    run(
        &monitor,
        "UPDATE counted_windows SET added = SUBSTR(added, 2) WHERE added LIKE '?%'; \
         UPDATE windows SET service_name = 'payments-a' WHERE service_name = ''",
    )
    .await;
    counting::count_all(&monitor, over).await.unwrap();
    assert_eq!((received(&monitor).await, marks(&monitor).await), (4, 2));
    counting::count_all(&monitor, over.plus(Duration::from_mins(10))).await.unwrap();
    assert_eq!((received(&monitor).await, marks(&monitor).await), (5, 0));
}

#[tokio::test]
async fn a_window_that_cannot_be_judged_holds_up_no_other() {
    let monitor = Ground::new().await.monitor().await;
    let (_, over) = closed(&monitor, 2).await;
    counting::count_once(&monitor, over).await.unwrap();
    run(&monitor, "UPDATE counted_windows SET added = '?' ORDER BY window_id LIMIT 1").await;
    assert_eq!(counting::judge_once(&monitor, over).await.unwrap(), 2);
    let minutes = |minutes| over.plus(Duration::from_mins(minutes));
    assert_eq!(judge_at(&monitor).await, [minutes(1), minutes(10)]);
}

/// What has closed a moment ago is asked for before what has waited for long, and by one monitor.
#[tokio::test]
async fn the_newest_windows_are_judged_first_and_by_one_monitor() {
    let ground = Ground::new().await;
    let monitors = [ground.monitor().await, ground.monitor().await];
    let (_, over) = closed(&monitors[0], 70).await;
    counting::count_once(&monitors[0], over).await.unwrap();
    let later = over.plus(Duration::from_mins(1));
    let newest = "UPDATE counted_windows SET judge_at = judge_at + INTERVAL 1 SECOND \
        ORDER BY window_id DESC LIMIT 10";
    run(&monitors[0], newest).await;
    assert_eq!(counting::judge_once(&monitors[0], later).await.unwrap(), 64);
    let due = judge_at(&monitors[0]).await;
    assert_eq!(due.iter().filter(|at| **at == over).count(), 6, "of the oldest: {due:?}");

    run(&monitors[0], "UPDATE counted_windows SET judge_at = '2026-11-21 10:00:00'").await;
    let (one, other) = tokio::join!(
        counting::judge_once(&monitors[0], later),
        counting::judge_once(&monitors[1], later),
    );
    let both = one.unwrap() + other.unwrap();
    assert!((64..=70).contains(&both), "{both}: no window twice");
}

/// An audit may be read from a replica that is behind.
#[tokio::test]
async fn no_verdict_of_a_young_window_is_final() {
    let monitor = Ground::new().await.monitor().await;
    let (windows, over) = closed(&monitor, 1).await;
    let window = &windows[0];
    let letters = [0, 1].map(|slot| DeadLetterReport {
        stream: "reports".to_owned(),
        stream_id: entry_id(window.due(slot)),
        window_uuid: Some(window.uuid),
        slot: Some(i64::from(slot)),
        reason: "refused".to_owned(),
        at: over,
    });
    let told = PipelineReport { dead_letters: letters.to_vec(), ..report(over) };
    pipeline::accept(&monitor, told, over).await.unwrap();
    counting::count_all(&monitor, over).await.unwrap();
    let old = window.ends_at().plus(Duration::from_mins(10));
    assert_eq!(judge_at(&monitor).await, [old]);
    counting::count_all(&monitor, old).await.unwrap();
    assert_eq!(judge_at(&monitor).await, []);
}

/// For longer than the database waits for any lock, which is 2 s.
#[tokio::test]
async fn a_turn_that_somebody_keeps_for_long_is_waited_for() {
    let ground = Ground::new().await;
    let monitor = ground.monitor().await;
    let (_, over) = closed(&monitor, 1).await;
    counting::count_once(&monitor, over).await.unwrap();
    let mut keeper = monitor.pool.begin().await.unwrap();
    sqlx::raw_sql("SELECT epoch FROM counting FOR UPDATE").execute(&mut *keeper).await.unwrap();
    let began = Instant::now();
    let (judged, rebuilt, ()) =
        tokio::join!(counting::judge_once(&monitor, over), counting::rebuild(&monitor), async {
            let long = Duration::from_millis(2_500);
            eventually("it is long", async || (began.elapsed() > long).then_some(())).await;
            keeper.rollback().await.unwrap();
        });
    judged.unwrap();
    rebuilt.unwrap();
    counting::count_all(&monitor, over).await.unwrap();
    let missing =
        "SELECT CAST(SUM(missing_reports) AS SIGNED) FROM report_totals WHERE span = 'day'";
    assert_eq!(number(&monitor, missing).await, 4, "of one service and of all");
}

/// The connection of a step falls silent, as when a host vanishes.
#[tokio::test]
async fn a_question_that_is_never_answered_does_not_end_judging() {
    let ground = Ground::new().await;
    let server =
        ground.monitor_tcp_url.split(['@', '/']).find(|part| part.starts_with("127.0.0.1:"));
    let proxy = Proxy::start(server.unwrap().parse().unwrap()).await;
    let url = ground.monitor_tcp_url.replace(server.unwrap(), &proxy.address.to_string());
    let url: DatabaseUrl = url.parse().unwrap();
    let direct = ground.monitor().await;
    let (_, over) = closed(&direct, 1).await;
    counting::count_once(&direct, over).await.unwrap();

    let mut other = direct.pool.acquire().await.unwrap();
    // One question at the beginning and one in the middle: of windows, and of their events.
    for (table, later) in [("windows", 0), ("events", 10)] {
        let lock = AssertSqlSafe(format!("LOCK TABLES {table} WRITE"));
        sqlx::raw_sql(lock).execute(&mut *other).await.unwrap();
        let now = over.plus(Duration::from_mins(later));
        // Its first connection is a good one.
        let pool =
            db::connect(&url, ("monitor database", DatabaseArgs::OPTION), Duration::from_secs(5))
                .await
                .unwrap();
        let asker = Monitor { pool, ..direct.clone() };
        let step = tokio::spawn(async move { counting::judge_once(&asker, now).await });
        let waiting = "SELECT COUNT(*) FROM information_schema.PROCESSLIST \
            WHERE DB = DATABASE() AND STATE LIKE 'Waiting for table%'";
        eventually("it waits for the table", async || {
            // MySQL refuses it while another test's statement there holds bytes that are no text.
            let asking = sqlx::query_scalar(waiting).fetch_one(&direct.pool).await;
            asking.is_ok_and(|count: i64| count == 1).then_some(())
        })
        .await;
        proxy.fall_silent();
        sqlx::raw_sql("UNLOCK TABLES").execute(&mut *other).await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(12), step).await;
        ended.expect("it is given up").unwrap().unwrap_err();
    }
}

/// A window of years has as many slots as any, and changes as many totals as it has days.
#[tokio::test]
async fn a_window_of_years_is_counted() {
    let monitor = Ground::new().await.monitor().await;
    let from = at("2014-11-21T10:00:00Z");
    let hour = Tick::from_micros(3_600_000_000).unwrap();
    let span = (from, from.plus(Duration::from_hours(20_000)));
    let service = "payments-a".parse().unwrap();
    let long = Window::new(Uuid::new_v4(), service, span, hour, Rates::default()).unwrap();
    let over = long.ends_at().plus(Duration::from_mins(1));
    ingest::ingest(&monitor, vec![heartbeat(&long, 30)], long.due(30)).await.unwrap();
    sweep::sweep_all(&monitor, over).await.unwrap();
    counting::count_once(&monitor, over).await.unwrap();
    let slices = "SELECT COUNT(*) FROM report_totals WHERE span = 'slice' AND service_name = ''";
    assert_eq!(number(&monitor, slices).await, 834, "one for each day");
    assert_eq!(received(&monitor).await, 1);
}
