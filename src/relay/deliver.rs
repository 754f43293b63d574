//! Carrying one batch through: sent until the monitor answers, then acknowledged.
//!
//! The destination's fault is never the message's fault. Only an answer about a message itself
//! makes it a dead letter: refused by name, refused alone, or alone making the monitor fail again
//! and again while others pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::concurrency::{Concurrency, Load};
use super::forward::{Answer, Forwarder};
use super::gate::Gate;
use super::held::Held;
use super::item::Item;
use super::job::{Job, PAUSE, take_first_due};
use super::metrics::Metrics;
use super::missed::Missed;
use super::one_by_one::OneByOne;
use super::trace::Deliveries;
use crate::clock;
use crate::http::Readiness;
use crate::stream::{Entry, Group, Source};
use crate::wire::{Breaker, Timestamp};

/// Longest pause before a message is sent again that makes the monitor fail.
const SUSPECT_PAUSE: Duration = Duration::from_secs(10);
/// Messages that may wait apart because they make the monitor fail; those beyond hold up reading.
pub const MAX_SUSPECTS: usize = 1_000;
/// Attempts after which a batch that makes the monitor fail is cut in two.
const ATTEMPTS_TOGETHER: u32 = 3;
/// Failures after which a message alone is at fault: in between, others have passed.
const STRIKES_OF_A_SUSPECT: u32 = 2;

/// Everything that a delivery needs. Shared by all.
#[derive(Debug)]
pub struct Delivery {
    /// The group that the entries are acknowledged in.
    pub group: Arc<Group>,
    /// The way to the monitor.
    pub forwarder: Forwarder,
    /// What is in hand.
    pub held: Held,
    /// How many deliveries may be under way.
    pub concurrency: Concurrency,
    /// What was over before the group existed.
    pub missed: Missed,
    /// The order before an original monitor.
    pub one_by_one: OneByOne,
    /// Stops everybody while the monitor takes nothing.
    pub gate: Gate,
    /// What keeps the relay from its work.
    pub readiness: Readiness,
    /// What the relay counts and measures.
    pub metrics: Metrics,
    /// What records traces, unless they are off.
    pub traces: Option<Deliveries>,
    /// Attempts after which a message that alone makes the monitor fail becomes a dead letter.
    pub max_retries: u32,
    /// Places for messages that make the monitor fail on their own.
    pub suspects: Arc<Semaphore>,
    /// How many requests the monitor has taken: proof that it works.
    pub passed: AtomicU64,
    /// Told to stop: what is not delivered is handed back.
    pub shutdown: CancellationToken,
}

impl Delivery {
    /// Delivers entries, announcements before heartbeats. Ends when each is acknowledged, a dead
    /// letter, or handed back because the relay stops.
    ///
    /// `slot` is let go as soon as nothing is left but messages that make the monitor fail on their
    /// own: they must not keep others from being read.
    pub async fn deliver(&self, entries: Vec<Entry>, slot: OwnedSemaphorePermit) {
        let (mut place, mut is_aside) = (slot, false);
        let mut jobs = Vec::with_capacity(2);
        let now = clock::now();
        let mut entries = self.skip_missed(entries).await;
        for source in Source::ALL {
            let of_source = entries.extract_if(.., |entry| entry.source == source).collect();
            let items = self.readable(source, of_source, now).await;
            if !items.is_empty() {
                jobs.push(Job::new(source, items, now));
            }
        }
        while !jobs.is_empty() {
            if !is_aside && jobs.iter().all(Job::is_suspect) {
                (place, is_aside) = self.step_aside(place, jobs.len());
            }
            let Some(job) = take_first_due(&mut jobs) else { break };
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => jobs.extend(self.attempt_last(job).await),
                () = self.gate.turn(job.due) => jobs.extend(self.attempt(job).await),
            }
        }
        drop(place);
    }

    /// Hands a job back, because the relay stops. What was read while it was told to, and never sent, is
    /// sent once before if the monitor takes messages: others may never look for it. Answers what is
    /// left to do.
    async fn attempt_last(&self, job: Job) -> Vec<Job> {
        let takes_messages = self.gate.report() == Breaker::Closed;
        if job.attempts == 0 && takes_messages && !self.forwarder.takes_one_by_one() {
            return self.attempt(job).await;
        }
        self.give_back(&job).await;
        Vec::new()
    }

    /// Swaps a delivery slot for a place among the suspects, if there is one.
    fn step_aside(
        &self,
        slot: OwnedSemaphorePermit,
        messages: usize,
    ) -> (OwnedSemaphorePermit, bool) {
        let messages = u32::try_from(messages).unwrap_or(u32::MAX);
        match Arc::clone(&self.suspects).try_acquire_many_owned(messages) {
            Ok(place) => (place, true),
            Err(_) => (slot, false),
        }
    }

    /// The entries of one stream that can be sent; the others become dead letters.
    async fn readable(&self, source: Source, entries: Vec<Entry>, now: Timestamp) -> Vec<Item> {
        let mut items = Vec::with_capacity(entries.len());
        for entry in entries {
            let id = entry.id;
            match Item::read(entry) {
                Ok(mut item) => {
                    if let Some(traces) = &self.traces {
                        traces.begin(source, &mut item, now);
                    }
                    items.push(item);
                }
                Err(reason) => {
                    self.dead_letter(source, (id, (None, None)), reason, now).await;
                }
            }
        }
        items
    }

    /// Sends a job once. Answers what is left to do of it.
    async fn attempt(&self, mut job: Job) -> Vec<Job> {
        job.attempts += 1;
        // Asked once: an original monitor that is met meanwhile gets nothing from here.
        if self.forwarder.takes_one_by_one() {
            return self.attempt_alone(job).await;
        }
        let began = Instant::now();
        let answer = self.forwarder.send(job.source, &job.items).await;
        self.learn(job, answer, began.elapsed()).await
    }

    /// Learns from an answer, which took so long, and follows it. Answers what is left to do of the
    /// job.
    pub(super) async fn learn(&self, job: Job, answer: Answer, took: Duration) -> Vec<Job> {
        self.metrics.answered(&answer, took);
        self.gate.learn(&answer);
        match answer {
            Answer::Taken(_) => self.concurrency.learn(Load::Taken),
            Answer::Unavailable { .. } => self.concurrency.learn(Load::TooMuch),
            // Not for lack of room.
            _ => (),
        }
        match self.gate.report() {
            Breaker::Closed => self.readiness.works("breaker"),
            Breaker::Open { reason } => {
                self.readiness.trouble("breaker", format!("open, nothing is read: {reason}"));
            }
        }
        self.note(&answer);
        let class = answer.name();
        let left = self.follow(job, answer).await;
        if !left.is_empty() {
            self.metrics.sends_again(class);
        }
        left
    }

    /// Does with a job what its answer asks for. Answers what is left to do of it.
    async fn follow(&self, job: Job, answer: Answer) -> Vec<Job> {
        match answer {
            Answer::Taken(outcomes) => {
                self.passed.fetch_add(1, Ordering::Relaxed);
                self.settle(&job, outcomes).await;
                Vec::new()
            }
            Answer::Refused(reason) => match job.items.as_slice() {
                [only] => {
                    self.refuse(&job, only, reason).await;
                    Vec::new()
                }
                _ => job.halves(),
            },
            Answer::OneByOne => vec![job],
            Answer::NotForOldMonitors => {
                let skipped = job.items.iter().map(|_| Ok(())).collect();
                self.settle(&job, skipped).await;
                Vec::new()
            }
            Answer::Failed(reason) => self.after_failure(job, &reason).await,
            Answer::Unavailable { wait, .. } => vec![job.again(wait, PAUSE.1)],
            Answer::Misconfigured(_) => vec![job.again(None, PAUSE.1)],
        }
    }

    /// Shows what an answer says about the monitor.
    fn note(&self, answer: &Answer) {
        match answer {
            Answer::Taken(_) | Answer::Refused(_) => self.readiness.works("monitor"),
            Answer::OneByOne | Answer::NotForOldMonitors => (),
            Answer::Failed(reason) | Answer::Unavailable { reason, .. } => {
                tracing::warn!(reason, "the monitor cannot take messages now; trying again");
                self.readiness.trouble("monitor", reason);
            }
            Answer::Misconfigured(reason) => {
                tracing::error!(reason, "this is no monitor of ours: check --monitor-url");
                self.readiness.trouble("monitor", reason);
            }
        }
    }

    /// A batch that makes the monitor fail is cut in two. A message that does so alone, again and
    /// again while others pass, is given up in the end.
    async fn after_failure(&self, mut job: Job, reason: &str) -> Vec<Job> {
        let passed = self.passed.load(Ordering::Relaxed);
        if job.strikes == 0 || passed > job.passed_before {
            job.strikes += 1;
            job.passed_before = passed;
        }
        match job.items.as_slice() {
            [only] if job.strikes > self.max_retries => {
                let reason = format!("{reason}, {} times while others passed", self.max_retries);
                self.refuse(&job, only, reason).await;
                Vec::new()
            }
            [only] if job.strikes >= STRIKES_OF_A_SUSPECT => {
                self.suspect(&job, only, reason).await;
                vec![job.again(None, SUSPECT_PAUSE)]
            }
            [_, _, ..] if job.backoff.attempts() + 1 >= ATTEMPTS_TOGETHER => job.halves(),
            _ => vec![job.again(None, SUSPECT_PAUSE)],
        }
    }
}
