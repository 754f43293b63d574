//! Both ledgers put together: the verdict of each slot, whatever becomes of the audit.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use heartbeat::config::DatabaseUrl;
use heartbeat::db::{self, Class, Reader};
use heartbeat::monitor::{Monitor, ingest, pipeline, sweep};
use heartbeat::wire::{
    Announcement, DeadLetterReport, Heartbeat, OMITTED, PipelineReport, StreamId, Suspect,
    SuspectReport, Timestamp, Window,
};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, MySqlPool};
use tokio::net::TcpListener;

use crate::schema::first_senders;
use crate::support::{
    Ground, Process, Proxy, answer, entry_id, eventually, free_address, get, heartbeat, pool,
    report, shared, window,
};

/// Both ledgers of one window, written as the roles write them.
pub struct Ledgers {
    pub ground: Ground,
    pub monitor: Monitor,
    audit: MySqlPool,
    pub window: Window,
}

impl Ledgers {
    /// A window that both know, with nothing in it.
    pub async fn new(slots: u32) -> Self {
        let ground = Ground::new().await;
        let (audit, monitor) = (ground.payments("payments-a").await.pool, ground.monitor().await);
        let window = window("payments-a", slots);
        let told = Announcement {
            stream_id: Some(entry_id(window.from())),
            ..Announcement::new(window.clone(), window.from())
        };
        ingest::announce(&monitor, vec![told], window.from()).await.unwrap();
        let statement = "INSERT INTO report_windows (window_uuid, service, window_from, window_to, \
            created_at) VALUES (?, ?, ?, ?, ?)";
        sqlx::query(statement)
            .bind(window.uuid.to_string())
            .bind(window.service.as_str())
            .bind(DateTime::<Utc>::from(window.from()))
            .bind(DateTime::<Utc>::from(window.to()))
            .bind(DateTime::<Utc>::from(window.from()))
            .execute(&audit)
            .await
            .unwrap();
        Self { ground, monitor, audit, window }
    }

    /// A row of the audit, stamped when the slot is due; of an older sender if it names no slot.
    async fn audited(&self, slot: u32, names_it: bool, status: &str, sent: Option<&str>) {
        let due = DateTime::<Utc>::from(self.window.due(slot));
        let statement = "INSERT INTO report_audit (window_uuid, service, status, window_from, \
            window_to, timestamp, sent_to_queue, created_at, slot, stream_id, first_stream_id) \
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        sqlx::query(statement)
            .bind(self.window.uuid.to_string())
            .bind(self.window.service.as_str())
            .bind(status)
            .bind(DateTime::<Utc>::from(self.window.from()))
            .bind(DateTime::<Utc>::from(self.window.to()))
            .bind(due)
            .bind(sent.is_some() || !names_it)
            .bind(due)
            .bind(names_it.then_some(slot))
            .bind(sent)
            .bind(sent)
            .execute(&self.audit)
            .await
            .unwrap();
    }

    /// A row that says sent, as the entry that was written when the slot was due.
    async fn sent(&self, slot: u32) {
        let id = entry_id(self.window.due(slot)).to_string();
        self.audited(slot, true, "ok", Some(&id)).await;
    }

    async fn arrived(&self, slot: u32, at: Timestamp) {
        let stream_id = Some(entry_id(self.window.due(slot)));
        let heartbeat = Heartbeat { stream_id, ..heartbeat(&self.window, slot) };
        ingest::ingest(&self.monitor, vec![heartbeat], at).await.unwrap();
    }

    async fn accept(&self, report: PipelineReport) {
        let now = report.redis_time;
        pipeline::accept(&self.monitor, report, now).await.unwrap();
    }

    /// A monitor process that reads audits at these addresses.
    pub async fn served(&self, audits: &[&str]) -> Process {
        let audits = audits.join(",");
        let environment = [
            ("DATABASE_URL", self.ground.monitor_url.as_str()),
            ("AUDIT_DATABASE_URL", audits.as_str()),
        ];
        let environment = &environment[..if audits.is_empty() { 1 } else { 2 }];
        Process::role("monitor", &["--sweep-interval", "1h"], environment).await
    }

    /// Address of the audit over TCP.
    fn audit_over_tcp(&self) -> String {
        let url: DatabaseUrl = self.ground.payments_url.parse().unwrap();
        shared().database_tcp_url(url.options().get_database().unwrap())
    }

    async fn shown(&self, monitor: &Process) -> Value {
        let url = monitor.url(&format!("/api/monitor/windows/{}", self.window.uuid));
        let (status, body) = answer(get(&url).await.unwrap()).await;
        assert_eq!(status, 200, "{body}");
        body
    }
}

/// The verdicts of a window's slots.
pub fn verdicts(window: &Value) -> Vec<&str> {
    let slots = window["slots"].as_array().unwrap();
    slots.iter().map(|slot| slot["verdict"].as_str().unwrap()).collect()
}

fn letter(stream: &str, id: StreamId, window: &Window, slot: Option<i64>) -> DeadLetterReport {
    DeadLetterReport {
        stream: stream.to_owned(),
        stream_id: id,
        window_uuid: Some(window.uuid),
        slot,
        reason: "too odd".to_owned(),
        at: window.ends_at(),
    }
}

/// A window in which everything happens that can. Answers it with the verdicts of its slots.
pub async fn everything() -> (Ledgers, Vec<&'static str>) {
    let ledgers = Ledgers::new(14).await;
    let window = &ledgers.window;
    for slot in [0, 1, 4, 5, 9, 10, 12] {
        ledgers.sent(slot).await;
    }
    ledgers.audited(2, true, OMITTED, None).await;
    ledgers.audited(6, true, OMITTED, None).await;
    ledgers.audited(8, true, "ok", None).await;
    // An older sender, which first omits the slot and then sends in it, a little early.
    ledgers.audited(11, false, OMITTED, None).await;
    ledgers.audited(11, false, "error:x", None).await;
    ledgers.audited(13, false, "ok", None).await;
    for slot in [0, 2, 3, 13] {
        ledgers.arrived(slot, window.due(slot)).await;
    }
    let over = window.ends_at().plus(ledgers.monitor.grace);
    ledgers
        .accept(PipelineReport {
            dead_letters: vec![
                letter("reports", StreamId::default(), window, Some(4)),
                // Without its slot it is known by its entry, which no other stream shares.
                letter("reports", entry_id(window.due(5)), window, None),
                letter("{reports}:windows", entry_id(window.due(12)), window, None),
            ],
            ..report(over)
        })
        .await;
    assert_eq!(sweep::sweep_all(&ledgers.monitor, over).await.unwrap(), 1);
    ledgers.arrived(1, over).await;
    // Slot 9 was sent again, as the first entry that the watermark is not past.
    sqlx::query("UPDATE report_audit SET stream_id = ? WHERE slot = 9")
        .bind(entry_id(over).to_string())
        .execute(&ledgers.audit)
        .await
        .unwrap();
    let expected = vec![
        "on_time",
        "late",
        "phantom",
        "phantom",
        "dead_lettered",
        "dead_lettered",
        "never_sent",
        "sender_down",
        "unconfirmed",
        "in_transit",
        "lost",
        "unconfirmed",
        "lost",
        "on_time",
    ];
    (ledgers, expected)
}

#[tokio::test]
async fn each_slot_has_its_verdict_its_row_and_its_sentence() {
    let (ledgers, expected) = everything().await;
    let monitor = ledgers.served(&[&ledgers.ground.payments_url]).await;
    let shown = ledgers.shown(&monitor).await;
    assert_eq!(verdicts(&shown), expected);
    assert_eq!(shown["audit"], "known");
    let counts = json!({"on_time": 2, "late": 1, "never_sent": 1, "sender_down": 1, "unconfirmed": 2,
        "in_transit": 1, "dead_lettered": 2, "phantom": 2, "lost": 2});
    assert_eq!(shown["verdicts"], counts);
    let slots = &shown["slots"];
    // What was shown before is still there.
    assert_eq!(slots[1]["status"], "ok");
    assert_eq!(slots[1]["late"], true);
    assert_eq!(slots[10]["status"], "missing");
    assert_eq!(slots[0]["explanation"], Value::Null);
    let id = entry_id(ledgers.window.due(1)).to_string();
    let row = json!({"status": "ok", "timestamp": "2026-11-21T10:00:10Z", "sent_to_queue": true,
        "stream_id": id, "first_stream_id": id});
    assert_eq!(slots[1]["audit"], row);
    assert_eq!(
        (&slots[7]["audit"], &slots[11]["audit"]["status"]),
        (&Value::Null, &json!("error:x"))
    );
    let said = |slot: usize| slots[slot]["explanation"].as_str().unwrap();
    assert_eq!(
        said(1),
        "published 10:00:10, arrived 10:02:22, 132 s after it was due: late, not lost"
    );
    assert_eq!(
        said(9),
        "sent at 10:01:30 and again at 10:02:22, still in the stream (the watermark is at 10:02:22)"
    );
    assert!(said(4).contains("too odd") && said(5).contains("too odd"), "{slots}");
    assert!(
        said(10).contains("lost")
            && said(10).contains(&entry_id(ledgers.window.due(10)).to_string())
    );
}

#[tokio::test]
async fn what_holds_up_a_window_holds_up_that_its_heartbeats_are_lost() {
    let ledgers = Ledgers::new(1).await;
    ledgers.sent(0).await;
    let window = &ledgers.window;
    let monitor = ledgers.served(&[&ledgers.ground.payments_url]).await;
    assert_eq!(verdicts(&ledgers.shown(&monitor).await), ["in_transit"], "no relay has reported");
    let over = window.ends_at();
    let suspect = Suspect {
        stream: "reports".to_owned(),
        stream_id: entry_id(window.due(0)),
        report: SuspectReport {
            window_uuid: Some(window.uuid),
            slot: Some(0),
            reason: "500".to_owned(),
            since: over,
        },
    };
    let later = |seconds| report(over.plus(Duration::from_secs(seconds)));
    for (report, expected, because) in [
        (report(window.due(0)), "in_transit", "the watermark is at 10:00:00"),
        (PipelineReport { suspects: vec![suspect], ..later(1) }, "in_transit", "makes the monitor"),
        (
            PipelineReport { resending: vec!["payments-a".to_owned()], ..later(2) },
            "in_transit",
            "its service is sending again",
        ),
        (
            PipelineReport { resent: vec!["payments-a".to_owned()], ..later(3) },
            "lost",
            "the watermark, 10:00:13, is past that",
        ),
    ] {
        ledgers.accept(report).await;
        let shown = ledgers.shown(&monitor).await;
        assert_eq!(verdicts(&shown), [expected], "{because}");
        let said = shown["slots"][0]["explanation"].as_str().unwrap();
        assert!(said.contains(because), "{said}");
    }
}

#[tokio::test]
async fn an_audit_that_does_not_answer_makes_nobody_wait_and_nothing_guessed() {
    let (ledgers, _) = everything().await;
    // It takes the connection and says nothing.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute = format!("mysql://u:topsecret@{}/d", mute.local_addr().unwrap());
    let away = format!("mysql://u:topsecret@{}/d", free_address());
    let empty = ledgers.ground.monitor_url.clone();
    let unknown = Ground::new().await;
    unknown.payments("payments-b").await;
    // The first senders' tables, which know the window and lack most of our columns.
    let first = Ground::new().await;
    first_senders(&pool(&first.payments_url).await, &ledgers.window.uuid.to_string()).await;
    let good = ledgers.ground.payments_url.clone();
    for (audits, expected) in [
        (&[][..], "not_configured"),
        (&[&mute], "unreachable"),
        (&[&away], "unreachable"),
        (&[&empty], "not_migrated"),
        (&[&first.payments_url], "not_migrated"),
        (&[&empty, &away], "unreachable"),
        (&[&unknown.payments_url], "unknown_window"),
        (&[&unknown.payments_url, &mute], "unreachable"),
        (&[&away, &mute, &good], "known"),
    ] {
        let audits: Vec<&str> = audits.iter().map(|url| url.as_str()).collect();
        let monitor = ledgers.served(&audits).await;
        let start = Instant::now();
        let shown = ledgers.shown(&monitor).await;
        assert!(start.elapsed() < Duration::from_secs(3), "{audits:?}: {:?}", start.elapsed());
        assert_eq!(shown["audit"], expected, "{audits:?}");
        let is_known = expected == "known";
        for (slot, verdict) in verdicts(&shown).into_iter().enumerate() {
            let seen_alone = ["on_time", "late", "dead_lettered", "unknown"].contains(&verdict);
            assert!(is_known || seen_alone, "{audits:?}: slot {slot} is {verdict}");
        }
        // Nothing that the monitor needs is missing.
        assert_eq!(get(&monitor.url("/ready")).await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn an_audit_that_falls_silent_is_read_again_when_it_is_back() {
    let (ledgers, expected) = everything().await;
    let url = ledgers.audit_over_tcp();
    let server = url.split(['@', '/']).nth(3).unwrap();
    let proxy = Proxy::start(server.parse().unwrap()).await;
    let url = url.replace(server, &proxy.address.to_string());
    let monitor = ledgers.served(&[&url]).await;
    assert_eq!(verdicts(&ledgers.shown(&monitor).await), expected);
    proxy.fall_silent();
    let start = Instant::now();
    let shown = ledgers.shown(&monitor).await;
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(shown["audit"], "unreachable");
    eventually("it is read again", async || {
        (verdicts(&ledgers.shown(&monitor).await) == expected).then_some(())
    })
    .await;
}

/// Whatever rights its user has, a reader has none to write; and it needs none.
#[tokio::test]
async fn the_audit_is_read_with_a_user_who_may_only_read_and_never_written() {
    let (ledgers, expected) = everything().await;
    let url: DatabaseUrl = ledgers.ground.payments_url.parse().unwrap();
    let reader = Reader::new(&url, Duration::from_secs(5));
    let written = reader
        .read(|connection| {
            Box::pin(async move {
                sqlx::query("DELETE FROM report_audit").execute(connection).await?;
                Ok(())
            })
        })
        .await;
    assert_eq!(written.unwrap_err().class, Class::Reconnect);

    let root = pool(&shared().database_url("scratch")).await;
    let url = ledgers.audit_over_tcp();
    let (_, place) = url.rsplit_once('@').unwrap();
    let (_, name) = place.split_once('/').unwrap();
    let user = format!("reader_{}", &ledgers.window.uuid.simple().to_string()[..12]);
    for statement in [
        format!("CREATE USER {user}@'%' IDENTIFIED BY 'only-reads'"),
        format!("GRANT SELECT ON {name}.report_windows TO {user}@'%'"),
        format!("GRANT SELECT ON {name}.report_audit TO {user}@'%'"),
    ] {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&root).await.unwrap();
    }
    let monitor = ledgers.served(&[&format!("mysql://{user}:only-reads@{place}")]).await;
    assert_eq!(verdicts(&ledgers.shown(&monitor).await), expected);
    db::close(&root).await;
}
