//! Exchanges of the broker's plugins: the broker decides whether it has them, and an unknown type harms nobody.

use courtier::{
    broker::rabbitmq::ManagementAt,
    grpc::proto::{
        ApplyTopologyRequest, Binding, CreateBindingRequest, CreateExchangeRequest, Exchange,
        PublishRequest, Topology, TopologyQueue,
    },
    metrics::Metrics,
};
use prost_types::value::Kind;
use tonic::{Code, Status};

use crate::{
    front::{Front, On, body, from, on_both, refusal, refused, text, timely},
    harness::{PATIENCE, connect_counted},
    instance::Instance,
    office::{Office, arguments},
    process::get,
};

impl Office {
    async fn create_exchange(&self, request: CreateExchangeRequest) -> Result<bool, Status> {
        let answer = timely(self.admin().create_exchange(request)).await?;
        Ok(answer.into_inner().created)
    }
}

/// A gateway whose connections are counted.
async fn counted(on: On) -> Office {
    let front = match on {
        On::Embedded => return Office::open(on).await,
        On::RabbitMq | On::Managed => {
            let url = std::env::var("COURTIER_TEST_AMQP_URL").expect("set by make test");
            let metrics = Metrics::default();
            let broker = connect_counted(&url, ManagementAt::Off, &metrics);
            assert!(broker.connected(PATIENCE).await);
            Front::of(broker, None, |setup| {
                setup.without_database();
                setup.metrics = metrics;
            })
            .await
        }
    };
    Office::of(on, front).await
}

async fn a_type_that_the_broker_does_not_know_harms_nobody(on: On) {
    let office = counted(on).await;
    let queue = office.plain("q").await;
    let mut stream = office.subscribe(from(&[&queue])).await;
    for kind in ["x-consistent-hash", "x-nobody-has-this"] {
        for n in 0..5 {
            let name = office.name(&format!("{kind}-{n}"));
            let answer = office.create_exchange(CreateExchangeRequest {
                name: name.clone(),
                r#type: kind.to_owned(),
                ..Default::default()
            });
            let status = answer.await.expect_err("there is no such type");
            let advice = match (on, kind) {
                (On::Embedded, _) => "embedded broker",
                (_, "x-consistent-hash") => "rabbitmq_consistent_hash_exchange",
                _ => "x-nobody-has-this",
            };
            assert!(status.message().contains(advice), "{status:?}");
            let bad = refused(Code::InvalidArgument, "INVALID_REQUEST");
            assert_eq!(refusal::<()>(Err(status)), bad);
            let missing = office.publish(PublishRequest {
                exchange: name,
                message: Some(text("x")),
                ..Default::default()
            });
            let not_found = refused(Code::NotFound, "EXCHANGE_NOT_FOUND");
            assert_eq!(refusal(missing.await), not_found);
        }
    }
    office.fill(&queue, &["served"]).await;
    assert_eq!(body(&stream.delivery().await), "served");
    let figures = get(&office.address, "/metrics").await.expect("answered");
    let again = figures
        .lines()
        .filter(|line| line.starts_with("courtier_broker_reconnects_total"));
    let again: Vec<_> = again.filter(|line| !line.ends_with(" 0")).collect();
    assert!(again.is_empty(), "{again:?}");
}

async fn the_rest_of_a_topology_is_declared_without_it(on: On) {
    let office = Office::open(on).await;
    let (odd, exchange, queue) = (office.name("odd"), office.name("x"), office.name("q"));
    let of = |name: &str, kind: &str| Exchange {
        name: name.to_owned(),
        r#type: kind.to_owned(),
        ..Default::default()
    };
    let bound = |exchange: &str| Binding {
        exchange: exchange.to_owned(),
        queue: queue.clone(),
        routing_key: "1".to_owned(),
        ..Default::default()
    };
    let topology = Topology {
        exchanges: vec![of(&odd, "x-consistent-hash"), of(&exchange, "direct")],
        queues: vec![TopologyQueue {
            name: queue.clone(),
            dead_letter: Some(false),
            ..Default::default()
        }],
        bindings: vec![bound(&odd), bound(&exchange)],
    };
    let request = ApplyTopologyRequest {
        topology: Some(topology),
        validate_only: false,
    };
    let status = timely(office.admin().apply_topology(request)).await;
    let status = status.expect_err("one exchange of it cannot be made");
    assert!(status.message().contains(&odd), "{status:?}");
    let publish = PublishRequest {
        exchange,
        routing_key: "1".to_owned(),
        message: Some(text("routed")),
        ..Default::default()
    };
    office.publish(publish).await.expect("routed");
    assert_eq!(office.drain_bodies(&queue).await, ["routed"]);
}

on_both! {
    a_type_that_the_broker_does_not_know_harms_nobody
    the_rest_of_a_topology_is_declared_without_it
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn an_exchange_of_a_plugin_is_made_and_routes_as_the_plugin_does() {
    let server = Instance::start_with(|dir| {
        let plugins = dir.join("extra.plugins");
        std::fs::write(plugins, "rabbitmq_consistent_hash_exchange\n").expect("it is writable");
        String::new()
    })
    .await;
    let broker = connect_counted(&server.url, ManagementAt::Off, &Metrics::default());
    assert!(broker.connected(PATIENCE).await);
    let front = Front::of(broker, None, |setup| setup.without_database()).await;
    let office = Office::of(On::RabbitMq, front).await;
    let (exchange, queues) = (
        office.name("hash"),
        [office.plain("a").await, office.plain("b").await],
    );
    let create = |kind: &str| CreateExchangeRequest {
        name: exchange.clone(),
        r#type: kind.to_owned(),
        arguments: arguments(&[("hash-header", Kind::StringValue("customer".to_owned()))]),
    };
    let hash = create("x-consistent-hash");
    assert!(office.create_exchange(hash.clone()).await.expect("created"));
    assert!(!office.create_exchange(hash).await.expect("it is there"));
    // Of its arguments alone RabbitMQ does not tell.
    let other = office.create_exchange(create("direct"));
    let differs = refused(Code::FailedPrecondition, "DIFFERS");
    assert_eq!(refusal(other.await), differs);
    for queue in &queues {
        let bind = CreateBindingRequest {
            binding: Some(Binding {
                exchange: exchange.clone(),
                queue: queue.clone(),
                routing_key: "1".to_owned(),
                ..Default::default()
            }),
        };
        timely(office.admin().create_binding(bind))
            .await
            .expect("bound");
    }
    for customer in 0..100 {
        let headers = arguments(&[("customer", Kind::StringValue(customer.to_string()))]);
        let publish = PublishRequest {
            exchange: exchange.clone(),
            message: Some(courtier::grpc::proto::Message {
                headers,
                ..text("x")
            }),
            ..Default::default()
        };
        office.publish(publish).await.expect("routed");
    }
    let [a, b] = [
        office.ready(&queues[0]).await,
        office.ready(&queues[1]).await,
    ];
    assert!(a + b == 100 && a > 0 && b > 0, "{a} and {b}");
}
