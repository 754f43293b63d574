//! The totals of a history, by the rule by which the monitor counts.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use heartbeat::monitor::totals::{Added, ArrivedSlot, Changes, Count, CountedSlot, Span, Totals};
use heartbeat::monitor::window::{Counts, StoredWindow, WindowStatus};
use heartbeat::verdict::Verdict;
use heartbeat::wire::{Rates, Tick, Timestamp, Window};
use sqlx::query_builder::QueryBuilder;
use sqlx::{MySql, MySqlPool};
use uuid::Uuid;

use super::super::ground::Database;
use super::{LATE_US, SERVICES};

/// Rows of one statement.
const ROWS: usize = 512;

type Row = ((Span, String, Timestamp), Totals);

/// Adds up what closed windows say, and notes what each of them has added.
pub async fn fill(database: &Database) {
    let pool = &database.pool;
    let numbered = (0..SERVICES).map(|number| number.to_string());
    let mut of_all: BTreeMap<(Span, Timestamp), Totals> = BTreeMap::new();
    for name in numbered.chain(["long".to_owned()]) {
        let service = format!("payments-{name}");
        let (mut rows, counted) = of_service(pool, &service).await;
        insert_counted(pool, &counted).await;
        for ((span, _, begin), totals) in rows.extract_if(.., |((_, name, _), _)| name.is_empty()) {
            of_all.entry((span, begin)).or_default().add(&totals, 1);
        }
        insert(pool, &rows).await;
    }
    let of_all = of_all.into_iter();
    let rows: Vec<Row> =
        of_all.map(|((span, begin), totals)| ((span, String::new(), begin), totals)).collect();
    insert(pool, &rows).await;
}

/// What the windows of a service add to its own totals and to those of all, and what each adds.
async fn of_service(pool: &MySqlPool, service: &str) -> (Vec<Row>, Vec<(i64, String)>) {
    let closed = "SELECT id, window_from, expected_reports, error_reports, missing_reports, \
        unobserved_reports FROM windows WHERE service_name = ? AND status <> 'OPEN'";
    let closed = sqlx::query_as::<_, (i64, DateTime<Utc>, i32, i32, i32, i32)>(closed);
    let (mut changes, mut counted) = (Changes::default(), Vec::new());
    for (id, from, slots, errors, missing, unobserved) in
        closed.bind(service).fetch_all(pool).await.unwrap()
    {
        let [slots, errors, missing, unobserved] =
            [slots, errors, missing, unobserved].map(i32::unsigned_abs);
        let counts = Counts { received: slots - missing, errors, missing, unobserved };
        let window = window(id, service, from.into(), slots, counts);
        let mut added = Added::default();
        for number in 0..slots {
            added.add_slot(&window, &slot(&window, number), Some(Verdict::NeverSent));
        }
        added.add_window(&window, i64::from(id % 50 == 7));
        changes.add(service, &added, 1);
        counted.push((id, serde_json::to_string(&added).unwrap()));
    }
    (changes.into_real(Timestamp::from_micros(0)), counted)
}

fn window(id: i64, service: &str, from: Timestamp, slots: u32, counts: Counts) -> StoredWindow {
    let (tick, service) = (Tick::DEFAULT, service.parse().unwrap());
    let to = from.plus(tick.duration() * slots);
    StoredWindow {
        id,
        window: Window::new(Uuid::nil(), service, (from, to), tick, Rates::default()).unwrap(),
        status: WindowStatus::Closed,
        counts,
        unscheduled: 0,
        events_kept: true,
        via_stream: false,
        clock_offset_us: None,
        held_from_us: None,
        created_at: from,
        updated_at: to,
        closed_at: Some(to),
    }
}

/// What became of a slot: what the statement that inserts events says of it.
fn slot(window: &StoredWindow, slot: u32) -> CountedSlot {
    let StoredWindow { id, counts, .. } = window;
    let is_missing = counts.missing > 0 && slot % 20 == 3;
    let is_late = id % 20 == 3 && slot % 20 == 7;
    let took_us = 4_000 + (id * 7_919 + i64::from(slot) * 104_729) % 40_000;
    let arrived = ArrivedSlot {
        is_error: counts.errors > 0 && (slot == 9 || id % 4 == 2 && slot % 10 == 9),
        is_late,
        latency_us: took_us + if is_late { LATE_US } else { 0 },
    };
    CountedSlot {
        slot,
        arrived: (!is_missing).then_some(arrived),
        is_unobserved: is_missing && counts.unobserved > 0,
    }
}

async fn insert_counted(pool: &MySqlPool, counted: &[(i64, String)]) {
    for chunk in counted.chunks(ROWS) {
        let mut query =
            QueryBuilder::<MySql>::new("INSERT INTO counted_windows (window_id, epoch, added) ");
        query.push_values(chunk, |mut values, (id, added)| {
            values.push_bind(id).push("1").push_bind(added);
        });
        query.build().execute(pool).await.unwrap();
    }
}

async fn insert(pool: &MySqlPool, rows: &[Row]) {
    let counts = Count::ALL.map(Count::name).join(", ");
    for chunk in rows.chunks(ROWS) {
        let mut query = QueryBuilder::<MySql>::new(format!(
            "INSERT INTO report_totals (span, service_name, begins_at, {counts}, verdicts, \
             latencies) "
        ));
        query.push_values(chunk, |mut values, ((span, service, begin), totals)| {
            values.push_bind(span.as_sql()).push_bind(service.as_str());
            values.push_bind(DateTime::<Utc>::from(*begin));
            for count in totals.counts {
                values.push_bind(count);
            }
            values.push_bind(serde_json::to_string(&totals.verdicts).unwrap());
            values.push_bind(serde_json::to_string(&totals.latencies).unwrap());
        });
        query.build().execute(pool).await.unwrap();
    }
}
