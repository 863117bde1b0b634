//! `signetctl bench`: how fast the daemon signs, with care for those whom it serves meanwhile.

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::failure::Failure;
use super::progress::Progress;
use super::{Global, client, confirm};
use crate::access::AccountEmail;
use crate::device::DeviceKind;
use crate::key::DeviceName;
use crate::keyring::Keyring;
use crate::proto::mint_jwt_access_token_request::Target;
use crate::proto::sign_blob_request::Input;
use crate::proto::signer_client::SignerClient;
use crate::proto::{MintJwtAccessTokenRequest, SignBlobRequest};

/// Measure how fast a key signs through the daemon, and what follows for the cache
///
/// It signs texts that mean nothing, or mints tokens that it forgets (--audience); each is on record in the audit log. A TPM is
/// asked by one client that rests after each signature for as long as it took, so that others have half of the device; and
/// for more than 100 signatures this asks first. Other users' requests take turns with these.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  signetctl bench
  signetctl bench --signatures 1000 --clients 8 --json | jq .signatures_per_second
  signetctl bench --audience https://pubsub.googleapis.com/   # where the rules allow no sign-blob")]
pub(crate) struct Options {
    /// How many signatures, at most 100000
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    signatures: u32,
    /// How many clients ask at once, at most 32; by default 1 for a TPM and 4 for others
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=32))]
    clients: Option<u32>,
    /// Mint access tokens for this service, in place of signing texts
    #[arg(long, value_name = "URL")]
    audience: Option<String>,
    /// The account; by default the default one
    #[arg(long, value_name = "EMAIL")]
    account: Option<AccountEmail>,
    /// Don't ask
    #[arg(long)]
    yes: bool,
}

/// What one client after the other is given to ask for.
#[derive(Clone)]
struct Asker {
    client: SignerClient<Channel>,
    account: String,
    audience: Option<String>,
    /// Rests after each answer for as long as it took.
    rests: bool,
}

/// The key that answered, and what it is in where the configuration tells.
struct Found {
    kid: String,
    device: Option<(DeviceName, bool)>,
}

/// What came of it.
struct Measured {
    /// Sorted, and at least one.
    latencies: Vec<Duration>,
    clients: u32,
}

pub(crate) fn run(options: Options, global: &Global) -> Result<(), Failure> {
    let socket = global.socket()?;
    client::block_on(async {
        let client = SignerClient::new(client::connect(&socket).await?);
        let account = options.account.map(String::from).unwrap_or_default();
        let mut asker = Asker { client, account, audience: options.audience, rests: false };
        // The first tells the key, and finds things cold: it is not measured.
        let (kid, _) = asker.ask(0, &socket).await.map_err(|failure| match &asker.audience {
            None if failure.is_refused() => failure.hint(
                "--audience URL, of a service that the rules let you mint tokens for; without it this needs sign-blob",
            ),
            _ => failure,
        })?;
        let found = Found { device: device_of(global, &kid), kid };
        // Where it is not known what it is, it is treated with care.
        asker.rests = found.device.as_ref().is_none_or(|(_, is_tpm)| *is_tpm);
        let clients = options.clients.unwrap_or(if asker.rests { 1 } else { 4 });
        if asker.rests && clients > 1 {
            return Err(Failure::usage(format!("{} signs one at a time", found.place())).hint("without --clients"));
        }
        if asker.rests && options.signatures > MANY {
            let question = format!("{} signatures keep {} half busy.", options.signatures, found.place());
            confirm(options.yes, &question)?;
        }
        let progress = global.progress("signing");
        let measured = measure(&asker, clients, options.signatures - 1, &socket, &progress).await?;
        drop(progress);
        global.show(&measured.json(&found, &asker), measured.text(&found, &asker))
    })
}

/// Has the clients share so many signatures.
async fn measure(
    asker: &Asker,
    clients: u32,
    signatures: u32,
    socket: &Path,
    progress: &Progress<'_>,
) -> Result<Measured, Failure> {
    let clients = clients.min(signatures);
    let mut asking = JoinSet::new();
    let (answers, mut answered) = tokio::sync::mpsc::unbounded_channel();
    for first in 1..=clients {
        let (mut asker, socket, answers) = (asker.clone(), socket.to_owned(), answers.clone());
        asking.spawn(async move {
            for number in (first..=signatures).step_by(clients as usize) {
                let (_, latency) = asker.ask(number, &socket).await?;
                let _ = answers.send(latency);
                if asker.rests {
                    tokio::time::sleep(latency).await;
                }
            }
            Ok::<_, Failure>(())
        });
    }
    drop(answers);
    let mut latencies = Vec::new();
    while let Some(latency) = answered.recv().await {
        latencies.push(latency);
        progress.say(format!("{} of {signatures} signatures", latencies.len()));
    }
    while let Some(ended) = asking.join_next().await {
        ended.map_err(Failure::new)??;
    }
    latencies.sort();
    Ok(Measured { latencies, clients })
}

impl Asker {
    /// Asks once. Returns the key's id, and how long it took.
    async fn ask(&mut self, number: u32, socket: &Path) -> Result<(String, Duration), Failure> {
        let begun = Instant::now();
        let account = self.account.clone();
        let answer = match &self.audience {
            None => {
                let input = Some(Input::Payload(format!("signetctl bench {number}\n").into()));
                let request = SignBlobRequest { account, input, algorithm: 0 };
                self.client.sign_blob(request).await.map(|answer| answer.into_inner().key_id)
            }
            Some(audience) => {
                // Too short a life for the cache.
                let lifetime = Some(prost_types::Duration { seconds: 600, nanos: 0 });
                let target = Some(Target::Audience(audience.clone()));
                let request = MintJwtAccessTokenRequest { account, target, lifetime };
                self.client.mint_jwt_access_token(request).await.map(|answer| answer.into_inner().key_id)
            }
        };
        answer.map(|kid| (kid, begun.elapsed())).map_err(|status| client::explained(&status, socket))
    }
}

/// The device that holds a key, and whether it is a TPM. None where the configuration or the keyring can't be read.
fn device_of(global: &Global, kid: &str) -> Option<(DeviceName, bool)> {
    let config = global.load().ok()?;
    let keyring = Keyring::load(&config.state_dir).ok()?;
    let key = keyring.keys.iter().find(|key| key.kid.as_str() == kid)?;
    let device = config.device(&key.device)?;
    Some((device.name.clone(), matches!(device.kind, DeviceKind::Tpm(_))))
}

impl Found {
    fn place(&self) -> String {
        match &self.device {
            Some((name, true)) => format!("the TPM {name}"),
            Some((name, false)) => format!("the token {name}"),
            None => "a device that may be a TPM".to_owned(),
        }
    }
}

impl Measured {
    /// What as many clients get of it that never rest (Little's law).
    fn rate(&self) -> f64 {
        let total: Duration = self.latencies.iter().sum();
        f64::from(self.clients) * self.count() / total.as_secs_f64()
    }

    #[allow(clippy::cast_precision_loss, reason = "at most 100,000")]
    fn count(&self) -> f64 {
        self.latencies.len() as f64
    }

    /// In milliseconds.
    fn percentile(&self, percent: usize) -> f64 {
        let place = (self.latencies.len() * percent).div_ceil(100).saturating_sub(1);
        self.latencies.get(place).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
    }

    /// How many different tokens a tenth of the device's time keeps fresh, each signed once in 55 minutes.
    fn kept_fresh(&self) -> f64 {
        (self.rate() * RENEWED.as_secs_f64() / 10.0).floor()
    }

    fn text(&self, found: &Found, asker: &Asker) -> String {
        let manner = if asker.rests { ", with rests" } else { "" };
        let clients = if self.clients == 1 { "1 client".to_owned() } else { format!("{} clients", self.clients) };
        format!(
            "{count} signatures after a first one, by the key {kid} in {place}, {clients}{manner}\n\
             signatures a second  {rate}\n\
             latency              p50 {p50} ms, p99 {p99} ms, longest {longest} ms\n\n\
             What follows for [cache] in the configuration of signetd:\n\
             enabled = true  a token from the cache spares its caller {p50} ms, and the device a signature\n\
             entries         as many as there are different tokens; this device keeps {fresh} fresh with a tenth of its time,\n\
             \x20               and takes {fill} s for the first 1000 after a start",
            count = self.count(),
            kid = found.kid,
            place = found.place(),
            rate = digits(self.rate()),
            p50 = digits(self.percentile(50)),
            p99 = digits(self.percentile(99)),
            longest = digits(self.percentile(100)),
            fresh = self.kept_fresh(),
            fill = digits(1000.0 / self.rate()),
        )
    }

    fn json(&self, found: &Found, asker: &Asker) -> serde_json::Value {
        let (name, is_tpm) = found.device.as_ref().map_or((None, None), |(name, tpm)| (Some(name), Some(tpm)));
        json!({
            "key_id": found.kid, "device": name, "tpm": is_tpm,
            "operation": if asker.audience.is_some() { "mint-access-token" } else { "sign-blob" },
            "signatures": self.latencies.len(), "clients": self.clients, "rests": asker.rests,
            "signatures_per_second": self.rate(),
            "latency_ms": { "p50": self.percentile(50), "p99": self.percentile(99), "longest": self.percentile(100) },
            "cache": { "enabled": true, "tokens_kept_fresh_by_a_tenth": self.kept_fresh() },
        })
    }
}

/// Three digits, or all before the point.
fn digits(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// More signatures than this by a TPM are asked for.
const MANY: u32 = 100;
/// How long a minted token is given out: an hour less the 5 minutes that it must still live.
const RENEWED: Duration = Duration::from_secs(55 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_clients_that_never_rest() {
        let latencies = (1..=100).map(Duration::from_millis).collect();
        let measured = Measured { latencies, clients: 4 };
        // 100 answers, each 50.5 ms in the mean, four at a time.
        assert!((measured.rate() - 4.0 / 0.0505).abs() < 1e-6);
        assert_eq!([50, 99, 100].map(|percent| digits(measured.percentile(percent))), ["50.0", "99.0", "100"]);
        assert_eq!(measured.kept_fresh(), (4.0_f64 / 0.0505 * 330.0).floor());
        let lone = Measured { latencies: vec![Duration::from_millis(250)], clients: 1 };
        assert_eq!(
            (digits(lone.rate()), digits(lone.percentile(50)), digits(lone.percentile(99))),
            ("4.00".into(), "250".into(), "250".into())
        );
    }
}
