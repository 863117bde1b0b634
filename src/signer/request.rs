//! What a caller wants signed, and how policy sees it.

use std::time::{Duration, SystemTime};

use super::{Key, SignError};
use crate::access::{AccountEmail, Operation, Permit, Request};
use crate::jwt::claims::Claims;
use crate::jwt::jws::Shape;
use crate::jwt::{self, Header, MAX_LIFETIME, Target, UnsignedJwt};
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
#[derive(Clone)]
pub enum JwtBody {
    /// A caller's claims, a JSON object.
    Claims(String),
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
            Self::Message(message) => jwt::shape_of(message, account, now),
            Self::Digest(_) => Shape::Blob,
        };
        Judged { bytes: self, shape }
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
            (Shape::Jwt(claims), _) => of_claims(claims, account, now),
            (_, Bytes::Digest(_)) => bare(account, Operation::SignDigest),
            (_, Bytes::Message(blob)) => Request { blob: Some(blob), ..bare(account, Operation::SignBlob) },
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
    /// Reads the claims, and checks what a rule can't: a lifetime and a target that no caller may have.
    pub(super) fn parse(self) -> Result<Body, SignError> {
        Ok(match self {
            Self::Claims(text) => {
                Body::Claims(Claims::parse(&text).map_err(|error| SignError::invalid("claims", error))?)
            }
            Self::AccessToken { target, lifetime } => {
                match &target {
                    Target::Audience(audience) => named("audience", audience)?,
                    Target::Scopes(scopes) if scopes.is_empty() => {
                        return Err(SignError::invalid("scopes", "at least one is needed"));
                    }
                    Target::Scopes(scopes) => scopes.iter().try_for_each(|scope| named("scopes", scope))?,
                }
                Body::AccessToken { target, lifetime: limited(lifetime)? }
            }
            Self::IdToken { audience, include_email, lifetime } => {
                named("audience", &audience)?;
                Body::IdToken { audience, include_email, lifetime: limited(lifetime)? }
            }
        })
    }
}

/// A [`JwtBody`] that was read.
pub(super) enum Body {
    Claims(Claims),
    AccessToken { target: Target, lifetime: Option<Duration> },
    IdToken { audience: String, include_email: bool, lifetime: Option<Duration> },
}

impl Body {
    pub(super) fn request<'a>(&'a self, account: &'a AccountEmail, now: SystemTime) -> Request<'a> {
        match self {
            Self::Claims(claims) => of_claims(claims, account, now),
            Self::AccessToken { target: Target::Audience(audience), lifetime } => {
                Request { audiences: vec![audience], lifetime: *lifetime, ..bare(account, Operation::MintAccessToken) }
            }
            Self::AccessToken { target: Target::Scopes(scopes), lifetime } => Request {
                scopes: scopes.iter().map(String::as_str).collect(),
                lifetime: *lifetime,
                ..bare(account, Operation::MintAccessToken)
            },
            Self::IdToken { audience, lifetime, .. } => {
                Request { audiences: vec![audience], lifetime: *lifetime, ..bare(account, Operation::MintIdToken) }
            }
        }
    }

    pub(super) fn unsigned(&self, permit: &Permit, key: &Key, now: SystemTime) -> Result<UnsignedJwt, SignError> {
        let header = Header { algorithm: key.algorithm(), kid: key.kid() };
        let (field, unsigned) = match self {
            Self::Claims(claims) => {
                let fit = claims.clone().for_account(&permit.account().email, now);
                ("claims", fit.and_then(|claims| UnsignedJwt::of_claims(permit, header, &claims, now)))
            }
            Self::AccessToken { target, .. } => ("target", UnsignedJwt::access_token(permit, header, target, now)),
            Self::IdToken { audience, include_email, .. } => {
                ("audience", UnsignedJwt::id_token(permit, header, audience, *include_email, now))
            }
        };
        unsigned.map_err(|error| SignError::invalid(field, error))
    }
}

fn of_claims<'a>(claims: &'a Claims, account: &'a AccountEmail, now: SystemTime) -> Request<'a> {
    let exp = claims.members().iter().find(|(name, _)| name == "exp").and_then(|(_, exp)| exp.as_u64());
    let ends = exp.and_then(|exp| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(exp)));
    Request {
        audiences: claims.audiences(),
        scopes: claims.scopes(),
        claims: claims.others(),
        lifetime: ends.map(|ends| ends.duration_since(now).unwrap_or_default()),
        ..bare(account, Operation::SignJwt)
    }
}

fn bare(account: &AccountEmail, operation: Operation) -> Request<'_> {
    let (audiences, scopes, claims) = (Vec::new(), Vec::new(), Vec::new());
    Request { account, operation, audiences, scopes, claims, blob: None, lifetime: None }
}

fn named(field: &'static str, text: &str) -> Result<(), SignError> {
    if text.is_empty() || text.len() > 4096 || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(SignError::invalid(field, "1 to 4096 bytes without white space are needed"));
    }
    Ok(())
}

fn limited(lifetime: Option<Duration>) -> Result<Option<Duration>, SignError> {
    match lifetime {
        Some(lifetime) if lifetime < Duration::from_secs(1) || lifetime > MAX_LIFETIME => {
            Err(SignError::invalid("lifetime", "1 second to 1 hour is needed"))
        }
        lifetime => Ok(lifetime),
    }
}
