//! The configuration: what a file says is what comes of it. What is wrong with it is in `bad_input`. T13: nothing that others
//! could change or read is relied on.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use signet::access::{ClaimPattern, Executable, Glob, Operation};
use signet::config::{Config, ConfigError, Fsync};
use signet::device::{DeviceKind, Pin, TokenSelector, TpmParent, TpmSession};
use tempfile::TempDir;

/// A configuration that is right in a folder with a module and a PIN.
pub(crate) const GOOD: &str = r#"state_dir = "state"

[[device]]
name = "hsm"
kind = "pkcs11"
module = "{folder}/module.so"
token = "signet"
pin_file = "pin"

[[account]]
email = "app@project.iam.gserviceaccount.com"

[[allow]]
users = ["root"]
accounts = ["app@project.iam.gserviceaccount.com"]
operations = ["sign-jwt"]
"#;

/// A folder with a configuration, its PIN and a file that stands for a module.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::Builder::new().prefix("signet-config-").tempdir().unwrap());
        folder.write("pin", 0o600, "123456\n");
        folder.write("module.so", 0o644, "");
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, mode: u32, text: &str) {
        fs::write(self.path(name), text).unwrap();
        self.chmod(name, mode);
    }

    fn chmod(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), Permissions::from_mode(mode)).unwrap();
    }

    /// A configuration that is right.
    fn text(&self) -> String {
        format!("\n{}", GOOD.replace("{folder}", self.0.path().to_str().unwrap()))
    }

    fn load(&self, text: &str) -> Result<Config, ConfigError> {
        self.write("signet.toml", 0o644, text);
        Config::load(&self.path("signet.toml"))
    }

    fn refusal(&self) -> String {
        let error = Config::load(&self.path("signet.toml")).expect_err("refused");
        format!("error: {error}\ntry: {}", error.remedy)
    }
}

fn assert_says(refusal: &str, parts: &[&str]) {
    assert!(refusal.starts_with("error: /"), "no file: {refusal}");
    for part in parts {
        assert!(refusal.contains(part), "{part:?} is not in: {refusal}");
    }
}

#[test]
fn the_reference_configuration_loads() {
    let reference = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/signet.toml")).unwrap();
    let folder = Folder::new();
    folder.write("owner-auth", 0o600, "secret\n");
    folder.write("ca.pem", 0o644, "authorities\n");
    // Its users, groups and module need not exist on this machine.
    let text = reference
        .replace("/usr/lib/softhsm/libsofthsm2.so", folder.path("module.so").to_str().unwrap())
        .replace("\"app\"", "\"root\"")
        .replace("\"signet-clients\"", "\"root\"")
        .replace("/var/lib/signet", folder.path("state").to_str().unwrap());
    let config = folder.load(&text).unwrap();
    assert_eq!(config.devices.len(), 2);
    assert!(matches!(config.devices[0].kind, DeviceKind::Pkcs11(_)));
    assert!(matches!(config.devices[1].kind, DeviceKind::Tpm(_)));
    assert_eq!(config.listen.grpc, Path::new("/run/signet/signet.sock"));

    // Every key that stands there as a comment is one too.
    let uncommented: String =
        text.lines().map(|line| format!("{}\n", line.strip_prefix("#: ").unwrap_or(line))).collect();
    assert_ne!(uncommented, text);
    let config = folder.load(&uncommented).unwrap();
    let [exchange] = config.exchanges.values().collect::<Vec<_>>()[..] else { panic!("one account has an exchange") };
    assert_eq!(exchange.token_uri, "https://oauth2.googleapis.com/token");
    assert_eq!(exchange.ca_file.as_deref(), Some(folder.path("ca.pem").as_path()));
}

#[test]
fn what_is_left_out_has_its_default() {
    let folder = Folder::new();
    let config = folder.load(&folder.text().replace("state_dir = \"state\"", "")).unwrap();
    assert_eq!(&*config.state_dir, Path::new("/var/lib/signet"));
    assert_eq!(config.listen.grpc, Path::new("/run/signet/signet.sock"));
    assert_eq!((config.listen.mode, config.listen.group), (0o660, None));
    assert_eq!(config.audit.path, Path::new("/var/lib/signet/audit.log"));
    assert_eq!(config.audit.fsync, Fsync::Interval);
    assert_eq!(config.max_client_cache_time, Duration::from_secs(900));
    assert_eq!(config.devices[0].call_limit, Duration::from_secs(10));
    assert_eq!(config.devices[0].latch_file, Path::new("/var/lib/signet/latches/hsm.json"));
    assert_eq!(config.policy.default_account().unwrap().email.as_str(), "app@project.iam.gserviceaccount.com");
}

#[test]
fn relative_paths_are_relative_to_the_file_however_it_was_named() {
    let folder = Folder::new();
    folder.load(&folder.text()).unwrap();
    let elsewhere = TempDir::new().unwrap();
    symlink(folder.path("signet.toml"), elsewhere.path().join("link.toml")).unwrap();
    let real = fs::canonicalize(folder.0.path()).unwrap();
    for name in [folder.path("signet.toml"), elsewhere.path().join("link.toml")] {
        let config = Config::load(&name).unwrap();
        assert_eq!(config.path, real.join("signet.toml"));
        assert_eq!(*config.state_dir, *real.join("state"));
        let DeviceKind::Pkcs11(pkcs11) = &config.devices[0].kind else { panic!("not pkcs11") };
        assert_eq!(pkcs11.pin_file.as_deref(), Some(real.join("pin").as_path()));
    }
}

#[test]
fn everything_that_is_written_arrives() {
    let folder = Folder::new();
    let text = folder.text()
        .replace("token = \"signet\"", "token = \"serial:0a1b\"\nsessions = 7\nallow_final_pin_try = true\nqueue = 9\ncall_limit = \"1500ms\"\nenvironment = { A = \"b\" }")
        .replace("users = [\"root\"]", "users = [\"root\", 1234]\ngroups = [\"root\", \"77\"]\naudiences = [\"https://*\"]\nscopes = [\"s\"]\nclaims = { role = [\"a*\"], admin = [false, 1] }\nblob_prefixes = [\"GOOG4-RSA-SHA256\\n\"]\nmax_lifetime = \"30m\"")
        .replace("[[account]]", "[[device]]\nname = \"tpm\"\nkind = \"tpm\"\ntcti = \"swtpm:path=/x\"\nsession = \"plain\"\n\n[listen]\ngrpc = \"run/s.sock\"\nmode = \"0600\"\ngroup = 0\n\n[audit]\npath = \"log/a.log\"\nfsync = \"always\"\n\n[[account]]\nproject_id = \"project\"\ndefault = true")
        .replace("state_dir = \"state\"", "state_dir = \"state\"\nmax_client_cache_time = \"1h\"");
    fs::create_dir_all(folder.path("state/devices")).unwrap();
    folder.write("state/devices/tpm.json", 0o644, r#"{"handle":2164260864,"name":"000b00"}"#);
    let config = folder.load(&text).unwrap();

    let device = &config.devices[0];
    assert_eq!((device.queue, device.call_limit), (9, Duration::from_millis(1500)));
    let DeviceKind::Pkcs11(pkcs11) = &device.kind else { panic!("not pkcs11") };
    assert_eq!(pkcs11.token, TokenSelector::Serial("0a1b".to_owned()));
    assert_eq!((pkcs11.sessions, pkcs11.allow_final_pin_try), (7, true));
    assert_eq!(pkcs11.environment.as_ref().unwrap()["A"], "b");
    let DeviceKind::Tpm(tpm) = &config.devices[1].kind else { panic!("no tpm") };
    assert_eq!((tpm.tcti.as_str(), tpm.session), ("swtpm:path=/x", TpmSession::Plain));
    assert_eq!(tpm.parent, Some(TpmParent { handle: 0x8100_0000, name: "000b00".to_owned() }));
    assert!(config.listen.grpc.ends_with("s.sock"));
    assert_eq!((config.listen.mode, config.listen.group), (0o600, Some(0)));
    assert!(config.audit.path.ends_with("a.log"));
    assert_eq!(config.audit.fsync, Fsync::Always);
    assert_eq!(config.max_client_cache_time, Duration::from_secs(3600));
    assert_eq!(config.policy.accounts()[0].project_id.as_deref(), Some("project"));
    assert!(config.policy.accounts()[0].default);
    let rule = &config.policy.rules()[0];
    assert_eq!((rule.users.as_deref(), rule.groups.as_deref()), (Some(&[0, 1234][..]), Some(&[0, 77][..])));
    assert_eq!(rule.operations, [Operation::SignJwt]);
    assert_eq!(rule.audiences, Some(vec![Glob::new("https://*")]));
    assert_eq!(rule.scopes, Some(vec![Glob::new("s")]));
    let (no, one) = (ClaimPattern::Json("false".to_owned()), ClaimPattern::Json("1".to_owned()));
    let pattern = ClaimPattern::Text(Glob::new("a*"));
    assert_eq!(rule.claims, Some(vec![("admin".to_owned(), vec![no, one]), ("role".to_owned(), vec![pattern])]));
    assert_eq!(rule.blob_prefixes, Some(vec![b"GOOG4-RSA-SHA256\n".to_vec()]));
    assert_eq!(rule.max_lifetime, Some(Duration::from_secs(1800)));
}

#[test]
fn a_client_learns_the_socket_without_looking_at_secrets() {
    let folder = Folder::new();
    folder.write("signet.toml", 0o644, &folder.text());
    folder.chmod("pin", 0o644);
    folder.refusal();
    assert_eq!(Config::listen(&folder.path("signet.toml")).unwrap().grpc, Path::new("/run/signet/signet.sock"));
}

#[test]
fn no_such_file() {
    let folder = Folder::new();
    assert_says(&folder.refusal(), &["signet.toml: there is no such file", "try: signetctl init"]);
}

#[test]
fn a_folder_instead_of_a_file() {
    let folder = Folder::new();
    fs::create_dir(folder.path("signet.toml")).unwrap();
    assert_says(&folder.refusal(), &["is no file", "--config"]);
}

#[test]
fn not_utf_8() {
    let folder = Folder::new();
    fs::write(folder.path("signet.toml"), b"a = '\xff'").unwrap();
    assert_says(&folder.refusal(), &["UTF-8"]);
}

#[test]
fn t13_certificate_authorities_of_an_exchange_writable_by_others() {
    let folder = Folder::new();
    let exchange = "[account.exchange]\nmode = \"jwt-bearer\"\nca_file = \"ca.pem\"\n[[allow]]";
    folder.write("signet.toml", 0o644, &folder.text().replace("[[allow]]", exchange));
    assert_says(&folder.refusal(), &["ca.pem: No such file", "try: correct the path"]);
    folder.write("ca.pem", 0o666, "authorities\n");
    assert_says(&folder.refusal(), &["ca.pem can be written by everybody", "try: chmod go-w"]);
}

#[test]
fn a_first_configuration_has_no_account_yet() {
    let folder = Folder::new();
    let text = folder.text();
    let config = folder.load(&text[..text.find("[[account]]").unwrap()]).unwrap();
    assert!(config.policy.accounts().is_empty() && config.policy.rules().is_empty());
}

/// Each device has a latch of its own: a wrong PIN of a token with two would be tried twice.
#[test]
fn one_token_is_no_two_devices() {
    let second = |module: &str, rest: &str| {
        let folder = Folder::new();
        symlink(folder.path("module.so"), folder.path("link.so")).unwrap();
        let module = folder.path(module).display().to_string();
        let device =
            format!("[[device]]\nname = \"other\"\nkind = \"pkcs11\"\nmodule = \"{module}\"\n{rest}\n[[account]]");
        folder.load(&folder.text().replace("[[account]]", &device)).map_err(|error| error.to_string())
    };
    for same in [r#"token = "signet""#, r#"token = "serial:1""#, r#"token = "slot:1""#] {
        for module in ["module.so", "link.so"] {
            let refusal = second(module, same).unwrap_err();
            assert!(refusal.contains("hsm and other may be one token"), "{same}: {refusal}");
        }
    }
    assert!(second("module.so", r#"token = "another""#).is_ok());
    assert!(second("module.so", "token = \"signet\"\nenvironment = { TOKENS = \"elsewhere\" }").is_ok());
}

#[test]
fn units_executables_and_rates_are_what_the_file_says() {
    let folder = Folder::new();
    folder.write("app", 0o755, "");
    symlink(folder.path("app"), folder.path("link")).unwrap();
    let link = folder.path("link");
    let rule = format!(
        "units = [\"app@*.service\"]\nexecutables = [\"{}\", {{ path = \"/not/there\", sha256 = \"{}\" }}]\nrate = \"30/m\"\noperations",
        link.display(),
        "aB".repeat(32)
    );
    // A unit is enough to say who.
    let text = folder.text().replace("users = [\"root\"]", "").replace("operations", &rule);
    let config = folder.load(&text).unwrap();
    let rule = &config.policy.rules()[0];
    assert_eq!((&rule.users, &rule.units), (&None, &Some(vec![Glob::new("app@*.service")])));
    // The kernel tells paths without links.
    let app = Executable { path: fs::canonicalize(folder.path("app")).unwrap(), sha256: None };
    let other = Executable { path: "/not/there".into(), sha256: Some([0xab; 32]) };
    assert_eq!(rule.executables, Some(vec![app, other]));
    assert_eq!(rule.rate, Some("30/m".parse().unwrap()));
}

#[test]
fn a_socket_path_of_107_bytes() {
    let folder = Folder::new();
    let listen = format!("[listen]\ngrpc = \"/s/{}\"\n[[device]]", "s".repeat(104));
    folder.load(&folder.text().replacen("[[device]]", &listen, 1)).unwrap();
}

#[test]
fn t13_module_writable_by_others() {
    let folder = Folder::new();
    folder.write("signet.toml", 0o644, &folder.text());
    folder.chmod("module.so", 0o646);
    assert_says(
        &folder.refusal(),
        &["line 7: device.module", "can be written by everybody (mode 0646)", "try: chmod go-w /"],
    );
}

#[test]
fn t13_module_in_a_folder_writable_by_others() {
    let folder = Folder::new();
    fs::create_dir(folder.path("lib")).unwrap();
    folder.write("lib/module.so", 0o644, "");
    folder.write("signet.toml", 0o644, &folder.text().replace("/module.so", "/lib/module.so"));
    Config::load(&folder.path("signet.toml")).unwrap();
    folder.chmod("lib", 0o757);
    assert_says(&folder.refusal(), &["line 7: device.module", "/lib can be written by everybody", "try: chmod go-w"]);
}

#[test]
fn t13_module_behind_a_link_in_a_folder_writable_by_others() {
    let folder = Folder::new();
    for name in ["safe", "open"] {
        fs::create_dir(folder.path(name)).unwrap();
    }
    // safe/first.so -> ../open/second.so -> ../module.so: only the walk sees the folder in between.
    symlink("../module.so", folder.path("open/second.so")).unwrap();
    symlink("../open/second.so", folder.path("safe/first.so")).unwrap();
    folder.write("signet.toml", 0o644, &folder.text().replace("/module.so", "/safe/first.so"));
    Config::load(&folder.path("signet.toml")).unwrap();
    folder.chmod("open", 0o777);
    assert_says(&folder.refusal(), &["device.module", "/open can be written by everybody"]);
}

#[test]
fn a_link_to_itself() {
    let folder = Folder::new();
    symlink("loop.so", folder.path("loop.so")).unwrap();
    folder.write("signet.toml", 0o644, &folder.text().replace("/module.so", "/loop.so"));
    assert_says(&folder.refusal(), &["device.module", "symbolic links"]);
}

#[test]
fn t13_configuration_writable_by_others() {
    let folder = Folder::new();
    folder.load(&folder.text()).unwrap();
    folder.chmod("signet.toml", 0o646);
    assert_says(&folder.refusal(), &["signet.toml can be written by everybody (mode 0646)", "try: chmod go-w /"]);
}

#[test]
fn t13_configuration_in_a_folder_writable_by_others() {
    let folder = Folder::new();
    folder.load(&folder.text()).unwrap();
    fs::set_permissions(folder.0.path(), Permissions::from_mode(0o757)).unwrap();
    assert_says(&folder.refusal(), &["can be written by everybody (mode 0757)", "try: chmod go-w /"]);
}

#[test]
fn t13_state_folder_writable_by_others() {
    let folder = Folder::new();
    folder.load(&folder.text()).unwrap();
    fs::create_dir(folder.path("state")).unwrap();
    folder.chmod("state", 0o757);
    assert_says(&folder.refusal(), &["/state can be written by everybody", "try: chmod go-w /"]);
}

#[test]
fn t13_state_folder_in_a_folder_writable_by_others() {
    let folder = Folder::new();
    fs::create_dir_all(folder.path("shared/state")).unwrap();
    let text = folder.text().replace("state_dir = \"state\"", "state_dir = \"shared/state\"");
    folder.load(&text).unwrap();
    folder.chmod("shared", 0o757);
    assert_says(&folder.refusal(), &["/shared can be written by everybody", "try: chmod go-w /"]);
}

/// Nor may the daemon itself, were it taken over: its launcher starts what stands there.
#[test]
fn t13_configuration_or_module_in_a_folder_that_the_daemon_writes_to() {
    let listening = |folder: &Folder, grpc: &str| format!("{}[listen]\ngrpc = \"{grpc}\"\n", folder.text());
    let folder = Folder::new();
    fs::create_dir(folder.path("run")).unwrap();
    folder.load(&listening(&folder, "run/signet.sock")).unwrap();
    folder.write("signet.toml", 0o644, &listening(&folder, "signet.sock"));
    let remedy = "try: give state_dir, and the files of listen.grpc and audit.path, folders of their own";
    assert_says(&folder.refusal(), &["signet.toml lies in ", "which signetd itself may write", remedy]);
    folder.write("signet.toml", 0o644, &format!("{}[audit]\npath = \"audit.log\"\n", folder.text()));
    assert_says(&folder.refusal(), &["signet.toml lies in ", remedy]);
    // A link can be put elsewhere where it stands.
    folder.write("signet.toml", 0o644, &listening(&folder, "run/signet.sock"));
    symlink("../signet.toml", folder.path("run/link.toml")).unwrap();
    let error = Config::load(&folder.path("run/link.toml")).expect_err("refused").to_string();
    assert!(error.contains("run/link.toml lies in ") && error.contains("/run, which signetd itself may"), "{error}");
    fs::create_dir(folder.path("state")).unwrap();
    folder.write("state/module.so", 0o644, "");
    folder.write("signet.toml", 0o644, &folder.text().replace("/module.so", "/state/module.so"));
    assert_says(&folder.refusal(), &["/state/module.so lies in ", "/state, which signetd itself may write"]);
}

/// Nor turn a link on the way to them, wherever that begins and ends.
#[test]
fn t13_configuration_module_or_environment_by_way_of_what_the_daemon_writes() {
    let folder = Folder::new();
    for name in ["state", "links"] {
        fs::create_dir(folder.path(name)).unwrap();
    }
    symlink("..", folder.path("state/folder")).unwrap();
    symlink("../module.so", folder.path("state/inner.so")).unwrap();
    symlink("../state/inner.so", folder.path("links/outer.so")).unwrap();
    symlink("../state/folder", folder.path("links/folder")).unwrap();
    for (module, way) in [
        ("/state/folder/module.so", "/state/folder lies in "),
        ("/links/outer.so", "/state/inner.so lies in "),
        ("/links/folder/module.so", "/state/folder lies in "),
    ] {
        folder.write("signet.toml", 0o644, &folder.text().replace("/module.so", module));
        assert_says(&folder.refusal(), &[module, way, "/state, which signetd itself may write"]);
    }
    let with = |environment: &str| format!("token = \"signet\"\nenvironment = {{ MODULE_CONF = {environment:?} }}");
    let state = folder.path("state/module.conf");
    for environment in [state.display().to_string(), format!("/usr/lib:{}", state.display())] {
        folder.write("state/module.conf", 0o644, "");
        folder.write("signet.toml", 0o644, &folder.text().replace("token = \"signet\"", &with(&environment)));
        assert_says(&folder.refusal(), &["/state/module.conf lies in "]);
    }
    folder.load(&folder.text()).unwrap();
    let error = Config::load(&folder.path("links/folder/signet.toml")).expect_err("refused").to_string();
    assert!(error.contains("/state/folder lies in "), "{error}");
    let program = std::env::current_exe().unwrap();
    let beside = format!("state_dir = {:?}", program.parent().unwrap());
    folder.write("signet.toml", 0o644, &folder.text().replace("state_dir = \"state\"", &beside));
    assert_says(&folder.refusal(), &[&format!("{} lies in ", program.display())]);
}

#[test]
fn t13_pin_file_readable_by_others() {
    for (mode, by) in [(0o604, "everybody"), (0o640, "its group"), (0o601, "everybody")] {
        let folder = Folder::new();
        folder.load(&folder.text()).unwrap();
        folder.chmod("pin", mode);
        let what = format!("pin can be read by {by} (mode {mode:04o})");
        assert_says(&folder.refusal(), &["line 9: device.pin_file", &what, "try: chmod 0600 /"]);
    }
    let folder = Folder::new();
    folder.chmod("pin", 0o400);
    folder.load(&folder.text()).unwrap();
}

/// It was not there when the configuration was read, or was changed since.
#[test]
fn t13_a_pin_file_is_judged_again_when_it_is_read() {
    let folder = Folder::new();
    let read = |name: &str| Pin::read(&folder.path(name)).map(drop).map_err(|error| error.to_string());
    let refused = |name: &str, why: &str| {
        let error = read(name).unwrap_err();
        assert!(error.contains(why), "{error}");
    };
    read("pin").unwrap();
    symlink(folder.path("pin"), folder.path("link")).unwrap();
    read("link").unwrap();
    folder.chmod("pin", 0o640);
    refused("pin", "can be read by its group");
    refused("link", "can be read by its group");
    // Nobody ever writes to it: a read would not end.
    mkfifo(&folder.path("pipe"), Mode::S_IRUSR).unwrap();
    refused("pipe", "no regular file");
    symlink("/dev/zero", folder.path("endless")).unwrap();
    assert!(read("endless").is_err());
    folder.chmod("pin", 0o600);
    fs::set_permissions(folder.0.path(), Permissions::from_mode(0o777)).unwrap();
    refused("pin", "can be written by everybody");
}

#[test]
fn t13_files_of_another_user() {
    let folder = Folder::new();
    folder.load(&folder.text()).unwrap();
    for name in ["pin", "module.so", "signet.toml"] {
        if std::os::unix::fs::chown(folder.path(name), Some(4321), None).is_err() {
            eprintln!("SKIPPED: only root can give a file away");
            return;
        }
        assert_says(&folder.refusal(), &["belongs to uid 4321", "try: chown root /"]);
        std::os::unix::fs::chown(folder.path(name), Some(0), None).unwrap();
    }
}

#[test]
fn t13_files_writable_by_a_group_of_several() {
    let folder = Folder::new();
    folder.load(&folder.text()).unwrap();
    for name in ["module.so", "signet.toml"] {
        if std::os::unix::fs::chown(folder.path(name), None, Some(4321)).is_err() {
            eprintln!("SKIPPED: only root can give a file to any group");
            return;
        }
        folder.chmod(name, 0o664);
        assert_says(&folder.refusal(), &["can be written by its group (mode 0664)", "try: chmod go-w /"]);
        folder.chmod(name, 0o644);
    }
}

#[test]
fn a_parent_record_that_is_none() {
    let folder = Folder::new();
    let tpm = "[[device]]\nname = \"tpm\"\nkind = \"tpm\"\ntcti = \"device\"\n\n[[account]]";
    folder.write("signet.toml", 0o644, &folder.text().replacen("[[account]]", tpm, 1));
    fs::create_dir_all(folder.path("state/devices")).unwrap();
    folder.write("state/devices/tpm.json", 0o644, "{\"handle\":");
    assert_says(&folder.refusal(), &["state/devices/tpm.json: EOF", "signetctl device init tpm"]);
}
