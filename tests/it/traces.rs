//! One heartbeat is one trace, from the sender's tick to the monitor's commit; and no collector, or a
//! bad one, makes any difference to heartbeats.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use heartbeat::stream::StreamId;
use heartbeat::traces::{Sampling, TraceArgs};
use heartbeat::wire::TraceParent;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use redis::AsyncCommands;
use redis::streams::StreamRangeReply;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{
    Collector, Ground, Process, Scrape, Seen, answer, eventually, free_address, get, heartbeat,
    received, window,
};

/// A role must have stopped by then, and well before its own deadline of 10 s.
const SOON: Duration = Duration::from_secs(9);
/// Slots of the windows of these tests.
const SLOTS: u32 = 16;
/// A sender's own trace.
const FOREIGN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Opens a window in which every slot is sent. Answers its uuid once it is.
async fn send_a_window(payments: &Process) -> Uuid {
    let request = json!({
        "duration_sec": 3.2, "tick_seconds": 0.2, "error_status_generado": 0.2,
        "error_status_no_reportado": 0, "seed": 1,
    });
    let client = heartbeat::http::client(Duration::from_secs(10)).unwrap();
    let request = client.post(payments.url("/report-windows")).body(request.to_string());
    let (_, opened) = answer(request.send().await.unwrap()).await;
    let uuid: Uuid = opened["window_uuid"].as_str().unwrap().parse().unwrap();
    let stats = payments.url(&format!("/report-windows/{uuid}/stats"));
    eventually("all is sent", async || {
        let stats = answer(get(&stats).await.unwrap()).await.1;
        (stats["sent_to_queue"] == SLOTS).then_some(uuid)
    })
    .await
}

/// The messages of the heartbeats' stream, by their entries.
async fn messages(ground: &Ground) -> BTreeMap<StreamId, Value> {
    let entries: StreamRangeReply =
        ground.redis().await.xrange_all(ground.stream.reports()).await.unwrap();
    let message = |entry: redis::streams::StreamId| {
        let payload: String = entry.get("payload").unwrap();
        (entry.id.parse().unwrap(), serde_json::from_str(&payload).unwrap())
    };
    entries.ids.into_iter().map(message).collect()
}

async fn stopped(roles: Vec<Process>) {
    for role in roles {
        let (status, took) = role.terminate().await;
        assert!(status.success() && took < SOON, "{status} {took:?}");
    }
}

fn half() -> Sampling {
    let otlp_endpoint = Some("http://collector:4318".parse().unwrap());
    TraceArgs { otlp_endpoint, trace_ratio: "0.5".parse().unwrap() }.sampling()
}

#[tokio::test]
async fn one_heartbeat_is_one_trace() {
    let (ground, collector) = (Ground::new().await, Collector::start().await);
    let url = collector.url();
    let payments = Process::payments(
        &ground,
        "payments-a",
        &["--otlp-endpoint", &url, "--trace-ratio", "0.5"],
    )
    .await;
    let uuid = send_a_window(&payments).await;
    let messages = messages(&ground).await;
    assert_eq!(messages.len(), SLOTS as usize);
    let mut traced = BTreeMap::new();
    for (entry, message) in &messages {
        let slot = u32::try_from(message["slot"].as_u64().unwrap()).unwrap();
        let trace = TraceParent::parse(message["traceparent"].as_str().unwrap()).unwrap();
        assert_eq!(trace, half().mark(TraceParent::of_slot(uuid, slot)), "slot {slot}");
        if trace.is_sampled() {
            traced.insert(format!("{:032x}", trace.trace_id()), (slot, trace, *entry));
        }
    }
    // About half, of a window whose uuid is drawn at random.
    assert!(!traced.is_empty() && traced.len() < messages.len(), "{traced:?}");

    let with = ["--otlp-endpoint", url.as_str()];
    let monitor = Process::monitor(&ground, &with).await;
    let name = [&with[..], &["--consumer-name", "relay-1"]].concat();
    let relay = Process::relay(&ground, &monitor.url(""), &name).await;
    let state = ground.monitor().await;
    eventually("all arrive", async || (received(&state).await == SLOTS).then_some(())).await;
    // What is recorded last is sent when they stop.
    stopped(vec![payments, relay, monitor]).await;

    let mut traces = BTreeMap::<String, Vec<Seen>>::new();
    for seen in collector.seen() {
        traces.entry(seen.trace_id()).or_default().push(seen);
    }
    let found: BTreeSet<_> = traces.keys().collect();
    assert_eq!(found, traced.keys().collect(), "those that were chosen, and no other");
    for (id, spans) in &traces {
        let (slot, trace, entry) = &traced[id];
        assert_eq!(spans.len(), 4, "{spans:?}");
        check_trace(&ground, (uuid, *slot), trace, *entry, spans);
    }
}

fn check_trace(
    ground: &Ground,
    (window, slot): (Uuid, u32),
    trace: &TraceParent,
    entry: StreamId,
    spans: &[Seen],
) {
    let step = |name| spans.iter().find(|seen| seen.step() == name).expect(name);
    let [tick, publish, deliver, ingest] = ["tick", "publish", "deliver", "ingest"].map(step);
    assert_eq!(tick.id(), format!("{:016x}", trace.parent_id()));
    assert_eq!(
        [tick.parent(), publish.parent(), deliver.parent(), ingest.parent()],
        [String::new(), tick.id(), tick.id(), deliver.id()]
    );
    let kinds = [SpanKind::Internal, SpanKind::Producer, SpanKind::Consumer, SpanKind::Server];
    let roles = ["payments", "payments", "relay", "monitor"];
    for ((seen, kind), role) in [tick, publish, deliver, ingest].into_iter().zip(kinds).zip(roles) {
        assert_eq!(seen.span.kind(), kind, "{seen:?}");
        assert!(seen.span.end_time_unix_nano >= seen.span.start_time_unix_nano, "{seen:?}");
        assert_eq!(seen.resource["service.name"], role);
        assert_eq!(seen.resource["service.namespace"], "heartbeat");
        assert_eq!(seen.resource["service.version"], env!("CARGO_PKG_VERSION"));
        let identity = ["heartbeat.service", "heartbeat.window", "heartbeat.slot"];
        let expected = ["payments-a", &window.to_string(), &slot.to_string()];
        assert_eq!(identity.map(|name| seen.said(name)), expected);
    }
    assert_eq!(tick.resource["service.instance.id"], "payments-a");
    assert_eq!(deliver.resource["service.instance.id"], "relay-1");
    for seen in [publish, deliver] {
        assert_eq!(seen.said("messaging.system"), "redis");
        assert_eq!(seen.said("messaging.destination.name"), ground.stream.reports());
        assert_eq!(seen.said("messaging.message.id"), entry.to_string());
    }
    assert!(["ok", "error"].contains(&tick.said("heartbeat.status")), "{tick:?}");
    assert_eq!(deliver.said("messaging.consumer.group.name"), "monitor-queue-group");
    assert_eq!(
        (deliver.said("heartbeat.attempts"), deliver.said("heartbeat.outcome")),
        ("1", "taken")
    );
    assert_eq!(ingest.said("heartbeat.outcome"), "recorded");
    let begins = [tick, publish, deliver, ingest].map(|seen| seen.span.start_time_unix_nano);
    assert!(begins.is_sorted(), "{begins:?}");
    assert!(deliver.span.end_time_unix_nano >= ingest.span.end_time_unix_nano);
}

#[tokio::test]
async fn a_collector_that_is_away_or_silent_changes_nothing() {
    let ground = Ground::new().await;
    let (silent, away) = (Collector::start_silent().await, format!("http://{}", free_address()));
    let payments = Process::payments(&ground, "payments-a", &["--otlp-endpoint", &silent]).await;
    let monitor = Process::monitor(&ground, &["--otlp-endpoint", &away]).await;
    let relay = Process::relay(&ground, &monitor.url(""), &["--otlp-endpoint", &silent]).await;
    send_a_window(&payments).await;
    let state = ground.monitor().await;
    eventually("all arrive", async || (received(&state).await == SLOTS).then_some(())).await;
    for role in [&payments, &relay, &monitor] {
        eventually("lost spans are counted", async || {
            let scrape = Scrape::role(role).await;
            (scrape.get("heartbeat_trace_spans_total{outcome=\"failed\"}") > 0.0).then_some(())
        })
        .await;
    }
    // There is something to send, and nobody to take it, while they stop.
    send_a_window(&payments).await;
    eventually("all arrive", async || (received(&state).await == 2 * SLOTS).then_some(())).await;
    stopped(vec![payments, relay, monitor]).await;
}

#[tokio::test]
async fn without_a_collector_nothing_is_recorded_by_anybody() {
    let (ground, collector) = (Ground::new().await, Collector::start().await);
    let url = collector.url();
    let with = ["--otlp-endpoint", url.as_str()];
    let payments = Process::payments(&ground, "payments-a", &[]).await;
    let uuid = send_a_window(&payments).await;
    for message in messages(&ground).await.values() {
        let slot = u32::try_from(message["slot"].as_u64().unwrap()).unwrap();
        let expected = TraceParent::of_slot(uuid, slot).to_string();
        assert_eq!(message["traceparent"], expected);
        assert!(expected.ends_with("-00"));
    }
    let monitor = Process::monitor(&ground, &with).await;
    let relay = Process::relay(&ground, &monitor.url(""), &with).await;
    let state = ground.monitor().await;
    eventually("all arrive", async || (received(&state).await == SLOTS).then_some(())).await;
    let scrape = Scrape::role(&payments).await;
    for outcome in ["sent", "failed", "dropped"] {
        let sample = format!("heartbeat_trace_spans_total{{outcome=\"{outcome}\"}}");
        assert_eq!(scrape.get(&sample), 0.0);
    }
    stopped(vec![payments, relay, monitor]).await;
    assert_eq!(collector.seen().len(), 0, "whoever begins a trace decides");
}

#[tokio::test]
async fn a_senders_own_trace_goes_on_and_a_bad_one_is_ignored() {
    let (ground, collector) = (Ground::new().await, Collector::start().await);
    let url = collector.url();
    let with = ["--otlp-endpoint", url.as_str()];
    let monitor = Process::monitor(&ground, &with).await;
    let relay = Process::relay(&ground, &monitor.url(""), &with).await;
    let window = window("other/sender", 9);
    let said = [
        json!(FOREIGN.to_uppercase()),
        json!(FOREIGN.replacen("00-", "01-", 1)),
        json!(FOREIGN.replace("-01", "-00")),
        json!("0".repeat(10_000)),
        json!(7),
        json!(null),
        json!([FOREIGN]),
        json!({"traceparent": FOREIGN}),
        json!(FOREIGN),
    ];
    for (slot, said) in (0..).zip(&said) {
        let mut message: Value = serde_json::from_str(&heartbeat(&window, slot).to_json()).unwrap();
        message["traceparent"] = said.clone();
        ground.send(message.to_string()).await;
    }
    let mut bad = heartbeat(&window, 0).to_json().replace("\"ok\"", "\"fine\"");
    bad.insert_str(1, &format!("\"traceparent\":\"{FOREIGN}\","));
    ground.send(bad).await;
    let state = ground.monitor().await;
    eventually("all arrive", async || (received(&state).await == 9).then_some(())).await;
    let of_its_own = async || (collector.seen().len() >= 4).then(|| collector.seen());
    let spans = eventually("its spans are sent", of_its_own).await;
    stopped(vec![relay, monitor]).await;
    assert_eq!(collector.seen().len(), 4, "{spans:?}");
    for (slot, [delivered, ingested]) in
        [("8", ["taken", "recorded"]), ("0", ["refused", "rejected"])]
    {
        let deliver = spans.iter().find(|seen| seen.said("heartbeat.outcome") == delivered);
        let ingest = spans.iter().find(|seen| seen.said("heartbeat.outcome") == ingested);
        let (deliver, ingest) = (deliver.unwrap(), ingest.unwrap());
        assert_eq!(deliver.said("heartbeat.slot"), slot);
        let trace = TraceParent::parse(FOREIGN).unwrap();
        assert_eq!(deliver.trace_id(), format!("{:032x}", trace.trace_id()));
        assert_eq!(deliver.parent(), format!("{:016x}", trace.parent_id()));
        assert_eq!((ingest.trace_id(), ingest.parent()), (deliver.trace_id(), deliver.id()));
        let status = ingest.span.status.as_ref().unwrap().code();
        assert_eq!(status == StatusCode::Error, slot == "0");
    }
}
