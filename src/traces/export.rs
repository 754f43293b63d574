//! Sending spans, in batches, to a collector that may be slow or away.
//!
//! The loop is our own, because that of OpenTelemetry's SDK tells nobody how many spans it drops,
//! and keeps a thread on which our HTTP client cannot run.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use futures_util::future::BoxFuture;
use opentelemetry::KeyValue;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanExporter as _;
use reqwest::Url;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::Span;
use crate::http;
use crate::metrics::{IntCounter, IntCounterVec};

/// Most spans of one request.
const MOST_SPANS: usize = 512;
/// How long spans wait for others to fill a request.
const GATHER: Duration = Duration::from_secs(1);
/// How long the collector may take to answer.
const HTTP_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a batch is tried for, with all repetitions.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is said at the most that spans are lost.
const SAY_EVERY: Duration = Duration::from_mins(1);
/// Largest answer that is read.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Sends spans of one role.
#[derive(Debug)]
pub(super) struct Export {
    exporter: SpanExporter,
    reason: Reason,
    sent: IntCounter,
    failed: IntCounter,
    last_said: Option<Instant>,
}

/// Why a request was not answered, which the exporter does not pass on.
type Reason = Arc<Mutex<Option<String>>>;

impl Export {
    /// Prepares to send to an address. Credentials come from the variables that OpenTelemetry names
    /// for it.
    pub(super) fn new(
        collector: &Url,
        (role, name): (&'static str, &str),
        spans: &IntCounterVec,
    ) -> anyhow::Result<Self> {
        let reason = Reason::default();
        let client = http::client(HTTP_TIMEOUT).context("preparing HTTP")?;
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client { client, reason: Arc::clone(&reason) })
            .with_endpoint(collector.as_str())
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(EXPORT_TIMEOUT)
            .build()?;
        exporter.set_resource(&resource(role, name));
        let [sent, failed] = ["sent", "failed"].map(|outcome| spans.with_label_values(&[outcome]));
        Ok(Self { exporter, reason, sent, failed, last_said: None })
    }

    /// Sends what comes until told to stop, and then what still waits.
    pub(super) async fn run(mut self, mut queue: Receiver<Span>, stop: CancellationToken) {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled(), if !queue.is_closed() => queue.close(),
                () = fill(&mut batch, &mut queue) => (),
            }
            if !batch.is_empty() {
                self.send(mem::take(&mut batch)).await;
            } else if queue.is_closed() && queue.is_empty() {
                return;
            }
        }
    }

    async fn send(&mut self, batch: Vec<Span>) {
        let spans = batch.len() as u64;
        let batch = batch.into_iter().map(Into::into).collect();
        let failure = match timeout(EXPORT_TIMEOUT, self.exporter.export(batch)).await {
            Ok(Ok(())) => return self.sent.inc_by(spans),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("not done within {EXPORT_TIMEOUT:?}"),
        };
        self.failed.inc_by(spans);
        let reason = lock(&self.reason).take().unwrap_or(failure);
        if self.last_said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
            self.last_said = Some(Instant::now());
            let so_far = self.failed.get();
            tracing::warn!(reason, so_far, "the collector does not take spans: they are lost");
        }
    }
}

/// Waits for a span, and a moment longer for others. What came is kept if nobody waits to the end.
async fn fill(batch: &mut Vec<Span>, queue: &mut Receiver<Span>) {
    if queue.recv_many(batch, MOST_SPANS).await == 0 {
        return;
    }
    let others = async {
        while batch.len() < MOST_SPANS && queue.recv_many(batch, MOST_SPANS - batch.len()).await > 0
        {
        }
    };
    timeout(GATHER, others).await.ok();
}

/// What all spans of a process have in common, besides what `OTEL_RESOURCE_ATTRIBUTES` adds.
fn resource(role: &'static str, name: &str) -> Resource {
    Resource::builder()
        .with_service_name(role)
        .with_attributes([
            KeyValue::new("service.namespace", env!("CARGO_PKG_NAME")),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", name.to_owned()),
        ])
        .build()
}

/// Our HTTP client, as the exporter asks for it.
#[derive(Debug)]
struct Client {
    client: reqwest::Client,
    reason: Reason,
}

impl HttpClient for Client {
    fn send_bytes<'client, 'sending>(
        &'client self,
        request: Request<Bytes>,
    ) -> BoxFuture<'sending, Result<Response<Bytes>, HttpError>>
    where
        'client: 'sending,
        Self: 'sending,
    {
        Box::pin(async move {
            let answered = send(&self.client, request).await;
            *lock(&self.reason) = answered.as_ref().err().map(|error| http::innermost(&**error));
            answered
        })
    }
}

async fn send(
    client: &reqwest::Client,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, HttpError> {
    let mut answer = client.execute(request.try_into()?).await?;
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(format!("an answer of more than {MAX_ANSWER_BYTES} bytes").into());
        }
        body.extend_from_slice(&chunk);
    }
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = answer.status();
    *response.headers_mut() = mem::take(answer.headers_mut());
    Ok(response)
}

fn lock(reason: &Reason) -> std::sync::MutexGuard<'_, Option<String>> {
    reason.lock().unwrap_or_else(PoisonError::into_inner)
}
