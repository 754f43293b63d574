//! What travels between the roles: heartbeats, window announcements, and the slot arithmetic that
//! both sides share.
//!
//! Everything here is pure: text in, validated values out, and back again. A value that exists has
//! been checked and is within the limits below, so nothing behind the edge checks it again.
//!
//! ```
//! use heartbeat::wire::{Heartbeat, Tick};
//!
//! let payload = br#"{"service":"payments-a","status":"ok",
//!     "window_uuid":"6f1c1f0e-5f0c-4f43-9a55-0d2b1f2a7f10",
//!     "window_from":"2026-11-21T10:00:00Z","window_to":"2026-11-21T10:02:30Z",
//!     "timestamp":"2026-11-21T10:00:10Z"}"#;
//! let heartbeat = Heartbeat::parse(payload, Tick::DEFAULT)?;
//! assert_eq!(heartbeat.window.slots(), 15);
//! assert_eq!(heartbeat.slot_in(&heartbeat.window), heartbeat::wire::Slot::Scheduled(1));
//! # Ok::<(), heartbeat::wire::WireError>(())
//! ```

mod announcement;
mod heartbeat;
mod names;
mod raw;
mod report;
pub mod schema;
mod status;
mod stream_id;
mod timestamp;
mod traceparent;
mod window;

pub use announcement::Announcement;
pub use heartbeat::Heartbeat;
pub use names::ServiceName;
pub use report::{
    Breaker, DeadLetterReport, LONGEST_NAME, MOST_ITEMS, PipelineReport, StreamState, Suspect,
    SuspectReport,
};
pub use status::{OMITTED, Status};
pub use stream_id::StreamId;
pub use timestamp::Timestamp;
pub use traceparent::TraceParent;
pub use window::{Rates, Seconds, Slot, Tick, Window};

/// Longest service name, in characters.
pub const MAX_SERVICE_CHARS: usize = 100;
/// Longest error message, in characters.
pub const MAX_MESSAGE_CHARS: usize = 1_000;
/// Most slots that one window may have.
pub const MAX_SLOTS_PER_WINDOW: u32 = 100_000;
/// Largest payload of one heartbeat or announcement, in bytes.
pub const MAX_PAYLOAD_BYTES: usize = 16 * 1024;

/// Why a message was refused. The text is meant for the sender: it says what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Members that every message must have, in the order of the wire format.
    #[error("missing required fields: {}", .0.join(", "))]
    Missing(Vec<&'static str>),
    /// A member, or the whole message, that cannot be used as it is.
    #[error("{0}")]
    Invalid(String),
}

impl WireError {
    fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(message.into())
    }
}
