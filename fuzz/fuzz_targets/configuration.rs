//! The configuration with its rules: what is taken keeps the promises that policy relies on.

#![no_main]

use libfuzzer_sys::fuzz_target;
use signet::access::Operation;
use signet::config::Config;
use signet_fuzz::SCRATCH;

fuzz_target!(|data: &[u8]| {
    SCRATCH.with(|scratch| {
        for name in ["pin", "module.so"] {
            if !scratch.path(name).exists() {
                scratch.write(name, b"");
            }
        }
        // The module's path is absolute, so a seed can't know it.
        let text = String::from_utf8_lossy(data).replace("FOLDER", scratch.path("").to_str().unwrap());
        let path = scratch.write("signet.toml", text.as_bytes());
        match Config::load(&path) {
            Ok(config) => {
                assert!(!config.devices.is_empty());
                for rule in config.policy.rules() {
                    assert!(
                        rule.users.is_some() || rule.groups.is_some() || rule.units.is_some(),
                        "a rule for everybody"
                    );
                    assert!(!(rule.limits_contents() && rule.operations.contains(&Operation::SignDigest)));
                    assert!(rule.accounts.iter().all(|account| config.policy.account(account).is_some()));
                }
            }
            Err(error) => assert!(!error.what.is_empty() && !error.remedy.is_empty()),
        }
    });
});
