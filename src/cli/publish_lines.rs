//! `courtier publish --lines`: each line of the input is a message; all go over one `PublishStream`.
//!
//! A line counts as unanswered from the moment that it is handed to the stream. If the stream breaks, those lines are in doubt;
//! if the gateway itself ends it, it has answered all that it took, and the others were not sent.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, IsTerminal, Read, Write},
    thread,
    time::Duration,
};

use bytes::Bytes;
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{
    Exit,
    client::{self, Output},
    complain,
    publish::{Publish, in_words, outcome_name},
    say,
};
use crate::{
    grpc::proto::{
        Outcome, PublishResult, PublishStreamRequest, PublishStreamResponse, message::Payload,
        publisher_client::PublisherClient,
    },
    shutdown,
    timer::until,
};

/// Lines that wait for their outcome at a time: what the gateway allows by default.
const WINDOW: usize = 1024;
/// Lines that were read and wait to be sent.
const READ_AHEAD: usize = 64;
/// How often progress is shown.
const PROGRESS: Duration = Duration::from_millis(100);

pub(super) async fn run(publish: Publish) -> Result<(), Exit> {
    let (name, input) = publish.source.input()?;
    let mut client = PublisherClient::new(publish.server.connect().await?);
    let (requests, receiver) = mpsc::channel(WINDOW);
    let opening = client.publish_stream(ReceiverStream::new(receiver));
    let results = match tokio::time::timeout(publish.timeout, opening).await {
        Ok(Ok(results)) => results.into_inner(),
        Ok(Err(status)) => return Err(client::failed(&status)),
        Err(_) => {
            return Err(Exit::new(
                Exit::NOT_DONE,
                "the gateway did not answer in time",
            ));
        }
    };
    let mut run = Run {
        json: publish.output == Output::Json,
        progress: io::stderr().is_terminal(),
        ..Run::default()
    };
    let read = run.exchange(&publish, read(input), requests, results).await;
    run.finish(read.map_err(|error| format!("cannot read {name}: {error}")))
}

/// Reads lines in a thread of its own, which nobody waits for: reading a terminal cannot be given up.
fn read(input: Box<dyn Read + Send>) -> mpsc::Receiver<io::Result<Bytes>> {
    let (lines, receiver) = mpsc::channel(READ_AHEAD);
    thread::spawn(move || {
        for line in BufReader::new(input).split(b'\n') {
            let line = line.map(|mut line| {
                if line.ends_with(b"\r") {
                    line.pop();
                }
                Bytes::from(line)
            });
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

#[derive(Default)]
struct Run {
    json: bool,
    progress: bool,
    /// Lines that were handed to the stream; the sequence of each is its number, from 1.
    taken: u64,
    /// The message ids of those without an outcome.
    unanswered: BTreeMap<u64, String>,
    counts: BTreeMap<&'static str, u64>,
    /// The exit code.
    worst: u8,
}

impl Run {
    /// Sends and receives until all that was taken is answered or the stream is over. The error: reading failed.
    async fn exchange(
        &mut self,
        publish: &Publish,
        mut lines: mpsc::Receiver<io::Result<Bytes>>,
        requests: mpsc::Sender<PublishStreamRequest>,
        mut results: Streaming<PublishStreamResponse>,
    ) -> io::Result<()> {
        let mut requests = Some(requests);
        let mut read = Ok(());
        let mut heard = Instant::now();
        let mut ticks = interval(PROGRESS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let interrupted = shutdown::requested();
        tokio::pin!(interrupted);
        loop {
            let patience = (!self.unanswered.is_empty() || requests.is_none())
                .then(|| heard + publish.timeout);
            tokio::select! {
                _ = &mut interrupted, if requests.is_some() => {
                    complain("interrupted: the rest of the input is left; waiting for the outcome of what was sent");
                    requests = None;
                    heard = Instant::now();
                }
                answer = results.message() => {
                    heard = Instant::now();
                    match answer {
                        Ok(Some(answer)) => answer.results.into_iter().for_each(|result| self.answered(result)),
                        Ok(None) => return read,
                        Err(status) => {
                            self.broken(&status);
                            return read;
                        }
                    }
                }
                line = lines.recv(), if requests.is_some() && self.unanswered.len() < WINDOW => match line {
                    Some(Ok(line)) => {
                        if self.unanswered.is_empty() {
                            heard = Instant::now();
                        }
                        let request = self.take(publish, line);
                        // The window is the channel's size, so there is room unless the stream is over; then it says so itself.
                        if let Some(requests) = &requests {
                            let _ = requests.try_send(request);
                        }
                    }
                    end => {
                        read = end.transpose().map(drop);
                        requests = None;
                        heard = Instant::now();
                    }
                },
                () = until(patience), if patience.is_some() => {
                    self.broken(&Status::deadline_exceeded("the gateway did not answer in time"));
                    return read;
                }
                _ = ticks.tick(), if self.progress => self.show_progress(),
            }
        }
    }

    fn take(&mut self, publish: &Publish, line: Bytes) -> PublishStreamRequest {
        self.taken += 1;
        let request = publish.request(Payload::Data(line));
        let ids = request
            .message
            .iter()
            .map(|message| message.message_id.clone());
        self.unanswered.insert(self.taken, ids.collect());
        PublishStreamRequest {
            sequence: self.taken,
            publish: Some(request),
        }
    }

    fn answered(&mut self, result: PublishResult) {
        let outcome = result.outcome();
        let told = result.error.map(into_status);
        if let Some(message_id) = self.unanswered.remove(&result.sequence) {
            self.note(result.sequence, outcome, &message_id, told.as_ref());
        }
    }

    /// The stream is over before its time.
    fn broken(&mut self, status: &Status) {
        let outcome = if client::is_the_gateways(status) {
            Outcome::NotSent
        } else {
            Outcome::InDoubt
        };
        self.clear_progress();
        complain(&format!("the stream broke: {}", client::describe(status)));
        self.worst = self.worst.max(Exit::NOT_DONE);
        for (line, message_id) in std::mem::take(&mut self.unanswered) {
            self.note(line, outcome, &message_id, Some(status));
        }
    }

    /// Counts an outcome, and writes it down where it is wanted.
    fn note(&mut self, line: u64, outcome: Outcome, message_id: &str, told: Option<&Status>) {
        *self.counts.entry(in_words(outcome)).or_default() += 1;
        self.worst = self.worst.max(client::outcome_exit_code(outcome));
        if self.json {
            say(json!({
                "line": line,
                "outcome": outcome_name(outcome),
                "reason": told.and_then(client::reason),
                "message_id": message_id,
            }));
        } else if outcome != Outcome::Confirmed {
            self.clear_progress();
            let told = told.map(client::describe).unwrap_or_default();
            let outcome = in_words(outcome);
            complain(&format!(
                "line {line} {outcome} (message id {message_id}): {told}"
            ));
        }
    }

    fn show_progress(&self) {
        let (taken, open) = (self.taken, self.unanswered.len());
        let _ = write!(
            io::stderr(),
            "\r\x1b[K{taken} lines sent, {open} without an outcome yet"
        );
    }

    fn clear_progress(&self) {
        if self.progress {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }

    fn summary(&self) -> String {
        let counts: Vec<_> = self
            .counts
            .iter()
            .map(|(outcome, count)| format!("{count} {outcome}"))
            .collect();
        match self.taken {
            0 => "no lines".to_owned(),
            1 => format!("1 line: {}", counts.join(", ")),
            lines => format!("{lines} lines: {}", counts.join(", ")),
        }
    }

    fn finish(mut self, read: Result<(), String>) -> Result<(), Exit> {
        // An orderly end without all outcomes is none.
        if !self.unanswered.is_empty() {
            self.broken(&Status::unknown(
                "it ended without an outcome for each line",
            ));
        }
        self.clear_progress();
        let summary = self.summary();
        // In JSON the lines are the result, and the summary is for people.
        if self.json {
            complain(&summary);
        } else {
            say(&summary);
        }
        match read {
            Err(problem) => Err(Exit::new(self.worst.max(Exit::FAILED), problem)),
            Ok(()) if self.worst == Exit::DONE => Ok(()),
            Ok(()) => Err(Exit::new(self.worst, "not every line was confirmed")),
        }
    }
}

/// The status that `Publish` would have answered, details included.
fn into_status(error: tonic_types::Status) -> Status {
    let code = tonic::Code::from(error.code);
    let message = error.message.clone();
    Status::with_details(code, message, prost::Message::encode_to_vec(&error).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Failure;

    /// Two lines are unanswered when the stream ends with `status`.
    fn broken(status: &Status) -> Run {
        let mut run = Run {
            taken: 2,
            ..Run::default()
        };
        run.unanswered = [(1, "a".to_owned()), (2, "b".to_owned())].into();
        run.broken(status);
        run
    }

    #[test]
    fn lines_that_a_broken_stream_leaves_unanswered_are_in_doubt() {
        let run = broken(&Status::unavailable("connection reset"));
        assert_eq!(run.summary(), "2 lines: 2 in doubt");
        assert_eq!(run.worst, Exit::IN_DOUBT);
    }

    #[test]
    fn a_stopping_gateway_has_answered_all_that_it_took() {
        let run = broken(&Failure::stopping().into());
        assert_eq!(run.summary(), "2 lines: 2 not sent");
        assert_eq!(run.worst, Exit::NOT_DONE);
    }
}
