//! What a role counts and measures, in the text format of Prometheus.
//!
//! Each role owns a [`Registry`] and serves it at `/metrics`, so that several roles in one process
//! never mix. Nothing here asks a server: a scrape shows what the role's own work has found, and an
//! [`Age`] beside it says how long ago that was.

mod by_service;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, HistogramOpts, Opts, TextEncoder};
use tokio::time::Instant;

pub use self::by_service::{ByService, MOST_SERVICES, OTHER};
pub use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use crate::db::Connections;
use crate::http::ApiError;

/// Upper bounds of what is measured in seconds: from the commit of a fast disk to a minute, beyond
/// which only the fact matters.
const BOUNDS_SECONDS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// The metrics of one role in one process.
///
/// Names and labels are constants of the program. One that is wrong, or given twice, is a mistake
/// that the first start shows: every method that adds a metric panics then.
#[derive(Clone, Debug)]
pub struct Registry(prometheus::Registry);

impl Registry {
    /// A registry that says which role this is, and in which version.
    ///
    /// # Panics
    /// As every method here.
    #[must_use]
    pub fn new(role: &str) -> Self {
        let registry = Self(prometheus::Registry::new());
        let about =
            Opts::new("heartbeat_build_info", "The role of this listener, and its version.")
                .const_label("role", role)
                .const_label("version", env!("CARGO_PKG_VERSION"));
        let info = Gauge::with_opts(about).expect(NAMES);
        registry.keep(info).set(1.0);
        let about = ("heartbeat_uptime_seconds", "Time since this role started.");
        registry.age(about, &[]).renew();
        registry
    }

    /// A counter.
    ///
    /// # Panics
    /// As [`Registry::new`].
    #[must_use]
    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.keep(IntCounter::new(name, help).expect(NAMES))
    }

    /// A counter for each combination of labels. Those that are there from the beginning begin at
    /// zero, so that Prometheus sees the first increase; give those as `values`.
    ///
    /// # Panics
    /// As [`Registry::new`].
    #[must_use]
    pub fn counters<const LABELS: usize>(
        &self,
        (name, help): (&str, &str),
        labels: [&str; LABELS],
        values: &[[&str; LABELS]],
    ) -> IntCounterVec {
        let counters = IntCounterVec::new(Opts::new(name, help), &labels).expect(NAMES);
        for values in values {
            counters.with_label_values(values);
        }
        self.keep(counters)
    }

    /// A gauge.
    ///
    /// # Panics
    /// As [`Registry::new`].
    #[must_use]
    pub fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.keep(IntGauge::new(name, help).expect(NAMES))
    }

    /// A gauge for each combination of labels, none to begin with.
    ///
    /// # Panics
    /// As [`Registry::new`].
    #[must_use]
    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.keep(IntGaugeVec::new(Opts::new(name, help), labels).expect(NAMES))
    }

    /// A histogram of durations, in seconds.
    ///
    /// # Panics
    /// As [`Registry::new`].
    #[must_use]
    pub fn durations(&self, name: &str, help: &str) -> Histogram {
        let options = HistogramOpts::new(name, help).buckets(BOUNDS_SECONDS.to_vec());
        self.keep(Histogram::with_opts(options).expect(NAMES))
    }

    /// An age in seconds, left out until it is known.
    ///
    /// # Panics
    /// As [`Registry::new`].
    #[must_use]
    pub fn age(&self, (name, help): (&str, &str), labels: &[(&str, &str)]) -> Age {
        let age = Age::default();
        let shown = age.clone();
        self.reading((name, help), labels, move || shown.seconds());
        age
    }

    /// A gauge that is read at each scrape, and left out where there is nothing to read. Reading
    /// must not wait.
    ///
    /// # Panics
    /// As [`Registry::new`].
    pub fn reading(
        &self,
        (name, help): (&str, &str),
        labels: &[(&str, &str)],
        read: impl Fn() -> Option<f64> + Send + Sync + 'static,
    ) {
        let mut options = Opts::new(name, help);
        for (label, value) in labels {
            options = options.const_label(*label, *value);
        }
        let gauge = Gauge::with_opts(options).expect(NAMES);
        self.0.register(Box::new(Reading { gauge, read: Box::new(read) })).expect(NAMES);
    }

    /// The connections of a pool to a database, which `role` names.
    ///
    /// # Panics
    /// As [`Registry::new`].
    pub fn pool(
        &self,
        role: &str,
        connections: impl Fn() -> Connections + Clone + Send + Sync + 'static,
    ) {
        let show = |about, part: fn(Connections) -> u32| {
            let connections = connections.clone();
            let read = move || Some(f64::from(part(connections())));
            self.reading(about, &[("database", role)], read);
        };
        let name = "heartbeat_database_connections";
        show((name, "Open connections of this process."), |of| of.open);
        let name = "heartbeat_database_idle_connections";
        show((name, "Open connections of this process that nobody uses."), |of| of.idle);
        let name = "heartbeat_database_max_connections";
        show((name, "Most connections that this process opens."), |of| of.most);
    }

    /// What `GET /metrics` answers with.
    pub fn route<S: Clone + Send + Sync + 'static>(&self) -> MethodRouter<S> {
        let registry = self.clone();
        get(async move || registry.answer())
    }

    /// The answer itself.
    #[must_use]
    pub fn answer(&self) -> Response {
        match TextEncoder::new().encode_to_string(&self.0.gather()) {
            Ok(text) => ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
            Err(error) => ApiError::internal(error).into_response(),
        }
    }

    fn keep<C: Collector + Clone + 'static>(&self, metric: C) -> C {
        self.0.register(Box::new(metric.clone())).expect(NAMES);
        metric
    }
}

/// Why adding a metric cannot fail in a program that has started once.
const NAMES: &str = "names and labels are constants, valid and given once";

/// A gauge that is read when it is asked for.
struct Reading {
    gauge: Gauge,
    read: Box<dyn Fn() -> Option<f64> + Send + Sync>,
}

impl Collector for Reading {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(value) = (self.read)() else { return Vec::new() };
        self.gauge.set(value);
        self.gauge.collect()
    }
}

/// How old something is. It grows by itself, so that what nobody renews looks as old as it is.
///
/// An age, and not the instant that Prometheus' guide would have: it is known by one clock alone,
/// while the reader of an instant would compare ours, or that of Redis, with a third.
#[derive(Clone, Default)]
pub struct Age(Arc<Mutex<Option<(Duration, Instant)>>>);

impl Age {
    /// It is new.
    pub fn renew(&self) {
        self.set(Duration::ZERO);
    }

    /// It is so old now.
    pub fn set(&self, age: Duration) {
        *self.lock() = Some((age, Instant::now()));
    }

    /// Nobody knows how old it is.
    pub fn clear(&self) {
        *self.lock() = None;
    }

    /// How old it is now, if that is known.
    #[must_use]
    pub fn seconds(&self) -> Option<f64> {
        let known = *self.lock();
        known.map(|(age, since)| (age + since.elapsed()).as_secs_f64())
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Duration, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Age {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Age").field(&self.seconds()).finish()
    }
}

/// Measures how long something takes that succeeds.
///
/// # Errors
/// Those of the work, whose time says nothing.
pub async fn timed<T, E>(
    durations: &Histogram,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let began = Instant::now();
    let done = work.await;
    if done.is_ok() {
        durations.observe(began.elapsed().as_secs_f64());
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(registry: &Registry) -> String {
        TextEncoder::new().encode_to_string(&registry.0.gather()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_age_grows_until_it_is_renewed_and_is_absent_while_unknown() {
        let registry = Registry::new("test");
        let age = registry.age(("heartbeat_test_age_seconds", "An age."), &[("of", "it")]);
        assert!(!text(&registry).contains("heartbeat_test_age_seconds"));
        age.set(Duration::from_secs(5));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(text(&registry).contains("heartbeat_test_age_seconds{of=\"it\"} 7\n"));
        age.renew();
        assert_eq!(age.seconds(), Some(0.0));
        age.clear();
        assert!(!text(&registry).contains("heartbeat_test_age_seconds"));
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_succeeds_is_timed() {
        let durations = Registry::new("test").durations("heartbeat_test_seconds", "Durations.");
        let work = async |done: Result<(), ()>| {
            tokio::time::sleep(Duration::from_secs(3)).await;
            done
        };
        assert_eq!(timed(&durations, work(Ok(()))).await, Ok(()));
        assert_eq!(timed(&durations, work(Err(()))).await, Err(()));
        assert_eq!((durations.get_sample_count(), durations.get_sample_sum()), (1, 3.0));
    }

    #[test]
    fn counters_that_are_known_begin_at_zero_and_each_has_its_help() {
        let registry = Registry::new("test");
        let about = ("heartbeat_test_total", "Things.");
        registry.counters(about, ["kind"], &[["good"], ["bad"]]).with_label_values(&["bad"]).inc();
        let text = text(&registry);
        for line in [
            "# HELP heartbeat_test_total Things.",
            "# TYPE heartbeat_test_total counter",
            "heartbeat_test_total{kind=\"bad\"} 1",
            "heartbeat_test_total{kind=\"good\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
