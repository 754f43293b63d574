//! Listening and serving: bounded in connections and in time, and with an end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::trace::TraceLayer;

use super::ApiError;

/// How long requests in flight may take once the process was told to stop.
const DRAIN: Duration = Duration::from_secs(5);
/// How long any request may take: what it waits for may never come.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to send the head of a request, and to begin the next one.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Most connections at a time; further clients wait to be accepted.
const MAX_CONNECTIONS: usize = 1_000;
/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Opens a listening socket.
///
/// # Errors
/// A sentence that names the address and who wanted it, such as "the monitor".
pub async fn bind(address: SocketAddr, who: &str) -> anyhow::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => bail!(
            "{address} is in use, so {who} cannot listen there: stop what uses port {}, or choose \
             another address",
            address.port()
        ),
        Err(error) => Err(error).with_context(|| format!("{who} cannot listen on {address}")),
    }
}

/// Serves until the token is cancelled, then lets requests in flight end.
///
/// `max_body_bytes` bounds every request's body.
///
/// # Errors
/// Never: what one connection suffers does not concern the others.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    max_body_bytes: usize,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let router = router
        .fallback(|| async { ApiError::not_found("there is nothing at this path") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method")
        })
        .layer(DefaultBodyLimit::max(max_body_bytes))
        .layer(middleware::from_fn(within_time))
        .layer(CatchPanicLayer::custom(|_| {
            ApiError::internal("a request panicked").into_response()
        }))
        .layer(TraceLayer::new_for_http().on_failure(()));
    let service = TowerToHyperService::new(router.into_service());
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let open = GracefulShutdown::new();
    while let Some((stream, place)) = next_connection(&listener, &places, &shutdown).await {
        stream.set_nodelay(true).ok();
        let connection = http.serve_connection(TokioIo::new(stream), service.clone());
        let connection = open.watch(connection);
        tokio::spawn(async move {
            // How one client leaves is no concern of the others.
            connection.await.ok();
            drop(place);
        });
    }
    tokio::time::timeout(DRAIN, open.shutdown()).await.ok();
    Ok(())
}

/// The next client, when there is a place for one; none once told to stop.
async fn next_connection(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    shutdown: &CancellationToken,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let accepting = async {
        let place = Arc::clone(places).acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((stream, place)),
                Err(error) => {
                    // Too many open files, or a client that left at once: the next may do better.
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => None,
        connection = accepting => connection,
    }
}

/// Gives up on a request that takes too long, be it that its body does not come or that a server of
/// ours does not answer. What it has begun to write is written all the same.
async fn within_time(request: Request, next: Next) -> Response {
    let answer = tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await;
    answer
        .unwrap_or_else(|_| ApiError::unavailable("this took too long; try again").into_response())
}
