//! Who accounts are and what keys they have: told, and nothing signed.

use std::sync::Arc;
use std::time::SystemTime;

use super::rate::Rules;
use super::{Call, Key, SignError, Signer};
use crate::access::{Account, AccountEmail, Accounts, Caller, Sought, UniqueId};

impl Signer {
    /// Tells who an account is, to whoever may do anything with it, and which key would sign for it now.
    ///
    /// # Errors
    /// [`SignError`].
    pub async fn account(&self, call: Call<'_>) -> Result<(Account, Arc<Key>), SignError> {
        let mut record = self.audit.begin(&call)?;
        let told = self.resolve(call.account).and_then(|email| {
            let Rules { policy, .. } = &**self.rules.load();
            let account = policy.account(&email).filter(|_| policy.knows(call.caller, &email));
            record.told(account.is_some());
            let account = account.ok_or(SignError::Denied)?;
            let key = self.keyring.load().active(&email).into_iter().next().ok_or_else(SignError::no_key)?;
            Ok((account.as_ref().clone(), key))
        });
        record.finish(told).await
    }

    /// Leaves the record of a request that a front refuses by what it alone knows of the caller.
    ///
    /// # Errors
    /// Where it can't be written.
    pub async fn refused(&self, call: Call<'_>, reason: &str) -> Result<(), SignError> {
        let mut record = self.audit.begin(&call)?;
        record.refused(reason);
        match record.finish::<()>(Err(SignError::Denied)).await {
            Err(SignError::Denied) => Ok(()),
            other => other,
        }
    }

    /// Tells which accounts a caller may do anything with.
    ///
    /// # Errors
    /// [`SignError`].
    pub async fn accounts(&self, call: Call<'_>) -> Result<Accounts, SignError> {
        let mut record = self.audit.begin(&call)?;
        let accounts = self.rules.load().policy.accounts_of(call.caller);
        record.told(!accounts.all.is_empty());
        record.finish(Ok(accounts)).await
    }

    /// The account that a caller means by naming none, where there is one. It is for a request that is then judged.
    #[must_use]
    pub fn default_of(&self, caller: &Caller) -> Option<AccountEmail> {
        let accounts = self.rules.load().policy.accounts_of(caller);
        accounts.default.map(|account| account.email.clone())
    }

    /// The account that an empty one in a request means, where there is one.
    #[must_use]
    pub fn default_account(&self) -> Option<AccountEmail> {
        self.rules.load().policy.default_account().map(|account| account.email.clone())
    }

    /// The published keys of an account, the one that signs first. Open to every caller: there is nothing to decide.
    ///
    /// # Errors
    /// [`SignError`].
    pub fn published(&self, account: &str) -> Result<Vec<Arc<Key>>, SignError> {
        let email = self.resolve(account)?;
        self.rules.load().policy.account(&email).ok_or(SignError::Denied)?;
        Ok(self.keyring.load().published(&email, SystemTime::now()))
    }

    /// What has to be known of a caller for the rules in force.
    #[must_use]
    pub fn sought(&self) -> Sought {
        self.rules.load().policy.sought()
    }

    /// Whether a rule names this user.
    #[must_use]
    pub fn names(&self, uid: u32) -> bool {
        self.rules.load().policy.names(uid)
    }

    /// The account that is meant, by its email or unique id; it need not exist.
    pub(super) fn resolve(&self, account: &str) -> Result<AccountEmail, SignError> {
        let rules = self.rules.load();
        if let Ok(id) = account.parse::<UniqueId>() {
            let known = rules.policy.accounts().iter().find(|account| account.unique_id.as_ref() == Some(&id));
            return known.map(|account| account.email.clone()).ok_or(SignError::Denied);
        }
        if !account.is_empty() {
            return account.parse().map_err(|invalid| SignError::invalid("account", invalid));
        }
        let default = rules.policy.default_account().map(|account| account.email.clone());
        default.ok_or_else(|| SignError::invalid("account", "there is no default account: name one"))
    }
}
