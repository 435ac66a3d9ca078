//! Bodies of requests, within a size and a time.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body as RequestBody;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
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
            let message = format!("the body is larger than {limit} bytes");
            ApiError::with(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
        };
        let too_large_after = async |rest: RequestBody| {
            // Whoever sends a body reads the answer behind it: a connection that is closed before would be an error to them.
            let drain = Limited::new(rest, limit.saturating_mul(DRAINED));
            let _ = tokio::time::timeout(BODY_TIME, discard(drain)).await;
            too_large()
        };
        let declared = request.headers().get(axum::http::header::CONTENT_LENGTH);
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

/// Reads a body to its end, or the end of what is read of it, and keeps nothing.
async fn discard(body: Limited<RequestBody>) {
    let mut body = std::pin::pin!(body);
    while let Some(Ok(_)) = body.frame().await {}
}

/// Bodies of up to so many times the limit are read to their end before they are refused.
const DRAINED: usize = 16;

/// In which a body must arrive.
const BODY_TIME: Duration = Duration::from_secs(30);
