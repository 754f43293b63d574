//! What the roles show to Prometheus moves by what really happened, and never waits for a server.

use std::time::Duration;

use heartbeat::clock;
use heartbeat::local::{Options, Redis};
use heartbeat::wire::{Heartbeat, Status, Window};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redis::cmd;
use serde_json::{Value, json};

use crate::support::{
    Ground, Process, Proxy, Scrape, answer, eventually, free_address, get, heartbeat, pending,
    window,
};

/// How long ago the heartbeats of these tests were sent.
const SENT_AGO: Duration = Duration::from_secs(5);

async fn post(process: &Process, path: &str, body: String) -> Value {
    let client = heartbeat::http::client(Duration::from_secs(10)).unwrap();
    let (status, body) =
        answer(client.post(process.url(path)).body(body).send().await.unwrap()).await;
    assert!(status.is_success(), "{status} {body}");
    body
}

/// A heartbeat that was sent a moment ago, whenever its slot was due.
fn recent(window: &Window, slot: u32) -> Heartbeat {
    Heartbeat { timestamp: clock::now().minus(SENT_AGO), ..heartbeat(window, slot) }
}

#[tokio::test]
async fn a_monitor_counts_what_it_takes_and_what_it_closes() {
    let ground = Ground::new().await;
    // It sweeps when it is told to, so that nothing is closed in between.
    let monitor = Process::monitor(&ground, &["--sweep-interval", "1h"]).await;
    let window = window("payments-a", 6);
    let error = Heartbeat { status: Status::Error(None), ..recent(&window, 1) };
    let elsewhere = Heartbeat { slot: Some(70), ..recent(&window, 2) };
    let items = [
        recent(&window, 0).to_json(),
        recent(&window, 0).to_json(),
        error.to_json(),
        elsewhere.to_json(),
        recent(&window, 2).to_json(),
        r#"{"service":"payments-b"}"#.to_owned(),
    ];
    post(&monitor, "/api/monitor/heartbeats/batch", format!("[{}]", items.join(","))).await;
    // The sweep of its start may be at it as well.
    let uuid = window.uuid;
    eventually("the window is closed", async || {
        post(&monitor, "/api/monitor/windows/sweep", String::new()).await;
        let shown = monitor.url(&format!("/api/monitor/windows/{uuid}"));
        let (_, shown) = answer(get(&shown).await.unwrap()).await;
        (shown["status"] == "alert").then_some(())
    })
    .await;
    post(&monitor, "/api/monitor/heartbeats", recent(&window, 3).to_json()).await;

    let scrape = Scrape::role(&monitor).await;
    for (name, label, expected) in [
        ("heartbeats", "outcome=\"recorded\"", 3.0),
        ("heartbeats", "outcome=\"duplicate\"", 1.0),
        ("heartbeats", "outcome=\"unscheduled\"", 1.0),
        ("heartbeats", "outcome=\"late\"", 1.0),
        ("heartbeats", "outcome=\"rejected\"", 0.0),
        ("windows_closed", "result=\"alert\"", 1.0),
        ("windows_closed", "result=\"closed\"", 0.0),
        ("windows_closed", "result=\"unobserved\"", 0.0),
    ] {
        let sample = sample(name, "payments-a", label);
        assert_eq!(scrape.get(&sample), expected, "{sample}");
    }
    for (status, expected) in [("ok", 2.0), ("error", 1.0), ("missing", 3.0), ("unobserved", 0.0)] {
        let sample = sample("slots", "payments-a", &format!("status=\"{status}\""));
        assert_eq!(scrape.get(&sample), expected, "{sample}");
    }
    assert_eq!(scrape.get(&sample("heartbeats", "other", "outcome=\"rejected\"")), 1.0);
    assert!(!scrape.text.contains("payments-b"), "what is refused makes no series");
    assert_eq!(scrape.get("heartbeat_monitor_ingest_seconds_count"), 2.0);
    assert_eq!(scrape.get("heartbeat_monitor_delivery_seconds_count"), 4.0);
    let took = scrape.get("heartbeat_monitor_delivery_seconds_sum");
    assert!((20.0..40.0).contains(&took), "four times five seconds: {took}");
    assert_eq!(scrape.get("heartbeat_database_max_connections{database=\"monitor\"}"), 16.0);
    assert!(scrape.get("heartbeat_database_connections{database=\"monitor\"}") >= 1.0);
    let version = env!("CARGO_PKG_VERSION");
    let info = format!("heartbeat_build_info{{role=\"monitor\",version=\"{version}\"}}");
    assert_eq!(scrape.get(&info), 1.0);
    assert_eq!(scrape.find("heartbeat_monitor_watermark_age_seconds"), None, "no relay reports");
}

/// A sample of a counter with a service and another label, in the order in which they are shown.
fn sample(name: &str, service: &str, label: &str) -> String {
    let mut labels = [label.to_owned(), format!("service=\"{service}\"")];
    labels.sort();
    format!("heartbeat_monitor_{name}_total{{{}}}", labels.join(","))
}

#[tokio::test]
async fn a_relay_counts_what_it_delivers_and_shows_that_its_monitor_is_away() {
    let ground = Ground::new().await;
    let window = window("payments-a", 10);
    for slot in 0..10 {
        ground.send(recent(&window, slot).to_json()).await;
    }
    ground.send("no heartbeat").await;
    let away = free_address();
    let relay = Process::relay(&ground, &format!("http://{away}"), &[]).await;
    let shut = eventually("the breaker opens", async || {
        let scrape = Scrape::role(&relay).await;
        let is_open = scrape.get("heartbeat_relay_breaker_open") == 1.0;
        let read = scrape.find("heartbeat_relay_pending_entries{stream=\"heartbeats\"}")?;
        let lag = scrape.find("heartbeat_relay_lag_entries{stream=\"heartbeats\"}")?;
        (is_open && (read, lag) == (10.0, 0.0)).then_some(scrape)
    })
    .await;
    let unavailable = shut.get("heartbeat_relay_requests_total{answer=\"unavailable\"}");
    assert!(unavailable >= 3.0, "{unavailable}");
    assert_eq!(shut.get("heartbeat_relay_requests_total{answer=\"taken\"}"), 0.0);
    let again = shut.get("heartbeat_relay_retries_total{class=\"unavailable\"}");
    assert!(unavailable - again <= 1.0, "{again} of {unavailable}");

    let environment = [("DATABASE_URL", ground.monitor_url.as_str())];
    let options = ["--replay-grace", "100ms"];
    let monitor = Process::role_at(away, "monitor", &options, &environment).await;
    let settled = |stream: &str, how: &str| {
        let labels = format!("settlement=\"{how}\",stream=\"{stream}\"");
        format!("heartbeat_relay_messages_total{{{labels}}}")
    };
    let open = eventually("all is delivered", async || {
        let scrape = Scrape::role(&relay).await;
        let done = scrape.get(&settled("heartbeats", "acknowledged")) == 10.0
            && scrape.get("heartbeat_relay_pending_entries{stream=\"heartbeats\"}") == 0.0
            && scrape.get("heartbeat_relay_dead_letters") == 1.0;
        done.then_some(scrape)
    })
    .await;
    assert_eq!(pending(&ground).await, 0);
    assert_eq!(open.get("heartbeat_relay_breaker_open"), 0.0);
    assert_eq!(open.get(&settled("heartbeats", "dead_lettered")), 1.0);
    assert_eq!(open.get(&settled("windows", "acknowledged")), 0.0);
    assert!(open.get("heartbeat_relay_requests_total{answer=\"taken\"}") >= 1.0);
    assert!(open.get("heartbeat_relay_survey_age_seconds") < 10.0);
    eventually("the monitor knows how far delivery is", async || {
        let scrape = Scrape::role(&monitor).await;
        let age = scrape.find("heartbeat_monitor_watermark_age_seconds")?;
        (age < 30.0 && scrape.get("heartbeat_monitor_stalled_pipelines") == 0.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_counts_its_ticks_and_what_redis_does_not_take() {
    let ground = Ground::new().await;
    let directory = tempfile::tempdir().unwrap();
    let redis = Redis::start(directory.path(), &Options::default()).await.unwrap();
    let redis_url = redis.url();
    let environment = [
        ("REDIS_URL", redis_url.as_str()),
        ("DATABASE_URL", ground.payments_url.as_str()),
        ("SERVICE_NAME", "payments-a"),
    ];
    let payments = Process::role("payments", &[], &environment).await;
    let request = json!({"duration_sec": 20, "tick_seconds": 0.2, "error_status_generado": 0.5,
        "error_status_no_reportado": 0.2, "seed": 1});
    let opened = post(&payments, "/report-windows", request.to_string()).await;
    let sent = |scrape: &Scrape| scrape.get("heartbeat_payments_publish_seconds_count");
    let failures = "heartbeat_payments_publish_failures_total{cause=\"stream\"}";
    let unsent = "heartbeat_payments_unsent_ticks";
    eventually("some is sent", async || {
        let scrape = Scrape::role(&payments).await;
        (sent(&scrape) >= 3.0 && scrape.get("heartbeat_payments_open_windows") == 1.0).then_some(())
    })
    .await;

    let pid = Pid::from_raw(i32::try_from(redis.pid()).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    eventually("Redis stands still, and what is not sent is counted", async || {
        let scrape = Scrape::role(&payments).await;
        (scrape.get(unsent) >= 3.0 && scrape.get(failures) >= 1.0).then_some(())
    })
    .await;
    kill(pid, Signal::SIGCONT).unwrap();
    let url =
        payments.url(&format!("/report-windows/{}/stats", opened["window_uuid"].as_str().unwrap()));
    let stats = eventually("the window is done", async || {
        let scrape = Scrape::role(&payments).await;
        let is_done = scrape.get("heartbeat_payments_open_windows") == 0.0;
        let (_, stats) = answer(get(&url).await.unwrap()).await;
        is_done.then_some(stats)
    })
    .await;
    let scrape = Scrape::role(&payments).await;
    for (status, name) in [("ok", "ok_count"), ("error", "error_count"), ("omitted", "no_reported")]
    {
        let sample = format!("heartbeat_payments_ticks_total{{status=\"{status}\"}}");
        assert_eq!(Some(scrape.get(&sample)), stats[name].as_f64(), "{sample}");
        assert!(scrape.get(&sample) > 0.0, "{sample}");
    }
    assert_eq!(Some(sent(&scrape)), stats["sent_to_queue"].as_f64());
    assert_eq!(scrape.get(unsent), 0.0);
    assert_eq!(scrape.get("heartbeat_payments_catching_up"), 0.0);
    let again = "heartbeat_payments_resent_messages_total{stream=\"heartbeats\"}";
    let before = scrape.get(again);

    let client = redis::Client::open(redis_url.as_str()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    cmd("FLUSHALL").query_async::<()>(&mut connection).await.unwrap();
    eventually("all of it is sent again", async || {
        let scrape = Scrape::role(&payments).await;
        let is_over = scrape.get("heartbeat_payments_catching_up") == 0.0;
        (is_over && scrape.get(again) - before >= sent(&scrape)).then_some(())
    })
    .await;
    redis.stop().await.unwrap();
}

#[tokio::test]
async fn a_scrape_waits_for_no_server() {
    let ground = Ground::new().await;
    let (_, rest) = ground.monitor_tcp_url.split_once('@').unwrap();
    let (server, _) = rest.split_once('/').unwrap();
    let proxy = Proxy::start(server.parse().unwrap()).await;
    let url = ground.monitor_tcp_url.replace(server, &proxy.address.to_string());
    let monitor = Process::role("monitor", &[], &[("DATABASE_URL", url.as_str())]).await;
    let directory = tempfile::tempdir().unwrap();
    let redis = Redis::start(directory.path(), &Options::default()).await.unwrap();
    let (redis_url, monitor_url) = (redis.url(), monitor.url(""));
    let environment = [("REDIS_URL", redis_url.as_str()), ("MONITOR_URL", monitor_url.as_str())];
    let relay = Process::role("relay", &["--consumer-name", "one"], &environment).await;
    let ages = async |process: &Process, sample: &str, wanted: f64| {
        eventually(&format!("{sample} is {wanted}"), async || {
            (Scrape::role(process).await.find(sample)? >= wanted).then_some(())
        })
        .await;
    };
    ages(&relay, "heartbeat_relay_survey_age_seconds", 0.0).await;
    ages(&monitor, "heartbeat_monitor_watch_age_seconds", 0.0).await;
    proxy.fall_silent();
    let pid = Pid::from_raw(i32::try_from(redis.pid()).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    ages(&relay, "heartbeat_relay_survey_age_seconds", 3.0).await;
    eventually("the watermark has not been seen to for 3 s", async || {
        // Connections that the monitor has opened since fall silent as well.
        proxy.fall_silent();
        let age = Scrape::role(&monitor).await.find("heartbeat_monitor_watch_age_seconds")?;
        (age >= 3.0).then_some(())
    })
    .await;
    kill(pid, Signal::SIGCONT).unwrap();
    redis.stop().await.unwrap();
}

#[tokio::test]
async fn what_waits_longest_has_an_age() {
    let ground = Ground::new().await;
    let relay = Process::relay(&ground, &format!("http://{}", free_address()), &[]).await;
    let window = window("payments-a", 1);
    ground.send(heartbeat(&window, 0).to_json()).await;
    let oldest = "heartbeat_relay_oldest_pending_age_seconds{stream=\"heartbeats\"}";
    let behind = eventually("it grows", async || {
        let scrape = Scrape::role(&relay).await;
        (scrape.find(oldest)? > 1.0).then_some(scrape)
    })
    .await;
    assert!(behind.get("heartbeat_relay_watermark_age_seconds") > 1.0, "it holds the watermark up");
    assert_eq!(behind.find("heartbeat_relay_oldest_pending_age_seconds{stream=\"windows\"}"), None);
}
