//! Requests of programs that are not everywhere, as they send them: .NET's library, read in its sources since there is no .NET
//! here to run it, and gcloud, recorded (version 528.0.0).

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::signing::over_http;
use crate::support::daemon::ACCOUNT;
use crate::support::http::connect;

/// What .NET's HttpClientFactory adds to each request.
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

/// Google.Apis.Auth, on one connection for all but the first two, as its HttpClient keeps it.
#[tokio::test]
async fn dotnet() {
    let Some((_token, daemon, address)) = over_http(|config| config).await else { return };
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

/// `gcloud storage sign-url --impersonate-service-account`, whose IAM Credentials endpoint is signetd.
#[tokio::test]
async fn gcloud_storage_sign_url() {
    let Some((_token, daemon, address)) = over_http(|config| config).await else { return };
    let accounts = "/computeMetadata/v1/instance/service-accounts";
    let urllib = "Accept-Encoding: identity\r\nUser-Agent: Python-urllib/3.12\r\nConnection: close\r\n";
    assert_eq!(Client::new(address).get("/computeMetadata/v1/universe/universe-domain", urllib), "googleapis.com");
    assert_eq!(Client::new(address).get(&format!("{accounts}/default/email"), urllib), ACCOUNT);
    assert_eq!(Client::new(address).get(&format!("{accounts}/"), urllib), format!("default/\n{ACCOUNT}/\n"));
    let identity = "identity?audience=32555940559.apps.googleusercontent.com&format=standard&licenses=FALSE";
    daemon.claims("k", &Client::new(address).get(&format!("{accounts}/default/{identity}"), urllib));

    let agent = "user-agent: google-cloud-sdk gcloud/528.0.0 command/gcloud.storage.sign-url\r\n\
                 Accept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\n";
    let mut client = Client::new(address);
    let account: Value =
        serde_json::from_str(&client.get(&format!("{accounts}/{ACCOUNT}/?recursive=true"), agent)).unwrap();
    assert_eq!(account["email"], ACCOUNT);
    let token: Value = serde_json::from_str(&client.get(&format!("{accounts}/{ACCOUNT}/token"), agent)).unwrap();
    let token = token["access_token"].as_str().unwrap();
    let text = b"GOOG4-RSA-SHA256\n20261122T111625Z\n20261122/auto/storage/goog4_request\n0ed4ec319f48b710d8307527f2f4b031d925";
    let body = format!("{{\"payload\": \"{}\"}}", STANDARD.encode(text));
    let rest = format!(
        "{agent}Content-Length: {}\r\ncontent-type: application/json\r\nx-goog-api-client: cred-type/mds\r\n\
         authorization: Bearer {token}\r\n\r\n{body}",
        body.len()
    );
    let (head, answer) =
        client.send(&format!("POST /v1/projects/-/serviceAccounts/{ACCOUNT}:signBlob?alt=json"), &rest);
    assert!(head.starts_with("http/1.1 200 ") && head.contains("content-type: application/json"), "{head}{answer}");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    daemon.verify("k", text, &STANDARD.decode(answer["signedBlob"].as_str().unwrap()).unwrap());
}
