//! Closing windows whose time is over, and recording each slot that is still missing.
//!
//! A window that came through the stream closes when clock and [watermark](super::watermark) have
//! both passed its end: whatever was sent in time has then arrived. One that is held for too long
//! is closed as unobserved, which alerts nobody about its service, and settled when the truth is
//! known.
//!
//! Each step claims some windows, skipping those that another monitor is closing. For every slot
//! that is not there it writes the verdict MISSING, at the time at which the slot was due; where a
//! heartbeat gets in first, the primary key lets the heartbeat win, and what is there then is
//! counted, so that the counts of a closed window always add up.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Monitor;
use super::closing::{Closing, ClosingRules, Obstacles};
use super::repository::{self, Arrived, ClaimLimits, MissingSlot};
use super::window::{Counts, StoredWindow, UNOBSERVED, WindowStatus, missing_slots};
use crate::wire::Timestamp;
use crate::{clock, db, shutdown};

/// What one step closes at the most; one window alone may have more slots.
const STEP: ClaimLimits = ClaimLimits { windows: 512, slots: 20_000 };
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
    while sleep_or_wake(&monitor, pause, &shutdown).await {
        let outcome = tokio::select! {
            outcome = sweep_by_the_clock(&monitor) => outcome,
            () = long_after(&shutdown) => return Ok(()),
        };
        let shown = outcome.as_ref().map_err(|error| error.class.advice());
        monitor.readiness.note("sweep", &shown);
        pause = match outcome {
            Ok(()) => {
                monitor.metrics.sweep.renew();
                pause_after(&monitor, interval, clock::now()).await
            }
            Err(error) => {
                monitor.metrics.sweep_failures.inc();
                tracing::warn!(%error, "a sweep failed; it will be tried again");
                interval
            }
        };
    }
    Ok(())
}

/// Sleeps until the pause is over or the watermark advances, unless told to stop first. Answers
/// whether to go on.
async fn sleep_or_wake(monitor: &Monitor, pause: Duration, shutdown: &CancellationToken) -> bool {
    tokio::select! {
        biased;
        go_on = shutdown::sleep(pause, shutdown) => go_on,
        () = monitor.wake_sweep.notified() => true,
    }
}

/// Ends when a sweep that runs when the role stops has had time enough. Its transaction ends by
/// itself, committed or not; the next sweep does what it did not.
async fn long_after(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(LAST_STEP).await;
}

/// Closes and settles windows until none may be, as of one instant. Answers how many.
///
/// # Errors
/// When the database does not do its part; what was closed stays closed.
pub async fn sweep_all(monitor: &Monitor, now: Timestamp) -> Result<usize, db::Error> {
    let mut total = 0;
    loop {
        match step(monitor, now).await? {
            0 => return Ok(total),
            done => total += done,
        }
    }
}

/// The same by the clock, which goes on while very many windows are closed. Where two steps do not do
/// it, two connections close others each, so that neither the database nor this process stands still
/// while the other works.
async fn sweep_by_the_clock(monitor: &Monitor) -> Result<(), db::Error> {
    if step(monitor, clock::now()).await? > 0 && step(monitor, clock::now()).await? > 0 {
        tokio::try_join!(sweep_the_rest(monitor), sweep_the_rest(monitor))?;
    }
    Ok(())
}

async fn sweep_the_rest(monitor: &Monitor) -> Result<(), db::Error> {
    while step(monitor, clock::now()).await? > 0 {}
    Ok(())
}

/// Closes some windows, and settles some.
async fn step(monitor: &Monitor, now: Timestamp) -> Result<usize, db::Error> {
    Ok(sweep_once(monitor, now).await?.len() + settle_once(monitor, now).await?)
}

/// Closes some of the windows that may close. Answers their rows.
///
/// None left to answer can also mean that other monitors are closing the rest.
///
/// # Errors
/// When the database does not do its part; then nothing is changed.
pub async fn sweep_once(monitor: &Monitor, now: Timestamp) -> Result<Vec<i64>, db::Error> {
    let rules = monitor.closing_rules(now).await?;
    let closed = db::long_transaction(&monitor.pool, "sweep", move |connection| {
        Box::pin(async move {
            let claimed = repository::claim_due(connection, &rules, STEP).await?;
            let obstacles = repository::obstacles(connection).await?;
            let due = closing(claimed, &rules, &obstacles);
            close_windows(connection, &due, &rules).await
        })
    })
    .await?;
    for window in &closed {
        tell_closed(monitor, window);
    }
    Ok(closed.into_iter().map(|window| window.id).collect())
}

/// Settles some of the windows that were closed as unobserved, now that nothing of them can be on
/// its way any more: what is still missing is missing indeed. Answers how many.
///
/// # Errors
/// When the database does not do its part; then nothing is changed.
pub async fn settle_once(monitor: &Monitor, now: Timestamp) -> Result<usize, db::Error> {
    let rules = monitor.closing_rules(now).await?;
    let (windows, settled) =
        db::long_transaction(&monitor.pool, "settle windows", move |connection| {
            Box::pin(async move {
                let due_by = rules.by_watermark();
                let windows =
                    repository::claim_unobserved(connection, due_by, STEP.windows).await?;
                let windows: BTreeMap<i64, String> = windows.into_iter().collect();
                let ids: Vec<i64> = windows.keys().copied().collect();
                let settled = repository::settle_unobserved(connection, &ids, now).await?;
                Ok((windows, settled))
            })
        })
        .await?;
    // One that is missing a slot for certain was an alert before, and is not among them.
    for (id, status) in settled {
        monitor.metrics.settled(&windows[&id], status);
    }
    Ok(windows.len())
}

/// Closes every window that may close, on request, and says which are held.
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
    let rules = monitor.closing_rules(now).await?;
    let limit = u32::try_from(WINDOWS_PER_ANSWER).unwrap_or(u32::MAX);
    let mut connection = monitor.connection().await?;
    let closed = repository::windows_by_id(&mut connection, &ids).await?;
    let over = repository::over(&mut connection, now, limit).await?;
    let obstacles = repository::obstacles(&mut connection).await?;
    let held = over.iter().filter_map(|window| {
        let reason = reason_held(&rules, window, &obstacles)?;
        Some((window.window.uuid, reason))
    });
    Ok(Swept { closed, held: held.collect() })
}

/// Closes one window, on request, if it may close. None if there is no such window.
///
/// # Errors
/// When the database does not do its part; then nothing is changed.
pub async fn sweep_window(
    monitor: &Monitor,
    uuid: Uuid,
    now: Timestamp,
) -> Result<Option<Swept>, db::Error> {
    let rules = monitor.closing_rules(now).await?;
    let (found, obstacles, closed) =
        db::long_transaction(&monitor.pool, "sweep one window", move |connection| {
            Box::pin(async move {
                let found = repository::lock_window(connection, uuid).await?;
                let obstacles = repository::obstacles(connection).await?;
                let due = closing(found.clone().into_iter().collect(), &rules, &obstacles);
                Ok((found, obstacles, close_windows(connection, &due, &rules).await?))
            })
        })
        .await?;
    let Some(window) = found else { return Ok(None) };
    if closed.is_empty() {
        let reason = reason_held(&rules, &window, &obstacles);
        let held = reason.map(|reason| (uuid, reason)).into_iter().collect();
        return Ok(Some(Swept { closed, held }));
    }
    for window in &closed {
        tell_closed(monitor, window);
    }
    let mut connection = monitor.connection().await?;
    let closed = repository::windows_by_id(&mut connection, &[window.id]).await?;
    Ok(Some(Swept { closed, held: Vec::new() }))
}

/// Those windows that may close, and in which way.
fn closing(
    windows: Vec<StoredWindow>,
    rules: &ClosingRules,
    obstacles: &Obstacles,
) -> Vec<(Closing, StoredWindow)> {
    let judged = windows.into_iter().map(|window| (rules.closing(&window, obstacles), window));
    judged.filter(|(closing, _)| closing.is_now()).collect()
}

/// Why a window is not closed; none if it may close.
fn reason_held(
    rules: &ClosingRules,
    window: &StoredWindow,
    obstacles: &Obstacles,
) -> Option<String> {
    let closes_at = window.due_at().plus(rules.grace);
    let grace = rules.grace.as_secs_f64();
    let watermark = || rules.watermark.map_or_else(|| "unknown".to_owned(), |at| at.to_string());
    match rules.closing(window, obstacles) {
        Closing::Due | Closing::Unobserved { .. } => None,
        Closing::Done => Some(match window.closed_at {
            Some(at) => format!("was closed before, at {at}, with status {}", window.status),
            None => format!("was closed before, with status {}", window.status),
        }),
        Closing::NotOver => Some(format!(
            "closes at {closes_at}, which is the end of its last slot and a grace of {grace} s"
        )),
        Closing::OnItsWay if rules.awaits_first_report() => Some(format!(
            "was to close at {closes_at}, but it was taken over from another monitor, and no relay has \
             reported what lies in the stream for it"
        )),
        Closing::OnItsWay => Some(format!(
            "was to close at {closes_at}, but heartbeats may still be on their way: all those sent \
             before {} have been delivered",
            watermark()
        )),
        Closing::BeingResent => Some(format!(
            "was to close at {closes_at}, but its service has yet to send again what a lost Redis \
             took along"
        )),
        Closing::Suspect => Some(format!(
            "was to close at {closes_at}, but one of its messages makes the monitor fail; it is \
             tried again before it becomes a dead letter"
        )),
    }
}

/// Closes windows that this transaction holds. Answers them with their final counts.
async fn close_windows(
    connection: &mut db::Connection,
    due: &[(Closing, StoredWindow)],
    rules: &ClosingRules,
) -> Result<Vec<StoredWindow>, db::Error> {
    let mut ids: Vec<i64> = due.iter().map(|(_, window)| window.id).collect();
    ids.sort_unstable();
    let arrived = repository::arrived(connection, &ids).await?;
    let nothing = Arrived::default();
    let (mut missing, mut closed) = (Vec::new(), Vec::with_capacity(due.len()));
    for (closing, window) in due {
        let arrived = arrived.get(&window.id).unwrap_or(&nothing);
        let (slots, counts) = verdicts(*closing, window, arrived, rules);
        missing.extend(slots);
        closed.push(StoredWindow { status: counts.verdict(), counts, ..window.clone() });
    }
    missing.sort_unstable_by_key(|missing| (missing.window_id, missing.slot));
    if !repository::insert_missing(connection, &missing).await? {
        let counted = repository::counts(connection, &ids).await?;
        for window in &mut closed {
            let counts = counted.get(&window.id).map_or(Counts::default(), |(counts, _)| *counts);
            (window.counts, window.status) = (counts, counts.verdict());
        }
    }
    let ends: Vec<(i64, Counts)> = closed.iter().map(|window| (window.id, window.counts)).collect();
    repository::close(connection, &ends, rules.now).await?;
    Ok(closed)
}

/// What is missing of a window that closes, and the counts that come of it.
fn verdicts(
    closing: Closing,
    stored: &StoredWindow,
    arrived: &Arrived,
    rules: &ClosingRules,
) -> (Vec<MissingSlot>, Counts) {
    let (window_id, window) = (stored.id, &stored.window);
    let missing = missing_slots(window, &arrived.slots).into_iter().map(|slot| {
        let cause = (!rules.observes(closing, stored, slot)).then_some(UNOBSERVED);
        MissingSlot { window_id, slot, due: window.due(slot), found_at: rules.now, cause }
    });
    let missing: Vec<MissingSlot> = missing.collect();
    let number = |slots: usize| u32::try_from(slots).unwrap_or(u32::MAX);
    let counts = Counts {
        received: number(arrived.slots.len()),
        errors: arrived.errors,
        missing: number(missing.len()),
        unobserved: number(missing.iter().filter(|missing| missing.cause.is_some()).count()),
    };
    (missing, counts)
}

fn tell_closed(monitor: &Monitor, window: &StoredWindow) {
    monitor.metrics.closed(window);
    log_closed(window);
}

fn log_closed(StoredWindow { window, status, counts, .. }: &StoredWindow) {
    let (service, expected, missing) = (&window.service, window.slots(), counts.missing);
    if counts.cause().is_some() {
        tracing::warn!(window = %window.uuid, %service, expected, missing, "closed as unobserved: it was held for too long");
    } else if *status == WindowStatus::Alert {
        tracing::warn!(window = %window.uuid, %service, expected, missing, "ALERT: heartbeats are missing");
    } else {
        tracing::info!(window = %window.uuid, %service, expected, "closed: every heartbeat arrived");
    }
}

/// How long to wait: until the next window may close, if that is sooner than the interval. A
/// watermark that advances ends the wait.
async fn pause_after(monitor: &Monitor, interval: Duration, now: Timestamp) -> Duration {
    let next = db::patiently(repository::due_next(&monitor.pool)).await;
    let Ok([by_clock, by_watermark]) = next else { return interval };
    let closes_in = |due_at: Timestamp| now.until(due_at.plus(monitor.grace));
    // One that should have closed and did not is in the hands of another monitor.
    let by_clock =
        by_clock.map(closes_in).map(|wait| if wait.is_zero() { LEFT_ALONE_PAUSE } else { wait });
    // One whose time is over waits for the watermark, not for the clock.
    let by_watermark = by_watermark.map(closes_in).filter(|wait| !wait.is_zero());
    let wait = by_clock.into_iter().chain(by_watermark).min().unwrap_or(interval);
    wait.max(SHORTEST_PAUSE).min(interval)
}
