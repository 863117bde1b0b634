//! A device that signetctl has open. Nobody can end a call that hangs in a module or a driver. So calls are made by a thread of
//! their own, and a command that has waited for long enough goes on without it: to say so, and end.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use crate::ctl::Global;
use crate::ctl::failure::{Exit, Failure, explained};
use crate::device::{
    self, CreatedKey, Description, DeviceConfig, DeviceError, DeviceKind, ListedKey, NewKey, PrivateKey, Provision,
};
use crate::key::{Algorithm, Digest, KeyLocator, PublicKey, Signature};

/// A device, and the thread that owns it. Dropping it has the device closed: a token is logged out of, a TPM holds nothing
/// for us any more.
pub(crate) struct OpenDevice {
    patience: Patience,
    /// None when it is being closed.
    calls: Option<Sender<Call>>,
    closed: Receiver<()>,
    /// It did not answer within so long, and is asked nothing more.
    silent: Option<Duration>,
}

type Call = Box<dyn FnOnce(&mut dyn Provision) + Send>;

impl OpenDevice {
    /// Opens a device for provisioning. The outer error: it did not answer.
    pub(super) fn open(
        global: &Global,
        device: &DeviceConfig,
        persistent: Option<bool>,
    ) -> Result<Result<Self, DeviceError>, Failure> {
        let (config, doing) = (device.clone(), format!("Opening the device {}", device.name));
        let open = move || device::provision(&config, persistent).map(|device| (device, ()));
        Ok(Self::start(Patience::with(global, device), device.call_limit, &doing, open)?.map(|(opened, ())| opened))
    }

    /// Opens a TPM and takes a key that another tool made for it.
    pub(crate) fn adopt(
        global: &Global,
        device: &DeviceConfig,
        persistent: Option<bool>,
        pem: String,
    ) -> Result<Result<(Self, CreatedKey), DeviceError>, Failure> {
        let patience = Patience::with(global, device);
        let (config, limit) = (device.clone(), patience.several());
        let open = move || device::adopt(&config, persistent, &pem);
        Self::start(patience, limit, "Loading the key into the TPM", open)
            .map_err(|silence| Leftover::in_device(device, "").told_with(silence))
    }

    fn start<T: Send + 'static>(
        patience: Patience,
        limit: Duration,
        doing: &str,
        open: impl FnOnce() -> Result<(Box<dyn Provision>, T), DeviceError> + Send + 'static,
    ) -> Result<Result<(Self, T), DeviceError>, Failure> {
        let (tell, told) = mpsc::channel();
        let (calls, todo) = mpsc::channel::<Call>();
        let (close, closed) = mpsc::channel();
        thread::spawn(move || {
            // The last to be dropped, after the device.
            let _close: Sender<()> = close;
            let mut device = match open() {
                Ok((device, with)) => {
                    let _ = tell.send(Ok(with));
                    device
                }
                Err(error) => return drop(tell.send(Err(error))),
            };
            todo.into_iter().for_each(|call| call(&mut *device));
        });
        let answer = patience.wait(&told, limit, doing)?;
        Ok(answer.map(|with| (Self { patience, calls: Some(calls), closed, silent: None }, with)))
    }

    pub(crate) fn public_key(&mut self, key: &KeyLocator) -> Result<PublicKey, Failure> {
        let key = key.clone();
        self.ask(self.patience.one(), "Looking for the key", move |device| device.public_key(&key))
    }

    pub(crate) fn sign(
        &mut self,
        key: &KeyLocator,
        algorithm: Algorithm,
        digest: &Digest,
    ) -> Result<Signature, Failure> {
        let (key, digest) = (key.clone(), *digest);
        self.ask(self.patience.one(), "Signing the certificate in the device", move |device| {
            device.sign(&key, algorithm, &digest)
        })
    }

    pub(crate) fn generate(&mut self, key: NewKey) -> Result<CreatedKey, Failure> {
        let doing = "Generating the key in the device; some take minutes";
        let leftover = Leftover::in_device(&self.patience.device, &key.label);
        let limit = self.patience.one().max(GENERATING);
        self.ask(limit, doing, move |device| device.generate(&key)).map_err(|failure| self.left(failure, &leftover))
    }

    pub(crate) fn import(&mut self, key: PrivateKey, label: &str) -> Result<CreatedKey, Failure> {
        let doing = "Importing the key into the device";
        let leftover = Leftover::in_device(&self.patience.device, label);
        let label = label.to_owned();
        self.ask(self.patience.several(), doing, move |device| device.import(&key, &label))
            .map_err(|failure| self.left(failure, &leftover))
    }

    pub(crate) fn list(&mut self) -> Result<Vec<ListedKey>, Failure> {
        self.ask(self.patience.several(), "Listing the keys in the device", |device| device.list())
    }

    pub(crate) fn delete(&mut self, key: &KeyLocator) -> Result<(), Failure> {
        let key = key.clone();
        self.ask(self.patience.one(), "Deleting the key in the device", move |device| device.delete(&key))
    }

    pub(crate) fn describe(&mut self) -> Result<Description, Failure> {
        self.ask(self.patience.one(), "Looking at the device", |device| device.describe())
    }

    /// Whether it left a call unanswered, so that nobody knows what became of it.
    pub(crate) fn is_silent(&self) -> bool {
        self.silent.is_some()
    }

    fn ask<T: Send + 'static>(
        &mut self,
        limit: Duration,
        doing: &str,
        call: impl FnOnce(&mut dyn Provision) -> Result<T, DeviceError> + Send + 'static,
    ) -> Result<T, Failure> {
        if let Some(limit) = self.silent {
            return Err(self.patience.in_vain(limit));
        }
        let (tell, told) = mpsc::channel();
        if let Some(calls) = &self.calls {
            // Where its thread has died, nothing is told.
            let _ = calls.send(Box::new(move |device| drop(tell.send(call(device)))));
        }
        let answer = self.patience.wait(&told, limit, doing).inspect_err(|_silence| self.silent = Some(limit))?;
        answer.map_err(|error| explained(error, &self.patience.device.name))
    }

    /// Says what may be left where it is not known what became of a call.
    fn left(&self, failure: Failure, leftover: &Leftover) -> Failure {
        if self.is_silent() { leftover.told_with(failure) } else { failure }
    }
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        drop(self.calls.take());
        if !self.is_silent() {
            let _ = self.closed.recv_timeout(self.patience.one());
        }
    }
}

/// How long is waited for a device.
pub(super) struct Patience {
    global: Global,
    device: DeviceConfig,
}

impl Patience {
    pub(super) fn with(global: &Global, device: &DeviceConfig) -> Self {
        Self { global: global.clone(), device: device.clone() }
    }

    /// For a single call, or the few that it takes to open a device.
    fn one(&self) -> Duration {
        self.device.call_limit
    }

    /// For what is many calls, or writes much into the device.
    pub(super) fn several(&self) -> Duration {
        self.one().max(SEVERAL)
    }

    /// Waits for what a thread tells that has the device do something.
    pub(super) fn wait<T>(&self, told: &Receiver<T>, limit: Duration, doing: &str) -> Result<T, Failure> {
        let progress = self.global.progress(doing);
        let told = match told.recv_timeout(limit.min(UNTOLD)) {
            Err(RecvTimeoutError::Timeout) if limit > UNTOLD => {
                let name = &self.device.name;
                progress.insist(format!("{doing}: still waiting for the device {name}, for {limit:?} at most"));
                told.recv_timeout(limit - UNTOLD)
            }
            told => told,
        };
        told.map_err(|ended| match ended {
            RecvTimeoutError::Timeout => self.in_vain(limit),
            RecvTimeoutError::Disconnected => {
                Failure::new(format!("device {}: what used it crashed", self.device.name))
            }
        })
    }

    fn in_vain(&self, limit: Duration) -> Failure {
        Failure::with(Exit::Unavailable, format!("device {}: it has not answered for {limit:?}", self.device.name))
            .hint(format!("{LOOK_AT_IT} call_limit says how long a call may take"))
    }
}

/// A key that may be in a device though nobody recorded it.
#[derive(Clone)]
pub(crate) struct Leftover {
    place: String,
    /// How it is found and removed.
    pub(crate) remedy: String,
}

impl Leftover {
    /// A key that was to be made under a label.
    pub(crate) fn in_device(device: &DeviceConfig, label: &str) -> Self {
        let name = &device.name;
        let (place, remove) = match &device.kind {
            DeviceKind::Pkcs11(_) => (format!("{name} under the label {label}"), "pkcs11-tool --delete-object --id ID"),
            DeviceKind::Tpm(_) => (format!("a persistent handle of {name}"), "tpm2_evictcontrol -c HANDLE"),
        };
        let look = format!("when it answers again, signetctl --json key list --device {name}");
        Self { place, remedy: format!("{look} tells of keys that are not in the keyring; {remove} removes one") }
    }

    /// Adds to a failure what may be left, and how to find it.
    #[must_use]
    pub(crate) fn told_with(&self, failure: Failure) -> Failure {
        failure.aftermath(format!("a key may be left in {}", self.place)).hint(&self.remedy)
    }
}

/// After so long a person is told what is waited for.
const UNTOLD: Duration = Duration::from_secs(5);
const SEVERAL: Duration = Duration::from_secs(60);
/// A TPM or a smart card may look for the primes of an RSA key of 4096 bits for minutes.
const GENERATING: Duration = Duration::from_secs(600);
const LOOK_AT_IT: &str = "look at the device: is its program stopped, is it plugged in?";

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::device::{Device, TpmConfig, TpmSession};

    /// Never answers.
    struct Stuck;

    fn hang() -> ! {
        loop {
            thread::park();
        }
    }

    impl Device for Stuck {
        fn public_key(&mut self, _: &KeyLocator) -> Result<PublicKey, DeviceError> {
            hang()
        }

        fn sign(&mut self, _: &KeyLocator, _: Algorithm, _: &Digest) -> Result<Signature, DeviceError> {
            hang()
        }
    }

    impl Provision for Stuck {
        fn generate(&mut self, _: &NewKey) -> Result<CreatedKey, DeviceError> {
            hang()
        }

        fn import(&mut self, _: &PrivateKey, _: &str) -> Result<CreatedKey, DeviceError> {
            hang()
        }

        fn list(&mut self) -> Result<Vec<ListedKey>, DeviceError> {
            hang()
        }

        fn delete(&mut self, _: &KeyLocator) -> Result<(), DeviceError> {
            hang()
        }

        fn describe(&mut self) -> Result<Description, DeviceError> {
            hang()
        }
    }

    #[test]
    fn a_device_that_left_a_call_unanswered_is_asked_nothing_more() {
        let tpm = TpmConfig {
            tcti: String::new(),
            pin_file: None,
            owner_auth_file: None,
            session: TpmSession::Plain,
            parent: None,
        };
        let device = DeviceConfig {
            name: "tpm".parse().unwrap(),
            kind: DeviceKind::Tpm(tpm),
            call_limit: Duration::from_millis(20),
            queue: 1,
            latch_file: PathBuf::new(),
            sandbox: true,
        };
        let color = clap::ColorChoice::Never;
        let global = Global { config: PathBuf::new(), socket: None, json: false, quiet: true, color };
        let patience = Patience::with(&global, &device);
        let started = OpenDevice::start(patience, GENERATING, "", || Ok((Box::new(Stuck), ())));
        let (mut opened, ()) = started.unwrap().unwrap();
        assert!(opened.public_key(&KeyLocator::Handle(1)).unwrap_err().to_string().contains("not answered for 20ms"));
        // Each of these would be waited for for minutes.
        assert!(opened.list().unwrap_err().to_string().contains("not answered for 20ms"));
        let key = NewKey { label: String::new(), algorithm: Algorithm::Rs256, bits: 2048 };
        let left = opened.generate(key).unwrap_err();
        assert!(left.to_string().contains("a key may be left in a persistent handle of tpm"), "{left}");
        assert!(left.remedy().unwrap().contains("key list --device tpm"));
    }
}
