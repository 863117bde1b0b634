//! The daemon from outside: its rpcs, its answers, its socket, its life.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nix::sys::signal::Signal;
use signet::key::{Algorithm, KeyLocator, PublicKey};
use signet::keyring::{KeyRecord, KeyState};
use signet::proto::{self, mint_jwt_access_token_request as mint};
use tonic::{Code, Request, Status};
use tonic_health::ServingStatus;
use tonic_types::StatusExt as _;

use crate::support::daemon::{ACCOUNT, NO_DEVICE, TestDaemon, now, payload, reason};
use crate::support::desk::openssl;
use crate::support::eventually;
use crate::support::http::send;
use crate::support::modules::Shim;
use crate::support::softhsm::SoftHsm;

fn absent() -> TestDaemon {
    without_device(&TestDaemon::config(NO_DEVICE))
}

fn without_device(config: &str) -> TestDaemon {
    let mut daemon = TestDaemon::prepare(config);
    // As `device init` left it when the TPM was there.
    let name = format!("000b{}", "0".repeat(64));
    fs::create_dir(daemon.state().join("devices")).unwrap();
    fs::write(daemon.state().join("devices/tpm.json"), format!(r#"{{"handle":2164260865,"name":"{name}"}}"#)).unwrap();
    daemon.spawn();
    daemon.wait_for_log("serving");
    daemon
}

fn field(status: &Status) -> String {
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    status.get_error_details().bad_request().expect("google.rpc.BadRequest").field_violations[0].field.clone()
}

fn record(kid: &str, state: KeyState) -> KeyRecord {
    let pair = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let spki = aws_lc_rs::encoding::AsDer::<aws_lc_rs::encoding::PublicKeyX509Der<'_>>::as_der(
        aws_lc_rs::signature::KeyPair::public_key(&pair),
    );
    KeyRecord {
        kid: kid.parse().unwrap(),
        account: ACCOUNT.parse().unwrap(),
        algorithm: Algorithm::Rs256,
        device: "tpm".parse().unwrap(),
        locator: KeyLocator::Handle(0x8100_0001),
        public_key: PublicKey::from_spki(spki.unwrap().as_ref()).unwrap(),
        state,
        created: 1_700_000_000,
        activated: (state == KeyState::Active).then_some(1_700_000_000),
        retired: (state == KeyState::Retired).then_some(1_700_000_000),
    }
}

#[tokio::test]
async fn an_unknown_account_and_a_forbidden_one_answer_alike() {
    let config = TestDaemon::config(NO_DEVICE)
        + r#"
        [[account]]
        email = "forbidden@project.iam.gserviceaccount.com"
        "#;
    let daemon = TestDaemon::start(&config);
    let mut client = daemon.client();
    let mut answers = Vec::new();
    for account in ["forbidden@project.iam.gserviceaccount.com", "unknown@project.iam.gserviceaccount.com"] {
        let account = account.to_owned();
        let claims = r#"{"sub":"x"}"#.to_owned();
        let audience = Some(mint::Target::Audience("https://pubsub.googleapis.com/".to_owned()));
        let statuses = [
            client.sign_blob(proto::SignBlobRequest { account: account.clone(), ..payload(b"x") }).await.unwrap_err(),
            client.sign_jwt(proto::SignJwtRequest { account: account.clone(), claims }).await.unwrap_err(),
            client
                .mint_jwt_access_token(proto::MintJwtAccessTokenRequest {
                    account: account.clone(),
                    target: audience,
                    lifetime: None,
                })
                .await
                .unwrap_err(),
            client.get_account(proto::GetAccountRequest { account }).await.unwrap_err(),
        ];
        for status in &statuses {
            assert_eq!(status.code(), Code::PermissionDenied);
            assert_eq!(reason(status), "NOT_ALLOWED");
        }
        answers.push(statuses.map(|status| (status.message().to_owned(), status.details().to_vec())));
    }
    assert_eq!(answers[0], answers[1]);
    let outcomes: Vec<_> = daemon.audit().into_iter().map(|line| line["decision"].clone()).collect();
    assert_eq!(outcomes, ["deny"; 8], "one record a decision");
}

/// T6, through the front: a rule for sign-blob signs no JWT, canonical or not, and the device decides of the rest.
#[tokio::test]
async fn a_rule_for_blobs_signs_no_jwt() {
    let operations = r#"["sign-blob", "sign-digest", "sign-jwt", "mint-access-token", "mint-id-token"]"#;
    let daemon = without_device(&TestDaemon::config(NO_DEVICE).replace(operations, r#"["sign-blob"]"#));
    daemon.add(record("k", KeyState::Active));
    daemon.wait_for_log("took the keyring");
    let mut client = daemon.client();
    let mut signed = async |blob: &str| client.sign_blob(payload(blob.as_bytes())).await.unwrap_err();
    let part = |json: &str| URL_SAFE_NO_PAD.encode(json);
    let (header, claims) =
        (part(r#"{"alg":"RS256","typ":"JWT","kid":"k"}"#), part(&format!(r#"{{"exp":{}}}"#, now() + 60)));
    assert_eq!(signed(&format!("{header}.{claims}")).await.code(), Code::PermissionDenied);
    assert_eq!(field(&signed(&format!("{header}=.{claims}")).await), "payload");
    assert_eq!(signed("GOOG4-RSA-SHA256\n").await.code(), Code::Unavailable);
}

#[tokio::test]
async fn an_absent_device_is_unavailable_with_a_time_to_retry_and_health_says_so() {
    let daemon = absent();
    daemon.add(record("k", KeyState::Active));
    daemon.wait_for_health(ServingStatus::NotServing).await;
    daemon.wait_for_log("the device can't be used");
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_log("reloaded");
    let status = daemon.client().sign_blob(payload(b"message")).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "DEVICE_AWAY"), "{status}");
    assert!(status.get_error_details().retry_info().unwrap().retry_delay.is_some());
}

/// How often its device was opened, or tried to be.
fn tries(address: SocketAddr, device: &str) -> u64 {
    let metrics = send(address, "GET /metrics", &[], "").body;
    let figure = format!("signet_device_generations_total{{device=\"{device}\"}} ");
    let (_, tries) = metrics.split_once(&figure).unwrap();
    tries.lines().next().unwrap().parse().unwrap()
}

/// Whoever is called at night reads the last lines of the log: a fault that lasts must not fill them.
#[tokio::test]
async fn a_fault_is_told_once_however_often_the_device_is_tried_and_again_after_a_reload() {
    let daemon = without_device(&TestDaemon::config(&format!("http = \"127.0.0.1:0\"\n{NO_DEVICE}")));
    let address = daemon.http();
    let told = || daemon.log().matches("the device can't be used").count();
    eventually("it is tried for seconds", async || tries(address, "tpm") >= 7).await;
    assert_eq!(told(), 1, "{}", daemon.log());
    daemon.signal(Signal::SIGHUP);
    eventually("it is told again", async || told() == 2).await;
}

/// As does a device that opens, and then can't sign.
#[tokio::test]
async fn a_module_that_crashes_at_each_signature_is_told_once_and_that_it_is_over() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    shim.tell("");
    let mut daemon = TestDaemon::prepare(&TestDaemon::config(&format!("http = \"127.0.0.1:0\"\n{}", shim.toml())));
    daemon.signetctl(&["key", "generate", "--device", "hsm"]);
    daemon.spawn();
    daemon.wait_for_health(ServingStatus::Serving).await;
    shim.tell("crash C_Sign");
    let address = daemon.http();
    let told = |what: &str| daemon.log().matches(what).count();
    eventually("it is told", async || told("the device can't be used") > 0).await;
    let then = tries(address, "hsm");
    eventually("it is tried again and again", async || tries(address, "hsm") >= then + 3).await;
    // One that was lost with a request that an earlier one was lost with is told of, too: the request is to blame.
    for (line, times) in [("lost a device process", 2), ("the device can't be used", 1), ("could not check the key", 1)]
    {
        assert!(told(line) <= times, "{line}: {}", daemon.log());
    }
    let ready = told("the device is ready");
    assert!(ready <= 2, "{}", daemon.log());
    shim.tell("");
    daemon.wait_for_health(ServingStatus::Serving).await;
    eventually("it is told that it is over", async || told("the device is ready") > ready).await;
    assert_eq!(told("the device is ready"), ready + 1, "{}", daemon.log());
}

/// As where a newer one is being installed.
#[tokio::test]
async fn a_program_that_is_gone_is_told_once_however_often_it_is_to_be_started() {
    let mut daemon = TestDaemon::prepare(&TestDaemon::config(&format!("http = \"127.0.0.1:0\"\n{NO_DEVICE}")));
    let program = daemon.folder().join("signetd");
    fs::copy(env!("CARGO_BIN_EXE_signetd"), &program).unwrap();
    let mut command = Command::new(&program);
    command.args(daemon.command().get_args()).stdin(Stdio::null());
    daemon.spawn_as(command);
    let address = daemon.http();
    fs::remove_file(program).unwrap();
    let told = || daemon.log().matches("its process can't be started").count();
    eventually("it is told", async || told() > 0).await;
    let then = tries(address, "tpm");
    eventually("it is tried again and again", async || tries(address, "tpm") >= then + 3).await;
    assert_eq!(told(), 1, "{}", daemon.log());
}

/// As a configuration that was written by hand has it.
#[test]
fn the_sockets_folder_is_made_and_a_second_daemon_is_told_of_the_first() {
    let config = TestDaemon::config(NO_DEVICE).replace("run/signet.sock", "new/signet.sock");
    let mut daemon = TestDaemon::prepare(&config);
    daemon.spawn();
    daemon.wait_for_log("serving");
    assert_eq!(fs::metadata(daemon.folder().join("new")).unwrap().permissions().mode() & 0o777, 0o755);
    // Whatever else it has that the second one wants.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let http = format!("[listen]\n http = \"{}\"", port.local_addr().unwrap());
    daemon.configure(&config.replace("[listen]", &http));
    let said = String::from_utf8(daemon.output().stderr).unwrap();
    assert!(said.contains("another process serves it") && said.contains("try: "), "{said}");
}

#[tokio::test]
async fn an_account_without_a_key_wants_an_operator() {
    let daemon = absent();
    let status = daemon.client().sign_blob(payload(b"message")).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "NO_ACTIVE_KEY"));
    let mut asked = Request::new(payload(b"message"));
    asked.set_timeout(Duration::from_secs(1));
    assert_eq!(daemon.client().sign_blob(asked).await.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn public_certificates_list_every_key_but_those_retired_long_ago() {
    let daemon = TestDaemon::prepare(&TestDaemon::config(NO_DEVICE));
    let now = now();
    daemon.add(record("old", KeyState::Active));
    daemon.add(KeyRecord { activated: Some(now), ..record("new", KeyState::Active) });
    daemon.add(record("next", KeyState::Prepared));
    daemon.add(KeyRecord { retired: Some(now - 60), ..record("just-retired", KeyState::Retired) });
    daemon.add(record("long-retired", KeyState::Retired));
    let mut daemon = daemon;
    daemon.spawn();
    daemon.wait_for_log("serving");
    let request = proto::GetPublicCertificatesRequest { account: String::new() };
    let answer = daemon.client().get_public_certificates(request).await.unwrap().into_inner();
    let listed: Vec<_> = answer.certificates.iter().map(|key| (key.key_id.as_str(), key.state())).collect();
    let (active, prepared, retired) = (proto::KeyState::Active, proto::KeyState::Prepared, proto::KeyState::Retired);
    assert_eq!(listed, [("new", active), ("old", active), ("next", prepared), ("just-retired", retired)]);
    assert_eq!(answer.max_client_cache_time.unwrap().seconds, 900);
    let jwks: serde_json::Value = serde_json::from_str(&answer.jwks).unwrap();
    let kids: Vec<_> = jwks["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap()).collect();
    assert_eq!(kids, ["new", "old", "next", "just-retired"]);
}

#[tokio::test]
async fn the_keyring_is_followed_and_a_broken_one_changes_nothing() {
    let daemon = absent();
    let listed = async || {
        let request = proto::GetPublicCertificatesRequest { account: String::new() };
        daemon.client().get_public_certificates(request).await.unwrap().into_inner().certificates.len()
    };
    assert_eq!(listed().await, 0);
    daemon.add(record("k", KeyState::Active));
    daemon.wait_for_log("took the keyring keys=1");
    assert_eq!(listed().await, 1);
    fs::write(daemon.state().join("keyring.json"), "{").unwrap();
    daemon.wait_for_log("the keyring can't be used");
    assert_eq!(listed().await, 1);
}

#[tokio::test]
async fn a_bad_configuration_is_not_reloaded_and_a_good_one_is() {
    let daemon = absent();
    let rules = TestDaemon::config(NO_DEVICE);
    daemon.configure(&rules.replace("project_id", "projekt_id"));
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_log("the configuration is not reloaded");
    assert_ne!(daemon.client().sign_blob(payload(b"x")).await.unwrap_err().code(), Code::PermissionDenied);
    daemon.configure(&rules.replace("users = [{uid}]", "users = [4000000]"));
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_log("reloaded accounts");
    assert_eq!(daemon.client().sign_blob(payload(b"x")).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn reflection_tells_every_service_and_takes_no_long_question() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let daemon = absent();
    let request = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(daemon.channel());
    // What is not found is repeated: nobody is to fill the memory with it.
    let long = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::FileByFilename("x".repeat(1 << 20))),
    };
    let answers = client.server_reflection_info(tokio_stream::once(long)).await.unwrap();
    assert_eq!(answers.into_inner().message().await.unwrap(), None);
    let answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(listed)) = answer else { panic!("{answer:?}") };
    let names: Vec<_> = listed.service.into_iter().map(|service| service.name).collect();
    for name in ["signet.v1.Signer", "google.iam.credentials.v1.IAMCredentials", "grpc.health.v1.Health"] {
        assert!(names.contains(&name.to_owned()), "{names:?}");
    }
}

#[test]
fn a_keyring_that_is_corrupt_or_newer_is_refused_and_left_alone() {
    let daemon = TestDaemon::prepare(&TestDaemon::config(NO_DEVICE));
    for (contents, told) in [("{\"version\":1,", "EOF"), (r#"{"version":2,"keys":[],"more":1}"#, "version 2")] {
        let keyring = daemon.state().join("keyring.json");
        fs::write(&keyring, contents).unwrap();
        let output = daemon.output();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("keyring.json") && said.contains(told) && said.contains("try: "), "{said}");
        assert_eq!(fs::read_to_string(&keyring).unwrap(), contents);
        assert!(!daemon.socket().exists());
    }
}

#[test]
fn t13_a_keyring_writable_by_others_is_refused() {
    let daemon = TestDaemon::prepare(&TestDaemon::config(NO_DEVICE));
    daemon.add(record("k", KeyState::Active));
    fs::set_permissions(daemon.state().join("keyring.json"), fs::Permissions::from_mode(0o606)).unwrap();
    let output = daemon.output();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("can be written by everybody"), "{said}");
    assert!(said.contains("try: see in it"), "{said}");
}

#[tokio::test]
async fn a_certificate_of_another_key_is_not_published() {
    let mut daemon = TestDaemon::prepare(&TestDaemon::config(NO_DEVICE));
    let certificates = daemon.state().join("certificates");
    fs::create_dir(&certificates).unwrap();
    let another = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "/dev/null", "-subj", "/CN=another"];
    fs::write(certificates.join("k.pem"), openssl(another)).unwrap();
    daemon.add(record("k", KeyState::Active));
    daemon.spawn();
    daemon.wait_for_log("it is of another key");
    daemon.wait_for_log("serving");
    let request = proto::GetPublicCertificatesRequest { account: String::new() };
    let answer = daemon.client().get_public_certificates(request).await.unwrap().into_inner();
    assert_eq!((answer.certificates.len(), answer.certificates[0].x509_pem.as_str()), (1, ""));
}

#[test]
fn a_stale_socket_is_taken_over() {
    let mut daemon = absent();
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    assert!(fs::symlink_metadata(daemon.socket()).unwrap().file_type().is_socket(), "it is left behind");
    daemon.spawn();
    daemon.wait_for_log("serving");
}

#[test]
fn a_live_socket_is_never_taken_over() {
    let daemon = TestDaemon::prepare(&TestDaemon::config(NO_DEVICE));
    let live = UnixListener::bind(daemon.socket()).unwrap();
    let output = daemon.output();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("another process serves it"), "{said}");
    std::os::unix::net::UnixStream::connect(daemon.socket()).unwrap();
    drop(live);
}

#[test]
fn of_two_daemons_one_serves() {
    let mut first = TestDaemon::prepare(&TestDaemon::config(NO_DEVICE));
    let second = first.command();
    first.spawn();
    let mut second = {
        let mut command = second;
        command.stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    // Whichever ends lost; the other one serves.
    let loser = loop {
        if let Some(status) = second.try_wait().unwrap() {
            break status;
        }
        if first.has_ended() {
            // It may not have come to its socket yet.
            while std::os::unix::net::UnixStream::connect(first.socket()).is_err() {
                assert!(second.try_wait().unwrap().is_none(), "neither serves");
                std::thread::yield_now();
            }
            second.kill().unwrap();
            break second.wait().unwrap();
        }
        std::thread::yield_now();
    };
    assert!(!loser.success());
    if !first.has_ended() {
        first.wait_for_log("serving");
        std::os::unix::net::UnixStream::connect(first.socket()).unwrap();
    }
}

#[test]
fn what_stands_in_the_sockets_place_is_left_alone() {
    let daemon = TestDaemon::prepare(&TestDaemon::config(NO_DEVICE));
    let refused = |told: &str| {
        let output = daemon.output();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(told) && said.contains("try: "), "{said}");
    };
    fs::write(daemon.socket(), "precious").unwrap();
    refused("a file that is no socket");
    assert_eq!(fs::read_to_string(daemon.socket()).unwrap(), "precious");
    fs::remove_file(daemon.socket()).unwrap();
    symlink("elsewhere", daemon.socket()).unwrap();
    refused("a symbolic link");
    fs::remove_file(daemon.socket()).unwrap();
    for mode in [0o777, 0o1777] {
        fs::set_permissions(daemon.folder().join("run"), fs::Permissions::from_mode(mode)).unwrap();
        refused("can be written by everybody");
    }
}

#[test]
fn t13_a_socket_in_a_folder_that_others_can_replace_is_refused() {
    let config = TestDaemon::config(NO_DEVICE).replace("run/signet.sock", "shared/run/signet.sock");
    let daemon = TestDaemon::prepare(&config);
    let shared = daemon.folder().join("shared");
    fs::create_dir_all(shared.join("run")).unwrap();
    fs::set_permissions(shared.join("run"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o757)).unwrap();
    let output = daemon.output();
    let said = String::from_utf8(output.stderr).unwrap();
    let told = said.contains("/shared can be written by everybody") && said.contains("try: ");
    assert!(!output.status.success() && told, "{said}");
}

#[test]
fn a_socket_path_over_107_bytes_is_refused() {
    let long = "x".repeat(108);
    let daemon =
        TestDaemon::prepare(&TestDaemon::config(NO_DEVICE).replace("run/signet.sock", &format!("/run/{long}")));
    let output = daemon.output();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("107") && said.contains("try: "), "{said}");
}

#[test]
fn the_socket_has_its_mode_and_goes_with_the_daemon() {
    let mut daemon = TestDaemon::start(&TestDaemon::config(NO_DEVICE).replace("0666", "0640"));
    assert_eq!(fs::symlink_metadata(daemon.socket()).unwrap().permissions().mode() & 0o777, 0o640);
    assert!(daemon.stop().success());
    assert!(!daemon.socket().exists());
}

#[tokio::test]
async fn connections_beyond_a_users_share_are_closed_and_others_still_served() {
    let daemon = absent();
    let mut client = daemon.client();
    let request = proto::GetPublicCertificatesRequest { account: String::new() };
    client.get_public_certificates(request.clone()).await.unwrap();
    let connect = || std::os::unix::net::UnixStream::connect(daemon.socket()).unwrap();
    let idle: Vec<_> = (0..32).map(|_| connect()).collect();
    daemon.wait_for_log("too many are open");
    client.get_public_certificates(request.clone()).await.unwrap();
    drop(idle);
    let room = async || daemon.client().get_public_certificates(request.clone()).await.is_ok();
    eventually("there is room again", room).await;
}

#[tokio::test]
async fn at_the_limit_of_open_files_the_daemon_waits_and_then_serves() {
    let daemon = absent();
    let request = proto::GetPublicCertificatesRequest { account: String::new() };
    daemon.wait_for_log("the device can't be used");
    let limit = |files: &str| {
        let pid = daemon.pid().to_string();
        let set = std::process::Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={files}:")]).status();
        assert!(set.unwrap().success());
    };
    limit("3");
    let waiting = std::os::unix::net::UnixStream::connect(daemon.socket()).unwrap();
    daemon.wait_for_log("can't accept a connection");
    limit("512");
    daemon.client().get_public_certificates(request).await.unwrap();
    drop(waiting);
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_up_nothing_and_tells_what_was_lost() {
    let mut daemon = TestDaemon::prepare(&TestDaemon::config(NO_DEVICE));
    daemon.log_level = "signet=debug,h2=trace";
    for is_read_at_last in [true, false] {
        let mut unread = daemon.command().stderr(Stdio::piped()).spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(30);
        while UnixStream::connect(daemon.socket()).is_err() {
            assert!(Instant::now() < until && unread.try_wait().unwrap().is_none(), "it does not serve");
            tokio::task::yield_now().await;
        }
        let mut client = daemon.client();
        for _ in 0..1000 {
            let answer = tokio::time::timeout(Duration::from_secs(10), client.sign_blob(payload(b"message"))).await;
            assert_eq!(reason(&answer.expect("it is held up").unwrap_err()), "NO_ACTIVE_KEY");
        }
        let mut log = BufReader::new(unread.stderr.take().unwrap());
        if is_read_at_last {
            let mut line = String::new();
            while !line.contains("lines of the log are lost") {
                line.clear();
                assert_ne!(log.read_line(&mut line).unwrap(), 0, "nothing is said to be lost");
            }
            let lost: u64 = line.trim_end().rsplit_once("lines=").unwrap().1.parse().unwrap();
            assert!(lost > 0);
        }
        let pid = nix::unistd::Pid::from_raw(unread.id().try_into().unwrap());
        nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
        if is_read_at_last {
            assert!(log.lines().any(|line| line.unwrap().contains("stopping")), "it tells no more");
        }
        assert!(unread.wait().unwrap().success());
    }
}
