//! Client libraries that we did not write, unchanged, against the real daemon. Their programs are in `tests/clients/`.

use std::path::{Path, PathBuf};
use std::process::Command;

use tonic_health::ServingStatus;

use crate::support::daemon::{ACCOUNT, TestDaemon};
use crate::support::skip;
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
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/verifiers/bin/python");
    let imports = Command::new(&python).args(["-c", "import google.cloud.iam_credentials_v1"]).output();
    if !imports.is_ok_and(|output| output.status.success()) {
        return skip("google-cloud-iam in target/verifiers (run scripts/deps)", "python3-venv");
    }
    let Some((_token, daemon, certificate)) = daemon().await else { return };
    let mut command = Command::new(python);
    command.arg(root.join("tests/clients/python/iam_credentials.py"));
    run(command, &daemon, &certificate);
}

#[tokio::test]
async fn go_iam_credentials() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/go");
    if !Command::new("go").arg("version").output().is_ok_and(|output| output.status.success()) {
        return skip("Go 1.24 or newer (https://go.dev/dl)", "golang-go, where it is new enough");
    }
    let Some((_token, daemon, certificate)) = daemon().await else { return };
    let program = daemon.folder().join("iam");
    let mut build = Command::new("go");
    build.args(["build", "-mod=readonly", "-o"]).arg(&program).arg("./iam").current_dir(folder);
    let built = build.output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    run(Command::new(program), &daemon, &certificate);
}
