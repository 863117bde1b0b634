//! HTTP/1.1 on a loopback port: what Google's client libraries ask a metadata server and the IAM Credentials API for, public
//! keys, and how the daemon is. Who asks, the kernel says of each connection.

mod certificates;
mod guard;
mod iam;
mod listen;
mod metadata;
mod peer;
mod reply;
mod strict;
mod sts;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Collected};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::watch;
use tokio::time::Instant;

use super::admission::{Share, Shares, User};
use crate::access::Caller;
use crate::file::StateDir;
use crate::signer::{Call, SignError, Signer};
use listen::Connection;
pub use listen::{BindError, Listener, bind};
pub use peer::uid;
use reply::{Refusal, Reply};
use strict::Strict;

/// What every request is answered from.
#[derive(Debug)]
pub struct Front {
    /// What signs.
    pub signer: Arc<Signer>,
    /// Where the records of subject tokens stand.
    pub state_dir: StateDir,
    /// What the metadata server tells besides accounts, by its path below `/computeMetadata/v1/`.
    pub metadata: BTreeMap<String, String>,
    /// How long verifiers may keep public keys.
    pub cache_time: Duration,
    /// What the discovery document says; absent: the default account's email.
    pub issuer: Option<String>,
}

/// What all requests of a connection have in common.
#[derive(Clone)]
struct Peer {
    caller: Arc<Caller>,
    /// Where it came to.
    address: SocketAddr,
    user: User,
    /// What bodies of requests are in memory.
    bodies: Shares,
    /// Is told when the daemon stops: nothing is to wait any longer.
    stopped: watch::Receiver<()>,
}

/// A request that passed the guard, without its body.
struct Asked {
    peer: Peer,
    head: Parts,
    /// What its body takes until it is answered.
    share: Share,
}

/// Serves until `stop` is done; then nobody else is let in, and the requests on their way finish.
pub async fn serve(listener: Listener, front: Front, stop: impl Future<Output = ()> + Send) {
    let (front, bodies) = (Arc::new(front), Shares::new(MOST_OF_A_USER, MOST));
    let signer = Arc::clone(&front.signer);
    let accept = async move || listener.accept(|uid| signer.names(uid)).await;
    let converse = |connection, stopped| Arc::clone(&front).converse(connection, bodies.clone(), stopped);
    super::serve(accept, converse, stop).await;
}

impl Front {
    /// Answers the requests of a connection, one after the other.
    async fn converse(self: Arc<Self>, connection: Connection, bodies: Shares, mut stopped: watch::Receiver<()>) {
        let asking = tokio::time::timeout(USER_DATABASE, connection.caller());
        let caller = match asking.await.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into())) {
            Ok(caller) => Arc::new(caller),
            Err(error) => {
                let uid = connection.user.uid;
                return tracing::warn!(uid, %error, "closed a connection: the user database does not tell the user's groups");
            }
        };
        let user = connection.user;
        let peer = Peer { caller, address: connection.address, user, bodies, stopped: stopped.clone() };
        let (stream, progress) = Strict::new(connection.stream);
        let service = service_fn(|request: Request<Incoming>| {
            // A length that is not known is refused below: nothing behind that head is read as a request.
            progress.begins(request.body().size_hint().exact().unwrap_or_default());
            let (front, peer, progress) = (Arc::clone(&self), peer.clone(), Arc::clone(&progress));
            async move {
                let reply = front.answer(peer, request).await;
                progress.ends();
                Ok::<_, Infallible>(reply)
            }
        });
        let mut serving = std::pin::pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        let served = tokio::select! {
            served = serving.as_mut() => served,
            _ended = stopped.changed() => {
                serving.as_mut().graceful_shutdown();
                crate::front::farewell(serving, || progress.is_owed()).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = served {
            tracing::debug!(uid = user.uid, %error, "a connection ended");
        }
    }

    async fn answer(&self, peer: Peer, request: Request<Incoming>) -> Reply {
        let uid = peer.caller.uid;
        let reply = match guard::admit(&request) {
            Ok(()) => {
                let (head, body) = request.into_parts();
                let share = peer.bodies.begin(peer.user);
                self.route(&Asked { peer, head, share }, body).await
            }
            Err(refusal) => refusal.into(),
        };
        tracing::debug!(uid, status = reply.status().as_u16(), "answered");
        reply
    }

    async fn route(&self, asked: &Asked, body: Incoming) -> Reply {
        match asked.head.uri.path() {
            "/healthz" => asked.reading(|| reply::text(StatusCode::OK, "ok\n")),
            "/readyz" => asked.reading(|| match self.signer.can_sign() {
                true => reply::text(StatusCode::OK, "ready\n"),
                false => reply::text(StatusCode::SERVICE_UNAVAILABLE, "no account can sign now\n"),
            }),
            "/metrics" => asked.reading(|| reply::of(StatusCode::OK, OPEN_METRICS, self.signer.metrics())),
            "/.well-known/openid-configuration" => self.discovery(asked),
            path if path == "/" || path.starts_with("/computeMetadata") => self.metadata(asked).await,
            "/v1/token" => self.exchange(asked, body).await,
            path if path.starts_with("/v1/projects/") => self.iam(asked, body).await,
            path if path.starts_with("/robot/") || path.starts_with("/service_accounts/") => self.certificates(asked),
            _ => reply::not_found(),
        }
    }
}

/// The requests of a connection that pass [`Strict`] and the guard, as method and target. For `fuzz/` alone.
#[cfg(fuzzing)]
pub async fn admitted(stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) -> Vec<String> {
    let (stream, progress) = Strict::new(stream);
    let admitted = std::sync::Mutex::new(Vec::new());
    let service = service_fn(|request: Request<Incoming>| {
        progress.begins(request.body().size_hint().exact().unwrap_or_default());
        let reply = guard::admit(&request).map_or_else(Reply::from, |()| {
            let target = format!("{} {}", request.method(), request.uri());
            admitted.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(target);
            reply::text(StatusCode::OK, "ok\n")
        });
        progress.ends();
        async move { Ok::<_, Infallible>(reply) }
    });
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    admitted.into_inner().unwrap_or_default()
}

impl Asked {
    fn call<'a>(&'a self, rpc: &'static str, account: &'a str) -> Call<'a> {
        Call { caller: &self.peer.caller, rpc, account, deadline: Instant::now() + PATIENCE }
    }

    fn is_reading(&self) -> bool {
        matches!(self.head.method, Method::GET | Method::HEAD)
    }

    /// The answer to GET and HEAD; other methods are refused.
    fn reading(&self, answer: impl FnOnce() -> Reply) -> Reply {
        if self.is_reading() { answer() } else { reply::not_allowed("GET, HEAD") }
    }

    /// The whole body of the request, where it is not longer than this, fits and comes in time; else the answer. `refused` is
    /// how this path tells an error of the signer's.
    async fn read(&self, body: Incoming, most: usize, refused: impl Fn(SignError) -> Reply) -> Result<Bytes, Reply> {
        // It has one: the guard lets no other pass.
        let length = body.size_hint().exact().and_then(|length| usize::try_from(length).ok()).unwrap_or(usize::MAX);
        if length > most {
            return Err(Refusal(StatusCode::PAYLOAD_TOO_LARGE, "the body is longer than this request takes").into());
        }
        if !self.share.grow(length) {
            return Err(reply::last(refused(SignError::TooMuch)));
        }
        let collected = body.collect().await.map(Collected::to_bytes);
        collected.map_err(|_broken| Refusal(StatusCode::BAD_REQUEST, "the body did not come").into())
    }
}

/// A dozen of the largest requests.
const MOST_OF_A_USER: usize = 16 << 20;
const MOST: usize = 64 << 20;
/// The scope of an access token where none is named.
const CLOUD_PLATFORM: &str = "https://www.googleapis.com/auth/cloud-platform";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// For how long a caller waits for a signature.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a user's groups may take to be told.
const USER_DATABASE: Duration = Duration::from_secs(10);
