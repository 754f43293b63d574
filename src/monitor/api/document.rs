//! What the document of this API says besides its routes.

use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

/// The document, before the routes are added.
pub(super) fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "heartbeat monitor",
        description = "Takes heartbeats in, closes windows whose time is over, and says why a \
            heartbeat is missing. Times are ISO 8601, and in answers always UTC. A path that takes \
            no such method answers 405, and every error has the body of `Error`. Bodies are read as \
            JSON whatever their content type says."
    ),
    tags(
        (name = "heartbeats", description = "What senders and relays send"),
        (name = "windows", description = "Spans in which a service promises a heartbeat per tick"),
        (name = "totals", description = "Slots and services, one by one and added up"),
        (name = "pipeline", description = "The way from the senders: relays, watermark, conditions"),
        (name = "health", description = "Whether the process is alive and can do its work"),
        (name = "description", description = "This document, and a page that shows it"),
    ),
    modifiers(&AdminScheme)
)]
struct Document;

struct AdminScheme;

impl Modify for AdminScheme {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("The secret that the monitor was started with: `--admin-token`"))
            .build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("admin_token", SecurityScheme::Http(scheme));
    }
}
