//! What a payments service counts: ticks, what is not sent yet, how sending goes, and what is sent
//! again after Redis was lost.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::publish::PublishError;
use super::repository::StoredTick;
use crate::metrics::{Age, Histogram, IntCounter, IntCounterVec, IntGauge, Registry};
use crate::wire::{Status, Timestamp};

/// What a tick says.
const STATUSES: [[&str; 1]; 3] = [["ok"], ["error"], ["omitted"]];
/// Whose fault it is that nothing is sent.
const CAUSES: [[&str; 1]; 2] = [["database"], ["stream"]];

/// The metrics of one payments service.
#[derive(Debug)]
pub struct Metrics {
    /// What `/metrics` shows.
    pub registry: Registry,
    /// Windows that this process works on.
    pub open_windows: IntGauge,
    /// 1 while what a lost Redis took along is sent again.
    pub catching_up: IntGauge,
    /// Announcements that were sent again.
    pub announced_again: IntCounter,
    /// Heartbeats that were sent again.
    pub sent_again: IntCounter,
    /// When this service last saw that Redis holds all that it should.
    pub watch: Age,
    ticks: IntCounterVec,
    failures: IntCounterVec,
    publish: Histogram,
    unsent: Unsent,
}

impl Default for Metrics {
    fn default() -> Self {
        let registry = Registry::new("payments");
        let unsent = Unsent::default();
        let counted = unsent.clone();
        let help = "Ticks in the audit that are to be sent and not known to be: those that this \
                    process stored or found. Of each window that it took over, 256 at the most \
                    until it has sent them.";
        registry.reading(("heartbeat_payments_unsent_ticks", help), &[], move || {
            Some(f64::from(u32::try_from(counted.total()).unwrap_or(u32::MAX)))
        });
        let again = registry.counters(
            (
                "heartbeat_payments_resent_messages_total",
                "Messages that were sent again because a lost Redis may have taken them along.",
            ),
            ["stream"],
            &[],
        );
        Self {
            open_windows: registry.gauge(
                "heartbeat_payments_open_windows",
                "Windows that this process works on, as of 2 s ago at the most.",
            ),
            catching_up: registry.gauge(
                "heartbeat_payments_catching_up",
                "1 while what a lost Redis took along undelivered is sent again.",
            ),
            announced_again: again.with_label_values(&["windows"]),
            sent_again: again.with_label_values(&["heartbeats"]),
            watch: registry.age(
                (
                    "heartbeat_payments_watch_age_seconds",
                    "Time since this service last saw that Redis holds all that it should.",
                ),
                &[],
            ),
            ticks: registry.counters(
                ("heartbeat_payments_ticks_total", "Ticks stored in the audit, by what they say."),
                ["status"],
                &STATUSES,
            ),
            failures: registry.counters(
                (
                    "heartbeat_payments_publish_failures_total",
                    "Attempts to send what the audit holds that failed, by where.",
                ),
                ["cause"],
                &CAUSES,
            ),
            publish: registry.durations(
                "heartbeat_payments_publish_seconds",
                "From a tick to the note in the audit that Redis has it.",
            ),
            unsent,
            registry,
        }
    }
}

impl Metrics {
    /// Counts a tick that was stored. `None` means that it is omitted.
    pub(super) fn ticked(&self, window: Uuid, status: Option<&Status>) {
        let name = match status {
            None => "omitted",
            Some(status) if status.is_error() => "error",
            Some(_) => "ok",
        };
        self.ticks.with_label_values(&[name]).inc();
        if status.is_some() {
            *self.unsent.lock().entry(window).or_default() += 1;
        }
    }

    /// Notes how many ticks of a window were found unsent, and whether there may be more.
    pub(super) fn found_unsent(&self, window: Uuid, ticks: usize, more: bool) {
        let mut unsent = self.unsent.lock();
        let known = unsent.entry(window).or_default();
        *known = if more { ticks.max(*known) } else { ticks };
    }

    /// Notes that ticks of a window are known to be sent.
    pub(super) fn sent(&self, window: Uuid, ticks: &[StoredTick], now: Timestamp) {
        let publish = self.publish.local();
        for tick in ticks {
            publish.observe(tick.timestamp.until(now).as_secs_f64());
        }
        publish.flush();
        if let Some(known) = self.unsent.lock().get_mut(&window) {
            *known = known.saturating_sub(ticks.len());
        }
    }

    /// Counts an attempt to send that failed.
    pub(super) fn failed(&self, error: &PublishError) {
        let cause = match error {
            PublishError::Database(_) => "database",
            PublishError::Stream(_) => "stream",
        };
        self.failures.with_label_values(&[cause]).inc();
    }

    /// Forgets a window that this process no longer works on.
    pub(super) fn left(&self, window: Uuid) {
        self.unsent.lock().remove(&window);
    }
}

/// How many ticks of each window are unsent.
#[derive(Clone, Debug, Default)]
struct Unsent(Arc<Mutex<HashMap<Uuid, usize>>>);

impl Unsent {
    fn total(&self) -> usize {
        self.lock().values().sum()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unsent_follows_what_is_stored_found_and_sent() {
        let metrics = Metrics::default();
        let [one, other] = [Uuid::new_v4(), Uuid::new_v4()];
        let unsent = || metrics.unsent.total();
        metrics.ticked(one, None);
        assert_eq!(unsent(), 0, "what is omitted is not sent");
        for _ in 0..3 {
            metrics.ticked(one, Some(&Status::Ok));
        }
        metrics.found_unsent(other, 256, true);
        assert_eq!(unsent(), 259);
        metrics.found_unsent(one, 2, true);
        assert_eq!(unsent(), 259, "what is known to be there is not forgotten");
        metrics.found_unsent(one, 2, false);
        assert_eq!(unsent(), 258, "unless the audit says so");
        metrics.left(other);
        assert_eq!(unsent(), 2);
    }
}
