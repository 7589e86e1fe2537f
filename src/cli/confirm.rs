//! What cannot be taken back is asked about first.

use std::io::{self, IsTerminal, Write};

use clap::Args;

use super::Exit;

#[derive(Args)]
pub(super) struct Confirm {
    /// Do not ask; needed where there is no terminal to ask on
    #[arg(long, short)]
    yes: bool,
}

impl Confirm {
    /// Refuses where nobody can be asked. To be called before anything is done.
    pub(super) fn check(&self) -> Result<(), Exit> {
        if self.yes || io::stdin().is_terminal() {
            return Ok(());
        }
        let problem = "standard input is no terminal, so nobody can be asked; --yes does it without asking, --dry-run only says what it would do";
        Err(Exit::new(Exit::USAGE, problem))
    }

    /// Asks, unless it was said beforehand.
    pub(super) fn ask(&self, question: &str) -> Result<(), Exit> {
        if self.yes {
            return Ok(());
        }
        let mut answer = String::new();
        let asked = write!(io::stderr(), "{question} [y/N] ")
            .and_then(|()| io::stderr().flush())
            .and_then(|()| io::stdin().read_line(&mut answer));
        match asked {
            Ok(_) if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") => Ok(()),
            Ok(_) => Err(Exit::new(Exit::NOT_DONE, "nothing was done")),
            Err(error) => Err(Exit::new(Exit::FAILED, format!("cannot ask: {error}"))),
        }
    }
}
