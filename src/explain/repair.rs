//! Sends lost heartbeats again, as their sender would: from the audit to the stream, after which the
//! audit names the new entry.
//!
//! Nothing is sent twice that need not be. A heartbeat whose audit names a new entry is in transit
//! until the watermark passes that one, so that nobody calls it lost; and it is sent only while its
//! row, which is held meanwhile, still names the very entry that was found lost ([`resend`]). If
//! this breaks off between the two, the next run sends it once more, and the monitor drops the copy.
//!
//! A window of which the monitor has never heard is not announced again. Its heartbeats make it
//! known, and hold it open until they have arrived; announced, it would be closed, and alerted, at
//! once.

pub mod resend;

use std::collections::HashSet;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::ProgressBar;
use sqlx::MySqlPool;
use uuid::Uuid;

use self::resend::Outcome;
use super::account::{self, Account};
use super::ask::Monitor;
use super::{NONE, Printer, WhichArgs, gather, repository, view};
use crate::config::{DatabaseUrl, StartArgs, StreamArgs, secret};
use crate::db;
use crate::stream::{Link, Producer, StreamName};
use crate::terminal::{self, plain};
use crate::traces::Sampling;
use crate::verdict::Verdict;

/// What a person calls the senders' database.
const DATABASE: &str = "payments database";
/// Where its address is given.
const OPTION: &str = "--payments-database-url";
/// What the monitor says of a window whose audit it has read.
const KNOWN: &str = "known";

/// Options of `explain --repair`.
#[derive(Args, Clone, Debug)]
pub struct RepairArgs {
    /// Send lost heartbeats again, from the audit of their sender
    #[arg(long, requires = "payments_database_url", conflicts_with_all = ["json", "verdict"])]
    pub repair: bool,

    /// Do not ask first
    #[arg(long, requires = "repair")]
    pub yes: bool,

    /// Payments database that holds the audit, with the right to write, as
    /// `mysql://USER:PASSWORD@HOST:PORT/NAME` [default: none]
    #[arg(long, env = "PAYMENTS_DATABASE_URL", hide_env_values = true, value_name = "URL",
          value_parser = secret::<DatabaseUrl>())]
    pub payments_database_url: Option<DatabaseUrl>,

    /// The streams.
    #[command(flatten)]
    pub stream: StreamArgs,

    /// Patience at start.
    #[command(flatten)]
    pub start: StartArgs,
}

/// What heartbeats are sent again from, and to.
struct Outbox {
    pool: MySqlPool,
    producer: Producer,
    sampling: Sampling,
}

/// What came of it.
#[derive(Debug, Default)]
struct Tally {
    sent: u64,
    /// Sent again by somebody else, or arrived, after they were found lost.
    not_needed: u64,
    failed: u64,
}

/// Runs `explain --repair`. Answers the exit code: 0 if nothing is left unexplained, 1 if a lost
/// heartbeat could not be sent again, and 2 if some slots could not be judged.
///
/// # Errors
/// A sentence for a person: something cannot be reached, is not what it should be, or a person says
/// no.
pub async fn run(
    monitor: &Monitor,
    which: &WhichArgs,
    args: &RepairArgs,
    sampling: Sampling,
) -> anyhow::Result<ExitCode> {
    if !args.yes && !terminal::can_ask() {
        bail!("there is no terminal to ask on: add --yes to send what is lost again");
    }
    let (account, windows) = look(monitor, which).await?;
    say_what_is_left_alone(&account);
    let lost = account.of(Verdict::Lost);
    if lost == 0 {
        let in_transit = match account.of(Verdict::InTransit) {
            0 => String::new(),
            slots => format!("; in transit: {slots}"),
        };
        let said = format!("no slot is known to be lost: nothing was sent again{in_transit}\n");
        terminal::print(&said)?;
        return Ok(account.exit_code());
    }
    let outbox = open(monitor, args, sampling).await?;
    if !args.yes {
        if !terminal::confirm(&format!("Send {} again?", counted(lost)))? {
            bail!("nothing was sent again");
        }
        // A person may have thought for long.
        check_redis(monitor, &outbox.producer, &args.stream.stream_name).await?;
    }
    let mut tally = Tally::default();
    let progress = ProgressBar::new(lost);
    let outcome = repair_all(monitor, &outbox, &windows, &mut tally, &progress).await;
    progress.finish_and_clear();
    terminal::print(&format!("{}\n", tally.summary()))?;
    db::close(&outbox.pool).await;
    outcome.context("broke off; give the same command again to go on")?;
    Ok(account::exit_code(tally.failed, &account))
}

/// A window, and its slots that were shown as lost.
type Damaged = (Uuid, HashSet<u32>);

/// Shows the windows that have lost slots. Answers which, and what all windows add up to.
async fn look(monitor: &Monitor, which: &WhichArgs) -> anyhow::Result<(Account, Vec<Damaged>)> {
    let style = view::Style { in_colour: terminal::takes_colours() };
    let printer = Printer { only: vec![Verdict::Lost], json: false, style };
    let (mut account, mut windows) = (Account::default(), Vec::new());
    account.is_partial = gather::each(monitor, which, |window| {
        account.add(&window.facts);
        let Some(text) = printer.window(window) else { return Ok(()) };
        let lost = window.facts.lost().into_iter().map(|(slot, _)| slot);
        windows.push((window.facts.window_uuid, lost.collect()));
        terminal::print(&text)
    })
    .await?;
    if account.windows == 0 {
        eprintln!("{NONE}");
    }
    Ok((account, windows))
}

/// What is not lost has its own remedy.
fn say_what_is_left_alone(account: &Account) {
    let (refused, unknown) = (account.of(Verdict::DeadLettered), account.of(Verdict::Unknown));
    if refused > 0 {
        eprintln!(
            "refused by the monitor, and not sent again: {refused}; use `heartbeat dead-letters \
             replay`"
        );
    }
    if unknown > 0 {
        eprintln!(
            "not judged, and not sent again: {unknown}; nobody knows whether these are lost until \
             the monitor reads their audit: see its --audit-database-url"
        );
    }
    if account.is_partial {
        eprintln!("an audit cannot be read: windows that only it knows are left alone");
    }
}

/// Opens the audit and the streams, and makes sure that they are those.
async fn open(monitor: &Monitor, args: &RepairArgs, sampling: Sampling) -> anyhow::Result<Outbox> {
    let Some(url) = &args.payments_database_url else {
        bail!("{OPTION} is missing: the audit is in that database");
    };
    let patience = args.start.connect_timeout;
    let redis = args.stream.url()?;
    let link = Arc::new(Link::new(&redis)?);
    link.wait_until_ready(&redis, patience).await?;
    let producer = Producer::new(link, args.stream.stream_name.clone());
    check_redis(monitor, &producer, &args.stream.stream_name).await?;
    let pool = db::connect(url, (DATABASE, OPTION), patience).await?;
    if !repository::is_audit(&pool).await.context("looking for the audit")? {
        bail!("{url} holds no audit: it has no tables report_windows and report_audit");
    }
    db::prepare_schema(&pool, &db::PAYMENTS_SCHEMA, DATABASE, false).await?;
    Ok(Outbox { pool, producer, sampling })
}

/// What is written to another Redis than that of the relays never arrives, although the audit would
/// say that it is on its way.
async fn check_redis(
    monitor: &Monitor,
    producer: &Producer,
    stream: &StreamName,
) -> anyhow::Result<()> {
    let identity = producer.identity().await.context("asking Redis who it is")?;
    let Some(known) = monitor.redis_identity(stream.reports()).await? else {
        bail!("no relay has told the monitor of stream {stream}: see --stream-name");
    };
    if known != identity {
        bail!(
            "this Redis is not the one whose stream {stream} the relays read, or it was restarted a \
             moment ago: see --redis-url, or try again"
        );
    }
    Ok(())
}

async fn repair_all(
    monitor: &Monitor,
    outbox: &Outbox,
    windows: &[Damaged],
    tally: &mut Tally,
    progress: &ProgressBar,
) -> anyhow::Result<()> {
    for (uuid, shown) in windows {
        // Asked again: a person may have thought for long, or somebody else repaired it.
        let facts = monitor.window(*uuid).await?.facts;
        if facts.audit != KNOWN {
            let audit = plain(&facts.audit);
            bail!("the monitor cannot read the audit of window {uuid} now: it is {audit}");
        }
        let definition = facts.definition().context("reading the monitor's answer")?;
        let mut lost = facts.lost();
        // Nobody was asked about what is lost since.
        lost.retain(|(slot, _)| shown.contains(slot));
        tally.not_needed += shown.len().saturating_sub(lost.len()) as u64;
        for lost in lost.chunks(resend::MOST_SLOTS) {
            let outcomes = resend::send_again(outbox, &definition, lost).await?;
            for ((slot, entry), outcome) in lost.iter().zip(outcomes) {
                tally.count(&outcome);
                let said = format!("{uuid} slot {slot}: {}", outcome.sentence(*entry));
                progress.suspend(|| terminal::print(&format!("{}\n", plain(&said))))?;
                progress.inc(1);
            }
        }
    }
    Ok(())
}

impl Tally {
    fn count(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::SentAs(_) => self.sent += 1,
            Outcome::SentMeanwhile(_) => self.not_needed += 1,
            Outcome::NoRow | Outcome::Unusable(_) => self.failed += 1,
        }
    }

    fn summary(&self) -> String {
        let mut said = vec![format!("sent {} again", counted(self.sent))];
        if self.not_needed > 0 {
            said.push(format!("{} no more in need of it", are(self.not_needed)));
        }
        if self.failed > 0 {
            said.push(format!("{} could not be", self.failed));
        }
        if self.sent > 0 {
            said.push("`heartbeat explain` says whether they have arrived".to_owned());
        }
        said.join("; ")
    }
}

fn counted(heartbeats: u64) -> String {
    match heartbeats {
        1 => "1 lost heartbeat".to_owned(),
        more => format!("{more} lost heartbeats"),
    }
}

fn are(count: u64) -> String {
    if count == 1 { "1 is".to_owned() } else { format!("{count} are") }
}
