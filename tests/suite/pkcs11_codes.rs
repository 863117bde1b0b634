//! Every function that Signet calls of a PKCS#11 module, answering every code of the fault table: what that means, that no
//! wrong signature comes of it, and that what is asked next is served.

use std::os::unix::fs::symlink;

use signet::device::{self, Device, DeviceConfig, DeviceError, NewKey, Pkcs11Config, fault, latch};
use signet::key::Algorithm;

use crate::pkcs11_faults::{Served, generate, record, sign};
use crate::support::PATIENCE;
use crate::support::modules::Shim;
use crate::support::softhsm::SoftHsm;

/// Until the token is open.
const OPENING: &[&str] = &[
    "C_GetFunctionList",
    "C_Initialize",
    "C_GetSlotList",
    "C_GetTokenInfo",
    "C_GetMechanismList",
    "C_OpenSession",
    "C_Login",
];

/// For a session's first signature with a key; for those after it the last two.
const SIGNING: &[&str] =
    &["C_FindObjectsInit", "C_FindObjects", "C_FindObjectsFinal", "C_GetAttributeValue", "C_SignInit", "C_Sign"];

/// Every code that the table in `device/fault.rs` knows, and two that it does not.
fn codes() -> Vec<u64> {
    let is_known = |code: &u64| !fault::pkcs11(*code, "").to_string().contains("an unexpected error");
    let codes: Vec<_> = (0..0x200).filter(is_known).chain([0x999, 0x8000_0001]).collect();
    assert!(codes.len() > 40, "the table is not read any more");
    codes
}

/// What a code means, of this function: a class of [`DeviceError`].
fn meaning(function: &str, code: u64) -> &'static str {
    match function {
        // A module that does not even tell its functions, and a token that does not tell its label.
        "C_GetFunctionList" | "C_GetTokenInfo" => "misconfigured",
        // What is still active in the session shows with the next call.
        "C_FindObjectsFinal" => "away",
        _ => fault::pkcs11(code, function).class(),
    }
}

/// A device whose module has not been loaded by this process, though its code has.
fn unloaded(shim: &Shim<'_>, case: usize) -> DeviceConfig {
    let module = shim.module.with_extension(format!("{case}.so"));
    symlink(&shim.module, &module).unwrap();
    let pkcs11 = Pkcs11Config { module, sessions: 1, ..shim.pkcs11() };
    shim.config_with(pkcs11)
}

fn open(config: &DeviceConfig) -> Result<Box<dyn Device + Send>, DeviceError> {
    Ok(device::open(config)?.pop().unwrap())
}

#[test]
fn every_code_of_every_function_has_its_meaning_and_the_next_signature_is_right() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    token.child(&shim.environment(), || {
        generate(&shim.config());
        let expected = sign(&mut *open(&shim.config()).unwrap(), Algorithm::Rs256);
        let functions = OPENING.iter().chain(SIGNING);
        let cases = functions.flat_map(|function| codes().into_iter().map(move |code| (*function, code)));
        for (case, (function, code)) in cases.enumerate() {
            let named = format!("{function} {code:#x}");
            let config = unloaded(&shim, case);
            shim.tell(&format!("fail {function} {code:x} 1"));
            let mut device = open(&config);
            let failed = match &mut device {
                Ok(device) => sign(&mut **device, Algorithm::Rs256).unwrap_err(),
                Err(error) => error.clone(),
            };
            assert_eq!((failed.class(), shim.has_failed()), (meaning(function, code), true), "{named}: {failed}");
            assert_eq!(device.is_ok(), SIGNING.contains(&function), "{named}");
            let pin_was_sent = device.is_ok() || function == "C_Login";
            if let Ok(mut device) = device {
                let again = sign(&mut *device, Algorithm::Rs256);
                let is_sound = matches!(failed, DeviceError::Unsupported(_) | DeviceError::Permanent(_));
                assert_eq!(again == expected, is_sound, "{named}: {again:?}");
                assert_eq!(again.is_ok(), is_sound, "{named}");
            }
            if matches!(failed, DeviceError::PinRefused(_)) && pin_was_sent {
                let logins = shim.logins();
                assert!(matches!(open(&config).err(), Some(DeviceError::PinRefused(_))), "{named}");
                assert_eq!(shim.logins(), logins, "{named}: the PIN was sent again");
                latch::clear(&config.latch_file, None, true).unwrap();
            }
            let mut fresh = open(&config).unwrap_or_else(|error| panic!("{named}: {error}"));
            assert_eq!(sign(&mut *fresh, Algorithm::Rs256), expected, "{named}");
        }
    });
}

/// What a caller is told meanwhile, with the real device process, and that nobody has to do anything afterwards.
#[tokio::test]
async fn callers_are_served_through_or_told_and_served_again() {
    let Some(token) = SoftHsm::new() else { return };
    token.child(&[], || record(&generate(&token.config()), &token));
    let opening = OPENING.iter().map(|function| (*function, 0x30));
    let signing = SIGNING.iter().flat_map(|function| [0x1, 0x30, 0x68, 0x70].map(|code| (*function, code)));
    for (function, code) in opening.chain(signing) {
        let named = format!("{function} {code:#x}");
        let served = Served::telling(&token, &format!("fail {function} {code:x} 1"));
        let outcome = served.sign(PATIENCE).await;
        let told = outcome.as_ref().map_or_else(DeviceError::class, |_verified| "served");
        let expected = match meaning(function, code) {
            // Another process serves it within the same request, where this one had been opened.
            "transient" | "away" if SIGNING.contains(&function) => "served",
            other => other,
        };
        assert_eq!((told, served.shim.has_failed()), (expected, true), "{named}: {outcome:?}");
        served.resumes().await;
    }
}

#[test]
fn what_fails_while_keys_are_made_listed_and_destroyed_leaves_nothing_behind() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    token.child(&shim.environment(), || {
        let key = NewKey { label: "key".to_owned(), algorithm: Algorithm::Es256, bits: 256 };
        let provision = || device::provision(&shim.config(), None).unwrap();
        for function in ["C_GetMechanismInfo", "C_GenerateKeyPair", "C_GetAttributeValue"] {
            for code in codes() {
                let mut device = provision();
                shim.tell(&format!("fail {function} {code:x} 1"));
                let failed = device.generate(&key).unwrap_err();
                let named = format!("{function} {code:#x}: {failed}");
                assert_eq!((failed.class(), shim.has_failed()), (meaning(function, code), true), "{named}");
                drop(device);
                // Where the code was one of a PIN's, nobody logs in with it before an operator says so.
                let _ = latch::clear(&shim.config().latch_file, None, true);
                assert_eq!(provision().list().unwrap().len(), 0, "{named}");
            }
        }
        let made = provision().generate(&key).unwrap();
        for code in codes() {
            let mut device = provision();
            shim.tell(&format!("fail C_DestroyObject {code:x} 1"));
            let failed = device.delete(&made.locator).unwrap_err();
            assert_eq!(failed.class(), meaning("C_DestroyObject", code), "{code:#x}: {failed}");
            drop(device);
            let _ = latch::clear(&shim.config().latch_file, None, true);
            assert_eq!(provision().list().unwrap().len(), 1, "{code:#x}");
        }
        // The session ends with the process, whatever the module says to that.
        shim.tell("fail C_CloseSession 30\nfail C_Logout 30");
        provision().delete(&made.locator).unwrap();
    });
}
