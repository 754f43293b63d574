//! Deletes what is kept no longer, in steps so small that heartbeats do not notice.
//!
//! The events of a window go in two stages. First one transaction moves what the window has added
//! to the totals into the archive, and takes its events out of the ledger: from then on nothing more
//! of it is taken in, counted or explained. A rebuild begins with the archive and counts the windows
//! that have events, so that it comes to the same. Then its rows are deleted, some at a time. Much
//! later the window goes, with its history and what is known of its dead letters.
//!
//! A window is touched only while its row is locked, closed, and nothing about it is open: counted as
//! it is now, and both ledgers asked as often as was due. Ingest locks the row as well where a
//! heartbeat's window is [so old](super::retention::may_be_pruned) that this may be happening, and
//! nowhere else. Before any window goes, it is stored up to when windows may be gone: ingest refuses to
//! make such known, so that none comes back.
//!
//! Any number of monitors may prune: each takes what no other has locked. Every stage of a step is a
//! transaction of its own, which happened or did not, whenever a process dies.

mod outcome;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::outcome::INTERVAL;
pub use self::outcome::Outcome;
use super::Monitor;
use super::repository::{self, Sums, Turn};
use super::retention::SLICES_KEPT;
use super::totals::{Changes, Span};
use super::window::StoredWindow;
use crate::wire::Timestamp;
use crate::{clock, db, shutdown};

/// Most windows of one transaction.
const WINDOWS_PER_STEP: u32 = 64;
/// Most rows that one transaction deletes, beside those of its windows.
const ROWS_PER_STEP: u64 = 1_000;
/// Most slices that one transaction deletes.
const SLICES_PER_STEP: u64 = 512;
/// Most slots of windows whose totals are archived in one transaction, unless one alone has more.
const SLOTS_PER_STEP: u32 = 20_000;
/// With more windows than this to count, counting comes first.
const MOST_MARKS: u32 = 1_000;
/// A window is not let go that both ledgers are to be asked about so soon: a monitor may be asking them
/// now, or have failed to. Longer than either is put off for.
const TO_JUDGE_WITHIN: Duration = Duration::from_hours(1);
/// How far the clocks of monitor and database may differ. Deleting goes by the clock alone, so that one
/// that jumps ahead must not decide.
const CLOCKS_DIFFER: Duration = Duration::from_mins(10);

/// The tables that rows are deleted from.
pub const TABLES: [&str; 7] = [
    "events",
    "unscheduled_events",
    "window_history",
    "windows",
    "dead_letters",
    "report_totals",
    "archived_totals",
];

/// Prunes until told to stop.
///
/// # Errors
/// Never; a failure is logged and tried again. It keeps no heartbeat out, so that `/ready` does not
/// show it.
pub async fn run(monitor: Monitor, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut pause = Duration::ZERO;
    while shutdown::sleep(pause, &shutdown).await {
        let began = Instant::now();
        // A transaction that has begun ends by itself, committed or not.
        let outcome = tokio::select! {
            outcome = prune_by_the_clock(&monitor) => outcome,
            () = shutdown.cancelled() => return Ok(()),
        };
        pause = match outcome {
            Ok(outcome) => {
                if !outcome.is_idle() {
                    let (rows, windows) = (outcome.rows(), outcome.let_go);
                    tracing::debug!(rows, windows, "pruned");
                }
                outcome.pause(began.elapsed())
            }
            Err(error) => {
                monitor.metrics.prune_failures.inc();
                tracing::warn!(%error, "pruning failed; it will be tried again");
                INTERVAL
            }
        };
    }
    Ok(())
}

/// Prunes until nothing is left to do, as of one instant. Answers what it has done.
///
/// # Errors
/// As for [`prune_once`].
pub async fn prune_all(monitor: &Monitor, now: Timestamp) -> Result<Outcome, db::Error> {
    let mut total = Outcome::default();
    loop {
        let outcome = prune_once(monitor, now).await?;
        if outcome.is_idle() {
            return Ok(total);
        }
        total.add(&outcome);
    }
}

/// Does a little of everything that there is to prune, in a few small transactions, of which one that
/// fails keeps no other from its work. Nothing can also mean that other monitors are at it.
///
/// # Errors
/// When the database does not do its part; what is done stays done.
pub async fn prune_once(monitor: &Monitor, now: Timestamp) -> Result<Outcome, db::Error> {
    let mut done = Done::default();
    done.note(delete_events(monitor).await);
    let has_caught_up = done.outcome.rows() < ROWS_PER_STEP;
    if let Some(before) = monitor.retention.retain_events.until(now).filter(|_| has_caught_up) {
        done.note(let_go(monitor, before, now).await);
    }
    if let Some(before) = monitor.retention.retain_windows.until(now) {
        done.note(delete_windows(monitor, before, now).await);
        done.note(delete_stray_letters(monitor, before).await);
    }
    done.note(delete_slices(monitor, now).await);
    monitor.metrics.pruned(&done.outcome);
    let oldest = db::patiently(repository::oldest_kept(&monitor.pool)).await?;
    monitor.metrics.keeps(oldest, now);
    done.failure.map_or(Ok(done.outcome), Err)
}

/// What the stages of a step have done, and how the first failed that did.
#[derive(Debug, Default)]
struct Done {
    outcome: Outcome,
    failure: Option<db::Error>,
}

impl Done {
    fn note(&mut self, stage: Result<Outcome, db::Error>) {
        match stage {
            Ok(outcome) => self.outcome.add(&outcome),
            Err(error) => drop(self.failure.get_or_insert(error)),
        }
    }
}

/// Whether a clock agrees with the database's, so that it may say what is old.
///
/// # Errors
/// When the database does not do its part.
pub async fn is_clock_right(monitor: &Monitor, now: Timestamp) -> Result<bool, db::Error> {
    let theirs = db::patiently(repository::database_clock(&monitor.pool)).await?;
    Ok(now <= theirs.plus(CLOCKS_DIFFER))
}

async fn prune_by_the_clock(monitor: &Monitor) -> Result<Outcome, db::Error> {
    let now = clock::now();
    if is_clock_right(monitor, now).await? {
        return prune_once(monitor, now).await;
    }
    monitor.metrics.prune_failures.inc();
    tracing::warn!("the clock is ahead of the database's: nothing is pruned; check both clocks");
    Ok(Outcome::default())
}

/// Takes the events of some windows out of the ledger, and archives what they have added to the
/// totals.
async fn let_go(
    monitor: &Monitor,
    before: Timestamp,
    now: Timestamp,
) -> Result<Outcome, db::Error> {
    let behind = *lock(&monitor.pruned_to);
    let (outcome, looked_to) =
        db::long_transaction(&monitor.pool, "archive totals", move |connection| {
            Box::pin(async move {
                let stays = (Outcome { has_to_wait: true, ..Outcome::default() }, behind);
                let Some(turn) = repository::take_turn(connection).await? else { return Ok(stays) };
                if turn.recounted_to.is_some() {
                    // What a window adds anew is not known yet.
                    return Ok(stays);
                }
                let old =
                    repository::old_windows(connection, before, behind, WINDOWS_PER_STEP).await?;
                let ids: Vec<i64> = old.iter().map(|(id, _)| *id).collect();
                let mut windows = repository::claim_old(connection, &ids).await?;
                // Whoever changes a window has locked it before, so that its mark is seen from here on.
                let Some(marked) = repository::marked(connection, MOST_MARKS).await? else {
                    return Ok(stays);
                };
                windows.retain(|id, _| !marked.contains(id));
                let (outcome, is_cut) = archive(connection, &windows, turn, now).await?;
                if is_cut {
                    // Those that are archived are not found again, and the rest is next.
                    return Ok((outcome, behind));
                }
                // Those that have to wait keep none waiting behind them.
                let last = old.last().filter(|_| old.len() >= WINDOWS_PER_STEP as usize);
                let passed_over = last.map_or(0, |_| old.len() - outcome.let_go);
                Ok((Outcome { passed_over, ..outcome }, last.copied()))
            })
        })
        .await?;
    *lock(&monitor.pruned_to) = looked_to;
    Ok(outcome)
}

/// Archives what those of some windows have added that are counted and judged, and lets them go, as
/// far as their slots are not too many. Answers also whether they are.
async fn archive(
    connection: &mut db::Connection,
    windows: &BTreeMap<i64, StoredWindow>,
    turn: Turn,
    now: Timestamp,
) -> Result<(Outcome, bool), db::Error> {
    let ids: Vec<i64> = windows.keys().copied().collect();
    let to_judge = now.plus(TO_JUDGE_WITHIN);
    let counted = repository::counted(connection, &ids, turn.epoch, to_judge).await?;
    // Closed by a monitor of a version that does not count, or counted nowhere else.
    let uncounted: Vec<i64> = ids.into_iter().filter(|id| !counted.contains_key(id)).collect();
    repository::mark_uncounted(connection, &uncounted).await?;
    let settled = counted.into_iter().filter_map(|(id, added)| Some((id, added?)));
    let mut settled: BTreeMap<i64, _> = settled.collect();
    let found = settled.len();
    let mut slots = 0_u32;
    settled.retain(|id, _| {
        let is_first = slots == 0;
        slots = slots.saturating_add(windows[id].window.slots());
        is_first || slots <= SLOTS_PER_STEP
    });
    let mut changes = Changes::default();
    for (id, added) in &settled {
        changes.add(windows[id].window.service.as_str(), added, 1);
    }
    let changes = changes.into_real(turn.slices_from);
    repository::add_totals(connection, Sums::Archived, &changes).await?;
    repository::let_go(connection, &settled).await?;
    let (let_go, to_count) = (settled.len(), uncounted.len());
    Ok((Outcome { let_go, to_count, ..Outcome::default() }, let_go < found))
}

/// The last window that was looked at, with its age; none when all have been.
pub type LookedTo = Mutex<Option<(i64, Timestamp)>>;

fn lock(looked_to: &LookedTo) -> MutexGuard<'_, Option<(i64, Timestamp)>> {
    looked_to.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Deletes some events of windows that were let go.
async fn delete_events(monitor: &Monitor) -> Result<Outcome, db::Error> {
    db::transaction(&monitor.pool, "delete events", move |connection| {
        Box::pin(async move {
            let mut outcome = Outcome::default();
            let ids = repository::claim_to_empty(connection, WINDOWS_PER_STEP).await?;
            for table in ["events", "unscheduled_events"] {
                let room = ROWS_PER_STEP - outcome.rows();
                let rows = repository::delete_of(connection, table, &ids, room).await?;
                outcome.count(table, rows);
                if rows == room {
                    return Ok(outcome);
                }
            }
            repository::delete_of(connection, "windows_to_empty", &ids, u64::MAX).await?;
            Ok(outcome)
        })
    })
    .await
}

/// Deletes some windows that have no events any more, with all that refers to them.
async fn delete_windows(
    monitor: &Monitor,
    before: Timestamp,
    now: Timestamp,
) -> Result<Outcome, db::Error> {
    // What is still on its way may be of windows that nobody has heard of yet: they must not be
    // taken for such that are gone.
    let watermark = monitor.closing_rules(now).await?.watermark;
    let before = watermark.map_or(before, |watermark| before.min(watermark));
    let empty = repository::empty_windows(&monitor.pool, before, WINDOWS_PER_STEP);
    let empty = db::patiently(empty).await?;
    if empty.is_empty() {
        return Ok(Outcome::default());
    }
    if db::patiently(repository::gone_until(&monitor.pool)).await? < before {
        // Committed before any window goes: whoever is making one known has ended by then.
        db::transaction(&monitor.pool, "move the horizon", move |connection| {
            Box::pin(repository::store_gone_until(connection, before))
        })
        .await?;
    }
    let empty = Arc::new(empty);
    db::transaction(&monitor.pool, "delete windows", move |connection| {
        let empty = Arc::clone(&empty);
        Box::pin(async move {
            let mut outcome = Outcome::default();
            let claimed = repository::claim_empty(connection, &empty).await?;
            let ids: Vec<i64> = claimed.keys().copied().collect();
            let uuids: Vec<&str> = claimed.values().map(String::as_str).collect();
            let rows = repository::delete_letters_of(connection, &uuids, ROWS_PER_STEP).await?;
            outcome.count("dead_letters", rows);
            let room = ROWS_PER_STEP - rows;
            let rows = repository::delete_of(connection, "window_history", &ids, room).await?;
            outcome.count("window_history", rows);
            if rows == room {
                // The rest goes with the next step, and the windows after it.
                return Ok(outcome);
            }
            outcome.count("windows", repository::delete_windows(connection, &ids).await?);
            Ok(outcome)
        })
    })
    .await
}

/// Deletes some of what is known of dead letters whose window nobody knows.
async fn delete_stray_letters(monitor: &Monitor, before: Timestamp) -> Result<Outcome, db::Error> {
    db::transaction(&monitor.pool, "delete dead letters", move |connection| {
        Box::pin(async move {
            let mut outcome = Outcome::default();
            let rows = repository::delete_stray_letters(connection, before, ROWS_PER_STEP).await?;
            outcome.count("dead_letters", rows);
            Ok(outcome)
        })
    })
    .await
}

/// Deletes some slices that no summary reaches back to.
async fn delete_slices(monitor: &Monitor, now: Timestamp) -> Result<Outcome, db::Error> {
    let from = Span::Slice.begin(now.minus(SLICES_KEPT));
    db::transaction(&monitor.pool, "delete slices", move |connection| {
        Box::pin(async move {
            let mut outcome = Outcome::default();
            let Some(turn) = repository::take_turn(connection).await? else { return Ok(outcome) };
            if turn.slices_from < from {
                repository::store_slices_from(connection, from).await?;
            }
            let from = turn.slices_from.max(from);
            for sums in [Sums::Live, Sums::Archived] {
                let rows =
                    repository::delete_slices(connection, sums, from, SLICES_PER_STEP).await?;
                outcome.count(sums.table(), rows);
            }
            Ok(outcome)
        })
    })
    .await
}
