//! The part of a heartbeat's trace that its sender sees.

use super::Payments;
use super::repository::StoredTick;
use crate::clock;
use crate::stream::StreamId;
use crate::traces::{Kind, Sampling, Span, Tracer};
use crate::wire::{OMITTED, Status, Timestamp, TraceParent, Window};

/// The trace of a slot, with the decision whether it is recorded.
pub(super) fn of_slot(payments: &Payments, window: &Window, slot: u32) -> TraceParent {
    let tracer = payments.tracer.as_ref();
    let sampling = tracer.map_or_else(Sampling::default, Tracer::sampling);
    sampling.mark(TraceParent::of_slot(window.uuid, slot))
}

/// Records that a tick is in the audit: the span that its trace begins with.
pub(super) fn ticked(payments: &Payments, window: &Window, slot: u32, status: Option<&Status>) {
    record(payments, (window, slot), |trace| {
        Span::first(trace, "tick", window.due(slot)).with("heartbeat.status", word(status))
    });
}

/// Records that Redis has a heartbeat, as this entry.
pub(super) fn published(
    payments: &Payments,
    (window, tick): &(Window, StoredTick),
    entry: StreamId,
    began: Timestamp,
) {
    record(payments, (window, tick.slot), |trace| {
        let stream = payments.producer.stream().reports();
        Span::below(trace, Kind::Producer, format!("publish {stream}"), began)
            .with("messaging.system", "redis")
            .with("messaging.operation.name", "publish")
            .with("messaging.operation.type", "send")
            .with("messaging.destination.name", stream.to_owned())
            .with("messaging.message.id", entry.to_string())
    });
}

/// Records a span that ends now, if its trace is recorded at all.
fn record(
    payments: &Payments,
    (window, slot): (&Window, u32),
    span: impl FnOnce(&TraceParent) -> Span,
) {
    let Some(tracer) = &payments.tracer else { return };
    let trace = of_slot(payments, window, slot);
    if trace.is_sampled() {
        let span = span(&trace).of_heartbeat(&window.service, window.uuid, Some(slot.into()));
        tracer.record(span.ended(clock::now()));
    }
}

/// What a tick says of its service, without the message of an error.
const fn word(status: Option<&Status>) -> &'static str {
    match status {
        None => OMITTED,
        Some(Status::Ok) => "ok",
        Some(Status::Error(_)) => "error",
    }
}
