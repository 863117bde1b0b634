//! `key list|show|certificate|rename|activate|retire|delete`: what happens to keys that are in the keyring.

use std::fs;
use std::io;
use std::time::SystemTime;

use clap::Args;
use serde_json::json;

use super::{CertificateProfile, discard, find, issue, lock, now, store, upload_command};
use crate::access::AccountEmail;
use crate::config::Config;
use crate::ctl::device;
use crate::ctl::failure::Failure;
use crate::ctl::{Global, confirm, date, table};
use crate::jwt::certificate;
use crate::key::{DeviceName, KeyId, KeyLocator, KeyType};
use crate::keyring::{KeyRecord, KeyState, Keyring};

#[derive(Args, Debug)]
pub(crate) struct ListOptions {
    /// Only this account's
    #[arg(long, value_name = "EMAIL")]
    account: Option<AccountEmail>,
    /// Look into this device as well, for keys that are not in the keyring
    #[arg(long, value_name = "NAME")]
    device: Option<DeviceName>,
}

#[derive(Args, Debug)]
pub(crate) struct Kid {
    /// The key's id
    kid: KeyId,
}

#[derive(Args, Debug)]
pub(crate) struct CertificateOptions {
    /// The key's id
    kid: KeyId,
    #[command(flatten)]
    profile: CertificateProfile,
}

#[derive(Args, Debug)]
pub(crate) struct RenameOptions {
    /// The key's id
    kid: KeyId,
    /// Its new id
    new_kid: KeyId,
}

#[derive(Args, Debug)]
pub(crate) struct RetireOptions {
    /// The key's id
    kid: KeyId,
    /// Even where it is the account's only active key: nothing is signed for the account then
    #[arg(long)]
    force: bool,
}

#[derive(Args, Debug)]
pub(crate) struct DeleteOptions {
    /// The key's id
    kid: KeyId,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Even where it is the account's only active key: nothing is signed for the account then
    #[arg(long)]
    force: bool,
    /// Only forget it: the device is gone, or the key is to stay in it
    #[arg(long)]
    forget: bool,
}

pub(super) fn list(options: &ListOptions, global: &Global, config: &Config) -> Result<(), Failure> {
    let keyring = Keyring::load(&config.state_dir)?;
    let mut rows = vec![["KID", "ACCOUNT", "ALGORITHM", "DEVICE", "STATE", "EXPIRES"].map(str::to_owned).to_vec()];
    let mut entries = Vec::new();
    for key in keyring.keys.iter().filter(|key| options.account.as_ref().is_none_or(|account| key.account == *account))
    {
        let expires = expiry(config, &key.kid).map_or_else(|| "no certificate".to_owned(), date);
        let cells =
            [key.kid.as_str(), key.account.as_str(), key.algorithm.name(), key.device.as_str(), state(key), &expires];
        rows.push(cells.map(str::to_owned).to_vec());
        entries.push(json(config, key));
    }
    if let Some(name) = &options.device {
        let mut opened = device::open(global, config, name, None)?;
        for found in opened.list()? {
            if keyring.keys.iter().any(|key| found.public_key.as_ref() == Some(&key.public_key)) {
                continue;
            }
            let kid = found.public_key.as_ref().map_or_else(|| "?".to_owned(), |key| key.thumbprint().to_string());
            rows.push([&kid, &found.label, "?", name.as_str(), "not in the keyring", ""].map(str::to_owned).to_vec());
            entries.push(json!({ "device": name, "label": found.label, "thumbprint": kid, "locator": found.locator }));
        }
    }
    global.show(&entries, table(&rows))?;
    if entries.is_empty() {
        global.note("There are no keys yet: signetctl key generate, or signetctl key import.");
    }
    Ok(())
}

pub(super) fn show(options: &Kid, global: &Global, config: &Config) -> Result<(), Failure> {
    let mut keyring = Keyring::load(&config.state_dir)?;
    let key = find(&mut keyring, &options.kid)?;
    let place = match &key.locator {
        KeyLocator::Pkcs11(uri) => uri.clone(),
        KeyLocator::Tss2(_) => config.state_dir.tss2(&key.kid).display().to_string(),
        KeyLocator::Handle(handle) => format!("{handle:#x}"),
    };
    let kind = match key.public_key.key_type() {
        KeyType::Rsa => format!("RSA, {} bits", key.public_key.bits()),
        KeyType::EcP256 => "EC, P-256".to_owned(),
    };
    let time = |seconds: Option<u64>| seconds.map_or_else(|| "never".to_owned(), |seconds| date(at(seconds)));
    let rows = [
        ("kid", key.kid.to_string()),
        ("account", key.account.to_string()),
        ("algorithm", key.algorithm.to_string()),
        ("kind", kind),
        ("device", key.device.to_string()),
        ("where", place),
        ("state", state(key).to_owned()),
        ("created", date(at(key.created))),
        ("activated", time(key.activated)),
        ("retired", time(key.retired)),
        ("thumbprint", key.public_key.thumbprint().to_string()),
        ("certificate", config.state_dir.certificate(&key.kid).display().to_string()),
        ("expires", expiry(config, &key.kid).map_or_else(|| "no certificate".to_owned(), date)),
    ];
    let rows: Vec<_> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    global.show(&json(config, key), table(&rows))
}

pub(super) fn certificate(options: CertificateOptions, global: &Global, config: &Config) -> Result<(), Failure> {
    let _lock = lock(global, config)?;
    let mut keyring = Keyring::load(&config.state_dir)?;
    let key = find(&mut keyring, &options.kid)?;
    let mut opened = device::open(global, config, &key.device, None)?;
    let pem = issue(&mut opened, &key.locator, &key.public_key, key.algorithm, &options.profile)?;
    let path = config.state_dir.certificate(&key.kid);
    store(&path, &pem)?;
    let (json, upload) =
        (json!({ "kid": key.kid, "certificate": path, "pem": pem }), upload_command(&path, &key.account));
    // As it is: signetd reads the certificates with it, and so publishes the new one.
    keyring.save(&config.state_dir)?;
    global.show(&json, &pem)?;
    global.note(format!("Written to {}. For Google to know it:\n  {upload}", path.display()));
    Ok(())
}

pub(super) fn rename(options: &RenameOptions, global: &Global, config: &Config) -> Result<(), Failure> {
    let _lock = lock(global, config)?;
    let mut keyring = Keyring::load(&config.state_dir)?;
    let (old, new) = (&options.kid, &options.new_kid);
    if old != new && keyring.key(new).is_some() {
        return Err(Failure::usage(format!("there is a key {new} already")).hint("signetctl key list"));
    }
    find(&mut keyring, old)?.kid = new.clone();
    // Copies first, the keyring then, the old files last: whenever it ends, the keyring's files are there.
    let moves = [
        (config.state_dir.certificate(old), config.state_dir.certificate(new)),
        (config.state_dir.tss2(old), config.state_dir.tss2(new)),
    ];
    for (from, to) in moves.iter().filter(|(from, to)| from != to) {
        match fs::read_to_string(from) {
            Ok(contents) => store(to, &contents)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Failure::new(format!("{}: {error}", from.display()))),
        }
    }
    keyring.save(&config.state_dir)?;
    for (from, _to) in moves.iter().filter(|(from, to)| from != to) {
        discard(from)?;
    }
    global.show(&json!({ "kid": new, "was": old }), new)
}

pub(super) fn activate(options: &Kid, global: &Global, config: &Config) -> Result<(), Failure> {
    change(&options.kid, global, config, |keyring| {
        let account = find(keyring, &options.kid)?.account.clone();
        let others = keyring.keys.iter().filter(|key| key.account == account && key.kid != options.kid);
        let newest = others.filter_map(|key| key.activated).max().unwrap_or(0);
        let key = find(keyring, &options.kid)?;
        key.state = KeyState::Active;
        // Two keys activated within one second still have an order.
        key.activated = Some(now().max(newest + 1));
        key.retired = None;
        Ok("active: it signs from now on")
    })
}

pub(super) fn retire(options: &RetireOptions, global: &Global, config: &Config) -> Result<(), Failure> {
    change(&options.kid, global, config, |keyring| {
        guard_last(keyring, &options.kid, options.force)?;
        let key = find(keyring, &options.kid)?;
        key.state = KeyState::Retired;
        key.retired = Some(now());
        Ok("retired: it signs no more, and stays published for what it signed")
    })
}

/// Changes a key's record, under the lock: nobody else changes the keyring between what `change` sees and what it does.
fn change(
    kid: &KeyId,
    global: &Global,
    config: &Config,
    change: impl FnOnce(&mut Keyring) -> Result<&'static str, Failure>,
) -> Result<(), Failure> {
    let _lock = lock(global, config)?;
    let mut keyring = Keyring::load(&config.state_dir)?;
    let told = change(&mut keyring)?;
    let json = json(config, find(&mut keyring, kid)?);
    keyring.save(&config.state_dir)?;
    global.show(&json, format!("{kid}: {told}"))
}

pub(super) fn delete(options: &DeleteOptions, global: &Global, config: &Config) -> Result<(), Failure> {
    let mut keyring = Keyring::load(&config.state_dir)?;
    let key = find(&mut keyring, &options.kid)?.clone();
    guard_last(&keyring, &options.kid, options.force)?;
    let what = if options.forget { "Forget" } else { "Destroy" };
    let copies = match key.locator {
        KeyLocator::Pkcs11(_) => "",
        KeyLocator::Tss2(_) | KeyLocator::Handle(_) => " Other copies of its TSS2 file would still sign in this TPM.",
    };
    let question = format!("{what} the key {} of {} in {} for ever?{copies}", key.kid, key.account, key.device);
    let opened = if options.forget {
        confirm(options.yes, &question)?;
        None
    } else {
        device::prepare(global, config, &key.device)?;
        confirm(options.yes, &question)?;
        Some(device::open(global, config, &key.device, None)?)
    };
    let _lock = lock(global, config)?;
    // Read again under the lock: another signetctl may have changed it meanwhile.
    let mut keyring = Keyring::load(&config.state_dir)?;
    let now = find(&mut keyring, &options.kid)?;
    if (&now.device, &now.locator) != (&key.device, &key.locator) {
        return Err(Failure::new(format!("{} has become another key meanwhile; nothing was deleted", key.kid))
            .hint(format!("signetctl key show {}", key.kid)));
    }
    guard_last(&keyring, &options.kid, options.force)?;
    // The record goes last: until then, the command can be repeated.
    if let Some(mut opened) = opened {
        opened.delete(&key.locator).map_err(|failure| match opened.is_silent() {
            true => failure
                .aftermath("whether it destroyed the key is not known, and the keyring still has it")
                .hint(format!("when it answers again, signetctl key delete {0} again; with --forget where signetctl doctor --device {1} finds no key {0}", key.kid, key.device)),
            false => failure
                .hint(format!("find the token or TPM that holds it; or, where that is lost: signetctl key delete {} --forget", key.kid)),
        })?;
    }
    keyring.keys.retain(|other| other.kid != key.kid);
    keyring.save(&config.state_dir)?;
    discard(&config.state_dir.certificate(&key.kid))?;
    discard(&config.state_dir.tss2(&key.kid))?;
    global.show(&json!({ "kid": key.kid, "deleted": true }), format!("{}: deleted", key.kid))?;
    global.note("Google may still trust it, where it was uploaded: gcloud iam service-accounts keys delete");
    Ok(())
}

/// Refuses to leave an account without an active key, unless told.
fn guard_last(keyring: &Keyring, kid: &KeyId, force: bool) -> Result<(), Failure> {
    let Some(key) = keyring.key(kid) else { return Ok(()) };
    let active = keyring.active(&key.account);
    if force || key.state != KeyState::Active || active.len() > 1 {
        return Ok(());
    }
    Err(Failure::new(format!("{kid} is the only active key of {}", key.account))
        .hint("activate another one first (signetctl key activate); or --force"))
}

fn state(key: &KeyRecord) -> &'static str {
    match key.state {
        KeyState::Prepared => "prepared",
        KeyState::Active => "active",
        KeyState::Retired => "retired",
    }
}

fn json(config: &Config, key: &KeyRecord) -> serde_json::Value {
    json!({
        "kid": key.kid, "account": key.account, "algorithm": key.algorithm, "device": key.device, "locator": key.locator,
        "state": key.state, "bits": key.public_key.bits(), "thumbprint": key.public_key.thumbprint(),
        "created": date(at(key.created)), "activated": key.activated.map(at).map(date), "retired": key.retired.map(at).map(date),
        "certificate": config.state_dir.certificate(&key.kid), "expires": expiry(config, &key.kid).map(date),
    })
}

/// When a key's certificate ends, where it has one.
pub(in crate::ctl) fn expiry(config: &Config, kid: &KeyId) -> Option<SystemTime> {
    let pem = fs::read_to_string(config.state_dir.certificate(kid)).ok()?;
    certificate::validity(&pem).ok().map(|(_not_before, not_after)| not_after)
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds)
}
