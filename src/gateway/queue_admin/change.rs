//! Changes. Each is in the log as an audit event, and so is each that was refused.

use super::{
    Error, QueueAdmin, bound_exchange, fetchable, own_exchange, own_queue,
    plan::{Action, Change, correct},
    to_the_end,
};
use crate::{
    broker::{
        self, Entity,
        admin::OnlyIf,
        topology::{
            Binding, Exchange, ExchangeKind, Queue, Topology,
            file::{File, FileQueue},
        },
    },
    gateway::validate::Invalid,
    message::Table,
    names, text,
};

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// A work queue, with its dead-letter queue.
    Standard,
    /// A queue for dead letters.
    DeadLetter,
}

/// A queue that is there.
#[derive(Clone, Debug)]
pub struct Created {
    pub created: bool,
    pub arguments: Table,
    pub changes: Vec<Change>,
}

/// Bytes of a target or an error in an audit line. A name that is refused may be of any length.
const MAX_NOTED: usize = 1024;

/// Carries a change out [`to_the_end`], and writes its line in the log, whatever became of it. The caller goes there as soon as
/// callers have names.
pub(super) async fn audited<T: Send + 'static>(
    action: &'static str,
    target: String,
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    let target = text::cut(&target, MAX_NOTED);
    to_the_end(async move {
        let done = work.await;
        match &done {
            Ok(_) => tracing::info!(target: "courtier::audit", action, target, "done"),
            Err(error) => {
                let error = text::cut(&error.to_string(), MAX_NOTED);
                tracing::info!(target: "courtier::audit", action, target, %error, "not done");
            }
        }
        done
    })
    .await
}

impl QueueAdmin {
    /// Creates a queue, unless it is there and alike. `others`: arguments in place of the profile's.
    pub async fn create_queue(
        &self,
        name: &str,
        profile: Profile,
        others: Table,
        validate_only: bool,
    ) -> Result<Created, Error> {
        let (admin, target) = (self.clone(), name.to_owned());
        let name = target.clone();
        let work = async move {
            let created = admin.create_queue_now(&name, profile, others, validate_only);
            created.await
        };
        if validate_only {
            return work.await;
        }
        audited("create queue", target, work).await
    }

    async fn create_queue_now(
        &self,
        name: &str,
        profile: Profile,
        others: Table,
        validate_only: bool,
    ) -> Result<Created, Error> {
        own_queue("name", name)?;
        let topology = self.profile(name, profile, others)?;
        let is_it = |queue: &&Queue| queue.name == name;
        let Some(queue) = topology.queues.iter().find(is_it).cloned() else {
            return Err(Invalid::field("name", "must name a queue").into());
        };
        let mut changes = self.plan(&topology).await?.changes;
        let of_it = |change: &&Change| change.what == Entity::Queue && change.name == name;
        let planned = changes.iter().find(of_it).cloned();
        if let Some(differs) = planned.clone().filter(|one| one.action == Action::Differs) {
            return Err(Error::Differs(differs));
        }
        if !validate_only {
            // First alone: what comes with it is not made for a queue that the broker refuses.
            let alone = Topology {
                queues: vec![queue.clone()],
                ..Topology::default()
            };
            let differences = self.broker.declare(&alone).await?;
            if let Some(difference) = differences.into_iter().next() {
                return Err(match planned {
                    Some(known) if known.action != Action::Create => Error::Differs(Change {
                        action: Action::Differs,
                        note: difference.detail,
                        ..known
                    }),
                    _ => Error::Refused(difference.detail),
                });
            }
            correct(&mut changes, &self.broker.declare(&topology).await?);
            self.known.add(&topology);
            if profile == Profile::Standard {
                self.failed.collectors.ensure(name);
            }
        }
        Ok(Created {
            created: planned.is_some_and(|one| one.action == Action::Create),
            arguments: queue.arguments(),
            changes,
        })
    }

    fn profile(&self, name: &str, profile: Profile, others: Table) -> Result<Topology, Error> {
        let mut topology = match profile {
            Profile::Standard => {
                let file = File {
                    queues: vec![FileQueue::work(name)],
                    ..File::default()
                };
                let invalid = |bad| Invalid::field("name", format!("{bad}"));
                file.complete(&self.defaults).map_err(invalid)?.topology
            }
            Profile::DeadLetter => Topology {
                queues: vec![Queue::dead_letters(name, self.defaults.dead_letter_ttl)],
                ..Topology::default()
            },
        };
        for queue in topology.queues.iter_mut().filter(|one| one.name == name) {
            queue.others.clone_from(&others);
        }
        Ok(topology)
    }

    /// Deletes a queue; how many messages that was.
    pub async fn delete_queue(&self, name: &str, only: OnlyIf) -> Result<u64, Error> {
        let (admin, name) = (self.clone(), name.to_owned());
        audited("delete queue", name.clone(), async move {
            own_queue("name", &name)?;
            Ok(admin.broker.admin().delete_queue(&name, only).await?)
        })
        .await
    }

    /// Deletes what is ready in a queue; how many messages that was. `confirm_name` must say the name again.
    pub async fn purge_queue(&self, name: &str, confirm_name: &str) -> Result<u64, Error> {
        let is_confirmed = name == confirm_name;
        let (admin, name) = (self.clone(), name.to_owned());
        audited("purge queue", name.clone(), async move {
            own_queue("name", &name)?;
            if !is_confirmed {
                let problem = "must be the queue's name again: a purge cannot be taken back";
                return Err(Invalid::field("confirm_name", problem).into());
            }
            let admin = admin.broker.admin();
            fetchable(&admin.queue(&name).await?)?;
            Ok(admin.purge_queue(&name).await?)
        })
        .await
    }

    /// Creates an exchange, unless it is there and alike; whether it was missing.
    pub async fn create_exchange(&self, name: &str, kind: ExchangeKind) -> Result<bool, Error> {
        let (admin, name) = (self.clone(), name.to_owned());
        audited("create exchange", name.clone(), async move {
            own_exchange("name", &name)?;
            let topology = Topology {
                exchanges: vec![Exchange { name, kind }],
                ..Topology::default()
            };
            let mut plan = admin.plan(&topology).await?;
            let missing = plan.changes.iter().any(|one| one.action == Action::Create);
            correct(&mut plan.changes, &admin.broker.declare(&topology).await?);
            let differs = plan
                .changes
                .into_iter()
                .find(|one| one.action == Action::Differs);
            if let Some(differs) = differs {
                return Err(Error::Differs(differs));
            }
            admin.known.add(&topology);
            Ok(missing)
        })
        .await
    }

    /// Deletes an exchange.
    pub async fn delete_exchange(&self, name: &str, only_if_unused: bool) -> Result<(), Error> {
        let (admin, name) = (self.clone(), name.to_owned());
        audited("delete exchange", name.clone(), async move {
            own_exchange("name", &name)?;
            let admin = admin.broker.admin();
            Ok(admin.delete_exchange(&name, only_if_unused).await?)
        })
        .await
    }

    /// Binds a queue.
    pub async fn bind(&self, binding: Binding) -> Result<(), Error> {
        let admin = self.clone();
        audited("bind", binding.to_string(), async move {
            admin.check_ends(&binding).await?;
            let topology = Topology {
                bindings: vec![binding],
                ..Topology::default()
            };
            admin.broker.declare(&topology).await?;
            Ok(())
        })
        .await
    }

    /// Removes a binding.
    pub async fn unbind(&self, binding: Binding) -> Result<(), Error> {
        let admin = self.clone();
        audited("unbind", binding.to_string(), async move {
            admin.check_ends(&binding).await?;
            Ok(admin.broker.admin().unbind(&binding).await?)
        })
        .await
    }

    /// Says which end of a binding is missing.
    async fn check_ends(&self, binding: &Binding) -> Result<(), Error> {
        bound_exchange("binding.exchange", &binding.exchange)?;
        own_queue("binding.queue", &binding.queue)?;
        names::routing_key(&binding.routing_key)
            .map_err(|refused| Invalid::field("binding.routing_key", refused.to_string()))?;
        let admin = self.broker.admin();
        let (exchange, queue) = tokio::join!(
            admin.exchange(&binding.exchange),
            admin.queue(&binding.queue)
        );
        exchange?;
        match queue {
            // To bind it is its owner's business; that it is there is all that matters here.
            Ok(_) | Err(broker::Error::Locked { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
