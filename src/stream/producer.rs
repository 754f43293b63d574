//! Writing heartbeats and announcements to the streams.

use std::sync::Arc;

use redis::cmd;

use super::{Link, StreamError, StreamId, StreamName};

/// Writes to the streams. An answered write is kept by Redis as far as its own settings promise.
#[derive(Clone, Debug)]
pub struct Producer {
    link: Arc<Link>,
    stream: StreamName,
}

impl Producer {
    /// A producer that writes through a link.
    #[must_use]
    pub fn new(link: Arc<Link>, stream: StreamName) -> Self {
        Self { link, stream }
    }

    /// Writes a heartbeat; answers the id of its entry.
    ///
    /// # Errors
    /// When it is not known to be written. It may be written all the same, so that sending it
    /// again can make a duplicate, which the monitor drops.
    pub async fn publish_heartbeat(&self, payload: &str) -> Result<StreamId, StreamError> {
        self.publish(self.stream.reports(), payload).await
    }

    /// Writes the announcement of a window; answers the id of its entry.
    ///
    /// # Errors
    /// As for [`Producer::publish_heartbeat`].
    pub async fn publish_announcement(&self, payload: &str) -> Result<StreamId, StreamError> {
        self.publish(self.stream.windows(), payload).await
    }

    /// Asks whether Redis answers.
    ///
    /// # Errors
    /// That it does not.
    pub async fn ping(&self) -> Result<(), StreamError> {
        self.link.ping().await
    }

    async fn publish(&self, key: &str, payload: &str) -> Result<StreamId, StreamError> {
        let command = cmd("XADD").arg(key).arg("*").arg("payload").arg(payload).to_owned();
        self.link.query(&command).await
    }
}
