//! The daemon, and clients of it over gRPC: the real program, its policy, its audit log.

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

use crate::slice::{Asker, Load, Part, Processor, Slice, family};
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
    /// A signature, and all clients share one connection: the threads of one application.
    Shared,
    /// An access token that is signed now.
    Mint,
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
            Ask::Signature | Ask::Shared => self.signer.sign_blob(request(number)).await.map(drop),
            Ask::Mint => self.signer.mint_jwt_access_token(token(number, Some(SHORT))).await.map(drop),
            Ask::CachedToken => self.signer.mint_jwt_access_token(token(0, None)).await.map(drop),
            Ask::Nothing => self.health.check(HealthCheckRequest::default()).await.map(drop),
        }
    }
}

impl Daemon {
    pub(crate) fn start(device: &Device) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_signetd")), device)
    }

    /// Starts it by a command that wants only the daemon's own arguments.
    pub(crate) fn start_by(mut command: Command, device: &Device) -> Self {
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

    /// Has this many tokens signed and cached, for services counted from 0.
    pub(crate) async fn fill_cache(&self, tokens: usize) {
        let clients = self.clients.iter().enumerate().map(|(first, client)| {
            let mut client = client.clone();
            tokio::spawn(async move {
                for service in (first..tokens).step_by(MOST_CLIENTS) {
                    client.signer.mint_jwt_access_token(token(service, None)).await.unwrap();
                }
            })
        });
        for client in clients.collect::<Vec<_>>() {
            client.await.unwrap();
        }
    }

    /// Has one client ask so often.
    pub(crate) async fn ask_often(&self, ask: Ask, requests: u32) {
        let mut client = self.clients[0].clone();
        for number in 0..requests {
            client.ask(ask, usize::try_from(number).unwrap()).await.unwrap();
        }
    }

    /// Has each client ask for a slice, one request after the other.
    pub(crate) async fn run(&self, load: &Load, ask: Ask) -> Slice {
        let connections = if matches!(ask, Ask::Shared) { 1 } else { load.clients };
        let clients = self.clients[..connections].iter().cycle().map(|client| (client.clone(), ask));
        load.run(clients, || self.processor()).await
    }

    /// Of all who have a part in an answer.
    fn processor(&self) -> Processor {
        let tpm = self.tpm.map(|tpm| (Part::Tpm, tpm));
        Processor::of(self.processes().into_iter().chain([(Part::Client, std::process::id())]).chain(tpm))
    }

    /// The daemon, its launcher and its device processes.
    pub(crate) fn processes(&self) -> Vec<(Part, u32)> {
        let part = |depth| match depth {
            0 => Part::Daemon,
            1 => Part::Launcher,
            _ => Part::Device,
        };
        family(self.process.0.id()).into_iter().map(|(depth, pid)| (part(depth), pid)).collect()
    }

    /// Closes all connections to it.
    pub(crate) fn hang_up(&mut self) {
        self.clients.clear();
    }

    /// Stops the daemon and waits for its end.
    pub(crate) fn stop(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.process.0.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        drop(self.clients);
        self.process.0.wait().unwrap();
    }
}

impl Asker for (Client, Ask) {
    async fn ask(&mut self, number: usize) {
        let (client, ask) = self;
        client.ask(*ask, number).await.unwrap();
    }
}

fn request(message: usize) -> SignBlobRequest {
    let payload = message.to_le_bytes().to_vec().into();
    SignBlobRequest { input: Some(Input::Payload(payload)), ..SignBlobRequest::default() }
}

/// For one of many services. One that lives shorter than 30 minutes is never cached.
pub(crate) fn token(service: usize, lifetime: Option<Duration>) -> MintJwtAccessTokenRequest {
    let target = Some(Target::Audience(format!("https://service-{service}.example.com/")));
    let lifetime = lifetime.map(|lifetime| lifetime.try_into().unwrap());
    MintJwtAccessTokenRequest { target, lifetime, ..MintJwtAccessTokenRequest::default() }
}

const SHORT: Duration = Duration::from_secs(600);
pub(crate) const MOST_CLIENTS: usize = 32;
