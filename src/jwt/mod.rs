//! What is signed: claims, JWTs, keys as JWKs, certificates.
//!
//! Pure: time and randomness are arguments, and the only way to a signature is the digest that this module hands out.
//! It never touches a device.

pub mod certificate;
pub mod claims;
mod json;
pub mod jwk;
pub mod jws;
pub mod verify;

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use crate::access::{AccountEmail, Operation, Permit, Request};
use crate::key::{Algorithm, Digest, KeyId, Signature};
use claims::{Claims, InvalidClaims};

/// A JWT that wants only its signature.
#[derive(Debug)]
pub struct UnsignedJwt {
    signing_input: String,
    algorithm: Algorithm,
    expires: SystemTime,
}

/// Which key will sign: what stands in the header.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a> {
    /// `alg`.
    pub algorithm: Algorithm,
    /// `kid`.
    pub kid: &'a KeyId,
}

/// What an access token is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// One service, as `aud`.
    Audience(String),
    /// OAuth 2.0 scopes, as `scope`.
    Scopes(Vec<String>),
}

/// What a token endpoint is asked for.
#[derive(Clone, Copy, Debug)]
pub enum Grant<'a> {
    /// An access token for these scopes.
    AccessToken(&'a [String]),
    /// An ID token for this audience.
    IdToken(&'a str),
}

/// A signed JWT in compact serialisation (RFC 7515, 3.1).
#[derive(Clone, PartialEq, Eq)]
pub struct Jwt {
    text: String,
    expires: SystemTime,
}

impl UnsignedJwt {
    /// A JWT of a caller's claims. Where they have no `exp` it is an hour ahead, or as far as the rule allows.
    ///
    /// # Errors
    /// [`InvalidClaims`] where the permit is for something else or its lifetime is exceeded, where they name somebody else
    /// than the permit's account, and where `exp` is past or over 12 hours ahead.
    pub fn of_claims(
        permit: &Permit,
        header: Header<'_>,
        claims: &Claims,
        now: SystemTime,
    ) -> Result<Self, InvalidClaims> {
        demand(permit, Operation::SignJwt)?;
        let limit = permit.lifetime().limit;
        let lifetime = limit.map_or(MAX_LIFETIME, |limit| limit.min(MAX_LIFETIME));
        let fit = claims.clone().for_account(&permit.account().email, lifetime, now)?;
        if limit.is_some_and(|limit| claims.lifetime(now).is_some_and(|lifetime| lifetime > limit)) {
            return Err(InvalidClaims::of("exp", "beyond what the rule allows"));
        }
        Ok(Self::new(header, &fit.to_json(), fit.exp()))
    }

    /// A JWT access token (AIP-4111): iss = sub = the account's email, `aud` or `scope`, iat, exp.
    ///
    /// # Errors
    /// [`InvalidClaims`] where the permit is for something else, or the target or the lifetime can't be.
    pub fn access_token(
        permit: &Permit,
        header: Header<'_>,
        target: &Target,
        now: SystemTime,
    ) -> Result<Self, InvalidClaims> {
        demand(permit, Operation::MintAccessToken)?;
        let email = permit.account().email.as_str();
        Self::minted(permit, header, &[("iss", email.into()), ("sub", email.into()), target.claim()?], now)
    }

    /// A self-signed ID token: iss, sub, email, aud, iat, exp, and email_verified where asked for.
    ///
    /// # Errors
    /// [`InvalidClaims`] where the permit is for something else, or the audience or the lifetime can't be. An audience
    /// at googleapis.com can't: there, such an ID token would be an access token, which has an operation of its own.
    pub fn id_token(
        permit: &Permit,
        header: Header<'_>,
        audience: &str,
        include_email: bool,
        now: SystemTime,
    ) -> Result<Self, InvalidClaims> {
        demand(permit, Operation::MintIdToken)?;
        claims::check_audience(audience).map_err(|what| InvalidClaims::of("audience", what))?;
        if audience.to_ascii_lowercase().contains("googleapis.com") {
            return Err(InvalidClaims::of("audience", "a Google API takes access tokens; mint one of those"));
        }
        let email = permit.account().email.as_str();
        let mut members = vec![("iss", email.into()), ("sub", email.into()), ("email", email.into())];
        if include_email {
            members.push(("email_verified", true.into()));
        }
        members.push(("aud", audience.into()));
        Self::minted(permit, header, &members, now)
    }

    /// An assertion (RFC 7523, 2.1), for the eyes of a token endpoint alone: iss, scope or target_audience, aud, iat, exp.
    ///
    /// # Errors
    /// [`InvalidClaims`] where the permit is for something else, or what is asked for can't be.
    pub fn assertion(
        permit: &Permit,
        header: Header<'_>,
        endpoint: &str,
        grant: Grant<'_>,
        now: SystemTime,
    ) -> Result<Self, InvalidClaims> {
        let asked = match grant {
            Grant::AccessToken(scopes) => {
                demand(permit, Operation::MintAccessToken)?;
                ("scope", scope(scopes)?)
            }
            Grant::IdToken(audience) => {
                demand(permit, Operation::MintIdToken)?;
                claims::check_audience(audience).map_err(|what| InvalidClaims::of("audience", what))?;
                ("target_audience", audience.into())
            }
        };
        let iat = claims::seconds(now);
        let exp = iat + ASSERTION_LIFETIME.as_secs();
        let iss = permit.account().email.as_str();
        let members: [(&str, Value); 5] =
            [("iss", iss.into()), asked, ("aud", endpoint.into()), ("iat", iat.into()), ("exp", exp.into())];
        Ok(Self::new(header, &json::to_text(members.iter().map(|(name, value)| (*name, value))), exp))
    }

    fn minted(
        permit: &Permit,
        header: Header<'_>,
        members: &[(&str, Value)],
        now: SystemTime,
    ) -> Result<Self, InvalidClaims> {
        let lifetime = lifetime(permit);
        if lifetime < Duration::from_secs(1) || lifetime > MAX_LIFETIME {
            return Err(InvalidClaims::of("lifetime", "not between a second and an hour"));
        }
        if permit.lifetime().limit.is_some_and(|limit| lifetime > limit) {
            return Err(InvalidClaims::of("lifetime", "beyond what the rule allows"));
        }
        let iat = claims::seconds(now);
        let exp = iat + lifetime.as_secs();
        let times = [("iat", iat.into()), ("exp", exp.into())];
        Ok(Self::new(header, &json::to_text(members.iter().chain(&times).map(|(name, value)| (*name, value))), exp))
    }

    fn new(header: Header<'_>, claims: &str, exp: u64) -> Self {
        // The signature is appended to the same buffer: no copy from here to the reply.
        let mut signing_input = String::with_capacity(claims.len() * 4 / 3 + 1024);
        URL_SAFE_NO_PAD.encode_string(header.to_string(), &mut signing_input);
        signing_input.push('.');
        URL_SAFE_NO_PAD.encode_string(claims, &mut signing_input);
        Self { signing_input, algorithm: header.algorithm, expires: UNIX_EPOCH + Duration::from_secs(exp) }
    }

    /// The digest to be signed.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(self.algorithm.hash(), self.signing_input.as_bytes())
    }

    /// Appends the signature.
    #[must_use]
    pub fn into_jwt(self, signature: &Signature) -> Jwt {
        let mut text = self.signing_input;
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.as_bytes(), &mut text);
        Jwt { text, expires: self.expires }
    }
}

impl fmt::Display for Header<'_> {
    /// The header itself, and there is no other: nothing in it is the caller's. The names need no escaping.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, r#"{{"alg":"{}","typ":"JWT","kid":"{}"}}"#, self.algorithm, self.kid)
    }
}

impl Target {
    /// What policy is asked before an access token for it is minted.
    #[must_use]
    pub fn request<'a>(&'a self, account: &'a AccountEmail, lifetime: Option<Duration>) -> Request<'a> {
        let (audiences, scopes) = match self {
            Self::Audience(audience) => (vec![audience.as_str()], vec![]),
            Self::Scopes(scopes) => (vec![], scopes.iter().map(String::as_str).collect()),
        };
        Request { audiences, scopes, lifetime, ..Request::new(account, Operation::MintAccessToken) }
    }

    fn claim(&self) -> Result<(&'static str, Value), InvalidClaims> {
        match self {
            Self::Audience(audience) => {
                claims::check_audience(audience).map_err(|what| InvalidClaims::of("audience", what))?;
                Ok(("aud", audience.as_str().into()))
            }
            Self::Scopes(scopes) => Ok(("scope", scope(scopes)?)),
        }
    }
}

fn scope(scopes: &[String]) -> Result<Value, InvalidClaims> {
    if scopes.is_empty() {
        return Err(InvalidClaims::of("scope", "none is given"));
    }
    let sound = scopes.iter().try_for_each(|scope| claims::check_scope(scope));
    sound.map_err(|what| InvalidClaims::of("scope", what))?;
    Ok(scopes.join(" ").into())
}

fn demand(permit: &Permit, operation: Operation) -> Result<(), InvalidClaims> {
    if permit.operation() == operation {
        return Ok(());
    }
    Err(InvalidClaims::whole(format!("the permit is for {}, not for {operation}", permit.operation())))
}

impl Jwt {
    /// The compact serialisation.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The compact serialisation, on its own.
    #[must_use]
    pub fn into_string(self) -> String {
        self.text
    }

    /// Its `exp`.
    #[must_use]
    pub const fn expires(&self) -> SystemTime {
        self.expires
    }
}

/// The longest lifetime of what Signet mints, and the one where nobody asked for another.
pub const MAX_LIFETIME: Duration = Duration::from_secs(3600);

/// For how long a token endpoint may take an assertion: for its clock, and for retries.
const ASSERTION_LIFETIME: Duration = Duration::from_secs(300);

/// How long what is minted under a permit is to live: as asked for, else as long as its rule and Signet allow.
#[must_use]
pub fn lifetime(permit: &Permit) -> Duration {
    let allowed = permit.lifetime();
    allowed.requested.or(allowed.limit.map(|limit| limit.min(MAX_LIFETIME))).unwrap_or(MAX_LIFETIME)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{Account, Caller, Denied, Policy, Rule};
    use proptest::prelude::*;

    const NOW: u64 = 1_790_000_000;
    const EMAIL: &str = "a@x";

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(NOW)
    }

    fn email() -> AccountEmail {
        EMAIL.parse().unwrap()
    }

    fn permit_of(request: &Request<'_>, max_lifetime: Option<Duration>) -> Result<Permit, Denied> {
        let account = Account { email: email(), project_id: None, unique_id: None, default: false };
        let operations = Operation::ALL.to_vec();
        let rule = Rule { accounts: vec![email()], operations, max_lifetime, ..Rule::default() };
        let caller = Caller::new(1, 1, vec![]);
        Policy::new(vec![account], vec![rule]).authorize(&caller, request)
    }

    fn permit(operation: Operation, lifetime: Option<u64>, limit: Option<u64>) -> Permit {
        let target = Target::Scopes(vec!["s".to_owned()]);
        let email = email();
        let request = Request { operation, ..target.request(&email, lifetime.map(Duration::from_secs)) };
        permit_of(&request, limit.map(Duration::from_secs)).unwrap()
    }

    fn parts(unsigned: &UnsignedJwt) -> (String, String) {
        let decode = |part: &str| String::from_utf8(URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
        let (header, claims) = unsigned.signing_input.split_once('.').unwrap();
        (decode(header), decode(claims))
    }

    fn signed_by<T>(sign: impl FnOnce(Header<'_>) -> T) -> T {
        sign(Header { algorithm: Algorithm::Rs256, kid: &"kid-1".parse().unwrap() })
    }

    fn access(permit: &Permit, target: &Target) -> Result<UnsignedJwt, InvalidClaims> {
        signed_by(|header| UnsignedJwt::access_token(permit, header, target, now()))
    }

    fn of_claims(permit: &Permit, claims: &Claims) -> Result<UnsignedJwt, InvalidClaims> {
        signed_by(|header| UnsignedJwt::of_claims(permit, header, claims, now()))
    }

    fn claims(text: &str) -> Claims {
        Claims::parse(text).unwrap()
    }

    #[test]
    fn access_tokens_are_those_of_aip_4111() {
        let permit = permit(Operation::MintAccessToken, None, None);
        let header = r#"{"alg":"RS256","typ":"JWT","kid":"kid-1"}"#.to_owned();
        let unsigned = access(&permit, &Target::Audience("https://pubsub.googleapis.com/".to_owned())).unwrap();
        let expected = format!(
            r#"{{"iss":"a@x","sub":"a@x","aud":"https://pubsub.googleapis.com/","iat":{NOW},"exp":{}}}"#,
            NOW + 3600
        );
        assert_eq!(parts(&unsigned), (header.clone(), expected));
        let scopes = Target::Scopes(vec!["https://a/auth/x".to_owned(), "y".to_owned()]);
        let unsigned = access(&permit, &scopes).unwrap();
        let expected =
            format!(r#"{{"iss":"a@x","sub":"a@x","scope":"https://a/auth/x y","iat":{NOW},"exp":{}}}"#, NOW + 3600);
        assert_eq!(parts(&unsigned), (header, expected));
        assert_eq!(unsigned.expires, now() + MAX_LIFETIME);
    }

    #[test]
    fn a_target_that_verifiers_differ_on_is_refused() {
        let permit = permit(Operation::MintAccessToken, None, None);
        for audience in ["", " ", "a b", "a\n", "\u{a0}a"] {
            let refused = access(&permit, &Target::Audience(audience.to_owned())).unwrap_err();
            assert!(refused.to_string().starts_with("audience: "), "{audience:?}");
        }
        for scopes in [&[][..], &[""], &["a", ""], &["a b"], &["a\t"], &["a,b"]] {
            let scopes = Target::Scopes(scopes.iter().map(|scope| (*scope).to_owned()).collect());
            assert!(access(&permit, &scopes).unwrap_err().to_string().starts_with("scope: "), "{scopes:?}");
        }
        for (length, fits) in [(4096, true), (4097, false)] {
            let text = "a".repeat(length);
            for target in [Target::Audience(text.clone()), Target::Scopes(vec![text])] {
                assert_eq!(access(&permit, &target).is_ok(), fits, "{length}");
            }
        }
    }

    #[test]
    fn id_tokens_prove_the_account_to_an_audience_that_is_no_google_api() {
        let permit = permit(Operation::MintIdToken, Some(60), None);
        let id = |audience: &str, include_email| {
            signed_by(|header| UnsignedJwt::id_token(&permit, header, audience, include_email, now()))
        };
        let end = format!(r#""aud":"https://b","iat":{NOW},"exp":{}}}"#, NOW + 60);
        let start = r#"{"iss":"a@x","sub":"a@x","email":"a@x","#;
        assert_eq!(parts(&id("https://b", false).unwrap()).1, format!("{start}{end}"));
        assert_eq!(parts(&id("https://b", true).unwrap()).1, format!(r#"{start}"email_verified":true,{end}"#));
        for audience in ["", "a b", "https://pubsub.googleapis.com/", "HTTPS://OAuth2.GoogleAPIs.com/token"] {
            assert!(id(audience, false).unwrap_err().to_string().starts_with("audience: "), "{audience}");
        }
    }

    #[test]
    fn assertions_are_for_a_token_endpoint_and_grant_nothing_elsewhere() {
        let endpoint = "https://oauth2.googleapis.com/token";
        let assertion = |operation, grant| {
            let permit = permit(operation, None, None);
            signed_by(|header| UnsignedJwt::assertion(&permit, header, endpoint, grant, now()))
        };
        let end = format!(r#""aud":"{endpoint}","iat":{NOW},"exp":{}}}"#, NOW + 300);
        let scopes = ["a".to_owned(), "b".to_owned()];
        let (access, id) = (Grant::AccessToken(&scopes), Grant::IdToken("https://b"));
        let claims = |operation, grant| parts(&assertion(operation, grant).unwrap()).1;
        assert_eq!(claims(Operation::MintAccessToken, access), format!(r#"{{"iss":"a@x","scope":"a b",{end}"#));
        assert_eq!(claims(Operation::MintIdToken, id), format!(r#"{{"iss":"a@x","target_audience":"https://b",{end}"#));
        for (operation, grant) in [
            (Operation::MintIdToken, access),
            (Operation::MintAccessToken, id),
            (Operation::MintAccessToken, Grant::AccessToken(&[])),
            (Operation::MintIdToken, Grant::IdToken("")),
        ] {
            assert!(assertion(operation, grant).is_err(), "{operation} {grant:?}");
        }
    }

    #[test]
    fn lifetimes_are_those_asked_for_or_an_hour_or_the_rules_limit() {
        let target = Target::Audience("b".to_owned());
        let lifetime = |requested, limit| {
            let unsigned = access(&permit(Operation::MintAccessToken, requested, limit), &target)?;
            Ok::<_, InvalidClaims>(unsigned.expires.duration_since(now()).unwrap().as_secs())
        };
        for (requested, limit, expected) in [
            (None, None, 3600),
            (None, Some(60), 60),
            (None, Some(86_400), 3600),
            (Some(1), None, 1),
            (Some(60), Some(60), 60),
            (Some(3600), Some(86_400), 3600),
        ] {
            assert_eq!(lifetime(requested, limit).unwrap(), expected, "{requested:?} {limit:?}");
        }
        for (requested, limit) in [(Some(3601), None), (Some(0), None), (None, Some(0)), (Some(7200), Some(7200))] {
            assert!(
                lifetime(requested, limit).unwrap_err().to_string().starts_with("lifetime: "),
                "{requested:?} {limit:?}"
            );
        }
    }

    #[test]
    fn added_exps_are_brought_within_the_rules_limit_and_chosen_ones_are_kept() {
        let exp = |text: &str, limit| {
            let permit = permit(Operation::SignJwt, None, limit);
            Ok::<_, InvalidClaims>(parts(&of_claims(&permit, &claims(text))?).1)
        };
        assert_eq!(exp(r#"{"k":1}"#, None).unwrap(), format!(r#"{{"k":1,"exp":{}}}"#, NOW + 3600));
        assert_eq!(exp(r#"{"k":1}"#, Some(60)).unwrap(), format!(r#"{{"k":1,"exp":{}}}"#, NOW + 60));
        let chosen = format!(r#"{{"exp":{},"k":1}}"#, NOW + 7200);
        assert_eq!(exp(&chosen, None).unwrap(), chosen);
        assert_eq!(exp(&chosen, Some(7200)).unwrap(), chosen);
        assert!(exp(&chosen, Some(7199)).is_err());
    }

    #[test]
    fn a_permit_is_for_one_operation_and_for_one_account() {
        for operation in Operation::ALL {
            let permit = permit(operation, None, None);
            let minted = access(&permit, &Target::Audience("b".to_owned()));
            assert_eq!(minted.is_ok(), operation == Operation::MintAccessToken);
            assert_eq!(of_claims(&permit, &claims("{}")).is_ok(), operation == Operation::SignJwt);
            let id = signed_by(|header| UnsignedJwt::id_token(&permit, header, "b", true, now()));
            assert_eq!(id.is_ok(), operation == Operation::MintIdToken);
        }
        assert!(of_claims(&permit(Operation::SignJwt, None, None), &claims(r#"{"iss":"b@x"}"#)).is_err());
    }

    #[test]
    fn the_signature_is_appended_and_the_digest_is_of_all_before_it() {
        let unsigned = access(&permit(Operation::MintAccessToken, None, None), &Target::Audience("b".to_owned()));
        let unsigned = unsigned.unwrap();
        let signing_input = unsigned.signing_input.clone();
        assert_eq!(unsigned.digest(), Digest::of(crate::key::Hash::Sha256, signing_input.as_bytes()));
        let jwt = unsigned.into_jwt(&Signature::from_bytes(vec![0xfb, 0xff]));
        assert_eq!(jwt.as_str(), format!("{signing_input}.-_8"));
        assert_eq!(jwt.expires(), now() + MAX_LIFETIME);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

        /// For any input the JWT's identity and header are ours (facts T5).
        #[test]
        fn identity_and_header_are_ours(
            name in "iss|sub|email|alg|kid|typ|jku|crit|b64|x5u|jwk|[a-z]{1,4}",
            value in r#""(a@x|none|HS256|\.\./|[a-z"\\]{0,5})"|1|true|\["b64"\]"#,
            audience in "\\PC{0,12}",
        ) {
            let text = format!("{{\"{name}\":{value}}}");
            let ours = r#"{"alg":"RS256","typ":"JWT","kid":"kid-1"}"#;
            let unsigned = Claims::parse(&text)
                .and_then(|claims| of_claims(&permit(Operation::SignJwt, None, None), &claims));
            if let Ok(unsigned) = unsigned {
                let (header, claims) = parts(&unsigned);
                prop_assert_eq!(header, ours);
                let read: serde_json::Map<String, Value> = serde_json::from_str(&claims).unwrap();
                for own in ["iss", "sub", "email"] {
                    prop_assert!(read.get(own).is_none_or(|value| value == EMAIL));
                }
            }
            let target = Target::Audience(audience.clone());
            if let Ok(unsigned) = access(&permit(Operation::MintAccessToken, None, None), &target) {
                let (header, claims) = parts(&unsigned);
                prop_assert_eq!(header, ours);
                let read: serde_json::Map<String, Value> = serde_json::from_str(&claims).unwrap();
                prop_assert_eq!(read.len(), 5);
                prop_assert_eq!(&read["iss"], EMAIL);
                prop_assert_eq!(&read["aud"], audience.as_str());
            }
        }
    }
}
