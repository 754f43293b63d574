//! Carries faults out: takes a part away, waits, and brings it back.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use heartbeat::clock;
use heartbeat::wire::Timestamp;
use nix::sys::signal::Signal;
use tokio::process::Child;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::cluster::{Cluster, signal};
use super::plan::{Fault, Kind, Lane, RELAYS};
use super::poison::Poison;
use super::proxy::Weather;
use super::recovery::Recovery;

/// Slowest pieces of a slow network.
const SLOWEST: Duration = Duration::from_millis(400);
/// How often a server is started again until it gives up.
const STARTS: usize = 5;

/// Who carries faults out, and what happened.
pub struct Faults<'r> {
    /// What they happen to.
    pub cluster: &'r Cluster,
    /// What must rest while data is destroyed.
    pub poison: &'r Poison,
    /// What is told when a part is back.
    pub recovery: &'r Recovery,
    book: Mutex<Book>,
}

/// What happened.
#[derive(Clone, Debug, Default)]
pub struct Book {
    /// Faults by kind.
    pub injected: BTreeMap<Kind, usize>,
    /// From when to when no relay worked.
    pub stalls: Vec<(Timestamp, Timestamp)>,
    /// The longest time for which a part was away.
    pub longest: Option<(Duration, Kind)>,
    /// A line for each fault: from when to when, and what.
    pub journal: Vec<String>,
}

impl<'r> Faults<'r> {
    /// Nothing has happened yet.
    pub fn new(cluster: &'r Cluster, poison: &'r Poison, recovery: &'r Recovery) -> Self {
        Self { cluster, poison, recovery, book: Mutex::default() }
    }

    /// Carries out the faults of a lane, one after the other.
    pub async fn carry_out(&self, lane: &Lane, start: Instant) {
        for fault in lane {
            sleep_until(start + fault.begins).await;
            self.carry_out_one(fault).await;
        }
    }

    /// What happened until now.
    pub fn so_far(&self) -> Book {
        self.book.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn carry_out_one(&self, fault: &Fault) {
        // Whatever poison waits for must not count as time away.
        let rests = matches!(fault.kind, Kind::RedisFlush | Kind::RedisReplace | Kind::Stall);
        let rest = if rests {
            Some(self.poison.rest(self.cluster, fault.kind != Kind::Stall).await)
        } else {
            None
        };
        let (began, began_at) = (Instant::now(), clock::now());
        match fault.kind {
            Kind::Kill | Kind::Stop => self.process(fault).await,
            Kind::Stall => self.stall(fault.lasts).await,
            Kind::Cut | Kind::Slow | Kind::BlackHole | Kind::HalfClose => self.network(fault).await,
            Kind::RedisKill | Kind::RedisStop | Kind::RedisFlush | Kind::RedisReplace => {
                self.redis(fault).await;
            }
            Kind::DatabaseKill | Kind::DatabaseStop => self.database(fault).await,
            Kind::DatabaseReadOnly => self.read_only(fault.lasts).await,
        }
        drop(rest);
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        *book.injected.entry(fault.kind).or_default() += 1;
        let line = format!("{began_at} {} {}", clock::now(), self.describe(fault));
        book.journal.push(line);
        book.longest = book.longest.max(Some((began.elapsed(), fault.kind)));
        if fault.kind == Kind::Stall {
            book.stalls.push((began_at, clock::now()));
            self.recovery.stall_is_over();
        }
        self.recovery.part_is_back(fault.kind, self.process_of(fault));
    }

    fn describe(&self, fault: &Fault) -> String {
        let target = match fault.kind {
            Kind::Kill | Kind::Stop => &self.cluster.roles[fault.target].name,
            Kind::Cut | Kind::Slow | Kind::BlackHole | Kind::HalfClose => {
                &self.cluster.pairs[fault.target].name
            }
            _ => "",
        };
        format!("{} {target}", fault.kind.name())
    }

    /// The process that a fault is about.
    fn process_of(&self, fault: &Fault) -> Option<usize> {
        match fault.kind {
            Kind::Kill | Kind::Stop => Some(fault.target),
            Kind::Cut | Kind::Slow | Kind::BlackHole | Kind::HalfClose => {
                let name = &self.cluster.pairs[fault.target].name;
                self.cluster.roles.iter().position(|role| name.starts_with(&role.name))
            }
            _ => None,
        }
    }

    async fn process(&self, fault: &Fault) {
        let role = &self.cluster.roles[fault.target];
        let mut child = role.hold().await;
        if fault.kind == Kind::Kill {
            self.cluster.kill(&mut child).await;
            sleep(fault.lasts).await;
            self.cluster.launch(role, &mut child);
        } else if let Some(pid) = child.as_ref().and_then(Child::id) {
            signal(pid, Signal::SIGSTOP);
            sleep(fault.lasts).await;
            signal(pid, Signal::SIGCONT);
        }
    }

    async fn stall(&self, lasts: Duration) {
        let mut held = Vec::new();
        for role in &self.cluster.roles[RELAYS] {
            held.push(role.hold().await);
        }
        let pids: Vec<u32> =
            held.iter().filter_map(|child| child.as_ref().and_then(Child::id)).collect();
        for pid in &pids {
            signal(*pid, Signal::SIGSTOP);
        }
        sleep(lasts).await;
        for pid in &pids {
            signal(*pid, Signal::SIGCONT);
        }
    }

    async fn network(&self, fault: &Fault) {
        let pair = &self.cluster.pairs[fault.target];
        let weather = match fault.kind {
            Kind::HalfClose => {
                pair.half_close(fault.strength < 0.5);
                Weather::Fair
            }
            Kind::Slow => Weather::Slow(SLOWEST.mul_f64(fault.strength)),
            Kind::BlackHole => Weather::BlackHole,
            _ => Weather::Cut,
        };
        pair.set(weather);
        sleep(fault.lasts).await;
        pair.set(Weather::Fair);
    }

    async fn redis(&self, fault: &Fault) {
        let mut redis = self.cluster.redis.lock().await;
        let pid = redis.pid();
        match fault.kind {
            Kind::RedisStop => {
                signal(pid, Signal::SIGSTOP);
                sleep(fault.lasts).await;
                signal(pid, Signal::SIGCONT);
            }
            Kind::RedisFlush => {
                while !flush(self.cluster).await {
                    sleep(Duration::from_millis(50)).await;
                }
            }
            _ => {
                redis.kill().await.unwrap();
                if fault.kind == Kind::RedisReplace {
                    let data = self.cluster.directory.join("redis/data");
                    fs::remove_dir_all(&data).unwrap();
                    fs::create_dir(&data).unwrap();
                }
                sleep(fault.lasts).await;
                let mut starts = 0;
                while let Err(error) = redis.restart().await {
                    // While it was away, an outgoing connection may have had its port.
                    starts += 1;
                    assert!(starts < STARTS, "{error}");
                }
                self.cluster.hold_server(pid, redis.pid());
            }
        }
    }

    async fn database(&self, fault: &Fault) {
        let mut database = self.cluster.database.lock().await;
        let pid = database.pid();
        if fault.kind == Kind::DatabaseStop {
            signal(pid, Signal::SIGSTOP);
            sleep(fault.lasts).await;
            signal(pid, Signal::SIGCONT);
            return;
        }
        database.kill().await.unwrap();
        sleep(fault.lasts).await;
        let mut starts = 0;
        while let Err(error) = database.restart().await {
            starts += 1;
            assert!(starts < STARTS, "{error}");
        }
        self.cluster.hold_server(pid, database.pid());
    }

    async fn read_only(&self, lasts: Duration) {
        self.set_read_only(true).await;
        sleep(lasts).await;
        self.set_read_only(false).await;
    }

    async fn set_read_only(&self, is_on: bool) {
        let statement =
            if is_on { "SET GLOBAL read_only = ON" } else { "SET GLOBAL read_only = OFF" };
        loop {
            let setting = sqlx::raw_sql(statement).execute(&self.cluster.monitor);
            // A connection that the last fault has broken may be the first that the pool offers.
            if let Ok(Ok(_)) = timeout(Duration::from_secs(5), setting).await {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Empties Redis, if it answers.
async fn flush(cluster: &Cluster) -> bool {
    let Some(mut connection) = cluster.redis_connection().await else { return false };
    let flushing = redis::cmd("FLUSHALL");
    let flushing = flushing.exec_async(&mut connection);
    matches!(timeout(Duration::from_secs(5), flushing).await, Ok(Ok(())))
}
