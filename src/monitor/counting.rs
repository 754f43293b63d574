//! Keeps the totals up to date: adds what windows say when they have closed or changed.
//!
//! Whatever closes or changes a window adds a mark for it in the same transaction. A step takes some
//! marks, and in one transaction adds the difference between what their windows say now and what
//! they had added before, stores what they have added, and takes the marks away. So nothing is
//! counted twice and nothing is forgotten, whenever a process dies: a step happened or it did not.
//! One monitor counts at a time; the others find its row locked and go on. Ingest does no more than
//! mark what came late, and the sweep adds one row for each window that it closes.
//!
//! Why slots are missing is asked afterwards, window by window, because it takes the audit: until
//! then their verdict is `unknown`. A verdict that may change is asked for again, after a minute at
//! first and ever more seldom then. Only slots that are missing are judged. Whether the audit denies a
//! heartbeat that arrived (`phantom`) would have to be asked for every slot there is.
//!
//! The totals can be rebuilt: they are emptied, and all closed windows are counted anew, in the order
//! of their rows, by the same step. What a window added before a rebuild began counts for nothing then.
//! What windows added whose events are [no longer kept](super::prune) is archived, and a rebuild begins
//! with that.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::repository::{self, Sums, Turn};
use super::totals::{Added, Changes};
use super::window::StoredWindow;
use super::{Monitor, explain};
use crate::verdict::Verdict;
use crate::wire::Timestamp;
use crate::{clock, db, shutdown};

/// Pause when nothing is left to do.
const INTERVAL: Duration = Duration::from_secs(1);
/// Most windows of one step, and most slots, unless one window alone has more.
const WINDOWS_PER_STEP: u32 = 256;
const SLOTS_PER_STEP: u32 = 20_000;
/// Most windows that are judged in one step.
const JUDGED_PER_STEP: u32 = 64;
/// Soonest time after which a verdict that may change is asked for again.
const JUDGE_AGAIN: Duration = Duration::from_mins(1);

/// What both ledgers said of slots that are missing, by window and slot.
type Judged = HashMap<(i64, u32), Verdict>;

/// Counts and judges until told to stop. An audit that does not answer holds up judging alone.
///
/// # Errors
/// Never; a failure is logged and tried again. It keeps no heartbeat out, so that `/ready` does not
/// show it.
pub async fn run(monitor: Monitor, shutdown: CancellationToken) -> anyhow::Result<()> {
    tokio::join!(
        repeat(&monitor, "counting", |monitor, now| Box::pin(count_once(monitor, now)), &shutdown),
        repeat(&monitor, "judging", |monitor, now| Box::pin(judge_once(monitor, now)), &shutdown),
    );
    Ok(())
}

/// A step of a loop: what it does, as of an instant. Answers how much it has done.
type Step = for<'m> fn(&'m Monitor, Timestamp) -> BoxFuture<'m, Result<usize, db::Error>>;

async fn repeat(monitor: &Monitor, what: &str, step: Step, shutdown: &CancellationToken) {
    let mut pause = Duration::ZERO;
    while shutdown::sleep(pause, shutdown).await {
        let began = Instant::now();
        let outcome = tokio::select! {
            outcome = step(monitor, clock::now()) => outcome,
            () = shutdown.cancelled() => return,
        };
        pause = match outcome {
            Ok(0) => INTERVAL,
            // Half of the time at the most: heartbeats come first.
            Ok(_) => began.elapsed(),
            Err(error) => {
                tracing::warn!(%error, "{what} failed; it will be tried again");
                INTERVAL
            }
        };
    }
}

/// Counts and judges until nothing is left to do, as of one instant. Answers how many windows.
///
/// # Errors
/// When the database does not do its part; what was counted stays counted.
pub async fn count_all(monitor: &Monitor, now: Timestamp) -> Result<usize, db::Error> {
    let mut total = 0;
    loop {
        match count_once(monitor, now).await? + judge_once(monitor, now).await? {
            0 => return Ok(total),
            done => total += done,
        }
    }
}

/// Counts some windows that have closed or changed. Answers how many marks and windows it is done
/// with; none also if another monitor is counting.
///
/// # Errors
/// When the database does not do its part; then nothing is changed.
pub async fn count_once(monitor: &Monitor, now: Timestamp) -> Result<usize, db::Error> {
    db::long_transaction(&monitor.pool, "count windows", move |connection| {
        Box::pin(async move {
            let Some(turn) = repository::take_turn(connection).await? else { return Ok(0) };
            let anew = recount(connection, turn, now).await?;
            let marks = repository::marks(connection, WINDOWS_PER_STEP).await?;
            let ids: BTreeSet<i64> = marks.iter().map(|(_, window)| *window).collect();
            let mut windows = repository::closed_windows(connection, &ids).await?;
            let ids: Vec<i64> = marks.iter().map(|(_, window)| *window).collect();
            let taken = as_far_as_there_is_room(&ids, &windows);
            let marks: Vec<i64> = marks.iter().take(taken).map(|(mark, _)| *mark).collect();
            windows.retain(|id, _| ids[..taken].contains(id));
            add(connection, turn, &windows, &Judged::new(), now).await?;
            repository::delete_marks(connection, &marks).await?;
            Ok(anew + marks.len())
        })
    })
    .await
}

/// Counts some closed windows anew, while the totals are being rebuilt. Answers how many.
async fn recount(
    connection: &mut db::Connection,
    turn: Turn,
    now: Timestamp,
) -> Result<usize, db::Error> {
    let Some(recounted_to) = turn.recounted_to else { return Ok(0) };
    let ids = repository::closed_after(connection, recounted_to, WINDOWS_PER_STEP).await?;
    let set = ids.iter().copied().collect();
    let mut windows = repository::closed_windows(connection, &set).await?;
    let taken = as_far_as_there_is_room(&ids, &windows);
    windows.retain(|id, _| ids[..taken].contains(id));
    add(connection, turn, &windows, &Judged::new(), now).await?;
    repository::store_recounted(connection, ids[..taken].last().copied()).await?;
    Ok(taken)
}

/// How many of some windows to take, so that their slots are not too many. At least one, if there
/// is one.
fn as_far_as_there_is_room(ids: &[i64], windows: &BTreeMap<i64, StoredWindow>) -> usize {
    let mut slots = 0_u32;
    let mut met = BTreeSet::new();
    let fits = |id: &&i64| {
        let is_first = met.is_empty();
        if met.insert(**id) {
            slots = slots.saturating_add(windows.get(id).map_or(0, |known| known.window.slots()));
        }
        is_first || slots <= SLOTS_PER_STEP
    };
    ids.iter().take_while(fits).count()
}

/// Adds to the totals what windows say now, less what they have added before.
async fn add(
    connection: &mut db::Connection,
    turn: Turn,
    windows: &BTreeMap<i64, StoredWindow>,
    judged: &Judged,
    now: Timestamp,
) -> Result<(), db::Error> {
    let before = repository::added_before(connection, windows, turn.epoch).await?;
    let (added, last) = repository::add_up(connection, windows, judged).await?;
    let mut changes = Changes::default();
    let mut stored = Vec::with_capacity(added.len());
    for (id, added) in &added {
        let window = &windows[id];
        let service = window.window.service.as_str();
        changes.add(service, added, 1);
        if let Some(before) = before.get(id) {
            changes.add(service, before, -1);
        }
        stored.push((*id, added, judge_at(window, added, judged, now)));
    }
    let changes = changes.into_real(turn.slices_from);
    repository::add_totals(connection, Sums::Live, &changes).await?;
    repository::store_added(connection, turn.epoch, &stored).await?;
    repository::store_last(connection, &last).await
}

/// When to ask why slots of a window are missing: at once, if nobody has; later, if what was said
/// may change; never, if it is final.
fn judge_at(
    window: &StoredWindow,
    added: &Added,
    judged: &Judged,
    now: Timestamp,
) -> Option<Timestamp> {
    if added.missing() == 0 {
        return None;
    }
    let verdicts = judged.iter().filter(|((id, _), _)| *id == window.id);
    let mut verdicts = verdicts.map(|(_, verdict)| *verdict).peekable();
    if verdicts.peek().is_none() {
        return Some(now);
    }
    let age = window.window.ends_at().until(now);
    (!verdicts.all(is_final)).then(|| now.plus(JUDGE_AGAIN.max(age / 2)))
}

/// Whether a verdict of a slot that is missing changes only if its heartbeat arrives after all.
const fn is_final(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::NeverSent | Verdict::SenderDown | Verdict::DeadLettered)
}

/// Asks both ledgers why slots of some windows are missing, and adds what they say. Answers how
/// many windows.
///
/// # Errors
/// When the monitor's own database does not do its part; then nothing is changed.
pub async fn judge_once(monitor: &Monitor, now: Timestamp) -> Result<usize, db::Error> {
    let due = repository::to_judge(&monitor.pool, now, JUDGED_PER_STEP);
    let ids = db::patiently(due).await?;
    if ids.is_empty() {
        return Ok(0);
    }
    let windows = repository::windows_by_id(&monitor.pool, &ids).await?;
    // Those of which there is no window any more would be asked for again and again.
    let mut done = BTreeSet::from_iter(ids);
    let (mut judged, mut slots) = (Judged::new(), 0);
    for window in &windows {
        if slots >= SLOTS_PER_STEP {
            done.remove(&window.id);
            continue;
        }
        slots += window.window.slots();
        let explained = explain::explain(monitor, window, now).await?;
        for slot in explained.slots {
            if slot.event.is_some_and(|event| event.is_missing()) {
                judged.insert((window.id, slot.number), slot.verdict);
            }
        }
    }
    let (done, judged) = (Arc::new(done), Arc::new(judged));
    db::long_transaction(&monitor.pool, "count verdicts", move |connection| {
        let (done, judged) = (Arc::clone(&done), Arc::clone(&judged));
        Box::pin(async move {
            let turn = repository::await_turn(connection).await?;
            repository::forget_to_judge(connection, &done).await?;
            let windows = repository::closed_windows(connection, &done).await?;
            add(connection, turn, &windows, &judged, now).await?;
            Ok(done.len())
        })
    })
    .await
}

/// Empties the totals but for what is archived, and has them counted anew from what is stored. Monitors do so in the
/// background, also after a restart; until they have, the totals are too small.
///
/// # Errors
/// When the database does not do its part; then nothing is changed.
pub async fn rebuild(monitor: &Monitor) -> Result<(), db::Error> {
    db::long_transaction(&monitor.pool, "begin to count anew", move |connection| {
        Box::pin(repository::begin_recount(connection))
    })
    .await
}
