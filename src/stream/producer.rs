//! Writing heartbeats and announcements to the streams.

use std::sync::Arc;

use redis::pipe;

use super::{Link, StreamError, StreamId, StreamName};

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

    /// Writes heartbeats, in one round trip; answers the ids of their entries, in order.
    ///
    /// # Errors
    /// When they are not all known to be written. Some may be, so that sending them again can make
    /// duplicates, which the monitor drops.
    pub async fn publish_heartbeats(
        &self,
        payloads: &[String],
    ) -> Result<Vec<StreamId>, StreamError> {
        self.publish(self.stream.reports(), payloads).await
    }

    /// Writes announcements of windows, in one round trip; answers the ids of their entries, in
    /// order.
    ///
    /// # Errors
    /// As for [`Producer::publish_heartbeats`].
    pub async fn publish_announcements(
        &self,
        payloads: &[String],
    ) -> Result<Vec<StreamId>, StreamError> {
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

    async fn publish(&self, key: &str, payloads: &[String]) -> Result<Vec<StreamId>, StreamError> {
        let mut commands = pipe();
        for payload in payloads {
            commands.cmd("XADD").arg(key).arg("*").arg("payload").arg(payload);
        }
        self.link.query_all(&commands).await
    }
}
