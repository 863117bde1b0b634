//! The loopback port: connections within limits, each with its [`Caller`].

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::super::admission::{Share, Shares, User};
use super::super::throttle::{LogThrottle, accept_failed};
use super::peer;
use crate::access::Caller;

/// The port.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    socket: TcpListener,
    connections: Shares,
    throttle: LogThrottle,
}

/// Why there is no port.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another program has it.
    #[error("listen.http {address}: another program has the port{}", told(*.holder))]
    Taken {
        /// The address and port.
        address: SocketAddr,
        /// The user who listens there, where the kernel tells.
        holder: Option<u32>,
    },
    /// It can't be served.
    #[error("listen.http {address}")]
    Io {
        /// The address and port.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

impl BindError {
    /// What to do about it.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Taken { .. } => {
                "stop what listens there (ss -tlnp as root), and signetd takes the port; or choose another for listen.http, and restart signetd"
            }
            Self::Io { .. } => {
                "choose another address for listen.http; systemd: RestrictAddressFamilies= needs AF_INET, AF_INET6 and AF_NETLINK"
            }
        }
    }
}

fn told(holder: Option<u32>) -> String {
    holder.map(|uid| format!(" (user {uid})")).unwrap_or_default()
}

/// An admitted connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    /// Where it came to.
    pub(super) address: SocketAddr,
    /// Whose it is.
    pub(super) user: User,
    _place: Share,
}

/// Binds the port.
///
/// # Errors
/// [`BindError`].
pub fn bind(address: SocketAddr) -> Result<std::net::TcpListener, BindError> {
    std::net::TcpListener::bind(address).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::Taken { address, holder: peer::listener(address).ok() },
        _ => BindError::Io { address, source },
    })
}

impl Listener {
    /// Takes a socket that listens on loopback. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`BindError::Io`]: where it listens elsewhere, for nobody there could be told from anybody else, or where this process
    /// may not ask the kernel who is calling.
    pub fn new(socket: std::net::TcpListener, configured: SocketAddr) -> Result<Self, BindError> {
        Self::adopt(socket).map_err(|source| BindError::Io { address: configured, source })
    }

    fn adopt(socket: std::net::TcpListener) -> io::Result<Self> {
        let address = socket.local_addr()?;
        if !address.ip().is_loopback() {
            return Err(io::Error::other(format!("{address} is no address of loopback")));
        }
        peer::may_ask()?;
        socket.set_nonblocking(true)?;
        let socket = TcpListener::from_std(socket)?;
        tracing::info!(%address, "listening for HTTP");
        Ok(Self { address, socket, connections: Shares::of_connections(), throttle: LogThrottle::default() })
    }

    /// The next connection within the limits, which depend on whether a rule names its user, who is known. All others are
    /// closed at once.
    pub(super) async fn accept(&self, is_named: impl Fn(u32) -> bool) -> Connection {
        loop {
            // Each costs a look-up: between two the others have their turn.
            tokio::task::yield_now().await;
            match self.socket.accept().await {
                Ok((stream, _address)) => {
                    if let Some(connection) = self.admit(stream, &is_named) {
                        return connection;
                    }
                }
                Err(error) => accept_failed(&self.throttle, &error).await,
            }
        }
    }

    fn admit(&self, stream: TcpStream, is_named: impl Fn(u32) -> bool) -> Option<Connection> {
        let uid = match owner(&stream) {
            Ok(uid) => uid,
            Err(error) => {
                tracing::debug!(%error, "closed a connection: the kernel does not tell whose it is");
                return None;
            }
        };
        let user = User { uid, is_named: is_named(uid) };
        let place = self.connections.begin(user);
        if !place.grow(1) {
            if self.throttle.may_tell() {
                tracing::warn!(uid, "closed a connection: too many are open");
            }
            return None;
        }
        Some(Connection { stream, address: self.address, user, _place: place })
    }
}

impl Connection {
    /// Who is calling. It may take a while, for user databases may ask the network.
    pub(super) async fn caller(&self) -> io::Result<Caller> {
        let (uid, turn) = (self.user.uid, LOOK_UPS.acquire().await.map_err(io::Error::other)?);
        let look_up = spawn_blocking(move || {
            let _turn = turn;
            peer::caller(uid)
        });
        look_up.await.map_err(io::Error::other)?
    }
}

fn owner(stream: &TcpStream) -> io::Result<u32> {
    let (client, server) = (stream.peer_addr()?, stream.local_addr()?);
    let uid = peer::uid(client, server)?;
    // A socket that was reset has no peer any more. While this one has, no other can have its addresses: so it was its
    // peer who was looked up.
    if stream.peer_addr()? != client {
        return Err(io::ErrorKind::NotConnected.into());
    }
    Ok(uid)
}

/// How many questions a user database that hangs may be asked at once.
static LOOK_UPS: Semaphore = Semaphore::const_new(16);
