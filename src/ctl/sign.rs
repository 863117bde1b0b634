//! `sign-blob`, `sign-jwt`, `mint`, `id-token` and `certificates`: what the daemon does for its callers.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{ArgGroup, Args, ValueEnum};
use serde_json::json;

use super::failure::Failure;
use super::{Global, client, date, print, read};
use crate::access::AccountEmail;
use crate::config::span_of_time;
use crate::jwt::{certificate, jwk};
use crate::key::{self, KeyId, PublicKey};
use crate::keyring::KeyState;
use crate::proto::mint_jwt_access_token_request::Target;
use crate::proto::sign_blob_request::Input;
use crate::proto::{self, Scopes};

/// Sign a file with an account's key, and print the signature in base64
///
/// Operation sign-blob, or sign-digest with --digest. A file that could be taken for a JWT's signing input is judged as
/// sign-jwt.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  signetctl sign-blob document.pdf | base64 -d > document.sig
  openssl dgst -sha256 -binary big.iso | signetctl sign-blob --digest -
  openssl dgst -sha256 -verify public.pem -signature document.sig document.pdf")]
pub(crate) struct BlobOptions {
    /// The file, at most 1 MiB; - for standard input
    file: PathBuf,
    /// The file is a digest: the raw bytes of SHA-256, or of the algorithm's own hash
    #[arg(long)]
    digest: bool,
    /// RS256, RS384, RS512, PS256 or ES256; by default the key's own
    #[arg(long)]
    algorithm: Option<key::Algorithm>,
    /// The account; by default the default one
    #[arg(long, value_name = "EMAIL")]
    account: Option<AccountEmail>,
    /// Print the bytes of the signature as they are
    #[arg(long, conflicts_with = "json")]
    raw: bool,
}

/// Sign claims as a JWT, and print it
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  echo '{\"aud\":\"https://example.com\",\"role\":\"reader\"}' | signetctl sign-jwt -")]
pub(crate) struct JwtOptions {
    /// A file with the claims, a JSON object; - for standard input
    file: PathBuf,
    /// The account; by default the default one
    #[arg(long, value_name = "EMAIL")]
    account: Option<AccountEmail>,
}

/// Mint a JWT access token for a Google API, and print it
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("target").required(true).args(["audience", "scope"]), after_help = "\
Examples:
  signetctl mint --audience https://pubsub.googleapis.com/
  curl -H \"Authorization: Bearer $(signetctl mint \\
      --scope https://www.googleapis.com/auth/devstorage.read_only)\" \\
      https://storage.googleapis.com/storage/v1/b/BUCKET/o")]
pub(crate) struct MintOptions {
    /// The service, with its final slash
    #[arg(long, value_name = "URL")]
    audience: Option<String>,
    /// An OAuth 2.0 scope; more than one by repeating
    #[arg(long, value_name = "SCOPE", num_args = 1..)]
    scope: Vec<String>,
    #[command(flatten)]
    common: MintCommon,
}

/// Mint an ID token that proves the account's identity to an audience, signed by its own key, and print it
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  signetctl id-token --audience https://internal.example.com")]
pub(crate) struct IdTokenOptions {
    /// Who is to believe it
    #[arg(long)]
    audience: String,
    /// Say in it that the email is verified
    #[arg(long)]
    include_email: bool,
    #[command(flatten)]
    common: MintCommon,
}

#[derive(Args, Debug)]
struct MintCommon {
    /// How long it is to live: seconds, or a number with s, m or h; at most 1h. By default 1h, or the rule's max_lifetime
    #[arg(long, value_parser = lifetime)]
    lifetime: Option<Duration>,
    /// The account; by default the default one
    #[arg(long, value_name = "EMAIL")]
    account: Option<AccountEmail>,
}

/// Print the certificates of an account's keys, for whoever verifies its signatures
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  signetctl certificates --format jwks > jwks.json")]
pub(crate) struct CertificatesOptions {
    /// The form: x509 (a map from key id to certificate), jwks (RFC 7517) or raw (moduli, as Google has it)
    #[arg(long, value_enum, default_value_t = Format::X509, hide_possible_values = true)]
    format: Format,
    /// The account; by default the default one
    #[arg(long, value_name = "EMAIL")]
    account: Option<AccountEmail>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    X509,
    Jwks,
    Raw,
}

pub(crate) fn blob(options: BlobOptions, global: &Global) -> Result<(), Failure> {
    let bytes = read(&options.file, 1 << 20).map_err(|failure| {
        failure.or_hint("for more than 1 MiB: openssl dgst -sha256 -binary FILE | signetctl sign-blob --digest -")
    })?;
    let input = if options.digest { Input::Digest(bytes.into()) } else { Input::Payload(bytes.into()) };
    let algorithm = options.algorithm.map_or(proto::Algorithm::Unspecified, proto::Algorithm::from);
    let request =
        proto::SignBlobRequest { account: email(options.account), input: Some(input), algorithm: algorithm.into() };
    let response = client::call(global, |mut client| async move { client.sign_blob(request).await })?;
    if options.raw {
        return super::print_bytes(&response.signature);
    }
    let signature = STANDARD.encode(&response.signature);
    let algorithm = response.algorithm().as_str_name().trim_start_matches("ALGORITHM_");
    let json = json!({ "key_id": response.key_id, "signature": signature, "algorithm": algorithm });
    global.show(&json, &signature)
}

pub(crate) fn jwt(options: JwtOptions, global: &Global) -> Result<(), Failure> {
    let claims = String::from_utf8(read(&options.file, 64 << 10)?).map_err(|error| {
        Failure::usage(format!("{}: {}", options.file.display(), error.utf8_error())).hint("a JSON object in UTF-8")
    })?;
    let request = proto::SignJwtRequest { account: email(options.account), claims };
    let response = client::call(global, |mut client| async move { client.sign_jwt(request).await })?;
    let json = json!({ "key_id": response.key_id, "jwt": response.jwt, "expire_time": time(response.expire_time) });
    global.show(&json, &response.jwt)
}

pub(crate) fn mint(options: MintOptions, global: &Global) -> Result<(), Failure> {
    let target = match options.audience {
        Some(audience) => Target::Audience(audience),
        None => Target::Scopes(Scopes { scope: options.scope }),
    };
    let request = proto::MintJwtAccessTokenRequest {
        account: email(options.common.account),
        target: Some(target),
        lifetime: options.common.lifetime.map(wire_duration).transpose()?,
    };
    let response = client::call(global, |mut client| async move { client.mint_jwt_access_token(request).await })?;
    let json = json!({
        "access_token": response.access_token, "token_type": response.token_type,
        "expire_time": time(response.expire_time), "key_id": response.key_id,
    });
    global.show(&json, &response.access_token)
}

pub(crate) fn id_token(options: IdTokenOptions, global: &Global) -> Result<(), Failure> {
    let request = proto::MintIdTokenRequest {
        account: email(options.common.account),
        audience: options.audience,
        include_email: options.include_email,
        lifetime: options.common.lifetime.map(wire_duration).transpose()?,
    };
    let response = client::call(global, |mut client| async move { client.mint_id_token(request).await })?;
    let json = json!({
        "id_token": response.id_token, "expire_time": time(response.expire_time), "key_id": response.key_id,
    });
    global.show(&json, &response.id_token)
}

pub(crate) fn certificates(options: CertificatesOptions, global: &Global) -> Result<(), Failure> {
    let published = published(global, &email(options.account))?;
    let document = match options.format {
        Format::X509 => published.x509()?,
        Format::Jwks => published.jwks,
        Format::Raw => published.raw()?,
    };
    print(document.as_bytes())
}

/// What the daemon publishes of an account; an empty email is the default account's.
pub(crate) fn published(global: &Global, account: &str) -> Result<Published, Failure> {
    let request = proto::GetPublicCertificatesRequest { account: account.to_owned() };
    let response = client::call(global, |mut client| async move { client.get_public_certificates(request).await })?;
    Ok(Published { certificates: response.certificates, jwks: response.jwks })
}

/// An account's published keys, and the documents made of them.
pub(crate) struct Published {
    certificates: Vec<proto::PublicCertificate>,
    pub(crate) jwks: String,
}

impl Published {
    /// Each key's id and what it is for.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (&str, KeyState)> {
        self.certificates.iter().filter_map(|key| {
            let state = match key.state() {
                proto::KeyState::Prepared => KeyState::Prepared,
                proto::KeyState::Active => KeyState::Active,
                proto::KeyState::Retired => KeyState::Retired,
                proto::KeyState::Unspecified => return None,
            };
            Some((key.key_id.as_str(), state))
        })
    }

    pub(crate) fn holds(&self, kid: &KeyId, state: KeyState) -> bool {
        self.keys().any(|key| key == (kid.as_str(), state))
    }

    pub(crate) fn x509(&self) -> Result<String, Failure> {
        self.document(jwk::x509_map)
    }

    pub(crate) fn raw(&self) -> Result<String, Failure> {
        self.document(jwk::raw)
    }

    /// A key without a certificate stands in the JWKS alone.
    fn document(&self, form: fn(&[jwk::PublishedKey<'_>]) -> String) -> Result<String, Failure> {
        let certified: Vec<_> = self.certificates.iter().filter(|key| !key.x509_pem.is_empty()).collect();
        let parse = |key: &&proto::PublicCertificate| -> Result<(key::KeyId, PublicKey), Failure> {
            Ok((key.key_id.parse()?, certificate::public_key(&key.x509_pem).map_err(Failure::new)?))
        };
        let keys = certified.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        let published: Vec<_> = keys
            .iter()
            .zip(certified)
            .map(|((kid, public_key), wire)| jwk::PublishedKey {
                kid,
                algorithm: public_key.key_type().default_algorithm(),
                public_key,
                certificate: &wire.x509_pem,
            })
            .collect();
        Ok(form(&published))
    }
}

fn email(account: Option<AccountEmail>) -> String {
    account.map(String::from).unwrap_or_default()
}

fn wire_duration(duration: Duration) -> Result<prost_types::Duration, Failure> {
    prost_types::Duration::try_from(duration).map_err(Failure::usage)
}

fn time(timestamp: Option<prost_types::Timestamp>) -> Option<String> {
    SystemTime::try_from(timestamp?).ok().map(date)
}

/// Seconds, or a span of time as the configuration has it: `3600`, `60m` or `1h`. How long it may be is the daemon's to say.
pub(super) fn lifetime(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<u32>().ok().map(|seconds| Duration::from_secs(seconds.into()));
    seconds.or_else(|| span_of_time(text)).ok_or_else(|| "seconds, or a number with s, m or h, such as 10m".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_seconds_minutes_or_hours() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("10m", 600), ("1h", 3600)] {
            assert_eq!(lifetime(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "s", "-1", "1w", "1.5h", "10 m", "é"] {
            assert!(lifetime(bad).is_err(), "{bad:?} was taken");
        }
    }
}
