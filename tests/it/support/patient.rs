//! A connection that leaves deadlines to the server. tonic's own sends the deadline along too, and then gives up by itself when
//! it comes, so that nobody could tell whether the gateway keeps it.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use courtier::grpc::proto::{
    failed_messages_client::FailedMessagesClient, publisher_client::PublisherClient,
};
use futures::future::BoxFuture;
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, sync::Mutex};
use tonic::body::Body;
use tower::Service;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Connects when it is used, and again after it broke.
#[derive(Clone)]
pub struct Patient {
    address: String,
    connection: Arc<Mutex<Option<SendRequest<Body>>>>,
}

impl Patient {
    pub fn new(address: String) -> Self {
        Self {
            address,
            connection: Arc::default(),
        }
    }

    pub fn publisher(&self) -> PublisherClient<Self> {
        let origin = format!("http://{}", self.address);
        PublisherClient::with_origin(self.clone(), origin.parse().expect("a valid URL"))
    }

    pub fn failed_messages(&self) -> FailedMessagesClient<Self> {
        let origin = format!("http://{}", self.address);
        FailedMessagesClient::with_origin(self.clone(), origin.parse().expect("a valid URL"))
    }

    async fn connected(&self) -> Result<SendRequest<Body>, Error> {
        let mut connection = self.connection.lock().await;
        if let Some(open) = connection.as_ref().filter(|open| !open.is_closed()) {
            return Ok(open.clone());
        }
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        let (open, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(driver);
        Ok(connection.insert(open).clone())
    }
}

impl Service<http::Request<Body>> for Patient {
    type Response = http::Response<Incoming>;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Self::Response, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(this.connected().await?.send_request(request).await?) })
    }
}
