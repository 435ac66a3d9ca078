//! A local server with OpenAI's API, for clients that people have already.
//!
//! Requests are checked and become tokens on the HTTP side (`api`); one thread drives the engine ([`scheduler`]); events come
//! back through a bounded channel for each request. Whoever goes away, in the queue, while a prompt is read or while text is
//! generated, takes the receiver along, and the engine lets go of the request before its next pass.

mod accept;
mod api;
mod error;
pub mod metrics;
mod page;
mod peer;
pub mod scheduler;
mod security;
mod state;
pub mod structured;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
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
    match status {
        400 => metrics.count_rejected("invalid"),
        404 | 405 => metrics.count_rejected("not_found"),
        429 => metrics.count_rejected("queue_full"),
        503 => metrics.count_rejected("shutting_down"),
        _ => {}
    }
    let end = End { metrics, started, line: format!("{method} {} {status}", path.escape_debug()) };
    response.map(|body| Body::new(Observed { body, _end: end }))
}

/// A body that says when it has ended, or was left.
struct Observed {
    body: Body,
    _end: End,
}

struct End {
    metrics: Arc<Metrics>,
    started: Instant,
    line: String,
}

impl Drop for End {
    fn drop(&mut self) {
        let seconds = self.started.elapsed().as_secs_f64();
        self.metrics.request_seconds.observe(seconds);
        tracing::info!("{} in {seconds:.3} s", self.line);
    }
}

impl hyper::body::Body for Observed {
    type Data = <Body as hyper::body::Body>::Data;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
