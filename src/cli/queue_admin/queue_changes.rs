//! `courtier queues create|delete|purge`.

use clap::{Args, ValueEnum};
use prost_types::{Struct, Value, value::Kind};
use serde_json::json;

use super::{Admin, topology_changes, word};
use crate::{
    cli::{
        Exit,
        client::{self, Output},
        confirm::Confirm,
        print, print_json,
    },
    grpc::proto::{
        CreateQueueRequest, DeleteQueueRequest, PurgeQueueRequest,
        create_queue_request::Profile as ProtoProfile, delete_queue_response::DeadLetterQueue,
    },
};

/// Create a durable queue; a work queue comes with <QUEUE>.dlq
#[derive(Args)]
pub(in crate::cli) struct Create {
    #[arg(value_name = "QUEUE")]
    name: String,
    /// What it is for
    #[arg(long, default_value = "standard")]
    profile: Profile,
    /// An argument in place of the profile's, such as x-max-length=500; NAME= takes one away
    #[arg(long = "argument", value_name = "NAME=VALUE", value_parser = argument)]
    arguments: Vec<NamedArgument>,
    /// With --profile temporary: it goes as soon as its last consumer goes
    #[arg(long)]
    auto_delete: bool,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    admin: Admin,
}

/// What a queue is for.
#[derive(Clone, Copy, ValueEnum)]
enum Profile {
    /// A work queue
    Standard,
    /// A queue for dead letters
    DeadLetter,
    /// One that goes by itself when nobody uses it for 30 minutes (x-expires), and has no dead letters
    Temporary,
}

/// An argument in AMQP's words; `None` takes it away.
pub(super) type NamedArgument = (String, Option<String>);

/// Arguments as the API has them.
pub(super) fn arguments(named: Vec<NamedArgument>) -> Struct {
    let fields = named.into_iter();
    Struct {
        fields: fields.map(|(name, text)| (name, value(text))).collect(),
    }
}

pub(super) fn argument(text: &str) -> Result<NamedArgument, String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((
            name.to_owned(),
            Some(value.to_owned()).filter(|v| !v.is_empty()),
        )),
        _ => Err("not an argument such as x-max-length=500".to_owned()),
    }
}

/// A number where it is one, else a text; nothing: null.
fn value(text: Option<String>) -> Value {
    let kind = match text {
        None => Kind::NullValue(0),
        Some(text) => match (text.parse::<f64>(), text.parse::<bool>()) {
            (Ok(number), _) if number.is_finite() => Kind::NumberValue(number),
            (_, Ok(value)) => Kind::BoolValue(value),
            _ => Kind::StringValue(text),
        },
    };
    Value { kind: Some(kind) }
}

impl Create {
    pub(super) async fn run(self) -> Result<(), Exit> {
        let mut client = self.admin.connect().await?;
        let profile = match self.profile {
            Profile::Standard => ProtoProfile::Standard,
            Profile::DeadLetter => ProtoProfile::DeadLetter,
            Profile::Temporary => ProtoProfile::Temporary,
        };
        let request = CreateQueueRequest {
            name: self.name,
            profile: profile.into(),
            arguments: Some(arguments(self.arguments)),
            validate_only: self.dry_run,
            auto_delete: self.auto_delete,
        };
        let answer = client.create_queue(self.admin.ask(request)).await;
        let answer = answer.map_err(|status| client::not_done(&status))?;
        let changes = answer.into_inner().changes;
        topology_changes(&changes, "", self.admin.output, self.dry_run)
    }
}

/// Delete a queue with all that is in it
#[derive(Args)]
pub(in crate::cli) struct Delete {
    #[arg(value_name = "QUEUE")]
    name: String,
    /// Only if nobody consumes
    #[arg(long)]
    if_unused: bool,
    /// Only if it is empty
    #[arg(long)]
    if_empty: bool,
    /// <QUEUE>.dlq as well, if it is empty
    #[arg(long)]
    with_dead_letter_queue: bool,
    #[command(flatten)]
    confirm: Confirm,
    #[command(flatten)]
    admin: Admin,
}

impl Delete {
    pub(super) async fn run(self) -> Result<(), Exit> {
        self.confirm.check()?;
        let mut client = self.admin.connect().await?;
        let name = &self.name;
        self.confirm
            .ask(&format!("Delete queue {name} with all that is in it?"))?;
        let request = DeleteQueueRequest {
            name: name.clone(),
            if_unused: self.if_unused,
            if_empty: self.if_empty,
            with_dead_letter_queue: self.with_dead_letter_queue,
        };
        let answer = client.delete_queue(self.admin.ask(request)).await;
        let answer = answer
            .map_err(|status| client::not_done(&status))?
            .into_inner();
        let (letters, why) = (answer.dead_letter_queue(), &answer.dead_letter_queue_note);
        let count = answer.deleted_message_count;
        match self.admin.output {
            Output::Json => {
                let mut deleted = json!({"queue": name, "deleted_message_count": count});
                if self.with_dead_letter_queue {
                    let told = word(letters.as_str_name(), "DEAD_LETTER_QUEUE_");
                    deleted["dead_letter_queue"] = json!(told);
                    deleted["dead_letter_queue_note"] = json!(why);
                }
                print_json(deleted)
            }
            Output::Text => {
                print(&format!("{name} deleted, and {count} messages with it\n"))?;
                match letters {
                    DeadLetterQueue::Unspecified => Ok(()),
                    DeadLetterQueue::Deleted => {
                        print(&format!("{name}.dlq deleted; it was empty\n"))
                    }
                    DeadLetterQueue::Missing => print(&format!("there was no {name}.dlq\n")),
                    _ => print(&format!("{name}.dlq stays: {why}\n")),
                }
            }
        }
    }
}

/// Delete all ready messages of a queue, for good
#[derive(Args)]
pub(in crate::cli) struct Purge {
    #[arg(value_name = "QUEUE")]
    name: String,
    #[command(flatten)]
    confirm: Confirm,
    #[command(flatten)]
    admin: Admin,
}

impl Purge {
    pub(super) async fn run(self) -> Result<(), Exit> {
        self.confirm.check()?;
        let mut client = self.admin.connect().await?;
        let name = &self.name;
        let question = format!("Delete all ready messages of queue {name} for good?");
        self.confirm.ask(&question)?;
        let request = PurgeQueueRequest {
            name: name.clone(),
            confirm_name: name.clone(),
        };
        let answer = client.purge_queue(self.admin.ask(request)).await;
        let answer = answer.map_err(|status| client::not_done(&status))?;
        let count = answer.into_inner().purged_count;
        match self.admin.output {
            Output::Json => print_json(json!({"queue": name, "purged_count": count})),
            Output::Text => print(&format!("{count} messages of {name} deleted\n")),
        }
    }
}
