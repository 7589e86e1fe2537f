//! The body of a request, message by message: each is looked at before tonic takes it, and reaches tonic uncompressed and whole.
//!
//! What is refused ends the call with its status. In a `PublishStream` it becomes an empty request of the same sequence instead,
//! and [`Refusals`] tells the handler what that stands for.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame};
use prost::Message as _;
use tonic::{Status, body::Body};

use super::{
    HEADER, MAX_SKIPPED, Refusals, Rules,
    expand::{Expanded, Expanding, Failed},
    header,
    rules::Problem,
    sequence::Sequence,
};
use crate::{
    budget::intake::{Interrupted, LARGE, Reader},
    grpc::proto::PublishStreamRequest,
};

/// Room that is made at once for a message that is announced; more only as it comes.
const ROOM: usize = 64 * 1024;
/// Bytes that are expanded before other tasks have a turn.
const TURN: usize = 512 * 1024;

/// See the module.
pub(super) struct Requests {
    inner: Body,
    rules: Rules,
    gzip: bool,
    refusals: Refusals,
    /// Counts what a compressed message becomes, and the buffer that tonic's decoder keeps after a large message of a stream.
    reader: Reader,
    /// What came and was not looked at yet.
    chunk: Bytes,
    reading: Reading,
    /// The number of the message that comes next.
    index: u64,
    /// The one request of a call that takes one. It is handed over when the caller has said all: until then it is not decoded,
    /// which would hold many times its size.
    held: Option<Bytes>,
    trailers: Option<HeaderMap>,
    /// Whether others should have a turn.
    tired: bool,
    ended: bool,
}

enum Reading {
    /// A frame's header: what came of it.
    Header(BytesMut),
    /// A message of so many bytes, header included.
    Plain(usize, BytesMut),
    /// A compressed message: bytes to come.
    Zipped(usize, Box<Expanding>),
    /// A message that is refused: bytes to come.
    Refused {
        left: usize,
        problem: Problem,
        sequence: Looked,
    },
}

/// The sequence of a message that is refused.
enum Looked {
    For(Sequence),
    Found(Option<u64>),
}

impl Looked {
    fn at_end(&self) -> Option<u64> {
        match self {
            Self::For(sequence) => sequence.at_end(),
            Self::Found(sequence) => *sequence,
        }
    }
}

impl Reading {
    fn next() -> Self {
        Self::Header(BytesMut::new())
    }
}

impl Requests {
    pub(super) fn new(
        inner: Body,
        rules: Rules,
        gzip: bool,
        refusals: Refusals,
        reader: Reader,
    ) -> Self {
        Self {
            reader,
            inner,
            rules,
            gzip,
            refusals,
            chunk: Bytes::new(),
            reading: Reading::next(),
            index: 0,
            held: None,
            trailers: None,
            tired: false,
            ended: false,
        }
    }

    /// Whether there is something to do before more comes.
    fn has_work(&self) -> bool {
        let complete = match &self.reading {
            Reading::Header(_) => false,
            Reading::Plain(size, message) => message.len() == *size,
            Reading::Zipped(left, _) | Reading::Refused { left, .. } => *left == 0,
        };
        complete || !self.chunk.is_empty()
    }

    /// Goes on with what came: a message, if one is complete.
    fn advance(&mut self) -> Result<Option<Bytes>, Status> {
        match std::mem::replace(&mut self.reading, Reading::next()) {
            Reading::Header(head) => self.head(head),
            Reading::Plain(size, mut message) => {
                let more = self.chunk.len().min(size - message.len());
                message.extend_from_slice(&self.chunk.split_to(more));
                if message.len() == size {
                    return self.whole(message.freeze());
                }
                self.reading = Reading::Plain(size, message);
                Ok(None)
            }
            Reading::Zipped(left, message) => self.expand(left, message),
            Reading::Refused {
                left,
                problem,
                mut sequence,
            } => {
                let passed = self.chunk.split_to(self.chunk.len().min(left));
                if let Looked::For(sequence) = &mut sequence {
                    sequence.feed(&passed);
                }
                if passed.len() == left {
                    return self.refuse(problem, sequence.at_end()).map(Some);
                }
                self.reading = Reading::Refused {
                    left: left - passed.len(),
                    problem,
                    sequence,
                };
                Ok(None)
            }
        }
    }

    fn head(&mut self, mut head: BytesMut) -> Result<Option<Bytes>, Status> {
        let more = self.chunk.len().min(HEADER - head.len());
        head.extend_from_slice(&self.chunk[..more]);
        if head.len() < HEADER {
            self.chunk.advance(more);
            self.reading = Reading::Header(head);
            return Ok(None);
        }
        let zipped = match head[0] {
            0 => false,
            1 if self.gzip => true,
            // As gRPC's specification demands: https://grpc.github.io/grpc/core/md_doc_compression.html
            1 => {
                let problem =
                    "a message is marked as compressed, and the call names no grpc-encoding";
                return Err(Status::internal(problem));
            }
            _ => return Err(self.rules.status(&Problem::Flag)),
        };
        if self.held.is_some() {
            return Err(self.rules.status(&Problem::Second));
        }
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let limit = self.rules.bytes;
        let too_large = length > limit;
        // Nobody sends so much in earnest.
        if too_large && length > MAX_SKIPPED.max(limit) {
            return self.refuse(Problem::TooLarge, None).map(Some);
        }
        let size = HEADER.saturating_add(length);
        // All of it is there already, as with most messages: it is not copied.
        if !zipped && !too_large && more == HEADER && self.chunk.len() >= size {
            let message = self.chunk.split_to(size);
            return self.whole(message);
        }
        self.chunk.advance(more);
        self.reading = if too_large && (!zipped || !self.rules.each) {
            // Read to its end before it is answered: some clients hear nothing while they send.
            Reading::Refused {
                left: length,
                problem: Problem::TooLarge,
                sequence: Looked::For(Sequence::default()),
            }
        } else if zipped {
            Reading::Zipped(length, Box::new(Expanding::new(length, limit)))
        } else {
            head.reserve(length.min(ROOM));
            Reading::Plain(size, head)
        };
        Ok(None)
    }

    fn expand(
        &mut self,
        mut left: usize,
        mut message: Box<Expanding>,
    ) -> Result<Option<Bytes>, Status> {
        let before = message.size();
        while left > 0 && !self.chunk.is_empty() {
            let piece = &self.chunk[..self.chunk.len().min(left)];
            let problem = match message.feed(piece) {
                Ok(taken) => {
                    self.chunk.advance(taken);
                    left -= taken;
                    message.is_too_large().then_some(Problem::TooLarge)
                }
                Err(failed) => Some(failed.into()),
            };
            if let Some(problem) = problem {
                let known = message.sequence();
                // A sequence that is still to come is worth to go on; else what is left of it need not be expanded.
                if !self.rules.each || known.is_some() || problem != Problem::TooLarge {
                    self.reading = Reading::Refused {
                        left,
                        problem,
                        sequence: Looked::Found(known),
                    };
                    return Ok(None);
                }
            }
            if message.size() - before > TURN {
                self.tired = true;
                break;
            }
        }
        if message.size() > before {
            self.hold(message.size())?;
        }
        if left > 0 {
            self.reading = Reading::Zipped(left, message);
            return Ok(None);
        }
        let known = message.sequence();
        match message.finish().map(Expanded::frame) {
            Ok(Ok(frame)) => self.whole(frame),
            Ok(Err(sequence)) => self.refuse(Problem::TooLarge, sequence.at_end()).map(Some),
            Err(failed) => self.refuse(failed.into(), known).map(Some),
        }
    }

    /// A message, header included.
    fn whole(&mut self, message: Bytes) -> Result<Option<Bytes>, Status> {
        if let Err(problem) = self.rules.check(&message[HEADER..]) {
            return self
                .refuse(problem, Sequence::of(&message[HEADER..]))
                .map(Some);
        }
        self.index += 1;
        if self.rules.streams() {
            self.hold(if message.len() > LARGE {
                message.len()
            } else {
                0
            })?;
            return Ok(Some(message));
        }
        self.held = Some(message);
        Ok(None)
    }

    /// So much is in memory here.
    fn hold(&mut self, bytes: usize) -> Result<(), Status> {
        let full = |_| self.rules.interrupted(Interrupted::Full);
        self.reader.hold(bytes).map_err(full)
    }

    fn refuse(&mut self, problem: Problem, sequence: Option<u64>) -> Result<Bytes, Status> {
        let _ = self.reader.hold(0);
        self.refusals.push(self.index, self.rules.invalid(&problem));
        self.index += 1;
        // Without its sequence, nobody could be told which one it was.
        let Some(sequence) = sequence.filter(|_| self.rules.each) else {
            return Err(self.rules.status(&problem));
        };
        let publish = None;
        let instead = PublishStreamRequest { sequence, publish }.encode_to_vec();
        Ok([&header(instead.len())[..], &instead].concat().into())
    }
}

impl From<Failed> for Problem {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::NotGzip => Self::NotGzip,
            Failed::Bomb => Self::Bomb,
        }
    }
}

impl HttpBody for Requests {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            if this.ended {
                let held = this.held.take().map(Frame::data);
                let frame = held.or_else(|| this.trailers.take().map(Frame::trailers));
                return Poll::Ready(frame.map(Ok));
            }
            let failed = if this.has_work() {
                match this.advance() {
                    Ok(Some(message)) => return Poll::Ready(Some(Ok(Frame::data(message)))),
                    Ok(None) if std::mem::take(&mut this.tired) => {
                        context.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    Ok(None) => continue,
                    Err(status) => status,
                }
            } else {
                let frame = match Pin::new(&mut this.inner).poll_frame(context) {
                    Poll::Ready(frame) => frame,
                    Poll::Pending => {
                        ready!(this.reader.poll_cut(context));
                        Some(Err(this.rules.interrupted(Interrupted::Full)))
                    }
                };
                match frame {
                    Some(Ok(frame)) => {
                        match frame.into_data() {
                            Ok(data) => this.chunk = data,
                            Err(other) => this.trailers = other.into_trailers().ok(),
                        }
                        continue;
                    }
                    Some(Err(status)) => status,
                    None => match &this.reading {
                        Reading::Header(head) if head.is_empty() => {
                            if this.rules.streams() || this.held.is_some() {
                                this.ended = true;
                                continue;
                            }
                            this.rules.status(&Problem::Missing)
                        }
                        _ => this.rules.status(&Problem::BrokeOff),
                    },
                }
            };
            this.ended = true;
            this.held = None;
            return Poll::Ready(Some(Err(failed)));
        }
    }
}
