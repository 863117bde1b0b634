//! Whether a verifier anywhere could take a blob for the signing input of a JWS (RFC 7515, 5.1).
//!
//! A signature over bytes that a verifier takes for a JWT is that JWT, whoever called the bytes a blob. Verifiers are
//! lenient, each in its own way: they skip foreign characters, read either base64 alphabet, pad as they like, take
//! UTF-16, and some never read the header. So [`shape`] is wider than the most lenient of them (its readings are those
//! of facts that were probed with some forty verifiers), and what it finds must be exactly what SignJwt would have
//! signed, or is refused. `tests/suite/forgery.rs` proves it against real libraries.

use std::iter::Peekable;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::claims::Claims;
use super::{Header, MAX_LIFETIME};
use crate::access::AccountEmail;
use crate::key::{Algorithm, KeyId};

/// What a blob is.
#[derive(Debug)]
pub enum Shape {
    /// No verifier takes it for a JWS: it is judged as a blob.
    Blob,
    /// The canonical signing input of a JWT that SignJwt could have made: it is judged as sign-jwt, by these claims.
    Jwt(Claims),
    /// Some verifier might take it for a JWS, and it is not canonical or not sound: it is refused. The reason.
    Refused(String),
}

/// Judges a blob. `account` and `now` are those that its claims must be fit for.
#[must_use]
pub fn shape(blob: &[u8], account: &AccountEmail, now: SystemTime) -> Shape {
    if !could_be_jws(blob) {
        return Shape::Blob;
    }
    match canonical(blob, account, now) {
        Ok(claims) => Shape::Jwt(claims),
        Err(reason) => {
            Shape::Refused(format!("it could be taken for a JWT, and is not one that may be signed: {reason}"))
        }
    }
}

/// The claims of a signing input that SignJwt could have made, byte for byte.
fn canonical(blob: &[u8], account: &AccountEmail, now: SystemTime) -> Result<Claims, String> {
    let text = str::from_utf8(blob).map_err(|error| error.to_string())?;
    let (header, payload) = text.split_once('.').ok_or("it has no dot")?;
    if !is_canonical_header(&decoded(header)?) {
        return Err("the header is not exactly alg, typ and kid as Signet writes them".to_owned());
    }
    let payload = decoded(payload)?;
    let claims = Claims::parse(&payload).map_err(|invalid| invalid.to_string())?;
    if claims.to_json() != payload {
        return Err("the claims are not in compact form".to_owned());
    }
    if claims.lifetime(now).is_none() {
        return Err("exp: it is missing".to_owned());
    }
    claims.for_account(account, MAX_LIFETIME, now).map_err(|invalid| invalid.to_string())
}

fn decoded(part: &str) -> Result<String, String> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_malformed| "a part is not strict base64url")?;
    String::from_utf8(bytes).map_err(|_malformed| "a part is not UTF-8".to_owned())
}

fn is_canonical_header(text: &str) -> bool {
    let values = text.strip_prefix(r#"{"alg":""#).and_then(|text| text.split_once(r#"","typ":"JWT","kid":""#));
    let Some((algorithm, kid)) = values.and_then(|(alg, kid)| Some((alg, kid.strip_suffix(r#""}"#)?))) else {
        return false;
    };
    let (Ok(algorithm), Ok(kid)) = (algorithm.parse::<Algorithm>(), kid.parse::<KeyId>()) else {
        return false;
    };
    Header { algorithm, kid: &kid }.to_string() == text
}

/// Whether any verifier might read a JSON object where a JWS has its header or its payload. A blob without a dot is no
/// JWS, and most others are settled after a few characters.
fn could_be_jws(blob: &[u8]) -> bool {
    blob.contains(&b'.')
        && (any_part_could_be_object(&symbols(blob.iter().copied()))
            || !blob.is_ascii() && any_part_could_be_object(&low_symbols(blob)))
}

/// What no decoder skips: base64 characters, and the dots between the parts. Read once, whatever the number of parts.
fn symbols(bytes: impl Iterator<Item = u8>) -> Vec<u8> {
    bytes.filter(|byte| byte.is_ascii_alphanumeric() || b"+/-_=.".contains(byte)).collect()
}

/// The same of the low eight bits of each UTF-16 code unit, which Node's Buffer decodes, split at real dots alone.
fn low_symbols(blob: &[u8]) -> Vec<u8> {
    let unit = |unit: u16| match unit.to_le_bytes() {
        [b'.', high] if high != 0 => 0,
        [low, _] => low,
    };
    symbols(blob.utf8_chunks().flat_map(|chunk| chunk.valid().encode_utf16().map(unit)))
}

/// Some split at the first dot and some at the last, and JWS in JSON form may have dots inside the header: then the
/// header is read from the beginning past the first dot, and the payload may follow any.
fn any_part_could_be_object(symbols: &[u8]) -> bool {
    let dots = || symbols.iter().enumerate().filter(|(_, byte)| **byte == b'.').map(|(index, _)| index);
    let header = dots().next().and_then(|first| symbols.get(..first));
    let last = symbols.iter().rposition(|byte| *byte == b'.');
    let payloads = dots().take(JUDGED_DOTS).chain(last).filter_map(|dot| symbols.get(dot..));
    header.into_iter().chain([symbols]).chain(payloads).any(could_be_object)
}

/// Whether any decoder makes the beginning of a JSON object of a part.
fn could_be_object(part: &[u8]) -> bool {
    let symbols: Vec<u8> = part.iter().copied().filter(|byte| *byte != b'.').take(MAX_SYMBOLS).collect();
    ALPHABETS.into_iter().any(|alphabet| {
        [Padding::Skipped, Padding::Restarts].into_iter().any(|padding| {
            let mut rest = symbols.iter().copied();
            let begins = begins_object(Decoder::new(&mut rest, alphabet, padding));
            // What is still undecided after so many could be anything.
            begins || symbols.len() == MAX_SYMBOLS && rest.len() == 0
        })
    })
}

/// Reads base64 as the most lenient decoders do: what it does not know it skips.
struct Decoder<I> {
    symbols: I,
    alphabet: Alphabet,
    padding: Padding,
    buffer: u16,
    bits: u32,
}

/// The characters that stand for 62 and for 63.
type Alphabet = [&'static [u8]; 2];

/// What a decoder makes of `=`. One that stops there sees no object that one which skips it does not.
#[derive(Clone, Copy)]
enum Padding {
    /// It skips it.
    Skipped,
    /// It goes on with the next group of four.
    Restarts,
}

impl<I: Iterator<Item = u8>> Iterator for Decoder<I> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        while self.bits < 8 {
            let symbol = self.symbols.next()?;
            match (symbol, self.padding) {
                (b'=', Padding::Restarts) => self.bits = 0,
                _ => {
                    if let Some(value) = self.value(symbol) {
                        self.buffer = self.buffer << 6 | u16::from(value);
                        self.bits += 6;
                    }
                }
            }
        }
        self.bits -= 8;
        Some((self.buffer >> self.bits).to_le_bytes()[0])
    }
}

impl<I> Decoder<I> {
    const fn new(symbols: I, alphabet: Alphabet, padding: Padding) -> Self {
        Self { symbols, alphabet, padding, buffer: 0, bits: 0 }
    }

    fn value(&self, symbol: u8) -> Option<u8> {
        let [plus, slash] = self.alphabet;
        match symbol {
            b'A'..=b'Z' => Some(symbol - b'A'),
            b'a'..=b'z' => Some(symbol - b'a' + 26),
            b'0'..=b'9' => Some(symbol - b'0' + 52),
            _ if plus.contains(&symbol) => Some(62),
            _ if slash.contains(&symbol) => Some(63),
            _ => None,
        }
    }
}

/// Whether a lenient parser might find a JSON object here, in UTF-8, UTF-16 or UTF-32: a brace, then a member's name or
/// the closing brace, between them what some parser skips. What goes on skipping beyond all measure counts as one.
fn begins_object(bytes: impl Iterator<Item = u8>) -> bool {
    let mut bytes = bytes.peekable();
    begins_within_measure(&mut bytes).unwrap_or(true)
}

/// None where more is skipped than anything innocent has.
fn begins_within_measure(bytes: &mut Peekable<impl Iterator<Item = u8>>) -> Option<bool> {
    skip(bytes, is_blank)?;
    match bytes.next() {
        Some(b'{') => {}
        Some(b'/') => return Some(matches!(bytes.next(), Some(b'/' | b'*'))),
        // The guard against script inclusion that some parsers drop.
        Some(b')') => return Some(bytes.next() == Some(b']') && bytes.next() == Some(b'}')),
        _ => return Some(false),
    }
    skip(bytes, |byte| is_blank(byte) || byte == b',')?;
    if matches!(bytes.peek(), Some(b'"' | b'\'' | b'}' | b'/' | b'#')) {
        return Some(true);
    }
    let name = skip(bytes, |byte| byte.is_ascii_alphanumeric() || b"_$\\\0".contains(&byte))?;
    skip(bytes, is_blank)?;
    Some(name > 0 && matches!(bytes.next(), Some(b':' | b'=' | b'/' | b'#')))
}

fn skip(bytes: &mut Peekable<impl Iterator<Item = u8>>, skipped: impl Fn(u8) -> bool) -> Option<usize> {
    let mut count = 0;
    while bytes.next_if(|byte| skipped(*byte)).is_some() {
        count += 1;
        if count > MAX_BLANKS {
            return None;
        }
    }
    Some(count)
}

/// NULs, white space, and the bytes of which byte order marks and Unicode's spaces are made.
const fn is_blank(byte: u8) -> bool {
    matches!(byte, 0..=b' ' | 0x7f..=0x8f | 0x9a | 0x9f | 0xa0 | 0xa8 | 0xa9 | 0xaf | 0xbb | 0xbf | 0xc2 | 0xe1..=0xe3 | 0xef | 0xfe | 0xff)
}

/// Either alphabet, both at once, or neither, the rest being skipped.
const ALPHABETS: [Alphabet; 4] = [[b"+-", b"/_"], [b"+", b"/"], [b"-", b"_"], [b"", b""]];
/// After how many dots a payload is looked for, besides after the last.
const JUDGED_DOTS: usize = 4;
/// More than so many NULs and blanks in one place stand in nothing that is innocent.
const MAX_BLANKS: usize = 1024;
/// How many characters of a part are decoded: it bounds the work, whatever the blob.
const MAX_SYMBOLS: usize = 8192;

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};

    use super::*;

    const NOW: u64 = 1_790_000_000;
    const HEADER: &str = r#"{"alg":"RS256","typ":"JWT","kid":"k"}"#;

    fn judged(blob: &[u8]) -> Shape {
        shape(blob, &"a@x".parse().unwrap(), UNIX_EPOCH + Duration::from_secs(NOW))
    }

    fn claims() -> String {
        format!(r#"{{"iss":"a@x","aud":"b","exp":{}}}"#, NOW + 60)
    }

    fn join(header: &[u8], payload: &[u8]) -> String {
        format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload))
    }

    #[track_caller]
    fn assert_refused(blob: &[u8]) {
        let shape = judged(blob);
        assert!(matches!(shape, Shape::Refused(_)), "{shape:?}: {}", String::from_utf8_lossy(blob));
    }

    #[test]
    fn what_sign_jwt_could_have_made_is_judged_by_its_claims() {
        let Shape::Jwt(read) = judged(join(HEADER.as_bytes(), claims().as_bytes()).as_bytes()) else {
            panic!("not a JWT");
        };
        assert_eq!(read.audiences(), ["b"]);
        assert_eq!(read.lifetime(UNIX_EPOCH + Duration::from_secs(NOW)), Some(Duration::from_secs(60)));
    }

    #[test]
    fn every_other_header_is_refused() {
        for header in [
            "{}",
            r#"{"alg":"none"}"#,
            r#"{"alg":"RS256","typ":"JWT"}"#,
            r#"{"alg":"HS256","typ":"JWT","kid":"k"}"#,
            r#"{"alg":"RS256","typ":"JWT","kid":"../k"}"#,
            r#"{"alg":"RS256","typ":"JWT","kid":"k\u0000"}"#,
            r#"{"alg":"RS256","typ":"JWT","kid":"k","jku":"https://x"}"#,
            r#"{"alg":"RS256","typ":"JWT","kid":"k","crit":["b64"],"b64":false}"#,
            r#"{"alg":"RS256","alg":"RS256","typ":"JWT","kid":"k"}"#,
            r#"{"typ":"JWT","alg":"RS256","kid":"k"}"#,
            r#"{ "alg":"RS256","typ":"JWT","kid":"k"}"#,
            r#"{"\u0061lg":"RS256","typ":"JWT","kid":"k"}"#,
            r#"{,"alg":"RS256","typ":"JWT","kid":"k"}"#,
            r#"{alg:"RS256"}"#,
            r#"{'alg':'RS256'}"#,
            "/**/{}",
            ")]}'\n{}",
            "\u{feff}{}",
            "\n{}",
        ] {
            assert_refused(join(header.as_bytes(), b"innocent").as_bytes());
            assert_refused(join(header.as_bytes(), claims().as_bytes()).as_bytes());
        }
        let long = format!(r#"{{"alg":"RS256","typ":"JWT","kid":"{}"}}"#, "k".repeat(1025));
        assert_refused(join(long.as_bytes(), claims().as_bytes()).as_bytes());
    }

    #[test]
    fn claims_that_sign_jwt_would_not_sign_are_refused() {
        let exp = NOW + 60;
        for payload in [
            r#"{"iss":"a@x"}"#.to_owned(),
            format!(r#"{{"iss":"b@x","exp":{exp}}}"#),
            format!(r#"{{"exp":{}}}"#, NOW - 1),
            format!(r#"{{"exp":{}}}"#, NOW + 50_000),
            format!(r#"{{"exp":{exp}.0}}"#),
            format!(r#"{{"exp":{exp},"exp":{exp}}}"#),
            format!(r#"{{"exp": {exp}}}"#),
            format!(r#"{{"\u0065xp":{exp}}}"#),
            format!(r#"{{"exp":{exp},"o":{{"b":1,"a":2}}}}"#),
            format!(r#"{{"exp":{exp}}}{{}}"#),
        ] {
            assert_refused(join(HEADER.as_bytes(), payload.as_bytes()).as_bytes());
        }
    }

    #[test]
    fn no_length_of_white_space_hides_a_jwt() {
        for count in [1, 100, 1023, 1024, 1025, 4096, 4097, 4098, 5000, 6140, 8192, 20_000, 300_000] {
            for blank in [" ", "\n", "\0", "\u{2003}", "\u{3000}"] {
                let blanks = blank.repeat(count);
                for object in [
                    format!("{blanks}{{}}"),
                    format!("{{{blanks}}}"),
                    format!("{{{blanks}\"alg\":\"RS256\"}}"),
                    format!("{{alg{blanks}:\"RS256\"}}"),
                    format!("{{{},\"alg\":\"RS256\"}}", ",".repeat(count)),
                    format!("{{{}:1}}", "a".repeat(count)),
                ] {
                    assert_refused(join(object.as_bytes(), claims().as_bytes()).as_bytes());
                    assert_refused(join(object.as_bytes(), b"innocent").as_bytes());
                    assert_refused(join(b"innocent", object.as_bytes()).as_bytes());
                    assert_refused(format!("GOOG4-RSA-SHA256\n.{}", URL_SAFE_NO_PAD.encode(&object)).as_bytes());
                }
            }
        }
    }

    #[test]
    fn every_lenient_encoding_is_refused() {
        let (header, claims) = (HEADER.as_bytes(), claims());
        let valid = join(header, claims.as_bytes());
        let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        let utf16be = |text: &str| text.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<u8>>();
        let utf32 = |text: &str| text.chars().flat_map(|c| u32::from(c).to_le_bytes()).collect::<Vec<u8>>();
        for header in [utf16(HEADER), utf16be(HEADER), utf32(HEADER), utf16(&format!("\u{feff}{HEADER}"))] {
            assert_refused(join(&header, claims.as_bytes()).as_bytes());
        }
        let header_alone = join(header, b"innocent");
        for foreign in
            ["\n", "!", "%%", "!!!!", "é", "\0", " ", "\u{feff}", "=", "====", "+", "//", "-_-_", ",", "\r\n"]
        {
            for place in [0, 1, 2, 3, 10] {
                for valid in [&valid, &header_alone] {
                    let (before, after) = valid.split_at(place);
                    assert_refused(format!("{before}{foreign}{after}").as_bytes());
                }
            }
            assert_refused(format!("{valid}{foreign}").as_bytes());
            assert_refused(format!("{valid}.{foreign}").as_bytes());
            assert_refused(valid.replace('.', &format!(".{foreign}")).as_bytes());
            assert_refused(valid.replace('.', &format!("{foreign}.")).as_bytes());
        }
        for padded in [URL_SAFE.encode(HEADER), STANDARD.encode(">>>{}"), STANDARD_NO_PAD.encode("{\"???\":1}")] {
            assert_refused(format!("{padded}.{}", URL_SAFE.encode(&claims)).as_bytes());
        }
        // U+0165 is `e` to Node; and none of its characters is base64.
        let wide = |text: &str| text.chars().filter_map(|c| char::from_u32(u32::from(c) + 0x100)).collect::<String>();
        let (head, payload) = valid.split_once('.').unwrap();
        assert_refused(format!("{}.{}", wide(head), wide(payload)).as_bytes());
        assert_refused(format!("{}.{payload}", wide(head)).as_bytes());
        assert_refused(format!("x.{}", wide(payload)).as_bytes());
        // U+012E is no dot.
        assert_refused(format!("{}.{}\u{12e}x", "x\u{12e}".repeat(JUDGED_DOTS + 1), wide(payload)).as_bytes());
        assert_refused(&utf16(&valid));
    }

    #[test]
    fn the_payload_alone_makes_the_jwt_and_so_does_the_header() {
        let payload = URL_SAFE_NO_PAD.encode(claims());
        let header = URL_SAFE_NO_PAD.encode(HEADER);
        for blob in [
            format!(".{payload}"),
            format!("GOOG4-RSA-SHA256\n.{payload}"),
            format!("GOOG4-RSA-SHA256\nx.y.{payload}"),
            format!("GOOG4-RSA-SHA256\nx.y.{payload}.z"),
            format!("a.b.c.d.e.f.g.{payload}"),
            format!("{header}."),
            format!("{header}.raw payload"),
            format!("..{payload}"),
            format!("{}.{}.{payload}", &header[..1], &header[1..]),
            format!("=IA==.{payload}"),
            format!("x.IA=={payload}"),
            format!("x.{}{payload}", "ICAg".repeat(5000)),
            format!("x.{}{payload}", "+".repeat(9000)),
            format!("x.{}{payload}", "!".repeat(9000)),
            format!("x.{}{payload}", "=".repeat(9000)),
        ] {
            assert_refused(blob.as_bytes());
        }
    }

    #[test]
    fn signed_urls_policies_and_other_documents_are_blobs() {
        let policy = STANDARD.encode(r#"{"conditions":[{"key":"a.txt"}],"expiration":"2026-01-01T00:00:00Z"}"#);
        assert!(policy.starts_with("eyJ"));
        let encoded = |text: &str| format!("x.{}", URL_SAFE_NO_PAD.encode(text));
        for blob in [
            "",
            ".",
            "a",
            "GOOG4-RSA-SHA256\n20260101T000000Z\n20260101/auto/storage/goog4_request\n0123456789abcdef",
            "GET\n\n\n1790000000\n/bucket/object.txt",
            "GET\n\napplication/json; charset=utf-8\n1790000000\nx-goog-meta-a:b\n/bucket/e.y.J",
            &policy,
            r#"{"name":"a.b","version":1.5}"#,
            "-----BEGIN CERTIFICATE-----\nMIIB.\n-----END CERTIFICATE-----\n",
            "example.com,www.example.com",
            "The end. {\"not\":\"encoded\"}",
            &"A long story. ".repeat(1000),
            &URL_SAFE_NO_PAD.encode(")]or."),
            &encoded(")]or"),
            &encoded("){}"),
            &encoded("{abc def}"),
            &encoded("{:1}"),
            &encoded(&format!("{}{{abc def}}", " ".repeat(MAX_BLANKS))),
        ] {
            assert!(matches!(judged(blob.as_bytes()), Shape::Blob), "{blob}");
        }
    }

    /// Random bytes are the worst of innocent blobs: text has next to no false alarms.
    #[test]
    fn innocent_bytes_are_seldom_refused() {
        let mut random = 1_u64;
        let mut byte = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 56) as u8
        };
        let blobs = 5000;
        let refused = (0..blobs)
            .filter(|length| !matches!(judged(&(0..length % 512).map(|_| byte()).collect::<Vec<_>>()), Shape::Blob))
            .count();
        assert!(refused * 200 < blobs, "{refused} of {blobs}");
    }
}
