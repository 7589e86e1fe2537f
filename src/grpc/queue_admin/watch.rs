//! The streams: each ends when the client hangs up, and says so when the gateway stops.

use std::time::Duration;

use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use tokio::sync::{broadcast::error::RecvError, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use super::{
    convert::{write_alert, write_stats},
    status,
};
use crate::{
    broker,
    error::Failure,
    gateway::{
        Streams,
        alerts::Alerts,
        queue_admin::{Error, QueueAdmin},
    },
    grpc::{
        convert::duration,
        proto::{WatchAlertsResponse, WatchQueueStatsRequest, WatchQueueStatsResponse},
        status::invalid,
    },
};

const MAX_NAMES: usize = 100;
const DEFAULT_INTERVAL: Duration = Duration::from_secs(5);
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
const LONGEST_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// Queues that are looked at at a time.
const AT_A_TIME: usize = 16;

pub async fn queue_stats(
    queues: &QueueAdmin,
    streams: &Streams,
    request: WatchQueueStatsRequest,
) -> Result<Response<BoxStream<'static, Result<WatchQueueStatsResponse, Status>>>, Status> {
    if request.names.len() > MAX_NAMES {
        return Err(invalid("names", format!("must be at most {MAX_NAMES}")));
    }
    let interval = match request.interval.map(duration) {
        None | Some(Some(Duration::ZERO)) => DEFAULT_INTERVAL,
        Some(Some(asked)) if (SHORTEST_INTERVAL..=LONGEST_INTERVAL).contains(&asked) => asked,
        Some(_) => return Err(invalid("interval", "must be from 1 s to 1 h")),
    };
    let mut names = request.names;
    names.sort_unstable();
    names.dedup();
    let queues = queues.clone();
    // A queue that is missing now is an error; one that goes later is left out.
    let mut next = look(&queues, &names, true).await.map_err(status)?;
    let (sender, responses) = mpsc::channel(1);
    let stopping = streams.stopping.clone();
    streams.tasks.spawn(async move {
        loop {
            if sender.send(Ok(next)).await.is_err() {
                return;
            }
            let looking = async {
                queues.next_sample(interval).await;
                look(&queues, &names, false).await.map_err(status)
            };
            let looked = tokio::select! {
                () = sender.closed() => return,
                () = stopping.cancelled() => Err(Failure::stopping().into()),
                looked = looking => looked,
            };
            match looked {
                Ok(answer) => next = answer,
                Err(status) => {
                    let _ = sender.send(Err(status)).await;
                    return;
                }
            }
        }
    });
    Ok(Response::new(ReceiverStream::new(responses).boxed()))
}

/// How the named queues do, or all of them.
async fn look(
    queues: &QueueAdmin,
    names: &[String],
    all_must_be: bool,
) -> Result<WatchQueueStatsResponse, Error> {
    if names.is_empty() {
        let all = queues.sample_all().await?;
        return Ok(WatchQueueStatsResponse {
            stats: all.found.iter().cloned().map(write_stats).collect(),
            note: all.note.clone(),
        });
    }
    let asked = stream::iter(names.to_vec()).map(|name| {
        let queues = queues.clone();
        async move {
            match queues.sample(&name).await {
                Err(Error::Broker(broker::Error::NotFound { .. })) if !all_must_be => Ok(None),
                answer => answer.map(Some),
            }
        }
    });
    let answers: Vec<_> = asked.buffered(AT_A_TIME).try_collect().await?;
    let answers: Vec<_> = answers.into_iter().flatten().collect();
    let mut notes = answers.iter().map(|one| &one.note);
    Ok(WatchQueueStatsResponse {
        note: notes
            .find(|note| !note.is_empty())
            .cloned()
            .unwrap_or_default(),
        stats: answers
            .iter()
            .map(|one| write_stats(one.found.clone()))
            .collect(),
    })
}

pub fn alerts(
    alerts: &Alerts,
    streams: &Streams,
) -> Response<BoxStream<'static, Result<WatchAlertsResponse, Status>>> {
    let (standing, mut changes) = alerts.watch();
    let alerts = alerts.clone();
    let (sender, responses) = mpsc::channel(1);
    let stopping = streams.stopping.clone();
    streams.tasks.spawn(async move {
        let mut next: Vec<_> = standing.iter().map(write_alert).collect();
        loop {
            let response = WatchAlertsResponse {
                alerts: std::mem::take(&mut next),
            };
            if !response.alerts.is_empty() && sender.send(Ok(response)).await.is_err() {
                return;
            }
            let change = tokio::select! {
                () = sender.closed() => return,
                () = stopping.cancelled() => {
                    let _ = sender.send(Err(Failure::stopping().into())).await;
                    return;
                }
                change = changes.recv() => change,
            };
            match change {
                Ok(alert) => next.push(write_alert(&alert)),
                // A client that reads too slowly is told what stands.
                Err(RecvError::Lagged(_)) => next.extend(alerts.list().iter().map(write_alert)),
                Err(RecvError::Closed) => return,
            }
        }
    });
    Response::new(ReceiverStream::new(responses).boxed())
}
