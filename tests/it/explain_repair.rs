//! Lost heartbeats are found, sent again once, and arrive.

use std::time::Duration;

use heartbeat::config::DatabaseUrl;
use heartbeat::stream::StreamId;
use heartbeat::wire::TraceParent;
use redis::streams::{StreamRangeReply, StreamReadReply};
use redis::{AsyncCommands, cmd};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::explain::explain;
use crate::support::{Ground, Process, answer, eventually, free_address, get, pool, run, shared};
use crate::verdicts::everything;

/// Options of a monitor that closes windows soon.
pub const QUICK: [&str; 6] =
    ["--grace", "100ms", "--sweep-interval", "200ms", "--replay-grace", "500ms"];

/// A service, a monitor that reads its audit, and one window of 20 slots that is sent, and that no
/// relay has read.
pub struct Sent {
    pub ground: Ground,
    pub monitor: Process,
    pub uuid: String,
    _service: Process,
}

impl Sent {
    pub async fn new() -> Self {
        let ground = Ground::new().await;
        let environment =
            [("DATABASE_URL", &*ground.monitor_url), ("AUDIT_DATABASE_URL", &*ground.payments_url)];
        let monitor = Process::role("monitor", &QUICK, &environment).await;
        let service = Process::payments(&ground, "payments-a", &[]).await;
        ground.group("old").create().await.unwrap();
        let request =
            json!({"duration_sec": 2, "tick_seconds": 0.1, "error_status_no_reportado": 0});
        let client = heartbeat::http::client(Duration::from_secs(10)).unwrap();
        let open = client.post(service.url("/report-windows")).body(request.to_string());
        let (_, opened) = answer(open.send().await.unwrap()).await;
        let uuid = opened["window_uuid"].as_str().unwrap().to_owned();
        let stats = service.url(&format!("/report-windows/{uuid}/stats"));
        eventually("all is sent", async || {
            let stats = answer(get(&stats).await.unwrap()).await.1;
            (stats["sent_to_queue"] == 20).then_some(())
        })
        .await;
        Self { ground, monitor, uuid, _service: service }
    }

    /// Acknowledges messages without delivering them, as a consumer of the first system can.
    pub async fn drop_messages(&self, stream: &str, count: usize) {
        let mut redis = self.ground.redis().await;
        let mut read = cmd("XREADGROUP");
        read.arg(&["GROUP", "monitor-queue-group", "old", "COUNT"]).arg(count);
        let read: StreamReadReply =
            read.arg(&["STREAMS", stream, ">"]).query_async(&mut redis).await.unwrap();
        let ids: Vec<&str> = read.keys[0].ids.iter().map(|entry| entry.id.as_str()).collect();
        assert_eq!(ids.len(), count);
        let mut acknowledge = cmd("XACK");
        acknowledge.arg(&[stream, "monitor-queue-group"]).arg(&ids);
        acknowledge.exec_async(&mut redis).await.unwrap();
    }

    pub async fn relay(&self) -> Process {
        Process::relay(&self.ground, &self.monitor.url(""), &[]).await
    }

    /// Waits until the command says something about the window.
    pub async fn explained(&self, expected: &str) -> (i32, String) {
        eventually(expected, async || {
            let (code, out, _) = explain(&self.monitor, &[&self.uuid]).await;
            out.contains(expected).then_some((code, out))
        })
        .await
    }

    /// Runs `explain --repair` with the right addresses, and others instead if they are given.
    pub async fn repair(&self, arguments: &[&str]) -> (i32, String, String) {
        repair(&self.ground, &self.monitor, arguments).await
    }

    pub async fn shown(&self) -> Value {
        let url = self.monitor.url(&format!("/api/monitor/windows/{}", self.uuid));
        answer(get(&url).await.unwrap()).await.1
    }

    /// The last entry that was ever written to the heartbeats' stream.
    pub async fn last_entry(&self) -> StreamId {
        let mut info = cmd("XINFO");
        info.arg(&["STREAM", self.ground.stream.reports()]);
        let info: redis::streams::StreamInfoStreamReply =
            info.query_async(&mut self.ground.redis().await).await.unwrap();
        info.last_generated_id.parse().unwrap()
    }
}

/// Runs `explain --repair` with the addresses of these servers.
pub async fn repair(
    ground: &Ground,
    monitor: &Process,
    arguments: &[&str],
) -> (i32, String, String) {
    let (url, stream) = (monitor.url(""), ground.stream.to_string());
    let environment = [
        ("MONITOR_URL", url.as_str()),
        ("REDIS_URL", shared().redis_url.as_str()),
        ("STREAM_NAME", stream.as_str()),
        ("PAYMENTS_DATABASE_URL", ground.payments_url.as_str()),
    ];
    run(&[&["explain", "--repair"], arguments].concat(), &environment).await
}

#[tokio::test]
async fn what_an_old_consumer_has_dropped_is_lost_until_it_is_repaired() {
    let sent = Sent::new().await;
    sent.drop_messages(sent.ground.stream.reports(), 3).await;
    let relay = sent.relay().await;
    let (code, out) = sent.explained("3 slots are unexplained: lost.").await;
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("\n  XXX.................\n"), "{out}");
    assert!(out.contains("\n  slot 0: sent at ") && out.contains("the monitor has nothing: lost"));

    refusals(&sent).await;

    // Nothing moves: what was sent again stays in transit.
    relay.terminate().await;
    let (one, other) = tokio::join!(sent.repair(&["--yes"]), sent.repair(&["--yes"]));
    assert_eq!((one.0, other.0), (0, 0), "{one:?} {other:?}");
    let said = one.1 + &other.1;
    assert_eq!(said.matches(": sent again as entry ").count(), 3, "{said}");
    let last = sent.last_entry().await;
    let (code, out, err) = sent.repair(&["--yes", &sent.uuid]).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(out, "no slot is known to be lost: nothing was sent again; in transit: 3\n");
    assert_eq!(sent.explained("still in the stream").await.0, 0);
    each_keeps_its_trace(&sent).await;

    let relay = sent.relay().await;
    let (code, out) = sent.explained("No heartbeat is missing.").await;
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("\n  LLL.................\n") && out.contains("late, not lost"), "{out}");
    // Nobody has to say yes to nothing.
    let (code, out, err) = sent.repair(&["--service", "payments-a"]).await;
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (0, "no slot is known to be lost: nothing was sent again\n", "")
    );
    assert_eq!(sent.last_entry().await, last, "nothing was sent twice");
    drop(relay);
    ledgers_agree(&sent).await;
}

/// What is sent again is of the same trace as at first, since that follows from its slot.
async fn each_keeps_its_trace(sent: &Sent) {
    let window = sent.uuid.parse().unwrap();
    let stream = sent.ground.stream.reports();
    let entries: StreamRangeReply = sent.ground.redis().await.xrange_all(stream).await.unwrap();
    let payloads = entries.ids.iter().map(|entry| entry.get::<String>("payload").unwrap());
    let messages: Vec<Value> = payloads.map(|json| serde_json::from_str(&json).unwrap()).collect();
    assert!(messages.len() >= 3, "{messages:?}");
    for message in messages {
        let slot = u32::try_from(message["slot"].as_u64().unwrap()).unwrap();
        assert_eq!(message["traceparent"], TraceParent::of_slot(window, slot).to_string());
    }
}

/// Whatever does not belong to the window is refused before anything is written.
async fn refusals(sent: &Sent) {
    let last = sent.last_entry().await;
    let unknown = Uuid::nil().to_string();
    let elsewhere = Ground::new().await;
    elsewhere.payments("payments-b").await;
    let not_migrated = Ground::new().await;
    let reader = reads_only(&sent.ground).await;
    let away = format!("mysql://u:p@{}/d", free_address());
    let at_once = ["--yes", "--connect-timeout", "100ms"];
    for (arguments, code, expected) in [
        (&[][..], 2, "add --yes"),
        (&["--yes", &unknown], 2, "no window 00000000"),
        (&["--yes", "--stream-name", "other"], 2, "no relay has told the monitor of stream other"),
        (&["--yes", "--payments-database-url", &sent.ground.monitor_url], 2, "holds no audit"),
        (&["--yes", "--payments-database-url", &not_migrated.payments_url], 2, "holds no audit"),
        (
            &["--yes", "--payments-database-url", &elsewhere.payments_url],
            1,
            "this payments database has no row of it",
        ),
        (&["--yes", "--payments-database-url", &reader], 2, "the payments database failed"),
        (
            &[&at_once[..], &["--payments-database-url", &away]].concat(),
            2,
            "start it, or set --payments-database-url\n",
        ),
        (&["--unconfirmed"], 2, "add --yes to send 3 lost heartbeats again"),
        (&["--yes", "--watch"], 2, "cannot be used with"),
        (&["--yes", "--json"], 2, "cannot be used with"),
    ] {
        let (ended, out, err) = sent.repair(arguments).await;
        assert_eq!(ended, code, "{arguments:?}: {out}{err}");
        assert!((out + &err).contains(expected), "{arguments:?}: {err}");
    }
    let (code, _, err) = run(&["explain", "--unconfirmed"], &[]).await;
    assert_eq!(code, 2);
    assert!(err.contains("--repair"), "{err}");
    let monitor_url = sent.monitor.url("");
    let without = ["explain", "--repair", "--yes", "--monitor-url", &monitor_url];
    let (code, _, err) = run(&without, &[]).await;
    assert_eq!(code, 2);
    assert!(err.contains("--payments-database-url"), "{err}");
    assert_eq!(sent.last_entry().await, last);
}

/// Address of an audit for a user who may not write.
async fn reads_only(ground: &Ground) -> String {
    let url: DatabaseUrl = ground.payments_url.parse().unwrap();
    let name = url.options().get_database().unwrap();
    let tcp = shared().database_tcp_url(name);
    let (_, place) = tcp.rsplit_once('@').unwrap();
    let user = format!("reader_{}", &Uuid::new_v4().simple().to_string()[..12]);
    let root = pool(&ground.payments_url).await;
    for statement in [
        format!("CREATE USER {user}@'%' IDENTIFIED BY 'only-reads'"),
        format!("GRANT SELECT ON {name}.* TO {user}@'%'"),
    ] {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&root).await.unwrap();
    }
    format!("mysql://{user}:only-reads@{place}")
}

/// The audit knows both entries and which Redis has the second; the monitor has seen each once.
async fn ledgers_agree(sent: &Sent) {
    let audit = pool(&sent.ground.payments_url).await;
    let (again, marks): (i64, i64) = sqlx::query_as(
        "SELECT COUNT(IF(stream_id <> first_stream_id, 1, NULL)), COUNT(DISTINCT redis_mark) \
         FROM report_audit WHERE sent_to_queue AND published_at IS NOT NULL",
    )
    .fetch_one(&audit)
    .await
    .unwrap();
    assert_eq!((again, marks), (3, 1));
    let shown = sent.shown().await;
    assert_eq!(shown["status"], "closed");
    for slot in shown["slots"].as_array().unwrap() {
        assert_eq!((&slot["deliveries"], &slot["conflicts"]), (&json!(1), &json!(0)), "{slot}");
        assert_eq!(slot["stream_id"], slot["audit"]["stream_id"]);
    }
}

#[tokio::test]
async fn what_cannot_be_repaired_is_said_and_left_alone() {
    let (ledgers, _) = everything().await;
    let monitor = ledgers.served(&[&ledgers.ground.payments_url]).await;
    let repair = async |monitor: &Process| {
        let url = monitor.url("");
        let environment = [
            ("REDIS_URL", shared().redis_url.as_str()),
            ("PAYMENTS_DATABASE_URL", ledgers.ground.payments_url.as_str()),
        ];
        let uuid = ledgers.window.uuid.to_string();
        run(&["explain", "--repair", "--yes", "--monitor-url", &url, &uuid], &environment).await
    };
    // The report of the relay names another Redis.
    let (code, out, err) = repair(&monitor).await;
    assert_eq!(code, 2, "{out}");
    assert!(
        err.contains("this Redis is not the one whose stream reports the relays read"),
        "{err}"
    );
    let refused =
        "refused by the monitor, and not sent again: 2; use `heartbeat dead-letters replay`";
    assert!(err.contains(refused), "{err}");
    assert!(err.contains("unconfirmed, and not sent again: 2; nobody knows"), "{err}");

    let away = format!("mysql://u:p@{}/d", free_address());
    let monitor = ledgers.served(&[&away]).await;
    let (code, out, err) = repair(&monitor).await;
    assert_eq!(code, 2, "{err}");
    assert_eq!(out, "no slot is known to be lost: nothing was sent again\n");
    assert!(err.contains("not judged, and not sent again: 8; nobody knows"), "{err}");
    assert!(!err.contains("--unconfirmed"), "{err}");
}
