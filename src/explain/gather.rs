//! Goes through the windows that a command is about: those that the monitor knows, the latest first,
//! and then those that only an audit knows.

use futures_util::{StreamExt, stream};
use uuid::Uuid;

use super::WhichArgs;
use super::ask::{Explained, Monitor, NotFound, Unavailable};
use crate::clock;
use crate::wire::Timestamp;

/// Windows that are asked for at a time.
const AT_A_TIME: usize = 4;

/// Hands each window over as it comes. Answers whether there may be windows of which only an audit
/// knows that cannot be read.
///
/// # Errors
/// A sentence for a person: the monitor cannot be asked, does not know the window, or what the taker
/// says.
pub async fn each(
    monitor: &Monitor,
    which: &WhichArgs,
    mut take: impl FnMut(&Explained) -> anyhow::Result<()>,
) -> anyhow::Result<bool> {
    if let Some(uuid) = which.window {
        take(&monitor.window(uuid).await?)?;
        return Ok(false);
    }
    let from = clock::now().minus(which.since);
    // Asked first: one that is heard of meanwhile is then met below.
    let (mut unheard, mut is_partial) = unheard(monitor, which, from).await?;
    let mut cursor = None;
    loop {
        let page = monitor.page(which.service.as_ref(), from, cursor.as_deref()).await?;
        let uuids = page.uuids();
        unheard.retain(|uuid| !uuids.contains(uuid));
        take_all(monitor, uuids, false, &mut take).await?;
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    // Those that only an audit knows.
    is_partial |= take_all(monitor, unheard, true, &mut take).await?;
    Ok(is_partial)
}

/// The windows of which the monitor has never heard, and whether there may be more.
async fn unheard(
    monitor: &Monitor,
    which: &WhichArgs,
    from: Timestamp,
) -> anyhow::Result<(Vec<Uuid>, bool)> {
    let (mut uuids, mut is_partial) = (Vec::new(), false);
    let mut cursor = None;
    loop {
        let page = monitor.unheard_page(which.service.as_ref(), from, cursor.as_deref()).await?;
        uuids.extend(page.uuids());
        is_partial |= page.is_partial();
        cursor = page.next;
        if cursor.is_none() {
            return Ok((uuids, is_partial));
        }
    }
}

/// Asks for windows and hands them over. Answers whether there are more that the monitor cannot tell of
/// now, which can be only where their audit may be away.
async fn take_all(
    monitor: &Monitor,
    uuids: Vec<Uuid>,
    may_be_away: bool,
    mut take: impl FnMut(&Explained) -> anyhow::Result<()>,
) -> anyhow::Result<bool> {
    let mut is_partial = false;
    let windows = stream::iter(uuids).map(|uuid| monitor.window(uuid));
    let mut windows = windows.buffered(AT_A_TIME);
    while let Some(window) = windows.next().await {
        match window {
            // Whoever keeps a ledger may delete what is old at any time, or take it away.
            Err(error) if error.is::<NotFound>() => (),
            Err(error) if may_be_away && error.is::<Unavailable>() => is_partial = true,
            window => take(&window?)?,
        }
    }
    Ok(is_partial)
}
