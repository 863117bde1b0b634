//! Google's IAM Service Account Credentials API as REST, as its client libraries speak it.
//! <https://cloud.google.com/iam/docs/reference/credentials/rest>

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use form_urlencoded::parse as parse_form;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Method, StatusCode};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::super::iam::{account, in_googles_words};
use super::super::limits::{LARGEST_PAYLOAD, SMALL_MESSAGE, payload};
use super::reply::{self, Reply};
use super::{Asked, Front, guard};
use crate::jwt::Target;
use crate::signer::{Bytes, JwtBody, SignError};

/// The body of any of the four requests. What this API does not know is passed over, as Google's does with newer fields.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Message {
    delegates: Option<Vec<String>>,
    scope: Option<Vec<String>>,
    lifetime: Option<String>,
    audience: Option<String>,
    include_email: Option<Truth>,
    payload: Option<String>,
}

/// Python sends truth values as text.
#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Truth {
    Bool(bool),
    #[serde(deserialize_with = "truth")]
    Text(bool),
}

/// What a path asks for.
enum Verb {
    AccessToken,
    IdToken,
    Blob,
    Jwt,
}

impl Front {
    /// The answer to any path below `/v1/projects/`.
    pub(super) async fn iam(&self, asked: &Asked, body: Incoming) -> Reply {
        if !guard::bears_a_token(&asked.head.headers) {
            return unproven();
        }
        let Ok(path) = percent_decode_str(asked.head.uri.path()).decode_utf8() else { return reply::not_found() };
        let path = path.strip_prefix("/v1/").unwrap_or_default();
        if path.strip_suffix("/allowedLocations").is_some_and(|name| account(name, &[]).is_ok()) {
            // Everywhere: newer libraries ask in the background.
            let anywhere = json!({"encodedLocations": "0x0", "locations": []});
            return asked.reading(|| reply::of(StatusCode::OK, reply::JSON, anywhere.to_string()));
        }
        let (name, verb) = match path.rsplit_once(':') {
            Some((name, "generateAccessToken")) => (name, Verb::AccessToken),
            Some((name, "generateIdToken")) => (name, Verb::IdToken),
            Some((name, "signBlob")) => (name, Verb::Blob),
            Some((name, "signJwt")) => (name, Verb::Jwt),
            _ => return no_such_method(),
        };
        if asked.head.method != Method::POST {
            return reply::not_allowed("POST");
        }
        let most =
            if matches!(verb, Verb::Blob) { SMALL_MESSAGE + LARGEST_PAYLOAD.div_ceil(3) * 4 } else { SMALL_MESSAGE };
        let body = match asked.read(body, most, |error| refused(&error)).await {
            Ok(body) => body,
            Err(reply) => return reply,
        };
        let answer = match read_message(asked, &body) {
            Ok(message) => self.sign(asked, name, verb, message).await.map_err(in_googles_words),
            Err(error) => Err(error),
        };
        match answer {
            Ok(answer) => reply::secret(reply::of(StatusCode::OK, reply::JSON, answer.to_string())),
            Err(error) => refused(&error),
        }
    }

    async fn sign(&self, asked: &Asked, name: &str, verb: Verb, message: Message) -> Result<Value, SignError> {
        let account = account(name, &message.delegates.unwrap_or_default())?;
        let jwt = |rpc, body| self.signer.sign_jwt(asked.call(rpc, account), body);
        match verb {
            Verb::AccessToken => {
                let lifetime = message.lifetime.as_deref().map(lifetime).transpose()?;
                let target = Target::Scopes(message.scope.unwrap_or_default());
                let signed =
                    jwt("IAM REST/generateAccessToken", JwtBody::AccessToken { target, lifetime }).await?.value;
                Ok(json!({"accessToken": signed.as_str(), "expireTime": timestamp(signed.expires())}))
            }
            Verb::IdToken => {
                let audience = message.audience.unwrap_or_default();
                let include_email = matches!(message.include_email, Some(Truth::Bool(true) | Truth::Text(true)));
                let body = JwtBody::IdToken { audience, include_email, lifetime: None };
                Ok(json!({"token": jwt("IAM REST/generateIdToken", body).await?.value.as_str()}))
            }
            Verb::Blob => {
                let blob = BASE64.decode(standard(&message.payload.unwrap_or_default()));
                let blob = blob.map_err(|_not_shown| SignError::invalid("payload", "it is no base64"))?;
                payload(&blob)?;
                let call = asked.call("IAM REST/signBlob", account);
                let signed = self.signer.sign_bytes(call, Bytes::Message(&blob), None).await?;
                Ok(json!({"keyId": signed.kid.as_str(), "signedBlob": STANDARD.encode(signed.value.into_bytes())}))
            }
            Verb::Jwt => {
                let body = JwtBody::Claims(message.payload.unwrap_or_default());
                let signed = jwt("IAM REST/signJwt", body).await?;
                Ok(json!({"keyId": signed.kid.as_str(), "signedJwt": signed.value.as_str()}))
            }
        }
    }
}

/// Reads a body: JSON, or a form, which some send.
fn read_message(asked: &Asked, body: &[u8]) -> Result<Message, SignError> {
    let content_type = asked.head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if content_type.starts_with("application/x-www-form-urlencoded") {
        let form: Vec<(String, String)> = parse_form(body).into_owned().collect();
        let field = |name: &str| form.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        let include_email = field("includeEmail").map(|value| Truth::Text(value == "true"));
        return Ok(Message { audience: field("audience"), include_email, ..Message::default() });
    }
    if body.is_empty() {
        return Ok(Message::default());
    }
    // What serde says may quote the body.
    serde_json::from_slice(body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        SignError::invalid("body", format!("it is no JSON of this method: line {line}, column {column}"))
    })
}

fn truth<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "true" | "True" => Ok(true),
        "false" | "False" => Ok(false),
        _ => Err(serde::de::Error::custom("true or false")),
    }
}

/// A google.protobuf.Duration: seconds, up to nine decimals, and `s`.
fn lifetime(text: &str) -> Result<Duration, SignError> {
    let wrong = || SignError::invalid("lifetime", r#"write it in seconds, such as "3600s""#);
    let seconds = text.strip_suffix('s').ok_or_else(wrong)?;
    let (whole, decimals) = seconds.split_once('.').unwrap_or((seconds, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(decimals) || decimals.len() > 9 {
        return Err(wrong());
    }
    let nanos = format!("{decimals:0<9}").parse().map_err(|_too_large| wrong())?;
    Ok(Duration::new(whole.parse().map_err(|_too_large| wrong())?, nanos))
}

/// RFC 3339 without decimals: Python reads nothing else.
fn timestamp(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    let (year, month, day) = (time.year(), u8::from(time.month()), time.day());
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", time.hour(), time.minute(), time.second())
}

/// JSON of protobuf has bytes in either alphabet.
fn standard(base64: &str) -> String {
    base64.replace('-', "+").replace('_', "/")
}

fn refused(error: &SignError) -> Reply {
    let (code, status) = reply::status(error);
    let info =
        json!({"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": error.reason(), "domain": "signet"});
    let (number, message) = (code.as_u16(), error.to_string());
    let body = json!({"error": {"code": number, "message": message, "status": status, "details": [info]}});
    reply::retry(reply::of(code, reply::JSON, body.to_string()), error)
}

fn no_such_method() -> Reply {
    let body = json!({"error": {"code": 404, "message": "there is no such method", "status": "NOT_FOUND"}});
    reply::of(StatusCode::NOT_FOUND, reply::JSON, body.to_string())
}

/// The answer to who shows no token at all.
fn unproven() -> Reply {
    let message = "Authorization: Bearer and any token is needed, as Google's clients send it: a request that was not meant has none";
    let body = json!({"error": {"code": 401, "message": message, "status": "UNAUTHENTICATED"}});
    let mut reply = reply::last(reply::of(StatusCode::UNAUTHORIZED, reply::JSON, body.to_string()));
    reply.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    reply
}

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_those_of_protobuf() {
        for (text, expected) in [
            ("3600s", Duration::from_secs(3600)),
            ("0s", Duration::ZERO),
            ("3.5s", Duration::from_millis(3500)),
            ("0.000000001s", Duration::from_nanos(1)),
        ] {
            assert_eq!(lifetime(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "s",
            "3600",
            "-1s",
            "+1s",
            "1e3s",
            "1.s",
            ".5s",
            "1.0000000001s",
            " 1s",
            "1 s",
            "99999999999999999999s",
        ] {
            assert!(lifetime(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_have_no_decimals() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_225_600_999);
        assert_eq!(timestamp(time), "2026-01-01T00:00:00Z");
    }
}
