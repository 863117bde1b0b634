//! What a supervisor sees of the daemon: ready, reloading, stopping, the watchdog, and the socket that it hands over.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic_types::StatusExt as _;

use crate::support::daemon::{TestDaemon, payload};
use crate::support::http::send;
use crate::support::softhsm::SoftHsm;

/// The supervisor's end of the notifications.
struct Supervisor(UnixDatagram);

impl Supervisor {
    /// Starts a daemon that has a supervisor.
    fn of(daemon: &mut TestDaemon, environment: &[(&str, &str)]) -> Self {
        let path = daemon.folder().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let mut command = daemon.command();
        command.env("NOTIFY_SOCKET", &path).envs(environment.iter().copied());
        daemon.spawn_as(command);
        Self(socket)
    }

    /// The next message, unless none comes in time.
    fn next(&self, patience: Duration) -> Option<String> {
        self.0.set_read_timeout(Some(patience.max(Duration::from_millis(1)))).unwrap();
        let mut message = [0; 4096];
        let length = self.0.recv(&mut message).ok()?;
        Some(String::from_utf8(message[..length].to_vec()).unwrap())
    }

    /// Every message up to the one that has this line.
    fn until(&self, line: &str) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut messages = Vec::new();
        while let Some(message) = self.next(deadline.saturating_duration_since(Instant::now())) {
            let last = message.lines().any(|told| told == line);
            messages.push(message);
            if last {
                return messages;
            }
        }
        panic!("no {line:?}: {messages:#?}");
    }
}

/// A token and a daemon with one key in it, which does not run yet; `device` is more for its device.
fn prepared(device: &str) -> Option<(SoftHsm, TestDaemon)> {
    let token = SoftHsm::new()?;
    let daemon = TestDaemon::prepare(&TestDaemon::config(&format!("{}{device}\n", token.toml())));
    daemon.signetctl(&["key", "generate", "--device", "hsm"]);
    Some((token, daemon))
}

#[test]
fn ready_is_told_with_the_first_signature_and_each_reload_and_the_stop() {
    let Some((_token, mut daemon)) = prepared("") else { return };
    let supervisor = Supervisor::of(&mut daemon, &[]);
    let told = supervisor.until("READY=1").concat();
    assert!(told.contains("STATUS=signing; hsm is ready\n"), "{told}");
    daemon.wait_for_log("the key is in its device");
    daemon.signal(Signal::SIGHUP);
    let told = supervisor.until("RELOADING=1").pop().unwrap();
    assert!(told.contains("MONOTONIC_USEC="), "{told}");
    supervisor.until("READY=1");
    daemon.signal(Signal::SIGTERM);
    supervisor.until("STOPPING=1");
    assert!(daemon.wait().success());
}

#[test]
fn without_its_device_the_daemon_is_ready_after_its_grace_and_says_so() {
    let Some((token, mut daemon)) = prepared("") else { return };
    let tokens = token.directory.join("tokens");
    let away = token.directory.join("away");
    std::fs::rename(&tokens, &away).unwrap();
    std::fs::create_dir(&tokens).unwrap();
    let began = Instant::now();
    let supervisor = Supervisor::of(&mut daemon, &[]);
    let told = supervisor.until("READY=1").concat();
    assert!(began.elapsed() >= Duration::from_secs(9), "it was ready after {:?}", began.elapsed());
    assert!(told.contains("STATUS=no account can sign; hsm can't be used: "), "{told}");
    daemon.wait_for_log("starting without a device that signs");
    std::fs::remove_dir_all(&tokens).unwrap();
    std::fs::rename(&away, &tokens).unwrap();
    supervisor.until("STATUS=signing; hsm is ready");
}

#[test]
fn the_watchdog_is_fed_by_a_device_that_answers_and_not_by_one_that_hangs() {
    let Some((_token, mut daemon)) = prepared("call_limit = \"3s\"") else { return };
    let supervisor = Supervisor::of(&mut daemon, &[("WATCHDOG_USEC", "1000000")]);
    supervisor.until("WATCHDOG=1");
    supervisor.until("READY=1");
    let device = daemon.device_process();
    kill(Pid::from_raw(device), Signal::SIGSTOP).unwrap();
    // What was on its way comes; then there is silence for as long as the call may take.
    while supervisor.next(Duration::from_millis(700)).is_some() {}
    assert_eq!(supervisor.next(Duration::from_secs(1)), None, "a device that hangs feeds nothing");
    daemon.wait_for_log("lost a device process");
    supervisor.until("WATCHDOG=1");
    assert_ne!(daemon.device_processes(), [device]);
}

#[test]
fn a_device_that_is_known_to_be_away_feeds_the_watchdog() {
    let Some((token, mut daemon)) = prepared("") else { return };
    std::fs::remove_dir_all(token.directory.join("tokens")).unwrap();
    let supervisor = Supervisor::of(&mut daemon, &[("WATCHDOG_USEC", "2000000")]);
    daemon.wait_for_log("the device can't be used");
    while supervisor.next(Duration::from_millis(1)).is_some() {}
    supervisor.until("WATCHDOG=1");
}

/// The command with this socket at descriptors 3 and 4, as systemd passes it.
fn with_socket(daemon: &TestDaemon, socket: impl Into<OwnedFd>, count: u8, names: &str) -> Command {
    let signetd = daemon.command();
    let mut command = Command::new("sh");
    command
        .args(["-c", "LISTEN_PID=$$ exec \"$@\" 3<&0 4<&0 </dev/null", "sh"])
        .arg(signetd.get_program())
        .args(signetd.get_args())
        .env("LISTEN_FDS", count.to_string())
        .env("LISTEN_FDNAMES", names)
        .stdin(socket.into());
    command
}

#[tokio::test]
async fn a_socket_that_was_passed_is_served_and_outlives_the_daemon() {
    let Some((_token, mut daemon)) = prepared("") else { return };
    for (count, names) in [(1, "signetd.socket"), (2, "metrics:grpc")] {
        let socket = UnixListener::bind(daemon.socket()).unwrap();
        // A caller may come before the daemon does.
        let mut client = daemon.client();
        let early = tokio::spawn(async move { client.sign_blob(payload(b"message")).await });
        daemon.spawn_as(with_socket(&daemon, socket, count, names));
        daemon.wait_for_health(tonic_health::ServingStatus::Serving).await;
        // It was served, if only with the news that the device was not open yet.
        let early = early.await.unwrap();
        assert!(early.is_ok() || early.unwrap_err().get_error_details().error_info().is_some());
        daemon.client().sign_blob(payload(b"message")).await.unwrap();
        assert!(daemon.stop().success());
        assert!(daemon.socket().exists(), "it is the supervisor's to remove");
        std::fs::remove_file(daemon.socket()).unwrap();
    }
    let uid = nix::unistd::geteuid().as_raw();
    assert!(daemon.audit().iter().all(|record| record["uid"] == uid));
}

#[test]
fn of_several_sockets_one_must_be_named() {
    let daemon = TestDaemon::prepare(&TestDaemon::config(
        "[[device]]\nname = \"tpm\"\nkind = \"tpm\"\ntcti = \"device:{folder}/no-such-tpm\"\n",
    ));
    let socket = UnixListener::bind(daemon.socket()).unwrap();
    let output = with_socket(&daemon, socket, 2, "one:another").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("none is named grpc"), "{said}");
}

#[tokio::test]
async fn a_port_that_was_passed_is_served_beside_the_socket() {
    let Some((_token, mut daemon)) = prepared("") else { return };
    let configured = std::fs::read_to_string(daemon.config_file()).unwrap();
    daemon.configure(&configured.replacen("grpc =", "http = \"127.0.0.1:1\"\ngrpc =", 1));
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = port.local_addr().unwrap();
    daemon.spawn_as(with_socket(&daemon, port, 1, "http"));
    assert_eq!(daemon.http(), address);
    daemon.wait_for_health(tonic_health::ServingStatus::Serving).await;
    assert_eq!(send(address, "GET /readyz", &[], "").status, 200);
}
