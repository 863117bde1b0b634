//! What would keep a client from using us: its environment, the port, the rules for its user.

use std::collections::BTreeSet;
use std::env;
use std::net::SocketAddr;
use std::time::Duration;

use super::Finding;
use crate::access::{AccountEmail, Operation, Policy};
use crate::config::Config;
use crate::ctl::env::{METADATA, PRECEDING, no_proxy, other_credentials};
use crate::ctl::failure::Failure;
use crate::ctl::{Global, client, policy};
use crate::jwt::Target;
use crate::proto::GetAccountRequest;

/// What answers at the HTTP port, and what in this environment would keep a library from asking there.
pub(super) fn of_http(address: SocketAddr) -> Vec<Finding> {
    let mut findings = vec![of_port(address)];
    findings.extend(of_environment(address, |name| env::var(name).ok()));
    findings.extend(other_credentials().map(|file| {
        Finding::bad(
            format!("{} goes before the metadata server, for every library that this user runs", file.display()),
            "move it away, or set CLOUDSDK_CONFIG to an empty folder",
        )
    }));
    findings
}

/// The same, of the port that this environment names: where no configuration tells which it is.
pub(super) fn of_named() -> Vec<Finding> {
    let named = METADATA.iter().find_map(|name| env::var(name).ok()?.parse().ok());
    named.map(of_http).unwrap_or_default()
}

/// Whether the rules let whoever asks use an account.
pub(super) fn of_caller(global: &Global) -> Finding {
    let request = GetAccountRequest::default();
    match client::call(global, |mut client| async move { client.get_account(request).await }) {
        Ok(account) => Finding::good(format!("you may use the account {}", account.email)),
        Err(failure) if failure.is_refused() => Finding::bad(
            "no rule lets you use the default account, or there is none",
            "ask the operator for an [[allow]] rule; where you use another account, name it: --account EMAIL",
        ),
        Err(failure) => Finding::failed(&failure),
    }
}

fn of_port(address: SocketAddr) -> Finding {
    let asked = client::block_on(async {
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().map_err(Failure::new)?;
        Ok(client.get(format!("http://{address}/healthz")).send().await)
    });
    match asked {
        Ok(Ok(answer)) if answer.headers().get("metadata-flavor").is_some_and(|flavor| flavor == "Google") => {
            Finding::good(format!("signetd serves HTTP at {address}"))
        }
        Ok(Err(error)) if error.is_connect() => Finding::bad(
            format!("nobody answers HTTP at {address}"),
            "start signetd; where listen.http is new in its configuration, restart it",
        ),
        Ok(_) | Err(_) => Finding::bad(
            format!("another program has the port {address}"),
            format!(
                "see which (ss -tlnp 'sport = {}'), and stop it: signetd takes the port; or choose another for listen.http, and restart signetd",
                address.port()
            ),
        ),
    }
}

fn of_environment(address: SocketAddr, variable: impl Fn(&str) -> Option<String>) -> Vec<Finding> {
    let given = |name: &'static str| variable(name).filter(|value| !value.is_empty()).map(|value| (name, value));
    let mut findings = Vec::new();
    for (name, _) in ["GOOGLE_APPLICATION_CREDENTIALS"].iter().chain(PRECEDING).filter_map(|name| given(name)) {
        // One that `signetctl env` wrote is as it should be.
        let ours = |file: String| {
            std::fs::read_to_string(file).is_ok_and(|text| text.contains(&format!("http://{address}/v1/token")))
        };
        if !(name == "GOOGLE_APPLICATION_CREDENTIALS" && variable(name).is_some_and(ours)) {
            findings.push(Finding::bad(format!("{name} is set, and goes before signetd"), format!("unset {name}")));
        }
    }
    for (name, value) in METADATA.iter().filter_map(|name| given(name)) {
        if value != address.to_string() {
            let what = format!("{name} names {value}, and signetd serves HTTP at {address}");
            findings.push(Finding::bad(what, r#"eval "$(signetctl env)""#));
        }
    }
    if let Some(spared) = no_proxy(address, variable) {
        let what = "a proxy of the environment gets what is meant for signetd";
        findings.push(Finding::bad(what, format!("export NO_PROXY={spared} no_proxy={spared}")));
    }
    findings
}

/// Whether a user has a rule, and which of the scopes that Google's libraries ask for by themselves the rules allow.
pub(super) fn of_user(config: &Config, user: &str) -> Result<Vec<Finding>, Failure> {
    let caller = policy::caller(user)?;
    let rules = &config.policy;
    let known: Vec<_> = rules.accounts().iter().filter(|account| rules.knows(&caller, &account.email)).collect();
    if known.is_empty() {
        let what =
            format!("no rule lets {user:?} use any account (rules by unit or executable are not looked at here)");
        let remedy = format!("add an [[allow]] with users = [\"{user}\"] to {}", config.path.display());
        return Ok(vec![Finding::bad(what, remedy)]);
    }
    let allowed = |email: &AccountEmail, scope: &str| {
        let target = Target::Scopes(vec![scope.to_owned()]);
        rules.authorize(&caller, &target.request(email, None)).is_ok()
    };
    let of_account = |email: &AccountEmail| {
        let denied: Vec<_> = SCOPES.iter().filter(|(scope, _)| !allowed(email, scope)).collect();
        if denied.is_empty() {
            let what = format!("{user} gets access tokens of {email} for what Google's libraries ask by themselves");
            return Finding::good(what);
        }
        let whose: BTreeSet<_> = denied.iter().map(|(_, whose)| *whose).collect();
        let whose = whose.into_iter().collect::<Vec<_>>().join(", ");
        let scopes: Vec<_> = denied.iter().map(|(scope, _)| format!("{scope:?}")).collect();
        let what = format!("{user} may use {email}, but {whose} would be denied");
        Finding::bad(what, remedy(rules, email, &scopes.join(", ")))
    };
    Ok(known.into_iter().map(|account| of_account(&account.email)).collect())
}

fn remedy(rules: &Policy, email: &AccountEmail, scopes: &str) -> String {
    let mints = rules
        .rules()
        .iter()
        .any(|rule| rule.accounts.contains(email) && rule.operations.contains(&Operation::MintAccessToken));
    let add = if mints { "add to a rule's scopes" } else { "allow mint-access-token, with the scopes" };
    format!("{add} what they are to have of {scopes}")
}

/// What unmodified clients ask for, and which.
const SCOPES: [(&str, &str); 5] = [
    ("https://www.googleapis.com/auth/cloud-platform", "most libraries (cloud-platform)"),
    ("https://www.googleapis.com/auth/devstorage.full_control", "Cloud Storage's libraries (devstorage.*)"),
    ("https://www.googleapis.com/auth/devstorage.read_only", "Cloud Storage's libraries (devstorage.*)"),
    ("https://www.googleapis.com/auth/devstorage.read_write", "Cloud Storage's libraries (devstorage.*)"),
    ("https://www.googleapis.com/auth/iam", "gcloud's impersonation and Node's storage (iam)"),
];
const PATIENCE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_that_leads_elsewhere_is_told_with_what_mends_it() {
        let address = "127.0.0.1:8980".parse().unwrap();
        let found = |variables: &[(&str, &str)]| {
            let look_up =
                |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
            of_environment(address, look_up).into_iter().map(|finding| finding.remedy.unwrap()).collect::<Vec<_>>()
        };
        assert!(
            found(&[("GCE_METADATA_HOST", "127.0.0.1:8980"), ("NO_GCE_CHECK", ""), ("https_proxy", "p")]).is_empty()
        );
        let folder = tempfile::tempdir().unwrap();
        let ours = folder.path().join("ours.json");
        std::fs::write(&ours, r#"{"token_url":"http://127.0.0.1:8980/v1/token"}"#).unwrap();
        assert!(found(&[("GOOGLE_APPLICATION_CREDENTIALS", ours.to_str().unwrap())]).is_empty());
        for (name, value, remedy) in [
            ("GOOGLE_APPLICATION_CREDENTIALS", "/elsewhere.json", "unset GOOGLE_APPLICATION_CREDENTIALS"),
            ("NO_GCE_CHECK", "true", "unset NO_GCE_CHECK"),
            ("METADATA_SERVER_DETECTION", "none", "unset METADATA_SERVER_DETECTION"),
            ("GCE_METADATA_IP", "169.254.169.254", r#"eval "$(signetctl env)""#),
            ("http_proxy", "http://p:3128", "export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1"),
        ] {
            assert_eq!(found(&[(name, value)]), [remedy], "{name}");
        }
    }
}
