//! `[account.exchange]`: the token endpoints of accounts whose assertions are exchanged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::file::{Account, ExchangeMode, Source};
use super::{ConfigError, distrust};
use crate::access::AccountEmail;
use crate::trust;

/// Where an account's assertions are exchanged for tokens. It stands in the configuration alone: what a key file says of
/// its `token_uri` is never followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// The token endpoint, `https`: where to, and the audience of the assertions.
    pub token_uri: String,
    /// The certificate authorities to believe instead of the system's, PEM.
    pub ca_file: Option<PathBuf>,
}

/// Takes the exchange of every account that has one.
pub(super) fn compile(
    source: Source<'_>,
    folder: &Path,
    accounts: &mut [Account],
) -> Result<BTreeMap<AccountEmail, Exchange>, ConfigError> {
    let mut exchanges = BTreeMap::new();
    for account in accounts {
        let Some(written) = account.exchange.take() else { continue };
        let ExchangeMode::JwtBearer = written.mode;
        let token_uri = match written.token_uri {
            None => GOOGLE.to_owned(),
            Some(uri) if is_endpoint(uri.get_ref()) => uri.into_inner(),
            Some(uri) => {
                let what = format!("{:?} is no token endpoint", uri.get_ref());
                let remedy = format!("write it as https://HOST/PATH, such as {GOOGLE}");
                return Err(source.wrong(uri.span(), "account.exchange.token_uri", what, remedy));
            }
        };
        let ca_file = written.ca_file.map(|file| folder.join(file.into_inner()));
        if let Some(file) = &ca_file {
            // Whoever writes it decides who is taken for the endpoint, and gets assertions.
            trust::walk(file).map_err(|untrusted| distrust(source.path, &untrusted))?;
        }
        exchanges.insert(account.email.get_ref().clone(), Exchange { token_uri, ca_file });
    }
    Ok(exchanges)
}

/// Whether it is `https://host/path`, and nothing that a person and a program could read differently.
fn is_endpoint(uri: &str) -> bool {
    let Some(rest) = uri.strip_prefix("https://") else { return false };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let named = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"?#\\\"<>%".contains(&byte);
    authority.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '[')
        && authority.bytes().all(named)
        && path.bytes().all(plain)
}

const GOOGLE: &str = "https://oauth2.googleapis.com/token";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_https_and_a_host_and_a_path() {
        for uri in [GOOGLE, "https://127.0.0.1:8443/token", "https://[::1]:1/t", "https://sts.example"] {
            assert!(is_endpoint(uri), "{uri}");
        }
        for uri in [
            "",
            "http://oauth2.googleapis.com/token",
            "HTTPS://a/",
            "https://",
            "https:///token",
            "https://user@a/token",
            "https://a/token?x=1",
            "https://a/token#x",
            "https://a\\b/token",
            "https://a/to ken",
            "https://a b/token",
            "https://-a/token",
            "https://ä/token",
            "/etc/passwd",
        ] {
            assert!(!is_endpoint(uri), "{uri}");
        }
    }
}
