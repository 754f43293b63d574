//! The only reader of the system's time. Everything else is told what time it is, so that tests
//! choose the time instead of waiting for it.

use crate::wire::Timestamp;

/// The present instant.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the one place that may ask")]
pub fn now() -> Timestamp {
    chrono::Utc::now().into()
}
