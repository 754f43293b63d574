//! Keeps the totals up to date: adds what windows say when they have closed or changed.
//!
//! Whatever closes or changes a window adds a mark for it in the same transaction. A step takes some
//! marks, and in one transaction adds the difference between what their windows say now and what
//! they had added before, stores what they have added, and takes the marks away. So nothing is
//! counted twice and nothing is forgotten, whenever a process dies: a step happened or it did not.
//! One monitor counts at a time; the others find its row locked and go on. Ingest does no more than
//! mark what came late, and the sweep adds one row for each window that it closes.
//!
//! A window that cannot be counted holds up no other: where a step fails that took several, they are
//! counted one by one, and the mark of the one that fails alone is set aside for a while.
//!
//! Why slots are missing is asked afterwards, by `judging`. Until then their verdict is `unknown`.
//!
//! The totals can be rebuilt: they are emptied, in steps, and then all closed windows are marked, in the
//! order of their rows, whenever nothing else waits to be counted. What a window added before a rebuild
//! began counts for nothing then. What windows added whose events are [no longer kept](super::prune) is
//! archived, and comes back once the totals are empty.

mod judging;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::judging::judge_once;
use self::judging::{Judged, judge_at};
use super::Monitor;
use super::repository::{self, Sums, Turn};
use super::totals::Changes;
use super::window::StoredWindow;
use crate::wire::Timestamp;
use crate::{clock, db, shutdown};

/// Pause when nothing is left to do.
const INTERVAL: Duration = Duration::from_secs(1);
/// How many times as long as a step took the pause behind it is.
const REST: u32 = 4;
/// Most windows of one step, and most slots, unless one window alone has more.
const WINDOWS_PER_STEP: u32 = 256;
const SLOTS_PER_STEP: u32 = 20_000;
/// When a window is tried again that could not be counted.
const TRY_AGAIN: Duration = Duration::from_mins(10);
/// Pause before the turn is asked for again that another monitor has.
const TURN_AGAIN: Duration = Duration::from_millis(100);
/// How long a rebuild waits for the turn.
const REBUILD_PATIENCE: Duration = Duration::from_secs(5);

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
            // Heartbeats, and closing windows, come first.
            Ok(_) => began.elapsed() * REST,
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

/// Counts some windows that have closed or changed. Answers how much it has done; nothing also if
/// another monitor is counting.
///
/// # Errors
/// When the database does not do its part; then nothing is changed.
pub async fn count_once(monitor: &Monitor, now: Timestamp) -> Result<usize, db::Error> {
    let began = Instant::now();
    match count_marked(monitor, None, now).await {
        Err(error) if is_of_one_window(&error, began) => count_one_by_one(monitor, now).await,
        ended => ended,
    }
}

/// Counts the windows of some marks, or of one alone.
async fn count_marked(
    monitor: &Monitor,
    only: Option<(i64, i64)>,
    now: Timestamp,
) -> Result<usize, db::Error> {
    db::long_transaction(&monitor.pool, "count windows", move |connection| {
        Box::pin(async move {
            let Some(turn) = repository::take_turn(connection).await? else { return Ok(0) };
            if turn.is_refilling() {
                repository::refill_some(connection, turn).await?;
                return Ok(1);
            }
            let waiting = match only {
                Some(mark) => vec![mark],
                None => repository::marks(connection, WINDOWS_PER_STEP, now).await?,
            };
            let ids: Vec<i64> = waiting.iter().map(|(_, window)| *window).collect();
            let distinct = ids.iter().copied().collect();
            let mut windows = repository::closed_windows(connection, &distinct).await?;
            let taken = as_far_as_there_is_room(&ids, &windows);
            let marks: Vec<i64> = waiting.iter().take(taken).map(|(mark, _)| *mark).collect();
            windows.retain(|id, _| ids[..taken].contains(id));
            add(connection, turn, &windows, &Judged::new(), now).await?;
            repository::delete_marks(connection, &marks).await?;
            let is_all = only.is_none() && taken < WINDOWS_PER_STEP as usize && taken == ids.len();
            let anew = if is_all { mark_more(connection, turn).await? } else { 0 };
            Ok(marks.len() + anew)
        })
    })
    .await
}

/// Marks some closed windows that are to be counted anew, while the totals are being rebuilt and
/// nothing else waits. Answers how many. When there are none left, all have been counted.
async fn mark_more(connection: &mut db::Connection, turn: Turn) -> Result<usize, db::Error> {
    let Some(recounted_to) = turn.recounted_to else { return Ok(0) };
    let ids = repository::closed_after(connection, recounted_to, WINDOWS_PER_STEP).await?;
    repository::mark_uncounted(connection, &ids).await?;
    repository::store_recounted(connection, ids.last().copied()).await?;
    Ok(ids.len())
}

/// Counts the windows of marks one by one, until one fails alone, and sets that one aside. Answers
/// how many marks it is done with.
async fn count_one_by_one(monitor: &Monitor, now: Timestamp) -> Result<usize, db::Error> {
    let waiting = db::patiently(async {
        let mut connection = monitor.connection().await?;
        repository::marks(&mut connection, WINDOWS_PER_STEP, now).await
    })
    .await?;
    for (done, (mark, window)) in waiting.iter().copied().enumerate() {
        let began = Instant::now();
        match count_marked(monitor, Some((mark, window)), now).await {
            Ok(_) => {}
            Err(error) if is_of_one_window(&error, began) => {
                tracing::error!(window, %error, "a window is not counted; it will be tried again");
                let again = now.plus(TRY_AGAIN);
                db::transaction(&monitor.pool, "set a window aside", move |connection| {
                    Box::pin(repository::set_mark_aside(connection, mark, again))
                })
                .await?;
                return Ok(done + 1);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(waiting.len())
}

/// Whether a failure may be that of one window, so that others are better off without it: its rows
/// cannot be read or stored, or take too long.
fn is_of_one_window(error: &db::Error, began: Instant) -> bool {
    match error.class {
        db::Class::Bug | db::Class::Data => true,
        db::Class::Unavailable => began.elapsed() >= db::LONG_PATIENCE,
        db::Class::Retry | db::Class::Reconnect | db::Class::Configuration => false,
    }
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

/// Empties the totals but for what is archived, and has them counted anew from what is stored.
/// Monitors do so in the background, also after a restart; until they have, the totals are too small.
///
/// # Errors
/// When the database does not do its part; then nothing is changed.
pub async fn rebuild(monitor: &Monitor) -> Result<(), db::Error> {
    with_turn(REBUILD_PATIENCE, || {
        db::transaction(&monitor.pool, "begin to count anew", |connection| {
            Box::pin(async move {
                let Some(_) = repository::take_turn(connection).await? else { return Ok(None) };
                repository::begin_recount(connection).await.map(Some)
            })
        })
    })
    .await
}

/// Tries until nobody else has the turn. Between, it is in no transaction.
async fn with_turn<T, F>(patience: Duration, attempt: impl Fn() -> F) -> Result<T, db::Error>
where
    F: Future<Output = Result<Option<T>, db::Error>>,
{
    let began = Instant::now();
    loop {
        if let Some(done) = attempt().await? {
            return Ok(done);
        }
        if began.elapsed() >= patience {
            return Err(db::Error::contended("the totals"));
        }
        tokio::time::sleep(TURN_AGAIN).await;
    }
}
