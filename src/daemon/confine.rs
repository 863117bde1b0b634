//! What the daemon process itself may still open once it meets callers: its own files, and no device, PIN, module or token.

use std::fs;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::device::DeviceKind;
use crate::sandbox::{self, Files, Kept};

/// Gives up everything that serving callers does not need, for the calling thread and all that it starts; of ports it may bind
/// this one alone. What the kernel does not support is told to the log.
pub fn confine(config: &Config, port: Option<u16>) {
    if config.policy.sought().executables.is_empty() {
        tell_secrets_within_reach(config);
        match sandbox::close_files(&files(config, port)) {
            Ok(Kept::All) => {}
            Ok(Kept::Part) => {
                tracing::info!("this kernel's landlock keeps files closed, but not all that newer ones do");
            }
            Ok(Kept::Nothing) => {
                tracing::warn!("this kernel has no landlock: signetd could open more files than it needs");
            }
            Err(error) => tracing::warn!(%error, "signetd could open more files than it needs"),
        }
    } else {
        tracing::warn!(
            "rules by executable look into other processes, which landlock forbids: signetd could open more files than it needs"
        );
    }
    for device in config.devices.iter().filter(|device| !device.sandbox) {
        tracing::warn!(device = %device.name, r#"sandbox = "off": the device process may open and call what it likes"#);
    }
    if let Err(error) = sandbox::close_calls() {
        tracing::warn!(%error, "signetd could make more system calls than it needs");
    }
}

fn files(config: &Config, port: Option<u16>) -> Files<PathBuf> {
    let connect = !config.exchanges.is_empty();
    // To find a token endpoint's address, for those who opted in.
    let resolver = connect.then(sandbox::resolver).into_iter().flatten();
    let read = sandbox::LIBRARIES.iter().chain(&CALLERS).map(PathBuf::from).chain(resolver).collect();
    Files { read, write: config.written().map(Path::to_owned).into(), connect, bind: Some(port.into_iter().collect()) }
}

/// Files that hold what only devices may know.
fn secrets(config: &Config) -> Vec<&Path> {
    config
        .devices
        .iter()
        .flat_map(|device| match &device.kind {
            DeviceKind::Pkcs11(pkcs11) => [pkcs11.pin_file.as_deref(), None],
            DeviceKind::Tpm(tpm) => [tpm.pin_file.as_deref(), tpm.owner_auth_file.as_deref()],
        })
        .flatten()
        .collect()
}

fn tell_secrets_within_reach(config: &Config) {
    for secret in secrets(config) {
        if let Some(folder) = config.written().into_iter().find(|folder| lies_in(secret, folder)) {
            tracing::warn!(secret = %secret.display(), folder = %folder.display(), "signetd itself needs this folder, so it could read the secret in it: keep it elsewhere");
        }
    }
}

fn lies_in(file: &Path, folder: &Path) -> bool {
    match (fs::canonicalize(file), fs::canonicalize(folder)) {
        (Ok(file), Ok(folder)) => file.starts_with(folder),
        // What is not there to be told is taken for the worse.
        _ => true,
    }
}

/// A caller's unit, and users and groups where systemd has them.
const CALLERS: [&str; 2] = ["/proc", "/run/systemd/userdb"];
