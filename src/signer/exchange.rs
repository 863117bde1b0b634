//! The opt-in exchange (RFC 7523): an assertion that a device signed, for an OAuth 2.0 access token or a Google-signed ID
//! token of the account's token endpoint. The only thing in the daemon that calls the network.
//!
//! Nothing but the configuration names an endpoint. A redirect is never followed, and what an endpoint says is never
//! repeated to callers: its answers go to the log, its tokens to whoever asked for them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Response, StatusCode};
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout_at};

use super::SignError;
use crate::access::{AccountEmail, Permit};
use crate::jwt::{self, Grant, Jwt};

/// The token endpoints of those accounts that have one.
pub type Exchanges = BTreeMap<AccountEmail, TokenEndpoint>;

/// A token endpoint, and the way to it.
#[derive(Clone, Debug)]
pub struct TokenEndpoint {
    uri: String,
    client: Client,
}

/// What was asked for: whoever bears it is believed. A JWT, or what a token endpoint gave for one.
#[derive(Clone, PartialEq, Eq)]
pub struct Bearer {
    text: String,
    expires: SystemTime,
}

impl TokenEndpoint {
    /// The endpoint at an address, believed by these authorities (PEM), or by the system's. They and the proxies, which stand
    /// in the environment (`HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`), are read here and never again.
    ///
    /// # Errors
    /// Where there are no authorities.
    pub fn new(uri: String, authorities: Option<&[u8]>) -> Result<Self, reqwest::Error> {
        let mut client = Client::builder()
            .https_only(true)
            .redirect(Policy::none())
            .connect_timeout(CONNECT_LIMIT)
            .timeout(ATTEMPT_LIMIT)
            .user_agent(concat!("signet/", env!("CARGO_PKG_VERSION")));
        if let Some(pem) = authorities {
            client = client.tls_certs_only(Certificate::from_pem_bundle(pem)?);
        }
        Ok(Self { uri, client: client.build()? })
    }

    /// Its address, the audience of assertions.
    pub(super) fn uri(&self) -> &str {
        &self.uri
    }

    /// Gives the assertion for what it asks for. What passes by itself is tried again, until the deadline.
    pub(super) async fn exchange(
        &self,
        assertion: &Jwt,
        grant: Grant<'_>,
        permit: &Permit,
        deadline: Instant,
    ) -> Result<Bearer, SignError> {
        let asked = timeout_at(deadline, self.ask_again(assertion)).await;
        let answer = asked.map_err(|_elapsed| SignError::Late)?.map_err(|failure| failure.told(&self.uri))?;
        let now = SystemTime::now();
        let bearer = bearer(&answer, grant, now).map_err(|what| Failure::unusable(what).told(&self.uri))?;
        let lives = bearer.expires.duration_since(now).unwrap_or_default();
        // Also an hour where nobody asked for less: what is cached is given to others by this alone.
        if lives > jwt::lifetime(permit) {
            let problem =
                format!("the account's token endpoint gives tokens of {} s, and no shorter ones", lives.as_secs());
            return Err(SignError::invalid("lifetime", problem));
        }
        Ok(bearer)
    }

    async fn ask_again(&self, assertion: &Jwt) -> Result<Vec<u8>, Failure> {
        let mut pause = FIRST_PAUSE;
        for _ in 0..RETRIES {
            match self.ask(assertion).await {
                Err(failure) if failure.passes => {
                    tracing::debug!(endpoint = self.uri, why = failure.what, "asking again");
                }
                settled => return settled,
            }
            // Those that failed together do not come back together.
            sleep(pause.mul_f64(0.5 + jitter())).await;
            pause *= 2;
        }
        self.ask(assertion).await
    }

    async fn ask(&self, assertion: &Jwt) -> Result<Vec<u8>, Failure> {
        // Nothing in a JWT needs escaping.
        let form = format!(
            "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion={}",
            assertion.as_str()
        );
        let request =
            self.client.post(&self.uri).header("Content-Type", "application/x-www-form-urlencoded").body(form);
        let response = request.send().await.map_err(|error| Failure::passing(causes(&error)))?;
        let status = response.status();
        let body = read(response).await?;
        match status {
            StatusCode::OK => Ok(body),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                Err(Failure::passing(format!("it says {status}")))
            }
            status if status.is_server_error() => Err(Failure::passing(format!("it says {status}"))),
            status if status.is_redirection() => {
                Err(Failure::unusable(format!("it says {status}, and redirects are not followed")))
            }
            status => Err(Failure::refused(status, &body)),
        }
    }
}

impl Bearer {
    /// The text itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// When it expires.
    #[must_use]
    pub const fn expires(&self) -> SystemTime {
        self.expires
    }
}

impl From<Jwt> for Bearer {
    fn from(jwt: Jwt) -> Self {
        Self { expires: jwt.expires(), text: jwt.into_string() }
    }
}

/// Why there is no token.
struct Failure {
    /// Whether another attempt may do better.
    passes: bool,
    /// The code of an OAuth error (RFC 6749, 5.2).
    code: String,
    /// For the log alone.
    what: String,
}

impl Failure {
    const fn passing(what: String) -> Self {
        Self { passes: true, code: String::new(), what }
    }

    fn unusable(what: impl Into<String>) -> Self {
        Self { passes: false, code: String::new(), what: what.into() }
    }

    fn refused(status: StatusCode, body: &[u8]) -> Self {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Refusal {
            error: String,
            error_description: String,
        }
        let Refusal { error, error_description } = serde_json::from_slice(body).unwrap_or_default();
        let known = !error.is_empty()
            && error.len() <= 40
            && error.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let code = if known { error } else { String::new() };
        let said: String = error_description.chars().take(300).collect();
        Self { passes: false, what: format!("it says {status} {code}: {}", said.escape_debug()), code }
    }

    /// Logs what the endpoint said, and returns what a caller may know of it.
    fn told(self, endpoint: &str) -> SignError {
        let Self { passes, code, what } = self;
        tracing::warn!(endpoint, what, "no token from the token endpoint");
        match code.as_str() {
            _ if passes => SignError::EndpointAway,
            "invalid_scope" => SignError::invalid("scopes", "the account's token endpoint does not know them"),
            code => {
                let code = if code.is_empty() { String::new() } else { format!(" ({code})") };
                let problem = format!("the account's token endpoint gives no token{code}: signetd's log tells more");
                SignError::Operator { reason: "EXCHANGE_REFUSED", problem }
            }
        }
    }
}

/// The body of a response, of a size that a token endpoint's has.
async fn read(mut response: Response) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| Failure::passing(causes(&error)))? {
        body.extend_from_slice(&chunk);
        if body.len() > LARGEST_ANSWER {
            return Err(Failure::unusable("its answer is over 64 KiB"));
        }
    }
    Ok(body)
}

/// The token of an answer (RFC 6749, 5.1), where it is what was asked for.
fn bearer(answer: &[u8], grant: Grant<'_>, now: SystemTime) -> Result<Bearer, &'static str> {
    #[derive(Deserialize)]
    struct Answer {
        access_token: Option<String>,
        token_type: Option<String>,
        expires_in: Option<u32>,
        id_token: Option<String>,
    }
    #[derive(Deserialize)]
    struct IdClaims {
        aud: String,
        exp: u64,
    }
    // What serde says would quote the answer.
    let answer: Answer = serde_json::from_slice(answer).map_err(|_quoting| "its answer is not that of RFC 6749")?;
    let (text, expires) = match grant {
        Grant::AccessToken(_) => {
            if !answer.token_type.is_some_and(|kind| kind.eq_ignore_ascii_case("bearer")) {
                return Err("its answer is no bearer token");
            }
            let lifetime =
                answer.expires_in.filter(|seconds| *seconds > 0).ok_or("its answer does not say how long it lives")?;
            (answer.access_token, now + Duration::from_secs(lifetime.into()))
        }
        Grant::IdToken(audience) => {
            let payload = answer.id_token.as_deref().and_then(|jwt| jwt.split('.').nth(1));
            let claims = payload.and_then(|payload| URL_SAFE_NO_PAD.decode(payload).ok());
            let claims = claims.and_then(|claims| serde_json::from_slice::<IdClaims>(&claims).ok());
            let claims = claims.filter(|claims| claims.aud == audience && claims.exp < u32::MAX.into());
            let exp = claims.ok_or("its answer is no ID token for this audience")?.exp;
            (answer.id_token, UNIX_EPOCH + Duration::from_secs(exp))
        }
    };
    let sound =
        |text: &String| (1..=LONGEST_TOKEN).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    let text = text.filter(sound).ok_or("its answer holds no token that fits into a header")?;
    Ok(Bearer { text, expires })
}

fn causes(error: &reqwest::Error) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Somewhere from 0 to 1.
fn jitter() -> f64 {
    use std::hash::{BuildHasher as _, RandomState};
    f64::from(RandomState::new().hash_one(()) as u16) / f64::from(u16::MAX)
}

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const RETRIES: usize = 3;
const LARGEST_ANSWER: usize = 64 << 10;
/// So that a cached one is no larger than a cached JWT.
const LONGEST_TOKEN: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_790_000_000)
    }

    fn access(answer: &str) -> Result<String, &'static str> {
        let grant = Grant::AccessToken(&[]);
        bearer(answer.as_bytes(), grant, now()).map(|bearer| {
            assert_eq!(bearer.expires, now() + Duration::from_secs(3599));
            bearer.text
        })
    }

    #[test]
    fn an_access_token_is_taken_with_its_type_and_lifetime_alone() {
        let whole = r#"{"access_token":"ya29.c.x","expires_in":3599,"token_type":"Bearer","scope":"s"}"#;
        assert_eq!(access(whole).unwrap(), "ya29.c.x");
        assert_eq!(access(&whole.replace("Bearer", "bearer")).unwrap(), "ya29.c.x");
        for (part, instead) in [
            (r#""access_token":"ya29.c.x","#, ""),
            ("ya29.c.x", ""),
            ("ya29.c.x", r"a\r\nX: y"),
            ("ya29.c.x", "ä"),
            ("ya29.c.x", &"a".repeat(LONGEST_TOKEN + 1)),
            (r#""expires_in":3599,"#, ""),
            ("3599", "0"),
            ("3599", "-1"),
            ("3599", "4294967296"),
            ("3599", "3599.5"),
            ("Bearer", "mac"),
            (r#""token_type":"Bearer","#, ""),
            ("}", ""),
        ] {
            assert!(access(&whole.replace(part, instead)).is_err(), "{part} -> {instead:.20}");
        }
    }

    #[test]
    fn an_id_token_is_taken_for_the_audience_that_was_asked_for() {
        let answer = |claims: &str| format!(r#"{{"id_token":"e30.{}.c2ln"}}"#, URL_SAFE_NO_PAD.encode(claims));
        let id = |claims: &str| bearer(answer(claims).as_bytes(), Grant::IdToken("https://b"), now());
        let good = id(r#"{"aud":"https://b","exp":1790003600,"iss":"https://accounts.google.com"}"#).unwrap();
        assert_eq!(good.expires, now() + Duration::from_secs(3600));
        for claims in [
            "{}",
            r#"{"aud":"https://b"}"#,
            r#"{"aud":"https://c","exp":1790003600}"#,
            r#"{"aud":["https://b"],"exp":1790003600}"#,
            r#"{"aud":"https://b","exp":18446744073709551615}"#,
        ] {
            assert!(id(claims).is_err(), "{claims}");
        }
        assert!(bearer(br#"{"id_token":"x"}"#, Grant::IdToken("https://b"), now()).is_err());
    }

    #[test]
    fn a_refusal_tells_its_code_to_callers_and_its_text_to_nobody_but_the_log() {
        let refused = |body: &str| Failure::refused(StatusCode::BAD_REQUEST, body.as_bytes()).told("e").to_string();
        let said = refused(r#"{"error":"invalid_grant","error_description":"Invalid JWT Signature: SECRET"}"#);
        assert!(said.contains("(invalid_grant)") && !said.contains("SECRET"), "{said}");
        assert!(refused(r#"{"error":"invalid_scope"}"#).starts_with("scopes: "));
        for body in ["", "<html>", r#"{"error":"A\u001b[31m"}"#, r#"{"error":{"code":400}}"#] {
            assert!(refused(body).ends_with("gives no token: signetd's log tells more"), "{body}");
        }
    }
}
