//! `signetctl status`: how the daemon, the devices and the keys are.

use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::json;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::device::{CONFIGURED, place, state};
use super::failure::{Exit, Failure};
use super::{Global, client, date, key, table};
use crate::access::AccountEmail;
use crate::config::Config;
use crate::device::DeviceConfig;
use crate::keyring::{KeyState, Keyring};

pub(crate) fn run(global: &Global) -> Result<(), Failure> {
    let socket = global.socket()?;
    let daemon = daemon(&socket);
    let (config, keyring) = match global.load().and_then(|config| {
        let keyring = Keyring::load(&config.state_dir)?;
        Ok((config, keyring))
    }) {
        Ok((config, keyring)) => (Some(config), keyring),
        Err(failure) => {
            global.note(format!("Devices and keys are not shown: {failure}"));
            (None, Keyring::default())
        }
    };
    let state = match &daemon {
        Ok(true) => "serving".to_owned(),
        Ok(false) => "up, but no account can sign now".to_owned(),
        Err(failure) => failure.to_string(),
    };
    let (mut text, mut json) = (vec![format!("signetd at {}: {state}", socket.display())], json!({}));
    if let Some(config) = &config {
        // Nothing can sign: neither can the devices of the keys that should.
        let away = matches!(daemon, Ok(false));
        json = described(config, &keyring, away);
        text.push(devices(config, &keyring, away));
        text.push(keys(config, &keyring, matches!(daemon, Ok(true))));
    }
    if let Some(json) = json.as_object_mut() {
        json.insert("healthy".to_owned(), matches!(daemon, Ok(true)).into());
        json.insert("daemon".to_owned(), json!({ "socket": socket, "state": state }));
    }
    global.show(&json, text.join("\n\n"))?;
    match daemon {
        Ok(true) => Ok(()),
        Ok(false) => {
            Err(Failure::with(Exit::Unavailable, "signetd can't sign for any account now").hint("signetctl doctor"))
        }
        Err(failure) => Err(failure),
    }
}

/// Whether the daemon says that it can sign.
pub(super) fn daemon(socket: &Path) -> Result<bool, Failure> {
    client::block_on(async {
        let mut client = HealthClient::new(client::connect(socket).await?);
        let answer = client.check(HealthCheckRequest { service: String::new() }).await;
        let answer = answer.map_err(|status| client::explained(&status, socket))?.into_inner();
        Ok(answer.status() == ServingStatus::Serving)
    })
}

/// What is worth knowing about when a key's certificate ends.
pub(super) fn expiry_note(config: &Config, kid: &crate::key::KeyId) -> (String, bool) {
    let Some(expires) = key::expiry(config, kid) else {
        return ("no certificate".to_owned(), true);
    };
    let soon = expires < SystemTime::now() + SOON;
    (format!("{}{}", date(expires), if soon { " (soon)" } else { "" }), soon)
}

/// A device's state as its files tell it, or as the daemon does.
fn known(device: &DeviceConfig, keyring: &Keyring, away: bool) -> &'static str {
    let has_active_key = || keyring.keys.iter().any(|key| key.device == device.name && key.state == KeyState::Active);
    match state(device) {
        CONFIGURED if away && has_active_key() => "away: signetctl doctor",
        state => state,
    }
}

fn devices(config: &Config, keyring: &Keyring, away: bool) -> String {
    let mut rows = vec![["DEVICE", "KIND", "WHERE", "STATE"].map(str::to_owned).to_vec()];
    for device in &config.devices {
        let (kind, place) = place(device);
        rows.push([device.name.as_str(), kind, &place, known(device, keyring, away)].map(str::to_owned).to_vec());
    }
    table(&rows)
}

fn keys(config: &Config, keyring: &Keyring, serving: bool) -> String {
    let mut rows = vec![["ACCOUNT", "KID", "DEVICE", "STATE", "CERTIFICATE EXPIRES"].map(str::to_owned).to_vec()];
    for account in config.policy.accounts() {
        let mut of_account = keyring.keys.iter().filter(|key| key.account == account.email).peekable();
        if of_account.peek().is_none() {
            rows.push([account.email.as_str(), "no key: signetctl key generate"].map(str::to_owned).to_vec());
        }
        let signing = keyring.active(&account.email).first().map(|key| key.kid.clone());
        for key in of_account {
            let state = match key.state {
                KeyState::Active if serving && signing.as_ref() == Some(&key.kid) => "active, signs",
                KeyState::Active => "active",
                KeyState::Prepared => "prepared",
                KeyState::Retired => "retired",
            };
            let expires = expiry_note(config, &key.kid).0;
            let cells = [key.account.as_str(), key.kid.as_str(), key.device.as_str(), state, &expires];
            rows.push(cells.map(str::to_owned).to_vec());
        }
    }
    table(&rows)
}

fn described(config: &Config, keyring: &Keyring, away: bool) -> serde_json::Value {
    let devices: Vec<_> = config
        .devices
        .iter()
        .map(|device| json!({ "name": device.name, "kind": place(device).0, "where": place(device).1, "state": known(device, keyring, away) }))
        .collect();
    let keys = |email: &AccountEmail| {
        let of_account = keyring.keys.iter().filter(|key| key.account == *email);
        of_account
            .map(|record| {
                json!({
                    "kid": record.kid, "device": record.device, "state": record.state,
                    "certificate_expires": key::expiry(config, &record.kid).map(date),
                })
            })
            .collect::<Vec<_>>()
    };
    let accounts: Vec<_> = config
        .policy
        .accounts()
        .iter()
        .map(|account| json!({ "email": account.email, "keys": keys(&account.email) }))
        .collect();
    json!({ "devices": devices, "accounts": accounts })
}

/// Time enough to upload a new certificate.
const SOON: Duration = Duration::from_secs(30 * 24 * 60 * 60);
