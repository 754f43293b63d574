//! Tables that are full before anything is measured, filled inside the database.

use sqlx::{AssertSqlSafe, MySqlPool};

use super::ground::Database;

/// Stores windows of so many slots that ended yesterday, of which the last ones are missing, with
/// the numbers from 1 on.
pub async fn fill(database: &Database, windows: u32, slots: u32, missing: u32, status: &str) {
    let pool = &database.pool;
    without_durability(pool, true).await;
    let received = slots - missing;
    let counts = if status == "OPEN" { (0, 0) } else { (received, missing) };
    let many = numbers(1_000.min(windows));
    let thousands = numbers(windows.div_ceil(1_000));
    run(
        pool,
        &format!(
            "INSERT INTO windows (id, window_uuid, service_name, status, window_from, window_to, \
         ends_at, tick_us, expected_reports, received_reports, missing_reports, created_at, \
         updated_at, closed_at) \
         SELECT t.n * 1000 + m.n + 1, UUID(), CONCAT('payments-', m.n % 100), '{status}', \
         NOW(6) - INTERVAL 1 DAY, NOW(6) - INTERVAL 1 DAY + INTERVAL {slots} * 10 SECOND, \
         NOW(6) - INTERVAL 1 DAY + INTERVAL {slots} * 10 SECOND, 10000000, {slots}, {}, {}, NOW(6), \
         NOW(6), NULL \
         FROM {thousands} t CROSS JOIN {many} m ORDER BY 1",
            counts.0, counts.1,
        ),
    )
    .await;
    let each = numbers(received);
    // In steps: one transaction of millions of rows would fill the log.
    for from in (0..windows).step_by(20_000) {
        run(pool, &format!(
            "INSERT INTO events (window_id, slot, status, report_timestamp, stream_id, recorded_at, \
             deliveries) SELECT w.id, s.n, 'OK', w.window_from, '1795255212500-3', w.window_to, 1 \
             FROM windows w CROSS JOIN {each} s \
             WHERE w.id > {from} AND w.id <= {} ORDER BY w.id, s.n",
            from + 20_000,
        ))
        .await;
    }
    // They were counted when they closed.
    run(pool, "UPDATE counting SET recounted_to = NULL").await;
    run(pool, "ANALYZE TABLE windows, events").await;
    without_durability(pool, false).await;
}

/// The numbers below one, which is not above a thousand.
pub fn numbers(below: u32) -> String {
    format!(
        "(WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < {below} - 1) \
         SELECT n FROM n)"
    )
}

/// Whether commits may do without waiting for the disk.
pub async fn without_durability(pool: &MySqlPool, without: bool) {
    let flush = if without { "0" } else { "1" };
    for name in ["innodb_flush_log_at_trx_commit", "sync_binlog"] {
        run(pool, &format!("SET GLOBAL {name} = {flush}")).await;
    }
}

/// Runs a statement.
pub async fn run(pool: &MySqlPool, statement: &str) {
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(pool).await.unwrap();
}
