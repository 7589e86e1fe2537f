//! Courtier: the release build as a process of its own, and its clients.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use courtier::grpc::proto::{
    Message, Outcome, PublishBatchRequest, PublishRequest, PublishStreamRequest, Settle, Start,
    SubscribeRequest, SubscribeResponse, message::Payload, publisher_client::PublisherClient,
    subscribe_request::Request, subscribe_response::Response, subscriber_client::SubscriberClient,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use crate::{AuditLog, PAYLOAD, QUEUE, Result, direct::PREFETCH};

pub struct Gateway {
    process: Child,
    url: String,
    /// Its database, as long as it runs.
    _data: tempfile::TempDir,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Gateway {
    /// On RabbitMQ, or on its embedded broker with the queue declared.
    pub async fn start(amqp_url: Option<&str>, audit_log: AuditLog) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(env!("CARGO_BIN_EXE_courtier"));
        command
            .args([
                "serve",
                "--app-port",
                &port.to_string(),
                "--rust-log",
                "warn",
            ])
            .stderr(Stdio::piped());
        let data = tempfile::TempDir::new()?;
        command.env("DATA_DIR", data.path());
        command.env("AUDIT_LOG", audit_log.to_string());
        let topology = std::env::temp_dir().join(format!("courtier-bench-{port}.toml"));
        match amqp_url {
            Some(url) => command.env("RABBITMQ_URL", url),
            None => {
                let queue = format!("[[queues]]\nname = \"{QUEUE}\"\nmax_length = 0\n");
                fs::write(&topology, queue)?;
                command.arg("--topology-file").arg(&topology)
            }
        };
        let mut process = command.spawn()?;
        if let Some(stderr) = process.stderr.take() {
            std::thread::spawn(move || BufReader::new(stderr).lines().for_each(drop));
        }
        let gateway = Self {
            process,
            url: format!("http://127.0.0.1:{port}"),
            _data: data,
        };
        let end = Instant::now() + Duration::from_secs(20);
        while gateway.publish_unary(1, 1).await.is_err() {
            if Instant::now() > end {
                return Err("the gateway does not publish".into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let _ = fs::remove_file(topology);
        Ok(gateway)
    }

    /// CPU time so far, user and system.
    pub fn cpu(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // The fields after the name, which may hold anything but ends with the last parenthesis; utime and stime are the
        // 14th and 15th, in ticks of 10 ms (proc(5)).
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map_or("", |(_, rest)| rest)
            .split_whitespace()
            .collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kibibytes = line.and_then(|line| line.split_whitespace().nth(1));
        Ok(kibibytes.ok_or("no VmRSS")?.parse::<u64>()? * 1_024)
    }

    async fn channel(&self) -> Result<Channel> {
        Ok(Channel::from_shared(self.url.clone())?
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .tcp_nodelay(true)
            .connect()
            .await?)
    }

    async fn publisher(&self) -> Result<PublisherClient<Channel>> {
        Ok(PublisherClient::new(self.channel().await?))
    }

    pub async fn publish_stream(&self, count: usize, window: usize) -> Result<()> {
        let (sender, requests) = mpsc::channel(window);
        let slots = std::sync::Arc::new(tokio::sync::Semaphore::new(window));
        let mut client = self.publisher().await?;
        let free = slots.clone();
        let sending = tokio::spawn(async move {
            for sequence in 0..count as u64 {
                free.acquire().await?.forget();
                let publish = Some(request());
                sender
                    .send(PublishStreamRequest { sequence, publish })
                    .await?;
            }
            Result::Ok(())
        });
        let mut responses = client
            .publish_stream(ReceiverStream::new(requests))
            .await?
            .into_inner();
        let mut answered = 0;
        while let Some(response) = responses.message().await? {
            for result in &response.results {
                check(result.outcome())?;
            }
            answered += response.results.len();
            slots.add_permits(response.results.len());
        }
        sending.await??;
        if answered == count {
            Ok(())
        } else {
            Err(format!("{answered} of {count} answered").into())
        }
    }

    pub async fn publish_batches(&self, count: usize, size: usize, at_a_time: usize) -> Result<()> {
        let client = self.publisher().await?;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..at_a_time {
            let mut client = client.clone();
            tasks.spawn(async move {
                for _ in 0..count / size / at_a_time {
                    let messages = (0..size).map(|_| request()).collect();
                    let response = client
                        .publish_batch(PublishBatchRequest { messages })
                        .await?;
                    for result in &response.get_ref().results {
                        check(result.outcome())?;
                    }
                }
                Result::Ok(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok(())
    }

    pub async fn publish_unary(&self, count: usize, at_a_time: usize) -> Result<()> {
        let client = self.publisher().await?;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..at_a_time {
            let mut client = client.clone();
            tasks.spawn(async move {
                for _ in 0..count / at_a_time {
                    check(client.publish(request()).await?.get_ref().outcome())?;
                }
                Result::Ok(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok(())
    }

    pub async fn one_at_a_time(&self, count: usize) -> Result<Vec<Duration>> {
        let mut client = self.publisher().await?;
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let start = Instant::now();
            check(client.publish(request()).await?.get_ref().outcome())?;
            times.push(start.elapsed());
        }
        Ok(times)
    }

    pub async fn connect_publish_close(&self) -> Result<()> {
        let mut client = self.publisher().await?;
        check(client.publish(request()).await?.get_ref().outcome())
    }

    async fn start_subscription(
        &self,
        client: &mut SubscriberClient<Channel>,
        max_messages: u64,
    ) -> Result<(mpsc::Sender<SubscribeRequest>, Streaming<SubscribeResponse>)> {
        let (sender, requests) = mpsc::channel(64);
        let start = Start {
            queues: vec![QUEUE.to_owned()],
            max_outstanding: PREFETCH.into(),
            max_messages,
            ..Start::default()
        };
        sender.send(say(Request::Start(start))).await?;
        let responses = client.subscribe(ReceiverStream::new(requests)).await?;
        Ok((sender, responses.into_inner()))
    }

    pub async fn subscribe(&self, count: usize, ack_every: usize) -> Result<()> {
        let mut client = SubscriberClient::new(self.channel().await?);
        let (sender, mut responses) = self.start_subscription(&mut client, count as u64).await?;
        let mut ack_ids = Vec::new();
        let mut received = 0;
        while let Some(response) = responses.message().await? {
            let Some(Response::Deliveries(deliveries)) = response.response else {
                continue;
            };
            for delivery in deliveries.deliveries {
                ack_ids.push(delivery.ack_id);
                received += 1;
                if ack_ids.len() >= ack_every || received == count {
                    let settle = Settle {
                        ack_ids: std::mem::take(&mut ack_ids),
                        nacks: Vec::new(),
                    };
                    sender.send(say(Request::Settle(settle))).await?;
                }
            }
        }
        if received == count {
            Ok(())
        } else {
            Err(format!("{received} of {count} delivered").into())
        }
    }

    /// Subscriptions that wait for messages; over several connections, as clients would.
    pub async fn idle_subscriptions(&self, count: usize) -> Result<Vec<impl Sized + use<>>> {
        let mut open = Vec::new();
        while open.len() < count {
            let mut client = SubscriberClient::new(self.channel().await?);
            for _ in 0..100.min(count - open.len()) {
                let (sender, mut responses) = self.start_subscription(&mut client, 0).await?;
                responses.message().await?;
                open.push((sender, responses, client.clone()));
            }
        }
        Ok(open)
    }
}

fn say(request: Request) -> SubscribeRequest {
    SubscribeRequest {
        request: Some(request),
    }
}

fn request() -> PublishRequest {
    PublishRequest {
        exchange: String::new(),
        routing_key: QUEUE.to_owned(),
        message: Some(Message {
            payload: Some(Payload::Data(Bytes::from_static(&[b'x'; PAYLOAD]))),
            ..Message::default()
        }),
        allow_unroutable: false,
    }
}

fn check(outcome: Outcome) -> Result<()> {
    match outcome {
        Outcome::Confirmed => Ok(()),
        other => Err(format!("not confirmed: {}", other.as_str_name()).into()),
    }
}
