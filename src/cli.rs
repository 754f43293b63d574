//! The command line: one command per role, and those of an operator.

pub mod arguments;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{
    DatabaseArgs, DatabaseUrl, PageUrl, StartArgs, TickArgs, positive_duration, secret,
};
use crate::dead_letters::DeadLettersArgs;
use crate::explain::{self, ExplainArgs};
use crate::forget_group::ForgetGroupArgs;
use crate::monitor::adopt::{self, FirstLedger};
use crate::monitor::{self, MonitorArgs};
use crate::payments::{self, PaymentsArgs};
use crate::relay::RelayArgs;
use crate::standalone::StandaloneArgs;
use crate::telemetry::LogArgs;
use crate::traces::TraceArgs;
use crate::{clock, db, http};

/// Longest answer of a health check that is shown, in characters.
const SHOWN_CHARS: usize = 300;

/// A distributed heartbeat monitor with two ledgers: what each service did, and what arrived.
///
/// Services under watch (`payments`) write heartbeats to a Redis stream; a `relay` carries them to
/// the `monitor`, which keeps windows in MySQL or MariaDB and raises an alert for each that lacks a
/// heartbeat. To see all of it at work on this machine: `heartbeat standalone --demo`.
///
/// Every option of a role is also an environment variable, shown in its command's help.
#[derive(Debug, Parser)]
#[command(name = "heartbeat", version, max_term_width = 100)]
pub struct Cli {
    /// What to run.
    #[command(subcommand)]
    pub command: Command,

    /// Logs.
    #[command(flatten, next_help_heading = "Logs")]
    pub log: LogArgs,

    /// Traces.
    #[command(flatten, next_help_heading = "Traces")]
    pub traces: TraceArgs,
}

/// What to run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything on this machine, with a private Redis and a private database
    Standalone(StandaloneArgs),
    /// Run a service under watch: it opens windows, sends heartbeats and audits what it did
    Payments(PaymentsArgs),
    /// Carry heartbeats from the Redis stream to the monitor
    Relay(RelayArgs),
    /// Take heartbeats in, keep windows, raise alerts, serve the API
    Monitor(MonitorArgs),
    /// Say why heartbeats are missing; exits 0 if all are explained, 1 if one is lost, 2 if nobody
    /// can tell, 3 if none is lost and nobody can follow some
    #[command(after_long_help = explain::EXIT_CODES)]
    Explain(ExplainArgs),
    /// List, show, replay or drop the messages that the monitor refused
    DeadLetters(DeadLettersArgs),
    /// End a consumer group that nobody needs any more
    ForgetGroup(ForgetGroupArgs),
    /// Bring the schema of a database up to date
    Migrate(MigrateArgs),
    /// Ask a running role whether it can do its work; exits 0 if it can, else 1 and says why
    Healthcheck(HealthcheckArgs),
}

impl Command {
    /// What the executable exits with when the command fails. One that judges says that it could
    /// not.
    #[must_use]
    pub fn failure(&self) -> ExitCode {
        match self {
            Self::Explain(_) => ExitCode::from(explain::COULD_NOT_TELL),
            _ => ExitCode::FAILURE,
        }
    }
}

/// Which of the two schemas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Schema {
    /// The database that payments services share.
    Payments,
    /// The database of the monitors.
    Monitor,
}

/// Options of `migrate`.
#[derive(Args, Clone, Debug)]
pub struct MigrateArgs {
    /// Whose schema the database holds
    #[arg(value_enum)]
    pub schema: Schema,

    /// MySQL or MariaDB database, as `mysql://USER:PASSWORD@HOST:PORT/NAME`
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL",
          value_parser = secret::<DatabaseUrl>())]
    pub database_url: DatabaseUrl,

    /// Database of the first system's monitor, as `mysql://USER:PASSWORD@HOST:PORT/NAME`; its ledger is
    /// taken over into the monitor database, and it is only read [default: none]
    #[arg(long, env = "ADOPT_FROM", hide_env_values = true, value_name = "URL",
          value_parser = secret::<DatabaseUrl>())]
    pub adopt_from: Option<DatabaseUrl>,

    /// Tick of the windows that are taken over.
    #[command(flatten)]
    pub tick: TickArgs,

    /// Patience at start.
    #[command(flatten)]
    pub start: StartArgs,
}

/// Options of `healthcheck`.
#[derive(Args, Clone, Debug)]
pub struct HealthcheckArgs {
    /// What to ask: /ready (can it do its work) or /health (is it alive) of a role; the default is
    /// the monitor on this host
    #[arg(env = "HEALTHCHECK_URL", hide_env_values = true, value_name = "URL",
          default_value = "http://127.0.0.1:5001/ready", value_parser = secret::<PageUrl>())]
    pub url: PageUrl,

    /// How long the role may take to answer
    #[arg(long, env = "HEALTHCHECK_TIMEOUT", default_value = "3s", value_name = "DURATION",
          value_parser = positive_duration)]
    pub timeout: Duration,
}

/// Runs `migrate`.
///
/// # Errors
/// A sentence for a person: the database cannot be reached or changed, or there is no ledger to take
/// over.
pub async fn migrate(args: MigrateArgs) -> anyhow::Result<()> {
    if args.schema == Schema::Payments && args.adopt_from.is_some() {
        bail!(
            "{} is for the monitor database: `heartbeat migrate payments` takes over the tables of \
             the first system's senders where they are, in the database of {}",
            adopt::OPTION,
            DatabaseArgs::OPTION
        );
    }
    let (schema, what) = match args.schema {
        Schema::Payments => (&db::PAYMENTS_SCHEMA, payments::DATABASE),
        Schema::Monitor => (&db::MONITOR_SCHEMA, monitor::DATABASE),
    };
    let pool =
        db::connect(&args.database_url, (what, DatabaseArgs::OPTION), args.start.connect_timeout)
            .await?;
    let first = match &args.adopt_from {
        Some(url) => Some(FirstLedger::open(url, &pool, args.start.connect_timeout).await?),
        None => None,
    };
    db::migrate(&pool, schema, what).await?;
    println!("the schema of the {what} is up to date");
    if let Some(first) = first {
        let tick = args.tick.heartbeat_interval_seconds;
        println!("{}", adopt::take_over(&first, &pool, tick, clock::now()).await?);
    }
    Ok(())
}

/// Runs `healthcheck`.
///
/// # Errors
/// Why the role cannot do its work, as it says itself.
pub async fn healthcheck(args: HealthcheckArgs) -> anyhow::Result<()> {
    let HealthcheckArgs { url, timeout } = args;
    let client = http::client(timeout).context("preparing HTTP")?;
    let response = match client.get(url.url().clone()).send().await {
        Ok(response) => response,
        Err(error) if error.is_timeout() => bail!("{url} did not answer within {timeout:?}"),
        Err(error) => bail!("{url} cannot be reached: {}", http::innermost(&error)),
    };
    let status = response.status();
    let body: String =
        response.text().await.unwrap_or_default().chars().take(SHOWN_CHARS).collect();
    if !status.is_success() {
        bail!("{url} answered {status}: {body}");
    }
    println!("{url} answered {status}: {body}");
    Ok(())
}
