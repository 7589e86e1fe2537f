//! What comes in, before it is decoded: sizes, compression and numbers of elements are bounded here, for all rpcs of all services.
//!
//! A small request must not become a large one. Three things could make it grow, and each has its bound:
//! - gzip: a message may expand to [at most](expand) 100 times its size (256 KiB are always allowed), and to the limit of its rpc;
//! - protobuf: [elements](shape) are counted on the wire, because a struct of hundreds of bytes can be two bytes there;
//! - a message that is over the limit is not kept: it is refused by the size that it announces, or read and forgotten.
//!
//! It sits inside of gRPC-Web, so that both protocols come as frames, and before tonic, whose decoder has neither bound and
//! calls a message that is too large OUT_OF_RANGE, and the stream over.

mod expand;
mod frames;
mod rules;
mod sequence;
mod shape;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use http::Request;
use tonic::{body::Body, server::NamedService};
use tower::Service;

pub(super) use self::rules::MAX_OTHER;
use self::{frames::Requests, rules::Rules, shape::Shapes};
use super::DESCRIPTORS;
use crate::{
    budget::intake::Intake,
    gateway::{Limits, validate::Invalid},
};

/// Bytes of the header of a message's frame: a flag, and the message's length.
pub(super) const HEADER: usize = 5;
/// A message over the limit is read and forgotten where the stream goes on after it; one over this ends the stream.
const MAX_SKIPPED: usize = 64 * 1024 * 1024;

/// Wraps services.
#[derive(Clone)]
pub(super) struct Incoming {
    /// By the rpc's path.
    rules: Arc<HashMap<String, Rules>>,
    intake: Arc<Intake>,
}

impl Incoming {
    /// What messages become counts against `intake`.
    pub(super) fn new(limits: &Limits, intake: Arc<Intake>) -> Self {
        let shapes = Arc::new(Shapes::read(&[
            DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ]));
        let rules = shapes.requests.iter().map(|(path, request)| {
            let rules = Rules::of(path, *request, &shapes, limits);
            (path.clone(), rules)
        });
        Self {
            rules: Arc::new(rules.collect()),
            intake,
        }
    }

    /// `inner`, its requests looked at first.
    pub(super) fn bounded<S>(&self, inner: S) -> Bounded<S> {
        Bounded {
            inner,
            incoming: self.clone(),
        }
    }
}

/// Among the extensions of a request: what was refused of its messages.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusals(Arc<Mutex<VecDeque<(u64, Invalid)>>>);

impl Refusals {
    /// Why the message of this number, from 0, was refused; `None`: it was not.
    pub(super) fn take(&self, index: u64) -> Option<Invalid> {
        let mut refusals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, invalid) = refusals.pop_front_if(|(refused, _)| *refused == index)?;
        Some(invalid)
    }

    /// Why the stream of messages ended.
    pub(super) fn last(&self) -> Option<Invalid> {
        let refusals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.back().map(|(_, invalid)| invalid.clone())
    }

    fn push(&self, index: u64, invalid: Invalid) {
        let mut refusals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.push_back((index, invalid));
    }
}

/// See [`Incoming::bounded`].
#[derive(Clone)]
pub(super) struct Bounded<S> {
    inner: S,
    incoming: Incoming,
}

impl<S: NamedService> NamedService for Bounded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: Service<Request<Body>>> Service<Request<Body>> for Bounded<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> S::Future {
        // Paths that are not there read nothing.
        if let Some(rules) = self.incoming.rules.get(request.uri().path()).cloned() {
            let refusals = Refusals::default();
            request.extensions_mut().insert(refusals.clone());
            let encoding = request.headers().get("grpc-encoding");
            let gzip = encoding.is_some_and(|encoding| encoding == "gzip");
            let reader = self.incoming.intake.reader();
            request =
                request.map(|body| Body::new(Requests::new(body, rules, gzip, refusals, reader)));
        }
        self.inner.call(request)
    }
}

/// The header of an uncompressed message.
fn header(size: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    // Messages are smaller than their limit, which is read as 32 bits.
    header[1..].copy_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes());
    header
}
