//! A person's own editor on a payload.

use std::{
    env, fs,
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::Command,
};

use tempfile::NamedTempFile;

use crate::cli::Exit;

/// What was written, in a file that only its owner reads. Gone when it is dropped.
pub(super) struct Draft {
    file: NamedTempFile,
    pub text: Vec<u8>,
}

impl Draft {
    /// Lets the person at the terminal change a payload.
    pub(super) fn edit(payload: &[u8], json: bool) -> Result<Self, Exit> {
        if std::str::from_utf8(payload).is_err() {
            let problem = "the payload is not text: give the new one with --data-file or on standard input (-)";
            return Err(Exit::new(Exit::USAGE, problem));
        }
        let editor = editor()?;
        let failed =
            |what: &str, error: io::Error| Exit::new(Exit::FAILED, format!("{what}: {error}"));
        let mut file = tempfile::Builder::new()
            .prefix("courtier-")
            .suffix(if json { ".json" } else { ".txt" })
            .tempfile()
            .map_err(|error| failed("cannot make a temporary file", error))?;
        file.write_all(payload)
            .and_then(|()| file.flush())
            .map_err(|error| failed("cannot write a temporary file", error))?;
        // A shell, as git does: EDITOR may hold arguments.
        let status = Command::new("sh")
            .args(["-c", &format!("{editor} \"$@\""), &editor])
            .arg(file.path())
            .status()
            .map_err(|error| failed(&editor, error))?;
        if !status.success() {
            let problem = format!("{editor} ended with {status}: nothing was sent");
            return Err(Exit::new(Exit::FAILED, problem));
        }
        // By its name: editors replace files.
        let mut text =
            fs::read(file.path()).map_err(|error| failed("cannot read what was written", error))?;
        // Editors end the last line, whether it was ended before or not.
        if text.ends_with(b"\n") && !payload.ends_with(b"\n") {
            text.pop();
        }
        Ok(Self { file, text })
    }

    /// Leaves the file where it is.
    pub(super) fn keep(self) -> Option<PathBuf> {
        self.file.into_temp_path().keep().ok()
    }
}

fn editor() -> Result<String, Exit> {
    let set = ["VISUAL", "EDITOR"]
        .into_iter()
        .find_map(|name| env::var(name).ok().filter(|value| !value.trim().is_empty()));
    match set {
        Some(editor) => Ok(editor),
        None if io::stdin().is_terminal() => Ok("vi".to_owned()),
        None => {
            let problem = "no terminal for an editor: give the new payload with --text, --json, --data-file or -, or set EDITOR";
            Err(Exit::new(Exit::USAGE, problem))
        }
    }
}
