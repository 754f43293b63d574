//! Creating consumer groups: what proves that entries are lost, and what was over before a group
//! existed.

use std::sync::Arc;
use std::time::Duration;

use heartbeat::local::{Options, Redis};
use heartbeat::monitor::{Monitor, latest_windows};
use heartbeat::payments::resend::Watch;
use heartbeat::stream::{Creation, Group, Link, StreamError};
use heartbeat::wire::{Timestamp, Window};
use redis::{AsyncCommands, cmd};
use uuid::Uuid;

use crate::resend::sent;
use crate::support::{
    Ground, Process, Scrape, announcement, eventually, heartbeat, pending, window,
};

const GROUP: &str = "monitor-queue-group";

async fn group_command(ground: &Ground, command: &[&str]) {
    cmd("XGROUP").arg(command).query_async::<()>(&mut ground.redis().await).await.unwrap();
}

async fn identity(ground: &Ground) -> String {
    ground.observe().await.unwrap().identity
}

#[tokio::test]
async fn an_emptied_redis_is_another_redis_and_a_destroyed_group_is_not() {
    let ground = Ground::new().await;
    let group = ground.group("me");
    let how = async || group.create().await.unwrap().how;
    let first = identity(&ground).await;
    assert_eq!(how().await, Creation::New);
    assert_eq!(group.survey().await.unwrap().identity, first, "who comes first destroys nothing");
    assert_eq!(how().await, Creation::Found);

    ground.empty_redis().await;
    let emptied = identity(&ground).await;
    assert_ne!(emptied, first);
    assert!(matches!(group.survey().await, Err(StreamError::NoGroup(_))));
    assert_eq!(how().await, Creation::New, "the note is gone too");
    assert_eq!(identity(&ground).await, emptied, "all that is here can be read");

    ground.send("{}").await;
    ground.announce("{}").await;
    group.survey().await.unwrap();
    for stream in [ground.stream.windows(), ground.stream.reports()] {
        group_command(&ground, &["DESTROY", stream, GROUP]).await;
        assert!(matches!(group.survey().await, Err(StreamError::NoGroup(_))));
        assert_eq!(how().await, Creation::Again);
        assert_eq!(identity(&ground).await, emptied, "every entry is still there");
    }
    assert_eq!(group.read_new(10).await.unwrap().len(), 2, "and is read");
}

#[tokio::test]
async fn a_deleted_stream_is_a_loss_also_when_it_is_filled_again() {
    let ground = Ground::new().await;
    let group = ground.group("me");
    let mut redis = ground.redis().await;
    group.create().await.unwrap();
    for stream in [ground.stream.windows(), ground.stream.reports()] {
        for left in 0..2 {
            for _ in 0..2 {
                redis.xadd::<_, _, _, _, ()>(stream, "*", &[("payload", "{}")]).await.unwrap();
            }
            group.survey().await.unwrap();
            let before = identity(&ground).await;
            redis.del::<_, ()>(stream).await.unwrap();
            for _ in 0..left {
                redis.xadd::<_, _, _, _, ()>(stream, "*", &[("payload", "{}")]).await.unwrap();
            }
            assert_eq!(group.create().await.unwrap().how, Creation::AfterLoss);
            let after = identity(&ground).await;
            assert_ne!(after, before);
            assert_eq!(group.create().await.unwrap().how, Creation::Found);
            assert_eq!(identity(&ground).await, after, "it is told once");
        }
    }
}

#[tokio::test]
async fn senders_send_again_what_a_deleted_stream_took_along_and_nothing_for_a_destroyed_group() {
    let ground = Ground::new().await;
    let group = ground.group("me");
    group.create().await.unwrap();
    let payments = ground.payments("payments-a").await;
    let mut watch = Watch::default();
    watch.look(&payments).await.unwrap();
    sent(&payments, 6).await;
    group.survey().await.unwrap();
    let stream = ground.stream.reports();
    let mut look = async || {
        for _ in 0..6 {
            watch.look(&payments).await.unwrap();
        }
        ground.redis().await.xlen::<_, usize>(stream).await.unwrap()
    };
    group_command(&ground, &["DESTROY", stream, GROUP]).await;
    group.create().await.unwrap();
    assert_eq!(look().await, 6);
    ground.redis().await.del::<_, ()>(stream).await.unwrap();
    group.create().await.unwrap();
    assert_eq!(look().await, 6);
}

/// The real executables: what a service sent before the first relay came is not sent again.
#[tokio::test]
async fn a_relay_that_starts_beside_a_service_makes_nothing_come_twice() {
    let ground = Ground::new().await;
    let arguments =
        ["--continuous", "--window-duration", "30s", "--heartbeat-interval-seconds", "0.1"];
    let payments = Process::payments(&ground, "payments-a", &arguments).await;
    let mut redis = ground.redis().await;
    let stream = ground.stream.reports();
    eventually("some are sent", async || {
        (redis.xlen::<_, usize>(stream).await.unwrap() >= 20).then_some(())
    })
    .await;
    let before = identity(&ground).await;
    let monitor = Process::monitor(&ground, &[]).await;
    let _relay = Process::relay(&ground, &monitor.url(""), &[]).await;
    eventually("they arrive", async || (pending(&ground).await == 0).then_some(())).await;
    // Longer than a service takes to notice another Redis and to send again.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(identity(&ground).await, before);
    assert!(payments.terminate().await.0.success());
    let state = ground.payments("payments-a").await;
    let sent: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM report_audit WHERE sent_to_queue")
        .fetch_one(&state.pool)
        .await
        .unwrap();
    assert_eq!(added(&ground).await, sent, "each is written once");
}

/// How many heartbeats were ever written.
async fn added(ground: &Ground) -> i64 {
    let script = "local facts = redis.call('XINFO', 'STREAM', KEYS[1]) \
        for i = 1, #facts, 2 do if facts[i] == 'entries-added' then return facts[i + 1] end end";
    let mut command = cmd("EVAL");
    command.arg(script).arg(1).arg(ground.stream.reports());
    command.query_async(&mut ground.redis().await).await.unwrap()
}

/// A Redis without memory refuses a creation also of what exists.
#[tokio::test]
async fn a_group_that_exists_needs_no_memory() {
    let directory = tempfile::tempdir().unwrap();
    let server = Redis::start(directory.path(), &Options::default()).await.unwrap();
    let url = server.url().parse().unwrap();
    let link = Arc::new(Link::new(&url).unwrap());
    let (names, block) = ((GROUP.to_owned(), "me".to_owned()), Duration::from_millis(10));
    let group = Group::new(&url, link, "reports".parse().unwrap(), names, block).unwrap();
    let client = redis::Client::open(server.url().as_str()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    group.create().await.unwrap();
    let full = ["SET", "maxmemory", "1"];
    cmd("CONFIG").arg(&full).query_async::<()>(&mut redis).await.unwrap();
    assert!(redis.set::<_, _, ()>("more", 1).await.is_err(), "it takes nothing more");
    assert_eq!(group.create().await.unwrap().how, Creation::Found);
    // As an older relay left it.
    redis.hdel::<_, _, ()>("{reports}:groups", GROUP).await.unwrap();
    assert_eq!(group.create().await.unwrap().how, Creation::Found);
    assert!(group.take_turn("one", Duration::from_secs(1)).await.unwrap(), "relays go on");
}

#[tokio::test]
async fn what_a_group_has_missed_shows_in_the_streams() {
    let missed = async |ground: &Ground| {
        ground.group("me").create().await.unwrap().missed_until.micros() / 1_000
    };
    let millis = |written: Timestamp| written.micros() / 1_000;
    // Nothing was there, or all that ever was.
    let ground = Ground::new().await;
    ground.send("{}").await;
    assert_eq!(missed(&ground).await, 0);
    // Others have deleted some, or all.
    for left in [1, 0] {
        let ground = Ground::new().await;
        let first = ground.send("{}").await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        let last = ground.send("{}").await;
        let mut redis = ground.redis().await;
        let trim = ["MAXLEN", &left.to_string()];
        cmd("XTRIM")
            .arg(ground.stream.reports())
            .arg(&trim)
            .query_async::<()>(&mut redis)
            .await
            .unwrap();
        let expected = millis(last.written_at()) - left;
        assert_eq!(missed(&ground).await, expected, "{first}");
        assert_eq!(missed(&ground).await, expected, "it is noted");
        ground.group("me").survey().await.unwrap();
        group_command(&ground, &["DESTROY", ground.stream.windows(), GROUP]).await;
        assert_eq!(missed(&ground).await, expected, "and stays");
    }
    // An old consumer of the group has read on.
    let ground = Ground::new().await;
    let id = ground.send("{}").await;
    group_command(&ground, &["CREATE", ground.stream.reports(), GROUP, "$"]).await;
    assert_eq!(missed(&ground).await, millis(id.written_at()));
    // An older relay was here.
    let ground = Ground::new().await;
    ground.send("{}").await;
    for source in [ground.stream.reports(), ground.stream.windows()] {
        group_command(&ground, &["CREATE", source, GROUP, "$", "MKSTREAM"]).await;
    }
    assert_eq!(missed(&ground).await, 0);
}

/// Whether a monitor knows a window.
async fn is_known(monitor: &Monitor, wanted: &Window) -> bool {
    let known = latest_windows(&monitor.pool, 100).await.unwrap();
    known.iter().any(|known| known.window.uuid == wanted.uuid)
}

#[tokio::test]
async fn windows_that_were_over_before_the_group_are_skipped_and_no_others() {
    let ground = Ground::new().await;
    let monitor = ground.monitor().await;
    let serving = Process::monitor(&ground, &[]).await;
    let over = window("payments-a", 3);
    let now = heartbeat::clock::now();
    let span = (now, now.plus(Duration::from_mins(10)));
    let open =
        Window::new(Uuid::new_v4(), "payments-a".parse().unwrap(), span, over.tick(), over.rates)
            .unwrap();
    ground.announce(announcement(&over).to_json()).await;
    ground.announce(announcement(&open).to_json()).await;
    for slot in 0..3 {
        ground.send(heartbeat(&over, slot).to_json()).await;
    }
    // An old consumer has taken them all.
    group_command(&ground, &["CREATE", ground.stream.reports(), GROUP, "$"]).await;
    let relay = Process::relay(&ground, &serving.url(""), &[]).await;
    eventually("what is not over is known", async || is_known(&monitor, &open).await.then_some(()))
        .await;
    let skipped =
        async || Scrape::role(&relay).await.get("heartbeat_relay_skipped_announcements_total");
    eventually("one is skipped", async || (skipped().await == 1.0).then_some(())).await;
    assert!(!is_known(&monitor, &over).await);

    // Whatever is sent again after a loss can be read, so that nothing is missed.
    ground.empty_redis().await;
    ground.announce(announcement(&over).to_json()).await;
    eventually("it is known", async || is_known(&monitor, &over).await.then_some(())).await;
    assert_eq!(skipped().await, 1.0);
}
