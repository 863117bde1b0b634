//! Making, importing, listing and deleting keys: what only signetctl does.

use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::slot::Limit;

use super::import::{private_template, public_template};
use super::token::classified;
use super::uri::KeyUri;
use super::{PRIME256V1, TokenSession};
use crate::device::{
    CreatedKey, Description, DeviceConfig, DeviceError, ListedKey, NewKey, Pkcs11Config, PrivateKey, Provision,
};
use crate::key::{KeyLocator, KeyType};

/// Opens the token for provisioning: one session, which may write.
///
/// # Errors
/// [`DeviceError`], classified.
pub fn provision(config: &DeviceConfig, pkcs11: &Pkcs11Config) -> Result<Box<dyn Provision>, DeviceError> {
    Ok(Box::new(TokenSession::open(config, pkcs11, true)?))
}

impl Provision for TokenSession {
    fn generate(&mut self, key: &NewKey) -> Result<CreatedKey, DeviceError> {
        self.call(|token| {
            let name = KeyName::new(&key.label)?;
            let (mechanism, kind) = match key.algorithm.key_type() {
                KeyType::Rsa => (
                    Mechanism::RsaPkcsKeyPairGen,
                    vec![Attribute::ModulusBits(u64::from(key.bits).into()), Attribute::PublicExponent(vec![1, 0, 1])],
                ),
                KeyType::EcP256 => (Mechanism::EccKeyPairGen, vec![Attribute::EcParams(PRIME256V1.to_vec())]),
            };
            token.require_size(mechanism.mechanism_type(), key)?;
            let public = [name.attributes(), vec![Attribute::Token(true)], kind].concat();
            let private = [name.attributes(), signing_only()].concat();
            let (public, private) =
                token.session.generate_key_pair(&mechanism, &public, &private).map_err(classified)?;
            token.finish(name, &[private, public])
        })
    }

    fn import(&mut self, key: &PrivateKey, label: &str) -> Result<CreatedKey, DeviceError> {
        self.call(|token| {
            let name = KeyName::new(label)?;
            let private = match token.unwrap(key, &name) {
                Ok(handle) => handle,
                // Tokens differ in what they let be unwrapped, and how they say so.
                Err(reason) => {
                    tracing::debug!(%reason, "not imported by C_UnwrapKey");
                    token.create(private_template(key, &name))?
                }
            };
            let public = token.create(public_template(key, &name)).inspect_err(|_error| token.destroy(&[private]))?;
            token.finish(name, &[private, public])
        })
    }

    fn list(&mut self) -> Result<Vec<ListedKey>, DeviceError> {
        self.call(|token| {
            let template = [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Sign(true)];
            let handles = token.session.find_objects(&template).map_err(classified)?;
            handles.into_iter().map(|handle| token.listed(handle)).collect()
        })
    }

    fn delete(&mut self, key: &KeyLocator) -> Result<(), DeviceError> {
        self.call(|token| {
            let private = token.find(&token.uri(key)?)?;
            let public = token.public_objects(private)?;
            token.keys.clear();
            token.session.destroy_object(private).map_err(classified)?;
            for object in public {
                // Some tokens delete the pair together.
                if let Err(error) = token.session.destroy_object(object) {
                    tracing::debug!(%error, "the public key object was not deleted");
                }
            }
            Ok(())
        })
    }

    fn describe(&mut self) -> Result<Description, DeviceError> {
        self.call(|token| token.description())
    }
}

impl TokenSession {
    /// Reads a new key back, makes sure that the token keeps it as it was told to, and destroys it otherwise.
    fn finish(&self, name: KeyName, objects: &[ObjectHandle]) -> Result<CreatedKey, DeviceError> {
        self.created(name, objects).inspect_err(|_error| self.destroy(objects))
    }

    fn created(&self, name: KeyName, objects: &[ObjectHandle]) -> Result<CreatedKey, DeviceError> {
        let Some(private) = objects.first() else {
            return Err(DeviceError::Permanent("the token made no key".to_owned()));
        };
        let kept = self
            .session
            .get_attributes(*private, &[AttributeType::Sensitive, AttributeType::Extractable])
            .map_err(classified)?;
        if kept != [Attribute::Sensitive(true), Attribute::Extractable(false)] {
            return Err(DeviceError::Unsupported("a key that can't be read: the token would let it out".to_owned()));
        }
        let public_key = self.read_public_key(self.describe_key(*private)?)?;
        Ok(CreatedKey { locator: self.locator(Some(name.label), Some(name.id)), public_key, tss2: None })
    }

    fn locator(&self, object: Option<String>, id: Option<Vec<u8>>) -> KeyLocator {
        let token = Some(self.token.info.label().to_owned());
        KeyLocator::Pkcs11(KeyUri { token, serial: None, object, id }.to_string())
    }

    pub(super) fn destroy(&self, objects: &[ObjectHandle]) {
        for object in objects {
            if let Err(error) = self.session.destroy_object(*object) {
                tracing::warn!(%error, token = self.token.info.label(), "an object of an unfinished key stays in the token");
            }
        }
    }

    fn require_size(&self, mechanism: MechanismType, key: &NewKey) -> Result<(), DeviceError> {
        self.require(mechanism)?;
        let info = self.token.module.client.get_mechanism_info(self.token.slot, mechanism).map_err(classified)?;
        let (smallest, largest) = (info.min_key_size(), info.max_key_size());
        let fits = usize::try_from(key.bits).is_ok_and(|bits| (smallest..=largest).contains(&bits));
        if key.algorithm.key_type() == KeyType::Rsa && !fits {
            return Err(DeviceError::Unsupported(format!(
                "RSA of {} bits; the token makes {smallest} to {largest}",
                key.bits
            )));
        }
        Ok(())
    }

    fn listed(&self, handle: ObjectHandle) -> Result<ListedKey, DeviceError> {
        let (mut label, mut id) = (None, None);
        let wanted = [AttributeType::Label, AttributeType::Id];
        for attribute in self.session.get_attributes(handle, &wanted).map_err(classified)? {
            match attribute {
                Attribute::Label(bytes) if !bytes.is_empty() => label = String::from_utf8(bytes).ok(),
                Attribute::Id(bytes) if !bytes.is_empty() => id = Some(bytes),
                _ => {}
            }
        }
        let public_key = self.describe_key(handle).and_then(|key| self.read_public_key(key)).ok();
        let locator = self.locator(label.clone(), id);
        Ok(ListedKey { locator, label: label.unwrap_or_default(), public_key })
    }

    fn description(&self) -> Result<Description, DeviceError> {
        let info = &self.token.info;
        let limit = match info.max_session_count() {
            Limit::Max(limit) => limit.to_string(),
            Limit::Infinite => "unlimited".to_owned(),
            Limit::Unavailable => "unknown".to_owned(),
        };
        let flags = [
            (info.login_required(), "required"),
            (info.protected_authentication_path(), "keypad"),
            (info.user_pin_count_low(), "count low"),
            (info.user_pin_final_try(), "final try"),
            (info.user_pin_locked(), "locked"),
            (info.user_pin_to_be_changed(), "to be changed"),
        ];
        let flags: Vec<_> = flags.into_iter().filter_map(|(set, name)| set.then_some(name)).collect();
        let mut lines = vec![
            ("token".to_owned(), info.label().to_owned()),
            ("serial".to_owned(), info.serial_number().to_owned()),
            ("manufacturer".to_owned(), info.manufacturer_id().to_owned()),
            ("model".to_owned(), info.model().to_owned()),
            ("firmware".to_owned(), info.firmware_version().to_string()),
            ("module".to_owned(), self.token.module.path.display().to_string()),
            ("slot".to_owned(), self.token.slot.id().to_string()),
            ("sessions".to_owned(), limit),
            ("pin".to_owned(), if flags.is_empty() { "none".to_owned() } else { flags.join(", ") }),
        ];
        for mechanism in USED {
            let client = &self.token.module.client;
            let value = match client.get_mechanism_info(self.token.slot, *mechanism) {
                Ok(info) if self.token.mechanisms.contains(mechanism) => {
                    format!("{} to {} bits", info.min_key_size(), info.max_key_size())
                }
                _ => "no".to_owned(),
            };
            lines.push((mechanism.to_string(), value));
        }
        Ok(Description(lines))
    }
}

/// What a key is called in the token.
pub(super) struct KeyName {
    label: String,
    id: Vec<u8>,
}

impl KeyName {
    fn new(label: &str) -> Result<Self, DeviceError> {
        let mut id = vec![0; 16];
        aws_lc_rs::rand::fill(&mut id).map_err(|_unspecified| DeviceError::Transient("no random bytes".to_owned()))?;
        Ok(Self { label: label.to_owned(), id })
    }

    pub(super) fn attributes(&self) -> Vec<Attribute> {
        vec![Attribute::Label(self.label.clone().into_bytes()), Attribute::Id(self.id.clone())]
    }
}

/// What every private key of Signet's is and is not. VERIFY and ENCRYPT of the public half are left to the token, for one
/// widely used module refuses a template that names them.
pub(super) fn signing_only() -> Vec<Attribute> {
    vec![
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
        Attribute::Decrypt(false),
        Attribute::Unwrap(false),
    ]
}

/// The mechanisms that Signet uses, in the order to show them.
const USED: &[MechanismType] = &[
    MechanismType::RSA_PKCS,
    MechanismType::RSA_PKCS_PSS,
    MechanismType::ECDSA,
    MechanismType::RSA_PKCS_KEY_PAIR_GEN,
    MechanismType::ECC_KEY_PAIR_GEN,
    MechanismType::RSA_PKCS_OAEP,
    MechanismType::AES_KEY_WRAP_PAD,
];
