//! What the tests run against.

pub(crate) mod daemon;
pub(crate) mod desk;
pub(crate) mod fake;
pub(crate) mod keys;
pub(crate) mod modules;
pub(crate) mod softhsm;
pub(crate) mod swtpm;
pub(crate) mod tpm_proxy;

use std::io::Write as _;

/// Says that a test can't run here. In CI that is a failure: there every device must be present.
pub(crate) fn skip(what: &str, package: &str) {
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{what} is missing: apt-get install {package}");
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    // Past the test harness, which swallows what a passing test prints.
    let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {what} is missing: apt-get install {package}");
}

/// Says that a test can't run here for want of something that no Debian package has: no failure, not even in CI.
pub(crate) fn skip_optional(what: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {what} is missing");
}
