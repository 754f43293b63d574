//! A run in which everything fails that can fail, and a checker that reads both ledgers afterwards.
//!
//! Three payments services, two relays, two monitors, a Redis and a database, all of them real
//! processes, with a network between each two that can fail too. Windows of a few seconds are
//! opened all the time. Faults come at random, from a seed. When they are over, everything is let
//! to drain, and then nothing may be lost, invented, closed twice, miscounted or alarmed about.
//!
//! `make chaos` runs it. [`plan`] says which faults come when, [`faults`] carries them out on the
//! [`cluster`] and its [`network`], [`poison`] writes what no monitor can take, [`recovery`] and
//! [`drill`] measure, [`ledger`] reads the databases, [`checker`] judges, [`report`] prints.

mod checker;
mod checker_tests;
mod cluster;
mod drill;
mod faults;
mod leash;
mod ledger;
mod ledger_tests;
mod network;
mod plan;
mod poison;
mod proxy;
mod recovery;
mod report;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use self::checker::Expectation;
use self::cluster::{Cluster, GRACE, MAX_HOLD};
use self::faults::Faults;
use self::plan::{Kind, PAYMENTS};
use self::poison::Poison;
use self::recovery::Recovery;
use self::report::Outcome;

/// How often a window is opened.
const OPEN_EVERY: Duration = Duration::from_millis(33);
/// Fewest windows in a minute for the run to count.
const WINDOWS_PER_MINUTE: u64 = 1_000;
/// How long no relay works, once a minute.
const STALL: Duration = Duration::from_secs(MAX_HOLD.as_secs() + 6);
/// How long everything may take to drain after the run.
const DRAIN: Duration = Duration::from_secs(90);
/// How far the clock of one sender is off, in milliseconds, ahead or behind.
const CLOCK_OFFSET_MILLIS: i64 = 3_000;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: make chaos"]
async fn chaos() {
    let seconds = setting("CHAOS_SECONDS").unwrap_or(plan::MINUTE.as_secs());
    let seed = setting("CHAOS_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    println!("chaos of {seconds} s from seed {seed}: make chaos SECONDS={seconds} SEED={seed}");
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("chaos-{seed}-{}", std::process::id()));
    let outcome = run(directory.clone(), seed, seconds).await;
    println!("{outcome}");
    outcome.write_down(&directory);
    assert!(outcome.passed(), "the run is kept in {}", directory.display());
    std::fs::remove_dir_all(directory).unwrap();
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

async fn run(directory: PathBuf, seed: u64, seconds: u64) -> Outcome {
    let sign = if seed.is_multiple_of(2) { 1 } else { -1 };
    let cluster = Cluster::start(directory, sign * CLOCK_OFFSET_MILLIS).await;
    let (poison, recovery) = (Poison::default(), Recovery::default());
    let faults = Faults::new(&cluster, &poison, &recovery);
    let lanes = plan::lanes(seed, seconds, cluster.pairs.len(), STALL);
    let start = Instant::now();
    let faults_of_all_lanes = async {
        let lanes = lanes.iter().map(|lane| faults.carry_out(lane, start));
        futures_util::future::join_all(lanes).await;
        start.elapsed()
    };
    let working = async {
        let opening = open_windows(&cluster, seed, Duration::from_secs(seconds));
        let injecting = poison.inject(&cluster, seed, seconds, start);
        let ((), (), faults_took) = tokio::join!(opening, injecting, faults_of_all_lanes);
        let drills = tokio::select! {
            drills = drill::all(&cluster) => drills,
            () = open_windows(&cluster, seed, Duration::MAX) => unreachable!("it never ends"),
        };
        (faults_took, drills, drain(&cluster, &poison, &recovery).await)
    };
    let (faults_took, drills, drained) = tokio::select! {
        done = working => done,
        () = cluster.supervise() => unreachable!("it never ends"),
        () = recovery.watch(&cluster) => unreachable!("it never ends"),
        () = poison.collect(&cluster) => unreachable!("it never ends"),
    };
    let (poisoned, happened) = (poison.so_far(), faults.so_far());
    let ledger = ledger::read(&cluster.payments, &cluster.monitor, poisoned.found.clone()).await;
    let expectation = Expectation {
        grace: GRACE,
        max_hold: MAX_HOLD,
        stalls: happened.stalls.clone(),
        poison: poisoned.injected.difference(&poisoned.uncertain).cloned().collect(),
        uncertain_poison: poisoned.uncertain.clone(),
        windows: usize::try_from(WINDOWS_PER_MINUTE * seconds / 60).unwrap(),
        faults: required(&happened.injected, &poisoned, seconds),
    };
    let outcome = Outcome {
        seed,
        seconds,
        report: checker::check(&ledger, &expectation),
        faults: happened,
        faults_took,
        drills,
        poisoned,
        recoveries: recovery.times(),
        unrecovered: recovery.unsettled(),
        drained,
        ended_by_themselves: cluster.ended_by_themselves.load(std::sync::atomic::Ordering::Relaxed),
    };
    cluster.stop().await;
    outcome
}

/// Faults by kind, and how many the run must have to count.
fn required(
    injected: &BTreeMap<Kind, usize>,
    poisoned: &poison::Book,
    seconds: u64,
) -> BTreeMap<&'static str, (usize, usize)> {
    let minutes = usize::try_from(seconds / 60).unwrap();
    let of_kind = |kind: Kind| injected.get(&kind).copied().unwrap_or(0);
    let faults = Kind::ALL.map(|kind| (kind.name(), (of_kind(kind), kind.required() * minutes)));
    let poison = poison::KINDS.into_iter().zip(poisoned.by_kind);
    let poison = poison.map(|(name, count)| (name, (count, poison::REQUIRED * minutes)));
    faults.into_iter().chain(poison).collect()
}

/// Opens windows at a steady rate, whatever becomes of the requests.
async fn open_windows(cluster: &Cluster, seed: u64, lasts: Duration) {
    let mut random = StdRng::seed_from_u64(seed);
    let client = heartbeat::http::client(Duration::from_secs(3)).unwrap();
    let limit = Arc::new(Semaphore::new(64));
    let mut requests = JoinSet::new();
    let mut beat = interval(OPEN_EVERY);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut services = PAYMENTS.cycle();
    let start = Instant::now();
    while start.elapsed() < lasts {
        beat.tick().await;
        let service = services.next().unwrap();
        let url = cluster.roles[service].url("/report-windows");
        let request = client.post(url).body(definition(&mut random).to_string());
        let Ok(permit) = Arc::clone(&limit).try_acquire_owned() else { continue };
        requests.spawn(async move {
            request.send().await.ok();
            drop(permit);
        });
    }
    requests.join_all().await;
}

/// A window of a few seconds; half of them promise to send everything.
fn definition(random: &mut StdRng) -> Value {
    let omitted = if random.random_bool(0.5) { 0.0 } else { random.random_range(0.05..0.3) };
    json!({
        "duration_sec": f64::from(random.random_range(10_u32..=40)) / 10.0,
        "tick_seconds": f64::from(random.random_range(100_u32..=200)) / 1_000.0,
        "error_status_generado": random.random_range(0.0..0.3),
        "error_status_no_reportado": omitted,
        "seed": random.random_range(0..1_u64 << 53),
    })
}

/// Waits until everything is settled. Answers how long that took, or none if it did not come.
async fn drain(cluster: &Cluster, poison: &Poison, recovery: &Recovery) -> Option<Duration> {
    let start = Instant::now();
    let settling = async {
        while !is_settled(cluster, poison).await || recovery.unsettled() > 0 {
            sleep(Duration::from_millis(250)).await;
        }
    };
    timeout(DRAIN, settling).await.ok().map(|()| start.elapsed())
}

async fn is_settled(cluster: &Cluster, poison: &Poison) -> bool {
    let count = async |pool, statement| {
        let counted = sqlx::query_scalar::<_, i64>(statement).fetch_one(pool).await;
        counted.unwrap_or(i64::MAX)
    };
    recovery::streams_are_drained(cluster).await
        && poison.is_settled()
        && count(&cluster.payments, "SELECT COUNT(*) FROM report_windows WHERE finished_at IS NULL")
            .await
            == 0
        && count(&cluster.monitor, "SELECT COUNT(*) FROM windows WHERE status = 'OPEN'").await == 0
        && ledger::unobserved(&cluster.monitor).await == Some(0)
}
