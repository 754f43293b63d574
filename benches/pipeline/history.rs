//! What a monitor has stored after eleven days of a hundred services: ten million events.
//!
//! Filled inside the database, with what statuses a history has: slots that are missing, some of
//! them unobserved, that report errors, or that came late. The totals are added up by the monitor's
//! own rule, from the same description of what became of each slot: to count ten million rows beside
//! the sweep, with its rests, would take longer than everything that is measured.

mod audit;
mod totals;

use chrono::{DateTime, Utc};

pub use self::audit::fill as fill_audit;
use super::ground::{Database, Ground};
use super::stored::{numbers, run, without_durability};

/// Services, of which each has so many slots of 10 s in windows one after the other: of 1,000 slots
/// in five of them, of 12 in another five, and of 100 in the others.
const SERVICES: u32 = 100;
const SIZES: [u32; 3] = [12, 100, 1_000];
const SLOTS_OF_SERVICE: u32 = 100_000;
/// The row of the one window that has as many slots as a window may have.
pub const LARGEST: i64 = 1;
/// Windows whose events one statement inserts.
const WINDOWS_AT_ONCE: i64 = 20_000;

/// When a heartbeat was stamped, in microseconds after it was due.
const STAMPED_US: i64 = 1_234;
/// How long one took that came late, in microseconds.
const LATE_US: i64 = 3_600_000_000;

/// The history, as a scenario before has left it, or a new one.
pub async fn stored(ground: &Ground) -> Database {
    match ground.history.lock().await.take() {
        Some(database) => database,
        None => fill(ground).await,
    }
}

async fn fill(ground: &Ground) -> Database {
    let database = ground.database().await;
    let pool = &database.pool;
    let now: DateTime<Utc> = heartbeat::clock::now().into();
    let now = format!("TIMESTAMP '{}'", now.format("%F %T%.6f"));
    without_durability(pool, true).await;
    run(pool, &windows(&now)).await;
    run(pool, &largest_window(&now)).await;
    let last = database.count("SELECT MAX(id) FROM windows").await;
    let last = i64::try_from(last).unwrap();
    run(pool, &events(&now, SLOTS_OF_SERVICE, LARGEST, LARGEST)).await;
    // In steps: one transaction of millions of rows would fill the log.
    for first in (LARGEST + 1..=last).step_by(usize::try_from(WINDOWS_AT_ONCE).unwrap()) {
        for slots in SIZES {
            run(pool, &events(&now, slots, first, first + WINDOWS_AT_ONCE - 1)).await;
        }
    }
    run(pool, BESIDES).await;
    totals::fill(&database).await;
    run(pool, "ANALYZE TABLE windows, events, report_totals, window_history").await;
    without_durability(pool, false).await;
    check(&database).await;
    database
}

/// Windows in the order of their starts. The last one of each service is open, some of it has come.
fn windows(now: &str) -> String {
    let (services, thousands, many) = (numbers(SERVICES), numbers(9), numbers(1_000));
    format!(
        "INSERT INTO windows (id, window_uuid, service_name, status, window_from, window_to, \
         ends_at, tick_us, expected_reports, received_reports, error_reports, missing_reports, \
         unobserved_reports, created_at, updated_at, closed_at) \
         SELECT c.id, UUID(), CONCAT('payments-', c.service), \
         IF(c.is_open, 'OPEN', IF(c.missing > 0, 'ALERT', 'CLOSED')), c.begins, c.ends, c.ends, \
         10000000, c.slots, IF(c.is_open, 0, c.slots - c.missing), \
         IF(c.is_open OR c.healthy, 0, IF(c.id % 4 = 2, c.slots DIV 10, c.id % 4 = 1)), c.missing, \
         IF(c.id % 400 = 0, c.missing, 0), c.begins, c.ends, IF(c.is_open, NULL, c.ends) \
         FROM (SELECT b.*, b.begins + INTERVAL b.slots * 10 SECOND AS ends, \
         b.begins + INTERVAL b.slots * 10 SECOND > {now} AS is_open, b.service % 10 = 5 AS healthy, \
         IF(b.begins + INTERVAL b.slots * 10 SECOND > {now} OR b.service % 10 = 5 OR b.id % 20 > 0, \
         0, (b.slots + 16) DIV 20) AS missing \
         FROM (SELECT i.*, ROW_NUMBER() OVER (ORDER BY i.begins, i.service) + {LARGEST} AS id \
         FROM (SELECT s.service, s.slots, {now} - INTERVAL (n.n + 1) * s.slots * 10 SECOND \
         + INTERVAL s.slots * (s.service * 37 % 100) DIV 10 SECOND AS begins \
         FROM (SELECT n AS service, IF(n < 90, 100, IF(n < 95, 1000, 12)) AS slots \
         FROM {services} s) s \
         JOIN (SELECT t.n * 1000 + m.n AS n FROM {thousands} t CROSS JOIN {many} m) n \
         ON n.n < {SLOTS_OF_SERVICE} DIV s.slots) i) b) c ORDER BY c.id"
    )
}

fn largest_window(now: &str) -> String {
    let slots = SLOTS_OF_SERVICE;
    let missing = slots / 20;
    format!(
        "INSERT INTO windows (id, window_uuid, service_name, status, window_from, window_to, \
         ends_at, tick_us, expected_reports, received_reports, error_reports, missing_reports, \
         created_at, updated_at, closed_at) \
         SELECT {LARGEST}, UUID(), 'payments-long', 'ALERT', b, b + INTERVAL {slots} * 10 SECOND, \
         b + INTERVAL {slots} * 10 SECOND, 10000000, {slots}, {slots} - {missing}, 1, {missing}, b, \
         b, {now} FROM (SELECT {now} - INTERVAL 12 DAY AS b) begins"
    )
}

/// The events of windows of one size; of an open one, those that were due. What is counted here is
/// what `totals` says of a slot.
fn events(now: &str, slots: u32, first: i64, last: i64) -> String {
    let (thousands, ones) = (numbers(slots.div_ceil(1_000)), numbers(slots.min(1_000)));
    format!(
        "INSERT INTO events (window_id, slot, status, report_timestamp, error_message, stream_id, \
         recorded_at, late, deliveries, cause) \
         SELECT e.id, e.slot, IF(e.missing, 'MISSING', IF(e.error, 'ERROR', 'OK')), \
         IF(e.missing, e.due, e.due + INTERVAL {STAMPED_US} MICROSECOND), \
         IF(e.error, 'ledger write failed', NULL), IF(e.missing, NULL, '1795255212500-3'), \
         e.due + INTERVAL {STAMPED_US} + 4000 + (e.id * 7919 + e.slot * 104729) % 40000 \
         + IF(e.late, {LATE_US}, 0) MICROSECOND, e.late, IF(e.missing, 0, 1), \
         IF(e.missing AND e.unobserved > 0, 'unobserved', NULL) \
         FROM (SELECT w.id, s.n AS slot, w.window_from + INTERVAL s.n * 10 SECOND AS due, \
         w.missing_reports > 0 AND s.n % 20 = 3 AS missing, w.unobserved_reports AS unobserved, \
         w.error_reports > 0 AND (s.n = 9 OR w.id % 4 = 2 AND s.n % 10 = 9) AS error, \
         w.id % 20 = 3 AND s.n % 20 = 7 AS late FROM windows w \
         CROSS JOIN (SELECT t.n * 1000 + o.n AS n FROM {thousands} t CROSS JOIN {ones} o) s \
         WHERE w.id BETWEEN {first} AND {last} AND w.expected_reports = {slots}) e \
         WHERE e.due < {now} ORDER BY e.id, e.slot"
    )
}

/// What else is known of windows, and of the way from the senders.
const BESIDES: &str = "INSERT INTO window_history (window_id, changed_at, status, \
    received_reports, error_reports, missing_reports, unobserved_reports) SELECT id, closed_at, \
    status, received_reports, error_reports, missing_reports, unobserved_reports FROM windows \
    WHERE status <> 'OPEN' ORDER BY id; \
    INSERT INTO unscheduled_events (window_id, slot, status, report_timestamp, recorded_at, \
    deliveries) SELECT id, expected_reports, 'OK', ends_at, ends_at, 1 FROM windows \
    WHERE id % 50 = 7 ORDER BY id; \
    INSERT INTO dead_letters (stream, stream_id, window_uuid, slot, reason, dead_at) \
    SELECT 'reports', CONCAT(id, '-0'), window_uuid, 3, 'refused by the monitor', closed_at \
    FROM windows WHERE id % 100 = 0 AND status = 'ALERT'; \
    INSERT INTO pipeline_conditions (stream, consumer_group, kind, detail, began_at, ended_at) \
    SELECT 'reports', 'monitor-queue-group', 'stalled', 'no relay has reported for 15 s', \
    closed_at, closed_at FROM windows WHERE id % 130 = 0 AND status <> 'OPEN'; \
    INSERT INTO last_heartbeats (service_name, report_timestamp, recorded_at, stream_id) \
    SELECT service_name, MAX(ends_at), MAX(ends_at), '1795255212500-3' FROM windows \
    WHERE status <> 'OPEN' GROUP BY service_name; \
    UPDATE counting SET recounted_to = NULL";

/// Windows, events and totals say the same.
async fn check(database: &Database) {
    let stored = database.count("SELECT COUNT(*) FROM events").await;
    assert!(stored > 10_000_000, "{stored} events");
    let of_windows = "SELECT CAST(SUM(expected_reports * 2 + received_reports * 3 \
        + error_reports * 5 + missing_reports * 7 + unobserved_reports * 11) AS SIGNED) ";
    let windows = format!("{of_windows} FROM windows WHERE status <> 'OPEN'");
    let totals = format!("{of_windows} FROM report_totals WHERE span = 'SPAN' AND service_name ");
    let wanted = database.sum(&windows).await;
    for span in ["slice", "hour", "day"] {
        for service in ["= ''", "<> ''"] {
            let found = database.sum(&(totals.replace("SPAN", span) + service)).await;
            assert_eq!(found, wanted, "{span} of services {service}");
        }
    }
    let events = "SELECT CAST(SUM(status <> 'MISSING') * 3 + SUM(status = 'ERROR') * 5 \
        + SUM(status = 'MISSING') * 7 + SUM(cause IS NOT NULL) * 11 AS SIGNED) FROM events \
        WHERE window_id <= 5000";
    let windows = "SELECT CAST(SUM(received_reports * 3 + error_reports * 5 \
        + missing_reports * 7 + unobserved_reports * 11) AS SIGNED) FROM windows WHERE id <= 5000";
    assert_eq!(database.sum(events).await, database.sum(windows).await, "events of windows");
}
