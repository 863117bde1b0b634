//! Algorithms, key ids, public keys, digests, signatures and locators: pure values.
//!
//! Everything that holds one of these values holds a valid one: they are parsed at the edge and nowhere else. This
//! module knows nothing of ours and does no I/O. It verifies; nothing here can sign.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest as sha;
use aws_lc_rs::signature::{self, ParsedPublicKey, VerificationAlgorithm};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use der::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// A signature algorithm, by its JWS name (RFC 7518, 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 using SHA-256.
    #[serde(rename = "RS256")]
    Rs256,
    /// RSASSA-PKCS1-v1_5 using SHA-384.
    #[serde(rename = "RS384")]
    Rs384,
    /// RSASSA-PKCS1-v1_5 using SHA-512.
    #[serde(rename = "RS512")]
    Rs512,
    /// RSASSA-PSS using SHA-256 and a salt of 32 bytes.
    #[serde(rename = "PS256")]
    Ps256,
    /// ECDSA using P-256 and SHA-256, `r || s`.
    #[serde(rename = "ES256")]
    Es256,
}

impl Algorithm {
    /// Every algorithm, in the order of their names in RFC 7518.
    pub const ALL: [Self; 5] = [Self::Rs256, Self::Rs384, Self::Rs512, Self::Ps256, Self::Es256];

    /// The JWS name: the value of a header's `alg`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Es256 => "ES256",
        }
    }

    /// The hash whose digest is signed.
    #[must_use]
    pub const fn hash(self) -> Hash {
        match self {
            Self::Rs256 | Self::Ps256 | Self::Es256 => Hash::Sha256,
            Self::Rs384 => Hash::Sha384,
            Self::Rs512 => Hash::Sha512,
        }
    }

    /// The kind of key it needs.
    #[must_use]
    pub const fn key_type(self) -> KeyType {
        match self {
            Self::Rs256 | Self::Rs384 | Self::Rs512 | Self::Ps256 => KeyType::Rsa,
            Self::Es256 => KeyType::EcP256,
        }
    }

    fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Self::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Self::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            Self::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
            Self::Es256 => &signature::ECDSA_P256_SHA256_FIXED,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Algorithm {
    type Err = InvalidKey;

    fn from_str(name: &str) -> Result<Self, InvalidKey> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
            .ok_or_else(|| InvalidKey::Algorithm(name.escape_debug().to_string()))
    }
}

/// The kind of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyType {
    /// RSA of 2,048 to 4,096 bits.
    Rsa,
    /// EC on the curve P-256.
    EcP256,
}

impl KeyType {
    /// The algorithm that a key of this kind signs with unless it was told otherwise.
    #[must_use]
    pub const fn default_algorithm(self) -> Algorithm {
        match self {
            Self::Rsa => Algorithm::Rs256,
            Self::EcP256 => Algorithm::Es256,
        }
    }
}

/// A hash of the SHA-2 family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl Hash {
    const fn implementation(self) -> &'static sha::Algorithm {
        match self {
            Self::Sha256 => &sha::SHA256,
            Self::Sha384 => &sha::SHA384,
            Self::Sha512 => &sha::SHA512,
        }
    }
}

/// A message digest: what a device signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Digest {
    /// A SHA-256 digest.
    Sha256([u8; 32]),
    /// A SHA-384 digest.
    Sha384(#[serde(with = "wide")] [u8; 48]),
    /// A SHA-512 digest.
    Sha512(#[serde(with = "wide")] [u8; 64]),
}

impl Digest {
    /// Hashes a message.
    #[must_use]
    pub fn of(hash: Hash, message: &[u8]) -> Self {
        fn hashed<const N: usize>(hash: Hash, message: &[u8]) -> [u8; N] {
            let mut bytes = [0; N];
            bytes.copy_from_slice(sha::digest(hash.implementation(), message).as_ref());
            bytes
        }
        match hash {
            Hash::Sha256 => Self::Sha256(hashed(hash, message)),
            Hash::Sha384 => Self::Sha384(hashed(hash, message)),
            Hash::Sha512 => Self::Sha512(hashed(hash, message)),
        }
    }

    /// Takes a digest that the caller computed.
    ///
    /// # Errors
    /// [`InvalidKey::DigestLength`] where it is not as long as the hash's output.
    pub fn from_bytes(hash: Hash, bytes: &[u8]) -> Result<Self, InvalidKey> {
        let digest = match hash {
            Hash::Sha256 => bytes.try_into().map(Self::Sha256),
            Hash::Sha384 => bytes.try_into().map(Self::Sha384),
            Hash::Sha512 => bytes.try_into().map(Self::Sha512),
        };
        digest.map_err(|_wrong_length| InvalidKey::DigestLength {
            expected: hash.implementation().output_len(),
            found: bytes.len(),
        })
    }

    /// The hash that made it.
    #[must_use]
    pub const fn hash(&self) -> Hash {
        match self {
            Self::Sha256(_) => Hash::Sha256,
            Self::Sha384(_) => Hash::Sha384,
            Self::Sha512(_) => Hash::Sha512,
        }
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha384(bytes) => bytes,
            Self::Sha512(bytes) => bytes,
        }
    }
}

/// Serde for arrays longer than 32 bytes.
mod wide {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer, const N: usize>(bytes: &[u8; N], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(deserializer: D) -> Result<[u8; N], D::Error> {
        let bytes = <Vec<u8>>::deserialize(deserializer)?;
        let length = bytes.len();
        bytes.try_into().map_err(|_bytes| de::Error::invalid_length(length, &"a digest"))
    }
}

/// A signature: as long as the modulus for RSA, 64 bytes `r || s` for ES256 (RFC 7518, 3.4).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature(Vec<u8>);

impl Signature {
    /// Wraps what a device returned.
    #[must_use]
    pub const fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its bytes, without a copy.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({} bytes)", self.0.len())
    }
}

/// A key's id: the JWS header's `kid`. Also a file name, so 1 to 128 of `A-Z a-z 0-9 - _ .`, not beginning with a dot or a dash.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyId(String);

impl KeyId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for KeyId {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let valid = (1..=128).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with(['.', '-']);
        if !valid {
            return Err(InvalidKey::KeyId(text.chars().take(64).collect::<String>().escape_debug().to_string()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for KeyId {
    type Error = InvalidKey;

    fn try_from(text: String) -> Result<Self, InvalidKey> {
        text.parse()
    }
}

impl From<KeyId> for String {
    fn from(kid: KeyId) -> Self {
        kid.0
    }
}

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
                let (Some(x), Some(y)) = (point.first_chunk(), point.last_chunk()) else {
                    return Err(InvalidKey::Unsupported("an EC key that is not on P-256".to_owned()));
                };
                if curve != PRIME256V1 || point.len() != 64 {
                    return Err(InvalidKey::Unsupported("an EC key that is not on P-256".to_owned()));
                }
                Ok(Self::EcP256 { x: *x, y: *y })
            }
            other => Err(InvalidKey::Unsupported(format!("the key algorithm {other}"))),
        }
    }

    fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<Self, InvalidKey> {
        let numbers = Self::Rsa { modulus: trimmed(modulus).to_vec(), exponent: trimmed(exponent).to_vec() };
        let Self::Rsa { modulus, exponent } = &numbers else { return Ok(numbers) };
        let bits = bit_length(modulus);
        if !(2048..=4096).contains(&bits) {
            return Err(InvalidKey::Unsupported(format!("an RSA key of {bits} bits; 2048 to 4096 are")));
        }
        let odd = |number: &[u8]| number.last().is_some_and(|byte| byte & 1 == 1);
        if !odd(modulus) || !odd(exponent) || !(17..=64).contains(&bit_length(exponent)) {
            return Err(InvalidKey::Unsupported("an RSA key with this public exponent; 65537 is usual".to_owned()));
        }
        Ok(numbers)
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

/// Where a private key lives in its device.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyLocator {
    /// A PKCS#11 URI (RFC 7512), without a PIN.
    Pkcs11(String),
    /// A TSS2 PRIVATE KEY, as PEM text ("ASN.1 Specification for TPM 2.0 Key Files").
    Tss2(String),
    /// A persistent TPM handle, 0x81000000 to 0x817fffff.
    Handle(u32),
}

/// Why something is no key, key id, algorithm or digest that Signet takes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidKey {
    /// The name of an algorithm is not one of RFC 7518 that Signet knows.
    #[error("unknown algorithm {0:?}; known are RS256, RS384, RS512, PS256 and ES256")]
    Algorithm(String),
    /// A key id holds what a `kid` and a file name can't.
    #[error("invalid key id {0:?}: 1 to 128 of letters, digits, '-', '_' and '.', not beginning with '.' or '-'")]
    KeyId(String),
    /// A digest has not the length of its hash.
    #[error("a digest of {found} bytes where {expected} are expected")]
    DigestLength {
        /// The hash's length.
        expected: usize,
        /// The length that was given.
        found: usize,
    },
    /// The bytes are no SubjectPublicKeyInfo.
    #[error("malformed public key: {0}")]
    PublicKey(String),
    /// A sound key, but not of a kind that Signet signs with.
    #[error("unsupported: {0}")]
    Unsupported(String),
}

/// A signature that does not verify.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the signature does not verify")]
pub struct BadSignature;

fn trimmed(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}

fn bit_length(number: &[u8]) -> usize {
    let number = trimmed(number);
    number.first().map_or(0, |first| number.len() * 8 - first.leading_zeros() as usize)
}

const RSA_ENCRYPTION: spki::ObjectIdentifier = spki::ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC_PUBLIC_KEY: spki::ObjectIdentifier = spki::ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const PRIME256V1: spki::ObjectIdentifier = spki::ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");

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
    fn key_ids_are_file_names() {
        for bad in ["", ".", "../x", "a/b", "-x", "a\0", "a b", &"x".repeat(129)] {
            assert!(bad.parse::<KeyId>().is_err(), "{bad:?} was taken");
        }
        for good in
            ["NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs", "0123456789abcdef0123456789abcdef01234567", "_x", "a.b"]
        {
            assert_eq!(good.parse::<KeyId>().unwrap().as_str(), good);
        }
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

    #[test]
    fn a_digest_of_the_wrong_length_is_refused() {
        for length in [0, 31, 33, 48] {
            assert!(Digest::from_bytes(Hash::Sha256, &vec![0; length]).is_err());
        }
    }

    #[test]
    fn digests_survive_the_pipe() {
        for hash in [Hash::Sha256, Hash::Sha384, Hash::Sha512] {
            let digest = Digest::of(hash, b"message");
            let bytes = postcard::to_stdvec(&digest).unwrap();
            assert_eq!(postcard::from_bytes::<Digest>(&bytes).unwrap(), digest);
        }
    }
}
