//! `signetctl device`: sets devices up and looks at them, and opens them for the other provisioning commands.

mod opened;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::mpsc;
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Subcommand;
use serde_json::json;
use zeroize::Zeroizing;

use self::opened::Patience;
pub(crate) use self::opened::{Leftover, OpenDevice};
use super::failure::{Failure, explained};
use super::{Global, table};
use crate::config::Config;
use crate::device::{
    self, DeviceConfig, DeviceError, DeviceKind, Pin, QUIET_TSS, TokenSelector, TpmConfig, TpmParent, latch,
};
use crate::file;
use crate::key::DeviceName;

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// Make a device ready for its first key
    ///
    /// PKCS#11: initialises a fresh token of the configured label with the PIN of its pin_file; refused where a token of
    /// that label exists. TPM: makes the storage key that will be the parent of all keys persistent, and records its name.
    #[command(after_help = "Example:\n  signetctl device init hsm")]
    Init {
        /// The device's name in the configuration
        name: DeviceName,
        /// For `signetctl init`, which takes its configuration back where this fails
        #[arg(long, hide = true)]
        anew: bool,
    },
    /// List the configured devices
    #[command(after_help = "Example:\n  signetctl device list")]
    List,
    /// Show what a device is and can do: mechanisms, sizes, limits, lock-out state
    #[command(after_help = "Example:\n  signetctl device show hsm")]
    Show {
        /// The device's name in the configuration
        name: DeviceName,
    },
    /// Allow a device to be logged in to again, after its PIN was refused
    ///
    /// A PIN is tried once: tokens lock after a few wrong ones. Put the right PIN into the pin_file first.
    #[command(after_help = "Example:\n  signetctl device unlatch hsm")]
    Unlatch {
        /// The device's name in the configuration
        name: DeviceName,
        /// Try the very PIN again that was refused
        #[arg(long)]
        force: bool,
    },
}

pub(crate) fn run(command: DeviceCommand, global: &Global) -> Result<(), Failure> {
    let config = global.load()?;
    match command {
        DeviceCommand::Init { name, anew } => init(global, &config, &name, anew),
        DeviceCommand::List => list(global, &config),
        DeviceCommand::Show { name } => show(global, &config, &name),
        DeviceCommand::Unlatch { name, force } => unlatch(global, &config, &name, force),
    }
}

/// Opens a device for provisioning.
pub(crate) fn open(
    global: &Global,
    config: &Config,
    name: &DeviceName,
    persistent: Option<bool>,
) -> Result<OpenDevice, Failure> {
    let device = prepare(global, config, name)?;
    OpenDevice::open(global, device, persistent)?.map_err(|error| unusable(error, device, config, false))
}

/// What an error of a device means, where it could not be opened. `anew`: for `init`, see [`mend`].
fn unusable(error: DeviceError, device: &DeviceConfig, config: &Config, anew: bool) -> Failure {
    let (name, mend) = (&device.name, mend(device, config, anew));
    match (error, &device.kind) {
        (error @ DeviceError::Away(_), DeviceKind::Tpm(tpm)) => {
            let remedy = match tpm.tcti.split_once(':') {
                Some(("device", path)) if !Path::new(path).exists() => {
                    "ls /dev/tpm* shows the TPMs of this machine; where it has none, switch it on in the firmware's setup"
                }
                _ if tpm.tcti.starts_with("device") => {
                    "be in the group that may use it (ls -l /dev/tpm*; usermod -a -G tss USER)"
                }
                _ => "start it",
            };
            explained(error, name).hint(format!("{remedy}; or {mend}"))
        }
        (error @ DeviceError::Misconfigured(_), DeviceKind::Tpm(TpmConfig { parent: None, .. })) if !anew => {
            explained(error, name).hint(format!("signetctl device init {name}; or {mend}"))
        }
        (error @ DeviceError::Misconfigured(_), _) => {
            explained(error, name).hint(format!("{mend}, or the file or token that it names"))
        }
        // Before any key is looked for, it is the storage key that is missing or another one.
        (error @ DeviceError::Permanent(_), DeviceKind::Tpm(_)) => explained(error, name).hint(format!(
            "put the old TPM back; or, where it was replaced or cleared on purpose and its keys are lost: rm {}; signetctl device init {name}; reload signetd; signetctl key generate --device {name}",
            config.state_dir.parent(name).display()
        )),
        (other, _) => explained(other, name),
    }
}

/// The same, where it could not be made ready: what is misconfigured is bad input then.
fn not_made(error: DeviceError, device: &DeviceConfig, config: &Config, anew: bool) -> Failure {
    let mend = mend(device, config, anew);
    match error {
        DeviceError::Misconfigured(what) if anew => Failure::usage(what).hint(mend),
        DeviceError::Misconfigured(what) => Failure::usage(what)
            .hint(format!("{mend}; what is initialised already needs no init: signetctl device show {}", device.name)),
        other => unusable(other, device, config, anew),
    }
}

/// How a device is configured otherwise. `anew`: by `init`, which takes back the configuration that it has written.
fn mend(device: &DeviceConfig, config: &Config, anew: bool) -> String {
    match device.kind {
        DeviceKind::Pkcs11(_) if anew => "signetctl init again, with another --token or --pkcs11".to_owned(),
        DeviceKind::Tpm(_) if anew => "signetctl init again, with another --tpm".to_owned(),
        _ => format!("correct the [[device]] {} in {}", device.name, config.path.display()),
    }
}

/// Finds a device and takes its environment: what must come before anything is read, asked or changed.
pub(crate) fn prepare<'a>(global: &Global, config: &'a Config, name: &DeviceName) -> Result<&'a DeviceConfig, Failure> {
    let device = find(config, name)?;
    // Whoever opens a device writes its latch.
    super::key::owned(config)?;
    take_environment(global, device)?;
    Ok(device)
}

/// The configured device of a name.
fn find<'a>(config: &'a Config, name: &DeviceName) -> Result<&'a DeviceConfig, Failure> {
    config.device(name).ok_or_else(|| {
        let names: Vec<_> = config.devices.iter().map(|device| device.name.as_str()).collect();
        Failure::usage(format!("there is no device {name} in {}", config.path.display()))
            .hint(format!("one of: {}", names.join(", ")))
    })
}

/// Initialises the device of a name.
fn init(global: &Global, config: &Config, name: &DeviceName, anew: bool) -> Result<(), Failure> {
    let device = prepare(global, config, name)?;
    let _lock = super::key::lock(global, config)?;
    match &device.kind {
        DeviceKind::Pkcs11(_) => {
            let so_pin_file = so_pin_file(device.pin_file().unwrap_or(&config.path), name);
            let path = so_pin_file.clone();
            let so_pin = move || {
                secret_file(&path).map_err(|failure| DeviceError::Misconfigured(failure.to_string()))?;
                Pin::read(&path)
            };
            let initialised = initialise(global, device, format!("Initialising the token of {name}"), so_pin)
                .and_then(|answer| answer.map_err(|error| not_made(error, device, config, anew)));
            initialised.map_err(|failure| match so_pin_file.exists() {
                true => failure
                    .aftermath(format!("the token may have the security officer's PIN in {}", so_pin_file.display())),
                false => failure,
            })?;
            global.note(format!(
                "The token is ready. Its security officer's PIN stands in {}: keep it somewhere safe, off this machine.",
                so_pin_file.display()
            ));
            let json = json!({ "device": name, "kind": "pkcs11", "so_pin_file": so_pin_file });
            global.show(&json, format!("{name}: initialised"))
        }
        DeviceKind::Tpm(_) => {
            let path = config.state_dir.parent(name);
            let no_pin = || Err(DeviceError::Misconfigured("a TPM has no security officer".to_owned()));
            let parent = initialise(global, device, format!("Making the parent key in {name}"), no_pin)?;
            let parent = parent.map_err(|error| not_made(error, device, config, anew))?;
            let parent = parent.ok_or_else(|| Failure::new("the TPM told no parent key"))?;
            let written = serde_json::to_vec_pretty(&parent).map_err(io::Error::from).and_then(|json| {
                file::private_folder(path.parent().unwrap_or(&config.state_dir))?;
                file::replace(&path, &json)
            });
            written.map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
            let json = json!({ "device": name, "kind": "tpm", "parent": parent });
            global.show(&json, format!("{name}: parent {:#x}, name {}", parent.handle, parent.name))
        }
    }
}

/// Has a device initialised. The outer error: it did not answer.
fn initialise(
    global: &Global,
    device: &DeviceConfig,
    doing: String,
    so_pin: impl FnOnce() -> Result<Pin, DeviceError> + Send + 'static,
) -> Result<Result<Option<TpmParent>, DeviceError>, Failure> {
    let (tell, told) = mpsc::channel();
    let config = device.clone();
    thread::spawn(move || tell.send(device::init(&config, so_pin)));
    let patience = Patience::with(global, device);
    patience.wait(&told, patience.several(), &doing)
}

/// Where the PIN of a token's security officer stands: beside its user's PIN.
pub(crate) fn so_pin_file(pin_file: &Path, name: impl std::fmt::Display) -> PathBuf {
    pin_file.with_file_name(format!("{name}.so-pin"))
}

fn list(global: &Global, config: &Config) -> Result<(), Failure> {
    let mut rows = vec![["NAME", "KIND", "WHERE", "STATE"].map(str::to_owned).to_vec()];
    let mut entries = Vec::new();
    for device in &config.devices {
        let (kind, place) = place(device);
        let state = state(device);
        rows.push(vec![device.name.to_string(), kind.to_owned(), place.clone(), state.to_string()]);
        entries.push(json!({ "name": device.name, "kind": kind, "where": place, "state": state }));
    }
    global.show(&entries, table(&rows))
}

/// The kind of a device, and where it is, in a few words.
pub(crate) fn place(device: &DeviceConfig) -> (&'static str, String) {
    match &device.kind {
        DeviceKind::Pkcs11(pkcs11) => {
            let token = match &pkcs11.token {
                TokenSelector::Label(label) => format!("token {label:?}"),
                TokenSelector::Serial(serial) => format!("serial {serial:?}"),
                TokenSelector::Slot(slot) => format!("slot {slot:#x}"),
            };
            ("pkcs11", format!("{token} of {}", pkcs11.module.display()))
        }
        DeviceKind::Tpm(tpm) => ("tpm", tpm.tcti.clone()),
    }
}

/// The state of a device of which nothing bad is known.
pub(crate) const CONFIGURED: &str = "configured";

/// What is known of a device without opening it.
pub(crate) fn state(device: &DeviceConfig) -> Cow<'static, str> {
    let pinned = !matches!(&device.kind, DeviceKind::Tpm(tpm) if tpm.parent.is_none());
    match latch::look(&device.latch_file) {
        Err(DeviceError::PinRefused(_)) => format!("PIN refused: signetctl device unlatch {}", device.name).into(),
        _ if pinned => CONFIGURED.into(),
        _ => format!("not initialised: signetctl device init {}", device.name).into(),
    }
}

fn show(global: &Global, config: &Config, name: &DeviceName) -> Result<(), Failure> {
    let description = open(global, config, name, None)?.describe()?;
    let json: BTreeMap<_, _> = description.0.iter().map(|(name, value)| (name, value)).collect();
    let rows: Vec<_> = description.0.iter().map(|(name, value)| vec![name.clone(), value.clone()]).collect();
    global.show(&json, table(&rows))
}

fn unlatch(global: &Global, config: &Config, name: &DeviceName, force: bool) -> Result<(), Failure> {
    let device = find(config, name)?;
    super::key::owned(config)?;
    let pin_file = device.pin_file();
    let pin = match pin_file {
        Some(_) if force => None,
        Some(pin_file) => Some(Pin::read(pin_file).map_err(|error| explained(error, name))?),
        None => None,
    };
    let was_closed = latch::clear(&device.latch_file, pin.as_ref(), force).map_err(|error| match error {
        DeviceError::PinRefused(why) => {
            let pin_file = pin_file.unwrap_or(Path::new("the pin_file")).display();
            Failure::new(format!("{name} stays latched: {why}"))
                .hint(format!("make sure that {pin_file} holds the right PIN; signetctl device unlatch {name} --force has it tried even where it may be a refused one"))
        }
        other => explained(other, name),
    })?;
    let text = if was_closed { "unlatched; signetd tries the PIN again within seconds" } else { "was not latched" };
    global.show(&json!({ "device": name, "was_latched": was_closed }), format!("{name}: {text}"))
}

/// Makes a file of a new random secret, mode 0600; false where there is one already.
pub(crate) fn secret_file(path: &Path) -> Result<bool, Failure> {
    let mut random = Zeroizing::new([0_u8; 24]);
    aws_lc_rs::rand::fill(random.as_mut_slice()).map_err(|_unspecified| Failure::new("no random numbers"))?;
    let secret = Zeroizing::new(URL_SAFE_NO_PAD.encode(random.as_slice()) + "\n");
    file::create_new(path, secret.as_bytes()).map_err(|error| {
        Failure::new(format!("{}: {error}", path.display()))
            .hint("run it as the owner of its folder, usually with sudo; or another place with --config")
    })
}

/// Starts this program again with exactly the environment that the device's module is to have, unless it has it already.
/// A process may not change its own environment safely, and a module must not see more than it was given.
fn take_environment(global: &Global, device: &DeviceConfig) -> Result<(), Failure> {
    let pkcs11 = match &device.kind {
        DeviceKind::Pkcs11(pkcs11) => pkcs11,
        DeviceKind::Tpm(_) if env::var_os(QUIET_TSS.0).is_none() => {
            return Err(again(global, |command| command.env(QUIET_TSS.0, QUIET_TSS.1)));
        }
        DeviceKind::Tpm(_) => return Ok(()),
    };
    let Some(wanted) = &pkcs11.environment else { return Ok(()) };
    let wanted: BTreeMap<OsString, OsString> = wanted.iter().map(|(name, value)| (name.into(), value.into())).collect();
    if env::vars_os().collect::<BTreeMap<_, _>>() == wanted {
        return Ok(());
    }
    Err(again(global, |command| command.env_clear().envs(wanted)))
}

/// Starts this program again with another environment. It returns only where that fails.
fn again(global: &Global, environment: impl FnOnce(&mut process::Command) -> &mut process::Command) -> Failure {
    let program = match env::current_exe() {
        Ok(program) => program,
        Err(error) => return Failure::new(error),
    };
    let mut command = process::Command::new(program);
    command.args([OsString::from("--config"), global.config.clone().into()]).args(env::args_os().skip(1));
    let error = environment(&mut command).exec();
    Failure::new(format!("starting again with the environment of the device: {error}"))
}
