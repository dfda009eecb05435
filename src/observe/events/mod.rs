//! Kubernetes Events: what users should know of their objects, told where they look, `kubectl describe` and
//! `kubectl events`.
//!
//! ```text
//! the plan's warnings ─────────┐
//! objects that do not parse ───┼─► Ledger: what is due, to whom,  ─► a short queue ─► deliver ─► API server
//! peers up and down ───────────┘   how often (pure, in the loop)                      (a task of its own)
//! ```
//!
//! Best effort: nothing here is waited for. While the API server is away, what is due stays in the ledger.

mod deliver;
mod hash;
mod ledger;
mod limit;
mod notice;
mod peers;
mod teller;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use foldhash::HashMap;
use sheave_bgp::SpeakerStatus;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use self::ledger::{Ledger, Part, Telling};
pub use self::notice::{Kind, KnownBy, Notice};
pub use self::peers::Absent;
use self::peers::{Peer, Peers};
use crate::cluster::{Accepts, ObjectKey, Problem, ServiceName};
use crate::plan::{NodePlan, Warning};

/// How many Events may wait to be sent.
const QUEUE: usize = 16;

/// What this node's agent tells in Events.
pub struct Events {
    node: Arc<str>,
    ledger: Ledger,
    peers: Peers,
    queue: mpsc::Sender<Telling>,
}

impl Events {
    /// Events of the agent of `node`, sent on `runtime`.
    pub fn start(client: kube::Client, node: &str, runtime: &Handle) -> Self {
        let (queue, tellings) = mpsc::channel(QUEUE);
        runtime.spawn(deliver::deliver(client, node.to_owned(), tellings));
        Self { node: node.into(), ledger: Ledger::default(), peers: Peers::default(), queue }
    }

    /// These Services were planned anew.
    pub fn planned<'a>(&mut self, plan: &NodePlan, services: impl IntoIterator<Item = &'a ServiceName>) {
        for service in services {
            let notices = plan.warnings_of(service).filter_map(Notice::of_warning);
            self.stands(Part::Plan, &ObjectKey::Service(service.clone()), notices);
        }
    }

    /// These are the warnings about this node, and no others.
    pub fn node_planned(&mut self, warnings: impl IntoIterator<Item = Warning>) {
        let notices = warnings.into_iter().filter_map(Notice::of_warning);
        let own = ObjectKey::Node(self.node.clone());
        self.stands(Part::Plan, &own, notices.filter(|notice| notice.regarding == own));
    }

    /// These are the problems of the source, and no others.
    pub fn problems(&mut self, problems: &[Problem]) {
        self.all_stand(Part::Source, problems.iter().filter_map(Notice::of_problem));
    }

    /// These are the warnings about health-check node ports of this node, and no others.
    pub fn node_ports(&mut self, warnings: impl IntoIterator<Item = Warning>) {
        self.of_this_node(Part::NodePorts, "Listen", warnings);
    }

    /// These are the warnings about VIPs that this node does not announce because it cannot forward them, and no others.
    pub fn vips(&mut self, warnings: impl IntoIterator<Item = Warning>) {
        self.of_this_node(Part::Vips, "Announce", warnings);
    }

    fn of_this_node(
        &mut self,
        part: Part,
        action: &'static str,
        warnings: impl IntoIterator<Item = Warning>,
    ) {
        let node = self.node.clone();
        let notices = warnings.into_iter().filter_map(Notice::of_warning).map(|notice| Notice {
            message: format!("on node {node}: {}", notice.message),
            action,
            known_by: KnownBy::ThisNode,
            ..notice
        });
        self.all_stand(part, notices);
    }

    /// The peers are so now; without a speaker all are among `absent`.
    pub fn peers<'a>(&mut self, speaker: Option<&SpeakerStatus>, absent: impl Iterator<Item = Absent<'a>>) {
        let (now, clock) = (Instant::now(), SystemTime::now());
        let sessions = speaker.into_iter().flat_map(|speaker| &speaker.peers).map(Peer::from);
        for notice in self.peers.look(&self.node, sessions.chain(absent.map(Peer::from)), now) {
            self.ledger.happened(notice, now, clock);
        }
    }

    /// Something that has happened once.
    pub fn happened(&mut self, notice: Notice) {
        self.ledger.happened(notice, Instant::now(), SystemTime::now());
    }

    /// Sends what is due. `agents`: the nodes where an agent is known to run.
    pub fn tick(&mut self, agents: &HashMap<Arc<str>, Accepts>) {
        let tells =
            |object: &ObjectKey| teller::tells(&self.node, object, agents.keys().map(|agent| &**agent));
        for telling in self.ledger.due(self.queue.capacity(), tells, Instant::now(), SystemTime::now()) {
            // There is room, as was just asked, and nobody else sends; without the task there is nobody to tell.
            let _ = self.queue.try_send(telling);
        }
    }

    /// These notices, and no others, stand as far as `part` knows.
    fn all_stand(&mut self, part: Part, notices: impl IntoIterator<Item = Notice>) {
        let mut of_objects: BTreeMap<ObjectKey, Vec<Notice>> = BTreeMap::new();
        for notice in notices {
            of_objects.entry(notice.regarding.clone()).or_default().push(notice);
        }
        let before: BTreeSet<ObjectKey> = self.ledger.objects_of(part).cloned().collect();
        for object in before.into_iter().filter(|object| !of_objects.contains_key(object)) {
            self.stands(part, &object, []);
        }
        for (object, notices) in of_objects {
            self.stands(part, &object, notices);
        }
    }

    fn stands(&mut self, part: Part, object: &ObjectKey, notices: impl IntoIterator<Item = Notice>) {
        self.ledger.stands(part, object, notices, Instant::now(), SystemTime::now());
    }
}
