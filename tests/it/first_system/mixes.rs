//! Every mix of the first system's parts and ours, with each part killed in the middle.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::MySqlPool;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep, sleep_until};

use super::ledgers::{Audited, audited, counted, drained, number_of};
use super::part::{
    Program, Running, Theirs, our_monitor, our_relay, our_sender, their_consumer, their_monitor,
    their_sender,
};
use super::post;
use crate::support::{
    Ground, answer, eventually, free_address, get, heartbeat, pool, run, shared, window,
};

/// The group of the first system.
const GROUP: &str = "monitor-queue-group";
/// Ticks of the first window of each sender. Ours goes on with it when it is started again, as soon
/// as the lease of the one that was killed has run out.
const TICKS: u32 = 17;
/// Ticks of the window that a sender of the first system opens when it is started again.
const TICKS_AGAIN: u32 = 7;
/// When parts are killed, in seconds since the senders began.
const KILL_CONSUMER: u64 = 5;
const KILL_RELAY: u64 = 6;
const KILL_MONITOR: u64 = 7;
const KILL_SENDERS: u64 = 8;
/// When our relay joins the consumer of the first system, which has delivered some by then.
const RELAY_JOINS: u64 = 2;

/// Whose parts do a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Theirs,
    Ours,
    Both,
}

#[derive(Clone, Copy, Debug)]
struct Mix {
    senders: Whose,
    carriers: Whose,
    monitor: Whose,
}

impl Whose {
    const ALL: [Self; 3] = [Self::Theirs, Self::Ours, Self::Both];

    fn ours(self) -> bool {
        self != Self::Theirs
    }

    fn theirs(self) -> bool {
        self != Self::Ours
    }
}

#[tokio::test]
async fn our_monitor_counts_what_either_sender_sent_whoever_carries_it() {
    play_all(Whose::Ours).await;
}

#[tokio::test]
async fn their_monitor_counts_what_either_sender_sent_whoever_carries_it() {
    play_all(Whose::Theirs).await;
}

#[tokio::test]
async fn their_monitor_counts_each_of_a_backlog_that_our_relay_brings() {
    let ground = Ground::new().await;
    let address = free_address();
    let _monitor = their_monitor(address, &ground.monitor_url).start().await;
    let window = window("payments-a", 500);
    for slot in 0..400 {
        ground.send(heartbeat(&window, slot).to_json()).await;
    }
    let Program::Ours(role, at, mut arguments, settings) = our_relay(&ground, GROUP, address)
    else {
        unreachable!()
    };
    // So that it has several batches to bring.
    arguments.extend(["--batch-size", "20"].map(str::to_owned));
    let _relay = Program::Ours(role, at, arguments, settings).start().await;
    drained(&ground, GROUP).await;
    let monitor = pool(&ground.monitor_url).await;
    let uuid = window.uuid.to_string();
    assert_eq!(events(&monitor, &uuid).await, (400, 400));
    assert_eq!(counted(&monitor, &uuid).await.received, 400, "none is lost count of");
}

/// It called them sent before it tried, and never tries again.
#[tokio::test]
async fn what_their_sender_could_not_write_is_unconfirmed_and_nobody_can_follow_it() {
    let ground = Ground::new().await;
    let migrate = run(&["migrate", "payments"], &[("DATABASE_URL", &ground.payments_url)]).await;
    assert_eq!(migrate.0, 0, "{}", migrate.2);
    let address = free_address();
    let _monitor = our_monitor(&ground, address, &ground.monitor_url).start().await;
    let _relay = our_relay(&ground, GROUP, address).start().await;
    let Program::Theirs(part, mut settings) = their_sender(&ground, "old-a", (1, 3)) else {
        unreachable!()
    };
    settings.retain(|(name, _)| *name != "REDIS_URL");
    settings.push(("REDIS_URL", format!("redis://{}/0", free_address())));
    Theirs::start(part, &settings).await.end().await;
    sleep(Duration::from_secs(3)).await;
    let windows = audited(&ground).await;
    let monitor = format!("http://{address}");
    let stream = ground.stream.to_string();
    let environment = [
        ("MONITOR_URL", monitor.as_str()),
        ("REDIS_URL", shared().redis_url.as_str()),
        ("STREAM_NAME", stream.as_str()),
        ("PAYMENTS_DATABASE_URL", ground.payments_url.as_str()),
    ];
    let (code, out, err) = run(&["explain", "--json"], &environment).await;
    let shown: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
    let verdicts = &shown["verdicts"];
    assert_eq!(verdicts["unconfirmed"], windows[0].sent, "{shown}");
    assert_eq!(verdicts["never_sent"], windows[0].omitted, "{shown}");
    assert_eq!(code, 3, "nothing is lost for certain, and not all is explained");

    let repair = ["explain", "--repair", "--unconfirmed", "--yes"];
    let (code, out, err) = run(&repair, &environment).await;
    assert_eq!(code, 0, "{out}{err}");
    drained(&ground, GROUP).await;
    let ledger = pool(&ground.monitor_url).await;
    assert_eq!(counted(&ledger, &windows[0].uuid).await.received, windows[0].sent);
    let (code, out, err) = run(&["explain"], &environment).await;
    assert_eq!(code, 0, "{out}{err}");
}

/// Plays the nine mixes with a monitor at the same time, and names all that fail.
async fn play_all(monitor: Whose) {
    let playing = async {
        let mut mixes = Vec::new();
        for senders in Whose::ALL {
            for carriers in Whose::ALL {
                let mix = Mix { senders, carriers, monitor };
                mixes.push((mix, spawn_local(play(mix))));
            }
        }
        let mut failed = Vec::new();
        for (mix, played) in mixes {
            failed.extend(played.await.is_err().then_some(mix));
        }
        failed
    };
    let failed = LocalSet::new().run_until(playing).await;
    assert!(failed.is_empty(), "{failed:?} failed, each as said above");
}

async fn play(mix: Mix) {
    let ground = Ground::new().await;
    // The senders share it, so that whoever comes first, it is as ours need it.
    let migrate = run(&["migrate", "payments"], &[("DATABASE_URL", &ground.payments_url)]).await;
    assert_eq!(migrate.0, 0, "{}", migrate.2);
    let address = free_address();
    let monitor = match mix.monitor {
        Whose::Theirs => their_monitor(address, &ground.monitor_url),
        _ => our_monitor(&ground, address, &ground.monitor_url),
    };
    let mut stage = Stage { ground, mix, address, monitor: None, consumer: None, relay: None };
    stage.monitor = Some((monitor.start().await, monitor));
    stage.play().await;
}

/// A part that is at work, and how to start it again.
type Part = (Running, Program);

struct Stage {
    ground: Ground,
    mix: Mix,
    address: SocketAddr,
    monitor: Option<Part>,
    consumer: Option<Part>,
    relay: Option<Part>,
}

impl Stage {
    async fn play(mut self) {
        if self.mix.carriers.theirs() {
            let program = their_consumer(&self.ground, self.address);
            self.consumer = Some((program.start().await, program));
        }
        if self.mix.carriers == Whose::Ours {
            self.start_relay().await;
        }
        let (theirs, mut ours) = self.start_senders().await;
        let began = Instant::now();
        let at = |second| sleep_until(began + Duration::from_secs(second));
        at(RELAY_JOINS).await;
        if self.mix.carriers == Whose::Both {
            self.start_relay().await;
        }
        at(KILL_CONSUMER).await;
        self.nothing_came_twice().await;
        kill_and_start(&mut self.consumer).await;
        at(KILL_RELAY).await;
        kill_and_start(&mut self.relay).await;
        at(KILL_MONITOR).await;
        kill_and_start(&mut self.monitor).await;
        at(KILL_SENDERS).await;
        kill_and_start(&mut ours).await;
        if let Some((running, _)) = theirs {
            running.kill().await;
            let again = their_sender(&self.ground, "old-a", (1, TICKS_AGAIN)).start().await;
            let Running::Theirs(sender) = again else { unreachable!() };
            sender.end().await;
        }
        self.all_is_sent().await;
        drained(&self.ground, GROUP).await;
        let dropped = self.consumer.as_ref().map_or(0, |(running, _)| running.dropped());
        assert_eq!(dropped, 0, "{:?}: its consumer gives nothing up", self.mix);
        let windows = audited(&self.ground).await;
        let opened = if self.mix.senders.theirs() { 2 } else { 0 };
        assert_eq!(windows.len(), opened + usize::from(self.mix.senders.ours()));
        match self.mix.monitor {
            Whose::Theirs => self.check_theirs(&windows).await,
            _ => self.check_ours(&windows).await,
        }
    }

    async fn start_relay(&mut self) {
        let program = our_relay(&self.ground, GROUP, self.address);
        self.relay = Some((program.start().await, program));
    }

    async fn start_senders(&self) -> (Option<Part>, Option<Part>) {
        let (mut theirs, mut ours) = (None, None);
        if self.mix.senders.ours() {
            let program = our_sender(&self.ground, "new-a");
            let running = program.start().await;
            let Running::Ours(process) = &running else { unreachable!() };
            near_a_whole_second().await;
            let request = json!({"duration_sec": TICKS, "error_status_no_reportado": 0.1});
            let url = process.url("/report-windows");
            let (status, opened) = post(&url, request.to_string()).await;
            assert_eq!(status, 202, "{opened}");
            ours = Some((running, program));
        }
        if self.mix.senders.theirs() {
            let program = their_sender(&self.ground, "old-a", (1, TICKS));
            theirs = Some((program.start().await, program));
        }
        (theirs, ours)
    }

    /// Waits until our sender has seen to its window to the end.
    async fn all_is_sent(&self) {
        let payments = pool(&self.ground.payments_url).await;
        let unfinished =
            "SELECT COUNT(*) FROM report_windows WHERE service = ? AND finished_at IS NULL";
        eventually("our sender is done", async || {
            (number_of(&payments, unfinished, "new-a").await == 0).then_some(())
        })
        .await;
    }

    /// Each slot is as its sender wrote, and what is missing is explained.
    async fn check_ours(&self, windows: &[Audited]) {
        let mut unconfirmed = 0;
        for window in windows {
            let shown = self.closed(&window.uuid).await;
            let counts = |name: &str| shown[name].as_i64().unwrap();
            let verdicts = |wanted: &[&str]| {
                let slots = shown["slots"].as_array().unwrap();
                let verdict = |slot: &&Value| wanted.contains(&slot["verdict"].as_str().unwrap());
                i64::try_from(slots.iter().filter(verdict).count()).unwrap()
            };
            let unsure = verdicts(&["unconfirmed"]);
            unconfirmed += unsure;
            assert!(unsure <= may_be_unsent(window), "{:?}: {shown}", self.mix);
            assert_eq!(counts("expected_reports"), window.slots, "{:?}", self.mix);
            assert_eq!(counts("received_reports"), window.sent - unsure, "{:?}: {shown}", self.mix);
            assert_eq!(verdicts(&["on_time", "late"]), counts("received_reports"), "{shown}");
            assert_eq!(counts("unscheduled_reports"), window.sent_after, "{:?}", self.mix);
            assert_eq!(verdicts(&["never_sent"]), window.omitted, "{:?}: {shown}", self.mix);
            let down = verdicts(&["sender_down"]);
            let was_killed = window.slots == i64::from(TICKS);
            assert!(was_killed || down == 0, "{:?}: {shown}", self.mix);
            let missing = counts("missing_reports");
            assert_eq!(missing, window.omitted + down + unsure, "{:?}: {shown}", self.mix);
            let status = if missing > 0 { "alert" } else { "closed" };
            assert_eq!(shown["status"], status, "{:?}: {shown}", self.mix);
        }
        let monitor = format!("http://{}", self.address);
        let (code, out, err) = run(&["explain"], &[("MONITOR_URL", &monitor)]).await;
        let expected = if unconfirmed > 0 { 3 } else { 0 };
        assert_eq!(code, expected, "{:?}: {out}{err}", self.mix);
    }

    async fn closed(&self, uuid: &str) -> Value {
        let url = format!("http://{}/api/monitor/windows/{uuid}", self.address);
        eventually(&format!("{:?}: window {uuid} closes", self.mix), async || {
            let (_, window) = answer(get(&url).await.ok()?).await;
            window["closed_at"].is_string().then_some(window)
        })
        .await
    }

    /// Its counts are those of the audit, to the last one, but for one at the most that each kill may
    /// have delivered twice.
    async fn check_theirs(&self, windows: &[Audited]) {
        let pool = pool(&self.ground.monitor_url).await;
        for window in windows {
            let told = format!("{:?}: {window:?}", self.mix);
            let counts = eventually(&format!("{told} is closed"), async || {
                let sweep = format!("http://{}/api/monitor/windows/sweep", self.address);
                assert_eq!(post(&sweep, String::new()).await.0, 200);
                let counts = counted(&pool, &window.uuid).await;
                (counts.status != "OPEN").then_some(counts)
            })
            .await;
            let (stored, arrived) = events(&pool, &window.uuid).await;
            let sent = window.sent + window.sent_after;
            let unsent = may_be_unsent(window);
            let kills = self.kills_during(window);
            // Theirs has whole seconds, so that each tick of their sender is told from the next.
            // Two of ours, which stamps when it comes to it, can fall into the same.
            let arrived = if window.is_ours { stored.min(sent) } else { arrived };
            assert!((sent - unsent..=sent).contains(&arrived), "{told}: {arrived} arrived");
            assert!((0..=kills).contains(&(stored - arrived)), "{told}: {stored} of {arrived}");
            if self.mix.carriers == Whose::Both {
                // Two that post at a time make it lose count, as two consumers of its own do.
                assert!(counts.received <= stored, "{told}: {counts:?}");
            } else {
                // Killed between an event and its count, it is told again, and counts once.
                let range = arrived..=arrived + kills;
                assert!(range.contains(&counts.received), "{told}: {counts:?}");
            }
        }
    }

    /// A group that is created, or a relay that joins one, makes no sender send again what their
    /// monitor would count again.
    async fn nothing_came_twice(&self) {
        if self.mix.monitor == Whose::Theirs {
            let pool = pool(&self.ground.monitor_url).await;
            for window in audited(&self.ground).await {
                let (stored, arrived) = events(&pool, &window.uuid).await;
                assert!(arrived > 1, "{:?}: {arrived} arrived", self.mix);
                // Two of ours may fall into the same whole second; of one slot there is one row.
                let once = if window.is_ours { self.written(&window.uuid).await } else { arrived };
                assert!(stored <= once, "{:?}: {stored} of {once}, nothing is killed", self.mix);
            }
        }
    }

    /// How many heartbeats of a window its sender has written down by now.
    async fn written(&self, uuid: &str) -> i64 {
        let payments = pool(&self.ground.payments_url).await;
        let rows = "SELECT COUNT(*) FROM report_audit WHERE window_uuid = ? \
            AND status <> 'no_reported'";
        number_of(&payments, rows, uuid).await
    }

    /// How many parts were killed while a window was open that may have been about to say that a
    /// heartbeat is done.
    fn kills_during(&self, window: &Audited) -> i64 {
        if window.slots != i64::from(TICKS) {
            return 0;
        }
        let carriers = match self.mix.carriers {
            Whose::Both => 2,
            _ => 1,
        };
        // One of ours that is killed between sending and marking sends once more.
        1 + carriers + i64::from(window.is_ours)
    }
}

/// Heartbeats that a sender called sent and never wrote, at the most. One of the first system that is
/// killed may have been between the two.
fn may_be_unsent(window: &Audited) -> i64 {
    i64::from(!window.is_ours && window.slots == i64::from(TICKS))
}

/// How many heartbeats of a window their monitor has stored, and how many different ones.
async fn events(monitor: &MySqlPool, uuid: &str) -> (i64, i64) {
    // Both at one instant: more may arrive at any time.
    let query = "SELECT COUNT(*), COUNT(DISTINCT e.report_timestamp) FROM heartbeat_events e \
                 JOIN monitoring_windows w ON w.id = e.window_id \
                 WHERE w.window_uuid = ? AND e.status <> 'MISSING'";
    sqlx::query_as(query).bind(uuid).fetch_one(monitor).await.unwrap()
}

async fn kill_and_start(part: &mut Option<Part>) {
    if let Some((running, program)) = part.take() {
        running.kill().await;
        *part = Some((program.start().await, program));
    }
}

/// Their monitor keeps whole seconds, so that our slots must not lie halfway between two.
async fn near_a_whole_second() {
    let now = heartbeat::clock::now().micros();
    let left = 1_000_000 - now.rem_euclid(1_000_000);
    sleep(Duration::from_micros(left.unsigned_abs())).await;
}
