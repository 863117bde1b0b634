//! The opt-in exchange at a token endpoint: a stand-in over TLS, by an authority of its own, that verifies each assertion.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use serde_json::Value;
use signet::proto::iam::GenerateAccessTokenRequest;
use signet::proto::iam::iam_credentials_client::IamCredentialsClient;
use signet::proto::{self, mint_jwt_access_token_request as mint};
use tonic::{Code, Request, Status};
use tonic_health::ServingStatus;
use tonic_types::StatusExt as _;

use crate::support::PATIENCE;
use crate::support::daemon::{ACCOUNT, TestDaemon};
use crate::support::languages::{self, root};
use crate::support::softhsm::SoftHsm;

/// A daemon whose account has a token endpoint, and the endpoint.
struct Stand {
    daemon: TestDaemon,
    endpoint: Endpoint,
    _token: SoftHsm,
}

/// The token endpoint: what it verified comes by the channel. Dropped, it ends.
struct Endpoint {
    process: Child,
    assertions: Receiver<Value>,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Endpoint {
    /// Starts it in the daemon's folder; returns its address too.
    fn start(python: &Path, daemon: &TestDaemon) -> (Self, String) {
        let mut command = Command::new(python);
        command.arg(root("tests/clients/python/token_server.py")).arg(daemon.folder());
        command.arg(daemon.state().join("certificates/k.pem")).arg(ACCOUNT);
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
        let address = lines.next().expect("the endpoint ended at once");
        let (verified, assertions) = mpsc::channel();
        std::thread::spawn(move || lines.try_for_each(|line| verified.send(serde_json::from_str(&line).unwrap())));
        (Self { process, assertions }, address)
    }

    /// The assertions since the last call.
    fn verified(&self) -> Vec<Value> {
        self.assertions.try_iter().collect()
    }
}

impl Stand {
    /// A stand with this in `[account.exchange]` beside mode and token_uri, and in the rule.
    async fn new(exchange: &str, rule: &str) -> Option<Self> {
        Self::with(exchange, rule, |_daemon, command| command).await
    }

    async fn with(exchange: &str, rule: &str, prepare: impl FnOnce(&TestDaemon, Command) -> Command) -> Option<Self> {
        let python = languages::python()?;
        let token = SoftHsm::new()?;
        let config = TestDaemon::config(&token.toml());
        let mut daemon = TestDaemon::prepare(&config);
        daemon.signetctl(&["key", "generate", "--device", "hsm", "--kid", "k"]);
        let (endpoint, address) = Endpoint::start(&python, &daemon);
        let table =
            format!("default = true\n[account.exchange]\nmode = \"jwt-bearer\"\ntoken_uri = {address:?}\n{exchange}");
        // No rule that limits what is signed allows digests.
        daemon.configure(&(config.replace("default = true", &table).replace("\"sign-digest\", ", "") + rule));
        daemon.spawn_as(prepare(&daemon, daemon.command()));
        daemon.wait_for_health(ServingStatus::Serving).await;
        Some(Self { daemon, endpoint, _token: token })
    }

    /// Has the endpoint do this instead of answering, a word a request.
    fn act(&self, acts: &str) {
        fs::write(self.daemon.folder().join("acts"), acts).unwrap();
    }

    async fn access(&self, scope: &str, patience: Duration) -> Result<proto::MintJwtAccessTokenResponse, Status> {
        let target = mint::Target::Scopes(proto::Scopes { scope: vec![scope.to_owned()] });
        self.mint(target, patience).await
    }

    async fn mint(
        &self,
        target: mint::Target,
        patience: Duration,
    ) -> Result<proto::MintJwtAccessTokenResponse, Status> {
        let message = proto::MintJwtAccessTokenRequest { account: String::new(), target: Some(target), lifetime: None };
        let mut request = Request::new(message);
        request.set_timeout(patience);
        Ok(self.daemon.client().mint_jwt_access_token(request).await?.into_inner())
    }

    async fn id(&self, audience: &str) -> Result<proto::MintIdTokenResponse, Status> {
        let audience = audience.to_owned();
        let request =
            proto::MintIdTokenRequest { account: String::new(), audience, include_email: true, lifetime: None };
        Ok(self.daemon.client().mint_id_token(request).await?.into_inner())
    }
}

/// The code of a refusal and its stable reason.
fn refusal<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.unwrap_err();
    let reason = status.get_error_details().error_info().map_or_else(String::new, |info| info.reason.clone());
    (status.code(), reason)
}

#[tokio::test]
async fn scopes_and_id_tokens_come_from_the_endpoint_and_are_cached_as_all_else() {
    let Some(stand) = Stand::new(CA, "").await else { return };
    let first = stand.access("s", PATIENCE).await.unwrap();
    assert!(first.access_token.starts_with("ya29.") && first.token_type == "Bearer" && first.key_id == "k");
    assert_eq!(stand.access("s", PATIENCE).await.unwrap(), first, "cached");
    let [assertion] = &stand.endpoint.verified()[..] else { panic!("one assertion for both") };
    let claims: Vec<_> = assertion.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(claims, ["aud", "exp", "iat", "iss", "scope"]);
    assert_eq!(assertion["exp"].as_i64().unwrap() - assertion["iat"].as_i64().unwrap(), 300);
    let lives = first.expire_time.unwrap().seconds - assertion["iat"].as_i64().unwrap();
    assert!((3590..=3610).contains(&lives), "{lives}");

    // Google's API on the same socket: the same token.
    let name = format!("projects/-/serviceAccounts/{ACCOUNT}");
    let request = GenerateAccessTokenRequest { name, scope: vec!["s".to_owned()], ..Default::default() };
    let same = IamCredentialsClient::new(stand.daemon.channel()).generate_access_token(request).await.unwrap();
    assert_eq!(same.into_inner().access_token, first.access_token);

    let id = stand.id("https://run.example").await.unwrap();
    let [assertion] = &stand.endpoint.verified()[..] else { panic!("one assertion") };
    assert_eq!((&assertion["target_audience"], &assertion["scope"]), (&"https://run.example".into(), &Value::Null));
    assert!(id.id_token.len() > 100 && id.expire_time.is_some());

    // What only a JWT has stays one.
    let target = mint::Target::Audience("https://pubsub.googleapis.com/".to_owned());
    assert!(stand.mint(target, PATIENCE).await.unwrap().access_token.starts_with("eyJ"));
    assert!(stand.endpoint.verified().is_empty());
    let audit = stand.daemon.audit();
    let cached: Vec<_> = audit.iter().map(|line| line["cached"].as_bool().unwrap()).collect();
    assert_eq!(cached, [false, true, true, false, false]);
}

#[tokio::test]
async fn what_passes_is_tried_again_and_what_does_not_is_told_once() {
    let Some(stand) = Stand::new(CA, "").await else { return };
    stand.act("503 429 408");
    assert!(stand.access("again", PATIENCE).await.unwrap().access_token.starts_with("ya29."));
    stand.act("500 500 500 500");
    assert_eq!(refusal(stand.access("down", PATIENCE).await), (Code::Unavailable, "TOKEN_ENDPOINT_AWAY".to_owned()));
    stand.act("hang");
    let late = stand.access("hung", Duration::from_millis(600)).await;
    assert_eq!(refusal(late), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".to_owned()));
    stand.act("");
    assert_eq!(stand.endpoint.verified().len(), 1);
    for act in ["302", "307", "401", "403"] {
        stand.act(act);
        let refused = (Code::FailedPrecondition, "EXCHANGE_REFUSED".to_owned());
        assert_eq!(refusal(stand.access("refused", PATIENCE).await), refused, "{act}");
        let rest = fs::read_to_string(stand.daemon.folder().join("acts")).unwrap();
        assert_eq!(
            (rest.as_str(), stand.endpoint.verified().len()),
            ("", 0),
            "{act} is neither followed nor tried again"
        );
    }
    let status = stand.access("unknown-scope", PATIENCE).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(!status.message().contains("quoted"), "{status}");
    // The operator sees what it said.
    stand.daemon.wait_for_log("quoted: unknown-scope");
}

#[tokio::test]
async fn no_rule_is_stretched_and_no_key_that_google_does_not_know_gets_a_token() {
    let Some(stand) = Stand::new(CA, "max_lifetime = \"10m\"\n").await else { return };
    let status = stand.access("s", PATIENCE).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("lifetime: "), "{status}");
    stand.act("short");
    stand.access("t", PATIENCE).await.unwrap();
    // A key that the endpoint was not told of.
    stand.daemon.signetctl(&["key", "generate", "--device", "hsm", "--kid", "other"]);
    stand.daemon.signetctl(&["key", "activate", "other"]);
    stand.daemon.wait_for_log("took the keyring");
    let unknown = stand.access("u", PATIENCE).await;
    assert_eq!(refusal(unknown), (Code::FailedPrecondition, "EXCHANGE_REFUSED".to_owned()));
}

#[tokio::test]
async fn nobody_is_the_endpoint_without_a_certificate_of_its_authority() {
    let Some(stand) = Stand::new("", "").await else { return };
    assert_eq!(refusal(stand.access("s", PATIENCE).await), (Code::Unavailable, "TOKEN_ENDPOINT_AWAY".to_owned()));
    assert!(stand.endpoint.verified().is_empty());
    assert!(stand.daemon.log().contains("certificate"), "{}", stand.daemon.log());
}

#[tokio::test]
async fn a_proxy_of_the_environment_is_used() {
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", proxy.local_addr().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    std::thread::spawn(move || {
        for client in proxy.incoming().map_while(Result::ok) {
            counted.fetch_add(1, Ordering::Relaxed);
            tunnel(client);
        }
    });
    let with_proxy = |_: &TestDaemon, mut command: Command| {
        command.env("HTTPS_PROXY", address).env_remove("NO_PROXY").env_remove("no_proxy");
        command
    };
    let Some(stand) = Stand::with(CA, "", with_proxy).await else { return };
    stand.access("s", PATIENCE).await.unwrap();
    assert_eq!((connections.load(Ordering::Relaxed), stand.endpoint.verified().len()), (1, 1));
}

/// Answers CONNECT, and carries bytes both ways.
fn tunnel(mut client: TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).expect(&head);
    let server = TcpStream::connect(target).unwrap();
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    for (mut from, mut to) in
        [(&client, &server), (&server, &client)].map(|(a, b)| (a.try_clone().unwrap(), b.try_clone().unwrap()))
    {
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
    }
}

#[tokio::test]
async fn the_token_uri_of_an_imported_file_is_never_followed() {
    let Some(stand) = Stand::new(CA, "").await else { return };
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let generated = Command::new("openssl").args(["genpkey", "-algorithm", "RSA", "-quiet"]).output().unwrap();
    let file = serde_json::json!({
        "type": "service_account", "client_email": ACCOUNT, "private_key_id": "imported",
        "private_key": String::from_utf8(generated.stdout).unwrap(),
        "token_uri": format!("https://{}/token", elsewhere.local_addr().unwrap()),
    });
    let path = stand.daemon.folder().join("key.json");
    crate::support::write_private(&path, &file.to_string());
    stand.daemon.signetctl(&["key", "import", "--device", "hsm", path.to_str().unwrap()]);
    stand.daemon.signetctl(&["key", "activate", "imported"]);
    stand.daemon.wait_for_log("took the keyring");
    // The endpoint of the configuration is asked, and does not know this key.
    assert_eq!(refusal(stand.access("s", PATIENCE).await).0, Code::FailedPrecondition);
    assert_eq!(elsewhere.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

const CA: &str = "ca_file = \"ca.pem\"\n";
