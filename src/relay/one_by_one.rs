//! Before an original monitor: one heartbeat at a time, and none again that it has confirmed.
//!
//! An original monitor reads its counters, changes them and writes them back. Of two heartbeats that
//! come together it does not count one. So the deliveries of a relay stand in a line, in the order of
//! the stream, and the relays of a group take turns. A turn is a key in Redis that a relay renews for
//! each heartbeat of a batch. It ends after the last acknowledgement; it runs out when its relay is
//! killed, or when the monitor did not answer in time and may be at work on the heartbeat still.
//!
//! It counts a heartbeat that comes again once more. So a relay remembers what the monitor has
//! confirmed: a Redis that is emptied, and that the senders fill again, makes nothing count twice.
//!
//! What no relay can know: one that is killed between the answer and the acknowledgement leaves a
//! heartbeat that another sends again, and so does a monitor that takes a heartbeat and does not answer
//! in time.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::deliver::Delivery;
use super::forward::Answer;
use super::job::Job;
use crate::shutdown;
use crate::stream::{Group, Source, StreamId};

/// How long a batch waits for earlier ones that were read with it to stand in the line.
const GATHERING: Duration = Duration::from_millis(5);
/// Time between two looks at whether another relay's turn is over.
const POLL: Duration = Duration::from_millis(20);
/// How long a relay that ends its turn leaves it to one that wants it.
const COURTESY: Duration = Duration::from_millis(30);
/// Time between two attempts while Redis does not answer.
const PAUSE: Duration = Duration::from_secs(1);
/// How much longer a turn lasts than a request: an answer of Redis is waited for within it.
const MARGIN: Duration = Duration::from_secs(5);
/// Heartbeats that a relay remembers as confirmed.
const MOST_CONFIRMED: usize = 65_536;

/// What the deliveries of one relay share before an original monitor.
#[derive(Debug)]
pub struct OneByOne {
    /// This process among all relays.
    process: String,
    http_timeout: Duration,
    turn: Duration,
    line: Mutex<Line>,
    moved: watch::Sender<()>,
    confirmed: Mutex<Confirmed>,
}

/// Who waits, and whether somebody is sending.
#[derive(Debug, Default)]
struct Line {
    waiting: BTreeSet<StreamId>,
    is_sending: bool,
}

/// A place in the line, which is left when dropped.
#[derive(Debug)]
struct Place<'l> {
    of: &'l OneByOne,
    id: StreamId,
    is_sending: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut line = self.of.line();
        line.waiting.remove(&self.id);
        line.is_sending &= !self.is_sending;
        drop(line);
        self.of.moved.send_replace(());
    }
}

impl OneByOne {
    /// Nobody in the line, before a monitor that has `http_timeout` to answer.
    #[must_use]
    pub fn new(http_timeout: Duration) -> Self {
        Self {
            process: Uuid::new_v4().to_string(),
            http_timeout,
            turn: http_timeout + MARGIN,
            line: Mutex::default(),
            moved: watch::Sender::default(),
            confirmed: Mutex::default(),
        }
    }

    /// Waits until nobody sends, and nobody waits with an earlier heartbeat.
    async fn place(&self, id: StreamId) -> Place<'_> {
        let mut moved = self.moved.subscribe();
        let mut place = Place { of: self, id, is_sending: false };
        self.line().waiting.insert(id);
        tokio::time::sleep(GATHERING).await;
        loop {
            moved.borrow_and_update();
            if self.begins(id) {
                place.is_sending = true;
                return place;
            }
            // An error would mean that the sender is gone, and it is part of this line.
            moved.changed().await.ok();
        }
    }

    /// Begins to send a heartbeat, if it is the first in the line and nobody sends.
    fn begins(&self, id: StreamId) -> bool {
        let mut line = self.line();
        let begins = !line.is_sending && line.waiting.first() == Some(&id);
        line.is_sending |= begins;
        begins
    }

    /// Waits until it is this relay's turn. Answers false if it is told to stop before.
    async fn take_turn(&self, group: &Group, shutdown: &CancellationToken) -> bool {
        while !shutdown.is_cancelled() {
            let pause = match group.take_turn(&self.process, self.turn).await {
                Ok(true) => return true,
                Ok(false) => POLL,
                Err(error) => {
                    tracing::warn!(%error, "taking a turn failed; it will be tried again");
                    PAUSE
                }
            };
            shutdown::sleep(pause, shutdown).await;
        }
        false
    }

    /// Ends this relay's turn, and lets another take one that waits.
    async fn end_turn(&self, group: &Group) {
        match group.end_turn(&self.process).await {
            Ok(true) => tokio::time::sleep(COURTESY).await,
            Ok(false) => (),
            Err(error) => tracing::debug!(%error, "ending a turn failed; it runs out"),
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn confirmed(&self) -> MutexGuard<'_, Confirmed> {
        self.confirmed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The heartbeats that the monitor confirmed last, by their digests.
#[derive(Debug, Default)]
struct Confirmed {
    known: HashSet<Uuid>,
    in_order: VecDeque<Uuid>,
}

impl Confirmed {
    fn add(&mut self, digest: Uuid) {
        if self.known.insert(digest) {
            self.in_order.push_back(digest);
        }
        if self.in_order.len() > MOST_CONFIRMED
            && let Some(oldest) = self.in_order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

impl Delivery {
    /// Sends the heartbeats of a job to an original monitor, one after another. Announcements are for
    /// other monitors. Answers what is left to do.
    pub(super) async fn attempt_alone(&self, job: Job) -> Vec<Job> {
        let first = match (job.source, job.items.first()) {
            (Source::Heartbeats, Some(first)) => first.id,
            _ => return self.learn(job, Answer::NotForOldMonitors, Duration::ZERO).await,
        };
        let _place = tokio::select! {
            place = self.one_by_one.place(first) => place,
            () = self.shutdown.cancelled() => return vec![job],
        };
        let mut singles = job.singles().into_iter();
        let (mut left, mut is_unanswered) = (Vec::new(), false);
        while left.is_empty()
            && let Some(single) = singles.next()
        {
            (left, is_unanswered) = self.attempt_in_turn(single).await;
        }
        if is_unanswered {
            // The monitor may be at work on it still, and would lose a count beside another: the turn
            // runs out, and nobody sends meanwhile.
            shutdown::sleep(self.one_by_one.turn, &self.shutdown).await;
        } else if !self.shutdown.is_cancelled() {
            self.one_by_one.end_turn(&self.group).await;
        }
        left.extend(Job::together(singles));
        left
    }

    /// Sends a heartbeat in this relay's turn, which it renews, unless the monitor has confirmed it
    /// before. Answers what is left to do, and whether the monitor did not answer in time.
    async fn attempt_in_turn(&self, job: Job) -> (Vec<Job>, bool) {
        let [only] = job.items.as_slice() else { return (vec![job], false) };
        let digest = only.digest();
        let is_confirmed = self.one_by_one.confirmed().known.contains(&digest);
        if is_confirmed {
            tracing::debug!(id = %only.id, "the monitor has confirmed this heartbeat before");
            self.metrics.repeats.inc();
            self.settle(&job, vec![Ok(())]).await;
            return (Vec::new(), false);
        }
        if !self.one_by_one.take_turn(&self.group, &self.shutdown).await {
            return (vec![job], false);
        }
        let began = Instant::now();
        let answer = self.forwarder.send_one(only).await;
        let took = began.elapsed();
        let is_unanswered =
            matches!(answer, Answer::Unavailable { .. }) && took >= self.one_by_one.http_timeout;
        if let Answer::Taken(_) = answer {
            // Before the acknowledgement, which may fail.
            self.one_by_one.confirmed().add(digest);
        }
        (self.learn(job, answer, took).await, is_unanswered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(millis: u64) -> StreamId {
        StreamId { millis, sequence: 0 }
    }

    #[tokio::test]
    async fn the_earliest_heartbeat_goes_first_and_nobody_beside_it() {
        let line = OneByOne::new(Duration::from_secs(3));
        let first = line.place(id(9)).await;
        let gone = std::sync::Mutex::new(Vec::new());
        let go = async |millis| {
            let place = line.place(id(millis)).await;
            gone.lock().unwrap().push(millis);
            tokio::task::yield_now().await;
            drop(place);
        };
        let gives_up = tokio::time::timeout(Duration::from_millis(1), go(1));
        let begin = async {
            assert!(gives_up.await.is_err(), "somebody is sending");
            drop(first);
        };
        tokio::join!(go(7), go(3), begin, go(5));
        assert_eq!(*gone.lock().unwrap(), [3, 5, 7], "who gave up holds up nobody");
    }

    #[test]
    fn the_oldest_digest_is_forgotten_first() {
        let mut confirmed = Confirmed::default();
        let digest = |number: usize| Uuid::from_u128(number as u128);
        for number in 0..=MOST_CONFIRMED {
            confirmed.add(digest(number));
            confirmed.add(digest(number));
        }
        assert!(!confirmed.known.contains(&digest(0)));
        assert!(confirmed.known.contains(&digest(1)));
        assert_eq!(confirmed.known.len(), MOST_CONFIRMED);
    }
}
