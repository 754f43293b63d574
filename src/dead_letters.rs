//! The operator's command for dead letters: looking at what the relay set aside, replaying it once
//! the cause is mended, or dropping it for good.
//!
//! [`view`] prints letters, [`settle`] replays and drops them. Answers go to standard output;
//! what could not be done, and what only helps a person, to standard error.

pub mod settle;
pub mod view;

use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use self::settle::Settling;
use crate::config::{StartArgs, StreamArgs};
use crate::stream::{DeadLetters, Link, StreamId};
use crate::terminal::print;

/// What is said when there is nothing to list, replay or drop.
const NONE: &str = "there are no dead letters";

/// Options of `dead-letters`.
#[derive(Args, Clone, Debug)]
pub struct DeadLettersArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What to do with dead letters.
#[derive(Subcommand, Clone, Debug)]
pub enum Action {
    /// List them, the oldest first
    List(ListArgs),
    /// Show all of one, its message whole
    Show(ShowArgs),
    /// Write messages to the streams that they are from again, and delete their letters
    Replay(ReplayArgs),
    /// Delete letters for good
    Drop(DropArgs),
}

/// Options of `dead-letters list`.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// Most letters to list; 1 to 1000
    #[arg(long, default_value = "50", value_name = "NUMBER",
          value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub limit: u16,

    /// List only letters after this one
    #[arg(long, value_name = "ID")]
    pub after: Option<StreamId>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Where the letters are.
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// Options of `dead-letters show`.
#[derive(Args, Clone, Debug)]
pub struct ShowArgs {
    /// Id of the letter, as `list` shows it
    #[arg(value_name = "ID")]
    pub id: StreamId,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Where the letters are.
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// Options of `dead-letters replay`.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// Which letters.
    #[command(flatten)]
    pub which: WhichArgs,

    /// Where the letters are.
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// Options of `dead-letters drop`.
#[derive(Args, Clone, Debug)]
pub struct DropArgs {
    /// Which letters.
    #[command(flatten)]
    pub which: WhichArgs,

    /// Do not ask first
    #[arg(long)]
    pub yes: bool,

    /// Where the letters are.
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// Some letters, or all.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub struct WhichArgs {
    /// Ids of letters, as `list` shows them
    #[arg(value_name = "ID")]
    pub ids: Vec<StreamId>,

    /// All letters that there are when the command starts
    #[arg(long)]
    pub all: bool,
}

/// Where the letters are, and how long to wait for it.
#[derive(Args, Clone, Debug)]
pub struct PlaceArgs {
    /// The streams.
    #[command(flatten)]
    pub stream: StreamArgs,

    /// Patience at start.
    #[command(flatten)]
    pub start: StartArgs,
}

impl PlaceArgs {
    async fn open(&self) -> anyhow::Result<DeadLetters> {
        let redis = self.stream.url()?;
        let link = Arc::new(Link::new(&redis)?);
        link.wait_until_ready(&redis, self.start.connect_timeout).await?;
        Ok(DeadLetters::new(link, self.stream.stream_name.clone()))
    }
}

/// Runs `dead-letters`.
///
/// # Errors
/// A sentence for a person: Redis does not serve us, there is no such letter, or something could
/// not be done.
pub async fn run(args: DeadLettersArgs) -> anyhow::Result<()> {
    match args.action {
        Action::List(args) => list(args).await,
        Action::Show(args) => show(args).await,
        Action::Replay(args) => settle(Settling::Replay, args.which, args.place).await,
        Action::Drop(args) => {
            settle(Settling::Drop { ask: !args.yes }, args.which, args.place).await
        }
    }
}

async fn list(args: ListArgs) -> anyhow::Result<()> {
    let letters = args.place.open().await?;
    let limit = usize::from(args.limit);
    let after = args.after.unwrap_or_default();
    // One more than is shown tells whether there is another page.
    let mut page = letters.page(after, None, limit + 1).await.context("reading dead letters")?;
    let more = page.len() > limit;
    page.truncate(limit);
    match page.last() {
        None if args.after.is_some() => eprintln!("there are no dead letters after {after}"),
        None => eprintln!("{NONE}"),
        Some(_) if args.json => print(&view::json_lines(&page)?)?,
        Some(_) => print(&format!("{}\n", view::table(&page)))?,
    }
    if let Some(last) = page.last().filter(|_| more) {
        eprintln!("there are more; to see the next page, add: --after {}", last.id);
    }
    Ok(())
}

async fn show(args: ShowArgs) -> anyhow::Result<()> {
    let letters = args.place.open().await?;
    match letters.find(args.id).await.context("reading a dead letter")? {
        Some(letter) if args.json => print(&view::json_whole(&letter)?),
        Some(letter) => print(&view::whole(&letter)),
        None => {
            bail!("there is no dead letter {}; `heartbeat dead-letters list` lists them", args.id)
        }
    }
}

async fn settle(settling: Settling, which: WhichArgs, place: PlaceArgs) -> anyhow::Result<()> {
    settling.check()?;
    settle::run(settling, &place.open().await?, &which).await
}
