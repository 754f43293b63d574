//! Noticing that Redis may have lost what was written to it, and sending it again.
//!
//! Redis promises to keep an answered write only as far as its own settings and replicas go: a
//! failover may lose the last ones, and whoever empties it loses all. Both change its identity. The
//! audit holds everything that was ever sent, so that it can be sent again; what the monitor has
//! seen before, it drops.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::publish::{self, PublishError};
use super::{Payments, repository};
use crate::stream::Observation;
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
    /// From when on everything must be sent again that was published.
    #[must_use]
    pub fn resend_since(&self, now: Timestamp) -> Timestamp {
        let at_least = now.minus(AT_LEAST);
        self.delivered_until.map_or(at_least, |until| until.min(at_least)).minus(MARGIN)
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
}

impl Watch {
    /// Looks at Redis once, and sends again what it may have lost.
    ///
    /// # Errors
    /// When Redis or the database does not do its part; look again. What was sent again before the
    /// failure is then sent once more, which is harmless.
    pub async fn look(&mut self, payments: &Payments) -> Result<(), PublishError> {
        let seen = payments.producer.observe().await?;
        let mut known = match self.known.take() {
            Some(known) => known,
            None => self.recall(payments, &seen).await?,
        };
        if known.identity == seen.identity {
            known.delivered_until = known.delivered_until.max(delivered_until(&seen, clock::now()));
        } else {
            self.known = Some(known.clone());
            resend(payments, &known).await?;
            known.identity = seen.identity;
        }
        self.known = Some(known.clone());
        self.store(payments, known).await
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

    /// Stores what is known, unless it is nearly what is stored.
    async fn store(&mut self, payments: &Payments, known: Known) -> Result<(), PublishError> {
        let is_news = self.stored.as_ref().is_none_or(|stored| {
            stored.identity != known.identity
                || known.delivered_until.is_some_and(|until| {
                    stored.delivered_until.is_none_or(|stored| stored.plus(STORE_EVERY) <= until)
                })
        });
        if is_news {
            repository::remember_redis(payments, &known).await?;
            self.stored = Some(known);
        }
        Ok(())
    }
}

/// Sends again everything that a Redis which is not the known one may lack.
async fn resend(payments: &Payments, known: &Known) -> Result<(), PublishError> {
    // Before the audit is read: whoever publishes and marks at this very time then knows that it
    // may have written to the old Redis, and sends once more.
    payments.replaced.fetch_add(1, Ordering::SeqCst);
    let now = clock::now();
    let since = known.resend_since(now);
    tracing::warn!(%since, "Redis was emptied, replaced or restarted: sending everything again");
    let windows = db::patiently(repository::announced_since(payments, since)).await?;
    for windows in windows.chunks(SENDS_PER_STEP as usize) {
        let announcements = windows.iter().cloned();
        let announcements = announcements.map(|window| Announcement::new(window, now).to_json());
        let announcements: Vec<String> = announcements.collect();
        payments.producer.publish_announcements(&announcements).await?;
    }
    let (mut place, mut heartbeats) = ((since, 0), 0);
    loop {
        let page = repository::published_between(payments, place, now, SENDS_PER_STEP);
        let (ticks, last) = db::patiently(page).await?;
        let Some(last) = last else { break };
        heartbeats += ticks.len();
        publish::send(payments, &ticks).await?;
        place = last;
    }
    tracing::info!(windows = windows.len(), heartbeats, "everything is sent again");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(1_795_000_000_000_000 + seconds * 1_000_000)
    }

    #[test]
    fn at_least_two_minutes_are_sent_again_and_all_that_was_not_delivered() {
        let since = |delivered_until| {
            Known { identity: String::new(), delivered_until }.resend_since(at(1_000))
        };
        assert_eq!(since(None), at(870));
        assert_eq!(since(Some(at(999))), at(870));
        assert_eq!(since(Some(at(500))), at(490));
    }

    #[test]
    fn a_watermark_is_read_by_our_own_clock() {
        // Our clock is 100 s ahead of Redis', and delivery 7 s behind.
        let seen = |watermark| Observation { identity: String::new(), now: at(900), watermark };
        assert_eq!(delivered_until(&seen(Some(at(893))), at(1_000)), Some(at(993)));
        assert_eq!(delivered_until(&seen(None), at(1_000)), None);
    }
}
