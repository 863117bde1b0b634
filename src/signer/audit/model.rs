//! The audit log where threads meet: whoever finishes a record, and the thread that writes what could take long. shuttle runs
//! them in thousands of orders, each from one seed: `cargo test --lib --features model model`.

use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Waker};

use shuttle::future::block_on;
use shuttle::thread;

use super::*;
use crate::access::Caller;

const THREADS: u32 = 2;
const RECORDS: usize = 6;
const ORDERS: usize = 1_000;

fn begin(audit: &Audit, caller: &Caller, account: &str) -> Record {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    audit.begin(&Call { caller, rpc: "Model", account, deadline }).unwrap()
}

/// What stands in the log, whole: the accounts of each caller in their order.
fn written(path: &Path) -> Vec<Vec<String>> {
    let mut before = None;
    let mut accounts = vec![Vec::new(); THREADS as usize];
    for file in [Rotation::old(path, 2), Rotation::old(path, 1), path.to_owned()] {
        let Ok(text) = std::fs::read_to_string(file) else { continue };
        before = Some(crate::audit::verify(text.as_bytes(), before).unwrap().last);
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            if line["event"] == "unanswered" {
                continue;
            }
            let uid = usize::try_from(line["uid"].as_u64().unwrap()).unwrap();
            accounts[uid].push(line["account"].as_str().unwrap().to_owned());
        }
    }
    accounts
}

/// Each finishes records one way and another while others do, rotates, and waits for the disk.
fn a_log_of_several(fsync: Fsync) {
    // In memory where that can be: rotation waits for the disk.
    let folder =
        tempfile::tempdir_in(["/dev/shm", "/tmp"].into_iter().find(|folder| Path::new(folder).is_dir()).unwrap());
    let folder = folder.unwrap();
    let path = Arc::new(folder.path().join("audit.log"));
    let audit = Audit::open(&path, fsync, Rotation { max_size: u64::MAX, keep: 2 }).unwrap();
    let callers = (0..THREADS).map(|uid| {
        let (audit, path) = (audit.clone(), Arc::clone(&path));
        thread::spawn(move || {
            let caller = Caller::new(uid, uid, vec![]);
            for number in 0..RECORDS {
                let account = number.to_string();
                let record = begin(&audit, &caller, &account);
                match number % 3 {
                    // The caller has gone: nobody waits for the record, or not any longer.
                    0 => drop(record),
                    1 => {
                        let mut finishing = Box::pin(record.finish(Ok(())));
                        let _ = finishing.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                    }
                    _ => {
                        block_on(record.finish(Ok(()))).unwrap();
                        let mine = written(&path).swap_remove(uid as usize);
                        assert_eq!(mine.last(), Some(&account), "it is answered before it is on record");
                    }
                }
                if number == 1 {
                    audit.rotate();
                }
            }
        })
    });
    callers.collect::<Vec<_>>().into_iter().for_each(|caller| caller.join().unwrap());
    assert!(audit.writer.flush(Duration::from_secs(60)));
    let expected: Vec<_> = (0..RECORDS).map(|number| number.to_string()).collect();
    assert_eq!(written(&path), vec![expected; THREADS as usize]);
    let counted = format!("request_duration_seconds_count{{operation=\"none\"}} {}\n", THREADS as usize * RECORDS);
    let counts = audit.requests().text();
    assert!(counts.contains(&counted), "{counts}");
}

/// Deadlines need a runtime to be kept in.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

#[test]
fn records_of_each_caller_are_in_their_order_and_none_is_lost() {
    let runtime = runtime();
    let _deadlines = runtime.enter();
    shuttle::check_random(|| a_log_of_several(Fsync::Never), ORDERS);
    shuttle::check_pct(|| a_log_of_several(Fsync::Never), ORDERS, 3);
}

#[test]
fn nor_where_each_is_synced() {
    let runtime = runtime();
    let _deadlines = runtime.enter();
    shuttle::check_random(|| a_log_of_several(Fsync::Always), ORDERS);
}
