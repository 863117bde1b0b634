//! What Google.Apis.Auth (.NET) sends, request for request: read in its sources, since there is no .NET here to run it. One
//! connection for all but the first, as its HttpClient keeps it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;
use tonic_health::ServingStatus;

use crate::support::daemon::{ACCOUNT, TestDaemon};
use crate::support::http::connect;
use crate::support::softhsm::SoftHsm;

/// What its HttpClientFactory adds to each request.
const FACTORY: &str = "x-goog-api-client: gl-dotnet/8.0.11 auth/1.68.0\r\nAccept-Encoding: gzip, deflate\r\n\
                       User-Agent: google-api-dotnet-client/1.68.0.0 (gzip)\r\n";
const FLAVOR: &str = "Metadata-Flavor: Google\r\n";

struct Client {
    address: SocketAddr,
    stream: BufReader<TcpStream>,
}

impl Client {
    fn new(address: SocketAddr) -> Self {
        Self { address, stream: BufReader::new(connect(address)) }
    }

    /// Sends what stands after the Host, and gives the head, in lower case, and the body of the answer.
    fn send(&mut self, line: &str, rest: &str) -> (String, String) {
        let request = format!("{line} HTTP/1.1\r\nHost: {}\r\n{rest}", self.address);
        self.stream.get_mut().write_all(request.as_bytes()).unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(self.stream.read_line(&mut head).unwrap(), 0, "it was closed after {line}: {head}");
        }
        let head = head.to_lowercase();
        let length = head.split_once("content-length: ").unwrap().1.lines().next().unwrap().parse().unwrap();
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        (head, String::from_utf8(body).unwrap())
    }

    fn get(&mut self, path: &str, headers: &str) -> String {
        let (head, body) = self.send(&format!("GET {path}"), &format!("{FLAVOR}{headers}\r\n"));
        assert!(
            head.starts_with("http/1.1 200 ") && head.contains("\r\nmetadata-flavor: google\r\n"),
            "{path}: {head}"
        );
        body
    }
}

#[tokio::test]
async fn the_requests_of_google_apis_auth_are_answered_as_it_reads_them() {
    let Some(token) = SoftHsm::new() else { return };
    let mut daemon = TestDaemon::prepare(&TestDaemon::config(&format!("http = \"127.0.0.1:0\"\n{}", token.toml())));
    daemon.signetctl(&["key", "generate", "--device", "hsm", "--kid", "k"]);
    daemon.spawn();
    daemon.wait_for_health(ServingStatus::Serving).await;
    let address = daemon.http();
    let claims = |answer: &str| {
        let answer: Value = serde_json::from_str(answer).unwrap();
        assert!(answer["expires_in"].as_u64().unwrap() > 3_590 && answer["token_type"] == "Bearer", "{answer}");
        daemon.claims("k", answer["access_token"].as_str().unwrap())
    };
    let account = "/computeMetadata/v1/instance/service-accounts/default";

    // ComputeCredential.IsRunningOnComputeEngine, with an HttpClient that it drops; then the universe, with another.
    Client::new(address).get("/", "");
    let mut client = Client::new(address);
    assert_eq!(client.get("/computeMetadata/v1/universe/universe_domain", ""), "googleapis.com");
    let cloud = "https://www.googleapis.com/auth/cloud-platform";
    let mut client = Client::new(address);
    assert_eq!(claims(&client.get(&format!("{account}/token"), FACTORY))["scope"], cloud);
    // It escapes neither scopes nor audiences.
    let pubsub = "https://www.googleapis.com/auth/pubsub";
    let scoped = client.get(&format!("{account}/token?scopes={cloud},{pubsub}"), FACTORY);
    assert_eq!(claims(&scoped)["scope"], format!("{cloud} {pubsub}"));
    assert_eq!(client.get(&format!("{account}/email"), FACTORY), ACCOUNT);
    for query in ["", "&format=full", "&format=full&licenses=true"] {
        let token = client.get(&format!("{account}/identity?audience=https://aud.example/{query}"), FACTORY);
        let claims = daemon.claims("k", &token);
        assert_eq!(
            (&claims["aud"], claims["email_verified"] == true),
            (&"https://aud.example/".into(), !query.is_empty())
        );
    }
    // Google.Api.Gax.Platform, for the project of a log or a trace.
    let all: Value = serde_json::from_str(&client.get("/computeMetadata/v1?recursive=true", "")).unwrap();
    assert_eq!(all["project"]["projectId"], "project");

    // FileSourcedExternalAccountCredential: the subject token as it stands in its file, fields in the order of their names.
    let (user, file) = (nix::unistd::geteuid().to_string(), daemon.folder().join("subject"));
    daemon.signetctl(&["subject-token", "--user", &user, "--out", file.to_str().unwrap()]);
    let subject = std::fs::read_to_string(file).unwrap();
    let form: String = form_urlencoded::Serializer::new(String::new())
        .append_pair("audience", &format!("//signet/{ACCOUNT}"))
        .append_pair("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange")
        .append_pair("requested_token_type", "urn:ietf:params:oauth:token-type:access_token")
        .append_pair("scope", &format!("{cloud} {pubsub}"))
        .append_pair("subject_token", &subject)
        .append_pair("subject_token_type", "urn:ietf:params:oauth:token-type:jwt")
        .finish();
    let length = form.len();
    let rest =
        format!("{FACTORY}Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {length}\r\n\r\n{form}");
    let (head, exchanged) = client.send("POST /v1/token", &rest);
    assert!(head.starts_with("http/1.1 200 ") && head.contains("content-type: application/json"), "{head}{exchanged}");
    assert_eq!(claims(&exchanged)["scope"], format!("{cloud} {pubsub}"));
}
