//! The TSS2 PRIVATE KEY file form ("ASN.1 Specification for TPM 2.0 Key Files"): what tpm2-openssl, tpm2-tools, GnuTLS
//! and ssh-tpm-agent read and write. Bytes in, bytes out: this module knows no TPM.

use der::asn1::{Any, Int, ObjectIdentifier, OctetString};
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
            empty_auth: file.empty_auth.unwrap_or(false),
            parent: handle(file.parent.as_bytes()).ok_or_else(|| InvalidTss2("its parent is no handle".to_owned()))?,
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
        // DER integers are signed: a handle from 0x80000000 on needs a zero in front.
        let parent = [&[0], self.parent.to_be_bytes().as_slice()].concat();
        let significant = if self.parent < 0x8000_0000 { parent.get(1..).unwrap_or_default() } else { &parent };
        let file = TpmKey {
            kind: LOADABLE,
            empty_auth: self.empty_auth.then_some(true),
            policy: None,
            secret: None,
            auth_policy: None,
            description: None,
            rsa_parent: None,
            parent: Int::new(significant).map_err(invalid)?,
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
    empty_auth: Option<bool>,
    #[asn1(context_specific = "1", tag_mode = "EXPLICIT", optional = "true")]
    policy: Option<Any>,
    #[asn1(context_specific = "2", tag_mode = "EXPLICIT", optional = "true")]
    secret: Option<OctetString>,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT", optional = "true")]
    auth_policy: Option<Any>,
    #[asn1(context_specific = "4", tag_mode = "EXPLICIT", optional = "true")]
    description: Option<String>,
    #[asn1(context_specific = "5", tag_mode = "EXPLICIT", optional = "true")]
    rsa_parent: Option<bool>,
    parent: Int,
    pubkey: OctetString,
    privkey: OctetString,
}

impl pem::PemLabel for TpmKey {
    const PEM_LABEL: &'static str = "TSS2 PRIVATE KEY";
}

/// A handle out of a DER integer. Early tools wrote a persistent handle as a negative number of 32 bits.
fn handle(integer: &[u8]) -> Option<u32> {
    let bytes = if let [0, rest @ ..] = integer { rest } else { integer };
    if bytes.len() > 4 {
        return None;
    }
    Some(bytes.iter().fold(0, |handle, byte| handle << 8 | u32::from(*byte)))
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
