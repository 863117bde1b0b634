//! A unix socket's stream, with as few wake-ups as there can be: small answers cost more in these than in anything else.
//!
//! It is looked after for reading alone ([`crate::readable`]). What is written waits until whoever else is about to run has
//! run, for HTTP/2 writes the last few bytes of an answer apart from the others, and each write wakes the peer.

use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::readable::{Readable, Writable};

#[derive(Debug)]
pub(super) struct Stream {
    socket: Readable<UnixStream>,
    /// How much to make ready to be read: zeroing that costs more than most requests are long.
    room: usize,
    outgoing: Vec<u8>,
    /// Whether the others have had their turn since something was written.
    yielded: bool,
    /// While the socket takes no more.
    full: Option<Writable>,
}

impl Stream {
    /// Needs a tokio runtime.
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        Ok(Self { socket: Readable::stream(socket)?, room: LITTLE, outgoing: Vec::new(), yielded: false, full: None })
    }

    pub(super) fn socket(&self) -> &UnixStream {
        self.socket.get_ref()
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut sent = 0;
        while let Some(rest) = self.outgoing.get(sent..).filter(|rest| !rest.is_empty()) {
            match self.socket().write(rest) {
                Ok(more) => sent += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.outgoing.drain(..std::mem::take(&mut sent));
                    let full = match self.full.take() {
                        Some(full) => full,
                        None => self.socket.writable()?,
                    };
                    ready!(self.full.insert(full).poll_ready(cx))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        self.outgoing.clear();
        self.outgoing.shrink_to(LONGEST);
        self.full = None;
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            let mut ready = ready!(this.socket.poll_read_ready(cx))?;
            let wanted = this.room.min(buffer.remaining());
            let room = buffer.initialize_unfilled_to(wanted);
            match ready.try_io(|socket| socket.get_ref().read(room)) {
                Ok(Ok(length)) => {
                    // Less than there was room for is all there was.
                    if length < wanted && length > 0 {
                        ready.clear_ready();
                    }
                    this.room = if length < wanted { LITTLE } else { LONGEST };
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.outgoing.len() >= LONGEST {
            ready!(self.poll_send(cx))?;
        }
        let before = self.outgoing.len();
        slices.iter().for_each(|slice| self.outgoing.extend_from_slice(slice));
        Poll::Ready(Ok(self.outgoing.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.outgoing.is_empty() {
            return Poll::Ready(Ok(()));
        }
        if !std::mem::replace(&mut self.yielded, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.poll_send(cx))?;
        self.yielded = false;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Poll::Ready(self.socket().shutdown(Shutdown::Write))
    }
}

/// A signing request is some hundred bytes.
const LITTLE: usize = 1 << 10;
/// No more is read at once, nor kept to be sent together.
const LONGEST: usize = 16 << 10;
