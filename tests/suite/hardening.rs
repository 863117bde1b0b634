//! What the daemon and its device processes have given up, seen from inside, and what the packaged unit takes from them (T9).

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use signet::config::Config;
use signet::proto::{self, sign_blob_request as blob};

use crate::signing::on_softhsm;
use crate::support::daemon::{NO_DEVICE, TestDaemon};
use crate::support::modules::Shim;
use crate::support::softhsm::SoftHsm;
use crate::support::{eventually, skip, write_private};

/// What `look` sees from inside of the daemon's confinement, which binds a thread and ends with it.
fn confined<T: Send>(daemon: &TestDaemon, port: Option<u16>, look: impl FnOnce() -> T + Send) -> T {
    let config = Config::load(&daemon.config_file()).unwrap();
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            signet::daemon::confine(&config, port);
            look()
        });
        inside.join().unwrap()
    })
}

fn is_closed(path: &Path) -> bool {
    let read = File::open(path).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied);
    let write = OpenOptions::new().append(true).open(path);
    read && write.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

#[tokio::test]
async fn the_daemon_can_open_its_own_files_and_no_pin_token_device_or_program() {
    let Some((token, daemon)) = on_softhsm().await else { return };
    let beside = daemon.folder().join("hsm.pin");
    fs::copy(token.pin_file(), &beside).unwrap();
    let text = fs::read_to_string(daemon.config_file()).unwrap();
    daemon.configure(&text.replace(token.pin_file().to_str().unwrap(), "hsm.pin"));
    let objects = fs::read_dir(token.tokens()).unwrap().next().unwrap().unwrap().path();
    let object = fs::read_dir(objects).unwrap().next().unwrap().unwrap().path();
    for path in [&token.pin_file(), &beside, &object, &token.configuration()] {
        assert!(!is_closed(path), "the test itself can open {}", path.display());
    }
    confined(&daemon, None, || {
        for path in [&token.pin_file(), &beside, &object, &token.configuration()] {
            assert!(is_closed(path), "{} is open to the daemon", path.display());
        }
        for device in ["/dev/tpmrm0", "/dev/tpm0"].map(Path::new).into_iter().filter(|device| device.exists()) {
            assert!(is_closed(device), "{} is open to the daemon", device.display());
        }
        let started = Command::new("/bin/true").status().unwrap_err();
        assert_eq!(started.kind(), ErrorKind::PermissionDenied);
        let connected = std::net::TcpStream::connect("127.0.0.1:9").unwrap_err();
        assert_eq!(connected.kind(), ErrorKind::PermissionDenied);
        // Its launcher reads it, so that it can be replaced beside a PIN.
        assert!(is_closed(&daemon.config_file()));
        // What it serves with.
        File::open(daemon.state().join("keyring.json")).unwrap();
        OpenOptions::new().append(true).open(daemon.audit_file()).unwrap();
        assert!(nix::unistd::User::from_name("root").unwrap().is_some());
    });
}

#[tokio::test]
async fn the_daemon_can_bind_the_port_that_it_waits_for_and_no_other() {
    let daemon = TestDaemon::prepare(&TestDaemon::config(NO_DEVICE));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let bound = |address: &str| TcpListener::bind(address).map(drop).map_err(|error| error.kind());
    let denied = Err(ErrorKind::PermissionDenied);
    confined(&daemon, None, || assert_eq!(bound("127.0.0.1:0"), denied));
    confined(&daemon, Some(taken.port()), || {
        assert_ne!(bound(&taken.to_string()), denied);
        assert_eq!(bound("127.0.0.1:0"), denied);
    });
}

#[tokio::test]
async fn every_thread_of_the_daemon_and_of_its_devices_is_confined() {
    let Some((_token, daemon)) = on_softhsm().await else { return };
    let device = daemon.device_process();
    for (pid, threads) in [(daemon.pid().to_string(), 3), (device.to_string(), 2)] {
        let mut seen = 0;
        for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let has = |line: &str| status.lines().any(|told| told.split_whitespace().eq(line.split(' ')));
            assert!(has("NoNewPrivs: 1") && has("Seccomp: 2"), "{status}");
            seen += 1;
        }
        assert!(seen >= threads, "{pid}: {seen}");
    }
}

#[tokio::test]
async fn a_device_that_needs_more_is_left_alone_and_the_log_says_so() {
    let Some(token) = SoftHsm::new() else { return };
    let mut daemon =
        TestDaemon::prepare(&TestDaemon::config(&token.toml().replace("files = [", "sandbox = \"off\" # ")));
    daemon.signetctl(&["key", "generate", "--device", "hsm"]);
    daemon.spawn();
    daemon.wait_for_health(tonic_health::ServingStatus::Serving).await;
    daemon.wait_for_log("sandbox = \"off\"");
    let device = daemon.device_process();
    let status = fs::read_to_string(format!("/proc/{device}/status")).unwrap();
    assert!(status.contains("Seccomp:\t0"), "{status}");
}

#[tokio::test]
async fn a_device_process_that_dies_is_started_again_by_the_launcher_which_ends_with_the_daemon() {
    let Some((_token, mut daemon)) = on_softhsm().await else { return };
    let first = daemon.device_process();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first), Signal::SIGKILL).unwrap();
    daemon.wait_for_log("lost a device process");
    let input = Some(blob::Input::Payload(b"message".to_vec().into()));
    let request = proto::SignBlobRequest { account: String::new(), input, algorithm: 0 };
    daemon.client().sign_blob(request).await.unwrap();
    let second = daemon.device_process();
    let status = fs::read_to_string(format!("/proc/{second}/status")).unwrap();
    let launcher = status.lines().find_map(|line| line.strip_prefix("PPid:\t")).unwrap().to_owned();
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    for pid in [launcher, second.to_string()] {
        // A process that nobody reaps is a zombie, which is as good as gone.
        let lives = || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
        };
        while lives() {
            assert!(std::time::Instant::now() < until, "{pid} outlives the daemon");
            std::thread::yield_now();
        }
    }
}

/// What it forks holds all that it has: the pipe to the daemon, and whatever keeps the token its own.
#[tokio::test]
async fn what_a_module_forks_ends_with_its_process_and_keeps_no_other_from_starting() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    let mut daemon = TestDaemon::prepare(&TestDaemon::config(&shim.toml()));
    daemon.signetctl(&["key", "generate", "--device", "hsm"]);
    daemon.spawn();
    daemon.wait_for_health(tonic_health::ServingStatus::Serving).await;
    shim.tell("fork");
    let sign = async || {
        let input = Some(blob::Input::Payload(b"message".to_vec().into()));
        daemon.client().sign_blob(proto::SignBlobRequest { account: String::new(), input, algorithm: 0 }).await
    };
    // What it forks looks the same, and stands behind it.
    let device = || daemon.device_processes()[0];
    for _ in 0..4 {
        eventually("it signs", async || sign().await.is_ok()).await;
        let device = device();
        assert!(of_group(device) > 1);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(device), Signal::SIGKILL).unwrap();
        eventually("nothing of it is left", async || of_group(device) == 0).await;
    }
    eventually("it signs", async || sign().await.is_ok()).await;
    let device = device();
    assert!(daemon.stop().success());
    eventually("nothing of it is left", async || of_group(device) == 0).await;
}

/// How many processes live in a process group.
fn of_group(group: i32) -> usize {
    let of_group = |entry: fs::DirEntry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        Some(fields.next()? != "Z" && fields.nth(1)?.parse() == Ok(group))
    };
    fs::read_dir("/proc").unwrap().flatten().filter_map(of_group).filter(|lives_in_it| *lives_in_it).count()
}

#[tokio::test]
async fn without_its_launcher_the_daemon_ends() {
    let Some((_token, mut daemon)) = on_softhsm().await else { return };
    let device = daemon.device_process();
    let status = fs::read_to_string(format!("/proc/{device}/status")).unwrap();
    let launcher = status.lines().find_map(|line| line.strip_prefix("PPid:\t")).unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(launcher), Signal::SIGKILL).unwrap();
    assert_eq!(daemon.wait().code(), Some(1));
}

#[tokio::test]
async fn a_module_opens_its_own_files_alone_where_they_are_told_and_signals_nobody() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    // Linux 6.12 is the first that can keep a process from it.
    let kept = std::thread::spawn(signet::sandbox::close_signals).join().unwrap().unwrap();
    let signalled = if kept == signet::sandbox::Kept::All { [libc::EPERM; 2] } else { [0; 2] };
    for (device, allowed) in [(shim.toml(), [libc::EACCES; 2]), (shim.toml().replace("files = [", "# "), [0; 2])] {
        let mut daemon = TestDaemon::prepare(&TestDaemon::config(&device));
        daemon.signetctl(&["key", "generate", "--device", "hsm"]);
        daemon.spawn();
        daemon.wait_for_health(tonic_health::ServingStatus::Serving).await;
        let mut client = daemon.client();
        let mut tries = async |what: String| {
            shim.tell(&what);
            let input = Some(blob::Input::Payload(what.into_bytes().into()));
            client.sign_blob(proto::SignBlobRequest { account: String::new(), input, algorithm: 0 }).await.unwrap();
            shim.tried()
        };
        let others = daemon.folder().join("other.pin");
        write_private(&others, "1234");
        for closed in [others, daemon.config_file(), daemon.audit_file(), daemon.state().join("keyring.json")] {
            assert_eq!(tries(format!("open {}", closed.display())).await, allowed, "{}", closed.display());
        }
        assert_eq!(tries(format!("open {}", token.pin_file().display())).await, [0, allowed[1]]);
        assert_eq!(tries(format!("signal {}", daemon.pid())).await, signalled);
        assert!(daemon.stop().success());
    }
}

/// How exposed systemd finds the unit with these of the packaged drop-ins. None: skipped.
fn exposure(drop_ins: &[&str]) -> Option<f32> {
    let packaged = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd");
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("signetd.service");
    fs::copy(packaged.join("signetd.service"), &unit).unwrap();
    let beside = folder.path().join("signetd.service.d");
    fs::create_dir(&beside).unwrap();
    for drop_in in drop_ins {
        fs::copy(packaged.join(drop_in), beside.join(drop_in)).unwrap();
    }
    let analysed =
        Command::new("systemd-analyze").args(["security", "--offline=yes", "--no-pager"]).arg(&unit).output();
    let Ok(analysed) = analysed else {
        skip("systemd-analyze", "systemd");
        return None;
    };
    let said = String::from_utf8(analysed.stdout).unwrap();
    let verdict = said.split("Overall exposure level for signetd.service:").nth(1);
    Some(verdict.and_then(|verdict| verdict.split_whitespace().next()).expect(&said).parse().unwrap())
}

#[test]
fn systemd_judges_the_unit_at_most_one_and_with_http_one_and_a_half() {
    let (Some(alone), Some(with_http)) = (exposure(&[]), exposure(&["http.conf"])) else { return };
    assert!(alone <= 1.0, "{alone}");
    assert!(alone < with_http && with_http <= 1.5, "{with_http}");
    // With it, every caller would be "nobody" (SO_PEERCRED).
    let directives = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/systemd/signetd.service"));
    assert!(!directives.unwrap().lines().any(|line| line == "PrivateUsers=yes"));
}
