//! An operator's desk: a configuration in a private folder, and the real `signetctl`.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use signet::file::StateDir;
use tempfile::TempDir;

use super::daemon::ACCOUNT;
use super::softhsm::SoftHsm;
use super::swtpm::SwTpm;

/// A configuration with one account, and one device or more. Nothing runs.
pub(crate) struct Desk {
    pub(crate) folder: TempDir,
}

impl Desk {
    /// A desk with these `[[device]]` tables.
    pub(crate) fn new(devices: &str) -> Self {
        let desk = Self { folder: tempfile::tempdir().unwrap() };
        let account = format!("[[account]]\nemail = \"{ACCOUNT}\"\n");
        desk.write(
            "signet.toml",
            format!("state_dir = \"state\"\n[listen]\ngrpc = \"run/signet.sock\"\n{devices}\n{account}").as_bytes(),
        );
        fs::create_dir(desk.state()).unwrap();
        fs::set_permissions(desk.state(), fs::Permissions::from_mode(0o700)).unwrap();
        desk
    }

    /// A desk with a SoftHSM token as the device `hsm`.
    pub(crate) fn softhsm(token: &SoftHsm) -> Self {
        Self::new(&token.toml())
    }

    /// A desk with a fresh TPM as the device `tpm`, initialised.
    pub(crate) fn swtpm(tpm: &SwTpm) -> Self {
        let desk = Self::new(&format!(
            "[[device]]\nname = \"tpm\"\nkind = \"tpm\"\ntcti = {:?}\npin_file = \"pin\"\n",
            tpm.tcti()
        ));
        desk.write("pin", b"0123456789abcdef\n");
        desk.done(&["device", "init", "tpm"]);
        desk
    }

    /// A desk whose only device is a TPM that is not there: for what fails before a device is touched.
    pub(crate) fn bare() -> Self {
        Self::new("[[device]]\nname = \"tpm\"\nkind = \"tpm\"\ntcti = \"swtpm:host=127.0.0.1,port=1\"\n")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn state(&self) -> StateDir {
        StateDir::new(self.path("state"))
    }

    /// Writes a file of mode 0600 into the folder.
    pub(crate) fn write(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, contents).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// `signetctl` with this configuration.
    pub(crate) fn signetctl<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Command {
        let mut command = super::signetctl(&self.path("signet.toml"));
        command.args(arguments);
        command
    }

    /// Runs it; it must succeed. Returns its standard output.
    pub(crate) fn done(&self, arguments: &[&str]) -> String {
        let output = self.signetctl(arguments).output().unwrap();
        assert!(output.status.success(), "signetctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Runs it; it must fail with this exit code, an `error:` that says so, and a `try:`. Returns its standard error.
    pub(crate) fn refused(&self, arguments: &[&str], exit: i32, error: &str) -> String {
        let stderr = failed(&self.signetctl(arguments).output().unwrap(), exit);
        assert!(
            stderr.lines().any(|line| line.starts_with("error:") && line.contains(error)),
            "{arguments:?}: {stderr}"
        );
        assert!(stderr.contains("try: "), "{arguments:?}: {stderr}");
        stderr
    }

    /// Runs it; it must fail with exit code 1 and say this in its error.
    pub(crate) fn refused_at(&self, arguments: &[&str], error: &str) {
        let stderr = failed(&self.signetctl(arguments).output().unwrap(), 1);
        assert!(stderr.contains(error), "{arguments:?}: {stderr}");
    }

    /// Runs it with something at its standard input.
    pub(crate) fn fed(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut child = self
            .signetctl(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may end without having read all of it.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap()
    }

    /// The ids of all keys in the keyring, and of those that only the device knows.
    pub(crate) fn keys(&self, device: &str) -> (Vec<String>, usize) {
        let listed: serde_json::Value =
            serde_json::from_str(&self.done(&["--json", "key", "list", "--device", device])).unwrap();
        let listed = listed.as_array().unwrap();
        let kids = listed.iter().filter_map(|key| Some(key.get("kid")?.as_str()?.to_owned())).collect::<Vec<_>>();
        let orphans = listed.len() - kids.len();
        (kids, orphans)
    }
}

/// The standard error of a program that must have failed with this exit code.
pub(crate) fn failed(output: &Output, exit: i32) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(exit), "{stderr}");
    assert!(output.stdout.is_empty(), "it printed {:?}", String::from_utf8_lossy(&output.stdout));
    stderr
}

/// Runs openssl; it must succeed. Returns its standard output.
pub(crate) fn openssl<I: AsRef<OsStr>>(arguments: impl IntoIterator<Item = I>) -> Vec<u8> {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The modulus of an RSA key, public key or certificate, as openssl prints it.
pub(crate) fn modulus(kind: &str, path: &Path) -> Vec<u8> {
    openssl([OsStr::new(kind), "-noout".as_ref(), "-modulus".as_ref(), "-in".as_ref(), path.as_os_str()])
}
