//! `signetctl config`: whether the configuration and the keyring can be used.

use clap::Subcommand;
use serde_json::json;

use super::Global;
use super::device::place;
use super::failure::Failure;
use crate::device::DeviceConfig;
use crate::keyring::Keyring;

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Read the configuration and the keyring as signetd would, and say what is wrong with them
    ///
    /// Run it as the user of signetd, or as root: nobody else can read the keyring.
    #[command(after_help = "Example:\n  signetctl config check && systemctl reload signetd    # or kill -HUP PID")]
    Check,
}

pub(crate) fn run(command: ConfigCommand, global: &Global) -> Result<(), Failure> {
    let ConfigCommand::Check = command;
    let config = global.load()?;
    let keys = Keyring::load(&config.state_dir)?.keys.len();
    let devices: Vec<_> =
        config.devices.iter().map(|device| format!("{} ({})", device.name, place(device).0)).collect();
    let accounts: Vec<_> = config.policy.accounts().iter().map(|account| account.email.to_string()).collect();
    let rules = config.policy.rules().len();
    let absent: Vec<_> =
        config.devices.iter().filter_map(DeviceConfig::pin_file).filter(|file| !file.exists()).collect();
    let json = json!({ "ok": true, "devices": devices, "accounts": accounts, "rules": rules, "keys": keys, "absent_pin_files": absent });
    let list = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let text = format!(
        "{}: sound\ndevices: {}\naccounts: {}\nrules: {rules}\nkeys: {keys}",
        config.path.display(),
        list(&devices),
        list(&accounts)
    );
    global.show(&json, text)?;
    for file in absent {
        global.note(format!("The PIN file {} is absent: its device can't be used.", file.display()));
    }
    if rules == 0 {
        global.note("There is no [[allow]] rule: nobody may do anything.");
    }
    Ok(())
}
