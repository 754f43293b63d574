//! `GET /events`: what is known of slots, the newest first.

use std::str::FromStr;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize, Serializer};
use utoipa::{IntoParams, PartialSchema, ToSchema};
use uuid::Uuid;

use super::params::{self, BAD_CURSOR};
use super::views::EventView;
use super::{Monitor, PAGE, places};
use crate::http::failures::{BadRequest, OurFault};
use crate::http::{self, ApiError, Params};
use crate::monitor::event_list::{self, EventPosition, EventStatus, Page, Wanted};
use crate::monitor::repository::{Candidate, ListedEvent};
use crate::wire::schema::Instant;
use crate::wire::{ServiceName, Timestamp};

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    /// Events of this service only.
    #[param(value_type = ServiceName, inline, required = false)]
    service: Option<String>,
    /// Events of this status only.
    #[param(value_type = EventStatus, inline, required = false)]
    status: Option<String>,
    /// Events of this window only.
    #[param(value_type = Option<Uuid>)]
    window_uuid: Option<String>,
    /// Events of this instant or later.
    #[param(value_type = Instant, inline, required = false)]
    from: Option<String>,
    /// Events before this instant.
    #[param(value_type = Instant, inline, required = false)]
    to: Option<String>,
    /// Most events to answer with.
    #[param(schema_with = params::page)]
    limit: Option<u32>,
    /// The `next` of an earlier answer.
    #[param(pattern = "^[0-9]{1,19}-[0-9]{1,19}-[0-9]{1,10}$")]
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

/// Lists what is known of slots, the newest first.
///
/// What one request looks at is bounded: a page may hold fewer events than asked for, or none, and there
/// is more as long as it has a `next`.
#[utoipa::path(get, path = "/events", tag = "totals", params(EventsQuery), responses(
    (status = 200, description = "A page of events", body = EventPage),
    BadRequest, OurFault,
))]
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
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EventPage {
    events: Vec<ListedView>,
    /// Where the next page begins; none on the last.
    #[schema(value_type = Option<String>)]
    next: Option<EventPosition>,
}

impl From<Page> for EventPage {
    fn from(page: Page) -> Self {
        Self { events: page.events.into_iter().map(ListedView::from).collect(), next: page.next }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Event)]
struct ListedView {
    window_uuid: Uuid,
    service: String,
    slot: u32,
    #[schema(schema_with = EventStatus::schema)]
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

impl Serialize for EventPosition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}-{}-{}", self.from.micros(), self.id, self.slot))
    }
}

impl FromStr for EventPosition {
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
