//! `signetctl status`: how the daemon, the devices and the keys are.

use std::borrow::Cow;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::json;
use tonic::Response;

use super::device::{CONFIGURED, place, state};
use super::failure::{Exit, Failure};
use super::{Global, client, date, key, table};
use crate::access::AccountEmail;
use crate::config::Config;
use crate::device::DeviceConfig;
use crate::key::{DeviceName, KeyId, sha256};
use crate::keyring::{KeyState, Keyring};
use crate::proto::signer_client::SignerClient;
use crate::proto::{DeviceState, DeviceStatus, GetStatusRequest, GetStatusResponse};

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
        Ok(told) if told.serving => "serving".to_owned(),
        Ok(told) if told.cause.is_empty() => "up, but no account can sign now".to_owned(),
        Ok(told) => format!("up, but {}; try: {}", told.cause, told.remedy),
        Err(failure) => failure.to_string(),
    };
    let (mut text, mut json) = (vec![format!("signetd at {}: {state}", socket.display())], json!({}));
    let told = daemon.as_ref().ok();
    let difference = told.and_then(|told| match &config {
        Some(config) => difference(config, told).map(|(what, remedy)| (what, remedy.to_owned())),
        None => older(global, told),
    });
    text.extend(difference.as_ref().map(|(what, remedy)| format!("{what}\n  try: {remedy}")));
    let http = told.filter(|told| !told.http_cause.is_empty());
    text.extend(http.map(|told| format!("{}\n  try: {}", told.http_cause, told.http_remedy)));
    if let Some(config) = &config {
        json = described(config, &keyring, told);
        text.push(devices(config, told));
        text.push(keys(config, &keyring, told));
    } else if let Some(told) = told.filter(|told| !told.devices.is_empty()) {
        text.push(told_devices(told));
    }
    let serving = told.is_some_and(|told| told.serving);
    if let Some(json) = json.as_object_mut() {
        json.insert("healthy".to_owned(), serving.into());
        json.insert(
            "daemon".to_owned(),
            json!({
                "socket": socket, "state": state, "runs_other_configuration": difference.map(|(what, _)| what),
                "without_http": http.map(|told| &told.http_cause),
            }),
        );
    }
    global.show(&json, text.join("\n\n"))?;
    daemon?;
    if serving {
        return Ok(());
    }
    Err(Failure::with(Exit::Unavailable, "signetd can't sign for any account now").hint("signetctl doctor"))
}

/// How the daemon says that it and its devices are.
pub(super) fn daemon(socket: &Path) -> Result<GetStatusResponse, Failure> {
    client::block_on(async {
        let mut client = SignerClient::new(client::connect(socket).await?);
        let answer = client.get_status(GetStatusRequest {}).await;
        answer.map(Response::into_inner).map_err(|status| client::explained(&status, socket))
    })
}

/// What signetd runs in place of this configuration as its file is now, and what to do about it. It may not tell us.
pub(super) fn difference(config: &Config, told: &GetStatusResponse) -> Option<(String, &'static str)> {
    let file = config.path.display();
    if told.config_sha256.is_empty() {
        return None;
    }
    if told.config_sha256 != config.sha256 {
        return Some((format!("signetd runs another configuration than {file} as it is now"), RELOAD));
    }
    told.wants_restart.then(|| (format!("signetd runs only that part of {file} that a reload may change"), RESTART))
}

/// What signetd runs in place of a file that can't be used, where the file is not as signetd read it.
pub(super) fn older(global: &Global, told: &GetStatusResponse) -> Option<(String, String)> {
    let failure = global.load().err()?;
    let same = || std::fs::read(&global.config).is_ok_and(|text| sha256(&text) == told.config_sha256);
    if told.config_sha256.is_empty() || global.is_private() || same() {
        return None;
    }
    let remedy = format!("{}; then {RELOAD}", failure.remedy().unwrap_or("mend the file"));
    Some((format!("signetd runs an older configuration, since its file is wrong now: {failure}"), remedy))
}

/// Notes it where signetd runs another configuration than this.
pub(super) fn note_difference(global: &Global, config: &Config) {
    let told = global.socket().and_then(|socket| daemon(&socket));
    if let Some((what, remedy)) = told.ok().and_then(|told| difference(config, &told)) {
        global.note(format!("{what}; try: {remedy}"));
    }
}

/// What is worth knowing about when a key's certificate ends.
pub(super) fn expiry_note(config: &Config, kid: &KeyId) -> (String, bool) {
    let Some(expires) = key::expiry(config, kid) else {
        return ("no certificate".to_owned(), true);
    };
    let soon = expires < SystemTime::now() + SOON;
    (format!("{}{}", date(expires), if soon { " (soon)" } else { "" }), soon)
}

/// A device as the daemon knows it.
fn told_of<'a>(told: Option<&'a GetStatusResponse>, name: &DeviceName) -> Option<&'a DeviceStatus> {
    told?.devices.iter().find(|device| device.name == name.as_str())
}

/// A device's state as its files tell it, or else as the daemon does.
fn known(device: &DeviceConfig, told: Option<&GetStatusResponse>) -> Cow<'static, str> {
    let of_files = state(device);
    let of_daemon = match (&*of_files, told.map(|_| told_of(told, &device.name).map(DeviceStatus::state))) {
        (CONFIGURED, Some(Some(DeviceState::Ready))) => "ready",
        (CONFIGURED, Some(Some(DeviceState::Down))) => "down",
        (CONFIGURED, Some(Some(_))) => "being opened",
        (CONFIGURED, Some(None)) => "unknown to signetd: reload it",
        _ => return of_files,
    };
    of_daemon.into()
}

/// The devices of a daemon whose configuration can't be read.
fn told_devices(told: &GetStatusResponse) -> String {
    let state = |device: &DeviceStatus| match device.state() {
        DeviceState::Ready => "ready".to_owned(),
        DeviceState::Down => format!("down: {}", device.cause),
        _ => "being opened".to_owned(),
    };
    let rows = told.devices.iter().map(|device| vec![device.name.clone(), state(device)]);
    table(&[vec!["DEVICE".to_owned(), "STATE".to_owned()]].into_iter().chain(rows).collect::<Vec<_>>())
}

fn devices(config: &Config, told: Option<&GetStatusResponse>) -> String {
    let mut rows = vec![["DEVICE", "KIND", "WHERE", "STATE"].map(str::to_owned).to_vec()];
    for device in &config.devices {
        let (kind, place) = place(device);
        rows.push([device.name.as_str(), kind, &place, &known(device, told)].map(str::to_owned).to_vec());
    }
    let down = told.into_iter().flat_map(|told| &told.devices).filter(|device| !device.cause.is_empty());
    let causes = down.map(|device| format!("\n{}: {}\n  try: {}", device.name, device.cause, device.remedy));
    table(&rows) + &causes.collect::<String>()
}

fn keys(config: &Config, keyring: &Keyring, told: Option<&GetStatusResponse>) -> String {
    let is_ready = |name: &DeviceName| told_of(told, name).is_some_and(|device| device.state() == DeviceState::Ready);
    let mut rows = vec![["ACCOUNT", "KID", "DEVICE", "STATE", "CERTIFICATE EXPIRES"].map(str::to_owned).to_vec()];
    for account in config.policy.accounts() {
        let mut of_account = keyring.keys.iter().filter(|key| key.account == account.email).peekable();
        if of_account.peek().is_none() {
            rows.push(
                [account.email.as_str(), "no key: signetctl key generate, or key import"].map(str::to_owned).to_vec(),
            );
        }
        let active = keyring.active(&account.email);
        let signing = active.iter().find(|key| is_ready(&key.device)).map(|key| key.kid.clone());
        for key in of_account {
            let state = match key.state {
                KeyState::Active if signing.as_ref() == Some(&key.kid) => "active, signs",
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

fn described(config: &Config, keyring: &Keyring, told: Option<&GetStatusResponse>) -> serde_json::Value {
    let device = |device: &DeviceConfig| {
        let (kind, place) = place(device);
        let trouble = told_of(told, &device.name).filter(|told| !told.cause.is_empty());
        json!({
            "name": device.name, "kind": kind, "where": place, "state": known(device, told),
            "cause": trouble.map(|told| &told.cause), "remedy": trouble.map(|told| &told.remedy),
        })
    };
    let devices: Vec<_> = config.devices.iter().map(device).collect();
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

const RELOAD: &str =
    "signetctl config check, then systemctl reload signetd, or kill -HUP PID; its log tells why it refused a reload";
const RESTART: &str = "systemctl restart signetd, or stop it and start it again";
/// Time enough to upload a new certificate.
const SOON: Duration = Duration::from_secs(30 * 24 * 60 * 60);
