//! TSS2 PRIVATE KEY files: what is read is written as what it was.

#![no_main]

use libfuzzer_sys::fuzz_target;
use signet::device::tss2::Tss2Key;

fuzz_target!(|text: &str| {
    let Ok(key) = Tss2Key::from_pem(text) else { return };
    assert_eq!(Tss2Key::from_pem(&key.to_pem().unwrap()).unwrap(), key);
});
