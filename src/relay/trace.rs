//! The part of a heartbeat's trace that a relay sees: one span from the reading of an entry until the
//! monitor has answered, which is the parent of what the monitor records.

use serde::Deserialize;
use uuid::Uuid;

use super::item::Item;
use crate::clock;
use crate::stream::{Source, StreamName};
use crate::traces::{Kind, Span, Tracer};
use crate::wire::{ServiceName, Timestamp, TraceParent};

/// What records the spans of deliveries.
#[derive(Debug)]
pub struct Deliveries {
    /// Takes the spans that are over.
    pub tracer: Tracer,
    /// The streams that entries are from.
    pub stream: StreamName,
    /// The group that they are acknowledged in.
    pub group: String,
}

impl Deliveries {
    /// Begins the span of a heartbeat whose trace is recorded, and names it to the monitor as parent.
    pub(super) fn begin(&self, source: Source, item: &mut Item, since: Timestamp) {
        if source != Source::Heartbeats {
            return;
        }
        let Some((trace, place)) = TraceParent::in_message(item.json()) else { return };
        if !self.tracer.sampling().follows(&trace) {
            return;
        }
        let stream = self.stream.reports();
        let span = Span::below(&trace, Kind::Consumer, format!("deliver {stream}"), since)
            .with("messaging.system", "redis")
            .with("messaging.operation.name", "deliver")
            .with("messaging.operation.type", "process")
            .with("messaging.destination.name", stream.to_owned())
            .with("messaging.consumer.group.name", self.group.clone())
            .with("messaging.message.id", item.id.to_string());
        let span = match identity(item.json()) {
            Some((service, window, slot)) => span.of_heartbeat(&service, window, slot),
            None => span,
        };
        item.trace(span, place);
    }

    /// Ends the span of a message that is not sent any more, if it has one.
    pub(super) fn end(&self, item: &Item, attempts: u32, outcome: &'static str) {
        let Some(span) = item.span() else { return };
        let span = span
            .clone()
            .with("heartbeat.attempts", i64::from(attempts))
            .with("heartbeat.outcome", outcome)
            .ended(clock::now());
        self.tracer.record(if outcome == REFUSED { span.failed(REFUSED) } else { span });
    }
}

/// What became of a message that the monitor has committed.
pub(super) const TAKEN: &str = "taken";
/// Of one that becomes a dead letter.
pub(super) const REFUSED: &str = "refused";
/// Of one that another relay takes over, because this one stops.
pub(super) const HANDED_BACK: &str = "handed_back";

/// Whose heartbeat a message is, if it can be read.
fn identity(json: &str) -> Option<(ServiceName, Uuid, Option<i64>)> {
    #[derive(Deserialize)]
    struct Identity {
        service: String,
        window_uuid: Uuid,
        slot: Option<i64>,
    }
    let Identity { service, window_uuid, slot } = serde_json::from_str(json).ok()?;
    Some((service.parse().ok()?, window_uuid, slot))
}
