//! A service under watch: opens windows, sends a heartbeat per slot or omits it as planned, and
//! keeps an audit of what it did.
//!
//! Intent comes before outcome. A window and its plan are stored before its first slot; each tick
//! is stored in the audit before it is sent, and marked as sent only after Redis has answered. The
//! audit is therefore the outbox: whatever a crash interrupts, the rows that are not marked are
//! sent again, and the monitor drops what it had seen.
//!
//! [`plan`] holds the rules, [`emitter`] carries a window out, [`publish`] sends what the audit
//! holds, [`resend`] sends again what Redis may have lost, [`continuous`] opens one window after
//! the other, [`api`] opens them on request, `repository` stores, [`metrics`] counts,
//! `trace` records.

pub mod api;
pub mod continuous;
pub mod emitter;
pub mod metrics;
pub mod plan;
pub mod publish;
mod repository;
pub mod resend;
mod trace;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use clap::builder::BoolishValueParser;
use sqlx::MySqlPool;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::metrics::Metrics;
use self::plan::{Overrides, Plan};
use crate::config::{DatabaseArgs, StartArgs, StreamArgs, TickArgs, positive_duration};
use crate::http::Readiness;
use crate::stream::{Link, Producer};
use crate::traces::{TraceArgs, Tracer, Traces};
use crate::wire::{ServiceName, Tick, Timestamp};
use crate::{db, http, shutdown};

pub use repository::{AuditTotals, PlannedWindow, totals_by_window};

/// What a person calls this role's database.
pub const DATABASE: &str = "payments database";

/// Options of the role.
#[derive(Args, Clone, Debug)]
pub struct PaymentsArgs {
    /// Name of the service
    #[arg(long, env = "SERVICE_NAME", value_name = "NAME")]
    pub name: ServiceName,

    /// Address to serve the API on
    #[arg(long, env = "LISTEN", default_value = "0.0.0.0:5000", value_name = "ADDRESS")]
    pub listen: SocketAddr,

    /// Open windows back to back, without being asked
    #[arg(long, env = "CONTINUOUS", value_parser = BoolishValueParser::new())]
    pub continuous: bool,

    /// Length of the windows that --continuous opens [default: random, 60s to 300s]
    #[arg(long, env = "WINDOW_DURATION", value_name = "DURATION", value_parser = positive_duration)]
    pub window_duration: Option<Duration>,

    /// The payments database, which all services share.
    #[command(flatten)]
    pub database: DatabaseArgs,

    /// Where heartbeats go.
    #[command(flatten)]
    pub stream: StreamArgs,

    /// Tick of windows whose request names none.
    #[command(flatten)]
    pub tick: TickArgs,

    /// Patience at start.
    #[command(flatten)]
    pub start: StartArgs,
}

impl PaymentsArgs {
    /// Checks what no single option shows.
    ///
    /// # Errors
    /// A length and a tick that make no window.
    pub fn validate(&self) -> anyhow::Result<()> {
        let duration_sec = self.window_duration.map(|length| length.as_secs_f64());
        let overrides = Overrides { duration_sec, ..Overrides::default() };
        let identity = (Uuid::nil(), self.name.clone());
        let tick = self.tick.heartbeat_interval_seconds;
        Plan::draw(&overrides, identity, Timestamp::from_micros(0), tick, 0)
            .context("--window-duration and --heartbeat-interval-seconds make no window")?;
        Ok(())
    }
}

/// What every part of a running service works with.
#[derive(Clone, Debug)]
pub struct Payments {
    /// Name of the service.
    pub service: ServiceName,
    /// The payments database.
    pub pool: MySqlPool,
    /// Where heartbeats go.
    pub producer: Producer,
    /// Tick of windows whose request names none.
    pub default_tick: Tick,
    /// This process, in the leases that it holds on windows.
    pub owner: Uuid,
    /// What keeps the service from its work.
    pub readiness: Readiness,
    /// What it counts and measures.
    pub metrics: Arc<Metrics>,
    /// What records traces, unless they are off.
    pub tracer: Option<Tracer>,
}

/// Runs the role until it is told to stop.
///
/// # Errors
/// When it cannot start, with a sentence for a person, or when a part of it dies.
pub async fn run(
    args: PaymentsArgs,
    traces: TraceArgs,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let listener = http::bind(args.listen, args.name.as_str()).await?;
    serve(args, traces, listener, shutdown).await
}

/// Runs the role on a socket that is already open.
///
/// # Errors
/// As for [`run`].
pub async fn serve(
    args: PaymentsArgs,
    traces: TraceArgs,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    args.validate()?;
    tracing::info!(?args, "a payments service starts");
    let mut payments = tokio::select! {
        connected = connect(&args) => connected?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let process = ("payments", args.name.as_str());
    let traces = Traces::start(&traces, process, &payments.metrics.registry)?;
    payments.tracer = traces.tracer();
    let pool = payments.pool.clone();
    payments.metrics.registry.pool("payments", move || db::connections(&pool));
    let (emitter, requests) = emitter::Emitter::new(payments.clone());
    let mut tasks = JoinSet::new();
    let router = api::router(payments.clone(), emitter.clone());
    tasks.spawn(http::serve(listener, router, api::MAX_BODY_BYTES, shutdown.clone()));
    tasks.spawn(emitter::run(payments.clone(), requests, shutdown.clone()));
    tasks.spawn(resend::run(payments.clone(), shutdown.clone()));
    if args.continuous {
        let duration = args.window_duration;
        tasks.spawn(continuous::run(payments.clone(), emitter, duration, shutdown.clone()));
    }
    tracing::info!(service = %args.name, listen = %args.listen, "a payments service is ready");
    let ended = shutdown::join_all(tasks, &shutdown).await;
    tokio::join!(db::close(&payments.pool), traces.finish());
    ended
}

async fn connect(args: &PaymentsArgs) -> anyhow::Result<Payments> {
    let patience = args.start.connect_timeout;
    let redis = args.stream.url()?;
    let link = Arc::new(Link::new(&redis)?);
    link.wait_until_ready(&redis, patience).await?;
    let pool = db::connect(&args.database.database_url, (DATABASE, DatabaseArgs::OPTION), patience)
        .await?;
    let may_change = args.database.create_schema_on_startup;
    db::prepare_schema(&pool, &db::PAYMENTS_SCHEMA, DATABASE, may_change).await?;
    Ok(Payments {
        service: args.name.clone(),
        pool,
        producer: Producer::new(link, args.stream.stream_name.clone()),
        default_tick: args.tick.heartbeat_interval_seconds,
        owner: Uuid::new_v4(),
        readiness: Readiness::default(),
        metrics: Arc::default(),
        tracer: None,
    })
}
