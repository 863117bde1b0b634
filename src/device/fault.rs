//! What each code of a TPM or a PKCS#11 module means for a request: the tables of both.

use super::DeviceError::{self, Away, Integrity, Misconfigured, Permanent, PinRefused, Transient, Unsupported};

/// Classifies a TSS2_RC: the layer stands in bits 16 to 23. `detail` says what was tried.
#[must_use]
pub fn tpm(code: u32, detail: &str) -> DeviceError {
    let (class, meaning) = match code & LAYER {
        // Layer 12 is a resource manager's, answering in the TPM's place.
        0 | 0xc_0000 => look_up(TPM, u64::from(base(code & !LAYER))).unwrap_or_else(|| unknown_tpm_code(code)),
        // A context that failed once in a layer of software answers nothing right again.
        _ => look_up(LAYERS, u64::from(code)).unwrap_or((Away, "the connection to the TPM failed")),
    };
    class(format!("{detail}: {meaning} ({code:#x})"))
}

/// Classifies a CK_RV. `detail` says what was tried.
#[must_use]
pub fn pkcs11(code: u64, detail: &str) -> DeviceError {
    let (class, meaning) = look_up(PKCS11, code).unwrap_or(if code >= CKR_VENDOR_DEFINED {
        (Away, "an error of this vendor's own, see the module's manual")
    } else {
        (Away, "an unexpected error")
    });
    class(format!("{detail}: {meaning} ({code:#x})"))
}

/// The variant of [`DeviceError`] that a device's code means.
type Class = fn(String) -> DeviceError;

/// Code, class, and what it means to a person. The TPM's format-one codes stand without number and kind of the
/// parameter, handle or session at fault, see [`base`].
type Table = [(u64, Class, &'static str)];

const TPM: &Table = &[
    // Format zero (TPM 2.0 part 2, 6.6.3).
    (0x100, Away, "the TPM was reset and is not started yet"),
    (0x101, Away, "the TPM is in failure mode; a reset may help"),
    (0x128, Transient, "a PCR changed meanwhile"),
    (0x12f, Permanent, "this key can't be used with an auth value"),
    (0x143, Unsupported, "the TPM does not know this command"),
    (0x902, Transient, "no room for another object in the TPM"),
    (0x903, Transient, "no room for another session in the TPM"),
    (0x904, Transient, "no memory in the TPM"),
    (0x905, Transient, "no session handle is free in the TPM"),
    (0x906, Transient, "no object handle is free in the TPM"),
    (0x908, Transient, "the TPM yielded"),
    (0x909, Transient, "the command was cancelled"),
    (0x90a, Transient, "the TPM is testing itself"),
    (0x910, Away, "the first handle is gone: the TPM was reset"),
    (0x911, Away, "the second handle is gone: the TPM was reset"),
    (0x912, Away, "the third handle is gone: the TPM was reset"),
    (0x918, Away, "the first session is gone: the TPM was reset"),
    (0x919, Away, "the second session is gone: the TPM was reset"),
    (0x91a, Away, "the third session is gone: the TPM was reset"),
    (0x920, Transient, "the TPM's memory must not be written so often"),
    (0x921, PinRefused, "the TPM is locked out after too many wrong auth values"),
    (0x922, Transient, "the TPM asks to try again"),
    (0x923, Transient, "the TPM's memory can't be written now"),
    // Format one.
    (0x081, Unsupported, "this asymmetric algorithm is unknown to the TPM"),
    (0x083, Unsupported, "this hash algorithm is unknown to the TPM, or wrong for the key"),
    (0x087, Unsupported, "this key size is unknown to the TPM"),
    (0x08b, Permanent, "there is no object at this handle"),
    (0x08e, PinRefused, "the auth value is wrong, and the TPM counted it"),
    (0x08f, Away, "the session is out of step"),
    (0x092, Unsupported, "this signature scheme is unknown to the TPM, or wrong for the key"),
    (0x09d, Permanent, "the key's policy is not fulfilled; where it names PCRs, not before the next boot"),
    (0x09f, Permanent, "this key is sealed to another TPM, or the TPM was cleared"),
    (0x0a2, PinRefused, "the auth value is wrong"),
    (0x0a3, Away, "the session has expired"),
    (0x0a5, Permanent, "public and private part do not belong together"),
    (0x0a6, Unsupported, "this curve is unknown to the TPM"),
];

/// Whole codes of the layers above the TPM that don't mean a lost connection.
const LAYERS: &Table = &[
    (0x7_001b, Integrity, "the response was changed on its way from the TPM"),
    (0xb_0143, Unsupported, "the resource manager does not know this command"),
];

/// PKCS#11 2.40, 11.1. What a reload of the module mends is [`Away`].
const PKCS11: &Table = &[
    (0x001, Transient, "the call was cancelled"),
    (0x002, Away, "no memory"),
    (0x003, Away, "the slot is gone"),
    (0x005, Away, "the module failed"),
    (0x006, Away, "the function failed"),
    (0x007, Unsupported, "bad arguments"),
    (0x020, Unsupported, "the token does not take this data"),
    (0x021, Unsupported, "the token does not take data of this length"),
    (0x030, Away, "the token failed"),
    (0x031, Away, "no memory in the token"),
    (0x032, Away, "the token was removed"),
    (0x050, Transient, "the call was cancelled"),
    (0x054, Unsupported, "the token does not have this function"),
    (0x060, Away, "the key's handle is gone"),
    (0x062, Unsupported, "the token does not take keys of this size"),
    (0x063, Unsupported, "the key is of another kind"),
    (0x068, Permanent, "the key must not be used for this; it lacks CKA_SIGN"),
    (0x070, Unsupported, "the token does not have this mechanism"),
    (0x071, Unsupported, "the token does not take these parameters of the mechanism"),
    (0x082, Away, "the object's handle is gone"),
    (0x090, Away, "an operation is already active"),
    (0x091, Away, "the operation was not begun"),
    (0x0a0, PinRefused, "the PIN is wrong"),
    (0x0a1, PinRefused, "the PIN holds what the token can't take"),
    (0x0a2, PinRefused, "the PIN is too short or too long"),
    (0x0a3, PinRefused, "the PIN has expired and must be changed"),
    (0x0a4, PinRefused, "the PIN is locked; the security officer can unlock it"),
    (0x0b0, Away, "the session was closed"),
    (0x0b1, Away, "the token has no session free"),
    (0x0b3, Away, "the session's handle is gone"),
    (0x0e0, Away, "there is no token in the slot"),
    (0x0e1, Away, "the token is not recognised"),
    (0x0e2, Misconfigured, "the token is write-protected"),
    (0x101, Away, "the login was lost"),
    (0x102, Misconfigured, "the token's user PIN was never set"),
    (0x103, Misconfigured, "the token does not have this kind of user"),
    (0x104, Misconfigured, "another kind of user is logged in"),
    (0x190, Away, "the module is not initialised"),
    (0x1b6, Away, "the token failed its own test (FIPS)"),
];

fn look_up(table: &Table, code: u64) -> Option<(Class, &'static str)> {
    table.iter().find(|(known, ..)| *known == code).map(|(_, class, meaning)| (*class, *meaning))
}

/// A format-one code without bit 6 (a parameter, not a handle or session) and bits 8 to 11 (which one); others as they are.
const fn base(code: u32) -> u32 {
    if code & FORMAT_ONE == 0 { code } else { code & 0xbf }
}

/// An unknown format-one code complains about the command, which is the same next time; others may pass.
const fn unknown_tpm_code(code: u32) -> (Class, &'static str) {
    if code & FORMAT_ONE == 0 {
        (Away, "an unexpected answer of the TPM")
    } else {
        (Permanent, "the TPM does not take the command for this key")
    }
}

const LAYER: u32 = 0xff_0000;
const FORMAT_ONE: u32 = 0x80;
const CKR_VENDOR_DEFINED: u64 = 0x8000_0000;

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row as it was observed or as the specification has it, written down apart from the table.
    #[test]
    fn every_tpm_code_means_what_it_should() {
        let rows: &[(&str, &[u32])] = &[
            ("transient", &[0x922, 0x908, 0x128, 0x902, 0x903, 0x904, 0x905, 0x906, 0x909, 0x90a, 0x920, 0x923]),
            ("away", &[0xa_000a, 0x7_0007, 0x7_0018, 0xa_0001, 0x8_0011, 0x9_0006, 0xb_0005, 0x100, 0x101]),
            ("away", &[0x910, 0x911, 0x912, 0x918, 0x919, 0x91a, 0x98f, 0x9a3, 0xc_0910, 0x1ff_0000, 0x155]),
            ("pin-refused", &[0x98e, 0x9a2, 0xa8e, 0xaa2, 0x921, 0xc_09a2]),
            ("permanent", &[0x1df, 0x2df, 0x99d, 0x18b, 0x28b, 0x1e5, 0x12f, 0x1c4, 0x2d5]),
            ("integrity", &[0x7_001b]),
            ("unsupported", &[0x143, 0xb_0143, 0x2c3, 0x2d2, 0x2c7, 0x2c1, 0x2e6]),
        ];
        for (expected, codes) in rows {
            for code in *codes {
                assert_eq!(tpm(*code, "Sign").class(), *expected, "{code:#x}");
            }
        }
        let seen = rows.iter().flat_map(|(_, codes)| codes.iter().map(|code| u64::from(base(*code))));
        for (code, ..) in TPM.iter().chain(LAYERS) {
            assert!(seen.clone().any(|seen| seen == *code), "{code:#x} is not looked at");
        }
    }

    #[test]
    fn every_pkcs11_code_means_what_it_should() {
        let rows: &[(&str, &[u64])] = &[
            ("transient", &[0x1, 0x50]),
            ("away", &[0x1b6, 0x5, 0x30, 0x31, 0x32, 0x82, 0x90, 0xb0, 0xb3, 0xe0, 0xe1, 0x101, 0x190]),
            ("away", &[0x2, 0x3, 0x6, 0x60, 0x91, 0xb1, 0x8000_0000, 0x8000_0102, 0xffff_ffff_ffff_ffff, 0x999]),
            ("pin-refused", &[0xa0, 0xa1, 0xa2, 0xa3, 0xa4]),
            ("permanent", &[0x68]),
            ("unsupported", &[0x7, 0x20, 0x21, 0x54, 0x62, 0x63, 0x70, 0x71]),
            ("misconfigured", &[0xe2, 0x102, 0x103, 0x104]),
        ];
        for (expected, codes) in rows {
            for code in *codes {
                assert_eq!(pkcs11(*code, "C_Sign").class(), *expected, "{code:#x}");
            }
        }
        for (code, ..) in PKCS11 {
            assert!(rows.iter().any(|(_, codes)| codes.contains(code)), "{code:#x} is not looked at");
        }
    }

    /// The number of the parameter, handle or session changes with the command: never what is done about it.
    #[test]
    fn format_one_codes_are_told_apart_by_their_base_alone() {
        for number in 0..16 {
            for kind in [0, 0x40] {
                let at_fault = |base: u32| base | kind | number << 8;
                assert_eq!(tpm(at_fault(0x8e), "Sign").class(), "pin-refused");
                assert_eq!(tpm(at_fault(0xa2), "Sign").class(), "pin-refused");
                assert_eq!(tpm(at_fault(0x9f), "Load").class(), "permanent");
            }
        }
    }

    #[test]
    fn no_code_stands_in_a_table_twice() {
        for table in [TPM, LAYERS, PKCS11] {
            for (index, (code, ..)) in table.iter().enumerate() {
                assert!(!table[..index].iter().any(|(earlier, ..)| earlier == code), "{code:#x}");
            }
        }
    }

    #[test]
    fn the_text_says_what_was_tried_what_it_means_and_the_code() {
        assert_eq!(
            tpm(0x1df, "Load").to_string(),
            "Load: this key is sealed to another TPM, or the TPM was cleared (0x1df)"
        );
        assert_eq!(pkcs11(0xa0, "C_Login").to_string(), "the PIN was refused: C_Login: the PIN is wrong (0xa0)");
        let said = |code| pkcs11(code, "C_Sign").to_string();
        assert!(said(0x8000_0000).contains("an error of this vendor's own"), "{}", said(0x8000_0000));
        assert!(said(0x7fff_ffff).contains("an unexpected error"), "{}", said(0x7fff_ffff));
    }
}
