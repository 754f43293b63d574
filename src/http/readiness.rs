//! Whether a process is alive, and whether it can do its work.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::ApiError;

/// What keeps a role from doing its work at present. Its loops note it, `/ready` shows it.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    troubles: Arc<Mutex<BTreeMap<&'static str, String>>>,
}

impl Readiness {
    /// Notes that a part cannot do its work, and why.
    pub fn trouble(&self, part: &'static str, reason: impl Into<String>) {
        self.lock().insert(part, reason.into());
    }

    /// Notes that a part works (again).
    pub fn works(&self, part: &'static str) {
        self.lock().remove(part);
    }

    /// Notes the outcome of a part's last attempt.
    pub fn note<T, E: std::fmt::Display>(&self, part: &'static str, outcome: &Result<T, E>) {
        match outcome {
            Ok(_) => self.works(part),
            Err(error) => self.trouble(part, error.to_string()),
        }
    }

    /// The answer of `/ready`: 200, or 503 with every reason.
    #[must_use]
    pub fn answer(&self) -> Response {
        let reasons: Vec<String> =
            self.lock().iter().map(|(part, reason)| format!("{part}: {reason}")).collect();
        if reasons.is_empty() {
            Json(Ready { ready: true }).into_response()
        } else {
            ApiError::unavailable(format!("not ready: {}", reasons.join("; "))).into_response()
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The answer of `/health`: the process is alive.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    ok: bool,
    /// Name of the service, or of the role.
    #[schema(examples("payments-a"))]
    service: String,
}

impl Health {
    /// The answer of a process with this name.
    pub fn of(service: &str) -> Json<Self> {
        Json(Self { ok: true, service: service.to_owned() })
    }
}

/// The answer of `/ready` while nothing is in the way.
#[derive(Debug, Serialize, ToSchema)]
pub struct Ready {
    ready: bool,
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    #[test]
    fn readiness_forgets_what_works_again() {
        let readiness = Readiness::default();
        assert_eq!(readiness.answer().status(), StatusCode::OK);
        readiness.trouble("redis", "refused");
        assert_eq!(readiness.answer().status(), StatusCode::SERVICE_UNAVAILABLE);
        readiness.works("redis");
        assert_eq!(readiness.answer().status(), StatusCode::OK);
    }
}
