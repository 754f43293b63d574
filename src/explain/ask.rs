//! Asks a monitor for windows and their verdicts.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use reqwest::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;

use crate::config::MonitorUrl;
use crate::http;
use crate::terminal::plain;
use crate::verdict::Verdict;
use crate::wire::{self, Rates, ServiceName, StreamId, Tick, Timestamp, WireError};

/// How long the monitor may take to answer: a little longer than it allows itself.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Windows of one page.
const PAGE: &str = "100";
/// The status of a window that only an audit knows.
pub const UNHEARD: &str = "unheard";
/// Longest part of an answer that is shown, in characters.
const SHOWN_CHARS: usize = 300;

/// A window as it was answered, and what of it matters here.
#[derive(Clone, Debug)]
pub struct Explained {
    /// The answer.
    pub json: Value,
    /// What it says.
    pub facts: Window,
}

/// A window with its slots.
#[derive(Clone, Debug, Deserialize)]
pub struct Window {
    /// Its identity.
    pub window_uuid: Uuid,
    /// The service that promises.
    pub service: String,
    /// `open`, `closed` or `alert`; [`UNHEARD`] if only an audit knows it.
    pub status: String,
    /// Start.
    pub window_from: Timestamp,
    /// End.
    pub window_to: Timestamp,
    /// Seconds between two slots.
    pub tick_seconds: f64,
    /// Share of slots that its sender planned to report as errors.
    pub error_status_generado: Option<f64>,
    /// Share of slots that its sender planned to omit.
    pub error_status_no_reportado: Option<f64>,
    /// Heartbeats that it promises.
    pub expected_reports: u32,
    /// Those of them that arrived.
    pub received_reports: u32,
    /// False when the monitor has deleted the events, so that nothing is said of the slots. An older
    /// monitor keeps them for ever.
    #[serde(default = "events_kept")]
    pub events_kept: bool,
    /// `known` if the audit had a say.
    pub audit: String,
    /// Each of its slots.
    pub slots: Vec<Slot>,
}

const fn events_kept() -> bool {
    true
}

impl Window {
    /// How many heartbeats did not arrive of which nobody can say why any more.
    #[must_use]
    pub fn untold(&self) -> u32 {
        let missing = self.expected_reports.saturating_sub(self.received_reports);
        if self.events_kept { 0 } else { missing }
    }

    /// The window as its heartbeats name it.
    ///
    /// # Errors
    /// That it is none, which no monitor answers.
    pub fn definition(&self) -> Result<wire::Window, WireError> {
        wire::Window::new(
            self.window_uuid,
            self.service.parse()?,
            (self.window_from, self.window_to),
            Tick::from_seconds(self.tick_seconds)?,
            Rates::new(self.error_status_generado, self.error_status_no_reportado)?,
        )
    }

    /// Its slots with one of these verdicts whose heartbeats can be sent again.
    #[must_use]
    pub fn repairable(&self, verdicts: &[Verdict]) -> Vec<Repairable> {
        let slots = self.slots.iter().filter(|slot| verdicts.contains(&slot.verdict));
        let repairable = slots.filter_map(|slot| match slot.verdict {
            Verdict::Lost => slot.audit?.stream_id.map(|entry| (slot.slot, Some(entry))),
            Verdict::Unconfirmed => Some((slot.slot, None)),
            _ => None,
        });
        repairable.map(|(slot, lost)| Repairable { slot, lost }).collect()
    }
}

/// A slot whose heartbeat can be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repairable {
    /// Its number.
    pub slot: u32,
    /// The entry that carried it last and was lost; none if nobody knows of any.
    pub lost: Option<StreamId>,
}

/// A slot with its verdict.
#[derive(Clone, Debug, Deserialize)]
pub struct Slot {
    /// Its number.
    pub slot: u32,
    /// What became of it.
    pub verdict: Verdict,
    /// The sentence; none where nothing is unusual.
    pub explanation: Option<String>,
    /// The sender's row, if there is one.
    pub audit: Option<AuditFacts>,
}

/// What matters here of a row of the audit.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct AuditFacts {
    /// Whether the sender says that it was sent.
    pub sent_to_queue: bool,
    /// The entry that carried it last, if the sender knows it.
    pub stream_id: Option<StreamId>,
}

/// A page of windows, and where the next begins.
#[derive(Clone, Debug, Deserialize)]
pub struct Page {
    windows: Vec<Listed>,
    /// None on the last page.
    pub next: Option<String>,
    /// Whether the audits could be read, if they had to be.
    audit: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Listed {
    window_uuid: Uuid,
}

/// That a monitor does not know what it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotFound(String);

/// That a monitor cannot tell now, as when it cannot read an audit.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(String);

/// What relays report to a monitor.
#[derive(Clone, Debug, Deserialize)]
struct Pipelines {
    pipelines: Vec<Pipeline>,
}

#[derive(Clone, Debug, Deserialize)]
struct Pipeline {
    stream: String,
    redis_identity: String,
    reported_at: Timestamp,
}

impl Page {
    /// The windows of the page, the latest first.
    #[must_use]
    pub fn uuids(&self) -> Vec<Uuid> {
        self.windows.iter().map(|window| window.window_uuid).collect()
    }

    /// Whether an audit that may know more could not be read.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.audit.as_deref() == Some("unreachable")
    }
}

/// A monitor that is asked.
#[derive(Debug)]
pub struct Monitor {
    url: MonitorUrl,
    client: reqwest::Client,
}

impl Monitor {
    /// A monitor at this address.
    ///
    /// # Errors
    /// When the system offers no certificates to trust.
    pub fn new(url: MonitorUrl) -> anyhow::Result<Self> {
        Ok(Self { url, client: http::client(TIMEOUT).context("preparing HTTP")? })
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> &MonitorUrl {
        &self.url
    }

    /// A page of the windows that began at an instant or later.
    ///
    /// # Errors
    /// A sentence for a person.
    pub async fn page(
        &self,
        service: Option<&ServiceName>,
        from: Timestamp,
        cursor: Option<&str>,
    ) -> anyhow::Result<Page> {
        self.page_of("windows", service, from, cursor).await
    }

    /// A page of those of which the monitor has never heard, and only an audit knows. It may be empty
    /// and not the last.
    ///
    /// # Errors
    /// A sentence for a person.
    pub async fn unheard_page(
        &self,
        service: Option<&ServiceName>,
        from: Timestamp,
        cursor: Option<&str>,
    ) -> anyhow::Result<Page> {
        self.page_of("unheard-windows", service, from, cursor).await
    }

    async fn page_of(
        &self,
        resource: &str,
        service: Option<&ServiceName>,
        from: Timestamp,
        cursor: Option<&str>,
    ) -> anyhow::Result<Page> {
        let from = from.to_string();
        let service = service.map(|service| ("service", service.as_str()));
        let cursor = cursor.map(|cursor| ("cursor", cursor));
        let query = [("from", from.as_str()), ("limit", PAGE)];
        let query: Vec<_> = query.into_iter().chain(service).chain(cursor).collect();
        self.read(&self.get(resource, &query).await?)
    }

    /// A window with its slots, also one that only an audit knows.
    ///
    /// # Errors
    /// [`NotFound`], [`Unavailable`], or a sentence for a person.
    pub async fn window(&self, uuid: Uuid) -> anyhow::Result<Explained> {
        let heard = format!("windows/{uuid}");
        let unheard = format!("unheard-windows/{uuid}");
        // A window may be heard of between two questions.
        for resource in [&heard, &unheard] {
            match self.get(resource, &[]).await {
                Err(error) if error.is::<NotFound>() => (),
                answered => return self.explained(answered?),
            }
        }
        self.explained(self.get(&heard, &[]).await?)
    }

    fn explained(&self, json: Value) -> anyhow::Result<Explained> {
        Ok(Explained { facts: self.read(&json)?, json })
    }

    /// Which Redis, and which data, the relays of a stream read, as the group says that reported
    /// last; one that has gone may have read another. None if none has ever reported.
    ///
    /// # Errors
    /// A sentence for a person.
    pub async fn redis_identity(&self, stream: &str) -> anyhow::Result<Option<String>> {
        let known: Pipelines = self.read(&self.get("pipeline", &[]).await?)?;
        let of_stream = known.pipelines.into_iter().filter(|pipeline| pipeline.stream == stream);
        let last = of_stream.max_by_key(|pipeline| pipeline.reported_at);
        Ok(last.map(|pipeline| pipeline.redis_identity))
    }

    async fn get(&self, resource: &str, query: &[(&str, &str)]) -> anyhow::Result<Value> {
        let mut url = self.url.join(resource);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let unreachable = |error: reqwest::Error| {
            let why = if error.is_timeout() {
                format!("does not answer within {} s", TIMEOUT.as_secs())
            } else {
                format!("cannot be reached: {}", http::innermost(&error))
            };
            anyhow!("the monitor at {} {why}; start it, or set --monitor-url", self.url)
        };
        let answer = self.client.get(url).send().await.map_err(unreachable)?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(unreachable)?;
        let json: Option<Value> = serde_json::from_slice(&body).ok();
        match json {
            Some(json) if status.is_success() => Ok(json),
            json => {
                let error = json.as_ref().and_then(|json| json["error"].as_str());
                let text = String::from_utf8_lossy(&body);
                let said: String = error.unwrap_or(&text).chars().take(SHOWN_CHARS).collect();
                let said =
                    format!("the monitor at {} answered {status}: {}", self.url, plain(&said));
                match status {
                    StatusCode::NOT_FOUND => Err(NotFound(said).into()),
                    StatusCode::SERVICE_UNAVAILABLE => Err(Unavailable(said).into()),
                    _ => bail!("{said}"),
                }
            }
        }
    }

    fn read<T: DeserializeOwned>(&self, json: &Value) -> anyhow::Result<T> {
        T::deserialize(json).map_err(|error| {
            anyhow!("what answers at {} is no monitor of this version: {error}", self.url)
        })
    }
}
