//! Keeps what a compiler can't: who may import whom, which crates stay behind which fence, and how long things get.
//!
//! It reads the sources as text, without comments, strings and `#[cfg(test)]` modules, and who may use whom from the table
//! of ARCHITECTURE.md; an exception stands in [`EXCEPTIONS`] with its reason.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is how a test fails"
)]

use std::fs;
use std::path::{Path, PathBuf};

/// Holds the table of who may use whom.
const ARCHITECTURE: &str = include_str!("../ARCHITECTURE.md");

/// Crates and calls that only some files may name: `a/` is a folder, `a*` a beginning.
const FENCES: &[(&[&str], &[&str])] = &[
    (
        &["tonic::", "tonic_health::", "tonic_reflection::", "tonic_types::", "prost::", "prost_types::"],
        &["lib.rs", "front/grpc*", "ctl*"],
    ),
    (&["hyper::"], &["front/grpc*", "front/http*"]),
    (&["cryptoki::", "cryptoki_sys::"], &["device/pkcs11*"]),
    (&["tss_esapi::", "tss_esapi_sys::"], &["device/tpm*"]),
    (&["clap::", "clap_complete::", "clap_mangen::", "indicatif::"], &["bin/", "ctl*"]),
    (&["reqwest::"], &["signer/exchange.rs", "ctl*"]),
    // The daemon never names what makes, takes or destroys keys.
    (&["Provision", "device::provision", "device::init", "device::adopt"], &["device*", "ctl*"]),
    (&["anyhow::"], &["bin/", "ctl*", "daemon*"]),
    (&["tokio::"], &["device/handle*", "readable.rs", "signer*", "front*", "daemon*", "ctl*", "bin/"]),
    (
        &["std::fs", "std::net", "std::env", "SystemTime::now", "Instant::now"],
        &[
            "file.rs",
            "sandbox.rs",
            "trust.rs",
            "keyring.rs",
            "subject.rs",
            "audit*",
            "device*",
            "config*",
            "signer*",
            "front*",
            "daemon*",
            "ctl*",
            "bin/",
        ],
    ),
];

const LONGEST_FILE: usize = 400;
const LONGEST_FUNCTION: usize = 60;
const LONGEST_MAP: usize = 150;

/// What is allowed all the same: the file, what is said about it, and the reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

#[test]
fn the_sources_are_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut complaints = Vec::new();
    for file in rust_files(&root) {
        let name = file.strip_prefix(&root).unwrap().to_str().unwrap();
        complaints.extend(judge(name, &fs::read_to_string(&file).unwrap()));
    }
    if ARCHITECTURE.lines().count() > LONGEST_MAP {
        complaints.push(format!("ARCHITECTURE.md: more than {LONGEST_MAP} lines"));
    }
    let excused = |complaint: &String| EXCEPTIONS.iter().any(|(file, what, _)| *complaint == format!("{file}: {what}"));
    let unneeded = EXCEPTIONS
        .iter()
        .filter(|(file, what, _)| !complaints.contains(&format!("{file}: {what}")))
        .map(|(file, what, _)| format!("{file}: the exception {what:?} is needed no more"));
    let open: Vec<_> = complaints.iter().filter(|complaint| !excused(complaint)).cloned().chain(unneeded).collect();
    assert!(open.is_empty(), "\n{}\n", open.join("\n"));
}

#[test]
fn the_tests_that_the_threat_table_names_exist() {
    tests_exist("SECURITY.md", 30, |row| row.starts_with("| T") || row.starts_with("| - "));
}

#[test]
fn the_tests_that_the_runbook_names_exist() {
    // Not every row has one: much is tried by the soak.
    tests_exist("docs/runbook.md", 8, |_row| false);
}

#[test]
fn the_tests_that_the_table_of_libraries_names_exist() {
    tests_exist("docs/clients.md", 10, |row| row.contains("| tested"));
}

/// Whether each of these rows names a test, as `topic::test`, and each test that the document names is there.
fn tests_exist(document: &str, fewest: usize, has_one: fn(&&str) -> bool) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(root.join(document)).unwrap();
    let named: Vec<_> = table
        .split('`')
        .filter_map(|quoted| quoted.split_once("::"))
        .filter(|(place, test)| *place != "topic" && *test != "test")
        .collect();
    assert!(named.len() > fewest, "{document} is not read any more");
    for row in table.lines().filter(has_one) {
        assert!(row.contains("::"), "no test stands for {row}");
    }
    for (place, test) in named {
        let file = match place.starts_with("src/") {
            true => root.join(place),
            false => root.join(format!("tests/suite/{place}.rs")),
        };
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert!(text.contains(&format!("fn {test}(")), "{document} names {place}::{test}, which is gone");
    }
}

#[test]
fn the_versions_of_libraries_that_docs_name_are_those_that_are_tested() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| fs::read_to_string(root.join(file)).unwrap();
    let wanted: String = [
        "tests/verifiers.txt",
        "tests/clients/python/requirements.txt",
        "tests/clients/go/go.mod",
        "examples/go/go.mod",
        "examples/node/package.json",
        "examples/java/pom.xml",
        "examples/rust/Cargo.toml",
        "scripts/deps",
        "tests/suite/replays.rs",
    ]
    .map(read)
    .concat();
    let table = read("docs/clients.md");
    let libraries = table.lines().filter(|line| line.contains("| tested")).filter_map(|row| row.split('|').nth(1));
    let is_version = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit());
    let versions: Vec<_> =
        libraries.flat_map(|library| library.split([' ', ',', ')']).filter(is_version).collect::<Vec<_>>()).collect();
    assert!(versions.len() > 10, "the table is not read any more");
    for version in versions {
        assert!(wanted.contains(version), "docs/clients.md names {version}, which no test runs");
    }
}

/// Of each topic, at least 300 in all, and each with a name of its own.
#[test]
fn bad_input_has_names_and_there_is_enough_of_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad-input");
    let mut names = Vec::new();
    for topic in ["claims", "requests", "import", "configuration", "keyring", "http", "http2", "sts", "audit"] {
        let tables: toml::Table = fs::read_to_string(folder.join(format!("{topic}.toml")))
            .unwrap()
            .parse()
            .unwrap_or_else(|error| panic!("{topic}: {error}"));
        let cases = tables.values().flat_map(|cases| cases.as_array().unwrap());
        let of_topic: Vec<_> = cases.map(|case| case["name"].as_str().unwrap().to_owned()).collect();
        assert!(of_topic.len() >= 20, "{topic} has {} bad inputs", of_topic.len());
        names.extend(of_topic);
    }
    names.sort();
    let twice: Vec<_> = names.windows(2).filter(|two| two[0] == two[1]).map(|two| &two[0]).collect();
    assert!(twice.is_empty(), "names that stand there twice: {twice:?}");
    assert!(names.len() >= 300, "{} bad inputs", names.len());
}

/// What a person finds in the log or is told must stand in the runbook.
#[test]
fn the_runbook_knows_every_reason_and_every_message_of_the_log() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let runbook = fs::read_to_string(root.join("docs/runbook.md")).unwrap();
    let mut met = 0;
    for file in rust_files(&root.join("src")) {
        let text = fs::read_to_string(&file).unwrap();
        let text = text.split("#[cfg(test)]\nmod ").next().unwrap();
        let is_reason = |quoted: &&str| {
            let shape = quoted.len() > 7 && quoted.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
            shape && !quoted.starts_with("CARGO_")
        };
        let of_signer = file.starts_with(root.join("src/signer"));
        let reasons = text.split('"').filter(is_reason).filter(|_| of_signer).map(str::to_owned);
        let logs = text.match_indices("tracing::error!(").chain(text.match_indices("tracing::warn!("));
        let logged = logs.filter_map(|(at, _)| message(&text[at..]));
        for message in reasons.chain(logged) {
            met += 1;
            assert!(runbook.contains(&message), "docs/runbook.md says nothing of {message:?} in {}", file.display());
        }
    }
    assert!(met > 40, "the sources are not read any more");
}

/// The first words of a macro's message that are always the same; none where it has none of its own.
fn message(call: &str) -> Option<String> {
    let mut open = 0_usize;
    let end = call.bytes().position(|byte| {
        open = if byte == b'(' { open + 1 } else { open - usize::from(byte == b')' && open > 0) };
        byte == b')' && open == 0
    })?;
    let quoted = call[..end].rsplit('"').nth(1)?;
    let fixed = quoted.split([':', '{']).map(str::trim).find(|part| part.len() > 10 && !part.contains('}'))?;
    Some(fixed.to_owned())
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Everything that is wrong with a file, by its path below `src/`.
fn judge(name: &str, text: &str) -> Vec<String> {
    let code = without_tests(&blank(text));
    let mut complaints = imports(name, &code);
    complaints.extend(fences(name, &code));
    let lines = code.trim_end().lines().count();
    if lines > LONGEST_FILE {
        complaints.push(format!("more than {LONGEST_FILE} lines"));
    }
    for (function, lines) in functions(&code) {
        if lines > LONGEST_FUNCTION {
            complaints.push(format!("fn {function} has more than {LONGEST_FUNCTION} lines"));
        }
    }
    complaints.into_iter().map(|complaint| format!("{name}: {complaint}")).collect()
}

fn imports(name: &str, code: &str) -> Vec<String> {
    let module = name.split(['/', '.']).next().unwrap();
    let Some(allowed) = may_use(module) else {
        return vec![format!("the module {module} is not in the table of ARCHITECTURE.md")];
    };
    let mut complaints = Vec::new();
    for used in used_paths(name, code) {
        let within = |prefix: &str| used == prefix || used.starts_with(&format!("{prefix}::"));
        if within(module) {
            let other_front = module == "front" && front_of(&used) != front_of(&name.replace('/', "::"));
            if other_front && !front_of(&used).is_empty() && name != "front/mod.rs" {
                complaints.push(format!("a front uses another: {used}"));
            }
        } else if !allowed.iter().any(|prefix| *prefix == "everything" || within(prefix)) {
            complaints.push(format!("may not use {used}"));
        }
    }
    complaints.sort();
    complaints.dedup();
    complaints
}

/// What a module may use of ours, besides itself: `everything`, or modules and, as `a::b`, parts of modules.
fn may_use(module: &str) -> Option<Vec<&'static str>> {
    let names = |cell: &'static str| cell.split(',').map(|name| name.trim().trim_matches('`')).collect::<Vec<_>>();
    let (_, section) = ARCHITECTURE.split_once("\n## Who may use whom\n").expect("ARCHITECTURE.md has the table");
    let table = section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let mut rows = table.filter_map(|row| row.trim_matches('|').split_once('|'));
    rows.find(|(modules, _)| names(modules).contains(&module)).map(|(_, used)| names(used))
}

/// Which of the fronts a path such as `front::grpc::signer` belongs to: "grpc", "http", or none for what they share.
fn front_of(path: &str) -> &str {
    path.split("::").nth(1).filter(|front| ["grpc", "http"].contains(front)).unwrap_or("")
}

/// The paths of ours that a file names, from the crate's root, as deep as two segments.
fn used_paths(name: &str, code: &str) -> Vec<String> {
    let depth = name.trim_end_matches("mod.rs").split('/').filter(|part| !part.is_empty()).count();
    let to_root = format!("{}::", vec!["super"; depth].join("::"));
    let mut paths = Vec::new();
    for root in ["crate::", "signet::", &to_root] {
        for (at, _) in code.match_indices(root) {
            let before = code[..at].chars().next_back().unwrap_or(' ');
            if !before.is_alphanumeric() && before != '_' && before != ':' {
                paths.extend(leaves(&code[at + root.len()..], 2));
            }
        }
    }
    paths
}

/// `a::{b, c::d}` is a::b and a::c, at a depth of two.
fn leaves(text: &str, depth: usize) -> Vec<String> {
    let text = text.trim_start();
    if let Some(group) = text.strip_prefix('{') {
        return split_group(group).into_iter().flat_map(|item| leaves(item, depth)).collect();
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let (segment, rest) = text.split_at(end);
    match rest.strip_prefix("::").filter(|_| depth > 1) {
        Some(rest) => leaves(rest, depth - 1)
            .into_iter()
            .map(
                |leaf| {
                    if leaf.is_empty() || leaf == "self" { segment.to_owned() } else { format!("{segment}::{leaf}") }
                },
            )
            .collect(),
        None => vec![segment.to_owned()],
    }
}

/// The items of a group, up to the brace that closes it.
fn split_group(text: &str) -> Vec<&str> {
    let (mut items, mut start, mut depth) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            '}' | ',' if depth == 0 => {
                items.push(text[start..at].trim());
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    items.retain(|item| !item.is_empty());
    items
}

fn fences(name: &str, code: &str) -> Vec<String> {
    let inside = |place: &&str| match place.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == *place || (place.ends_with('/') && name.starts_with(place)),
    };
    let mut complaints = Vec::new();
    for (fenced, places) in FENCES {
        if places.iter().any(inside) {
            continue;
        }
        // The parts of `use std::{fs, io}` are named by what they are in the end.
        complaints.extend(
            fenced
                .iter()
                .filter(|name| names(code, name))
                .map(|name| format!("{} only in {}", name.trim_end_matches("::"), places.join(", "))),
        );
    }
    complaints
}

fn names(code: &str, fenced: &str) -> bool {
    let starts_word = |at: usize| {
        let before = code[..at].chars().next_back().unwrap_or(' ');
        !before.is_alphanumeric() && before != '_' && before != ':'
    };
    let ends_word = |at: usize| {
        fenced.ends_with("::")
            || code[at + fenced.len()..].chars().next().is_none_or(|c| !c.is_alphanumeric() && c != '_')
    };
    let written_out = code.match_indices(fenced).any(|(at, _)| starts_word(at) && ends_word(at));
    let grouped = fenced.strip_prefix("std::").is_some_and(|part| {
        code.match_indices("std::{")
            .any(|(at, root)| leaves(&code[at + root.len() - 1..], 1).iter().any(|leaf| leaf == part))
    });
    written_out || grouped
}

/// Every function's name and how many lines it has, from `fn` to its closing brace.
fn functions(code: &str) -> Vec<(String, usize)> {
    let mut functions = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        if code[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at..];
        let Some(open) = rest.find(['{', ';']).filter(|open| rest[*open..].starts_with('{')) else { continue };
        let end = open + closing(&rest[open..]);
        let name = rest["fn ".len()..].split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
        functions.push((name.to_owned(), rest[..end].lines().count()));
    }
    functions
}

/// How far the block goes that begins here.
fn closing(code: &str) -> usize {
    let mut depth = 0;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => continue,
        }
        if depth == 0 {
            return at + 1;
        }
    }
    code.len()
}

/// The code without its `#[cfg(test)]` modules.
fn without_tests(code: &str) -> String {
    let Some(start) = code.find("#[cfg(test)]\nmod ") else { return code.to_owned() };
    let rest = &code[start..];
    let end = match rest.find(['{', ';']) {
        Some(open) if rest[open..].starts_with('{') => open + closing(&rest[open..]),
        Some(semicolon) => semicolon + 1,
        None => rest.len(),
    };
    format!("{}{}", &code[..start], without_tests(&rest[end..]))
}

/// The code with comments and the insides of literals blanked out, and every line where it was.
fn blank(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = literal(rest, code.chars().next_back().unwrap_or(' '));
        if length == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        code.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[length..];
    }
    code
}

/// How long the comment or literal is that begins here; 0 where none does.
fn literal(text: &str, before: char) -> usize {
    let until = |end: &str, from: usize| text[from..].find(end).map_or(text.len(), |at| from + at + end.len());
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return until("*/", 2);
    }
    if text.starts_with('"') {
        return quoted(text, '"');
    }
    let in_word = before.is_alphanumeric() || before == '_';
    if !in_word && text.starts_with("b'") {
        return 1 + quoted(&text[1..], '\'');
    }
    let raw = text.trim_start_matches(['b', 'c']);
    if !in_word && raw.starts_with("r") && text.len() - raw.len() <= 1 {
        let hashes = raw[1..].len() - raw[1..].trim_start_matches('#').len();
        if raw[1 + hashes..].starts_with('"') {
            return until(&format!("\"{}", "#".repeat(hashes)), text.len() - raw.len() + 2 + hashes);
        }
    }
    // 'a' is a literal, 'a a lifetime.
    if text.starts_with("'\\") || (text.starts_with('\'') && text.chars().nth(2) == Some('\'')) {
        return quoted(text, '\'');
    }
    0
}

fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = true;
    for (at, c) in text.char_indices() {
        if c == quote && !escaped {
            return at + c.len_utf8();
        }
        escaped = at > 0 && c == '\\' && !escaped;
    }
    text.len()
}

mod proof {
    //! That it can fail: each rule with a source that breaks it.

    use super::*;

    #[test]
    fn a_module_may_use_what_the_table_says_and_no_more() {
        let allowed = "use crate::key::KeyId;\nuse crate::access::{Account, Policy};\nuse crate::jwt::jws::Shape;\n";
        assert_eq!(judge("jwt/claims.rs", allowed), [""; 0]);
        for forbidden in
            ["use crate::device::Pin;", "use crate::{key, device::Pin};", "let pin = crate::device::Pin::read();"]
        {
            assert_eq!(judge("jwt/claims.rs", forbidden), ["jwt/claims.rs: may not use device::Pin"]);
        }
        assert_eq!(judge("jwt/mod.rs", "use super::device;"), ["jwt/mod.rs: may not use device"]);
        assert_eq!(
            judge("jwt/claims.rs", "use super::super::config::Config;"),
            ["jwt/claims.rs: may not use config::Config"]
        );
        assert_eq!(judge("key.rs", "use super::keyring::Keyring;"), ["key.rs: may not use keyring::Keyring"]);
        assert_eq!(judge("jwt/claims.rs", "use super::jws::Shape;"), [""; 0]);
    }

    #[test]
    fn the_signer_knows_a_device_by_its_handle_alone() {
        assert_eq!(judge("signer/mod.rs", "use crate::device::{DeviceError, handle::Handle};"), [""; 0]);
        assert_eq!(
            judge("signer/mod.rs", "use crate::device::{DeviceError, Pin};"),
            ["signer/mod.rs: may not use device::Pin"]
        );
    }

    #[test]
    fn the_daemon_process_never_provisions() {
        let complaint = ["daemon.rs: Provision only in device*, ctl*"];
        assert_eq!(judge("daemon.rs", "use crate::device::{DeviceConfig, Provision};"), complaint);
        assert_eq!(judge("bin/signetd.rs", "use signet::sandbox::guard_memory;"), [""; 0]);
        assert_eq!(
            judge("bin/signetd.rs", "use signet::signer::Signer;"),
            ["bin/signetd.rs: may not use signer::Signer"]
        );
    }

    #[test]
    fn one_front_never_uses_another() {
        assert_eq!(
            judge("front/grpc/signer.rs", "use crate::front::grpc::status;\nuse crate::front::admission;"),
            [""; 0]
        );
        let complaint = ["front/http/iam.rs: a front uses another: front::grpc"];
        assert_eq!(judge("front/http/iam.rs", "use crate::front::grpc::status;"), complaint);
    }

    #[test]
    fn a_new_module_needs_a_line_in_the_table() {
        assert_eq!(judge("utils.rs", ""), ["utils.rs: the module utils is not in the table of ARCHITECTURE.md"]);
    }

    #[test]
    fn crates_stay_behind_their_fences() {
        for (name, code, fenced) in [
            ("device/mod.rs", "use cryptoki::context::Pkcs11;", "cryptoki"),
            ("device/pkcs11.rs", "use tss_esapi::Context;", "tss_esapi"),
            ("signer/mod.rs", "fn f() -> tonic::Status {}", "tonic"),
            ("config/mod.rs", "#[derive(clap::Parser)]", "clap"),
            ("access/policy.rs", "use tokio::sync::Mutex;", "tokio"),
            ("key.rs", "use std::fs::File;", "std::fs"),
            ("jwt/claims.rs", "use std::{fmt, fs};", "std::fs"),
            ("jwt/claims.rs", "use std::{fmt, fs::File};", "std::fs"),
            ("jwt/mod.rs", "let now = SystemTime::now();", "SystemTime::now"),
        ] {
            let complaints = judge(name, code);
            assert!(
                complaints.iter().any(|complaint| complaint.starts_with(&format!("{name}: {fenced} only in "))),
                "{complaints:?}"
            );
        }
        assert_eq!(judge("device/pkcs11/pool.rs", "use cryptoki::context::Pkcs11;"), [""; 0]);
        assert_eq!(judge("device/mod.rs", "// cryptoki::context\nlet a = \"tonic::Status\";"), [""; 0]);
    }

    #[test]
    fn a_file_has_its_ceiling_without_its_tests() {
        let lines = |count: usize| "const A: u8 = 1;\n".repeat(count);
        assert_eq!(judge("key.rs", &lines(400)), [""; 0]);
        assert_eq!(judge("key.rs", &lines(401)), ["key.rs: more than 400 lines"]);
        let tests = format!("{}#[cfg(test)]\nmod tests {{\n{}}}\n", lines(400), lines(100));
        assert_eq!(judge("key.rs", &tests), [""; 0]);
        assert_eq!(judge("key.rs", &format!("{tests}{}", lines(1))), ["key.rs: more than 400 lines"]);
    }

    #[test]
    fn a_function_has_its_ceiling() {
        let function =
            |count: usize| format!("fn long(a: &'static str) {{\n{}}}\n", "    if a == '}' {} // }\n".repeat(count));
        assert_eq!(judge("key.rs", &function(58)), [""; 0]);
        let short = function(58).replace("a == '}'", "a == \"}\" || b == r#\"\"}\"# || c == '\\'' || d == b'{'");
        assert_eq!(judge("key.rs", &short), [""; 0]);
        assert_eq!(judge("key.rs", &function(59)), ["key.rs: fn long has more than 60 lines"]);
        let method = format!("trait T {{ fn none(&self); }}\nimpl T {{\n{}}}\n", function(59));
        assert_eq!(judge("key.rs", &method), ["key.rs: fn long has more than 60 lines"]);
    }

    #[test]
    fn tests_may_import_what_they_like() {
        assert_eq!(judge("key.rs", "#[cfg(test)]\nmod tests {\n    use crate::device::Pin;\n}\n"), [""; 0]);
    }
}
