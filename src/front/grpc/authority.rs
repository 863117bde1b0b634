//! Lets in clients that say the socket's path where HTTP/2 wants an authority.
//!
//! gRPC's C core (Python, C++, Ruby, PHP) says `run%2Fsignet%2Fsignet.sock`, grpc-java the path itself; h2 takes neither
//! for an `:authority` and resets the stream. Nothing here asks for the authority, so each such character becomes a `-`
//! on the way in: where it stands and at the same length, so that both sides' header tables stay alike. All else passes
//! as it came.

/// A field block of HPACK (RFC 7541, 6), as far as it was read. It may go on over several frames.
pub(super) enum Fields {
    /// A field begins.
    Start,
    /// A number goes on (5.1).
    Number { so_far: usize, shift: u32, of: Number },
    /// A string's length begins (5.2).
    Length { of: Text },
    /// A name, of which so many bytes are left; it is ":authority" as far as it was read.
    Name { left: usize, authority: bool },
    /// A value.
    Value { left: usize, authority: bool },
    /// It makes no sense.
    Lost,
}

#[derive(Clone, Copy)]
pub(super) enum Number {
    /// All there is of a field.
    Whole,
    /// The name, by its place in a table.
    Name,
    Length {
        of: Text,
        huffman: bool,
    },
}

#[derive(Clone, Copy)]
pub(super) enum Text {
    Name,
    Value { authority: bool },
}

impl Fields {
    /// Whether they make no sense.
    pub(super) const fn are_lost(&self) -> bool {
        matches!(self, Self::Lost)
    }

    /// Takes the next byte, which becomes another one where it could be of no authority.
    pub(super) fn mend(&mut self, byte: &mut u8) {
        *self = match *self {
            Self::Start => match *byte {
                first if first & 0x80 != 0 => Self::number(first, 7, Number::Whole),
                first if first & 0x40 != 0 => Self::number(first, 6, Number::Name),
                first if first & 0x20 != 0 => Self::number(first, 5, Number::Whole),
                first => Self::number(first, 4, Number::Name),
            },
            Self::Number { shift, .. } if shift > 21 => Self::Lost,
            Self::Number { so_far, shift, of } => {
                let number = so_far + (usize::from(*byte & 0x7f) << shift);
                if *byte & 0x80 == 0 {
                    Self::after(number, of)
                } else {
                    Self::Number { so_far: number, shift: shift + 7, of }
                }
            }
            Self::Length { of } => Self::number(*byte, 7, Number::Length { of, huffman: *byte & 0x80 != 0 }),
            Self::Name { left, authority } => {
                let authority =
                    authority && AUTHORITY.len().checked_sub(left).and_then(|at| AUTHORITY.get(at)) == Some(byte);
                if left > 1 {
                    Self::Name { left: left - 1, authority }
                } else {
                    Self::Length { of: Text::Value { authority } }
                }
            }
            Self::Value { left, authority } => {
                if authority && matches!(byte, b'%' | b'/') {
                    *byte = b'-';
                }
                if left > 1 { Self::Value { left: left - 1, authority } } else { Self::Start }
            }
            Self::Lost => Self::Lost,
        };
    }

    /// A number whose first byte has so many bits of it.
    fn number(first: u8, bits: u32, of: Number) -> Self {
        let most = (1 << bits) - 1;
        let number = usize::from(first) & most;
        if number < most { Self::after(number, of) } else { Self::Number { so_far: number, shift: 0, of } }
    }

    fn after(number: usize, of: Number) -> Self {
        match (of, number) {
            (Number::Whole, _) => Self::Start,
            (Number::Name, 0) => Self::Length { of: Text::Name },
            (Number::Name, place) => Self::Length { of: Text::Value { authority: place == AUTHORITY_PLACE } },
            (Number::Length { of: Text::Name, .. }, 0) => Self::Length { of: Text::Value { authority: false } },
            (Number::Length { of: Text::Value { .. }, .. }, 0) => Self::Start,
            (Number::Length { of: Text::Name, huffman }, left) => {
                Self::Name { left, authority: !huffman && left == AUTHORITY.len() }
            }
            (Number::Length { of: Text::Value { authority }, huffman }, left) => {
                Self::Value { left, authority: authority && !huffman }
            }
        }
    }
}

const AUTHORITY: &[u8] = b":authority";
/// In the static table (RFC 7541, A).
const AUTHORITY_PLACE: usize = 1;
