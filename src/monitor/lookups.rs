//! Reading windows with their counts as of now, for all who ask at the same time.
//!
//! The answer to a single heartbeat shows its window. Reading windows one by one would cost more
//! than writing the heartbeats does.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::Monitor;
use super::batcher::{Batcher, Limits};
use super::repository;
use super::window::StoredWindow;
use crate::db;

/// Windows of one question, and those that may wait for an answer.
const LIMITS: Limits = Limits { leaders: 2, group: 512, waiting: 10_000 };

/// Those who wait to be told of a window.
#[derive(Debug)]
pub struct Lookups(Batcher<Uuid, Option<StoredWindow>>);

impl Default for Lookups {
    fn default() -> Self {
        Self(Batcher::new(LIMITS))
    }
}

/// One window with its counts, as they are after this was called.
///
/// # Errors
/// When the database does not do its part.
pub async fn find_window(monitor: &Monitor, uuid: Uuid) -> Result<Option<StoredWindow>, db::Error> {
    let pool = monitor.pool.clone();
    let work = Arc::new(move |uuids: Arc<[Uuid]>| {
        let pool = pool.clone();
        let read: BoxFuture<'static, _> = Box::pin(async move {
            let found = db::patiently(repository::find_windows(&pool, &uuids)).await?;
            Ok(uuids.iter().map(|uuid| found.get(uuid).cloned()).collect())
        });
        read
    });
    let mut found = monitor.lookups.0.call(vec![uuid], work).await?;
    Ok(found.pop().flatten())
}
