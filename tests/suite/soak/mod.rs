//! A soak: users who ask without end, and faults at random times from a seed. No answer may be wrong, none later than its
//! deadline, none without its line in the audit log, and service has to come back by itself. `scripts/soak` runs it.

pub(crate) mod callers;
mod faults;
mod report;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use signet::keyring::Keyring;
use signet::proto;
use tokio::task::JoinSet;
use tonic::Request;
use tonic_health::ServingStatus;

use self::callers::{Answers, Callers, Orders};
use self::faults::{Fault, Held, Stage};
use self::report::{Report, Timeline, Times};
use crate::support::daemon::{ACCOUNT, TestDaemon, payload};
use crate::support::modules::Shim;
use crate::support::softhsm::SoftHsm;
use crate::support::swtpm::SwTpm;
use crate::support::tpm_proxy::TpmProxy;

/// Which devices the daemon has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Device {
    SoftHsm,
    SwTpm,
    Both,
}

impl Device {
    const ALL: [Self; 3] = [Self::SoftHsm, Self::SwTpm, Self::Both];

    const fn name(self) -> &'static str {
        match self {
            Self::SoftHsm => "softhsm",
            Self::SwTpm => "swtpm",
            Self::Both => "both",
        }
    }
}

/// Numbers that the same seed makes again (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From the first on, below the second.
    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low)
    }

    fn weighted(&mut self, choices: &[(&'static str, u64)]) -> &'static str {
        let mut at = self.between(0, choices.iter().map(|(_, weight)| weight).sum());
        for (choice, weight) in choices {
            if at < *weight {
                return choice;
            }
            at -= weight;
        }
        unreachable!()
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes as long as it is told to: scripts/soak"]
async fn soak() {
    let told = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let (seconds, seed) = (told("SOAK_SECONDS", "60").parse().unwrap(), told("SOAK_SEED", "1").parse().unwrap());
    let device = told("SOAK_DEVICE", "both");
    let device = Device::ALL.into_iter().find(|known| known.name() == device).expect("softhsm, swtpm or both");
    let Some(report) = run(device, seconds, seed).await else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/soak");
    fs::create_dir_all(&folder).unwrap();
    let stem = folder.join(format!("{}-{seconds}s-{seed}", device.name()));
    let text = serde_json::to_string_pretty(&report).unwrap();
    fs::write(stem.with_extension("json"), &text).unwrap();
    fs::write(stem.with_extension("svg"), report.picture()).unwrap();
    println!("{text}\nwritten to {}.json and .svg", stem.display());
    assert_eq!(report.failure(std::env::var_os("SOAK_UNTIMED").is_none()), None);
}

/// None where a device is not installed.
async fn run(device: Device, seconds: u64, seed: u64) -> Option<Report> {
    let token = if device == Device::SwTpm { None } else { Some(SoftHsm::new()?) };
    let mut stage = Stage::new(device, token.as_ref())?;
    stage.daemon.wait_for_health(ServingStatus::Serving).await;
    let callers = stage.callers(seed);
    let mut course = Course { random: Random(seed), began: Instant::now(), seconds, ..Course::default() };
    course.run(&mut stage, device).await;
    fs::remove_file(stage.go_on()).unwrap();
    let answers: Vec<_> = callers.into_iter().map(|mut callers| callers.told()).collect();
    assert!(stage.daemon.stop().success(), "{}", tail(&stage.daemon));
    Some(course.report(device, seed, answers, &stage))
}

impl<'a> Stage<'a> {
    fn new(device: Device, token: Option<&'a SoftHsm>) -> Option<Self> {
        let tpm = match device {
            Device::SoftHsm => None,
            _ => {
                let tpm = SwTpm::start()?;
                let proxy = TpmProxy::before(&tpm);
                Some((tpm, proxy))
            }
        };
        let token = token.map(|token| (token, Shim::new(token)));
        let limit = "call_limit = \"1s\"\n";
        let mut devices = String::new();
        if let Some((_, shim)) = &token {
            shim.tell("");
            devices += &(shim.toml() + limit);
        }
        if let Some((_, proxy)) = &tpm {
            devices += &format!("[[device]]\nname = \"tpm\"\nkind = \"tpm\"\ntcti = {:?}\n{limit}", proxy.tcti());
        }
        let users = USERS.map(|uid| uid.to_string()).join(", ");
        let config = format!(
            "state_dir = \"state\"\n[listen]\ngrpc = \"run/signet.sock\"\nmode = \"0666\"\n[audit]\nkeep = 1000\n{devices}\
             [[account]]\nemail = \"{ACCOUNT}\"\n[[allow]]\nusers = [{{uid}}, {users}]\naccounts = [\"{ACCOUNT}\"]\n\
             operations = [\"sign-blob\", \"sign-jwt\", \"mint-access-token\"]\n"
        );
        let mut daemon = TestDaemon::prepare(&config);
        daemon.log_level = "info";
        for name in [token.as_ref().map(|_| "hsm"), tpm.as_ref().map(|_| "tpm")].into_iter().flatten() {
            if name == "tpm" {
                daemon.signetctl(&["device", "init", "tpm"]);
            }
            daemon.signetctl(&["key", "generate", "--device", name]);
        }
        daemon.spawn();
        let stage = Self { daemon, token, tpm, held: Held::default(), torn: 0 };
        stage.keep_token();
        Some(stage)
    }

    fn go_on(&self) -> PathBuf {
        self.daemon.folder().join("go-on")
    }

    fn signed(&self, user: usize) -> PathBuf {
        self.daemon.folder().join(format!("signed/{user}"))
    }

    fn callers(&self, seed: u64) -> Vec<Callers> {
        let keyring = Keyring::load(&self.daemon.state()).unwrap();
        let keys: BTreeMap<_, _> =
            keyring.keys.iter().map(|key| (key.kid.to_string(), key.public_key.spki().to_vec())).collect();
        fs::write(self.go_on(), "").unwrap();
        let signed = self.daemon.folder().join("signed");
        fs::create_dir(&signed).unwrap();
        fs::set_permissions(&signed, fs::Permissions::from_mode(0o777)).unwrap();
        let program = callers::program(&self.daemon);
        let start = |(number, uid): (usize, u32)| {
            let seed = seed.wrapping_add(number as u64 * 1000);
            let (socket, go_on, signed) = (self.daemon.socket(), self.go_on(), self.signed(number));
            let orders = Orders { socket, keys: keys.clone(), seed, go_on, signed };
            Callers::start(uid, &program, "soak::callers::the_callers_side", &orders)
        };
        USERS.into_iter().enumerate().map(start).collect()
    }
}

/// A soak on its way.
struct Course {
    random: Random,
    began: Instant,
    seconds: u64,
    timeline: Timeline,
    recovery: BTreeMap<&'static str, Vec<u64>>,
    health: Vec<u64>,
    not_recovered: Vec<String>,
    /// Of the daemon that runs now.
    memory: Vec<u64>,
}

impl Default for Course {
    fn default() -> Self {
        Self {
            random: Random(0),
            began: Instant::now(),
            seconds: 0,
            timeline: Timeline::default(),
            recovery: BTreeMap::new(),
            health: Vec::new(),
            not_recovered: Vec::new(),
            memory: Vec::new(),
        }
    }
}

impl Course {
    /// Every fault once, in an order of the seed's, then any.
    async fn run(&mut self, stage: &mut Stage<'_>, device: Device) {
        let all = faults::of(device);
        let mut coming = all.clone();
        while self.began.elapsed() < Duration::from_secs(self.seconds) {
            self.pause(100, 700).await;
            if coming.is_empty() {
                coming.clone_from(&all);
                // So that the daemon of the second half lives long enough for its memory to say something.
                coming.retain(|fault| !fault.ends_the_daemon() || self.began.elapsed().as_secs() < self.seconds / 2);
            }
            let at = self.random.between(0, coming.len() as u64);
            let fault = coming.swap_remove(usize::try_from(at).unwrap());
            if !fault.ends_the_daemon() || self.began.elapsed().as_secs() <= self.seconds / 2 {
                self.befalls(stage, fault).await;
            }
        }
    }

    async fn befalls(&mut self, stage: &mut Stage<'_>, fault: Fault) {
        self.timeline.faults.push((self.began.elapsed().as_secs(), fault.name));
        stage.inflict(fault, &mut self.random);
        self.pause(50, 1500).await;
        stage.relieve(fault);
        match recovered(&stage.daemon).await {
            Ok((signed, healthy)) => {
                self.recovery.entry(fault.name).or_default().push(signed);
                self.health.push(healthy);
            }
            Err(why) => {
                let at = self.began.elapsed();
                self.not_recovered.push(format!("{} at {at:?}: {why}; the log: {}", fault.name, tail(&stage.daemon)));
            }
        }
        if fault.ends_the_daemon() {
            self.memory.clear();
        }
        self.memory.push(stage.daemon.memory_kib());
        self.timeline.memory.push((self.began.elapsed().as_secs(), stage.daemon.memory_kib()));
    }

    async fn pause(&mut self, least: u64, most: u64) {
        tokio::time::sleep(Duration::from_millis(self.random.between(least, most))).await;
    }

    fn report(mut self, device: Device, seed: u64, all: Vec<Answers>, stage: &Stage<'_>) -> Report {
        let mut sum = Answers::default();
        for answers in all {
            answers.kinds.into_iter().for_each(|(kind, count)| *sum.kinds.entry(kind).or_default() += count);
            for (second, (good, errors)) in answers.seconds {
                let of_second = self.timeline.answers.entry(second).or_default();
                *of_second = (of_second.0 + good, of_second.1 + errors);
            }
            sum.wrong.extend(answers.wrong);
            sum.hung.extend(answers.hung);
            sum.undocumented.extend(answers.undocumented);
            sum.lag_ms = sum.lag_ms.max(answers.lag_ms);
        }
        let unaudited = unaudited(stage, &sum);
        let kinds: HashSet<_> = self.timeline.faults.iter().map(|(_, name)| name).collect();
        let of_all = Times::of(self.recovery.values().flatten().copied().collect());
        let (warm, rest) = self.memory.split_at(self.memory.len() / 3);
        let memory = [warm, rest].map(|samples| samples.iter().copied().max().unwrap_or_default());
        let is_good = |kind: &str| kind.ends_with(" OK");
        Report {
            device: device.name(),
            seed,
            seconds: self.began.elapsed().as_secs(),
            requests: sum.kinds.values().sum(),
            verified: sum.kinds.iter().filter(|(kind, _)| is_good(kind)).map(|(_, count)| count).sum(),
            errors: sum.kinds.into_iter().filter(|(kind, _)| !is_good(kind)).collect(),
            faults: self.timeline.faults.len(),
            kinds: kinds.len(),
            wrong: sum.wrong,
            hung: sum.hung,
            undocumented: sum.undocumented,
            unaudited,
            not_recovered: self.not_recovered,
            recovery_ms: self.recovery.into_iter().map(|(fault, times)| (fault, Times::of(times))).collect(),
            recovery_of_all_ms: of_all,
            health_of_all_ms: Times::of(self.health),
            memory_kib: memory.into(),
            torn_tokens: stage.torn,
            callers_lag_ms: sum.lag_ms,
            timeline: self.timeline,
        }
    }
}

/// How long from now to the next good signature, and until health says so too, in milliseconds.
async fn recovered(daemon: &TestDaemon) -> Result<(u64, u64), String> {
    let began = Instant::now();
    let millis = |begun: Instant| u64::try_from(begun.elapsed().as_millis()).unwrap();
    let mut client = daemon.client();
    let mut attempts = JoinSet::new();
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    let mut last = String::new();
    let signed = loop {
        if began.elapsed() > GIVEN_UP {
            return Err(last);
        }
        tokio::select! {
            _ = pace.tick() => {
                let mut client = client.clone();
                let mut request = Request::new(payload(b"is it back?"));
                request.set_timeout(Duration::from_secs(1));
                attempts.spawn(async move { client.sign_blob(request).await });
            }
            Some(Ok(outcome)) = attempts.join_next() => match outcome {
                Ok(_) => break millis(began),
                Err(status) => last = status.to_string(),
            }
        }
    };
    attempts.abort_all();
    while began.elapsed() < GIVEN_UP {
        let status = client.get_status(proto::GetStatusRequest {}).await;
        if status.is_ok_and(|status| status.into_inner().serving) {
            return Ok((signed, millis(began)));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err("it signs, but health does not say so".to_owned())
}

/// How many answers have no line in the audit log, which has to verify over all its files.
fn unaudited(stage: &Stage<'_>, answers: &Answers) -> u64 {
    let log = stage.daemon.audit_file();
    let mut files = vec![log.clone()];
    files.extend((1..).map(|number| log.with_extension(format!("log.{number}"))).take_while(|file| file.exists()));
    files.reverse();
    stage.daemon.signetctl(&["audit", "verify", "--from-start"]);
    let (mut recorded, mut digests) = (BTreeMap::<String, u64>::new(), HashSet::new());
    let mut rpcs = HashMap::new();
    for file in &files {
        for line in fs::read_to_string(file).unwrap().lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let [rpc, outcome] = ["rpc", "outcome"].map(|member| line[member].as_str().unwrap_or_default().to_owned());
            if outcome == "OK"
                && let Some(digest) = line["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:"))
            {
                digests.insert(digest.to_owned());
            }
            *recorded.entry(format!("{rpc} {outcome}")).or_default() += 1;
            rpcs.insert(line["seq"].as_u64(), rpc);
            // Who waited for that record gave up before it was on disk.
            if line["event"] == "unanswered"
                && let Some(rpc) = rpcs.get(&line["record"].as_u64())
            {
                *recorded.entry(format!("{rpc} DEADLINE_EXCEEDED")).or_default() += 1;
            }
            for counted in line["counted"].as_array().into_iter().flatten() {
                let [rpc, outcome] = ["rpc", "outcome"].map(|member| counted[member].as_str().unwrap_or_default());
                *recorded.entry(format!("{rpc} {outcome}")).or_default() += counted["count"].as_u64().unwrap();
            }
        }
    }
    let signed = (0..USERS.len()).flat_map(|user| {
        let signed = fs::read(stage.signed(user)).unwrap();
        signed.chunks(32).map(signet::key::hexadecimal).collect::<Vec<_>>()
    });
    let mut missing = signed.filter(|digest| !digests.contains(digest)).count() as u64;
    let mut answered = BTreeMap::<String, u64>::new();
    for (kind, count) in &answers.kinds {
        // What is refused is recorded as that, also where its line came too late for the caller.
        let kind = match kind.as_str() {
            "Digest DEADLINE_EXCEEDED" => "SignBlob NOT_ALLOWED".to_owned(),
            "BadClaims DEADLINE_EXCEEDED" => "SignJwt INVALID_REQUEST".to_owned(),
            kind => kind.replace("Digest ", "SignBlob ").replace("BadClaims ", "SignJwt "),
        };
        // Public keys are everybody's, what was not answered was told to nobody, and without a log nothing is begun.
        let open = ["GetPublic", "hung up", "connection lost"].iter().any(|open| kind.starts_with(open));
        if !open && !kind.ends_with("no answer") && !kind.ends_with("AUDIT_UNWRITABLE") {
            *answered.entry(kind).or_default() += count;
        }
    }
    for (kind, count) in answered {
        let without = count.saturating_sub(recorded.get(&kind).copied().unwrap_or_default());
        if without > 0 {
            eprintln!("{without} without a record: {kind}");
        }
        missing += without;
    }
    missing
}

fn tail(daemon: &TestDaemon) -> String {
    let log = fs::read_to_string(daemon.log_file()).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

/// Nobody's on any machine.
pub(crate) const USERS: [u32; 4] = [60_001, 60_002, 60_003, 60_004];
/// What has not come back by then does not.
const GIVEN_UP: Duration = Duration::from_secs(30);
