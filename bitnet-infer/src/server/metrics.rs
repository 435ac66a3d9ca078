//! What the server counts and times, in the text format of Prometheus.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// One label and its value.
type Labelled = Family<Vec<(&'static str, String)>, Counter>;

/// Every metric, registered under the prefix `bitnet_`.
pub struct Metrics {
    registry: Registry,
    /// From the arrival of a request to its first new token.
    pub first_token_seconds: Histogram,
    /// Between tokens of one text.
    pub between_tokens_seconds: Histogram,
    /// From arrival to the first pass.
    pub queue_seconds: Histogram,
    /// From the first byte of a request's head to the last of its answer.
    pub request_seconds: Histogram,
    /// Tokens of prompts that were begun with.
    pub prompt_tokens: Counter,
    /// Of these, tokens that were known already.
    pub cached_tokens: Counter,
    /// New tokens.
    pub generated_tokens: Counter,
    /// Times that the engine's thread looked for something to do.
    pub rounds: Counter,
    /// Passes of the engine.
    pub passes: Counter,
    /// Tokens in them.
    pub pass_tokens: Counter,
    /// Texts that gave their memory back to others.
    pub preemptions: Counter,
    /// Pages of known texts that were given up for others.
    pub evictions: Counter,
    /// Texts that are worked on.
    pub running: Gauge,
    /// Texts that wait.
    pub waiting: Gauge,
    /// Pages of keys and values that exist.
    pub kv_pages: Gauge,
    /// Pages that there is memory for.
    pub kv_page_limit: Gauge,
    /// Pages kept for texts that begin alike.
    pub prefix_pages: Gauge,
    /// Open connections.
    pub connections: Gauge,
    finished: Labelled,
    rejected: Labelled,
    requests: Labelled,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("bitnet");
        let r = &mut registry;
        // From a tenth of a millisecond to some hundred seconds.
        let times = || Histogram::new(exponential_buckets(1e-4, 2.0, 21));
        macro_rules! registered {
            ($name:literal, $help:literal, $metric:expr) => {{
                let metric = $metric;
                r.register($name, $help, metric.clone());
                metric
            }};
        }
        Self {
            first_token_seconds: registered!(
                "time_to_first_token_seconds",
                "From the arrival of a request to its first new token",
                times()
            ),
            between_tokens_seconds: registered!("inter_token_latency_seconds", "Between tokens of one text", times()),
            queue_seconds: registered!("queue_seconds", "From the arrival of a request to its first pass", times()),
            request_seconds: registered!("request_seconds", "From a request to the end of its answer", times()),
            prompt_tokens: registered!("prompt_tokens", "Tokens of prompts", Counter::default()),
            cached_tokens: registered!(
                "prefix_cache_hit_tokens",
                "Tokens of prompts that were known already",
                Counter::default()
            ),
            generated_tokens: registered!("generation_tokens", "New tokens", Counter::default()),
            rounds: registered!(
                "engine_rounds",
                "Times that the engine's thread looked for something to do",
                Counter::default()
            ),
            passes: registered!("passes", "Passes of the engine", Counter::default()),
            pass_tokens: registered!("pass_tokens", "Tokens in all passes", Counter::default()),
            preemptions: registered!(
                "preemptions",
                "Texts that gave their memory back to others and were read again",
                Counter::default()
            ),
            evictions: registered!(
                "prefix_cache_evictions",
                "Pages of known texts that were given up for others",
                Counter::default()
            ),
            running: registered!("requests_running", "Texts that are worked on", Gauge::default()),
            waiting: registered!("requests_waiting", "Texts that wait", Gauge::default()),
            kv_pages: registered!("kv_cache_pages", "Pages of keys and values in memory", Gauge::default()),
            kv_page_limit: registered!("kv_cache_page_limit", "Pages that there is memory for", Gauge::default()),
            prefix_pages: registered!("prefix_cache_pages", "Pages kept for texts that begin alike", Gauge::default()),
            connections: registered!("connections", "Open connections", Gauge::default()),
            finished: registered!("requests_finished", "Texts that ended, by reason", Labelled::default()),
            rejected: registered!("requests_rejected", "Requests turned away, by reason", Labelled::default()),
            requests: registered!("http_requests", "Answered requests, by status", Labelled::default()),
            registry,
        }
    }

    /// Counts a text that has ended.
    pub fn count_finished(&self, reason: &'static str) {
        self.finished.get_or_create(&vec![("reason", reason.to_owned())]).inc();
    }

    /// Counts a request that was turned away.
    pub fn count_rejected(&self, reason: &'static str) {
        self.rejected.get_or_create(&vec![("reason", reason.to_owned())]).inc();
    }

    /// Counts an answer.
    pub fn count_answer(&self, status: u16) {
        self.requests.get_or_create(&vec![("status", status.to_string())]).inc();
    }

    /// All of them as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // A string takes everything.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
