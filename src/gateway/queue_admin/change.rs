//! Changes. Each is in the log as an audit event, and so is each that was refused.

use super::{
    Error, QueueAdmin,
    audit::audited,
    bound_exchange,
    deletion::Deleted,
    fetchable, own_exchange, own_queue,
    plan::{Action, Change, correct, refused},
};
use crate::{
    broker::{
        self, Entity,
        admin::OnlyIf,
        topology::{
            Binding, Exchange, Queue, Topology,
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
    /// A queue that goes by itself when nobody uses it, without dead letters.
    Temporary,
}

/// A queue that is to be there.
#[derive(Clone, Debug)]
pub struct NewQueue {
    pub name: String,
    pub profile: Profile,
    /// It goes with its last consumer. Of [`Profile::Temporary`] only.
    pub auto_delete: bool,
    /// Arguments in place of the profile's.
    pub arguments: Table,
}

/// A queue that is there.
#[derive(Clone, Debug)]
pub struct Created {
    pub created: bool,
    pub arguments: Table,
    pub changes: Vec<Change>,
}

impl QueueAdmin {
    /// Creates a queue, unless it is there and alike.
    pub async fn create_queue(
        &self,
        wanted: NewQueue,
        validate_only: bool,
    ) -> Result<Created, Error> {
        let (admin, target) = (self.clone(), wanted.name.clone());
        let work = async move { admin.create_queue_now(wanted, validate_only).await };
        if validate_only {
            return work.await;
        }
        audited("create queue", target, work).await
    }

    async fn create_queue_now(
        &self,
        wanted: NewQueue,
        validate_only: bool,
    ) -> Result<Created, Error> {
        let (name, profile) = (wanted.name.as_str(), wanted.profile);
        own_queue("name", name)?;
        let topology = self.profile(&wanted)?;
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

    fn profile(&self, wanted: &NewQueue) -> Result<Topology, Error> {
        let (name, profile) = (wanted.name.as_str(), wanted.profile);
        if wanted.auto_delete && profile != Profile::Temporary {
            let problem = "is for the profile TEMPORARY: other queues outlive their consumers";
            return Err(Invalid::field("auto_delete", problem).into());
        }
        let complete = |queue| {
            let file = File {
                queues: vec![queue],
                ..File::default()
            };
            let invalid = |bad| Invalid::field("name", format!("{bad}"));
            let parsed = file.complete(&self.defaults).map_err(invalid);
            parsed.map(|parsed| parsed.topology)
        };
        let mut topology = match profile {
            Profile::Standard => complete(FileQueue::work(name))?,
            Profile::Temporary => complete(FileQueue::temporary(name, wanted.auto_delete))?,
            Profile::DeadLetter => Topology {
                queues: vec![Queue::dead_letters(name, self.defaults.dead_letter_ttl)],
                ..Topology::default()
            },
        };
        for queue in topology.queues.iter_mut().filter(|one| one.name == name) {
            queue.others.clone_from(&wanted.arguments);
            let problem = match (profile, queue.is_temporary()) {
                // Nobody would delete its dead-letter queue.
                (Profile::Standard, true) => {
                    "x-expires: a queue that goes by itself has no dead-letter queue; use the profile TEMPORARY"
                }
                (Profile::Temporary, false) => {
                    "x-expires: a temporary queue has it, or is auto_delete; else nothing would ever delete it"
                }
                _ => continue,
            };
            return Err(Invalid::field("arguments", problem).into());
        }
        Ok(topology)
    }

    /// Deletes a queue; and its dead-letter queue, if that is asked for and nothing is in it.
    pub async fn delete_queue(
        &self,
        name: &str,
        only: OnlyIf,
        with_dead_letters: bool,
    ) -> Result<Deleted, Error> {
        let (admin, name) = (self.clone(), name.to_owned());
        audited("delete queue", name.clone(), async move {
            own_queue("name", &name)?;
            let messages = admin.broker.admin().delete_queue(&name, only).await?;
            admin.known.forget_queue(&name);
            let dead_letters = match with_dead_letters {
                true => Some(admin.delete_dead_letter_queue(&name).await),
                false => None,
            };
            Ok(Deleted {
                messages,
                dead_letters,
            })
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
    pub async fn create_exchange(&self, exchange: Exchange) -> Result<bool, Error> {
        let admin = self.clone();
        audited("create exchange", exchange.name.clone(), async move {
            own_exchange("name", &exchange.name)?;
            let topology = Topology {
                exchanges: vec![exchange],
                ..Topology::default()
            };
            let mut plan = admin.plan(&topology).await?;
            let missing = plan.changes.iter().any(|one| one.action == Action::Create);
            let differences = admin.broker.declare(&topology).await?;
            refused(&plan.changes, &differences)?;
            correct(&mut plan.changes, &differences);
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
