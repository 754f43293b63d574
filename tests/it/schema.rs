//! Bringing schemas up to date: the first system's tables with their data, strangers' tables, and a
//! migration that is broken off at any of its statements.

mod between;
mod broken_off;

use heartbeat::db;
use heartbeat::payments;
use sqlx::{AssertSqlSafe, MySqlPool, Row};
use uuid::Uuid;

use crate::first_system::tables;
use crate::support::{Ground, eventually, pool, run, shared};

/// The window of the first senders' rows.
const FIRST_WINDOW: &str = "6f1c1f0e-5f0c-4f43-9a55-0d2b1f2a7f10";

/// Rows of a window, as the first senders write them.
const FIRST_ROWS: &str = "
INSERT INTO report_windows (window_uuid, service, window_from, window_to, error_status_generado,
    error_status_no_reportado, created_at) VALUES ('6f1c1f0e-5f0c-4f43-9a55-0d2b1f2a7f10',
    'payments-a', '2026-11-21 10:00:00', '2026-11-21 10:02:30', 0.2623, 0.0812,
    '2026-11-21 10:00:00');
INSERT INTO report_audit (window_uuid, service, status, window_from, window_to, timestamp,
    sent_to_queue, created_at) VALUES ('6f1c1f0e-5f0c-4f43-9a55-0d2b1f2a7f10', 'payments-a',
    'error:boom', '2026-11-21 10:00:00', '2026-11-21 10:02:30', '2026-11-21 10:00:10', 1,
    '2026-11-21 10:00:10')";

/// Their tables as another version of them may be: the window's uuid is the primary key, nothing ties
/// the tables together, and less is required.
const FIRST_TABLES_BY_UUID: &str = "
CREATE TABLE report_windows (
    window_uuid VARCHAR(36) NOT NULL PRIMARY KEY, service VARCHAR(64) NOT NULL,
    window_from DATETIME NOT NULL, window_to DATETIME NOT NULL,
    error_status_generado FLOAT NULL, error_status_no_reportado FLOAT NULL,
    created_at DATETIME NULL);
CREATE TABLE report_audit (
    id INT NOT NULL AUTO_INCREMENT PRIMARY KEY, window_uuid VARCHAR(36) NOT NULL,
    service VARCHAR(64) NOT NULL, status VARCHAR(120) NOT NULL, window_from DATETIME NOT NULL,
    window_to DATETIME NOT NULL, timestamp DATETIME NOT NULL, sent_to_queue TINYINT(1) NOT NULL,
    created_at DATETIME NULL, KEY by_window (window_uuid))";

/// The table in which it is noted what was done, as older versions of this program made it.
const NOTES: &str = "
CREATE TABLE _sqlx_migrations (
    version BIGINT PRIMARY KEY, description TEXT NOT NULL,
    installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, success BOOLEAN NOT NULL,
    checksum BLOB NOT NULL, execution_time BIGINT NOT NULL)";

/// The first senders' tables with rows of a window.
pub async fn first_senders(pool: &MySqlPool, window: &str) {
    sqlx::raw_sql(tables::PAYMENTS).execute(pool).await.unwrap();
    let rows = AssertSqlSafe(FIRST_ROWS.replace(FIRST_WINDOW, window));
    sqlx::raw_sql(rows).execute(pool).await.unwrap();
}

/// The same under the name that these tests give the window.
async fn first_window(pool: &MySqlPool) {
    first_senders(pool, FIRST_WINDOW).await;
}

/// Notes that all versions up to one are done, and that one begun.
async fn note_begun(pool: &MySqlPool, schema: &db::Schema, version: i64) {
    sqlx::raw_sql(NOTES).execute(pool).await.unwrap();
    for migration in schema.iter().filter(|migration| migration.version <= version) {
        sqlx::query("INSERT INTO _sqlx_migrations VALUES (?, '', NOW(), ?, ?, -1)")
            .bind(migration.version)
            .bind(migration.version < version)
            .bind(&*migration.checksum)
            .execute(pool)
            .await
            .unwrap();
    }
}

/// Character sets and collations of databases, where the server has them.
const COLLATIONS: [(&str, &str); 3] = [
    ("utf8mb4", "utf8mb4_general_ci"),
    ("utf8mb4", "utf8mb4_0900_ai_ci"),
    ("latin1", "latin1_swedish_ci"),
];

async fn has_collation(pool: &MySqlPool, name: &str) -> bool {
    let sql = "SELECT COUNT(*) FROM information_schema.COLLATIONS WHERE COLLATION_NAME = ?";
    sqlx::query_scalar::<_, i64>(sql).bind(name).fetch_one(pool).await.unwrap() > 0
}

/// Opens one window after the other as the first senders do, and a row of each, until told to stop.
/// Answers how many rows it wrote.
async fn go_on_sending(pool: MySqlPool, stop: tokio::sync::watch::Receiver<bool>) -> i64 {
    let mut rows = 0;
    while !*stop.borrow() {
        let uuid = Uuid::new_v4().to_string();
        sqlx::query(
            "INSERT INTO report_windows (window_uuid, service, window_from, window_to, \
             error_status_generado, error_status_no_reportado, created_at) \
             VALUES (?, 'payments-b', '2026-11-21 10:00:00', '2026-11-21 10:02:30', 0.1, 0.2, \
             '2026-11-21 10:00:00')",
        )
        .bind(&uuid)
        .execute(&pool)
        .await
        .unwrap();
        for tick in 0..3 {
            sqlx::query(
                "INSERT INTO report_audit (window_uuid, service, status, window_from, window_to, \
                 timestamp, sent_to_queue, created_at) VALUES (?, 'payments-b', 'ok', \
                 '2026-11-21 10:00:00', '2026-11-21 10:02:30', \
                 '2026-11-21 10:00:00' + INTERVAL ? SECOND, 1, '2026-11-21 10:00:00')",
            )
            .bind(&uuid)
            .bind(tick * 10)
            .execute(&pool)
            .await
            .unwrap();
            rows += 1;
        }
    }
    rows
}

#[tokio::test]
async fn the_first_senders_tables_are_adopted_while_they_go_on_sending() {
    for (set, collation) in COLLATIONS {
        for tables in [tables::PAYMENTS, FIRST_TABLES_BY_UUID] {
            let ground = Ground::new().await;
            let before = pool(&ground.payments_url).await;
            if !has_collation(&before, collation).await {
                continue;
            }
            let alter = format!("ALTER DATABASE CHARACTER SET {set} COLLATE {collation}");
            sqlx::raw_sql(AssertSqlSafe(alter)).execute(&before).await.unwrap();
            sqlx::raw_sql(tables).execute(&before).await.unwrap();
            sqlx::raw_sql(FIRST_ROWS).execute(&before).await.unwrap();
            let (stop, stopped) = tokio::sync::watch::channel(false);
            let senders: Vec<_> = (0..2)
                .map(|_| tokio::spawn(go_on_sending(before.clone(), stopped.clone())))
                .collect();
            let rows = async || {
                let rows = "SELECT COUNT(*) FROM report_audit";
                sqlx::query_scalar::<_, i64>(rows).fetch_one(&before).await.unwrap()
            };
            let more_than = async |least: i64| {
                let more = async || (rows().await > least).then_some(());
                eventually("they go on sending", more).await;
            };
            more_than(5).await;
            let payments = ground.payments("payments-a").await;
            more_than(rows().await + 5).await;
            stop.send_replace(true);
            let mut written = 1;
            for sender in senders {
                written += sender.await.unwrap();
            }
            assert_eq!(rows().await, written, "{collation}");
            its_window_is_as_it_was(&payments.pool, collation).await;
        }
    }
}

async fn its_window_is_as_it_was(pool: &MySqlPool, collation: &str) {
    let window: Uuid = FIRST_WINDOW.parse().unwrap();
    let totals = payments::totals_by_window(pool, &[window]).await.unwrap();
    assert_eq!((totals[0].1.audit_total, totals[0].1.error_count), (1, 1), "{collation}");
    let row = sqlx::query(
        "SELECT error_status_generado, error_status_no_reportado, tick_us FROM report_windows \
         WHERE window_uuid = ?",
    )
    .bind(window.to_string())
    .fetch_one(pool)
    .await
    .unwrap();
    assert_eq!((row.get::<f64, _>(0), row.get::<f64, _>(1)), (0.2623, 0.0812), "{collation}");
    assert_eq!(row.get::<Option<i64>, _>(2), None);
}

/// A program of the first system that leaves it to the database to say when a row was created.
#[tokio::test]
async fn a_default_of_the_first_senders_stays() {
    let ground = Ground::new().await;
    let before = pool(&ground.payments_url).await;
    first_window(&before).await;
    for table in ["report_windows", "report_audit"] {
        let default = format!(
            "ALTER TABLE {table} MODIFY created_at DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP"
        );
        sqlx::raw_sql(AssertSqlSafe(default)).execute(&before).await.unwrap();
    }
    let payments = ground.payments("payments-a").await;
    sqlx::raw_sql(
        "INSERT INTO report_windows (window_uuid, service, window_from, window_to, \
         error_status_generado, error_status_no_reportado) VALUES ('w', 'payments-b', \
         '2026-11-21 10:00:00', '2026-11-21 10:02:30', 0.1, 0.2); \
         INSERT INTO report_audit (window_uuid, service, status, window_from, window_to, timestamp, \
         sent_to_queue) VALUES ('w', 'payments-b', 'ok', '2026-11-21 10:00:00', \
         '2026-11-21 10:02:30', '2026-11-21 10:00:00', 1)",
    )
    .execute(&payments.pool)
    .await
    .unwrap();
}

#[tokio::test]
async fn shares_that_were_never_float_stay_to_the_last_digit() {
    let ground = Ground::new().await;
    let payments = ground.payments("payments-a").await;
    let shares = [0.123_456_789_012_345_6, f64::from(0.2623_f32), 0.25, 0.0];
    for share in shares {
        sqlx::query(
            "INSERT INTO report_windows (window_uuid, service, window_from, window_to, \
             error_status_generado, created_at) VALUES (UUID(), 'payments-a', \
             '2026-11-21 10:00:00', '2026-11-21 10:02:30', ?, '2026-11-21 10:00:00')",
        )
        .bind(share)
        .execute(&payments.pool)
        .await
        .unwrap();
    }
    let last = db::PAYMENTS_SCHEMA.iter().find(|migration| migration.version == 6).unwrap();
    sqlx::raw_sql(AssertSqlSafe(last.sql.as_str())).execute(&payments.pool).await.unwrap();
    let found: Vec<f64> =
        sqlx::query_scalar("SELECT error_status_generado FROM report_windows ORDER BY id")
            .fetch_all(&payments.pool)
            .await
            .unwrap();
    assert_eq!(found, [0.123_456_789_012_345_6, 0.2623, 0.25, 0.0]);
}

/// What an older version of this program left when it stopped at the foreign key.
#[tokio::test]
async fn a_database_that_was_left_half_way_is_finished() {
    let ground = Ground::new().await;
    let before = pool(&ground.payments_url).await;
    first_window(&before).await;
    note_begun(&before, &db::PAYMENTS_SCHEMA, 2).await;
    let environment = [("DATABASE_URL", ground.payments_url.as_str())];
    let (code, _, err) = run(
        &["payments", "--name", "payments-a", "--listen", "127.0.0.1:0"],
        &[
            environment[0],
            ("CREATE_SCHEMA_ON_STARTUP", "false"),
            ("REDIS_URL", shared().redis_url.as_str()),
        ],
    )
    .await;
    assert_ne!(code, 0);
    assert!(err.contains("begun and not finished: run `heartbeat migrate payments`"), "{err}");
    let (code, _, err) = run(&["migrate", "payments"], &environment).await;
    assert_eq!(code, 0, "{err}");
    its_window_is_as_it_was(&before, "half-way").await;
}

#[tokio::test]
async fn what_is_not_ours_is_left_as_it_is() {
    let cases = [
        ("monitor", tables::MONITOR, &["first system's monitor", "--adopt-from"][..]),
        ("monitor", "CREATE TABLE retention (id INT)", &["retention that is not heartbeat's"]),
        ("payments", "CREATE VIEW stream_identities AS SELECT 1", &["stream_identities"]),
        (
            "payments",
            "CREATE TABLE report_audit (id INT)",
            &["lacks window_uuid, service", "empty"],
        ),
        (
            "payments",
            "CREATE TABLE Report_Audit (id INT)",
            &["Report_Audit is named in another case than report_audit", "rename it"],
        ),
        ("payments", tables::MONITOR, &["of the monitor", "the payments database?"]),
        ("monitor", tables::PAYMENTS, &["of the senders", "the monitor database?"]),
        ("payments", "CREATE VIEW report_windows AS SELECT 1", &["report_windows is a view"]),
        (
            "payments",
            "CREATE TABLE report_windows (id INT) ENGINE = MyISAM",
            &["kept by MyISAM", "ENGINE = InnoDB"],
        ),
    ];
    for (schema, tables, said) in cases {
        let ground = Ground::new().await;
        let url = if schema == "monitor" { &ground.monitor_url } else { &ground.payments_url };
        let strange = pool(url).await;
        sqlx::raw_sql(tables).execute(&strange).await.unwrap();
        let before = broken_off::shape(&strange).await;
        for _ in 0..2 {
            let (code, _, err) = run(&["migrate", schema], &[("DATABASE_URL", url)]).await;
            assert_eq!(code, 1, "{tables}");
            assert!(said.iter().all(|said| err.contains(said)), "{err}");
            assert_eq!(broken_off::shape(&strange).await, before, "{tables}");
        }
    }
}

/// An older version made tables in the first system's database before it found that it could not go on.
#[tokio::test]
async fn the_first_ledger_is_not_taken_for_a_view_that_was_begun() {
    let ground = Ground::new().await;
    let before = pool(&ground.monitor_url).await;
    let first = db::MONITOR_SCHEMA.iter().next().unwrap();
    sqlx::raw_sql(AssertSqlSafe(first.sql.as_str())).execute(&before).await.unwrap();
    sqlx::raw_sql(tables::MONITOR).execute(&before).await.unwrap();
    note_begun(&before, &db::MONITOR_SCHEMA, 2).await;
    let (code, _, err) =
        run(&["migrate", "monitor"], &[("DATABASE_URL", ground.monitor_url.as_str())]).await;
    assert_eq!(code, 1);
    assert!(err.contains("--adopt-from"), "{err}");
}

/// A column that somebody has added is not taken for one that a statement has left.
#[tokio::test]
async fn a_name_that_is_taken_is_said_again_and_again() {
    let ground = Ground::new().await;
    let before = pool(&ground.payments_url).await;
    first_window(&before).await;
    sqlx::raw_sql("ALTER TABLE report_windows ADD COLUMN plan INT").execute(&before).await.unwrap();
    let environment = [("DATABASE_URL", ground.payments_url.as_str())];
    for _ in 0..2 {
        let (code, _, err) = run(&["migrate", "payments"], &environment).await;
        assert_eq!(code, 1);
        let said = [
            "ALTER TABLE report_windows",
            "'plan'",
            "rename",
            "`heartbeat migrate payments` again",
        ];
        assert!(said.iter().all(|said| err.contains(said)), "{err}");
    }
    sqlx::raw_sql("ALTER TABLE report_windows DROP COLUMN plan").execute(&before).await.unwrap();
    let (code, _, err) = run(&["migrate", "payments"], &environment).await;
    assert_eq!(code, 0, "{err}");
    its_window_is_as_it_was(&before, "renamed").await;
}

/// The same in a database that an older version left begun, which noted no refusal.
#[tokio::test]
async fn what_was_begun_is_done_only_if_all_of_it_is_there() {
    let ground = Ground::new().await;
    let before = pool(&ground.payments_url).await;
    first_window(&before).await;
    sqlx::raw_sql("ALTER TABLE report_windows ADD COLUMN plan INT").execute(&before).await.unwrap();
    note_begun(&before, &db::PAYMENTS_SCHEMA, 2).await;
    let environment = [("DATABASE_URL", ground.payments_url.as_str())];
    let (code, _, err) = run(&["migrate", "payments"], &environment).await;
    assert_eq!(code, 1);
    assert!(err.contains("'plan'") && err.contains("rename"), "{err}");
}

/// The same where a statement leaves one thing only, so that its name is all that could be seen of it.
#[tokio::test]
async fn a_key_of_others_is_not_taken_for_what_a_statement_left() {
    let ground = Ground::new().await;
    let monitor = ground.monitor().await;
    let last = "DELETE FROM _sqlx_migrations WHERE version >= 8";
    let strange = "ALTER TABLE windows DROP KEY windows_with_events, \
        ADD KEY windows_with_events (service_name)";
    for statement in [last, "DROP TABLE awaited_report", strange] {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&monitor.pool).await.unwrap();
    }
    let environment = [("DATABASE_URL", ground.monitor_url.as_str())];
    for _ in 0..2 {
        let (code, _, err) = run(&["migrate", "monitor"], &environment).await;
        assert_eq!(code, 1);
        assert!(err.contains("'windows_with_events'") && err.contains("rename"), "{err}");
    }
    let drop = "ALTER TABLE windows DROP KEY windows_with_events";
    sqlx::raw_sql(drop).execute(&monitor.pool).await.unwrap();
    let (code, _, err) = run(&["migrate", "monitor"], &environment).await;
    assert_eq!(code, 0, "{err}");
}

/// Somebody else's table that refers to ours is somebody else's to change.
#[tokio::test]
async fn a_foreign_key_of_others_is_named() {
    let ground = Ground::new().await;
    let before = pool(&ground.payments_url).await;
    first_window(&before).await;
    sqlx::raw_sql(
        "CREATE TABLE notes (window_uuid VARCHAR(36) NOT NULL, CONSTRAINT notes_of_window \
         FOREIGN KEY (window_uuid) REFERENCES report_windows (window_uuid))",
    )
    .execute(&before)
    .await
    .unwrap();
    let environment = [("DATABASE_URL", ground.payments_url.as_str())];
    let (code, _, err) = run(&["migrate", "payments"], &environment).await;
    assert_eq!(code, 1);
    assert!(err.contains("foreign key notes_of_window of table notes"), "{err}");
    sqlx::raw_sql("DROP TABLE notes").execute(&before).await.unwrap();
    assert_eq!(run(&["migrate", "payments"], &environment).await.0, 0);
}
