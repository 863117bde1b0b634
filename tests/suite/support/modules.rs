//! PKCS#11 modules that stand between Signet and SoftHSM: one that writes down, one that misbehaves.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use signet::device::{DeviceConfig, Pkcs11Config};

use super::skip;
use super::softhsm::SoftHsm;

/// OpenSC's pkcs11-spy between Signet and the module: it writes down every call.
pub(crate) struct Spy<'a> {
    token: &'a SoftHsm,
    pub(crate) module: PathBuf,
    log: PathBuf,
}

impl<'a> Spy<'a> {
    pub(crate) fn new(token: &'a SoftHsm) -> Option<Self> {
        let Some(module) = SPIES.iter().map(PathBuf::from).find(|module| module.exists()) else {
            skip("pkcs11-spy", "opensc");
            return None;
        };
        Some(Self { token, module, log: token.directory.join("spy.log") })
    }

    pub(crate) fn config(&self) -> DeviceConfig {
        self.token.config_with(Pkcs11Config { module: self.module.clone(), ..self.token.pkcs11() })
    }

    pub(crate) fn environment(&self) -> [(&str, &OsStr); 2] {
        [("PKCS11SPY", self.token.module.as_os_str()), ("PKCS11SPY_OUTPUT", self.log.as_os_str())]
    }

    /// Every call so far, in order.
    pub(crate) fn calls(&self) -> Vec<String> {
        let log = fs::read(&self.log).unwrap();
        let name = |line: &str| Some(line.split_once(": C_")?.1.split_whitespace().next()?.to_owned());
        String::from_utf8_lossy(&log).lines().filter_map(name).map(|name| format!("C_{name}")).collect()
    }

    pub(crate) fn count(&self, function: &str) -> usize {
        self.calls().iter().filter(|call| *call == function).count()
    }
}

const SPIES: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/pkcs11/pkcs11-spy.so",
    "/usr/lib/aarch64-linux-gnu/pkcs11/pkcs11-spy.so",
    "/usr/lib/x86_64-linux-gnu/pkcs11-spy.so",
];

/// The module of `shim.c`: it passes every call on, and misbehaves as it is told, also while it is in use.
pub(crate) struct Shim<'a> {
    token: &'a SoftHsm,
    pub(crate) module: PathBuf,
    control: PathBuf,
}

impl<'a> Shim<'a> {
    pub(crate) fn new(token: &'a SoftHsm) -> Self {
        let folder = token.directory.join("shim");
        let module = folder.join("shim.so");
        if !module.exists() {
            fs::create_dir(&folder).unwrap();
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/support/shim.c");
            // There is a C compiler wherever aws-lc was built.
            let built =
                Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&module, &source]).arg("-ldl").output();
            let built = built.unwrap();
            assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        }
        Self { token, module, control: folder.join("control") }
    }

    pub(crate) fn pkcs11(&self) -> Pkcs11Config {
        let files = vec![self.token.tokens(), self.folder().to_owned()];
        Pkcs11Config { module: self.module.clone(), files: Some(files), ..self.token.pkcs11() }
    }

    fn folder(&self) -> &Path {
        self.module.parent().unwrap()
    }

    pub(crate) fn config(&self) -> DeviceConfig {
        self.config_with(self.pkcs11())
    }

    pub(crate) fn config_with(&self, pkcs11: Pkcs11Config) -> DeviceConfig {
        self.token.config_with(pkcs11)
    }

    /// The device as text for a configuration file.
    pub(crate) fn toml(&self) -> String {
        let environment = self.environment().map(|(name, value)| format!("{name} = {value:?}, ")).concat();
        let text = self.token.toml().replace("environment = { ", &format!("environment = {{ {environment}"));
        let text = text.replace("files = [", &format!("files = [{:?}, ", self.folder()));
        text.replace(&format!("module = {:?}", self.token.module), &format!("module = {:?}", self.module))
    }

    pub(crate) fn environment(&self) -> [(&str, &OsStr); 2] {
        [("SHIM_MODULE", self.token.module.as_os_str()), ("SHIM_CONTROL", self.control.as_os_str())]
    }

    /// The file that is there once a call waits, as it was told.
    pub(crate) fn waiting(&self) -> PathBuf {
        self.control.with_extension("waiting")
    }

    /// How often C_Login was called.
    pub(crate) fn logins(&self) -> u64 {
        self.counted("logins")
    }

    /// Whether a call has met the "fail" that it was told last.
    pub(crate) fn has_failed(&self) -> bool {
        self.counted("failed") > 0
    }

    /// What errno the signature met, reading and writing, in what it was told to try last.
    pub(crate) fn tried(&self) -> [i32; 2] {
        let tried = fs::read_to_string(self.control.with_extension("tried")).unwrap();
        fs::remove_file(self.control.with_extension("tried")).unwrap();
        let (reading, writing) = tried.split_once(' ').unwrap();
        [reading, writing].map(|errno| errno.parse().unwrap())
    }

    fn counted(&self, what: &str) -> u64 {
        fs::metadata(self.control.with_extension(what)).map_or(0, |calls| calls.len())
    }

    /// Misbehaves from now on as `shim.c` says; empty: not at all.
    pub(crate) fn tell(&self, fault: &str) {
        let _ = fs::remove_file(self.control.with_extension("failed"));
        let new = self.control.with_extension("new");
        fs::write(&new, fault).unwrap();
        fs::rename(new, &self.control).unwrap();
    }
}
