//! The outbox: sending what the audit holds and does not know to be sent.

use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::plan::Plan;
use super::repository::{self, StoredTick};
use super::{Payments, PlannedWindow, trace};
use crate::retry::Backoff;
use crate::stream::{StreamError, StreamId, Written};
use crate::wire::{Announcement, Heartbeat, Window};
use crate::{clock, db, shutdown};

/// Pauses of a publisher that fails: short, because the grace of a window is.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(1));
/// How long a publisher that is told to stop may go on sending.
const LAST_SENDS: Duration = Duration::from_secs(3);
/// Heartbeats that one step sends.
const SENDS_PER_STEP: u32 = 256;

/// Publishes a window until it is finished or told to stop.
pub(super) async fn run(
    payments: &Payments,
    window: &PlannedWindow,
    wake: &Notify,
    all_ticked: &CancellationToken,
    stop: &CancellationToken,
) {
    let mut backoff = Backoff::new(PAUSE.0, PAUSE.1);
    let mut progress = Progress { announced: window.announced, first_unsent: 0 };
    loop {
        let is_last = all_ticked.is_cancelled();
        let outcome = tokio::select! {
            outcome = publish_once(payments, &window.plan, &mut progress) => outcome,
            () = long_after(stop) => return,
        };
        let shown = outcome.as_ref().map_err(PublishError::advice);
        payments.readiness.note("publishing", &shown);
        match outcome {
            Ok(more) if more && !stop.is_cancelled() => backoff.reset(),
            _ if stop.is_cancelled() => return,
            Ok(_) if is_last => {
                if finish(payments, &window.plan, stop).await {
                    return;
                }
                progress.first_unsent = 0;
            }
            Ok(_) => {
                backoff.reset();
                tokio::select! {
                    () = wake.notified() => (),
                    () = all_ticked.cancelled() => (),
                    () = stop.cancelled() => (),
                }
            }
            Err(error) => {
                payments.metrics.failed(&error);
                tracing::warn!(%error, window = %window.plan.window.uuid, "publishing failed");
                shutdown::sleep(backoff.next_delay(rand::random()), stop).await;
            }
        }
    }
}

/// Ends when a publisher that was told to stop has had time enough: what it has not sent is sent by
/// the next start.
async fn long_after(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(LAST_SENDS).await;
}

/// Why a step of the publisher failed.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The audit could not be read or marked.
    #[error("the payments database failed: {0}")]
    Database(#[from] db::Error),
    /// The stream could not be written.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl PublishError {
    /// What to tell a person who asks why nothing is published; shows no detail.
    #[must_use]
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Database(error) => error.class.advice(),
            Self::Stream(error) => error.advice(),
        }
    }
}

/// How far the publisher of a window has come. Slots are stored in order, so that none before
/// `first_unsent` should need sending any more; the last look makes sure.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Whether the announcement is known to be written.
    pub announced: bool,
    /// The first slot that may be stored and not sent.
    pub first_unsent: u32,
}

/// Announces the window if that is not done, then sends what the audit holds and does not know to
/// be sent. Answers whether there may be more.
///
/// # Errors
/// When Redis or the database does not do its part. What was sent and could not be marked is sent
/// again, which the monitor drops.
pub async fn publish_once(
    payments: &Payments,
    plan: &Plan,
    progress: &mut Progress,
) -> Result<bool, PublishError> {
    let pool = &payments.pool;
    let uuid = plan.window.uuid;
    if !progress.announced {
        announce(payments, std::slice::from_ref(&plan.window)).await?;
        progress.announced = true;
    }
    let reading = repository::unsent_ticks(pool, uuid, progress.first_unsent, SENDS_PER_STEP);
    let unsent = db::patiently(reading).await?;
    let more = unsent.len() >= SENDS_PER_STEP as usize;
    payments.metrics.found_unsent(uuid, unsent.len(), more);
    let Some(last) = unsent.last().map(|tick| tick.slot) else { return Ok(false) };
    let sent = unsent.clone();
    let unsent: Vec<_> = unsent.into_iter().map(|tick| (plan.window.clone(), tick)).collect();
    send(payments, &unsent).await?;
    payments.metrics.sent(uuid, &sent, clock::now());
    progress.first_unsent = last + 1;
    Ok(more)
}

/// Announces windows and marks them as announced, with the Redis that took them, whose identity it
/// answers.
///
/// # Errors
/// When Redis or the database does not do its part; announce them again.
pub(super) async fn announce(
    payments: &Payments,
    windows: &[Window],
) -> Result<String, PublishError> {
    let now = clock::now();
    let announcement = |window: &Window| Announcement::new(window.clone(), now).to_json();
    let announcements: Vec<String> = windows.iter().map(announcement).collect();
    let Written { identity, ids } = payments.producer.publish_announcements(&announcements).await?;
    let uuids = windows.iter().map(|window| window.uuid);
    let announced: Vec<(Uuid, StreamId)> = uuids.zip(ids).collect();
    repository::mark_announced(&payments.pool, announced, &identity).await?;
    Ok(identity)
}

/// Sends ticks and marks them as sent, with the Redis that took them.
///
/// # Errors
/// When Redis or the database does not do its part; send them again.
pub(super) async fn send(
    payments: &Payments,
    ticks: &[(Window, StoredTick)],
) -> Result<(), PublishError> {
    if ticks.is_empty() {
        return Ok(());
    }
    let payload = |(window, tick): &_| payload(payments, window, tick);
    let payloads: Vec<String> = ticks.iter().map(payload).collect();
    let began = clock::now();
    let written = payments.producer.publish_heartbeats(&payloads).await?;
    for (tick, entry) in ticks.iter().zip(&written.ids) {
        trace::published(payments, tick, *entry, began);
    }
    let ticks: Vec<StoredTick> = ticks.iter().map(|(_, tick)| tick.clone()).collect();
    Ok(repository::mark_sent(&payments.pool, &ticks, &written).await?)
}

fn payload(payments: &Payments, window: &Window, tick: &StoredTick) -> String {
    let heartbeat = Heartbeat {
        window: window.clone(),
        status: tick.status.clone(),
        timestamp: tick.timestamp,
        slot: Some(i64::from(tick.slot)),
        stream_id: None,
    };
    heartbeat.to_traced_json(&trace::of_slot(payments, window, tick.slot))
}

/// Notes that a window is done, until that is stored. Answers false if something turned out to be
/// unsent.
async fn finish(payments: &Payments, plan: &Plan, stop: &CancellationToken) -> bool {
    let mut backoff = Backoff::new(PAUSE.0, PAUSE.1);
    loop {
        match repository::finish(&payments.pool, plan.window.uuid, clock::now()).await {
            Ok(is_finished) => {
                if is_finished {
                    tracing::info!(window = %plan.window.uuid, "a window is done");
                }
                return is_finished;
            }
            Err(error) => {
                tracing::warn!(%error, window = %plan.window.uuid, "finishing a window failed");
            }
        }
        if !shutdown::sleep(backoff.next_delay(rand::random()), stop).await {
            return true;
        }
    }
}
