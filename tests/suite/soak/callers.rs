//! The callers of a soak: a process for each user, clients in it that ask for this and that without end, and hold every
//! answer against what was asked, the deadline and the published keys.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use signet::key::{Algorithm, Digest, Hash, PublicKey, Signature};
use signet::proto::signer_client::SignerClient;
use signet::proto::{self, mint_jwt_access_token_request as mint, sign_blob_request as blob};
use tonic::codegen::{Service, http};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

use super::Random;
use crate::support::daemon::TestDaemon;

/// What a process of callers is told.
#[derive(Deserialize, Serialize)]
pub(super) struct Orders {
    pub(super) socket: PathBuf,
    /// The SPKI of each key, by kid.
    pub(super) keys: BTreeMap<String, Vec<u8>>,
    pub(super) seed: u64,
    /// The clients go on until this file is gone.
    pub(super) go_on: PathBuf,
    /// What was signed: 32 bytes each, the SHA-256 of the message.
    pub(super) signed: PathBuf,
}

/// What a process of callers tells at its end.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(super) struct Answers {
    /// How many answers of each kind: "SignBlob OK", "SignBlob DEVICE_AWAY".
    pub(super) kinds: BTreeMap<String, u64>,
    /// Good answers and errors in each second.
    pub(super) seconds: BTreeMap<u64, (u64, u64)>,
    /// What is not as it must be, each with what was asked.
    pub(super) wrong: Vec<String>,
    pub(super) hung: Vec<String>,
    pub(super) undocumented: Vec<String>,
    /// How much later than it should a thread of this process woke at most: the machine's fault.
    pub(super) lag_ms: u64,
}

/// A process of a user's callers: this very test binary, which does one part of it.
pub(crate) struct Callers {
    child: Child,
    said: Lines<BufReader<ChildStdout>>,
}

impl Callers {
    /// Starts those of a user. Without root there is only one user.
    pub(crate) fn start(uid: u32, program: &Path, part: &str, orders: &impl Serialize) -> Self {
        let mut command = Command::new(program);
        if nix::unistd::geteuid().is_root() {
            command = Command::new("setpriv");
            command.args([&format!("--reuid={uid}"), &format!("--regid={uid}"), "--clear-groups"]).arg(program);
        }
        command.args(["--exact", part, "--ignored", "--nocapture", "--test-threads=1"]);
        command.env(ORDERS, serde_json::to_string(orders).unwrap()).current_dir("/");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, said }
    }

    /// What the process tells next.
    pub(crate) fn told<T: DeserializeOwned>(&mut self) -> T {
        let told = self.said.find_map(|line| Some(line.unwrap().split_once(TOLD)?.1.to_owned()));
        serde_json::from_str(&told.expect("the callers ended")).unwrap()
    }

    /// Closes the process's standard input, by which it may know that it is to end.
    pub(crate) fn dismiss(&mut self) {
        self.child.stdin = None;
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This test binary where other users can run it, who may not be able to read the folder of the build.
pub(crate) fn program(daemon: &TestDaemon) -> PathBuf {
    let program = daemon.folder().join("callers");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    program
}

/// What a process of callers was told; none where this is no such process.
pub(crate) fn orders<T: DeserializeOwned>() -> Option<T> {
    let orders = std::env::var(ORDERS).ok()?;
    // A test that was ended leaves nobody behind.
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).unwrap();
    Some(serde_json::from_str(&orders).unwrap())
}

/// Tells whoever started this process of callers.
#[allow(clippy::print_stdout, reason = "that is how")]
pub(crate) fn tell(what: &impl Serialize) {
    println!("{TOLD}{}", serde_json::to_string(what).unwrap());
}

#[tokio::test]
#[ignore = "it is what a soak starts as other users"]
async fn the_callers_side() {
    let Some(orders) = orders::<Orders>().map(Arc::new) else { return };
    let shared = Arc::new(Shared {
        keys: orders.keys.iter().map(|(kid, spki)| (kid.clone(), PublicKey::from_spki(spki).unwrap())).collect(),
        answers: Mutex::default(),
        signed: Mutex::new(File::create(&orders.signed).unwrap()),
        began: Instant::now(),
        lag_ms: AtomicU64::new(0),
    });
    let watched = Arc::clone(&shared);
    std::thread::spawn(move || watch_the_machine(&watched));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (orders, shared) = (Arc::clone(&orders), Arc::clone(&shared));
            let random = Random(orders.seed.wrapping_add(number + 1));
            tokio::spawn(Client { orders, shared, random, channel: None }.run())
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let answers = std::mem::take(&mut *shared.answers.lock().unwrap());
    tell(&answers);
}

struct Shared {
    keys: BTreeMap<String, PublicKey>,
    answers: Mutex<Answers>,
    signed: Mutex<File>,
    began: Instant,
    /// How late this process was lately.
    lag_ms: AtomicU64,
}

/// Measures how late this process is run, so that nothing that this machine is late with is said of the daemon.
fn watch_the_machine(shared: &Shared) {
    let pause = Duration::from_millis(5);
    loop {
        let slept = Instant::now();
        std::thread::sleep(pause);
        let lag = u64::try_from((slept.elapsed() - pause).as_millis()).unwrap();
        let lately = shared.lag_ms.load(Ordering::Relaxed);
        // It counts for about two seconds.
        shared.lag_ms.store(lag.max(lately - lately.div_ceil(400)), Ordering::Relaxed);
        let mut answers = shared.answers.lock().unwrap();
        answers.lag_ms = answers.lag_ms.max(lag);
    }
}

struct Client {
    orders: Arc<Orders>,
    shared: Arc<Shared>,
    random: Random,
    channel: Option<SignerClient<Direct>>,
}

/// What came of a request: "OK" and the like; an error where the answer is wrong.
type Outcome = Result<Result<(), Status>, String>;

impl Client {
    async fn run(mut self) {
        while self.orders.go_on.exists() {
            let patience = Duration::from_millis(self.random.between(200, 3000));
            let (rpc, hangs_up) = (self.random.weighted(&RPCS), self.random.between(0, 50) == 0);
            let Some(client) = self.connected().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            // No number in a JSON document is larger to everybody.
            let number = self.random.next() >> 12;
            let asked = Instant::now();
            let call = call(client, Arc::clone(&self.shared), rpc, number, patience);
            // Whoever asks twice the time after the deadline asks no more.
            let given_up = if hangs_up { patience / 50 } else { patience + GIVEN_UP };
            match tokio::time::timeout(given_up, call).await {
                Err(_elapsed) if hangs_up => self.count("hung up", true),
                outcome => self.judge(rpc, patience, asked.elapsed(), outcome.ok()),
            }
            tokio::time::sleep(Duration::from_millis(self.random.between(5, 50))).await;
        }
    }

    async fn connected(&mut self) -> Option<SignerClient<Direct>> {
        if self.channel.is_none() {
            self.channel = connect(&self.orders.socket).await;
        }
        self.channel.clone()
    }

    fn judge(&mut self, rpc: &str, patience: Duration, elapsed: Duration, outcome: Option<Outcome>) {
        let lag = Duration::from_millis(self.shared.lag_ms.load(Ordering::Relaxed));
        let what = |problem: &str| {
            format!("{rpc} at {:?}: {problem}; deadline {patience:?}, after {elapsed:?}", self.shared.began.elapsed())
        };
        if elapsed > patience + HUNG + lag {
            self.shared.answers.lock().unwrap().hung.push(what(&format!("{outcome:?}")));
        }
        match outcome {
            None => self.count(&format!("{rpc} no answer"), false),
            Some(Ok(Ok(()))) => self.count(&format!("{rpc} OK"), true),
            Some(Ok(Err(status))) => {
                let details = status.get_error_details();
                let reason = details.error_info().map(|info| info.reason.clone());
                // Without a reason it is the connection's end, which only a killed daemon may bring about.
                let lost = reason.is_none()
                    && [Code::Unavailable, Code::Unknown, Code::Internal, Code::Cancelled].contains(&status.code());
                if lost {
                    self.channel = None;
                    self.count("connection lost", false);
                } else if let Some(reason) = reason {
                    self.count(&format!("{rpc} {reason}"), false);
                } else {
                    self.shared.answers.lock().unwrap().undocumented.push(what(&format!("{status}")));
                }
            }
            Some(Err(wrong)) => self.shared.answers.lock().unwrap().wrong.push(what(&wrong)),
        }
    }

    fn count(&self, kind: &str, good: bool) {
        let mut answers = self.shared.answers.lock().unwrap();
        *answers.kinds.entry(kind.to_owned()).or_default() += 1;
        let second = answers.seconds.entry(self.shared.began.elapsed().as_secs()).or_default();
        *(if good { &mut second.0 } else { &mut second.1 }) += 1;
    }
}

/// Asks, and says what is wrong with a good answer.
async fn call(
    mut client: SignerClient<Direct>,
    shared: Arc<Shared>,
    rpc: &'static str,
    number: u64,
    patience: Duration,
) -> Outcome {
    let account = String::new();
    let checked = match rpc {
        "SignBlob" => {
            let message = format!("message {number}");
            let input = Some(blob::Input::Payload(message.clone().into_bytes().into()));
            let asked = proto::SignBlobRequest { account, input, algorithm: 0 };
            client.sign_blob(timed(asked, patience)).await.map(|answer| {
                let answer = answer.into_inner();
                verify(&shared, &answer.key_id, message.as_bytes(), &answer.signature)?;
                let digest = digest(&SHA256, message.as_bytes());
                shared.signed.lock().unwrap().write_all(digest.as_ref()).unwrap();
                Ok(())
            })
        }
        "SignJwt" => {
            let claims = format!(r#"{{"aud":"https://app.example/","number":{number}}}"#);
            let answer = client.sign_jwt(timed(proto::SignJwtRequest { account, claims }, patience)).await;
            answer.map(|answer| verify_jwt(&shared, &answer.into_inner().jwt, &format!("\"number\":{number}")))
        }
        "MintJwtAccessToken" => {
            let audience = format!("https://app-{}.example/", number % 50);
            let target = Some(mint::Target::Audience(audience.clone()));
            let asked = proto::MintJwtAccessTokenRequest { account, target, lifetime: None };
            let answer = client.mint_jwt_access_token(timed(asked, patience)).await;
            answer.map(|answer| verify_jwt(&shared, &answer.into_inner().access_token, &audience))
        }
        "GetPublicCertificates" => {
            let asked = proto::GetPublicCertificatesRequest { account };
            client.get_public_certificates(timed(asked, patience)).await.map(|answer| {
                let told = answer.into_inner().certificates;
                let all = shared.keys.keys().all(|kid| told.iter().any(|certificate| certificate.key_id == *kid));
                if all { Ok(()) } else { Err("a key is not published".to_owned()) }
            })
        }
        // What no rule allows.
        "Digest" => {
            let input = Some(blob::Input::Digest(vec![7; 32].into()));
            let answer =
                client.sign_blob(timed(proto::SignBlobRequest { account, input, algorithm: 0 }, patience)).await;
            refused(answer, "NOT_ALLOWED")
        }
        _bad_input => {
            let claims = "{\"exp\":\"soon\"}".to_owned();
            refused(
                client.sign_jwt(timed(proto::SignJwtRequest { account, claims }, patience)).await,
                "INVALID_REQUEST",
            )
        }
    };
    match checked {
        Ok(Ok(())) => Ok(Ok(())),
        Ok(Err(wrong)) => Err(wrong),
        Err(status) => Ok(Err(status)),
    }
}

/// An answer that must be an error. Other errors are as good: the daemon may be anything.
fn refused<T>(answer: Result<Response<T>, Status>, reason: &str) -> Result<Result<(), String>, Status> {
    match answer {
        Ok(_) => Ok(Err(format!("it was not refused as {reason}"))),
        Err(status) => Err(status),
    }
}

/// A connection to the daemon.
pub(crate) async fn connect(socket: &Path) -> Option<SignerClient<Direct>> {
    let socket = tokio::net::UnixStream::connect(socket).await.ok()?;
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket));
    let (send, connection) = handshake.await.ok()?;
    tokio::spawn(connection);
    Some(SignerClient::with_origin(Direct(send), http::Uri::from_static("http://signet")))
}

/// A request with its deadline. The client keeps none itself: how late an answer is, is what is measured.
pub(crate) fn timed<T>(message: T, patience: Duration) -> Request<T> {
    let mut request = Request::new(message);
    let timeout = format!("{}m", patience.as_millis());
    request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
    request
}

fn verify(shared: &Shared, kid: &str, message: &[u8], signature: &[u8]) -> Result<(), String> {
    let key = shared.keys.get(kid).ok_or("the key is unknown")?;
    let signature = Signature::from_bytes(signature.to_vec());
    key.verify(Algorithm::Rs256, &Digest::of(Hash::Sha256, message), &signature).map_err(|error| error.to_string())
}

fn verify_jwt(shared: &Shared, jwt: &str, member: &str) -> Result<(), String> {
    let (signing_input, signature) = jwt.rsplit_once('.').ok_or("no JWT")?;
    let (header, payload) = signing_input.split_once('.').ok_or("no JWT")?;
    let read = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|error| error.to_string());
    let header: serde_json::Value = serde_json::from_slice(&read(header)?).map_err(|error| error.to_string())?;
    let claims = String::from_utf8(read(payload)?).map_err(|error| error.to_string())?;
    if !claims.contains(member) {
        return Err(format!("{member} is not in {claims}"));
    }
    verify(shared, header["kid"].as_str().unwrap_or_default(), signing_input.as_bytes(), &read(signature)?)
}

/// A connection without anything of its own between: tonic's would end a request when its deadline is over.
#[derive(Clone)]
pub(crate) struct Direct(SendRequest<tonic::body::Body>);

impl Service<http::Request<tonic::body::Body>> for Direct {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// What is asked, and how often.
const RPCS: [(&str, u64); 6] = [
    ("SignBlob", 60),
    ("SignJwt", 15),
    ("MintJwtAccessToken", 15),
    ("GetPublicCertificates", 5),
    ("Digest", 3),
    ("BadClaims", 2),
];
/// Of each user.
const CLIENTS: u64 = 4;
/// An answer that is so much later than its deadline came too late.
const HUNG: Duration = Duration::from_millis(100);
const GIVEN_UP: Duration = Duration::from_secs(5);
const ORDERS: &str = "SIGNET_CALLERS";
const TOLD: &str = "told: ";
