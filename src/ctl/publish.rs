//! `signetctl publish`: public keys as files, for a web server or a bucket.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use reqwest::Url;
use serde_json::json;

use super::failure::Failure;
use super::{Global, sign};
use crate::access::AccountEmail;
use crate::config::Config;
use crate::file;
use crate::jwt::jwk;

/// Write the public keys of every account as static files, for a web server or a bucket
///
/// For each account a folder EMAIL with x509.json (a map from key id to certificate), jwks.json (RFC 7517) and raw.json; with
/// --url also .well-known/openid-configuration. The keys are those that the daemon publishes now: run it again after every
/// change, well before a new key is activated. Each file is replaced as a whole.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  signetctl publish /var/www/keys --url https://keys.example.com")]
pub(crate) struct Options {
    /// The folder; it is made where it is not there
    directory: PathBuf,
    /// Only this account; by default every one of the configuration
    #[arg(long, value_name = "EMAIL")]
    account: Option<AccountEmail>,
    /// Where the folder will be found on the web: what the discovery document says
    #[arg(long, value_name = "URL", value_parser = web_address)]
    url: Option<String>,
}

pub(crate) fn run(options: Options, global: &Global) -> Result<(), Failure> {
    let accounts = match options.account {
        Some(account) => vec![account],
        None => configured(global)?.policy.accounts().iter().map(|account| account.email.clone()).collect(),
    };
    let mut written = Vec::new();
    for account in accounts {
        let published = sign::published(global, account.as_str())?;
        let folder = options.directory.join(account.as_str());
        let mut documents = vec![
            ("x509.json", published.x509()?),
            ("jwks.json", published.jwks.clone()),
            ("raw.json", published.raw()?),
        ];
        if let Some(url) = &options.url {
            documents.push((".well-known/openid-configuration", discovery(&account, url, &published.jwks)?));
        }
        for (name, document) in documents {
            let path = folder.join(name);
            write(&path, &document).map_err(|error| {
                Failure::new(format!("{}: {error}", path.display()))
                    .hint("check the folder's owner and the space on its disk")
            })?;
            written.push(path.display().to_string());
        }
    }
    global.show(&json!({ "written": written }), written.join("\n"))
}

/// The configuration; whoever may not read it names an account instead.
fn configured(global: &Global) -> Result<Config, Failure> {
    global.load().map_err(|failure| if global.is_private() { failure.hint("--account EMAIL") } else { failure })
}

/// An address of the web, as it was written.
fn web_address(text: &str) -> Result<String, String> {
    match Url::parse(text) {
        Ok(url) if ["https", "http"].contains(&url.scheme()) && url.query().or(url.fragment()).is_none() => {
            Ok(text.to_owned())
        }
        _ => Err("write https://HOST or https://HOST/PATH".to_owned()),
    }
}

/// The discovery document of an account: the `iss` of its JWTs is its email.
fn discovery(account: &AccountEmail, url: &str, jwks: &str) -> Result<String, Failure> {
    let jwks: serde_json::Value = serde_json::from_str(jwks).map_err(Failure::new)?;
    let keys = jwks.get("keys").and_then(|keys| keys.as_array()).map(Vec::as_slice).unwrap_or_default();
    let algorithms: BTreeSet<_> = keys.iter().filter_map(|key| key.get("alg")?.as_str()).collect();
    let jwks_uri = format!("{}/{account}/jwks.json", url.trim_end_matches('/'));
    let document = jwk::discovery(account.as_str(), &jwks_uri, &algorithms);
    serde_json::to_string_pretty(&document).map_err(Failure::new)
}

fn write(path: &Path, document: &str) -> std::io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    file::replace_as(0o644, path, document.as_bytes())
}
