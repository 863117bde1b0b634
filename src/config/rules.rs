//! `[[account]]` and `[[allow]]`.

use std::collections::BTreeMap;
use std::fs;

use toml::Spanned;

use super::file::{Account as WrittenAccount, Allow, Claim, Executable as WrittenExecutable, Principal, Source};
use super::{ConfigError, gid, uid};
use crate::access::{Account, AccountEmail, ClaimPattern, Executable, Glob, JUDGED_CLAIMS, Operation, Rule};
use crate::key::from_hexadecimal;

/// Every account, in the order in which they are written. There may be none yet: then nobody is served.
pub(super) fn accounts(source: Source<'_>, written: Vec<WrittenAccount>) -> Result<Vec<Account>, ConfigError> {
    let mut accounts: Vec<Account> = Vec::new();
    for account in written {
        let email = account.email.get_ref().clone();
        if accounts.iter().any(|other| other.email == email) {
            let what = format!("{email} stands here twice");
            return Err(source.wrong(account.email.span(), "account.email", what, "remove one of the two"));
        }
        if let Some(default) = account.default.as_ref().filter(|default| *default.get_ref())
            && let Some(other) = accounts.iter().find(|other| other.default)
        {
            let what = format!("{} is the default account already", other.email);
            return Err(source.wrong(default.span(), "account.default", what, "leave it at one account"));
        }
        if let Some(id) = account.unique_id.as_ref()
            && let Some(other) = accounts.iter().find(|other| other.unique_id.as_ref() == Some(id.get_ref()))
        {
            let what = format!("it is {}'s already", other.email);
            return Err(source.wrong(id.span(), "account.unique_id", what, "leave it at the account whose it is"));
        }
        let default = account.default.is_some_and(Spanned::into_inner);
        let unique_id = account.unique_id.map(Spanned::into_inner);
        accounts.push(Account { email, project_id: account.project_id, unique_id, default });
    }
    Ok(accounts)
}

/// Every rule, in the order in which they are written.
pub(super) fn compile(source: Source<'_>, accounts: &[Account], written: Vec<Allow>) -> Result<Vec<Rule>, ConfigError> {
    written.into_iter().map(|allow| Scope { source, accounts }.rule(allow)).collect()
}

#[derive(Clone, Copy)]
struct Scope<'a> {
    source: Source<'a>,
    accounts: &'a [Account],
}

impl Scope<'_> {
    fn rule(self, written: Allow) -> Result<Rule, ConfigError> {
        if written.users.is_none() && written.groups.is_none() && written.units.is_none() {
            // Whoever runs a program decides what it does.
            let remedy = "name at least one user, group or unit: nothing is allowed to everybody, whatever they run";
            return Err(self.source.wrong(written.accounts.span(), "allow", "it names nobody", remedy));
        }
        let operations = written.operations.span();
        let rule = Rule {
            users: self.people("allow.users", written.users, uid)?,
            groups: self.people("allow.groups", written.groups, gid)?,
            units: self.globs("allow.units", written.units)?,
            executables: written.executables.map(|executables| self.executables(executables)).transpose()?,
            accounts: self.known_accounts(written.accounts)?,
            operations: self.not_empty("allow.operations", written.operations)?,
            audiences: self.globs("allow.audiences", written.audiences)?,
            scopes: self.globs("allow.scopes", written.scopes)?,
            claims: written.claims.map(|claims| self.claims(claims)).transpose()?,
            blob_prefixes: written.blob_prefixes.map(|prefixes| self.prefixes(prefixes)).transpose()?,
            max_lifetime: written.max_lifetime.map(|span| span.0),
            rate: written.rate.map(|rate| rate.0),
        };
        if rule.limits_contents() && rule.operations.contains(&Operation::SignDigest) {
            let what = "sign-digest is never allowed by a rule that limits what is signed";
            let remedy =
                "remove it, or give it a rule of its own without limits: it is as much as all operations together";
            return Err(self.source.wrong(operations, "allow.operations", what, remedy));
        }
        Ok(rule)
    }

    fn people(
        self,
        field: &str,
        written: Option<Spanned<Vec<Spanned<Principal>>>>,
        id: fn(Source<'_>, &str, &Spanned<Principal>) -> Result<u32, ConfigError>,
    ) -> Result<Option<Vec<u32>>, ConfigError> {
        let Some(written) = written else { return Ok(None) };
        let people = self.not_empty(field, written)?;
        people.iter().map(|one| id(self.source, field, one)).collect::<Result<_, _>>().map(Some)
    }

    fn executables(self, written: Spanned<Vec<Spanned<WrittenExecutable>>>) -> Result<Vec<Executable>, ConfigError> {
        let compile = |executable: Spanned<WrittenExecutable>| {
            let place = executable.span();
            let WrittenExecutable { path, sha256 } = executable.into_inner();
            let wrong = |what: String, remedy: &str| self.source.wrong(place, "allow.executables", what, remedy);
            if !path.is_absolute() {
                return Err(wrong(format!("{} is not absolute", path.display()), "give the whole path"));
            }
            let sha256 = match sha256.as_deref().map(|hash| (hash, from_hexadecimal(hash))) {
                Some((hash, None)) => {
                    return Err(wrong(format!("{hash:?} is no SHA-256"), "write the 64 digits that sha256sum prints"));
                }
                hash => hash.and_then(|(_, bytes)| bytes),
            };
            // The kernel tells paths without links. What is not there yet may come.
            let path = fs::canonicalize(&path).unwrap_or(path);
            Ok(Executable { path, sha256 })
        };
        self.not_empty("allow.executables", written)?.into_iter().map(compile).collect()
    }

    fn known_accounts(self, written: Spanned<Vec<Spanned<AccountEmail>>>) -> Result<Vec<AccountEmail>, ConfigError> {
        let known = |email: Spanned<AccountEmail>| {
            if self.accounts.iter().any(|account| account.email == *email.get_ref()) {
                return Ok(email.into_inner());
            }
            let what = format!("there is no account {}", email.get_ref());
            Err(self.source.wrong(email.span(), "allow.accounts", what, "correct it, or add an [[account]] for it"))
        };
        self.not_empty("allow.accounts", written)?.into_iter().map(known).collect()
    }

    fn claims(
        self,
        written: Spanned<BTreeMap<String, Vec<Claim>>>,
    ) -> Result<Vec<(String, Vec<ClaimPattern>)>, ConfigError> {
        let place = written.span();
        let wrong = |what: String, remedy: &str| self.source.wrong(place.clone(), "allow.claims", what, remedy);
        if let Some(ruled) = written.get_ref().keys().find(|name| JUDGED_CLAIMS.contains(&name.as_str())) {
            let remedy = "use audiences, scopes and max_lifetime; iss, sub and email are always the account's own";
            return Err(wrong(format!("the claim {ruled:?} is not ruled here"), remedy));
        }
        if let Some((name, _)) = written.get_ref().iter().find(|(_, globs)| globs.is_empty()) {
            return Err(wrong(format!("the list of {name:?} is empty"), EMPTY));
        }
        // An empty table is no mistake: it allows no claims but those that are ruled elsewhere.
        let pattern = |claim| match claim {
            Claim::Text(pattern) => ClaimPattern::Text(Glob::new(&pattern)),
            Claim::Truth(value) => ClaimPattern::Json(value.to_string()),
            Claim::Number(value) => ClaimPattern::Json(value.to_string()),
        };
        let compile = |(name, any): (String, Vec<Claim>)| (name, any.into_iter().map(pattern).collect());
        Ok(written.into_inner().into_iter().map(compile).collect())
    }

    fn prefixes(self, written: Spanned<Vec<String>>) -> Result<Vec<Vec<u8>>, ConfigError> {
        let place = written.span();
        let prefixes = self.not_empty("allow.blob_prefixes", written)?;
        if prefixes.iter().any(String::is_empty) {
            let remedy = "remove it; without blob_prefixes every blob is allowed that is no JWT";
            return Err(self.source.wrong(
                place,
                "allow.blob_prefixes",
                "every blob begins with an empty prefix",
                remedy,
            ));
        }
        Ok(prefixes.into_iter().map(String::into_bytes).collect())
    }

    fn globs(self, field: &str, written: Option<Spanned<Vec<String>>>) -> Result<Option<Vec<Glob>>, ConfigError> {
        written.map(|written| self.not_empty(field, written).map(|globs| compile_globs(&globs))).transpose()
    }

    fn not_empty<T>(self, field: &str, written: Spanned<Vec<T>>) -> Result<Vec<T>, ConfigError> {
        if written.get_ref().is_empty() {
            return Err(self.source.wrong(written.span(), field, "the list is empty", EMPTY));
        }
        Ok(written.into_inner())
    }
}

fn compile_globs(patterns: &[String]) -> Vec<Glob> {
    patterns.iter().map(|pattern| Glob::new(pattern)).collect()
}

const EMPTY: &str = "name at least one, or remove it";
