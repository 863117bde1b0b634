//! gRPC on a unix socket: the services, their limits, and errors as google.rpc statuses.

mod authority;
mod conduct;
mod iam;
mod limits;
mod rpc;
mod signer;
mod status;
mod upload;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use super::identity::Identities;
use super::listen::Listener;
use crate::proto;
use crate::signer::Signer;
use authority::Mended;
use limits::Limited;
pub use status::Readiness;
use upload::Uploads;

/// Serves until `stop` is done; then the socket is gone, and the requests on their way finish.
///
/// # Errors
/// Where the server can't be set up.
pub async fn serve(
    listener: Listener,
    signer: Arc<Signer>,
    health: &Readiness,
    cache_time: Duration,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let iam = iam::Service { signer: Arc::clone(&signer) };
    let iam = proto::iam::iam_credentials_server::IamCredentialsServer::new(iam)
        .max_decoding_message_size(limits::LARGEST_MESSAGE);
    let service = signer::Service { signer: Arc::clone(&signer), cache_time };
    let service = proto::signer_server::SignerServer::new(service).max_decoding_message_size(limits::LARGEST_MESSAGE);
    let uploads = Uploads::default();
    let (accepted, connections) = mpsc::channel(1);
    let server = Server::builder()
        .max_concurrent_streams(limits::STREAMS)
        .http2_max_header_list_size(limits::HEADERS)
        .add_service(Limited(service, uploads.clone()))
        .add_service(Limited(iam, uploads.clone()))
        .add_service(Limited(health.service(), uploads.clone()))
        .add_service(Limited(status::reflection().build_v1()?, uploads.clone()))
        .add_service(Limited(status::reflection().build_v1alpha()?, uploads))
        // It drains when there are no more connections to come.
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), std::future::pending());
    let (served, ()) = tokio::join!(server, accept(listener, signer, accepted, stop));
    served.map_err(Into::into)
}

/// Hands connections to the server until `stop` is done, each when what the rules ask of its peer is known.
async fn accept(
    listener: Listener,
    signer: Arc<Signer>,
    accepted: mpsc::Sender<Result<Mended, Infallible>>,
    stop: impl Future<Output = ()> + Send,
) {
    let mut stop = std::pin::pin!(stop);
    let identities = Arc::new(Identities::default());
    loop {
        let connection = tokio::select! {
            () = &mut stop => return,
            () = accepted.closed() => return,
            connection = listener.accept() => connection,
        };
        let learning = Arc::clone(&identities).learn(connection, signer.sought());
        let accepted = accepted.clone();
        // Nobody waits for what another one's executable takes to read.
        tokio::spawn(async move { accepted.send(Ok(Mended::new(learning.await))).await });
    }
}
