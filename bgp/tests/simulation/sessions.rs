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

mod node;
mod plan;
mod stale;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use sheave_bgp::rib::{Export, ExportPolicy};
use sheave_bgp::session::{Action, Direction, Event, Farewell, State};
use sheave_bgp::wire::{Cease, Context, Message, Notification, RefreshKind, RouteRefresh};
use sheave_bgp::{Families, Family};

use self::node::{Link, Node, address, family};
use crate::random::Random;

const SEEDS: u64 = 10_000;
/// How long each side is waited for when it restarts, in seconds.
const RESTART_TIME: u16 = 60;
/// For how long things go wrong.
const TROUBLE: Duration = Duration::from_secs(120);
/// How long after that everything must be well: what is waited for an OPEN on a connection that hangs, the longest
/// pause, and some.
const RECOVERY: Duration = Duration::from_secs(300);

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

struct Simulation {
    random: Random,
    now: Instant,
    trouble_ends: Instant,
    nodes: [Node; 2],
    links: Vec<Link>,
    agenda: BinaryHeap<Reverse<(Instant, u64, usize, Happening)>>,
    count: u64,
}

impl Simulation {
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
                    let (first, second) = bytes.split_at(self.random.below(bytes.len() + 1));
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
        let of = Family::ALL[self.random.below(2)];
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

#[test]
fn sessions_converge() {
    crate::with_seeds("sessions_converge", SEEDS, |seed| Simulation::new(seed).run());
}
