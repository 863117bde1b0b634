//! PKCS#11 URIs (RFC 7512), as far as they name one private key.

use std::fmt;
use std::str::FromStr;

/// A private key by its URI. What is absent matches anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KeyUri {
    /// CK_TOKEN_INFO's label.
    pub(super) token: Option<String>,
    /// CK_TOKEN_INFO's serial number.
    pub(super) serial: Option<String>,
    /// CKA_LABEL.
    pub(super) object: Option<String>,
    /// CKA_ID.
    pub(super) id: Option<Vec<u8>>,
}

impl FromStr for KeyUri {
    type Err = String;

    /// Strict: an attribute that is not understood could be the one that tells two keys apart.
    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("pkcs11:").ok_or("it does not begin with \"pkcs11:\"")?;
        if let Some((_, query)) = path.split_once('?') {
            let pin = query.split('&').any(|part| part.starts_with("pin-"));
            return Err(
                if pin { "a URI must not carry a PIN" } else { "query attributes are not supported" }.to_owned()
            );
        }
        let mut uri = Self::default();
        for part in path.split(';').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or_else(|| format!("{part:?} has no value"))?;
            let value = decoded(value).ok_or_else(|| format!("{name} is not percent-encoded"))?;
            let text = || String::from_utf8(value.clone()).map_err(|error| format!("{name}: {error}"));
            let twice = match name {
                "token" => uri.token.replace(text()?).is_some(),
                "serial" => uri.serial.replace(text()?).is_some(),
                "object" => uri.object.replace(text()?).is_some(),
                "id" => uri.id.replace(value).is_some(),
                "type" if value == b"private" => false,
                "type" => return Err("its type is not \"private\"".to_owned()),
                "pin-value" | "pin-source" => return Err("a URI must not carry a PIN".to_owned()),
                _ => return Err(format!("the attribute {name:?} is not supported")),
            };
            if twice {
                return Err(format!("{name} is given twice"));
            }
        }
        if uri.object.is_none() && uri.id.is_none() {
            return Err("it has neither object nor id".to_owned());
        }
        Ok(uri)
    }
}

impl fmt::Display for KeyUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("pkcs11:")?;
        for (name, value) in [("token", &self.token), ("serial", &self.serial), ("object", &self.object)] {
            if let Some(value) = value {
                write!(
                    f,
                    "{name}={};",
                    encoded(value.as_bytes(), |byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
                )?;
            }
        }
        if let Some(id) = &self.id {
            // RFC 7512, 2.3: the whole value of "id" SHOULD be percent-encoded.
            write!(f, "id={};", encoded(id, |_byte| false))?;
        }
        f.write_str("type=private")
    }
}

fn encoded(bytes: &[u8], plain: impl Fn(u8) -> bool) -> String {
    bytes.iter().map(|byte| if plain(*byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                u8::try_from(digit(rest.next())? * 16 + digit(rest.next())?).ok()?
            }
            plain if plain.is_ascii_graphic() && !b"/#\"<>".contains(&plain) => plain,
            _ => return None,
        });
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_of_the_rfc_is_read() {
        let uri: KeyUri =
            "pkcs11:token=The%20Software%20PKCS%2311%20Softtoken;object=my-certificate;id=%69%95%3e%5c%f4%bd%ec%91"
                .parse()
                .unwrap();
        assert_eq!(uri.token.as_deref(), Some("The Software PKCS#11 Softtoken"));
        assert_eq!(uri.object.as_deref(), Some("my-certificate"));
        assert_eq!(uri.id.unwrap(), [0x69, 0x95, 0x3e, 0x5c, 0xf4, 0xbd, 0xec, 0x91]);
    }

    #[test]
    fn a_uri_with_a_pin_is_refused_and_the_pin_not_repeated() {
        for text in [
            "pkcs11:object=a?pin-value=hunter2",
            "pkcs11:object=a?module-name=x&pin-value=hunter2",
            "pkcs11:object=a?pin-source=file:/hunter2",
            "pkcs11:object=a;pin-value=hunter2",
        ] {
            let error = text.parse::<KeyUri>().unwrap_err();
            assert!(error.contains("PIN") && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn what_names_no_single_private_key_is_refused() {
        for text in [
            "",
            "pkcs11",
            "pkcs11:",
            "pkcs11:type=private",
            "pkcs11:token=a",
            "pkcs11:object=a;type=cert",
            "pkcs11:object=a;object=b",
            "pkcs11:object=a;slot-id=1",
            "pkcs11:object=a;x-vendor=1",
            "pkcs11:object",
            "pkcs11:id=%0",
            "pkcs11:id=%zz",
            "pkcs11:object=a b",
            "pkcs11:object=%ff",
            "pkcs11:object=a?module-path=/x",
        ] {
            assert!(text.parse::<KeyUri>().is_err(), "{text:?} was taken");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(token: Option<String>, serial: Option<String>, object: String, id: Option<Vec<u8>>) {
            let uri = KeyUri { token, serial, object: Some(object), id };
            let text = uri.to_string();
            prop_assert!(text.is_ascii() && !text.contains(char::is_whitespace));
            prop_assert_eq!(text.parse::<KeyUri>().unwrap(), uri);
        }
    }
}
