//! The server from outside: over sockets, with a client of our own that shares no code with it.

mod answers;
mod client;
mod company;
mod departures;
mod refusals;
mod scripts;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bitnet_infer::chat::ChatFormat;
use bitnet_infer::engine::{KvType, LoadedModel, ModelFiles, SamplerConfig, open};
use bitnet_infer::kernels;
use bitnet_infer::server::metrics::Metrics;
use bitnet_infer::server::scheduler::{Engine, Limits, Prefill};
use bitnet_infer::server::{Access, Connections, Parts, Server, serve};
use bitnet_model::files::gguf::GgufOptions;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::common::{tiny_config, write_model};

/// Settings of a server under test.
struct Setup {
    limits: Limits,
    access: Access,
    connections: Connections,
    body_limit: usize,
    template: Option<&'static str>,
}

impl Default for Setup {
    fn default() -> Self {
        let limits = Limits {
            parallel: 8,
            queue: 64,
            kv_bytes: 64 << 20,
            kv_type: KvType::F32,
            context: CONTEXT,
            prefill: Prefill::Tokens(24),
            prefix_cache: true,
            patience: Duration::from_secs(5),
        };
        let connections = Connections { grace: Duration::from_secs(5), ..Connections::default() };
        Self { limits, access: Access::default(), connections, body_limit: 64 << 10, template: Some("plain") }
    }
}

/// A running server; it stops when dropped.
struct Running {
    address: SocketAddr,
    loaded: Arc<LoadedModel>,
    engine: Engine,
    metrics: Arc<Metrics>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

const CONTEXT: usize = 1024;

impl Running {
    fn start(setup: Setup) -> Self {
        let folder = tempfile::tempdir().expect("temp dir");
        let path = folder.path().join("model");
        let mut config = tiny_config("ternary", "int8");
        config.max_position_embeddings = CONTEXT;
        write_model(&path, &config, 3);
        let loaded = Arc::new(open(&path, kernels::best().expect("a kernel")).expect("loads"));
        let metrics = Arc::new(Metrics::new());
        let (engine, _thread) =
            Engine::start(Arc::clone(&loaded), setup.limits.clone(), Arc::clone(&metrics)).expect("a thread");
        let server = Arc::new(
            Server::new(Parts {
                engine: engine.clone(),
                loaded: Arc::clone(&loaded),
                chat: chat_format(&path, &loaded, setup.template),
                name: "tiny".into(),
                sampler: SamplerConfig::default(),
                end_tokens: Vec::new(),
                limits: setup.limits,
                body_limit: setup.body_limit,
                seed: 1,
            })
            .expect("a server"),
        );
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = mpsc::channel();
        let own = Arc::clone(&metrics);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
                tell.send(listener.local_addr().expect("an address")).expect("somebody listens");
                // Dropping the sender stops the server too.
                let stop = async move { drop(stopped.await) };
                serve(listener, server, own, setup.access, setup.connections, stop).await;
            });
        });
        let address = told.recv().expect("listens");
        Self { address, loaded, engine, metrics, stop: Some(stop), thread: Some(thread), _folder: folder }
    }

    /// Tells the server to stop and waits until it has.
    fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panic");
        }
    }

    /// Waits until nothing runs and nothing waits any more.
    fn settle(&self) {
        let started = Instant::now();
        while self.engine.active() > 0 {
            assert!(started.elapsed() < Duration::from_secs(30), "{} still run", self.engine.active());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The value of a metric.
    fn metric(&self, line: &str) -> f64 {
        let text = self.metrics.text();
        let value = text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no {line} in\n{text}"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

fn chat_format(path: &Path, loaded: &LoadedModel, template: Option<&str>) -> Option<ChatFormat> {
    let files = ModelFiles::open(path, GgufOptions::default()).expect("opens");
    let tokenizer = loaded.require_tokenizer().expect("a tokenizer");
    ChatFormat::of(&files, loaded.model.config(), tokenizer, template).expect("a template")
}
