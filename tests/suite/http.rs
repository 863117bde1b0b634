//! HTTP on loopback: who is served, and which bytes are a request at all (T11, T12).

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use signet::proto::GetStatusRequest;

use crate::support::daemon::{NO_DEVICE, TestDaemon};
use crate::support::http::{BEARER, connect, raw, send_as, send_with, until_closed};
use crate::support::{signetctl, skip_optional};

/// A daemon without a device, and where it listens.
fn daemon() -> (TestDaemon, SocketAddr) {
    let daemon = TestDaemon::start(&TestDaemon::config(&format!("http = \"127.0.0.1:0\"\n{NO_DEVICE}")));
    let address = daemon.http();
    (daemon, address)
}

/// The status of the answer to a request that is the last one of its connection.
fn status(address: SocketAddr, headers: &str) -> String {
    let answer = raw(address, format!("{headers}\r\nConnection: close\r\n\r\n").as_bytes());
    answer.split(' ').nth(1).unwrap_or("no answer").to_owned()
}

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nHost: localhost";

#[test]
fn requests_in_a_row_are_answered_in_a_row_and_each_is_looked_at() {
    let (_daemon, address) = daemon();
    let good = format!("{HEALTH}\r\n\r\n");
    let posted = "POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 70\r\n\r\n";
    let body = format!("{:70}", "GET /readyz HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    let last = format!("{HEALTH}\r\nConnection: close\r\n\r\n");
    let answers = raw(address, format!("{good}{posted}{body}{good}{last}").as_bytes());
    let statuses: Vec<_> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    // A body that nobody wanted may end the connection; it is never taken for a request.
    assert!(statuses.starts_with(&["200", "405"]), "{answers}");
    assert!(statuses[2..].iter().all(|status| *status == "200"), "{answers}");

    let another = "GET /healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n";
    let answers = raw(address, format!("{good}{another}{good}").as_bytes());
    let statuses: Vec<_> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(statuses, ["200", "403"], "the third is not read: {answers}");
}

#[test]
fn without_a_device_it_is_alive_and_not_ready() {
    let (_daemon, address) = daemon();
    let ready = HEALTH.replace("healthz", "readyz");
    assert_eq!([status(address, HEALTH), status(address, &ready)], ["200", "503"]);
}

/// Whoever has the port keeps what is asked there; who asks at the socket is served all the same.
#[tokio::test]
async fn a_port_that_another_program_has_is_told_and_taken_as_soon_as_it_is_free() {
    let squatter = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = squatter.local_addr().unwrap();
    let mut daemon = TestDaemon::start(&TestDaemon::config(&format!("http = \"{address}\"\n{NO_DEVICE}")));
    assert!(daemon.stop().success());
    daemon.spawn();
    daemon.wait_for_log("serving");
    let what = format!("listen.http {address}: another program has the port (user {})", nix::unistd::geteuid());
    let told = async || daemon.client().get_status(GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(told().await.http_cause, what);
    let told_by = |command: &str| {
        let output = signetctl(&daemon.config_file()).arg(command).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(told_by("status").contains(&format!("{what}\n  try: stop what listens there")));
    assert!(told_by("doctor").contains(&format!("MEND  another program has the port {address}")));
    assert_eq!(daemon.log().matches("HTTP is not served until its port is free").count(), 1);

    drop(squatter);
    daemon.wait_for_log("listening for HTTP");
    assert_eq!(status(address, HEALTH), "200");
    assert_eq!(told().await.http_cause, "");
    assert!(told_by("doctor").contains(&format!("signetd serves HTTP at {address}")));
}

#[test]
fn a_head_that_comes_in_drips_is_one() {
    let (_daemon, address) = daemon();
    let mut stream = connect(address);
    stream.set_nodelay(true).unwrap();
    for byte in format!("{HEALTH}\r\nConnection: close\r\n\r\n").bytes() {
        stream.write_all(&[byte]).unwrap();
    }
    assert!(until_closed(&stream).starts_with("HTTP/1.1 200 OK\r\n"));
}

#[test]
fn idle_connections_and_slow_drips_keep_nobody_out() {
    let (daemon, address) = daemon();
    let mut used = connect(address);
    used.write_all(format!("{HEALTH}\r\n\r\n").as_bytes()).unwrap();
    daemon.wait_for_log("answered");
    let idle: Vec<_> = (0..200).map(|_| connect(address)).collect();
    let drips: Vec<_> = (0..50)
        .map(|_| {
            let mut stream = connect(address);
            let _ = stream.write_all(b"GET /healthz HT");
            stream
        })
        .collect();
    if nix::unistd::geteuid().is_root() {
        assert_eq!(send_as(65534, address, "GET /healthz", &[]).status, 200, "another user is kept out");
    }
    // Those of the user's own that say nothing are closed, and then there is room again.
    for stream in idle.iter().chain(&drips) {
        assert_eq!(until_closed(stream), "");
    }
    assert_eq!(status(address, HEALTH), "200");
    // One that was of use may be again.
    used.write_all(format!("{HEALTH}\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
    assert_eq!(until_closed(&used).matches("HTTP/1.1 200 ").count(), 2);
}

#[test]
fn t10_bodies_of_a_user_that_are_more_than_fits_are_refused_until_there_is_room() {
    let (_daemon, address) = daemon();
    let path = "/v1/projects/-/serviceAccounts/app@x:signBlob";
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\n{BEARER}\r\nContent-Length: 1400000\r\nExpect: 100-continue\r\n\r\n"
    );
    let ask = || {
        let mut stream = connect(address);
        stream.write_all(head.as_bytes()).unwrap();
        let mut begin = [0; 12];
        stream.read_exact(&mut begin).unwrap();
        (stream, String::from_utf8(begin.to_vec()).unwrap())
    };
    let mut waited_for: Vec<_> = (0..11).map(|_| ask()).collect();
    assert!(waited_for.iter().all(|(_, begin)| begin == "HTTP/1.1 100"), "{waited_for:?}");
    let (refused, begin) = ask();
    assert_eq!(begin, "HTTP/1.1 429");
    // As every error of this API, and the last that is said by this connection.
    let said = until_closed(&refused);
    let (head, body) = said.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("retry-after: 1"), "{head}");
    let error: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(error["error"]["details"][0]["reason"], "TOO_MUCH_AT_ONCE");
    waited_for.pop();
    let until = Instant::now() + Duration::from_secs(9);
    while ask().1 != "HTTP/1.1 100" {
        assert!(Instant::now() < until, "there is no room again");
    }
}

#[test]
fn t10_a_head_or_a_body_that_never_ends_holds_up_no_stop() {
    let (mut daemon, address) = daemon();
    let unfinished =
        ["GET / HTTP/1.1\r\n", "POST /v1/token HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\ngrant"].map(
            |begun| {
                let mut stream = connect(address);
                stream.write_all(begun.as_bytes()).unwrap();
                stream
            },
        );
    // Answered after them, so they have been read.
    assert_eq!(status(address, HEALTH), "200");
    let began = Instant::now();
    assert!(daemon.stop().success());
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    drop(unfinished);
}

#[test]
fn a_client_that_exits_before_the_look_up_is_never_served_not_as_root_either() {
    let (mut daemon, address) = daemon();
    for _ in 0..10 {
        daemon.signal(Signal::SIGSTOP);
        for round in 0..100 {
            let mut stream = connect(address);
            stream.write_all(format!("{HEALTH}\r\n\r\n").as_bytes()).unwrap();
            if round % 2 == 0 {
                let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
                setsockopt(&stream, sockopt::Linger, &at_once).unwrap();
            }
        }
        daemon.signal(Signal::SIGCONT);
        assert_eq!(status(address, HEALTH), "200");
    }
    daemon.signal(Signal::SIGTERM);
    // What it says last comes after all that it said before.
    daemon.wait_for_log("stopping");
    let served = daemon.log().matches("answered").count();
    assert_eq!(served, 10, "{}", daemon.log());
    assert!(daemon.wait().success());
}

#[test]
fn groups_are_those_of_the_user_database_and_what_a_caller_runs_is_unknown() {
    let rule = |name: &str, conditions: &str| {
        format!(
            "[[account]]\nemail = \"{name}@x\"\n[[allow]]\naccounts = [\"{name}@x\"]\noperations = [\"sign-blob\"]\n{conditions}\n"
        )
    };
    let bash = std::fs::canonicalize("/bin/bash").unwrap();
    let rules = [
        rule("user", "users = [65534]"),
        rule("group", "groups = [65534]"),
        rule("dropped", "groups = [4711]"),
        rule("unit", "units = [\"*\"]"),
        rule("program", &format!("users = [65534]\nexecutables = [{bash:?}]")),
    ];
    let daemon =
        TestDaemon::start(&TestDaemon::config(&format!("http = \"127.0.0.1:0\"\n{NO_DEVICE}\n{}", rules.concat())));
    if !nix::unistd::geteuid().is_root() {
        return skip_optional("root, who can be another user");
    }
    for (name, status) in [("user", 400), ("group", 400), ("dropped", 403), ("unit", 403), ("program", 403)] {
        let line = format!("POST /v1/projects/-/serviceAccounts/{name}@x:signBlob");
        let ids = ["--reuid=65534", "--regid=4711", "--groups=4711"];
        let answer = send_with(&ids, daemon.http(), &line, &[BEARER, "Content-Length: 0"]);
        assert_eq!(answer.status, status, "{name}: {answer:?}");
        // Who is allowed to is told that there is no key.
        assert!(status == 403 || answer.body.contains("NO_ACTIVE_KEY"), "{answer:?}");
    }
}
