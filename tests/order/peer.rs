//! A BGP peer that only listens.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sheave_bgp::Family;
use sheave_bgp::wire::{
    Capability, Context, GracefulRestartCapability, GracefulRestartFamily, Message, Open, Update, frame,
};

/// Where it waits for the agent.
pub struct Listener(TcpListener);

/// What it has been told.
pub struct Session {
    stream: TcpStream,
    read: Vec<u8>,
    table: BTreeSet<IpNet>,
}

const CONTEXT: Context = Context {
    four_octet_asn: true,
    ibgp: false,
    extended_messages: false,
    add_path: sheave_bgp::Families::NONE,
};

impl Listener {
    pub fn bind(address: IpAddr) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    pub fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    /// Establishes the next session.
    pub fn accept(&self, limit: Duration) -> Session {
        let end = Instant::now() + limit;
        let stream = loop {
            match self.0.accept() {
                Ok((stream, _)) => break stream,
                Err(error) => assert!(Instant::now() < end, "no connection: {error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        stream.set_nonblocking(false).unwrap();
        let mut session = Session { stream, read: Vec::new(), table: BTreeSet::new() };
        let families = [(1, Family::Ipv4Unicast), (2, Family::Ipv6Unicast)];
        let mut capabilities: Vec<Capability> =
            families.iter().map(|(_, family)| Capability::multiprotocol(*family)).collect();
        capabilities.push(Capability::FourOctetAsn(65001));
        capabilities.push(Capability::GracefulRestart(GracefulRestartCapability {
            restarting: false,
            notification: false,
            restart_time: 120,
            families: families
                .iter()
                .map(|(afi, _)| GracefulRestartFamily { afi: *afi, safi: 1, forwarding: true })
                .collect(),
        }));
        let open =
            Open { my_as: Open::my_as(65001), hold_time: 0, router_id: [10, 0, 0, 1].into(), capabilities };
        session.write(&Message::Open(open));
        session.write(&Message::Keepalive);
        assert!(matches!(session.message(limit), Message::Open(_)));
        assert!(matches!(session.message(limit), Message::Keepalive));
        session
    }
}

impl Session {
    fn write(&mut self, message: &Message) {
        let mut bytes = Vec::new();
        message.encode(CONTEXT, &mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    fn message(&mut self, limit: Duration) -> Message {
        let end = Instant::now() + limit;
        loop {
            if let Some(length) = frame(&self.read).unwrap() {
                let rest = self.read.split_off(length);
                let message = std::mem::replace(&mut self.read, rest);
                return Message::decode(&message, CONTEXT).unwrap();
            }
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(left)).unwrap();
            let mut buffer = [0; 4096];
            let count = self.stream.read(&mut buffer).unwrap();
            assert!(count > 0, "the agent closed the session");
            self.read.extend(&buffer[..count]);
        }
    }

    /// The next UPDATE.
    pub fn update(&mut self, limit: Duration) -> Update {
        loop {
            let message = self.message(limit);
            let Message::Update(update) = message else {
                assert_eq!(message, Message::Keepalive);
                continue;
            };
            let gone: BTreeSet<IpNet> = update.unreachable().map(|nlri| nlri.prefix).collect();
            self.table.retain(|prefix| !gone.contains(prefix));
            self.table.extend(update.reachable().map(|nlri| nlri.prefix));
            return update;
        }
    }

    /// Reads until exactly these prefixes are announced.
    pub fn until_table_is(&mut self, prefixes: &BTreeSet<IpNet>, limit: Duration) {
        while self.table != *prefixes {
            self.update(limit);
        }
        // What belongs to it still: markers of the end of a family's routes.
        while self.has_more() {
            self.update(limit);
        }
    }

    /// Reads until these are announced, or not.
    pub fn await_prefixes(&mut self, prefixes: &BTreeSet<IpNet>, announced: bool, limit: Duration) {
        while prefixes.iter().any(|prefix| self.table.contains(prefix) != announced) {
            self.update(limit);
        }
    }

    fn has_more(&mut self) -> bool {
        self.stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        !self.read.is_empty() || self.stream.peek(&mut [0]).is_ok_and(|count| count > 0)
    }
}
