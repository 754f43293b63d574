//! Sends lost heartbeats again, as their sender would: from the audit to the stream, after which the
//! audit names the new entry. So it does with those that are unconfirmed, if it is told to.
//!
//! Nothing is sent twice that need not be. A heartbeat whose audit names a new entry is in transit
//! until the watermark passes that one, so that nobody calls it lost; and it is sent only while its
//! row, which is held meanwhile, still names the very entry that was found lost, or still none
//! ([`resend`]). If this breaks off between the two, the next run sends it once more, and the monitor
//! drops the copy. So it does if an unconfirmed heartbeat had been sent before, by whomever.
//!
//! A window of which the monitor has never heard is not announced again. Its heartbeats make it
//! known, and hold it open until they have arrived; announced, it would be closed, and alerted, at
//! once.

pub mod resend;
mod tally;

use std::collections::HashSet;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::ProgressBar;
use sqlx::MySqlPool;
use uuid::Uuid;

use self::tally::{Tally, counted};
use super::account::{self, Account, Unexplained};
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

    /// Send unconfirmed heartbeats again as well, of which nobody knows whether they were sent
    #[arg(long, requires = "repair")]
    pub unconfirmed: bool,

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

impl RepairArgs {
    /// Slots with these verdicts are sent again.
    const fn verdicts(&self) -> &'static [Verdict] {
        if self.unconfirmed { &[Verdict::Lost, Verdict::Unconfirmed] } else { &[Verdict::Lost] }
    }
}

/// Runs `explain --repair`. Answers the exit code: 0 if nothing is left unexplained, 1 if a lost
/// heartbeat could not be sent again, 2 if some slots could not be judged, and else 3 if some stay
/// unconfirmed.
///
/// # Errors
/// A sentence for a person: something cannot be reached, is not what it should be, or a person says
/// no, or there is none to ask.
pub async fn run(
    monitor: &Monitor,
    which: &WhichArgs,
    args: &RepairArgs,
    sampling: Sampling,
) -> anyhow::Result<ExitCode> {
    let (account, windows) = look(monitor, which, args.verdicts()).await?;
    let left_alone = left_alone(&account, args);
    say_what_is_left_alone(&account, left_alone);
    let all = account.unexplained();
    let wanted = Unexplained { unconfirmed: all.unconfirmed - left_alone, ..all };
    if wanted.all() == 0 {
        terminal::print(&nothing_to_send(&account, args))?;
        return Ok(account.exit_code());
    }
    if !args.yes && !terminal::can_ask() {
        bail!("there is no terminal to ask on: add --yes to send {} again", counted(wanted));
    }
    let outbox = open(monitor, args, sampling).await?;
    if !args.yes {
        if !terminal::confirm(&format!("Send {} again?", counted(wanted)))? {
            bail!("nothing was sent again");
        }
        // A person may have thought for long.
        check_redis(monitor, &outbox.producer, &args.stream.stream_name).await?;
    }
    let mut tally = Tally::default();
    let progress = ProgressBar::new(wanted.all());
    let job = Job { monitor, outbox: &outbox, verdicts: args.verdicts() };
    let outcome = job.repair_all(&windows, &mut tally, &progress).await;
    progress.finish_and_clear();
    terminal::print(&format!("{}\n", tally.summary()))?;
    db::close(&outbox.pool).await;
    outcome.context("broke off; give the same command again to go on")?;
    let failed = tally.failed();
    let left = Unexplained { unconfirmed: failed.unconfirmed + left_alone, ..failed };
    Ok(account::exit_code(left, &account))
}

/// A window, and its slots that were shown.
type Damaged = (Uuid, HashSet<u32>);

/// Shows the windows that have slots with these verdicts. Answers which, and what all windows add up
/// to.
async fn look(
    monitor: &Monitor,
    which: &WhichArgs,
    verdicts: &[Verdict],
) -> anyhow::Result<(Account, Vec<Damaged>)> {
    let style = view::Style { in_colour: terminal::takes_colours() };
    let printer = Printer { only: verdicts.to_vec(), json: false, style };
    let (mut account, mut windows) = (Account::default(), Vec::new());
    account.is_partial = gather::each(monitor, which, |window| {
        account.add(&window.facts);
        let Some(text) = printer.window(window) else { return Ok(()) };
        let shown = window.facts.repairable(verdicts).into_iter().map(|shown| shown.slot);
        windows.push((window.facts.window_uuid, shown.collect()));
        terminal::print(&text)
    })
    .await?;
    if account.windows == 0 {
        eprintln!("{NONE}");
    }
    Ok((account, windows))
}

/// How many unconfirmed slots nobody asked to send again.
fn left_alone(account: &Account, args: &RepairArgs) -> u64 {
    if args.unconfirmed { 0 } else { account.unexplained().unconfirmed }
}

/// What there is to say when there is nothing to send again.
fn nothing_to_send(account: &Account, args: &RepairArgs) -> String {
    let is_known = if args.unconfirmed { "lost or unconfirmed" } else { "lost" };
    let in_transit = match account.of(Verdict::InTransit) {
        0 => String::new(),
        slots => format!("; in transit: {slots}"),
    };
    format!("no slot is known to be {is_known}: nothing was sent again{in_transit}\n")
}

/// What is not sent again has its own remedy.
fn say_what_is_left_alone(account: &Account, unconfirmed: u64) {
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
    if unconfirmed > 0 {
        eprintln!(
            "unconfirmed, and not sent again: {unconfirmed}; nobody knows whether these were sent: \
             --unconfirmed sends them again as well"
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

/// What is repaired, and how.
struct Job<'a> {
    monitor: &'a Monitor,
    outbox: &'a Outbox,
    /// Slots with these verdicts are sent again.
    verdicts: &'a [Verdict],
}

impl Job<'_> {
    async fn repair_all(
        &self,
        windows: &[Damaged],
        tally: &mut Tally,
        progress: &ProgressBar,
    ) -> anyhow::Result<()> {
        for (uuid, shown) in windows {
            // Asked again: a person may have thought for long, or somebody else repaired it.
            let facts = self.monitor.window(*uuid).await?.facts;
            if facts.audit != KNOWN {
                let audit = plain(&facts.audit);
                bail!("the monitor cannot read the audit of window {uuid} now: it is {audit}");
            }
            let definition = facts.definition().context("reading the monitor's answer")?;
            let mut slots = facts.repairable(self.verdicts);
            // Nobody was asked about what is missing since.
            slots.retain(|slot| shown.contains(&slot.slot));
            tally.count_not_needed(shown.len().saturating_sub(slots.len()));
            for slots in slots.chunks(resend::MOST_SLOTS) {
                let outcomes = resend::send_again(self.outbox, &definition, slots).await?;
                for (slot, outcome) in slots.iter().zip(outcomes) {
                    tally.count(slot, &outcome);
                    let said = outcome.sentence(slot.lost);
                    let said = plain(&format!("{uuid} slot {}: {said}", slot.slot));
                    progress.suspend(|| terminal::print(&format!("{said}\n")))?;
                    progress.inc(1);
                }
            }
        }
        Ok(())
    }
}
