//! The port for HTTP: bound before this process is confined; where another program has it, as soon as that lets it go.

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use crate::front::http::{self, BindError, Front, Listener};
use crate::signer::Signer;

/// Binds it; none where another program has it, which is no reason to sign for nobody else.
///
/// # Errors
/// Where it can't be had, whoever has it.
pub(super) fn take(address: SocketAddr) -> Result<Option<TcpListener>, BindError> {
    match http::bind(address) {
        Ok(socket) => Ok(Some(socket)),
        Err(taken @ BindError::Taken { .. }) => {
            tracing::error!(cause = %taken, remedy = taken.remedy(), "HTTP is not served until its port is free");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Serves until `stop` is done; where there is no listener yet, from when there is one.
pub(super) async fn serve(
    listener: Option<Listener>,
    address: SocketAddr,
    front: Front,
    stop: impl Future<Output = ()> + Send,
) {
    let mut stop = std::pin::pin!(stop);
    let listener = match listener {
        Some(listener) => listener,
        None => tokio::select! {
            listener = when_free(address, &front.signer) => listener,
            () = &mut stop => return,
        },
    };
    http::serve(listener, front, stop).await;
}

/// Tries again until the port is ours; meanwhile whoever asks how we are is told.
async fn when_free(address: SocketAddr, signer: &Signer) -> Listener {
    let mut pause = SHORTEST_PAUSE;
    loop {
        match http::bind(address).and_then(|socket| Listener::new(socket, address)) {
            Ok(listener) => {
                signer.set_http_trouble(None);
                return listener;
            }
            Err(error) => {
                let remedy = error.remedy();
                signer.set_http_trouble(Some((format!("{:#}", anyhow::Error::from(error)), remedy)));
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
