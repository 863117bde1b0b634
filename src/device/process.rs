//! The device process: the child's side of the pipe. It owns the PIN, the module and the sessions.
//!
//! A thread for each [`Device`] takes jobs from the pipe itself: the kernel hands each to one that is idle, and always to the
//! same one while that keeps up, whose caches are warm. The process decides nothing: what is lost or refused it reports,
//! and the daemon kills it to have a fresh one. When the pipe closes, it closes the device, as far as that takes no time, and ends,
//! whatever its workers are stuck in.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::socket::MsgFlags;

use super::wire::{self, Answer, Done, Job, Report, Work};
use super::{Device, DeviceConfig, DeviceError, DeviceKind, Opened, TpmConfig, latch};
use crate::log;
use crate::sandbox::{self, Files, Kept, SandboxError};

/// Runs the device process on the socket that stands at standard input, until the daemon closes it. Returns the exit code.
/// The daemon tells the configuration first, where it was not told otherwise.
/// To be called before there are other threads.
pub fn run(told: Option<DeviceConfig>, open: impl Fn(&DeviceConfig) -> Result<Opened, DeviceError>) -> u8 {
    match keep_signals_for_the_daemon().and_then(|()| serve(told, open)) {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!("device process: {error}");
            1
        }
    }
}

/// A signal to the whole unit or to all of this name is for the daemon, which drains or reloads: its other processes must last.
pub(super) fn keep_signals_for_the_daemon() -> io::Result<()> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1]);
    signals.thread_block().map_err(io::Error::from)
}

/// Returns where the device could not be opened; otherwise serves until [`end`].
fn serve(told: Option<DeviceConfig>, open: impl Fn(&DeviceConfig) -> Result<Opened, DeviceError>) -> io::Result<()> {
    let pipe = io::stdin().as_fd().try_clone_to_owned()?;
    // What a module starts must not hold the pipe.
    nix::unistd::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    let config = told.map_or_else(|| wire::receive(&pipe, &mut wire::buffer(), MsgFlags::empty()), Ok)?;
    let shared = Arc::new(Shared { pipe, refused: OnceLock::new() });
    if let Err(error) = if config.sandbox { confine(&config) } else { Ok(()) } {
        let problem = format!(r#"its process can't be confined: {error}; sandbox = "off" does without"#);
        shared.send(&Report::Refused(DeviceError::Misconfigured(problem)));
        return Ok(());
    }
    log::detach()?;
    // Watched from now on: a module may hang while it opens, and the process must end with its pipe nevertheless.
    let watched = Arc::clone(&shared);
    spawn("pipe", move || watched.end_with_pipe())?;

    let devices = match open(&config) {
        Ok(devices) => devices,
        Err(error) => {
            shared.send(&Report::Refused(error));
            return Ok(());
        }
    };
    tracing::debug!(device = %config.name, workers = devices.len(), "opened by its process");
    shared.send(&Report::Opened { workers: u32::try_from(devices.len()).unwrap_or(u32::MAX) });
    let mut devices = devices.into_iter();
    let own = devices.next();
    for device in devices {
        let (worker, jobs) = (Arc::clone(&shared), Jobs::of(&shared)?);
        spawn("worker", move || worker.work(device, jobs))?;
    }
    let Some(device) = own else { return Err(io::Error::other("the device has no workers")) };
    let jobs = Jobs::of(&shared)?;
    shared.work(device, jobs)
}

/// Gives up what a device of its kind does not need. What a PKCS#11 module reads and writes is known only where its `files`
/// say so.
fn confine(config: &DeviceConfig) -> Result<(), SandboxError> {
    // A latch must be possible, and a folder that is not there can't be named. What fails here shows before any PIN is sent.
    let _ = latch::make_folder(&config.latch_file);
    let own = match &config.kind {
        DeviceKind::Tpm(tpm) => Some(of_tpm(tpm)),
        DeviceKind::Pkcs11(pkcs11) => pkcs11.files.as_deref().map(|files| of_module(&pkcs11.module, files)),
    };
    match own {
        Some(mut files) => {
            files.read.extend(sandbox::LIBRARIES.iter().map(PathBuf::from));
            files.read.push("/proc/self".into());
            files.read.extend(sandbox::resolver());
            files.read.extend(config.pin_file().map(Path::to_owned));
            files.write.extend(config.latch_file.parent().map(Path::to_owned));
            if sandbox::close_files(&files)? == Kept::Nothing {
                tracing::warn!(device = %config.name, "this kernel has no landlock: the device process could open more files than it needs");
            }
        }
        None => {
            sandbox::close_signals()?;
        }
    }
    sandbox::close_calls()
}

/// All of /dev, since a TPM is another file there, of another number, when its driver has been away; the modes of what else
/// is there stand against the rest.
fn of_tpm(tpm: &TpmConfig) -> Files<PathBuf> {
    let folder = tpm.tcti.strip_prefix("device:").and_then(|path| Path::new(path).parent());
    let write = [Some(Path::new("/dev")), folder].into_iter().flatten().map(Path::to_owned).collect();
    Files { read: Vec::new(), write, connect: !tpm.tcti.starts_with("device"), bind: Some(Vec::new()) }
}

/// A module's own file, those that a variable of its environment names, and what it was given. It may talk to an HSM.
fn of_module(module: &Path, files: &[PathBuf]) -> Files<PathBuf> {
    let variables = std::env::vars_os().map(|(_, value)| PathBuf::from(value));
    let named = variables.filter(|path| path.is_absolute() && path.is_file());
    let given = files.iter().cloned().chain(["/dev/null".into()]);
    Files { read: named.chain([module.to_owned()]).collect(), write: given.collect(), connect: true, bind: None }
}

struct Shared {
    pipe: OwnedFd,
    /// The first refusal of a PIN: nothing touches the device after it.
    refused: OnceLock<DeviceError>,
}

/// A worker's way to its next job.
struct Jobs {
    shared: Arc<Shared>,
    /// Of the workers that wait, the kernel wakes one, in the order in which they came to the pipe (EPOLLEXCLUSIVE,
    /// epoll_ctl(2)).
    turn: Epoll,
    buffer: Box<[u8]>,
    /// What became of the last jobs, and is yet to be told, with when the first of them was begun.
    done: Vec<Done>,
    begun: Instant,
    last: Option<Job>,
}

impl Jobs {
    fn of(shared: &Arc<Shared>) -> io::Result<Self> {
        let turn = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        turn.add(&shared.pipe, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE, 0))?;
        Ok(Self {
            shared: Arc::clone(shared),
            turn,
            buffer: wire::buffer(),
            done: Vec::new(),
            begun: Instant::now(),
            last: None,
        })
    }

    fn next(&mut self) -> io::Result<Job> {
        loop {
            match wire::receive(&self.shared.pipe, &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.tell(),
                Ok(job) => {
                    // How long another key or algorithm takes is not known.
                    if !self.last.as_ref().is_some_and(|last| last.is_like(&job)) {
                        self.tell();
                    }
                    return Ok(job);
                }
                error => return error,
            }
            match self.turn.wait(&mut [EpollEvent::empty()], EpollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Says what became of a job: at once, or with the next where one waits that is like it and both are quick.
    fn done(&mut self, job: Job, begun: Instant, outcome: Result<Answer, DeviceError>) {
        if self.done.is_empty() {
            self.begun = begun;
        }
        let failed = outcome.is_err();
        self.done.push(Done { id: job.id, outcome });
        self.last = Some(job);
        if failed || self.done.len() >= wire::TOGETHER || self.begun.elapsed() >= wire::QUICK {
            self.tell();
        }
    }

    fn tell(&mut self) {
        if !self.done.is_empty() {
            self.shared.send(&Report::Done(std::mem::take(&mut self.done)));
        }
    }
}

impl Shared {
    /// What arrives does not wake this thread, only the end.
    fn end_with_pipe(&self) -> ! {
        let end_of_peer = PollFlags::from_bits_retain(libc::POLLRDHUP);
        let mut pipe = [PollFd::new(self.pipe.as_fd(), end_of_peer)];
        while poll(&mut pipe, PollTimeout::NONE).is_err() {}
        thread::sleep(wire::CLOSING);
        end()
    }

    fn work(&self, mut device: Box<dyn Device + Send>, mut jobs: Jobs) -> ! {
        // A device that panics is as lost as one that crashes.
        let _end = EndOnPanic;
        loop {
            match jobs.next() {
                Ok(job) => {
                    let begun = Instant::now();
                    let outcome = self.perform(&mut *device, &job);
                    jobs.done(job, begun, outcome);
                }
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    // What a TPM without a resource manager has loaded for us would stay there.
                    drop(device);
                    end()
                }
                Err(error) => {
                    tracing::error!("device process: from the daemon: {error}");
                    end()
                }
            }
        }
    }

    fn perform(&self, device: &mut dyn Device, job: &Job) -> Result<Answer, DeviceError> {
        let mut retries = RETRIES;
        loop {
            if let Some(error) = self.refused.get() {
                return Err(error.clone());
            }
            if wire::now() >= job.deadline {
                return Err(DeviceError::Late);
            }
            let outcome = match &job.work {
                Work::PublicKey => device.public_key(&job.locator).map(|key| Answer::PublicKey(key.spki().to_vec())),
                Work::Sign { algorithm, digest } => device.sign(&job.locator, *algorithm, digest).map(Answer::Sign),
            };
            match outcome {
                Err(DeviceError::Transient(_)) if retries > 0 => {
                    retries -= 1;
                    thread::sleep(PAUSE);
                }
                Err(error @ DeviceError::PinRefused(_)) => {
                    let _ = self.refused.set(error.clone());
                    return Err(error);
                }
                outcome => return outcome,
            }
        }
    }

    fn send(&self, report: &Report) {
        // Where the pipe has ended, whoever receives from it is told.
        let ended =
            |error: &io::Error| matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
        if wire::send(&self.pipe, report, MsgFlags::empty()).is_err_and(|error| !ended(&error)) {
            end()
        }
    }
}

struct EndOnPanic;

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        end()
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(body).map(drop)
}

/// Ends the process now, but for the outcome of a login on its way, which is worth a moment: unknown, it may need an
/// operator. `exit` would run the destructors of a module in which other threads may be working.
fn end() -> ! {
    latch::settle();
    log::flush(A_MOMENT);
    let _ = raise(Signal::SIGKILL);
    std::process::abort()
}

/// How often a passing condition is tried again, and after what pause.
const RETRIES: u32 = 2;
const PAUSE: Duration = Duration::from_millis(5);
/// For the last lines of the log, if somebody reads them.
const A_MOMENT: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::device::TpmSession;
    use crate::key::{Algorithm, Digest, KeyLocator, PublicKey, Signature};

    /// Answers in turn what it was given, and counts.
    struct Scripted {
        answers: Vec<DeviceError>,
        calls: usize,
    }

    impl Device for Scripted {
        fn public_key(&mut self, _key: &KeyLocator) -> Result<PublicKey, DeviceError> {
            unreachable!()
        }

        fn sign(&mut self, _: &KeyLocator, _: Algorithm, _: &Digest) -> Result<Signature, DeviceError> {
            self.calls += 1;
            self.answers.pop().map_or_else(|| Ok(Signature::from_bytes(vec![1])), Err)
        }
    }

    fn shared() -> Shared {
        Shared { pipe: wire::pipe().unwrap().0, refused: OnceLock::new() }
    }

    fn perform(shared: &Shared, device: &mut Scripted, patience: Duration) -> Result<(), DeviceError> {
        let work = Work::Sign { algorithm: Algorithm::Rs256, digest: Digest::Sha256([0; 32]) };
        let job = Job { id: 1, deadline: wire::now() + patience, locator: KeyLocator::Handle(1), work };
        shared.perform(device, &job).map(drop)
    }

    #[test]
    fn quick_answers_are_told_together_but_never_wait_for_other_work() {
        let (daemon, pipe) = wire::pipe().unwrap();
        let shared = Arc::new(Shared { pipe, refused: OnceLock::new() });
        let mut jobs = Jobs::of(&shared).unwrap();
        let mut buffer = wire::buffer();
        let mut told = || match wire::receive(&daemon, &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(Report::Done(done)) => done.iter().map(|done| done.id).collect::<Vec<_>>(),
            _ => Vec::new(),
        };
        // The third is by another algorithm, and behind the fourth there is none.
        for (id, algorithm) in
            [(1, Algorithm::Rs256), (2, Algorithm::Rs256), (3, Algorithm::Ps256), (4, Algorithm::Ps256)]
        {
            let work = Work::Sign { algorithm, digest: Digest::Sha256([0; 32]) };
            let job = Job { id, deadline: wire::now(), locator: KeyLocator::Handle(1), work };
            wire::send(&daemon, &job, MsgFlags::empty()).unwrap();
        }
        let mut seen = Vec::new();
        for _ in 1..=4 {
            let job = jobs.next().unwrap();
            seen.push(told());
            // None of them takes any time.
            jobs.done(job, Instant::now() + Duration::from_secs(60), Ok(Answer::PublicKey(Vec::new())));
        }
        assert_eq!(seen, [vec![], vec![], vec![1, 2], vec![]]);
        drop(daemon);
        assert!(jobs.next().is_err());
    }

    #[test]
    fn a_tpms_process_reads_its_own_pin_and_of_etc_what_libraries_do() {
        let folder = tempfile::tempdir().unwrap();
        let [own, other] = ["own.pin", "other.pin"].map(|name| folder.path().join(name));
        for pin in [&own, &other] {
            fs::write(pin, "1234").unwrap();
        }
        let tcti = "device:/dev/tpmrm0".to_owned();
        let pin_file = Some(own.clone());
        let tpm = TpmConfig { tcti, pin_file, owner_auth_file: None, session: TpmSession::Plain, parent: None };
        let config = DeviceConfig {
            name: "tpm".parse().unwrap(),
            kind: DeviceKind::Tpm(tpm),
            call_limit: PAUSE,
            queue: 1,
            latch_file: folder.path().join("latches/tpm.json"),
            sandbox: true,
        };
        let known = |path: &Path| {
            sandbox::LIBRARIES.iter().any(|known| Path::new(known) == path)
                || sandbox::resolver().iter().any(|known| known == path)
        };
        let entries = fs::read_dir("/etc").unwrap().map(|entry| entry.unwrap());
        let files = entries.filter(|entry| entry.file_type().unwrap().is_file()).map(|entry| entry.path());
        let others: Vec<_> = files.filter(|path| !known(path) && fs::File::open(path).is_ok()).chain([other]).collect();
        assert!(others.len() > 1, "/etc holds other files");
        // Confinement binds a thread, and ends with it.
        let looked = thread::spawn(move || {
            confine(&config).unwrap();
            fs::File::open(own).unwrap();
            fs::File::open("/etc/nsswitch.conf").unwrap();
            latch::check(&config.latch_file).unwrap();
            for path in others {
                let error = fs::File::open(&path).map(drop).map_err(|error| error.kind());
                assert_eq!(error, Err(io::ErrorKind::PermissionDenied), "{}", path.display());
            }
        });
        looked.join().unwrap();
    }

    #[test]
    fn what_is_late_already_never_touches_the_device() {
        let mut device = Scripted { answers: Vec::new(), calls: 0 };
        assert_eq!(perform(&shared(), &mut device, Duration::ZERO), Err(DeviceError::Late));
        assert_eq!(device.calls, 0);
    }

    #[test]
    fn a_passing_condition_is_not_retried_beyond_the_deadline() {
        let mut device = Scripted { answers: vec![DeviceError::Transient(String::new()); 9], calls: 0 };
        assert_eq!(perform(&shared(), &mut device, PAUSE / 2), Err(DeviceError::Late));
        assert_eq!(device.calls, 1);
    }

    #[test]
    fn after_a_refused_pin_no_worker_touches_the_device() {
        let refused = DeviceError::PinRefused("no".to_owned());
        let mut first = Scripted { answers: vec![refused.clone()], calls: 0 };
        let mut second = Scripted { answers: Vec::new(), calls: 0 };
        let shared = shared();
        let patience = Duration::from_secs(9);
        assert_eq!(perform(&shared, &mut first, patience), Err(refused.clone()));
        assert_eq!(perform(&shared, &mut first, patience), Err(refused.clone()));
        assert_eq!(perform(&shared, &mut second, patience), Err(refused));
        assert_eq!((first.calls, second.calls), (1, 0));
    }
}
