//! `GET /events`: what is known of slots, the newest first.

use std::str::FromStr;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize, Serializer};
use uuid::Uuid;

use super::params::{self, BAD_CURSOR};
use super::views::EventView;
use super::{Monitor, PAGE, places};
use crate::http::{self, ApiError, Params};
use crate::monitor::event_list::{self, Page, Place, Wanted};
use crate::monitor::repository::{Candidate, ListedEvent};
use crate::wire::Timestamp;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct EventsQuery {
    service: Option<String>,
    status: Option<String>,
    window_uuid: Option<String>,
    from: Option<String>,
    to: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

impl EventsQuery {
    fn wanted(&self) -> Result<Wanted, ApiError> {
        let (from, to) = params::times((self.from.as_deref(), self.to.as_deref()))?;
        let window = self.window_uuid.as_deref().map(Uuid::try_parse).transpose();
        Ok(Wanted {
            service: params::optional("service", self.service.as_deref())?,
            status: params::optional("status", self.status.as_deref())?,
            window: window.map_err(|_| {
                ApiError::bad_request(
                    "window_uuid must be a UUID such as 6f1c1f0e-5f0c-4f43-9a55-0d2b1f2a7f10",
                )
            })?,
            from,
            to,
            after: params::optional("cursor", self.cursor.as_deref())?,
        })
    }
}

pub(super) async fn get_events(
    State(monitor): State<Monitor>,
    Params(query): Params<EventsQuery>,
    _place: places::Place,
) -> Result<Json<EventPage>, ApiError> {
    let limit = http::page_limit(query.limit, PAGE)?;
    let page = event_list::page(&monitor, &query.wanted()?, limit).await?;
    Ok(Json(EventPage::from(page)))
}

/// One page of events, and where the next begins.
#[derive(Debug, Serialize)]
pub(super) struct EventPage {
    events: Vec<ListedView>,
    next: Option<Place>,
}

impl From<Page> for EventPage {
    fn from(page: Page) -> Self {
        Self { events: page.events.into_iter().map(ListedView::from).collect(), next: page.next }
    }
}

#[derive(Debug, Serialize)]
struct ListedView {
    window_uuid: Uuid,
    service: String,
    slot: u32,
    /// `ok`, `error` or `missing`.
    status: String,
    #[serde(flatten)]
    event: EventView,
}

impl From<(Candidate, ListedEvent)> for ListedView {
    fn from((window, listed): (Candidate, ListedEvent)) -> Self {
        Self {
            window_uuid: window.uuid,
            service: window.service,
            slot: listed.slot,
            status: listed.event.status.to_ascii_lowercase(),
            event: EventView::from(&listed.event),
        }
    }
}

impl Serialize for Place {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}-{}-{}", self.from.micros(), self.id, self.slot))
    }
}

impl FromStr for Place {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.splitn(3, '-');
        let mut part = || parts.next().unwrap_or_default();
        match (part().parse(), part().parse(), part().parse()) {
            (Ok(micros), Ok(id), Ok(slot)) if Timestamp::is_usable(micros) => {
                Ok(Self { from: Timestamp::from_micros(micros), id, slot })
            }
            _ => Err(BAD_CURSOR),
        }
    }
}
