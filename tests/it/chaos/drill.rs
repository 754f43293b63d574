//! One part at a time is killed while everything else works: how soon that can be seen, and how
//! soon after its return everything is as before.
//!
//! Within a run faults overlap, so that its times say little about any one of them. These do.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::cluster::Cluster;
use super::plan::{MONITORS, PAYMENTS, RELAYS};
use super::recovery::streams_are_drained;

/// How long a part is away.
const AWAY: Duration = Duration::from_secs(3);
/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long a drill waits for what was before it: a long run leaves a backlog behind.
const CALM_PATIENCE: Duration = Duration::from_mins(5);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// What came of one drill. None where it did not come within a minute.
#[derive(Clone, Debug)]
pub struct Drill {
    /// What was killed.
    pub part: &'static str,
    /// From its end until some role said that it cannot do its work, or did not answer.
    pub seen_after: Option<Duration>,
    /// From its return until every role could, and nothing waited in the streams.
    pub recovered_after: Option<Duration>,
}

/// Carries out all drills, one after the other.
pub async fn all(cluster: &Cluster) -> Vec<Drill> {
    let mut drills = Vec::new();
    for (part, process) in [
        ("a payments service", PAYMENTS.start),
        ("a relay", RELAYS.start),
        ("a monitor", MONITORS.start),
    ] {
        calm(cluster).await;
        let role = &cluster.roles[process];
        let mut child = role.hold().await;
        cluster.kill(&mut child).await;
        let seen_after = away(cluster).await;
        cluster.launch(role, &mut child);
        drop(child);
        let recovered_after = until(async || is_calm(cluster).await).await;
        drills.push(Drill { part, seen_after, recovered_after });
    }
    drills.push(redis(cluster).await);
    drills.push(database(cluster).await);
    drills
}

async fn redis(cluster: &Cluster) -> Drill {
    calm(cluster).await;
    let mut redis = cluster.redis.lock().await;
    let pid = redis.pid();
    redis.kill().await.unwrap();
    let seen_after = away(cluster).await;
    redis.restart().await.unwrap();
    cluster.hold_server(pid, redis.pid());
    let recovered_after = until(async || is_calm(cluster).await).await;
    Drill { part: "Redis", seen_after, recovered_after }
}

async fn database(cluster: &Cluster) -> Drill {
    calm(cluster).await;
    let mut database = cluster.database.lock().await;
    let pid = database.pid();
    database.kill().await.unwrap();
    let seen_after = away(cluster).await;
    database.restart().await.unwrap();
    cluster.hold_server(pid, database.pid());
    let recovered_after = until(async || is_calm(cluster).await).await;
    Drill { part: "the database", seen_after, recovered_after }
}

/// Lets the time pass for which a part is away. Answers how soon that was seen.
async fn away(cluster: &Cluster) -> Option<Duration> {
    let start = Instant::now();
    let seen_after = until(async || !all_are_ready(cluster).await).await;
    sleep(AWAY.saturating_sub(start.elapsed())).await;
    seen_after
}

/// Waits until everything works and nothing waits: only then is it one part that fails.
async fn calm(cluster: &Cluster) {
    let calm = until_within(CALM_PATIENCE, async || is_calm(cluster).await).await;
    assert!(calm.is_some(), "what was before is not over after {CALM_PATIENCE:?}");
}

async fn is_calm(cluster: &Cluster) -> bool {
    all_are_ready(cluster).await && streams_are_drained(cluster).await
}

async fn all_are_ready(cluster: &Cluster) -> bool {
    let client = heartbeat::http::client(Duration::from_secs(2)).unwrap();
    let asking = cluster.roles.iter().map(|role| client.get(role.url("/ready")).send());
    let answers = futures_util::future::join_all(asking).await;
    answers.into_iter().all(|answer| answer.is_ok_and(|answer| answer.status().is_success()))
}

/// Waits until something holds. Answers how long that took, or none if it took too long.
async fn until(holds: impl AsyncFnMut() -> bool) -> Option<Duration> {
    until_within(PATIENCE, holds).await
}

async fn until_within(
    patience: Duration,
    mut holds: impl AsyncFnMut() -> bool,
) -> Option<Duration> {
    let start = Instant::now();
    let waiting = async {
        while !holds().await {
            sleep(PAUSE).await;
        }
    };
    timeout(patience, waiting).await.ok().map(|()| start.elapsed())
}
