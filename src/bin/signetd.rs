//! The Signet daemon: arguments -> configuration -> [`signet::daemon`] -> exit code.

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use nix::sys::stat::{Mode, umask};
use signet::config::{Config, ConfigError};
use signet::ctl::manual_page;
use signet::daemon;
use signet::log::{self, StandardError};
use signet::sandbox::guard_memory;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Signs for local applications with keys that never leave their TPM or PKCS#11 token.
#[derive(Parser)]
#[command(
    version,
    about,
    after_help = "Examples:\n  signetd --config ~/signet/signet.toml\n  signetd --log debug --log-format json"
)]
struct Arguments {
    /// The configuration file
    #[arg(
        long,
        env = "SIGNET_CONFIG",
        hide_env_values = true,
        default_value = "/etc/signet/signet.toml",
        value_name = "FILE"
    )]
    config: PathBuf,
    /// What to log: error, warn, info, debug, trace, or directives such as signet=debug,h2=trace
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    log: String,
    /// How to log to standard error
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum LogFormat {
    /// With colours on a terminal, plain elsewhere
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Print the manual page: signetd man > signetd.1
    Man,
    /// What signetd starts itself as, once
    #[command(hide = true, name = daemon::DEVICE_LAUNCHER)]
    DeviceLauncher,
    /// What the launcher starts, once for each device
    #[command(hide = true, name = daemon::DEVICE_PROCESS)]
    DeviceProcess {
        /// The device's configuration
        config: Option<String>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = run(&arguments);
    let is_read = log::flush(LAST_LINES);
    match ended {
        Ok(code) => code,
        Err(error) if is_read => {
            eprintln!("error: {error:#}");
            if let Some(remedy) = daemon::remedy(&error) {
                eprintln!("try: {remedy}");
            }
            // As signetctl has it: bad input is no failure.
            if error.is::<ConfigError>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
        Err(_nobody_reads_it) => ExitCode::FAILURE,
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    guard_memory().context("can't keep secrets out of core files")?;
    // No file of ours is for others to read.
    umask(Mode::from_bits_truncate(0o077));
    log_to_stderr(arguments)?;
    match &arguments.command {
        Some(Command::DeviceLauncher) => return daemon::device_launcher(logging(arguments)).map(ExitCode::from),
        Some(Command::DeviceProcess { config }) => {
            return daemon::device_process(config.as_deref()).map(ExitCode::from);
        }
        Some(Command::Man) => {
            let command = Arguments::command().name("signetd").disable_help_subcommand(true);
            std::io::stdout().write_all(manual_page(&command)?.as_bytes())?;
            return Ok(ExitCode::SUCCESS);
        }
        None => {}
    }
    let config = Config::load(&arguments.config)?;
    daemon::run(config, logging(arguments))?;
    Ok(ExitCode::SUCCESS)
}

/// The arguments by which a device process logs as the daemon does.
fn logging(arguments: &Arguments) -> Vec<OsString> {
    let format = match arguments.log_format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    vec![format!("--log={}", arguments.log).into(), format!("--log-format={format}").into()]
}

fn log_to_stderr(arguments: &Arguments) -> anyhow::Result<()> {
    // A bare level is ours: at debug, the libraries underneath would say everything twice.
    let level = arguments.log.parse::<tracing::Level>();
    let directives = level.map_or_else(|_directives| arguments.log.clone(), |level| format!("warn,signet={level}"));
    let filter: Targets = directives.parse().with_context(|| format!("--log {}", arguments.log))?;
    let ansi = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt::layer().with_writer(move || StandardError { ansi }).with_ansi(ansi);
    let log = tracing_subscriber::registry().with(filter);
    match arguments.log_format {
        LogFormat::Json => log.with(lines.json()).init(),
        LogFormat::Text => log.with(lines.with_target(false)).init(),
    }
    Ok(())
}

/// How long whoever reads the log may take for its last lines.
const LAST_LINES: Duration = Duration::from_secs(1);
