//! What the server is: models, health, settings, metrics.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::server::error::ApiError;
use crate::server::state::Server;

/// `GET /v1/models`.
pub async fn models(State(server): State<Arc<Server>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [model_object(&server)]}))
}

/// `GET /v1/models/{id}`; a name may hold slashes, and one behind it is passed over.
///
/// # Errors
/// If another model is asked for.
pub async fn model(State(server): State<Arc<Server>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let known = id == server.name || id.strip_suffix('/') == Some(&server.name);
    if known { Ok(Json(model_object(&server))) } else { Err(server.unknown_model(&id)) }
}

fn model_object(server: &Server) -> Value {
    let config = server.loaded.model.config();
    json!({
        "id": server.name, "object": "model", "created": server.created, "owned_by": "bitnet",
        "max_model_len": server.context(),
        "meta": {
            "n_vocab": config.vocab_size, "n_ctx_train": config.max_position_embeddings, "n_embd": config.hidden_size,
            "context_length": server.context(), "parameters": config.parameters(),
            "weights": config.quantization.weight_name(), "activations": config.quantization.activation_name(),
        },
    })
}

/// `GET /health`: 200 while requests are taken, 503 once the server shuts down.
///
/// # Errors
/// Once it does.
pub async fn health(State(server): State<Arc<Server>>) -> Result<Json<Value>, ApiError> {
    if server.engine.is_open() {
        return Ok(Json(json!({"status": "ok"})));
    }
    Err(ApiError::with(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", "the server is shutting down"))
}

/// `GET /props`, as llama.cpp's server has it.
pub async fn props(State(server): State<Arc<Server>>) -> Json<Value> {
    let sampler = &server.sampler;
    let limits = &server.limits;
    Json(json!({
        "model": server.name,
        "model_alias": server.name,
        "build_info": super::FINGERPRINT,
        "total_slots": limits.parallel,
        "queue": limits.queue,
        "context_length": server.context(),
        "kv_cache": {
            "type": limits.kv_type.name(), "bytes": limits.kv_bytes, "pages": server.page_limit(),
            "page_tokens": crate::engine::PAGE_TOKENS, "bytes_per_token": server.bytes_per_token(),
        },
        "prefix_cache": limits.prefix_cache,
        "chat_template": server.chat.as_ref().map(|format| format.template()),
        "chat_template_name": server.chat.as_ref().map(|format| format.name()),
        "kernel": server.loaded.model.kernel().name,
        "head": server.loaded.model.head_format().name(),
        "default_generation_settings": {
            "n_ctx": server.context(),
            "temperature": decimal(sampler.temperature), "top_k": sampler.top_k, "top_p": decimal(sampler.top_p),
            "min_p": decimal(sampler.min_p), "repetition_penalty": decimal(sampler.repeat_penalty), "repeat_window": sampler.repeat_window,
            "presence_penalty": 0.0, "frequency_penalty": 0.0,
        },
    }))
}

/// The number that a person has written: as f64, 0.8 in single precision would be 0.800000011920929.
fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(value.into())
}

/// `GET /metrics`.
pub async fn metrics(State(server): State<Arc<Server>>) -> Response {
    // The version of the text format that the encoder writes.
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], server.engine.metrics().text()).into_response()
}

/// `GET /openapi.json`.
pub async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

/// The description of the API.
pub const OPENAPI: &str = include_str!("openapi.json");
