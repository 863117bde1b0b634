//! The pure parts of a request, each alone: `cargo bench --bench pure`.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a program for developers"
)]

use std::hint::black_box;
use std::time::{Duration, SystemTime};

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
use criterion::{Criterion, criterion_group, criterion_main};
use serde::Serialize;
use signet::access::{Account, AccountEmail, Caller, Glob, Operation, Policy, Request, Rule};
use signet::audit::Head;
use signet::jwt::claims::Claims;
use signet::jwt::{Header, Target, UnsignedJwt};
use signet::key::{Algorithm, Digest, Hash, KeyId, PublicKey, Signature};

criterion_group!(benches, signing_input, policy, verification, audit_line);
criterion_main!(benches);

fn signing_input(criterion: &mut Criterion) {
    let (policy, caller, email) = (rules(), caller(), email());
    let kid: KeyId = "0123456789abcdef0123456789abcdef01234567".parse().unwrap();
    let header = Header { algorithm: Algorithm::Rs256, kid: &kid };
    let now = SystemTime::now();

    let target = Target::Audience("https://pubsub.googleapis.com/".to_owned());
    let permit = policy.authorize(&caller, &target.request(&email, None)).unwrap();
    criterion.bench_function("access token to signing input and digest", |bencher| {
        bencher.iter(|| UnsignedJwt::access_token(&permit, header, black_box(&target), now).unwrap().digest());
    });

    let permit = policy.authorize(&caller, &Request::new(&email, Operation::SignJwt)).unwrap();
    let text =
        r#"{"aud":"https://example.com","role":"reader","jti":"4f1c2d","context":{"tenant":7,"tags":["a","b"]}}"#;
    criterion.bench_function("claims to signing input and digest", |bencher| {
        bencher.iter(|| {
            let claims = Claims::parse(black_box(text)).unwrap();
            UnsignedJwt::of_claims(&permit, header, &claims, now).unwrap().digest()
        });
    });
}

fn policy(criterion: &mut Criterion) {
    let (policy, caller, email) = (rules(), caller(), email());
    let allowed = Target::Audience("https://pubsub.googleapis.com/".to_owned());
    criterion.bench_function("policy: allowed by the last of 20 rules", |bencher| {
        bencher.iter(|| policy.authorize(&caller, &black_box(&allowed).request(&email, None)).unwrap());
    });
    let denied = Caller { uid: CALLER + 1, ..caller.clone() };
    criterion.bench_function("policy: denied by all of 20 rules", |bencher| {
        bencher.iter(|| policy.authorize(&denied, &black_box(&allowed).request(&email, None)).unwrap_err());
    });
}

fn verification(criterion: &mut Criterion) {
    let (message, random) = (b"message", SystemRandom::new());
    let digest = Digest::of(Hash::Sha256, message);
    for bits in [2048, 3072, 4096] {
        let size = match bits {
            2048 => aws_lc_rs::rsa::KeySize::Rsa2048,
            3072 => aws_lc_rs::rsa::KeySize::Rsa3072,
            _ => aws_lc_rs::rsa::KeySize::Rsa4096,
        };
        let pair = RsaKeyPair::generate(size).unwrap();
        let mut signature = vec![0; pair.public_modulus_len()];
        pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
        let key = PublicKey::from_spki(&spki(pair.public_key())).unwrap();
        let signature = Signature::from_bytes(signature);
        criterion.bench_function(&format!("verification: RS256 {bits}"), |bencher| {
            bencher.iter(|| key.verify(Algorithm::Rs256, black_box(&digest), &signature).unwrap());
        });
    }
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let signature = Signature::from_bytes(pair.sign(&random, message).unwrap().as_ref().to_vec());
    let key = PublicKey::from_spki(&spki(pair.public_key())).unwrap();
    criterion.bench_function("verification: ES256", |bencher| {
        bencher.iter(|| key.verify(Algorithm::Es256, black_box(&digest), &signature).unwrap());
    });
}

fn audit_line(criterion: &mut Criterion) {
    /// As long as the daemon's own.
    #[derive(Serialize)]
    struct Record {
        time: &'static str,
        uid: u32,
        rpc: &'static str,
        account: AccountEmail,
        decision: &'static str,
        digest: String,
        outcome: &'static str,
    }
    let record = Record {
        time: "2026-01-31T23:59:59.123456Z",
        uid: 1000,
        rpc: "signet.v1.Signer/MintJwtAccessToken",
        account: email(),
        decision: "allow",
        digest: format!("sha256:{}", "0123456789abcdef".repeat(4)),
        outcome: "OK",
    };
    let (mut head, mut lines) = (Head::start(), Vec::with_capacity(1024));
    criterion.bench_function("audit line with its hash", |bencher| {
        bencher.iter(|| {
            lines.clear();
            head.append(black_box(&record), &mut lines).unwrap();
        });
    });
}

/// Twenty rules, of which the last alone is for the caller.
fn rules() -> Policy {
    let rule = |uid: u32| Rule {
        users: Some(vec![uid]),
        accounts: vec![email()],
        operations: vec![Operation::MintAccessToken],
        audiences: Some(vec![Glob::new("https://*.googleapis.com/")]),
        max_lifetime: Some(Duration::from_secs(3600)),
        ..Rule::default()
    };
    let own_claims = Rule { operations: vec![Operation::SignJwt], audiences: None, ..rule(CALLER) };
    let rules = (1..19).map(rule).chain([own_claims, rule(CALLER)]).collect();
    Policy::new(vec![Account { email: email(), project_id: None, unique_id: None, default: true }], rules)
}

fn caller() -> Caller {
    Caller::new(CALLER, CALLER, vec![CALLER])
}

fn email() -> AccountEmail {
    "app@project.iam.gserviceaccount.com".parse().unwrap()
}

fn spki(key: &impl AsDer<PublicKeyX509Der<'static>>) -> Vec<u8> {
    key.as_der().unwrap().as_ref().to_vec()
}

const CALLER: u32 = 1000;
