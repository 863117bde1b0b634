//! Public keys as documents for verifiers: JWKS (RFC 7517), Google's x509 map and raw keys.

use crate::key::{Algorithm, KeyId, PublicKey};

/// One published key.
#[derive(Clone, Copy, Debug)]
pub struct PublishedKey<'a> {
    /// Its id.
    pub kid: &'a KeyId,
    /// What it signs JWTs with.
    pub algorithm: Algorithm,
    /// The key.
    pub public_key: &'a PublicKey,
    /// Its certificate, PEM.
    pub certificate: &'a str,
}

/// `{"keys":[{"kty","alg","use","kid","n","e"}]}`, base64url without padding.
#[must_use]
pub fn jwks(keys: &[PublishedKey<'_>]) -> String {
    let _ = keys;
    String::new()
}

/// Google's map from kid to PEM certificate.
#[must_use]
pub fn x509_map(keys: &[PublishedKey<'_>]) -> String {
    let _ = keys;
    String::new()
}

/// Google's raw form: `{"keyvalues":[{"algorithm","exponent","keyid","modulus"}]}`; RSA keys only.
#[must_use]
pub fn raw(keys: &[PublishedKey<'_>]) -> String {
    let _ = keys;
    String::new()
}
