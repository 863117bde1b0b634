//! What tells of the audit log elsewhere: checkpoints that a device signs, and the journal.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Map, Value};
use signet::audit::{Checkpoint, Head};
use signet::proto::{SignBlobRequest, sign_blob_request};
use tonic::Code;
use tonic_health::ServingStatus;

use crate::audit::verified_with;
use crate::support::daemon::{NO_DEVICE, TestDaemon, payload};
use crate::support::eventually;
use crate::support::softhsm::SoftHsm;

/// With a checkpoint every three records, for an account with which nobody may sign digests.
fn config(more: &str) -> String {
    let audit = "[audit]\ncheckpoint_every = 3\njournal = \"journal\"\n";
    TestDaemon::config(&format!("{audit}{more}")).replace("\"sign-digest\", ", "")
}

async fn on_softhsm() -> Option<(SoftHsm, TestDaemon, String)> {
    let token = SoftHsm::new()?;
    let mut daemon = TestDaemon::prepare(&config(&token.toml()));
    let kid = daemon.signetctl(&["--quiet", "key", "generate", "--device", "hsm"]).trim().to_owned();
    daemon.spawn();
    daemon.wait_for_health(ServingStatus::Serving).await;
    Some((token, daemon, kid))
}

fn checkpoints(daemon: &TestDaemon) -> Vec<Checkpoint> {
    let log = fs::read_to_string(daemon.audit_file()).unwrap_or_default();
    log.lines().filter_map(|line| Checkpoint::of_line(line.as_bytes())).collect()
}

/// Signs three texts, and waits for the checkpoint that they make due.
async fn sign_three(daemon: &TestDaemon) {
    let before = checkpoints(daemon).len();
    for _ in 0..3 {
        daemon.client().sign_blob(payload(b"message")).await.unwrap();
    }
    eventually("a checkpoint", async || checkpoints(daemon).len() > before).await;
}

/// A log of the same records, but for what is changed in them, its chain made anew.
fn rewritten(log: &str, change: impl Fn(&mut Map<String, Value>, &Head)) -> String {
    let (mut head, mut lines) = (Head::start(), Vec::new());
    let mut before = head.clone();
    for line in log.lines() {
        let mut record: Map<String, Value> = serde_json::from_str(line).unwrap();
        record.remove("prev");
        record.remove("seq");
        change(&mut record, &before);
        head.append(&record, &mut lines).unwrap();
        if record.get("event").is_none() {
            before = head.clone();
        }
    }
    String::from_utf8(lines).unwrap()
}

#[tokio::test]
async fn the_device_signs_how_far_the_log_has_come_and_nobody_writes_it_anew() {
    let Some((_token, mut daemon, kid)) = on_softhsm().await else { return };
    sign_three(&daemon).await;
    sign_three(&daemon).await;
    let (exit, said) = verified_with(&daemon, &[]);
    assert!(exit == Some(0) && said.contains("checkpoints 2, signed up to record 7"), "{said}");
    let certificate = daemon.state().join(format!("certificates/{kid}.pem"));
    let certificate = certificate.to_str().unwrap();
    assert_eq!(verified_with(&daemon, &["--certificate", certificate]).0, Some(0));

    assert!(daemon.stop().success());
    let log = fs::read_to_string(daemon.audit_file()).unwrap();
    let deny = |record: &mut Map<String, Value>| {
        if record.get("uid").is_some() {
            record.insert("uid".to_owned(), 4242.into());
        }
    };
    let forged = rewritten(&log, |record, _| deny(record));
    let adapted = rewritten(&log, |record, before| {
        deny(record);
        if record.get("event").is_some() {
            record.insert("hash".to_owned(), before.hash.clone().into());
        }
    });
    let cut: String = log.lines().take(4).map(|line| format!("{line}\n")).collect();
    let last_changed = log.replacen("\"of\":7", "\"of\":6", 1);
    let mut stripped = log.lines().filter(|line| !line.contains("\"checkpoint\"")).collect::<Vec<_>>();
    stripped.extend([stripped[0]; 2]);
    let stripped = rewritten(&stripped.join("\n"), |_, _| ());
    // Whoever writes the log anew writes the note anew as well.
    let noted = |log: &str| signet::audit::verify(log.as_bytes(), None).unwrap().last.note();
    let note = noted(&log);
    for (log, note, expected) in [
        (&forged, noted(&forged), "the checkpoint of record 3 is of another log"),
        (&adapted, noted(&adapted), "was signed by no key that is known"),
        (&cut, note.clone(), "ends with record 4, and signetd noted that it wrote 8"),
        (&last_changed, note, "record 8 is not the one that signetd noted when it wrote it"),
        (&stripped, noted(&stripped), "no checkpoint stands behind the last 8 records"),
    ] {
        fs::write(daemon.audit_file(), log).unwrap();
        fs::write(Head::noted_beside(&daemon.audit_file()), note).unwrap();
        let (exit, said) = verified_with(&daemon, &["--quiet"]);
        assert!(exit == Some(5) && said.contains(expected), "{said}");
    }
}

/// Nothing that is here is told of by the checkpoint of a record that is not; and signetd does not sign over it in silence.
#[tokio::test]
async fn a_log_that_begins_elsewhere_with_an_old_checkpoint_is_no_signed_one() {
    let Some((_token, mut daemon, kid)) = on_softhsm().await else { return };
    sign_three(&daemon).await;
    assert!(daemon.stop().success());
    let log = fs::read_to_string(daemon.audit_file()).unwrap();
    let (mut head, mut forged) = (Head { hash: "f".repeat(64), seq: 81_040 }, Vec::new());
    for line in log.lines().chain(log.lines().take(3)) {
        let mut record: Map<String, Value> = serde_json::from_str(line).unwrap();
        record.retain(|name, _| name != "prev" && name != "seq");
        head.append(&record, &mut forged).unwrap();
    }
    fs::write(daemon.audit_file(), forged).unwrap();
    fs::remove_file(Head::noted_beside(&daemon.audit_file())).unwrap();
    let certificate = daemon.state().join(format!("certificates/{kid}.pem"));
    for more in [&[][..], &["--certificate", certificate.to_str().unwrap()]] {
        let (exit, said) = verified_with(&daemon, more);
        assert!(exit == Some(5) && said.contains("no checkpoint stands behind"), "{said}");
    }
    daemon.spawn();
    daemon.wait_for_log("no checkpoint stands behind what the audit log held at the start");
    eventually("a checkpoint", async || checkpoints(&daemon).len() == 2).await;
    let events: Vec<_> = daemon.audit().into_iter().filter(|line| line.get("event").is_some()).collect();
    assert_eq!((&events[1]["event"], &events[1]["records"]), (&"unsigned".into(), &81_047.into()));
    assert_eq!(events[2]["event"], "checkpoint");
}

/// Neither of a checkpoint's text, nor with another account's key: that account's callers may sign digests.
#[tokio::test]
async fn no_caller_gets_a_checkpoint_signed() {
    let Some((_token, daemon, _kid)) = on_softhsm().await else { return };
    let head = Head { hash: "0".repeat(64), seq: 1 };
    for text in [Checkpoint::text(&head), "signet audit checkpoint".to_owned(), "signet audit checkpoint v2".to_owned()]
    {
        let refused = daemon.client().sign_blob(payload(text.as_bytes())).await.unwrap_err();
        assert!(refused.code() == Code::InvalidArgument && refused.message().contains("checkpoint"), "{refused}");
    }
    sign_three(&daemon).await;
    let other = "other@project.iam.gserviceaccount.com";
    let text = fs::read_to_string(daemon.config_file()).unwrap();
    let moved =
        text.replace("checkpoint_every = 3\n", &format!("checkpoint_every = 3\ncheckpoint_account = \"{other}\"\n"));
    let moved = format!("{moved}\n[[account]]\nemail = \"{other}\"\n");
    let removed = text.replace("checkpoint_every = 3\n", "");
    for intact in [&moved, &removed] {
        daemon.configure(intact);
        let (exit, said) = verified_with(&daemon, &[]);
        assert!(exit == Some(0) && said.contains("checkpoints 1"), "{said}");
    }
    // Until a restart, the account is the one that signs.
    let forging = removed.replace("\"sign-blob\"", "\"sign-digest\", \"sign-blob\"");
    assert_ne!(forging, removed);
    daemon.configure(&forging);
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_log("a rule allows sign-digest with the account that signs checkpoints");
    let input = Some(sign_blob_request::Input::Digest(vec![0; 32].into()));
    let refused = daemon.client().sign_blob(SignBlobRequest { input, ..payload(b"") }).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let (exit, said) = verified_with(&daemon, &[]);
    assert!(exit == Some(5) && said.contains("was signed by no key that is known"), "{said}");
}

#[tokio::test]
async fn without_a_device_there_is_no_checkpoint_and_that_is_told() {
    let daemon = TestDaemon::start(&config(NO_DEVICE));
    for _ in 0..3 {
        daemon.client().sign_blob(payload(b"message")).await.unwrap_err();
    }
    daemon.wait_for_log("no checkpoint of the audit log can be signed now");
    assert_eq!(daemon.audit().len(), 3);
}

#[tokio::test]
async fn the_journal_is_told_each_record_and_missed_by_nobody() {
    let daemon = TestDaemon::prepare(&config(NO_DEVICE));
    let socket = daemon.folder().join("journal");
    let journal = UnixDatagram::bind(&socket).unwrap();
    journal.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut daemon = daemon;
    daemon.spawn();
    daemon.wait_for_log("serving");
    daemon.client().sign_blob(payload(b"message")).await.unwrap_err();
    let mut entry = vec![0; 1 << 16];
    let length = journal.recv(&mut entry).unwrap();
    let log = fs::read_to_string(daemon.audit_file()).unwrap();
    let expected = format!("SYSLOG_IDENTIFIER=signetd-audit\nPRIORITY=5\nMESSAGE={log}");
    assert_eq!(String::from_utf8_lossy(&entry[..length]), expected);
    // Closing it would not do: what another test starts may hold it until it runs.
    fs::remove_file(&socket).unwrap();
    daemon.client().sign_blob(payload(b"message")).await.unwrap_err();
    daemon.wait_for_log("the journal does not take audit records: these are in the log alone");
    assert_eq!(daemon.audit().len(), 2);
}
