//! Following a bulk retry. The gateways carry it out; it goes on whatever becomes of this command.

use std::io::{self, IsTerminal, Write};

use serde_json::{Value, json};
use tonic::{Request, Streaming};

use super::Client;
use crate::{
    cli::{
        Exit,
        client::{self, Output},
        complain, print, print_json,
    },
    grpc::proto::{
        RetryFailedMessagesRequest, RetryFailedMessagesResponse as Progress,
        retry_failed_messages_response::State,
    },
    shutdown,
};

/// Starts, follows or stops one, until it has ended.
pub(super) async fn run(
    client: &mut Client,
    request: RetryFailedMessagesRequest,
    output: Output,
) -> Result<(), Exit> {
    let stop = request.stop;
    let starts = request.operation_id.is_empty();
    let responses = client.retry_failed_messages(Request::new(request)).await;
    let responses = responses.map_err(|status| {
        if starts {
            client::not_done(&status)
        } else {
            client::failed(&status)
        }
    })?;
    let last = follow(responses.into_inner(), output).await?;
    if output == Output::Text {
        print(&format!(
            "operation {}: {}\n",
            last.operation_id,
            in_words(&last)
        ))?;
    }
    if stop && last.state() == State::Stopped {
        return Ok(());
    }
    match last.state() {
        State::Done if last.failed_again == 0 => Ok(()),
        State::Done => {
            let problem = format!(
                "{} of {} failed again: courtier failed list --operation {}",
                last.failed_again, last.started, last.operation_id
            );
            Err(Exit::new(Exit::NOT_DONE, problem))
        }
        _ => {
            let problem = format!("stopped: {}", last.stop_reason);
            Err(Exit::new(Exit::NOT_DONE, problem))
        }
    }
}

/// What is said where there is nothing to start.
pub(super) fn nothing(output: Output) -> Result<(), Exit> {
    match output {
        Output::Text => Ok(()),
        Output::Json => print_json(json(&Progress {
            state: State::Done.into(),
            ..Progress::default()
        })),
    }
}

/// The last word.
async fn follow(mut responses: Streaming<Progress>, output: Output) -> Result<Progress, Exit> {
    let terminal = output == Output::Text && io::stderr().is_terminal();
    let interrupted = shutdown::requested();
    tokio::pin!(interrupted);
    let mut last: Option<Progress> = None;
    let cut_off = loop {
        let response = tokio::select! {
            response = responses.message() => response,
            _ = &mut interrupted => break "interrupted".to_owned(),
        };
        match response {
            Ok(Some(progress)) => {
                if output == Output::Json {
                    print_json(json(&progress))?;
                } else if terminal {
                    let _ = write!(io::stderr(), "\r\x1b[K{}", in_words(&progress));
                }
                let over = progress.state() != State::Running;
                last = Some(progress);
                if over {
                    break String::new();
                }
            }
            Ok(None) => break "the gateway said no more".to_owned(),
            Err(status) => break client::describe(&status),
        }
    };
    if terminal {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
    match last {
        Some(last) if cut_off.is_empty() => Ok(last),
        Some(last) => {
            let id = last.operation_id;
            complain(&cut_off);
            let problem = format!(
                "the operation goes on without this command: courtier failed retry --operation {id} follows it, with --stop ends it"
            );
            Err(Exit::new(Exit::NOT_DONE, problem))
        }
        None => Err(Exit::new(Exit::IN_DOUBT, cut_off)),
    }
}

fn in_words(of: &Progress) -> String {
    let state = match of.state() {
        State::Unspecified | State::Running => "running",
        State::Done => "done",
        State::Stopped => "stopped",
    };
    let mut text = format!(
        "{state}, {} of {} retried: {} succeeded, {} failed again, {} waiting",
        of.started, of.matched, of.succeeded, of.failed_again, of.waiting
    );
    if of.skipped > 0 {
        text.push_str(&format!(", {} deleted meanwhile", of.skipped));
    }
    text
}

fn json(of: &Progress) -> Value {
    let mut object = json!({
        "operation_id": of.operation_id,
        "state": of.state().as_str_name().trim_start_matches("STATE_"),
        "matched": of.matched,
        "started": of.started,
        "succeeded": of.succeeded,
        "failed_again": of.failed_again,
        "skipped": of.skipped,
        "waiting": of.waiting,
    });
    if !of.stop_reason.is_empty() {
        object["stop_reason"] = json!(of.stop_reason);
    }
    object
}
