//! Route reflectors, clients and other nodes of one AS in simulated time: whatever happened, everybody ends up with a way to
//! all that is announced, and to nothing else.
//!
//! Sessions are taken for granted here (`sessions` is about these): they come and go as a whole, and carry real UPDATEs,
//! which are late. Routes change, some of them announced by several nodes; sessions are lost, with and without graceful
//! restart; nodes start anew, cold or with their routes kept; a reflector is none for a while, or a client none of its. What
//! must hold:
//! - no route comes back to whom it began with, nor goes twice through a cluster;
//! - in the end no next hop is of a node that does not announce the prefix, and nobody lacks a prefix;
//! - where nodes only restart with their routes kept, one after the other, nobody is without a route at any time to what one
//!   node announces.

mod node;
mod plan;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sheave_bgp::rib::{Export, Source};
use sheave_bgp::wire::{Context, Message, Update, frame};
use sheave_bgp::{Attributes, ExportPolicy, Families, Family, RouteChanges};

use self::node::{Node, Role, address, negotiated, next_hop, router_id, tables};
use crate::random::Random;

const SEEDS: u64 = 1_000;
const ASN: u32 = 64512;
const RESTART_TIME: Duration = Duration::from_secs(60);
/// For how long things go wrong.
const TROUBLE: Duration = Duration::from_secs(600);
/// How far apart restarts are where nothing else happens: the session is back, and End-of-RIB has come for sure.
const APART: Duration = Duration::from_secs(200);
/// Prefixes that any node may announce.
const SHARED: std::ops::Range<usize> = 0..4;
const CONTEXT: Context =
    Context { four_octet_asn: true, ibgp: true, extended_messages: false, add_path: Families::NONE };

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    /// A session comes up, unless the nodes have others since.
    Up {
        one: usize,
        other: usize,
        lives: [u64; 2],
    },
    Down {
        one: usize,
        other: usize,
        graceful: bool,
    },
    /// Of the session of that number.
    Bytes {
        from: usize,
        to: usize,
        session: u64,
        bytes: Vec<u8>,
    },
    Write {
        from: usize,
        to: usize,
    },
    RouteChange {
        node: usize,
    },
    Restart {
        node: usize,
        kept: bool,
    },
    RoutesKnown {
        node: usize,
        life: u64,
    },
    StopWaiting {
        node: usize,
        life: u64,
    },
    Expire {
        node: usize,
        peer: usize,
    },
    Reflector {
        node: usize,
        on: bool,
    },
    Client {
        node: usize,
        peer: usize,
        client: bool,
    },
}

struct Network {
    random: Random,
    now: Instant,
    start: Instant,
    nodes: Vec<Node>,
    /// Pairs that are to have a session, the lower one first; the session's number while it stands.
    sessions: BTreeMap<(usize, usize), Option<u64>>,
    /// When the latest bytes arrive, since they arrive in order.
    latest: BTreeMap<(usize, usize), Instant>,
    /// Who is about to send to whom, and when a node looks for stale routes of whom: not planned twice.
    writing: BTreeSet<(usize, usize)>,
    expiring: BTreeMap<(usize, usize), Instant>,
    agenda: BinaryHeap<Reverse<(Instant, u64, Happening)>>,
    count: u64,
    /// Nodes only restart, with routes kept: nobody may lose what it has once had.
    gentle: bool,
}

fn prefix(n: usize) -> IpNet {
    let n = u8::try_from(n).unwrap();
    match n % 2 {
        0 => IpNet::new([10, 244, n, 0].into(), 24).unwrap(),
        _ => IpNet::new([0xfd00, 0x244, u16::from(n), 0, 0, 0, 0, 0].into(), 64).unwrap(),
    }
}

impl Network {
    fn peers(&self, node: usize) -> Vec<usize> {
        let pairs = self.sessions.keys();
        pairs
            .filter_map(|&(one, other)| match node {
                _ if one == node => Some(other),
                _ if other == node => Some(one),
                _ => None,
            })
            .collect()
    }

    fn plan(&mut self, after: Duration, happening: Happening) {
        self.count += 1;
        self.agenda.push(Reverse((self.now + after, self.count, happening)));
    }

    fn session(&self, one: usize, other: usize) -> Option<u64> {
        self.sessions.get(&(one.min(other), one.max(other))).copied().flatten()
    }

    /// What became different of what a node has learnt goes where it belongs.
    fn follow(&mut self, node: usize) {
        let shared =
            |prefix: &IpNet| self.nodes.iter().filter(|of| of.routes.contains_key(prefix)).count() > 1;
        let shared: BTreeSet<IpNet> = SHARED.map(prefix).filter(shared).collect();
        let this = &mut self.nodes[node];
        this.rib.reflect(this.learnt.take_reflections());
        if this.rib.awaits_peers_alone() && this.learnt.has_heard_all() {
            this.rib.peers_have_told();
        }
        let settled = self.now > self.start + APART / 2;
        for (prefix, hops) in this.learnt.take_changes(usize::MAX) {
            match hops {
                Some(hops) => drop(this.table.insert(prefix, hops)),
                None => {
                    this.table.remove(&prefix);
                    // Of several that announce it a reflector that comes back hears of one first, and its choice is hidden from some.
                    let excused = shared.contains(&prefix) || !(self.gentle && settled);
                    assert!(excused, "node {node} is without {prefix}");
                }
            }
        }
        for peer in self.peers(node) {
            if let Some(at) = self.nodes[node].learnt.deadline(address(peer))
                && self.expiring.insert((node, peer), at) != Some(at)
            {
                self.plan(at.saturating_duration_since(self.now), Happening::Expire { node, peer });
            }
            if self.nodes[node].rib.has_pending(address(peer)) && self.writing.insert((node, peer)) {
                let after = self.random.millis(50);
                self.plan(after, Happening::Write { from: node, to: peer });
            }
        }
    }

    fn change_route(&mut self, node: usize) {
        // Own ones, and some that others have too.
        let n = if self.random.chance(70) {
            10 + 10 * node + self.random.below(6)
        } else {
            self.random.below(SHARED.end)
        };
        let local_pref = self.random.chance(65).then(|| 100 + u32::try_from(self.random.below(2)).unwrap());
        self.announce(node, prefix(n), local_pref);
    }

    fn announce(&mut self, node: usize, prefix: IpNet, local_pref: Option<u32>) {
        let this = &mut self.nodes[node];
        let mut changes = RouteChanges::default();
        match local_pref {
            Some(local_pref) => {
                this.routes.insert(prefix, local_pref);
                let attributes = Attributes { local_pref: Some(local_pref), ..Attributes::default() };
                changes.announce.push((prefix, attributes));
            }
            None => {
                this.routes.remove(&prefix);
                changes.withdraw.push(prefix);
            }
        }
        this.rib.apply(changes);
    }

    /// One end of a session that comes up.
    fn up(&mut self, node: usize, peer: usize) {
        let client =
            matches!(self.nodes[node].role, Role::Reflector(_)) && self.nodes[peer].role == Role::Client;
        let other = &self.nodes[peer];
        // One that has not restarted has kept forwarding all along.
        let forwarding = other.life == 0 || other.kept;
        let agreed = negotiated(peer, other.kept && !other.rib.is_complete(), forwarding);
        let export = Export {
            policy: ExportPolicy::default(),
            asn: ASN,
            context: CONTEXT,
            enhanced_refresh: false,
            next_hops: Family::ALL.map(|family| (family, Some(next_hop(node, family)))).into(),
            role: None,
            link_local: None,
            peer: address(peer),
            router_id: router_id(peer),
            client,
            extended_next_hop: false,
            long_lived: Families::NONE,
        };
        let source = Source {
            interface: None,
            peer: address(peer),
            router_id: router_id(peer),
            asn: ASN,
            ibgp: true,
            role: None,
            local: address(node),
            extended_next_hop: false,
            client,
        };
        let this = &mut self.nodes[node];
        this.rib.peer_up(address(peer), export);
        this.learnt.peer_up(source, &agreed, self.now);
        self.follow(node);
    }

    /// The ends of a session that is lost; one that restarts forgets anyhow.
    fn down(&mut self, one: usize, other: usize, graceful: bool) {
        let Some(session) = self.sessions.get_mut(&(one.min(other), one.max(other))) else { return };
        if session.take().is_none() {
            return;
        }
        for (node, peer) in [(one, other), (other, one)] {
            let this = &mut self.nodes[node];
            this.rib.peer_down(address(peer));
            let agreed = negotiated(peer, false, true);
            this.learnt.peer_down(address(peer), graceful.then_some(&agreed), self.now);
            self.follow(node);
        }
        let lives = [self.nodes[one].life, self.nodes[other].life];
        let after = self.random.millis(15_000);
        self.plan(after, Happening::Up { one, other, lives });
    }

    fn restart(&mut self, node: usize, kept: bool) {
        let peers = self.peers(node);
        for &peer in &peers {
            // What the one that goes makes of it, nobody hears.
            self.nodes[node].learnt.freeze();
            self.down(node, peer, true);
        }
        let this = &mut self.nodes[node];
        let (learnt, rib) = tables(node, this.role, &peers, kept);
        this.learnt = learnt;
        this.rib = rib;
        this.life += 1;
        this.kept = kept;
        let life = this.life;
        if !self.gentle || !kept {
            this.table.clear();
        }
        for peer in peers {
            let after = self.random.millis(15_000);
            let (one, other) = (node.min(peer), node.max(peer));
            let lives = [self.nodes[one].life, self.nodes[other].life];
            self.plan(after, Happening::Up { one, other, lives });
        }
        let after = self.random.millis(10_000);
        self.plan(after, Happening::RoutesKnown { node, life });
        self.plan(RESTART_TIME, Happening::StopWaiting { node, life });
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Up { one, other, lives } => {
                let current = [self.nodes[one].life, self.nodes[other].life];
                if self.session(one, other).is_none() && lives == current {
                    self.count += 1;
                    self.sessions.insert((one.min(other), one.max(other)), Some(self.count));
                    self.up(one, other);
                    self.up(other, one);
                }
            }
            Happening::Down { one, other, graceful } => self.down(one, other, graceful),
            Happening::Write { from, to } => self.write(from, to),
            Happening::Bytes { from, to, session, bytes } => {
                if self.session(from, to) == Some(session) {
                    self.receive(from, to, &bytes);
                }
            }
            Happening::RouteChange { node } => {
                self.change_route(node);
                self.follow(node);
            }
            Happening::Restart { node, kept } => self.restart(node, kept),
            Happening::RoutesKnown { node, life } if self.nodes[node].life == life => {
                for (prefix, local_pref) in self.nodes[node].routes.clone() {
                    self.announce(node, prefix, Some(local_pref));
                }
                self.nodes[node].rib.initial_routes_complete();
                self.follow(node);
            }
            Happening::StopWaiting { node, life } if self.nodes[node].life == life => {
                self.nodes[node].learnt.stop_waiting();
                self.follow(node);
            }
            Happening::RoutesKnown { .. } | Happening::StopWaiting { .. } => {}
            Happening::Expire { node, peer } => {
                let due = self.nodes[node].learnt.deadline(address(peer)).is_some_and(|at| at <= self.now);
                if due {
                    self.nodes[node].learnt.expire(address(peer), self.now);
                    self.follow(node);
                }
            }
            Happening::Reflector { node, on } => {
                if let Role::Reflector(cluster_id) = self.nodes[node].role {
                    self.nodes[node].learnt.set_reflector(on.then_some(cluster_id));
                    self.follow(node);
                }
            }
            Happening::Client { node, peer, client } => {
                self.nodes[node].rib.set_client(address(peer), client);
                self.nodes[node].learnt.set_client(address(peer), client);
                self.follow(node);
            }
        }
    }

    /// Sends a little, and goes on a little later.
    fn write(&mut self, from: usize, to: usize) {
        self.writing.remove(&(from, to));
        let Some(session) = self.session(from, to) else { return };
        let mut bytes = Vec::new();
        self.nodes[from].rib.write(address(to), &mut bytes, 100);
        if !bytes.is_empty() {
            let delay = if self.random.chance(2) { self.random.millis(3000) } else { self.random.millis(50) };
            let at = self.latest.get(&(from, to)).map_or(self.now, |latest| *latest).max(self.now + delay);
            self.latest.insert((from, to), at);
            self.plan(at - self.now, Happening::Bytes { from, to, session, bytes });
        }
        if self.nodes[from].rib.has_pending(address(to)) && self.writing.insert((from, to)) {
            let after = self.random.millis(100);
            self.plan(after, Happening::Write { from, to });
        }
    }

    fn receive(&mut self, from: usize, to: usize, mut bytes: &[u8]) {
        while let Some(length) = frame(bytes).unwrap() {
            if let Message::Update(update) = Message::decode(&bytes[..length], CONTEXT).unwrap() {
                self.check(to, &update);
                self.nodes[to].learnt.receive(address(from), &update).unwrap();
            }
            bytes = &bytes[length..];
        }
        self.follow(to);
    }

    fn check(&self, to: usize, update: &Update) {
        assert_eq!(update.malformed, []);
        let attributes = &update.attributes;
        assert_ne!(attributes.originator_id, Some(router_id(to)), "back to whom it began with");
        let clusters: BTreeSet<_> = attributes.cluster_list.iter().collect();
        assert_eq!(clusters.len(), attributes.cluster_list.len(), "twice through a cluster");
    }

    fn run(&mut self) {
        while let Some(Reverse((at, _, happening))) = self.agenda.pop() {
            assert!(at < self.start + 4 * TROUBLE, "never at rest");
            self.now = at;
            self.happen(happening);
        }
        for node in 0..self.nodes.len() {
            self.check_table(node);
        }
    }

    fn check_table(&self, node: usize) {
        let this = &self.nodes[node];
        assert!(this.rib.is_complete(), "node {node} withholds End-of-RIB");
        let mut announced: BTreeMap<IpNet, BTreeSet<IpAddr>> = BTreeMap::new();
        for (other, of) in self.nodes.iter().enumerate().filter(|(other, _)| *other != node) {
            for prefix in of.routes.keys() {
                announced.entry(*prefix).or_default().insert(next_hop(other, Family::of(prefix)));
            }
        }
        for (prefix, hops) in &this.table {
            let right = announced
                .get(prefix)
                .is_some_and(|right| hops.iter().all(|hop| right.contains(&hop.address)));
            assert!(right, "node {node}: {prefix} via {hops:?}, announced by {:?}", announced.get(prefix));
        }
        // Who announces it as well may be told of no other.
        let lacks = |prefix: &&IpNet| !this.routes.contains_key(prefix) && !this.table.contains_key(prefix);
        assert_eq!(
            announced.keys().filter(lacks).collect::<Vec<_>>(),
            [] as [&IpNet; 0],
            "node {node} lacks"
        );
    }
}

#[test]
fn networks_converge() {
    crate::with_seeds("networks_converge", SEEDS, |seed| Network::new(seed).run());
}
