//! A PKCS#11 token that misbehaves: what is refused before the PIN is risked, what a session survives, and how the daemon's
//! handle comes through with the real device process.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use signet::device::handle::{Handle, Health, Program, SignRequest, Turn};
use signet::device::{self, Device, DeviceConfig, DeviceError, NewKey, Pkcs11Config, TokenSelector, latch};
use signet::key::{Algorithm, Digest, Hash, KeyLocator, PublicKey, Signature};
use tokio::time::{Instant, timeout};

use crate::support::modules::Shim;
use crate::support::softhsm::{LABEL, SoftHsm};
use crate::support::{PATIENCE, write_private};

#[test]
fn the_final_pin_try_is_left_to_the_operator() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    token.child(&shim.environment(), || {
        shim.tell("final-try");
        let Err(DeviceError::PinRefused(why)) = device::open(&shim.config()) else { panic!("the last try was spent") };
        assert!(why.contains("allow_final_pin_try"), "{why}");
        let allowed = Pkcs11Config { allow_final_pin_try: true, ..shim.pkcs11() };
        assert!(device::open(&token.config_with(allowed)).is_ok());
    });
}

#[test]
fn a_pin_that_was_typed_wrong_at_a_keypad_is_asked_for_once() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    token.child(&shim.environment(), || {
        shim.tell("keypad");
        let config = token.config_with(Pkcs11Config { pin_file: None, ..shim.pkcs11() });
        for _restart in 0..3 {
            assert!(matches!(device::open(&config), Err(DeviceError::PinRefused(_))));
        }
        assert_eq!(shim.logins(), 1);
    });
}

#[test]
fn a_locked_pin_is_not_tried() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    token.child(&shim.environment(), || {
        shim.tell("locked");
        let Err(DeviceError::PinRefused(why)) = device::open(&shim.config()) else { panic!("it was tried") };
        assert!(why.contains("security officer"), "{why}");
        // It was not refused, so nothing is latched: once it is unlocked, it opens.
        shim.tell("");
        assert!(device::open(&shim.config()).is_ok());
    });
}

/// Modules have many ways of saying that a PIN is wrong, and not every token shows what it cost.
#[test]
fn a_wrong_pin_is_tried_once_whatever_the_module_calls_it() {
    for fault in ["login 6", "login 7", "login 30", "login 80000001", "silent 6", "silent 80000001"] {
        let Some(token) = SoftHsm::new() else { return };
        let shim = Shim::new(&token);
        token.write_pin("not the PIN");
        shim.tell(fault);
        token.child(&shim.environment(), || {
            for _ in 0..5 {
                assert!(device::open(&shim.config()).is_err());
            }
            let refused = device::open(&shim.config()).err().unwrap();
            assert!(matches!(refused, DeviceError::PinRefused(_)), "{refused}");
        });
        assert_eq!(shim.logins(), 1, "{fault}");
    }
}

#[tokio::test]
async fn a_wrong_pin_is_tried_once_where_the_module_crashes_over_it() {
    let Some(token) = SoftHsm::new() else { return };
    token.child(&[], || record(&generate(&token.config()), &token));
    let right = fs::read_to_string(token.pin_file()).unwrap();
    token.write_pin("not the PIN");
    let served = Served::telling(&token, "login crash");
    let mut health = served.handle.health_changes();
    let refused = |health: &Health| matches!(health, Health::Down(DeviceError::PinRefused(_)));
    timeout(PATIENCE, health.wait_for(refused)).await.unwrap().unwrap();
    assert_eq!(served.shim.logins(), 1);
    // The right PIN, and a crash: SoftHSM tells that nothing was spent, and service resumes by itself.
    token.write_pin(&right);
    latch::clear(&token.config().latch_file, None, true).unwrap();
    while served.shim.logins() < 3 {
        tokio::task::yield_now().await;
    }
    served.shim.tell("");
    served.resumes().await;
}

#[test]
fn a_pin_refused_for_one_use_of_a_key_is_tried_by_one_session_alone() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    shim.tell("context a0");
    token.child(&[], || always_authenticating(&token));
    token.child(&shim.environment(), || {
        let config = token.config_with(Pkcs11Config { sessions: 4, ..shim.pkcs11() });
        std::thread::scope(|scope| {
            for mut device in device::open(&config).unwrap() {
                scope.spawn(move || {
                    let refused = sign(&mut *device, Algorithm::Rs256);
                    assert!(matches!(refused, Err(DeviceError::PinRefused(_))), "{refused:?}");
                });
            }
        });
        // Once by its user, once for the key.
        assert_eq!(shim.logins(), 2);
    });
}

#[test]
fn no_token_is_initialised_where_no_slot_is_free_or_the_pin_is_too_short() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    let short = token.directory.join("short");
    write_private(&short, "123");
    token.child(&shim.environment(), || {
        let fresh = Pkcs11Config { token: TokenSelector::Label("fresh".to_owned()), ..shim.pkcs11() };
        let too_short = Pkcs11Config { pin_file: Some(short), ..fresh.clone() };
        for (fault, pkcs11, expected) in [("full", fresh, "no slot"), ("", too_short, "3 bytes")] {
            shim.tell(fault);
            let refused = device::init(&token.config_with(pkcs11), || panic!("nothing is begun"));
            let Err(DeviceError::Misconfigured(why)) = refused else { panic!("{refused:?}") };
            assert!(why.contains(expected), "{why}");
        }
    });
}

#[test]
fn a_token_of_one_session_signs() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    token.child(&shim.environment(), || {
        generate(&token.config());
        shim.tell("one-session");
        let config = token.config_with(Pkcs11Config { sessions: 4, ..shim.pkcs11() });
        {
            let mut devices = device::open(&config).unwrap();
            assert_eq!(devices.len(), 1);
            sign(&mut *devices[0], Algorithm::Rs256).unwrap();
        }
        // Provisioning gets by with one as well.
        assert_eq!(device::provision(&config, None).unwrap().list().unwrap().len(), 1);
    });
}

#[test]
fn a_session_is_discarded_after_a_fault_of_the_token() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    token.child(&shim.environment(), || {
        generate(&token.config());
        let mut devices = device::open(&shim.config()).unwrap();
        let [one, other] = devices.as_mut_slice() else { panic!("{} devices", devices.len()) };
        shim.tell("fail C_Sign 30");
        let failed = sign(&mut **one, Algorithm::Rs256);
        assert!(matches!(failed, Err(DeviceError::Away(_))), "{failed:?}");
        shim.tell("");
        assert_eq!(sign(&mut **one, Algorithm::Rs256), failed);
        sign(&mut **other, Algorithm::Rs256).unwrap();
    });
}

#[test]
fn a_session_survives_what_the_token_cannot_do() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    token.child(&shim.environment(), || {
        generate(&token.config());
        let mut device = device::open(&shim.config()).unwrap().pop().unwrap();
        shim.tell("fail C_Sign 71");
        let refused = sign(&mut *device, Algorithm::Ps256);
        assert!(matches!(refused, Err(DeviceError::Unsupported(_))), "{refused:?}");
        shim.tell("");
        sign(&mut *device, Algorithm::Rs256).unwrap();
    });
}

#[test]
fn sessions_sign_at_once() {
    let Some(token) = SoftHsm::new() else { return };
    token.child(&[], || {
        let public_key = generate(&token.config());
        let config = token.config_with(Pkcs11Config { sessions: 4, ..token.pkcs11() });
        std::thread::scope(|scope| {
            for mut device in device::open(&config).unwrap() {
                let public_key = &public_key;
                scope.spawn(move || {
                    for _ in 0..100 {
                        let signature = sign(&mut *device, Algorithm::Rs256).unwrap();
                        public_key.verify(Algorithm::Rs256, &digest(), &signature).unwrap();
                    }
                });
            }
        });
    });
}

#[tokio::test]
async fn a_flipped_bit_never_leaves() {
    let Some(token) = SoftHsm::new() else { return };
    token.child(&[], || record(&generate(&token.config()), &token));
    let served = Served::new(&token);
    served.shim.tell("flip");
    let outcome = served.sign(PATIENCE).await;
    assert!(matches!(outcome, Err(DeviceError::Integrity(_))), "{outcome:?}");
    served.shim.tell("");
    served.resumes().await;
}

/// "Cancelled", "write-protected", "failed its own test": passing or not, the session is worth nothing any more.
#[tokio::test]
async fn a_session_that_was_given_up_is_followed_by_a_fresh_process() {
    let Some(token) = SoftHsm::new() else { return };
    token.child(&[], || record(&generate(&token.config()), &token));
    let served = Served::new(&token);
    for fault in ["fail C_Sign 1", "fail C_Sign 50", "fail C_Sign e2", "fail C_Sign 1b6"] {
        served.resumes().await;
        served.shim.tell(fault);
        assert!(served.sign(PATIENCE).await.is_err(), "{fault}");
        served.shim.tell("");
        served.resumes().await;
    }
}

#[tokio::test]
async fn a_crashing_module_takes_its_process_only() {
    let Some(token) = SoftHsm::new() else { return };
    token.child(&[], || record(&generate(&token.config()), &token));
    let served = Served::new(&token);
    served.sign(PATIENCE).await.unwrap();
    served.shim.tell("crash C_Sign");
    let outcome = served.sign(PATIENCE).await;
    assert!(matches!(outcome, Err(DeviceError::Away(_))), "{outcome:?}");
    served.shim.tell("");
    served.resumes().await;
}

#[tokio::test]
async fn a_hanging_module_keeps_nobody_beyond_the_deadline() {
    let Some(token) = SoftHsm::new() else { return };
    token.child(&[], || record(&generate(&token.config()), &token));
    let served = Served::new(&token);
    served.sign(PATIENCE).await.unwrap();
    served.shim.tell("hang C_Sign");
    assert_eq!(served.sign(Duration::from_millis(100)).await, Err(DeviceError::Late));
    served.shim.tell("");
    served.resumes().await;
}

#[tokio::test]
async fn a_token_that_vanished_is_served_again_when_it_is_back() {
    let Some(token) = SoftHsm::new() else { return };
    token.child(&[], || record(&generate(&token.config()), &token));
    let served = Served::new(&token);
    served.sign(PATIENCE).await.unwrap();
    let (tokens, away) = (token.directory.join("tokens"), token.directory.join("away"));
    fs::rename(&tokens, &away).unwrap();
    let outcome = served.sign(PATIENCE).await;
    assert!(outcome.is_err(), "it signed without a token");
    fs::rename(&away, &tokens).unwrap();
    served.resumes().await;
}

/// The token with the shim before it and one key, behind the daemon's handle: its process is `signetd device-process`.
pub(crate) struct Served<'a> {
    pub(crate) shim: Shim<'a>,
    handle: Handle,
    public_key: Arc<PublicKey>,
}

impl<'a> Served<'a> {
    fn new(token: &'a SoftHsm) -> Self {
        Self::telling(token, "")
    }

    pub(crate) fn telling(token: &'a SoftHsm, fault: &str) -> Self {
        let shim = Shim::new(token);
        shim.tell(fault);
        let mut pkcs11 = shim.pkcs11();
        let environment = pkcs11.environment.as_mut().unwrap();
        for (name, value) in shim.environment() {
            environment.insert(name.to_owned(), value.to_str().unwrap().to_owned());
        }
        // Its process has to open within it, too, on a machine that is busy.
        let config = DeviceConfig { call_limit: Duration::from_secs(2), ..token.config_with(pkcs11) };
        let program = env!("CARGO_BIN_EXE_signetd").into();
        let handle = Handle::start(config, Program { program, arguments: vec!["device-process".into()] });
        let public_key = Arc::new(PublicKey::from_spki(&fs::read(token.directory.join("spki")).unwrap()).unwrap());
        Self { shim, handle, public_key }
    }

    pub(crate) async fn sign(&self, patience: Duration) -> Result<Signature, DeviceError> {
        let request = SignRequest {
            locator: Arc::new(locator()),
            public_key: Arc::clone(&self.public_key),
            algorithm: Algorithm::Rs256,
            digest: digest(),
            deadline: Instant::now() + patience,
            turn: Turn::Of(1000),
        };
        self.handle.sign(request).await
    }

    /// Signs again, without anybody doing anything.
    pub(crate) async fn resumes(&self) {
        let mut health = self.handle.health_changes();
        let until = Instant::now() + PATIENCE;
        while let Err(error) = self.sign(PATIENCE).await {
            assert!(Instant::now() < until, "{error}");
            timeout(PATIENCE, health.wait_for(|health| *health == Health::Ready)).await.unwrap().unwrap();
        }
    }
}

pub(crate) fn generate(config: &DeviceConfig) -> PublicKey {
    let key = NewKey { label: "key".to_owned(), algorithm: Algorithm::Rs256, bits: 2048 };
    device::provision(config, None).unwrap().generate(&key).unwrap().public_key
}

/// Makes a key with CKA_ALWAYS_AUTHENTICATE, which Signet itself never does.
fn always_authenticating(token: &SoftHsm) {
    let module = token.module.to_str().unwrap();
    let pin = fs::read_to_string(token.pin_file()).unwrap();
    let key = ["--keypairgen", "--key-type", "rsa:2048", "--label", "key", "--id", "01", "--always-auth"];
    let made = Command::new("pkcs11-tool")
        .args(["--module", module, "--token-label", LABEL, "--login", "--pin", &pin])
        .args(key)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// Tells the parent of a child what was generated.
pub(crate) fn record(public_key: &PublicKey, token: &SoftHsm) {
    fs::write(token.directory.join("spki"), public_key.spki()).unwrap();
}

pub(crate) fn sign(device: &mut (impl Device + ?Sized), algorithm: Algorithm) -> Result<Signature, DeviceError> {
    device.sign(&locator(), algorithm, &digest())
}

fn locator() -> KeyLocator {
    KeyLocator::Pkcs11("pkcs11:object=key;type=private".to_owned())
}

fn digest() -> Digest {
    Digest::of(Hash::Sha256, b"message")
}
