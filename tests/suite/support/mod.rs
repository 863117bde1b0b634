//! What the tests run against.

pub(crate) mod daemon;
pub(crate) mod desk;
pub(crate) mod fake;
pub(crate) mod http;
pub(crate) mod keys;
pub(crate) mod languages;
pub(crate) mod modules;
pub(crate) mod softhsm;
pub(crate) mod swtpm;
pub(crate) mod tpm_proxy;

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

/// Longer than anything here takes on a slow machine: a test that waits so long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until something is so.
pub(crate) async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < until, "it never came to this: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Writes a file that nobody else may read, as a PIN's must be.
pub(crate) fn write_private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

/// `signetctl` with this configuration, and with nothing of the environment's that would tell it another one.
pub(crate) fn signetctl(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_signetctl"));
    command.arg("--config").arg(config).stdin(Stdio::null());
    command.env_remove("SIGNET_CONFIG").env_remove("SIGNET_SOCKET").env_remove("CREDENTIALS_DIRECTORY");
    command
}

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
