//! The checkpoints in an audit log: by which keys, and whether there are as many as there should be.

use std::path::{Path, PathBuf};

use crate::audit::{Checkpoints, Head};
use crate::config::Config;
use crate::ctl::failure::{Exit, Failure};
use crate::jwt::certificate;
use crate::key::PublicKey;
use crate::keyring::Keyring;

/// The keys of these certificates; where none is named, those with which nobody may sign digests: with any other key callers
/// could forge checkpoints.
pub(super) fn keys(certificates: &[PathBuf], config: Option<&Config>) -> Result<Vec<PublicKey>, Failure> {
    if !certificates.is_empty() {
        return certificates.iter().map(|path| of_certificate(path)).collect();
    }
    let Some(config) = config else { return Ok(Vec::new()) };
    let keys = Keyring::load(&config.state_dir)?.keys.into_iter();
    Ok(keys.filter(|key| !config.policy.signs_digests(&key.account)).map(|key| key.public_key).collect())
}

/// Whether each checkpoint is of this log and signed, and whether there are as many as there must be.
pub(super) fn judge(
    found: &Checkpoints,
    end: &Head,
    certificates: &[PathBuf],
    config: Option<&Config>,
) -> Result<(), Failure> {
    let unverified = |what: String| Failure::with(Exit::Unverified, what);
    if let Some((checkpoint, what)) = &found.wrong {
        let hint = format!(
            "name the certificate of the key {} with --certificate; where it has one, records were written anew",
            checkpoint.kid
        );
        return Err(unverified(format!("the checkpoint of record {} {what}", checkpoint.of)).hint(hint));
    }
    let every = config.and_then(|config| config.audit.checkpoints.as_ref()).map(|checkpoints| checkpoints.every);
    let none = !certificates.is_empty() && found.count == 0 && end.seq > 0;
    if none || every.is_some_and(|every| found.are_wanting(every, end)) {
        let unsigned = found.unsigned(end);
        let hint = "name the older logs as well; where the device was not away that long, records were written anew";
        return Err(unverified(format!("no checkpoint stands behind the last {unsigned} records")).hint(hint));
    }
    Ok(())
}

fn of_certificate(path: &Path) -> Result<PublicKey, Failure> {
    let failed = |what: &dyn std::fmt::Display| {
        Failure::usage(format!("{}: {what}", path.display())).hint("a certificate in PEM, as key certificate prints it")
    };
    let pem = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
    certificate::public_key(&pem).map_err(|error| failed(&error))
}
