//! The unix socket: bound where nobody else can get at it, and connections within limits, each with its [`Caller`].

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::fcntl::Flock;
use nix::sys::stat::{Mode, umask};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::super::admission::{Share, Shares, User};
use super::super::throttle::{LogThrottle, accept_failed};
use super::peer;
use super::stream::Stream;
use crate::access::{Caller, Executable};
use crate::file;
use crate::readable::Readable;
use crate::trust::{self, Untrusted};

/// The socket. Dropping it removes the socket from the file system, where it was bound here.
#[derive(Debug)]
pub struct Listener {
    socket: Readable<UnixListener>,
    connections: Shares,
    throttle: Arc<LogThrottle>,
    /// None where a supervisor bound it, which keeps it.
    _bound: Option<Bound>,
}

/// A place for the socket that is this process' own for as long as this is held: whoever holds it may take a stale socket's.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    _lock: Flock<File>,
}

/// A socket of ours in the file system.
#[derive(Debug)]
struct Bound {
    place: Place,
    inode: (u64, u64),
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The file system refused.
    #[error("socket {}", path.display())]
    Io {
        /// The socket, its directory or its lock file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Others could put a socket of theirs in its place.
    #[error("socket directory: {0}")]
    Directory(Untrusted),
    /// Something else stands there.
    #[error("socket {}: {problem}", path.display())]
    Occupied {
        /// The socket.
        path: PathBuf,
        /// What stands there.
        problem: &'static str,
    },
    /// Another daemon serves it.
    #[error("socket {}: another process serves it", path.display())]
    Live {
        /// The socket.
        path: PathBuf,
    },
}

impl BindError {
    /// What to do about it.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Io { .. } => {
                "make its directory with this user as the owner and mode 0755 (systemd: RuntimeDirectory=signet)"
            }
            Self::Directory(_) => {
                "use a directory of this user with mode 0755 or less, in directories that nobody else can write"
            }
            Self::Occupied { .. } => "remove what stands there, or choose another path for listen.grpc",
            Self::Live { .. } => "stop the daemon that serves it, or choose another path for listen.grpc",
        }
    }
}

impl Place {
    /// Takes the place, in a folder that nobody else can change; makes that, where it alone is missing.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn take(path: &Path) -> Result<Self, BindError> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        match fs::create_dir(directory) {
            // Whatever the umask: who may connect is for the mode of the socket to say.
            Ok(()) => fs::set_permissions(directory, fs::Permissions::from_mode(0o755)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
        .map_err(|source| BindError::Io { path: directory.to_owned(), source })?;
        trust_directory(directory)?;
        Ok(Self { path: path.to_owned(), _lock: lock(path)? })
    }
}

impl Listener {
    /// Binds the socket with this mode and group. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`BindError`]. A live socket is never taken over; one of ours that refuses connections is.
    pub fn bind(place: Place, mode: u32, group: Option<u32>) -> Result<Self, BindError> {
        let path = &place.path;
        let io = |source| BindError::Io { path: path.clone(), source };
        clear_stale(path)?;
        // Until mode and group are set, nobody but this user may connect.
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(path).and_then(Readable::listener);
        umask(before);
        let socket = bound.map_err(io)?;
        std::os::unix::fs::chown(path, None, group).map_err(io)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(io)?;
        let metadata = fs::symlink_metadata(path).map_err(io)?;
        let bound = Bound { inode: (metadata.dev(), metadata.ino()), place };
        Ok(Self { socket, connections: Shares::of_connections(), throttle: Arc::default(), _bound: Some(bound) })
    }

    /// Takes a socket that a supervisor has bound; `path` is where clients are told to look for it. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`BindError::Io`].
    pub fn adopt(socket: UnixListener, path: &Path) -> Result<Self, BindError> {
        let io = |source| BindError::Io { path: path.to_owned(), source };
        let address = socket.local_addr().map_err(io)?;
        if address.as_pathname() != Some(path) {
            tracing::warn!(passed = ?address, configured = %path.display(), "the socket that was passed is not that of the configuration: clients look in the wrong place");
        }
        let socket = Readable::listener(socket).map_err(io)?;
        Ok(Self { socket, connections: Shares::of_connections(), throttle: Arc::default(), _bound: None })
    }

    /// The next connection within the limits, which depend on whether a rule names its user. Connections beyond them are closed
    /// at once.
    pub async fn accept(&self, is_named: impl Fn(u32) -> bool) -> Connection {
        loop {
            // However many come, those who are here already have their turn between them.
            tokio::task::yield_now().await;
            for _ in 0..AT_ONCE {
                match self.next().await {
                    Ok(stream) => {
                        if let Some(connection) = self.admit(stream, &is_named) {
                            return connection;
                        }
                    }
                    Err(error) => accept_failed(&self.throttle, &error).await,
                }
            }
        }
    }

    async fn next(&self) -> io::Result<UnixStream> {
        loop {
            let mut ready = self.socket.readable().await?;
            if let Ok(accepted) = ready.try_io(|socket| socket.get_ref().accept()) {
                return accepted.map(|(stream, _unnamed)| stream);
            }
        }
    }

    fn admit(&self, stream: UnixStream, is_named: impl Fn(u32) -> bool) -> Option<Connection> {
        // Who connects and closes without end would keep the queue full, and others out, if each cost more than it costs him.
        if peer::has_gone(&stream) {
            return None;
        }
        let caller = match peer::caller(&stream) {
            Ok(caller) => caller,
            Err(error) => {
                tracing::warn!(%error, "closed a connection: the kernel does not tell whose it is");
                return None;
            }
        };
        let place = self.connections.begin(User { uid: caller.uid, is_named: is_named(caller.uid) });
        if !place.grow(1) {
            if self.throttle.may_tell() {
                tracing::warn!(uid = caller.uid, pid = caller.pid, "closed a connection: too many are open");
            }
            return None;
        }
        let stream = Stream::new(stream).ok()?;
        let (patience, awaited) = (Box::pin(tokio::time::sleep(FIRST_REQUEST)), Awaited::FirstRequest);
        Some(Connection { stream, caller, awaited, patience, throttle: Arc::clone(&self.throttle), place })
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let ours = |metadata: fs::Metadata| (metadata.dev(), metadata.ino()) == self.inode;
        if fs::symlink_metadata(&self.place.path).is_ok_and(ours) {
            let _ = fs::remove_file(&self.place.path);
        }
    }
}

/// The directory must be such that nobody else can put something in the socket's place, or where it is to be: that is why
/// a sticky one is not enough.
fn trust_directory(directory: &Path) -> Result<(), BindError> {
    let (path, metadata) = trust::walk(directory).map_err(|untrusted| match untrusted {
        Untrusted::Unreadable { path, source } => BindError::Io { path, source },
        untrusted => BindError::Directory(untrusted),
    })?;
    if metadata.mode() & 0o002 != 0 {
        let mode = metadata.mode() & 0o7777;
        return Err(BindError::Directory(Untrusted::Writable { path, by: "everybody", mode }));
    }
    Ok(())
}

fn lock(socket: &Path) -> Result<Flock<File>, BindError> {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    file::lock(&path).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => BindError::Live { path: socket.to_owned() },
        _ => BindError::Io { path, source: error },
    })
}

/// Removes a socket of ours that nobody serves any more.
fn clear_stale(path: &Path) -> Result<(), BindError> {
    let io = |source| BindError::Io { path: path.to_owned(), source };
    let occupied = |problem| BindError::Occupied { path: path.to_owned(), problem };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
    };
    if metadata.is_symlink() {
        return Err(occupied("a symbolic link stands there"));
    }
    if !metadata.file_type().is_socket() {
        return Err(occupied("a file that is no socket stands there"));
    }
    if metadata.uid() != nix::unistd::geteuid().as_raw() {
        return Err(occupied("a socket of another user stands there"));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(io),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // It answers, or is too busy to: either way somebody serves it.
        Ok(_) | Err(_) => Err(BindError::Live { path: path.to_owned() }),
    }
}

/// An admitted connection: knows its peer, and ends when what is awaited of it does not come.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    caller: Caller,
    awaited: Awaited,
    patience: Pin<Box<Sleep>>,
    throttle: Arc<LogThrottle>,
    place: Share,
}

/// What is awaited of a peer, which says how long it may take. Whoever understands what it sends says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Awaited {
    /// Its first request, whatever it says before.
    FirstRequest,
    /// The rest of what it has begun; each such thing has another number.
    RestOf(u64),
    /// Another request, or an answer to be taken.
    Anything,
}

impl Connection {
    /// The peer.
    #[must_use]
    pub const fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Whose it is, to be told apart from others.
    pub(super) const fn user(&self) -> User {
        self.place.user()
    }

    pub(super) fn socket(&self) -> &UnixStream {
        self.stream.socket()
    }

    /// Takes note of what the peer runs. That took its time: the peer's begins now.
    pub(super) fn learnt(&mut self, unit: Option<String>, executable: Option<Executable>) {
        (self.caller.unit, self.caller.executable) = (unit, executable);
        self.patience.as_mut().reset(Instant::now() + FIRST_REQUEST);
    }

    /// Something has moved, and now this is awaited: time runs anew unless it is what was awaited before.
    pub(super) fn wait_for(&mut self, awaited: Awaited) {
        let patience = match awaited {
            Awaited::Anything => IDLE,
            same if same == self.awaited => return,
            Awaited::FirstRequest => FIRST_REQUEST,
            Awaited::RestOf(_) => REST,
        };
        self.awaited = awaited;
        self.patience.as_mut().reset(Instant::now() + patience);
    }

    /// The error that closes it for what its peer does, which the log is told.
    pub(super) fn close(&self, offence: &'static str) -> io::Error {
        if self.throttle.may_tell() {
            tracing::warn!(uid = self.caller.uid, pid = self.caller.pid, "closed a connection: {offence}");
        }
        io::ErrorKind::ConnectionAborted.into()
    }
}

impl Connection {
    /// What a peer keeps from happening ends its connection in time.
    fn in_time<T>(&mut self, cx: &mut Context<'_>, moved: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if moved.is_ready() {
            return moved;
        }
        self.patience.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.in_time(cx, read)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.in_time(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.in_time(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.in_time(cx, shut)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.in_time(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// So many connections are refused in a row.
const AT_ONCE: usize = 64;
const FIRST_REQUEST: Duration = Duration::from_secs(5);
const REST: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn those_who_connect_and_close_take_nobodys_turn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("signet.sock");
        let listener = Listener::bind(Place::take(&path).unwrap(), 0o600, None).unwrap();
        (0..AT_ONCE + 10).for_each(|_| drop(UnixStream::connect(&path).unwrap()));
        UnixStream::connect(&path).unwrap().write_all(b"asks, and is gone").unwrap();
        let mut waiting = UnixStream::connect(&path).unwrap();
        waiting.write_all(b"!").unwrap();
        let turns = Arc::new(AtomicUsize::new(0));
        let others = Arc::clone(&turns);
        tokio::spawn(async move {
            loop {
                others.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        let connection = listener.accept(|_uid| true).await;
        let mut received = [0; 2];
        assert_eq!((connection.socket().read(&mut received).unwrap(), received[0]), (1, b'!'));
        assert!(turns.load(Ordering::Relaxed) >= 2);
    }

    #[tokio::test]
    async fn of_two_that_race_for_a_stale_socket_exactly_one_wins() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..200 {
            let path = folder.path().join(format!("{round}.sock"));
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
            // A process that another test is starting holds it, too, until it runs its program.
            while UnixStream::connect(&path).is_ok() {
                tokio::task::yield_now().await;
            }
            let bind = || {
                let path = path.clone();
                tokio::task::spawn_blocking(move || Listener::bind(Place::take(&path)?, 0o600, None))
            };
            let (first, second) = tokio::join!(bind(), bind());
            let (first, second) = (first.unwrap(), second.unwrap());
            assert!(first.is_ok() != second.is_ok(), "round {round}: {first:?}, {second:?}");
            UnixStream::connect(&path).unwrap();
        }
    }
}
