//! A local server with OpenAI's API, for clients that people have already.
//!
//! Requests are checked and become tokens on the HTTP side ([`api`]); one thread drives the engine ([`scheduler`]); events come
//! back through a bounded channel for each request. Whoever goes away, in the queue, while a prompt is read or while text is
//! generated, takes the receiver along, and the engine lets go of the request before its next pass.

mod accept;
mod api;
mod error;
pub mod metrics;
mod page;
pub mod scheduler;
mod security;
mod state;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use tokio::net::TcpListener;

pub use accept::Connections;
pub use error::ApiError;
pub use security::Access;
pub use state::{Parts, Server};

use metrics::Metrics;
use security::Guard;

/// Serves until `stop` is told: then no more requests are taken, those that run may end within the grace, and the rest is cut
/// off. Must be called within a tokio runtime.
pub async fn serve(
    listener: TcpListener,
    server: Arc<Server>,
    metrics: Arc<Metrics>,
    access: Access,
    connections: Connections,
    stop: impl Future<Output = ()>,
) {
    let engine = server.engine.clone();
    metrics.kv_page_limit.set(i64::try_from(server.page_limit()).unwrap_or(i64::MAX));
    let app = app(server, Arc::clone(&metrics), access);
    let closing = engine.clone();
    let stop = async move {
        stop.await;
        closing.close();
    };
    accept::accept(listener, app, connections, metrics, stop).await;
    engine.stop();
}

/// All routes behind all checks.
fn app(server: Arc<Server>, metrics: Arc<Metrics>, access: Access) -> Router {
    let cors = access.cors();
    let guard = Guard { access: Arc::new(access), metrics: Arc::clone(&metrics) };
    api::routes()
        .merge(page::routes())
        .layer(middleware::from_fn_with_state(guard.clone(), security::check_key))
        .layer(cors)
        .layer(middleware::from_fn_with_state(guard, security::check_host))
        .layer(middleware::from_fn_with_state(metrics, observe))
        .with_state(server)
}

/// Counts, times and logs a request: never what it holds.
async fn observe(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    let status = response.status().as_u16();
    metrics.count_answer(status);
    metrics.request_seconds.observe(started.elapsed().as_secs_f64());
    if status == 429 {
        metrics.count_rejected("queue_full");
    }
    tracing::info!(%method, path = %path.escape_debug(), status, ms = started.elapsed().as_millis() as u64, "request");
    response
}
