//! `[[device]]`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::mem::discriminant;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;

use super::ConfigError;
use super::credentials::{self, Folders};
use super::file::{Device, Kind, Sandbox, Source};
use crate::device::{DeviceConfig, DeviceKind, Pkcs11Config, TpmConfig, TpmParent};
use crate::file::StateDir;
use crate::key::DeviceName;
use crate::trust::{self, Untrusted};

/// Every device, in the order in which they are written.
pub(super) fn compile(
    source: Source<'_>,
    folders: Folders<'_>,
    state_dir: &StateDir,
    written: Vec<Device>,
) -> Result<Vec<DeviceConfig>, ConfigError> {
    if written.is_empty() {
        let remedy = "add a [[device]]; docs/signet.toml shows one of each kind";
        return Err(source.wrong(0..0, "device", "there is none", remedy));
    }
    let mut devices: Vec<DeviceConfig> = Vec::new();
    for device in written {
        if devices.iter().any(|other| other.name == *device.name.get_ref()) {
            let what = format!("there are two devices named {}", device.name.get_ref());
            return Err(source.wrong(device.name.span(), "device.name", what, "give each a name of its own"));
        }
        let name = device.name.span();
        let device = one(Scope { source, folders }, state_dir, device)?;
        if let Some(other) = devices.iter().find(|other| may_be_one(other, &device)) {
            let what =
                format!("{} and {} may be one token: a wrong PIN would be tried by each", other.name, device.name);
            let remedy =
                "give one device more sessions; tell two tokens of one module apart both by label, or both by serial";
            return Err(source.wrong(name, "device.token", what, remedy));
        }
        devices.push(device);
    }
    Ok(devices)
}

fn one(scope: Scope<'_>, state_dir: &StateDir, device: Device) -> Result<DeviceConfig, ConfigError> {
    let name = device.name.get_ref().clone();
    let latch_file = state_dir.latch(&name);
    let call_limit = device.call_limit.as_ref().map_or(DEFAULT_CALL_LIMIT, |limit| limit.0);
    let queue = scope.count("device.queue", device.queue.as_ref(), DEFAULT_QUEUE, MOST_QUEUED)?;
    let sandbox = device.sandbox == Sandbox::On;
    let kind = match device.kind.get_ref() {
        Kind::Pkcs11 => DeviceKind::Pkcs11(scope.pkcs11(device)?),
        Kind::Tpm => DeviceKind::Tpm(scope.tpm(device, parent(state_dir, &name)?)?),
    };
    Ok(DeviceConfig { name, kind, call_limit, queue, latch_file, sandbox })
}

/// Whether two devices may be one token, as far as can be told without asking it: a label, a serial number and a slot may be
/// the same one's.
fn may_be_one(one: &DeviceConfig, other: &DeviceConfig) -> bool {
    let (DeviceKind::Pkcs11(one), DeviceKind::Pkcs11(other)) = (&one.kind, &other.kind) else { return false };
    let real = |module: &PathBuf| fs::canonicalize(module).unwrap_or_else(|_| module.clone());
    let is_told_apart = discriminant(&one.token) == discriminant(&other.token) && one.token != other.token;
    real(&one.module) == real(&other.module) && one.environment == other.environment && !is_told_apart
}

/// Where things were written and where files are looked up.
#[derive(Clone, Copy)]
struct Scope<'a> {
    source: Source<'a>,
    folders: Folders<'a>,
}

impl Scope<'_> {
    fn pkcs11(self, device: Device) -> Result<Pkcs11Config, ConfigError> {
        self.only_for_a("tpm", "tcti", device.tcti.as_ref())?;
        self.only_for_a("tpm", "owner_auth_file", device.owner_auth_file.as_ref())?;
        self.only_for_a("tpm", "session", device.session.as_ref())?;
        let kind = device.kind.span();
        let module = device.module.ok_or_else(|| {
            let remedy =
                r#"add it: the absolute path of the token's library, such as "/usr/lib/softhsm/libsofthsm2.so""#;
            self.source.wrong(kind.clone(), "device.module", "missing", remedy)
        })?;
        let token = device.token.ok_or_else(|| {
            let remedy = r#"add it: the token's label, "serial:…" or "slot:…"; pkcs11-tool --list-slots tells them"#;
            self.source.wrong(kind, "device.token", "missing", remedy)
        })?;
        Ok(Pkcs11Config {
            module: self.module(&module)?,
            token: token.into_inner().0,
            pin_file: self.secret("device.pin_file", device.pin_file.as_ref())?,
            sessions: self.count("device.sessions", device.sessions.as_ref(), DEFAULT_SESSIONS, MOST_SESSIONS)?,
            environment: device.environment.map(|written| self.environment(written)).transpose()?,
            files: device.files.map(|written| self.files(written, device.sandbox)).transpose()?,
            allow_final_pin_try: device.allow_final_pin_try.is_some_and(Spanned::into_inner),
        })
    }

    fn tpm(self, device: Device, parent: Option<TpmParent>) -> Result<TpmConfig, ConfigError> {
        self.only_for_a("pkcs11", "module", device.module.as_ref())?;
        self.only_for_a("pkcs11", "token", device.token.as_ref())?;
        self.only_for_a("pkcs11", "sessions", device.sessions.as_ref())?;
        self.only_for_a("pkcs11", "environment", device.environment.as_ref())?;
        self.only_for_a("pkcs11", "files", device.files.as_ref())?;
        self.only_for_a("pkcs11", "allow_final_pin_try", device.allow_final_pin_try.as_ref())?;
        let kind = device.kind.span();
        let remedy = r#"add it, such as "device:/dev/tpmrm0""#;
        let tcti = device.tcti.ok_or_else(|| self.source.wrong(kind, "device.tcti", "missing", remedy))?;
        if tcti.get_ref().is_empty() || tcti.get_ref().contains('\0') {
            return Err(self.source.wrong(
                tcti.span(),
                "device.tcti",
                "it names no TPM",
                remedy.replace("add", "correct"),
            ));
        }
        Ok(TpmConfig {
            tcti: tcti.into_inner(),
            pin_file: self.secret("device.pin_file", device.pin_file.as_ref())?,
            owner_auth_file: self.secret("device.owner_auth_file", device.owner_auth_file.as_ref())?,
            session: device.session.map(Spanned::into_inner).unwrap_or_default(),
            parent,
        })
    }

    fn only_for_a<T>(self, kind: &str, field: &str, written: Option<&Spanned<T>>) -> Result<(), ConfigError> {
        let Some(written) = written else { return Ok(()) };
        let what = format!("only a device of kind {kind:?} has it");
        Err(self.source.wrong(written.span(), &format!("device.{field}"), what, "remove it, or correct kind"))
    }

    /// A module runs inside of the device process with the PIN in reach: nobody else may be able to change it.
    fn module(self, written: &Spanned<PathBuf>) -> Result<PathBuf, ConfigError> {
        let module = written.get_ref();
        if !module.is_absolute() {
            let what = format!("{} is not an absolute path", module.display());
            return Err(self.source.wrong(written.span(), "device.module", what, "write the whole path, from /"));
        }
        match trust::walk(module) {
            Ok((_, metadata)) if !metadata.is_file() => {
                let what = format!("{} is no file", module.display());
                Err(self.source.wrong(written.span(), "device.module", what, "name the library itself"))
            }
            Ok(_) => Ok(module.clone()),
            Err(untrusted) => Err(self.distrust("device.module", written, &untrusted)),
        }
    }

    fn secret(self, field: &str, written: Option<&Spanned<PathBuf>>) -> Result<Option<PathBuf>, ConfigError> {
        let Some(written) = written else { return Ok(None) };
        credentials::locate(self.folders, written.get_ref())
            .map(Some)
            .map_err(|untrusted| self.distrust(field, written, &untrusted))
    }

    fn distrust<T>(self, field: &str, written: &Spanned<T>, untrusted: &Untrusted) -> ConfigError {
        self.source.wrong(written.span(), field, untrusted, untrusted.remedy())
    }

    fn count(
        self,
        field: &str,
        written: Option<&Spanned<usize>>,
        default: usize,
        most: usize,
    ) -> Result<usize, ConfigError> {
        let Some(written) = written else { return Ok(default) };
        match *written.get_ref() {
            count if (1..=most).contains(&count) => Ok(count),
            count => {
                let remedy = format!("choose 1 to {most}, or leave it out for {default}");
                Err(self.source.wrong(written.span(), field, format!("{count} is out of range"), remedy))
            }
        }
    }

    fn environment(self, written: Spanned<BTreeMap<String, String>>) -> Result<BTreeMap<String, String>, ConfigError> {
        let bad =
            |(name, value): (&String, &String)| name.is_empty() || name.contains(['=', '\0']) || value.contains('\0');
        if written.get_ref().iter().any(bad) {
            let what = "a name is empty or has \"=\" in it, or there is a NUL";
            return Err(self.source.wrong(written.span(), "device.environment", what, "correct the variable"));
        }
        Ok(written.into_inner())
    }

    fn files(self, written: Spanned<Vec<PathBuf>>, sandbox: Sandbox) -> Result<Vec<PathBuf>, ConfigError> {
        if sandbox == Sandbox::Off {
            let what = r#"nothing is closed to the module where sandbox = "off""#;
            return Err(self.source.wrong(written.span(), "device.files", what, "remove one of the two"));
        }
        Ok(written.into_inner().iter().map(|path| self.folders.config.join(path)).collect())
    }
}

/// What `signetctl device init` recorded about a TPM.
fn parent(state_dir: &StateDir, name: &DeviceName) -> Result<Option<TpmParent>, ConfigError> {
    let path = state_dir.parent(name);
    let what = match fs::read(&path) {
        Ok(text) => match serde_json::from_slice(&text) {
            Ok(parent) => return Ok(Some(parent)),
            Err(error) => error.to_string(),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => error.to_string(),
    };
    let remedy = format!("restore the file, or remove it and record the parent again: signetctl device init {name}");
    Err(ConfigError { path, what, remedy })
}

const DEFAULT_CALL_LIMIT: Duration = Duration::from_secs(10);
const DEFAULT_QUEUE: usize = 256;
const MOST_QUEUED: usize = 65_536;
const DEFAULT_SESSIONS: usize = 4;
const MOST_SESSIONS: usize = 256;
