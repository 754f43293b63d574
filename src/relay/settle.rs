//! How messages leave a relay's hands: acknowledged, set aside, or handed back.

use std::time::Duration;

use uuid::Uuid;

use super::deliver::Delivery;
use super::item::Item;
use super::job::Job;
use super::trace;
use crate::clock;
use crate::retry::Backoff;
use crate::shutdown;
use crate::stream::{Facts, Source, StreamError, StreamId};
use crate::wire::{SuspectReport, Timestamp};

/// Pauses between two attempts to settle messages in Redis.
const SETTLE_PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// How messages leave the stream.
#[derive(Clone, Copy, Debug)]
enum Settlement<'a> {
    /// The monitor has committed them.
    Acknowledge(&'a [StreamId]),
    /// It refuses this one; these are the facts.
    DeadLetter(StreamId, &'a Facts),
}

impl Delivery {
    /// Acknowledges what the monitor took, and sets aside what it refused.
    pub(super) async fn settle(&self, job: &Job, outcomes: Vec<Result<(), String>>) {
        let mut taken = Vec::with_capacity(job.items.len());
        for (item, outcome) in job.items.iter().zip(outcomes) {
            match outcome {
                Ok(()) => {
                    self.ended(job, item, trace::TAKEN);
                    taken.push(item.id);
                }
                Err(reason) => self.refuse(job, item, reason).await,
            }
        }
        if !taken.is_empty() {
            self.acknowledge(job.source, &taken).await;
        }
    }

    /// Acknowledges messages that leave the stream.
    pub(super) async fn acknowledge(&self, source: Source, ids: &[StreamId]) {
        if self.insist(source, Settlement::Acknowledge(ids)).await {
            self.metrics.acknowledged(source, ids.len());
        }
        self.held.release(source, ids);
    }

    /// Lets the watermark go on without a message that makes the monitor fail while others pass:
    /// it holds up its own window and no other.
    pub(super) async fn suspect(&self, job: &Job, item: &Item, reason: &str) {
        let (window_uuid, slot) = item.identity();
        let reason = reason.to_owned();
        let report = SuspectReport { window_uuid, slot, reason, since: job.since };
        if let Err(error) = self.group.suspect_entry(job.source, item.id, &report).await {
            tracing::warn!(%error, id = %item.id, "noting a suspect failed; it holds up everything");
        }
    }

    /// Sets a message aside that the monitor does not take.
    pub(super) async fn refuse(&self, job: &Job, item: &Item, reason: String) {
        self.ended(job, item, trace::REFUSED);
        self.dead_letter(job.source, (item.id, item.identity()), reason, job.since).await;
    }

    pub(super) async fn dead_letter(
        &self,
        source: Source,
        (id, (window_uuid, slot)): (StreamId, (Option<Uuid>, Option<i64>)),
        reason: String,
        first_at: Timestamp,
    ) {
        tracing::error!(%id, reason, "a message cannot be taken and becomes a dead letter");
        let facts = Facts { reason, first_at, at: clock::now(), window_uuid, slot };
        if self.insist(source, Settlement::DeadLetter(id, &facts)).await {
            self.metrics.dead_lettered(source);
        }
        self.held.release(source, &[id]);
    }

    /// Settles messages in Redis, however often it takes. Answers false if that was not done: a
    /// relay that stops gives up, and without the group there is nothing to settle. They are
    /// delivered again, which the monitor counts once.
    async fn insist(&self, source: Source, settlement: Settlement<'_>) -> bool {
        let mut backoff = Backoff::new(SETTLE_PAUSE.0, SETTLE_PAUSE.1);
        loop {
            let settled = match settlement {
                Settlement::Acknowledge(ids) => self.group.acknowledge(source, ids).await,
                Settlement::DeadLetter(id, facts) => {
                    self.group.dead_letter(source, id, facts).await
                }
            };
            match settled {
                Ok(()) => return true,
                Err(StreamError::NoGroup(_)) => return false,
                Err(error) => tracing::warn!(%error, "settling messages failed; trying again"),
            }
            if !shutdown::sleep(backoff.next_delay(rand::random()), &self.shutdown).await {
                return false;
            }
        }
    }

    pub(super) async fn give_back(&self, job: &Job) {
        job.items.iter().for_each(|item| self.ended(job, item, trace::HANDED_BACK));
        let ids = job.ids();
        if let Err(error) = self.group.give_back(job.source, &ids).await {
            tracing::warn!(%error, "handing messages back failed; their lease will run out");
        }
        self.held.release(job.source, &ids);
    }

    /// Records that a message is not sent any more.
    pub(super) fn ended(&self, job: &Job, item: &Item, outcome: &'static str) {
        if let Some(traces) = &self.traces {
            traces.end(item, job.attempts, outcome);
        }
    }
}
