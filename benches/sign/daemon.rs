//! The daemon, and clients of it over gRPC: the real program, its policy, its audit log.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use signet::proto::mint_jwt_access_token_request::Target;
use signet::proto::sign_blob_request::Input;
use signet::proto::signer_client::SignerClient;
use signet::proto::{MintJwtAccessTokenRequest, SignBlobRequest};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::slice::{Load, Slice, processor_time};
use crate::stand::{Device, Running};

/// A running daemon and a connection for each client.
pub(crate) struct Daemon {
    process: Running,
    tpm: Option<u32>,
    clients: Vec<Client>,
}

/// What a client asks for, one request after the other.
#[derive(Clone, Copy)]
pub(crate) enum Ask {
    /// A signature.
    Signature,
    /// An access token that is cached.
    CachedToken,
    /// Nothing: the health service answers on the same socket.
    Nothing,
}

#[derive(Clone)]
struct Client {
    signer: SignerClient<Channel>,
    health: HealthClient<Channel>,
}

impl Client {
    async fn ask(&mut self, ask: Ask, number: usize) -> Result<(), Status> {
        match ask {
            Ask::Signature => self.signer.sign_blob(request(number)).await.map(drop),
            Ask::CachedToken => self.signer.mint_jwt_access_token(cached()).await.map(drop),
            Ask::Nothing => self.health.check(HealthCheckRequest::default()).await.map(drop),
        }
    }
}

/// A process with its children, theirs included: the launcher starts the device processes.
fn family(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    let children: String =
        tasks.map(|task| fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default()).collect();
    let children = children.split_whitespace().map(|child| child.parse().unwrap());
    std::iter::once(pid).chain(children.flat_map(family)).collect()
}

impl Daemon {
    pub(crate) fn start(device: &Device) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_signetd"));
        command.arg("--config").arg(device.config()).args(["--log", "warn"]);
        let process = Running(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
        let endpoint = Endpoint::from_shared(format!("unix://{}", device.socket().display())).unwrap();
        let client = |channel: Channel| Client {
            signer: SignerClient::new(channel.clone()),
            health: HealthClient::new(channel),
        };
        let clients = (0..MOST_CLIENTS).map(|_| client(endpoint.connect_lazy())).collect();
        Self { process, tpm: device.tpm(), clients }
    }

    /// Waits for the first signature.
    pub(crate) async fn sign(&self) {
        let patience = Instant::now() + Duration::from_secs(20);
        let mut client = self.clients[0].clone();
        while let Err(status) = client.ask(Ask::Signature, 0).await {
            assert!(Instant::now() < patience, "{status}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Has each client ask for a slice, one request after the other.
    pub(crate) async fn run(&self, load: &Load, ask: Ask) -> Slice {
        let before = self.processor_time();
        let begun = Instant::now();
        let end = begun + load.length;
        let gap = load.gap;
        let clients: Vec<_> = self.clients[..load.clients]
            .iter()
            .map(|client| tokio::spawn(ask_until(client.clone(), ask, end, gap)))
            .collect();
        let mut latencies = Vec::new();
        for client in clients {
            latencies.extend(client.await.unwrap());
        }
        Slice::new(latencies, begun.elapsed(), self.processor_time() - before)
    }

    /// Of the daemon, its device processes, the clients and a TPM in software.
    fn processor_time(&self) -> f64 {
        self.processes().chain([std::process::id()]).chain(self.tpm).map(processor_time).sum()
    }

    /// The resident memory of the daemon, its launcher and its device processes, in MiB.
    pub(crate) fn resident(&self) -> f64 {
        self.processes().map(resident).sum()
    }

    /// The daemon, its launcher and its device processes.
    fn processes(&self) -> impl Iterator<Item = u32> {
        family(self.process.0.id()).into_iter()
    }

    /// Of the daemon alone.
    pub(crate) fn own_processor_time(&self) -> f64 {
        processor_time(self.process.0.id())
    }

    /// Stops the daemon and waits for its end.
    pub(crate) fn stop(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.process.0.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        drop(self.clients);
        self.process.0.wait().unwrap();
    }
}

async fn ask_until(mut client: Client, ask: Ask, end: Instant, gap: Duration) -> Vec<f64> {
    let mut latencies = Vec::new();
    while Instant::now() < end {
        let begun = Instant::now();
        client.ask(ask, latencies.len()).await.unwrap();
        latencies.push(begun.elapsed().as_secs_f64());
        if !gap.is_zero() {
            tokio::time::sleep(gap).await;
        }
    }
    latencies
}

fn request(message: usize) -> SignBlobRequest {
    let payload = message.to_le_bytes().to_vec().into();
    SignBlobRequest { input: Some(Input::Payload(payload)), ..SignBlobRequest::default() }
}

fn cached() -> MintJwtAccessTokenRequest {
    let target = Some(Target::Audience("https://pubsub.googleapis.com/".to_owned()));
    MintJwtAccessTokenRequest { target, ..MintJwtAccessTokenRequest::default() }
}

fn resident(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.map_or(0.0, |value| value.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0)
}

const MOST_CLIENTS: usize = 32;
