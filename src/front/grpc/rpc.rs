//! What every rpc that signs does, whatever its service: who asks and until when, call the signer, encode what came.

use std::sync::{Arc, Weak};
use std::time::Duration;

use prost::Message;
use tokio::time::Instant;
use tonic::{Request, Status};

use super::super::limits::payload;
use super::limits::{deadline, small};
use crate::access::{Account, Caller};
use crate::key::{Algorithm, Signature};
use crate::signer::{Bytes, Call, JwtBody, Key, SignError, Signed, Signer};

/// The peer of a connection.
#[derive(Clone)]
pub(super) struct Peer {
    pub(super) caller: Arc<Caller>,
    /// Is held by every request that came whole, until it has its answer.
    pub(super) owed: Weak<()>,
}

/// A request on its way, to the rpc of this name.
pub(super) struct Asked<T> {
    pub(super) message: T,
    rpc: &'static str,
    caller: Arc<Caller>,
    deadline: Instant,
    _owed: Option<Arc<()>>,
}

/// A JWT as responses have it.
pub(super) struct SignedJwt {
    pub(super) key_id: String,
    pub(super) jwt: String,
    pub(super) expire_time: Option<prost_types::Timestamp>,
}

impl<T: Message> Asked<T> {
    /// Takes the peer, the deadline and the message from a request.
    pub(super) fn new(rpc: &'static str, request: Request<T>) -> Result<Self, Status> {
        let deadline = deadline(request.metadata());
        let Peer { caller, owed } = peer(&request)?;
        let (caller, owed) = (Arc::clone(caller), owed.upgrade());
        Ok(Self { message: request.into_inner(), rpc, caller, deadline, _owed: owed })
    }

    /// Signs the bytes that are read from the message.
    pub(super) async fn sign_bytes(
        &self,
        signer: &Signer,
        read: impl FnOnce(&T) -> Result<(&str, Bytes<'_>, Option<Algorithm>), SignError>,
    ) -> Result<Signed<Signature>, SignError> {
        let (account, bytes, algorithm) = read(&self.message)?;
        if let Bytes::Message(bytes) = bytes {
            payload(bytes)?;
        }
        signer.sign_bytes(self.call(account), bytes, algorithm).await
    }

    /// Signs a JWT of what is read from the message.
    pub(super) async fn sign_jwt(
        &self,
        signer: &Arc<Signer>,
        read: impl FnOnce(&T) -> Result<(&str, JwtBody), SignError>,
    ) -> Result<SignedJwt, SignError> {
        small(&self.message)?;
        let (account, body) = read(&self.message)?;
        let signed = signer.sign_jwt(self.call(account), body).await?;
        let expire_time = Some(prost_types::Timestamp::from(signed.value.expires()));
        Ok(SignedJwt { key_id: signed.kid.into(), jwt: signed.value.as_str().to_owned(), expire_time })
    }

    /// Tells who an account is, and which key would sign for it.
    pub(super) async fn account(
        &self,
        signer: &Signer,
        read: impl FnOnce(&T) -> &str,
    ) -> Result<(Account, Arc<Key>), SignError> {
        signer.account(self.call(read(&self.message))).await
    }

    fn call<'a>(&'a self, account: &'a str) -> Call<'a> {
        Call { caller: &self.caller, rpc: self.rpc, account, deadline: self.deadline }
    }
}

/// Who asks, by the connection.
pub(super) fn peer<T>(request: &Request<T>) -> Result<&Peer, Status> {
    let peer = request.extensions().get::<Peer>();
    peer.ok_or_else(|| Status::internal("the connection does not say whose it is"))
}

pub(super) fn lifetime(lifetime: Option<prost_types::Duration>) -> Result<Option<Duration>, SignError> {
    let negative = || SignError::invalid("lifetime", "it must not be negative");
    // Looked at first: prost's conversion overflows at the lowest number of seconds.
    if lifetime.is_some_and(|lifetime| lifetime.seconds < 0) {
        return Err(negative());
    }
    lifetime.map(Duration::try_from).transpose().map_err(|_negative| negative())
}
