//! A gateway with a queue whose messages failed, for the tests of `courtier failed`.

use std::process::Output;

use courtier::grpc::proto::{ErrorDetail, Message, Nack, nack::Action};
use serde_json::Value;
use tokio::process::Command;

use crate::{
    command::{code, courtier, json_lines, run, stderr},
    desk::slow,
    front::{Front, On, from, nack_as, text, to_queue},
    harness::eventually,
};

pub struct Desk {
    pub front: Front,
    pub queue: String,
}

impl Desk {
    /// No retry comes by itself.
    pub async fn open() -> Self {
        Self::of(On::Embedded.gateway_set_up(slow)).await
    }

    pub async fn of(front: impl Future<Output = Front>) -> Self {
        let front = front.await;
        let queue = front.queue("work").await;
        Self { front, queue }
    }

    /// Messages that a consumer refused for good, one after the other; their ids, in this order.
    pub async fn failed(&self, bodies: &[&str]) -> Vec<String> {
        let mut ids = Vec::new();
        for body in bodies {
            ids.push(self.dead(text(body), Action::DeadLetter).await);
        }
        ids
    }

    /// A message that a consumer refused; the failed message's id.
    pub async fn dead(&self, message: Message, action: Action) -> String {
        let before = self.list(&[]).await.len();
        let published = self.front.publish(to_queue(&self.queue, message)).await;
        let publish_id = published.expect("published").publish_id;
        let mut stream = self.front.subscribe(from(&[&self.queue])).await;
        let ack_id = stream.delivery().await.ack_id;
        stream.send(nack_as(refusal(ack_id, action)));
        stream.results(1).await;
        stream.half_close();
        stream.end().await.expect("it ends well");
        eventually("it is collected", || async {
            self.list(&[]).await.len() > before
        })
        .await;
        let all = self.list(&[]).await;
        let row = all.iter().find(|row| row["publish_id"] == *publish_id);
        id(row.expect("it is there"))
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = courtier(&[&["failed"], arguments].concat());
        let server = format!("http://{}", self.front.address);
        // The editor's shell and what it calls.
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.env("COURTIER_SERVER", server).env("PATH", path);
        command
    }

    /// `courtier failed` and what is given.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        run(self.command(arguments), b"").await
    }

    /// The lines of a command that does all that it was asked.
    pub async fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let output = self.run(&[arguments, &["--output", "json"]].concat()).await;
        assert_eq!(code(&output), 0, "{arguments:?}: {}", stderr(&output));
        json_lines(&output)
    }

    pub async fn list(&self, arguments: &[&str]) -> Vec<Value> {
        self.json(&[&["list"], arguments].concat()).await
    }

    /// Where a message stands.
    pub async fn status(&self, id: &str) -> String {
        let shown = self.json(&["show", id]).await;
        shown[0]["status"].as_str().expect("text").to_owned()
    }
}

pub fn refusal(ack_id: String, action: Action) -> Nack {
    Nack {
        ack_id,
        action: action.into(),
        error: Some(ErrorDetail {
            r#type: "Declined".to_owned(),
            message: "card 4711 was declined".to_owned(),
            stack: "at pay()\nat main()".to_owned(),
        }),
        ..Nack::default()
    }
}

pub fn id(row: &Value) -> String {
    row["id"].as_str().expect("text").to_owned()
}
