//! Client libraries that we did not write, unchanged, against the real daemon. Their programs are in `tests/clients/`.

use std::path::{Path, PathBuf};
use std::process::Command;

use tonic_health::ServingStatus;

use crate::support::daemon::{ACCOUNT, TestDaemon};
use crate::support::softhsm::SoftHsm;
use crate::support::swtpm::SwTpm;
use crate::support::{skip, skip_optional};

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

/// On a TPM, which is cut off while the library wants tokens.
#[tokio::test]
async fn python_google_auth_by_metadata_on_a_tpm_that_goes_and_comes_back() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/verifiers/bin/python");
    if !python.exists() {
        return skip("target/verifiers (run scripts/deps)", "python3-venv");
    }
    let Some(mut tpm) = SwTpm::start() else { return };
    let device = format!("[[device]]\nname = \"tpm\"\nkind = \"tpm\"\ntcti = {:?}\n", tpm.tcti());
    let rules = "scopes = [\"https://www.googleapis.com/auth/pubsub\", \"https://www.googleapis.com/auth/bigquery\"]
        audiences = [\"https://internal.example/\"]
        [[allow]]
        users = [{uid}]
        accounts = [\"first@project.example\"]
        operations = [\"mint-access-token\"]
        scopes = [\"https://www.googleapis.com/auth/devstorage.*\"]
        max_lifetime = \"200s\"\n";
    let config = TestDaemon::config(&format!("http = \"127.0.0.1:0\"\n{device}")) + rules;
    // Not one of Google's emails: for those the library asks Google, in the background, where the account may be used.
    let config = config.replace(ACCOUNT, "first@project.example").replace("\"sign-digest\", ", "");
    let mut daemon = TestDaemon::prepare(&config);
    daemon.signetctl(&["device", "init", "tpm"]);
    daemon.signetctl(&["key", "generate", "--device", "tpm", "--kid", "k"]);
    daemon.spawn();
    daemon.wait_for_health(ServingStatus::Serving).await;
    let address = daemon.http().to_string();
    let stage = |stage: &str| {
        let mut command = Command::new(&python);
        command.arg(root.join("tests/clients/python/metadata.py")).arg(daemon.state().join("certificates/k.pem"));
        command.args(["first@project.example", stage]).env("CLOUDSDK_CONFIG", daemon.folder());
        for name in ["GCE_METADATA_HOST", "GCE_METADATA_IP", "GCE_METADATA_ROOT"] {
            command.env(name, &address);
        }
        let output = command.env("NO_PROXY", "*").env_remove("GOOGLE_APPLICATION_CREDENTIALS").output().unwrap();
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
        assert!(output.status.success() && said.contains("ok"), "{stage}: {said}\n{}", daemon.log());
    };
    stage("all");
    let short = |line: &serde_json::Value| line["rule"] == 2 && line["outcome"] == "OK";
    assert_eq!(daemon.audit().iter().filter(|line| short(line)).count(), 2, "it asked again before the end");
    tpm.kill();
    daemon.wait_for_health(ServingStatus::NotServing).await;
    stage("pubsub");
    tpm.restart();
    daemon.wait_for_health(ServingStatus::Serving).await;
    stage("devstorage.read_write");
}

/// gcloud, led here as the README says.
#[tokio::test]
async fn gcloud() {
    if !Command::new("gcloud").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return skip_optional("gcloud (https://cloud.google.com/sdk)");
    }
    let Some(token) = SoftHsm::new() else { return };
    let numbered = "[metadata]\n\"project/numeric-project-id\" = \"7\"\n";
    let config = TestDaemon::config(&format!("http = \"127.0.0.1:0\"\n{numbered}{}", token.toml()));
    let mut daemon = TestDaemon::prepare(&config);
    daemon.signetctl(&["key", "generate", "--device", "hsm", "--kid", "k"]);
    daemon.spawn();
    daemon.wait_for_health(ServingStatus::Serving).await;
    // What signetctl reads is where it listens.
    daemon.configure(&config.replace("127.0.0.1:0", &daemon.http().to_string()));
    let gcloud = |arguments: &str| {
        let script = format!("eval \"$(\"$0\" --config \"$1\" env)\" && cd \"$2\" && gcloud {arguments}");
        let mut command = Command::new("bash");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_signetctl")]).arg(daemon.config_file()).arg(daemon.folder());
        let output = command.env("CLOUDSDK_CONFIG", daemon.folder().join("gcloud")).output().unwrap();
        assert!(output.status.success(), "{arguments}: {}\n{}", String::from_utf8_lossy(&output.stderr), daemon.log());
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(gcloud("auth print-access-token").starts_with("eyJ"));
    assert!(gcloud("auth print-identity-token --audiences=https://internal.example").starts_with("eyJ"));
    std::fs::write(daemon.folder().join("claims"), r#"{"aud":"https://internal.example"}"#).unwrap();
    gcloud(&format!("iam service-accounts sign-jwt --iam-account={ACCOUNT} claims signed"));
    assert!(std::fs::read_to_string(daemon.folder().join("signed")).unwrap().starts_with("eyJ"));
    gcloud(&format!("iam service-accounts sign-blob --iam-account={ACCOUNT} claims signature"));
    assert_eq!(std::fs::read(daemon.folder().join("signature")).unwrap().len(), 256);
    assert!(gcloud(&format!("auth print-access-token --impersonate-service-account={ACCOUNT}")).starts_with("eyJ"));
}
