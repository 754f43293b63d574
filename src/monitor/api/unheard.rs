//! The API of windows that only an audit knows.

use std::fmt;
use std::str::FromStr;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::views::ExplainedView;
use super::{PAGE, unknown_window};
use crate::http::{ApiError, Params, PathUuid};
use crate::monitor::audits::Found;
use crate::monitor::repository::{self, Place, Wanted};
use crate::monitor::{Monitor, explain, retention, unheard};
use crate::wire::{Rates, Tick, Timestamp, Window, WireError};
use crate::{clock, http};

/// Longest text that an audit may have for a UUID, in characters.
const MAX_UUID_CHARS: usize = 36;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UnheardQuery {
    from: String,
    service: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

impl UnheardQuery {
    fn wanted(&self, default_tick: Tick) -> Result<Wanted, ApiError> {
        let named = |name: &'static str| {
            move |error: WireError| ApiError::bad_request(format!("{name} {error}"))
        };
        let after = self.cursor.as_deref().map(str::parse::<Place>).transpose();
        Ok(Wanted {
            service: self
                .service
                .as_deref()
                .map(str::parse)
                .transpose()
                .map_err(named("service"))?,
            from: Timestamp::parse(&self.from).map_err(named("from"))?,
            after: after.map_err(|error| ApiError::bad_request(format!("cursor {error}")))?,
            default_tick,
            limit: http::page_limit(self.limit, PAGE)?,
        })
    }
}

pub(super) async fn get_all(
    State(monitor): State<Monitor>,
    Params(query): Params<UnheardQuery>,
) -> Result<Json<Value>, ApiError> {
    let page = unheard::page(&monitor, &query.wanted(monitor.default_tick)?).await?;
    let audit = match (monitor.audits.is_empty(), page.is_whole) {
        (true, _) => "not_configured",
        (false, true) => "read",
        (false, false) => "unreachable",
    };
    let windows: Vec<UnheardView> = page.windows.iter().map(UnheardView::from).collect();
    let next = page.next.map(|place| place.to_string());
    Ok(Json(json!({"audit": audit, "windows": windows, "next": next})))
}

pub(super) async fn get_one(
    State(monitor): State<Monitor>,
    PathUuid(uuid): PathUuid,
) -> Result<Json<UnheardView>, ApiError> {
    let window = match monitor.audits.define(uuid, monitor.default_tick).await {
        Found::Known(window) => window,
        Found::Unreachable => {
            let why = "an audit that may know this window cannot be read now; try again";
            return Err(ApiError::unavailable(why));
        }
        Found::Unasked | Found::UnknownWindow => return Err(unknown_window(uuid)),
    };
    let explained = explain::explain_unheard(&monitor, &window, clock::now()).await?;
    let explained = explained.ok_or_else(|| {
        ApiError::not_found(format!("the monitor has heard of window {uuid}: ask /windows/{uuid}"))
    })?;
    if window.ends_at() <= repository::gone_until(&monitor.pool).await? {
        return Err(ApiError::not_found(retention::window_gone(&window)));
    }
    Ok(Json(UnheardView { explained: Some(explained.into()), ..UnheardView::from(&window) }))
}

/// A window of which nothing has arrived, as its sender defined it.
#[derive(Debug, Serialize)]
pub(super) struct UnheardView {
    window_uuid: Uuid,
    service: String,
    /// Always `unheard`, unlike that of any window that the monitor knows.
    status: &'static str,
    #[serde(flatten)]
    rates: Rates,
    tick_seconds: Tick,
    expected_reports: u32,
    received_reports: u32,
    window_from: Timestamp,
    window_to: Timestamp,
    #[serde(flatten)]
    explained: Option<ExplainedView>,
}

impl From<&Window> for UnheardView {
    fn from(window: &Window) -> Self {
        Self {
            window_uuid: window.uuid,
            service: window.service.to_string(),
            status: "unheard",
            rates: window.rates,
            tick_seconds: window.tick(),
            expected_reports: window.slots(),
            received_reports: 0,
            window_from: window.from(),
            window_to: window.to(),
            explained: None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.from.micros(), self.uuid)
    }
}

impl FromStr for Place {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (from, uuid) = text.split_once('-').unwrap_or_default();
        match from.parse() {
            Ok(micros)
                if Timestamp::is_usable(micros) && uuid.chars().count() <= MAX_UUID_CHARS =>
            {
                Ok(Self { from: Timestamp::from_micros(micros), uuid: uuid.to_owned() })
            }
            _ => Err("must be the `next` of an earlier answer"),
        }
    }
}
