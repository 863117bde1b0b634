//! What a peer runs: its systemd unit and its executable, read from /proc while a pidfd says that it is still the peer.
//!
//! Whatever is in doubt stays unknown, and what is unknown matches no rule.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::throttle::LogThrottle;
use super::listen::Connection;
use super::peer;
use crate::access::{Executable, Sought};
use crate::file::Stamp;

/// What it takes to tell who is who, over all connections.
#[derive(Debug, Default)]
pub(super) struct Identities {
    hashes: Mutex<HashMap<PathBuf, (Stamp, [u8; 32])>>,
    throttle: LogThrottle,
}

impl Identities {
    /// Learns of a connection's peer what the rules ask for.
    pub(super) async fn learn(self: Arc<Self>, mut connection: Connection, sought: Sought) -> Connection {
        if sought == Sought::default() {
            return connection;
        }
        let (uid, pid) = (connection.caller().uid, connection.caller().pid);
        let learnt = match (peer::pin(connection.socket()), pid) {
            (Ok(peer), Some(pid)) => {
                let identities = Arc::clone(&self);
                let look_up = move || identities.look_up(&peer, pid, &sought);
                tokio::task::spawn_blocking(look_up).await.unwrap_or_else(|panicked| Err(io::Error::other(panicked)))
            }
            (Err(error), _) => Err(error),
            (Ok(_), None) => Err(io::Error::other("it is of another pid namespace")),
        };
        match learnt {
            Ok((unit, executable)) => connection.learnt(unit, executable),
            Err(error) => {
                if self.throttle.may_tell() {
                    tracing::warn!(uid, pid, %error, "a caller's unit and executable are not known: rules that ask for them don't match it");
                }
            }
        }
        connection
    }

    /// The peer's unit and executable, so far as they are sought and certain.
    fn look_up(&self, peer: &OwnedFd, pid: u32, sought: &Sought) -> io::Result<(Option<String>, Option<Executable>)> {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let unit = sought.unit.then(|| fs::read_to_string(folder.join("cgroup")));
        let executable = (!sought.executables.is_empty()).then(|| self.executable(&folder.join("exe"), sought));
        // While the peer lives, its pid is nobody else's: so all that was read is the peer's.
        if !is_alive(peer)? {
            return Err(io::Error::other("it has ended"));
        }
        let (unit, executable) = (self.told(pid, "unit", unit), self.told(pid, "executable", executable));
        Ok((unit.as_deref().and_then(unit_of), executable.flatten()))
    }

    /// What a living peer's /proc says, or why not, to the log.
    fn told<T>(&self, pid: u32, what: &str, read: Option<io::Result<T>>) -> Option<T> {
        let said = read?.inspect_err(|error| {
            if self.throttle.may_tell() {
                tracing::warn!(pid, %error, "can't read a caller's {what}: signetd needs to see /proc (systemd: ProtectProc=default), and for executables of other users CAP_SYS_PTRACE");
            }
        });
        said.ok()
    }

    /// What a process runs, where some rule names it.
    fn executable(&self, link: &Path, sought: &Sought) -> io::Result<Option<Executable>> {
        let path = fs::read_link(link)?;
        let named: Vec<_> = sought.executables.iter().filter(|wanted| wanted.path == path).collect();
        if named.is_empty() {
            return Ok(None);
        }
        let file = File::open(link)?;
        let running = Stamp::from(&file.metadata()?);
        // A process may have a file system of its own, in which this path is anything.
        if running != Stamp::from(&fs::metadata(&path)?) {
            return Ok(None);
        }
        let hashed = named.iter().any(|wanted| wanted.sha256.is_some());
        let sha256 = if hashed { Some(self.sha256(&path, file, running)?) } else { None };
        Ok(Some(Executable { path, sha256 }))
    }

    fn sha256(&self, path: &Path, mut file: File, before: Stamp) -> io::Result<[u8; 32]> {
        // Held while it is computed: whoever comes meanwhile finds it here.
        let mut hashes = self.hashes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = hashes.get(path).filter(|(stamp, _)| *stamp == before) {
            return Ok(*known);
        }
        let sha256 = sha256(&mut file)?;
        if Stamp::from(&file.metadata()?) != before {
            return Err(io::Error::other("the executable changed while it was read"));
        }
        if before.is_settled() {
            hashes.insert(path.to_owned(), (before, sha256));
        }
        Ok(sha256)
    }
}

fn is_alive(process: &OwnedFd) -> io::Result<bool> {
    // A pidfd becomes readable when its process ends (pidfd_open(2)).
    let mut ended = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut ended, PollTimeout::ZERO)? == 0)
}

/// The unit that a process is in by its /proc/PID/cgroup: below the slices, the first name of the path. What stands
/// further down is the doing of the unit itself, such as the services of a user's own manager in user@UID.service.
fn unit_of(cgroup: &str) -> Option<String> {
    let lines = || cgroup.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let of = |controllers: &str| lines().find_map(|(known, path)| (known == controllers).then_some(path));
    // Where both are there, systemd keeps its units in the hierarchy of its name; version 2 has no controllers.
    let path = of("name=systemd").or_else(|| of(""))?.strip_prefix('/')?;
    if path.split('/').any(|name| name.is_empty() || name == "." || name == "..") {
        return None;
    }
    let name = path.split('/').find(|name| !name.ends_with(".slice"))?;
    // Names that the kernel would take for its own files have an underscore in front.
    let unit = name.strip_prefix('_').unwrap_or(name);
    UNITS.iter().any(|suffix| unit.len() > suffix.len() && unit.ends_with(suffix)).then(|| unit.to_owned())
}

fn sha256(file: &mut File) -> io::Result<[u8; 32]> {
    let mut context = Context::new(&SHA256);
    let mut chunk = vec![0; 1 << 16];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            length => context.update(chunk.get(..length).unwrap_or_default()),
        }
    }
    <[u8; 32]>::try_from(context.finish().as_ref()).map_err(io::Error::other)
}

/// Units that have processes (systemd.resource-control(5)).
const UNITS: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_unit_is_the_first_name_below_the_slices() {
        for (cgroup, expected) in [
            ("0::/system.slice/app.service\n", Some("app.service")),
            ("0::/system.slice/system-batch.slice/batch@7.service\n", Some("batch@7.service")),
            ("0::/init.scope\n", Some("init.scope")),
            ("0::/system.slice/_memory.service\n", Some("memory.service")),
            ("0::/system.slice/app.service/app.service\n", Some("app.service")),
            // What a user starts is that user's, whatever its name.
            ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/app.service\n", Some("user@1000.service")),
            ("0::/user.slice/user-1000.slice/session-3.scope\n", Some("session-3.scope")),
            ("4:memory:/x.service\n1:name=systemd:/system.slice/app.service\n0::/other.service\n", Some("app.service")),
            ("4:memory:/x.service\n", None),
            ("4:memory,x:/a\n0::/b:c/d.service\n", None),
            ("0::/\n", None),
            ("0::/system.slice\n", None),
            ("0::/process_api/app.service\n", None),
            ("0::/../app.service\n", None),
            ("0::/system.slice/../app.service\n", None),
            ("0::/system.slice//app.service\n", None),
            ("0::/.service\n", None),
            ("0::/app.service (deleted)\n", None),
            ("0::app.service\n", None),
            ("", None),
            ("nonsense\n", None),
        ] {
            assert_eq!(unit_of(cgroup).as_deref(), expected, "{cgroup:?}");
        }
    }

    fn program() -> PathBuf {
        std::env::current_exe().unwrap()
    }

    fn sought(path: &Path, sha256: Option<[u8; 32]>) -> Sought {
        Sought { unit: false, executables: vec![Executable { path: path.to_owned(), sha256 }] }
    }

    #[test]
    fn an_executable_is_known_where_a_rule_names_it() {
        let identities = Identities::default();
        let link = Path::new("/proc/self/exe");
        let found = |sought| identities.executable(link, &sought).unwrap();
        assert_eq!(found(sought(&program(), None)), Some(Executable { path: program(), sha256: None }));
        let right = sha256(&mut File::open(program()).unwrap()).unwrap();
        for _cached in 0..2 {
            let sha256 = Some(right);
            assert_eq!(found(sought(&program(), Some([0; 32]))), Some(Executable { path: program(), sha256 }));
        }
        assert_eq!(found(sought(Path::new("/usr/bin/other"), None)), None);
        assert_eq!(found(Sought { unit: true, executables: vec![] }), None);
    }

    fn exe(child: &std::process::Child) -> PathBuf {
        PathBuf::from(format!("/proc/{}/exe", child.id()))
    }

    #[test]
    fn a_program_that_was_replaced_while_it_runs_is_not_the_one_that_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app");
        fs::copy("/bin/cat", &path).unwrap();
        let mut child = Command::new(&path).stdin(Stdio::piped()).spawn().unwrap();
        let identities = Identities::default();
        let found = || identities.executable(&exe(&child), &sought(&path, None)).unwrap();
        assert_eq!(found(), Some(Executable { path: path.clone(), sha256: None }));
        fs::copy("/bin/cat", folder.path().join("new")).unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!(found(), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Whoever may make a mount namespace can have any file at any path: the kernel tells that path all the same.
    #[test]
    fn a_path_in_a_file_system_of_the_callers_own_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app");
        fs::copy("/bin/true", &path).unwrap();
        let mount = "mount --bind /bin/cat \"$0\" && exec \"$0\"";
        let mut unshare = Command::new("unshare");
        unshare.args(["--map-root-user", "--mount", "sh", "-c", mount]).arg(&path);
        let mut child = unshare.stdin(Stdio::piped()).spawn().unwrap();
        while fs::read_link(exe(&child)).ok().as_ref() != Some(&path) {
            if child.try_wait().unwrap().is_some() {
                eprintln!("SKIPPED: mount namespaces can't be made here");
                return;
            }
            std::thread::yield_now();
        }
        assert_eq!(Identities::default().executable(&exe(&child), &sought(&path, None)).unwrap(), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// A file that was changed in this moment may change again unnoticed.
    #[test]
    fn a_hash_is_remembered_for_settled_files_alone() {
        let identities = Identities::default();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app");
        fs::write(&path, "x").unwrap();
        let hash = |path: &Path| {
            let file = File::open(path).unwrap();
            let before = Stamp::from(&file.metadata().unwrap());
            identities.sha256(path, file, before).unwrap();
        };
        hash(&path);
        assert!(identities.hashes.lock().unwrap().is_empty());
        hash(Path::new("/bin/cat"));
        assert!(identities.hashes.lock().unwrap().contains_key(Path::new("/bin/cat")));
    }

    #[test]
    fn nothing_is_learnt_of_a_peer_that_has_ended() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let alive = peer::pin(&ours).unwrap();
        let identities = Identities::default();
        let all = Sought { unit: true, ..sought(&program(), None) };
        assert!(identities.look_up(&alive, std::process::id(), &all).unwrap().1.is_some());
        drop(theirs);

        // A child connects, and its socket outlives it.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let script = "import socket,sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); sys.stdin.read()";
        let mut child = Command::new("python3").args(["-c", script]).arg(&path).stdin(Stdio::piped()).spawn().unwrap();
        let (stream, _) = listener.accept().unwrap();
        let peer = peer::pin(&stream).unwrap();
        let pid = child.id();
        assert!(identities.look_up(&peer, pid, &all).is_ok());
        drop(child.stdin.take());
        child.wait().unwrap();
        // Whatever has its pid now: here, this very process.
        for pid in [pid, std::process::id()] {
            assert!(identities.look_up(&peer, pid, &all).is_err());
        }
    }
}
