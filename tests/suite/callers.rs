//! Who is served by what they run, and how often: rules by unit, executable and rate (T2, T10).

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use signet::key::sha256;
use signet::proto::signer_client::SignerClient;
use signet::proto::{self, sign_blob_request as blob};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::daemon::{TestDaemon, channel, reason};

/// A daemon without a device, and for each of these names an account `NAME@x` with a rule of these conditions. Who is
/// allowed to sign is told that there is no key.
fn daemon(rules: &[(&str, String)]) -> TestDaemon {
    TestDaemon::start(&config(rules))
}

fn config(rules: &[(&str, String)]) -> String {
    let accounts = rules.iter().map(|(name, conditions)| {
        format!(
            "[[account]]\nemail = \"{name}@x\"\n[[allow]]\naccounts = [\"{name}@x\"]\noperations = [\"sign-blob\"]\n{conditions}\n"
        )
    });
    let rest = r#"
        state_dir = "state"
        [listen]
        grpc = "run/signet.sock"
        mode = "0666"
        [[device]]
        name = "tpm"
        kind = "tpm"
        tcti = "swtpm:path={folder}/no-such-tpm"
    "#;
    rest.to_owned() + &accounts.collect::<String>()
}

async fn ask(client: &mut SignerClient<Channel>, name: &str) -> Status {
    let input = Some(blob::Input::Payload(b"x".to_vec().into()));
    let account = format!("{name}@x");
    client.sign_blob(proto::SignBlobRequest { account, input, algorithm: 0 }).await.unwrap_err()
}

const ALLOWED: &str = "NO_ACTIVE_KEY";
const DENIED: &str = "NOT_ALLOWED";

/// Whether a command, which is signetctl or becomes it, is allowed to sign for an account.
fn is_allowed(daemon: &TestDaemon, command: &mut Command, name: &str) -> bool {
    let message = daemon.folder().join("message");
    fs::write(&message, "x").unwrap();
    command.arg("--config").arg(daemon.config_file()).args(["sign-blob", "--account", &format!("{name}@x")]);
    let output = command.arg(message).output().unwrap();
    match output.status.code() {
        Some(4) => true,
        Some(3) => false,
        _ => panic!("{name}: {}", String::from_utf8_lossy(&output.stderr)),
    }
}

fn signetctl() -> &'static str {
    env!("CARGO_BIN_EXE_signetctl")
}

#[tokio::test]
async fn an_executable_is_known_by_its_path_and_its_contents() {
    let right = sha256(&fs::read(signetctl()).unwrap());
    let wrong = right.chars().rev().collect::<String>();
    let rule = |executable: &str| format!("users = [{{uid}}]\nexecutables = [{executable}]");
    let path = signetctl();
    let daemon = daemon(&[
        ("path", rule(&format!("\"{path}\""))),
        ("right", rule(&format!("{{ path = \"{path}\", sha256 = \"{right}\" }}"))),
        ("wrong", rule(&format!("{{ path = \"{path}\", sha256 = \"{wrong}\" }}"))),
        ("either", rule(&format!("\"/usr/bin/other\", \"{path}\""))),
        ("other", rule("\"/usr/bin/other\"")),
        ("copy", rule("\"{folder}/copy\"")),
    ]);
    let copy = daemon.folder().join("copy");
    fs::copy(path, &copy).unwrap();
    for (program, allowed) in [(Path::new(path), ["path", "right", "either"].as_slice()), (&copy, &["copy"])] {
        for name in ["path", "right", "wrong", "either", "other", "copy"] {
            let served = is_allowed(&daemon, &mut Command::new(program), name);
            assert_eq!(served, allowed.contains(&name), "{name} by {}", program.display());
        }
    }
    let log = daemon.audit();
    assert_eq!(log[0]["executable"], fs::canonicalize(path).unwrap().to_str().unwrap());
    assert_eq!(log[2]["reason"], "no rule is for this caller and this account");
}

/// The daemon is stopped while the child connects, so that it is gone by the time when it is looked at.
#[tokio::test]
async fn what_a_process_ran_that_handed_its_socket_on_and_ended_is_unknown() {
    for stays in [true, false] {
        let python = output(Command::new("python3").args(["-c", "import sys; print(sys.executable)"]));
        let runs_python = format!("users = [{{uid}}]\nexecutables = [\"{}\"]", python.trim());
        let daemon = daemon(&[("user", "users = [{uid}]".to_owned()), ("python", runs_python)]);
        daemon.signal(Signal::SIGSTOP);
        let heir = daemon.folder().join("heir");
        let mut opener = Command::new("python3");
        opener.args(["-c", OPENER]).arg(daemon.socket()).arg(&heir).arg(HEIR).args(stays.then_some("stay"));
        let mut opener = opener.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // It has handed its socket on; where it stays, it waits for the end of its input.
        let mut handed_on = std::io::BufReader::new(opener.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut handed_on, &mut String::new()).unwrap();
        if !stays {
            opener.wait().unwrap();
        }
        daemon.signal(Signal::SIGCONT);
        let mut client = SignerClient::new(channel(&heir));
        // The heir runs the same program, as the same user.
        assert_eq!(reason(&ask(&mut client, "user").await), ALLOWED);
        let expected = if stays { ALLOWED } else { DENIED };
        assert_eq!(reason(&ask(&mut client, "python").await), expected, "the opener stays: {stays}");
        drop(opener.stdin.take());
        opener.wait().unwrap();
    }
}

/// Connects, starts an heir with the socket, tells when the heir listens, and ends or stays.
const OPENER: &str = "
import socket, subprocess, sys
daemon, heir, script = sys.argv[1:4]
connection = socket.socket(socket.AF_UNIX)
connection.connect(daemon)
listener = socket.socket(socket.AF_UNIX)
listener.bind(heir)
listener.listen()
fds = [connection.fileno(), listener.fileno()]
null = subprocess.DEVNULL
subprocess.Popen([sys.executable, '-c', script, *map(str, fds)], pass_fds=fds, stdin=null, stdout=null)
print('handed on', flush=True)
if sys.argv[4:]:
    sys.stdin.read()
";

/// Lets one client use the socket that was handed on.
const HEIR: &str = "
import contextlib, socket, sys, threading
daemon, listener = (socket.socket(fileno=int(fd)) for fd in sys.argv[1:])
listener.settimeout(60)
client, _ = listener.accept()
client.settimeout(None)
def pump(source, sink):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
threading.Thread(target=pump, args=(daemon, client), daemon=True).start()
pump(client, daemon)
";

fn output(command: &mut Command) -> String {
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

#[tokio::test]
async fn a_unit_is_known_by_its_control_group() {
    let name = format!("signet-test-{}.service", std::process::id());
    let Some(unit) = ControlGroup::new(&name) else { return };
    let Some(other) = ControlGroup::new(&format!("other-{name}")) else { return };
    let daemon = daemon(&[
        ("unit", format!("units = [\"{name}\"]")),
        ("glob", "units = [\"signet-test-*.service\"]".to_owned()),
        ("user", "users = [{uid}]".to_owned()),
    ]);
    let inside = |group: &ControlGroup| {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]).arg(&group.0).arg(signetctl());
        command
    };
    for name in ["unit", "glob", "user"] {
        assert!(is_allowed(&daemon, &mut inside(&unit), name), "{name}");
        let elsewhere =
            [is_allowed(&daemon, &mut inside(&other), name), is_allowed(&daemon, &mut Command::new(signetctl()), name)];
        assert_eq!(elsewhere, [name == "user"; 2], "{name}");
    }
    assert_eq!(daemon.audit()[0]["unit"], name);
}

/// A control group of systemd's hierarchy; removed on drop.
struct ControlGroup(PathBuf);

impl ControlGroup {
    fn new(name: &str) -> Option<Self> {
        let hierarchies = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup"].map(Path::new);
        let root = hierarchies.into_iter().find(|root| root.join("cgroup.procs").exists());
        let group = root.map(|root| root.join(name)).filter(|group| fs::create_dir(group).is_ok());
        if group.is_none() {
            // Few containers let their root make control groups: no reason to fail there. The parser has tests of its own.
            let _ =
                writeln!(std::io::stderr(), "SKIPPED a_unit_is_known_by_its_control_group: can't make control groups");
        }
        group.map(Self)
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[tokio::test]
async fn a_rate_is_kept_by_user_told_audited_and_survives_a_reload() {
    let limited = |rate: &str| config(&[("limited", format!("users = [{{uid}}]\nrate = \"{rate}\""))]);
    let daemon = TestDaemon::start(&limited("2/m"));
    let mut client = daemon.client();
    for _ in 0..2 {
        assert_eq!(reason(&ask(&mut client, "limited").await), ALLOWED);
    }
    let refused = ask(&mut client, "limited").await;
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "RATE_LIMITED"));
    let retry = refused.get_error_details().retry_info().unwrap().retry_delay.unwrap();
    assert!(retry > Duration::from_secs(1) && retry <= Duration::from_secs(30), "{retry:?}");
    let log = daemon.audit();
    assert_eq!(
        (&log[2]["decision"], &log[2]["rule"], &log[2]["outcome"]),
        (&"allow".into(), &1.into(), &"RATE_LIMITED".into())
    );

    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_log("reloaded");
    assert_eq!(reason(&ask(&mut client, "limited").await), "RATE_LIMITED", "the rule is what it was");
    daemon.configure(&limited("1000/s"));
    daemon.signal(Signal::SIGHUP);
    let reloaded = async {
        while reason(&ask(&mut client, "limited").await) != ALLOWED {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), reloaded).await.expect("another rate begins anew");
}
