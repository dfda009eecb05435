//! All sessions, on one thread.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::socket::{Kind, Listener};
use super::{BfdPeer, BfdStatus, Command, socket};
use crate::bfd::{self, Action, Packet, PacketError, Session, SessionConfig, Signer, State};
use crate::runtime::socket::is_behind;
use crate::session::Jitter;

/// How many packets are taken in before timers and commands have their turn.
const BATCH: usize = 64;
/// How many are looked at before one that is missed is said to be lost: more than wait in a listener.
const BACKLOG: usize = 16_384;
/// How often a side is told at once that a session ends, as packets get lost, and the time between.
const FAREWELLS: u32 = 3;
const FAREWELL_PAUSE: Duration = Duration::from_millis(20);
/// The time between later ones.
const FAREWELL_INTERVAL: Duration = Duration::from_secs(1);
/// How long they go on at most, whatever the other side says of how long it takes to notice; and of how many sessions at once, as each takes
/// a socket: of more it is said once.
const FAREWELL_LIMIT: Duration = Duration::from_secs(10);
const FAREWELL_SESSIONS: usize = 1024;
/// How soon a socket that could not be made is tried again.
const SOCKET_AGAIN: Duration = Duration::from_secs(1);

/// One session and what it has.
struct Entry {
    peer: BfdPeer,
    session: Session,
    socket: Option<std::net::UdpSocket>,
    /// Why there is none, and when it is tried again.
    failed: Option<(String, Instant)>,
    status: watch::Sender<BfdStatus>,
    deadline: Option<Instant>,
    signer: Signer,
    /// Until then the other side may not count its packets from elsewhere.
    counted: Option<Instant>,
    /// It ends, and the other side is told.
    farewell: Option<Farewell>,
}

/// AdminDown, which is no failure: for as long as it takes the other side to notice that nothing comes (RFC 5880 §6.8.16), within limits.
struct Farewell {
    said: u32,
    until: Instant,
}

/// The sessions of this system.
#[derive(Default)]
pub(super) struct Engine {
    entries: HashMap<u32, Entry>,
    /// Discriminators by the peer's address.
    addresses: HashMap<IpAddr, Vec<u32>>,
    /// Discriminators by when they are due.
    deadlines: BTreeSet<(Instant, u32)>,
    listeners: HashMap<Kind, Listener>,
    /// Why one could not be made, and when it is tried again.
    deaf: HashMap<Kind, (String, Instant)>,
    hash: RandomState,
    count: u64,
}

impl Engine {
    pub(super) async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        let mut buffer = [0; 128];
        loop {
            let due = self.deadlines.first().map(|&(at, _)| at);
            let timer = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                command = inbox.recv() => match command {
                    None => return,
                    Some(Command::Leave(done)) => {
                        self.leave().await;
                        // Whoever is next may listen at once.
                        self.listeners.clear();
                        let _ = done.send(());
                        return;
                    }
                    Some(command) => self.command(command),
                },
                () = timer => {}
                kind = readable(&self.listeners) => self.receive(kind, &mut buffer),
            }
            self.expire(&mut buffer);
        }
    }

    fn command(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Open(peer, config, keys, status) => {
                let number = self.number_of(&peer).unwrap_or_else(|| self.add(&peer, config, now));
                let jitter = Jitter::seeded(self.hash.hash_one((number, now)));
                let Some(entry) = self.entries.get_mut(&number) else { return };
                // One that was about to end begins again, under its number: the other side still counts its packets.
                entry.session = Session::new(config, number, jitter, now);
                entry.farewell = None;
                entry.status = status;
                entry.signer.set_keys(keys);
                self.act(number, &[], now);
            }
            Command::Change(peer, config, keys) => {
                let Some(number) = self.number_of(&peer) else { return };
                let Some(entry) = self.entries.get_mut(&number) else { return };
                entry.signer.set_keys(keys);
                let actions = entry.session.reconfigure(config, now);
                self.act(number, &actions, now);
            }
            Command::Remove(peer) => {
                let Some(number) = self.number_of(&peer) else { return };
                let leaving = self.entries.values().filter(|entry| entry.farewell.is_some()).count();
                let Some(entry) = self.entries.get_mut(&number) else { return };
                if entry.session.is_heard() {
                    let actions = entry.session.take_down(now);
                    let limit = if leaving < FAREWELL_SESSIONS { FAREWELL_LIMIT } else { Duration::ZERO };
                    let time = entry.session.remote_detection_time().min(limit);
                    entry.farewell = Some(Farewell { said: 0, until: now + time });
                    self.act(number, &actions, now);
                    self.bid_farewell(number, now);
                } else {
                    self.forget(number);
                }
            }
            Command::Leave(_) => {}
        }
    }

    fn number_of(&self, peer: &BfdPeer) -> Option<u32> {
        self.numbers_at(peer.address)
            .find(|number| self.entries.get(number).is_some_and(|entry| entry.peer == *peer))
    }

    fn numbers_at(&self, address: IpAddr) -> impl Iterator<Item = u32> {
        self.addresses.get(&address).into_iter().flatten().copied()
    }

    fn add(&mut self, peer: &BfdPeer, config: SessionConfig, now: Instant) -> u32 {
        // RFC 5880 §10: not to be guessed.
        let number = loop {
            self.count += 1;
            let number = u32::try_from(self.hash.hash_one(self.count) >> 32).unwrap_or(1);
            if number != 0 && !self.entries.contains_key(&number) {
                break number;
            }
        };
        let sequence = u32::try_from(self.hash.hash_one((now, "sequence")) >> 32).unwrap_or(0);
        let entry = Entry {
            peer: peer.clone(),
            session: Session::new(config, number, Jitter::seeded(self.count), now),
            socket: None,
            failed: None,
            status: watch::channel(BfdStatus::default()).0,
            deadline: None,
            signer: Signer::new(Vec::new(), sequence),
            counted: None,
            farewell: None,
        };
        self.entries.insert(number, entry);
        self.addresses.entry(peer.address).or_default().push(number);
        number
    }

    fn forget(&mut self, number: u32) {
        let Some(entry) = self.entries.remove(&number) else { return };
        if let Some(at) = entry.deadline {
            self.deadlines.remove(&(at, number));
        }
        if let Some(numbers) = self.addresses.get_mut(&entry.peer.address) {
            numbers.retain(|one| *one != number);
            if numbers.is_empty() {
                self.addresses.remove(&entry.peer.address);
            }
        }
        let kind = Kind::of(&entry.peer);
        if !self.entries.values().any(|other| Kind::of(&other.peer) == kind) {
            // Another program may want the port.
            self.listeners.remove(&kind);
            self.deaf.remove(&kind);
        }
    }

    /// Sees to it that packets to these sessions come in; why they do not, if so.
    fn listen(&mut self, kind: Kind, now: Instant) -> Option<String> {
        if self.listeners.contains_key(&kind) {
            return None;
        }
        if let Some((why, again)) = self.deaf.get(&kind)
            && now < *again
        {
            return Some(why.clone());
        }
        match Listener::new(kind) {
            Ok(listener) => {
                self.deaf.remove(&kind);
                self.listeners.insert(kind, listener);
                None
            }
            Err(error) => {
                let remedy = match error.kind() {
                    io::ErrorKind::AddrInUse => ": another program of this node has it, stop its BFD",
                    _ => "",
                };
                let why = format!("listen on UDP port {}: {error}{remedy}", bfd::port(kind.multihop));
                self.deaf.insert(kind, (why.clone(), now + SOCKET_AGAIN));
                Some(why)
            }
        }
    }

    fn receive(&mut self, kind: Kind, buffer: &mut [u8]) {
        for _ in 0..BATCH {
            let Some(listener) = self.listeners.get(&kind) else { return };
            // An error of a socket that only receives is about one packet, if not that there is none.
            let Ok((length, from)) = listener.told.try_recv_from(buffer) else { return };
            self.received(kind, &buffer[..length], from);
        }
    }

    /// Takes in whatever has come, whether this thread was told of it or not.
    fn catch_up(&mut self, kind: Kind, buffer: &mut [u8]) {
        for _ in 0..BACKLOG {
            let Some(listener) = self.listeners.get(&kind) else { return };
            let Ok((length, from)) = listener.asked.recv_from(buffer) else { return };
            self.received(kind, &buffer[..length], from);
        }
    }

    fn received(&mut self, kind: Kind, bytes: &[u8], from: SocketAddr) {
        let packet = match Packet::decode(bytes) {
            Ok(packet) => packet,
            Err(error) => {
                tracing::debug!(%from, "BFD packet not taken: {error}");
                return;
            }
        };
        let Some(number) = self.find(kind, from, &packet) else {
            tracing::debug!(%from, "BFD packet of no session");
            return;
        };
        let now = Instant::now();
        let Some(entry) = self.entries.get_mut(&number) else { return };
        if let Err(error) = entry.verify(bytes, packet.multiplier, now) {
            tracing::debug!(%from, "BFD packet not taken: {error}");
            return;
        }
        let actions = entry.session.received(&packet, now);
        // RFC 5880 §6.8.1, bfd.AuthSeqKnown.
        entry.counted = Some(now + 2 * entry.session.detection_time());
        self.act(number, &actions, now);
    }

    /// Whose packet it is (RFC 5880 §6.8.6, RFC 5881 §3). A number alone does not do: who guesses it from elsewhere is nobody.
    fn find(&self, kind: Kind, from: SocketAddr, packet: &Packet) -> Option<u32> {
        let listener = self.listeners.get(&kind)?;
        let is_of = |number: &u32| {
            self.entries.get(number).is_some_and(|entry| {
                let peer = &entry.peer;
                peer.address == from.ip()
                    && peer.multihop == kind.multihop
                    && is_behind(&listener.asked, peer.interface.as_deref(), from)
            })
        };
        let goes_on = |number: &u32| self.entries.get(number).is_some_and(|entry| entry.farewell.is_none());
        match packet.receiver {
            0 => self.numbers_at(from.ip()).filter(goes_on).find(is_of),
            number => Some(number).filter(is_of),
        }
    }

    fn expire(&mut self, buffer: &mut [u8]) {
        let now = Instant::now();
        let mut caught_up = Vec::new();
        while let Some((at, number)) = self.deadlines.first().copied().filter(|&(at, _)| at <= now) {
            self.deadlines.remove(&(at, number));
            let Some(entry) = self.entries.get_mut(&number) else { continue };
            entry.deadline = None;
            if entry.farewell.is_some() {
                self.bid_farewell(number, now);
                continue;
            }
            if entry.session.is_overdue(now) {
                // What came in time is not to be missed because this thread was late.
                let kind = Kind::of(&entry.peer);
                if !caught_up.contains(&kind) {
                    caught_up.push(kind);
                    self.catch_up(kind, buffer);
                }
            }
            let Some(entry) = self.entries.get_mut(&number) else { continue };
            let actions = entry.session.timer(now);
            self.act(number, &actions, now);
        }
    }

    fn act(&mut self, number: u32, actions: &[Action], now: Instant) {
        let Some(kind) = self.entries.get(&number).map(|entry| Kind::of(&entry.peer)) else { return };
        let deaf = self.listen(kind, now);
        let Some(entry) = self.entries.get_mut(&number) else { return };
        for action in actions {
            match action {
                Action::Send(packet) => entry.send(number, packet, now),
                Action::Changed => {}
            }
        }
        entry.tell(deaf);
        if entry.farewell.is_none() {
            // A session that waits to be spoken to has nothing else that would have it listen.
            let again = self.deaf.get(&kind).map(|(_, again)| *again);
            let due = entry.session.next_deadline().into_iter().chain(again).min();
            self.due(number, due);
        }
    }

    fn due(&mut self, number: u32, due: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(&number) else { return };
        if due != entry.deadline {
            if let Some(at) = entry.deadline {
                self.deadlines.remove(&(at, number));
            }
            entry.deadline = due;
            self.deadlines.extend(due.map(|at| (at, number)));
        }
    }

    /// Says once more that a session ends, or that was it.
    fn bid_farewell(&mut self, number: u32, now: Instant) {
        let Some(entry) = self.entries.get_mut(&number) else { return };
        let Some(farewell) = &mut entry.farewell else { return };
        if now >= farewell.until {
            return self.forget(number);
        }
        let pause = if farewell.said < FAREWELLS { FAREWELL_PAUSE } else { FAREWELL_INTERVAL };
        if farewell.said > 0 {
            let actions = entry.session.take_down(now);
            self.act(number, &actions, now);
        }
        if let Some(farewell) = self.entries.get_mut(&number).and_then(|entry| entry.farewell.as_mut()) {
            farewell.said += 1;
        }
        self.due(number, Some(now + pause));
    }

    async fn leave(&mut self) {
        let numbers: Vec<u32> = self.entries.keys().copied().collect();
        for turn in 0..FAREWELLS {
            if turn > 0 {
                tokio::time::sleep(FAREWELL_PAUSE).await;
            }
            let now = Instant::now();
            for number in &numbers {
                if let Some(entry) = self.entries.get_mut(number) {
                    let actions = entry.session.take_down(now);
                    self.act(*number, &actions, now);
                }
            }
        }
    }
}

impl Entry {
    /// Whether a packet is signed as it has to be, or has to be not.
    fn verify(&mut self, bytes: &[u8], multiplier: u8, now: Instant) -> Result<(), PacketError> {
        if self.counted.is_some_and(|counted| now > counted) {
            self.signer.forget();
        }
        self.signer.verify(bytes, multiplier)
    }

    fn send(&mut self, number: u32, packet: &Packet, now: Instant) {
        if self.socket.is_none() && self.failed.as_ref().is_none_or(|(_, again)| *again <= now) {
            match socket::connect(&self.peer, number) {
                Ok(socket) => (self.socket, self.failed) = (Some(socket), None),
                Err(error) => {
                    let remedy = match error.kind() {
                        io::ErrorKind::AddrNotAvailable => ": give this node the session's local address",
                        _ => "",
                    };
                    self.failed = Some((format!("send: {error}{remedy}"), now + SOCKET_AGAIN));
                }
            }
        }
        let Some(socket) = &self.socket else { return };
        match socket.send(&self.signer.sign(packet.encode())) {
            Ok(_) => {}
            // Nobody listens there yet: an ICMP error to a packet before this one.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The address or the interface may have gone: what is chosen anew may work.
            Err(_) => self.socket = None,
        }
    }

    fn tell(&self, deaf: Option<String>) {
        let session = &self.session;
        let problem = deaf.or_else(|| self.failed.as_ref().map(|(why, _)| why.clone()));
        self.status.send_if_modified(|status| {
            let before = status.clone();
            status.state = session.state();
            status.remote_state = session.remote_state();
            status.remote_independent = session.remote_independent();
            status.diagnostic = session.diagnostic();
            status.remote_diagnostic = session.remote_diagnostic();
            status.transmit_interval = session.transmit_interval();
            status.receive_interval = session.receive_interval();
            status.detection_time = session.detection_time();
            status.problem = problem;
            match (before.state == State::Up, status.state == State::Up) {
                (false, true) => status.ups += 1,
                // RFC 5882 §3.2: not so where an operator of either side has taken it down.
                (true, false) => {
                    let wanted = [status.state, status.remote_state].contains(&State::AdminDown);
                    status.failures += u64::from(!wanted);
                }
                _ => {}
            }
            *status != before
        });
    }
}

/// Which of the listeners has something.
async fn readable(listeners: &HashMap<Kind, Listener>) -> Kind {
    std::future::poll_fn(|context| {
        for (kind, listener) in listeners {
            if listener.told.poll_recv_ready(context).is_ready() {
                return std::task::Poll::Ready(*kind);
            }
        }
        std::task::Poll::Pending
    })
    .await
}
