//! Frames of HTTP/2 that nobody sound sends.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use signet::proto;

use super::{Table, hex};
use crate::http2::{PREFACE, SETTINGS, frame, request, whole_request};
use crate::support::PATIENCE;
use crate::support::daemon::{NO_DEVICE, TestDaemon};

/// What becomes of a connection over which these bytes come.
fn ends(daemon: &TestDaemon, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // It may be closed before all of it is sent.
    let _ = stream.write_all(&[bytes, &frame(PING, 0, 0, MARK)].concat());
    let mut ends = Vec::new();
    while let Some((kind, flags, payload)) = read(&mut stream) {
        let code = |from: usize| {
            let code = payload[from..from + 4].try_into().unwrap();
            CODES[u32::from_be_bytes(code) as usize]
        };
        match kind {
            GOAWAY => ends.push(format!("GOAWAY {}", code(4))),
            RST_STREAM => ends.push(format!("RST_STREAM {}", code(0))),
            // What is wrong with a stream alone is said after the first answer.
            PING if flags == ACK && payload == MARK => drop(stream.write_all(&frame(PING, 0, 0, END))),
            PING if flags == ACK && payload == END => {
                ends.push("goes on".to_owned());
                return ends.join(", ");
            }
            _ => {}
        }
    }
    ends.push("closed".to_owned());
    ends.join(", ")
}

/// The next frame; none where the connection was closed.
fn read(stream: &mut UnixStream) -> Option<(u8, u8, Vec<u8>)> {
    let mut head = [0; 9];
    let gone = |error: std::io::Error| assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "it is still open");
    stream.read_exact(&mut head).map_err(gone).ok()?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    stream.read_exact(&mut payload).map_err(gone).ok()?;
    Some((head[3], head[4], payload))
}

#[tokio::test]
async fn frames() {
    let daemon = TestDaemon::start(&TestDaemon::config(NO_DEVICE));
    let sound = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &whole_request(1)].concat();
    assert_eq!(ends(&daemon, &sound), "goes on");
    let fields: String = request().iter().map(|byte| format!("{byte:02x}")).collect();
    let mut client = daemon.client();
    let mut table = Table::new("http2", "frames", &[("request", &fields)]);
    while let Some(mut case) = table.next() {
        let settings = || [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        let mut bytes = case.bytes("preface").unwrap_or_else(settings);
        for text in case.take::<Vec<String>>("frames").unwrap() {
            let text = String::from_utf8(super::expanded(text.into_bytes(), &case.values)).unwrap();
            let [head, payload] = text.split_at(text.len().min("TT FF SSSSSSSS".len())).into();
            let head = hex(head);
            let stream = u32::from_be_bytes(head[2..].try_into().unwrap());
            bytes.extend(frame(head[0], head[1], stream, &hex(payload)));
        }
        let answer = ends(&daemon, &bytes);
        let good = proto::GetPublicCertificatesRequest { account: String::new() };
        client.get_public_certificates(good).await.unwrap_or_else(|status| panic!("{}: {status}", case.name));
        table.hold(case, &answer);
    }
    table.end();
}

const RST_STREAM: u8 = 3;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const MARK: &[u8] = b"the mark";
const END: &[u8] = b"the end!";
/// RFC 9113, section 7.
const CODES: [&str; 14] = [
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
];
