//! The bytes of a connection on their way to hyper: in time, and only heads that every parser reads alike.
//!
//! hyper takes a bare LF for the end of a line, and the first of two equal lengths; what stands before or behind it need not.
//! So a head is let through only when it is whole and leaves no two readings. How long the body behind it is, hyper says:
//! there is no second parser here that could think otherwise.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// A connection whose requests come one by one.
pub(super) struct Strict<S> {
    stream: S,
    /// What was read and not passed on.
    read: Vec<u8>,
    /// How much of it may be passed on.
    free: usize,
    expects: Expects,
    progress: Arc<Progress>,
    /// When what is expected must be there. It does not run while a request is being answered.
    until: Pin<Box<Sleep>>,
    /// Whether a request has begun, and not been seen to have its answer.
    begun: bool,
    /// When an answer must have moved on.
    write_until: Pin<Box<Sleep>>,
    stalled: bool,
}

/// What is to come.
enum Expects {
    /// A head.
    Head,
    /// Word of how long the body is that belongs to the head that was passed on.
    Length,
    /// So many bytes of a body.
    Body(u64),
    /// Nothing: a head was refused, which hyper says in our place.
    Nothing,
}

/// What the service of a connection tells of the request that it got.
pub(super) struct Progress {
    body: AtomicU64,
    answering: AtomicBool,
    /// Whether all of the body has come.
    whole: AtomicBool,
}

impl Progress {
    /// A request has begun, with a body of this length.
    pub(super) fn begins(&self, body: u64) {
        self.answering.store(true, Ordering::Release);
        self.whole.store(body == 0, Ordering::Release);
        self.body.store(body, Ordering::Release);
    }

    /// Whether there is a request that came whole and has no answer.
    pub(super) fn is_owed(&self) -> bool {
        self.answering.load(Ordering::Acquire) && self.whole.load(Ordering::Acquire)
    }

    /// It has its answer.
    pub(super) fn ends(&self) {
        self.answering.store(false, Ordering::Release);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Strict<S> {
    pub(super) fn new(stream: S) -> (Self, Arc<Progress>) {
        let (answering, whole) = (AtomicBool::new(false), AtomicBool::new(false));
        let progress = Arc::new(Progress { body: AtomicU64::new(UNTOLD), answering, whole });
        let strict = Self {
            stream,
            read: Vec::new(),
            free: 0,
            expects: Expects::Head,
            progress: Arc::clone(&progress),
            until: Box::pin(sleep(HEAD)),
            begun: false,
            write_until: Box::pin(sleep(WRITE)),
            stalled: false,
        };
        (strict, progress)
    }

    /// Reads more. False at the end of the stream.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut chunk = [0; CHUNK];
        let mut chunk = ReadBuf::new(&mut chunk);
        if Pin::new(&mut self.stream).poll_read(cx, &mut chunk)?.is_ready() {
            if self.read.is_empty() && matches!(self.expects, Expects::Head) {
                self.until.as_mut().reset(Instant::now() + HEAD);
            }
            self.read.extend_from_slice(chunk.filled());
            return Poll::Ready(Ok(!chunk.filled().is_empty()));
        }
        let answering = self.progress.answering.load(Ordering::Acquire);
        if self.begun && !answering {
            self.begun = false;
            self.until.as_mut().reset(Instant::now() + IDLE);
        }
        if answering && !matches!(self.expects, Expects::Body(_)) {
            return Poll::Pending;
        }
        self.until.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Looks for the end of a head.
    fn judge(&mut self) {
        match head(&self.read) {
            Ok(None) => {}
            Ok(Some(length)) => {
                self.progress.body.store(UNTOLD, Ordering::Release);
                (self.free, self.expects) = (length, Expects::Length);
            }
            Err(Malformed) => {
                // To hyper a request that can't be: it answers 400 and closes.
                (self.read, self.free, self.expects) = (NO_REQUEST.to_vec(), NO_REQUEST.len(), Expects::Nothing);
            }
        }
    }

    fn pass(&mut self, buffer: &mut ReadBuf<'_>) {
        let length = self.free.min(buffer.remaining());
        buffer.put_slice(self.read.get(..length).unwrap_or_default());
        self.read.drain(..length);
        self.free -= length;
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Strict<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.free > 0 {
                this.pass(buffer);
                return Poll::Ready(Ok(()));
            }
            match this.expects {
                Expects::Head => {
                    this.judge();
                    if this.free == 0 && !ready!(this.poll_more(cx))? {
                        // Within a head hyper takes this for an error.
                        return Poll::Ready(Ok(()));
                    }
                }
                Expects::Length => {
                    let length = this.progress.body.load(Ordering::Acquire);
                    if length == UNTOLD {
                        return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                    }
                    this.until.as_mut().reset(Instant::now() + BODY);
                    (this.begun, this.expects) = (true, Expects::Body(length));
                }
                Expects::Body(0) => this.expects = Expects::Head,
                Expects::Body(left) => {
                    if this.read.is_empty() && !ready!(this.poll_more(cx))? {
                        return Poll::Ready(Ok(()));
                    }
                    let free = usize::try_from(left).unwrap_or(usize::MAX).min(this.read.len());
                    this.free = free;
                    this.progress.whole.store(left == free as u64, Ordering::Release);
                    this.expects = Expects::Body(left - free as u64);
                }
                Expects::Nothing => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Strict<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        let stalled = std::mem::replace(&mut self.stalled, written.is_pending());
        if written.is_ready() {
            return written;
        }
        if !stalled {
            self.write_until.as_mut().reset(Instant::now() + WRITE);
        }
        self.write_until.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A head that two parsers could read in two ways.
#[derive(Debug, PartialEq, Eq)]
struct Malformed;

/// How long the head is that these bytes begin with; none where it goes on.
fn head(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    if bytes.first().is_some_and(|first| !first.is_ascii_uppercase()) {
        return Err(Malformed);
    }
    let mut lengths = 0;
    let mut end = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        end += line.len();
        let Some(text) = line.strip_suffix(b"\n") else { break };
        let text = text.strip_suffix(b"\r").ok_or(Malformed)?;
        // A fragment is no part of a request; hyper would drop it.
        if end == line.len() && text.contains(&b'#') {
            return Err(Malformed);
        }
        if text.is_empty() {
            return if lengths > 1 || end > LONGEST_HEAD { Err(Malformed) } else { Ok(Some(end)) };
        }
        // A line that begins with white space goes on the one before, to some; a CR ends one, to others.
        if text.starts_with(b" ") || text.starts_with(b"\t") || text.contains(&b'\r') || text.contains(&0) {
            return Err(Malformed);
        }
        lengths += usize::from(frames(text));
    }
    // A body has one length, said in one way.
    if lengths > 1 || bytes.len() > LONGEST_HEAD { Err(Malformed) } else { Ok(None) }
}

/// Whether a line says how long the body is.
fn frames(line: &[u8]) -> bool {
    let name = line.split(|byte| *byte == b':').next().unwrap_or_default().trim_ascii();
    name.eq_ignore_ascii_case(b"content-length") || name.eq_ignore_ascii_case(b"transfer-encoding")
}

const UNTOLD: u64 = u64::MAX;
const NO_REQUEST: &[u8] = b"\0\r\n\r\n";
const LONGEST_HEAD: usize = 8 << 10;
const CHUNK: usize = 4 << 10;
/// From its first byte to its last.
const HEAD: Duration = Duration::from_secs(5);
const BODY: Duration = Duration::from_secs(10);
const WRITE: Duration = Duration::from_secs(10);
/// Between requests.
const IDLE: Duration = Duration::from_secs(60);
