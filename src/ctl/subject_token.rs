//! `signetctl subject-token`: what a user's programs prove by who they are, where they exchange it for access tokens.

use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{ArgGroup, Args};
use nix::unistd::{Gid, Uid, User, geteuid, getgroups, setegid, seteuid, setgroups};
use serde_json::json;

use super::failure::Failure;
use super::{Global, date, key, no_user, sign, user_id};
use crate::file::{self, StateDir};
use crate::subject::{self, Subject};
use crate::trust;

/// Make a subject token for a user, or revoke those that a user has
///
/// A subject token is a short secret in a file of the user's own (mode 0600). Google's libraries exchange it for access tokens
/// at signetd's HTTP port, by a credentials file that `signetctl env --external-account` writes. It is good for that user's
/// processes alone, and allows nothing: the rules do. Run it again, by a timer, before the token expires: the file is replaced
/// as a whole, and the token in it before is good for ten minutes more.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("done").required(true).args(["out", "revoke"]), after_help = "\
Examples:
  signetctl subject-token --user app --out /run/signet-subjects/app/token
  signetctl subject-token --user app --revoke")]
pub(crate) struct Options {
    /// Whose it is, by name or number
    #[arg(long, value_name = "USER")]
    user: String,
    /// The file, in a folder that the user can write
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// How long it is good for: seconds, or a number with s, m, h or d; at most 30d
    #[arg(long, value_parser = lifetime, value_name = "SPAN", default_value = "1d")]
    lifetime: Duration,
    /// Revoke every subject token of the user instead
    #[arg(long, conflicts_with = "lifetime")]
    revoke: bool,
}

/// Somebody whose files are to be written.
#[derive(Clone, Copy)]
struct Owner {
    uid: Uid,
    gid: Gid,
}

pub(crate) fn run(options: Options, global: &Global) -> Result<(), Failure> {
    let config = global.load()?;
    let user = owner_named(&options.user)?;
    let state = Owner::of(&config.state_dir)?;
    let now = SystemTime::now();
    let gone = |subject: &Subject| subject.has_expired(now) || (options.revoke && subject.uid == user.uid.as_raw());
    let _lock = state.acting(|| key::lock(global, &config))??;
    let failed = |error: io::Error| Failure::new(error).hint("signetctl doctor");
    let removed = state.acting(|| subject::remove(&config.state_dir, gone))?.map_err(failed)?;
    let Some(out) = options.out else {
        return global
            .show(&json!({ "revoked": removed }), format!("Revoked {removed} subject tokens of {}.", options.user));
    };
    let place = format!(
        "it is read and written as {0}: a file in a folder that {0} can write, such as /run/user/{1}",
        options.user, user.uid
    );
    let before = user.acting(|| existing(&out))?.map_err(|failure| failure.or_hint(&place))?;
    let mut random = [0; 32];
    aws_lc_rs::rand::fill(&mut random).map_err(|_unspecified| Failure::new("this machine gives no random bytes"))?;
    let (token, expires) = (subject::text(&random), now + options.lifetime);
    let new = Subject { uid: user.uid.as_raw(), expires: seconds(expires) };
    state.acting(|| subject::record(&config.state_dir, &token, &new))?.map_err(failed)?;
    // Without a final newline: most libraries would send it along.
    user.acting(|| file::replace(&out, token.as_bytes()))?
        .map_err(|error| Failure::new(format!("{}: {error}", out.display())).hint(&place))?;
    if let Some(before) = before {
        state.acting(|| let_go(&config.state_dir, &before, now))?.map_err(failed)?;
    }
    let until = date(expires);
    global.show(&json!({ "file": out, "expires": until }), out.display())?;
    global.note(format!("Good for user {} until {until}. Run this again before, by a timer.", options.user));
    Ok(())
}

/// The subject token that a file holds now, which others could not have read.
fn existing(out: &Path) -> Result<Option<String>, Failure> {
    let failed = |error: io::Error| Failure::new(format!("{}: {error}", out.display()));
    // Looked at by its descriptor: its user may put something else in its place at any time.
    let file = match file::open(out) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            return Err(Failure::usage(format!("{}: {error}", out.display())).hint("name another file"));
        }
        opened => opened.map_err(failed)?,
    };
    let metadata = file.metadata().map_err(failed)?;
    trust::not_readable_by_others(out, &metadata)
        .and_then(|()| trust::not_writable_by_others(out, &metadata))
        .map_err(|untrusted| {
            Failure::usage(&untrusted).hint(format!(
                "signetctl subject-token --user USER --revoke, and rm {}: others may have it",
                out.display()
            ))
        })?;
    let mut text = String::new();
    file.take(LONGEST + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > LONGEST {
        return Err(Failure::usage(format!("{} holds something else", out.display())).hint("name another file"));
    }
    Ok(Some(text.trim().to_owned()))
}

/// Leaves a token that was replaced to those who have just read it.
fn let_go(state: &StateDir, token: &str, now: SystemTime) -> io::Result<()> {
    match subject::find(state, token) {
        Ok(Some(subject)) => {
            let expires = subject.expires.min(seconds(now + LINGERS));
            subject::record(state, token, &Subject { expires, ..subject })
        }
        // What can't be read is nobody's: nothing is exchanged for it.
        Ok(None) | Err(_) => Ok(()),
    }
}

fn owner_named(name: &str) -> Result<Owner, Failure> {
    let user = User::from_uid(user_id(name)?.into()).map_err(Failure::new)?.ok_or_else(|| no_user(name))?;
    Ok(Owner { uid: user.uid, gid: user.gid })
}

impl Owner {
    fn of(folder: &Path) -> Result<Self, Failure> {
        let metadata = std::fs::metadata(folder)
            .map_err(|error| Failure::new(format!("{}: {error}", folder.display())).hint("signetctl doctor"))?;
        Ok(Self { uid: metadata.uid().into(), gid: metadata.gid().into() })
    }

    /// Does what only this user is to do: root writes nowhere that the user could not, whatever links stand there.
    fn acting<T>(self, work: impl FnOnce() -> T) -> Result<T, Failure> {
        if geteuid() == self.uid {
            return Ok(work());
        }
        if !geteuid().is_root() {
            let what = format!("only root can write what is user {}'s", self.uid);
            return Err(Failure::usage(what).hint("sudo signetctl subject-token ..."));
        }
        let groups = getgroups().map_err(Failure::new)?;
        setgroups(&[self.gid])
            .and_then(|()| setegid(self.gid))
            .and_then(|()| seteuid(self.uid))
            .map_err(Failure::new)?;
        let done = work();
        seteuid(Uid::from_raw(0))
            .and_then(|()| setegid(Gid::from_raw(0)))
            .and_then(|()| setgroups(&groups))
            .map_err(Failure::new)?;
        Ok(done)
    }
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let span = sign::lifetime(text).ok().filter(|span| *span <= LONGEST_LIFETIME && !span.is_zero());
    span.ok_or_else(|| "write 12h, 7d or the like, at most 30d".to_owned())
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

const LONGEST_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
const LINGERS: Duration = Duration::from_secs(600);
const LONGEST: u64 = 1024;
