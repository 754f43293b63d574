//! What a relay tells the monitor about the way between them: how far delivery has come, and what
//! is in its way.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{StreamId, Timestamp, WireError};

/// Most suspects, dead letters, silent groups, and services that send or have sent again, of one report.
pub const MOST_ITEMS: usize = 1_000;
/// Longest name in a report, in bytes.
pub const LONGEST_NAME: usize = 200;
/// Longest reason in a report, in bytes.
const LONGEST_REASON: usize = 2_000;
/// Largest count in a report, which every JSON reader keeps exactly.
const LARGEST_COUNT: u64 = (1 << 53) - 1;

/// One relay's report, as of one instant of Redis' clock.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, ToSchema)]
pub struct PipelineReport {
    /// The relay's name in its group.
    #[schema(min_length = 1, max_length = 200)]
    pub relay: String,
    /// The consumer group that the relays share.
    #[schema(min_length = 1, max_length = 200)]
    pub group: String,
    /// Key of the heartbeats' stream.
    #[schema(min_length = 1, max_length = 200)]
    pub stream: String,
    /// Which Redis this is, and which data it holds. When it changes, entries may be lost.
    #[schema(min_length = 1, max_length = 200)]
    pub redis_identity: String,
    /// Redis' clock when it was asked.
    pub redis_time: Timestamp,
    /// Everything written to the streams before this instant of Redis' clock is delivered or dead,
    /// except for the suspects.
    pub watermark: Timestamp,
    /// When this relay last reached Redis again after it could not, by Redis' clock.
    #[serde(default)]
    pub recovered_at: Option<Timestamp>,
    /// The announcements' stream.
    pub windows: StreamState,
    /// The heartbeats' stream.
    pub heartbeats: StreamState,
    /// Whether the relay delivers.
    pub breaker: Breaker,
    /// Entries that alone make the monitor fail.
    #[serde(default)]
    #[schema(max_items = 1000)]
    pub suspects: Vec<Suspect>,
    /// Services that are at work and have not yet sent again what a new Redis may lack.
    #[serde(default)]
    #[schema(max_items = 1000)]
    pub resending: Vec<String>,
    /// Services that have done so within the last minute, and all of it is delivered.
    #[serde(default)]
    #[schema(max_items = 1000)]
    pub resent: Vec<String>,
    /// Dead letters in Redis.
    #[schema(maximum = 9_007_199_254_740_991_i64)]
    pub dead_letters_total: u64,
    /// Dead letters that no report has told of before.
    #[serde(default)]
    #[schema(max_items = 1000)]
    pub dead_letters: Vec<DeadLetterReport>,
    /// Other groups that have not read for a day and hold back the deletion of entries.
    #[serde(default)]
    #[schema(max_items = 1000)]
    pub silent_groups: Vec<String>,
}

/// Where the group stands on one stream.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, ToSchema)]
pub struct StreamState {
    /// Entries that no consumer has read; none if Redis cannot tell.
    #[schema(maximum = 9_007_199_254_740_991_i64)]
    pub lag: Option<u64>,
    /// Entries that are read and not acknowledged.
    #[schema(maximum = 9_007_199_254_740_991_i64)]
    pub pending: u64,
    /// When the oldest of these was written.
    pub oldest_pending_at: Option<Timestamp>,
}

/// Whether a relay's circuit breaker lets messages through.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Breaker {
    /// The monitor takes messages.
    Closed,
    /// It does not, for this reason: nothing is read.
    Open {
        /// What the monitor answered last.
        #[schema(max_length = 2000)]
        reason: String,
    },
}

/// An entry that makes the monitor fail while others pass.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, ToSchema)]
pub struct Suspect {
    /// Key of the stream that it is from.
    #[schema(min_length = 1, max_length = 200)]
    pub stream: String,
    /// Its id there.
    pub stream_id: StreamId,
    /// What is known of it.
    #[serde(flatten)]
    pub report: SuspectReport,
}

/// What a relay knows of a suspect.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, ToSchema)]
pub struct SuspectReport {
    /// The window that it belongs to, if it can be read.
    pub window_uuid: Option<Uuid>,
    /// The slot, if it names one.
    pub slot: Option<i64>,
    /// What the monitor answered.
    #[schema(max_length = 2000)]
    pub reason: String,
    /// When it failed first.
    pub since: Timestamp,
}

/// A message that was set aside for good.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, ToSchema)]
pub struct DeadLetterReport {
    /// Key of the stream that it is from.
    #[schema(min_length = 1, max_length = 200)]
    pub stream: String,
    /// Its id there.
    pub stream_id: StreamId,
    /// The window that it belongs to, if it can be read.
    pub window_uuid: Option<Uuid>,
    /// The slot, if it names one.
    pub slot: Option<i64>,
    /// Why.
    #[schema(max_length = 2000)]
    pub reason: String,
    /// When, by the relay's clock.
    pub at: Timestamp,
}

impl PipelineReport {
    /// Checks that the report is within its bounds.
    ///
    /// # Errors
    /// What is too long or too many.
    pub fn check(&self) -> Result<(), WireError> {
        let streams = self.suspects.iter().map(|suspect| &suspect.stream);
        let streams = streams.chain(self.dead_letters.iter().map(|letter| &letter.stream));
        let names = [&self.relay, &self.group, &self.stream, &self.redis_identity];
        let others = self.silent_groups.iter().chain(&self.resending).chain(&self.resent);
        for name in names.into_iter().chain(streams).chain(others) {
            if name.is_empty() || name.len() > LONGEST_NAME {
                return Err(WireError::invalid(format!(
                    "a name must have 1 to {LONGEST_NAME} bytes"
                )));
            }
        }
        let reasons = self.suspects.iter().map(|suspect| &suspect.report.reason);
        let reasons = reasons.chain(self.dead_letters.iter().map(|letter| &letter.reason));
        let breaker = match &self.breaker {
            Breaker::Open { reason } => Some(reason),
            Breaker::Closed => None,
        };
        if reasons.chain(breaker).any(|reason| reason.len() > LONGEST_REASON) {
            let text = format!("a reason may have at most {LONGEST_REASON} bytes");
            return Err(WireError::invalid(text));
        }
        let names = [&self.silent_groups, &self.resending, &self.resent].map(Vec::len);
        let items = [self.suspects.len(), self.dead_letters.len()].into_iter().chain(names);
        if items.into_iter().any(|items| items > MOST_ITEMS) {
            return Err(WireError::invalid(format!("a list may have at most {MOST_ITEMS} items")));
        }
        let streams = [&self.windows, &self.heartbeats];
        let counts = streams.into_iter().flat_map(|of| [of.lag.unwrap_or(0), of.pending]);
        if counts.chain([self.dead_letters_total]).any(|count| count > LARGEST_COUNT) {
            return Err(WireError::invalid(format!("a count may be at most {LARGEST_COUNT}")));
        }
        Ok(())
    }
}
