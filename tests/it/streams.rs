//! What happens to entries of the streams once they are read: deleted, or set aside.

use heartbeat::stream::{Facts, Source};
use redis::streams::StreamRangeReply;
use redis::{AsyncCommands, cmd};

use crate::support::{
    Ground, Process, START, at, eventually, heartbeat, pending, received, window,
};

#[tokio::test]
async fn what_every_group_has_acknowledged_is_deleted_and_nothing_else() {
    let ground = Ground::new().await;
    let monitor = ground.monitor().await;
    let serving = Process::monitor(&ground, &[]).await;
    let quick = ["--lease", "1s", "--http-timeout", "300ms"];
    let mut redis = ground.redis().await;
    let stream = ground.stream.reports();
    let other = ["CREATE", stream, "auditors", "0", "MKSTREAM"];
    cmd("XGROUP").arg(&other).query_async::<()>(&mut redis).await.unwrap();
    let window = window("payments-a", 30);
    for slot in 0..30 {
        ground.send(heartbeat(&window, slot).to_json()).await;
    }
    let _relay = Process::relay(&ground, &serving.url(""), &quick).await;
    eventually("all arrive", async || (received(&monitor).await == 30).then_some(())).await;
    let read = ["GROUP", "auditors", "one", "COUNT", "20", "STREAMS", stream, ">"];
    cmd("XREADGROUP").arg(&read).query_async::<redis::Value>(&mut redis).await.unwrap();
    let all: StreamRangeReply = redis.xrange_all(stream).await.unwrap();
    let ids: Vec<String> = all.ids.iter().map(|entry| entry.id.clone()).collect();
    assert_eq!(ids.len(), 30, "the other group has acknowledged none");
    // It acknowledges its first ten but the fifth: what is before the fifth may go.
    let acknowledged: Vec<&String> = ids[..10].iter().filter(|id| **id != ids[4]).collect();
    redis.xack::<_, _, _, ()>(stream, "auditors", &acknowledged).await.unwrap();
    let first = async |redis: &mut redis::aio::MultiplexedConnection| {
        let left: StreamRangeReply = redis.xrange_count(stream, "-", "+", 1).await.unwrap();
        left.ids.first().map(|entry| entry.id.clone())
    };
    eventually("the first four go", async || {
        (first(&mut redis).await.as_ref() == Some(&ids[4])).then_some(())
    })
    .await;
    redis.xack::<_, _, _, ()>(stream, "auditors", &ids[4..20]).await.unwrap();
    eventually("what it has read goes, but for the last", async || {
        (first(&mut redis).await.as_ref() == Some(&ids[19])).then_some(())
    })
    .await;
    let rest = ["GROUP", "auditors", "one", "NOACK", "STREAMS", stream, ">"];
    cmd("XREADGROUP").arg(&rest).query_async::<redis::Value>(&mut redis).await.unwrap();
    eventually("the last is left", async || {
        (first(&mut redis).await.as_ref() == Some(&ids[29])).then_some(())
    })
    .await;
}

/// A group that is lost has read nothing, whatever others have acknowledged.
#[tokio::test]
async fn nothing_is_deleted_while_the_relays_group_is_gone() {
    let ground = Ground::new().await;
    let mut redis = ground.redis().await;
    let stream = ground.stream.reports();
    for slot in 0..3 {
        let beat = heartbeat(&window("payments-a", 3), slot).to_json();
        ground.send(beat).await;
    }
    let other = ["CREATE", stream, "auditors", "$"];
    cmd("XGROUP").arg(&other).query_async::<()>(&mut redis).await.unwrap();
    let group = ground.group("me");
    assert_eq!(group.trim(Source::Heartbeats).await.unwrap(), 0);
    group.create().await.unwrap();
    assert_eq!(group.trim(Source::Heartbeats).await.unwrap(), 0, "it has read nothing yet");
    group.read_new(10).await.unwrap();
    assert_eq!(group.trim(Source::Heartbeats).await.unwrap(), 0, "all are pending");
}

/// A message that cannot be set aside stays where it is.
#[tokio::test]
async fn setting_aside_and_acknowledging_happen_both_or_neither() {
    let ground = Ground::new().await;
    let mut redis = ground.redis().await;
    redis.set::<_, _, ()>(ground.stream.dead(), "no stream").await.unwrap();
    ground.send("poison").await;
    let group = ground.group("me");
    group.create().await.unwrap();
    let id = group.read_new(10).await.unwrap()[0].id;
    let facts = Facts {
        reason: "why".to_owned(),
        first_at: at(START),
        at: at(START),
        window_uuid: None,
        slot: None,
    };
    assert!(group.dead_letter(Source::Heartbeats, id, &facts).await.is_err());
    assert_eq!(pending(&ground).await, 1);
    redis.del::<_, ()>(ground.stream.dead()).await.unwrap();
    group.dead_letter(Source::Heartbeats, id, &facts).await.unwrap();
    group.dead_letter(Source::Heartbeats, id, &facts).await.unwrap();
    assert_eq!(
        (pending(&ground).await, redis.xlen::<_, usize>(ground.stream.dead()).await.unwrap()),
        (0, 1)
    );
}
