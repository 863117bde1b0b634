//! A running device process, as the daemon holds it: its end of the pipe, and the means to end it.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, Shutdown, shutdown};
use serde::Serialize;
use tokio::process::{Child, Command};
use tokio::sync::OwnedSemaphorePermit;

use super::{Program, Start};
use crate::device::launcher::{self, LauncherProcess};
use crate::device::wire::{self, Report};
use crate::device::{DeviceConfig, DeviceError};
use crate::readable::Readable;

/// A device process and its pipe. Dropping it ends the process, which closes its device where it can, and waits for nothing: one
/// that the kernel holds in a device's driver dies minutes later.
pub(super) struct DeviceProcess {
    /// Looked after for reading alone: each message that the process takes would wake whoever waits to write.
    pipe: Readable<OwnedFd>,
    buffer: Box<[u8]>,
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
        pipe: OwnedFd,
    },
}

impl DeviceProcess {
    /// Starts the process and tells it its configuration, where its launcher does not. The permit is returned when the process is no more.
    pub(super) fn start(
        start: &Start,
        config: &DeviceConfig,
        permit: OwnedSemaphorePermit,
    ) -> Result<Self, DeviceError> {
        let failed = |error: io::Error| DeviceError::Away(format!("its process can't be started: {error}"));
        let (pipe, childs) = wire::pipe().map_err(failed)?;
        let child = match start {
            Start::Here(Program { program, arguments }) => {
                let mut command = Command::from(launcher::command(program, arguments, config));
                Running::Child(command.stdin(childs).kill_on_drop(true).spawn().map_err(failed)?)
            }
            Start::Apart(launcher) => {
                let id = NEXT_ID.fetch_add(1, Relaxed);
                launcher.launch(id, config, &childs).map_err(failed)?;
                let pipe = pipe.as_fd().try_clone_to_owned().map_err(failed)?;
                Running::Apart { launcher: Arc::clone(launcher), id, pipe }
            }
        };
        let told_already = matches!(child, Running::Apart { .. });
        let pipe = Readable::new(pipe).map_err(failed)?;
        let process = Self { pipe, buffer: wire::buffer(), child: Some((child, permit)) };
        if told_already {
            return Ok(process);
        }
        process.send(config).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => DeviceError::Misconfigured(format!("device {}: {error}", config.name)),
            _ => ended(&error),
        })?;
        Ok(process)
    }

    /// Kills the process at once, whatever it is stuck in.
    pub(super) fn kill(&mut self) {
        if let Some((process, _)) = &mut self.child {
            process.kill();
        }
    }

    /// Sends a message. `WouldBlock`: the process has not yet taken those before.
    pub(super) fn send<T: Serialize>(&self, message: &T) -> io::Result<()> {
        wire::send(self.pipe.get_ref(), message, MsgFlags::MSG_DONTWAIT)
    }

    /// The next report, where one has arrived.
    pub(super) fn try_receive(&mut self) -> Option<io::Result<Report>> {
        match wire::receive(self.pipe.get_ref(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            received => Some(received),
        }
    }

    /// Waits for the next report. Cancel-safe.
    pub(super) async fn receive(&mut self) -> io::Result<Report> {
        loop {
            let mut ready = self.pipe.readable().await?;
            if let Ok(received) =
                ready.try_io(|pipe| wire::receive(pipe.get_ref(), &mut self.buffer, MsgFlags::MSG_DONTWAIT))
            {
                return received;
            }
        }
    }
}

impl Drop for DeviceProcess {
    fn drop(&mut self) {
        let Some((mut process, permit)) = self.child.take() else { return };
        let _ = shutdown(self.pipe.get_ref().as_raw_fd(), Shutdown::Write);
        // Without a runtime the daemon itself is ending, and the process with it.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let closed = tokio::time::timeout(2 * wire::CLOSING, process.ended()).await.is_ok();
            // Also where it has ended: so its launcher learns of it.
            process.kill();
            if !closed && tokio::time::timeout(SLOW, process.ended()).await.is_err() {
                tracing::warn!("a killed device process has not ended: the kernel still waits for its device");
                process.ended().await;
            }
            drop(permit);
        });
    }
}

impl Running {
    fn kill(&mut self) {
        match self {
            Self::Child(child) => drop(child.start_kill()),
            Self::Apart { launcher, id, .. } => drop(launcher.end(*id)),
        }
    }

    /// Waits until the process is no more.
    async fn ended(&mut self) {
        match self {
            Self::Child(child) => match child.wait().await {
                Ok(status) => tracing::debug!("a device process has ended: {status}"),
                Err(error) => tracing::warn!("a device process: {error}"),
            },
            Self::Apart { pipe, .. } => {
                let Ok(pipe) = pipe.try_clone().and_then(Readable::new) else { return };
                let mut rest = wire::buffer();
                while let Ok(mut ready) = pipe.readable().await {
                    let received =
                        ready.try_io(|pipe| wire::receive::<Report>(pipe.get_ref(), &mut rest, MsgFlags::MSG_DONTWAIT));
                    if matches!(received, Ok(Err(error)) if error.kind() != io::ErrorKind::InvalidData) {
                        break;
                    }
                }
                tracing::debug!("a device process has ended");
            }
        }
    }
}

/// Why a process is lost whose pipe fails.
pub(super) fn ended(error: &io::Error) -> DeviceError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => DeviceError::Away("its process ended".to_owned()),
        io::ErrorKind::InvalidData => nonsense(error),
        _ => DeviceError::Away(format!("the pipe to its process: {error}")),
    }
}

/// Why a process is lost that says what it never would.
pub(super) fn nonsense(what: &dyn std::fmt::Display) -> DeviceError {
    DeviceError::Away(format!("its process talks nonsense: {what}"))
}

static NEXT_ID: AtomicU64 = AtomicU64::new(0);
/// A killed process that lives longer than this is worth a line in the log.
const SLOW: Duration = Duration::from_secs(2);
