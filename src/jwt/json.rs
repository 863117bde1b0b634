//! JSON that every parser reads alike: what two parsers could read differently is refused here.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// An object's members in their order.
pub(super) type Members = Vec<(String, Value)>;

/// Parses one JSON object. Refused are, at every depth, what parsers differ on: duplicate members, also such that
/// differ only in case (Go's parser ignores it), fractions and integers that a double can't hold, NULs, lone
/// surrogates, `__proto__`; and what goes beyond the limits. The error names the member and never holds a value.
pub(super) fn object(text: &str) -> Result<Members, String> {
    if text.len() > MAX_BYTES {
        return Err(format!("over {MAX_BYTES} bytes"));
    }
    if text.starts_with('\u{feff}') {
        return Err("it begins with a byte order mark".to_owned());
    }
    // The parser's own complaint about another value would quote it.
    if !text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
        return Err("not a JSON object".to_owned());
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let members = (&mut json).deserialize_map(ObjectVisitor).map_err(|error| error.to_string())?;
    json.end().map_err(|error| error.to_string())?;
    Ok(members)
}

/// Writes members as compact JSON.
pub(super) fn to_text<'a>(members: impl Iterator<Item = (&'a str, &'a Value)>) -> String {
    let members: Vec<_> = members.map(|(name, value)| format!("{}:{value}", Value::from(name))).collect();
    format!("{{{}}}", members.join(","))
}

/// A member's name in the form in which parsers that ignore case compare it: `ſub` and `SUB` are `sub`.
pub(super) fn folded(name: &str) -> String {
    name.to_uppercase().to_lowercase()
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Members, A::Error> {
        members(map, 1)
    }
}

/// Any value, in an object or array of this depth.
#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Value, E> {
        if number > MAX_INTEGER { Err(inexact()) } else { Ok(number.into()) }
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Value, E> {
        if number.unsigned_abs() > MAX_INTEGER { Err(inexact()) } else { Ok(number.into()) }
    }

    fn visit_f64<E: Error>(self, _number: f64) -> Result<Value, E> {
        Err(inexact())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        sound(text)?;
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Value, A::Error> {
        let inner = Self { depth: deeper(self.depth)? };
        let mut elements = Vec::new();
        while let Some(element) = array.next_element_seed(inner)? {
            elements.push(element);
        }
        Ok(elements.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
        Ok(members(map, deeper(self.depth)?)?.into_iter().collect::<Map<_, _>>().into())
    }
}

fn members<'de, A: MapAccess<'de>>(mut map: A, depth: usize) -> Result<Members, A::Error> {
    let mut members = Members::new();
    let mut seen = HashSet::new();
    while let Some(name) = map.next_key::<String>()? {
        let named = |what: &dyn fmt::Display| {
            A::Error::custom(format_args!("{}: {what}", name.chars().take(64).collect::<String>().escape_debug()))
        };
        sound::<A::Error>(&name).map_err(|error| named(&error))?;
        if name == "__proto__" {
            return Err(named(&"some parsers take this member for something else"));
        }
        if !seen.insert(folded(&name)) {
            return Err(named(&"the member stands there twice"));
        }
        let value = map.next_value_seed(Strict { depth }).map_err(|error| named(&error))?;
        members.push((name, value));
    }
    Ok(members)
}

fn deeper<E: Error>(depth: usize) -> Result<usize, E> {
    if depth < MAX_DEPTH { Ok(depth + 1) } else { Err(E::custom(format_args!("nested over {MAX_DEPTH} deep"))) }
}

fn sound<E: Error>(text: &str) -> Result<(), E> {
    if text.len() > MAX_STRING {
        return Err(E::custom(format_args!("a string of over {MAX_STRING} bytes")));
    }
    if text.contains('\0') {
        return Err(E::custom("a string with a NUL"));
    }
    Ok(())
}

fn inexact<E: Error>() -> E {
    E::custom("a number that is not whole, or beyond 2^53: parsers differ on it")
}

const MAX_BYTES: usize = 16 * 1024;
const MAX_DEPTH: usize = 16;
pub(super) const MAX_STRING: usize = 4 * 1024;
/// The largest integer up to which a double holds every one exactly (RFC 8259, section 6).
const MAX_INTEGER: u64 = (1 << 53) - 1;
