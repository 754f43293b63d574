//! How a document of an API describes what travels: the limits of each value, from the constants
//! that its parser checks.

use utoipa::openapi::schema::{
    KnownFormat, ObjectBuilder, OneOfBuilder, SchemaFormat, SchemaType, Type,
};
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::raw::RawMessage;
use super::{
    Announcement, Heartbeat, MAX_MESSAGE_CHARS, MAX_SERVICE_CHARS, Seconds, ServiceName, Status,
    StreamId, Tick, Timestamp,
};

/// A string with a description.
fn text(description: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).description(Some(description))
}

/// A number with a description.
fn number(description: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Number).description(Some(description))
}

/// An instant as a sender or a request writes it, which [`Timestamp::parse`] reads: in more ways than we
/// write it.
#[derive(Clone, Copy, Debug)]
pub struct Instant;

impl PartialSchema for Instant {
    fn schema() -> RefOr<Schema> {
        text("ISO 8601, in the years 2000 to 2199, with `Z`, an offset or none, which means UTC")
            .pattern(Some(concat!(
                r"^2[01]\d\d-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])",
                r"[T ]([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d{1,9})?)?(Z|[+-]\d\d(:?\d\d)?)?$",
            )))
            .examples(["2026-11-21T10:00:00Z"])
            .into()
    }
}

impl ToSchema for Instant {}

impl PartialSchema for Status {
    fn schema() -> RefOr<Schema> {
        let pattern = r"^([Oo][Kk]|[Ee][Rr][Rr][Oo][Rr](:[^\u0000]{0,MOST})?)$";
        text("`ok`, or `error`, which a colon and a message may follow")
            .pattern(Some(pattern.replace("MOST", &MAX_MESSAGE_CHARS.to_string())))
            .examples(["ok", "error:card network timed out"])
            .into()
    }
}

impl ToSchema for Status {}

impl PartialSchema for ServiceName {
    fn schema() -> RefOr<Schema> {
        text("Name of a service")
            .min_length(Some(1))
            .max_length(Some(MAX_SERVICE_CHARS))
            .pattern(Some(r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$"))
            .examples(["payments-a"])
            .into()
    }
}

impl ToSchema for ServiceName {}

impl PartialSchema for Timestamp {
    fn schema() -> RefOr<Schema> {
        text("An instant of UTC, to the microsecond")
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
            .examples(["2026-11-21T10:00:00Z"])
            .into()
    }
}

impl ToSchema for Timestamp {}

impl PartialSchema for StreamId {
    fn schema() -> RefOr<Schema> {
        text("Id of an entry of a Redis stream")
            .pattern(Some(r"^\d{1,20}(-\d{1,20})?$"))
            .examples(["1795255210000-0"])
            .into()
    }
}

impl ToSchema for StreamId {}

impl PartialSchema for Tick {
    fn schema() -> RefOr<Schema> {
        number("Seconds between two slots")
            .minimum(Some(Seconds(Self::MIN_MICROS).seconds()))
            .maximum(Some(Seconds(Self::MAX_MICROS).seconds()))
            .examples([10])
            .into()
    }
}

impl ToSchema for Tick {}

impl PartialSchema for Seconds {
    fn schema() -> RefOr<Schema> {
        number("Seconds, to the microsecond").examples([150]).into()
    }
}

impl ToSchema for Seconds {}

impl PartialSchema for Heartbeat {
    fn schema() -> RefOr<Schema> {
        let about =
            "A service's word that it was alive at a slot of a window; other members are ignored";
        let mut schema = message(about, RawMessage::default().missing(true), &["announced_at"]);
        if let RefOr::T(Schema::Object(object)) = &mut schema {
            // Of any type: what is no trace is ignored.
            let trace = ObjectBuilder::new()
                .schema_type(SchemaType::AnyValue)
                .description(Some("The trace that it belongs to, as W3C Trace Context writes it"))
                .examples(["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]);
            object.properties.insert("traceparent".to_owned(), trace.into());
        }
        schema
    }
}

impl ToSchema for Heartbeat {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas_of_members(schemas);
    }
}

impl PartialSchema for Announcement {
    fn schema() -> RefOr<Schema> {
        let about = "A window that a sender promises heartbeats for; other members are ignored";
        let unused = ["status", "timestamp", "slot"];
        message(about, RawMessage::default().missing(false), &unused)
    }
}

impl ToSchema for Announcement {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas_of_members(schemas);
    }
}

/// The members that the parser reads, without those that say nothing in this message.
fn message(about: &str, required: Vec<&str>, unused: &[&str]) -> RefOr<Schema> {
    match RawMessage::schema() {
        RefOr::T(Schema::Object(mut object)) => {
            object.description = Some(about.to_owned());
            object.properties.retain(|name, _| !unused.contains(&name.as_str()));
            // Nothing but a relay writes it, so that the struct does not either.
            let stream_id = OneOfBuilder::new()
                .item(Ref::from_schema_name(StreamId::name()))
                .item(ObjectBuilder::new().schema_type(Type::Null));
            object.properties.insert("stream_id".to_owned(), stream_id.into());
            object.required = required.into_iter().map(str::to_owned).collect();
            object.into()
        }
        other => other,
    }
}

fn schemas_of_members(schemas: &mut Vec<(String, RefOr<Schema>)>) {
    RawMessage::schemas(schemas);
    schemas.push((StreamId::name().into_owned(), StreamId::schema()));
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn json(schema: &RefOr<Schema>) -> Value {
        serde_json::to_value(schema).unwrap()
    }

    #[test]
    fn messages_are_described_as_they_are_read() {
        let heartbeat = json(&Heartbeat::schema());
        assert_eq!(
            heartbeat["required"],
            serde_json::json!([
                "service",
                "status",
                "window_uuid",
                "window_from",
                "window_to",
                "timestamp"
            ])
        );
        assert!(heartbeat["properties"]["stream_id"].is_object());
        assert!(heartbeat["properties"]["traceparent"]["description"].is_string());
        assert_eq!(json(&Tick::schema())["maximum"], 3600.0);
        let announcement = json(&Announcement::schema());
        let members = announcement["properties"].as_object().unwrap();
        assert!(members.contains_key("announced_at"), "{members:?}");
        assert!(!members.contains_key("status"), "{members:?}");
        assert!(!members.contains_key("traceparent"), "{members:?}");
    }
}
