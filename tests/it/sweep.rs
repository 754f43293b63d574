//! Closing windows: when, by whom, and with which events.

use std::time::Duration;

use chrono::{DateTime, Utc};
use heartbeat::monitor::window::WindowStatus;
use heartbeat::monitor::{ingest, latest_windows, sweep};
use heartbeat::wire::{Rates, Tick, Timestamp, Window};
use sqlx::Row;
use uuid::Uuid;

use crate::support::{Ground, announcement, at, heartbeat, window};

#[tokio::test]
async fn a_missing_slot_is_an_event_at_the_time_it_was_due() {
    let monitor = Ground::new().await.monitor().await;
    let window = window("payments-a", 3);
    ingest::ingest(&monitor, vec![heartbeat(&window, 0)], window.from()).await.unwrap();
    let over = window.ends_at().plus(monitor.grace);
    assert_eq!(sweep::sweep_all(&monitor, over).await.unwrap(), 1);
    let rows = sqlx::query(
        "SELECT service_name, status, report_timestamp FROM heartbeat_events ORDER BY report_timestamp",
    )
    .fetch_all(&monitor.pool)
    .await
    .unwrap();
    let events: Vec<(String, Timestamp)> = rows
        .iter()
        .map(|row| (row.get("status"), row.get::<DateTime<Utc>, _>("report_timestamp").into()))
        .collect();
    let missing = |slot| ("MISSING".to_owned(), window.due(slot));
    assert_eq!(events, [("OK".to_owned(), window.due(0)), missing(1), missing(2)]);
    assert_eq!(rows[2].get::<String, _>("service_name"), "payments-a");
}

#[tokio::test]
async fn a_window_closes_after_its_last_slot_and_the_grace_not_before() {
    let monitor = Ground::new().await.monitor().await;
    // 25 s of 10 s ticks: the last slot ends 5 s after the window.
    let from = at("2026-11-21T10:00:00Z");
    let window = Window::new(
        Uuid::new_v4(),
        "payments-a".parse().unwrap(),
        (from, from.plus(Duration::from_secs(25))),
        Tick::DEFAULT,
        Rates::default(),
    )
    .unwrap();
    ingest::announce(&monitor, vec![announcement(&window)], from).await.unwrap();
    let closes_at = from.plus(Duration::from_secs(30)).plus(monitor.grace);
    let before = closes_at.plus_micros(-1);
    assert!(sweep::sweep_once(&monitor, before).await.unwrap().is_empty());
    let held = sweep::sweep_on_request(&monitor, before).await.unwrap().held;
    assert_eq!(held.len(), 1);
    assert!(held[0].1.contains("closes at 2026-11-21T10:00:32Z"), "{}", held[0].1);
    assert_eq!(sweep::sweep_once(&monitor, closes_at).await.unwrap().len(), 1);
    let again = sweep::sweep_on_request(&monitor, closes_at).await.unwrap();
    assert!(again.closed.is_empty() && again.held.is_empty());
}

#[tokio::test]
async fn one_window_can_be_closed_on_request() {
    let monitor = Ground::new().await.monitor().await;
    let (wanted, other) = (window("payments-a", 2), window("payments-a", 2));
    let over = wanted.ends_at().plus(Duration::from_mins(1));
    ingest::announce(&monitor, vec![announcement(&wanted), announcement(&other)], wanted.from())
        .await
        .unwrap();
    let early = sweep::sweep_window(&monitor, wanted.uuid, wanted.from()).await.unwrap().unwrap();
    assert_eq!((early.closed.len(), early.held.len()), (0, 1));
    let swept = sweep::sweep_window(&monitor, wanted.uuid, over).await.unwrap().unwrap();
    assert_eq!(swept.closed.len(), 1);
    assert_eq!(swept.closed[0].status, WindowStatus::Alert);
    assert_eq!(swept.closed[0].counts.missing, 2);
    let again = sweep::sweep_window(&monitor, wanted.uuid, over).await.unwrap().unwrap();
    assert!(again.closed.is_empty() && again.held[0].1.contains("was closed before"));
    assert!(sweep::sweep_window(&monitor, Uuid::new_v4(), over).await.unwrap().is_none());
    let open = latest_windows(&monitor.pool, 10).await.unwrap();
    assert_eq!(open.iter().filter(|window| window.status == WindowStatus::Open).count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_sweeps_at_once_close_each_window_once() {
    let monitor = Ground::new().await.monitor().await;
    let windows: Vec<Window> = (0..300).map(|_| window("payments-a", 3)).collect();
    let over = windows[0].ends_at().plus(Duration::from_mins(1));
    ingest::announce(&monitor, windows.iter().map(announcement).collect(), over).await.unwrap();
    let mut sweeps = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let monitor = monitor.clone();
        sweeps.spawn(async move {
            let mut closed = Vec::new();
            loop {
                let step = sweep::sweep_once(&monitor, over).await.unwrap();
                if step.is_empty() {
                    return closed;
                }
                closed.extend(step);
            }
        });
    }
    let mut closed: Vec<i64> = sweeps.join_all().await.into_iter().flatten().collect();
    closed.extend(sweep::sweep_once(&monitor, over).await.unwrap());
    closed.sort_unstable();
    let total = closed.len();
    closed.dedup();
    assert_eq!((total, closed.len()), (300, 300));
    let missing: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM events WHERE status = 'MISSING'")
        .fetch_one(&monitor.pool)
        .await
        .unwrap();
    assert_eq!(missing, 900);
}

#[tokio::test]
async fn the_largest_window_allowed_closes() {
    let monitor = Ground::new().await.monitor().await;
    let from = at("2026-11-21T10:00:00Z");
    let window = Window::new(
        Uuid::new_v4(),
        "payments-a".parse().unwrap(),
        (from, from.plus(Duration::from_secs(5_000))),
        Tick::from_seconds(0.05).unwrap(),
        Rates::default(),
    )
    .unwrap();
    assert_eq!(window.slots(), heartbeat::wire::MAX_SLOTS_PER_WINDOW);
    let over = window.ends_at().plus(Duration::from_mins(1));
    ingest::announce(&monitor, vec![announcement(&window)], over).await.unwrap();
    assert_eq!(sweep::sweep_all(&monitor, over).await.unwrap(), 1);
    let stored = latest_windows(&monitor.pool, 1).await.unwrap().remove(0);
    assert_eq!(stored.counts.missing, 100_000);
}
