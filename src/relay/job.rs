//! Messages that are sent together: how often that was tried, when to try again, and how they are cut.

use std::time::Duration;

use tokio::time::Instant;

use super::item::Item;
use crate::retry::Backoff;
use crate::stream::{Source, StreamId};
use crate::wire::Timestamp;

/// Pauses between two attempts.
pub(super) const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(5));

/// Messages that are sent together, and how that went so far.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) source: Source,
    pub(super) items: Vec<Item>,
    /// How often it was sent.
    pub(super) attempts: u32,
    pub(super) backoff: Backoff,
    /// How often it made the monitor fail, counted only if other messages passed in between.
    pub(super) strikes: u32,
    /// [`Delivery::passed`](super::deliver::Delivery::passed) at the last of these.
    pub(super) passed_before: u64,
    /// When it was first in hand.
    pub(super) since: Timestamp,
    /// When to send it (again).
    pub(super) due: Instant,
}

impl Job {
    pub(super) fn new(source: Source, items: Vec<Item>, since: Timestamp) -> Self {
        let backoff = Backoff::new(PAUSE.0, PAUSE.1);
        let (due, strikes, passed_before) = (Instant::now(), 0, 0);
        Self { source, items, attempts: 0, backoff, strikes, passed_before, since, due }
    }

    /// The same again, after a pause that grows up to `longest`, or the longer one that the monitor
    /// asks for.
    pub(super) fn again(mut self, wait: Option<Duration>, longest: Duration) -> Self {
        let pause = self.backoff.next_delay(rand::random()).min(longest);
        Self { due: Instant::now() + pause.max(wait.unwrap_or_default()), ..self }
    }

    /// Whether it is one message that makes the monitor fail on its own.
    pub(super) fn is_suspect(&self) -> bool {
        self.items.len() == 1 && self.strikes > 0
    }

    /// Both halves, each starting over; of a single message the same again.
    pub(super) fn halves(mut self) -> Vec<Self> {
        let second = self.items.split_off(self.items.len() / 2);
        let halves = [self.items, second].into_iter().filter(|items| !items.is_empty());
        let half = |items| Self::new(self.source, items, self.since);
        halves.map(|items| Self { attempts: self.attempts, ..half(items) }).collect()
    }

    /// Each message alone, in their order; of a single message the same.
    pub(super) fn singles(self) -> Vec<Self> {
        if self.items.len() == 1 {
            return vec![self];
        }
        let single = |item| Self {
            attempts: self.attempts,
            due: self.due,
            ..Self::new(self.source, vec![item], self.since)
        };
        self.items.into_iter().map(single).collect()
    }

    /// The messages of all these, if there are any.
    pub(super) fn together(jobs: impl Iterator<Item = Self>) -> Option<Self> {
        jobs.reduce(|mut all, next| {
            all.items.extend(next.items);
            all
        })
    }

    pub(super) fn ids(&self) -> Vec<StreamId> {
        self.items.iter().map(|item| item.id).collect()
    }
}

/// The job that is due first: one that waits does not hold up the others.
pub(super) fn take_first_due(jobs: &mut Vec<Job>) -> Option<Job> {
    let first = jobs.iter().enumerate().min_by_key(|(_, job)| job.due).map(|(index, _)| index)?;
    Some(jobs.remove(first))
}
