//! `signetctl policy`: what the rules say to a request, without making it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use nix::unistd::{Gid, Uid, User, getgrouplist};
use serde_json::json;

use super::failure::{Exit, Failure};
use super::sign::lifetime;
use super::{Global, read, table};
use crate::access::{AccountEmail, Caller, Executable, Operation, Request};
use crate::jwt::claims::Claims;
use crate::jwt::jws::{Shape, shape};
use crate::key::{Digest, Hash};

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Tell which rule allows a request, or why each does not
    ///
    /// Reads the configuration and asks nobody. Exit code 3 where the request would be refused.
    #[command(after_help = "\
Example:
  signetctl policy explain --user app --account app@project.iam.gserviceaccount.com \\
      --operation mint-access-token --audience https://pubsub.googleapis.com/")]
    Explain(ExplainOptions),
}

#[derive(Args, Debug)]
pub(crate) struct ExplainOptions {
    /// Who asks, by name or number, with the groups that the system gives them
    #[arg(long)]
    user: String,
    /// The systemd unit that the caller runs in
    #[arg(long, value_name = "NAME")]
    unit: Option<String>,
    /// The program that the caller runs; a rule's sha256 is held against what it is now
    #[arg(long, value_name = "FILE")]
    executable: Option<PathBuf>,
    /// The account
    #[arg(long, value_name = "EMAIL")]
    account: AccountEmail,
    /// sign-blob, sign-digest, sign-jwt, mint-access-token or mint-id-token
    #[arg(long)]
    operation: Operation,
    /// An audience of the JWT; more than one by repeating
    #[arg(long)]
    audience: Vec<String>,
    /// A scope of the JWT; more than one by repeating
    #[arg(long)]
    scope: Vec<String>,
    /// A file with all of the JWT's claims, for sign-jwt; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["audience", "scope"])]
    claims: Option<PathBuf>,
    /// A file with the blob, for sign-blob
    #[arg(long, value_name = "FILE")]
    blob: Option<PathBuf>,
    /// The lifetime that is asked for: seconds, or a number with s, m or h
    #[arg(long, value_parser = lifetime)]
    lifetime: Option<Duration>,
}

pub(crate) fn run(command: PolicyCommand, global: &Global) -> Result<(), Failure> {
    let PolicyCommand::Explain(options) = command;
    let config = global.load()?;
    let executable = options.executable.as_deref().map(executable);
    let caller = Caller { unit: options.unit.clone(), executable, ..caller(&options.user)? };
    let blob = options.blob.as_deref().map(|path| read(path, 1 << 20)).transpose()?;
    let now = SystemTime::now();
    let claims = claims(&options, blob.as_deref(), now)?;
    let mut request = Request {
        account: &options.account,
        operation: options.operation,
        audiences: options.audience.iter().map(String::as_str).collect(),
        scopes: options.scope.iter().flat_map(|scope| scope.split_whitespace()).collect(),
        claims: Vec::new(),
        blob: blob.as_deref(),
        lifetime: options.lifetime,
    };
    if let Some(claims) = &claims {
        let of_claims = claims.request(&options.account, now);
        request = Request { lifetime: of_claims.lifetime.or(request.lifetime), ..of_claims };
        if options.operation == Operation::SignBlob {
            global.note("The blob is the signing input of a JWT: it is judged as sign-jwt.");
        }
    }

    let verdicts = config.policy.explain(&caller, &request);
    let told: Vec<_> = verdicts.iter().map(|verdict| verdict.as_ref().err().map(ToString::to_string)).collect();
    let lines = told.iter().enumerate().map(|(index, condition)| {
        vec![format!("rule {}", index + 1), condition.clone().unwrap_or_else(|| "matches".to_owned())]
    });
    let rows: Vec<_> = lines.collect();
    let authorized = config.policy.authorize(&caller, &request);
    let rule = authorized.as_ref().ok().map(crate::access::Permit::rule);
    let verdict = match &authorized {
        Ok(permit) => format!("allowed by rule {}", permit.rule()),
        Err(denied) if config.policy.account(&options.account).is_none() => {
            format!("denied: there is no account {} in the configuration ({denied})", options.account)
        }
        Err(denied) => format!("denied: {denied}"),
    };
    let json = json!({ "allowed": authorized.is_ok(), "rule": rule, "rules": told, "verdict": verdict });
    global.show(&json, [table(&rows), verdict.clone()].join("\n").trim_start())?;
    authorized.map(|_permit| ()).map_err(|_denied| {
        Failure::with(Exit::Refused, "the request would be refused")
            .hint(format!("a rule in {} that allows all of it by itself", config.path.display()))
    })
}

/// The claims that the request is judged by, where it has any.
fn claims(options: &ExplainOptions, blob: Option<&[u8]>, now: SystemTime) -> Result<Option<Claims>, Failure> {
    match (&options.claims, blob) {
        (Some(_), _) if options.operation != Operation::SignJwt => {
            Err(Failure::usage("only sign-jwt takes claims").hint("--audience or --scope"))
        }
        (Some(path), _) => {
            let text = String::from_utf8(read(path, 64 << 10)?).map_err(Failure::usage)?;
            Claims::parse(&text).map(Some).map_err(|error| Failure::usage(error).context(path.display()))
        }
        // The daemon judges a blob that is a JWT's signing input by its claims, and refuses what only looks like one.
        (None, Some(blob)) if options.operation == Operation::SignBlob => match shape(blob, &options.account, now) {
            Shape::Blob => Ok(None),
            Shape::Jwt(claims) => Ok(Some(claims)),
            Shape::Refused(reason) => Err(Failure::with(Exit::Refused, reason).hint("signetctl sign-jwt signs claims")),
        },
        (None, _) => Ok(None),
    }
}

/// A program as the kernel would tell of it: without links. One that can't be read matches no rule with a hash.
fn executable(path: &Path) -> Executable {
    let path = fs::canonicalize(path).unwrap_or_else(|_missing| path.to_owned());
    let contents = fs::read(&path).ok().map(|contents| Digest::of(Hash::Sha256, &contents));
    let sha256 = contents.and_then(|digest| digest.as_bytes().try_into().ok());
    Executable { path, sha256 }
}

/// A user as the kernel would tell of a process of theirs.
fn caller(name: &str) -> Result<Caller, Failure> {
    let user = match name.parse() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid)).map_err(Failure::new)?,
        Err(_) => User::from_name(name).map_err(Failure::new)?,
    };
    let Some(user) = user else {
        // A number without a name still connects.
        let uid = name.parse().map_err(|_no_number| {
            Failure::usage(format!("there is no user {name:?}")).hint("a name or a number from getent passwd")
        })?;
        return Ok(Caller::new(uid, uid, Vec::new()));
    };
    let c_name = std::ffi::CString::new(user.name).map_err(Failure::usage)?;
    let groups = getgrouplist(&c_name, user.gid).map_err(Failure::new)?;
    let groups = groups.into_iter().map(Gid::as_raw).collect();
    Ok(Caller::new(user.uid.as_raw(), user.gid.as_raw(), groups))
}
