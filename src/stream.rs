//! The Redis streams between the senders and the monitor. The only module that knows Redis.
//!
//! Three streams share one name, and one Redis Cluster slot thanks to the braces: `reports` holds
//! heartbeats, `{reports}:windows` the announcements of new windows, `{reports}:dead` the messages
//! that the monitor refused. Each entry of the first two has one field, `payload`, holding JSON.
//!
//! Rules that this module keeps, each of which a real pipeline has broken before:
//! - Groups are created at `0`, never at `$`, so that what was written earlier is read too.
//! - A blocking read has a connection of its own, waits for the answer longer than the server
//!   blocks, and is never cancelled: Redis would hand messages to a reader that is gone.
//! - Entries are deleted only when every group has acknowledged them. Nothing is trimmed by length
//!   and no consumer with pending entries is deleted: both lose
//!   messages silently.

mod creation;
mod dead;
mod group;
mod link;
mod membership;
mod producer;
mod script;
mod survey;
mod turn;

use std::fmt;
use std::str::FromStr;

use redis::{ErrorKind, FromRedisValue, ParsingError, RedisError, ServerErrorKind, Value};

pub use creation::{Created, Creation};
pub use dead::{DeadLetter, DeadLetters, Replayed};
pub use group::{Claimed, Entry, Facts, Group, Source};
pub use link::Link;
pub use membership::{Activity, activity, destroy};
pub use producer::{Producer, Written, identity_mark};
pub use survey::{Observation, Survey};
pub use turn::Repeats;

pub use crate::wire::StreamId;

/// Oldest Redis (or Valkey, which reports a compatible number) that has the commands we need.
const OLDEST_MAJOR_VERSION: u32 = 7;

/// The name of the heartbeats' stream, and with it of the other two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamName {
    reports: String,
    windows: String,
    dead: String,
}

impl StreamName {
    /// Key of the heartbeats.
    #[must_use]
    pub fn reports(&self) -> &str {
        &self.reports
    }

    /// Key of the window announcements.
    #[must_use]
    pub fn windows(&self) -> &str {
        &self.windows
    }

    /// Key of the dead letters.
    #[must_use]
    pub fn dead(&self) -> &str {
        &self.dead
    }

    /// Key of one of the two streams that relays read.
    fn key(&self, source: Source) -> &str {
        match source {
            Source::Windows => &self.windows,
            Source::Heartbeats => &self.reports,
        }
    }

    /// Key of the process that a consumer's name belongs to.
    fn consumer(&self, group: &str, consumer: &str) -> String {
        self.beside(&format!("consumer:{group}:{consumer}"))
    }

    /// Key of the random text that changes when entries may have been lost.
    fn epoch(&self) -> String {
        self.beside("epoch")
    }

    /// Key of how far each group has come.
    fn watermarks(&self) -> String {
        self.beside("watermark")
    }

    /// Key of what each group has missed, and how many entries it has seen the streams be given.
    fn groups(&self) -> String {
        self.beside("groups")
    }

    /// Key of the groups whose monitor counts again what comes again.
    fn repeats(&self) -> String {
        self.beside("repeats")
    }

    /// Keys of the process of a group whose turn it is to send, and of whether others want it.
    fn turn(&self, group: &str) -> [String; 2] {
        ["turn", "wanted"].map(|what| self.beside(&format!("{what}:{group}")))
    }

    /// Key of what each sender has seen to, after Redis may have lost something.
    fn senders(&self) -> String {
        self.beside("senders")
    }

    /// Key of the entries that a group's watermark does not wait for.
    fn suspects(&self, group: &str) -> String {
        self.beside(&format!("suspects:{group}"))
    }

    /// Key of the last dead letter that a group's relays have told the monitor of.
    fn told(&self, group: &str) -> String {
        self.beside(&format!("dead:told:{group}"))
    }

    fn beside(&self, what: &str) -> String {
        format!("{{{}}}:{what}", self.reports)
    }
}

impl FromStr for StreamName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
        if name.is_empty() || name.len() > 100 || !name.chars().all(allowed) {
            return Err("a stream name is 1 to 100 letters, digits and . _ - :".to_owned());
        }
        Ok(Self {
            reports: name.to_owned(),
            windows: format!("{{{name}}}:windows"),
            dead: format!("{{{name}}}:dead"),
        })
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reports)
    }
}

impl FromRedisValue for StreamId {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let text = String::from_redis_value(value)?;
        text.parse().map_err(|error| ParsingError::from(format!("{text:?}: {error}")))
    }
}

/// Why Redis did not do what we asked, by what there is to do about it.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Away, starting, failing over, or out of memory: wait and try again.
    #[error("Redis cannot answer now: {0}")]
    Unavailable(#[source] RedisError),
    /// The consumer group is gone, and with it perhaps the stream: create it again.
    #[error("the consumer group is gone: {0}")]
    NoGroup(#[source] RedisError),
    /// Wrong address, credentials, rights or data type: a person has to change something.
    #[error("Redis refuses us: {0}")]
    Configuration(#[source] RedisError),
}

impl StreamError {
    /// What to tell a person who asks why Redis does not serve us; shows no detail.
    #[must_use]
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "Redis cannot be reached or takes no writes now",
            Self::NoGroup(_) => "the consumer group is gone",
            Self::Configuration(_) => "Redis refuses us; see the log",
        }
    }
}

impl From<RedisError> for StreamError {
    fn from(error: RedisError) -> Self {
        let configuration = match error.kind() {
            ErrorKind::AuthenticationFailed
            | ErrorKind::InvalidClientConfig
            | ErrorKind::UnexpectedReturnType
            | ErrorKind::Server(
                ServerErrorKind::NoPerm
                | ServerErrorKind::CrossSlot
                | ServerErrorKind::ResponseError,
            ) => true,
            _ => matches!(error.code(), Some("WRONGTYPE" | "NOAUTH" | "WRONGPASS")),
        };
        if error.code() == Some("NOGROUP") {
            Self::NoGroup(error)
        } else if configuration {
            Self::Configuration(error)
        } else {
            Self::Unavailable(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_streams_share_one_cluster_slot() {
        let name: StreamName = "reports".parse().unwrap();
        assert_eq!(
            [name.reports(), name.windows(), name.dead()],
            ["reports", "{reports}:windows", "{reports}:dead"]
        );
        for bad in ["", "a b", "{a}", "a\0", &"x".repeat(101)] {
            assert!(bad.parse::<StreamName>().is_err(), "{bad}");
        }
    }
}
