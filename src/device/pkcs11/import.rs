//! How a private key that exists outside gets into the token.

use aws_lc_rs::error::Unspecified;
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrapPadded as _};
use aws_lc_rs::rsa::{OAEP_SHA1_MGF1SHA1, OaepPublicEncryptingKey, PublicEncryptingKey};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, KeyType as CkKeyType, ObjectClass, ObjectHandle};
use zeroize::{Zeroize as _, Zeroizing};

use super::provision::{KeyName, signing_only};
use super::token::classified;
use super::{PRIME256V1, TokenSession};
use crate::device::{DeviceError, PrivateKey};
use crate::key::{PublicKey, PublicNumbers};

impl TokenSession {
    pub(super) fn create(&self, mut template: Vec<Attribute>) -> Result<ObjectHandle, DeviceError> {
        let handle = self.session.create_object(&template).map_err(classified);
        wipe(&mut template);
        handle
    }

    /// Imports without the key being seen between here and the token: it travels under an AES key (RFC 5649), and that under
    /// an RSA key which the token makes for this session only (OAEP with SHA-1, which every token has; its security does not
    /// rest on collisions). In one step this is CKM_RSA_AES_KEY_WRAP.
    pub(super) fn unwrap(&self, key: &PrivateKey, name: &KeyName) -> Result<ObjectHandle, DeviceError> {
        for mechanism in
            [MechanismType::RSA_PKCS_KEY_PAIR_GEN, MechanismType::RSA_PKCS_OAEP, MechanismType::AES_KEY_WRAP_PAD]
        {
            self.require(mechanism)?;
        }
        let session_only = Attribute::Token(false);
        let public =
            [session_only.clone(), Attribute::ModulusBits(2048.into()), Attribute::PublicExponent(vec![1, 0, 1])];
        let private =
            [session_only.clone(), Attribute::Sensitive(true), Attribute::Extractable(false), Attribute::Unwrap(true)];
        let pair = Mechanism::RsaPkcsKeyPairGen;
        let (public, private) = self.session.generate_key_pair(&pair, &public, &private).map_err(classified)?;
        let imported = self.unwrap_with(key, name, public, private);
        self.destroy(&[public, private]);
        imported
    }

    fn unwrap_with(
        &self,
        key: &PrivateKey,
        name: &KeyName,
        public: ObjectHandle,
        private: ObjectHandle,
    ) -> Result<ObjectHandle, DeviceError> {
        let Some(numbers @ PublicNumbers::Rsa { .. }) = self.public_numbers(public)? else {
            return Err(DeviceError::Unsupported("a wrapping key of the session".to_owned()));
        };
        let (wrapped_key, wrapped_kek) = wrap(key, &numbers).map_err(|_unspecified| {
            DeviceError::Unsupported("wrapping this key with AES-256 and RSA-OAEP".to_owned())
        })?;
        let oaep = PkcsOaepParams::new(MechanismType::SHA1, PkcsMgfType::MGF1_SHA1, PkcsOaepSource::empty());
        let kek = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(CkKeyType::AES),
            Attribute::Token(false),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Unwrap(true),
        ];
        let kek =
            self.session.unwrap_key(&Mechanism::RsaPkcsOaep(oaep), private, &wrapped_kek, &kek).map_err(classified)?;
        let template = [private_class(key), name.attributes(), signing_only()].concat();
        let imported =
            self.session.unwrap_key(&Mechanism::AesKeyWrapPad, kek, &wrapped_key, &template).map_err(classified);
        self.destroy(&[kek]);
        imported
    }
}

fn private_class(key: &PrivateKey) -> Vec<Attribute> {
    let key_type = match key {
        PrivateKey::Rsa { .. } => CkKeyType::RSA,
        PrivateKey::EcP256 { .. } => CkKeyType::EC,
    };
    vec![Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::KeyType(key_type)]
}

pub(super) fn private_template(key: &PrivateKey, name: &KeyName) -> Vec<Attribute> {
    let numbers = match key {
        PrivateKey::Rsa {
            modulus,
            public_exponent,
            private_exponent,
            prime1,
            prime2,
            exponent1,
            exponent2,
            coefficient,
            ..
        } => vec![
            Attribute::Modulus(modulus.clone()),
            Attribute::PublicExponent(public_exponent.clone()),
            Attribute::PrivateExponent(private_exponent.to_vec()),
            Attribute::Prime1(prime1.to_vec()),
            Attribute::Prime2(prime2.to_vec()),
            Attribute::Exponent1(exponent1.to_vec()),
            Attribute::Exponent2(exponent2.to_vec()),
            Attribute::Coefficient(coefficient.to_vec()),
        ],
        PrivateKey::EcP256 { scalar, .. } => {
            vec![Attribute::EcParams(PRIME256V1.to_vec()), Attribute::Value(scalar.to_vec())]
        }
    };
    let mut template = [private_class(key), name.attributes(), signing_only()].concat();
    // Moved, not cloned: `wipe` must see the only copy.
    template.extend(numbers);
    template
}

pub(super) fn public_template(key: &PrivateKey, name: &KeyName) -> Vec<Attribute> {
    let (key_type, numbers) = match key {
        PrivateKey::Rsa { modulus, public_exponent, .. } => (
            CkKeyType::RSA,
            vec![Attribute::Modulus(modulus.clone()), Attribute::PublicExponent(public_exponent.clone())],
        ),
        PrivateKey::EcP256 { x, y, .. } => {
            let point = [b"\x04\x41\x04", x.as_slice(), y.as_slice()].concat();
            (CkKeyType::EC, vec![Attribute::EcParams(PRIME256V1.to_vec()), Attribute::EcPoint(point)])
        }
    };
    let object = vec![Attribute::Class(ObjectClass::PUBLIC_KEY), Attribute::KeyType(key_type), Attribute::Token(true)];
    [object, name.attributes(), numbers].concat()
}

/// The PKCS#8 key under a fresh AES key, and that under the token's RSA key.
fn wrap(key: &PrivateKey, token: &PublicNumbers) -> Result<(Vec<u8>, Vec<u8>), Unspecified> {
    let (PrivateKey::Rsa { pkcs8, .. } | PrivateKey::EcP256 { pkcs8, .. }) = key;
    let mut kek = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(kek.as_mut_slice())?;
    let mut wrapped_key = vec![0; pkcs8.len() + 15];
    let length = AesKek::new(&AES_256, kek.as_slice())?.wrap_with_padding(pkcs8, &mut wrapped_key)?.len();
    wrapped_key.truncate(length);

    let token = PublicKey::from_numbers(token).map_err(|_invalid| Unspecified)?;
    let token = OaepPublicEncryptingKey::new(PublicEncryptingKey::from_der(token.spki())?)?;
    let mut wrapped_kek = vec![0; token.ciphertext_size()];
    let length = token.encrypt(&OAEP_SHA1_MGF1SHA1, kek.as_slice(), &mut wrapped_kek, None)?.len();
    wrapped_kek.truncate(length);
    Ok((wrapped_key, wrapped_kek))
}

/// The cryptoki crate does not clear its attributes.
fn wipe(template: &mut [Attribute]) {
    use Attribute::{Coefficient, Exponent1, Exponent2, Prime1, Prime2, PrivateExponent, Value};
    for attribute in template {
        if let PrivateExponent(secret)
        | Prime1(secret)
        | Prime2(secret)
        | Exponent1(secret)
        | Exponent2(secret)
        | Coefficient(secret)
        | Value(secret) = attribute
        {
            secret.zeroize();
        }
    }
}
