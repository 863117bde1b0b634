//! Algorithms, key ids, names of devices, public keys, digests, signatures and locators: pure values.
//!
//! Everything that holds one of these values holds a valid one: they are parsed at the edge and nowhere else. This
//! module knows nothing of ours and does no I/O. It verifies; nothing here can sign.

mod name;
mod public;

pub use name::{DeviceName, KeyId};
pub use public::{
    EC_PUBLIC_KEY, PRIME256V1, PublicKey, PublicNumbers, RSA_BITS, RSA_ENCRYPTION, RSA_EXPONENT_BITS, bit_length,
    trimmed,
};

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest as sha;
use aws_lc_rs::signature::{self, VerificationAlgorithm};
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
    Sha256(#[serde(with = "serde_bytes")] [u8; 32]),
    /// A SHA-384 digest.
    Sha384(#[serde(with = "serde_bytes")] [u8; 48]),
    /// A SHA-512 digest.
    Sha512(#[serde(with = "serde_bytes")] [u8; 64]),
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

/// A signature: as long as the modulus for RSA, 64 bytes `r || s` for ES256 (RFC 7518, 3.4).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature(#[serde(with = "serde_bytes")] Vec<u8>);

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

/// Why something is no key, key id, device name, algorithm or digest that Signet takes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidKey {
    /// The name of an algorithm is not one of RFC 7518 that Signet knows.
    #[error("unknown algorithm {0:?}; known are RS256, RS384, RS512, PS256 and ES256")]
    Algorithm(String),
    /// A key id holds what a `kid` and a file name can't.
    #[error("invalid key id {0:?}: 1 to 128 of letters, digits, '-', '_' and '.', not beginning with '.' or '-'")]
    KeyId(String),
    /// The name of a device holds what a file name can't.
    #[error("invalid device name {0:?}: 1 to 128 of letters, digits, '-', '_' and '.', not beginning with '.' or '-'")]
    DeviceName(String),
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

/// Bytes as lower-case hexadecimal.
#[must_use]
pub fn hexadecimal(bytes: &[u8]) -> String {
    let digit = |half: u8| char::from(if half < 10 { b'0' + half } else { b'a' + half - 10 });
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]).collect()
}

/// The SHA-256 that 64 hexadecimal digits tell.
#[must_use]
pub fn from_hexadecimal(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(place * 2..place * 2 + 2)?, 16).ok()?;
    }
    Some(bytes)
}

/// The SHA-256 of bytes, in hexadecimal.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    hexadecimal(sha::digest(&sha::SHA256, bytes).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

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
