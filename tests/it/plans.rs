//! What the queries of the API cost, and those of counting and pruning: on a database that is not small,
//! no statement looks at more than a part of it.
//!
//! The server of this test is its own, because its log of all statements is. Each statement that
//! it was asked is explained, and then run again on a connection whose rows are counted, and undone.

use std::path::PathBuf;
use std::time::Duration;

use heartbeat::clock;
use heartbeat::config::{DatabaseArgs, DatabaseUrl};
use heartbeat::db;
use heartbeat::local::{Database, Options};
use heartbeat::monitor::retention::{Retain, RetentionArgs, SHORTEST};
use heartbeat::monitor::totals::Count;
use heartbeat::monitor::{Monitor, counting, prune};
use heartbeat::wire::Timestamp;
use reqwest::StatusCode;
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection, Row};

use crate::support::{Api, monitor_at};

/// Windows that are stored, of 50 services, and the slots of each.
const WINDOWS: u32 = 20_000;
const SLOTS: u32 = 10;
/// Most rows that one statement may look at; a page of events looks at about 2,000.
const MOST_ROWS: i64 = 6_000;
/// Tables that grow, and what statements call them for short.
const LARGE: [&str; 12] = [
    "windows",
    "w",
    "events",
    "e",
    "s",
    "unscheduled_events",
    "window_history",
    "dead_letters",
    "counted_windows",
    "report_totals",
    "archived_totals",
    "report_windows",
];

async fn run(connection: &mut MySqlConnection, statement: &str) {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.unwrap();
}

/// The numbers below one.
pub fn numbers(below: u32) -> String {
    format!(
        "(WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < {below} - 1) \
         SELECT n FROM n)"
    )
}

/// Stores a window each 10 s up to now. One in twenty has a slot that is missing, another one in
/// twenty one that reports an error, and the last 200 are open. A month ago there are some of two days.
async fn fill(connection: &mut MySqlConnection) {
    let (thousands, many) = (numbers(WINDOWS / 1_000), numbers(1_000));
    run(
        connection,
        &format!(
            "INSERT INTO windows (id, window_uuid, service_name, status, window_from, window_to, \
         ends_at, tick_us, expected_reports, received_reports, error_reports, missing_reports, \
         created_at, updated_at, closed_at) \
         SELECT i.id, UUID(), CONCAT('payments-', i.id % 50), \
         IF(i.id > {WINDOWS} - 200, 'OPEN', IF(i.id % 20 = 0, 'ALERT', 'CLOSED')), \
         i.begins, i.begins + INTERVAL 100 SECOND, i.begins + INTERVAL 100 SECOND, 10000000, \
         {SLOTS}, IF(i.id > {WINDOWS} - 200, 0, IF(i.id % 20 = 0, {SLOTS} - 1, {SLOTS})), \
         IF(i.id > {WINDOWS} - 200, 0, i.id % 20 = 1), \
         IF(i.id > {WINDOWS} - 200, 0, i.id % 20 = 0), NOW(6), NOW(6), \
         IF(i.id > {WINDOWS} - 200, NULL, i.begins + INTERVAL 100 SECOND) \
         FROM (SELECT t.n * 1000 + m.n + 1 AS id, \
         NOW(6) - INTERVAL ({WINDOWS} - t.n * 1000 - m.n) * 10 SECOND AS begins \
         FROM {thousands} t CROSS JOIN {many} m) i ORDER BY i.id"
        ),
    )
    .await;
    run(connection, &format!(
        "INSERT INTO events (window_id, slot, status, report_timestamp, stream_id, recorded_at, \
         deliveries) SELECT w.id, n.n, IF(n.n = 3 AND w.status = 'ALERT', 'MISSING', \
         IF(n.n = 4 AND w.id % 20 = 1, 'ERROR', 'OK')), \
         w.window_from + INTERVAL n.n * 10 SECOND, '1795255212500-3', w.window_to, 1 \
         FROM windows w CROSS JOIN {} n ORDER BY w.id, n.n",
        numbers(SLOTS),
    )).await;
    run(
        connection,
        &format!(
            "INSERT INTO windows (id, window_uuid, service_name, status, window_from, window_to, \
         ends_at, tick_us, expected_reports, received_reports, created_at, updated_at, closed_at) \
         SELECT {WINDOWS} + i.n + 1, UUID(), 'payments-7', 'CLOSED', i.begins, \
         i.begins + INTERVAL 2 DAY, i.begins + INTERVAL 2 DAY, 3600000000, 48, 48, NOW(6), NOW(6), \
         i.begins + INTERVAL 2 DAY \
         FROM (SELECT n, NOW(6) - INTERVAL 30 DAY - INTERVAL n HOUR AS begins FROM {} l) i",
            numbers(20),
        ),
    )
    .await;
    let (services, begins) = (numbers(50), numbers(400));
    for (span, seconds) in [("slice", 300), ("hour", 3_600), ("day", 86_400)] {
        let counts = Count::ALL.map(Count::name).join(", ");
        let ones = Count::ALL.map(|_| "1").join(", ");
        run(
            connection,
            &format!(
                "INSERT INTO report_totals (span, service_name, begins_at, {counts}, verdicts, \
             latencies) SELECT '{span}', IF(s.n = 0, '', CONCAT('payments-', s.n)), \
             FROM_UNIXTIME(FLOOR(UNIX_TIMESTAMP() / {seconds}) * {seconds} - b.n * {seconds}), \
             {ones}, '{{}}', '{{}}' FROM {services} s CROSS JOIN {begins} b"
            ),
        )
        .await;
    }
    fill_beside(connection).await;
}

/// What else is known of the windows, and what is to be counted and judged.
async fn fill_beside(connection: &mut MySqlConnection) {
    for statement in [
        "INSERT INTO archived_totals SELECT * FROM report_totals",
        "INSERT INTO unscheduled_events (window_id, slot, status, report_timestamp, recorded_at, \
         deliveries) SELECT id, -1, 'OK', window_from, window_from, 1 FROM windows \
         WHERE id % 4 = 0",
        "INSERT INTO window_history (window_id, changed_at, status, received_reports, \
         error_reports, missing_reports) SELECT id, closed_at, status, received_reports, \
         error_reports, missing_reports FROM windows WHERE status <> 'OPEN'",
        "INSERT INTO dead_letters (stream, stream_id, window_uuid, slot, reason, dead_at) \
         SELECT 'reports', id, window_uuid, 0, 'refused', NOW(6) FROM windows",
        &format!(
            "INSERT INTO counted_windows (window_id, epoch, added, judge_at) SELECT id, 1, '{{}}', \
             IF(status = 'ALERT', closes, NULL) FROM (SELECT id, status, ends_at AS closes \
             FROM windows WHERE status <> 'OPEN' AND id <= {WINDOWS} - 600) w"
        ),
        &format!(
            "INSERT INTO uncounted_windows (window_id) SELECT id FROM windows \
             WHERE status <> 'OPEN' AND id > {WINDOWS} - 600"
        ),
        "ANALYZE TABLE windows, events, unscheduled_events, report_totals, archived_totals, \
         window_history, dead_letters, counted_windows",
    ] {
        run(connection, statement).await;
    }
}

/// Stores as many windows in an audit: first those of one service, and then those of another.
async fn fill_audit(url: &str) -> MySqlConnection {
    let address: DatabaseUrl = url.parse().unwrap();
    let named = ("payments database", DatabaseArgs::OPTION);
    let pool = db::connect(&address, named, Duration::from_secs(5)).await.unwrap();
    db::migrate(&pool, &db::PAYMENTS_SCHEMA, named.0).await.unwrap();
    db::close(&pool).await;
    let mut connection = MySqlConnection::connect(url).await.unwrap();
    let (thousands, many) = (numbers(WINDOWS / 1_000), numbers(1_000));
    run(
        &mut connection,
        &format!(
            "INSERT INTO report_windows (window_uuid, service, window_from, window_to, created_at) \
             SELECT UUID(), IF(i.number < {WINDOWS} / 2, 'payments-7', 'payments-8'), i.begins, \
             i.begins + INTERVAL 100 SECOND, i.begins FROM (SELECT t.n * 1000 + m.n AS number, \
             NOW(6) - INTERVAL ({WINDOWS} - t.n * 1000 - m.n) * 10 SECOND AS begins \
             FROM {thousands} t CROSS JOIN {many} m) i"
        ),
    )
    .await;
    run(&mut connection, "ANALYZE TABLE report_windows").await;
    connection
}

/// Prunes events and windows, a few steps of each.
async fn prune_some(monitor: &Monitor) {
    let retain = Retain::For(SHORTEST);
    let retention = RetentionArgs { retain_events: retain, retain_windows: retain };
    let monitor = Monitor { retention, ..monitor.clone() };
    let mut deleted = std::collections::BTreeMap::new();
    for _ in 0..4 {
        deleted.extend(prune::prune_once(&monitor, clock::now()).await.unwrap().deleted);
    }
    for table in ["events", "windows", "window_history", "dead_letters"] {
        assert!(deleted.contains_key(table), "{table} not in {deleted:?}");
    }
}

fn days_ago(days: u64) -> Timestamp {
    clock::now().minus(Duration::from_hours(24 * days))
}

/// Asks for everything that the API lists, in many ways.
async fn ask(api: &Api) {
    let (_, windows) = api.get("/api/monitor/windows?limit=1").await;
    let uuid = windows["windows"][0]["window_uuid"].as_str().unwrap().to_owned();
    let (_, page) = api.get("/api/monitor/events?limit=25").await;
    let events = page["next"].as_str().unwrap().to_owned();
    let next = windows["next"].as_str().unwrap().to_owned();
    let from = windows["windows"][0]["window_from"].as_str().unwrap()[..10].to_owned();
    // No window lies between the two but long ones, which are looked for apart.
    let (long, behind) = (days_ago(29), days_ago(30).micros());
    for path in [
        "windows".to_owned(),
        "windows?service=payments-7".to_owned(),
        "windows?service=payments-7&status=alert".to_owned(),
        "windows?status=alert".to_owned(),
        format!("windows?status=closed&from={from}T00:00:00Z&cursor={next}"),
        format!("windows?status=closed&to={from}T00:00:00Z"),
        format!("windows/{uuid}"),
        "events".to_owned(),
        format!("events?cursor={events}"),
        "events?service=payments-7&limit=500".to_owned(),
        "events?service=payments-7&status=missing".to_owned(),
        "events?service=payments-7&status=error".to_owned(),
        "events?status=missing".to_owned(),
        "events?status=error".to_owned(),
        "events?status=error&service=nobody".to_owned(),
        format!("events?window_uuid={uuid}&status=ok"),
        format!("events?from={from}T00:00:00Z&to={from}T23:00:00Z"),
        format!("events?to={from}T00:00:00Z&status=error"),
        format!("events?from={long}&cursor={behind}-1-0"),
        "summary?period=1h".to_owned(),
        "summary".to_owned(),
        "summary?period=7d&service=payments-7".to_owned(),
        "stats/daily".to_owned(),
        "stats/daily?service=payments-7".to_owned(),
        format!("stats/daily?from={from}"),
        "services".to_owned(),
        "services?cursor=payments-3&limit=5".to_owned(),
        "pipeline".to_owned(),
        "unheard-windows?from=2020-01-01T00:00:00Z".to_owned(),
        "unheard-windows?from=2020-01-01T00:00:00Z&service=payments-7".to_owned(),
    ] {
        let (status, body) = api.get(&format!("/api/monitor/{path}")).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        // A cursor of any list leads on.
        if let (Some(next), false) = (body["next"].as_str(), path.contains("cursor")) {
            let mark = if path.contains('?') { '&' } else { '?' };
            let (status, body) = api.get(&format!("/api/monitor/{path}{mark}cursor={next}")).await;
            assert_eq!(status, StatusCode::OK, "{path} at {next}: {body}");
        }
    }
}

/// Every statement that was run meanwhile, with its values.
async fn statements(log: &mut MySqlConnection, monitor: Monitor) -> Vec<String> {
    let api = Api::of(monitor.clone()).await;
    run(log, "SET GLOBAL log_output = 'TABLE'").await;
    run(log, "SET GLOBAL general_log = ON").await;
    ask(&api).await;
    // All marks, and then windows that are to be counted anew.
    for _ in 0..3 {
        assert!(counting::count_once(&monitor, clock::now()).await.unwrap() > 0);
    }
    assert!(counting::judge_once(&monitor, clock::now()).await.unwrap() > 0);
    // What is being counted anew is not pruned.
    run(log, "UPDATE counting SET recounted_to = NULL; DELETE FROM uncounted_windows").await;
    prune_some(&monitor).await;
    // Windows whose events are gone are passed over, here down to the last.
    run(log, "UPDATE windows SET events_kept = FALSE WHERE id < 2000").await;
    let path = format!("/api/monitor/events?to={}", clock::now().minus(Duration::from_hours(52)));
    assert_eq!(api.get(&path).await.1["next"], serde_json::Value::Null, "{path}");
    counting::rebuild(&monitor).await.unwrap();
    for _ in 0..40 {
        assert!(counting::count_once(&monitor, clock::now()).await.unwrap() > 0);
    }
    run(log, "SET GLOBAL general_log = OFF").await;
    let logged = "SELECT DISTINCT CONVERT(argument USING utf8mb4) FROM mysql.general_log \
        WHERE command_type = 'Execute'";
    let logged: Vec<String> = sqlx::query_scalar(logged).fetch_all(log).await.unwrap();
    // What is copied is read; that it is there by now does not matter then.
    let is_copy = |text: &&String| {
        text.starts_with("INSERT INTO report_totals") && text.contains("FROM archived_totals")
    };
    let copies: Vec<String> = logged
        .iter()
        .filter(is_copy)
        .map(|text| text[text.find("SELECT").unwrap()..].to_owned())
        .collect();
    logged
        .into_iter()
        .filter(|text| {
            ["SELECT", "WITH", "DELETE", "UPDATE"].iter().any(|begin| text.starts_with(begin))
        })
        .chain(copies)
        .collect()
}

/// How a statement reads each table: its name, the way, and the rows that are estimated.
async fn plan(connection: &mut MySqlConnection, statement: &str) -> Vec<(String, String, i64)> {
    let explain = AssertSqlSafe(format!("EXPLAIN FORMAT=TRADITIONAL {statement}"));
    let rows = sqlx::raw_sql(explain).fetch_all(connection).await.unwrap();
    let text = |row: &sqlx::mysql::MySqlRow, name: &str| {
        row.try_get::<Option<String>, _>(name).unwrap().unwrap_or_default()
    };
    let steps = rows.iter().map(|row| {
        let rows = row.try_get_unchecked::<Option<String>, _>("rows").unwrap_or_default();
        (text(row, "table"), text(row, "type"), rows.map_or(0, |rows| rows.parse().unwrap()))
    });
    steps.collect()
}

/// How many rows a statement looks at.
async fn rows_read(connection: &mut MySqlConnection, statement: &str) -> i64 {
    let mut reads = [0; 2];
    for (round, reads) in reads.iter_mut().enumerate() {
        if round == 1 {
            let mut undone = connection.begin().await.unwrap();
            let statement = AssertSqlSafe(statement.to_owned());
            sqlx::raw_sql(statement).fetch_all(&mut *undone).await.unwrap();
            undone.rollback().await.unwrap();
        }
        let status = sqlx::raw_sql("SHOW SESSION STATUS LIKE 'Handler_read%'");
        let rows = status.fetch_all(&mut *connection).await.unwrap();
        *reads = rows.iter().map(|row| row.get::<String, _>(1).parse::<i64>().unwrap()).sum();
    }
    reads[1] - reads[0]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_query_looks_at_more_than_a_part_of_a_table() {
    let directory =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("plans-{}", std::process::id()));
    let options = Options {
        mysqld: std::env::var_os("HEARTBEAT_TEST_MYSQLD").map(PathBuf::from),
        databases: vec!["monitor".to_owned(), "payments".to_owned()],
        ..Options::default()
    };
    let server = Database::start(&directory, &options).await.unwrap();
    let monitor = monitor_at(&server.url("monitor"), &server.url("payments")).await;
    let mut connection = MySqlConnection::connect(&server.url("monitor")).await.unwrap();
    fill(&mut connection).await;
    let mut audit = fill_audit(&server.url("payments")).await;
    let statements = statements(&mut connection, monitor).await;
    assert!(statements.len() > 40, "{statements:#?}");
    for part in [
        "FROM uncounted_windows",
        "events_kept = TRUE AND id IN",
        "SELECT span, service_name",
        "AND status <> 'OPEN' ORDER BY id",
        "judge_at <=",
        "FROM archived_totals WHERE",
        "length_us >",
        "(windows_with_events)",
    ] {
        assert!(statements.iter().any(|statement| statement.contains(part)), "{part}");
    }
    for table in ["events", "windows", "window_history", "dead_letters", "windows_to_empty"] {
        let deletes = format!("DELETE FROM {table} WHERE ");
        assert!(statements.iter().any(|text| text.starts_with(&deletes)), "{deletes}");
    }
    let mut expensive = Vec::new();
    for statement in &statements {
        let is_of_audit =
            statement.contains("report_windows") || statement.contains("report_audit");
        let connection = if is_of_audit { &mut audit } else { &mut connection };
        for (table, way, rows) in plan(connection, statement).await {
            let is_scan = way == "ALL" || (way == "index" && rows > MOST_ROWS);
            if is_scan && LARGE.contains(&table.as_str()) {
                expensive.push(format!("{table} in full: {statement}"));
            }
        }
        let rows = rows_read(connection, statement).await;
        if rows > MOST_ROWS {
            expensive.push(format!("{rows} rows: {statement}"));
        }
    }
    assert!(expensive.is_empty(), "{expensive:#?}");
    drop((connection, audit));
    server.stop().await.unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
}
