//! Traces: the way of one heartbeat, as OpenTelemetry shows it. Off unless `--otlp-endpoint` says
//! where spans go.
//!
//! Each heartbeat is a trace of its own, whose id follows from its window and slot
//! ([`TraceParent::of_slot`]):
//!
//! ```text
//! tick                payments: from when the slot is due until its row of the audit is committed
//! ├── publish STREAM  payments: until Redis has it; again if it is sent again
//! └── deliver STREAM  relay: from the reading of the entry until the monitor has answered
//!     └── ingest      monitor: from the request until its commit
//! ```
//!
//! The sender decides whether a heartbeat's spans are recorded, and says so in `traceparent`. The
//! others keep to that, and each may choose a smaller share for itself. The choice follows from the
//! id of the trace, so that all choose the same ones.
//!
//! Nothing ever waits for a span. What the collector does not take in time is dropped and counted.
//!
//! `span` says what a span is, `export` sends spans. Nothing else names OpenTelemetry.

mod export;
mod span;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use reqwest::Url;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use self::span::{Kind, Span};
use crate::config::{secret, whole_address};
use crate::metrics::{IntCounter, Registry};
use crate::wire::TraceParent;

/// Spans of one role that may wait to be sent.
const MOST_WAITING: usize = 8_192;
/// How long a role that stops may go on sending spans.
const LAST_SPANS: Duration = Duration::from_secs(2);
/// Bits of a trace's id, from the right, that decide whether it is recorded.
const RANDOM_BITS: u32 = 56;

/// Where traces go, and how many.
#[derive(Args, Clone, Debug)]
pub struct TraceArgs {
    /// OpenTelemetry collector that traces are sent to, over HTTP, such as `http://collector:4318`
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL", hide_env_values = true,
          value_parser = secret::<CollectorUrl>(), global = true)]
    pub otlp_endpoint: Option<CollectorUrl>,

    /// Share of heartbeats that are traced, 0 to 1
    #[arg(long, env = "TRACE_RATIO", default_value = "1", value_name = "RATIO", global = true)]
    pub trace_ratio: Ratio,
}

impl TraceArgs {
    /// Which heartbeats are traced.
    #[must_use]
    pub fn sampling(&self) -> Sampling {
        Sampling { least: self.collector().map(|_| self.trace_ratio.least()) }
    }

    /// Where traces go; none if they are off.
    fn collector(&self) -> Option<Url> {
        self.otlp_endpoint.as_ref().and_then(CollectorUrl::traces)
    }
}

/// Address of a collector: its base, to which the path of a signal is added. Nothing where it is
/// empty, as for every OpenTelemetry program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectorUrl(Option<Url>);

impl CollectorUrl {
    /// Where it takes traces.
    #[must_use]
    pub fn traces(&self) -> Option<Url> {
        let mut url = self.0.clone()?;
        let path = format!("{}/v1/traces", url.path().trim_end_matches('/'));
        url.set_path(&path);
        Some(url)
    }
}

impl FromStr for CollectorUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const SHAPE: &str = "write it as http://HOST:4318";
        if text.is_empty() {
            return Ok(Self(None));
        }
        let url = whole_address(text).map_err(|error| format!("{error}; {SHAPE}"))?;
        if !["http", "https"].contains(&url.scheme()) || url.host_str().is_none() {
            return Err(format!("not the address of a collector; {SHAPE}"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("a user and a password belong into OTEL_EXPORTER_OTLP_HEADERS".to_owned());
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(format!("ends with a path; {SHAPE}"));
        }
        Ok(Self(Some(url)))
    }
}

/// A share of all traces.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio(f64);

impl Ratio {
    /// The least that the random bits of a trace's id must be for it to belong to the share.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "0 to 2^56, which a float holds to the last bit"
    )]
    fn least(self) -> u64 {
        ((1.0 - self.0) * (1_u64 << RANDOM_BITS) as f64) as u64
    }
}

impl FromStr for Ratio {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim().parse() {
            Ok(share) if (0.0..=1.0).contains(&share) => Ok(Self(share)),
            _ => Err("write a share from 0, which is none, to 1, which is all".to_owned()),
        }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Which traces are recorded.
///
/// The rightmost bits of an id decide, as in OpenTelemetry's consistent probability sampling: what a
/// smaller share holds, a larger one holds too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sampling {
    least: Option<u64>,
}

impl Sampling {
    /// A new trace, with the flag that says whether it is recorded.
    #[must_use]
    pub fn mark(self, trace: TraceParent) -> TraceParent {
        trace.with_sampled(self.chooses(&trace))
    }

    /// Whether to record spans of a trace that may have begun elsewhere.
    #[must_use]
    pub fn follows(self, trace: &TraceParent) -> bool {
        trace.is_sampled() && self.chooses(trace)
    }

    fn chooses(self, trace: &TraceParent) -> bool {
        let random = trace.trace_id() & ((1 << RANDOM_BITS) - 1);
        self.least.is_some_and(|least| random >= u128::from(least))
    }
}

/// Takes spans that are over. There is none while traces are off, so that nothing is done for them.
#[derive(Clone, Debug)]
pub struct Tracer {
    sampling: Sampling,
    queue: mpsc::Sender<Span>,
    dropped: IntCounter,
}

impl Tracer {
    /// Which traces are recorded.
    #[must_use]
    pub const fn sampling(&self) -> Sampling {
        self.sampling
    }

    /// Takes a span, or drops it where too many wait: nothing waits for it.
    pub fn record(&self, span: Span) {
        if self.queue.try_send(span).is_err() {
            self.dropped.inc();
        }
    }
}

/// The traces of one role.
#[derive(Debug)]
pub struct Traces {
    tracer: Option<Tracer>,
    sending: Option<JoinHandle<()>>,
    stop: CancellationToken,
}

impl Traces {
    /// Begins to send the spans of a role, and of this one of its processes, if that is wanted.
    ///
    /// # Errors
    /// When what the environment says about the exporter cannot be used.
    pub fn start(
        args: &TraceArgs,
        (role, name): (&'static str, &str),
        registry: &Registry,
    ) -> anyhow::Result<Self> {
        let about = ("heartbeat_trace_spans_total", "Spans, by what came of them.");
        let values = [["sent"], ["failed"], ["dropped"]];
        let spans = registry.counters(about, ["outcome"], &values);
        let stop = CancellationToken::new();
        let Some(collector) = args.collector() else {
            return Ok(Self { tracer: None, sending: None, stop });
        };
        // Without the path, which some use for a token.
        let origin = collector.origin().ascii_serialization();
        tracing::info!(collector = origin, share = %args.trace_ratio, "sending traces");
        let export = export::Export::new(&collector, (role, name), &spans)
            .context("preparing to send traces")?;
        let (queue, spans_to_send) = mpsc::channel(MOST_WAITING);
        let dropped = spans.with_label_values(&["dropped"]);
        let tracer = Tracer { sampling: args.sampling(), queue, dropped };
        let sending = tokio::spawn(export.run(spans_to_send, stop.clone()));
        Ok(Self { tracer: Some(tracer), sending: Some(sending), stop })
    }

    /// What takes spans, unless traces are off.
    #[must_use]
    pub fn tracer(&self) -> Option<Tracer> {
        self.tracer.clone()
    }

    /// Sends what waits, but not for long. For the end of a role.
    pub async fn finish(self) {
        let Some(sending) = self.sending else { return };
        self.stop.cancel();
        let abandoned = sending.abort_handle();
        if tokio::time::timeout(LAST_SPANS, sending).await.is_err() {
            abandoned.abort();
            tracing::warn!("the collector is too slow: the last spans are lost");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn sampling(share: &str) -> Sampling {
        let otlp_endpoint = Some("http://collector:4318".parse().unwrap());
        TraceArgs { otlp_endpoint, trace_ratio: share.parse().unwrap() }.sampling()
    }

    #[test]
    fn a_collector_is_named_by_its_base() {
        for (text, traces) in [
            ("http://collector:4318", "http://collector:4318/v1/traces"),
            ("http://collector:4318/", "http://collector:4318/v1/traces"),
            ("https://otlp.example.org/otlp", "https://otlp.example.org/otlp/v1/traces"),
            ("http://[::1]:4318/a/", "http://[::1]:4318/a/v1/traces"),
        ] {
            assert_eq!(text.parse::<CollectorUrl>().unwrap().traces().unwrap().as_str(), traces);
        }
        assert_eq!("".parse::<CollectorUrl>().unwrap().traces(), None);
        for (text, complaint) in [
            ("collector:4318", "not the address of a collector"),
            ("grpc://collector:4317", "not the address of a collector"),
            ("http://me:secret@collector:4318", "OTEL_EXPORTER_OTLP_HEADERS"),
            ("http://collector:4318/?token=secret", "write it as"),
        ] {
            let error = text.parse::<CollectorUrl>().unwrap_err();
            assert!(error.contains(complaint) && !error.contains("secret"), "{text}: {error}");
        }
    }

    #[test]
    fn a_ratio_is_from_none_to_all() {
        let trace = TraceParent::of_slot(Uuid::nil(), 0);
        for text in ["1", "1.0", "1e0"] {
            assert!(sampling(text).mark(trace).is_sampled(), "{text}");
        }
        assert!(!sampling("0").mark(trace.with_sampled(true)).is_sampled());
        for text in ["", "-0.1", "1.1", "NaN", "inf", "half", "10%"] {
            assert!(text.parse::<Ratio>().unwrap_err().starts_with("write a share"), "{text}");
        }
    }

    #[test]
    fn a_share_of_heartbeats_is_about_as_large_as_it_says() {
        let chosen = |share: &str| {
            let window = Uuid::from_u128(0x6f1c_1f0e_5f0c_4f43_9a55_0d2b_1f2a_7f10);
            let slots = (0..10_000).map(|slot| TraceParent::of_slot(window, slot));
            slots.filter(|trace| sampling(share).mark(*trace).is_sampled()).count()
        };
        // Always the same ones, since an id follows from its slot.
        assert_eq!(chosen("1"), 10_000);
        assert!((4_800..5_200).contains(&chosen("0.5")), "{}", chosen("0.5"));
        assert!((60..140).contains(&chosen("0.01")), "{}", chosen("0.01"));
        assert_eq!(chosen("0"), 0);
    }

    proptest! {
        #[test]
        fn a_larger_share_holds_what_a_smaller_one_does(
            window: u128, slot: u32, one in 0.0_f64..=1.0, other in 0.0_f64..=1.0,
        ) {
            let trace = TraceParent::of_slot(Uuid::from_u128(window), slot);
            let holds = |share: f64| sampling(&share.to_string()).mark(trace).is_sampled();
            prop_assert!(holds(one.max(other)) || !holds(one.min(other)));
            let (all, off) = (sampling("1"), Sampling::default());
            prop_assert!(all.follows(&trace.with_sampled(true)) && !all.follows(&trace));
            prop_assert!(!off.follows(&trace.with_sampled(true)) && off.mark(trace) == trace);
        }
    }

    #[tokio::test]
    async fn what_does_not_fit_is_dropped_and_counted() {
        let dropped = Registry::new("test").counter("heartbeat_test_total", "Spans.");
        let (queue, mut spans) = mpsc::channel(2);
        let tracer = Tracer { sampling: sampling("1"), queue, dropped: dropped.clone() };
        let trace = TraceParent::of_slot(Uuid::nil(), 0);
        let now = crate::clock::now();
        for _ in 0..5 {
            tracer.record(Span::below(&trace, Kind::Internal, "test", now).ended(now));
        }
        assert_eq!((dropped.get(), spans.len()), (3, 2));
        spans.close();
        tracer.record(Span::below(&trace, Kind::Internal, "test", now).ended(now));
        assert_eq!(dropped.get(), 4, "nor does a queue that is closed take any");
    }
}
