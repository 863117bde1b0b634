//! The Signet daemon: arguments -> configuration -> [`signet::daemon`] -> exit code.

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use nix::sys::stat::{Mode, umask};
use signet::config::{Config, ConfigError};
use signet::daemon;
use signet::device::guard_memory;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Signs for local applications with keys that never leave their TPM or PKCS#11 token.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// The configuration file
    #[arg(long, env = "SIGNET_CONFIG", default_value = "/etc/signet/signet.toml", value_name = "FILE")]
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
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            if let Some(remedy) = daemon::remedy(&error) {
                eprintln!("try: {remedy}");
            }
            // As signetctl has it: bad input is no failure.
            if error.is::<ConfigError>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
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
    let lines = tracing_subscriber::fmt::layer().with_writer(move || Escaped { ansi }).with_ansi(ansi);
    let log = tracing_subscriber::registry().with(filter);
    match arguments.log_format {
        LogFormat::Json => log.with(lines.json()).init(),
        LogFormat::Text => log.with(lines.with_target(false)).init(),
    }
    Ok(())
}

/// Standard error, without the control characters that a text from elsewhere might bring: a line is a line.
struct Escaped {
    /// Whether colours are ours: then tracing-subscriber escapes those of others.
    ansi: bool,
}

impl Write for Escaped {
    /// Takes one event, which ends with its newline.
    fn write(&mut self, event: &[u8]) -> std::io::Result<usize> {
        std::io::stderr().lock().write_all(&escaped(event, self.ansi))?;
        Ok(event.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn escaped(event: &[u8], ansi: bool) -> Vec<u8> {
    let line = event.strip_suffix(b"\n").unwrap_or(event);
    let mut escaped = Vec::with_capacity(event.len());
    for byte in line {
        if byte.is_ascii_control() && !(ansi && *byte == b'\x1b') {
            escaped.extend(byte.escape_ascii());
        } else {
            escaped.push(*byte);
        }
    }
    escaped.push(b'\n');
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_from_elsewhere_forges_no_line() {
        let event = b"INFO took account=a\r\n2026 ERROR forged \x1b[31m\0\n";
        assert_eq!(
            escaped(event, false),
            br"INFO took account=a\r\n2026 ERROR forged \x1b[31m\x00"[..]
                .iter()
                .chain(b"\n")
                .copied()
                .collect::<Vec<_>>()
        );
    }
}
