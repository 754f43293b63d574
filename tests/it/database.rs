//! The databases: schemas that are adopted and shared, and failures that must not lose a row.

use std::sync::Arc;
use std::time::Duration;

use heartbeat::config::{DatabaseArgs, DatabaseUrl};
use heartbeat::db;
use heartbeat::monitor::{Monitor, ingest, latest_windows, lookups};
use sqlx::{AssertSqlSafe, Connection, MySqlPool};
use uuid::Uuid;

use crate::support::{
    Ground, Process, Proxy, announcement, eventually, get, heartbeat, pool, window,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_processes_may_bring_a_schema_up_to_date_at_once() {
    let ground = Ground::new().await;
    let mut starts = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let pool = pool(&ground.payments_url).await;
        starts.spawn(async move {
            db::prepare_schema(&pool, &db::PAYMENTS_SCHEMA, "payments database", true).await
        });
    }
    for outcome in starts.join_all().await {
        outcome.unwrap();
    }
}

/// During an upgrade an older program meets a schema that a newer one has made.
#[tokio::test]
async fn a_program_goes_on_with_a_schema_that_is_newer() {
    let ground = Ground::new().await;
    let monitor = ground.monitor().await;
    sqlx::raw_sql(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9999, 'of the future', TRUE, '', 0)",
    )
    .execute(&monitor.pool)
    .await
    .unwrap();
    for may_change in [true, false] {
        let ready =
            db::prepare_schema(&monitor.pool, &db::MONITOR_SCHEMA, "monitor database", may_change);
        ready.await.unwrap();
    }
}

/// A caller that gives up while a transaction begins must not leave it to the next borrower, whose
/// answered write would then be rolled back.
#[tokio::test]
async fn an_abandoned_begin_does_not_swallow_the_next_write() {
    let ground = Ground::new().await;
    let monitor = ground.monitor().await;
    sqlx::raw_sql("CREATE TABLE kept (id INT NOT NULL PRIMARY KEY)")
        .execute(&monitor.pool)
        .await
        .unwrap();
    let other = pool(&ground.monitor_url).await;
    // All but one are in use, so that the next borrower gets what was given up.
    let mut in_use = Vec::new();
    for _ in 1..monitor.pool.options().get_max_connections() {
        in_use.push(monitor.pool.acquire().await.unwrap());
    }
    let (mut abandoned, mut inserted) = (0, 0_i64);
    while abandoned < 20 {
        let mut connection = monitor.pool.acquire().await.unwrap();
        // BEGIN is on its way when the caller gives up, unless the answer was there at once.
        abandoned += tokio::select! {
            biased;
            _ = connection.begin() => 0,
            () = std::future::ready(()) => 1,
        };
        drop(connection);
        sqlx::query("INSERT INTO kept VALUES (?)")
            .bind(inserted)
            .execute(&monitor.pool)
            .await
            .unwrap();
        inserted += 1;
        assert!(inserted < 20_000, "the race is run");
        // Each time, because the next BEGIN commits what the last one has begun.
        let kept: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM kept").fetch_one(&other).await.unwrap();
        assert_eq!(kept, inserted);
    }
}

/// A client that hangs up in the middle of a request must not cancel its write halfway.
#[tokio::test]
async fn a_write_goes_on_when_its_caller_gives_up() {
    let monitor = Ground::new().await.monitor().await;
    let windows: Vec<_> = (0..40).map(|_| window("payments-a", 5)).collect();
    for (number, window) in (0_u64..).zip(&windows) {
        let batch = (0..5).map(|slot| heartbeat(window, slot)).collect();
        let give_up = Duration::from_micros(number * 100);
        let taking = ingest::ingest(&monitor, batch, window.from());
        tokio::time::timeout(give_up, taking).await.ok();
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    for stored in latest_windows(&monitor.pool, 100).await.unwrap() {
        assert!([0, 5].contains(&stored.counts.received), "all of a batch or nothing: {stored:?}");
    }
    let all = windows.iter().map(|window| heartbeat(window, 0)).collect();
    ingest::ingest(&monitor, all, windows[0].from()).await.unwrap();
}

/// A database host that vanishes without a word must not hold its clients for ever.
#[tokio::test]
async fn a_monitor_recovers_when_its_connections_fall_silent() {
    let ground = Ground::new().await;
    let at = ground.monitor_tcp_url.split(['@', '/']).find(|part| part.starts_with("127.0.0.1:"));
    let proxy = Proxy::start(at.unwrap().parse().unwrap()).await;
    let url = ground.monitor_tcp_url.replace(at.unwrap(), &proxy.address.to_string());
    let monitor =
        Process::role("monitor", &["--sweep-interval", "200ms"], &[("DATABASE_URL", &url)]).await;
    let window = window("payments-a", 50);
    let client = heartbeat::http::client(Duration::from_secs(15)).unwrap();
    let post = async |slot| {
        let beat = heartbeat(&window, slot).to_json();
        let request = client.post(monitor.url("/api/monitor/heartbeats")).body(beat);
        request.send().await.is_ok_and(|answer| answer.status().is_success())
    };
    assert!(post(0).await);
    proxy.fall_silent();
    for slot in 1..20 {
        eventually("a heartbeat is taken", async || post(slot).await.then_some(())).await;
    }
    eventually("it is ready", async || {
        let ready = get(&monitor.url("/ready")).await.ok()?;
        ready.status().is_success().then_some(())
    })
    .await;
    proxy.fall_silent();
    let (status, took) = monitor.terminate().await;
    assert!(status.success() && took < Duration::from_secs(10), "{status} {took:?}");
}

/// Callers share questions and transactions: one that is never answered must not keep the next ones
/// waiting for long.
#[tokio::test]
async fn what_is_never_answered_does_not_hold_up_those_who_come_next() {
    let ground = Ground::new().await;
    let at = ground.monitor_tcp_url.split(['@', '/']).find(|part| part.starts_with("127.0.0.1:"));
    let proxy = Proxy::start(at.unwrap().parse().unwrap()).await;
    let url = ground.monitor_tcp_url.replace(at.unwrap(), &proxy.address.to_string());
    let url: DatabaseUrl = url.parse().unwrap();
    let direct = ground.monitor().await;
    let through =
        db::connect(&url, ("monitor database", DatabaseArgs::OPTION), Duration::from_secs(5))
            .await
            .unwrap();
    let monitor = Monitor { pool: through, ..direct.clone() };
    let known = window("payments-a", 50);
    ingest::ingest(&monitor, vec![heartbeat(&known, 0)], known.from()).await.unwrap();

    let mut other = direct.pool.acquire().await.unwrap();
    sqlx::raw_sql("LOCK TABLES windows WRITE").execute(&mut *other).await.unwrap();
    let mut stuck = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let (asker, uuid) = (monitor.clone(), known.uuid);
        stuck.spawn(async move { drop(lookups::find_window(&asker, uuid).await) });
        let (monitor, new) = (monitor.clone(), window("payments-a", 50));
        stuck.spawn(async move {
            drop(ingest::ingest(&monitor, vec![heartbeat(&new, 0)], new.from()).await);
        });
    }
    let waiting = "SELECT COUNT(*) FROM information_schema.PROCESSLIST \
        WHERE DB = DATABASE() AND STATE LIKE 'Waiting for table%'";
    eventually("all of them wait for the table", async || {
        let found: i64 = sqlx::query_scalar(waiting).fetch_one(&direct.pool).await.ok()?;
        (found == 4).then_some(())
    })
    .await;
    proxy.fall_silent();
    sqlx::raw_sql("UNLOCK TABLES").execute(&mut *other).await.unwrap();

    // Each attempt is answered, and one of the next finds a connection that is not silent.
    let patience = Duration::from_secs(12);
    eventually("the window is shown", async || {
        let asking = lookups::find_window(&monitor, known.uuid);
        let found = tokio::time::timeout(patience, asking).await.expect("it is answered").ok()?;
        assert_eq!(found.unwrap().counts.received, 1);
        Some(())
    })
    .await;
    eventually("the next heartbeat is taken", async || {
        let taking = ingest::ingest(&monitor, vec![heartbeat(&known, 1)], known.from());
        tokio::time::timeout(patience, taking).await.expect("it is answered").ok()
    })
    .await;
}

/// Two batches that hold the same rows in opposite order must not wait for each other in a circle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_in_any_order_do_not_deadlock() {
    let monitor = Ground::new().await.monitor().await;
    let windows: Vec<_> = (0..20).map(|_| window("payments-a", 10)).collect();
    ingest::announce(&monitor, windows.iter().map(announcement).collect(), windows[0].from())
        .await
        .unwrap();
    let before = deadlocks(&monitor.pool).await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8_usize {
        // Each a monitor of its own, or they would share transactions.
        let monitor = Monitor { arrivals: Arc::default(), ..monitor.clone() };
        let windows = windows.clone();
        writers.spawn(async move {
            for round in 0..20_usize {
                let mut batch: Vec<_> = windows
                    .iter()
                    .flat_map(|window| (0..10).map(|slot| heartbeat(window, slot)))
                    .collect();
                if (writer + round).is_multiple_of(2) {
                    batch.reverse();
                }
                ingest::ingest(&monitor, batch, windows[0].from()).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    let made = deadlocks(&monitor.pool).await - before;
    // Other tests share the server; unsorted rows would make hundreds.
    assert!(made < 20, "{made} deadlocks");
}

/// Heartbeats of a new window make it known, and many relays may bring them at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_windows_in_any_order_do_not_deadlock() {
    let monitor = Ground::new().await.monitor().await;
    let before = deadlocks(&monitor.pool).await;
    for _ in 0..30 {
        let windows: Vec<_> = (0..64).map(|_| window("payments-a", 10)).collect();
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..8_usize {
            let (monitor, mut windows) = (monitor.clone(), windows.clone());
            if writer.is_multiple_of(2) {
                windows.reverse();
            }
            writers.spawn(async move {
                let now = windows[0].from();
                ingest::announce(&monitor, windows.iter().map(announcement).collect(), now)
                    .await
                    .unwrap();
            });
        }
        writers.join_all().await;
    }
    let made = deadlocks(&monitor.pool).await - before;
    assert!(made < 20, "{made} deadlocks");
}

/// How many deadlocks the server has resolved. Other tests share it.
async fn deadlocks(pool: &MySqlPool) -> i64 {
    let metric =
        "SELECT COUNT FROM information_schema.INNODB_METRICS WHERE NAME = 'lock_deadlocks'";
    sqlx::query_scalar(metric).fetch_one(pool).await.unwrap()
}

/// A role that starts while its database takes no writes has nothing to write there.
#[tokio::test]
async fn a_schema_that_is_up_to_date_is_only_read() {
    let ground = Ground::new().await;
    ground.monitor().await;
    let administrator = pool(&ground.monitor_url).await;
    let name = &Uuid::new_v4().simple().to_string()[..16];
    for statement in [
        format!("CREATE USER '{name}'@'127.0.0.1' IDENTIFIED BY 'reads-only'"),
        format!("GRANT SELECT ON *.* TO '{name}'@'127.0.0.1'"),
    ] {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&administrator).await.unwrap();
    }
    let mut url = reqwest::Url::parse(&ground.monitor_tcp_url).unwrap();
    url.set_username(name).unwrap();
    url.set_password(Some("reads-only")).unwrap();
    let url: DatabaseUrl = url.as_str().parse().unwrap();
    let reader =
        db::connect(&url, ("monitor database", DatabaseArgs::OPTION), Duration::from_secs(5))
            .await
            .unwrap();
    db::prepare_schema(&reader, &db::MONITOR_SCHEMA, "monitor database", true).await.unwrap();
    let other = db::prepare_schema(&reader, &db::PAYMENTS_SCHEMA, "payments database", true).await;
    assert!(other.is_err(), "one that is not has to be written");
}
