//! What a wire tapped between the machine and its TPM shows: all of a device's life is recorded by the `pcap` TCTI, and
//! searched for secrets.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use signet::device::{NewKey, PrivateKey, TpmSession, tpm};
use signet::key::{Algorithm, Digest};

use crate::support::swtpm::{SwTpm, TpmSettings};
use crate::support::{keys, skip, write_private};

#[test]
fn nothing_secret_crosses_a_protected_bus() {
    let Some(tap) = Tap::new() else { return };
    let bus = tap.record_signet(TpmSession::Protected);
    assert!(bus.holds(&tap.modulus()[..64]), "the import was not recorded");
    for secret in [AUTH, OWNER] {
        assert!(!bus.holds(secret.as_bytes()), "{secret} is on the bus");
    }
    assert_eq!(bus.runs_of(&tap.secrets()), 0, "bytes of the private key are on the bus");
}

/// The control: without it, the search above could be one that finds nothing ever.
#[test]
fn the_same_search_finds_secrets_on_an_unprotected_bus() {
    let Some(tap) = Tap::new() else { return };
    let bus = tap.record_signet(TpmSession::Plain);
    assert!(bus.holds(AUTH.as_bytes()), "a password session hides nothing");
    // Provisioning is protected whatever the configuration says.
    assert!(!bus.holds(OWNER.as_bytes()));
    assert_eq!(bus.runs_of(&tap.secrets()), 0);

    let bus = tap.record_loadexternal();
    assert!(bus.runs_of(&tap.secrets()) > 0, "tpm2_loadexternal hides nothing");
}

/// Everything that Signet does with a TPM. It runs in a process of its own: the recorder is told by the environment.
#[test]
#[ignore = "a part of the tests above"]
fn recorded_life() {
    let Ok(tcti) = std::env::var(TCTI) else { return };
    let mut settings = TpmSettings::new(&tcti, Some(AUTH));
    let owner = settings.folder.path().join("owner");
    write_private(&owner, OWNER);
    settings.tpm.owner_auth_file = Some(owner);
    settings.tpm.parent = Some(tpm::init(&settings.tpm).unwrap());
    if std::env::var_os(PLAIN).is_some() {
        settings.tpm.session = TpmSession::Plain;
    }
    let mut provision = tpm::provision(&settings.device, &settings.tpm, true).unwrap();
    let key = keys::rsa_from_pkcs8(&fs::read(std::env::var_os(KEY).unwrap()).unwrap());
    let generated = NewKey { label: String::new(), algorithm: Algorithm::Es256, bits: 0 };
    let created = [provision.import(&key, "imported").unwrap(), provision.generate(&generated).unwrap()];
    drop(provision);
    let mut device = tpm::open(&settings.device, &settings.tpm).unwrap().remove(0);
    for key in &created {
        let algorithm = key.public_key.key_type().default_algorithm();
        let digest = Digest::of(algorithm.hash(), b"recorded");
        let signature = device.sign(&key.locator, algorithm, &digest).unwrap();
        key.public_key.verify(algorithm, &digest, &signature).unwrap();
    }
}

/// A TPM whose owner has a secret, and a key that exists outside.
struct Tap {
    swtpm: SwTpm,
    folder: tempfile::TempDir,
    key: PrivateKey,
    libraries: Libraries,
}

struct Libraries {
    pcap: PathBuf,
    swtpm: PathBuf,
}

/// What was recorded.
struct Recording(Vec<u8>);

impl Tap {
    fn new() -> Option<Self> {
        let swtpm = SwTpm::start()?;
        let Some(libraries) = Libraries::find() else {
            skip("the pcap TCTI", "libtss2-dev");
            return None;
        };
        let owner = Command::new("tpm2_changeauth")
            .args(["-Q", "-c", "owner", OWNER])
            .env("TPM2TOOLS_TCTI", swtpm.tcti())
            .status();
        assert!(owner.unwrap().success());
        let folder = tempfile::tempdir().unwrap();
        Some(Self { swtpm, folder, key: keys::rsa(), libraries })
    }

    fn modulus(&self) -> &[u8] {
        let PrivateKey::Rsa { modulus, .. } = &self.key else { panic!("an RSA key was made") };
        modulus
    }

    fn secrets(&self) -> [&[u8]; 3] {
        let PrivateKey::Rsa { prime1, prime2, private_exponent, .. } = &self.key else { panic!("an RSA key was made") };
        [prime1, prime2, private_exponent]
    }

    fn pkcs8(&self) -> &[u8] {
        let PrivateKey::Rsa { pkcs8, .. } = &self.key else { panic!("an RSA key was made") };
        pkcs8
    }

    /// The TSS crate opens four kinds of TCTI, and pcap is none of them. So for this process the library called "device" is
    /// the recorder, and the device's path is the library to record, with its configuration.
    fn record_signet(&self, session: TpmSession) -> Recording {
        let (recording, key) = (self.folder.path().join("signet.pcap"), self.folder.path().join("key"));
        let library = self.folder.path().join("libtss2-tcti-device.so.0");
        symlink(&self.libraries.pcap, &library).unwrap();
        fs::write(&key, self.pkcs8()).unwrap();
        let behind = self.swtpm.tcti();
        let tcti = format!("device:{}:{}", self.libraries.swtpm.display(), behind.split_once(':').unwrap().1);
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", "bus::recorded_life", "--ignored", "--nocapture"])
            .env("LD_LIBRARY_PATH", self.folder.path())
            .env("TCTI_PCAP_FILE", &recording)
            .env(TCTI, tcti)
            .env(KEY, &key);
        if session == TpmSession::Plain {
            child.env(PLAIN, "1");
        }
        let output = child.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
        Recording::read(&recording)
    }

    fn record_loadexternal(&self) -> Recording {
        let (recording, key) = (self.folder.path().join("tools.pcap"), self.folder.path().join("key.pem"));
        let pem = der::pem::encode_string("PRIVATE KEY", der::pem::LineEnding::LF, self.pkcs8()).unwrap();
        fs::write(&key, pem).unwrap();
        let context = self.folder.path().join("context");
        let output = Command::new("tpm2_loadexternal")
            .args(["-Q", "-C", "n", "-G", "rsa", "-r"])
            .args([&key, Path::new("-c"), &context])
            .env("TPM2TOOLS_TCTI", format!("pcap:{}", self.swtpm.tcti()))
            .env("TCTI_PCAP_FILE", &recording)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Recording::read(&recording)
    }
}

impl Libraries {
    fn find() -> Option<Self> {
        let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
        let named = |folder: &str, kind| Path::new(folder).join(format!("libtss2-tcti-{kind}.so.0"));
        folders
            .into_iter()
            .map(|folder| Self { pcap: named(folder, "pcap"), swtpm: named(folder, "swtpm") })
            .find(|libraries| libraries.pcap.exists() && libraries.swtpm.exists())
    }
}

impl Recording {
    fn read(path: &Path) -> Self {
        Self(fs::read(path).unwrap())
    }

    fn holds(&self, bytes: &[u8]) -> bool {
        self.0.windows(bytes.len()).any(|window| window == bytes)
    }

    /// How many places hold eight bytes in a row of a secret.
    fn runs_of(&self, secrets: &[&[u8]]) -> usize {
        let runs: HashSet<_> = secrets.iter().flat_map(|secret| secret.windows(8)).collect();
        self.0.windows(8).filter(|window| runs.contains(window)).count()
    }
}

const AUTH: &str = "the keys' own secret";
const OWNER: &str = "the owner's own secret";

const TCTI: &str = "SIGNET_TEST_BUS_TCTI";
const KEY: &str = "SIGNET_TEST_BUS_KEY";
const PLAIN: &str = "SIGNET_TEST_BUS_PLAIN";
