//! `signetctl doctor`: everything that would keep Signet from working, and how to mend it.

mod clients;

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use nix::unistd::getgroups;
use serde::{Deserialize, Serialize};

use super::failure::Failure;
use super::{Global, client, device, key, status};
use crate::config::Config;
use crate::device::{DeviceConfig, DeviceKind, Pkcs11Config};
use crate::jwt::certificate;
use crate::key::DeviceName;
use crate::keyring::{KeyState, Keyring};
use crate::proto::GetStatusResponse;
use crate::users;

/// Look for everything that would keep Signet from working, and say how to mend it
///
/// Run it as the user of signetd, or as root. It changes nothing; it logs in to each device once, unless its PIN was refused
/// before. Exit code 1 where something must be mended.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sudo -u signet signetctl doctor
  sudo signetctl doctor --user app")]
pub(crate) struct Options {
    /// Only this device and its keys
    #[arg(long, value_name = "NAME")]
    device: Option<DeviceName>,
    /// Only what would keep this user's programs from tokens
    #[arg(long, value_name = "USER", conflicts_with = "device")]
    user: Option<String>,
}

/// One thing that was looked at.
#[derive(Debug, Deserialize, Serialize)]
struct Finding {
    ok: bool,
    what: String,
    #[serde(rename = "try")]
    remedy: Option<String>,
}

impl Finding {
    fn good(what: impl ToString) -> Self {
        Self { ok: true, what: what.to_string(), remedy: None }
    }

    fn bad(what: impl ToString, remedy: impl ToString) -> Self {
        Self { ok: false, what: what.to_string(), remedy: Some(remedy.to_string()) }
    }

    fn failed(failure: &Failure) -> Self {
        Self { ok: false, what: failure.to_string(), remedy: failure.remedy().map(str::to_owned) }
    }
}

pub(crate) fn run(options: Options, global: &Global) -> Result<(), Failure> {
    let mut report = Report { global, findings: Vec::new() };
    match (global.load(), options.device, options.user) {
        (Err(failure), None, None) => of_client(&mut report, &failure)?,
        (Err(failure), ..) => report.add([Finding::failed(&failure)])?,
        (Ok(config), Some(name), _) => report.add(of_device(global, &config, &name)?)?,
        (Ok(config), None, Some(user)) => report.add(clients::of_user(&config, &user)?)?,
        (Ok(config), None, None) => of_everything(&mut report, &config)?,
    }
    report.end()
}

/// What was found so far. A person sees each thing at once; a program gets all of them at the end.
struct Report<'a> {
    global: &'a Global,
    findings: Vec<Finding>,
}

impl Report<'_> {
    fn add(&mut self, findings: impl IntoIterator<Item = Finding>) -> Result<(), Failure> {
        for finding in findings {
            if !self.global.json {
                let line = match &finding.remedy {
                    None => format!("ok    {}", finding.what),
                    Some(remedy) => format!("MEND  {}\n      try: {remedy}", finding.what),
                };
                self.global.show(&finding, line)?;
            }
            self.findings.push(finding);
        }
        Ok(())
    }

    fn end(self) -> Result<(), Failure> {
        if self.global.json {
            self.global.show(&self.findings, "")?;
        }
        match self.findings.iter().filter(|finding| !finding.ok).count() {
            0 => Ok(()),
            1 => Err(Failure::new("one thing must be mended")),
            ill => Err(Failure::new(format!("{ill} things must be mended"))),
        }
    }
}

fn of_everything(report: &mut Report<'_>, config: &Config) -> Result<(), Failure> {
    let global = report.global;
    report.add([Finding::good(format!("configuration {}", config.path.display()))])?;
    report.add(of_state(config))?;
    for device in &config.devices {
        report.add(of_tpm_access(device))?;
        // A process of its own: each module may want another environment, and a module that crashes takes only that with it.
        report.add(in_process(global, &device.name))?;
    }
    report.add(of_keyring(config))?;
    report.add(of_policy(config))?;
    report.add(of_socket(&global.socket().unwrap_or_else(|_| config.listen.grpc.clone()), config))?;
    report.add(config.listen.http.into_iter().flat_map(clients::of_http))
}

/// What can be told without the configuration: where it is wrong, or is not the caller's to read.
fn of_client(report: &mut Report<'_>, failure: &Failure) -> Result<(), Failure> {
    let global = report.global;
    let file = global.config.display();
    let private = global.is_private();
    let configuration = if private {
        Finding::good(format!("configuration {file}: the operator's, and not looked at"))
    } else {
        Finding::failed(failure)
    };
    report.add([configuration])?;
    let socket = match global.socket() {
        Ok(socket) => socket,
        // Where the file is what is wrong, that was said.
        Err(_) if private => {
            return report
                .add([Finding::bad("where signetd listens is not known", "--socket PATH, as its operator says")]);
        }
        Err(_) => return Ok(()),
    };
    let daemon = match status::daemon(&socket) {
        Ok(daemon) => daemon,
        Err(failure) => return report.add([Finding::failed(&failure)]),
    };
    report.add(status::older(global, &daemon).map(|(what, remedy)| Finding::bad(what, remedy)))?;
    report.add(of_health(&socket, &daemon))?;
    if private {
        report.add([clients::of_caller(global)])?;
        report.add(clients::of_named())?;
    }
    Ok(())
}

fn in_process(global: &Global, device: &DeviceName) -> Vec<Finding> {
    let run = || -> Result<Vec<Finding>, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let output = Command::new(program)
            .arg("--config")
            .arg(&global.config)
            .args(["--json", "doctor", "--device", device.as_str()])
            .output()
            .map_err(|error| error.to_string())?;
        serde_json::from_slice(&output.stdout).map_err(|_no_json| {
            format!("looking at it ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())
        })
    };
    run().unwrap_or_else(|what| {
        vec![Finding::bad(format!("device {device}: {what}"), "whether its PKCS#11 module works with another program")]
    })
}

fn of_state(config: &Config) -> Vec<Finding> {
    let path = config.state_dir.display();
    let Ok(metadata) = fs::metadata(&config.state_dir) else {
        return vec![Finding::bad(
            format!("there is no state folder {path}, or it can't be reached"),
            format!("signetctl device init makes it; or install -d -m 0700 -o signet {path}"),
        )];
    };
    if metadata.mode() & 0o077 != 0 {
        let what = format!("others may look into the state folder {path} (mode {:04o})", metadata.mode() & 0o7777);
        return vec![Finding::bad(what, format!("chmod 0700 {path}"))];
    }
    vec![match key::owned(config) {
        Ok(()) => Finding::good(format!("state folder {path}")),
        Err(failure) => Finding::failed(&failure),
    }]
}

/// Whether we may use the kernel's TPM devices, for a TPM that is reached by them.
fn of_tpm_access(device: &DeviceConfig) -> Vec<Finding> {
    let DeviceKind::Tpm(tpm) = &device.kind else { return Vec::new() };
    let path = tpm.tcti.strip_prefix("device:").unwrap_or(&tpm.tcti);
    if path != "device" && !path.starts_with("/dev/") {
        return Vec::new();
    }
    let present = tpm_devices();
    let names = present.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    if present.is_empty() {
        return vec![Finding::bad(
            format!("device {}: this machine has no /dev/tpm*", device.name),
            "switch the TPM on in the firmware's setup",
        )];
    }
    let path = if path == "device" { present.first().cloned().unwrap_or_default() } else { PathBuf::from(path) };
    let name = &device.name;
    match File::options().read(true).write(true).open(&path) {
        Ok(_) => vec![Finding::good(format!("device {name}: {} may be used (present: {names})", path.display()))],
        // The direct device may be opened once: busy is what it is while somebody uses it.
        Err(error) if error.kind() == ErrorKind::ResourceBusy => {
            vec![Finding::good(format!("device {name}: {} is in use", path.display()))]
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let what = format!("device {name}: there is no {}; present are {names}", path.display());
            vec![Finding::bad(what, "tcti = \"device\", which finds the only TPM under any number")]
        }
        Err(error) => {
            let is_member = |group: u32| getgroups().is_ok_and(|groups| groups.contains(&group.into()));
            let remedy = match users::gid("tss") {
                Ok(Some(group)) if !is_member(group) => {
                    "be in the group tss: usermod -a -G tss USER, and log in again".to_owned()
                }
                _ => format!("look at ls -l {}", path.display()),
            };
            vec![Finding::bad(format!("device {name}: {}: {error}", path.display()), remedy)]
        }
    }
}

fn tpm_devices() -> Vec<PathBuf> {
    let entries = fs::read_dir("/dev").into_iter().flatten().flatten();
    let is_tpm = |name: &str| {
        name.strip_prefix("tpmrm")
            .or_else(|| name.strip_prefix("tpm"))
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let mut paths: Vec<_> =
        entries.filter(|entry| entry.file_name().to_str().is_some_and(is_tpm)).map(|entry| entry.path()).collect();
    // tpmrm0 stands before tpm0: it is the one to use.
    paths.sort_by(|a, b| b.cmp(a));
    paths
}

/// Opens a device, and compares the keys in it with the keyring.
fn of_device(global: &Global, config: &Config, name: &DeviceName) -> Result<Vec<Finding>, Failure> {
    let configured = device::prepare(global, config, name)?;
    let in_use = || status::daemon(&config.listen.grpc).is_ok_and(|daemon| daemon.serving);
    if matches!(configured.kind, DeviceKind::Tpm(_)) && in_use() {
        // Without a resource manager, two that use one TPM throw out each other's keys. A daemon that can't sign loses nothing.
        return Ok(vec![Finding::good(format!("device {name}: in the hands of signetd, and left alone"))]);
    }
    let mut opened = match device::open(global, config, name, None) {
        Ok(opened) => opened,
        Err(failure) => return Ok(vec![Finding::failed(&failure)]),
    };
    let mut findings = vec![Finding::good(format!("device {name}: open"))];
    if let DeviceKind::Pkcs11(Pkcs11Config { files: None, .. }) = &configured.kind {
        let what = "its module may open all files that signetd's user may; `files` would say which";
        findings.push(Finding::good(format!("device {name}: {what}")));
    }
    let keyring = match Keyring::load(&config.state_dir) {
        Ok(keyring) => keyring,
        Err(error) => {
            findings.push(Finding::failed(&Failure::from(error).context(format!("the keys of {name}"))));
            return Ok(findings);
        }
    };
    for key in keyring.keys.iter().filter(|key| key.device == *name) {
        let kid = &key.kid;
        findings.push(match opened.public_key(&key.locator) {
            Ok(public_key) if public_key == key.public_key => Finding::good(format!("key {kid}: in {name}")),
            Ok(_) => Finding::bad(
                format!("key {kid}: {name} holds another key in its place"),
                "find the right token or TPM; never change the keyring to match",
            ),
            Err(failure) if opened.is_silent() => Finding::failed(&failure.context(format!("key {kid}"))),
            Err(failure) => Finding::bad(
                format!("key {kid}: {failure}"),
                format!("find the right token or TPM; or, where that is lost: signetctl key delete {kid} --forget"),
            ),
        });
    }
    Ok(findings)
}

fn of_keyring(config: &Config) -> Vec<Finding> {
    let keyring = match Keyring::load(&config.state_dir) {
        Ok(keyring) => keyring,
        Err(error) => return vec![Finding::failed(&error.into())],
    };
    let mut findings = Vec::new();
    for key in &keyring.keys {
        let kid = &key.kid;
        if config.device(&key.device).is_none() {
            findings.push(Finding::bad(
                format!("key {kid}: its device {} is not configured", key.device),
                format!("add it to {}", config.path.display()),
            ));
        }
        if config.policy.account(&key.account).is_none() {
            findings.push(Finding::bad(
                format!("key {kid}: its account {} is not configured", key.account),
                format!("add it to {}", config.path.display()),
            ));
        }
        let pem = fs::read_to_string(config.state_dir.certificate(kid)).ok();
        let certified = pem.as_deref().and_then(|pem| certificate::public_key(pem).ok());
        let issue = format!("signetctl key certificate {kid}; then upload it to Google again");
        if certified.as_ref() != Some(&key.public_key) {
            findings.push(Finding::bad(format!("key {kid}: its certificate is missing, or is another key's"), issue));
        } else if key.state != KeyState::Retired && status::expiry_note(config, kid).1 {
            findings.push(Finding::bad(
                format!("key {kid}: its certificate ends at {}", status::expiry_note(config, kid).0),
                issue,
            ));
        }
    }
    for account in config.policy.accounts() {
        if keyring.active(&account.email).is_empty() {
            findings.push(Finding::bad(
                format!("account {}: no active key", account.email),
                "signetctl key generate, or key activate",
            ));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::good(format!("keyring of {} keys, with their certificates", keyring.keys.len())));
    }
    findings
}

fn of_policy(config: &Config) -> Vec<Finding> {
    let rules = config.policy.rules();
    let unused = config
        .policy
        .accounts()
        .iter()
        .filter(|account| !rules.iter().any(|rule| rule.accounts.contains(&account.email)));
    let mut findings: Vec<_> = unused
        .map(|account| {
            Finding::bad(
                format!("account {}: no rule lets anybody use it", account.email),
                format!("add an [[allow]] to {}", config.path.display()),
            )
        })
        .collect();
    if findings.is_empty() {
        findings.push(Finding::good(format!("{} rules", rules.len())));
    }
    findings
}

fn of_socket(socket: &Path, config: &Config) -> Vec<Finding> {
    let daemon = match status::daemon(socket) {
        Ok(daemon) => daemon,
        Err(failure) => return vec![Finding::failed(&failure)],
    };
    let difference = status::difference(config, &daemon).map(|(what, remedy)| Finding::bad(what, remedy));
    difference.into_iter().chain(of_health(socket, &daemon)).collect()
}

/// How the daemon says that it is and its devices are.
fn of_health(socket: &Path, daemon: &GetStatusResponse) -> Vec<Finding> {
    let socket = socket.display();
    let ill = daemon.devices.iter().filter(|device| !device.cause.is_empty());
    let devices =
        ill.map(|told| Finding::bad(format!("device {}, by signetd: {}", told.name, told.cause), &told.remedy));
    let health = match (daemon.serving, daemon.cause.is_empty()) {
        (true, _) => Finding::good(format!("signetd serves at {socket}")),
        (false, true) => Finding::bad(
            format!("signetd is up at {socket}, but no account can sign"),
            format!("mend what stands above; {}", client::LOG),
        ),
        (false, false) => Finding::bad(format!("signetd is up at {socket}, but {}", daemon.cause), &daemon.remedy),
    };
    devices.chain([health]).collect()
}
