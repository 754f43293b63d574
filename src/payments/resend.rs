//! Noticing that Redis may have lost what was written to it, and sending it again.
//!
//! Redis promises to keep an answered write only as far as its own settings and replicas go: a
//! failover may lose the last ones, and whoever empties it loses all. Both change its identity. The
//! audit holds everything that was ever sent, so that it can be sent again; what the monitor has
//! seen before, it drops.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Payments;
use super::publish::{self, PublishError};
use super::repository;
use crate::stream::{Observation, StreamError};
use crate::wire::Timestamp;
use crate::{db, shutdown};

/// Time between two looks at Redis.
const INTERVAL: Duration = Duration::from_secs(1);
/// How far back everything is sent again at least.
const AT_LEAST: Duration = Duration::from_mins(2);
/// The watermark is in whole milliseconds, and so are the ids of entries.
const MARGIN: Duration = Duration::from_millis(2);
/// How far delivery must have come before that is stored again.
const STORE_EVERY: Duration = Duration::from_secs(5);
/// Looks from one search for stragglers to the next.
const LOOKS_PER_SEARCH: u32 = 5;
/// Messages that one step sends again.
const SENDS_PER_STEP: u32 = 256;

/// The Redis that a service has seen to, by that Redis' clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Which Redis, and which data.
    pub identity: String,
    /// When it was seen last.
    pub seen_at: Timestamp,
    /// Everything published before has been delivered. None until a relay said so.
    pub delivered_until: Option<Timestamp>,
}

impl Known {
    fn new(seen: &Observation) -> Self {
        let Observation { identity, now, watermark } = seen.clone();
        Self { identity, seen_at: now, delivered_until: watermark }
    }

    /// Since when something may have been published and not delivered.
    #[must_use]
    pub fn undelivered_since(&self) -> Timestamp {
        let at_least = self.seen_at.minus(AT_LEAST);
        self.delivered_until.unwrap_or(at_least).minus(MARGIN)
    }

    /// Since when everything is sent again.
    #[must_use]
    pub fn resend_since(&self) -> Timestamp {
        self.undelivered_since().min(self.seen_at.minus(AT_LEAST))
    }
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
    /// The Redis to which everything is sent again that had not been delivered.
    caught_up_with: String,
    looks: u32,
}

impl Watch {
    /// Looks at Redis once, and sends again what it may have lost.
    ///
    /// # Errors
    /// When Redis or the database does not do its part; look again. What is sent already is marked,
    /// so that nothing is sent twice for that.
    pub async fn look(&mut self, payments: &Payments) -> Result<(), PublishError> {
        let seen = self.observe(payments).await?;
        let known = match &self.known {
            Some(known) => known.clone(),
            None => self.recall(payments, &seen).await?,
        };
        self.known = Some(known.clone());
        if known.identity == seen.identity {
            let delivered_until = known.delivered_until.max(seen.watermark);
            self.known = Some(Known { seen_at: seen.now, delivered_until, ..known });
            self.search_for_stragglers(payments, &seen).await?;
        } else if self.catch_up(payments, &known, &seen).await? {
            self.known = Some(Known::new(&seen));
        } else {
            return Ok(());
        }
        self.store(payments).await
    }

    /// Looks at Redis, and says which one this service has seen to.
    async fn observe(&self, payments: &Payments) -> Result<Observation, StreamError> {
        let seen_to = match &self.known {
            _ if !self.caught_up_with.is_empty() => self.caught_up_with.as_str(),
            Some(known) => known.identity.as_str(),
            None => "",
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
        Ok(self.stored.clone().unwrap_or_else(|| Known::new(seen)))
    }

    /// Sends again everything that a Redis which is not the known one may lack: first what was not
    /// delivered, for until then the service's windows are held. Answers false if Redis turned out
    /// to be yet another meanwhile.
    async fn catch_up(
        &mut self,
        payments: &Payments,
        known: &Known,
        seen: &Observation,
    ) -> Result<bool, PublishError> {
        let (since, undelivered_since) = (known.resend_since(), known.undelivered_since());
        tracing::warn!(
            %since,
            %undelivered_since,
            "Redis was emptied, replaced or restarted: sending again what it may lack"
        );
        self.announce_again(payments, &seen.identity, since).await?;
        for since in [undelivered_since, since] {
            if !self.send_again(payments, (&seen.identity, true), since).await? {
                return Ok(false);
            }
            self.caught_up_with.clone_from(&seen.identity);
        }
        tracing::info!("everything is sent again");
        Ok(true)
    }

    async fn announce_again(
        &self,
        payments: &Payments,
        identity: &str,
        since: Timestamp,
    ) -> Result<(), PublishError> {
        loop {
            let page = repository::announced_elsewhere(payments, identity, since, SENDS_PER_STEP);
            let windows = db::patiently(page).await?;
            if windows.is_empty() {
                return Ok(());
            }
            publish::announce(payments, &windows).await?;
        }
    }

    /// Sends again what was published since an instant, and not to this Redis. Answers false if it
    /// turned out to be yet another meanwhile.
    async fn send_again(
        &self,
        payments: &Payments,
        (identity, and_unknown): (&str, bool),
        since: Timestamp,
    ) -> Result<bool, PublishError> {
        let mut place = (since, 0);
        loop {
            let which = (identity, and_unknown);
            let page = repository::published_elsewhere(payments, which, place, SENDS_PER_STEP);
            let (ticks, last) = db::patiently(page).await?;
            let Some(last) = last else { return Ok(true) };
            publish::send(payments, &ticks).await?;
            place = last;
            if self.observe(payments).await?.identity != identity {
                return Ok(false);
            }
        }
    }

    /// Looks for what was written to another Redis and marked only after everything was sent again,
    /// by whatever process.
    async fn search_for_stragglers(
        &mut self,
        payments: &Payments,
        seen: &Observation,
    ) -> Result<(), PublishError> {
        self.looks = (self.looks + 1) % LOOKS_PER_SEARCH;
        if self.looks == 0 {
            let since = seen.now.minus(AT_LEAST);
            self.announce_again(payments, &seen.identity, since).await?;
            self.send_again(payments, (&seen.identity, false), since).await?;
        }
        Ok(())
    }

    /// Stores what is known, unless it is nearly what is stored.
    async fn store(&mut self, payments: &Payments) -> Result<(), PublishError> {
        let Some(known) = &self.known else { return Ok(()) };
        let is_news = self.stored.as_ref().is_none_or(|stored| {
            stored.identity != known.identity
                || stored.resend_since().plus(STORE_EVERY) <= known.resend_since()
        });
        if is_news {
            repository::remember_redis(payments, known).await?;
            self.stored = Some(known.clone());
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
    fn what_was_not_delivered_is_sent_again_and_at_least_two_minutes() {
        let since = |delivered_until| {
            let known = Known { identity: String::new(), seen_at: at(1_000), delivered_until };
            [known.undelivered_since().plus(MARGIN), known.resend_since()]
        };
        assert_eq!(since(None), [at(880), at(880).minus(MARGIN)]);
        assert_eq!(since(Some(at(999))), [at(999), at(880)]);
        assert_eq!(since(Some(at(500))), [at(500), at(500).minus(MARGIN)]);
    }
}
