//! Reads a private key from a file that was made elsewhere: what it is, whether it is sound, and whose.
//!
//! Nothing in a key file is believed but the key, its id and its account's email; no address in it is ever followed.

use std::fmt;
use std::io::{self, IsTerminal as _, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use aws_lc_rs::{agreement, signature};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use der::asn1::{AnyRef, BitStringRef, OctetStringRef};
use der::{Decode as _, Encode as _};
use pkcs8::{AlgorithmIdentifierRef, ObjectIdentifier, PrivateKeyInfoRef};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::failure::Failure;
use super::rsa;
use crate::access::AccountEmail;
use crate::device::PrivateKey;
use crate::file;
use crate::key::{EC_PUBLIC_KEY, KeyId, PRIME256V1, RSA_ENCRYPTION};

/// A key on its way in.
pub(crate) struct Imported {
    pub(crate) material: Material,
    /// The id that Google knows it by, where the file tells.
    pub(crate) kid: Option<KeyId>,
    /// Whose it is, where the file tells.
    pub(crate) account: Option<AccountEmail>,
}

/// The key itself.
pub(crate) enum Material {
    Private(PrivateKey),
    /// A TSS2 PRIVATE KEY, as PEM text: it is encrypted for one TPM.
    Tss2(String),
}

/// Reads a key file, or standard input where the path is `-`.
pub(crate) fn read(path: &Path) -> Result<Imported, Failure> {
    let bytes = if path == Path::new("-") { read_stdin()? } else { read_file(path)? };
    parse(&bytes).map_err(|failure| {
        failure.context(path.display()).or_hint("the file of a private key, whole and as it was made")
    })
}

fn read_stdin() -> Result<Zeroizing<Vec<u8>>, Failure> {
    let stdin = io::stdin().lock();
    if stdin.is_terminal() {
        return Err(Failure::usage(
            "a key is not taken from a terminal: it would stay on the screen and in its history",
        )
        .hint("the name of a file of mode 0600; or a pipe from the secret store into signetctl key import -"));
    }
    bounded(stdin).map_err(|failure| failure.context("standard input").or_hint("a key at the other end of the pipe"))
}

fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let refused = |what: &dyn fmt::Display| Failure::usage(format!("{}: {what}", path.display()));
    let file = file::open(path).map_err(|error| {
        refused(&error).hint(match error.kind() {
            io::ErrorKind::InvalidInput => {
                format!("the file itself, \"$(readlink -f {})\"; or - for standard input", path.display())
            }
            _ => "the path of a file that you may read".to_owned(),
        })
    })?;
    let mode = file.metadata().map_err(|error| refused(&error))?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(refused(&format!("others may read or write it (mode {mode:04o}), so the key may have leaked"))
            .hint(format!("chmod 600 {}; and think of a new key", path.display())));
    }
    bounded(file).map_err(|failure| failure.context(path.display()).or_hint("the file of a private key"))
}

fn bounded(source: impl io::Read) -> Result<Zeroizing<Vec<u8>>, Failure> {
    // Room for all of it at once: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LIMIT + 1));
    source.take(LIMIT as u64 + 1).read_to_end(&mut bytes).map_err(Failure::usage)?;
    match bytes.len() {
        0 => Err(Failure::usage("it is empty")),
        1..=LIMIT => Ok(bytes),
        _ => Err(Failure::usage("it is over 64 KiB: no key is that long")),
    }
}

pub(super) fn parse(bytes: &[u8]) -> Result<Imported, Failure> {
    let binary = || {
        Failure::usage("it is neither a JSON key nor a PEM file")
            .hint("for a DER file: openssl pkey -inform DER -in FILE -out key.pem")
    };
    let text = std::str::from_utf8(bytes).map_err(|_not_utf8| binary())?;
    let text = text.trim_start_matches('\u{feff}').trim();
    if text.starts_with('{') {
        return service_account(text);
    }
    if !text.contains(BEGIN) {
        return Err(binary());
    }
    Ok(Imported { material: pem(text)?, kid: None, account: None })
}

fn service_account(json: &str) -> Result<Imported, Failure> {
    #[derive(Deserialize)]
    struct Kind {
        r#type: Option<String>,
    }
    #[derive(Deserialize)]
    struct ServiceAccount {
        private_key_id: String,
        private_key: String,
        client_email: String,
    }
    // The library's own message may quote what it found, which may be the key.
    let malformed = |error: serde_json::Error| {
        Failure::usage(format!("it is no whole service-account key: line {}, column {}", error.line(), error.column()))
            .hint(
                "download it again, or take it from the backup; it needs private_key_id, private_key and client_email",
            )
    };
    let kind: Kind = serde_json::from_str(json).map_err(malformed)?;
    match kind.r#type.as_deref() {
        Some("service_account") => {}
        Some(other) => {
            let other: String = other.chars().take(40).collect();
            return Err(Failure::usage(format!(
                "its type is {other:?}, not \"service_account\": it holds no key to import"
            ))
            .hint("the JSON key of a service account (gcloud iam service-accounts keys create)"));
        }
        None => return Err(Failure::usage("it has no type: it is no service-account key")),
    }
    let mut account: ServiceAccount = serde_json::from_str(json).map_err(malformed)?;
    let private_key = Zeroizing::new(std::mem::take(&mut account.private_key));
    let in_field = |failure: Failure| failure.context("private_key");
    Ok(Imported {
        material: pem(&private_key).map_err(in_field)?,
        kid: Some(account.private_key_id.parse().map_err(|error| Failure::usage(error).context("private_key_id"))?),
        account: Some(account.client_email.parse().map_err(|error| Failure::usage(error).context("client_email"))?),
    })
}

/// One PEM block (RFC 7468), whatever its line length, line ends, and the text around it.
fn pem(text: &str) -> Result<Material, Failure> {
    let truncated = || Failure::usage("it is truncated: the PEM block has no end");
    if text.matches(BEGIN).count() > 1 {
        return Err(Failure::usage("it holds several PEM blocks")
            .hint("openssl pkey -in FILE -out key.pem keeps the key alone"));
    }
    let (_before, block) = text.split_once(BEGIN).ok_or_else(|| Failure::usage("it is no PEM file"))?;
    let (label, rest) = block.split_once("-----").ok_or_else(truncated)?;
    let (body, _after) = rest.split_once(&format!("-----END {label}-----")).ok_or_else(truncated)?;
    let encrypted = || {
        Failure::usage("the key is encrypted")
            .hint("decrypt it to a file of mode 0600: (umask 077; openssl pkey -in FILE -out key.pem)")
    };
    if body.contains("Proc-Type:") {
        return Err(encrypted());
    }
    if label == "TSS2 PRIVATE KEY" {
        return Ok(Material::Tss2(text.to_owned() + "\n"));
    }
    let base64: Zeroizing<Vec<u8>> = Zeroizing::new(body.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect());
    let der = || {
        let der = STANDARD.decode(&*base64).map(Zeroizing::new);
        der.map_err(|_where| Failure::usage("the PEM block is damaged: it is no base64"))
    };
    let key = match label {
        "PRIVATE KEY" => pkcs8_key(&der()?),
        "RSA PRIVATE KEY" => rsa_key(&der()?),
        "EC PRIVATE KEY" => ec_key(&der()?, None),
        "ENCRYPTED PRIVATE KEY" => Err(encrypted()),
        "PUBLIC KEY" | "RSA PUBLIC KEY" => Err(Failure::usage("it is a public key").hint("the private key's file")),
        "CERTIFICATE" | "TRUSTED CERTIFICATE" | "X509 CERTIFICATE" => {
            Err(Failure::usage("it is a certificate").hint("the private key's file"))
        }
        "OPENSSH PRIVATE KEY" => {
            Err(Failure::usage("it is an OpenSSH key").hint("ssh-keygen -p -m PKCS8 -f A_COPY_OF_IT"))
        }
        other => Err(Failure::usage(format!(
            "a PEM block of {:?} is no private key",
            other.chars().take(40).collect::<String>()
        ))),
    };
    key.map(Material::Private)
}

fn malformed(error: der::Error) -> Failure {
    Failure::usage(format!("the key is truncated or malformed: {error}"))
}

fn pkcs8_key(der: &[u8]) -> Result<PrivateKey, Failure> {
    let info = PrivateKeyInfoRef::from_der(der).map_err(malformed)?;
    match info.algorithm.oid {
        RSA_ENCRYPTION => rsa_key(info.private_key.as_bytes()),
        EC_PUBLIC_KEY => {
            let curve =
                info.algorithm.parameters_oid().map_err(|error| Failure::usage(format!("the curve: {error}")))?;
            ec_key(info.private_key.as_bytes(), Some(curve))
        }
        other => Err(Failure::usage(format!("a key of the algorithm {other} is neither RSA nor EC on P-256"))
            .hint("a key of 2048 bits by openssl genpkey -algorithm RSA; or signetctl key generate")),
    }
}

fn rsa_key(der: &[u8]) -> Result<PrivateKey, Failure> {
    let key = pkcs1::RsaPrivateKeyRef::from_der(der).map_err(malformed)?;
    let new_key =
        "this key protects nothing: make a new one with signetctl key generate, and delete this one at Google";
    if key.other_prime_infos.is_some() {
        return Err(Failure::usage("an RSA key of three or more primes is not taken: devices hold two").hint(new_key));
    }
    let numbers = rsa::Numbers {
        modulus: key.modulus.as_bytes(),
        public_exponent: key.public_exponent.as_bytes(),
        private_exponent: key.private_exponent.as_bytes(),
        prime1: key.prime1.as_bytes(),
        prime2: key.prime2.as_bytes(),
    };
    if let Some(weakness) = rsa::weakness(numbers) {
        return Err(Failure::usage(weakness).hint(new_key));
    }
    let pkcs8 = pkcs8_der(AlgorithmIdentifierRef { oid: RSA_ENCRYPTION, parameters: Some(AnyRef::NULL) }, der)?;
    // For its consistency check alone: nothing is signed outside of a device.
    signature::RsaKeyPair::from_pkcs8(&pkcs8).map_err(|_rejected| {
        Failure::usage("the numbers of the key do not belong together")
            .hint("the file is damaged: take it from the backup, or make a new key")
    })?;
    let secret = |number: pkcs1::UintRef<'_>| Zeroizing::new(number.as_bytes().to_vec());
    Ok(PrivateKey::Rsa {
        modulus: key.modulus.as_bytes().to_vec(),
        public_exponent: key.public_exponent.as_bytes().to_vec(),
        private_exponent: secret(key.private_exponent),
        prime1: secret(key.prime1),
        prime2: secret(key.prime2),
        exponent1: secret(key.exponent1),
        exponent2: secret(key.exponent2),
        coefficient: secret(key.coefficient),
        pkcs8,
    })
}

fn ec_key(der: &[u8], curve: Option<ObjectIdentifier>) -> Result<PrivateKey, Failure> {
    let key = sec1::EcPrivateKey::from_der(der).map_err(malformed)?;
    let curve = curve.or_else(|| key.parameters.and_then(|parameters| parameters.named_curve()));
    if curve != Some(PRIME256V1) {
        return Err(Failure::usage("an EC key that is not on P-256 is not taken")
            .hint("a key on P-256; or an RSA key, the only kind that Google takes"));
    }
    let unsound = || {
        Failure::usage("the numbers of the key do not belong together")
            .hint("the file is damaged: take it from the backup")
    };
    let private = agreement::PrivateKey::from_private_key(&agreement::ECDH_P256, key.private_key)
        .map_err(|_rejected| unsound())?;
    let point = private.compute_public_key().map_err(|_unspecified| unsound())?;
    let point = point.as_ref();
    if key.public_key.is_some_and(|recorded| recorded != point) {
        return Err(unsound());
    }
    let [0x04, coordinates @ ..] = point else { return Err(unsound()) };
    let (Some(x), Some(y)) = (coordinates.first_chunk(), coordinates.last_chunk()) else { return Err(unsound()) };
    let inner = sec1::EcPrivateKey { private_key: key.private_key, parameters: None, public_key: Some(point) };
    let inner = Zeroizing::new(inner.to_der().map_err(malformed)?);
    let algorithm = AlgorithmIdentifierRef { oid: EC_PUBLIC_KEY, parameters: Some((&PRIME256V1).into()) };
    Ok(PrivateKey::EcP256 {
        scalar: Zeroizing::new(key.private_key.to_vec()),
        x: *x,
        y: *y,
        pkcs8: pkcs8_der(algorithm, &inner)?,
    })
}

fn pkcs8_der(algorithm: AlgorithmIdentifierRef<'_>, key: &[u8]) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let private_key = OctetStringRef::new(key).map_err(malformed)?;
    let info = pkcs8::PrivateKeyInfo::<_, _, BitStringRef<'_>>::new(algorithm, private_key);
    info.to_der().map(Zeroizing::new).map_err(malformed)
}

const LIMIT: usize = 64 * 1024;
const BEGIN: &str = "-----BEGIN ";
