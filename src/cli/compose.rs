//! A message on the command line: where its payload is, and its properties.

use std::{
    fs::File,
    io::{self, IsTerminal, Read},
    time::Duration,
};

use bytes::Bytes;
use clap::Args;
use prost_types::{Value, value::Kind};

use super::{Exit, client::time, complain};
use crate::grpc::proto::{Message, message::Payload};

/// Integers up to here keep their digits in a header.
const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53

/// Where the payload is.
#[derive(Args)]
#[group(multiple = false)]
pub(super) struct Source {
    /// The payload, as it is
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    text: Option<String>,
    /// The payload, checked to be JSON and sent as it is; the content type becomes application/json
    #[arg(long, value_name = "JSON", allow_hyphen_values = true)]
    json: Option<String>,
    /// The payload is this file's content; - is standard input
    #[arg(long, value_name = "FILE")]
    data_file: Option<String>,
    /// Standard input; so it is too when no payload is given
    #[arg(value_name = "-", value_parser = ["-"], hide_possible_values = true)]
    stdin: Option<String>,
}

#[derive(Args)]
#[command(next_help_heading = "Properties")]
pub(super) struct Properties {
    /// Names the message; made when it is not given
    #[arg(long, value_name = "ID")]
    message_id: Option<String>,
    /// The event's name, such as order.created
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// The service that made the message
    #[arg(long, value_name = "ID")]
    app_id: Option<String>,
    /// Ties a reply or a workflow together
    #[arg(long, value_name = "ID")]
    correlation_id: Option<String>,
    /// Where an answer is wanted
    #[arg(long, value_name = "QUEUE")]
    reply_to: Option<String>,
    /// MIME type of the payload
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// 0 to 255; only queues declared with priorities look at it
    #[arg(long, value_name = "NUMBER")]
    priority: Option<u8>,
    /// How long the message may wait in a queue, such as 30s
    #[arg(long, value_name = "TIME", value_parser = time)]
    ttl: Option<Duration>,
    /// A header, NAME=VALUE; may be repeated. A number, true, false and null are sent as such, anything else as text
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, Value)>,
}

impl Source {
    /// Whether any was named.
    pub(super) fn is_given(&self) -> bool {
        self.text.is_some()
            || self.json.is_some()
            || self.data_file.is_some()
            || self.stdin.is_some()
    }

    pub(super) fn is_json(&self) -> bool {
        self.json.is_some()
    }

    pub(super) fn payload(&self) -> Result<Payload, Exit> {
        if let Some(text) = &self.text {
            return Ok(Payload::Text(text.clone()));
        }
        if let Some(text) = &self.json {
            // Sent as it was written: a JSON value would not keep the digits of large numbers.
            return match serde_json::from_str::<serde::de::IgnoredAny>(text) {
                Ok(_) => Ok(Payload::Text(text.clone())),
                Err(error) => Err(Exit::new(Exit::USAGE, format!("--json: {error}"))),
            };
        }
        let mut data = Vec::new();
        let (name, mut input) = self.input()?;
        match input.read_to_end(&mut data) {
            Ok(_) => Ok(Payload::Data(Bytes::from(data))),
            Err(error) => Err(Exit::new(
                Exit::USAGE,
                format!("cannot read {name}: {error}"),
            )),
        }
    }

    /// What is read, and its name.
    pub(super) fn input(&self) -> Result<(String, Box<dyn Read + Send>), Exit> {
        match self.data_file.as_deref() {
            Some(path) if path != "-" => match File::open(path) {
                Ok(file) => Ok((path.to_owned(), Box::new(file))),
                Err(error) => Err(Exit::new(
                    Exit::USAGE,
                    format!("cannot read {path}: {error}"),
                )),
            },
            _ => {
                if io::stdin().is_terminal() {
                    complain("reading from the terminal; Ctrl-D at the start of a line ends it");
                }
                Ok(("standard input".to_owned(), Box::new(io::stdin())))
            }
        }
    }
}

impl Properties {
    /// Whether any was given.
    pub(super) fn is_given(&self) -> bool {
        let texts = [
            &self.message_id,
            &self.kind,
            &self.app_id,
            &self.correlation_id,
            &self.reply_to,
            &self.content_type,
        ];
        texts.into_iter().any(Option::is_some)
            || self.priority.is_some()
            || self.ttl.is_some()
            || !self.headers.is_empty()
    }

    /// Those that were given replace the message's.
    pub(super) fn put_on(&self, message: &mut Message) {
        let texts = [
            (&self.message_id, &mut message.message_id),
            (&self.kind, &mut message.r#type),
            (&self.app_id, &mut message.app_id),
            (&self.correlation_id, &mut message.correlation_id),
            (&self.reply_to, &mut message.reply_to),
            (&self.content_type, &mut message.content_type),
        ];
        for (given, field) in texts {
            if let Some(text) = given {
                field.clone_from(text);
            }
        }
        if let Some(priority) = self.priority {
            message.priority = priority.into();
        }
        if let Some(ttl) = self.ttl {
            message.ttl = ttl.try_into().ok();
        }
        if !self.headers.is_empty() {
            let headers = message.headers.get_or_insert_default();
            headers.fields.extend(self.headers.iter().cloned());
        }
    }
}

fn header(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("not NAME=VALUE")?;
    let kind = match serde_json::from_str(value) {
        Ok(serde_json::Value::Null) => Kind::NullValue(0),
        Ok(serde_json::Value::Bool(value)) => Kind::BoolValue(value),
        Ok(serde_json::Value::Number(number)) => match number.as_f64() {
            // An id of twenty digits would arrive as another one.
            Some(double) if double.abs() <= EXACT || number.is_f64() => Kind::NumberValue(double),
            _ => Kind::StringValue(value.to_owned()),
        },
        _ => Kind::StringValue(value.to_owned()),
    };
    Ok((name.to_owned(), Value { kind: Some(kind) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_what_they_look_like() {
        let kind = |text| header(text).ok().and_then(|(_, value)| value.kind);
        let text = |text: &str| Some(Kind::StringValue(text.to_owned()));
        assert_eq!(kind("n=7"), Some(Kind::NumberValue(7.0)));
        assert_eq!(kind("b=true"), Some(Kind::BoolValue(true)));
        assert_eq!(kind("v=null"), Some(Kind::NullValue(0)));
        assert_eq!(kind("t=a=b"), text("a=b"));
        assert_eq!(kind("o={}"), text("{}"));
        assert_eq!(kind("e="), text(""));
        assert_eq!(
            kind("id=12345678901234567890"),
            text("12345678901234567890")
        );
        assert!(header("nothing").is_err());
    }
}
