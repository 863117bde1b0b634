//! Whether a verifier anywhere could take a blob for the signing input of a JWS (RFC 7515, 5.1).

use std::time::SystemTime;

use super::claims::Claims;
use crate::access::AccountEmail;

/// What a blob is.
#[derive(Debug)]
pub enum Shape {
    /// No verifier takes it for a JWS: it is judged as a blob.
    Blob,
    /// The canonical signing input of a JWT that SignJwt could have made: it is judged as sign-jwt, by these claims.
    Jwt(Claims),
    /// Some verifier might take it for a JWS, and it is not canonical or not sound: it is refused. The reason.
    Refused(String),
}

/// Judges a blob. `account` and `now` are those that its claims must be fit for.
#[must_use]
pub fn shape(blob: &[u8], account: &AccountEmail, now: SystemTime) -> Shape {
    let _ = (blob, account, now);
    Shape::Refused("stub".to_owned())
}
