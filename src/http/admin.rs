//! The token that allows what destroys or sends again.

use std::fmt;
use std::str::FromStr;

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use super::ApiError;

/// Shortest token, in bytes.
const SHORTEST: usize = 16;

/// A secret that an operator shows, as `Authorization: Bearer …`.
#[derive(Clone)]
pub struct AdminToken(SecretString);

impl AdminToken {
    /// Checks that a request shows the token. Nobody may do anything where there is none.
    ///
    /// # Errors
    /// 403 where there is no token, 401 for a request that does not show it.
    pub fn check(token: Option<&Self>, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(Self(token)) = token else {
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "switched off: start the monitor with --admin-token to allow it",
            ));
        };
        let shown = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let shown = shown.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        if bool::from(shown.as_bytes().ct_eq(token.expose_secret().as_bytes())) {
            return Ok(());
        }
        Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            "show the admin token, as `Authorization: Bearer TOKEN`",
        ))
    }

    /// The header that shows it.
    #[must_use]
    pub fn header(&self) -> String {
        format!("Bearer {}", self.0.expose_secret())
    }
}

impl FromStr for AdminToken {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() < SHORTEST || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("must be at least {SHORTEST} printable characters without spaces"));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_opens() {
        let token: AdminToken = "0123456789abcdef".parse().unwrap();
        let status = |token: Option<&AdminToken>, shown: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, shown.parse().unwrap());
            AdminToken::check(token, &headers).map_err(|error| error.status)
        };
        assert_eq!(status(Some(&token), "Bearer 0123456789abcdef"), Ok(()));
        for wrong in ["Bearer 0123456789abcde", "Bearer ", "0123456789abcdef", "Basic x"] {
            assert_eq!(status(Some(&token), wrong), Err(StatusCode::UNAUTHORIZED), "{wrong}");
        }
        assert_eq!(status(None, "Bearer 0123456789abcdef"), Err(StatusCode::FORBIDDEN));
        assert_eq!(
            AdminToken::check(Some(&token), &HeaderMap::new()).unwrap_err().status,
            StatusCode::UNAUTHORIZED
        );
    }

    #[test]
    fn weak_tokens_are_refused_and_none_is_shown() {
        for weak in ["", "short", "0123456789 abcdef", "0123456789abcdé\u{0}"] {
            assert!(weak.parse::<AdminToken>().is_err(), "{weak}");
        }
        let token: AdminToken = "0123456789abcdef".parse().unwrap();
        assert_eq!(format!("{token:?}"), "***");
    }
}
