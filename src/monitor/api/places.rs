//! How many lists are read at a time, so that they leave connections to those who bring heartbeats.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Monitor;
use crate::http::ApiError;

/// Most lists at a time: a quarter of the connections.
const PLACES: usize = 4;
/// How long a request waits for a place.
const PATIENCE: Duration = Duration::from_secs(1);

/// Lists that may be read at a time.
#[derive(Debug)]
pub struct Places(Arc<Semaphore>);

impl Default for Places {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(PLACES)))
    }
}

/// The place of one request, which it has until it is answered.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
}

impl FromRequestParts<Monitor> for Place {
    type Rejection = ApiError;

    async fn from_request_parts(_: &mut Parts, monitor: &Monitor) -> Result<Self, ApiError> {
        let free = Arc::clone(&monitor.places.0).acquire_owned();
        match tokio::time::timeout(PATIENCE, free).await {
            Ok(Ok(permit)) => Ok(Self { _permit: permit }),
            _ => Err(ApiError::unavailable("too many lists are asked for at a time; try again")),
        }
    }
}
