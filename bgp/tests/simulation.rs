//! Two speakers over a network that loses connections, in simulated time: whatever happened, they end up with each
//! other's routes.
//!
//! Routes and attributes change, connections are cut or hang, segments are late, processes are suspended (which is what a
//! clock that jumps looks like), die and start anew, cold or with their routes kept, and ask for all routes again. Each side
//! keeps the other's routes over a restart as RFC 4724 §4.2 and RFC 8538 §4 say. What must hold:
//! - only what was announced in this session is withdrawn;
//! - a restart with forwarding kept, and a mere loss of the connection, cost no route that is still wanted;
//! - all that there is comes in answer to ROUTE-REFRESH;
//! - paths have names in the families and directions that both sides agreed on, and there alone;
//! - in the end one session stands, with the other's routes and no stale one.
//!
//! Everything follows from the seed. A failure names it; `SEED=n cargo test -p sheave-bgp --test simulation` runs it
//! alone, `SEEDS=n` so many.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sheave_bgp::rib::{Export, ExportPolicy, Rib};
use sheave_bgp::session::{
    Action, AddPaths, Backoff, Direction, Down, Event, Farewell, Jitter, Negotiated, RestartOffer, Session,
    SessionConfig, State,
};
use sheave_bgp::wire::{Cease, Context, Message, Notification, RefreshKind, RouteRefresh};
use sheave_bgp::{Attributes, Families, Family, RouteChanges};

const SEEDS: u64 = 10_000;
/// How long each side is waited for when it restarts, in seconds.
const RESTART_TIME: u16 = 60;
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
    /// The process dies and starts anew, with nothing but its routes; `kept` if it says so.
    Restart {
        kept: bool,
    },
    /// After such a restart, in that life: all routes are known again.
    RoutesKnown {
        life: u64,
    },
    /// The peer has not come back in time.
    StaleExpire,
    /// The node ends its session, and begins another: for good, as far as the peer is told, or to begin anew.
    Stop {
        lasting: bool,
    },
    /// The process stands still, and time does not.
    Suspend,
    /// The node asks for all routes again.
    Refresh,
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
    /// When each prefix was last changed.
    changed: BTreeMap<IpNet, Instant>,
    /// What a restarted process has yet to find out, and since when it knows all.
    unknown: BTreeMap<IpNet, u32>,
    all_known: Option<Instant>,
    /// Which process this is, and whether it started with forwarding kept.
    life: u64,
    kept: bool,
    suspended: Option<Instant>,
    /// The link of each direction.
    links: BTreeMap<Direction, usize>,
    dialling: Option<usize>,
    negotiated: Option<Negotiated>,
    /// What the peer has announced.
    learnt: BTreeMap<IpNet, u32>,
    /// Of that, what is left of an earlier session.
    stale: BTreeSet<IpNet>,
    /// When that session ended.
    stale_since: Instant,
    /// What is to come in answer to ROUTE-REFRESH.
    awaited: BTreeSet<IpNet>,
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
    fn new(config: SessionConfig, seed: u64, now: Instant) -> Node {
        let kept = config.graceful_restart.is_some_and(|offer| offer.restarting);
        Node {
            session: Session::new(config.clone(), Jitter::seeded(seed)),
            config,
            rib: Rib::new(kept),
            routes: BTreeMap::new(),
            changed: BTreeMap::new(),
            unknown: BTreeMap::new(),
            all_known: Some(now),
            life: 0,
            kept,
            suspended: None,
            links: BTreeMap::new(),
            dialling: None,
            negotiated: None,
            learnt: BTreeMap::new(),
            stale: BTreeSet::new(),
            stale_since: now,
            awaited: BTreeSet::new(),
            complete: Families::NONE,
        }
    }

    fn direction(&self, link: usize) -> Option<Direction> {
        self.links.iter().find(|(_, known)| **known == link).map(|(direction, _)| *direction)
    }

    fn apply(&mut self, prefix: IpNet, med: Option<u32>) {
        self.unknown.remove(&prefix);
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

    /// Takes stale routes out; returns which.
    fn sweep(&mut self, is_swept: impl Fn(IpNet) -> bool) -> Vec<IpNet> {
        let swept: Vec<IpNet> = self.stale.iter().copied().filter(|prefix| is_swept(*prefix)).collect();
        for prefix in &swept {
            self.stale.remove(prefix);
            self.learnt.remove(prefix);
        }
        swept
    }
}

fn family(prefix: IpNet) -> Family {
    if prefix.addr().is_ipv4() { Family::Ipv4Unicast } else { Family::Ipv6Unicast }
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
                peer_asn: Some(asns[1 - node]),
                passive: passive == node as u64,
                hold_time: 9,
                send_hold_time: None,
                // Longer than what goes to and fro, and shorter.
                delay_open: random.chance(30).then(|| random.millis(3000)),
                connect_retry: Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(10) },
                families: Families::ALL,
                extended_next_hop: false,
                role: None,
                graceful_restart: random.chance(50).then_some(RestartOffer {
                    restart_time: RESTART_TIME,
                    restarting: false,
                    stale_time: None,
                }),
                add_paths: AddPaths { receive: random.chance(50), send: random.chance(50) },
            };
            Node::new(config, random.next(), now)
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
            let faults: [fn() -> Happening; 8] = [
                || Happening::Cut,
                || Happening::Hang,
                || Happening::Restart { kept: false },
                || Happening::Restart { kept: true },
                || Happening::Stop { lasting: false },
                || Happening::Stop { lasting: true },
                || Happening::Suspend,
                || Happening::Refresh,
            ];
            for _ in 0..simulation.random.below(16) {
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
        // A segment in fifty is lost and sent again.
        let limit = if self.random.chance(2) { 3000 } else { 50 };
        let delay = self.random.millis(limit);
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
                Action::Established(direction, negotiated) => {
                    let ibgp = negotiated.asn == self.nodes[node].config.asn;
                    let next_hops = vec![
                        (Family::Ipv4Unicast, Some(address(node))),
                        (Family::Ipv6Unicast, Some(IpAddr::V6(Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped()))),
                    ];
                    let context = Context {
                        four_octet_asn: true,
                        ibgp,
                        extended_messages: negotiated.extended_messages,
                        add_path: negotiated.paths_sent,
                    };
                    let export = Export {
                        asn: self.nodes[node].config.asn,
                        context,
                        enhanced_refresh: negotiated.enhanced_refresh,
                        next_hops,
                        role: None,
                        link_local: None,
                        policy: ExportPolicy::default(),
                        peer,
                        router_id: negotiated.router_id,
                        client: false,
                        extended_next_hop: negotiated.extended_next_hop,
                        long_lived: Families::NONE,
                    };
                    self.nodes[node].rib.peer_up(peer, export);
                    self.up(node, direction, negotiated);
                    self.plan(Duration::ZERO, node, Happening::Writable);
                }
                Action::Down(reason) => {
                    self.nodes[node].rib.peer_down(peer);
                    self.down(node, &reason);
                }
                Action::Update(update) => {
                    assert_eq!(update.malformed, []);
                    if let Some(family) = update.end_of_rib() {
                        self.end_of_rib(node, family);
                    }
                    let node = &mut self.nodes[node];
                    let named =
                        node.negotiated.as_ref().map_or(Families::NONE, |agreed| agreed.paths_received);
                    for nlri in update.reachable().chain(update.unreachable()) {
                        let expected = u32::from(named.contains(family(nlri.prefix)));
                        assert_eq!(nlri.path_id, expected, "{nlri}, as both sides agreed on {named:?}");
                    }
                    for prefix in update.unreachable().map(|nlri| nlri.prefix) {
                        let announced =
                            node.learnt.remove(&prefix).is_some() && !node.stale.contains(&prefix);
                        assert!(announced, "{prefix} withdrawn, was not announced");
                        node.awaited.remove(&prefix);
                    }
                    for prefix in update.reachable().map(|nlri| nlri.prefix) {
                        node.learnt.insert(prefix, update.attributes.med.unwrap());
                        node.stale.remove(&prefix);
                        node.awaited.remove(&prefix);
                    }
                }
                Action::RouteRefresh(RefreshKind::Begin | RefreshKind::End, _) => {}
                Action::RouteRefresh(RefreshKind::Request, family) => {
                    self.nodes[node].rib.refresh(peer, family);
                    self.plan(Duration::ZERO, node, Happening::Writable);
                }
            }
        }
        if let Some(at) = self.nodes[node].session.next_deadline() {
            self.plan_at(at.max(self.now), node, Happening::Timer);
        }
    }

    /// A session stands. Routes of families that the peer has not kept are gone (RFC 4724 §4.2).
    fn up(&mut self, node: usize, direction: Direction, negotiated: Negotiated) {
        let kept = negotiated.graceful_restart.as_ref().map_or(&[][..], |restart| &restart.families[..]);
        let other = &self.nodes[1 - node];
        // Unless the OPEN is of a process that is gone already.
        let other_is_there = self.links[self.nodes[node].links[&direction]].open[1 - node];
        let must_be_kept = other.kept && other_is_there;
        let swept = self.nodes[node].sweep(|prefix| !kept.contains(&(family(prefix), true)));
        assert!(swept.is_empty() || !must_be_kept, "a restart with routes kept costs {swept:?}");
        self.nodes[node].complete = Families::NONE;
        self.nodes[node].negotiated = Some(negotiated);
    }

    /// A session, or an attempt at one, is over. Routes stay if the peer has asked for that, and both sides for it where there
    /// was a NOTIFICATION; those that were stale already then do too.
    fn down(&mut self, node: usize, reason: &Down) {
        let now = self.now;
        let this = &mut self.nodes[node];
        let Some(negotiated) = this.negotiated.take() else { return };
        this.awaited.clear();
        this.complete = Families::NONE;
        if !negotiated.graceful_notification {
            this.sweep(|_| true);
        }
        this.stale = this.learnt.keys().copied().collect();
        this.stale_since = now;
        let helps = this.config.graceful_restart.is_some();
        match negotiated.graceful_restart {
            Some(restart) if helps && reason.may_be_restart(negotiated.graceful_notification) => {
                let families: Vec<Family> = restart.families.iter().map(|(family, _)| *family).collect();
                this.sweep(|prefix| !families.contains(&family(prefix)));
                self.plan(restart.restart_time, node, Happening::StaleExpire);
            }
            _ => drop(this.sweep(|_| true)),
        }
    }

    /// The peer has told all routes of a family: what it has not is gone, and must not be anything that it still wants. A
    /// process that starts cold makes no such promise until it knows its routes.
    fn end_of_rib(&mut self, node: usize, of: Family) {
        let since = self.nodes[node].stale_since;
        self.nodes[node].complete.insert(of);
        let swept = self.nodes[node].sweep(|prefix| family(prefix) == of);
        let other = &self.nodes[1 - node];
        let promised = other.kept || other.all_known.is_some_and(|known| known < since);
        for prefix in swept {
            let unchanged = other.routes.contains_key(&prefix) && other.changed[&prefix] < since;
            assert!(!(promised && unchanged), "End-of-RIB before {prefix}, which was there before");
        }
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
                self.nodes[node].changed.insert(address.into(), self.now);
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
            Happening::Restart { kept } => self.restart(node, kept),
            Happening::RoutesKnown { life } => {
                let this = &mut self.nodes[node];
                if this.life == life {
                    for (prefix, med) in std::mem::take(&mut this.unknown) {
                        this.apply(prefix, Some(med));
                    }
                    this.all_known = Some(self.now);
                    this.rib.initial_routes_complete();
                    this.rib.peers_have_told();
                    self.plan(Duration::ZERO, node, Happening::Writable);
                }
            }
            Happening::StaleExpire => {
                let this = &mut self.nodes[node];
                let waited = this.negotiated.is_none()
                    && self.now >= this.stale_since + Duration::from_secs(RESTART_TIME.into());
                this.sweep(|_| waited);
            }
            Happening::Stop { lasting } => {
                let why = if lasting { Cease::PeerDeconfigured } else { Cease::OtherConfigurationChange };
                let stood = self.nodes[node].negotiated.is_some();
                self.session(node, Event::ManualStop(Farewell::Cease(Notification::cease(why))));
                let nothing_left = self.nodes[node].learnt.is_empty();
                assert!(!(lasting && stood) || nothing_left, "the session is over for good");
                self.session(node, Event::ManualStart);
            }
            Happening::Suspend => {
                let pause = self.random.millis(40_000);
                self.nodes[node].suspended = Some(self.now + pause);
            }
            Happening::Refresh => self.refresh(node),
        }
    }

    fn restart(&mut self, node: usize, kept: bool) {
        for link in std::mem::take(&mut self.nodes[node].links).into_values() {
            self.close(node, link);
        }
        if let Some(link) = self.nodes[node].dialling.take() {
            self.close(node, link);
        }
        let seed = self.random.next();
        let old = &mut self.nodes[node];
        let mut config = old.config.clone();
        if let Some(offer) = &mut config.graceful_restart {
            offer.restarting = kept;
        }
        let (routes, changed) = (std::mem::take(&mut old.routes), std::mem::take(&mut old.changed));
        let life = old.life + 1;
        let new = Node::new(config, seed, self.now);
        self.nodes[node] = Node { routes: routes.clone(), changed, life, all_known: None, ..new };
        // What is announced comes back bit by bit.
        let pause = self.random.millis(10_000);
        self.plan(pause, node, Happening::RoutesKnown { life });
        for (prefix, med) in routes {
            if self.random.chance(50) {
                self.nodes[node].apply(prefix, Some(med));
            } else {
                self.nodes[node].unknown.insert(prefix, med);
            }
        }
        self.session(node, Event::ManualStart);
    }

    fn refresh(&mut self, node: usize) {
        let of = Family::ALL[self.random.index(2)];
        let this = &mut self.nodes[node];
        let Some(direction) = this.session.established().map(|(direction, _)| direction) else { return };
        let Some(&link) = this.links.get(&direction) else { return };
        let learnt = this.learnt.keys().copied().filter(|p| family(*p) == of && !this.stale.contains(p));
        this.awaited.extend(learnt);
        let context =
            Context { four_octet_asn: true, ibgp: false, extended_messages: false, ..Context::default() };
        let mut bytes = Vec::new();
        let message = Message::RouteRefresh(RouteRefresh::new(RefreshKind::Request, of));
        message.encode(context, &mut bytes).unwrap();
        self.transmit(node, link, Happening::Bytes { link, bytes });
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
        while let Some(Reverse((at, count, node, happening))) = self.agenda.pop() {
            if at > self.trouble_ends + RECOVERY {
                break;
            }
            self.now = at;
            if let Some(until) = self.nodes[node].suspended.filter(|until| *until > at) {
                // In the order it would have happened.
                self.agenda.push(Reverse((until, count, node, happening)));
                continue;
            }
            self.happen(node, happening);
        }
        for node in [0, 1] {
            let (this, other) = (&self.nodes[node], &self.nodes[1 - node]);
            assert_eq!(this.session.state(), State::Established, "node {node}");
            assert_eq!(this.learnt, other.routes, "node {node}");
            assert_eq!(this.complete, Families::ALL, "node {node}");
            assert_eq!(this.stale, BTreeSet::new(), "node {node}");
            assert_eq!(this.awaited, BTreeSet::new(), "node {node}");
            // Of two connections one is left, the same for both.
            assert_eq!(this.links.values().collect::<Vec<_>>(), other.links.values().collect::<Vec<_>>());
            assert_eq!(this.links.len(), 1);
        }
        let link = &self.links[*self.nodes[0].links.values().next().unwrap()];
        assert!(link.open == [true; 2] && !self.nodes[link.dialler].config.passive);
    }
}

fn environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

#[test]
fn sessions_converge() {
    let seeds = match environment("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..environment("SEEDS").unwrap_or(SEEDS),
    };
    // Each thread takes its share.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let seeds = seeds.clone().skip(thread).step_by(threads);
            scope.spawn(move || {
                for seed in seeds {
                    let outcome = std::panic::catch_unwind(|| Simulation::new(seed).run());
                    assert!(
                        outcome.is_ok(),
                        "seed {seed}: SEED={seed} cargo test -p sheave-bgp --test simulation"
                    );
                }
            });
        }
    });
}
