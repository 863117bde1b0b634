//! One generation of a connection: the context, the session, the parent, and the keys that are loaded. Handles belong to
//! it and die with it.

use tss_esapi::attributes::SessionAttributesBuilder;
use tss_esapi::constants::{CapabilityType, SessionType};
use tss_esapi::handles::{KeyHandle, ObjectHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Auth, CapabilityData, Digest as TpmDigest, HashcheckTicket, Private, Public, Signature as TpmSignature,
    SymmetricDefinition,
};
use tss_esapi::traits::UnMarshall as _;
use tss_esapi::tss2_esys::{TPM2B_DIGEST, TPMT_TK_HASHCHECK};
use tss_esapi::{Context, constants::tss};

use super::{classified, public, raw_rc, tcti, unauthorised};
use crate::device::tss2::Tss2Key;
use crate::device::{DeviceError, Pin, TpmConfig, TpmParent, TpmSession};
use crate::key::{Algorithm, Digest, KeyLocator, PublicKey, Signature, hexadecimal};

/// A context with everything that hangs on it. Dropping it flushes what it holds, which is TPM I/O.
pub(super) struct Connection {
    pub(super) context: Context,
    pub(super) session: AuthSession,
    pub(super) parent: KeyHandle,
    /// Signatures so far.
    pub(super) used: u32,
    /// The keys in use, the least recently used first.
    loaded: Vec<Loaded>,
    auth: Auth,
}

struct Loaded {
    locator: KeyLocator,
    handle: KeyHandle,
    public: Public,
    /// It has signed: its auth value is right.
    proven: bool,
}

impl Connection {
    /// Connects, makes sure that the parent is the pinned one, and opens the session.
    pub(super) fn open(tpm: &TpmConfig, pin: Option<&Pin>, session: TpmSession) -> Result<Self, DeviceError> {
        let auth = auth_value(pin)?;
        let mut context = context(&tpm.tcti)?;
        let Some(pinned) = &tpm.parent else {
            return Err(DeviceError::Misconfigured(
                "no storage key is recorded for this TPM; `signetctl device init` makes one and records it".to_owned(),
            ));
        };
        let parent = pinned_parent(&mut context, pinned)?;
        let session = match session {
            TpmSession::Protected => hmac_session(&mut context, Some(parent))?,
            TpmSession::Plain => AuthSession::Password,
        };
        Ok(Self { context, session, parent, used: 0, loaded: Vec::new(), auth })
    }

    /// Signs: one TPM command where the key is loaded already.
    pub(super) fn sign(
        &mut self,
        key: &KeyLocator,
        algorithm: Algorithm,
        digest: &Digest,
    ) -> Result<Signature, DeviceError> {
        let Loaded { handle, public, proven, .. } = self.load(key)?;
        let (handle, proven) = (*handle, *proven);
        let scheme = public::signature_scheme(public, algorithm)?;
        if digest.hash() != algorithm.hash() {
            return Err(DeviceError::Unsupported(format!("a digest of another hash than {algorithm} signs")));
        }
        let digest = TpmDigest::try_from(digest.as_bytes()).map_err(classified("digest"))?;
        let session = Some(self.session);
        let signed = self.with_room(|context| {
            let (digest, ticket) = (digest.clone(), unhashed_ticket()?);
            context.execute_with_session(session, |context| context.sign(handle, digest, scheme, ticket))
        });
        self.used += 1;
        match signed {
            Ok(signature) => {
                if let Some(loaded) = self.loaded.last_mut() {
                    loaded.proven = true;
                }
                signature_bytes(&signature)
            }
            // Without a resource manager another program may have flushed our session or put another key in this handle's
            // place; the TPM then says that the auth value is wrong. It was right before, so the handle isn't.
            Err(error) if proven && matches!(classified("signing")(error), DeviceError::PinRefused(_)) => {
                Err(DeviceError::Away("the session or the key was changed by another program".to_owned()))
            }
            Err(error) => Err(classified("signing")(error)),
        }
    }

    /// Whether a wrong auth value of this key counts for nothing, which is known once it is loaded.
    pub(super) fn is_no_da(&self, key: &KeyLocator) -> bool {
        let loaded = self.loaded.iter().find(|loaded| loaded.locator == *key);
        loaded.is_some_and(|loaded| loaded.public.object_attributes().no_da())
    }

    /// The public half as the TPM has it, compared with what the key file says.
    pub(super) fn public_key(&mut self, key: &KeyLocator) -> Result<PublicKey, DeviceError> {
        let handle = self.load(key)?.handle;
        let (there, ..) =
            self.with_room(|context| context.read_public(handle)).map_err(unauthorised("reading a key"))?;
        if self.load(key)?.public != there {
            return Err(DeviceError::Permanent("the TPM holds another key than the key file says".to_owned()));
        }
        public::refuse_as_signer(&there)?;
        public::public_key(&there)
    }

    /// A key ready for use, last in the list.
    fn load(&mut self, key: &KeyLocator) -> Result<&mut Loaded, DeviceError> {
        let loaded = match self.loaded.iter().position(|loaded| loaded.locator == *key) {
            Some(position) => self.loaded.remove(position),
            None => self.load_anew(key)?,
        };
        self.loaded.push(loaded);
        self.loaded.last_mut().ok_or_else(|| DeviceError::Away("no key is loaded".to_owned()))
    }

    fn load_anew(&mut self, key: &KeyLocator) -> Result<Loaded, DeviceError> {
        let (handle, public, auth) = match key {
            KeyLocator::Tss2(pem) => {
                let key = Tss2Key::from_pem(pem).map_err(|invalid| DeviceError::Permanent(invalid.to_string()))?;
                let auth = if key.empty_auth { Auth::default() } else { self.auth.clone() };
                let (handle, public) = self.load_tss2(&key)?;
                (handle, public, auth)
            }
            KeyLocator::Handle(handle) => {
                let (handle, public) = self.find_persistent(*handle)?;
                (handle, public, self.auth.clone())
            }
            KeyLocator::Pkcs11(_) => return Err(DeviceError::Permanent("a PKCS#11 key is in no TPM".to_owned())),
        };
        self.context.tr_set_auth(handle.into(), auth).map_err(classified("setting the auth value"))?;
        Ok(Loaded { locator: key.clone(), handle, public, proven: false })
    }

    /// Loads a key file under the parent. The TPM itself checks that the two halves belong together.
    pub(super) fn load_tss2(&mut self, key: &Tss2Key) -> Result<(KeyHandle, Public), DeviceError> {
        let malformed = |error| DeviceError::Permanent(format!("the key file is damaged: {error}"));
        let public = Public::unmarshall(&key.public).map_err(malformed)?;
        let private = Private::try_from(key.private.as_slice()).map_err(malformed)?;
        let (session, parent) = (Some(self.session), self.parent);
        let loaded = self.with_room(|context| {
            let (private, public) = (private.clone(), public.clone());
            context.execute_with_session(session, |context| context.load(parent, private, public))
        });
        let handle = loaded.map_err(|error| parent_error("loading a key", error))?;
        Ok((handle, public))
    }

    fn find_persistent(&mut self, handle: u32) -> Result<(KeyHandle, Public), DeviceError> {
        let Some(object) = persistent(&mut self.context, handle)? else {
            return Err(DeviceError::Permanent(format!(
                "the TPM has no key at {handle:#x}: it was deleted, or this is another TPM"
            )));
        };
        let read = self.with_room(|context| context.read_public(object.into()));
        let (public, ..) = read.map_err(unauthorised("reading a persistent key"))?;
        Ok((object.into(), public))
    }

    /// Makes a call again after flushing the least recently used key, as long as the TPM says that its slots are full.
    pub(super) fn with_room<T>(
        &mut self,
        mut call: impl FnMut(&mut Context) -> tss_esapi::Result<T>,
    ) -> tss_esapi::Result<T> {
        loop {
            match call(&mut self.context) {
                Err(error) if raw_rc(&error) == Some(OBJECT_MEMORY) && self.flush_oldest() => {}
                done => return done,
            }
        }
    }

    fn flush_oldest(&mut self) -> bool {
        let transient = |loaded: &Loaded| matches!(loaded.locator, KeyLocator::Tss2(_));
        let Some(oldest) = self.loaded.iter().position(transient) else { return false };
        let handle = self.loaded.remove(oldest).handle;
        self.context.flush_context(handle.into()).is_ok()
    }
}

/// Where there is no TPM, its name says more than the library's code.
fn unreachable_tpm(tcti: &str, error: DeviceError) -> DeviceError {
    match error {
        DeviceError::Away(detail) => DeviceError::Away(format!("no TPM at {tcti}: {detail}")),
        other => other,
    }
}

/// Opens a context. Where no resource manager does it, clears what a killed process left in the TPM's few slots: nobody
/// knows those handles any more, and full slots answer 0x902 for ever.
pub(super) fn context(tcti: &str) -> Result<Context, DeviceError> {
    let mut context =
        Context::new(tcti::name(tcti)?).map_err(|error| unreachable_tpm(tcti, unauthorised("connecting")(error)))?;
    if !tcti::behind_resource_manager(tcti) {
        for first in [tss::TPM2_TRANSIENT_FIRST, tss::TPM2_LOADED_SESSION_FIRST, tss::TPM2_ACTIVE_SESSION_FIRST] {
            for handle in handles(&mut context, first)? {
                // Another program may be quicker, and a handle that is gone is as good.
                let _ = context.tr_from_tpm_public(handle).and_then(|object| context.flush_context(object));
            }
        }
    }
    Ok(context)
}

/// The handles in use from `first` on, of its kind.
pub(super) fn handles(context: &mut Context, first: u32) -> Result<Vec<TpmHandle>, DeviceError> {
    match context.get_capability(CapabilityType::Handles, first, 254).map_err(unauthorised("listing handles"))? {
        (CapabilityData::Handles(handles), _more) => Ok(handles.into_inner()),
        _ => Err(DeviceError::Integrity("the TPM listed something else than handles".to_owned())),
    }
}

/// Finds the parent and makes sure that it is the pinned one, before anything is encrypted to it.
fn pinned_parent(context: &mut Context, pinned: &TpmParent) -> Result<KeyHandle, DeviceError> {
    let Some(object) = persistent(context, pinned.handle)? else {
        return Err(DeviceError::Permanent(format!(
            "there is no storage key at {:#x}: this TPM was cleared, or the keys are sealed to another TPM",
            pinned.handle
        )));
    };
    if name(context, object)? != pinned.name {
        return Err(DeviceError::Permanent(format!(
            "the storage key at {:#x} is not the one that `signetctl device init` recorded: the keys are sealed to another TPM",
            pinned.handle
        )));
    }
    Ok(object.into())
}

/// The object at a persistent handle, where there is one.
pub(super) fn persistent(context: &mut Context, handle: u32) -> Result<Option<ObjectHandle>, DeviceError> {
    let there = handles(context, handle)?.into_iter().find(|there| u32::from(*there) == handle);
    let object = there.map(|there| context.tr_from_tpm_public(there)).transpose();
    object.map_err(unauthorised("finding a persistent key"))
}

/// An object's name in hexadecimal. The library computes it from the public area that it holds, and that a session's
/// salt is encrypted to; it does not believe the name that came over the bus.
pub(super) fn name(context: &mut Context, object: ObjectHandle) -> Result<String, DeviceError> {
    let name = context.tr_get_name(object).map_err(unauthorised("naming a key"))?;
    Ok(hexadecimal(name.value()))
}

/// Starts an HMAC session that hides parameters, salted to a key where there is one already.
pub(super) fn hmac_session(context: &mut Context, salted_to: Option<KeyHandle>) -> Result<AuthSession, DeviceError> {
    let (aes, sha256) = (SymmetricDefinition::AES_128_CFB, HashingAlgorithm::Sha256);
    let session = context
        .start_auth_session(salted_to, None, None, SessionType::Hmac, aes, sha256)
        .map_err(|error| parent_error("starting a session", error))?
        .ok_or_else(|| DeviceError::Away("the TPM started no session".to_owned()))?;
    let (attributes, mask) =
        SessionAttributesBuilder::new().with_continue_session(true).with_decrypt(true).with_encrypt(true).build();
    context.tr_sess_set_attributes(session, attributes, mask).map_err(classified("setting up a session"))?;
    Ok(session)
}

/// The auth value of keys: at most as long as their name's hash (TPM 2.0 Part 1, 13.7).
pub(super) fn auth_value(pin: Option<&Pin>) -> Result<Auth, DeviceError> {
    let bytes = pin.map(Pin::expose).unwrap_or_default();
    if bytes.len() > LONGEST_AUTH {
        return Err(DeviceError::Misconfigured(format!(
            "an auth value of {} bytes: a TPM takes at most {LONGEST_AUTH}",
            bytes.len()
        )));
    }
    Auth::try_from(bytes).map_err(classified("auth value"))
}

/// Classifies an error of a command that the parent authorises: its auth value is empty, and no PIN of ours was refused.
pub(super) fn parent_error(doing: &str, error: tss_esapi::Error) -> DeviceError {
    match classified(doing)(error) {
        DeviceError::PinRefused(detail) => DeviceError::Misconfigured(format!(
            "the storage key has an auth value, and Signet needs one without: {detail}"
        )),
        other => other,
    }
}

fn signature_bytes(signature: &TpmSignature) -> Result<Signature, DeviceError> {
    match signature {
        TpmSignature::RsaSsa(rsa) | TpmSignature::RsaPss(rsa) => {
            Ok(Signature::from_bytes(rsa.signature().value().to_vec()))
        }
        TpmSignature::EcDsa(ecdsa) => {
            let r = public::coordinate(ecdsa.signature_r().value())?;
            let s = public::coordinate(ecdsa.signature_s().value())?;
            Ok(Signature::from_bytes([r, s].concat()))
        }
        _ => Err(DeviceError::Integrity("the TPM answered with a signature of another kind".to_owned())),
    }
}

/// The ticket of a digest that the TPM did not make.
fn unhashed_ticket() -> tss_esapi::Result<HashcheckTicket> {
    let ticket = TPMT_TK_HASHCHECK {
        tag: tss::TPM2_ST_HASHCHECK,
        hierarchy: tss::TPM2_RH_NULL,
        digest: TPM2B_DIGEST::default(),
    };
    ticket.try_into()
}

const LONGEST_AUTH: usize = 32;
/// TPM_RC_OBJECT_MEMORY: every slot is taken.
const OBJECT_MEMORY: u32 = 0x902;
