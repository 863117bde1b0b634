//! The commands of `signetctl`: usage as data in `tests/cmd`, set-up, the life of keys, and what goes wrong on the way.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signet::key::{Algorithm, KeyLocator, PublicKey};
use signet::keyring::{KeyRecord, KeyState, Keyring};
use tonic_health::ServingStatus;

use super::signing::{on_softhsm, on_swtpm};
use super::support::daemon::{ACCOUNT, TestDaemon};
use super::support::desk::{Desk, failed, openssl};
use super::support::modules::Shim;
use super::support::softhsm::{LABEL, SoftHsm};
use super::support::swtpm::SwTpm;
use super::support::{eventually, signetctl, skip_optional, write_private};

#[test]
fn usage_is_as_written_down() {
    trycmd::TestCases::new().case("tests/cmd/*.toml");
}

#[test]
fn manual_pages_have_a_synopsis_each_and_signetd_has_one_too() {
    let folder = tempfile::tempdir().unwrap();
    let printed = |program: &mut Command| {
        let output = program.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let folder = folder.path().join("man/man1");
    printed(Command::new(env!("CARGO_BIN_EXE_signetctl")).arg("man").arg(&folder));
    fs::write(folder.join("signetd.1"), printed(Command::new(env!("CARGO_BIN_EXE_signetd")).arg("man"))).unwrap();
    for (page, synopsis) in [
        ("signetctl", "signetctl [OPTIONS] <COMMAND>"),
        ("signetctl-key-generate", "signetctl key generate [OPTIONS] --device <NAME>"),
        ("signetctl-audit-verify", "signetctl audit verify [OPTIONS] [FILE]..."),
        ("signetd", "signetd [OPTIONS] [COMMAND]"),
    ] {
        let text = fs::read_to_string(folder.join(format!("{page}.1"))).unwrap();
        let told = text.split_once(".SH SYNOPSIS\n.nf\n").unwrap().1.split_once("\n.fi\n").unwrap().0;
        assert_eq!(told.replace('\\', ""), synopsis);
    }
}

/// As `init` leaves it, with the PIN beside it, and as most editors write: by another file in its place.
#[tokio::test]
async fn a_configuration_that_signetd_does_not_run_is_told_and_one_that_was_replaced_is_reloaded() {
    let Some(token) = SoftHsm::new() else { return };
    let device = token.toml().replace(token.pin_file().to_str().unwrap(), "hsm.pin");
    let mut daemon = TestDaemon::prepare(&TestDaemon::config(&device));
    write_private(&daemon.folder().join("hsm.pin"), &fs::read_to_string(token.pin_file()).unwrap());
    daemon.signetctl(&["key", "generate", "--device", "hsm"]);
    daemon.spawn();
    daemon.wait_for_health(ServingStatus::Serving).await;
    let said = |arguments: &[&str]| {
        let output = signetctl(&daemon.config_file()).args(arguments).output().unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    let explain = ["policy", "explain", "--user", "root", "--account", ACCOUNT, "--operation", "sign-blob"];
    let generate = ["key", "generate", "--device", "hsm"];
    let all: [&[&str]; 4] = [&["status"], &["doctor"], &explain, &generate];
    let other = "signetd runs another configuration";
    for arguments in all {
        let said = said(arguments);
        assert!(!said.contains(other), "{arguments:?}: {said}");
    }
    let replaced = |from: &str, to: &str| {
        let text = fs::read_to_string(daemon.config_file()).unwrap().replace(from, to);
        let new = daemon.folder().join("new.toml");
        write_private(&new, &text);
        fs::rename(new, daemon.config_file()).unwrap();
    };
    replaced("project_id = \"project\"", "project_id = \"another\"");
    for arguments in all {
        let said = said(arguments);
        assert!(said.contains(other) && said.contains("systemctl reload signetd"), "{arguments:?}: {said}");
    }
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_log("reloaded accounts");
    assert!(!said(&["status"]).contains(other));
    replaced("mode = \"0666\"", "mode = \"0660\"");
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_log("restart signetd for the rest");
    eventually("status tells of the restart", async || said(&["status"]).contains("systemctl restart signetd")).await;

    // A file that went wrong takes nothing from what is said of the daemon, before it was asked to read it and after.
    replaced("[[allow]]", "[[allow");
    for reload in [false, true] {
        if reload {
            daemon.signal(Signal::SIGHUP);
            daemon.wait_for_log("the configuration is not reloaded");
        }
        let status = said(&["status"]);
        assert!(status.contains("serving") && status.contains("runs an older configuration"), "{status}");
        let doctor = signetctl(&daemon.config_file()).arg("doctor").output().unwrap();
        assert_eq!(doctor.status.code(), Some(1));
        let found = String::from_utf8(doctor.stdout).unwrap();
        assert!(found.contains("runs an older configuration") && found.contains("signetd serves at"), "{found}");
    }
}

#[test]
fn a_file_where_something_else_belongs_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("id.jwt");
    fs::write(&file, "a.b.c").unwrap();
    let file = file.to_str().unwrap();
    let signetctl =
        |arguments: &[&str]| Command::new(env!("CARGO_BIN_EXE_signetctl")).args(arguments).output().unwrap();
    let said = failed(&signetctl(&["--socket", file, "mint", "--audience", "x"]), 4);
    assert!(said.contains("is no socket"), "{said}");
    let said = failed(&signetctl(&["verify", "--certificates", file, file]), 2);
    assert!(said.contains("taken as the JWT itself") && said.contains(&format!("try: signetctl verify ... < {file}")));
    let said = failed(&signetctl(&["sign-blob", "/nowhere/blob"]), 2);
    assert!(said.contains("try: a file"), "{said}");
}

#[test]
fn a_socket_that_says_nothing_is_not_taken_for_a_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("signet.sock");
    let _silent = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut signetctl = Command::new(env!("CARGO_BIN_EXE_signetctl"));
    let before = Instant::now();
    let said = failed(&signetctl.arg("--socket").arg(path).args(["mint", "--audience", "x"]).output().unwrap(), 4);
    assert!(said.contains("is it signetd that listens there?"), "{said}");
    assert!(before.elapsed() < Duration::from_secs(30), "{:?}", before.elapsed());
}

/// The figures that `signetctl bench` tells of a daemon.
fn benched(daemon: &TestDaemon, arguments: &[&str]) -> serde_json::Value {
    let daemon_before = daemon.audit().len();
    let figures = serde_json::from_str(&daemon.signetctl(&[&["bench", "--json"], arguments].concat()));
    let figures: serde_json::Value = figures.unwrap();
    // One more tells the key; the daemon's own checks are not on record.
    let signed = daemon.audit().len() - daemon_before;
    assert_eq!(figures["signatures"].as_u64().unwrap() as usize + 1, signed, "each is a signature, and on record");
    let latency = |which: &str| figures["latency_ms"][which].as_f64().unwrap();
    assert!(0.0 < latency("p50") && latency("p50") <= latency("p99") && latency("p99") <= latency("longest"));
    assert!(figures["signatures_per_second"].as_f64().unwrap() > 0.0);
    figures
}

#[tokio::test]
async fn bench_tells_how_fast_a_token_signs() {
    let Some((_token, daemon)) = on_softhsm().await else { return };
    let figures = benched(&daemon, &["--signatures", "120"]);
    assert_eq!((&figures["device"], &figures["tpm"], &figures["rests"]), (&"hsm".into(), &false.into(), &false.into()));
    assert_eq!(figures["clients"], 4);
    // Minted anew each time, not from the cache.
    let minted = benched(&daemon, &["--signatures", "10", "--audience", "https://pubsub.googleapis.com/"]);
    assert_eq!(minted["operation"], "mint-access-token");
    assert!(daemon.audit().iter().all(|line| line["cached"] == false));
    let text = daemon.signetctl(&["bench", "--signatures", "10", "--clients", "2"]);
    assert!(text.contains("signatures a second") && text.contains("[cache]"), "{text}");
}

#[tokio::test]
async fn bench_spares_a_tpm() {
    let Some((_tpm, mut daemon)) = on_swtpm() else { return };
    daemon.spawn();
    daemon.wait_for_health(ServingStatus::Serving).await;
    let before = Instant::now();
    let figures = benched(&daemon, &["--signatures", "11"]);
    assert_eq!((&figures["tpm"], &figures["rests"], &figures["clients"]), (&true.into(), &true.into(), &1.into()));
    let busy = 10.0 / figures["signatures_per_second"].as_f64().unwrap();
    assert!(before.elapsed().as_secs_f64() >= 2.0 * busy, "it rests as long as it works");

    // More are asked for, and nobody is there to answer; more clients would tell nothing.
    let bench = |arguments: &[&str]| signetctl(&daemon.config_file()).arg("bench").args(arguments).output().unwrap();
    let said = failed(&bench(&["--signatures", "101"]), 2);
    assert!(said.contains("try: --yes"), "{said}");
    failed(&bench(&["--clients", "2"]), 2);
    assert_eq!(daemon.audit().len(), 11 + 2);
    // Where the configuration does not tell what signs, it might be a TPM.
    let mut elsewhere = Command::new(env!("CARGO_BIN_EXE_signetctl"));
    elsewhere.args(["--config", "/nowhere", "bench", "--signatures", "101", "--socket"]).arg(daemon.socket());
    let said = failed(&elsewhere.stdin(Stdio::null()).output().unwrap(), 2);
    assert!(said.contains("try: --yes"), "{said}");
}

#[test]
fn init_sets_up_a_token_that_a_key_can_be_made_in() {
    if SoftHsm::new().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("new/signet.toml");
    let signetctl = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_signetctl"));
        command.arg("--config").arg(&config).args(arguments).env_remove("SOFTHSM2_CONF").output().unwrap()
    };
    let made = signetctl(&["init", "--account", ACCOUNT]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for secret in ["hsm.pin", "hsm.so-pin", "signet.toml"] {
        let mode = fs::metadata(config.with_file_name(secret)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }
    assert!(fs::read_to_string(&config).unwrap().contains("files = [\"tokens\"]"), "its module opens nothing else");
    let generated = signetctl(&["key", "generate", "--device", "hsm"]);
    assert!(generated.status.success(), "{}", String::from_utf8_lossy(&generated.stderr));
    assert!(String::from_utf8_lossy(&generated.stderr).contains("gcloud iam service-accounts keys upload"));

    // Nobody may use the account before there is a rule.
    let user = nix::unistd::geteuid().to_string();
    let arguments = ["policy", "explain", "--user", &user, "--account", ACCOUNT, "--operation", "mint-access-token"];
    assert_eq!(signetctl(&arguments).status.code(), Some(3));

    // Never over what is there: neither the configuration, nor the PIN, nor the token.
    let before = fs::read(&config).unwrap();
    failed(&signetctl(&["init", "--account", ACCOUNT]), 2);
    assert_eq!(fs::read(&config).unwrap(), before);
    let again = failed(&signetctl(&["device", "init", "hsm"]), 2);
    assert!(again.contains("signet"), "{again}");
}

#[test]
fn init_that_fails_leaves_nothing_that_keeps_the_next_from_starting() {
    let folder = tempfile::tempdir().unwrap();
    let init = |folder: &str, tpm: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_signetctl"));
        command.arg("--config").arg(format!("{folder}/signet.toml")).args(["init", "--account", ACCOUNT]).args(tpm);
        command.env_remove("SOFTHSM2_CONF").output().unwrap()
    };
    let new = folder.path().join("a/b");
    for (tcti, exit, remedy) in [
        ("swtpm:host=127.0.0.1,port=1", 4, "start it; or signetctl init again, with another --tpm"),
        ("device:/dev/no-such-tpm", 4, "ls /dev/tpm* shows the TPMs of this machine"),
        ("foo", 2, "signetctl init again, with another --tpm"),
    ] {
        let said = failed(&init(new.to_str().unwrap(), &["--tpm", tcti]), exit);
        assert!(said.contains(remedy) && said.contains("what was written is removed again"), "{said}");
        assert!(!said.contains("signet.toml"), "nothing can be corrected there: {said}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{tcti}");
    }
    // Others could swap the configuration in such a folder, so it is not read.
    if SoftHsm::new().is_some() {
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        failed(&init(folder.path().to_str().unwrap(), &[]), 2);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_key_lives_from_prepared_to_active_to_retired_to_deleted() {
    let Some(token) = SoftHsm::new() else { return };
    let desk = Desk::softhsm(&token);
    let first = desk.done(&["key", "generate", "--device", "hsm"]);
    let second = desk.done(&["key", "generate", "--device", "hsm", "--kid", "second", "--algorithm", "ES256"]);
    let states = || {
        let keyring = Keyring::load(&desk.state()).unwrap();
        keyring.keys.iter().map(|key| (key.kid.to_string(), key.state)).collect::<Vec<_>>()
    };
    assert_eq!(states(), [(first.clone(), KeyState::Active), (second.clone(), KeyState::Prepared)]);

    desk.refused(&["key", "generate", "--device", "hsm", "--persistent"], 2, "always persistent");
    desk.refused(&["key", "retire", &first], 1, "only active key");
    desk.refused(&["key", "delete", &first, "--yes"], 1, "only active key");
    desk.done(&["key", "activate", "second"]);
    let newest = Keyring::load(&desk.state()).unwrap().active(&ACCOUNT.parse().unwrap())[0].kid.to_string();
    assert_eq!(newest, "second", "the newest active key signs");
    desk.done(&["key", "rename", &first, "from-google"]);
    assert!(desk.state().join("certificates/from-google.pem").exists());
    assert!(!desk.state().join(format!("certificates/{first}.pem")).exists());
    desk.refused(&["key", "rename", "from-google", "second"], 2, "already");
    desk.done(&["key", "retire", "from-google"]);
    assert_eq!(states()[0], ("from-google".to_owned(), KeyState::Retired));

    let pem = desk.done(&["key", "certificate", "second", "--days", "7", "--subject", "CN=mine"]);
    assert_eq!(pem.trim(), fs::read_to_string(desk.state().join("certificates/second.pem")).unwrap().trim());
    let path = desk.write("second.pem", pem.as_bytes());
    let subject = openssl(["x509", "-noout", "-subject", "-in", path.to_str().unwrap()]);
    assert!(String::from_utf8(subject).unwrap().contains("mine"));

    desk.refused(&["key", "delete", "from-google"], 2, "terminal");
    desk.done(&["key", "delete", "from-google", "--yes"]);
    assert_eq!(desk.keys("hsm"), (vec!["second".to_owned()], 0));
    desk.refused(&["key", "show", "from-google"], 2, "no key");
}

#[test]
fn a_key_whose_device_is_gone_can_be_forgotten() {
    let Some(token) = SoftHsm::new() else { return };
    let desk = Desk::softhsm(&token);
    let kid = desk.done(&["key", "generate", "--device", "hsm"]);
    fs::rename(token.directory.join("tokens"), token.directory.join("lost")).unwrap();
    fs::create_dir(token.directory.join("tokens")).unwrap();
    let output = desk.signetctl(["key", "delete", &kid, "--yes", "--force"]).output().unwrap();
    assert!(!output.status.success(), "what is not there was deleted");
    desk.done(&["key", "delete", &kid, "--yes", "--force", "--forget"]);
    assert_eq!(desk.done(&["--json", "key", "list"]), "[]");
}

#[test]
fn a_key_that_its_token_lost_is_forgotten_as_the_remedies_say() {
    let Some(token) = SoftHsm::new() else { return };
    let desk = Desk::softhsm(&token);
    let kid = desk.done(&["key", "generate", "--device", "hsm"]);
    let keyring = fs::read(desk.state().keyring()).unwrap();
    desk.done(&["key", "delete", &kid, "--yes", "--force"]);
    desk.write("state/keyring.json", &keyring);
    let remedy = format!("signetctl key delete {kid} --forget");
    let said = desk.refused(&["key", "delete", &kid, "--yes", "--force"], 1, "has no key");
    assert!(said.contains(&remedy), "{said}");
    let found = desk.signetctl(["doctor", "--device", "hsm"]).output().unwrap().stdout;
    assert!(String::from_utf8(found).unwrap().contains(&remedy));
    desk.done(&["key", "delete", &kid, "--yes", "--force", "--forget"]);
    assert_eq!(desk.keys("hsm"), (Vec::new(), 0));
}

#[test]
fn nobody_but_the_owner_of_the_state_folder_writes_into_it() {
    if !nix::unistd::geteuid().is_root() {
        return skip_optional("root, who can give a folder away");
    }
    let desk = Desk::bare();
    nix::unistd::chown(&*desk.state(), Some(65_534.into()), None).unwrap();
    desk.done(&["device", "list"]);
    for arguments in [["key", "activate", "x"], ["device", "show", "tpm"], ["device", "unlatch", "tpm"]] {
        let stderr = desk.refused(&arguments, 2, "belongs to");
        assert!(stderr.contains("sudo -u"), "{stderr}");
    }
    assert_eq!(fs::read_dir(desk.state()).unwrap().count(), 0);
}

#[test]
fn explain_names_the_rule_and_sees_through_a_blob() {
    let desk = Desk::bare();
    let user = nix::unistd::geteuid().to_string();
    let config = fs::read_to_string(desk.path("signet.toml")).unwrap();
    let rules = format!(
        "[[allow]]\nusers = [{user}]\naccounts = [\"{ACCOUNT}\"]\noperations = [\"mint-access-token\"]\naudiences = [\"https://pubsub.googleapis.com/\"]\n\
         [[allow]]\nusers = [{user}]\naccounts = [\"{ACCOUNT}\"]\noperations = [\"sign-blob\"]\n"
    );
    desk.write("signet.toml", (config + &rules).as_bytes());
    let explain = |more: &[&str]| {
        let start = ["policy", "explain", "--user", &user, "--account", ACCOUNT];
        let output = desk.signetctl(start.iter().chain(more)).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    };
    let mint = |audience| explain(&["--operation", "mint-access-token", "--audience", audience]);
    let (exit, told) = mint("https://pubsub.googleapis.com/");
    assert!(exit == 0 && told.contains("allowed by rule 1"), "{told}");
    let (exit, told) = mint("https://storage.googleapis.com/");
    assert!(exit == 3 && told.contains("an audience matches none of its audiences"), "{told}");
    let told = mint("https://pubsub.googleapis.com").1;
    assert!(told.contains(r#"["https://pubsub.googleapis.com"] against ["https://pubsub.googleapis.com/"]"#), "{told}");

    let blob = desk.write("blob", b"hello");
    let sign = |path: &std::path::Path| explain(&["--operation", "sign-blob", "--blob", path.to_str().unwrap()]);
    let (exit, told) = sign(&blob);
    assert!(exit == 0 && told.contains("allowed by rule 2"), "{told}");
    let disguised = desk.write("disguised", b"eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJ4In0");
    assert_eq!(sign(&disguised).0, 3, "a JWT in a blob is no blob");

    // What the daemon would refuse whatever the rules say, and what it would not split.
    let config = fs::read_to_string(desk.path("signet.toml")).unwrap();
    let rule = format!(
        "[[allow]]\nusers = [{user}]\naccounts = [\"{ACCOUNT}\"]\noperations = [\"sign-jwt\", \"mint-access-token\"]\n\
         scopes = [\"a\", \"b\"]\nmax_lifetime = \"1h\"\n"
    );
    desk.write("signet.toml", (config + &rule).as_bytes());
    let claimed = |claims: &str| {
        let path = desk.write("claims", claims.as_bytes());
        explain(&["--operation", "sign-jwt", "--claims", path.to_str().unwrap()])
    };
    assert_eq!(claimed(r#"{"scope":"a b"}"#).0, 0);
    let (exit, told) = claimed(r#"{"scope":"a","iss":"another@project.iam.gserviceaccount.com"}"#);
    assert!(exit == 3 && told.contains("iss: only the account's own email"), "{told}");
    assert_eq!(explain(&["--operation", "sign-jwt", "--scope", "a", "--lifetime", "2h"]).0, 3);
    assert_eq!(explain(&["--operation", "mint-access-token", "--scope", "a", "--scope", "b"]).0, 0);
    assert_eq!(explain(&["--operation", "mint-access-token", "--scope", "a b"]).0, 3, "no such scope");
    let both = ["--operation", "mint-access-token", "--scope", "a", "--audience", "https://pubsub.googleapis.com/"];
    assert_eq!(explain(&both).0, 2, "nobody can ask for both");
}

#[test]
fn a_wrong_pin_is_tried_once_and_never_again_until_unlatched() {
    let Some(token) = SoftHsm::new() else { return };
    let desk = Desk::softhsm(&token);
    let right = fs::read_to_string(token.pin_file()).unwrap();
    token.write_pin("wrong-pin");
    for _ in 0..10 {
        let stderr = desk.refused(&["key", "generate", "--device", "hsm"], 4, "PIN was refused");
        assert!(stderr.contains("device unlatch hsm"), "{stderr}");
    }
    desk.refused(&["device", "unlatch", "hsm"], 1, "still holds the PIN");
    token.write_pin(&right);
    desk.refused(&["key", "generate", "--device", "hsm"], 4, "PIN was refused");
    assert_eq!(desk.done(&["--json", "device", "list"]).matches("PIN refused").count(), 1);
    desk.done(&["device", "unlatch", "hsm"]);
    desk.done(&["key", "generate", "--device", "hsm"]);
}

/// A desk whose token is behind the module that misbehaves as it is told.
fn shimmed(token: &SoftHsm, shim: &Shim<'_>) -> Desk {
    let environment: Vec<_> =
        shim.environment().iter().map(|(name, value)| format!("{name} = {:?}", value.to_str().unwrap())).collect();
    Desk::new(&format!(
        "[[device]]\nname = \"hsm\"\nkind = \"pkcs11\"\nmodule = {:?}\ntoken = {LABEL:?}\npin_file = {:?}\nenvironment = {{ SOFTHSM2_CONF = {:?}, {} }}\n",
        shim.module,
        token.pin_file(),
        token.configuration(),
        environment.join(", ")
    ))
}

#[test]
fn a_device_that_signs_wrongly_gets_no_key_recorded() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    let desk = shimmed(&token, &shim);
    shim.tell("flip");
    desk.refused_at(&["key", "generate", "--device", "hsm"], "removed from hsm again");
    let path =
        desk.write("key.pem", &openssl(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]));
    desk.refused_at(&["key", "import", "--device", "hsm", path.to_str().unwrap()], "removed from hsm again");
    shim.tell("");
    assert_eq!(desk.keys("hsm"), (vec![], 0));
}

#[test]
fn a_token_that_was_begun_keeps_its_security_officers_pin() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    let desk = shimmed(&token, &shim);
    let config = fs::read_to_string(desk.path("signet.toml")).unwrap();
    desk.write("signet.toml", config.replace(LABEL, "fresh").as_bytes());
    let so_pin = token.pin_file().with_file_name("hsm.so-pin");
    shim.tell("full");
    assert!(!desk.signetctl(["device", "init", "hsm"]).status().unwrap().success());
    assert!(!so_pin.exists(), "nothing was begun");
    shim.tell("fail C_InitPIN 30");
    let output = desk.signetctl(["device", "init", "hsm"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains(so_pin.to_str().unwrap()), "{stderr}");
    assert!(so_pin.exists(), "{stderr}");
}

#[test]
fn a_key_that_cannot_be_removed_again_is_told_of() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    let desk = shimmed(&token, &shim);
    shim.tell("fail C_GetAttributeValue 30\nfail C_DestroyObject 30");
    let stderr = desk.refused(&["key", "generate", "--device", "hsm"], 4, "C_GetAttributeValue");
    assert_eq!(stderr.matches("an object of an unfinished key stays in the token").count(), 2, "{stderr}");
    shim.tell("");
    assert_eq!(desk.keys("hsm"), (vec![], 1));
}

/// Starts a command whose device waits in the middle of it, and interrupts it there; `then` is called once it has said so.
fn interrupted(desk: &Desk, shim: &Shim<'_>, arguments: &[&str], then: impl FnOnce(Pid)) -> (Option<i32>, String) {
    shim.tell("wait C_Sign");
    let mut child = desk.signetctl(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    let patience = Instant::now() + Duration::from_secs(60);
    while !shim.waiting().exists() {
        assert!(Instant::now() < patience && child.try_wait().unwrap().is_none(), "the device was never asked to sign");
        std::thread::sleep(Duration::from_millis(2));
    }
    kill(pid, Signal::SIGINT).unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("once more leaves at once") {
        assert_ne!(stderr.read_line(&mut said).unwrap(), 0, "{said}");
    }
    then(pid);
    stderr.read_to_string(&mut said).unwrap();
    fs::remove_file(shim.waiting()).unwrap();
    (child.wait().unwrap().code(), said)
}

#[test]
fn ctrl_c_in_the_middle_removes_the_key_again() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    let desk = shimmed(&token, &shim);
    let path =
        desk.write("key.pem", &openssl(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]));
    for arguments in
        [&["key", "generate", "--device", "hsm"][..], &["key", "import", "--device", "hsm", path.to_str().unwrap()]]
    {
        let (exit, said) = interrupted(&desk, &shim, arguments, |_pid| shim.tell(""));
        assert_eq!(exit, Some(1), "{said}");
        assert!(said.contains("removed from hsm again"), "{said}");
        assert_eq!(desk.keys("hsm"), (vec![], 0));
        assert_eq!(fs::read_dir(desk.state().join("certificates")).unwrap().count(), 0);
    }
}

#[test]
fn a_second_ctrl_c_leaves_at_once_and_says_where_the_key_may_be() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    let desk = shimmed(&token, &shim);
    let again = |pid| kill(pid, Signal::SIGINT).unwrap();
    let (exit, said) = interrupted(&desk, &shim, &["key", "generate", "--device", "hsm"], again);
    assert_eq!(exit, Some(1), "{said}");
    assert!(said.contains(&format!("hsm under the label {ACCOUNT}")), "{said}");
    shim.tell("");
    assert_eq!(desk.keys("hsm"), (vec![], 1), "it is where it was said to be");
}

#[test]
fn an_ec_key_file_of_a_tpm_needs_no_algorithm() {
    let Some(tpm) = SwTpm::start() else { return };
    let desk = Desk::swtpm(&tpm);
    let kid = desk.done(&["key", "generate", "--device", "tpm", "--algorithm", "ES256"]);
    let file = desk.path("key.tss2.pem");
    fs::copy(desk.state().join(format!("keys/{kid}.tss2.pem")), &file).unwrap();
    desk.done(&["key", "delete", &kid, "--yes", "--force"]);
    let import = ["key", "import", "--device", "tpm", file.to_str().unwrap()];
    desk.refused(&[&import[..], &["--algorithm", "PS256"]].concat(), 2, "can't sign PS256");
    assert_eq!(desk.done(&import), kid);
    assert_eq!(Keyring::load(&desk.state()).unwrap().keys[0].algorithm, Algorithm::Es256);
}

/// Starts commands that all wait for a lock which this test holds; `meanwhile` is done before it is released.
fn at_once(desk: &Desk, commands: &[&[&str]], meanwhile: impl FnOnce()) -> Vec<Output> {
    let lock = File::options().create(true).append(true).open(desk.state().join(".lock")).unwrap();
    let lock = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
    let start = |arguments: &&[&str]| {
        let mut child = desk.signetctl(*arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        stderr.read_line(&mut said).unwrap();
        assert!(said.contains("Waiting for another signetctl"), "{said}");
        child.stderr = Some(stderr.into_inner());
        child
    };
    let children: Vec<_> = commands.iter().map(start).collect();
    meanwhile();
    drop(lock);
    children.into_iter().map(|child| child.wait_with_output().unwrap()).collect()
}

fn active(kid: &str, handle: u32) -> KeyRecord {
    let public_key = PublicKey::from_spki(&openssl_spki()).unwrap();
    KeyRecord {
        kid: kid.parse().unwrap(),
        account: ACCOUNT.parse().unwrap(),
        algorithm: Algorithm::Es256,
        device: "tpm".parse().unwrap(),
        locator: KeyLocator::Handle(handle),
        public_key,
        state: KeyState::Active,
        created: 1,
        activated: Some(1),
        retired: None,
    }
}

fn openssl_spki() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.pem");
    fs::write(&path, openssl(["genpkey", "-quiet", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]))
        .unwrap();
    openssl(["pkey", "-pubout", "-outform", "DER", "-in", path.to_str().unwrap()])
}

#[test]
fn two_retirements_at_once_leave_an_active_key() {
    let desk = Desk::bare();
    Keyring { keys: vec![active("a", 0x8100_0001), active("b", 0x8100_0002)] }.save(&desk.state()).unwrap();
    let ended = at_once(&desk, &[&["key", "retire", "a"], &["key", "retire", "b"]], || ());
    assert_eq!(ended.iter().filter(|output| output.status.success()).count(), 1, "{ended:?}");
    let states: Vec<_> = Keyring::load(&desk.state()).unwrap().keys.iter().map(|key| key.state).collect();
    assert!(states.contains(&KeyState::Active) && states.contains(&KeyState::Retired), "{states:?}");
}

#[test]
fn a_key_that_became_another_one_meanwhile_is_not_deleted() {
    let desk = Desk::bare();
    Keyring { keys: vec![active("a", 0x8100_0001)] }.save(&desk.state()).unwrap();
    let another = Keyring { keys: vec![active("a", 0x8100_0002)] };
    let delete = ["key", "delete", "a", "--forget", "--yes", "--force"];
    let ended = at_once(&desk, &[&delete], || another.save(&desk.state()).unwrap());
    assert!(String::from_utf8_lossy(&ended[0].stderr).contains("another key meanwhile"), "{ended:?}");
    assert_eq!(Keyring::load(&desk.state()).unwrap(), another);
}

#[test]
fn a_full_disk_loses_nothing_and_leaves_no_key() {
    let Some(token) = SoftHsm::new() else { return };
    let desk = Desk::softhsm(&token);
    let first = desk.done(&["key", "generate", "--device", "hsm"]);
    // A keyring that is longer than any other file that is written: then a limit can hit it alone.
    let mut keyring = Keyring::load(&desk.state()).unwrap();
    for number in 0..60 {
        let mut record = keyring.keys[0].clone();
        record.kid = format!("old-{number}").parse().unwrap();
        record.state = KeyState::Retired;
        keyring.keys.push(record);
    }
    keyring.save(&desk.state()).unwrap();
    let before = fs::read(desk.state().keyring()).unwrap();
    let signetctl = desk.signetctl(["key", "generate", "--device", "hsm"]);
    // The keyring does not fit, the certificate does; then neither does.
    for limit in ["16000", "600"] {
        let output = Command::new("env")
            .args(["--ignore-signal=XFSZ", "prlimit", &format!("--fsize={limit}")])
            .arg(signetctl.get_program())
            .args(signetctl.get_args())
            .output()
            .unwrap();
        assert!(!output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains("error: "), "limit {limit}");
        assert_eq!(fs::read(desk.state().keyring()).unwrap(), before, "limit {limit}: the keyring was changed");
        let left = fs::read_dir(desk.state().join("certificates")).unwrap().count();
        assert_eq!(left, 1, "limit {limit}: a certificate was left");
    }
    keyring.keys.truncate(1);
    keyring.save(&desk.state()).unwrap();
    assert_eq!(desk.keys("hsm"), (vec![first], 0));
}

#[test]
fn a_certificate_that_can_not_be_written_takes_its_key_with_it() {
    let Some(token) = SoftHsm::new() else { return };
    let desk = Desk::softhsm(&token);
    fs::write(desk.state().join("certificates"), "in the way").unwrap();
    desk.refused_at(&["key", "generate", "--device", "hsm"], "removed from hsm again");
    assert_eq!(desk.keys("hsm"), (vec![], 0));
}

#[test]
fn a_damaged_keyring_is_refused_and_not_overwritten() {
    let desk = Desk::bare();
    assert!(desk.done(&["config", "check"]).ends_with("keys: 0"));
    for contents in ["{", r#"{"version":2,"keys":[]}"#] {
        fs::write(desk.state().keyring(), contents).unwrap();
        desk.refused(&["key", "list"], 1, "keyring.json");
        desk.refused(&["key", "activate", "x"], 1, "keyring.json");
        desk.refused(&["config", "check"], 1, "keyring.json");
        assert_eq!(fs::read_to_string(desk.state().keyring()).unwrap(), contents);
    }
}

#[test]
fn another_tpm_is_not_taken_for_the_recorded_one() {
    let Some(mut tpm) = SwTpm::start() else { return };
    let desk = Desk::swtpm(&tpm);
    desk.done(&["device", "init", "tpm"]);
    tpm.replace();
    desk.refused_at(&["device", "init", "tpm"], "not the one that was recorded");
    // As the remedy says, which is the way on; and the TPM that was refused is as it was.
    let record = desk.state().parent(&"tpm".parse().unwrap());
    let said = desk.refused(&["key", "generate", "--device", "tpm"], 1, "there is no storage key");
    assert!(said.contains(&format!("rm {}; signetctl device init tpm", record.display())), "{said}");
    fs::remove_file(record).unwrap();
    let said = desk.refused(&["key", "generate", "--device", "tpm"], 4, "no storage key is recorded");
    assert!(said.contains("try: signetctl device init tpm"), "{said}");
    desk.done(&["device", "init", "tpm"]);
    desk.done(&["key", "generate", "--device", "tpm"]);
}

#[tokio::test]
async fn a_certificate_that_is_issued_again_is_published_without_a_reload() {
    let Some(token) = SoftHsm::new() else { return };
    let mut daemon = TestDaemon::prepare(&TestDaemon::config(&token.toml()));
    let kid = daemon.signetctl(&["--quiet", "key", "generate", "--device", "hsm"]).trim().to_owned();
    daemon.spawn();
    daemon.wait_for_log("serving");
    let issued = daemon.signetctl(&["--quiet", "key", "certificate", &kid, "--subject", "again"]);
    let published = async || {
        let certificates: serde_json::Value = serde_json::from_str(&daemon.signetctl(&["certificates"])).unwrap();
        certificates[&kid].as_str().is_some_and(|pem| pem.trim() == issued.trim())
    };
    eventually("it is published", published).await;
}

#[test]
fn what_the_daemon_signs_openssl_and_verify_believe() {
    let Some(token) = SoftHsm::new() else { return };
    let mut daemon = TestDaemon::prepare(&TestDaemon::config(&token.toml()));
    let kid = daemon.signetctl(&["--quiet", "key", "generate", "--device", "hsm"]).trim().to_owned();
    daemon.spawn();
    daemon.wait_for_log("serving");

    let certificates = daemon.folder().join("certificates.json");
    for format in ["x509", "jwks"] {
        fs::write(&certificates, daemon.signetctl(&["certificates", "--format", format])).unwrap();
        let path = certificates.to_str().unwrap();
        let jwt = daemon.signetctl(&["id-token", "--audience", "https://me"]);
        let claims = daemon.signetctl(&[
            "verify",
            "--certificates",
            path,
            "--audience",
            "https://me",
            "--issuer",
            ACCOUNT,
            jwt.trim(),
        ]);
        assert!(claims.contains(ACCOUNT), "{claims}");
        let verify = |jwt: &str, audience: &str| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_signetctl"));
            let output =
                command.args(["verify", "--certificates", path, "--audience", audience, jwt]).output().unwrap();
            failed(&output, 5)
        };
        let (cut, _) = jwt.trim().rsplit_once('.').unwrap();
        let forged = format!("{cut}.{}", "A".repeat(342));
        for (jwt, audience, remedy) in [
            (jwt.trim(), "https://you", "correct --audience"),
            (&jwt.trim().replacen("ey", "eY", 2), "https://me", "as it was issued"),
            (cut, "https://me", "as it was issued"),
            (&forged, "https://me", "a fresh JWT"),
        ] {
            let said = verify(jwt, audience);
            assert!(said.contains(remedy), "{jwt}: {said}");
        }
    }

    let blob = daemon.folder().join("blob");
    fs::write(&blob, b"eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJ4In0").unwrap();
    let disguised = signetctl(&daemon.config_file()).arg("sign-blob").arg(&blob).output().unwrap();
    assert!(failed(&disguised, 2).contains("try: signetctl sign-jwt"));
    fs::write(&blob, b"hello\n").unwrap();
    let signature = daemon.folder().join("signature");
    let raw = Command::new(env!("CARGO_BIN_EXE_signetctl"))
        .arg("--config")
        .arg(daemon.config_file())
        .args(["sign-blob", "--raw", blob.to_str().unwrap()])
        .output()
        .unwrap();
    fs::write(&signature, raw.stdout).unwrap();
    let certificate = daemon.state().join(format!("certificates/{kid}.pem"));
    let public = daemon.folder().join("public.pem");
    fs::write(&public, openssl(["x509", "-noout", "-pubkey", "-in", certificate.to_str().unwrap()])).unwrap();
    openssl([
        "dgst",
        "-sha256",
        "-verify",
        public.to_str().unwrap(),
        "-signature",
        signature.to_str().unwrap(),
        blob.to_str().unwrap(),
    ]);

    let published = daemon.folder().join("published");
    daemon.signetctl(&["publish", published.to_str().unwrap(), "--url", "https://keys.example.com"]);
    let discovery = fs::read_to_string(published.join(ACCOUNT).join(".well-known/openid-configuration")).unwrap();
    assert!(discovery.contains("https://keys.example.com"), "{discovery}");
    assert!(fs::read_to_string(published.join(ACCOUNT).join("x509.json")).unwrap().contains(&kid));
    assert_eq!(fs::metadata(published.join(ACCOUNT).join("jwks.json")).unwrap().permissions().mode() & 0o777, 0o644);

    // What a key command changed, the daemon knows when the command has returned.
    let x509 = || daemon.signetctl(&["certificates", "--format", "x509"]);
    let next = daemon.signetctl(&["--quiet", "key", "generate", "--device", "hsm"]).trim().to_owned();
    assert!(x509().contains(&next), "generated");
    daemon.signetctl(&["key", "rename", &next, "renamed"]);
    assert!(x509().contains("\"renamed\"") && !x509().contains(&next), "renamed");
    daemon.signetctl(&["key", "activate", "renamed"]);
    let minted = daemon.signetctl(&["--json", "mint", "--audience", "https://pubsub.googleapis.com/"]);
    assert!(minted.contains("\"renamed\""), "{minted}");

    assert!(daemon.signetctl(&["audit", "verify"]).contains("whole"));
    let log = fs::read_to_string(daemon.audit_file()).unwrap();
    let copy = daemon.folder().join("copy.log");
    fs::write(&copy, log.replacen("mint-id-token", "mint-id-tokem", 1)).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_signetctl"))
        .args(["audit", "verify", copy.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(5));
}

#[test]
fn doctor_finds_what_is_wrong_and_says_how_to_mend_it() {
    let Some(token) = SoftHsm::new() else { return };
    let desk = Desk::softhsm(&token);
    let kid = desk.done(&["key", "generate", "--device", "hsm"]);
    let doctor = || {
        let output = desk.signetctl(["--json", "doctor"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "no daemon runs, so there is something to mend");
        let findings: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
        let ill = findings.iter().filter(|finding| finding["ok"] == false);
        assert!(ill.clone().all(|finding| finding["try"].is_string()), "{findings:?}");
        ill.map(|finding| finding["what"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let found = |words: &str| {
        let ill = doctor();
        assert!(ill.iter().any(|what| what.contains(words)), "{words:?} is not among {ill:?}");
    };
    let healthy = doctor();
    assert!(healthy.iter().all(|what| what.contains("no rule") || what.contains("no socket")), "{healthy:?}");

    fs::remove_file(desk.state().join(format!("certificates/{kid}.pem"))).unwrap();
    found("certificate is missing");
    desk.done(&["key", "certificate", &kid, "--days", "5"]);
    found("certificate ends");
    fs::set_permissions(desk.state(), fs::Permissions::from_mode(0o755)).unwrap();
    found("others may look into the state folder");
    fs::set_permissions(desk.state(), fs::Permissions::from_mode(0o700)).unwrap();

    let right = fs::read_to_string(token.pin_file()).unwrap();
    token.write_pin("wrong-pin");
    found("PIN was refused");
    token.write_pin(&right);
    found("PIN was refused");
    desk.done(&["device", "unlatch", "hsm"]);

    let keyring = fs::read(desk.state().keyring()).unwrap();
    desk.write("state/keyring.json", b"{");
    found("the keys of hsm: ");
    desk.write("state/keyring.json", &keyring);

    let (_, orphans) = desk.keys("hsm");
    assert_eq!(orphans, 0);
    fs::remove_dir_all(token.directory.join("tokens")).unwrap();
    fs::create_dir(token.directory.join("tokens")).unwrap();
    found("device hsm");
}

#[test]
fn a_device_that_hangs_is_told_of_in_time() {
    let Some(tpm) = SwTpm::start() else { return };
    let desk = Desk::swtpm(&tpm);
    let kid = desk.done(&["key", "generate", "--device", "tpm"]);
    let pem = desk.write("key.pem", &openssl(["genpkey", "-quiet", "-algorithm", "EC", "-pkeyopt", "group:P-256"]));
    let before = fs::read(desk.state().keyring()).unwrap();
    limit_calls(&desk, "300ms");
    tpm.signal(Signal::SIGSTOP);
    for command in [
        "device show tpm",
        "key list --device tpm",
        "key generate --device tpm",
        &format!("key import --device tpm {}", pem.display()),
        &format!("key certificate {kid}"),
        &format!("key delete {kid} --yes --force"),
    ] {
        let arguments: Vec<_> = command.split(' ').collect();
        desk.refused(&arguments, 4, "device tpm: it has not answered for 300ms");
    }
    assert_eq!(fs::read(desk.state().keyring()).unwrap(), before);
    let doctor = desk.signetctl(["doctor"]).output().unwrap();
    let found = String::from_utf8(doctor.stdout).unwrap();
    assert!(found.contains("MEND  device tpm: it has not answered for 300ms"), "{found}");
    assert!(found.contains("no socket"), "it did not go on: {found}");
}

#[test]
fn what_is_left_in_a_device_that_hangs_in_the_middle_is_told() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    let desk = shimmed(&token, &shim);
    let kid = desk.done(&["key", "generate", "--device", "hsm"]);
    let path =
        desk.write("key.pem", &openssl(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]));
    limit_calls(&desk, "2s");
    let silence = "device hsm: it has not answered for 2s";

    shim.tell("hang C_Sign");
    for arguments in
        [&["key", "generate", "--device", "hsm"][..], &["key", "import", "--device", "hsm", path.to_str().unwrap()]]
    {
        let said = desk.refused(arguments, 4, silence);
        assert!(said.contains("and is left in hsm as pkcs11:") && said.contains("key list --device hsm"), "{said}");
    }
    shim.tell("hang C_DestroyObject");
    let said = desk.refused(&["key", "delete", &kid, "--yes", "--force"], 4, silence);
    assert!(said.contains("the keyring still has it"), "{said}");

    shim.tell("");
    limit_calls(&desk, "20s");
    assert_eq!(desk.keys("hsm"), (vec![kid.clone()], 2), "they are where they were said to be");
    desk.done(&["key", "delete", &kid, "--yes", "--force"]);
}

#[test]
fn who_waits_for_a_device_is_told_so_and_may_leave() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    let desk = shimmed(&token, &shim);
    shim.tell("hang C_GenerateKeyPair");
    let mut child = desk.signetctl(["key", "generate", "--device", "hsm"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    for awaited in ["still waiting for the device hsm, for 600s at most", "once more leaves at once"] {
        while !said.contains(awaited) {
            assert_ne!(stderr.read_line(&mut said).unwrap(), 0, "{said}");
        }
        kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    }
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{said}");
    assert!(said.contains(&format!("a key may be left in hsm under the label {ACCOUNT}")), "{said}");
}

/// Changes how long a call may take.
fn limit_calls(desk: &Desk, limit: &str) {
    let text = fs::read_to_string(desk.path("signet.toml")).unwrap();
    let text: String = text.split_inclusive('\n').filter(|line| !line.starts_with("call_limit")).collect();
    let limited = text.replace("\npin_file =", &format!("\ncall_limit = {limit:?}\npin_file ="));
    desk.write("signet.toml", limited.as_bytes());
}

#[test]
fn verify_follows_no_redirect_to_another_host() {
    use std::io::Write as _;
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).unwrap();
        stream.write_all(b"HTTP/1.1 302 Found\r\nLocation: http://localhost:1/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
    });
    let output = Command::new(env!("CARGO_BIN_EXE_signetctl"))
        .args(["verify", "--certificates", &format!("http://127.0.0.1:{port}/certs"), "a.b.c"])
        .env("NO_PROXY", "*")
        .output()
        .unwrap();
    server.join().unwrap();
    assert!(failed(&output, 4).contains("redirects to another host"));
}
