//! The socket below the client library: what comes from the broker passes here first. Frames that the client library could not read
//! are made readable ([`repair`]), and what it does not pass on is noted ([`Notes`]).

mod repair;
mod runtime;

use std::{
    collections::{HashMap, HashSet},
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use async_compat::Compat;
use bytes::{Buf, BytesMut};
use futures::io::{AsyncRead, AsyncWrite};
use lapin::AsyncTcpStream;
use tokio::net::TcpStream;
use tracing::warn;

pub(super) use self::runtime::{Kit, current as runtime};
use crate::{message::Message, metrics::Metrics};

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
/// A frame's type, channel and size.
const FRAME_HEAD: usize = 7;
/// Larger ones than any broker offers are not kept whole; the client library refuses them.
const FRAME_MAX: usize = 8 * 1024 * 1024;
const READ: usize = 16 * 1024;
/// Repaired deliveries that nobody asked for yet.
const MARKS_MAX: usize = 10_000;

/// What was seen on a connection.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// Looked at for each delivery; the list only when there is something in it.
    any: AtomicBool,
    /// Which deliveries were repaired, by channel and delivery tag.
    marks: Mutex<HashSet<(u16, u64)>>,
    /// With which code the broker ended the last channel of a number.
    closes: Mutex<HashMap<u16, u16>>,
}

impl Notes {
    /// Why the broker ended this channel, for certain: the client library tells only those who waited for it at that moment.
    pub(super) fn closed_with(&self, channel: u16) -> Option<u16> {
        let closes = self.closes.lock().unwrap_or_else(PoisonError::into_inner);
        closes.get(&channel).copied()
    }

    /// A method came on this channel.
    fn note(&self, channel: u16, method: &[u8]) {
        let code = match method {
            // `channel.close`, and its code.
            [0, 20, 0, 40, high, low, ..] => Some(u16::from_be_bytes([*high, *low])),
            // `channel.open-ok`: the number is another channel's from here on.
            [0, 20, 0, 11, ..] => None,
            _ => return,
        };
        let mut closes = self.closes.lock().unwrap_or_else(PoisonError::into_inner);
        match code {
            Some(code) => closes.insert(channel, code),
            None => closes.remove(&channel),
        };
    }

    fn mark(&self, channel: u16, tag: u64) {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        if marks.len() < MARKS_MAX {
            marks.insert((channel, tag));
            self.any.store(true, Ordering::Release);
        }
    }

    /// Whether this delivery was repaired. Said once.
    pub(super) fn take_repaired(&self, channel: u16, tag: u64) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let marked = marks.remove(&(channel, tag));
        self.any.store(!marks.is_empty(), Ordering::Release);
        marked
    }
}

/// Says that the properties of a message of `queue` were repaired: once for the first, and each time that their number doubles.
pub(super) fn note_repaired(metrics: &Metrics, queue: &str, message: &Message) {
    let so_far = metrics.repaired(queue);
    if so_far.is_power_of_two() {
        let message_id = message.message_id.as_deref().unwrap_or_default();
        warn!(
            queue,
            message_id,
            so_far,
            "a message has properties or headers that the gateway cannot read: bytes that are no UTF-8 were replaced by \"?\", \
             tables nested too deep by their bytes; its payload is untouched"
        );
    }
}

/// The broker's socket, encrypted or not.
pub(super) struct Wire {
    socket: AsyncTcpStream<Compat<TcpStream>>,
    /// What was received and not handed on.
    inbox: BytesMut,
    /// So many bytes at the front of the inbox may be handed on.
    fit: usize,
    /// So many bytes after those belong to a frame that nobody looks at.
    unseen: usize,
    /// What comes is no AMQP: it is not looked at any more.
    foreign: bool,
    /// The tag of the last delivery on each channel: its header comes next.
    tags: Vec<u64>,
    notes: Arc<Notes>,
}

impl Wire {
    pub(super) fn new(socket: AsyncTcpStream<Compat<TcpStream>>, notes: Arc<Notes>) -> Self {
        Self {
            socket,
            inbox: BytesMut::new(),
            fit: 0,
            unseen: 0,
            foreign: false,
            tags: Vec::new(),
            notes,
        }
    }

    /// Looks at what was received, as far as frames are complete.
    fn look(&mut self) {
        loop {
            if self.foreign {
                self.fit = self.inbox.len();
                return;
            }
            let passed = self.unseen.min(self.inbox.len() - self.fit);
            self.fit += passed;
            self.unseen -= passed;
            let Some(head) = self.inbox[self.fit..].first_chunk::<FRAME_HEAD>() else {
                return;
            };
            let [kind, c1, c2, s1, s2, s3, s4] = *head;
            let channel = u16::from_be_bytes([c1, c2]);
            let size = usize::try_from(u32::from_be_bytes([s1, s2, s3, s4])).unwrap_or(usize::MAX);
            match kind {
                METHOD | HEADER if size <= FRAME_MAX => {
                    let begin = self.fit + FRAME_HEAD;
                    // The payload and one byte that ends the frame.
                    if self.inbox.len() <= begin + size {
                        return;
                    }
                    let payload = &mut self.inbox[begin..begin + size];
                    let tag = tag_of(&mut self.tags, channel);
                    let repaired = if kind == METHOD {
                        if let (Some(tag), Some(delivered)) = (tag, repair::delivery_tag(payload)) {
                            *tag = delivered;
                        }
                        self.notes.note(channel, payload);
                        !payload.is_ascii() && repair::method(payload)
                    } else {
                        repair::header(payload)
                    };
                    if repaired {
                        let tag = self.tags.get(usize::from(channel)).copied();
                        self.notes.mark(channel, tag.unwrap_or_default());
                    }
                    self.fit = begin + size + 1;
                }
                BODY | HEARTBEAT => {
                    self.fit += FRAME_HEAD;
                    self.unseen = size.saturating_add(1);
                }
                _ => self.foreign = true,
            }
        }
    }
}

fn tag_of(tags: &mut Vec<u64>, channel: u16) -> Option<&mut u64> {
    let channel = usize::from(channel);
    if tags.len() <= channel {
        tags.resize(channel + 1, 0);
    }
    tags.get_mut(channel)
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let wire = &mut *self;
        loop {
            if wire.fit > 0 {
                let count = wire.fit.min(buffer.len());
                wire.inbox.copy_to_slice(&mut buffer[..count]);
                wire.fit -= count;
                return Poll::Ready(Ok(count));
            }
            // A large payload need not pass through the inbox.
            if wire.inbox.is_empty() && wire.unseen >= buffer.len() && !buffer.is_empty() {
                let read = ready!(Pin::new(&mut wire.socket).poll_read(context, buffer))?;
                wire.unseen -= read;
                return Poll::Ready(Ok(read));
            }
            let before = wire.inbox.len();
            wire.inbox.resize(before + READ, 0);
            let read = Pin::new(&mut wire.socket).poll_read(context, &mut wire.inbox[before..]);
            let got = if let Poll::Ready(Ok(read)) = &read {
                *read
            } else {
                0
            };
            wire.inbox.truncate(before + got);
            if ready!(read)? == 0 {
                return Poll::Ready(Ok(0));
            }
            wire.look();
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(context)
    }
}
