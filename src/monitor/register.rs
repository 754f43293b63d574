//! Making windows known: the first definition stands, whoever brings it, and what later messages
//! say of an open window is noted.
//!
//! Windows that were [met lately](super::window_cache) cost no question to the database, unless a message
//! brings news of them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use uuid::Uuid;

use super::ingest::MAX_CLOCK_AHEAD;
use super::retention::may_be_pruned;
use super::window::{StoredWindow, WindowStatus};
use super::{Monitor, repository};
use crate::db;
use crate::wire::{Announcement, Heartbeat, ServiceName, StreamId, Timestamp, Window};

/// Most windows of one service that may be open at a time.
pub const MAX_OPEN_WINDOWS: u64 = 10_000;

/// How often other requests may be faster in making the same windows known.
const MAX_RACES: u32 = 20;

/// By how much a smaller offset of a sender's clock is worth storing, in microseconds.
const OFFSET_STEP_US: i64 = 50_000;

/// What a message says of its window.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// The window as the message defines it.
    pub window: Window,
    /// Whether the message came through the stream.
    pub via_stream: bool,
    /// How far the sender's clock is behind the stream's, in microseconds, at the most.
    pub clock_offset_us: Option<i64>,
}

impl Sighting {
    fn new(window: &Window, stream_id: Option<StreamId>, offset_us: Option<i64>) -> Self {
        let clock_offset_us = offset_us.filter(|offset| is_believed(window, stream_id, *offset));
        Self { window: window.clone(), via_stream: stream_id.is_some(), clock_offset_us }
    }

    /// Takes what another message says of the same window.
    fn merge(&mut self, other: &Self) {
        self.via_stream |= other.via_stream;
        self.clock_offset_us = smaller(self.clock_offset_us, other.clock_offset_us);
    }

    /// Adds what it says to what is stored.
    fn correct(&self, stored: &mut StoredWindow) {
        stored.via_stream |= self.via_stream;
        stored.clock_offset_us = smaller(stored.clock_offset_us, self.clock_offset_us);
    }

    /// Whether it says what is not stored yet. An offset that is only a little smaller is not worth
    /// a write.
    fn corrects(&self, stored: &StoredWindow) -> bool {
        let offset = |us: Option<i64>| us.unwrap_or(i64::MAX);
        let is_smaller = offset(self.clock_offset_us)
            < offset(stored.clock_offset_us).saturating_sub(OFFSET_STEP_US);
        stored.status == WindowStatus::Open
            && ((self.via_stream && !stored.via_stream) || is_smaller)
    }
}

/// Whether an offset says when a window is due. A stamp from more than a day before says nothing,
/// unless the window had begun by it: then it was sent again long afterwards, or comes from a clock
/// that is far behind, and is due one length of the window after it was sent, at the latest.
fn is_believed(window: &Window, stream_id: Option<StreamId>, offset_us: i64) -> bool {
    let longest = i64::try_from(MAX_CLOCK_AHEAD.as_micros()).unwrap_or(i64::MAX);
    let stamp = stream_id.map(|entry| entry.written_at().plus_micros(-offset_us));
    offset_us <= longest || stamp.is_some_and(|stamp| window.from() <= stamp)
}

/// The smaller of two offsets, as far as they are known.
fn smaller(one: Option<i64>, other: Option<i64>) -> Option<i64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

impl From<&Heartbeat> for Sighting {
    fn from(heartbeat: &Heartbeat) -> Self {
        Self::new(&heartbeat.window, heartbeat.stream_id, heartbeat.clock_offset_us())
    }
}

impl From<&Announcement> for Sighting {
    fn from(told: &Announcement) -> Self {
        Self::new(&told.window, told.stream_id, told.clock_offset_us())
    }
}

/// Windows that messages are of.
#[derive(Debug, Default)]
pub(super) struct Registered {
    /// Those that are known now.
    pub(super) known: HashMap<Uuid, Arc<StoredWindow>>,
    /// Those of them that were new.
    pub(super) new: BTreeSet<Uuid>,
    /// Those that may have been known and are no longer kept.
    pub(super) gone: BTreeSet<Uuid>,
}

/// Makes sure that windows are known; a window's first definition stands.
pub(super) async fn register(
    monitor: &Monitor,
    sightings: Vec<Sighting>,
    now: Timestamp,
) -> Result<Registered, db::Error> {
    let mut sighted: BTreeMap<Uuid, Sighting> = BTreeMap::new();
    for sighting in sightings {
        match sighted.entry(sighting.window.uuid) {
            Entry::Vacant(vacant) => drop(vacant.insert(sighting)),
            Entry::Occupied(mut first) => first.get_mut().merge(&sighting),
        }
    }
    let mut registered = Registered::default();
    sighted.retain(|uuid, sighting| match monitor.window_cache.get(*uuid, now) {
        Some(cached) if !sighting.corrects(&cached.window) => {
            registered.known.insert(*uuid, cached.window);
            false
        }
        _ => true,
    });
    if !sighted.is_empty() {
        let asked = ask_and_insert(monitor, &sighted, now).await?;
        monitor.window_cache.remember(asked.known.values(), now);
        registered.known.extend(asked.known);
        (registered.new, registered.gone) = (asked.new, asked.gone);
    }
    Ok(registered)
}

/// Reads windows, notes what is news of them, and inserts those that are new. Leaves out what a
/// service may not open.
async fn ask_and_insert(
    monitor: &Monitor,
    sighted: &BTreeMap<Uuid, Sighting>,
    now: Timestamp,
) -> Result<Registered, db::Error> {
    let uuids: Vec<Uuid> = sighted.keys().copied().collect();
    let known = read_and_correct(monitor, &uuids, sighted).await?;
    let mut registered = Registered { known, ..Registered::default() };
    let mut new = sighted.clone();
    new.retain(|uuid, _| !registered.known.contains_key(uuid));
    leave_out_crowded(monitor, &mut new).await?;
    for _ in 0..MAX_RACES {
        if new.is_empty() {
            return Ok(registered);
        }
        let definitions: Arc<[Sighting]> = new.values().cloned().collect();
        let (all_new, gone) =
            db::transaction(&monitor.pool, "register windows", move |connection| {
                let definitions = Arc::clone(&definitions);
                Box::pin(async move {
                    let (kept, gone) = without_gone(connection, &definitions, now).await?;
                    Ok((repository::insert_windows(connection, &kept, now).await?, gone))
                })
            })
            .await?;
        new.retain(|uuid, _| !gone.contains(uuid));
        registered.gone.extend(gone);
        if all_new {
            registered.new.extend(new.keys().copied());
        }
        // Ours, or those of another request that was faster; the rest is tried again.
        let uuids: Vec<Uuid> = new.keys().copied().collect();
        let found = read_and_correct(monitor, &uuids, sighted).await?;
        new.retain(|uuid, _| !found.contains_key(uuid));
        registered.known.extend(found);
    }
    Err(db::Error::contended("windows"))
}

/// Windows that may be made known, and which not, because they may have been and were deleted since.
/// Until the transaction ends, no more of them are.
async fn without_gone(
    connection: &mut db::Connection,
    definitions: &[Sighting],
    now: Timestamp,
) -> Result<(Vec<Sighting>, BTreeSet<Uuid>), db::Error> {
    let ends_at = |sighting: &Sighting| sighting.window.ends_at();
    if !definitions.iter().any(|sighting| may_be_pruned(ends_at(sighting), now)) {
        return Ok((definitions.to_vec(), BTreeSet::new()));
    }
    let until = repository::hold_gone_until(connection).await?;
    let (gone, kept): (Vec<_>, Vec<_>) =
        definitions.iter().cloned().partition(|sighting| ends_at(sighting) <= until);
    Ok((kept, gone.iter().map(|sighting| sighting.window.uuid).collect()))
}

/// Reads windows, and stores what messages say of those that are open, where it is news. Answers
/// them as they are then.
async fn read_and_correct(
    monitor: &Monitor,
    uuids: &[Uuid],
    sighted: &BTreeMap<Uuid, Sighting>,
) -> Result<HashMap<Uuid, Arc<StoredWindow>>, db::Error> {
    let reading = async {
        let mut connection = monitor.connection().await?;
        repository::windows_by_uuid(&mut connection, uuids).await
    };
    let mut found = db::patiently(reading).await?;
    let mut corrections = BTreeMap::new();
    for stored in found.values_mut() {
        let Some(sighting) = sighted.get(&stored.window.uuid) else { continue };
        if sighting.window.service == stored.window.service && sighting.corrects(stored) {
            corrections.insert(stored.id, (sighting.via_stream, sighting.clock_offset_us));
            sighting.correct(stored);
        }
    }
    if !corrections.is_empty() {
        let corrections = Arc::new(corrections);
        db::transaction(&monitor.pool, "correct windows", move |connection| {
            let corrections = Arc::clone(&corrections);
            Box::pin(async move { repository::correct_windows(connection, &corrections).await })
        })
        .await?;
    }
    Ok(found.into_iter().map(|(uuid, window)| (uuid, Arc::new(window))).collect())
}

/// Leaves out new windows of services that have too many open ones already.
async fn leave_out_crowded(
    monitor: &Monitor,
    new: &mut BTreeMap<Uuid, Sighting>,
) -> Result<(), db::Error> {
    let mut room: HashMap<ServiceName, u64> = HashMap::new();
    for service in new.values().map(|sighting| &sighting.window.service).collect::<BTreeSet<_>>() {
        let open = db::patiently(repository::open_windows(&monitor.pool, service)).await?;
        room.insert(service.clone(), MAX_OPEN_WINDOWS.saturating_sub(open));
    }
    new.retain(|_, sighting| match room.get_mut(&sighting.window.service) {
        Some(left) if *left > 0 => {
            *left -= 1;
            true
        }
        _ => false,
    });
    Ok(())
}
