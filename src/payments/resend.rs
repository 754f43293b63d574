//! Noticing that Redis may have lost what was written to it, and sending it again.
//!
//! Redis promises to keep an answered write only as far as its own settings and replicas go: a
//! failover may lose the last ones, and whoever empties it loses all. Both change its identity. The
//! audit holds everything that was ever sent, so that it can be sent again; what the monitor has
//! seen before, it drops.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Payments;
use super::publish::{self, PublishError};
use super::repository::{self, Place};
use crate::stream::{Observation, StreamError};
use crate::wire::{Announcement, Timestamp};
use crate::{clock, db, shutdown};

/// Time between two looks at Redis.
const INTERVAL: Duration = Duration::from_secs(1);
/// How far back everything is sent again at least.
const AT_LEAST: Duration = Duration::from_mins(2);
/// What is added to that, because clocks of hosts differ.
const MARGIN: Duration = Duration::from_secs(10);
/// How far delivery must have come before that is stored again.
const STORE_EVERY: Duration = Duration::from_secs(5);
/// Messages that one step sends again.
const SENDS_PER_STEP: u32 = 256;

/// The Redis that a service has written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Which Redis, and which data.
    pub identity: String,
    /// By our clock: everything published before has been delivered. None until a relay said so.
    pub delivered_until: Option<Timestamp>,
}

impl Known {
    /// The spans of time in which everything that was published must be sent again: first what is
    /// not known to be delivered, then what reaches back as far as anything is sent again.
    #[must_use]
    pub fn resend_spans(&self, now: Timestamp) -> [(Timestamp, Timestamp); 2] {
        let at_least = now.minus(AT_LEAST).minus(MARGIN);
        let undelivered = self.delivered_until.map_or(at_least, |until| until.minus(MARGIN));
        [(undelivered, now), (undelivered.min(at_least), undelivered)]
    }
}

/// By our clock, the instant before which everything published has been delivered.
fn delivered_until(seen: &Observation, now: Timestamp) -> Option<Timestamp> {
    Some(now.minus(seen.watermark?.until(seen.now)))
}

/// Watches Redis until told to stop.
///
/// # Errors
/// Never; failures are logged, shown by `/ready`, and tried again.
pub async fn run(payments: Payments, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut watch = Watch::default();
    let mut pause = Duration::ZERO;
    while shutdown::sleep(pause, &shutdown).await {
        let outcome = tokio::select! {
            outcome = watch.look(&payments) => outcome,
            () = shutdown.cancelled() => return Ok(()),
        };
        let shown = outcome.as_ref().map_err(PublishError::advice);
        payments.readiness.note("watching redis", &shown);
        if let Err(error) = outcome {
            tracing::warn!(%error, "watching Redis failed; it will be tried again");
        }
        pause = INTERVAL;
    }
    Ok(())
}

/// What a service knows of its Redis.
#[derive(Debug, Default)]
pub struct Watch {
    known: Option<Known>,
    /// As it is stored.
    stored: Option<Known>,
    /// What is being sent again.
    catching_up: Option<CatchingUp>,
}

/// How far sending again has come.
#[derive(Debug)]
struct CatchingUp {
    /// The Redis that gets it.
    identity: String,
    /// Whether the windows are announced again.
    announced: bool,
    /// Spans of the audit that are left to do, each from a place on and before an instant. What was
    /// not delivered comes first: until it is done, the service's windows are held.
    spans: VecDeque<(Place, Timestamp)>,
    /// Whether everything is sent again that was not delivered.
    is_delivered_again: bool,
}

impl Watch {
    /// Looks at Redis once, and sends again what it may have lost.
    ///
    /// # Errors
    /// When Redis or the database does not do its part; look again, and it goes on where it was.
    pub async fn look(&mut self, payments: &Payments) -> Result<(), PublishError> {
        let seen = self.observe(payments).await?;
        if self.known.is_none() {
            self.known = Some(self.recall(payments, &seen).await?);
        }
        if self.known.as_ref().is_some_and(|known| known.identity != seen.identity) {
            self.catch_up(payments, seen).await?;
        } else if let Some(known) = &mut self.known {
            known.delivered_until = known.delivered_until.max(delivered_until(&seen, clock::now()));
        }
        self.store(payments).await
    }

    /// Looks at Redis, and says which one this service has seen to.
    async fn observe(&self, payments: &Payments) -> Result<Observation, StreamError> {
        let seen_to = match (&self.catching_up, &self.known) {
            (Some(rest), _) if rest.is_delivered_again => rest.identity.as_str(),
            (_, Some(known)) => known.identity.as_str(),
            (_, None) => "",
        };
        let process = payments.owner.to_string();
        payments.producer.observe((payments.service.as_str(), &process), seen_to).await
    }

    /// What an earlier run of the service has stored; else what it sees now.
    async fn recall(
        &mut self,
        payments: &Payments,
        seen: &Observation,
    ) -> Result<Known, PublishError> {
        self.stored = db::patiently(repository::known_redis(payments)).await?;
        let first = || Known { identity: seen.identity.clone(), delivered_until: None };
        Ok(self.stored.clone().unwrap_or_else(first))
    }

    /// Sends again everything that a Redis which is not the known one may lack.
    async fn catch_up(
        &mut self,
        payments: &Payments,
        mut seen: Observation,
    ) -> Result<(), PublishError> {
        loop {
            let Some(known) = &mut self.known else { return Ok(()) };
            let is_begun =
                self.catching_up.as_ref().is_some_and(|rest| rest.identity == seen.identity);
            if !is_begun {
                // Before the audit is read: whoever publishes and marks at this very time then knows
                // that it may have written to the old Redis, and sends once more.
                payments.replaced.fetch_add(1, Ordering::SeqCst);
                let rest = CatchingUp::begin(known, seen.identity.clone(), clock::now());
                self.catching_up = Some(rest);
            }
            let Some(rest) = &mut self.catching_up else { return Ok(()) };
            if rest.step(payments).await? {
                known.identity = seen.identity;
                self.catching_up = None;
                tracing::info!("everything is sent again");
                return Ok(());
            }
            seen = self.observe(payments).await?;
        }
    }

    /// Stores what is known, unless it is nearly what is stored.
    async fn store(&mut self, payments: &Payments) -> Result<(), PublishError> {
        let Some(known) = &self.known else { return Ok(()) };
        let is_news = self.stored.as_ref().is_none_or(|stored| {
            stored.identity != known.identity
                || known.delivered_until.is_some_and(|until| {
                    stored.delivered_until.is_none_or(|stored| stored.plus(STORE_EVERY) <= until)
                })
        });
        if is_news {
            repository::remember_redis(payments, known).await?;
            self.stored = Some(known.clone());
        }
        Ok(())
    }
}

impl CatchingUp {
    fn begin(known: &Known, identity: String, now: Timestamp) -> Self {
        let [urgent, rest] = known.resend_spans(now);
        tracing::warn!(
            since = %rest.0,
            undelivered_since = %urgent.0,
            "Redis was emptied, replaced or restarted: sending everything again"
        );
        let spans = [urgent, rest].map(|(from, until)| ((from, 0), until));
        Self { identity, announced: false, spans: spans.into(), is_delivered_again: false }
    }

    /// Sends some. Answers whether that was all.
    async fn step(&mut self, payments: &Payments) -> Result<bool, PublishError> {
        if !self.announced {
            self.announce(payments).await?;
            self.announced = true;
        }
        let Some((place, until)) = self.spans.front_mut() else { return Ok(true) };
        let page = repository::published_between(payments, *place, *until, SENDS_PER_STEP);
        let (ticks, last) = db::patiently(page).await?;
        publish::send(payments, &ticks).await?;
        if let Some(last) = last {
            *place = last;
        } else {
            self.spans.pop_front();
            self.is_delivered_again = true;
        }
        Ok(self.spans.is_empty())
    }

    /// Announces again the windows that may be unknown.
    async fn announce(&self, payments: &Payments) -> Result<(), PublishError> {
        let Some(((since, _), _)) = self.spans.back() else { return Ok(()) };
        let windows = db::patiently(repository::announced_since(payments, *since)).await?;
        let now = clock::now();
        for windows in windows.chunks(SENDS_PER_STEP as usize) {
            let announcements =
                windows.iter().map(|window| Announcement::new(window.clone(), now).to_json());
            let announcements: Vec<String> = announcements.collect();
            payments.producer.publish_announcements(&announcements).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(1_795_000_000_000_000 + seconds * 1_000_000)
    }

    #[test]
    fn what_was_not_delivered_is_sent_again_first_and_then_at_least_two_minutes() {
        let spans = |delivered_until| {
            let spans = Known { identity: String::new(), delivered_until }.resend_spans(at(1_000));
            spans.map(|(from, until)| [from, until].map(|at_| at_.until(at(1_000)).as_secs()))
        };
        assert_eq!(spans(None), [[130, 0], [130, 130]]);
        assert_eq!(spans(Some(at(999))), [[11, 0], [130, 11]]);
        assert_eq!(spans(Some(at(500))), [[510, 0], [510, 510]]);
    }

    #[test]
    fn a_watermark_is_read_by_our_own_clock() {
        // Our clock is 100 s ahead of Redis', and delivery 7 s behind.
        let seen = |watermark| Observation { identity: String::new(), now: at(900), watermark };
        assert_eq!(delivered_until(&seen(Some(at(893))), at(1_000)), Some(at(993)));
        assert_eq!(delivered_until(&seen(None), at(1_000)), None);
    }
}
