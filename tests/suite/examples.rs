//! The examples in `examples/`, each run with the real library, led here by `signetctl env`, against a stand-in for a Google
//! API that believes the account's certificate and nothing else.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tonic_health::ServingStatus;

use crate::support::daemon::{ACCOUNT, TestDaemon};
use crate::support::languages::{self, root};
use crate::support::softhsm::SoftHsm;
use crate::support::{skip, skip_optional};

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

impl Stand {
    async fn new() -> Option<Self> {
        let python = languages::python()?;
        let token = SoftHsm::new()?;
        let numbered = "[metadata]\n\"project/numeric-project-id\" = \"7\"\n";
        let config = TestDaemon::config(&format!("http = \"127.0.0.1:0\"\n{numbered}{}", token.toml()));
        let config = config.replace(ACCOUNT, EMAIL);
        let mut daemon = TestDaemon::prepare(&config);
        daemon.signetctl(&["key", "generate", "--device", "hsm", "--kid", "k"]);
        daemon.spawn();
        daemon.wait_for_health(ServingStatus::Serving).await;
        daemon.settle_http();
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
        let output = self.daemon.led(env, program).current_dir(folder).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program:?}: {stderr}\n{}", self.daemon.log());
        String::from_utf8(output.stdout).unwrap()
    }

    /// The claims that the API saw.
    fn claims(&self, folder: &Path, program: &[&str]) -> Value {
        let printed = self.led("", folder, program);
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{program:?}: {error}: {printed}"))
    }

    /// (a) unchanged.
    fn unchanged(&self, folder: &Path, program: &[&str]) {
        let claims = self.claims(folder, &[program, &[&format!("{}/v1/topics", self.url)]].concat());
        assert_eq!((&claims["iss"], &claims["aud"]), (&EMAIL.into(), &Value::Null));
        let scope = claims["scope"].as_str().unwrap();
        assert!(scope.contains("https://www.googleapis.com/auth/cloud-platform"), "{claims}");
    }

    /// (b) A signed URL of this endpoint.
    fn signed_url(&self, folder: &Path, program: &[&str], endpoint: &[&str]) {
        let printed = self.led("", folder, &[program, &["bucket", "folder/ä object~"], endpoint].concat());
        // Java signs for https, whatever it is told.
        let signed = printed.trim().replacen("https://", "http://", 1);
        assert_eq!(curl(&signed)["signed by"], EMAIL, "{signed}");
        let forged = signed.replacen("object~", "other~", 1);
        assert!(forged != signed && curl(&forged)["error"].is_string(), "{forged}");
    }

    /// (c) A JWT for one service.
    fn jwt_access(&self, folder: &Path, program: &[&str], rest: &[&str]) {
        let url = format!("{}/v1/topics", self.url);
        let claims = self.claims(folder, &[program, &[EMAIL, AUDIENCE, &url], rest].concat());
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

impl Stand {
    /// What the lines of a block of examples/shell/README.md print.
    fn lines_of_shell_readme(&self, block: usize) -> Vec<String> {
        let readme = std::fs::read_to_string(root("examples/shell/README.md")).unwrap();
        let lines = readme.split("```sh\n").nth(block).and_then(|rest| rest.split("```").next()).unwrap();
        let ours = Path::new(env!("CARGO_BIN_EXE_signetctl")).parent().unwrap();
        let path = std::env::var("PATH").unwrap();
        let search = format!("{}:{}:{path}", ours.display(), root("target/examples/bin").display());
        let mut command = Command::new("bash");
        // A line may print without an end.
        command.args(["-euo", "pipefail", "-c", &lines.replace("\\\n", "").replace('\n', "\necho\n")]);
        command.env("PATH", search).env("SIGNET_CONFIG", self.daemon.config_file()).env("SIGNET_SOCKET", self.socket());
        let output = command.output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}{printed}", String::from_utf8_lossy(&output.stderr));
        printed.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
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
    let Some(python) = languages::python() else { return };
    let (folder, socket) = (root("examples/python"), stand.socket());
    let python = python.to_str().unwrap();
    stand.unchanged(&folder, &[python, "adc.py"]);
    stand.signed_url(&folder, &[python, "signed_url.py", EMAIL], &[&socket, &stand.url]);
    stand.jwt_access(&folder, &[python, "jwt_access.py"], &[&socket]);
    stand.external_account(&folder, &[python, "adc.py"]);
}

#[tokio::test]
async fn go() {
    let Some(stand) = Stand::new().await else { return };
    let folder = stand.daemon.folder().join("go");
    let Some(()) = languages::go("examples/go", &folder) else { return };
    let socket = stand.socket();
    stand.unchanged(&folder, &["./adc"]);
    stand.signed_url(&folder, &["./signedurl", EMAIL], &[&socket, stand.url.trim_start_matches("http://")]);
    stand.jwt_access(&folder, &["./jwtaccess"], &[&socket]);
    stand.external_account(&folder, &["./adc"]);
}

#[tokio::test]
async fn node() {
    let Some(folder) = languages::node() else { return };
    let Some(stand) = Stand::new().await else { return };
    for name in ["adc.js", "signed-url.js", "jwt-access.js"] {
        std::fs::copy(root("examples/node").join(name), folder.join(name)).unwrap();
    }
    stand.unchanged(&folder, &["node", "adc.js"]);
    stand.signed_url(&folder, &["node", "signed-url.js"], &[&stand.url]);
    stand.jwt_access(&folder, &["node", "jwt-access.js"], &[]);
    stand.external_account(&folder, &["node", "adc.js"]);
}

#[tokio::test]
async fn java() {
    let Some(libraries) = languages::java() else { return };
    let Some(stand) = Stand::new().await else { return };
    let folder = root("examples/java/src/main/java");
    let java = ["java", "-cp", &libraries];
    stand.unchanged(&folder, &[&java[..], &["Adc.java"]].concat());
    stand.signed_url(&folder, &[&java[..], &["SignedUrl.java", EMAIL]].concat(), &[&stand.url]);
    stand.jwt_access(&folder, &[&java[..], &["JwtAccess.java"]].concat(), &[]);
}

/// Compiled and run by Mono with as much of Google's library as it needs, written anew: see tests/clients/csharp/.
#[tokio::test]
async fn csharp() {
    let Some(json) = languages::mono() else { return };
    let Some(stand) = Stand::new().await else { return };
    let folder = root("examples/csharp");
    let compiled = |name: &str| {
        let program = stand.daemon.folder().join(name).into_os_string().into_string().unwrap();
        let mut mcs = Command::new("mcs");
        mcs.args(["-nologo", "-warnaserror", "-langversion:7", "-r:System.Net.Http"]).arg(format!("-r:{json}"));
        mcs.arg(format!("-main:{name}")).arg(format!("-out:{program}")).args(["Adc.cs", "JwtAccess.cs"]);
        let output = mcs.arg(root("tests/clients/csharp/GoogleApis.cs")).current_dir(&folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        program
    };
    stand.unchanged(&folder, &["mono", &compiled("Adc")]);
    stand.jwt_access(&folder, &["mono", &compiled("JwtAccess")], &[]);
}

#[tokio::test]
async fn rust() {
    let Some(folder) = languages::rust() else { return };
    let Some(stand) = Stand::new().await else { return };
    stand.unchanged(&folder, &["./adc"]);
    stand.jwt_access(&folder, &["./jwt_access"], &[]);
    stand.external_account(&folder, &["./adc"]);
}

/// The client of the daemon's own API.
#[tokio::test]
async fn rust_tonic() {
    let Some(stand) = Stand::new().await else { return };
    let programs = Path::new(env!("CARGO_BIN_EXE_signetctl")).parent().unwrap();
    // There already where all of the tests run.
    languages::cargo(&["build", "--example", "signetd"], &root(""));
    let output = Command::new(programs.join("examples/signetd")).arg(stand.socket()).arg(AUDIENCE).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let claims = stand.daemon.claims("k", printed.trim());
    assert_eq!((&claims["aud"], &claims["iss"]), (&AUDIENCE.into(), &EMAIL.into()));
}

/// gcloud, led here as the README says, and to the stand-in for what it asks of Cloud Storage.
#[tokio::test]
async fn gcloud() {
    if !Command::new("gcloud").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return skip_optional("gcloud (https://cloud.google.com/sdk)");
    }
    let Some(stand) = Stand::new().await else { return };
    let (folder, storage) = (stand.daemon.folder(), format!("CLOUDSDK_STORAGE_GS_XML_ENDPOINT_URL={}", stand.url));
    let gcloud = |arguments: &str| {
        let words: Vec<_> = ["env", &storage, "gcloud"].into_iter().chain(arguments.split(' ')).collect();
        stand.led("", folder, &words)
    };
    assert!(gcloud("auth print-access-token").starts_with("eyJ"));
    assert!(gcloud("auth print-identity-token --audiences=https://internal.example").starts_with("eyJ"));
    std::fs::write(folder.join("claims"), r#"{"aud":"https://internal.example"}"#).unwrap();
    gcloud(&format!("iam service-accounts sign-jwt --iam-account={EMAIL} claims signed"));
    assert!(std::fs::read_to_string(folder.join("signed")).unwrap().starts_with("eyJ"));
    gcloud(&format!("iam service-accounts sign-blob --iam-account={EMAIL} claims signature"));
    assert_eq!(std::fs::read(folder.join("signature")).unwrap().len(), 256);
    assert!(gcloud(&format!("auth print-access-token --impersonate-service-account={EMAIL}")).starts_with("eyJ"));
    // Only as somebody else does it have others sign, even where the two are the same.
    let url = "gs://bucket/object --region=auto --duration=10m --format=value(signed_url)";
    let signed = gcloud(&format!("storage sign-url {url} --impersonate-service-account={EMAIL}"));
    assert_eq!(curl(signed.trim())["signed by"], EMAIL, "{signed}");
}

#[tokio::test]
async fn shell() {
    let Some(stand) = Stand::new().await else { return };
    let answers = stand.lines_of_shell_readme(1);
    let [token, identity, blob, jwt, jwks] = &answers[..] else { panic!("{answers:?}") };
    assert!([token, identity, jwt].iter().all(|jwt| jwt.starts_with("eyJ")) && blob.len() == 344, "{answers:?}");
    assert!(jwks.starts_with(r#"{"keys":["#), "{answers:?}");
}

#[tokio::test]
async fn shell_grpcurl() {
    if !root("target/examples/bin/grpcurl").exists() {
        return skip("target/examples/bin/grpcurl (run scripts/deps)", "golang-go");
    }
    let Some(stand) = Stand::new().await else { return };
    let answers = stand.lines_of_shell_readme(2);
    let [google, grpc, reflection @ .., token, blob] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(google, "google.iam.credentials.v1.IAMCredentials");
    assert!(grpc.starts_with("grpc.") && reflection.contains(&"signet.v1.Signer".to_owned()), "{answers:?}");
    assert!(token.starts_with("eyJ") && blob.len() == 344, "{answers:?}");
}
