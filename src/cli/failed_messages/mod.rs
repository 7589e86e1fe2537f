//! `courtier failed`: the desk at which people work on failed messages.

mod changes;
mod delete;
mod edit;
mod editor;
mod filter;
mod groups;
mod list;
mod operation;
mod resolve;
mod retry;
mod show;
mod stats;
mod view;
mod watch;

use clap::Subcommand;
use tonic::transport::Channel;

use super::{
    Exit,
    client::{self, Gateway},
};
use crate::grpc::proto::{
    FailedMessage, GetFailedMessageRequest, failed_messages_client::FailedMessagesClient,
};

/// Look at failed messages, retry them, correct them, and say that they are done
#[derive(Subcommand)]
#[command(after_help = "\
Examples:
  courtier failed groups                         what goes wrong, and how often
  courtier failed list --status failed           what waits for a person
  courtier failed show ID
  courtier failed retry ID                       once more, into the queue where it failed
  courtier failed retry --queue orders_queue     all of a queue, at a limited rate
  courtier failed edit ID                        correct it in $EDITOR, and send it again

Exit codes:
  0  all that was asked was done
  1  failed
  2  wrong usage
  3  refused as it is: no such message, or its state forbids it
  4  not done: database or broker away, gateway not reached, or not all of it
  5  in doubt: it may be done; look again")]
pub(super) enum Command {
    List(list::List),
    Show(show::Show),
    Groups(groups::Groups),
    Stats(stats::Stats),
    Retry(Box<retry::Retry>),
    Edit(Box<edit::Edit>),
    Resolve(resolve::Resolve),
    Delete(Box<delete::Delete>),
    Watch(watch::Watch),
}

pub(super) async fn run(command: Command) -> Result<(), Exit> {
    match command {
        Command::List(list) => list::run(list).await,
        Command::Show(show) => show::run(show).await,
        Command::Groups(groups) => groups::run(groups).await,
        Command::Stats(stats) => stats::run(stats).await,
        Command::Retry(retry) => retry::run(*retry).await,
        Command::Edit(edit) => edit::run(*edit).await,
        Command::Resolve(resolve) => resolve::run(resolve).await,
        Command::Delete(delete) => delete::run(*delete).await,
        Command::Watch(watch) => watch::run(watch).await,
    }
}

type Client = FailedMessagesClient<Channel>;

async fn connect(gateway: &Gateway) -> Result<Client, Exit> {
    let client = FailedMessagesClient::new(gateway.connect().await?);
    // A message may be larger than what clients accept by default.
    Ok(client.max_decoding_message_size(usize::MAX))
}

/// One message, with everything.
async fn get(client: &mut Client, gateway: &Gateway, id: &str) -> Result<FailedMessage, Exit> {
    let request = gateway.ask(GetFailedMessageRequest { id: id.to_owned() });
    let answer = client.get_failed_message(request).await;
    let answer = answer.map_err(|status| {
        let Exit { code, message } = client::failed(&status);
        Exit::new(code, format!("{id}: {message}"))
    })?;
    Ok(answer.into_inner().failed_message.unwrap_or_default())
}

/// The outcome of several: the first problem's words were said, the highest code counts.
#[derive(Default)]
struct Tally {
    all: usize,
    failed: usize,
    worst: u8,
}

impl Tally {
    /// Counts one, and says what is wrong with it.
    fn add(&mut self, id: &str, outcome: Result<(), Exit>) {
        self.all += 1;
        if let Err(Exit { code, message }) = outcome {
            super::complain(&format!("{id}: {message}"));
            self.failed += 1;
            self.worst = self.worst.max(code);
        }
    }

    fn finish(self) -> Result<(), Exit> {
        let Self { all, failed, worst } = self;
        let summary = match (failed, all) {
            (0, _) => return Ok(()),
            (_, 1) => String::new(),
            _ => format!("{failed} of {all} not done"),
        };
        Err(Exit::new(worst, summary))
    }
}
