//! The device process alone: the daemon's handle of it, with its pipe and its verification, without the daemon.

use std::sync::Arc;
use std::time::Duration;

use signet::config::Config;
use signet::daemon::DEVICE_PROCESS;
use signet::device::handle::{Handle, Program, SignRequest, Turn};
use signet::key::Digest;
use signet::keyring::Keyring;

use crate::slice::{Asker, Load, Part, Processor, Slice, family};
use crate::stand::Device;

/// A handle and its device process.
pub(crate) struct Process {
    handle: Handle,
    request: SignRequest,
    device: u32,
    tpm: Option<u32>,
}

impl Process {
    /// Starts it and waits for its first signature.
    pub(crate) async fn start(device: &Device) -> Self {
        let config = Config::load(&device.config()).unwrap();
        let key = Keyring::load(&config.state_dir).unwrap().keys.remove(0);
        let arguments = vec!["--log=warn".into(), DEVICE_PROCESS.into()];
        let program = Program { program: env!("CARGO_BIN_EXE_signetd").into(), arguments };
        let others = family(std::process::id());
        let handle = Handle::start(config.devices[0].clone(), program);
        let request = SignRequest {
            locator: Arc::new(key.locator),
            public_key: Arc::new(key.public_key),
            algorithm: key.algorithm,
            digest: Digest::of(key.algorithm.hash(), b""),
            deadline: tokio::time::Instant::now() + PATIENCE,
            turn: Turn::Of(0),
        };
        handle.sign(request.clone()).await.unwrap();
        let (_, device_process) =
            family(std::process::id()).into_iter().find(|process| !others.contains(process)).unwrap();
        Self { handle, request, device: device_process, tpm: device.tpm() }
    }

    pub(crate) async fn run(&self, load: &Load) -> Slice {
        let clients = std::iter::repeat_with(|| (self.handle.clone(), self.request.clone()));
        load.run(clients, || self.processor()).await
    }

    /// The daemon's part of the work is done in this process.
    fn processor(&self) -> Processor {
        let tpm = self.tpm.map(|tpm| (Part::Tpm, tpm));
        Processor::of([(Part::Client, std::process::id()), (Part::Device, self.device)].into_iter().chain(tpm))
    }
}

impl Asker for (Handle, SignRequest) {
    async fn ask(&mut self, number: usize) {
        let (handle, request) = self;
        let digest = Digest::of(request.algorithm.hash(), &number.to_le_bytes());
        let deadline = tokio::time::Instant::now() + PATIENCE;
        handle.sign(SignRequest { digest, deadline, ..request.clone() }).await.unwrap();
    }
}

const PATIENCE: Duration = Duration::from_secs(60);
