//! What a request may be, rpc by rpc, and what is said of one that is not.

use std::sync::Arc;

use tonic::Status;

use super::shape::{Most, Refused, Request, Shapes};
use crate::{
    budget::intake::Interrupted,
    error::Failure,
    gateway::{
        Limits,
        publisher::{MAX_BATCH, Outcome},
        subscriber::protocol::MAX_ACK_IDS,
        validate::Invalid,
    },
    grpc::status,
};

/// Elements of lists and maps in a request, nested ones included.
pub const MAX_ELEMENTS: usize = 10_000;
/// The same of a batch: as many headers as all of its messages may have, and more.
pub const MAX_BATCH_ELEMENTS: usize = 100_000;
/// Bytes of a request to a service that publishes nothing, unless a payload may be larger.
pub(in crate::grpc) const MAX_OTHER: usize = 4 * 1024 * 1024;
/// Bytes of a request for health or reflection, which are names.
const MAX_NAMES: usize = 64 * 1024;

/// The rules of one rpc.
#[derive(Clone)]
pub(super) struct Rules {
    shapes: Arc<Shapes>,
    request: Request,
    /// Bytes of one message, expanded.
    pub(super) bytes: usize,
    most: Most,
    /// Each message has an answer of its own: one that is refused ends nothing.
    pub(super) each: bool,
    takes: Takes,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    OneMessage,
    Batch,
    Other,
}

/// Why a message is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// Over [`Rules::bytes`].
    TooLarge,
    TooManyElements,
    TooManyMessages,
    Malformed(&'static str),
    NotGzip,
    /// It expands beyond measure.
    Bomb,
    /// The frame is neither compressed nor not.
    Flag,
    /// The second request where one is expected.
    Second,
    /// None where one is expected.
    Missing,
    /// The body ends within a message.
    BrokeOff,
}

impl Rules {
    pub(super) fn of(path: &str, request: Request, shapes: &Arc<Shapes>, limits: &Limits) -> Self {
        let mut rules = Self {
            shapes: shapes.clone(),
            request,
            bytes: limits.request_bytes().max(MAX_OTHER),
            most: Most {
                elements: MAX_ELEMENTS,
                first: None,
            },
            each: false,
            takes: Takes::Other,
        };
        match path {
            "/courtier.v1.Publisher/Publish" => {
                rules.bytes = limits.request_bytes();
                rules.takes = Takes::OneMessage;
            }
            "/courtier.v1.Publisher/PublishStream" => {
                rules.bytes = limits.request_bytes();
                rules.each = true;
            }
            "/courtier.v1.Publisher/PublishBatch" => {
                rules.bytes = limits.batch_bytes();
                rules.most = Most {
                    elements: MAX_BATCH_ELEMENTS,
                    first: Some(MAX_BATCH),
                };
                rules.takes = Takes::Batch;
            }
            // A few too many are told so by the handler.
            "/courtier.v1.Subscriber/Subscribe" => rules.most.elements = MAX_ACK_IDS + 1_000,
            path if !path.starts_with("/courtier.v1.") => rules.bytes = MAX_NAMES,
            _ => {}
        }
        rules
    }

    /// Whether the rpc takes many messages.
    pub(super) fn streams(&self) -> bool {
        self.request.streams
    }

    /// Whether a message may be decoded.
    pub(super) fn check(&self, message: &[u8]) -> Result<(), Problem> {
        let checked = self.shapes.check(self.request, self.most, message);
        checked.map_err(|refused| match refused {
            Refused::Malformed(problem) => Problem::Malformed(problem),
            Refused::TooManyElements => Problem::TooManyElements,
            Refused::TooManyOfTheFirst => Problem::TooManyMessages,
        })
    }

    /// What is said of a problem.
    pub(super) fn invalid(&self, problem: &Problem) -> Invalid {
        let problem = match problem {
            Problem::TooLarge if self.takes == Takes::Batch => {
                return Invalid::BatchTooLarge { limit: self.bytes };
            }
            Problem::TooLarge => return Invalid::RequestTooLarge { limit: self.bytes },
            Problem::TooManyMessages => {
                let problem = format!("must hold 1 to {MAX_BATCH} messages, not more");
                return Invalid::field("messages", problem);
            }
            Problem::TooManyElements => format!(
                "holds more than {} elements of lists and maps, nested ones included",
                self.most.elements
            ),
            Problem::Malformed(problem) => format!("does not decode: {problem}"),
            Problem::NotGzip => "is marked as compressed, and is not gzip".to_owned(),
            Problem::Bomb => {
                "expands to more than 100 times its compressed size: send it uncompressed"
                    .to_owned()
            }
            Problem::Flag => "is in a frame that is neither compressed nor uncompressed".to_owned(),
            Problem::Second => "must be one message, not several".to_owned(),
            Problem::Missing => "must be one message, not none".to_owned(),
            Problem::BrokeOff => "ends within a message".to_owned(),
        };
        Invalid::field("request", problem)
    }

    /// How a call ends whose rest is not read.
    pub(super) fn interrupted(&self, why: Interrupted) -> Status {
        status::interrupted(why, self.takes != Takes::Other)
    }

    /// How a call ends because of a problem.
    pub(super) fn status(&self, problem: &Problem) -> Status {
        let invalid = self.invalid(problem);
        let says_much = matches!(
            problem,
            Problem::TooLarge | Problem::TooManyElements | Problem::Bomb
        );
        let failure = match self.takes {
            Takes::OneMessage if says_much => {
                Failure::of_publish(Outcome::Invalid(invalid.clone()))
            }
            Takes::OneMessage | Takes::Batch => Some(Failure::invalid_publish(invalid.clone())),
            Takes::Other => None,
        };
        failure
            .unwrap_or_else(|| Failure::invalid_request(invalid))
            .into()
    }
}
