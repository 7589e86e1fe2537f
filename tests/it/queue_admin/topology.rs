//! Topologies over the API: what is missing is declared, what differs is explained, nothing is deleted.

use courtier::{
    broker::topology::{QueueDefaults, Topology as Declared},
    grpc::proto::{
        ApplyTopologyRequest, ApplyTopologyResponse, Binding, Exchange, GetTopologyDriftRequest,
        Topology, TopologyChange, TopologyQueue, topology_change::Action,
    },
};
use tonic::{Code, Status};

use crate::{
    front::{On, fault, on_all, refusal, refused, seconds, text, timely},
    harness::eventually,
    office::{Office, differences},
};

impl Office {
    async fn apply(
        &self,
        topology: &Topology,
        validate_only: bool,
    ) -> Result<ApplyTopologyResponse, Status> {
        let request = ApplyTopologyRequest {
            topology: Some(topology.clone()),
            validate_only,
        };
        let answer = timely(self.admin().apply_topology(request)).await?;
        Ok(answer.into_inner())
    }

    /// An exchange, a work queue with its dead-letter queue, and a binding.
    fn shop(&self) -> Topology {
        let (exchange, queue) = (self.name("shop"), self.name("orders"));
        Topology {
            exchanges: vec![Exchange {
                name: exchange.clone(),
                r#type: "direct".to_owned(),
                ..Default::default()
            }],
            queues: vec![TopologyQueue {
                name: queue.clone(),
                message_ttl: seconds(60),
                ..Default::default()
            }],
            bindings: vec![Binding {
                exchange,
                queue,
                routing_key: "order".to_owned(),
                ..Default::default()
            }],
        }
    }
}

fn of<'a>(changes: &'a [TopologyChange], name: &str) -> &'a TopologyChange {
    let found = changes.iter().find(|change| change.name == name);
    found.unwrap_or_else(|| panic!("{name} is missing of {changes:?}"))
}

async fn what_is_missing_is_declared_once(on: On) {
    let office = Office::open(on).await;
    let shop = office.shop();
    let planned = office.apply(&shop, true).await.expect("valid");
    // The exchange for dead letters may be there already.
    let own = |change: &&TopologyChange| change.name.contains(&office.name(""));
    let create = |change: &TopologyChange| change.action() == Action::Create;
    assert!(
        planned.changes.iter().filter(own).all(create),
        "{planned:?}"
    );
    let missing = office.get(&shop.queues[0].name).await;
    assert_eq!(refusal(missing), refused(Code::NotFound, "QUEUE_NOT_FOUND"));

    let applied = office.apply(&shop, false).await.expect("declared");
    assert!(applied.changes.iter().filter(own).all(create));
    let request = courtier::grpc::proto::PublishRequest {
        exchange: shop.exchanges[0].name.clone(),
        routing_key: "order".to_owned(),
        message: Some(text("one")),
        ..Default::default()
    };
    office.publish(request).await.expect("routed");

    let again = office.apply(&shop, false).await.expect("nothing to do");
    let alike = |change: &&TopologyChange| match change.action() {
        Action::None => true,
        // Nobody tells of bindings.
        Action::Unknown => on == On::RabbitMq && change.name.contains(" -> "),
        _ => false,
    };
    assert_eq!(
        again.changes.iter().filter(alike).count(),
        again.changes.len()
    );
    assert_eq!(again.note.is_empty(), on != On::RabbitMq);
    assert_eq!(office.drain_bodies(&shop.queues[0].name).await, ["one"]);
}

async fn what_differs_is_explained_argument_by_argument(on: On) {
    let office = Office::open(on).await;
    let shop = office.shop();
    office.apply(&shop, false).await.expect("declared");
    let mut other = shop.clone();
    other.exchanges[0].r#type = "fanout".to_owned();
    other.queues[0].message_ttl = seconds(30);
    other.queues[0].max_length = Some(7);
    for validate_only in [true, false] {
        let answer = office.apply(&other, validate_only).await.expect("told");
        let (exchange, queue) = (
            of(&answer.changes, &shop.exchanges[0].name),
            of(&answer.changes, &shop.queues[0].name),
        );
        match (on, validate_only) {
            // Nobody can tell without asking to declare it.
            (On::RabbitMq, true) => {
                assert_eq!(queue.action(), Action::Unknown);
                assert!(answer.note.contains("management"));
            }
            (On::RabbitMq, false) => {
                assert_eq!(queue.action(), Action::Differs);
                assert!(queue.note.contains("x-m"), "{}", queue.note);
                assert_eq!(exchange.action(), Action::Differs);
            }
            (On::Embedded | On::Managed, _) => {
                assert_eq!(queue.action(), Action::Differs);
                assert_eq!(
                    differences(queue),
                    [
                        ("x-max-length", "7", "10000"),
                        ("x-message-ttl", "30000", "60000"),
                    ]
                );
                assert_eq!(differences(exchange), [("type", "fanout", "direct")]);
            }
        }
    }
    let same = office
        .apply(&shop, false)
        .await
        .expect("nothing was changed");
    assert_eq!(
        of(&same.changes, &shop.queues[0].name).action(),
        Action::None
    );
}

async fn a_bad_topology_declares_nothing(on: On) {
    let office = Office::open(on).await;
    let mut nowhere = office.shop();
    nowhere.bindings[0].exchange = office.name("nowhere");
    let mut unnamed = office.shop();
    unnamed.queues[0].name = String::new();
    let mut default = office.shop();
    default.exchanges[0].name = String::new();
    let mut kind = office.shop();
    kind.queues[0].r#type = "cube".to_owned();
    let mut priorities = office.shop();
    priorities.queues[0].max_priority = 256;
    let mut both = office.shop();
    (both.queues[0].r#type, both.queues[0].max_priority) = ("quorum".to_owned(), 5);
    for bad in [nowhere, unnamed, default, kind, priorities, both] {
        let fault = fault(&office.apply(&bad, false).await.expect_err("bad"));
        assert_eq!(fault.code, Code::InvalidArgument);
        assert!(fault.field.starts_with("topology"), "{fault:?}");
    }
    let missing = refused(Code::NotFound, "QUEUE_NOT_FOUND");
    let queue = office.name("orders");
    assert_eq!(refusal(office.get(&queue).await), missing);
}

async fn dead_letters_of_an_applied_topology_are_collected(on: On) {
    let office = Office::set_up(on, |_| {}).await;
    let shop = office.shop();
    office.apply(&shop, false).await.expect("declared");
    let letters = format!("{}.dlq", shop.queues[0].name);
    eventually("somebody collects", async || {
        let queue = office.get(&letters).await.expect("it was declared");
        queue.consumer_count == Some(1)
    })
    .await;
}

async fn the_drift_is_what_somebody_changed(on: On) {
    let parse = |text: &str| {
        let defaults = QueueDefaults {
            message_ttl: std::time::Duration::from_secs(60),
            dead_letter_ttl: std::time::Duration::from_secs(60),
        };
        Declared::parse(text, &defaults).expect("valid").topology
    };
    let id = uuid::Uuid::now_v7();
    let text = format!(
        "[[exchanges]]\nname = \"{id}-x\"\n[[queues]]\nname = \"{id}-q\"\ndead_letter = false\n\
         [[bindings]]\nexchange = \"{id}-x\"\nqueue = \"{id}-q\"\nrouting_key = \"k\""
    );
    let (file, asked) = (parse(&text), parse(&text));
    let office = Office::set_up(on, |setup| {
        setup.without_database();
        setup.topology = Some(file);
    })
    .await;
    let drift = async || {
        let asked = timely(
            office
                .admin()
                .get_topology_drift(GetTopologyDriftRequest {}),
        )
        .await;
        let changes = asked.expect("told").into_inner().changes.into_iter();
        let mut changes: Vec<_> = changes
            .map(|change| (change.action(), change.name))
            .collect();
        changes.sort();
        changes
    };
    let (exchange, queue) = (format!("{id}-x"), format!("{id}-q"));
    let binding = |key: &str| format!("{exchange} -> {queue} ({key})");
    assert_eq!(
        drift().await,
        [
            (Action::Create, queue.clone()),
            (Action::Create, exchange.clone()),
            (Action::Create, binding("k")),
        ]
    );
    office.declare(asked.clone()).await;
    if on == On::RabbitMq {
        let unknown = [exchange.clone(), binding("k"), queue.clone()];
        let mut unknown = unknown.map(|name| (Action::Unknown, name));
        unknown.sort();
        assert_eq!(drift().await, unknown);
        return;
    }
    assert_eq!(drift().await, []);
    let mut more = asked;
    more.bindings[0].routing_key = "other".to_owned();
    office.declare(more).await;
    assert_eq!(drift().await, [(Action::Extra, binding("other"))]);
}

async fn without_a_topology_file_there_is_no_drift_to_tell(on: On) {
    let office = Office::open(on).await;
    let asked = timely(
        office
            .admin()
            .get_topology_drift(GetTopologyDriftRequest {}),
    )
    .await;
    let none = refused(Code::FailedPrecondition, "NO_TOPOLOGY");
    assert_eq!(refusal(asked), none);
}

on_all! {
    what_is_missing_is_declared_once
    what_differs_is_explained_argument_by_argument
    a_bad_topology_declares_nothing
    dead_letters_of_an_applied_topology_are_collected
    the_drift_is_what_somebody_changed
    without_a_topology_file_there_is_no_drift_to_tell
}
