//! A TPM of a test's own: swtpm on a private folder and a private pair of ports.

use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signet::device::{DeviceConfig, DeviceKind, TpmConfig, TpmSession, tpm};
use tempfile::TempDir;

use super::skip;

/// A running swtpm; it ends with this value.
pub(crate) struct SwTpm {
    state: TempDir,
    port: u16,
    process: Option<Child>,
}

impl SwTpm {
    /// Starts a fresh TPM. None where swtpm is not installed: then the test can't run, and in CI that is a failure.
    pub(crate) fn start() -> Option<Self> {
        if Command::new("swtpm").arg("--version").stdout(Stdio::null()).status().is_err() {
            skip("swtpm", "swtpm");
            return None;
        }
        for _ in 0..20 {
            let mut tpm = Self { state: tempfile::tempdir().unwrap(), port: free_pair(), process: None };
            // False where another test was quicker with one of the ports.
            if tpm.launch() {
                return Some(tpm);
            }
        }
        panic!("no pair of ports is free");
    }

    /// The TCTI string that reaches it.
    pub(crate) fn tcti(&self) -> String {
        tcti(self.port)
    }

    /// Its data port; the control port is the next.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Sends its process a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.process.as_ref().unwrap().id();
        kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
    }

    /// Resets it in place: it answers nothing but TPM2_Startup from now on.
    pub(crate) fn reset(&self) {
        let control = format!("127.0.0.1:{}", self.port + 1);
        let reset = Command::new("swtpm_ioctl").args(["--tcp", &control, "-i"]).output().unwrap();
        assert!(reset.status.success(), "{}", String::from_utf8_lossy(&reset.stderr));
    }

    /// Starts it again, with the state that it had.
    pub(crate) fn restart(&mut self) {
        self.kill();
        assert!(self.launch(), "swtpm did not come back on its ports");
    }

    /// Replaces it by another TPM on the same ports.
    pub(crate) fn replace(&mut self) {
        self.kill();
        self.state = tempfile::tempdir().unwrap();
        assert!(self.launch(), "swtpm did not come back on its ports");
    }

    fn launch(&mut self) -> bool {
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "startup-clear"])
            .arg("--tpmstate")
            .arg(format!("dir={}", self.state.path().display()))
            .args(["--server", &format!("type=tcp,bindaddr=127.0.0.1,port={}", self.port)])
            .args(["--ctrl", &format!("type=tcp,bindaddr=127.0.0.1,port={}", self.port + 1)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let process = self.process.insert(process);
        let patience = Instant::now() + Duration::from_secs(20);
        while Instant::now() < patience {
            if process.try_wait().unwrap().is_some() {
                return false;
            }
            if [self.port, self.port + 1].into_iter().all(listens) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("swtpm neither listens nor ends");
    }
}

impl Drop for SwTpm {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The TCTI string of a swtpm, or of what stands before it.
pub(crate) fn tcti(port: u16) -> String {
    format!("swtpm:host=127.0.0.1,port={port}")
}

/// Two neighbouring ports that were free a moment ago.
pub(crate) fn free_pair() -> u16 {
    loop {
        let first = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = first.local_addr().unwrap().port();
        if port < u16::MAX && TcpListener::bind((Ipv4Addr::LOCALHOST, port + 1)).is_ok() {
            return port;
        }
    }
}

/// Whether somebody listens on a port. To connect would tell it too, but swtpm is for one client at a time.
fn listens(port: u16) -> bool {
    let listening = format!(" 0100007F:{port:04X} 00000000:0000 0A ");
    std::fs::read_to_string("/proc/net/tcp").unwrap().contains(&listening)
}

/// A TPM device's configuration, with its files in a folder of the test's.
pub(crate) struct TpmSettings {
    pub(crate) folder: TempDir,
    pub(crate) device: DeviceConfig,
    pub(crate) tpm: TpmConfig,
}

impl TpmSettings {
    /// A device without a parent yet, whose keys have this auth value.
    pub(crate) fn new(tcti: &str, pin: Option<&str>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pin_file = pin.map(|pin| {
            let path = folder.path().join("pin");
            super::write_private(&path, pin);
            path
        });
        let tpm = TpmConfig {
            tcti: tcti.to_owned(),
            pin_file,
            owner_auth_file: None,
            session: TpmSession::Protected,
            parent: None,
        };
        let device = DeviceConfig {
            name: "tpm".parse().unwrap(),
            kind: DeviceKind::Tpm(tpm.clone()),
            call_limit: Duration::from_secs(10),
            queue: 64,
            latch_file: folder.path().join("latches/tpm.json"),
            sandbox: true,
        };
        Self { folder, device, tpm }
    }

    /// The same after `device init`.
    pub(crate) fn initialised(tcti: &str, pin: Option<&str>) -> Self {
        let mut settings = Self::new(tcti, pin);
        settings.tpm.parent = Some(tpm::init(&settings.tpm).unwrap());
        settings.device.kind = DeviceKind::Tpm(settings.tpm.clone());
        settings
    }
}
