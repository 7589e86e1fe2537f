//! An administrator at a gateway.

use std::ops::Deref;

use courtier::grpc::proto::{
    CreateQueueRequest, CreateQueueResponse, DeleteQueueRequest, GetQueueRequest,
    ListQueuesRequest, PurgeQueueRequest, Queue, TopologyChange, create_queue_request::Profile,
    queue_admin_client::QueueAdminClient,
};
use prost_types::{Struct, Value, value::Kind};
use tonic::{Status, transport::Channel};

use crate::{
    front::{Front, On, timely},
    harness::Setup,
};

/// An administrator at a gateway.
pub struct Office {
    front: Front,
    pub admin: QueueAdminClient<Channel>,
    pub on: On,
}

impl Deref for Office {
    type Target = Front;

    fn deref(&self) -> &Front {
        &self.front
    }
}

impl Office {
    pub async fn open(on: On) -> Self {
        Self::of(on, on.gateway().await).await
    }

    pub async fn set_up(on: On, change: impl FnOnce(&mut Setup)) -> Self {
        Self::of(on, on.gateway_set_up(change).await).await
    }

    pub async fn of(on: On, front: Front) -> Self {
        let admin = QueueAdminClient::new(front.channel().await);
        Self { front, admin, on }
    }

    pub fn admin(&self) -> QueueAdminClient<Channel> {
        self.admin.clone()
    }

    /// Waits until the gateway has stopped.
    pub async fn stop(self) {
        drop(self.admin);
        self.front.stopped().await.expect("it stops in order");
    }

    pub async fn get(&self, name: &str) -> Result<Queue, Status> {
        let name = name.to_owned();
        let answer = timely(self.admin().get_queue(GetQueueRequest { name })).await?;
        Ok(answer.into_inner().queue.expect("set"))
    }

    pub async fn ready(&self, name: &str) -> u64 {
        let queue = self.get(name).await.expect("it is there");
        queue.ready_count.expect("AMQP tells")
    }

    pub async fn create(&self, request: CreateQueueRequest) -> Result<CreateQueueResponse, Status> {
        let answer = timely(self.admin().create_queue(request)).await?;
        Ok(answer.into_inner())
    }

    pub async fn delete(&self, request: DeleteQueueRequest) -> Result<u64, Status> {
        let answer = timely(self.admin().delete_queue(request)).await?;
        Ok(answer.into_inner().deleted_message_count)
    }

    pub async fn purge(&self, name: &str, confirm_name: &str) -> Result<u64, Status> {
        let request = PurgeQueueRequest {
            name: name.to_owned(),
            confirm_name: confirm_name.to_owned(),
        };
        let answer = timely(self.admin().purge_queue(request)).await?;
        Ok(answer.into_inner().purged_count)
    }

    /// The names of all queues of this test, page by page.
    pub async fn names(&self, page_size: i32) -> Vec<String> {
        let mut request = ListQueuesRequest {
            name_contains: self.name("").to_uppercase(),
            page_size,
            ..Default::default()
        };
        let mut names = Vec::new();
        loop {
            let answer = timely(self.admin().list_queues(request.clone())).await;
            let answer = answer.expect("listed").into_inner();
            assert_eq!(answer.partial, self.on == On::RabbitMq);
            assert_eq!(answer.note.is_empty(), self.on != On::RabbitMq);
            assert!(answer.queues.len() <= usize::try_from(page_size).expect("positive"));
            names.extend(answer.queues.into_iter().map(|queue| queue.name));
            if answer.next_page_token.is_empty() {
                return names;
            }
            request.page_token = answer.next_page_token;
        }
    }

    /// Creates a queue as it is, without a dead-letter queue.
    pub async fn plain(&self, short: &str) -> String {
        let name = self.name(short);
        let created = self.create(CreateQueueRequest {
            name: name.clone(),
            profile: Profile::DeadLetter.into(),
            ..Default::default()
        });
        assert!(created.await.expect("created").created);
        name
    }
}

pub fn arguments(arguments: &[(&str, Kind)]) -> Option<Struct> {
    let fields = arguments.iter().map(|(name, kind)| {
        let kind = Some(kind.clone());
        ((*name).to_owned(), Value { kind })
    });
    Some(Struct {
        fields: fields.collect(),
    })
}

/// What is said of a change: kind and name are left out where there is one only.
pub fn differences(change: &TopologyChange) -> Vec<(&str, &str, &str)> {
    let all = change.differences.iter();
    all.map(|one| (&*one.argument, &*one.wanted, &*one.actual))
        .collect()
}
