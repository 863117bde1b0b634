//! A PKCS#11 token that misbehaves: what is refused before the PIN is risked, and what a session survives.

use std::fs;

use signet::device::{self, Device, DeviceConfig, DeviceError, NewKey, Pkcs11Config, TokenSelector};
use signet::key::{Algorithm, Digest, Hash, KeyLocator, PublicKey, Signature};

use crate::support::modules::Shim;
use crate::support::softhsm::SoftHsm;

#[test]
fn the_final_pin_try_is_left_to_the_operator() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    token.child(&shim.environment(), || {
        shim.tell("final-try");
        let Err(DeviceError::PinRefused(why)) = device::open(&shim.config()) else { panic!("the last try was spent") };
        assert!(why.contains("allow_final_pin_try"), "{why}");
        let allowed = Pkcs11Config { allow_final_pin_try: true, ..shim.pkcs11() };
        assert!(device::open(&token.config_with(allowed)).is_ok());
    });
}

#[test]
fn a_locked_pin_is_not_tried() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    token.child(&shim.environment(), || {
        shim.tell("locked");
        let Err(DeviceError::PinRefused(why)) = device::open(&shim.config()) else { panic!("it was tried") };
        assert!(why.contains("security officer"), "{why}");
        // It was not refused, so nothing is latched: once it is unlocked, it opens.
        shim.tell("");
        assert!(device::open(&shim.config()).is_ok());
    });
}

#[test]
fn no_token_is_initialised_where_no_slot_is_free_or_the_pin_is_too_short() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    let short = token.directory.join("short");
    fs::write(&short, "123").unwrap();
    token.child(&shim.environment(), || {
        let so_pin = device::Pin::read(&token.directory.join("so-pin")).unwrap();
        let fresh = Pkcs11Config { token: TokenSelector::Label("fresh".to_owned()), ..shim.pkcs11() };
        let too_short = Pkcs11Config { pin_file: Some(short), ..fresh.clone() };
        for (fault, pkcs11, expected) in [("full", fresh, "no slot"), ("", too_short, "3 bytes")] {
            shim.tell(fault);
            let refused = device::init(&token.config_with(pkcs11), Some(&so_pin));
            let Err(DeviceError::Misconfigured(why)) = refused else { panic!("{refused:?}") };
            assert!(why.contains(expected), "{why}");
        }
    });
}

#[test]
fn a_token_of_one_session_signs() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    token.child(&shim.environment(), || {
        generate(&token.config());
        shim.tell("one-session");
        let config = token.config_with(Pkcs11Config { sessions: 4, ..shim.pkcs11() });
        {
            let mut devices = device::open(&config).unwrap();
            assert_eq!(devices.len(), 1);
            sign(&mut *devices[0], Algorithm::Rs256).unwrap();
        }
        // Provisioning gets by with one as well.
        assert_eq!(device::provision(&config, None).unwrap().list().unwrap().len(), 1);
    });
}

#[test]
fn a_session_is_discarded_after_a_fault_of_the_token() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    token.child(&shim.environment(), || {
        generate(&token.config());
        let mut devices = device::open(&shim.config()).unwrap();
        let [one, other] = devices.as_mut_slice() else { panic!("{} devices", devices.len()) };
        shim.tell("fail 30");
        let failed = sign(&mut **one, Algorithm::Rs256);
        assert!(matches!(failed, Err(DeviceError::Away(_))), "{failed:?}");
        shim.tell("");
        assert_eq!(sign(&mut **one, Algorithm::Rs256), failed);
        sign(&mut **other, Algorithm::Rs256).unwrap();
    });
}

#[test]
fn a_session_survives_what_the_token_cannot_do() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    token.child(&shim.environment(), || {
        generate(&token.config());
        let mut device = device::open(&shim.config()).unwrap().pop().unwrap();
        shim.tell("fail 71");
        let refused = sign(&mut *device, Algorithm::Ps256);
        assert!(matches!(refused, Err(DeviceError::Unsupported(_))), "{refused:?}");
        shim.tell("");
        sign(&mut *device, Algorithm::Rs256).unwrap();
    });
}

#[test]
fn a_flipped_bit_does_not_verify() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    token.child(&shim.environment(), || {
        let public_key = generate(&token.config());
        let mut device = device::open(&shim.config()).unwrap().pop().unwrap();
        shim.tell("flip");
        let signature = sign(&mut *device, Algorithm::Rs256).unwrap();
        assert!(public_key.verify(Algorithm::Rs256, &digest(), &signature).is_err());
    });
}

#[test]
fn a_token_that_vanished_is_back_in_the_next_process() {
    let Some(token) = SoftHsm::new() else { return };
    let (tokens, away) = (token.directory.join("tokens"), token.directory.join("away"));
    token.child(&[], || {
        generate(&token.config());
    });
    token.child(&[], || {
        let mut device = device::open(&token.config()).unwrap().pop().unwrap();
        sign(&mut *device, Algorithm::Rs256).unwrap();
        fs::rename(&tokens, &away).unwrap();
        let lost = sign(&mut *device, Algorithm::Rs256);
        assert!(matches!(lost, Err(DeviceError::Away(_))), "{lost:?}");
        fs::rename(&away, &tokens).unwrap();
        assert_eq!(sign(&mut *device, Algorithm::Rs256), lost);
    });
    token.child(&[], || {
        let mut device = device::open(&token.config()).unwrap().pop().unwrap();
        sign(&mut *device, Algorithm::Rs256).unwrap();
    });
}

#[test]
fn sessions_sign_at_once() {
    let Some(token) = SoftHsm::new() else { return };
    token.child(&[], || {
        let public_key = generate(&token.config());
        let config = token.config_with(Pkcs11Config { sessions: 4, ..token.pkcs11() });
        std::thread::scope(|scope| {
            for mut device in device::open(&config).unwrap() {
                let public_key = &public_key;
                scope.spawn(move || {
                    for _ in 0..100 {
                        let signature = sign(&mut *device, Algorithm::Rs256).unwrap();
                        public_key.verify(Algorithm::Rs256, &digest(), &signature).unwrap();
                    }
                });
            }
        });
    });
}

fn generate(config: &DeviceConfig) -> PublicKey {
    let key = NewKey { label: "key".to_owned(), algorithm: Algorithm::Rs256, bits: 2048 };
    device::provision(config, None).unwrap().generate(&key).unwrap().public_key
}

fn sign(device: &mut (impl Device + ?Sized), algorithm: Algorithm) -> Result<Signature, DeviceError> {
    device.sign(&KeyLocator::Pkcs11("pkcs11:object=key;type=private".to_owned()), algorithm, &digest())
}

fn digest() -> Digest {
    Digest::of(Hash::Sha256, b"message")
}
