//! Whether the links do their work, and not only stand: each is asked, again and again, for something whose answer is known.
//!
//! A connection can stand and be of no use: the client library or the broker may answer nonsense, or nothing, on every fresh channel.
//! Nothing else would notice, since each caller is told a reason that sounds like its own fault.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    channel,
    lane::Lane,
    link::{Link, Role, State, Up},
};
use crate::broker::{Error, LinkState, Links};

const INTERVAL: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(10);
/// One failure may be the broker's bad moment.
const FAILING_FROM: u32 = 2;
/// Every AMQP broker has it, and looking at it needs no permission.
const KNOWN_EXCHANGE: &str = "amq.direct";

/// A link that is asked.
pub(super) struct Watched {
    role: Role,
    link: Link,
    /// Only of a link that publishes: its lanes.
    lanes: Option<Arc<[Lane]>>,
    failures: u32,
}

impl Watched {
    pub(super) fn new(role: Role, link: Link, lanes: Option<Arc<[Lane]>>) -> Self {
        let failures = 0;
        Self {
            role,
            link,
            lanes,
            failures,
        }
    }

    async fn look(&mut self) {
        // What is down says so, and nothing is answered while the broker blocks.
        let Some(up) = self.link.up().filter(|up| !up.blocked) else {
            self.failures = 0;
            return;
        };
        let problem = match timeout(TIMEOUT, ask(up.clone())).await {
            Ok(Ok(())) => self.no_lane(),
            Ok(Err(error)) => {
                // A fresh connection mends what the old one got wrong. One that does not answer is ended by its heartbeat.
                up.renew();
                Some(error.to_string())
            }
            Err(_) => Some(format!("no answer within {TIMEOUT:?}")),
        };
        let blocked = self.link.up().is_none_or(|up| up.blocked);
        let (link, was) = (self.role, self.failures);
        self.failures = match problem {
            Some(problem) if !blocked => {
                warn!(%link, problem, "the connection to the broker stands, but does not do its work");
                was + 1
            }
            _ => 0,
        };
        if self.failures == FAILING_FROM {
            error!(%link, "the link to the broker fails: not ready until it works again");
        } else if was >= FAILING_FROM && self.failures == 0 {
            info!(%link, "the link to the broker works again");
        }
    }

    fn no_lane(&self) -> Option<String> {
        let lanes = self.lanes.as_ref()?;
        let none = !lanes.iter().any(Lane::is_open);
        none.then(|| "no channel to publish on can be opened".to_owned())
    }
}

async fn ask(up: Up) -> Result<(), Error> {
    channel::to_the_end(async move {
        let asking = async {
            let channel = channel::open(&up).await?;
            channel::see_exchange(&channel, KNOWN_EXCHANGE).await?;
            let _ = channel.close(200, "seen".into()).await;
            Ok(())
        };
        up.while_up(asking).await
    })
    .await
}

/// Asks for ever. `failing` says of publishing and of consuming whether they fail.
pub(super) async fn run(
    mut publishing: Vec<Watched>,
    mut consuming: Vec<Watched>,
    failing: watch::Sender<Failing>,
    stop: CancellationToken,
) {
    loop {
        let rest = tokio::time::sleep(INTERVAL);
        tokio::select! {
            () = rest => {}
            () = stop.cancelled() => return,
        }
        let looks = publishing.iter_mut().chain(&mut consuming);
        futures::future::join_all(looks.map(Watched::look)).await;
        let fails = |links: &[Watched]| links.iter().any(|link| link.failures >= FAILING_FROM);
        let now = Failing {
            publish: fails(&publishing),
            consume: fails(&consuming),
        };
        failing.send_if_modified(|failing| std::mem::replace(failing, now) != now);
    }
}

/// Which links stand and do not do their work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Failing {
    publish: bool,
    consume: bool,
}

/// Sums up what is known of the links, at each change.
pub(super) fn sum(
    publish: &Link,
    consume: &Link,
    mut failing: watch::Receiver<Failing>,
) -> (watch::Receiver<Links>, impl Future<Output = ()> + use<>) {
    let (mut publish, mut consume) = (publish.watch(), consume.watch());
    let (sender, receiver) = watch::channel(links(&publish, &consume, &failing));
    let following = async move {
        let (mut publish_open, mut consume_open, mut failing_open) = (true, true, true);
        while publish_open || consume_open {
            tokio::select! {
                changed = publish.changed(), if publish_open => publish_open = changed.is_ok(),
                changed = consume.changed(), if consume_open => consume_open = changed.is_ok(),
                changed = failing.changed(), if failing_open => failing_open = changed.is_ok(),
            }
            let now = links(&publish, &consume, &failing);
            sender.send_if_modified(|links| std::mem::replace(links, now) != now);
        }
    };
    (receiver, following)
}

fn links(
    publish: &watch::Receiver<State>,
    consume: &watch::Receiver<State>,
    failing: &watch::Receiver<Failing>,
) -> Links {
    let failing = *failing.borrow();
    let state = |link: &watch::Receiver<State>, fails| match &*link.borrow() {
        State::Down => LinkState::Down,
        State::Up(up) if up.blocked => LinkState::Blocked,
        State::Up(_) if fails => LinkState::Failing,
        State::Up(_) => LinkState::Up,
    };
    Links {
        publish: state(publish, failing.publish),
        consume: state(consume, failing.consume),
    }
}
