//! The metadata server: every path that Google's client libraries ask, as they ask it.

use std::io::Write as _;
use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tonic_health::ServingStatus;

use crate::support::daemon::{ACCOUNT, TestDaemon};
use crate::support::http::{Answer, connect, send, send_as, until_closed};
use crate::support::softhsm::SoftHsm;

const FLAVOR: &str = "Metadata-Flavor: Google";
const SECOND: &str = "second@project.iam.gserviceaccount.com";
const CLOUD_PLATFORM: &str = "https://www.googleapis.com/auth/cloud-platform";
const STORAGE: &str = "https://www.googleapis.com/auth/devstorage.read_only";

/// A daemon with two accounts and their keys, the values of a machine, and a rule for user 4711, who may have access tokens
/// of the second one for one scope.
async fn daemon() -> Option<(SoftHsm, TestDaemon, SocketAddr)> {
    let token = SoftHsm::new()?;
    let mut daemon = TestDaemon::prepare(&config(&token, &["mint-access-token", "mint-id-token"]));
    daemon.signetctl(&["key", "generate", "--device", "hsm", "--account", ACCOUNT, "--kid", "first"]);
    daemon.signetctl(&["key", "generate", "--device", "hsm", "--account", SECOND, "--kid", "second"]);
    daemon.spawn();
    daemon.wait_for_health(ServingStatus::Serving).await;
    let address = daemon.http();
    Some((token, daemon, address))
}

fn config(token: &SoftHsm, operations: &[&str]) -> String {
    let more = format!(
        r#"
        http = "127.0.0.1:0"
        [metadata]
        "instance/zone" = "projects/7/zones/europe-west1-b"
        "instance/attributes/role" = "web"
        "project/numeric-project-id" = "7"
        {}
        [[account]]
        email = "{SECOND}"
        project_id = "another"
        [[allow]]
        users = [{{uid}}]
        accounts = ["{SECOND}"]
        operations = {operations:?}
        [[allow]]
        users = [4711]
        accounts = ["{SECOND}"]
        operations = ["mint-access-token"]
        scopes = ["{STORAGE}"]
        "#,
        token.toml()
    );
    TestDaemon::config(&more)
}

fn get(address: SocketAddr, path: &str) -> Answer {
    let answer = send(address, &format!("GET /computeMetadata/v1/{path}"), &[FLAVOR], "");
    assert_eq!(answer.header("metadata-flavor"), Some("google"), "{path}: {answer:?}");
    answer
}

fn claims(jwt: &str) -> Value {
    let payload = jwt.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

fn token_claims(answer: &Answer) -> Value {
    assert_eq!((answer.status, answer.header("cache-control")), (200, Some("no-store")), "{answer:?}");
    let token = answer.json();
    assert_eq!(token["token_type"], "Bearer");
    assert!((300..=3600).contains(&token["expires_in"].as_u64().unwrap()), "{token}");
    claims(token["access_token"].as_str().unwrap())
}

#[tokio::test]
async fn every_path_that_client_libraries_ask_is_there() {
    let Some((_token, _daemon, address)) = daemon().await else { return };
    let ping = send(address, "GET /", &[], "");
    assert_eq!((ping.status, ping.header("metadata-flavor")), (200, Some("google")), "no header is needed to find it");
    let account =
        |aliases: &[&str], email: &str| json!({"aliases": aliases, "email": email, "scopes": [CLOUD_PLATFORM]});
    let accounts = json!({
        "default": account(&["default"], ACCOUNT), ACCOUNT: account(&["default"], ACCOUNT), SECOND: account(&[], SECOND),
    });
    for (path, text) in [
        ("", "instance/\nproject/\nuniverse/\n".to_owned()),
        ("instance", "attributes/\nservice-accounts/\nzone\n".to_owned()),
        ("instance/", "attributes/\nservice-accounts/\nzone\n".to_owned()),
        ("instance/zone", "projects/7/zones/europe-west1-b".to_owned()),
        ("instance/attributes/role", "web".to_owned()),
        ("project/project-id", "project".to_owned()),
        ("project/numeric-project-id", "7".to_owned()),
        ("universe/universe-domain", "googleapis.com".to_owned()),
        ("universe/universe_domain", "googleapis.com".to_owned()),
        ("instance/service-accounts/", format!("default/\n{SECOND}/\n{ACCOUNT}/\n")),
        ("instance/service-accounts/default/email", ACCOUNT.to_owned()),
        ("instance/service-accounts/default/scopes", format!("{CLOUD_PLATFORM}\n")),
        ("instance/service-accounts/default/?alt=text", "aliases\nemail\nidentity\nscopes\ntoken\n".to_owned()),
        (&format!("instance/service-accounts/{SECOND}/email"), SECOND.to_owned()),
        (&format!("instance/service-accounts/{}/email", SECOND.replace('@', "%40")), SECOND.to_owned()),
    ] {
        let answer = get(address, path);
        assert_eq!((answer.status, answer.body), (200, text), "{path}");
        assert_eq!(get(address, path).header("content-type"), Some("text/plain; charset=utf-8"), "{path}");
    }
    for (path, value) in [
        ("instance/service-accounts/default/?recursive=true", accounts["default"].clone()),
        (&format!("instance/service-accounts/{SECOND}/?recursive=true"), accounts[SECOND].clone()),
        ("instance/service-accounts/?recursive=true", accounts.clone()),
        ("instance/attributes/?recursive=True", json!({"role": "web"})),
        ("project/numeric-project-id?alt=json", json!(7)),
        (
            "?recursive=true",
            json!({
                "instance": {
                    "attributes": {"role": "web"}, "serviceAccounts": accounts, "zone": "projects/7/zones/europe-west1-b"
                },
                "project": {"attributes": {}, "numericProjectId": 7, "projectId": "project"},
                "universe": {"universeDomain": "googleapis.com"},
            }),
        ),
    ] {
        let answer = get(address, path);
        assert_eq!((answer.status, answer.json()), (200, value), "{path}");
    }
}

#[tokio::test]
async fn tokens_are_for_the_account_and_the_scopes_that_were_asked_for() {
    let Some((_token, daemon, address)) = daemon().await else { return };
    let default = "instance/service-accounts/default";
    let claims = token_claims(&get(address, &format!("{default}/token")));
    assert_eq!((&claims["iss"], &claims["scope"]), (&json!(ACCOUNT), &json!(CLOUD_PLATFORM)));
    for scopes in [
        format!("{CLOUD_PLATFORM},{STORAGE}"),
        format!("{},{}", CLOUD_PLATFORM, STORAGE).replace(':', "%3A").replace('/', "%2F").replace(',', "%2C"),
    ] {
        let claims = token_claims(&get(address, &format!("{default}/token?scopes={scopes}&transport=mtls")));
        assert_eq!(claims["scope"], format!("{CLOUD_PLATFORM} {STORAGE}"));
    }
    let claims = token_claims(&get(address, &format!("instance/service-accounts/{SECOND}/token")));
    assert_eq!(claims["iss"], SECOND);
    // Python posts its certificate, where it has one.
    let posted = "POST /computeMetadata/v1/instance/service-accounts/default/token";
    let json = "Content-Type: application/json";
    token_claims(&send(address, posted, &[FLAVOR, json], r#"{"certificate_chain": "x"}"#));

    let identity = get(address, &format!("{default}/identity?audience=https://aud.example&format=full&licenses=TRUE"));
    assert_eq!((identity.status, identity.header("content-type")), (200, Some("text/plain; charset=utf-8")));
    let claims = self::claims(&identity.body);
    assert_eq!((&claims["aud"], &claims["email"]), (&json!("https://aud.example"), &json!(ACCOUNT)));
    for query in ["", "?audience=", "?audience", "?format=full"] {
        let answer = get(address, &format!("{default}/identity{query}"));
        assert_eq!((answer.status, answer.body.as_str()), (400, "non-empty audience parameter required\n"), "{query}");
    }
    let log = daemon.audit();
    let of = |rpc: &str| log.iter().filter(|line| line["rpc"] == rpc && line["outcome"] == "OK").count();
    assert_eq!((of("metadata/token"), of("metadata/identity")), (5, 1));
}

#[tokio::test]
async fn the_header_is_needed_once_and_with_its_value() {
    let Some((_token, _daemon, address)) = daemon().await else { return };
    let line = "GET /computeMetadata/v1/project/project-id";
    let missing = send(address, line, &[], "");
    assert_eq!(missing.status, 403);
    assert!(missing.body.starts_with("Missing required header \"Metadata-Flavor\": \"Google\""), "{missing:?}");
    for (headers, status) in [
        (["Metadata-Flavor: google", "X: y"].as_slice(), 404),
        (&["Metadata-Flavor: "], 404),
        (&[FLAVOR, FLAVOR], 404),
        (&[FLAVOR, "X-Forwarded-For: 10.0.0.1"], 403),
        (&["metadata-flavor: Google"], 200),
    ] {
        assert_eq!(send(address, line, headers, "").status, status, "{headers:?}");
    }
    // Nor does another spelling of the path do without it.
    assert_eq!(send(address, "GET /%63omputeMetadata/v1/project/project-id", &[], "").status, 404);
}

#[tokio::test]
async fn another_user_has_that_users_accounts_and_no_more() {
    let Some((_token, daemon, address)) = daemon().await else { return };
    if !nix::unistd::geteuid().is_root() {
        return crate::support::skip_optional("root, who can be another user");
    }
    let ask = |uid, path: &str| send_as(uid, address, &format!("GET /computeMetadata/v1/{path}"), &[FLAVOR]);
    let default = "instance/service-accounts/default";
    assert_eq!(
        ask(4711, &format!("{default}/email")).body,
        SECOND,
        "the only account that the rules allow is the default"
    );
    assert_eq!(ask(4711, "project/project-id").body, "another");
    assert_eq!(token_claims(&ask(4711, &format!("{default}/token?scopes={STORAGE}")))["iss"], SECOND);
    for path in [
        format!("{default}/token"),
        format!("instance/service-accounts/{ACCOUNT}/token?scopes={STORAGE}"),
        "instance/service-accounts/nobody@x.example/token".to_owned(),
    ] {
        let denied = ask(4711, &path);
        assert_eq!(denied.status, 403, "{path}");
        assert!(denied.body.starts_with("not allowed: no rule"), "{denied:?}");
    }
    // gcloud asks for one with every access token and lives with a 404 alone.
    let identity = ask(4711, &format!("{default}/identity?audience=32555940559.apps.googleusercontent.com"));
    assert!(identity.status == 404 && identity.body.contains("no rule"), "{identity:?}");
    // Nobody's rules let this one in.
    for path in [format!("{default}/email"), format!("{default}/?recursive=true"), "project/project-id".to_owned()] {
        assert_eq!(ask(4712, &path).status, 404, "{path}");
    }
    assert_eq!(ask(4712, "instance/service-accounts/").body, "");
    assert_eq!(ask(4712, &format!("{default}/token")).status, 403);
    let log = daemon.audit();
    assert!(
        log.iter().any(|line| line["uid"] == 4712 && line["rpc"] == "metadata/token" && line["decision"] == "deny")
    );
}

#[tokio::test]
async fn a_change_is_told_to_who_waits_for_it() {
    let Some((token, daemon, address)) = daemon().await else { return };
    let path = "instance/service-accounts/default/?recursive=true";
    let etag = get(address, path).header("etag").unwrap().to_owned();
    let waited = get(address, &format!("{path}&wait_for_change=true&last_etag=another"));
    assert_eq!(waited.header("etag"), Some(etag.as_str()), "what is known is not what is there");
    let unchanged = get(address, &format!("{path}&wait_for_change=true&last_etag={etag}&timeout_sec=1"));
    assert_eq!((unchanged.status, unchanged.header("etag")), (200, Some(etag.as_str())));
    let line = format!("{path}&wait_for_change=true&last_etag={etag}");
    let waiting = std::thread::spawn(move || get(address, &line));
    let config =
        config(&token, &[]).replace("default = true", "").replace("operations = []", "operations = [\"sign-blob\"]");
    // It may wait already or not yet: in both cases it is told.
    daemon.configure(&config);
    daemon.signal(Signal::SIGHUP);
    let changed = waiting.join().unwrap();
    assert_eq!(changed.status, 404, "two accounts, and none of them the default: {changed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_stops_keeps_nobody_waiting() {
    let Some((_token, mut daemon, address)) = daemon().await else { return };
    let zone = get(address, "instance/zone");
    let etag = zone.header("etag").unwrap();
    let mut waiting = connect(address);
    let path = format!("/computeMetadata/v1/instance/zone?wait_for_change=true&last_etag={etag}");
    write!(waiting, "GET {path} HTTP/1.1\r\nHost: localhost\r\n{FLAVOR}\r\n\r\n").unwrap();
    // Once somebody who came later is answered, this one waits.
    get(address, "instance/zone");
    assert!(daemon.stop().success());
    assert!(until_closed(&waiting).ends_with(&zone.body));
    let log = std::fs::read_to_string(daemon.log_file()).unwrap();
    assert!(!log.contains("requests unfinished"), "{log}");
}
