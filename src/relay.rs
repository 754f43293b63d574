//! The relay: carries heartbeats and announcements from the streams to the monitor, and
//! acknowledges only what the monitor has committed.
//!
//! Data flows one way: [`consume`] reads entries and takes over those that a dead relay left,
//! [`deliver`] carries a batch through to its acknowledgement, [`forward`] speaks HTTP and says
//! what an answer means. [`one_by_one`] keeps the order before an original monitor, and [`missed`] skips
//! what was over before the group existed. [`gate`] stops the reading while the monitor is away, [`concurrency`] says how
//! much may be under way, [`held`] keeps the leases on everything in flight, [`report`] tells the
//! monitor how far delivery has come, [`metrics`] counts, [`trace`] records. Any number of relays may
//! share a group.

pub mod concurrency;
pub mod consume;
pub mod deliver;
pub mod forward;
pub mod gate;
pub mod held;
pub mod item;
mod job;
pub mod metrics;
pub mod missed;
pub mod one_by_one;
pub mod report;
mod settle;
pub mod trace;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use clap::Args;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::concurrency::Concurrency;
use self::deliver::Delivery;
use self::forward::Forwarder;
use self::gate::Gate;
use self::held::Held;
use self::metrics::Metrics;
use self::missed::Missed;
use self::one_by_one::OneByOne;
use self::report::Reporter;
use self::trace::Deliveries;
use crate::config::{MonitorUrl, StartArgs, StreamArgs, positive_duration, secret};
use crate::http::Readiness;
use crate::stream::{DeadLetters, Group, Link};
use crate::traces::{TraceArgs, Traces};
use crate::{http, shutdown};

/// The relay takes no bodies.
const MAX_BODY_BYTES: usize = 1_024;
/// How long a read waits for something new.
const BLOCK: Duration = Duration::from_secs(1);
/// How long a relay's name is its own after it was last heard of.
const NAME_HELD: Duration = Duration::from_secs(3);
/// How long `/ready` waits for Redis.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// Options of the role.
#[derive(Args, Clone, Debug)]
pub struct RelayArgs {
    /// Monitor to forward to
    #[arg(long, env = "MONITOR_URL", hide_env_values = true, value_name = "URL",
          default_value = "http://127.0.0.1:5001", value_parser = secret::<MonitorUrl>())]
    pub monitor_url: MonitorUrl,

    /// Where heartbeats come from.
    #[command(flatten)]
    pub stream: StreamArgs,

    /// Consumer group that the relays share
    #[arg(
        long,
        env = "CONSUMER_GROUP",
        default_value = "monitor-queue-group",
        value_name = "NAME"
    )]
    pub consumer_group: String,

    /// Name of this relay in the group, unlike that of any other [default: host name and port]
    #[arg(long, env = "CONSUMER_NAME", value_name = "NAME")]
    pub consumer_name: Option<String>,

    /// Attempts after which a message that alone makes the monitor fail becomes a dead letter
    #[arg(long, env = "MAX_RETRIES", default_value = "12", value_name = "NUMBER",
          value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub max_retries: u32,

    /// How long a relay may be silent before others take over what it holds
    #[arg(long, env = "LEASE", default_value = "12s", value_name = "DURATION",
          value_parser = positive_duration)]
    pub lease: Duration,

    /// How long the monitor may take to answer
    #[arg(long, env = "HTTP_TIMEOUT", default_value = "3s", value_name = "DURATION",
          value_parser = positive_duration)]
    pub http_timeout: Duration,

    /// Most messages of one request
    #[arg(long, env = "BATCH_SIZE", default_value = "512", value_name = "NUMBER",
          value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub batch_size: u32,

    /// Most requests at a time; there are fewer while the monitor cannot take so many
    #[arg(long, env = "CONCURRENCY", default_value = "16", value_name = "NUMBER",
          value_parser = clap::value_parser!(u32).range(1..=64))]
    pub concurrency: u32,

    /// Address to serve health and readiness on
    #[arg(long, env = "LISTEN", default_value = "0.0.0.0:5003", value_name = "ADDRESS")]
    pub listen: SocketAddr,

    /// Patience at start.
    #[command(flatten)]
    pub start: StartArgs,
}

impl RelayArgs {
    /// Checks what no single option shows.
    ///
    /// # Errors
    /// A lease that could run out while a request is in flight: two relays would then send the
    /// same message by design.
    pub fn validate(&self) -> anyhow::Result<()> {
        if self.lease < self.http_timeout * 3 {
            bail!(
                "--lease {:?} is shorter than three times --http-timeout {:?}: another relay would \
                 take over messages that this one still works on; lengthen the one or shorten the \
                 other",
                self.lease,
                self.http_timeout
            );
        }
        let name_is_bad = |name: &str| name.is_empty() || name.len() > 200;
        let consumer = self.consumer_name.as_deref();
        if name_is_bad(&self.consumer_group) || consumer.is_some_and(name_is_bad) {
            bail!("--consumer-group and --consumer-name must have 1 to 200 bytes");
        }
        Ok(())
    }

    /// The name of this relay in its group. The port belongs to it: two relays on one host listen
    /// on different ports, and a relay that starts again finds what it held before.
    fn consumer(&self) -> anyhow::Result<String> {
        if let Some(name) = &self.consumer_name {
            return Ok(name.clone());
        }
        http::host_and_port(self.listen)
    }
}

/// Runs the role until it is told to stop.
///
/// # Errors
/// When it cannot start, with a sentence for a person, or when a part of it dies.
pub async fn run(
    args: RelayArgs,
    traces: TraceArgs,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let listener = http::bind(args.listen, "the relay").await?;
    serve(args, traces, listener, shutdown).await
}

/// Runs the role on a socket that is already open.
///
/// # Errors
/// As for [`run`].
pub async fn serve(
    args: RelayArgs,
    traces: TraceArgs,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    args.validate()?;
    let consumer = args.consumer()?;
    let process = Uuid::new_v4().to_string();
    tracing::info!(?args, consumer, "the relay starts");
    let (link, group, missed) = tokio::select! {
        connected = connect(&args, &consumer, &process) => connected?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let readiness = Readiness::default();
    let metrics = Metrics::default();
    let traces = Traces::start(&traces, ("relay", &consumer), &metrics.registry)?;
    let (stream, group_name) = (args.stream.stream_name.clone(), args.consumer_group.clone());
    let deliveries = |tracer| Deliveries { tracer, stream, group: group_name };
    let delivery = Arc::new(Delivery {
        group: Arc::clone(&group),
        forwarder: Forwarder::new(args.monitor_url.clone(), args.http_timeout)?,
        held: Held::default(),
        concurrency: Concurrency::new(args.concurrency),
        missed,
        one_by_one: OneByOne::new(args.http_timeout),
        gate: Gate::default(),
        readiness: readiness.clone(),
        metrics,
        traces: traces.tracer().map(deliveries),
        max_retries: args.max_retries,
        suspects: Arc::new(Semaphore::new(deliver::MAX_SUSPECTS)),
        passed: AtomicU64::new(0),
        shutdown: shutdown.clone(),
    });
    Metrics::show_breaker(&delivery);

    let mut tasks = JoinSet::new();
    let router = router(Health { link: Arc::clone(&link), readiness })
        .route("/metrics", delivery.metrics.registry.route());
    tasks.spawn(http::serve(listener, router, MAX_BODY_BYTES, shutdown.clone()));
    tasks.spawn(held::renew(Arc::clone(&delivery), args.lease / 3));
    tasks.spawn(report::run(Reporter {
        delivery: Arc::clone(&delivery),
        letters: DeadLetters::new(link, args.stream.stream_name.clone()),
        relay: consumer,
        group: args.consumer_group.clone(),
        stream: args.stream.stream_name.to_string(),
        memory: report::Memory::default(),
    }));
    tasks.spawn(keep_name(Arc::clone(&group), process.clone(), shutdown.clone()));
    tasks.spawn(consume::run(delivery, consume::Limits::new(&args)));
    tracing::info!(listen = %args.listen, monitor = %args.monitor_url, "the relay is ready");
    let ended = shutdown::join_all(tasks, &shutdown).await;
    if let Err(error) = group.let_name_go(&process).await {
        tracing::debug!(%error, "letting the name go failed; it runs out");
    }
    traces.finish().await;
    ended
}

async fn connect(
    args: &RelayArgs,
    consumer: &str,
    process: &str,
) -> anyhow::Result<(Arc<Link>, Arc<Group>, Missed)> {
    let redis = args.stream.url()?;
    let link = Arc::new(Link::new(&redis)?);
    link.wait_until_ready(&redis, args.start.connect_timeout).await?;
    let names = (args.consumer_group.clone(), consumer.to_owned());
    let stream = args.stream.stream_name.clone();
    let group = Arc::new(Group::new(&redis, Arc::clone(&link), stream, names, BLOCK)?);
    take_name(&group, consumer, process).await?;
    let missed = Missed::default();
    missed.learn(&group.create().await.context("creating the consumer group")?);
    Ok((link, group, missed))
}

/// Makes sure that no other relay has this name. One that was killed keeps it for a moment.
async fn take_name(group: &Group, consumer: &str, process: &str) -> anyhow::Result<()> {
    let hold = async || group.hold_name(process, NAME_HELD).await.context("taking a name");
    let Some(left) = hold().await? else { return Ok(()) };
    tracing::info!(consumer, ?left, "another relay had this name a moment ago: waiting");
    tokio::time::sleep(left + Duration::from_millis(50)).await;
    if hold().await?.is_some() {
        bail!(
            "another relay runs under the name {consumer}, so that both would deliver the same \
             messages: give each a --consumer-name of its own"
        );
    }
    Ok(())
}

/// Renews the hold on this relay's name until told to stop.
async fn keep_name(
    group: Arc<Group>,
    process: String,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    while shutdown::sleep(NAME_HELD / 3, &shutdown).await {
        // A Redis that does not answer gives the name to nobody else either.
        if let Ok(Some(_)) = group.hold_name(&process, NAME_HELD).await {
            bail!("another relay has taken this one's name: give each its own --consumer-name");
        }
    }
    Ok(())
}

#[derive(Clone, Debug)]
struct Health {
    link: Arc<Link>,
    readiness: Readiness,
}

fn router(health: Health) -> Router {
    Router::new()
        .route("/health", get(async || Json(json!({"ok": true, "service": "relay"}))))
        .route("/ready", get(ready))
        .with_state(health)
}

async fn ready(State(health): State<Health>) -> Response {
    match tokio::time::timeout(PING_TIMEOUT, health.link.ping()).await {
        Ok(Ok(())) => health.readiness.works("redis"),
        _ => health.readiness.trouble("redis", "does not answer"),
    }
    health.readiness.answer()
}
