//! `GET /summary`: totals, rates and latencies of the last hour, day or week.
//!
//! The answer adds up at most 11 slices and 169 hours of the totals of one service, or of all
//! together, and counts open windows in an index. How many events there are does not matter.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::places::Place;
use super::{Monitor, params};
use crate::clock;
use crate::http::failures::{BadRequest, OurFault};
use crate::http::{ApiError, Params};
use crate::monitor::repository;
use crate::monitor::totals::{Count, Span, Totals};
use crate::verdict::Verdict;
use crate::wire::{ServiceName, Timestamp};

/// How many windows that wait to be counted are told apart from many.
const MOST_UNCOUNTED: u32 = 10_000;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct SummaryQuery {
    /// How far back to go.
    #[param(value_type = Period, inline, required = false)]
    period: Option<String>,
    /// This service only.
    #[param(value_type = ServiceName, inline, required = false)]
    service: Option<String>,
}

/// How far back a summary goes.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
enum Period {
    #[serde(rename = "1h")]
    Hour,
    #[default]
    #[serde(rename = "24h")]
    Day,
    #[serde(rename = "7d")]
    Week,
}

impl Period {
    const fn name(self) -> &'static str {
        match self {
            Self::Hour => "1h",
            Self::Day => "24h",
            Self::Week => "7d",
        }
    }

    const fn length(self) -> Duration {
        match self {
            Self::Hour => Duration::from_hours(1),
            Self::Day => Duration::from_hours(24),
            Self::Week => Duration::from_hours(7 * 24),
        }
    }
}

impl FromStr for Period {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [Self::Hour, Self::Day, Self::Week];
        let found = all.into_iter().find(|period| period.name() == text);
        found.ok_or("must be 1h, 24h or 7d")
    }
}

/// Adds up the last hour, day or week: totals, rates and latencies.
#[utoipa::path(get, path = "/summary", tag = "totals", params(SummaryQuery), responses(
    (status = 200, description = "The totals", body = SummaryView),
    BadRequest, OurFault,
))]
pub(super) async fn get_summary(
    State(monitor): State<Monitor>,
    Params(query): Params<SummaryQuery>,
    _place: Place,
) -> Result<Json<SummaryView>, ApiError> {
    let period: Period = params::optional("period", query.period.as_deref())?.unwrap_or_default();
    let service: Option<ServiceName> = params::optional("service", query.service.as_deref())?;
    let to = clock::now();
    let from = Span::Slice.begin(to.minus(period.length()));
    let first_hour = Span::Hour.begin(from.plus_micros(Span::Hour.micros() - 1));
    let connection = &mut *monitor.connection().await?;
    let of = service.as_ref();
    let mut totals = repository::sum(connection, Span::Slice, of, (from, first_hour)).await?;
    let hours = repository::sum(connection, Span::Hour, of, (first_hour, to)).await?;
    totals.add(&hours, 1);
    let open = repository::count_open(connection, of).await?;
    let uncounted_windows = repository::count_marks(connection, MOST_UNCOUNTED).await?;
    let rebuilding = repository::is_recounting(connection).await?;
    Ok(Json(SummaryView {
        period,
        service,
        from,
        to,
        windows: WindowsView {
            open,
            closed: totals.of(Count::ClosedWindows),
            alert: totals.of(Count::AlertWindows),
        },
        totals: TotalsView::from(&totals),
        uncounted_windows,
        rebuilding,
    }))
}

/// What became of the slots of a period.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Summary)]
pub(super) struct SummaryView {
    period: Period,
    /// None stands for all services.
    service: Option<ServiceName>,
    from: Timestamp,
    to: Timestamp,
    windows: WindowsView,
    #[serde(flatten)]
    totals: TotalsView,
    /// How often windows of all services have closed or changed since the totals were brought up to
    /// date; 10,000 stands for as many and more.
    uncounted_windows: i64,
    /// Whether the totals are being counted anew, and too small until then.
    rebuilding: bool,
}

/// Windows that are open now, and those of a period that have closed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WindowCounts)]
struct WindowsView {
    open: i64,
    closed: i64,
    alert: i64,
}

/// Counts of slots, and what follows from them.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Totals)]
pub(super) struct TotalsView {
    expected_reports: i64,
    received_reports: i64,
    error_reports: i64,
    missing_reports: i64,
    unobserved_reports: i64,
    late_reports: i64,
    unscheduled_reports: i64,
    /// Of what was received, how much reports an error; none if nothing was.
    error_rate: Option<f64>,
    /// Of what was expected, how much is missing; none if nothing was.
    missing_rate: Option<f64>,
    verdicts: BTreeMap<Verdict, i64>,
    delivery_latency_seconds: LatencyView,
}

/// Shares of heartbeats took no longer than this from the sender's stamp to the monitor.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Latency)]
struct LatencyView {
    p50: Option<f64>,
    p95: Option<f64>,
    p99: Option<f64>,
}

impl From<&Totals> for TotalsView {
    fn from(totals: &Totals) -> Self {
        let percentile = |percent| totals.latencies.percentile_seconds(percent);
        Self {
            expected_reports: totals.of(Count::Expected),
            received_reports: totals.of(Count::Received),
            error_reports: totals.of(Count::Errors),
            missing_reports: totals.of(Count::Missing),
            unobserved_reports: totals.of(Count::Unobserved),
            late_reports: totals.of(Count::Late),
            unscheduled_reports: totals.of(Count::Unscheduled),
            error_rate: rate(totals.of(Count::Errors), totals.of(Count::Received)),
            missing_rate: rate(totals.of(Count::Missing), totals.of(Count::Expected)),
            verdicts: totals.verdicts.clone(),
            delivery_latency_seconds: LatencyView {
                p50: percentile(50),
                p95: percentile(95),
                p99: percentile(99),
            },
        }
    }
}

/// A part of a whole, from 0 to 1; none if there is no whole.
pub(super) fn rate(part: i64, whole: i64) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "exact for fewer than 2^53 slots")]
    let rate = part as f64 / whole as f64;
    (whole > 0).then_some(rate)
}
