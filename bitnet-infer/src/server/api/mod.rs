//! The HTTP API: OpenAI's completions, and what llama.cpp's and vLLM's clients know besides.

mod answer;
mod body;
mod chat;
mod completions;
mod fields;
mod info;
mod log;
mod request;
mod size;
mod tokens;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{get, post};

use super::error::ApiError;
use super::state::Server;

/// Every route of the API.
pub fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/v1/completions", post(completions::completions))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/models", get(info::models))
        .route("/v1/models/{id}", get(info::model))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/tokenizer_info", get(tokens::tokenizer_info))
        .route("/apply-template", post(tokens::apply_template))
        .route("/props", get(info::props))
        .route("/metrics", get(info::metrics))
        .route("/openapi.json", get(info::openapi))
        .route(HEALTH, get(info::health))
        .route("/v1/health", get(info::health))
        .method_not_allowed_fallback(wrong_method)
        .fallback(no_such_route)
}

/// Whether a path is answered without a key.
pub fn is_open(path: &str) -> bool {
    path == HEALTH || path == "/v1/health"
}

const HEALTH: &str = "/health";

async fn no_such_route(uri: axum::http::Uri) -> ApiError {
    let path: String = uri.path().chars().take(80).collect();
    let message = format!("there is no `{}` here; GET /openapi.json lists what there is", path.escape_debug());
    ApiError::with(StatusCode::NOT_FOUND, "not_found", message)
}

async fn wrong_method(method: axum::http::Method, uri: axum::http::Uri) -> ApiError {
    let path: String = uri.path().chars().take(80).collect();
    let message = format!("`{}` does not answer {method}; GET /openapi.json says what it does", path.escape_debug());
    ApiError::with(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What answers call the program that made them.
const FINGERPRINT: &str = concat!("bitnet-infer-", env!("CARGO_PKG_VERSION"));

#[cfg(test)]
mod tests;
