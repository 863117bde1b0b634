//! The token exchange (RFC 8693) as Google's Security Token Service has it: a subject token and scopes, for an access token.
//!
//! The subject token is to be of the very user whom the kernel names for the connection. It allows nothing by itself: the
//! rules decide, as for every request.

use std::time::SystemTime;

use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, StatusCode};
use serde_json::json;

use super::reply::Reply;
use super::{Asked, CLOUD_PLATFORM, Front, reply};
use crate::jwt::Target;
use crate::signer::{JwtBody, SignError};
use crate::subject;

impl Front {
    /// `POST /v1/token`.
    pub(super) async fn exchange(&self, asked: &Asked, body: Incoming) -> Reply {
        if asked.head.method != Method::POST {
            return reply::not_allowed("POST");
        }
        let body = match asked.read(body, LONGEST_FORM, |error| Refused::from(error).into()).await {
            Ok(body) => body,
            Err(reply) => return reply,
        };
        let is_form = |value: &str| value.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(FORM));
        if !asked.head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(is_form) {
            return Refused::request("the body is to be a form").into();
        }
        match self.exchanged(asked, &body).await {
            Ok(reply) => reply,
            Err(refused) => refused.into(),
        }
    }

    async fn exchanged(&self, asked: &Asked, body: &[u8]) -> Result<Reply, Refused> {
        let Form { audience, scopes, subject_token } = Form::parse(body)?;
        let account = audience.strip_prefix(AUDIENCE).filter(|account| !account.is_empty());
        let account = account.ok_or(Refused::target("audience: write //signet/ and the account's email"))?;
        if let Err(what) = self.is_of_caller(subject_token, asked.peer.caller.uid).await {
            self.signer.refused(asked.call(RPC, account), what).await?;
            return Err(Refused::request(what));
        }
        let wanted = JwtBody::AccessToken { target: Target::Scopes(scopes), lifetime: None };
        let bearer = self.signer.sign_jwt(asked.call(RPC, account), wanted).await?.value;
        let lives = bearer.expires().duration_since(SystemTime::now()).unwrap_or_default();
        let document = json!({
            "access_token": bearer.as_str(),
            "issued_token_type": ACCESS_TOKEN,
            "token_type": "Bearer",
            "expires_in": lives.as_secs(),
        });
        Ok(reply::secret(reply::of(StatusCode::OK, reply::JSON, document.to_string())))
    }

    /// Whether a subject token is good, and this user's.
    async fn is_of_caller(&self, subject_token: String, uid: u32) -> Result<(), &'static str> {
        let state = self.state_dir.clone();
        let found = tokio::task::spawn_blocking(move || subject::find(&state, &subject_token)).await;
        let subject = found.map_err(std::io::Error::other).and_then(|found| found).unwrap_or_else(|error| {
            tracing::error!(%error, "a record of a subject token can't be read");
            None
        });
        Err(match subject {
            None => "the subject token is unknown, or was revoked: signetctl subject-token makes another",
            Some(subject) if subject.uid != uid => "the subject token is another user's",
            Some(subject) if subject.has_expired(SystemTime::now()) => {
                "the subject token has expired: signetctl subject-token renews it"
            }
            Some(_) => return Ok(()),
        })
    }
}

/// What is asked for.
#[derive(Default)]
struct Form {
    audience: String,
    scopes: Vec<String>,
    subject_token: String,
}

impl Form {
    fn parse(body: &[u8]) -> Result<Self, Refused> {
        let fields: Vec<_> = form_urlencoded::parse(body).collect();
        let given = |wanted: &str| {
            let mut values = fields.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value.as_ref());
            let value = values.next().unwrap_or_default();
            // RFC 6749, 3.2: none twice.
            if values.next().is_some() { Err(Refused::request("a parameter stands there twice")) } else { Ok(value) }
        };
        if given("grant_type")? != GRANT {
            return Err(Refused::new("unsupported_grant_type", "grant_type is to be that of RFC 8693"));
        }
        if !["", ACCESS_TOKEN].contains(&given("requested_token_type")?) {
            return Err(Refused::request("only access tokens are exchanged for"));
        }
        if !given("actor_token")?.is_empty() {
            return Err(Refused::request("nobody can act for somebody else here: leave actor_token out"));
        }
        // Some clients send a file's final newline.
        let subject_token = given("subject_token")?.trim();
        if subject_token.is_empty() || given("subject_token_type")?.is_empty() {
            return Err(Refused::request("subject_token and subject_token_type are needed"));
        }
        let scopes: Vec<_> = given("scope")?.split(' ').filter(|scope| !scope.is_empty()).map(str::to_owned).collect();
        Ok(Self {
            audience: given("audience")?.to_owned(),
            scopes: if scopes.is_empty() { vec![CLOUD_PLATFORM.to_owned()] } else { scopes },
            subject_token: subject_token.to_owned(),
        })
    }
}

/// An error of RFC 6749, 5.2, with what RFC 8693, 2.2.2 adds.
struct Refused {
    error: &'static str,
    description: String,
    /// Where it came from the signer.
    cause: Option<SignError>,
}

impl Refused {
    fn new(error: &'static str, description: impl Into<String>) -> Self {
        Self { error, description: description.into(), cause: None }
    }

    fn request(description: &str) -> Self {
        Self::new("invalid_request", description)
    }

    fn target(description: &str) -> Self {
        Self::new("invalid_target", description)
    }
}

impl From<SignError> for Refused {
    fn from(cause: SignError) -> Self {
        let error = match &cause {
            SignError::Invalid { field: "scopes", .. } => "invalid_scope",
            // "Unwilling or unable to issue a token for any target service".
            SignError::Denied | SignError::Invalid { field: "account", .. } => "invalid_target",
            SignError::Invalid { .. } => "invalid_request",
            SignError::Busy { .. }
            | SignError::RateLimited { .. }
            | SignError::TooMuch
            | SignError::Away(_)
            | SignError::EndpointAway
            | SignError::Late => "temporarily_unavailable",
            SignError::Operator { .. } | SignError::Withheld => "server_error",
        };
        Self { error, description: cause.to_string(), cause: Some(cause) }
    }
}

impl From<Refused> for Reply {
    fn from(Refused { error, description, cause }: Refused) -> Self {
        // RFC 6749 has 400 for all that another request could mend, a denial too.
        let status = match &cause {
            None | Some(SignError::Denied) => StatusCode::BAD_REQUEST,
            Some(cause) => reply::status(cause).0,
        };
        let document = json!({ "error": error, "error_description": description }).to_string();
        let reply = reply::secret(reply::of(status, reply::JSON, document));
        match &cause {
            Some(cause) => reply::retry(reply, cause),
            None => reply,
        }
    }
}

/// The name in the audit log.
const RPC: &str = "STS/Token";
const FORM: &str = "application/x-www-form-urlencoded";
const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
/// What `signetctl env --external-account` writes before the account.
const AUDIENCE: &str = "//signet/";
const LONGEST_FORM: usize = 16 << 10;
