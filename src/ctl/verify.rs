//! `signetctl verify`: the receiving half of app-to-app authentication.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Args;
use reqwest::redirect::Policy;
use reqwest::{Client, Url};
use serde_json::json;
use serde_json::value::RawValue;

use super::failure::{Exit, Failure};
use super::{Global, client, read};
use crate::jwt::verify::{self, Expected, Unverified};

/// Verify a JWT with its signer's published keys, and print its claims
///
/// Checks the signature, exp, nbf and iat, and the audience and issuer where they are given. Exit code 5 where the JWT is not
/// to be believed. Keys come from you, never from the JWT.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  signetctl certificates > certs.json
  signetctl id-token --audience https://me.example.com |
      signetctl verify --certificates certs.json --audience https://me.example.com
  signetctl verify --certificates https://www.googleapis.com/oauth2/v3/certs \\
      --issuer https://accounts.google.com < id.jwt")]
pub(crate) struct Options {
    /// The keys: an x509 map or a JWKS, in a file, at an http(s) URL, or - for standard input
    #[arg(long, value_name = "FILE_OR_URL")]
    certificates: String,
    /// The audience that the JWT must be meant for
    #[arg(long)]
    audience: Option<String>,
    /// The issuer that it must come from
    #[arg(long)]
    issuer: Option<String>,
    /// How many seconds clocks may differ
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    leeway: u64,
    /// The JWT; - or absent for standard input, where other users don't see it
    #[arg(value_name = "JWT")]
    jwt: Option<String>,
}

pub(crate) fn run(options: Options, global: &Global) -> Result<(), Failure> {
    let from_stdin = options.jwt.as_deref().is_none_or(|jwt| jwt == "-");
    if from_stdin && options.certificates == "-" {
        return Err(Failure::usage("the keys and the JWT can't both be read from standard input")
            .hint("name a file or a URL with --certificates"));
    }
    let keys = if options.certificates.starts_with("https://") || options.certificates.starts_with("http://") {
        client::block_on(fetch(&options.certificates))?
    } else {
        text(read(Path::new(&options.certificates), LIMIT)?, &options.certificates)?
    };
    let jwt = match options.jwt {
        Some(jwt) if !from_stdin && Path::new(&jwt).is_file() => {
            return Err(Failure::usage(format!("{jwt} is a file, and the argument is taken as the JWT itself"))
                .hint(format!("signetctl verify ... < {jwt}")));
        }
        Some(jwt) if !from_stdin => jwt,
        _ => text(read(&PathBuf::from("-"), 64 << 10)?, "standard input")?,
    };
    let expected = Expected {
        audience: options.audience.as_deref(),
        issuer: options.issuer.as_deref(),
        leeway: Duration::from_secs(options.leeway),
    };
    let verified = verify::verify(jwt.trim(), &keys, &expected, SystemTime::now()).map_err(|error| {
        let hint = match &error {
            Unverified::Keys(what) => {
                return Failure::usage(format!("{}: {what}", options.certificates))
                    .hint("an x509 map or a JWKS, as signetctl certificates prints them");
            }
            Unverified::NoJwt(_) => "the JWT alone and whole, as it was issued: three parts with dots between",
            Unverified::Rejected(_) => "a fresh JWT, and the keys of whoever is said to have signed it",
            Unverified::Unmeant(_) => "a JWT that was issued for this; or correct --audience and --issuer",
        };
        Failure::with(Exit::Unverified, &error).hint(hint)
    })?;
    let claims: &RawValue = serde_json::from_str(&verified.claims).map_err(Failure::new)?;
    let json = json!({ "kid": verified.kid, "algorithm": verified.algorithm, "claims": claims });
    global.show(&json, &verified.claims)?;
    global.note(format!("Signed with {} by the key {}.", verified.algorithm, super::failure::Printable(&verified.kid)));
    Ok(())
}

fn text(bytes: Vec<u8>, name: &str) -> Result<String, Failure> {
    String::from_utf8(bytes).map_err(|error| Failure::usage(format!("{name}: {}", error.utf8_error())))
}

/// Fetches keys: within a time and a size, and from nobody but the host that was named.
async fn fetch(url: &str) -> Result<String, Failure> {
    let failed = |error: reqwest::Error| {
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        let causes: Vec<_> = causes.map(ToString::to_string).collect();
        Failure::with(Exit::Unavailable, causes.join(": "))
            .hint("check the address; or fetch the keys by other means and name the file")
    };
    let same_host = Policy::custom(|attempt| {
        let origin =
            |url: &Url| (url.scheme().to_owned(), url.host_str().map(str::to_owned), url.port_or_known_default());
        let stays = attempt.previous().first().is_some_and(|first| origin(first) == origin(attempt.url()));
        if stays && attempt.previous().len() <= 5 { attempt.follow() } else { attempt.stop() }
    });
    let client = Client::builder().redirect(same_host).timeout(Duration::from_secs(10)).build().map_err(failed)?;
    let mut response = client.get(url).send().await.map_err(failed)?;
    let status = response.status();
    if status.is_redirection() {
        return Err(Failure::with(
            Exit::Unavailable,
            format!("{url} redirects to another host, which is not followed"),
        )
        .hint("the final address, if you trust it"));
    }
    if !status.is_success() {
        return Err(Failure::with(Exit::Unavailable, format!("{url} answers {status}")).hint("check the address"));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        body.extend_from_slice(&chunk);
        if body.len() as u64 > LIMIT {
            return Err(Failure::usage(format!("{url}: over 1 MiB: these are no keys")));
        }
    }
    text(body, url)
}

const LIMIT: u64 = 1 << 20;
