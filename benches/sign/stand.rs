//! The devices to measure: each backend twice, with a key of its own, once bare and once for the daemon.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    SoftHsm,
    SwTpm,
}

impl Backend {
    pub(crate) const ALL: [Self; 2] = [Self::SoftHsm, Self::SwTpm];

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|backend| backend.name() == name)
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::SoftHsm => "softhsm",
            Self::SwTpm => "swtpm",
        }
    }

    pub(crate) const fn must_ratio(self, clients: usize) -> &'static str {
        match (self, clients) {
            (Self::SoftHsm, 1) => "0.70",
            (Self::SoftHsm, _) => "0.80",
            (Self::SwTpm, 1) => "",
            (Self::SwTpm, _) => "0.90",
        }
    }

    pub(crate) const fn must_start(self) -> &'static str {
        match self {
            Self::SoftHsm => "40",
            Self::SwTpm => "60",
        }
    }

    pub(crate) const fn must_calls(self) -> &'static str {
        match self {
            Self::SoftHsm => "no open, login, find",
            Self::SwTpm => "1",
        }
    }
}

/// One backend, ready to be measured.
pub(crate) struct Stand {
    pub(crate) backend: Backend,
    pub(crate) bare: Device,
    pub(crate) served: Device,
}

/// A device with one key, and the folder of its configuration and state.
pub(crate) struct Device {
    folder: TempDir,
    /// The `[[device]]` table.
    table: String,
    /// swtpm's data port, where there is one.
    pub(crate) port: Option<u16>,
    tpm: Option<Running>,
}

/// A process that ends with this value.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Stand {
    /// None where the backend is not installed.
    pub(crate) fn new(backend: Backend) -> Option<Self> {
        let program = if backend == Backend::SoftHsm { "softhsm2-util" } else { "swtpm" };
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().ok()?;
        Some(Self { backend, bare: Device::new(backend), served: Device::new(backend) })
    }
}

impl Device {
    fn new(backend: Backend) -> Self {
        let folder = tempfile::Builder::new().prefix("signet-bench").tempdir().unwrap();
        fs::create_dir(folder.path().join("state")).unwrap();
        let (table, port, tpm) = match backend {
            Backend::SoftHsm => (softhsm(folder.path()), None, None),
            Backend::SwTpm => {
                let (port, tpm) = swtpm(folder.path());
                (tpm_table(port), Some(port), Some(tpm))
            }
        };
        let device = Self { folder, table, port, tpm };
        device.configure(&device.table);
        if port.is_some() {
            device.signetctl(&["device", "init", "bench"]);
        }
        device.signetctl(&["key", "generate", "--device", "bench"]);
        device
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("signet.toml")
    }

    /// swtpm's process id, where there is one.
    pub(crate) fn tpm(&self) -> Option<u32> {
        self.tpm.as_ref().map(|tpm| tpm.0.id())
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("signet.sock")
    }

    /// A file of this name in the folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// SoftHSM's configuration.
    pub(crate) fn softhsm_conf(&self) -> PathBuf {
        self.file("token/softhsm2.conf")
    }

    /// Has the daemon reach the same device in another way: what to replace in its table.
    pub(crate) fn reconfigure(&self, replaced: &[(&str, &str)]) {
        let table = replaced.iter().fold(self.table.clone(), |table, (old, new)| {
            assert!(table.contains(old), "{old:?} is not in {table}");
            table.replace(old, new)
        });
        self.configure(&table);
    }

    fn configure(&self, table: &str) {
        let uid = nix::unistd::geteuid();
        let text = format!(
            "state_dir = \"state\"\n[listen]\ngrpc = \"signet.sock\"\n{table}\n[[account]]\n\
             email = \"bench@project.iam.gserviceaccount.com\"\n[[allow]]\nusers = [{uid}]\n\
             accounts = [\"bench@project.iam.gserviceaccount.com\"]\noperations = [\"sign-blob\", \"mint-access-token\"]\n"
        );
        fs::write(self.config(), text).unwrap();
        fs::set_permissions(self.config(), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn signetctl(&self, arguments: &[&str]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_signetctl"));
        let output = command.arg("--config").arg(self.config()).args(arguments).output().unwrap();
        assert!(output.status.success(), "signetctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

fn softhsm(folder: &Path) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("softhsm/new-token");
    let made = Command::new(script).arg(folder.join("token")).arg("bench").output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    // As many sessions as cores: more only add tail to a token in software.
    let table = String::from_utf8(made.stdout).unwrap().replace("name = \"softhsm\"", "name = \"bench\"\nsessions = 2");
    let begin = table.find("[[device]]").unwrap();
    table[begin..].to_owned()
}

fn tpm_table(port: u16) -> String {
    format!("[[device]]\nname = \"bench\"\nkind = \"tpm\"\ntcti = \"swtpm:host=127.0.0.1,port={port}\"")
}

fn swtpm(folder: &Path) -> (u16, Running) {
    for _ in 0..20 {
        let port = free_pair();
        let server = |port: u16| format!("type=tcp,bindaddr=127.0.0.1,port={port}");
        let state = format!("dir={}", folder.display());
        let mut command = Command::new("swtpm");
        command.args(["socket", "--tpm2", "--flags", "startup-clear", "--tpmstate", &state]);
        command.args(["--server", &server(port), "--ctrl", &server(port + 1)]);
        let mut tpm = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let patience = Instant::now() + Duration::from_secs(10);
        while tpm.0.try_wait().unwrap().is_none() && Instant::now() < patience {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port + 1)).is_ok() {
                return (port, tpm);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    panic!("swtpm does not start");
}

/// Two neighbouring ports that were free a moment ago.
fn free_pair() -> u16 {
    loop {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        if port < u16::MAX && TcpListener::bind((Ipv4Addr::LOCALHOST, port + 1)).is_ok() {
            return port;
        }
    }
}
