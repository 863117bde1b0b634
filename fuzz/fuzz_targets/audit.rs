//! The audit log: one that is whole is gone on with, and one whose last line was torn is whole again afterwards.

#![no_main]

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use libfuzzer_sys::fuzz_target;
use signet::audit::{Fsync, Head, Rotation, verify};
use signet::signer::Audit;
use signet_fuzz::SCRATCH;

/// A log is locked until the thread that writes it has ended, so each has a file of its own.
static LOGS: AtomicUsize = AtomicUsize::new(0);

fuzz_target!(|log: &[u8]| {
    let whole = log.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let (whole, torn) = log.split_at(whole);
    let _ = Head::of_line(torn);
    let verified = verify(whole, None);
    assert_eq!(verify(log, None).is_ok(), verified.is_ok() && torn.is_empty());
    let Ok(verified) = verified else { return };
    assert_eq!(verified.lines, whole.iter().filter(|byte| **byte == b'\n').count() as u64);
    assert_eq!(verify(whole, Some(verified.first.clone())).unwrap(), verified);
    if verified.last.seq == u64::MAX {
        return;
    }
    SCRATCH.with(|scratch| {
        let path = scratch.write(&LOGS.fetch_add(1, Ordering::Relaxed).to_string(), log);
        let audit = Audit::open(&path, Fsync::Never, Rotation { max_size: u64::MAX, keep: 1 }).unwrap();
        let mended = verify(fs::read(&path).unwrap().as_slice(), None).unwrap();
        assert_eq!(mended.lines, verified.lines + u64::from(!torn.is_empty()));
        drop(audit);
        fs::remove_file(&path).unwrap();
        let _ = fs::remove_file(path.with_extension("head"));
    });
});
