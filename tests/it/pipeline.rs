//! Closing on the watermark: what the monitor makes of the relays' reports, and of their silence.

use std::time::Duration;

use heartbeat::monitor::window::{StoredWindow, UNOBSERVED, WindowStatus};
use heartbeat::monitor::{Monitor, ingest, latest_windows, pipeline, sweep};
use heartbeat::wire::{
    Announcement, DeadLetterReport, Heartbeat, PipelineReport, Suspect, SuspectReport, Timestamp,
    Window,
};

use crate::support::{
    Api, Ground, START, Scrape, announcement, at, entry_id, heartbeat, report, window,
};

/// A window that was announced through the stream when it began, by a sender whose clock is right.
async fn announced(monitor: &Monitor, service: &str, slots: u32) -> Window {
    let window = window(service, slots);
    let told = Announcement {
        stream_id: Some(entry_id(window.from())),
        ..Announcement::new(window.clone(), window.from())
    };
    ingest::announce(monitor, vec![told], window.from()).await.unwrap();
    window
}

async fn stored(monitor: &Monitor, window: &Window) -> StoredWindow {
    let windows = latest_windows(&monitor.pool, 100).await.unwrap();
    windows.into_iter().find(|stored| stored.window.uuid == window.uuid).unwrap()
}

async fn reason_held(monitor: &Monitor, window: &Window, now: Timestamp) -> String {
    let swept = sweep::sweep_window(monitor, window.uuid, now).await.unwrap().unwrap();
    swept.held.into_iter().map(|(_, reason)| reason).next().unwrap_or_default()
}

async fn conditions(monitor: &Monitor) -> Vec<(String, bool)> {
    sqlx::query_as("SELECT kind, lasting IS NOT NULL FROM pipeline_conditions ORDER BY id")
        .fetch_all(&monitor.pool)
        .await
        .unwrap()
}

/// The monitor has been running from one second to another, and found nothing else to do.
async fn run(monitor: &Monitor, from: Timestamp, seconds: u32) -> Timestamp {
    for second in 0..=seconds {
        let now = from.plus(Duration::from_secs(second.into()));
        pipeline::watch_once(monitor, now).await.unwrap();
    }
    from.plus(Duration::from_secs(seconds.into()))
}

#[tokio::test]
async fn a_window_of_the_stream_waits_for_the_watermark_and_a_direct_one_does_not() {
    let monitor = Ground::new().await.monitor().await;
    let streamed = announced(&monitor, "payments-a", 3).await;
    let direct = window("payments-b", 3);
    ingest::announce(&monitor, vec![announcement(&direct)], direct.from()).await.unwrap();
    let over = streamed.ends_at().plus(Duration::from_mins(5));
    let closes_at = streamed.ends_at().plus(monitor.grace);

    let behind = closes_at.plus_micros(-1);
    pipeline::accept(&monitor, report(behind), over).await.unwrap();
    assert_eq!(sweep::sweep_all(&monitor, over).await.unwrap(), 1);
    assert_eq!(stored(&monitor, &direct).await.status, WindowStatus::Alert);
    assert_eq!(stored(&monitor, &streamed).await.status, WindowStatus::Open);
    let reason = reason_held(&monitor, &streamed, over).await;
    assert!(reason.contains("still be on their way"), "{reason}");
    assert_eq!(sweep::sweep_on_request(&monitor, over).await.unwrap().held.len(), 1);

    pipeline::accept(&monitor, report(closes_at), over).await.unwrap();
    let early = closes_at.plus_micros(-1);
    assert_eq!(sweep::sweep_all(&monitor, early).await.unwrap(), 0, "the clock has to pass it too");
    assert_eq!(sweep::sweep_all(&monitor, over).await.unwrap(), 1);
    let alert = stored(&monitor, &streamed).await;
    assert_eq!((alert.status, alert.counts.cause()), (WindowStatus::Alert, None));
}

#[tokio::test]
async fn without_any_report_everything_goes_by_the_clock() {
    let monitor = Ground::new().await.monitor().await;
    let window = announced(&monitor, "payments-a", 3).await;
    let closes_at = window.ends_at().plus(monitor.grace);
    assert_eq!(sweep::sweep_all(&monitor, closes_at).await.unwrap(), 1);
}

#[tokio::test]
async fn the_senders_clock_moves_the_end_of_its_windows() {
    let monitor = Ground::new().await.monitor().await;
    let window = window("payments-a", 3);
    // Its clock is 5 s behind; the way to Redis took up to half a second.
    let behind =
        |millis: u64, sent: Timestamp| entry_id(sent.plus(Duration::from_millis(5_000 + millis)));
    let told = Announcement {
        stream_id: Some(behind(500, window.from())),
        ..Announcement::new(window.clone(), window.from())
    };
    ingest::announce(&monitor, vec![told], window.from()).await.unwrap();
    assert_eq!(stored(&monitor, &window).await.clock_offset_us, Some(5_500_000));
    let mut beats = [heartbeat(&window, 0), heartbeat(&window, 1)];
    beats[0].stream_id = Some(behind(100, beats[0].timestamp));
    beats[1].stream_id = Some(behind(300, beats[1].timestamp));
    ingest::ingest(&monitor, beats.to_vec(), window.from()).await.unwrap();
    assert_eq!(stored(&monitor, &window).await.clock_offset_us, Some(5_100_000));
    let closes_at = window.ends_at().plus(monitor.grace).plus_micros(5_100_000);
    assert_eq!(sweep::sweep_all(&monitor, closes_at.plus_micros(-1)).await.unwrap(), 0);
    assert_eq!(sweep::sweep_all(&monitor, closes_at).await.unwrap(), 1);
}

/// What was lost is sent again days later, one heartbeat after the other.
#[tokio::test]
async fn a_window_that_is_sent_again_days_later_stays_open_until_it_has_arrived() {
    let monitor = Ground::new().await.monitor().await;
    let window = window("payments-a", 3);
    let sent_again = window.from().plus(Duration::from_hours(72));
    let beat = |slot, at| Heartbeat { stream_id: Some(entry_id(at)), ..heartbeat(&window, slot) };
    for slot in 0..3 {
        let at = sent_again.plus_micros(i64::from(slot) * 1_000);
        pipeline::accept(&monitor, report(at), at).await.unwrap();
        ingest::ingest(&monitor, vec![beat(slot, at)], at).await.unwrap();
        assert_eq!(sweep::sweep_all(&monitor, at).await.unwrap(), 0, "slot {slot}");
    }
    let over = sent_again.plus(Duration::from_mins(1));
    pipeline::accept(&monitor, report(over), over).await.unwrap();
    assert_eq!(sweep::sweep_all(&monitor, over).await.unwrap(), 1);
    assert_eq!(stored(&monitor, &window).await.status, WindowStatus::Closed);
}

/// A stamp from long before its window says nothing, and must not keep it open for as long.
#[tokio::test]
async fn a_stamp_from_days_before_the_window_moves_no_end() {
    let monitor = Ground::new().await.monitor().await;
    let window = window("payments-a", 3);
    let stamp = window.from().minus(Duration::from_hours(72));
    let stream_id = Some(entry_id(window.from()));
    let odd = Heartbeat { stream_id, timestamp: stamp, ..heartbeat(&window, 0) };
    ingest::ingest(&monitor, vec![odd], window.from()).await.unwrap();
    assert_eq!(stored(&monitor, &window).await.clock_offset_us, None);
}

#[tokio::test]
async fn a_window_first_seen_directly_belongs_to_the_stream_once_it_comes_that_way() {
    let monitor = Ground::new().await.monitor().await;
    let window = window("payments-a", 3);
    let mut beats = [heartbeat(&window, 0), heartbeat(&window, 1)];
    ingest::ingest(&monitor, vec![beats[0].clone()], window.from()).await.unwrap();
    assert!(!stored(&monitor, &window).await.via_stream);
    beats[1].stream_id = Some(entry_id(beats[1].timestamp));
    ingest::ingest(&monitor, vec![beats[1].clone()], window.from()).await.unwrap();
    let known = stored(&monitor, &window).await;
    assert_eq!((known.via_stream, known.clock_offset_us), (true, Some(0)));
}

#[tokio::test]
async fn a_suspect_holds_up_its_own_window_only() {
    let monitor = Ground::new().await.monitor().await;
    let suspected = announced(&monitor, "payments-a", 3).await;
    let other = announced(&monitor, "payments-b", 3).await;
    let over = suspected.ends_at().plus(Duration::from_mins(1));
    let suspect = Suspect {
        stream: "reports".to_owned(),
        stream_id: entry_id(suspected.due(1)),
        report: SuspectReport {
            window_uuid: Some(suspected.uuid),
            slot: Some(1),
            reason: "500".to_owned(),
            since: over,
        },
    };
    let told = PipelineReport { suspects: vec![suspect], ..report(over) };
    pipeline::accept(&monitor, told, over).await.unwrap();
    assert_eq!(sweep::sweep_all(&monitor, over).await.unwrap(), 1);
    assert_eq!(stored(&monitor, &other).await.status, WindowStatus::Alert);
    let reason = reason_held(&monitor, &suspected, over).await;
    assert!(reason.contains("makes the monitor fail"), "{reason}");
    let later = over.plus(Duration::from_secs(2));
    pipeline::accept(&monitor, report(later), later).await.unwrap();
    assert_eq!(sweep::sweep_all(&monitor, later).await.unwrap(), 1);
}

#[tokio::test]
async fn a_service_that_sends_again_holds_up_its_own_windows_only() {
    let monitor = Ground::new().await.monitor().await;
    let resent = announced(&monitor, "payments-a", 3).await;
    let other = announced(&monitor, "payments-b", 3).await;
    let over = resent.ends_at().plus(Duration::from_mins(1));
    let told = PipelineReport { resending: vec!["payments-a".to_owned()], ..report(over) };
    pipeline::accept(&monitor, told, over).await.unwrap();
    assert_eq!(sweep::sweep_all(&monitor, over).await.unwrap(), 1);
    assert_eq!(stored(&monitor, &other).await.status, WindowStatus::Alert);
    let reason = reason_held(&monitor, &resent, over).await;
    assert!(reason.contains("has yet to send again"), "{reason}");
    ingest::ingest(&monitor, (0..3).map(|slot| heartbeat(&resent, slot)).collect(), over)
        .await
        .unwrap();
    let later = over.plus(Duration::from_secs(2));
    pipeline::accept(&monitor, done(later), later).await.unwrap();
    assert_eq!(sweep::sweep_all(&monitor, later).await.unwrap(), 1);
    assert_eq!(stored(&monitor, &resent).await.status, WindowStatus::Closed);
}

/// A report that a service has sent everything again.
fn done(at: Timestamp) -> PipelineReport {
    PipelineReport { resent: vec!["payments-a".to_owned()], ..report(at) }
}

/// A service that stands still when Redis is lost can say nothing to the next one.
#[tokio::test]
async fn a_silent_service_is_waited_for_when_redis_is_lost() {
    for is_known_to_owe in [true, false] {
        let mut monitor = Ground::new().await.monitor().await;
        monitor.replay_grace = Duration::ZERO;
        let window = announced(&monitor, "payments-a", 3).await;
        let over = window.ends_at().plus(Duration::from_mins(1));
        let mut told = report(window.from());
        if is_known_to_owe {
            told.resending.push("payments-a".to_owned());
        }
        pipeline::accept(&monitor, told, over).await.unwrap();
        let after = |seconds| over.plus(Duration::from_secs(seconds));
        let of_another = |report| PipelineReport { redis_identity: "another".to_owned(), ..report };
        for seconds in [1, 2, 25] {
            let told = of_another(report(after(seconds)));
            pipeline::accept(&monitor, told, after(seconds)).await.unwrap();
            assert_eq!(sweep::sweep_all(&monitor, after(seconds)).await.unwrap(), 0, "{seconds}");
        }
        // It shows itself at last, and has then all the time that it needs.
        let resending = vec!["payments-a".to_owned()];
        let told = PipelineReport { resending, ..of_another(report(after(30))) };
        pipeline::accept(&monitor, told, after(30)).await.unwrap();
        assert_eq!(sweep::sweep_all(&monitor, after(59)).await.unwrap(), 0);
        pipeline::accept(&monitor, of_another(report(after(59))), after(59)).await.unwrap();
        assert_eq!(sweep::sweep_all(&monitor, after(59)).await.unwrap(), 0);
        pipeline::accept(&monitor, of_another(done(after(60))), after(60)).await.unwrap();
        assert_eq!(sweep::sweep_all(&monitor, after(60)).await.unwrap(), 1);
    }
}

#[tokio::test]
async fn a_service_that_never_comes_back_is_not_waited_for_for_ever() {
    let mut monitor = Ground::new().await.monitor().await;
    monitor.replay_grace = Duration::ZERO;
    let window = announced(&monitor, "payments-a", 3).await;
    let over = window.ends_at().plus(Duration::from_mins(1));
    pipeline::accept(&monitor, report(window.from()), over).await.unwrap();
    let after = |seconds| over.plus(Duration::from_secs(seconds));
    for (seconds, closed) in [(1, 0), (30, 0), (31, 1)] {
        let told =
            PipelineReport { redis_identity: "another".to_owned(), ..report(after(seconds)) };
        pipeline::accept(&monitor, told, after(seconds)).await.unwrap();
        assert_eq!(sweep::sweep_all(&monitor, after(seconds)).await.unwrap(), closed, "{seconds}");
    }
    assert_eq!(stored(&monitor, &window).await.status, WindowStatus::Alert);
}

#[tokio::test]
async fn time_in_which_no_monitor_runs_does_not_count() {
    let monitor = Ground::new().await.monitor().await;
    let start = at(START);
    pipeline::watch_once(&monitor, start).await.unwrap();
    pipeline::accept(&monitor, report(start), start).await.unwrap();
    for hour in 1..3 {
        let later = start.plus(Duration::from_hours(hour));
        pipeline::watch_once(&monitor, later).await.unwrap();
    }
    assert!(conditions(&monitor).await.is_empty());
    run(&monitor, start.plus(Duration::from_hours(2)), 5).await;
    assert_eq!(conditions(&monitor).await, [("stalled".to_owned(), true)]);
}

#[tokio::test]
async fn a_stall_is_recorded_once_and_ends_with_the_next_report() {
    let monitor = Ground::new().await.monitor().await;
    let start = at(START);
    pipeline::watch_once(&monitor, start).await.unwrap();
    pipeline::accept(&monitor, report(start), start).await.unwrap();
    let now = run(&monitor, start, 14).await;
    assert!(conditions(&monitor).await.is_empty());
    let later = now.plus(Duration::from_secs(1));
    let (one, other) = (monitor.clone(), monitor.clone());
    tokio::join!(run(&one, later, 20), run(&other, later, 20));
    assert_eq!(conditions(&monitor).await, [("stalled".to_owned(), true)]);
    pipeline::accept(&monitor, report(later), later).await.unwrap();
    assert_eq!(conditions(&monitor).await, [("stalled".to_owned(), false)]);
}

/// As unobserved, and again as what it turned out to be.
async fn each_is_counted_once(monitor: &Monitor) {
    let api = Api::of(monitor.clone()).await;
    let scrape = Scrape::of(&format!("{}/metrics", api.base)).await;
    for (service, closed, settled) in [
        ("payments-a", [0.0, 0.0, 1.0], [0.0, 1.0]),
        ("payments-b", [0.0, 1.0, 0.0], [0.0, 0.0]),
        ("payments-c", [0.0, 0.0, 1.0], [1.0, 0.0]),
    ] {
        let counted = |name: &str, result: &str| {
            let labels = format!("result=\"{result}\",service=\"{service}\"");
            scrape.get(&format!("heartbeat_monitor_windows_{name}_total{{{labels}}}"))
        };
        let found = ["closed", "alert", "unobserved"].map(|result| counted("closed", result));
        assert_eq!(found, closed, "{service}");
        assert_eq!(["closed", "alert"].map(|result| counted("settled", result)), settled);
    }
}

#[tokio::test]
async fn what_was_held_too_long_is_closed_as_unobserved_and_settled_when_the_truth_is_known() {
    let monitor =
        Monitor { max_hold: Duration::from_secs(30), ..Ground::new().await.monitor().await };
    // The watermark stops when the first slot of all windows has been observed.
    let [kept, broken, whole] = [
        announced(&monitor, "payments-a", 3).await,
        announced(&monitor, "payments-b", 3).await,
        announced(&monitor, "payments-c", 3).await,
    ];
    let first = vec![heartbeat(&kept, 0), heartbeat(&whole, 0)];
    ingest::ingest(&monitor, first, kept.from()).await.unwrap();
    let observed = kept.due(1).plus(monitor.grace).plus_micros(-1);
    pipeline::accept(&monitor, report(observed), observed).await.unwrap();

    let over = kept.ends_at().plus(monitor.grace);
    let now = run(&monitor, over, 34).await;
    assert_eq!(sweep::sweep_all(&monitor, now).await.unwrap(), 0, "held for 29 s");
    let now = run(&monitor, now, 2).await;
    assert_eq!(sweep::sweep_all(&monitor, now).await.unwrap(), 3);
    let unobserved = stored(&monitor, &kept).await;
    assert_eq!(unobserved.status, WindowStatus::Alert);
    assert_eq!((unobserved.counts.missing, unobserved.counts.unobserved), (2, 2));
    assert_eq!(unobserved.counts.cause(), Some(UNOBSERVED));
    let alert = stored(&monitor, &broken).await;
    assert_eq!((alert.counts.missing, alert.counts.unobserved), (3, 2));
    assert_eq!(alert.counts.cause(), None, "one slot is missing for certain");

    // One of the two arrives; of the other it becomes known that it will not.
    ingest::ingest(&monitor, vec![heartbeat(&kept, 1)], now).await.unwrap();
    let rest = vec![heartbeat(&whole, 1), heartbeat(&whole, 2)];
    ingest::ingest(&monitor, rest, now).await.unwrap();
    assert_eq!(sweep::settle_once(&monitor, now).await.unwrap(), 0, "the watermark stands still");
    let later = now.plus(Duration::from_secs(1));
    pipeline::accept(&monitor, report(later), later).await.unwrap();
    assert_eq!(sweep::settle_once(&monitor, later).await.unwrap(), 2);
    assert_eq!(sweep::settle_once(&monitor, later).await.unwrap(), 0);
    let settled = stored(&monitor, &kept).await;
    assert_eq!((settled.counts.received, settled.counts.missing), (2, 1));
    assert_eq!(settled.counts.cause(), None);
    ingest::ingest(&monitor, vec![heartbeat(&kept, 2)], later).await.unwrap();
    each_is_counted_once(&monitor).await;
    let history: Vec<(String, Option<String>)> = sqlx::query_as(
        "SELECT h.status, h.cause FROM window_history h JOIN windows w ON w.id = h.window_id \
         WHERE w.window_uuid = ? ORDER BY h.id",
    )
    .bind(kept.uuid.to_string())
    .fetch_all(&monitor.pool)
    .await
    .unwrap();
    let alert = |cause: Option<&str>| ("ALERT".to_owned(), cause.map(str::to_owned));
    assert_eq!(history, [alert(Some(UNOBSERVED)), alert(None), ("CLOSED".to_owned(), None)]);
}

#[tokio::test]
async fn dead_letters_are_remembered_for_good_and_silent_groups_while_they_are() {
    let monitor = Ground::new().await.monitor().await;
    let start = at(START);
    let letter = DeadLetterReport {
        stream: "reports".to_owned(),
        stream_id: entry_id(start),
        window_uuid: None,
        slot: Some(1),
        reason: "why".to_owned(),
        at: start,
    };
    let told = |second| PipelineReport {
        dead_letters: vec![letter.clone()],
        silent_groups: vec!["auditors".to_owned()],
        ..report(start.plus(Duration::from_secs(second)))
    };
    for second in 0..3 {
        pipeline::accept(&monitor, told(second), start).await.unwrap();
    }
    let letters: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM dead_letters")
        .fetch_one(&monitor.pool)
        .await
        .unwrap();
    assert_eq!(letters, 1);
    assert_eq!(conditions(&monitor).await, [("group_silent".to_owned(), true)]);
    pipeline::accept(&monitor, report(start.plus(Duration::from_secs(3))), start).await.unwrap();
    assert_eq!(conditions(&monitor).await, [("group_silent".to_owned(), false)]);
}
