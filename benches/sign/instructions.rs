//! How many instructions a request costs the daemon, counted by callgrind: free of the machine's mood, so a regression fails.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::daemon::{Ask, Daemon};
use crate::measure::{CACHED, NOTHING, SERVED};
use crate::stand::{Backend, Kind, Stand};

/// Counts, and compares with what was recorded, or records. False where something costs more than a tenth more.
pub(crate) async fn check(record: bool) -> bool {
    if Command::new("valgrind").arg("--version").output().is_err() {
        eprintln!("error: valgrind is not installed\n  try: scripts/deps bench");
        return false;
    }
    let Some(stand) = Stand::new(&Backend::SoftHsm, Kind::USUAL) else {
        eprintln!("error: SoftHSM is not installed\n  try: scripts/deps bench");
        return false;
    };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.json");
    let recorded: BTreeMap<String, f64> =
        if record { BTreeMap::new() } else { serde_json::from_slice(&fs::read(&file).unwrap()).unwrap() };
    let mut counted = BTreeMap::new();
    let mut well = true;
    println!("| a request of | instructions | recorded | change |\n|---|---|---|---|");
    for (name, ask) in [(SERVED, Ask::Signature), (CACHED, Ask::CachedToken), (NOTHING, Ask::Nothing)] {
        // What start and end cost goes out with the difference.
        let instructions = (count(&stand, ask, MANY).await - count(&stand, ask, FEW).await) / f64::from(MANY - FEW);
        let instructions = instructions.round();
        let before = recorded.get(name).copied().unwrap_or(instructions);
        println!("| {name} | {instructions} | {before} | {:+.1} % |", (instructions / before - 1.0) * 100.0);
        well &= instructions <= before * 1.1;
        counted.insert(name, instructions);
    }
    if record {
        fs::write(file, serde_json::to_string_pretty(&counted).unwrap() + "\n").unwrap();
    } else if !well {
        eprintln!(
            "error: a request costs over 10 % more instructions than recorded\n  try: make it cheaper, or scripts/bench --record where it is worth it"
        );
    }
    well
}

/// The instructions of a daemon that lives for this many requests, one after the other.
async fn count(stand: &Stand, ask: Ask, requests: u32) -> f64 {
    // The daemon may write there, and nowhere else.
    let output = stand.served.file("state/callgrind");
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--quiet", "--vgdb=no"]);
    valgrind.arg(format!("--callgrind-out-file={}", output.display())).arg(env!("CARGO_BIN_EXE_signetd"));
    // It has never heard of landlock and seccomp, and says so. Neither costs the daemon itself anything.
    valgrind.stderr(Stdio::null());
    let daemon = Daemon::start_by(valgrind, &stand.served);
    daemon.sign().await;
    daemon.ask_often(ask, requests).await;
    daemon.stop();
    let profile = fs::read_to_string(output).unwrap();
    profile.lines().find_map(|line| line.strip_prefix("totals: ")).unwrap().trim().parse().unwrap()
}

const FEW: u32 = 200;
const MANY: u32 = 1200;
