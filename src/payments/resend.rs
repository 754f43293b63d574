//! Noticing that Redis may have lost what was written to it, and sending it again.
//!
//! Redis promises to keep an answered write only as far as its own settings and replicas go: a
//! failover may lose the last ones, and whoever empties it loses all. Both change its identity. The
//! audit holds everything that was ever sent, so that it can be sent again; what the monitor has
//! seen before, it drops. An original monitor does not: before one, nothing is sent again for good
//! measure.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Payments;
use super::publish::{self, PublishError};
use super::repository::{self, Elsewhere};
use crate::stream::{Observation, Repeats, StreamError};
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
/// How far delivery must have come while everything is sent again before that is stored.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// Looks from one search for stragglers to the next.
const LOOKS_PER_SEARCH: u32 = 5;
/// Looks for which it is remembered that a monitor counts again what comes again: as far back as
/// everything is sent again, for a Redis that was emptied has to be told anew.
const LOOKS_OF_REPEATS: u32 = 120;
/// Messages that one step sends again.
const SENDS_PER_STEP: u32 = 256;
/// Steps of one look that are for good measure.
const STEPS_PER_LOOK: u32 = 2;

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
        let Observation { identity, now, watermark, .. } = seen.clone();
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
    let present = be_present(&payments, watch.seen_to.subscribe(), &shutdown);
    let watching = async {
        let mut pause = Duration::ZERO;
        while shutdown::sleep(pause, &shutdown).await {
            pause = INTERVAL;
            let outcome = tokio::select! {
                outcome = watch.look(&payments) => outcome,
                () = shutdown.cancelled() => return,
            };
            let shown = outcome.as_ref().map_err(PublishError::advice);
            payments.readiness.note("watching redis", &shown);
            if let Err(error) = outcome {
                tracing::warn!(%error, "watching Redis failed; it will be tried again");
            }
        }
    };
    tokio::join!(present, watching);
    Ok(())
}

/// Tells Redis that this process is here, and which Redis it has seen to: at once when that changes,
/// and once a second. Also while the database does not answer, for until everything is sent again the
/// monitor has to wait.
async fn be_present(
    payments: &Payments,
    mut seen_to: watch::Receiver<SeenTo>,
    shutdown: &CancellationToken,
) {
    let mut pause = Duration::ZERO;
    loop {
        tokio::select! {
            go_on = shutdown::sleep(pause, shutdown) => if !go_on { return },
            Ok(()) = seen_to.changed() => (),
        }
        pause = INTERVAL;
        let seen_to = seen_to.borrow_and_update().clone();
        if let Err(error) = observe(payments, &seen_to).await {
            tracing::debug!(%error, "Redis cannot be told that this service is here");
        }
    }
}

/// Looks at Redis, and says which one this service has seen to.
async fn observe(payments: &Payments, seen_to: &SeenTo) -> Result<Observation, StreamError> {
    let process = payments.owner.to_string();
    let seen_to = (seen_to.identity.as_str(), seen_to.done_at);
    payments.producer.observe((payments.service.as_str(), &process), seen_to).await
}

/// The Redis to which everything is sent again that had not been delivered.
#[derive(Clone, Debug)]
struct SeenTo {
    identity: String,
    /// When the last of it was sent, by Redis' clock; long ago if nothing had to be.
    done_at: Timestamp,
}

impl Default for SeenTo {
    fn default() -> Self {
        Self { identity: String::new(), done_at: Timestamp::from_micros(0) }
    }
}

/// What a service knows of its Redis.
#[derive(Debug, Default)]
pub struct Watch {
    known: Option<Known>,
    /// As it is stored.
    stored: Option<Known>,
    seen_to: watch::Sender<SeenTo>,
    /// The lost Redis of which everything is sent again that had been delivered, for good measure.
    rest_of: Option<Known>,
    /// The last instant of which it is stored that all before has arrived.
    noted: Option<Timestamp>,
    looks: u32,
    /// Looks since a monitor was last said to count again what comes again, if any was lately.
    since_repeats: Option<u32>,
    /// What was published before had been delivered when this process began, or Redis was lost last.
    delivered_before: Option<Timestamp>,
}

impl Watch {
    /// Looks at Redis once, and sends again what it may have lost.
    ///
    /// # Errors
    /// When Redis or the database does not do its part; look again. What is sent already is marked,
    /// so that nothing is sent twice for that.
    pub async fn look(&mut self, payments: &Payments) -> Result<(), PublishError> {
        let seen_to = self.seen_to.borrow().clone();
        let seen = observe(payments, &seen_to).await?;
        let known = match &self.known {
            Some(known) => known.clone(),
            None => self.recall(payments, &seen).await?,
        };
        self.learn(&seen);
        self.delivered_before.get_or_insert(known.undelivered_since());
        payments.metrics.catching_up.set((known.identity != seen.identity).into());
        self.known = Some(known.clone());
        if known.identity == seen.identity {
            if seen_to.identity != seen.identity {
                let identity = seen.identity.clone();
                self.seen_to.send_replace(SeenTo { identity, ..SeenTo::default() });
            }
            let delivered_until = known.delivered_until.max(seen.watermark);
            self.known = Some(Known { seen_at: seen.now, delivered_until, ..known });
            self.send_rest(payments, &seen).await?;
            self.search_for_stragglers(payments, &seen).await?;
        } else if self.catch_up(payments, &known, &seen).await? {
            let done_at = observe(payments, &seen_to).await?.now;
            self.known = Some(Known::new(&seen));
            self.delivered_before = Some(known.undelivered_since());
            self.rest_of = Some(known);
            payments.metrics.catching_up.set(0);
            self.seen_to.send_replace(SeenTo { identity: seen.identity, done_at });
        } else {
            return Ok(());
        }
        payments.metrics.watch.renew();
        self.store(payments).await
    }

    fn learn(&mut self, seen: &Observation) {
        self.since_repeats = match seen.repeats {
            Repeats::CountedAgain => Some(0),
            Repeats::CountedOnce => {
                self.since_repeats.map(|looks| looks + 1).filter(|looks| *looks < LOOKS_OF_REPEATS)
            }
        };
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

    /// Sends again what was not delivered to the monitor and may be lost with the known Redis.
    /// Answers false if Redis turned out to be yet another meanwhile.
    async fn catch_up(
        &mut self,
        payments: &Payments,
        known: &Known,
        seen: &Observation,
    ) -> Result<bool, PublishError> {
        let since = known.undelivered_since();
        tracing::warn!(%since, "Redis was emptied, replaced or restarted: sending again");
        let identity = seen.identity.as_str();
        let which = Elsewhere { identity, and_unknown: true, and_delivered: false, only: None };
        let is_done = self.announce_again(payments, identity, known.resend_since()).await?
            && self.send_again(payments, which, since, u32::MAX).await?;
        if is_done {
            tracing::info!("everything that was not delivered is sent again");
        }
        Ok(is_done)
    }

    /// Sends again some of what had been delivered when Redis was lost, and nothing that went to
    /// another since: how far that had come is known. Slowly, because it is for good measure only,
    /// and must not keep new heartbeats waiting.
    async fn send_rest(
        &mut self,
        payments: &Payments,
        seen: &Observation,
    ) -> Result<(), PublishError> {
        if self.since_repeats.is_some() {
            self.rest_of = None;
        }
        let Some(lost) = self.rest_of.clone() else { return Ok(()) };
        let identity = seen.identity.as_str();
        let only = Some(lost.identity.as_str());
        let which = Elsewhere { identity, and_unknown: false, and_delivered: true, only };
        if self.send_again(payments, which, lost.resend_since(), STEPS_PER_LOOK).await? {
            self.rest_of = None;
        }
        Ok(())
    }

    /// Announces again the windows that were announced since an instant, and not to this Redis.
    /// Answers false if Redis turned out to be yet another: it took them, so that they would be
    /// found for ever.
    async fn announce_again(
        &self,
        payments: &Payments,
        identity: &str,
        since: Timestamp,
    ) -> Result<bool, PublishError> {
        loop {
            let page = repository::announced_elsewhere(payments, identity, since, SENDS_PER_STEP);
            let windows = db::patiently(page).await?;
            if windows.is_empty() {
                return Ok(true);
            }
            if publish::announce(payments, &windows).await? != identity {
                return Ok(false);
            }
            payments.metrics.announced_again.inc_by(windows.len() as u64);
        }
    }

    /// Sends again what was published since an instant, and not to this Redis, in so many steps at
    /// the most. Answers whether that was all; it was not if Redis turned out to be yet another.
    async fn send_again(
        &mut self,
        payments: &Payments,
        which: Elsewhere<'_>,
        since: Timestamp,
        steps: u32,
    ) -> Result<bool, PublishError> {
        let mut place = (since, 0);
        for _ in 0..steps {
            let page = repository::published_elsewhere(payments, which, place, SENDS_PER_STEP);
            let (ticks, last) = db::patiently(page).await?;
            let Some(last) = last else { return Ok(true) };
            publish::send(payments, &ticks).await?;
            payments.metrics.sent_again.inc_by(ticks.len() as u64);
            place = last;
            let seen_to = self.seen_to.borrow().clone();
            let seen = observe(payments, &seen_to).await?;
            if seen.identity != which.identity {
                return Ok(false);
            }
            if !which.and_delivered {
                self.note_delivered(payments, &seen).await?;
            }
        }
        Ok(false)
    }

    /// Stores how far delivery has come with a Redis while everything is sent again to it: should
    /// it be lost before that is done, the next need not get all from the beginning. Otherwise a
    /// service to which this happens again and again would have more to send each time.
    async fn note_delivered(
        &mut self,
        payments: &Payments,
        seen: &Observation,
    ) -> Result<(), PublishError> {
        let Some(until) = seen.watermark.map(|watermark| watermark.minus(MARGIN)) else {
            return Ok(());
        };
        if self.noted.is_none_or(|noted| until < noted || noted.plus(NOTE_EVERY) <= until) {
            repository::note_delivered(payments, &seen.identity, until).await?;
            self.noted = Some(until);
        }
        Ok(())
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
            let lately = seen.now.minus(AT_LEAST);
            let since = match self.since_repeats {
                Some(_) => self.delivered_before.map_or(lately, |before| before.max(lately)),
                None => lately,
            };
            if self.announce_again(payments, &seen.identity, since).await? {
                let identity = seen.identity.as_str();
                let which =
                    Elsewhere { identity, and_unknown: false, and_delivered: true, only: None };
                self.send_again(payments, which, since, STEPS_PER_LOOK).await?;
            }
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
    fn it_is_remembered_for_a_time_that_a_monitor_counts_again() {
        let seen =
            |repeats| Observation { identity: String::new(), now: at(0), watermark: None, repeats };
        let mut watch = Watch::default();
        watch.learn(&seen(Repeats::CountedAgain));
        for look in 1..LOOKS_OF_REPEATS {
            watch.learn(&seen(Repeats::CountedOnce));
            assert_eq!(watch.since_repeats, Some(look));
        }
        watch.learn(&seen(Repeats::CountedOnce));
        assert_eq!(watch.since_repeats, None);
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
