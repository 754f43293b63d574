//! The document of a role's API, at `/openapi.json`, and a page that shows it, at `/docs`.
//!
//! A route and its entry in the document are one `routes!`, so that neither is without the other. The
//! page is Swagger UI, which is part of the executable: it loads nothing from elsewhere.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use utoipa::openapi::request_body::RequestBody;
use utoipa::openapi::schema::{SchemaType, Type};
use utoipa::openapi::{ComponentsBuilder, RefOr, Schema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::Config;

use super::failures::{NotFound, OurFault};
use super::{ApiError, ErrorBody};

/// The page may load what this address serves, and nothing else. Swagger UI writes styles as it goes,
/// and has its pictures in its style sheet.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:",
);

#[derive(Clone)]
struct Docs {
    document: Bytes,
    page: Arc<Config<'static>>,
}

/// The routes of a role, and those that describe them.
///
/// # Panics
/// When the document cannot be written as JSON, which the first start would show.
pub fn described(router: OpenApiRouter) -> Router {
    let own: OpenApiRouter<Docs> = OpenApiRouter::new()
        .routes(routes!(get_document))
        .routes(routes!(find_page))
        .routes(routes!(get_page))
        .routes(routes!(get_part));
    let (router, mut document) = router.split_for_parts();
    let (own, own_document) = own.split_for_parts();
    document.merge(own_document);
    let items = document.paths.paths.values_mut();
    items.filter_map(|item| item.post.as_mut()?.request_body.as_mut()).for_each(without_null);
    let shared = ComponentsBuilder::new().schema_from::<ErrorBody>().build();
    document.components.get_or_insert_default().schemas.extend(shared.schemas);
    let json = document.to_json().expect("a document is text and numbers");
    // The page would ask a server of others whether the document is valid, unless told not to.
    let page = Config::from("../openapi.json")
        .use_base_layout()
        .validator_url("none")
        .display_request_duration(true);
    router.merge(own.with_state(Docs { document: json.into(), page: Arc::new(page) }))
}

/// A body that may be left out is not `null` then, as an optional member may be.
fn without_null(body: &mut RefOr<RequestBody>) {
    let RefOr::T(body) = body else { return };
    let null = SchemaType::Type(Type::Null);
    let is_null = |item: &RefOr<Schema>| matches!(item, RefOr::T(Schema::Object(of)) if of.schema_type == null);
    for content in body.content.values_mut() {
        let RefOr::T(content) = content else { continue };
        if let Some(RefOr::T(Schema::OneOf(choice))) = &mut content.schema {
            choice.items.retain(|item| !is_null(item));
        }
    }
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "description", responses(
    (status = 200, description = "OpenAPI 3.1", body = serde_json::Value, content_type = "application/json"),
))]
async fn get_document(State(docs): State<Docs>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], docs.document)
}

/// Leads to the page.
#[utoipa::path(get, path = "/docs", tag = "description", responses(
    (status = 308, description = "The page is at `docs/`", headers(("Location" = String))),
))]
async fn find_page() -> impl IntoResponse {
    // Relative, so that it holds behind a proxy that adds a path.
    (StatusCode::PERMANENT_REDIRECT, [(LOCATION, "docs/")])
}

/// A page that shows this document.
#[utoipa::path(get, path = "/docs/", tag = "description", responses(
    (status = 200, description = "The page", body = String, content_type = "text/html"),
    OurFault,
))]
async fn get_page(State(docs): State<Docs>) -> Result<Response, ApiError> {
    part(&docs, "index.html")
}

/// A part of the page.
#[utoipa::path(get, path = "/docs/{file}", tag = "description",
    params(("file" = String, Path, description = "Name of the file", example = "swagger-ui.css")),
    responses(
        (status = 200, description = "The file", content(
            (String = "text/css"), (String = "text/javascript"), (String = "text/html"),
            (String = "image/png"),
        )),
        NotFound, OurFault,
    ))]
async fn get_part(
    State(docs): State<Docs>,
    file: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let Path(file) = file.map_err(|_| no_part())?;
    part(&docs, &file)
}

fn no_part() -> ApiError {
    ApiError::not_found("the page has no such part")
}

fn part(docs: &Docs, file: &str) -> Result<Response, ApiError> {
    let found =
        utoipa_swagger_ui::serve(file, Arc::clone(&docs.page)).map_err(ApiError::internal)?;
    let found = found.ok_or_else(no_part)?;
    let kind = HeaderValue::from_str(&found.content_type).map_err(ApiError::internal)?;
    let headers = [(CONTENT_TYPE, kind), (CONTENT_SECURITY_POLICY, POLICY)];
    let mut response = (headers, found.bytes.into_owned()).into_response();
    if found.gzpipped {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    Ok(response)
}
