//! Queues, exchanges and bindings, as an administrator sees and changes them: with RabbitMQ's management API, without it, and on
//! the embedded broker.

use courtier::grpc::proto::{
    Binding, CreateBindingRequest, CreateExchangeRequest, CreateQueueRequest, CreateQueueResponse,
    DeleteBindingRequest, DeleteExchangeRequest, DeleteQueueRequest, GetBrokerStatusRequest,
    GetQueueStatsRequest, ListBindingsRequest, ListExchangesRequest, ListQueuesRequest,
    PublishRequest, Source, WatchQueueStatsRequest,
    create_queue_request::Profile,
    get_broker_status_response::{Management, link},
};
use prost_types::value::Kind;
use tonic::Code;
use tonic_types::StatusExt;

use crate::{
    front::{
        On, ack, body, fault, from, on_all, refusal, refused, seconds, text, timely, to_queue,
    },
    harness::eventually,
    office::{Office, arguments},
};

async fn counts_are_those_of_the_broker(on: On) {
    let office = Office::open(on).await;
    let queue = office.plain("q").await;
    office.fill(&queue, &["a", "b", "c"]).await;
    let found = office.get(&queue).await.expect("it is there");
    assert_eq!(
        (found.ready_count, found.consumer_count),
        (Some(3), Some(0))
    );

    let mut one = from(&[&queue]);
    one.max_outstanding = 1;
    let mut stream = office.subscribe(one).await;
    let held = stream.delivery().await;
    eventually("the counts are seen", async || {
        let found = office.get(&queue).await.expect("it is there");
        let (message_count, unacked) = match on {
            // AMQP does not tell.
            On::RabbitMq => (None, None),
            On::Embedded | On::Managed => (Some(3), Some(1)),
        };
        (found.ready_count, found.consumer_count) == (Some(2), Some(1))
            && (found.unacked_count, found.message_count) == (unacked, message_count)
    })
    .await;
    let found = office.get(&queue).await.expect("it is there");
    assert!(found.sampled_at.is_some());
    let source = match on {
        On::Embedded => Source::Embedded,
        On::RabbitMq => Source::Amqp,
        On::Managed => Source::Management,
    };
    assert_eq!(found.source(), source);
    assert_eq!(found.r#type.is_empty(), on == On::RabbitMq);
    assert_eq!(found.durable, (on != On::RabbitMq).then_some(true));
    assert_eq!(found.capacity_ratio, None, "it has no most");
    drop(held);
}

async fn what_is_not_known_is_absent_and_what_is_missing_is_not_found(on: On) {
    let office = Office::open(on).await;
    let missing = office.get(&office.name("missing")).await;
    assert_eq!(refusal(missing), refused(Code::NotFound, "QUEUE_NOT_FOUND"));
    let nameless = office.get("").await;
    let fault = fault(&nameless.expect_err("it has no name"));
    assert_eq!((fault.code, &*fault.field), (Code::InvalidArgument, "name"));
    let queue = office.plain("q").await;
    let found = office.get(&queue).await.expect("it is there");
    // Nothing was published yet.
    assert_eq!((found.publish_rate, found.ack_rate), (None, None));
    let name = queue.clone();
    let stats = timely(
        office
            .admin()
            .get_queue_stats(GetQueueStatsRequest { name }),
    )
    .await;
    let stats = stats.expect("it is there").into_inner().stats.expect("set");
    assert_eq!(stats.time_to_drain, None);
    assert_eq!(stats.failed_count, None, "the database is away");
    assert_eq!(stats.dead_letter_count, None, "there is no such queue");
}

async fn queues_are_listed_by_name_in_pages(on: On) {
    let office = Office::open(on).await;
    let mut created = Vec::new();
    for short in ["c", "a", "e", "b", "d"] {
        created.push(office.plain(short).await);
    }
    created.sort();
    for page_size in [1, 2, 5, 100] {
        assert_eq!(office.names(page_size).await, created);
    }
    let request = ListQueuesRequest {
        page_token: "x".to_owned(),
        ..Default::default()
    };
    let answer = timely(office.admin().list_queues(request)).await;
    let bad = refused(Code::InvalidArgument, "INVALID_PAGE_TOKEN");
    assert_eq!(refusal(answer), bad);
}

async fn a_work_queue_comes_with_its_dead_letter_queue(on: On) {
    let office = Office::open(on).await;
    let name = office.name("work");
    let request = CreateQueueRequest {
        name: name.clone(),
        profile: Profile::Standard.into(),
        arguments: arguments(&[("x-max-length", Kind::NumberValue(5.0))]),
        validate_only: true,
        ..Default::default()
    };
    let planned = office.create(request.clone()).await.expect("valid");
    assert!(planned.created);
    let missing = refused(Code::NotFound, "QUEUE_NOT_FOUND");
    assert_eq!(refusal(office.get(&name).await), missing);

    let request = CreateQueueRequest {
        validate_only: false,
        ..request
    };
    let created = office.create(request.clone()).await.expect("created");
    assert!(created.created);
    let number = |answer: &CreateQueueResponse, argument: &str| {
        let fields = &answer.arguments.as_ref().expect("set").fields;
        fields.get(argument).and_then(|value| value.kind.clone())
    };
    let five = Some(Kind::NumberValue(5.0));
    assert_eq!(number(&created, "x-max-length"), five);
    assert!(office.get(&format!("{name}.dlq")).await.is_ok());

    let again = office.create(request).await.expect("it is there alike");
    assert!(!again.created);

    // Five fit; a quorum queue takes a few more before it notices.
    office.fill(&name, &["1", "2", "3", "4", "5"]).await;
    let full = loop {
        let sixth = office.publish(to_queue(&name, text("6"))).await;
        if sixth.is_err() {
            break refusal(sixth);
        }
    };
    assert_eq!(full, refused(Code::ResourceExhausted, "QUEUE_FULL"));
    if on != On::RabbitMq {
        eventually("it is full", async || {
            office.get(&name).await.expect("there").capacity_ratio >= Some(1.0)
        })
        .await;
    }
}

async fn a_queue_that_differs_is_explained_and_left_alone(on: On) {
    let office = Office::open(on).await;
    let name = office.plain("q").await;
    office.fill(&name, &["kept"]).await;
    let answer = office.create(CreateQueueRequest {
        name: name.clone(),
        profile: Profile::DeadLetter.into(),
        arguments: arguments(&[("x-message-ttl", Kind::NumberValue(1_000.0))]),
        ..Default::default()
    });
    let status = answer.await.expect_err("it has another time to live");
    assert_eq!(
        (fault(&status).code, &*fault(&status).reason),
        (Code::FailedPrecondition, "DIFFERS")
    );
    let details = status.get_error_details();
    let unmet = &details
        .precondition_failure()
        .expect("it is told")
        .violations;
    assert_eq!(unmet.len(), 1);
    let told = &unmet[0].description;
    assert!(
        told.contains("1000") && told.contains("604800000"),
        "{told}"
    );
    if on != On::RabbitMq {
        assert_eq!(unmet[0].subject, "x-message-ttl");
    }
    assert_eq!(office.drain_bodies(&name).await, ["kept"]);
}

async fn arguments_that_the_broker_does_not_take_make_nothing(on: On) {
    let office = Office::open(on).await;
    let name = office.name("bad");
    let answer = office.create(CreateQueueRequest {
        name: name.clone(),
        profile: Profile::Standard.into(),
        arguments: arguments(&[("x-max-length", Kind::StringValue("many".to_owned()))]),
        ..Default::default()
    });
    let bad = refused(Code::InvalidArgument, "INVALID_REQUEST");
    assert_eq!(refusal(answer.await), bad);
    let missing = refused(Code::NotFound, "QUEUE_NOT_FOUND");
    assert_eq!(refusal(office.get(&name).await), missing);
    assert_eq!(refusal(office.get(&format!("{name}.dlq")).await), missing);
    office.neighbours_are_unharmed().await;
}

/// Of a client that is newer than the gateway.
async fn a_profile_that_nobody_knows_makes_nothing(on: On) {
    let office = Office::open(on).await;
    let name = office.name("newer");
    let answer = office.create(CreateQueueRequest {
        name: name.clone(),
        profile: 99,
        ..Default::default()
    });
    let bad = refused(Code::InvalidArgument, "INVALID_REQUEST");
    assert_eq!(refusal(answer.await), bad);
    let missing = refused(Code::NotFound, "QUEUE_NOT_FOUND");
    assert_eq!(refusal(office.get(&name).await), missing);
}

async fn the_standard_exchanges_are_used_like_any_other(on: On) {
    let office = Office::open(on).await;
    let queue = office.queue("work").await;
    let key = office.name("key");
    let binding = Binding {
        exchange: "amq.topic".to_owned(),
        queue: queue.clone(),
        routing_key: format!("{key}.*"),
        ..Default::default()
    };
    let request = CreateBindingRequest {
        binding: Some(binding.clone()),
    };
    timely(office.admin().create_binding(request))
        .await
        .expect("bound");
    let published = PublishRequest {
        exchange: "amq.topic".to_owned(),
        ..to_queue(&format!("{key}.created"), text("x"))
    };
    office.publish(published.clone()).await.expect("confirmed");
    assert_eq!(office.drain_bodies(&queue).await, ["x"]);
    let request = DeleteBindingRequest {
        binding: Some(binding),
    };
    timely(office.admin().delete_binding(request))
        .await
        .expect("unbound");
    let unroutable = refused(Code::FailedPrecondition, "UNROUTABLE");
    assert_eq!(refusal(office.publish(published).await), unroutable);
}

async fn names_that_are_not_for_clients_are_refused(on: On) {
    let office = Office::open(on).await;
    let forbidden = refused(Code::PermissionDenied, "FORBIDDEN");
    let bad = refused(Code::InvalidArgument, "INVALID_REQUEST");
    for (name, refusal_is) in [("amq.mine", &forbidden), ("", &bad), ("a\r\nb", &bad)] {
        let name = name.to_owned();
        let create = CreateQueueRequest {
            name: name.clone(),
            ..Default::default()
        };
        let delete = DeleteQueueRequest {
            name: name.clone(),
            ..Default::default()
        };
        assert_eq!(refusal(office.create(create).await), *refusal_is);
        assert_eq!(refusal(office.delete(delete).await), *refusal_is);
        assert_eq!(refusal(office.purge(&name, &name).await), *refusal_is);
        let exchange = CreateExchangeRequest {
            name: name.clone(),
            ..Default::default()
        };
        let answer = timely(office.admin().create_exchange(exchange)).await;
        assert_eq!(refusal(answer), *refusal_is);
        let exchange = DeleteExchangeRequest {
            name,
            ..Default::default()
        };
        let answer = timely(office.admin().delete_exchange(exchange)).await;
        assert_eq!(refusal(answer), *refusal_is);
    }
    office.neighbours_are_unharmed().await;
}

async fn a_queue_is_deleted_under_conditions(on: On) {
    let office = Office::open(on).await;
    let name = office.plain("q").await;
    office.fill(&name, &["a"]).await;
    let delete = |if_unused, if_empty| DeleteQueueRequest {
        name: name.clone(),
        if_unused,
        if_empty,
        ..Default::default()
    };
    let mut stream = office.subscribe(from(&[&name])).await;
    let held = stream.delivery().await;
    let in_use = refused(Code::FailedPrecondition, "QUEUE_IN_USE");
    assert_eq!(refusal(office.delete(delete(true, false)).await), in_use);
    stream.ack(&[&held.ack_id]).await;
    stream.half_close();
    stream.end().await.expect("it ends well");
    office.fill(&name, &["b", "c"]).await;
    let not_empty = refused(Code::FailedPrecondition, "QUEUE_NOT_EMPTY");
    assert_eq!(refusal(office.delete(delete(false, true)).await), not_empty);
    assert_eq!(office.ready(&name).await, 2);
    assert_eq!(
        office.delete(delete(true, false)).await.expect("deleted"),
        2
    );
    let missing = refused(Code::NotFound, "QUEUE_NOT_FOUND");
    assert_eq!(refusal(office.delete(delete(false, false)).await), missing);
    assert_eq!(refusal(office.delete(delete(true, true)).await), missing);
    if on == On::RabbitMq {
        // It knows of none any more, and nobody tells whether there are others.
        let mut admin = office.admin();
        let listed = admin.list_queues(ListQueuesRequest::default());
        let off = refused(Code::FailedPrecondition, "MANAGEMENT_OFF");
        assert_eq!(refusal(timely(listed).await), off);
    } else {
        assert!(office.names(100).await.is_empty());
    }
}

async fn a_deleted_queue_ends_its_subscriptions(on: On) {
    let office = Office::open(on).await;
    let name = office.plain("q").await;
    let mut stream = office.subscribe(from(&[&name])).await;
    let delete = DeleteQueueRequest {
        name,
        ..Default::default()
    };
    assert_eq!(office.delete(delete).await.expect("deleted"), 0);
    let end = refusal(stream.end().await);
    assert_eq!(end, refused(Code::NotFound, "QUEUE_DELETED"));
}

async fn a_purge_wants_the_name_twice_and_leaves_what_consumers_hold(on: On) {
    let office = Office::open(on).await;
    let name = office.plain("q").await;
    office.fill(&name, &["a", "b", "c"]).await;
    let bad = refused(Code::InvalidArgument, "INVALID_REQUEST");
    assert_eq!(refusal(office.purge(&name, "").await), bad);
    assert_eq!(refusal(office.purge(&name, "another").await), bad);
    assert_eq!(office.ready(&name).await, 3);
    let mut one = from(&[&name]);
    one.max_outstanding = 1;
    let mut stream = office.subscribe(one).await;
    let held = stream.delivery().await;
    assert_eq!(office.purge(&name, &name).await.expect("purged"), 2);
    assert_eq!(office.ready(&name).await, 0);
    stream.send(ack(&[&held.ack_id]));
    stream.half_close();
    let missing = office.name("missing");
    let not_found = refused(Code::NotFound, "QUEUE_NOT_FOUND");
    assert_eq!(refusal(office.purge(&missing, &missing).await), not_found);
}

async fn an_exchange_leads_where_it_is_bound(on: On) {
    let office = Office::open(on).await;
    let (exchange, queue) = (office.name("x"), office.plain("q").await);
    let create = |kind: &str| CreateExchangeRequest {
        name: exchange.clone(),
        r#type: kind.to_owned(),
        ..Default::default()
    };
    let created = timely(office.admin().create_exchange(create("topic"))).await;
    assert!(created.expect("created").into_inner().created);
    let again = timely(office.admin().create_exchange(create(""))).await;
    assert!(!again.expect("it is there").into_inner().created);
    let other = timely(office.admin().create_exchange(create("fanout"))).await;
    let differs = refused(Code::FailedPrecondition, "DIFFERS");
    assert_eq!(refusal(other), differs);
    let unknown = timely(office.admin().create_exchange(create("telepathy"))).await;
    let bad = refused(Code::InvalidArgument, "INVALID_REQUEST");
    assert_eq!(refusal(unknown), bad);

    let binding = Binding {
        exchange: exchange.clone(),
        queue: queue.clone(),
        routing_key: "order.*".to_owned(),
        ..Default::default()
    };
    let bind = |binding: &Binding| CreateBindingRequest {
        binding: Some(binding.clone()),
    };
    timely(office.admin().create_binding(bind(&binding)))
        .await
        .expect("bound");
    let publish = |key: &str| courtier::grpc::proto::PublishRequest {
        exchange: exchange.clone(),
        routing_key: key.to_owned(),
        message: Some(text("here")),
        ..Default::default()
    };
    office
        .publish(publish("order.created"))
        .await
        .expect("routed");
    let unroutable = refused(Code::FailedPrecondition, "UNROUTABLE");
    assert_eq!(refusal(office.publish(publish("other")).await), unroutable);

    let list = ListBindingsRequest {
        exchange: exchange.clone(),
        ..Default::default()
    };
    let listed = timely(office.admin().list_bindings(list)).await;
    if on == On::RabbitMq {
        let off = refused(Code::FailedPrecondition, "MANAGEMENT_OFF");
        assert_eq!(refusal(listed), off);
    } else {
        let listed = listed.expect("listed").into_inner();
        assert_eq!(listed.bindings, std::slice::from_ref(&binding));
    }
    let list = ListExchangesRequest {
        name_contains: office.name(""),
        ..Default::default()
    };
    let listed = timely(office.admin().list_exchanges(list)).await;
    let listed = listed.expect("listed").into_inner();
    let names: Vec<_> = listed
        .exchanges
        .iter()
        .map(|one| one.name.clone())
        .collect();
    assert_eq!(names, std::slice::from_ref(&exchange));
    assert_eq!(listed.partial, on == On::RabbitMq);

    let delete = |if_unused| DeleteExchangeRequest {
        name: exchange.clone(),
        if_unused,
    };
    let in_use = timely(office.admin().delete_exchange(delete(true))).await;
    let refusal_is = refused(Code::FailedPrecondition, "EXCHANGE_IN_USE");
    assert_eq!(refusal(in_use), refusal_is);
    for _ in 0..2 {
        let unbind = DeleteBindingRequest {
            binding: Some(binding.clone()),
        };
        timely(office.admin().delete_binding(unbind))
            .await
            .expect("gone");
    }
    assert_eq!(
        refusal(office.publish(publish("order.created")).await),
        unroutable
    );
    timely(office.admin().delete_exchange(delete(true)))
        .await
        .expect("deleted");
    let missing = refused(Code::NotFound, "EXCHANGE_NOT_FOUND");
    let gone = timely(office.admin().delete_exchange(delete(false))).await;
    assert_eq!(refusal(gone), missing);
    let bound = timely(office.admin().create_binding(bind(&binding))).await;
    assert_eq!(refusal(bound), missing);
    assert_eq!(office.drain_bodies(&queue).await, ["here"]);
}

async fn a_headers_exchange_compares_numbers_as_numbers(on: On) {
    let office = Office::open(on).await;
    let (exchange, queue) = (office.name("x"), office.plain("q").await);
    let create = CreateExchangeRequest {
        name: exchange.clone(),
        r#type: "headers".to_owned(),
        ..Default::default()
    };
    timely(office.admin().create_exchange(create))
        .await
        .expect("created");
    let level = || arguments(&[("level", Kind::NumberValue(5.0))]);
    let binding = Binding {
        exchange: exchange.clone(),
        queue: queue.clone(),
        arguments: level(),
        ..Default::default()
    };
    let bind = CreateBindingRequest {
        binding: Some(binding),
    };
    timely(office.admin().create_binding(bind))
        .await
        .expect("bound");
    let publish = |headers| courtier::grpc::proto::PublishRequest {
        exchange: exchange.clone(),
        message: Some(courtier::grpc::proto::Message {
            headers,
            ..text("five")
        }),
        ..Default::default()
    };
    office.publish(publish(level())).await.expect("routed");
    let words = arguments(&[("level", Kind::StringValue("5".to_owned()))]);
    let unroutable = refused(Code::FailedPrecondition, "UNROUTABLE");
    assert_eq!(refusal(office.publish(publish(words)).await), unroutable);
    let mut stream = office.subscribe(from(&[&queue])).await;
    assert_eq!(body(&stream.delivery().await), "five");
}

async fn a_watch_tells_at_once_and_leaves_out_what_is_deleted(on: On) {
    let office = Office::open(on).await;
    let (kept, gone) = (office.plain("kept").await, office.plain("gone").await);
    let watch = |names: &[&String], interval| WatchQueueStatsRequest {
        names: names.iter().map(|name| (*name).clone()).collect(),
        interval,
    };
    let request = watch(&[&kept, &gone], seconds(1));
    let watched = timely(office.admin().watch_queue_stats(request)).await;
    let mut watched = watched.expect("begun").into_inner();
    let mut names = async || {
        let response = timely(watched.message()).await.expect("it goes on");
        let stats = response.expect("it has no end").stats.into_iter();
        let queues = stats.map(|stats| stats.queue.expect("set"));
        queues.map(|queue| queue.name).collect::<Vec<_>>()
    };
    assert_eq!(names().await, [gone.clone(), kept.clone()]);
    let delete = DeleteQueueRequest {
        name: gone.clone(),
        ..Default::default()
    };
    office.delete(delete).await.expect("deleted");
    while names().await != [kept.clone()] {}

    let missing = timely(office.admin().watch_queue_stats(watch(&[&gone], None))).await;
    let not_found = refused(Code::NotFound, "QUEUE_NOT_FOUND");
    assert_eq!(refusal(missing), not_found);
    let hasty = prost_types::Duration {
        seconds: 0,
        nanos: 1,
    };
    let hasty = timely(office.admin().watch_queue_stats(watch(&[], Some(hasty)))).await;
    let bad = refused(Code::InvalidArgument, "INVALID_REQUEST");
    assert_eq!(refusal(hasty), bad);

    office.begin_stop();
    let stopping = loop {
        match timely(watched.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it says why it ends"),
            Err(status) => break fault(&status),
        }
    };
    assert_eq!(stopping.reason, "GATEWAY_STOPPING");
}

async fn the_broker_tells_how_it_is(on: On) {
    let office = Office::open(on).await;
    let status = timely(office.admin().get_broker_status(GetBrokerStatusRequest {})).await;
    let status = status.expect("told").into_inner();
    let up = status
        .links
        .iter()
        .all(|one| one.state() == link::State::Up);
    assert!(up && status.links.len() == 2, "{:?}", status.links);
    match on {
        On::Embedded => {
            assert_eq!(status.product, "embedded");
            assert_eq!(status.management(), Management::NotNeeded);
        }
        On::RabbitMq => {
            assert_eq!(status.management(), Management::Off);
            assert_eq!((status.nodes.len(), status.connection_count), (0, None));
        }
        On::Managed => {
            assert_eq!(status.management(), Management::Up);
            assert!(!status.version.is_empty());
            assert!(status.nodes[0].running && !status.nodes[0].memory_alarm);
            eventually(
                "a broker that has just started has looked at its memory",
                async || {
                    let mut admin = office.admin();
                    let status = admin.get_broker_status(GetBrokerStatusRequest {}).await;
                    let status = status.expect("told").into_inner();
                    status.nodes[0].memory_used > Some(0)
                },
            )
            .await;
        }
    }
}

on_all! {
    counts_are_those_of_the_broker
    what_is_not_known_is_absent_and_what_is_missing_is_not_found
    queues_are_listed_by_name_in_pages
    a_work_queue_comes_with_its_dead_letter_queue
    a_queue_that_differs_is_explained_and_left_alone
    arguments_that_the_broker_does_not_take_make_nothing
    a_profile_that_nobody_knows_makes_nothing
    names_that_are_not_for_clients_are_refused
    the_standard_exchanges_are_used_like_any_other
    a_queue_is_deleted_under_conditions
    a_deleted_queue_ends_its_subscriptions
    a_purge_wants_the_name_twice_and_leaves_what_consumers_hold
    an_exchange_leads_where_it_is_bound
    a_headers_exchange_compares_numbers_as_numbers
    a_watch_tells_at_once_and_leaves_out_what_is_deleted
    the_broker_tells_how_it_is
}
