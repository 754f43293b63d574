//! Reading both ledgers: what stands in the tables is what the checker is given.

use heartbeat::monitor::window::{Counts, WindowStatus};
use heartbeat::wire::Timestamp;
use sqlx::{AssertSqlSafe, MySqlPool};

use super::ledger::{self, Audited, Change, Event, EventStatus, Planned, Watched};
use crate::support::{Ground, at};

async fn fill(pool: &MySqlPool, statements: &[&str]) {
    for statement in statements {
        sqlx::raw_sql(AssertSqlSafe(*statement)).execute(pool).await.unwrap();
    }
}

/// The sender's side of a window of three slots: sent, omitted, stored and not known to be sent.
const SENT: [&str; 2] = [
    "INSERT INTO report_windows (window_uuid, service, window_from, window_to, created_at, \
     tick_us, plan, announcement_id) VALUES \
     ('w', 's', '2026-11-21 10:00:00', '2026-11-21 10:00:03', '2026-11-21 10:00:00', \
     1000000, '.-0', '1-0')",
    "INSERT INTO report_audit (window_uuid, service, status, window_from, window_to, timestamp, \
     sent_to_queue, created_at, slot, first_stream_id) VALUES \
     ('w', 's', 'ok', '2026-11-21', '2026-11-22', '2026-11-21', TRUE, '2026-11-21', 0, '5000-1'), \
     ('w', 's', 'no_reported', '2026-11-21', '2026-11-22', '2026-11-21', FALSE, '2026-11-21', 1, \
     NULL), \
     ('w', 's', 'error:x', '2026-11-21', '2026-11-22', '2026-11-21', FALSE, '2026-11-21', 2, NULL)",
];

/// The monitor's side: one arrived, one arrived late, one is missing.
const SEEN: [&str; 3] = [
    "INSERT INTO windows (id, window_uuid, service_name, status, window_from, window_to, ends_at, \
     tick_us, expected_reports, received_reports, error_reports, missing_reports, created_at, \
     updated_at) VALUES (7, 'w', 's', 'ALERT', '2026-11-21', '2026-11-22', \
     '2026-11-21 10:00:03', 1000000, 3, 2, 1, 1, '2026-11-21', '2026-11-21')",
    "INSERT INTO events (window_id, slot, status, report_timestamp, recorded_at, late, deliveries) \
     VALUES (7, 0, 'OK', '2026-11-21', '2026-11-21', FALSE, 1), \
     (7, 1, 'MISSING', '2026-11-21', '2026-11-21', FALSE, 0), \
     (7, 2, 'ERROR', '2026-11-21', '2026-11-21', TRUE, 1)",
    "INSERT INTO window_history (window_id, changed_at, status, received_reports, error_reports, \
     missing_reports) VALUES (7, '2026-11-21 10:00:06.5', 'ALERT', 1, 0, 2)",
];

#[tokio::test]
async fn what_stands_in_the_tables_is_read() {
    let ground = Ground::new().await;
    let (payments, monitor) = (ground.payments("s").await.pool, ground.monitor().await.pool);
    fill(&payments, &SENT).await;
    fill(&monitor, &SEEN).await;
    let mut ledger = ledger::read(&payments, &monitor, vec!["poison-1".to_owned()]).await;
    assert_eq!(ledger.dead_letters, ["poison-1"]);
    let record = ledger.windows.remove("w").unwrap();
    assert!(ledger.windows.is_empty());

    assert_eq!(record.planned, Some(Planned { slots: 3, is_announced: true, is_finished: false }));
    let audited = |status: &str, first_sent: Option<Timestamp>| Audited {
        status: status.to_owned(),
        is_sent: first_sent.is_some(),
        first_sent,
    };
    let audit = [
        audited("ok", Some(Timestamp::from_micros(5_000_000))),
        audited("no_reported", None),
        audited("error:x", None),
    ];
    assert_eq!(record.audit, (0..).zip(audit).collect());

    let counts = Counts { received: 2, errors: 1, missing: 1, unobserved: 0 };
    let ends_at = at("2026-11-21T10:00:03Z");
    let (status, clock_offset_micros) = (WindowStatus::Alert, 0);
    let watched = Watched { status, expected: 3, counts, ends_at, clock_offset_micros };
    assert_eq!(record.watched, Some(watched));
    let event = |status, is_late| Event { status, is_late, is_unobserved: false };
    let events = [
        event(EventStatus::Ok, false),
        event(EventStatus::Missing, false),
        event(EventStatus::Error, true),
    ];
    assert_eq!(record.events, (0..).zip(events).collect());
    let counts = Counts { received: 1, errors: 0, missing: 2, unobserved: 0 };
    let change = Change { at: at("2026-11-21T10:00:06.5Z"), status, cause: None, counts };
    assert_eq!(record.history, [change]);
    assert_eq!(ledger::unobserved(&monitor).await, Some(0));
}
