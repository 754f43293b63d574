//! The way to the monitor, and what its answers mean.
//!
//! The classification decides whether a message is sent again, set aside, or waits for a person:
//!
//! | answer | meaning |
//! |---|---|
//! | 2xx with the expected body | taken, or refused item by item |
//! | 400, 413, 422 with a monitor's error | this request cannot be taken: cut it in two; one message alone is refused |
//! | 500 | the monitor failed, perhaps because of this very message |
//! | 408, 425, 429, other 5xx, no answer | the monitor cannot take anything now |
//! | 404, 405 of a newer resource | an old monitor, if it knows the oldest resource |
//! | everything else | wrong address or credentials: a person has to look |

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::item::Item;
use crate::clock;
use crate::config::MonitorUrl;
use crate::http;
use crate::stream::Source;
use crate::wire::PipelineReport;

/// How long a monitor is taken for an old one before the newer resources are tried again.
const OLD_MONITOR_FOR: Duration = Duration::from_mins(1);
/// Longest wait that a monitor may ask for.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// Bytes of an answer that is not ours which are shown to a person.
const SHOWN_BYTES: usize = 200;

/// What came of sending messages.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The monitor has committed, or refuses with a reason, each message.
    Taken(Vec<Result<(), String>>),
    /// The request as a whole cannot be taken.
    Refused(String),
    /// The monitor takes messages one by one only.
    OneByOne,
    /// Announcements, which an old monitor does not know: nothing was sent.
    NotForOldMonitors,
    /// The monitor failed on this request.
    Failed(String),
    /// The monitor cannot take anything now.
    Unavailable {
        /// Why.
        reason: String,
        /// How long the monitor asks to wait.
        wait: Option<Duration>,
    },
    /// There is no monitor at this address, or it does not let us in.
    Misconfigured(String),
}

/// Speaks to the monitor.
#[derive(Debug)]
pub struct Forwarder {
    client: Client,
    monitor: MonitorUrl,
    /// Until when the monitor is taken for an old one, in microseconds since 1970.
    old_until: AtomicU64,
}

/// One entry of a batch's answer.
#[derive(Deserialize)]
struct Outcome {
    outcome: String,
    reason: Option<String>,
}

impl Forwarder {
    /// A way to a monitor that has `timeout` to answer.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn new(monitor: MonitorUrl, timeout: Duration) -> anyhow::Result<Self> {
        let client = http::client(timeout).context("preparing HTTP")?;
        Ok(Self { client, monitor, old_until: AtomicU64::new(0) })
    }

    /// Sends messages of one stream together.
    pub async fn send(&self, source: Source, items: &[Item]) -> Answer {
        let resource = match source {
            Source::Heartbeats => "heartbeats/batch",
            Source::Windows => "windows/batch",
        };
        let bodies: Vec<&str> = items.iter().map(Item::json).collect();
        let body = format!("[{}]", bodies.join(","));
        let response = match self.post(self.monitor.join(resource), body).await {
            Ok(response) => response,
            Err(error) => return no_answer(&error),
        };
        match response.status() {
            status if is_unknown(status) => self.meet_old_monitor().await,
            status if status.is_success() => outcomes(response, items.len()).await,
            // Whoever says that it is too much: less may pass.
            StatusCode::PAYLOAD_TOO_LARGE if items.len() > 1 => {
                Answer::Refused("413 Payload Too Large".to_owned())
            }
            _ => classify(response).await,
        }
    }

    /// Sends a heartbeat as an original monitor takes it.
    pub(super) async fn send_one(&self, item: &Item) -> Answer {
        match self.post(self.monitor.join("heartbeats"), item.json().to_owned()).await {
            Ok(response) if response.status().is_success() => accepted(response).await,
            Ok(response) => classify(response).await,
            Err(error) => no_answer(&error),
        }
    }

    /// Finds out whether an old monitor stands where a newer resource is missing: it refuses an
    /// empty heartbeat by name, which nothing else does.
    async fn meet_old_monitor(&self) -> Answer {
        let url = self.monitor.join("heartbeats");
        match self.post(url.clone(), "{}".to_owned()).await {
            Ok(response) if response.status() == StatusCode::BAD_REQUEST => {
                let body = response.bytes().await.unwrap_or_default();
                if !is_a_monitors_refusal(&body) {
                    return Answer::Misconfigured(format!("no monitor's answer: {}", shown(&body)));
                }
                let until = clock::now().plus(OLD_MONITOR_FOR).micros();
                self.old_until.store(u64::try_from(until).unwrap_or(0), Ordering::Relaxed);
                tracing::info!("the monitor takes heartbeats one by one and no announcements");
                Answer::OneByOne
            }
            Ok(response) if response.status() == StatusCode::NOT_FOUND => {
                Answer::Misconfigured(format!("there is no monitor at {url}: 404 Not Found"))
            }
            Ok(response) => classify(response).await,
            Err(error) => no_answer(&error),
        }
    }

    /// Tells the monitor where delivery stands. Answers whether it knows such reports, which an old
    /// monitor does not.
    ///
    /// # Errors
    /// Why the monitor did not take the report.
    pub async fn report(&self, report: &PipelineReport) -> Result<bool, String> {
        let body = serde_json::to_string(report).map_err(|error| error.to_string())?;
        let response = self.post(self.monitor.join("pipeline"), body).await;
        let response = response.map_err(|error| unreached(&error))?;
        match response.status() {
            status if status.is_success() => {
                self.old_until.store(0, Ordering::Relaxed);
                Ok(true)
            }
            status if is_unknown(status) => {
                // It may be any other, so that a resource decides of which an old one has none.
                if !self.takes_one_by_one() {
                    self.send(Source::Heartbeats, &[]).await;
                }
                Ok(false)
            }
            status => {
                let body = response.bytes().await.unwrap_or_default();
                Err(format!("the monitor answered {status}: {}", shown(&body)))
            }
        }
    }

    /// Whether the monitor is taken for an old one: heartbeats one by one and no announcements.
    #[must_use]
    pub fn takes_one_by_one(&self) -> bool {
        u64::try_from(clock::now().micros()).unwrap_or(0) < self.old_until.load(Ordering::Relaxed)
    }

    async fn post(&self, url: Url, body: String) -> reqwest::Result<Response> {
        let request = self.client.post(url).header(CONTENT_TYPE, "application/json");
        request.body(body).send().await
    }
}

/// Whether an old monitor answers so where a newer resource is.
fn is_unknown(status: StatusCode) -> bool {
    matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED)
}

fn no_answer(error: &reqwest::Error) -> Answer {
    Answer::Unavailable { reason: unreached(error), wait: None }
}

fn unreached(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        "the monitor did not answer in time".to_owned()
    } else {
        format!("the monitor cannot be reached: {}", http::innermost(error))
    }
}

async fn outcomes(response: Response, expected: usize) -> Answer {
    let body = match response.bytes().await {
        Ok(body) => body,
        Err(error) => return no_answer(&error),
    };
    match serde_json::from_slice::<Vec<Outcome>>(&body) {
        Ok(outcomes) if outcomes.len() == expected && outcomes.iter().all(Outcome::is_known) => {
            Answer::Taken(outcomes.into_iter().map(Outcome::into_result).collect())
        }
        _ => Answer::Misconfigured(format!("an answer that is no monitor's: {}", shown(&body))),
    }
}

impl Outcome {
    /// Whether it is one that we know: what means neither committed nor refused must not be taken
    /// for either.
    fn is_known(&self) -> bool {
        ["recorded", "duplicate", "late", "unscheduled", "rejected"].contains(&&*self.outcome)
    }

    fn into_result(self) -> Result<(), String> {
        match self.outcome.as_str() {
            "rejected" => Err(self.reason.unwrap_or_else(|| "refused without a reason".to_owned())),
            _ => Ok(()),
        }
    }
}

async fn accepted(response: Response) -> Answer {
    let body = match response.bytes().await {
        Ok(body) => body,
        Err(error) => return no_answer(&error),
    };
    match serde_json::from_slice::<BTreeMap<String, &RawValue>>(&body) {
        Ok(members) if members.contains_key("heartbeat") => Answer::Taken(vec![Ok(())]),
        _ => Answer::Misconfigured(format!("an answer that is no monitor's: {}", shown(&body))),
    }
}

/// What an answer without success means.
async fn classify(response: Response) -> Answer {
    let status = response.status();
    let wait = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(|seconds| Duration::from_secs(seconds).min(LONGEST_WAIT));
    let body = response.bytes().await.unwrap_or_default();
    let reason = format!("the monitor answered {status}: {}", shown(&body));
    match status.as_u16() {
        400 | 413 | 422 if is_a_monitors_refusal(&body) => Answer::Refused(reason),
        500 => Answer::Failed(reason),
        408 | 425 | 429 | 502..=504 | 506..=599 => Answer::Unavailable { reason, wait },
        _ => Answer::Misconfigured(reason),
    }
}

/// Whether a refusal has the form that monitors give it. Without it something else refuses, such as
/// a proxy, and that is no fault of the message.
fn is_a_monitors_refusal(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Refusal {
        #[serde(rename = "error")]
        _error: String,
    }
    serde_json::from_slice::<Refusal>(body).is_ok()
}

fn shown(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body.get(..SHOWN_BYTES).unwrap_or(body));
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
