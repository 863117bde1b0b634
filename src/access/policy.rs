//! The rules, and the one function that makes a [`Permit`].

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Account, AccountEmail, Caller};

/// What a caller may be allowed to do with an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Sign bytes that are no JWT.
    SignBlob,
    /// Sign a digest, of whatever: nobody can look inside.
    SignDigest,
    /// Sign claims of the caller's as a JWT.
    SignJwt,
    /// Mint a JWT access token.
    MintAccessToken,
    /// Mint a self-signed ID token.
    MintIdToken,
}

/// What is asked for: everything that a rule can look at.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The account; it need not exist.
    pub account: &'a AccountEmail,
    /// The operation.
    pub operation: Operation,
    /// Every audience that the result would carry: `aud` (each element) and `target_audience`.
    pub audiences: Vec<&'a str>,
    /// Every scope that the result would carry, split at white space.
    pub scopes: Vec<&'a str>,
    /// Every other claim with the caller's value, as JSON text (a string without its quotes).
    pub claims: Vec<(&'a str, String)>,
    /// The blob, where one is to be signed as such.
    pub blob: Option<&'a [u8]>,
    /// The lifetime that the result would have, where the caller chose one.
    pub lifetime: Option<Duration>,
}

/// One `[[allow]]` rule, compiled. `None` means that this condition is not set; all that are set must hold.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    /// Any of these users.
    pub users: Option<Vec<u32>>,
    /// Any of these groups.
    pub groups: Option<Vec<u32>>,
    /// Any of these accounts; never empty.
    pub accounts: Vec<AccountEmail>,
    /// Any of these operations; never empty.
    pub operations: Vec<Operation>,
    /// Audiences that a JWT may carry.
    pub audiences: Option<Vec<Glob>>,
    /// Scopes that a JWT may carry.
    pub scopes: Option<Vec<Glob>>,
    /// Other claims that a JWT may carry, with their values.
    pub claims: Option<Vec<(String, Vec<Glob>)>>,
    /// What a blob must begin with.
    pub blob_prefixes: Option<Vec<Vec<u8>>>,
    /// The longest lifetime of a JWT.
    pub max_lifetime: Option<Duration>,
}

/// Proof that a caller may do one thing with one account. Only [`Policy::authorize`] makes it.
#[derive(Clone, Debug)]
pub struct Permit {
    account: Arc<Account>,
    operation: Operation,
    lifetime: Lifetime,
    rule: usize,
}

/// How long what is minted may live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// What the caller asked for, allowed.
    pub requested: Option<Duration>,
    /// The rule's limit.
    pub limit: Option<Duration>,
}

/// Why a request was denied: for the audit log and `policy explain`, never for the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Denied {
    /// What no rule allowed.
    pub reason: String,
}

/// All accounts and rules.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    accounts: Vec<Arc<Account>>,
    rules: Vec<Rule>,
}

/// A pattern in which `*` stands for any run of characters, none included; every other character for itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Glob(String);

impl Policy {
    /// Takes the configured accounts and compiled rules.
    #[must_use]
    pub fn new(accounts: Vec<Account>, rules: Vec<Rule>) -> Self {
        Self { accounts: accounts.into_iter().map(Arc::new).collect(), rules }
    }

    /// Every rule; a [`Permit`] tells its number, counted from 1.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The account of this email, where configured.
    #[must_use]
    pub fn account(&self, email: &AccountEmail) -> Option<&Arc<Account>> {
        self.accounts.iter().find(|account| account.email == *email)
    }

    /// The default account: the one marked so, or the only one.
    #[must_use]
    pub fn default_account(&self) -> Option<&Arc<Account>> {
        match self.accounts.as_slice() {
            [only] => Some(only),
            accounts => accounts.iter().find(|account| account.default),
        }
    }

    /// Every account.
    #[must_use]
    pub fn accounts(&self) -> &[Arc<Account>] {
        &self.accounts
    }

    /// Decides. The first rule that allows the whole request makes the permit.
    ///
    /// # Errors
    /// [`Denied`], alike for an account that is not allowed and one that does not exist.
    pub fn authorize(&self, caller: &Caller, request: &Request<'_>) -> Result<Permit, Denied> {
        let _ = (caller, request);
        Err(Denied { reason: "stub".to_owned() })
    }

    /// Whether a caller may do anything at all with an account: what GetAccount asks.
    #[must_use]
    pub fn knows(&self, caller: &Caller, account: &AccountEmail) -> bool {
        let _ = (caller, account);
        false
    }
}

impl Permit {
    /// The account.
    #[must_use]
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// The operation.
    #[must_use]
    pub const fn operation(&self) -> Operation {
        self.operation
    }

    /// How long what is minted may live.
    #[must_use]
    pub const fn lifetime(&self) -> Lifetime {
        self.lifetime
    }

    /// The number of the rule that allowed it, counted from 1, as `policy explain` and the audit log tell it.
    #[must_use]
    pub const fn rule(&self) -> usize {
        self.rule
    }
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 5] =
        [Self::SignBlob, Self::SignDigest, Self::SignJwt, Self::MintAccessToken, Self::MintIdToken];

    /// Its name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SignBlob => "sign-blob",
            Self::SignDigest => "sign-digest",
            Self::SignJwt => "sign-jwt",
            Self::MintAccessToken => "mint-access-token",
            Self::MintIdToken => "mint-id-token",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Operation {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|operation| operation.name() == name)
            .ok_or_else(|| format!("unknown operation {name:?}; known are {}", Self::ALL.map(Self::name).join(", ")))
    }
}

impl Glob {
    /// Takes a pattern.
    #[must_use]
    pub fn new(pattern: &str) -> Self {
        Self(pattern.to_owned())
    }

    /// Whether the whole text matches.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let _ = text;
        false
    }
}
