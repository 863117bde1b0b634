//! Public areas: the templates of what is made, and what may be used of what is found.

use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::structures::{
    EccPoint, EccScheme, HashScheme, KeyDerivationFunctionScheme, Public, PublicBuilder, PublicEccParameters,
    PublicKeyRsa, PublicRsaParameters, RsaExponent, RsaScheme, SignatureScheme, SymmetricDefinitionObject,
};

use super::classified;
use crate::device::DeviceError;
use crate::key::{Algorithm, KeyType, PublicKey, PublicNumbers};

/// Where a signing key comes from: the TPM made it, or it was made outside and so exists outside.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Generated,
    Imported,
}

/// The storage primary of the TCG template, P-256. With noDA: else every power cut counts as a failed try.
pub(super) fn storage_parent() -> Result<Public, DeviceError> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_restricted(true)
        .with_decrypt(true);
    let ecc = PublicEccParameters::new(
        SymmetricDefinitionObject::AES_128_CFB,
        EccScheme::Null,
        EccCurve::NistP256,
        KeyDerivationFunctionScheme::Null,
    );
    built(
        PublicBuilder::new()
            .with_public_algorithm(PublicAlgorithm::Ecc)
            .with_ecc_parameters(ecc)
            .with_ecc_unique_identifier(EccPoint::default()),
        attributes,
    )
}

/// A signing RSA key. Not restricted: a restricted key refuses digests that the TPM did not hash. No scheme of its own:
/// each signature names one. An exponent of 65537 is written as 0.
pub(super) fn signing_rsa(
    origin: Origin,
    bits: RsaKeyBits,
    exponent: u32,
    modulus: &[u8],
) -> Result<Public, DeviceError> {
    let exponent =
        RsaExponent::create(if exponent == 65537 { 0 } else { exponent }).map_err(classified("RSA exponent"))?;
    let parameters = PublicRsaParameters::new(SymmetricDefinitionObject::Null, RsaScheme::Null, bits, exponent);
    built(
        PublicBuilder::new()
            .with_public_algorithm(PublicAlgorithm::Rsa)
            .with_rsa_parameters(parameters)
            .with_rsa_unique_identifier(PublicKeyRsa::try_from(modulus).map_err(classified("RSA modulus"))?),
        signing_attributes(origin),
    )
}

/// A signing key on P-256.
pub(super) fn signing_ec(origin: Origin, point: EccPoint) -> Result<Public, DeviceError> {
    let parameters = PublicEccParameters::new(
        SymmetricDefinitionObject::Null,
        EccScheme::Null,
        EccCurve::NistP256,
        KeyDerivationFunctionScheme::Null,
    );
    built(
        PublicBuilder::new()
            .with_public_algorithm(PublicAlgorithm::Ecc)
            .with_ecc_parameters(parameters)
            .with_ecc_unique_identifier(point),
        signing_attributes(origin),
    )
}

fn signing_attributes(origin: Origin) -> ObjectAttributesBuilder {
    let inside = origin == Origin::Generated;
    ObjectAttributesBuilder::new()
        .with_fixed_tpm(inside)
        .with_fixed_parent(inside)
        .with_sensitive_data_origin(inside)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_sign_encrypt(true)
}

fn built(builder: PublicBuilder, attributes: ObjectAttributesBuilder) -> Result<Public, DeviceError> {
    let attributes = attributes.build().map_err(classified("key attributes"))?;
    builder
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .build()
        .map_err(classified("key template"))
}

/// Says why a key can't be the parent of ours, if it can't.
pub(super) fn refuse_as_parent(public: &Public) -> Result<(), &'static str> {
    let attributes = public.object_attributes();
    if !(attributes.restricted() && attributes.decrypt()) || attributes.sign_encrypt() {
        return Err("it is not a storage key");
    }
    if !attributes.no_da() {
        return Err("it lacks noDA, so every power cut would count towards the TPM's lock-out");
    }
    if !(attributes.fixed_tpm() && attributes.fixed_parent()) {
        return Err("it is not fixed to this TPM, so it may exist elsewhere");
    }
    if public.name_hashing_algorithm() != HashingAlgorithm::Sha256 {
        return Err("its name is not made with SHA-256");
    }
    if public.symmetric_algorithm() != Some(SymmetricDefinitionObject::AES_128_CFB) {
        return Err("it does not protect its children with AES-128-CFB");
    }
    match public_key(public) {
        Ok(_) => Ok(()),
        Err(_) => Err("it is neither RSA of 2048 bits or more nor on P-256"),
    }
}

/// Refuses what can't sign the digests that we hand it.
pub(super) fn refuse_as_signer(public: &Public) -> Result<(), DeviceError> {
    let attributes = public.object_attributes();
    if !attributes.sign_encrypt() {
        return Err(DeviceError::Unsupported("this key can't sign".to_owned()));
    }
    if attributes.restricted() {
        return Err(DeviceError::Unsupported(
            "this key is restricted: it signs only what the TPM itself has hashed".to_owned(),
        ));
    }
    if !attributes.user_with_auth() {
        return Err(DeviceError::Unsupported("this key needs a policy, which Signet can't fulfil".to_owned()));
    }
    public_key(public).map(|_key| ())
}

/// The public half as a key.
pub(super) fn public_key(public: &Public) -> Result<PublicKey, DeviceError> {
    let unsupported = |what: &dyn std::fmt::Display| DeviceError::Unsupported(format!("this key: {what}"));
    let numbers = match public {
        Public::Rsa { parameters, unique, .. } => {
            let exponent = match parameters.exponent().value() {
                0 => 65537,
                exponent => exponent,
            };
            PublicNumbers::Rsa { modulus: unique.value().to_vec(), exponent: exponent.to_be_bytes().to_vec() }
        }
        Public::Ecc { parameters, unique, .. } if parameters.ecc_curve() == EccCurve::NistP256 => {
            PublicNumbers::EcP256 { x: coordinate(unique.x().value())?, y: coordinate(unique.y().value())? }
        }
        _ => return Err(unsupported(&"it is neither RSA nor on P-256")),
    };
    PublicKey::from_numbers(&numbers).map_err(|invalid| unsupported(&invalid))
}

/// The scheme to sign with, where the key allows it.
pub(super) fn signature_scheme(public: &Public, algorithm: Algorithm) -> Result<SignatureScheme, DeviceError> {
    let scheme = match algorithm {
        Algorithm::Rs256 => SignatureScheme::RsaSsa { hash_scheme: HashScheme::new(HashingAlgorithm::Sha256) },
        Algorithm::Rs384 => SignatureScheme::RsaSsa { hash_scheme: HashScheme::new(HashingAlgorithm::Sha384) },
        Algorithm::Rs512 => SignatureScheme::RsaSsa { hash_scheme: HashScheme::new(HashingAlgorithm::Sha512) },
        Algorithm::Ps256 => SignatureScheme::RsaPss { hash_scheme: HashScheme::new(HashingAlgorithm::Sha256) },
        Algorithm::Es256 => SignatureScheme::EcDsa { hash_scheme: HashScheme::new(HashingAlgorithm::Sha256) },
    };
    let (key_type, own) = match public {
        Public::Rsa { parameters, .. } => (
            KeyType::Rsa,
            match parameters.rsa_scheme() {
                RsaScheme::Null => None,
                RsaScheme::RsaSsa(hash_scheme) => Some(SignatureScheme::RsaSsa { hash_scheme }),
                RsaScheme::RsaPss(hash_scheme) => Some(SignatureScheme::RsaPss { hash_scheme }),
                RsaScheme::RsaEs | RsaScheme::Oaep(_) => Some(SignatureScheme::Null),
            },
        ),
        Public::Ecc { parameters, .. } => (
            KeyType::EcP256,
            match parameters.ecc_scheme() {
                EccScheme::Null => None,
                EccScheme::EcDsa(hash_scheme) => Some(SignatureScheme::EcDsa { hash_scheme }),
                _ => Some(SignatureScheme::Null),
            },
        ),
        _ => return Err(DeviceError::Unsupported("this key can't sign".to_owned())),
    };
    if key_type != algorithm.key_type() || own.is_some_and(|own| own != scheme) {
        return Err(DeviceError::Unsupported(format!("this key can't sign {algorithm}")));
    }
    Ok(scheme)
}

/// A TPM may drop leading zeros of a coordinate, and of r and s; JWS wants 32 bytes each (RFC 7518, 3.4).
pub(super) fn coordinate(number: &[u8]) -> Result<[u8; 32], DeviceError> {
    let mut padded = [0; 32];
    let start = padded.len().checked_sub(number.len());
    let tail = start.and_then(|start| padded.get_mut(start..));
    tail.ok_or_else(|| DeviceError::Integrity("a number of over 256 bits for P-256".to_owned()))?
        .copy_from_slice(number);
    Ok(padded)
}
