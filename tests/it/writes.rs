//! Writes to the databases: finished although their caller leaves, tried again, answered after the
//! commit, and never at odds with what others write at the same moment.
//!
//! Where two writers must meet at one point, a transaction of the test holds a lock there, and the
//! test goes on when the others are known to wait for it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use heartbeat::config::{DatabaseArgs, DatabaseUrl};
use heartbeat::db;
use heartbeat::monitor::ingest::{self, Outcome};
use heartbeat::monitor::window::{Counts, WindowStatus};
use heartbeat::monitor::{Monitor, latest_windows, sweep};
use heartbeat::wire::{Rates, Tick, Window};
use nix::sys::signal::Signal;
use sqlx::{AssertSqlSafe, MySql, MySqlPool, Row, Transaction};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::support::{Ground, Process, announcement, answer, eventually, heartbeat, pool, window};

/// Waits until so many transactions of a pool's database wait for a lock.
async fn waiting_for_locks(pool: &MySqlPool, wanted: i64) {
    let waiting = "SELECT COUNT(*) FROM information_schema.INNODB_TRX t \
        JOIN information_schema.PROCESSLIST p ON p.ID = t.trx_mysql_thread_id \
        WHERE t.trx_state = 'LOCK WAIT' AND p.DB = DATABASE()";
    eventually(&format!("{wanted} wait for a lock"), async || {
        // MariaDB answers from a copy, which it renews when nobody has asked for 100 ms.
        tokio::time::sleep(Duration::from_millis(120)).await;
        // MySQL refuses it while another test's statement there holds bytes that are no text.
        let found: i64 = sqlx::query_scalar(waiting).fetch_one(pool).await.ok()?;
        (found >= wanted).then_some(())
    })
    .await;
}

/// Announces a window. Answers its row's id.
async fn announced(monitor: &Monitor, window: &Window) -> i64 {
    ingest::announce(monitor, vec![announcement(window)], window.from()).await.unwrap();
    let id = sqlx::query_scalar("SELECT id FROM windows WHERE window_uuid = ?");
    id.bind(window.uuid.to_string()).fetch_one(&monitor.pool).await.unwrap()
}

/// The heartbeat of slot 0 as another monitor writes it.
const OTHERS_HEARTBEAT: &str = "INSERT INTO events (window_id, slot, status, report_timestamp, \
    recorded_at, deliveries) VALUES (?, 0, 'OK', UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), 1)";
/// A window as another monitor locks it to close it.
const OTHERS_WINDOW: &str = "SELECT id FROM windows WHERE id = ? FOR UPDATE";

/// A transaction of another monitor, which has written or locked something of a window.
async fn others(
    ground: &Ground,
    statement: &'static str,
    window_id: i64,
) -> (MySqlPool, Transaction<'static, MySql>) {
    let server = pool(&ground.monitor_url).await;
    let mut other = server.begin().await.unwrap();
    sqlx::query(statement).bind(window_id).execute(&mut *other).await.unwrap();
    (server, other)
}

#[tokio::test]
async fn a_write_is_committed_although_its_caller_leaves() {
    let monitor = Ground::new().await.monitor().await;
    sqlx::raw_sql("CREATE TABLE kept (id INT PRIMARY KEY)").execute(&monitor.pool).await.unwrap();
    let (written, left) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let of_body = (Arc::clone(&written), Arc::clone(&left));
    let writing = db::transaction(&monitor.pool, "a test", move |connection| {
        let (written, left) = of_body.clone();
        Box::pin(async move {
            sqlx::query("INSERT INTO kept VALUES (1)").execute(connection).await?;
            written.notify_one();
            left.notified().await;
            Ok(())
        })
    });
    tokio::select! {
        () = written.notified() => (),
        ended = writing => panic!("it waits until the caller has left: {ended:?}"),
    }
    left.notify_one();
    eventually("it is committed", async || {
        let kept = sqlx::query("SELECT id FROM kept").fetch_optional(&monitor.pool);
        kept.await.unwrap().map(drop)
    })
    .await;
}

/// Runs a transaction whose first attempt fails with an error of the server. Answers the server's
/// number of the connection of each attempt.
async fn connections_after(pool: &MySqlPool, error_number: u16) -> Result<Vec<i64>, db::Error> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let of_body = Arc::clone(&seen);
    db::transaction(pool, "a test", move |connection| {
        let seen = Arc::clone(&of_body);
        Box::pin(async move {
            let connection_id = "SELECT CAST(CONNECTION_ID() AS SIGNED)";
            let id: i64 = sqlx::query_scalar(connection_id).fetch_one(&mut *connection).await?;
            let attempts = {
                let mut seen = seen.lock().unwrap();
                seen.push(id);
                seen.len()
            };
            if attempts == 1 {
                let error = format!("SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {error_number}");
                sqlx::raw_sql(AssertSqlSafe(error)).execute(connection).await?;
            }
            Ok(())
        })
    })
    .await?;
    let seen = seen.lock().unwrap();
    Ok(seen.clone())
}

#[tokio::test]
async fn a_transaction_that_loses_a_deadlock_is_tried_again() {
    let monitor = Ground::new().await.monitor().await;
    assert_eq!(connections_after(&monitor.pool, 1213).await.unwrap().len(), 2);
}

/// After a failover the old server takes no writes, and would refuse on this connection for ever.
#[tokio::test]
async fn a_connection_to_a_server_that_takes_no_writes_is_closed() {
    let url: DatabaseUrl = Ground::new().await.monitor_url.parse().unwrap();
    for error_number in [1290, 1836].repeat(5) {
        // A pool of its own, which has no other connection to lend.
        let pool = db::connect(&url, ("a database", DatabaseArgs::OPTION), Duration::from_secs(5))
            .await
            .unwrap();
        let used = connections_after(&pool, error_number).await.unwrap();
        assert_eq!(used.len(), 2, "{error_number}");
        assert_ne!(used[0], used[1], "{error_number}: it was lent again");
    }
}

/// Whatever the server's own settings are: ours are those of its default here, which proves nothing.
#[tokio::test]
async fn each_connection_is_strict_and_reads_what_others_have_committed() {
    let ground = Ground::new().await;
    let server = pool(&ground.monitor_url).await;
    let mode: String =
        sqlx::query_scalar("SELECT @@GLOBAL.sql_mode").fetch_one(&server).await.unwrap();
    let lax = "SET GLOBAL TRANSACTION ISOLATION LEVEL REPEATABLE READ; SET GLOBAL sql_mode = ''";
    sqlx::raw_sql(lax).execute(&server).await.unwrap();
    let monitor = ground.monitor().await;
    let pool = &monitor.pool;
    sqlx::raw_sql("CREATE TABLE short (text VARCHAR(2))").execute(pool).await.unwrap();
    let mut reader = pool.begin().await.unwrap();
    let count = "SELECT COUNT(*) FROM short";
    let before: i64 = sqlx::query_scalar(count).fetch_one(&mut *reader).await.unwrap();
    let too_long = sqlx::query("INSERT INTO short VALUES ('long')").execute(pool).await;
    sqlx::query("INSERT INTO short VALUES ('ok')").execute(pool).await.unwrap();
    let after: i64 = sqlx::query_scalar(count).fetch_one(&mut *reader).await.unwrap();
    let restore = format!(
        "SET GLOBAL TRANSACTION ISOLATION LEVEL READ COMMITTED; SET GLOBAL sql_mode = '{mode}'"
    );
    sqlx::raw_sql(AssertSqlSafe(restore)).execute(&server).await.unwrap();
    assert!(too_long.is_err(), "a text was cut off silently");
    assert_eq!((before, after), (0, 1), "what was committed meanwhile is seen");
}

/// Preparing and closing costs 44 ms over TCP, as this driver speaks it.
#[tokio::test]
async fn a_connection_keeps_all_statements_that_we_use() {
    let monitor = Ground::new().await.monitor().await;
    let mut connection = monitor.pool.acquire().await.unwrap();
    for shape in 0..200 {
        let statement = AssertSqlSafe(format!("SELECT {shape}"));
        sqlx::query(statement).execute(&mut *connection).await.unwrap();
    }
    let closed = sqlx::raw_sql("SHOW SESSION STATUS LIKE 'Com_stmt_close'");
    let closed = closed.fetch_one(&mut *connection).await.unwrap();
    assert_eq!(closed.get::<String, _>(1), "0");
}

/// A second unique key on a table that all write to brings deadlocks that no order prevents.
#[tokio::test]
async fn hot_tables_have_one_unique_key() {
    let monitor = Ground::new().await.monitor().await;
    for table in ["events", "unscheduled_events"] {
        let unique = "SELECT DISTINCT INDEX_NAME FROM information_schema.STATISTICS \
            WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = ? AND NOT NON_UNIQUE";
        let unique: Vec<String> =
            sqlx::query_scalar(unique).bind(table).fetch_all(&monitor.pool).await.unwrap();
        assert_eq!(unique, ["PRIMARY"], "{table}");
    }
}

#[tokio::test]
async fn a_heartbeat_is_answered_after_its_commit() {
    let ground = Ground::new().await;
    let monitor = ground.monitor().await;
    let window = window("payments-a", 3);
    let id = announced(&monitor, &window).await;
    let (server, other) = others(&ground, OTHERS_HEARTBEAT, id).await;
    let (taker, batch) = (monitor.clone(), vec![heartbeat(&window, 0)]);
    let taking =
        tokio::spawn(async move { ingest::ingest(&taker, batch, window.from()).await.unwrap() });
    waiting_for_locks(&server, 1).await;
    assert!(!taking.is_finished(), "it is answered while it waits to be written");
    other.rollback().await.unwrap();
    assert_eq!(taking.await.unwrap(), [Outcome::Recorded]);
}

#[tokio::test]
async fn a_sweep_does_not_wait_for_a_window_that_another_monitor_closes() {
    let ground = Ground::new().await;
    let monitor = ground.monitor().await;
    let (theirs, mine) = (window("payments-a", 3), window("payments-a", 3));
    let (others_id, my_id) = (announced(&monitor, &theirs).await, announced(&monitor, &mine).await);
    let (_, other) = others(&ground, OTHERS_WINDOW, others_id).await;
    let over = mine.ends_at().plus(Duration::from_mins(1));
    assert_eq!(sweep::sweep_once(&monitor, over).await.unwrap(), [my_id]);
    other.rollback().await.unwrap();
    assert_eq!(sweep::sweep_once(&monitor, over).await.unwrap(), [others_id]);
}

/// The sweep has looked and found nothing; before it writes its verdict, the heartbeat arrives.
#[tokio::test]
async fn a_heartbeat_that_a_sweep_has_not_seen_is_not_overwritten() {
    let ground = Ground::new().await;
    let monitor = ground.monitor().await;
    let window = window("payments-a", 3);
    let id = announced(&monitor, &window).await;
    let (server, other) = others(&ground, OTHERS_HEARTBEAT, id).await;
    let sweeper = monitor.clone();
    let over = window.ends_at().plus(Duration::from_mins(1));
    let sweeping = tokio::spawn(async move { sweep::sweep_once(&sweeper, over).await.unwrap() });
    waiting_for_locks(&server, 1).await;
    other.commit().await.unwrap();
    assert_eq!(sweeping.await.unwrap(), [id]);
    let closed = latest_windows(&monitor.pool, 1).await.unwrap().remove(0);
    assert_eq!(closed.counts, Counts { received: 1, errors: 0, missing: 2, unobserved: 0 });
}

/// Both late heartbeats are written before either of them counts the window again.
#[tokio::test]
async fn two_late_heartbeats_at_once_are_both_counted() {
    let ground = Ground::new().await;
    let monitor = ground.monitor().await;
    let window = window("payments-a", 3);
    let id = announced(&monitor, &window).await;
    let over = window.ends_at().plus(Duration::from_mins(1));
    sweep::sweep_all(&monitor, over).await.unwrap();
    let (server, other) = others(&ground, OTHERS_WINDOW, id).await;
    let mut late = tokio::task::JoinSet::new();
    for slot in 0..2 {
        let (monitor, batch) = (monitor.clone(), vec![heartbeat(&window, slot)]);
        late.spawn(async move { ingest::ingest(&monitor, batch, over).await.unwrap() });
    }
    waiting_for_locks(&server, 2).await;
    other.rollback().await.unwrap();
    assert_eq!(late.join_all().await, [[Outcome::Late], [Outcome::Late]]);
    let revised = latest_windows(&monitor.pool, 1).await.unwrap().remove(0);
    assert_eq!(revised.counts, Counts { received: 2, errors: 0, missing: 1, unobserved: 0 });
}

#[tokio::test]
async fn a_request_that_is_being_written_when_the_monitor_must_stop_is_answered() {
    let ground = Ground::new().await;
    let state = ground.monitor().await;
    // No sweep waits for the same lock.
    let monitor = Process::monitor(&ground, &["--grace", "300days"]).await;
    let window = window("payments-a", 3);
    let id = announced(&state, &window).await;
    let (server, other) = others(&ground, OTHERS_HEARTBEAT, id).await;
    let client = heartbeat::http::client(Duration::from_secs(10)).unwrap();
    let post = client.post(monitor.url("/api/monitor/heartbeats"));
    let posting = tokio::spawn(post.body(heartbeat(&window, 0).to_json()).send());
    waiting_for_locks(&server, 1).await;
    monitor.signal(Signal::SIGTERM);
    let impatient = heartbeat::http::client(Duration::from_millis(200)).unwrap();
    eventually("it takes no more requests", async || {
        impatient.get(monitor.url("/health")).send().await.err().map(drop)
    })
    .await;
    other.rollback().await.unwrap();
    let (status, body) = answer(posting.await.unwrap().unwrap()).await;
    assert_eq!((status.as_u16(), &body["outcome"]), (202, &"recorded".into()));
}

#[tokio::test]
async fn a_monitor_closes_a_window_when_it_ends_and_not_at_the_next_interval() {
    let ground = Ground::new().await;
    let state = ground.monitor().await;
    let from = heartbeat::clock::now();
    let window = Window::new(
        Uuid::new_v4(),
        "payments-a".parse().unwrap(),
        (from, from.plus(Duration::from_secs(3))),
        Tick::from_seconds(1.0).unwrap(),
        Rates::default(),
    )
    .unwrap();
    announced(&state, &window).await;
    let _monitor = Process::monitor(&ground, &["--sweep-interval", "1h", "--grace", "1s"]).await;
    eventually("it is closed", async || {
        let stored = latest_windows(&state.pool, 1).await.unwrap().remove(0);
        (stored.status == WindowStatus::Alert).then_some(())
    })
    .await;
}
