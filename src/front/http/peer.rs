//! Whose a loopback TCP connection is, by the kernel's word (sock_diag(7)).
//!
//! The kernel tells who made the socket at the other end. Of a socket that nobody has open any more it tells user 0, so only
//! an open one in the state ESTABLISHED is believed. It tells no groups: those are the user database's.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, TCP_ESTABLISHED, TCP_LISTEN};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recvfrom, send, socket,
};

pub(super) use crate::users::caller;

/// The user who made the socket that is connected from `client` to `server`.
///
/// # Errors
/// Where the kernel does not tell of exactly that socket, or tells that nobody has it open any more.
pub fn uid(client: SocketAddr, server: SocketAddr) -> io::Result<u32> {
    owner(&asked(client, server)?, client, server)
}

/// The user who made the socket that listens where this address leads to.
///
/// # Errors
/// Where the kernel tells of none.
pub(super) fn listener(address: SocketAddr) -> io::Result<u32> {
    let nobody = if address.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = asked(address, (nobody, 0).into())?;
    if socket.state != TCP_LISTEN {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(socket.uid)
}

/// What the kernel tells of the socket of this local and remote address.
fn asked(local: SocketAddr, remote: SocketAddr) -> io::Result<InetResponseHeader> {
    let diag = diag()?;
    send(diag.as_raw_fd(), &question(local, remote), MsgFlags::empty())?;
    // The kernel has answered by the time that it was asked.
    let mut answer = [0; LONGEST_ANSWER];
    let (length, from) = recvfrom::<NetlinkAddr>(diag.as_raw_fd(), &mut answer)?;
    if from.is_none_or(|from| from.pid() != 0) {
        return Err(io::Error::other("an answer that is not the kernel's"));
    }
    let answer = answer.get(..length).unwrap_or_default();
    let message = NetlinkMessage::<SockDiagMessage>::deserialize(answer).map_err(io::Error::other)?;
    match message.payload {
        NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => Ok(response.header),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        _ => Err(io::Error::other("the kernel answered another question")),
    }
}

/// Whether this process may ask at all: where it may not, it is to say so at its start.
///
/// # Errors
/// Whatever the kernel says.
pub(super) fn may_ask() -> io::Result<()> {
    diag().map(drop)
}

fn diag() -> io::Result<OwnedFd> {
    let protocol = SockProtocol::NetlinkSockDiag;
    Ok(socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?)
}

/// Asks for the one socket of this local and remote address.
fn question(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let socket_id = SocketId {
        source_port: local.port(),
        destination_port: remote.port(),
        source_address: local.ip(),
        destination_address: remote.ip(),
        interface_id: 0,
        cookie: [0xff; 8],
    };
    let request = InetRequest {
        family: if local.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::ESTABLISHED,
        socket_id,
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn owner(socket: &InetResponseHeader, client: SocketAddr, server: SocketAddr) -> io::Result<u32> {
    let SocketId { source_port, destination_port, source_address, destination_address, .. } = socket.socket_id;
    let told = [(source_address, source_port), (destination_address, destination_port)];
    // A socket of IPv6 may be connected by IPv4.
    let plain = |(address, port): (IpAddr, u16)| (address.to_canonical(), port);
    if told.map(plain) != [client, server].map(|end| plain((end.ip(), end.port()))) {
        return Err(io::Error::other("the kernel told of another connection"));
    }
    if socket.state != TCP_ESTABLISHED || socket.inode == 0 {
        return Err(io::Error::other("nobody has it open any more"));
    }
    Ok(socket.uid)
}

const LONGEST_ANSWER: usize = 1024;

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use nix::unistd::Uid;

    use super::*;

    fn ends(server: impl Into<IpAddr>) -> (TcpListener, TcpStream, TcpStream) {
        let listener = TcpListener::bind((server.into(), 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        (listener, client, server)
    }

    fn owner_of(server: &TcpStream) -> io::Result<u32> {
        uid(server.peer_addr()?, server.local_addr()?)
    }

    #[test]
    fn the_kernel_tells_whose_a_connection_is() {
        for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let (_listener, _client, server) = ends(address);
            assert_eq!(owner_of(&server).unwrap(), Uid::effective().as_raw());
        }
    }

    /// Java opens sockets of IPv6 for everything.
    #[test]
    fn an_ipv6_socket_that_is_connected_by_ipv4_is_found() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let _client = TcpStream::connect((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), port)).unwrap();
        let (server, _) = listener.accept().unwrap();
        assert_eq!(owner_of(&server).unwrap(), Uid::effective().as_raw());
    }

    #[test]
    fn of_a_client_that_is_gone_nothing_is_told() {
        let (_listener, client, server) = ends(Ipv4Addr::LOCALHOST);
        drop(client);
        assert!(owner_of(&server).is_err());
    }

    #[test]
    fn a_listener_is_no_peer() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let server = listener.local_addr().unwrap();
        assert!(uid(server, (Ipv4Addr::LOCALHOST, 9).into()).is_err());
    }

    #[test]
    fn the_kernel_tells_who_listens_and_where_nobody_does() {
        let everywhere = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, everywhere.local_addr().unwrap().port()));
        assert_eq!(super::listener(address).unwrap(), Uid::effective().as_raw());
        drop(everywhere);
        assert!(super::listener(address).is_err());
    }
}
