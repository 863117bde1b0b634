//! `signetctl init`: a configuration, a PIN, and a device that is ready for its first key.

mod made;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;

use clap::Args;
use nix::unistd::getuid;
use serde_json::json;

use self::made::Made;
use super::failure::{Exit, Failure};
use super::{Global, device, user_id};
use crate::access::AccountEmail;
use crate::users;

/// First set-up: write a configuration and a random PIN, and initialise the device
///
/// Writes a commented configuration (--config says where) and a random PIN file of mode 0600 next to it, never over existing
/// ones, and then does what `device init` does. The account that it configures can be used by nobody until you add an
/// `[[allow]]` rule, or name a user with --allow-user.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  signetctl init --account app@project.iam.gserviceaccount.com
  signetctl init --tpm device:/dev/tpmrm0 --account app@project.iam.gserviceaccount.com
  signetctl --config ./signet.toml init --account app@project.iam.gserviceaccount.com \\
      --allow-user \"$(id -un)\"")]
pub(crate) struct Options {
    /// The PKCS#11 module, an absolute path; by default SoftHSM's, where it is installed
    #[arg(long, value_name = "MODULE", conflicts_with = "tpm")]
    pkcs11: Option<PathBuf>,
    /// A TPM 2.0 instead, by its TCTI: device (the only one), device:/dev/tpmrm0, tabrmd, or a simulator by
    /// swtpm:host=HOST,port=PORT or mssim:host=HOST,port=PORT
    #[arg(long, value_name = "TCTI")]
    tpm: Option<String>,
    /// The label of the PKCS#11 token to make
    #[arg(long, value_name = "LABEL", default_value = "signet", conflicts_with = "tpm")]
    token: String,
    /// The service account to sign for; without it, add one to the configuration yourself
    #[arg(long, value_name = "EMAIL")]
    account: Option<AccountEmail>,
    /// The account's project; by default the one in its email
    #[arg(long, value_name = "ID", requires = "account")]
    project: Option<String>,
    /// Let this user mint access tokens and ID tokens for the account. Without it, nobody may until you add a rule. Another
    /// user than signetd's must be in the group of the socket, too
    #[arg(long, value_name = "USER", requires = "account")]
    allow_user: Option<String>,
}

pub(crate) fn run(options: Options, global: &Global) -> Result<(), Failure> {
    let config = std::path::absolute(&global.config).map_err(Failure::usage)?;
    let seen = config.try_exists().map_err(|error| {
        Failure::new(format!("{}: {error}", config.display())).hint("run it with sudo; or another place with --config")
    })?;
    if seen {
        return Err(Failure::usage(format!("{} is there already, and is not overwritten", config.display()))
            .hint("signetctl config check; or another place with --config"));
    }
    let folder = config.parent().unwrap_or(Path::new("/"));
    let allow_user = options.allow_user.as_deref();
    let allowed = allow_user.map(user_id).transpose()?;
    let device = Device::choose(&options, folder)?;
    let pin_file = folder.join(device.pin_file());
    let mut made = Made::default();
    if let Err(failure) = set_up(&options, global, &device, &config, &mut made) {
        // A half set-up would keep the next try from starting. But a token that was begun has its PINs.
        let so_pin_file = device::so_pin_file(&pin_file, device.name());
        return Err(failure.aftermath(match so_pin_file.exists() {
            true => format!("what was written stays, with the security officer's PIN in {}", so_pin_file.display()),
            false => made.take_back(),
        }));
    }
    let json = json!({ "config": config, "pin_file": pin_file, "device": device.name() });
    global.show(&json, config.display())?;
    global.note(format!("\nThe PIN stands in {}, with mode 0600.", pin_file.display()));
    tell_what_is_next(global, options.account.as_ref(), allow_user, device.name());
    if let Some(user) = allow_user.filter(|_| allowed != Some(getuid().as_raw())) {
        global.note(way_in(user, folder, &config));
    }
    Ok(())
}

/// Writes everything and initialises the device.
fn set_up(options: &Options, global: &Global, device: &Device, config: &Path, made: &mut Made) -> Result<(), Failure> {
    let folder = config.parent().unwrap_or(Path::new("/"));
    made.folder(folder)?;
    made.secret(&folder.join(device.pin_file()))?;
    if let Some((path, contents)) = device.softhsm_configuration(folder) {
        made.folder(&folder.join(SOFTHSM_TOKENS))?;
        made.file(&path, &contents)?;
    }
    let (state_dir, socket) = layout(folder);
    made.folder(&folder.join(state_dir))?;
    // The system's folder for sockets is systemd's to make.
    if Path::new(socket).is_relative() {
        made.folder(&folder.join(SOCKET_FOLDER))?;
    }
    made.file(config, &configuration(options, device, folder))?;
    initialise(global, config, device.name())
}

fn tell_what_is_next(global: &Global, account: Option<&AccountEmail>, allow_user: Option<&str>, device: &str) {
    let named = account.map_or("EMAIL", AccountEmail::as_str);
    if account.is_none() {
        global.note("Next: add an [[account]] and an [[allow]] rule to it, then");
    } else if allow_user.is_none() {
        global.note("Nobody may use the account yet: add an [[allow]] rule to it. Then");
    } else {
        global.note("Next:");
    }
    global.note(format!("  signetctl key generate --device {device} --account {named}"));
}

/// The group whose members may connect: the one of the packaged set-up, where the system has it.
fn clients(folder: &Path) -> bool {
    is_system(folder) && users::gid(CLIENTS).is_ok_and(|group| group.is_some())
}

/// What lets another user connect: rules alone open no socket.
fn way_in(user: &str, folder: &Path, config: &Path) -> String {
    let file = config.display();
    if !is_system(folder) {
        return format!(
            "\n{user} can't reach a socket in {}: set grpc in the [listen] of {file} to a path that {user} can reach, and group to a group of {user}'s.",
            folder.display()
        );
    }
    let join = format!("  usermod -a -G {CLIENTS} {user}    # in force when {user} logs in again");
    if clients(folder) {
        return format!("\nWho is in the group {CLIENTS} may connect to the socket:\n{join}");
    }
    format!(
        "\n{user} may not connect to the socket yet:\n  groupadd --system {CLIENTS}\n{join}\nThen set group = \"{CLIENTS}\" in the [listen] of {file}, before signetd starts."
    )
}

/// Runs `signetctl device init` on what was written: a process of its own can have the environment of the device's module.
fn initialise(global: &Global, config: &Path, device: &str) -> Result<(), Failure> {
    let program = env::current_exe().map_err(Failure::new)?;
    let mut command = process::Command::new(program);
    command.arg("--config").arg(config).args(["device", "init", "--anew", device]).stdout(process::Stdio::null());
    if global.quiet {
        command.arg("--quiet");
    }
    let status = command.status().map_err(Failure::new)?;
    let exit = match status.code() {
        Some(0) => return Ok(()),
        Some(2) => Exit::Usage,
        Some(4) => Exit::Unavailable,
        _ => Exit::Failed,
    };
    Err(Failure::with(exit, format!("the device {device} could not be initialised")))
}

/// What to set up.
enum Device {
    Pkcs11 { module: PathBuf, environment: Option<PathBuf>, own_softhsm: bool },
    Tpm { tcti: String },
}

impl Device {
    fn choose(options: &Options, folder: &Path) -> Result<Self, Failure> {
        if let Some(tcti) = &options.tpm {
            return Ok(Self::Tpm { tcti: tcti.clone() });
        }
        let module = match &options.pkcs11 {
            Some(module) if module.is_absolute() => module.clone(),
            Some(module) => {
                return Err(Failure::usage(format!("the module {} is no absolute path", module.display()))
                    .hint(format!("--pkcs11 \"$(realpath {})\"", module.display())));
            }
            None => SOFTHSM_MODULES.iter().map(PathBuf::from).find(|module| module.exists()).ok_or_else(|| {
                Failure::usage("no PKCS#11 module was named, and SoftHSM is not installed")
                    .hint("--pkcs11 /path/of/your/hsm.so, or --tpm device:/dev/tpmrm0, or install the package softhsm2")
            })?,
        };
        if !module.exists() {
            return Err(Failure::usage(format!("there is no module {}", module.display()))
                .hint("the path that the device's software was installed to"));
        }
        let is_softhsm = module.file_name().is_some_and(|name| name.to_string_lossy().contains("softhsm"));
        let configured = env::var_os("SOFTHSM2_CONF").filter(|_| is_softhsm).map(PathBuf::from);
        // SoftHSM's own folder of tokens belongs to another user: a token of ours stands next to the configuration.
        let own_softhsm = is_softhsm && configured.is_none();
        let environment = configured.or_else(|| own_softhsm.then(|| folder.join(SOFTHSM_CONFIGURATION)));
        Ok(Self::Pkcs11 { module, environment, own_softhsm })
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::Pkcs11 { .. } => "hsm",
            Self::Tpm { .. } => "tpm",
        }
    }

    const fn pin_file(&self) -> &'static str {
        match self {
            Self::Pkcs11 { .. } => "hsm.pin",
            Self::Tpm { .. } => "tpm.pin",
        }
    }

    fn softhsm_configuration(&self, folder: &Path) -> Option<(PathBuf, String)> {
        let Self::Pkcs11 { environment: Some(path), own_softhsm: true, .. } = self else { return None };
        let tokens = folder.join(SOFTHSM_TOKENS);
        let text = format!(
            "# Where SoftHSM keeps Signet's token. See softhsm2.conf(5).\ndirectories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            tokens.display()
        );
        Some((path.clone(), text))
    }

    fn toml(&self, token: &str) -> String {
        let pin_file = self.pin_file();
        match self {
            Self::Pkcs11 { module, environment, own_softhsm } => {
                let files = environment
                    .as_deref()
                    .and_then(|path| if *own_softhsm { Some(SOFTHSM_TOKENS.into()) } else { token_folder(path) });
                let files = files.map_or_else(
                    || "# files = []    # what the module may read and write; absent: all that signetd's user may, other PINs too\n".to_owned(),
                    |folder| format!("files = [{}]    # what the module may read and write\n", quoted(&folder.display())),
                );
                let environment = environment.as_ref().map_or_else(
                    || "# environment = { NAME = \"value\" }    # exactly these variables for the module; absent: the daemon's own\n".to_owned(),
                    |path| format!("environment = {{ SOFTHSM2_CONF = {} }}    # exactly these variables for the module\n", quoted(&path.display())),
                );
                format!(
                    "[[device]]\nname = \"hsm\"\nkind = \"pkcs11\"\nmodule = {}\ntoken = {}\npin_file = \"{pin_file}\"    # mode 0600\n# sessions = 4\n{environment}{files}",
                    quoted(&module.display()),
                    quoted(&token)
                )
            }
            Self::Tpm { tcti } => format!(
                "[[device]]\nname = \"tpm\"\nkind = \"tpm\"\ntcti = {}\npin_file = \"{pin_file}\"    # the keys' auth value, mode 0600\n# owner_auth_file = \"tpm.owner\"    # the owner hierarchy's auth value, where it has one; for provisioning only\n# session = \"plain\"    # fewer TPM commands, nothing hidden on the bus\n",
                quoted(tcti)
            ),
        }
    }
}

/// Where SoftHSM keeps its tokens, by its configuration.
fn token_folder(configuration: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(configuration).ok()?;
    let mut settings = text.lines().filter_map(|line| line.split_once('='));
    let (_, folder) = settings.find(|(name, _)| name.trim() == "directories.tokendir")?;
    Some(PathBuf::from(folder.trim())).filter(|folder| folder.is_absolute())
}

fn configuration(options: &Options, device: &Device, folder: &Path) -> String {
    let (state_dir, socket) = layout(folder);
    let device = device.toml(&options.token);
    let account = match &options.account {
        Some(email) => {
            let from_email = || email.as_str().split_once('@').and_then(|(_, domain)| domain.strip_suffix(".iam.gserviceaccount.com"));
            let project = options.project.as_deref().or_else(from_email);
            let project = project.map_or_else(|| "# project_id = \"project\"".to_owned(), |project| format!("project_id = {}", quoted(&project)));
            format!("[[account]]\nemail = \"{email}\"\n{project}\ndefault = true\n")
        }
        None => "# [[account]]\n# email = \"app@project.iam.gserviceaccount.com\"\n# project_id = \"project\"\n# default = true\n".to_owned(),
    };
    let email = options.account.as_ref().map_or("app@project.iam.gserviceaccount.com", AccountEmail::as_str);
    let rule = match &options.allow_user {
        Some(user) => format!(
            "[[allow]]\nusers = [{}]\naccounts = [\"{email}\"]\noperations = [\"mint-access-token\", \"mint-id-token\"]\n",
            quoted(user)
        ),
        None => format!(
            "# [[allow]]\n# users = [\"app\"]    # or groups = [\"{CLIENTS}\"]\n# accounts = [\"{email}\"]\n# operations = [\"mint-access-token\", \"mint-id-token\"]    # also sign-jwt, sign-blob, sign-digest\n# audiences = [\"https://pubsub.googleapis.com/\"]    # which audiences; * stands for anything\n# max_lifetime = \"1h\"\n"
        ),
    };
    let comment = if clients(folder) { "" } else { "# " };
    format!(
        "# Signet's configuration, written by signetctl init. Relative paths are relative to this file's folder.\n# Check it with: signetctl config check\nstate_dir = {}\n\n[listen]\ngrpc = {}\n{comment}group = \"{CLIENTS}\"    # who may connect, besides the daemon's own user\n# mode = \"0660\"\n# http = \"127.0.0.1:8980\"    # for Google's client libraries and gcloud\n\n{device}\n{account}\n# Nothing is allowed without a rule. Rules add up; each must allow a request by itself.\n{rule}",
        quoted(&state_dir),
        quoted(&socket),
    )
}

/// The state folder and the socket: the system's for the system's configuration, else next to the configuration.
fn layout(folder: &Path) -> (&'static str, &'static str) {
    if is_system(folder) { ("/var/lib/signet", "/run/signet/signet.sock") } else { ("state", SOCKET) }
}

fn is_system(folder: &Path) -> bool {
    folder == Path::new("/etc/signet")
}

/// A TOML basic string.
fn quoted(text: &dyn ToString) -> String {
    // What JSON escapes in a string, TOML escapes alike.
    serde_json::Value::String(text.to_string()).to_string()
}

/// Of a socket next to the configuration: signetd may write there, and must not where its configuration is.
const SOCKET_FOLDER: &str = "run";
/// The socket, unless it is the system's.
pub(super) const SOCKET: &str = "run/signet.sock";
/// Who may connect to the system's socket; the packaged set-up makes it.
const CLIENTS: &str = "signet-clients";
const SOFTHSM_CONFIGURATION: &str = "softhsm2.conf";
const SOFTHSM_TOKENS: &str = "tokens";
const SOFTHSM_MODULES: [&str; 6] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_user_is_told_what_opens_the_socket_to_him() {
        let system = way_in("app", Path::new("/etc/signet"), Path::new("/etc/signet/signet.toml"));
        assert!(system.contains("usermod -a -G signet-clients app"), "{system}");
        let own = way_in("app", Path::new("/home/me/signet"), Path::new("/home/me/signet/signet.toml"));
        assert!(own.contains("app can't reach a socket in /home/me/signet"), "{own}");
    }
}
