//! Figures of docs/reliability.md: counts over many restarts and power cuts; and times, which are printed and decide nothing:
//! `cargo test --test suite -- --ignored --nocapture figures::`.

use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use signet::device::DeviceError;
use signet::device::handle::{Handle, SignRequest, Turn};
use signet::key::Algorithm;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval};

use crate::pkcs11_faults::{Served, generate, record};
use crate::support::PATIENCE;
use crate::support::daemon::TestDaemon;
use crate::support::modules::Shim;
use crate::support::softhsm::SoftHsm;
use crate::support::swtpm::{SwTpm, TpmSettings};
use crate::tpm::{AUTH, generated, opened, signs};

#[test]
fn a_refused_pin_over_twenty_restarts_of_the_daemon() {
    let Some(token) = SoftHsm::new() else { return };
    let shim = Shim::new(&token);
    let mut daemon = TestDaemon::prepare(&TestDaemon::config(&shim.toml()));
    daemon.signetctl(&["key", "generate", "--device", "hsm"]);
    token.write_pin("not the PIN");
    let before = shim.logins();
    for restart in 0..20 {
        daemon.spawn();
        daemon.wait_for_log("the device can't be used");
        // By a signal that it can't answer, every second time.
        daemon.signal(if restart % 2 == 0 { Signal::SIGTERM } else { Signal::SIGKILL });
        daemon.wait();
    }
    assert_eq!(shim.logins() - before, 1);
}

#[test]
fn fifty_power_cuts_leave_the_tpms_lockout_counter_at_zero() {
    let Some(mut swtpm) = SwTpm::start() else { return };
    let settings = TpmSettings::initialised(&swtpm.tcti(), Some(AUTH));
    let key = generated(&settings, Algorithm::Rs256, false);
    for _ in 0..50 {
        let mut device = opened(&settings);
        signs(&mut *device, &key.locator, &key.public_key, Algorithm::Rs256);
        // While the key is loaded and its session open.
        swtpm.kill();
        drop(device);
        swtpm.restart();
    }
    let told = Command::new("tpm2_getcap").args(["-T", &swtpm.tcti(), "properties-variable"]).output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    let counter = told.lines().find(|line| line.contains("TPM2_PT_LOCKOUT_COUNTER:")).expect(&told);
    assert_eq!(counter.trim(), "TPM2_PT_LOCKOUT_COUNTER: 0x0");
}

const SPAN: Duration = Duration::from_secs(5);
const GREEDY: u32 = 1000;
const MODEST: u32 = 2000;

/// A token whose device process has ten times as much asked of it as it does, by one user, while another asks now and then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a figure of docs/reliability.md: ask for it with --ignored --nocapture"]
async fn ten_times_the_load_that_a_token_carries() {
    let Some(token) = SoftHsm::new() else { return };
    token.child(&[], || record(&generate(&token.config()), &token));
    let served = Served::telling(&token, "");
    served.sign(PATIENCE).await.unwrap();
    let (handle, request) = (served.handle(), served.request(PATIENCE));
    let peak = f64::from(closed_loop(&handle, &request).await) / SPAN.as_secs_f64();
    let alone = modest(&handle, &request).await;
    let offered = Duration::from_secs_f64(1.0 / (10.0 * peak));
    let (overloaded, (good, refused)) = tokio::join!(modest(&handle, &request), open_loop(&handle, &request, offered));
    println!(
        "peak {peak:.0}/s; of ten times as much {:.0}/s were served and {refused} refused",
        f64::from(good) / SPAN.as_secs_f64()
    );
    println!("another user, p50 and p99: alone {alone:?}, beside it {overloaded:?}");
}

/// Eight clients, each asking again as soon as it is answered.
async fn closed_loop(handle: &Handle, request: &SignRequest) -> u32 {
    let until = Instant::now() + SPAN;
    let clients = (0..8).map(|_| {
        let (handle, request) = (handle.clone(), request.clone());
        async move {
            let mut good = 0;
            while Instant::now() < until {
                handle.sign(SignRequest { deadline: Instant::now() + PATIENCE, ..request.clone() }).await.unwrap();
                good += 1;
            }
            good
        }
    });
    clients.collect::<JoinSet<u32>>().join_all().await.into_iter().sum()
}

/// Asks at this pace, whatever becomes of it; each is answered in half a second, or told that it will not be.
async fn open_loop(handle: &Handle, request: &SignRequest, pace: Duration) -> (u32, u32) {
    let (mut tick, until, mut asked) = (interval(pace), Instant::now() + SPAN, JoinSet::new());
    while Instant::now() < until {
        tick.tick().await;
        let (handle, deadline) = (handle.clone(), Instant::now() + Duration::from_millis(500));
        let request = SignRequest { deadline, turn: Turn::Of(GREEDY), ..request.clone() };
        asked.spawn(async move {
            match handle.sign(request).await {
                Ok(_verified) => true,
                Err(DeviceError::Overloaded { .. } | DeviceError::Late) => false,
                Err(other) => panic!("{other}"),
            }
        });
    }
    let answers = asked.join_all().await;
    let good = answers.iter().filter(|good| **good).count();
    (good.try_into().unwrap(), (answers.len() - good).try_into().unwrap())
}

/// Asks fifty times a second, and is always served. How long that took: the median, and the 99th of a hundred.
async fn modest(handle: &Handle, request: &SignRequest) -> (Duration, Duration) {
    let (mut tick, until, mut times) = (interval(Duration::from_millis(20)), Instant::now() + SPAN, Vec::new());
    while Instant::now() < until {
        tick.tick().await;
        let began = Instant::now();
        let request = SignRequest { deadline: began + PATIENCE, turn: Turn::Of(MODEST), ..request.clone() };
        handle.sign(request).await.unwrap();
        times.push(began.elapsed());
    }
    times.sort();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}
