//! One heartbeat: a service's word that it was alive at a slot of a window.

use super::raw::{RawMessage, named};
use super::{Slot, Status, StreamId, Tick, Timestamp, TraceParent, Window, WireError};

/// One heartbeat. `(window.uuid, slot)` is its identity and makes every step idempotent.
#[derive(Clone, Debug, PartialEq)]
pub struct Heartbeat {
    /// The window as this sender defines it. The monitor's own, first definition decides.
    pub window: Window,
    /// How the sender is.
    pub status: Status,
    /// The sender's clock when it sent.
    pub timestamp: Timestamp,
    /// The slot, if the sender named it; it may lie outside of the window.
    pub slot: Option<i64>,
    /// The id of the stream entry that carried it, if a relay did.
    pub stream_id: Option<StreamId>,
}

impl Heartbeat {
    /// Reads a heartbeat. `default_tick` stands in for a missing `tick_seconds`.
    ///
    /// # Errors
    /// Anything that is not a heartbeat within the limits of [this module](super).
    pub fn parse(payload: &[u8], default_tick: Tick) -> Result<Self, WireError> {
        let mut raw = RawMessage::parse(payload)?;
        let missing = raw.missing(true);
        let (true, Some(status), Some(timestamp)) =
            (missing.is_empty(), raw.status.take(), raw.timestamp.take())
        else {
            return Err(WireError::Missing(missing));
        };
        let stream_id = raw.take_stream_id()?;
        Ok(Self {
            status: named("status", status.parse())?,
            timestamp: named("timestamp", Timestamp::parse(&timestamp))?,
            slot: raw.slot,
            stream_id,
            window: raw.into_window(default_tick)?,
        })
    }

    /// This heartbeat as the stream carries it.
    #[must_use]
    pub fn to_json(&self) -> String {
        RawMessage::of_heartbeat(self).to_json()
    }

    /// The same, and the trace that it belongs to.
    #[must_use]
    pub fn to_traced_json(&self, trace: &TraceParent) -> String {
        RawMessage::of_heartbeat(self).with_trace(trace).to_json()
    }

    /// Whether another heartbeat of the same slot repeats this one, or contradicts it.
    #[must_use]
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.timestamp == other.timestamp && self.status == other.status
    }

    /// Its place in a window: the slot that it names, else the one its timestamp falls into.
    #[must_use]
    pub fn slot_in(&self, window: &Window) -> Slot {
        window.slot_of(self.slot, self.timestamp)
    }

    /// How far the sender's clock is behind Redis' clock at the most, in microseconds, never
    /// negative. None unless a relay carried it.
    #[must_use]
    pub fn clock_offset_us(&self) -> Option<i64> {
        Some(self.stream_id?.clock_offset_us(self.timestamp))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::wire::Rates;

    fn minimal() -> Value {
        json!({
            "service": "payments-a",
            "status": "ok",
            "window_uuid": "6f1c1f0e-5f0c-4f43-9a55-0d2b1f2a7f10",
            "window_from": "2026-11-21T10:00:00Z",
            "window_to": "2026-11-21T10:02:30Z",
            "timestamp": "2026-11-21T10:00:10Z",
        })
    }

    fn with(name: &str, value: Value) -> Value {
        let mut message = minimal();
        message[name] = value;
        message
    }

    fn parse(message: &Value) -> Result<Heartbeat, WireError> {
        Heartbeat::parse(message.to_string().as_bytes(), Tick::DEFAULT)
    }

    #[test]
    fn the_oldest_senders_six_members_are_enough() {
        let heartbeat = parse(&minimal()).unwrap();
        assert_eq!(heartbeat.window.slots(), 15);
        assert_eq!(heartbeat.slot_in(&heartbeat.window), Slot::Scheduled(1));
    }

    #[test]
    fn every_shape_of_the_wire_format_is_read() {
        let shapes = [
            with("timestamp", json!("2026-11-21T10:00:10")),
            with("timestamp", json!("2026-11-21T10:00:10.000001+00:00")),
            with("timestamp", json!("2026-11-21T05:00:10-05:00")),
            with("window_from", json!("2026-11-21T10:00:00")),
            with("status", json!("ERROR")),
            with("status", json!("error:boom")),
            with("unknown_member", json!({"a": [1, 2]})),
            with("tick_seconds", json!(10)),
            with("slot", json!(1)),
            with("stream_id", json!("1732183210000-0")),
            with("window_uuid", json!("6F1C1F0E5F0C4F439A550D2B1F2A7F10")),
            with("traceparent", json!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")),
            with("traceparent", json!("01-no-trace")),
            with("traceparent", json!({"no": ["trace"]})),
        ];
        for shape in shapes {
            let heartbeat = parse(&shape).unwrap_or_else(|error| panic!("{shape}: {error}"));
            assert_eq!(heartbeat.slot_in(&heartbeat.window), Slot::Scheduled(1), "{shape}");
        }
    }

    #[test]
    fn a_named_slot_wins_over_the_timestamp() {
        let heartbeat = parse(&with("slot", json!(7))).unwrap();
        assert_eq!(heartbeat.slot_in(&heartbeat.window), Slot::Scheduled(7));
        for outside in [-1, 15, i64::MAX, i64::MIN] {
            let heartbeat = parse(&with("slot", json!(outside))).unwrap();
            assert_eq!(heartbeat.slot_in(&heartbeat.window), Slot::Unscheduled(outside));
        }
    }

    #[test]
    fn missing_members_are_all_named() {
        let error = Heartbeat::parse(br#"{"service":"a","status":null}"#, Tick::DEFAULT);
        let names = vec!["status", "window_uuid", "window_from", "window_to", "timestamp"];
        assert_eq!(error, Err(WireError::Missing(names)));
    }

    #[test]
    fn each_bad_member_is_named_in_its_error() {
        let table = [
            ("service", json!(5), "service has the wrong type"),
            ("service", json!(""), "service must be 1 to 100 characters"),
            ("service", json!("a\u{0}b"), "service must be"),
            ("service", json!("x'; DROP TABLE windows; --"), "service must be"),
            ("service", json!("x".repeat(5_000)), "service must be"),
            ("status", json!("fine"), "status must be \"ok\""),
            ("status", json!(["ok"]), "status has the wrong type"),
            ("window_uuid", json!("not-a-uuid"), "window_uuid must be a UUID"),
            ("window_from", json!("yesterday"), "window_from must be an ISO 8601 time"),
            ("window_to", json!("2026-11-21T09:00:00Z"), "window_to must be later"),
            ("window_to", json!("9999-01-01T00:00:00Z"), "window_to must be a time in the years"),
            ("window_to", json!("2027-11-21T10:00:00Z"), "a window may have at most 100000 slots"),
            ("timestamp", json!(1_732_183_210), "timestamp has the wrong type"),
            ("tick_seconds", json!(0), "tick_seconds must be a number from 0.05 to 3600"),
            ("slot", json!(1.5), "slot has the wrong type"),
            ("error_status_generado", json!(1.5), "error_status_generado must be"),
            ("stream_id", json!("1; DROP"), "stream_id must be an id"),
        ];
        for (name, value, expected) in table {
            let error = parse(&with(name, value)).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{name}: {error}");
        }
    }

    #[test]
    fn what_is_no_json_object_is_refused_with_the_reason() {
        let too_large = vec![b' '; 20_000];
        let table: [(&[u8], &str); 6] = [
            (b"", "the message is not JSON"),
            (b"{\"service\":", "the message is not JSON"),
            (b"[1,2]", "the message must be one JSON object"),
            (b"\"ok\"", "the message must be one JSON object"),
            (b"{\"service\":\"\xff\"}", "the message is not valid UTF-8"),
            (&too_large, "a message may have at most 16384 bytes"),
        ];
        for (payload, expected) in table {
            let error = Heartbeat::parse(payload, Tick::DEFAULT).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn a_sender_can_be_behind_and_is_never_taken_for_ahead() {
        let offset = |id: &str| {
            let id = id.parse().ok();
            Heartbeat { stream_id: id, ..parse(&minimal()).unwrap() }.clock_offset_us()
        };
        // The stamp is 2026-11-21T10:00:10Z.
        assert_eq!(offset("1795255212500-3"), Some(2_500_000));
        assert_eq!(offset("1795255200000-0"), Some(0));
        assert_eq!(offset("none"), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_the_same(
            slot in proptest::option::of(-5_i64..20),
            micros in 0_i64..150_000_000,
            tick in 50_000_i64..60_000_000,
            message in proptest::option::of("[a-zA-Z0-9 :\"\\\\]{0,40}"),
            rate in proptest::option::of(0.0_f64..1.0),
        ) {
            let mut heartbeat = parse(&minimal()).unwrap();
            heartbeat.slot = slot;
            heartbeat.timestamp = heartbeat.timestamp.plus_micros(micros);
            heartbeat.status = format!("error:{}", message.unwrap_or_default()).parse().unwrap();
            let window = heartbeat.window.clone();
            heartbeat.window = Window::new(
                window.uuid, window.service.clone(), (window.from(), window.to()),
                Tick::from_micros(tick).unwrap(), Rates::new(rate, rate).unwrap(),
            ).unwrap();
            let json = heartbeat.to_json();
            let again = Heartbeat::parse(json.as_bytes(), Tick::DEFAULT);
            prop_assert_eq!(again.as_ref(), Ok(&heartbeat));
            let trace = TraceParent::of_slot(heartbeat.window.uuid, 7);
            let traced = heartbeat.to_traced_json(&trace);
            let last = format!(",\"traceparent\":\"{trace}\"}}");
            prop_assert_eq!(traced.strip_suffix(&last), json.strip_suffix('}'));
            prop_assert_eq!(Heartbeat::parse(traced.as_bytes(), Tick::DEFAULT), Ok(heartbeat));
        }

        #[test]
        fn no_bytes_make_the_parser_panic(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Heartbeat::parse(&payload, Tick::DEFAULT);
        }
    }
}
