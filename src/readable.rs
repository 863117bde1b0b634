//! Descriptors of which only the readiness to be read is looked after.
//!
//! Tokio's own sockets are looked after for writing too, so that each message the other side takes out of a unix socket
//! wakes this side for nothing: with small messages about as often as those that arrive.

use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::task::{Context, Poll};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor, registered for reading. Calls on it must not block: what they do is for its user.
#[derive(Debug)]
pub(crate) struct Readable<T: AsRawFd>(AsyncFd<T>);

/// A second descriptor of a stream, registered for writing.
#[derive(Debug)]
pub(crate) struct Writable(AsyncFd<UnixStream>);

impl Readable<OwnedFd> {
    /// Needs a tokio runtime.
    pub(crate) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        register(descriptor, Interest::READABLE).map(Self)
    }
}

impl Readable<UnixStream> {
    /// Needs a tokio runtime.
    pub(crate) fn stream(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        register(stream, Interest::READABLE).map(Self)
    }

    /// For the rare time when the stream takes no more.
    pub(crate) fn writable(&self) -> io::Result<Writable> {
        register(self.get_ref().try_clone()?, Interest::WRITABLE).map(Writable)
    }
}

impl Writable {
    /// Waits until the stream takes more.
    pub(crate) fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_write_ready(cx).map_ok(|mut ready| ready.clear_ready())
    }
}

impl Readable<UnixListener> {
    /// Needs a tokio runtime.
    pub(crate) fn listener(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        register(listener, Interest::READABLE).map(Self)
    }
}

/// Nothing but shared references, by which no descriptor is replaced.
impl<T: AsRawFd> Deref for Readable<T> {
    type Target = AsyncFd<T>;

    fn deref(&self) -> &AsyncFd<T> {
        &self.0
    }
}

#[allow(unsafe_code, reason = "tokio asks for a promise that the type could give")]
fn register<T: AsRawFd>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: all kinds of owner keep one descriptor open for as long as they live, and nobody gets a mutable reference to
    // one, nor to what it is registered as.
    unsafe { AsyncFd::register_with_interest(owner, interest) }.map_err(Into::into)
}
