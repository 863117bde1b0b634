//! What a TPM is and can do, for `signetctl device show`.

use tss_esapi::Context;
use tss_esapi::constants::{AlgorithmIdentifier, CapabilityType, PropertyTag, tss};
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::structures::{
    CapabilityData, PublicParameters, PublicRsaParameters, RsaExponent, RsaScheme, SymmetricDefinitionObject,
};

use super::connection::handles;
use super::{behind_resource_manager, classified};
use crate::device::{Description, DeviceError, TpmConfig};

/// Asks the TPM about itself.
pub(super) fn describe(context: &mut Context, tpm: &TpmConfig) -> Result<Description, DeviceError> {
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| lines.push((name.to_owned(), value));
    let number = |context: &mut Context, tag| property(context, tag).map(|value| value.unwrap_or_default());

    line("manufacturer", text(&[number(context, PropertyTag::Manufacturer)?]));
    let vendor = [
        number(context, PropertyTag::VendorString1)?,
        number(context, PropertyTag::VendorString2)?,
        number(context, PropertyTag::VendorString3)?,
        number(context, PropertyTag::VendorString4)?,
    ];
    line("vendor", text(&vendor));
    let firmware = [number(context, PropertyTag::FirmwareVersion1)?, number(context, PropertyTag::FirmwareVersion2)?];
    line("firmware", firmware.map(|half| format!("{}.{}", half >> 16, half & 0xffff)).join("."));
    line("algorithms", algorithms(context)?);
    let mut sizes = Vec::new();
    for (bits, size) in [(RsaKeyBits::Rsa2048, "2048"), (RsaKeyBits::Rsa3072, "3072"), (RsaKeyBits::Rsa4096, "4096")] {
        if rsa_supported(context, bits)? {
            sizes.push(size);
        }
    }
    line("RSA sizes", sizes.join(" "));
    let locked_out = number(context, PropertyTag::Permanent)? & IN_LOCKOUT != 0;
    line("locked out", if locked_out { "yes" } else { "no" }.to_owned());
    let (failed, most) = (number(context, PropertyTag::LockoutCounter)?, number(context, PropertyTag::MaxAuthFail)?);
    line("failed tries", format!("{failed} of {most}; Signet's keys are not counted"));
    let persistent = handles(context, tss::TPM2_PERSISTENT_FIRST)?;
    line(
        "persistent handles",
        persistent.into_iter().map(|handle| format!("{:#x}", u32::from(handle))).collect::<Vec<_>>().join(" "),
    );
    if let Some(parent) = &tpm.parent {
        line("storage key", format!("{:#x}, name {}", parent.handle, parent.name));
    }
    line("resource manager", if behind_resource_manager(&tpm.tcti) { "yes" } else { "no" }.to_owned());
    Ok(Description(lines))
}

/// True where the TPM can make RSA keys of this size.
pub(super) fn rsa_supported(context: &mut Context, bits: RsaKeyBits) -> Result<bool, DeviceError> {
    let (symmetric, exponent) = (SymmetricDefinitionObject::Null, RsaExponent::default());
    let parameters = PublicRsaParameters::new(symmetric, RsaScheme::Null, bits, exponent);
    match context.test_parms(PublicParameters::Rsa(parameters)) {
        Ok(()) => Ok(true),
        Err(error) => match classified("testing a key size")(error) {
            lost @ (DeviceError::Away(_) | DeviceError::Integrity(_)) => Err(lost),
            _ => Ok(false),
        },
    }
}

fn property(context: &mut Context, tag: PropertyTag) -> Result<Option<u32>, DeviceError> {
    let asked = context.get_capability(CapabilityType::TpmProperties, tag.into(), 1);
    match asked.map_err(classified("asking for a property"))? {
        (CapabilityData::TpmProperties(found), _more) => Ok(found.find(tag).map(|property| property.value())),
        _ => Err(DeviceError::Integrity("the TPM answered with something else than properties".to_owned())),
    }
}

/// The algorithms that matter here, of those that the TPM has.
fn algorithms(context: &mut Context) -> Result<String, DeviceError> {
    let asked = context.get_capability(CapabilityType::Algorithms, 0, 127);
    let (CapabilityData::Algorithms(found), _more) = asked.map_err(classified("asking for algorithms"))? else {
        return Err(DeviceError::Integrity("the TPM answered with something else than algorithms".to_owned()));
    };
    let names = [
        (AlgorithmIdentifier::Rsa, "RSA"),
        (AlgorithmIdentifier::RsaSsa, "RSASSA"),
        (AlgorithmIdentifier::RsaPss, "RSAPSS"),
        (AlgorithmIdentifier::Ecc, "ECC"),
        (AlgorithmIdentifier::EcDsa, "ECDSA"),
        (AlgorithmIdentifier::Sha256, "SHA-256"),
        (AlgorithmIdentifier::Sha384, "SHA-384"),
        (AlgorithmIdentifier::Sha512, "SHA-512"),
    ];
    let known = names.iter().filter(|(algorithm, _)| found.find(*algorithm).is_some());
    Ok(known.map(|(_, name)| *name).collect::<Vec<_>>().join(" "))
}

/// Four characters to a number, padded with zeros.
fn text(numbers: &[u32]) -> String {
    let bytes = numbers.iter().flat_map(|number| number.to_be_bytes());
    bytes.filter(u8::is_ascii_graphic).map(char::from).collect()
}

/// TPMA_PERMANENT.inLockout.
const IN_LOCKOUT: u32 = 1 << 9;
