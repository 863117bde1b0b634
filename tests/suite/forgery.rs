//! Nothing can be forged through one rpc that another refuses (facts T5, T6).

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use serde_json::Value;
use signet::access::{Account, AccountEmail, Caller, Glob, Operation, Policy, Rule};
use signet::audit::{Fsync, Rotation};
use signet::file::StateDir;
use signet::jwt::Target;
use signet::jwt::jws::{Shape, shape};
use signet::key::{Algorithm, PublicKey, PublicNumbers};
use signet::keyring::{self, KeyRecord, KeyState};
use signet::signer::{Audit, Bytes, Cache, Call, Devices, JwtBody, LiveKeyring, SignError, Signed, Signer};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::support::fake::{Fake, locator};
use crate::support::languages;

const EMAIL: &str = "app@project.iam.gserviceaccount.com";
const HEADER: &str = r#"{"alg":"RS256","typ":"JWT","kid":"k"}"#;

/// A device with one key, for any number of [`Machine`]s.
struct Key {
    fake: Fake,
    devices: Devices,
}

/// A daemon's signer with the one rule there is. The key is real: whatever it lets through comes back signed.
struct Machine {
    signer: Arc<Signer>,
    caller: Caller,
    _state: TempDir,
}

impl Key {
    fn new() -> Self {
        let fake = Fake::new();
        let devices = Devices::from([("fake".parse().unwrap(), fake.start())]);
        Self { fake, devices }
    }

    fn machine(&self, operations: &[Operation], rule: Rule) -> Machine {
        let email: AccountEmail = EMAIL.parse().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path().to_owned());
        let record = KeyRecord {
            kid: "k".parse().unwrap(),
            account: email.clone(),
            algorithm: Algorithm::Rs256,
            device: "fake".parse().unwrap(),
            locator: locator("rsa"),
            public_key: PublicKey::clone(&self.fake.request(b"", PATIENCE).public_key),
            state: KeyState::Active,
            created: 1,
            activated: Some(1),
            retired: None,
        };
        keyring::Keyring { keys: vec![record] }.save(&state).unwrap();
        let rule = Rule { accounts: vec![email.clone()], operations: operations.to_vec(), ..rule };
        let policy = Policy::new(vec![Account { email, project_id: None, unique_id: None, default: true }], vec![rule]);
        let audit = Audit::open(&state.audit_log(), Fsync::Never, Rotation { max_size: u64::MAX, keep: 1 }).unwrap();
        let keys = LiveKeyring::load(&state, &self.devices).unwrap();
        let caller = Caller::new(1000, 1000, vec![]);
        let signer = Arc::new(Signer::new(policy, keys, Cache::new(100), audit));
        Machine { signer, caller, _state: folder }
    }
}

impl Machine {
    async fn sign_blob(&self, blob: &[u8]) -> bool {
        self.sign_bytes(Bytes::Message(blob)).await
    }

    async fn sign_digest(&self) -> bool {
        self.sign_bytes(Bytes::Digest(&[0; 32])).await
    }

    async fn sign_bytes(&self, bytes: Bytes<'_>) -> bool {
        signed(self.signer.sign_bytes(call(&self.caller), bytes, None).await).is_some()
    }

    async fn sign_jwt(&self, claims: &str) -> Option<String> {
        self.jwt(JwtBody::Claims(claims.to_owned())).await
    }

    async fn mint_access_token(&self, target: &Target) -> Option<String> {
        self.jwt(JwtBody::AccessToken { target: target.clone(), lifetime: None }).await
    }

    async fn mint_id_token(&self, audience: &str) -> Option<String> {
        self.jwt(JwtBody::IdToken { audience: audience.to_owned(), include_email: true, lifetime: None }).await
    }

    /// The signing input of the JWT that is made, if one is.
    async fn jwt(&self, body: JwtBody) -> Option<String> {
        let jwt = signed(self.signer.sign_jwt(call(&self.caller), body).await)?;
        Some(jwt.as_str().rsplit_once('.').unwrap().0.to_owned())
    }
}

const PATIENCE: Duration = Duration::from_secs(30);

fn call(caller: &Caller) -> Call<'_> {
    Call { caller, rpc: "Test", account: "", deadline: Instant::now() + PATIENCE }
}

/// What was signed; none where that was refused. Anything else is no answer to the question.
fn signed<T>(outcome: Result<Signed<T>, SignError>) -> Option<T> {
    match outcome {
        Ok(signed) => Some(signed.value),
        Err(SignError::Denied | SignError::Invalid { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

fn seconds_from_now(seconds: u64) -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + seconds
}

fn audience(audience: &str) -> Target {
    Target::Audience(audience.to_owned())
}

fn scope(scope: &str) -> Target {
    Target::Scopes(vec![scope.to_owned()])
}

fn globs(pattern: &str) -> Option<Vec<Glob>> {
    Some(vec![Glob::new(pattern)])
}

const PUBSUB: &str = "https://pubsub.googleapis.com/";
const CLOUD: &str = "https://www.googleapis.com/auth/cloud-platform";

/// For each operation a caller who may do it, and nothing else, tries to get what every other operation makes.
#[tokio::test]
async fn an_operation_alone_makes_nothing_that_another_makes() {
    let key = Key::new();
    let all = key.machine(&Operation::ALL, Rule::default());
    let jwts = [
        all.sign_jwt(r#"{"aud":"x"}"#).await.unwrap(),
        all.mint_access_token(&audience(PUBSUB)).await.unwrap(),
        all.mint_access_token(&scope(CLOUD)).await.unwrap(),
        all.mint_id_token("https://service.example").await.unwrap(),
    ];
    for operation in Operation::ALL {
        let only = key.machine(&[operation], Rule::default());
        // What is a JWT is one for SignBlob too, whichever rpc makes such.
        for jwt in &jwts {
            assert_eq!(only.sign_blob(jwt.as_bytes()).await, operation == Operation::SignJwt, "{operation}: {jwt}");
        }
        assert_eq!(only.sign_blob(b"GOOG4-RSA-SHA256\n").await, operation == Operation::SignBlob, "{operation}");
        assert_eq!(only.sign_digest().await, operation == Operation::SignDigest, "{operation}");
        assert_eq!(only.sign_jwt("{}").await.is_some(), operation == Operation::SignJwt, "{operation}");
        for target in [audience(PUBSUB), scope(CLOUD)] {
            assert_eq!(
                only.mint_access_token(&target).await.is_some(),
                operation == Operation::MintAccessToken,
                "{operation}"
            );
        }
        let id = only.mint_id_token("https://service.example").await;
        assert_eq!(id.is_some(), operation == Operation::MintIdToken, "{operation}");
        // An ID token for a Google API would be an access token for it.
        assert!(only.mint_id_token(PUBSUB).await.is_none(), "{operation}");
    }
}

#[tokio::test]
async fn a_rule_for_signed_urls_signs_nothing_else() {
    let key = Key::new();
    let prefix = b"GOOG4-RSA-SHA256\n";
    let rule = Rule { blob_prefixes: Some(vec![prefix.to_vec()]), ..Rule::default() };
    let machine = key.machine(&[Operation::SignBlob], rule);
    assert!(machine.sign_blob(b"GOOG4-RSA-SHA256\n20260101T000000Z\n20260101/auto/storage/goog4_request\nab").await);
    assert!(!machine.sign_blob(b"anything else").await);
    let claims = forged_claims(SystemTime::now());
    let payload = URL_SAFE_NO_PAD.encode(&claims);
    for forgery in [
        format!("{}.{payload}", URL_SAFE_NO_PAD.encode(HEADER)),
        // No verifier that never reads the header minds the prefix.
        format!("GOOG4-RSA-SHA256\n.{payload}"),
        format!("GOOG4-RSA-SHA256\n{}.{payload}", URL_SAFE_NO_PAD.encode(HEADER)),
        format!("GOOG4-RSA-SHA256\nx.{}", STANDARD.encode(&claims)),
    ] {
        assert!(!machine.sign_blob(forgery.as_bytes()).await, "{forgery}");
    }
}

#[tokio::test]
async fn a_rule_for_one_audience_makes_no_jwt_that_is_good_elsewhere() {
    let key = Key::new();
    let rule = || Rule { audiences: globs(PUBSUB), ..Rule::default() };
    let machine = key.machine(&[Operation::SignJwt, Operation::MintAccessToken], rule());
    let exp = seconds_from_now(60);
    let allowed = format!(r#"{{"aud":"{PUBSUB}","exp":{exp}}}"#);
    assert!(machine.sign_blob(machine.sign_jwt(&allowed).await.unwrap().as_bytes()).await);
    for more in [
        format!(r#""aud":"{PUBSUB}","scope":"{CLOUD}""#),
        format!(r#""aud":["{PUBSUB}","https://other/"]"#),
        format!(r#""aud":"{PUBSUB}","target_audience":"https://other/""#),
        format!(r#""scope":"{CLOUD}""#),
        r#""target_audience":"https://other/""#.to_owned(),
        format!(r#""aud":"{PUBSUB}","Aud":"https://other/""#),
        format!(r#""aud":"{PUBSUB}","\u0061ud":"https://other/""#),
        r#""iat":1"#.to_owned(),
    ] {
        let claims = format!(r#"{{{more},"exp":{exp}}}"#);
        assert!(machine.sign_jwt(&claims).await.is_none(), "{claims}");
        let blob = format!("{}.{}", URL_SAFE_NO_PAD.encode(HEADER), URL_SAFE_NO_PAD.encode(&claims));
        assert!(!machine.sign_blob(blob.as_bytes()).await, "{claims}");
    }
    assert!(machine.mint_access_token(&audience(PUBSUB)).await.is_some());
    assert!(machine.mint_access_token(&audience("https://other/")).await.is_none());
    assert!(machine.mint_access_token(&scope(CLOUD)).await.is_none());
    assert!(!key.machine(&Operation::ALL, rule()).sign_digest().await, "a digest could be of anything");
}

#[tokio::test]
async fn a_rule_for_short_lifetimes_makes_no_long_ones_through_a_blob() {
    let key = Key::new();
    let rule = Rule { max_lifetime: Some(Duration::from_secs(60)), ..Rule::default() };
    let machine = key.machine(&Operation::ALL, rule);
    let exp = seconds_from_now(3600);
    let blob = format!("{}.{}", URL_SAFE_NO_PAD.encode(HEADER), URL_SAFE_NO_PAD.encode(format!(r#"{{"exp":{exp}}}"#)));
    assert!(!machine.sign_blob(blob.as_bytes()).await);
    assert!(machine.sign_jwt("{}").await.is_some());
}

/// Thousands of mutated signing inputs, all of them signed, and given to libraries that we did not write. Whatever
/// any of them accepts must be something that Signet does not sign as a blob, or that it judged by the very claims
/// which the library reads.
#[test]
fn no_library_accepts_a_jwt_in_what_is_signed_as_a_blob() {
    let Some(python) = languages::python() else { return };
    let account: AccountEmail = EMAIL.parse().unwrap();
    let now = SystemTime::now();
    let blobs = mutants(MUTANTS, now);
    let mut accepted = BTreeMap::<String, usize>::new();
    let mut forged_past_the_naive_rule = BTreeMap::<String, usize>::new();
    let (mut signed_as_blobs, mut judged_as_jwts) = (0, 0);
    for (blob, readings) in blobs.iter().zip(read_by_libraries(&python, &blobs)) {
        let judged = shape(blob, &account, now);
        signed_as_blobs += usize::from(matches!(judged, Shape::Blob));
        judged_as_jwts += usize::from(matches!(judged, Shape::Jwt(_)));
        for (library, read) in readings {
            match &judged {
                Shape::Blob => panic!("{library} takes this blob for a JWT: {}", blob.escape_ascii()),
                Shape::Jwt(claims) => {
                    assert_eq!(read, claims.members().iter().cloned().collect::<Value>(), "{library}");
                }
                Shape::Refused(_) => {}
            }
            if !is_jws_by_the_naive_rule(blob) {
                *forged_past_the_naive_rule.entry(library.clone()).or_default() += 1;
            }
            *accepted.entry(library).or_default() += 1;
        }
    }
    // The test can fail: every library accepts many of the mutants, most of them forge past a plain check for two
    // base64url parts, and many mutants are signed as blobs.
    assert_eq!(accepted.len(), 7, "{accepted:?}");
    assert!(accepted.values().all(|count| *count > MUTANTS / 100), "{accepted:?}");
    assert!(forged_past_the_naive_rule.len() >= 4, "{forged_past_the_naive_rule:?}");
    assert!(forged_past_the_naive_rule.values().sum::<usize>() > 100, "{forged_past_the_naive_rule:?}");
    assert!(signed_as_blobs > MUTANTS / 10 && judged_as_jwts > MUTANTS / 100, "{signed_as_blobs} {judged_as_jwts}");
    println!("of {MUTANTS} mutants {signed_as_blobs} are blobs and {judged_as_jwts} JWTs; accepted: {accepted:?}");
    println!("forged past the naive rule: {forged_past_the_naive_rule:?}");
}

const MUTANTS: usize = 5000;

/// What one might write first: two parts of base64url, the first of them a JSON object.
fn is_jws_by_the_naive_rule(blob: &[u8]) -> bool {
    let parts = str::from_utf8(blob).ok().and_then(|text| text.split_once('.'));
    let Some((Ok(header), Ok(_))) = parts.map(|(a, b)| (URL_SAFE_NO_PAD.decode(a), URL_SAFE_NO_PAD.decode(b))) else {
        return false;
    };
    serde_json::from_slice::<Value>(&header).is_ok_and(|header| header.is_object())
}

fn read_by_libraries(python: &Path, blobs: &[Vec<u8>]) -> Vec<BTreeMap<String, Value>> {
    let key = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let public = PublicKey::from_numbers(&PublicNumbers::Rsa {
        modulus: key.public_key().modulus().big_endian_without_leading_zero().to_vec(),
        exponent: key.public_key().exponent().big_endian_without_leading_zero().to_vec(),
    });
    let pem = der::pem::encode_string("PUBLIC KEY", der::pem::LineEnding::LF, public.unwrap().spki()).unwrap();
    let mut input = STANDARD.encode(pem) + "\n";
    for blob in blobs {
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), blob, &mut signature).unwrap();
        input += &format!("{}\t{}\n", STANDARD.encode(blob), STANDARD.encode(signature));
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/verifiers.py");
    let mut child = Command::new(python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success());
    let readings: Vec<_> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(readings.len(), blobs.len());
    readings
}

fn forged_claims(now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).unwrap().as_secs();
    format!(r#"{{"iss":"boss@x","sub":"boss@x","aud":"https://b/","iat":{now},"exp":{}}}"#, now + 3000)
}

/// Signing inputs, each changed in none to some ways. The same at every run but for the times in them.
fn mutants(count: usize, now: SystemTime) -> Vec<Vec<u8>> {
    let mut random = Random(0x5eed);
    (0..count).map(|_| mutant(&mut random, now)).collect()
}

fn mutant(random: &mut Random, now: SystemTime) -> Vec<u8> {
    let forged = forged_claims(now);
    let claims = if random.below(4) == 0 { forged.replace("boss@x", EMAIL) } else { forged };
    let mut documents = [HEADER.as_bytes().to_vec(), claims.into_bytes()];
    // Half of all change on both sides of the dot: what is left whole on one side is the easier to see.
    let sides = [&[0, 1][..], &[0], &[1], &[0, 1], &[]][random.below(5)];
    for side in sides {
        if random.below(2) > 0 {
            documents[*side] = json_trick(random, &documents[*side]);
        }
    }
    let mut parts = documents.map(|document| encoded(random, &document));
    for side in sides {
        for _ in 0..random.below(3) {
            parts[*side] = text_trick(random, &parts[*side]);
        }
    }
    if random.below(5) == 0 {
        // Both begin elsewhere: no longer anything, unless some decoder makes something of it.
        parts = parts.map(|part| part.get(1 + random.below(4)..).unwrap_or_default().to_vec());
    }
    let mut blob = parts.join(&b'.');
    if random.below(4) == 0 {
        blob = whole_trick(random, blob);
    }
    blob
}

/// The same object in another form of JSON, or nearly the same.
fn json_trick(random: &mut Random, document: &[u8]) -> Vec<u8> {
    let text = String::from_utf8(document.to_vec()).unwrap();
    let inner = text.trim_start_matches('{').to_owned();
    let utf16 = |text: &str, to: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(to).collect::<Vec<u8>>();
    let utf32 = |text: &str, to: fn(u32) -> [u8; 4]| text.chars().flat_map(|c| to(c.into())).collect::<Vec<u8>>();
    let text = match random.below(26) {
        0 => return utf16(&text, u16::to_le_bytes),
        1 => return utf16(&text, u16::to_be_bytes),
        2 => return utf16(&format!("\u{feff}{text}"), u16::to_le_bytes),
        3 => return utf32(&text, u32::to_le_bytes),
        4 => return utf32(&format!("\u{feff}{text}"), u32::to_be_bytes),
        5 => format!("\u{feff}{text}"),
        6 => format!("{}{text}", [" ", "\n", "\t\r\n", "          "][random.below(4)]),
        7 => format!("{{{}{inner}", [" ", "\n", "\r\n\t "][random.below(3)]),
        8 => format!(r#"{{"alg":"none",{inner}"#),
        9 => format!(r#"{{"alg":"RS256",{inner}"#),
        10 => text.replacen("\"a", r#""\u0061"#, 1),
        11 => text.replacen("\"s", r#""\u0073"#, 1),
        12 => format!("{text}{}", [" ", "\n", "}", "{}", "x", "\0"][random.below(6)]),
        13 => format!("{{,{inner}"),
        14 => text.replace('"', "'"),
        15 => text.replace(',', " , ").replace(':', ": "),
        16 => format!(r#"{{"b64":false,"crit":["b64"],{inner}"#),
        17 => format!(r#"{{"jwk":{{}},"x":1e400,{inner}"#),
        18 => "{}".to_owned(),
        19 => format!("/**/{text}"),
        20 => format!("{{\"\":\"{}\",{inner}", "x".repeat(random.below(300))),
        21 => format!("\0{text}"),
        22 => text.replace("RS256", "HS256"),
        23 => format!("{{{}{inner}", [" ", "\n", "\t"][random.below(3)].repeat(random.below(9000))),
        24 => format!("{}{text}", [" ", "\n", "\t"][random.below(3)].repeat(random.below(9000))),
        _ => text.replace("\"typ\":\"JWT\",", ""),
    };
    text.into_bytes()
}

fn encoded(random: &mut Random, document: &[u8]) -> Vec<u8> {
    let text = match random.below(8) {
        0 => URL_SAFE.encode(document),
        1 => STANDARD.encode(document),
        2 => STANDARD_NO_PAD.encode(document),
        // White space in front, encoded by itself with its padding.
        3 if random.below(3) == 0 => format!("IA=={}", URL_SAFE_NO_PAD.encode(document)),
        _ => URL_SAFE_NO_PAD.encode(document),
    };
    text.into_bytes()
}

/// Another base64 text that a lenient decoder may read alike.
fn text_trick(random: &mut Random, part: &[u8]) -> Vec<u8> {
    const FOREIGN: [&str; 14] = ["\n", "!", "%", " ", "é", "\0", "=", "+", "-", "/", "_", "\u{feff}", ".", "\r\n"];
    let foreign = FOREIGN[random.below(FOREIGN.len())];
    // Python pads by length, so that foreign characters often work in fours alone.
    let foreign = foreign.repeat([1, 1, 2, 4, 4, 8][random.below(6)]);
    let place = [0, random.below(8), random.below(part.len() + 1), part.len()][random.below(4)].min(part.len());
    let (before, after) = part.split_at(place);
    match random.below(10) {
        0..=5 => [before, foreign.as_bytes(), after].concat(),
        6 => part.chunks(76).collect::<Vec<_>>().join(foreign.as_bytes()),
        // U+0165 and `e` have the same low eight bits.
        7 => part.iter().filter_map(|byte| char::from_u32(u32::from(*byte) + 0x100)).collect::<String>().into_bytes(),
        8 => {
            let mut flipped = part.to_vec();
            if let Some(last) = flipped.last_mut() {
                // Other trailing bits.
                *last = last.wrapping_add(1);
            }
            flipped
        }
        _ => [before, after.get(1..).unwrap_or_default()].concat(),
    }
}

fn whole_trick(random: &mut Random, blob: Vec<u8>) -> Vec<u8> {
    let text = String::from_utf8_lossy(&blob).into_owned();
    match random.below(8) {
        0 => [b"GOOG4-RSA-SHA256\n".as_slice(), &blob].concat(),
        1 => [b"GOOG4-RSA-SHA256\n20260101.".as_slice(), &blob].concat(),
        2 => text.encode_utf16().flat_map(u16::to_le_bytes).collect(),
        3 => [&blob, b".".as_slice()].concat(),
        4 => [b".".as_slice(), &blob].concat(),
        5 => text.replace('.', "..").into_bytes(),
        6 => [b"\xef\xbb\xbf".as_slice(), &blob].concat(),
        _ => text.replacen('.', "", 1).into_bytes(),
    }
}

/// A small generator (SplitMix64), seeded: a failure comes again at the next run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).unwrap()
    }
}
