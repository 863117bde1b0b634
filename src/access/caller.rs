//! Who is calling, by the kernel's word.

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
}

impl Caller {
    /// Whether the caller is in a group, by its effective or a supplementary one.
    #[must_use]
    pub fn is_in(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}
