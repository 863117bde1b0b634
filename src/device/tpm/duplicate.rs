//! A key wrapped in software for TPM2_Import (TPM 2.0 Part 1, 23.3.2): its sensitive area is encrypted to the parent's
//! public half before anything goes to the TPM, so no private byte crosses the bus. Bytes and numbers only: this file
//! knows no `tss_esapi`.

use aws_lc_rs::cipher::{AES_128, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use aws_lc_rs::{agreement, digest, error::Unspecified, hmac, rand};
use zeroize::Zeroizing;

use crate::device::DeviceError;
use crate::key::{PublicKey, PublicNumbers};

/// What TPM2_Import takes, each without the size in front.
pub(super) struct Duplicate {
    /// The contents of the TPM2B_PRIVATE: the integrity HMAC, and the encrypted sensitive area.
    pub(super) private: Vec<u8>,
    /// The contents of the TPM2B_ENCRYPTED_SECRET: the seed, which only the parent can recover.
    pub(super) seed: Vec<u8>,
}

/// The private part of a key.
pub(super) struct Sensitive<'a> {
    /// TPM_ALG_RSA or TPM_ALG_ECC.
    pub(super) kind: u16,
    /// The value that will authorise the key's use.
    pub(super) auth: &'a [u8],
    /// One prime of an RSA key, the scalar of an EC key.
    pub(super) secret: &'a [u8],
}

/// Wraps a key for a parent whose name algorithm is SHA-256 and whose children are protected by AES-128-CFB. `public` is
/// the new key's TPMT_PUBLIC.
pub(super) fn wrap(sensitive: &Sensitive, public: &[u8], parent: &PublicKey) -> Result<Duplicate, DeviceError> {
    let failed = |_unspecified| DeviceError::Unsupported("wrapping a key for this storage key".to_owned());
    let name = name(public);
    let (seed, encrypted_seed) = share_seed(parent).map_err(failed)?;
    let mut area = Zeroizing::new(Vec::with_capacity(LARGEST_SENSITIVE));
    area.extend_from_slice(&sensitive.kind.to_be_bytes());
    for field in [sensitive.auth, &[], sensitive.secret] {
        push_sized(&mut area, field)?;
    }
    let mut encrypted = Zeroizing::new(Vec::with_capacity(LARGEST_SENSITIVE));
    push_sized(&mut encrypted, &area)?;

    let key = kdfa(&seed, b"STORAGE", &name, 128);
    let cipher = UnboundCipherKey::new(&AES_128, &key).and_then(EncryptingKey::cfb128).map_err(failed)?;
    // The key is used once, so the standard lets the initialisation vector be zero.
    cipher.less_safe_encrypt(&mut encrypted, EncryptionContext::Iv128(FixedLength::from([0; 16]))).map_err(failed)?;

    let integrity_key = kdfa(&seed, b"INTEGRITY", &[], 256);
    let integrity =
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &integrity_key), &[encrypted.as_slice(), &name].concat());
    let mut private = Vec::new();
    push_sized(&mut private, integrity.as_ref())?;
    private.extend_from_slice(&encrypted);
    Ok(Duplicate { private, seed: encrypted_seed })
}

/// The name of an object with this TPMT_PUBLIC and the name algorithm SHA-256 (TPM 2.0 Part 1, 16).
pub(super) fn name(public: &[u8]) -> Vec<u8> {
    [&SHA256_ID, digest::digest(&digest::SHA256, public).as_ref()].concat()
}

/// A secret seed, and the form of it that only the parent can read (TPM 2.0 Part 1, B.10.3 and C.6.3).
fn share_seed(parent: &PublicKey) -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), Unspecified> {
    match parent.numbers() {
        PublicNumbers::Rsa { .. } => {
            let mut seed = Zeroizing::new(vec![0; 32]);
            rand::fill(&mut seed)?;
            let key = PublicEncryptingKey::from_der(parent.spki()).map_err(|_rejected| Unspecified)?;
            let key = OaepPublicEncryptingKey::new(key)?;
            let mut encrypted = vec![0; key.ciphertext_size()];
            key.encrypt(&OAEP_SHA256_MGF1SHA256, &seed, &mut encrypted, Some(b"DUPLICATE\0"))?;
            Ok((seed, encrypted))
        }
        PublicNumbers::EcP256 { x, y } => {
            let point = agreement::UnparsedPublicKey::new(&agreement::ECDH_P256, [&[4], x.as_slice(), y].concat());
            let ephemeral =
                agreement::EphemeralPrivateKey::generate(&agreement::ECDH_P256, &rand::SystemRandom::new())?;
            let ours = ephemeral.compute_public_key()?;
            let (our_x, our_y) = ours.as_ref().get(1..).and_then(|xy| xy.split_at_checked(32)).ok_or(Unspecified)?;
            let seed = agreement::agree_ephemeral(ephemeral, &point, Unspecified, |shared| {
                Ok(kdfe(shared, b"DUPLICATE", our_x, x))
            })?;
            let mut encrypted = Vec::new();
            for coordinate in [our_x, our_y] {
                push_sized(&mut encrypted, coordinate).map_err(|_too_long| Unspecified)?;
            }
            Ok((seed, encrypted))
        }
    }
}

/// KDFa with HMAC-SHA-256 (TPM 2.0 Part 1, 11.4.10.2), for up to 256 bits: one block.
fn kdfa(key: &[u8], label: &[u8], context: &[u8], bits: u32) -> Zeroizing<Vec<u8>> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let block = [&1_u32.to_be_bytes(), label, &[0], context, &bits.to_be_bytes()].concat();
    let mut derived = Zeroizing::new(hmac::sign(&key, &block).as_ref().to_vec());
    derived.truncate(bits as usize / 8);
    derived
}

/// KDFe with SHA-256 (TPM 2.0 Part 1, 11.4.10.3) for 256 bits: one block.
fn kdfe(shared: &[u8], label: &[u8], ours: &[u8], theirs: &[u8]) -> Zeroizing<Vec<u8>> {
    let block = Zeroizing::new([&1_u32.to_be_bytes(), shared, label, &[0], ours, theirs].concat());
    Zeroizing::new(digest::digest(&digest::SHA256, &block).as_ref().to_vec())
}

fn push_sized(bytes: &mut Vec<u8>, field: &[u8]) -> Result<(), DeviceError> {
    let length = u16::try_from(field.len()).map_err(|error| DeviceError::Unsupported(format!("key size: {error}")))?;
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(field);
    Ok(())
}

/// TPM_ALG_SHA256.
const SHA256_ID: [u8; 2] = 0x000b_u16.to_be_bytes();

/// Room for the prime of an RSA-4096 key: a vector that grows leaves copies of itself behind.
const LARGEST_SENSITIVE: usize = 512;
