//! Questions that many ask at once are asked once.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};

/// Names that are remembered after nobody waits for an answer any more.
const FORGET: usize = 1_000;

/// Who asks while a question of the same name waits for the one before it shares its answer. Nobody is given the answer to a
/// question that was sent before he asked: what he has done until then is in it. So of any number that ask at once, one asks at
/// once, and one for all others when that is answered.
pub struct Coalesced<K, V> {
    questions: Arc<Mutex<HashMap<K, Questions<V>>>>,
}

type Question<V> = Shared<BoxFuture<'static, V>>;
type Weak<V> = WeakShared<BoxFuture<'static, V>>;

/// Of one name. They are kept by those who wait for them.
struct Questions<V> {
    sent: Option<Weak<V>>,
    waiting: Option<Weak<V>>,
}

impl<K, V> Clone for Coalesced<K, V> {
    fn clone(&self) -> Self {
        Self {
            questions: self.questions.clone(),
        }
    }
}

impl<K, V> Default for Coalesced<K, V> {
    fn default() -> Self {
        Self {
            questions: Arc::default(),
        }
    }
}

impl<K, V> Coalesced<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The answer to a question of this name that is sent from now on. It is begun, and goes on, while somebody waits.
    pub async fn ask(&self, name: K, question: impl Future<Output = V> + Send + 'static) -> V {
        self.join(name, question).await
    }

    fn join(&self, name: K, question: impl Future<Output = V> + Send + 'static) -> Question<V> {
        let mut all = self.lock();
        if all.len() >= FORGET {
            all.retain(|_, of_name| of_name.is_asked());
        }
        let of_name = all.entry(name.clone()).or_insert(Questions {
            sent: None,
            waiting: None,
        });
        if let Some(waiting) = alive(&of_name.waiting) {
            return waiting;
        }
        let (before, this) = (alive(&of_name.sent), self.clone());
        let question = async move {
            if let Some(before) = before {
                before.await;
            }
            this.sending(&name);
            question.await
        };
        let question = question.boxed().shared();
        of_name.waiting = question.downgrade();
        question
    }

    /// From now on, who asks is to have another one.
    fn sending(&self, name: &K) {
        if let Some(of_name) = self.lock().get_mut(name) {
            of_name.sent = of_name.waiting.take();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Questions<V>>> {
        self.questions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl<V> Questions<V> {
    fn is_asked(&self) -> bool {
        alive(&self.sent).is_some() || alive(&self.waiting).is_some()
    }
}

fn alive<V>(question: &Option<Weak<V>>) -> Option<Question<V>> {
    question.as_ref()?.upgrade()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use futures::future::join_all;
    use tokio::sync::{Semaphore, oneshot};

    use super::*;

    #[tokio::test]
    async fn a_thousand_at_once_are_asked_as_two_and_names_do_not_wait_for_each_other() {
        let (all, sent, gate) = (
            Coalesced::default(),
            Arc::new(AtomicUsize::new(0)),
            Arc::new(Semaphore::new(0)),
        );
        let ask = |name: &'static str| {
            let (sent, gate) = (sent.clone(), gate.clone());
            all.ask(name, async move {
                let number = sent.fetch_add(1, SeqCst);
                let _ = gate.acquire().await;
                number
            })
        };
        let mut asking = Box::pin(join_all((0..1_000).map(|_| ask("q"))));
        assert!((&mut asking).now_or_never().is_none());
        assert_eq!(sent.load(SeqCst), 1, "the others wait");
        let mut other = Box::pin(ask("other"));
        assert!((&mut other).now_or_never().is_none());
        assert_eq!(sent.load(SeqCst), 2);
        gate.add_permits(1_000);
        let answers = asking.await;
        assert_eq!(answers.iter().filter(|answer| **answer == 0).count(), 1);
        assert_eq!(sent.load(SeqCst), 3);
        other.await;
        assert_eq!(ask("q").await, 3, "an answer is not kept");
    }

    #[tokio::test]
    async fn a_question_that_nobody_waits_for_any_more_holds_nobody_up() {
        let all = Coalesced::default();
        let (_never, forever) = oneshot::channel::<()>();
        let stuck = async move {
            let _ = forever.await;
            1
        };
        let mut asking = Box::pin(all.ask("q", stuck));
        assert!((&mut asking).now_or_never().is_none());
        drop(asking);
        assert_eq!(all.ask("q", async { 2 }).now_or_never(), Some(2));
    }
}
