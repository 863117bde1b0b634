//! Clients that abuse HTTP/2: what they do costs them their own connection, and nobody else anything (T10).

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use signet::proto;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::support::PATIENCE;
use crate::support::daemon::{NO_DEVICE, TestDaemon};

/// A client that writes its frames by hand, and gets over it when the daemon no longer reads them.
struct Abuser(UnixStream);

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const SETTINGS: u8 = 4;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The fields of a request for the public keys (RFC 7541, without compression).
pub(crate) fn request() -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let field = |name: &str, value: &str| [vec![0], text(name), text(value)].concat();
    let rpc = [vec![0x83, 0x86, 0x04], text("/signet.v1.Signer/GetPublicCertificates")].concat();
    [rpc, field(":authority", "x"), field("content-type", "application/grpc"), field("te", "trailers")].concat()
}

pub(crate) fn whole_request(stream: u32) -> Vec<u8> {
    [frame(HEADERS, END_HEADERS, stream, &request()), frame(0, END_STREAM, stream, &[0; 5])].concat()
}

/// The streams of a client, one after another.
fn streams() -> impl Iterator<Item = u32> {
    (1..).step_by(2)
}

impl Abuser {
    /// Connected, with the preface said and these settings.
    fn new(daemon: &TestDaemon, settings: &[u8]) -> Self {
        let stream = UnixStream::connect(daemon.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut abuser = Self(stream);
        assert!(abuser.says(PREFACE) && abuser.says(&frame(SETTINGS, 0, 0, settings)));
        abuser
    }

    /// False where the daemon has closed the connection.
    fn says(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).is_ok()
    }

    /// Reads until the daemon closes the connection.
    fn ends(mut self) -> bool {
        let mut answers = [0; 4096];
        loop {
            match self.0.read(&mut answers) {
                Ok(1..) => {}
                Ok(0) => return true,
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }
}

/// Says something again and again, faster than anybody sound, while others are served, until the connection is closed.
async fn is_closed_over(daemon: &TestDaemon, name: &str, mut flood: impl FnMut(&mut Abuser) -> bool + Send) {
    let mut client = daemon.client();
    let ask = || proto::GetPublicCertificatesRequest { account: String::new() };
    client.get_public_certificates(ask()).await.unwrap();
    let closed = std::thread::scope(|scope| {
        let abused = scope.spawn(|| {
            let mut abuser = Abuser::new(daemon, &[]);
            // It may not answer before it is read.
            let mut reader = abuser.0.try_clone().unwrap();
            std::thread::spawn(move || while reader.read(&mut [0; 4096]).is_ok_and(|length| length > 0) {});
            (0..100_000).any(|_| !flood(&mut abuser))
        });
        abused.join().unwrap()
    });
    assert!(closed, "{name}: the connection is still open");
    client.get_public_certificates(ask()).await.unwrap_or_else(|error| panic!("{name}: {error}"));
}

fn daemon() -> TestDaemon {
    TestDaemon::start(&TestDaemon::config(NO_DEVICE))
}

#[tokio::test]
async fn t10_who_keeps_a_connection_open_or_a_request_unfinished_holds_up_no_stop() {
    let mut daemon = daemon();
    let (silent, mut asks) = (Abuser::new(&daemon, &[]), Abuser::new(&daemon, &[]));
    assert!(asks.says(&frame(HEADERS, END_HEADERS, 1, &request())));
    let watch = HealthCheckRequest { service: String::new() };
    let mut watched = HealthClient::new(daemon.channel()).watch(watch).await.unwrap().into_inner();
    watched.message().await.unwrap();
    let began = Instant::now();
    let stopped = tokio::task::spawn_blocking(move || {
        daemon.signal(nix::sys::signal::Signal::SIGTERM);
        assert!(silent.ends() && asks.ends());
        daemon.wait()
    });
    assert!(stopped.await.unwrap().success());
    assert!(began.elapsed() < Duration::from_secs(6), "it took {:?}", began.elapsed());
}

#[tokio::test]
async fn t10_a_flood_of_frames_closes_its_own_connection_alone() {
    let daemon = daemon();
    let flood = |kind: u8, flags: u8, stream: u32, payload: &'static [u8]| {
        move |abuser: &mut Abuser| abuser.says(&frame(kind, flags, stream, payload))
    };
    is_closed_over(&daemon, "PING", flood(6, 0, 0, &[0; 8])).await;
    is_closed_over(&daemon, "SETTINGS", flood(SETTINGS, 0, 0, &[])).await;
    is_closed_over(&daemon, "SETTINGS that change a window", flood(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff])).await;
    is_closed_over(&daemon, "WINDOW_UPDATE", flood(8, 0, 0, &[0, 0, 0, 1])).await;
    is_closed_over(&daemon, "PRIORITY", flood(2, 0, 1, &[0, 0, 0, 0, 1])).await;
    is_closed_over(&daemon, "an unknown frame", flood(0xfa, 0, 0, &[0; 30])).await;
    for (what, flags, payload) in [("empty DATA", 0, &[][..]), ("short DATA", 0, &[0]), ("padded DATA", 8, &[255; 256])]
    {
        let mut begun = false;
        let mut once =
            move |abuser: &mut Abuser, first: &[u8]| std::mem::replace(&mut begun, true) || abuser.says(first);
        is_closed_over(&daemon, what, |abuser| {
            once(abuser, &frame(HEADERS, END_HEADERS, 1, &request())) && abuser.says(&frame(0, flags, 1, payload))
        })
        .await;
    }
    let mut begun = false;
    let mut once = move |abuser: &mut Abuser, first: &[u8]| std::mem::replace(&mut begun, true) || abuser.says(first);
    is_closed_over(&daemon, "CONTINUATION", |abuser| {
        once(abuser, &frame(HEADERS, 0, 1, &request())) && abuser.says(&frame(CONTINUATION, 0, 1, &[]))
    })
    .await;
    let mut stream = streams();
    is_closed_over(&daemon, "rapid reset", |abuser| {
        let stream = stream.next().unwrap();
        let cancel = frame(3, 0, stream, &[0, 0, 0, 8]);
        abuser.says(&[frame(HEADERS, END_HEADERS, stream, &request()), cancel].concat())
    })
    .await;
    daemon.wait_for_log("closed a connection: it says too much");
}

#[tokio::test]
async fn t10_who_takes_no_answers_keeps_nobody_elses() {
    let daemon = daemon();
    // A window of nothing: no answer fits.
    let blocked: Vec<_> = (0..8)
        .map(|_| {
            let mut abuser = Abuser::new(&daemon, &[0, 4, 0, 0, 0, 0]);
            streams().take(64).for_each(|stream| assert!(abuser.says(&whole_request(stream))));
            abuser
        })
        .collect();
    let mut client = daemon.client();
    for _ in 0..50 {
        let request = proto::GetPublicCertificatesRequest { account: String::new() };
        tokio::time::timeout(PATIENCE, client.get_public_certificates(request)).await.unwrap().unwrap();
    }
    drop(blocked);
}

#[tokio::test]
async fn t10_who_asks_nothing_or_never_ends_is_closed_in_time() {
    let daemon = daemon();
    // The first says nothing more, the second pings: neither has asked for anything within 5 s.
    let silent = Abuser::new(&daemon, &[]);
    let mut talking = Abuser::new(&daemon, &[]);
    // The third has asked once, and drips the next request for longer than the 10 s that it may take.
    let mut dripping = Abuser::new(&daemon, &[]);
    assert!(dripping.says(&whole_request(1)));
    let drop_by_drop = [frame(HEADERS, END_HEADERS, 3, &request()), vec![0; 100]].concat();
    let begun = Instant::now();
    let pause = Duration::from_millis(100);
    let mut drops = drop_by_drop.iter();
    let mut talks = true;
    while begun.elapsed() < PATIENCE {
        std::thread::sleep(pause);
        talks = talks && talking.says(&frame(6, 0, 0, &[0; 8]));
        let drips = drops.next().is_some_and(|byte| dripping.says(&[*byte]));
        if !drips {
            break;
        }
    }
    assert!(!talks, "who only pings is still connected");
    let elapsed = begun.elapsed();
    assert!(elapsed > Duration::from_secs(8) && elapsed < PATIENCE, "{elapsed:?}");
    assert!(silent.ends() && dripping.ends());
    let request = proto::GetPublicCertificatesRequest { account: String::new() };
    daemon.client().get_public_certificates(request).await.unwrap();
}
