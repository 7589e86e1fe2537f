//! Futures in flight, and which of them became ready, with one property that general-purpose sets do not promise:
//! after [`InFlight::drain`] returns, everything that was woken before any of the outputs became visible has been polled.
//! What follows from that for publisher confirms is in [`super::verdict`].

use std::{
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker},
};

use futures::{future::BoxFuture, task::AtomicWaker};

/// A set of futures, each with an entry of its own that comes back with the output.
pub(super) struct InFlight<E, O> {
    slots: Vec<Slot<E, O>>,
    free: Vec<usize>,
    woken: Arc<Woken>,
    /// Outputs of futures that were ready when they were pushed.
    early: Vec<(E, O)>,
}

struct Slot<E, O> {
    waker: Waker,
    flight: Option<(E, BoxFuture<'static, O>)>,
}

/// The slots that were woken since the last look, in order.
#[derive(Default)]
struct Woken {
    slots: Mutex<Vec<usize>>,
    task: AtomicWaker,
}

struct SlotWaker {
    slot: usize,
    woken: Arc<Woken>,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut slots = self.woken.lock();
        let first = slots.is_empty();
        slots.push(self.slot);
        drop(slots);
        if first {
            self.woken.task.wake();
        }
    }
}

impl Woken {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<usize>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E, O> InFlight<E, O> {
    pub(super) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            woken: Arc::default(),
            early: Vec::new(),
        }
    }

    /// How many are in flight.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len() + self.early.len()
    }

    /// Polls the future once, at once: its first steps are taken in the order of the pushes.
    pub(super) fn push(&mut self, entry: E, mut future: BoxFuture<'static, O>) {
        let slot = self.free.pop().unwrap_or_else(|| {
            let slot = self.slots.len();
            let woken = self.woken.clone();
            self.slots.push(Slot {
                waker: Arc::new(SlotWaker { slot, woken }).into(),
                flight: None,
            });
            slot
        });
        let target = &mut self.slots[slot];
        match future
            .as_mut()
            .poll(&mut Context::from_waker(&target.waker))
        {
            Poll::Pending => target.flight = Some((entry, future)),
            Poll::Ready(output) => {
                self.free.push(slot);
                self.early.push((entry, output));
                self.woken.task.wake();
            }
        }
    }

    /// Waits until at least one future is ready, then takes all that are. Waits for ever when none is in flight.
    /// Loses nothing when it is dropped.
    pub(super) async fn drain(&mut self, ready: &mut Vec<(E, O)>) {
        std::future::poll_fn(|context| {
            self.woken.task.register(context.waker());
            self.take_ready(ready);
            if ready.is_empty() {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
    }

    fn take_ready(&mut self, ready: &mut Vec<(E, O)>) {
        ready.append(&mut self.early);
        loop {
            let woken = std::mem::take(&mut *self.woken.lock());
            if woken.is_empty() {
                return;
            }
            for index in woken {
                let slot = &mut self.slots[index];
                // A wake-up may come late, for a flight that ended; the slot is then empty, or polled once too often.
                let Some((_, future)) = &mut slot.flight else {
                    continue;
                };
                let polled = future.as_mut().poll(&mut Context::from_waker(&slot.waker));
                if let Poll::Ready(output) = polled
                    && let Some((entry, _)) = slot.flight.take()
                {
                    self.free.push(index);
                    ready.push((entry, output));
                }
            }
        }
    }

    /// The entries in flight.
    pub(super) fn entries_mut(&mut self) -> impl Iterator<Item = &mut E> {
        let early = self.early.iter_mut().map(|(entry, _)| entry);
        let slots = self
            .slots
            .iter_mut()
            .filter_map(|slot| slot.flight.as_mut());
        early.chain(slots.map(|(entry, _)| entry))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn all_that_is_ready_comes_in_the_order_of_the_wake_ups() {
        let mut set = InFlight::new();
        let mut senders = Vec::new();
        for entry in 0..5 {
            let (sender, receiver) = oneshot::channel::<u32>();
            set.push(entry, receiver.boxed());
            senders.push(sender);
        }
        let last = senders.pop();
        for (value, sender) in senders.into_iter().enumerate().rev() {
            sender
                .send(u32::try_from(value).expect("small"))
                .expect("awaited");
        }
        let mut ready = Vec::new();
        set.drain(&mut ready).await;
        let entries: Vec<_> = ready.iter().map(|(entry, _)| *entry).collect();
        assert_eq!(entries, [3, 2, 1, 0]);
        assert_eq!(set.len(), 1);
        drop(last);
        ready.clear();
        set.drain(&mut ready).await;
        assert!(matches!(ready[..], [(4, Err(_))]));
        assert_eq!(set.len(), 0);
    }

    #[tokio::test]
    async fn a_future_that_is_ready_at_once_is_not_forgotten() {
        let mut set = InFlight::new();
        set.push("a", std::future::ready(1).boxed());
        let mut ready = Vec::new();
        set.drain(&mut ready).await;
        assert_eq!(ready, [("a", 1)]);
    }

    #[tokio::test]
    async fn slots_are_used_again() {
        let mut set = InFlight::new();
        for round in 0..100 {
            let (sender, receiver) = oneshot::channel::<u32>();
            set.push(round, receiver.boxed());
            sender.send(round).expect("awaited");
            let mut ready = Vec::new();
            set.drain(&mut ready).await;
            assert_eq!(ready, [(round, Ok(round))]);
        }
        assert_eq!(set.slots.len(), 1);
    }
}
