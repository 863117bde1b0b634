//! What is made of the command line's own description: `completions`, `man`, and the errors of usage.

use std::fs;
use std::io;
use std::path::Path;

use clap::error::ErrorKind;
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;

use super::failure::Failure;
use super::{Cli, Global, print_bytes};

pub(crate) fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "signetctl", &mut script);
    print_bytes(&script)
}

pub(crate) fn man(directory: &Path, global: &Global) -> Result<(), Failure> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    fs::create_dir_all(directory).and_then(|()| write_pages(&command, directory)).map_err(|error| {
        Failure::new(format!("{}: {error}", directory.display())).hint("a folder that you can write; or with sudo")
    })?;
    global.note(format!("Written to {}: man -l {}/signetctl.1", directory.display(), directory.display()));
    Ok(())
}

fn write_pages(command: &Command, directory: &Path) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    fs::write(directory.join(format!("{name}.1")), manual_page(command)?)?;
    command.get_subcommands().try_for_each(|command| write_pages(command, directory))
}

/// A command's manual page. Its synopsis is what --help says; its examples are named so, and keep their lines: a command that
/// was broken can't be pasted.
///
/// # Errors
/// None that is known.
pub fn manual_page(command: &Command) -> io::Result<String> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).source(concat!("Signet ", env!("CARGO_PKG_VERSION"))).render(&mut page)?;
    let page = String::from_utf8(page).map_err(io::Error::other)?;
    let usage = command.clone().render_usage().to_string().replace('\\', "\\\\").replace('-', "\\-");
    let page = with_section(&page, "SYNOPSIS", |_synopsis| {
        format!(".SH SYNOPSIS\n.nf\n{}\n.fi\n", usage.trim_start_matches("Usage: "))
    });
    Ok(with_section(&page, "EXTRA", |examples| format!(".SH EXAMPLES\n.nf\n{examples}.fi\n")))
}

/// A page with one of its sections, heading and all, made anew of what stands in it.
fn with_section(page: &str, heading: &str, anew: impl FnOnce(&str) -> String) -> String {
    let Some((before, section)) = page.split_once(&format!(".SH {heading}\n")) else { return page.to_owned() };
    let (section, after) = section.split_at(section.find(".SH ").unwrap_or(section.len()));
    format!("{before}{}{after}", anew(section))
}

/// The error of a command line as it is without the environment: clap's usage names what stands there as if it were required.
pub(crate) fn without_environment(error: clap::Error) -> clap::Error {
    if error.exit_code() == 0 || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return error;
    }
    let named = ["config", "socket"];
    let command =
        named.into_iter().fold(Cli::command(), |command, name| command.mut_arg(name, |arg| arg.env(None::<&str>)));
    command.try_get_matches().err().unwrap_or(error)
}
