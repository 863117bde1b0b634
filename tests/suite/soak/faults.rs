//! What befalls a daemon in a soak, and what takes it away again.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signet::proto;
use tonic::Request;

use super::{Device, Random};
use crate::support::daemon::{TestDaemon, payload};
use crate::support::modules::Shim;
use crate::support::softhsm::{LABEL, SoftHsm};
use crate::support::swtpm::SwTpm;
use crate::support::tpm_proxy::{Fault as Spoiled, LOAD, SIGN, TpmProxy};
use crate::support::write_private;

/// The daemon with its devices, and all that can be done to them.
pub(super) struct Stage<'a> {
    pub(super) daemon: TestDaemon,
    pub(super) token: Option<(&'a SoftHsm, Shim<'a>)>,
    pub(super) tpm: Option<(SwTpm, TpmProxy)>,
    /// What the fault of the moment holds in its hands.
    pub(super) held: Held,
    /// How often SoftHSM's own files had to be put back: a process that is killed while it logs in leaves them torn, for SoftHSM
    /// writes to them with every login. No device of hardware does.
    pub(super) torn: u64,
}

#[derive(Default)]
pub(super) struct Held {
    connections: Vec<UnixStream>,
    stopped: Vec<i32>,
    kept: Vec<(PathBuf, Vec<u8>)>,
}

#[derive(Clone, Copy)]
pub(super) struct Fault {
    pub(super) name: &'static str,
    act: Act,
}

#[derive(Clone, Copy)]
enum Act {
    /// The PKCS#11 module misbehaves, as `shim.c` says.
    Module(&'static str),
    LoseToken,
    ReplaceModule,
    WrongPin,
    /// Every answer to a command is spoiled.
    Bus(u32, Spoiled),
    RefuseTpm,
    KillTpm,
    ResetTpm,
    StopTpm,
    KillDevices,
    StopDevices,
    KillDaemon,
    Reload,
    BadConfiguration,
    BadKeyring,
    RotateAudit,
    BlockAudit,
    Descriptors,
    Connections,
    Frames,
    Burst,
}

/// Every fault that there is for these devices.
pub(super) fn of(device: Device) -> Vec<Fault> {
    let (token, tpm) = (device != Device::SwTpm, device != Device::SoftHsm);
    let lists = [(token, TOKEN), (tpm, TPM), (true, DAEMON)];
    lists
        .iter()
        .filter(|(there, _)| *there)
        .flat_map(|(_, list)| list.iter())
        .map(|(name, act)| Fault { name, act: *act })
        .collect()
}

const TOKEN: &[(&str, Act)] = &[
    ("CKR_CANCEL", Act::Module("fail C_Sign 1")),
    ("CKR_HOST_MEMORY", Act::Module("fail C_Sign 2")),
    ("CKR_GENERAL_ERROR", Act::Module("fail C_Sign 5")),
    ("CKR_FUNCTION_FAILED", Act::Module("fail C_Sign 6")),
    ("CKR_DEVICE_ERROR", Act::Module("fail C_Sign 30")),
    ("CKR_DEVICE_MEMORY", Act::Module("fail C_Sign 31")),
    ("CKR_DEVICE_REMOVED", Act::Module("fail C_Sign 32")),
    ("CKR_FUNCTION_CANCELED", Act::Module("fail C_Sign 50")),
    ("CKR_KEY_HANDLE_INVALID", Act::Module("fail C_Sign 60")),
    ("CKR_KEY_FUNCTION_NOT_PERMITTED", Act::Module("fail C_Sign 68")),
    ("CKR_MECHANISM_INVALID", Act::Module("fail C_Sign 70")),
    ("CKR_OBJECT_HANDLE_INVALID", Act::Module("fail C_Sign 82")),
    ("CKR_OPERATION_ACTIVE", Act::Module("fail C_Sign 90")),
    ("CKR_SESSION_CLOSED", Act::Module("fail C_Sign b0")),
    ("CKR_SESSION_HANDLE_INVALID", Act::Module("fail C_Sign b3")),
    ("CKR_TOKEN_NOT_PRESENT", Act::Module("fail C_Sign e0")),
    ("CKR_TOKEN_NOT_RECOGNIZED", Act::Module("fail C_Sign e1")),
    ("CKR_USER_NOT_LOGGED_IN", Act::Module("fail C_Sign 101")),
    ("CKR_CRYPTOKI_NOT_INITIALIZED", Act::Module("fail C_Sign 190")),
    ("CKR of a vendor", Act::Module("fail C_Sign 80000001")),
    ("no login: CKR_DEVICE_ERROR", Act::Module("fail C_Login 30")),
    ("no session: CKR_SESSION_COUNT", Act::Module("fail C_OpenSession b1")),
    ("no search: CKR_DEVICE_REMOVED", Act::Module("fail C_FindObjectsInit 32")),
    ("no initialisation: CKR_HOST_MEMORY", Act::Module("fail C_Initialize 2")),
    ("search hangs", Act::Module("hang C_FindObjects")),
    ("login crashes", Act::Module("crash C_Login")),
    ("signature with a flipped bit", Act::Module("flip")),
    ("module hangs", Act::Module("hang C_Sign")),
    ("module crashes", Act::Module("crash C_Sign")),
    ("module is slow", Act::Module("slow C_Sign 150")),
    ("one session", Act::Module("one-session")),
    ("final PIN try", Act::Module("final-try")),
    ("PIN locked", Act::Module("locked")),
    ("token's files gone", Act::LoseToken),
    ("module replaced", Act::ReplaceModule),
    ("wrong PIN", Act::WrongPin),
];

const TPM: &[(&str, Act)] = &[
    ("TPM_RC_RETRY", Act::Bus(SIGN, Spoiled::Code(0x922))),
    ("TPM_RC_YIELDED", Act::Bus(SIGN, Spoiled::Code(0x908))),
    ("TPM_RC_OBJECT_MEMORY", Act::Bus(LOAD, Spoiled::Code(0x902))),
    ("TPM_RC_SESSION_MEMORY", Act::Bus(SIGN, Spoiled::Code(0x903))),
    ("TPM_RC_REFERENCE_H0", Act::Bus(SIGN, Spoiled::Code(0x910))),
    ("TPM_RC_REFERENCE_S0", Act::Bus(SIGN, Spoiled::Code(0x918))),
    ("TPM_RC_FAILURE", Act::Bus(SIGN, Spoiled::Code(0x101))),
    ("TPM_RC_INITIALIZE", Act::Bus(SIGN, Spoiled::Code(0x100))),
    ("TPM_RC_PCR_CHANGED", Act::Bus(SIGN, Spoiled::Code(0x128))),
    ("TPM_RC_POLICY_FAIL", Act::Bus(SIGN, Spoiled::Code(0x99d))),
    ("TPM_RC_INTEGRITY", Act::Bus(LOAD, Spoiled::Code(0x1df))),
    ("TPM_RC_HANDLE of a session", Act::Bus(SIGN, Spoiled::Code(0x98b))),
    ("TPM_RC_EXPIRED", Act::Bus(SIGN, Spoiled::Code(0x9a3))),
    ("TPM_RC of no table", Act::Bus(SIGN, Spoiled::Code(0x155))),
    ("answer with a flipped bit", Act::Bus(SIGN, Spoiled::Flip)),
    ("answer cut short", Act::Bus(SIGN, Spoiled::Short)),
    ("connection cut while signing", Act::Bus(SIGN, Spoiled::Cut)),
    ("connection cut while loading", Act::Bus(LOAD, Spoiled::Cut)),
    ("TPM is slow", Act::Bus(SIGN, Spoiled::Late(150))),
    ("TPM does not answer", Act::Bus(SIGN, Spoiled::Never)),
    ("TPM refuses connections", Act::RefuseTpm),
    ("TPM killed", Act::KillTpm),
    ("TPM reset", Act::ResetTpm),
    ("TPM stopped", Act::StopTpm),
];

const DAEMON: &[(&str, Act)] = &[
    ("device process killed", Act::KillDevices),
    ("device process stopped", Act::StopDevices),
    ("daemon killed", Act::KillDaemon),
    ("reload", Act::Reload),
    ("bad configuration", Act::BadConfiguration),
    ("bad keyring", Act::BadKeyring),
    ("audit log rotated", Act::RotateAudit),
    ("audit log can't be written", Act::BlockAudit),
    ("no descriptors left", Act::Descriptors),
    ("idle connections", Act::Connections),
    ("flood of frames", Act::Frames),
    ("burst of requests", Act::Burst),
];

impl Fault {
    /// Whether the daemon's memory begins anew with it.
    pub(super) const fn ends_the_daemon(&self) -> bool {
        matches!(self.act, Act::KillDaemon)
    }
}

impl Stage<'_> {
    pub(super) fn inflict(&mut self, fault: Fault, random: &mut Random) {
        match fault.act {
            Act::Module(told) => {
                self.shim().tell(told);
                // What a session is asked when it is opened shows only there.
                let shows = told.contains("C_Sign") || told == "flip";
                if random.between(0, 2) == 0 || !shows {
                    self.signal_devices(Signal::SIGKILL);
                }
            }
            Act::LoseToken => fs::rename(self.token().join("tokens"), self.token().join("away")).unwrap(),
            Act::ReplaceModule => {
                let module = self.shim().module.clone();
                self.keep(&module);
                replace(&module, b"no module at all");
                self.signal_devices(Signal::SIGKILL);
            }
            Act::WrongPin => {
                let pin = self.token().join("pin");
                self.keep(&pin);
                write_private(&pin, "99999999");
                self.signal_devices(Signal::SIGKILL);
            }
            Act::Bus(command, spoiled) => {
                self.proxy().spoil_all(command, spoiled);
                if command != SIGN {
                    self.signal_devices(Signal::SIGKILL);
                }
            }
            Act::RefuseTpm => self.proxy().refuse(true),
            Act::KillTpm => self.tpm().kill(),
            Act::ResetTpm => self.tpm().reset(),
            Act::StopTpm => self.tpm().signal(Signal::SIGSTOP),
            Act::KillDevices => self.signal_devices(Signal::SIGKILL),
            Act::StopDevices => {
                self.held.stopped = self.daemon.device_processes();
                self.signal_devices(Signal::SIGSTOP);
            }
            Act::KillDaemon => {
                self.daemon.signal(Signal::SIGKILL);
                self.daemon.wait();
            }
            Act::Reload => self.daemon.signal(Signal::SIGHUP),
            Act::BadConfiguration => {
                self.keep(&self.daemon.config_file());
                replace(&self.daemon.config_file(), b"nonsense = ");
                self.daemon.signal(Signal::SIGHUP);
            }
            Act::BadKeyring => {
                let keyring = self.daemon.state().keyring();
                self.keep(&keyring);
                replace(&keyring, b"{");
            }
            Act::RotateAudit => self.daemon.signal(Signal::SIGUSR1),
            Act::BlockAudit => {
                let log = self.daemon.audit_file();
                fs::rename(&log, log.with_extension("away")).unwrap();
                fs::create_dir(&log).unwrap();
            }
            Act::Descriptors => self.limit_descriptors("3"),
            Act::Connections => {
                let connect = || UnixStream::connect(self.daemon.socket()).unwrap();
                self.held.connections = (0..200).map(|_| connect()).collect();
            }
            Act::Frames => self.flood(),
            Act::Burst => self.burst(),
        }
    }

    pub(super) fn relieve(&mut self, fault: Fault) {
        for (path, contents) in std::mem::take(&mut self.held.kept) {
            replace(&path, &contents);
        }
        match fault.act {
            Act::Module(_) => self.shim().tell(""),
            Act::LoseToken => fs::rename(self.token().join("away"), self.token().join("tokens")).unwrap(),
            Act::WrongPin => {
                // Where the wrong one was not tried yet, there is nothing to open.
                let _ =
                    crate::support::signetctl(&self.daemon.config_file()).args(["device", "unlatch", "hsm"]).output();
            }
            Act::Bus(..) => self.proxy().mend(),
            Act::RefuseTpm => self.proxy().refuse(false),
            Act::KillTpm => self.tpm().restart(),
            Act::ResetTpm => self.proxy().start_up(),
            Act::StopTpm => self.tpm().signal(Signal::SIGCONT),
            Act::StopDevices => {
                for pid in std::mem::take(&mut self.held.stopped) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
                }
            }
            Act::KillDaemon => {
                self.daemon.spawn();
                self.daemon.wait_for_log("serving");
            }
            Act::BadConfiguration => self.daemon.signal(Signal::SIGHUP),
            Act::BlockAudit => {
                let log = self.daemon.audit_file();
                fs::remove_dir(&log).unwrap();
                fs::rename(log.with_extension("away"), &log).unwrap();
            }
            Act::Descriptors => self.limit_descriptors("1024"),
            Act::Connections => self.held.connections.clear(),
            _ => {}
        }
        self.mend_token();
    }

    /// Keeps a copy of the token as it is now.
    pub(super) fn keep_token(&self) {
        if self.token.is_some() {
            copy(&self.token().join("tokens"), &self.token().join("copy"));
        }
    }

    fn mend_token(&mut self) {
        let Some((token, _)) = &self.token else { return };
        let mut slots = Command::new("softhsm2-util");
        let slots = slots.arg("--show-slots").env("SOFTHSM2_CONF", token.configuration()).output().unwrap();
        if !String::from_utf8_lossy(&slots.stdout).contains(LABEL) {
            self.torn += 1;
            copy(&self.token().join("copy"), &self.token().join("tokens"));
        }
    }

    fn shim(&self) -> &Shim<'_> {
        &self.token.as_ref().unwrap().1
    }

    fn token(&self) -> PathBuf {
        self.token.as_ref().unwrap().0.directory.clone()
    }

    fn tpm(&mut self) -> &mut SwTpm {
        &mut self.tpm.as_mut().unwrap().0
    }

    fn proxy(&self) -> &TpmProxy {
        &self.tpm.as_ref().unwrap().1
    }

    fn keep(&mut self, path: &std::path::Path) {
        self.held.kept.push((path.to_owned(), fs::read(path).unwrap()));
    }

    fn signal_devices(&self, signal: Signal) {
        for pid in self.daemon.device_processes() {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    fn limit_descriptors(&self, files: &str) {
        let pid = self.daemon.pid().to_string();
        let set = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={files}:")]).status();
        assert!(set.unwrap().success());
    }

    /// Pings without end, until the daemon closes the connection.
    fn flood(&self) {
        let mut stream = UnixStream::connect(self.daemon.socket()).unwrap();
        std::thread::spawn(move || {
            let mut answers = stream.try_clone().unwrap();
            std::thread::spawn(move || while answers.read(&mut [0; 4096]).is_ok_and(|length| length > 0) {});
            let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
            let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
            let begun =
                stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").and_then(|()| stream.write_all(&settings));
            while begun.is_ok() && stream.write_all(&ping).is_ok() {}
        });
    }

    /// More at once than can be signed in time.
    fn burst(&self) {
        let client = self.daemon.client();
        for number in 0..400_u32 {
            let mut client = client.clone();
            let mut request: Request<proto::SignBlobRequest> = Request::new(payload(&number.to_be_bytes()));
            request.set_timeout(std::time::Duration::from_millis(500));
            tokio::spawn(async move { client.sign_blob(request).await });
        }
    }
}

/// Copies a folder with all that is in it, over what is there.
fn copy(from: &std::path::Path, to: &std::path::Path) {
    let copied = Command::new("cp").args(["-a", "-T"]).args([from, to]).status().unwrap();
    assert!(copied.success());
}

/// Replaces a file whole, as a package manager does.
fn replace(path: &std::path::Path, contents: &[u8]) {
    let mode = fs::metadata(path).unwrap().permissions();
    let new = path.with_extension("new");
    fs::write(&new, contents).unwrap();
    fs::set_permissions(&new, mode).unwrap();
    fs::rename(new, path).unwrap();
}
