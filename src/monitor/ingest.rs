//! Taking heartbeats in: any batch, in any order, any number of times, gives the same ledger.
//!
//! A batch is written in one transaction, its rows sorted by primary key so that two batches never
//! wait for each other in a circle. What each heartbeat meant is read back only when the number of
//! affected rows says that some were there before.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::Monitor;
use super::repository::{self, EventRow, Stored};
use super::window::{StoredWindow, WindowStatus};
use crate::db;
use crate::wire::{Announcement, Heartbeat, ServiceName, Slot, StreamId, Timestamp, Window};

/// How far a sender's clock may be ahead of the monitor's.
pub const MAX_CLOCK_AHEAD: Duration = Duration::from_hours(24);

/// Most windows of one service that may be open at a time.
pub const MAX_OPEN_WINDOWS: u64 = 10_000;

/// How often other requests may be faster in making the same windows known.
const MAX_RACES: u32 = 20;

/// By how much a smaller offset of a sender's clock is worth storing, in microseconds.
const OFFSET_STEP_US: i64 = 50_000;

/// What became of a heartbeat or an announcement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is the first for its slot.
    Recorded,
    /// Its slot had arrived before.
    Duplicate,
    /// Its slot had been found missing; now it has arrived, late.
    Late,
    /// It lies outside of its window's slots.
    Unscheduled,
    /// It cannot be taken, for this reason; sending it again will not help.
    Rejected(String),
}

impl Outcome {
    /// The outcome as the API names it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Recorded => "recorded",
            Self::Duplicate => "duplicate",
            Self::Late => "late",
            Self::Unscheduled => "unscheduled",
            Self::Rejected(_) => "rejected",
        }
    }
}

/// Announces windows. Answers one outcome each, in order.
///
/// # Errors
/// When the database does not do its part; announcing again is harmless.
pub async fn announce(
    monitor: &Monitor,
    announcements: Vec<Announcement>,
    now: Timestamp,
) -> Result<Vec<Outcome>, db::Error> {
    let welcome = announcements.iter().filter(|told| check_window(&told.window, now).is_ok());
    let (known, new) = register(monitor, welcome.map(Sighting::from).collect(), now).await?;
    let outcomes = announcements.iter().map(|Announcement { window, .. }| {
        let stored = check_window(window, now).and_then(|()| owned(&known, window));
        match stored {
            Err(reason) => Outcome::Rejected(reason),
            Ok(_) if new.contains(&window.uuid) => Outcome::Recorded,
            Ok(_) => Outcome::Duplicate,
        }
    });
    Ok(outcomes.collect())
}

/// Takes heartbeats in. Answers one outcome each, in order, after all are committed.
///
/// # Errors
/// When the database does not do its part; some may be committed, and all may be sent again.
pub async fn ingest(
    monitor: &Monitor,
    heartbeats: Vec<Heartbeat>,
    now: Timestamp,
) -> Result<Vec<Outcome>, db::Error> {
    let welcome = heartbeats.iter().filter(|heartbeat| check(heartbeat, now).is_ok());
    let (known, _) = register(monitor, welcome.map(Sighting::from).collect(), now).await?;
    let (batch, places) = Batch::sort(heartbeats, &known, now);
    let stored = store(monitor, batch, now).await?;
    Ok(outcomes(places, &stored))
}

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
        // A clock that is further off than a day says nothing about when anything is due.
        let longest = i64::try_from(MAX_CLOCK_AHEAD.as_micros()).unwrap_or(i64::MAX);
        let clock_offset_us = offset_us.filter(|offset| *offset <= longest);
        Self { window: window.clone(), via_stream: stream_id.is_some(), clock_offset_us }
    }

    /// Takes what another message says of the same window.
    fn merge(&mut self, other: &Self) {
        self.via_stream |= other.via_stream;
        self.clock_offset_us = match (self.clock_offset_us, other.clock_offset_us) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
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

/// Where one heartbeat of a batch went.
#[derive(Clone, Debug)]
enum Place {
    /// To the row of this window and slot; as its first copy in this batch, or a further one.
    Scheduled((i64, u32), bool),
    Unscheduled,
    Nowhere(String),
}

/// The rows of a batch, each identity once, in the order of the primary key.
#[derive(Clone, Debug, Default)]
struct Batch {
    scheduled: BTreeMap<(i64, u32), EventRow>,
    unscheduled: BTreeMap<(i64, i64), EventRow>,
}

impl Batch {
    fn sort(
        heartbeats: Vec<Heartbeat>,
        known: &HashMap<Uuid, StoredWindow>,
        now: Timestamp,
    ) -> (Self, Vec<Place>) {
        let mut batch = Self::default();
        let places = heartbeats.into_iter().map(|heartbeat| batch.add(heartbeat, known, now));
        let places = places.collect();
        (batch, places)
    }

    fn add(
        &mut self,
        heartbeat: Heartbeat,
        known: &HashMap<Uuid, StoredWindow>,
        now: Timestamp,
    ) -> Place {
        let stored = check(&heartbeat, now).and_then(|()| owned(known, &heartbeat.window));
        let stored = match stored {
            Ok(stored) => stored,
            Err(reason) => return Place::Nowhere(reason),
        };
        match heartbeat.slot_in(&stored.window) {
            Slot::Scheduled(slot) => {
                let key = (stored.id, slot);
                let first = EventRow::add(&mut self.scheduled, key, heartbeat);
                Place::Scheduled(key, first)
            }
            Slot::Unscheduled(number) => {
                EventRow::add(&mut self.unscheduled, (stored.id, number), heartbeat);
                Place::Unscheduled
            }
        }
    }
}

fn check(heartbeat: &Heartbeat, now: Timestamp) -> Result<(), String> {
    check_window(&heartbeat.window, now)?;
    check_ahead("timestamp", heartbeat.timestamp, now)
}

fn check_window(window: &Window, now: Timestamp) -> Result<(), String> {
    check_ahead("window_from", window.from(), now)
}

fn check_ahead(name: &str, at: Timestamp, now: Timestamp) -> Result<(), String> {
    if at <= now.plus(MAX_CLOCK_AHEAD) {
        return Ok(());
    }
    Err(format!(
        "{name} {at} is more than {} h ahead of the monitor's clock: check the sender's clock",
        MAX_CLOCK_AHEAD.as_secs() / 3_600
    ))
}

/// The window as it is stored, if it belongs to the same service.
fn owned<'k>(
    known: &'k HashMap<Uuid, StoredWindow>,
    window: &Window,
) -> Result<&'k StoredWindow, String> {
    match known.get(&window.uuid) {
        Some(stored) if stored.window.service == window.service => Ok(stored),
        Some(_) => Err(format!("window {} belongs to another service", window.uuid)),
        None => Err(format!(
            "window {} is new, and its service has {MAX_OPEN_WINDOWS} open ones already",
            window.uuid
        )),
    }
}

/// Makes sure that windows are known; a window's first definition stands. Answers all of them, and
/// which were new.
async fn register(
    monitor: &Monitor,
    sightings: Vec<Sighting>,
    now: Timestamp,
) -> Result<(HashMap<Uuid, StoredWindow>, BTreeSet<Uuid>), db::Error> {
    let mut sighted: BTreeMap<Uuid, Sighting> = BTreeMap::new();
    for sighting in sightings {
        match sighted.entry(sighting.window.uuid) {
            Entry::Vacant(vacant) => drop(vacant.insert(sighting)),
            Entry::Occupied(mut first) => first.get_mut().merge(&sighting),
        }
    }
    let uuids: Vec<Uuid> = sighted.keys().copied().collect();
    let mut known = repository::windows_by_uuid(&monitor.pool, &uuids).await?;
    correct(monitor, &known, &sighted).await?;
    let mut new = sighted.clone();
    new.retain(|uuid, _| !known.contains_key(uuid));
    leave_out_crowded(monitor, &mut new).await?;
    let mut inserted = BTreeSet::new();
    for _ in 0..MAX_RACES {
        if new.is_empty() {
            return Ok((known, inserted));
        }
        let definitions: Arc<[Sighting]> = new.values().cloned().collect();
        let all_new = db::transaction(&monitor.pool, "register windows", move |connection| {
            let definitions = Arc::clone(&definitions);
            Box::pin(async move { repository::insert_windows(connection, &definitions, now).await })
        })
        .await?;
        if all_new {
            inserted.extend(new.keys().copied());
        }
        // Ours, or those of another request that was faster; the rest is tried again.
        let uuids: Vec<Uuid> = new.keys().copied().collect();
        let found = repository::windows_by_uuid(&monitor.pool, &uuids).await?;
        correct(monitor, &found, &sighted).await?;
        new.retain(|uuid, _| !found.contains_key(uuid));
        known.extend(found);
    }
    Err(db::Error::contended("windows"))
}

/// Stores what messages say of windows that are known and open, where it is news.
async fn correct(
    monitor: &Monitor,
    known: &HashMap<Uuid, StoredWindow>,
    sighted: &BTreeMap<Uuid, Sighting>,
) -> Result<(), db::Error> {
    let corrections = known.values().filter_map(|stored| {
        let sighting = sighted.get(&stored.window.uuid)?;
        let is_owner = sighting.window.service == stored.window.service;
        (is_owner && sighting.corrects(stored))
            .then_some((stored.id, (sighting.via_stream, sighting.clock_offset_us)))
    });
    let corrections: Arc<BTreeMap<_, _>> = Arc::new(corrections.collect());
    if corrections.is_empty() {
        return Ok(());
    }
    db::transaction(&monitor.pool, "correct windows", move |connection| {
        let corrections = Arc::clone(&corrections);
        Box::pin(async move { repository::correct_windows(connection, &corrections).await })
    })
    .await
}

/// Leaves out new windows of services that have too many open ones already.
async fn leave_out_crowded(
    monitor: &Monitor,
    new: &mut BTreeMap<Uuid, Sighting>,
) -> Result<(), db::Error> {
    let mut room: HashMap<ServiceName, u64> = HashMap::new();
    for service in new.values().map(|sighting| &sighting.window.service).collect::<BTreeSet<_>>() {
        let open = repository::open_windows(&monitor.pool, service).await?;
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

/// Writes a batch in one transaction. Answers what was there before, for rows that were not new.
async fn store(
    monitor: &Monitor,
    batch: Batch,
    now: Timestamp,
) -> Result<HashMap<(i64, u32), Stored>, db::Error> {
    if batch.scheduled.is_empty() && batch.unscheduled.is_empty() {
        return Ok(HashMap::new());
    }
    let batch = Arc::new(batch);
    db::transaction(&monitor.pool, "store heartbeats", move |connection| {
        let batch = Arc::clone(&batch);
        Box::pin(async move {
            repository::insert_unscheduled(connection, &batch.unscheduled, now).await?;
            let affected = repository::insert_events(connection, &batch.scheduled, now).await?;
            if affected == batch.scheduled.len() as u64 {
                return Ok(HashMap::new());
            }
            let stored = repository::read_back(connection, &batch.scheduled).await?;
            let revised: BTreeSet<i64> = stored
                .iter()
                .filter(|(_, stored)| **stored == Stored::Late)
                .map(|((window_id, _), _)| *window_id)
                .collect();
            for window_id in revised {
                repository::revise_closed(connection, window_id, now).await?;
            }
            Ok(stored)
        })
    })
    .await
}

fn outcomes(places: Vec<Place>, stored: &HashMap<(i64, u32), Stored>) -> Vec<Outcome> {
    let outcome = |place| match place {
        Place::Nowhere(reason) => Outcome::Rejected(reason),
        Place::Unscheduled => Outcome::Unscheduled,
        Place::Scheduled(_, false) => Outcome::Duplicate,
        Place::Scheduled(key, true) => match stored.get(&key) {
            None | Some(Stored::New) => Outcome::Recorded,
            Some(Stored::Late) => Outcome::Late,
            Some(Stored::Before) => Outcome::Duplicate,
        },
    };
    places.into_iter().map(outcome).collect()
}
