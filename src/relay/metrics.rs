//! What a relay counts: requests and what came of them, messages and how they left the stream; and
//! where delivery stands, as of the last survey, which it makes once a second.

use std::sync::Arc;
use std::time::Duration;

use super::deliver::Delivery;
use super::forward::Answer;
use crate::metrics::{Age, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};
use crate::stream::{Source, Survey};
use crate::wire::Breaker;

/// What the monitor answers.
const ANSWERS: [[&str; 1]; 7] = [
    ["taken"],
    ["refused"],
    ["one_by_one"],
    ["not_for_old_monitors"],
    ["failed"],
    ["unavailable"],
    ["misconfigured"],
];
/// Answers after which messages are sent again.
const CLASSES: [[&str; 1]; 5] =
    [["refused"], ["one_by_one"], ["failed"], ["unavailable"], ["misconfigured"]];
/// Streams, and how messages leave them.
const SETTLEMENTS: [[&str; 2]; 4] = [
    ["heartbeats", "acknowledged"],
    ["heartbeats", "dead_lettered"],
    ["windows", "acknowledged"],
    ["windows", "dead_lettered"],
];

/// The metrics of one relay.
#[derive(Debug)]
pub struct Metrics {
    /// What `/metrics` shows.
    pub registry: Registry,
    /// Other groups that have not read for a day.
    pub silent_groups: IntGauge,
    /// Heartbeats that an original monitor had confirmed before, and which were not sent again.
    pub repeats: IntCounter,
    /// Announcements of windows that were over before the group existed.
    pub skipped: IntCounter,
    requests: IntCounterVec,
    retries: IntCounterVec,
    request: Histogram,
    messages: IntCounterVec,
    standing: Standing,
}

impl Default for Metrics {
    fn default() -> Self {
        let registry = Registry::new("relay");
        Self {
            silent_groups: registry.gauge(
                "heartbeat_relay_silent_groups",
                "Other groups that have not read for a day, for which the streams keep everything.",
            ),
            repeats: registry.counter(
                "heartbeat_relay_repeats_total",
                "Heartbeats acknowledged unsent: an original monitor had confirmed the same before.",
            ),
            skipped: registry.counter(
                "heartbeat_relay_skipped_announcements_total",
                "Announcements of windows that were over before the consumer group existed.",
            ),
            requests: registry.counters(
                ("heartbeat_relay_requests_total", "Requests with messages, by what came of them."),
                ["answer"],
                &ANSWERS,
            ),
            retries: registry.counters(
                (
                    "heartbeat_relay_retries_total",
                    "Requests whose messages, or some of them, are sent again, by the reason.",
                ),
                ["class"],
                &CLASSES,
            ),
            request: registry.durations(
                "heartbeat_relay_request_seconds",
                "Time until a request with messages was answered, or given up.",
            ),
            messages: registry.counters(
                ("heartbeat_relay_messages_total", "Messages that left the stream, and how."),
                ["stream", "settlement"],
                &SETTLEMENTS,
            ),
            standing: Standing::new(&registry),
            registry,
        }
    }
}

impl Metrics {
    /// Shows whether a relay's breaker is open.
    pub(super) fn show_breaker(delivery: &Arc<Delivery>) {
        let help = "1 while the monitor takes nothing, so that nothing is read.";
        // Weak, because what is measured owns its metrics.
        let measured = Arc::downgrade(delivery);
        let read = move || {
            let is_open = matches!(measured.upgrade()?.gate.report(), Breaker::Open { .. });
            Some(f64::from(u8::from(is_open)))
        };
        delivery.metrics.registry.reading(("heartbeat_relay_breaker_open", help), &[], read);
    }

    /// Counts a request.
    pub(super) fn answered(&self, answer: &Answer, took: Duration) {
        self.requests.with_label_values(&[answer.name()]).inc();
        self.request.observe(took.as_secs_f64());
    }

    /// Counts a request whose messages are sent again.
    pub(super) fn sends_again(&self, class: &str) {
        self.retries.with_label_values(&[class]).inc();
    }

    /// Counts messages that the monitor has committed.
    pub(super) fn acknowledged(&self, source: Source, messages: usize) {
        self.messages.with_label_values(&[name(source), "acknowledged"]).inc_by(messages as u64);
    }

    /// Counts a message that was set aside.
    pub(super) fn dead_lettered(&self, source: Source) {
        self.messages.with_label_values(&[name(source), "dead_lettered"]).inc();
    }

    /// Notes where delivery stands.
    pub(super) fn surveyed(&self, survey: &Survey) {
        self.standing.learn(survey);
    }
}

/// Where delivery stood when Redis was last asked.
#[derive(Debug)]
struct Standing {
    survey: Age,
    watermark: Age,
    lag: IntGaugeVec,
    pending: IntGaugeVec,
    oldest: [Age; 2],
    suspects: IntGauge,
    dead_letters: IntGauge,
    resending: IntGauge,
}

impl Standing {
    fn new(registry: &Registry) -> Self {
        let age = |name, help| registry.age((name, help), &[]);
        let oldest = |source| {
            let help = "Age of the oldest entry that is read and not acknowledged.";
            let about = ("heartbeat_relay_oldest_pending_age_seconds", help);
            registry.age(about, &[("stream", name(source))])
        };
        Self {
            survey: age(
                "heartbeat_relay_survey_age_seconds",
                "Time since Redis last said where delivery stands.",
            ),
            watermark: age(
                "heartbeat_relay_watermark_age_seconds",
                "How far delivery is behind, by Redis' clock.",
            ),
            lag: registry.gauges(
                "heartbeat_relay_lag_entries",
                "Entries that the group has not read; absent if Redis cannot tell.",
                &["stream"],
            ),
            pending: registry.gauges(
                "heartbeat_relay_pending_entries",
                "Entries that relays of the group have read and not acknowledged.",
                &["stream"],
            ),
            oldest: Source::ALL.map(oldest),
            suspects: registry
                .gauge("heartbeat_relay_suspects", "Entries that alone make the monitor fail."),
            dead_letters: registry.gauge("heartbeat_relay_dead_letters", "Dead letters in Redis."),
            resending: registry.gauge(
                "heartbeat_relay_resending_services",
                "Services that have yet to send again what a lost Redis took along.",
            ),
        }
    }

    fn learn(&self, survey: &Survey) {
        self.survey.renew();
        self.watermark.set(survey.watermark.until(survey.now));
        self.suspects.set(count(survey.suspects.len() as u64));
        self.dead_letters.set(count(survey.dead_letters));
        self.resending.set(count(survey.resending.len() as u64));
        for (source, oldest) in Source::ALL.into_iter().zip(&self.oldest) {
            let state = match source {
                Source::Windows => &survey.windows,
                Source::Heartbeats => &survey.heartbeats,
            };
            let stream = [name(source)];
            self.pending.with_label_values(&stream).set(count(state.pending));
            match state.lag {
                Some(lag) => self.lag.with_label_values(&stream).set(count(lag)),
                // It fails where there is none, which is what is wanted.
                None => self.lag.remove_label_values(&stream).unwrap_or_default(),
            }
            match state.oldest_pending_at {
                Some(at) => oldest.set(at.until(survey.now)),
                None => oldest.clear(),
            }
        }
    }
}

fn count(items: u64) -> i64 {
    i64::try_from(items).unwrap_or(i64::MAX)
}

impl Answer {
    /// The answer as the metrics name it.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Taken(_) => "taken",
            Self::Refused(_) => "refused",
            Self::OneByOne => "one_by_one",
            Self::NotForOldMonitors => "not_for_old_monitors",
            Self::Failed(_) => "failed",
            Self::Unavailable { .. } => "unavailable",
            Self::Misconfigured(_) => "misconfigured",
        }
    }
}

/// A stream as the metrics name it, whatever its key is.
const fn name(source: Source) -> &'static str {
    match source {
        Source::Heartbeats => "heartbeats",
        Source::Windows => "windows",
    }
}
