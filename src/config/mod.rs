//! The configuration, valid by construction: [`Config::load`] is the only way to one.
//!
//! `file` is the TOML as it is written, `devices` and `rules` make sense of it, `credentials` finds secrets (never
//! reads them). Nothing here runs anything.

mod credentials;
mod devices;
mod exchange;
mod file;
mod http;
mod rules;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use crate::access::{AccountEmail, Policy};
pub use crate::audit::{Fsync, Rotation};
use crate::device::{DeviceConfig, DeviceKind};
use crate::file::StateDir;
use crate::key::{DeviceName, sha256};
use crate::trust::{self, Untrusted};
use crate::users;
use credentials::Folders;
pub use exchange::Exchange;
pub use file::span_of_time;
use file::{File, Principal, Source};

/// Everything that `signetd` and `signetctl` are told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it came from.
    pub path: PathBuf,
    /// The SHA-256 of what stood there, in hexadecimal.
    pub sha256: String,
    /// Where keyring, certificates, latches and the audit log stand.
    pub state_dir: StateDir,
    /// Where it listens.
    pub listen: Listen,
    /// The devices, as they are written.
    pub devices: Vec<DeviceConfig>,
    /// Accounts and rules, compiled.
    pub policy: Policy,
    /// The token endpoints of those accounts that have one.
    pub exchanges: BTreeMap<AccountEmail, Exchange>,
    /// The audit log.
    pub audit: Audit,
    /// What the metadata server tells besides accounts, by its path below `/computeMetadata/v1/`.
    pub metadata: BTreeMap<String, String>,
    /// How many minted JWTs are kept; 0: none.
    pub cache_entries: usize,
    /// How long verifiers may keep public keys.
    pub max_client_cache_time: Duration,
}

/// Where the daemon listens: the gRPC socket, and the port for HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Its path, at most 107 bytes.
    pub grpc: PathBuf,
    /// Its mode.
    pub mode: u32,
    /// Its group.
    pub group: Option<u32>,
    /// The loopback address and port for HTTP, where it is on.
    pub http: Option<SocketAddr>,
    /// The issuer of the discovery document; absent: the default account's email.
    pub issuer: Option<String>,
}

/// The audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// Its file.
    pub path: PathBuf,
    /// When a record is synced to disk.
    pub fsync: Fsync,
    /// When it begins a new file.
    pub rotation: Rotation,
    /// The socket of the systemd journal that is told of every record.
    pub journal: Option<PathBuf>,
    /// None where it is not signed.
    pub checkpoints: Option<Checkpoints>,
}

/// How the audit log is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoints {
    /// After so many records.
    pub every: u64,
    /// Whose key signs.
    pub account: AccountEmail,
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the line and the field, and says what to do.
    pub fn load(named: &Path) -> Result<Self, ConfigError> {
        Self::load_by(named, |path| fs::read_to_string(path))
    }

    /// Checks a configuration file that `read` reads.
    ///
    /// # Errors
    /// [`ConfigError`], as [`Config::load`].
    pub fn load_by(named: &Path, read: impl FnOnce(&Path) -> io::Result<String>) -> Result<Self, ConfigError> {
        let (path, text) = text_of(named, read)?;
        let source = Source { path: &path, text: &text };
        let mut written: File = source.parse()?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY");
        let folders = Folders { credentials: credentials.as_deref(), config: folder };

        let state_dir =
            StateDir::new(folder.join(written.state_dir.as_deref().unwrap_or(Path::new(DEFAULT_STATE_DIR))));
        trust_state(&state_dir).map_err(|untrusted| distrust(&path, &untrusted))?;
        let exchanges = exchange::compile(source, folder, &mut written.account)?;
        let accounts = rules::accounts(source, written.account)?;
        let rules = rules::compile(source, &accounts, written.allow)?;
        let policy = Policy::new(accounts, rules);
        let config = Self {
            listen: Listen::new(source, folder, written.listen)?,
            devices: devices::compile(source, folders, &state_dir, written.device)?,
            audit: Audit::new(source, folder, &state_dir, &policy, written.audit)?,
            policy,
            exchanges,
            metadata: http::metadata(source, written.metadata)?,
            cache_entries: if written.cache.enabled { written.cache.entries.get() } else { 0 },
            max_client_cache_time: written.max_client_cache_time.map_or(DEFAULT_CACHE_TIME, |span| span.0),
            sha256: sha256(text.as_bytes()),
            state_dir,
            path,
        };
        config.stands_apart(named)?;
        Ok(config)
    }

    /// Reads only where the daemon listens: what a client may know that can't look at devices and secrets.
    ///
    /// # Errors
    /// [`ConfigError`], as [`Config::load`].
    pub fn listen(path: &Path) -> Result<Listen, ConfigError> {
        let (path, text) = text_of(path, |path| fs::read_to_string(path))?;
        let source = Source { path: &path, text: &text };
        let written: File = source.parse()?;
        Listen::new(source, path.parent().unwrap_or(Path::new("/")), written.listen)
    }

    /// The folders that the daemon writes to.
    #[must_use]
    pub fn written(&self) -> [&Path; 3] {
        let [audit, grpc] = [&self.audit.path, &self.listen.grpc].map(|file| file.parent().unwrap_or(Path::new("/")));
        [&self.state_dir, audit, grpc]
    }

    /// Refuses what a daemon that was taken over could change, and have its launcher start, which is not confined: this
    /// configuration, the modules, the files that their environment names, and this program.
    fn stands_apart(&self, named: &Path) -> Result<(), ConfigError> {
        let mut files: Vec<_> = [named, &self.path].into_iter().map(Path::to_owned).collect();
        files.extend(std::env::current_exe());
        for device in &self.devices {
            let DeviceKind::Pkcs11(pkcs11) = &device.kind else { continue };
            files.push(pkcs11.module.clone());
            let values = pkcs11.environment.iter().flat_map(BTreeMap::values);
            files.extend(
                values.flat_map(|value| value.split(':')).filter(|path| path.starts_with('/')).map(PathBuf::from),
            );
        }
        let written: Vec<_> = self.written().into_iter().filter_map(|folder| fs::canonicalize(folder).ok()).collect();
        for file in files {
            let places = trust::places(&file);
            let mut pairs = places.iter().rev().flat_map(|place| written.iter().map(move |folder| (place, folder)));
            let Some((place, folder)) = pairs.find(|(place, folder)| place.starts_with(folder)) else { continue };
            let way = if *place == file { String::new() } else { format!("on the way to {}, ", file.display()) };
            return Err(ConfigError {
                path: self.path.clone(),
                what: format!("{way}{} lies in {}, which signetd itself may write", place.display(), folder.display()),
                remedy: "give state_dir, and the files of listen.grpc and audit.path, folders of their own".to_owned(),
            });
        }
        Ok(())
    }

    /// The device of a name.
    #[must_use]
    pub fn device(&self, name: &DeviceName) -> Option<&DeviceConfig> {
        self.devices.iter().find(|device| device.name == *name)
    }
}

impl Audit {
    fn new(
        source: Source<'_>,
        folder: &Path,
        state_dir: &StateDir,
        policy: &Policy,
        written: file::Audit,
    ) -> Result<Self, ConfigError> {
        let checkpoints = checkpoints(source, &written, policy)?;
        let keep = written.keep.as_ref().map_or(DEFAULT_KEEP, |keep| *keep.get_ref());
        if let Some(written) = written.keep.filter(|_| !(1..=MOST_KEPT).contains(&keep)) {
            let remedy = format!("write a number from 1 to {MOST_KEPT}");
            return Err(source.wrong(written.span(), "audit.keep", format!("{keep} is out of range"), remedy));
        }
        Ok(Self {
            path: written.path.map_or_else(|| state_dir.audit_log(), |log| folder.join(log)),
            fsync: written.fsync,
            rotation: Rotation { max_size: written.max_size.map_or(DEFAULT_MAX_SIZE, |size| size.0), keep },
            journal: written.journal.map(|socket| folder.join(socket)),
            checkpoints,
        })
    }
}

/// How often the audit log is signed and for which account: one with whose keys no caller may sign whatever he likes.
fn checkpoints(source: Source<'_>, written: &file::Audit, policy: &Policy) -> Result<Option<Checkpoints>, ConfigError> {
    const FIELD: &str = "audit.checkpoint_account";
    let remedy = "name an [[account]] with which no rule allows sign-digest";
    let (every, account) = match (&written.checkpoint_every, &written.checkpoint_account) {
        (None, None) => return Ok(None),
        (None, Some(account)) => {
            return Err(source.wrong(account.span(), FIELD, "it signs nothing without checkpoint_every", "write both"));
        }
        (Some(every), account) => (every, account.as_ref()),
    };
    let place = account.map_or(every.span(), Spanned::span);
    let email = account.map(Spanned::get_ref).or(policy.default_account().map(|account| &account.email));
    let Some(email) = email.filter(|email| policy.account(email).is_some()) else {
        return Err(source.wrong(place, FIELD, "there is no such account, and no default one", remedy));
    };
    if policy.signs_digests(email) {
        let what = format!("a rule allows sign-digest with {email}, by which checkpoints could be forged");
        return Err(source.wrong(place, FIELD, what, remedy));
    }
    Ok(Some(Checkpoints { every: every.get_ref().get(), account: email.clone() }))
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}", path.display())]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong, with line and field where there is one.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl Listen {
    fn new(source: Source<'_>, folder: &Path, written: file::Listen) -> Result<Self, ConfigError> {
        let grpc = match written.grpc {
            None => PathBuf::from(DEFAULT_SOCKET),
            Some(path) => {
                let grpc = folder.join(path.get_ref());
                let length = grpc.as_os_str().as_bytes().len();
                if length > LONGEST_SOCKET_PATH {
                    let what = format!("{} is {length} bytes long; a socket's path has at most 107", grpc.display());
                    return Err(source.wrong(
                        path.span(),
                        "listen.grpc",
                        what,
                        "choose a shorter path, such as one in /run",
                    ));
                }
                grpc
            }
        };
        let mode = match &written.mode {
            None => DEFAULT_SOCKET_MODE,
            Some(mode) => {
                u32::from_str_radix(mode.get_ref(), 8).ok().filter(|mode| *mode <= 0o777).ok_or_else(|| {
                    let what = format!("{:?} is no mode", mode.get_ref());
                    source.wrong(mode.span(), "listen.mode", what, r#"write it in octal, such as "0660""#)
                })?
            }
        };
        let group = written.group.map(|group| gid(source, "listen.group", &group)).transpose()?;
        let http = written.http.map(|address| http::loopback(source, &address)).transpose()?;
        Ok(Self { grpc, mode, group, http, issuer: written.issuer })
    }
}

/// What stands in a file that nobody else can change, and its path without links.
fn text_of(path: &Path, read: impl FnOnce(&Path) -> io::Result<String>) -> Result<(PathBuf, String), ConfigError> {
    let (path, metadata) = trust::walk(path).map_err(|untrusted| match untrusted {
        Untrusted::Unreadable { source, .. } if source.kind() == io::ErrorKind::NotFound => ConfigError {
            path: path.to_owned(),
            what: "there is no such file".to_owned(),
            remedy: "signetctl init writes one; --config FILE or SIGNET_CONFIG names another".to_owned(),
        },
        other => distrust(path, &other),
    })?;
    let unusable = |what: String, remedy: &str| ConfigError { path: path.clone(), what, remedy: remedy.to_owned() };
    if !metadata.is_file() || metadata.len() > LONGEST_FILE {
        return Err(unusable("it is no file of at most 1 MiB".to_owned(), "name a configuration file with --config"));
    }
    let text =
        read(&path).map_err(|error| unusable(error.to_string(), "make it a UTF-8 text that this user can read"))?;
    Ok((path, text))
}

/// The state folder may be another user's, the daemon's: whoever writes there must be that user (see `signetctl`). There may
/// be none yet.
fn trust_state(state_dir: &Path) -> Result<(), Untrusted> {
    match trust::walk_to(state_dir) {
        Ok((real, metadata)) => trust::not_writable_by_others(&real, &metadata),
        Err(Untrusted::Unreadable { .. }) => Ok(()),
        Err(untrusted) => Err(untrusted),
    }
}

fn distrust(path: &Path, untrusted: &Untrusted) -> ConfigError {
    let what = match untrusted {
        Untrusted::Unreadable { path: unreadable, source } if unreadable == path => source.to_string(),
        other => other.to_string(),
    };
    ConfigError { path: path.to_owned(), what, remedy: untrusted.remedy() }
}

fn uid(source: Source<'_>, field: &str, user: &Spanned<Principal>) -> Result<u32, ConfigError> {
    principal(source, field, user, "user", users::uid)
}

fn gid(source: Source<'_>, field: &str, group: &Spanned<Principal>) -> Result<u32, ConfigError> {
    principal(source, field, group, "group", users::gid)
}

fn principal(
    source: Source<'_>,
    field: &str,
    written: &Spanned<Principal>,
    kind: &str,
    look_up: impl FnOnce(&str) -> io::Result<Option<u32>>,
) -> Result<u32, ConfigError> {
    let name = match written.get_ref() {
        Principal::Number(id) => return Ok(*id),
        Principal::Name(name) => name,
    };
    let wrong = |what: String| source.wrong(written.span(), field, what, format!("add the {kind}, or give a number"));
    match look_up(name) {
        Ok(Some(id)) => Ok(id),
        Ok(None) => Err(wrong(format!("there is no {kind} {name:?}"))),
        Err(error) => Err(wrong(format!("looking up the {kind} {name:?}: {error}"))),
    }
}

const DEFAULT_STATE_DIR: &str = "/var/lib/signet";
/// Where the daemon listens, unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/signet/signet.sock";
const DEFAULT_SOCKET_MODE: u32 = 0o660;
const DEFAULT_CACHE_TIME: Duration = Duration::from_secs(15 * 60);
const DEFAULT_MAX_SIZE: u64 = 64 << 20;
const DEFAULT_KEEP: u32 = 10;
const MOST_KEPT: u32 = 1000;
/// `sun_path` has 108 bytes with its final NUL (unix(7)).
const LONGEST_SOCKET_PATH: usize = 107;
const LONGEST_FILE: u64 = 1 << 20;
