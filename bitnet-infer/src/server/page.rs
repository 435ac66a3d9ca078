//! The page at `/`: everything it needs is in this program, and it may ask nobody else.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sha2::{Digest, Sha256};

use super::state::Server;

struct File {
    path: &'static str,
    kind: &'static str,
    bytes: &'static [u8],
}

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const PICTURE: &str = "image/svg+xml";

macro_rules! part {
    ($path:literal, $kind:ident, $name:literal) => {
        File { path: $path, kind: $kind, bytes: include_bytes!(concat!("page/", $name)) }
    };
}

/// Every file of `page/`.
const FILES: &[File] = &[
    part!("/answers.js", SCRIPT, "answers.js"),
    part!("/api.js", SCRIPT, "api.js"),
    part!("/app.js", SCRIPT, "app.js"),
    part!("/chat.css", STYLE, "chat.css"),
    part!("/complete.js", SCRIPT, "complete.js"),
    part!("/composer.js", SCRIPT, "composer.js"),
    part!("/dialogs.js", SCRIPT, "dialogs.js"),
    part!("/dom.js", SCRIPT, "dom.js"),
    part!("/favicon.svg", PICTURE, "favicon.svg"),
    part!("/files.js", SCRIPT, "files.js"),
    part!("/format.js", SCRIPT, "format.js"),
    part!("/generate.js", SCRIPT, "generate.js"),
    part!("/", HTML, "index.html"),
    part!("/layout.css", STYLE, "layout.css"),
    part!("/markdown.js", SCRIPT, "markdown.js"),
    part!("/panels.css", STYLE, "panels.css"),
    part!("/portable.js", SCRIPT, "portable.js"),
    part!("/scroll.js", SCRIPT, "scroll.js"),
    part!("/server.js", SCRIPT, "server.js"),
    part!("/settings.js", SCRIPT, "settings.js"),
    part!("/sidebar.js", SCRIPT, "sidebar.js"),
    part!("/sse.js", SCRIPT, "sse.js"),
    part!("/stats.js", SCRIPT, "stats.js"),
    part!("/store.js", SCRIPT, "store.js"),
    part!("/style.css", STYLE, "style.css"),
    part!("/theme.js", SCRIPT, "theme.js"),
    part!("/thread.js", SCRIPT, "thread.js"),
    part!("/tokens.css", STYLE, "tokens.css"),
    part!("/tokens.js", SCRIPT, "tokens.js"),
    part!("/trits.js", SCRIPT, "trits.js"),
    part!("/welcome.js", SCRIPT, "welcome.js"),
];

/// Whether a path is part of the page.
pub fn is_part(path: &str) -> bool {
    FILES.iter().any(|file| file.path == path)
}

/// The routes of the page.
pub fn routes() -> Router<Arc<Server>> {
    FILES.iter().fold(Router::new(), |router, file| {
        let tag = format!("\"{:x}\"", Sha256::digest(file.bytes));
        router.route(file.path, get(move |headers: HeaderMap| async move { answer(file, &tag, &headers) }))
    })
}

fn answer(file: &'static File, tag: &str, headers: &HeaderMap) -> Response {
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes());
    let mut response = if known { StatusCode::NOT_MODIFIED.into_response() } else { file.bytes.into_response() };
    let own = response.headers_mut();
    own.insert(header::CONTENT_TYPE, HeaderValue::from_static(file.kind));
    own.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    own.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    own.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    own.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(tag) = tag.parse() {
        own.insert(header::ETAG, tag);
    }
    response
}

/// Scripts, styles, pictures and connections of its own and nothing else; nobody may frame it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_served() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/server/page");
        for entry in std::fs::read_dir(folder).expect("the page") {
            let name = entry.expect("readable").file_name().to_string_lossy().into_owned();
            let path = if name == "index.html" { "/".to_owned() } else { format!("/{name}") };
            assert!(is_part(&path), "{name} is not served");
        }
    }

    #[test]
    fn the_page_asks_nobody_else() {
        for file in FILES {
            let text = std::str::from_utf8(file.bytes).expect("text");
            for foreign in ["http://", "https://", "//cdn", "@import", "eval(", "innerHTML"] {
                let found = text.match_indices(foreign).map(|(at, _)| &text[at..(at + 60).min(text.len())]);
                // A namespace is a name, not an address; links in answers begin with one.
                let found: Vec<&str> = found.filter(|found| !found.starts_with("http://www.w3.org/")).collect();
                assert!(found.is_empty(), "{}: {found:?}", file.path);
            }
        }
    }
}
