//! The TPM device, on swtpm.

use signet::device::{Device, DeviceError, NewKey, tpm};
use signet::key::{Algorithm, Digest, KeyLocator, PublicKey};

use crate::support::swtpm::{SwTpm, TpmSettings};

/// A key for this algorithm, made in the TPM.
fn generated(settings: &TpmSettings, algorithm: Algorithm, persistent: bool) -> signet::device::CreatedKey {
    let mut provision = tpm::provision(&settings.device, &settings.tpm, persistent).unwrap();
    provision.generate(&NewKey { label: "test".to_owned(), algorithm, bits: 2048 }).unwrap()
}

fn opened(settings: &TpmSettings) -> Box<dyn Device + Send> {
    tpm::open(&settings.device, &settings.tpm).unwrap().remove(0)
}

fn signs(device: &mut dyn Device, key: &KeyLocator, public_key: &PublicKey, algorithm: Algorithm) {
    let digest = Digest::of(algorithm.hash(), b"message");
    let signature = device.sign(key, algorithm, &digest).unwrap();
    public_key.verify(algorithm, &digest, &signature).unwrap_or_else(|bad| panic!("{algorithm}: {bad}"));
}

#[test]
fn a_generated_key_signs_every_algorithm_of_its_kind() {
    let Some(swtpm) = SwTpm::start() else { return };
    let settings = TpmSettings::initialised(&swtpm.tcti(), Some("auth of the keys"));
    for (made_for, algorithms) in [
        (Algorithm::Rs256, &[Algorithm::Rs256, Algorithm::Rs384, Algorithm::Rs512, Algorithm::Ps256][..]),
        (Algorithm::Es256, &[Algorithm::Es256]),
    ] {
        let key = generated(&settings, made_for, false);
        let mut device = opened(&settings);
        assert_eq!(device.public_key(&key.locator).unwrap(), key.public_key);
        for algorithm in algorithms {
            signs(&mut *device, &key.locator, &key.public_key, *algorithm);
        }
        let other = Algorithm::ALL.into_iter().find(|algorithm| !algorithms.contains(algorithm)).unwrap();
        let refused = device.sign(&key.locator, other, &Digest::of(other.hash(), b"")).unwrap_err();
        assert!(matches!(refused, DeviceError::Unsupported(_)), "{refused}");
    }
}

#[test]
fn a_persistent_key_signs_is_listed_and_goes() {
    let Some(swtpm) = SwTpm::start() else { return };
    let settings = TpmSettings::initialised(&swtpm.tcti(), Some("auth of the keys"));
    let key = generated(&settings, Algorithm::Rs256, true);
    assert_eq!(key.locator, KeyLocator::Handle(0x8100_0002));
    assert!(key.tss2.is_some(), "the key's source must stay available");
    let mut device = opened(&settings);
    assert_eq!(device.public_key(&key.locator).unwrap(), key.public_key);
    signs(&mut *device, &key.locator, &key.public_key, Algorithm::Rs256);
    drop(device);

    let second = generated(&settings, Algorithm::Es256, true);
    assert_eq!(second.locator, KeyLocator::Handle(0x8100_0003));
    let mut provision = tpm::provision(&settings.device, &settings.tpm, true).unwrap();
    let listed = provision.list().unwrap();
    let found: Vec<_> = listed.iter().map(|key| (key.locator.clone(), key.public_key.clone().unwrap())).collect();
    let expected = [&key, &second].map(|key| (key.locator.clone(), key.public_key.clone()));
    assert_eq!(found, expected);
    provision.delete(&key.locator).unwrap();
    assert_eq!(provision.list().unwrap().len(), 1);
    let gone = provision.public_key(&key.locator).unwrap_err();
    assert!(matches!(gone, DeviceError::Permanent(_)), "{gone}");
    assert!(provision.delete(&KeyLocator::Handle(0x8100_0001)).is_err(), "the parent was deleted");
}

#[test]
fn after_a_power_cut_the_same_device_signs_again() {
    let Some(mut swtpm) = SwTpm::start() else { return };
    let settings = TpmSettings::initialised(&swtpm.tcti(), Some("auth of the keys"));
    let key = generated(&settings, Algorithm::Rs256, false);
    let mut device = opened(&settings);
    // Four times: with dictionary attack protection the third would have locked the TPM.
    for _ in 0..4 {
        signs(&mut *device, &key.locator, &key.public_key, Algorithm::Rs256);
        swtpm.kill();
        let digest = Digest::of(Algorithm::Rs256.hash(), b"");
        let away = device.sign(&key.locator, Algorithm::Rs256, &digest).unwrap_err();
        assert!(matches!(away, DeviceError::Away(_)), "{away}");
        swtpm.restart();
        signs(&mut *device, &key.locator, &key.public_key, Algorithm::Rs256);
    }
}

#[test]
fn on_another_tpm_the_keys_are_sealed() {
    let Some(mut swtpm) = SwTpm::start() else { return };
    let settings = TpmSettings::initialised(&swtpm.tcti(), None);
    let key = generated(&settings, Algorithm::Rs256, false);
    let mut device = opened(&settings);
    signs(&mut *device, &key.locator, &key.public_key, Algorithm::Rs256);
    let sealed = |error: DeviceError| {
        assert!(matches!(&error, DeviceError::Permanent(why) if why.contains("sealed to another TPM")), "{error}");
    };

    // A TPM without a parent, then one with a parent of its own, then that parent taken for the right one.
    swtpm.replace();
    let digest = Digest::of(Algorithm::Rs256.hash(), b"");
    sealed(device.sign(&key.locator, Algorithm::Rs256, &digest).unwrap_err());
    let other = TpmSettings::initialised(&swtpm.tcti(), None);
    sealed(device.sign(&key.locator, Algorithm::Rs256, &digest).unwrap_err());
    sealed(tpm::open(&settings.device, &settings.tpm).err().unwrap());
    sealed(opened(&other).sign(&key.locator, Algorithm::Rs256, &digest).unwrap_err());
}
