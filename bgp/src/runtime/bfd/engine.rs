//! All sessions, on one thread.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};

use super::socket::Kind;
use super::{BfdPeer, BfdStatus, Command, socket};
use crate::bfd::{Action, Key, Packet, PacketError, Session, SessionConfig, Signer, State};
use crate::runtime::socket::is_behind;
use crate::session::Jitter;

/// How many packets are taken in before timers and commands have their turn.
const BATCH: usize = 64;
/// How often all are told that sessions end, as packets get lost, and the time between.
const FAREWELLS: u32 = 3;
const FAREWELL_PAUSE: Duration = Duration::from_millis(20);
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
    signer: Option<Signer>,
    /// When the last packet came that was signed as it has to be.
    signed: Option<Instant>,
}

/// The sessions of this system.
#[derive(Default)]
pub(super) struct Engine {
    entries: HashMap<u32, Entry>,
    /// Discriminators by the peer's address.
    addresses: HashMap<IpAddr, Vec<u32>>,
    /// Discriminators by when they are due.
    deadlines: BTreeSet<(Instant, u32)>,
    listeners: HashMap<Kind, UdpSocket>,
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
                        let _ = done.send(());
                        return;
                    }
                    Some(command) => self.command(command),
                },
                () = timer => {}
                kind = readable(&self.listeners) => self.receive(kind, &mut buffer),
            }
            self.expire();
        }
    }

    fn command(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Set(peer, config, key, status) => {
                let number = self.number_of(&peer).unwrap_or_else(|| self.add(&peer, config, now));
                let sequence = u32::try_from(self.hash.hash_one((now, "sequence")) >> 32).unwrap_or(0);
                let Some(entry) = self.entries.get_mut(&number) else { return };
                entry.status = status;
                entry.sign_with(key, sequence);
                let actions = entry.session.reconfigure(config, now);
                self.act(number, &actions, now);
            }
            Command::Remove(peer) => {
                let Some(number) = self.number_of(&peer) else { return };
                if let Some(numbers) = self.addresses.get_mut(&peer.address) {
                    numbers.retain(|one| *one != number);
                }
                if let Some(at) = self.entries.remove(&number).and_then(|entry| entry.deadline) {
                    self.deadlines.remove(&(at, number));
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
        let jitter = Jitter::seeded(self.hash.hash_one((self.count, "jitter")));
        let entry = Entry {
            peer: peer.clone(),
            session: Session::new(config, number, jitter, now),
            socket: None,
            failed: None,
            status: watch::channel(BfdStatus::default()).0,
            deadline: None,
            signer: None,
            signed: None,
        };
        self.entries.insert(number, entry);
        self.addresses.entry(peer.address).or_default().push(number);
        number
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
        match socket::listen(kind) {
            Ok(listener) => {
                self.deaf.remove(&kind);
                self.listeners.insert(kind, listener);
                None
            }
            Err(error) => {
                let why = format!("BFD: UDP port {}: {error}", socket::port(kind.multihop));
                self.deaf.insert(kind, (why.clone(), now + SOCKET_AGAIN));
                Some(why)
            }
        }
    }

    fn receive(&mut self, kind: Kind, buffer: &mut [u8]) {
        for _ in 0..BATCH {
            let Some(listener) = self.listeners.get(&kind) else { return };
            // An error of a socket that only receives is about one packet, if not that there is none.
            let Ok((length, from)) = listener.try_recv_from(buffer) else { return };
            let bytes = &buffer[..length];
            let packet = match Packet::decode(bytes) {
                Ok(packet) => packet,
                Err(error) => {
                    tracing::debug!(%from, "BFD packet not taken: {error}");
                    continue;
                }
            };
            let Some(number) = self.find(kind.multihop, from, &packet) else {
                tracing::debug!(%from, "BFD packet of no session");
                continue;
            };
            let now = Instant::now();
            let Some(entry) = self.entries.get_mut(&number) else { continue };
            if let Err(error) = entry.verify(bytes, packet.multiplier, now) {
                tracing::debug!(%from, "BFD packet not taken: {error}");
                continue;
            }
            let actions = entry.session.received(&packet, now);
            self.act(number, &actions, now);
        }
    }

    /// Whose packet it is (RFC 5880 §6.8.6, RFC 5881 §3).
    fn find(&self, multihop: bool, from: SocketAddr, packet: &Packet) -> Option<u32> {
        let is_of = |number: &u32| {
            self.entries.get(number).is_some_and(|entry| {
                let peer = &entry.peer;
                peer.address == from.ip()
                    && peer.multihop == multihop
                    && is_behind(peer.interface.as_deref(), from)
            })
        };
        match packet.receiver {
            0 => self.numbers_at(from.ip()).find(is_of),
            number => Some(number).filter(is_of),
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        while let Some((at, number)) = self.deadlines.first().copied().filter(|&(at, _)| at <= now) {
            self.deadlines.remove(&(at, number));
            let Some(entry) = self.entries.get_mut(&number) else { continue };
            entry.deadline = None;
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
        entry.tell(actions.contains(&Action::Changed), deaf);
        let due = entry.session.next_deadline();
        if due != entry.deadline {
            if let Some(at) = entry.deadline {
                self.deadlines.remove(&(at, number));
            }
            entry.deadline = due;
            self.deadlines.extend(due.map(|at| (at, number)));
        }
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
    fn sign_with(&mut self, key: Option<Key>, sequence: u32) {
        if self.signer.as_ref().map(Signer::key) != key.as_ref() {
            self.signer = key.map(|key| Signer::new(key, sequence));
            self.signed = None;
        }
    }

    /// Whether a packet is signed as it has to be, or has to be not.
    fn verify(&mut self, bytes: &[u8], multiplier: u8, now: Instant) -> Result<(), PacketError> {
        let Some(signer) = &mut self.signer else {
            return if Packet::is_signed(bytes) { Err(PacketError::Authentication) } else { Ok(()) };
        };
        if self.signed.is_some_and(|signed| now > signed + 2 * self.session.detection_time()) {
            signer.forget();
        }
        signer.verify(bytes, multiplier)?;
        self.signed = Some(now);
        Ok(())
    }

    fn send(&mut self, number: u32, packet: &Packet, now: Instant) {
        if self.socket.is_none() && self.failed.as_ref().is_none_or(|(_, again)| *again <= now) {
            match socket::connect(&self.peer, number) {
                Ok(socket) => (self.socket, self.failed) = (Some(socket), None),
                Err(error) => self.failed = Some((format!("BFD: {error}"), now + SOCKET_AGAIN)),
            }
        }
        let Some(socket) = &self.socket else { return };
        let bytes = match &mut self.signer {
            Some(signer) => signer.sign(packet.encode()),
            None => packet.encode().to_vec(),
        };
        match socket.send(&bytes) {
            Ok(_) => {}
            // Nobody listens there yet: an ICMP error to a packet before this one.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The address or the interface may have gone: what is chosen anew may work.
            Err(_) => self.socket = None,
        }
    }

    fn tell(&self, changed: bool, deaf: Option<String>) {
        let session = &self.session;
        let problem = deaf.or_else(|| self.failed.as_ref().map(|(why, _)| why.clone()));
        self.status.send_if_modified(|status| {
            let before = status.clone();
            let up = session.state() == State::Up;
            status.ups += u64::from(changed && up && before.state != State::Up);
            status.state = session.state();
            status.remote_state = session.remote_state();
            status.remote_independent = session.remote_independent();
            status.diagnostic = session.diagnostic();
            status.transmit_interval = session.transmit_interval();
            status.detection_time = session.detection_time();
            status.problem = problem;
            *status != before
        });
    }
}

/// Which of the listeners has something.
async fn readable(listeners: &HashMap<Kind, UdpSocket>) -> Kind {
    std::future::poll_fn(|context| {
        for (kind, listener) in listeners {
            if listener.poll_recv_ready(context).is_ready() {
                return std::task::Poll::Ready(*kind);
            }
        }
        std::task::Poll::Pending
    })
    .await
}
