//! What the metadata server tells, by its path below `/computeMetadata/v1/`. Pure.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::super::CLOUD_PLATFORM;
use super::Values;
use crate::access::{Account, Accounts};

/// Every value by its path; folders are what paths have in common.
pub(super) struct Tree(BTreeMap<String, Leaf>);

/// What stands at a path.
pub(super) enum Leaf {
    Text(String),
    Lines(Vec<String>),
    /// Made anew for whoever asks: it is listed, and not told with the rest.
    Made,
    /// A folder that is there with nothing in it.
    Nothing,
}

/// Whether what stands there depends on the caller's accounts.
pub(super) fn depends_on_accounts(path: &str) -> bool {
    path.starts_with("project") || is_of_accounts(path)
}

/// Whether it is, or were, a caller's account.
pub(super) fn is_of_accounts(path: &str) -> bool {
    path.starts_with(SERVICE_ACCOUNTS)
}

impl Tree {
    /// What a caller of these accounts is told.
    pub(super) fn new(accounts: &Accounts, configured: &Values) -> Self {
        let mut tree = Self(VERBATIM.map(|folder| (format!("{folder}/"), Leaf::Nothing)).into());
        tree.0.insert("universe/universe-domain".to_owned(), Leaf::Text("googleapis.com".to_owned()));
        if let Some(project) = accounts.default.as_ref().and_then(|account| account.project_id.clone()) {
            tree.0.insert("project/project-id".to_owned(), Leaf::Text(project));
        }
        for account in &accounts.all {
            let is_default = accounts.default.as_ref() == Some(account);
            tree.add(account.email.as_str(), account, is_default);
            if is_default {
                tree.add("default", account, is_default);
            }
        }
        tree.0.extend(configured.iter().map(|(path, value)| (path.clone(), Leaf::Text(value.clone()))));
        tree
    }

    fn add(&mut self, name: &str, account: &Account, is_default: bool) {
        let aliases = is_default.then(|| "default".to_owned()).into_iter().collect();
        for (leaf, value) in [
            ("aliases", Leaf::Lines(aliases)),
            ("email", Leaf::Text(account.email.to_string())),
            ("identity", Leaf::Made),
            ("scopes", Leaf::Lines(vec![CLOUD_PLATFORM.to_owned()])),
            ("token", Leaf::Made),
        ] {
            self.0.insert(format!("{SERVICE_ACCOUNTS}/{name}/{leaf}"), value);
        }
    }

    /// The value of a path.
    pub(super) fn value(&self, path: &str) -> Option<&Leaf> {
        self.0.get(path).filter(|leaf| !matches!(leaf, Leaf::Nothing))
    }

    /// Whether it is a folder: without a slash at its end; "" is the root.
    pub(super) fn is_folder(&self, path: &str) -> bool {
        self.below(path).next().is_some()
    }

    /// What is in a folder, a line each; folders with a slash.
    pub(super) fn listing(&self, folder: &str) -> String {
        let mut names: Vec<_> = self
            .below(folder)
            .map(|(rest, _)| rest.split_inclusive('/').next().unwrap_or_default())
            .filter(|name| !name.is_empty())
            .collect();
        names.dedup();
        names.iter().map(|name| format!("{name}\n")).collect()
    }

    /// All that is in a folder and below, a line each.
    pub(super) fn text(&self, folder: &str) -> String {
        self.below(folder)
            .flat_map(|(rest, leaf)| leaf.lines().iter().map(move |line| format!("{rest} {line}\n")))
            .collect()
    }

    /// All that is in a folder and below, as JSON.
    pub(super) fn json(&self, folder: &str) -> Value {
        let mut root = Map::new();
        for (rest, leaf) in self.below(folder).filter(|(_, leaf)| !matches!(leaf, Leaf::Made)) {
            let mut path = folder.to_owned();
            let mut names: Vec<String> = rest
                .split('/')
                .filter(|name| !name.is_empty())
                .map(|name| {
                    let name_written = written(&path, name);
                    path = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
                    name_written
                })
                .collect();
            let value = names.pop_if(|_| !rest.ends_with('/')).map(|name| (name, leaf.json(&path)));
            let folder = names
                .into_iter()
                .try_fold(&mut root, |at, name| at.entry(name).or_insert_with(|| Map::new().into()).as_object_mut());
            if let Some((folder, (name, value))) = folder.zip(value) {
                folder.insert(name, value);
            }
        }
        root.into()
    }

    /// Every path in a folder and below, without the folder's own.
    fn below<'a>(&'a self, folder: &str) -> impl Iterator<Item = (&'a str, &'a Leaf)> {
        let folder = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        self.0.iter().filter_map(move |(path, leaf)| Some((path.strip_prefix(&folder)?, leaf)))
    }
}

impl Leaf {
    /// As text.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Lines(lines) => lines.iter().map(|line| format!("{line}\n")).collect(),
            Self::Made | Self::Nothing => String::new(),
        }
    }

    /// As JSON, of this path; numbers where Google has them.
    pub(super) fn json(&self, path: &str) -> Value {
        let number = |text: &str| NUMBERS.contains(&path).then(|| text.parse::<u64>().ok()).flatten();
        match self {
            Self::Text(text) => number(text).map_or_else(|| text.as_str().into(), Value::from),
            Self::Lines(lines) => lines.as_slice().into(),
            Self::Made | Self::Nothing => Value::Null,
        }
    }

    fn lines(&self) -> &[String] {
        match self {
            Self::Text(text) => std::slice::from_ref(text),
            Self::Lines(lines) => lines,
            Self::Made | Self::Nothing => &[],
        }
    }
}

/// A name as JSON has it: in camel case, unless it is one of somebody's own.
fn written(folder: &str, name: &str) -> String {
    if VERBATIM.contains(&folder) {
        return name.to_owned();
    }
    let mut parts = name.split('-');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |written, part| {
        let mut letters = part.chars();
        let initial = letters.next().map(|initial| initial.to_ascii_uppercase());
        written + &initial.into_iter().chain(letters).collect::<String>()
    })
}

const SERVICE_ACCOUNTS: &str = "instance/service-accounts";
/// The folders in which names are somebody's own.
const VERBATIM: [&str; 3] = ["instance/attributes", "project/attributes", SERVICE_ACCOUNTS];
const NUMBERS: [&str; 2] = ["instance/id", "project/numeric-project-id"];

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn account(email: &str) -> Arc<Account> {
        let (email, project_id) = (email.parse().unwrap(), Some("project".to_owned()));
        Arc::new(Account { email, project_id, unique_id: None, default: false })
    }

    fn tree() -> Tree {
        let (a, b) = (account("a@x"), account("b@x"));
        let configured = [
            ("instance/attributes/cluster-name", "c"),
            ("instance/zone", "projects/7/zones/z"),
            ("project/numeric-project-id", "7"),
        ];
        let configured = configured.map(|(path, value)| (path.to_owned(), value.to_owned())).into();
        Tree::new(&Accounts { all: vec![Arc::clone(&a), b], default: Some(a) }, &configured)
    }

    #[test]
    fn folders_list_what_is_in_them() {
        let tree = tree();
        assert_eq!(tree.listing(""), "instance/\nproject/\nuniverse/\n");
        assert_eq!(tree.listing("instance"), "attributes/\nservice-accounts/\nzone\n");
        assert_eq!(tree.listing("project"), "attributes/\nnumeric-project-id\nproject-id\n");
        assert_eq!(tree.listing(SERVICE_ACCOUNTS), "a@x/\nb@x/\ndefault/\n");
        assert_eq!(tree.listing("instance/service-accounts/a@x"), "aliases\nemail\nidentity\nscopes\ntoken\n");
        assert_eq!((tree.is_folder("project/attributes"), tree.listing("project/attributes").as_str()), (true, ""));
        for path in ["instanc", "instance/zone", "instance/service-accounts/c@x", "nothing"] {
            assert!(!tree.is_folder(path), "{path}");
        }
    }

    #[test]
    fn json_has_names_in_camel_case_but_those_of_accounts_and_attributes() {
        let account =
            |email: &str, aliases: &[&str]| json!({"aliases": aliases, "email": email, "scopes": [CLOUD_PLATFORM]});
        let accounts = json!({
            "a@x": account("a@x", &["default"]),
            "b@x": account("b@x", &[]),
            "default": account("a@x", &["default"]),
        });
        let tree = tree();
        let expected = json!({
            "instance": {"attributes": {"cluster-name": "c"}, "serviceAccounts": accounts, "zone": "projects/7/zones/z"},
            "project": {"attributes": {}, "numericProjectId": 7, "projectId": "project"},
            "universe": {"universeDomain": "googleapis.com"},
        });
        assert_eq!(tree.json(""), expected);
        assert_eq!(tree.json("instance/attributes"), json!({"cluster-name": "c"}));
        assert_eq!(tree.json("instance/service-accounts/default"), account("a@x", &["default"]));
    }

    #[test]
    fn text_has_a_line_for_each_value() {
        assert_eq!(tree().text("instance/attributes"), "cluster-name c\n");
        assert_eq!(tree().text("project"), "numeric-project-id 7\nproject-id project\n");
    }
}
