//! The audit log: what it says, what it survives, and that nothing is signed without it.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use signet::key::sha256;
use signet::proto::{self, mint_jwt_access_token_request as mint};
use tonic::Code;

use crate::signing::on_softhsm;
use crate::support::daemon::{ACCOUNT, NO_DEVICE, TestDaemon, payload, reason};
use crate::support::signetctl;
use crate::support::softhsm::SoftHsm;

fn verified(daemon: &TestDaemon) -> (Option<i32>, String) {
    verified_with(daemon, &[])
}

/// Runs `signetctl audit verify`; returns its exit code and what it said.
pub(crate) fn verified_with(daemon: &TestDaemon, more: &[&str]) -> (Option<i32>, String) {
    let output = signetctl(&daemon.config_file()).args(["audit", "verify"]).args(more).output().unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[tokio::test]
async fn a_log_that_is_gone_at_the_next_start_is_missed() {
    let Some((_token, mut daemon)) = on_softhsm().await else { return };
    for _ in 0..3 {
        daemon.client().sign_blob(payload(b"message")).await.unwrap();
    }
    assert!(daemon.stop().success());
    let noted = daemon.audit().last().unwrap()["prev"].as_str().unwrap().to_owned();
    let moved = daemon.folder().join("moved.log");
    fs::rename(daemon.audit_file(), &moved).unwrap();
    daemon.spawn();
    daemon.wait_for_log("the audit log does not end where it was ended");
    daemon.wait_for_log("ready to sign");
    daemon.client().sign_blob(payload(b"message")).await.unwrap();
    let log = daemon.audit();
    assert_eq!((&log[0]["event"], &log[0]["found"], &log[0]["seq"]), (&"gap".into(), &0.into(), &4.into()));
    let told = String::from_utf8(signetctl(&daemon.config_file()).args(["audit", "tail"]).output().unwrap().stdout);
    let told = told.unwrap().lines().find(|line| line.contains("gap")).unwrap().to_owned();
    assert!(told.starts_with("20") && told.contains("records after number 0 are missing"), "{told}");
    // What was only moved is continued; what is missing is asked for.
    let (moved, path) = (moved.to_str().unwrap(), daemon.audit_file());
    let path = path.to_str().unwrap();
    assert_eq!(verified_with(&daemon, &["--from-start", "--expect", &noted, moved, path]).0, Some(0));
    let (exit, said) = verified_with(&daemon, &["--from-start"]);
    assert!(exit == Some(5) && said.contains("begins with record 4"), "{said}");
    let (exit, said) = verified_with(&daemon, &["--expect", &noted]);
    assert!(exit == Some(5) && said.contains("no record has the hash"), "{said}");
}

#[tokio::test]
async fn a_log_that_is_removed_under_a_running_daemon_is_missed() {
    let Some((_token, daemon)) = on_softhsm().await else { return };
    daemon.client().sign_blob(payload(b"message")).await.unwrap();
    fs::remove_file(daemon.audit_file()).unwrap();
    daemon.client().sign_blob(payload(b"message")).await.unwrap();
    daemon.wait_for_log("the audit log was removed while it was written");
    let log = daemon.audit();
    assert_eq!((&log[0]["seq"], &log[1]["event"], &log[1]["found"]), (&2.into(), &"gap".into(), &0.into()));
}

/// The folder is the daemon's, and whoever reads the log may be root.
#[test]
fn what_is_no_file_where_a_log_should_be_holds_up_nobody_who_reads_it() {
    let daemon = TestDaemon::prepare(&TestDaemon::config(NO_DEVICE));
    let old = |number| signet::audit::Rotation::old(&daemon.audit_file(), number);
    let read = |command| signetctl(&daemon.config_file()).args(["audit", command]).output().unwrap();
    let refused = || ["verify", "tail"].map(read).iter().all(|output| output.status.code() == Some(1));
    nix::unistd::mkfifo(&old(2), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(refused(), "a pipe");
    fs::remove_file(old(2)).unwrap();
    std::os::unix::fs::symlink("/dev/zero", old(1)).unwrap();
    assert!(refused(), "a link");
    fs::remove_file(old(1)).unwrap();
    let long = OpenOptions::new().write(true).create(true).truncate(true).open(daemon.audit_file()).unwrap();
    long.set_len(100 << 20).unwrap();
    let verified = read("verify");
    let said = String::from_utf8(verified.stderr).unwrap();
    assert!(verified.status.code() == Some(5) && said.contains("longer than any record"), "{said}");
    assert!(read("tail").status.success());
    fs::write(daemon.audit_file(), "{\"time\":\"x\",\"outcome\":\"a\\nb\\u001b[2J\",\"rpc\":\"\"}\n").unwrap();
    let told = String::from_utf8(read("tail").stdout).unwrap();
    assert!(told.lines().count() == 1 && !told.contains('\u{1b}') && told.contains("a\\nb"), "{told}");
}

#[tokio::test]
async fn a_log_that_was_cut_is_not_filled_up_but_left_until_it_is_moved_away() {
    let Some((_token, daemon)) = on_softhsm().await else { return };
    let mut client = daemon.client();
    client.sign_blob(payload(b"message")).await.unwrap();
    let log = OpenOptions::new().write(true).open(daemon.audit_file()).unwrap();
    log.set_len(10).unwrap();
    assert_eq!(client.sign_blob(payload(b"message")).await.unwrap_err().code(), Code::FailedPrecondition);
    daemon.wait_for_log("it was cut off");
    assert_eq!(log.metadata().unwrap().len(), 10);
    fs::rename(daemon.audit_file(), daemon.folder().join("cut.log")).unwrap();
    daemon.wait_for_log("the audit log can be written again");
    client.sign_blob(payload(b"message")).await.unwrap();
}

#[tokio::test]
async fn a_record_tells_who_asked_what_and_what_became_of_it() {
    let Some((_token, daemon)) = on_softhsm().await else { return };
    let mut client = daemon.client();
    client.sign_blob(payload(b"message")).await.unwrap();
    let target = Some(mint::Target::Audience("https://pubsub.googleapis.com/".to_owned()));
    let request = proto::MintJwtAccessTokenRequest { account: ACCOUNT.to_owned(), target, lifetime: None };
    let minted = client.mint_jwt_access_token(request).await.unwrap().into_inner();
    let hostile = "nobody\u{1b}[31m\n{\"seq\":1}@x".to_owned();
    client.sign_blob(proto::SignBlobRequest { account: hostile, ..payload(b"x") }).await.unwrap_err();
    let log = daemon.audit();
    let [blob, jwt, refused] = log.as_slice() else { panic!("{log:?}") };
    for (line, rpc, operation) in [(blob, "SignBlob", "sign-blob"), (jwt, "MintJwtAccessToken", "mint-access-token")] {
        assert_eq!(line["uid"], nix::unistd::geteuid().as_raw());
        assert_eq!(line["gid"], nix::unistd::getegid().as_raw());
        assert_eq!(line["pid"], std::process::id());
        assert_eq!((&line["rpc"], &line["operation"]), (&rpc.into(), &operation.into()));
        assert_eq!((&line["decision"], &line["rule"], &line["outcome"]), (&"allow".into(), &1.into(), &"OK".into()));
        assert_eq!((&line["kid"], &line["device"]), (&minted.key_id.clone().into(), &"hsm".into()));
        assert!(line["latency_us"].as_u64().unwrap() > 0);
    }
    let (input, _signature) = minted.access_token.rsplit_once('.').unwrap();
    assert_eq!(blob["digest"], format!("sha256:{}", sha256(b"message")));
    assert_eq!(jwt["digest"], format!("sha256:{}", sha256(input.as_bytes())));
    assert_eq!(jwt["audience_sha256"], sha256(b"https://pubsub.googleapis.com/"));
    // The one that was meant, named or not.
    assert_eq!((&blob["account"], &jwt["account"]), (&ACCOUNT.into(), &ACCOUNT.into()));
    assert_eq!((&refused["decision"], &refused["outcome"]), (&"none".into(), &"INVALID_REQUEST".into()));
    assert_eq!(refused["account"], "nobody\\u{1b}[31m\\n{\"seq\":1}@x");
    assert_eq!(fs::metadata(daemon.audit_file()).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(verified(&daemon).0, Some(0));
}

#[tokio::test]
async fn a_changed_removed_or_moved_line_is_found() {
    let Some((_token, daemon)) = on_softhsm().await else { return };
    for _ in 0..4 {
        daemon.client().sign_blob(payload(b"message")).await.unwrap();
    }
    let log = fs::read_to_string(daemon.audit_file()).unwrap();
    let lines: Vec<_> = log.lines().collect();
    let forged = log.replacen("\"outcome\":\"OK\"", "\"outcome\":\"NO\"", 1);
    let removed = [&lines[..1], &lines[2..]].concat().join("\n") + "\n";
    let moved = [lines[0], lines[2], lines[1], lines[3]].join("\n") + "\n";
    for broken in [forged, removed, moved] {
        fs::write(daemon.audit_file(), broken).unwrap();
        let (code, said) = verified(&daemon);
        assert_eq!(code, Some(5), "{said}");
        assert!(said.contains("line 2"), "{said}");
    }
}

#[tokio::test]
async fn a_line_torn_by_a_crash_is_mended_and_the_chain_goes_on() {
    let Some((_token, mut daemon)) = on_softhsm().await else { return };
    daemon.client().sign_blob(payload(b"message")).await.unwrap();
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    let torn = r#"{"prev":"0123","se"#;
    OpenOptions::new().append(true).open(daemon.audit_file()).unwrap().write_all(torn.as_bytes()).unwrap();
    assert_eq!(verified(&daemon).0, Some(5));
    daemon.spawn();
    daemon.wait_for_health(tonic_health::ServingStatus::Serving).await;
    daemon.client().sign_blob(payload(b"message")).await.unwrap();
    let log = daemon.audit();
    assert_eq!(log.len(), 3);
    assert_eq!((&log[1]["event"], &log[1]["torn"]), (&Value::from("mended"), &Value::from(torn)));
    assert_eq!((&log[1]["bytes"], &log[1]["sha256"]), (&torn.len().into(), &sha256(torn.as_bytes()).into()));
    // What a power cut leaves.
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    let log = OpenOptions::new().write(true).open(daemon.audit_file()).unwrap();
    log.set_len(log.metadata().unwrap().len() + 70_000).unwrap();
    daemon.spawn();
    daemon.wait_for_health(tonic_health::ServingStatus::Serving).await;
    let log = daemon.audit();
    assert_eq!((&log[3]["event"], &log[3]["bytes"]), (&"mended".into(), &70_000.into()));
    assert!(daemon.stop().success());
    assert_eq!(verified(&daemon).0, Some(0));
    daemon.spawn();
    daemon.wait_for_health(tonic_health::ServingStatus::Serving).await;
}

#[tokio::test]
async fn a_rotated_log_is_followed_and_the_chain_goes_on() {
    let Some((_token, daemon)) = on_softhsm().await else { return };
    daemon.client().sign_blob(payload(b"message")).await.unwrap();
    let old = daemon.state().join("audit.log.1");
    fs::rename(daemon.audit_file(), &old).unwrap();
    daemon.client().sign_blob(payload(b"message")).await.unwrap();
    let verify = |path, before| signet::audit::verify(fs::read(path).unwrap().as_slice(), before).unwrap();
    let old = verify(old, None);
    assert_eq!(verify(daemon.audit_file(), Some(old.last)).last.seq, 2);
}

#[tokio::test]
async fn the_log_is_rotated_by_its_size_and_verifies_over_its_files() {
    let Some(token) = SoftHsm::new() else { return };
    let rotation = "[audit]\nmax_size = \"4KiB\"\nkeep = 3\n";
    let mut daemon = TestDaemon::prepare(&TestDaemon::config(&format!("{rotation}{}", token.toml())));
    daemon.signetctl(&["key", "generate", "--device", "hsm"]);
    daemon.spawn();
    daemon.wait_for_health(tonic_health::ServingStatus::Serving).await;
    let old = |number: u32| signet::audit::Rotation::old(&daemon.audit_file(), number);
    let mut signed = 0;
    while !old(2).exists() {
        daemon.client().sign_blob(payload(b"message")).await.unwrap();
        signed += 1;
    }
    let (code, said) = verified(&daemon);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(&format!("{signed} records, 1 to {signed}: whole")), "{said}");
    while !old(3).exists() || fs::metadata(old(3)).unwrap().len() == 0 || signed < 40 {
        daemon.client().sign_blob(payload(b"message")).await.unwrap();
        signed += 1;
    }
    assert!(!old(4).exists(), "three are kept");
    let largest = (1..=3).map(old).chain([daemon.audit_file()]).map(|log| fs::metadata(log).unwrap().len()).max();
    assert!(largest.unwrap() <= 4096, "{largest:?}");
    let (code, said) = verified(&daemon);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(&format!("to {signed}: whole")) && said.contains("a log that is not here"), "{said}");
    let forged = fs::read_to_string(old(2)).unwrap().replacen("SignBlob", "SignBlow", 1);
    fs::write(old(2), forged).unwrap();
    assert_eq!(verified(&daemon).0, Some(5));
}

/// Killed as soon as all have their answers: none was told before it was on record.
#[tokio::test]
async fn who_asks_again_and_again_for_nothing_pushes_no_record_out_and_each_request_is_counted() {
    let rotation = "[audit]\nmax_size = \"64KiB\"\nkeep = 1\n";
    let device = "[[device]]\nname = \"tpm\"\nkind = \"tpm\"\ntcti = \"swtpm:path={folder}/no-such-tpm\"\n";
    let mut daemon = TestDaemon::start(&TestDaemon::config(&format!("{rotation}{device}")));
    daemon.client().sign_blob(payload(b"message")).await.unwrap_err();
    let mut refused = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let client = daemon.client();
        for _ in 0..60 {
            let (mut client, account) = (client.clone(), "another@x".to_owned());
            refused.spawn(async move { client.sign_blob(proto::SignBlobRequest { account, ..payload(b"x") }).await });
        }
    }
    for answer in refused.join_all().await {
        let refusal = answer.unwrap_err();
        assert_eq!(reason(&refusal), "NOT_ALLOWED");
    }
    let (client, mut told) = (daemon.client(), tokio::task::JoinSet::new());
    for _ in 0..50 {
        let mut client = client.clone();
        told.spawn(async move { client.get_account(proto::GetAccountRequest { account: String::new() }).await });
    }
    for answer in told.join_all().await {
        assert_eq!(reason(&answer.unwrap_err()), "NO_ACTIVE_KEY");
    }
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    let log = daemon.audit();
    assert_eq!((&log[0]["seq"], &log[0]["decision"]), (&1.into(), &"allow".into()), "the first is still there");
    let alone = log.iter().filter(|line| line["outcome"] == "NOT_ALLOWED").count() as u64;
    let together = |rpc, outcome| {
        let counted = log.iter().filter(|line| line["event"] == "counted");
        let counted = counted.flat_map(|line| line["counted"].as_array().unwrap());
        let counted = counted.filter(|told| (&told["rpc"], &told["outcome"]) == (&json!(rpc), &json!(outcome)));
        let uid = nix::unistd::geteuid().as_raw();
        counted.inspect(|told| assert_eq!(told["uid"], uid)).map(|told| told["count"].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!((alone, alone + together("SignBlob", "NOT_ALLOWED")), (100, 960));
    assert_eq!(together("GetAccount", "NO_ACTIVE_KEY"), 50);
    assert_eq!(verified(&daemon).0, Some(0));
}

#[tokio::test]
async fn the_log_is_rotated_at_sigusr1_and_the_chain_goes_on_over_a_restart() {
    let Some((_token, mut daemon)) = on_softhsm().await else { return };
    daemon.client().sign_blob(payload(b"message")).await.unwrap();
    daemon.signal(Signal::SIGUSR1);
    daemon.wait_for_log("rotated the audit log");
    assert!(daemon.stop().success());
    assert!(verified(&daemon).1.contains("1 records, 1 to 1: whole"));
    daemon.spawn();
    daemon.wait_for_health(tonic_health::ServingStatus::Serving).await;
    daemon.client().sign_blob(payload(b"message")).await.unwrap();
    let (code, said) = verified(&daemon);
    assert!(code == Some(0) && said.contains("2 records, 1 to 2: whole"), "{said}");
}

#[tokio::test]
async fn on_a_full_disk_nothing_is_signed_and_everything_once_there_is_room() {
    let Some(token) = SoftHsm::new() else { return };
    let mut unshare = Command::new("unshare");
    unshare.args(["--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]);
    if !unshare.status().is_ok_and(|status| status.success()) {
        // The test above does the same with a limit in place of a disk.
        eprintln!("SKIPPED on_a_full_disk: no file system can be mounted here");
        return;
    }
    let log = "[audit]\npath = \"disk/audit.log\"\n";
    let mut daemon = TestDaemon::prepare(&TestDaemon::config(&format!("{log}{}", token.toml())));
    fs::create_dir(daemon.folder().join("disk")).unwrap();
    daemon.signetctl(&["key", "generate", "--device", "hsm"]);
    // A disk of 16 KiB in a namespace of its own. Unlike signetd, the process that waits there lets itself be looked into.
    let script =
        "mount -t tmpfs -o size=16k,mode=700 none disk && exec 5<&0 && { cat <&5 >/dev/null & } && exec \"$@\"";
    let signetd = daemon.command();
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", script, "sh"]).arg(signetd.get_program());
    command.args(signetd.get_args()).current_dir(daemon.folder()).stdin(Stdio::piped());
    daemon.spawn_as(command);
    daemon.wait_for_health(tonic_health::ServingStatus::Serving).await;
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", daemon.pid())).unwrap();
    let disk = PathBuf::from(format!("/proc/{}/cwd/disk", children.split(' ').next().unwrap()));
    daemon.client().sign_blob(payload(b"message")).await.unwrap();
    let ballast = disk.join("ballast");
    let fill = || {
        let full = fs::write(&ballast, [0; 16 << 10]).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    };
    fill();
    // There is no room to note where the log ends, which nothing is lost by.
    daemon.wait_for_health(tonic_health::ServingStatus::NotServing).await;
    fs::remove_file(&ballast).unwrap();
    daemon.wait_for_health(tonic_health::ServingStatus::Serving).await;
    fill();
    let refused = loop {
        // The page that the log has begun still takes a few records.
        match daemon.client().sign_blob(payload(b"message")).await {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&refused), "AUDIT_UNWRITABLE");
    daemon.wait_for_health(tonic_health::ServingStatus::NotServing).await;
    fs::remove_file(&ballast).unwrap();
    daemon.wait_for_health(tonic_health::ServingStatus::Serving).await;
    daemon.client().sign_blob(payload(b"message")).await.unwrap();
    let records = fs::read(disk.join("audit.log")).unwrap();
    let whole = signet::audit::verify(records.as_slice(), None).unwrap();
    assert!(whole.lines >= 3, "{whole:?}");
}

#[tokio::test]
async fn nothing_is_signed_while_the_log_cannot_be_written_and_everything_after() {
    let Some((_token, mut daemon)) = on_softhsm().await else { return };
    daemon.stop();
    // What a full disk does, done by a limit on the size of files; the signal of that limit is the test's, not the disk's.
    let mut command = Command::new("sh");
    let signetd = daemon.command();
    command.arg("-c").arg("trap '' XFSZ; exec \"$@\"").arg("sh").arg(signetd.get_program()).args(signetd.get_args());
    daemon.spawn_as(command);
    daemon.wait_for_health(tonic_health::ServingStatus::Serving).await;
    daemon.client().sign_blob(payload(b"message")).await.unwrap();
    let limit = |limit: &str| {
        let pid = daemon.pid().to_string();
        let set =
            Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={limit}:unlimited")]).status().unwrap();
        assert!(set.success());
    };
    let length = fs::metadata(daemon.audit_file()).unwrap().len();
    limit(&(length + 100).to_string());
    for _ in 0..3 {
        let status = daemon.client().sign_blob(payload(b"message")).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        assert_eq!(reason(&status), "AUDIT_UNWRITABLE");
    }
    daemon.wait_for_log("the audit log can't be written");
    daemon.wait_for_health(tonic_health::ServingStatus::NotServing).await;
    let told = signetctl(&daemon.config_file()).arg("status").output().unwrap();
    let (told, file) = (String::from_utf8(told.stdout).unwrap(), daemon.audit_file());
    assert!(told.contains(&format!("the audit log can't be written ({}: File too large", file.display())), "{told}");
    limit("unlimited");
    daemon.wait_for_health(tonic_health::ServingStatus::Serving).await;
    daemon.client().sign_blob(payload(b"message")).await.unwrap();
    let log = daemon.audit();
    let outcomes: Vec<_> = log.iter().map(|line| line["outcome"].as_str()).collect();
    // The second was decided and signed before the log failed: it was withheld, and both are on record.
    assert_eq!(outcomes, [Some("OK"), Some("OK"), None, Some("OK")]);
    assert_eq!((&log[2]["event"], &log[2]["record"]), (&"unanswered".into(), &log[1]["seq"]));
    // As a person reads it.
    let told = daemon.signetctl(&["audit", "tail", "-n", "3"]);
    let [ok, unanswered, last] = told.lines().collect::<Vec<_>>()[..] else { panic!("{told}") };
    assert!(ok.contains(ACCOUNT) && ok.contains("SignBlob") && ok.contains("OK") && ok.contains("by rule 1, hsm"));
    assert!(unanswered.contains(r#"unanswered  {"record":2}"#) && last.contains("OK"), "{told}");
    let failed = daemon.signetctl(&["audit", "tail", "--failed"]);
    assert!(failed.contains("unanswered") && !failed.contains("OK"), "{failed}");
    // What somebody else wrote there is passed over, be it no text.
    let copy = daemon.folder().join("copy");
    fs::write(&copy, [&fs::read(daemon.audit_file()).unwrap(), &b"\xff\n"[..]].concat()).unwrap();
    assert_eq!(daemon.signetctl(&["audit", "tail", "-n", "3", copy.to_str().unwrap()]), told);
}

#[test]
fn a_log_that_cannot_be_continued_is_refused_and_left_alone() {
    let daemon = TestDaemon::prepare(&TestDaemon::config(
        "[[device]]\nname = \"tpm\"\nkind = \"tpm\"\ntcti = \"device:{folder}/no-such-tpm\"\n",
    ));
    fs::write(daemon.audit_file(), "somebody's notes\n").unwrap();
    let output = daemon.output();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("audit.log") && said.contains("try: "), "{said}");
    assert_eq!(fs::read_to_string(daemon.audit_file()).unwrap(), "somebody's notes\n");
    fs::remove_file(daemon.audit_file()).unwrap();
    std::os::unix::fs::symlink("/dev/full", daemon.audit_file()).unwrap();
    assert!(!daemon.output().status.success());
}
