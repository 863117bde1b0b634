//! Who stands at the other end of a unix socket, by the kernel's word.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::access::Caller;

/// The peer as it was at connect(2).
///
/// # Errors
/// Whatever the kernel says.
pub(super) fn caller(stream: &UnixStream) -> io::Result<Caller> {
    let peer = getsockopt(stream, PeerCredentials)?;
    // 0 where the peer lives in a namespace that this process can't see into.
    let pid = u32::try_from(peer.pid()).ok().filter(|pid| *pid > 0);
    Ok(Caller { pid, ..Caller::new(peer.uid(), peer.gid(), groups(stream)?) })
}

/// Whether the peer has closed its end.
pub(super) fn has_gone(stream: &UnixStream) -> bool {
    // A hang-up is told though nothing is asked for (poll(2)).
    let mut peer = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    poll(&mut peer, PollTimeout::ZERO).is_ok_and(|told| told > 0)
}

/// SO_PEERPIDFD (Linux 6.5): the process that connected, which no other process of its pid is mistaken for.
///
/// # Errors
/// Whatever the kernel says: it may be too old, or the process gone.
#[allow(unsafe_code, reason = "no crate in use wraps SO_PEERPIDFD")]
pub(super) fn pin(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut pidfd: libc::c_int = -1;
    let mut bytes = libc::socklen_t::try_from(size_of_val(&pidfd)).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for as long as `stream` is borrowed; `pidfd` has room for `bytes` bytes and any bytes
    // make a c_int; the kernel writes at most `bytes`.
    let result = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, SO_PEERPIDFD, (&raw mut pidfd).cast(), &raw mut bytes)
    };
    if result != 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::ENOPROTOOPT) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel can't pin a peer; Linux 6.5 can"));
        }
        return Err(error);
    }
    if pidfd < 0 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    // SAFETY: the kernel has just opened it for this process, and nothing else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
}

/// SO_PEERGROUPS (unix(7)): the supplementary groups.
#[allow(unsafe_code, reason = "no crate in use wraps SO_PEERGROUPS")]
fn groups(stream: &UnixStream) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 32];
    loop {
        let mut bytes = libc::socklen_t::try_from(size_of_val(groups.as_slice())).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open for as long as `stream` is borrowed; `groups` has room for `bytes` bytes and any
        // bytes make a gid_t; the kernel writes at most `bytes`, and to `bytes` how much it wrote or would write.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let found = usize::try_from(bytes).map_err(io::Error::other)? / size_of::<libc::gid_t>();
        if result == 0 {
            groups.truncate(found);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || found <= groups.len() {
            return Err(error);
        }
        groups.resize(found, 0);
    }
}

/// <asm-generic/socket.h>; x86-64 and arm64 use it as it is.
const SO_PEERPIDFD: libc::c_int = 77;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_tells_who_we_are() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let caller = caller(&ours).unwrap();
        assert_eq!(caller.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(caller.gid, nix::unistd::getegid().as_raw());
        assert_eq!(caller.pid, Some(std::process::id()));
        let own: Vec<u32> = nix::unistd::getgroups().unwrap().into_iter().map(nix::unistd::Gid::as_raw).collect();
        assert_eq!(caller.groups, own);
    }
}
