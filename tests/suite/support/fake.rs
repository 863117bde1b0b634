//! A device in software, and its process: the suite's own binary, started again for one ignored test.
//!
//! Everything about it stands in a folder: its keys, the PIN that it takes, a line for each call, and what it is to do
//! wrong. An act is a file `OPERATION.ACT.NUMBER`, done once and in order of the numbers, or `OPERATION.ACT.always`.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_lc_rs::digest as sha;
use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rsa::{KeyPair as RsaKey, KeySize};
use aws_lc_rs::signature::{self as sign, EcdsaKeyPair, KeyPair as _};
use nix::sys::socket::{MsgFlags, send};
use signet::device::handle::{Handle, Program, SignRequest, Turn};
use signet::device::latch::Tries;
use signet::device::{
    Device, DeviceConfig, DeviceError, DeviceKind, Opened, Pin, Pkcs11Config, TokenSelector, latch, process,
};
use signet::key::{Algorithm, Digest, KeyLocator, PublicKey, Signature};
use tokio::time::Instant;

use super::write_private;

/// The folder of a fake device, and what a test wants to know of it.
pub(crate) struct Fake {
    folder: tempfile::TempDir,
    acts: AtomicUsize,
    rsa: Arc<PublicKey>,
    ec: Arc<PublicKey>,
}

impl Fake {
    /// A device with the keys `rsa`, `other` and `ec`, that takes the PIN in its PIN file.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        fs::create_dir(path.join("acts")).unwrap();
        write_private(&path.join("pin"), "right");
        fs::write(path.join("right-pin"), "right").unwrap();
        for name in ["rsa", "other"] {
            let key = RsaKey::generate(KeySize::Rsa2048).unwrap();
            fs::write(path.join(name), key.as_der().unwrap().as_ref()).unwrap();
        }
        let ec = EcdsaKeyPair::generate(&sign::ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        fs::write(path.join("ec"), ec.to_pkcs8v1().unwrap().as_ref()).unwrap();
        let mut device = FakeDevice { folder: path.to_owned() };
        let mut public = |name| Arc::new(device.public_key(&locator(name)).unwrap());
        let (rsa, ec) = (public("rsa"), public("ec"));
        fs::remove_file(path.join("calls")).unwrap();
        Self { folder, acts: AtomicUsize::new(0), rsa, ec }
    }

    /// One worker, a queue of 1,000, a call limit of a minute: so long that a test in which it matters sets another.
    pub(crate) fn config(&self) -> DeviceConfig {
        DeviceConfig {
            name: "fake".parse().unwrap(),
            kind: DeviceKind::Pkcs11(Pkcs11Config {
                module: self.folder.path().to_owned(),
                token: TokenSelector::Label("fake".to_owned()),
                pin_file: Some(self.folder.path().join("pin")),
                sessions: 1,
                environment: None,
                files: None,
                allow_final_pin_try: false,
            }),
            call_limit: Duration::from_secs(60),
            queue: 1000,
            latch_file: self.latch_file(),
            sandbox: false,
        }
    }

    /// [`Self::config`] with so many workers.
    pub(crate) fn config_with_workers(&self, workers: usize) -> DeviceConfig {
        let mut config = self.config();
        if let DeviceKind::Pkcs11(pkcs11) = &mut config.kind {
            pkcs11.sessions = workers;
        }
        config
    }

    /// The device itself, in this process.
    pub(crate) fn device(&self) -> FakeDevice {
        FakeDevice { folder: self.folder.path().to_owned() }
    }

    /// Starts a handle with [`Self::config`].
    pub(crate) fn start(&self) -> Handle {
        Handle::start(self.config(), program())
    }

    /// Has the device do this wrong at its next such operation (`open`, `login`, `refusal`, `sign`, `sign-RS512`, `public-key`).
    pub(crate) fn once(&self, operation: &str, act: &str) {
        let number = self.acts.fetch_add(1, Ordering::Relaxed);
        self.write(&format!("acts/{operation}.{act}.{number:04}"), "");
    }

    /// Has the device do this wrong until [`Self::mend`].
    pub(crate) fn always(&self, operation: &str, act: &str) {
        self.write(&format!("acts/{operation}.{act}.always"), "");
    }

    /// Has the device do everything right again.
    pub(crate) fn mend(&self) {
        for act in fs::read_dir(self.folder.path().join("acts")).unwrap() {
            fs::remove_file(act.unwrap().path()).unwrap();
        }
    }

    /// How often this was done: `open`, `login`, `sign`, `public-key`.
    pub(crate) fn calls(&self, operation: &str) -> usize {
        let calls = fs::read_to_string(self.folder.path().join("calls")).unwrap_or_default();
        calls.lines().filter(|call| *call == operation).count()
    }

    /// The process id of the device process that opened the device last.
    pub(crate) fn pid(&self) -> i32 {
        fs::read_to_string(self.folder.path().join("pid")).unwrap().parse().unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        write_private(&self.path(name), text);
    }

    pub(crate) fn latch_file(&self) -> PathBuf {
        self.path("latches/fake.json")
    }

    pub(crate) fn pin(&self) -> Pin {
        Pin::read(&self.path("pin")).unwrap()
    }

    /// A request for a signature of this message with the RSA key, for which the caller waits so long.
    pub(crate) fn request(&self, message: &[u8], patience: Duration) -> SignRequest {
        let algorithm = Algorithm::Rs256;
        SignRequest {
            locator: Arc::new(locator("rsa")),
            public_key: Arc::clone(&self.rsa),
            algorithm,
            digest: Digest::of(algorithm.hash(), message),
            deadline: Instant::now() + patience,
            turn: Turn::Of(1000),
        }
    }

    /// The same with the EC key.
    pub(crate) fn ec_request(&self, message: &[u8], patience: Duration) -> SignRequest {
        let algorithm = Algorithm::Es256;
        let rest = self.request(message, patience);
        SignRequest { locator: Arc::new(locator("ec")), public_key: Arc::clone(&self.ec), algorithm, ..rest }
    }
}

/// Where the fake has the key of this name.
pub(crate) fn locator(name: &str) -> KeyLocator {
    KeyLocator::Pkcs11(format!("pkcs11:object={name}"))
}

/// Starts this binary again, for [`device_process`] alone.
pub(crate) fn program() -> Program {
    let arguments = ["--exact", "support::fake::device_process", "--ignored", "--nocapture"];
    Program { program: std::env::current_exe().unwrap(), arguments: arguments.map(Into::into).to_vec() }
}

#[test]
#[ignore = "the fake's device process: started by the tests that need it"]
fn device_process() {
    serve();
}

/// Is the device process that was started by [`program`].
pub(crate) fn serve() -> ! {
    // It stands at standard input, but not for long.
    PIPE.set(std::io::stdin().as_fd().try_clone_to_owned().unwrap()).unwrap();
    std::process::exit(process::run(None, open).into());
}

/// What the device process serves.
fn open(config: &DeviceConfig) -> Result<Opened, DeviceError> {
    let DeviceKind::Pkcs11(Pkcs11Config { module: folder, sessions, pin_file, .. }) = &config.kind else {
        return Err(DeviceError::Misconfigured("the fake is configured as a PKCS#11 token".to_owned()));
    };
    let device = FakeDevice { folder: folder.clone() };
    fs::write(folder.join("pid"), std::process::id().to_string()).unwrap();
    device.act("open")?;
    let pin = pin_file.as_deref().map(Pin::read).transpose()?;
    let tries = || match fs::read_to_string(folder.join("tries")).as_deref() {
        Ok("missing") => Tries::Missing,
        Ok("untold") => Tries::Untold,
        _ => Tries::Whole,
    };
    let attempt = latch::begin(&config.latch_file, pin.as_ref(), || Ok(tries()))?;
    device.act("login")?;
    if pin.as_ref().map(Pin::expose) != fs::read(folder.join("right-pin")).ok().as_deref() {
        if tries() == Tries::Whole {
            fs::write(folder.join("tries"), "missing").unwrap();
        }
        if device.act("refusal")? {
            // Nobody can put the latch in its place.
            fs::create_dir(config.latch_file.with_file_name(format!(".fake.json.{}", std::process::id()))).unwrap();
        }
        return Err(attempt.refused(pin.as_ref(), "the fake does not take it", tries()));
    }
    if tries() == Tries::Missing {
        fs::remove_file(folder.join("tries")).unwrap();
    }
    attempt.settled();
    Ok((0..*sessions).map(|_| Box::new(FakeDevice { folder: folder.clone() }) as Box<dyn Device + Send>).collect())
}

pub(crate) struct FakeDevice {
    folder: PathBuf,
}

impl Device for FakeDevice {
    fn public_key(&mut self, key: &KeyLocator) -> Result<PublicKey, DeviceError> {
        self.act("public-key")?;
        let spki = match self.key(key)? {
            Key::Rsa(key) => key.public_key().as_der().unwrap().as_ref().to_vec(),
            Key::Ec(key) => key.public_key().as_der().unwrap().as_ref().to_vec(),
        };
        PublicKey::from_spki(&spki).map_err(|invalid| DeviceError::Unsupported(invalid.to_string()))
    }

    fn sign(&mut self, key: &KeyLocator, algorithm: Algorithm, digest: &Digest) -> Result<Signature, DeviceError> {
        let wrong = self.act("sign")? | self.act(&format!("sign-{algorithm}"))?;
        let hash = match algorithm {
            Algorithm::Rs256 | Algorithm::Ps256 | Algorithm::Es256 => &sha::SHA256,
            Algorithm::Rs384 => &sha::SHA384,
            Algorithm::Rs512 => &sha::SHA512,
        };
        let digest = sha::Digest::import_less_safe(digest.as_bytes(), hash)
            .map_err(|_unspecified| DeviceError::Unsupported("a digest of another hash".to_owned()))?;
        let mut signature = match (self.key(key)?, algorithm) {
            (Key::Rsa(key), Algorithm::Rs256) => rsa(&key, &sign::RSA_PKCS1_SHA256, &digest),
            (Key::Rsa(key), Algorithm::Rs384) => rsa(&key, &sign::RSA_PKCS1_SHA384, &digest),
            (Key::Rsa(key), Algorithm::Rs512) => rsa(&key, &sign::RSA_PKCS1_SHA512, &digest),
            (Key::Rsa(key), Algorithm::Ps256) => rsa(&key, &sign::RSA_PSS_SHA256, &digest),
            (Key::Ec(key), Algorithm::Es256) => key.sign_digest(&digest).unwrap().as_ref().to_vec(),
            _ => return Err(DeviceError::Unsupported(format!("{algorithm} with a key of another kind"))),
        };
        if wrong {
            signature[17] ^= 1;
        }
        Ok(Signature::from_bytes(signature))
    }
}

enum Key {
    Rsa(RsaKey),
    Ec(EcdsaKeyPair),
}

fn rsa(key: &RsaKey, padding: &'static dyn sign::RsaEncoding, digest: &sha::Digest) -> Vec<u8> {
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign_digest(padding, digest, &mut signature).unwrap();
    signature
}

impl FakeDevice {
    fn key(&self, key: &KeyLocator) -> Result<Key, DeviceError> {
        let missing = || DeviceError::Permanent("the fake has no such key".to_owned());
        let KeyLocator::Pkcs11(uri) = key else { return Err(missing()) };
        let name = uri.strip_prefix("pkcs11:object=").ok_or_else(missing)?;
        let pkcs8 = fs::read(self.folder.join(name)).map_err(|_error| missing())?;
        Ok(match EcdsaKeyPair::from_pkcs8(&sign::ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8) {
            Ok(key) => Key::Ec(key),
            Err(_rejected) => Key::Rsa(RsaKey::from_pkcs8(&pkcs8).unwrap()),
        })
    }

    /// Counts a call, then does wrong what it was told to. True where the answer shall be a wrong one.
    fn act(&self, operation: &str) -> Result<bool, DeviceError> {
        let Ok(mut calls) = File::options().append(true).create(true).open(self.folder.join("calls")) else {
            // The test has ended, and its folder with it.
            std::process::exit(0);
        };
        calls.write_all(format!("{operation}\n").as_bytes()).unwrap();
        let Some(act) = next_act(&self.folder.join("acts"), operation) else { return Ok(false) };
        let text = || format!("scripted: {operation}");
        match act.as_str() {
            "away" => return Err(DeviceError::Away(text())),
            "transient" => return Err(DeviceError::Transient(text())),
            "permanent" => return Err(DeviceError::Permanent(text())),
            "misconfigured" => return Err(DeviceError::Misconfigured(text())),
            "integrity" => return Err(DeviceError::Integrity(text())),
            "pin-refused" => return Err(DeviceError::PinRefused(text())),
            "wrong" => return Ok(true),
            "exit" => std::process::exit(3),
            "panic" => {
                std::panic::set_hook(Box::new(|_info| ()));
                panic!("scripted");
            }
            "hang" => loop {
                std::thread::park();
            },
            "garbage" => say(&[0xff; 5]),
            "huge" => say(&[0; 100_000]),
            // No answers.
            "nothing" => say(&[2, 0]),
            // The answer `Late` to a job of the id 999.
            "unknown" => say(&[2, 0xe7, 0x07, 1, 8]),
            slow => std::thread::sleep(Duration::from_millis(slow.strip_prefix("slow-").unwrap().parse().unwrap())),
        }
        Ok(false)
    }
}

/// The act of the lowest number, taken away; else one that is always there.
fn next_act(folder: &Path, operation: &str) -> Option<String> {
    // Without its folder the test has ended.
    let mut acts: Vec<_> = fs::read_dir(folder)
        .unwrap_or_else(|_gone| std::process::exit(0))
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.split('.').next() == Some(operation))
        .collect();
    acts.sort_by_key(|name| name.rsplit('.').next().unwrap().to_owned());
    let mine = |name: &&String| name.ends_with(".always") || fs::remove_file(folder.join(name)).is_ok();
    acts.iter().find(mine).map(|name| name.split('.').nth(1).unwrap().to_owned())
}

static PIPE: std::sync::OnceLock<OwnedFd> = std::sync::OnceLock::new();

/// Writes to the pipe what a sound device process never would.
fn say(bytes: &[u8]) {
    send(PIPE.get().unwrap().as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL).unwrap();
}
