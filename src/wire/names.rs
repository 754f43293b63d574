//! The name of a service under watch.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::{MAX_SERVICE_CHARS, WireError};

/// A service's name: 1 to 100 characters out of `A-Z a-z 0-9 . _ - : /`, first a letter or digit.
///
/// The narrow alphabet lets a name stand in a URL, a metric label, a file name and a terminal
/// without being quoted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ServiceName(String);

impl ServiceName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServiceName {
    type Err = WireError;

    fn from_str(text: &str) -> Result<Self, WireError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-:/".contains(c);
        let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if text.len() <= MAX_SERVICE_CHARS && starts_well && text.chars().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(WireError::invalid(format!(
                "must be 1 to {MAX_SERVICE_CHARS} characters out of letters, digits and . _ - : / \
                 and start with a letter or a digit"
            )))
        }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_plain() {
        for good in ["a", "payments-a", "eu/payments:v1.2_b", &"x".repeat(100)] {
            assert!(good.parse::<ServiceName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            " ",
            "-a",
            "a b",
            "a\0b",
            "päyments",
            "x'; DROP TABLE windows; --",
            &"x".repeat(101),
            &"x".repeat(5_000),
        ] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad}");
        }
    }
}
