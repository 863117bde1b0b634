//! The real `signetd` in a private folder, on a private socket.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use signet::file::StateDir;
use signet::jwt::certificate;
use signet::key::{Algorithm, Digest, Hash, Signature};
use signet::keyring::{KeyRecord, Keyring};
use signet::proto::signer_client::SignerClient;
use signet::proto::{self, sign_blob_request};
use tempfile::TempDir;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

/// The account of [`TestDaemon::config`].
pub(crate) const ACCOUNT: &str = "svc@project.iam.gserviceaccount.com";

/// A device that is not there.
pub(crate) const NO_DEVICE: &str = r#"
    [[device]]
    name = "tpm"
    kind = "tpm"
    tcti = "device:{folder}/no-such-tpm"
"#;

/// A daemon, its configuration and its state. Dropping it stops it.
pub(crate) struct TestDaemon {
    folder: TempDir,
    process: Option<Process>,
    pub(crate) log_level: &'static str,
}

struct Process {
    child: Child,
    log: Arc<Log>,
}

/// What the daemon wrote to standard error so far.
#[derive(Default)]
struct Log {
    lines: Mutex<Lines>,
    grown: Condvar,
}

#[derive(Default)]
struct Lines {
    text: Vec<String>,
    ended: bool,
}

impl TestDaemon {
    /// A folder with this configuration; nothing runs yet. `{folder}` and `{uid}` are replaced.
    pub(crate) fn prepare(config: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("signet").tempdir().unwrap();
        // Callers of other users must reach the socket.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["state", "run"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        fs::set_permissions(folder.path().join("state"), fs::Permissions::from_mode(0o700)).unwrap();
        let daemon = Self { folder, process: None, log_level: "debug" };
        daemon.configure(config);
        daemon
    }

    /// A running daemon with this configuration.
    pub(crate) fn start(config: &str) -> Self {
        let mut daemon = Self::prepare(config);
        daemon.spawn();
        daemon.wait_for_log("serving");
        daemon
    }

    /// A configuration of one account and one rule, which lets the user of the tests do everything; `more` is appended.
    pub(crate) fn config(more: &str) -> String {
        format!(
            r#"
            state_dir = "state"
            [listen]
            grpc = "run/signet.sock"
            mode = "0666"
            {more}
            [[account]]
            email = "{ACCOUNT}"
            project_id = "project"
            default = true
            [[allow]]
            users = [{{uid}}]
            accounts = ["{ACCOUNT}"]
            operations = ["sign-blob", "sign-digest", "sign-jwt", "mint-access-token", "mint-id-token"]
            "#
        )
    }

    /// Replaces the configuration file.
    pub(crate) fn configure(&self, config: &str) {
        let uid = nix::unistd::geteuid().to_string();
        let config = config.replace("{folder}", self.folder().to_str().unwrap()).replace("{uid}", &uid);
        fs::write(self.config_file(), config).unwrap();
        fs::set_permissions(self.config_file(), fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.folder().join("signet.toml")
    }

    pub(crate) fn state(&self) -> StateDir {
        StateDir::new(self.folder().join("state"))
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder().join("run/signet.sock")
    }

    /// Where it listens for HTTP, with `http = "127.0.0.1:0"` in its configuration.
    pub(crate) fn http(&self) -> SocketAddr {
        self.wait_for_log("listening for HTTP");
        let log = self.log();
        let (_, address) = log.split_once("listening for HTTP").unwrap().1.split_once("address=").unwrap();
        address.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Puts the port that it got for HTTP into its configuration, where signetctl reads it, and gives the address.
    pub(crate) fn settle_http(&self) -> SocketAddr {
        let address = self.http();
        let config = fs::read_to_string(self.config_file()).unwrap();
        self.configure(&config.replace("127.0.0.1:0", &address.to_string()));
        address
    }

    /// A program that is led here as the README says: by `signetctl env`, with these arguments.
    pub(crate) fn led(&self, env: &str, program: &[&str]) -> Command {
        let script = format!("eval \"$(\"$0\" --config \"$1\" env {env})\" && shift && exec \"$@\"");
        let mut command = Command::new("bash");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_signetctl")]).arg(self.config_file()).args(program);
        // What this machine's user has told gcloud is none of the test's.
        command.env("CLOUDSDK_CONFIG", self.folder().join("gcloud")).env_remove("SIGNET_CONFIG");
        command
    }

    /// The command that starts the daemon.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_signetd"));
        command.arg("--config").arg(self.config_file()).args(["--log", self.log_level]);
        command.env_remove("CREDENTIALS_DIRECTORY").stdin(Stdio::null());
        command
    }

    /// Starts the daemon; it need not be ready on return.
    pub(crate) fn spawn(&mut self) {
        self.spawn_as(self.command());
    }

    /// Starts the daemon by another command than [`Self::command`].
    pub(crate) fn spawn_as(&mut self, mut command: Command) {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let mut file = File::options().create(true).append(true).open(self.log_file()).unwrap();
        let log = Arc::new(Log::default());
        let written = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                writeln!(file, "{line}").unwrap();
                written.lines.lock().unwrap().text.push(line);
                written.grown.notify_all();
            }
            written.lines.lock().unwrap().ended = true;
            written.grown.notify_all();
        });
        self.process = Some(Process { child, log });
    }

    /// Where everything that it logged stands, over all its starts.
    pub(crate) fn log_file(&self) -> PathBuf {
        self.folder().join("log")
    }

    /// Runs the daemon to its end, for a start that is to fail.
    pub(crate) fn output(&self) -> Output {
        self.command().output().unwrap()
    }

    /// Waits until a line since the last start contains this text.
    pub(crate) fn wait_for_log(&self, text: &str) {
        let log = &self.process.as_ref().unwrap().log;
        let deadline = Instant::now() + PATIENCE;
        let mut lines = log.lines.lock().unwrap();
        while !lines.text.iter().any(|line| line.contains(text)) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || lines.ended {
                let log = lines.text.join("\n");
                drop(lines);
                panic!("no {text:?} in the log:\n{log}");
            }
            lines = log.grown.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// Everything logged since the last start.
    pub(crate) fn log(&self) -> String {
        self.process.as_ref().unwrap().log.lines.lock().unwrap().text.join("\n")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().unwrap().child.id()
    }

    /// How much memory it has, without its device processes.
    pub(crate) fn memory_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or_default()
    }

    /// The daemon, its launcher and its device processes, by pid.
    pub(crate) fn processes(&self) -> Vec<i32> {
        descent(self.pid().cast_signed())
    }

    /// The device processes that run, by pid.
    pub(crate) fn device_processes(&self) -> Vec<i32> {
        let is_device = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|argument| argument == b"device-process")
        };
        self.processes().into_iter().filter(is_device).collect()
    }

    /// The only one that runs.
    pub(crate) fn device_process(&self) -> i32 {
        let [pid] = self.device_processes()[..] else { panic!("{:?}", self.device_processes()) };
        pid
    }

    /// Sends the running daemon a signal.
    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.pid().try_into().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Whether the daemon ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.as_mut().unwrap().child.try_wait().unwrap().is_some()
    }

    /// Waits for the daemon's end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.process.take().unwrap().child.wait().unwrap()
    }

    /// Asks the daemon to stop, and waits for it.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        self.wait()
    }

    /// A connection to the socket, made at the first call.
    pub(crate) fn channel(&self) -> Channel {
        channel(&self.socket())
    }

    pub(crate) fn client(&self) -> SignerClient<Channel> {
        SignerClient::new(self.channel())
    }

    /// Waits until the health service says so.
    pub(crate) async fn wait_for_health(&self, wanted: ServingStatus) {
        self.wait_for_log("serving");
        let watch = async {
            let request = HealthCheckRequest { service: "signet.v1.Signer".to_owned() };
            let mut health = HealthClient::new(self.channel()).watch(request).await.unwrap().into_inner();
            while let Some(answer) = health.message().await.unwrap() {
                if answer.status == wanted as i32 {
                    return;
                }
            }
        };
        let seen = tokio::time::timeout(PATIENCE, watch).await;
        assert!(seen.is_ok(), "not {wanted:?}:\n{}", self.log());
    }

    /// Takes a signature of RS256 for none but this key's.
    pub(crate) fn verify(&self, kid: &str, message: &[u8], signature: &[u8]) {
        let pem = fs::read_to_string(self.state().join(format!("certificates/{kid}.pem"))).unwrap();
        let digest = Digest::of(Hash::Sha256, message);
        let signature = Signature::from_bytes(signature.to_vec());
        certificate::public_key(&pem).unwrap().verify(Algorithm::Rs256, &digest, &signature).unwrap();
    }

    /// The claims of a JWT that this key has signed.
    pub(crate) fn claims(&self, kid: &str, jwt: &str) -> serde_json::Value {
        let (signed, signature) = jwt.rsplit_once('.').unwrap();
        self.verify(kid, signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap());
        let payload = signed.split_once('.').unwrap().1;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
    }

    /// Every line of the audit log, once it has been verified.
    pub(crate) fn audit(&self) -> Vec<serde_json::Value> {
        let log = fs::read_to_string(self.audit_file()).unwrap();
        signet::audit::verify(log.as_bytes(), None).unwrap();
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub(crate) fn audit_file(&self) -> PathBuf {
        self.state().join("audit.log")
    }

    /// Adds a key to the keyring.
    pub(crate) fn add(&self, record: KeyRecord) {
        let mut keyring = Keyring::load(&self.state()).unwrap();
        keyring.keys.push(record);
        keyring.save(&self.state()).unwrap();
    }

    /// Runs `signetctl` with this configuration; it must succeed. Returns its standard output.
    pub(crate) fn signetctl(&self, arguments: &[&str]) -> String {
        let output = super::signetctl(&self.config_file()).args(arguments).output().unwrap();
        assert!(output.status.success(), "signetctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for TestDaemon {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }
}

/// A request for a signature of these bytes by the default account.
pub(crate) fn payload(bytes: &[u8]) -> proto::SignBlobRequest {
    let input = Some(sign_blob_request::Input::Payload(bytes.to_vec().into()));
    proto::SignBlobRequest { account: String::new(), input, algorithm: 0 }
}

/// The stable reason of a refusal.
pub(crate) fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info().expect("google.rpc.ErrorInfo");
    assert_eq!(info.domain, "signet");
    info.reason.clone()
}

/// A process and all that it started, and that these did.
fn descent(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children: String = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok()).collect();
    let children = children.split_whitespace().map(|child| child.parse().unwrap());
    std::iter::once(pid).chain(children.flat_map(descent)).collect()
}

/// The time as JWTs have it.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A connection to a socket, made at the first call.
pub(crate) fn channel(socket: &Path) -> Channel {
    Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap().connect_lazy()
}

/// No test that is right waits this long.
const PATIENCE: Duration = Duration::from_secs(30);
