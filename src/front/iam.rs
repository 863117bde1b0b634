//! What Google's IAM Service Account Credentials API says alike over gRPC and over REST: resource names, and errors.

use crate::access::{AccountEmail, UniqueId};
use crate::signer::SignError;

/// The account of a resource name, for a caller who acts for nobody else.
pub(super) fn account<'a>(name: &'a str, delegates: &[String]) -> Result<&'a str, SignError> {
    if !delegates.is_empty() {
        return Err(SignError::invalid("delegates", "nobody can act for somebody else here: leave them out"));
    }
    let account = name.strip_prefix("projects/-/serviceAccounts/");
    account.filter(|account| account.parse::<AccountEmail>().is_ok() || account.parse::<UniqueId>().is_ok()).ok_or_else(
        || SignError::invalid("name", "write projects/-/serviceAccounts/ and the account's email or unique id"),
    )
}

/// Fields by the names that they have in this service.
pub(super) fn in_googles_words(error: SignError) -> SignError {
    let SignError::Invalid { field, problem } = error else { return error };
    let field = match field {
        "scopes" => "scope",
        "claims" => "payload",
        other => other,
    };
    SignError::Invalid { field, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_of_any_project_and_an_account() {
        let named = |name: &str| account(name, &[]).map(str::to_owned).map_err(|error| error.to_string());
        assert_eq!(named("projects/-/serviceAccounts/a@p.example"), Ok("a@p.example".to_owned()));
        assert_eq!(named("projects/-/serviceAccounts/104"), Ok("104".to_owned()));
        for name in [
            "",
            "a@p.example",
            "projects/p/serviceAccounts/a@p.example",
            "projects/-/serviceAccounts/",
            "projects/-/serviceAccounts/default",
            "projects/-/serviceAccounts/a@p.example/keys/1",
            "projects/-/serviceAccounts/-",
            "/projects/-/serviceAccounts/a@p.example",
        ] {
            assert!(named(name).is_err_and(|error| error.starts_with("name: ")), "{name}");
        }
        let delegated = account("projects/-/serviceAccounts/a@p.example", &["x".to_owned()]).unwrap_err();
        assert!(delegated.to_string().starts_with("delegates: "));
    }
}
