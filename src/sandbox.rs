//! What a process gives up for good before it meets what it does not trust: to be looked into, files (landlock), system calls
//! (seccomp) and new privileges.
//!
//! The latter bind the calling thread and whatever it starts from then on, so this is for the time before there are other threads.
//! What only the daemon or only a device may need stands there; here stands what whoever calls the C library does.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, NetPort, RestrictionStatus, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};
use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, setrlimit};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

/// What a process may still open. A path that does not exist when it is confined stays closed.
#[derive(Clone, Debug)]
pub struct Files<P> {
    /// Files, and folders with all that is in them, to read.
    pub read: Vec<P>,
    /// The same, to read, write, make and remove.
    pub write: Vec<P>,
    /// Whether it may make TCP connections.
    pub connect: bool,
    /// Which ports of TCP it may bind; none: any.
    pub bind: Option<Vec<u16>>,
}

/// How much of it the kernel keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// All of it.
    All,
    /// An older kernel keeps what it knows of.
    Part,
    /// This kernel has no landlock.
    Nothing,
}

/// Why a process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Landlock refused.
    #[error("landlock: {0}")]
    Landlock(#[from] RulesetError),
    /// Seccomp refused.
    #[error("seccomp: {0}")]
    Calls(String),
}

/// Keeps what is secret in this process out of core files, and out of reach of this user's debuggers.
///
/// # Errors
/// What the kernel says.
pub fn guard_memory() -> io::Result<()> {
    set_dumpable(false)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    Ok(())
}

/// Closes every file but these, for opening: what is open already stays open. Nothing can be executed any more.
///
/// # Errors
/// [`SandboxError::Landlock`].
pub fn close_files<P: AsRef<Path>>(files: &Files<P>) -> Result<Kept, SandboxError> {
    let all = AccessFs::from_all(ABI::V5);
    let mut ruleset = Ruleset::default().handle_access(all)?.scope(Scope::Signal)?;
    if !files.connect {
        ruleset = ruleset.handle_access(AccessNet::ConnectTcp)?;
    }
    if files.bind.is_some() {
        ruleset = ruleset.handle_access(AccessNet::BindTcp)?;
    }
    let ports = files.bind.iter().flatten().map(|port| Ok::<_, RulesetError>(NetPort::new(*port, AccessNet::BindTcp)));
    let status = ruleset
        .create()?
        .add_rules(ports)?
        .add_rules(path_beneath_rules(&files.read, AccessFs::ReadFile | AccessFs::ReadDir))?
        .add_rules(path_beneath_rules(&files.write, all & !AccessFs::Execute))?
        .restrict_self()?;
    Ok(kept(&status))
}

/// Sends no signal to a process that is not its own or started by it; as [`close_files`] does, for one that keeps its files.
///
/// # Errors
/// [`SandboxError::Landlock`].
pub fn close_signals() -> Result<Kept, SandboxError> {
    let status = Ruleset::default().scope(Scope::Signal)?.create()?.restrict_self()?;
    Ok(kept(&status))
}

fn kept(status: &RestrictionStatus) -> Kept {
    match status.ruleset {
        RulesetStatus::FullyEnforced => Kept::All,
        RulesetStatus::PartiallyEnforced => Kept::Part,
        RulesetStatus::NotEnforced => Kept::Nothing,
    }
}

/// What it takes to look up a host. resolv.conf is often a link into a folder where it is replaced as a whole.
#[must_use]
pub fn resolver() -> Vec<PathBuf> {
    let configuration = fs::canonicalize("/etc/resolv.conf").unwrap_or_default();
    let folder = configuration.parent().filter(|folder| folder.starts_with("/run")).map(Path::to_owned);
    let files = ["/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/gai.conf", "/etc/services"];
    files.iter().map(PathBuf::from).chain(folder).collect()
}

/// Libraries, what the C library and OpenSSL read when they start, and what users and groups are looked up in.
pub const LIBRARIES: [&str; 14] = [
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/group",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/openssl.cnf",
    "/etc/crypto-policies",
    "/dev/urandom",
];

/// Gives up, with EPERM, the system calls that neither the daemon nor a device has a use for: starting programs, leaving the
/// process group that is ended as a whole, looking into other processes, mounting, namespaces, modules, and the kernel's less trodden corners.
///
/// # Errors
/// [`SandboxError::Calls`]; also where this machine's architecture is not known.
pub fn close_calls() -> Result<(), SandboxError> {
    let calls = |error: &dyn std::fmt::Display| SandboxError::Calls(error.to_string());
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| calls(&error))?;
    let errno = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let denied = DENIED.iter().map(|call| (*call, Vec::new())).collect();
    let filter = SeccompFilter::new(denied, SeccompAction::Allow, errno, arch).map_err(|error| calls(&error))?;
    let program = BpfProgram::try_from(filter).map_err(|error| calls(&error))?;
    seccompiler::apply_filter(&program).map_err(|error| calls(&error))
}

const DENIED: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_setpgid,
    libc::SYS_setsid,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_personality,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
];
