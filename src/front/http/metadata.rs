//! Google Compute Engine's metadata server, so far as client libraries ask for it.
//! <https://cloud.google.com/compute/docs/metadata/querying-metadata>

mod tree;

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, SystemTime};

use form_urlencoded::parse as parse_query;
use hyper::header::ETAG;
use hyper::{Method, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use super::reply::{self, Reply};
use super::{Asked, CLOUD_PLATFORM, Front};
use crate::access::Accounts;
use crate::jwt::Target;
use crate::signer::{JwtBody, SignError};
use tree::Tree;

/// What the configuration adds, by its path below `/computeMetadata/v1/`.
type Values = BTreeMap<String, String>;

/// What a request asks to have told, and how.
struct Query(Vec<(String, String)>);

impl Front {
    /// The answer to any path below `/computeMetadata`, and to `/`.
    pub(super) async fn metadata(&self, asked: &Asked) -> Reply {
        let Some(query) = Query::read(asked.head.uri.query().unwrap_or_default()) else {
            return reply::text(StatusCode::BAD_REQUEST, "a field of the query stands there twice\n");
        };
        let Some(path) = asked.head.uri.path().strip_prefix("/computeMetadata/v1") else {
            return match asked.head.uri.path() {
                "/" => asked.reading(|| reply::text(StatusCode::OK, "computeMetadata/\n")),
                "/computeMetadata" | "/computeMetadata/" => asked.reading(|| reply::text(StatusCode::OK, "v1/\n")),
                _ => reply::not_found(),
            };
        };
        let Ok(path) = percent_decode_str(path).decode_utf8() else { return reply::not_found() };
        let parts: Vec<&str> = path.split('/').collect();
        match (parts.as_slice(), asked.is_reading()) {
            // Python posts a certificate where it has one, to have the token bound to it: what it gets is not.
            (["", "instance", "service-accounts", account, "token"], reads)
                if reads || asked.head.method == Method::POST =>
            {
                self.token(asked, account, &query).await
            }
            (["", "instance", "service-accounts", account, "identity"], true) => {
                self.identity(asked, account, &query).await
            }
            (["", ..], true) => self.value(asked, path.strip_prefix('/').unwrap_or_default(), &query).await,
            (["", ..], false) => reply::not_allowed("GET, HEAD"),
            _ => reply::not_found(),
        }
    }

    async fn token(&self, asked: &Asked, account: &str, query: &Query) -> Reply {
        let scopes = query.get("scopes").filter(|scopes| !scopes.is_empty()).unwrap_or(CLOUD_PLATFORM);
        let target = Target::Scopes(scopes.split(',').map(str::to_owned).collect());
        let account = self.meant(asked, account);
        let call = asked.call("metadata/token", &account);
        match self.signer.sign_jwt(call, JwtBody::AccessToken { target, lifetime: None }).await {
            Ok(signed) => {
                let left = signed.value.expires().duration_since(SystemTime::now()).unwrap_or_default();
                let (token, left) = (signed.value.as_str(), left.as_secs());
                let token = json!({"access_token": token, "expires_in": left, "token_type": "Bearer"});
                reply::secret(reply::of(StatusCode::OK, reply::JSON, token.to_string()))
            }
            Err(error) => refused(&error),
        }
    }

    async fn identity(&self, asked: &Asked, account: &str, query: &Query) -> Reply {
        let Some(audience) = query.get("audience").filter(|audience| !audience.is_empty()) else {
            return reply::text(StatusCode::BAD_REQUEST, "non-empty audience parameter required\n");
        };
        let (audience, include_email) = (audience.to_owned(), query.get("format") == Some("full"));
        let account = self.meant(asked, account);
        let call = asked.call("metadata/identity", &account);
        match self.signer.sign_jwt(call, JwtBody::IdToken { audience, include_email, lifetime: None }).await {
            Ok(signed) => reply::secret(reply::text(StatusCode::OK, signed.value.as_str().to_owned())),
            // gcloud asks for one with every access token, and dies of anything else than "there is none".
            Err(error @ SignError::Denied) => reply::text(StatusCode::NOT_FOUND, format!("no ID token: {error}\n")),
            Err(error) => refused(&error),
        }
    }

    /// The account of a path: `default` is the one that this caller may use.
    fn meant(&self, asked: &Asked, account: &str) -> String {
        if account != "default" {
            return account.to_owned();
        }
        // Where there is none, the signer is asked for the default account all the same: it denies that, and on record.
        self.signer.default_of(&asked.peer.caller).map(String::from).unwrap_or_default()
    }

    /// A value, a folder, or all that is below it; where a change is waited for, what there is after it.
    async fn value(&self, asked: &Asked, path: &str, query: &Query) -> Reply {
        let (mut changes, mut stopped) = (self.signer.changes(), asked.peer.stopped.clone());
        let timeout = query.get("timeout_sec").and_then(|seconds| seconds.parse().ok()).filter(|seconds| *seconds > 0);
        let until = Instant::now() + timeout.map_or(LONGEST_WAIT, Duration::from_secs).min(LONGEST_WAIT);
        let mut known = query.get("last_etag").map(str::to_owned);
        loop {
            let accounts = if query.is("recursive") || tree::depends_on_accounts(path) {
                self.signer.accounts(asked.call("metadata/accounts", "")).await
            } else {
                Ok(Accounts::default())
            };
            let tree = match accounts {
                Ok(accounts) => Tree::new(&accounts, &self.metadata),
                Err(error) => return refused(&error),
            };
            let reply = told(&tree, path, query);
            let etag = reply.headers().get(ETAG).and_then(|etag| etag.to_str().ok());
            let Some(etag) = etag.filter(|_| query.is("wait_for_change")) else { return reply };
            if *known.get_or_insert_with(|| etag.to_owned()) != etag {
                return reply;
            }
            let changed = async {
                tokio::select! {
                    changed = changes.changed() => changed.is_ok(),
                    _ended = stopped.changed() => false,
                }
            };
            if !timeout_at(until, changed).await.unwrap_or(false) {
                return reply;
            }
        }
    }
}

/// What stands at a path now.
fn told(tree: &Tree, path: &str, query: &Query) -> Reply {
    let recursive = query.is("recursive");
    let as_json = query.get("alt").map_or(recursive, |alt| alt == "json");
    // Some write it with an underscore.
    let path = if path == "universe/universe_domain" { "universe/universe-domain" } else { path };
    if let Some(leaf) = tree.value(path) {
        return match as_json {
            true => reply::tagged(reply::JSON, leaf.json(path).to_string()),
            false => reply::tagged(reply::TEXT, leaf.text()),
        };
    }
    let folder = path.strip_suffix('/').unwrap_or(path);
    match (tree.is_folder(folder), recursive, as_json) {
        (false, ..) if tree::is_of_accounts(path) => reply::text(StatusCode::NOT_FOUND, NOBODYS),
        (false, ..) => reply::not_found(),
        (true, true, false) => reply::tagged(reply::TEXT, tree.text(folder)),
        (true, _, true) => reply::tagged(reply::JSON, tree.json(folder).to_string()),
        (true, false, false) => reply::tagged(reply::TEXT, tree.listing(folder)),
    }
}

impl Query {
    /// None where a field stands there twice: some take the first, others the last.
    fn read(text: &str) -> Option<Self> {
        let fields: Vec<(String, String)> = parse_query(text.as_bytes()).into_owned().collect();
        let mut seen = HashSet::new();
        let once = fields.iter().all(|(name, _)| seen.insert(name.as_str()));
        once.then_some(Self(fields))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn is(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }
}

/// An error as the metadata server would say it: a status that clients know when to retry by, and a text for people.
fn refused(error: &SignError) -> Reply {
    let (status, _) = reply::status(error);
    reply::retry(reply::text(status, format!("{error}\n")), error)
}

/// Where a user has no account, clients show this instead of a token.
const NOBODYS: &str = "there is nothing of this name: no rule of signetd's configuration lets this user use this account; \
                       `default` is the default account, or the only one that the rules let the user use\n";
const LONGEST_WAIT: Duration = Duration::from_secs(300);
