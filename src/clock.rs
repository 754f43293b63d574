//! The only reader of the system's time. Everything else is told what time it is, so that tests
//! choose the time instead of waiting for it.

use crate::wire::Timestamp;

/// The present instant.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the one place that may ask")]
pub fn now() -> Timestamp {
    let now: Timestamp = chrono::Utc::now().into();
    now.plus_micros(offset_us())
}

/// How far the clock is set wrong on purpose, which only builds for tests allow.
#[cfg(debug_assertions)]
fn offset_us() -> i64 {
    static OFFSET: std::sync::LazyLock<i64> = std::sync::LazyLock::new(|| {
        let millis = std::env::var("HEARTBEAT_CLOCK_OFFSET_MS").ok();
        millis.and_then(|millis| millis.parse().ok()).map_or(0, |millis: i64| millis * 1_000)
    });
    *OFFSET
}

#[cfg(not(debug_assertions))]
const fn offset_us() -> i64 {
    0
}
