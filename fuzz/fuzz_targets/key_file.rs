//! Key files to be imported, JSON and PEM: no error tells what stands in them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use signet::ctl::read_key_file;

fuzz_target!(|data: &[u8]| {
    let Err(said) = read_key_file(data) else { return };
    assert!(said.len() < 1024, "{said}");
    assert!(!data.windows(200).any(|part| str::from_utf8(part).is_ok_and(|part| said.contains(part))), "{said}");
});
