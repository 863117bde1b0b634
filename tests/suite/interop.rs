//! One key in a PKCS#11 token, in a TPM and in OpenSSL: PKCS#1 v1.5 leaves no choice, so all three must agree to the byte.

use std::fs;
use std::process::Command;

use signet::device::{self, Device, PrivateKey, tpm};
use signet::key::{Algorithm, Digest, KeyLocator};

use crate::support::keys;
use crate::support::softhsm::SoftHsm;
use crate::support::swtpm::{SwTpm, TpmSettings};

#[test]
fn softhsm_swtpm_and_openssl_sign_alike() {
    let Some(token) = SoftHsm::new() else { return };
    token.child(&[], || {
        let Some(swtpm) = SwTpm::start() else { return };
        let settings = TpmSettings::initialised(&swtpm.tcti(), Some("auth"));
        let folder = settings.folder.path();
        let (pem, file) = (folder.join("key.pem"), folder.join("message"));
        let key = keys::rsa();
        let PrivateKey::Rsa { pkcs8, .. } = &key else { panic!("an RSA key was made") };
        fs::write(&pem, der::pem::encode_string("PRIVATE KEY", der::pem::LineEnding::LF, pkcs8).unwrap()).unwrap();

        let mut in_token = device::provision(&token.config(), None).unwrap();
        let token_key = in_token.import(&key, "interop").unwrap();
        let mut in_tpm = tpm::provision(&settings.device, &settings.tpm, false).unwrap();
        let tpm_key = in_tpm.import(&key, "interop").unwrap();
        assert_eq!(token_key.public_key, tpm_key.public_key);

        let messages = messages();
        assert!(messages.len() >= 200 && messages.iter().any(Vec::is_empty));
        assert_eq!(messages.iter().map(Vec::len).max(), Some(1 << 20));
        for (number, message) in messages.iter().enumerate() {
            let (algorithm, hash) = ALGORITHMS[number % ALGORITHMS.len()];
            fs::write(&file, message).unwrap();
            let openssl = Command::new("openssl").args(["dgst", hash, "-sign"]).args([&pem, &file]).output().unwrap();
            assert!(openssl.status.success(), "{}", String::from_utf8_lossy(&openssl.stderr));
            let sign = |device: &mut dyn Device, key: &KeyLocator| {
                let digest = Digest::of(algorithm.hash(), message);
                device.sign(key, algorithm, &digest).unwrap().into_bytes()
            };
            let length = message.len();
            assert_eq!(
                sign(&mut *in_token, &token_key.locator),
                openssl.stdout,
                "SoftHSM, {algorithm}, {length} bytes"
            );
            assert_eq!(sign(&mut *in_tpm, &tpm_key.locator), openssl.stdout, "swtpm, {algorithm}, {length} bytes");
        }
    });
}

/// Every length around the hashes' blocks, then ever longer ones up to 1 MiB.
fn messages() -> Vec<Vec<u8>> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    let longer = (0..100).map(|step| 130 + step * step * 100);
    let lengths: Vec<usize> = (0..130).chain(longer).chain([1 << 20]).collect();
    lengths.into_iter().map(|length| (0..length).map(|_| next().to_le_bytes()[0]).collect()).collect()
}

/// RS256 above all: it is what Google's tokens are signed with.
const ALGORITHMS: [(Algorithm, &str); 4] = [
    (Algorithm::Rs256, "-sha256"),
    (Algorithm::Rs384, "-sha384"),
    (Algorithm::Rs256, "-sha256"),
    (Algorithm::Rs512, "-sha512"),
];
