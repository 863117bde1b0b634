//! Client libraries that we did not write, unchanged, against the real daemon. Their programs are in `tests/clients/`.

use std::path::{Path, PathBuf};
use std::process::Command;

use tonic_health::ServingStatus;

use crate::support::daemon::{ACCOUNT, TestDaemon};
use crate::support::languages::{self, root};
use crate::support::softhsm::SoftHsm;

const UNIQUE_ID: &str = "104857600000000000001";

/// A daemon with a key, and the key's certificate.
async fn daemon() -> Option<(SoftHsm, TestDaemon, PathBuf)> {
    let token = SoftHsm::new()?;
    let config = TestDaemon::config(&token.toml());
    let with_id = format!("email = \"{ACCOUNT}\"\nunique_id = \"{UNIQUE_ID}\"");
    let config = config.replacen(&format!("email = \"{ACCOUNT}\""), &with_id, 1)
        + "[[account]]\nemail = \"forbidden@project.example\"\n";
    let mut daemon = TestDaemon::prepare(&config);
    daemon.signetctl(&["key", "generate", "--device", "hsm", "--kid", "k"]);
    daemon.spawn();
    daemon.wait_for_health(ServingStatus::Serving).await;
    let certificate = daemon.state().join("certificates/k.pem");
    Some((token, daemon, certificate))
}

/// Runs a client's program; it says itself what it expects.
fn run(mut command: Command, daemon: &TestDaemon, certificate: &Path) {
    let output = command.arg(daemon.socket()).args([ACCOUNT, UNIQUE_ID]).arg(certificate).output().unwrap();
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert!(output.status.success() && said.contains("ok"), "{said}\n{}", daemon.log());
}

#[tokio::test]
async fn python_google_cloud_iam() {
    let Some(python) = languages::python() else { return };
    let Some((_token, daemon, certificate)) = daemon().await else { return };
    let mut command = Command::new(python);
    command.arg(root("tests/clients/python/iam_credentials.py"));
    run(command, &daemon, &certificate);
}

#[tokio::test]
async fn go_iam_credentials() {
    let Some((_token, daemon, certificate)) = daemon().await else { return };
    let programs = daemon.folder().join("go");
    let Some(()) = languages::go("tests/clients/go", &programs) else { return };
    run(Command::new(programs.join("iam")), &daemon, &certificate);
}
