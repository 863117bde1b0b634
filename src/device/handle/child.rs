//! A running device process, as the daemon holds it: its end of the pipe, and the means to end it.

use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use serde::Serialize;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::OwnedSemaphorePermit;

use super::Launcher;
use crate::device::wire::{self, BadFrame, Frames, Report};
use crate::device::{DeviceConfig, DeviceError, DeviceKind, QUIET_TSS};

/// A device process and its pipe. Dropping it kills the process, and waits for nothing: one that the kernel holds in a
/// device's driver dies minutes later.
pub(super) struct DeviceProcess {
    pipe: UnixStream,
    incoming: Frames,
    chunk: Box<[u8]>,
    outgoing: Vec<u8>,
    /// Both go to the task that reaps the child.
    child: Option<(Child, OwnedSemaphorePermit)>,
}

impl DeviceProcess {
    /// Starts the process and tells it its configuration. The permit is returned when the process is no more.
    pub(super) fn start(
        launcher: &Launcher,
        config: &DeviceConfig,
        permit: OwnedSemaphorePermit,
    ) -> Result<Self, DeviceError> {
        let failed = |error: io::Error| DeviceError::Away(format!("its process can't be started: {error}"));
        let (pipe, childs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
        pipe.set_nonblocking(true).map_err(failed)?;
        let mut command = Command::new(&launcher.program);
        command
            .args(&launcher.arguments)
            .stdin(OwnedFd::from(childs))
            .stdout(Stdio::null())
            // Ctrl-C is for the daemon, which still drains.
            .process_group(0)
            .kill_on_drop(true);
        for variable in SUPERVISORS {
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
        let child = command.spawn().map_err(failed)?;
        let mut process = Self {
            pipe: UnixStream::from_std(pipe).map_err(failed)?,
            incoming: Frames::default(),
            chunk: vec![0; 16 * 1024].into_boxed_slice(),
            outgoing: Vec::new(),
            child: Some((child, permit)),
        };
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
        let Some((mut child, permit)) = self.child.take() else { return };
        let _ = child.start_kill();
        // Without a runtime the daemon itself is ending, and dropping the child has killed it.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let slow = tokio::time::timeout(SLOW, child.wait()).await.is_err();
            if slow {
                tracing::warn!("a killed device process has not ended: the kernel still waits for its device");
            }
            match child.wait().await {
                Ok(status) => tracing::debug!("a device process has ended: {status}"),
                Err(error) => tracing::warn!("a device process: {error}"),
            }
            drop(permit);
        });
    }
}

/// What the daemon has from its supervisor is for the daemon alone.
const SUPERVISORS: [&str; 6] =
    ["CREDENTIALS_DIRECTORY", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "INVOCATION_ID"];
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

/// A killed process that lives longer than this is worth a line in the log.
const SLOW: Duration = Duration::from_secs(2);
