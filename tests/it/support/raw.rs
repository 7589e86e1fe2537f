//! HTTP as a hostile or old client speaks it: what a generated client would never send.

use bytes::Bytes;
use http::{HeaderMap, Request};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::Status;

use crate::{front::timely, harness::Gateway};

/// How a raw call was answered. `grpc` is the status code of gRPC, if there was one.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pub http: u16,
    pub grpc: Option<i32>,
}

pub const PUBLISH: &str = "/courtier.v1.Publisher/Publish";
pub const SUBSCRIBE: &str = "/courtier.v1.Subscriber/Subscribe";

/// A gRPC message in its frame.
pub fn frame(message: &[u8]) -> Bytes {
    framed(
        0,
        u32::try_from(message.len()).expect("a small message"),
        message,
    )
}

/// A frame that may lie about its length.
pub fn framed(flag: u8, announced: u32, message: &[u8]) -> Bytes {
    let mut frame = vec![flag];
    frame.extend(announced.to_be_bytes());
    frame.extend(message);
    frame.into()
}

/// Calls an rpc with any headers and any body. `ends`: whether the client half-closes.
pub async fn call(
    gateway: &Gateway,
    path: &str,
    headers: &[(&'static str, &'static str)],
    body: Bytes,
    ends: bool,
) -> Answer {
    let socket = TcpStream::connect(&gateway.address)
        .await
        .expect("it listens");
    let (client, connection) = h2::client::handshake(socket).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let mut client = timely(client.ready()).await.expect("open");
    let mut request = Request::post(format!("http://{}{path}", gateway.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(()).expect("well-formed");
    let (response, mut sending) = client.send_request(request, false).expect("sent");
    // The gateway may have answered and closed its side already.
    let _ = sending.send_data(body, ends);
    let response = timely(response).await.expect("answered");
    let http = response.status().as_u16();
    let mut grpc = grpc_status(response.headers());
    if grpc.is_none() {
        let mut body = response.into_body();
        while let Some(Ok(data)) = timely(body.data()).await {
            let _ = body.flow_control().release_capacity(data.len());
        }
        let trailers = timely(body.trailers()).await;
        grpc = trailers
            .ok()
            .flatten()
            .and_then(|trailers| grpc_status(&trailers));
    }
    connection.abort();
    Answer { http, grpc }
}

/// What a call was told.
#[derive(Debug)]
pub struct Told {
    pub messages: Vec<Bytes>,
    pub status: Status,
}

/// Like [`call`], over a body of any size that the client half-closes or not, with the whole answer.
pub async fn told(
    address: &str,
    path: &str,
    headers: &[(&'static str, &'static str)],
    body: Bytes,
    ends: bool,
) -> Told {
    let socket = TcpStream::connect(address).await.expect("it listens");
    let (client, connection) = h2::client::handshake(socket).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let mut client = timely(client.ready()).await.expect("open");
    let mut request = Request::post(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(()).expect("well-formed");
    let (response, mut sending) = client.send_request(request, false).expect("sent");
    let _ = sending.send_data(body, ends);
    let response = timely(response).await.expect("answered");
    let mut status = Status::from_header_map(response.headers());
    let (mut body, mut data) = (response.into_body(), Vec::new());
    while let Some(Ok(piece)) = timely(body.data()).await {
        let _ = body.flow_control().release_capacity(piece.len());
        data.extend(piece);
    }
    if status.is_none() {
        let trailers = timely(body.trailers()).await.expect("an orderly end");
        status = Status::from_header_map(&trailers.expect("trailers"));
    }
    connection.abort();
    let (mut data, mut messages) = (Bytes::from(data), Vec::new());
    while !data.is_empty() {
        let head = data.split_to(5);
        let size = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        messages.push(data.split_to(size.try_into().expect("small")));
    }
    Told {
        messages,
        status: status.expect("a status"),
    }
}

/// The frame of a message, compressed.
pub fn zipped(message: &[u8]) -> Bytes {
    use std::io::Write;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(message).expect("in memory");
    let zipped = gzip.finish().expect("in memory");
    framed(1, zipped.len().try_into().expect("small"), &zipped)
}

fn grpc_status(headers: &HeaderMap) -> Option<i32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// The whole answer to a request over HTTP/1.1.
pub async fn http1(
    gateway: &Gateway,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> Http1 {
    http1_at(&gateway.address, method, path, headers, body).await
}

/// The same, at this address.
pub async fn http1_at(
    address: &str,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> Http1 {
    let mut socket = TcpStream::connect(address).await.expect("it listens");
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
    );
    socket.write_all(head.as_bytes()).await.expect("sent");
    socket.write_all(body).await.expect("sent");
    let mut answer = Vec::new();
    timely(socket.read_to_end(&mut answer))
        .await
        .expect("answered");
    let at = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .expect("a head");
    let head = String::from_utf8_lossy(&answer[..at]).to_lowercase();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Http1 {
        status: status.expect("a status line"),
        head,
        body: answer[at + 4..].to_vec(),
    }
}

pub struct Http1 {
    pub status: u16,
    /// Status line and headers, in lower case.
    pub head: String,
    /// As it came, chunks and all.
    pub body: Vec<u8>,
}

impl Http1 {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}
