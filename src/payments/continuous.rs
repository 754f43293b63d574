//! Opening windows back to back, each stored and announced before the last one ends.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::emitter::Emitter;
use super::plan::{Overrides, Plan};
use super::{Payments, repository};
use crate::wire::{Timestamp, WireError};
use crate::{clock, db, shutdown};

/// How long before the end of a window the next one is opened.
const LEAD: Duration = Duration::from_secs(5);
/// Pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Why the next window was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The database failed.
    #[error("the payments database failed: {0}")]
    Database(#[from] db::Error),
    /// The chosen length and tick make no window.
    #[error("{0}")]
    Plan(#[from] WireError),
}

/// Opens windows until told to stop. `duration` is that of each, or random.
///
/// # Errors
/// A duration and tick that make no window.
pub async fn run(
    payments: Payments,
    emitter: Emitter,
    duration: Option<Duration>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut pause = Duration::ZERO;
    while shutdown::sleep(pause, &shutdown).await {
        pause = match open_next(&payments, &emitter, duration, clock::now()).await {
            Ok(pause) => pause,
            Err(OpenError::Plan(error)) => anyhow::bail!("--window-duration: {error}"),
            Err(error) => {
                tracing::warn!(%error, "the next window was not opened; it will be tried again");
                PAUSE
            }
        };
    }
    Ok(())
}

/// Opens the next window if the last one of the series ends soon; windows that were asked for do
/// not matter. Answers how long to wait before the next call.
///
/// The uuid of a window follows from its service and start, so that of several replicas which open
/// the same window only one succeeds.
///
/// # Errors
/// When the database does not do its part, or the choices make no window.
pub async fn open_next(
    payments: &Payments,
    emitter: &Emitter,
    duration: Option<Duration>,
    now: Timestamp,
) -> Result<Duration, OpenError> {
    let Payments { pool, service, default_tick, .. } = payments;
    let last_end = db::patiently(repository::last_continuous_end(pool, service)).await?;
    if let Some(end) = last_end.filter(|end| *end > now.plus(LEAD)) {
        return Ok(now.until(end.minus(LEAD)));
    }
    // On a whole tick, so that replicas which look at nearly the same moment mean the same window.
    let beyond = now.micros().rem_euclid(default_tick.micros());
    let tick = now.plus_micros(-beyond);
    let from = last_end.map_or(tick, |end| end.max(tick));
    let name = format!("heartbeat window {service} {}", from.micros());
    let uuid = Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes());
    let overrides = Overrides {
        duration_sec: duration.map(|length| length.as_secs_f64()),
        ..Overrides::default()
    };
    let identity = (uuid, service.clone());
    let plan = Plan::draw(&overrides, identity, from, *default_tick, rand::random())?;
    emitter.open_continuous(plan).await?;
    Ok(Duration::ZERO)
}
