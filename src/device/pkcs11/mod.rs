//! A PKCS#11 token (2.40 and newer): one logged-in session a worker, each key's handle found once.
//!
//! The one place that knows the cryptoki crate. Provisioning stands in `provision`, the module and its tokens in `token`.

mod import;
mod init;
mod provision;
mod raw;
mod token;
mod uri;

use std::collections::HashMap;
use std::sync::Arc;

use cryptoki::error::{Error, Rv};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsPssParams};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType as CkKeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use self::token::{Login, Token, classified};
use self::uri::KeyUri;
use super::{Device, DeviceConfig, DeviceError, Opened, Pkcs11Config};
use crate::key::{Algorithm, Digest, Hash, KeyLocator, KeyType, PublicKey, PublicNumbers, Signature};

pub use self::init::init;
pub use self::provision::provision;

/// Opens the token: loads the module, logs in once, and makes one device for each session.
///
/// # Errors
/// [`DeviceError`], classified.
pub fn open(config: &DeviceConfig, pkcs11: &Pkcs11Config) -> Result<Opened, DeviceError> {
    let first = TokenSession::open(config, pkcs11, false)?;
    let more = token::sessions(first.token.info.max_session_count(), pkcs11.sessions) - 1;
    let mut devices: Opened = Vec::with_capacity(more + 1);
    for _ in 0..more {
        // A token may have fewer sessions left than it says. The first one signs in any case.
        match first.token.session(false) {
            Ok(session) => devices.push(Box::new(first.beside(session))),
            Err(error) => {
                tracing::warn!(token = first.token.info.label(), sessions = devices.len() + 1, %error, "the token has no more sessions");
                break;
            }
        }
    }
    devices.push(Box::new(first));
    Ok(devices)
}

/// One session with a token. Logging in is the whole process's: whichever session is the last keeps it logged in.
struct TokenSession {
    token: Arc<Token>,
    session: Session,
    /// For keys with CKA_ALWAYS_AUTHENTICATE.
    login: Login,
    keys: HashMap<KeyLocator, Key>,
    /// Why this session is used no more: an operation may have stayed active in it, a handle may be stale.
    discarded: Option<DeviceError>,
}

/// A private key found in the token.
#[derive(Clone, Copy)]
struct Key {
    handle: ObjectHandle,
    key_type: KeyType,
    always_authenticate: bool,
}

impl TokenSession {
    fn open(config: &DeviceConfig, pkcs11: &Pkcs11Config, read_write: bool) -> Result<Self, DeviceError> {
        let token = Token::find(pkcs11)?;
        let pin = token.pin(config, pkcs11)?;
        let latch_file = config.latch_file.clone();
        let login = Login { pin, latch_file, allow_final_try: pkcs11.allow_final_pin_try };
        let session = token.session(read_write)?;
        login.user(&token, &session)?;
        Ok(Self { token, session, login, keys: HashMap::new(), discarded: None })
    }

    fn beside(&self, session: Session) -> Self {
        Self {
            token: Arc::clone(&self.token),
            session,
            login: self.login.clone(),
            keys: HashMap::new(),
            discarded: None,
        }
    }

    /// Runs calls of the module; after any error that is not the request's own, the session is used no more. What asks it
    /// all the same is told that the device is away, whatever the error was: a fresh process has fresh sessions.
    fn call<T>(&mut self, calls: impl FnOnce(&mut Self) -> Result<T, DeviceError>) -> Result<T, DeviceError> {
        if let Some(error) = &self.discarded {
            return Err(error.clone());
        }
        let outcome = calls(self).map_err(|error| self.login.told_late(error));
        if let Err(error) = &outcome
            && !matches!(error, DeviceError::Unsupported(_) | DeviceError::Permanent(_))
        {
            self.discarded = Some(match error {
                DeviceError::Away(_) | DeviceError::PinRefused(_) => error.clone(),
                other => DeviceError::Away(format!("its session was given up: {other}")),
            });
        }
        outcome
    }

    /// The key of a locator, found once a session.
    fn key(&mut self, locator: &KeyLocator) -> Result<Key, DeviceError> {
        if let Some(key) = self.keys.get(locator) {
            return Ok(*key);
        }
        let handle = self.find(&self.uri(locator)?)?;
        let key = self.describe_key(handle)?;
        self.keys.insert(locator.clone(), key);
        Ok(key)
    }

    fn uri(&self, locator: &KeyLocator) -> Result<KeyUri, DeviceError> {
        let KeyLocator::Pkcs11(text) = locator else {
            return Err(DeviceError::Permanent(
                "the key's locator is no PKCS#11 URI: it belongs to another device".to_owned(),
            ));
        };
        // The text itself is not repeated: somebody may have put a PIN into it.
        let uri: KeyUri = text
            .parse()
            .map_err(|reason| DeviceError::Permanent(format!("the key's PKCS#11 URI is unusable: {reason}")))?;
        let info = &self.token.info;
        let here = uri.token.as_deref().is_none_or(|token| token == info.label())
            && uri.serial.as_deref().is_none_or(|serial| serial == info.serial_number());
        if !here {
            return Err(DeviceError::Permanent(format!("the key {uri} is not of the token {:?}", info.label())));
        }
        Ok(uri)
    }

    fn find(&self, uri: &KeyUri) -> Result<ObjectHandle, DeviceError> {
        let mut template = vec![Attribute::Class(ObjectClass::PRIVATE_KEY)];
        template.extend(uri.object.as_ref().map(|label| Attribute::Label(label.clone().into_bytes())));
        template.extend(uri.id.clone().map(Attribute::Id));
        match self.session.find_objects(&template).map_err(classified)?.as_slice() {
            [handle] => Ok(*handle),
            [] => Err(DeviceError::Permanent(format!("the token {:?} has no key {uri}", self.token.info.label()))),
            several => Err(DeviceError::Permanent(format!("{} keys of the token fit {uri}", several.len()))),
        }
    }

    fn describe_key(&self, handle: ObjectHandle) -> Result<Key, DeviceError> {
        let wanted = [AttributeType::KeyType, AttributeType::AlwaysAuthenticate, AttributeType::EcParams];
        let attributes = self.session.get_attributes(handle, &wanted).map_err(classified)?;
        let always_authenticate = attributes.contains(&Attribute::AlwaysAuthenticate(true));
        let key_type = match key_type(&attributes) {
            Some(CkKeyType::RSA) => KeyType::Rsa,
            // Where a module does not tell the curve of a private key, its public half is asked for it.
            Some(CkKeyType::EC) if ec_params(&attributes).is_none_or(|curve| curve == PRIME256V1) => KeyType::EcP256,
            Some(CkKeyType::EC) => return Err(not_p256()),
            _ => return Err(DeviceError::Unsupported("a key that is neither RSA nor EC".to_owned())),
        };
        Ok(Key { handle, key_type, always_authenticate })
    }

    /// The public half: an RSA private key tells it itself, an EC one has it in the public key object beside it.
    fn read_public_key(&self, key: Key) -> Result<PublicKey, DeviceError> {
        let numbers = match self.public_numbers(key.handle)? {
            Some(numbers) => numbers,
            None => self.public_numbers_beside(key)?,
        };
        PublicKey::from_numbers(&numbers).map_err(|error| DeviceError::Unsupported(error.to_string()))
    }

    fn public_numbers(&self, handle: ObjectHandle) -> Result<Option<PublicNumbers>, DeviceError> {
        use AttributeType::{EcParams, EcPoint, KeyType, Modulus, PublicExponent};
        let read = |wanted: &[AttributeType]| self.session.get_attributes(handle, wanted).map_err(classified);
        // Asked for by kind: some modules fail a whole call for one attribute that the object can't have.
        match key_type(&read(&[KeyType])?) {
            Some(CkKeyType::RSA) => Ok(match read(&[Modulus, PublicExponent])?.as_slice() {
                [Attribute::Modulus(modulus), Attribute::PublicExponent(exponent)] if !exponent.is_empty() => {
                    Some(PublicNumbers::Rsa { modulus: modulus.clone(), exponent: exponent.clone() })
                }
                _ => None,
            }),
            _ => match read(&[EcParams, EcPoint])?.as_slice() {
                [Attribute::EcParams(curve), Attribute::EcPoint(point)] => ec_numbers(curve, point).map(Some),
                _ => Ok(None),
            },
        }
    }

    fn public_numbers_beside(&self, key: Key) -> Result<PublicNumbers, DeviceError> {
        let missing = || DeviceError::Permanent("the token does not tell the public half of the key".to_owned());
        let Some(public) = self.public_objects(key.handle)?.first().copied() else { return Err(missing()) };
        self.public_numbers(public)?.ok_or_else(missing)
    }

    /// The public key objects that go with a private key: of the same kind and CKA_ID, or label where it has no id.
    fn public_objects(&self, private: ObjectHandle) -> Result<Vec<ObjectHandle>, DeviceError> {
        let wanted = [AttributeType::KeyType, AttributeType::Id, AttributeType::Label];
        let mut template = vec![Attribute::Class(ObjectClass::PUBLIC_KEY)];
        let mut named = false;
        for attribute in self.session.get_attributes(private, &wanted).map_err(classified)? {
            let take = match &attribute {
                Attribute::KeyType(_) => true,
                Attribute::Id(name) | Attribute::Label(name) => !named && !name.is_empty(),
                _ => false,
            };
            named |= take && !matches!(attribute, Attribute::KeyType(_));
            template.extend(take.then_some(attribute));
        }
        if !named {
            return Ok(Vec::new());
        }
        self.session.find_objects(&template).map_err(classified)
    }

    fn sign_digest(&self, key: Key, algorithm: Algorithm, digest: &Digest) -> Result<Vec<u8>, DeviceError> {
        if key.key_type != algorithm.key_type() || digest.hash() != algorithm.hash() {
            return Err(DeviceError::Unsupported(format!("{algorithm} by this key or of this digest")));
        }
        let mechanism = mechanism(algorithm);
        self.require(mechanism.mechanism_type())?;
        self.session.sign_init(&mechanism, key.handle).map_err(classified)?;
        if key.always_authenticate {
            self.login.context(&self.token, &self.session)?;
        }
        self.token.module.c_sign.call(self.session.handle(), &to_be_signed(algorithm, digest)).map_err(|rv| match rv {
            Rv::Error(error) => classified(Error::Pkcs11(error, cryptoki::context::Function::Sign)),
            Rv::Ok => DeviceError::Away("C_Sign".to_owned()),
        })
    }

    fn require(&self, mechanism: MechanismType) -> Result<(), DeviceError> {
        if self.token.mechanisms.contains(&mechanism) {
            return Ok(());
        }
        Err(DeviceError::Unsupported(format!("the token {:?} has no {mechanism}", self.token.info.label())))
    }
}

impl Device for TokenSession {
    fn public_key(&mut self, key: &KeyLocator) -> Result<PublicKey, DeviceError> {
        self.call(|token| {
            let key = token.key(key)?;
            token.read_public_key(key)
        })
    }

    fn sign(&mut self, key: &KeyLocator, algorithm: Algorithm, digest: &Digest) -> Result<Signature, DeviceError> {
        self.call(|token| {
            let key = token.key(key)?;
            token.sign_digest(key, algorithm, digest).map(Signature::from_bytes)
        })
    }
}

fn mechanism(algorithm: Algorithm) -> Mechanism<'static> {
    match algorithm {
        Algorithm::Rs256 | Algorithm::Rs384 | Algorithm::Rs512 => Mechanism::RsaPkcs,
        Algorithm::Ps256 => Mechanism::RsaPkcsPss(PkcsPssParams {
            hash_alg: MechanismType::SHA256,
            mgf: PkcsMgfType::MGF1_SHA256,
            s_len: 32.into(),
        }),
        Algorithm::Es256 => Mechanism::Ecdsa,
    }
}

/// CKM_RSA_PKCS pads and signs what it is given, so the DigestInfo is ours (RFC 8017, 9.2, step 2); the others take the digest.
fn to_be_signed(algorithm: Algorithm, digest: &Digest) -> Vec<u8> {
    let prefix: &[u8] = match (algorithm, digest.hash()) {
        (Algorithm::Ps256 | Algorithm::Es256, _) => &[],
        (_, Hash::Sha256) => b"\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20",
        (_, Hash::Sha384) => b"\x30\x41\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\x04\x30",
        (_, Hash::Sha512) => b"\x30\x51\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03\x05\x00\x04\x40",
    };
    [prefix, digest.as_bytes()].concat()
}

fn key_type(attributes: &[Attribute]) -> Option<CkKeyType> {
    attributes.iter().find_map(|attribute| match attribute {
        Attribute::KeyType(key_type) => Some(*key_type),
        _ => None,
    })
}

fn ec_params(attributes: &[Attribute]) -> Option<&[u8]> {
    attributes.iter().find_map(|attribute| match attribute {
        Attribute::EcParams(curve) if !curve.is_empty() => Some(curve.as_slice()),
        _ => None,
    })
}

fn ec_numbers(curve: &[u8], point: &[u8]) -> Result<PublicNumbers, DeviceError> {
    // CKA_EC_POINT is the DER OCTET STRING of the point; some modules leave the wrapping away.
    let point = point.strip_prefix(b"\x04\x41").filter(|rest| rest.len() == 65).unwrap_or(point);
    match point {
        [0x04, rest @ ..] if curve == PRIME256V1 && rest.len() == 64 => {
            let (x, y) = rest.split_at(32);
            let coordinate = |bytes: &[u8]| bytes.try_into().map_err(|_length| not_p256());
            Ok(PublicNumbers::EcP256 { x: coordinate(x)?, y: coordinate(y)? })
        }
        _ => Err(not_p256()),
    }
}

fn not_p256() -> DeviceError {
    DeviceError::Unsupported("an EC key that is not on P-256".to_owned())
}

/// The DER object identifier of P-256, as CKA_EC_PARAMS wants it.
const PRIME256V1: &[u8] = b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
