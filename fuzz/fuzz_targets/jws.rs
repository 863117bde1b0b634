//! What could be a JWS: no blob is one to a lenient reader, and what is taken for a JWT is what SignJwt would have signed.

#![no_main]

use base64::Engine as _;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};
use signet::jwt::jws::{Shape, shape};
use signet_fuzz::{account, now, signing_input};

fuzz_target!(|blob: &[u8]| {
    match shape(blob, &account(), now()) {
        Shape::Blob => assert!(!is_jws_to_somebody(blob)),
        Shape::Refused(_) => {}
        Shape::Jwt(claims) => {
            let text = str::from_utf8(blob).unwrap();
            let header = LENIENT[0].decode(text.split('.').next().unwrap()).unwrap();
            let header: Value = serde_json::from_slice(&header).unwrap();
            let name = |name: &str| header[name].as_str().unwrap().to_owned();
            let made = signing_input(&claims, name("alg").parse().unwrap(), &name("kid").parse().unwrap());
            assert_eq!(made.as_deref(), Some(text));
        }
    }
});

/// Whether a reader that skips what it does not know finds an object before or behind a dot: one of the first four or the
/// last, for nobody splits at the others.
fn is_jws_to_somebody(blob: &[u8]) -> bool {
    let dots = || blob.iter().enumerate().filter(|(_, byte)| **byte == b'.').map(|(place, _)| place);
    let parts = |dot: usize| [&blob[..dot], blob[dot + 1..].split(|byte| *byte == b'.').next().unwrap()];
    dots()
        .take(4)
        .chain(dots().last())
        .flat_map(parts)
        .any(|part| LENIENT.iter().any(|engine| is_object(engine, part) || is_object(engine, &symbols(part))))
}

fn is_object(engine: &GeneralPurpose, part: &[u8]) -> bool {
    let Ok(text) = engine.decode(part) else { return false };
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
    serde_json::from_slice::<Map<String, Value>>(text).is_ok()
}

fn symbols(part: &[u8]) -> Vec<u8> {
    part.iter().copied().filter(|byte| byte.is_ascii_alphanumeric() || b"+/-_".contains(byte)).collect()
}

const LENIENT: [GeneralPurpose; 2] = [GeneralPurpose::new(&URL_SAFE, ANY), GeneralPurpose::new(&STANDARD, ANY)];
const ANY: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
