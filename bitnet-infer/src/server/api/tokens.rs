//! Text to tokens and back, and templates, in llama.cpp's and in vLLM's shapes.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::body::{Body, aside};
use super::fields::{Fields, unexpected};
use super::known::Changes;
use super::messages::conversation;
use super::request::token_ids;
use crate::chat::encode_plain;
use crate::server::error::ApiError;
use crate::server::state::Server;

/// `POST /tokenize`: `content` (llama.cpp), `prompt` or `messages` (vLLM).
///
/// # Errors
/// What is wrong with the request.
pub async fn tokenize(State(server): State<Arc<Server>>, Body(bytes): Body) -> Result<Json<Value>, ApiError> {
    blocking(server, bytes, |server, fields| {
        let tokenizer = server.tokenizer()?;
        let tokens = if let Some((name, text)) = fields.take_any(&["content", "prompt"]) {
            let Value::String(text) = text else { return Err(unexpected(name, &text, "a string")) };
            let add_special = match fields.flag("add_special")? {
                Some(add) => add,
                None => fields.flag("add_special_tokens")?.unwrap_or(name == "prompt"),
            };
            let parse_special = fields.flag("parse_special")?.unwrap_or(true);
            let mut tokens = if parse_special { tokenizer.encode(&text)? } else { encode_plain(tokenizer, &text)? };
            if add_special
                && let Some(bos) = server.loaded.model.config().bos_token_id
                && tokens.first() != Some(&bos)
            {
                tokens.insert(0, bos);
            }
            tokens
        } else {
            let (messages, ending) = conversation(fields)?;
            fields.refuse_rest(&[Changes::Prompt])?;
            server.chat()?.encode(tokenizer, &messages, ending)?
        };
        let piece = |token: u32| match String::from_utf8(tokenizer.bytes_of(token)) {
            Ok(text) => json!(text),
            Err(bytes) => json!(bytes.into_bytes()),
        };
        let with_pieces = fields.flag("with_pieces")?.unwrap_or(false);
        let listed: Vec<Value> = match with_pieces {
            true => tokens.iter().map(|&token| json!({"id": token, "piece": piece(token)})).collect(),
            false => tokens.iter().map(|&token| json!(token)).collect(),
        };
        let mut answer = json!({"tokens": listed, "count": tokens.len(), "max_model_len": server.context()});
        if fields.flag("return_token_strs")?.unwrap_or(false) {
            answer["token_strs"] = tokens.iter().map(|&token| tokenizer.text_of(token)).collect();
        }
        Ok(answer)
    })
    .await
}

/// `POST /detokenize`.
///
/// # Errors
/// What is wrong with the request.
pub async fn detokenize(State(server): State<Arc<Server>>, Body(bytes): Body) -> Result<Json<Value>, ApiError> {
    blocking(server, bytes, |server, fields| {
        let expected = "a list of token ids";
        let ids = match fields.take("tokens") {
            Some(Value::Array(ids)) => token_ids("tokens", &ids, server.vocab_size())?,
            Some(other) => return Err(unexpected("tokens", &other, expected)),
            None => return Err(ApiError::field("tokens", format!("is missing, expected {expected}"))),
        };
        let text = server.tokenizer()?.decode_with_special(&ids)?;
        Ok(json!({"content": text, "prompt": text}))
    })
    .await
}

/// `POST /apply-template`.
///
/// # Errors
/// What is wrong with the request.
pub async fn apply_template(State(server): State<Arc<Server>>, Body(bytes): Body) -> Result<Json<Value>, ApiError> {
    blocking(server, bytes, |server, fields| {
        let (messages, ending) = conversation(fields)?;
        fields.refuse_rest(&[Changes::Prompt])?;
        Ok(json!({"prompt": server.chat()?.render(&messages, ending)?}))
    })
    .await
}

/// `GET /tokenizer_info`, as vLLM has it: what a client needs to count tokens as the server does.
///
/// # Errors
/// None: a model without a tokenizer is not served.
pub async fn tokenizer_info(State(server): State<Arc<Server>>) -> Result<Json<Value>, ApiError> {
    let tokenizer = server.tokenizer()?;
    let config = server.loaded.model.config();
    let spelled = |id: Option<u32>| id.and_then(|id| tokenizer.text_of(id));
    let eos = spelled(config.eos_token_ids.first().copied());
    let bos = spelled(config.bos_token_id);
    // A client that encodes an empty text needs something to begin with.
    Ok(Json(json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos, "pad_token": eos,
        "add_bos_token": bos.is_some(), "model_max_length": server.context(), "vocab_size": config.vocab_size,
        "chat_template": server.chat.as_ref().map(|format| format.template()),
    })))
}

/// What `prompt` becomes is found out on a thread that may take its time.
async fn blocking(
    server: Arc<Server>,
    bytes: Vec<u8>,
    work: impl FnOnce(&Server, &mut Fields) -> Result<Value, ApiError> + Send + 'static,
) -> Result<Json<Value>, ApiError> {
    let prepare = |server: &Arc<Server>, bytes: &[u8]| {
        let mut fields = Fields::parse(bytes)?;
        server.check_model(fields.text("model")?)?;
        work(server, &mut fields)
    };
    aside(&server, bytes.len(), prepare, bytes).await.map(Json)
}
