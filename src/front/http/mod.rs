//! HTTP/1.1 on a loopback port: what Google's client libraries ask a metadata server and the IAM Credentials API for, public
//! keys, and how the daemon is. Who asks, the kernel says of each connection.

mod guard;
mod listen;
mod peer;
mod reply;
mod strict;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::access::Caller;
use crate::signer::Signer;
use listen::Connection;
pub use listen::{BindError, Listener, bind};
use reply::Reply;
use strict::Strict;

/// What every request is answered from.
#[derive(Debug)]
pub struct Front {
    /// What signs.
    pub signer: Arc<Signer>,
}

/// A request that passed the guard.
struct Asked {
    request: Request<Incoming>,
}

/// Serves until `stop` is done; then nobody else is let in, and the requests on their way finish.
pub async fn serve(listener: Listener, front: Front, stop: impl Future<Output = ()> + Send) {
    let front = Arc::new(front);
    let (stopping, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            connection = listener.accept() => {
                connections.spawn(Arc::clone(&front).converse(connection, stopped.clone()));
            }
            Some(_ended) = connections.join_next() => {}
        }
    }
    drop((listener, stopping));
    while connections.join_next().await.is_some() {}
}

impl Front {
    /// Answers the requests of a connection, one after the other.
    async fn converse(self: Arc<Self>, connection: Connection, mut stopped: watch::Receiver<()>) {
        let caller = match connection.caller().await {
            Ok(caller) => Arc::new(caller),
            Err(error) => {
                let uid = connection.uid;
                return tracing::warn!(uid, %error, "closed a connection: the user database does not tell the user's groups");
            }
        };
        let (stream, progress) = Strict::new(connection.stream);
        let service = service_fn(|request: Request<Incoming>| {
            // A length that is not known is refused below: nothing behind that head is read as a request.
            progress.begins(request.body().size_hint().exact().unwrap_or_default());
            let (front, caller, progress) = (Arc::clone(&self), Arc::clone(&caller), Arc::clone(&progress));
            async move {
                let reply = front.answer(&caller, request).await;
                progress.ends();
                Ok::<_, Infallible>(reply)
            }
        });
        let mut serving = std::pin::pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        let served = tokio::select! {
            served = serving.as_mut() => served,
            _ended = stopped.changed() => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        if let Err(error) = served {
            tracing::debug!(uid = caller.uid, %error, "a connection ended");
        }
    }

    async fn answer(&self, caller: &Caller, request: Request<Incoming>) -> Reply {
        let reply = match guard::admit(&request) {
            Ok(()) => self.route(Asked { request }).await,
            Err(refusal) => refusal.into(),
        };
        tracing::debug!(uid = caller.uid, status = reply.status().as_u16(), "answered");
        reply
    }

    async fn route(&self, asked: Asked) -> Reply {
        match asked.request.uri().path() {
            "/healthz" => asked.reading(|| reply::text(StatusCode::OK, "ok\n")),
            "/readyz" => asked.reading(|| match self.signer.can_sign() {
                true => reply::text(StatusCode::OK, "ready\n"),
                false => reply::text(StatusCode::SERVICE_UNAVAILABLE, "no account can sign now\n"),
            }),
            _ => reply::not_found(),
        }
    }
}

impl Asked {
    /// The answer to GET and HEAD; other methods are refused.
    fn reading(&self, answer: impl FnOnce() -> Reply) -> Reply {
        match *self.request.method() {
            Method::GET | Method::HEAD => answer(),
            _ => reply::not_allowed("GET, HEAD"),
        }
    }
}
