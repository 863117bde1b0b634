//! The ids of keys and the names of devices: both are the names of files as well.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::InvalidKey;

/// A type of such names.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub(super) String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidKey;

            fn from_str(text: &str) -> Result<Self, InvalidKey> {
                if !is_file_name(text) {
                    return Err(InvalidKey::$name(text.chars().take(64).collect::<String>().escape_debug().to_string()));
                }
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidKey;

            fn try_from(text: String) -> Result<Self, InvalidKey> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    };
}

name! {
    /// A key's id: the JWS header's `kid`. 1 to 128 of `A-Z a-z 0-9 - _ .`, not beginning with a dot or a dash.
    KeyId
}
name! {
    /// A device's name in the configuration, of the same form as a [`KeyId`].
    DeviceName
}

fn is_file_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=128).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_are_file_names() {
        for bad in ["", ".", "../x", "a/b", "-x", "a\0", "a b", &"x".repeat(129)] {
            assert!(bad.parse::<KeyId>().is_err(), "{bad:?} was taken");
            assert!(bad.parse::<DeviceName>().is_err(), "{bad:?} was taken");
        }
        for good in
            ["NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs", "0123456789abcdef0123456789abcdef01234567", "_x", "a.b"]
        {
            assert_eq!(good.parse::<KeyId>().unwrap().as_str(), good);
        }
    }
}
