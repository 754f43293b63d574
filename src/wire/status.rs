//! What a heartbeat says about its sender: well, or in error.

use std::fmt;
use std::str::FromStr;

use super::{MAX_MESSAGE_CHARS, WireError};

/// How an audit writes a slot that its sender omitted on purpose. No heartbeat carries it.
pub const OMITTED: &str = "no_reported";

/// The state that a sender reports of itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// `ok`.
    Ok,
    /// `error`, or `error:<message>`.
    Error(Option<String>),
}

impl Status {
    /// The sender's message, if it reported an error and said more.
    #[must_use]
    pub fn message(&self) -> Option<&str> {
        match self {
            Self::Ok => None,
            Self::Error(message) => message.as_deref(),
        }
    }

    /// Whether the sender reported an error.
    #[must_use]
    pub fn is_error(&self) -> bool {
        matches!(self, Self::Error(_))
    }
}

impl FromStr for Status {
    type Err = WireError;

    fn from_str(text: &str) -> Result<Self, WireError> {
        let (word, message) = match text.split_once(':') {
            Some((word, message)) => (word.trim(), Some(message.trim())),
            None => (text.trim(), None),
        };
        if word.eq_ignore_ascii_case("ok") && message.is_none() {
            return Ok(Self::Ok);
        }
        if !word.eq_ignore_ascii_case("error") {
            return Err(WireError::invalid("must be \"ok\" or \"error:<message>\""));
        }
        let message = message.filter(|message| !message.is_empty());
        message.map(check_message).transpose().map(Self::Error)
    }
}

fn check_message(message: &str) -> Result<String, WireError> {
    if message.contains('\0') {
        return Err(WireError::invalid("must not contain NUL characters"));
    }
    if message.chars().count() > MAX_MESSAGE_CHARS {
        return Err(WireError::invalid(format!(
            "must have an error message of at most {MAX_MESSAGE_CHARS} characters"
        )));
    }
    Ok(message.to_owned())
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("ok"),
            Self::Error(None) => f.write_str("error"),
            Self::Error(Some(message)) => write!(f, "error:{message}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_shape_that_senders_write() {
        let error = |message: &str| Status::Error(Some(message.to_owned()));
        let table = [
            ("ok", Status::Ok),
            ("OK", Status::Ok),
            ("error", Status::Error(None)),
            ("ERROR", Status::Error(None)),
            ("error:", Status::Error(None)),
            ("Error: timeout", error("timeout")),
            ("error:upstream: refused", error("upstream: refused")),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse::<Status>(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn refuses_other_words_and_unbounded_messages() {
        let long = format!("error:{}", "x".repeat(1_001));
        for text in ["", "up", "ok:fine", "errors:x", "error:a\0b", &long] {
            assert!(text.parse::<Status>().is_err(), "{text}");
        }
    }
}
