//! What a caller wants signed, and how policy sees it.

use std::time::{Duration, SystemTime};

use super::{Key, SignError};
use crate::access::{AccountEmail, Operation, Permit, Request};
use crate::audit::CHECKPOINT;
use crate::jwt::claims::{Claims, InvalidClaims};
use crate::jwt::jws::{self, Shape};
use crate::jwt::{self, Grant, Header, Target, UnsignedJwt};
use crate::key::{Digest, Hash};

/// What is to be signed as it is.
#[derive(Clone, Copy)]
pub enum Bytes<'a> {
    /// A message, to be hashed.
    Message(&'a [u8]),
    /// The digest of a message that nobody shows.
    Digest(&'a [u8]),
}

/// What a JWT is to say.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum JwtBody<C = String> {
    /// A caller's claims: a JSON object, as text before it is read.
    Claims(C),
    /// A JWT access token.
    AccessToken {
        /// What it is for.
        target: Target,
        /// How long it is to live; absent: as long as may be.
        lifetime: Option<Duration>,
    },
    /// A self-signed ID token.
    IdToken {
        /// Who is to believe it.
        audience: String,
        /// Whether to add email_verified.
        include_email: bool,
        /// How long it is to live; absent: as long as may be.
        lifetime: Option<Duration>,
    },
}

/// Bytes, and what they are to a verifier.
pub(super) struct Judged<'a> {
    bytes: Bytes<'a>,
    shape: Shape,
}

impl<'a> Bytes<'a> {
    pub(super) fn judge(self, account: &AccountEmail, now: SystemTime) -> Judged<'a> {
        let shape = match self {
            Self::Message(message) if message.starts_with(CHECKPOINT.as_bytes()) => {
                Shape::Refused("it could be taken for a checkpoint of the audit log".to_owned())
            }
            Self::Message(message) => jws::shape(message, account, now),
            Self::Digest(_) => Shape::Blob,
        };
        Judged { bytes: self, shape }
    }

    /// What nobody has looked at yet: signed for nobody.
    pub(super) fn unjudged(self) -> Judged<'a> {
        Judged { bytes: self, shape: Shape::Refused("the rules have just changed: try again".to_owned()) }
    }

    pub(super) fn digest(&self, hash: Hash) -> Result<Digest, SignError> {
        match self {
            Self::Message(message) => Ok(Digest::of(hash, message)),
            Self::Digest(digest) => {
                Digest::from_bytes(hash, digest).map_err(|invalid| SignError::invalid("digest", invalid))
            }
        }
    }
}

impl<'a> Judged<'a> {
    pub(super) fn request<'b>(&'b self, account: &'b AccountEmail, now: SystemTime) -> Request<'b> {
        match (&self.shape, self.bytes) {
            (Shape::Jwt(claims), _) => claims.request(account, now),
            (_, Bytes::Digest(_)) => Request::new(account, Operation::SignDigest),
            (_, Bytes::Message(blob)) => Request { blob: Some(blob), ..Request::new(account, Operation::SignBlob) },
        }
    }

    /// The bytes, unless they are refused whoever asks: told only to those who may sign blobs at all.
    pub(super) fn into_signable(self) -> Result<Bytes<'a>, SignError> {
        match self.shape {
            Shape::Refused(reason) => Err(SignError::invalid("payload", reason)),
            Shape::Blob | Shape::Jwt(_) => Ok(self.bytes),
        }
    }
}

impl JwtBody {
    /// Reads a caller's claims: what policy judges and what is signed is the same.
    pub(super) fn parse(self) -> Result<Body, SignError> {
        Ok(match self {
            Self::Claims(text) => Body::Claims(Claims::parse(&text).map_err(|error| invalid("claims", error))?),
            Self::AccessToken { target, lifetime } => Body::AccessToken { target, lifetime },
            Self::IdToken { audience, include_email, lifetime } => Body::IdToken { audience, include_email, lifetime },
        })
    }
}

/// A [`JwtBody`] whose claims were read.
pub(super) type Body = JwtBody<Claims>;

impl Body {
    pub(super) fn request<'a>(&'a self, account: &'a AccountEmail, now: SystemTime) -> Request<'a> {
        match self {
            Self::Claims(claims) => claims.request(account, now),
            Self::AccessToken { target, lifetime } => target.request(account, *lifetime),
            Self::IdToken { audience, lifetime, .. } => Request {
                audiences: vec![audience],
                lifetime: *lifetime,
                ..Request::new(account, Operation::MintIdToken)
            },
        }
    }

    /// What a token endpoint would be asked for: nothing for a caller's own claims, nor for an audience, which only a JWT has.
    pub(super) const fn grant(&self) -> Option<Grant<'_>> {
        match self {
            Self::AccessToken { target: Target::Scopes(scopes), .. } => Some(Grant::AccessToken(scopes.as_slice())),
            Self::IdToken { audience, .. } => Some(Grant::IdToken(audience.as_str())),
            Self::Claims(_) | Self::AccessToken { .. } => None,
        }
    }

    /// What the cache knows the JWT by; `None` where each is signed anew: a caller's own claims, what lives for so short a time
    /// that most would find it nearly expired, and what is too long to be kept.
    pub(super) fn wanted(&self, permit: &Permit) -> Option<Wanted> {
        // Judged as it was asked for: one that is a little too long is refused for its caller alone, and not for all who wait.
        let lifetime =
            Some(jwt::lifetime(permit)).filter(|lifetime| (CACHED_FROM..=jwt::MAX_LIFETIME).contains(lifetime))?;
        let lifetime = Duration::from_secs(lifetime.as_secs());
        let (body, length) = match self {
            Self::Claims(_) => return None,
            Self::AccessToken { target: Target::Audience(audience), .. } => {
                let target = Target::Audience(audience.clone());
                (JwtBody::AccessToken { target, lifetime: Some(lifetime) }, audience.len())
            }
            Self::AccessToken { target: Target::Scopes(scopes), .. } => {
                let (mut scopes, length) = (scopes.clone(), scopes.iter().map(String::len).sum());
                scopes.sort_unstable();
                scopes.dedup();
                (JwtBody::AccessToken { target: Target::Scopes(scopes), lifetime: Some(lifetime) }, length)
            }
            Self::IdToken { audience, include_email, .. } => {
                let (audience, include_email) = (audience.clone(), *include_email);
                let length = audience.len();
                (JwtBody::IdToken { audience, include_email, lifetime: Some(lifetime) }, length)
            }
        };
        (length <= LONGEST_CACHED).then(|| Wanted { account: permit.account().email.clone(), body })
    }

    pub(super) fn unsigned(&self, permit: &Permit, key: &Key, now: SystemTime) -> Result<UnsignedJwt, SignError> {
        let header = Header { algorithm: key.algorithm(), kid: key.kid() };
        match self {
            Self::Claims(claims) => {
                UnsignedJwt::of_claims(permit, header, claims, now).map_err(|error| invalid("claims", error))
            }
            Self::AccessToken { target, .. } => {
                UnsignedJwt::access_token(permit, header, target, now).map_err(|error| invalid("target", error))
            }
            Self::IdToken { audience, include_email, .. } => {
                let unsigned = UnsignedJwt::id_token(permit, header, audience, *include_email, now);
                unsigned.map_err(|error| invalid("audience", error))
            }
        }
    }
}

/// What is signed to be given to a token endpoint.
pub(super) fn assertion(
    permit: &Permit,
    key: &Key,
    endpoint: &str,
    grant: Grant<'_>,
    now: SystemTime,
) -> Result<UnsignedJwt, SignError> {
    let header = Header { algorithm: key.algorithm(), kid: key.kid() };
    UnsignedJwt::assertion(permit, header, endpoint, grant, now).map_err(|error| invalid("audience", error))
}

/// Everything that the bytes of a minted JWT depend on, but its key and its time: its scopes a sorted set, its lifetime
/// settled.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Wanted {
    pub(super) account: AccountEmail,
    pub(super) body: JwtBody,
}

/// The error of a field: the one that it names, where the request has it.
fn invalid(field: &'static str, error: InvalidClaims) -> SignError {
    match (field, error.member.as_deref()) {
        ("claims", _) => SignError::invalid(field, error),
        (_, Some("audience")) => SignError::invalid("audience", error.what),
        (_, Some("scope")) => SignError::invalid("scopes", error.what),
        (_, Some("lifetime")) => SignError::invalid("lifetime", error.what),
        _ => SignError::invalid(field, error),
    }
}

/// Renewed at three quarters of its lifetime, such a JWT has 7.5 minutes left: time to renew it before it has 5.
const CACHED_FROM: Duration = Duration::from_secs(30 * 60);
/// So that no more than the number of JWTs bounds the cache.
const LONGEST_CACHED: usize = 4096;
