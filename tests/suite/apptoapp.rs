//! The app-to-app demo, each language's Client App with each language's API App.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tonic_health::ServingStatus;

use crate::support::daemon::{ACCOUNT, TestDaemon};
use crate::support::eventually;
use crate::support::http::{BEARER, send};
use crate::support::languages;
use crate::support::softhsm::SoftHsm;

const STRANGER: &str = "stranger@project.example";
const AUDIENCE: &str = "https://api.example";

/// An application and its URL. Dropped, it ends.
struct App(Child, String);

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl App {
    fn start(mut command: Command, arguments: &[&str]) -> Self {
        let mut process = command.args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let url = BufReader::new(process.stdout.take().unwrap()).lines().next().expect("it ended at once").unwrap();
        Self(process, url)
    }
}

fn curl(url: &str, bearer: &str) -> Value {
    let header = format!("Authorization: Bearer {bearer}");
    let output = Command::new("curl").args(["--silent", "--noproxy", "*", "--header", &header, url]).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{url}: {error}: {output:?}"))
}

fn examples() -> PathBuf {
    languages::root("examples/app-to-app")
}

/// How to start the Client App and the API App of each language that is there.
fn all_languages(folder: &Path) -> Vec<(&'static str, [Command; 2])> {
    let mut found = Vec::new();
    if let Some(python) = languages::python() {
        found.push((
            "python",
            ["client.py", "api.py"].map(|name| {
                let mut command = Command::new(&python);
                command.arg(examples().join("python").join(name));
                command
            }),
        ));
    }
    if languages::go("examples/app-to-app/go", folder).is_some() {
        found.push(("go", ["client", "api"].map(|name| Command::new(folder.join(name)))));
    }
    if let Some(libraries) = languages::java() {
        found.push((
            "java",
            ["ClientApp.java", "ApiApp.java"].map(|name| {
                let mut command = Command::new("java");
                command.arg("-cp").arg(&libraries).arg(examples().join("java").join(name));
                command
            }),
        ));
    }
    found
}

#[tokio::test]
async fn who_proves_who_he_is_is_let_in_and_nobody_else_also_over_a_change_of_keys() {
    let Some(token) = SoftHsm::new() else { return };
    let stranger = format!("[[account]]\nemail = \"{STRANGER}\"\n");
    let config = TestDaemon::config(&format!("http = \"127.0.0.1:0\"\n{}{stranger}", token.toml()))
        .replace(&format!("accounts = [\"{ACCOUNT}\"]"), &format!("accounts = [\"{ACCOUNT}\", \"{STRANGER}\"]"));
    let mut daemon = TestDaemon::prepare(&config);
    daemon.signetctl(&["key", "generate", "--device", "hsm", "--kid", "first", "--account", ACCOUNT]);
    daemon.signetctl(&["key", "generate", "--device", "hsm", "--kid", "strangers", "--account", STRANGER]);
    daemon.spawn();
    daemon.wait_for_health(ServingStatus::Serving).await;
    let address = daemon.http();
    let path = |name: &str| daemon.folder().join(name);

    let (mut clients, mut apis) = (Vec::new(), Vec::new());
    for (language, [mut client, api]) in all_languages(&path("go")) {
        client.env("GCE_METADATA_HOST", address.to_string());
        let access = path(&format!("access-{language}"));
        let api = App::start(api, &["0", AUDIENCE, access.to_str().unwrap()]);
        let client = App::start(client, &["0", ACCOUNT, &api.1, AUDIENCE]);
        clients.push((language, client));
        apis.push((language, api, access));
    }
    // Each API App fetches what a Client App of the next language publishes.
    for (index, (_, _, access)) in apis.iter().enumerate() {
        let published = format!("{}/certificates", clients[(index + 1) % clients.len()].1.1);
        fs::write(access, json!({ ACCOUNT: published }).to_string()).unwrap();
    }
    let all_call = |when: &str| {
        for (language, client) in &clients {
            let answer = curl(&format!("{}/call", client.1), "");
            assert_eq!(answer, json!({ "hello": ACCOUNT }), "{language}, {when}");
        }
    };
    all_call("at first");

    let signed = |account: &str, claims: &Value| {
        let body = json!({ "payload": claims.to_string() }).to_string();
        let line = format!("POST /v1/projects/-/serviceAccounts/{account}:signJwt");
        let answer = send(address, &line, &[BEARER, "Content-Type: application/json"], &body);
        answer.json()["signedJwt"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned()
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let claims =
        |account: &str, audience: &str, exp: u64| json!({"iss": account, "aud": audience, "iat": now, "exp": exp});
    let good = signed(ACCOUNT, &claims(ACCOUNT, AUDIENCE, now + 60));
    let strangers = signed(STRANGER, &claims(STRANGER, AUDIENCE, now + 60));
    let parts = |jwt: &str| jwt.split('.').map(str::to_owned).collect::<Vec<_>>();
    // Claims of the account, and its kid, with the signature of another key.
    let wrong_key = format!("{}.{}.{}", parts(&good)[0], parts(&good)[1], parts(&strangers)[2]);
    let elsewhere = signed(ACCOUNT, &claims(ACCOUNT, "https://other.example", now + 60));
    let short = signed(ACCOUNT, &claims(ACCOUNT, AUDIENCE, now + 3));
    for (language, api, _) in &apis {
        assert_eq!(curl(&api.1, &good), json!({ "hello": ACCOUNT }), "{language}");
        for (what, jwt) in [
            ("not on the list", &strangers),
            ("wrong key", &wrong_key),
            ("wrong audience", &elsewhere),
            ("none", &String::new()),
        ] {
            assert!(curl(&api.1, jwt)["error"].is_string(), "{language} lets in: {what}");
        }
        assert!(curl(&api.1, &strangers)["error"].as_str().unwrap().contains("not on the access list"), "{language}");
        eventually("the token expires", async || curl(&api.1, &short)["error"].is_string()).await;
    }

    // Published beside the first one before it signs, so no call fails; and the first one's tokens stay good.
    daemon.signetctl(&["key", "generate", "--device", "hsm", "--kid", "second", "--account", ACCOUNT]);
    all_call("with two keys published");
    daemon.signetctl(&["key", "activate", "second"]);
    // Those who keep certificates for their time look for a key that they do not know at once.
    all_call("with the second key");
    daemon.signetctl(&["key", "retire", "first"]);
    all_call("with the second key alone");
    if let Some((_, client)) = clients.iter().find(|(language, _)| *language == "python") {
        let page = Command::new("curl").args(["--silent", "--noproxy", "*", &client.1]).output().unwrap();
        let page = String::from_utf8(page.stdout).unwrap();
        for shown in ["&quot;kid&quot;:&quot;second&quot;", "Answer of the API App: 200", "BEGIN CERTIFICATE"] {
            assert!(page.contains(shown), "{page}");
        }
    }
    // The first one's tokens stay good. Nobody is asked for it any more: what was fetched is kept for as long as it said.
    drop(clients);
    for (language, api, _) in &apis {
        assert_eq!(curl(&api.1, &good), json!({ "hello": ACCOUNT }), "{language}");
    }
}
