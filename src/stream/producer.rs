//! Writing heartbeats and announcements to the streams.

use std::sync::Arc;

use redis::cmd;
use uuid::Uuid;

use super::script::{IDENTIFY, new_epoch};
use super::{Link, StreamError, StreamId, StreamName};

/// Writes payloads to the second key, and says which Redis took them.
const PUBLISH: &str = r"
local ids = {}
for i = 2, #ARGV do ids[i - 1] = redis.call('XADD', KEYS[2], '*', 'payload', ARGV[i]) end
return {identity, ids}
";

/// A short mark of the identity of a Redis, for rows of which there are very many.
#[must_use]
pub fn identity_mark(identity: &str) -> u64 {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, identity.as_bytes()).as_u64_pair().0
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Which Redis, and which data, holds it.
    pub identity: String,
    /// The ids of the entries, in the order of the payloads.
    pub ids: Vec<StreamId>,
}

/// Writes to the streams. An answered write is kept by Redis as far as its own settings promise.
#[derive(Clone, Debug)]
pub struct Producer {
    pub(super) link: Arc<Link>,
    pub(super) stream: StreamName,
}

impl Producer {
    /// A producer that writes through a link.
    #[must_use]
    pub fn new(link: Arc<Link>, stream: StreamName) -> Self {
        Self { link, stream }
    }

    /// Writes heartbeats, in one step.
    ///
    /// # Errors
    /// When they are not known to be written. They may be, so that sending them again can make
    /// duplicates, which the monitor drops.
    pub async fn publish_heartbeats(&self, payloads: &[String]) -> Result<Written, StreamError> {
        self.publish(self.stream.reports(), payloads).await
    }

    /// Writes announcements of windows, in one step.
    ///
    /// # Errors
    /// As for [`Producer::publish_heartbeats`].
    pub async fn publish_announcements(&self, payloads: &[String]) -> Result<Written, StreamError> {
        self.publish(self.stream.windows(), payloads).await
    }

    /// The streams that it writes to.
    #[must_use]
    pub fn stream(&self) -> &StreamName {
        &self.stream
    }

    /// Asks whether Redis answers.
    ///
    /// # Errors
    /// That it does not.
    pub async fn ping(&self) -> Result<(), StreamError> {
        self.link.ping().await
    }

    /// Asks which Redis, and which data, this is.
    ///
    /// # Errors
    /// When Redis does not answer or refuses.
    pub async fn identity(&self) -> Result<String, StreamError> {
        let mut command = cmd("EVAL");
        command.arg(format!("{IDENTIFY}return identity")).arg(1).arg(self.stream.epoch());
        self.link.query(command.arg(new_epoch())).await
    }

    async fn publish(&self, key: &str, payloads: &[String]) -> Result<Written, StreamError> {
        let mut command = cmd("EVAL");
        command.arg(format!("{IDENTIFY}{PUBLISH}")).arg(2).arg(self.stream.epoch()).arg(key);
        command.arg(new_epoch()).arg(payloads);
        let (identity, ids) = self.link.query(&command).await?;
        Ok(Written { identity, ids })
    }
}
