//! When a request began and when its answer was gone: the two ends of every latency.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// The request that a connection is busy with. HTTP/1.1 has one at a time.
#[derive(Default)]
pub(super) struct Exchange(Mutex<State>);

#[derive(Default)]
struct State {
    /// When the first byte after the last answer was read.
    first_byte: Option<Instant>,
    phase: Phase,
    /// How long this answer's reader may take no byte, when that is not what holds for all.
    patience: Option<Duration>,
    /// Told when the answer is gone.
    listener: Option<Box<dyn FnOnce(Instant) + Send>>,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Request,
    /// The response was handed to hyper; the next completed flush has sent it.
    Answer,
}

impl Exchange {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing here panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the request's first byte was read; now, if it came in one read with the request before.
    pub(super) fn first_byte(&self) -> Instant {
        self.state().first_byte.unwrap_or_else(Instant::now)
    }

    /// `listener` is called with the time at which the answer's last byte went to the kernel.
    pub(super) fn when_answered(&self, listener: impl FnOnce(Instant) + Send + 'static) {
        self.state().listener = Some(Box::new(listener));
    }

    /// The reader of this answer may take no byte for so long: a person with a pager.
    pub(super) fn be_patient(&self, patience: Duration) {
        self.state().patience = Some(patience);
    }

    pub(super) fn answer_is_ready(&self) {
        self.state().phase = Phase::Answer;
    }

    fn bytes_read(&self) {
        let mut state = self.state();
        if state.first_byte.is_none() {
            state.first_byte = Some(Instant::now());
        }
    }

    fn flushed(&self) {
        let listener = {
            let mut state = self.state();
            if state.phase != Phase::Answer {
                return;
            }
            state.phase = Phase::Request;
            state.first_byte = None;
            state.listener.take()
        };
        if let Some(listener) = listener {
            listener(Instant::now());
        }
    }
}

/// A stream that notes the ends of each [`Exchange`] and gives up on a peer that does not read.
pub(super) struct Timed<S> {
    stream: S,
    exchange: Arc<Exchange>,
    write_stall: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Timed<S> {
    pub(super) fn new(stream: S, exchange: Arc<Exchange>, write_stall: Duration) -> Self {
        Self {
            stream,
            exchange,
            write_stall,
            stalled: None,
        }
    }

    /// Turns a write that has been pending for `write_stall` into an error.
    fn bounded<T>(
        &mut self,
        cx: &mut Context<'_>,
        progress: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            self.stalled = None;
            return progress;
        }
        let stall = self.exchange.state().patience.unwrap_or(self.write_stall);
        let timer = self.stalled.get_or_insert_with(|| Box::pin(sleep(stall)));
        ready!(timer.as_mut().poll(cx));
        let why = "write deadline: the client takes no byte of its answer";
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.exchange.bytes_read();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.bounded(cx, progress)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.bounded(cx, progress)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.exchange.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn pair() -> (DuplexStream, Timed<DuplexStream>, Arc<Exchange>) {
        let (client, server) = duplex(64);
        let exchange = Arc::new(Exchange::default());
        let timed = Timed::new(server, Arc::clone(&exchange), Duration::from_secs(10));
        (client, timed, exchange)
    }

    fn noted(exchange: &Exchange) -> Option<Instant> {
        exchange.state().first_byte
    }

    #[tokio::test]
    async fn the_first_byte_of_a_request_is_noted_and_later_ones_are_not() {
        let (mut client, mut server, exchange) = pair();
        client.write_all(b"P").await.unwrap();
        assert_eq!(noted(&exchange), None);
        server.read_u8().await.unwrap();
        let first = noted(&exchange).unwrap();
        client.write_all(b"OST").await.unwrap();
        server.read_exact(&mut [0; 3]).await.unwrap();
        // A flush before there is an answer (100 Continue) ends nothing.
        server.flush().await.unwrap();
        assert_eq!(exchange.first_byte(), first);

        exchange.answer_is_ready();
        server.write_all(b"ok").await.unwrap();
        server.flush().await.unwrap();
        assert_eq!(noted(&exchange), None);
        client.write_all(b"P").await.unwrap();
        server.read_u8().await.unwrap();
        assert!(noted(&exchange).unwrap() > first);
    }

    #[tokio::test]
    async fn the_answer_is_told_once_when_it_is_gone() {
        let (_client, mut server, exchange) = pair();
        let told = Arc::new(Mutex::new(0));
        let count = Arc::clone(&told);
        exchange.when_answered(move |_| *count.lock().unwrap() += 1);
        server.flush().await.unwrap();
        assert_eq!(*told.lock().unwrap(), 0);
        exchange.answer_is_ready();
        server.flush().await.unwrap();
        server.flush().await.unwrap();
        assert_eq!(*told.lock().unwrap(), 1);
    }

    #[tokio::test]
    async fn a_write_that_nobody_reads_ends_at_the_deadline() {
        let (_client, mut server, _) = pair();
        server.write_stall = Duration::from_millis(1);
        let error = server.write_all(&[0; 65]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(
            error.to_string(),
            "write deadline: the client takes no byte of its answer"
        );
    }
}
