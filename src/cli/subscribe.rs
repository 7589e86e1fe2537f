//! `courtier subscribe`.
//!
//! A delivery is settled after it was written and flushed, never before: what a broken pipe or a kill takes away is delivered
//! again.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use clap::{Args, ValueEnum};
use tokio::{
    sync::mpsc,
    time::{Instant, Interval, interval_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{
    Exit,
    client::{self, Output, Server, time},
    complain,
    moment::moment,
    show,
};
use crate::{
    grpc::proto::{
        Deliveries, ExtendDeadline, Nack, Settle, SettleResults, Start, Started, StreamOffset,
        SubscribeRequest, SubscribeResponse,
        nack::Action,
        settle_result::Result as Settled,
        stream_offset::{From as Begin, Position},
        subscribe_request::Request,
        subscribe_response::Response,
        subscriber_client::SubscriberClient,
    },
    shutdown,
    timer::until,
};

/// Requests on their way to the gateway.
const REQUESTS: usize = 64;
/// How long the gateway may take to end the stream after the last word was said.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Print the messages of queues, and acknowledge each one that was printed
///
/// Runs until Ctrl-C. A message leaves its queue after it was printed: if the program behind a pipe goes away, what was not
/// written to the pipe stays in the queue. After a crash a message may be printed twice, but none is lost.
#[derive(Args)]
#[command(after_help = "\
Examples:
  courtier subscribe orders_queue
  courtier subscribe --output json orders_queue | jq .text
  courtier subscribe --max 5 --no-ack orders_queue    print five and leave them there
  courtier subscribe --max 1 --nack dead-letter orders_queue
  courtier subscribe --offset first events            all that is in a stream queue, then what comes

Exit codes:
  0  ended as asked: Ctrl-C, --max, or the pipe was closed
  1  failed
  2  wrong usage
  3  refused as it is: no such queue, a bad value
  4  the gateway or its broker went away, or something was not settled")]
pub(super) struct Subscribe {
    /// One or more queues; what is ready in an earlier one goes before what is ready in a later one
    #[arg(required = true, value_name = "QUEUE")]
    queues: Vec<String>,
    /// End after so many messages
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    max: Option<u64>,
    /// Settle nothing: all that was printed goes back to its queue at the end (marked as redelivered). No more than
    /// --max-outstanding messages come
    #[arg(long, conflicts_with = "nack")]
    no_ack: bool,
    /// Do this with each printed message instead of acknowledging it
    #[arg(long, value_name = "ACTION")]
    nack: Option<NackAction>,
    /// How many messages may be unsettled at a time [default: 100; with --no-ack, at least --max]
    #[arg(long, value_name = "NUMBER")]
    max_outstanding: Option<u32>,
    /// How long a message may be unsettled before it goes back to its queue, 1s to 15m [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = time)]
    ack_deadline: Option<Duration>,
    /// Of stream queues, where to begin: first, last (the last chunk), next, an offset, a time, or how long ago [default: next]
    #[arg(long, value_name = "WHERE", value_parser = offset, conflicts_with = "priority")]
    offset: Option<StreamOffset>,
    /// Get messages before other consumers of the queue that have a lower priority, while there is room [default: 0]
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 0,
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    priority: i32,
    /// Names this subscriber in the gateway's log and RabbitMQ's list of consumers
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    client_id: String,
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
    #[command(flatten)]
    server: Server,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum NackAction {
    /// A failed attempt: moves to <QUEUE>.dlq, to be tried again by schedule
    Retry,
    /// Back to the queue at once; needs --max
    Requeue,
    /// Moves to <QUEUE>.dlq; a person decides (courtier failed list)
    DeadLetter,
    /// Dropped for good
    Discard,
}

impl Subscribe {
    fn start(&self) -> Start {
        let held = if self.no_ack { self.max } else { None };
        // The default would hold back what --max asks for.
        let held = held.map(|max| u32::try_from(max).unwrap_or(u32::MAX).max(100));
        Start {
            queues: self.queues.clone(),
            max_outstanding: self.max_outstanding.or(held).unwrap_or_default(),
            max_outstanding_bytes: 0,
            auto_ack: false,
            ack_deadline: self
                .ack_deadline
                .and_then(|deadline| deadline.try_into().ok()),
            client_id: self.client_id.clone(),
            max_messages: self.max.unwrap_or_default(),
            stream_offset: self.offset,
            consumer_priority: self.priority,
        }
    }
}

pub(super) async fn run(subscribe: Subscribe) -> Result<(), Exit> {
    if subscribe.nack == Some(NackAction::Requeue) && subscribe.max.is_none() {
        let problem =
            "--nack requeue needs --max: what is requeued comes straight back, without end";
        return Err(Exit::new(Exit::USAGE, problem));
    }
    let channel = subscribe.server.connect().await?;
    // A message may be larger than what clients accept by default.
    let mut client = SubscriberClient::new(channel).max_decoding_message_size(usize::MAX);
    let (requests, receiver) = mpsc::channel(REQUESTS);
    let run = Run {
        requests: Some(requests),
        printed: 0,
        held: Vec::new(),
        unanswered: 0,
        unsettled: 0,
        end_by: None,
        problem: None,
        subscribe: &subscribe,
    };
    run.send(Request::Start(subscribe.start())).await;
    let responses = client.subscribe(ReceiverStream::new(receiver));
    let responses = responses.await.map_err(|status| client::failed(&status))?;
    run.serve(responses.into_inner()).await
}

struct Run<'a> {
    subscribe: &'a Subscribe,
    /// `None`: half-closed.
    requests: Option<mpsc::Sender<SubscribeRequest>>,
    printed: u64,
    /// With `--no-ack`: what goes back at the end.
    held: Vec<String>,
    /// Settles without a result yet.
    unanswered: u64,
    /// Settles that were not carried out.
    unsettled: u64,
    /// Set once the last word was said.
    end_by: Option<Instant>,
    /// Writing failed.
    problem: Option<io::Error>,
}

impl Run<'_> {
    async fn send(&self, request: Request) {
        if let Some(requests) = &self.requests {
            let request = Some(request);
            // A stream that is over says so where it is read.
            let _ = requests.send(SubscribeRequest { request }).await;
        }
    }

    /// Says that nothing more is wanted: what is unsettled goes back to its queue.
    fn half_close(&mut self) {
        if self.requests.take().is_some() {
            self.end_by = Some(Instant::now() + END_TIMEOUT);
        }
    }

    async fn serve(mut self, mut responses: Streaming<SubscribeResponse>) -> Result<(), Exit> {
        let interrupted = shutdown::requested();
        tokio::pin!(interrupted);
        let mut extensions = None;
        let ended = loop {
            let next_extension = async {
                match &mut extensions {
                    Some(extensions) => drop(Interval::tick(extensions).await),
                    None => until(None).await,
                }
            };
            tokio::select! {
                _ = &mut interrupted, if self.requests.is_some() => self.half_close(),
                () = next_extension, if self.requests.is_some() => self.extend().await,
                () = until(self.end_by), if self.end_by.is_some() => break Ok(()),
                response = responses.message() => match response {
                    Ok(Some(response)) => match response.response {
                        Some(Response::Started(started)) => {
                            self.announce();
                            extensions = self.subscribe.no_ack.then(|| extension_times(&started));
                        }
                        Some(Response::Deliveries(deliveries)) => self.deliver(deliveries).await,
                        Some(Response::Results(results)) => self.settled(&results),
                        Some(Response::Revoked(revoked)) => self.revoked(revoked.ack_ids.len()),
                        Some(Response::Draining(_)) => self.drain().await,
                        None => {}
                    },
                    Ok(None) => break Ok(()),
                    Err(status) => break Err(status),
                },
            }
        };
        self.finish(ended)
    }

    fn announce(&self) {
        if io::stderr().is_terminal() {
            let queues = self.subscribe.queues.join(", ");
            complain(&format!("waiting for messages of {queues}; Ctrl-C ends"));
        }
    }

    /// Prints what came, and settles what was printed.
    async fn deliver(&mut self, deliveries: Deliveries) {
        // What still comes after the half-close has gone back to its queue.
        if self.requests.is_none() {
            return;
        }
        let mut printed = Vec::with_capacity(deliveries.deliveries.len());
        let mut output = io::stdout().lock();
        for delivery in deliveries.deliveries {
            let text = match self.subscribe.output {
                Output::Text => show::text(&delivery, output.is_terminal()),
                Output::Json => show::json(&delivery),
            };
            if let Err(error) = output
                .write_all(text.as_bytes())
                .and_then(|()| output.flush())
            {
                self.problem = Some(error);
                break;
            }
            printed.push(delivery.ack_id);
        }
        drop(output);
        self.printed += u64::try_from(printed.len()).unwrap_or_default();
        self.settle(printed).await;
        let enough = self.subscribe.max.is_some_and(|max| self.printed >= max);
        if self.problem.is_some() || (enough && self.subscribe.no_ack) {
            self.half_close();
        }
    }

    async fn settle(&mut self, ack_ids: Vec<String>) {
        if self.subscribe.no_ack {
            self.held.extend(ack_ids);
            return;
        }
        self.unanswered += u64::try_from(ack_ids.len()).unwrap_or_default();
        let settle = match self.subscribe.nack {
            None => Settle {
                ack_ids,
                nacks: Vec::new(),
            },
            Some(action) => nack(ack_ids, action.into()),
        };
        self.send(Request::Settle(settle)).await;
    }

    fn settled(&mut self, results: &SettleResults) {
        // With --no-ack they are results of extensions, whose lapse is told as Revoked.
        if self.subscribe.no_ack {
            return;
        }
        for result in &results.results {
            self.unanswered = self.unanswered.saturating_sub(1);
            if result.result() != Settled::Ok {
                self.unsettled += 1;
            }
        }
        let enough = self.subscribe.max.is_some_and(|max| self.printed >= max);
        // The stream would wait for what could not be settled.
        if enough && self.unanswered == 0 {
            self.half_close();
        }
    }

    /// Keeps what is held from lapsing: it would come again.
    async fn extend(&self) {
        if !self.held.is_empty() {
            self.send(Request::Extend(ExtendDeadline {
                ack_ids: self.held.clone(),
                ack_deadline: None,
            }))
            .await;
        }
    }

    fn revoked(&self, count: usize) {
        complain(&format!(
            "{count} messages went back to their queue: the ack deadline came before they were settled"
        ));
    }

    async fn drain(&mut self) {
        complain("the gateway is stopping");
        // It waits for what is held.
        let held = std::mem::take(&mut self.held);
        if !held.is_empty() {
            self.send(Request::Settle(nack(held, Action::Requeue)))
                .await;
        }
    }

    fn finish(self, ended: Result<(), Status>) -> Result<(), Exit> {
        let Self {
            printed, unsettled, ..
        } = self;
        if io::stderr().is_terminal() {
            complain(&format!("{printed} messages"));
        }
        if let Some(error) = self.problem
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            return Err(Exit::new(Exit::FAILED, format!("cannot write: {error}")));
        }
        match ended {
            Err(status) => Err(client::failed(&status)),
            Ok(()) if unsettled > 0 => Err(Exit::new(
                Exit::NOT_DONE,
                format!(
                    "{unsettled} of {printed} printed messages could not be settled: they come again"
                ),
            )),
            Ok(()) if self.unanswered > 0 => Err(Exit::new(
                Exit::NOT_DONE,
                format!(
                    "the gateway did not say that the last {} messages were settled: they may come again",
                    self.unanswered
                ),
            )),
            Ok(()) => Ok(()),
        }
    }
}

fn offset(text: &str) -> Result<StreamOffset, String> {
    let position = |position: Position| Begin::Position(position.into());
    let begin = match text {
        "first" => position(Position::First),
        "last" => position(Position::Last),
        "next" => position(Position::Next),
        _ => match text.parse() {
            Ok(offset) => Begin::Offset(offset),
            Err(_) => Begin::Time(moment(text).map_err(|problem| {
                format!("neither first, last, next nor an offset, and {problem}")
            })?),
        },
    };
    Ok(StreamOffset { from: Some(begin) })
}

/// Often enough that no deadline comes meanwhile.
fn extension_times(started: &Started) -> Interval {
    let deadline = started
        .ack_deadline
        .and_then(|deadline| Duration::try_from(deadline).ok());
    let every = deadline.unwrap_or(Duration::from_secs(1)) / 3;
    interval_at(Instant::now() + every, every)
}

fn nack(ack_ids: Vec<String>, action: Action) -> Settle {
    let nack = |ack_id| Nack {
        ack_id,
        action: action.into(),
        delay: None,
        error: None,
    };
    Settle {
        ack_ids: Vec::new(),
        nacks: ack_ids.into_iter().map(nack).collect(),
    }
}

impl From<NackAction> for Action {
    fn from(action: NackAction) -> Self {
        match action {
            NackAction::Retry => Self::Retry,
            NackAction::Requeue => Self::Requeue,
            NackAction::DeadLetter => Self::DeadLetter,
            NackAction::Discard => Self::Discard,
        }
    }
}
