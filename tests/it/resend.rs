//! Sending again what a lost Redis has taken along.

use std::collections::BTreeSet;
use std::time::Duration;

use heartbeat::payments::emitter::Emitter;
use heartbeat::payments::plan::{Overrides, Plan};
use heartbeat::payments::resend::Watch;
use heartbeat::payments::{Payments, emitter, publish};
use heartbeat::stream::Source;
use heartbeat::wire::{Heartbeat, Tick};
use redis::AsyncCommands;
use redis::streams::StreamRangeReply;
use sqlx::Row;
use uuid::Uuid;

use crate::support::{Ground, Process, eventually, received};

/// A window that began a minute ago and of which some slots are sent.
pub async fn sent(payments: &Payments, slots: u32) -> Plan {
    let overrides = Overrides {
        duration_sec: Some(600.0),
        error_status_no_reportado: Some(0.0),
        ..Overrides::default()
    };
    let from = heartbeat::clock::now().minus(Duration::from_mins(1));
    let identity = (Uuid::new_v4(), payments.service.clone());
    let plan = Plan::draw(&overrides, identity, from, Tick::DEFAULT, 7).unwrap();
    let (emitter, _queue) = Emitter::new(payments.clone());
    emitter.open(plan.clone()).await.unwrap();
    for slot in 0..slots {
        let now = plan.window.due(slot);
        emitter::tick_once(payments, &plan, slot, now).await.unwrap();
    }
    publish::publish_once(payments, &plan, &mut publish::Progress::default()).await.unwrap();
    plan
}

/// All heartbeats in the stream.
async fn heartbeats(ground: &Ground) -> Vec<Heartbeat> {
    let mut redis = ground.redis().await;
    let all: StreamRangeReply = redis.xrange_all(ground.stream.reports()).await.unwrap();
    let payloads = all.ids.iter().map(|entry| entry.get::<Vec<u8>>("payload").unwrap());
    payloads.map(|payload| Heartbeat::parse(&payload, Tick::DEFAULT).unwrap()).collect()
}

/// The slots of all heartbeats in the stream, and how many announcements there are.
async fn in_stream(ground: &Ground) -> (Vec<i64>, usize) {
    let slots = heartbeats(ground).await.iter().map(|beat| beat.slot.unwrap()).collect();
    (slots, ground.redis().await.xlen(ground.stream.windows()).await.unwrap())
}

async fn slots_of(ground: &Ground, window: Uuid) -> BTreeSet<i64> {
    let all = heartbeats(ground).await.into_iter();
    all.filter(|beat| beat.window.uuid == window).map(|beat| beat.slot.unwrap()).collect()
}

#[tokio::test]
async fn an_emptied_redis_gets_everything_again() {
    let ground = Ground::new().await;
    let payments = ground.payments("payments-a").await;
    let mut watch = Watch::default();
    watch.look(&payments).await.unwrap();
    let plan = sent(&payments, 6).await;
    watch.look(&payments).await.unwrap();
    assert_eq!(in_stream(&ground).await, ((0..6).collect(), 1), "nothing is sent twice");
    ground.empty_redis().await;
    watch.look(&payments).await.unwrap();
    assert_eq!(in_stream(&ground).await, ((0..6).collect(), 1));
    watch.look(&payments).await.unwrap();
    assert_eq!(in_stream(&ground).await.0.len(), 6, "once is enough");
    let rows = sqlx::query("SELECT first_stream_id, stream_id FROM report_audit")
        .fetch_all(&payments.pool)
        .await
        .unwrap();
    for row in rows {
        let ids: [String; 2] = [row.get("first_stream_id"), row.get("stream_id")];
        assert_ne!(ids[0], ids[1], "the audit knows both");
    }
    assert_eq!(plan.window.slots(), 60);
}

/// What one process knows of Redis, the next one does.
#[tokio::test]
async fn a_service_that_starts_again_notices_what_happened_meanwhile() {
    let ground = Ground::new().await;
    let payments = ground.payments("payments-a").await;
    Watch::default().look(&payments).await.unwrap();
    sent(&payments, 3).await;
    ground.empty_redis().await;
    let other = ground.payments("payments-b").await;
    Watch::default().look(&other).await.unwrap();
    assert_eq!(in_stream(&ground).await.0.len(), 0, "those of others are theirs to send");
    Watch::default().look(&payments).await.unwrap();
    assert_eq!(in_stream(&ground).await, ((0..3).collect(), 1));
}

/// More than one page, all published at nearly the same time.
#[tokio::test]
async fn any_number_is_sent_again_each_once() {
    let ground = Ground::new().await;
    let payments = ground.payments("payments-a").await;
    let mut watch = Watch::default();
    watch.look(&payments).await.unwrap();
    for _ in 0..12 {
        sent(&payments, 50).await;
    }
    ground.empty_redis().await;
    watch.look(&payments).await.unwrap();
    let (slots, announcements) = in_stream(&ground).await;
    assert_eq!((slots.len(), announcements), (600, 12));
    assert_eq!(slots.iter().collect::<BTreeSet<_>>().len(), 50);
}

/// A heartbeat that was on its way to the old Redis may be marked when everything is sent again.
#[tokio::test]
async fn what_is_marked_late_is_found_and_sent_again() {
    let ground = Ground::new().await;
    let payments = ground.payments("payments-a").await;
    let mut watch = Watch::default();
    watch.look(&payments).await.unwrap();
    let plan = sent(&payments, 6).await;
    sqlx::raw_sql("UPDATE report_audit SET redis_mark = 7 WHERE slot = 2")
        .execute(&payments.pool)
        .await
        .unwrap();
    for _ in 0..5 {
        watch.look(&payments).await.unwrap();
    }
    let (slots, announcements) = in_stream(&ground).await;
    assert_eq!((slots, announcements), (vec![0, 1, 2, 3, 4, 5, 2], 1));
    for _ in 0..10 {
        watch.look(&payments).await.unwrap();
    }
    assert_eq!(in_stream(&ground).await.0.len(), 7, "once is enough");
    assert_eq!(plan.window.slots(), 60);
}

/// Whatever comes in between, in the end the new Redis has everything.
#[tokio::test]
async fn who_publishes_while_redis_is_replaced_loses_nothing() {
    let ground = Ground::new().await;
    let payments = ground.payments("payments-a").await;
    let mut watch = Watch::default();
    watch.look(&payments).await.unwrap();
    for _ in 0..20 {
        let publishing = tokio::spawn({
            let payments = payments.clone();
            async move { sent(&payments, 5).await }
        });
        ground.empty_redis().await;
        watch.look(&payments).await.unwrap();
        let plan = publishing.await.unwrap();
        for _ in 0..5 {
            watch.look(&payments).await.unwrap();
        }
        let slots = slots_of(&ground, plan.window.uuid).await;
        assert_eq!(slots, (0..5).collect::<BTreeSet<i64>>());
    }
}

/// The service has seen one Redis, and reads what to announce to it, when yet another takes its place.
#[tokio::test]
async fn yet_another_redis_gets_everything_once() {
    let ground = Ground::new().await;
    let payments = ground.payments("payments-a").await;
    let mut watch = Watch::default();
    watch.look(&payments).await.unwrap();
    sent(&payments, 3).await;
    ground.empty_redis().await;
    payments.metrics.watch.clear();
    let mut other = payments.pool.acquire().await.unwrap();
    sqlx::raw_sql("LOCK TABLES report_windows WRITE").execute(&mut *other).await.unwrap();
    let replacing = async {
        let waiting = "SELECT COUNT(*) FROM information_schema.PROCESSLIST \
            WHERE DB = DATABASE() AND STATE LIKE 'Waiting for table%'";
        eventually("it reads what to announce", async || {
            let asking = sqlx::query_scalar(waiting).fetch_one(&payments.pool);
            let found: i64 = asking.await.ok()?;
            (found > 0).then_some(())
        })
        .await;
        ground.empty_redis().await;
        sqlx::raw_sql("UNLOCK TABLES").execute(&mut *other).await.unwrap();
    };
    let looking = tokio::time::timeout(Duration::from_secs(30), watch.look(&payments));
    let (looked, ()) = tokio::join!(looking, replacing);
    looked.expect("it ends").unwrap();
    assert_eq!(payments.metrics.watch.seconds(), None, "not all is in the last one");
    watch.look(&payments).await.unwrap();
    assert!(payments.metrics.watch.seconds().is_some());
    assert_eq!(in_stream(&ground).await, (vec![0, 1, 2], 1), "each is sent to the last one once");
}

/// A Redis that is lost again and again must not make a service send everything from the beginning
/// each time.
#[tokio::test]
async fn what_has_arrived_meanwhile_is_not_sent_yet_another_time() {
    const PAGE: usize = 256;
    let ground = Ground::new().await;
    let payments = ground.payments("payments-a").await;
    Watch::default().look(&payments).await.unwrap();
    for _ in 0..40 {
        sent(&payments, 50).await;
    }
    ground.empty_redis().await;
    let group = ground.group("me");
    group.create().await.unwrap();
    let key = ground.stream.reports();
    let length = async || ground.redis().await.xlen::<_, usize>(key).await.unwrap();
    let some =
        eventually("some pages are sent", async || (length().await > 2 * PAGE).then_some(()));
    look_until(&payments, some).await;
    let identity = |beats: Vec<Heartbeat>| -> BTreeSet<(Uuid, i64)> {
        beats.iter().map(|beat| (beat.window.uuid, beat.slot.unwrap())).collect()
    };
    let arrived = identity(heartbeats(&ground).await);
    while let entries = group.read_new(1_000).await.unwrap()
        && !entries.is_empty()
    {
        for source in Source::ALL {
            let of_source = entries.iter().filter(|entry| entry.source == source);
            let ids: Vec<_> = of_source.map(|entry| entry.id).collect();
            if !ids.is_empty() {
                group.acknowledge(source, &ids).await.unwrap();
            }
        }
    }
    group.survey().await.unwrap();
    let noted = eventually("it is noted", async || {
        let marks = sqlx::query("SELECT 1 FROM delivered_marks").fetch_optional(&payments.pool);
        marks.await.unwrap()
    });
    look_until(&payments, async { drop(noted.await) }).await;
    ground.empty_redis().await;
    Watch::default().look(&payments).await.unwrap();
    let again = identity(heartbeats(&ground).await);
    assert_eq!(arrived.union(&again).count(), 2_000);
    // One page may have been written and not marked when the first look was cut short.
    let twice = arrived.intersection(&again).count();
    assert!(twice <= PAGE && PAGE < arrived.len(), "{twice} of {}", arrived.len());
}

/// A look that is cut short, as by a loss of Redis.
async fn look_until(payments: &Payments, enough: impl Future<Output = ()>) {
    tokio::select! {
        looked = async { Watch::default().look(payments).await } => {
            panic!("it was to be cut short: {looked:?}")
        }
        () = enough => (),
    }
}

/// The real executables: nothing that FLUSHALL destroys is missed in the end.
#[tokio::test]
async fn what_was_destroyed_arrives_all_the_same() {
    let ground = Ground::new().await;
    let arguments =
        ["--continuous", "--window-duration", "30s", "--heartbeat-interval-seconds", "0.1"];
    let payments = Process::payments(&ground, "payments-a", &arguments).await;
    let state = ground.payments("payments-a").await;
    let known = async || {
        let found: Option<String> = sqlx::query_scalar("SELECT identity FROM stream_identities")
            .fetch_optional(&state.pool)
            .await
            .unwrap();
        found
    };
    eventually("Redis is known", async || known().await).await;
    let audited = async || -> u32 {
        let sent: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM report_audit WHERE sent_to_queue AND timestamp < ?",
        )
        .bind(chrono::DateTime::<chrono::Utc>::from(heartbeat::clock::now()))
        .fetch_one(&state.pool)
        .await
        .unwrap();
        u32::try_from(sent).unwrap()
    };
    eventually("some are sent", async || (audited().await >= 20).then_some(())).await;
    ground.empty_redis().await;
    let (status, _) = payments.terminate().await;
    assert!(status.success());
    ground.empty_redis().await;
    let sent_before = audited().await;
    let _payments = Process::payments(&ground, "payments-a", &[]).await;
    let monitor = Process::monitor(&ground, &[]).await;
    let _relay = Process::relay(&ground, &monitor.url(""), &[]).await;
    let state = ground.monitor().await;
    eventually("all arrive", async || (received(&state).await >= sent_before).then_some(())).await;
}
