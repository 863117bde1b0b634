//! The self-signed X.509 v3 certificate of a key, signed by the key itself wherever it is.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use der::asn1::{Any, BitString, UintRef};
use der::pem::LineEnding;
use der::{Decode as _, DecodePem as _, Encode as _};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyUsagePurpose,
    SerialNumber, SignatureAlgorithm,
};
use spki::SubjectPublicKeyInfoRef;
use time::OffsetDateTime;
use x509_cert::Certificate;

use crate::key::{Algorithm, Digest, Hash, PublicKey, Signature};

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

/// Makes a certificate in PEM form. `sign` is called once, for a signature with `algorithm`.
///
/// # Errors
/// [`CertificateError`].
pub fn self_signed(
    public_key: &PublicKey,
    algorithm: Algorithm,
    profile: &Profile<'_>,
    sign: impl FnOnce(&Digest) -> Result<Signature, String>,
) -> Result<String, CertificateError> {
    let template = Template::new(public_key, algorithm)?;
    // What rcgen makes of it is dropped, but for what it had signed: it knows no RSASSA-PSS.
    params(profile, public_key)?.self_signed(&template).map_err(malformed)?;
    let mut fields = Vec::<Any>::from_der(&template.to_be_signed.take()).map_err(malformed)?;
    let signature_field = fields.get_mut(2).ok_or_else(|| malformed("it has no signature field"))?;
    if algorithm == Algorithm::Ps256 {
        *signature_field = Any::from_der(&PS256_IDENTIFIER).map_err(malformed)?;
    }
    let identifier = signature_field.clone();
    let to_be_signed = fields.to_der().map_err(malformed)?;
    let signature = sign(&Digest::of(algorithm.hash(), &to_be_signed)).map_err(CertificateError::Signer)?;
    let signature = match algorithm {
        Algorithm::Es256 => ecdsa_der(signature.as_bytes()).map_err(malformed)?,
        _ => signature.into_bytes(),
    };
    let signature = BitString::from_bytes(&signature).and_then(|bits| Any::encode_from(&bits)).map_err(malformed)?;
    let to_be_signed = Any::from_der(&to_be_signed).map_err(malformed)?;
    let certificate = vec![to_be_signed, identifier, signature].to_der().map_err(malformed)?;
    der::pem::encode_string("CERTIFICATE", LineEnding::LF, &certificate).map_err(malformed)
}

/// notBefore and notAfter of a PEM certificate.
///
/// # Errors
/// [`CertificateError::Malformed`].
pub fn validity(pem: &str) -> Result<(SystemTime, SystemTime), CertificateError> {
    let certificate = Certificate::from_pem(pem).map_err(malformed)?;
    let validity = certificate.tbs_certificate().validity();
    Ok((validity.not_before.to_system_time(), validity.not_after.to_system_time()))
}

/// The public key inside a PEM certificate.
///
/// # Errors
/// [`CertificateError::Malformed`].
pub fn public_key(pem: &str) -> Result<PublicKey, CertificateError> {
    let certificate = Certificate::from_pem(pem).map_err(malformed)?;
    let spki = certificate.tbs_certificate().subject_public_key_info().to_der().map_err(malformed)?;
    PublicKey::from_spki(&spki).map_err(malformed)
}

fn params(profile: &Profile<'_>, public_key: &PublicKey) -> Result<CertificateParams, CertificateError> {
    let mut distinguished_name = DistinguishedName::new();
    distinguished_name.push(DnType::CommonName, profile.common_name);
    let not_after = profile.not_before.checked_add(profile.validity);
    let not_after = not_after.ok_or_else(|| malformed("notAfter is beyond what a clock can show"))?;
    // Positive, and as long as it looks (RFC 5280, 4.1.2.2).
    let [first, rest @ ..] = profile.serial;
    let serial = [&[first & 0x3f | 0x40], rest.as_slice()].concat();
    // The leftmost 160 bits of the key's SHA-256 (RFC 7093, 2).
    let key_id = Digest::of(Hash::Sha256, public_key.spki()).as_bytes().iter().copied().take(20).collect();
    let mut params = CertificateParams::default();
    params.not_before = moment(profile.not_before)?;
    params.not_after = moment(not_after)?;
    params.serial_number = Some(SerialNumber::from(serial));
    params.distinguished_name = distinguished_name;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.key_identifier_method = KeyIdMethod::PreSpecified(key_id);
    Ok(params)
}

/// A time as X.509 has it: to the second, and within its years.
fn moment(time: SystemTime) -> Result<OffsetDateTime, CertificateError> {
    let seconds = time.duration_since(UNIX_EPOCH).map_err(malformed)?.as_secs();
    let moment = i64::try_from(seconds).map_err(malformed)?;
    let moment = OffsetDateTime::from_unix_timestamp(moment).map_err(malformed)?;
    if moment.year() > 9999 {
        return Err(malformed("the year is beyond 9999"));
    }
    Ok(moment)
}

/// Stands in for the key towards rcgen, and keeps what it would have signed.
struct Template {
    key: Vec<u8>,
    algorithm: &'static SignatureAlgorithm,
    to_be_signed: RefCell<Vec<u8>>,
}

impl Template {
    fn new(public_key: &PublicKey, algorithm: Algorithm) -> Result<Self, CertificateError> {
        let info = SubjectPublicKeyInfoRef::from_der(public_key.spki()).map_err(malformed)?;
        let algorithm = match algorithm {
            Algorithm::Rs256 | Algorithm::Ps256 => &rcgen::PKCS_RSA_SHA256,
            Algorithm::Rs384 => &rcgen::PKCS_RSA_SHA384,
            Algorithm::Rs512 => &rcgen::PKCS_RSA_SHA512,
            Algorithm::Es256 => &rcgen::PKCS_ECDSA_P256_SHA256,
        };
        Ok(Self { key: info.subject_public_key.raw_bytes().to_vec(), algorithm, to_be_signed: RefCell::default() })
    }
}

impl rcgen::PublicKeyData for Template {
    fn der_bytes(&self) -> &[u8] {
        &self.key
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

impl rcgen::SigningKey for Template {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.to_be_signed.replace(message.to_vec());
        Ok(Vec::new())
    }
}

/// `r || s` as X.509 wants it: an ECDSA-Sig-Value (RFC 3279, 2.2.3).
fn ecdsa_der(signature: &[u8]) -> der::Result<Vec<u8>> {
    let (r, s) = signature.split_at_checked(32).unwrap_or_default();
    vec![UintRef::new(r)?, UintRef::new(s)?].to_der()
}

fn malformed(what: impl std::fmt::Display) -> CertificateError {
    CertificateError::Malformed(what.to_string())
}

/// id-RSASSA-PSS with SHA-256, MGF1 with SHA-256 and a salt of 32 bytes (RFC 4055, 3.1), in DER.
const PS256_IDENTIFIER: [u8; 67] = [
    0x30, 0x41, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a, 0x30, 0x34, 0xa0, 0x0f, 0x30, 0x0d,
    0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0xa1, 0x1c, 0x30, 0x1a, 0x06, 0x09,
    0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03,
    0x04, 0x02, 0x01, 0x05, 0x00, 0xa2, 0x03, 0x02, 0x01, 0x20,
];

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::{self, EcdsaKeyPair, KeyPair as _, RsaKeyPair};

    use super::*;
    use crate::key::PublicNumbers;

    type Signer = Box<dyn Fn(Algorithm, &[u8]) -> Signature>;

    fn rsa() -> (PublicKey, Signer) {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let numbers = PublicNumbers::Rsa {
            modulus: pair.public_key().modulus().big_endian_without_leading_zero().to_vec(),
            exponent: pair.public_key().exponent().big_endian_without_leading_zero().to_vec(),
        };
        let sign = move |algorithm, message: &[u8]| {
            let padding: &dyn signature::RsaEncoding = match algorithm {
                Algorithm::Rs384 => &signature::RSA_PKCS1_SHA384,
                Algorithm::Rs512 => &signature::RSA_PKCS1_SHA512,
                Algorithm::Ps256 => &signature::RSA_PSS_SHA256,
                _ => &signature::RSA_PKCS1_SHA256,
            };
            let mut signature = vec![0; pair.public_modulus_len()];
            pair.sign(padding, &SystemRandom::new(), message, &mut signature).unwrap();
            Signature::from_bytes(signature)
        };
        (PublicKey::from_numbers(&numbers).unwrap(), Box::new(sign))
    }

    fn ec() -> (PublicKey, Signer) {
        let pair = EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let point = pair.public_key().as_ref();
        let numbers = PublicNumbers::EcP256 { x: point[1..33].try_into().unwrap(), y: point[33..].try_into().unwrap() };
        let sign = move |_algorithm, message: &[u8]| {
            Signature::from_bytes(pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec())
        };
        (PublicKey::from_numbers(&numbers).unwrap(), Box::new(sign))
    }

    fn profile(serial: [u8; 16]) -> Profile<'static> {
        let not_before = UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        Profile { common_name: "unused", not_before, validity: Duration::from_secs(86_400 * 365), serial }
    }

    /// aws-lc-rs signs messages, the callback gets digests: the message is what the certificate itself says was signed.
    fn certificate(key: &PublicKey, algorithm: Algorithm, signer: &Signer, serial: [u8; 16]) -> String {
        let unsigned = |_digest: &Digest| Ok(Signature::from_bytes(vec![1; 64]));
        let draft = self_signed(key, algorithm, &profile(serial), unsigned).unwrap();
        let message = Certificate::from_pem(draft).unwrap().tbs_certificate().to_der().unwrap();
        let sign = |digest: &Digest| {
            assert_eq!(*digest, Digest::of(algorithm.hash(), &message));
            let signature = signer(algorithm, &message);
            key.verify(algorithm, digest, &signature).map_err(|bad| bad.to_string())?;
            Ok(signature)
        };
        self_signed(key, algorithm, &profile(serial), sign).unwrap()
    }

    fn openssl(arguments: &[&str], input: &str) -> String {
        let mut command = Command::new("openssl");
        let mut child = command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn openssl_verifies_and_reads_the_certificate_of_every_algorithm() {
        let directory = tempfile::tempdir().unwrap();
        let (rsa, ec) = (rsa(), ec());
        for (algorithm, named) in [
            (Algorithm::Rs256, "sha256WithRSAEncryption"),
            (Algorithm::Rs384, "sha384WithRSAEncryption"),
            (Algorithm::Rs512, "sha512WithRSAEncryption"),
            (Algorithm::Ps256, "rsassaPss"),
            (Algorithm::Es256, "ecdsa-with-SHA256"),
        ] {
            let (key, signer) = if algorithm == Algorithm::Es256 { &ec } else { &rsa };
            let pem = certificate(key, algorithm, signer, [0xff; 16]);
            let text = openssl(&["x509", "-noout", "-text"], &pem);
            for expected in [
                "Version: 3 (0x2)",
                named,
                "Issuer: CN = unused",
                "Subject: CN = unused",
                "X509v3 Basic Constraints: critical\n                CA:FALSE",
                "X509v3 Key Usage: critical\n                Digital Signature",
                "TLS Web Client Authentication",
                "7f:ff:ff",
            ] {
                assert!(text.contains(expected), "{algorithm}: no {expected} in {text}");
            }
            let file = directory.path().join("certificate.pem");
            std::fs::write(&file, &pem).unwrap();
            let file = file.to_str().unwrap();
            openssl(&["verify", "-check_ss_sig", "-CAfile", file, "-attime", "1790000001", file], "");
            assert_eq!(public_key(&pem).unwrap(), *key);
            let profile = profile([0; 16]);
            assert_eq!(validity(&pem).unwrap(), (profile.not_before, profile.not_before + profile.validity));
        }
    }

    #[test]
    fn serials_are_positive_and_whole() {
        let (key, signer) = ec();
        for serial in [[0; 16], [0x80; 16], [0x7f; 16]] {
            let pem = certificate(&key, Algorithm::Es256, &signer, serial);
            let hex = openssl(&["x509", "-noout", "-serial"], &pem);
            assert_eq!(hex.trim().len(), "serial=".len() + 32, "{hex}");
        }
    }

    #[test]
    fn the_signers_error_and_impossible_profiles_are_told() {
        let (key, _signer) = ec();
        let refuse = |_digest: &Digest| Err("the device is away".to_owned());
        let error = self_signed(&key, Algorithm::Es256, &profile([1; 16]), refuse).unwrap_err();
        assert_eq!(error.to_string(), "the device is away");
        let forever = Profile { validity: Duration::from_secs(86_400 * 366 * 9000), ..profile([1; 16]) };
        assert!(matches!(self_signed(&key, Algorithm::Es256, &forever, refuse), Err(CertificateError::Malformed(_))));
        assert!(validity("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
        assert!(public_key("").is_err());
    }
}
