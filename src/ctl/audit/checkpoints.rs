//! The checkpoints in an audit log: whether each is of this log, and signed by a key that is known.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::unreadable;
use crate::audit::{Checkpoint, Head, Link};
use crate::ctl::Global;
use crate::ctl::failure::{Exit, Failure};
use crate::jwt::certificate;
use crate::key::{Digest, KeyId, PublicKey, Signature};
use crate::keyring::Keyring;

/// What was found.
#[derive(Default)]
pub(super) struct Found {
    /// How many.
    pub(super) count: u64,
    /// The number of the last record that one is about; 0 where there is none.
    pub(super) last: u64,
}

/// Keys that may have signed a checkpoint; the id of one that was named by its certificate does not matter.
type Known = Vec<(Option<KeyId>, PublicKey)>;

/// Looks at every checkpoint of a log whose chain is whole and that begins after `first`.
pub(super) fn verify(
    files: &[PathBuf],
    first: &Head,
    certificates: &[PathBuf],
    global: &Global,
) -> Result<Found, Failure> {
    let mut found = Found::default();
    let mut known = None;
    let mut links = VecDeque::new();
    for file in files {
        let log = BufReader::new(File::open(file).map_err(unreadable(file))?);
        for line in log.split(b'\n') {
            let line = line.map_err(unreadable(file))?;
            let Ok(link) = serde_json::from_slice::<Link>(&line) else { continue };
            links.truncate(WINDOW);
            links.push_front(link);
            let Some(checkpoint) = Checkpoint::of_line(&line) else { continue };
            let keys = match &mut known {
                Some(keys) => keys,
                unknown => unknown.insert(read(certificates, global)?),
            };
            let Checkpoint { of, kid, .. } = &checkpoint;
            let broken = |what: &str| {
                Failure::with(Exit::Unverified, format!("{}: the checkpoint of record {of} {what}", file.display()))
                    .hint(format!("name the certificate of the key {kid} with --certificate; where it has one, records were written anew"))
            };
            // What stands behind a record tells its hash.
            let follows = links.iter().find(|link: &&Link| Some(link.seq) == of.checked_add(1));
            if follows.is_none_or(|link| link.prev != checkpoint.hash) && *of >= first.seq {
                return Err(broken("is of another log"));
            }
            if !is_signed(&checkpoint, keys) {
                return Err(broken("was signed by no key that is known here"));
            }
            found = Found { count: found.count + 1, last: *of };
        }
    }
    Ok(found)
}

fn is_signed(checkpoint: &Checkpoint, known: &Known) -> bool {
    let Ok(signature) = URL_SAFE_NO_PAD.decode(&checkpoint.signature) else { return false };
    let signature = Signature::from_bytes(signature);
    let head = Head { hash: checkpoint.hash.clone(), seq: checkpoint.of };
    let digest = Digest::of(checkpoint.algorithm.hash(), Checkpoint::text(&head).as_bytes());
    let mut keys = known.iter().filter(|(kid, _)| kid.as_ref().is_none_or(|kid| *kid == checkpoint.kid));
    keys.any(|(_, key)| key.verify(checkpoint.algorithm, &digest, &signature).is_ok())
}

/// The keys of these certificates; where none is named, those of the account that signs checkpoints: with another account's
/// keys callers may sign what they like.
fn read(certificates: &[PathBuf], global: &Global) -> Result<Known, Failure> {
    if certificates.is_empty() {
        let config = global.load()?;
        let Some((_, account)) = config.audit.checkpoints else { return Ok(Known::new()) };
        let keys = Keyring::load(&config.state_dir)?.keys.into_iter().filter(|key| key.account == account);
        return Ok(keys.map(|key| (Some(key.kid), key.public_key)).collect());
    }
    let key = |path: &PathBuf| Ok((None, of_certificate(path)?));
    certificates.iter().map(key).collect()
}

fn of_certificate(path: &Path) -> Result<PublicKey, Failure> {
    let failed = |what: &dyn std::fmt::Display| {
        Failure::usage(format!("{}: {what}", path.display())).hint("a certificate in PEM, as key certificate prints it")
    };
    let pem = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
    certificate::public_key(&pem).map_err(|error| failed(&error))
}

/// How many records may come while a device signs.
const WINDOW: usize = 1 << 17;
