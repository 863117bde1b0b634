//! The examples in `examples/`, each run with the real library, led here by `signetctl env`, against a stand-in for a Google
//! API that believes the account's certificate and nothing else.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tonic_health::ServingStatus;

use crate::support::daemon::{ACCOUNT, TestDaemon};
use crate::support::skip;
use crate::support::softhsm::SoftHsm;

/// Not one of Google's: for those some libraries ask Google, in the background, where the account may be used.
const EMAIL: &str = "svc@project.example";
const AUDIENCE: &str = "https://pubsub.googleapis.com/";

struct Stand {
    daemon: TestDaemon,
    api: Child,
    /// `http://127.0.0.1:PORT`
    url: String,
    _token: SoftHsm,
}

impl Drop for Stand {
    fn drop(&mut self) {
        let _ = self.api.kill();
        let _ = self.api.wait();
    }
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Whether a program runs; says so where it does not.
fn is_there(program: &Path, arguments: &[&str], what: &str, package: &str) -> bool {
    let runs = Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success());
    if !runs {
        skip(what, package);
    }
    runs
}

impl Stand {
    async fn new() -> Option<Self> {
        let python = root("target/verifiers/bin/python");
        if !is_there(
            &python,
            &["-c", "import google.cloud.storage"],
            "target/verifiers (run scripts/deps)",
            "python3-venv",
        ) {
            return None;
        }
        let token = SoftHsm::new()?;
        let config = TestDaemon::config(&format!("http = \"127.0.0.1:0\"\n{}", token.toml())).replace(ACCOUNT, EMAIL);
        let mut daemon = TestDaemon::prepare(&config);
        daemon.signetctl(&["key", "generate", "--device", "hsm", "--kid", "k"]);
        daemon.spawn();
        daemon.wait_for_health(ServingStatus::Serving).await;
        // What signetctl reads is where it listens.
        daemon.configure(&config.replace("127.0.0.1:0", &daemon.http().to_string()));
        let mut command = Command::new(python);
        command.arg(root("tests/clients/python/api.py")).arg(daemon.state().join("certificates/k.pem")).arg(EMAIL);
        let mut api = command.stdout(Stdio::piped()).spawn().unwrap();
        let url = BufReader::new(api.stdout.take().unwrap()).lines().next().expect("the API ended at once").unwrap();
        Some(Self { daemon, api, url, _token: token })
    }

    fn socket(&self) -> String {
        self.daemon.socket().into_os_string().into_string().unwrap()
    }

    /// What a program prints that is led here as the README says, by `signetctl env` with these arguments.
    fn led(&self, env: &str, folder: &Path, program: &[&str]) -> String {
        let script = format!("eval \"$(\"$0\" --config \"$1\" env {env})\" && shift && exec \"$@\"");
        let mut command = Command::new("bash");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_signetctl")]).arg(self.daemon.config_file()).args(program);
        command.current_dir(folder).env("CLOUDSDK_CONFIG", self.daemon.folder()).env_remove("SIGNET_CONFIG");
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program:?}: {stderr}\n{}", self.daemon.log());
        String::from_utf8(output.stdout).unwrap()
    }

    /// The claims that the API saw.
    fn claims(&self, folder: &Path, program: &[&str]) -> Value {
        let printed = self.led("", folder, program);
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{program:?}: {error}: {printed}"))
    }

    /// (a) unchanged, (b) a signed URL, (c) a JWT for one service: each by a program and the arguments that it wants first.
    fn examples(&self, folder: &Path, [adc, signed_url, jwt]: [&[&str]; 3], endpoint: &str, rest: &[&str]) {
        let url = format!("{}/v1/topics", self.url);
        let claims = self.claims(folder, &[adc, &[&url]].concat());
        assert_eq!((&claims["iss"], &claims["aud"]), (&EMAIL.into(), &Value::Null));
        assert!(
            claims["scope"].as_str().unwrap().contains("https://www.googleapis.com/auth/cloud-platform"),
            "{claims}"
        );
        let printed = self.led("", folder, &[signed_url, &["bucket", "folder/ä object~"], rest, &[endpoint]].concat());
        // Java signs for https, whatever it is told.
        let signed = printed.trim().replacen("https://", "http://", 1);
        assert_eq!(curl(&signed)["signed by"], EMAIL, "{signed}");
        let forged = signed.replacen("object~", "other~", 1);
        assert!(forged != signed && curl(&forged)["error"].is_string(), "{forged}");
        let claims = self.claims(folder, &[jwt, &[EMAIL, AUDIENCE, &url], rest].concat());
        assert_eq!((&claims["aud"], &claims["sub"], &claims["scope"]), (&AUDIENCE.into(), &EMAIL.into(), &Value::Null));
    }

    /// (a) again, led by a credentials file and a subject token.
    fn external_account(&self, folder: &Path, adc: &[&str]) {
        let path = |name: &str| self.daemon.folder().join(name).into_os_string().into_string().unwrap();
        let (file, subject) = (path("credentials.json"), path("subject"));
        let user = nix::unistd::geteuid().to_string();
        self.daemon.signetctl(&["subject-token", "--user", &user, "--out", &subject]);
        let url = format!("{}/v1/topics", self.url);
        let env = format!("--external-account {file} --subject-token {subject}");
        let printed = self.led(&env, folder, &[adc, &[&url]].concat());
        assert_eq!(serde_json::from_str::<Value>(&printed).unwrap()["iss"], EMAIL, "{printed}");
        assert_eq!(self.daemon.audit().last().unwrap()["rpc"], "STS/Token");
    }
}

/// What the API answers to a URL alone.
fn curl(url: &str) -> Value {
    let output = Command::new("curl").args(["--silent", "--noproxy", "*", url]).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn python() {
    let Some(stand) = Stand::new().await else { return };
    let (python, socket) = (root("target/verifiers/bin/python"), stand.socket());
    let python = python.to_str().unwrap();
    let programs: [&[&str]; 3] = [&[python, "adc.py"], &[python, "signed_url.py", EMAIL], &[python, "jwt_access.py"]];
    stand.examples(&root("examples/python"), programs, &stand.url, &[&socket]);
    stand.external_account(&root("examples/python"), programs[0]);
}

#[tokio::test]
async fn go() {
    if !is_there(
        Path::new("go"),
        &["version"],
        "Go 1.24 or newer (https://go.dev/dl)",
        "golang-go, where it is new enough",
    ) {
        return;
    }
    let Some(stand) = Stand::new().await else { return };
    let built = stand.daemon.folder().join("go");
    let mut build = Command::new("go");
    build.args(["build", "-mod=readonly", "-o"]).arg(&built).arg("./...").current_dir(root("examples/go"));
    std::fs::create_dir(&built).unwrap();
    let output = build.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let host = stand.url.trim_start_matches("http://");
    let socket = stand.socket();
    let programs: [&[&str]; 3] = [&["./adc"], &["./signedurl", EMAIL], &["./jwtaccess"]];
    stand.examples(&built, programs, host, &[&socket]);
    stand.external_account(&built, programs[0]);
}

#[tokio::test]
async fn node() {
    let folder = root("target/examples/node");
    if !is_there(Path::new("node"), &["--version"], "Node 18 or newer", "nodejs npm") {
        return;
    }
    if !folder.join("node_modules").exists() {
        return skip("target/examples/node (run scripts/deps)", "npm");
    }
    let Some(stand) = Stand::new().await else { return };
    for name in ["adc.js", "signed-url.js", "jwt-access.js"] {
        std::fs::copy(root("examples/node").join(name), folder.join(name)).unwrap();
    }
    let programs: [&[&str]; 3] = [&["node", "adc.js"], &["node", "signed-url.js"], &["node", "jwt-access.js"]];
    stand.examples(&folder, programs, &stand.url, &[]);
    stand.external_account(&folder, programs[0]);
}

#[tokio::test]
async fn java() {
    let libraries = root("target/examples/java");
    if !is_there(Path::new("java"), &["--version"], "Java 17 or newer", "default-jdk-headless") {
        return;
    }
    if !libraries.exists() {
        return skip("target/examples/java (run scripts/deps)", "maven");
    }
    let Some(stand) = Stand::new().await else { return };
    let libraries = libraries.join("*");
    let java = ["java", "-cp", libraries.to_str().unwrap()];
    let adc = [&java[..], &["Adc.java"]].concat();
    let signed_url = [&java[..], &["SignedUrl.java", EMAIL]].concat();
    let jwt = [&java[..], &["JwtAccess.java"]].concat();
    stand.examples(&root("examples/java/src/main/java"), [&adc, &signed_url, &jwt], &stand.url, &[]);
}

#[tokio::test]
async fn shell() {
    let Some(stand) = Stand::new().await else { return };
    let readme = std::fs::read_to_string(root("examples/shell/README.md")).unwrap();
    let lines = readme.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let programs = Path::new(env!("CARGO_BIN_EXE_signetctl")).parent().unwrap();
    let search = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", &lines.replace('\n', "\necho\n")]);
    let output = command.env("PATH", search).env("SIGNET_CONFIG", stand.daemon.config_file()).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}{printed}", String::from_utf8_lossy(&output.stderr));
    let answers: Vec<_> = printed.lines().filter(|line| !line.is_empty()).collect();
    let [token, identity, blob, jwt, jwks] = answers[..] else { panic!("{printed}") };
    assert!([token, identity, jwt].iter().all(|jwt| jwt.starts_with("eyJ")) && blob.len() == 344, "{printed}");
    assert!(jwks.starts_with(r#"{"keys":["#), "{printed}");
}
