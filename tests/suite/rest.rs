//! The IAM Credentials API as REST, and public keys over HTTP.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use signet::proto;

use crate::signing::over_http;
use crate::support::daemon::{ACCOUNT, TestDaemon};
use crate::support::eventually;
use crate::support::http::{Answer, BEARER, send, send_as};

const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

fn post(address: SocketAddr, verb: &str, body: &str) -> Answer {
    let line = format!("POST /v1/projects/-/serviceAccounts/{ACCOUNT}:{verb}");
    send(address, &line, &[BEARER, "Content-Type: application/json"], body)
}

fn good(address: SocketAddr, verb: &str, body: &Value) -> Value {
    let answer = post(address, verb, &body.to_string());
    assert_eq!((answer.status, answer.header("cache-control")), (200, Some("no-store")), "{verb} {body}: {answer:?}");
    answer.json()
}

/// The claims of a JWT whose signature is the key's.
fn verified(daemon: &TestDaemon, jwt: &Value) -> Value {
    daemon.claims("k", jwt.as_str().unwrap())
}

#[tokio::test]
async fn the_four_methods_answer_as_googles_clients_read_it() {
    let Some((_token, daemon, address)) = over_http(|config| config).await else { return };
    // Python: an absent list is null, and truth values are text.
    let token =
        good(address, "generateAccessToken", &json!({"delegates": null, "scope": [SCOPE], "lifetime": "3600s"}));
    assert_eq!(verified(&daemon, &token["accessToken"])["scope"], SCOPE);
    let expires = token["expireTime"].as_str().unwrap();
    assert!(
        expires.len() == "2026-01-01T00:00:00Z".len() && expires.ends_with('Z'),
        "Python reads no decimals: {expires}"
    );
    for include in [json!("true"), json!(true), json!("True")] {
        let asked = json!({"audience": "https://a.example", "includeEmail": include, "useEmailAzp": "true"});
        let claims = verified(&daemon, &good(address, "generateIdToken", &asked)["token"]);
        assert_eq!(
            (&claims["aud"], &claims["email"], &claims["email_verified"]),
            (&json!("https://a.example"), &json!(ACCOUNT), &json!(true))
        );
    }
    let without = good(address, "generateIdToken", &json!({"audience": "a", "includeEmail": "false"}));
    assert_eq!(verified(&daemon, &without["token"]).get("email_verified"), None);
    let blob = b"GOOG4-RSA-SHA256\n\xfb\xff\xfe";
    for encoded in [STANDARD.encode(blob), URL_SAFE_NO_PAD.encode(blob)] {
        let signed = good(address, "signBlob?alt=json", &json!({"delegates": [], "payload": encoded}));
        assert_eq!(signed["keyId"], "k");
        daemon.verify("k", blob, &STANDARD.decode(signed["signedBlob"].as_str().unwrap()).unwrap());
    }
    let signed = good(address, "signJwt", &json!({"payload": json!({"aud": "a", "role": "r"}).to_string()}));
    let claims = verified(&daemon, &signed["signedJwt"]);
    assert_eq!((&signed["keyId"], &claims["role"]), (&json!("k"), &json!("r")));

    let form = "audience=https%3A%2F%2Fa.example&includeEmail=true";
    let line = format!("POST /v1/projects/-/serviceAccounts/{}:generateIdToken", ACCOUNT.replace('@', "%40"));
    let answer = send(address, &line, &[BEARER, "Content-Type: application/x-www-form-urlencoded"], form);
    assert_eq!(verified(&daemon, &answer.json()["token"])["aud"], "https://a.example");
    let line = format!("GET /v1/projects/-/serviceAccounts/{ACCOUNT}/allowedLocations");
    let locations = send(address, &line, &[BEARER], "");
    assert_eq!((locations.status, locations.json()), (200, json!({"encodedLocations": "0x0", "locations": []})));
}

#[tokio::test]
async fn what_is_no_method_and_who_is_not_allowed_are_told_apart() {
    let Some((_token, _daemon, address)) = over_http(|config| config).await else { return };
    for (line, status) in [
        (format!("POST /v1/projects/project/serviceAccounts/{ACCOUNT}:signBlob"), 400),
        (format!("POST /v1/projects/-/serviceAccounts/{ACCOUNT}"), 404),
        (format!("GET /v1/projects/-/serviceAccounts/{ACCOUNT}:signBlob"), 405),
        (format!("PUT /v1/projects/-/serviceAccounts/{ACCOUNT}:signBlob"), 405),
    ] {
        assert_eq!(send(address, &line, &[BEARER], "{}").status, status, "{line}");
    }
    if nix::unistd::geteuid().is_root() {
        let line = format!("POST /v1/projects/-/serviceAccounts/{ACCOUNT}:signBlob");
        let denied = send_as(4711, address, &line, &[BEARER, "Content-Length: 0"]);
        assert_eq!((denied.status, &denied.json()["error"]["status"]), (403, &json!("PERMISSION_DENIED")));
        assert_eq!(denied.json()["error"]["details"][0]["reason"], "NOT_ALLOWED");
    }
}

#[tokio::test]
async fn metrics_tell_what_was_asked_and_made_and_nothing_of_a_callers() {
    let Some((_token, _daemon, address)) = over_http(|config| config).await else { return };
    let token = json!({"scope": [SCOPE]});
    for _ in 0..3 {
        good(address, "generateAccessToken", &token);
    }
    good(address, "signBlob", &json!({"payload": "aGVsbG8"}));
    let line = "POST /v1/projects/-/serviceAccounts/somebody@secret.example:signBlob";
    assert_eq!(send(address, line, &[BEARER], "{}").status, 403);
    let metrics = send(address, "GET /metrics", &[], "");
    assert_eq!(metrics.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    let text = &metrics.body;
    for line in [
        r#"signet_requests_total{operation="mint-access-token",outcome="OK"} 3"#,
        r#"signet_requests_total{operation="sign-blob",outcome="OK"} 1"#,
        r#"signet_requests_total{operation="sign-blob",outcome="NOT_ALLOWED"} 1"#,
        r#"signet_request_duration_seconds_count{operation="mint-access-token"} 3"#,
        r#"signet_signature_duration_seconds_count{device="hsm",operation="mint-access-token"} 1"#,
        r#"signet_signature_duration_seconds_count{device="hsm",operation="sign-blob"} 1"#,
        "signet_cache_hits_total 2",
        "signet_cache_misses_total 1",
        "signet_cache_stale_total 0",
        r#"signet_device_generations_total{device="hsm"} 1"#,
        r#"signet_device_queue{device="hsm"} 0"#,
        r#"signet_device_up{device="hsm"} 1"#,
        "signet_can_sign 1",
    ] {
        assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
    }
    let expiry = text
        .lines()
        .find_map(|line| line.strip_prefix(r#"signet_key_expiry_timestamp_seconds{kid="k",device="hsm"} "#));
    let expiry: u64 = expiry.unwrap().parse().unwrap();
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert!((now..now + 40 * 365 * 86_400).contains(&expiry), "{expiry}");
    assert!(text.ends_with("# EOF\n") && !text.contains("secret.example"), "{text}");
}

#[tokio::test]
async fn the_issuer_that_is_discovered_may_be_configured() {
    let issuer = "https://keys.example";
    let configured = |config: String| config.replace("http = ", &format!("issuer = {issuer:?}\nhttp = "));
    let Some((_token, _daemon, address)) = over_http(configured).await else { return };
    assert_eq!(send(address, "GET /.well-known/openid-configuration", &[], "").json()["issuer"], issuer);
}

#[tokio::test]
async fn public_keys_are_for_everybody_and_may_be_kept() {
    let Some((_token, daemon, address)) = over_http(|config| config).await else { return };
    daemon.signetctl(&["key", "generate", "--device", "hsm", "--kid", "next"]);
    daemon.wait_for_log("took the keyring");
    let get = |path: &str| send(address, &format!("GET {path}"), &[], "");
    let encoded = ACCOUNT.replace('@', "%40");
    let pem = std::fs::read_to_string(daemon.state().join("certificates/k.pem")).unwrap();
    for path in [format!("/robot/v1/metadata/x509/{encoded}"), format!("/service_accounts/v1/metadata/x509/{ACCOUNT}")]
    {
        let map = get(&path);
        assert_eq!(map.json()["k"], pem, "{path}");
        assert!(map.json()["next"].is_string(), "a prepared key is published");
        assert_eq!(map.header("cache-control"), Some("public, max-age=900"));
    }
    let jwks = get(&format!("/service_accounts/v1/jwk/{ACCOUNT}"));
    assert_eq!(jwks.json(), get(&format!("/service_accounts/v1/metadata/jwk/{ACCOUNT}")).json());
    let kids: Vec<_> = jwks.json()["keys"].as_array().unwrap().iter().map(|key| key["kid"].clone()).collect();
    assert_eq!(kids, ["k", "next"]);
    assert!(!jwks.json()["keys"][0]["n"].as_str().unwrap().contains(['=', '+', '/']));
    let raw = get(&format!("/service_accounts/v1/metadata/raw/{ACCOUNT}"));
    assert_eq!(raw.json()["keyvalues"][0]["keyid"], "k");
    let discovery = get("/.well-known/openid-configuration").json();
    assert_eq!(discovery["issuer"], ACCOUNT);
    assert_eq!(discovery["jwks_uri"], format!("http://{address}/service_accounts/v1/jwk/{ACCOUNT}"));
    assert_eq!(discovery["id_token_signing_alg_values_supported"], json!(["RS256"]));

    let tag = jwks.header("etag").unwrap();
    let again = |known: &str| {
        let known = format!("If-None-Match: {known}");
        send(address, &format!("GET /service_accounts/v1/jwk/{ACCOUNT}"), &[&known], "")
    };
    for known in [tag.to_owned(), format!("W/{tag}"), format!("\"x\", {tag}")] {
        let unchanged = again(&known);
        assert_eq!(
            (unchanged.status, unchanged.body.as_str(), unchanged.header("etag")),
            (304, "", Some(tag)),
            "{known}"
        );
    }
    assert_eq!(again("\"x\"").status, 200);

    daemon.signetctl(&["key", "activate", "next"]);
    daemon.signetctl(&["key", "retire", "k"]);
    let certificates = async || {
        let request = proto::GetPublicCertificatesRequest::default();
        daemon.client().get_public_certificates(request).await.unwrap().into_inner().certificates
    };
    eventually("the daemon knows that it is retired", async || {
        certificates().await.iter().any(|key| key.key_id == "k" && key.state() == proto::KeyState::Retired)
    })
    .await;
    let map = get(&format!("/robot/v1/metadata/x509/{ACCOUNT}")).json();
    assert_eq!((&map["k"], map["next"].is_string()), (&json!(pem), true), "what a retired key signed is still about");
}
