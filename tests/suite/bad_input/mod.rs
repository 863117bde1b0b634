//! Bad input, each a named case of a table in `tests/bad-input/`: what exactly becomes of it, and that what is good is served
//! right after it. `tests/tidy.rs` counts the names.
//!
//! Texts in the tables may have parts in `<<>>`, the innermost first: `<<x*3>>` is xxx, `<<now+60>>` a time, `<<b64 TEXT>>`
//! base64url, `<<hex 00ff>>` bytes, and any other the value that its table has for it.

mod files;
mod grpc;
mod http;
mod http2;

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;

/// The cases of a table that are still to be tried, and those that went otherwise than it says.
struct Table {
    cases: std::vec::IntoIter<toml::Table>,
    values: Vec<(&'static str, String)>,
    wrong: Vec<String>,
}

/// One bad input. What is taken out of it was used; nothing may be left.
struct Case {
    name: String,
    fields: toml::Table,
    values: Vec<(&'static str, String)>,
}

impl Table {
    /// A table of `tests/bad-input/FILE.toml`, with these values for its texts.
    fn new(file: &str, table: &str, values: &[(&'static str, &str)]) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/bad-input/{file}.toml"));
        let mut tables: toml::Table = std::fs::read_to_string(path).unwrap().parse().unwrap();
        let cases: Vec<toml::Table> = tables.remove(table).unwrap().try_into().unwrap();
        let values = values.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Self { cases: cases.into_iter(), values, wrong: Vec::new() }
    }

    fn next(&mut self) -> Option<Case> {
        let mut fields = self.cases.next()?;
        let name = fields.remove("name").unwrap().try_into().unwrap();
        Some(Case { name, fields, values: self.values.clone() })
    }

    /// Holds what became of a case against what its table says.
    fn hold(&mut self, mut case: Case, answer: &str) {
        let expected = case.text("answer");
        assert!(case.fields.is_empty(), "{}: nobody looks at {:?}", case.name, case.fields);
        if answer != expected {
            self.wrong.push(format!("{:?} has {answer:?}, not {expected:?}", case.name));
        }
    }

    fn end(self) {
        assert!(self.wrong.is_empty(), "\n{}\n", self.wrong.join("\n"));
    }
}

impl Case {
    /// A field as it stands there.
    fn take<T: DeserializeOwned>(&mut self, field: &str) -> Option<T> {
        self.fields.remove(field).map(|value| value.try_into().unwrap())
    }

    /// A field as bytes.
    fn bytes(&mut self, field: &str) -> Option<Vec<u8>> {
        self.take::<String>(field).map(|text| expanded(text.into_bytes(), &self.values))
    }

    /// A field as text; empty where it is absent.
    fn text(&mut self, field: &str) -> String {
        self.bytes(field).map(|bytes| String::from_utf8(bytes).unwrap()).unwrap_or_default()
    }
}

/// A text with its parts in `<<>>` written out.
fn expanded(mut text: Vec<u8>, values: &[(&'static str, String)]) -> Vec<u8> {
    let find = |text: &[u8], wanted: &[u8]| text.windows(2).position(|two| two == wanted);
    while let Some(end) = find(&text, b">>") {
        let start = text[..end].windows(2).rposition(|two| two == b"<<").expect("<< stands before >>");
        let part = part(&text[start + 2..end], values);
        text.splice(start..end + 2, part);
    }
    text
}

fn part(text: &[u8], values: &[(&'static str, String)]) -> Vec<u8> {
    if let Some(plain) = text.strip_prefix(b"b64 ") {
        return URL_SAFE_NO_PAD.encode(plain).into_bytes();
    }
    let text = str::from_utf8(text).unwrap();
    if let Some(digits) = text.strip_prefix("hex ") {
        return hex(digits);
    }
    if let Some(offset) = text.strip_prefix("now") {
        let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
        return (now + offset.parse::<i64>().unwrap()).to_string().into_bytes();
    }
    if let Some((_, value)) = values.iter().find(|(name, _)| *name == text) {
        return value.clone().into_bytes();
    }
    let (repeated, times) = text.rsplit_once('*').unwrap_or_else(|| panic!("what is <<{text}>>?"));
    repeated.repeat(times.parse().unwrap()).into_bytes()
}

fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits.bytes().filter(|byte| *byte != b' ').collect();
    digits.chunks(2).map(|two| u8::from_str_radix(str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}
