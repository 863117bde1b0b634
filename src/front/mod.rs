//! Translation only: from a protocol to `signer` and back. No front knows another, and none knows a device.

mod admission;
pub mod grpc;
pub mod http;
mod iam;
mod limits;
mod throttle;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

/// Runs `converse` on each connection until `stop` is done; then `accept` is dropped, and every conversation, which is told, ends.
async fn serve<C, F>(
    accept: impl AsyncFn() -> C,
    converse: impl Fn(C, watch::Receiver<()>) -> F,
    stop: impl Future<Output = ()>,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let (stopping, stopped) = watch::channel(());
    let mut conversations = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            biased;
            () = &mut stop => break,
            connection = accept() => drop(conversations.spawn(converse(connection, stopped.clone()))),
            Some(_ended) = conversations.join_next() => {}
        }
    }
    drop((accept, stopping));
    while conversations.join_next().await.is_some() {}
}

/// Waits for the end of a conversation that was told to end, as long as an answer is owed to the peer; not for one who only
/// watches, does not answer us, or never comes to the end of his request: none then.
async fn farewell<T>(mut ending: Pin<&mut impl Future<Output = T>>, owes: impl Fn() -> bool) -> Option<T> {
    let mut was_idle = false;
    loop {
        match tokio::time::timeout(FAREWELL, ending.as_mut()).await {
            Ok(ended) => return Some(ended),
            Err(_elapsed) if was_idle && !owes() => return None,
            Err(_elapsed) => was_idle = !owes(),
        }
    }
}

/// How long a conversation may take to end once nothing is owed in it, at least; twice this at most.
const FAREWELL: Duration = Duration::from_millis(250);
