//! The launcher: a small process that starts device processes for a daemon that has given up the right to.
//!
//! What a confined daemon may not do its children may not either, and they have to open devices, PINs and modules. So they
//! are another process's children. That process is told once, before the daemon meets a caller, which devices there are and
//! where they are configured; from then on the daemon names one, passes an end of a pipe, and can have nothing else started, nor
//! started otherwise: of a device that is configured otherwise by now the launcher reads the configuration itself. It reads it
//! to the daemon as well, which may open no other file in that folder: a PIN may stand there.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::process::keep_signals_for_the_daemon;
use super::{DeviceConfig, DeviceKind, QUIET_TSS, wire};
use crate::key::DeviceName;
use crate::log;

/// The daemon's end: the launcher ends when this is dropped, and its device processes with it.
#[derive(Debug)]
pub struct LauncherProcess {
    socket: OwnedFd,
}

/// What the launcher is told.
#[derive(Serialize, Deserialize)]
enum Order {
    /// First and once: the devices there are, and the file that says so.
    Know(Vec<DeviceConfig>, PathBuf),
    /// Start the process of this device, which the daemon knows by this configuration, on the descriptor that comes with it.
    Start { id: u64, device: DeviceName, fingerprint: Fingerprint },
    /// Kill it.
    End { id: u64 },
    /// Write what stands in the configuration to the descriptor that comes with it, or why it can't be read.
    Read,
}

/// What two configurations have in common only if they are the same.
type Fingerprint = [u8; 32];

fn fingerprint(config: &DeviceConfig) -> io::Result<Fingerprint> {
    let bytes = postcard::to_stdvec(config).map_err(io::Error::other)?;
    let mut fingerprint = Fingerprint::default();
    fingerprint.copy_from_slice(digest(&SHA256, &bytes).as_ref());
    Ok(fingerprint)
}

impl LauncherProcess {
    /// Starts the launcher: this program with the arguments that make it [`run`]. The devices are those of this file.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn start(program: &Path, arguments: &[OsString], devices: &[DeviceConfig], file: &Path) -> io::Result<Self> {
        let (socket, launchers) = wire::pipe()?;
        Command::new(program)
            .args(arguments)
            .stdin(launchers)
            .stdout(Stdio::null())
            // Ctrl-C is for the daemon, which still drains.
            .process_group(0)
            .spawn()?;
        let launcher = Self { socket };
        launcher.order(&Order::Know(devices.to_vec(), file.to_owned()), None)?;
        Ok(launcher)
    }

    /// Has a device's process started on its end of a pipe. Where that fails, the pipe is closed.
    pub(super) fn launch(&self, id: u64, device: &DeviceConfig, pipe: &OwnedFd) -> io::Result<()> {
        self.order(&Order::Start { id, device: device.name.clone(), fingerprint: fingerprint(device)? }, Some(pipe))
    }

    /// Has a device's process killed.
    pub(super) fn end(&self, id: u64) -> io::Result<()> {
        self.order(&Order::End { id }, None)
    }

    /// Reads the configuration as it is now. Blocks.
    ///
    /// # Errors
    /// Where it can't be read.
    pub fn read(&self) -> io::Result<String> {
        let (mut ours, theirs) = UnixStream::pair()?;
        self.order(&Order::Read, Some(&theirs.into()))?;
        let mut told = Vec::new();
        ours.read_to_end(&mut told)?;
        let text: Result<String, String> = postcard::from_bytes(&told).map_err(io::Error::other)?;
        text.map_err(io::Error::other)
    }

    /// Waits for the launcher's end, which is the end of all devices. Blocks.
    pub fn wait(&self) -> io::Result<()> {
        // It never writes: what arrives is its end.
        let mut socket = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        poll(&mut socket, PollTimeout::NONE)?;
        Ok(())
    }

    fn order(&self, order: &Order, pipe: Option<&OwnedFd>) -> io::Result<()> {
        let bytes = postcard::to_stdvec(order).map_err(io::Error::other)?;
        let descriptors: Vec<_> = pipe.iter().map(|pipe| pipe.as_raw_fd()).collect();
        let with_pipe = [ControlMessage::ScmRights(&descriptors)];
        let control = if pipe.is_some() { with_pipe.as_slice() } else { &[] };
        sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(&bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }
}

/// Runs the launcher on the socket that stands at standard input, until the daemon closes it. Device processes are
/// `program arguments CONFIG`. `reread` tells the devices of a configuration file as it is now. Returns the exit code.
pub fn run(
    program: PathBuf,
    arguments: Vec<OsString>,
    reread: impl Fn(&Path) -> Result<Vec<DeviceConfig>, String>,
) -> u8 {
    let launched = keep_signals_for_the_daemon().and_then(|()| {
        let ended = SigSet::from_iter([Signal::SIGCHLD]);
        ended.thread_block()?;
        let ends = SignalFd::with_flags(&ended, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        log::detach()?;
        let socket = io::stdin().as_fd().try_clone_to_owned()?;
        let (devices, children, dying, told) = (Vec::new(), HashMap::new(), Vec::new(), HashMap::new());
        Launcher { program, arguments, socket, devices, file: None, reread, children, dying, ends, told }.serve()
    });
    match launched {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!("launcher of device processes: {error}");
            1
        }
    }
}

/// The launcher's side.
struct Launcher<F> {
    program: PathBuf,
    arguments: Vec<OsString>,
    socket: OwnedFd,
    devices: Vec<DeviceConfig>,
    /// Where they stand. None before the daemon has said.
    file: Option<PathBuf>,
    reread: F,
    children: HashMap<u64, Child>,
    /// Killed, and not yet ended.
    dying: Vec<Child>,
    /// Tells that a child has ended.
    ends: SignalFd,
    /// Why a device's process could not be started the last time: it is tried again and again, and told once.
    told: HashMap<DeviceName, String>,
}

impl<F: Fn(&Path) -> Result<Vec<DeviceConfig>, String>> Launcher<F> {
    fn serve(&mut self) -> io::Result<()> {
        loop {
            let news = [self.socket.as_fd(), self.ends.as_fd()];
            let mut news = news.map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN));
            poll(&mut news, PollTimeout::NONE)?;
            let [ordered, ended] = news.map(|descriptor| descriptor.any().unwrap_or_default());
            if ended {
                while self.ends.read_signal()?.is_some() {}
                // What a module has forked holds the pipe, by which the daemon sees that the process has ended.
                self.children.values_mut().filter(|child| has_ended(child)).for_each(kill);
            }
            if ordered {
                let Some((order, pipe)) = receive(&self.socket)? else { break };
                self.obey(order, pipe);
            }
            self.dying.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        }
        self.end();
        Ok(())
    }

    /// Lets the processes end, whose pipes have ended with the daemon, and kills those that can't.
    fn end(&mut self) {
        let until = Instant::now() + 2 * wire::CLOSING;
        while Instant::now() < until && !self.children.values().all(has_ended) {
            thread::sleep(GLANCE);
        }
        self.children.values_mut().for_each(kill);
    }

    fn obey(&mut self, order: Order, pipe: Option<OwnedFd>) {
        match (order, pipe) {
            (Order::Know(devices, file), None) if self.file.is_none() => {
                (self.devices, self.file) = (devices, Some(file));
            }
            (Order::Start { id, device, fingerprint }, Some(pipe)) => match self.start(&device, fingerprint, pipe) {
                Ok(child) => {
                    self.told.remove(&device);
                    self.children.insert(id, child);
                }
                Err(error) => {
                    let why = error.to_string();
                    if self.told.get(&device) != Some(&why) {
                        tracing::error!(%device, "its process can't be started: {why}");
                        self.told.insert(device, why);
                    }
                }
            },
            (Order::End { id }, None) => {
                if let Some(mut child) = self.children.remove(&id) {
                    kill(&mut child);
                    self.dying.push(child);
                }
            }
            (Order::Read, Some(pipe)) => {
                let text = self.file().and_then(fs::read_to_string).map_err(|error| error.to_string());
                let told = postcard::to_stdvec(&text).map_err(io::Error::other);
                if let Err(error) = told.and_then(|told| UnixStream::from(pipe).write_all(&told)) {
                    tracing::error!("launcher of device processes: the configuration is not told: {error}");
                }
            }
            _ => tracing::error!("launcher of device processes: refused an order"),
        }
    }

    fn start(&mut self, device: &DeviceName, wanted: Fingerprint, pipe: OwnedFd) -> io::Result<Child> {
        if self.find(device, wanted).is_none() {
            self.devices = (self.reread)(self.file()?).map_err(io::Error::other)?;
        }
        let config = self.find(device, wanted);
        let config = config.ok_or_else(|| io::Error::other("it is configured otherwise now: reload signetd"))?;
        // Everybody may read arguments, and a variable may hold a secret of the module's.
        let text = serde_json::to_string(&config.without_environment())?;
        command(&self.program, &self.arguments, config).arg(text).stdin(pipe).spawn()
    }

    fn file(&self) -> io::Result<&Path> {
        self.file.as_deref().ok_or_else(|| io::Error::other("the daemon has not told of a configuration"))
    }

    fn find(&self, device: &DeviceName, wanted: Fingerprint) -> Option<&DeviceConfig> {
        let is_wanted = |config: &DeviceConfig| fingerprint(config).is_ok_and(|fingerprint| fingerprint == wanted);
        self.devices.iter().find(|config| config.name == *device && is_wanted(config))
    }
}

/// The command of a device's process, with the environment that it is to have.
pub(super) fn command(program: &Path, arguments: &[OsString], config: &DeviceConfig) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).stdout(Stdio::null()).process_group(0);
    for variable in DAEMONS {
        command.env_remove(variable);
    }
    match &config.kind {
        DeviceKind::Pkcs11(pkcs11) => {
            if let Some(environment) = &pkcs11.environment {
                command.env_clear().envs(environment);
            }
        }
        DeviceKind::Tpm(_) => {
            let (variable, quiet) = QUIET_TSS;
            command.env(variable, std::env::var_os(variable).unwrap_or_else(|| quiet.into()));
        }
    }
    command
}

/// Whether a child has ended: its id stays its own until it is reaped.
fn has_ended(child: &Child) -> bool {
    let glance = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::Pid(pid(child)), glance).is_ok_and(|status| status != WaitStatus::StillAlive)
}

/// Kills a child that was not reaped yet, and all that it has forked, which is of its group.
fn kill(child: &mut Child) {
    let _ = killpg(pid(child), Signal::SIGKILL);
    let _ = child.kill();
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// The next order; none where the daemon has ended.
#[allow(unsafe_code, reason = "a descriptor that was received is a bare number to nix")]
fn receive(socket: &OwnedFd) -> io::Result<Option<(Order, Option<OwnedFd>)>> {
    let mut bytes = vec![0; LONGEST_ORDER];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let mut control = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut pipe = None;
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = message {
            // SAFETY: the kernel has just opened them for this process, and nothing else knows of them.
            pipe = descriptors.into_iter().map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) }).next();
        }
    }
    let length = received.bytes;
    if length == 0 {
        return Ok(None);
    }
    let order = postcard::from_bytes(bytes.get(..length).unwrap_or_default()).map_err(io::Error::other)?;
    Ok(Some((order, pipe)))
}

/// What the daemon has from its supervisor is for the daemon alone, and so is its configuration.
const DAEMONS: [&str; 7] = [
    "CREDENTIALS_DIRECTORY",
    "INVOCATION_ID",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "SIGNET_CONFIG",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];
const LONGEST_ORDER: usize = 128 << 10;
/// How often is looked whether the last have ended.
const GLANCE: Duration = Duration::from_millis(5);
