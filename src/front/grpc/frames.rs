//! A client's frames, followed as they come and before h2 reads them: what is awaited of it, what it does to us, and which
//! authorities it says. What is malformed passes as it came: to judge that is for h2.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::authority::Fields;
use super::conduct::Conduct;
use super::listen::{Awaited, Connection};

/// A connection whose client is followed.
pub(super) struct Followed {
    connection: Connection,
    frames: Frames,
}

impl Followed {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection, frames: Frames::new() }
    }

    /// Something was answered: the client may take its time again, unless it is in the middle of a frame.
    fn note(&mut self, written: &Poll<io::Result<usize>>) {
        if written.is_ready() {
            self.connection.wait_for(self.frames.awaited());
        }
    }
}

impl AsyncRead for Followed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.connection).poll_read(cx, buffer);
        let Self { connection, frames } = &mut *self;
        if let Some(new) = buffer.filled_mut().get_mut(before..).filter(|new| !new.is_empty()) {
            frames.mend(new);
            if let Some(offence) = frames.conduct.offence() {
                return Poll::Ready(Err(connection.close(offence)));
            }
            connection.wait_for(frames.awaited());
        }
        read
    }
}

impl AsyncWrite for Followed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.connection).poll_write(cx, bytes);
        self.note(&written);
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.connection).poll_write_vectored(cx, slices);
        self.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }
}

/// The client's half of an HTTP/2 connection (RFC 9113, 4.1), as far as it was read.
struct Frames {
    /// Bytes to pass before anything else.
    skip: usize,
    /// Whether the next byte says how long a frame's padding is.
    padded: bool,
    /// What is left of a frame's field block, and its padding.
    block: usize,
    padding: usize,
    header: Vec<u8>,
    fields: Fields,
    /// A request has begun whose fields go on in another frame.
    continued: bool,
    /// Whether there was ever a request.
    asked: bool,
    /// How many frames have begun.
    begun: u64,
    conduct: Conduct,
    /// What follows makes no sense to us.
    lost: bool,
}

impl Frames {
    fn new() -> Self {
        Self {
            skip: PREFACE.len(),
            padded: false,
            block: 0,
            padding: 0,
            header: Vec::with_capacity(FRAME_HEADER),
            fields: Fields::Start,
            continued: false,
            asked: false,
            begun: 0,
            conduct: Conduct::new(),
            lost: false,
        }
    }

    /// What the client is to send next.
    fn awaited(&self) -> Awaited {
        let between = self.skip == 0 && self.block == 0 && !self.padded && !self.continued && self.header.is_empty();
        match (self.asked, between) {
            (false, _) => Awaited::FirstRequest,
            (true, false) => Awaited::RestOf(self.begun),
            (true, true) => Awaited::Anything,
        }
    }

    fn mend(&mut self, mut bytes: &mut [u8]) {
        while !self.lost && !bytes.is_empty() {
            let whole = if self.skip > 0 { self.skip } else { self.block };
            let part = if self.padded || whole == 0 { 1 } else { whole.min(bytes.len()) };
            let (part, rest) = bytes.split_at_mut(part);
            self.take(part);
            bytes = rest;
        }
    }

    /// Takes bytes of which all belong to the same part of a frame.
    fn take(&mut self, part: &mut [u8]) {
        if self.padded {
            self.padded = false;
            self.padding = part.iter().copied().map(usize::from).sum();
            self.lost = self.padding > self.block;
            self.block = self.block.saturating_sub(self.padding);
            if self.block == 0 {
                self.skip += std::mem::take(&mut self.padding);
            }
        } else if self.skip > 0 {
            self.skip -= part.len();
        } else if self.block > 0 {
            part.iter_mut().for_each(|byte| self.fields.mend(byte));
            self.lost = self.fields.are_lost();
            self.block -= part.len();
            if self.block == 0 {
                self.skip = std::mem::take(&mut self.padding);
            }
        } else {
            self.header.extend_from_slice(part);
            if let [a, b, c, kind, flags, ..] = *self.header.as_slice()
                && self.header.len() == FRAME_HEADER
            {
                self.header.clear();
                self.begin(usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or_default(), kind, flags);
            }
        }
    }

    /// Begins a frame of this length.
    fn begin(&mut self, length: usize, kind: u8, flags: u8) {
        self.begun += 1;
        self.conduct.frame(kind, flags, length);
        if kind != HEADERS && kind != CONTINUATION {
            self.skip = length;
            return;
        }
        let headers = kind == HEADERS;
        self.asked = true;
        self.continued = flags & END_HEADERS == 0;
        self.padded = headers && flags & PADDED != 0;
        self.skip = if headers && flags & PRIORITY != 0 { 5 } else { 0 };
        let before = self.skip + usize::from(self.padded);
        self.lost = before > length;
        self.block = length.saturating_sub(before);
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
pub(super) const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
pub(super) const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn literal(text: &str) -> Vec<u8> {
        assert!(text.len() < 127);
        [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
    }

    /// What comes through, read in pieces of this size.
    fn through(bytes: &[u8], piece: usize) -> Vec<u8> {
        let (mut frames, mut bytes) = (Frames::new(), bytes.to_vec());
        bytes.chunks_mut(piece).for_each(|piece| frames.mend(piece));
        bytes
    }

    /// A connection as grpcio 1.85 begins it, with this authority.
    fn of_the_c_core(authority: &str) -> Vec<u8> {
        let path = [b"\x40".to_vec(), literal(":path"), literal("/a%2Fb/C")].concat();
        let named = [b"\x40".to_vec(), literal(":authority"), literal(authority)].concat();
        let other = [b"\x83\x86\x40".to_vec(), literal("x-path"), literal("a%2F/b")].concat();
        let block = [path, named, other].concat();
        let (first, second) = block.split_at(23);
        let rest = [frame(1, 0, first), frame(9, 4, second), frame(0, 1, b"%/% \x40\x0a:authority\x03%/%")];
        [PREFACE.to_vec(), frame(4, 0, &[0; 36]), rest.concat(), frame(1, 5, b"\xc0\xbf\x83")].concat()
    }

    #[test]
    fn the_path_of_a_socket_becomes_an_authority_and_nothing_else_changes() {
        for piece in 1..60 {
            let mended = through(&of_the_c_core("run%2Fsignet%2Fsignet.sock"), piece);
            assert_eq!(mended, of_the_c_core("run-2Fsignet-2Fsignet.sock"), "{piece}");
            let mended = through(&of_the_c_core("/run/signet/signet.sock"), piece);
            assert_eq!(mended, of_the_c_core("-run-signet-signet.sock"), "{piece}");
            let sound = of_the_c_core("localhost:8080");
            assert_eq!(through(&sound, piece), sound);
        }
    }

    #[test]
    fn every_form_of_a_field_and_a_frame_is_followed() {
        let long = "x".repeat(300);
        // Its length is 127 + 45 + 128.
        let value = [b"\x7f\xad\x01", long.as_bytes()].concat();
        for start in [b"\x41".as_slice(), b"\x01", b"\x11", b"\x40\x0a:authority", b"\x00\x0a:authority"] {
            let block = |authority: &str| {
                let long_name = [&[0x40], value.as_slice(), &literal("v")].concat();
                [b"\x3f\xe1\x1f\x88".as_slice(), &long_name, &[0x44], &value, start, &literal(authority), b"\x90"]
                    .concat()
            };
            let padded = |authority: &str| {
                let payload = [b"\x03\x00\x00\x00\x00\x01".as_slice(), &block(authority), b"%%%"].concat();
                let whole = [PREFACE.to_vec(), frame(1, 0x2c, &payload), frame(1, 4, &block(authority))];
                whole.concat()
            };
            assert_eq!(through(&padded("a%/b"), 7), padded("a--b"), "{start:?}");
        }
        let huffman = [PREFACE, &frame(1, 4, b"\x41\x83%/%")].concat();
        assert_eq!(through(&huffman, 7), huffman, "compressed, these bytes are others");
    }

    proptest! {
        #[test]
        fn whatever_comes_comes_through_the_same_in_any_pieces(tail in prop::collection::vec(any::<u8>(), 0..400), piece in 1..99_usize) {
            let bytes = [PREFACE, &tail].concat();
            let mended = through(&bytes, piece);
            prop_assert_eq!(&mended, &through(&bytes, usize::MAX));
            let alike = |(new, old): (&u8, &u8)| new == old || (*new == b'-' && b"%/".contains(old));
            prop_assert!(mended.len() == bytes.len() && mended.iter().zip(&bytes).all(alike));
        }

        #[test]
        fn a_block_of_whatever_fields_is_followed_to_its_end(block in prop::collection::vec(any::<u8>(), 0..200)) {
            let bytes = [PREFACE.to_vec(), frame(1, 4, &block), frame(0, 0, b"%/")].concat();
            prop_assert!(through(&bytes, 5).ends_with(&frame(0, 0, b"%/")));
        }
    }
}
