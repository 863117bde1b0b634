//! The self-signed X.509 v3 certificate of a key, signed by the key itself wherever it is.

use std::time::{Duration, SystemTime};

use crate::key::{Algorithm, Digest, PublicKey, Signature};

/// What a certificate says. Extensions: basicConstraints critical CA:FALSE, keyUsage critical digitalSignature, extendedKeyUsage clientAuth.
#[derive(Clone, Copy, Debug)]
pub struct Profile<'a> {
    /// The common name of subject and issuer: public, so generic by default.
    pub common_name: &'a str,
    /// notBefore.
    pub not_before: SystemTime,
    /// How long it is valid.
    pub validity: Duration,
    /// 16 random bytes for the serial number.
    pub serial: [u8; 16],
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The signer's own error.
    #[error("{0}")]
    Signer(String),
    /// The profile can't be written as a certificate, or a certificate can't be read.
    #[error("certificate: {0}")]
    Malformed(String),
}

/// Makes a certificate in PEM form. `sign` is called once.
///
/// # Errors
/// [`CertificateError`].
pub fn self_signed(
    public_key: &PublicKey,
    algorithm: Algorithm,
    profile: &Profile<'_>,
    sign: &dyn Fn(&Digest) -> Result<Signature, String>,
) -> Result<String, CertificateError> {
    let _ = (public_key, algorithm, profile, sign);
    Err(CertificateError::Malformed("stub".to_owned()))
}

/// notBefore and notAfter of a PEM certificate.
///
/// # Errors
/// [`CertificateError::Malformed`].
pub fn validity(pem: &str) -> Result<(SystemTime, SystemTime), CertificateError> {
    let _ = pem;
    Err(CertificateError::Malformed("stub".to_owned()))
}

/// The public key inside a PEM certificate.
///
/// # Errors
/// [`CertificateError::Malformed`].
pub fn public_key(pem: &str) -> Result<PublicKey, CertificateError> {
    let _ = pem;
    Err(CertificateError::Malformed("stub".to_owned()))
}
