//! Google's auth libraries, unchanged, through the life of a device: what each gets, and what it makes of a refusal. They are
//! asked the same, side by side, on a TPM that is cut off meanwhile. Their programs: tests/clients/README.md.

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use signet::key::sha256;
use tonic_health::ServingStatus;

use crate::support::daemon::TestDaemon;
use crate::support::eventually;
use crate::support::languages::{self, root};
use crate::support::swtpm::SwTpm;

/// Not Google's: for those some libraries ask Google, in the background, where the account may be used.
const FIRST: &str = "first@project.example";
const SECOND: &str = "second@project.example";
const AUDIENCE: &str = "https://internal.example/";

fn scope(name: &str) -> String {
    format!("https://www.googleapis.com/auth/{name}")
}

/// Two accounts, and this user's rule for both of them; another one lets him have tokens of 200 s for storage.
fn config(tpm: &SwTpm, users: &str) -> String {
    let more = format!(
        r#"
        http = "127.0.0.1:0"
        [[device]]
        name = "tpm"
        kind = "tpm"
        tcti = "{}"
        [[account]]
        email = "{SECOND}"
        project_id = "project"
        [[account]]
        email = "{FIRST}"
        project_id = "project"
        default = true
        [[allow]]
        users = {users}
        accounts = ["{FIRST}", "{SECOND}"]
        operations = ["mint-access-token", "mint-id-token"]
        scopes = {:?}
        audiences = ["{AUDIENCE}"]
        [[allow]]
        users = {users}
        accounts = ["{FIRST}"]
        operations = ["mint-access-token"]
        scopes = ["{}"]
        max_lifetime = "200s"
        "#,
        tpm.tcti(),
        // Those who impersonate another account show a token of their own for iam (Python), or for cloud-platform (Java).
        ["pubsub", "bigquery", "iam", "cloud-platform"].map(scope),
        scope("devstorage.*"),
    );
    format!("state_dir = \"state\"\n[listen]\ngrpc = \"run/signet.sock\"\nmode = \"0666\"\n{more}")
}

/// A library's program that waits for lines. Dropped, it ends.
struct Library {
    name: &'static str,
    process: Child,
    lines: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Drop for Library {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Library {
    fn start(name: &'static str, mut command: Command) -> Self {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { name, process, lines, answers }
    }

    /// Those that are installed, led by `signetctl env` with these arguments.
    fn all(daemon: &TestDaemon, env: &str) -> Vec<Self> {
        let mut all = Vec::new();
        let text = |path: std::path::PathBuf| path.into_os_string().into_string().unwrap();
        let programs = daemon.folder().join("go");
        if languages::go("tests/clients/go", &programs).is_some() {
            all.push(Self::start("go", daemon.led(env, &[&text(programs.join("tokens"))])));
        }
        if let Some(folder) = languages::node() {
            // It looks for libraries beside the program.
            let program = folder.join("tokens.mjs");
            std::fs::copy(root("tests/clients/node/tokens.mjs"), &program).unwrap();
            all.push(Self::start("node", daemon.led(env, &["node", &text(program)])));
        }
        if let Some(libraries) = languages::java() {
            let program = text(root("tests/clients/java/Tokens.java"));
            all.push(Self::start("java", daemon.led(env, &["java", "-cp", &libraries, &program])));
        }
        if let Some(python) = languages::python() {
            let program = text(root("tests/clients/python/tokens.py"));
            all.push(Self::start("python", daemon.led(env, &[&text(python), &program])));
        }
        all
    }
}

/// What a library answered: a token, or what it said instead.
type Answer = (&'static str, Result<String, String>);

/// Says a line to all of them; `{name}` is the library's.
fn tell(libraries: &mut [Library], line: &str) {
    for library in libraries {
        writeln!(library.lines, "{}", line.replace("{name}", library.name)).unwrap();
    }
}

fn hear<'a>(libraries: impl Iterator<Item = &'a mut Library>) -> Vec<Answer> {
    let answer = |library: &mut Library| {
        let answer = library.answers.next().unwrap_or_else(|| panic!("{} ended", library.name)).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let token = answer["token"].as_str().map(str::to_owned);
        (library.name, token.ok_or_else(|| answer["error"].as_str().unwrap().to_owned()))
    };
    libraries.map(answer).collect()
}

fn ask(libraries: &mut [Library], line: &str) -> Vec<Answer> {
    tell(libraries, line);
    hear(libraries.iter_mut())
}

#[tokio::test]
async fn googles_libraries_get_what_the_rules_allow_while_a_tpm_goes_and_comes_back() {
    let Some(mut tpm) = SwTpm::start() else { return };
    let mut daemon = TestDaemon::prepare(&config(&tpm, "[{uid}]"));
    daemon.signetctl(&["device", "init", "tpm"]);
    for (account, kid) in [(FIRST, "first"), (SECOND, "second")] {
        daemon.signetctl(&["key", "generate", "--device", "tpm", "--account", account, "--kid", kid]);
    }
    daemon.spawn();
    daemon.wait_for_health(ServingStatus::Serving).await;
    let address = daemon.settle_http();
    let libraries = &mut Library::all(&daemon, "")[..];
    let claims = |kid: &str, answers: Vec<Answer>| -> Vec<(&'static str, Value)> {
        let verified = |(name, answer): Answer| match answer {
            Ok(token) => (name, daemon.claims(kid, &token)),
            Err(error) => panic!("{name}: {error}\n{}", daemon.log()),
        };
        answers.into_iter().map(verified).collect()
    };
    // Without a rule, or a device, a library shows the reason that it was given.
    let refused = |answers: Vec<Answer>, reason: &str| {
        for (name, answer) in answers {
            let error = answer.expect_err(name);
            assert!(error.contains(reason), "{name}: {error}");
        }
    };
    let (pubsub, both) = (scope("pubsub"), format!("{} {}", scope("bigquery"), scope("pubsub")));

    for (name, claims) in claims("first", ask(libraries, &format!("access {pubsub}"))) {
        assert_eq!((&claims["iss"], &claims["scope"]), (&FIRST.into(), &pubsub.clone().into()), "{name}");
    }
    for (name, claims) in claims("first", ask(libraries, &format!("access {both}"))) {
        assert_eq!(claims["scope"].as_str().unwrap().split(' ').count(), 2, "{name}: {claims}");
    }
    for (name, claims) in claims("first", ask(libraries, &format!("identity {AUDIENCE}"))) {
        assert_eq!((&claims["aud"], &claims["email"]), (&AUDIENCE.into(), &FIRST.into()), "{name}");
    }
    for (name, claims) in claims("second", ask(libraries, &format!("account {SECOND} {pubsub}"))) {
        assert_eq!((&claims["iss"], &claims["scope"]), (&SECOND.into(), &pubsub.clone().into()), "{name}");
    }
    // Or a credentials file names it, for all but Java's.
    let file = |name: &str| daemon.folder().join(name).into_os_string().into_string().unwrap();
    let (credentials, subject) = (file("credentials.json"), file("subject"));
    daemon.signetctl(&["subject-token", "--user", &nix::unistd::geteuid().to_string(), "--out", &subject]);
    let env = format!("--external-account {credentials} --subject-token {subject} --account {SECOND}");
    let mut by_file = Library::all(&daemon, &env);
    by_file.retain(|library| library.name != "java");
    for (name, claims) in claims("second", ask(&mut by_file, &format!("access {pubsub}"))) {
        assert_eq!(claims["iss"], SECOND, "{name}");
    }
    refused(ask(libraries, &format!("access {}", scope("drive"))), "not allowed");

    // With 200 s left a token is about to end, for each of them: it asks for the next one before.
    let short = scope("devstorage.{name}");
    for (name, claims) in claims("first", ask(libraries, &format!("access {short}"))) {
        assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 200, "{name}");
    }
    claims("first", ask(libraries, "again"));
    for library in &*libraries {
        let asked = sha256(short.replace("{name}", library.name).as_bytes());
        let what = format!("{} refreshes", library.name);
        let lines = async || daemon.audit().iter().filter(|line| line["scope_sha256"] == asked).count();
        eventually(&what, async || lines().await >= 2).await;
    }

    tpm.kill();
    daemon.wait_for_health(ServingStatus::NotServing).await;
    // What was minted before is there for who asks anew, and what was not is refused with a reason.
    claims("first", ask(libraries, &format!("access {pubsub}")));
    tell(libraries, &format!("access {}", scope("devstorage.{name}-later")));
    // Python's tries again for a quarter of a minute, so it gets what it wants when the device is back.
    let asked = Instant::now();
    refused(hear(libraries.iter_mut().filter(|library| library.name != "python")), "the device is away");
    assert!(asked.elapsed() < Duration::from_secs(10), "nobody else is kept waiting");
    tpm.restart();
    claims("first", hear(libraries.iter_mut().filter(|library| library.name == "python")));
    daemon.wait_for_health(ServingStatus::Serving).await;
    claims("first", ask(libraries, "again"));

    // The operator takes the rules away.
    daemon.configure(&config(&tpm, "[4711]").replace("127.0.0.1:0", &address.to_string()));
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_log("reloaded");
    let answers = ask(libraries, &format!("access {pubsub}"));
    // As docs/clients.md says.
    for (library, shows) in [
        ("python", "RefreshError("),
        ("go", "credentials: cannot fetch token"),
        ("node", "A Forbidden error was returned"),
        ("java", "java.io.IOException"),
    ] {
        let is_it = |answer: &&Answer| answer.0 == library;
        let shown = answers.iter().find(is_it).is_none_or(|(_, answer)| answer.as_ref().unwrap_err().contains(shows));
        assert!(shown, "{answers:?}");
    }
    refused(answers, "no rule");
}
