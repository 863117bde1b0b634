//! One rule: its conditions, and whether they hold.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use super::{AccountEmail, Caller, Executable, Glob, Operation, Request};

/// One `[[allow]]` rule, compiled. `None` means that this condition is not set; all that are set must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Any of these users.
    pub users: Option<Vec<u32>>,
    /// Any of these groups.
    pub groups: Option<Vec<u32>>,
    /// Any of these systemd units.
    pub units: Option<Vec<Glob>>,
    /// Any of these executables.
    pub executables: Option<Vec<Executable>>,
    /// Any of these accounts; never empty.
    pub accounts: Vec<AccountEmail>,
    /// Any of these operations; never empty.
    pub operations: Vec<Operation>,
    /// Audiences that a JWT may carry.
    pub audiences: Option<Vec<Glob>>,
    /// Scopes that a JWT may carry.
    pub scopes: Option<Vec<Glob>>,
    /// Other claims that a JWT may carry, with their values.
    pub claims: Option<Vec<(String, Vec<ClaimPattern>)>>,
    /// What a blob must begin with.
    pub blob_prefixes: Option<Vec<Vec<u8>>>,
    /// The longest lifetime of a JWT.
    pub max_lifetime: Option<Duration>,
    /// How often each user may do what the rule allows. No condition: a permit is made, and then may have to wait.
    pub rate: Option<Rate>,
}

/// A claim's value as a rule sees it. A text is never taken for another type, nor the other way round: `"false"` is true
/// to many who read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimValue {
    /// A JSON string.
    Text(String),
    /// Any other value, as compact JSON.
    Json(String),
}

/// What a claim's value may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimPattern {
    /// A text that matches.
    Text(Glob),
    /// Exactly this value, as compact JSON.
    Json(String),
}

impl ClaimPattern {
    fn matches(&self, value: &ClaimValue) -> bool {
        match (self, value) {
            (Self::Text(glob), ClaimValue::Text(text)) => glob.matches(text),
            (Self::Json(allowed), ClaimValue::Json(json)) => allowed == json,
            _ => false,
        }
    }
}

/// So many in a span of time, and so many at once: `100/s` or `30/m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many: at most a million.
    pub number: NonZeroU32,
    /// In which time.
    pub per: Per,
}

/// The time that a [`Rate`] is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// `s`.
    Second,
    /// `m`.
    Minute,
}

/// A condition of a rule, in the order in which they are looked at: what [`super::Policy::explain`] tells of a rule that
/// does not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// The caller is none of `users`.
    Users,
    /// The caller is in none of `groups`.
    Groups,
    /// The caller's unit matches none of `units`, or is not known.
    Units,
    /// The caller's executable is none of `executables`, or is not known.
    Executables,
    /// The account is none of `accounts`.
    Accounts,
    /// The operation is none of `operations`.
    Operations,
    /// A digest tells nothing of what it is of, so that a rule which limits contents can't allow one.
    Digest,
    /// A JWT under a rule with `audiences` or `scopes` must carry one of either.
    Target,
    /// An audience matches none of `audiences`.
    Audiences,
    /// A scope matches none of `scopes`.
    Scopes,
    /// A claim is not named in `claims`, or its value matches none there.
    Claims,
    /// The blob begins with none of `blob_prefixes`.
    BlobPrefixes,
    /// A longer lifetime than `max_lifetime` was asked for.
    MaxLifetime,
}

impl Rule {
    pub(super) fn check(&self, caller: &Caller, request: &Request<'_>) -> Result<(), Condition> {
        self.check_parties(caller, request.account)?;
        holds(self.operations.contains(&request.operation), Condition::Operations)?;
        match request.operation {
            Operation::SignDigest => holds(!self.limits_contents(), Condition::Digest),
            Operation::SignBlob => self.check_blob(request.blob.unwrap_or_default()),
            Operation::SignJwt | Operation::MintAccessToken | Operation::MintIdToken => self.check_jwt(request),
        }
    }

    pub(super) fn check_parties(&self, caller: &Caller, account: &AccountEmail) -> Result<(), Condition> {
        let users = self.users.as_ref().is_none_or(|users| users.contains(&caller.uid));
        holds(users, Condition::Users)?;
        let groups = self.groups.as_ref().is_none_or(|groups| groups.iter().any(|gid| caller.is_in(*gid)));
        holds(groups, Condition::Groups)?;
        let in_any =
            |units: &Vec<Glob>| caller.unit.as_ref().is_some_and(|unit| units.iter().any(|glob| glob.matches(unit)));
        holds(self.units.as_ref().is_none_or(in_any), Condition::Units)?;
        let runs_any = |executables: &Vec<Executable>| executables.iter().any(|wanted| caller.runs(wanted));
        holds(self.executables.as_ref().is_none_or(runs_any), Condition::Executables)?;
        holds(self.accounts.contains(account), Condition::Accounts)
    }

    /// Whether it limits what is signed: then it never allows a digest, since nobody can see what it is of.
    #[must_use]
    pub const fn limits_contents(&self) -> bool {
        self.audiences.is_some()
            || self.scopes.is_some()
            || self.claims.is_some()
            || self.blob_prefixes.is_some()
            || self.max_lifetime.is_some()
    }

    fn check_blob(&self, blob: &[u8]) -> Result<(), Condition> {
        let begins = |prefixes: &Vec<Vec<u8>>| prefixes.iter().any(|prefix| blob.starts_with(prefix));
        holds(self.blob_prefixes.as_ref().is_none_or(begins), Condition::BlobPrefixes)
    }

    fn check_jwt(&self, request: &Request<'_>) -> Result<(), Condition> {
        if self.audiences.is_some() || self.scopes.is_some() {
            // Without this, a rule for one audience would allow a JWT that names none and is good everywhere.
            holds(!request.audiences.is_empty() || !request.scopes.is_empty(), Condition::Target)?;
            holds(all_match(self.audiences.as_deref(), &request.audiences), Condition::Audiences)?;
            holds(all_match(self.scopes.as_deref(), &request.scopes), Condition::Scopes)?;
        }
        if let Some(allowed) = &self.claims {
            let named = |(name, value): &(&str, ClaimValue)| {
                allowed.iter().any(|(known, any)| known == name && any.iter().any(|pattern| pattern.matches(value)))
            };
            holds(request.claims.iter().all(named), Condition::Claims)?;
        }
        let within = |limit| request.lifetime.is_none_or(|lifetime| lifetime <= limit);
        holds(self.max_lifetime.is_none_or(within), Condition::MaxLifetime)
    }
}

/// Whether every text matches a glob; where there are no globs, no text does.
fn all_match(globs: Option<&[Glob]>, texts: &[&str]) -> bool {
    texts.iter().all(|text| globs.unwrap_or_default().iter().any(|glob| glob.matches(text)))
}

const fn holds(condition: bool, failing: Condition) -> Result<(), Condition> {
    if condition { Ok(()) } else { Err(failing) }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Users => "the caller is none of its users",
            Self::Groups => "the caller is in none of its groups",
            Self::Units => "the caller's unit is none of its units, or not known",
            Self::Executables => "the caller's executable is none of its executables, or not known",
            Self::Accounts => "the account is none of its accounts",
            Self::Operations => "the operation is none of its operations",
            Self::Digest => "it limits what is signed, which a digest does not show",
            Self::Target => "it has audiences or scopes, and the JWT names neither an audience nor a scope",
            Self::Audiences => "an audience matches none of its audiences",
            Self::Scopes => "a scope matches none of its scopes",
            Self::Claims => "a claim is not among its claims, or has another value",
            Self::BlobPrefixes => "the blob begins with none of its blob_prefixes",
            Self::MaxLifetime => "the lifetime is beyond its max_lifetime",
        })
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (number, unit) = text.split_once('/')?;
            let per = match unit {
                "s" => Per::Second,
                "m" => Per::Minute,
                _ => return None,
            };
            let digits = number.bytes().all(|byte| byte.is_ascii_digit());
            let number = number.parse().ok().filter(|number: &NonZeroU32| digits && number.get() <= MOST)?;
            Some(Self { number, per })
        };
        parse().ok_or_else(|| format!(r#"{text:?} is no rate from "1/m" to "{MOST}/s" (s: second, m: minute)"#))
    }
}

const MOST: u32 = 1_000_000;

/// The claims that are judged by name, whatever a rule says of `claims`: other conditions rule them, or nobody chooses them.
pub const JUDGED_CLAIMS: [&str; 10] =
    ["iss", "sub", "email", "aud", "scope", "target_audience", "iat", "exp", "nbf", "jti"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_whole_numbers_a_second_or_a_minute() {
        let rate = |number, per| Rate { number: NonZeroU32::new(number).unwrap(), per };
        assert_eq!("100/s".parse(), Ok(rate(100, Per::Second)));
        assert_eq!("1/m".parse(), Ok(rate(1, Per::Minute)));
        assert_eq!("1000000/s".parse(), Ok(rate(MOST, Per::Second)));
        for bad in
            ["", "/s", "0/s", "1000001/s", "+1/s", "-1/s", "1.5/s", "1/h", "1/", "1", "1 /s", "1/S", "99999999999/s"]
        {
            assert!(bad.parse::<Rate>().unwrap_err().starts_with(&format!("{bad:?} is no rate")), "{bad:?}");
        }
    }
}
