//! Totals: whatever happens to windows, and whoever counts, they say what the ledger says.

use std::time::Duration;

use heartbeat::monitor::totals::{Count, Span};
use heartbeat::monitor::{Monitor, counting, ingest, pipeline, sweep};
use heartbeat::wire::{
    Announcement, DeadLetterReport, Heartbeat, PipelineReport, Rates, Status, Tick, Timestamp,
    Window,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use crate::support::{Ground, announcement, at, entry_id, heartbeat, report, window};

/// Long after anything happens.
const LATER: Duration = Duration::from_hours(24 * 30);

/// Everything that counting keeps, as text.
async fn kept(monitor: &Monitor) -> Vec<String> {
    let counts = Count::ALL.map(Count::name).join(", ");
    let totals = format!("span, service_name, begins_at, {counts}, verdicts, latencies");
    let mut kept = Vec::new();
    for (table, columns) in [
        ("report_totals", totals.as_str()),
        ("counted_windows", "window_id, added"),
        ("last_heartbeats", "service_name, report_timestamp, recorded_at, stream_id"),
    ] {
        let text = format!(
            "SELECT CAST(CONCAT_WS(' | ', '{table}', {columns}) AS CHAR) AS kept FROM {table} ORDER BY kept"
        );
        let rows = sqlx::query_scalar::<_, String>(AssertSqlSafe(text));
        kept.extend(rows.fetch_all(&monitor.pool).await.unwrap());
    }
    kept
}

/// The totals of all services and all times, out of the spans of one length.
pub async fn counted(monitor: &Monitor, span: Span) -> Vec<i64> {
    let sums = Count::ALL.map(|count| format!("CAST(SUM({}) AS SIGNED)", count.name())).join(", ");
    let text = format!(
        "SELECT {sums} FROM report_totals WHERE span = '{}' AND service_name = ''",
        span.as_sql()
    );
    let row = sqlx::query(AssertSqlSafe(text)).fetch_one(&monitor.pool).await.unwrap();
    (0..Count::ALL.len()).map(|column| row.get(column)).collect()
}

/// The same from the ledger itself.
pub async fn ledger(monitor: &Monitor) -> Vec<i64> {
    let row = sqlx::query(
        "SELECT COUNT(*), COUNT(IF(e.status <> 'MISSING', 1, NULL)), \
         COUNT(IF(e.status = 'ERROR', 1, NULL)), COUNT(IF(e.status = 'MISSING', 1, NULL)), \
         COUNT(e.cause), COUNT(IF(e.late, 1, NULL)), \
         (SELECT COUNT(*) FROM unscheduled_events u JOIN windows w ON w.id = u.window_id \
          WHERE w.status <> 'OPEN'), \
         (SELECT COUNT(*) FROM windows WHERE status = 'CLOSED'), \
         (SELECT COUNT(*) FROM windows WHERE status = 'ALERT') \
         FROM events e JOIN windows w ON w.id = e.window_id WHERE w.status <> 'OPEN'",
    )
    .fetch_one(&monitor.pool)
    .await
    .unwrap();
    (0..Count::ALL.len()).map(|column| row.get(column)).collect()
}

/// The last heartbeat of each service that arrived in a window that has closed, as text: as it is
/// kept, and by the ledger.
async fn last_heartbeats(monitor: &Monitor) -> [Vec<String>; 2] {
    let text = async |question: &'static str| {
        sqlx::query_scalar::<_, String>(question).fetch_all(&monitor.pool).await.unwrap()
    };
    let kept = "SELECT CAST(CONCAT_WS(' ', service_name, recorded_at, report_timestamp) AS CHAR) \
        FROM last_heartbeats ORDER BY service_name";
    let ledger = "SELECT CAST(MAX(CONCAT_WS(' ', w.service_name, e.recorded_at, \
        e.report_timestamp)) AS CHAR) FROM events e JOIN windows w ON w.id = e.window_id \
        WHERE w.status <> 'OPEN' AND e.status <> 'MISSING' \
        GROUP BY w.service_name ORDER BY w.service_name";
    [text(kept).await, text(ledger).await]
}

/// A window that begins within two hours around midnight, and whether it comes through the stream.
pub fn any_window(rng: &mut StdRng) -> (Window, bool) {
    let from = at("2026-11-21T23:00:00Z").plus(Duration::from_secs(rng.random_range(0..7_200)));
    let to = from.plus(Duration::from_secs(rng.random_range(1..400)));
    let service = ["a", "b", "c"][rng.random_range(0..3)].parse().unwrap();
    let span = (from, to);
    let window = Window::new(Uuid::new_v4(), service, span, Tick::DEFAULT, Rates::default());
    (window.unwrap(), rng.random())
}

/// Heartbeats of any slots, some of them beside the window, some twice.
fn any_heartbeats(rng: &mut StdRng, windows: &[(Window, bool)]) -> Vec<Heartbeat> {
    let any = |_| {
        let (window, via_stream) = &windows[rng.random_range(0..windows.len())];
        let slot = rng.random_range(-1..=i64::from(window.slots()));
        let due = window.from().plus_micros(slot * window.tick().micros());
        let timestamp = due.plus_micros(rng.random_range(-1_000_000..9_000_000));
        let status = if rng.random_ratio(1, 4) { Status::Error(None) } else { Status::Ok };
        Heartbeat {
            status,
            timestamp,
            slot: Some(slot),
            stream_id: via_stream.then(|| entry_id(timestamp)),
            ..heartbeat(window, 0)
        }
    };
    (0..60).map(any).collect()
}

/// One of the things that happen to a monitor.
pub async fn anything(
    monitor: &Monitor,
    windows: &[(Window, bool)],
    rng: &mut StdRng,
    now: Timestamp,
) {
    match rng.random_range(0..10) {
        0..=3 => {
            let heartbeats = any_heartbeats(rng, windows);
            drop(ingest::ingest(monitor, heartbeats, now).await.unwrap());
        }
        4 => drop(sweep::sweep_once(monitor, now).await.unwrap()),
        5 => drop(sweep::settle_once(monitor, now).await.unwrap()),
        6 => {
            // The watermark is behind, so that windows are held, given up on, and settled later.
            pipeline::watch_once(monitor, now).await.unwrap();
            let (window, _) = &windows[rng.random_range(0..windows.len())];
            let letter = DeadLetterReport {
                stream: "reports".to_owned(),
                stream_id: entry_id(window.from()),
                window_uuid: Some(window.uuid),
                slot: Some(0),
                reason: "refused".to_owned(),
                at: now,
            };
            let watermark = now.minus(Duration::from_mins(rng.random_range(1..20)));
            let told = PipelineReport { dead_letters: vec![letter], ..report(watermark) };
            pipeline::accept(monitor, told, now).await.unwrap();
        }
        7 => drop(counting::judge_once(monitor, now).await.unwrap()),
        8 if rng.random_ratio(1, 6) => counting::rebuild(monitor).await.unwrap(),
        _ => drop(counting::count_once(monitor, now).await.unwrap()),
    }
}

/// Closes a window without knowing what became of its heartbeats.
pub async fn give_up_on_one(monitor: &Monitor, from: Timestamp) {
    let to = from.plus(Duration::from_secs(30));
    let service = "a".parse().unwrap();
    let span = (from, to);
    let window = Window::new(Uuid::new_v4(), service, span, Tick::DEFAULT, Rates::default());
    let told = Announcement { stream_id: Some(entry_id(from)), ..announcement(&window.unwrap()) };
    ingest::announce(monitor, vec![told], from).await.unwrap();
    let over = to.plus(Duration::from_mins(1));
    pipeline::watch_once(monitor, over).await.unwrap();
    sweep::sweep_all(monitor, over).await.unwrap();
}

/// Two monitors take heartbeats, duplicates and late ones, close, give up on, settle, count and judge
/// windows, and begin to count anew, at the same time and in any order. What they have counted then is what the ledger says,
/// and what is counted from the beginning.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_history_is_counted_as_if_from_the_beginning() {
    let ground = Ground::new().await;
    let monitors = [ground.monitor().await, ground.monitor().await];
    let monitors = monitors.map(|monitor| Monitor { max_hold: Duration::ZERO, ..monitor });
    for seed in 0..3 {
        let mut rng = StdRng::seed_from_u64(seed);
        let windows: Vec<(Window, bool)> = (0..40).map(|_| any_window(&mut rng)).collect();
        let first = windows.iter().map(|(window, _)| window.from()).min().unwrap();
        let told = |(window, via_stream): &(Window, bool)| Announcement {
            stream_id: via_stream.then(|| entry_id(window.from())),
            ..announcement(window)
        };
        let told = windows.iter().map(told).collect();
        ingest::announce(&monitors[0], told, first).await.unwrap();
        for step in 0..60 {
            let now = first.plus(Duration::from_mins(step * 3));
            let mut other = StdRng::seed_from_u64(rng.random());
            tokio::join!(
                anything(&monitors[0], &windows, &mut rng, now),
                anything(&monitors[1], &windows, &mut other, now),
            );
        }
    }
    give_up_on_one(&monitors[0], at("2026-11-22T09:00:00Z")).await;
    let later = at("2026-11-22T10:00:00Z").plus(LATER);
    let (one, other) = tokio::join!(
        counting::count_all(&monitors[0], later),
        counting::count_all(&monitors[1], later)
    );
    one.and(other).unwrap();
    counting::count_all(&monitors[0], later).await.unwrap();
    let (incremental, expected) = (kept(&monitors[0]).await, ledger(&monitors[0]).await);
    assert!(expected.iter().all(|count| *count > 0), "everything happened: {expected:?}");
    for span in Span::ALL {
        assert_eq!(counted(&monitors[0], span).await, expected, "{span:?}");
    }
    assert!(incremental.iter().any(|row| row.contains("dead_lettered")), "{incremental:#?}");

    let [kept_last, last] = last_heartbeats(&monitors[0]).await;
    assert_eq!(kept_last, last);

    counting::rebuild(&monitors[0]).await.unwrap();
    counting::count_all(&monitors[1], later).await.unwrap();
    assert_eq!(kept(&monitors[0]).await, incremental);
}

/// The last statement fails, as if the process died before it.
#[tokio::test]
async fn a_step_that_does_not_end_counts_nothing() {
    let monitor = Ground::new().await.monitor().await;
    let window = window("payments-a", 3);
    let over = window.ends_at().plus(Duration::from_mins(1));
    ingest::ingest(&monitor, vec![heartbeat(&window, 1)], window.from()).await.unwrap();
    sweep::sweep_all(&monitor, over).await.unwrap();
    let run = async |statement| sqlx::raw_sql(statement).execute(&monitor.pool).await.unwrap();
    run("RENAME TABLE last_heartbeats TO away").await;
    assert!(counting::count_once(&monitor, over).await.is_err());
    assert!(counting::count_once(&monitor, over).await.is_err());
    run("RENAME TABLE away TO last_heartbeats").await;
    counting::count_all(&monitor, over).await.unwrap();
    counting::count_all(&monitor, over).await.unwrap();
    assert_eq!(counted(&monitor, Span::Day).await, [3, 1, 0, 2, 0, 0, 0, 0, 1]);
}

/// Windows that closed before there were totals are counted, in steps.
#[tokio::test]
async fn windows_from_before_an_upgrade_are_counted() {
    let monitor = Ground::new().await.monitor().await;
    let windows: Vec<Window> = (0..300).map(|_| window("payments-a", 2)).collect();
    let over = windows[0].ends_at().plus(Duration::from_mins(1));
    ingest::announce(&monitor, windows.iter().map(announcement).collect(), over).await.unwrap();
    sweep::sweep_all(&monitor, over).await.unwrap();
    sqlx::raw_sql("DELETE FROM uncounted_windows").execute(&monitor.pool).await.unwrap();
    assert!(counting::count_once(&monitor, over).await.unwrap() < 300, "in steps");
    counting::count_all(&monitor, over).await.unwrap();
    assert_eq!(counted(&monitor, Span::Hour).await, [600, 0, 0, 600, 0, 0, 0, 0, 300]);
    assert_eq!(counting::count_once(&monitor, over).await.unwrap(), 0);
}
