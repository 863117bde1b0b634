//! `signetctl key`: makes, imports and manages keys.

mod create;
mod manage;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use nix::fcntl::Flock;
use nix::unistd::geteuid;

pub(super) use self::manage::expiry;
use super::device::OpenDevice;
use super::failure::Failure;
use super::{Global, sign, status};
use crate::access::AccountEmail;
use crate::config::Config;
use crate::file;
use crate::jwt::certificate::{self, Profile};
use crate::key::{Algorithm, Digest, KeyId, KeyLocator, PublicKey};
use crate::keyring::{KeyRecord, KeyState, Keyring};
use crate::users;

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Generate a key that never existed outside of its device
    ///
    /// Makes the key, its self-signed certificate and its keyring entry, and prints the key id. The first key of an account
    /// is active at once; a later one is prepared: published, but not used before `key activate`.
    #[command(after_help = "\
Example:
  signetctl key generate --device hsm --account app@project.iam.gserviceaccount.com")]
    Generate(create::GenerateOptions),
    /// Import a key that exists already, such as a service-account JSON file
    ///
    /// Takes a service-account JSON key, a PEM private key (PKCS#8, PKCS#1, SEC1) or, for a TPM, a TSS2 PRIVATE KEY file. The
    /// key is checked, put into the device, tried there, and only then recorded. The file is never changed or removed.
    ///
    /// Weak keys are refused: too small, with a bad exponent, close primes, or the fingerprint of ROCA. Not looked for are the
    /// keys that Debian's OpenSSL made in 2006 to 2008: a key of those years should be replaced.
    #[command(after_help = "\
Examples:
  signetctl key import --device hsm service-account.json
  vault read -field=key secret/app | signetctl key import --device hsm -")]
    Import(create::ImportOptions),
    /// List the keys
    #[command(after_help = "Example:\n  signetctl key list --json | jq -r '.[].kid'")]
    List(manage::ListOptions),
    /// Show everything about a key
    #[command(after_help = "Example:\n  signetctl key show KID")]
    Show(manage::Kid),
    /// Issue a key's certificate again, signed in the device, and print it
    #[command(after_help = "Example:\n  signetctl key certificate KID --days 365 > cert.pem")]
    Certificate(manage::CertificateOptions),
    /// Give a key another id, such as the one Google gave it on upload
    #[command(after_help = "\
Example:
  signetctl key rename KID $(gcloud iam service-accounts keys list --iam-account=EMAIL \\
      --managed-by=user --format='value(name.basename())' --sort-by=~validAfterTime --limit=1)")]
    Rename(manage::RenameOptions),
    /// Let a prepared or retired key sign; the newest active one of an account does
    #[command(after_help = "Example:\n  signetctl key activate KID")]
    Activate(manage::Kid),
    /// Let a key sign no more; it stays published for what it signed
    #[command(after_help = "Example:\n  signetctl key retire KID")]
    Retire(manage::RetireOptions),
    /// Destroy a key in its device, and its certificate and keyring entry. There is no way back
    #[command(after_help = "Example:\n  signetctl key delete KID --yes")]
    Delete(manage::DeleteOptions),
}

pub(crate) fn run(command: KeyCommand, global: &Global) -> Result<(), Failure> {
    let config = global.load()?;
    let changes = !matches!(command, KeyCommand::List(_) | KeyCommand::Show(_));
    match command {
        KeyCommand::Generate(options) => create::generate(options, global, &config),
        KeyCommand::Import(options) => create::import(options, global, &config),
        KeyCommand::List(options) => manage::list(&options, global, &config),
        KeyCommand::Show(options) => manage::show(&options, global, &config),
        KeyCommand::Certificate(options) => manage::certificate(options, global, &config),
        KeyCommand::Rename(options) => manage::rename(&options, global, &config),
        KeyCommand::Activate(options) => manage::activate(&options, global, &config),
        KeyCommand::Retire(options) => manage::retire(&options, global, &config),
        KeyCommand::Delete(options) => manage::delete(&options, global, &config),
    }?;
    if changes {
        settle(global, &config);
    }
    Ok(())
}

/// Waits until a daemon that runs has taken the keyring as it is now: what is asked next is to be answered by it.
fn settle(global: &Global, config: &Config) {
    let Ok(keyring) = Keyring::load(&config.state_dir) else { return };
    status::note_difference(global, config);
    let until = Instant::now() + SETTLED;
    while Instant::now() < until {
        match is_taken(global, config, &keyring) {
            Ok(false) => std::thread::sleep(SETTLED / 60),
            // Taken; or no daemon runs, and nothing needs to be waited for.
            Ok(true) | Err(_) => return,
        }
    }
    global.note("signetd has not taken the change yet: signetctl status tells more");
}

fn is_taken(global: &Global, config: &Config, keyring: &Keyring) -> Result<bool, Failure> {
    for account in config.policy.accounts() {
        let published = sign::published(global, account.email.as_str())?;
        let recorded: Vec<_> = keyring.keys.iter().filter(|key| key.account == account.email).collect();
        let known = recorded.iter().all(|key| key.state == KeyState::Retired || published.holds(&key.kid, key.state));
        let right = |kid: &str, state| recorded.iter().any(|key| key.kid.as_str() == kid && key.state == state);
        if !known || !published.keys().all(|(kid, state)| right(kid, state)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What a certificate is to say.
#[derive(Args, Clone, Debug)]
pub(crate) struct CertificateProfile {
    /// How many days the certificate is valid: the key expires with it at Google
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// The certificate's common name. It is public, so generic by default
    #[arg(long, value_name = "CN", default_value = "unused")]
    subject: String,
}

/// Has a device sign the certificate of a key in it, and makes sure by it that the device holds the key and signs right.
fn issue(
    device: &mut OpenDevice,
    locator: &KeyLocator,
    public_key: &PublicKey,
    algorithm: Algorithm,
    profile: &CertificateProfile,
) -> Result<String, Failure> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_unspecified| Failure::new("no random numbers"))?;
    let day = Duration::from_secs(24 * 60 * 60);
    let profile = Profile {
        common_name: profile.subject.strip_prefix("CN=").unwrap_or(&profile.subject),
        // The clocks of those who verify may be a little behind.
        not_before: SystemTime::now() - Duration::from_secs(5 * 60),
        validity: day * profile.days,
        serial,
    };
    let mut refused = None;
    let sign = |digest: &Digest| {
        let signature =
            device.sign(locator, algorithm, digest).map_err(|failure| refused.insert(failure).to_string())?;
        public_key.verify(algorithm, digest, &signature).map_err(|error| format!("the key was tried: {error}"))?;
        Ok(signature)
    };
    let pem = certificate::self_signed(public_key, algorithm, &profile, sign);
    pem.map_err(|error| refused.unwrap_or_else(|| Failure::new(error)))
}

/// The key of an id, or an error that lists those there are.
fn find<'a>(keyring: &'a mut Keyring, kid: &KeyId) -> Result<&'a mut KeyRecord, Failure> {
    let known: Vec<_> = keyring.keys.iter().map(|key| key.kid.to_string()).collect();
    keyring.keys.iter_mut().find(|key| key.kid == *kid).ok_or_else(|| {
        let hint = if known.is_empty() {
            "signetctl key generate".to_owned()
        } else {
            format!("one of: {}", known.join(", "))
        };
        Failure::usage(format!("there is no key {kid}")).hint(hint)
    })
}

/// The account that a key is for: the one given, else the only or default one.
fn account(config: &Config, given: Option<AccountEmail>) -> Result<AccountEmail, Failure> {
    let configured: Vec<_> = config.policy.accounts().iter().map(|account| account.email.as_str()).collect();
    let add = || format!("add an [[account]] with it to {}", config.path.display());
    match given {
        Some(email) if configured.contains(&email.as_str()) => Ok(email),
        Some(email) => {
            Err(Failure::usage(format!("there is no account {email} in {}", config.path.display())).hint(add()))
        }
        None => match config.policy.default_account() {
            Some(account) => Ok(account.email.clone()),
            None if configured.is_empty() => {
                Err(Failure::usage(format!("there is no [[account]] in {}", config.path.display()))
                    .hint("add one with the service account's email"))
            }
            None => Err(Failure::usage("there are several accounts and none is the default")
                .hint(format!("--account with one of: {}", configured.join(", ")))),
        },
    }
}

/// Makes sure that what is written into the state folder can be read by its owner: by root's files of mode 0600, signetd
/// would be shut out of its own keyring and latches. A folder that is not there yet will be ours.
pub(crate) fn owned(config: &Config) -> Result<(), Failure> {
    let Ok(metadata) = fs::metadata(&config.state_dir) else { return Ok(()) };
    let owner = metadata.uid();
    if owner == geteuid().as_raw() {
        return Ok(());
    }
    let name = users::name(owner).unwrap_or_else(|| format!("'#{owner}'"));
    let what =
        format!("{} belongs to {name}, who must be able to read what is written there", config.state_dir.display());
    Err(Failure::usage(what).hint(format!("sudo -u {name} signetctl ...")))
}

/// Makes sure that of all signetctl only this one changes the state folder, until the lock is dropped.
pub(crate) fn lock(global: &Global, config: &Config) -> Result<Flock<File>, Failure> {
    let failed = |error: io::Error| {
        Failure::new(format!("{}: {error}", config.state_dir.display()))
            .hint("run it as the owner of the folder, usually with sudo; or check the space on its disk")
    };
    let path = config.state_dir.lock();
    file::private_folder(&config.state_dir).map_err(failed)?;
    owned(config)?;
    match file::lock(&path) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            global.note("Waiting for another signetctl to finish.");
            file::wait_for_lock(&path).map_err(failed)
        }
        locked => locked.map_err(failed),
    }
}

/// Writes a file of the state folder as a whole.
fn store(path: &Path, contents: &str) -> Result<(), Failure> {
    let folder = path.parent().unwrap_or(Path::new("."));
    file::private_folder(folder)
        .and_then(|()| file::replace(path, contents.as_bytes()))
        .map_err(|error| Failure::new(format!("{}: {error}", path.display())).hint("check the space on its disk"))
}

/// Removes a file of the state folder, where it is there.
fn discard(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Failure::new(format!("{}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The command that tells Google about a key.
fn upload_command(certificate: &Path, account: &AccountEmail) -> String {
    format!("gcloud iam service-accounts keys upload {} --iam-account={account}", certificate.display())
}

/// The daemon looks at the keyring every half second.
const SETTLED: Duration = Duration::from_secs(3);
