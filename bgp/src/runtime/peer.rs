//! A peer's task: moves bytes and time between its sockets, its [`Session`] and the [`Rib`](crate::rib::Rib).
//!
//! ```text
//!   stop ─────────┐                                ┌─► dial
//!   accepted ─────┤   Event            Action      ├─► output of a connection ─► socket
//!   dialled ──────┼──────────► Session ────────────┼─► Rib: peer up, down, refresh
//!   bytes ────────┤                                └─► Observed (status)
//!   timer ────────┘
//!   routes changed ── after COALESCE ──► Rib::write ─► output, while it is short
//!   UPDATE, lost ──► Learnt (`learning`)
//! ```

mod learning;
mod path;

use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::bfd::BfdSession;
use super::bmp::Opens;
use super::config::{PeerConfig, SpeakerConfig};
use super::shared::{Observed, ObservedSession, Shared, lock};
use super::socket;
use crate::Family;
use crate::bmp::PeerUp;
use crate::rib::{Export, MaxPrefixes};
use crate::session::{
    Action, Direction, Down, Event, Farewell, Jitter, Negotiated, RestartOffer, Session, SessionConfig, State,
};
use crate::wire::{Context, RefreshKind, Update};

/// How long changes are gathered before they are sent, so that those that come together share messages.
const COALESCE: Duration = Duration::from_millis(10);
/// As many fill messages by themselves, and are not waited with.
const PLENTY: usize = 2_000;
/// Unwritten output beyond which no more UPDATEs are made.
const OUTPUT_LIMIT: usize = 64 * 1024;
/// How much is read at once.
const INPUT_LIMIT: usize = 64 * 1024;

/// What the task of a peer is driven by.
pub(super) struct Inputs {
    /// Ends the task; so does dropping the sender, without a NOTIFICATION.
    pub(super) stop: oneshot::Receiver<Farewell>,
    /// Configurations that take no other session, one after the other.
    pub(super) changes: watch::Receiver<PeerConfig>,
    /// Connections from the peer.
    pub(super) accepted: mpsc::Receiver<TcpStream>,
}

/// The task of one peer.
pub(super) struct PeerTask {
    shared: Arc<Shared>,
    config: PeerConfig,
    inputs: Inputs,
    changed: watch::Receiver<()>,
    observed: Arc<Mutex<Observed>>,
    /// Set where the task is to end by itself.
    linger: Option<Linger>,
    session: Session,
    dialling: Option<Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>>,
    outgoing: Option<Connection>,
    incoming: Option<Connection>,
    /// Connections that are being closed.
    closing: JoinSet<()>,
    sending: Sending,
    /// For monitoring stations.
    opens: Opens,
    /// The limit that the peer exceeded, until there is a session again: another limit gives it one at once.
    torn_down: Option<MaxPrefixes>,
    /// When stale routes of the peer may have to go: looked at then, as they may be gone already.
    stale_until: Option<Instant>,
    /// How often the peer would have been asked for all it announces, for monitoring stations.
    asks: u64,
    /// BFD beside the session.
    path: Option<BfdSession>,
}

/// The end of a task whose peer stays away.
#[derive(Clone, Copy, Debug)]
struct Linger {
    /// How long it is waited for.
    time: Duration,
    /// `None` while there is a connection.
    until: Option<Instant>,
}

/// Where the task is in sending routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    /// All is made into messages.
    Done,
    /// Changes are gathered until then.
    Gathering { until: Instant },
    /// There is more to make into messages.
    Writing,
}

/// An open connection.
struct Connection {
    stream: TcpStream,
    local: SocketAddr,
    output: Vec<u8>,
    /// How much of `output` the kernel has taken.
    taken: usize,
    /// The session knows that output waits.
    waits: bool,
    /// All changes up to this one are written once `output` is.
    drained: Option<u64>,
}

/// What woke the task.
enum Input {
    Stop(Farewell),
    Reconfigured,
    Gone,
    Accepted(TcpStream),
    Dialled(io::Result<TcpStream>),
    Readable(Direction),
    Writable(Direction),
    SessionTimer,
    StaleTimer,
    RoutesChanged,
    Gathered,
    PathChanged,
}

impl Connection {
    fn new(stream: TcpStream) -> io::Result<Connection> {
        let local = stream.local_addr()?;
        Ok(Connection { stream, local, output: Vec::new(), taken: 0, waits: false, drained: None })
    }

    fn unwritten(&self) -> usize {
        self.output.len() - self.taken
    }

    /// Gives the kernel what it takes.
    fn write(&mut self) -> io::Result<usize> {
        let mut total = 0;
        while self.unwritten() > 0 {
            match self.stream.try_write(&self.output[self.taken..]) {
                Ok(count) => {
                    self.taken += count;
                    total += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        // What is taken goes when that moves little, or when there is much of it.
        if self.unwritten() == 0 || self.taken >= OUTPUT_LIMIT {
            self.output.drain(..self.taken);
            self.taken = 0;
        }
        Ok(total)
    }
}

/// Waits for what an absent thing would do: for ever.
async fn or_never<T>(future: Option<impl Future<Output = T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    or_never(at.map(|at| tokio::time::sleep_until(at.into()))).await;
}

async fn readable(connection: Option<&Connection>) {
    // An error shows when it is read.
    let _ = or_never(connection.map(|c| c.stream.readable())).await;
}

async fn writable(connection: Option<&Connection>) {
    let waiting = connection.filter(|c| c.unwritten() > 0);
    let _ = or_never(waiting.map(|c| c.stream.writable())).await;
}

impl PeerTask {
    /// `linger`: how long a peer that stays away is waited for, if not for ever; `again`: an earlier task had a session with it.
    pub(super) fn new(
        shared: Arc<Shared>,
        config: PeerConfig,
        linger: Option<Duration>,
        again: bool,
        inputs: Inputs,
        observed: Arc<Mutex<Observed>>,
    ) -> PeerTask {
        let seed = RandomState::new().build_hasher().finish();
        let session = Session::new(session_config(&shared.config, &config), Jitter::seeded(seed));
        PeerTask {
            session: if again { session.continued() } else { session },
            changed: shared.changed.subscribe(),
            shared,
            config,
            inputs,
            observed,
            linger: linger.map(|time| Linger { time, until: None }),
            dialling: None,
            outgoing: None,
            incoming: None,
            closing: JoinSet::new(),
            sending: Sending::Done,
            opens: Opens::default(),
            torn_down: None,
            stale_until: None,
            asks: 0,
            path: None,
        }
    }

    /// Runs until told to stop, or the peer has stayed away for longer than it is waited for.
    pub(super) async fn run(mut self) {
        // What an earlier task for the peer left.
        self.stale_until = self.shared.learnt().deadline(self.config.address);
        self.set_client();
        self.watch_path();
        self.event(Event::ManualStart);
        let another_follows = loop {
            let input = self.next_input().await;
            while self.closing.try_join_next().is_some() {}
            match input {
                Input::Stop(farewell) => {
                    if farewell == Farewell::Silent {
                        // The whole speaker goes: no peer is to hear of it by way of another.
                        self.shared.learnt().freeze();
                    }
                    // Nobody may come again from a range.
                    let another_follows = farewell.begins_anew() && self.linger.is_none();
                    self.event(Event::ManualStop(farewell));
                    break another_follows;
                }
                Input::Reconfigured => self.reconfigured(),
                Input::Gone => {
                    self.event(Event::ManualStop(Farewell::Silent));
                    break false;
                }
                Input::Accepted(stream) => self.accepted(stream),
                Input::Dialled(result) => self.dialled(result),
                Input::Readable(direction) => self.read(direction),
                Input::Writable(direction) => self.write(direction),
                Input::SessionTimer => {
                    // What has come in time must not be missed because this task was late.
                    Direction::ALL.into_iter().for_each(|direction| self.read(direction));
                    self.event(Event::TimerExpired);
                }
                Input::StaleTimer => self.expire_learnt(),
                Input::RoutesChanged => {
                    let plenty = self.shared.rib().changes(self.config.address) >= PLENTY;
                    self.sending = match plenty {
                        true => Sending::Writing,
                        false => Sending::Gathering { until: Instant::now() + COALESCE },
                    };
                }
                Input::Gathered => self.sending = Sending::Writing,
                Input::PathChanged => {
                    // A peer that has closed its connection before it fell silent restarts.
                    Direction::ALL.into_iter().for_each(|direction| self.read(direction));
                    self.path_changed();
                }
            }
            self.send_routes();
            Direction::ALL.into_iter().for_each(|direction| self.watch_output(direction));
        };
        if !another_follows {
            self.forget_learnt();
        }
        self.shared.progress.send_replace(());
        while self.closing.join_next().await.is_some() {}
    }

    async fn next_input(&mut self) -> Input {
        let gathered = match self.sending {
            Sending::Gathering { until } => Some(until),
            Sending::Done | Sending::Writing => None,
        };
        let heeds_changes = self.session.established().is_some() || self.torn_down.is_some();
        let idle = self.sending == Sending::Done && heeds_changes;
        tokio::select! {
            farewell = &mut self.inputs.stop => Input::Stop(farewell.unwrap_or(Farewell::Silent)),
            Ok(()) = self.inputs.changes.changed() => Input::Reconfigured,
            Some(stream) = self.inputs.accepted.recv() => Input::Accepted(stream),
            () = sleep_until(self.linger.and_then(|linger| linger.until)) => Input::Gone,
            result = or_never(self.dialling.as_mut()) => Input::Dialled(result),
            () = readable(self.outgoing.as_ref()) => Input::Readable(Direction::Outgoing),
            () = readable(self.incoming.as_ref()) => Input::Readable(Direction::Incoming),
            () = writable(self.outgoing.as_ref()) => Input::Writable(Direction::Outgoing),
            () = writable(self.incoming.as_ref()) => Input::Writable(Direction::Incoming),
            () = sleep_until(self.session.next_deadline()) => Input::SessionTimer,
            () = sleep_until(self.stale_until) => Input::StaleTimer,
            () = sleep_until(gathered) => Input::Gathered,
            () = or_never(self.path.as_mut().map(BfdSession::changed)) => Input::PathChanged,
            Ok(()) = self.changed.changed(), if idle => Input::RoutesChanged,
        }
    }

    fn connection(&mut self, direction: Direction) -> &mut Option<Connection> {
        match direction {
            Direction::Outgoing => &mut self.outgoing,
            Direction::Incoming => &mut self.incoming,
        }
    }

    fn observed(&self) -> MutexGuard<'_, Observed> {
        lock(&self.observed)
    }

    fn event(&mut self, event: Event<'_>) {
        let actions = self.session.handle(event, Instant::now());
        self.act(actions);
    }

    fn accepted(&mut self, stream: TcpStream) {
        let ready = socket::configure(&SockRef::from(&stream), &self.config, self.shared.config.asn);
        let Ok(connection) = ready.and_then(|()| Connection::new(stream)) else { return };
        let mut actions = self.session.handle(Event::TcpAccepted, Instant::now());
        let Some(at) = actions.iter().position(|action| *action == Action::Accept) else {
            tracing::debug!(peer = %self.config.address, "connection refused");
            return;
        };
        let after = actions.split_off(at);
        self.act(actions);
        self.incoming = Some(connection);
        self.act(after);
    }

    fn reconfigured(&mut self) {
        self.config = self.inputs.changes.borrow_and_update().clone();
        self.watch_path();
        let config = session_config(&self.shared.config, &self.config);
        let actions = self.session.reconfigure(config, Instant::now());
        self.act(actions);
        // Also of one that is away: its routes may be kept, and passed on, meanwhile.
        self.set_client();
        let Some((direction, negotiated)) = self.session.established() else { return };
        let negotiated = negotiated.clone();
        let Some(local) = self.connection(direction).as_ref().map(|connection| connection.local) else {
            return;
        };
        let next_hops = self.next_hops(local.ip(), &negotiated);
        let mut rib = self.shared.rib();
        rib.set_policy(self.config.address, &self.config.export);
        rib.set_next_hops(self.config.address, &next_hops);
        drop(rib);
        self.sending = Sending::Writing;
    }

    fn dialled(&mut self, result: io::Result<TcpStream>) {
        self.dialling = None;
        match result.and_then(Connection::new) {
            Ok(connection) => {
                self.outgoing = Some(connection);
                self.event(Event::TcpConnected);
            }
            Err(error) => self.event(Event::TcpConnectFailed(error.to_string())),
        }
    }

    fn read(&mut self, direction: Direction) {
        // Not kept: of many peers few have something to say.
        let mut input = [0; INPUT_LIMIT];
        let Some(connection) = self.connection(direction) else { return };
        match connection.stream.try_read(&mut input) {
            Ok(count) if count > 0 => {
                self.observed().counters.bytes_received += count as u64;
                self.opens.received(direction, &input[..count]);
                self.event(Event::Received(direction, &input[..count]));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => self.lost(direction),
        }
    }

    fn lost(&mut self, direction: Direction) {
        self.event(Event::TcpClosed(direction));
    }

    fn write(&mut self, direction: Direction) {
        let Some(connection) = self.connection(direction) else { return };
        match connection.write() {
            Ok(count) => {
                let drained = if connection.unwritten() == 0 { connection.drained.take() } else { None };
                if count > 0 && std::mem::take(&mut connection.waits) {
                    self.event(Event::OutputMoves(direction));
                }
                let mut observed = self.observed();
                observed.counters.bytes_sent += count as u64;
                if let Some((session, drained)) = observed.session.as_mut().zip(drained) {
                    session.flushed = Some(drained);
                    drop(observed);
                    self.shared.progress.send_replace(());
                }
            }
            Err(_) => self.lost(direction),
        }
    }

    /// Tells the session of output that the kernel does not take.
    fn watch_output(&mut self, direction: Direction) {
        if let Some(connection) = self.connection(direction)
            && connection.unwritten() > 0
            && !std::mem::replace(&mut connection.waits, true)
        {
            self.event(Event::OutputWaits(direction));
        }
    }

    /// Makes UPDATEs of what is pending, as long as the peer keeps up.
    fn send_routes(&mut self) {
        while self.sending == Sending::Writing {
            // Before RIB and policy are looked at: what changes from here on wakes this task again.
            self.changed.mark_unchanged();
            self.policy_changed();
            let Some((direction, _)) = self.session.established() else {
                self.sending = Sending::Done;
                return;
            };
            let shared = Arc::clone(&self.shared);
            let peer = self.config.address;
            let Some(connection) = self.connection(direction) else { return };
            if connection.unwritten() >= OUTPUT_LIMIT {
                return;
            }
            let limit = connection.taken + OUTPUT_LIMIT;
            let (written, more) = {
                let mut rib = shared.rib();
                let at = connection.output.len();
                let written = rib.write(peer, &mut connection.output, limit);
                shared.monitor.sent(peer, &connection.output[at..]);
                (written, rib.has_pending(peer))
            };
            connection.drained = written.drained;
            self.observed().counters.updates_sent += written.updates;
            self.sending = if more { Sending::Writing } else { Sending::Done };
            self.write(direction);
        }
    }

    fn act(&mut self, actions: Vec<Action>) {
        let mut exceeded = None;
        let mut updates = Vec::new();
        for action in actions {
            if !matches!(action, Action::Update(_)) {
                exceeded = exceeded.or(self.learn(&mut updates));
            }
            match action {
                Action::Connect => {
                    self.dialling =
                        Some(Box::pin(socket::connect(self.config.clone(), self.shared.config.asn)));
                }
                Action::AbortConnect => self.dialling = None,
                // `accepted` has put the connection in its place.
                Action::Accept => {}
                Action::Send(direction, bytes) => {
                    self.opens.sent(direction, &bytes);
                    if let Some(connection) = self.connection(direction) {
                        connection.output.extend_from_slice(&bytes);
                    }
                }
                Action::Close(direction) => {
                    self.opens.closed(direction);
                    if let Some(mut connection) = self.connection(direction).take() {
                        let rest = connection.output.split_off(connection.taken);
                        self.closing.spawn(socket::close(connection.stream, rest));
                    }
                }
                Action::Established(direction, negotiated) => self.established(direction, negotiated),
                Action::Down(reason) => self.down(reason),
                Action::Update(update) => {
                    self.received(&update);
                    updates.push(update);
                }
                Action::RouteRefresh(RefreshKind::Begin, family) => self.hear_again(family),
                Action::RouteRefresh(RefreshKind::End, family) => self.heard_again(family),
                Action::RouteRefresh(RefreshKind::Request, family) => {
                    self.shared.rib().refresh(self.config.address, family);
                    self.sending = Sending::Writing;
                }
            }
        }
        exceeded = exceeded.or(self.learn(&mut updates));
        let state = self.session.state();
        self.observed().set_state(state);
        if let Some(exceeded) = exceeded {
            self.exceeds(exceeded);
        }
        if let Some(linger) = &mut self.linger {
            linger.until = match linger.until {
                _ if state >= State::OpenSent => None,
                None => Some(Instant::now() + linger.time),
                since => since,
            };
        }
    }

    fn established(&mut self, direction: Direction, negotiated: Negotiated) {
        let Some(connection) = self.connection(direction) else { return };
        let (local, remote) = (connection.local, connection.stream.peer_addr());
        self.torn_down = None;
        let export = Export {
            asn: self.shared.config.asn,
            context: Context {
                four_octet_asn: negotiated.four_octet_asn,
                ibgp: negotiated.asn == self.shared.config.asn,
                extended_messages: negotiated.extended_messages,
                add_path: negotiated.paths_sent,
            },
            enhanced_refresh: negotiated.enhanced_refresh,
            next_hops: self.next_hops(local.ip(), &negotiated),
            role: self.config.role.map(|offer| offer.role),
            link_local: link_local(local.ip()),
            policy: self.config.export.clone(),
            peer: self.config.address,
            router_id: negotiated.router_id,
            client: self.config.client,
            extended_next_hop: negotiated.extended_next_hop,
            long_lived: negotiated.long_lived.iter().map(|offer| offer.family).collect(),
        };
        let peer = self.config.address;
        // Whoever is there by now hears what comes by itself.
        self.asks = self.shared.monitor.asks();
        let received = Context { add_path: negotiated.paths_received, ..export.context };
        tracing::info!(%peer, asn = negotiated.asn, %local, "session established");
        let (sent_open, received_open) = self.opens.established(direction);
        let remote_port = remote.map_or(self.config.port, |remote| remote.port());
        let up = PeerUp { local, remote_port, sent_open, received_open };
        {
            let mut rib = self.shared.rib();
            rib.peer_up(peer, export);
            self.shared.monitor.peer_up(peer, &negotiated, up, received);
        }
        self.learn_from(local, &negotiated);
        self.sending = Sending::Writing;
        let mut observed = self.observed();
        observed.counters.established += 1;
        observed.asn = Some(negotiated.asn);
        observed.session = Some(ObservedSession { since: Instant::now(), local, negotiated, flushed: None });
        drop(observed);
        if self.path.is_none() {
            self.watch_path();
        }
    }

    /// What each family is announced with on a session from `local`.
    fn next_hops(&self, local: IpAddr, negotiated: &Negotiated) -> Vec<(Family, Option<IpAddr>)> {
        let next_hop = |family| next_hop(&self.config, local, family, negotiated.extended_next_hop);
        let next_hops: Vec<_> = negotiated.families.iter().map(|family| (family, next_hop(family))).collect();
        for (family, _) in next_hops.iter().filter(|(_, next_hop)| next_hop.is_none()) {
            let peer = self.config.address;
            tracing::warn!(%peer, %family, "no next hop, nothing is announced: set `next_hop_v4` or `next_hop_v6`");
        }
        next_hops
    }

    fn down(&mut self, mut reason: Down) {
        if let Down::ConnectFailed(text) = &mut reason
            && text.contains("timed out")
        {
            // What the kernel drops without telling anyone.
            if self.config.password.is_some() {
                text.push_str(": unreachable, or its password (TCP MD5) is not the one configured here");
            }
            if self.config.ttl_security.is_some() {
                text.push_str(
                    ": unreachable, further away than TTL security allows, or without TTL security itself",
                );
            }
        }
        let peer = self.config.address;
        let notification = self.opens.notification();
        {
            let mut rib = self.shared.rib();
            rib.peer_down(peer);
            self.shared.monitor.peer_down(peer, &reason, notification);
        }
        self.lose_learnt(&reason);
        self.sending = Sending::Done;
        let mut observed = self.observed();
        let repeated = observed.last_error.as_ref().is_some_and(|last| last.reason == reason);
        match &reason {
            Down::ConnectFailed(_) if repeated => tracing::debug!(%peer, "{reason}"),
            Down::Stopped | Down::Reset => tracing::info!(%peer, "session {reason}"),
            _ => tracing::warn!(%peer, "session down: {reason}"),
        }
        match reason {
            Down::NotificationReceived(_) => observed.counters.notifications_received += 1,
            Down::Error(_) => observed.counters.notifications_sent += 1,
            Down::ConnectionClosed | Down::ConnectFailed(_) | Down::Stopped | Down::Reset => {}
        }
        observed.set_down(reason);
        drop(observed);
        self.shared.progress.send_replace(());
    }

    fn received(&self, update: &Update) {
        for error in &update.malformed {
            tracing::warn!(peer = %self.config.address, handling = ?error.handling, "malformed UPDATE: {error}");
        }
        let mut observed = self.observed();
        let counters = &mut observed.counters;
        counters.updates_received += 1;
        counters.prefixes_received += update.reachable().count() as u64;
        counters.prefixes_withdrawn += update.unreachable().count() as u64;
        counters.malformed_updates += u64::from(!update.malformed.is_empty());
    }
}

/// The part of the configuration that the session needs.
fn session_config(speaker: &SpeakerConfig, peer: &PeerConfig) -> SessionConfig {
    let seconds = |time: Duration| u16::try_from(time.as_secs()).unwrap_or(u16::MAX);
    SessionConfig {
        asn: speaker.asn,
        router_id: speaker.router_id,
        peer_asn: (!peer.any_external_asn).then_some(peer.asn),
        passive: peer.passive,
        hold_time: match seconds(peer.hold_time) {
            0 if peer.hold_time.is_zero() => 0,
            // RFC 4271 §4.2: zero, or at least three seconds.
            short => short.max(3),
        },
        send_hold_time: peer.send_hold_time,
        delay_open: peer.delay_open,
        connect_retry: peer.connect_retry,
        families: peer.families,
        role: peer.role,
        add_paths: peer.add_paths,
        extended_next_hop: peer.extended_next_hop && peer.address.is_ipv6(),
        graceful_restart: speaker.graceful_restart.map(|restart| RestartOffer {
            restart_time: seconds(restart.restart_time),
            restarting: speaker.restarting,
            stale_time: restart.stale_time.map(|time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX)),
        }),
    }
}

/// What `family` is announced with on a session from `local`: configured, or this side of the session where that is an
/// address of the family, or IPv4 is `extended` to next hops of the other.
fn next_hop(peer: &PeerConfig, local: IpAddr, family: Family, extended: bool) -> Option<IpAddr> {
    match (family, local) {
        (Family::Ipv4Unicast, IpAddr::V4(local)) => Some(peer.next_hop_v4.unwrap_or(local).into()),
        (Family::Ipv4Unicast, IpAddr::V6(_)) if !extended => peer.next_hop_v4.map(IpAddr::V4),
        (_, IpAddr::V6(local)) => Some(peer.next_hop_v6.unwrap_or(local).into()),
        (Family::Ipv6Unicast, IpAddr::V4(_)) => peer.next_hop_v6.map(IpAddr::V6),
    }
}

/// An address that says nothing away from its link.
fn link_local(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V6(address) if address.is_unicast_link_local() => Some(address),
        _ => None,
    }
}
