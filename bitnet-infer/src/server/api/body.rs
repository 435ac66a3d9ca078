//! Bodies of requests, within a size and a time.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body as RequestBody;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use crate::server::error::ApiError;
use crate::server::state::Server;

/// The bytes of a body.
pub struct Body(pub Vec<u8>);

impl FromRequest<Arc<Server>> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, server: &Arc<Server>) -> Result<Self, ApiError> {
        let limit = server.body_limit;
        let too_large = || {
            server.engine.metrics().count_rejected("body_too_large");
            let message = format!("the body is larger than {limit} bytes (the server's --body-limit)");
            ApiError::with(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
        };
        let too_large_after = async |rest: RequestBody| {
            drain(rest, limit.saturating_mul(DRAINED)).await;
            too_large()
        };
        let coding =
            request.headers().get(header::CONTENT_ENCODING).map(|coding| coding.to_str().unwrap_or("?").trim());
        if let Some(coding) = coding
            && !matches!(coding.to_ascii_lowercase().as_str(), "" | "identity")
        {
            let coding: String = coding.chars().take(40).collect();
            let message = format!(
                "the body is compressed (Content-Encoding: {}): send it uncompressed, without that header",
                coding.escape_debug()
            );
            let limit = limit.saturating_mul(DRAINED);
            drain(request.into_body(), limit).await;
            return Err(ApiError::with(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_content_encoding", message));
        }
        let declared = request.headers().get(header::CONTENT_LENGTH);
        let declared = declared.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if declared.is_some_and(|length| length > limit as u64) {
            return Err(too_large_after(request.into_body()).await);
        }
        let mut body = request.into_body();
        match tokio::time::timeout(BODY_TIME, Limited::new(&mut body, limit).collect()).await {
            Ok(Ok(body)) => Ok(Self(body.to_bytes().to_vec())),
            Ok(Err(e)) if e.is::<LengthLimitError>() => Err(too_large_after(body).await),
            Ok(Err(e)) => Err(ApiError::invalid(format!("the body cannot be read: {e}"))),
            Err(_) => {
                server.engine.metrics().count_rejected("body_timeout");
                let message = format!("the body did not arrive within {} s", BODY_TIME.as_secs());
                Err(ApiError::with(StatusCode::REQUEST_TIMEOUT, "body_timeout", message))
            }
        }
    }
}

/// Does the work of a request on a thread that may take its time. Large ones wait for one another, so that small ones find a
/// thread; whoever leaves meanwhile is not worked for.
///
/// # Errors
/// Those of the work.
pub async fn aside<T: Send + 'static>(
    server: &Arc<Server>,
    size: usize,
    work: impl FnOnce(&Arc<Server>, &[u8]) -> Result<T, ApiError> + Send + 'static,
    bytes: Vec<u8>,
) -> Result<T, ApiError> {
    let place = if size > LARGE { server.large_requests.acquire().await.ok() } else { None };
    let own = Arc::clone(server);
    let done = tokio::task::spawn_blocking(move || work(&own, &bytes)).await;
    drop(place);
    done.map_err(|e| ApiError::internal(e.to_string()))?
}

/// An answer of JSON.
pub fn json_text(text: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// Bytes of a request from which on it is a large one.
const LARGE: usize = 32 << 10;

/// Reads what is left of a body, within `limit` and a time, and keeps nothing. Whoever sends a body reads the answer behind it:
/// a connection that is closed before would be an error to them.
async fn drain(body: RequestBody, limit: usize) {
    let mut body = std::pin::pin!(Limited::new(body, limit));
    let all = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = tokio::time::timeout(DRAIN_TIME, all).await;
}

/// Bodies of up to so many times the limit are read to their end before they are refused.
const DRAINED: usize = 16;

/// For so long.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// In which a body must arrive.
const BODY_TIME: Duration = Duration::from_secs(30);
