//! Figures of docs/reliability.md of many callers at once: users with a process each, who ask the daemon by gRPC. They are
//! printed and decide nothing: `cargo test --test suite -- --ignored --nocapture --test-threads=1 crowd::`.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use signet::key::{Algorithm, Digest, Hash, PublicKey, Signature};
use signet::keyring::Keyring;
use signet::proto;
use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::soak::callers::{Callers, connect, orders, program, tell, timed};
use crate::support::daemon::{ACCOUNT, TestDaemon, payload};
use crate::support::skip_optional;
use crate::support::softhsm::SoftHsm;

/// What a user's process is told.
#[derive(Clone, Deserialize, Serialize)]
struct Orders {
    socket: PathBuf,
    /// The SPKI of the key.
    key: Vec<u8>,
    connections: usize,
    /// How long they ask; none: they hold their connections until they are dismissed.
    span: Option<Duration>,
    patience: Duration,
    /// Between an answer and the next request.
    pause: Duration,
    /// Whether whoever is refused waits as long as he was told to.
    waits: bool,
}

/// What came of a user's requests: how many microseconds each took.
#[derive(Default, Deserialize, Serialize)]
struct Answers {
    good: Vec<u64>,
    refused: Vec<u64>,
    /// Answers beyond the deadline, and those that say that it is over.
    late: Vec<u64>,
    seconds: f64,
}

#[test]
#[ignore = "a figure of docs/reliability.md: ask for it with --ignored --nocapture"]
fn ten_times_as_many_callers_as_a_token_carries() {
    let Some(token) = SoftHsm::new() else { return };
    let Some(stage) = Stage::new(&token) else { return };
    for (patience, waits) in [(1000, true), (50, true), (50, false)] {
        // Anew for each: the machine is not the same all the time.
        println!("peak, 8 callers of one user: {}", Answers::of([stage.start(USERS.start, 8, |_| {})]).text());
        println!("  a modest user alone: {}", Answers::of([stage.modest()]).text());
        let crowd = USERS.take(4).map(|uid| {
            stage.start(uid, 20, |orders| {
                (orders.patience, orders.waits) = (Duration::from_millis(patience), waits);
            })
        });
        let crowd: Vec<_> = crowd.collect();
        let modest = Answers::of([stage.modest()]);
        let crowd = Answers::of(crowd);
        println!("80 callers of 4 users, {patience} ms each, waiting when refused: {waits}: {}", crowd.text());
        println!("  the modest user beside them: {}", modest.text());
    }
    let records = stage.daemon.audit();
    let refused = records.iter().filter(|record| record["outcome"] == "DEVICE_BUSY");
    let refused = refused.map(|record| record["latency_us"].as_u64().unwrap()).collect();
    let seconds = 2.0 * SPAN.as_secs_f64();
    println!("of all by the daemon's own clock: {}", Answers { refused, seconds, ..Answers::default() }.text());
}

#[test]
#[ignore = "a figure of docs/reliability.md: ask for it with --ignored --nocapture"]
fn three_thousand_idle_connections() {
    let Some(token) = SoftHsm::new() else { return };
    let Some(stage) = Stage::new(&token) else { return };
    println!("another user alone: {}", Answers::of([stage.modest()]).text());
    println!("the daemon has {} KiB", stage.daemon.memory_kib());
    let idle = |uid| stage.begin(uid, 3000 / USERS.len(), |orders| orders.span = None);
    let mut idle: Vec<_> = USERS.map(idle).collect();
    let held: Vec<usize> = idle.iter_mut().map(Callers::told).collect();
    println!("of 3000 connections of {} users {} were served: {held:?}", USERS.len(), held.iter().sum::<usize>());
    println!("another user beside them: {}", Answers::of([stage.modest()]).text());
    println!("the daemon has {} KiB", stage.daemon.memory_kib());
    idle.iter_mut().for_each(Callers::dismiss);
    println!("afterwards {} of them were served", idle.iter_mut().map(Callers::told::<usize>).sum::<usize>());
}

/// A daemon with a token, and a key in it.
struct Stage {
    daemon: TestDaemon,
    program: PathBuf,
    orders: Orders,
}

impl Stage {
    /// None where this is not root, and so can't be many users.
    fn new(token: &SoftHsm) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skip_optional("root");
            return None;
        }
        let config = TestDaemon::config(&token.toml());
        let all: Vec<_> = USERS.chain([MODEST]).map(|uid| uid.to_string()).collect();
        let mut daemon = TestDaemon::prepare(&config.replace("{uid}", &format!("{{uid}}, {}", all.join(", "))));
        daemon.log_level = "info";
        daemon.signetctl(&["key", "generate", "--device", "hsm"]);
        daemon.spawn();
        daemon.wait_for_log("serving");
        let key = Keyring::load(&daemon.state()).unwrap().keys.remove(0).public_key.spki().to_vec();
        let (span, patience) = (Some(SPAN), Duration::from_secs(1));
        let orders =
            Orders { socket: daemon.socket(), key, connections: 1, span, patience, pause: Duration::ZERO, waits: true };
        Some(Self { program: program(&daemon), daemon, orders })
    }

    /// Starts a user's process.
    fn begin(&self, uid: u32, connections: usize, change: impl FnOnce(&mut Orders)) -> Callers {
        let mut orders = Orders { connections, ..self.orders.clone() };
        change(&mut orders);
        Callers::start(uid, &self.program, "crowd::the_callers_side", &orders)
    }

    /// Starts a user's process, and waits until it asks; every connection must have been served once.
    fn start(&self, uid: u32, connections: usize, change: impl FnOnce(&mut Orders)) -> Callers {
        let mut callers = self.begin(uid, connections, change);
        assert_eq!(callers.told::<usize>(), connections);
        callers
    }

    /// One caller of another user's, who asks about fifty times a second.
    fn modest(&self) -> Callers {
        self.start(MODEST, 1, |orders| orders.pause = Duration::from_millis(20))
    }
}

impl Answers {
    fn of(callers: impl IntoIterator<Item = Callers>) -> Self {
        let mut all = Self::default();
        for mut callers in callers {
            let told: Self = callers.told();
            all.good.extend(told.good);
            all.refused.extend(told.refused);
            all.late.extend(told.late);
            all.seconds = all.seconds.max(told.seconds);
        }
        all
    }

    #[allow(clippy::cast_precision_loss, reason = "nobody counts to 2^52")]
    fn text(&self) -> String {
        let kind = |(name, times): (&str, &Vec<u64>)| {
            let mut times = times.clone();
            times.sort_unstable();
            let at = |hundredth| times.get(times.len() * hundredth / 100).map_or(0.0, |us| *us as f64 / 1000.0);
            format!("{:.0}/s {name} ({:.1} ms, p99 {:.1} ms)", times.len() as f64 / self.seconds, at(50), at(99))
        };
        let kinds = [("verified", &self.good), ("refused", &self.refused), ("late", &self.late)];
        let told: Vec<_> = kinds.into_iter().filter(|(_, times)| !times.is_empty()).map(kind).collect();
        told.join(", ")
    }
}

#[tokio::test]
#[ignore = "it is what other users are started as"]
async fn the_callers_side() {
    let Some(orders) = orders::<Orders>().map(Arc::new) else { return };
    let key = Arc::new(PublicKey::from_spki(&orders.key).unwrap());
    let mut clients = Vec::new();
    for _ in 0..orders.connections {
        clients.extend(served(&orders.socket).await);
    }
    tell(&clients.len());
    let Some(span) = orders.span else {
        let dismissed = || std::io::stdin().read_to_end(&mut Vec::new());
        tokio::task::spawn_blocking(dismissed).await.unwrap().unwrap();
        let mut still = 0;
        for client in &mut clients {
            still += usize::from(public_keys(client).await.is_ok());
        }
        return tell(&still);
    };
    let began = Instant::now();
    let asking = clients.into_iter().map(|mut client| {
        let (orders, key) = (Arc::clone(&orders), Arc::clone(&key));
        async move {
            let mut answers = Answers::default();
            while began.elapsed() < span {
                let wait = ask(&mut client, &orders, &key, &mut answers).await;
                tokio::time::sleep(orders.pause.max(wait)).await;
            }
            answers
        }
    });
    let mut all = Answers { seconds: span.as_secs_f64(), ..Answers::default() };
    for answers in asking.collect::<JoinSet<_>>().join_all().await {
        all.good.extend(answers.good);
        all.refused.extend(answers.refused);
        all.late.extend(answers.late);
    }
    tell(&all);
}

/// Asks for one signature. How long to wait before the next.
async fn ask(client: &mut Client, orders: &Orders, key: &PublicKey, answers: &mut Answers) -> Duration {
    let asked = Instant::now();
    let answer = client.sign_blob(timed(payload(b"message"), orders.patience)).await;
    let elapsed = asked.elapsed();
    let refused = |status: Status| status.get_error_details().retry_info().and_then(|info| info.retry_delay);
    let (kind, wait) = match answer {
        Ok(answer) => {
            let signature = Signature::from_bytes(answer.into_inner().signature.to_vec());
            key.verify(Algorithm::Rs256, &Digest::of(Hash::Sha256, b"message"), &signature).unwrap();
            (if elapsed <= orders.patience { &mut answers.good } else { &mut answers.late }, None)
        }
        Err(status) if status.code() == Code::ResourceExhausted => (&mut answers.refused, refused(status)),
        Err(status) if status.code() == Code::DeadlineExceeded => (&mut answers.late, None),
        Err(other) => panic!("{other}"),
    };
    kind.push(elapsed.as_micros().try_into().unwrap());
    wait.filter(|_| orders.waits).unwrap_or_default()
}

/// A connection that the daemon has served; none where it takes no more of this user's.
async fn served(socket: &Path) -> Option<Client> {
    let mut client = connect(socket).await?;
    public_keys(&mut client).await.ok()?;
    Some(client)
}

async fn public_keys(client: &mut Client) -> Result<(), Status> {
    let asked = proto::GetPublicCertificatesRequest { account: ACCOUNT.to_owned() };
    client.get_public_certificates(timed(asked, Duration::from_secs(5))).await.map(drop)
}

type Client = proto::signer_client::SignerClient<crate::soak::callers::Direct>;

const SPAN: Duration = Duration::from_secs(6);
/// Nobody's on any machine.
const USERS: std::ops::Range<u32> = 60_001..60_021;
const MODEST: u32 = 60_100;
