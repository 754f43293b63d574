//! What a monitor counts: heartbeats, slots and windows by service, how long things take, and how
//! old what it knows is.
//!
//! Heartbeats are counted where they are committed, once for a batch. Each monitor counts what it
//! did itself: several of them are added up by whoever asks Prometheus.

use std::collections::HashMap;

use super::closing::ClosingRules;
use super::ingest::{Arrival, Outcome};
use super::prune;
use super::window::{StoredWindow, WindowStatus};
use crate::metrics::{Age, ByService, Histogram, IntCounter, IntCounterVec, IntGauge, Registry};
use crate::wire::Timestamp;

/// What became of heartbeats.
const OUTCOMES: [&str; 5] = ["recorded", "duplicate", "late", "unscheduled", "rejected"];
/// The place of those that were refused.
const REJECTED: usize = 4;
/// What is known of slots when their window closes.
const STATUSES: [&str; 4] = ["ok", "error", "missing", "unobserved"];
/// How windows close.
const RESULTS: [&str; 3] = ["closed", "alert", "unobserved"];
/// What becomes of windows that were closed as unobserved.
const SETTLED: [&str; 2] = ["closed", "alert"];

/// The metrics of one monitor.
#[derive(Debug)]
pub struct Metrics {
    /// What `/metrics` shows.
    pub registry: Registry,
    /// From the arrival of a request with heartbeats to their commit.
    pub ingest: Histogram,
    /// When a sweep last ended well.
    pub sweep: Age,
    /// Sweeps that failed.
    pub sweep_failures: IntCounter,
    /// Pipelines of which no relay reports.
    pub stalled: IntGauge,
    /// How often Redis was emptied, replaced or restarted.
    pub replacements: IntCounter,
    /// Steps of pruning that failed.
    pub prune_failures: IntCounter,
    pruned_rows: IntCounterVec,
    /// How old the oldest window with events is, and the oldest of all.
    oldest: [Age; 2],
    delivery: Histogram,
    watermark: Age,
    watch: Age,
    services: ByService<OfService>,
}

/// The counters of one service, all of which begin at zero when it is first met.
#[derive(Debug)]
struct OfService {
    heartbeats: [IntCounter; OUTCOMES.len()],
    slots: [IntCounter; STATUSES.len()],
    windows: [IntCounter; RESULTS.len()],
    settled: [IntCounter; SETTLED.len()],
}

impl Default for Metrics {
    fn default() -> Self {
        let registry = Registry::new("monitor");
        let sweep = registry.age(
            (
                "heartbeat_monitor_sweep_age_seconds",
                "Time since a sweep for windows to close last ended well, or since the start.",
            ),
            &[],
        );
        sweep.renew();
        Self {
            ingest: registry.durations(
                "heartbeat_monitor_ingest_seconds",
                "From the arrival of a request with heartbeats to their commit.",
            ),
            delivery: registry.durations(
                "heartbeat_monitor_delivery_seconds",
                "From the sender's time stamp to the arrival at the monitor, of heartbeats that \
                 arrived for the first time, by the clocks of both.",
            ),
            sweep,
            sweep_failures: registry.counter(
                "heartbeat_monitor_sweep_failures_total",
                "Sweeps for windows to close that failed.",
            ),
            watermark: registry.age(
                (
                    "heartbeat_monitor_watermark_age_seconds",
                    "How far delivery is behind, of the slowest pipeline; absent if no relay has \
                     ever reported.",
                ),
                &[],
            ),
            watch: registry.age(
                (
                    "heartbeat_monitor_watch_age_seconds",
                    "Time since the monitor last read the watermark and which pipelines stall.",
                ),
                &[],
            ),
            stalled: registry.gauge(
                "heartbeat_monitor_stalled_pipelines",
                "Pipelines of which no relay reports.",
            ),
            replacements: registry.counter(
                "heartbeat_monitor_redis_replacements_total",
                "How often a report showed that Redis was emptied, replaced or restarted.",
            ),
            prune_failures: registry.counter(
                "heartbeat_monitor_prune_failures_total",
                "Steps of deleting what is kept no longer that failed.",
            ),
            pruned_rows: registry.counters(
                (
                    "heartbeat_monitor_pruned_rows_total",
                    "Rows that were deleted because they are kept no longer.",
                ),
                ["table"],
                &prune::TABLES.map(|table| [table]),
            ),
            oldest: ["events", "windows"].map(|of| {
                let about = (
                    "heartbeat_monitor_oldest_kept_age_seconds",
                    "How long the oldest closed window that is kept, or whose events are, has \
                     been over.",
                );
                registry.age(about, &[("of", of)])
            }),
            services: by_service(&registry),
            registry,
        }
    }
}

fn by_service(registry: &Registry) -> ByService<OfService> {
    let family = |name, help, label| registry.counters((name, help), ["service", label], &[]);
    let heartbeats = family(
        "heartbeat_monitor_heartbeats_total",
        "Heartbeats that were answered, by what became of them.",
        "outcome",
    );
    let slots = family(
        "heartbeat_monitor_slots_total",
        "Slots of windows that were closed, by what was known of them then.",
        "status",
    );
    let windows =
        family("heartbeat_monitor_windows_closed_total", "Windows that were closed.", "result");
    let settled = family(
        "heartbeat_monitor_windows_settled_total",
        "Windows that were unobserved, by what they are now that the truth is known.",
        "result",
    );
    ByService::new(move |service| OfService {
        heartbeats: each(&heartbeats, service, OUTCOMES),
        slots: each(&slots, service, STATUSES),
        windows: each(&windows, service, RESULTS),
        settled: each(&settled, service, SETTLED),
    })
}

fn each<const N: usize>(
    family: &IntCounterVec,
    service: &str,
    values: [&str; N],
) -> [IntCounter; N] {
    values.map(|value| family.with_label_values(&[service, value]))
}

impl Metrics {
    /// Counts heartbeats that are committed.
    pub(super) fn took(&self, arrivals: &[Arrival], outcomes: &[Outcome]) {
        let delivery = self.delivery.local();
        let mut counts: HashMap<&str, [u64; OUTCOMES.len()]> = HashMap::new();
        for (Arrival { heartbeat, at }, outcome) in arrivals.iter().zip(outcomes) {
            counts.entry(heartbeat.window.service.as_str()).or_default()[place(outcome)] += 1;
            // A repeat says how long ago it was sent first, not how long it took.
            if matches!(outcome, Outcome::Recorded | Outcome::Late) {
                delivery.observe(heartbeat.timestamp.until(*at).as_secs_f64());
            }
        }
        delivery.flush();
        for (service, counts) in counts {
            let is_taken = counts.iter().sum::<u64>() > counts[REJECTED];
            let counters =
                if is_taken { self.services.of(service) } else { self.services.of_known(service) };
            for (counter, count) in counters.heartbeats.iter().zip(counts) {
                counter.inc_by(count);
            }
        }
    }

    /// Counts heartbeats that could not be read, so that nobody knows whose they are.
    pub(super) fn refused(&self, heartbeats: usize) {
        let counters = self.services.other();
        counters.heartbeats[REJECTED].inc_by(heartbeats as u64);
    }

    /// Counts a window that this monitor closed, and its slots.
    pub(super) fn closed(&self, stored: &StoredWindow) {
        let counters = self.services.of(stored.window.service.as_str());
        let counts = stored.counts;
        let slots = [
            counts.received.saturating_sub(counts.errors),
            counts.errors,
            counts.missing.saturating_sub(counts.unobserved),
            counts.unobserved,
        ];
        for (counter, count) in counters.slots.iter().zip(slots) {
            counter.inc_by(count.into());
        }
        let result = match (counts.cause(), stored.status) {
            (Some(_), _) => 2,
            (None, WindowStatus::Alert) => 1,
            (None, _) => 0,
        };
        counters.windows[result].inc();
    }

    /// Counts a window that was unobserved, by what it is now.
    pub(super) fn settled(&self, service: &str, status: WindowStatus) {
        let counters = self.services.of(service);
        counters.settled[usize::from(status == WindowStatus::Alert)].inc();
    }

    /// Counts what a step of pruning deleted.
    pub(super) fn pruned(&self, outcome: &prune::Outcome) {
        for (table, rows) in &outcome.deleted {
            self.pruned_rows.with_label_values(&[table]).inc_by(*rows);
        }
    }

    /// Notes since when the oldest windows are over.
    pub(super) fn keeps(&self, oldest: [Option<Timestamp>; 2], now: Timestamp) {
        for (age, since) in self.oldest.iter().zip(oldest) {
            match since {
                Some(since) => age.set(since.until(now)),
                None => age.clear(),
            }
        }
    }

    /// Notes what the database says of the watermark.
    pub(super) fn watched(&self, rules: &ClosingRules) {
        // Before the first advance it is at the beginning of time, which is no age.
        match rules.watermark.filter(|watermark| watermark.micros() > 0) {
            Some(watermark) => self.watermark.set(watermark.until(rules.now)),
            None => self.watermark.clear(),
        }
        self.watch.renew();
    }
}

/// The place of an outcome among [`OUTCOMES`].
const fn place(outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Recorded => 0,
        Outcome::Duplicate => 1,
        Outcome::Late => 2,
        Outcome::Unscheduled => 3,
        Outcome::Rejected(_) => REJECTED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_is_counted_under_its_name() {
        for outcome in [
            Outcome::Recorded,
            Outcome::Duplicate,
            Outcome::Late,
            Outcome::Unscheduled,
            Outcome::Rejected("a reason".to_owned()),
        ] {
            assert_eq!(OUTCOMES[place(&outcome)], outcome.name());
        }
    }
}
