//! Publishing through RabbitMQ's management HTTP API, over kept-alive connections.

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use crate::{PAYLOAD, QUEUE, Result};

pub async fn publish(port: u16, count: usize, clients: usize) -> Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..clients {
        tasks.spawn(client(port, count / clients));
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

async fn client(port: u16, count: usize) -> Result<()> {
    let payload = "x".repeat(PAYLOAD);
    let body = format!(
        r#"{{"properties":{{"delivery_mode":2}},"routing_key":"{QUEUE}","payload":"{payload}","payload_encoding":"string"}}"#
    );
    // guest:guest of the private broker, in base64.
    let request = format!(
        "POST /api/exchanges/%2F/amq.default/publish HTTP/1.1\r\nhost: 127.0.0.1\r\n\
         authorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await?);
    for _ in 0..count {
        stream.write_all(request.as_bytes()).await?;
        let mut length = 0;
        let mut line = String::new();
        loop {
            line.clear();
            stream.read_line(&mut line).await?;
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer).await?;
        if !answer
            .windows(13)
            .any(|window| window == br#""routed":true"#)
        {
            return Err(String::from_utf8_lossy(&answer).into_owned().into());
        }
    }
    Ok(())
}
