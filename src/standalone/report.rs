//! The table that `standalone` leaves behind: both ledgers of the latest windows, side by side.

use std::collections::HashMap;
use std::time::Duration;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use uuid::Uuid;

use super::DATABASES;
use crate::config::DatabaseArgs;
use crate::local::Servers;
use crate::monitor::window::StoredWindow;
use crate::payments::AuditTotals;
use crate::{db, monitor, payments};

/// Windows that the table shows at the most.
const MOST_WINDOWS: u32 = 30;
/// Patience with servers that ran a moment ago.
const PATIENCE: Duration = Duration::from_secs(2);

/// The table of the latest windows.
///
/// # Errors
/// When a ledger cannot be read.
pub(super) async fn latest_windows(servers: &Servers) -> anyhow::Result<Table> {
    let [payments, monitor] = DATABASES.map(|name| servers.database.url(name).parse());
    let payments = payments.map_err(anyhow::Error::msg)?;
    let monitor = monitor.map_err(anyhow::Error::msg)?;
    let audit =
        db::connect(&payments, (payments::DATABASE, DatabaseArgs::OPTION), PATIENCE).await?;
    let ledger = db::connect(&monitor, (monitor::DATABASE, DatabaseArgs::OPTION), PATIENCE).await?;
    let mut windows = monitor::latest_windows(&ledger, MOST_WINDOWS).await?;
    windows.reverse();
    let uuids: Vec<Uuid> = windows.iter().map(|window| window.window.uuid).collect();
    let totals = payments::totals_by_window(&audit, &uuids).await?.into_iter().collect();
    Ok(table(&windows, &totals))
}

fn table(windows: &[StoredWindow], totals: &HashMap<Uuid, AuditTotals>) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header([
        "window", "service", "expected", "sent", "omitted", "received", "missing", "status",
    ]);
    for column in table.column_iter_mut().skip(2).take(5) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for StoredWindow { window, status, counts, .. } in windows {
        let audit = totals.get(&window.uuid).cloned().unwrap_or_default();
        table.add_row([
            window.uuid.to_string(),
            window.service.to_string(),
            window.slots().to_string(),
            audit.sent_to_queue.to_string(),
            audit.no_reported.to_string(),
            counts.received.to_string(),
            counts.missing.to_string(),
            status.as_sql().to_owned(),
        ]);
    }
    table
}
