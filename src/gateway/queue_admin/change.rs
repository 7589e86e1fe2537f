//! Changes. Each is in the log as an audit event, and so is each that was refused.

use std::fmt::Display;

use super::{
    Error, QueueAdmin, own_exchange, own_queue,
    plan::{Action, Change, correct},
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
    names,
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

/// One line a change, whatever became of it. The caller goes here as soon as callers have names.
pub(super) fn audit<T, E: Display>(action: &'static str, target: &str, done: &Result<T, E>) {
    match done {
        Ok(_) => tracing::info!(target: "courtier::audit", action, target, "done"),
        Err(error) => {
            tracing::info!(target: "courtier::audit", action, target, %error, "not done");
        }
    }
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
        let created = self.create_queue_unaudited(name, profile, others, validate_only);
        let created = created.await;
        if !validate_only {
            audit("create queue", name, &created);
        }
        created
    }

    async fn create_queue_unaudited(
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
                    Some(known) if known.action == Action::Unknown => Error::Differs(Change {
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
        let deleted = async {
            own_queue("name", name)?;
            Ok(self.broker.admin().delete_queue(name, only).await?)
        };
        let deleted = deleted.await;
        audit("delete queue", name, &deleted);
        deleted
    }

    /// Deletes what is ready in a queue; how many messages that was. `confirm_name` must say the name again.
    pub async fn purge_queue(&self, name: &str, confirm_name: &str) -> Result<u64, Error> {
        let purged = async {
            own_queue("name", name)?;
            if name != confirm_name {
                let problem = "must be the queue's name again: a purge cannot be taken back";
                return Err(Invalid::field("confirm_name", problem).into());
            }
            Ok(self.broker.admin().purge_queue(name).await?)
        };
        let purged = purged.await;
        audit("purge queue", name, &purged);
        purged
    }

    /// Creates an exchange, unless it is there and alike; whether it was missing.
    pub async fn create_exchange(&self, name: &str, kind: ExchangeKind) -> Result<bool, Error> {
        let created = async {
            own_exchange("name", name)?;
            let topology = Topology {
                exchanges: vec![Exchange {
                    name: name.to_owned(),
                    kind,
                }],
                ..Topology::default()
            };
            let mut plan = self.plan(&topology).await?;
            let missing = plan.changes.iter().any(|one| one.action == Action::Create);
            correct(&mut plan.changes, &self.broker.declare(&topology).await?);
            let differs = plan
                .changes
                .into_iter()
                .find(|one| one.action == Action::Differs);
            if let Some(differs) = differs {
                return Err(Error::Differs(differs));
            }
            self.known.add(&topology);
            Ok(missing)
        };
        let created = created.await;
        audit("create exchange", name, &created);
        created
    }

    /// Deletes an exchange.
    pub async fn delete_exchange(&self, name: &str, only_if_unused: bool) -> Result<(), Error> {
        let deleted = async {
            own_exchange("name", name)?;
            let admin = self.broker.admin();
            Ok(admin.delete_exchange(name, only_if_unused).await?)
        };
        let deleted = deleted.await;
        audit("delete exchange", name, &deleted);
        deleted
    }

    /// Binds a queue.
    pub async fn bind(&self, binding: Binding) -> Result<(), Error> {
        let name = binding.to_string();
        let bound = async {
            self.check_ends(&binding).await?;
            let topology = Topology {
                bindings: vec![binding],
                ..Topology::default()
            };
            self.broker.declare(&topology).await?;
            self.known.add(&topology);
            Ok(())
        };
        let bound: Result<(), Error> = bound.await;
        audit("bind", &name, &bound);
        bound
    }

    /// Removes a binding.
    pub async fn unbind(&self, binding: Binding) -> Result<(), Error> {
        let unbound = async {
            self.check_ends(&binding).await?;
            Ok(self.broker.admin().unbind(&binding).await?)
        };
        let unbound: Result<(), Error> = unbound.await;
        audit("unbind", &binding.to_string(), &unbound);
        unbound
    }

    /// Says which end of a binding is missing.
    async fn check_ends(&self, binding: &Binding) -> Result<(), Error> {
        own_exchange("binding.exchange", &binding.exchange)?;
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
