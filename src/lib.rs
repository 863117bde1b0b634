//! Signet holds service-account keys in a TPM 2.0 or a PKCS#11 token and gives local applications signatures and
//! short-lived JWTs over a unix socket. `signetd` is the daemon, `signetctl` provisions keys and talks to it.
//!
//! ARCHITECTURE.md is the map, and says who may import whom (`tests/tidy.rs` enforces it).

pub mod access;
pub mod audit;
pub mod config;
pub mod ctl;
pub mod daemon;
pub mod device;
pub mod file;
pub mod front;
pub mod jwt;
pub mod key;
pub mod keyring;
pub mod log;
mod readable;
pub mod sandbox;
pub mod signer;
pub mod subject;
pub mod trust;
pub mod users;

/// The generated messages, services and clients of `proto/`.
pub mod proto {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::restriction,
        reason = "generated from proto/, where the comments are"
    )]
    tonic::include_proto!("signet.v1");

    /// Google's IAM Service Account Credentials API.
    pub mod iam {
        tonic::include_proto!("google.iam.credentials.v1");
    }

    /// Every compiled proto, for server reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

impl From<key::Algorithm> for proto::Algorithm {
    fn from(algorithm: key::Algorithm) -> Self {
        match algorithm {
            key::Algorithm::Rs256 => Self::Rs256,
            key::Algorithm::Rs384 => Self::Rs384,
            key::Algorithm::Rs512 => Self::Rs512,
            key::Algorithm::Ps256 => Self::Ps256,
            key::Algorithm::Es256 => Self::Es256,
        }
    }
}
