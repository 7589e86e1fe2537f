//! The socket below the client library: what comes from the broker passes here first. Frames that the client library could not read
//! are made readable ([`repair`]), and what it does not pass on is noted ([`Notes`]).
//!
//! What comes on a channel after the broker closed it is dropped: RabbitMQ sends on what its queues had already pushed, and the client
//! library, which takes that for a breach of protocol, would end the connection, and with it everybody else's channels.

mod repair;
mod runtime;

use std::{
    collections::{HashMap, HashSet},
    io,
    ops::Range,
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

    fn closed(&self, channel: u16, code: u16) {
        let mut closes = self.closes.lock().unwrap_or_else(PoisonError::into_inner);
        closes.insert(channel, code);
    }

    fn opened(&self, channel: u16) {
        let mut closes = self.closes.lock().unwrap_or_else(PoisonError::into_inner);
        closes.remove(&channel);
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
    /// So many bytes after those are dropped.
    dropped: usize,
    /// Channels that the broker closed.
    closed: HashSet<u16>,
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
            dropped: 0,
            closed: HashSet::new(),
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
            if self.dropped > 0 {
                if self.fit > 0 {
                    return;
                }
                let dropped = self.dropped.min(self.inbox.len());
                self.inbox.advance(dropped);
                self.dropped -= dropped;
            }
            let Some(head) = self.inbox[self.fit..].first_chunk::<FRAME_HEAD>() else {
                return;
            };
            let [kind, c1, c2, s1, s2, s3, s4] = *head;
            let channel = u16::from_be_bytes([c1, c2]);
            let size = usize::try_from(u32::from_be_bytes([s1, s2, s3, s4])).unwrap_or(usize::MAX);
            let whole = size.saturating_add(FRAME_HEAD + 1);
            match kind {
                HEADER | BODY if self.closed.contains(&channel) => self.dropped = whole,
                METHOD | HEADER if size <= FRAME_MAX => {
                    let begin = self.fit + FRAME_HEAD;
                    // The payload and one byte that ends the frame.
                    if self.inbox.len() <= begin + size {
                        return;
                    }
                    if kind == METHOD && !self.belongs(channel, begin..begin + size) {
                        self.dropped = whole;
                        continue;
                    }
                    let payload = &mut self.inbox[begin..begin + size];
                    let tag = tag_of(&mut self.tags, channel);
                    let repaired = if kind == METHOD {
                        if let (Some(tag), Some(delivered)) = (tag, repair::delivery_tag(payload)) {
                            *tag = delivered;
                        }
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

    /// Whether a method comes on a channel that is not closed, or is about that itself
    /// (<https://www.rabbitmq.com/amqp-0-9-1-reference#channel>).
    fn belongs(&mut self, channel: u16, method: Range<usize>) -> bool {
        match self.inbox[method] {
            // `channel.close`, and its code.
            [0, 20, 0, 40, high, low, ..] => {
                self.closed.insert(channel);
                self.notes.closed(channel, u16::from_be_bytes([high, low]));
            }
            // `channel.open-ok`: the number is another channel's from here on.
            [0, 20, 0, 11, ..] => {
                self.closed.remove(&channel);
                self.notes.opened(channel);
            }
            [0, 20, ..] => {}
            _ => return !self.closed.contains(&channel),
        }
        true
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
            wire.look();
            if wire.fit > 0 {
                continue;
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

#[cfg(test)]
mod tests {
    use futures::AsyncReadExt;
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;

    fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind];
        frame.extend(channel.to_be_bytes());
        frame.extend(u32::try_from(payload.len()).expect("small").to_be_bytes());
        frame.extend(payload);
        frame.push(0xCE);
        frame
    }

    /// What the client library reads when the broker sends this, a piece at a time.
    async fn read(sent: Vec<u8>, piece: usize) -> (Vec<u8>, Arc<Notes>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let broker = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.expect("a client");
            for piece in sent.chunks(piece) {
                socket.write_all(piece).await.expect("it reads");
                socket.flush().await.expect("it reads");
            }
        });
        let socket = TcpStream::connect(address).await.expect("it listens");
        let notes = Arc::default();
        let mut wire = Wire::new(
            AsyncTcpStream::Plain(Compat::new(socket)),
            Arc::clone(&notes),
        );
        let mut got = Vec::new();
        wire.read_to_end(&mut got).await.expect("it ends well");
        broker.await.expect("all is sent");
        (got, notes)
    }

    #[tokio::test]
    async fn what_comes_on_a_channel_after_the_broker_closed_it_is_dropped() {
        let open_ok = |channel| frame(METHOD, channel, &[0, 20, 0, 11, 0, 0, 0, 0]);
        let close = |channel| frame(METHOD, channel, &[0, 20, 0, 40, 1, 147, 0, 0, 0, 0, 0]);
        let deliver = |channel, tag: u8, size: usize| {
            // Consumer "c", from the default exchange, with the routing key "q".
            let mut method = vec![0, 60, 0, 60, 1, b'c'];
            method.extend([0, 0, 0, 0, 0, 0, 0, tag, 0, 0, 1, b'q']);
            let mut header = vec![0, 60, 0, 0];
            header.extend(u64::try_from(size).expect("small").to_be_bytes());
            header.extend([0, 0]);
            let mut frames = frame(METHOD, channel, &method);
            frames.extend(frame(HEADER, channel, &header));
            frames.extend(frame(BODY, channel, &vec![tag; size]));
            frames
        };
        let steps = [
            (true, open_ok(1)),
            (true, deliver(1, 1, 3)),
            (true, close(1)),
            (false, deliver(1, 2, 3 * READ)),
            (true, deliver(2, 1, 3 * READ)),
            (false, deliver(1, 3, 0)),
            (true, frame(METHOD, 1, &[0, 20, 0, 41])),
            (true, frame(HEARTBEAT, 0, &[])),
            (true, open_ok(1)),
            (true, deliver(1, 1, 5)),
        ];
        let all = |which: &[bool]| -> Vec<u8> {
            let steps = steps.iter().filter(|(passes, _)| which.contains(passes));
            steps.flat_map(|(_, frames)| frames.clone()).collect()
        };
        for piece in [1, 7, 1_000, 100_000] {
            let (got, notes) = read(all(&[true, false]), piece).await;
            assert!(got == all(&[true]), "in pieces of {piece}");
            assert_eq!(notes.closed_with(1), None, "it is another channel's");
        }
        let (_, notes) = read(close(1), 100).await;
        assert_eq!(notes.closed_with(1), Some(403));
    }
}
