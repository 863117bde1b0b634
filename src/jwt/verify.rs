//! The receiving half: whether a JWT was signed by one of somebody's published keys, and is meant for here and now.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use serde_json::Value;

use super::{certificate, claims, json};
use crate::key::{Algorithm, PublicKey, PublicNumbers};

/// What a verifier demands besides a good signature and valid times.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expected<'a> {
    /// An audience that `aud` must hold.
    pub audience: Option<&'a str>,
    /// What `iss` must be.
    pub issuer: Option<&'a str>,
    /// How far clocks may differ.
    pub leeway: Duration,
}

/// A JWT that verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The key that signed it.
    pub kid: String,
    /// The algorithm that it signed with.
    pub algorithm: Algorithm,
    /// The claims: a JSON object without duplicate members, as it was signed.
    pub claims: String,
}

/// Why a JWT does not verify. The text holds nothing that the JWT's sender chose but names, escaped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unverified {
    /// The keys to verify with can't be read: it says nothing of the JWT.
    #[error("the keys: {0}")]
    Keys(String),
    /// It is no JWT.
    #[error("{0}")]
    NoJwt(String),
    /// The JWT is not to be believed.
    #[error("{0}")]
    Rejected(String),
    /// The JWT is good, and meant for others or by others than was demanded.
    #[error("{0}")]
    Unmeant(String),
}

/// Verifies a JWT with the keys of a JWKS (RFC 7517) or of a map from kid to PEM certificate, whichever `keys` is.
///
/// # Errors
/// [`Unverified`].
pub fn verify(jwt: &str, keys: &str, expected: &Expected<'_>, now: SystemTime) -> Result<Verified, Unverified> {
    let keys = serde_json::from_str(keys).map_err(|error| Unverified::Keys(format!("not JSON: {error}")))?;
    let rejected = |what: &str| Unverified::Rejected(what.to_owned());
    let no_jwt = || Unverified::NoJwt("it is no JWT: it has no three parts".to_owned());
    let (message, signature) = jwt.rsplit_once('.').ok_or_else(no_jwt)?;
    let (header, payload) = message.split_once('.').ok_or_else(no_jwt)?;
    let (_, header) = object("header", header)?;
    let (algorithm, kid) = signer(&header)?;
    let key = find(&keys, &kid, algorithm, expected.leeway, now)?;
    let good = jsonwebtoken::crypto::verify(signature, message.as_bytes(), &decoding_key(&key)?, theirs(algorithm));
    // A malformed signature is as bad as a wrong one.
    if !good.unwrap_or(false) {
        return Err(rejected("the signature does not verify"));
    }
    let (claims, members) = object("claims", payload)?;
    check_times(&members, expected.leeway, now)?;
    check_parties(&members, expected)?;
    Ok(Verified { kid, algorithm, claims })
}

fn object(name: &str, part: &str) -> Result<(String, json::Members), Unverified> {
    let no_jwt = |what: &str| Unverified::NoJwt(format!("{name}: {what}"));
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_malformed| no_jwt("not base64url"))?;
    let text = String::from_utf8(bytes).map_err(|_malformed| no_jwt("not UTF-8"))?;
    let members = json::object(&text).map_err(|what| no_jwt(&what))?;
    Ok((text, members))
}

/// What the header says of the signature. Nothing of it is believed but which key and algorithm to try.
fn signer(header: &json::Members) -> Result<(Algorithm, String), Unverified> {
    let rejected = |what: String| Unverified::Rejected(what);
    if member(header, "crit").is_some() || member(header, "b64").is_some() {
        return Err(rejected("the header demands extensions (crit, b64) that are not supported".to_owned()));
    }
    let alg =
        member(header, "alg").and_then(Value::as_str).ok_or_else(|| rejected("the header has no alg".to_owned()))?;
    let algorithm = alg.parse().map_err(|_unknown| {
        let known = Algorithm::ALL.map(Algorithm::name).join(", ");
        rejected(format!("the algorithm {:?} is not accepted, only {known}", shortened(alg)))
    })?;
    let kid = member(header, "kid").and_then(Value::as_str);
    let kid = kid.ok_or_else(|| rejected("the header names no key (kid)".to_owned()))?;
    Ok((algorithm, kid.to_owned()))
}

fn find(
    keys: &Value,
    kid: &str,
    algorithm: Algorithm,
    leeway: Duration,
    now: SystemTime,
) -> Result<PublicKey, Unverified> {
    let unknown = || Unverified::Rejected(format!("the key {:?} is not among the published ones", shortened(kid)));
    let unusable = |what: &dyn std::fmt::Display| Unverified::Keys(format!("the key {kid:?}: {what}"));
    let key = if let Some(Value::Array(jwks)) = keys.get("keys") {
        let jwk = jwks.iter().find(|jwk| jwk.get("kid").and_then(Value::as_str) == Some(kid)).ok_or_else(unknown)?;
        let differs = |name: &str, wanted: &str| jwk.get(name).is_some_and(|value| value != wanted);
        if differs("alg", algorithm.name()) || differs("use", "sig") {
            return Err(Unverified::Rejected(format!(
                "the key {:?} is not for {algorithm} signatures",
                shortened(kid)
            )));
        }
        jwk_key(jwk).map_err(|what| unusable(&what))?
    } else {
        let map =
            keys.as_object().ok_or_else(|| Unverified::Keys("neither a JWKS nor a map of certificates".to_owned()))?;
        let pem = map.get(kid).ok_or_else(unknown)?.as_str().ok_or_else(|| unusable(&"not a PEM certificate"))?;
        let (not_before, not_after) = certificate::validity(pem).map_err(|error| unusable(&error))?;
        if now + leeway < not_before || not_after + leeway < now {
            return Err(Unverified::Rejected(format!("the certificate of {:?} is not valid now", shortened(kid))));
        }
        certificate::public_key(pem).map_err(|error| unusable(&error))?
    };
    if key.key_type() != algorithm.key_type() {
        return Err(Unverified::Rejected(format!("the key {:?} is not for {algorithm} signatures", shortened(kid))));
    }
    Ok(key)
}

fn jwk_key(jwk: &Value) -> Result<PublicKey, String> {
    let number = |name: &str| {
        let text = jwk.get(name).and_then(Value::as_str).ok_or_else(|| format!("it has no {name}"))?;
        URL_SAFE_NO_PAD.decode(text).map_err(|_malformed| format!("its {name} is not base64url"))
    };
    let coordinate = |name: &str| number(name)?.try_into().map_err(|_bytes| format!("its {name} is not 32 bytes long"));
    let numbers = match jwk.get("kty").and_then(Value::as_str) {
        Some("RSA") => PublicNumbers::Rsa { modulus: number("n")?, exponent: number("e")? },
        Some("EC") if jwk.get("crv").is_some_and(|curve| curve == "P-256") => {
            PublicNumbers::EcP256 { x: coordinate("x")?, y: coordinate("y")? }
        }
        _ => return Err("neither RSA nor EC on P-256".to_owned()),
    };
    PublicKey::from_numbers(&numbers).map_err(|error| error.to_string())
}

fn decoding_key(key: &PublicKey) -> Result<DecodingKey, Unverified> {
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    match key.numbers() {
        PublicNumbers::Rsa { modulus, exponent } => Ok(DecodingKey::from_rsa_raw_components(modulus, exponent)),
        PublicNumbers::EcP256 { x, y } => {
            DecodingKey::from_ec_components(&encode(x), &encode(y)).map_err(|error| Unverified::Keys(error.to_string()))
        }
    }
}

const fn theirs(algorithm: Algorithm) -> jsonwebtoken::Algorithm {
    match algorithm {
        Algorithm::Rs256 => jsonwebtoken::Algorithm::RS256,
        Algorithm::Rs384 => jsonwebtoken::Algorithm::RS384,
        Algorithm::Rs512 => jsonwebtoken::Algorithm::RS512,
        Algorithm::Ps256 => jsonwebtoken::Algorithm::PS256,
        Algorithm::Es256 => jsonwebtoken::Algorithm::ES256,
    }
}

fn check_times(members: &json::Members, leeway: Duration, now: SystemTime) -> Result<(), Unverified> {
    let (now, leeway) = (claims::seconds(now), leeway.as_secs());
    let time = |name: &str| match member(members, name) {
        None => Ok(None),
        Some(value) => {
            let seconds = value.as_u64().map(Some);
            seconds.ok_or_else(|| Unverified::Rejected(format!("{name}: not a whole number of seconds since 1970")))
        }
    };
    let exp = time("exp")?.ok_or_else(|| Unverified::Rejected("exp: it is missing".to_owned()))?;
    if exp.saturating_add(leeway) <= now {
        return Err(Unverified::Rejected(format!("exp: it expired {} s ago", now - exp)));
    }
    for name in ["nbf", "iat"] {
        if let Some(ahead) =
            time(name)?.and_then(|time| time.checked_sub(now.saturating_add(leeway))).filter(|s| *s > 0)
        {
            return Err(Unverified::Rejected(format!("{name}: {} s ahead", ahead + leeway)));
        }
    }
    Ok(())
}

fn check_parties(members: &json::Members, expected: &Expected<'_>) -> Result<(), Unverified> {
    if let Some(issuer) = expected.issuer
        && member(members, "iss").and_then(Value::as_str) != Some(issuer)
    {
        return Err(Unverified::Unmeant("iss: not the expected issuer".to_owned()));
    }
    let named = |audience: &str| match member(members, "aud") {
        Some(Value::Array(audiences)) => audiences.iter().any(|one| one == audience),
        aud => aud.is_some_and(|one| one == audience),
    };
    if expected.audience.is_some_and(|audience| !named(audience)) {
        return Err(Unverified::Unmeant("aud: not for the expected audience".to_owned()));
    }
    Ok(())
}

fn member<'a>(members: &'a json::Members, name: &str) -> Option<&'a Value> {
    members.iter().find(|(known, _)| known == name).map(|(_, value)| value)
}

fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::{self, EcdsaKeyPair, KeyPair as _, RsaKeyPair};
    use serde_json::json;

    use super::*;
    use crate::jwt::jwk::{self, PublishedKey};
    use crate::key::{KeyId, Signature};

    const NOW: u64 = 1_790_000_000;

    struct Key {
        rsa: RsaKeyPair,
        ec: EcdsaKeyPair,
    }

    impl Key {
        fn new() -> Self {
            let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
            Self { rsa, ec: EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING).unwrap() }
        }

        fn public(&self, algorithm: Algorithm) -> PublicKey {
            let point = self.ec.public_key().as_ref();
            PublicKey::from_numbers(&match algorithm {
                Algorithm::Es256 => {
                    PublicNumbers::EcP256 { x: point[1..33].try_into().unwrap(), y: point[33..].try_into().unwrap() }
                }
                _ => PublicNumbers::Rsa {
                    modulus: self.rsa.public_key().modulus().big_endian_without_leading_zero().to_vec(),
                    exponent: self.rsa.public_key().exponent().big_endian_without_leading_zero().to_vec(),
                },
            })
            .unwrap()
        }

        fn sign(&self, algorithm: Algorithm, message: &[u8]) -> Vec<u8> {
            let encoding: &dyn signature::RsaEncoding = match algorithm {
                Algorithm::Rs256 => &signature::RSA_PKCS1_SHA256,
                Algorithm::Rs384 => &signature::RSA_PKCS1_SHA384,
                Algorithm::Rs512 => &signature::RSA_PKCS1_SHA512,
                Algorithm::Ps256 => &signature::RSA_PSS_SHA256,
                Algorithm::Es256 => return self.ec.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec(),
            };
            let mut signature = vec![0; self.rsa.public_modulus_len()];
            self.rsa.sign(encoding, &SystemRandom::new(), message, &mut signature).unwrap();
            signature
        }

        fn jwt(&self, algorithm: Algorithm, header: &str, claims: &str) -> String {
            let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
            let signature = URL_SAFE_NO_PAD.encode(self.sign(algorithm, message.as_bytes()));
            format!("{message}.{signature}")
        }

        fn published(&self, algorithm: Algorithm, kid: &str) -> (String, String) {
            let (kid, public_key): (KeyId, _) = (kid.parse().unwrap(), self.public(algorithm));
            let profile = certificate::Profile {
                common_name: "unused",
                not_before: now() - Duration::from_secs(1000),
                validity: Duration::from_secs(2000),
                serial: [1; 16],
            };
            // Nobody checks the signature of a certificate that is its own trust.
            let unsigned = |_digest: &_| Ok(Signature::from_bytes(vec![1; 64]));
            let pem = certificate::self_signed(&public_key, algorithm, &profile, unsigned).unwrap();
            let keys = [PublishedKey { kid: &kid, algorithm, public_key: &public_key, certificate: &pem }];
            (jwk::jwks(&keys), jwk::x509_map(&keys))
        }
    }

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(NOW)
    }

    fn header(alg: &str) -> String {
        json!({"alg": alg, "kid": "k", "typ": "JWT"}).to_string()
    }

    fn claims() -> String {
        json!({"iss": "a@x", "aud": ["b", "c"], "iat": NOW, "nbf": NOW, "exp": NOW + 60}).to_string()
    }

    fn rejection(jwt: &str, keys: &str, expected: &Expected<'_>) -> String {
        match verify(jwt, keys, expected, now()) {
            Err(Unverified::NoJwt(what) | Unverified::Rejected(what) | Unverified::Unmeant(what)) => what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_algorithm_verifies_with_either_kind_of_keys() {
        let key = Key::new();
        for algorithm in Algorithm::ALL {
            let jwt = key.jwt(algorithm, &header(algorithm.name()), &claims());
            let (jwks, map) = key.published(algorithm, "k");
            for keys in [jwks, map] {
                let expected = Expected { audience: Some("c"), issuer: Some("a@x"), ..Expected::default() };
                let verified = verify(&jwt, &keys, &expected, now()).unwrap();
                assert_eq!(verified, Verified { kid: "k".to_owned(), algorithm, claims: claims() });
                for (place, _) in jwt.char_indices().filter(|(place, _)| place % 37 == 0) {
                    let mut tampered = jwt.clone().into_bytes();
                    tampered[place] = if tampered[place] == b'A' { b'B' } else { b'A' };
                    rejection(&String::from_utf8(tampered).unwrap(), &keys, &Expected::default());
                }
            }
        }
    }

    #[test]
    fn no_other_algorithm_key_or_header_is_taken() {
        let key = Key::new();
        let (jwks, map) = key.published(Algorithm::Rs256, "k");
        for (header, expected) in [
            (header("none"), "is not accepted"),
            (header("HS256"), "is not accepted"),
            (header("rs256"), "is not accepted"),
            (header("ES256"), "not for ES256"),
            (r#"{"typ":"JWT","kid":"k"}"#.to_owned(), "no alg"),
            (r#"{"alg":"RS256"}"#.to_owned(), "no key (kid)"),
            (r#"{"alg":"RS256","kid":"other"}"#.to_owned(), "not among the published"),
            (r#"{"alg":"RS256","kid":"k","crit":["b64"],"b64":false}"#.to_owned(), "extensions"),
            (r#"{"alg":"RS256","kid":"k","\u0061lg":"none"}"#.to_owned(), "twice"),
            ("{} ".to_owned(), "no alg"),
        ] {
            let jwt = key.jwt(Algorithm::Rs256, &header, &claims());
            for keys in [&jwks, &map] {
                let what = rejection(&jwt, keys, &Expected::default());
                assert!(what.contains(expected), "{header}: {what}");
            }
        }
        // The classic: the public key taken as an HMAC secret, and no signature at all.
        let (head, payload) = (URL_SAFE_NO_PAD.encode(header("none")), URL_SAFE_NO_PAD.encode(claims()));
        for jwt in [format!("{head}.{payload}."), format!("{head}.{payload}"), "".to_owned(), "..".to_owned()] {
            rejection(&jwt, &jwks, &Expected::default());
        }
        let pss = key.jwt(Algorithm::Ps256, &header("PS256"), &claims());
        assert!(rejection(&pss, &jwks, &Expected::default()).contains("not for PS256"));
        let another = Key::new().jwt(Algorithm::Rs256, &header("RS256"), &claims());
        assert!(rejection(&another, &jwks, &Expected::default()).contains("does not verify"));
    }

    #[test]
    fn times_audience_and_issuer_are_checked() {
        let key = Key::new();
        let (jwks, _map) = key.published(Algorithm::Rs256, "k");
        let jwt = |claims: Value| key.jwt(Algorithm::Rs256, &header("RS256"), &claims.to_string());
        let leeway = Expected { leeway: Duration::from_secs(10), ..Expected::default() };
        for (claims, name) in [
            (json!({"exp": NOW}), "exp"),
            (json!({"exp": NOW + 60, "nbf": NOW + 5}), "nbf"),
            (json!({"exp": NOW + 60, "iat": NOW + 5}), "iat"),
        ] {
            assert!(rejection(&jwt(claims.clone()), &jwks, &Expected::default()).starts_with(name));
            verify(&jwt(claims), &jwks, &leeway, now()).unwrap();
        }
        for (claims, name) in [
            (json!({}), "exp: it is missing"),
            (json!({"exp": NOW - 10}), "exp: it expired 10 s ago"),
            (json!({"exp": (NOW + 60).to_string()}), "exp: not a whole"),
            (json!({"exp": NOW + 60, "nbf": NOW + 11}), "nbf: 11 s ahead"),
            (json!({"exp": NOW + 60, "iat": -1}), "iat: not a whole"),
        ] {
            let what = rejection(&jwt(claims), &jwks, &leeway);
            assert!(what.starts_with(name), "{what}");
        }
        let doubled = key.jwt(Algorithm::Rs256, &header("RS256"), &format!(r#"{{"exp":{NOW},"exp":{}}}"#, NOW + 60));
        assert!(rejection(&doubled, &jwks, &leeway).contains("twice"));
        for aud in [json!("other"), json!(["other"]), json!([["b"]]), json!({"b": "b"}), json!(null)] {
            let expected = Expected { audience: Some("b"), ..leeway };
            let what = rejection(&jwt(json!({"exp": NOW + 60, "aud": aud})), &jwks, &expected);
            assert!(what.starts_with("aud:"), "{what}");
        }
        for iss in [json!("other"), json!(["a@x"]), json!(null)] {
            let expected = Expected { issuer: Some("a@x"), ..leeway };
            let what = rejection(&jwt(json!({"exp": NOW + 60, "iss": iss})), &jwks, &expected);
            assert!(what.starts_with("iss:"), "{what}");
        }
    }

    #[test]
    fn unusable_keys_are_told_apart_from_bad_jwts() {
        let key = Key::new();
        let jwt = key.jwt(Algorithm::Rs256, &header("RS256"), &claims());
        for keys in [
            "",
            "[]",
            "1",
            r#"{"k":1}"#,
            r#"{"k":"PEM"}"#,
            r#"{"keys":[{"kid":"k"}]}"#,
            r#"{"keys":[{"kid":"k","kty":"RSA","n":"AQ","e":"AQAB"}]}"#,
        ] {
            let result = verify(&jwt, keys, &Expected::default(), now());
            assert!(matches!(result, Err(Unverified::Keys(_))), "{keys}: {result:?}");
        }
        let (_jwks, map) = key.published(Algorithm::Rs256, "k");
        for late in [now() + Duration::from_secs(2000), now() - Duration::from_secs(2000)] {
            let result = verify(&jwt, &map, &Expected::default(), late);
            assert!(
                matches!(result, Err(Unverified::Rejected(ref what)) if what.contains("certificate")),
                "{result:?}"
            );
        }
    }

    #[test]
    fn raw_keys_are_of_rsa_alone() {
        let key = Key::new();
        let (rsa, ec) = (key.public(Algorithm::Rs256), key.public(Algorithm::Es256));
        let kid: KeyId = "k".parse().unwrap();
        let published = |public_key, algorithm| PublishedKey { kid: &kid, algorithm, public_key, certificate: "" };
        let raw = jwk::raw(&[published(&rsa, Algorithm::Rs256), published(&ec, Algorithm::Es256)]);
        let raw: Value = serde_json::from_str(&raw).unwrap();
        assert_eq!(raw["keyvalues"].as_array().unwrap().len(), 1);
        assert_eq!(raw["keyvalues"][0]["exponent"], "AQAB");
    }
}
