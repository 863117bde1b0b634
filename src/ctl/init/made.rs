//! What `init` has made, so that it can take all of it back.

use std::fs;
use std::path::{Path, PathBuf};

use crate::ctl::device;
use crate::ctl::failure::Failure;
use crate::file::{self, StateDir};

/// Files and folders that were not there before.
#[derive(Default)]
pub(super) struct Made {
    files: Vec<PathBuf>,
    /// Each before those in it.
    folders: Vec<PathBuf>,
}

impl Made {
    /// Makes a folder for us alone, with those above it, where there is none.
    pub(super) fn folder(&mut self, path: &Path) -> Result<(), Failure> {
        let new: Vec<_> = path.ancestors().take_while(|path| !path.exists()).map(Path::to_owned).collect();
        self.folders.extend(new.into_iter().rev());
        file::private_folder(path).map_err(|error| {
            Failure::new(format!("{}: {error}", path.display()))
                .hint("run it with sudo; or another place with --config")
        })
    }

    /// Writes a new file of mode 0600, unless there is one already.
    pub(super) fn file(&mut self, path: &Path, contents: &str) -> Result<(), Failure> {
        let written = file::create_new(path, contents.as_bytes()).map_err(|error| {
            Failure::new(format!("{}: {error}", path.display())).hint("check the space on its disk")
        })?;
        self.files.extend(written.then(|| path.to_owned()));
        Ok(())
    }

    /// Writes a new file with a random secret, unless there is one already.
    pub(super) fn secret(&mut self, path: &Path) -> Result<(), Failure> {
        let written = device::secret_file(path)?;
        self.files.extend(written.then(|| path.to_owned()));
        Ok(())
    }

    /// Takes everything back, and says what became of it.
    pub(super) fn take_back(self) -> String {
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
        for folder in self.folders.iter().rev() {
            let _ = fs::remove_file(StateDir::new(folder.clone()).lock());
            // Not what is not empty: that is somebody's.
            let _ = fs::remove_dir(folder);
        }
        let made = self.files.iter().chain(&self.folders);
        let left: Vec<_> = made.filter(|path| path.exists()).map(|path| path.display().to_string()).collect();
        match left.is_empty() {
            true => "what was written is removed again".to_owned(),
            false => format!("of what was written there is still {}", left.join(", ")),
        }
    }
}
