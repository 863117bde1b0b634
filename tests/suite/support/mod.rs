//! What the tests run against.

pub(crate) mod daemon;
pub(crate) mod fake;
pub(crate) mod softhsm;
pub(crate) mod swtpm;
