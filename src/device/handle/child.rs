//! A running device process, as the daemon holds it: its end of the pipe, and the means to end it.

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde::Serialize;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::OwnedSemaphorePermit;

use super::{Launcher, Start};
use crate::device::launcher::{self, LauncherProcess};
use crate::device::wire::{self, BadFrame, Frames, Report};
use crate::device::{DeviceConfig, DeviceError};

/// A device process and its pipe. Dropping it kills the process, and waits for nothing: one that the kernel holds in a
/// device's driver dies minutes later.
pub(super) struct DeviceProcess {
    pipe: UnixStream,
    incoming: Frames,
    chunk: Box<[u8]>,
    outgoing: Vec<u8>,
    /// Both go to the task that reaps the child.
    child: Option<(Running, OwnedSemaphorePermit)>,
}

/// A process that was started.
enum Running {
    Child(Child),
    /// The launcher's child. The pipe is a second hold on ours: it ends when the process does.
    Apart {
        launcher: Arc<LauncherProcess>,
        id: u64,
        pipe: std::os::unix::net::UnixStream,
    },
}

impl DeviceProcess {
    /// Starts the process and tells it its configuration, where its launcher does not. The permit is returned when the process is no more.
    pub(super) fn start(
        launcher: &Start,
        config: &DeviceConfig,
        permit: OwnedSemaphorePermit,
    ) -> Result<Self, DeviceError> {
        let failed = |error: io::Error| DeviceError::Away(format!("its process can't be started: {error}"));
        let (pipe, childs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
        pipe.set_nonblocking(true).map_err(failed)?;
        let child = match launcher {
            Start::Here(Launcher { program, arguments }) => {
                let mut command = Command::from(launcher::command(program, arguments, config));
                Running::Child(command.stdin(OwnedFd::from(childs)).kill_on_drop(true).spawn().map_err(failed)?)
            }
            Start::Apart(launcher) => {
                let id = NEXT_ID.fetch_add(1, Relaxed);
                launcher.launch(id, config, &OwnedFd::from(childs)).map_err(failed)?;
                let pipe = pipe.try_clone().map_err(failed)?;
                Running::Apart { launcher: Arc::clone(launcher), id, pipe }
            }
        };
        let told_already = matches!(child, Running::Apart { .. });
        let mut process = Self {
            pipe: UnixStream::from_std(pipe).map_err(failed)?,
            incoming: Frames::default(),
            chunk: vec![0; 16 * 1024].into_boxed_slice(),
            outgoing: Vec::new(),
            child: Some((child, permit)),
        };
        if told_already {
            return Ok(process);
        }
        process.send(config).map_err(|error| DeviceError::Misconfigured(format!("device {}: {error}", config.name)))?;
        Ok(process)
    }

    /// Adds a frame to what [`Self::flush`] writes.
    pub(super) fn send<T: Serialize>(&mut self, frame: &T) -> Result<(), BadFrame> {
        wire::encode(frame, &mut self.outgoing)
    }

    /// Writes as much as the pipe takes now; [`Self::receive`] writes the rest.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            match self.pipe.try_write(&self.outgoing) {
                Ok(written) => drop(self.outgoing.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until something has arrived for [`Self::report`]. Cancel-safe.
    pub(super) async fn receive(&mut self) -> io::Result<()> {
        loop {
            let writing = if self.outgoing.is_empty() { Interest::READABLE } else { Interest::WRITABLE };
            self.pipe.ready(Interest::READABLE | writing).await?;
            self.flush()?;
            match self.pipe.try_read(&mut self.chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => {
                    self.incoming.push(self.chunk.get(..length).unwrap_or_default());
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The next report that has arrived whole.
    pub(super) fn report(&mut self) -> Result<Option<Report>, BadFrame> {
        self.incoming.next()
    }
}

impl Drop for DeviceProcess {
    fn drop(&mut self) {
        let Some((mut process, permit)) = self.child.take() else { return };
        process.kill();
        // Without a runtime the daemon itself is ending, and the process with it.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let mut ended = Box::pin(process.ended());
            let slow = tokio::time::timeout(SLOW, &mut ended).await.is_err();
            if slow {
                tracing::warn!("a killed device process has not ended: the kernel still waits for its device");
                ended.await;
            }
            drop(permit);
        });
    }
}

impl Running {
    fn kill(&mut self) {
        match self {
            Self::Child(child) => drop(child.start_kill()),
            Self::Apart { launcher, id, pipe } => {
                // Its end of the pipe ends too, and it with it, should the launcher be no more.
                let _ = pipe.shutdown(Shutdown::Write);
                let _ = launcher.end(*id);
            }
        }
    }

    /// Waits until the process is no more.
    async fn ended(self) {
        match self {
            Self::Child(mut child) => match child.wait().await {
                Ok(status) => tracing::debug!("a device process has ended: {status}"),
                Err(error) => tracing::warn!("a device process: {error}"),
            },
            Self::Apart { pipe, .. } => {
                let Ok(pipe) = UnixStream::from_std(pipe) else { return };
                let mut rest = [0; 4096];
                while pipe.readable().await.is_ok() {
                    match pipe.try_read(&mut rest) {
                        Ok(1..) => {}
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Ok(0) | Err(_) => break,
                    }
                }
                tracing::debug!("a device process has ended");
            }
        }
    }
}

/// Why a process is lost whose pipe fails.
pub(super) fn ended(error: &io::Error) -> DeviceError {
    DeviceError::Away(match error.kind() {
        io::ErrorKind::UnexpectedEof => "its process ended".to_owned(),
        _ => format!("the pipe to its process: {error}"),
    })
}

/// Why a process is lost that says what it never would.
pub(super) fn nonsense(what: &dyn std::fmt::Display) -> DeviceError {
    DeviceError::Away(format!("its process talks nonsense: {what}"))
}

static NEXT_ID: AtomicU64 = AtomicU64::new(0);
/// A killed process that lives longer than this is worth a line in the log.
const SLOW: Duration = Duration::from_secs(2);
