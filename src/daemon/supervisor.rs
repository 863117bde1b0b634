//! What the daemon has from its supervisor and what it tells it, in systemd's protocols: the sockets that were opened for it
//! (sd_listen_fds), how it is (sd_notify), and that its devices answer (the watchdog). Without a supervisor: nothing.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use listenfd::ListenFd;
pub(super) use sd_notify::NotifyState as State;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use crate::signer::{Key, Signer};

/// What the supervisor opened for us.
#[derive(Default)]
pub(super) struct Sockets {
    /// The one named `grpc`, or the only one where it is a unix socket.
    pub(super) grpc: Option<UnixListener>,
    /// The one named `http`.
    pub(super) http: Option<TcpListener>,
}

/// Takes the sockets that the supervisor opened for us. To be called before there are other threads, because it clears what
/// stands in the environment.
pub(super) fn sockets() -> anyhow::Result<Sockets> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut passed = ListenFd::from_env();
    let named = |wanted: &str| names.split(':').position(|name| name == wanted);
    let http = named(HTTP_SOCKET);
    let grpc = match (passed.len(), named(GRPC_SOCKET), http) {
        (0, ..) => return Ok(Sockets::default()),
        (_, Some(index), _) => Some(index),
        (1, None, None) => Some(0),
        (1, None, Some(_)) => None,
        (count, None, _) => {
            anyhow::bail!("{count} sockets were passed, and none is named {GRPC_SOCKET} (FileDescriptorName=)")
        }
    };
    let grpc = grpc.map(|index| passed.take_unix_listener(index)).transpose();
    let http = http.map(|index| passed.take_tcp_listener(index)).transpose();
    Ok(Sockets {
        grpc: grpc.context("the socket that was passed is no unix socket that listens")?.flatten(),
        http: http.context("the socket that was passed as http is no TCP socket that listens")?.flatten(),
    })
}

/// Tells the supervisor, where there is one.
pub(super) fn tell(states: &[State<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "can't tell the supervisor (NOTIFY_SOCKET)");
    }
}

/// Tells how it goes, in a line.
pub(super) fn tell_status(status: &str) {
    // A new line would begin another message.
    let line: String = status.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    tell(&[State::Status(&line)]);
}

/// A reload begins; [`State::Ready`] ends it.
pub(super) fn tell_reloading() {
    match State::monotonic_usec_now() {
        Ok(now) => tell(&[State::Reloading, now]),
        Err(_no_clock) => tell(&[State::Reloading]),
    }
}

/// Feeds the watchdog, where there is one, as long as every device that holds an active key answers, be it with an error.
pub(super) async fn feed_watchdog(signer: Arc<Signer>) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut pace = tokio::time::interval((limit / 4).max(SHORTEST_PACE));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        if devices_answer(&signer, Instant::now() + limit).await {
            tell(&[State::Watchdog]);
        } else {
            tracing::error!("a device is not served any more: the watchdog is not fed");
        }
    }
}

/// Asks each device for the public half of one active key: a question that goes all the way to the device.
async fn devices_answer(signer: &Signer, deadline: Instant) -> bool {
    let mut keys: Vec<Arc<Key>> = signer.keyring().keys().iter().filter(|key| key.is_active()).cloned().collect();
    keys.sort_by(|one, other| one.device().cmp(other.device()));
    keys.dedup_by(|one, other| one.device() == other.device());
    let mut asked = JoinSet::new();
    for key in keys {
        asked.spawn(async move { key.is_served(deadline).await });
    }
    asked.join_all().await.into_iter().all(|served| served)
}

const GRPC_SOCKET: &str = "grpc";
const HTTP_SOCKET: &str = "http";
const SHORTEST_PACE: Duration = Duration::from_millis(50);
