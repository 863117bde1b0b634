//! The user database: who users and groups are. It may be another machine's, so to ask it may take its time.

use std::ffi::CString;
use std::io;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use crate::access::Caller;

/// The id of the user of a name.
///
/// # Errors
/// Whatever the user database says.
pub fn uid(name: &str) -> io::Result<Option<u32>> {
    Ok(User::from_name(name)?.map(|user| user.uid.as_raw()))
}

/// The id of the group of a name.
///
/// # Errors
/// Whatever the user database says.
pub fn gid(name: &str) -> io::Result<Option<u32>> {
    Ok(Group::from_name(name)?.map(|group| group.gid.as_raw()))
}

/// The name of a user, where the user database tells one.
#[must_use]
pub fn name(uid: u32) -> Option<String> {
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name)
}

/// The caller of this user id, with the groups that the user database gives it.
///
/// # Errors
/// Whatever the user database says.
pub fn caller(uid: u32) -> io::Result<Caller> {
    let Some(user) = User::from_uid(Uid::from_raw(uid))? else {
        return Ok(Caller::new(uid, NO_GROUP, Vec::new()));
    };
    let groups = getgrouplist(&CString::new(user.name)?, user.gid)?;
    Ok(Caller::new(uid, user.gid.as_raw(), groups.into_iter().map(Gid::as_raw).collect()))
}

/// A user who is not in the database has no group that a rule could name.
const NO_GROUP: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_those_of_the_user_database() {
        let root = caller(0).unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(root.is_in(0));
        let unknown = caller(0x7fff_fff0).unwrap();
        assert_eq!((unknown.gid, unknown.groups.as_slice()), (NO_GROUP, [].as_slice()));
    }
}
