//! Takes over the ledger of the first system's monitor, which keeps its own tables in a database of its
//! own. That one is only read.
//!
//! A window that is over there is closed here, by our own slots. One that is open there is open here,
//! with the heartbeats that had arrived, and waits behind the watermark for the rest, so that no window
//! becomes an alert because monitors changed.
//!
//! Pages of windows are read in the order of their rows, and each is written in one transaction. What
//! is here already stays as it is, so that a run which broke off goes on when it is begun again.

mod summary;
mod translate;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use uuid::Uuid;

pub use self::summary::Summary;
use self::translate::{Placed, Told, heartbeat};
use super::DATABASE;
use super::ingest::Arrival;
use super::repository::{self, EventRow, FirstEvent, FirstTables, FirstWindow, MissingSlot};
use super::window::{StoredWindow, WindowStatus, missing_slots};
use crate::config::{DatabaseArgs, DatabaseUrl};
use crate::db;
use crate::wire::{Tick, Timestamp};

/// What a person sets to name the first system's database.
pub const OPTION: &str = "--adopt-from";
const FIRST_DATABASE: &str = "database of the first system's monitor";

/// Windows of one page at the most, and slots, unless one window alone has more.
const WINDOWS_PER_PAGE: u32 = 200;
const SLOTS_PER_PAGE: u32 = 20_000;
/// After how many pages the log says how far it is.
const PAGES_PER_WORD: u64 = 50;
/// How often a page is tried that others write too, or that the database cannot take now.
const MAX_ATTEMPTS: u32 = 20;
/// Pause before it is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(200);

/// The first system's ledger.
#[derive(Debug)]
pub struct FirstLedger {
    reader: db::Reader,
    tables: Arc<FirstTables>,
}

impl FirstLedger {
    /// Opens the ledger at an address, for a monitor database beside it. Changes nothing.
    ///
    /// # Errors
    /// A sentence for a person: it cannot be reached, is none, or both are the same database.
    pub async fn open(
        url: &DatabaseUrl,
        ours: &db::Pool,
        patience: Duration,
    ) -> anyhow::Result<Self> {
        let knocked = db::connect(url, (FIRST_DATABASE, OPTION), patience).await?;
        db::close(&knocked).await;
        let reader = db::Reader::new(url, db::LONG_PATIENCE);
        let asked = reader.read(|connection| Box::pin(repository::first_tables(connection))).await;
        let tables = asked.with_context(|| format!("looking at the {FIRST_DATABASE}"))?;
        if !tables.views.is_empty() {
            bail!(
                "the database at {url} is a monitor database of ours, where {} is a view: name the \
                 database of the first system's monitor in {OPTION}",
                tables.views.join(" and ")
            );
        }
        let lacking = tables.lacking();
        if !lacking.is_empty() {
            bail!(
                "the database at {url} is not that of a first system's monitor, because it has no \
                 {}, or its user may not read that: name the right one in {OPTION}",
                lacking.join(", ")
            );
        }
        let mut connection = ours.acquire().await.map_err(db::Error::from)?;
        let beside = repository::first_tables(&mut connection).await?;
        if !beside.tables.is_empty() {
            bail!(
                "the database of {} holds the first system's table {}: make a new, empty database, \
                 name it in {}, and the old one in {OPTION}; nothing was changed",
                DatabaseArgs::OPTION,
                beside.tables.join(" and "),
                DatabaseArgs::OPTION
            );
        }
        Ok(Self { reader, tables: Arc::new(tables) })
    }

    async fn windows(&self, after: i64) -> anyhow::Result<Vec<FirstWindow>> {
        let read = self.reader.read(|connection| {
            let tables = Arc::clone(&self.tables);
            Box::pin(async move {
                repository::first_windows(connection, &tables, after, WINDOWS_PER_PAGE).await
            })
        });
        read.await.with_context(|| format!("reading windows of the {FIRST_DATABASE}"))
    }

    /// The events of windows, by the window's row.
    async fn events(&self, rows: Vec<i64>) -> anyhow::Result<HashMap<i64, Vec<FirstEvent>>> {
        let rows = Arc::new(rows);
        let read = self.reader.read(|connection| {
            let (tables, rows) = (Arc::clone(&self.tables), Arc::clone(&rows));
            Box::pin(async move { repository::first_events(connection, &tables, &rows).await })
        });
        let read = read.await.with_context(|| format!("reading events of the {FIRST_DATABASE}"))?;
        let mut events: HashMap<i64, Vec<FirstEvent>> = HashMap::new();
        for event in read {
            events.entry(event.window_id).or_default().push(event);
        }
        Ok(events)
    }
}

/// Takes over a ledger, whose windows have a slot each `tick`.
///
/// # Errors
/// When one of the databases does not do its part; what was taken over stays, and the next run goes on.
pub async fn take_over(
    first: &FirstLedger,
    pool: &db::Pool,
    tick: Tick,
    now: Timestamp,
) -> anyhow::Result<Summary> {
    let mut summary = Summary::default();
    let (mut after, mut pages) = (i64::MIN, 0_u64);
    loop {
        let rows = first.windows(after).await?;
        let (windows, last) = page(&rows, (tick, now), &mut summary);
        let Some(last) = last else { break };
        refuse_another_tick(&windows, tick)?;
        take_over_page(first, pool, windows, &mut summary).await?;
        after = last;
        pages += 1;
        if pages % PAGES_PER_WORD == 0 {
            tracing::info!(row = last, "windows up to this row have been looked at");
        }
    }
    first.reader.close().await;
    Ok(summary)
}

/// Refuses a tick that most windows of a page contradict: their heartbeats would share slots.
fn refuse_another_tick(windows: &[Told], tick: Tick) -> anyhow::Result<()> {
    let mut others = windows.iter().filter(|told| told.has_another_tick());
    let count = others.clone().count();
    if count * 2 <= windows.len() {
        return Ok(());
    }
    let Some(told) = others.next() else { return Ok(()) };
    let expected = told.expected.unwrap_or(0);
    let length = told.window.from().until(told.window.to()).as_secs_f64();
    bail!(
        "most windows have another tick than {} s: window {} of {length} s expects {expected} heartbeats \
         there, and would have {} slots; give their tick as --heartbeat-interval-seconds; these were \
         not taken over",
        tick.seconds(),
        told.window.uuid,
        told.window.slots(),
    )
}

/// The windows of a page, and its last row.
fn page(
    rows: &[FirstWindow],
    (tick, now): (Tick, Timestamp),
    summary: &mut Summary,
) -> (Vec<Told>, Option<i64>) {
    let (mut windows, mut uuids) = (Vec::<Told>::new(), BTreeSet::new());
    let (mut last, mut slots) = (None, 0_u32);
    for row in rows {
        match Told::read(row, tick, now) {
            Ok(told) if uuids.contains(&told.window.uuid) => {
                skip_window(summary, row.id, "another row has the same window_uuid");
            }
            Ok(told) => {
                slots = slots.saturating_add(told.window.slots());
                if slots > SLOTS_PER_PAGE && !windows.is_empty() {
                    break;
                }
                uuids.insert(told.window.uuid);
                windows.push(told);
            }
            Err(why) => skip_window(summary, row.id, &why),
        }
        last = Some(row.id);
    }
    (windows, last)
}

fn skip_window(summary: &mut Summary, row: i64, why: &str) {
    summary.skip("monitoring_windows", row, why);
}

/// A window, and what had arrived of it.
#[derive(Debug)]
struct Item {
    told: Told,
    arrivals: Vec<Arrival>,
}

async fn take_over_page(
    first: &FirstLedger,
    pool: &db::Pool,
    windows: Vec<Told>,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    let writing = || format!("writing to the {DATABASE}");
    let uuids: Vec<Uuid> = windows.iter().map(|told| told.window.uuid).collect();
    let mut connection = pool.acquire().await.map_err(db::Error::from).with_context(writing)?;
    let known = repository::windows_by_uuid(&mut connection, &uuids).await.with_context(writing)?;
    drop(connection);
    let mut wanted = windows;
    wanted.retain(|told| match known.get(&told.window.uuid) {
        Some(here) if here.window.service != told.window.service => {
            let service = &here.window.service;
            let why = format!("its window is known here, as one of service {service}");
            skip_window(summary, told.row, &why);
            false
        }
        Some(here) if here.status != WindowStatus::Open => {
            summary.already_here += 1;
            false
        }
        _ => true,
    });
    let mut events = first.events(wanted.iter().map(|told| told.row).collect()).await?;
    let items = wanted.into_iter().filter_map(|told| {
        let events = events.remove(&told.row).unwrap_or_default();
        item(told, &events, summary)
    });
    let items: Arc<[Item]> = items.collect();
    if !items.is_empty() {
        summary.add(&store(pool, &items).await.with_context(writing)?);
    }
    Ok(())
}

/// A window with its heartbeats; none if some are not there any more, so that nobody knows its slots.
fn item(told: Told, events: &[FirstEvent], summary: &mut Summary) -> Option<Item> {
    let kept = events.iter().filter(|event| !event.is_missing()).count() as u64;
    if kept < told.received && told.status != WindowStatus::Open {
        let received = told.received;
        let why =
            format!("{received} heartbeats are counted for it, and heartbeat_events has {kept}");
        skip_window(summary, told.row, &why);
        return None;
    }
    let mut arrivals = Vec::with_capacity(events.len());
    for event in events {
        match heartbeat(event, &told.window) {
            Ok(arrival) => arrivals.extend(arrival),
            Err(why) => summary.skip("heartbeat_events", event.id, &why),
        }
    }
    Some(Item { told, arrivals })
}

/// Writes a page, and tries again what others have made known meanwhile: to do it twice is harmless.
async fn store(pool: &db::Pool, items: &Arc<[Item]>) -> Result<Summary, db::Error> {
    let mut attempt = 1;
    loop {
        let page = Arc::clone(items);
        let stored = db::long_transaction(pool, "take over windows", move |connection| {
            let page = Arc::clone(&page);
            Box::pin(async move { write(connection, &page).await })
        });
        match stored.await {
            Err(error)
                if attempt < MAX_ATTEMPTS
                    && (error.is_taken() || error.class == db::Class::Unavailable) =>
            {
                tracing::debug!(attempt, %error, "trying again");
                tokio::time::sleep(TRY_AGAIN).await;
                attempt += 1;
            }
            ended => return ended,
        }
    }
}

/// Rows to write, in the order of the primary key.
#[derive(Debug, Default)]
struct Rows {
    scheduled: BTreeMap<(i64, u32), EventRow>,
    unscheduled: BTreeMap<(i64, i64), EventRow>,
    missing: Vec<MissingSlot>,
}

impl Rows {
    fn add(&mut self, window_id: i64, placed: Placed) {
        let Placed { scheduled, unscheduled } = placed;
        self.scheduled.extend(scheduled.into_iter().map(|(slot, row)| ((window_id, slot), row)));
        self.unscheduled
            .extend(unscheduled.into_iter().map(|(slot, row)| ((window_id, slot), row)));
    }
}

async fn write(connection: &mut db::Connection, page: &[Item]) -> Result<Summary, db::Error> {
    let gone_until = repository::hold_gone_until(connection).await?;
    let uuids: Vec<Uuid> = page.iter().map(|item| item.told.window.uuid).collect();
    let known = repository::windows_by_uuid(connection, &uuids).await?;
    let (mut done, mut rows) = (Summary::default(), Rows::default());
    let (mut here, mut new) = (Vec::new(), Vec::new());
    for item in page {
        match known.get(&item.told.window.uuid) {
            Some(stored) => here.push((item, stored)),
            None if item.told.window.ends_at() <= gone_until => done.gone += 1,
            None => new.push(item),
        }
    }
    let open = complete(connection, &here, &mut rows).await?;
    let unscheduled_before = repository::unscheduled(connection, &open).await?;
    done.already_here = here.len() as u64;
    let mut written = open;
    written.extend(insert_new(connection, &new, &mut rows, &mut done).await?);
    repository::insert_lacking_events(connection, &rows.scheduled).await?;
    repository::insert_lacking_unscheduled(connection, &rows.unscheduled).await?;
    rows.missing.sort_unstable_by_key(|missing| (missing.window_id, missing.slot));
    repository::insert_missing(connection, &rows.missing).await?;
    let sum = |counts: HashMap<i64, u32>| counts.into_values().map(u64::from).sum::<u64>();
    let unscheduled = sum(repository::unscheduled(connection, &written).await?);
    done.heartbeats = rows.scheduled.len() as u64;
    done.unscheduled = unscheduled.saturating_sub(sum(unscheduled_before));
    Ok(done)
}

/// Finds what windows that are known here and open lack, in the slots that their first definition here
/// gives them. Answers these windows, which nobody closes meanwhile.
async fn complete(
    connection: &mut db::Connection,
    here: &[(&Item, &StoredWindow)],
    rows: &mut Rows,
) -> Result<Vec<i64>, db::Error> {
    let mut ids: Vec<i64> = here.iter().map(|(_, stored)| stored.id).collect();
    ids.sort_unstable();
    let open = repository::hold_open(connection, &ids).await?;
    let open: Vec<i64> = open.into_iter().collect();
    let arrived = repository::arrived(connection, &open).await?;
    for (item, stored) in here {
        let is_same = stored.window.service == item.told.window.service;
        if !is_same || open.binary_search(&stored.id).is_err() {
            continue;
        }
        let mut placed = Placed::in_slots(&stored.window, &item.arrivals);
        if let Some(arrived) = arrived.get(&stored.id) {
            placed.scheduled.retain(|slot, _| !arrived.slots.contains(slot));
        }
        rows.add(stored.id, placed);
    }
    Ok(open)
}

/// Makes windows known, each as it stood there. Answers their rows.
async fn insert_new(
    connection: &mut db::Connection,
    new: &[&Item],
    rows: &mut Rows,
    done: &mut Summary,
) -> Result<Vec<i64>, db::Error> {
    let mut past = Vec::with_capacity(new.len());
    let mut all_placed = HashMap::with_capacity(new.len());
    for Item { told, arrivals } in new {
        let placed = Placed::in_slots(&told.window, arrivals);
        past.push(told.past(&placed));
        all_placed.insert(told.window.uuid, (told.status, placed));
    }
    let ids = repository::insert_past_windows(connection, &past).await?;
    for past in &past {
        let uuid = past.window.uuid;
        let (Some(&window_id), Some((there, placed))) = (ids.get(&uuid), all_placed.remove(&uuid))
        else {
            continue;
        };
        if let Some(end) = past.end {
            let missing = missing_slots(&past.window, &placed.slots()).into_iter();
            rows.missing.extend(missing.map(|slot| MissingSlot {
                window_id,
                slot,
                due: past.window.due(slot),
                found_at: end.closed_at,
                cause: None,
            }));
        }
        let here = past.end.map_or(WindowStatus::Open, |end| end.counts.verdict());
        done.count(there, here);
        rows.add(window_id, placed);
    }
    if past.iter().any(|past| past.end.is_none()) {
        repository::await_report(connection).await?;
    }
    Ok(ids.into_values().collect())
}
