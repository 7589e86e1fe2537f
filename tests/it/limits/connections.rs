//! Connections without measure: whoever connects and stays silent, or connects again and again, shuts nobody else out.

use std::{net::SocketAddr, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use courtier::grpc::proto::alert::Kind;
use futures::{StreamExt, stream};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use crate::{
    front::{Front, On, text, timely, to_queue},
    harness::{Setup, eventually},
    office::Office,
    process::Process,
    rest,
};

/// What a connection of HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const LIVEZ: &[u8] = b"GET /livez HTTP/1.1\r\nHost: gateway\r\n\r\n";

async fn connect(address: &str) -> TcpStream {
    timely(TcpStream::connect(address))
        .await
        .expect("it listens")
}

/// From another loopback address than usual.
async fn connect_from(from: &str, to: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    let from: SocketAddr = from.parse().expect("an address");
    socket.bind(from).expect("a loopback address");
    let to = to.parse().expect("an address");
    timely(socket.connect(to)).await.expect("it listens")
}

/// Waits until the other side has closed it, with whatever it says before.
async fn is_closed(stream: &mut TcpStream) {
    let mut last_words = Vec::new();
    // A refusal with unread bytes is a reset.
    let _ = timely(stream.read_to_end(&mut last_words)).await;
}

/// What the answer to that ends with.
const LIVE: &[u8] = b"}";

/// Whether a request is answered. The connection stays open.
async fn is_served(stream: &mut TcpStream) -> bool {
    if stream.write_all(LIVEZ).await.is_err() {
        return false;
    }
    let mut answer = Vec::new();
    while !answer.ends_with(LIVE) {
        match timely(stream.read_u8()).await {
            Ok(byte) => answer.push(byte),
            Err(_) => return false,
        }
    }
    answer.starts_with(b"HTTP/1.1 200")
}

fn impatient(setup: &mut Setup) {
    setup.without_database();
    setup.config.http.first_request_timeout = Duration::from_millis(300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_begins_no_request_in_time_is_disconnected_and_who_did_is_not() {
    let front = On::Embedded.gateway_set_up(impatient).await;
    // The handshake of HTTP/2 alone counts: clients connect before they have anything to say.
    let early = connect(&front.address).await;
    let (early, connection) = timely(h2::client::handshake(early)).await.expect("HTTP/2");
    tokio::spawn(connection);
    let mut kept = connect(&front.address).await;
    assert!(is_served(&mut kept).await);
    let beginnings: [&[u8]; 4] = [b"", &PREFACE[..1], &PREFACE[..23], &LIVEZ[..30]];
    let mut silent = Vec::new();
    for beginning in beginnings.iter().cycle().take(100) {
        let mut stream = connect(&front.address).await;
        stream.write_all(beginning).await.expect("it reads");
        silent.push(stream);
    }
    for mut stream in silent {
        is_closed(&mut stream).await;
    }
    assert!(is_served(&mut kept).await);
    let mut early = timely(early.ready()).await.expect("it is still open");
    let url = format!("http://{}/livez", front.address);
    let request = http::Request::get(url).body(()).expect("well-formed");
    let (response, _) = early.send_request(request, true).expect("sent");
    let response = timely(response).await.expect("answered");
    assert_eq!(response.status(), 200);
    front.neighbours_are_unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_body_of_a_request_must_go_on_and_a_stream_may_rest() {
    let front = On::Embedded
        .gateway_set_up(|setup| {
            setup.without_database();
            setup.config.http.request_idle_timeout = Duration::from_millis(300);
        })
        .await;
    let queue = front.queue("work").await;
    let mut resting = front.subscribe(crate::front::from(&[&queue])).await;
    // gRPC: announced, begun, and left there; and before the first byte of the message.
    for (path, body) in [
        (crate::raw::PUBLISH, crate::raw::framed(0, 100, b"x")),
        (crate::raw::PUBLISH, bytes::Bytes::new()),
        (crate::raw::SUBSCRIBE, crate::raw::framed(0, 100, b"x")),
    ] {
        let answer = crate::raw::call(&front, path, &[], body, false).await;
        assert_eq!(
            answer.grpc,
            Some(tonic::Code::DeadlineExceeded.into()),
            "{path}"
        );
    }
    // Plain HTTP.
    for path in [rest::PUBLISH, rest::BATCH] {
        let never = stream::pending::<Result<Bytes, std::io::Error>>();
        let begun = stream::iter([Ok(Bytes::from_static(b"{"))]).chain(never);
        let answer = rest::post_json(&front, path, Body::from_stream(begun)).await;
        let not_sent = rest::refused(504, "DEADLINE_EXCEEDED", "NOT_SENT");
        assert_eq!(answer.refusal(), not_sent, "{path}");
    }
    front.fill(&queue, &["a"]).await;
    let delivery = resting.delivery().await;
    assert_eq!(crate::front::body(&delivery), "a");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_connections_are_refused_at_once_and_said_so() {
    let office = Office::set_up(On::Embedded, |setup| {
        let http = &mut setup.config.http;
        (http.max_connections, http.max_connections_per_address) = (8, Some(6));
        let alerts = &mut setup.config.alerts;
        (alerts.every, alerts.hold) = (Duration::from_millis(200), Duration::from_millis(300));
    })
    .await;
    // The test's own clients are connected already.
    let mut crowd: Vec<TcpStream> = Vec::new();
    let refused = loop {
        let mut stream = connect(&office.address).await;
        if !is_served(&mut stream).await {
            break crowd.len();
        }
        crowd.push(stream);
    };
    assert!((1..6).contains(&refused), "{refused} of 6");
    // Another address is served, up to the limit of all.
    let mut stranger = connect_from("127.0.0.2:0", &office.address).await;
    assert!(is_served(&mut stranger).await);
    let mut second = connect_from("127.0.0.3:0", &office.address).await;
    assert!(is_served(&mut second).await);
    let mut last = connect_from("127.0.0.4:0", &office.address).await;
    assert!(!is_served(&mut last).await);
    office.raised(Kind::ConnectionsRefused, "").await;
    let mut freed = crowd.pop().expect("one");
    let figures = exposition(&mut freed).await;
    for line in [
        "courtier_connections 8",
        "courtier_connections_refused_total{reason=\"address_limit\"} 1",
        "courtier_connections_refused_total{reason=\"limit\"} 1",
    ] {
        assert!(
            figures.lines().any(|found| found == line),
            "{line} in {figures}"
        );
    }
    drop((freed, crowd, second));
    eventually("there is room again", async || {
        is_served(&mut connect(&office.address).await).await
    })
    .await;
    assert!(is_served(&mut stranger).await);
    office.cleared(Kind::ConnectionsRefused, "").await;
}

async fn exposition(stream: &mut TcpStream) -> String {
    let request = b"GET /metrics HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.expect("it reads");
    let mut answer = String::new();
    timely(stream.read_to_string(&mut answer))
        .await
        .expect("text");
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_descriptors_are_raised_and_some_are_kept_back() {
    let dir = TempDir::new().expect("a folder");
    let gateway = Process::start_with_descriptors(dir.path(), &[], 64, 200).await;
    // More than the soft limit, and as many as there can be from here.
    let mut crowd = Vec::new();
    for _ in 0..300 {
        crowd.push(connect(&gateway.address()).await);
    }
    eventually("the surplus is refused", async || {
        gateway.log().contains("refused connections")
    })
    .await;
    assert!(
        gateway.log().contains("MAX_CONNECTIONS; raise it"),
        "it says so at the start"
    );
    let open = gateway.descriptors();
    assert!((75..200).contains(&open), "{open} of 200");
    // Others are served meanwhile.
    let mut stranger = connect_from("127.0.0.2:0", &gateway.address()).await;
    assert!(is_served(&mut stranger).await);
    assert!(!gateway.log().contains("cannot accept connections"));
    drop(crowd);
    eventually("the descriptors are free again", async || {
        gateway.descriptors() < 60
    })
    .await;
    assert!(gateway.readyz().await.starts_with("HTTP/1.1 200"));
}

/// Keeps the gateway's own client and its queue in view of what the tests above do to others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_connected_publishes_on_while_others_are_refused() {
    let front: Front = On::Embedded
        .gateway_set_up(|setup| {
            setup.without_database();
            setup.config.http.max_connections_per_address = Some(20);
        })
        .await;
    let queue = front.queue("work").await;
    let mut crowd = Vec::new();
    for i in 0..100 {
        crowd.push(connect(&front.address).await);
        let message = text(&i.to_string());
        front
            .publish(to_queue(&queue, message))
            .await
            .expect("confirmed");
    }
    drop(crowd);
    eventually("there is room again", async || {
        is_served(&mut connect(&front.address).await).await
    })
    .await;
    assert_eq!(front.drain_bodies(&queue).await.len(), 100);
}
