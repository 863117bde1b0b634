//! Other rules and keys, while requests are on their way: these keep what they began with.

use std::sync::Arc;

use tokio::sync::watch;

use super::rate::Rules;
use super::{Key, LiveKeyring, Signer, Source, Trouble};
use crate::access::Policy;

impl Signer {
    /// The keyring as it is now.
    #[must_use]
    pub fn keyring(&self) -> Arc<LiveKeyring> {
        self.keyring.load_full()
    }

    /// Is told whenever rules or keys change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Takes another policy; requests on their way keep the old one.
    pub fn set_policy(&self, policy: Policy) {
        let rules = Rules::following(policy, &self.rules.load());
        self.rules.store(Arc::new(rules));
        self.forget();
        self.changes.send_replace(());
    }

    /// Takes another keyring; requests on their way keep the old one.
    pub fn set_keyring(&self, keyring: LiveKeyring) {
        keyring.follow(&self.keyring.load());
        self.keyring.store(Arc::new(keyring));
        self.forget();
        self.changes.send_replace(());
    }

    /// Takes note of which configuration is in force.
    pub fn set_source(&self, source: Source) {
        self.source.store(Arc::new(source));
    }

    /// Takes note of what keeps HTTP from being served.
    pub fn set_http_trouble(&self, trouble: Option<Trouble>) {
        self.http_trouble.store(Arc::new(trouble));
    }

    /// Forgets cached JWTs of accounts that are gone and of keys that have gone or have a newer one beside them, which is
    /// to sign from now on. Each request for one is judged anew in any case.
    fn forget(&self) {
        let (rules, keyring) = (self.rules.load(), self.keyring.load());
        let signs = |key: &Key| {
            let mut of_account = keyring.keys().iter().filter(|other| other.account() == key.account());
            // The newest active one stands first.
            of_account.next().is_some_and(|newest| newest.is_active() && newest.is_same(key))
        };
        self.cache.retain(|minted| rules.policy.account(minted.key.account()).is_some() && signs(&minted.key));
    }
}
