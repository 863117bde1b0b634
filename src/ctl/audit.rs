//! `signetctl audit`: whether the audit log is whole, and what it says.

mod checkpoints;

use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::{Value, json};

use super::failure::{Exit, Failure};
use super::{Global, table};
use crate::audit::{Broken, Checkpoints, Head, LONGEST_LINE, Verified, verify_each};
use crate::config::Config;
use crate::file;
use crate::key::{from_hexadecimal, hexadecimal};
use crate::users;

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Follow the hash chain of the audit log: a changed, removed or reordered line is found
    ///
    /// Lines cut off the end leave no trace in the file, and whoever may write it could write another log: note the last hash
    /// elsewhere, and let --expect look for it. Where devices sign checkpoints (audit.checkpoint_every), nobody without the
    /// device can write anew what stands before the last one; a log of which none is here, or with too many records behind the
    /// last one, is refused. Exit code 5 where the log is not whole.
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
        #[arg(long, value_name = "HASH", value_parser = hash)]
        expect: Option<String>,
        /// The certificate of a key that signs checkpoints, more than once for several; by default all keys of the
        /// keyring with which no rule allows sign-digest
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
            verify(files, &Demands { from_start, expect, certificate }, global)
        }
        AuditCommand::Tail { files, records, failed } => tail(&given_or_whole(files, global)?, records, failed, global),
    }
}

fn hash(text: &str) -> Result<String, String> {
    from_hexadecimal(text).map(|hash| hexadecimal(&hash)).ok_or_else(|| "a hash is 64 hexadecimal digits".to_owned())
}

fn given_or_whole(files: Vec<PathBuf>, global: &Global) -> Result<Vec<PathBuf>, Failure> {
    if !files.is_empty() {
        return Ok(files);
    }
    let audit = global.load()?.audit;
    Ok(audit.rotation.files(&audit.path))
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

fn verify(mut files: Vec<PathBuf>, demands: &Demands, global: &Global) -> Result<(), Failure> {
    // Logs that are named may be another machine's, where there is no configuration.
    let config = if files.is_empty() { Some(global.load()?) } else { global.load().ok() };
    let mut noted = None;
    if let Some(Config { audit, .. }) = config.as_ref().filter(|_| files.is_empty()) {
        // Before the log is read: signetd may be writing.
        noted = note_beside(&audit.path);
        files = audit.rotation.files(&audit.path);
    }
    let mut checkpoints = Checkpoints::by(checkpoints::keys(&demands.certificate, config.as_ref())?);
    let Verified { lines, first, last } = chain(&files, demands, noted.as_ref(), &mut checkpoints)?;
    checkpoints::judge(&checkpoints, &last, &demands.certificate, config.as_ref())?;
    let (count, signed) = (checkpoints.count, checkpoints.last);
    let unsigned = checkpoints.unsigned(&last);
    let json = json!({
        "records": lines, "first": first.seq + 1, "last": last.seq, "last_hash": last.hash,
        "checkpoints": count, "last_checkpoint": signed, "unsigned": unsigned,
    });
    let text = match lines {
        0 => "no records".to_owned(),
        _ => format!("{lines} records, {} to {}: whole\nlast hash {}", first.seq + 1, last.seq, last.hash),
    };
    let text = match count {
        0 => text,
        count => format!("{text}\ncheckpoints {count}, signed up to record {signed}, {unsigned} behind it"),
    };
    global.show(&json, text)?;
    if lines > 0 && first.seq > 0 {
        global.note("It continues a log that is not here: name the older ones as well.");
    }
    Ok(())
}

/// Follows the chain over all files.
fn chain(
    files: &[PathBuf],
    demands: &Demands,
    noted: Option<&Head>,
    checkpoints: &mut Checkpoints,
) -> Result<Verified, Failure> {
    let (mut before, mut first, mut lines) = (None, None, 0);
    let (mut met, mut changed) = (false, false);
    let mut each = |before: &Head, after: &Head, line: &[u8]| {
        checkpoints.meet(before, after, line);
        let mut heads = [before, after].into_iter();
        met |= heads.clone().any(|head| demands.expect.as_ref() == Some(&head.hash));
        changed |= heads.any(|head| noted.is_some_and(|noted| noted.seq == head.seq && noted.hash != head.hash));
    };
    for file in files {
        let log = BufReader::new(file::open(file).map_err(unreadable(file))?);
        let verified = verify_each(log, before.take(), &mut each).map_err(|broken| match broken {
            Broken::Io(error) => unreadable(file)(error),
            broken @ Broken::Line { .. } => {
                Failure::with(Exit::Unverified, format!("{}: {broken}", file.display())).hint(EVIDENCE)
            }
        })?;
        lines += verified.lines;
        first.get_or_insert(verified.first);
        before = Some(verified.last);
    }
    let (first, last) = (first.unwrap_or_else(Head::start), before.unwrap_or_else(Head::start));
    let unverified = |what: String| Failure::with(Exit::Unverified, what);
    if let Some(noted) = noted.filter(|noted| noted.seq > last.seq) {
        let what = format!("the log ends with record {}, and signetd noted that it wrote {}", last.seq, noted.seq);
        return Err(unverified(what).hint("what is missing was cut off, moved away or lost"));
    }
    if let Some(noted) = noted.filter(|_| changed) {
        let what = format!("record {} is not the one that signetd noted when it wrote it", noted.seq);
        return Err(unverified(what).hint(EVIDENCE));
    }
    if demands.from_start && first.seq > 0 {
        return Err(unverified(format!("the log begins with record {}", first.seq + 1))
            .hint("name the older logs as well, the oldest first; where there are none, they were removed"));
    }
    if let Some(hash) = demands.expect.as_ref().filter(|_| !met) {
        return Err(unverified(format!("no record has the hash {hash}"))
            .hint("name all logs since; where none has it, records were removed or written anew"));
    }
    Ok(Verified { lines, first, last })
}

/// What signetd noted beside its log.
fn note_beside(log: &Path) -> Option<Head> {
    Head::read_note(file::open(&Head::noted_beside(log)).ok()?).ok()?
}

fn tail(files: &[PathBuf], most: usize, failed: bool, global: &Global) -> Result<(), Failure> {
    let wanted = |record: &Value| !failed || record["outcome"] != "OK";
    let mut last = VecDeque::new();
    for file in files.iter().rev() {
        let mut of_file = VecDeque::new();
        let mut log = BufReader::new(file::open(file).map_err(unreadable(file))?);
        let mut line = Vec::new();
        while (&mut log).take(LONGEST_LINE).read_until(b'\n', &mut line).map_err(unreadable(file))? > 0 {
            // What is no record is for verify to tell; of a line without end each part is none.
            let record = serde_json::from_slice(&line).ok().filter(wanted);
            line.clear();
            of_file.extend(record);
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
    // One line, whoever wrote the record: on the way to the terminal line breaks are all that is left of what controls it.
    let text = |name: &str| record[name].as_str().unwrap_or_default().replace('\n', "\\n");
    let time = text("time").get(..19).map(|time| format!("{time}Z")).unwrap_or_default();
    if record.get("event").is_some() {
        let mut rest = record.clone();
        for known in ["prev", "seq", "time", "event"] {
            rest.as_object_mut().map(|rest| rest.remove(known));
        }
        let what = match (record["event"].as_str(), record["found"].as_u64()) {
            (Some("gap"), Some(found)) => {
                format!("records after number {found} are missing: the log was moved away, cut, removed or lost")
            }
            (Some("mended"), _) => {
                format!(
                    "{} bytes that a crash had left behind the last record: --json tells how they began",
                    record["bytes"]
                )
            }
            _ => rest.to_string(),
        };
        return vec![time, String::new(), String::new(), String::new(), text("event"), what];
    }
    let uid = record["uid"].as_u64().and_then(|uid| u32::try_from(uid).ok()).unwrap_or(u32::MAX);
    let user = users::name(uid).unwrap_or_else(|| uid.to_string());
    let why = match (record["reason"].as_str(), record["rule"].as_u64()) {
        (Some(_), _) => text("reason"),
        (None, Some(rule)) => format!("by rule {rule}, {}", text("device")).trim_end_matches(", ").to_owned(),
        (None, None) => String::new(),
    };
    vec![time, user, text("rpc"), text("account"), text("outcome"), why]
}

const EVIDENCE: &str = "keep a copy as evidence, and compare with what was shipped elsewhere";
