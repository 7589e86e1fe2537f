//! A topology against what is there: what is missing, and what differs, argument by argument.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Error, QueueAdmin,
    audit::audited,
    figures::{List, listed},
    note,
};
use crate::{
    broker::{
        self, Entity,
        admin::{BindingInfo, Destination, ExchangeInfo, Management, QueueInfo},
        topology::{
            Binding, Difference, Exchange, Mismatch, Queue, Topology, file::File, mismatches,
        },
    },
    gateway::validate::Invalid,
};

/// One thing of a topology, and what is done about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub what: Entity,
    pub name: String,
    pub action: Action,
    pub mismatches: Vec<Mismatch>,
    /// In the broker's words; empty where `mismatches` say all.
    pub note: String,
}

/// What is done about a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is missing.
    Create,
    /// It is there and alike.
    None,
    /// It is there and differs; it is used as it is.
    Differs,
    /// It is there; whether it is alike cannot be told.
    Unknown,
    /// It is there and not in the topology; it stays.
    Extra,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.what, self.name)
    }
}

impl Change {
    fn new(what: Entity, name: &str, action: Action) -> Self {
        Self {
            what,
            name: name.to_owned(),
            action,
            mismatches: Vec::new(),
            note: String::new(),
        }
    }

    /// Of a thing that is there. `None`: nobody can tell how it is.
    fn of(what: Entity, name: &str, mismatches: Option<Vec<Mismatch>>) -> Self {
        let action = match &mismatches {
            None => Action::Unknown,
            Some(none) if none.is_empty() => Action::None,
            Some(_) => Action::Differs,
        };
        Self {
            mismatches: mismatches.unwrap_or_default(),
            ..Self::new(what, name, action)
        }
    }
}

/// What is, or would be, done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In the order in which things are declared.
    pub changes: Vec<Change>,
    /// Why some things could not be compared, for people.
    pub note: String,
}

impl QueueAdmin {
    /// Declares what is missing of a topology, or with `validate_only` only says what is.
    pub async fn apply(&self, file: File, validate_only: bool) -> Result<Plan, Error> {
        let admin = self.clone();
        if validate_only {
            let topology = admin.complete(file)?;
            return admin.plan(&topology).await;
        }
        let things = file.exchanges.len() + file.queues.len() + file.bindings.len();
        audited("apply topology", format!("{things} things"), async move {
            let topology = admin.complete(file)?;
            let mut plan = admin.plan(&topology).await?;
            let differences = admin.broker.declare(&topology).await?;
            refused(&plan.changes, &differences)?;
            correct(&mut plan.changes, &differences);
            admin.known.add(&topology);
            for queue in topology.dead_lettered() {
                admin.failed.collectors.ensure(&queue);
            }
            Ok(plan)
        })
        .await
    }

    /// Checks a topology and fills in what it leaves out.
    fn complete(&self, file: File) -> Result<Topology, Error> {
        let invalid = |problem: String| Error::Invalid(Invalid::field("topology", problem));
        let parsed = file.complete(&self.defaults);
        let topology = parsed.map_err(|bad| invalid(bad.to_string()))?.topology;
        if topology.exchanges.iter().any(|one| one.name.is_empty())
            || topology.bindings.iter().any(|one| one.exchange.is_empty())
        {
            let problem =
                "the default exchange is the broker's own: it is neither declared nor bound";
            return Err(invalid(problem.to_owned()));
        }
        Ok(topology)
    }

    /// How the broker differs from the topology file.
    pub async fn drift(&self) -> Result<Plan, Error> {
        let topology = self.topology.as_ref().ok_or(Error::NoTopology)?;
        let there = self.look(topology).await?;
        let mut plan = there.plan(topology)?;
        plan.changes.retain(|change| change.action != Action::None);
        if let Some(bindings) = &there.bindings {
            plan.changes.extend(extra(topology, bindings));
        }
        Ok(plan)
    }

    /// What declaring a topology would do.
    pub(super) async fn plan(&self, topology: &Topology) -> Result<Plan, Error> {
        self.look(topology).await?.plan(topology)
    }

    /// The temporary queues of a topology that are there, and in no list.
    async fn look_at_temporary(
        &self,
        topology: &Topology,
        listed: &[QueueInfo],
    ) -> Result<Vec<QueueInfo>, Error> {
        let mut found = Vec::new();
        for queue in topology.queues.iter().filter(|one| one.is_temporary()) {
            if listed.iter().any(|one| one.name == queue.name) {
                continue;
            }
            match self.broker.admin().queue(&queue.name).await {
                Ok(queue) => found.push(queue),
                Err(broker::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(found)
    }

    /// What there is of a topology.
    async fn look(&self, topology: &Topology) -> Result<There, Error> {
        let (bindings, management) = match listed(self.broker.admin().bindings().await)? {
            List::Whole(bindings) => (Some(bindings), Management::Up),
            List::Unknown(management) => (None, management),
        };
        let (queues, exchanges) = tokio::join!(self.all_queues(), self.all_exchanges());
        let (mut queues, mut exchanges) = (queues?, exchanges?);
        // Where a list cannot be had, what is named is asked about; it is known from here on.
        if queues.is_partial() || exchanges.is_partial() {
            self.known.add(topology);
            for binding in &topology.bindings {
                self.known.queue(&binding.queue);
                self.known.exchange(&binding.exchange);
            }
            let (more, others) = tokio::join!(self.all_queues(), self.all_exchanges());
            (queues, exchanges) = (more?, others?);
        }
        let notes = [note(&management), queues.note, exchanges.note];
        let temporary = self.look_at_temporary(topology, &queues.found).await?;
        let queues = queues.found.into_iter().chain(temporary);
        let exchanges = exchanges.found.into_iter();
        Ok(There {
            queues: queues.map(|one| (one.name.clone(), one)).collect(),
            exchanges: exchanges.map(|one| (one.name.clone(), one)).collect(),
            note: notes
                .into_iter()
                .find(|note| !note.is_empty())
                .unwrap_or_default(),
            bindings,
        })
    }
}

struct There {
    exchanges: BTreeMap<String, ExchangeInfo>,
    queues: BTreeMap<String, QueueInfo>,
    /// `None`: nobody can tell.
    bindings: Option<Vec<BindingInfo>>,
    note: String,
}

impl There {
    /// What declaring a topology would do.
    fn plan(&self, topology: &Topology) -> Result<Plan, Error> {
        let mut changes = Vec::new();
        for wanted in &topology.exchanges {
            let (what, name) = (Entity::Exchange, wanted.name.as_str());
            changes.push(match self.exchanges.get(name) {
                None => Change::new(what, name, Action::Create),
                Some(found) => Change::of(what, name, exchange_mismatches(wanted, found)),
            });
        }
        for wanted in &topology.queues {
            let (what, name) = (Entity::Queue, wanted.name.as_str());
            changes.push(match self.queues.get(name) {
                None => Change::new(what, name, Action::Create),
                Some(found) => Change::of(what, name, queue_mismatches(wanted, found)),
            });
        }
        for wanted in &topology.bindings {
            self.check(topology, wanted)?;
            let action = match &self.bindings {
                None if self.has_ends(wanted) => Action::Unknown,
                Some(bindings) if bindings.iter().any(|one| is(one, wanted)) => Action::None,
                _ => Action::Create,
            };
            changes.push(Change::new(Entity::Binding, &wanted.to_string(), action));
        }
        Ok(Plan {
            changes,
            note: self.note.clone(),
        })
    }

    /// Whether both ends of a binding are there.
    fn has_ends(&self, binding: &Binding) -> bool {
        self.exchanges.contains_key(&binding.exchange) && self.queues.contains_key(&binding.queue)
    }

    /// Refuses a binding to what neither is there nor will be.
    fn check(&self, topology: &Topology, binding: &Binding) -> Result<(), Error> {
        let Binding {
            exchange, queue, ..
        } = binding;
        let missing = |what: &str, name: &str| {
            let problem = format!("binding {binding}: there is no {what} {name:?}");
            Error::Invalid(Invalid::field("topology", problem))
        };
        if !self.exchanges.contains_key(exchange)
            && !topology.exchanges.iter().any(|one| one.name == *exchange)
        {
            return Err(missing("exchange", exchange));
        }
        if !self.queues.contains_key(queue) && !topology.queues.iter().any(|one| one.name == *queue)
        {
            return Err(missing("queue", queue));
        }
        Ok(())
    }
}

fn exchange_mismatches(wanted: &Exchange, found: &ExchangeInfo) -> Option<Vec<Mismatch>> {
    let kind = found.kind.clone()?;
    let own = [
        differs("type", wanted.kind.to_string(), kind),
        not_durable(found.durable),
        differs("internal", false.to_string(), found.internal?.to_string()),
    ];
    let arguments = mismatches(&wanted.arguments, found.arguments.as_ref()?);
    Some(own.into_iter().flatten().chain(arguments).collect())
}

fn queue_mismatches(wanted: &Queue, found: &QueueInfo) -> Option<Vec<Mismatch>> {
    let arguments = mismatches(&wanted.arguments(), found.arguments.as_ref()?);
    let auto_delete = found.auto_delete.and_then(|found| {
        let wanted = wanted.auto_delete.to_string();
        differs("auto_delete", wanted, found.to_string())
    });
    Some(
        arguments
            .into_iter()
            .chain(not_durable(found.durable))
            .chain(auto_delete)
            .collect(),
    )
}

fn not_durable(durable: Option<bool>) -> Option<Mismatch> {
    let found = durable?.to_string();
    differs("durable", true.to_string(), found)
}

fn differs(argument: &str, wanted: String, actual: String) -> Option<Mismatch> {
    (wanted != actual).then(|| Mismatch {
        argument: argument.to_owned(),
        wanted: Some(wanted),
        actual: Some(actual),
    })
}

fn is(found: &BindingInfo, wanted: &Binding) -> bool {
    found.exchange == wanted.exchange
        && found.destination == Destination::Queue(wanted.queue.clone())
        && found.routing_key == wanted.routing_key
        && mismatches(&wanted.arguments, &found.arguments).is_empty()
}

/// Bindings of the topology's queues that it does not have.
fn extra(topology: &Topology, bindings: &[BindingInfo]) -> Vec<Change> {
    let queues: BTreeSet<&String> = topology.queues.iter().map(|queue| &queue.name).collect();
    let extra = bindings.iter().filter_map(|found| {
        let Destination::Queue(queue) = &found.destination else {
            return None;
        };
        let is_wanted = topology.bindings.iter().any(|wanted| is(found, wanted));
        (queues.contains(queue) && !is_wanted).then(|| Binding {
            exchange: found.exchange.clone(),
            queue: queue.clone(),
            routing_key: found.routing_key.clone(),
            arguments: found.arguments.clone(),
        })
    });
    extra
        .map(|binding| Change::new(Entity::Binding, &binding.to_string(), Action::Extra))
        .collect()
}

/// The broker does not take something that it does not have: that is no difference.
pub(super) fn refused(changes: &[Change], differences: &[Difference]) -> Result<(), Error> {
    let planned = |one: &&Difference| {
        let is_it = |change: &&Change| change.what == one.what && change.name == one.name;
        let change = changes.iter().find(is_it);
        change.is_some_and(|change| change.action == Action::Create)
    };
    match differences.iter().find(planned) {
        None => Ok(()),
        Some(refused) => {
            let (what, name) = (refused.what, &refused.name);
            Err(Error::Refused(format!(
                "{what} {name:?}: {}",
                refused.detail
            )))
        }
    }
}

/// Sets right what could not be told before, now that the broker was asked to declare it.
pub(super) fn correct(changes: &mut [Change], differences: &[Difference]) {
    for change in changes {
        let differs = differences
            .iter()
            .find(|one| one.what == change.what && one.name == change.name);
        match (change.action, differs) {
            (Action::None | Action::Unknown, Some(difference)) => {
                change.action = Action::Differs;
                change.note.clone_from(&difference.detail);
            }
            (Action::Unknown, None) if change.what != Entity::Binding => {
                change.action = Action::None;
            }
            _ => {}
        }
    }
}
