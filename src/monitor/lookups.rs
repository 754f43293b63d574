//! Reading windows with their counts as of now, for all who ask at the same time.
//!
//! The answer to a single heartbeat shows its window. Reading windows one by one would cost more
//! than writing the heartbeats does, and so would counting each window from its beginning.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::Monitor;
use super::batcher::{Batcher, Limits};
use super::repository::{self, Found};
use super::window::{Counts, StoredWindow, WindowStatus};
use super::window_cache::Known;
use crate::db;
use crate::wire::Timestamp;

/// Windows of one question, and those that may wait for an answer.
const LIMITS: Limits = Limits { leaders: 2, group: 512, waiting: 10_000 };

/// Those who wait to be told of a window.
#[derive(Debug)]
pub struct Lookups(Batcher<Lookup, Option<StoredWindow>>);

impl Default for Lookups {
    fn default() -> Self {
        Self(Batcher::new(LIMITS))
    }
}

/// A window that is asked for.
#[derive(Clone, Copy, Debug)]
struct Lookup {
    uuid: Uuid,
    /// When it was open for certain, if that is known.
    open_at: Option<Timestamp>,
}

/// One window with its counts, as they are after this was called.
///
/// # Errors
/// When the database does not do its part.
pub async fn find_window(monitor: &Monitor, uuid: Uuid) -> Result<Option<StoredWindow>, db::Error> {
    find(monitor, Lookup { uuid, open_at: None }).await
}

/// The same for a window that was open just now, because it has taken a heartbeat for a slot of
/// which nothing was known: a closed window knows something of each. Much cheaper.
///
/// # Errors
/// When the database does not do its part.
pub async fn find_open_window(
    monitor: &Monitor,
    uuid: Uuid,
    now: Timestamp,
) -> Result<Option<StoredWindow>, db::Error> {
    find(monitor, Lookup { uuid, open_at: Some(now) }).await
}

async fn find(monitor: &Monitor, lookup: Lookup) -> Result<Option<StoredWindow>, db::Error> {
    let asked = monitor.clone();
    let work = Arc::new(move |lookups: Arc<[Lookup]>| {
        let monitor = asked.clone();
        let read: BoxFuture<'static, _> =
            Box::pin(async move { db::patiently(look_up(&monitor, &lookups)).await });
        read
    });
    let mut found = monitor.lookups.0.call(vec![lookup], work).await?;
    Ok(found.pop().flatten())
}

async fn look_up(
    monitor: &Monitor,
    lookups: &[Lookup],
) -> Result<Vec<Option<StoredWindow>>, db::Error> {
    let mut found = count_on(monitor, lookups).await?;
    let uuids = lookups.iter().map(|lookup| lookup.uuid);
    let others: Vec<Uuid> = uuids.filter(|uuid| !found.contains_key(uuid)).collect();
    if !others.is_empty() {
        let mut connection = monitor.connection().await?;
        found.extend(repository::find_windows(&mut connection, &others).await?);
    }
    Ok(lookups.iter().map(|lookup| found.get(&lookup.uuid).cloned()).collect())
}

/// Windows that are known and open: only what has come since they were counted last is counted.
async fn count_on(
    monitor: &Monitor,
    lookups: &[Lookup],
) -> Result<HashMap<Uuid, StoredWindow>, db::Error> {
    let cached = |lookup: &Lookup| monitor.window_cache.get(lookup.uuid, lookup.open_at?);
    let known: BTreeMap<i64, Known> =
        lookups.iter().filter_map(cached).map(|known| (known.window.id, known)).collect();
    if known.is_empty() {
        return Ok(HashMap::new());
    }
    let ids: Vec<i64> = known.keys().copied().collect();
    let beginnings: Vec<_> = known.iter().map(|(id, known)| (*id, known.tally.slots)).collect();
    let mut connection = monitor.connection().await?;
    let counted = repository::count_from(&mut connection, &beginnings).await?;
    let unscheduled = repository::unscheduled(&mut connection, &ids).await?;
    let mut found = HashMap::with_capacity(known.len());
    for (id, known) in known {
        let counted = counted.get(&id);
        if counted.is_some_and(|counted| counted.missing > 0) {
            // It has closed meanwhile.
            continue;
        }
        if let Some(counted) = counted {
            monitor.window_cache.extend(&known, known.tally.extended(counted));
        }
        let unscheduled = unscheduled.get(&id).copied().unwrap_or(0);
        let window = StoredWindow { unscheduled, ..open_window(&known, counted) };
        found.insert(window.window.uuid, window);
    }
    Ok(found)
}

/// An open window, with what its beginning and the rest add up to.
fn open_window(Known { window, tally, .. }: &Known, rest: Option<&Found>) -> StoredWindow {
    let (events, errors) = rest.map_or((0, 0), |rest| (rest.events, rest.errors));
    let received = tally.slots + events;
    let last = tally.last.max(rest.map(|rest| rest.last));
    StoredWindow {
        status: WindowStatus::Open,
        counts: Counts { received, errors: tally.errors + errors, missing: 0, unobserved: 0 },
        updated_at: last.map_or(window.updated_at, |last| last.max(window.updated_at)),
        ..StoredWindow::clone(window)
    }
}
