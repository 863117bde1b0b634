//! A client of the HTTP port that sends what it is told and nothing else.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

/// What the IAM Credentials API wants of every request.
pub(crate) const BEARER: &str = "Authorization: Bearer any";

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Answer {
    fn read(answer: &str) -> Self {
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    /// The value of a header, its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Everything that comes until the daemon closes.
pub(crate) fn until_closed(mut stream: &TcpStream) -> String {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        // What was sent and not read makes of a close a reset.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("it is not closed ({error}): {}", String::from_utf8_lossy(&answer)),
    }
    String::from_utf8(answer).unwrap()
}

/// What these bytes get, until the daemon closes.
pub(crate) fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = connect(address);
    // It may refuse before all of it is sent.
    let _ = stream.write_all(bytes);
    until_closed(&stream)
}

/// The answer to the only request of a connection: a line such as `GET /path`, more headers, a body.
pub(crate) fn send(address: SocketAddr, line: &str, headers: &[&str], body: &str) -> Answer {
    Answer::read(&raw(address, request(line, headers, body).as_bytes()))
}

/// The answer that another user gets. Only root can be another user.
pub(crate) fn send_as(uid: u32, address: SocketAddr, line: &str, headers: &[&str]) -> Answer {
    let ids = [format!("--reuid={uid}"), format!("--regid={uid}"), "--clear-groups".to_owned()];
    send_with(&ids.each_ref().map(String::as_str), address, line, headers)
}

/// The answer that a process of these ids gets, as `setpriv` takes them.
pub(crate) fn send_with(ids: &[&str], address: SocketAddr, line: &str, headers: &[&str]) -> Answer {
    let script = format!("exec 3<>/dev/tcp/{}/{}; printf %s \"$0\" >&3; cat <&3", address.ip(), address.port());
    let mut command = Command::new("setpriv");
    command.args(ids).args(["bash", "-c", &script, &request(line, headers, "")]);
    Answer::read(&String::from_utf8(command.output().unwrap().stdout).unwrap())
}

fn request(line: &str, headers: &[&str], body: &str) -> String {
    let mut request = format!("{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    for header in headers {
        request += &format!("{header}\r\n");
    }
    if !body.is_empty() {
        request += &format!("Content-Length: {}\r\n", body.len());
    }
    request + "\r\n" + body
}
