//! The TOML as it is written: every key that may stand there, and where it stood. Pure; [`super`] makes sense of it.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZero;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, de::DeserializeOwned};
use toml::Spanned;

use super::{ConfigError, Fsync};
use crate::access::{AccountEmail, Operation, Rate as AccessRate, UniqueId};
use crate::device::{TokenSelector, TpmSession};
use crate::key::DeviceName;

/// The whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) state_dir: Option<PathBuf>,
    pub(super) max_client_cache_time: Option<Span>,
    #[serde(default)]
    pub(super) listen: Listen,
    #[serde(default)]
    pub(super) audit: Audit,
    #[serde(default)]
    pub(super) cache: Cache,
    #[serde(default)]
    pub(super) metadata: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    pub(super) device: Vec<Device>,
    #[serde(default)]
    pub(super) account: Vec<Account>,
    #[serde(default)]
    pub(super) allow: Vec<Allow>,
}

/// `[listen]`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listen {
    pub(super) grpc: Option<Spanned<PathBuf>>,
    pub(super) http: Option<Spanned<String>>,
    pub(super) issuer: Option<String>,
    pub(super) group: Option<Spanned<Principal>>,
    pub(super) mode: Option<Spanned<String>>,
}

/// `[audit]`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Audit {
    pub(super) path: Option<PathBuf>,
    #[serde(default)]
    pub(super) fsync: Fsync,
    pub(super) max_size: Option<Size>,
    pub(super) keep: Option<Spanned<u32>>,
    pub(super) journal: Option<PathBuf>,
    pub(super) checkpoint_every: Option<Spanned<NonZero<u64>>>,
    pub(super) checkpoint_account: Option<Spanned<AccountEmail>>,
}

/// `[cache]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Cache {
    pub(super) enabled: bool,
    pub(super) entries: NonZero<usize>,
}

impl Default for Cache {
    fn default() -> Self {
        const ENTRIES: NonZero<usize> = NonZero::new(10_000).unwrap();
        Self { enabled: true, entries: ENTRIES }
    }
}

/// `[[device]]`: the keys of every kind, because a span does not survive serde's tagged enums.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Device {
    pub(super) name: Spanned<DeviceName>,
    pub(super) kind: Spanned<Kind>,
    pub(super) pin_file: Option<Spanned<PathBuf>>,
    pub(super) call_limit: Option<Span>,
    pub(super) queue: Option<Spanned<usize>>,
    #[serde(default)]
    pub(super) sandbox: Sandbox,
    pub(super) module: Option<Spanned<PathBuf>>,
    pub(super) token: Option<Spanned<Token>>,
    pub(super) sessions: Option<Spanned<usize>>,
    pub(super) environment: Option<Spanned<BTreeMap<String, String>>>,
    pub(super) files: Option<Spanned<Vec<PathBuf>>>,
    pub(super) allow_final_pin_try: Option<Spanned<bool>>,
    pub(super) tcti: Option<Spanned<String>>,
    pub(super) owner_auth_file: Option<Spanned<PathBuf>>,
    pub(super) session: Option<Spanned<TpmSession>>,
}

/// Whether a device's process is confined.
#[derive(Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Sandbox {
    #[default]
    On,
    Off,
}

/// A device's `kind`.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Pkcs11,
    Tpm,
}

/// `[[account]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Account {
    pub(super) email: Spanned<AccountEmail>,
    pub(super) project_id: Option<String>,
    pub(super) unique_id: Option<Spanned<UniqueId>>,
    pub(super) default: Option<Spanned<bool>>,
    pub(super) exchange: Option<Exchange>,
}

/// `[account.exchange]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Exchange {
    pub(super) mode: ExchangeMode,
    pub(super) token_uri: Option<Spanned<String>>,
    pub(super) ca_file: Option<Spanned<PathBuf>>,
}

/// How a token endpoint is asked.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ExchangeMode {
    /// RFC 7523.
    JwtBearer,
}

/// `[[allow]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Allow {
    pub(super) users: Option<Spanned<Vec<Spanned<Principal>>>>,
    pub(super) groups: Option<Spanned<Vec<Spanned<Principal>>>>,
    pub(super) units: Option<Spanned<Vec<String>>>,
    pub(super) executables: Option<Spanned<Vec<Spanned<Executable>>>>,
    pub(super) accounts: Spanned<Vec<Spanned<AccountEmail>>>,
    pub(super) operations: Spanned<Vec<Operation>>,
    pub(super) audiences: Option<Spanned<Vec<String>>>,
    pub(super) scopes: Option<Spanned<Vec<String>>>,
    pub(super) claims: Option<Spanned<BTreeMap<String, Vec<Claim>>>>,
    pub(super) blob_prefixes: Option<Spanned<Vec<String>>>,
    pub(super) max_lifetime: Option<Span>,
    pub(super) rate: Option<Rate>,
}

/// A claim's value: a pattern of texts, or a truth value or whole number as it is.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a pattern in quotes, true, false, or a whole number")]
pub(super) enum Claim {
    Text(String),
    Truth(bool),
    Number(i64),
}

/// An executable: its path alone, or a table of its path and the SHA-256 of its contents.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Executable {
    pub(super) path: PathBuf,
    pub(super) sha256: Option<String>,
}

impl<'de> Deserialize<'de> for Executable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            path: PathBuf,
            sha256: Option<String>,
        }
        struct PathOrTable;
        impl<'de> Visitor<'de> for PathOrTable {
            type Value = Executable;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path or a table of path and sha256")
            }

            fn visit_str<E: de::Error>(self, path: &str) -> Result<Executable, E> {
                Ok(Executable { path: path.into(), sha256: None })
            }

            fn visit_map<A: de::MapAccess<'de>>(self, table: A) -> Result<Executable, A::Error> {
                let Table { path, sha256 } = Table::deserialize(de::value::MapAccessDeserializer::new(table))?;
                Ok(Executable { path, sha256 })
            }
        }
        deserializer.deserialize_any(PathOrTable)
    }
}

/// A rate such as "100/s".
pub(super) struct Rate(pub(super) AccessRate);

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(de::Error::custom)
    }
}

/// A user or a group, by name or number.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Principal {
    Name(String),
    Number(u32),
}

impl<'de> Deserialize<'de> for Principal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrNumber;
        impl Visitor<'_> for NameOrNumber {
            type Value = Principal;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name or a number")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Principal, E> {
                match text.parse() {
                    Ok(number) => self.visit_i64(number),
                    Err(_not_a_number) => Ok(Principal::Name(text.to_owned())),
                }
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Principal, E> {
                // The highest id means "no change" to the kernel: nobody has it.
                match u32::try_from(number) {
                    Ok(id) if id != u32::MAX => Ok(Principal::Number(id)),
                    _ => Err(E::invalid_value(de::Unexpected::Signed(number), &"an id from 0 to 4294967294")),
                }
            }
        }
        deserializer.deserialize_any(NameOrNumber)
    }
}

/// Which token of a module, with its label not empty.
pub(super) struct Token(pub(super) TokenSelector);

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if ["", "serial:"].contains(&text.as_str()) {
            return Err(de::Error::custom(r#"write the token's label, "serial:NUMBER" or "slot:ID""#));
        }
        text.parse().map(Self).map_err(de::Error::custom)
    }
}

/// A [`span_of_time`].
pub(super) struct Span(pub(super) Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        span_of_time(&text).map(Self).ok_or_else(|| {
            de::Error::custom(format!(r#"{text:?} is no span of time such as "500ms", "10s", "15m" or "1h""#))
        })
    }
}

/// Reads a span of time above zero: a whole number and one of `ms s m h d`, such as "500ms" or "1h".
#[must_use]
pub fn span_of_time(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let number = u64::from(number.parse::<u32>().ok()?);
    (number > 0).then(|| Duration::from_millis(number * milliseconds))
}

/// A number of bytes: a whole number and one of `KiB MiB GiB`, such as "64MiB".
pub(super) struct Size(pub(super) u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        size(&text)
            .map(Self)
            .ok_or_else(|| de::Error::custom(format!(r#"{text:?} is no size such as "512KiB", "64MiB" or "1GiB""#)))
    }
}

fn size(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let shift = match unit {
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    let number = u64::from(number.parse::<u32>().ok()?);
    (number > 0).then_some(number << shift)
}

/// A file's text, to say where in it something is wrong.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

impl Source<'_> {
    /// Reads the text as TOML of this form.
    pub(super) fn parse<T: DeserializeOwned>(self) -> Result<T, ConfigError> {
        let malformed = |error: &toml::de::Error, field: &str| {
            let remedy = match error.message() {
                message if message.starts_with("unknown field") => "remove it, or correct its name",
                message if message.starts_with("missing field") => "add it",
                _ => "correct it",
            };
            let remedy = format!("{remedy}; docs/signet.toml is a configuration with every key explained");
            self.wrong(error.span().unwrap_or_default(), field, in_plain_words(error.message()), remedy)
        };
        let deserializer = toml::Deserializer::parse(self.text).map_err(|error| malformed(&error, ""))?;
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            let field = error.path().iter().filter_map(name).collect::<Vec<_>>().join(".");
            malformed(error.inner(), &field)
        })
    }

    /// Says what is wrong with a field at a place.
    pub(super) fn wrong(
        self,
        place: Range<usize>,
        field: &str,
        what: impl fmt::Display,
        remedy: impl Into<String>,
    ) -> ConfigError {
        let line = 1 + self.text.bytes().take(place.start).filter(|byte| *byte == b'\n').count();
        let colon = if field.is_empty() { "" } else { ": " };
        ConfigError {
            path: self.path.to_owned(),
            what: format!("line {line}{colon}{field}: {what}"),
            remedy: remedy.into(),
        }
    }
}

/// What serde says, without Rust's names for what should stand there.
fn in_plain_words(message: &str) -> String {
    let message = message.replacen("unknown variant", "unknown value", 1);
    let plain = EXPECTED.iter().find_map(|(rust, plain)| Some((message.strip_suffix(rust)?, plain)));
    match plain {
        Some((found, plain)) => format!("{found}{plain}"),
        None => message,
    }
}

const EXPECTED: [(&str, &str); 8] = [
    ("expected usize", "expected a whole number"),
    ("expected u32", "expected a whole number"),
    ("expected a nonzero usize", "expected a whole number above 0"),
    ("expected a nonzero u64", "expected a whole number above 0"),
    ("expected a string", "expected a text in quotes"),
    ("expected path string", "expected a path in quotes"),
    ("expected a sequence", "expected a list in brackets"),
    ("expected a boolean", "expected true or false"),
];

/// A key on the way to a field; indices are told by the line, and [`Spanned`] has a struct of its own in between.
fn name(segment: &serde_path_to_error::Segment) -> Option<&str> {
    match segment {
        serde_path_to_error::Segment::Map { key } if !key.starts_with("$__serde_spanned") => Some(key),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<File, String> {
        Source { path: Path::new("signet.toml"), text }.parse().map_err(|error: ConfigError| error.to_string())
    }

    fn error(text: &str) -> String {
        parse(text).err().expect("refused")
    }

    #[test]
    fn an_error_names_file_line_and_field() {
        let text = "state_dir = '/s'\n\n[[device]]\nname = 'a'\nkind = 'tpm'\n\n[[device]]\nname = 'b'\nkind = 'tpm'\nsessions = 'four'\n";
        assert_eq!(
            error(text),
            r#"signet.toml: line 10: device.sessions: invalid type: string "four", expected a whole number"#
        );
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        assert!(error("[listen]\nhttps = '127.0.0.1:8980'\n").starts_with("signet.toml: line 2: listen"));
        assert!(error("[listen]\nhttps = '127.0.0.1:8980'\n").contains("unknown field `https`"));
        for later in ["exchange = true", "unit = ['a']", "executable = ['/a']"] {
            let text = format!("[[allow]]\naccounts = ['a@b']\noperations = ['sign-jwt']\n{later}\n");
            assert!(error(&text).contains("line 4: allow"), "{}", error(&text));
            assert!(error(&text).contains("unknown field"), "{}", error(&text));
        }
        assert!(error("[[account]]\nemail = 'a@b'\nexchanges = true\n").contains("unknown field `exchanges`"));
        let mode = error("[[account]]\nemail = 'a@b'\n[account.exchange]\nmode = 'password'\n");
        assert!(mode.contains("line 4: account.exchange.mode: unknown value `password`"), "{mode}");
    }

    #[test]
    fn a_missing_field_is_named() {
        assert!(error("[[device]]\nname = 'a'\n").contains("missing field `kind`"));
    }

    #[test]
    fn what_is_no_toml_is_refused_with_its_line() {
        assert!(error("a = 1\nb = \n").starts_with("signet.toml: line 2: "), "{}", error("a = 1\nb = \n"));
        assert!(error("a = 1\na = 1\n").contains("duplicate"));
    }

    #[test]
    fn an_unknown_operation_is_refused_with_those_that_are() {
        let text = "[[allow]]\naccounts = ['a@b']\noperations = ['sign-all']\n";
        assert!(error(text).starts_with("signet.toml: line 3: allow.operations: unknown value `sign-all`"));
        assert!(error(text).contains("`mint-id-token`"));
    }

    #[test]
    fn spans_of_time() {
        for (text, milliseconds) in
            [("500ms", 500), ("10s", 10_000), ("15m", 900_000), ("1h", 3_600_000), ("2d", 172_800_000)]
        {
            assert_eq!(span_of_time(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "0s", "10", "s", "-1s", "1.5s", " 1s", "1s ", "1 s", "1h30m", "1w", "99999999999s", "１s"] {
            assert_eq!(span_of_time(text), None, "{text}");
        }
        assert!(
            error("max_client_cache_time = '1 hour'").contains("line 1: max_client_cache_time: \"1 hour\" is no span")
        );
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("1KiB", 1024), ("64MiB", 64 << 20), ("4294967295GiB", 4_294_967_295 << 30)] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for text in ["", "0KiB", "64", "MiB", "64MB", "64 MiB", "-1KiB", "1.5GiB", "4294967296KiB"] {
            assert_eq!(size(text), None, "{text}");
        }
        assert!(error("[audit]\nmax_size = '64M'\n").contains("line 2: audit.max_size: \"64M\" is no size"));
    }

    #[test]
    fn people_by_name_or_number() {
        let text = "[[allow]]\nusers = ['app', 1000, '1001']\naccounts = ['a@b']\noperations = ['sign-jwt']\n";
        let users = parse(text).unwrap().allow.remove(0).users.unwrap().into_inner();
        let users: Vec<_> = users.into_iter().map(Spanned::into_inner).collect();
        assert_eq!(users, [Principal::Name("app".to_owned()), Principal::Number(1000), Principal::Number(1001)]);
        for bad in ["-1", "4294967295", "'4294967295'", "1.0", "true", "[1]"] {
            let text = format!("[[allow]]\nusers = [{bad}]\naccounts = ['a@b']\noperations = ['sign-jwt']\n");
            assert!(error(&text).starts_with("signet.toml: line 2: allow.users: "), "{}", error(&text));
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn no_mixture_of_its_own_words_makes_the_parser_panic(words in proptest::collection::vec(word(), 0..40)) {
            let _ = parse(&words.concat());
        }
    }

    fn word() -> impl Strategy<Value = &'static str> {
        proptest::sample::select(vec![
            "[[device]]",
            "[[allow]]",
            "[[account]]",
            "[listen]",
            "[audit]",
            "[metadata]",
            "\n",
            "\r\n",
            " = ",
            "name",
            "kind",
            "'tpm'",
            "users",
            "groups",
            "accounts",
            "operations",
            "claims",
            "mode",
            "grpc",
            "http",
            "[",
            "]",
            "{",
            "}",
            ",",
            ".",
            "\"",
            "'''",
            "\u{feff}",
            "1",
            "-9223372036854775808",
            "1e400",
            "nan",
            "true",
            "'a@b'",
            "'1h'",
            "'99999999999999999999d'",
            "\0",
            "#",
            "\\u",
            "é",
            "1979-05-27",
        ])
    }
}
