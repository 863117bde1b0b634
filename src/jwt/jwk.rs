//! Public keys as documents for verifiers: JWKS (RFC 7517), Google's x509 map and raw keys.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Map, Value, json};

use crate::key::{Algorithm, KeyId, PublicKey, PublicNumbers};

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
    let keys: Vec<_> = keys.iter().map(jwk).collect();
    json!({ "keys": keys }).to_string()
}

/// Google's map from kid to PEM certificate. A key without one is not in it.
#[must_use]
pub fn x509_map(keys: &[PublishedKey<'_>]) -> String {
    let certified = keys.iter().filter(|key| !key.certificate.is_empty());
    let map: Map<_, _> = certified.map(|key| (key.kid.to_string(), Value::from(key.certificate))).collect();
    Value::from(map).to_string()
}

/// Google's raw form: `{"keyvalues":[{"algorithm","exponent","keyid","modulus"}]}`; RSA keys only.
#[must_use]
pub fn raw(keys: &[PublishedKey<'_>]) -> String {
    let keys: Vec<_> = keys.iter().filter_map(raw_key).collect();
    json!({ "keyvalues": keys }).to_string()
}

/// What a verifier of an account's JWTs looks up (OpenID Connect Discovery 1.0, 3).
#[must_use]
pub fn discovery(issuer: &str, jwks_uri: &str, algorithms: &BTreeSet<&str>) -> Value {
    json!({
        "issuer": issuer,
        "jwks_uri": jwks_uri,
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": algorithms,
    })
}

fn jwk(key: &PublishedKey<'_>) -> Value {
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let (kid, alg) = (key.kid.as_str(), key.algorithm.name());
    match key.public_key.numbers() {
        PublicNumbers::Rsa { modulus, exponent } => {
            json!({"kty": "RSA", "alg": alg, "use": "sig", "kid": kid, "n": encode(modulus), "e": encode(exponent)})
        }
        PublicNumbers::EcP256 { x, y } => {
            json!({"kty": "EC", "crv": "P-256", "alg": alg, "use": "sig", "kid": kid, "x": encode(x), "y": encode(y)})
        }
    }
}

fn raw_key(key: &PublishedKey<'_>) -> Option<Value> {
    let PublicNumbers::Rsa { modulus, exponent } = key.public_key.numbers() else {
        return None;
    };
    let encode = |bytes: &[u8]| STANDARD.encode(bytes);
    let (kid, modulus, exponent) = (key.kid.as_str(), encode(modulus), encode(exponent));
    Some(json!({"algorithm": "RSA", "exponent": exponent, "keyid": kid, "modulus": modulus}))
}
