//! A monitor that serves on a port of its own, and whoever asks it.

use std::time::Duration;

use heartbeat::http;
use heartbeat::monitor::{Monitor, api};
use reqwest::{Client, StatusCode};
use serde_json::Value;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Ground, answer};

/// A monitor's API.
pub struct Api {
    /// Address of the monitor.
    pub base: String,
    /// Its state.
    pub monitor: Monitor,
    client: Client,
    _stop: DropGuard,
}

impl Api {
    /// A monitor on a ground of its own.
    pub async fn new() -> Self {
        Self::of(Ground::new().await.monitor().await).await
    }

    /// A monitor with this state.
    pub async fn of(monitor: Monitor) -> Self {
        let listener = http::bind("127.0.0.1:0".parse().unwrap(), "a test").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let router = api::router(monitor.clone());
        tokio::spawn(http::serve(listener, router, api::MAX_BODY_BYTES, stop.clone()));
        let client = http::client(Duration::from_secs(20)).unwrap();
        Self { base, monitor, client, _stop: stop.drop_guard() }
    }

    /// Posts to a path below `/api/monitor/`.
    pub async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> (StatusCode, Value) {
        let request = self.client.post(format!("{}/api/monitor/{path}", self.base)).body(body);
        answer(request.send().await.unwrap()).await
    }

    /// Posts nothing to a path below `/api/monitor/`, and shows a token.
    pub async fn post_as(&self, path: &str, token: &str) -> (StatusCode, Value) {
        let request = self.client.post(format!("{}/api/monitor/{path}", self.base));
        answer(request.bearer_auth(token).send().await.unwrap()).await
    }

    /// Asks for a path.
    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        let request = self.client.get(format!("{}{path}", self.base));
        answer(request.send().await.unwrap()).await
    }
}

/// The text of a refusal.
pub fn error(value: &Value) -> &str {
    value["error"].as_str().unwrap_or_else(|| panic!("no error in {value}"))
}
