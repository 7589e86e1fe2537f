//! What is left of a request's body when the answer is there already.
//!
//! Over HTTP/1 most clients send the whole body before they read anything. A connection that is closed meanwhile is a broken
//! pipe to them, and the answer, which says why, is lost. So the rest is read and forgotten: up to a size and for a time.
//! Over HTTP/2 each side of a stream ends by itself, and nothing is lost.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Version, header::EXPECT};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::{runtime::Handle, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body};

/// Bytes of one body that are read for nothing.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// How long that may take.
const MAX_TIME: Duration = Duration::from_secs(10);

/// Reads the body of a request on, if nobody reads it to its end, until `stopping`.
pub fn watch(request: Request<Body>, stopping: &CancellationToken) -> Request<Body> {
    if request.version() >= Version::HTTP_2 || request.body().is_end_stream() {
        return request;
    }
    let asked = !waits(request.headers());
    let stopping = stopping.clone();
    request.map(|inner| {
        Body::new(Watched {
            inner: Some(inner),
            asked,
            stopping,
        })
    })
}

/// Whether the client sends its body only when it is asked to, which the first look at the body does.
fn waits(headers: &HeaderMap) -> bool {
    let expects = headers.get(EXPECT).map(|value| value.as_bytes());
    expects.is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"))
}

/// A body that is read on when it is dropped.
struct Watched {
    /// `None`: it has ended.
    inner: Option<Body>,
    /// Whether the client sends it.
    asked: bool,
    stopping: CancellationToken,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.asked = true;
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(None);
        };
        let frame = Pin::new(inner).poll_frame(context);
        if matches!(frame, Poll::Ready(None | Some(Err(_)))) {
            self.inner = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Some(inner) => inner.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let left = self
            .inner
            .take()
            .filter(|left| self.asked && !left.is_end_stream());
        let (Some(left), Ok(runtime)) = (left, Handle::try_current()) else {
            return;
        };
        let stopped = self.stopping.clone().cancelled_owned();
        runtime.spawn(async move {
            tokio::select! {
                _ = timeout(MAX_TIME, read_on(left)) => {}
                () = stopped => {}
            }
        });
    }
}

async fn read_on(mut body: Body) {
    let mut read = 0;
    while read < MAX_BYTES {
        let frame = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
        let Some(Ok(frame)) = frame else {
            return;
        };
        read += frame.data_ref().map_or(0, Bytes::len);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use futures::{StreamExt, stream};

    use super::*;

    /// Drops a body of so many pieces of 1 MiB: how many are read after that?
    async fn pieces_read(pieces: usize, headers: &[(&str, &str)]) -> usize {
        let read = Arc::new(AtomicUsize::new(0));
        let counted = read.clone();
        let piece = move |_| {
            counted.fetch_add(1, SeqCst);
            Ok::<_, Status>(Bytes::from(vec![0; 1 << 20]))
        };
        let body = axum::body::Body::from_stream(stream::iter(0..pieces).map(piece));
        let mut request = Request::builder().version(Version::HTTP_11);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::new(body)).expect("well-formed");
        drop(watch(request, &CancellationToken::new()));
        // On the one thread of this test, the other task has its turn until it waits or ends.
        tokio::time::sleep(MAX_TIME * 2).await;
        read.load(SeqCst)
    }

    #[tokio::test(start_paused = true)]
    async fn the_rest_of_a_body_is_read_up_to_a_size() {
        assert_eq!(pieces_read(3, &[]).await, 3);
        assert_eq!(pieces_read(100, &[]).await, 64);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_waits_to_be_asked_is_not_asked() {
        assert_eq!(pieces_read(3, &[("expect", "100-continue")]).await, 0);
    }
}
