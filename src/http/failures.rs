//! Answers that are no success, as the document of an API describes them. All have the body of
//! [`ApiError`](super::ApiError).

use std::collections::BTreeMap;

use serde_json::json;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{ContentBuilder, Ref, RefOr};
use utoipa::{IntoResponses, ToSchema};

use super::ErrorBody;

/// 400: the request cannot be used as it is.
pub type BadRequest = Fails<400>;
/// 401 and 403: only who shows the admin token may.
pub type NotAllowed = Both<Fails<401>, Fails<403>>;
/// 404: no such thing.
pub type NotFound = Fails<404>;
/// 413: the body is too large.
pub type TooLarge = Fails<413>;
/// 422: what is asked for is well said and cannot be taken.
pub type Refused = Fails<422>;
/// 429: there is too much of it already.
pub type TooMany = Fails<429>;
/// 500 and 503: a fault that is not the caller's.
pub type OurFault = Both<Fails<500>, Fails<503>>;

/// An answer with a status.
#[derive(Debug)]
pub struct Fails<const STATUS: u16>;

impl<const STATUS: u16> IntoResponses for Fails<STATUS> {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        BTreeMap::from([(STATUS.to_string(), describe(STATUS).into())])
    }
}

/// One kind of answer or the other.
#[derive(Debug)]
pub struct Both<A, B>(std::marker::PhantomData<(A, B)>);

impl<A: IntoResponses, B: IntoResponses> IntoResponses for Both<A, B> {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        A::responses().into_iter().chain(B::responses()).collect()
    }
}

/// What a status says, and an answer that has it.
const fn meaning(status: u16) -> (&'static str, &'static str) {
    match status {
        400 => ("The request cannot be used as it is", "limit must be from 1 to 500"),
        401 => (
            "The request does not show the admin token",
            "show the admin token, as `Authorization: Bearer TOKEN`",
        ),
        403 => (
            "Nobody may, because the process was started without an admin token",
            "switched off: start the monitor with --admin-token to allow it",
        ),
        404 => {
            ("There is no such thing", "no window 6f1c1f0e-5f0c-4f43-9a55-0d2b1f2a7f10 is known")
        }
        413 => ("The body is too large", "the body is too large for this path"),
        422 => (
            "The request is well formed and cannot be taken; sending it again will not help",
            "the database refuses a value of this request",
        ),
        429 => ("There is too much of it already", "64 windows are open here already"),
        503 => ("It cannot be done now; try again", "the database cannot answer now; try again"),
        _ => ("A fault of heartbeat itself", "internal error; the log has the details"),
    }
}

fn describe(status: u16) -> ResponseBuilder {
    let (description, example) = meaning(status);
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(ErrorBody::name())))
        .example(Some(json!({"error": example})))
        .build();
    let response =
        ResponseBuilder::new().description(description).content("application/json", content);
    match status {
        401 => response.header("WWW-Authenticate", header(Type::String, "The scheme: `Bearer`")),
        503 => response.header("Retry-After", header(Type::Integer, "Seconds to wait")),
        _ => response,
    }
}

fn header(kind: Type, description: &str) -> utoipa::openapi::Header {
    let schema = ObjectBuilder::new().schema_type(kind).build();
    HeaderBuilder::new().schema(Some(schema)).description(Some(description)).build()
}
