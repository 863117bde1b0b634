//! Who is calling, by the kernel's word.

use std::path::PathBuf;

/// A local process as it was when it connected. A socket that it hands on keeps this identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The effective user id.
    pub uid: u32,
    /// The effective group id.
    pub gid: u32,
    /// The supplementary group ids.
    pub groups: Vec<u32>,
    /// The process id: for the audit log alone, since it may be another process by now.
    pub pid: Option<u32>,
    /// The systemd unit that the process ran in. None where no rule asks for units, or it can't be known for certain.
    pub unit: Option<String>,
    /// The program that the process ran. None where no rule names it, or it can't be known for certain.
    pub executable: Option<Executable>,
}

/// A program's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executable {
    /// Where it stands.
    pub path: PathBuf,
    /// The SHA-256 of its contents: in a rule, where it asks for one; of a caller, where a rule with this path does.
    pub sha256: Option<[u8; 32]>,
}

/// What rules ask of callers beyond their ids, so that nothing else is looked up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sought {
    /// Some rule has `units`.
    pub unit: bool,
    /// Every executable of any rule.
    pub executables: Vec<Executable>,
}

impl Caller {
    /// A caller of these ids, of whom nothing else is known.
    #[must_use]
    pub const fn new(uid: u32, gid: u32, groups: Vec<u32>) -> Self {
        Self { uid, gid, groups, pid: None, unit: None, executable: None }
    }

    /// Whether the caller is in a group, by its effective or a supplementary one.
    #[must_use]
    pub fn is_in(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }

    /// Whether the caller is known to run this executable.
    #[must_use]
    pub fn runs(&self, wanted: &Executable) -> bool {
        let runs =
            |own: &Executable| own.path == wanted.path && (wanted.sha256.is_none() || own.sha256 == wanted.sha256);
        self.executable.as_ref().is_some_and(runs)
    }
}
