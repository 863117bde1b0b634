//! The keyring: what is read is written as what it was.

#![no_main]

use libfuzzer_sys::fuzz_target;
use signet::file::StateDir;
use signet::keyring::Keyring;
use signet_fuzz::SCRATCH;

fuzz_target!(|data: &[u8]| {
    SCRATCH.with(|scratch| {
        let state = StateDir::new(scratch.path(""));
        scratch.write("keyring.json", data);
        let Ok(keyring) = Keyring::load(&state) else { return };
        keyring.save(&state).unwrap();
        assert_eq!(Keyring::load(&state).unwrap(), keyring);
    });
});
