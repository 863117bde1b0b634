//! What a request costs the daemon, counted and so free of noise: allocations and system calls. What it costs the device
//! stands in `pkcs11` (two calls a signature) and `tpm` (one command); instructions are counted by `scripts/check --deep`.

use std::fs;
use std::path::Path;
use std::process::Command;

use signet::proto;
use signet::proto::mint_jwt_access_token_request::Target;
use signet::proto::signer_client::SignerClient;
use tonic::transport::Channel;
use tonic_health::ServingStatus;

use crate::support::daemon::{TestDaemon, payload};
use crate::support::skip;
use crate::support::softhsm::SoftHsm;

/// What a request may cost at most: a tenth more than was measured.
struct Most {
    signature: f64,
    cached_token: f64,
}

#[tokio::test]
async fn allocations_are_few() {
    let Some((_token, mut daemon)) = prepare() else { return };
    let counter = daemon.folder().join("allocations.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/support/allocations.c");
    // There is a C compiler wherever aws-lc was built.
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O2", "-o"]).args([&counter, &source]).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let counts = daemon.folder().join("allocations");
    let mut command = daemon.command();
    command.env("LD_PRELOAD", &counter).env("ALLOCATIONS", &counts);
    daemon.spawn_as(command);
    let counts = counts.with_extension(daemon.pid().to_string());
    let allocations = || u64::from_ne_bytes(fs::read(&counts).unwrap().try_into().unwrap());
    bounded(&daemon, "allocations", allocations, &ALLOCATIONS).await;
}

#[tokio::test]
async fn system_calls_are_few() {
    if Command::new("strace").arg("-V").output().is_err() {
        return skip("strace", "strace");
    }
    let Some((_token, mut daemon)) = prepare() else { return };
    let traces = daemon.folder().join("trace");
    let served = daemon.command();
    let mut command = Command::new("strace");
    // Apart, so that the daemon is this process's child; a file a thread.
    command.args(["-D", "-ff", "-qq", "-e", "signal=none", "-o"]).arg(&traces);
    command.arg(served.get_program()).args(served.get_args()).env_remove("CREDENTIALS_DIRECTORY");
    daemon.spawn_as(command);
    let threads = format!("/proc/{}/task", daemon.pid());
    let calls = || {
        let threads = fs::read_dir(&threads).unwrap().map(|thread| thread.unwrap().file_name());
        let traces = threads.map(|thread| fs::read(traces.with_extension(thread)).unwrap_or_default());
        traces.flat_map(|trace| trace.into_iter().filter(|byte| *byte == b'\n')).count() as u64
    };
    bounded(&daemon, "system calls", calls, &SYSTEM_CALLS).await;
}

/// Has a lone client ask one after the other, and judges what that cost the daemon.
async fn bounded(daemon: &TestDaemon, what: &str, count: impl Fn() -> u64, most: &Most) {
    daemon.wait_for_health(ServingStatus::Serving).await;
    let mut client = daemon.client();
    let signature = a_request(&mut client, &count, async |client: &mut Client| {
        client.sign_blob(payload(b"message")).await.unwrap();
    });
    let signature = signature.await;
    let cached_token = a_request(&mut client, &count, async |client: &mut Client| {
        client.mint_jwt_access_token(token()).await.unwrap();
    });
    let cached_token = cached_token.await;
    let told = format!("{what} in the daemon: {signature:.1} a signature, {cached_token:.1} a cached token");
    // Nothing at all would mean that nothing is counted.
    assert!((1.0..=most.signature).contains(&signature), "{told}, but {} a signature is the most", most.signature);
    assert!((1.0..=most.cached_token).contains(&cached_token), "{told}, but {} a token is the most", most.cached_token);
    eprintln!("{told}");
}

async fn a_request(client: &mut Client, count: &impl Fn() -> u64, ask: impl AsyncFn(&mut Client)) -> f64 {
    // What is set up once is no part of it.
    for _ in 0..50 {
        ask(client).await;
    }
    let before = count();
    for _ in 0..REQUESTS {
        ask(client).await;
    }
    (count() - before) as f64 / f64::from(REQUESTS)
}

/// A daemon that does not run yet, with a key.
fn prepare() -> Option<(SoftHsm, TestDaemon)> {
    let token = SoftHsm::new()?;
    let mut daemon = TestDaemon::prepare(&TestDaemon::config(&token.toml()));
    // As it is run: at debug, each request is a line.
    daemon.log_level = "info";
    daemon.signetctl(&["key", "generate", "--device", "hsm"]);
    Some((token, daemon))
}

fn token() -> proto::MintJwtAccessTokenRequest {
    let target = Some(Target::Audience("https://pubsub.googleapis.com/".to_owned()));
    proto::MintJwtAccessTokenRequest { target, ..proto::MintJwtAccessTokenRequest::default() }
}

type Client = SignerClient<Channel>;

const REQUESTS: u32 = 300;
const ALLOCATIONS: Most = Most { signature: 76.0, cached_token: 54.0 };
const SYSTEM_CALLS: Most = Most { signature: 10.4, cached_token: 5.7 };
