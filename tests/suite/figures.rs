//! Figures of docs/reliability.md that are counts, over many restarts and power cuts.

use std::process::Command;

use nix::sys::signal::Signal;
use signet::key::Algorithm;

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
