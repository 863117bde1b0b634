//! Public keys, for whoever verifies: in the forms and at the paths of Google's.

use std::collections::BTreeSet;

use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, ETAG, HeaderValue, IF_NONE_MATCH};
use percent_encoding::percent_decode_str;

use super::reply::{self, Reply};
use super::{Asked, Front};
use crate::jwt::jwk::{self, PublishedKey};

/// A document of an account's keys.
type Form = fn(&[PublishedKey<'_>]) -> String;

impl Front {
    /// The answer to `/robot/`, `/service_accounts/` and what is below.
    pub(super) fn certificates(&self, asked: &Asked) -> Reply {
        let path = asked.head.uri.path();
        let found = FORMS.iter().find_map(|(place, form)| Some((path.strip_prefix(place)?, form)));
        let Some((account, form)) = found else { return reply::not_found() };
        let Ok(account) = percent_decode_str(account).decode_utf8() else { return reply::not_found() };
        match self.signer.published(&account) {
            Ok(keys) if !account.is_empty() => {
                let keys: Vec<_> = keys.iter().map(|key| key.published()).collect();
                self.document(asked, form(&keys))
            }
            _ => reply::not_found(),
        }
    }

    /// OpenID Connect Discovery of the default account. Its addresses are those that we listen on, never a caller's Host.
    pub(super) fn discovery(&self, asked: &Asked) -> Reply {
        let Some(account) = self.signer.default_account() else {
            return reply::text(StatusCode::NOT_FOUND, "there is no default account\n");
        };
        let keys = self.signer.published(account.as_str()).unwrap_or_default();
        let algorithms: BTreeSet<_> = keys.iter().map(|key| key.algorithm().name()).collect();
        let jwks_uri = format!("http://{}/service_accounts/v1/jwk/{account}", asked.peer.address);
        let issuer = self.issuer.as_deref().unwrap_or(account.as_str());
        self.document(asked, jwk::discovery(issuer, &jwks_uri, &algorithms).to_string())
    }

    fn document(&self, asked: &Asked, body: String) -> Reply {
        let mut reply = asked.reading(|| reply::tagged(reply::JSON, body));
        let Some(tag) = reply.headers().get(ETAG).and_then(|tag| tag.to_str().ok()) else { return reply };
        let tag = format!("\"{tag}\"");
        let known = asked.head.headers.get(IF_NONE_MATCH).and_then(|known| known.to_str().ok()).unwrap_or_default();
        if known.split(',').any(|known| known.trim().trim_start_matches("W/") == tag || known.trim() == "*") {
            reply = reply::of(StatusCode::NOT_MODIFIED, reply::JSON, "");
        }
        let cache = format!("public, max-age={}", self.cache_time.as_secs());
        for (name, value) in [(ETAG, tag), (CACHE_CONTROL, cache)] {
            if let Ok(value) = HeaderValue::from_str(&value) {
                reply.headers_mut().insert(name, value);
            }
        }
        reply
    }
}

const FORMS: [(&str, Form); 5] = [
    ("/robot/v1/metadata/x509/", jwk::x509_map),
    ("/service_accounts/v1/metadata/x509/", jwk::x509_map),
    ("/service_accounts/v1/metadata/jwk/", jwk::jwks),
    ("/service_accounts/v1/jwk/", jwk::jwks),
    ("/service_accounts/v1/metadata/raw/", jwk::raw),
];
