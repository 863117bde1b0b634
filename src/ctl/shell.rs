//! `completions` and `man`: generated from the command line's own description.

use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::failure::Failure;
use super::{Cli, Global, print_bytes};

pub(crate) fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "signetctl", &mut script);
    print_bytes(&script)
}

pub(crate) fn man(directory: &Path, global: &Global) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(format!("{}: {error}", directory.display())).hint("name a folder that exists")
    };
    let command = Cli::command().disable_help_subcommand(true);
    clap_mangen::generate_to(command, directory).map_err(failed)?;
    global.note(format!("Written to {}: man -l {}/signetctl.1", directory.display(), directory.display()));
    Ok(())
}
