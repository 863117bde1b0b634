//! gRPC on a unix socket: the services, their limits, and errors as google.rpc statuses.

mod authority;
mod conduct;
mod frames;
mod iam;
mod identity;
mod limits;
mod listen;
mod peer;
mod rpc;
mod signer;
mod status;
mod stream;
mod turns;
mod upload;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service};
use tonic::server::NamedService;

use super::admission::User;
use crate::proto;
use crate::signer::Signer;
use frames::Followed;
use identity::Identities;
use listen::Connection;
pub use listen::{BindError, Listener, Place};
use rpc::Peer;
pub use status::Readiness;
use turns::Turns;
use upload::Uploads;

/// Serves until `stop` is done; then the socket is gone, and the requests on their way finish.
///
/// # Errors
/// Where the services can't be set up.
pub async fn serve(
    listener: Listener,
    signer: Arc<Signer>,
    health: &Readiness,
    cache_time: Duration,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let services = Arc::new(Services::new(&signer, health, cache_time)?);
    let identities = Arc::new(Identities::default());
    let (known, names) = (Arc::clone(&signer), Arc::clone(&signer));
    let accept = async move || listener.accept(|uid| names.names(uid)).await;
    let converse = |connection, stopped| {
        // Nobody waits for what another one's executable takes to read.
        let learning = Arc::clone(&identities).learn(connection, known.sought());
        let services = Arc::clone(&services);
        async move { services.converse(learning.await, stopped).await }
    };
    super::serve(accept, converse, stop).await;
    Ok(())
}

/// What is served, by name.
struct Services {
    routes: Vec<(&'static str, Route)>,
    uploads: Uploads,
    turns: Turns,
}

type Route = Box<dyn Fn(Request<Body>) -> BoxFuture<Response<Body>, Infallible> + Send + Sync>;

impl Services {
    fn new(
        signer: &Arc<Signer>,
        health: &Readiness,
        cache_time: Duration,
    ) -> Result<Self, tonic_reflection::server::Error> {
        let iam = iam::Service { signer: Arc::clone(signer) };
        let iam = proto::iam::iam_credentials_server::IamCredentialsServer::new(iam)
            .max_decoding_message_size(limits::LARGEST_MESSAGE);
        let signer = signer::Service { signer: Arc::clone(signer), cache_time };
        let signer = proto::signer_server::SignerServer::new(signer).max_decoding_message_size(limits::LARGEST_MESSAGE);
        let routes = vec![
            route(signer),
            route(iam),
            route(health.service().max_decoding_message_size(limits::QUESTION)),
            route(status::reflection().build_v1()?.max_decoding_message_size(limits::QUESTION)),
            route(status::reflection().build_v1alpha()?.max_decoding_message_size(limits::QUESTION)),
        ];
        Ok(Self { routes, uploads: Uploads::new(), turns: Turns::default() })
    }

    /// Answers what comes by a connection.
    async fn converse(self: Arc<Self>, connection: Connection, mut stopped: watch::Receiver<()>) {
        let (owed, user) = (Arc::new(()), connection.user());
        let turn = self.turns.of(user.uid);
        let peer = Peer { caller: Arc::new(connection.caller().clone()), owed: Arc::downgrade(&owed) };
        let service = service_fn(|request| {
            let (services, peer, turn) = (Arc::clone(&self), peer.clone(), Arc::clone(&turn));
            async move {
                turn.begin().await;
                services.answer(request, peer, user).await
            }
        });
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .auto_date_header(false)
            .max_concurrent_streams(limits::STREAMS)
            .max_header_list_size(limits::HEADERS)
            .max_send_buf_size(limits::UNTAKEN);
        let mut serving = std::pin::pin!(http2.serve_connection(TokioIo::new(Followed::new(connection)), service));
        let ended = tokio::select! {
            biased;
            ended = &mut serving => ended,
            _stopping = stopped.changed() => {
                serving.as_mut().graceful_shutdown();
                crate::front::farewell(serving, || Arc::strong_count(&owed) > 1).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection has ended");
        }
    }

    async fn answer(&self, request: Request<Incoming>, peer: Peer, user: User) -> Result<Response<Body>, Infallible> {
        let (mut head, body) = request.into_parts();
        let (body, share) = self.uploads.count(user, Body::new(body), limits::end(&head.headers));
        head.extensions.insert(peer);
        let service = head.uri.path().strip_prefix('/').and_then(|path| path.split('/').next());
        let Some((_, route)) = self.routes.iter().find(|(name, _)| Some(*name) == service) else {
            return Ok(Status::unimplemented("there is no such service").into_http());
        };
        let response = route(Request::from_parts(head, body)).await?;
        Ok(limits::in_our_words(response).map(|body| upload::answer(body, share)))
    }
}

fn route<S>(service: S) -> (&'static str, Route)
where
    S: NamedService + Clone + Send + Sync + 'static,
    S: Service<Request<Body>, Future = BoxFuture<Response<Body>, Infallible>>,
{
    (S::NAME, Box::new(move |request| service.clone().call(request)))
}
