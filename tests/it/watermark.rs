//! How far delivery has come, as the streams tell it: the watermark, the suspects, and whether this
//! is still the Redis that we know.

use std::sync::{Arc, Mutex};

use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use heartbeat::stream::{Source, StreamId, Survey};
use heartbeat::wire::{PipelineReport, SuspectReport, Timestamp};
use redis::{AsyncCommands, cmd};
use serde_json::json;
use uuid::Uuid;

use crate::relay::serve;
use crate::support::{Ground, Process, START, at, eventually, heartbeat, window};

/// Whether a survey's watermark is its own time: nothing is in its way.
fn is_clear(survey: &Survey) -> bool {
    survey.watermark == survey.now
}

fn suspicion(window_uuid: Uuid) -> SuspectReport {
    let reason = "it fails".to_owned();
    SuspectReport { window_uuid: Some(window_uuid), slot: Some(0), reason, since: at(START) }
}

#[tokio::test]
async fn it_waits_for_what_is_unread_or_pending_on_either_stream() {
    let ground = Ground::new().await;
    let group = ground.group("me");
    group.create().await.unwrap();
    let idle = group.survey().await.unwrap();
    assert!(is_clear(&idle), "an idle pipeline advances with time");
    for source in Source::ALL {
        let id = match source {
            Source::Windows => ground.announce("{}").await,
            Source::Heartbeats => ground.send("{}").await,
        };
        let states = |survey: &Survey| match source {
            Source::Windows => survey.windows.clone(),
            Source::Heartbeats => survey.heartbeats.clone(),
        };
        let unread = group.survey().await.unwrap();
        assert_eq!((unread.watermark, states(&unread).lag), (id.written_at(), Some(1)));
        group.read_new(10).await.unwrap();
        let pending = group.survey().await.unwrap();
        assert_eq!((pending.watermark, states(&pending).pending), (id.written_at(), 1));
        assert_eq!(states(&pending).oldest_pending_at, Some(id.written_at()));
        group.acknowledge(source, &[id]).await.unwrap();
        assert!(is_clear(&group.survey().await.unwrap()));
    }
    let seen = ground.observe().await.unwrap();
    assert!(seen.watermark >= Some(idle.watermark), "senders can see it");
}

#[tokio::test]
async fn it_goes_on_without_suspects_until_they_are_settled() {
    let ground = Ground::new().await;
    let group = ground.group("me");
    group.create().await.unwrap();
    // More than are looked at in one step.
    let mut ids = Vec::new();
    for _ in 0..130 {
        ids.push(ground.send("{}").await);
    }
    group.read_new(200).await.unwrap();
    let uuid = Uuid::new_v4();
    for id in &ids[..125] {
        group.suspect_entry(Source::Heartbeats, *id, &suspicion(uuid)).await.unwrap();
    }
    let survey = group.survey().await.unwrap();
    assert_eq!(survey.watermark, ids[125].written_at());
    assert_eq!(survey.suspects.len(), 125);
    let first = &survey.suspects[0];
    assert_eq!((first.report.window_uuid, first.report.slot), (Some(uuid), Some(0)));
    assert_eq!(first.stream, ground.stream.reports());
    group.acknowledge(Source::Heartbeats, &ids[1..]).await.unwrap();
    let survey = group.survey().await.unwrap();
    assert!(is_clear(&survey));
    assert_eq!(survey.suspects.len(), 1, "the others are no longer pending");
    assert_eq!(survey.suspects[0].stream_id, ids[0]);
    assert_eq!(survey.heartbeats.oldest_pending_at, Some(ids[0].written_at()));
}

/// A service is sending again until each of its processes that is here has seen to this Redis.
#[tokio::test]
async fn services_that_send_again_are_named_while_they_do() {
    let ground = Ground::new().await;
    let (group, producer) = (ground.group("me"), ground.producer());
    group.create().await.unwrap();
    let identity = group.survey().await.unwrap().identity;
    let resending = async || group.survey().await.unwrap().resending;
    let observe = async |service: &str, process: &str, seen_to: &str| {
        let seen_to = (seen_to, Timestamp::from_micros(0));
        producer.observe((service, process), seen_to).await.unwrap();
    };
    observe("eu/payments-a", "one", &identity).await;
    assert!(resending().await.is_empty());
    observe("eu/payments-a", "two", "another").await;
    observe("payments-b", "one", "").await;
    let mut both = resending().await;
    both.sort_unstable();
    assert_eq!(both, ["eu/payments-a", "payments-b"]);
    observe("eu/payments-a", "two", &identity).await;
    assert_eq!(resending().await, ["payments-b"]);
    // What it has sent again must have been delivered too.
    let id = ground.send("{}").await;
    let done = (identity.as_str(), id.written_at());
    producer.observe(("payments-b", "one"), done).await.unwrap();
    assert_eq!(resending().await, ["payments-b"]);
    group.read_new(1).await.unwrap();
    group.acknowledge(Source::Heartbeats, &[id]).await.unwrap();
    eventually("it is delivered", async || resending().await.is_empty().then_some(())).await;
    assert_eq!(group.survey().await.unwrap().resent, ["payments-b"], "the others owed nothing");
    observe("payments-b", "two", "").await;
    let survey = group.survey().await.unwrap();
    assert_eq!((survey.resending, survey.resent), (vec!["payments-b".to_owned()], vec![]));
    observe("payments-b", "two", &identity).await;
    observe("payments-b", "one", "").await;
    // One that was here long ago is not.
    let mut redis = ground.redis().await;
    let key = format!("{{{}}}:senders", ground.stream);
    let long_ago = [("payments-b/one", " 1700000000000 0")];
    redis.hset_multiple::<_, _, _, ()>(&key, &long_ago).await.unwrap();
    assert!(resending().await.is_empty());
    assert!(!redis.hexists::<_, _, bool>(&key, "payments-b/one").await.unwrap(), "forgotten");
}

/// The oldest entry of a group decides, and not when the group was made.
#[tokio::test]
async fn a_group_that_has_not_read_for_a_day_is_named() {
    let ground = Ground::new().await;
    let mut redis = ground.redis().await;
    let group = ground.group("me");
    let stream = ground.stream.reports();
    let old = ["1700000000000-0", "payload", "{}"];
    cmd("XADD").arg(stream).arg(&old).query_async::<()>(&mut redis).await.unwrap();
    group.create().await.unwrap();
    assert!(group.silent_groups().await.unwrap().is_empty(), "it is our own");
    for (name, start) in [("idle", "0"), ("done", "$"), ("reading", "0")] {
        let create = ["CREATE", stream, name, start];
        cmd("XGROUP").arg(&create).query_async::<()>(&mut redis).await.unwrap();
    }
    let read = ["GROUP", "reading", "one", "STREAMS", stream, ">"];
    cmd("XREADGROUP").arg(&read).query_async::<redis::Value>(&mut redis).await.unwrap();
    assert_eq!(group.silent_groups().await.unwrap(), ["idle"]);
}

#[tokio::test]
async fn dead_letters_are_told_once() {
    let ground = Ground::new().await;
    let mut redis = ground.redis().await;
    let letters = ground.dead_letters();
    for number in 0..5 {
        let id = format!("{number}-1");
        let fields = [("stream", "reports"), ("id", id.as_str()), ("reason", "why")];
        redis.xadd::<_, _, _, _, ()>(ground.stream.dead(), "*", &fields).await.unwrap();
    }
    let first = letters.untold("group", 3).await.unwrap();
    assert_eq!(first.len(), 3);
    letters.told("group", first[2].id).await.unwrap();
    let rest = letters.untold("group", 3).await.unwrap();
    assert_eq!(
        rest.iter().map(|letter| letter.original_id.unwrap().millis).collect::<Vec<_>>(),
        [3, 4]
    );
    assert_eq!(letters.untold("other", 10).await.unwrap().len(), 5);
}

/// Whoever knows the watermark, and not the letters that it is past, takes their messages for lost.
#[tokio::test]
async fn the_watermark_is_not_told_before_the_dead_letters_that_it_is_past() {
    let ground = Ground::new().await;
    let reports: Arc<Mutex<Vec<PipelineReport>>> = Arc::default();
    let told = Arc::clone(&reports);
    let take = move |Json(report): Json<PipelineReport>| async move {
        told.lock().unwrap().push(report);
        (StatusCode::ACCEPTED, Json(json!({"ok": true})))
    };
    let (url, _stop) = serve(Router::new().route("/api/monitor/pipeline", post(take))).await;
    let _relay = Process::relay(&ground, &url, &[]).await;
    let reports = || reports.lock().unwrap().clone();
    eventually("it reports", async || reports().into_iter().next()).await;

    let mut letters = redis::pipe();
    for number in 0..2_500 {
        let id = format!("{number}-1");
        letters.xadd(ground.stream.dead(), "*", &[("stream", "reports"), ("id", id.as_str())]);
    }
    let ids: Vec<String> = letters.query_async(&mut ground.redis().await).await.unwrap();
    let last: StreamId = ids.last().unwrap().parse().unwrap();
    let reports = eventually("the watermark is past them", async || {
        let reports = reports();
        let is_past = |report: &PipelineReport| report.watermark > last.written_at();
        let past = reports.iter().position(is_past)?;
        Some(reports[..=past].to_vec())
    })
    .await;
    let told: usize = reports.iter().map(|report| report.dead_letters.len()).sum();
    assert_eq!(told, ids.len());
}

/// Pending entries that somebody deletes are lost, but for the audit of their senders.
#[tokio::test]
async fn senders_are_told_when_pending_entries_were_deleted() {
    let ground = Ground::new().await;
    let dead = ground.group("dead");
    dead.create().await.unwrap();
    let id = ground.send(heartbeat(&window("payments-a", 1), 0).to_json()).await;
    dead.read_new(1).await.unwrap();
    let before = ground.observe().await.unwrap().identity;
    let mut redis = ground.redis().await;
    redis.xdel::<_, _, ()>(ground.stream.reports(), &[id.to_string()]).await.unwrap();
    let monitor = Process::monitor(&ground, &[]).await;
    let quick = ["--lease", "1s", "--http-timeout", "300ms"];
    let _relay = Process::relay(&ground, &monitor.url(""), &quick).await;
    eventually("the epoch changes", async || {
        let seen = ground.observe().await.unwrap();
        (seen.identity != before).then_some(())
    })
    .await;
}
