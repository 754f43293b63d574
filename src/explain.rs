//! The operator's command that explains windows: asks a monitor for the verdict of each slot,
//! prints what is unusual, and says by its exit code whether anything is left unexplained.
//!
//! [`ask`] speaks with the monitor, [`account`] adds up, [`view`] prints. The verdicts themselves
//! are the monitor's, which alone has both ledgers.

pub mod account;
pub mod ask;
pub mod view;

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::Value;
use uuid::Uuid;

use self::account::Account;
use self::ask::{Explained, Monitor};
use crate::config::{MonitorUrl, positive_duration};
use crate::verdict::Verdict;
use crate::wire::ServiceName;
use crate::{clock, terminal};

/// Nobody can say whether everything is explained: what the exit code is then.
pub const COULD_NOT_TELL: u8 = 2;
/// Windows that are asked for at a time.
const AT_A_TIME: usize = 4;

/// Options of `explain`.
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// UUID of the window to explain [default: all that began within --since]
    #[arg(value_name = "WINDOW", conflicts_with_all = ["service", "since"])]
    pub window: Option<Uuid>,

    /// Explain windows of this service only [default: all]
    #[arg(long, value_name = "NAME")]
    pub service: Option<ServiceName>,

    /// Explain windows that began so long ago at the most
    #[arg(long, default_value = "1h", value_name = "DURATION", value_parser = positive_duration)]
    pub since: Duration,

    /// Show only slots with these verdicts, such as `lost,late`, and windows that have any
    /// [default: all]
    #[arg(long, value_name = "VERDICTS", value_delimiter = ',')]
    pub verdict: Vec<Verdict>,

    /// Print JSON, one window per line as the monitor's API shows it
    #[arg(long)]
    pub json: bool,

    /// Monitor to ask
    #[arg(long, env = "MONITOR_URL", default_value = "http://127.0.0.1:5001", value_name = "URL")]
    pub monitor_url: MonitorUrl,
}

/// Runs `explain`. Answers the exit code: 0 if every slot is explained, 1 if one is lost, and
/// [`COULD_NOT_TELL`] if some could not be judged.
///
/// # Errors
/// A sentence for a person: the monitor cannot be asked, or does not know the window.
pub async fn run(args: ExplainArgs) -> anyhow::Result<ExitCode> {
    let printer = Printer {
        only: args.verdict,
        json: args.json,
        style: view::Style { in_colour: !args.json && terminal::takes_colours() },
    };
    let monitor = Monitor::new(args.monitor_url)?;
    let mut account = Account::default();
    if let Some(uuid) = args.window {
        printer.window(&monitor.window(uuid).await?, &mut account)?;
    } else {
        let from = clock::now().minus(args.since);
        let mut cursor = None;
        loop {
            let page = monitor.page(args.service.as_ref(), from, cursor.as_deref()).await?;
            let uuids = stream::iter(page.uuids());
            let mut windows = uuids.map(|uuid| monitor.window(uuid)).buffered(AT_A_TIME);
            while let Some(window) = windows.try_next().await? {
                printer.window(&window, &mut account)?;
            }
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
    }
    printer.end(&account)?;
    Ok(account.exit_code())
}

/// Prints windows as they come.
struct Printer {
    /// Verdicts to show; all if there are none.
    only: Vec<Verdict>,
    json: bool,
    style: view::Style,
}

impl Printer {
    fn shows(&self, verdict: Verdict) -> bool {
        self.only.is_empty() || self.only.contains(&verdict)
    }

    /// Counts a window, and prints it unless none of its slots is to be shown.
    fn window(&self, window: &Explained, account: &mut Account) -> anyhow::Result<()> {
        account.add(&window.facts);
        if !window.facts.slots.iter().any(|slot| self.shows(slot.verdict)) {
            return Ok(());
        }
        if !self.json {
            return terminal::print(
                &self.style.window(&window.facts, |verdict| self.shows(verdict)),
            );
        }
        let mut json = window.json.clone();
        if let Some(Value::Array(slots)) = json.get_mut("slots") {
            let mut shown = window.facts.slots.iter().map(|slot| self.shows(slot.verdict));
            slots.retain(|_| shown.next().unwrap_or(true));
        }
        terminal::print(&format!("{json}\n"))
    }

    fn end(&self, account: &Account) -> anyhow::Result<()> {
        if account.windows == 0 {
            eprintln!("no window of that service, or none at all, began within that time");
            return Ok(());
        }
        if self.json { Ok(()) } else { terminal::print(&self.style.totals(account)) }
    }
}
