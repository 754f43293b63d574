//! Everything on one machine: private servers, three payments services, a relay and a monitor in
//! one process. The one place that knows all roles.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use clap::builder::BoolishValueParser;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{
    DatabaseArgs, DatabaseUrl, MonitorUrl, RedisUrl, StartArgs, StreamArgs, TickArgs,
    positive_duration,
};
use crate::http;
use crate::local::{Options, Servers};
use crate::monitor::retention::RetentionArgs;
use crate::monitor::{self, MonitorArgs};
use crate::payments::{self, PaymentsArgs};
use crate::relay::{self, RelayArgs};
use crate::shutdown;
use crate::traces::TraceArgs;
use crate::wire::Tick;

mod report;

/// Names of the two databases.
const DATABASES: [&str; 2] = ["payments", "monitor"];
/// What `--demo` opens: short windows with a quick tick.
const DEMO: (Duration, Duration) = (Duration::from_secs(40), Duration::from_secs(1));
/// How long the relay may go on after the services have stopped, to carry what they sent last.
const DRAIN: Duration = Duration::from_millis(500);

/// Options of the role.
#[derive(Args, Clone, Debug)]
pub struct StandaloneArgs {
    /// Directory that holds the data of the private servers; made when missing
    #[arg(long, env = "DATA_DIR", default_value = "heartbeat-data", value_name = "DIR")]
    pub data_dir: PathBuf,

    /// Database server to start [default: `mysqld` or `mariadbd`, whichever is found]
    #[arg(long, env = "MYSQLD", value_name = "PROGRAM")]
    pub mysqld: Option<PathBuf>,

    /// Redis to start [default: `redis-server` or `valkey-server`, whichever is found]
    #[arg(long, env = "REDIS_SERVER", value_name = "PROGRAM")]
    pub redis_server: Option<PathBuf>,

    /// Open a short window on each service at once, and go on opening them
    #[arg(long, env = "DEMO", value_parser = BoolishValueParser::new())]
    pub demo: bool,

    /// Addresses of the payments services, which are named payments-a, payments-b and so on
    #[arg(long, env = "PAYMENTS_LISTEN", value_name = "ADDRESSES", value_delimiter = ',',
          default_value = "127.0.0.1:5000,127.0.0.1:5010,127.0.0.1:5020", num_args = 1..=26)]
    pub payments_listen: Vec<SocketAddr>,

    /// Address of the monitor
    #[arg(long, env = "MONITOR_LISTEN", default_value = "127.0.0.1:5001", value_name = "ADDRESS")]
    pub monitor_listen: SocketAddr,

    /// Address of the relay's health and readiness
    #[arg(long, env = "RELAY_LISTEN", default_value = "127.0.0.1:5003", value_name = "ADDRESS")]
    pub relay_listen: SocketAddr,

    /// Longest time between two looks for windows to close
    #[arg(long, env = "SWEEP_INTERVAL", default_value = "5s", value_name = "DURATION",
          value_parser = positive_duration)]
    pub sweep_interval: Duration,

    /// How long the monitor keeps what.
    #[command(flatten)]
    pub retention: RetentionArgs,
}

/// Runs everything until told to stop, then prints what came of the latest windows.
///
/// # Errors
/// When it cannot start, with a sentence for a person, or when a part of it dies.
pub async fn run(
    args: StandaloneArgs,
    traces: TraceArgs,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    args.retention.validate()?;
    let sockets = Sockets::bind(&args).await?;
    tracing::info!(data_dir = %args.data_dir.display(), "starting the private servers");
    let options = Options {
        mysqld: args.mysqld.clone(),
        redis_server: args.redis_server.clone(),
        databases: DATABASES.map(str::to_owned).to_vec(),
        ..Options::default()
    };
    let mut servers = tokio::select! {
        started = Servers::start(&args.data_dir, &options) => started?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let outcome = run_roles((&args, &traces), sockets, &mut servers, &shutdown).await;
    let table = report::latest_windows(&servers).await;
    let stopped = servers.stop().await;
    match table {
        Ok(table) => {
            std::io::stdout().write_all(format!("{table}\n").as_bytes()).unwrap_or_default();
        }
        Err(error) => tracing::warn!("no summary: {error:#}"),
    }
    outcome.and(stopped)
}

/// Every socket, opened before anything starts, so that a port in use is the first thing said.
struct Sockets {
    payments: Vec<(SocketAddr, String, TcpListener)>,
    relay: TcpListener,
    monitor: TcpListener,
}

impl Sockets {
    async fn bind(args: &StandaloneArgs) -> anyhow::Result<Self> {
        let mut payments = Vec::with_capacity(args.payments_listen.len());
        for (letter, address) in ('a'..='z').zip(&args.payments_listen) {
            let name = format!("payments-{letter}");
            let listener = http::bind(*address, &name).await?;
            payments.push((*address, name, listener));
        }
        Ok(Self {
            payments,
            relay: http::bind(args.relay_listen, "the relay").await?,
            monitor: http::bind(args.monitor_listen, "the monitor").await?,
        })
    }
}

/// Runs the roles until one dies or all are told to stop: the services first, so that the relay
/// can carry what they sent last, and the monitor after the relay.
async fn run_roles(
    (args, traces): (&StandaloneArgs, &TraceArgs),
    sockets: Sockets,
    servers: &mut Servers,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let stages = [CancellationToken::new(), CancellationToken::new(), CancellationToken::new()];
    let [services, relay, monitor] = &stages;
    let mut roles = JoinSet::new();
    let monitor_args = monitor_args(args, servers)?;
    roles.spawn(monitor::serve(monitor_args, traces.clone(), sockets.monitor, monitor.clone()));
    let relay_args = relay_args(args, servers)?;
    roles.spawn(relay::serve(relay_args, traces.clone(), sockets.relay, relay.clone()));
    for (address, name, listener) in sockets.payments {
        let payments_args = payments_args(args, servers, address, &name)?;
        roles.spawn(payments::serve(payments_args, traces.clone(), listener, services.clone()));
    }
    announce(args);

    let died = tokio::select! {
        () = shutdown.cancelled() => None,
        Some(ended) = roles.join_next() => Some(ended.context("a role panicked").flatten()),
        error = servers.ended() => Some(Err(error)),
    };
    for stage in &stages {
        stage.cancel();
        tokio::time::sleep(DRAIN).await;
    }
    let rest = shutdown::within_deadline(shutdown::join_all(roles, shutdown), shutdown.clone());
    shutdown.cancel();
    let rest = rest.await;
    match died {
        Some(Ok(())) => rest.and(Err(anyhow::anyhow!("a role ended although nobody told it to"))),
        Some(error) => error,
        None => rest,
    }
}

fn announce(args: &StandaloneArgs) {
    let services: Vec<String> =
        args.payments_listen.iter().map(|address| format!("http://{address}")).collect();
    println!("heartbeat runs on this machine; Ctrl-C stops it.");
    println!("  monitor   http://{}/api/monitor/windows", args.monitor_listen);
    println!("  payments  {}", services.join("  "));
    println!("  data      {}", args.data_dir.display());
    if args.demo {
        println!("Each service opens a window of {} s now, and then the next.", DEMO.0.as_secs());
    } else if let Some(first) = services.first() {
        println!("Open a window:  curl -X POST {first}/report-windows");
    }
}

fn database(servers: &Servers, name: &str) -> anyhow::Result<DatabaseArgs> {
    let url: DatabaseUrl = servers.database.url(name).parse().map_err(anyhow::Error::msg)?;
    Ok(DatabaseArgs { database_url: url, create_schema_on_startup: true })
}

fn stream(servers: &Servers) -> anyhow::Result<StreamArgs> {
    let url: RedisUrl = servers.redis.url().parse().map_err(anyhow::Error::msg)?;
    Ok(StreamArgs {
        redis_url: Some(url),
        redis_reports_url: None,
        celery_broker_url: None,
        stream_name: "reports".parse().map_err(anyhow::Error::msg)?,
    })
}

fn start() -> StartArgs {
    StartArgs { connect_timeout: Duration::from_secs(10) }
}

fn tick(args: &StandaloneArgs) -> anyhow::Result<TickArgs> {
    let tick = if args.demo { Tick::from_seconds(DEMO.1.as_secs_f64())? } else { Tick::DEFAULT };
    Ok(TickArgs { heartbeat_interval_seconds: tick })
}

fn payments_args(
    args: &StandaloneArgs,
    servers: &Servers,
    listen: SocketAddr,
    name: &str,
) -> anyhow::Result<PaymentsArgs> {
    Ok(PaymentsArgs {
        name: name.parse()?,
        listen,
        continuous: args.demo,
        window_duration: args.demo.then_some(DEMO.0),
        database: database(servers, DATABASES[0])?,
        stream: stream(servers)?,
        tick: tick(args)?,
        start: start(),
    })
}

fn relay_args(args: &StandaloneArgs, servers: &Servers) -> anyhow::Result<RelayArgs> {
    let monitor: MonitorUrl =
        format!("http://{}", args.monitor_listen).parse().map_err(anyhow::Error::msg)?;
    Ok(RelayArgs {
        monitor_url: monitor,
        stream: stream(servers)?,
        consumer_group: "monitor-queue-group".to_owned(),
        consumer_name: Some("standalone".to_owned()),
        max_retries: 12,
        lease: Duration::from_secs(12),
        http_timeout: Duration::from_secs(3),
        batch_size: 256,
        concurrency: 4,
        listen: args.relay_listen,
        start: start(),
    })
}

fn monitor_args(args: &StandaloneArgs, servers: &Servers) -> anyhow::Result<MonitorArgs> {
    Ok(MonitorArgs {
        listen: args.monitor_listen,
        sweep_interval: args.sweep_interval,
        grace: Duration::from_secs(2),
        replay_grace: Duration::from_secs(30),
        max_hold: Duration::from_mins(10),
        retention: args.retention,
        admin_token: None,
        audit_database_url: vec![database(servers, DATABASES[0])?.database_url],
        database: database(servers, DATABASES[1])?,
        tick: TickArgs { heartbeat_interval_seconds: Tick::DEFAULT },
        start: start(),
    })
}
