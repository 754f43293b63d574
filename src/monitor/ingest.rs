//! Taking heartbeats in: any batch, in any order, any number of times, gives the same ledger.
//!
//! What arrives while the database is busy is written in one transaction, its rows sorted by primary
//! key so that two transactions never wait for each other in a circle. What each heartbeat meant is
//! read back only when the number of affected rows says that some were there before.
//!
//! What belongs to a window whose events are no longer kept is refused. Only windows that ended long
//! ago are asked for that.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::Monitor;
use super::batcher::{Batcher, Limits};
use super::register::{MAX_OPEN_WINDOWS, Registered, Sighting, register};
use super::repository::{self, EventRow, Stored};
use super::retention::{events_gone, may_be_pruned, window_gone};
use super::window::{StoredWindow, WindowStatus};
use crate::wire::{Announcement, Heartbeat, Slot, Timestamp, Window};
use crate::{db, metrics};

/// How far a sender's clock may be ahead of the monitor's.
pub const MAX_CLOCK_AHEAD: Duration = Duration::from_hours(24);

/// Heartbeats of one transaction, and those that may wait for one. Two transactions at a time: while
/// one waits for the disk, the other is prepared.
const LIMITS: Limits = Limits { leaders: 2, group: 2_048, waiting: 50_000 };

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
    let known = register(monitor, welcome.map(Sighting::from).collect(), now).await?;
    let outcomes = announcements.iter().map(|Announcement { window, .. }| {
        let stored = check_window(window, now).and_then(|()| owned(&known, window));
        match stored {
            Err(reason) => Outcome::Rejected(reason),
            Ok(_) if known.new.contains(&window.uuid) => Outcome::Recorded,
            Ok(_) => Outcome::Duplicate,
        }
    });
    Ok(outcomes.collect())
}

/// A heartbeat, and when it arrived here.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// What arrived.
    pub heartbeat: Arc<Heartbeat>,
    /// The monitor's clock.
    pub at: Timestamp,
}

/// Heartbeats that wait for the next transaction.
#[derive(Debug)]
pub struct Arrivals(Batcher<Arrival, Outcome>);

impl Default for Arrivals {
    fn default() -> Self {
        Self(Batcher::new(LIMITS))
    }
}

/// Takes heartbeats in, together with those of others who come at the same time. Answers one
/// outcome each, in order, after all are committed.
///
/// # Errors
/// When the database does not do its part; some may be committed, and all may be sent again.
pub async fn ingest(
    monitor: &Monitor,
    heartbeats: Vec<Heartbeat>,
    now: Timestamp,
) -> Result<Vec<Outcome>, db::Error> {
    let arrival = |heartbeat| Arrival { heartbeat: Arc::new(heartbeat), at: now };
    let arrivals = heartbeats.into_iter().map(arrival).collect();
    let worker = monitor.clone();
    let work = Arc::new(move |arrivals: Arc<[Arrival]>| {
        let monitor = worker.clone();
        let carried_out: BoxFuture<'static, _> = Box::pin(async move {
            let taken = take(&monitor, &arrivals).await;
            if taken.as_ref().is_err_and(|error| error.class != db::Class::Data) {
                monitor.window_cache.forget();
            }
            taken
        });
        carried_out
    });
    metrics::timed(&monitor.metrics.ingest, monitor.arrivals.0.call(arrivals, work)).await
}

async fn take(monitor: &Monitor, arrivals: &[Arrival]) -> Result<Vec<Outcome>, db::Error> {
    let welcome = arrivals.iter().filter(|arrival| check(arrival).is_ok());
    let sightings = welcome.clone().map(|arrival| Sighting::from(&*arrival.heartbeat));
    let Some(now) = arrivals.iter().map(|arrival| arrival.at).max() else { return Ok(Vec::new()) };
    let known = register(monitor, sightings.collect(), now).await?;
    let (batch, places) = Batch::sort(arrivals, &known, now);
    let written = store(monitor, batch, now).await?;
    let outcomes = outcomes(places, &written);
    monitor.metrics.took(arrivals, &outcomes);
    for (id, status) in written.settled {
        let window = known.known.values().find(|stored| stored.id == id);
        let service = window.map_or(metrics::OTHER, |stored| stored.window.service.as_str());
        monitor.metrics.settled(service, status);
    }
    Ok(outcomes)
}

/// Where one heartbeat of a batch went.
#[derive(Clone, Debug)]
enum Place {
    /// To the row of this window and slot; as its first copy in this batch, or a further one.
    Scheduled((i64, u32), bool),
    /// Beside the slots of this window.
    Unscheduled(i64),
    Nowhere(String),
}

/// The rows of a batch, each identity once, in the order of the primary key.
#[derive(Clone, Debug, Default)]
struct Batch {
    scheduled: BTreeMap<(i64, u32), EventRow>,
    unscheduled: BTreeMap<(i64, i64), EventRow>,
    /// Windows so old that their events may be deleted meanwhile, and what is said then.
    old: BTreeMap<i64, String>,
}

impl Batch {
    fn sort(arrivals: &[Arrival], known: &Registered, now: Timestamp) -> (Self, Vec<Place>) {
        let mut batch = Self::default();
        let places = arrivals.iter().map(|arrival| batch.add(arrival, known, now)).collect();
        (batch, places)
    }

    fn add(&mut self, arrival: &Arrival, known: &Registered, now: Timestamp) -> Place {
        let heartbeat = &arrival.heartbeat;
        let stored = check(arrival).and_then(|()| owned(known, &heartbeat.window));
        let stored = match stored {
            Ok(stored) => stored,
            Err(reason) => return Place::Nowhere(reason),
        };
        if !stored.events_kept {
            return Place::Nowhere(events_gone(stored));
        }
        if may_be_pruned(stored.window.ends_at(), now) {
            self.old.entry(stored.id).or_insert_with(|| events_gone(stored));
        }
        match heartbeat.slot_in(&stored.window) {
            Slot::Scheduled(slot) => {
                let key = (stored.id, slot);
                let first = EventRow::add(&mut self.scheduled, key, arrival);
                Place::Scheduled(key, first)
            }
            Slot::Unscheduled(number) => {
                EventRow::add(&mut self.unscheduled, (stored.id, number), arrival);
                Place::Unscheduled(stored.id)
            }
        }
    }

    /// Those of its old windows whose events are no longer kept. Of the others, that stays so until
    /// the transaction ends.
    async fn gone(
        &self,
        connection: &mut db::Connection,
    ) -> Result<BTreeMap<i64, String>, db::Error> {
        let mut gone = self.old.clone();
        if !gone.is_empty() {
            let kept = repository::hold_kept(connection, &gone.keys().copied().collect()).await?;
            gone.retain(|id, _| !kept.contains(id));
        }
        Ok(gone)
    }

    /// The batch without the rows of some windows.
    fn without<'b>(&'b self, gone: &BTreeMap<i64, String>) -> Cow<'b, Self> {
        let mut batch = Cow::Borrowed(self);
        if !gone.is_empty() {
            let rest = batch.to_mut();
            rest.scheduled.retain(|(id, _), _| !gone.contains_key(id));
            rest.unscheduled.retain(|(id, _), _| !gone.contains_key(id));
        }
        batch
    }
}

fn check(Arrival { heartbeat, at }: &Arrival) -> Result<(), String> {
    check_window(&heartbeat.window, *at)?;
    check_ahead("timestamp", heartbeat.timestamp, *at)
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
fn owned<'k>(known: &'k Registered, window: &Window) -> Result<&'k StoredWindow, String> {
    match known.known.get(&window.uuid) {
        Some(stored) if stored.window.service == window.service => Ok(stored),
        Some(_) => Err(format!("window {} belongs to another service", window.uuid)),
        None if known.gone.contains(&window.uuid) => Err(window_gone(window)),
        None => Err(format!(
            "window {} is new, and its service has {MAX_OPEN_WINDOWS} open ones already",
            window.uuid
        )),
    }
}

/// What a transaction found, and what it has settled.
#[derive(Debug, Default)]
struct Written {
    /// What was there before, for rows that were not new.
    before: HashMap<(i64, u32), Stored>,
    /// Windows whose events are no longer kept, so that nothing of them was written.
    gone: BTreeMap<i64, String>,
    /// Windows that were unobserved, and what they are now.
    settled: Vec<(i64, WindowStatus)>,
}

/// Writes a batch in one transaction. Nearly always all of it is new, which is tried first because
/// it costs the database less.
async fn store(monitor: &Monitor, batch: Batch, now: Timestamp) -> Result<Written, db::Error> {
    if batch.scheduled.is_empty() && batch.unscheduled.is_empty() {
        return Ok(Written::default());
    }
    let batch = Arc::new(batch);
    match store_new(monitor, Arc::clone(&batch)).await {
        Err(error) if error.is_taken() => store_any(monitor, batch, now).await,
        stored => stored,
    }
}

/// Writes a batch of which nothing is there yet, or nothing.
async fn store_new(monitor: &Monitor, batch: Arc<Batch>) -> Result<Written, db::Error> {
    db::transaction(&monitor.pool, "store new heartbeats", move |connection| {
        let batch = Arc::clone(&batch);
        Box::pin(async move {
            let gone = batch.gone(connection).await?;
            let batch = batch.without(&gone);
            repository::insert_unscheduled(connection, &batch.unscheduled).await?;
            repository::insert_new_events(connection, &batch.scheduled).await?;
            Ok(Written { gone, ..Written::default() })
        })
    })
    .await
}

/// Writes a batch, whatever is there.
async fn store_any(
    monitor: &Monitor,
    batch: Arc<Batch>,
    now: Timestamp,
) -> Result<Written, db::Error> {
    db::transaction(&monitor.pool, "store heartbeats", move |connection| {
        let batch = Arc::clone(&batch);
        Box::pin(async move {
            let gone = batch.gone(connection).await?;
            let batch = batch.without(&gone);
            repository::insert_unscheduled(connection, &batch.unscheduled).await?;
            let affected = repository::insert_events(connection, &batch.scheduled).await?;
            if affected == batch.scheduled.len() as u64 {
                return Ok(Written { gone, ..Written::default() });
            }
            let before = repository::read_back(connection, &batch.scheduled).await?;
            let revised: BTreeSet<i64> = before
                .iter()
                .filter(|(_, stored)| **stored == Stored::Late)
                .map(|((window_id, _), _)| *window_id)
                .collect();
            let revised = Vec::from_iter(revised);
            let settled = repository::revise_closed(connection, &revised, now).await?;
            Ok(Written { before, gone, settled })
        })
    })
    .await
}

fn outcomes(places: Vec<Place>, written: &Written) -> Vec<Outcome> {
    let stored = |place| match place {
        Place::Nowhere(reason) => Outcome::Rejected(reason),
        Place::Unscheduled(_) => Outcome::Unscheduled,
        Place::Scheduled(_, false) => Outcome::Duplicate,
        Place::Scheduled(key, true) => match written.before.get(&key) {
            None | Some(Stored::New) => Outcome::Recorded,
            Some(Stored::Late) => Outcome::Late,
            Some(Stored::Before) => Outcome::Duplicate,
        },
    };
    let outcome = |place| {
        let gone = match &place {
            Place::Scheduled((id, _), _) | Place::Unscheduled(id) => written.gone.get(id),
            Place::Nowhere(_) => None,
        };
        gone.cloned().map_or_else(|| stored(place), Outcome::Rejected)
    };
    places.into_iter().map(outcome).collect()
}
