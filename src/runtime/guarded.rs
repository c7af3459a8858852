//! A stream that someone outside has a say in, for as long as it is open.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

/// What a stream holds while it is open. Dropped with it.
pub trait Guard: Unpin {
    /// Whether it may be read on; an error breaks it off. Asked before each read; `context` is to be woken when the
    /// answer changes.
    fn may_read(&self, _context: &mut Context<'_>) -> io::Result<()> {
        Ok(())
    }
}

/// A place among a bounded number.
impl Guard for OwnedSemaphorePermit {}

/// A stream with its guard.
#[derive(Debug)]
pub struct Guarded<S, G> {
    stream: S,
    guard: G,
}

impl<S, G> Guarded<S, G> {
    /// This stream, guarded.
    pub fn new(stream: S, guard: G) -> Guarded<S, G> {
        Guarded { stream, guard }
    }

    /// The stream itself.
    pub fn stream(&self) -> &S {
        &self.stream
    }
}

impl<S: AsyncRead + Unpin, G: Guard> AsyncRead for Guarded<S, G> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.guard.may_read(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin, G: Unpin> AsyncWrite for Guarded<S, G> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
