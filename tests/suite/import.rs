//! `signetctl key import`: every form of key that it takes. Bad ones are in `bad_input`.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use super::support::daemon::ACCOUNT;
use super::support::desk::{Desk, failed, modulus, openssl};
use super::support::softhsm::SoftHsm;
use super::support::swtpm::SwTpm;

/// An RSA key in PKCS#8.
fn rsa() -> Vec<u8> {
    openssl(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
}

/// Converts a key on its way through openssl.
fn converted(desk: &Desk, key: &[u8], arguments: &[&str]) -> Vec<u8> {
    let path = desk.write("to-convert.pem", key);
    openssl(arguments.iter().copied().chain(["-in", path.to_str().unwrap()]))
}

fn weak(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/weak-keys").join(format!("{name}.pem"))).unwrap()
}

#[test]
fn a_key_of_one_account_is_not_taken_for_another() {
    let desk = Desk::bare();
    let path = desk.write("key.json", service_account(&rsa(), "0123").as_bytes());
    let other = "other@project.iam.gserviceaccount.com";
    desk.refused(&["key", "import", "--device", "tpm", "--account", other, path.to_str().unwrap()], 2, "not other@");
    let path = desk.write("key.json", service_account(&rsa(), "0123").replace(ACCOUNT, other).as_bytes());
    desk.refused(&["key", "import", "--device", "tpm", path.to_str().unwrap()], 2, "no account other@");
}

#[test]
fn an_error_never_quotes_the_key() {
    let desk = Desk::bare();
    let path = desk.write(
        "key.json",
        br#"{"type":"service_account","private_key":["CANARY"],"private_key_id":"x","client_email":"a@b"}"#,
    );
    let stderr = desk.refused(&["key", "import", "--device", "tpm", path.to_str().unwrap()], 2, "no whole");
    assert!(!stderr.contains("CANARY"), "{stderr}");
}

#[test]
fn files_that_others_could_read_or_swap_are_refused() {
    let desk = Desk::bare();
    let path = desk.write("key.pem", &rsa());
    for mode in [0o640, 0o604, 0o620, 0o644] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        desk.refused(&["key", "import", "--device", "tpm", path.to_str().unwrap()], 2, "others may read or write it");
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let link = desk.path("link.pem");
    symlink(&path, &link).unwrap();
    desk.refused(&["key", "import", "--device", "tpm", link.to_str().unwrap()], 2, "symbolic link");
    let fifo = desk.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    desk.refused(&["key", "import", "--device", "tpm", fifo.to_str().unwrap()], 2, "no regular file");
    failed(
        &desk.signetctl(["key", "import", "--device", "tpm", desk.folder.path().to_str().unwrap()]).output().unwrap(),
        2,
    );
    failed(&desk.signetctl(["key", "import", "--device", "tpm", "/nowhere/key.pem"]).output().unwrap(), 2);
}

#[test]
fn a_key_is_not_taken_from_a_terminal() {
    let desk = Desk::bare();
    let command = format!(
        "{} --config {} key import --device tpm -",
        env!("CARGO_BIN_EXE_signetctl"),
        desk.path("signet.toml").display()
    );
    // script(1) gives it a terminal.
    let output = Command::new("script").args(["-qec", &command, "/dev/null"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stdout).contains("not taken from a terminal"));
}

/// A service-account key as Google hands it out, with a token_uri that would be noticed.
fn service_account(key: &[u8], kid: &str) -> String {
    serde_json::json!({
        "type": "service_account", "project_id": "project", "private_key_id": kid,
        "private_key": String::from_utf8(key.to_vec()).unwrap(), "client_email": ACCOUNT,
        "token_uri": "http://127.0.0.1:1/never-followed", "universe_domain": "googleapis.com",
    })
    .to_string()
}

/// Imports every form into a device; each must be there as the same key.
fn takes_every_form(desk: &Desk, device: &str) {
    let import = |name: &str, contents: &[u8]| {
        let path = desk.write(name, contents);
        let kid = desk.done(&["key", "import", "--device", device, path.to_str().unwrap()]);
        assert_eq!(fs::read(&path).unwrap(), contents, "the file was changed");
        (kid, path)
    };
    let certificate = |kid: &str| desk.state().join(format!("certificates/{kid}.pem"));

    for (form, edit) in [
        ("pkcs8", (|text: String| text) as fn(String) -> String),
        ("crlf", |text| text.replace('\n', "\r\n")),
        ("no final newline", |text| text.trim_end().to_owned()),
        ("text around it", |text| format!("Bag Attributes\n{text}\nbye\n")),
    ] {
        let key = edit(String::from_utf8(rsa()).unwrap());
        let (kid, path) = import("key.pem", key.as_bytes());
        assert_eq!(modulus("x509", &certificate(&kid)), modulus("rsa", &path), "{form}");
        let verified = openssl(["x509", "-noout", "-subject", "-in", certificate(&kid).to_str().unwrap()]);
        assert!(!verified.is_empty());
    }
    let pkcs1 = converted(desk, &rsa(), &["rsa", "-traditional"]);
    let (kid, path) = import("pkcs1.pem", &pkcs1);
    assert_eq!(modulus("x509", &certificate(&kid)), modulus("rsa", &path));

    let key = rsa();
    let (kid, _) = import("account.json", service_account(&key, "0123456789abcdef0123456789abcdef01234567").as_bytes());
    assert_eq!(kid, "0123456789abcdef0123456789abcdef01234567", "the kid is Google's own");
    let path = desk.write("key.pem", &key);
    assert_eq!(modulus("x509", &certificate(&kid)), modulus("rsa", &path));

    let sec1 = openssl(["ecparam", "-name", "prime256v1", "-genkey", "-noout"]);
    for key in [sec1, openssl(["genpkey", "-quiet", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"])] {
        let (kid, path) = import("ec.pem", &key);
        let of_key = openssl(["pkey", "-pubout", "-in", path.to_str().unwrap()]);
        assert_eq!(openssl(["x509", "-noout", "-pubkey", "-in", certificate(&kid).to_str().unwrap()]), of_key);
    }

    let output = desk.fed(&["key", "import", "--device", device, "-"], &rsa());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    for kid in desk.keys(device).0 {
        // Self-signed: openssl verifies what the device signed with the imported key.
        let path = certificate(&kid);
        let path = path.to_str().unwrap();
        openssl(["verify", "-check_ss_sig", "-partial_chain", "-trusted", path, path]);
    }
}

#[test]
fn softhsm_takes_every_form() {
    let Some(token) = SoftHsm::new() else { return };
    takes_every_form(&Desk::softhsm(&token), "hsm");
}

#[test]
fn a_tpm_takes_every_form() {
    let Some(tpm) = SwTpm::start() else { return };
    takes_every_form(&Desk::swtpm(&tpm), "tpm");
}

#[test]
fn a_tpm_takes_a_tss2_file_and_a_token_does_not() {
    let Some(tpm) = SwTpm::start() else { return };
    let desk = Desk::swtpm(&tpm);
    let kid = desk.done(&["key", "generate", "--device", "tpm"]);
    let file = fs::read(desk.state().join(format!("keys/{kid}.tss2.pem"))).unwrap();
    let path = desk.write("key.tss2.pem", &file);
    desk.done(&["key", "delete", &kid, "--yes", "--force"]);
    assert_eq!(desk.keys("tpm").0, Vec::<String>::new());
    let again = desk.done(&["key", "import", "--device", "tpm", path.to_str().unwrap()]);
    assert_eq!(again, kid, "the same key has the same thumbprint");

    let Some(token) = SoftHsm::new() else { return };
    let desk = Desk::softhsm(&token);
    let path = desk.write("key.tss2.pem", &file);
    desk.refused(&["key", "import", "--device", "hsm", path.to_str().unwrap()], 2, "TSS2");
}

#[test]
fn a_key_that_is_there_already_leaves_no_second_copy() {
    let Some(token) = SoftHsm::new() else { return };
    let desk = Desk::softhsm(&token);
    let path = desk.write("key.pem", &rsa());
    let kid = desk.done(&["key", "import", "--device", "hsm", path.to_str().unwrap()]);
    for kid in ["--kid=another", "--kid=one-more"] {
        desk.refused(&["key", "import", "--device", "hsm", path.to_str().unwrap(), kid], 2, "in the keyring already");
    }
    assert_eq!(desk.keys("hsm"), (vec![kid.clone()], 0));
    let other = desk.write("other.pem", &rsa());
    desk.refused(&["key", "import", "--device", "hsm", other.to_str().unwrap(), "--kid", &kid], 2, "already");
    assert_eq!(desk.keys("hsm"), (vec![kid], 0));
}

/// `scripts/import-key` at this desk.
fn import_key(desk: &Desk, arguments: &[&str]) -> std::process::Output {
    import_key_by(Path::new(env!("CARGO_BIN_EXE_signetctl")), desk, arguments)
}

fn import_key_by(signetctl: &Path, desk: &Desk, arguments: &[&str]) -> std::process::Output {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/import-key"));
    command.args(["--config", desk.path("signet.toml").to_str().unwrap()]).args(arguments);
    command.env("SIGNETCTL", signetctl).stdin(std::process::Stdio::null()).output().unwrap()
}

#[test]
fn the_script_proves_the_import_and_shreds_only_when_told() {
    let Some(token) = SoftHsm::new() else { return };
    let desk = Desk::softhsm(&token);
    let path = desk.write("account.json", service_account(&rsa(), "0123456789abcdef").as_bytes());
    let kept = import_key(&desk, &["hsm", path.to_str().unwrap()]);
    let stdout = String::from_utf8_lossy(&kept.stdout);
    assert!(kept.status.success(), "{}", String::from_utf8_lossy(&kept.stderr));
    assert!(stdout.contains("imported: 0123456789abcdef") && stdout.contains("verified: "), "{stdout}");
    assert!(stdout.contains("state: active"), "{stdout}");
    assert!(path.exists(), "nobody told it to shred");

    let path = desk.write("key.pem", &rsa());
    let shredded = import_key(&desk, &["--shred", "hsm", path.to_str().unwrap()]);
    assert!(shredded.status.success(), "{}", String::from_utf8_lossy(&shredded.stderr));
    let stdout = String::from_utf8_lossy(&shredded.stdout);
    assert!(stdout.contains("state: prepared") && stdout.contains("signetctl key activate "), "{stdout}");
    assert!(!path.exists());
    assert_eq!(desk.keys("hsm").0.len(), 2);
}

#[test]
fn the_script_shreds_no_file_that_took_the_keys_place() {
    let Some(token) = SoftHsm::new() else { return };
    let desk = Desk::softhsm(&token);
    let (path, precious) = (desk.write("key.pem", &rsa()), desk.write("precious", b"precious"));
    let swap = format!(
        "#!/bin/sh\ncase \"$*\" in *\"key show\"*) mv {0:?} {0:?}.moved; cp {precious:?} {0:?} ;; esac\nexec {1} \"$@\"\n",
        path,
        env!("CARGO_BIN_EXE_signetctl")
    );
    let swap = desk.write("swap", swap.as_bytes());
    fs::set_permissions(&swap, fs::Permissions::from_mode(0o700)).unwrap();
    let output = import_key_by(&swap, &desk, &["--shred", "hsm", path.to_str().unwrap()]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{stderr}");
    assert!(stderr.contains("another file stands in the place"), "{stderr}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn the_script_guards_the_file_and_never_shreds_after_a_failure() {
    let Some(token) = SoftHsm::new() else { return };
    let desk = Desk::softhsm(&token);
    let path = desk.write("key.pem", &rsa());
    let link = desk.path("link.pem");
    symlink(&path, &link).unwrap();
    let weak_key = desk.write("weak.pem", &weak("roca"));
    let open = desk.write("open.pem", &rsa());
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    let folder = desk.path("open");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    let exposed = desk.write("open/key.pem", &rsa());
    let tss2 = desk.write("tss2.pem", b"-----BEGIN TSS2 PRIVATE KEY-----\n");
    for (file, words) in [
        (tss2.to_str().unwrap(), "key import --device TPM"),
        (exposed.to_str().unwrap(), "others may write the folder"),
        (link.to_str().unwrap(), "symbolic link"),
        (open.to_str().unwrap(), "others may read or write"),
        (weak_key.to_str().unwrap(), "ROCA"),
        ("-", "standard input"),
        ("/dev/null", "no regular file"),
    ] {
        let output = import_key(&desk, &["--shred", "hsm", file]);
        assert!(failed(&output, 2).contains(words), "{file}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(exposed.exists() && link.exists() && open.exists() && weak_key.exists());
    assert_eq!(desk.keys("hsm"), (vec![], 0));
}
