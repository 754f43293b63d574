//! `GET /stats/daily`: totals of each service and day of UTC; and `POST /stats/rebuild`.

use std::str::FromStr;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize, Serializer};
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use super::params::{self, BAD_CURSOR};
use super::places::Place;
use super::summary::TotalsView;
use super::{Monitor, PAGE};
use crate::http::failures::{BadRequest, NotAllowed, OurFault};
use crate::http::{self, AdminToken, ApiError, Done, Params};
use crate::monitor::totals::{Count, Span, Totals};
use crate::monitor::{counting, repository};
use crate::wire::{ServiceName, Timestamp};

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DailyQuery {
    /// Days of this service only.
    #[param(value_type = ServiceName, inline, required = false)]
    service: Option<String>,
    /// This day of UTC and later ones.
    #[param(value_type = Day, inline, required = false)]
    from: Option<String>,
    /// Days before this one.
    #[param(value_type = Day, inline, required = false)]
    to: Option<String>,
    /// Most rows to answer with.
    #[param(schema_with = params::page)]
    limit: Option<u32>,
    /// The `next` of an earlier answer.
    #[param(pattern = "^[0-9]{1,19}-[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}$")]
    cursor: Option<String>,
}

impl DailyQuery {
    fn filter(&self) -> Result<repository::DayFilter, ApiError> {
        let day = |name, text: &Option<String>| {
            params::optional::<Day>(name, text.as_deref()).map(|day| day.map(|Day(begin)| begin))
        };
        let (from, to) = (day("from", &self.from)?, day("to", &self.to)?);
        params::check_order(from, to)?;
        let cursor: Option<DailyCursor> = params::optional("cursor", self.cursor.as_deref())?;
        Ok(repository::DayFilter {
            service: params::optional("service", self.service.as_deref())?,
            from,
            to,
            after: cursor.map(|DailyCursor(day, service)| (day.0, service)),
        })
    }
}

/// Lists totals of each service and day of UTC, the latest day first.
#[utoipa::path(get, path = "/stats/daily", tag = "totals", params(DailyQuery), responses(
    (status = 200, description = "A page of days", body = DailyPage),
    BadRequest, OurFault,
))]
pub(super) async fn get_daily(
    State(monitor): State<Monitor>,
    Params(query): Params<DailyQuery>,
    _place: Place,
) -> Result<Json<DailyPage>, ApiError> {
    let limit = http::page_limit(query.limit, PAGE)?;
    // One more than asked for shows whether a next page exists.
    let filter = query.filter()?;
    let mut connection = monitor.connection().await?;
    let mut days = repository::days(&mut connection, &filter, limit + 1).await?;
    let is_last = days.len() <= limit as usize;
    days.truncate(limit as usize);
    let next = days.last().filter(|_| !is_last).and_then(|(service, day, _)| {
        // Every name in the totals has been checked before.
        service.parse().ok().map(|service| DailyCursor(Day(*day), service))
    });
    let rebuilding = repository::is_recounting(&mut connection).await?;
    let days = days.iter().map(|(service, day, totals)| DayView::new(service, *day, totals));
    Ok(Json(DailyPage { days: days.collect(), next, rebuilding }))
}

/// Has the totals counted anew from what is stored.
#[utoipa::path(post, path = "/stats/rebuild", tag = "totals", security(("admin_token" = [])),
    responses(
        (status = 202, description = "It begins", body = Done),
        NotAllowed, OurFault,
    ))]
pub(super) async fn post_rebuild(
    State(monitor): State<Monitor>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    AdminToken::check(monitor.admin_token.as_ref(), &headers)?;
    counting::rebuild(&monitor).await?;
    tracing::warn!("the totals are counted anew; they are too small until that is done");
    Ok((StatusCode::ACCEPTED, Json(Done::OK)).into_response())
}

/// The beginning of a day of UTC, which is written as `2026-11-21`.
#[derive(Clone, Copy, Debug)]
struct Day(Timestamp);

impl PartialSchema for Day {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Date)))
            .pattern(Some(r"^2[01]\d\d-[01]\d-[0-3]\d$"))
            .examples(["2026-11-21"])
            .into()
    }
}

impl ToSchema for Day {}

impl FromStr for Day {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_day = text.len() == 10;
        let begin = Timestamp::parse(&format!("{text}T00:00:00Z")).ok().filter(|_| is_day);
        begin.map(Self).ok_or("must be a day of UTC such as 2026-11-21")
    }
}

impl Serialize for Day {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = Span::Day.begin(self.0).to_string();
        serializer.serialize_str(text.split('T').next().unwrap_or_default())
    }
}

/// A place in the list: a day, and a service.
#[derive(Debug)]
struct DailyCursor(Day, ServiceName);

impl Serialize for DailyCursor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}-{}", self.0.0.micros(), self.1))
    }
}

impl FromStr for DailyCursor {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (micros, service) = text.split_once('-').ok_or(BAD_CURSOR)?;
        match (micros.parse(), service.parse()) {
            (Ok(micros), Ok(service)) if Timestamp::is_usable(micros) => {
                Ok(Self(Day(Timestamp::from_micros(micros)), service))
            }
            _ => Err(BAD_CURSOR),
        }
    }
}

/// One page of days, and where the next begins.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DailyPage {
    days: Vec<DayView>,
    /// Where the next page begins; none on the last.
    #[schema(value_type = Option<String>)]
    next: Option<DailyCursor>,
    /// Whether the totals are being counted anew, and too small until then.
    rebuilding: bool,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DayTotals)]
struct DayView {
    day: Day,
    service: String,
    closed_windows: i64,
    alert_windows: i64,
    #[serde(flatten)]
    totals: TotalsView,
}

impl DayView {
    fn new(service: &str, day: Timestamp, totals: &Totals) -> Self {
        Self {
            day: Day(day),
            service: service.to_owned(),
            closed_windows: totals.of(Count::ClosedWindows),
            alert_windows: totals.of(Count::AlertWindows),
            totals: TotalsView::from(totals),
        }
    }
}
