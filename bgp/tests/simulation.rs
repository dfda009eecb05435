//! Two speakers over a network that loses connections, in simulated time: whatever happened, they end up with each
//! other's routes.
//!
//! Everything follows from the seed. A failure names it; `SEED=n cargo test -p sheave-bgp --test simulation` runs it
//! alone.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sheave_bgp::rib::{Export, Rib};
use sheave_bgp::session::{
    Action, Backoff, Direction, Event, Jitter, RestartOffer, Session, SessionConfig, State,
};
use sheave_bgp::wire::Context;
use sheave_bgp::{Attributes, Families, Family, RouteChanges};

const SEEDS: u64 = 600;
/// For how long things go wrong.
const TROUBLE: Duration = Duration::from_secs(120);
/// How long after that everything must be well: what is waited for an OPEN on a connection that hangs, the longest
/// pause, and some.
const RECOVERY: Duration = Duration::from_secs(300);

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap()
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn millis(&mut self, limit: u64) -> Duration {
        Duration::from_millis(1 + self.below(limit))
    }
}

/// Something that will happen at a node.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    /// A connection of the other node arrives.
    Arrives {
        link: usize,
    },
    /// The own connection stands, or does not.
    Dialled {
        link: usize,
        accepted: bool,
    },
    Bytes {
        link: usize,
        bytes: Vec<u8>,
    },
    /// The other end has closed, or the network has.
    Closed {
        link: usize,
    },
    Timer,
    /// The node may send more routes.
    Writable,
    RoutesChange,
    /// Every connection is cut.
    Cut,
    /// Connections hang: what is sent no longer arrives.
    Hang,
    /// The process dies and starts anew, with nothing but its routes.
    Restart,
}

/// A TCP connection.
struct Link {
    dialler: usize,
    /// Whether each node's end is open.
    open: [bool; 2],
    hangs: bool,
    /// When the latest bytes arrive at each node, since they arrive in order.
    latest: [Instant; 2],
}

struct Node {
    config: SessionConfig,
    session: Session,
    rib: Rib,
    /// What is to be announced, by MED.
    routes: BTreeMap<IpNet, u32>,
    /// The link of each direction.
    links: BTreeMap<Direction, usize>,
    dialling: Option<usize>,
    /// What the peer has announced, in this session.
    learnt: BTreeMap<IpNet, u32>,
    complete: Families,
}

struct Simulation {
    random: Random,
    now: Instant,
    trouble_ends: Instant,
    nodes: [Node; 2],
    links: Vec<Link>,
    agenda: BinaryHeap<Reverse<(Instant, u64, usize, Happening)>>,
    count: u64,
}

fn address(node: usize) -> IpAddr {
    IpAddr::V4(if node == 0 { Ipv4Addr::new(10, 0, 0, 1) } else { Ipv4Addr::new(10, 0, 0, 2) })
}

impl Node {
    fn new(config: SessionConfig, seed: u64) -> Node {
        Node {
            session: Session::new(config.clone(), Jitter::seeded(seed)),
            config,
            rib: Rib::new(false),
            routes: BTreeMap::new(),
            links: BTreeMap::new(),
            dialling: None,
            learnt: BTreeMap::new(),
            complete: Families::NONE,
        }
    }

    fn direction(&self, link: usize) -> Option<Direction> {
        self.links.iter().find(|(_, known)| **known == link).map(|(direction, _)| *direction)
    }

    fn apply(&mut self, prefix: IpNet, med: Option<u32>) {
        let mut changes = RouteChanges::default();
        match med {
            Some(med) => {
                self.routes.insert(prefix, med);
                changes.announce.push((prefix, Attributes { med: Some(med), ..Attributes::default() }));
            }
            None => {
                self.routes.remove(&prefix);
                changes.withdraw.push(prefix);
            }
        }
        self.rib.apply(changes);
    }
}

impl Simulation {
    fn new(seed: u64) -> Simulation {
        let mut random = Random(seed);
        let now = Instant::now();
        let ibgp = random.chance(50);
        let passive = random.below(3);
        let nodes = [0, 1].map(|node| {
            let asns = if ibgp { [64512, 64512] } else { [64512, 65001] };
            let IpAddr::V4(router_id) = address(node) else { unreachable!() };
            let config = SessionConfig {
                asn: asns[node],
                router_id,
                peer_asn: asns[1 - node],
                passive: passive == node as u64,
                hold_time: 9,
                send_hold_time: None,
                // Longer than what goes to and fro, and shorter.
                delay_open: random.chance(30).then(|| random.millis(3000)),
                connect_retry: Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(10) },
                families: Families::ALL,
                extended_next_hop: false,
                role: None,
                graceful_restart: random
                    .chance(50)
                    .then_some(RestartOffer { restart_time: 60, restarting: false }),
            };
            Node::new(config, random.next())
        });
        let mut simulation = Simulation {
            random,
            now,
            trouble_ends: now + TROUBLE,
            nodes,
            links: Vec::new(),
            agenda: BinaryHeap::new(),
            count: 0,
        };
        for node in [0, 1] {
            for _ in 0..100 {
                let at = simulation.random.millis(TROUBLE.as_secs() * 1000);
                simulation.plan(at, node, Happening::RoutesChange);
            }
            let faults: [fn() -> Happening; 3] =
                [|| Happening::Cut, || Happening::Hang, || Happening::Restart];
            for _ in 0..simulation.random.below(12) {
                let at = simulation.random.millis(TROUBLE.as_secs() * 1000);
                let fault = faults[simulation.random.index(faults.len())];
                simulation.plan(at, node, fault());
            }
            simulation.session(node, Event::ManualStart);
        }
        simulation
    }

    fn plan(&mut self, after: Duration, node: usize, happening: Happening) {
        self.plan_at(self.now + after, node, happening);
    }

    fn plan_at(&mut self, at: Instant, node: usize, happening: Happening) {
        self.count += 1;
        self.agenda.push(Reverse((at, self.count, node, happening)));
    }

    /// Something for the other end of `link`, in order.
    fn transmit(&mut self, from: usize, link: usize, happening: Happening) {
        let delay = self.random.millis(50);
        let state = &mut self.links[link];
        let at = state.latest[1 - from].max(self.now + delay);
        state.latest[1 - from] = at;
        if !state.hangs {
            self.plan_at(at, 1 - from, happening);
        }
    }

    fn session(&mut self, node: usize, event: Event<'_>) {
        let actions = self.nodes[node].session.handle(event, self.now);
        self.act(node, actions);
    }

    fn act(&mut self, node: usize, actions: Vec<Action>) {
        let peer = address(1 - node);
        for action in actions {
            match action {
                Action::Connect => {
                    let link = self.links.len();
                    let latest = [self.now; 2];
                    self.links.push(Link { dialler: node, open: [false; 2], hangs: false, latest });
                    self.nodes[node].dialling = Some(link);
                    self.links[link].open[node] = true;
                    self.transmit(node, link, Happening::Arrives { link });
                }
                Action::AbortConnect => {
                    if let Some(link) = self.nodes[node].dialling.take() {
                        self.close(node, link);
                    }
                }
                Action::Accept => {}
                Action::Send(direction, bytes) => {
                    if let Some(&link) = self.nodes[node].links.get(&direction) {
                        self.transmit(node, link, Happening::Bytes { link, bytes });
                    }
                }
                Action::Close(direction) => {
                    if let Some(link) = self.nodes[node].links.remove(&direction) {
                        self.close(node, link);
                    }
                }
                Action::Established(_, negotiated) => {
                    let ibgp = negotiated.asn == self.nodes[node].config.asn;
                    let next_hops = vec![
                        (Family::Ipv4Unicast, Some(address(node))),
                        (Family::Ipv6Unicast, Some(IpAddr::V6(Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped()))),
                    ];
                    let context = Context {
                        four_octet_asn: true,
                        ibgp,
                        extended_messages: negotiated.extended_messages,
                    };
                    let export = Export {
                        asn: self.nodes[node].config.asn,
                        context,
                        enhanced_refresh: negotiated.enhanced_refresh,
                        next_hops,
                        role: None,
                        link_local: None,
                    };
                    self.nodes[node].rib.peer_up(peer, export);
                    self.forget(node);
                    self.plan(Duration::ZERO, node, Happening::Writable);
                }
                Action::Down(_) => {
                    self.nodes[node].rib.peer_down(peer);
                    self.forget(node);
                }
                Action::Update(update) => {
                    assert_eq!(update.malformed, []);
                    let node = &mut self.nodes[node];
                    if let Some(family) = update.end_of_rib() {
                        node.complete.insert(family);
                    }
                    for prefix in update.unreachable() {
                        assert!(
                            node.learnt.remove(&prefix).is_some(),
                            "{prefix} withdrawn, was not announced"
                        );
                    }
                    node.learnt.extend(update.reachable().map(|p| (p, update.attributes.med.unwrap())));
                }
                Action::RouteRefresh(family) => self.nodes[node].rib.refresh(peer, family),
            }
        }
        if let Some(at) = self.nodes[node].session.next_deadline() {
            self.plan_at(at.max(self.now), node, Happening::Timer);
        }
    }

    /// Routes are as good as the session they came by.
    fn forget(&mut self, node: usize) {
        self.nodes[node].learnt.clear();
        self.nodes[node].complete = Families::NONE;
    }

    fn close(&mut self, node: usize, link: usize) {
        if std::mem::take(&mut self.links[link].open[node]) {
            self.transmit(node, link, Happening::Closed { link });
        }
    }

    fn happen(&mut self, node: usize, happening: Happening) {
        match happening {
            Happening::Arrives { link } => {
                let actions = self.nodes[node].session.handle(Event::TcpAccepted, self.now);
                let at = actions.iter().position(|action| *action == Action::Accept);
                self.transmit(node, link, Happening::Dialled { link, accepted: at.is_some() });
                let mut before = actions;
                let after = before.split_off(at.unwrap_or(before.len()));
                self.act(node, before);
                if at.is_some() {
                    self.nodes[node].links.insert(Direction::Incoming, link);
                    self.links[link].open[node] = true;
                    self.act(node, after);
                }
            }
            Happening::Dialled { link, accepted } => {
                if self.nodes[node].dialling == Some(link) {
                    self.nodes[node].dialling = None;
                    if accepted {
                        self.links[link].hangs = self.now < self.trouble_ends && self.random.chance(5);
                        self.nodes[node].links.insert(Direction::Outgoing, link);
                        self.session(node, Event::TcpConnected);
                    } else {
                        self.session(node, Event::TcpConnectFailed("refused".to_owned()));
                    }
                }
            }
            Happening::Bytes { link, bytes } => {
                if let Some(direction) = self.nodes[node].direction(link) {
                    // In two pieces, as TCP may do.
                    let (first, second) = bytes.split_at(self.random.index(bytes.len() + 1));
                    self.session(node, Event::Received(direction, first));
                    if self.nodes[node].direction(link) == Some(direction) {
                        self.session(node, Event::Received(direction, second));
                    }
                }
            }
            Happening::Closed { link } => {
                self.links[link].open[node] = false;
                if let Some(direction) = self.nodes[node].direction(link) {
                    self.nodes[node].links.remove(&direction);
                    self.session(node, Event::TcpClosed(direction));
                }
            }
            Happening::Timer => {
                if self.nodes[node].session.next_deadline().is_some_and(|at| at <= self.now) {
                    self.session(node, Event::TimerExpired);
                }
            }
            Happening::Writable => self.write(node),
            Happening::RoutesChange => {
                let n = u8::try_from(self.random.below(60)).unwrap();
                let address: IpAddr = match n % 2 {
                    0 => [192, 0, 2, n].into(),
                    _ => [0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(n)].into(),
                };
                let med = self.random.chance(60).then(|| u32::try_from(self.random.below(3)).unwrap());
                self.nodes[node].apply(address.into(), med);
                self.plan(Duration::ZERO, node, Happening::Writable);
            }
            Happening::Cut => {
                for link in self.nodes[node].links.values().copied().collect::<Vec<_>>() {
                    for end in [0, 1] {
                        let delay = self.random.millis(500);
                        self.plan(delay, end, Happening::Closed { link });
                    }
                }
            }
            Happening::Hang => {
                for link in self.nodes[node].links.values() {
                    self.links[*link].hangs = true;
                }
            }
            Happening::Restart => {
                for link in std::mem::take(&mut self.nodes[node].links).into_values() {
                    self.close(node, link);
                }
                if let Some(link) = self.nodes[node].dialling.take() {
                    self.close(node, link);
                }
                let (config, routes) = (self.nodes[node].config.clone(), self.nodes[node].routes.clone());
                self.nodes[node] = Node::new(config, self.random.next());
                for (prefix, med) in routes {
                    self.nodes[node].apply(prefix, Some(med));
                }
                self.session(node, Event::ManualStart);
            }
        }
    }

    /// Sends a little, and goes on a little later.
    fn write(&mut self, node: usize) {
        let Some(direction) = self.nodes[node].session.established().map(|(direction, _)| direction) else {
            return;
        };
        let Some(&link) = self.nodes[node].links.get(&direction) else { return };
        let mut bytes = Vec::new();
        self.nodes[node].rib.write(address(1 - node), &mut bytes, 100);
        if !bytes.is_empty() {
            self.transmit(node, link, Happening::Bytes { link, bytes });
        }
        if self.nodes[node].rib.has_pending(address(1 - node)) {
            let pause = self.random.millis(200);
            self.plan(pause, node, Happening::Writable);
        }
    }

    fn run(&mut self) {
        while let Some(Reverse((at, _, node, happening))) = self.agenda.pop() {
            if at > self.trouble_ends + RECOVERY {
                break;
            }
            self.now = at;
            self.happen(node, happening);
        }
        for node in [0, 1] {
            let (this, other) = (&self.nodes[node], &self.nodes[1 - node]);
            assert_eq!(this.session.state(), State::Established, "node {node}");
            assert_eq!(this.learnt, other.routes, "node {node}");
            assert_eq!(this.complete, Families::ALL, "node {node}");
            // Of two connections one is left, the same for both.
            assert_eq!(this.links.values().collect::<Vec<_>>(), other.links.values().collect::<Vec<_>>());
            assert_eq!(this.links.len(), 1);
        }
        let link = &self.links[*self.nodes[0].links.values().next().unwrap()];
        assert!(link.open == [true; 2] && !self.nodes[link.dialler].config.passive);
    }
}

#[test]
fn sessions_converge() {
    let seeds = match std::env::var("SEED") {
        Ok(seed) => {
            let seed: u64 = seed.parse().unwrap();
            seed..seed + 1
        }
        Err(_) => 0..SEEDS,
    };
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| Simulation::new(seed).run());
        assert!(outcome.is_ok(), "seed {seed}: SEED={seed} cargo test -p sheave-bgp --test simulation");
    }
}
