//! A throw-away SoftHSM token.
//!
//! The module reads `SOFTHSM2_CONF` from the environment of its process. So whatever speaks to the token stands in a
//! process of its own: a daemon with `environment` in its configuration, or [`SoftHsm::child`].

use std::ffi::OsStr;
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use signet::device::{DeviceConfig, DeviceKind, Pkcs11Config, TokenSelector};
use tempfile::TempDir;

use super::skip;

/// A fresh token in a private folder.
pub(crate) struct SoftHsm {
    pub(crate) directory: PathBuf,
    pub(crate) module: PathBuf,
    /// The test that made it removes it; its children don't.
    _owned: Option<TempDir>,
}

impl SoftHsm {
    /// Makes a token labelled [`LABEL`] by `softhsm/new-token`; in a child, finds its parent's. None where there is no SoftHSM.
    pub(crate) fn new() -> Option<Self> {
        let Some(module) = MODULES.iter().map(PathBuf::from).find(|module| module.exists()) else {
            skip("SoftHSM", "softhsm2");
            return None;
        };
        if let Some(directory) = std::env::var_os(DIRECTORY) {
            return Some(Self { directory: directory.into(), module, _owned: None });
        }
        let owned = TempDir::new().unwrap();
        let directory = owned.path().join("token");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("softhsm/new-token");
        let made = Command::new(script).arg(&directory).arg(LABEL).env("SOFTHSM2_MODULE", &module).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Some(Self { directory, module, _owned: Some(owned) })
    }

    /// SoftHSM's configuration: what `SOFTHSM2_CONF` must name.
    pub(crate) fn configuration(&self) -> PathBuf {
        self.directory.join("softhsm2.conf")
    }

    /// What the module keeps its tokens in.
    pub(crate) fn tokens(&self) -> PathBuf {
        self.directory.join("tokens")
    }

    pub(crate) fn pin_file(&self) -> PathBuf {
        self.directory.join("pin")
    }

    /// The token as a device of two sessions.
    pub(crate) fn pkcs11(&self) -> Pkcs11Config {
        let configuration = self.configuration().into_os_string().into_string().unwrap();
        Pkcs11Config {
            module: self.module.clone(),
            token: TokenSelector::Label(LABEL.to_owned()),
            pin_file: Some(self.pin_file()),
            sessions: 2,
            environment: Some([("SOFTHSM2_CONF".to_owned(), configuration)].into()),
            files: Some(vec![self.tokens()]),
            allow_final_pin_try: false,
        }
    }

    /// The token as the device `hsm`.
    pub(crate) fn config(&self) -> DeviceConfig {
        self.config_with(self.pkcs11())
    }

    /// The token as the device `hsm`, configured otherwise.
    pub(crate) fn config_with(&self, pkcs11: Pkcs11Config) -> DeviceConfig {
        DeviceConfig {
            name: "hsm".parse().unwrap(),
            kind: DeviceKind::Pkcs11(pkcs11),
            call_limit: Duration::from_secs(10),
            queue: 1024,
            latch_file: self.directory.join("latch.json"),
            sandbox: true,
        }
    }

    /// The same device as text for a configuration file.
    pub(crate) fn toml(&self) -> String {
        format!(
            "[[device]]\nname = \"hsm\"\nkind = \"pkcs11\"\nmodule = {:?}\ntoken = {LABEL:?}\npin_file = {:?}\nsessions = 2\n\
             environment = {{ SOFTHSM2_CONF = {:?} }}\nfiles = [{:?}]\n",
            self.module,
            self.pin_file(),
            self.configuration(),
            self.tokens()
        )
    }

    /// Runs a part of a test in a process of its own, in which the module finds the token; fails as it fails.
    ///
    /// The process is this test's binary, told to run this test only. Everything before this call runs in it too, up to
    /// this very line, where it does what it was started for and ends. The closure must stand in the test itself.
    #[track_caller]
    pub(crate) fn child<F: FnOnce()>(&self, environment: &[(&str, &OsStr)], part: F) {
        let here = Location::caller().to_string();
        if let Some(there) = std::env::var_os(PART) {
            if there == *here {
                part();
                std::process::exit(0);
            }
            return;
        }
        // "suite::pkcs11::a_test::{{closure}}"
        let closure = std::any::type_name::<F>();
        let (_, test) = closure.split_once("::").unwrap();
        let (test, _) = test.split_once("::{{closure}}").unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env("SOFTHSM2_CONF", self.configuration())
            .env(DIRECTORY, &self.directory)
            .env(PART, here)
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        let output = [child.stdout, child.stderr].concat();
        assert!(child.status.success(), "the child failed:\n{}", String::from_utf8_lossy(&output));
    }

    /// Replaces the PIN file's contents.
    pub(crate) fn write_pin(&self, pin: &str) {
        super::write_private(&self.pin_file(), pin);
    }
}

/// The token's label.
pub(crate) const LABEL: &str = "signet-test";

const MODULES: &[&str] = &[
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
];

/// Where a child finds its parent's token.
const DIRECTORY: &str = "SIGNET_TEST_SOFTHSM";
/// Which part of its test a child runs.
const PART: &str = "SIGNET_TEST_PART";
