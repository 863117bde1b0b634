//! What is counted, and how it is told (OpenMetrics). No label is a caller's word: operations and outcomes are ours, devices
//! and keys the operator's.

use std::time::{Duration, SystemTime};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::Signer;
use crate::access::Operation;
use crate::device::DeviceError;
use crate::device::handle::Health;
use crate::jwt::certificate::validity;
use crate::key::{DeviceName, Signature};

type Durations<L> = Family<L, Histogram, fn() -> Histogram>;

/// Requests, by what the audit log says of them.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    outcomes: Family<Outcome, Counter>,
    durations: Durations<OfOperation>,
}

/// What devices were asked to sign.
#[derive(Debug)]
pub(super) struct Signatures {
    durations: Durations<OfDevice>,
    faults: Family<Fault, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    operation: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfOperation {
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfDevice {
    device: String,
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Fault {
    device: String,
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Named {
    device: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKey {
    kid: String,
    device: String,
}

impl Requests {
    pub(super) fn new() -> Self {
        Self { outcomes: Family::default(), durations: Family::new_with_constructor(requests) }
    }

    /// One more request; of some the operation was never known.
    pub(super) fn count(&self, operation: Option<&'static str>, outcome: &'static str, latency_us: u64) {
        let operation = operation.unwrap_or("none");
        self.outcomes.get_or_create(&Outcome { operation, outcome }).inc();
        let latency = Duration::from_micros(latency_us).as_secs_f64();
        self.durations.get_or_create(&OfOperation { operation }).observe(latency);
    }

    fn register(&self, registry: &mut Registry) {
        let outcomes = "Requests by operation and outcome: OK, CALLER_GONE, or the reason of the error";
        registry.register("requests", outcomes, self.outcomes.clone());
        let durations = "How long requests took, from their audit record's beginning to its end";
        registry.register_with_unit("request_duration", durations, Unit::Seconds, self.durations.clone());
    }
}

impl Signatures {
    pub(super) fn new() -> Self {
        Self { durations: Family::new_with_constructor(signatures), faults: Family::default() }
    }

    /// One more request to a device, whose queue is part of the time that it took.
    pub(super) fn count(
        &self,
        device: &DeviceName,
        operation: Operation,
        took: Duration,
        signed: &Result<Signature, DeviceError>,
    ) {
        let device = device.to_string();
        match signed {
            Ok(_) => {
                let of = OfDevice { device, operation: operation.name() };
                self.durations.get_or_create(&of).observe(took.as_secs_f64());
            }
            Err(error) => {
                self.faults.get_or_create(&Fault { device, class: error.class() }).inc();
            }
        }
    }

    fn register(&self, registry: &mut Registry) {
        let durations = "How long signatures took, with the time in the device's queue";
        registry.register_with_unit("signature_duration", durations, Unit::Seconds, self.durations.clone());
        registry.register("device_faults", "Signatures that a device did not make, by class", self.faults.clone());
    }
}

impl Signer {
    /// Every metric now, in the text form of OpenMetrics 1.0.
    #[must_use]
    pub fn metrics(&self) -> String {
        let mut registry = Registry::with_prefix("signet");
        self.audit.requests().register(&mut registry);
        self.signatures.register(&mut registry);
        self.register_cache(&mut registry);
        self.register_devices(&mut registry);
        self.register_keys(&mut registry);
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &registry);
        text
    }

    fn register_cache(&self, registry: &mut Registry) {
        let figures = self.cache_figures();
        for (name, help, count) in [
            ("cache_hits", "Requests answered at once with a cached JWT", figures.hits),
            ("cache_misses", "Requests that waited for a signature, their own or another's", figures.misses),
            ("cache_stale", "Requests answered with a JWT that was nearly over, for want of a device", figures.stale),
            ("cache_renewals", "JWTs renewed before anybody waited for them", figures.renewals),
        ] {
            registry.register(name, help, counted(count));
        }
        let entries = Gauge::<i64>::default();
        entries.set(i64::try_from(figures.entries).unwrap_or(i64::MAX));
        registry.register("cache_entries", "JWTs that are kept", entries);
    }

    fn register_devices(&self, registry: &mut Registry) {
        let can_sign = Gauge::<i64>::default();
        can_sign.set(self.can_sign().into());
        registry.register("can_sign", "1 where any account can sign", can_sign);
        let (generations, waiting, up) =
            (Family::<Named, Counter>::default(), Family::<Named, Gauge>::default(), Family::<Named, Gauge>::default());
        for (name, handle) in self.keyring.load().devices() {
            let of = Named { device: name.to_string() };
            let figures = handle.figures();
            generations.get_or_create(&of).inc_by(figures.generations);
            waiting.get_or_create(&of).set(i64::try_from(figures.waiting).unwrap_or(i64::MAX));
            up.get_or_create(&of).set((handle.health() == Health::Ready).into());
        }
        registry.register("device_generations", "Device processes started", generations);
        registry.register("device_queue", "Requests that wait for a device", waiting);
        registry.register("device_up", "1 where a device is open and works", up);
    }

    fn register_keys(&self, registry: &mut Registry) {
        let expiry = Family::<OfKey, Gauge>::default();
        for key in self.keyring.load().keys().iter().filter(|key| key.is_active()) {
            let Some((_, not_after)) = key.certificate().and_then(|pem| validity(pem).ok()) else { continue };
            let seconds = not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            let of = OfKey { kid: key.kid().to_string(), device: key.device().to_string() };
            expiry.get_or_create(&of).set(i64::try_from(seconds).unwrap_or(i64::MAX));
        }
        let help = "When the certificate of an active key expires, in seconds since 1970";
        registry.register_with_unit("key_expiry_timestamp", help, Unit::Seconds, expiry);
    }
}

fn counted(count: u64) -> Counter {
    let counter = Counter::default();
    counter.inc_by(count);
    counter
}

/// From 50 µs, which a cached JWT takes, to 13 s.
fn requests() -> Histogram {
    Histogram::new(exponential_buckets(0.000_05, 4.0, 10))
}

/// From 250 µs to 8 s: software tokens to slow TPMs with a queue.
fn signatures() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 16))
}

#[cfg(test)]
impl Requests {
    pub(super) fn text(&self) -> String {
        let (mut registry, mut text) = (Registry::default(), String::new());
        self.register(&mut registry);
        encode(&mut text, &registry).unwrap();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_device_did_not_sign_is_a_fault_of_its_class() {
        let signatures = Signatures::new();
        let (hsm, took) = ("hsm".parse().unwrap(), Duration::from_millis(3));
        let count = |signed| signatures.count(&hsm, Operation::SignBlob, took, &signed);
        count(Ok(Signature::from_bytes(vec![1])));
        count(Err(DeviceError::Away("unplugged".to_owned())));
        count(Err(DeviceError::Away("still".to_owned())));
        count(Err(DeviceError::Integrity("wrong".to_owned())));
        let mut registry = Registry::default();
        signatures.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            r#"signature_duration_seconds_count{device="hsm",operation="sign-blob"} 1"#,
            r#"device_faults_total{device="hsm",class="away"} 2"#,
            r#"device_faults_total{device="hsm",class="integrity"} 1"#,
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert!(!text.contains("unplugged"));
    }
}
