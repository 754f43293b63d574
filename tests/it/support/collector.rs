//! An OpenTelemetry collector that takes traces over HTTP and keeps them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;

/// A span as a collector sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// As it came.
    pub span: Span,
    /// What is said of it.
    pub attributes: BTreeMap<String, String>,
    /// What is said of the process that it is from.
    pub resource: BTreeMap<String, String>,
}

impl Seen {
    /// The name, without the stream.
    pub fn step(&self) -> &str {
        self.span.name.split(' ').next().unwrap()
    }

    /// An attribute, empty if it is missing.
    pub fn said(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }

    /// Id of the trace, as hexadecimal digits.
    pub fn trace_id(&self) -> String {
        digits(&self.span.trace_id)
    }

    /// Id of the span.
    pub fn id(&self) -> String {
        digits(&self.span.span_id)
    }

    /// Id of its parent, empty if it has none.
    pub fn parent(&self) -> String {
        digits(&self.span.parent_span_id)
    }
}

/// A collector, and what it has taken.
pub struct Collector {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Collector {
    /// One that takes everything.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let router = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&seen));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, seen }
    }

    /// Address of one that takes connections and never answers.
    pub async fn start_silent() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok(connection) = listener.accept().await {
                kept.push(connection);
            }
        });
        format!("http://{address}")
    }

    /// Its address, for `--otlp-endpoint`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it has taken.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn take(
    State(seen): State<Arc<Mutex<Vec<Seen>>>>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let Ok(request) = ExportTraceServiceRequest::decode(body) else {
        return StatusCode::BAD_REQUEST;
    };
    for of_process in request.resource_spans {
        let resource = attributes(of_process.resource.unwrap().attributes);
        for span in of_process.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            let attributes = attributes(span.attributes.clone());
            seen.lock().unwrap().push(Seen { span, attributes, resource: resource.clone() });
        }
    }
    StatusCode::OK
}

fn attributes(list: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |attribute: KeyValue| match attribute.value.unwrap().value.unwrap() {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        other => panic!("no attribute of ours: {other:?}"),
    };
    list.into_iter().map(|attribute| (attribute.key.clone(), text(attribute))).collect()
}

fn digits(id: &[u8]) -> String {
    id.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
