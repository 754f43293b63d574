//! Both ledgers of a run as plain data, and reading them from the databases.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use heartbeat::monitor::window::{Counts, WindowStatus};
use heartbeat::stream::StreamId;
use heartbeat::wire::Timestamp;
use sqlx::mysql::MySqlRow;
use sqlx::{AssertSqlSafe, MySqlPool, Row};

/// Everything that both sides know, by the uuid of the window.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// What is known of each window.
    pub windows: BTreeMap<String, Record>,
    /// The marks of the poison that was found among the dead letters, one per letter.
    pub dead_letters: Vec<String>,
}

/// One window in both ledgers.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// The sender's definition; none if no audit knows the window.
    pub planned: Option<Planned>,
    /// The sender's audit, by slot.
    pub audit: BTreeMap<u32, Audited>,
    /// The monitor's window; none if it has never heard of it.
    pub watched: Option<Watched>,
    /// What the monitor knows of each slot.
    pub events: BTreeMap<u32, Event>,
    /// Every change of the window's status, in order.
    pub history: Vec<Change>,
}

/// A window as its sender stored it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Slots of its plan.
    pub slots: u32,
    /// Whether its announcement was written.
    pub is_announced: bool,
    /// Whether its sender is done with it.
    pub is_finished: bool,
}

/// A row of the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audited {
    /// `ok`, `error:…`, or `no_reported`.
    pub status: String,
    /// Whether it is known to be sent.
    pub is_sent: bool,
    /// When Redis first answered that it has it, by Redis' clock.
    pub first_sent: Option<Timestamp>,
}

impl Audited {
    /// Whether a heartbeat was to be sent, unlike one that was omitted on purpose.
    pub fn reports(&self) -> bool {
        self.status != "no_reported"
    }

    /// How the monitor must have stored it.
    pub fn expected(&self) -> EventStatus {
        if self.status == "ok" { EventStatus::Ok } else { EventStatus::Error }
    }
}

/// A window as the monitor keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Where it stands.
    pub status: WindowStatus,
    /// How many heartbeats it promises.
    pub expected: u32,
    /// Its stored counts.
    pub counts: Counts,
    /// End of its last slot, by the sender's clock.
    pub ends_at: Timestamp,
    /// What to add to the sender's clock to get Redis' clock, in microseconds.
    pub clock_offset_micros: i64,
}

/// What the monitor knows of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What arrived, or that nothing did.
    pub status: EventStatus,
    /// Whether it arrived after the window had closed.
    pub is_late: bool,
    /// Whether it is missing only because nobody could look.
    pub is_unobserved: bool,
}

/// What arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventStatus {
    /// A heartbeat without an error.
    Ok,
    /// A heartbeat with an error.
    Error,
    /// None.
    Missing,
}

/// A change of a window's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// When, by the monitor's clock.
    pub at: Timestamp,
    /// The status from then on.
    pub status: WindowStatus,
    /// Why; `unobserved` if only slots are missing that nobody could observe.
    pub cause: Option<String>,
    /// The counts from then on.
    pub counts: Counts,
}

/// Reads both ledgers. The dead letters were collected during the run.
pub async fn read(payments: &MySqlPool, monitor: &MySqlPool, dead_letters: Vec<String>) -> Ledger {
    let mut ledger = Ledger { windows: BTreeMap::new(), dead_letters };
    read_plans(payments, &mut ledger).await;
    read_audit(payments, &mut ledger).await;
    let uuids = read_watched(monitor, &mut ledger).await;
    // Rows of a window that is not there would be a broken reference: they get a name of their own.
    let uuid = |row: &MySqlRow| {
        let id: i64 = row.get("window_id");
        uuids.get(&id).cloned().unwrap_or_else(|| format!("row {id}"))
    };
    for row in read_events(monitor).await {
        let status = event_status(row.get("status"));
        let cause: Option<String> = row.get("cause");
        let event = Event {
            status,
            is_late: row.get("late"),
            is_unobserved: status == EventStatus::Missing && cause.is_some(),
        };
        let record = ledger.windows.entry(uuid(&row)).or_default();
        record.events.insert(number(&row, "slot"), event);
    }
    for row in read_history(monitor).await {
        let record = ledger.windows.entry(uuid(&row)).or_default();
        record.history.push(Change {
            at: at(&row, "changed_at"),
            status: row.get::<String, _>("status").parse().unwrap(),
            cause: row.get("cause"),
            counts: counts(&row),
        });
    }
    ledger
}

/// How many slots nobody could observe and nobody has settled since; none if that cannot be read.
pub async fn unobserved(monitor: &MySqlPool) -> Option<i64> {
    let sum = "SELECT CAST(COALESCE(SUM(unobserved_reports), 0) AS SIGNED) FROM windows";
    sqlx::query_scalar(sum).fetch_one(monitor).await.ok()
}

async fn read_plans(payments: &MySqlPool, ledger: &mut Ledger) {
    let rows = sqlx::query(
        "SELECT window_uuid, CAST(LENGTH(plan) AS SIGNED) AS slots, \
         CAST(announcement_id IS NOT NULL AS SIGNED) AS announced, \
         CAST(finished_at IS NOT NULL AS SIGNED) AS finished \
         FROM report_windows WHERE plan IS NOT NULL",
    );
    for row in rows.fetch_all(payments).await.unwrap() {
        let planned = Planned {
            slots: number(&row, "slots"),
            is_announced: row.get::<i64, _>("announced") != 0,
            is_finished: row.get::<i64, _>("finished") != 0,
        };
        ledger.windows.entry(row.get("window_uuid")).or_default().planned = Some(planned);
    }
}

async fn read_audit(payments: &MySqlPool, ledger: &mut Ledger) {
    // The id of the first answered write; `stream_id` is that of the last one.
    let rows = sqlx::query(
        "SELECT window_uuid, CAST(slot AS SIGNED) AS slot, status, \
         CAST(sent_to_queue AS SIGNED) AS sent, first_stream_id FROM report_audit \
         WHERE slot IS NOT NULL",
    );
    for row in rows.fetch_all(payments).await.unwrap() {
        let first_sent: Option<String> = row.get("first_stream_id");
        let audited = Audited {
            status: row.get("status"),
            is_sent: row.get::<i64, _>("sent") != 0,
            first_sent: first_sent.map(|id| id.parse::<StreamId>().unwrap().written_at()),
        };
        let record = ledger.windows.entry(row.get("window_uuid")).or_default();
        record.audit.insert(number(&row, "slot"), audited);
    }
}

/// Answers the uuids by the ids that other tables name.
async fn read_watched(monitor: &MySqlPool, ledger: &mut Ledger) -> BTreeMap<i64, String> {
    let statement = format!(
        "SELECT id, window_uuid, status, CAST(expected_reports AS SIGNED) AS expected, {COUNTS}, \
         ends_at, clock_offset_us FROM windows"
    );
    let mut uuids = BTreeMap::new();
    for row in select(monitor, statement).await {
        let watched = Watched {
            status: row.get::<String, _>("status").parse().unwrap(),
            expected: number(&row, "expected"),
            counts: counts(&row),
            ends_at: at(&row, "ends_at"),
            clock_offset_micros: row.get::<Option<i64>, _>("clock_offset_us").unwrap_or(0),
        };
        let uuid: String = row.get("window_uuid");
        ledger.windows.entry(uuid.clone()).or_default().watched = Some(watched);
        uuids.insert(row.get("id"), uuid);
    }
    uuids
}

async fn read_events(monitor: &MySqlPool) -> Vec<MySqlRow> {
    let slot = "CAST(slot AS SIGNED) AS slot";
    select(monitor, format!("SELECT window_id, {slot}, status, late, cause FROM events")).await
}

async fn read_history(monitor: &MySqlPool) -> Vec<MySqlRow> {
    select(
        monitor,
        format!(
            "SELECT window_id, changed_at, status, cause, {COUNTS} FROM window_history ORDER BY id"
        ),
    )
    .await
}

const COUNTS: &str = "CAST(received_reports AS SIGNED) AS received, \
    CAST(error_reports AS SIGNED) AS errors, CAST(missing_reports AS SIGNED) AS missing, \
    CAST(unobserved_reports AS SIGNED) AS unobserved";

fn counts(row: &MySqlRow) -> Counts {
    Counts {
        received: number(row, "received"),
        errors: number(row, "errors"),
        missing: number(row, "missing"),
        unobserved: number(row, "unobserved"),
    }
}

async fn select(pool: &MySqlPool, statement: String) -> Vec<MySqlRow> {
    sqlx::query(AssertSqlSafe(statement)).fetch_all(pool).await.unwrap()
}

fn number(row: &MySqlRow, column: &str) -> u32 {
    u32::try_from(row.get::<i64, _>(column)).unwrap()
}

fn at(row: &MySqlRow, column: &str) -> Timestamp {
    row.get::<DateTime<Utc>, _>(column).into()
}

fn event_status(text: &str) -> EventStatus {
    match text {
        "OK" => EventStatus::Ok,
        "ERROR" => EventStatus::Error,
        "MISSING" => EventStatus::Missing,
        other => panic!("no status of an event: {other}"),
    }
}
