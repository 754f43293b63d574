//! Listing events, the newest first, without an index that each heartbeat would have to pay for.
//!
//! The order is that of windows, from the latest start to the earliest, and within a window from its
//! last slot to its first: so it is served by the windows' indexes and the key of events. Where
//! windows of several services overlap, their events do not interleave.
//!
//! A heartbeat may be stamped at another time than that of its window. Between two instants are those
//! events whose stamp is, of windows that reach into that span.
//!
//! What one request may look at is bounded, so that a page may hold fewer events than it could, or
//! none, where very many windows hold nothing that is asked for. There is more as long as it says
//! where the next begins. Windows whose events are gone are passed over, however many there are.

use utoipa::ToSchema;
use uuid::Uuid;

use super::Monitor;
use super::repository::{self, Candidate, Candidates, EventFilter, ListedEvent};
use super::window::WindowStatus;
use crate::db;
use crate::wire::{ServiceName, Timestamp};

/// Most windows that one page looks at, and most slots.
const MOST_WINDOWS: usize = 2_000;
const MOST_SLOTS: u32 = 10_000;
/// Windows that are read at first, and from then on.
const FIRST_WINDOWS: u32 = 64;
const MORE_WINDOWS: u32 = 512;
/// Most slots of windows that are asked for together, unless one window alone has more.
const SLOTS_AT_ONCE: u32 = 2_000;
/// Most windows that are asked for together.
const WINDOWS_AT_ONCE: usize = 256;
/// How long before its window starts a heartbeat may be stamped and still fall into a slot of it, in
/// microseconds: a tenth of the longest tick.
const MOST_EARLY_US: i64 = 360 * 1_000_000;

/// What events say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "lowercase")]
pub(super) enum EventStatus {
    /// A heartbeat arrived that reports no error.
    Ok,
    /// A heartbeat arrived that reports an error.
    Error,
    /// The slot's window was closed without a heartbeat.
    Missing,
}

impl EventStatus {
    /// The status as the database holds it.
    const fn as_sql(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Error => "ERROR",
            Self::Missing => "MISSING",
        }
    }
}

impl std::str::FromStr for EventStatus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Ok, Self::Error, Self::Missing]
            .into_iter()
            .find(|status| status.as_sql().eq_ignore_ascii_case(text))
            .ok_or_else(|| "must be ok, error or missing".to_owned())
    }
}

/// Which events to list.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    pub(super) service: Option<ServiceName>,
    pub(super) status: Option<EventStatus>,
    pub(super) window: Option<Uuid>,
    /// Events of this instant or later.
    pub(super) from: Option<Timestamp>,
    /// Events before this instant.
    pub(super) to: Option<Timestamp>,
    /// Events behind this place of the list.
    pub(super) after: Option<EventPosition>,
}

/// A place in the list: a window, by its start and its row, and the slot that was shown last. All of
/// the window has been looked at if that is slot 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EventPosition {
    pub(super) from: Timestamp,
    pub(super) id: i64,
    pub(super) slot: u32,
}

impl EventPosition {
    const fn behind(window: &Candidate) -> Self {
        Self { from: window.from, id: window.id, slot: 0 }
    }
}

/// A page of events, each with its window, and where the next page begins.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) events: Vec<(Candidate, ListedEvent)>,
    pub(super) next: Option<EventPosition>,
}

/// One page of at most so many events.
///
/// # Errors
/// When the database does not do its part.
pub(super) async fn page(
    monitor: &Monitor,
    wanted: &Wanted,
    limit: u32,
) -> Result<Page, db::Error> {
    let mut connection = monitor.connection().await?;
    let mut listing = Listing::new(&mut connection, wanted, limit);
    if let Some(uuid) = wanted.window {
        let found = repository::only_candidate(listing.connection, uuid).await?;
        let is_of = |service: &ServiceName, window: &Candidate| service.as_str() == window.service;
        let found = found.filter(|window| {
            window.events_kept
                && wanted.service.as_ref().is_none_or(|service| is_of(service, window))
        });
        if let Some(window) = found {
            listing.read_one(&window).await?;
        }
        return Ok(listing.page);
    }
    let all = Candidates {
        service: wanted.service.as_ref(),
        status: (wanted.status == Some(EventStatus::Missing)).then_some(WindowStatus::Alert),
        before: wanted.to.map(|to| to.plus_micros(MOST_EARLY_US)),
        begin: wanted.after.map(|place| (place.from, place.id)),
        ..Candidates::default()
    };
    let Some(from) = wanted.from else {
        listing.read_from(all).await?;
        return Ok(listing.page);
    };
    // No window that starts before reaches as far, but for the long ones.
    let longest_us = repository::longest_window_us(listing.connection).await?;
    let after = from.plus_micros(-longest_us.min(repository::DAY_US));
    let goes_on = listing.read_from(Candidates { after: Some(after), ..all.clone() }).await?;
    if goes_on && longest_us > repository::DAY_US {
        let before = Some(after.plus_micros(1));
        listing.read_from(Candidates { before, long_until: Some(from), ..all }).await?;
    }
    Ok(listing.page)
}

/// A page in the making.
struct Listing<'l> {
    connection: &'l mut db::Connection,
    wanted: &'l Wanted,
    filter: EventFilter,
    limit: usize,
    /// Where the page begins, and from then on what has been looked at.
    done: Option<EventPosition>,
    windows: usize,
    slots: u32,
    page: Page,
}

impl<'l> Listing<'l> {
    fn new(connection: &'l mut db::Connection, wanted: &'l Wanted, limit: u32) -> Self {
        let status = wanted.status.map(EventStatus::as_sql);
        let filter = EventFilter { status, from: wanted.from, to: wanted.to };
        let (limit, page) = (limit as usize, Page::default());
        Self { connection, wanted, filter, limit, done: wanted.after, windows: 0, slots: 0, page }
    }

    /// Looks at windows from the latest start to the earliest. Answers whether to go on.
    async fn read_from(&mut self, mut candidates: Candidates<'_>) -> Result<bool, db::Error> {
        let mut number = FIRST_WINDOWS;
        loop {
            let windows = repository::candidates(self.connection, &candidates, number).await?;
            if !self.read_all(&windows).await? {
                return Ok(false);
            }
            let Some(last) = windows.last().filter(|_| windows.len() >= number as usize) else {
                return Ok(true);
            };
            // Asked for again with those behind it, it is known to have been looked at.
            let place = self.skip(last);
            (candidates.begin, number) = if last.events_kept {
                (Some(place), MORE_WINDOWS)
            } else {
                let next = repository::next_with_events(self.connection, place).await?;
                (next, FIRST_WINDOWS)
            };
            if candidates.begin.is_none() {
                return Ok(true);
            }
        }
    }

    /// Goes on behind a window. Answers where that is.
    fn skip(&mut self, window: &Candidate) -> (Timestamp, i64) {
        self.done = Some(EventPosition::behind(window));
        (window.from, window.id)
    }

    /// Whether a window can hold events that are asked for.
    fn may_hold(&self, window: &Candidate) -> bool {
        let is_done = self.done.is_some_and(|done| done == EventPosition::behind(window));
        let ends_before = self.wanted.from.is_some_and(|from| window.ends_at < from);
        let has_none = self.wanted.status == Some(EventStatus::Error) && window.errors == Some(0);
        window.events_kept && !is_done && !ends_before && !has_none
    }

    /// Looks at windows in their order. Answers whether to go on.
    async fn read_all(&mut self, windows: &[Candidate]) -> Result<bool, db::Error> {
        let held: Vec<&Candidate> = windows.iter().filter(|window| self.may_hold(window)).collect();
        let mut rest = held.as_slice();
        while let Some(first) = rest.first() {
            let (group, behind) = rest.split_at(self.group(rest));
            rest = behind;
            let goes_on = if group.len() == 1 {
                self.read_one(first).await?
            } else {
                self.read_several(group).await?
            };
            if !goes_on {
                return Ok(false);
            }
            if self.slots >= MOST_SLOTS {
                self.page.next = group.last().map(|window| EventPosition::behind(window));
                return Ok(false);
            }
        }
        self.windows += windows.len();
        if self.windows >= MOST_WINDOWS {
            self.page.next = windows.last().map(EventPosition::behind);
            return Ok(false);
        }
        Ok(true)
    }

    /// How many windows to ask for together: enough to fill the page where all events count.
    fn group(&self, windows: &[&Candidate]) -> usize {
        let counts_all = self.filter.status.is_none() && self.filter.from.is_none();
        let room = u32::try_from(self.limit + 1 - self.page.events.len()).unwrap_or(SLOTS_AT_ONCE);
        let most = if counts_all { room.min(SLOTS_AT_ONCE) } else { SLOTS_AT_ONCE };
        let begins_within = |window: &Candidate| {
            self.done.is_some_and(|done| done.id == window.id && done.slot > 0)
        };
        if begins_within(windows[0]) {
            return 1;
        }
        let mut slots = 0_u32;
        let fit = windows.iter().take(WINDOWS_AT_ONCE).take_while(|window| {
            let has_room = slots < most;
            slots = slots.saturating_add(window.slots);
            has_room && (slots <= SLOTS_AT_ONCE || slots == window.slots)
        });
        fit.count().max(1)
    }

    /// Looks at no more slots of a window than a page has left.
    async fn read_one(&mut self, window: &Candidate) -> Result<bool, db::Error> {
        let done = self.done.filter(|done| done.id == window.id);
        let end = done.map_or(window.slots, |done| done.slot.min(window.slots));
        let start = end.saturating_sub(MOST_SLOTS.saturating_sub(self.slots).max(1));
        // One more than there is room for shows whether there is a next page.
        let room = u32::try_from(self.limit + 1 - self.page.events.len()).unwrap_or(u32::MAX);
        let (id, slots) = (window.id, start..end);
        let events =
            repository::events_of_one(self.connection, id, slots, &self.filter, room).await?;
        self.slots = self.slots.saturating_add(end - start);
        if !self.add(window, events) {
            return Ok(false);
        }
        if start > 0 {
            self.page.next = Some(EventPosition { slot: start, ..EventPosition::behind(window) });
        }
        Ok(start == 0)
    }

    async fn read_several(&mut self, windows: &[&Candidate]) -> Result<bool, db::Error> {
        let ids: Vec<i64> = windows.iter().map(|window| window.id).collect();
        let mut events = repository::events_of_several(self.connection, &ids, &self.filter).await?;
        for window in windows {
            self.slots = self.slots.saturating_add(window.slots);
            if !self.add(window, events.remove(&window.id).unwrap_or_default()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Adds events of a window as far as there is room. Answers whether there was room for all.
    fn add(&mut self, window: &Candidate, events: Vec<ListedEvent>) -> bool {
        for event in events {
            if self.page.events.len() == self.limit {
                let last = self.page.events.last();
                self.page.next = last.map(|(window, event)| EventPosition {
                    from: window.from,
                    id: window.id,
                    slot: event.slot,
                });
                return false;
            }
            self.page.events.push((window.clone(), event));
        }
        true
    }
}
