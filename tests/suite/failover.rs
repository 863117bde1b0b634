//! Several devices for one account, and how anybody sees how they are: the first that can signs, what it can't the next does
//! within the same deadline, and health tells of both.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use signet::access::{Account, AccountEmail, Caller, Operation, Policy, Rule};
use signet::audit::{Fsync, Rotation};
use signet::device::handle::Health;
use signet::file::StateDir;
use signet::key::Algorithm;
use signet::keyring::{KeyRecord, KeyState, Keyring};
use signet::proto::{self, DeviceState};
use signet::signer::{Audit, Bytes, Cache, Call, Devices, LiveKeyring, SignError, Signer};
use tokio::time::Instant;
use tonic_health::ServingStatus;

use crate::support::daemon::{ACCOUNT, TestDaemon, payload};
use crate::support::fake::{Fake, locator};
use crate::support::softhsm::SoftHsm;
use crate::support::{PATIENCE, eventually};

fn email() -> AccountEmail {
    ACCOUNT.parse().unwrap()
}

/// An account with two keys, `first` and `second`, on devices of these names.
struct Pair {
    first: Fake,
    devices: Devices,
    signer: Arc<Signer>,
    _second: Fake,
    _folder: tempfile::TempDir,
}

impl Pair {
    async fn new() -> Self {
        let (first, second, folder) = (Fake::new(), Fake::new(), tempfile::tempdir().unwrap());
        let state = StateDir::new(folder.path().to_owned());
        let record = |name: &str, fake: &Fake, activated| KeyRecord {
            kid: name.parse().unwrap(),
            account: email(),
            algorithm: Algorithm::Rs256,
            device: name.parse().unwrap(),
            locator: locator("rsa"),
            public_key: fake.request(b"", Duration::ZERO).public_key.as_ref().clone(),
            state: KeyState::Active,
            created: 1,
            activated: Some(activated),
            retired: None,
        };
        let mut keyring = Keyring::load(&state).unwrap();
        keyring.keys = vec![record("second", &second, 1), record("first", &first, 2)];
        keyring.save(&state).unwrap();
        let named = |name: &str, fake: &Fake| (name.parse().unwrap(), fake.start());
        let devices = Devices::from([named("first", &first), named("second", &second)]);
        for handle in devices.values() {
            handle.health_changes().wait_for(|health| *health == Health::Ready).await.unwrap();
        }
        let account = Account { email: email(), project_id: None, unique_id: None, default: true };
        let operations = Operation::ALL.to_vec();
        let rule = Rule { users: Some(vec![1]), accounts: vec![email()], operations, ..Rule::default() };
        let rotation = Rotation { max_size: u64::MAX, keep: 1 };
        let audit = Audit::open(&state.audit_log(), Fsync::Never, rotation).unwrap();
        let keyring = LiveKeyring::load(&state, &devices).unwrap();
        let signer = Arc::new(Signer::new(Policy::new(vec![account], vec![rule]), keyring, Cache::new(1), audit));
        Self { first, devices, signer, _second: second, _folder: folder }
    }

    /// Which key signs for a caller who waits so long.
    async fn signs(&self, patience: Duration) -> Result<String, SignError> {
        let caller = Caller::new(1, 1, vec![]);
        let call = Call { caller: &caller, rpc: "Test", account: "", deadline: Instant::now() + patience };
        let signed = self.signer.sign_bytes(call, Bytes::Message(b"message"), None).await?;
        Ok(signed.kid.to_string())
    }
}

#[tokio::test]
async fn where_the_first_device_hangs_the_next_signs_within_the_same_deadline() {
    let pair = Pair::new().await;
    assert_eq!(pair.signs(PATIENCE).await.unwrap(), "first");
    pair.first.always("sign", "hang");
    for patience in [Duration::from_secs(2), PATIENCE] {
        let asked = Instant::now();
        assert_eq!(pair.signs(patience).await.unwrap(), "second");
        assert!(asked.elapsed() < patience);
    }
    // It is known by now: nobody waits for the first any more.
    let asked = Instant::now();
    assert_eq!(pair.signs(PATIENCE).await.unwrap(), "second");
    assert!(asked.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn who_has_no_time_moves_nobody_else_to_another_device() {
    let pair = Pair::new().await;
    assert_eq!(pair.signs(PATIENCE).await.unwrap(), "first");
    pair.first.once("sign", "slow-500");
    // Half of this is less than the device takes.
    assert_ne!(pair.signs(Duration::from_millis(300)).await.ok().as_deref(), Some("first"));
    assert_eq!(pair.signs(PATIENCE).await.unwrap(), "first");
}

#[tokio::test]
async fn a_device_that_came_back_is_preferred_only_when_it_has_been_steady() {
    let pair = Pair::new().await;
    assert_eq!(pair.signs(PATIENCE).await.unwrap(), "first");
    pair.first.once("sign", "wrong");
    assert_eq!(pair.signs(PATIENCE).await.unwrap(), "second");
    let first = &pair.devices[&"first".parse().unwrap()];
    first.health_changes().wait_for(|health| *health == Health::Ready).await.unwrap();
    let back = Instant::now();
    eventually("the first signs again", async || pair.signs(PATIENCE).await.unwrap() == "first").await;
    assert!(back.elapsed() > Duration::from_secs(8), "after {:?} already", back.elapsed());
}

#[tokio::test]
async fn health_and_status_tell_of_a_token_that_is_gone_and_of_its_return_though_nobody_asks_it() {
    let Some(token) = SoftHsm::new() else { return };
    let mut daemon = TestDaemon::prepare(&TestDaemon::config(&token.toml()));
    daemon.signetctl(&["key", "generate", "--device", "hsm"]);
    daemon.spawn();
    daemon.wait_for_health(ServingStatus::Serving).await;
    let device = async || {
        let answer = daemon.client().get_status(proto::GetStatusRequest {}).await.unwrap().into_inner();
        assert_eq!(answer.serving, answer.devices[0].state() == DeviceState::Ready);
        answer.devices[0].clone()
    };
    assert_eq!((device().await.state(), device().await.cause), (DeviceState::Ready, String::new()));
    let (tokens, away) = (token.directory.join("tokens"), token.directory.join("away"));
    fs::rename(&tokens, &away).unwrap();
    daemon.wait_for_health(ServingStatus::NotServing).await;
    eventually("the cause is told", async || device().await.state() == DeviceState::Down).await;
    let told = device().await;
    assert!(!told.cause.is_empty() && !told.remedy.is_empty(), "{told:?}");
    let status = crate::support::signetctl(&daemon.config_file()).arg("status").output().unwrap();
    let text = String::from_utf8(status.stdout).unwrap();
    assert_eq!(status.status.code(), Some(4), "{text}");
    assert!(text.contains(&told.remedy) && !text.contains("configured"), "{text}");
    fs::rename(&away, &tokens).unwrap();
    daemon.wait_for_health(ServingStatus::Serving).await;
    assert!(daemon.signetctl(&["status"]).contains("ready"));
}

#[tokio::test]
async fn devices_come_change_and_go_with_a_reload() {
    let Some(token) = SoftHsm::new() else { return };
    let absent = "[[device]]\nname = \"tpm\"\nkind = \"tpm\"\ntcti = \"swtpm:path={folder}/no-such-tpm\"\n";
    let daemon = TestDaemon::start(&TestDaemon::config(absent));
    let devices = async || {
        let answer = daemon.client().get_status(proto::GetStatusRequest {}).await.unwrap().into_inner();
        answer.devices.into_iter().map(|device| device.name).collect::<Vec<_>>()
    };
    let reload = async |tables: &str, expected: &[&str]| {
        daemon.configure(&TestDaemon::config(tables));
        daemon.signal(nix::sys::signal::Signal::SIGHUP);
        eventually("the devices are those of the file", async || devices().await == expected).await;
    };
    reload(&(absent.to_owned() + &token.toml()), &["hsm", "tpm"]).await;
    daemon.signetctl(&["key", "generate", "--device", "hsm"]);
    daemon.wait_for_health(ServingStatus::Serving).await;
    let before = daemon.device_processes();
    // The TPM goes; the token has other sessions, and so another process, though a token minted before still lives.
    daemon.signetctl(&["mint", "--audience", "https://app.example/"]);
    reload(&token.toml().replace("sessions = 2", "sessions = 1"), &["hsm"]).await;
    eventually("the token has another process alone", async || {
        let now = daemon.device_processes();
        now.len() == 1 && !before.contains(&now[0])
    })
    .await;
    daemon.wait_for_health(ServingStatus::Serving).await;
    daemon.signetctl(&["mint", "--audience", "https://app.example/"]);
    // What can't be taken whole changes nothing.
    daemon.configure(&TestDaemon::config(&token.toml().replace("kind = \"pkcs11\"", "kind = \"pkcs12\"")));
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    daemon.wait_for_log("the old one stays in force");
    assert_eq!(devices().await, ["hsm"]);
    daemon.client().sign_blob(payload(b"message")).await.unwrap();
}
