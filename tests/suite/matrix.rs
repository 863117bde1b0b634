//! The whole matrix: callers of several users and groups, every operation, every account (T1).
//!
//! `setpriv` makes a process of another user, which is this test binary again, run as [`the_callers_side`].

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use signet::proto::signer_client::SignerClient;
use signet::proto::{self, mint_jwt_access_token_request as mint, sign_blob_request as blob};
use tonic::Code;
use tonic_health::ServingStatus;

use crate::support::daemon::{TestDaemon, channel};
use crate::support::skip;
use crate::support::softhsm::SoftHsm;

const ACCOUNTS: [&str; 3] = ["one@project.example", "two@project.example", "unknown@project.example"];

const RPCS: [&str; 6] = ["sign-blob", "sign-digest", "sign-jwt", "mint-access-token", "mint-id-token", "account"];

/// uid, gid and supplementary groups of the callers.
const CALLERS: [(u32, u32, &[u32]); 6] = [
    (0, 0, &[]),
    (60_001, 60_001, &[]),
    (60_002, 60_002, &[]),
    (60_002, 60_002, &[60_100]),
    (60_003, 60_100, &[]),
    (60_004, 60_004, &[60_099, 60_101]),
];

const RULES: &str = r#"
    [[account]]
    email = "one@project.example"
    [[account]]
    email = "two@project.example"

    [[allow]]
    users = [60001]
    accounts = ["one@project.example"]
    operations = ["sign-blob", "mint-access-token"]
    [[allow]]
    groups = [60100]
    accounts = ["two@project.example"]
    operations = ["sign-digest", "sign-jwt", "mint-id-token"]
    [[allow]]
    users = [60002]
    groups = [60100]
    accounts = ["one@project.example"]
    operations = ["sign-jwt"]
"#;

/// What the rules say, written down a second time.
fn allowed(uid: u32, in_group: bool, rpc: &str, account: &str) -> bool {
    match account {
        "one@project.example" => {
            (uid == 60_001 && ["sign-blob", "mint-access-token", "account"].contains(&rpc))
                || (uid == 60_002 && in_group && ["sign-jwt", "account"].contains(&rpc))
        }
        "two@project.example" => in_group && ["sign-digest", "sign-jwt", "mint-id-token", "account"].contains(&rpc),
        _ => false,
    }
}

#[tokio::test]
async fn every_user_operation_and_account() {
    if !nix::unistd::geteuid().is_root() || Command::new("setpriv").arg("--version").output().is_err() {
        skip("root with setpriv (to call as other users)", "util-linux, and run as root");
        return;
    }
    let Some(token) = SoftHsm::new() else { return };
    let config = format!(
        "state_dir = \"state\"\n[listen]\ngrpc = \"run/signet.sock\"\nmode = \"0666\"\n{}{RULES}",
        token.toml()
    );
    let mut daemon = TestDaemon::prepare(&config);
    for account in &ACCOUNTS[..2] {
        daemon.signetctl(&["key", "generate", "--device", "hsm", "--account", account]);
    }
    daemon.spawn();
    daemon.wait_for_health(ServingStatus::Serving).await;
    // Other users may not be able to read the folder of the build.
    let caller = daemon.folder().join("caller");
    std::fs::copy(std::env::current_exe().unwrap(), &caller).unwrap();
    std::fs::set_permissions(&caller, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut answers = 0;
    for (uid, gid, groups) in CALLERS {
        let in_group = gid == 60_100 || groups.contains(&60_100);
        for (call, code) in called_as(&daemon, &caller, uid, gid, groups) {
            let (rpc, account) = call.split_once(' ').unwrap();
            let expected = if allowed(uid, in_group, rpc, account) { Code::Ok } else { Code::PermissionDenied };
            assert_eq!(code, expected, "{rpc} for {account} by uid {uid}, gid {gid}, groups {groups:?}");
            answers += 1;
        }
    }
    assert_eq!(answers, CALLERS.len() * RPCS.len() * ACCOUNTS.len());
    let log = daemon.audit();
    assert_eq!(log.len(), answers, "one record a decision");
    assert!(log.iter().all(|line| (line["decision"] == "allow") == (line["outcome"] == "OK")));
}

/// Calls everything as another user; returns each answer's code.
fn called_as(daemon: &TestDaemon, caller: &Path, uid: u32, gid: u32, groups: &[u32]) -> BTreeMap<String, Code> {
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}"));
    let listed: Vec<_> = groups.iter().map(u32::to_string).collect();
    if groups.is_empty() {
        command.arg("--clear-groups")
    } else {
        command.arg(format!("--groups={}", listed.join(",")))
    };
    command.arg(caller).args(["--exact", "matrix::the_callers_side", "--nocapture", "--test-threads=1", "--ignored"]);
    let output = command.env(SOCKET, daemon.socket()).current_dir("/").output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "uid {uid}: {said}{}", String::from_utf8_lossy(&output.stderr));
    let answers = said.lines().filter_map(|line| line.split_once("answer: ")?.1.rsplit_once(' '));
    answers.map(|(call, code)| (call.to_owned(), Code::from(code.parse::<i32>().unwrap()))).collect()
}

#[tokio::test]
#[ignore = "it is what every_user_operation_and_account starts as other users"]
async fn the_callers_side() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let mut client = SignerClient::new(channel(Path::new(&socket)));
    for account in ACCOUNTS {
        for rpc in RPCS {
            let code =
                call(&mut client, rpc, account.to_owned()).await.map_or_else(|status| status.code(), |()| Code::Ok);
            println!("answer: {rpc} {account} {}", code as i32);
        }
        let open = proto::GetPublicCertificatesRequest { account: account.to_owned() };
        assert_eq!(client.get_public_certificates(open).await.is_ok(), !account.starts_with("unknown"));
    }
}

async fn call(
    client: &mut SignerClient<tonic::transport::Channel>,
    rpc: &str,
    account: String,
) -> Result<(), tonic::Status> {
    let audience = "https://app.example/".to_owned();
    match rpc {
        "sign-blob" | "sign-digest" => {
            let bytes = vec![0; 32].into();
            let input = Some(if rpc == "sign-blob" { blob::Input::Payload(bytes) } else { blob::Input::Digest(bytes) });
            client.sign_blob(proto::SignBlobRequest { account, input, algorithm: 0 }).await.map(drop)
        }
        "sign-jwt" => client.sign_jwt(proto::SignJwtRequest { account, claims: "{}".to_owned() }).await.map(drop),
        "mint-access-token" => {
            let target = Some(mint::Target::Audience(audience));
            let request = proto::MintJwtAccessTokenRequest { account, target, lifetime: None };
            client.mint_jwt_access_token(request).await.map(drop)
        }
        "mint-id-token" => {
            let request = proto::MintIdTokenRequest { account, audience, include_email: false, lifetime: None };
            client.mint_id_token(request).await.map(drop)
        }
        "account" => client.get_account(proto::GetAccountRequest { account }).await.map(drop),
        other => panic!("{other}"),
    }
}

const SOCKET: &str = "SIGNET_TEST_CALLER_SOCKET";
