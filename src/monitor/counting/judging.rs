//! Asks both ledgers why slots are missing, and adds to the totals what they say.
//!
//! It is asked window by window, after a window was counted, because it takes the audit. The newest
//! come first, and each monitor claims others. A verdict that may change is asked for again, after a
//! minute at first and ever more seldom then; while a window is young, every verdict is, because an audit
//! may be read from a replica that is behind. Only slots that are missing are judged. Whether the audit
//! denies a heartbeat that arrived (`phantom`) would have to be asked for every slot there is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{SLOTS_PER_STEP, TRY_AGAIN, add, is_of_one_window, with_turn};
use crate::db;
use crate::monitor::totals::Added;
use crate::monitor::window::StoredWindow;
use crate::monitor::{Monitor, explain, repository};
use crate::verdict::Verdict;
use crate::wire::Timestamp;

/// Most windows that are judged in one step.
const JUDGED_PER_STEP: u32 = 64;
/// When those are asked for again that a step has claimed, if it does not come to an end.
const CLAIMED_FOR: Duration = Duration::from_mins(2);
/// Soonest time after which a verdict that may change is asked for again.
const JUDGE_AGAIN: Duration = Duration::from_mins(1);
/// Age of a window from which a verdict may be final.
const YOUNG: Duration = Duration::from_mins(10);
/// How long to wait for the turn with what the ledgers have said.
const TURN_PATIENCE: Duration = Duration::from_secs(30);

/// What both ledgers said of slots that are missing, by window and slot.
pub(super) type Judged = HashMap<(i64, u32), Verdict>;

/// When to ask why slots of a window are missing: at once, if nobody has; later, if what was said
/// may change; never, if it is final.
pub(super) fn judge_at(
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
    if verdicts.all(is_final) {
        return (age < YOUNG).then(|| window.window.ends_at().plus(YOUNG));
    }
    Some(now.plus(JUDGE_AGAIN.max(age / 2)))
}

/// Whether a verdict of a slot that is missing changes only if its heartbeat arrives after all.
const fn is_final(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::NeverSent | Verdict::SenderDown | Verdict::DeadLettered)
}

/// Asks both ledgers why slots of some windows are missing, and adds what they say. Answers how
/// many windows.
///
/// # Errors
/// When the monitor's own database does not do its part; then nothing is added.
pub async fn judge_once(monitor: &Monitor, now: Timestamp) -> Result<usize, db::Error> {
    let claimed = claim(monitor, now).await?;
    let began = Instant::now();
    match judge(monitor, &claimed, now).await {
        Err(error) if is_of_one_window(&error, began) => {
            judge_one_by_one(monitor, &claimed, now).await
        }
        ended => ended,
    }
}

/// Windows to judge, the newest first, which no other monitor takes for a while.
async fn claim(monitor: &Monitor, now: Timestamp) -> Result<Vec<i64>, db::Error> {
    db::transaction(&monitor.pool, "claim windows to judge", move |connection| {
        Box::pin(async move {
            let ids = repository::to_judge(connection, now, JUDGED_PER_STEP).await?;
            repository::set_judge_at(connection, &ids, Some(now.plus(CLAIMED_FOR))).await?;
            Ok(ids)
        })
    })
    .await
}

/// Judges windows as far as there is room, and leaves the others to the next step.
async fn judge(monitor: &Monitor, ids: &[i64], now: Timestamp) -> Result<usize, db::Error> {
    if ids.is_empty() {
        return Ok(0);
    }
    let reading = async {
        let mut connection = monitor.connection().await?;
        repository::windows_by_id(&mut connection, ids).await
    };
    let windows = db::patiently(reading).await?;
    let windows: HashMap<i64, _> = windows.into_iter().map(|window| (window.id, window)).collect();
    let (mut judged, mut slots, mut taken) = (Judged::new(), 0, 0);
    for id in ids {
        if slots >= SLOTS_PER_STEP {
            break;
        }
        taken += 1;
        // One of which there is no window any more is never asked for again.
        let Some(window) = windows.get(id) else { continue };
        slots += window.window.slots();
        let explained = db::patiently(explain::explain(monitor, window, now)).await?;
        for slot in explained.slots {
            if slot.event.is_some_and(|event| event.is_missing()) {
                judged.insert((*id, slot.number), slot.verdict);
            }
        }
    }
    let (done, rest) = ids.split_at(taken);
    store(monitor, (done.into(), rest.into()), Arc::new(judged), now).await
}

/// Adds what the ledgers have said of windows that are done, and lets others have the rest. Answers
/// how many are done.
async fn store(
    monitor: &Monitor,
    (done, rest): (Arc<[i64]>, Arc<[i64]>),
    judged: Arc<Judged>,
    now: Timestamp,
) -> Result<usize, db::Error> {
    with_turn(TURN_PATIENCE, || {
        let (done, rest, judged) = (Arc::clone(&done), Arc::clone(&rest), Arc::clone(&judged));
        db::long_transaction(&monitor.pool, "count verdicts", move |connection| {
            let (done, rest, judged) = (Arc::clone(&done), Arc::clone(&rest), Arc::clone(&judged));
            Box::pin(async move {
                let Some(turn) = repository::take_turn(connection).await? else { return Ok(None) };
                repository::set_judge_at(connection, &rest, Some(now)).await?;
                if turn.is_refilling() {
                    // All of them will be counted anew, and judged then.
                    return Ok(Some(0));
                }
                repository::set_judge_at(connection, &done, None).await?;
                let ids = done.iter().copied().collect();
                let windows = repository::closed_windows(connection, &ids).await?;
                add(connection, turn, &windows, &judged, now).await?;
                Ok(Some(done.len()))
            })
        })
    })
    .await
}

/// Judges windows one by one. One that fails is asked for again later.
async fn judge_one_by_one(
    monitor: &Monitor,
    ids: &[i64],
    now: Timestamp,
) -> Result<usize, db::Error> {
    for id in ids {
        let began = Instant::now();
        match judge(monitor, &[*id], now).await {
            Ok(_) => {}
            Err(error) if is_of_one_window(&error, began) => {
                tracing::error!(window = id, %error, "a window is not judged; it will be tried again");
                let (ids, again) = ([*id], now.plus(TRY_AGAIN));
                db::transaction(&monitor.pool, "set a verdict aside", move |connection| {
                    Box::pin(async move {
                        repository::set_judge_at(connection, &ids, Some(again)).await
                    })
                })
                .await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(ids.len())
}
