//! Subject tokens, their exchange over HTTP, and the environment that leads Google's libraries here.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use signet::subject::{self, Subject};

use crate::signing::over_http;
use crate::support::daemon::{ACCOUNT, TestDaemon, now};
use crate::support::http::{Answer, send};
use crate::support::softhsm::SoftHsm;
use crate::support::{signetctl, skip, skip_optional};

async fn daemon() -> Option<(SoftHsm, TestDaemon, SocketAddr)> {
    let more = "scopes = [\"https://www.googleapis.com/auth/*\"]\n[[account]]\nemail = \"forbidden@project.example\"\n";
    let (token, daemon, _) = over_http(|config| (config + more).replace("\"sign-digest\", ", "")).await?;
    let address = daemon.settle_http();
    Some((token, daemon, address))
}

fn uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Makes a subject token for the user of the tests.
fn subject_token(daemon: &TestDaemon) -> String {
    let (user, out) = (uid().to_string(), daemon.folder().join("subject"));
    daemon.signetctl(&["subject-token", "--user", &user, "--out", out.to_str().unwrap()]);
    fs::read_to_string(out).unwrap()
}

/// The form that clients send, with these fields in place of its own; an empty one is left out.
fn exchange(address: SocketAddr, subject_token: &str, instead: &[(&str, &str)]) -> Answer {
    let audience = format!("//signet/{ACCOUNT}");
    let fields = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
        ("audience", &audience),
        ("scope", SCOPE),
        ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
        ("subject_token", subject_token),
        ("subject_token_type", "urn:ietf:params:oauth:token-type:access_token"),
    ];
    let replaced = |name: &str| instead.iter().any(|(other, _)| *other == name);
    let all = fields.iter().filter(|(name, _)| !replaced(name)).chain(instead).filter(|(_, value)| !value.is_empty());
    let form: Vec<_> = all.map(|(name, value)| format!("{name}={}", value.replace(' ', "+"))).collect();
    send(
        address,
        "POST /v1/token",
        &["Content-Type: application/x-www-form-urlencoded; charset=utf-8"],
        &form.join("&"),
    )
}

fn refused(answer: &Answer, error: &str) {
    assert_eq!((answer.status, &answer.json()["error"]), (400, &json!(error)), "{answer:?}");
    assert!(answer.json()["error_description"].as_str().is_some_and(|said| !said.is_empty()), "{answer:?}");
}

#[tokio::test]
async fn a_subject_token_is_exchanged_for_an_access_token_by_its_user_and_the_rules() {
    let Some((_token, daemon, address)) = daemon().await else { return };
    let subject = subject_token(&daemon);
    let answer = exchange(address, &subject, &[]);
    assert_eq!((answer.status, answer.header("cache-control")), (200, Some("no-store")), "{answer:?}");
    let told = answer.json();
    assert_eq!(told["issued_token_type"], "urn:ietf:params:oauth:token-type:access_token");
    assert_eq!(told["token_type"], "Bearer");
    assert!(told["expires_in"].as_u64().is_some_and(|lives| (3590..=3600).contains(&lives)), "{told}");
    assert!(told["access_token"].as_str().unwrap().starts_with("eyJ"));
    // Several scopes, none, a final newline, a parameter that is not known.
    for instead in [
        ("scope", "https://www.googleapis.com/auth/pubsub https://www.googleapis.com/auth/iam"),
        ("scope", ""),
        ("subject_token", &format!("{subject}%0A")),
        ("requested_token_type", ""),
        ("options", "%7B%22userProject%22%3A%22p%22%7D"),
    ] {
        assert_eq!(exchange(address, &subject, &[instead]).status, 200, "{instead:?}");
    }
    let last = daemon.audit().pop().unwrap();
    assert_eq!((&last["rpc"], &last["uid"], &last["outcome"]), (&json!("STS/Token"), &json!(uid()), &json!("OK")));

    assert_eq!(send(address, "GET /v1/token", &[], "").status, 405);
    let long = exchange(address, &subject, &[("scope", &"a".repeat(17 << 10))]);
    assert_eq!(long.status, 413);
}

#[tokio::test]
async fn an_expired_foreign_or_revoked_subject_token_is_exchanged_for_nothing() {
    let Some((_token, daemon, address)) = daemon().await else { return };
    let (mine, state) = (uid(), daemon.state());
    for (name, uid, expires) in [("expired", mine, now()), ("foreign", mine + 1, now() + 60)] {
        subject::record(&state, name, &Subject { uid, expires }).unwrap();
        refused(&exchange(address, name, &[]), "invalid_request");
        let last = daemon.audit().pop().unwrap();
        assert_eq!((&last["rpc"], &last["decision"]), (&"STS/Token".into(), &"deny".into()), "{last}");
        assert!(last["reason"].as_str().unwrap().contains("subject token"), "{last}");
    }
    let first = subject_token(&daemon);
    let renewed = subject_token(&daemon);
    assert_ne!(first, renewed);
    for good in [&first, &renewed] {
        assert_eq!(exchange(address, good, &[]).status, 200, "who has just read it can use it");
    }
    let kept = subject::find(&state, &first).unwrap().unwrap();
    assert!(kept.expires <= now() + 600, "but not for long");
    assert_eq!(subject::find(&state, "expired").unwrap(), None, "what has expired is cleared away");
    let records = || fs::read_dir(state.subjects()).unwrap().map(|entry| entry.unwrap().path());
    let known: Vec<_> = records().collect();
    subject_token(&daemon);
    let record = records().find(|path| !known.contains(path)).unwrap();
    fs::write(&record, "damaged").unwrap();
    let damaged = fs::read_to_string(daemon.folder().join("subject")).unwrap();
    refused(&exchange(address, &damaged, &[]), "invalid_request");
    daemon.wait_for_log(&format!("can't be read error={}", record.display()));
    assert_eq!(exchange(address, &subject_token(&daemon), &[]).status, 200, "it is made anew all the same");
    daemon.signetctl(&["subject-token", "--user", &mine.to_string(), "--revoke"]);
    for gone in [&first, &renewed] {
        refused(&exchange(address, gone, &[]), "invalid_request");
    }
    assert!(subject::find(&state, "foreign").unwrap().is_some(), "another user's stays");
}

#[tokio::test]
async fn a_subject_file_is_its_users_alone() {
    let Some((_token, daemon, _address)) = daemon().await else { return };
    let token = subject_token(&daemon);
    let file = daemon.folder().join("subject");
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid(), token.len()), (0o600, uid(), 43));
    for record in fs::read_dir(daemon.state().subjects()).unwrap() {
        let path = record.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&token) && !path.to_str().unwrap().contains(&token), "only its hash is kept");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    }
    let refused = |user: &str, out: &Path, exit: i32| {
        let out = out.to_str().unwrap();
        let mut command = signetctl(&daemon.config_file());
        let output = command.args(["subject-token", "--user", user, "--out", out]).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(exit), "{stderr}");
        assert!(stderr.contains("try: "), "{stderr}");
        stderr
    };
    let me = uid().to_string();
    for mode in [0o640, 0o604, 0o644] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        assert!(refused(&me, &file, 2).contains("can be read by"), "{mode:o}");
        assert_eq!(fs::read_to_string(&file).unwrap(), token, "it stays as it was");
    }
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink(daemon.config_file(), &file).unwrap();
    assert!(refused(&me, &file, 2).contains("it is a symbolic link"));
    assert!(refused("no-such-user", &file, 2).contains("there is no user"));
    if uid() != 0 {
        return skip_optional("root, who makes subject tokens for others");
    }
    // Root writes as the user, and so nowhere that the user could not.
    let theirs = daemon.folder().join("theirs");
    fs::create_dir(&theirs).unwrap();
    std::os::unix::fs::chown(&theirs, Some(65534), Some(65534)).unwrap();
    daemon.signetctl(&["subject-token", "--user", "65534", "--out", theirs.join("subject").to_str().unwrap()]);
    let metadata = fs::metadata(theirs.join("subject")).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o600, 65534));
    std::os::unix::fs::symlink(daemon.folder(), theirs.join("roots")).unwrap();
    assert!(refused("65534", &theirs.join("roots/another"), 1).contains("Permission denied"));
    let private = daemon.folder().join("private");
    fs::create_dir(&private).unwrap();
    fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
    assert!(refused("65534", &private.join("subject"), 1).contains("it is read and written as 65534"));
}

#[tokio::test]
async fn an_environment_leads_the_libraries_here_from_every_shell_and_unit() {
    let Some((_token, daemon, address)) = daemon().await else { return };
    let environment = |arguments: &[&str]| daemon.signetctl(&[&["env"], arguments].concat());
    let signetctl = format!("{} --config {}", env!("CARGO_BIN_EXE_signetctl"), daemon.config_file().display());
    for (shell, script) in [
        ("bash", format!("eval \"$({signetctl} env)\" && env")),
        ("fish", format!("{signetctl} env --shell fish | source; and env")),
    ] {
        let mut command = Command::new(shell);
        command.args(["-c", &script]).env("HOME", daemon.folder()).env("http_proxy", "http://proxy.example:3128");
        command.env("NO_GCE_CHECK", "true").env("GOOGLE_APPLICATION_CREDENTIALS", "/elsewhere");
        let Ok(output) = command.env_remove("no_proxy").env_remove("NO_PROXY").output() else {
            skip(shell, shell);
            continue;
        };
        let seen = String::from_utf8(output.stdout).unwrap();
        for line in [
            format!("GCE_METADATA_HOST={address}"),
            format!("GCE_METADATA_IP={address}"),
            format!("GCE_METADATA_ROOT={address}"),
            format!("CLOUDSDK_API_ENDPOINT_OVERRIDES_IAMCREDENTIALS=http://{address}/"),
            "GOOGLE_CLOUD_PROJECT=project".to_owned(),
            "NO_PROXY=127.0.0.1".to_owned(),
            "no_proxy=127.0.0.1".to_owned(),
        ] {
            assert!(seen.lines().any(|seen| seen == line), "{shell}: no {line} in:\n{seen}");
        }
        assert!(!seen.contains("NO_GCE_CHECK") && !seen.contains("GOOGLE_APPLICATION_CREDENTIALS"), "{shell}: {seen}");
    }
    // A unit of this is in tests/vm/unit.
    let unit = environment(&["--shell", "systemd"]);
    assert!(unit.starts_with(&format!("[Service]\nEnvironment=\"GCE_METADATA_HOST={address}\"\n")), "{unit}");
    assert!(unit.contains("\nUnsetEnvironment=GOOGLE_APPLICATION_CREDENTIALS "), "{unit}");

    let (file, subject) = (daemon.folder().join("signet.json"), daemon.folder().join("subject"));
    let said =
        environment(&["--external-account", file.to_str().unwrap(), "--subject-token", subject.to_str().unwrap()]);
    assert!(said.contains(&format!("export GOOGLE_APPLICATION_CREDENTIALS={}\n", file.display())), "{said}");
    assert!(!said.contains("GCE_METADATA_HOST"), "{said}");
    let document: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(document["token_url"], format!("http://{address}/v1/token"));
    assert_eq!(document["credential_source"]["file"], subject.to_str().unwrap());
    assert_eq!(document["audience"], format!("//signet/{ACCOUNT}"));
}

#[tokio::test]
async fn doctor_tells_what_would_keep_a_client_away_and_what_mends_it() {
    let Some((_token, daemon, address)) = daemon().await else { return };
    let doctor = |config: &Path, arguments: &[&str], environment: &[(&str, &str)]| {
        let mut command = signetctl(config);
        command.arg("doctor").args(arguments).env_remove("GOOGLE_APPLICATION_CREDENTIALS").env("HOME", daemon.folder());
        command.env_remove("CLOUDSDK_CONFIG").envs(environment.iter().copied());
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let config = daemon.config_file();
    let well = doctor(&config, &[], &[]);
    assert!(well.contains(&format!("ok    signetd serves HTTP at {address}\n")), "{well}");
    let ill = doctor(&config, &[], &[("NO_GCE_CHECK", "true"), ("http_proxy", "http://p:1"), ("no_proxy", "")]);
    assert!(ill.contains("MEND  NO_GCE_CHECK is set") && ill.contains("try: unset NO_GCE_CHECK"), "{ill}");
    assert!(ill.contains("MEND  a proxy of the environment"), "{ill}");
    let gcloud = daemon.folder().join(".config/gcloud");
    fs::create_dir_all(&gcloud).unwrap();
    fs::write(gcloud.join("application_default_credentials.json"), "{}").unwrap();
    let ill = doctor(&config, &[], &[]);
    assert!(ill.contains("application_default_credentials.json goes before the metadata server"), "{ill}");

    // A port that another program has, and one that nobody has.
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap();
    let answering = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let (mut stream, _) = other.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
    });
    let text = fs::read_to_string(&config).unwrap();
    daemon.configure(&text.replace(&address.to_string(), &taken.to_string()));
    assert!(doctor(&config, &[], &[]).contains(&format!("MEND  another program has the port {taken}")));
    answering.join().unwrap();
    let nobody = doctor(&config, &[], &[]);
    assert!(nobody.contains(&format!("MEND  nobody answers HTTP at {taken}")), "{nobody}");

    let me = doctor(&config, &["--user", &uid().to_string()], &[]);
    assert!(me.starts_with("ok    "), "{me}");
    let stranger = doctor(&config, &["--user", "60123"], &[]);
    assert!(stranger.contains("MEND  no rule lets \"60123\" use any account"), "{stranger}");
    daemon.configure(
        &text.replace("https://www.googleapis.com/auth/*", "https://www.googleapis.com/auth/cloud-platform"),
    );
    let narrow = doctor(&config, &["--user", &uid().to_string()], &[]);
    assert!(narrow.contains("Cloud Storage's libraries") && narrow.contains("try: add to a rule's scopes"), "{narrow}");
    assert!(!narrow.contains("auth/cloud-platform"), "what the rule has is not advised: {narrow}");
}

const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
