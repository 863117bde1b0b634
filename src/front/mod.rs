//! Translation only: from a protocol to `signer` and back. No front knows another, and none knows a device.

mod admission;
pub mod grpc;
pub mod http;
mod iam;
mod identity;
mod limits;
pub mod listen;
mod peer;
mod stream;

use std::future::Future;

use tokio::sync::watch;
use tokio::task::JoinSet;

/// Has each connection conversed by until `stop` is done; then `accept` is dropped, and every conversation, which is told, ends.
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
            () = &mut stop => break,
            connection = accept() => drop(conversations.spawn(converse(connection, stopped.clone()))),
            Some(_ended) = conversations.join_next() => {}
        }
    }
    drop((accept, stopping));
    while conversations.join_next().await.is_some() {}
}
