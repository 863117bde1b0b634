//! The way to the daemon, and what its refusals mean for a person.

use std::future::Future;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Group};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};
use tonic_types::StatusExt as _;

use super::Global;
use super::failure::{Exit, Failure};
use crate::proto::signer_client::SignerClient;

/// Calls the daemon once and waits for its answer.
pub(crate) fn call<T, F>(global: &Global, call: impl FnOnce(SignerClient<Channel>) -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let socket = global.socket()?;
    block_on(async {
        let channel = connect(&socket).await?;
        // The answer to a large blob is small, but certificates of many keys are not.
        let client = SignerClient::new(channel).max_decoding_message_size(16 << 20);
        call(client).await.map(Response::into_inner).map_err(|status| explained(&status, &socket))
    })
}

/// Runs to its end on this thread.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::new)?.block_on(future)
}

/// Connects to the daemon's socket.
pub(crate) async fn connect(socket: &Path) -> Result<Channel, Failure> {
    let socket = std::path::absolute(socket).map_err(Failure::usage)?;
    if socket.metadata().is_ok_and(|metadata| !metadata.file_type().is_socket()) {
        return Err(Failure::with(Exit::Unavailable, format!("{} is no socket", socket.display())).hint(START));
    }
    let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).map_err(Failure::usage)?;
    // A daemon answers pings while its device thinks; what else may listen there does not.
    let endpoint = endpoint.http2_keep_alive_interval(PING).keep_alive_timeout(PING_LIMIT);
    let endpoint = endpoint.connect_timeout(CONNECT_LIMIT).timeout(CALL_LIMIT);
    let until = Instant::now() + CONNECT_LIMIT;
    loop {
        match endpoint.connect().await {
            // So many connect that the queue is full.
            Err(error) if kind(&error) == Some(ErrorKind::WouldBlock) && Instant::now() < until => {
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
            connected => return connected.map_err(|error| unreachable_socket(&socket, &error)),
        }
    }
}

/// What the system said.
fn kind(error: &(dyn std::error::Error + 'static)) -> Option<ErrorKind> {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.filter_map(|cause| cause.downcast_ref::<std::io::Error>()).last().map(std::io::Error::kind)
}

fn unreachable_socket(socket: &Path, error: &(dyn std::error::Error + 'static)) -> Failure {
    let path = socket.display();
    let (what, hint) = match kind(error) {
        Some(ErrorKind::NotFound) => {
            (format!("there is no socket {path}: signetd does not run, or listens elsewhere"), START)
        }
        Some(ErrorKind::ConnectionRefused) => (
            format!("nobody listens at {path}: signetd has ended"),
            "start signetd (systemctl start signetd, or signetd --config FILE); its log tells why it ended",
        ),
        Some(ErrorKind::PermissionDenied) => {
            let group = socket.metadata().map_or(0, |metadata| metadata.gid());
            let name = Group::from_gid(Gid::from_raw(group)).ok().flatten().map(|group| group.name);
            return Failure::with(Exit::Unavailable, format!("you may not connect to {path}"))
                .hint(way_in(group, name.as_deref()));
        }
        _ => (format!("signetd does not answer at {path}"), "signetctl doctor"),
    };
    Failure::with(Exit::Unavailable, what).hint(hint)
}

/// How whoever is kept out of a socket by its group gets in. The group root, which a socket has where none was set, is for
/// nobody to join.
fn way_in(group: u32, name: Option<&str>) -> String {
    match name {
        Some(name) if group != 0 => format!("ask to be added to the group {name}, and log in again"),
        _ => "an operator sets listen.group in signetd's configuration to a group of yours, and restarts signetd"
            .to_owned(),
    }
}

/// What a status of the daemon's means for a person.
pub(crate) fn explained(status: &Status, socket: &Path) -> Failure {
    let details = status.get_error_details();
    let reason = details.error_info().map_or("", |info| info.reason.as_str());
    let retry = details.retry_info().and_then(|info| info.retry_delay);
    let again =
        retry.map_or_else(|| "again later".to_owned(), |delay| format!("again in {:.1} s", delay.as_secs_f64()));
    let (exit, hint) = match (status.code(), reason) {
        (Code::PermissionDenied, _) => (
            Exit::Refused,
            "ask for an [[allow]] rule; an operator sees why with signetctl policy explain, and in the audit log; one that was just added takes effect with SIGHUP to signetd"
                .to_owned(),
        ),
        (Code::InvalidArgument, _) => {
            let field = details.bad_request().and_then(|bad| bad.field_violations.first());
            let hint = match field.map_or("", |violation| violation.field.as_str()) {
                "lifetime" => "--lifetime 1h, or less",
                "account" => "--account EMAIL",
                "payload" => "signetctl sign-jwt signs claims; a blob is at most 1 MiB, and nothing that could be taken for a JWT",
                _ => "another request: the message says what can't be served",
            };
            (Exit::Usage, hint.to_owned())
        }
        (Code::ResourceExhausted, _) => (Exit::Unavailable, again),
        (Code::FailedPrecondition, "PIN_REFUSED") => {
            (Exit::Unavailable, "an operator mends the PIN file, then runs what signetctl status says of the device".to_owned())
        }
        (Code::FailedPrecondition, "NO_ACTIVE_KEY") => {
            (Exit::Unavailable, "an operator runs signetctl key generate, or key activate".to_owned())
        }
        (Code::FailedPrecondition, "AUDIT_UNWRITABLE") => (
            Exit::Unavailable,
            "an operator mends what signetctl status names: nothing is signed without a record".to_owned(),
        ),
        (Code::FailedPrecondition, "EXCHANGE_REFUSED") => (
            Exit::Unavailable,
            "an operator finds what it said in signetd's log (journalctl -u signetd, or its standard error), at \"no token from the token endpoint\""
                .to_owned(),
        ),
        (Code::Unavailable, "TOKEN_ENDPOINT_AWAY") => (Exit::Unavailable, format!("{again}; signetd's log tells why")),
        (Code::Unavailable | Code::DeadlineExceeded, _) if !reason.is_empty() => {
            (Exit::Unavailable, format!("{again}; signetctl status shows how the device is"))
        }
        (Code::Unimplemented, _) => (
            Exit::Unavailable,
            format!("is it an older signetd, or another program, that listens at {}?", socket.display()),
        ),
        // Not the daemon's words: the connection has ended, or never was one to a daemon.
        (Code::Unavailable | Code::Unknown | Code::Cancelled, "") => {
            let what = format!("no answer by signetd at {} ({})", socket.display(), status.message());
            return Failure::with(Exit::Unavailable, what).hint(format!("is it signetd that listens there? {START}"));
        }
        (Code::FailedPrecondition | Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled, _) => {
            (Exit::Unavailable, "signetctl doctor".to_owned())
        }
        _ => (Exit::Failed, LOG.to_owned()),
    };
    let message = if status.message().is_empty() { status.code().description() } else { status.message() };
    let reason = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
    Failure::with(exit, format!("{message}{reason}")).hint(hint)
}

/// What starts the daemon, however it is started here.
const START: &str = "start signetd (systemctl start signetd, or signetd --config FILE); or --socket PATH";
/// Where the daemon's log is, by who started it.
pub(super) const LOG: &str = "signetd's log tells more (journalctl -u signetd, or its standard error)";
const PING: Duration = Duration::from_secs(2);
const PING_LIMIT: Duration = Duration::from_secs(3);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const CONNECT_PAUSE: Duration = Duration::from_millis(5);
/// Longer than the daemon's own limits, so that its answer is the one that is seen.
const CALL_LIMIT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_into_the_group_root() {
        assert!(way_in(4711, Some("signet-clients")).contains("added to the group signet-clients"));
        for told in [way_in(0, Some("root")), way_in(0, None), way_in(4711, None)] {
            assert!(told.contains("sets listen.group") && !told.contains("root"), "{told}");
        }
    }
}
