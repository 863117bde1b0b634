//! The device handle against a device process that does everything wrong that a process can.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use nix::unistd::Pid;
use signet::device::handle::{Handle, Health, Program, SignRequest, Turn};
use signet::device::{DeviceError, DeviceKind, latch};
use signet::key::{Algorithm, Digest};
use tokio::time::{Instant, timeout};

use crate::support::fake::{Fake, locator, program};
use crate::support::{PATIENCE, eventually};

async fn ready(handle: &Handle) {
    health(handle, |health| *health == Health::Ready).await;
}

async fn health(handle: &Handle, wanted: impl FnMut(&Health) -> bool) -> Health {
    let mut changes = handle.health_changes();
    let reached = timeout(PATIENCE, changes.wait_for(wanted)).await;
    reached.unwrap_or_else(|_elapsed| panic!("the device stays {:?}", handle.health())).unwrap().clone()
}

fn is_alive(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None).is_ok()
}

#[tokio::test]
async fn signs_with_rsa_and_with_ec() {
    let fake = Fake::new();
    let handle = fake.start();
    for request in [fake.request(b"message", PATIENCE), fake.ec_request(b"message", PATIENCE)] {
        let signature = handle.sign(request.clone()).await.unwrap();
        request.public_key.verify(request.algorithm, &request.digest, &signature).unwrap();
    }
    assert_eq!(handle.health(), Health::Ready);
    assert_eq!(handle.figures().signatures, 2);
    assert_eq!(handle.figures().generations, 1);
}

#[tokio::test]
async fn check_tells_the_recorded_key_from_another_and_from_none() {
    let fake = Fake::new();
    let handle = fake.start();
    let recorded = fake.request(b"", PATIENCE).public_key;
    let check = async |name: &str| {
        handle.check(Arc::new(locator(name)), Arc::clone(&recorded), Instant::now() + PATIENCE).await
    };
    assert_eq!(check("rsa").await, Ok(()));
    for name in ["other", "ec", "missing"] {
        let outcome = check(name).await;
        assert!(matches!(outcome, Err(DeviceError::Permanent(_))), "{name}: {outcome:?}");
    }
    assert_eq!(handle.health(), Health::Ready);
}

#[tokio::test]
async fn the_deadline_is_kept_while_the_device_hangs() {
    let fake = Fake::new();
    let handle = fake.start();
    ready(&handle).await;
    fake.always("sign", "hang");
    let outcome = timeout(PATIENCE, handle.sign(fake.request(b"", Duration::from_millis(50)))).await;
    assert_eq!(outcome.unwrap(), Err(DeviceError::Late));
}

#[tokio::test]
async fn a_hung_call_costs_its_process_and_the_request_is_served_by_the_next() {
    let fake = Fake::new();
    fake.once("sign", "hang");
    let mut config = fake.config();
    config.call_limit = Duration::from_secs(2);
    let handle = Handle::start(config, program());
    ready(&handle).await;
    let hung = fake.pid();
    handle.sign(fake.request(b"", PATIENCE)).await.unwrap();
    assert_ne!(fake.pid(), hung);
    eventually("the hung process is gone", async || !is_alive(hung)).await;
}

#[tokio::test]
async fn an_open_that_hangs_is_ended_and_tried_again() {
    let fake = Fake::new();
    fake.once("open", "hang");
    let mut config = fake.config();
    config.call_limit = Duration::from_millis(500);
    let handle = Handle::start(config, program());
    health(&handle, |health| matches!(health, Health::Down(DeviceError::Away(_)))).await;
    ready(&handle).await;
}

#[tokio::test]
async fn a_killed_process_is_replaced_and_what_was_in_flight_is_served() {
    let fake = Fake::new();
    let handle = fake.start();
    ready(&handle).await;
    fake.once("sign", "hang");
    let requests: Vec<_> = (0..3u8)
        .map(|message| {
            let (handle, request) = (handle.clone(), fake.request(&[message], PATIENCE));
            tokio::spawn(async move { handle.sign(request).await })
        })
        .collect();
    eventually("the device is at work", async || fake.calls("sign") == 1).await;
    kill(Pid::from_raw(fake.pid()), Signal::SIGKILL).unwrap();
    for request in requests {
        request.await.unwrap().unwrap();
    }
    assert_eq!(handle.figures().generations, 2);
}

#[tokio::test]
async fn a_request_that_kills_two_processes_is_answered_and_the_device_comes_back() {
    for act in ["exit", "panic", "away"] {
        let fake = Fake::new();
        fake.once("sign", act);
        fake.once("sign", act);
        let handle = fake.start();
        let outcome = handle.sign(fake.request(b"", PATIENCE)).await;
        assert!(matches!(outcome, Err(DeviceError::Away(_))), "{act}: {outcome:?}");
        assert_eq!(fake.calls("sign"), 2, "{act}");
        ready(&handle).await;
        handle.sign(fake.request(b"", PATIENCE)).await.unwrap();
    }
}

/// A device that opens and does not sign: its processes try that by themselves, and callers are told at once meanwhile.
#[tokio::test]
async fn nobody_is_let_in_before_a_device_that_was_down_has_signed_for_nobody() {
    for act in ["hang", "wrong", "away", "exit"] {
        let fake = Fake::new();
        let mut config = fake.config();
        config.call_limit = Duration::from_secs(1);
        let handle = Handle::start(config, program());
        for request in [fake.request(b"message", PATIENCE), fake.ec_request(b"message", PATIENCE)] {
            handle.sign(request).await.unwrap();
        }
        fake.always("sign", act);
        while !matches!(handle.health(), Health::Down(_)) {
            handle.sign(fake.request(b"", PATIENCE)).await.unwrap_err();
        }
        for _ in 0..3 {
            let before = fake.calls("sign");
            eventually("the device is tried", async || fake.calls("sign") > before).await;
            let outcome = handle.sign(fake.request(b"", Duration::from_millis(500))).await;
            assert!(matches!(outcome, Err(DeviceError::Away(_) | DeviceError::Integrity(_))), "{act}: {outcome:?}");
        }
        fake.mend();
        ready(&handle).await;
        handle.sign(fake.request(b"", PATIENCE)).await.unwrap();
    }
}

/// One key of several may be what a device fails over: what is tried is another's in turn.
#[tokio::test]
async fn a_key_that_a_device_fails_over_keeps_no_other_out() {
    let fake = Fake::new();
    let handle = fake.start();
    for request in [fake.request(b"message", PATIENCE), fake.ec_request(b"message", PATIENCE)] {
        handle.sign(request).await.unwrap();
    }
    fake.always("sign-RS256", "exit");
    handle.sign(fake.request(b"", PATIENCE)).await.unwrap_err();
    for _ in 0..5 {
        ready(&handle).await;
        handle.sign(fake.ec_request(b"", PATIENCE)).await.unwrap();
        handle.sign(fake.request(b"", PATIENCE)).await.unwrap_err();
    }
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let fake = Fake::new();
    let mut config = fake.config();
    config.queue = 3;
    let handle = Handle::start(config, program());
    ready(&handle).await;
    fake.always("sign", "hang");
    // Two with the process, three in the queue.
    let waiting: Vec<_> = (0..5)
        .map(|_| {
            let (handle, request) = (handle.clone(), fake.request(b"", PATIENCE));
            tokio::spawn(async move { handle.sign(request).await })
        })
        .collect();
    eventually("the queue is full", async || handle.figures().waiting == 3).await;
    let refused = timeout(PATIENCE / 2, handle.sign(fake.request(b"", PATIENCE))).await.unwrap();
    assert!(matches!(refused, Err(DeviceError::Overloaded { .. })), "{refused:?}");

    // Callers that have gone make room.
    for caller in &waiting {
        caller.abort();
    }
    for caller in waiting {
        assert!(caller.await.unwrap_err().is_cancelled());
    }
    let taken = handle.sign(fake.request(b"", Duration::from_millis(50))).await;
    assert_eq!(taken, Err(DeviceError::Late));
}

/// T10: a user's wait is a few services long, whatever another one does.
#[tokio::test]
async fn a_greedy_user_delays_nobody_else() {
    let fake = Fake::new();
    let handle = fake.start();
    fake.always("sign", "slow-10");
    // What the device takes is known, so that deadlines are held against it.
    handle.sign(fake.request(b"", PATIENCE)).await.unwrap();
    let greedy: Vec<_> = (0..200)
        .map(|_| {
            let (handle, request) = (handle.clone(), fake.request(b"", PATIENCE * 100));
            tokio::spawn(async move { handle.sign(request).await })
        })
        .collect();
    eventually("the greedy one waits", async || handle.figures().waiting > 100).await;
    for _ in 0..10 {
        let before = fake.calls("sign");
        // Less than the greedy one's hundred and more take: admission knows whose turn is when.
        let patience = (handle.figures().service_time * 60).max(Duration::from_secs(1));
        handle.sign(SignRequest { turn: Turn::Of(2000), ..fake.request(b"", patience) }).await.unwrap();
        // Two were with the process, one more may have had its turn; the process is at the next by now.
        let services = fake.calls("sign") - before;
        assert!(services <= 5, "{services}");
    }
    assert!(handle.figures().waiting > 100, "the greedy one still waits");
    greedy.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_queue_full_of_one_user_has_room_for_another() {
    let fake = Fake::new();
    let mut config = fake.config();
    config.queue = 4;
    let handle = Handle::start(config, program());
    ready(&handle).await;
    fake.once("sign", "slow-300");
    let start = |uid| {
        let (handle, request) = (handle.clone(), SignRequest { turn: Turn::Of(uid), ..fake.request(b"", PATIENCE) });
        tokio::spawn(async move { handle.sign(request).await })
    };
    // Two with the process, four in the queue.
    let greedy: Vec<_> = (0..6).map(|_| start(1000)).collect();
    eventually("the queue is full", async || handle.figures().waiting == 4).await;
    let modest = start(2000).await.unwrap();
    assert!(modest.is_ok(), "{modest:?}");
    let mut refused = 0;
    for request in greedy {
        match request.await.unwrap() {
            Ok(_) => {}
            Err(DeviceError::Overloaded { .. }) => refused += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(refused, 1);
}

#[tokio::test]
async fn a_request_that_would_be_late_is_refused_at_once() {
    let fake = Fake::new();
    let handle = fake.start();
    fake.always("sign", "slow-300");
    handle.sign(fake.request(b"", PATIENCE)).await.unwrap();
    let waiting: Vec<_> = (0..10)
        .map(|_| {
            let (handle, request) = (handle.clone(), fake.request(b"", PATIENCE));
            tokio::spawn(async move { handle.sign(request).await })
        })
        .collect();
    eventually("ten wait", async || handle.figures().waiting == 8).await;
    let patience = Duration::from_secs(1);
    match timeout(patience, handle.sign(fake.request(b"", patience))).await {
        Ok(Err(DeviceError::Overloaded { retry_after })) => assert!(retry_after > patience, "{retry_after:?}"),
        other => panic!("{other:?}"),
    }
    drop(waiting);
}

#[tokio::test]
async fn a_device_that_was_slow_once_is_given_another_chance() {
    let fake = Fake::new();
    fake.once("sign", "slow-3000");
    let handle = fake.start();
    handle.sign(fake.request(b"", PATIENCE)).await.unwrap();
    handle.sign(fake.request(b"", Duration::from_millis(1500))).await.unwrap();
}

#[tokio::test]
async fn the_device_never_sees_a_request_whose_caller_has_gone() {
    let fake = Fake::new();
    let handle = fake.start();
    ready(&handle).await;
    fake.once("sign", "slow-200");
    // Two fill the process; the third is still in the daemon when its caller goes.
    let callers: Vec<_> = (0..3)
        .map(|_| {
            let (handle, request) = (handle.clone(), fake.request(b"", PATIENCE));
            tokio::spawn(async move { handle.sign(request).await })
        })
        .collect();
    eventually("the third waits", async || handle.figures().waiting == 1).await;
    callers[2].abort();
    let mut callers = callers.into_iter();
    for _ in 0..2 {
        callers.next().unwrap().await.unwrap().unwrap();
    }
    handle.sign(fake.request(b"", PATIENCE)).await.unwrap();
    assert_eq!(fake.calls("sign"), 3);
}

#[tokio::test]
async fn a_signature_that_does_not_verify_is_withheld_and_costs_the_process() {
    let fake = Fake::new();
    let handle = fake.start();
    ready(&handle).await;
    for act in ["wrong", "integrity"] {
        let before = handle.figures();
        fake.once("sign", act);
        let outcome = handle.sign(fake.request(b"", PATIENCE)).await;
        assert!(matches!(outcome, Err(DeviceError::Integrity(_))), "{act}: {outcome:?}");
        handle.sign(fake.request(b"", PATIENCE)).await.unwrap();
        assert_eq!(handle.figures().generations, before.generations + 1, "{act}");
        assert_eq!(handle.figures().signatures, before.signatures + 1, "{act}");
    }
}

#[tokio::test]
async fn nonsense_on_the_pipe_costs_the_process_and_nothing_else() {
    for act in ["garbage", "huge", "nothing", "unknown"] {
        let fake = Fake::new();
        let handle = fake.start();
        ready(&handle).await;
        fake.once("sign", act);
        handle.sign(fake.request(b"", PATIENCE)).await.unwrap_or_else(|error| panic!("{act}: {error}"));
        eventually("a second process", async || handle.figures().generations == 2).await;
        handle.sign(fake.request(b"", PATIENCE)).await.unwrap();
    }
}

#[tokio::test]
async fn a_program_that_is_no_device_process_is_no_device() {
    let fake = Fake::new();
    // One ends, one sends back what it was sent, one is not there.
    for (program, script) in [("/bin/sh", "exit 0"), ("/bin/sh", "cat >&0"), ("/nonexistent", "")] {
        let program = Program { program: program.into(), arguments: vec!["-c".into(), script.into()] };
        let handle = Handle::start(fake.config(), program);
        health(&handle, |health| matches!(health, Health::Down(_))).await;
        let outcome = handle.sign(fake.request(b"", PATIENCE)).await;
        assert!(matches!(outcome, Err(DeviceError::Away(_))), "{script}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_passing_condition_is_tried_three_times_and_no_more() {
    let fake = Fake::new();
    let handle = fake.start();
    fake.once("sign", "transient");
    fake.once("sign", "transient");
    handle.sign(fake.request(b"", PATIENCE)).await.unwrap();
    assert_eq!(fake.calls("sign"), 3);

    fake.always("sign", "transient");
    let outcome = handle.sign(fake.request(b"", PATIENCE)).await;
    assert!(matches!(outcome, Err(DeviceError::Transient(_))), "{outcome:?}");
    assert_eq!(fake.calls("sign"), 6);
    assert_eq!(handle.figures().generations, 1);
}

#[tokio::test]
async fn a_refused_pin_is_tried_once_over_ten_restarts() {
    let fake = Fake::new();
    fake.write("right-pin", "changed");
    for _restart in 0..10 {
        let handle = fake.start();
        health(&handle, |health| matches!(health, Health::Down(DeviceError::PinRefused(_)))).await;
        let outcome = handle.sign(fake.request(b"", PATIENCE)).await;
        assert!(matches!(outcome, Err(DeviceError::PinRefused(_))), "{outcome:?}");
    }
    assert_eq!(fake.calls("login"), 1);
}

/// Before the process could remember the refusal it was killed, or its disk was full.
#[tokio::test]
async fn a_wrong_pin_is_tried_once_even_where_the_refusal_could_not_be_remembered() {
    for act in ["exit", "wrong"] {
        let fake = Fake::new();
        fake.write("right-pin", "changed");
        fake.always("refusal", act);
        for _restart in 0..10 {
            let handle = fake.start();
            health(&handle, |health| matches!(health, Health::Down(DeviceError::PinRefused(_)))).await;
        }
        assert_eq!(fake.calls("login"), 1, "{act}");
    }
}

/// The latch of signetctl and signetd is the same.
#[tokio::test]
async fn a_wrong_pin_is_tried_once_by_two_processes_at_once() {
    let fake = Fake::new();
    fake.write("right-pin", "changed");
    fake.always("login", "slow-300");
    let handles = [(); 3].map(|()| fake.start());
    for handle in &handles {
        health(handle, |health| matches!(health, Health::Down(DeviceError::PinRefused(_)))).await;
    }
    assert_eq!(fake.calls("login"), 1);
}

#[tokio::test]
async fn service_resumes_after_a_login_was_cut_off_where_the_device_tells_that_no_try_was_spent() {
    let fake = Fake::new();
    fake.once("login", "exit");
    fake.once("login", "away");
    let handle = fake.start();
    ready(&handle).await;
    handle.sign(fake.request(b"", PATIENCE)).await.unwrap();
    assert_eq!(fake.calls("login"), 3);
}

#[tokio::test]
async fn a_login_that_was_cut_off_is_not_repeated_where_the_device_tells_nothing() {
    for act in ["exit", "away"] {
        let fake = Fake::new();
        fake.write("tries", "untold");
        fake.once("login", act);
        let handle = fake.start();
        let unknown = |health: &Health| matches!(health, Health::Down(DeviceError::PinRefused(why)) if why.contains("interrupted"));
        health(&handle, unknown).await;
        drop(handle);
        let handle = fake.start();
        health(&handle, unknown).await;
        assert_eq!(fake.calls("login"), 1, "{act}");
        // The PIN is the right one, as an operator finds out.
        assert!(latch::clear(&fake.latch_file(), Some(&fake.pin()), false).is_err());
        assert_eq!(latch::clear(&fake.latch_file(), Some(&fake.pin()), true), Ok(true));
        ready(&handle).await;
    }
}

/// Whether it says so, signs wrongly, ends or hangs: others keep their device.
#[tokio::test]
async fn an_algorithm_that_the_device_fails_over_costs_one_process_and_nobody_else_a_signature() {
    for act in ["away", "wrong", "exit", "hang"] {
        let fake = Fake::new();
        let mut config = fake.config_with_workers(2);
        config.call_limit = Duration::from_secs(2);
        let handle = Handle::start(config, program());
        ready(&handle).await;
        handle.sign(fake.request(b"", PATIENCE)).await.unwrap();
        fake.always("sign-RS512", act);
        let other = || {
            let algorithm = Algorithm::Rs512;
            SignRequest { algorithm, digest: Digest::of(algorithm.hash(), b""), ..fake.request(b"", PATIENCE) }
        };
        let hostile: Vec<_> = (0..10)
            .map(|_| {
                let (handle, request) = (handle.clone(), other());
                tokio::spawn(async move { handle.sign(request).await })
            })
            .collect();
        for _ in 0..10 {
            handle.sign(fake.request(b"", PATIENCE)).await.unwrap();
        }
        for asked in hostile {
            assert!(asked.await.unwrap().is_err(), "{act}");
        }
        assert_eq!(handle.figures().generations, 2, "{act}");
        let outcome = handle.sign(other()).await;
        assert!(matches!(outcome, Err(DeviceError::Unsupported(_))), "{act}: {outcome:?}");
    }
}

#[tokio::test]
async fn service_resumes_after_unlatch_without_a_restart() {
    let fake = Fake::new();
    fake.write("right-pin", "changed");
    let handle = fake.start();
    health(&handle, |health| matches!(health, Health::Down(DeviceError::PinRefused(_)))).await;
    fake.write("pin", "changed");
    assert_eq!(latch::clear(&fake.latch_file(), Some(&fake.pin()), false), Ok(true));
    ready(&handle).await;
    handle.sign(fake.request(b"", PATIENCE)).await.unwrap();
    assert_eq!(fake.calls("login"), 2);
}

/// A device may refuse the key's own auth value only when it signs.
#[tokio::test]
async fn a_refusal_while_signing_stops_everything() {
    let fake = Fake::new();
    let handle = Handle::start(fake.config_with_workers(1), program());
    ready(&handle).await;
    fake.always("sign", "pin-refused");
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (handle, request) = (handle.clone(), fake.request(b"", PATIENCE));
            tokio::spawn(async move { handle.sign(request).await })
        })
        .collect();
    for caller in callers {
        let outcome = caller.await.unwrap();
        assert!(matches!(outcome, Err(DeviceError::PinRefused(_))), "{outcome:?}");
    }
    assert_eq!(fake.calls("sign"), 1);
    assert_eq!(fake.calls("login"), 1);
}

#[tokio::test]
async fn a_device_that_is_absent_at_first_is_used_when_it_comes() {
    // The last stands for a PIN that is locked: it is not sent, and no latch is closed.
    for act in ["away", "permanent", "misconfigured", "exit", "pin-refused"] {
        let fake = Fake::new();
        fake.always("open", act);
        let handle = fake.start();
        health(&handle, |health| matches!(health, Health::Down(_))).await;
        let outcome = timeout(PATIENCE / 2, handle.sign(fake.request(b"", PATIENCE))).await.unwrap();
        assert!(outcome.is_err(), "{act}");
        fake.mend();
        ready(&handle).await;
        handle.sign(fake.request(b"", PATIENCE)).await.unwrap();
    }
}

#[tokio::test]
async fn hundreds_are_in_flight_over_four_workers_and_none_gets_anothers_answer() {
    let fake = Fake::new();
    let handle = Handle::start(fake.config_with_workers(4), program());
    ready(&handle).await;
    let callers: Vec<_> = (0..400u32)
        .map(|message| {
            let (handle, request) = (handle.clone(), fake.request(&message.to_be_bytes(), PATIENCE));
            tokio::spawn(async move { (request.clone(), handle.sign(request).await) })
        })
        .collect();
    for caller in callers {
        let (request, signature) = caller.await.unwrap();
        request.public_key.verify(request.algorithm, &request.digest, &signature.unwrap()).unwrap();
    }
    assert_eq!(fake.calls("sign"), 400);
    assert_eq!(handle.figures().signatures, 400);
}

#[tokio::test]
async fn one_stuck_worker_does_not_hold_up_the_others() {
    let fake = Fake::new();
    let handle = Handle::start(fake.config_with_workers(2), program());
    ready(&handle).await;
    fake.once("sign", "hang");
    let stuck = tokio::spawn({
        let (handle, request) = (handle.clone(), fake.request(b"", PATIENCE));
        async move { handle.sign(request).await }
    });
    eventually("one is stuck", async || fake.calls("sign") == 1).await;
    for _ in 0..20 {
        handle.sign(fake.request(b"", PATIENCE)).await.unwrap();
    }
    assert!(!stuck.is_finished());
    stuck.abort();
}

#[tokio::test]
async fn a_process_that_ignores_everything_delays_nothing() {
    let fake = Fake::new();
    let pid_file = fake.path("stubborn");
    let script =
        format!("trap '' TERM HUP INT PIPE; echo $$ > {0}.new; mv {0}.new {0}; exec sleep 600", pid_file.display());
    let program = Program { program: "/bin/sh".into(), arguments: vec!["-c".into(), script.into()] };
    let handle = Handle::start(fake.config(), program);
    eventually("it runs", async || pid_file.exists()).await;
    let outcome = handle.sign(fake.request(b"", Duration::from_millis(50))).await;
    assert_eq!(outcome, Err(DeviceError::Late));
    let pid = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    let begun = Instant::now();
    drop(handle);
    assert!(begun.elapsed() < Duration::from_secs(1));
    eventually("it is gone", async || !is_alive(pid)).await;
}

/// Where the daemon is killed, nobody kills its device processes: they see the pipe close.
#[tokio::test]
async fn a_stuck_process_ends_when_the_daemon_is_gone() {
    let fake = Fake::new();
    fake.once("open", "hang");
    let (mut child, pipe) = by_hand(program());
    let config = postcard::to_stdvec(&fake.config()).unwrap();
    send(pipe.as_raw_fd(), &config, MsgFlags::empty()).unwrap();
    eventually("it opens", async || fake.calls("open") == 1).await;
    assert!(child.try_wait().unwrap().is_none());
    drop(pipe);
    let ended = tokio::task::spawn_blocking(move || child.wait());
    timeout(PATIENCE, ended).await.unwrap().unwrap().unwrap();
}

/// systemd and pkill send their signals to every process of the daemon; a device that ends could not be drained.
#[test]
fn signals_for_the_daemon_leave_its_device_processes_alone() {
    let program = env!("CARGO_BIN_EXE_signetd").into();
    let (mut child, pipe) = by_hand(Program { program, arguments: vec![signet::daemon::DEVICE_PROCESS.into()] });
    let pid = i32::try_from(child.id()).unwrap();
    let blocks_signals = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        u64::from_str_radix(blocked.trim(), 16).unwrap() != 0
    };
    let until = std::time::Instant::now() + PATIENCE;
    while !blocks_signals() && std::time::Instant::now() < until {
        std::thread::yield_now();
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        kill(Pid::from_raw(pid), signal).unwrap();
    }
    // Ended by nonsense on its pipe, not by a signal.
    send(pipe.as_raw_fd(), &[0xff; 8], MsgFlags::empty()).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

/// A device process and the daemon's end of its pipe.
fn by_hand(program: Program) -> (Child, OwnedFd) {
    let (pipe, childs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let Program { program, arguments } = program;
    let stdin = Stdio::from(childs);
    (Command::new(program).args(arguments).stdin(stdin).stdout(Stdio::null()).spawn().unwrap(), pipe)
}

#[tokio::test]
async fn the_modules_environment_is_exactly_the_configured_one() {
    let fake = Fake::new();
    let mut config = fake.config();
    let DeviceKind::Pkcs11(pkcs11) = &mut config.kind else { unreachable!() };
    pkcs11.environment = Some([("SOFTHSM2_CONF".to_owned(), "/some/where".to_owned())].into());
    let handle = Handle::start(config, program());
    ready(&handle).await;
    let environment = std::fs::read_to_string(format!("/proc/{}/environ", fake.pid())).unwrap();
    assert_eq!(environment, "SOFTHSM2_CONF=/some/where\0");
}
