//! Between the API's queues, exchanges, bindings and alerts and the gateway's.

use std::{collections::BTreeMap, time::SystemTime};

use prost_types::Struct;
use tonic::Status;

use crate::{
    broker::{
        Entity, LinkState, Links,
        admin::{
            BindingInfo, BrokerStatus, Destination, ExchangeInfo, Management, Node, QueueInfo,
            Source,
        },
        topology::{
            self, ExchangeKind, NoExchangeKind,
            file::{Argument, File, FileBinding, FileExchange, FileQueue, TimeText},
        },
    },
    gateway::{
        alerts,
        queue_admin::{
            Deleted, Kept, Profile, QueueStats,
            plan::{self, Change},
        },
    },
    grpc::{
        convert::{duration, header_json, header_value},
        fields::{some, write_time},
        proto::{
            self, DeleteQueueResponse, GetBrokerStatusResponse, TopologyChange,
            create_queue_request::Profile as ProtoProfile,
            delete_queue_response,
            get_broker_status_response::{self as status, link},
            topology_change,
        },
        status::invalid,
    },
    message::{Table, Value},
};

pub fn read_table(fields: Option<Struct>) -> Table {
    let fields = fields.map(|fields| fields.fields).unwrap_or_default();
    let values = fields.into_iter();
    values
        .map(|(name, json)| (name, header_value(json)))
        .collect()
}

pub fn write_struct(table: &Table) -> Struct {
    let fields = table.iter();
    Struct {
        fields: fields
            .map(|(name, value)| (name.clone(), header_json(value)))
            .collect(),
    }
}

pub fn read_profile(profile: i32) -> Result<Profile, Status> {
    match ProtoProfile::try_from(profile) {
        Ok(ProtoProfile::Unspecified | ProtoProfile::Standard) => Ok(Profile::Standard),
        Ok(ProtoProfile::DeadLetter) => Ok(Profile::DeadLetter),
        Ok(ProtoProfile::Temporary) => Ok(Profile::Temporary),
        Err(_) => Err(invalid("profile", "is none that this gateway knows")),
    }
}

pub fn read_exchange_kind(field: &'static str, kind: &str) -> Result<ExchangeKind, Status> {
    if kind.is_empty() {
        return Ok(ExchangeKind::Topic);
    }
    let unknown = |bad: NoExchangeKind| invalid(field, bad.to_string());
    kind.parse().map_err(unknown)
}

pub fn read_binding(binding: Option<proto::Binding>) -> Result<topology::Binding, Status> {
    let Some(binding) = binding else {
        return Err(invalid("binding", "must be set"));
    };
    check_destination(&binding)?;
    Ok(topology::Binding {
        exchange: binding.exchange,
        queue: binding.queue,
        routing_key: binding.routing_key,
        arguments: read_table(binding.arguments),
    })
}

fn check_destination(binding: &proto::Binding) -> Result<(), Status> {
    if binding.destination_exchange.is_empty() {
        return Ok(());
    }
    let problem = "must not be set: only queues are bound here";
    Err(invalid("binding.destination_exchange", problem))
}

pub fn read_topology(topology: Option<proto::Topology>) -> Result<File, Status> {
    let Some(topology) = topology else {
        return Err(invalid("topology", "must be set"));
    };
    let exchanges = topology.exchanges.into_iter().map(|exchange| {
        Ok(FileExchange {
            kind: read_exchange_kind("topology.exchanges.type", &exchange.r#type)?,
            arguments: read_arguments("topology.exchanges.arguments", exchange.arguments)?,
            name: exchange.name,
        })
    });
    let queues = topology.queues.into_iter().map(read_topology_queue);
    let bindings = topology.bindings.into_iter().map(|binding| {
        check_destination(&binding)?;
        let field = "topology.bindings.arguments";
        Ok(FileBinding {
            arguments: read_arguments(field, binding.arguments)?,
            exchange: binding.exchange,
            queue: binding.queue,
            routing_key: binding.routing_key,
        })
    });
    Ok(File {
        exchanges: exchanges.collect::<Result<_, Status>>()?,
        queues: queues.collect::<Result<_, Status>>()?,
        bindings: bindings.collect::<Result<_, Status>>()?,
        dead_letter_sources: Vec::new(),
    })
}

fn read_arguments(
    field: &'static str,
    arguments: Option<Struct>,
) -> Result<BTreeMap<String, Argument>, Status> {
    let read = |value: Value| match (&value, value.as_integer(), value.as_str()) {
        (Value::Bool(value), _, _) => Ok(Argument::Bool(*value)),
        (_, Some(integer), _) => Ok(Argument::Integer(integer)),
        (_, _, Some(text)) => Ok(Argument::Text(text.to_owned())),
        _ => Err(invalid(field, "must be texts, integers and booleans")),
    };
    let arguments = read_table(arguments).into_iter();
    let arguments = arguments.map(|(name, value)| Ok((name, read(value)?)));
    arguments.collect()
}

fn read_topology_queue(queue: proto::TopologyQueue) -> Result<FileQueue, Status> {
    let kind = some(queue.r#type).map(|kind| {
        let unknown = |_| invalid("topology.queues.type", "must be quorum or classic");
        kind.parse().map_err(unknown)
    });
    let limit = |field, time: Option<prost_types::Duration>| {
        let limit = time.map(|time| {
            let time = duration(time).and_then(|time| u64::try_from(time.as_millis()).ok());
            match time {
                Some(0) => Ok(TimeText::Text(TimeText::NONE.to_owned())),
                Some(ms) => Ok(TimeText::Milliseconds(ms)),
                None => Err(invalid(field, "must not be negative")),
            }
        });
        limit.transpose()
    };
    let max_priority = u8::try_from(queue.max_priority)
        .map_err(|_| invalid("topology.queues.max_priority", "must be at most 255"))?;
    Ok(FileQueue {
        name: queue.name,
        kind: kind.transpose()?,
        message_ttl: limit("topology.queues.message_ttl", queue.message_ttl)?,
        expires: limit("topology.queues.expires", queue.expires)?,
        auto_delete: queue.auto_delete,
        max_length: queue.max_length,
        max_priority: (max_priority > 0).then_some(max_priority),
        delivery_limit: queue.delivery_limit,
        dead_letter: queue.dead_letter,
        max_retries: None,
        retry_delays: None,
    })
}

pub fn write_queue(queue: QueueInfo) -> proto::Queue {
    let message_count = queue
        .ready
        .zip(queue.unacked)
        .map(|(ready, unacked)| ready + unacked);
    proto::Queue {
        name: queue.name,
        r#type: queue.kind.unwrap_or_default(),
        durable: queue.durable,
        auto_delete: queue.auto_delete,
        arguments: queue.arguments.as_ref().map(write_struct),
        message_count,
        ready_count: queue.ready,
        unacked_count: queue.unacked,
        consumer_count: queue.consumers,
        publish_rate: queue.publish.per_second,
        deliver_rate: queue.deliver.per_second,
        ack_rate: queue.ack.per_second,
        capacity_ratio: queue.capacity_ratio,
        sampled_at: Some(SystemTime::now().into()),
        source: match queue.source {
            Source::Amqp => proto::Source::Amqp,
            Source::Management => proto::Source::Management,
            Source::Embedded => proto::Source::Embedded,
        }
        .into(),
    }
}

pub fn write_deleted(deleted: Deleted) -> DeleteQueueResponse {
    use delete_queue_response::DeadLetterQueue;
    let (dead_letter_queue, note) = match deleted.dead_letters {
        None => (DeadLetterQueue::Unspecified, String::new()),
        Some(Ok(true)) => (DeadLetterQueue::Deleted, String::new()),
        Some(Ok(false)) => (DeadLetterQueue::Missing, String::new()),
        Some(Err(kept)) => {
            let why = match kept {
                Kept::NotEmpty => DeadLetterQueue::NotEmpty,
                Kept::InUse => DeadLetterQueue::InUse,
                Kept::NotDeleted(_) => DeadLetterQueue::NotDeleted,
            };
            (why, kept.to_string())
        }
    };
    DeleteQueueResponse {
        deleted_message_count: deleted.messages,
        dead_letter_queue: dead_letter_queue.into(),
        dead_letter_queue_note: note,
    }
}

pub fn write_stats(stats: QueueStats) -> proto::QueueStats {
    let time_to_drain = stats.time_to_drain;
    proto::QueueStats {
        queue: Some(write_queue(stats.queue)),
        time_to_drain: time_to_drain.and_then(|time| prost_types::Duration::try_from(time).ok()),
        failed_count: stats.failed,
        dead_letter_count: stats.dead_letters,
    }
}

pub fn write_exchange(exchange: ExchangeInfo) -> proto::Exchange {
    proto::Exchange {
        name: exchange.name,
        r#type: exchange.kind.unwrap_or_default(),
        durable: exchange.durable,
        internal: exchange.internal,
        arguments: exchange.arguments.as_ref().map(write_struct),
    }
}

pub fn write_binding(binding: BindingInfo) -> proto::Binding {
    let (queue, destination_exchange) = match binding.destination {
        Destination::Queue(queue) => (queue, String::new()),
        Destination::Exchange(exchange) => (String::new(), exchange),
    };
    proto::Binding {
        exchange: binding.exchange,
        queue,
        routing_key: binding.routing_key,
        arguments: (!binding.arguments.is_empty()).then(|| write_struct(&binding.arguments)),
        destination_exchange,
    }
}

pub fn write_change(change: Change) -> TopologyChange {
    let kind = match change.what {
        Entity::Exchange => topology_change::Kind::Exchange,
        Entity::Queue => topology_change::Kind::Queue,
        Entity::Binding => topology_change::Kind::Binding,
    };
    let action = match change.action {
        plan::Action::Create => topology_change::Action::Create,
        plan::Action::None => topology_change::Action::None,
        plan::Action::Differs => topology_change::Action::Differs,
        plan::Action::Unknown => topology_change::Action::Unknown,
        plan::Action::Extra => topology_change::Action::Extra,
    };
    let differences = change.mismatches.into_iter();
    let differences = differences.map(|one| topology_change::Difference {
        argument: one.argument,
        wanted: one.wanted.unwrap_or_default(),
        actual: one.actual.unwrap_or_default(),
    });
    TopologyChange {
        kind: kind.into(),
        name: change.name,
        action: action.into(),
        differences: differences.collect(),
        note: change.note,
    }
}

pub fn write_status(broker: BrokerStatus, links: Links) -> GetBrokerStatusResponse {
    let link = |name: &str, state| status::Link {
        name: name.to_owned(),
        state: match state {
            LinkState::Down => link::State::Down,
            LinkState::Up => link::State::Up,
            LinkState::Blocked => link::State::Blocked,
            LinkState::Failing => link::State::Failing,
        }
        .into(),
    };
    let (management, management_error) = match broker.management {
        Management::Up => (status::Management::Up, String::new()),
        Management::Down(reason) => (status::Management::Down, reason),
        Management::Off => (status::Management::Off, String::new()),
        Management::NotNeeded => (status::Management::NotNeeded, String::new()),
    };
    GetBrokerStatusResponse {
        product: broker.product.to_owned(),
        version: broker.version.unwrap_or_default(),
        cluster: broker.cluster.unwrap_or_default(),
        virtual_host: broker.virtual_host,
        links: vec![
            link("publish", links.publish),
            link("consume", links.consume),
        ],
        management: management.into(),
        management_error,
        nodes: broker.nodes.into_iter().map(write_node).collect(),
        connection_count: broker.connections,
    }
}

fn write_node(node: Node) -> status::Node {
    status::Node {
        name: node.name,
        running: node.running,
        memory_used: node.memory_used,
        memory_limit: node.memory_limit,
        memory_alarm: node.memory_alarm,
        disk_free: node.disk_free,
        disk_free_limit: node.disk_free_limit,
        disk_alarm: node.disk_alarm,
    }
}

pub fn write_alert(alert: &alerts::Alert) -> proto::Alert {
    use alerts::Kind;
    use proto::alert::Kind as ProtoKind;
    let kind = match alert.kind {
        Kind::LinkDown => ProtoKind::LinkDown,
        Kind::BrokerAlarm => ProtoKind::BrokerAlarm,
        Kind::DatabaseDown => ProtoKind::DatabaseDown,
        Kind::NoConsumer => ProtoKind::NoConsumer,
        Kind::QueueDepth => ProtoKind::QueueDepth,
        Kind::ConsumerLag => ProtoKind::ConsumerLag,
        Kind::FailedSpike => ProtoKind::FailedSpike,
        Kind::OldestFailed => ProtoKind::OldestFailed,
        Kind::ConnectionsRefused => ProtoKind::ConnectionsRefused,
    };
    let severity = match alert.kind.severity() {
        alerts::Severity::Critical => proto::alert::Severity::Critical,
        alerts::Severity::Warning => proto::alert::Severity::Warning,
    };
    proto::Alert {
        kind: kind.into(),
        subject: alert.subject.clone(),
        severity: severity.into(),
        summary: alert.summary.clone(),
        runbook: alert.kind.runbook(),
        raised_at: Some(write_time(alert.raised_at)),
        cleared_at: alert.cleared_at.map(write_time),
    }
}
