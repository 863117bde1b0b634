//! `signetctl env`: what makes Google's libraries and gcloud ask signetd, for a shell or a unit.

use std::env;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::json;

use super::failure::{Exit, Failure};
use super::{Global, client};
use crate::access::AccountEmail;
use crate::file;
use crate::proto;

/// Print what makes Google's libraries and gcloud ask signetd, for a shell or a unit
///
/// The variables name signetd's HTTP address as that of the metadata server, and unset what would keep a client from asking
/// there. With --external-account the clients get a credentials file instead, and prove who they are by a subject token
/// (signetctl subject-token).
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  eval \"$(signetctl env)\"
  signetctl env --shell fish | source
  signetctl env --shell systemd > /etc/systemd/system/app.service.d/signet.conf
  eval \"$(signetctl env --external-account ~/signet.json \\
      --subject-token /run/signet-subjects/app/token)\"")]
pub(crate) struct Options {
    /// What is to read the lines
    #[arg(long, value_enum, default_value_t, value_name = "SHELL")]
    shell: Shell,
    /// Where signetd serves HTTP; by default as its configuration says
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
    /// The account whose project is named; by default the default account
    #[arg(long, value_name = "EMAIL")]
    account: Option<AccountEmail>,
    /// Write a credentials file of the type external_account, and name it
    #[arg(long, value_name = "FILE", requires = "subject_token")]
    external_account: Option<PathBuf>,
    /// Where the subject token stands, for the credentials file
    #[arg(long, value_name = "FILE", requires = "external_account")]
    subject_token: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Shell {
    /// bash, and every other shell that knows export
    #[default]
    #[value(aliases = ["sh", "dash", "ksh", "zsh"])]
    Bash,
    /// fish
    Fish,
    /// A drop-in for a service unit
    Systemd,
}

/// What is to be set, and what must not be.
#[derive(Debug, Serialize)]
struct Environment {
    set: Vec<(&'static str, String)>,
    unset: Vec<&'static str>,
}

pub(crate) fn run(options: Options, global: &Global) -> Result<(), Failure> {
    let address = options.http.map_or_else(|| http_address(global), Ok)?;
    let named = options.account.as_ref().map(ToString::to_string).unwrap_or_default();
    let request = proto::GetAccountRequest { account: named };
    let account = client::call(global, |mut client| async move { client.get_account(request).await });
    // A shell's start must not fail for this: the libraries ask the daemon for the project themselves.
    let account =
        account.inspect_err(|failure| global.note(format!("No account and project are named: {failure}."))).ok();
    let mut environment = match options.external_account.zip(options.subject_token) {
        None => Environment::metadata(address),
        Some((file, subject_token)) => {
            let email = options.account.map(String::from).or(account.as_ref().map(|account| account.email.clone()));
            let email = email.ok_or_else(|| Failure::usage("the account is not known").hint("--account EMAIL"))?;
            Environment::external_account(address, &file, &subject_token, &email)?
        }
    };
    if let Some(project) = account.map(|account| account.project_id).filter(|project| !project.is_empty()) {
        environment.set.push(("GOOGLE_CLOUD_PROJECT", project));
    }
    // For what speaks gRPC, and for signetctl.
    if let Some(socket) = global.socket().ok().and_then(|socket| std::path::absolute(socket).ok()) {
        environment.set.push(("SIGNET_SOCKET", socket.display().to_string()));
    }
    if let Some(spared) = no_proxy(address, |name| env::var(name).ok()) {
        environment.set.extend(["NO_PROXY", "no_proxy"].map(|name| (name, spared.clone())));
    }
    if let Some(file) = other_credentials() {
        global.note(format!(
            "{} goes before what is printed here, for every library: move it away, or set CLOUDSDK_CONFIG to an empty folder.",
            file.display()
        ));
    }
    global.show(&environment, environment.lines(options.shell))
}

/// Where signetd serves HTTP, by its configuration.
fn http_address(global: &Global) -> Result<SocketAddr, Failure> {
    let listen = global.listen().map_err(|failure| {
        failure
            .aftermath("so where signetd serves HTTP must be said")
            .hint("--http 127.0.0.1:PORT, as its operator set listen.http")
    })?;
    listen.http.ok_or_else(|| {
        Failure::with(Exit::Unavailable, "signetd does not serve HTTP: Google's libraries have nothing to ask")
            .hint("http = \"127.0.0.1:8980\" under [listen] in its configuration, and restart signetd")
    })
}

impl Environment {
    /// What names an address as that of the metadata server. Libraries differ in which of the three they read.
    fn metadata(address: SocketAddr) -> Self {
        let host = address.to_string();
        let mut set: Vec<_> = METADATA.iter().map(|name| (*name, host.clone())).collect();
        set.push((IAM_OVERRIDE, format!("http://{host}/")));
        Self { set, unset: [&["GOOGLE_APPLICATION_CREDENTIALS"], PRECEDING].concat() }
    }

    /// Writes a credentials file, and names it.
    fn external_account(address: SocketAddr, file: &Path, subject_token: &Path, email: &str) -> Result<Self, Failure> {
        let absolute = |path: &Path| std::path::absolute(path).map_err(Failure::usage);
        let (file, subject_token) = (absolute(file)?, absolute(subject_token)?);
        let document = external_account(address, &subject_token, email);
        let text = serde_json::to_string_pretty(&document).map_err(Failure::new)?;
        file::replace_as(0o644, &file, text.as_bytes()).map_err(|error| {
            Failure::new(format!("{}: {error}", file.display())).hint("a file in a folder that you can write")
        })?;
        let set = vec![
            ("GOOGLE_APPLICATION_CREDENTIALS", file.display().to_string()),
            (IAM_OVERRIDE, format!("http://{address}/")),
        ];
        Ok(Self { set, unset: PRECEDING.to_vec() })
    }

    fn lines(&self, shell: Shell) -> String {
        let set = self.set.iter().map(|(name, value)| match shell {
            Shell::Bash => format!("export {name}={}", quoted(value, r"'\''")),
            Shell::Fish => format!("set -gx {name} {}", quoted(&value.replace('\\', r"\\"), r"\'")),
            Shell::Systemd => format!("Environment={}", of_systemd(&format!("{name}={value}"))),
        });
        let names = self.unset.join(" ");
        let unset = match shell {
            Shell::Bash => format!("unset {names}"),
            // To fish it has failed where one of them was not set.
            Shell::Fish => format!("set -e {names}; or true"),
            Shell::Systemd => format!("UnsetEnvironment={names}"),
        };
        let head = matches!(shell, Shell::Systemd).then(|| "[Service]".to_owned());
        let lines: Vec<_> = head.into_iter().chain(set).chain([unset]).collect();
        lines.join("\n")
    }
}

/// The document by which a library exchanges a subject token. Its audience names the account, and holds no `projects`:
/// Python would look the project up at Google.
fn external_account(address: SocketAddr, subject_token: &Path, email: &str) -> serde_json::Value {
    json!({
        "type": "external_account",
        "audience": format!("//signet/{email}"),
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": format!("http://{address}/v1/token"),
        "credential_source": { "file": subject_token },
    })
}

/// In single quotes, where anything stands in it that a shell might read.
fn quoted(text: &str, quote: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', quote))
    }
}

/// In double quotes, with what systemd.exec(5) would expand.
fn of_systemd(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\"").replace('%', "%%"))
}

/// What `NO_PROXY` must be, where a proxy of the environment would get what is meant for signetd.
pub(crate) fn no_proxy(address: SocketAddr, variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    let given = |name: &&str| variable(name).filter(|value| !value.is_empty());
    ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"].iter().find_map(given)?;
    let spared = ["no_proxy", "NO_PROXY"].iter().find_map(given);
    let host = address.ip().to_string();
    match spared {
        Some(list) if list.split(',').any(|one| ["*", host.as_str()].contains(&one.trim())) => None,
        Some(list) => Some(format!("{list},{host}")),
        None => Some(host),
    }
}

/// The credentials that every library finds before it asks a metadata server: what `gcloud auth application-default login` left.
pub(crate) fn other_credentials() -> Option<PathBuf> {
    let folder = match env::var_os("CLOUDSDK_CONFIG") {
        Some(folder) => PathBuf::from(folder),
        None => env::home_dir()?.join(".config/gcloud"),
    };
    Some(folder.join("application_default_credentials.json")).filter(|file| file.exists())
}

/// What the libraries call the address of the metadata server.
pub(crate) const METADATA: &[&str] = &["GCE_METADATA_HOST", "GCE_METADATA_IP", "GCE_METADATA_ROOT"];
/// What keeps a library from the metadata server, or goes before it.
pub(crate) const PRECEDING: &[&str] = &[
    "NO_GCE_CHECK",
    "METADATA_SERVER_DETECTION",
    "GCE_METADATA_MTLS_MODE",
    "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE",
    "CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE",
];
/// With it gcloud signs URLs and impersonates here.
const IAM_OVERRIDE: &str = "CLOUDSDK_API_ENDPOINT_OVERRIDES_IAMCREDENTIALS";

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> SocketAddr {
        "127.0.0.1:8980".parse().unwrap()
    }

    #[test]
    fn what_a_proxy_would_get_is_spared() {
        let spared = |variables: &[(&str, &str)]| {
            no_proxy(address(), |name| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(spared(&[]), None);
        assert_eq!(spared(&[("https_proxy", "http://p"), ("http_proxy", "")]), None);
        assert_eq!(spared(&[("http_proxy", "http://p")]).unwrap(), "127.0.0.1");
        assert_eq!(spared(&[("ALL_PROXY", "http://p"), ("no_proxy", "a,b")]).unwrap(), "a,b,127.0.0.1");
        for list in ["*", "a, 127.0.0.1"] {
            assert_eq!(spared(&[("HTTP_PROXY", "http://p"), ("NO_PROXY", list)]), None, "{list}");
        }
    }

    #[test]
    fn shells_like_bash_are_known_by_their_names() {
        for name in ["bash", "sh", "zsh"] {
            assert!(matches!(Shell::from_str(name, false), Ok(Shell::Bash)), "{name}");
        }
    }

    #[test]
    fn no_value_is_read_by_a_shell() {
        let environment = Environment { set: vec![("A", r#"it's $(x) \ "%h""#.to_owned())], unset: vec!["B", "C"] };
        assert_eq!(environment.lines(Shell::Bash), "export A='it'\\''s $(x) \\ \"%h\"'\nunset B C");
        assert_eq!(environment.lines(Shell::Fish), "set -gx A 'it\\'s $(x) \\\\ \"%h\"'\nset -e B C; or true");
        let unit = "[Service]\nEnvironment=\"A=it's $(x) \\\\ \\\"%%h\\\"\"\nUnsetEnvironment=B C";
        assert_eq!(environment.lines(Shell::Systemd), unit);
    }
}
