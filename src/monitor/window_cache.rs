//! Windows that this monitor has met lately, so that it need not ask for them with each heartbeat.
//!
//! What is relied on never changes: a window's row, and its first definition. What may change is
//! only ever out of date on the safe side: a window that is taken for open after it has closed, or
//! an offset that another monitor has made smaller, cost a question to the database.
//!
//! After a failure of the database everything is forgotten, and anything after a few seconds: the
//! server that answers next may be another, which need not have every row that the last one had.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lru::LruCache;
use uuid::Uuid;

use super::window::StoredWindow;
use crate::wire::Timestamp;

/// Windows that are remembered.
const CAPACITY: NonZeroUsize = NonZeroUsize::new(20_000).expect("is not zero");
/// How long what the database said is believed.
const FRESH_FOR: Duration = Duration::from_secs(10);

/// The windows that were met last.
#[derive(Debug)]
pub struct WindowCache {
    windows: Mutex<LruCache<Uuid, (Timestamp, Arc<StoredWindow>)>>,
}

impl Default for WindowCache {
    fn default() -> Self {
        Self { windows: Mutex::new(LruCache::new(CAPACITY)) }
    }
}

impl WindowCache {
    /// A window, if the database was asked for it lately.
    #[must_use]
    pub fn get(&self, uuid: Uuid, now: Timestamp) -> Option<Arc<StoredWindow>> {
        let mut windows = self.lock();
        let (read_at, window) = windows.get(&uuid)?;
        (*read_at <= now && now < read_at.plus(FRESH_FOR)).then(|| Arc::clone(window))
    }

    /// Remembers windows as the database had them at an instant.
    pub fn remember<'w>(
        &self,
        found: impl IntoIterator<Item = &'w Arc<StoredWindow>>,
        read_at: Timestamp,
    ) {
        let mut windows = self.lock();
        for window in found {
            windows.put(window.window.uuid, (read_at, Arc::clone(window)));
        }
    }

    /// Forgets everything.
    pub fn forget(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<Uuid, (Timestamp, Arc<StoredWindow>)>> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
