//! One message on its way: the payload of an entry, and what is sent of it.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::stream::{Entry, StreamId};
use crate::traces::Span;

/// One message on its way.
#[derive(Debug)]
pub struct Item {
    /// The entry that it is from.
    pub id: StreamId,
    payload: Vec<u8>,
    json: String,
    /// That of its delivery, if its trace is recorded.
    span: Option<Box<Span>>,
}

impl Item {
    /// Reads an entry: a JSON object, to which the id of the entry is added. What its members mean, and
    /// whether they may stand there, the monitor says.
    ///
    /// # Errors
    /// Why the entry cannot be sent at all.
    pub fn read(entry: Entry) -> Result<Self, String> {
        let payload = entry.payload.ok_or("the entry has no field named payload")?;
        let no_object = |error| format!("the payload is not a JSON object: {error}");
        let object: &RawValue = serde_json::from_slice(&payload).map_err(no_object)?;
        let members = object.get().strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        let json = match members.map(str::trim_ascii) {
            // The usual case, and the relay's most frequent work: nothing is taken apart.
            Some(members) if !may_name_an_entry(members) => {
                let comma = if members.is_empty() { "" } else { "," };
                format!("{{{members}{comma}\"stream_id\":\"{}\"}}", entry.id)
            }
            _ => with_stream_id(&payload, entry.id).map_err(no_object)?,
        };
        Ok(Self { id: entry.id, payload, json, span: None })
    }

    /// What is sent.
    pub(super) fn json(&self) -> &str {
        &self.json
    }

    /// What tells its heartbeat from any other: window and slot, or the timestamp where it names none,
    /// as in messages of the first senders; the whole payload where these cannot be read.
    pub(super) fn digest(&self) -> Uuid {
        #[derive(Deserialize)]
        struct Identity<'j> {
            window_uuid: &'j str,
            slot: Option<i64>,
            timestamp: &'j str,
        }
        let text = match serde_json::from_slice::<Identity>(&self.payload) {
            Ok(Identity { window_uuid, slot: Some(slot), .. }) => format!("{window_uuid} {slot}"),
            Ok(Identity { window_uuid, timestamp, .. }) => format!("{window_uuid} at {timestamp}"),
            Err(_) => return Uuid::new_v5(&Uuid::NAMESPACE_OID, &self.payload),
        };
        Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes())
    }

    /// Begins a span, which becomes the parent that the message names at this place.
    pub(super) fn trace(&mut self, span: Span, parent: Range<usize>) {
        self.json.replace_range(parent, &format!("{:016x}", span.id()));
        self.span = Some(Box::new(span));
    }

    /// Its span, if it has one, which goes on.
    pub(super) fn span(&self) -> Option<&Span> {
        self.span.as_deref()
    }

    /// The window and the slot that the message names, as far as they can be read.
    #[must_use]
    pub fn identity(&self) -> (Option<Uuid>, Option<i64>) {
        #[derive(Deserialize)]
        struct Identity<'j> {
            #[serde(borrow)]
            window_uuid: Option<&'j RawValue>,
            #[serde(borrow)]
            slot: Option<&'j RawValue>,
        }
        let Ok(identity) = serde_json::from_str::<Identity>(&self.json) else {
            return (None, None);
        };
        let read = |raw: Option<&RawValue>| serde_json::from_str(raw?.get()).ok();
        let uuid = read(identity.window_uuid).and_then(|text: String| text.parse().ok());
        (uuid, identity.slot.and_then(|raw| raw.get().parse().ok()))
    }
}

/// Whether members may say of which entry they are, perhaps in an unusual spelling.
fn may_name_an_entry(members: &str) -> bool {
    members.contains("stream_id") || members.contains('\\')
}

/// An object with the id of its entry, whatever it says of that itself.
fn with_stream_id(payload: &[u8], id: StreamId) -> Result<String, serde_json::Error> {
    let mut members: BTreeMap<String, &RawValue> = serde_json::from_slice(payload)?;
    let id = RawValue::from_string(format!("\"{id}\""))?;
    members.insert("stream_id".to_owned(), &id);
    serde_json::to_string(&members)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::stream::Source;

    fn read(payload: &[u8]) -> Result<Value, String> {
        let entry = Entry {
            source: Source::Heartbeats,
            id: StreamId { millis: 5, sequence: 1 },
            payload: Some(payload.to_vec()),
            is_deleted: false,
        };
        Item::read(entry).map(|item| serde_json::from_str(&item.json).unwrap())
    }

    #[test]
    fn the_id_of_the_entry_is_added_whatever_the_message_says_of_it() {
        let expected = json!({"a": 1, "stream_id": "5-1"});
        for payload in [
            r#"{"a":1}"#,
            r#" { "a" : 1 } "#,
            r#"{"a":1,"stream_id":"9-9"}"#,
            r#"{"stream_id":"9-9","a":1,"stream_id":"8-8"}"#,
            r#"{"stream\u005fid":"9-9","a":1}"#,
        ] {
            assert_eq!(read(payload.as_bytes()), Ok(expected.clone()), "{payload}");
        }
        assert_eq!(read(b"{}"), Ok(json!({"stream_id": "5-1"})));
        let text = json!({"a": "stream_id \" } ", "stream_id": "5-1"});
        assert_eq!(read(br#"{"a":"stream_id \" } "}"#), Ok(text));
    }

    #[test]
    fn a_heartbeat_that_is_sent_again_is_told_by_its_window_and_slot() {
        let digest = |payload: &str| {
            let entry = Entry {
                source: Source::Heartbeats,
                id: StreamId::default(),
                payload: Some(payload.as_bytes().to_vec()),
                is_deleted: false,
            };
            Item::read(entry).unwrap().digest()
        };
        let first = digest(r#"{"window_uuid":"w","slot":1,"timestamp":"t","traceparent":"a-01"}"#);
        let again = digest(r#"{"window_uuid":"w","slot":1,"timestamp":"u","traceparent":"a-00"}"#);
        assert_eq!(first, again);
        let others = [
            r#"{"window_uuid":"w","slot":2,"timestamp":"t"}"#,
            r#"{"window_uuid":"v","slot":1,"timestamp":"t"}"#,
            r#"{"window_uuid":"w","timestamp":"t"}"#,
            r#"{"window_uuid":"w","timestamp":"u"}"#,
            r#"{"window_uuid":"w","slot":1}"#,
            r#"{"a":1}"#,
        ]
        .map(digest);
        let all: std::collections::HashSet<_> = others.into_iter().chain([first]).collect();
        assert_eq!(all.len(), 7);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for payload in [&b"not json"[..], b"[1]", b"\"{}\"", b"{", b"{}x", b"{\"a\":\"\xff\"}", b""]
        {
            let refused = read(payload).unwrap_err();
            assert!(refused.starts_with("the payload is not a JSON object"), "{refused}");
        }
    }
}
