//! How many calls into the device a signature costs: counted, so free of noise.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::daemon::Daemon;
use crate::stand::{Backend, Stand};

/// PKCS#11 calls by pkcs11-spy, TPM commands by a relay before swtpm. NaN where there is no pkcs11-spy.
pub(crate) async fn per_signature(stand: &Stand) -> f64 {
    match stand.backend {
        Backend::SoftHsm => pkcs11_calls(stand).await,
        Backend::SwTpm => tpm_commands(stand).await,
        Backend::Configured(_) => f64::NAN,
    }
}

async fn pkcs11_calls(stand: &Stand) -> f64 {
    let Some(spy) = SPIES.iter().find(|spy| Path::new(spy).exists()) else { return f64::NAN };
    let config = fs::read_to_string(stand.served.config()).unwrap();
    let module = config.lines().find(|line| line.starts_with("module = ")).unwrap().to_owned();
    let output = stand.served.file("calls");
    let spied = module.trim_start_matches("module = ");
    let environment = format!("{{ PKCS11SPY = {spied}, PKCS11SPY_OUTPUT = {:?}, SOFTHSM2_CONF", output);
    stand.served.reconfigure(&[(&module, &format!("module = \"{spy}\"")), ("{ SOFTHSM2_CONF", &environment)]);
    // A call begins with its number: "17: C_SignInit".
    let is_call = |line: &&str| line.split_once(": ").is_some_and(|(_, call)| call.starts_with("C_"));
    count(stand, || fs::read_to_string(&output).unwrap().lines().filter(is_call).count()).await
}

async fn tpm_commands(stand: &Stand) -> f64 {
    let port = stand.served.port.unwrap();
    let (relayed, commands) = relay(port);
    let port_of = |port: u16| format!("port={port}");
    stand.served.reconfigure(&[(&port_of(port), &port_of(relayed))]);
    count(stand, || commands.load(Ordering::Relaxed)).await
}

async fn count(stand: &Stand, calls: impl Fn() -> usize) -> f64 {
    let daemon = Daemon::start(&stand.served);
    // Once the first signature is there and another after it, the daemon's own checks are over.
    for _ in 0..20 {
        daemon.sign().await;
    }
    let before = calls();
    for _ in 0..SIGNATURES {
        daemon.sign().await;
    }
    let calls = calls() - before;
    daemon.stop();
    f64::from(u32::try_from(calls).unwrap()) / f64::from(SIGNATURES)
}

/// Passes a swtpm's two ports on, and counts the commands on the first.
fn relay(port: u16) -> (u16, Arc<AtomicUsize>) {
    let commands = Arc::new(AtomicUsize::new(0));
    let (data, control) = loop {
        let data = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let next = data.local_addr().unwrap().port().checked_add(1);
        if let Some(control) = next.and_then(|next| TcpListener::bind((Ipv4Addr::LOCALHOST, next)).ok()) {
            break (data, control);
        }
    };
    let relayed = data.local_addr().unwrap().port();
    pass_on(data, port, Arc::clone(&commands));
    pass_on(control, port + 1, Arc::default());
    (relayed, commands)
}

fn pass_on(listener: TcpListener, port: u16, commands: Arc<AtomicUsize>) {
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.unwrap();
            let tpm = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            let commands = Arc::clone(&commands);
            let (from_client, to_tpm) = (client.try_clone().unwrap(), tpm.try_clone().unwrap());
            // The library writes a command at once, and the next only after the response.
            std::thread::spawn(move || copy(from_client, to_tpm, &commands));
            std::thread::spawn(move || copy(tpm, client, &AtomicUsize::new(0)));
        }
    });
}

fn copy(mut from: TcpStream, mut to: TcpStream, pieces: &AtomicUsize) {
    let mut buffer = [0; 8192];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        pieces.fetch_add(1, Ordering::Relaxed);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

const SIGNATURES: u32 = 100;

const SPIES: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/pkcs11/pkcs11-spy.so",
    "/usr/lib/aarch64-linux-gnu/pkcs11/pkcs11-spy.so",
    "/usr/lib/x86_64-linux-gnu/pkcs11-spy.so",
    "/usr/lib/pkcs11/pkcs11-spy.so",
];
