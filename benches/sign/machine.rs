//! What it was measured on, and with.

use std::fs;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::figure::Figure;
use crate::stand::Kind;

/// The machine and the versions of what has a part in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_gib: f64,
    pub(crate) kernel: String,
    /// Each name with its version.
    pub(crate) versions: Vec<(String, String)>,
}

impl Machine {
    pub(crate) fn here() -> Self {
        let field = |file: &str, name: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.trim_start_matches([' ', '\t', ':']).trim().to_owned()
        };
        let memory: f64 = field("/proc/meminfo", "MemTotal:").trim_end_matches(" kB").parse().unwrap_or(0.0);
        let commit = said("git", &["describe", "--always", "--dirty", "--tags"]);
        let versions = [
            ("Signet", format!("{} ({commit})", env!("CARGO_PKG_VERSION"))),
            ("rustc", said("rustc", &["--version"]).trim_start_matches("rustc ").to_owned()),
            ("SoftHSM", said("softhsm2-util", &["--version"])),
            (
                "swtpm",
                said("swtpm", &["--version"])
                    .replace("TPM emulator version ", "")
                    .split(',')
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
            ),
            ("tpm2-tss", said("pkg-config", &["--modversion", "tss2-esys"])),
            ("OpenSSL", said("openssl", &["version"]).trim_start_matches("OpenSSL ").to_owned()),
        ];
        Self {
            processor: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: (memory / f64::from(1 << 20)).round(),
            kernel: said("uname", &["-r"]),
            versions: versions.map(|(name, version)| (name.to_owned(), version)).to_vec(),
        }
    }
}

/// What OpenSSL signs on one core, for scale.
pub(crate) fn openssl_speed() -> Vec<Figure> {
    let kinds = [
        ("rsa2048", "RS256", "2048"),
        ("rsa3072", "RS256", "3072"),
        ("rsa4096", "RS256", "4096"),
        ("ecdsap256", "ES256", "256"),
    ];
    let speed = |(name, algorithm, bits)| {
        let output = said_whole("openssl", &["speed", "-seconds", "1", "-mr", name]);
        // "+F2:2:2048:4094.897959:68186.000000": index, bits, signatures a second, verifications a second.
        let line = output.lines().find(|line| line.starts_with("+F2") || line.starts_with("+F4"))?;
        let rate = line.split(':').nth(3)?.parse().ok()?;
        Some(Figure::of("OpenSSL", Kind { algorithm, bits }, "openssl speed, 1 thread", "a second", vec![rate]))
    };
    kinds.into_iter().filter_map(speed).collect()
}

/// The first line that a program prints.
fn said(program: &str, arguments: &[&str]) -> String {
    said_whole(program, arguments).lines().next().unwrap_or("not found").trim().to_owned()
}

fn said_whole(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}
