//! Windows that were over before the group existed: their heartbeats may have gone to others, so that
//! whoever announced them to the monitor now would make it miss them all.

use std::sync::atomic::{AtomicU64, Ordering};

use super::deliver::Delivery;
use crate::stream::{Created, Creation, Entry, Source, StreamId};
use crate::wire::{Announcement, Tick, Timestamp};

/// Up to when heartbeats may have gone to others before the group existed, in microseconds since
/// 1970.
#[derive(Debug, Default)]
pub struct Missed(AtomicU64);

impl Missed {
    /// Takes over what is known of a group that exists now, and says in the log how it was found.
    pub fn learn(&self, created: &Created) {
        let until = u64::try_from(created.missed_until.micros()).unwrap_or(0);
        self.0.store(until, Ordering::Relaxed);
        match created.how {
            Creation::Found => (),
            Creation::New => {
                tracing::info!("created the consumer group on the streams where it was missing");
                if until > 0 {
                    let until = created.missed_until;
                    tracing::info!(%until, "others have read heartbeats until then: announcements of windows that were over are skipped");
                }
            }
            Creation::Again => tracing::warn!(
                "the consumer group was gone and has been created again: somebody destroyed it; \
                 every entry is still there, and all are read again"
            ),
            Creation::AfterLoss => tracing::error!(
                "the consumer group was gone and entries of the streams with it: it has been \
                 created again, and the senders are told to send them again"
            ),
        }
    }

    /// Whether an entry announces a window that was over by then. What cannot be read does not: the
    /// monitor says what is wrong with it.
    fn is_none_of_ours(&self, entry: &Entry) -> bool {
        let until = self.0.load(Ordering::Relaxed);
        if until == 0 || entry.source != Source::Windows {
            return false;
        }
        let until = Timestamp::from_micros(i64::try_from(until).unwrap_or(i64::MAX));
        let payload = entry.payload.as_deref().unwrap_or_default();
        Announcement::parse(payload, Tick::DEFAULT)
            .is_ok_and(|announcement| announcement.window.ends_at() <= until)
    }
}

impl Delivery {
    /// Acknowledges the announcements of windows that are none of ours. Answers all other entries.
    pub(super) async fn skip_missed(&self, mut entries: Vec<Entry>) -> Vec<Entry> {
        let missed = entries.extract_if(.., |entry| self.missed.is_none_of_ours(entry));
        let ids: Vec<StreamId> = missed.map(|entry| entry.id).collect();
        if !ids.is_empty() {
            tracing::info!(
                announcements = ids.len(),
                "skipped windows that were over before this consumer group existed"
            );
            self.metrics.skipped.inc_by(ids.len() as u64);
            self.acknowledge(Source::Windows, &ids).await;
        }
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_announcements_of_windows_that_were_over_are_missed() {
        let missed = Missed::default();
        let entry = |source, payload: &str| Entry {
            source,
            id: StreamId::default(),
            payload: Some(payload.as_bytes().to_vec()),
            is_deleted: false,
        };
        let until = |to: &str| {
            format!(
                r#"{{"service":"payments-a","window_uuid":"6f1c1f0e-5f0c-4f43-9a55-0d2b1f2a7f10",
                "window_from":"2026-11-21T10:00:00Z","window_to":"2026-11-21T{to}Z",
                "tick_seconds":10}}"#
            )
        };
        let over = entry(Source::Windows, &until("10:02:00"));
        assert!(!missed.is_none_of_ours(&over), "nothing is missed");
        let missed_until = Timestamp::parse("2026-11-21T10:02:00Z").unwrap();
        missed.learn(&Created { how: Creation::New, missed_until });
        assert!(missed.is_none_of_ours(&over));
        for (source, payload) in [
            (Source::Windows, until("10:02:00.001")),
            // Its last slot goes on.
            (Source::Windows, until("10:01:55").replace(":10}", ":50}")),
            (Source::Windows, "{}".to_owned()),
            (Source::Heartbeats, until("10:02:00")),
        ] {
            assert!(!missed.is_none_of_ours(&entry(source, &payload)), "{payload}");
        }
    }
}
