//! What is signed: claims, JWTs, keys as JWKs, certificates.
//!
//! Pure: time and randomness are arguments, and the only way to a signature is the digest that this module hands out.
//! It never touches a device.

pub mod certificate;
pub mod claims;
pub mod jwk;
pub mod jws;

use std::time::{Duration, SystemTime};

use crate::access::{AccountEmail, Permit};
use crate::key::{Algorithm, Digest, KeyId, Signature};
use claims::{Claims, InvalidClaims};

/// A JWT that wants only its signature.
#[derive(Debug)]
pub struct UnsignedJwt {
    signing_input: String,
    algorithm: Algorithm,
    expires: SystemTime,
}

/// Which key will sign: what stands in the header.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a> {
    /// `alg`.
    pub algorithm: Algorithm,
    /// `kid`.
    pub kid: &'a KeyId,
}

/// What an access token is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One service, as `aud`.
    Audience(String),
    /// OAuth 2.0 scopes, as `scope`.
    Scopes(Vec<String>),
}

/// A signed JWT in compact serialisation (RFC 7515, 3.1).
#[derive(Clone, PartialEq, Eq)]
pub struct Jwt {
    text: String,
    expires: SystemTime,
}

impl UnsignedJwt {
    /// A JWT of a caller's claims, already made fit for the permit's account by [`Claims::for_account`].
    ///
    /// # Errors
    /// [`InvalidClaims`] where the permit is for something else or its lifetime is exceeded.
    pub fn of_claims(
        permit: &Permit,
        header: Header<'_>,
        claims: &Claims,
        now: SystemTime,
    ) -> Result<Self, InvalidClaims> {
        let _ = (permit, header, claims, now);
        Err(InvalidClaims("stub".to_owned()))
    }

    /// A JWT access token (AIP-4111): iss = sub = email, `aud` or `scope`, iat, exp.
    ///
    /// # Errors
    /// [`InvalidClaims`] where the permit is for something else.
    pub fn access_token(
        permit: &Permit,
        header: Header<'_>,
        target: &Target,
        now: SystemTime,
    ) -> Result<Self, InvalidClaims> {
        let _ = (permit, header, target, now);
        Err(InvalidClaims("stub".to_owned()))
    }

    /// A self-signed ID token: iss, sub, email, aud, iat, exp, and email_verified where asked for.
    ///
    /// # Errors
    /// [`InvalidClaims`] where the permit is for something else.
    pub fn id_token(
        permit: &Permit,
        header: Header<'_>,
        audience: &str,
        include_email: bool,
        now: SystemTime,
    ) -> Result<Self, InvalidClaims> {
        let _ = (permit, header, audience, include_email, now);
        Err(InvalidClaims("stub".to_owned()))
    }

    /// The digest to be signed.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(self.algorithm.hash(), self.signing_input.as_bytes())
    }

    /// Appends the signature.
    #[must_use]
    pub fn into_jwt(self, signature: &Signature) -> Jwt {
        let _ = signature;
        Jwt { text: self.signing_input, expires: self.expires }
    }
}

impl Jwt {
    /// The compact serialisation.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its `exp`.
    #[must_use]
    pub const fn expires(&self) -> SystemTime {
        self.expires
    }
}

/// The longest lifetime of what Signet mints, and the one where nobody asked for another.
pub const MAX_LIFETIME: Duration = Duration::from_secs(3600);

/// Judges what a blob is (see [`jws::Shape`]) for an account.
#[must_use]
pub fn shape_of(blob: &[u8], account: &AccountEmail, now: SystemTime) -> jws::Shape {
    jws::shape(blob, account, now)
}
