//! HTTP as every role serves it: one shape of errors, bounded bodies, health and readiness, and a
//! stop that waits for requests in flight but not for ever.

mod admin;
mod docs;
pub mod failures;
mod readiness;
mod serve;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::ToSchema;
use utoipa::openapi::Object;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use uuid::Uuid;

pub use self::admin::AdminToken;
pub use self::docs::described;
pub use self::readiness::{Health, Readiness, Ready};
pub use self::serve::{bind, serve};
use crate::db;
use crate::wire::WireError;

/// What a client is told to wait before it asks again, in seconds.
const RETRY_AFTER_SECONDS: u32 = 1;

/// A client that follows nothing, repeats nothing and asks no proxy: each would hide what happened.
///
/// # Errors
/// When the system offers no certificates to trust.
pub fn client(timeout: Duration) -> reqwest::Result<reqwest::Client> {
    // Fails if it is installed already, which is just as well.
    rustls::crypto::ring::default_provider().install_default().ok();
    reqwest::Client::builder()
        .timeout(timeout)
        .connect_timeout(timeout)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .retry(reqwest::retry::never())
        .build()
}

/// What tells a role on this host from others of its kind: the host's name, and the port.
///
/// # Errors
/// When the system does not know its name.
pub fn host_and_port(listen: SocketAddr) -> anyhow::Result<String> {
    let host = nix::unistd::gethostname().context("asking for the host's name")?;
    Ok(format!("{}-{}", host.to_string_lossy(), listen.port()))
}

/// What lies at the bottom of an error: the part that tells a person most.
#[must_use]
pub fn innermost(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .last()
        .map_or_else(String::new, ToString::to_string)
}

/// An answer that is not what was asked for: `{"error": …}`, and `"fields"` where some are missing.
///
/// The text is for the caller. What went wrong inside is logged where this is made and not shown.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    body: ErrorBody,
    retry_after_seconds: Option<u32>,
}

/// An answer that is not what was asked for.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Error)]
struct ErrorBody {
    /// What is wrong, for a person.
    error: String,
    /// Required members that are missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fields: Vec<&'static str>,
}

impl ApiError {
    /// An error with this status and text.
    #[must_use]
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        let body = ErrorBody { error: error.into(), fields: Vec::new() };
        Self { status, body, retry_after_seconds: None }
    }

    /// 400: the request cannot be used as it is.
    #[must_use]
    pub fn bad_request(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// 404: no such thing.
    #[must_use]
    pub fn not_found(error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error)
    }

    /// 503: not now; the caller may ask again soon.
    #[must_use]
    pub fn unavailable(error: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, error);
        Self { retry_after_seconds: Some(RETRY_AFTER_SECONDS), ..error }
    }

    /// 500: our own mistake, which is logged here.
    #[must_use]
    pub fn internal(detail: impl std::fmt::Display) -> Self {
        tracing::error!(%detail, "a request failed because of a fault of ours");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error; the log has the details")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body)).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after_seconds {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<WireError> for ApiError {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Missing(fields) => {
                let mut error = Self::bad_request("missing required fields");
                error.body.fields = fields;
                error
            }
            WireError::Invalid(text) => Self::bad_request(text),
        }
    }
}

impl From<db::Error> for ApiError {
    fn from(error: db::Error) -> Self {
        match error.class {
            db::Class::Retry
            | db::Class::Reconnect
            | db::Class::Unavailable
            | db::Class::Configuration => {
                tracing::warn!(%error, class = ?error.class, "the database did not do its part");
                Self::unavailable("the database cannot answer now; try again")
            }
            db::Class::Data => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "the database refuses a value of this request",
            ),
            db::Class::Bug => Self::internal(error),
        }
    }
}

/// The whole body of a request, whatever its content type says.
#[derive(Debug)]
pub struct Body(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        Bytes::from_request(request, state).await.map(Self).map_err(|rejection| {
            let status = rejection.status();
            let text = match status {
                StatusCode::PAYLOAD_TOO_LARGE => "the body is too large for this path".to_owned(),
                _ => rejection.body_text(),
            };
            ApiError::new(status, text)
        })
    }
}

impl Body {
    /// Reads a JSON object with known members only; an empty body is an empty object.
    ///
    /// # Errors
    /// 400 that says what is wrong.
    pub fn object_or_empty<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        match self.0.trim_ascii() {
            b"" => Self(Bytes::from_static(b"{}")).object(),
            _ => self.object(),
        }
    }

    /// Reads a JSON object.
    ///
    /// # Errors
    /// 400 that says what is wrong.
    pub fn object<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        let body = self.0.trim_ascii();
        if !body.starts_with(b"{") {
            return Err(ApiError::bad_request("the body must be a JSON object"));
        }
        let deserializer = &mut serde_json::Deserializer::from_slice(body);
        let value = serde_path_to_error::deserialize(&mut *deserializer)
            .map_err(|error| ApiError::bad_request(format!("the body cannot be used: {error}")))?;
        deserializer
            .end()
            .map_err(|_| ApiError::bad_request("something follows the JSON object"))?;
        Ok(value)
    }
}

/// The parameters after the `?`, with our shape of errors.
#[derive(Debug)]
pub struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query.map(|Query(params)| Self(params)).map_err(|rejection| {
            let text = rejection.body_text();
            let why = text.rsplit_once("query string: ").map_or(&*text, |(_, why)| why);
            ApiError::bad_request(format!("the query cannot be used: {why}"))
        })
    }
}

/// Checks the `limit` of a page, which is `default` where the request names none.
///
/// # Errors
/// 400 for zero, and for more than `most`.
pub fn page_limit(limit: Option<u32>, (default, most): (u32, u32)) -> Result<u32, ApiError> {
    let limit = limit.unwrap_or(default);
    if (1..=most).contains(&limit) {
        return Ok(limit);
    }
    Err(ApiError::bad_request(format!("limit must be from 1 to {most}")))
}

/// The `limit` of a page in the document, with the same bounds.
#[must_use]
pub fn limit_schema((default, most): (u32, u32)) -> Object {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .description(Some("Most items to answer with"))
        .minimum(Some(1))
        .maximum(Some(most))
        .default(Some(default.into()))
        .build()
}

/// A UUID in the path.
#[derive(Debug)]
pub struct PathUuid(pub Uuid);

impl<S: Send + Sync> FromRequestParts<S> for PathUuid {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let uuid = path.ok().and_then(|Path(text)| Uuid::try_parse(&text).ok());
        uuid.map(Self).ok_or_else(|| {
            ApiError::bad_request(
                "the path must name a UUID such as 6f1c1f0e-5f0c-4f43-9a55-0d2b1f2a7f10",
            )
        })
    }
}

/// The answer to what was done and has nothing to show.
#[derive(Debug, Serialize, ToSchema)]
pub struct Done {
    ok: bool,
}

impl Done {
    /// It was done.
    pub const OK: Self = Self { ok: true };
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Options {
        seed: Option<u64>,
    }

    #[test]
    fn bodies_are_one_object_or_nothing() {
        let read = |text: &'static str| {
            Body(Bytes::from_static(text.as_bytes())).object_or_empty::<Options>()
        };
        assert_eq!(read("").unwrap().seed, None);
        assert_eq!(read(" {\"seed\": 7} ").unwrap().seed, Some(7));
        for bad in ["[]", "{", "{\"seed\":-1}", "{\"sed\":1}", "{} {}", "null", "\0"] {
            assert_eq!(read(bad).unwrap_err().status, StatusCode::BAD_REQUEST, "{bad}");
        }
    }
}
