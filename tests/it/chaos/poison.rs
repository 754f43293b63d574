//! Messages that no monitor can take, each with a mark by which it is found among the dead letters.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use heartbeat::clock;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use redis::streams::StreamRangeReply;
use serde_json::{Value, json};
use sqlx::Row;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use uuid::Uuid;

use super::cluster::Cluster;

/// How many of each kind a minute has.
pub const REQUIRED: usize = 5;
/// How long to wait for poison that is on its way before Redis' data is destroyed.
const PATIENCE: Duration = Duration::from_secs(2);
const MARK: &str = "poison-";
const DIGITS: usize = 6;

/// Kinds of poison.
pub const KINDS: [&str; 11] = [
    "no JSON",
    "a JSON array",
    "missing members",
    "a wrong type",
    "a bad service",
    "absurd times",
    "too many slots",
    "no payload",
    "another service's window",
    "a megabyte",
    "no UTF-8",
];

/// All poison of a run.
#[derive(Default)]
pub struct Poison {
    /// Held while a message is written.
    injecting: tokio::sync::Mutex<()>,
    /// How many have a reason to let injecting rest.
    resting: AtomicUsize,
    book: Mutex<Book>,
}

/// Lets injecting rest until it is dropped.
pub struct Rest<'p>(&'p Poison);

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        self.0.resting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What became of it.
#[derive(Clone, Debug, Default)]
pub struct Book {
    /// Marks of what was written.
    pub injected: BTreeSet<String>,
    /// Marks of what may have been destroyed, or may not have been written.
    pub uncertain: BTreeSet<String>,
    /// The marks of the dead letters, or what else they are.
    pub found: Vec<String>,
    /// How many were written of each kind.
    pub by_kind: [usize; KINDS.len()],
    next: usize,
    last_letter: Option<String>,
}

impl Book {
    fn is_settled(&self) -> bool {
        self.injected.iter().all(|mark| self.found.contains(mark) || self.uncertain.contains(mark))
    }
}

impl Poison {
    /// Injects every kind as often as it takes, spread from the start of the run to its last quiet.
    pub async fn inject(&self, cluster: &Cluster, seed: u64, seconds: u64, start: Instant) {
        let mut random = StdRng::seed_from_u64(seed ^ 0x0be5_1de5);
        let rounds = REQUIRED * usize::try_from(seconds.div_ceil(60)).unwrap();
        let mut kinds: Vec<usize> = (0..KINDS.len() * rounds).map(|n| n % KINDS.len()).collect();
        kinds.shuffle(&mut random);
        let span = Duration::from_secs(seconds - 12);
        let pause = span / u32::try_from(kinds.len()).unwrap();
        for (place, kind) in kinds.into_iter().enumerate() {
            let due = start + Duration::from_secs(3) + pause * u32::try_from(place).unwrap();
            sleep_until(due).await;
            // What cannot be written now, because Redis is away, is tried again.
            while !self.inject_one(cluster, &mut random, kind).await {
                sleep(Duration::from_millis(200)).await;
            }
        }
    }

    async fn inject_one(&self, cluster: &Cluster, random: &mut StdRng, kind: usize) -> bool {
        let _injecting = self.injecting.lock().await;
        if self.resting.load(Ordering::SeqCst) > 0 {
            return false;
        }
        let Some(mut connection) = cluster.redis_connection().await else { return false };
        let Some(foreign) = known_window(cluster).await else { return false };
        let mark = {
            let mut book = self.book();
            book.next += 1;
            format!("{MARK}{:0DIGITS$}", book.next)
        };
        let is_heartbeat = random.random_bool(0.5);
        let stream = if is_heartbeat { cluster.stream.reports() } else { cluster.stream.windows() };
        let (field, value) = message(kind, &mark, foreign);
        let mut command = redis::cmd("XADD");
        command.arg(stream).arg("*").arg(field).arg(value);
        let written = timeout(PATIENCE, command.query_async::<String>(&mut connection)).await;
        let mut book = self.book();
        if let Ok(Ok(_)) = written {
            book.injected.insert(mark);
            book.by_kind[kind] += 1;
            return true;
        }
        book.uncertain.insert(mark);
        false
    }

    /// Lets injecting rest for as long as the answer lives, once everything written is a dead
    /// letter. What is not in time is then uncertain if `destroys` says that it will be destroyed.
    pub async fn rest(&self, cluster: &Cluster, destroys: bool) -> Rest<'_> {
        self.resting.fetch_add(1, Ordering::SeqCst);
        let rest = Rest(self);
        // Nothing is being written any more, once this is ours.
        drop(self.injecting.lock().await);
        let start = Instant::now();
        while start.elapsed() < PATIENCE && !self.book().is_settled() {
            sleep(Duration::from_millis(50)).await;
        }
        if destroys {
            self.collect_once(cluster).await;
            let mut book = self.book();
            let found: BTreeSet<String> = book.found.iter().cloned().collect();
            let on_its_way: Vec<String> = book.injected.difference(&found).cloned().collect();
            book.uncertain.extend(on_its_way);
        }
        rest
    }

    /// Collects dead letters for ever, before anything can destroy them.
    pub async fn collect(&self, cluster: &Cluster) {
        loop {
            self.collect_once(cluster).await;
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn collect_once(&self, cluster: &Cluster) {
        let Some(mut connection) = cluster.redis_connection().await else { return };
        let after = self.book().last_letter.clone();
        let from = after.as_ref().map_or_else(|| "-".to_owned(), |id| format!("({id}"));
        let mut command = redis::cmd("XRANGE");
        command.arg(cluster.stream.dead()).arg(from).arg("+").arg("COUNT").arg(20);
        let reading = command.query_async::<StreamRangeReply>(&mut connection);
        let Ok(Ok(letters)) = timeout(PATIENCE, reading).await else { return };
        let mut book = self.book();
        if book.last_letter != after {
            // Another call has read the same letters meanwhile.
            return;
        }
        for letter in letters.ids {
            let fields = letter.map.values();
            let mut texts =
                fields.filter_map(|value| redis::from_redis_value_ref::<Vec<u8>>(value).ok());
            let mark = texts.find_map(|bytes| mark_in(&bytes));
            let reason: String = letter.get("reason").unwrap_or_default();
            book.found.push(mark.unwrap_or(reason));
            book.last_letter = Some(letter.id);
        }
    }

    /// Whether every message that was written is a dead letter, or may have been destroyed.
    pub fn is_settled(&self) -> bool {
        self.book().is_settled()
    }

    /// What became of all poison until now.
    pub fn so_far(&self) -> Book {
        self.book().clone()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn mark_in(bytes: &[u8]) -> Option<String> {
    let at = bytes.windows(MARK.len()).position(|part| part == MARK.as_bytes())?;
    let mark = bytes.get(at..at + MARK.len() + DIGITS)?;
    String::from_utf8(mark.to_vec()).ok()
}

/// The uuid and service of a window that the monitor knows.
async fn known_window(cluster: &Cluster) -> Option<(String, String)> {
    let query =
        sqlx::query("SELECT window_uuid, service_name FROM windows ORDER BY id DESC LIMIT 1");
    let row = timeout(PATIENCE, query.fetch_optional(&cluster.monitor)).await.ok()?.ok()??;
    Some((row.get("window_uuid"), row.get("service_name")))
}

/// The field and the value of a message.
fn message(kind: usize, mark: &str, (uuid, service): (String, String)) -> (&'static str, Vec<u8>) {
    let now = clock::now();
    let good = json!({
        "mark": mark, "service": "payments-p", "status": "ok", "window_uuid": Uuid::new_v4(),
        "window_from": now, "window_to": now.plus(Duration::from_secs(1)), "timestamp": now,
        "tick_seconds": 0.1, "slot": 0,
    });
    let with = |member: &str, value: Value| {
        let mut message = good.clone();
        message[member] = value;
        message.to_string().into_bytes()
    };
    let body = match KINDS[kind] {
        "no JSON" => format!("{{{mark}").into_bytes(),
        "a JSON array" => json!([good]).to_string().into_bytes(),
        "missing members" => json!({"mark": mark, "status": "ok"}).to_string().into_bytes(),
        "a wrong type" => with("service", json!(5)),
        "a bad service" => with("service", json!("")),
        "absurd times" => with("window_from", json!("9999-12-31T23:59:59Z")),
        "too many slots" => with("window_to", json!(now.plus(Duration::from_hours(24)))),
        "no payload" => return ("other", mark.as_bytes().to_vec()),
        "another service's window" => {
            let mut message = good.clone();
            message["window_uuid"] = json!(uuid);
            message["service"] = json!(format!("not-{service}"));
            message.to_string().into_bytes()
        }
        "a megabyte" => with("padding", json!("x".repeat(1 << 20))),
        "no UTF-8" => [b"{\"mark\":\"", mark.as_bytes(), b"\xff\xfe\"}"].concat(),
        other => unreachable!("no kind of poison: {other}"),
    };
    ("payload", body)
}

#[test]
fn a_mark_is_found_in_every_kind() {
    for (kind, name) in KINDS.iter().enumerate() {
        let foreign = (Uuid::new_v4().to_string(), "payments-a".to_owned());
        let (_, value) = message(kind, "poison-000007", foreign);
        assert_eq!(mark_in(&value).as_deref(), Some("poison-000007"), "{name}");
    }
}
