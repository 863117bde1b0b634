//! Secrets stay where they belong: a canary PIN and canary claims are searched for in everything that comes out (T9).

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use signet::proto::{self, mint_jwt_access_token_request as mint, sign_blob_request as blob};
use tonic_health::ServingStatus;

use crate::support::daemon::TestDaemon;
use crate::support::softhsm::SoftHsm;

const CLAIM: &str = "canary-claim-7d1f0c";
const BLOB: &str = "canary-blob-93b2aa";
const AUDIENCE: &str = "https://canary-audience-51c7e4.example/";
const SCOPE: &str = "https://canary-scope-b01dfa.example/auth";
const VARIABLE: &str = "canary-variable-0e61b9";
const WRONG_PIN: &str = "canary-wrong-pin-5521";

/// The forms in which something might show.
fn forms(secret: &str) -> Vec<String> {
    let debug: Vec<_> = secret.bytes().map(|byte| byte.to_string()).collect();
    // Base64 of a text depends on where it begins: three alignments, without the characters at the edges.
    let encoded = (0..3).flat_map(|shift| {
        let shifted = [&vec![b'x'; shift], secret.as_bytes()].concat();
        [STANDARD.encode(&shifted), URL_SAFE_NO_PAD.encode(&shifted)].map(|text| text[4..text.len() - 4].to_owned())
    });
    let hexadecimal = signet::key::hexadecimal(secret.as_bytes());
    [secret.to_owned(), debug.join(", "), hexadecimal.to_uppercase(), hexadecimal].into_iter().chain(encoded).collect()
}

fn leaks(place: &str, contents: &[u8], secrets: &[&str]) -> Vec<String> {
    let found = |form: &String| contents.windows(form.len()).any(|window| window == form.as_bytes());
    let all = secrets.iter().flat_map(|secret| forms(secret).into_iter().map(move |form| (secret, form)));
    all.filter(|(_, form)| found(form)).map(|(secret, form)| format!("{secret} as {form} in {place}")).collect()
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn no_pin_claim_or_result_shows_in_logs_audit_or_processes() {
    let Some(token) = SoftHsm::new() else { return };
    let device = token.toml().replace("environment = { ", &format!("environment = {{ HSM_SECRET = \"{VARIABLE}\", "));
    let mut daemon = TestDaemon::prepare(&TestDaemon::config(&device));
    daemon.log_level = "trace,signet=trace";
    daemon.signetctl(&["key", "generate", "--device", "hsm"]);
    daemon.spawn();
    daemon.wait_for_health(ServingStatus::Serving).await;
    let mut client = daemon.client();
    let input = Some(blob::Input::Payload(BLOB.as_bytes().to_vec().into()));
    let signed =
        client.sign_blob(proto::SignBlobRequest { account: String::new(), input, algorithm: 0 }).await.unwrap();
    let claims = format!(r#"{{"aud":"{AUDIENCE}","canary":"{CLAIM}"}}"#);
    let jwt = client.sign_jwt(proto::SignJwtRequest { account: String::new(), claims: claims.clone() }).await.unwrap();
    let broken = proto::SignJwtRequest { account: String::new(), claims: claims + "!" };
    client.sign_jwt(broken).await.unwrap_err();
    for target in [
        mint::Target::Audience(AUDIENCE.to_owned()),
        mint::Target::Scopes(proto::Scopes { scope: vec![SCOPE.to_owned()] }),
        mint::Target::Scopes(proto::Scopes { scope: vec![format!("{SCOPE} {CLAIM}")] }),
    ] {
        let request = proto::MintJwtAccessTokenRequest { account: String::new(), target: Some(target), lifetime: None };
        let _ = client.mint_jwt_access_token(request).await;
    }
    let jwt = jwt.into_inner().jwt;
    let (_, signature) = jwt.rsplit_once('.').unwrap();
    let blob_signature = STANDARD.encode(&signed.into_inner().signature);
    let pin = fs::read_to_string(token.pin_file()).unwrap();
    let secrets = [pin.trim(), CLAIM, BLOB, AUDIENCE, SCOPE, &jwt, signature, &blob_signature];

    let device = daemon.device_process();
    let told = |pid: i32, name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap();
    let mut found = Vec::new();
    for pid in daemon.processes() {
        for name in ["environ", "cmdline"] {
            found.extend(leaks(&format!("{name} of {pid}"), &told(pid, name), &secrets));
        }
        // The environment of the module is for its process alone, and arguments are everybody's.
        let shown: &[&str] = if pid == device { &["cmdline"] } else { &["environ", "cmdline"] };
        for name in shown {
            found.extend(leaks(&format!("{name} of {pid}"), &told(pid, name), &[VARIABLE]));
        }
    }
    assert_eq!(leaks("environ", &told(device, "environ"), &[VARIABLE]).len(), 1);
    assert!(daemon.processes().len() > 2, "the device process was looked at too");
    assert!(daemon.stop().success());
    for file in files(daemon.folder()) {
        let contents = fs::read(&file).unwrap();
        found.extend(leaks(file.to_str().unwrap(), &contents, &secrets));
        if file != daemon.config_file() {
            found.extend(leaks(file.to_str().unwrap(), &contents, &[VARIABLE]));
        }
    }
    assert_eq!(found, [""; 0]);
    // The search does find what is there, and the log did say something.
    assert_eq!(leaks("pin", pin.as_bytes(), &[pin.trim()]).len(), 1);
    assert!(!leaks("jwt", jwt.as_bytes(), &[CLAIM]).is_empty());
    let log = fs::read_to_string(daemon.log_file()).unwrap();
    assert!(log.contains("TRACE") && log.contains("opened by its process"), "the device process logs too");
}

#[tokio::test]
async fn a_refused_pin_shows_nowhere() {
    let Some(token) = SoftHsm::new() else { return };
    let mut daemon = TestDaemon::prepare(&TestDaemon::config(&token.toml()));
    daemon.log_level = "trace,signet=trace";
    token.write_pin(WRONG_PIN);
    for _ in 0..2 {
        daemon.spawn();
        daemon.wait_for_log("the PIN was refused");
        daemon.wait_for_log("signetctl device unlatch");
        assert!(daemon.stop().success());
    }
    let found: Vec<_> = files(daemon.folder())
        .into_iter()
        .flat_map(|file| leaks(file.to_str().unwrap(), &fs::read(&file).unwrap(), &[WRONG_PIN]))
        .collect();
    assert_eq!(found, [""; 0]);
}
