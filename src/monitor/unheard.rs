//! Windows that only an audit knows: the monitor has never heard of them, because nothing of them
//! has arrived, not even their announcement. Of windows that ended so long ago that the monitor keeps
//! them no longer, nobody can say that.

use std::collections::HashSet;

use uuid::Uuid;

use super::Monitor;
use super::audits::Overview;
use super::repository::{self, AuditPosition, Listed, Wanted};
use crate::db;
use crate::wire::Window;

/// A page of windows that only an audit knows.
#[derive(Debug)]
pub(super) struct Page {
    /// The latest first. There may be none although there is a next page.
    pub(super) windows: Vec<Window>,
    /// Where the next page begins; none on the last.
    pub(super) next: Option<AuditPosition>,
    /// Whether all audits could be read.
    pub(super) is_whole: bool,
}

/// Looks through a page of what the audits know for windows that the monitor does not.
///
/// # Errors
/// When the monitor's own database does not do its part.
pub(super) async fn page(monitor: &Monitor, wanted: &Wanted) -> Result<Page, db::Error> {
    let Overview { windows, is_whole } = monitor.audits.overview(wanted).await;
    let is_full = windows.len() >= wanted.limit as usize;
    let last = windows.last().filter(|_| is_full);
    let next = last.map(|listed: &Listed| listed.place.clone());
    let mut windows: Vec<Window> = windows.into_iter().filter_map(|listed| listed.window).collect();
    let uuids: Vec<Uuid> = windows.iter().map(|window| window.uuid).collect();
    let mut connection = monitor.connection().await?;
    let heard = repository::windows_by_uuid(&mut connection, &uuids).await?;
    // Asked after the windows: one that was not found has been deleted before.
    let gone_until = repository::gone_until(&mut *connection).await?;
    let mut shown = HashSet::new();
    windows.retain(|window| {
        let is_unheard = !heard.contains_key(&window.uuid) && window.ends_at() > gone_until;
        is_unheard && shown.insert(window.uuid)
    });
    Ok(Page { windows, next, is_whole })
}
