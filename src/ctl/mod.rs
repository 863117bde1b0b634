//! signetctl: provisions keys and talks to the daemon. One file a command group.
//!
//! Provisioning opens a device in this process; everything that signs goes through the daemon. The result stands on
//! standard output, bare; everything said about it stands on standard error.

mod audit;
mod bench;
mod client;
mod config;
mod device;
mod doctor;
mod env;
mod failure;
mod import;
mod init;
mod interrupt;
mod key;
mod policy;
mod progress;
mod publish;
mod rsa;
mod shell;
mod sign;
mod status;
mod subject_token;
mod verify;

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, ColorChoice, Parser, Subcommand};
use nix::sys::signal::{Signal, raise};
use serde::Serialize;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{Config, DEFAULT_SOCKET, Listen};
use crate::sandbox::guard_memory;
use crate::users;
use failure::{Failure, Printable};
pub use shell::manual_page;

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| shell::without_environment(error).exit());
    match cli.global.color {
        ColorChoice::Auto => {}
        ColorChoice::Always => anstream::ColorChoice::Always.write_global(),
        ColorChoice::Never => anstream::ColorChoice::Never.write_global(),
    }
    if let Err(error) = guard_memory() {
        return Failure::new(format!("can't keep secrets out of core files: {error}")).report();
    }
    log_to_stderr(cli.global.quiet);
    let code = match run(cli.command, &cli.global) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    };
    end_in_time();
    code
}

/// Ends this process should its end take too long: a module that hangs may hang in its destructors, too.
fn end_in_time() {
    std::thread::spawn(|| {
        std::thread::sleep(LONGEST_END);
        let _ = raise(Signal::SIGKILL);
    });
}

/// Reads a key file's bytes as `key import` does; the error is what a person would be told. For `fuzz/` alone.
///
/// # Errors
/// Where it is no key that is taken.
#[cfg(fuzzing)]
pub fn read_key_file(bytes: &[u8]) -> Result<(), String> {
    import::parse(bytes).map(drop).map_err(|failure| failure.to_string())
}

/// What devices warn of: it is not part of any error, and a person must know of it all the same.
fn log_to_stderr(quiet: bool) {
    let level = if quiet { LevelFilter::ERROR } else { LevelFilter::WARN };
    let lines =
        tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(false).with_target(false).without_time();
    tracing_subscriber::registry().with(Targets::new().with_target("signet", level)).with(lines).init();
}

fn run(command: Command, global: &Global) -> Result<(), Failure> {
    match command {
        Command::Init(options) => init::run(options, global),
        Command::Device { command } => device::run(command, global),
        Command::Key { command } => key::run(command, global),
        Command::SignBlob(options) => sign::blob(options, global),
        Command::SignJwt(options) => sign::jwt(options, global),
        Command::Mint(options) => sign::mint(options, global),
        Command::IdToken(options) => sign::id_token(options, global),
        Command::Certificates(options) => sign::certificates(options, global),
        Command::Verify(options) => verify::run(options, global),
        Command::Publish(options) => publish::run(options, global),
        Command::Status => status::run(global),
        Command::Doctor(options) => doctor::run(options, global),
        Command::Env(options) => env::run(options, global),
        Command::SubjectToken(options) => subject_token::run(options, global),
        Command::Config { command } => config::run(command, global),
        Command::Policy { command } => policy::run(command, global),
        Command::Audit { command } => audit::run(command, global),
        Command::Bench(options) => bench::run(options, global),
        Command::Completions { shell } => shell::completions(shell),
        Command::Man { directory } => shell::man(&directory, global),
    }
}

/// Provisions service-account keys in a TPM or a PKCS#11 token, and asks signetd for signatures and JWTs by them.
///
/// The private keys never leave their device. Provisioning commands (init, device, key) open the device themselves;
/// signing commands (mint, id-token, sign-jwt, sign-blob) ask the daemon, which decides by the rules of its configuration.
#[derive(Debug, Parser)]
#[command(
    name = "signetctl",
    version,
    max_term_width = 100,
    after_help = "\
First steps:
  export SIGNET_CONFIG=~/signet/signet.toml               # or as root, in /etc/signet
  signetctl init --account app@project.iam.gserviceaccount.com --allow-user \"$(id -un)\"
  signetctl key generate --device hsm
  signetd &                                               # or systemctl start signetd
  signetctl mint --audience https://pubsub.googleapis.com/
  signetctl doctor                                        # when something does not work

Exit codes: 0 done, 1 failed, 2 usage or bad input, 3 refused by policy,
4 device or daemon unavailable, 5 a signature or an audit chain does not verify."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Args, Clone, Debug)]
pub(crate) struct Global {
    /// The configuration
    #[arg(
        long,
        global = true,
        env = "SIGNET_CONFIG",
        hide_env_values = true,
        default_value = DEFAULT_CONFIG,
        value_name = "FILE",
        overrides_with = "config",
        help_heading = "Global options"
    )]
    config: PathBuf,
    /// The daemon's socket; by default that of the configuration
    #[arg(
        long,
        global = true,
        env = "SIGNET_SOCKET",
        hide_env_values = true,
        value_name = "PATH",
        help_heading = "Global options"
    )]
    socket: Option<PathBuf>,
    /// Print JSON, for programs
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,
    /// Print the result and errors, nothing else
    #[arg(long, short, global = true, help_heading = "Global options")]
    quiet: bool,
    /// When to use colours: auto, always or never
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t = ColorChoice::Auto,
        value_name = "WHEN",
        hide_possible_values = true,
        help_heading = "Global options"
    )]
    color: ColorChoice,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::Options),
    /// Set up and look at devices
    #[command(after_help = "Example:\n  signetctl device show hsm")]
    Device {
        #[command(subcommand)]
        command: device::DeviceCommand,
    },
    /// Make, import and manage keys
    #[command(after_help = "Example:\n  signetctl key generate --device hsm")]
    Key {
        #[command(subcommand)]
        command: key::KeyCommand,
    },
    SignBlob(sign::BlobOptions),
    SignJwt(sign::JwtOptions),
    Mint(sign::MintOptions),
    IdToken(sign::IdTokenOptions),
    Certificates(sign::CertificatesOptions),
    Verify(verify::Options),
    Publish(publish::Options),
    /// Show how the daemon, the devices and the keys are
    ///
    /// Exit code 4 where the daemon can't sign.
    #[command(after_help = "Example:\n  signetctl status --json | jq .healthy")]
    Status,
    Doctor(doctor::Options),
    Env(env::Options),
    SubjectToken(subject_token::Options),
    /// Check the configuration
    #[command(after_help = "Example:\n  signetctl config check")]
    Config {
        #[command(subcommand)]
        command: config::ConfigCommand,
    },
    /// Explain what the rules allow
    #[command(after_help = "Example:\n  signetctl policy explain --user app --account EMAIL --operation sign-jwt")]
    Policy {
        #[command(subcommand)]
        command: policy::PolicyCommand,
    },
    /// Check and read the audit log
    #[command(after_help = "Examples:\n  signetctl audit verify\n  signetctl audit tail --failed")]
    Audit {
        #[command(subcommand)]
        command: audit::AuditCommand,
    },
    Bench(bench::Options),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  signetctl completions bash > /etc/bash_completion.d/signetctl")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a folder
    #[command(after_help = "Example:\n  signetctl man /usr/local/share/man/man1")]
    Man {
        /// The folder; it is made where it is not there
        directory: PathBuf,
    },
}

impl Global {
    fn load(&self) -> Result<Config, Failure> {
        Config::load(&self.config).map_err(|error| self.unread(error.into()))
    }

    /// Whether the configuration is not this user's to read.
    fn is_private(&self) -> bool {
        std::fs::File::open(&self.config).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    }

    /// Nobody is to open an operator's configuration to an application.
    fn unread(&self, failure: Failure) -> Failure {
        if !self.is_private() {
            return failure;
        }
        failure
            .hint("this needs the configuration: run it as its owner, with sudo; an application needs the socket alone")
    }

    /// The daemon's socket: the one given, else the configuration's.
    fn socket(&self) -> Result<PathBuf, Failure> {
        if let Some(socket) = &self.socket {
            return Ok(socket.clone());
        }
        let unread = match self.listen() {
            Ok(listen) => return Ok(listen.grpc),
            Err(unread) => unread,
        };
        // Callers may connect, and need not be able to read the configuration; and a daemon runs on when its file goes wrong.
        let default = match self.config.parent() {
            Some(folder) if self.config != Path::new(DEFAULT_CONFIG) => folder.join(init::SOCKET),
            _ => PathBuf::from(DEFAULT_SOCKET),
        };
        if default.exists() { Ok(default) } else { Err(unread) }
    }

    /// Where the daemon listens, by the configuration.
    fn listen(&self) -> Result<Listen, Failure> {
        Config::listen(&self.config).map_err(|error| self.unread(error.into()))
    }

    /// Prints the result: JSON for programs, else the text for people.
    fn show(&self, json: &impl Serialize, text: impl fmt::Display) -> Result<(), Failure> {
        if self.json {
            let json = serde_json::to_string_pretty(json).map_err(Failure::new)?;
            return print(json.as_bytes());
        }
        print(Printable(&text.to_string()).to_string().as_bytes())
    }

    /// Says something about the result, unless told to be quiet.
    fn note(&self, text: impl fmt::Display) {
        if !self.quiet {
            let _ = writeln!(anstream::stderr(), "{}", Printable(&text.to_string()));
        }
    }
}

/// The id of a user, by name or number.
fn user_id(user: &str) -> Result<u32, Failure> {
    let named = |_no_number| users::uid(user).map_err(Failure::new)?.ok_or_else(|| no_user(user));
    user.parse().or_else(named)
}

fn no_user(user: &str) -> Failure {
    Failure::usage(format!("there is no user {user:?}")).hint("a name or a number from getent passwd")
}

/// Asks on the terminal whether to go on, unless `yes` was said before.
fn confirm(yes: bool, question: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::usage("this asks on a terminal, and there is none").hint("--yes"));
    }
    let mut stderr = io::stderr();
    let _ = write!(stderr, "{question} Type yes: ");
    let _ = stderr.flush();
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(Failure::new)?;
    if answer.trim() == "yes" { Ok(()) } else { Err(Failure::new("not confirmed; nothing was changed")) }
}

/// Writes to standard output, with a final newline.
fn print(bytes: &[u8]) -> Result<(), Failure> {
    print_bytes(bytes)?;
    if bytes.ends_with(b"\n") { Ok(()) } else { print_bytes(b"\n") }
}

/// Writes to standard output.
fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    // Whoever reads no further, such as head, has what it wanted.
    if written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        return Ok(());
    }
    written.map_err(|error| Failure::new(format!("standard output: {error}")))
}

/// Columns, each as wide as its widest cell.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A time as RFC 3339 has it, in UTC and whole seconds.
fn date(time: SystemTime) -> String {
    let time = time::OffsetDateTime::from(time).replace_nanosecond(0);
    time.ok().and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok()).unwrap_or_default()
}

/// Reads a file, or standard input where it is `-`, up to a limit.
fn read(path: &Path, limit: u64) -> Result<Vec<u8>, Failure> {
    use io::Read as _;
    let failed = |error: io::Error| {
        Failure::usage(format!("{}: {error}", path.display())).hint("a file that you can read, or - for standard input")
    };
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        io::stdin().lock().take(limit + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).map_err(failed)?.take(limit + 1).read_to_end(&mut bytes)
    };
    read.map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(Failure::usage(format!("{}: over {limit} bytes", path.display())));
    }
    Ok(bytes)
}

const LONGEST_END: Duration = Duration::from_secs(5);
const DEFAULT_CONFIG: &str = "/etc/signet/signet.toml";
