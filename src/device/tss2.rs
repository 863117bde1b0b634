//! The TSS2 PRIVATE KEY file form ("ASN.1 Specification for TPM 2.0 Key Files"): what tpm2-openssl, tpm2-tools, GnuTLS
//! and ssh-tpm-agent read and write. Bytes in, bytes out: this module knows no TPM.

use der::asn1::{Any, ObjectIdentifier, OctetString};
use der::{DecodePem as _, EncodePem as _, Sequence, pem};

/// A loadable key: the two halves that TPM2_Load takes. The private half is encrypted by its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tss2Key {
    /// True where the key has surely no auth value. Some tools say false of such keys too.
    pub empty_auth: bool,
    /// The parent: a persistent handle, or 0x40000001 for the P-256 primary of the owner hierarchy.
    pub parent: u32,
    /// The TPMT_PUBLIC, without a size in front.
    pub public: Vec<u8>,
    /// The encrypted contents of the TPM2B_PRIVATE, without a size in front.
    pub private: Vec<u8>,
}

/// Why a file is no key that Signet can load.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no usable TSS2 PRIVATE KEY: {0}")]
pub struct InvalidTss2(String);

impl Tss2Key {
    /// Reads the PEM form.
    ///
    /// # Errors
    /// [`InvalidTss2`] says what is wrong with it: malformed, an importable or a sealed object, or bound to a policy.
    pub fn from_pem(text: &str) -> Result<Self, InvalidTss2> {
        if text.len() > LARGEST {
            return Err(InvalidTss2(format!("{} bytes are no key file", text.len())));
        }
        let file = TpmKey::from_pem(text.trim_start()).map_err(|error| InvalidTss2(error.to_string()))?;
        let unusable = |what: &str| Err(InvalidTss2(what.to_owned()));
        match file.kind {
            LOADABLE => {}
            IMPORTABLE => {
                return unusable("it is an importable key; load it with its own tool once, or import its PEM");
            }
            SEALED => return unusable("it holds sealed data, not a key"),
            other => return Err(InvalidTss2(format!("its type {other} is not that of a loadable key"))),
        }
        if file.policy.is_some() || file.auth_policy.is_some() {
            return unusable("the key is bound to a policy, which Signet can't fulfil");
        }
        if file.secret.is_some() {
            return unusable("a loadable key has no secret");
        }
        Ok(Self {
            // tpm2-openssl writes true as 1, which DER forbids.
            empty_auth: file.empty_auth.is_some_and(|truth| truth.value() != [0]),
            parent: handle(file.parent).ok_or_else(|| InvalidTss2("its parent is no handle".to_owned()))?,
            public: sized(file.pubkey.as_bytes())
                .ok_or_else(|| InvalidTss2("its public half is cut off".to_owned()))?,
            private: sized(file.privkey.as_bytes())
                .ok_or_else(|| InvalidTss2("its private half is cut off".to_owned()))?,
        })
    }

    /// Writes the PEM form.
    ///
    /// # Errors
    /// [`InvalidTss2`] where a half is too long to be one.
    pub fn to_pem(&self) -> Result<String, InvalidTss2> {
        let invalid = |error: der::Error| InvalidTss2(error.to_string());
        let file = TpmKey {
            kind: LOADABLE,
            // tpm2-openssl takes a missing value for true.
            empty_auth: Some(Any::encode_from(&self.empty_auth).map_err(invalid)?),
            policy: None,
            secret: None,
            auth_policy: None,
            description: None,
            rsa_parent: None,
            parent: i64::from(self.parent),
            pubkey: OctetString::new(with_size(&self.public)?).map_err(invalid)?,
            privkey: OctetString::new(with_size(&self.private)?).map_err(invalid)?,
        };
        file.to_pem(pem::LineEnding::LF).map_err(invalid)
    }
}

/// The file's ASN.1.
#[derive(Sequence)]
struct TpmKey {
    kind: ObjectIdentifier,
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT", optional = "true")]
    empty_auth: Option<Any>,
    #[asn1(context_specific = "1", tag_mode = "EXPLICIT", optional = "true")]
    policy: Option<Any>,
    #[asn1(context_specific = "2", tag_mode = "EXPLICIT", optional = "true")]
    secret: Option<OctetString>,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT", optional = "true")]
    auth_policy: Option<Any>,
    #[asn1(context_specific = "4", tag_mode = "EXPLICIT", optional = "true")]
    description: Option<String>,
    #[asn1(context_specific = "5", tag_mode = "EXPLICIT", optional = "true")]
    rsa_parent: Option<Any>,
    parent: i64,
    pubkey: OctetString,
    privkey: OctetString,
}

impl pem::PemLabel for TpmKey {
    const PEM_LABEL: &'static str = "TSS2 PRIVATE KEY";
}

/// Early tools wrote a persistent handle as a negative number of 32 bits.
fn handle(parent: i64) -> Option<u32> {
    u32::try_from(parent).ok().or_else(|| i32::try_from(parent).ok().map(i32::cast_unsigned))
}

/// The contents of a TPM2B: 16 bits of length, then as many bytes and no more.
fn sized(tpm2b: &[u8]) -> Option<Vec<u8>> {
    let (length, contents) = tpm2b.split_first_chunk::<2>()?;
    (usize::from(u16::from_be_bytes(*length)) == contents.len()).then(|| contents.to_vec())
}

fn with_size(contents: &[u8]) -> Result<Vec<u8>, InvalidTss2> {
    let length = u16::try_from(contents.len()).map_err(|error| InvalidTss2(error.to_string()))?;
    Ok([length.to_be_bytes().as_slice(), contents].concat())
}

const LOADABLE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.10.1.3");
const IMPORTABLE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.10.1.4");
const SEALED: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.10.1.5");

/// Far more than a key of 4096 bits needs.
const LARGEST: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Tss2Key {
        Tss2Key { empty_auth: true, parent: 0x8100_0001, public: vec![1; 90], private: vec![2; 200] }
    }

    /// The file's DER with some of its bytes replaced.
    fn edited(from: &[u8], to: &[u8]) -> String {
        let pem = key().to_pem().unwrap();
        let (label, mut der) = pem::decode_vec(pem.as_bytes()).unwrap();
        let place = der.windows(from.len()).position(|window| window == from).unwrap();
        der.splice(place..place + from.len(), to.iter().copied());
        pem::encode_string(label, pem::LineEnding::LF, &der).unwrap()
    }

    const LOADABLE_DER: [u8; 8] = [0x06, 0x06, 0x67, 0x81, 0x05, 0x0a, 0x01, 0x03];
    const TRUE_DER: [u8; 5] = [0xa0, 0x03, 0x01, 0x01, 0xff];

    #[test]
    fn files_round_trip() {
        for parent in [0x4000_0001, 0x8100_0001, 0x817f_ffff, 0xffff_ffff, 0] {
            for empty_auth in [true, false] {
                let key = Tss2Key { empty_auth, parent, ..key() };
                let pem = key.to_pem().unwrap();
                assert!(pem.starts_with("-----BEGIN TSS2 PRIVATE KEY-----\n"), "{pem}");
                assert_eq!(Tss2Key::from_pem(&pem).unwrap(), key);
                assert_eq!(Tss2Key::from_pem(&pem.replace('\n', "\r\n")).unwrap(), key);
                assert_eq!(Tss2Key::from_pem(pem.trim_end()).unwrap(), key);
            }
        }
    }

    #[test]
    fn a_true_that_is_no_der_is_true() {
        let file = edited(&TRUE_DER, &[0xa0, 0x03, 0x01, 0x01, 0x01]);
        assert!(Tss2Key::from_pem(&file).unwrap().empty_auth);
        let file = edited(&TRUE_DER, &[0xa0, 0x03, 0x01, 0x01, 0x00]);
        assert!(!Tss2Key::from_pem(&file).unwrap().empty_auth);
    }

    #[test]
    fn a_negative_parent_is_the_handle_that_was_meant() {
        let file = edited(&[0x02, 0x05, 0x00, 0x81, 0x00, 0x00, 0x01], &[0x02, 0x04, 0x81, 0x00, 0x00, 0x01]);
        // One byte less in all: the outer length shrinks with it.
        let (label, mut der) = pem::decode_vec(file.as_bytes()).unwrap();
        der[3] -= 1;
        let file = pem::encode_string(label, pem::LineEnding::LF, &der).unwrap();
        assert_eq!(Tss2Key::from_pem(&file).unwrap(), key());
    }

    #[test]
    fn what_is_no_loadable_key_is_refused_by_its_name() {
        let kind = |last| edited(&LOADABLE_DER, &[&LOADABLE_DER[..7], &[last]].concat());
        let policy = edited(&TRUE_DER, &[0xa1, 0x03, 0x30, 0x01, 0x00]);
        let other_label = key().to_pem().unwrap().replace("TSS2 PRIVATE", "PRIVATE");
        let cut_off = edited(&[0, 200, 2, 2], &[0, 201, 2, 2]);
        for (file, why) in [
            (kind(4), "importable"),
            (kind(5), "sealed"),
            (kind(9), "2.23.133.10.1.9"),
            (policy, "policy"),
            (other_label, ""),
            (cut_off, "cut off"),
            (String::new(), ""),
            ("x".repeat(20_000), "20000 bytes"),
        ] {
            let refused = Tss2Key::from_pem(&file).unwrap_err().to_string();
            assert!(refused.contains(why), "{why}: {refused}");
        }
    }
}
