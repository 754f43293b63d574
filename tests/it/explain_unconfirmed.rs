//! Heartbeats of a sender of the first system, which never says as which entry it sent them.

use std::time::Duration;

use chrono::{DateTime, Utc};
use heartbeat::clock;
use heartbeat::wire::{OMITTED, Rates, Tick, Window};
use serde_json::{Value, json};
use sqlx::MySqlPool;
use uuid::Uuid;

use crate::explain::explain;
use crate::explain_repair::{QUICK, repair};
use crate::explain_unheard::audited;
use crate::support::{Ground, Process, answer, eventually, get, pool};

/// What the sender wrote, slot by slot: of the last one that it omitted it, and that it sent it. It
/// was down in slot 4.
const ROWS: [(u32, &str); 6] =
    [(0, "ok"), (1, "error:x"), (2, "ok"), (3, OMITTED), (5, OMITTED), (5, "ok")];
const UNCONFIRMED: &str = "4 slots cannot be followed: their sender does not know whether it sent \
                           them (unconfirmed).\n";
const NOTHING: &str = "no slot is known to be lost: nothing was sent again\n";

/// The audit of an old sender with one window, of which a monitor has never heard.
struct Old {
    ground: Ground,
    monitor: Process,
    audit: MySqlPool,
    uuid: String,
}

impl Old {
    async fn new() -> Self {
        let ground = Ground::new().await;
        ground.payments("payments-a").await;
        let audit = pool(&ground.payments_url).await;
        let from = clock::now().minus(Duration::from_mins(10));
        let span = (from, from.plus(Duration::from_millis(1200)));
        let (service, tick) = ("payments-a".parse().unwrap(), Tick::from_seconds(0.2).unwrap());
        let window = Window::new(Uuid::new_v4(), service, span, tick, Rates::default()).unwrap();
        audited(&audit, &window).await;
        for (slot, status) in ROWS {
            wrote(&audit, &window, slot, status).await;
        }
        let environment =
            [("DATABASE_URL", &*ground.monitor_url), ("AUDIT_DATABASE_URL", &*ground.payments_url)];
        let options = [&QUICK[..], &["--heartbeat-interval-seconds", "0.2"]].concat();
        let monitor = Process::role("monitor", &options, &environment).await;
        Self { ground, monitor, audit, uuid: window.uuid.to_string() }
    }

    /// A relay that has told the monitor which Redis it reads.
    async fn relay(&self) -> Process {
        let relay = Process::relay(&self.ground, &self.monitor.url(""), &[]).await;
        let url = self.monitor.url("/api/monitor/pipeline");
        eventually("the relay has reported", async || {
            let pipeline = answer(get(&url).await.unwrap()).await.1;
            pipeline["pipelines"].as_array().filter(|known| !known.is_empty()).map(drop)
        })
        .await;
        relay
    }

    async fn repair(&self, arguments: &[&str]) -> (i32, String, String) {
        repair(&self.ground, &self.monitor, arguments).await
    }

    /// How many rows name an entry, first and last the same, and say sent; and all rows.
    async fn rows(&self) -> (i64, i64) {
        let count = "SELECT COUNT(IF(stream_id = first_stream_id AND published_at IS NOT NULL AND \
            sent_to_queue AND slot IS NULL AND status <> 'no_reported', 1, NULL)), \
            COUNT(stream_id) FROM report_audit";
        sqlx::query_as(count).fetch_one(&self.audit).await.unwrap()
    }

    /// Waits until the command says something about the window.
    async fn explained(&self, expected: &str) -> (i32, String) {
        eventually(expected, async || {
            let (code, out, _) = explain(&self.monitor, &[&self.uuid]).await;
            out.contains(expected).then_some((code, out))
        })
        .await
    }
}

/// Stores a row as the first senders do: it says sent unless the slot is omitted, and names neither
/// slot nor entry.
async fn wrote(audit: &MySqlPool, window: &Window, slot: u32, status: &str) {
    let at = DateTime::<Utc>::from(window.due(slot).plus_micros(3_000));
    let statement = "INSERT INTO report_audit (window_uuid, service, status, window_from, window_to, \
        timestamp, sent_to_queue, created_at) VALUES (?, 'payments-a', ?, ?, ?, ?, ?, ?)";
    sqlx::query(statement)
        .bind(window.uuid.to_string())
        .bind(status)
        .bind(DateTime::<Utc>::from(window.from()))
        .bind(DateTime::<Utc>::from(window.to()))
        .bind(at)
        .bind(status != OMITTED)
        .bind(at)
        .execute(audit)
        .await
        .unwrap();
}

#[tokio::test]
async fn what_nobody_can_follow_is_told_apart_and_sent_again_only_when_asked_for_by_name() {
    let old = Old::new().await;
    let relay = old.relay().await;
    let (code, out, err) = explain(&old.monitor, &[]).await;
    assert_eq!((code, err.as_str()), (3, ""), "{out}");
    assert!(out.contains("  unheard, 0 of 6 arrived\n  ~~~-v~\n"), "{out}");
    let conclusion = format!(
        "Of 6 missing heartbeats 2 are explained.\n{UNCONFIRMED}1 window is unheard: the monitor \
         knows of it only from an audit, and nobody can follow 4 of its slots.\n"
    );
    assert!(out.ends_with(&conclusion), "{out}");

    let (code, out, err) = old.repair(&["--yes"]).await;
    assert_eq!((code, out.as_str()), (3, NOTHING), "{err}");
    assert!(err.contains("unconfirmed, and not sent again: 4; "), "{err}");
    assert!(err.contains("--unconfirmed sends them again as well"), "{err}");
    let (code, _, err) = old.repair(&["--unconfirmed"]).await;
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("add --yes to send 4 unconfirmed heartbeats again"), "{err}");
    assert_eq!(old.rows().await, (0, 0));

    // Nothing moves: what was sent again stays in transit.
    relay.terminate().await;
    let again = ["--unconfirmed", "--yes"];
    let (one, other) = tokio::join!(old.repair(&again), old.repair(&again));
    assert_eq!((one.0, other.0), (0, 0), "{one:?} {other:?}");
    let said = one.1 + &other.1;
    assert_eq!(said.matches("; nobody knows whether it was sent before\n").count(), 4, "{said}");
    assert_eq!(old.rows().await, (4, 4), "each once, and nothing that was omitted");
    let (code, out) = old.explained("still in the stream").await;
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("\n  >>>-v>\n"), "{out}");

    let _relay = old.relay().await;
    let (code, out) = old.explained("Every missing heartbeat is explained: 2 of 2.\n").await;
    assert_eq!(code, 0, "{out}");
    assert!(out.contains(", 4 of 6 arrived\n") && !out.contains("unheard"), "{out}");
    // Where there is nothing to send, nobody has to say yes.
    let (code, out, err) = old.repair(&["--unconfirmed"]).await;
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(out, "no slot is known to be lost or unconfirmed: nothing was sent again\n");
    let shown = get(&old.monitor.url(&format!("/api/monitor/windows/{}", old.uuid))).await.unwrap();
    let shown: Value = answer(shown).await.1;
    for (slot, status) in [(0, "ok"), (1, "error"), (2, "ok"), (5, "ok")] {
        let shown = &shown["slots"][slot];
        assert_eq!(
            (&shown["status"], &shown["deliveries"]),
            (&json!(status), &json!(1)),
            "{shown}"
        );
    }
}

/// Somebody else sends one after the monitor has called it unconfirmed, and before its row is held.
#[tokio::test]
async fn a_row_that_got_an_entry_meanwhile_is_not_sent_again() {
    let old = Old::new().await;
    let _relay = old.relay().await;
    let mut somebody = old.audit.begin().await.unwrap();
    let sent = "UPDATE report_audit SET stream_id = '1-1' WHERE status = 'error:x'";
    sqlx::query(sent).execute(&mut *somebody).await.unwrap();
    let committing = async {
        eventually("the repair waits for the row", async || {
            let waiting = "SELECT COUNT(*) FROM information_schema.processlist \
                WHERE db = DATABASE() AND info LIKE 'UPDATE report_audit SET first_stream_id%'";
            let waiting: i64 = sqlx::query_scalar(waiting).fetch_one(&old.audit).await.unwrap();
            (waiting > 0).then_some(())
        })
        .await;
        somebody.commit().await.unwrap();
    };
    let again = ["--unconfirmed", "--yes"];
    let ((code, out, err), ()) = tokio::join!(old.repair(&again), committing);
    assert_eq!(code, 0, "{out}{err}");
    let slot = format!("\n{} slot 1: not sent again: the audit names entry 1-1 by now\n", old.uuid);
    assert!(out.contains(&slot), "{out}");
    let sum = "sent 3 unconfirmed heartbeats again; 1 is no more in need of it; ";
    assert!(out.contains(sum), "{out}");
    assert_eq!(old.rows().await, (3, 4));
}
