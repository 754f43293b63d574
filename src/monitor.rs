//! The monitor: takes heartbeats in, keeps windows and what is known of their slots, closes
//! windows whose time is over, and serves what it knows.
//!
//! Data flows one way: [`api`] reads a request, [`ingest`], [`pipeline`] or [`sweep`] decides,
//! `repository` stores. [`window`], [`watermark`] and [`closing`] hold the rules, which know neither
//! database nor clock. [`audits`] reads what the senders wrote, `explain` puts both ledgers
//! together, and `unheard` finds windows that are in one of them only. [`counting`] keeps totals of
//! closed windows up to date; [`prune`] deletes what [`retention`] keeps no longer; [`adopt`] takes over
//! what the first system's monitor kept; [`metrics`] counts, `trace` records. Any number of monitors may
//! share one database: the primary key of an event decides between a heartbeat and the verdict that it
//! is missing, and a sweep skips windows that another monitor is closing.

pub mod adopt;
pub mod api;
pub mod audits;
pub mod batcher;
pub mod closing;
pub mod counting;
mod event_list;
mod explain;
pub mod ingest;
pub mod latency;
pub mod lookups;
pub mod metrics;
pub mod pipeline;
pub mod prune;
pub mod register;
mod repository;
pub mod retention;
pub mod sweep;
pub mod totals;
mod trace;
mod unheard;
pub mod watermark;
pub mod window;
pub mod window_cache;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use sqlx::pool::PoolConnection;
use sqlx::{MySql, MySqlPool};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::api::Places;
use self::audits::Audits;
use self::closing::ClosingRules;
use self::ingest::Arrivals;
use self::lookups::Lookups;
use self::metrics::Metrics;
use self::prune::LookedTo;
use self::repository::Filter;
use self::retention::RetentionArgs;
use self::window::StoredWindow;
use self::window_cache::WindowCache;
use crate::config::{
    DatabaseArgs, DatabaseUrl, StartArgs, TickArgs, duration, positive_duration, secret,
};
use crate::http::{AdminToken, Readiness};
use crate::traces::{TraceArgs, Tracer, Traces};
use crate::wire::{Tick, Timestamp};
use crate::{db, http, shutdown};

/// What a person calls this role's database.
pub const DATABASE: &str = "monitor database";

/// Options of the role.
#[derive(Args, Clone, Debug)]
pub struct MonitorArgs {
    /// Address to serve the API on
    #[arg(long, env = "LISTEN", default_value = "0.0.0.0:5001", value_name = "ADDRESS")]
    pub listen: SocketAddr,

    /// Longest time between two looks for windows to close
    #[arg(long, env = "SWEEP_INTERVAL", default_value = "5s", value_name = "DURATION",
          value_parser = positive_duration)]
    pub sweep_interval: Duration,

    /// How long after the end of its last slot a window stays open
    #[arg(long, env = "GRACE", default_value = "2s", value_name = "DURATION",
          value_parser = duration)]
    pub grace: Duration,

    /// How long the watermark waits for senders after Redis was lost or could not be reached
    #[arg(long, env = "REPLAY_GRACE", default_value = "30s", value_name = "DURATION",
          value_parser = duration)]
    pub replay_grace: Duration,

    /// How long a window may wait for heartbeats that may be on their way, while a monitor runs
    #[arg(long, env = "MAX_HOLD", default_value = "10m", value_name = "DURATION",
          value_parser = positive_duration)]
    pub max_hold: Duration,

    /// Secret, of at least 16 characters, that allows what destroys or sends again [default: nobody
    /// may]
    #[arg(long, env = "ADMIN_TOKEN", hide_env_values = true, value_name = "TOKEN",
          value_parser = secret::<AdminToken>())]
    pub admin_token: Option<AdminToken>,

    /// Payments database that says what was sent, as `mysql://USER:PASSWORD@HOST:PORT/NAME`; it is
    /// only read; may be given several times, or with commas between [default: none]
    #[arg(long, env = "AUDIT_DATABASE_URL", hide_env_values = true, value_name = "URL",
          value_delimiter = ',', value_parser = secret::<DatabaseUrl>())]
    pub audit_database_url: Vec<DatabaseUrl>,

    /// How long what is kept.
    #[command(flatten)]
    pub retention: RetentionArgs,

    /// The monitor database.
    #[command(flatten)]
    pub database: DatabaseArgs,

    /// Tick of messages that name none.
    #[command(flatten)]
    pub tick: TickArgs,

    /// Patience at start.
    #[command(flatten)]
    pub start: StartArgs,
}

/// What every part of a running monitor works with.
#[derive(Clone, Debug)]
pub struct Monitor {
    /// The monitor database.
    pub pool: MySqlPool,
    /// What the senders wrote.
    pub audits: Audits,
    /// Tick of messages that name none.
    pub default_tick: Tick,
    /// How long after the end of its last slot a window stays open.
    pub grace: Duration,
    /// How long the watermark waits for senders after Redis was lost or could not be reached.
    pub replay_grace: Duration,
    /// How long a window may be held, while a monitor runs.
    pub max_hold: Duration,
    /// How long what is kept.
    pub retention: RetentionArgs,
    /// What allows to destroy and to send again; without it nobody may.
    pub admin_token: Option<AdminToken>,
    /// Windows that were met lately.
    pub window_cache: Arc<WindowCache>,
    /// Heartbeats that wait to be written.
    pub arrivals: Arc<Arrivals>,
    /// Those who wait to be told of a window.
    pub lookups: Arc<Lookups>,
    /// Lists that may be read at a time.
    pub places: Arc<Places>,
    /// How far pruning has looked through old windows.
    pub pruned_to: Arc<LookedTo>,
    /// Wakes the sweep when the watermark advances.
    pub wake_sweep: Arc<Notify>,
    /// What keeps the monitor from its work.
    pub readiness: Readiness,
    /// What it counts and measures.
    pub metrics: Arc<Metrics>,
    /// What records traces, unless they are off.
    pub tracer: Option<Tracer>,
}

impl Monitor {
    /// A connection for several questions, because each time that the pool lends one it asks the
    /// server twice more: before, to roll back, and afterwards, whether it is alive.
    ///
    /// # Errors
    /// When none is free or can be opened in time.
    async fn connection(&self) -> Result<PoolConnection<MySql>, db::Error> {
        Ok(self.pool.acquire().await?)
    }

    /// What decides now whether windows may close.
    ///
    /// # Errors
    /// When the database does not do its part.
    pub async fn closing_rules(&self, now: Timestamp) -> Result<ClosingRules, db::Error> {
        let reading = async {
            let mut connection = self.connection().await?;
            repository::low_watermark(&mut connection).await
        };
        let (watermark, running_us) = db::patiently(reading).await?;
        let (grace, max_hold) = (self.grace, self.max_hold);
        Ok(ClosingRules { now, watermark, running_us, grace, max_hold })
    }
}

/// Runs the role until it is told to stop.
///
/// # Errors
/// When it cannot start, with a sentence for a person, or when a part of it dies.
pub async fn run(
    args: MonitorArgs,
    traces: TraceArgs,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    args.retention.validate()?;
    let listener = http::bind(args.listen, "the monitor").await?;
    serve(args, traces, listener, shutdown).await
}

/// The windows that start last, latest first, with their counts as of now; fewer than `limit` where open
/// ones have very many slots.
///
/// # Errors
/// When the database does not do its part.
pub async fn latest_windows(pool: &MySqlPool, limit: u32) -> Result<Vec<StoredWindow>, db::Error> {
    let mut connection = pool.acquire().await?;
    Ok(repository::list_windows(&mut connection, &Filter::default(), limit).await?.0)
}

async fn connect(args: &MonitorArgs) -> anyhow::Result<MySqlPool> {
    let DatabaseArgs { database_url, create_schema_on_startup } = &args.database;
    let pool =
        db::connect(database_url, (DATABASE, DatabaseArgs::OPTION), args.start.connect_timeout)
            .await?;
    db::prepare_schema(&pool, &db::MONITOR_SCHEMA, DATABASE, *create_schema_on_startup).await?;
    Ok(pool)
}

/// Runs the role on a socket that is already open.
///
/// # Errors
/// As for [`run`].
pub async fn serve(
    args: MonitorArgs,
    traces: TraceArgs,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    tracing::info!(?args, "the monitor starts");
    let pool = tokio::select! {
        connected = connect(&args) => connected?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let metrics = Arc::<Metrics>::default();
    let name = http::host_and_port(args.listen)?;
    let traces = Traces::start(&traces, ("monitor", &name), &metrics.registry)?;
    let monitor = Monitor {
        pool,
        audits: Audits::new(&args.audit_database_url),
        default_tick: args.tick.heartbeat_interval_seconds,
        grace: args.grace,
        replay_grace: args.replay_grace,
        max_hold: args.max_hold,
        retention: args.retention,
        admin_token: args.admin_token,
        window_cache: Arc::default(),
        arrivals: Arc::default(),
        lookups: Arc::default(),
        places: Arc::default(),
        pruned_to: Arc::default(),
        wake_sweep: Arc::default(),
        readiness: Readiness::default(),
        metrics,
        tracer: traces.tracer(),
    };
    let pool = monitor.pool.clone();
    monitor.metrics.registry.pool("monitor", move || db::connections(&pool));

    let mut tasks = JoinSet::new();
    let router = api::router(monitor.clone());
    tasks.spawn(http::serve(listener, router, api::MAX_BODY_BYTES, shutdown.clone()));
    tasks.spawn(pipeline::run(monitor.clone(), shutdown.clone()));
    tasks.spawn(counting::run(monitor.clone(), shutdown.clone()));
    tasks.spawn(prune::run(monitor.clone(), shutdown.clone()));
    tasks.spawn(sweep::run(monitor.clone(), args.sweep_interval, shutdown.clone()));
    tracing::info!(listen = %args.listen, "the monitor is ready");
    let ended = shutdown::join_all(tasks, &shutdown).await;
    tokio::join!(db::close(&monitor.pool), monitor.audits.close(), traces.finish());
    ended
}
