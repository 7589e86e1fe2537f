//! One publish on its way through the client library, and the channel that it travels on.

use std::time::Duration;

use futures::{FutureExt, future::BoxFuture};
use lapin::{
    Channel, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tracing::warn;
use uuid::Uuid;

use super::{
    channel, convert, error,
    inflight::InFlight,
    link::{State, Up},
    verdict::{Resolved, Verdicts},
};
use crate::{
    broker::{Publish, PublishReply, Refusal},
    message::header,
};

pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
const REOPEN_DELAY: Duration = Duration::from_millis(200);
/// How long a channel that the broker ended may take to end what is in flight on it.
const ENDING: Duration = Duration::from_secs(1);

/// A publish in flight. Its caller may have had its answer already (the deadline came); the entry then only keeps count.
pub(super) struct Entry {
    pub(super) reply: Option<PublishReply>,
    pub(super) deadline: Instant,
    pub(super) publish_id: Uuid,
    /// Counts the publishes of the channel.
    pub(super) number: u64,
}

/// How the client library ended one publish.
pub(super) enum Output {
    /// `None`: a return came attached that carries no publish-id, so it is not of this channel.
    Resolved(Option<Resolved>),
    Failed(Box<Failed>),
}

/// A publish that ended with its channel.
pub(super) struct Failed {
    pub(super) publish: Publish,
    /// Whether the broker may have it.
    pub(super) written: bool,
    pub(super) cause: lapin::Error,
}

/// The channel of the moment, and all that belongs to it.
pub(super) struct Open {
    pub(super) channel: Channel,
    pub(super) up: Up,
    pub(super) inflight: InFlight<Entry, Output>,
    pub(super) verdicts: Verdicts<Entry>,
    next_number: u64,
    /// Something happened that ends this channel's use.
    pub(super) broken: bool,
    /// What ended with the channel, once the broker refused one of them: nobody was told anything yet.
    pub(super) refused: Option<Refused>,
}

/// What the broker's refusal of one publish left behind.
pub(super) struct Refused {
    pub(super) why: Refusal,
    since: Instant,
    pub(super) failed: Vec<(Entry, Failed)>,
}

impl Open {
    pub(super) fn new(channel: Channel, up: Up) -> Self {
        Self {
            channel,
            up,
            inflight: InFlight::new(),
            verdicts: Verdicts::new(),
            next_number: 0,
            broken: false,
            refused: None,
        }
    }

    pub(super) fn fly(&mut self, publish: Publish, mut reply: PublishReply) {
        reply.handed_over();
        let entry = Entry {
            reply: Some(reply),
            deadline: publish.deadline,
            publish_id: publish.publish_id,
            number: self.next_number,
        };
        self.next_number += 1;
        let flight = fly(self.channel.clone(), publish).boxed();
        self.inflight.push(entry, flight);
    }

    /// Notes a publish that ended with the channel. Given back when there is nothing to wait for before it is answered.
    pub(super) fn fail(&mut self, entry: Entry, failed: Failed) -> Option<(Entry, Failed)> {
        self.broken = true;
        let why = error::refusal(&failed.cause);
        match (&mut self.refused, why) {
            (Some(refused), _) => refused.failed.push((entry, failed)),
            (None, Some(why)) => {
                let (since, failed) = (Instant::now(), vec![(entry, failed)]);
                self.refused = Some(Refused { why, since, failed });
            }
            (None, None) => return Some((entry, failed)),
        }
        None
    }

    /// Until when the client library may still end what is in flight on a channel that the broker ended.
    pub(super) fn ending(&self) -> Option<Instant> {
        let refused = self.refused.as_ref()?;
        (self.inflight.len() > 0).then(|| refused.since + ENDING)
    }
}

/// Publishes. The first poll queues the frames in the client library, so that the order of the pushes is the order on the wire.
async fn fly(channel: Channel, publish: Publish) -> Output {
    let id = publish.publish_id.hyphenated().to_string();
    let properties = convert::properties(&publish.message, (header::PUBLISH_ID, id));
    let options = BasicPublishOptions {
        mandatory: publish.mandatory,
        ..BasicPublishOptions::default()
    };
    let written = channel
        .basic_publish(
            publish.exchange.as_str().into(),
            publish.routing_key.as_str().into(),
            options,
            &publish.message.payload,
            properties,
        )
        .await;
    let failed = |written, cause| {
        Output::Failed(Box::new(Failed {
            publish,
            written,
            cause,
        }))
    };
    match written {
        Err(cause) => failed(false, cause),
        Ok(confirm) => match confirm.await {
            Ok(confirmation) => Output::Resolved(read(confirmation)),
            Err(cause) => failed(true, cause),
        },
    }
}

fn read(confirmation: Confirmation) -> Option<Resolved> {
    let positive = confirmation.is_ack();
    let carried = match confirmation.take_message() {
        None => None,
        Some(returned) => Some(publish_id(&returned.properties)?),
    };
    Some(Resolved { positive, carried })
}

fn publish_id(properties: &lapin::BasicProperties) -> Option<Uuid> {
    let headers = properties.headers().as_ref()?;
    match headers.inner().get(header::PUBLISH_ID)? {
        lapin::types::AMQPValue::LongString(text) => Uuid::try_parse_ascii(text.as_bytes()).ok(),
        _ => None,
    }
}

/// At most one attempt to open a channel, kept while other things happen.
#[derive(Default)]
pub(super) struct Opening(Option<Attempt>);

struct Attempt {
    generation: u64,
    channel: BoxFuture<'static, Option<Open>>,
}

impl Opening {
    /// Begins an attempt unless one is under way. One on a connection that is gone would only run into its timeout.
    pub(super) fn begin(&mut self, link: &watch::Receiver<State>) {
        let up = link.borrow().up().cloned();
        let generation = up.as_ref().map(Up::generation);
        if self.0.as_ref().map(|attempt| attempt.generation) != generation {
            self.0 = up.map(|up| Attempt {
                generation: up.generation(),
                channel: open(up).boxed(),
            });
        }
    }

    pub(super) async fn opened(&mut self) -> Option<Open> {
        match &mut self.0 {
            None => std::future::pending().await,
            Some(attempt) => {
                let opened = (&mut attempt.channel).await;
                self.0 = None;
                opened
            }
        }
    }
}

async fn open(up: Up) -> Option<Open> {
    let open = async {
        let channel = channel::open(&up).await?;
        let confirming = channel.confirm_select(ConfirmSelectOptions::default());
        error::open(confirming.await)?;
        Ok::<_, crate::broker::Error>(channel)
    };
    match timeout(OPEN_TIMEOUT, open).await {
        Ok(Ok(channel)) => return Some(Open::new(channel, up)),
        Ok(Err(error)) => warn!(%error, "cannot open a channel to publish on; retrying"),
        Err(_) => warn!("the broker does not open a channel to publish on; retrying"),
    }
    tokio::time::sleep(REOPEN_DELAY).await;
    None
}
