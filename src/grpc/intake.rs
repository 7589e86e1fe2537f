//! What has come of requests that are not complete: it counts against the budget of memory ([`crate::budget::intake`]), and the rest of
//! it must go on to come. It sits outside of all protocols, where bytes come from the network.
//!
//! A request that is complete in one frame of HTTP/2, as most are, costs nothing here. What a message becomes that is compressed, and what
//! a stream's large message leaves behind, is counted where that happens ([`incoming`](super::incoming)).

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, header::CONTENT_TYPE};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::{Status, body::Body};

use super::{
    incoming::{HEADER, MAX_OTHER},
    status,
};
use crate::{
    budget::intake::{Intake, Interrupted, Reader},
    gateway::Gateway,
};

/// The calls whose requests are a stream: it may rest between two messages, but not within one.
const STREAMS: [&str; 4] = [
    "/courtier.v1.Publisher/PublishStream",
    "/courtier.v1.Subscriber/Subscribe",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
/// The calls whose failures name an outcome.
const PUBLISHES: [&str; 2] = ["/courtier.v1.Publisher/Publish", BATCH];
const BATCH: &str = "/courtier.v1.Publisher/PublishBatch";
/// Those that have a limit of their own: the call, and its twin over plain HTTP.
const BATCHES: [&str; 2] = [BATCH, "/api/messages/publish/batch"];

/// Counts what comes of requests. See the [module](self).
#[derive(Clone, Debug)]
pub struct Counter {
    intake: Arc<Intake>,
    /// What is larger is not kept, but read and forgotten.
    largest: usize,
    largest_batch: usize,
    idle: Duration,
}

impl Counter {
    /// `idle`: how long the rest of a request may take to go on.
    pub fn new(gateway: &Gateway, idle: Duration) -> Self {
        Self {
            intake: gateway.memory.intake.clone(),
            largest: gateway.limits.request_bytes().max(MAX_OTHER),
            largest_batch: gateway.limits.batch_bytes(),
            idle,
        }
    }

    /// The request, its body counted as it comes.
    pub fn count(&self, request: Request<Body>) -> Request<Body> {
        if request.body().is_end_stream() {
            return request;
        }
        let path = request.uri().path();
        let publishes = PUBLISHES.contains(&path);
        let is_stream = STREAMS.contains(&path) && is_framed(&request);
        let largest = if BATCHES.contains(&path) {
            self.largest_batch
        } else {
            self.largest
        };
        request.map(|inner| {
            Body::new(Counting {
                inner,
                came: 0,
                largest,
                messages: is_stream.then(Messages::default),
                reader: self.intake.reader(),
                publishes,
                idle: self.idle,
                waiting: None,
                over: false,
            })
        })
    }
}

/// Whether the body is messages of gRPC one after the other. gRPC-Web has them too, unless it is text.
fn is_framed<B>(request: &Request<B>) -> bool {
    let kind = request.headers().get(CONTENT_TYPE);
    kind.is_some_and(|kind| {
        let kind = kind.as_bytes();
        kind.starts_with(b"application/grpc") && !kind.starts_with(b"application/grpc-web-text")
    })
}

/// A request's body, of which is counted what is in memory.
struct Counting {
    inner: Body,
    /// All that has come, of a body that is one request.
    came: usize,
    largest: usize,
    /// Of a body that is a stream of them: it may rest between two.
    messages: Option<Messages>,
    reader: Reader,
    publishes: bool,
    idle: Duration,
    /// Set while nothing comes that must.
    waiting: Option<Pin<Box<Sleep>>>,
    over: bool,
}

impl Counting {
    fn note(&mut self, data: &Bytes) -> Result<(), Interrupted> {
        let held = match &mut self.messages {
            Some(messages) => {
                messages.note(data);
                messages.held(self.largest)
            }
            None if self.inner.is_end_stream() => return Ok(()),
            None => {
                self.came += data.len();
                self.came
            }
        };
        let held = if held > self.largest { 0 } else { held };
        self.reader.hold(held).map_err(|_| Interrupted::Full)
    }

    /// Whether more must come, and soon.
    fn must_go_on(&self) -> bool {
        self.messages.as_ref().is_none_or(Messages::is_within_one)
    }

    fn interrupted(&mut self, why: Interrupted) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.over = true;
        Poll::Ready(Some(Err(status::interrupted(why, self.publishes))))
    }
}

impl HttpBody for Counting {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.over {
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Ready(frame) => {
                self.waiting = None;
                if let Some(Ok(frame)) = &frame
                    && let Some(data) = frame.data_ref()
                    && let Err(why) = self.note(data)
                {
                    return self.interrupted(why);
                }
                Poll::Ready(frame)
            }
            Poll::Pending if self.reader.poll_cut(context).is_ready() => {
                self.interrupted(Interrupted::Full)
            }
            Poll::Pending if self.must_go_on() => {
                let idle = self.idle;
                let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(idle)));
                match waiting.as_mut().poll(context) {
                    Poll::Ready(()) => self.interrupted(Interrupted::Idle(idle)),
                    Poll::Pending => Poll::Pending,
                }
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Follows the messages of gRPC through a body
/// (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#length-prefixed-message>).
#[derive(Debug, Default)]
struct Messages {
    header: Vec<u8>,
    /// What is still to come of the message after its header.
    left: usize,
    /// What has come of it, header included.
    came: usize,
}

impl Messages {
    fn is_within_one(&self) -> bool {
        self.came > 0
    }

    /// How much has come of a message that is not complete. One that says that it is too large is not kept.
    fn held(&self, largest: usize) -> usize {
        if self.came + self.left > largest {
            0
        } else {
            self.came
        }
    }

    fn note(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let taken = if self.header.len() < HEADER {
                let taken = data.len().min(HEADER - self.header.len());
                self.header.extend_from_slice(&data[..taken]);
                if let [_, a, b, c, d] = *self.header {
                    self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                }
                taken
            } else {
                let taken = data.len().min(self.left);
                self.left -= taken;
                taken
            };
            data = &data[taken..];
            self.came += taken;
            if self.header.len() == HEADER && self.left == 0 {
                self.header.clear();
                self.came = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_says_that_it_is_too_large_holds_nothing() {
        let mut messages = Messages::default();
        messages.note(&[0, 0, 0, 1, 0]);
        messages.note(&[7; 100]);
        assert_eq!(messages.held(261), 105);
        assert_eq!(messages.held(260), 0);
    }

    fn message(length: u8) -> Vec<u8> {
        [vec![0, 0, 0, 0, length], vec![7; length.into()]].concat()
    }

    #[test]
    fn the_part_of_a_message_that_came_is_known_wherever_frames_end() {
        let stream = [message(10), message(0), message(255), message(3)].concat();
        for size in 1..stream.len() {
            let mut messages = Messages::default();
            let mut seen = 0;
            for frame in stream.chunks(size) {
                seen += frame.len();
                let before = [15, 20, 280, 288].into_iter().rfind(|end| *end <= seen);
                messages.note(frame);
                assert_eq!(messages.held(1_000), seen - before.unwrap_or(0));
                assert_eq!(messages.is_within_one(), seen != before.unwrap_or(0));
            }
        }
    }
}
