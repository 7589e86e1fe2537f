//! What bombs are thrown with: sockets of another address than the neighbour's, and HTTP/2 with whatever body.

use std::{io::Write, time::Duration};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::raw::framed;

/// Another machine than the neighbour's: limits by address are the attacker's own.
const FROM: &str = "127.0.0.2:0";
/// How long the gateway may take to say no. Generous: a bomb keeps it busy.
const DEADLINE: Duration = Duration::from_secs(60);

pub async fn socket(address: &str) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(FROM.parse().expect("an address"))?;
    socket.connect(address.parse().expect("an address")).await
}

/// A connection that speaks HTTP/2.
pub struct Attacker {
    address: String,
    client: SendRequest<Bytes>,
}

/// A call under way. Dropping it resets it.
pub struct Call {
    response: h2::client::ResponseFuture,
    pub body: h2::SendStream<Bytes>,
}

impl Attacker {
    pub async fn connect(address: &str) -> Self {
        let socket = socket(address).await.expect("it listens");
        let (client, connection) = h2::client::handshake(socket).await.expect("HTTP/2");
        // Ends when the gateway ends it, or with the last handle.
        tokio::spawn(connection);
        Self {
            address: address.to_owned(),
            client: client.ready().await.expect("open"),
        }
    }

    /// Begins a call; `encoding` is that of its messages.
    pub async fn begin(&self, path: &str, encoding: &'static str) -> Call {
        let request = Request::post(format!("http://{}{path}", self.address))
            .header("content-type", "application/grpc")
            .header("grpc-encoding", encoding)
            .header("te", "trailers");
        let request = request.body(()).expect("well-formed");
        let mut client = self.client.clone().ready().await.expect("open");
        let (response, body) = client.send_request(request, false).expect("sent");
        Call { response, body }
    }

    /// Calls an rpc with this body, to its end; the gRPC status, if it said one.
    pub async fn call(&self, path: &str, encoding: &'static str, body: Bytes) -> Option<i32> {
        let mut call = self.begin(path, encoding).await;
        // The gateway may have answered already.
        let _ = call.body.send_data(body, true);
        let status = timeout(DEADLINE, call.status()).await;
        status.expect("the gateway answers in the end")
    }
}

impl Call {
    pub async fn status(self) -> Option<i32> {
        let response = self.response.await.ok()?;
        if let Some(status) = status(response.headers()) {
            return Some(status);
        }
        let mut body = response.into_body();
        while let Some(Ok(data)) = body.data().await {
            let _ = body.flow_control().release_capacity(data.len());
        }
        status(&body.trailers().await.ok()??)
    }
}

fn status(headers: &HeaderMap) -> Option<i32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// A gRPC message, compressed, in its frame.
pub fn zipped(message: &[u8]) -> Bytes {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(message).expect("in memory");
    let bytes = gzip.finish().expect("in memory");
    framed(1, u32::try_from(bytes.len()).expect("small"), &bytes)
}

/// A length-delimited field of protobuf.
pub fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    prost::encoding::encode_varint(content.len() as u64, &mut bytes);
    bytes.extend(content);
    bytes
}
