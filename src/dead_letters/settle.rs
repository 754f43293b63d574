//! Replaying and dropping dead letters: those that are named, or all.
//!
//! Both are idempotent. A letter that is gone already is said to be gone and is no failure, so that
//! a command which broke off can simply be given again.

use std::collections::BTreeSet;

use anyhow::{Context, bail};
use indicatif::ProgressBar;

use super::{NONE, WhichArgs};
use crate::stream::{DeadLetters, Replayed, StreamId};
use crate::terminal::{self, plain};

/// Letters that are looked up, or dropped, in one round trip.
const PAGE: usize = 200;

/// What is done with letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settling {
    /// Their messages go back to their streams.
    Replay,
    /// They are deleted, after a question if somebody is to be asked.
    Drop {
        /// Whether to ask.
        ask: bool,
    },
}

/// What came of it.
#[derive(Debug, Default)]
struct Tally {
    done: u64,
    gone: u64,
    failed: u64,
}

/// Replays or drops letters.
///
/// # Errors
/// When Redis fails underway, when a person says no, or when some letters could not be replayed.
pub async fn run(
    settling: Settling,
    letters: &DeadLetters,
    which: &WhichArgs,
) -> anyhow::Result<()> {
    let mut selection = Selection::new(letters, which).await.context("reading dead letters")?;
    if selection.count == 0 {
        println!("{NONE}");
        return Ok(());
    }
    if settling == (Settling::Drop { ask: true }) {
        confirm(selection.count)?;
    }
    let progress =
        if which.all { ProgressBar::new(selection.count) } else { ProgressBar::hidden() };
    let mut tally = Tally::default();
    let outcome = settle_all(settling, letters, &mut selection, &mut tally, &progress).await;
    progress.finish_and_clear();
    println!("{}", tally.summary(settling));
    outcome.context("broke off; give the same command again to go on")?;
    match tally.failed {
        0 => Ok(()),
        failed => bail!("{} could not be replayed", counted(failed)),
    }
}

impl Settling {
    /// Makes sure that there is somebody to ask, where somebody is to be asked.
    ///
    /// # Errors
    /// That there is nobody, and how to go on without.
    pub fn check(self) -> anyhow::Result<()> {
        if self == (Self::Drop { ask: true }) && !terminal::can_ask() {
            bail!(
                "dead letters that are dropped cannot be brought back, and there is no terminal to \
                 ask on: add --yes if you mean it"
            );
        }
        Ok(())
    }
}

impl Tally {
    fn summary(&self, settling: Settling) -> String {
        let verb = if settling == Settling::Replay { "replayed" } else { "dropped" };
        let gone = match self.gone {
            0 => String::new(),
            1 => "; 1 was gone already".to_owned(),
            gone => format!("; {gone} were gone already"),
        };
        format!("{verb} {}{gone}", counted(self.done))
    }
}

fn counted(count: u64) -> String {
    if count == 1 { "1 dead letter".to_owned() } else { format!("{count} dead letters") }
}

/// Asks whether to drop letters.
fn confirm(count: u64) -> anyhow::Result<()> {
    let them = if count == 1 { "It" } else { "They" };
    if terminal::confirm(&format!("Drop {}? {them} cannot be brought back.", counted(count)))? {
        return Ok(());
    }
    bail!("nothing was dropped")
}

async fn settle_all(
    settling: Settling,
    letters: &DeadLetters,
    selection: &mut Selection<'_>,
    tally: &mut Tally,
    progress: &ProgressBar,
) -> anyhow::Result<()> {
    loop {
        let ids = selection.next().await?;
        if ids.is_empty() {
            return Ok(());
        }
        match settling {
            Settling::Replay => replay(letters, &ids, tally, progress).await?,
            Settling::Drop { .. } => {
                let dropped = letters.delete(&ids).await?;
                tally.done += dropped;
                tally.gone += (ids.len() as u64).saturating_sub(dropped);
                progress.inc(ids.len() as u64);
            }
        }
    }
}

async fn replay(
    letters: &DeadLetters,
    ids: &[StreamId],
    tally: &mut Tally,
    progress: &ProgressBar,
) -> anyhow::Result<()> {
    for id in ids {
        let replayed = letters.replay(*id).await?;
        match &replayed {
            Replayed::As(_) => tally.done += 1,
            Replayed::Gone => tally.gone += 1,
            Replayed::WithoutPayload | Replayed::FromElsewhere(_) => tally.failed += 1,
        }
        if let Some(problem) = problem(*id, &replayed) {
            progress.suspend(|| eprintln!("{problem}"));
        }
        progress.inc(1);
    }
    Ok(())
}

/// Why a letter was not replayed.
fn problem(id: StreamId, replayed: &Replayed) -> Option<String> {
    match replayed {
        Replayed::As(_) => None,
        Replayed::Gone => Some(format!("{id} is gone: it was replayed or dropped before")),
        Replayed::WithoutPayload => Some(format!(
            "{id} cannot be replayed: its message has no field named payload; show or drop it"
        )),
        Replayed::FromElsewhere(stream) => Some(format!(
            "{id} cannot be replayed: it is from the stream {:?}, which is none of those that \
             --stream-name names",
            plain(stream)
        )),
    }
}

/// The letters that a command is about, in the order of their ids.
struct Selection<'a> {
    letters: &'a DeadLetters,
    /// How many there are, as far as it is known.
    count: u64,
    rest: Rest,
}

/// What is left of a selection.
enum Rest {
    Named(Vec<StreamId>),
    /// Beyond one id up to another, which was the last when the command started: a message that is
    /// refused again becomes a new letter, which must not be replayed in a circle.
    Range(StreamId, StreamId),
}

impl<'a> Selection<'a> {
    async fn new(letters: &'a DeadLetters, which: &WhichArgs) -> anyhow::Result<Self> {
        if which.all {
            let (count, last) = letters.extent().await?;
            let rest = Rest::Range(StreamId::default(), last.unwrap_or_default());
            return Ok(Self { letters, count, rest });
        }
        let ids: BTreeSet<StreamId> = which.ids.iter().copied().collect();
        Ok(Self { letters, count: ids.len() as u64, rest: Rest::Named(ids.into_iter().collect()) })
    }

    /// The next ids; none when there are no more.
    async fn next(&mut self) -> anyhow::Result<Vec<StreamId>> {
        match &mut self.rest {
            Rest::Named(ids) => Ok(ids.drain(..ids.len().min(PAGE)).collect()),
            Rest::Range(after, last) => {
                let page = self.letters.page(*after, Some(*last), PAGE).await?;
                let ids: Vec<StreamId> = page.iter().map(|letter| letter.id).collect();
                *after = ids.last().copied().unwrap_or(*last);
                Ok(ids)
            }
        }
    }
}
