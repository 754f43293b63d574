//! What this relay holds: entries that it has read and neither delivered nor handed back.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::deliver::Delivery;
use crate::shutdown;
use crate::stream::{Entry, Source, StreamId};

/// Ids whose lease one command renews.
const IDS_PER_COMMAND: usize = 500;

/// The entries in flight.
#[derive(Debug, Default)]
pub struct Held {
    ids: Mutex<BTreeSet<(Source, StreamId)>>,
}

impl Held {
    /// Takes entries in hand. Answers those that were not in hand before.
    pub fn take(&self, entries: Vec<Entry>) -> Vec<Entry> {
        let mut ids = self.lock();
        entries.into_iter().filter(|entry| ids.insert((entry.source, entry.id))).collect()
    }

    /// Lets entries go.
    pub fn release(&self, source: Source, released: &[StreamId]) {
        let mut ids = self.lock();
        for id in released {
            ids.remove(&(source, *id));
        }
    }

    /// Everything in hand of one stream.
    #[must_use]
    pub fn of(&self, source: Source) -> Vec<StreamId> {
        let ids = self.lock();
        ids.iter().filter(|(held, _)| *held == source).map(|(_, id)| *id).collect()
    }

    /// Whether nothing is in hand.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<(Source, StreamId)>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Renews the leases on everything in hand, until told to stop: what is in flight then ends well
/// within a lease.
///
/// # Errors
/// Never; a lease that is not renewed may run out, and what it covered is then delivered twice,
/// which the monitor counts once.
pub async fn renew(delivery: Arc<Delivery>, interval: Duration) -> anyhow::Result<()> {
    while shutdown::sleep(interval, &delivery.shutdown).await {
        for source in Source::ALL {
            for ids in delivery.held.of(source).chunks(IDS_PER_COMMAND) {
                if let Err(error) = delivery.group.renew(source, ids).await {
                    tracing::warn!(%error, "renewing leases failed; it will be tried again");
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_in_hand_once() {
        let held = Held::default();
        let entry = |millis, source| {
            let id = StreamId { millis, sequence: 0 };
            Entry { source, id, payload: None, is_deleted: false }
        };
        let first = vec![entry(1, Source::Heartbeats), entry(1, Source::Windows)];
        assert_eq!(held.take(first.clone()), first);
        let again = vec![entry(1, Source::Heartbeats), entry(2, Source::Heartbeats)];
        assert_eq!(held.take(again), [entry(2, Source::Heartbeats)]);
        assert_eq!(held.of(Source::Heartbeats).len(), 2);
        held.release(Source::Heartbeats, &held.of(Source::Heartbeats));
        held.release(Source::Windows, &held.of(Source::Windows));
        assert!(held.is_empty());
    }
}
