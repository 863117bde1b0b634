//! Many connections: the daemon serves 32 of a user, so these come from processes of several users. Only root can start them.

use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::Range;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use signet::proto::signer_client::SignerClient;
use tonic::transport::{Channel, Endpoint};

use crate::daemon::token;
use crate::stand::{Device, Running};

/// What the program is told to be a user with, and a socket.
pub(crate) const SUBCOMMAND: &str = "crowd";

/// Who they are: nobody whom a system knows.
pub(crate) const USERS: Range<u32> = 64_001..64_009;

/// As many cached tokens as are asked for.
pub(crate) const TOKENS: usize = 10_000;

/// Processes of [`USERS`].
pub(crate) struct Crowd(Vec<Member>);

struct Member {
    orders: ChildStdin,
    results: BufReader<ChildStdout>,
    _process: Running,
}

impl Crowd {
    /// None where this is not root.
    pub(crate) fn start(device: &Device) -> Option<Self> {
        // The program itself may stand in a folder that is for its owner alone.
        let program = device.file("crowd");
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        nix::unistd::geteuid().is_root().then(|| {
            let start = |user| {
                let mut command = Command::new(&program);
                command.arg(SUBCOMMAND).arg(device.socket()).uid(user).current_dir("/");
                let mut process = Running(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
                let orders = process.0.stdin.take().unwrap();
                let results = BufReader::new(process.0.stdout.take().unwrap());
                Member { orders, results, _process: process }
            };
            Self(USERS.map(start).collect())
        })
    }

    /// Cached tokens a second, over this many connections in all.
    pub(crate) fn rate(&mut self, connections: usize, length: Duration) -> f64 {
        let order = serde_json::to_string(&(connections / self.0.len(), length)).unwrap();
        for member in &mut self.0 {
            writeln!(member.orders, "{order}").unwrap();
        }
        let mut rate = 0.0;
        for member in &mut self.0 {
            let mut line = String::new();
            member.results.read_line(&mut line).unwrap();
            rate += line.trim().parse::<f64>().unwrap();
        }
        rate
    }
}

/// What a member does: a line is an order, and the answer is one.
pub(crate) fn serve(socket: &Path) {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut clients: Vec<SignerClient<Channel>> = Vec::new();
    for line in std::io::stdin().lines() {
        let (connections, length): (usize, Duration) = serde_json::from_str(&line.unwrap()).unwrap();
        let rate = runtime.block_on(async {
            clients.resize_with(connections, || SignerClient::new(endpoint.connect_lazy()));
            // Connecting is not what is measured, and it works once connections that were closed are gone.
            for client in &mut clients {
                let patience = Instant::now() + Duration::from_secs(10);
                while let Err(status) = client.mint_jwt_access_token(token(0, None)).await {
                    assert!(Instant::now() < patience, "{status}");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            ask(&clients, length).await
        });
        println!("{rate}");
    }
}

#[allow(clippy::cast_precision_loss, reason = "nobody answers 2^52 times a second")]
async fn ask(clients: &[SignerClient<Channel>], length: Duration) -> f64 {
    let begun = Instant::now();
    let asking = clients.iter().enumerate().map(|(number, client)| {
        let mut client = client.clone();
        // Each begins elsewhere and goes round.
        let first = (number + 1) * usize::try_from(std::process::id()).unwrap() % TOKENS;
        tokio::spawn(async move {
            let mut answers = 0;
            while begun.elapsed() < length {
                client.mint_jwt_access_token(token((first + answers) % TOKENS, None)).await.unwrap();
                answers += 1;
            }
            answers
        })
    });
    let asking = asking.collect::<Vec<_>>();
    let mut answers = 0;
    for client in asking {
        answers += client.await.unwrap();
    }
    answers as f64 / begun.elapsed().as_secs_f64()
}
