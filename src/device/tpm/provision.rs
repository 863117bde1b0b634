//! What only signetctl does with the keys of a TPM: generate, import, adopt, list and delete them.

use tss_esapi::constants::tss;
use tss_esapi::handles::{ObjectHandle, TpmHandle};
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::structures::{
    Auth, Data, EccParameter, EccPoint, EncryptedSecret, Private, Public, SymmetricDefinitionObject,
};
use tss_esapi::traits::Marshall as _;

use super::connection::{Connection, auth_value, handles, parent_error, persistent};
use super::describe::{describe, rsa_supported};
use super::duplicate::{self, Sensitive};
use super::parent::{PARENT, authorise_owner, evict};
use super::public::{self, Origin};
use super::{Renewal, TpmDevice, classified};
use crate::device::tss2::Tss2Key;
use crate::device::{
    CreatedKey, Description, Device, DeviceConfig, DeviceError, ListedKey, NewKey, PrivateKey, Provision, TpmConfig,
    TpmSession,
};
use crate::key::{Algorithm, Digest, KeyLocator, KeyType, PublicKey, Signature};

/// Opens the TPM for provisioning. With `persistent`, new keys are also made persistent and located by their handle.
///
/// # Errors
/// [`DeviceError`], classified.
pub fn provision(config: &DeviceConfig, tpm: &TpmConfig, persistent: bool) -> Result<Box<dyn Provision>, DeviceError> {
    Ok(Box::new(TpmProvision::open(config, tpm, persistent)?))
}

/// Takes a key that another tool made under this TPM's parent, as a TSS2 PRIVATE KEY file, after it has signed once. Where
/// it has no auth value, what is kept of it gets that of the pin_file. Returns the TPM as well, to undo it.
///
/// # Errors
/// [`DeviceError`]; `Permanent` where it does not load here, `Unsupported` where it is of another kind.
pub fn adopt(
    config: &DeviceConfig,
    tpm: &TpmConfig,
    persistent: bool,
    pem: &str,
) -> Result<(Box<dyn Provision>, CreatedKey), DeviceError> {
    let mut provision = TpmProvision::open(config, tpm, persistent)?;
    let key = Tss2Key::from_pem(pem).map_err(|invalid| DeviceError::Unsupported(invalid.to_string()))?;
    let named = key.parent;
    let (private, public) = provision.with_device_auth(key).map_err(|error| match error {
        DeviceError::Permanent(why) if ![TEMPLATE_PARENT, PARENT].contains(&named) => DeviceError::Permanent(format!(
            "{why}; or it belongs under the parent {named:#x} that its file names, and not under {PARENT:#x} as Signet's keys do"
        )),
        other => other,
    })?;
    let created = provision.keep(private, public)?;
    Ok((Box::new(provision), created))
}

/// The TPM with what provisioning needs besides.
struct TpmProvision {
    device: TpmDevice,
    persistent: bool,
}

impl TpmProvision {
    /// Sessions are protected here whatever the configuration says: auth values are set and private keys imported.
    fn open(config: &DeviceConfig, tpm: &TpmConfig, persistent: bool) -> Result<Self, DeviceError> {
        let device = TpmDevice::open(config, tpm, TpmSession::Protected, Renewal::default())?;
        Ok(Self { device, persistent })
    }

    fn connection(&mut self) -> Result<&mut Connection, DeviceError> {
        self.device.connected()
    }

    /// Loads a foreign key, and gives it the device's auth value where it has none.
    fn with_device_auth(&mut self, key: Tss2Key) -> Result<(Private, Public), DeviceError> {
        let auth = auth_value(self.device.pin.as_ref())?;
        let connection = self.connection()?;
        let (handle, public) = connection.load_tss2(&key)?;
        let object = ObjectHandle::from(handle);
        let changed = give_auth(connection, object, &key, &public, auth);
        let _ = connection.context.flush_context(object);
        let private = match changed? {
            Some(private) => private,
            None => Private::try_from(key.private).map_err(classified("reading the key file"))?,
        };
        Ok((private, public))
    }

    /// Records a key that loads: makes it persistent where that is asked for, and proves it by a signature.
    fn keep(&mut self, private: Private, public: Public) -> Result<CreatedKey, DeviceError> {
        let key = Tss2Key {
            empty_auth: self.device.pin.is_none(),
            parent: self.device.tpm.parent.as_ref().map_or(PARENT, |parent| parent.handle),
            public: public.marshall().map_err(classified("writing the key file"))?,
            private: private.value().to_vec(),
        };
        let pem = key.to_pem().map_err(|invalid| DeviceError::Unsupported(invalid.to_string()))?;
        let file = KeyLocator::Tss2(pem.clone());
        let public_key = self.public_key(&file)?;
        self.prove(&file, &public_key)?;
        let locator = if self.persistent { KeyLocator::Handle(self.make_persistent(&key)?) } else { file };
        Ok(CreatedKey { locator, public_key, tss2: Some(pem) })
    }

    fn prove(&mut self, key: &KeyLocator, public_key: &PublicKey) -> Result<(), DeviceError> {
        let algorithm = public_key.key_type().default_algorithm();
        let digest = Digest::of(algorithm.hash(), b"Signet proves a new key");
        // Not through the device: a foreign key with another auth value must not close the latch for all others.
        let signature = self.connection()?.sign(key, algorithm, &digest).map_err(|error| match error {
            DeviceError::PinRefused(detail) => {
                DeviceError::Unsupported(format!("this key's auth value is not that of pin_file: {detail}"))
            }
            other => other,
        })?;
        public_key.verify(algorithm, &digest, &signature).map_err(|bad| DeviceError::Integrity(bad.to_string()))
    }

    fn make_persistent(&mut self, key: &Tss2Key) -> Result<u32, DeviceError> {
        let tpm = self.device.tpm.clone();
        let connection = self.connection()?;
        authorise_owner(&mut connection.context, &tpm)?;
        let taken: Vec<u32> = handles(&mut connection.context, KEYS.0)?.into_iter().map(u32::from).collect();
        let free = (KEYS.0..=KEYS.1)
            .find(|handle| !taken.contains(handle))
            .ok_or_else(|| DeviceError::Unsupported("a TPM without a free persistent handle".to_owned()))?;
        let (transient, _) = connection.load_tss2(key)?;
        let evicted = evict(&mut connection.context, Some(connection.session), transient.into(), free);
        let _ = connection.context.flush_context(transient.into());
        evicted.map(|_object| free)
    }

    fn create(&mut self, template: Public) -> Result<(Private, Public), DeviceError> {
        let auth = auth_value(self.device.pin.as_ref())?;
        let connection = self.connection()?;
        let (session, parent) = (Some(connection.session), connection.parent);
        let made = connection.with_room(|context| {
            let (template, auth) = (template.clone(), auth.clone());
            context
                .execute_with_session(session, |context| context.create(parent, template, Some(auth), None, None, None))
        });
        made.map(|made| (made.out_private, made.out_public)).map_err(|error| parent_error("generating a key", error))
    }

    fn wrap_and_import(&mut self, kind: u16, public: Public, secret: &[u8]) -> Result<(Private, Public), DeviceError> {
        let auth = auth_value(self.device.pin.as_ref())?;
        let connection = self.connection()?;
        let (session, parent) = (Some(connection.session), connection.parent);
        let parent_public = pinned_public(connection)?;
        let area = public.marshall().map_err(classified("describing the key"))?;
        let sensitive = Sensitive { kind, auth: auth.value(), secret };
        let duplicate = duplicate::wrap(&sensitive, &area, &parent_public)?;
        let wrapped = classified("wrapping the key");
        let private = Private::try_from(duplicate.private).map_err(&wrapped)?;
        let seed = EncryptedSecret::try_from(duplicate.seed).map_err(&wrapped)?;
        let imported = connection.with_room(|context| {
            let (public, private, seed) = (public.clone(), private.clone(), seed.clone());
            context.execute_with_session(session, |context| {
                let none = SymmetricDefinitionObject::Null;
                context.import(parent.into(), None::<Data>, public, private, seed, none)
            })
        });
        imported.map(|private| (private, public)).map_err(|error| parent_error("importing a key", error))
    }

    /// Refuses sizes that this TPM has not.
    fn rsa_bits(&mut self, bits: u32) -> Result<RsaKeyBits, DeviceError> {
        let unsupported = || DeviceError::Unsupported(format!("RSA keys of {bits} bits"));
        let bits = u16::try_from(bits).ok().and_then(|bits| RsaKeyBits::try_from(bits).ok()).ok_or_else(unsupported)?;
        if rsa_supported(&mut self.connection()?.context, bits)? { Ok(bits) } else { Err(unsupported()) }
    }
}

impl Device for TpmProvision {
    fn public_key(&mut self, key: &KeyLocator) -> Result<PublicKey, DeviceError> {
        self.device.public_key(key)
    }

    fn sign(&mut self, key: &KeyLocator, algorithm: Algorithm, digest: &Digest) -> Result<Signature, DeviceError> {
        self.device.sign(key, algorithm, digest)
    }
}

impl Provision for TpmProvision {
    fn generate(&mut self, key: &NewKey) -> Result<CreatedKey, DeviceError> {
        let template = match key.algorithm.key_type() {
            KeyType::Rsa => public::signing_rsa(Origin::Generated, self.rsa_bits(key.bits)?, 65537, &[])?,
            KeyType::EcP256 => public::signing_ec(Origin::Generated, EccPoint::default())?,
        };
        let (private, public) = self.create(template)?;
        self.keep(private, public)
    }

    fn import(&mut self, key: &PrivateKey, _label: &str) -> Result<CreatedKey, DeviceError> {
        let (kind, public, secret) = match key {
            PrivateKey::Rsa { modulus, public_exponent, prime1, .. } => {
                let bits = u32::try_from(modulus.len() * 8).unwrap_or(u32::MAX);
                let exponent = public_exponent
                    .iter()
                    .try_fold(0_u32, |value, byte| Some(value.checked_mul(256)? | u32::from(*byte)));
                let exponent =
                    exponent.ok_or_else(|| DeviceError::Unsupported("RSA exponents of over 32 bits".to_owned()))?;
                let public = public::signing_rsa(Origin::Imported, self.rsa_bits(bits)?, exponent, modulus)?;
                (tss::TPM2_ALG_RSA, public, prime1)
            }
            PrivateKey::EcP256 { scalar, x, y, .. } => {
                let coordinate =
                    |bytes: &[u8; 32]| EccParameter::try_from(bytes.as_slice()).map_err(classified("EC point"));
                let public = public::signing_ec(Origin::Imported, EccPoint::new(coordinate(x)?, coordinate(y)?))?;
                (tss::TPM2_ALG_ECC, public, scalar)
            }
        };
        let (private, public) = self.wrap_and_import(kind, public, secret)?;
        self.keep(private, public)
    }

    fn list(&mut self) -> Result<Vec<ListedKey>, DeviceError> {
        let context = &mut self.connection()?.context;
        let mut keys = Vec::new();
        for handle in handles(context, tss::TPM2_PERSISTENT_FIRST)? {
            let TpmHandle::Persistent(persistent) = handle else { continue };
            // What can't be read as a key is none of ours.
            let Ok(object) = context.tr_from_tpm_public(persistent.into()) else { continue };
            let Ok((public, ..)) = context.read_public(object.into()) else { continue };
            let number = u32::from(persistent);
            if matches!(public, Public::Rsa { .. } | Public::Ecc { .. }) && public.object_attributes().sign_encrypt() {
                keys.push(ListedKey {
                    locator: KeyLocator::Handle(number),
                    label: format!("{number:#x}"),
                    public_key: public::public_key(&public).ok(),
                });
            }
        }
        Ok(keys)
    }

    fn delete(&mut self, key: &KeyLocator) -> Result<(), DeviceError> {
        let KeyLocator::Handle(handle) = *key else { return Ok(()) };
        if !(KEYS.0..=KEYS.1).contains(&handle) {
            return Err(DeviceError::Unsupported(format!(
                "deleting {handle:#x}, which is not one of Signet's handles"
            )));
        }
        let tpm = self.device.tpm.clone();
        let connection = self.connection()?;
        authorise_owner(&mut connection.context, &tpm)?;
        let Some(object) = persistent(&mut connection.context, handle)? else {
            return Err(DeviceError::Permanent(format!("there is no key at {handle:#x}")));
        };
        evict(&mut connection.context, Some(connection.session), object, handle).map(|_none| ())
    }

    fn describe(&mut self) -> Result<Description, DeviceError> {
        let tpm = self.device.tpm.clone();
        describe(&mut self.connection()?.context, &tpm)
    }
}

/// Replaces a foreign key's empty auth value by the device's. None where it has one of its own, by its file or as it
/// turns out: that an empty value is refused tells no secret and, with noDA, counts for nothing.
fn give_auth(
    connection: &mut Connection,
    object: ObjectHandle,
    key: &Tss2Key,
    public: &Public,
    auth: Auth,
) -> Result<Option<Private>, DeviceError> {
    public::refuse_as_signer(public)?;
    refuse_doubtful(key, public, &auth)?;
    let may_be_empty = key.empty_auth || public.object_attributes().no_da();
    if auth.value().is_empty() || !may_be_empty {
        return Ok(None);
    }
    let (session, parent) = (Some(connection.session), ObjectHandle::from(connection.parent));
    let changed = connection.with_room(|context| {
        let auth = auth.clone();
        context.execute_with_session(session, |context| context.object_change_auth(object, parent, auth))
    });
    match changed.map_err(classified("giving the key the auth value of pin_file")) {
        Ok(private) => Ok(Some(private)),
        Err(DeviceError::PinRefused(_)) if public.object_attributes().no_da() => Ok(None),
        Err(other) => Err(other),
    }
}

/// Refuses a key whose auth value is to be guessed, where each wrong guess counts towards the TPM's lock-out: whatever
/// tpm2_encodeobject says of it, it may have one or none (tpm2-tools issue 3458). It always names a loaded parent, never the
/// template's, which tpm2-openssl names where it is given no other, and says the truth.
fn refuse_doubtful(key: &Tss2Key, public: &Public, auth: &Auth) -> Result<(), DeviceError> {
    if public.object_attributes().no_da() {
        return Ok(());
    }
    if key.parent != TEMPLATE_PARENT {
        return Err(DeviceError::Unsupported(
            "a key without noda, of which its file does not surely tell whether it has an auth value: a wrong try would count towards the TPM's lock-out; create it with -a \"sign|fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda\", or with tpm2-openssl and without -pkeyopt parent:"
                .to_owned(),
        ));
    }
    if !key.empty_auth && auth.value().is_empty() {
        return Err(DeviceError::Unsupported(
            "a key with an auth value, on a device without a pin_file: a wrong try would count towards the TPM's lock-out; write the key's auth value to a pin_file"
                .to_owned(),
        ));
    }
    Ok(())
}

/// The parent's public half, as it was pinned.
fn pinned_public(connection: &mut Connection) -> Result<PublicKey, DeviceError> {
    let parent = connection.parent;
    let (public, ..) =
        connection.with_room(|context| context.read_public(parent)).map_err(classified("reading the storage key"))?;
    let pinned = connection.context.tr_get_name(parent.into()).map_err(classified("naming the storage key"))?;
    if duplicate::name(&public.marshall().map_err(classified("reading the storage key"))?) != pinned.value() {
        return Err(DeviceError::Integrity("the storage key's public half was changed on the bus".to_owned()));
    }
    public::refuse_as_parent(&public).map_err(|why| DeviceError::Unsupported(format!("this storage key: {why}")))?;
    public::public_key(&public)
}

/// What a key file names as its parent where that is the owner's primary by the TCG's template: the same key as [`PARENT`].
const TEMPLATE_PARENT: u32 = 0x4000_0001;

/// The persistent handles that Signet's keys take: the owner's, without the first, which is the parent's.
const KEYS: (u32, u32) = (PARENT + 1, 0x817f_ffff);
