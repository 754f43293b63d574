//! The first system is replaced while it runs, by the commands of the page that says how.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use serde_json::json;
use sqlx::{AssertSqlSafe, MySqlPool, Row};

use super::ledgers::{audited, counted, drained, number_of};
use super::part::{Running, Theirs, their_consumer, their_monitor, their_sender};
use super::post;
use crate::support::{Ground, Process, eventually, free_address, pool, run, shared};

const PAGE: &str = include_str!("../../../docs/replace-the-first-system.md");
/// The group of the first system.
const GROUP: &str = "monitor-queue-group";
/// Ticks of a window of its senders.
const TICKS: u32 = 5;

/// Whoever does what the page says, from its first command to its last.
struct Operator {
    left: VecDeque<&'static str>,
    /// What stands for the page's names and addresses.
    names: Vec<(&'static str, String)>,
    stream: String,
}

impl Operator {
    fn new(ground: &Ground, names: Vec<(&'static str, String)>) -> Self {
        let commands = PAGE.lines().filter(|line| line.starts_with("    "));
        let left = commands.filter_map(|line| line.trim().strip_prefix("heartbeat ")).collect();
        Self { left, names, stream: ground.stream.to_string() }
    }

    /// The arguments of the next command, which must begin like this. The address that it listens on
    /// is left out.
    fn next(&mut self, expected: &str) -> Vec<String> {
        let mut command = self.left.pop_front().expect("the page has another command").to_owned();
        assert!(command.starts_with(expected), "the page goes on with: {command}");
        for (name, value) in &self.names {
            command = command.replace(name, value);
        }
        assert!(!command.contains('$'), "a name without a value: {command}");
        let mut words: Vec<String> =
            command.split_whitespace().map(|word| word.trim_matches('"').to_owned()).collect();
        if let Some(at) = words.iter().position(|word| word == "--listen") {
            words.drain(at..at + 2);
        }
        words
    }

    /// Starts a role as the page says, on an address, with what makes a test short.
    async fn role(&mut self, role: &str, address: SocketAddr, short: &[&str]) -> Process {
        let words = self.next(role);
        let words: Vec<&str> = words[1..].iter().map(String::as_str).collect();
        let arguments = [&words, short].concat();
        let environment = [("STREAM_NAME", self.stream.as_str())];
        Process::role_at(address, role, &arguments, &environment).await
    }

    /// Runs a command as the page says. Answers its exit code and what it prints.
    async fn command(&mut self, expected: &str, environment: &[(&str, &str)]) -> (i32, String) {
        let words = self.next(expected);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let own = [("STREAM_NAME", self.stream.as_str())];
        let (code, out, err) = run(&words, &[&own, environment].concat()).await;
        (code, format!("{expected}: {out}{err}"))
    }
}

/// What makes a monitor's part of the test short.
const SHORT: [&str; 6] =
    ["--heartbeat-interval-seconds", "1", "--grace", "500ms", "--sweep-interval", "200ms"];

#[tokio::test]
async fn the_first_system_is_replaced_while_it_runs() {
    let (ground, more) = (Ground::new().await, Ground::new().await);
    let [old, beside, new] = [free_address(), free_address(), free_address()];
    let old_monitor = their_monitor(old, &ground.monitor_url).start().await;
    let old_consumer = their_consumer(&ground, old).start().await;
    let mut senders = [sender(&ground, "old-a").await, sender(&ground, "old-b").await];

    let mut operator = Operator::new(
        &ground,
        vec![
            ("$REDIS_URL", shared().redis_url.clone()),
            ("$PAYMENTS_DATABASE_URL", ground.payments_url.clone()),
            ("$FIRST_MONITOR_DATABASE_URL", ground.monitor_url.clone()),
            ("$BESIDE_DATABASE_URL", more.payments_url.clone()),
            ("$MONITOR_DATABASE_URL", more.monitor_url.clone()),
            ("127.0.0.1:5101", beside.to_string()),
            ("127.0.0.1:5001", new.to_string()),
        ],
    );
    let monitor_beside = operator.role("monitor", beside, &SHORT).await;
    let relay_beside = operator.role("relay", free_address(), &[]).await;
    let old_ledger = pool(&ground.monitor_url).await;
    both_count_the_same(old, &old_ledger, &pool(&more.payments_url).await).await;

    let (code, told) = operator.command("migrate payments", &[]).await;
    assert_eq!(code, 0, "{told}");
    the_audit_is_adopted(&ground).await;
    let before = audited(&ground).await.len();
    eventually("the originals go on", async || {
        (audited(&ground).await.len() > before + 1).then_some(())
    })
    .await;
    assert!(senders.iter_mut().all(Theirs::is_running), "no insert failed");

    old_consumer.kill().await;
    old_monitor.kill().await;
    let straddling = open_windows(&old_ledger).await;
    assert!(!straddling.is_empty(), "the switch falls into a window");
    let tick = [("HEARTBEAT_INTERVAL_SECONDS", "1")];
    let (code, told) = operator.command("migrate monitor", &tick).await;
    assert_eq!(code, 0, "{told}");
    let monitor = operator.role("monitor", new, &SHORT).await;
    // What the old consumer held when it was stopped is taken over after that.
    let lease = ["--lease", "3s", "--http-timeout", "1s"];
    let _relay = operator.role("relay", free_address(), &lease).await;
    let new_ledger = pool(&more.monitor_url).await;
    for uuid in &straddling {
        closed(&new_ledger, uuid).await;
    }

    let start = operator.next("payments");
    let mut ours = Vec::new();
    for (old_sender, name) in senders.into_iter().zip(["old-a", "old-b"]) {
        old_sender.finish().await;
        ours.push(replaced(&operator, &start, name).await);
    }
    drained_to_the_end(&ground).await;
    // Stopped with something in hand, it would be waited for another minute.
    assert!(relay_beside.terminate().await.0.success());
    assert!(monitor_beside.terminate().await.0.success());
    let (code, told) = operator.command("forget-group beside", &[]).await;
    assert_eq!(code, 0, "{told}");

    nothing_is_missing_but_what_was_left_out(&ground, &new_ledger, &straddling).await;
    let (code, told) = operator.command("explain --since", &[]).await;
    assert!([0, 3].contains(&code), "{code} {told}");
    let (code, told) = operator.command("explain --repair --unconfirmed", &[]).await;
    assert_eq!(code, 0, "{told}");
    assert_eq!(operator.left, [""; 0], "the page ends here");
    drop((monitor, ours));
}

/// A sender that opens windows back to back until it is told that it is enough.
async fn sender(ground: &Ground, service: &str) -> Theirs {
    match their_sender(ground, service, (1_000, TICKS)).start().await {
        Running::Theirs(sender) => sender,
        Running::Ours(_) => unreachable!(),
    }
}

/// Asks both monitors as the page says, until each service has a window that both have closed. The
/// windows that both have closed are equal.
async fn both_count_the_same(old: SocketAddr, ledger: &MySqlPool, beside: &MySqlPool) {
    let mut queries = PAGE.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let [theirs, ours] = std::array::from_fn(|_| queries.next().expect("two queries"));
    let sweep = format!("http://{old}/api/monitor/windows/sweep");
    let common = eventually("both have closed some windows", async || {
        // It closes by the clock, and does not wait for what is on its way.
        let just_over = "SELECT COUNT(*) FROM monitoring_windows WHERE status = ? \
                         AND window_to BETWEEN UTC_TIMESTAMP() - INTERVAL 2 SECOND \
                         AND UTC_TIMESTAMP() + INTERVAL 1 SECOND";
        if number_of(ledger, just_over, "OPEN").await == 0 {
            post(&sweep, String::new()).await;
        }
        let (theirs, ours) = (rows(ledger, theirs).await, rows(beside, ours).await);
        let common = theirs
            .into_iter()
            .filter_map(|(uuid, counts)| ours.get(&uuid).map(|other| (uuid, counts, *other)));
        let common: Vec<(String, Counts, Counts)> = common.collect();
        (common.len() >= 2).then_some(common)
    })
    .await;
    for (uuid, theirs, ours) in common {
        assert_eq!(theirs, ours, "{uuid}");
    }
}

/// Received and missing.
type Counts = (i64, i64);

async fn rows(pool: &MySqlPool, query: &'static str) -> BTreeMap<String, Counts> {
    let rows = sqlx::raw_sql(AssertSqlSafe(query)).fetch_all(pool).await.unwrap();
    let counts = |row: &sqlx::mysql::MySqlRow| {
        let number = |name: &str| {
            let text: String = row.get_unchecked(name);
            text.parse().unwrap()
        };
        (row.get("window_uuid"), (number("received_reports"), number("missing_reports")))
    };
    rows.iter().map(counts).collect()
}

async fn the_audit_is_adopted(ground: &Ground) {
    let payments = pool(&ground.payments_url).await;
    let keys = "SELECT COUNT(*) FROM information_schema.referential_constraints \
                WHERE constraint_schema = DATABASE() AND table_name = ?";
    assert_eq!(number_of(&payments, keys, "report_audit").await, 0, "no foreign key is left");
    let texts = "SELECT COUNT(*) FROM information_schema.columns WHERE table_name = ? \
                 AND table_schema = DATABASE() AND column_name IN ('window_uuid', 'service', \
                 'status') AND collation_name = 'utf8mb4_bin'";
    assert_eq!(number_of(&payments, texts, "report_audit").await, 3);
}

/// Windows that the first system's monitor left open and that were not over.
async fn open_windows(ledger: &MySqlPool) -> Vec<String> {
    let query = "SELECT window_uuid FROM monitoring_windows WHERE status = 'OPEN' \
                 AND window_to > UTC_TIMESTAMP()";
    sqlx::query_scalar(query).fetch_all(ledger).await.unwrap()
}

async fn closed(ledger: &MySqlPool, uuid: &str) {
    let closed =
        "SELECT COUNT(*) FROM monitoring_windows WHERE status <> 'OPEN' AND window_uuid = ?";
    eventually(&format!("window {uuid} closes"), async || {
        (number_of(ledger, closed, uuid).await == 1).then_some(())
    })
    .await;
}

/// A service of the first system gives way to one of ours, which opens a window as before.
async fn replaced(operator: &Operator, start: &[String], name: &str) -> Process {
    let words: Vec<&str> = start[1..]
        .iter()
        .map(|word| if word == "payments-a" { name } else { word.as_str() })
        .chain(["--heartbeat-interval-seconds", "1"])
        .collect();
    let environment = [("STREAM_NAME", operator.stream.as_str())];
    let process = Process::role_at(free_address(), "payments", &words, &environment).await;
    let request = json!({"duration_sec": TICKS}).to_string();
    let (status, opened) = post(&process.url("/report-windows"), request).await;
    assert_eq!(status, 202, "{opened}");
    process
}

/// Waits until our senders have seen to their windows, and all is delivered.
async fn drained_to_the_end(ground: &Ground) {
    let payments = pool(&ground.payments_url).await;
    let done = "SELECT COUNT(*) FROM report_windows \
                WHERE finished_at IS NOT NULL AND service LIKE ?";
    eventually("our senders are done", async || {
        (number_of(&payments, done, "old-%").await == 2).then_some(())
    })
    .await;
    for group in [GROUP, "beside"] {
        drained(ground, group).await;
    }
}

/// Whoever sent, and whichever monitor saw it first.
async fn nothing_is_missing_but_what_was_left_out(
    ground: &Ground,
    ledger: &MySqlPool,
    straddling: &[String],
) {
    let windows = audited(ground).await;
    assert!(windows.len() >= 6, "{windows:?}");
    for window in windows {
        closed(ledger, &window.uuid).await;
        let counts = counted(ledger, &window.uuid).await;
        let straddles = straddling.contains(&window.uuid);
        let told = format!("straddles: {straddles}; {window:?}; {counts:?}");
        assert_eq!(counts.expected, window.slots, "{told}");
        // One of ours may carry a time beyond the end, and is called like those before it.
        let sent = window.slots - window.omitted;
        assert_eq!((counts.received, counts.missing), (sent, window.omitted), "{told}");
        let status = if window.omitted > 0 { "ALERT" } else { "CLOSED" };
        assert_eq!(counts.status, status, "{told}");
    }
}
