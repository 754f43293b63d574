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
use uuid::Uuid;

use super::concurrency::{Concurrency, Load};
use super::forward::{Answer, Forwarder, Item};
use super::gate::Gate;
use super::held::Held;
use super::metrics::Metrics;
use super::trace::{self, Deliveries};
use crate::clock;
use crate::http::Readiness;
use crate::retry::Backoff;
use crate::shutdown;
use crate::stream::{Entry, Facts, Group, Source, StreamError, StreamId};
use crate::wire::{Breaker, SuspectReport, Timestamp};

/// Pauses between two attempts.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(5));
/// Longest pause before a message is sent again that makes the monitor fail.
const SUSPECT_PAUSE: Duration = Duration::from_secs(10);
/// Messages that may wait apart because they make the monitor fail; those beyond hold up reading.
pub const MAX_SUSPECTS: usize = 1_000;
/// Pauses between two attempts to settle messages in Redis.
const SETTLE_PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
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

/// Messages that are sent together, and how that went so far.
#[derive(Debug)]
struct Job {
    source: Source,
    items: Vec<Item>,
    /// How often it was sent.
    attempts: u32,
    backoff: Backoff,
    /// How often it made the monitor fail, counted only if other messages passed in between.
    strikes: u32,
    /// [`Delivery::passed`] at the last of these.
    passed_before: u64,
    /// When it was first in hand.
    since: Timestamp,
    /// When to send it (again).
    due: Instant,
}

impl Job {
    fn new(source: Source, items: Vec<Item>, since: Timestamp) -> Self {
        let backoff = Backoff::new(PAUSE.0, PAUSE.1);
        let (due, strikes, passed_before) = (Instant::now(), 0, 0);
        Self { source, items, attempts: 0, backoff, strikes, passed_before, since, due }
    }

    /// The same again, after a pause that grows up to `longest`, or the longer one that the monitor
    /// asks for.
    fn again(mut self, wait: Option<Duration>, longest: Duration) -> Self {
        let pause = self.backoff.next_delay(rand::random()).min(longest);
        Self { due: Instant::now() + pause.max(wait.unwrap_or_default()), ..self }
    }

    /// Whether it is one message that makes the monitor fail on its own.
    fn is_suspect(&self) -> bool {
        self.items.len() == 1 && self.strikes > 0
    }

    /// Both halves, each starting over; of a single message the same again.
    fn halves(mut self) -> Vec<Self> {
        let second = self.items.split_off(self.items.len() / 2);
        let halves = [self.items, second].into_iter().filter(|items| !items.is_empty());
        let half = |items| Self::new(self.source, items, self.since);
        halves.map(|items| Self { attempts: self.attempts, ..half(items) }).collect()
    }

    fn ids(&self) -> Vec<StreamId> {
        self.items.iter().map(|item| item.id).collect()
    }
}

/// How messages leave the stream.
#[derive(Clone, Copy, Debug)]
enum Settlement<'a> {
    /// The monitor has committed them.
    Acknowledge(&'a [StreamId]),
    /// It refuses this one; these are the facts.
    DeadLetter(StreamId, &'a Facts),
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
        for source in Source::ALL {
            let items = self.readable(source, &entries, now).await;
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
                () = self.shutdown.cancelled() => self.give_back(&job).await,
                () = self.gate.turn(job.due) => jobs.extend(self.attempt(job).await),
            }
        }
        drop(place);
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
    async fn readable(&self, source: Source, entries: &[Entry], now: Timestamp) -> Vec<Item> {
        let mut items = Vec::with_capacity(entries.len());
        for entry in entries.iter().filter(|entry| entry.source == source) {
            match Item::read(entry) {
                Ok(mut item) => {
                    if let Some(traces) = &self.traces {
                        traces.begin(source, &mut item, now);
                    }
                    items.push(item);
                }
                Err(reason) => {
                    self.dead_letter(source, (entry.id, (None, None)), reason, now).await;
                }
            }
        }
        items
    }

    /// Sends a job once. Answers what is left to do of it.
    async fn attempt(&self, mut job: Job) -> Vec<Job> {
        job.attempts += 1;
        let began = Instant::now();
        let answer = self.forwarder.send(job.source, &job.items).await;
        self.metrics.answered(&answer, began.elapsed());
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
            Answer::OneByOne => job.halves(),
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

    /// Acknowledges what the monitor took, and sets aside what it refused.
    async fn settle(&self, job: &Job, outcomes: Vec<Result<(), String>>) {
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
            if self.insist(job.source, Settlement::Acknowledge(&taken)).await {
                self.metrics.acknowledged(job.source, taken.len());
            }
            self.held.release(job.source, &taken);
        }
    }

    /// Lets the watermark go on without a message that makes the monitor fail while others pass:
    /// it holds up its own window and no other.
    async fn suspect(&self, job: &Job, item: &Item, reason: &str) {
        let (window_uuid, slot) = item.identity();
        let reason = reason.to_owned();
        let report = SuspectReport { window_uuid, slot, reason, since: job.since };
        if let Err(error) = self.group.suspect_entry(job.source, item.id, &report).await {
            tracing::warn!(%error, id = %item.id, "noting a suspect failed; it holds up everything");
        }
    }

    /// Sets a message aside that the monitor does not take.
    async fn refuse(&self, job: &Job, item: &Item, reason: String) {
        self.ended(job, item, trace::REFUSED);
        self.dead_letter(job.source, (item.id, item.identity()), reason, job.since).await;
    }

    async fn dead_letter(
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

    async fn give_back(&self, job: &Job) {
        job.items.iter().for_each(|item| self.ended(job, item, trace::HANDED_BACK));
        let ids = job.ids();
        if let Err(error) = self.group.give_back(job.source, &ids).await {
            tracing::warn!(%error, "handing messages back failed; their lease will run out");
        }
        self.held.release(job.source, &ids);
    }

    /// Records that a message is not sent any more.
    fn ended(&self, job: &Job, item: &Item, outcome: &'static str) {
        if let Some(traces) = &self.traces {
            traces.end(item, job.attempts, outcome);
        }
    }
}

/// The job that is due first: one that waits does not hold up the others.
fn take_first_due(jobs: &mut Vec<Job>) -> Option<Job> {
    let first = jobs.iter().enumerate().min_by_key(|(_, job)| job.due).map(|(index, _)| index)?;
    Some(jobs.remove(first))
}
