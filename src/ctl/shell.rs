//! `completions` and `man`: generated from the command line's own description.

use std::fs;
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
    for entry in fs::read_dir(directory).map_err(failed)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("signetctl") && name.ends_with(".1") {
            let page = fs::read_to_string(entry.path()).map_err(failed)?;
            fs::write(entry.path(), with_examples(&page)).map_err(failed)?;
        }
    }
    global.note(format!("Written to {}: man -l {}/signetctl.1", directory.display(), directory.display()));
    Ok(())
}

/// A page whose examples are named so, and keep their lines: a command that was broken can't be pasted.
fn with_examples(page: &str) -> String {
    let Some((before, examples)) = page.split_once(".SH EXTRA\n") else { return page.to_owned() };
    let (examples, after) = examples.split_at(examples.find(".SH ").unwrap_or(examples.len()));
    format!("{before}.SH EXAMPLES\n.nf\n{examples}.fi\n{after}")
}
