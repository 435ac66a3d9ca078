//! Connections: accepted one by one, each with limits on what it may take in time and size.
//!
//! hyper's own time-out on heads works only with a timer, which `axum::serve` does not give it (tokio-rs/axum#2741): a client
//! that sends a byte now and then would hold its connection for ever.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;

use super::metrics::Metrics;
use super::peer::Peer;

/// Limits on connections.
#[derive(Clone, Copy, Debug)]
pub struct Connections {
    /// Open at the same time; others wait.
    pub most: usize,
    /// In which the head of a request must arrive, from the end of the one before.
    pub head_time: Duration,
    /// In which a client must take something of what is written to it.
    pub write_time: Duration,
    /// In which requests may end once the server is told to stop.
    pub grace: Duration,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            most: 1024,
            head_time: Duration::from_secs(15),
            write_time: Duration::from_secs(30),
            grace: Duration::from_secs(10),
        }
    }
}

/// Accepts connections until `stop` is told, then lets those that are busy end; returns when all have, or the grace is over.
pub async fn accept(
    listener: TcpListener,
    app: Router,
    limits: Connections,
    metrics: Arc<Metrics>,
    stop: impl Future<Output = ()>,
) {
    let places = Arc::new(Semaphore::new(limits.most));
    let (closing, closed) = watch::channel(false);
    let mut tasks = JoinSet::new();
    tokio::pin!(stop);
    loop {
        let place = tokio::select! {
            place = Arc::clone(&places).acquire_owned() => place,
            () = &mut stop => break,
        };
        // Nobody closes the semaphore.
        let Ok(place) = place else { break };
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        match stream {
            Ok((stream, _)) => {
                let (app, closed, metrics) = (app.clone(), closed.clone(), Arc::clone(&metrics));
                tasks.spawn(async move {
                    metrics.connections.inc();
                    connection(stream, app, limits, closed).await;
                    metrics.connections.dec();
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!("a connection cannot be accepted: {error}");
                if !is_of_one_connection(&error) {
                    // Out of files, perhaps: those that end make room.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        while tasks.try_join_next().is_some() {}
    }
    drop(listener);
    // Every connection has a receiver, or has ended.
    let _ = closing.send(true);
    let all = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.grace, all).await.is_err() {
        tracing::warn!("{} connections are cut off", tasks.len());
    }
    tasks.shutdown().await;
}

async fn connection(stream: TcpStream, app: Router, limits: Connections, mut closed: watch::Receiver<bool>) {
    // Small pieces are to arrive when they are written.
    let _ = stream.set_nodelay(true);
    let peer = Peer::new(stream);
    let mut stream = TimeoutStream::new(peer.clone());
    stream.set_write_timeout(Some(limits.write_time));
    let app = TowerToHyperService::new(app);
    let service = service_fn(|request: Request<Incoming>| {
        peer.begin(request.version());
        let (answer, peer) = (app.call(request), peer.clone());
        async move {
            let answer = answer.await;
            peer.answer();
            answer
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_time)
        .max_buf_size(LARGEST_HEAD)
        // Whoever has sent a whole request may close that half, and gets an answer; `Peer` sees who has left.
        .half_close(true)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    tokio::pin!(connection);
    let left = peer.left();
    tokio::pin!(left);
    tokio::select! {
        biased;
        // How a client left is its own affair.
        _ = connection.as_mut() => return,
        () = left.as_mut() => return,
        _ = closed.wait_for(|closed| *closed) => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        biased;
        _ = connection => {}
        () = left => {}
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionRefused | ConnectionAborted | ConnectionReset)
}

/// Bytes of a request's head.
const LARGEST_HEAD: usize = 64 << 10;
