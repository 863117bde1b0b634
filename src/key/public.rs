//! Public keys, parsed once: from there on they verify.

use std::fmt;
use std::ops::RangeInclusive;

use aws_lc_rs::digest as sha;
use aws_lc_rs::signature::ParsedPublicKey;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use der::{Decode, Encode};

use super::{Algorithm, BadSignature, Digest, InvalidKey, KeyId, KeyType, Signature};

/// A public key, parsed and ready to verify with.
pub struct PublicKey {
    spki: Vec<u8>,
    numbers: PublicNumbers,
    verifiers: Vec<(Algorithm, ParsedPublicKey)>,
}

/// A public key's numbers, big-endian without leading zeros; coordinates are 32 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicNumbers {
    /// An RSA key's.
    Rsa {
        /// The modulus n.
        modulus: Vec<u8>,
        /// The public exponent e.
        exponent: Vec<u8>,
    },
    /// A point on P-256.
    EcP256 {
        /// The x coordinate.
        x: [u8; 32],
        /// The y coordinate.
        y: [u8; 32],
    },
}

impl PublicKey {
    /// Parses a DER SubjectPublicKeyInfo (RFC 5280, 4.1.2.7): RSA of 2,048 to 4,096 bits with an odd exponent of at
    /// least 65,537, or EC on P-256.
    ///
    /// # Errors
    /// [`InvalidKey`] says what is wrong with it.
    pub fn from_spki(spki: &[u8]) -> Result<Self, InvalidKey> {
        let numbers = PublicNumbers::from_spki(spki)?;
        let key_type = numbers.key_type();
        let verifiers = Algorithm::ALL
            .into_iter()
            .filter(|algorithm| algorithm.key_type() == key_type)
            .map(|algorithm| {
                ParsedPublicKey::new(algorithm.verification(), spki)
                    .map(|key| (algorithm, key))
                    .map_err(|rejected| InvalidKey::PublicKey(rejected.to_string()))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { spki: spki.to_vec(), numbers, verifiers })
    }

    /// Builds a key from its numbers.
    ///
    /// # Errors
    /// [`InvalidKey`] where no such key can be.
    pub fn from_numbers(numbers: &PublicNumbers) -> Result<Self, InvalidKey> {
        Self::from_spki(&numbers.to_spki()?)
    }

    /// The DER SubjectPublicKeyInfo.
    #[must_use]
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// The key's numbers.
    #[must_use]
    pub const fn numbers(&self) -> &PublicNumbers {
        &self.numbers
    }

    /// The key's kind.
    #[must_use]
    pub const fn key_type(&self) -> KeyType {
        self.numbers.key_type()
    }

    /// The modulus' or the curve's size in bits.
    #[must_use]
    pub fn bits(&self) -> usize {
        match &self.numbers {
            PublicNumbers::Rsa { modulus, .. } => bit_length(modulus),
            PublicNumbers::EcP256 { .. } => 256,
        }
    }

    /// The JWK thumbprint with SHA-256 (RFC 7638): the `kid` of a key that nobody else gave one.
    #[must_use]
    pub fn thumbprint(&self) -> KeyId {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let jwk = match &self.numbers {
            PublicNumbers::Rsa { modulus, exponent } => {
                format!(r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#, encode(exponent), encode(modulus))
            }
            PublicNumbers::EcP256 { x, y } => {
                format!(r#"{{"crv":"P-256","kty":"EC","x":"{}","y":"{}"}}"#, encode(x), encode(y))
            }
        };
        let thumbprint = encode(sha::digest(&sha::SHA256, jwk.as_bytes()).as_ref());
        // A file name may not begin with a dash, which base64url may.
        KeyId(if thumbprint.starts_with('-') { format!("k{thumbprint}") } else { thumbprint })
    }

    /// Checks a signature over a digest.
    ///
    /// # Errors
    /// [`BadSignature`] where it does not verify, whatever the reason.
    pub fn verify(&self, algorithm: Algorithm, digest: &Digest, signature: &Signature) -> Result<(), BadSignature> {
        let (_, key) = self.verifiers.iter().find(|(known, _)| *known == algorithm).ok_or(BadSignature)?;
        if digest.hash() != algorithm.hash() {
            return Err(BadSignature);
        }
        let digest = sha::Digest::import_less_safe(digest.as_bytes(), digest.hash().implementation())
            .map_err(|_unspecified| BadSignature)?;
        key.verify_digest_sig(&digest, signature.as_bytes()).map_err(|_unspecified| BadSignature)
    }
}

impl Clone for PublicKey {
    fn clone(&self) -> Self {
        Self { spki: self.spki.clone(), numbers: self.numbers.clone(), verifiers: self.verifiers.clone() }
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.numbers == other.numbers
    }
}

impl Eq for PublicKey {}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({:?} {} bits, {})", self.key_type(), self.bits(), self.thumbprint())
    }
}

impl PublicNumbers {
    /// The kind of key they make.
    #[must_use]
    pub const fn key_type(&self) -> KeyType {
        match self {
            Self::Rsa { .. } => KeyType::Rsa,
            Self::EcP256 { .. } => KeyType::EcP256,
        }
    }

    fn from_spki(spki: &[u8]) -> Result<Self, InvalidKey> {
        let malformed = |error: der::Error| InvalidKey::PublicKey(error.to_string());
        let info = spki::SubjectPublicKeyInfoRef::from_der(spki).map_err(malformed)?;
        let bits = info
            .subject_public_key
            .as_bytes()
            .ok_or_else(|| InvalidKey::PublicKey("the key is not a whole number of bytes".to_owned()))?;
        match info.algorithm.oid {
            RSA_ENCRYPTION => {
                let key = pkcs1::RsaPublicKeyRef::from_der(bits).map_err(malformed)?;
                Self::rsa(key.modulus.as_bytes(), key.public_exponent.as_bytes())
            }
            EC_PUBLIC_KEY => {
                let curve =
                    info.algorithm.parameters_oid().map_err(|error| InvalidKey::PublicKey(error.to_string()))?;
                let [0x04, point @ ..] = bits else {
                    return Err(InvalidKey::PublicKey("the EC point is not uncompressed".to_owned()));
                };
                match (point.first_chunk(), point.last_chunk()) {
                    (Some(x), Some(y)) if curve == PRIME256V1 && point.len() == 64 => Ok(Self::EcP256 { x: *x, y: *y }),
                    _ => Err(InvalidKey::Unsupported("an EC key that is not on P-256".to_owned())),
                }
            }
            other => Err(InvalidKey::Unsupported(format!("the key algorithm {other}"))),
        }
    }

    fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<Self, InvalidKey> {
        let (modulus, exponent) = (trimmed(modulus), trimmed(exponent));
        let bits = bit_length(modulus);
        if !RSA_BITS.contains(&bits) {
            return Err(InvalidKey::Unsupported(format!("an RSA key of {bits} bits; 2048 to 4096 are")));
        }
        let odd = |number: &[u8]| number.last().is_some_and(|byte| byte & 1 == 1);
        if !odd(modulus) || !odd(exponent) || !RSA_EXPONENT_BITS.contains(&bit_length(exponent)) {
            return Err(InvalidKey::Unsupported("an RSA key with this public exponent; 65537 is usual".to_owned()));
        }
        Ok(Self::Rsa { modulus: modulus.to_vec(), exponent: exponent.to_vec() })
    }

    fn to_spki(&self) -> Result<Vec<u8>, InvalidKey> {
        let malformed = |error: der::Error| InvalidKey::PublicKey(error.to_string());
        let (algorithm, key) = match self {
            Self::Rsa { modulus, exponent } => {
                let key = pkcs1::RsaPublicKey {
                    modulus: pkcs1::UintRef::new(modulus).map_err(malformed)?,
                    public_exponent: pkcs1::UintRef::new(exponent).map_err(malformed)?,
                };
                let parameters = Some(der::AnyRef::NULL);
                (spki::AlgorithmIdentifierRef { oid: RSA_ENCRYPTION, parameters }, key.to_der().map_err(malformed)?)
            }
            Self::EcP256 { x, y } => {
                let parameters = Some(der::AnyRef::from(&PRIME256V1));
                let key = [&[0x04], x.as_slice(), y.as_slice()].concat();
                (spki::AlgorithmIdentifierRef { oid: EC_PUBLIC_KEY, parameters }, key)
            }
        };
        let subject_public_key = der::asn1::BitStringRef::from_bytes(&key).map_err(malformed)?;
        spki::SubjectPublicKeyInfoRef { algorithm, subject_public_key }.to_der().map_err(malformed)
    }
}

/// A big-endian number without its leading zeros.
#[must_use]
pub fn trimmed(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}

/// How many bits a big-endian number has.
#[must_use]
pub fn bit_length(number: &[u8]) -> usize {
    let number = trimmed(number);
    number.first().map_or(0, |first| number.len() * 8 - first.leading_zeros() as usize)
}

/// How many bits an RSA key's modulus may have.
pub const RSA_BITS: RangeInclusive<usize> = 2048..=4096;
/// How many bits an RSA key's public exponent may have: 65537 has the fewest.
pub const RSA_EXPONENT_BITS: RangeInclusive<usize> = 17..=64;
/// `rsaEncryption` (RFC 8017, C).
pub const RSA_ENCRYPTION: spki::ObjectIdentifier = spki::ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
/// `id-ecPublicKey` (RFC 5480, 2.1.1).
pub const EC_PUBLIC_KEY: spki::ObjectIdentifier = spki::ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
/// The curve P-256 (RFC 5480, 2.1.1.1).
pub const PRIME256V1: spki::ObjectIdentifier = spki::ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");

#[cfg(test)]
mod tests {
    use super::*;

    /// The key of RFC 7638, 3.1, whose thumbprint the RFC gives.
    const RFC7638_N: &str = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";

    fn rfc7638_key() -> PublicKey {
        let modulus = URL_SAFE_NO_PAD.decode(RFC7638_N).unwrap();
        PublicKey::from_numbers(&PublicNumbers::Rsa { modulus, exponent: vec![1, 0, 1] }).unwrap()
    }

    #[test]
    fn thumbprint_is_that_of_rfc_7638() {
        assert_eq!(rfc7638_key().thumbprint().as_str(), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
    }

    #[test]
    fn spki_round_trips() {
        let key = rfc7638_key();
        assert_eq!(PublicKey::from_spki(key.spki()).unwrap(), key);
        assert_eq!(key.bits(), 2048);
    }

    #[test]
    fn small_and_even_keys_are_refused() {
        let rsa =
            |modulus: Vec<u8>, exponent: Vec<u8>| PublicKey::from_numbers(&PublicNumbers::Rsa { modulus, exponent });
        assert!(rsa(vec![0xff; 128], vec![1, 0, 1]).is_err());
        assert!(rsa([vec![0xff; 255], vec![0xfe]].concat(), vec![1, 0, 1]).is_err());
        assert!(rsa(vec![0xff; 256], vec![3]).is_err());
        assert!(rsa(vec![0xff; 513], vec![1, 0, 1]).is_err());
    }
}
