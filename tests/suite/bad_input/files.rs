//! Files: keys to be imported, configurations, keyrings, audit logs.

use std::fs;
use std::path::Path;

use der::pem;
use signet::audit::{Fsync, Head, Rotation, verify};
use signet::config::Config;
use signet::device::tss2::Tss2Key;
use signet::keyring::Keyring;
use signet::signer::Audit;

use super::{Case, Table};
use crate::config;
use crate::support::desk::{Desk, openssl};

/// A text with one thing in it replaced, as the case says.
fn edited(case: &mut Case, text: String) -> String {
    if !case.fields.contains_key("from") {
        return text;
    }
    let (from, to) = (case.text("from"), case.text("to"));
    assert!(text.contains(&from), "{}: {from:?} is not in the text", case.name);
    text.replace(&from, &to)
}

/// The error that signetctl tells, and its exit code.
fn refused(desk: &Desk, path: &Path) -> (Option<i32>, String) {
    let output = desk.signetctl(["key", "import", "--device", "tpm", path.to_str().unwrap()]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let error = said.lines().find_map(|line| line.strip_prefix("error: ")).unwrap_or_else(|| panic!("{said}"));
    let error = error.strip_prefix(path.to_str().unwrap()).map_or(error, |rest| rest.trim_start_matches(": "));
    assert!(said.contains("try: "), "{said}");
    (output.status.code(), error.to_owned())
}

/// Before any device is touched: a good one fails at the device, which is not there.
#[test]
fn keys_that_are_imported() {
    let desk = Desk::bare();
    let text = |command: &str| String::from_utf8(openssl(command.split(' '))).unwrap();
    let pkcs8 = text("genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048");
    let good = desk.write("good.pem", pkcs8.as_bytes());
    let pkcs1 = text(&format!("rsa -traditional -in {}", good.display()));
    let ec = text("ecparam -name prime256v1 -genkey -noout");
    let folder = desk.folder.path().to_str().unwrap();
    let in_json = pkcs8.replace('\n', "\\n");
    let values =
        [("pkcs8", pkcs8.as_str()), ("pkcs1", &pkcs1), ("ec", &ec), ("pkcs8 in json", &in_json), ("folder", folder)];
    let mut table = Table::new("import", "files", &values);
    while let Some(mut case) = table.next() {
        let made = |command: String| openssl(command.split(' '));
        let weak = |name: String| fs::read(Path::new("tests/weak-keys").join(format!("{name}.pem"))).unwrap();
        let key = case.take("weak").map(weak).or(case.take("openssl").map(made)).unwrap_or_else(|| {
            let text = case.text("text");
            let mut text = edited(&mut case, text);
            text.truncate(case.take("cut").unwrap_or(text.len()));
            text.into_bytes()
        });
        let path = desk.write("key", &key);
        let (exit, answer) = refused(&desk, &path);
        assert_eq!(exit, Some(2), "{}: {answer}", case.name);
        assert_eq!(fs::read(&path).unwrap(), key, "{}: the file was changed", case.name);
        table.hold(case, &answer);
        assert_eq!(refused(&desk, &good).0, Some(4), "a good one goes to the device");
    }
    table.end();
}

#[test]
fn key_files_of_a_tpm() {
    let good = Tss2Key { empty_auth: true, parent: 0x8100_0001, public: vec![1; 4], private: vec![2; 4] };
    let pem = good.to_pem().unwrap();
    let (label, der) = pem::decode_vec(pem.as_bytes()).unwrap();
    let der: String = der.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut table = Table::new("import", "tss2", &[("good", &pem)]);
    while let Some(mut case) = table.next() {
        let text = if case.fields.contains_key("text") {
            case.text("text")
        } else {
            let der = super::hex(&edited(&mut case, der.clone()));
            pem::encode_string(label, pem::LineEnding::LF, &der).unwrap()
        };
        let answer = Tss2Key::from_pem(&text).map_or_else(|error| error.to_string(), |_| "OK".to_owned());
        assert_eq!(Tss2Key::from_pem(&pem).as_ref(), Ok(&good), "after {}", case.name);
        table.hold(case, &answer);
    }
    table.end();
}

#[test]
fn configurations() {
    let folder = tempfile::Builder::new().prefix("signet").tempdir().unwrap();
    let here = fs::canonicalize(folder.path()).unwrap().into_os_string().into_string().unwrap();
    let path = folder.path().join("signet.toml");
    crate::support::write_private(&folder.path().join("pin"), "123456\n");
    crate::support::write_private(&folder.path().join("module.so"), "");
    let good = config::GOOD.replace("{folder}", &here);
    let mut table = Table::new("configuration", "edits", &[("folder", &here)]);
    while let Some(mut case) = table.next() {
        crate::support::write_private(&path, &edited(&mut case, good.clone()));
        let answer = match Config::load(&path) {
            Ok(_) => "OK".to_owned(),
            Err(error) => format!("{}; try: {}", error.what, error.remedy),
        };
        crate::support::write_private(&path, &good);
        Config::load(&path).unwrap_or_else(|error| panic!("after {}: {error}", case.name));
        table.hold(case, &answer);
    }
    table.end();
}

#[test]
fn keyrings() {
    let desk = Desk::bare();
    let state = desk.state();
    let public = openssl(["pkey", "-pubout", "-outform", "DER", "-in", "tests/weak-keys/roca.pem"]);
    let spki = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, public);
    let key = |kid: &str| {
        format!(
            r#"{{"kid": "{kid}", "account": "a@x", "algorithm": "RS256", "device": "hsm", "locator": {{"pkcs11": "pkcs11:id=%01"}},
            "spki": "{spki}", "state": "active", "created": 1, "activated": 1, "retired": null}}"#
        )
    };
    let good = format!(r#"{{"version": 1, "keys": [{}, {}]}}"#, key("a"), key("b"));
    let mut table = Table::new("keyring", "edits", &[("all", &good)]);
    while let Some(mut case) = table.next() {
        let bad = edited(&mut case, good.clone());
        fs::write(state.keyring(), &bad).unwrap();
        let answer = match Keyring::load(&state) {
            Ok(_) => "OK".to_owned(),
            Err(error) => error.to_string().replacen(&format!("{}: ", state.keyring().display()), "", 1),
        };
        assert_eq!(fs::read_to_string(state.keyring()).unwrap(), bad, "{}: it was changed", case.name);
        fs::write(state.keyring(), &good).unwrap();
        assert_eq!(Keyring::load(&state).unwrap().keys.len(), 2, "after {}", case.name);
        table.hold(case, &answer);
    }
    table.end();
}

#[test]
fn audit_logs() {
    let mut whole = Vec::new();
    let mut head = Head::start();
    for what in ["a", "b", "c", "d"] {
        head.append(&serde_json::json!({ "what": what }), &mut whole).unwrap();
    }
    let lines: Vec<_> = str::from_utf8(&whole).unwrap().split_inclusive('\n').collect();
    let mut table = Table::new("audit", "logs", &[("first prev", &Head::start().hash)]);
    while let Some(mut case) = table.next() {
        let kept: Vec<usize> = case.take("lines").unwrap_or_else(|| vec![1, 2, 3, 4]);
        let log = edited(&mut case, kept.iter().map(|line| lines[*line - 1]).collect());
        let log = [log.into_bytes(), case.bytes("append").unwrap_or_default()].concat();
        let said = verify(log.as_slice(), None).map_or_else(|broken| broken.to_string(), |_| "whole".to_owned());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        fs::write(&path, &log).unwrap();
        let rotation = Rotation { max_size: u64::MAX, keep: 1 };
        let opened = Audit::open(&path, Fsync::Never, rotation).map(drop);
        let opened = opened.map_or_else(|error| error.to_string(), |()| "goes on".to_owned());
        let opened = opened.replacen(&format!("audit log {}: ", path.display()), "", 1);
        if opened != "goes on" {
            assert_eq!(fs::read(&path).unwrap(), log, "{}: it was changed", case.name);
            // What a person is told to do.
            fs::rename(&path, folder.path().join("elsewhere")).unwrap();
            Audit::open(&path, Fsync::Never, rotation).unwrap_or_else(|error| panic!("after {}: {error}", case.name));
        }
        assert_eq!(verify(whole.as_slice(), None).unwrap().last, head, "after {}", case.name);
        table.hold(case, &format!("{said}; {opened}"));
    }
    table.end();
}
