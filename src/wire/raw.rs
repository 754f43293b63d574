//! The members of a message as they stand in its JSON, before they are checked.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::schema::Instant;
use super::{
    Announcement, Heartbeat, MAX_PAYLOAD_BYTES, Rates, ServiceName, Status, StreamId, Tick,
    Timestamp, TraceParent, Window, WireError,
};

/// Every member that we know; others are ignored.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
pub(super) struct RawMessage {
    /// Who promises.
    #[schema(value_type = ServiceName)]
    service: Option<String>,
    /// How the sender is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Status)]
    pub(super) status: Option<String>,
    /// Identity of the window; its first definition stands.
    #[schema(value_type = Uuid)]
    window_uuid: Option<String>,
    /// Start of the window, and due time of slot 0.
    #[schema(value_type = Instant)]
    window_from: Option<String>,
    /// End of the window, exclusive.
    #[schema(value_type = Instant)]
    window_to: Option<String>,
    /// The sender's clock when it sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Instant)]
    pub(super) timestamp: Option<String>,
    /// The sender's clock when it announced the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Instant>)]
    pub(super) announced_at: Option<String>,
    /// Number of the slot; without it, the one that the timestamp falls into.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) slot: Option<i64>,
    /// Seconds between two slots; without it, what the monitor was told.
    #[schema(value_type = Option<Tick>)]
    tick_seconds: Option<f64>,
    /// Share of slots that the sender means to report as errors.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 1)]
    error_status_generado: Option<f64>,
    /// Share of slots that the sender means to omit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 1)]
    error_status_no_reportado: Option<f64>,
    /// The trace that it belongs to. Whoever records spans looks for it: a bad one is no fault.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
    /// The entry of the stream that carried it, as a relay says.
    #[serde(skip_serializing)]
    stream_id: Option<String>,
}

impl RawMessage {
    pub(super) fn parse(payload: &[u8]) -> Result<Self, WireError> {
        if payload.len() > MAX_PAYLOAD_BYTES {
            return Err(WireError::invalid(format!(
                "a message may have at most {MAX_PAYLOAD_BYTES} bytes, this one has {}",
                payload.len()
            )));
        }
        if !payload.trim_ascii_start().starts_with(b"{") {
            return Err(explain(payload));
        }
        serde_json::from_slice(payload).map_err(|_| explain(payload))
    }

    pub(super) fn of_window(window: &Window) -> Self {
        Self {
            service: Some(window.service.to_string()),
            window_uuid: Some(window.uuid.to_string()),
            window_from: Some(window.from().to_string()),
            window_to: Some(window.to().to_string()),
            tick_seconds: Some(window.tick().seconds()),
            error_status_generado: window.rates.error_status_generado,
            error_status_no_reportado: window.rates.error_status_no_reportado,
            ..Self::default()
        }
    }

    pub(super) fn of_heartbeat(heartbeat: &Heartbeat) -> Self {
        Self {
            status: Some(heartbeat.status.to_string()),
            timestamp: Some(heartbeat.timestamp.to_string()),
            slot: heartbeat.slot,
            ..Self::of_window(&heartbeat.window)
        }
    }

    pub(super) fn with_trace(self, trace: &TraceParent) -> Self {
        Self { traceparent: Some(trace.to_string()), ..self }
    }

    pub(super) fn of_announcement(announcement: &Announcement) -> Self {
        Self {
            announced_at: announcement.announced_at.as_ref().map(ToString::to_string),
            ..Self::of_window(&announcement.window)
        }
    }

    /// The id of the entry that carried the message, as the relay that read it says.
    pub(super) fn take_stream_id(&mut self) -> Result<Option<StreamId>, WireError> {
        let parse = |text: String| named("stream_id", text.parse());
        self.stream_id.take().map(parse).transpose()
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|never| {
            unreachable!("numbers and strings always serialise, but: {never}")
        })
    }

    /// The names of the members that are missing, out of those that are asked for.
    pub(super) fn missing(&self, heartbeat: bool) -> Vec<&'static str> {
        let required = [
            ("service", self.service.is_some()),
            ("status", self.status.is_some() || !heartbeat),
            ("window_uuid", self.window_uuid.is_some()),
            ("window_from", self.window_from.is_some()),
            ("window_to", self.window_to.is_some()),
            ("timestamp", self.timestamp.is_some() || !heartbeat),
        ];
        required.into_iter().filter(|(_, there)| !there).map(|(name, _)| name).collect()
    }

    pub(super) fn into_window(self, default_tick: Tick) -> Result<Window, WireError> {
        let missing = self.missing(false);
        let (Some(service), Some(uuid), Some(from), Some(to)) =
            (self.service, self.window_uuid, self.window_from, self.window_to)
        else {
            return Err(WireError::Missing(missing));
        };
        let tick = match self.tick_seconds {
            Some(seconds) => named("tick_seconds", Tick::from_seconds(seconds))?,
            None => default_tick,
        };
        Window::new(
            Uuid::try_parse(&uuid).map_err(|_| {
                WireError::invalid(
                    "window_uuid must be a UUID such as 6f1c1f0e-5f0c-4f43-9a55-0d2b1f2a7f10",
                )
            })?,
            named("service", service.parse())?,
            (
                named("window_from", Timestamp::parse(&from))?,
                named("window_to", Timestamp::parse(&to))?,
            ),
            tick,
            Rates::new(self.error_status_generado, self.error_status_no_reportado)?,
        )
    }
}

/// Puts the member's name before what is wrong with it.
pub(super) fn named<T>(name: &str, result: Result<T, WireError>) -> Result<T, WireError> {
    result.map_err(|error| WireError::invalid(format!("{name} {error}")))
}

/// Reads a refused payload again, more slowly, to say which member is wrong.
fn explain(payload: &[u8]) -> WireError {
    if std::str::from_utf8(payload).is_err() {
        return WireError::invalid("the message is not valid UTF-8");
    }
    let deserializer = &mut serde_json::Deserializer::from_slice(payload);
    match serde_path_to_error::deserialize::<_, RawMessage>(deserializer) {
        _ if payload.trim_ascii_start().starts_with(b"[") => {
            WireError::invalid("the message must be one JSON object, not an array")
        }
        Err(error) if error.inner().is_data() && error.path().iter().len() > 0 => {
            WireError::invalid(format!("{} has the wrong type: {}", error.path(), error.inner()))
        }
        Err(error) if error.inner().is_syntax() || error.inner().is_eof() => {
            WireError::invalid(format!("the message is not JSON: {}", error.inner()))
        }
        _ => WireError::invalid("the message must be one JSON object"),
    }
}
