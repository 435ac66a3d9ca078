//! The HTTP API: OpenAI's completions, and what llama.cpp's and vLLM's clients know besides.

mod answer;
mod body;
mod chat;
mod completions;
mod fields;
mod info;
mod known;
mod log;
mod messages;
mod request;
mod size;
mod tokens;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{MethodRouter, get, post};

use super::error::ApiError;
use super::state::Server;

/// Every route of the API, as most clients know it.
fn table() -> [(&'static str, MethodRouter<Arc<Server>>); 12] {
    [
        ("/v1/completions", post(completions::completions)),
        ("/v1/chat/completions", post(chat::chat)),
        ("/v1/models", get(info::models)),
        // A name may hold slashes.
        ("/v1/models/{*id}", get(info::model)),
        ("/tokenize", post(tokens::tokenize)),
        ("/detokenize", post(tokens::detokenize)),
        ("/tokenizer_info", get(tokens::tokenizer_info)),
        ("/apply-template", post(tokens::apply_template)),
        ("/props", get(info::props)),
        ("/metrics", get(info::metrics)),
        ("/openapi.json", get(info::openapi)),
        (HEALTH, get(info::health)),
    ]
}

/// The routes: each answers with and without `/v1` in front, and with a slash behind.
pub fn routes() -> Router<Arc<Server>> {
    let mut router = Router::new();
    for (path, handler) in table() {
        let plain = plain(path);
        for path in [plain.to_owned(), format!("/v1{plain}")] {
            // A name takes whatever is behind it.
            if !path.ends_with("{*id}") {
                router = router.route(&format!("{path}/"), handler.clone());
            }
            router = router.route(&path, handler.clone());
        }
    }
    router.method_not_allowed_fallback(wrong_method).fallback(no_such_route)
}

/// A path without `/v1` in front and a slash behind.
fn plain(path: &str) -> &str {
    let path = path.strip_suffix('/').unwrap_or(path);
    path.strip_prefix("/v1").filter(|rest| rest.starts_with('/')).unwrap_or(path)
}

/// Whether a path is answered without a key.
pub fn is_open(path: &str) -> bool {
    plain(path) == HEALTH
}

const HEALTH: &str = "/health";

async fn no_such_route(uri: axum::http::Uri) -> ApiError {
    let path: String = uri.path().chars().take(80).collect();
    let message = format!("unknown path `{}`: GET /openapi.json lists the paths of this server", path.escape_debug());
    ApiError::with(StatusCode::NOT_FOUND, "not_found", message)
}

async fn wrong_method(method: axum::http::Method, uri: axum::http::Uri) -> ApiError {
    let path: String = uri.path().chars().take(80).collect();
    let message = format!(
        "`{}` does not accept {method}: GET /openapi.json lists the methods of every path",
        path.escape_debug()
    );
    ApiError::with(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What answers call the program that made them.
const FINGERPRINT: &str = concat!("bitnet-infer-", env!("CARGO_PKG_VERSION"));

#[cfg(test)]
mod tests;
