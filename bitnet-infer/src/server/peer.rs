//! Whether the client at the other end of a connection is still there.
//!
//! A client may close its sending half once its request is sent, and still waits for the answer. One that has left looks the
//! same: nothing more arrives. The two differ only when something is sent to them, because the system of a client that has
//! left refuses it. So a client that has closed its sending half, and whose answer takes a while, is sent `100 Continue`,
//! which every HTTP/1.1 client reads over.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Version;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A connection. Its clones are the same one; all of them must be used by one task, which is woken for all.
#[derive(Clone)]
pub struct Peer(Arc<Inner>);

struct Inner {
    stream: Mutex<TcpStream>,
    /// Whether a request is being worked on and nothing of its answer is written yet.
    is_waiting: AtomicBool,
    /// Whether the last write could not be taken: what was to be written is only partly so.
    is_blocked: AtomicBool,
}

impl Peer {
    /// A connection that is open.
    pub fn new(stream: TcpStream) -> Self {
        let (is_waiting, is_blocked) = (AtomicBool::new(false), AtomicBool::new(false));
        Self(Arc::new(Inner { stream: Mutex::new(stream), is_waiting, is_blocked }))
    }

    /// A request has arrived. HTTP/1.0 knows no interim answers, so its clients are never asked whether they are there.
    pub fn begin(&self, version: Version) {
        self.0.is_waiting.store(version >= Version::HTTP_11, Ordering::Relaxed);
    }

    /// Its answer begins.
    pub fn answer(&self) {
        self.0.is_waiting.store(false, Ordering::Relaxed);
    }

    /// Waits until the client has left for certain.
    pub async fn left(&self) {
        loop {
            let mut byte = [0; 1];
            match poll_fn(|cx| self.stream().poll_peek(cx, &mut ReadBuf::new(&mut byte))).await {
                Ok(0) => break,
                // hyper reads it.
                Ok(_) => tokio::time::sleep(LOOK).await,
                Err(_) => return,
            }
        }
        let mut asked = false;
        loop {
            tokio::time::sleep(LOOK).await;
            let (waiting, blocked) = (&self.0.is_waiting, &self.0.is_blocked);
            if !asked && waiting.load(Ordering::Relaxed) && !blocked.load(Ordering::Relaxed) {
                asked = true;
                // No room for these few bytes means that others are on their way, which ask as well.
                let _ = self.stream().try_write(INTERIM);
            }
            if !matches!(self.stream().take_error(), Ok(None)) {
                return;
            }
        }
    }

    fn stream(&self) -> MutexGuard<'_, TcpStream> {
        self.0.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn written(&self, outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.0.is_blocked.store(outcome.is_pending(), Ordering::Relaxed);
        outcome
    }
}

/// An answer that is none yet.
const INTERIM: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Between looks at a client.
const LOOK: Duration = Duration::from_millis(250);

impl AsyncRead for Peer {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream()).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Peer {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut *self.stream()).poll_write(cx, bytes);
        self.written(outcome)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut *self.stream()).poll_write_vectored(cx, bytes);
        self.written(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream()).poll_shutdown(cx)
    }
}
