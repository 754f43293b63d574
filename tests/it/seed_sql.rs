//! The first system's queries run to the letter and mean what they meant.

use std::fmt::Write;
use std::time::Duration;

use heartbeat::monitor::{Monitor, ingest, sweep};
use heartbeat::payments::emitter::{self, Emitter};
use heartbeat::payments::plan::{Intent, Overrides, Plan};
use heartbeat::payments::{Payments, publish};
use heartbeat::wire::{Heartbeat, Tick, Timestamp};
use sqlx::mysql::{MySqlPool, MySqlRow};
use sqlx::{AssertSqlSafe, Column, Row, TypeInfo, ValueRef};
use uuid::Uuid;

use crate::support::{Ground, at};

const QUERIES: &str = include_str!("seed.sql");

/// Every query of the file by its name.
fn query(name: &str, uuid: Uuid) -> String {
    let start = format!("-- name: {name}\n");
    let (_, rest) = QUERIES.split_once(&start).expect("a query of that name");
    let text = rest.split_once("-- name:").map_or(rest, |(text, _)| text);
    text.replace("<UUID>", &uuid.to_string())
}

async fn rows(pool: &MySqlPool, name: &str, uuid: Uuid) -> Vec<String> {
    let statement = AssertSqlSafe(query(name, uuid));
    let rows = sqlx::raw_sql(statement).fetch_all(pool).await;
    rows.unwrap_or_else(|error| panic!("{name}: {error}")).iter().map(shown).collect()
}

/// A row as a client prints it.
fn shown(row: &MySqlRow) -> String {
    let mut text = String::new();
    for (index, column) in row.columns().iter().enumerate() {
        let value = row.try_get_raw(index).unwrap();
        let value = if value.is_null() {
            "NULL".to_owned()
        } else {
            match column.type_info().name() {
                name if name.contains("DATETIME") => {
                    let at: chrono::DateTime<chrono::Utc> = row.get(index);
                    Timestamp::from(at).to_string()
                }
                _ => row.get_unchecked::<String, _>(index),
            }
        };
        write!(text, "{}{value}", if index == 0 { "" } else { "|" }).unwrap();
    }
    text
}

/// A window of 10 slots: 2 omitted, 3 errors; everything that is sent arrives.
async fn carry_out(payments: &Payments, monitor: &Monitor) -> Plan {
    let overrides = Overrides {
        duration_sec: Some(100.0),
        error_status_generado: Some(0.3),
        error_status_no_reportado: Some(0.2),
        seed: Some(11),
        ..Overrides::default()
    };
    let identity = (Uuid::new_v4(), payments.service.clone());
    let from = at("2026-11-21T10:00:00Z");
    let plan = Plan::draw(&overrides, identity, from, Tick::DEFAULT, 0).unwrap();
    let (emitter, _queue) = Emitter::new(payments.clone());
    assert!(emitter.open(plan.clone()).await.unwrap());
    let mut sent = Vec::new();
    for slot in 0..plan.window.slots() {
        let due = plan.window.due(slot);
        emitter::tick_once(payments, &plan, slot, due).await.unwrap();
        if let Some(status) = plan.intent(slot).status() {
            let window = plan.window.clone();
            let slot = Some(i64::from(slot));
            sent.push(Heartbeat { window, status, timestamp: due, slot, stream_id: None });
        }
    }
    publish::publish_once(payments, &plan, &mut publish::Progress::default()).await.unwrap();
    ingest::ingest(monitor, sent, from).await.unwrap();
    let over = plan.window.ends_at().plus(Duration::from_mins(1));
    sweep::sweep_all(monitor, over).await.unwrap();
    plan
}

#[tokio::test]
async fn the_first_systems_queries_run_to_the_letter() {
    let ground = Ground::new().await;
    let (payments, monitor) = (ground.payments("payments-a").await, ground.monitor().await);
    let plan = carry_out(&payments, &monitor).await;
    let uuid = plan.window.uuid;

    let windows = rows(&payments.pool, "payments windows", uuid).await;
    let span = "2026-11-21T10:00:00Z|2026-11-21T10:01:40Z";
    assert_eq!(windows, [format!("{uuid}|payments-a|{span}|0.3|0.2")]);

    let audit = rows(&payments.pool, "payments audit", uuid).await;
    let expected: Vec<String> = (0..10).map(|slot| audited(&plan, slot)).collect();
    assert_eq!(audit, expected);

    // ticks, sent, omitted, errors, ok
    let summary = rows(&payments.pool, "payments summary", uuid).await;
    assert_eq!(summary, [format!("{uuid}|payments-a|10|8|2|3|5")]);

    let windows = rows(&monitor.pool, "monitor windows", uuid).await;
    let closed = format!("{uuid}|payments-a|ALERT|10|8|3|2|{span}|2026-11-21T10:02:40Z");
    assert_eq!(windows, [closed]);

    let events = rows(&monitor.pool, "monitor events", uuid).await;
    let expected: Vec<String> = (0..10).map(|slot| seen(&plan, slot)).collect();
    assert_eq!(events, expected);
}

#[tokio::test]
async fn what_was_sent_was_received_and_what_was_omitted_is_missing() {
    let ground = Ground::new().await;
    let (payments, monitor) = (ground.payments("payments-a").await, ground.monitor().await);
    let uuid = carry_out(&payments, &monitor).await.window.uuid;
    let here = rows(&payments.pool, "comparison payments", uuid).await;
    let there = rows(&monitor.pool, "comparison monitor", uuid).await;
    assert_eq!(here, [format!("{uuid}|payments-a|10|8|2|3")]);
    assert_eq!(there, [format!("{uuid}|payments-a|8|3|2|ALERT")]);
}

fn audited(plan: &Plan, slot: u32) -> String {
    let (window, due) = (&plan.window, plan.window.due(slot));
    match plan.intent(slot).status() {
        Some(status) => format!("{}|payments-a|{status}|1|{due}", window.uuid),
        None => format!("{}|payments-a|no_reported|0|{due}", window.uuid),
    }
}

fn seen(plan: &Plan, slot: u32) -> String {
    let due = plan.window.due(slot);
    match plan.intent(slot) {
        Intent::Ok => format!("1|payments-a|OK|{due}|NULL"),
        Intent::Omit => format!("1|payments-a|MISSING|{due}|NULL"),
        Intent::Error(_) => {
            let status = plan.intent(slot).status().unwrap();
            format!("1|payments-a|ERROR|{due}|{}", status.message().unwrap())
        }
    }
}
