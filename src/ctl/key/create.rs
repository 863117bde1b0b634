//! `key generate` and `key import`: the device first, then the certificate, then the keyring. What fails is undone.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{CertificateProfile, account, discard, issue, lock, now, store, upload_command};
use crate::access::AccountEmail;
use crate::config::Config;
use crate::ctl::Global;
use crate::ctl::device::{self, Leftover, OpenDevice};
use crate::ctl::failure::{Failure, explained};
use crate::ctl::import::{self, Material};
use crate::ctl::interrupt::Interrupts;
use crate::device::{CreatedKey, DeviceConfig, DeviceError, DeviceKind, NewKey};
use crate::key::{Algorithm, DeviceName, KeyId, KeyLocator, KeyType};
use crate::keyring::{KeyRecord, KeyState, Keyring};

#[derive(Args, Debug)]
pub(crate) struct GenerateOptions {
    /// The device that makes and keeps the key
    #[arg(long, value_name = "NAME")]
    device: DeviceName,
    /// The account that it signs for; by default the only or default one
    #[arg(long, value_name = "EMAIL")]
    account: Option<AccountEmail>,
    /// What it signs with: RS256 (the only one that Google takes), RS384, RS512, PS256 or ES256
    #[arg(long, default_value = "RS256")]
    algorithm: Algorithm,
    /// The size of an RSA key: 2048, 3072 or 4096
    #[arg(long, default_value_t = 2048, value_parser = bits)]
    bits: u32,
    /// The key's id; by default the JWK thumbprint of its public half
    #[arg(long)]
    kid: Option<KeyId>,
    #[command(flatten)]
    common: CommonOptions,
}

#[derive(Args, Debug)]
pub(crate) struct ImportOptions {
    /// The device that is to keep the key
    #[arg(long, value_name = "NAME")]
    device: DeviceName,
    /// The account that it signs for; by default that of the JSON file, else the only or default one
    #[arg(long, value_name = "EMAIL")]
    account: Option<AccountEmail>,
    /// What it signs with: RS256, RS384, RS512, PS256 or ES256; by default RS256, or ES256 for an EC key
    #[arg(long)]
    algorithm: Option<Algorithm>,
    /// The key's id; by default private_key_id of the JSON file, else the JWK thumbprint of its public half
    #[arg(long)]
    kid: Option<KeyId>,
    /// The file, or - for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    common: CommonOptions,
}

/// What generated and imported keys have in common.
#[derive(Args, Debug)]
struct CommonOptions {
    /// TPM: keep the key in a persistent handle; by default where the kernel's or tabrmd's resource manager is used
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    persistent: Option<bool>,
    #[command(flatten)]
    certificate: CertificateProfile,
}

fn bits(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(bits @ (2048 | 3072 | 4096)) => Ok(bits),
        _ => Err("one of 2048, 3072 and 4096".to_owned()),
    }
}

pub(super) fn generate(options: GenerateOptions, global: &Global, config: &Config) -> Result<(), Failure> {
    let account = account(config, options.account)?;
    let new = NewKey { label: account.to_string(), algorithm: options.algorithm, bits: options.bits };
    let device_config = prepare(global, config, &options.device, &options.common)?;
    let enrolment = Enrolment {
        global,
        config,
        device: device_config,
        account,
        algorithm: Some(options.algorithm),
        kid: options.kid,
        certificate: options.common.certificate,
        uploaded: false,
    };
    let interrupts = Interrupts::hold()?;
    let mut device = device::open(global, config, &options.device, options.common.persistent)?;
    enrolment.run(&interrupts, || {
        let created = device.generate(new)?;
        Ok((device, created))
    })
}

pub(super) fn import(options: ImportOptions, global: &Global, config: &Config) -> Result<(), Failure> {
    let device_config = prepare(global, config, &options.device, &options.common)?;
    let imported = import::read(&options.file)?;
    if let (Some(given), Some(its)) = (&options.account, &imported.account)
        && given != its
    {
        return Err(Failure::usage(format!("the key in {} is {its}'s, not {given}'s", options.file.display()))
            .hint("leave --account away"));
    }
    let account = account(config, options.account.or(imported.account))?;
    let persistent = options.common.persistent;
    let enrolment = Enrolment {
        global,
        config,
        device: device_config,
        account: account.clone(),
        algorithm: options.algorithm,
        uploaded: imported.kid.is_some(),
        kid: options.kid.or(imported.kid),
        certificate: options.common.certificate,
    };
    let interrupts = Interrupts::hold()?;
    match imported.material {
        Material::Private(key) => {
            let expected = key.public_key()?;
            enrolment.algorithm(expected.key_type())?;
            let mut device = device::open(global, config, &options.device, persistent)?;
            enrolment.run(&interrupts, || {
                let created = device.import(key, account.as_str())?;
                if created.public_key == expected {
                    return Ok((device, created));
                }
                let undone = device.delete(&created.locator);
                let left = if undone.is_ok() { "it was removed again" } else { "and it could not be removed again" };
                let error = DeviceError::Integrity(format!("the key in it is not the one of the file; {left}"));
                Err(explained(error, &options.device))
            })
        }
        Material::Tss2(pem) => enrolment.run(&interrupts, || {
            let adopted = OpenDevice::adopt(global, device_config, persistent, pem)?;
            adopted.map_err(|error| match (&error, &device_config.kind) {
                (DeviceError::Unsupported(_), DeviceKind::Tpm(_)) => explained(error, &device_config.name)
                    .hint("a signing key without a policy, and in pin_file its auth value, where it has one; or signetctl key generate"),
                (DeviceError::Unsupported(_), DeviceKind::Pkcs11(_)) => explained(error, &device_config.name)
                    .hint("--device with the TPM that the key was made in: nothing else can read it"),
                _ => explained(error, &device_config.name),
            })
        }),
    }
}

fn prepare<'a>(
    global: &Global,
    config: &'a Config,
    name: &DeviceName,
    options: &CommonOptions,
) -> Result<&'a DeviceConfig, Failure> {
    let device = device::prepare(global, config, name)?;
    match (&device.kind, options.persistent) {
        (DeviceKind::Pkcs11(_), Some(_)) => {
            Err(Failure::usage(format!("{name} is a PKCS#11 token, and its keys are always persistent"))
                .hint("leave --persistent away"))
        }
        _ => Ok(device),
    }
}

/// A key on its way into the keyring.
struct Enrolment<'a> {
    global: &'a Global,
    config: &'a Config,
    device: &'a DeviceConfig,
    account: AccountEmail,
    /// The one asked for; absent: the usual one of the key's type.
    algorithm: Option<Algorithm>,
    kid: Option<KeyId>,
    certificate: CertificateProfile,
    /// Whether Google knows the key already.
    uploaded: bool,
}

impl Enrolment<'_> {
    /// Has the key created, and records it; or removes it again.
    fn run(
        &self,
        interrupts: &Interrupts,
        create: impl FnOnce() -> Result<(OpenDevice, CreatedKey), Failure>,
    ) -> Result<(), Failure> {
        let _lock = lock(self.global, self.config)?;
        let mut keyring = Keyring::load(&self.config.state_dir)?;
        if let Some(kid) = &self.kid {
            ensure_new(&keyring, kid)?;
        }
        interrupts.begin(Leftover::in_device(self.device, self.account.as_str()));
        let (mut device, created) = create()?;
        let recorded = self.record(interrupts, &mut device, &created, &mut keyring);
        let record = recorded.map_err(|failure| self.undo(failure, &mut device, &created))?;
        interrupts.end();
        self.tell(&record)
    }

    /// What a key of this type is to sign with.
    fn algorithm(&self, key_type: KeyType) -> Result<Algorithm, Failure> {
        let default = key_type.default_algorithm();
        match self.algorithm.unwrap_or(default) {
            algorithm if algorithm.key_type() == key_type => Ok(algorithm),
            other => Err(Failure::usage(format!("the key can't sign {other}")).hint(format!("--algorithm {default}"))),
        }
    }

    fn record(
        &self,
        interrupts: &Interrupts,
        device: &mut OpenDevice,
        created: &CreatedKey,
        keyring: &mut Keyring,
    ) -> Result<KeyRecord, Failure> {
        if keyring.keys.iter().any(|key| key.public_key == created.public_key) {
            return Err(Failure::usage("this key is in the keyring already").hint("signetctl key list"));
        }
        let first = !keyring.keys.iter().any(|key| key.account == self.account && key.state != KeyState::Retired);
        let record = KeyRecord {
            kid: self.kid.clone().unwrap_or_else(|| created.public_key.thumbprint()),
            account: self.account.clone(),
            algorithm: self.algorithm(created.public_key.key_type())?,
            device: self.device.name.clone(),
            locator: created.locator.clone(),
            public_key: created.public_key.clone(),
            state: if first { KeyState::Active } else { KeyState::Prepared },
            created: now(),
            activated: first.then(now),
            retired: None,
        };
        ensure_new(keyring, &record.kid)?;
        let pem = issue(device, &record.locator, &record.public_key, record.algorithm, &self.certificate)?;
        let mut write = || {
            store(&self.config.state_dir.certificate(&record.kid), &pem)?;
            if let Some(tss2) = &created.tss2 {
                store(&self.config.state_dir.tss2(&record.kid), tss2)?;
            }
            if interrupts.arrived() {
                return Err(Failure::new("interrupted"));
            }
            keyring.keys.push(record.clone());
            Ok(keyring.save(&self.config.state_dir)?)
        };
        let written: Result<(), Failure> = write();
        if written.is_err() {
            let _ = discard(&self.config.state_dir.certificate(&record.kid));
            let _ = discard(&self.config.state_dir.tss2(&record.kid));
        }
        written.map(|()| record)
    }

    /// Removes a key that could not be recorded, and says so; or says where it was left.
    fn undo(&self, failure: Failure, device: &mut OpenDevice, created: &CreatedKey) -> Failure {
        let name = &self.device.name;
        let place = match &created.locator {
            // It was never kept.
            KeyLocator::Tss2(_) => return failure.aftermath(format!("nothing of the new key is left in {name}")),
            KeyLocator::Pkcs11(uri) => uri.clone(),
            KeyLocator::Handle(handle) => format!("{handle:#x}"),
        };
        match device.delete(&created.locator) {
            Ok(()) => failure.aftermath(format!("the new key was removed from {name} again")),
            Err(error) => failure
                .aftermath(format!("the new key could not be removed ({error}) and is left in {name} as {place}"))
                .hint(Leftover::in_device(self.device, self.account.as_str()).remedy),
        }
    }

    fn tell(&self, record: &KeyRecord) -> Result<(), Failure> {
        let certificate = self.config.state_dir.certificate(&record.kid);
        let upload = upload_command(&certificate, &record.account);
        self.global.show(
            &json!({
                "kid": record.kid, "account": record.account, "algorithm": record.algorithm, "device": record.device,
                "state": record.state, "certificate": certificate, "upload_command": upload,
            }),
            &record.kid,
        )?;
        let state = match record.state {
            KeyState::Active => "active: it signs from now on",
            _ => "prepared: it is published, and signs after signetctl key activate",
        };
        self.global.note(format!("\nThe key is in {}, for {}. It is {state}.", record.device, record.account));
        if record.algorithm == Algorithm::Rs256 && !self.uploaded {
            self.global.note(format!(
                "For Google to know it:\n  {upload}\n  signetctl key rename {} ID_THAT_GOOGLE_GAVE",
                record.kid
            ));
        }
        if record.state == KeyState::Prepared {
            self.global.note(format!("When its verifiers know it:\n  signetctl key activate {}", record.kid));
        }
        Ok(())
    }
}

fn ensure_new(keyring: &Keyring, kid: &KeyId) -> Result<(), Failure> {
    match keyring.key(kid) {
        None => Ok(()),
        Some(key) => Err(Failure::usage(format!("there is a key {kid} already, for {}", key.account))
            .hint("another --kid; or signetctl key delete")),
    }
}
