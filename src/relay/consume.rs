//! Reading: own pending entries first, then new ones, and those of relays that have died; and
//! deleting what every group has acknowledged.
//!
//! The stream is the queue. Nothing is read unless a delivery slot is free and the monitor takes
//! messages, so that the relay's memory does not grow with the backlog.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::RelayArgs;
use super::deliver::Delivery;
use crate::retry::Backoff;
use crate::shutdown;
use crate::stream::{Creation, Entry, Source, StreamError, StreamId};

/// What one read should bring at the most, in bytes. Redis counts entries only, so that the size of
/// those to come is guessed from the largest seen lately.
const READ_BYTES: usize = 8 * 1024 * 1024;
/// Most batches of one read. A Redis that keeps everything writes to its disk after each read, which
/// takes as long for many entries as for a few.
const BATCHES_PER_READ: usize = 8;
/// Pause after Redis failed.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// How long a relay that stops waits for Redis to hear of it.
const FAREWELL: Duration = Duration::from_secs(2);

/// How much to read, and how often to look for what others left.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    batch_size: usize,
    lease: Duration,
}

impl Limits {
    /// The limits that the options ask for.
    #[must_use]
    pub fn new(args: &RelayArgs) -> Self {
        Self { batch_size: args.batch_size as usize, lease: args.lease }
    }
}

/// Reads and delivers until told to stop, then waits for what is in flight and leaves the group.
///
/// # Errors
/// Never; failures are logged, shown by `/ready`, and tried again.
pub async fn run(delivery: Arc<Delivery>, limits: Limits) -> anyhow::Result<()> {
    let consumer =
        Consumer { deliveries: TaskTracker::new(), largest: AtomicUsize::new(0), delivery, limits };
    tokio::join!(consumer.read_until_stopped(), consumer.tend_until_stopped());
    consumer.deliveries.close();
    consumer.deliveries.wait().await;
    let farewell = async {
        // The last chance to tell the senders what is delivered.
        if let Err(error) = consumer.delivery.group.survey().await {
            tracing::debug!(%error, "the senders do not learn what was delivered last");
        }
        if let Err(error) = consumer.delivery.group.leave().await {
            tracing::debug!(%error, "leaving the group failed; the name stays in it");
        }
    };
    if tokio::time::timeout(FAREWELL, farewell).await.is_err() {
        tracing::debug!("Redis does not answer: leaving without a word");
    }
    Ok(())
}

struct Consumer {
    delivery: Arc<Delivery>,
    limits: Limits,
    deliveries: TaskTracker,
    /// Size of the largest entry seen lately, in bytes.
    largest: AtomicUsize,
}

impl Consumer {
    fn shutdown(&self) -> &CancellationToken {
        &self.delivery.shutdown
    }

    async fn read_until_stopped(&self) {
        let mut backoff = Backoff::new(PAUSE.0, PAUSE.1);
        // Where to go on among our own pending entries; none once they are all in hand.
        let mut pending_after = Some([StreamId::default(); 2]);
        while let Some(slot) = self.slot().await {
            let mut slots = vec![slot];
            slots.extend(self.delivery.concurrency.free_places(BATCHES_PER_READ - 1));
            match self.read_once(slots, pending_after).await {
                Ok(next) => {
                    backoff.reset();
                    self.delivery.readiness.works("reading");
                    pending_after = next;
                }
                Err(error) => {
                    // What the failed read was about to bring may be pending under our name now.
                    pending_after = Some([StreamId::default(); 2]);
                    self.recover(error, &mut backoff).await;
                }
            }
        }
    }

    /// Reads a batch for each slot and sets out to deliver them. Answers where to go on among the
    /// pending.
    async fn read_once(
        &self,
        slots: Vec<OwnedSemaphorePermit>,
        pending_after: Option<[StreamId; 2]>,
    ) -> Result<Option<[StreamId; 2]>, StreamError> {
        let group = &self.delivery.group;
        let Some(after) = pending_after else {
            let entries = group.read_new(self.count(slots.len())).await?;
            self.set_out(slots, entries);
            return Ok(None);
        };
        let mut entries = group.read_own(self.count(slots.len()), after).await?;
        let next = (!entries.is_empty()).then(|| ids_after(after, &entries));
        let deleted: Vec<_> = entries.extract_if(.., |entry| entry.is_deleted).collect();
        for source in Source::ALL {
            let ids = deleted.iter().filter(|entry| entry.source == source).map(|entry| entry.id);
            let ids: Vec<StreamId> = ids.collect();
            if !ids.is_empty() {
                tracing::error!(entries = ids.len(), "pending entries were deleted: given up");
                group.give_up(source, &ids).await?;
            }
        }
        self.set_out(slots, entries);
        Ok(next)
    }

    /// Does what there is to do about a failed read, and waits.
    async fn recover(&self, error: StreamError, backoff: &mut Backoff) {
        tracing::warn!(%error, "reading the streams failed; it will be tried again");
        self.delivery.readiness.trouble("reading", error.advice());
        if let StreamError::NoGroup(_) = error {
            match self.delivery.group.create().await {
                Ok(created) => {
                    self.delivery.missed.learn(&created);
                    if created.how == Creation::New {
                        tracing::error!(
                            "nothing is left of the group: was Redis emptied or replaced?"
                        );
                    }
                }
                Err(error) => tracing::warn!(%error, "creating the consumer group failed"),
            }
        }
        shutdown::sleep(backoff.next_delay(rand::random()), self.shutdown()).await;
    }

    async fn tend_until_stopped(&self) {
        while shutdown::sleep(self.limits.lease / 4, self.shutdown()).await {
            for source in Source::ALL {
                let tended = match self.claim_all(source).await {
                    Ok(()) => self.delivery.group.trim(source).await.map(drop),
                    Err(error) => Err(error),
                };
                if let Err(error) = tended {
                    tracing::warn!(%error, "tending the streams failed; it will be tried again");
                }
            }
        }
    }

    /// Takes over every entry whose relay has let its lease run out.
    async fn claim_all(&self, source: Source) -> Result<(), StreamError> {
        let mut cursor = "0-0".to_owned();
        while let Some(slot) = self.slot().await {
            let (lease, count) = (self.limits.lease, self.count(1));
            let claimed = self.delivery.group.claim(source, lease, &cursor, count).await?;
            if claimed.deleted > 0 {
                tracing::error!(
                    entries = claimed.deleted,
                    "pending entries were deleted from the stream by somebody else: their content \
                     is lost unless the senders send it again, which they are told to do"
                );
            }
            if !claimed.entries.is_empty() {
                tracing::info!(entries = claimed.entries.len(), "took over from a silent relay");
            }
            self.set_out(vec![slot], claimed.entries);
            match claimed.next {
                Some(next) => cursor = next,
                None => break,
            }
        }
        Ok(())
    }

    /// A free delivery slot, while the monitor takes messages; none once told to stop.
    async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        let free = async {
            let slot = self.delivery.concurrency.place().await;
            self.delivery.gate.opened().await;
            slot
        };
        tokio::select! {
            biased;
            () = self.shutdown().cancelled() => None,
            slot = free => slot,
        }
    }

    /// How many entries to read at a time, to fill so many batches.
    fn count(&self, batches: usize) -> usize {
        let most = self.limits.batch_size * batches;
        entries_within(READ_BYTES, self.largest.load(Ordering::Relaxed), most)
    }

    /// Delivers entries in batches, one for each slot.
    fn set_out(&self, slots: Vec<OwnedSemaphorePermit>, entries: Vec<Entry>) {
        if let Some(largest) = entries.iter().map(Entry::size_bytes).max() {
            let before = self.largest.load(Ordering::Relaxed);
            self.largest.store(largest.max(before / 2), Ordering::Relaxed);
        }
        let entries = self.delivery.held.take(entries);
        let batches = batches(entries, self.limits.batch_size);
        debug_assert!(batches.len() <= slots.len(), "no more is read than there are slots for");
        for (entries, slot) in batches.into_iter().zip(slots) {
            let delivery = Arc::clone(&self.delivery);
            self.deliveries.spawn(async move {
                delivery.deliver(entries, slot).await;
            });
        }
    }
}

/// Cuts entries into batches that each have at most so many of either stream.
fn batches(entries: Vec<Entry>, batch_size: usize) -> Vec<Vec<Entry>> {
    let mut batches: Vec<Vec<Entry>> = Vec::new();
    let mut seen = [0; 2];
    for entry in entries {
        let seen = &mut seen[usize::from(entry.source == Source::Heartbeats)];
        let number = *seen / batch_size.max(1);
        *seen += 1;
        if batches.len() == number {
            batches.push(Vec::new());
        }
        batches[number].push(entry);
    }
    batches
}

/// How many entries of a size fit into a read: at least one, and no more than can be sent.
fn entries_within(bytes: usize, entry_bytes: usize, most: usize) -> usize {
    (bytes / entry_bytes.max(1)).clamp(1, most)
}

/// The highest ids read so far, per stream.
fn ids_after([windows, heartbeats]: [StreamId; 2], entries: &[Entry]) -> [StreamId; 2] {
    let highest = |source, start: StreamId| {
        let ids = entries.iter().filter(|entry| entry.source == source).map(|entry| entry.id);
        ids.fold(start, StreamId::max)
    };
    [highest(Source::Windows, windows), highest(Source::Heartbeats, heartbeats)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_have_at_most_so_many_of_either_stream_and_lose_nothing() {
        let entry =
            |source| Entry { source, id: StreamId::default(), payload: None, is_deleted: false };
        let mut entries = vec![entry(Source::Windows); 5];
        entries.extend(vec![entry(Source::Heartbeats); 8]);
        let counts: Vec<_> = batches(entries, 3)
            .iter()
            .map(|batch| Source::ALL.map(|of| batch.iter().filter(|e| e.source == of).count()))
            .collect();
        assert_eq!(counts, [[3, 3], [2, 3], [0, 2]]);
        assert!(batches(Vec::new(), 3).is_empty());
    }

    #[test]
    fn large_entries_are_read_a_few_at_a_time() {
        let count = |entry_bytes| entries_within(READ_BYTES, entry_bytes, 256);
        assert_eq!([0, 400, 32 * 1024].map(count), [256, 256, 256]);
        assert_eq!([64 * 1024, 1024 * 1024, 10 * 1024 * 1024].map(count), [128, 8, 1]);
    }
}
