//! Measures how long it takes from the moment at which a part is back until its backlog is drained.
//!
//! Other faults go on meanwhile, and what they cost is not taken off: the times are upper bounds.
//! The exception is the stall, in which by intent nothing drains: what came back during the stall
//! counts from its end.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use heartbeat::clock;
use heartbeat::wire::{StreamId, Timestamp};
use redis::aio::MultiplexedConnection;
use redis::streams::{StreamInfoGroupsReply, StreamPendingCountReply, StreamRangeReply};
use redis::{AsyncCommands, RedisResult};
use tokio::time::{Instant, sleep, timeout};

use super::cluster::{Cluster, GROUP};
use super::plan::{Kind, PAYMENTS};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(100);
/// How long one look may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// An entry that has waited for less is no backlog.
const IN_PASSING: Duration = Duration::from_secs(1);

/// What waits to be drained, and what was.
#[derive(Default)]
pub struct Recovery {
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    waiting: Vec<Waiting>,
    times: BTreeMap<String, Vec<Duration>>,
}

#[derive(Clone)]
struct Waiting {
    kind: Kind,
    /// The process that was away, or whose connections were; none if a server was.
    process: Option<usize>,
    since: Instant,
    back_at: Timestamp,
}

impl Recovery {
    /// Notes that a part is back.
    pub fn part_is_back(&self, kind: Kind, process: Option<usize>) {
        let waiting = Waiting { kind, process, since: Instant::now(), back_at: clock::now() };
        self.book().waiting.push(waiting);
    }

    /// Notes that relays work again.
    pub fn stall_is_over(&self) {
        self.book().waiting.iter_mut().for_each(|waiting| waiting.since = Instant::now());
    }

    /// Looks for ever whether what waits is drained.
    pub async fn watch(&self, cluster: &Cluster) {
        loop {
            sleep(PAUSE).await;
            let waiting = self.book().waiting.clone();
            if waiting.is_empty() || !streams_are_drained(cluster).await {
                continue;
            }
            for part in waiting {
                if is_ready(cluster, part.process).await && has_caught_up(cluster, &part).await {
                    self.settle(cluster, &part);
                }
            }
        }
    }

    fn settle(&self, cluster: &Cluster, part: &Waiting) {
        let mut book = self.book();
        let same = |other: &Waiting| (other.kind, other.back_at) == (part.kind, part.back_at);
        let Some(place) = book.waiting.iter().position(same) else { return };
        let waited = book.waiting.remove(place).since.elapsed();
        book.times.entry(what_happened(cluster, part)).or_default().push(waited);
    }

    /// The times by what had happened, shortest first.
    pub fn times(&self) -> BTreeMap<String, Vec<Duration>> {
        let mut times = self.book().times.clone();
        for times in times.values_mut() {
            times.sort_unstable();
        }
        times
    }

    /// How many parts are still waited for.
    pub fn unsettled(&self) -> usize {
        self.book().waiting.len()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The kind of fault, and for processes of which role.
fn what_happened(cluster: &Cluster, part: &Waiting) -> String {
    match part.process.map(|process| &cluster.roles[process].name) {
        Some(name) if matches!(part.kind, Kind::Kill | Kind::Stop) => {
            let role = name.split('-').next().unwrap_or(name);
            part.kind.name().replace("process", role)
        }
        _ => part.kind.name().to_owned(),
    }
}

/// Whether nothing waits in the streams, except in passing.
pub async fn streams_are_drained(cluster: &Cluster) -> bool {
    let looking = async {
        let mut connection = cluster.redis_connection().await?;
        for key in [cluster.stream.windows(), cluster.stream.reports()] {
            let oldest = oldest_waiting(&mut connection, key).await.ok()??;
            if oldest.is_some_and(|id| id.written_at().plus(IN_PASSING) < clock::now()) {
                return None;
            }
        }
        Some(())
    };
    timeout(PATIENCE, looking).await.is_ok_and(|drained| drained.is_some())
}

/// The oldest entry that is pending or was not read; none also if there is no group.
async fn oldest_waiting(
    connection: &mut MultiplexedConnection,
    key: &str,
) -> RedisResult<Option<Option<StreamId>>> {
    let groups: StreamInfoGroupsReply = connection.xinfo_groups(key).await?;
    let Some(group) = groups.groups.into_iter().find(|group| group.name == GROUP) else {
        return Ok(None);
    };
    let pending: StreamPendingCountReply =
        connection.xpending_count(key, GROUP, "-", "+", 1).await?;
    let after = format!("({}", group.last_delivered_id);
    let unread: StreamRangeReply = connection.xrange_count(key, after, "+", 1).await?;
    let pending = pending.ids.into_iter().map(|entry| entry.id);
    let ids = pending.chain(unread.ids.into_iter().map(|entry| entry.id));
    Ok(Some(ids.filter_map(|id| id.parse().ok()).min()))
}

/// Whether a process can do its work; if none is named, whether all can that no fault is about.
async fn is_ready(cluster: &Cluster, process: Option<usize>) -> bool {
    let client = heartbeat::http::client(PATIENCE).unwrap();
    let asked = match process {
        Some(process) => &cluster.roles[process..=process],
        None => &cluster.roles,
    };
    for role in asked.iter().filter(|role| process.is_some() || role.is_left_alone()) {
        let answer = client.get(role.url("/ready")).send().await;
        if !answer.is_ok_and(|answer| answer.status().is_success()) {
            return false;
        }
    }
    true
}

/// Whether a service that was away has finished every window that was open when it came back.
async fn has_caught_up(cluster: &Cluster, part: &Waiting) -> bool {
    let killed_or_stopped = matches!(part.kind, Kind::Kill | Kind::Stop);
    let service = part.process.filter(|process| PAYMENTS.contains(process) && killed_or_stopped);
    let Some(service) = service.map(|process| &cluster.roles[process]) else { return true };
    let back_at = part.back_at.plus_micros(service.clock_offset_millis * 1_000);
    let query = sqlx::query_scalar(
        "SELECT COUNT(*) FROM report_windows \
         WHERE service = ? AND finished_at IS NULL AND created_at <= ?",
    );
    let query = query.bind(&service.name).bind(DateTime::<Utc>::from(back_at));
    let counting = timeout(PATIENCE, query.fetch_one(&cluster.payments)).await;
    matches!(counting, Ok(Ok(0_i64)))
}
