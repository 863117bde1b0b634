//! Messages to every rpc, through the socket, the rules and the fake device: each has an answer that is documented, and what is
//! signed is what the one rule allows.

#![no_main]

#[path = "../../tests/suite/support/fake.rs"]
#[allow(dead_code, unused_imports, reason = "the suite uses more of it")]
mod fake;

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use signet::access::{Account, Glob, Operation, Policy, Rule};
use signet::audit::{Fsync, Rotation};
use signet::file::StateDir;
use signet::front::grpc::{self, Listener, Place, Readiness};
use signet::key::{Algorithm, PublicKey};
use signet::keyring::{KeyRecord, KeyState, Keyring};
use signet::signer::{Audit, Cache, Devices, LiveKeyring, Signer};
use signet_fuzz::{ACCOUNT, Scratch, account, nobody_else_speaks, payload};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tonic::codegen::Bytes;
use tonic::{Code, Status};

/// As in the suite, where the fake comes from.
fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// A device, and a daemon's signer and front in this process.
struct World {
    runtime: Runtime,
    scratch: Scratch,
    devices: Devices,
    daemon: Option<Daemon>,
    _fake: fake::Fake,
}

/// A front that serves, and the connection to it.
struct Daemon {
    send: SendRequest<Full<Bytes>>,
    asked: usize,
    _stop: oneshot::Sender<()>,
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::new(World::new());
}

fuzz_target!(
    init: {
        // The fake's device process is this program again.
        if std::env::args().any(|argument| argument == "--ignored") {
            fake::serve();
        }
    },
    |data: &[u8]| {
        let Some((rpc, message)) = data.split_first() else { return };
        let raw = *rpc >= 128;
        let rpc = RPCS[usize::from(*rpc) % RPCS.len()];
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        let body = if raw { message.to_vec() } else { [&[0], length.as_slice(), message].concat() };
        let (answer, status) = WORLD.with_borrow_mut(|world| world.ask(rpc, body));
        match status.code() {
            Code::Ok => judge(&answer),
            Code::InvalidArgument | Code::PermissionDenied => {}
            // How tonic answers what is no message.
            Code::Internal | Code::Unimplemented if !status.message().contains("panic") && status.details().is_empty() => {}
            _ => panic!("{rpc}: {status}"),
        }
    }
);

/// Every JWT in an answer is the account's, and for what the rule allows.
fn judge(answer: &[u8]) {
    let text = String::from_utf8_lossy(answer);
    for jwt in text.split(|c: char| !c.is_ascii_graphic()).filter(|word| word.matches('.').count() == 2) {
        let Some(start) = jwt.find("eyJ") else { continue };
        let claims = payload(&jwt[start..]);
        nobody_else_speaks(&claims);
        let audiences = match &claims["aud"] {
            Value::Array(audiences) => audiences.clone(),
            audience => vec![audience.clone()],
        };
        let allowed = |audience: &Value| audience.as_str().is_some_and(|text| text.starts_with(AUDIENCE));
        assert!(audiences.iter().all(allowed) && claims.get("scope").is_none(), "{claims}");
    }
}

impl World {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let (scratch, fake) = (Scratch::new(), fake::Fake::new());
        let record = KeyRecord {
            kid: "k".parse().unwrap(),
            account: account(),
            algorithm: Algorithm::Rs256,
            device: "fake".parse().unwrap(),
            locator: fake::locator("rsa"),
            public_key: PublicKey::clone(&fake.request(b"", Duration::from_secs(1)).public_key),
            state: KeyState::Active,
            created: 1,
            activated: Some(1),
            retired: None,
        };
        Keyring { keys: vec![record] }.save(&StateDir::new(scratch.path(""))).unwrap();
        let devices = runtime.block_on(async { Devices::from([("fake".parse().unwrap(), fake.start())]) });
        Self { runtime, scratch, devices, daemon: None, _fake: fake }
    }

    /// What an rpc answers, whole.
    fn ask(&mut self, rpc: &str, body: Vec<u8>) -> (Bytes, Status) {
        let request = hyper::Request::post(format!("http://signet/{rpc}"))
            .header("te", "trailers")
            .header("content-type", "application/grpc")
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        self.runtime.block_on(async {
            if self.daemon.as_ref().is_none_or(|daemon| daemon.asked == REFUSALS || daemon.send.is_closed()) {
                self.daemon = None;
                self.daemon = Some(Daemon::start(&self.scratch, &self.devices).await);
            }
            let daemon = self.daemon.as_mut().unwrap();
            daemon.asked += 1;
            daemon.send.ready().await.unwrap();
            let answer = daemon.send.send_request(request).await.unwrap_or_else(|error| panic!("{rpc}: {error}"));
            let (head, body) = answer.into_parts();
            let collected = body.collect().await.unwrap_or_else(|error| panic!("{rpc}: {error}"));
            let trailers = collected.trailers().cloned().unwrap_or_default();
            let status = Status::from_header_map(&head.headers).or(Status::from_header_map(&trailers));
            (collected.to_bytes(), status.unwrap_or_else(|| panic!("{rpc} says nothing: {head:?}")))
        })
    }
}

impl Daemon {
    async fn start(scratch: &Scratch, devices: &Devices) -> Self {
        let email = |text: &str| text.parse().unwrap();
        let account = |text: &str, default| Account { email: email(text), project_id: None, unique_id: None, default };
        let rule = Rule {
            accounts: vec![email(ACCOUNT)],
            operations: [Operation::SignBlob, Operation::SignJwt, Operation::MintAccessToken, Operation::MintIdToken]
                .into(),
            audiences: Some(vec![Glob::new(&format!("{AUDIENCE}*"))]),
            ..Rule::default()
        };
        let policy = Policy::new(vec![account(ACCOUNT, true), account("other@x.example", false)], vec![rule]);
        let name = DAEMONS.fetch_add(1, Ordering::Relaxed);
        let audit = scratch.path(&format!("audit-{name}"));
        let log = Audit::open(&audit, Fsync::Never, Rotation { max_size: u64::MAX, keep: 1 }).unwrap();
        let keys = LiveKeyring::load(&StateDir::new(scratch.path("")), devices).unwrap();
        let signer = Arc::new(Signer::new(policy, keys, Cache::new(100), log));
        let socket = scratch.path(&format!("socket-{name}"));
        let listener = Listener::bind(Place::take(&socket).unwrap(), 0o600, None).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(async move {
            let health = Readiness::new().await;
            let stopped = async { drop(stopped.await) };
            grpc::serve(listener, signer, &health, Duration::from_secs(900), stopped).await.unwrap();
        });
        let stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
        for file in [audit.with_extension("head"), audit] {
            let _ = std::fs::remove_file(file);
        }
        let (send, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { send, asked: 0, _stop: stop }
    }
}

static DAEMONS: AtomicUsize = AtomicUsize::new(0);
/// As many as have an answer at once; those beyond wait for a line that they share in the audit log.
const REFUSALS: usize = 100;
const AUDIENCE: &str = "https://a.example/";
const RPCS: [&str; 11] = [
    "signet.v1.Signer/SignBlob",
    "signet.v1.Signer/SignJwt",
    "signet.v1.Signer/MintJwtAccessToken",
    "signet.v1.Signer/MintIdToken",
    "signet.v1.Signer/GetPublicCertificates",
    "signet.v1.Signer/GetAccount",
    "signet.v1.Signer/GetStatus",
    "google.iam.credentials.v1.IAMCredentials/GenerateAccessToken",
    "google.iam.credentials.v1.IAMCredentials/GenerateIdToken",
    "google.iam.credentials.v1.IAMCredentials/SignBlob",
    "google.iam.credentials.v1.IAMCredentials/SignJwt",
];
