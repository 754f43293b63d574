//! Metrics for each service, for so many services and no more.
//!
//! Names of services come from outside. Each makes series that Prometheus keeps for weeks, so that
//! whoever may send could fill its memory with names.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// Services that one process labels by name: those that it met first since it started.
pub const MOST_SERVICES: usize = 200;
/// The label of all others, and of messages that name no service that can be read.
pub const OTHER: &str = "other";

/// Something for each service.
pub struct ByService<T> {
    known: RwLock<HashMap<String, Arc<T>>>,
    other: Arc<T>,
    make: Box<dyn Fn(&str) -> T + Send + Sync>,
}

impl<T> ByService<T> {
    /// Nobody is met yet. `make` makes what belongs to a label.
    pub fn new(make: impl Fn(&str) -> T + Send + Sync + 'static) -> Self {
        let other = Arc::new(make(OTHER));
        Self { known: RwLock::default(), other, make: Box::new(make) }
    }

    /// What belongs to a service.
    #[must_use]
    pub fn of(&self, service: &str) -> Arc<T> {
        if let Some(found) = self.find(service) {
            return found;
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get(service) {
            return Arc::clone(found);
        }
        if known.len() >= MOST_SERVICES || service == OTHER {
            return Arc::clone(&self.other);
        }
        let made = Arc::new((self.make)(service));
        known.insert(service.to_owned(), Arc::clone(&made));
        made
    }

    /// The same for a name that somebody only claims: it takes no place.
    #[must_use]
    pub fn of_known(&self, service: &str) -> Arc<T> {
        self.find(service).unwrap_or_else(|| self.other())
    }

    /// What belongs to all others.
    #[must_use]
    pub fn other(&self) -> Arc<T> {
        Arc::clone(&self.other)
    }

    fn find(&self, service: &str) -> Option<Arc<T>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(service).cloned()
    }
}

impl<T> fmt::Debug for ByService<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).len();
        formatter.debug_struct("ByService").field("known", &known).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_have_names_and_the_rest_share_one() {
        let labels = ByService::new(str::to_owned);
        assert_eq!(*labels.of_known("service-0"), OTHER, "a claim takes no place");
        for number in 0..MOST_SERVICES + 3 {
            let name = format!("service-{number}");
            let expected = if number < MOST_SERVICES { name.as_str() } else { OTHER };
            assert_eq!(*labels.of(&name), expected);
        }
        assert_eq!(*labels.of("service-7"), "service-7");
        assert_eq!(*labels.of_known("service-7"), "service-7");
        assert!(Arc::ptr_eq(&labels.of(OTHER), &labels.other()));
    }

    #[test]
    fn a_service_named_other_takes_no_place() {
        let labels = ByService::new(str::to_owned);
        assert!(Arc::ptr_eq(&labels.of(OTHER), &labels.other()));
        assert!(labels.find(OTHER).is_none());
    }
}
