//! The device process: the child's side of the pipe. It owns the PIN, the module and the sessions.
//!
//! One thread reads jobs, one thread for each [`Device`] does them; whoever finishes first writes for all that finished
//! with it. The process decides nothing: what is lost or refused it reports, and the daemon closes the pipe to have
//! a fresh one. When the pipe closes, it ends at once, whatever its workers are stuck in.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, raise};

use super::wire::{self, Answer, BadFrame, Frames, Job, Report, Work};
use super::{Device, DeviceConfig, DeviceError, DeviceKind, Opened, latch};
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
    let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut frames = Frames::default();
    // What a module starts must not hold the pipe.
    nix::unistd::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    let mut told = told;
    let config = loop {
        if let Some(config) = told.take() {
            break config;
        }
        receive(&mut socket, &mut frames)?;
        told = frames.next().map_err(io::Error::other)?;
    };
    let shared = Arc::new(Shared {
        jobs: Mutex::default(),
        arrived: Condvar::new(),
        replies: Mutex::default(),
        socket: socket.try_clone()?,
        refused: OnceLock::new(),
    });
    if let Err(error) = if config.sandbox { confine(&config) } else { Ok(()) } {
        let open = format!(r#"its process can't be confined: {error}; sandbox = "off" does without"#);
        shared.send(&Report::Refused(DeviceError::Misconfigured(open)));
        return Ok(());
    }
    // Reads from now on: a module may hang while it opens, and the process must end with its pipe nevertheless.
    let reader = Arc::clone(&shared);
    spawn("pipe", move || reader.read(socket, frames))?;

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
    for mut device in devices {
        let worker = Arc::clone(&shared);
        spawn("worker", move || worker.work(&mut *device))?;
    }
    let Some(mut device) = own else { return Err(io::Error::other("the device has no workers")) };
    shared.work(&mut *device)
}

/// Gives up what no device of its kind needs. A TPM's files are known; what a PKCS#11 module reads and writes is not.
fn confine(config: &DeviceConfig) -> Result<(), SandboxError> {
    if let DeviceKind::Tpm(tpm) = &config.kind {
        // A latch must be possible, and a folder that is not there can't be named. What fails here shows before any PIN is sent.
        let _ = latch::make_folder(&config.latch_file);
        let secrets = tpm.pin_file.iter().map(PathBuf::as_path);
        let latches = config.latch_file.parent();
        // The folder and not the TPM's file, which is another one when the driver has been away.
        let devices =
            [Some(Path::new("/dev")), tpm.tcti.strip_prefix("device:").and_then(|path| Path::new(path).parent())];
        let files = Files {
            read: LIBRARIES.iter().map(Path::new).chain(secrets).collect(),
            write: devices.into_iter().flatten().chain(latches).collect(),
            network: !tpm.tcti.starts_with("device"),
        };
        if sandbox::close_files(&files)? == Kept::Nothing {
            tracing::warn!(device = %config.name, "this kernel has no landlock: the device process could open more files than it needs");
        }
    }
    sandbox::close_calls()
}

struct Shared {
    /// Jobs with the time from which on they are late.
    jobs: Mutex<VecDeque<(Instant, Job)>>,
    arrived: Condvar,
    replies: Mutex<Replies>,
    socket: UnixStream,
    /// The first refusal of a PIN: nothing touches the device after it.
    refused: OnceLock<DeviceError>,
}

#[derive(Default)]
struct Replies {
    bytes: Vec<u8>,
    /// A worker writes now, and will write what is added meanwhile.
    writing: bool,
}

impl Shared {
    fn read(&self, mut socket: UnixStream, mut frames: Frames) -> ! {
        loop {
            let arrived = receive(&mut socket, &mut frames).map_err(|_closed| ()).and_then(|()| {
                self.queue(&mut frames).map_err(|error| tracing::error!("device process: from the daemon: {error}"))
            });
            if arrived.is_err() {
                end()
            }
        }
    }

    fn queue(&self, frames: &mut Frames) -> Result<(), BadFrame> {
        let now = Instant::now();
        let mut jobs = lock(&self.jobs);
        while let Some(job) = frames.next::<Job>()? {
            // What is too far away to be counted is no deadline.
            let deadline = now.checked_add(job.remaining).unwrap_or(now + Duration::from_secs(3600));
            jobs.push_back((deadline, job));
            self.arrived.notify_one();
        }
        Ok(())
    }

    fn work(&self, device: &mut dyn Device) -> ! {
        // A device that panics is as lost as one that crashes.
        let _end = EndOnPanic;
        loop {
            let (deadline, job) = self.next_job();
            let outcome = self.perform(device, &job, deadline);
            self.send(&Report::Done { id: job.id, outcome });
        }
    }

    fn next_job(&self) -> (Instant, Job) {
        let mut jobs = lock(&self.jobs);
        loop {
            if let Some(job) = jobs.pop_front() {
                return job;
            }
            jobs = self.arrived.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn perform(&self, device: &mut dyn Device, job: &Job, deadline: Instant) -> Result<Answer, DeviceError> {
        let mut retries = RETRIES;
        loop {
            if let Some(error) = self.refused.get() {
                return Err(error.clone());
            }
            if Instant::now() >= deadline {
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

    /// Writes a report now, or leaves it to the worker that is writing.
    fn send(&self, report: &Report) {
        let mut replies = lock(&self.replies);
        if wire::encode(report, &mut replies.bytes).is_err() {
            end()
        }
        if replies.writing {
            return;
        }
        replies.writing = true;
        while !replies.bytes.is_empty() {
            let batch = std::mem::take(&mut replies.bytes);
            drop(replies);
            if (&self.socket).write_all(&batch).is_err() {
                end()
            }
            replies = lock(&self.replies);
        }
        replies.writing = false;
    }
}

struct EndOnPanic;

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        end()
    }
}

/// Reads what is there into `frames`; an error also where the daemon has closed the pipe.
fn receive(socket: &mut UnixStream, frames: &mut Frames) -> io::Result<()> {
    let mut chunk = [0; 16 * 1024];
    let length = socket.read(&mut chunk)?;
    frames.push(chunk.get(..length).unwrap_or_default());
    if length == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(body).map(drop)
}

/// Ends the process now, but for the outcome of a login on its way, which is worth a moment: unknown, it may need an
/// operator. `exit` would run the destructors of a module in which other threads may be working.
fn end() -> ! {
    latch::settle();
    let _ = raise(Signal::SIGKILL);
    std::process::abort()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the TSS is made of, and what the C library reads to look up a host.
const LIBRARIES: [&str; 7] = ["/usr/lib", "/usr/local/lib", "/usr/lib64", "/lib", "/lib64", "/etc", "/proc/self"];
/// How often a passing condition is tried again, and after what pause.
const RETRIES: u32 = 2;
const PAUSE: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::*;
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
        let (jobs, replies, refused) = (Mutex::default(), Mutex::default(), OnceLock::new());
        Shared { jobs, arrived: Condvar::new(), replies, socket: UnixStream::pair().unwrap().0, refused }
    }

    fn perform(shared: &Shared, device: &mut Scripted, patience: Duration) -> Result<(), DeviceError> {
        let work = Work::Sign { algorithm: Algorithm::Rs256, digest: Digest::Sha256([0; 32]) };
        let job = Job { id: 1, remaining: patience, locator: KeyLocator::Handle(1), work };
        shared.perform(device, &job, Instant::now() + patience).map(drop)
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
