//! Every rpc end to end, on every device; and what becomes of the daemon's devices and callers while it serves.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use signet::keyring::Keyring;
use signet::proto::{self, mint_jwt_access_token_request as mint, sign_blob_request as blob};
use tonic::{Code, Request};
use tonic_health::ServingStatus;
use tonic_types::StatusExt as _;

use crate::support::daemon::{ACCOUNT, TestDaemon, now, payload, reason};
use crate::support::eventually;
use crate::support::softhsm::SoftHsm;
use crate::support::swtpm::SwTpm;

/// A daemon with one key in a SoftHSM token, ready to sign.
pub(crate) async fn on_softhsm() -> Option<(SoftHsm, TestDaemon)> {
    let token = SoftHsm::new()?;
    let mut daemon = TestDaemon::prepare(&TestDaemon::config(&token.toml()));
    daemon.signetctl(&["key", "generate", "--device", "hsm"]);
    daemon.spawn();
    daemon.wait_for_health(ServingStatus::Serving).await;
    Some((token, daemon))
}

/// The same with a port for HTTP, and where that is; its configuration is changed first.
pub(crate) async fn over_http(change: impl FnOnce(String) -> String) -> Option<(SoftHsm, TestDaemon, SocketAddr)> {
    let token = SoftHsm::new()?;
    let config = TestDaemon::config(&format!("http = \"127.0.0.1:0\"\n{}", token.toml()));
    let mut daemon = TestDaemon::prepare(&change(config));
    daemon.signetctl(&["key", "generate", "--device", "hsm", "--kid", "k"]);
    daemon.spawn();
    daemon.wait_for_health(ServingStatus::Serving).await;
    let address = daemon.http();
    Some((token, daemon, address))
}

/// A TPM with one key for a daemon that does not run yet.
pub(crate) fn on_swtpm() -> Option<(SwTpm, TestDaemon)> {
    let tpm = SwTpm::start()?;
    let device = format!("[[device]]\nname = \"tpm\"\nkind = \"tpm\"\ntcti = \"{}\"\n", tpm.tcti());
    let daemon = TestDaemon::prepare(&TestDaemon::config(&device));
    daemon.signetctl(&["device", "init", "tpm"]);
    daemon.signetctl(&["key", "generate", "--device", "tpm"]);
    Some((tpm, daemon))
}

/// Has OpenSSL verify a signature.
fn openssl_verifies(folder: &std::path::Path, certificate: &str, options: &[&str], message: &[u8], signature: &[u8]) {
    let path = |name: &str| folder.join(name).into_os_string().into_string().unwrap();
    fs::write(path("certificate"), certificate).unwrap();
    fs::write(path("message"), message).unwrap();
    fs::write(path("signature"), signature).unwrap();
    let run = |arguments: &[&str]| Command::new("openssl").args(arguments).output().unwrap();
    fs::write(path("key"), run(&["x509", "-in", &path("certificate"), "-pubkey", "-noout"]).stdout).unwrap();
    let (key, signature, message) = (path("key"), path("signature"), path("message"));
    let verify = [&["dgst"], options, &["-verify", &key, "-signature", &signature, &message]].concat();
    let output = run(&verify);
    assert!(output.status.success(), "{options:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn decoded(segment: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(segment).unwrap()).unwrap()
}

/// Asks every rpc, and has OpenSSL verify what comes.
async fn every_rpc(daemon: &TestDaemon) {
    let mut client = daemon.client();
    let request = proto::GetPublicCertificatesRequest { account: String::new() };
    let published = client.get_public_certificates(request).await.unwrap().into_inner();
    let [certificate] = published.certificates.as_slice() else { panic!("one key was made") };
    let (kid, pem) = (certificate.key_id.as_str(), certificate.x509_pem.as_str());
    let today = i64::try_from(now()).unwrap();
    assert!(certificate.not_before.unwrap().seconds <= today && certificate.not_after.unwrap().seconds > today);
    let jwks: Value = serde_json::from_str(&published.jwks).unwrap();
    assert_eq!(jwks["keys"][0]["kid"], kid);

    let request = proto::GetAccountRequest { account: ACCOUNT.to_owned() };
    let account = client.get_account(request).await.unwrap().into_inner();
    assert_eq!(
        (account.email.as_str(), account.project_id.as_str(), account.key_id.as_str()),
        (ACCOUNT, "project", kid)
    );

    let pss = ["-sha256", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32"];
    for (algorithm, options) in [
        (proto::Algorithm::Unspecified, ["-sha256"].as_slice()),
        (proto::Algorithm::Rs256, &["-sha256"]),
        (proto::Algorithm::Rs384, &["-sha384"]),
        (proto::Algorithm::Rs512, &["-sha512"]),
        (proto::Algorithm::Ps256, &pss),
    ] {
        for message in [b"".as_slice(), b"GOOG4-RSA-SHA256\nmessage", &vec![7; 1 << 20]] {
            let request = proto::SignBlobRequest { algorithm: algorithm.into(), ..payload(message) };
            let signed = client.sign_blob(request).await.unwrap().into_inner();
            openssl_verifies(daemon.folder(), pem, options, message, &signed.signature);
            assert_eq!(signed.key_id, kid);
            assert_ne!(signed.algorithm(), proto::Algorithm::Unspecified);
        }
    }
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"hashed here").as_ref().to_vec();
    let input = Some(blob::Input::Digest(digest.into()));
    let signed = client.sign_blob(proto::SignBlobRequest { input, ..payload(b"") }).await.unwrap().into_inner();
    openssl_verifies(daemon.folder(), pem, &["-sha256"], b"hashed here", &signed.signature);

    let verified = |jwt: &str, key_id: &str| {
        let (input, signature) = jwt.rsplit_once('.').unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        openssl_verifies(daemon.folder(), pem, &["-sha256"], input.as_bytes(), &signature);
        assert_eq!(key_id, kid);
        let (header, claims) = input.split_once('.').unwrap();
        assert_eq!(decoded(header), json!({"alg": "RS256", "typ": "JWT", "kid": kid}));
        decoded(claims)
    };
    let claims = r#"{"sub":"svc@project.iam.gserviceaccount.com","aud":"https://a.example/","n":1}"#.to_owned();
    let answer = client.sign_jwt(proto::SignJwtRequest { account: String::new(), claims }).await.unwrap().into_inner();
    let claims = verified(&answer.jwt, &answer.key_id);
    let exp = answer.expire_time.unwrap().seconds;
    assert_eq!(claims, json!({"sub": ACCOUNT, "aud": "https://a.example/", "n": 1, "exp": exp}));
    let left = exp - i64::try_from(now()).unwrap();
    assert!((3590..=3600).contains(&left), "{left}");

    let scopes = mint::Target::Scopes(proto::Scopes { scope: vec!["s1".to_owned(), "s2".to_owned()] });
    let audience = mint::Target::Audience("https://pubsub.googleapis.com/".to_owned());
    for (target, name, value) in [(scopes, "scope", "s1 s2"), (audience, "aud", "https://pubsub.googleapis.com/")] {
        let lifetime = Some(prost_types::Duration { seconds: 600, nanos: 0 });
        let request = proto::MintJwtAccessTokenRequest { account: String::new(), target: Some(target), lifetime };
        let answer = client.mint_jwt_access_token(request).await.unwrap().into_inner();
        let claims = verified(&answer.access_token, &answer.key_id);
        let exp = answer.expire_time.unwrap().seconds;
        assert_eq!(claims, json!({"iss": ACCOUNT, "sub": ACCOUNT, name: value, "iat": exp - 600, "exp": exp}));
        assert_eq!(answer.token_type, "Bearer");
    }

    let audience = "https://app.example/".to_owned();
    let request = proto::MintIdTokenRequest { account: String::new(), audience, include_email: true, lifetime: None };
    let answer = client.mint_id_token(request).await.unwrap().into_inner();
    let claims = verified(&answer.id_token, &answer.key_id);
    assert_eq!((&claims["aud"], &claims["email"]), (&json!("https://app.example/"), &json!(ACCOUNT)));
    assert_eq!((&claims["sub"], &claims["email_verified"]), (&json!(ACCOUNT), &json!(true)));
    assert_eq!(claims["exp"], answer.expire_time.unwrap().seconds);
}

#[tokio::test]
async fn every_rpc_signs_in_a_pkcs11_token() {
    let Some((_token, daemon)) = on_softhsm().await else { return };
    every_rpc(&daemon).await;
}

#[tokio::test]
async fn every_rpc_signs_in_a_tpm() {
    let Some((_tpm, mut daemon)) = on_swtpm() else { return };
    daemon.spawn();
    daemon.wait_for_health(ServingStatus::Serving).await;
    every_rpc(&daemon).await;
}

#[tokio::test]
async fn a_tpm_that_is_absent_at_start_and_later_again_is_served_when_it_returns() {
    let Some((mut tpm, mut daemon)) = on_swtpm() else { return };
    tpm.kill();
    daemon.spawn();
    daemon.wait_for_log("the device can't be used");
    daemon.wait_for_health(ServingStatus::NotServing).await;
    let status = daemon.client().sign_blob(payload(b"message")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.get_error_details().retry_info().unwrap().retry_delay.is_some());
    for _ in 0..2 {
        tpm.restart();
        daemon.wait_for_health(ServingStatus::Serving).await;
        daemon.client().sign_blob(payload(b"message")).await.unwrap();
        tpm.kill();
        assert!(daemon.client().sign_blob(payload(b"message")).await.is_err());
        daemon.wait_for_health(ServingStatus::NotServing).await;
    }
}

#[tokio::test]
async fn a_swapped_tpm_signs_nothing_and_an_operator_is_told() {
    let Some((mut tpm, mut daemon)) = on_swtpm() else { return };
    daemon.spawn();
    daemon.wait_for_health(ServingStatus::Serving).await;
    tpm.replace();
    assert!(daemon.client().sign_blob(payload(b"message")).await.is_err());
    daemon.wait_for_health(ServingStatus::NotServing).await;
    let status = daemon.client().sign_blob(payload(b"message")).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}\n{}", daemon.log());
    assert!(status.message().contains("another TPM"), "{status}");
}

#[tokio::test]
async fn a_second_key_takes_over_and_the_first_one_again() {
    let Some(token) = SoftHsm::new() else { return };
    let Some(mut tpm) = SwTpm::start() else { return };
    let device = format!("[[device]]\nname = \"tpm\"\nkind = \"tpm\"\ntcti = \"{}\"\n", tpm.tcti());
    let mut daemon = TestDaemon::prepare(&TestDaemon::config(&(token.toml() + &device)));
    daemon.signetctl(&["device", "init", "tpm"]);
    daemon.signetctl(&["key", "generate", "--device", "hsm", "--kid", "reserve"]);
    daemon.signetctl(&["key", "generate", "--device", "tpm", "--kid", "preferred"]);
    daemon.signetctl(&["key", "activate", "preferred"]);
    daemon.spawn();
    daemon.wait_for_log("the key is in its device kid=preferred");
    daemon.wait_for_log("the key is in its device kid=reserve");
    let signer = async || daemon.client().sign_blob(payload(b"m")).await.map(|answer| answer.into_inner().key_id);
    assert_eq!(signer().await.unwrap(), "preferred");
    tpm.kill();
    assert_eq!(signer().await.unwrap(), "reserve");
    tpm.restart();
    eventually("the preferred key signs again", async || signer().await.unwrap() == "preferred").await;
}

/// A process that stands still for as long as this lives.
struct Stalled(nix::unistd::Pid);

impl Stalled {
    fn new(pid: i32) -> Self {
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, Signal::SIGSTOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(self.0, Signal::SIGCONT);
    }
}

#[tokio::test]
async fn a_deadline_is_kept_and_called_one() {
    let Some((_tpm, mut daemon)) = on_swtpm() else { return };
    daemon.spawn();
    daemon.wait_for_health(ServingStatus::Serving).await;
    let _stalled = Stalled::new(daemon.device_process());
    let mut client = daemon.client();
    let request = proto::GetAccountRequest { account: String::new() };
    client.get_account(request).await.unwrap();
    let mut asked = Request::new(payload(b"message"));
    asked.set_timeout(Duration::from_secs(1));
    let status = client.sign_blob(asked).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert_eq!(reason(&status), "DEADLINE_EXCEEDED");
    assert_eq!(daemon.audit().last().unwrap()["outcome"], "DEADLINE_EXCEEDED");
}

/// What is revoked is revoked at once, whatever the devices do.
#[tokio::test]
async fn a_reload_waits_for_no_hung_device() {
    let Some((_token, daemon)) = on_softhsm().await else { return };
    let _stalled = Stalled::new(daemon.device_process());
    // A keyring that was written anew has its keys checked anew.
    Keyring::load(&daemon.state()).unwrap().save(&daemon.state()).unwrap();
    daemon.wait_for_log("took the keyring");
    let config = fs::read_to_string(daemon.config_file()).unwrap();
    let uid = nix::unistd::geteuid();
    daemon.configure(&config.replace(&format!("users = [{uid}]"), "users = [4000000]"));
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_log("reloaded accounts");
    assert!(!daemon.log().contains("could not check the key"), "it waited for the check:\n{}", daemon.log());
    assert_eq!(daemon.client().sign_blob(payload(b"x")).await.unwrap_err().code(), Code::PermissionDenied);
}

/// What is sent is held until it is answered: a user may not fill the daemon's memory while a device is slow.
#[tokio::test]
async fn a_user_who_sends_more_than_fits_is_told_to_retry() {
    let Some((_token, daemon)) = on_softhsm().await else { return };
    let stalled = Stalled::new(daemon.device_process());
    let message = vec![7; 1 << 20];
    let mut calls = tokio::task::JoinSet::new();
    let clients = [daemon.client(), daemon.client()];
    for number in 0..70 {
        let (mut client, request) = (clients[number % 2].clone(), payload(&message));
        calls.spawn(async move { client.sign_blob(request).await.map(drop) });
    }
    let first = calls.join_next().await.unwrap().unwrap().unwrap_err();
    assert_eq!(first.code(), Code::ResourceExhausted, "{first}");
    assert_eq!(reason(&first), "TOO_MUCH_AT_ONCE");
    assert!(first.get_error_details().retry_info().unwrap().retry_delay.is_some());
    drop(stalled);
    calls.join_all().await;
    daemon.client().sign_blob(payload(&message)).await.unwrap();
}

#[tokio::test]
async fn a_daemon_that_is_told_to_stop_answers_what_it_has_and_takes_nothing_new() {
    let Some((_token, mut daemon)) = on_softhsm().await else { return };
    let stalled = Stalled::new(daemon.device_process());
    let mut client = daemon.client();
    client.get_account(proto::GetAccountRequest { account: String::new() }).await.unwrap();
    let mut idle = daemon.client();
    idle.get_account(proto::GetAccountRequest { account: String::new() }).await.unwrap();
    let call = tokio::spawn(async move { client.sign_blob(payload(b"message")).await });
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for_log("stopping");
    eventually("the socket is gone", async || !daemon.socket().exists()).await;
    drop(stalled);
    call.await.unwrap().unwrap();
    assert!(daemon.wait().success());
    drop(idle);
}

#[tokio::test]
async fn a_caller_that_hangs_up_leaves_a_record() {
    let Some((_token, daemon)) = on_softhsm().await else { return };
    let stalled = Stalled::new(daemon.device_process());
    let mut client = daemon.client();
    client.get_account(proto::GetAccountRequest { account: String::new() }).await.unwrap();
    let answer = tokio::time::timeout(Duration::from_millis(200), client.sign_blob(payload(b"message"))).await;
    assert!(answer.is_err(), "the device stands still");
    drop(client);
    eventually("it is recorded", async || daemon.audit().last().unwrap()["outcome"] == "CALLER_GONE").await;
    drop(stalled);
    daemon.client().sign_blob(payload(b"message")).await.unwrap();
    let outcomes: Vec<_> = daemon.audit().into_iter().map(|line| line["outcome"].clone()).collect();
    assert_eq!(outcomes, ["OK", "CALLER_GONE", "OK"]);
}

#[tokio::test]
async fn every_reply_before_kill_9_has_its_record() {
    let Some((_token, mut daemon)) = on_softhsm().await else { return };
    let replies = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let (mut client, replies) = (daemon.client(), Arc::clone(&replies));
            tokio::spawn(async move {
                while client.sign_blob(payload(b"message")).await.is_ok() {
                    replies.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    eventually("there are replies", async || replies.load(Ordering::Relaxed) >= 200).await;
    daemon.signal(Signal::SIGKILL);
    for caller in callers {
        caller.await.unwrap();
    }
    daemon.wait();
    daemon.spawn();
    daemon.wait_for_health(ServingStatus::Serving).await;
    let records = daemon.audit().iter().filter(|line| line["outcome"] == "OK").count();
    let replies = replies.load(Ordering::Relaxed);
    assert!(records >= replies, "{records} records of {replies} replies");
    daemon.client().sign_blob(payload(b"message")).await.unwrap();
}
