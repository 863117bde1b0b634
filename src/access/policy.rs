//! The rules, and the one function that makes a [`Permit`].

use std::cmp::Reverse;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Account, AccountEmail, Caller, ClaimValue, Condition, Rule, Sought};

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
    /// Every other claim of the caller's.
    pub claims: Vec<(&'a str, ClaimValue)>,
    /// The blob, where one is to be signed as such.
    pub blob: Option<&'a [u8]>,
    /// The lifetime that the result would have, where the caller chose one.
    pub lifetime: Option<Duration>,
}

impl<'a> Request<'a> {
    /// A request for an operation alone, with nothing in it that a rule could limit.
    #[must_use]
    pub const fn new(account: &'a AccountEmail, operation: Operation) -> Self {
        Self {
            account,
            operation,
            audiences: Vec::new(),
            scopes: Vec::new(),
            claims: Vec::new(),
            blob: None,
            lifetime: None,
        }
    }
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

/// A request was denied. Its text is all that a caller may be told, and alike for every denial.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no rule allows it")]
pub struct Denied {
    /// How near the rules came, for the audit log and the operator. It holds nothing of the request.
    pub reason: String,
}

/// All accounts and rules.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    accounts: Vec<Arc<Account>>,
    rules: Vec<Rule>,
}

/// The accounts that a caller may do anything with.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    /// All of them, in the order of the configuration.
    pub all: Vec<Arc<Account>>,
    /// The one that the caller means by naming none: the default account, or the only one.
    pub default: Option<Arc<Account>>,
}

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

    /// Whether a rule allows anybody to have digests signed with this account, and so whatever he likes.
    #[must_use]
    pub fn signs_digests(&self, account: &AccountEmail) -> bool {
        self.rules
            .iter()
            .any(|rule| rule.operations.contains(&Operation::SignDigest) && rule.accounts.contains(account))
    }

    /// Whether a rule is for this very user, and not only for those of a group or a unit.
    #[must_use]
    pub fn names(&self, uid: u32) -> bool {
        self.rules.iter().filter_map(|rule| rule.users.as_ref()).any(|users| users.contains(&uid))
    }

    /// What the rules ask of callers beyond their ids.
    #[must_use]
    pub fn sought(&self) -> Sought {
        Sought {
            unit: self.rules.iter().any(|rule| rule.units.is_some()),
            executables: self.rules.iter().filter_map(|rule| rule.executables.as_ref()).flatten().cloned().collect(),
        }
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

    /// Decides. The first rule that allows the whole request makes the permit; its rate is for whoever signs to keep.
    ///
    /// # Errors
    /// [`Denied`], alike for an account that is not allowed and one that does not exist.
    pub fn authorize(&self, caller: &Caller, request: &Request<'_>) -> Result<Permit, Denied> {
        let allowing = self.rules.iter().position(|rule| rule.check(caller, request).is_ok());
        let (Some(account), Some(index)) = (self.account(request.account), allowing) else {
            return Err(self.denied(caller, request));
        };
        let limit = self.rules.get(index).and_then(|rule| rule.max_lifetime);
        let lifetime = Lifetime { requested: request.lifetime, limit };
        Ok(Permit { account: Arc::clone(account), operation: request.operation, lifetime, rule: index + 1 })
    }

    /// Whether a caller may do anything at all with an account: what GetAccount asks.
    #[must_use]
    pub fn knows(&self, caller: &Caller, account: &AccountEmail) -> bool {
        let concerns = |rule: &Rule| rule.check_parties(caller, account).is_ok() && !rule.operations.is_empty();
        self.account(account).is_some() && self.rules.iter().any(concerns)
    }

    /// The accounts that a caller may do anything with.
    #[must_use]
    pub fn accounts_of(&self, caller: &Caller) -> Accounts {
        let all: Vec<_> = self.accounts.iter().filter(|account| self.knows(caller, &account.email)).cloned().collect();
        let default = self.default_account().filter(|default| all.contains(default)).or(match all.as_slice() {
            [only] => Some(only),
            _ => None,
        });
        Accounts { default: default.cloned(), all }
    }

    /// What each rule says to a request, in their order: it matches, or the first condition that does not hold.
    #[must_use]
    pub fn explain(&self, caller: &Caller, request: &Request<'_>) -> Vec<Result<(), Condition>> {
        self.rules.iter().map(|rule| rule.check(caller, request)).collect()
    }

    fn denied(&self, caller: &Caller, request: &Request<'_>) -> Denied {
        let failures = self.explain(caller, request).into_iter().enumerate();
        let nearest = failures
            .filter_map(|(index, said)| Some((said.err()?, index + 1)))
            .filter(|(condition, _)| *condition > Condition::Accounts)
            .max_by_key(|(condition, rule)| (*condition, Reverse(*rule)));
        let reason = match nearest {
            Some((condition, rule)) => format!("rule {rule} comes nearest: {condition}"),
            None => "no rule is for this caller and this account".to_owned(),
        };
        Denied { reason }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{ClaimPattern, Executable, Glob};
    use super::*;

    const ALICE: u32 = 1000;
    const BOB: u32 = 1001;

    fn email(text: &str) -> AccountEmail {
        text.parse().unwrap()
    }

    fn account(text: &str) -> Account {
        Account { email: email(text), project_id: None, unique_id: None, default: false }
    }

    fn caller(uid: u32) -> Caller {
        Caller::new(uid, uid, vec![uid + 100])
    }

    fn request(account: &AccountEmail, operation: Operation) -> Request<'_> {
        Request::new(account, operation)
    }

    fn globs(patterns: &[&str]) -> Option<Vec<Glob>> {
        Some(patterns.iter().map(|pattern| Glob::new(pattern)).collect())
    }

    /// A rule that allows everything with a@x to everybody.
    fn open_rule() -> Rule {
        Rule { accounts: vec![email("a@x")], operations: Operation::ALL.to_vec(), ..Rule::default() }
    }

    fn check(rule: Rule, caller: &Caller, request: &Request<'_>) -> Result<(), Condition> {
        let policy = Policy::new(vec![account("a@x"), account("b@x")], vec![rule]);
        let said = policy.explain(caller, request).remove(0);
        assert_eq!(policy.authorize(caller, request).is_ok(), said.is_ok());
        said
    }

    #[test]
    fn nothing_is_allowed_without_a_rule_not_even_to_root() {
        let policy = Policy::new(vec![account("a@x")], vec![]);
        for operation in Operation::ALL {
            assert!(policy.authorize(&caller(0), &request(&email("a@x"), operation)).is_err());
        }
        let rule = Rule { users: Some(vec![ALICE]), ..open_rule() };
        assert_eq!(check(rule, &caller(0), &request(&email("a@x"), Operation::SignBlob)), Err(Condition::Users));
    }

    #[test]
    fn the_default_account_of_a_caller_is_the_default_one_or_the_only_one() {
        let to = |uid: u32, emails: &[&str]| Rule {
            users: Some(vec![uid]),
            accounts: emails.iter().map(|text| email(text)).collect(),
            ..open_rule()
        };
        let accounts = vec![account("a@x"), Account { default: true, ..account("b@x") }, account("c@x")];
        let policy = Policy::new(accounts, vec![to(1, &["a@x", "b@x"]), to(2, &["a@x", "c@x"]), to(3, &["c@x"])]);
        for (uid, all, default) in [
            (1, ["a@x", "b@x"].as_slice(), Some("b@x")),
            (2, &["a@x", "c@x"], None),
            (3, &["c@x"], Some("c@x")),
            (4, &[], None),
        ] {
            let of = policy.accounts_of(&caller(uid));
            assert_eq!(of.all.iter().map(|account| account.email.as_str()).collect::<Vec<_>>(), all, "{uid}");
            assert_eq!(of.default.as_ref().map(|account| account.email.as_str()), default, "{uid}");
        }
    }

    #[test]
    fn what_others_ask_of_a_policy_is_what_stands_in_it() {
        let rules = vec![
            Rule { groups: Some(vec![ALICE]), operations: vec![Operation::SignBlob], ..open_rule() },
            Rule { users: Some(vec![BOB]), accounts: vec![email("b@x")], ..open_rule() },
        ];
        let policy = Policy::new(vec![account("a@x"), account("b@x")], rules.clone());
        assert_eq!(policy.rules(), rules);
        let accounts: Vec<_> = policy.accounts().iter().map(|account| account.email.as_str()).collect();
        assert_eq!(accounts, ["a@x", "b@x"]);
        assert!(policy.names(BOB) && !policy.names(ALICE), "a group's rule is not for this very user");
        assert!(policy.signs_digests(&email("b@x")) && !policy.signs_digests(&email("a@x")));
        for operation in Operation::ALL {
            assert_eq!(serde_json::to_value(operation).unwrap(), operation.name());
            assert_eq!(operation.to_string().parse(), Ok(operation));
        }
    }

    #[test]
    fn users_and_groups_must_both_hold() {
        let a = email("a@x");
        let request = request(&a, Operation::SignBlob);
        let users = Rule { users: Some(vec![ALICE]), ..open_rule() };
        assert_eq!(check(users.clone(), &caller(ALICE), &request), Ok(()));
        assert_eq!(check(users.clone(), &caller(BOB), &request), Err(Condition::Users));
        for gid in [ALICE, ALICE + 100] {
            let groups = Rule { groups: Some(vec![gid]), ..open_rule() };
            assert_eq!(check(groups.clone(), &caller(ALICE), &request), Ok(()));
            assert_eq!(check(groups, &caller(BOB), &request), Err(Condition::Groups));
        }
        let both = Rule { groups: Some(vec![BOB]), ..users };
        assert_eq!(check(both, &caller(ALICE), &request), Err(Condition::Groups));
        let nobody = Rule { users: Some(vec![]), ..open_rule() };
        assert_eq!(check(nobody, &caller(ALICE), &request), Err(Condition::Users));
    }

    #[test]
    fn a_unit_must_match_and_be_known() {
        let a = email("a@x");
        let request = request(&a, Operation::SignBlob);
        let of = |unit: Option<&str>| Caller { unit: unit.map(str::to_owned), ..caller(ALICE) };
        let rule = Rule { units: globs(&["app.service", "batch@*.service"]), ..open_rule() };
        for unit in ["app.service", "batch@7.service"] {
            assert_eq!(check(rule.clone(), &of(Some(unit)), &request), Ok(()), "{unit}");
        }
        for unit in [None, Some("other.service"), Some("app.service.d"), Some("xapp.service"), Some("")] {
            assert_eq!(check(rule.clone(), &of(unit), &request), Err(Condition::Units), "{unit:?}");
        }
        let any = Rule { units: globs(&["*"]), ..open_rule() };
        assert_eq!(check(any.clone(), &of(None), &request), Err(Condition::Units), "an unknown unit is none");
        let users_too = Rule { users: Some(vec![BOB]), ..any };
        assert_eq!(check(users_too, &of(Some("app.service")), &request), Err(Condition::Users));
        assert_eq!(check(open_rule(), &of(None), &request), Ok(()));
    }

    #[test]
    fn an_executable_must_be_the_one_named_with_the_contents_named() {
        let a = email("a@x");
        let request = request(&a, Operation::SignBlob);
        let executable = |path: &str, sha256| Executable { path: path.into(), sha256 };
        let running = |executable| Caller { executable, ..caller(ALICE) };
        let rule = |executables| Rule { executables: Some(executables), ..open_rule() };
        let (app, right, wrong) = ("/usr/bin/app", Some([1; 32]), Some([2; 32]));
        for (wanted, own, expected) in [
            (executable(app, None), Some(executable(app, None)), true),
            (executable(app, None), Some(executable(app, right)), true),
            (executable(app, right), Some(executable(app, right)), true),
            (executable(app, right), Some(executable(app, wrong)), false),
            (executable(app, right), Some(executable(app, None)), false),
            (executable(app, right), Some(executable("/usr/bin/other", right)), false),
            (executable(app, None), Some(executable("/usr/bin/app2", None)), false),
            (executable(app, None), Some(executable("/usr/bin/app (deleted)", None)), false),
            (executable(app, None), None, false),
        ] {
            let expected = if expected { Ok(()) } else { Err(Condition::Executables) };
            assert_eq!(
                check(rule(vec![wanted.clone()]), &running(own.clone()), &request),
                expected,
                "{wanted:?} {own:?}"
            );
        }
        let either = rule(vec![executable("/usr/bin/other", None), executable(app, right)]);
        assert_eq!(check(either, &running(Some(executable(app, right))), &request), Ok(()));
        assert_eq!(check(open_rule(), &running(None), &request), Ok(()));
    }

    #[test]
    fn only_what_some_rule_asks_for_is_sought() {
        let sought = |rules| Policy::new(vec![], rules).sought();
        assert_eq!(sought(vec![open_rule()]), Sought::default());
        let units = Rule { units: globs(&["*"]), ..open_rule() };
        assert_eq!(sought(vec![open_rule(), units.clone()]), Sought { unit: true, ..Sought::default() });
        let executable = |path: &str, sha256| Executable { path: path.into(), sha256 };
        let executables = vec![executable("/a", None), executable("/b", Some([0; 32]))];
        let naming = Rule { executables: Some(executables.clone()), ..open_rule() };
        assert_eq!(sought(vec![units, naming]), Sought { unit: true, executables });
    }

    #[test]
    fn accounts_and_operations_are_those_named() {
        let rule = Rule { operations: vec![Operation::SignBlob], ..open_rule() };
        assert_eq!(check(rule.clone(), &caller(ALICE), &request(&email("a@x"), Operation::SignBlob)), Ok(()));
        for other in Operation::ALL.into_iter().filter(|other| *other != Operation::SignBlob) {
            let said = check(rule.clone(), &caller(ALICE), &request(&email("a@x"), other));
            assert_eq!(said, Err(Condition::Operations), "{other}");
        }
        let said = check(rule, &caller(ALICE), &request(&email("b@x"), Operation::SignBlob));
        assert_eq!(said, Err(Condition::Accounts));
    }

    #[test]
    fn every_audience_and_every_scope_must_match_and_one_must_be_there() {
        let a = email("a@x");
        let jwt = |audiences: &[&'static str], scopes: &[&'static str]| Request {
            audiences: audiences.to_vec(),
            scopes: scopes.to_vec(),
            ..request(&a, Operation::SignJwt)
        };
        let audiences = Rule { audiences: globs(&["https://*.example/", "exact"]), ..open_rule() };
        let said = |rule: &Rule, request: &Request<'_>| check(rule.clone(), &caller(ALICE), request);
        assert_eq!(said(&audiences, &jwt(&["https://a.example/", "exact"], &[])), Ok(()));
        assert_eq!(said(&audiences, &jwt(&["exact", "other"], &[])), Err(Condition::Audiences));
        assert_eq!(said(&audiences, &jwt(&[], &[])), Err(Condition::Target));
        assert_eq!(said(&audiences, &jwt(&["exact"], &["s"])), Err(Condition::Scopes));
        assert_eq!(said(&audiences, &jwt(&[], &["s"])), Err(Condition::Scopes));
        let scopes = Rule { scopes: globs(&["s*"]), ..open_rule() };
        assert_eq!(said(&scopes, &jwt(&[], &["s1", "s2"])), Ok(()));
        assert_eq!(said(&scopes, &jwt(&[], &["s1", "t"])), Err(Condition::Scopes));
        assert_eq!(said(&scopes, &jwt(&["exact"], &["s1"])), Err(Condition::Audiences));
        let both = Rule { scopes: globs(&["s*"]), ..audiences };
        assert_eq!(said(&both, &jwt(&["exact"], &[])), Ok(()));
        assert_eq!(said(&both, &jwt(&["exact"], &["s1"])), Ok(()));
        assert_eq!(said(&open_rule(), &jwt(&[], &[])), Ok(()));
        assert_eq!(said(&open_rule(), &jwt(&["any"], &["any"])), Ok(()));
    }

    #[test]
    fn other_claims_are_those_named() {
        let a = email("a@x");
        let jwt = |claims: &[(&'static str, &str)]| Request {
            claims: claims.iter().map(|(name, value)| (*name, ClaimValue::Text((*value).to_owned()))).collect(),
            ..request(&a, Operation::SignJwt)
        };
        let readers = vec![ClaimPattern::Text(Glob::new("read*"))];
        let rule = Rule { claims: Some(vec![("role".to_owned(), readers)]), ..open_rule() };
        assert_eq!(check(rule.clone(), &caller(ALICE), &jwt(&[("role", "reader")])), Ok(()));
        assert_eq!(check(rule.clone(), &caller(ALICE), &jwt(&[])), Ok(()));
        assert_eq!(check(rule.clone(), &caller(ALICE), &jwt(&[("role", "admin")])), Err(Condition::Claims));
        let more = jwt(&[("role", "reader"), ("extra", "1")]);
        assert_eq!(check(rule, &caller(ALICE), &more), Err(Condition::Claims));
        assert_eq!(check(open_rule(), &caller(ALICE), &more), Ok(()));
    }

    #[test]
    fn a_claim_of_another_type_is_another_value() {
        let a = email("a@x");
        let jwt = |value| Request { claims: vec![("admin", value)], ..request(&a, Operation::SignJwt) };
        let rule = |pattern| Rule { claims: Some(vec![("admin".to_owned(), vec![pattern])]), ..open_rule() };
        let (text, json) = (|| ClaimValue::Text("false".to_owned()), || ClaimValue::Json("false".to_owned()));
        let anything = || rule(ClaimPattern::Text(Glob::new("*")));
        assert_eq!(check(anything(), &caller(ALICE), &jwt(text())), Ok(()));
        assert_eq!(check(anything(), &caller(ALICE), &jwt(json())), Err(Condition::Claims));
        let exactly = || rule(ClaimPattern::Json("false".to_owned()));
        assert_eq!(check(exactly(), &caller(ALICE), &jwt(json())), Ok(()));
        assert_eq!(check(exactly(), &caller(ALICE), &jwt(text())), Err(Condition::Claims));
        assert_eq!(check(exactly(), &caller(ALICE), &jwt(ClaimValue::Json("true".to_owned()))), Err(Condition::Claims));
    }

    #[test]
    fn a_blob_must_begin_with_a_prefix_where_there_are_any() {
        let a = email("a@x");
        let blob = |blob| Request { blob: Some(blob), ..request(&a, Operation::SignBlob) };
        let rule = Rule { blob_prefixes: Some(vec![b"GOOG4-RSA-SHA256\n".to_vec()]), ..open_rule() };
        assert_eq!(check(rule.clone(), &caller(ALICE), &blob(b"GOOG4-RSA-SHA256\n2026")), Ok(()));
        assert_eq!(check(rule.clone(), &caller(ALICE), &blob(b"GOOG4-RSA-SHA256 2026")), Err(Condition::BlobPrefixes));
        assert_eq!(check(rule, &caller(ALICE), &blob(b"")), Err(Condition::BlobPrefixes));
        assert_eq!(check(open_rule(), &caller(ALICE), &blob(b"")), Ok(()));
    }

    #[test]
    fn a_digest_is_allowed_by_no_rule_that_limits_contents() {
        let a = email("a@x");
        let digest = request(&a, Operation::SignDigest);
        assert_eq!(check(open_rule(), &caller(ALICE), &digest), Ok(()));
        let limited = [
            Rule { audiences: globs(&["*"]), ..open_rule() },
            Rule { scopes: globs(&["*"]), ..open_rule() },
            Rule { claims: Some(vec![]), ..open_rule() },
            Rule { blob_prefixes: Some(vec![vec![]]), ..open_rule() },
            Rule { max_lifetime: Some(Duration::MAX), ..open_rule() },
        ];
        for rule in limited {
            assert_eq!(check(rule, &caller(ALICE), &digest), Err(Condition::Digest));
        }
    }

    #[test]
    fn a_lifetime_beyond_the_limit_is_denied_and_none_is_left_to_be_capped() {
        let minute = Duration::from_secs(60);
        let rule = Rule { max_lifetime: Some(minute), ..open_rule() };
        let a = email("a@x");
        for operation in [Operation::SignJwt, Operation::MintAccessToken, Operation::MintIdToken] {
            let lasting = |lifetime| Request { lifetime, ..request(&a, operation) };
            let said = |lifetime| check(rule.clone(), &caller(ALICE), &lasting(lifetime));
            assert_eq!(said(Some(minute)), Ok(()));
            assert_eq!(said(Some(minute + Duration::from_nanos(1))), Err(Condition::MaxLifetime));
            let policy = Policy::new(vec![account("a@x")], vec![rule.clone()]);
            let permit = policy.authorize(&caller(ALICE), &lasting(None)).unwrap();
            assert_eq!(permit.lifetime(), Lifetime { requested: None, limit: Some(minute) });
            assert_eq!((permit.operation(), permit.rule(), permit.account().email.as_str()), (operation, 1, "a@x"));
        }
    }

    #[test]
    fn one_rule_must_allow_the_whole_request() {
        let a = email("a@x");
        let rules =
            vec![Rule { audiences: globs(&["aud"]), ..open_rule() }, Rule { scopes: globs(&["scope"]), ..open_rule() }];
        let policy = Policy::new(vec![account("a@x")], rules);
        let both = Request { audiences: vec!["aud"], scopes: vec!["scope"], ..request(&a, Operation::MintAccessToken) };
        let denied = policy.authorize(&caller(ALICE), &both).unwrap_err();
        assert_eq!(denied.reason, "rule 1 comes nearest: a scope matches none of its scopes");
        for (rule, audiences, scopes) in [(1, vec!["aud"], vec![]), (2, vec![], vec!["scope"])] {
            let one = Request { audiences, scopes, ..both.clone() };
            assert_eq!(policy.authorize(&caller(ALICE), &one).unwrap().rule(), rule);
        }
    }

    #[test]
    fn unknown_and_forbidden_accounts_are_denied_alike() {
        let rule = Rule { users: Some(vec![ALICE]), ..open_rule() };
        let policy = Policy::new(vec![account("a@x"), account("b@x")], vec![rule]);
        for operation in Operation::ALL {
            let denied = |email: &AccountEmail| policy.authorize(&caller(ALICE), &request(email, operation)).err();
            let reason = "no rule is for this caller and this account".to_owned();
            assert_eq!(denied(&email("b@x")), Some(Denied { reason }));
            assert_eq!(denied(&email("b@x")), denied(&email("no@x")));
        }
        assert!(policy.knows(&caller(ALICE), &email("a@x")));
        for unknown in ["b@x", "no@x"] {
            assert!(!policy.knows(&caller(ALICE), &email(unknown)));
        }
        assert!(!policy.knows(&caller(BOB), &email("a@x")));
        let unconfigured = Policy::new(vec![], vec![open_rule()]);
        assert!(!unconfigured.knows(&caller(ALICE), &email("a@x")));
        assert!(unconfigured.authorize(&caller(ALICE), &request(&email("a@x"), Operation::SignBlob)).is_err());
        let texts: Vec<_> = [&policy, &unconfigured]
            .map(|policy| policy.authorize(&caller(BOB), &request(&email("a@x"), Operation::SignBlob)))
            .map(|denied| denied.unwrap_err().to_string())
            .to_vec();
        assert_eq!(texts[0], texts[1]);
    }

    fn any_globs() -> impl Strategy<Value = Option<Vec<Glob>>> {
        proptest::option::of(proptest::collection::vec("[ab*]{0,3}".prop_map(|pattern| Glob::new(&pattern)), 0..3))
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let parties = (
            proptest::option::of(proptest::collection::vec(ALICE..BOB + 1, 0..2)),
            proptest::option::of(proptest::collection::vec(ALICE..BOB + 1, 0..2)),
            any_globs(),
            proptest::sample::subsequence(vec![email("a@x"), email("b@x"), email("c@x")], 1..=3),
            proptest::sample::subsequence(Operation::ALL.to_vec(), 1..=5),
        );
        let contents = (
            any_globs(),
            any_globs(),
            proptest::option::of(proptest::collection::vec(("[ab]", any_globs()), 0..2)),
            proptest::option::of(proptest::collection::vec(proptest::collection::vec(0..2_u8, 0..2), 0..2)),
            proptest::option::of((0..3_u64).prop_map(Duration::from_secs)),
        );
        (parties, contents).prop_map(|((users, groups, units, accounts, operations), contents)| {
            let (audiences, scopes, claims, blob_prefixes, max_lifetime) = contents;
            let claims = claims.map(|claims| {
                claims.into_iter().map(|(name, globs)| (name, texts(globs.unwrap_or_default()))).collect()
            });
            let rule = Rule { users, groups, units, accounts, operations, ..Rule::default() };
            Rule { audiences, scopes, claims, blob_prefixes, max_lifetime, ..rule }
        })
    }

    fn texts(globs: Vec<Glob>) -> Vec<ClaimPattern> {
        globs.into_iter().map(ClaimPattern::Text).collect()
    }

    type AnyRequest = (AccountEmail, Operation, Vec<String>, Vec<String>, Vec<(String, String)>, Vec<u8>, Option<u64>);

    fn any_request() -> impl Strategy<Value = AnyRequest> {
        (
            proptest::sample::select(vec![email("a@x"), email("b@x"), email("c@x")]),
            proptest::sample::select(Operation::ALL.to_vec()),
            proptest::collection::vec("[ab]{0,2}", 0..3),
            proptest::collection::vec("[ab]{0,2}", 0..3),
            proptest::collection::vec(("[ab]", "[ab]{0,2}"), 0..3),
            proptest::collection::vec(0..2_u8, 0..3),
            proptest::option::of(0..4_u64),
        )
    }

    fn borrowed(request: &AnyRequest) -> Request<'_> {
        let (account, operation, audiences, scopes, claims, blob, lifetime) = request;
        Request {
            account,
            operation: *operation,
            audiences: audiences.iter().map(String::as_str).collect(),
            scopes: scopes.iter().map(String::as_str).collect(),
            claims: claims.iter().map(|(name, value)| (name.as_str(), ClaimValue::Text(value.clone()))).collect(),
            blob: Some(blob),
            lifetime: lifetime.map(Duration::from_secs),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        /// c@x is not configured, so that rules and requests for it are tried too.
        #[test]
        fn rules_only_add_and_never_combine(
            rules in proptest::collection::vec(any_rule(), 0..4),
            more in any_rule(),
            place in 0..4_usize,
            request in any_request(),
            uid in ALICE..BOB + 1,
            unit in proptest::option::of("[ab]{0,2}"),
        ) {
            let caller = Caller { unit, ..caller(uid) };
            let accounts = || vec![account("a@x"), account("b@x")];
            let allowed = |rules: Vec<Rule>| {
                Policy::new(accounts(), rules).authorize(&caller, &borrowed(&request)).is_ok()
            };
            let alone = rules.iter().any(|rule| allowed(vec![rule.clone()]));
            let together = allowed(rules.clone());
            prop_assert_eq!(alone, together);
            let mut added = rules.clone();
            added.insert(place.min(rules.len()), more);
            prop_assert!(!together || allowed(added));
            if together {
                prop_assert!(Policy::new(accounts(), rules).knows(&caller, &request.0));
            }
        }
    }
}
