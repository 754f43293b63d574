//! Taking heartbeats in: any order, duplication, loss and concurrency gives the right counts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use heartbeat::monitor::ingest::{self, Outcome};
use heartbeat::monitor::sweep;
use heartbeat::monitor::window::{Counts, StoredWindow, WindowStatus};
use heartbeat::monitor::{Monitor, latest_windows};
use heartbeat::wire::{Heartbeat, Status, Timestamp, Window};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rand::seq::SliceRandom;
use sqlx::Row;

use crate::support::{Ground, announcement, heartbeat, window};

async fn only_window(monitor: &Monitor) -> StoredWindow {
    let mut windows = latest_windows(&monitor.pool, 10).await.unwrap();
    assert_eq!(windows.len(), 1);
    windows.remove(0)
}

async fn take(monitor: &Monitor, heartbeats: Vec<Heartbeat>, now: Timestamp) -> Vec<Outcome> {
    ingest::ingest(monitor, heartbeats, now).await.unwrap()
}

fn error(heartbeat: Heartbeat) -> Heartbeat {
    Heartbeat { status: Status::Error(Some("boom".to_owned())), ..heartbeat }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_that_many_announce_at_once_are_known_to_all() {
    let monitor = Ground::new().await.monitor().await;
    for round in 0..20 {
        let windows: Vec<_> = (0..93).map(|n| window(["a", "b", "c"][n % 3], 3)).collect();
        let mut tasks = tokio::task::JoinSet::new();
        for most in [93, 60, 2, 12, 93, 17] {
            let (monitor, mut windows) = (monitor.clone(), windows.clone());
            windows.shuffle(&mut rand::rng());
            windows.truncate(most);
            tasks.spawn(async move {
                let now = windows[0].from();
                let told = windows.iter().map(announcement).collect();
                ingest::announce(&monitor, told, now).await.unwrap()
            });
        }
        let outcomes = tasks.join_all().await.concat();
        let rejected = outcomes.iter().find(|outcome| matches!(outcome, Outcome::Rejected(_)));
        assert_eq!(rejected, None, "round {round}");
    }
}

#[tokio::test]
async fn each_heartbeat_of_a_batch_gets_its_own_outcome() {
    let monitor = Ground::new().await.monitor().await;
    let window = window("payments-a", 3);
    let now = window.from();
    let mut stranger = window.clone();
    stranger.service = "payments-b".parse().unwrap();
    let ahead = Heartbeat {
        timestamp: now.plus(ingest::MAX_CLOCK_AHEAD).plus_micros(1),
        ..heartbeat(&window, 1)
    };
    let batch = vec![
        heartbeat(&window, 0),
        heartbeat(&window, 0),
        heartbeat(&stranger, 1),
        ahead,
        heartbeat(&window, 3),
        heartbeat(&window, 2),
    ];
    let outcomes = take(&monitor, batch, now).await;
    assert_eq!(outcomes[0], Outcome::Recorded);
    assert_eq!(outcomes[1], Outcome::Duplicate);
    assert!(matches!(&outcomes[2], Outcome::Rejected(why) if why.contains("another service")));
    assert!(matches!(&outcomes[3], Outcome::Rejected(why) if why.contains("ahead of the monitor")));
    assert_eq!(outcomes[4], Outcome::Unscheduled);
    assert_eq!(outcomes[5], Outcome::Recorded);

    let again = take(&monitor, vec![heartbeat(&window, 2), heartbeat(&window, 1)], now).await;
    assert_eq!(again, [Outcome::Duplicate, Outcome::Recorded]);
    let stored = only_window(&monitor).await;
    assert_eq!(stored.counts, Counts { received: 3, errors: 0, missing: 0, unobserved: 0 });
    assert_eq!(stored.unscheduled, 1);
}

#[tokio::test]
async fn the_first_commit_wins_and_contradictions_are_counted() {
    let monitor = Ground::new().await.monitor().await;
    let window = window("payments-a", 2);
    let now = window.from();
    let first = heartbeat(&window, 0);
    take(&monitor, vec![first.clone()], now).await;
    take(&monitor, vec![first.clone(), error(first.clone()), error(first.clone())], now).await;
    take(&monitor, vec![error(first)], now).await;
    let row = sqlx::query("SELECT status, deliveries, conflicts FROM events")
        .fetch_one(&monitor.pool)
        .await
        .unwrap();
    assert_eq!(row.get::<String, _>("status"), "OK", "the first stands");
    assert_eq!(row.get::<i32, _>("deliveries"), 5);
    assert_eq!(row.get::<i32, _>("conflicts"), 3);
}

#[tokio::test]
async fn a_windows_first_definition_stands() {
    let monitor = Ground::new().await.monitor().await;
    let window = window("payments-a", 3);
    let now = window.from();
    let announced = ingest::announce(&monitor, vec![announcement(&window)], now).await.unwrap();
    assert_eq!(announced, [Outcome::Recorded]);
    let longer = Window::new(
        window.uuid,
        window.service.clone(),
        (window.from(), window.to().plus(Duration::from_secs(100))),
        window.tick(),
        window.rates,
    )
    .unwrap();
    let again = ingest::announce(&monitor, vec![announcement(&longer)], now).await.unwrap();
    assert_eq!(again, [Outcome::Duplicate]);
    let outcomes = take(&monitor, vec![heartbeat(&longer, 2), heartbeat(&longer, 3)], now).await;
    assert_eq!(outcomes, [Outcome::Recorded, Outcome::Unscheduled]);
    assert_eq!(only_window(&monitor).await.window.slots(), 3);
}

#[tokio::test]
async fn a_late_heartbeat_revises_its_own_slot_and_its_window() {
    let monitor = Ground::new().await.monitor().await;
    let window = window("payments-a", 3);
    take(&monitor, vec![heartbeat(&window, 1)], window.from()).await;
    let over = window.ends_at().plus(Duration::from_mins(1));
    assert_eq!(sweep::sweep_all(&monitor, over).await.unwrap(), 1);
    let closed = only_window(&monitor).await;
    assert_eq!(closed.status, WindowStatus::Alert);
    assert_eq!(closed.counts, Counts { received: 1, errors: 0, missing: 2, unobserved: 0 });

    let late = vec![error(heartbeat(&window, 0)), heartbeat(&window, 1)];
    let outcomes = take(&monitor, late.clone(), over).await;
    assert_eq!(outcomes, [Outcome::Late, Outcome::Duplicate]);
    assert_eq!(take(&monitor, late, over).await, [Outcome::Duplicate, Outcome::Duplicate]);
    let revised = only_window(&monitor).await;
    assert_eq!(revised.status, WindowStatus::Alert);
    assert_eq!(revised.counts, Counts { received: 2, errors: 1, missing: 1, unobserved: 0 });

    assert_eq!(take(&monitor, vec![heartbeat(&window, 2)], over).await, [Outcome::Late]);
    let complete = only_window(&monitor).await;
    assert_eq!(complete.status, WindowStatus::Closed);
    assert_eq!(complete.counts, Counts { received: 3, errors: 1, missing: 0, unobserved: 0 });
    assert_eq!(complete.closed_at, closed.closed_at, "it closed when it closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_concurrent_posters_make_exact_counts() {
    let monitor = Ground::new().await.monitor().await;
    let windows: Vec<Window> = (0..5).map(|_| window("payments-a", 40)).collect();
    let now = windows[0].from();
    let mut posters = tokio::task::JoinSet::new();
    for poster in 0..64_u32 {
        let (monitor, windows) = (monitor.clone(), windows.clone());
        posters.spawn(async move {
            for round in 0..10 {
                // Every poster covers every slot of every window over the rounds, from another start.
                let slots = (0..4).map(|step| (poster * 7 + round * 4 + step) % 40);
                let batch: Vec<Heartbeat> = slots
                    .flat_map(|slot| windows.iter().map(move |window| heartbeat(window, slot)))
                    .map(|beat| if beat.slot == Some(5) { error(beat) } else { beat })
                    .collect();
                take(&monitor, batch, now).await;
            }
        });
    }
    posters.join_all().await;
    let stored = latest_windows(&monitor.pool, 10).await.unwrap();
    assert_eq!(stored.len(), 5);
    for window in stored {
        assert_eq!(window.counts, Counts { received: 40, errors: 1, missing: 0, unobserved: 0 });
    }
    let deliveries: i64 = sqlx::query_scalar("SELECT CAST(SUM(deliveries) AS SIGNED) FROM events")
        .fetch_one(&monitor.pool)
        .await
        .unwrap();
    assert_eq!(deliveries, 64 * 10 * 4 * 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_that_race_sweeps_leave_counts_that_add_up() {
    let monitor = Ground::new().await.monitor().await;
    let windows: Vec<Window> = (0..20).map(|_| window("payments-a", 20)).collect();
    let over = windows[0].ends_at().plus(Duration::from_mins(1));
    ingest::announce(&monitor, windows.iter().map(announcement).collect(), over).await.unwrap();
    let mut racers = tokio::task::JoinSet::new();
    for racer in 0..6_usize {
        let (monitor, windows) = (monitor.clone(), windows.clone());
        racers.spawn(async move {
            for step in 0..20_usize {
                let window = &windows[(racer * 3 + step) % windows.len()];
                // Slot 19 never arrives.
                let batch = (0..19).map(|slot| heartbeat(window, slot)).collect();
                take(&monitor, batch, over).await;
            }
        });
    }
    for _ in 0..3 {
        let monitor = monitor.clone();
        racers.spawn(async move { while sweep::sweep_all(&monitor, over).await.unwrap() > 0 {} });
    }
    racers.join_all().await;
    sweep::sweep_all(&monitor, over).await.unwrap();
    for window in latest_windows(&monitor.pool, 100).await.unwrap() {
        assert_eq!(window.status, WindowStatus::Alert);
        assert_eq!(window.counts, Counts { received: 19, errors: 0, missing: 1, unobserved: 0 });
    }
    let rows: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM events").fetch_one(&monitor.pool).await.unwrap();
    assert_eq!(rows, 20 * 20, "one row per slot, whoever wrote it first");
}

/// What a window must look like in the end, whatever happened on the way.
#[derive(Default)]
struct Model {
    arrived: BTreeMap<u32, bool>,
    unscheduled: BTreeSet<i64>,
}

impl Model {
    fn arrive(&mut self, slots: u32, slot: i64, error: bool) {
        match u32::try_from(slot) {
            Ok(slot) if slot < slots => drop(self.arrived.entry(slot).or_insert(error)),
            _ => drop(self.unscheduled.insert(slot)),
        }
    }

    fn counts(&self, slots: u32) -> Counts {
        let received = u32::try_from(self.arrived.len()).unwrap();
        let errors = u32::try_from(self.arrived.values().filter(|error| **error).count()).unwrap();
        Counts { received, errors, missing: slots - received, unobserved: 0 }
    }
}

/// Any interleaving, duplication and loss of heartbeats, with sweeps in between, closes a window
/// with the counts of the model.
#[test]
fn any_history_closes_a_window_with_the_right_counts() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let monitor = runtime.block_on(async { Ground::new().await.monitor().await });
    let heartbeats = proptest::collection::vec((-1_i64..14, any::<bool>()), 0..40);
    let history = (1_u32..12, heartbeats, proptest::collection::vec(1_usize..9, 40), 0_usize..6);
    let mut runner =
        TestRunner::new(Config { cases: 60, failure_persistence: None, ..Config::default() });
    let ran = runner.run(&history, |(slots, beats, batches, sweep_after)| {
        let (counts, unscheduled, model) =
            runtime.block_on(replay(&monitor, slots, &beats, &batches, sweep_after));
        prop_assert_eq!(counts, model.counts(slots));
        prop_assert_eq!(unscheduled as usize, model.unscheduled.len());
        Ok(())
    });
    ran.unwrap();
}

async fn replay(
    monitor: &Monitor,
    slots: u32,
    beats: &[(i64, bool)],
    batches: &[usize],
    sweep_after: usize,
) -> (Counts, u32, Model) {
    let window = window("payments-a", slots);
    let over = window.ends_at().plus(Duration::from_mins(1));
    ingest::announce(monitor, vec![announcement(&window)], over).await.unwrap();
    let mut model = Model::default();
    let mut rest = beats;
    for (number, size) in batches.iter().enumerate() {
        let (batch, after) = rest.split_at((*size).min(rest.len()));
        rest = after;
        let batch = batch.iter().map(|(slot, is_error)| {
            model.arrive(slots, *slot, *is_error);
            let beat = Heartbeat { slot: Some(*slot), ..heartbeat(&window, 0) };
            if *is_error { error(beat) } else { beat }
        });
        take(monitor, batch.collect(), over).await;
        if number == sweep_after {
            sweep::sweep_window(monitor, window.uuid, over).await.unwrap();
        }
    }
    sweep::sweep_all(monitor, over).await.unwrap();
    let stored = latest_windows(&monitor.pool, 1_000).await.unwrap();
    let stored = stored.into_iter().find(|stored| stored.window.uuid == window.uuid).unwrap();
    assert_eq!(stored.status, stored.counts.verdict());
    (stored.counts, stored.unscheduled, model)
}

/// Another server may answer next, and need not have every row that the last one had.
#[tokio::test]
async fn what_is_remembered_of_windows_is_forgotten_after_a_failure_and_in_time() {
    let monitor = Ground::new().await.monitor().await;
    let window = window("payments-a", 5);
    let run = async |statement| sqlx::raw_sql(statement).execute(&monitor.pool).await.unwrap();
    let now = window.from();
    take(&monitor, vec![heartbeat(&window, 0)], now).await;

    run("DELETE FROM windows").await;
    run("RENAME TABLE events TO away").await;
    let failed = ingest::ingest(&monitor, vec![heartbeat(&window, 1)], now).await;
    assert!(failed.is_err());
    run("RENAME TABLE away TO events").await;
    take(&monitor, vec![heartbeat(&window, 2)], now).await;
    assert_eq!(only_window(&monitor).await.counts.received, 1, "of the window as it is known now");

    run("DELETE FROM windows").await;
    let later = now.plus(Duration::from_secs(10));
    take(&monitor, vec![heartbeat(&window, 3)], later).await;
    assert_eq!(only_window(&monitor).await.counts.received, 1);
}

/// What one request is to blame for, those beside it do not suffer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_the_database_refuses_fails_its_own_request_only() {
    let monitor = Ground::new().await.monitor().await;
    let narrow = "ALTER TABLE events MODIFY error_message VARCHAR(10) NULL";
    sqlx::raw_sql(narrow).execute(&monitor.pool).await.unwrap();
    let window = window("payments-a", 100);
    let mut requests = tokio::task::JoinSet::new();
    for slot in 0..100 {
        let (monitor, window) = (monitor.clone(), window.clone());
        requests.spawn(async move {
            let is_bad = slot % 10 == 3;
            let text = if is_bad { "longer than the column" } else { "short" };
            let status = Status::Error(Some(text.to_owned()));
            let beat = Heartbeat { status, ..heartbeat(&window, slot) };
            let taken = ingest::ingest(&monitor, vec![beat], window.from()).await;
            assert_eq!(taken.is_err(), is_bad, "slot {slot}: {taken:?}");
        });
    }
    requests.join_all().await;
    assert_eq!(only_window(&monitor).await.counts.received, 90);
}
