//! Parameters that several lists share: each refusal names the parameter and says what to do.

use std::fmt::Display;
use std::str::FromStr;

use utoipa::openapi::Object;

use super::PAGE;
use crate::http::{self, ApiError};
use crate::wire::Timestamp;

/// The `limit` of most lists in the document.
pub(super) fn page() -> Object {
    http::limit_schema(PAGE)
}

/// A parameter that need not be there.
pub(super) fn optional<T>(name: &'static str, text: Option<&str>) -> Result<Option<T>, ApiError>
where
    T: FromStr<Err: Display>,
{
    let parsed = text.map(T::from_str).transpose();
    parsed.map_err(|error| ApiError::bad_request(format!("{name} {error}")))
}

/// An instant that need not be there.
pub(super) fn time(name: &'static str, text: Option<&str>) -> Result<Option<Timestamp>, ApiError> {
    let parsed = text.map(Timestamp::parse).transpose();
    parsed.map_err(|error| ApiError::bad_request(format!("{name} {error}")))
}

/// A span of time, of which either end may be open. It must not be empty.
pub(super) fn times(
    (from, to): (Option<&str>, Option<&str>),
) -> Result<(Option<Timestamp>, Option<Timestamp>), ApiError> {
    let (from, to) = (time("from", from)?, time("to", to)?);
    check_order(from, to)?;
    Ok((from, to))
}

/// Refuses a span of time that is empty.
pub(super) fn check_order(from: Option<Timestamp>, to: Option<Timestamp>) -> Result<(), ApiError> {
    match (from, to) {
        (Some(from), Some(to)) if from >= to => {
            Err(ApiError::bad_request("from must be before to, which is not part of the span"))
        }
        _ => Ok(()),
    }
}

/// What is said of a cursor that cannot be used.
pub(super) const BAD_CURSOR: &str = "must be the `next` of an earlier answer";
