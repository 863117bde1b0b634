//! Claims: what is taken is signed as every parser reads it, and speaks for nobody else.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use signet::jwt::claims::Claims;
use signet::jwt::jws::{Shape, shape};
use signet::key::Algorithm;
use signet_fuzz::{NOW, account, nobody_else_speaks, now, payload, signing_input};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = str::from_utf8(data) else { return };
    let Ok(claims) = Claims::parse(text) else { return };
    let asked: Value = serde_json::from_str(text).expect("it is JSON to others too");
    let Some(input) = signing_input(&claims, Algorithm::Rs256, &"k".parse().unwrap()) else { return };
    let signed = payload(&input);
    nobody_else_speaks(&signed);
    let exp = signed["exp"].as_u64().unwrap();
    assert!(NOW < exp && exp <= NOW + 12 * 3600);
    for (name, value) in asked.as_object().unwrap() {
        assert_eq!(&signed[name], value, "{name}");
    }
    let added = usize::from(asked.get("exp").is_none());
    assert_eq!(signed.as_object().unwrap().len(), asked.as_object().unwrap().len() + added);
    // Whoever sends it as a blob needs the same rules.
    assert!(matches!(shape(input.as_bytes(), &account(), now()), Shape::Jwt(_)));
});
