//! Key files between Signet, tpm2-openssl and tpm2-tools, in both directions, on swtpm.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use signet::device::tss2::Tss2Key;
use signet::device::{CreatedKey, DeviceError, NewKey, tpm};
use signet::key::{Algorithm, Digest, KeyLocator, PublicKey, Signature};

use crate::support::skip;
use crate::support::swtpm::{SwTpm, TpmSettings};

#[test]
fn tpm2_openssl_signs_with_our_files() {
    let Some(swtpm) = with_openssl() else { return };
    for (auth, algorithm) in [
        (None, Algorithm::Rs256),
        (Some("secret"), Algorithm::Rs256),
        (None, Algorithm::Es256),
        (Some("secret"), Algorithm::Es256),
    ] {
        let bench = Bench::new(&swtpm, auth);
        let key = bench.generate(algorithm);
        let file = bench.write("key.pem", key.tss2.unwrap());
        let message = bench.write("message", "a message");
        let signature = bench.path("signature");
        let mut arguments = vec!["dgst", "-sha256", "-sign", &file, "-out", &signature];
        if let Some(auth) = auth {
            fs::write(bench.path("auth"), auth).unwrap();
        }
        let source = format!("file:{}", bench.path("auth"));
        if auth.is_some() {
            arguments.extend(["-passin", &source]);
        }
        arguments.push(&message);
        openssl(&swtpm, &arguments);
        let signature = fs::read(&signature).unwrap();
        let signature = if algorithm == Algorithm::Es256 { fixed_width(&signature) } else { signature };
        verify(&key.public_key, algorithm, b"a message", signature);
    }
}

#[test]
fn files_of_tpm2_openssl_are_adopted() {
    let Some(swtpm) = with_openssl() else { return };
    for auth in [None, Some("secret")] {
        let bench = Bench::new(&swtpm, auth);
        for (arguments, algorithm) in [
            (["-algorithm", "RSA", "-pkeyopt", "bits:2048"], Algorithm::Rs256),
            (["-algorithm", "EC", "-pkeyopt", "group:P-256"], Algorithm::Es256),
        ] {
            let file = bench.path("key.pem");
            openssl(&swtpm, &[&["genpkey", "-out", &file], &arguments[..]].concat());
            let theirs = fs::read_to_string(&file).unwrap();
            // Its parent is the primary by the template, which is the same key as our persistent one.
            assert_eq!(Tss2Key::from_pem(&theirs).unwrap().parent, 0x4000_0001);
            for persistent in [false, true] {
                bench.adopts(&theirs, algorithm, persistent);
            }
        }
    }
}

#[test]
fn options_of_tpm2_openssl_that_matter_are_told() {
    let Some(swtpm) = with_openssl() else { return };
    let bench = Bench::new(&swtpm, Some("secret"));
    let made = |option: &str| {
        let file = bench.path("key.pem");
        openssl(&swtpm, &["genpkey", "-out", &file, "-algorithm", "RSA", "-pkeyopt", option]);
        fs::read_to_string(&file).unwrap()
    };
    bench.adopts(&made("user-auth:secret"), Algorithm::Rs256, false);
    let error = bench.refuses(&made("parent:0x81000001"));
    assert!(matches!(&error, DeviceError::Unsupported(text) if text.contains("without -pkeyopt parent:")), "{error}");
}

#[test]
fn tpm2_tools_sign_with_our_files() {
    let Some(swtpm) = SwTpm::start() else { return };
    let bench = Bench::new(&swtpm, Some("secret"));
    let key = bench.generate(Algorithm::Rs256);
    let halves = Tss2Key::from_pem(&key.tss2.unwrap()).unwrap();
    assert!(!halves.empty_auth);
    let public = bench.write("key.pub", sized(&halves.public));
    let private = bench.write("key.priv", sized(&halves.private));
    let (context, signature) = (bench.path("context"), bench.path("signature"));
    let message = bench.write("message", "a message");
    tool(&swtpm, "tpm2_load", &["-Q", "-C", "0x81000001", "-u", &public, "-r", &private, "-c", &context]);
    let sign = ["-Q", "-c", &context, "-p", "secret", "-g", "sha256", "-s", "rsassa", "-f", "plain"];
    tool(&swtpm, "tpm2_sign", &[&sign[..], &["-o", &signature, &message]].concat());
    verify(&key.public_key, Algorithm::Rs256, b"a message", fs::read(&signature).unwrap());
}

/// tpm2_encodeobject says of keys without an auth value that they have one.
#[test]
fn files_of_tpm2_tools_are_adopted() {
    let Some(swtpm) = SwTpm::start() else { return };
    for (ours, theirs) in [(None, None), (Some("secret"), None), (Some("secret"), Some("secret"))] {
        let bench = Bench::new(&swtpm, ours);
        for (kind, algorithm) in [
            ("rsa2048:null", Algorithm::Rs256),
            ("rsa2048:rsassa-sha256", Algorithm::Rs256),
            ("ecc:ecdsa", Algorithm::Es256),
        ] {
            let file = bench.encoded(kind, &format!("{GENERATED}|noda"), theirs);
            assert!(!Tss2Key::from_pem(&file).unwrap().empty_auth);
            bench.adopts(&file, algorithm, false);
        }
    }
}

/// Whether it has an auth value its file does not tell, and the TPM would count each wrong guess.
#[test]
fn a_guess_that_would_count_is_not_made() {
    let Some(swtpm) = SwTpm::start() else { return };
    for ours in [None, Some("secret")] {
        let bench = Bench::new(&swtpm, ours);
        for theirs in [None, Some("secret"), Some("another")] {
            let file = bench.encoded("rsa2048:null", GENERATED, theirs);
            let said_to_be_empty = Tss2Key { empty_auth: true, ..Tss2Key::from_pem(&file).unwrap() };
            for file in [file, said_to_be_empty.to_pem().unwrap()] {
                let error = bench.refuses(&file);
                assert!(matches!(&error, DeviceError::Unsupported(text) if text.contains("|noda")), "{error}");
            }
        }
    }
    let output = Command::new("tpm2_getcap").arg("properties-variable").env("TPM2TOOLS_TCTI", swtpm.tcti()).output();
    let output = String::from_utf8(output.unwrap().stdout).unwrap();
    assert!(output.contains("TPM2_PT_LOCKOUT_COUNTER: 0x0\n"), "{output}");
}

#[test]
fn what_can_not_sign_for_us_is_refused() {
    let Some(swtpm) = SwTpm::start() else { return };
    let bench = Bench::new(&swtpm, Some("secret"));
    let refused = |file: &str, why: &str| {
        let error = bench.refuses(file);
        assert!(matches!(&error, DeviceError::Unsupported(text) if text.contains(why)), "{why}: {error}");
        assert!(!bench.settings.device.latch_file.exists(), "{why}: the latch closed");
    };
    refused(&bench.encoded("rsa2048:rsassa-sha256:null", &format!("{GENERATED}|noda|restricted"), None), "restricted");
    let decrypts = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|decrypt|noda";
    refused(&bench.encoded("rsa2048:null", decrypts, None), "can't sign");
    refused(&bench.encoded("rsa2048:rsassa-sha1", &format!("{GENERATED}|noda"), None), "RS256");
    refused(&bench.encoded("rsa2048:null", &format!("{GENERATED}|noda"), Some("another")), "pin_file");
    refused("-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n", "TSS2");
}

#[test]
fn a_file_of_another_tpm_is_refused_by_its_name() {
    let (Some(here), Some(there)) = (SwTpm::start(), SwTpm::start()) else { return };
    let file = Bench::new(&there, None).generate(Algorithm::Rs256).tss2.unwrap();
    let bench = Bench::new(&here, None);
    let error = bench.refuses(&file);
    assert!(matches!(&error, DeviceError::Permanent(text) if text.contains("sealed to another TPM")), "{error}");
}

#[test]
fn a_file_under_another_parent_says_so() {
    let Some(swtpm) = SwTpm::start() else { return };
    let bench = Bench::new(&swtpm, None);
    let (context, parent) = (bench.path("parent"), "0x81000005");
    tool(&swtpm, "tpm2_createprimary", &["-Q", "-G", "rsa", "-c", &context]);
    tool(&swtpm, "tpm2_evictcontrol", &["-Q", "-c", &context, parent]);
    let (public, private, file) = (bench.path("their.pub"), bench.path("their.priv"), bench.path("their.pem"));
    let halves = ["-Q", "-C", parent, "-u", &public, "-r", &private];
    tool(&swtpm, "tpm2_flushcontext", &["-Q", "-t"]);
    tool(&swtpm, "tpm2_create", &[&halves[..], &["-G", "rsa2048:null", "-a", GENERATED]].concat());
    tool(&swtpm, "tpm2_flushcontext", &["-Q", "-t"]);
    tool(&swtpm, "tpm2_encodeobject", &[&halves[..], &["-o", &file]].concat());
    let file = fs::read_to_string(&file).unwrap();
    let error = bench.refuses(&file);
    assert!(matches!(&error, DeviceError::Permanent(text) if text.contains(parent)), "{error}");
}

/// A TPM with its settings, and a folder for the files of one test.
struct Bench<'a> {
    swtpm: &'a SwTpm,
    settings: TpmSettings,
}

impl<'a> Bench<'a> {
    fn new(swtpm: &'a SwTpm, auth: Option<&str>) -> Self {
        Self { swtpm, settings: TpmSettings::initialised(&swtpm.tcti(), auth) }
    }

    fn path(&self, name: &str) -> String {
        let path: PathBuf = self.settings.folder.path().join(name);
        path.into_os_string().into_string().unwrap()
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), contents).unwrap();
        self.path(name)
    }

    fn generate(&self, algorithm: Algorithm) -> CreatedKey {
        let mut provision = tpm::provision(&self.settings.device, &self.settings.tpm, false).unwrap();
        provision.generate(&NewKey { label: String::new(), algorithm, bits: 2048 }).unwrap()
    }

    /// A key file that the tools make under our parent.
    fn encoded(&self, kind: &str, attributes: &str, auth: Option<&str>) -> String {
        let (public, private, file) = (self.path("their.pub"), self.path("their.priv"), self.path("their.pem"));
        let parent = ["-Q", "-C", "0x81000001"];
        let halves = ["-u", &public, "-r", &private];
        let auth = auth.map_or(vec![], |auth| vec!["-p", auth]);
        let create = [&parent, &["-G", kind, "-a", attributes][..], &halves, &auth].concat();
        tool(self.swtpm, "tpm2_create", &create);
        // The tools leave what they load in the TPM.
        tool(self.swtpm, "tpm2_flushcontext", &["-Q", "-t"]);
        tool(self.swtpm, "tpm2_encodeobject", &[&parent, &halves[..], &["-o", &file]].concat());
        tool(self.swtpm, "tpm2_flushcontext", &["-Q", "-t"]);
        fs::read_to_string(&file).unwrap()
    }

    fn refuses(&self, file: &str) -> DeviceError {
        tpm::adopt(&self.settings.device, &self.settings.tpm, false, file).map(|(_tpm, key)| key).unwrap_err()
    }

    /// Takes a foreign key and signs with what is kept of it, on a device opened anew.
    fn adopts(&self, file: &str, algorithm: Algorithm, persistent: bool) {
        let TpmSettings { device, tpm, .. } = &self.settings;
        let (opened, key) = tpm::adopt(device, tpm, persistent, file).unwrap();
        drop(opened);
        assert_eq!(matches!(key.locator, KeyLocator::Handle(_)), persistent);
        for locator in [key.locator, KeyLocator::Tss2(key.tss2.unwrap())] {
            let mut opened = tpm::open(device, tpm).unwrap().remove(0);
            assert_eq!(opened.public_key(&locator).unwrap(), key.public_key);
            let digest = Digest::of(algorithm.hash(), b"adopted");
            let signature = opened.sign(&locator, algorithm, &digest).unwrap();
            key.public_key.verify(algorithm, &digest, &signature).unwrap();
        }
    }
}

fn with_openssl() -> Option<SwTpm> {
    let swtpm = SwTpm::start()?;
    // The provider opens its TPM as it is loaded.
    let mut list = Command::new("openssl");
    list.args(["list", "-providers", "-provider", "tpm2"]).env("TPM2OPENSSL_TCTI", swtpm.tcti());
    if !list.output().is_ok_and(|listed| listed.status.success()) {
        skip("OpenSSL's TPM provider", "tpm2-openssl");
        return None;
    }
    Some(swtpm)
}

fn openssl(swtpm: &SwTpm, arguments: &[&str]) {
    let (command, rest) = arguments.split_first().unwrap();
    let output = Command::new("openssl")
        .arg(command)
        .args(["-provider", "tpm2", "-provider", "base", "-propquery", "?provider=tpm2"])
        .args(rest)
        .env("TPM2OPENSSL_TCTI", swtpm.tcti())
        .output()
        .unwrap();
    assert!(output.status.success(), "openssl {command}: {}", String::from_utf8_lossy(&output.stderr));
}

fn tool(swtpm: &SwTpm, name: &str, arguments: &[&str]) {
    let output = Command::new(name).args(arguments).env("TPM2TOOLS_TCTI", swtpm.tcti()).output();
    let output = output.unwrap_or_else(|error| panic!("{name}: {error}: apt-get install tpm2-tools"));
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
}

fn verify(public_key: &PublicKey, algorithm: Algorithm, message: &[u8], signature: Vec<u8>) {
    let digest = Digest::of(algorithm.hash(), message);
    public_key.verify(algorithm, &digest, &Signature::from_bytes(signature)).unwrap();
}

/// The r and s of an ECDSA-Sig-Value (RFC 3279, 2.2.3), 32 bytes each.
fn fixed_width(der: &[u8]) -> Vec<u8> {
    use der::{Decode as _, Reader as _};
    let numbers = der::SliceReader::new(der)
        .unwrap()
        .sequence(|numbers| Ok::<_, der::Error>([der::asn1::Uint::decode(numbers)?, der::asn1::Uint::decode(numbers)?]))
        .unwrap();
    let padded =
        |number: &der::asn1::Uint| [vec![0; 32 - number.as_bytes().len()], number.as_bytes().to_vec()].concat();
    numbers.iter().flat_map(padded).collect()
}

fn sized(contents: &[u8]) -> Vec<u8> {
    [&u16::try_from(contents.len()).unwrap().to_be_bytes(), contents].concat()
}

const GENERATED: &str = "sign|fixedtpm|fixedparent|sensitivedataorigin|userwithauth";
