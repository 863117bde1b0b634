//! The devices to measure: each backend thrice, with a key of its own: bare, behind its device process, and for the daemon.

use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::crowd;

/// What keeps the keys.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Backend {
    SoftHsm,
    SwTpm,
    /// The first device of this configuration, with the first of its keys.
    Configured(PathBuf),
}

/// A kind of key: what `signetctl key generate` is told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) algorithm: &'static str,
    pub(crate) bits: &'static str,
}

impl Backend {
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::SoftHsm => "SoftHSM",
            Self::SwTpm => "swtpm",
            Self::Configured(_) => "configured device",
        }
    }

    /// The kinds of key beside [`Kind::USUAL`].
    pub(crate) const fn other_kinds(&self) -> &'static [Kind] {
        match self {
            Self::SoftHsm => &[
                Kind { algorithm: "RS256", bits: "3072" },
                Kind { algorithm: "RS256", bits: "4096" },
                Kind { algorithm: "PS256", bits: "2048" },
                Kind { algorithm: "ES256", bits: "256" },
            ],
            // It makes no RSA keys of 4096 bits.
            Self::SwTpm => &[
                Kind { algorithm: "RS256", bits: "3072" },
                Kind { algorithm: "PS256", bits: "2048" },
                Kind { algorithm: "ES256", bits: "256" },
            ],
            Self::Configured(_) => &[],
        }
    }
}

impl Kind {
    pub(crate) const USUAL: Self = Self { algorithm: "RS256", bits: "2048" };
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.algorithm {
            "ES256" => f.write_str(self.algorithm),
            algorithm => write!(f, "{algorithm} {}", self.bits),
        }
    }
}

/// One backend, ready to be measured.
pub(crate) struct Stand {
    pub(crate) backend: Backend,
    pub(crate) kind: Kind,
    /// For the bare device, the device process alone and the daemon: none waits for another's sessions.
    pub(crate) bare: Device,
    pub(crate) alone: Device,
    pub(crate) served: Device,
}

/// A device with one key, and the folder of its configuration and state.
pub(crate) struct Device {
    folder: TempDir,
    /// The configuration but for where the daemon listens and whom it serves.
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
    pub(crate) fn new(backend: &Backend, kind: Kind) -> Option<Self> {
        let program = match backend {
            Backend::SoftHsm => "softhsm2-util",
            Backend::SwTpm => "swtpm",
            Backend::Configured(_) => "true",
        };
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().ok()?;
        let device = || Device::new(backend, kind);
        Some(Self { backend: backend.clone(), kind, bare: device(), alone: device(), served: device() })
    }
}

impl Device {
    fn new(backend: &Backend, kind: Kind) -> Self {
        let folder = tempfile::Builder::new().prefix("signet-bench").tempdir().unwrap();
        // Callers of other users must reach the socket.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["state", "run"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let (table, port, tpm) = match backend {
            Backend::SoftHsm => (softhsm(folder.path()), None, None),
            Backend::SwTpm => {
                let (port, tpm) = swtpm(folder.path());
                (tpm_table(port), Some(port), Some(tpm))
            }
            Backend::Configured(file) => (configured(file), None, None),
        };
        let device = Self { folder, table, port, tpm };
        device.reconfigure(&[]);
        if matches!(backend, Backend::Configured(_)) {
            return device;
        }
        if port.is_some() {
            device.signetctl(&["device", "init", "bench"]);
        }
        let generate = ["key", "generate", "--device", "bench", "--algorithm", kind.algorithm];
        let bits = if kind.algorithm == "ES256" { &[][..] } else { &["--bits", kind.bits] };
        device.signetctl(&[&generate, bits].concat());
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
        self.folder.path().join("run/signet.sock")
    }

    /// A file of this name in the folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Configures the daemon with this replaced.
    pub(crate) fn reconfigure(&self, replaced: &[(&str, &str)]) {
        let text = replaced.iter().fold(self.configuration(), |text, (old, new)| {
            assert!(text.contains(old), "{old:?} is not in {text}");
            text.replace(old, new)
        });
        fs::write(self.config(), text).unwrap();
        fs::set_permissions(self.config(), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn configuration(&self) -> String {
        let table = &self.table;
        let parsed: toml::Table = table.parse().unwrap();
        let accounts = parsed["account"].as_array().unwrap().iter();
        let accounts: Vec<_> = accounts.map(|account| account["email"].as_str().unwrap()).collect();
        let users: Vec<_> = std::iter::once(nix::unistd::geteuid().as_raw()).chain(crowd::USERS).collect();
        format!(
            "{table}\n[listen]\ngrpc = \"run/signet.sock\"\nmode = \"0666\"\n[audit]\npath = \"run/audit.log\"\n\
             [cache]\nentries = 20000\n[[allow]]\nusers = {users:?}\naccounts = {accounts:?}\n\
             operations = [\"sign-blob\", \"mint-access-token\"]\n"
        )
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
    format!("{ACCOUNT}{}", &table[table.find("[[device]]").unwrap()..])
}

fn tpm_table(port: u16) -> String {
    format!("{ACCOUNT}[[device]]\nname = \"bench\"\nkind = \"tpm\"\ntcti = \"swtpm:host=127.0.0.1,port={port}\"")
}

/// Devices and accounts of another configuration, with its keyring; its rules, its socket and its audit log stay its own.
fn configured(file: &Path) -> String {
    let home = file.canonicalize().unwrap().parent().unwrap().to_owned();
    let mut table: toml::Table = fs::read_to_string(file).unwrap().parse().unwrap();
    table.retain(|key, _| ["state_dir", "device", "account"].contains(&key));
    let absolute = |value: &mut toml::Value| *value = home.join(value.as_str().unwrap()).to_str().unwrap().into();
    table.get_mut("state_dir").map(absolute);
    for device in table.get_mut("device").and_then(toml::Value::as_array_mut).into_iter().flatten() {
        for file in ["pin_file", "owner_auth_file"] {
            device.get_mut(file).map(absolute);
        }
    }
    table.to_string()
}

const ACCOUNT: &str = "state_dir = \"state\"\n[[account]]\nemail = \"bench@project.iam.gserviceaccount.com\"\n";

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

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Two neighbouring ports that were free a moment ago.
fn free_pair() -> u16 {
    loop {
        let port = free_port();
        if port < u16::MAX && TcpListener::bind((Ipv4Addr::LOCALHOST, port + 1)).is_ok() {
            return port;
        }
    }
}
