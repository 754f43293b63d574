//! Closing windows whose time is over, and recording each slot that is still missing.
//!
//! Each step claims some windows, skipping those that another monitor is closing. For every slot
//! that is not there it writes the verdict MISSING, at the time at which the slot was due; where a
//! heartbeat gets in first, the primary key lets the heartbeat win. Only then it counts, so that
//! the counts of a closed window always add up.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Monitor;
use super::repository;
use super::window::{Counts, StoredWindow, WindowStatus, missing_slots};
use crate::wire::Timestamp;
use crate::{clock, db, shutdown};

/// Most windows that one step closes.
const WINDOWS_PER_STEP: u32 = 64;
/// Most slots that one step writes, unless one window alone has more.
const SLOTS_PER_STEP: u32 = 20_000;
/// Shortest pause between two looks, so that a window about to end is not asked for in a circle.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
/// How long a sweep may go on when the role stops.
const LAST_STEP: Duration = Duration::from_secs(4);
/// Pause before a look for windows that were due and could not be claimed.
const LEFT_ALONE_PAUSE: Duration = Duration::from_secs(1);
/// Most windows that the answer to a manual sweep names; the rest is closed by the next one.
const WINDOWS_PER_ANSWER: usize = 1_000;

/// What a manual sweep did.
#[derive(Debug, Default)]
pub struct Swept {
    /// Windows that it closed.
    pub closed: Vec<StoredWindow>,
    /// Windows that are over and stay open for now, and why.
    pub held: Vec<(Uuid, String)>,
}

/// Sweeps until told to stop: at least once per `interval`, and when the next window ends.
///
/// # Errors
/// Never; a failure is logged, shown by `/ready`, and tried again.
pub async fn run(
    monitor: Monitor,
    interval: Duration,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut pause = Duration::ZERO;
    while shutdown::sleep(pause, &shutdown).await {
        let outcome = tokio::select! {
            outcome = sweep_all(&monitor, clock::now()) => outcome,
            () = long_after(&shutdown) => return Ok(()),
        };
        let shown = outcome.as_ref().map_err(|error| error.class.advice());
        monitor.readiness.note("sweep", &shown);
        pause = match outcome {
            Ok(_) => pause_after(&monitor, interval, clock::now()).await,
            Err(error) => {
                tracing::warn!(%error, "a sweep failed; it will be tried again");
                interval
            }
        };
    }
    Ok(())
}

/// Ends when a sweep that runs when the role stops has had time enough. Its transaction ends by
/// itself, committed or not; the next sweep does what it did not.
async fn long_after(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(LAST_STEP).await;
}

/// Closes windows until none is past its close. Answers how many.
///
/// # Errors
/// When the database does not do its part; what was closed stays closed.
pub async fn sweep_all(monitor: &Monitor, now: Timestamp) -> Result<usize, db::Error> {
    let mut total = 0;
    loop {
        match sweep_once(monitor, now).await?.len() {
            0 => return Ok(total),
            closed => total += closed,
        }
    }
}

/// Closes some of the windows that are past their close. Answers their rows.
///
/// None left to answer can also mean that other monitors are closing the rest.
///
/// # Errors
/// When the database does not do its part; then nothing is changed.
pub async fn sweep_once(monitor: &Monitor, now: Timestamp) -> Result<Vec<i64>, db::Error> {
    let ended_by = now.minus(monitor.grace);
    let closed = db::long_transaction(&monitor.pool, "sweep", move |connection| {
        Box::pin(async move {
            let limits = (WINDOWS_PER_STEP, SLOTS_PER_STEP);
            let due = repository::claim_due(connection, ended_by, limits.0, limits.1).await?;
            close_windows(connection, &due, now).await
        })
    })
    .await?;
    for window in &closed {
        log_closed(window);
    }
    Ok(closed.into_iter().map(|window| window.id).collect())
}

/// Closes every window that is past its close, on request, and says which are held.
///
/// # Errors
/// When the database does not do its part; what was closed stays closed.
pub async fn sweep_on_request(monitor: &Monitor, now: Timestamp) -> Result<Swept, db::Error> {
    let mut ids = Vec::new();
    while ids.len() < WINDOWS_PER_ANSWER {
        let closed = sweep_once(monitor, now).await?;
        if closed.is_empty() {
            break;
        }
        ids.extend(closed);
    }
    let closed = repository::windows_by_id(&monitor.pool, &ids).await?;
    let grace_began = now.minus(monitor.grace);
    let limit = u32::try_from(WINDOWS_PER_ANSWER).unwrap_or(u32::MAX);
    let held = repository::held(&monitor.pool, now, grace_began, limit).await?;
    let held = held.iter().map(|window| (window.window.uuid, reason_held(monitor, window)));
    Ok(Swept { closed, held: held.collect() })
}

/// Closes one window, on request, if it is past its close. None if there is no such window.
///
/// # Errors
/// When the database does not do its part; then nothing is changed.
pub async fn sweep_window(
    monitor: &Monitor,
    uuid: Uuid,
    now: Timestamp,
) -> Result<Option<Swept>, db::Error> {
    let ended_by = now.minus(monitor.grace);
    let (found, closed) =
        db::long_transaction(&monitor.pool, "sweep one window", move |connection| {
            Box::pin(async move {
                let found = repository::lock_window(connection, uuid).await?;
                let due: Vec<StoredWindow> =
                    found.iter().filter(|window| is_due(window, ended_by)).cloned().collect();
                Ok((found, close_windows(connection, &due, now).await?))
            })
        })
        .await?;
    let Some(window) = found else { return Ok(None) };
    if closed.is_empty() {
        return Ok(Some(Swept { held: vec![(uuid, reason_held(monitor, &window))], closed }));
    }
    closed.iter().for_each(log_closed);
    let closed = repository::windows_by_id(&monitor.pool, &[window.id]).await?;
    Ok(Some(Swept { closed, held: Vec::new() }))
}

fn is_due(window: &StoredWindow, ended_by: Timestamp) -> bool {
    window.status == WindowStatus::Open && window.window.ends_at() <= ended_by
}

fn reason_held(monitor: &Monitor, window: &StoredWindow) -> String {
    match window.closed_at {
        Some(at) => format!("was closed before, at {at}, with status {}", window.status),
        None => format!(
            "closes at {}, which is the end of its last slot and a grace of {} s",
            window.window.ends_at().plus(monitor.grace),
            monitor.grace.as_secs_f64()
        ),
    }
}

/// Closes windows that this transaction holds. Answers them with their final counts.
async fn close_windows(
    connection: &mut db::Connection,
    due: &[StoredWindow],
    now: Timestamp,
) -> Result<Vec<StoredWindow>, db::Error> {
    let ids: Arc<[i64]> = due.iter().map(|window| window.id).collect();
    let present = repository::present_slots(connection, &ids).await?;
    for StoredWindow { id, window, .. } in due {
        let missing = match present.get(id) {
            Some(present) => missing_slots(window, present),
            None => (0..window.slots()).collect(),
        };
        repository::insert_missing(connection, (*id, window), &missing, now).await?;
    }
    let counted = repository::counts(connection, &ids).await?;
    let mut closed = Vec::with_capacity(due.len());
    for window in due {
        let counts = counted.get(&window.id).map_or(Counts::default(), |(counts, _)| *counts);
        repository::close(connection, window.id, counts, now).await?;
        closed.push(StoredWindow { status: counts.verdict(), counts, ..window.clone() });
    }
    Ok(closed)
}

fn log_closed(StoredWindow { window, status, counts, .. }: &StoredWindow) {
    let (service, expected, missing) = (&window.service, window.slots(), counts.missing);
    if *status == WindowStatus::Alert {
        tracing::warn!(window = %window.uuid, %service, expected, missing, "ALERT: heartbeats are missing");
    } else {
        tracing::info!(window = %window.uuid, %service, expected, "closed: every heartbeat arrived");
    }
}

/// How long to wait: until the next window may close, if that is sooner than the interval.
async fn pause_after(monitor: &Monitor, interval: Duration, now: Timestamp) -> Duration {
    match db::patiently(repository::ending_next(&monitor.pool)).await {
        Ok(Some(ends_at)) => {
            let closes_in = now.until(ends_at.plus(monitor.grace));
            // One that should have closed and did not is in the hands of another monitor.
            let shortest = if closes_in.is_zero() { LEFT_ALONE_PAUSE } else { SHORTEST_PAUSE };
            closes_in.clamp(shortest.min(interval), interval)
        }
        _ => interval,
    }
}
