//! What callers are told when something fails: one table from what happened to a code, a reason and what to do.
//! The protocols in front (gRPC, HTTP) only translate [`Failure`].

use std::time::Duration;

use crate::{
    broker::{self, Fate, InDoubt, NotSent, Refusal},
    budget::intake::Interrupted,
    gateway::{
        failed_messages, message_log,
        publisher::Outcome,
        queue_admin::{self, plan::Change},
        subscriber::protocol::{End, Refused},
        validate::Invalid,
    },
    store, text,
};

/// The standard codes of gRPC (<https://grpc.io/docs/guides/status-codes/>), as far as they are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    InvalidArgument,
    NotFound,
    PermissionDenied,
    FailedPrecondition,
    ResourceExhausted,
    Unavailable,
    DeadlineExceeded,
    Internal,
}

/// Why, for programs: `google.rpc.ErrorInfo.reason`. Fixed names; clients switch on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::IntoStaticStr)]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE")]
pub enum Reason {
    Unroutable,
    QueueFull,
    BrokerDown,
    BrokerBlocked,
    BrokerRefused,
    Overloaded,
    ConfirmLost,
    ConfirmTimeout,
    InvalidMessage,
    InvalidRequest,
    PayloadTooLarge,
    BatchTooLarge,
    ReservedHeader,
    ExchangeNotFound,
    QueueNotFound,
    QueueDeleted,
    ConsumerTimeout,
    QueueLocked,
    TooManySubscriptions,
    Forbidden,
    GatewayStopping,
    DeadlineExceeded,
    FailedMessageNotFound,
    MessageNotFound,
    AuditLogOff,
    OperationNotFound,
    StateConflict,
    Returned,
    InvalidPageToken,
    DatabaseDown,
    DatabaseRefused,
    Differs,
    QueueInUse,
    QueueNotEmpty,
    ExchangeInUse,
    ManagementOff,
    ManagementDown,
    NoTopology,
}

/// A failure, as a caller is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: Code,
    pub reason: Reason,
    /// What happened and what to do, in English.
    pub message: String,
    /// When trying again makes sense.
    pub retry_after: Option<Duration>,
    /// The field that is at fault, and its fault.
    pub violation: Option<(String, String)>,
    /// What is not as it must be: each a subject and what is wrong with it.
    pub unmet: Vec<(String, String)>,
    /// What became of the publish: one of the API's outcomes, without its prefix.
    pub publish_outcome: Option<&'static str>,
}

/// How soon to try again: when the trouble passes by itself, and when somebody must make room first.
const SOON: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(5);

/// Bytes of one text of a failure: it may name what the request holds, and travels in headers, of which clients take few.
const MAX_TOLD: usize = 1024;

impl Failure {
    fn new(code: Code, reason: Reason, message: impl AsRef<str>) -> Self {
        Self {
            code,
            reason,
            message: told(message.as_ref()),
            retry_after: None,
            violation: None,
            unmet: Vec::new(),
            publish_outcome: None,
        }
    }

    fn retry(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    fn publish(mut self, outcome: &'static str) -> Self {
        self.publish_outcome = Some(outcome);
        self
    }

    /// The caller's deadline came.
    pub fn deadline() -> Self {
        Self::new(
            Code::DeadlineExceeded,
            Reason::DeadlineExceeded,
            "the deadline of the call came",
        )
    }

    /// The caller's deadline came before a publish was answered; `begun`: it may have been sent meanwhile.
    pub fn publish_deadline(begun: bool) -> Self {
        if begun {
            Self::in_doubt(InDoubt::ConfirmTimeout).publish("IN_DOUBT")
        } else {
            Self::deadline().publish("NOT_SENT")
        }
    }

    /// The rest of a request is not read. `publishes`: it would have published something.
    pub fn interrupted(why: Interrupted, publishes: bool) -> Self {
        let message = why.to_string();
        let failure = match why {
            Interrupted::Full => {
                Self::new(Code::ResourceExhausted, Reason::Overloaded, message).retry(SOON)
            }
            Interrupted::Idle(_) => {
                Self::new(Code::DeadlineExceeded, Reason::DeadlineExceeded, message)
            }
        };
        if publishes {
            failure.publish("NOT_SENT")
        } else {
            failure
        }
    }

    /// The gateway stops.
    pub fn stopping() -> Self {
        let message = "this gateway is stopping; call again and reach another";
        Self::new(Code::Unavailable, Reason::GatewayStopping, message).retry(SOON)
    }

    /// A request that cannot be carried out as it is.
    pub fn invalid_request(invalid: Invalid) -> Self {
        let mut failure = Self::from(invalid);
        if failure.reason == Reason::InvalidMessage {
            failure.reason = Reason::InvalidRequest;
        }
        failure
    }

    /// The same, of a call that publishes: nothing of it was published.
    pub fn invalid_publish(invalid: Invalid) -> Self {
        Self::invalid_request(invalid).publish("INVALID")
    }

    fn page_token() -> Self {
        Self::new(
            Code::InvalidArgument,
            Reason::InvalidPageToken,
            "the page token is not one of this list: leave it out to begin anew, and keep the filter from page to page",
        )
    }

    /// What became of a publish that is not confirmed.
    pub fn of_publish(outcome: Outcome) -> Option<Self> {
        Some(match outcome {
            Outcome::Fate(Fate::Confirmed) => return None,
            Outcome::Fate(Fate::Unroutable) => Self::new(
                Code::FailedPrecondition,
                Reason::Unroutable,
                "no queue takes this routing key: bind one, or set allow_unroutable",
            )
            .publish("UNROUTABLE"),
            Outcome::Fate(Fate::Rejected) => Self::new(
                Code::ResourceExhausted,
                Reason::QueueFull,
                "a bound queue is full and refused the message; other queues may have stored it",
            )
            .retry(LATER)
            .publish("REJECTED"),
            Outcome::Fate(Fate::NotSent(why)) => Self::not_sent(why).publish("NOT_SENT"),
            Outcome::Fate(Fate::InDoubt(why)) => Self::in_doubt(why).publish("IN_DOUBT"),
            Outcome::Fate(Fate::Refused(why)) => Self::refused(why).publish("INVALID"),
            Outcome::Invalid(invalid) => Self::from(invalid).publish("INVALID"),
        })
    }

    fn not_sent(why: NotSent) -> Self {
        match why {
            NotSent::BrokerDown => {
                Self::broker_down("the broker cannot be reached; the message was not sent")
            }
            NotSent::BrokerBlocked => Self::new(
                Code::Unavailable,
                Reason::BrokerBlocked,
                "the broker takes no messages (memory or disk alarm); the message was not sent",
            )
            .retry(LATER),
            // Of clients' own headers far fewer are accepted; this is what is left for headers that others wrote.
            NotSent::HeadersTooLarge => Self::new(
                Code::InvalidArgument,
                Reason::PayloadTooLarge,
                "the headers do not fit into one frame of the broker; the message was not sent",
            ),
            NotSent::Overloaded => Self::new(
                Code::ResourceExhausted,
                Reason::Overloaded,
                "too much waits for the broker; the message was not sent",
            )
            .retry(SOON),
        }
    }

    fn refused(why: Refusal) -> Self {
        match why {
            Refusal::NoExchange => Self::new(
                Code::NotFound,
                Reason::ExchangeNotFound,
                "there is no such exchange; create it, or check its spelling",
            ),
            Refusal::Forbidden => Self::new(
                Code::PermissionDenied,
                Reason::Forbidden,
                "the broker does not allow this gateway's user to publish to this exchange with this routing key",
            ),
            Refusal::TooLarge => Self::new(
                Code::InvalidArgument,
                Reason::PayloadTooLarge,
                "the payload is larger than the broker takes (its max_message_size)",
            ),
            Refusal::NoReplyAddress => {
                let problem = "is no address of a direct reply-to that the broker knows: malformed, stale, or of another broker; nobody waits there";
                Self::from(Invalid::field("routing_key", problem))
            }
        }
    }

    fn in_doubt(why: InDoubt) -> Self {
        match why {
            InDoubt::ConfirmLost => Self::new(
                Code::Unavailable,
                Reason::ConfirmLost,
                "the link broke before the broker confirmed; the message may be stored: publish it again with the same message_id",
            )
            .retry(SOON),
            InDoubt::ConfirmTimeout => Self::new(
                Code::DeadlineExceeded,
                Reason::ConfirmTimeout,
                "the broker did not confirm in time; the message may be stored: publish it again with the same message_id",
            )
            .retry(SOON),
        }
    }

    fn broker_down(message: &'static str) -> Self {
        Self::new(Code::Unavailable, Reason::BrokerDown, message).retry(SOON)
    }

    /// Something exists with other arguments than were asked for.
    fn differs(change: &Change) -> Self {
        let named = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
        let mismatches = change.mismatches.iter().map(|one| {
            let (wanted, actual) = (named(&one.wanted), named(&one.actual));
            (
                one.argument.clone(),
                format!("asked for {wanted}, is {actual}"),
            )
        });
        let mut unmet: Vec<_> = mismatches.collect();
        if !change.note.is_empty() {
            unmet.push((change.name.clone(), change.note.clone()));
        }
        let all: Vec<String> = unmet
            .iter()
            .map(|(argument, problem)| format!("{argument}: {problem}"))
            .collect();
        let message = format!(
            "{change} already exists with different arguments ({}); nothing was changed: use it as it is, or delete it first",
            all.join("; ")
        );
        let mut failure = Self::new(Code::FailedPrecondition, Reason::Differs, message);
        failure.unmet = unmet
            .iter()
            .map(|(subject, problem)| (told(subject), told(problem)))
            .collect();
        failure
    }

    /// Why a subscription was not opened.
    pub fn of_refusal(refused: Refused) -> Self {
        match refused {
            Refused::Invalid(invalid) => Self::invalid_request(invalid),
            Refused::Broker(error) => Self::from(error),
            Refused::Stopping => Self::stopping(),
        }
    }

    /// Why a subscription ended.
    pub fn of_end(end: End) -> Option<Self> {
        Some(match end {
            End::Done => return None,
            End::Invalid(invalid) => Self::invalid_request(invalid),
            End::QueueDeleted(queue) => Self::new(
                Code::NotFound,
                Reason::QueueDeleted,
                format!("queue {queue:?} was deleted"),
            ),
            End::ConsumerTimeout(_) => Self::new(
                Code::FailedPrecondition,
                Reason::ConsumerTimeout,
                "a delivery was unsettled for longer than RabbitMQ's consumer_timeout (30 min by default), which extending its deadline does not change; what was unsettled returns to its queue. Subscribe again, with a smaller max_outstanding if deliveries wait for their turn; for longer work raise consumer_timeout in rabbitmq.conf",
            ),
            End::BrokerDown => Self::broker_down(
                "the link to the broker broke; what was unsettled returns to its queue: subscribe again",
            ),
            End::Overloaded => Self::new(
                Code::ResourceExhausted,
                Reason::Overloaded,
                "the gateway has no memory for what this stream sends; subscribe again with a smaller max_outstanding",
            )
            .retry(SOON),
            End::Interrupted(why) => Self::interrupted(why, false),
            End::Stopping => Self::stopping(),
            End::DeadlineExceeded => Self::deadline(),
        })
    }
}

/// A text as a caller is told it.
fn told(text: &str) -> String {
    text::cut(text, MAX_TOLD)
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Self {
        use Code::{InvalidArgument, NotFound, PermissionDenied};
        let message = invalid.to_string();
        let (code, reason, field) = match invalid {
            Invalid::Field { field, problem } => {
                let mut failure = Self::new(InvalidArgument, Reason::InvalidMessage, message);
                failure.violation = Some((told(&field), told(&problem)));
                return failure;
            }
            Invalid::PayloadTooLarge { .. } | Invalid::TooLargeForBroker { .. } => (
                InvalidArgument,
                Reason::PayloadTooLarge,
                Some("message.payload"),
            ),
            Invalid::RequestTooLarge { .. } => {
                (InvalidArgument, Reason::PayloadTooLarge, Some("request"))
            }
            Invalid::BatchTooLarge { .. } => {
                (InvalidArgument, Reason::BatchTooLarge, Some("messages"))
            }
            Invalid::ReservedHeader(_) => (
                InvalidArgument,
                Reason::ReservedHeader,
                Some("message.headers"),
            ),
            Invalid::ExchangeNotFound(_) => (NotFound, Reason::ExchangeNotFound, None),
            Invalid::Forbidden(..) => (PermissionDenied, Reason::Forbidden, None),
        };
        let mut failure = Self::new(code, reason, message);
        failure.violation = field.map(|field| (field.to_owned(), failure.message.clone()));
        failure
    }
}

impl From<failed_messages::Error> for Failure {
    fn from(error: failed_messages::Error) -> Self {
        use failed_messages::Error;
        match error {
            Error::NotFound => Self::new(
                Code::NotFound,
                Reason::FailedMessageNotFound,
                "there is no failed message with this id",
            ),
            Error::NoOperation => Self::new(
                Code::NotFound,
                Reason::OperationNotFound,
                "there is no operation with this id",
            ),
            Error::Conflict(status) => {
                let now = status.to_string().to_uppercase();
                let message = format!("the failed message is {now}, which does not allow this");
                Self::new(Code::FailedPrecondition, Reason::StateConflict, message)
            }
            Error::PageToken => Self::page_token(),
            Error::Invalid(invalid) => Self::from(invalid),
            Error::NotSent(Fate::Unroutable) => Self::new(
                Code::FailedPrecondition,
                Reason::Returned,
                "the queue where it failed is gone; the failed message is FAILED and kept",
            ),
            Error::NotSent(fate) => {
                let failure = Self::of_publish(fate.into());
                failure.unwrap_or_else(|| Self::broker_down("the copy is not confirmed"))
            }
            Error::NotWritten(fate, error) => Self {
                message: "the copy is with the broker, or may be, and the database did not take that: the failed message is RETRYING until its lease ends (MESSAGE_RETRY_LEASE), then what it was before, and FAILED if it was edited. Do not repeat this now: look at it then".to_owned(),
                // Repeated, it would be sent twice.
                retry_after: None,
                publish_outcome: match fate {
                    Fate::Confirmed => Some("CONFIRMED"),
                    _ => Some("IN_DOUBT"),
                },
                ..Self::from(error)
            },
            Error::Store(error) => Self::from(error),
        }
    }
}

impl From<message_log::Error> for Failure {
    fn from(error: message_log::Error) -> Self {
        use message_log::Error;
        match error {
            Error::Off => Self::new(
                Code::FailedPrecondition,
                Reason::AuditLogOff,
                "this gateway keeps no message log: AUDIT_LOG=on switches it on",
            ),
            Error::NotFound => Self::new(
                Code::NotFound,
                Reason::MessageNotFound,
                "the message log has no message with this id: it was never published through the gateway, not logged, or is too old",
            ),
            Error::PageToken => Self::page_token(),
            Error::Store(error) => Self::from(error),
        }
    }
}

impl From<queue_admin::Error> for Failure {
    fn from(error: queue_admin::Error) -> Self {
        use queue_admin::Error;
        match error {
            Error::Invalid(invalid) => Self::invalid_request(invalid),
            Error::PageToken => Self::page_token(),
            Error::Differs(change) => Self::differs(&change),
            Error::NoTopology => Self::new(
                Code::FailedPrecondition,
                Reason::NoTopology,
                "this gateway has no TOPOLOGY_FILE to compare the broker with",
            ),
            Error::NotMoved(Fate::Unroutable) => Self::new(
                Code::NotFound,
                Reason::QueueNotFound,
                "the destination is gone; what is not moved is still in the source",
            ),
            Error::NotMoved(fate) => {
                let failure = Self::of_publish(fate.into());
                let mut failure =
                    failure.unwrap_or_else(|| Self::broker_down("the copy is not confirmed"));
                // Nothing was published for the caller.
                failure.publish_outcome = None;
                failure
            }
            error @ Error::NotFetched(_) => Self::new(
                Code::FailedPrecondition,
                Reason::BrokerRefused,
                error.to_string(),
            ),
            Error::Refused(words) => Self::new(
                Code::InvalidArgument,
                Reason::InvalidRequest,
                format!("the broker refuses: {words}"),
            ),
            Error::Broker(error) => Self::from(error),
        }
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        use store::Error;
        match error {
            Error::Down | Error::Busy => Self::new(
                Code::Unavailable,
                Reason::DatabaseDown,
                "the database cannot be reached or does not answer; nothing is lost meanwhile: failed messages wait in their dead-letter queues",
            )
            .retry(LATER),
            Error::NotWritable(trouble) => Self::new(
                Code::Unavailable,
                Reason::DatabaseDown,
                format!("{trouble}: nothing can be changed; nothing is lost meanwhile: failed messages wait in their dead-letter queues"),
            )
            .retry(LATER),
            Error::NotFound => Self::from(failed_messages::Error::NotFound),
            Error::Conflict(status) => Self::from(failed_messages::Error::Conflict(status)),
            Error::PageToken => Self::from(failed_messages::Error::PageToken),
            // Logged where it arose; its words may name the database's inside.
            Error::Refused(_) => Self::new(
                Code::Internal,
                Reason::DatabaseRefused,
                "the database did not do what it was asked; the gateway's log says why",
            ),
            Error::Damaged { .. } => Self::new(
                Code::Internal,
                Reason::DatabaseRefused,
                "what is stored of it cannot be read, as the gateway's log says; nothing can be done with it but to delete it",
            ),
        }
    }
}

impl From<broker::Error> for Failure {
    fn from(error: broker::Error) -> Self {
        use broker::{Entity, Error};
        let message = error.to_string();
        match error {
            Error::Down | Error::TimedOut => {
                Self::new(Code::Unavailable, Reason::BrokerDown, message).retry(SOON)
            }
            Error::Blocked => {
                Self::new(Code::Unavailable, Reason::BrokerBlocked, message).retry(LATER)
            }
            Error::NotFound { what, .. } => {
                let reason = match what {
                    Entity::Exchange => Reason::ExchangeNotFound,
                    Entity::Queue | Entity::Binding => Reason::QueueNotFound,
                };
                Self::new(Code::NotFound, reason, message)
            }
            Error::Forbidden { .. } => {
                Self::new(Code::PermissionDenied, Reason::Forbidden, message)
            }
            Error::TooLarge { .. } => {
                Self::new(Code::InvalidArgument, Reason::PayloadTooLarge, message)
            }
            Error::Locked { .. } => {
                Self::new(Code::FailedPrecondition, Reason::QueueLocked, message)
            }
            Error::NotAStream { .. } => Self::invalid_request(Invalid::field(
                "start.stream_offset",
                format!("is for stream queues only: {message}"),
            )),
            Error::IsAStream { .. } => Self::invalid_request(Invalid::field(
                "start.consumer_priority",
                format!("is not for stream queues: {message}"),
            )),
            Error::TooManySubscriptions => Self::new(
                Code::ResourceExhausted,
                Reason::TooManySubscriptions,
                message,
            )
            .retry(LATER),
            Error::InUse { what, .. } => {
                let reason = match what {
                    Entity::Exchange => Reason::ExchangeInUse,
                    Entity::Queue | Entity::Binding => Reason::QueueInUse,
                };
                Self::new(Code::FailedPrecondition, reason, message)
            }
            Error::NotEmpty { .. } => {
                Self::new(Code::FailedPrecondition, Reason::QueueNotEmpty, message)
            }
            Error::ManagementOff => {
                Self::new(Code::FailedPrecondition, Reason::ManagementOff, message)
            }
            Error::ManagementDown(_) => {
                Self::new(Code::Unavailable, Reason::ManagementDown, message).retry(LATER)
            }
            // The broker's own words may name its inside; they are logged, not shown.
            Error::Differs { .. } | Error::Refused(_) => {
                tracing::warn!(%error, "the broker refused");
                let message = "the broker refused; the gateway's log says why";
                Self::new(Code::FailedPrecondition, Reason::BrokerRefused, message)
            }
        }
    }
}
