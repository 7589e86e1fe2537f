//! What has come of requests that are not complete yet.
//!
//! Who is large yields to who is small: messages above [`LARGE`] leave a quarter of the share to the others. And who takes long yields to
//! who comes anew: when the share is full, the one that has held its part longest is cut, if it had [`PATIENCE`]; so a
//! client that sends its last byte never, or very slowly, does not keep the share from all others.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::task::AtomicWaker;
use tokio::time::Instant;

/// What is larger than this has no claim to the last quarter.
pub const LARGE: usize = 64 * 1024;
/// How long one may hold its part before another's need goes before.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many of the oldest are looked at for one to cut.
const LOOKED_AT: usize = 64;

/// Why the rest of a request is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Interrupted {
    /// The memory for requests that are being read is used up.
    #[error("too many requests are being read at once; the rest of this one is not")]
    Full,
    /// Nothing more of it came for so long.
    #[error("the rest of the request did not come within {0:?}")]
    Idle(Duration),
}

impl Interrupted {
    /// The one that made reading a request fail, if one did.
    pub fn find(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        let chain = std::iter::successors(Some(error), |error| error.source());
        chain
            .filter_map(|error| error.downcast_ref())
            .copied()
            .next()
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Intake {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: usize,
    last: u64,
    /// In the order in which they began to hold something.
    readers: BTreeMap<u64, Held>,
}

#[derive(Debug)]
struct Held {
    bytes: usize,
    since: Instant,
    cut: Arc<Cut>,
}

#[derive(Debug, Default)]
struct Cut {
    asked: AtomicBool,
    waker: AtomicWaker,
}

/// There is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Who reads a request. What it holds is free again when it is dropped.
#[derive(Debug)]
pub struct Reader {
    intake: Arc<Intake>,
    /// Set while it holds something.
    id: Option<u64>,
    bytes: usize,
    cut: Arc<Cut>,
}

impl Intake {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            state: Mutex::default(),
        }
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes that are held now.
    pub fn held(&self) -> usize {
        self.lock().held
    }

    pub fn reader(self: &Arc<Self>) -> Reader {
        Reader {
            intake: self.clone(),
            id: None,
            bytes: 0,
            cut: Arc::default(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader {
    /// It holds this much from now on.
    pub fn hold(&mut self, bytes: usize) -> Result<(), Full> {
        if bytes == self.bytes {
            return Ok(());
        }
        let limit = self.intake.limit;
        let mut state = self.intake.lock();
        let others = state.held - self.bytes;
        let limit = if bytes > LARGE { limit / 4 * 3 } else { limit };
        // One alone fits however large it is: its own limit is another.
        if bytes > self.bytes && others > 0 && others + bytes > limit {
            state.make_room(self.id);
            return Err(Full);
        }
        state.held = others + bytes;
        match self.id {
            Some(id) if bytes == 0 => {
                state.readers.remove(&id);
                self.id = None;
            }
            Some(id) => {
                if let Some(held) = state.readers.get_mut(&id) {
                    held.bytes = bytes;
                }
            }
            None => {
                state.last += 1;
                self.id = Some(state.last);
                let held = Held {
                    bytes,
                    since: Instant::now(),
                    cut: self.cut.clone(),
                };
                let id = state.last;
                state.readers.insert(id, held);
            }
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Ready when it is to give up, for another's sake.
    pub fn poll_cut(&self, context: &mut Context<'_>) -> Poll<()> {
        self.cut.waker.register(context.waker());
        if self.cut.asked.load(Ordering::Acquire) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl State {
    /// Cuts the one that has held its part longest, if that is long.
    fn make_room(&self, asking: Option<u64>) {
        let now = Instant::now();
        let oldest = self.readers.iter().take(LOOKED_AT).find(|(id, held)| {
            Some(**id) != asking
                && now.duration_since(held.since) >= PATIENCE
                && !held.cut.asked.load(Ordering::Relaxed)
        });
        if let Some((_, held)) = oldest {
            held.cut.asked.store(true, Ordering::Release);
            held.cut.waker.wake();
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.hold(0);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    const MIB: usize = 1024 * 1024;

    fn is_cut(reader: &Reader) -> bool {
        reader
            .poll_cut(&mut Context::from_waker(Waker::noop()))
            .is_ready()
    }

    #[test]
    fn large_ones_leave_room_for_small_ones_and_all_is_given_back() {
        let intake = Arc::new(Intake::new(8 * MIB));
        let (mut large, mut other, mut small) = (intake.reader(), intake.reader(), intake.reader());
        assert_eq!(large.hold(5 * MIB), Ok(()));
        assert_eq!(other.hold(2 * MIB), Err(Full));
        assert_eq!(other.hold(MIB), Ok(()));
        assert_eq!(small.hold(LARGE), Ok(()));
        assert_eq!(large.hold(6 * MIB), Err(Full));
        assert_eq!(intake.held(), 6 * MIB + LARGE);
        drop((large, other));
        assert_eq!(small.hold(0), Ok(()));
        assert_eq!(intake.held(), 0);
    }

    #[test]
    fn one_alone_fits_however_large_it_is() {
        let intake = Arc::new(Intake::new(MIB));
        let mut reader = intake.reader();
        assert_eq!(reader.hold(16 * MIB), Ok(()));
        assert_eq!(intake.reader().hold(1), Err(Full));
    }

    #[tokio::test(start_paused = true)]
    async fn who_holds_its_part_for_long_yields_to_who_comes_anew() {
        let intake = Arc::new(Intake::new(MIB));
        let (mut slow, mut later) = (intake.reader(), intake.reader());
        assert_eq!(slow.hold(MIB / 2), Ok(()));
        tokio::time::advance(PATIENCE / 2).await;
        assert_eq!(later.hold(MIB / 4), Ok(()));
        let mut newcomer = intake.reader();
        assert_eq!(newcomer.hold(MIB / 2), Err(Full));
        assert!(!is_cut(&slow) && !is_cut(&later));
        tokio::time::advance(PATIENCE / 2).await;
        assert_eq!(newcomer.hold(MIB / 2), Err(Full));
        assert!(is_cut(&slow) && !is_cut(&later));
        drop(slow);
        assert_eq!(newcomer.hold(MIB / 2), Ok(()));
    }
}
