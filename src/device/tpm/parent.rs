//! The parent of all keys, and what the owner of the TPM alone may do.

use tss_esapi::Context;
use tss_esapi::handles::{ObjectHandle, PersistentTpmHandle};
use tss_esapi::interface_types::dynamic_handles::Persistent;
use tss_esapi::interface_types::resource_handles::{Hierarchy, Provision as Authority};
use tss_esapi::interface_types::session_handles::AuthSession;

use super::connection::{self, auth_value, hmac_session, name, persistent};
use super::{classified, public};
use crate::device::{DeviceError, Pin, TpmConfig, TpmParent};

/// Makes the parent of all keys persistent, or finds it, and returns what pins it.
///
/// # Errors
/// [`DeviceError`], classified; `Misconfigured` where what stands at the parent's handle can't be one.
pub fn init(tpm: &TpmConfig) -> Result<TpmParent, DeviceError> {
    let mut context = connection::context(&tpm.tcti)?;
    let object = match persistent(&mut context, PARENT)? {
        Some(object) => object,
        None => make_parent(&mut context, tpm)?,
    };
    let (public, ..) = context.read_public(object.into()).map_err(classified("reading the storage key"))?;
    public::refuse_as_parent(&public).map_err(|why| {
        DeviceError::Misconfigured(format!(
            "the key at {PARENT:#x} can't be the parent of Signet's keys: {why}. Free that handle with `tpm2_evictcontrol -c {PARENT:#x}` if nothing else uses the key"
        ))
    })?;
    recorded(&mut context, tpm, object)
}

/// What pins a storage key that is, or is to be, at the parent's handle.
fn recorded(context: &mut Context, tpm: &TpmConfig, object: ObjectHandle) -> Result<TpmParent, DeviceError> {
    let parent = TpmParent { handle: PARENT, name: name(context, object)? };
    match &tpm.parent {
        Some(recorded) if *recorded != parent => Err(DeviceError::Permanent(
            "its storage key is not the one that was recorded: this is another TPM, or it was cleared".to_owned(),
        )),
        _ => Ok(parent),
    }
}

fn make_parent(context: &mut Context, tpm: &TpmConfig) -> Result<ObjectHandle, DeviceError> {
    authorise_owner(context, tpm)?;
    // There is no key yet to salt a session to: its HMAC still keeps the owner's auth value off the bus.
    let session = Some(hmac_session(context, None)?);
    let template = public::storage_parent()?;
    let primary = context
        .execute_with_session(session, |context| {
            context.create_primary(Hierarchy::Owner, template, None, None, None, None)
        })
        .map_err(|error| owner_error("making the storage key", error))?;
    let object = ObjectHandle::from(primary.key_handle);
    // Of another TPM than the recorded one nothing is changed.
    let kept = recorded(context, tpm, object).and_then(|_parent| evict(context, session, object, PARENT));
    let _ = context.flush_context(object);
    kept
}

/// Makes an object persistent at a handle, or deletes the persistent object there. Needs [`authorise_owner`] before.
pub(super) fn evict(
    context: &mut Context,
    session: Option<AuthSession>,
    object: ObjectHandle,
    handle: u32,
) -> Result<ObjectHandle, DeviceError> {
    let handle = PersistentTpmHandle::new(handle).map_err(classified("persistent handle"))?;
    context
        .execute_with_session(session, |context| {
            context.evict_control(Authority::Owner, object, Persistent::Persistent(handle))
        })
        .map_err(|error| owner_error("changing a persistent handle", error))
}

/// Tells the library the owner's auth value, for the commands that need it.
pub(super) fn authorise_owner(context: &mut Context, tpm: &TpmConfig) -> Result<(), DeviceError> {
    let owner = tpm.owner_auth_file.as_deref().map(Pin::read).transpose()?;
    context
        .tr_set_auth(ObjectHandle::Owner, auth_value(owner.as_ref())?)
        .map_err(classified("setting the owner's auth value"))
}

/// Classifies an error of a command that the owner authorises: no PIN of the keys was refused.
fn owner_error(doing: &str, error: tss_esapi::Error) -> DeviceError {
    match classified(doing)(error) {
        DeviceError::PinRefused(detail) => DeviceError::Misconfigured(format!(
            "the TPM refused the owner hierarchy's auth value; owner_auth_file must hold the right one: {detail}"
        )),
        other => other,
    }
}

/// Where the parent stands: the handle that the TCG's provisioning guidance gives to the storage root key.
pub(super) const PARENT: u32 = 0x8100_0001;
