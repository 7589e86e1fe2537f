//! What an encoded message would become, told from its bytes alone: nothing is allocated for it but the numbers of open groups.
//!
//! Decoding makes a struct of some hundred bytes of an element that takes two on the wire (`0a 00`, repeated). So elements are
//! counted, by the `.proto` files, before anything is decoded.

use std::collections::HashMap;

use prost::Message as _;
use prost_types::{
    DescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

/// Levels that prost decodes.
const MAX_DEPTH: usize = 100;

/// The messages of the `.proto` files, as far as the wire shows them.
#[derive(Debug, Default)]
pub(super) struct Shapes {
    messages: Vec<Shape>,
    /// Requests by the rpc's path.
    pub(super) requests: HashMap<String, Request>,
}

/// What an rpc takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    /// Its shape.
    message: usize,
    /// Whether there may be many.
    pub(super) streams: bool,
}

/// Fields and their numbers, in order.
#[derive(Debug, Default)]
struct Shape(Vec<(u32, Field)>);

#[derive(Clone, Copy, Debug)]
struct Field {
    kind: Kind,
    repeated: bool,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Varint,
    Fixed32,
    Fixed64,
    Text,
    Bytes,
    Message(usize),
}

/// How many elements a request may have: of lists, and of maps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    /// In all, nested ones included.
    pub(super) elements: usize,
    /// Of the request's own field 1.
    pub(super) first: Option<usize>,
}

/// Why a message is not decoded.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It is no message of this kind.
    Malformed(&'static str),
    TooManyElements,
    /// Of field 1.
    TooManyOfTheFirst,
}

impl Shapes {
    /// Reads compiled `.proto` files.
    pub(super) fn read(sets: &[&[u8]]) -> Self {
        let mut files = Vec::new();
        for set in sets {
            // They were made by this build or by the crate that has them.
            files.extend(FileDescriptorSet::decode(*set).unwrap_or_default().file);
        }
        let mut all = Vec::new();
        for file in &files {
            let package = format!(".{}", file.package());
            file.message_type
                .iter()
                .for_each(|message| collect(&package, message, &mut all));
        }
        let numbers: HashMap<&str, usize> =
            all.iter().map(|(name, _)| name.as_str()).zip(0..).collect();
        let messages = all.iter().map(|(_, message)| shape(message, &numbers));
        let mut shapes = Self {
            messages: messages.collect(),
            requests: HashMap::new(),
        };
        for file in &files {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    if let Some(message) = numbers.get(method.input_type()) {
                        let request = Request {
                            message: *message,
                            streams: method.client_streaming(),
                        };
                        shapes.requests.insert(path, request);
                    }
                }
            }
        }
        shapes
    }

    /// Whether a message may be decoded.
    pub(super) fn check(&self, request: Request, most: Most, bytes: &[u8]) -> Result<(), Refused> {
        let mut count = Count {
            shapes: self,
            most,
            elements: 0,
            first: 0,
        };
        count.message(request.message, bytes, 0)
    }
}

/// Nested messages are listed under their own names.
fn collect<'a>(
    within: &str,
    message: &'a DescriptorProto,
    all: &mut Vec<(String, &'a DescriptorProto)>,
) {
    let name = format!("{within}.{}", message.name());
    let nested = message.nested_type.iter();
    nested.for_each(|nested| collect(&name, nested, all));
    all.push((name, message));
}

fn shape(message: &DescriptorProto, numbers: &HashMap<&str, usize>) -> Shape {
    let fields = message.field.iter().filter_map(|field| {
        let kind = match field.r#type() {
            Type::Message | Type::Group => Kind::Message(*numbers.get(field.type_name())?),
            Type::String => Kind::Text,
            Type::Bytes => Kind::Bytes,
            Type::Double | Type::Fixed64 | Type::Sfixed64 => Kind::Fixed64,
            Type::Float | Type::Fixed32 | Type::Sfixed32 => Kind::Fixed32,
            _ => Kind::Varint,
        };
        let repeated = field.label() == Label::Repeated;
        Some((field.number().try_into().ok()?, Field { kind, repeated }))
    });
    let mut fields: Vec<_> = fields.collect();
    fields.sort_unstable_by_key(|(number, _)| *number);
    Shape(fields)
}

impl Shape {
    fn field(&self, number: u32) -> Option<Field> {
        let at = self.0.binary_search_by_key(&number, |(number, _)| *number);
        Some(self.0[at.ok()?].1)
    }
}

/// The walk over one message.
struct Count<'a> {
    shapes: &'a Shapes,
    most: Most,
    elements: usize,
    first: usize,
}

impl Count<'_> {
    fn message(&mut self, message: usize, mut bytes: &[u8], depth: usize) -> Result<(), Refused> {
        if depth > MAX_DEPTH {
            return Err(TOO_DEEP);
        }
        let shapes = self.shapes;
        // The numbers of those that did not end yet.
        let mut groups = Vec::new();
        while !bytes.is_empty() {
            // A field's number has 29 bits; the three below are the wire type.
            let tag = u32::try_from(varint(&mut bytes)?).ok();
            let tag = tag.filter(|tag| tag >> 3 > 0);
            let tag = tag.ok_or(Refused::Malformed("a field has no valid number"))?;
            let number = tag >> 3;
            // What is in a group is of no field that there is.
            let field = shapes.messages[message].field(number);
            let field = field.filter(|_| groups.is_empty());
            let ends = tag & 7 == 4;
            if field.is_none() && !ends && depth + groups.len() >= MAX_DEPTH {
                return Err(TOO_DEEP);
            }
            let value = match tag & 7 {
                0 => {
                    varint(&mut bytes)?;
                    Wire::Varint
                }
                1 => {
                    take(&mut bytes, 8)?;
                    Wire::Fixed64
                }
                2 => {
                    let length = varint(&mut bytes)?;
                    Wire::Long(take(&mut bytes, length)?)
                }
                3 => {
                    groups.push(number);
                    Wire::Group
                }
                4 => {
                    if groups.pop() != Some(number) {
                        return Err(Refused::Malformed("a group ends that did not begin"));
                    }
                    Wire::Group
                }
                5 => {
                    take(&mut bytes, 4)?;
                    Wire::Fixed32
                }
                _ => return Err(Refused::Malformed("a field is of no known wire type")),
            };
            let Some(field) = field else {
                continue;
            };
            if field.repeated {
                self.add(field, &value, depth == 0 && number == 1)?;
            }
            self.field(field, value, depth)?;
        }
        match groups.is_empty() {
            true => Ok(()),
            false => Err(Refused::Malformed("a group does not end")),
        }
    }

    fn field(&mut self, field: Field, value: Wire<'_>, depth: usize) -> Result<(), Refused> {
        match (field.kind, value) {
            (Kind::Message(inner), Wire::Long(bytes)) => self.message(inner, bytes, depth + 1),
            (Kind::Text, Wire::Long(bytes)) if std::str::from_utf8(bytes).is_err() => {
                Err(Refused::Malformed("a text is not UTF-8"))
            }
            (Kind::Text | Kind::Bytes, Wire::Long(_))
            | (Kind::Varint, Wire::Varint)
            | (Kind::Fixed32, Wire::Fixed32)
            | (Kind::Fixed64, Wire::Fixed64) => Ok(()),
            (Kind::Varint | Kind::Fixed32 | Kind::Fixed64, Wire::Long(_)) if field.repeated => {
                Ok(())
            }
            _ => Err(Refused::Malformed("a field is of another type")),
        }
    }

    fn add(&mut self, field: Field, value: &Wire<'_>, first: bool) -> Result<(), Refused> {
        self.elements += match (field.kind, value) {
            // Numbers, packed.
            (Kind::Varint, Wire::Long(bytes)) => bytes.iter().filter(|byte| **byte < 0x80).count(),
            (Kind::Fixed32, Wire::Long(bytes)) => bytes.len() / 4,
            (Kind::Fixed64, Wire::Long(bytes)) => bytes.len() / 8,
            _ => 1,
        };
        self.first += usize::from(first);
        if first && self.most.first.is_some_and(|most| self.first > most) {
            return Err(Refused::TooManyOfTheFirst);
        }
        if self.elements > self.most.elements {
            return Err(Refused::TooManyElements);
        }
        Ok(())
    }
}

/// A field's value, as the wire tells it.
enum Wire<'a> {
    Varint,
    Fixed32,
    Fixed64,
    Long(&'a [u8]),
    /// The beginning or the end of one.
    Group,
}

const TOO_DEEP: Refused = Refused::Malformed("it is nested too deep");
const CUT: Refused = Refused::Malformed("it is cut off");

fn varint(bytes: &mut &[u8]) -> Result<u64, Refused> {
    let mut value = 0;
    for (i, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if *byte < 0x80 {
            if i == 9 && *byte > 1 {
                break;
            }
            *bytes = &bytes[i + 1..];
            return Ok(value);
        }
    }
    Err(if bytes.len() < 10 {
        CUT
    } else {
        Refused::Malformed("a number has too many bytes")
    })
}

fn take<'a>(bytes: &mut &'a [u8], length: u64) -> Result<&'a [u8], Refused> {
    let length = usize::try_from(length).map_err(|_| CUT)?;
    let (taken, rest) = bytes.split_at_checked(length).ok_or(CUT)?;
    *bytes = rest;
    Ok(taken)
}
