//! `signetctl audit`: whether the audit log is whole.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;

use super::Global;
use super::failure::{Exit, Failure};
use crate::audit::{Broken, Head, Rotation, verify};
use crate::config::Audit;

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Follow the hash chain of the audit log: a changed, removed or reordered line is found
    ///
    /// Lines cut off the end leave no trace in the file, and whoever may write it could write another log: note the last hash
    /// elsewhere, and let --expect look for it. Exit code 5 where the log is not whole.
    #[command(after_help = "\
Examples:
  signetctl audit verify
  signetctl audit verify --from-start audit.log.1 audit.log
  signetctl audit verify --expect \"$(cat noted-last-week)\"")]
    Verify {
        /// The logs, the oldest first, each continuing the one before; by default that of the configuration with what was rotated
        #[arg(value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Demand the very first record: nothing was removed from the beginning
        #[arg(long)]
        from_start: bool,
        /// Demand a record with this hash, which an earlier verify told
        #[arg(long, value_name = "HASH")]
        expect: Option<String>,
    },
}

pub(crate) fn run(command: AuditCommand, global: &Global) -> Result<(), Failure> {
    let AuditCommand::Verify { mut files, from_start, expect } = command;
    if files.is_empty() {
        files = whole_log(global.load()?.audit);
    }
    let mut before: Option<Head> = None;
    let mut first = None;
    let mut lines = 0;
    let mut met = false;
    for file in &files {
        let unreadable = |error: io::Error| {
            Failure::new(format!("{}: {error}", file.display())).hint("name the log, and run it as the user of signetd")
        };
        let log = BufReader::new(File::open(file).map_err(unreadable)?);
        let verified = verify(log, before.take()).map_err(|broken| match broken {
            Broken::Io(error) => unreadable(error),
            broken @ Broken::Line { .. } => Failure::with(Exit::Unverified, format!("{}: {broken}", file.display()))
                .hint("keep a copy as evidence, and compare with what was shipped elsewhere"),
        })?;
        lines += verified.lines;
        if let Some(hash) = &expect {
            met |= verified.last.hash == *hash || follows(file, hash).map_err(unreadable)?;
        }
        first.get_or_insert(verified.first);
        before = Some(verified.last);
    }
    let (first, last) = (first.unwrap_or_else(Head::start), before.unwrap_or_else(Head::start));
    if from_start && first.seq > 0 {
        return Err(Failure::with(Exit::Unverified, format!("the log begins with record {}", first.seq + 1))
            .hint("name the older logs as well, the oldest first; where there are none, they were removed"));
    }
    if let Some(hash) = expect
        && !met
    {
        return Err(Failure::with(Exit::Unverified, format!("no record has the hash {hash}"))
            .hint("name all logs since; where none has it, records were removed or written anew"));
    }
    let json = json!({ "records": lines, "first": first.seq + 1, "last": last.seq, "last_hash": last.hash });
    let text = match lines {
        0 => "no records".to_owned(),
        _ => format!("{lines} records, {} to {}: whole\nlast hash {}", first.seq + 1, last.seq, last.hash),
    };
    global.show(&json, text)?;
    if lines > 0 && first.seq > 0 {
        global.note("It continues a log that is not here: name the older ones as well.");
    }
    Ok(())
}

/// Whether any line follows one of this hash. In JSON, no text of a caller's looks like this.
fn follows(file: &Path, hash: &str) -> io::Result<bool> {
    let link = format!("\"prev\":\"{hash}\"");
    for line in BufReader::new(File::open(file)?).lines() {
        if line?.contains(&link) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The log and the files that were rotated before it, the oldest first.
fn whole_log(audit: Audit) -> Vec<PathBuf> {
    let old = (1..=audit.rotation.keep).rev().map(|number| Rotation::old(&audit.path, number));
    let mut files: Vec<_> = old.filter(|file| file.exists()).collect();
    if files.is_empty() || audit.path.exists() {
        files.push(audit.path);
    }
    files
}
