//! One step of a heartbeat's way, with its begin and its end.

use std::borrow::Cow;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use uuid::Uuid;

use crate::wire::{ServiceName, Timestamp, TraceParent};

/// What a span does, towards others.
pub use opentelemetry::trace::SpanKind as Kind;

/// One step of a heartbeat's way.
#[derive(Clone, Debug)]
pub struct Span {
    trace: TraceParent,
    id: u64,
    parent: Option<u64>,
    kind: SpanKind,
    name: Cow<'static, str>,
    start: Timestamp,
    end: Timestamp,
    attributes: Vec<KeyValue>,
    failure: Option<Cow<'static, str>>,
}

impl Span {
    /// The first of a trace that begins here: the one that the trace names as parent.
    #[must_use]
    pub fn first(
        trace: &TraceParent,
        name: impl Into<Cow<'static, str>>,
        start: Timestamp,
    ) -> Self {
        let below = Self::below(trace, Kind::Internal, name, start);
        Self { id: trace.parent_id(), parent: None, ..below }
    }

    /// One below that which the trace names as parent.
    #[must_use]
    pub fn below(
        trace: &TraceParent,
        kind: Kind,
        name: impl Into<Cow<'static, str>>,
        start: Timestamp,
    ) -> Self {
        Self {
            trace: *trace,
            id: rand::random_range(1..=u64::MAX),
            parent: Some(trace.parent_id()),
            kind,
            name: name.into(),
            start,
            end: start,
            attributes: Vec::new(),
            failure: None,
        }
    }

    /// Its id, never zero.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// With something that is known of it.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.attributes.push(KeyValue::new(name, value));
        self
    }

    /// With the identity of its heartbeat.
    #[must_use]
    pub fn of_heartbeat(self, service: &ServiceName, window: Uuid, slot: Option<i64>) -> Self {
        let span = self
            .with("heartbeat.service", service.to_string())
            .with("heartbeat.window", window.to_string());
        match slot {
            Some(slot) => span.with("heartbeat.slot", slot),
            None => span,
        }
    }

    /// Failed, for this reason.
    #[must_use]
    pub fn failed(self, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { failure: Some(reason.into()), ..self }
    }

    /// Over at an instant, which is not before its begin.
    #[must_use]
    pub fn ended(self, at: Timestamp) -> Self {
        Self { end: self.start.max(at), ..self }
    }
}

impl From<Span> for SpanData {
    fn from(span: Span) -> Self {
        static SCOPE: LazyLock<InstrumentationScope> = LazyLock::new(|| {
            let scope = InstrumentationScope::builder(env!("CARGO_PKG_NAME"));
            scope.with_version(env!("CARGO_PKG_VERSION")).build()
        });
        let trace_id = TraceId::from_bytes(span.trace.trace_id().to_be_bytes());
        let id = |id: u64| SpanId::from_bytes(id.to_be_bytes());
        let state = TraceState::NONE;
        Self {
            span_context: SpanContext::new(
                trace_id,
                id(span.id),
                TraceFlags::SAMPLED,
                false,
                state,
            ),
            parent_span_id: span.parent.map_or(SpanId::INVALID, id),
            parent_span_is_remote: matches!(span.kind, Kind::Consumer | Kind::Server),
            span_kind: span.kind,
            name: span.name,
            start_time: time(span.start),
            end_time: time(span.end),
            attributes: span.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: span.failure.map_or(Status::Unset, Status::error),
            instrumentation_scope: SCOPE.clone(),
        }
    }
}

fn time(at: Timestamp) -> SystemTime {
    let micros = u64::try_from(at.micros()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_micros(micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_what_the_exporter_is_told() {
        let trace = TraceParent::of_slot(Uuid::nil(), 3).with_sampled(true);
        let at = |micros: i64| Timestamp::from_micros(1_795_255_200_000_000 + micros);
        let service = "payments-a".parse().unwrap();
        let first = Span::first(&trace, "tick", at(0))
            .of_heartbeat(&service, Uuid::nil(), Some(3))
            .ended(at(250));
        let first = SpanData::from(first);
        assert_eq!(first.span_context.trace_id().to_bytes(), trace.trace_id().to_be_bytes());
        assert_eq!(first.span_context.span_id().to_bytes(), trace.parent_id().to_be_bytes());
        assert_eq!(first.parent_span_id, SpanId::INVALID);
        let took = first.end_time.duration_since(first.start_time);
        assert_eq!(took.unwrap(), Duration::from_micros(250));
        assert_eq!(first.attributes.last(), Some(&KeyValue::new("heartbeat.slot", 3)));
        assert_eq!(first.status, Status::Unset);

        let below = Span::below(&trace, Kind::Server, "ingest", at(500)).failed("no").ended(at(0));
        let below = SpanData::from(below);
        assert_eq!(below.span_context.trace_id(), first.span_context.trace_id());
        assert_eq!(below.parent_span_id, first.span_context.span_id());
        assert!(below.parent_span_is_remote && !first.parent_span_is_remote);
        assert_eq!(below.end_time, below.start_time, "a clock that was set back");
        assert_eq!(below.status, Status::error("no"));
    }
}
