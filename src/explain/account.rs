//! What windows add up to: how often each verdict, and the two ledgers against each other.

use std::collections::BTreeMap;
use std::process::ExitCode;

use super::COULD_NOT_TELL;
use super::ask::{Slot, Window};
use crate::verdict::Verdict;

/// What windows add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Windows.
    pub windows: u64,
    /// Slots by verdict, where any has it.
    pub verdicts: BTreeMap<Verdict, u64>,
    /// Slots that are over or arrived, by what the audit says and by whether the monitor saw them.
    pub ledgers: BTreeMap<(Said, bool), u64>,
    /// Slots that are missing of windows without events, of which nobody can say why any more.
    pub untold: u64,
    /// Whether there may be windows of which only an audit knows that cannot be read.
    pub is_partial: bool,
}

/// What the audit says of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Said {
    /// It was sent.
    Sent,
    /// It was not, or nobody knows that it was.
    NotSent,
    /// The audit had no say.
    Nothing,
}

impl Account {
    /// Adds a window.
    pub fn add(&mut self, window: &Window) {
        self.windows += 1;
        self.untold += u64::from(window.untold());
        for slot in &window.slots {
            *self.verdicts.entry(slot.verdict).or_default() += 1;
            if slot.verdict != Verdict::Pending {
                *self.ledgers.entry((said(window, slot), is_seen(slot))).or_default() += 1;
            }
        }
    }

    /// Slots with a verdict.
    #[must_use]
    pub fn of(&self, verdict: Verdict) -> u64 {
        self.verdicts.get(&verdict).copied().unwrap_or(0)
    }

    /// Slots that did not arrive although their time is over.
    #[must_use]
    pub fn missing(&self) -> u64 {
        let unseen = self.ledgers.iter().filter(|((_, is_seen), _)| !is_seen);
        unseen.map(|(_, slots)| slots).sum()
    }

    /// What the command ends with. That a slot is lost is certain, whatever could not be judged.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        exit_code(self.of(Verdict::Lost), self)
    }
}

/// What a command ends with that leaves so many slots unexplained.
#[must_use]
pub fn exit_code(unexplained: u64, account: &Account) -> ExitCode {
    match (unexplained, account.of(Verdict::Unknown) + account.untold) {
        (0, 0) if !account.is_partial => ExitCode::SUCCESS,
        (0, _) => ExitCode::from(COULD_NOT_TELL),
        _ => ExitCode::FAILURE,
    }
}

fn said(window: &Window, slot: &Slot) -> Said {
    match slot.audit {
        _ if window.audit != "known" => Said::Nothing,
        Some(row) if row.sent_to_queue => Said::Sent,
        _ => Said::NotSent,
    }
}

const fn is_seen(slot: &Slot) -> bool {
    matches!(slot.verdict, Verdict::OnTime | Verdict::Late | Verdict::Phantom)
}
