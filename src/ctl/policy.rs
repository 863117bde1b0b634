//! `signetctl policy`: what the rules say to a request, without making it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde_json::json;

use super::failure::{Exit, Failure};
use super::sign::lifetime;
use super::{Global, read, status, table, user_id};
use crate::access::{AccountEmail, Caller, Condition, Executable, Operation, Permit, Request, Rule};
use crate::jwt::claims::{Claims, InvalidClaims};
use crate::jwt::jws::{Shape, shape};
use crate::jwt::{Header, Target, UnsignedJwt};
use crate::key::{Algorithm, Digest, Hash, KeyId};
use crate::users;

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Tell which rule allows a request, or why each does not
    ///
    /// Judges by the configuration as its file is now, and notes it where signetd runs another. Exit code 3 where the request
    /// would be refused.
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
    #[arg(long, value_parser = lifetime, conflicts_with = "claims")]
    lifetime: Option<Duration>,
}

pub(crate) fn run(command: PolicyCommand, global: &Global) -> Result<(), Failure> {
    let PolicyCommand::Explain(options) = command;
    let config = global.load()?;
    let executable = options.executable.as_deref().map(executable);
    let caller = Caller { unit: options.unit.clone(), executable, ..caller(&options.user)? };
    let now = SystemTime::now();
    let asked = Asked::of(&options, now)?;
    if let (Operation::SignBlob, Asked::Claims(_)) = (options.operation, &asked) {
        global.note("The blob is the signing input of a JWT: it is judged as sign-jwt.");
    }
    let request = asked.request(&options, now);

    let verdicts = config.policy.explain(&caller, &request);
    let told: Vec<_> = verdicts
        .iter()
        .zip(config.policy.rules())
        .map(|(verdict, rule)| verdict.as_ref().err().map(|condition| unmet(*condition, rule, &request)))
        .collect();
    let lines = told.iter().enumerate().map(|(index, condition)| {
        vec![format!("rule {}", index + 1), condition.clone().unwrap_or_else(|| "matches".to_owned())]
    });
    let rows: Vec<_> = lines.collect();
    let authorized = config.policy.authorize(&caller, &request);
    let rule = authorized.as_ref().ok().map(Permit::rule);
    let unfit = authorized.as_ref().ok().and_then(|permit| asked.refused(permit, now).err());
    let verdict = match &authorized {
        Ok(permit) => match &unfit {
            None => format!("allowed by rule {}", permit.rule()),
            Some(reason) => format!("refused, whatever the rules say: {reason}"),
        },
        Err(denied) if config.policy.account(&options.account).is_none() => {
            format!("denied: there is no account {} in the configuration ({denied})", options.account)
        }
        Err(denied) => format!("denied: {denied}"),
    };
    let allowed = authorized.is_ok() && unfit.is_none();
    let json = json!({ "allowed": allowed, "rule": rule, "rules": told, "verdict": verdict });
    global.show(&json, [table(&rows), verdict.clone()].join("\n").trim_start())?;
    status::note_difference(global, &config);
    if allowed {
        return Ok(());
    }
    let failure = Failure::with(Exit::Refused, "the request would be refused");
    Err(match unfit {
        _ if asked.names_nothing() => {
            failure.hint("add --audience or --scope: an access token is for one or the other")
        }
        Some(_) => failure.hint("another request"),
        None => failure.hint(format!("a rule in {} that allows all of it by itself", config.path.display())),
    })
}

/// A condition that does not hold, with the values that it is about.
fn unmet(condition: Condition, rule: &Rule, request: &Request<'_>) -> String {
    let (asked, globs) = match condition {
        Condition::Audiences => (&request.audiences, &rule.audiences),
        Condition::Scopes => (&request.scopes, &rule.scopes),
        other => return other.to_string(),
    };
    let globs = globs.as_deref().unwrap_or_default();
    let stray: Vec<_> = asked.iter().filter(|text| !globs.iter().any(|glob| glob.matches(text))).collect();
    format!("{condition}: {} against {}", json!(stray), json!(globs))
}

/// What is asked for, read as the daemon reads it.
enum Asked {
    Blob(Option<Vec<u8>>),
    Digest,
    Claims(Claims),
    AccessToken(Target),
    IdToken(String),
}

impl Asked {
    fn of(options: &ExplainOptions, now: SystemTime) -> Result<Self, Failure> {
        if options.claims.is_some() && options.operation != Operation::SignJwt {
            return Err(Failure::usage("only sign-jwt takes claims").hint("--audience or --scope"));
        }
        let (audiences, scopes) = (options.audience.as_slice(), options.scope.as_slice());
        match (options.operation, audiences, scopes) {
            (Operation::SignBlob, ..) => Self::of_blob(options, now),
            (Operation::SignDigest, ..) => Ok(Self::Digest),
            (Operation::SignJwt, ..) => claims(options, now).map(Self::Claims),
            (Operation::MintAccessToken, [audience], []) => Ok(Self::AccessToken(Target::Audience(audience.clone()))),
            (Operation::MintAccessToken, [], scopes) => Ok(Self::AccessToken(Target::Scopes(scopes.to_vec()))),
            (Operation::MintIdToken, [audience], []) => Ok(Self::IdToken(audience.clone())),
            (Operation::MintAccessToken, ..) => {
                Err(Failure::usage("an access token is for one audience or for scopes").hint("--audience, or --scope"))
            }
            (Operation::MintIdToken, ..) => Err(Failure::usage("an ID token is for one audience").hint("--audience")),
        }
    }

    /// The daemon judges a blob that is a JWT's signing input by its claims, and refuses what only looks like one.
    fn of_blob(options: &ExplainOptions, now: SystemTime) -> Result<Self, Failure> {
        let Some(path) = &options.blob else { return Ok(Self::Blob(None)) };
        let blob = read(path, 1 << 20)?;
        match shape(&blob, &options.account, now) {
            Shape::Blob => Ok(Self::Blob(Some(blob))),
            Shape::Jwt(claims) => Ok(Self::Claims(claims)),
            Shape::Refused(reason) => Err(Failure::with(Exit::Refused, reason).hint("signetctl sign-jwt signs claims")),
        }
    }

    fn names_nothing(&self) -> bool {
        matches!(self, Self::AccessToken(Target::Scopes(scopes)) if scopes.is_empty())
    }

    fn request<'a>(&'a self, options: &'a ExplainOptions, now: SystemTime) -> Request<'a> {
        let (account, lifetime) = (&options.account, options.lifetime);
        match self {
            Self::Blob(blob) => Request { blob: blob.as_deref(), ..Request::new(account, Operation::SignBlob) },
            Self::Digest => Request::new(account, Operation::SignDigest),
            Self::Claims(claims) => claims.request(account, now),
            Self::AccessToken(target) => target.request(account, lifetime),
            Self::IdToken(audience) => {
                Request { audiences: vec![audience], lifetime, ..Request::new(account, Operation::MintIdToken) }
            }
        }
    }

    /// What the daemon refuses even to those who are allowed.
    fn refused(&self, permit: &Permit, now: SystemTime) -> Result<(), InvalidClaims> {
        let kid: KeyId = "any".parse().map_err(|error| InvalidClaims { member: None, what: format!("{error}") })?;
        let header = Header { algorithm: Algorithm::Rs256, kid: &kid };
        match self {
            Self::Blob(_) | Self::Digest => Ok(()),
            Self::Claims(claims) => UnsignedJwt::of_claims(permit, header, claims, now).map(drop),
            Self::AccessToken(target) => UnsignedJwt::access_token(permit, header, target, now).map(drop),
            Self::IdToken(audience) => UnsignedJwt::id_token(permit, header, audience, false, now).map(drop),
        }
    }
}

/// The claims of the file; without one, those that the other options make.
fn claims(options: &ExplainOptions, now: SystemTime) -> Result<Claims, Failure> {
    if let Some(path) = &options.claims {
        let text = String::from_utf8(read(path, 64 << 10)?).map_err(Failure::usage)?;
        return Claims::parse(&text).map_err(|error| Failure::usage(error).context(path.display()));
    }
    let mut members = serde_json::Map::new();
    if !options.audience.is_empty() {
        members.insert("aud".to_owned(), json!(options.audience));
    }
    if !options.scope.is_empty() {
        members.insert("scope".to_owned(), options.scope.join(" ").into());
    }
    if let Some(lifetime) = options.lifetime {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        members.insert("exp".to_owned(), (now + lifetime).as_secs().into());
    }
    Claims::parse(&serde_json::Value::from(members).to_string()).map_err(Failure::usage)
}

/// A program as the kernel would tell of it: without links. One that can't be read matches no rule with a hash.
fn executable(path: &Path) -> Executable {
    let path = fs::canonicalize(path).unwrap_or_else(|_missing| path.to_owned());
    let contents = fs::read(&path).ok().map(|contents| Digest::of(Hash::Sha256, &contents));
    let sha256 = contents.and_then(|digest| digest.as_bytes().try_into().ok());
    Executable { path, sha256 }
}

/// A user, by name or number, as the kernel would tell of a process of theirs.
pub(super) fn caller(user: &str) -> Result<Caller, Failure> {
    users::caller(user_id(user)?).map_err(Failure::new)
}
