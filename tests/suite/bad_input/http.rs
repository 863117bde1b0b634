//! The HTTP port: bytes, headers, the metadata server, IAM Credentials as REST, and the token exchange.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::Table;
use crate::signing::over_http;
use crate::support::daemon::{ACCOUNT, NO_DEVICE, TestDaemon};
use crate::support::http::{BEARER, raw, send};
use crate::support::softhsm::SoftHsm;

/// A daemon with a key, and where it listens. `more` is appended to its configuration.
async fn daemon(more: &str) -> Option<(SoftHsm, TestDaemon, SocketAddr)> {
    // No rule that limits what is signed allows digests.
    over_http(|config| (config + more).replace("\"sign-digest\", ", "")).await
}

const GET: &str = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n";
const POST: &str = "POST /healthz HTTP/1.1\r\nHost: localhost\r\n";

fn is_well(address: SocketAddr, name: &str) {
    assert_eq!(send(address, "GET /healthz", &[], "").status, 200, "after {name}");
}

#[test]
fn bytes_that_two_parsers_could_read_in_two_ways_are_refused_and_nothing_behind_them_is_read() {
    let daemon = TestDaemon::start(&TestDaemon::config(&format!("http = \"127.0.0.1:0\"\n{NO_DEVICE}")));
    let address = daemon.http();
    let mut table = Table::new("http", "bytes", &[("get", GET), ("post", POST)]);
    while let Some(mut case) = table.next() {
        let bytes = [case.bytes("sent").unwrap(), format!("{GET}\r\n{GET}\r\n").into_bytes()].concat();
        let answer = raw(address, &bytes);
        assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{}: {answer}", case.name);
        is_well(address, &case.name);
        table.hold(case, answer.split(' ').nth(1).unwrap_or("closed"));
    }
    table.end();
}

#[test]
fn browsers_proxies_and_foreign_names_are_not_served() {
    let daemon = TestDaemon::start(&TestDaemon::config(&format!("http = \"127.0.0.1:0\"\n{NO_DEVICE}")));
    let address = daemon.http();
    let status = |host: &str, header: &str| {
        let head = format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n{header}Connection: close\r\n\r\n");
        raw(address, head.as_bytes()).split(' ').nth(1).unwrap_or("closed").to_owned()
    };
    for host in ["metadata.google.internal", "metadata", "169.254.169.254", "127.0.0.1:80", "[::1]:80", "LOCALHOST:1"] {
        assert_eq!(status(host, ""), "200", "{host}");
    }
    let mut table = Table::new("http", "foreign", &[]);
    while let Some(mut case) = table.next() {
        let host = case.bytes("host").map_or("localhost".to_owned(), |host| String::from_utf8(host).unwrap());
        let header = case.bytes("header").map(|header| format!("{}\r\n", String::from_utf8(header).unwrap()));
        let answer = status(&host, &header.unwrap_or_default());
        assert_eq!(status("localhost", ""), "200", "after {}", case.name);
        table.hold(case, &answer);
    }
    table.end();
    let preflight = "OPTIONS /healthz HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nAccess-Control-Request-Method: GET";
    let answer = raw(address, format!("{preflight}\r\n\r\n").as_bytes());
    assert!(!answer.to_lowercase().contains("access-control"), "{answer}");
}

#[tokio::test]
async fn metadata() {
    let Some((_token, _daemon, address)) = daemon("").await else { return };
    let mut table = Table::new("http", "metadata", &[("account", ACCOUNT)]);
    while let Some(mut case) = table.next() {
        let flavor = case.bytes("flavor").map_or("Google".to_owned(), |flavor| String::from_utf8(flavor).unwrap());
        let flavor = format!("Metadata-Flavor: {flavor}");
        let answer = send(address, &case.text("line"), &[&flavor], "");
        let token = "GET /computeMetadata/v1/instance/service-accounts/default/token";
        let good = send(address, token, &["Metadata-Flavor: Google"], "");
        assert_eq!(good.status, 200, "after {}: {good:?}", case.name);
        table.hold(case, &answer.status.to_string());
    }
    table.end();
}

#[tokio::test]
async fn iam_credentials() {
    let Some((_token, daemon, address)) = daemon("").await else { return };
    let mut table = Table::new("http", "iam", &[]);
    while let Some(mut case) = table.next() {
        let account = case.bytes("account").map_or(ACCOUNT.to_owned(), |account| String::from_utf8(account).unwrap());
        let shown = case.bytes("shown").map_or(BEARER.to_owned(), |shown| String::from_utf8(shown).unwrap());
        let post = |shown: &str, account: &str, verb: &str, body: &[u8]| {
            let head = format!(
                "POST /v1/projects/-/serviceAccounts/{account}:{verb} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                 {shown}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            let answer = raw(address, &[head.as_bytes(), body].concat());
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            let status = head.split(' ').nth(1).unwrap().to_owned();
            let error: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
            let error = &error["error"];
            let message = error["message"].as_str().unwrap_or_default().to_owned();
            if status != "400" {
                return format!("{status}: {message}");
            }
            assert_eq!((&error["code"], &error["status"]), (&400.into(), &"INVALID_ARGUMENT".into()));
            assert_eq!(error["details"][0]["reason"], "INVALID_REQUEST");
            message
        };
        let answer = post(&shown, &account, &case.text("verb"), &case.bytes("body").unwrap());
        assert_eq!(post(BEARER, ACCOUNT, "signJwt", br#"{"payload":"{}"}"#), "200: ", "after {}", case.name);
        table.hold(case, &answer);
    }
    table.end();
    assert!(!daemon.log().contains("other@x.example"), "no request is logged");
}

#[tokio::test]
async fn token_exchanges() {
    let more = "scopes = [\"https://www.googleapis.com/auth/*\"]\n[[account]]\nemail = \"forbidden@project.example\"\n";
    let Some((_token, daemon, address)) = daemon(more).await else { return };
    let (user, out) = (nix::unistd::geteuid().to_string(), daemon.folder().join("subject"));
    daemon.signetctl(&["subject-token", "--user", &user, "--out", out.to_str().unwrap()]);
    let subject = std::fs::read_to_string(out).unwrap();
    let exchange = |content_type: &str, fields: BTreeMap<String, String>| {
        let mut form: BTreeMap<String, String> = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("audience", &format!("//signet/{ACCOUNT}")),
            ("scope", "https://www.googleapis.com/auth/cloud-platform"),
            ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
            ("subject_token", &subject),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:access_token"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        form.extend(fields);
        form.retain(|_, value| !value.is_empty());
        let form: Vec<_> = form.iter().map(|(name, value)| format!("{name}={value}")).collect();
        send(address, "POST /v1/token", &[&format!("Content-Type: {content_type}")], &form.join("&"))
    };
    let mut table = Table::new("sts", "forms", &[]);
    while let Some(mut case) = table.next() {
        let fields: BTreeMap<String, String> = case.take("form").unwrap();
        let text = |text: String| String::from_utf8(super::expanded(text.into_bytes(), &[])).unwrap();
        let fields = fields.into_iter().map(|(name, value)| (name, text(value))).collect();
        let form = "application/x-www-form-urlencoded".to_owned();
        let content_type = case.bytes("content_type").map_or(form.clone(), |kind| String::from_utf8(kind).unwrap());
        let refused = exchange(&content_type, fields);
        let (error, said) = (refused.json()["error"].clone(), refused.json()["error_description"].clone());
        let answer = format!("{}: {}", error.as_str().unwrap(), said.as_str().unwrap());
        assert_eq!(refused.status, 400, "{}: {refused:?}", case.name);
        assert_eq!(exchange(&form, BTreeMap::new()).status, 200, "after {}", case.name);
        table.hold(case, &answer);
    }
    table.end();
}
