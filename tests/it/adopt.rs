//! Taking over the ledger of the first system's monitor, and starting beside what lies in the stream.

use std::fmt::Write;
use std::time::Duration;

use heartbeat::clock;
use heartbeat::monitor::window::{Counts, WindowStatus};
use heartbeat::monitor::{Monitor, counting, ingest, latest_windows, pipeline, sweep};
use heartbeat::wire::{Heartbeat, Window};
use sqlx::{AssertSqlSafe, MySqlPool, Row};

use crate::support::{Ground, at, entry_id, heartbeat, pool, report, run, window};

/// The tables as the first system's monitor makes them.
const TABLES: &str = "
    CREATE TABLE monitoring_windows (
        id INT NOT NULL AUTO_INCREMENT PRIMARY KEY, window_uuid VARCHAR(36) UNIQUE,
        service_name VARCHAR(120), status VARCHAR(20), expected_reports INT, received_reports INT,
        error_reports INT, missing_reports INT, error_status_generado FLOAT NULL,
        error_status_no_reportado FLOAT NULL, window_from DATETIME, window_to DATETIME,
        closed_at DATETIME NULL, created_at DATETIME, updated_at DATETIME
    );
    CREATE TABLE heartbeat_events (
        id INT NOT NULL AUTO_INCREMENT PRIMARY KEY, window_id INT, service_name VARCHAR(120),
        status VARCHAR(20), report_timestamp DATETIME, error_message VARCHAR(2000) NULL,
        created_at DATETIME, FOREIGN KEY (window_id) REFERENCES monitoring_windows (id)
    );";

/// The first system's database.
struct Old(MySqlPool);

impl Old {
    /// Its tables on a ground, in the database of the ground's senders.
    async fn new(ground: &Ground) -> Self {
        let old = Self(pool(&ground.payments_url).await);
        old.run(TABLES).await;
        old
    }

    async fn run(&self, statements: &str) {
        sqlx::raw_sql(AssertSqlSafe(statements)).execute(&self.0).await.unwrap();
    }

    /// Writes a window of so many slots, closed 5 s after its end, with an event per status and second.
    async fn put(&self, window: &Window, status: &str, events: &[(&str, u32)]) {
        let received = events.iter().filter(|(status, _)| *status != "MISSING").count();
        let closed = if status == "OPEN" { "NULL" } else { "'2026-11-21 11:00:05'" };
        let mut sql = format!(
            "INSERT INTO monitoring_windows (window_uuid, service_name, status, expected_reports, \
             received_reports, error_reports, missing_reports, error_status_generado, \
             error_status_no_reportado, window_from, window_to, closed_at, created_at) VALUES \
             ('{}', '{}', '{status}', {}, {received}, 0, 0, 0.2623, 0.1, '{}', '{}', {closed}, \
             '2026-11-21 10:00:01'); SET @id = LAST_INSERT_ID();",
            window.uuid,
            window.service,
            window.slots() + 1,
            old_time(&window.from().to_string()),
            old_time(&window.to().to_string()),
        );
        for (status, second) in events {
            write!(sql, "{}", event("@id", status, *second)).unwrap();
        }
        self.run(&sql).await;
    }
}

fn old_time(text: &str) -> String {
    text.replace('T', " ").replace('Z', "")
}

/// An event so many seconds after the start of the windows.
fn event(window_id: &str, status: &str, second: u32) -> String {
    let message = if status == "ERROR" { "'größer'" } else { "NULL" };
    format!(
        "INSERT INTO heartbeat_events (window_id, service_name, status, report_timestamp, \
         error_message) VALUES ({window_id}, 'payments-a', '{status}', \
         '2026-11-21 10:00:00' + INTERVAL {second} SECOND, {message});"
    )
}

/// Runs `migrate monitor` on a ground. Answers the exit code and what it prints.
async fn take_over(ground: &Ground) -> (i32, String) {
    let environment =
        [("DATABASE_URL", ground.monitor_url.as_str()), ("ADOPT_FROM", &ground.payments_url)];
    let (code, out, err) = run(&["migrate", "monitor"], &environment).await;
    (code, out + &err)
}

async fn taken_over(ground: &Ground) -> String {
    let (code, text) = take_over(ground).await;
    assert_eq!(code, 0, "{text}");
    text
}

fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part}\nin:\n{text}");
    }
}

async fn counts(monitor: &Monitor, window: &Window) -> (WindowStatus, Counts, u32) {
    let windows = latest_windows(&monitor.pool, 100).await.unwrap();
    let stored = windows.into_iter().find(|stored| stored.window.uuid == window.uuid).unwrap();
    (stored.status, stored.counts, stored.unscheduled)
}

async fn number(monitor: &Monitor, question: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(question)).fetch_one(&monitor.pool).await.unwrap()
}

/// The fingerprints of what a run writes.
async fn fingerprints(monitor: &Monitor) -> Vec<Option<i64>> {
    let tables = "windows, events, unscheduled_events, window_history, uncounted_windows";
    let rows = sqlx::raw_sql(AssertSqlSafe(format!("CHECKSUM TABLE {tables}")));
    let rows = rows.fetch_all(&monitor.pool).await.unwrap();
    rows.iter().map(|row| row.get(1)).collect()
}

#[tokio::test]
async fn a_window_that_is_open_goes_on_and_waits_for_the_stream() {
    let ground = Ground::new().await;
    let old = Old::new(&ground).await;
    let window = window("payments-a", 5);
    old.put(&window, "OPEN", &[("OK", 0), ("ERROR", 10), ("OK", 20)]).await;
    let text = taken_over(&ground).await;
    contains(&text, &["windows taken over: 1 (1 open, 0 closed, 0 alert)", "heartbeats: 3, and 0"]);

    let monitor = ground.monitor().await;
    let over = window.ends_at().plus(Duration::from_mins(5));
    let pending = window.due(3);
    pipeline::accept(&monitor, report(pending), over).await.unwrap();
    assert_eq!(sweep::sweep_all(&monitor, over).await.unwrap(), 0, "the rest is on its way");
    // Senders of the first system name no slot; one is delivered again, with its true time.
    let rest = [1, 3, 4].map(|slot| Heartbeat {
        slot: None,
        timestamp: window.due(slot).plus_micros(-300_000),
        stream_id: Some(entry_id(window.due(slot))),
        ..heartbeat(&window, slot)
    });
    ingest::ingest(&monitor, rest.to_vec(), over).await.unwrap();
    pipeline::accept(&monitor, report(over), over).await.unwrap();
    assert_eq!(sweep::sweep_all(&monitor, over).await.unwrap(), 1);
    let all = Counts { received: 5, errors: 1, ..Counts::default() };
    assert_eq!(counts(&monitor, &window).await, (WindowStatus::Closed, all, 0));
}

#[tokio::test]
async fn windows_that_are_over_are_closed_by_slot() {
    let ground = Ground::new().await;
    let old = Old::new(&ground).await;
    let windows = [(); 4].map(|()| window("payments-a", 3));
    let [whole, alert, hidden, spurious] = &windows;
    old.put(whole, "CLOSED", &[("OK", 0), ("ERROR", 10), ("OK", 10), ("OK", 20), ("OK", 30)]).await;
    old.put(alert, "ALERT", &[("OK", 0), ("MISSING", 15), ("OK", 20)]).await;
    old.put(hidden, "CLOSED", &[("OK", 0), ("OK", 10), ("OK", 30)]).await;
    old.put(spurious, "ALERT", &[("OK", 0), ("OK", 10), ("OK", 20), ("MISSING", 30)]).await;
    let text = taken_over(&ground).await;
    contains(
        &text,
        &[
            "the schema of the monitor database is up to date\n",
            "windows taken over: 4 (0 open, 2 closed, 2 alert)\n",
            "heartbeats: 10, and 2 unscheduled\n",
            "1 window was CLOSED there and ALERT here",
            "1 window was ALERT there and CLOSED here",
            "of no use: 0\n",
        ],
    );

    let monitor = ground.monitor().await;
    let (closed, missing) = (WindowStatus::Closed, WindowStatus::Alert);
    let full = Counts { received: 3, ..Counts::default() };
    let lacking = Counts { received: 2, missing: 1, ..Counts::default() };
    let with_error = Counts { errors: 1, ..full };
    assert_eq!(counts(&monitor, whole).await, (closed, with_error, 1));
    assert_eq!(counts(&monitor, alert).await, (missing, lacking, 0));
    assert_eq!(counts(&monitor, hidden).await, (missing, lacking, 1));
    assert_eq!(counts(&monitor, spurious).await, (closed, full, 0));
    for (question, expected) in [
        (
            "SELECT COUNT(*) FROM events WHERE status = 'MISSING' AND recorded_at = '2026-11-21 11:00:05' AND report_timestamp IN ('2026-11-21 10:00:10', '2026-11-21 10:00:20')",
            2,
        ),
        (
            "SELECT COUNT(*) FROM events WHERE deliveries = 2 AND conflicts = 1 AND status = 'ERROR' AND error_message = 'größer'",
            1,
        ),
        (
            "SELECT COUNT(*) FROM windows WHERE error_status_generado = 0.2623 AND error_status_no_reportado = 0.1 AND created_at = '2026-11-21 10:00:01' AND closed_at = '2026-11-21 11:00:05'",
            4,
        ),
        (
            "SELECT COUNT(*) FROM window_history h JOIN windows w ON w.id = h.window_id WHERE h.changed_at = w.closed_at AND h.status = w.status AND h.received_reports = w.received_reports AND h.missing_reports = w.missing_reports",
            4,
        ),
        ("SELECT COUNT(*) FROM window_history", 4),
    ] {
        assert_eq!(number(&monitor, question).await, expected, "{question}");
    }
    counting::count_all(&monitor, clock::now()).await.unwrap();
    let totals = "SELECT CAST(CONCAT(expected_reports, received_reports, missing_reports, \
        unscheduled_reports, closed_windows, alert_windows) AS SIGNED) FROM report_totals \
        WHERE span = 'day' AND service_name = ''";
    assert_eq!(number(&monitor, totals).await, 12_102_222);
}

#[tokio::test]
async fn rows_of_no_use_are_named_and_harm_no_other() {
    let ground = Ground::new().await;
    let old = Old::new(&ground).await;
    let good = window("payments-a", 2);
    old.put(&good, "CLOSED", &[("OK", 0), ("UP", 0), ("OK", 10)]).await;
    for change in [
        "window_uuid = 'seven'",
        "window_to = window_from - INTERVAL 1 SECOND",
        "service_name = 'a b'",
        "status = 'SHUT'",
        "window_from = NULL",
        "window_from = '2127-11-21 10:00:00', window_to = '2127-11-21 10:01:00'",
        "received_reports = 2",
    ] {
        let bad = window("payments-a", 2);
        old.put(&bad, "CLOSED", &[]).await;
        old.run(&format!("UPDATE monitoring_windows SET {change} ORDER BY id DESC LIMIT 1")).await;
    }
    let text = taken_over(&ground).await;
    contains(
        &text,
        &[
            "windows taken over: 1 (0 open, 1 closed, 0 alert)",
            "of no use: 8\n",
            "  heartbeat_events 2: status \"UP\" is none of",
            "  monitoring_windows 2: window_uuid \"seven\" is no UUID",
            "  monitoring_windows 3: window_to must be later",
            "  monitoring_windows 4: service_name \"a b\" must be",
            "  monitoring_windows 5: status \"SHUT\"",
            "  monitoring_windows 6: window_from is null",
            "  monitoring_windows 7: window_from 2127-11-21T10:00:00Z lies in the future",
            "  monitoring_windows 8: 2 heartbeats are counted for it, and heartbeat_events has 0",
        ],
    );
}

/// Heartbeats that share a slot are gone: a wrong tick must not be found out afterwards.
#[tokio::test]
async fn a_tick_that_contradicts_the_ledger_is_refused() {
    let ground = Ground::new().await;
    let old = Old::new(&ground).await;
    for slots in [20, 30, 40] {
        old.put(&window("payments-a", slots), "CLOSED", &[("OK", 0)]).await;
    }
    let environment = [
        ("DATABASE_URL", ground.monitor_url.as_str()),
        ("ADOPT_FROM", ground.payments_url.as_str()),
    ];
    let arguments = ["migrate", "monitor", "--heartbeat-interval-seconds", "60"];
    let (code, _, err) = run(&arguments, &environment).await;
    assert_eq!(code, 1);
    contains(&err, &["another tick than 60 s", "--heartbeat-interval-seconds", "not taken over"]);
    let monitor = ground.monitor().await;
    assert_eq!(number(&monitor, "SELECT COUNT(*) FROM windows").await, 0);
    contains(&taken_over(&ground).await, &["windows taken over: 3 "]);
}

#[tokio::test]
async fn a_second_run_changes_nothing_and_one_that_broke_off_goes_on() {
    let ground = Ground::new().await;
    let old = Old::new(&ground).await;
    let (open, closed) = (window("payments-a", 4), window("payments-a", 2));
    old.put(&open, "OPEN", &[("OK", 0), ("OK", 50)]).await;
    old.put(&closed, "ALERT", &[("OK", 0)]).await;
    taken_over(&ground).await;
    let monitor = ground.monitor().await;
    let before = fingerprints(&monitor).await;
    let nothing = ["windows taken over: 0 (", "heartbeats: 0, and 0 un", "here already: 2"];
    contains(&taken_over(&ground).await, &nothing);
    assert_eq!(fingerprints(&monitor).await, before);

    // Closed there meanwhile, with more than had been taken over; and another window.
    let more = [("1", 0), ("1", 10), ("1", 30), ("1", 60), ("2", 10)];
    let more: String = more.map(|(window, second)| event(window, "ERROR", second)).concat();
    old.run(&more).await;
    old.run("UPDATE monitoring_windows SET status = 'ALERT', closed_at = NOW() WHERE id = 1").await;
    let other = window("payments-b", 1);
    old.put(&other, "CLOSED", &[("OK", 0)]).await;
    let text = taken_over(&ground).await;
    contains(&text, &["over: 1 (0 open, 1 closed", "heartbeats: 3, and 1 un", "already: 2"]);
    let lacking = Counts { received: 3, errors: 2, ..Counts::default() };
    assert_eq!(counts(&monitor, &open).await, (WindowStatus::Open, lacking, 2));
    let alert = Counts { received: 1, missing: 1, ..Counts::default() };
    assert_eq!(counts(&monitor, &closed).await, (WindowStatus::Alert, alert, 0));
    assert_eq!(number(&monitor, "SELECT CAST(SUM(deliveries) AS SIGNED) FROM events").await, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_a_page_is_taken_over_once_by_two_at_a_time() {
    let ground = Ground::new().await;
    let old = Old::new(&ground).await;
    for _ in 0..9 {
        old.put(&window("payments-a", 3), "ALERT", &[("OK", 0), ("OK", 20)]).await;
    }
    old.run(
        "INSERT INTO monitoring_windows (window_uuid, service_name, status, window_from, window_to, \
         closed_at) SELECT UUID(), w.service_name, w.status, w.window_from, w.window_to, w.closed_at \
         FROM monitoring_windows w JOIN monitoring_windows a JOIN monitoring_windows b; \
         INSERT INTO heartbeat_events (window_id, status, report_timestamp) \
         SELECT w.id, e.status, e.report_timestamp FROM monitoring_windows w \
         JOIN heartbeat_events e ON e.window_id = 1 WHERE w.id > 9",
    )
    .await;
    let (one, other) = tokio::join!(taken_over(&ground), taken_over(&ground));
    let monitor = ground.monitor().await;
    for (question, expected) in [
        ("SELECT COUNT(*) FROM windows WHERE status = 'ALERT' AND received_reports = 2", 738),
        ("SELECT COUNT(*) FROM events", 3 * 738),
        ("SELECT COUNT(*) FROM events WHERE status = 'MISSING' AND slot = 1", 738),
        ("SELECT COUNT(DISTINCT window_id) FROM window_history", 738),
        ("SELECT COUNT(*) FROM window_history", 738),
        ("SELECT COUNT(*) FROM uncounted_windows", 738),
    ] {
        assert_eq!(number(&monitor, question).await, expected, "{question}\n{one}\n{other}");
    }
}

#[tokio::test]
async fn any_collation_and_fewer_columns_will_do() {
    for charset in ["latin1", "utf8mb4 COLLATE utf8mb4_general_ci"] {
        let ground = Ground::new().await;
        let admin = pool(&ground.payments_url).await;
        let set = format!("ALTER DATABASE CHARACTER SET {charset}");
        sqlx::raw_sql(AssertSqlSafe(set)).execute(&admin).await.unwrap();
        let old = Old::new(&ground).await;
        let closed = window("payments-a", 2);
        old.put(&closed, "ALERT", &[("ERROR", 0)]).await;
        old.run(
            "ALTER TABLE monitoring_windows DROP COLUMN error_status_generado, \
             DROP COLUMN error_status_no_reportado, DROP COLUMN updated_at, \
             MODIFY status ENUM('OPEN', 'CLOSED', 'ALERT'), MODIFY window_from DATETIME(6); \
             ALTER TABLE heartbeat_events DROP COLUMN created_at, MODIFY error_message TEXT",
        )
        .await;
        taken_over(&ground).await;
        let monitor = ground.monitor().await;
        let counted = Counts { received: 1, errors: 1, missing: 1, unobserved: 0 };
        assert_eq!(counts(&monitor, &closed).await, (WindowStatus::Alert, counted, 0));
        let same = "SELECT COUNT(*) FROM events WHERE error_message = 'größer'";
        assert_eq!(number(&monitor, same).await, 1, "{charset}");
    }
}

#[tokio::test]
async fn what_is_no_first_ledger_is_refused_before_anything_is_changed() {
    let ground = Ground::new().await;
    let refused = async |ground: &Ground, parts: &[&str]| {
        let (code, text) = take_over(ground).await;
        assert_eq!(code, 1, "{text}");
        contains(&text, parts);
        assert!(!text.contains("up to date"), "{text}");
    };
    refused(&ground, &["has no monitoring_windows, heartbeat_events", "--adopt-from"]).await;
    let old = Old::new(&ground).await;
    old.run("ALTER TABLE heartbeat_events DROP COLUMN report_timestamp").await;
    refused(&ground, &["has no heartbeat_events.report_timestamp, or"]).await;
    old.run("DROP TABLE heartbeat_events").await;
    refused(&ground, &["has no heartbeat_events, or", "--adopt-from"]).await;
    let tables = "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE()";
    let ours = pool(&ground.monitor_url).await;
    let left: i64 = sqlx::query_scalar(tables).fetch_one(&ours).await.unwrap();
    assert_eq!(left, 0, "nothing was changed");

    let same = Ground::new().await;
    let same = Ground { monitor_url: same.payments_url.clone(), ..same };
    let old = Old::new(&same).await;
    refused(&same, &["holds the first system's table", "make a new, empty database"]).await;
    let left: i64 = sqlx::query_scalar(tables).fetch_one(&old.0).await.unwrap();
    assert_eq!(left, 2, "nothing was changed");

    let own = Ground::new().await;
    own.monitor().await;
    let own = Ground { payments_url: own.monitor_url.clone(), ..own };
    refused(&own, &["is a monitor database of ours", "is a view"]).await;

    let url = ground.payments_url.as_str();
    let (code, _, err) =
        run(&["migrate", "payments", "--database-url", url, "--adopt-from", url], &[]).await;
    assert_eq!(code, 1);
    contains(&err, &["--adopt-from is for the monitor database"]);
}

/// Whoever changes over starts one part after the other, and takes the time that it takes.
#[tokio::test]
async fn what_was_open_waits_for_the_first_report_and_not_for_ever() {
    let ground = Ground::new().await;
    let old = Old::new(&ground).await;
    let window = window("payments-a", 3);
    old.put(&window, "OPEN", &[("OK", 0)]).await;
    taken_over(&ground).await;
    let monitor = ground.monitor().await;
    let long_after = window.ends_at().plus(Duration::from_mins(5));
    pipeline::watch_once(&monitor, long_after).await.unwrap();
    assert_eq!(sweep::sweep_all(&monitor, long_after).await.unwrap(), 0);
    let swept = sweep::sweep_on_request(&monitor, long_after).await.unwrap();
    assert!(swept.closed.is_empty() && swept.held.len() == 1, "{swept:?}");
    assert!(swept.held[0].1.contains("no relay has reported"), "{swept:?}");

    // The rest lay in the stream, and is delivered before the relay says so.
    let rest = [1, 2].map(|slot| Heartbeat {
        stream_id: Some(entry_id(window.due(slot))),
        ..heartbeat(&window, slot)
    });
    ingest::ingest(&monitor, rest.to_vec(), long_after).await.unwrap();
    pipeline::accept(&monitor, report(long_after), long_after).await.unwrap();
    assert_eq!(sweep::sweep_all(&monitor, long_after).await.unwrap(), 1);
    assert_eq!(counts(&monitor, &window).await.0, WindowStatus::Closed);
    assert_eq!(number(&monitor, "SELECT COUNT(*) FROM awaited_report").await, 0);
}

/// Where relays report already, their watermark says what is delivered.
#[tokio::test]
async fn no_first_report_is_awaited_where_relays_report() {
    let ground = Ground::new().await;
    let old = Old::new(&ground).await;
    old.put(&window("payments-a", 3), "OPEN", &[("OK", 0)]).await;
    let monitor = ground.monitor().await;
    let now = at(crate::support::START);
    pipeline::accept(&monitor, report(now), now).await.unwrap();
    taken_over(&ground).await;
    assert_eq!(number(&monitor, "SELECT COUNT(*) FROM awaited_report").await, 0);
}

/// No relay comes: nothing is known of what was sent, so that nobody is alerted about its service.
#[tokio::test]
async fn what_no_relay_ever_reports_of_is_unobserved() {
    let ground = Ground::new().await;
    let old = Old::new(&ground).await;
    let window = window("payments-a", 3);
    old.put(&window, "OPEN", &[("OK", 0)]).await;
    taken_over(&ground).await;
    let monitor = ground.monitor().await;
    let mut now = window.ends_at().plus(Duration::from_mins(1));
    for _ in 0..150 {
        pipeline::watch_once(&monitor, now).await.unwrap();
        now = now.plus(Duration::from_secs(5));
    }
    assert_eq!(sweep::sweep_all(&monitor, now).await.unwrap(), 1);
    let (status, counts, _) = counts(&monitor, &window).await;
    assert_eq!((status, counts.missing, counts.unobserved), (WindowStatus::Alert, 2, 2));
}
