//! The trace that a heartbeat belongs to, as W3C Trace Context writes it in `traceparent`.
//!
//! A heartbeat's trace follows from its identity, which is its window and its slot. So it is the
//! same whoever sends the heartbeat again, and however long afterwards, and nobody has to store it.
//!
//! No message is refused for what its `traceparent` says: one that cannot be used is ignored.

use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

/// What the ids of our traces are derived from, besides the identity of a heartbeat.
const NAMESPACE: Uuid = Uuid::from_u128(0x2c9a_6f4e_8d31_4b7a_9e05_61f2_c3d8_4a17);
/// What the id of a trace's first span is derived from, besides that of the trace.
const FIRST_SPAN: &[u8] = b"tick";

/// The member of a message.
const MEMBER: &str = "traceparent";
/// The only version that is known.
const VERSION: &str = "00";
/// Digits of the id of a trace, and of a span.
const DIGITS: (usize, usize) = (32, 16);
/// Where the id of the parent begins: after the version, the id of the trace, and a dash each.
const PARENT_AT: usize = VERSION.len() + 1 + DIGITS.0 + 1;
/// The flag that says that spans of the trace are recorded.
const SAMPLED: u8 = 1;

/// A trace, and the span in it that is the parent of what comes next: a [`traceparent`] of version 00.
///
/// [`traceparent`]: https://www.w3.org/TR/trace-context/#traceparent-header
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    trace_id: u128,
    parent_id: u64,
    is_sampled: bool,
}

impl TraceParent {
    /// That of the heartbeat of a slot, whose parent is the first span of its trace. Not sampled.
    #[must_use]
    pub fn of_slot(window: Uuid, slot: u32) -> Self {
        let mut name = [0; 20];
        name[..16].copy_from_slice(window.as_bytes());
        name[16..].copy_from_slice(&slot.to_be_bytes());
        let trace = Uuid::new_v5(&NAMESPACE, &name);
        // A UUID of version 5 is never zero, in neither half.
        let (parent_id, _) = Uuid::new_v5(&trace, FIRST_SPAN).as_u64_pair();
        Self { trace_id: trace.as_u128(), parent_id, is_sampled: false }
    }

    /// Reads the text of a member or header; none if it is not valid, or of another version.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split('-');
        let (version, trace_id) = (fields.next()?, hex(fields.next()?, DIGITS.0)?);
        let (parent_id, flags) = (hex(fields.next()?, DIGITS.1)?, hex(fields.next()?, 2)?);
        if version != VERSION || fields.next().is_some() || trace_id == 0 || parent_id == 0 {
            return None;
        }
        let parent_id = u64::try_from(parent_id).ok()?;
        Some(Self { trace_id, parent_id, is_sampled: flags & u128::from(SAMPLED) != 0 })
    }

    /// That of a message, and where in its text the id of the parent stands. None if the message
    /// has no valid one, in plain characters and once.
    #[must_use]
    pub fn in_message(json: &str) -> Option<(Self, Range<usize>)> {
        #[derive(Deserialize)]
        struct Members<'j> {
            #[serde(borrow)]
            traceparent: Option<&'j RawValue>,
        }
        if !json.contains(MEMBER) {
            return None;
        }
        let members: Members = serde_json::from_str(json).ok()?;
        let text = members.traceparent?.get().strip_prefix('"')?.strip_suffix('"')?;
        let trace = Self::parse(text)?;
        let start = text.as_ptr().addr() - json.as_ptr().addr() + PARENT_AT;
        Some((trace, start..start + DIGITS.1))
    }

    /// The same, with or without the flag that spans of the trace are recorded.
    #[must_use]
    pub const fn with_sampled(self, is_sampled: bool) -> Self {
        Self { is_sampled, ..self }
    }

    /// Whether spans of the trace are recorded, as whoever began it has decided.
    #[must_use]
    pub const fn is_sampled(&self) -> bool {
        self.is_sampled
    }

    /// Id of the trace, never zero.
    #[must_use]
    pub const fn trace_id(&self) -> u128 {
        self.trace_id
    }

    /// Id of the parent, never zero.
    #[must_use]
    pub const fn parent_id(&self) -> u64 {
        self.parent_id
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace_id, parent_id, is_sampled } = self;
        write!(f, "{VERSION}-{trace_id:032x}-{parent_id:016x}-{:02x}", u8::from(*is_sampled))
    }
}

/// A field: so many digits, of which the letters are small.
fn hex(field: &str, digits: usize) -> Option<u128> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_valid = field.len() == digits && field.bytes().all(is_digit);
    is_valid.then(|| u128::from_str_radix(field, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const EXAMPLE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn the_examples_of_the_recommendation_are_read() {
        let sampled = TraceParent::parse(EXAMPLE).unwrap();
        assert_eq!(sampled.trace_id(), 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!(sampled.parent_id(), 0xb7ad_6b71_6920_3331);
        assert!(sampled.is_sampled());
        let not = TraceParent::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00");
        assert!(!not.unwrap().is_sampled());
        // Flags that have no meaning yet do not make it invalid.
        for (flags, is_sampled) in [("02", false), ("03", true), ("fe", false), ("ff", true)] {
            let text = EXAMPLE.replace("-01", &format!("-{flags}"));
            assert_eq!(TraceParent::parse(&text).unwrap().is_sampled(), is_sampled, "{flags}");
        }
    }

    #[test]
    fn what_is_not_valid_is_ignored() {
        let zero = |digits| "0".repeat(digits);
        let table = [
            String::new(),
            "00".to_owned(),
            "---".to_owned(),
            EXAMPLE.to_uppercase(),
            format!(" {EXAMPLE}"),
            format!("{EXAMPLE}-"),
            format!("{EXAMPLE}-00"),
            EXAMPLE.replacen("00-", "01-", 1),
            EXAMPLE.replacen("00-", "ff-", 1),
            EXAMPLE.replacen("00-", "0-", 1),
            EXAMPLE.replace("-01", "-1"),
            EXAMPLE.replace("-01", "-0g"),
            EXAMPLE.replace("-01", ""),
            EXAMPLE.replace("0af7", "+af7"),
            EXAMPLE.replace("0af7", "af7"),
            EXAMPLE.replace("b7ad", "0b7ad"),
            EXAMPLE.replace("0af7651916cd43dd8448eb211c80319c", &zero(32)),
            EXAMPLE.replace("b7ad6b7169203331", &zero(16)),
        ];
        for text in table {
            assert_eq!(TraceParent::parse(&text), None, "{text}");
        }
    }

    /// Others derive nothing from this, but a repair by a newer program must find the same trace.
    #[test]
    fn a_heartbeats_trace_never_changes() {
        let window: Uuid = "6f1c1f0e-5f0c-4f43-9a55-0d2b1f2a7f10".parse().unwrap();
        let texts = [0, 1, u32::MAX].map(|slot| TraceParent::of_slot(window, slot).to_string());
        assert_eq!(
            texts,
            [
                "00-d9dc322fb61356f1814c64f18ad4b954-8cf1647ee485504c-00",
                "00-26e1962691e55745b64097be6796e715-a6d45d5ab77d50f5-00",
                "00-22ce9c7504de5dd792b95a7d11ecf4ce-5952e46d355e580c-00",
            ]
        );
    }

    #[test]
    fn a_message_is_looked_through_without_taking_it_apart() {
        let found =
            |json: &str| TraceParent::in_message(json).map(|(_, place)| json[place].to_owned());
        let parent = Some("b7ad6b7169203331".to_owned());
        assert_eq!(found(&format!(r#"{{"traceparent":"{EXAMPLE}"}}"#)), parent);
        assert_eq!(
            found(&format!(r#" {{ "a":"{EXAMPLE}", "traceparent" : "{EXAMPLE}" }}"#)),
            parent
        );
        for json in [
            "{}",
            "traceparent",
            r#"{"traceparent":null}"#,
            r#"{"traceparent":7}"#,
            r#"{"traceparent":{"traceparent":"x"}}"#,
            &format!(r#"{{"a":{{"traceparent":"{EXAMPLE}"}}}}"#),
            &format!(r#"{{"traceparent":"{EXAMPLE}","traceparent":"{EXAMPLE}"}}"#),
            &format!(r#"{{"traceparent":"\u0030{}"}}"#, &EXAMPLE[1..]),
            &format!(r#"["traceparent","{EXAMPLE}"]"#),
        ] {
            assert_eq!(found(json), None, "{json}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_the_same(
            trace_id in 1_u128.., parent_id in 1_u64.., is_sampled: bool,
        ) {
            let trace = TraceParent { trace_id, parent_id, is_sampled };
            let text = trace.to_string();
            prop_assert_eq!(text.len(), 55);
            prop_assert_eq!(TraceParent::parse(&text), Some(trace));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,60}", cut in 0_usize..55) {
            let _ = TraceParent::parse(&text);
            let _ = TraceParent::parse(&EXAMPLE[..cut]);
            let _ = TraceParent::in_message(&text);
            let _ = TraceParent::in_message(&json!({"traceparent": text}).to_string());
        }

        #[test]
        fn each_slot_has_a_valid_trace_of_its_own(window: u128, slot: u32, other: u32) {
            let window = Uuid::from_u128(window);
            let trace = TraceParent::of_slot(window, slot);
            prop_assert_eq!(TraceParent::parse(&trace.to_string()), Some(trace));
            prop_assert_eq!(trace == TraceParent::of_slot(window, other), slot == other);
        }

        #[test]
        fn another_parent_changes_nothing_else_of_a_message(before in "\\PC{0,20}", parent in 1_u64..) {
            let mut message = json!({"before": before, "traceparent": EXAMPLE, "z": EXAMPLE});
            let mut json = message.to_string();
            let (trace, place) = TraceParent::in_message(&json).unwrap();
            json.replace_range(place, &format!("{parent:016x}"));
            message["traceparent"] = TraceParent { parent_id: parent, ..trace }.to_string().into();
            prop_assert_eq!(json, message.to_string());
        }
    }
}
