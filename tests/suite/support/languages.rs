//! The languages of other people's libraries, as scripts/deps installs them. Where one is missing that is said, and None.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::skip;

/// A path in the repository.
pub(crate) fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Python with the libraries of tests/clients/python/requirements.txt.
pub(crate) fn python() -> Option<PathBuf> {
    let python = root("target/verifiers/bin/python");
    there(python.exists(), "target/verifiers (run scripts/deps)", "python3-venv")?;
    Some(python)
}

/// Builds every program of a Go module into a folder.
pub(crate) fn go(module: &str, into: &Path) -> Option<()> {
    // Where the system's was too old, scripts/deps has fetched one.
    let own = root("target/go/bin/go");
    let go = if own.exists() { own } else { "go".into() };
    let version =
        Command::new(&go).arg("version").output().ok().map(|output| String::from_utf8(output.stdout).unwrap());
    let minor = version.as_deref().and_then(|text| text.split("go1.").nth(1)?.split(['.', ' ']).next()?.parse().ok());
    there(minor.is_some_and(|minor: u32| minor >= 24), "Go 1.24 or newer (run scripts/deps)", "golang-go")?;
    std::fs::create_dir_all(into).unwrap();
    let mut build = Command::new(go);
    let built = build.args(["build", "-mod=readonly", "-o"]).arg(into).arg("./...").current_dir(root(module)).output();
    let built = built.unwrap();
    assert!(built.status.success(), "{module}: {}", String::from_utf8_lossy(&built.stderr));
    Some(())
}

/// The folder in which Node finds the libraries of examples/node.
pub(crate) fn node() -> Option<PathBuf> {
    let folder = root("target/examples/node");
    there(runs("node", &["--version"]), "Node 18 or newer", "nodejs npm")?;
    there(folder.join("node_modules").exists(), "target/examples/node (run scripts/deps)", "npm")?;
    Some(folder)
}

/// The class path of the libraries of examples/java.
pub(crate) fn java() -> Option<String> {
    let libraries = root("target/examples/java");
    there(runs("java", &["--version"]), "Java 17 or newer", "default-jdk-headless")?;
    there(libraries.exists(), "target/examples/java (run scripts/deps)", "maven")?;
    Some(libraries.join("*").into_os_string().into_string().unwrap())
}

/// Where Json.NET stands, where Mono can compile with it.
pub(crate) fn mono() -> Option<&'static str> {
    let json = "/usr/lib/cli/Newtonsoft.Json-5.0/Newtonsoft.Json.dll";
    let packages = "mono-mcs mono-runtime libmono-system-net-http4.0-cil libnewtonsoft-json5.0-cil";
    there(runs("mcs", &["--version"]) && Path::new(json).exists(), "Mono", packages)?;
    Some(json)
}

/// The folder with the programs of examples/rust, built.
pub(crate) fn rust() -> Option<PathBuf> {
    let target = root("target/examples/rust");
    there(target.join("debug/adc").exists(), "target/examples/rust (run scripts/deps, with Rust 1.91)", "rustup")?;
    cargo(&["build", "--target-dir", target.to_str().unwrap()], &root("examples/rust"));
    Some(target.join("debug"))
}

/// Runs cargo in a folder, without what it tells the tests: some build scripts run again where that differs.
pub(crate) fn cargo(arguments: &[&str], folder: &Path) {
    let mut cargo = Command::new(env!("CARGO"));
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|ours| name.to_string_lossy().starts_with(ours)) {
            cargo.env_remove(name);
        }
    }
    let output = cargo.args(arguments).args(["--quiet", "--locked", "--offline"]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn runs(program: impl AsRef<OsStr>, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

fn there(is: bool, what: &str, packages: &str) -> Option<()> {
    if !is {
        skip(what, packages);
    }
    is.then_some(())
}
