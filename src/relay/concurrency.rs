//! How many requests are under way at a time: as many as the monitor takes well.
//!
//! Additive increase, multiplicative decrease (Chiu and Jain, "Analysis of the increase and decrease
//! algorithms for congestion avoidance in computer networks", 1989): one more after as many
//! successes as there are places, half of them after the monitor has had to turn a request away.
//! Relays that share a monitor so come to share it fairly.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// The monitor took it.
    Taken,
    /// The monitor could not take it now, or did not answer.
    TooMuch,
}

/// Places for requests, whose number changes.
#[derive(Debug)]
pub struct Concurrency {
    free: Arc<Semaphore>,
    rule: Mutex<Rule>,
}

impl Concurrency {
    /// One place to begin with, and `most` at the most.
    #[must_use]
    pub fn new(most: u32) -> Self {
        let free = Arc::new(Semaphore::new(1));
        Self { free, rule: Mutex::new(Rule::new(most)) }
    }

    /// A place, when one is free.
    pub async fn place(&self) -> Option<OwnedSemaphorePermit> {
        loop {
            let place = Arc::clone(&self.free).acquire_owned().await.ok()?;
            if !self.lock().is_one_too_many() {
                return Some(place);
            }
            place.forget();
        }
    }

    /// Places that are free at this moment, at most so many.
    pub fn free_places(&self, most: usize) -> Vec<OwnedSemaphorePermit> {
        let mut places = Vec::new();
        while places.len() < most
            && let Ok(place) = Arc::clone(&self.free).try_acquire_owned()
        {
            if self.lock().is_one_too_many() {
                place.forget();
            } else {
                places.push(place);
            }
        }
        places
    }

    /// Learns what came of a request.
    pub fn learn(&self, load: Load) {
        let more = self.lock().learn(load);
        self.free.add_permits(more);
    }

    fn lock(&self) -> MutexGuard<'_, Rule> {
        self.rule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The rule, apart from any place.
#[derive(Debug)]
struct Rule {
    most: u32,
    /// How many places there should be.
    wanted: u32,
    /// How many there are beyond, until they come free.
    beyond: u32,
    /// Successes since the last change.
    successes: u32,
}

impl Rule {
    fn new(most: u32) -> Self {
        Self { most: most.max(1), wanted: 1, beyond: 0, successes: 0 }
    }

    /// Answers how many places come to be at once.
    fn learn(&mut self, load: Load) -> usize {
        match load {
            Load::Taken => {
                self.successes = self.successes.saturating_add(1);
                if self.successes < self.wanted || self.wanted == self.most {
                    return 0;
                }
                self.wanted += 1;
                self.successes = 0;
                // One that should have gone may stay.
                let stays = self.beyond > 0;
                self.beyond -= u32::from(stays);
                usize::from(!stays)
            }
            Load::TooMuch => {
                // Those under way at the same moment all tell of the same.
                if self.beyond == 0 {
                    let fewer = self.wanted.div_ceil(2);
                    self.beyond = self.wanted - fewer;
                    self.wanted = fewer;
                }
                self.successes = 0;
                0
            }
        }
    }

    /// Whether a place that has come free is to go.
    fn is_one_too_many(&mut self) -> bool {
        let goes = self.beyond > 0;
        self.beyond -= u32::from(goes);
        goes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_grows_by_one_a_round_and_halves() {
        let mut rule = Rule::new(6);
        let mut places = 1;
        let mut grown = Vec::new();
        for _ in 0..30 {
            places += rule.learn(Load::Taken);
            grown.push(places);
        }
        assert_eq!(grown[..11], [2, 2, 3, 3, 3, 4, 4, 4, 4, 5, 5]);
        assert_eq!(places, 6, "and no further");
        for _ in 0..6 {
            assert_eq!(rule.learn(Load::TooMuch), 0);
        }
        assert_eq!((rule.wanted, rule.beyond), (3, 3), "six that fail at once are one failure");
        assert_eq!([0; 4].map(|_| rule.is_one_too_many()), [true, true, true, false]);
        assert_eq!(rule.learn(Load::TooMuch), 0);
        assert_eq!(rule.wanted, 2);
    }

    #[tokio::test]
    async fn places_come_and_go() {
        let concurrency = Concurrency::new(4);
        let first = concurrency.place().await.unwrap();
        concurrency.learn(Load::Taken);
        let second = concurrency.place().await.unwrap();
        concurrency.learn(Load::TooMuch);
        drop(first);
        let waiting =
            tokio::time::timeout(std::time::Duration::from_millis(20), concurrency.place());
        assert!(waiting.await.is_err(), "the one that came free is gone");
        drop(second);
        assert!(concurrency.place().await.is_some(), "the last one stays");
        assert_eq!(concurrency.free_places(9).len(), 1, "it is free again");
    }

    proptest! {
        /// There is always a place, and never more than the most.
        #[test]
        fn places_are_bounded(most in 1_u32..9, loads in prop::collection::vec(0..3, 0..200)) {
            let mut rule = Rule::new(most);
            let mut places = 1_usize;
            for load in loads {
                match load {
                    0 => places += rule.learn(Load::Taken),
                    1 => places += rule.learn(Load::TooMuch),
                    _ => places -= usize::from(rule.is_one_too_many()),
                }
                prop_assert!(1 <= places && places <= most as usize);
                prop_assert_eq!(places, (rule.wanted + rule.beyond) as usize);
            }
        }
    }
}
