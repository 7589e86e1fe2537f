//! Whether a caller said that it is done (half-close), or is gone: tonic tells handlers of neither, a cancelled request just ends.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use http::{Request, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;

/// The calls for which it matters: their requests are a stream.
const SUBSCRIBE: &str = "/courtier.v1.Subscriber/Subscribe";

/// Among a request's extensions: whether its end was cut off.
#[derive(Clone, Debug, Default)]
pub struct Hangup(Arc<AtomicBool>);

impl Hangup {
    /// Whether the requests ended without a half-close. True at the latest when their stream has ended.
    pub fn happened(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Puts a [`Hangup`] among the extensions of a request that subscribes.
pub fn watch(mut request: Request<Body>) -> Request<Body> {
    // A body of HTTP/1 (gRPC-Web) does not know its own end.
    if request.uri().path() == SUBSCRIBE && request.version() == Version::HTTP_2 {
        let hangup = Hangup::default();
        request.extensions_mut().insert(hangup.clone());
        request = request.map(|inner| Body::new(Requests { inner, hangup }));
    }
    request
}

/// A request's body that notes how it ended.
struct Requests<B> {
    inner: B,
    hangup: Hangup,
}

impl<B: HttpBody + Unpin> HttpBody for Requests<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) && !self.inner.is_end_stream() {
            self.hangup.0.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
