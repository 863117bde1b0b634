//! Claims: a JSON object that every parser reads alike.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::json;
use crate::access::{AccountEmail, ClaimValue, JUDGED_CLAIMS, Operation, Request};

/// The claims of a caller: one JSON object, within the limits, without a duplicate member at any depth, its
/// registered members of the right types.
#[derive(Clone, Debug)]
pub struct Claims {
    members: json::Members,
}

impl Claims {
    /// Parses what a caller sent.
    ///
    /// # Errors
    /// [`InvalidClaims`] says what is wrong with it, never what stands in it.
    pub fn parse(text: &str) -> Result<Self, InvalidClaims> {
        let members = json::object(text).map_err(InvalidClaims::whole)?;
        for (name, value) in &members {
            check_member(name, value).map_err(|what| InvalidClaims::of(name, what))?;
        }
        Ok(Self { members })
    }

    /// The members, in their order.
    #[must_use]
    pub fn members(&self) -> &[(String, Value)] {
        &self.members
    }

    /// Every audience: `aud`, each element of it, and `target_audience`.
    #[must_use]
    pub fn audiences(&self) -> Vec<&str> {
        let aud = match self.member("aud") {
            Some(Value::Array(elements)) => elements.iter().filter_map(Value::as_str).collect(),
            aud => aud.and_then(Value::as_str).into_iter().collect::<Vec<_>>(),
        };
        aud.into_iter().chain(self.member("target_audience").and_then(Value::as_str)).collect()
    }

    /// Every scope of `scope`.
    #[must_use]
    pub fn scopes(&self) -> Vec<&str> {
        self.member("scope").and_then(Value::as_str).map(|scope| scope.split(' ').collect()).unwrap_or_default()
    }

    /// Everything but the registered claims that Signet itself judges.
    #[must_use]
    pub fn others(&self) -> Vec<(&str, ClaimValue)> {
        let seen = |value: &Value| match value {
            Value::String(text) => ClaimValue::Text(text.clone()),
            other => ClaimValue::Json(other.to_string()),
        };
        let other = self.members.iter().filter(|(name, _)| !JUDGED_CLAIMS.contains(&name.as_str()));
        other.map(|(name, value)| (name.as_str(), seen(value))).collect()
    }

    /// How long they are good for from `now` on, where the caller chose it by an `exp`.
    #[must_use]
    pub fn lifetime(&self, now: SystemTime) -> Option<Duration> {
        self.number("exp").map(|exp| Duration::from_secs(exp.saturating_sub(seconds(now))))
    }

    /// What policy is asked before they are signed, in whichever rpc they came.
    #[must_use]
    pub fn request<'a>(&'a self, account: &'a AccountEmail, now: SystemTime) -> Request<'a> {
        let (audiences, scopes, claims) = (self.audiences(), self.scopes(), self.others());
        let lifetime = self.lifetime(now);
        Request { audiences, scopes, claims, lifetime, ..Request::new(account, Operation::SignJwt) }
    }

    /// The claims as they are signed for an account: `iss`, `sub`, `email` and their like may only be its own; `exp` is
    /// never past nor over 12 hours ahead. Where the caller chose none, it is this far ahead.
    pub(super) fn for_account(
        mut self,
        account: &AccountEmail,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, InvalidClaims> {
        if self.member("exp").is_none() {
            let exp = seconds(now).saturating_add(lifetime.as_secs());
            self.members.push(("exp".to_owned(), exp.into()));
        }
        for name in OWN {
            if self.member(name).is_some_and(|value| value.as_str() != Some(account.as_str())) {
                return Err(InvalidClaims::of(name, "only the account's own email may stand here"));
            }
        }
        let exp = self.exp();
        if exp <= seconds(now) {
            return Err(InvalidClaims::of("exp", "it is past"));
        }
        if exp - seconds(now) > MAX_AHEAD.as_secs() {
            return Err(InvalidClaims::of("exp", "over 12 hours ahead"));
        }
        for name in ["iat", "nbf"] {
            if self.number(name).is_some_and(|time| time > exp) {
                return Err(InvalidClaims::of(name, "after exp"));
            }
        }
        Ok(self)
    }

    /// `exp`, or 0 where there is none.
    pub(super) fn exp(&self) -> u64 {
        self.number("exp").unwrap_or_default()
    }

    /// The claims as they are signed: compact JSON, the members in their order, those of inner objects sorted.
    pub(super) fn to_json(&self) -> String {
        json::to_text(self.members.iter().map(|(name, value)| (name.as_str(), value)))
    }

    fn member(&self, name: &str) -> Option<&Value> {
        self.members.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.member(name).and_then(Value::as_u64)
    }
}

/// Why claims are not signed. Names the member, never its value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct InvalidClaims {
    /// The claim or the parameter; absent where it is all of them.
    pub member: Option<String>,
    /// What is wrong.
    pub what: String,
}

impl InvalidClaims {
    /// A member is wrong.
    pub(super) fn of(member: &str, what: impl Into<String>) -> Self {
        Self { member: Some(member.escape_debug().to_string()), what: what.into() }
    }

    /// It is not about one member.
    pub(super) fn whole(what: String) -> Self {
        Self { member: None, what }
    }
}

impl fmt::Display for InvalidClaims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(member) = &self.member {
            write!(f, "{member}: ")?;
        }
        f.write_str(&self.what)
    }
}

/// What all verifiers must read alike, since policy judges it.
fn check_member(name: &str, value: &Value) -> Result<(), &'static str> {
    let folded = json::folded(name);
    if name != folded && JUDGED_CLAIMS.iter().chain(&OWN).any(|judged| *judged == folded) {
        return Err("parsers that ignore case take it for a registered claim");
    }
    match (name, value) {
        ("aud", Value::Array(elements)) if elements.is_empty() => Err("an empty array"),
        ("aud", Value::Array(elements)) => {
            elements.iter().try_for_each(|element| check_audience(element.as_str().ok_or("not strings alone")?))
        }
        ("aud" | "target_audience", _) => check_audience(value.as_str().ok_or("not a string")?),
        ("scope", _) => value.as_str().ok_or("not a string")?.split(' ').try_for_each(check_scope),
        ("exp" | "iat" | "nbf", _) if !value.is_u64() => Err("not a whole number of seconds since 1970"),
        ("jti", _) if !value.is_string() => Err("not a string"),
        _ => Ok(()),
    }
}

/// Whether every verifier compares an audience alike: some trim it, some split it.
pub(super) fn check_audience(audience: &str) -> Result<(), &'static str> {
    if audience.is_empty() {
        return Err("an empty audience");
    }
    if audience.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("an audience with white space or control characters");
    }
    if audience.len() > json::MAX_STRING {
        return Err("an audience of over 4096 bytes");
    }
    Ok(())
}

/// Whether a scope is one scope for every server: a scope-token (RFC 6749, 3.3) without a comma, where some split.
pub(super) fn check_scope(scope: &str) -> Result<(), &'static str> {
    if scope.is_empty() {
        return Err("an empty scope, or other than single spaces between scopes");
    }
    if !scope.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"\\,".contains(&byte)) {
        return Err("a scope with white space or characters that no scope has");
    }
    if scope.len() > json::MAX_STRING {
        return Err("a scope of over 4096 bytes");
    }
    Ok(())
}

/// Whole seconds since 1970.
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The claims that say who is speaking. `prn` is `sub` for Google's older token endpoint and its Go library.
const OWN: [&str; 5] = ["iss", "sub", "email", "azp", "prn"];
/// How far ahead `exp` may be, as with IAM's signJwt.
const MAX_AHEAD: Duration = Duration::from_secs(12 * 3600);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::MAX_LIFETIME;
    use super::*;

    const NOW: u64 = 1_790_000_000;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::new(NOW, 999_999_999)
    }

    fn account() -> AccountEmail {
        "a@x".parse().unwrap()
    }

    fn fit(text: &str) -> Result<Claims, InvalidClaims> {
        Claims::parse(text)?.for_account(&account(), MAX_LIFETIME, now())
    }

    fn refusal(text: &str) -> String {
        fit(text).expect_err(text).to_string()
    }

    fn signed(text: &str) -> String {
        fit(text).unwrap().to_json()
    }

    #[test]
    fn what_is_no_single_json_object_is_refused() {
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(16), "]".repeat(16));
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(4097));
        let large = format!("{{\"a\":\"{}\"}}", " ".repeat(16 * 1024));
        for text in ["", " ", "null", "1", "\"a\"", "[]", "[{}]", "{", "{}{}", "{} x", "{}\0", "\u{feff}{}", "{,}"] {
            refusal(text);
        }
        for text in [r#"{"a":1,}"#, r#"{'a':1}"#, "{a:1}", "{\"a\":\"\u{1}\"}", "{\"a\":01}", "{\"a\":NaN}", "{}//"] {
            refusal(text);
        }
        for text in [deep, long, large] {
            refusal(&text);
        }
        let within = format!(
            "{{\"a\":{}1{},\"b\":\"{}\",\"exp\":{}}}",
            "[".repeat(15),
            "]".repeat(15),
            "x".repeat(4096),
            NOW + 1
        );
        assert_eq!(signed(&within), within);
    }

    #[test]
    fn duplicates_are_refused_at_every_depth_and_through_escapes_and_case() {
        for text in [
            r#"{"sub":"a@x","sub":"a@x"}"#,
            r#"{"sub":"a@x","\u0073ub":"b@x"}"#,
            r#"{"o":[{"k":1,"k":2}]}"#,
            r#"{"o":{"k":1,"\u006b":2}}"#,
            r#"{"role":1,"Role":2}"#,
            "{\"k\":1,\"\u{212a}\":2}",
        ] {
            assert!(refusal(text).contains("stands there twice"), "{text}");
        }
        for text in
            [r#"{"AUD":"x"}"#, r#"{"Iss":"b@x"}"#, "{\"i\u{17f}s\":\"b@x\"}", r#"{"SCOPE":"x"}"#, r#"{"Azp":"b"}"#]
        {
            assert!(refusal(text).contains("ignore case"), "{text}");
        }
        assert!(refusal(r#"{"__proto__":{"aud":"x"}}"#).starts_with("__proto__:"));
    }

    #[test]
    fn numbers_that_parsers_differ_on_are_refused_by_name() {
        for number in ["1.0", "1e2", "1e400", "-1e400", "99999999999999999999999", "9007199254740992", "-0", "0.1"] {
            for text in [format!(r#"{{"exp":{number}}}"#), format!(r#"{{"exp":{{"exp":[{number}]}}}}"#)] {
                let refused = refusal(&text);
                assert!(refused.starts_with("exp: "), "{refused}");
                assert!(!refused.contains(number), "{refused}");
            }
        }
        assert_eq!(
            signed(&format!(r#"{{"n":-9007199254740991,"exp":{}}}"#, NOW + 1)),
            format!(r#"{{"n":-9007199254740991,"exp":{}}}"#, NOW + 1)
        );
    }

    #[test]
    fn strings_that_parsers_differ_on_are_refused_by_name() {
        for string in [r"\ud800", r"\udc00", r"\ud800\ud800", r"secret\u0000", r"\u00", r"\x"] {
            let refused = refusal(&format!(r#"{{"nonce":"{string}"}}"#));
            assert!(refused.starts_with("nonce: "), "{refused}");
            assert!(!refused.contains("secret"), "{refused}");
        }
        let odd = refusal("{\"a\\u001b[31m\\u0000\":1}");
        assert!(!odd.contains('\u{1b}'), "{odd:?}");
    }

    #[test]
    fn times_are_whole_and_in_order() {
        let hours = 3600;
        for (text, expected) in [
            (r#"{"exp":"1790000100"}"#.to_owned(), "exp: not a whole"),
            (r#"{"exp":-1}"#.to_owned(), "exp: not a whole"),
            (r#"{"exp":null}"#.to_owned(), "exp: not a whole"),
            (r#"{"iat":"x"}"#.to_owned(), "iat: not a whole"),
            (r#"{"nbf":true}"#.to_owned(), "nbf: not a whole"),
            (r#"{"exp":0}"#.to_owned(), "exp: it is past"),
            (format!(r#"{{"exp":{NOW}}}"#), "exp: it is past"),
            (format!(r#"{{"exp":{}}}"#, NOW + 12 * hours + 1), "exp: over 12 hours"),
            (format!(r#"{{"exp":{},"iat":{}}}"#, NOW + 5, NOW + 6), "iat: after exp"),
            (format!(r#"{{"exp":{},"nbf":{}}}"#, NOW + 5, NOW + 6), "nbf: after exp"),
            (format!(r#"{{"nbf":{}}}"#, NOW + hours + 1), "nbf: after exp"),
        ] {
            assert!(refusal(&text).starts_with(expected), "{text}: {}", refusal(&text));
        }
        signed(&format!(r#"{{"exp":{},"iat":0,"nbf":{}}}"#, NOW + 12 * hours, NOW + 12 * hours));
    }

    #[test]
    fn exp_is_added_where_the_caller_chose_none() {
        assert_eq!(signed("{}"), format!(r#"{{"exp":{}}}"#, NOW + 3600));
        assert_eq!(Claims::parse("{}").unwrap().lifetime(now()), None);
        let chosen = Claims::parse(&format!(r#"{{"exp":{}}}"#, NOW + 60)).unwrap();
        assert_eq!(chosen.lifetime(now()), Some(Duration::from_secs(60)));
    }

    #[test]
    fn nobody_else_speaks() {
        for name in OWN {
            for value in [r#""b@x""#, r#""""#, "null", "1", r#"["a@x"]"#, r#"{"a@x":1}"#, r#""a@x ""#, r#""A@x""#] {
                assert!(refusal(&format!(r#"{{"{name}":{value}}}"#)).starts_with(name), "{name} {value}");
            }
            signed(&format!(r#"{{"{name}":"a@x"}}"#));
        }
    }

    #[test]
    fn every_claim_that_carries_authority_is_shown_to_policy() {
        let text = r#"{"aud":["https://a/","b"],"target_audience":"c","scope":"s t","Role":"admin","n":[1,"x"],"azp":"a@x","jti":"j","exp":1790000060}"#;
        let claims = Claims::parse(text).unwrap();
        let names: Vec<_> = claims.members().iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["aud", "target_audience", "scope", "Role", "n", "azp", "jti", "exp"]);
        let account = account();
        let request = claims.request(&account, now());
        assert_eq!(request.operation, Operation::SignJwt);
        assert_eq!(request.lifetime, Some(Duration::from_secs(60)));
        assert_eq!(request.audiences, ["https://a/", "b", "c"]);
        assert_eq!(request.scopes, ["s", "t"]);
        let text = |text: &str| ClaimValue::Text(text.to_owned());
        let array = ClaimValue::Json(r#"[1,"x"]"#.to_owned());
        assert_eq!(request.claims, [("Role", text("admin")), ("n", array), ("azp", text("a@x"))]);
        assert_eq!(Claims::parse(r#"{"aud":"one"}"#).unwrap().audiences(), ["one"]);
    }

    #[test]
    fn audiences_and_scopes_that_verifiers_differ_on_are_refused() {
        for value in [
            "1",
            "null",
            "{}",
            "[]",
            "[1]",
            r#"["a",["b"]]"#,
            r#""""#,
            r#"[""]"#,
            r#""a b""#,
            r#"" a""#,
            r#""a\n""#,
            "\"a\u{a0}\"",
        ] {
            assert!(refusal(&format!(r#"{{"aud":{value}}}"#)).starts_with("aud: "), "{value}");
            assert!(refusal(&format!(r#"{{"target_audience":{value}}}"#)).starts_with("target_audience: "), "{value}");
        }
        assert!(refusal(r#"{"target_audience":["a"]}"#).starts_with("target_audience: "));
        for value in [
            "1",
            "null",
            r#"["s"]"#,
            r#""""#,
            r#"" s""#,
            r#""s ""#,
            r#""s  t""#,
            r#""s\tt""#,
            r#""s,t""#,
            r#""s\u00a0t""#,
        ] {
            assert!(refusal(&format!(r#"{{"scope":{value}}}"#)).starts_with("scope: "), "{value}");
        }
        assert!(refusal(r#"{"jti":{"a":1}}"#).starts_with("jti: "));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever is signed is the account's own, within 12 hours, and reads alike when it is read again.
        #[test]
        fn whatever_is_signed_is_fit(text in r#"\{("(iss|sub|aud|exp|iat|k|\\u0073ub)":(1|1790000100|1e3|null|"a@x"|"b@x"|\[\]|\["q"\]|\{"z":1,"y":2\}),?){0,4}\}"#) {
            let Ok(claims) = fit(&text) else { return Ok(()) };
            let json = claims.to_json();
            let read: serde_json::Map<String, Value> = serde_json::from_str(&json).unwrap();
            for name in OWN {
                prop_assert!(read.get(name).is_none_or(|value| value == "a@x"));
            }
            let exp = read["exp"].as_u64().unwrap();
            prop_assert!(exp > NOW && exp <= NOW + 12 * 3600);
            prop_assert_eq!(Claims::parse(&json).unwrap().to_json(), json);
        }
    }
}
