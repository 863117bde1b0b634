//! What a device is: every implementation of [`Device`] passes [`contract`].

use std::collections::HashSet;

use signet::device::{Device, DeviceError};
use signet::key::{Algorithm, Digest, Hash, KeyLocator, KeyType, PublicKey};

use crate::support::fake::{Fake, locator};

/// Holds a device to what the rest of Signet relies on. `keys` are in it, by what was recorded of them; `unknown` is not.
pub(crate) fn contract(device: &mut dyn Device, keys: &[(KeyLocator, PublicKey)], unknown: &KeyLocator) {
    for (locator, recorded) in keys {
        assert_eq!(device.public_key(locator).unwrap(), *recorded);
        signs_what_it_can(device, locator, recorded);
        refuses_what_it_cannot(device, locator, recorded);
        signs_on(device, locator, recorded);
    }
    refuses_an_unknown_key(device, unknown);
    // Whatever was refused above must not have cost the device its keys.
    for (locator, recorded) in keys {
        signs(device, locator, recorded, recorded.key_type().default_algorithm(), b"after all");
    }
}

#[test]
fn the_fake_is_a_device() {
    let fake = Fake::new();
    let mut device = fake.device();
    let keys = ["rsa", "ec"].map(|name| (locator(name), device.public_key(&locator(name)).unwrap()));
    contract(&mut device, &keys, &locator("missing"));
}

fn signs_what_it_can(device: &mut dyn Device, locator: &KeyLocator, recorded: &PublicKey) {
    for algorithm in Algorithm::ALL.into_iter().filter(|algorithm| algorithm.key_type() == recorded.key_type()) {
        for message in [b"".as_slice(), b"message", &[0xff; 100_000]] {
            let first = signs(device, locator, recorded, algorithm, message);
            let second = signs(device, locator, recorded, algorithm, message);
            match algorithm {
                Algorithm::Rs256 | Algorithm::Rs384 | Algorithm::Rs512 => {
                    assert_eq!(first, second, "{algorithm} is deterministic");
                }
                Algorithm::Ps256 => assert_ne!(first, second, "{algorithm} is salted"),
                Algorithm::Es256 => {}
            }
        }
    }
}

fn refuses_what_it_cannot(device: &mut dyn Device, locator: &KeyLocator, recorded: &PublicKey) {
    for algorithm in Algorithm::ALL {
        for hash in [Hash::Sha256, Hash::Sha384, Hash::Sha512] {
            if algorithm.key_type() == recorded.key_type() && algorithm.hash() == hash {
                continue;
            }
            let refused = device.sign(locator, algorithm, &Digest::of(hash, b"message"));
            assert!(matches!(refused, Err(DeviceError::Unsupported(_))), "{algorithm} of {hash:?}: {refused:?}");
        }
    }
}

/// Two hundred messages, two hundred different signatures, each right.
fn signs_on(device: &mut dyn Device, locator: &KeyLocator, recorded: &PublicKey) {
    let algorithm = recorded.key_type().default_algorithm();
    let signatures: HashSet<_> =
        (0..200_u32).map(|number| signs(device, locator, recorded, algorithm, &number.to_le_bytes())).collect();
    assert_eq!(signatures.len(), 200);
}

fn refuses_an_unknown_key(device: &mut dyn Device, unknown: &KeyLocator) {
    let refused = device.public_key(unknown);
    assert!(matches!(refused, Err(DeviceError::Permanent(_))), "{refused:?}");
    let refused = device.sign(unknown, Algorithm::Rs256, &Digest::of(Hash::Sha256, b"message"));
    assert!(matches!(refused, Err(DeviceError::Permanent(_))), "{refused:?}");
}

fn signs(
    device: &mut dyn Device,
    locator: &KeyLocator,
    recorded: &PublicKey,
    algorithm: Algorithm,
    message: &[u8],
) -> Vec<u8> {
    let digest = Digest::of(algorithm.hash(), message);
    let signature = device.sign(locator, algorithm, &digest).unwrap();
    recorded
        .verify(algorithm, &digest, &signature)
        .unwrap_or_else(|_bad| panic!("{algorithm} over {} bytes", message.len()));
    let length = match recorded.key_type() {
        KeyType::Rsa => recorded.bits().div_ceil(8),
        KeyType::EcP256 => 64,
    };
    assert_eq!(signature.as_bytes().len(), length);
    signature.into_bytes()
}
