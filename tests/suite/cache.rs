//! Cached JWTs: one signature for all who ask, by the rules of each, and in the audit log of all.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use signet::access::{Account, AccountEmail, Caller, Operation, Policy, Rule};
use signet::audit::{Fsync, Rotation};
use signet::device::handle::Health;
use signet::file::StateDir;
use signet::jwt::Target;
use signet::key::Algorithm;
use signet::keyring::{self, KeyRecord, KeyState};
use signet::proto::{self, mint_jwt_access_token_request as mint};
use signet::signer::{Audit, Bytes, Cache, Call, Devices, JwtBody, LiveKeyring, SignError, Signer};
use tokio::time::Instant;

use crate::signing::on_softhsm;
use crate::support::daemon::ACCOUNT;
use crate::support::eventually;
use crate::support::fake::{Fake, locator};

/// A signer with a fake device, which counts what it signs.
struct Stand {
    fake: Fake,
    devices: Devices,
    folder: tempfile::TempDir,
    signer: Arc<Signer>,
}

fn email() -> AccountEmail {
    ACCOUNT.parse().unwrap()
}

/// The user 1 may do everything, the user 2 has half an hour.
fn policy() -> Policy {
    let account = Account { email: email(), project_id: None, unique_id: None, default: true };
    let rule = Rule { accounts: vec![email()], operations: Operation::ALL.to_vec(), ..Rule::default() };
    let short = Some(Duration::from_secs(1800));
    let rules =
        vec![Rule { users: Some(vec![1]), ..rule.clone() }, Rule { users: Some(vec![2]), max_lifetime: short, ..rule }];
    Policy::new(vec![account], rules)
}

impl Stand {
    async fn new() -> Self {
        let (fake, folder) = (Fake::new(), tempfile::tempdir().unwrap());
        let state = StateDir::new(folder.path().to_owned());
        let handle = fake.start();
        handle.health_changes().wait_for(|health| *health == Health::Ready).await.unwrap();
        let devices = Devices::from([("fake".parse().unwrap(), handle)]);
        write_keyring(&fake, &state, "first", KeyState::Active);
        let keyring = LiveKeyring::load(&state, &devices).unwrap();
        let rotation = Rotation { max_size: u64::MAX, keep: 1 };
        let audit = Audit::open(&state.audit_log(), Fsync::Never, rotation).unwrap();
        let signer = Arc::new(Signer::new(policy(), keyring, Cache::new(100), audit));
        Self { fake, devices, folder, signer }
    }

    async fn ask(&self, uid: u32, body: JwtBody) -> Result<(String, Duration), SignError> {
        ask(Arc::clone(&self.signer), uid, body, Duration::from_secs(20)).await
    }

    fn state(&self) -> StateDir {
        StateDir::new(self.folder.path().to_owned())
    }

    fn signatures(&self) -> usize {
        self.fake.calls("sign")
    }

    fn set_keyring(&self, kid: &str, state: KeyState) {
        write_keyring(&self.fake, &self.state(), kid, state);
        self.reload();
    }

    fn take(&self, keyring: &keyring::Keyring) {
        keyring.save(&self.state()).unwrap();
        self.reload();
    }

    fn reload(&self) {
        self.signer.set_keyring(LiveKeyring::load(&self.state(), &self.devices).unwrap());
    }

    /// The audit log without the lines that are still to be written.
    fn audit(&self) -> Vec<Value> {
        let log = std::fs::read_to_string(self.state().audit_log()).unwrap();
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn write_keyring(fake: &Fake, state_dir: &StateDir, kid: &str, state: KeyState) {
    let record = KeyRecord {
        kid: kid.parse().unwrap(),
        account: email(),
        algorithm: Algorithm::Rs256,
        device: "fake".parse().unwrap(),
        locator: locator("rsa"),
        public_key: fake.request(b"", Duration::ZERO).public_key.as_ref().clone(),
        state,
        created: 1,
        activated: Some(1),
        retired: None,
    };
    let mut written = keyring::Keyring::load(state_dir).unwrap();
    written.keys = vec![record];
    written.save(state_dir).unwrap();
}

/// Asks as a user; returns the JWT and how long it lives.
async fn ask(
    signer: Arc<Signer>,
    uid: u32,
    body: JwtBody,
    patience: Duration,
) -> Result<(String, Duration), SignError> {
    let caller = Caller::new(uid, uid, vec![]);
    let call = Call { caller: &caller, rpc: "Test", account: "", deadline: Instant::now() + patience };
    let jwt = signer.sign_jwt(call, body).await?.value;
    Ok((jwt.as_str().to_owned(), jwt.expires().duration_since(SystemTime::now()).unwrap()))
}

fn scopes(scopes: &[&str]) -> JwtBody {
    let target = Target::Scopes(scopes.iter().map(|scope| (*scope).to_owned()).collect());
    JwtBody::AccessToken { target, lifetime: None }
}

/// Who asked first floods the device: whoever shares one of his tokens waits as if he had asked for it alone.
#[tokio::test]
async fn a_token_that_a_flooding_user_asked_for_first_is_signed_in_the_turn_of_whoever_waits_for_it() {
    let stand = Stand::new().await;
    stand.fake.always("sign", "slow-10");
    let waiting = || stand.devices.values().next().unwrap().figures().waiting;
    let half_an_hour = |scope: String| {
        let lifetime = Some(Duration::from_secs(1800));
        JwtBody::AccessToken { target: Target::Scopes(vec![scope]), lifetime }
    };
    let ask =
        |uid, scope| tokio::spawn(ask(Arc::clone(&stand.signer), uid, half_an_hour(scope), Duration::from_secs(20)));
    let mut flood: Vec<_> = (0..200).map(|number| ask(1, number.to_string())).collect();
    let shared = flood.pop().unwrap();
    eventually("the flood waits", async || waiting() > 100).await;
    let before = stand.signatures();
    let (minted, _) = ask(2, "199".to_owned()).await.unwrap().unwrap();
    // Two were with the process, one more may have had its turn; the process is at the next by now.
    let services = stand.signatures() - before;
    assert!(services <= 5, "{services}");
    assert_eq!(shared.await.unwrap().unwrap().0, minted, "one signature for both");
    assert!(waiting() > 100, "the flood still waits");
    flood.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Not the cache's: what a caller asks beside the key's own algorithm, and the device refuses, says nothing about the key.
#[tokio::test]
async fn another_algorithm_that_the_device_refuses_leaves_the_key_in_use() {
    let stand = Stand::new().await;
    stand.fake.always("sign-RS512", "permanent");
    let caller = Caller::new(1, 1, vec![]);
    for (algorithm, signs) in [(Algorithm::Rs512, false), (Algorithm::Rs256, true)] {
        let deadline = Instant::now() + Duration::from_secs(20);
        let call = Call { caller: &caller, rpc: "Test", account: "", deadline };
        let signed = stand.signer.sign_bytes(call, Bytes::Message(b"hello"), Some(algorithm)).await;
        assert_eq!(signed.is_ok(), signs, "{algorithm}");
    }
}

#[tokio::test]
async fn sixty_four_who_ask_for_the_same_cost_one_signature() {
    let stand = Stand::new().await;
    stand.fake.once("sign", "slow-300");
    let calls: Vec<_> = (0..64)
        .map(|number| {
            let body = if number % 2 == 0 { scopes(&["a", "b"]) } else { scopes(&["b", "a"]) };
            tokio::spawn(ask(Arc::clone(&stand.signer), 1, body, Duration::from_secs(20)))
        })
        .collect();
    let mut jwts = Vec::new();
    for call in calls {
        jwts.push(call.await.unwrap().unwrap().0);
    }
    jwts.dedup();
    assert_eq!((jwts.len(), stand.signatures()), (1, 1));
    assert_eq!(stand.ask(1, scopes(&["a", "b"])).await.unwrap().0, jwts[0]);
    let id = |include_email| JwtBody::IdToken { audience: "https://b".to_owned(), include_email, lifetime: None };
    for body in [scopes(&["a"]), id(true), id(false)] {
        let before = stand.signatures();
        assert_eq!(stand.ask(1, body.clone()).await.unwrap().0, stand.ask(1, body).await.unwrap().0);
        assert_eq!(stand.signatures(), before + 1);
    }
    let claims = JwtBody::Claims(r#"{"aud":"https://b","exp":9999999999}"#.to_owned());
    assert!(stand.ask(1, claims).await.is_err());
    for _ in 0..2 {
        let before = stand.signatures();
        stand.ask(1, JwtBody::Claims(r#"{"aud":"https://b"}"#.to_owned())).await.unwrap();
        assert_eq!(stand.signatures(), before + 1, "a caller's own claims are never cached");
    }
    let log = stand.audit();
    let signed: Vec<_> = log.iter().filter(|line| line["cached"] == false && line["outcome"] == "OK").collect();
    assert_eq!((log.len(), signed.len()), (64 + 1 + 6 + 1 + 2, stand.signatures()));
    assert!(log.iter().all(|line| line["outcome"] != "OK" || (line["kid"] == "first" && line["rule"] == 1)));
    let digests: std::collections::BTreeSet<_> = log[..65].iter().map(|line| line["digest"].to_string()).collect();
    assert_eq!(digests.len(), 1, "each line tells which JWT it was");
}

#[tokio::test]
async fn a_caller_who_hangs_up_or_has_no_patience_stops_nobody_else() {
    let stand = Stand::new().await;
    stand.fake.once("sign", "slow-500");
    let first = tokio::spawn(ask(Arc::clone(&stand.signer), 1, scopes(&["s"]), Duration::from_secs(20)));
    while stand.signatures() == 0 {
        tokio::task::yield_now().await;
    }
    let patient = tokio::spawn(ask(Arc::clone(&stand.signer), 1, scopes(&["s"]), Duration::from_secs(20)));
    first.abort();
    let hasty = ask(Arc::clone(&stand.signer), 1, scopes(&["s"]), Duration::from_millis(20)).await;
    assert_eq!(hasty.unwrap_err(), SignError::Late);
    patient.await.unwrap().unwrap();
    assert_eq!(stand.signatures(), 1);
    // The one who has it signed has no patience either: the next one finds it all the same.
    stand.fake.once("sign", "slow-200");
    let hasty = ask(Arc::clone(&stand.signer), 1, scopes(&["t"]), Duration::from_millis(20)).await;
    assert_eq!(hasty.unwrap_err(), SignError::Late);
    stand.ask(1, scopes(&["t"])).await.unwrap();
    assert_eq!(stand.signatures(), 2);
    let log = stand.audit();
    for (outcome, cached, times) in [("OK", true, 2), ("CALLER_GONE", false, 2), ("DEADLINE_EXCEEDED", false, 3)] {
        let found = log.iter().filter(|line| line["outcome"] == outcome && line["cached"] == cached).count();
        assert_eq!(found, times, "{outcome}: {log:?}");
    }
    let signed = log.iter().filter(|line| line["cached"] == false && !line["kid"].is_null()).count();
    assert_eq!(signed, 2, "each signature is on record, by itself where its caller has gone");
}

#[tokio::test]
async fn every_hit_is_judged_by_the_rules_of_its_caller() {
    let stand = Stand::new().await;
    let (long, left) = stand.ask(1, scopes(&["s"])).await.unwrap();
    assert!(left > Duration::from_secs(3590));
    let (short, left) = stand.ask(2, scopes(&["s"])).await.unwrap();
    assert!(short != long && left <= Duration::from_secs(1800), "a rule's limit holds for what is cached");
    assert_eq!(stand.ask(3, scopes(&["s"])).await.unwrap_err(), SignError::Denied);
    assert_eq!(stand.audit().last().unwrap()["decision"], "deny");
    let half_an_hour = |lifetime| {
        let target = Target::Scopes(vec!["s".to_owned()]);
        JwtBody::AccessToken { target, lifetime: Some(Duration::from_secs(lifetime)) }
    };
    assert_eq!(stand.ask(2, half_an_hour(1801)).await.unwrap_err(), SignError::Denied);
    assert_eq!(stand.ask(1, half_an_hour(1800)).await.unwrap().0, short, "the same for whoever may have it");
    assert_eq!(stand.signatures(), 2);
    let less = || stand.ask(1, half_an_hour(600));
    assert!(less().await.unwrap().1 > Duration::from_secs(590) && less().await.unwrap().1 > Duration::from_secs(590));
    assert_eq!(stand.signatures(), 4, "what lives shortly is signed anew");
}

#[tokio::test]
async fn a_lifetime_that_is_a_little_too_long_is_refused_for_its_own_caller_alone() {
    let stand = Stand::new().await;
    let lasting = |millis| {
        let target = Target::Scopes(vec!["s".to_owned()]);
        JwtBody::AccessToken { target, lifetime: Some(Duration::from_millis(millis)) }
    };
    // Who asks first has the JWT signed for those behind.
    let (odd, hour) = tokio::join!(stand.ask(1, lasting(3_600_900)), stand.ask(1, lasting(3_600_000)));
    let refused = |asked| matches!(asked, Err(SignError::Invalid { field: "lifetime", .. }));
    assert!(refused(odd));
    assert!(hour.unwrap().1 > Duration::from_secs(3590));
    assert!(refused(stand.ask(1, lasting(3_600_900)).await), "nor is it answered by what is cached");
    let (half, _) = stand.ask(1, lasting(1_800_000)).await.unwrap();
    assert_eq!(stand.ask(2, lasting(1_800_000)).await.unwrap().0, half);
    assert_eq!(stand.ask(1, lasting(1_800_900)).await.unwrap().0, half, "a fraction of a second is dropped");
    assert_eq!(stand.signatures(), 2);
}

#[tokio::test]
async fn a_changed_policy_or_a_retired_key_drops_what_was_cached() {
    let stand = Stand::new().await;
    let (first, _) = stand.ask(1, scopes(&["s"])).await.unwrap();
    stand.signer.set_policy(policy());
    stand.set_keyring("first", KeyState::Active);
    assert_eq!(stand.ask(1, scopes(&["s"])).await.unwrap().0, first, "a reload that changes nothing");
    stand.set_keyring("second", KeyState::Active);
    assert_eq!(stand.signer.cache_figures().entries, 0);
    let (second, _) = stand.ask(1, scopes(&["s"])).await.unwrap();
    assert_ne!(second, first);
    let mut written = keyring::Keyring::load(&stand.state()).unwrap();
    let older = KeyRecord { kid: "older".parse().unwrap(), activated: Some(0), ..written.keys[0].clone() };
    let newer = KeyRecord { kid: "newer".parse().unwrap(), activated: Some(2), ..written.keys[0].clone() };
    written.keys.push(older);
    stand.take(&written);
    assert_eq!(stand.ask(1, scopes(&["s"])).await.unwrap().0, second, "an older active key changes nothing");
    written.keys.push(newer);
    stand.take(&written);
    assert_ne!(stand.ask(1, scopes(&["s"])).await.unwrap().0, second, "the newest active key signs from now on");
    stand.set_keyring("second", KeyState::Retired);
    assert!(matches!(stand.ask(1, scopes(&["s"])).await, Err(SignError::Operator { reason: "NO_ACTIVE_KEY", .. })));
    stand.set_keyring("second", KeyState::Active);
    stand.ask(1, scopes(&["s"])).await.unwrap();
    let account = Account { email: email(), project_id: None, unique_id: None, default: true };
    stand.signer.set_policy(Policy::new(vec![account], vec![]));
    assert_eq!(stand.ask(1, scopes(&["s"])).await.unwrap_err(), SignError::Denied);
    stand.signer.set_policy(Policy::new(vec![], vec![]));
    assert_eq!(stand.signer.cache_figures().entries, 0);
    assert_eq!(stand.signatures(), 4);
}

#[tokio::test]
async fn a_device_that_is_down_is_not_noticed_by_those_who_have_asked_before() {
    let stand = Stand::new().await;
    let (before, _) = stand.ask(1, scopes(&["s"])).await.unwrap();
    stand.fake.always("sign", "away");
    stand.fake.always("open", "away");
    assert!(stand.ask(1, scopes(&["another"])).await.is_err());
    assert_eq!(stand.ask(1, scopes(&["s"])).await.unwrap().0, before);
    // And renewals wait until it is back.
    let mut health = stand.devices.values().next().unwrap().health_changes();
    health.wait_for(|health| matches!(health, Health::Down(_))).await.unwrap();
    let later = SystemTime::now() + Duration::from_secs(46 * 60);
    let (lines, signatures) = (stand.audit().len(), stand.signatures());
    stand.signer.renew_due(later).await;
    assert_eq!((stand.audit().len(), stand.signatures()), (lines, signatures));
    stand.fake.mend();
    health.wait_for(|health| *health == Health::Ready).await.unwrap();
    // Among them is what it signed for nobody before it was let in.
    let signatures = stand.signatures();
    stand.signer.renew_due(later).await;
    assert_eq!(stand.signatures(), signatures + 1);
}

#[tokio::test]
async fn a_renewal_is_judged_and_on_record_and_nobody_waits_for_it() {
    let stand = Stand::new().await;
    let later = SystemTime::now() + Duration::from_secs(46 * 60);
    stand.ask(1, scopes(&["s"])).await.unwrap();
    stand.signer.renew_due(SystemTime::now()).await;
    assert_eq!(stand.signatures(), 1, "it is not due");
    stand.signer.renew_due(later).await;
    assert_eq!(stand.signatures(), 2);
    let log = stand.audit();
    let line = log.last().unwrap();
    assert_eq!((&line["rpc"], &line["uid"], &line["cached"]), (&"Renewal".into(), &1.into(), &false.into()));
    assert_eq!((&line["outcome"], &line["rule"], &line["kid"]), (&"OK".into(), &1.into(), &"first".into()));
    stand.signer.renew_due(later).await;
    assert_eq!(stand.signatures(), 2, "nobody has asked for it since");
    stand.ask(1, scopes(&["s"])).await.unwrap();
    assert_eq!((stand.signatures(), stand.signer.cache_figures().renewals), (2, 1));
    let account = Account { email: email(), project_id: None, unique_id: None, default: true };
    stand.signer.set_policy(Policy::new(vec![account], vec![]));
    stand.signer.renew_due(later).await;
    assert_eq!(stand.signatures(), 2);
    assert_eq!(stand.audit().last().unwrap()["decision"], "deny");
}

#[tokio::test]
async fn the_daemon_caches_and_says_so_in_its_audit_log() {
    let Some((_token, daemon)) = on_softhsm().await else { return };
    let mut client = daemon.client();
    let mut answers = Vec::new();
    for _ in 0..3 {
        let target = Some(mint::Target::Audience("https://pubsub.googleapis.com/".to_owned()));
        let request = proto::MintJwtAccessTokenRequest { account: String::new(), target, lifetime: None };
        answers.push(client.mint_jwt_access_token(request).await.unwrap().into_inner());
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "the same JWT with the same expiry");
    let log = daemon.audit();
    let cached: Vec<_> = log.iter().map(|line| line["cached"].as_bool().unwrap()).collect();
    assert_eq!(cached, [false, true, true]);
    assert!(log.iter().all(|line| line["kid"] == answers[0].key_id && line["digest"] == log[0]["digest"]));
}
