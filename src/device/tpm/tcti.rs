//! Which TPM: the TCTI string of the configuration.

use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use tss_esapi::TctiNameConf;

use crate::device::DeviceError;

/// True where a resource manager stands between us and the TPM. It swaps loaded keys and sessions around every command,
/// so a persistent key costs the fewest TPM commands there; and it hides what other programs left in the TPM.
#[must_use]
pub fn behind_resource_manager(tcti: &str) -> bool {
    let (kind, configuration) = tcti.split_once(':').unwrap_or((tcti, ""));
    let manages =
        |path: &str| Path::new(path).file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"tpmrm"));
    match kind {
        "device" => configuration.is_empty() || manages(configuration),
        kind => kind == "tabrmd",
    }
}

/// What the library opens.
pub(super) fn name(tcti: &str) -> Result<TctiNameConf, DeviceError> {
    let (kind, configuration) = tcti.split_once(':').unwrap_or((tcti, ""));
    let unusable = |why: &str| {
        DeviceError::Misconfigured(format!(
            "tcti {tcti:?}: {why}; use device, device:/dev/tpmrm0, swtpm:host=HOST,port=PORT, mssim:host=HOST,port=PORT or tabrmd"
        ))
    };
    let known: &[&str] = match kind {
        "device" if configuration.is_empty() => {
            return parsed(&format!("device:{}", only_tpm(Path::new("/dev"))?.display()))
                .ok_or_else(|| unusable("unusable"));
        }
        "device" if configuration.starts_with('/') => &[],
        "device" => return Err(unusable("the path is not absolute")),
        "swtpm" | "mssim" => &["host", "port"],
        "tabrmd" => &["bus_name", "bus_type"],
        _ => return Err(unusable("unknown kind")),
    };
    // The library takes what it does not know for its defaults, and would sign on another TPM than was asked for.
    let understood = |part: &str| part.split_once('=').is_some_and(|(key, _)| known.contains(&key));
    if !known.is_empty() && !configuration.is_empty() && !configuration.split(',').all(understood) {
        return Err(unusable("unknown option"));
    }
    parsed(tcti).ok_or_else(|| unusable("unusable"))
}

fn parsed(tcti: &str) -> Option<TctiNameConf> {
    TctiNameConf::from_str(tcti).ok()
}

/// The machine's only TPM. It need not be number 0: one whose driver went and came back has the next number.
fn only_tpm(directory: &Path) -> Result<PathBuf, DeviceError> {
    let entries = std::fs::read_dir(directory)
        .map_err(|error| DeviceError::Misconfigured(format!("{}: {error}", directory.display())))?;
    let is_tpm = |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"tpmrm"));
    let mut found: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_tpm).collect();
    match found.len() {
        0 => Err(DeviceError::Away(format!("there is no TPM: {}/tpmrm* does not exist", directory.display()))),
        1 => Ok(found.remove(0)),
        _ => Err(DeviceError::Misconfigured(format!("this machine has several TPMs, {found:?}: say which in tcti"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_managers_are_known_by_name() {
        for tcti in ["device", "device:/dev/tpmrm0", "device:/dev/tpmrm1", "tabrmd", "tabrmd:bus_type=session"] {
            assert!(behind_resource_manager(tcti), "{tcti}");
        }
        for tcti in ["device:/dev/tpm0", "swtpm", "swtpm:host=localhost,port=2321", "mssim:port=1"] {
            assert!(!behind_resource_manager(tcti), "{tcti}");
        }
    }

    #[test]
    fn a_tcti_that_would_be_misread_is_refused() {
        for bad in ["swtpm:path=/run/x", "swtpm:port=x", "device:tpm0", "pcap:swtpm", "", "mssim:host=a b", "tabrmd:x"]
        {
            assert!(matches!(name(bad), Err(DeviceError::Misconfigured(_))), "{bad}");
        }
        for good in ["swtpm", "swtpm:host=127.0.0.1,port=2321", "device:/dev/tpm0", "tabrmd:bus_type=session"] {
            assert!(name(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn the_only_tpm_is_found_whatever_its_number() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(only_tpm(directory.path()), Err(DeviceError::Away(_))));
        let second = directory.path().join("tpmrm1");
        std::fs::write(&second, "").unwrap();
        std::fs::write(directory.path().join("tpm1"), "").unwrap();
        assert_eq!(only_tpm(directory.path()).unwrap(), second);
        std::fs::write(directory.path().join("tpmrm2"), "").unwrap();
        assert!(matches!(only_tpm(directory.path()), Err(DeviceError::Misconfigured(_))));
    }
}
