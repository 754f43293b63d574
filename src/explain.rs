//! The operator's command that explains windows: asks a monitor for the verdict of each slot,
//! prints what is unusual, and says by its exit code whether anything is left unexplained.
//!
//! [`ask`] speaks with the monitor, [`gather`] goes through windows, [`account`] adds up, [`view`]
//! prints, [`conclusion`] says what it comes to. [`watch`] looks again and again, [`repair`] sends
//! heartbeats again. The verdicts themselves are the monitor's, which alone has both ledgers.

pub mod account;
pub mod ask;
pub mod conclusion;
pub mod gather;
pub mod repair;
mod repository;
pub mod view;
pub mod watch;

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use uuid::Uuid;

use self::account::Account;
use self::ask::{Explained, Monitor};
use self::repair::RepairArgs;
use crate::config::{MonitorUrl, positive_duration, secret};
use crate::terminal;
use crate::traces::Sampling;
use crate::verdict::Verdict;
use crate::wire::ServiceName;

/// Nobody can say whether everything is explained: what the exit code is then.
pub const COULD_NOT_TELL: u8 = 2;
/// Nothing is lost, and nobody can follow some slots: what the exit code is then.
pub const NOBODY_CAN_FOLLOW: u8 = 3;
/// What the exit codes mean, as the long help says it.
pub const EXIT_CODES: &str = "\
Exit codes, the first that fits of 1, 2, 3 and 0, also after --watch and --repair:
  0  nothing is missing, or every missing heartbeat is explained
  1  a slot is lost
  2  nobody can tell: a slot is unknown, or its events are no longer kept, or an audit cannot be
     read, or the command failed
  3  nothing is lost, and nobody can follow some slots: they are unconfirmed";
/// What is said when there is no window to explain.
const NONE: &str = "no window of that service, or none at all, began within that time";
/// Shortest pause between two looks: each asks the monitor for every window.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// Options of `explain`.
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// Which windows.
    #[command(flatten)]
    pub which: WhichArgs,

    /// Show only slots with these verdicts, such as `lost,late`, and windows that have any
    /// [default: all]
    #[arg(long, value_name = "VERDICTS", value_delimiter = ',')]
    pub verdict: Vec<Verdict>,

    /// Print JSON, one window per line as the monitor's API shows it
    #[arg(long)]
    pub json: bool,

    /// Monitor to ask
    #[arg(long, env = "MONITOR_URL", hide_env_values = true, value_name = "URL",
          default_value = "http://127.0.0.1:5001", value_parser = secret::<MonitorUrl>())]
    pub monitor_url: MonitorUrl,

    /// Look again and again until interrupted: in place on a terminal, else one picture after the
    /// other
    #[arg(long, conflicts_with_all = ["json", "repair"])]
    pub watch: bool,

    /// Pause between two looks of --watch
    #[arg(long, default_value = "5s", value_name = "DURATION", value_parser = interval)]
    pub interval: Duration,

    /// Sending heartbeats again.
    #[command(flatten, next_help_heading = "Repair")]
    pub repair: RepairArgs,
}

/// Which windows to explain.
#[derive(Args, Clone, Debug)]
pub struct WhichArgs {
    /// UUID of the window to explain [default: all that began within --since]
    #[arg(value_name = "WINDOW", conflicts_with_all = ["service", "since"])]
    pub window: Option<Uuid>,

    /// Explain windows of this service only [default: all]
    #[arg(long, value_name = "NAME")]
    pub service: Option<ServiceName>,

    /// Explain windows that began so long ago at the most
    #[arg(long, default_value = "1h", value_name = "DURATION", value_parser = positive_duration)]
    pub since: Duration,
}

fn interval(text: &str) -> Result<Duration, String> {
    positive_duration(text).and_then(|interval| {
        if interval < SHORTEST_INTERVAL {
            return Err(format!("must be at least {} ms", SHORTEST_INTERVAL.as_millis()));
        }
        Ok(interval)
    })
}

/// Runs `explain`. Answers the exit code: 0 if every slot is explained, 1 if one is lost,
/// [`COULD_NOT_TELL`] if some could not be judged, and else [`NOBODY_CAN_FOLLOW`] if some are
/// unconfirmed. What is sent again says by `sampling` whether it is traced.
///
/// # Errors
/// A sentence for a person: the monitor cannot be asked, or does not know the window.
pub async fn run(args: ExplainArgs, sampling: Sampling) -> anyhow::Result<ExitCode> {
    let monitor = Monitor::new(args.monitor_url.clone())?;
    if args.repair.repair {
        return repair::run(&monitor, &args.which, &args.repair, sampling).await;
    }
    let printer = Printer {
        only: args.verdict,
        json: args.json,
        style: view::Style { in_colour: !args.json && terminal::takes_colours() },
    };
    if args.watch {
        return watch::run(&monitor, &args.which, &printer, args.interval).await;
    }
    let mut account = Account::default();
    account.is_partial = gather::each(&monitor, &args.which, |window| {
        account.add(&window.facts);
        printer.window(window).map_or(Ok(()), |text| terminal::print(&text))
    })
    .await?;
    if account.windows == 0 {
        eprintln!("{NONE}");
    }
    if !args.json && (account.windows > 0 || account.is_partial) {
        terminal::print(&printer.style.totals(&account))?;
    }
    Ok(account.exit_code())
}

/// Puts windows into words, or into JSON.
#[derive(Clone, Debug)]
pub struct Printer {
    /// Verdicts to show; all if there are none.
    only: Vec<Verdict>,
    json: bool,
    style: view::Style,
}

impl Printer {
    fn shows(&self, verdict: Verdict) -> bool {
        self.only.is_empty() || self.only.contains(&verdict)
    }

    /// A window; none if none of its slots is to be shown.
    fn window(&self, window: &Explained) -> Option<String> {
        let is_pruned = !window.facts.events_kept && self.only.is_empty();
        if !is_pruned && !window.facts.slots.iter().any(|slot| self.shows(slot.verdict)) {
            return None;
        }
        if !self.json {
            return Some(self.style.window(&window.facts, |verdict| self.shows(verdict)));
        }
        let mut json = window.json.clone();
        if let Some(Value::Array(slots)) = json.get_mut("slots") {
            let mut shown = window.facts.slots.iter().map(|slot| self.shows(slot.verdict));
            slots.retain(|_| shown.next().unwrap_or(true));
        }
        Some(format!("{json}\n"))
    }
}
