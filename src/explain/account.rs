//! What windows add up to: how often each verdict, and the two ledgers against each other.

use std::collections::BTreeMap;
use std::process::ExitCode;

use super::ask::{Slot, UNHEARD, Window};
use super::{COULD_NOT_TELL, NOBODY_CAN_FOLLOW};
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
    /// Windows of which the monitor has never heard.
    pub unheard: u64,
    /// Slots of those that are unconfirmed.
    pub unheard_unconfirmed: u64,
    /// Whether there may be windows of which only an audit knows that cannot be read.
    pub is_partial: bool,
}

/// Heartbeats that no ledger explains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unexplained {
    /// Both ledgers say that they were lost.
    pub lost: u64,
    /// Nobody knows whether they were sent.
    pub unconfirmed: u64,
}

impl Unexplained {
    /// Both together.
    #[must_use]
    pub const fn all(self) -> u64 {
        self.lost + self.unconfirmed
    }
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
        if window.status == UNHEARD {
            self.unheard += 1;
            let unconfirmed = |slot: &&Slot| slot.verdict == Verdict::Unconfirmed;
            self.unheard_unconfirmed += window.slots.iter().filter(unconfirmed).count() as u64;
        }
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
        self.untold + unseen.map(|(_, slots)| slots).sum::<u64>()
    }

    /// Missing slots that could not be judged.
    #[must_use]
    pub fn not_judged(&self) -> u64 {
        self.of(Verdict::Unknown) + self.untold
    }

    /// Slots that no ledger explains.
    #[must_use]
    pub fn unexplained(&self) -> Unexplained {
        Unexplained { lost: self.of(Verdict::Lost), unconfirmed: self.of(Verdict::Unconfirmed) }
    }

    /// Missing slots of which a ledger says why.
    #[must_use]
    pub fn explained(&self) -> u64 {
        self.missing().saturating_sub(self.unexplained().all() + self.not_judged())
    }

    /// What the command ends with.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        exit_code(self.unexplained(), self)
    }
}

/// What a command ends with that leaves so much unexplained. That a slot is lost is certain, whatever
/// could not be judged; and what could not be judged may be worse than what nobody can follow.
#[must_use]
pub fn exit_code(left: Unexplained, account: &Account) -> ExitCode {
    match (left.lost, account.not_judged(), left.unconfirmed) {
        (0, 0, 0) if !account.is_partial => ExitCode::SUCCESS,
        (0, 0, 1..) if !account.is_partial => ExitCode::from(NOBODY_CAN_FOLLOW),
        (0, ..) => ExitCode::from(COULD_NOT_TELL),
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
