//! Who may do what: callers, accounts, rules, and the [`Permit`] that everything which signs demands.
//!
//! Pure: no I/O, no clock, no device. Default deny: a request that no rule allows as a whole is denied.

mod caller;
mod glob;
mod policy;
mod rule;

pub use caller::{Caller, Executable, Sought};
pub use glob::Glob;
pub use policy::{Accounts, Denied, Lifetime, Operation, Permit, Policy, Request};
pub use rule::{ClaimPattern, ClaimValue, Condition, JUDGED_CLAIMS, Per, Rate, Rule};

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A service account that Signet signs for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its email.
    pub email: AccountEmail,
    /// Its project, where configured.
    pub project_id: Option<String>,
    /// Google's number for it, where configured.
    pub unique_id: Option<UniqueId>,
    /// Whether an empty account in a request means this one.
    pub default: bool,
}

/// The email of a service account: `local@domain`, at most 254 characters of `A-Z a-z 0-9 . - _ + @`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AccountEmail(String);

impl AccountEmail {
    /// The email as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AccountEmail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for AccountEmail {
    type Err = InvalidEmail;

    fn from_str(text: &str) -> Result<Self, InvalidEmail> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_+".contains(&byte);
        let valid = text.len() <= 254
            && text.split_once('@').is_some_and(|(local, domain)| {
                !local.is_empty() && !domain.is_empty() && local.bytes().chain(domain.bytes()).all(allowed)
            });
        if !valid {
            return Err(InvalidEmail(text.chars().take(64).collect::<String>().escape_debug().to_string()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for AccountEmail {
    type Error = InvalidEmail;

    fn try_from(text: String) -> Result<Self, InvalidEmail> {
        text.parse()
    }
}

impl From<AccountEmail> for String {
    fn from(email: AccountEmail) -> Self {
        email.0
    }
}

/// The unique id of a service account: up to 30 digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UniqueId(String);

impl FromStr for UniqueId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        if !(1..=30).contains(&text.len()) || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err("a unique id has 1 to 30 digits and nothing else");
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for UniqueId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        text.parse()
    }
}

impl From<UniqueId> for String {
    fn from(id: UniqueId) -> Self {
        id.0
    }
}

/// A text that is no email of a service account.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no service-account email such as app@project.iam.gserviceaccount.com")]
pub struct InvalidEmail(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emails_and_unique_ids_have_nothing_else_in_them() {
        let email = |text: &str| text.parse::<AccountEmail>().map(String::from);
        for good in ["a@b", "A.z-0_+@b.c", &format!("a@{}", "x".repeat(252))] {
            assert_eq!(email(good).as_deref(), Ok(good));
            assert_eq!(good.parse().map(|email: AccountEmail| email.to_string()).as_deref(), Ok(good));
        }
        for bad in ["", "a", "@", "a@", "@b", "a@b@c", "a b@c", "a@b c", "\u{e9}@b", &format!("a@{}", "x".repeat(253))]
        {
            assert!(email(bad).is_err(), "{bad:?}");
        }
        let id = |text: &str| text.parse::<UniqueId>().map(String::from);
        for good in ["1", &"1".repeat(30)] {
            assert_eq!(id(good).as_deref(), Ok(good));
        }
        for bad in ["", "1a", &"1".repeat(31)] {
            assert!(id(bad).is_err(), "{bad:?}");
        }
    }
}
