//! The daemon's life: open, bind, serve, reload, drain. The only place that sees everything.

mod confine;
mod port;
mod reload;
mod supervisor;
mod watch;

use std::ffi::OsString;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch as channel;
use tokio::task::JoinSet;

use crate::access::AccountEmail;
use crate::config::{Checkpoints, Config, ConfigError, Exchange};
use crate::device::handle::{Handle, Start};
use crate::device::launcher::{self, LauncherProcess};
use crate::device::{self, DeviceConfig};
use crate::front::grpc::{self, Listener, Place, Readiness};
use crate::front::http;
use crate::keyring::KeyringError;
use crate::log;
use crate::signer::{Audit, Cache, Devices, Exchanges, LiveKeyring, OpenError, Signer, TokenEndpoint};
pub use confine::confine;
use watch::Watch;

/// The launcher of device processes: what the daemon starts itself as, with [`DEVICE_LAUNCHER`]. Returns the exit code.
///
/// # Errors
/// Where this program can't be found.
pub fn device_launcher(logging: Vec<OsString>) -> anyhow::Result<u8> {
    let reread = |path: &Path| Config::load(path).map(|config| config.devices).map_err(|error| error.to_string());
    Ok(launcher::run(program()?, logging.into_iter().chain([DEVICE_PROCESS.into()]).collect(), reread))
}

/// A device process, from its first job to its last: what the launcher starts, with [`DEVICE_PROCESS`] and the device's
/// configuration as JSON; without that it is the first thing to come by the pipe. Returns the exit code.
///
/// # Errors
/// Where the configuration is none.
pub fn device_process(config: Option<&str>) -> anyhow::Result<u8> {
    let told = config.map(serde_json::from_str).transpose().context("no configuration of a device")?;
    Ok(device::process::run(told, device::open))
}

/// Serves until SIGTERM or SIGINT, then lets the requests on their way finish. Devices may be absent: the daemon says
/// NOT_SERVING until one is there. Device processes get `logging` as arguments, so that they log as the daemon does.
///
/// # Errors
/// What is wrong, and what to do about it.
pub fn run(config: Config, logging: Vec<OsString>) -> anyhow::Result<()> {
    let sockets = supervisor::sockets()?;
    let socket = match sockets.grpc {
        Some(socket) => Socket::Passed(socket),
        // Before this process is confined, and before the port for HTTP, which another daemon would have as well.
        None => Socket::Ours(Place::take(&config.listen.grpc)?),
    };
    let arguments: Vec<_> = logging.into_iter().chain([DEVICE_LAUNCHER.into()]).collect();
    let launcher = LauncherProcess::start(&program()?, &arguments, &config.devices, &config.path)
        .context("can't start the launcher of device processes")?;
    let mut port = sockets.http;
    if let Some(address) = config.listen.http.filter(|_| port.is_none()) {
        port = port::take(address)?;
    }
    // While the authorities' certificates can still be read.
    let exchanges = exchanges(&config)?;
    // Before there are other threads: those that exist are not bound.
    let to_be_bound = config.listen.http.filter(|_| port.is_none());
    confine(&config, to_be_bound.map(|address| address.port()));
    log::detach()?;
    let mut audit = Audit::open(&config.audit.path, config.audit.fsync, config.audit.rotation)?;
    if let Some(journal) = &config.audit.journal {
        audit = audit.with_journal(journal).context("can't make a socket for audit.journal")?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let prepared = Prepared { socket, port, exchanges, audit: audit.clone() };
    let served = runtime.block_on(serve(config, Arc::new(launcher), prepared));
    // Device processes end with their handles; nothing else is worth waiting for.
    runtime.shutdown_timeout(Duration::from_millis(100));
    audit.flush(LAST_RECORDS);
    served
}

/// What there was before anybody was served.
struct Prepared {
    socket: Socket,
    port: Option<TcpListener>,
    exchanges: Exchanges,
    audit: Audit,
}

/// The unix socket: bound by a supervisor, or by us once everything is there to serve.
enum Socket {
    Passed(UnixListener),
    Ours(Place),
}

async fn serve(config: Config, launcher: Arc<LauncherProcess>, prepared: Prepared) -> anyhow::Result<()> {
    let signals = Signals::new()?;
    let start = |device: &DeviceConfig| Handle::start(device.clone(), Start::Apart(Arc::clone(&launcher)));
    let devices: Devices = config.devices.iter().map(|device| (device.name.clone(), start(device))).collect();
    let stamp = reload::stamp(&config.state_dir);
    let keyring = LiveKeyring::load(&config.state_dir, &devices).context("the keyring can't be used")?;
    let listener = match prepared.socket {
        Socket::Passed(socket) => Listener::adopt(socket, &config.listen.grpc)?,
        Socket::Ours(place) => Listener::bind(place, config.listen.mode, config.listen.group)?,
    };
    let on_port = |address| prepared.port.map(|socket| http::Listener::new(socket, address)).transpose();
    let port = config.listen.http.map(on_port).transpose()?.flatten();
    let signer = Signer::new(config.policy.clone(), keyring, Cache::new(config.cache_entries), prepared.audit);
    let signer = Arc::new(signer.with_exchanges(prepared.exchanges));
    let health = Readiness::new().await;
    let (reload, reloads) = channel::channel(());
    let watch = Watch {
        config: config.clone(),
        keyring: stamp,
        devices,
        signer: Arc::clone(&signer),
        health: health.clone(),
        launcher: Arc::clone(&launcher),
        woken: Arc::default(),
    };
    let mut watching = watch.start(reloads);
    let _beside = beside(&config, &signer);
    tracing::info!(socket = %config.listen.grpc.display(), accounts = config.policy.accounts().len(), "serving");

    let (stop, stopped) = channel::channel(());
    let stopping = |mut stopped: channel::Receiver<()>| async move { drop(stopped.changed().await) };
    let auditor = Arc::clone(&signer);
    let over_http = async {
        if let Some(address) = config.listen.http {
            port::serve(port, address, front(&config, &signer), stopping(stopped.clone())).await;
        }
        Ok(())
    };
    let over_grpc =
        grpc::serve(listener, Arc::clone(&signer), &health, config.max_client_cache_time, stopping(stopped.clone()));
    let mut serving = Box::pin(async { tokio::try_join!(over_grpc, over_http).map(drop) });
    let died = tokio::select! {
        served = &mut serving => Some(served),
        ended = &mut watching => Some(Err(ended.map_or_else(Into::into, |()| "nobody watches the devices".into()))),
        () = until_over(Arc::clone(&launcher)) => Some(Err("the launcher of device processes has ended".into())),
        () = signals.until_end(&reload, &auditor) => None,
    };
    let served = match died {
        Some(served) => served,
        None => {
            health.set(false).await;
            stop.send_replace(());
            drained(serving).await
        }
    };
    watching.abort();
    served.map_err(anyhow::Error::from_boxed)
}

/// What is done besides serving, until this is dropped.
fn beside(config: &Config, signer: &Arc<Signer>) -> JoinSet<()> {
    let mut beside = JoinSet::new();
    beside.spawn(Arc::clone(signer).renew());
    if let Some(Checkpoints { every, account }) = config.audit.checkpoints.clone() {
        beside.spawn(Arc::clone(signer).checkpoints(account, every));
    }
    beside.spawn(supervisor::feed_watchdog(Arc::clone(signer)));
    beside
}

/// What is served over HTTP.
fn front(config: &Config, signer: &Arc<Signer>) -> http::Front {
    http::Front {
        signer: Arc::clone(signer),
        state_dir: config.state_dir.clone(),
        metadata: config.metadata.clone(),
        cache_time: config.max_client_cache_time,
        issuer: config.listen.issuer.clone(),
    }
}

/// Lets the requests on their way finish, in their time.
async fn drained<E>(serving: impl Future<Output = Result<(), E>>) -> Result<(), E> {
    tracing::info!("stopping: finishing the requests on their way");
    supervisor::tell(&[supervisor::State::Stopping]);
    tokio::time::timeout(DRAIN, serving).await.unwrap_or_else(|_elapsed| {
        tracing::warn!("stopped with requests unfinished");
        Ok(())
    })
}

/// The way to the token endpoint of each account that has one.
fn exchanges(config: &Config) -> anyhow::Result<Exchanges> {
    let endpoint = |(account, Exchange { token_uri, ca_file }): (&AccountEmail, &Exchange)| {
        let authorities = ca_file.as_ref().map(std::fs::read).transpose();
        let endpoint = authorities
            .map_err(anyhow::Error::from)
            .and_then(|authorities| Ok(TokenEndpoint::new(token_uri.clone(), authorities.as_deref())?));
        let endpoint =
            endpoint.with_context(|| format!("the certificate authorities for the exchange of {account}"))?;
        Ok((account.clone(), endpoint))
    };
    config.exchanges.iter().map(endpoint).collect()
}

/// Returns when the launcher has ended: without it no device comes back.
async fn until_over(launcher: Arc<LauncherProcess>) {
    let (over, told) = tokio::sync::oneshot::channel();
    // A thread of its own, which nobody waits for when the daemon ends.
    std::thread::spawn(move || {
        let _ = launcher.wait();
        let _ = over.send(());
    });
    let _ = told.await;
}

fn program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("can't find this program again")
}

/// What to do about an error of this module, where there is something.
#[must_use]
pub fn remedy(error: &anyhow::Error) -> Option<String> {
    if let Some(error) = error.downcast_ref::<ConfigError>() {
        return Some(error.remedy.clone());
    }
    let remedy = if let Some(error) = error.downcast_ref::<KeyringError>() {
        error.remedy()
    } else if let Some(error) = error.downcast_ref::<grpc::BindError>() {
        error.remedy()
    } else if let Some(error) = error.downcast_ref::<http::BindError>() {
        error.remedy()
    } else if let Some(error) = error.downcast_ref::<OpenError>() {
        error.remedy()
    } else {
        return None;
    };
    Some(remedy.to_owned())
}

/// The signals that a daemon minds.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user1: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
        })
    }

    /// Returns at SIGTERM or SIGINT. Every SIGHUP reloads, every SIGUSR1 begins a new audit file.
    async fn until_end(mut self, reload: &channel::Sender<()>, signer: &Signer) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => reload.send_replace(()),
                _ = self.user1.recv() => signer.rotate_audit(),
            }
        }
    }
}

/// The hidden subcommand of the launcher of device processes.
pub const DEVICE_LAUNCHER: &str = "device-launcher";
/// The hidden subcommand of a device process.
pub const DEVICE_PROCESS: &str = "device-process";
const DRAIN: Duration = Duration::from_secs(10);
/// How long the audit records of requests that were cut off may take.
const LAST_RECORDS: Duration = Duration::from_secs(2);
