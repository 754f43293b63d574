//! Windows that this monitor has met lately, so that it need not ask for them with each heartbeat.
//!
//! What is relied on never changes: a window's row, and its first definition. What may change is
//! only ever out of date on the safe side: a window that is taken for open after it has closed, or
//! an offset that another monitor has made smaller, cost a question to the database. Nor does the
//! beginning of an open window change of which every slot has arrived.
//!
//! After a failure of the database everything is forgotten, and anything after a few seconds: the
//! server that answers next may be another, which need not have every row that the last one had.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lru::LruCache;
use uuid::Uuid;

use super::repository::Tally;
use super::window::StoredWindow;
use crate::wire::Timestamp;

/// Windows that are remembered.
const CAPACITY: NonZeroUsize = NonZeroUsize::new(20_000).expect("is not zero");
/// How long what the database said is believed.
const FRESH_FOR: Duration = Duration::from_secs(10);

/// The windows that were met last.
#[derive(Debug)]
pub struct WindowCache {
    windows: Mutex<LruCache<Uuid, Known>>,
}

/// What is known of one window.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) window: Arc<StoredWindow>,
    /// What its beginning adds up to, while it is open.
    pub(super) tally: Tally,
    read_at: Timestamp,
}

impl Default for WindowCache {
    fn default() -> Self {
        Self { windows: Mutex::new(LruCache::new(CAPACITY)) }
    }
}

impl WindowCache {
    /// A window, if the database was asked for it lately.
    pub(super) fn get(&self, uuid: Uuid, now: Timestamp) -> Option<Known> {
        let mut windows = self.lock();
        let known = windows.get(&uuid)?;
        let is_fresh = known.read_at <= now && now < known.read_at.plus(FRESH_FOR);
        is_fresh.then(|| known.clone())
    }

    /// Remembers windows as the database had them at an instant.
    pub(super) fn remember<'w>(
        &self,
        found: impl IntoIterator<Item = &'w Arc<StoredWindow>>,
        read_at: Timestamp,
    ) {
        let mut windows = self.lock();
        for window in found {
            let known = Known { window: Arc::clone(window), tally: Tally::default(), read_at };
            windows.put(window.window.uuid, known);
        }
    }

    /// Remembers more of a window's beginning, unless the window was read again meanwhile.
    pub(super) fn extend(&self, known: &Known, tally: Tally) {
        let mut windows = self.lock();
        if let Some(kept) = windows.get_mut(&known.window.window.uuid)
            && kept.read_at == known.read_at
            && kept.tally.slots < tally.slots
        {
            kept.tally = tally;
        }
    }

    /// Forgets everything.
    pub fn forget(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<Uuid, Known>> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
