//! Figures of docs/reliability.md of many callers at once: users with a process each, who ask the daemon by gRPC. They are
//! printed and decide nothing: `cargo test --release --test suite -- --ignored --nocapture --test-threads=1 crowd::`.

use std::fmt;
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
use crate::support::modules::Shim;
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
    asks: Asks,
}

/// When a user's callers ask.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
enum Asks {
    /// One by each connection: again after this pause; who is refused, when he was told to.
    AsTold(Duration),
    /// One by each connection: again at once, whatever the answer.
    AtOnce,
    /// So many in a second in all, whatever comes of them.
    Steadily(f64),
}

/// What came of a user's requests: how many microseconds each took.
#[derive(Default, Deserialize, Serialize)]
struct Answers {
    good: Vec<u64>,
    refused: Vec<u64>,
    /// Answers beyond the deadline, and those that say that it is over.
    late: Vec<u64>,
    /// How much later than it should the process woke each time: the machine's doing, and a part of the times above.
    lag: Vec<u64>,
    seconds: f64,
}

/// The device has time of its own, as real ones do: the cores are the daemon's and the callers'.
#[test]
#[ignore = "a figure of docs/reliability.md: ask for it with --ignored --nocapture"]
fn ten_times_as_many_callers_as_a_device_carries() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    shim.tell("slow C_Sign 5\n");
    let Some(stage) = Stage::new(&shim.toml()) else { return };
    for patience in [1000, 50] {
        stage.crowd(patience, |peak| Asks::Steadily(10.0 * peak / 4.0));
    }
    stage.crowd(50, |_| Asks::AsTold(Duration::ZERO));
    stage.crowd(50, |_| Asks::AtOnce);
}

/// The token is software, and signs on the cores that the daemon and the callers have too.
#[test]
#[ignore = "a figure of docs/reliability.md: ask for it with --ignored --nocapture"]
fn ten_times_as_many_callers_as_a_token_carries() {
    let Some(token) = SoftHsm::new() else { return };
    let Some(stage) = Stage::new(&token.toml()) else { return };
    stage.crowd(1000, |_| Asks::AsTold(Duration::ZERO));
    stage.crowd(50, |_| Asks::AsTold(Duration::ZERO));
    stage.crowd(50, |_| Asks::AtOnce);
}

#[test]
#[ignore = "a figure of docs/reliability.md: ask for it with --ignored --nocapture"]
fn three_thousand_idle_connections() {
    let Some(token) = SoftHsm::new() else { return };
    let Some(stage) = Stage::new(&token.toml()) else { return };
    println!("another user alone: {}", stage.modest());
    println!("the daemon has {} KiB", stage.daemon.memory_kib());
    let idle = |uid| stage.begin(uid, 3000 / USERS.len(), |orders| orders.span = None);
    let mut idle: Vec<_> = USERS.map(idle).collect();
    let held: Vec<usize> = idle.iter_mut().map(Callers::told).collect();
    println!("of 3000 connections of {} users {} were served: {held:?}", USERS.len(), held.iter().sum::<usize>());
    println!("another user beside them: {}", stage.modest());
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
    fn new(device: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skip_optional("root");
            return None;
        }
        let config = TestDaemon::config(&format!("[audit]\nmax_size = \"1GiB\"\n{device}"));
        let all: Vec<_> = USERS.chain([MODEST]).map(|uid| uid.to_string()).collect();
        let mut daemon = TestDaemon::prepare(&config.replace("{uid}", &format!("{{uid}}, {}", all.join(", "))));
        daemon.log_level = "info";
        daemon.signetctl(&["key", "generate", "--device", "hsm"]);
        daemon.spawn();
        daemon.wait_for_log("serving");
        let key = Keyring::load(&daemon.state()).unwrap().keys.remove(0).public_key.spki().to_vec();
        let (span, patience, asks) = (Some(SPAN), Duration::from_secs(1), Asks::AsTold(Duration::ZERO));
        let orders = Orders { socket: daemon.socket(), key, connections: 1, span, patience, asks };
        Some(Self { program: program(&daemon), daemon, orders })
    }

    /// Prints what comes of a crowd that asks as the peak tells, and of a modest user beside it. The peak is measured anew for each:
    /// the machine is not the same all the time.
    #[allow(clippy::print_stdout, reason = "that is how figures are told")]
    fn crowd(&self, patience: u64, asks: impl FnOnce(f64) -> Asks) {
        let peak = Answers::of([self.start(USERS.start, 8, |_| {})]);
        println!("peak, 8 callers of one user: {peak}");
        println!("  a modest user alone: {}", self.modest());
        let asks = asks(peak.good_a_second());
        let before = self.daemon.audit().len();
        let crowd = USERS.take(4).map(|uid| {
            self.start(uid, 20, |orders| (orders.patience, orders.asks) = (Duration::from_millis(patience), asks))
        });
        let crowd: Vec<_> = crowd.collect();
        let modest = self.modest();
        let crowd = Answers::of(crowd);
        let ratio = (crowd.good_a_second() + modest.good_a_second()) / peak.good_a_second();
        println!("80 connections of 4 users, {patience} ms each, {asks:?}: {crowd}");
        println!("  the modest user beside them: {modest}");
        println!("  verified in time, of the peak: {ratio:.2}");
        let records = self.daemon.audit().split_off(before);
        let refused = records.iter().filter(|record| record["outcome"] == "DEVICE_BUSY");
        let refused = refused.map(|record| record["latency_us"].as_u64().unwrap()).collect();
        println!("  by the daemon's own clock: {}", Answers { refused, ..Answers::for_a_span() });
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
    fn modest(&self) -> Answers {
        let asks = Asks::AsTold(Duration::from_millis(20));
        Answers::of([self.start(MODEST, 1, |orders| orders.asks = asks)])
    }
}

impl Answers {
    fn for_a_span() -> Self {
        Self { seconds: SPAN.as_secs_f64(), ..Self::default() }
    }

    fn of(callers: impl IntoIterator<Item = Callers>) -> Self {
        let mut all = Self::for_a_span();
        callers.into_iter().for_each(|mut callers| all.add(callers.told()));
        all
    }

    fn add(&mut self, other: Self) {
        self.good.extend(other.good);
        self.refused.extend(other.refused);
        self.late.extend(other.late);
        self.lag.extend(other.lag);
    }

    #[allow(clippy::cast_precision_loss, reason = "nobody counts to 2^52")]
    fn good_a_second(&self) -> f64 {
        self.good.len() as f64 / self.seconds
    }
}

impl fmt::Display for Answers {
    #[allow(clippy::cast_precision_loss, reason = "nobody counts to 2^52")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            ("verified", &self.good),
            ("refused", &self.refused),
            ("late", &self.late),
            ("wake-ups late by", &self.lag),
        ];
        for (name, times) in all.into_iter().filter(|(_, times)| !times.is_empty()) {
            let mut times = times.clone();
            times.sort_unstable();
            let at = |hundredth| times.get(times.len() * hundredth / 100).map_or(0.0, |us| *us as f64 / 1000.0);
            write!(f, "{:.0}/s {name} ({:.1} ms, p99 {:.1} ms) ", times.len() as f64 / self.seconds, at(50), at(99))?;
        }
        Ok(())
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
    let end = Instant::now() + span;
    let lag = std::thread::spawn(move || wake_ups(end));
    let mut asking = JoinSet::new();
    if let Asks::Steadily(a_second) = orders.asks {
        let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / a_second));
        for client in clients.iter().cycle() {
            ticks.tick().await;
            if Instant::now() >= end {
                break;
            }
            let (mut client, orders, key) = (client.clone(), Arc::clone(&orders), Arc::clone(&key));
            asking.spawn(async move {
                let mut answers = Answers::default();
                ask(&mut client, &orders, &key, &mut answers).await;
                answers
            });
        }
    } else {
        for mut client in clients {
            let (orders, key) = (Arc::clone(&orders), Arc::clone(&key));
            asking.spawn(async move {
                let mut answers = Answers::default();
                while Instant::now() < end {
                    let told = ask(&mut client, &orders, &key, &mut answers).await;
                    if let Asks::AsTold(pause) = orders.asks {
                        tokio::time::sleep(told.unwrap_or_default().max(pause)).await;
                    }
                }
                answers
            });
        }
    }
    let mut all = Answers::default();
    asking.join_all().await.into_iter().for_each(|answers| all.add(answers));
    all.lag = lag.join().unwrap();
    tell(&all);
}

/// Asks for one signature. How long to wait before the next, where that was told.
async fn ask(client: &mut Client, orders: &Orders, key: &PublicKey, answers: &mut Answers) -> Option<Duration> {
    let asked = Instant::now();
    let answer = client.sign_blob(timed(payload(b"message"), orders.patience)).await;
    let elapsed = asked.elapsed();
    let (kind, told) = match answer {
        Ok(answer) => {
            let signature = Signature::from_bytes(answer.into_inner().signature.to_vec());
            key.verify(Algorithm::Rs256, &Digest::of(Hash::Sha256, b"message"), &signature).unwrap();
            (if elapsed <= orders.patience { &mut answers.good } else { &mut answers.late }, None)
        }
        Err(status) if status.code() == Code::ResourceExhausted => {
            let told = status.get_error_details().retry_info().and_then(|info| info.retry_delay);
            (&mut answers.refused, told)
        }
        Err(status) if status.code() == Code::DeadlineExceeded => (&mut answers.late, None),
        Err(other) => panic!("{other}"),
    };
    kind.push(elapsed.as_micros().try_into().unwrap());
    told
}

/// How late this process woke each time until then.
fn wake_ups(end: Instant) -> Vec<u64> {
    let (mut lag, pause) = (Vec::new(), Duration::from_millis(5));
    while Instant::now() < end {
        let slept = Instant::now();
        std::thread::sleep(pause);
        lag.push((slept.elapsed() - pause).as_micros().try_into().unwrap());
    }
    lag
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
