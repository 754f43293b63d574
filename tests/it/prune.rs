//! Pruning: what is old goes, what it added to the totals stays, and nothing of it comes back.

use std::time::Duration;

use heartbeat::clock;
use heartbeat::monitor::ingest::Outcome;
use heartbeat::monitor::retention::{Retain, RetentionArgs};
use heartbeat::monitor::totals::{Count, Span};
use heartbeat::monitor::{Monitor, counting, ingest, pipeline, prune, sweep};
use heartbeat::wire::{DeadLetterReport, Heartbeat, PipelineReport, Rates, Tick};
use heartbeat::wire::{Timestamp, Window};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::explain::explain;
use crate::support::{
    Api, Ground, Process, announcement, entry_id, error, heartbeat, report, window,
};
use crate::totals::{any_window, anything, counted};

pub const DAY: Duration = Duration::from_hours(24);
/// Tables that hold something of each window.
const OF_WINDOWS: [&str; 5] =
    ["events", "unscheduled_events", "window_history", "counted_windows", "windows_to_empty"];

/// A window of a service from an instant, with so many slots of 10 s.
pub fn window_at(service: &str, from: Timestamp, slots: u32) -> Window {
    let to = from.plus_micros(i64::from(slots) * Tick::DEFAULT.micros());
    let service = service.parse().unwrap();
    Window::new(Uuid::new_v4(), service, (from, to), Tick::DEFAULT, Rates::default()).unwrap()
}

/// Announces windows, closes them without the heartbeats of their slots but one, and counts them.
pub async fn missed(monitor: &Monitor, windows: &[Window]) {
    let last = windows.iter().map(Window::ends_at).max().unwrap();
    let over = last.plus(Duration::from_mins(1));
    ingest::announce(monitor, windows.iter().map(announcement).collect(), last).await.unwrap();
    let sent = windows.iter().map(|window| heartbeat(window, 0)).collect();
    ingest::ingest(monitor, sent, last).await.unwrap();
    sweep::sweep_all(monitor, over).await.unwrap();
    counting::count_all(monitor, over).await.unwrap();
}

/// The totals of services by hour and day, as text.
pub async fn totals(monitor: &Monitor, services: &str) -> Vec<String> {
    let counts = Count::ALL.map(Count::name).join(", ");
    let text = format!(
        "SELECT CAST(CONCAT_WS(' | ', span, service_name, begins_at, {counts}, verdicts, latencies) \
         AS CHAR) AS kept FROM report_totals WHERE span <> 'slice' AND service_name IN ({services}) \
         ORDER BY kept"
    );
    sqlx::query_scalar(AssertSqlSafe(text)).fetch_all(&monitor.pool).await.unwrap()
}

pub async fn rows(monitor: &Monitor, of: &str) -> i64 {
    let text = format!("SELECT COUNT(*) FROM {of}");
    sqlx::query_scalar(AssertSqlSafe(text)).fetch_one(&monitor.pool).await.unwrap()
}

/// Rows of events whose window is gone, or whose events are said to be gone.
pub async fn leftovers(monitor: &Monitor) -> i64 {
    let mut found = 0;
    for table in OF_WINDOWS {
        let gone = if table == "window_history" { "" } else { "OR w.events_kept = FALSE" };
        let of = format!(
            "{table} t LEFT JOIN windows w ON w.id = t.window_id WHERE w.id IS NULL {gone}"
        );
        found += rows(monitor, &of).await;
    }
    found
}

fn only(outcomes: &[Outcome]) -> &str {
    match outcomes {
        [Outcome::Rejected(reason)] => reason,
        other => panic!("{other:?}"),
    }
}

fn changes_nothing(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Duplicate => true,
        Outcome::Rejected(reason) => {
            reason.ends_with("its events are no longer kept: see --retain-events")
        }
        _ => false,
    }
}

/// While one monitor prunes, another takes heartbeats of old windows that are known and of new ones,
/// closes and counts. What the old ones had added stays as it was, also when counted anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn totals_survive_pruning_while_heartbeats_arrive() {
    let ground = Ground::new().await;
    let monitors = [ground.monitor().await, ground.monitor().await];
    let monitors = monitors.map(|monitor| Monitor { max_hold: Duration::ZERO, ..monitor });
    let mut rng = StdRng::seed_from_u64(7);
    let windows: Vec<(Window, bool)> = (0..60).map(|_| any_window(&mut rng)).collect();
    let first = windows.iter().map(|(window, _)| window.from()).min().unwrap();
    for step in 0..60 {
        let now = first.plus(Duration::from_mins(step * 3));
        anything(&monitors[0], &windows, &mut rng, now).await;
    }
    let over = first.plus(Duration::from_hours(12));
    pipeline::watch_once(&monitors[0], over).await.unwrap();
    pipeline::accept(&monitors[0], report(over), over).await.unwrap();
    sweep::sweep_all(&monitors[0], over).await.unwrap();
    let later = over.plus(31 * DAY);
    counting::count_all(&monitors[0], later).await.unwrap();
    let known = rows(&monitors[0], "windows WHERE events_kept").await;
    let arrived: Vec<(String, i32)> = sqlx::query_as(
        "SELECT window_uuid, slot FROM events e JOIN windows w ON w.id = e.window_id \
         WHERE e.status <> 'MISSING'",
    )
    .fetch_all(&monitors[0].pool)
    .await
    .unwrap();
    let (old, before) = ("'a', 'b', 'c'", totals(&monitors[0], "'a', 'b', 'c'").await);
    assert!(before.iter().any(|row| row.contains("dead_lettered")), "{before:#?}");

    let (pruner, other) = (&monitors[0], &monitors[1]);
    let pruning = async {
        while rows(pruner, "windows WHERE service_name <> 'z' AND events_kept").await > 0
            || !prune::prune_once(pruner, later).await.unwrap().is_idle()
        {
            prune::prune_once(pruner, later).await.unwrap();
        }
    };
    let traffic = async {
        for step in 0..30 {
            let now = later.plus(Duration::from_secs(step * 10));
            let new = window_at("z", now, 2);
            let mut sent = vec![heartbeat(&new, 0), heartbeat(&new, 1)];
            for _ in 0..20 {
                let (uuid, slot) = &arrived[rng.random_range(0..arrived.len())];
                let of = windows.iter().find(|(window, _)| window.uuid.to_string() == *uuid);
                sent.push(heartbeat(&of.unwrap().0, u32::try_from(*slot).unwrap()));
            }
            let outcomes = ingest::ingest(other, sent, now).await.unwrap();
            assert!(outcomes[2..].iter().all(changes_nothing), "{outcomes:?}");
            sweep::sweep_all(other, now).await.unwrap();
            counting::count_once(other, now).await.unwrap();
        }
    };
    tokio::join!(pruning, traffic);
    let end = later.plus(Duration::from_hours(1));
    pipeline::accept(other, report(end), end).await.unwrap();
    sweep::sweep_all(other, end).await.unwrap();
    counting::count_all(other, end).await.unwrap();
    assert_eq!(leftovers(other).await, 0);
    assert!(known > 30 && rows(other, "windows WHERE NOT events_kept").await == known);
    assert_eq!(totals(other, old).await, before);
    let all = totals(other, "'', 'a', 'b', 'c', 'z'").await;
    counting::rebuild(pruner).await.unwrap();
    counting::count_all(other, end).await.unwrap();
    assert_eq!(totals(other, "'', 'a', 'b', 'c', 'z'").await, all);
    assert_eq!(counted(other, Span::Hour).await, counted(other, Span::Day).await);
}

/// Heartbeats that come late race with the pruning of their windows. Each is late and counted, or
/// refused and not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_heartbeat_is_counted_or_refused() {
    let ground = Ground::new().await;
    let monitors = [ground.monitor().await, ground.monitor().await];
    let windows: Vec<Window> = (0..200).map(|_| window("payments-a", 4)).collect();
    missed(&monitors[0], &windows).await;
    let later = windows[0].ends_at().plus(31 * DAY);
    counting::count_all(&monitors[0], later).await.unwrap();
    let ingesting = async {
        let mut late = 0;
        for window in windows.iter().rev() {
            for slot in 1..3 {
                let sent = vec![heartbeat(window, slot)];
                match &ingest::ingest(&monitors[1], sent, later).await.unwrap()[..] {
                    [Outcome::Late] => late += 1,
                    outcomes => assert!(only(outcomes).contains("are no longer kept")),
                }
            }
        }
        late
    };
    let pruning = async {
        for _ in 0..40 {
            prune::prune_once(&monitors[0], later).await.unwrap();
            counting::count_once(&monitors[0], later).await.unwrap();
        }
    };
    let (late, ()) = tokio::join!(ingesting, pruning);
    assert!((1..400).contains(&late), "some came before, some after: {late}");
    counting::count_all(&monitors[1], later).await.unwrap();
    let total = counted(&monitors[1], Span::Day).await;
    assert_eq!(total, [800, 200 + late, 0, 600 - late, 0, late, 0, 0, 200]);
    prune::prune_all(&monitors[1], later.plus(DAY)).await.unwrap();
    assert_eq!(rows(&monitors[1], "events").await, 0);
    assert_eq!(leftovers(&monitors[1]).await, 0);
    counting::rebuild(&monitors[1]).await.unwrap();
    counting::count_all(&monitors[1], later).await.unwrap();
    assert_eq!(counted(&monitors[1], Span::Day).await, total);
}

/// A letter that a relay tells of.
fn letter(window: &Window, at: Timestamp) -> PipelineReport {
    let letter = DeadLetterReport {
        stream: "reports".to_owned(),
        stream_id: entry_id(window.from()),
        window_uuid: Some(window.uuid),
        slot: Some(1),
        reason: "refused".to_owned(),
        at,
    };
    PipelineReport { dead_letters: vec![letter], ..report(at) }
}

/// When the window goes, everything goes that refers to it; and no message brings it back.
#[tokio::test]
async fn a_window_that_is_gone_stays_gone() {
    let api = Api::new().await;
    let monitor = &api.monitor;
    let old = window("payments-a", 3);
    missed(monitor, std::slice::from_ref(&old)).await;
    pipeline::accept(monitor, letter(&old, old.ends_at()), old.ends_at()).await.unwrap();
    let (month, year) = (old.ends_at().plus(31 * DAY), old.ends_at().plus(401 * DAY));
    counting::count_all(monitor, month).await.unwrap();
    let before = totals(monitor, "'', 'payments-a'").await;
    let pruned = prune::prune_all(monitor, month).await.unwrap();
    assert_eq!((pruned.let_go, pruned.deleted["events"]), (1, 3));
    assert_eq!(rows(monitor, "window_history").await, 1);
    // One that the monitor has never met, and that ended before any was deleted, is taken.
    let unmet = window("payments-a", 2);
    missed(monitor, std::slice::from_ref(&unmet)).await;
    pipeline::accept(monitor, report(year), year).await.unwrap();
    let pruned = prune::prune_all(monitor, year).await.unwrap();
    assert_eq!((pruned.deleted["windows"], pruned.deleted["window_history"]), (1, 1));
    assert_eq!(pruned.deleted["dead_letters"], 1);
    assert_eq!(rows(monitor, &format!("windows WHERE window_uuid = '{}'", old.uuid)).await, 0);

    monitor.window_cache.forget();
    let reason = "windows that ended so long ago are no longer kept: see --retain-windows";
    let replayed = ingest::ingest(monitor, vec![heartbeat(&old, 1)], year).await.unwrap();
    assert!(only(&replayed).ends_with(reason), "{replayed:?}");
    let announced = ingest::announce(monitor, vec![announcement(&old)], year).await.unwrap();
    assert!(only(&announced).ends_with(reason), "{announced:?}");
    assert!(sweep::sweep_once(monitor, year).await.unwrap().is_empty());
    let (status, body) = api.get(&format!("/api/monitor/windows/{}", old.uuid)).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(error(&body).contains("is known; those that ended by "), "{body}");
    counting::count_all(monitor, year).await.unwrap();
    let after = totals(monitor, "'', 'payments-a'").await;
    assert_eq!(after.len(), before.len());
    counting::rebuild(monitor).await.unwrap();
    counting::count_all(monitor, year).await.unwrap();
    assert_eq!(totals(monitor, "'', 'payments-a'").await, after);
    assert_eq!(counted(monitor, Span::Day).await, [5, 2, 0, 3, 0, 0, 0, 0, 2]);
}

/// Another monitor still remembers a window as it was.
#[tokio::test]
async fn what_was_read_before_a_window_was_pruned_is_not_relied_on() {
    let ground = Ground::new().await;
    let (pruner, other) = (ground.monitor().await, ground.monitor().await);
    let retain = Retain::For(30 * DAY);
    let retention = RetentionArgs { retain_events: retain, retain_windows: retain };
    let forgetful = Monitor { retention, ..pruner.clone() };
    for (pruner, left) in [(&pruner, 1), (&forgetful, 0)] {
        let old = window("payments-a", 3);
        missed(pruner, std::slice::from_ref(&old)).await;
        let later = old.ends_at().plus(31 * DAY);
        counting::count_all(pruner, later).await.unwrap();
        let again = ingest::ingest(&other, vec![heartbeat(&old, 0)], later).await.unwrap();
        assert_eq!(again, [Outcome::Duplicate]);
        prune::prune_all(pruner, later).await.unwrap();
        let known = rows(pruner, &format!("windows WHERE window_uuid = '{}'", old.uuid)).await;
        assert_eq!(known, left);
        for slot in [1, 9] {
            let late = Heartbeat { slot: Some(slot), ..heartbeat(&old, 1) };
            let outcomes = ingest::ingest(&other, vec![late], later).await.unwrap();
            assert!(only(&outcomes).ends_with("are no longer kept: see --retain-events"));
        }
        assert_eq!((rows(pruner, "events").await, leftovers(pruner).await), (0, 0));
    }
}

/// What the API and the command say of a window without events.
#[tokio::test]
async fn a_window_without_events_says_so() {
    let ground = Ground::new().await;
    let api = Api::of(ground.monitor().await).await;
    let from = clock::now().minus(40 * DAY);
    let old = window_at("payments-a", from, 3);
    let beside = Heartbeat { slot: Some(9), ..heartbeat(&old, 2) };
    ingest::announce(&api.monitor, vec![announcement(&old)], from).await.unwrap();
    ingest::ingest(&api.monitor, vec![beside], from).await.unwrap();
    missed(&api.monitor, std::slice::from_ref(&old)).await;
    counting::count_all(&api.monitor, clock::now()).await.unwrap();
    prune::prune_all(&api.monitor, clock::now()).await.unwrap();
    let (_, shown) = api.get(&format!("/api/monitor/windows/{}", old.uuid)).await;
    for (member, value) in [
        ("events_kept", json!(false)),
        ("audit", json!("not_asked")),
        ("slots", json!([])),
        ("verdicts", json!({})),
        ("status", json!("alert")),
        ("received_reports", json!(1)),
        ("missing_reports", json!(2)),
        ("unscheduled_reports", json!(1)),
    ] {
        assert_eq!(shown[member], value, "{member}");
    }
    assert_eq!(shown["history"].as_array().map(Vec::len), Some(1));
    let (_, events) = api.get("/api/monitor/events").await;
    assert_eq!(events, json!({"events": [], "next": Value::Null}));
    let view = "SELECT CAST(unscheduled_reports AS SIGNED) FROM monitoring_windows";
    let unscheduled: i64 = sqlx::query_scalar(view).fetch_one(&api.monitor.pool).await.unwrap();
    assert_eq!(unscheduled, 1);
    let (status, refused) = api.post("heartbeats", heartbeat(&old, 1).to_json()).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(error(&refused).ends_with("its events are no longer kept: see --retain-events"));

    let process = Process::monitor(&ground, &[]).await;
    let (code, out, _) = explain(&process, &[&old.uuid.to_string()]).await;
    assert_eq!(code, 2, "{out}");
    assert!(
        out.contains("\n  its events are no longer kept: it is too old to be explained\n"),
        "{out}"
    );
    assert!(out.contains("2 slots are not judged: their events are no longer kept."), "{out}");
}
