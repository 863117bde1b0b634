//! `signetctl audit`: whether the audit log is whole, and what it says.

mod checkpoints;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use nix::unistd::User;
use serde_json::{Value, json};

use super::failure::{Exit, Failure};
use super::{Global, table};
use crate::audit::{Broken, Head, Rotation, verify};
use crate::config::Audit;

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Follow the hash chain of the audit log: a changed, removed or reordered line is found
    ///
    /// Lines cut off the end leave no trace in the file, and whoever may write it could write another log: note the last hash
    /// elsewhere, and let --expect look for it. Where devices sign checkpoints (audit.checkpoint_every), nobody without the
    /// device can write anew what stands before the last one. Exit code 5 where the log is not whole.
    #[command(after_help = "\
Examples:
  signetctl audit verify
  signetctl audit verify --from-start audit.log.1 audit.log
  signetctl audit verify --expect \"$(cat noted-last-week)\"
  signetctl audit verify --certificate checkpoints.pem audit.log   # on another machine")]
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
        /// The certificate of a key that signs checkpoints, more than once for several; by default the keys of their account
        #[arg(long, value_name = "FILE")]
        certificate: Vec<PathBuf>,
    },
    /// Print the last records, a line each: when, who, by what, for which account, what became of it, and why
    ///
    /// It does not verify them. With --json the records are printed as they are.
    #[command(after_help = "\
Examples:
  signetctl audit tail --failed
  signetctl audit tail -n 1000 --json | jq -c '.[] | select(.uid == 1000)'")]
    Tail {
        /// The logs, the oldest first; by default that of the configuration with what was rotated
        #[arg(value_name = "FILE")]
        files: Vec<PathBuf>,
        /// How many records
        #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
        records: usize,
        /// Leave out what was answered as it was asked
        #[arg(long)]
        failed: bool,
    },
}

pub(crate) fn run(command: AuditCommand, global: &Global) -> Result<(), Failure> {
    match command {
        AuditCommand::Verify { files, from_start, expect, certificate } => {
            follow(files, &Demands { from_start, expect, certificate }, global)
        }
        AuditCommand::Tail { files, records, failed } => tail(&given_or_whole(files, global)?, records, failed, global),
    }
}

fn given_or_whole(files: Vec<PathBuf>, global: &Global) -> Result<Vec<PathBuf>, Failure> {
    if files.is_empty() { Ok(whole_log(global.load()?.audit)) } else { Ok(files) }
}

fn unreadable(file: &Path) -> impl Fn(io::Error) -> Failure {
    move |error| {
        Failure::new(format!("{}: {error}", file.display())).hint("name the log, and run it as the user of signetd")
    }
}

/// What a log must hold besides a whole chain.
struct Demands {
    from_start: bool,
    expect: Option<String>,
    certificate: Vec<PathBuf>,
}

fn follow(mut files: Vec<PathBuf>, demands: &Demands, global: &Global) -> Result<(), Failure> {
    let (mut noted, mut every) = (None, None);
    if files.is_empty() {
        let audit = global.load()?.audit;
        // Before the log is read: signetd may be writing.
        noted = fs::read_to_string(Head::noted_beside(&audit.path)).ok().and_then(|note| Head::of_note(&note));
        every = audit.checkpoints.as_ref().map(|(every, _)| *every);
        files = whole_log(audit);
    }
    let Chain { lines, first, last } = chain(&files, demands)?;
    if let Some(noted) = noted.filter(|noted| noted.seq > last.seq) {
        let what = format!("the log ends with record {}, and signetd noted that it wrote {}", last.seq, noted.seq);
        return Err(Failure::with(Exit::Unverified, what).hint("what is missing was cut off, moved away or lost"));
    }
    let checkpoints = checkpoints::verify(&files, &first, &demands.certificate, global)?;
    let json = json!({
        "records": lines, "first": first.seq + 1, "last": last.seq, "last_hash": last.hash,
        "checkpoints": checkpoints.count, "last_checkpoint": checkpoints.last,
    });
    let text = match lines {
        0 => "no records".to_owned(),
        _ => format!("{lines} records, {} to {}: whole\nlast hash {}", first.seq + 1, last.seq, last.hash),
    };
    let text = match checkpoints.count {
        0 => text,
        count => format!("{text}\ncheckpoints {count}, signed up to record {}", checkpoints.last),
    };
    global.show(&json, text)?;
    if lines > 0 && first.seq > 0 {
        global.note("It continues a log that is not here: name the older ones as well.");
    }
    let unsigned = last.seq.saturating_sub(checkpoints.last.max(first.seq));
    if every.is_some_and(|every| unsigned > every.saturating_mul(2)) {
        global.note(format!("No checkpoint stands behind the last {unsigned} records: was the device away?"));
    }
    Ok(())
}

/// A log whose chain is whole: the head before its first line, and that after its last.
struct Chain {
    lines: u64,
    first: Head,
    last: Head,
}

/// Follows the chain over all files.
fn chain(files: &[PathBuf], demands: &Demands) -> Result<Chain, Failure> {
    let mut before: Option<Head> = None;
    let mut first = None;
    let mut lines = 0;
    let mut met = false;
    for file in files {
        let unreadable = unreadable(file);
        let log = BufReader::new(File::open(file).map_err(&unreadable)?);
        let verified = verify(log, before.take()).map_err(|broken| match broken {
            Broken::Io(error) => unreadable(error),
            broken @ Broken::Line { .. } => Failure::with(Exit::Unverified, format!("{}: {broken}", file.display()))
                .hint("keep a copy as evidence, and compare with what was shipped elsewhere"),
        })?;
        lines += verified.lines;
        if let Some(hash) = &demands.expect {
            met |= verified.last.hash == *hash || follows(file, hash).map_err(&unreadable)?;
        }
        first.get_or_insert(verified.first);
        before = Some(verified.last);
    }
    let (first, last) = (first.unwrap_or_else(Head::start), before.unwrap_or_else(Head::start));
    if demands.from_start && first.seq > 0 {
        return Err(Failure::with(Exit::Unverified, format!("the log begins with record {}", first.seq + 1))
            .hint("name the older logs as well, the oldest first; where there are none, they were removed"));
    }
    if let Some(hash) = &demands.expect
        && !met
    {
        return Err(Failure::with(Exit::Unverified, format!("no record has the hash {hash}"))
            .hint("name all logs since; where none has it, records were removed or written anew"));
    }
    Ok(Chain { lines, first, last })
}

fn tail(files: &[PathBuf], most: usize, failed: bool, global: &Global) -> Result<(), Failure> {
    let wanted = |record: &Value| !failed || record["outcome"] != "OK";
    let mut last = VecDeque::new();
    for file in files.iter().rev() {
        let mut of_file = VecDeque::new();
        for line in BufReader::new(File::open(file).map_err(unreadable(file))?).split(b'\n') {
            let line = line.map_err(unreadable(file))?;
            // What is no record is for verify to tell.
            of_file.extend(serde_json::from_slice(&line).ok().filter(wanted));
            if of_file.len() + last.len() > most {
                of_file.pop_front();
            }
        }
        of_file.append(&mut last);
        last = of_file;
        if last.len() >= most {
            break;
        }
    }
    let rows: Vec<_> = last.iter().map(row).collect();
    global.show(&last, if rows.is_empty() { "no records".to_owned() } else { table(&rows) })
}

/// A record for people: a decision, or an event in the life of the log.
fn row(record: &Value) -> Vec<String> {
    let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
    let time = text("time").get(..19).map(|time| format!("{time}Z")).unwrap_or_default();
    if record.get("event").is_some() {
        let mut rest = record.clone();
        for known in ["prev", "seq", "time", "event"] {
            rest.as_object_mut().map(|rest| rest.remove(known));
        }
        return vec![time, String::new(), String::new(), String::new(), text("event"), rest.to_string()];
    }
    let uid = record["uid"].as_u64().and_then(|uid| u32::try_from(uid).ok()).unwrap_or(u32::MAX);
    let user = User::from_uid(uid.into()).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
    let why = match (record["reason"].as_str(), record["rule"].as_u64()) {
        (Some(reason), _) => reason.to_owned(),
        (None, Some(rule)) => format!("by rule {rule}, {}", text("device")).trim_end_matches(", ").to_owned(),
        (None, None) => String::new(),
    };
    vec![time, user, text("rpc"), text("account"), text("outcome"), why]
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
