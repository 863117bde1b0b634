//! Claims: a JSON object that every parser reads alike.

use std::time::SystemTime;

use crate::access::AccountEmail;

/// The claims of a caller: one JSON object, within the limits, without a duplicate member at any depth.
#[derive(Clone, Debug)]
pub struct Claims {
    members: Vec<(String, serde_json::Value)>,
}

impl Claims {
    /// Parses what a caller sent.
    ///
    /// # Errors
    /// [`InvalidClaims`] says what is wrong with it, never what stands in it.
    pub fn parse(text: &str) -> Result<Self, InvalidClaims> {
        let _ = text;
        Err(InvalidClaims("stub".to_owned()))
    }

    /// The members, in their order.
    #[must_use]
    pub fn members(&self) -> &[(String, serde_json::Value)] {
        &self.members
    }

    /// Every audience: `aud`, each element of it, and `target_audience`.
    #[must_use]
    pub fn audiences(&self) -> Vec<&str> {
        Vec::new()
    }

    /// Every scope, split at white space.
    #[must_use]
    pub fn scopes(&self) -> Vec<&str> {
        Vec::new()
    }

    /// Everything but the registered claims that Signet itself judges, as JSON text (a string without its quotes).
    #[must_use]
    pub fn others(&self) -> Vec<(&str, String)> {
        Vec::new()
    }

    /// Makes the claims fit to be signed for an account: `iss`, `sub` and `email` may only be its own; `exp` is added
    /// where absent, and never past nor over 12 hours ahead.
    ///
    /// # Errors
    /// [`InvalidClaims`].
    pub fn for_account(self, account: &AccountEmail, now: SystemTime) -> Result<Self, InvalidClaims> {
        let _ = (account, now);
        Ok(self)
    }
}

/// Why claims are not signed. Names the member, never its value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidClaims(pub String);
