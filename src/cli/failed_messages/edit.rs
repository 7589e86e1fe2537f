//! `courtier failed edit`.

use bytes::Bytes;
use clap::Args;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::{Client, changes, connect, editor::Draft, get, view};
use crate::{
    cli::{
        Exit,
        client::{self, Gateway, Output},
        complain,
        compose::{Properties, Source},
        confirm::Confirm,
        print, print_json, show,
    },
    gateway::validate::is_reserved,
    grpc::proto::{
        EditAndRetryFailedMessageRequest, Message, failed_message::Status, message::Payload,
    },
};

/// Correct a failed message, and send the corrected one to the queue where it failed
///
/// Opens $VISUAL or $EDITOR on the payload, unless a payload or a property is given. What is not changed stays as it is:
/// properties (but not the ttl) and headers; headers that hold bytes or times are sent as text. The original becomes RESOLVED and
/// keeps its payload; should the corrected message die, that makes a failed message of its own.
#[derive(Args)]
#[command(
    mut_arg("message_id", |arg| arg.help("Names the message [default: as it was]")),
    mut_arg("stdin", |arg| arg.help("The payload is what comes in on standard input")),
    after_help = "\
Examples:
  courtier failed edit 0193a3c4-1c2d-7000-8000-0123456789ab
  courtier failed edit ID --json '{\"id\":1,\"total\":12.5}'
  courtier failed edit ID --header tenant=7 --remove-header debug
  courtier failed show --output json ID | jq -j .message.text | sed s/EUR/CHF/ |
    courtier failed edit ID - --yes

Exit codes:
  0  the corrected message is in the queue
  1  failed
  2  wrong usage, or --yes is missing where nobody can be asked
  3  refused as it is: no such message, it is RETRYING or RESOLVED, a bad field
  4  not done: nothing changed, you said no, queue full, broker or database away
  5  in doubt: the corrected message may be in the queue"
)]
pub(in crate::cli) struct Edit {
    /// The failed message's id, as in `courtier failed list`
    id: String,
    #[command(flatten)]
    source: Source,
    /// Only show what would change
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    confirm: Confirm,
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
    #[command(flatten)]
    gateway: Gateway,
    #[command(flatten)]
    properties: Properties,
    /// Leave this header out; may be repeated
    #[arg(
        long = "remove-header",
        value_name = "NAME",
        help_heading = "Properties"
    )]
    removed: Vec<String>,
}

pub(super) async fn run(edit: Edit) -> Result<(), Exit> {
    if !edit.dry_run {
        edit.confirm.check()?;
    }
    let mut client = connect(&edit.gateway).await?;
    let original = get(&mut client, &edit.gateway, &edit.id).await?;
    let status = original.status();
    if status != Status::Pending && status != Status::Failed {
        let problem = format!(
            "{}: it is {}; only PENDING and FAILED messages can be edited",
            edit.id,
            view::status(&original)
        );
        return Err(Exit::new(Exit::REFUSED, problem));
    }
    let before = sendable(original.message.unwrap_or_default());
    let (after, draft) = corrected(&edit, &before)?;
    let changes = changes::between(&before, &after);
    if changes.is_empty() {
        let problem =
            "nothing changed, so nothing was sent; courtier failed retry sends it as it is";
        return Err(Exit::new(Exit::NOT_DONE, problem));
    }
    if json_problem(show::payload(&before)).is_none()
        && let Some(problem) = json_problem(show::payload(&after))
    {
        complain(&format!(
            "the payload was JSON, and is not any more: {problem}"
        ));
    }
    if edit.dry_run {
        return match edit.output {
            Output::Text => print(&changes),
            Output::Json => print_json(json!({
                "id": edit.id,
                "message": Value::from(show::message(Some(&after))),
            })),
        };
    }
    if edit.output == Output::Text {
        complain(&format!(
            "this changes in {}:\n{}",
            edit.id,
            changes.trim_end()
        ));
    }
    let outcome = send(&mut client, &edit, &original.queue, after).await;
    if outcome.is_err()
        && let Some(path) = draft.and_then(Draft::keep)
    {
        complain(&format!("what you wrote is kept in {}", path.display()));
    }
    outcome
}

/// What a retry would send of a message: the queue's own ttl applies, and the broker's records are nobody's to publish.
fn sendable(mut message: Message) -> Message {
    message.ttl = None;
    if let Some(headers) = &mut message.headers {
        headers.fields.retain(|name, _| !is_reserved(name));
    }
    message
}

/// The message that is to be sent, and the file in which its payload was written.
fn corrected(edit: &Edit, before: &Message) -> Result<(Message, Option<Draft>), Exit> {
    let mut message = before.clone();
    let mut draft = None;
    if edit.source.is_given() {
        message.payload = Some(edit.source.payload()?);
        if edit.source.is_json() {
            "application/json".clone_into(&mut message.content_type);
        }
    } else if !edit.properties.is_given() && edit.removed.is_empty() {
        let payload = show::payload(before);
        let json = json_problem(payload).is_none();
        let written = Draft::edit(payload, json)?;
        message.payload = Some(Payload::Data(Bytes::from(written.text.clone())));
        draft = Some(written);
    }
    for name in &edit.removed {
        let headers = message.headers.as_mut();
        if headers
            .and_then(|headers| headers.fields.remove(name))
            .is_none()
        {
            let problem = format!("the message has no header {name:?}");
            return Err(Exit::new(Exit::USAGE, problem));
        }
    }
    edit.properties.put_on(&mut message);
    Ok((message, draft))
}

async fn send(client: &mut Client, edit: &Edit, queue: &str, message: Message) -> Result<(), Exit> {
    edit.confirm.ask(&format!("Send it to {queue}?"))?;
    let request = edit.gateway.ask(EditAndRetryFailedMessageRequest {
        id: edit.id.clone(),
        message: Some(message),
    });
    let answer = client.edit_and_retry_failed_message(request).await;
    let answer = answer
        .map_err(|status| client::not_done(&status))?
        .into_inner();
    let failed = answer.failed_message.unwrap_or_default();
    match edit.output {
        Output::Text => print(&format!(
            "confirmed, message id {}; {} {}\n",
            answer.message_id,
            edit.id,
            view::status(&failed)
        )),
        Output::Json => print_json(json!({
            "message_id": answer.message_id,
            "publish_id": answer.publish_id,
            "failed_message": view::json(&failed),
        })),
    }
}

/// Why it is not JSON.
fn json_problem(payload: &[u8]) -> Option<serde_json::Error> {
    serde_json::from_slice::<IgnoredAny>(payload).err()
}
