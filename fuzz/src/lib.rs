//! What the fuzz targets have in common. Private keys in the corpora are throw-away.

use std::cell::LazyCell;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use signet::access::{Account, AccountEmail, Caller, Operation, Policy, Rule};
use signet::jwt::claims::Claims;
use signet::jwt::{Header, UnsignedJwt};
use signet::key::{Algorithm, KeyId, Signature};
use tempfile::TempDir;

/// Whom everything is signed for.
pub const ACCOUNT: &str = "svc@project.iam.gserviceaccount.com";

/// Always the same, or what was found could not be found again.
pub fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

/// [`now`] in seconds.
pub const NOW: u64 = 1_790_000_000;

/// The account.
pub fn account() -> AccountEmail {
    ACCOUNT.parse().unwrap()
}

/// What SignJwt would have signed of these claims, had a rule allowed everything.
pub fn signing_input(claims: &Claims, algorithm: Algorithm, kid: &KeyId) -> Option<String> {
    let email = account();
    let rule = Rule { accounts: vec![email.clone()], operations: Operation::ALL.to_vec(), ..Rule::default() };
    let configured = Account { email: email.clone(), project_id: None, unique_id: None, default: true };
    let policy = Policy::new(vec![configured], vec![rule]);
    let permit = policy.authorize(&Caller::new(1, 1, vec![]), &claims.request(&email, now())).unwrap();
    let unsigned = UnsignedJwt::of_claims(&permit, Header { algorithm, kid }, claims, now()).ok()?;
    let jwt = unsigned.into_jwt(&Signature::from_bytes(Vec::new()));
    Some(jwt.as_str().strip_suffix('.').unwrap().to_owned())
}

/// The claims of a JWT or of its signing input.
pub fn payload(jwt: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(jwt.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

/// Nothing that says who speaks is anybody's but the account's.
pub fn nobody_else_speaks(claims: &Value) {
    for name in ["iss", "sub", "email", "azp", "prn"] {
        let speaks = claims.get(name);
        assert!(speaks.is_none_or(|value| value == ACCOUNT), "{name} is {speaks:?}");
    }
}

/// A file that is written anew with each input, in memory where that can be.
pub struct Scratch {
    folder: TempDir,
}

impl Scratch {
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let made = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
        Self { folder: made.unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file that nobody else may read.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        path
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

thread_local! {
    /// The scratch folder of this process: libFuzzer runs a target in one thread.
    pub static SCRATCH: LazyCell<Scratch> = const { LazyCell::new(Scratch::new) };
}
