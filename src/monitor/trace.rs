//! The part of a heartbeat's trace that the monitor sees: one span from the request until its commit.

use super::Monitor;
use crate::clock;
use crate::traces::{Kind, Span, Tracer};
use crate::wire::{Heartbeat, Timestamp, TraceParent};

/// The spans of the heartbeats of one request. Holds nothing while traces are off.
#[derive(Debug)]
pub(super) struct Ingests<'m> {
    tracer: Option<&'m Tracer>,
    began: Timestamp,
    /// With their places in the request, in that order.
    spans: Vec<(usize, Span)>,
    items: usize,
}

impl<'m> Ingests<'m> {
    /// Of a request that comes now.
    pub(super) fn begin(monitor: &'m Monitor, began: Timestamp) -> Self {
        Self { tracer: monitor.tracer.as_ref(), began, spans: Vec::new(), items: 0 }
    }

    /// Begins the span of the next item, if its trace is recorded.
    pub(super) fn note<E>(&mut self, item: &[u8], heartbeat: &Result<Heartbeat, E>) {
        let Some(tracer) = self.tracer else { return };
        let place = self.items;
        self.items += 1;
        let found = std::str::from_utf8(item).ok().and_then(TraceParent::in_message);
        let Some((trace, _)) = found.filter(|(trace, _)| tracer.sampling().follows(trace)) else {
            return;
        };
        let span = Span::below(&trace, Kind::Server, "ingest", self.began);
        let span = match heartbeat {
            Ok(Heartbeat { window, slot, .. }) => {
                span.of_heartbeat(&window.service, window.uuid, *slot)
            }
            Err(_) => span,
        };
        self.spans.push((place, span));
    }

    /// Ends the spans with what became of each item; with a failure, if nobody knows.
    pub(super) fn end(self, outcome: impl Fn(usize) -> Option<&'static str>) {
        let Some(tracer) = self.tracer else { return };
        let now = clock::now();
        for (place, span) in self.spans {
            let outcome = outcome(place).unwrap_or(FAILED);
            let span = span.with("heartbeat.outcome", outcome).ended(now);
            let is_bad = [FAILED, REJECTED].contains(&outcome);
            tracer.record(if is_bad { span.failed(outcome) } else { span });
        }
    }
}

/// What is said of a heartbeat that could not be stored.
const FAILED: &str = "failed";
/// What is said of one that cannot be taken.
pub(super) const REJECTED: &str = "rejected";
