//! Whether the files that SQLite has open are still those that stand under their names. A file that was deleted, or that another
//! one took the place of, is written to as before, and gone when the process ends.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// What a file is, whatever its name: its device and its number there. `None`: there is none.
type Identity = Option<(u64, u64)>;

/// The database's file and its write-ahead log, which holds what was committed last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Files {
    paths: [PathBuf; 2],
    identities: [Identity; 2],
}

impl Files {
    /// As they are now; called while they are open, which keeps their numbers from being used again.
    pub(super) fn of(path: &Path) -> Self {
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        let paths = [path.to_owned(), PathBuf::from(log)];
        let identities = [0, 1].map(|index| identity(&paths[index]).unwrap_or_default());
        Self { paths, identities }
    }

    /// The same, as they are now.
    pub(super) fn again(&self) -> Self {
        Self::of(&self.paths[0])
    }

    /// What is not where it was any more.
    pub(super) fn missing(&self) -> Option<&Path> {
        let mut files = self.paths.iter().zip(self.identities);
        // What cannot be looked at (no right to, a disk that fails) says nothing.
        let is_gone = |path, then| identity(path).is_ok_and(|now| now != then);
        let found = files.find(|(path, then)| then.is_some() && is_gone(path, *then));
        found.map(|(path, _)| path.as_path())
    }

    /// Whether the database's own file is another one, or none. Its log comes and goes with the connections.
    pub(super) fn is_replaced(&self) -> bool {
        identity(&self.paths[0]).is_ok_and(|now| now != self.identities[0])
    }
}

fn identity(path: &Path) -> io::Result<Identity> {
    match fs::metadata(path) {
        Ok(file) => Ok(Some((file.dev(), file.ino()))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_deleted_replaced_or_put_back_is_noticed() {
        let folder = tempfile::tempdir().expect("a folder");
        let [path, aside] = ["db", "aside"].map(|name| folder.path().join(name));
        fs::write(&path, "1").expect("written");
        let files = Files::of(&path);
        assert_eq!(files.missing(), None, "a log that never was is not missed");
        fs::write(&path, "2").expect("written");
        assert_eq!(files.missing(), None, "the same file, whatever is in it");
        fs::rename(&path, &aside).expect("moved");
        assert_eq!(files.missing(), Some(path.as_path()));
        fs::write(&path, "1").expect("written");
        assert_eq!(files.missing(), Some(path.as_path()), "another one");
        assert!(files.is_replaced());
        fs::rename(&aside, &path).expect("moved back");
        assert_eq!(files.missing(), None);
    }
}
