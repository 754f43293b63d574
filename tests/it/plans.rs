//! What the queries of the API and of pruning cost: on a database that is not small, no statement looks
//! at more than a part of it.
//!
//! The server of this test is its own, because its log of all statements is. Each statement that
//! it was asked is explained, and, unless it changes something, run again on a connection whose rows are
//! counted.

use std::path::PathBuf;

use heartbeat::clock;
use heartbeat::local::{Database, Options};
use heartbeat::monitor::retention::{Retain, RetentionArgs, SHORTEST};
use heartbeat::monitor::totals::Count;
use heartbeat::monitor::{Monitor, prune};
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
const LARGE: [&str; 11] = [
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
];

async fn run(connection: &mut MySqlConnection, statement: &str) {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.unwrap();
}

/// The numbers below one.
fn numbers(below: u32) -> String {
    format!(
        "(WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < {below} - 1) \
         SELECT n FROM n)"
    )
}

/// Stores a window each 10 s up to now. One in twenty has a slot that is missing, another one in
/// twenty one that reports an error, and the last 200 are open.
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
        "INSERT INTO counted_windows (window_id, epoch, added) SELECT id, 1, '{}' FROM windows \
         WHERE status <> 'OPEN'",
        "UPDATE counting SET recounted_to = NULL",
        "ANALYZE TABLE windows, events, unscheduled_events, report_totals, archived_totals, window_history, \
         dead_letters, counted_windows",
    ] {
        run(connection, statement).await;
    }
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

/// Asks for everything that the API lists, in many ways.
async fn ask(api: &Api) {
    let (_, windows) = api.get("/api/monitor/windows?limit=1").await;
    let uuid = windows["windows"][0]["window_uuid"].as_str().unwrap().to_owned();
    let (_, page) = api.get("/api/monitor/events?limit=25").await;
    let events = page["next"].as_str().unwrap().to_owned();
    let next = windows["next"].as_str().unwrap().to_owned();
    let from = windows["windows"][0]["window_from"].as_str().unwrap()[..10].to_owned();
    for path in [
        "windows".to_owned(),
        "windows?service=payments-7".to_owned(),
        "windows?service=payments-7&status=alert".to_owned(),
        "windows?status=alert".to_owned(),
        format!("windows?status=closed&from={from}T00:00:00Z&cursor={next}"),
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
        "summary?period=1h".to_owned(),
        "summary".to_owned(),
        "summary?period=7d&service=payments-7".to_owned(),
        "stats/daily".to_owned(),
        "stats/daily?service=payments-7".to_owned(),
        format!("stats/daily?from={from}"),
        "services".to_owned(),
        "services?cursor=payments-3&limit=5".to_owned(),
        "pipeline".to_owned(),
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
    prune_some(&monitor).await;
    run(log, "SET GLOBAL general_log = OFF").await;
    let logged = "SELECT DISTINCT CONVERT(argument USING utf8mb4) FROM mysql.general_log \
        WHERE command_type = 'Execute'";
    let logged: Vec<String> = sqlx::query_scalar(logged).fetch_all(log).await.unwrap();
    logged
        .into_iter()
        .filter(|text| {
            ["SELECT", "WITH", "DELETE", "UPDATE"].iter().any(|begin| text.starts_with(begin))
        })
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
            let statement = AssertSqlSafe(statement.to_owned());
            sqlx::raw_sql(statement).fetch_all(&mut *connection).await.unwrap();
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
    let statements = statements(&mut connection, monitor).await;
    assert!(statements.len() > 40, "{statements:#?}");
    for table in ["events", "windows", "window_history", "dead_letters", "windows_to_empty"] {
        let deletes = format!("DELETE FROM {table} WHERE ");
        assert!(statements.iter().any(|text| text.starts_with(&deletes)), "{deletes}");
    }
    let mut expensive = Vec::new();
    for statement in &statements {
        for (table, way, rows) in plan(&mut connection, statement).await {
            let is_scan = way == "ALL" || (way == "index" && rows > MOST_ROWS);
            if is_scan && LARGE.contains(&table.as_str()) {
                expensive.push(format!("{table} in full: {statement}"));
            }
        }
        let only_reads = statement.starts_with("SELECT") || statement.starts_with("WITH");
        let rows = if only_reads { rows_read(&mut connection, statement).await } else { 0 };
        if rows > MOST_ROWS {
            expensive.push(format!("{rows} rows: {statement}"));
        }
    }
    assert!(expensive.is_empty(), "{expensive:#?}");
    drop(connection);
    server.stop().await.unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
}
