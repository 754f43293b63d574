//! The gate before the monitor: open while it answers, shut while it does not.
//!
//! All deliveries of a relay share it. While it is shut nothing is read, so that the stream holds
//! the backlog, and one delivery at a time tries whether the monitor is back. When it is, all
//! waiting ends at once, however long the pauses had grown.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::forward::Answer;
use crate::retry::breaker::{Breaker, Permit};
use crate::wire;

/// A circuit breaker that deliveries wait at.
#[derive(Debug, Default)]
pub struct Gate {
    guarded: Mutex<Guarded>,
    state: watch::Sender<State>,
}

#[derive(Debug, Default)]
struct Guarded {
    breaker: Breaker,
    /// Why the monitor took nothing when it was last asked.
    reason: String,
}

/// What those who wait are told.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    is_shut: bool,
    /// How often the gate was opened, so that nobody misses an opening that did not last.
    openings: u64,
}

impl Gate {
    /// Waits until the monitor answers. For those who take new work.
    pub async fn opened(&self) {
        // An error would mean that the sender is gone, and it is part of this gate.
        self.state.subscribe().wait_for(|state| !state.is_shut).await.ok();
    }

    /// Waits for a delivery's turn: until it is due, or the gate opens again, or the gate lets it
    /// through as a probe.
    pub async fn turn(&self, due: Instant) {
        let mut changes = self.state.subscribe();
        let openings = changes.borrow_and_update().openings;
        loop {
            let until = match self.lock().breaker.permit(Instant::now()) {
                Permit::Probe => return,
                Permit::Call if due <= Instant::now() => return,
                Permit::Call => due,
                Permit::Wait(until) => until,
            };
            tokio::select! {
                () = sleep_until(until) => (),
                _ = changes.changed() => {
                    if changes.borrow_and_update().openings > openings {
                        return;
                    }
                }
            }
        }
    }

    /// Learns from an answer whether the monitor takes messages.
    pub fn learn(&self, answer: &Answer) {
        let mut guarded = self.lock();
        let changed = match answer {
            Answer::Taken(_) | Answer::Refused(_) => guarded.breaker.succeeded(),
            Answer::Unavailable { reason, .. } | Answer::Misconfigured(reason) => {
                guarded.reason.clone_from(reason);
                guarded.breaker.failed(Instant::now())
            }
            // A failure may be the message's fault; the others say nothing of the monitor.
            Answer::Failed(_) | Answer::OneByOne | Answer::NotForOldMonitors => false,
        };
        if !changed {
            return;
        }
        // Told while the breaker is locked: of two changes, the last is then also told last.
        let is_shut = guarded.breaker.is_open();
        self.state.send_modify(|state| {
            state.is_shut = is_shut;
            state.openings += u64::from(!is_shut);
        });
        drop(guarded);
        if is_shut {
            tracing::warn!("the monitor takes nothing: reading stops until it does");
        } else {
            tracing::info!("the monitor takes messages again");
        }
    }

    /// Whether the gate is open, and if not, why.
    #[must_use]
    pub fn report(&self) -> wire::Breaker {
        let guarded = self.lock();
        if guarded.breaker.is_open() {
            wire::Breaker::Open { reason: guarded.reason.clone() }
        } else {
            wire::Breaker::Closed
        }
    }

    fn lock(&self) -> MutexGuard<'_, Guarded> {
        self.guarded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    fn away() -> Answer {
        Answer::Unavailable { reason: "away".to_owned(), wait: None }
    }

    fn shut() -> Arc<Gate> {
        let gate = Gate::default();
        for _ in 0..3 {
            gate.learn(&away());
        }
        Arc::new(gate)
    }

    #[test]
    fn who_waits_is_told_of_the_last_change_last() {
        for _ in 0..2_000 {
            let gate = shut();
            std::thread::scope(|scope| {
                scope.spawn(|| gate.learn(&Answer::Taken(Vec::new())));
                scope.spawn(|| (0..3).for_each(|_| gate.learn(&away())));
            });
            assert_eq!(gate.state.borrow().is_shut, gate.lock().breaker.is_open());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn when_it_opens_all_waiting_ends() {
        let gate = shut();
        let start = Instant::now();
        let waiting = Arc::clone(&gate);
        let reader = tokio::spawn(async move { waiting.opened().await });
        // The first to wait becomes the probe after a second; the other would wait for minutes.
        gate.turn(start + Duration::from_mins(5)).await;
        assert_eq!(start.elapsed().as_secs(), 1);
        let waiting = Arc::clone(&gate);
        let other = tokio::spawn(async move { waiting.turn(start + Duration::from_mins(5)).await });
        tokio::task::yield_now().await;
        assert!(!reader.is_finished());
        gate.learn(&Answer::Taken(Vec::new()));
        other.await.unwrap();
        reader.await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn while_it_is_shut_one_probe_goes_through_per_interval() {
        let gate = shut();
        let start = Instant::now();
        let mut turns = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let gate = Arc::clone(&gate);
            turns.spawn(async move {
                gate.turn(start).await;
                start.elapsed().as_secs()
            });
        }
        let mut passed = turns.join_all().await;
        passed.sort_unstable();
        assert_eq!(passed, [1, 3, 7, 15]);
    }

    #[tokio::test(start_paused = true)]
    async fn while_it_is_open_a_delivery_waits_until_it_is_due() {
        let gate = Gate::default();
        let start = Instant::now();
        gate.turn(start + Duration::from_secs(7)).await;
        assert_eq!(start.elapsed().as_secs(), 7);
    }
}
