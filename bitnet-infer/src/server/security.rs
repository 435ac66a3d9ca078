//! Who may ask: keys, hosts, origins.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::error::ApiError;
use super::metrics::Metrics;
use super::{api, page};

/// Who may ask for what.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Digests of the keys; none: no key is needed.
    keys: Vec<[u8; 32]>,
    /// Names by which the server may be addressed, besides numbers and `localhost`.
    hosts: Vec<String>,
    /// Origins whose pages may read answers.
    origins: Vec<String>,
}

impl Access {
    /// Takes the keys, and names and origins that are allowed besides the server's own.
    ///
    /// # Errors
    /// If an origin is invalid.
    pub fn new(keys: &[String], hosts: &[String], origins: &[String]) -> Result<Self, String> {
        let is_origin = |origin: &str| {
            let host = origin.split_once("://").map(|(_, host)| host);
            origin == "*"
                || host.is_some_and(|host| !host.is_empty() && !host.contains('/'))
                    && origin.parse::<HeaderValue>().is_ok()
        };
        if let Some(bad) = origins.iter().find(|origin| !is_origin(origin)) {
            return Err(format!(
                "--cors-origin: invalid origin `{}`, expected a scheme and a host without a path, such as \
                 https://chat.example, or *",
                bad.escape_debug()
            ));
        }
        Ok(Self {
            keys: keys.iter().map(|key| digest(key.as_bytes())).collect(),
            hosts: hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
            origins: origins.iter().map(|origin| origin.to_ascii_lowercase()).collect(),
        })
    }

    /// Whether a key is needed.
    pub fn has_keys(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Answers to pages of the allowed origins; other pages cannot read anything.
    pub fn cors(&self) -> CorsLayer {
        let origins: Vec<HeaderValue> = self.origins.iter().filter_map(|origin| origin.parse().ok()).collect();
        let origin = if self.origins.iter().any(|origin| origin == "*") {
            AllowOrigin::any()
        } else {
            AllowOrigin::list(origins)
        };
        // Clients send headers of their own, such as x-stainless-*.
        CorsLayer::new()
            .allow_origin(origin)
            .allow_methods([Method::GET, Method::POST])
            .allow_headers(AllowHeaders::mirror_request())
    }

    /// Whether one of the keys came with the request. How long this takes says nothing about them.
    fn knows_key_of(&self, headers: &HeaderMap) -> bool {
        let bearer = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        let bearer = bearer
            .and_then(|value| value.split_at_checked(7))
            .filter(|(kind, _)| kind.eq_ignore_ascii_case(b"bearer "));
        let given = bearer.map(|(_, key)| key).or_else(|| headers.get("x-api-key").map(HeaderValue::as_bytes));
        let given = digest(given.unwrap_or_default().trim_ascii());
        let known = self.keys.iter().fold(Choice::from(0), |known, key| known | key.ct_eq(&given));
        known.into()
    }

    /// Whether a `Host` names this server and not a name that somebody made point here: a page of `evil.example`, whose
    /// address then becomes 127.0.0.1, still says `evil.example`.
    fn knows_host(&self, host: &str) -> bool {
        let name = host_name(host).to_ascii_lowercase();
        let is_number = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        is_number || name == "localhost" || self.hosts.contains(&name)
    }

    /// Whether a page of `origin` may ask a server that it calls `host`.
    fn knows_origin(&self, origin: &str, host: &str) -> bool {
        let own = origin.split_once("://").is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(host));
        own || self.origins.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin))
    }
}

/// A host without its port.
fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// What the checks need.
#[derive(Clone)]
pub struct Guard {
    /// Who may ask.
    pub access: Arc<Access>,
    /// Where refusals are counted.
    pub metrics: Arc<Metrics>,
}

/// Refuses requests under foreign names and from foreign pages.
pub async fn check_host(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    match refusal(&guard, &request) {
        Some(error) => error.into_response(),
        None => next.run(request).await,
    }
}

fn refusal(guard: &Guard, request: &Request) -> Option<ApiError> {
    let text = |name| request.headers().get(name).map(|value: &HeaderValue| value.to_str().unwrap_or("?").to_owned());
    let host = text(header::HOST).or_else(|| request.uri().authority().map(|authority| authority.to_string()));
    let refuse = |reason: &'static str, message: String| {
        guard.metrics.count_rejected(reason);
        Some(ApiError::with(StatusCode::FORBIDDEN, reason, message))
    };
    // HTTP/1.0 has no `Host`, so load balancers that speak it send none. Browsers, through which a foreign name could reach
    // this server, always send one.
    if host.is_none() && request.version() > Version::HTTP_10 {
        return Some(ApiError::invalid("the request has no `Host` header, which HTTP/1.1 requires"));
    }
    if let Some(host) = &host
        && !guard.access.knows_host(host)
    {
        let name = shown(host_name(host));
        let message = format!(
            "this server does not answer requests for the host `{name}`: to allow it, start the server with --allow-host {name}"
        );
        return refuse("host", message);
    }
    let origin = text(header::ORIGIN)?;
    if guard.access.knows_origin(&origin, host.as_deref().unwrap_or_default()) {
        return None;
    }
    let origin = shown(&origin);
    let message = format!(
        "pages of the origin `{origin}` may not use this server: to allow them, start it with --cors-origin {origin}"
    );
    refuse("origin", message)
}

/// What a client has sent, short and harmless in a message.
fn shown(text: &str) -> String {
    text.chars().take(80).collect::<String>().escape_debug().to_string()
}

/// Refuses requests without a key, if there are keys. Health and the page itself, which hold nothing of anybody's, are open.
pub async fn check_key(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if !guard.access.has_keys()
        || api::is_open(path)
        || page::is_part(path)
        || guard.access.knows_key_of(request.headers())
    {
        return next.run(request).await;
    }
    guard.metrics.count_rejected("api_key");
    let message = "this server needs an API key: send it as `Authorization: Bearer KEY`";
    ApiError::with(StatusCode::UNAUTHORIZED, "invalid_api_key", message).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_others_control_are_not_ours() {
        let access = Access::new(&[], &["Model.lan".into()], &[]).expect("valid");
        for host in ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:8080", "[::1]", "192.168.1.5", "model.LAN:9"]
        {
            assert!(access.knows_host(host), "{host}");
        }
        for host in ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "", "?"] {
            assert!(!access.knows_host(host), "{host}");
        }
    }

    #[test]
    fn foreign_pages_may_not_ask() {
        let access = Access::new(&[], &[], &["https://Chat.example".into()]).expect("valid");
        assert!(access.knows_origin("http://127.0.0.1:8080", "127.0.0.1:8080"));
        assert!(access.knows_origin("https://chat.example", "127.0.0.1:8080"));
        for origin in
            ["http://evil.example", "null", "http://127.0.0.1:9", "https://chat.example.evil", "http://localhost:8080"]
        {
            assert!(!access.knows_origin(origin, "127.0.0.1:8080"), "{origin}");
        }
    }

    #[test]
    fn invalid_origins_are_refused() {
        for origin in ["chat.example", "https://chat.example/", "https://", "", "https://a\nb"] {
            assert!(Access::new(&[], &[], &[origin.into()]).is_err(), "{origin}");
        }
    }

    #[test]
    fn keys_are_found_in_both_places_and_nowhere_else() {
        let access = Access::new(&["one".into(), "two".into()], &[], &[]).expect("valid");
        let with = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().expect("a header"));
            access.knows_key_of(&headers)
        };
        assert!(
            with("authorization", "Bearer two") && with("authorization", "bearer one ") && with("x-api-key", "one")
        );
        assert!(
            !with("authorization", "Basic one") && !with("authorization", "Bearer ") && !with("x-api-key", "three")
        );
        assert!(!access.knows_key_of(&HeaderMap::new()));
    }
}
