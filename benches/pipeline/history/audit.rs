//! What the senders wrote of some windows of a history.

use super::super::ground::Database;
use super::super::stored::{run, without_durability};
use super::LARGEST;

/// Which windows an audit knows: some of every size, and the largest.
const AUDITED: &str = "w.id % 90 = 0 OR (w.expected_reports = 1000 AND w.id % 5 = 0)";

/// Stores what the senders wrote. Of what is missing, they left out one half on purpose, and know
/// nothing of the other.
pub async fn fill(history: &Database, audit: &Database) {
    let pool = &audit.pool;
    without_durability(pool, true).await;
    let from = history.name().await;
    let is_audited = format!("({AUDITED} OR w.id = {LARGEST})");
    run(
        pool,
        &format!(
            "INSERT INTO report_windows (window_uuid, service, window_from, window_to, created_at, \
             tick_us) SELECT window_uuid, service_name, window_from, window_to, window_from, tick_us \
             FROM {from}.windows w WHERE {is_audited} ORDER BY w.id"
        ),
    )
    .await;
    run(
        pool,
        &format!(
            "INSERT INTO report_audit (window_uuid, service, status, window_from, window_to, \
             timestamp, sent_to_queue, created_at, slot, stream_id) \
             SELECT w.window_uuid, w.service_name, \
             IF(e.status = 'MISSING', 'no_reported', IF(e.status = 'OK', 'ok', 'error:ledger')), \
             w.window_from, w.window_to, e.report_timestamp, e.status <> 'MISSING', \
             e.report_timestamp, e.slot, e.stream_id \
             FROM {from}.windows w JOIN {from}.events e ON e.window_id = w.id \
             WHERE {is_audited} AND (e.status <> 'MISSING' OR e.slot % 40 = 3) \
             ORDER BY e.slot, w.id"
        ),
    )
    .await;
    run(pool, "ANALYZE TABLE report_windows, report_audit").await;
    without_durability(pool, false).await;
}
