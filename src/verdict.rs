//! What became of a slot, as both ledgers tell it: the audit, in which its sender wrote what it
//! did, and the events, in which the monitor wrote what it saw.
//!
//! Pure: told what each ledger says, how far delivery has come, and what time it is. A verdict is
//! never a guess. Where the audit cannot be asked it is [`Verdict::Unknown`], and [`Verdict::Lost`]
//! takes four facts together: the audit has the entry of the stream that carried the heartbeat,
//! delivery is past that entry, the monitor has stored nothing, and has never heard that the
//! message was set aside.
//!
//! | # | condition, the first that holds | verdict |
//! |---|---|---|
//! | 1 | a heartbeat is stored | `phantom` if the audit knows the window and says omitted or has no row; else `late` if it came after the window had closed, else `on_time` |
//! | 2 | its due time plus one tick is not past | `pending` |
//! | 3 | it was ever a dead letter | `dead_lettered` |
//! | 4 | the audit cannot be read, or none knows the window | `unknown` |
//! | 5 | audit: omitted on purpose | `never_sent` |
//! | 6 | audit: no row | `sender_down` |
//! | 7 | audit: a row without an entry of the stream | `unconfirmed` |
//! | 8 | delivery is not past its entry | `in_transit` |
//! | 9 | otherwise | `lost` |

mod sentence;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::sentence::sentence;
use crate::wire::{OMITTED, StreamId, Timestamp, Window};

/// What became of a slot.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It arrived before its window closed.
    OnTime,
    /// It arrived, and its window had closed without it.
    Late,
    /// Its time is not over.
    Pending,
    /// The service omitted it on purpose.
    NeverSent,
    /// The service did nothing in this slot: it was down.
    SenderDown,
    /// The service meant to send it, and does not know whether it did.
    Unconfirmed,
    /// It is in the stream and not delivered yet.
    InTransit,
    /// The monitor refused it, at least once.
    DeadLettered,
    /// It arrived, and the audit says that it was not sent.
    Phantom,
    /// It did not arrive, and the audit cannot be asked why.
    Unknown,
    /// It was sent and delivered, and is nowhere: the only verdict that explains nothing.
    Lost,
}

impl Verdict {
    /// Every verdict, from the usual to the one that must never be.
    pub const ALL: [Self; 11] = [
        Self::OnTime,
        Self::Late,
        Self::Pending,
        Self::NeverSent,
        Self::SenderDown,
        Self::Unconfirmed,
        Self::InTransit,
        Self::DeadLettered,
        Self::Phantom,
        Self::Unknown,
        Self::Lost,
    ];

    /// The verdict as the API names it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OnTime => "on_time",
            Self::Late => "late",
            Self::Pending => "pending",
            Self::NeverSent => "never_sent",
            Self::SenderDown => "sender_down",
            Self::Unconfirmed => "unconfirmed",
            Self::InTransit => "in_transit",
            Self::DeadLettered => "dead_lettered",
            Self::Phantom => "phantom",
            Self::Unknown => "unknown",
            Self::Lost => "lost",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Verdict {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name);
        let found = Self::ALL.into_iter().find(|verdict| verdict.name() == text);
        found.ok_or_else(|| format!("must be one of {}", names.join(", ")))
    }
}

/// Everything that decides about one slot.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The window, as the monitor knows it.
    pub window: &'a Window,
    /// Number of the slot.
    pub slot: u32,
    /// How far the sender's clock is behind the stream's, in microseconds.
    pub clock_offset_us: i64,
    /// The heartbeat that the monitor has stored. That a slot is missing is no arrival.
    pub arrival: Option<Arrival>,
    /// The last time that its message was set aside, also if it was replayed or dropped since.
    pub letter: Option<Letter<'a>>,
    /// What the sender wrote.
    pub audit: Audit<'a>,
    /// How far delivery has come.
    pub delivery: Delivery,
    /// The monitor's clock.
    pub now: Timestamp,
}

/// A heartbeat as the monitor has stored it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The sender's stamp.
    pub timestamp: Timestamp,
    /// The entry that carried it; none if it did not come through the stream.
    pub stream_id: Option<StreamId>,
    /// When the monitor stored it.
    pub recorded_at: Timestamp,
    /// Whether its window had closed without it.
    pub is_late: bool,
}

/// A message that was set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Letter<'a> {
    /// When.
    pub at: Timestamp,
    /// Why.
    pub reason: &'a str,
}

/// What the audit says of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audit<'a> {
    /// Nothing: the monitor was not told where an audit is.
    Unasked,
    /// Nothing now: it cannot be read.
    Unreachable,
    /// Nothing yet: its database has an older schema, or the first system's.
    NotMigrated,
    /// Nothing: it does not know the window.
    UnknownWindow,
    /// It knows the window, and this is the slot's row, if there is any.
    Known(Option<&'a AuditRow>),
}

/// A row of the audit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct AuditRow {
    /// What was reported, or [`OMITTED`].
    pub status: String,
    /// When, by the sender's clock.
    pub timestamp: Timestamp,
    /// Whether the sender says that it was sent.
    pub sent_to_queue: bool,
    /// The entry that carried it last; none until Redis has answered, and in rows of older senders.
    pub stream_id: Option<StreamId>,
    /// The entry that carried it first, if it was sent more than once.
    pub first_stream_id: Option<StreamId>,
}

impl AuditRow {
    /// Whether the slot was omitted on purpose.
    #[must_use]
    pub fn is_omitted(&self) -> bool {
        self.status == OMITTED
    }
}

/// How far delivery has come, as to one window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// No relay has ever said.
    Unreported,
    /// Everything that was written before this instant, the watermark, is stored or set aside.
    Until(Timestamp),
    /// The watermark has no say: its service is sending again what a lost Redis took along.
    BeingResent,
    /// The watermark has no say: a message of this window makes the monitor fail, and is tried
    /// again apart from the others.
    Suspect,
}

impl Delivery {
    /// Whether an entry that is not stored can no longer be on its way.
    fn is_past(self, entry: StreamId) -> bool {
        matches!(self, Self::Until(watermark) if entry.written_at() < watermark)
    }
}

impl Facts<'_> {
    /// When the heartbeat is due, by the clock of the stream.
    fn due(&self) -> Timestamp {
        self.window.due(self.slot).plus_micros(self.clock_offset_us)
    }
}

/// The verdict: the first line of the table that holds.
#[must_use]
pub fn judge(facts: &Facts) -> Verdict {
    if let Some(arrival) = facts.arrival {
        return match facts.audit {
            Audit::Known(row) if row.is_none_or(AuditRow::is_omitted) => Verdict::Phantom,
            _ if arrival.is_late => Verdict::Late,
            _ => Verdict::OnTime,
        };
    }
    if facts.now <= facts.due().plus(facts.window.tick().duration()) {
        return Verdict::Pending;
    }
    if facts.letter.is_some() {
        return Verdict::DeadLettered;
    }
    let Audit::Known(row) = facts.audit else { return Verdict::Unknown };
    match row.map(|row| (row.is_omitted(), row.stream_id)) {
        Some((true, _)) => Verdict::NeverSent,
        None => Verdict::SenderDown,
        Some((false, None)) => Verdict::Unconfirmed,
        Some((false, Some(entry))) if !facts.delivery.is_past(entry) => Verdict::InTransit,
        Some((false, Some(_))) => Verdict::Lost,
    }
}

#[cfg(test)]
mod tests;
