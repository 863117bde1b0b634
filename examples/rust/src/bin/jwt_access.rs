//! A JWT access token for one service, as credentials that every Google crate takes (`with_credentials`). Needs the operation
//! sign-jwt for that audience.
//!
//!     eval "$(signetctl env)"
//!     cargo run --bin jwt_access -- EMAIL https://pubsub.googleapis.com/ \
//!         https://pubsub.googleapis.com/v1/projects/PROJECT/topics

use std::error::Error;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use google_cloud_auth::credentials::{CacheableResource, Credentials, CredentialsProvider, EntityTag};
use google_cloud_auth::errors::CredentialsError;
use http::{Extensions, HeaderMap, HeaderValue, header};
use serde_json::{Value, json};
use tokio::sync::Mutex;

/// Has signetd sign, at the HTTP address that `signetctl env` names.
#[derive(Debug)]
struct SignetJwt {
    email: String,
    audience: String,
    /// The headers of the last token, and when it ends.
    last: Mutex<(HeaderMap, Duration)>,
}

impl CredentialsProvider for SignetJwt {
    async fn headers(&self, _: Extensions) -> Result<CacheableResource<HeaderMap>, CredentialsError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut last = self.last.lock().await;
        if last.1 < now + Duration::from_secs(300) {
            *last = self.sign(now).await.map_err(|error| CredentialsError::from_msg(true, error.to_string()))?;
        }
        Ok(CacheableResource::New { entity_tag: EntityTag::new(), data: last.0.clone() })
    }

    async fn universe_domain(&self) -> Option<String> {
        None
    }
}

impl SignetJwt {
    async fn sign(&self, now: Duration) -> Result<(HeaderMap, Duration), Box<dyn Error + Send + Sync>> {
        let expires = now + Duration::from_secs(3600);
        let (email, audience) = (&self.email, &self.audience);
        let claims =
            json!({"iss": email, "sub": email, "aud": audience, "iat": now.as_secs(), "exp": expires.as_secs()});
        let host = std::env::var("GCE_METADATA_HOST")?;
        let url = format!("http://{host}/v1/projects/-/serviceAccounts/{email}:signJwt");
        // As Google's API wants one; here any token will do.
        let request = reqwest::Client::new().post(url).bearer_auth("any");
        let request = request.json(&json!({"payload": claims.to_string()}));
        let answer: Value = request.send().await?.error_for_status()?.json().await?;
        let jwt = answer["signedJwt"].as_str().ok_or("an answer without a JWT")?;
        let mut bearer = HeaderValue::from_str(&format!("Bearer {jwt}"))?;
        bearer.set_sensitive(true);
        Ok((HeaderMap::from_iter([(header::AUTHORIZATION, bearer)]), expires))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    rustls::crypto::ring::default_provider().install_default().map_err(|_| "TLS is chosen already")?;
    let mut arguments = std::env::args().skip(1);
    let (Some(email), Some(audience), Some(url)) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err("usage: jwt_access EMAIL AUDIENCE URL".into());
    };
    let credentials = Credentials::from(SignetJwt { email, audience, last: Mutex::default() });
    let CacheableResource::New { data: headers, .. } = credentials.headers(Extensions::new()).await? else {
        return Err("a first answer was seen before".into());
    };
    let response = reqwest::Client::new().get(url).headers(headers).send().await?;
    println!("{}", response.error_for_status()?.text().await?);
    Ok(())
}
