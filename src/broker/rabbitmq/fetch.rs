//! Messages fetched one by one (`basic.get`), on a channel of their own: when it closes, what is not acked is back in its queue.

use async_trait::async_trait;
use lapin::{
    Channel,
    options::{BasicAckOptions, BasicGetOptions},
};
use tokio::time::{Duration, Instant, timeout, timeout_at};

use super::{
    convert, error,
    pool::{Place, Pool},
};
use crate::broker::{Delivery, Entity, Error, Tag, admin::Fetch};

const STEP_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct Fetching {
    queue: String,
    channel: Channel,
    /// Gives the channel's place on its connection back.
    place: Place,
}

impl Fetching {
    pub(super) async fn begin(pool: &Pool, queue: &str, deadline: Instant) -> Result<Self, Error> {
        let begin = async {
            // Not on the link for administration: its frames are too small for large headers.
            let place = pool.place(deadline).await?;
            let opening = async { error::open(place.connection().create_channel().await) };
            let channel = place.while_up(opening).await?;
            Ok(Self {
                queue: queue.to_owned(),
                channel,
                place,
            })
        };
        timeout_at(deadline, begin)
            .await
            .unwrap_or(Err(Error::TimedOut))
    }

    async fn step<T>(&self, work: impl Future<Output = lapin::Result<T>>) -> Result<T, Error> {
        let work = async {
            let done = work.await;
            done.map_err(|cause| error::classify(&cause, Entity::Queue, &self.queue))
        };
        timeout(STEP_TIMEOUT, self.place.while_up(work))
            .await
            .unwrap_or(Err(Error::TimedOut))
    }
}

#[async_trait]
impl Fetch for Fetching {
    async fn next(&mut self) -> Result<Option<Delivery>, Error> {
        let queue = self.queue.as_str().into();
        let getting = self.channel.basic_get(queue, BasicGetOptions::default());
        let got = self.step(getting).await?;
        Ok(got.map(|got| {
            let got = got.delivery;
            Delivery {
                tag: got.delivery_tag,
                queue: 0,
                exchange: got.exchange.to_string(),
                routing_key: got.routing_key.to_string(),
                redelivered: got.redelivered,
                message: convert::message(&got.properties, got.data),
            }
        }))
    }

    async fn ack(&mut self, tags: &[Tag]) -> Result<(), Error> {
        for tag in tags {
            let ack = self.channel.basic_ack(*tag, BasicAckOptions::default());
            self.step(ack).await?;
        }
        Ok(())
    }

    async fn close(self: Box<Self>) {
        let _ = timeout(STEP_TIMEOUT, self.channel.close(200, "fetched".into())).await;
    }
}

/// A channel that is merely forgotten would keep what it fetched for as long as its connection lives.
impl Drop for Fetching {
    fn drop(&mut self) {
        if self.channel.status().connected()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let channel = self.channel.clone();
            runtime.spawn(async move {
                let _ = timeout(STEP_TIMEOUT, channel.close(200, "fetched".into())).await;
            });
        }
    }
}
