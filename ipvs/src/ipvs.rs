//! The handle on the kernel's table.

use std::borrow::Borrow;
use std::collections::BTreeMap;

use rustix::io::Errno;

use crate::batch::Chunk;
use crate::error::Malformed;
use crate::socket::Socket;
use crate::uapi::{IPVS_GENL_NAME, IPVS_GENL_VERSION, NLM_F_DUMP, cmd, ctrl, top};
use crate::wire::{Attributes, Writer};
use crate::{
    Applied, Batch, DestinationEntry, Error, Info, Operation, Service, ServiceEntry, ServiceKey, Timeouts,
    decode, encode, exchange,
};

/// Bytes to read at once. The kernel makes the pieces of a dump as long as that, up to 32 KiB.
const COMMANDS_DATAGRAM: usize = 20 << 10;
const QUERIES_DATAGRAM: usize = 64 << 10;
/// It also allocates and clears as much for each piece, however little there is to tell: too much for a few destinations.
const LOOK_UPS_DATAGRAM: usize = 7 << 10;

/// How often [`Ipvs::services`] asks at most.
const DUMP_ROUNDS: usize = 8;

/// IPVS of one network namespace: that of the thread that opened it, whatever thread uses it later.
///
/// Calls block. They take as long as the kernel works, some µs for an operation.
pub struct Ipvs {
    /// For changes.
    commands: Socket,
    /// For questions, so that their answers and those to changes cannot crowd each other out.
    queries: Socket,
    /// For questions about one virtual server, whose answers are short.
    look_ups: Socket,
    requests: Requests,
    /// Reused by each `apply`.
    chunk: Chunk,
}

impl Ipvs {
    /// Opens IPVS of the calling thread's network namespace. The kernel loads `ip_vs` if it can.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the kernel has no IPVS.
    pub fn open() -> Result<Self, Error> {
        let mut queries = Socket::open(QUERIES_DATAGRAM)?;
        let requests = Requests::resolve(&mut queries)?;
        let commands = Socket::open(COMMANDS_DATAGRAM)?;
        let look_ups = Socket::open(LOOK_UPS_DATAGRAM)?;
        Ok(Self { commands, queries, look_ups, requests, chunk: Chunk::default() })
    }

    /// Version and size.
    ///
    /// # Errors
    /// Any but [`Error::Unavailable`], as of all calls below.
    pub fn info(&mut self) -> Result<Info, Error> {
        let mut info = None;
        self.ask("IPVS_CMD_GET_INFO", cmd::GET_INFO, 0, None, |command, attributes| {
            if command == cmd::SET_INFO {
                info = Some(decode::info(&attributes)?);
            }
            Ok(())
        })?;
        info.ok_or(Malformed::new("info", "reply").into())
    }

    /// Timeouts of connections.
    ///
    /// # Errors
    /// See [`Ipvs::info`].
    pub fn timeouts(&mut self) -> Result<Timeouts, Error> {
        let mut timeouts = None;
        self.ask("IPVS_CMD_GET_CONFIG", cmd::GET_CONFIG, 0, None, |command, attributes| {
            if command == cmd::SET_CONFIG {
                timeouts = Some(decode::timeouts(&attributes)?);
            }
            Ok(())
        })?;
        timeouts.ok_or(Malformed::new("timeouts", "reply").into())
    }

    /// Sets the timeouts that are not 0.
    ///
    /// # Errors
    /// See [`Ipvs::info`].
    pub fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<(), Error> {
        self.command("IPVS_CMD_SET_CONFIG", cmd::SET_CONFIG, |message| {
            for (kind, seconds) in [
                (top::TIMEOUT_TCP, timeouts.tcp),
                (top::TIMEOUT_TCP_FIN, timeouts.tcp_fin),
                (top::TIMEOUT_UDP, timeouts.udp),
            ] {
                message.put_u32(kind, seconds);
            }
        })
    }

    /// Deletes all virtual servers, whoever added them.
    ///
    /// Not a way to start afresh: for up to two minutes the kernel keeps deleted destinations, and searches them
    /// for each one added. Adding 100,000 took 0.6 s without and 90 s with as many deleted ones.
    ///
    /// # Errors
    /// See [`Ipvs::info`].
    pub fn flush(&mut self) -> Result<(), Error> {
        self.command("IPVS_CMD_FLUSH", cmd::FLUSH, |_| {})
    }

    /// All virtual servers without their destinations, sorted by key.
    ///
    /// More than about a hundred come in pieces, and the kernel finds the start of the next piece by counting the
    /// virtual servers of *all* network namespaces: one deleted meanwhile in any of them makes it skip another.
    /// So this asks again, with pieces that break elsewhere, until an answer holds all that is known and nothing
    /// new. While others change their tables all the time, one may still be missing: who must know whether a
    /// certain virtual server is there asks for [`Ipvs::service`].
    ///
    /// # Errors
    /// See [`Ipvs::info`].
    pub fn services(&mut self) -> Result<Vec<ServiceEntry>, Error> {
        let mut seen = BTreeMap::new();
        for round in 0..DUMP_ROUNDS {
            let known = seen.len();
            let pieces = self.list_services(round, |entry| {
                seen.insert(entry.service.key, (round, entry));
            })?;
            let mut settled = seen.len() == known;
            let missed = seen.iter().filter(|(_, (last_seen, _))| *last_seen != round);
            for key in missed.map(|(key, _)| *key).collect::<Vec<_>>() {
                match self.look_up(&key)? {
                    Some(entry) => {
                        settled = false;
                        seen.insert(key, (round, entry));
                    }
                    None => {
                        seen.remove(&key);
                    }
                }
            }
            if settled || pieces <= 1 {
                break;
            }
        }
        Ok(seen.into_values().map(|(_, entry)| entry).collect())
    }

    /// Hands each virtual server to `each`, in no order: one dump, at a fraction of the cost of [`Ipvs::services`], which
    /// may leave some out or tell some twice while anybody adds and deletes.
    ///
    /// # Errors
    /// See [`Ipvs::info`].
    pub fn scan_services(&mut self, mut each: impl FnMut(Service)) -> Result<(), Error> {
        self.ask("dump of services", cmd::GET_SERVICE, NLM_F_DUMP, None, |command, attributes| {
            if let Some(service) = service_of_reply(command, attributes)? {
                each(decode::service(service)?);
            }
            Ok(())
        })
    }

    /// Lists virtual servers once. Returns in how many pieces they came.
    fn list_services(&mut self, round: usize, mut each: impl FnMut(ServiceEntry)) -> Result<usize, Error> {
        // The sockets differ in the length of the pieces.
        let socket = if round.is_multiple_of(2) { &mut self.queries } else { &mut self.commands };
        let request = Request { name: "dump of services", command: cmd::GET_SERVICE, flags: NLM_F_DUMP };
        self.requests.send(
            socket,
            &request,
            |_| {},
            |command, attributes| {
                service_reply(command, attributes)?.into_iter().for_each(&mut each);
                Ok(())
            },
        )
    }

    /// Destinations of a virtual server in the kernel's order: the one added last comes first. None, if the
    /// virtual server is not there.
    ///
    /// # Errors
    /// See [`Ipvs::info`].
    pub fn destinations(&mut self, key: &ServiceKey) -> Result<Vec<DestinationEntry>, Error> {
        let mut destinations = Vec::new();
        let family = key.family();
        self.ask("dump of destinations", cmd::GET_DEST, NLM_F_DUMP, Some(key), |command, attributes| {
            if command == cmd::NEW_DEST {
                let destination =
                    attributes.find(top::DEST)?.ok_or(Malformed::new("reply", "destination"))?;
                destinations.push(decode::destination(destination.nested(), family)?);
            }
            Ok(())
        })?;
        Ok(destinations)
    }

    /// All virtual servers with their destinations: [`Ipvs::services`], then [`Ipvs::destinations`] of each.
    ///
    /// # Errors
    /// See [`Ipvs::info`].
    pub fn dump(&mut self) -> Result<Vec<ServiceEntry>, Error> {
        let mut services = self.services()?;
        for entry in &mut services {
            entry.destinations = self.destinations(&entry.service.key)?;
        }
        Ok(services)
    }

    /// A virtual server with its destinations, if it is there: a look-up in the kernel's hash table, not a dump.
    ///
    /// # Errors
    /// See [`Ipvs::info`].
    pub fn service(&mut self, key: &ServiceKey) -> Result<Option<ServiceEntry>, Error> {
        let mut found = self.look_up(key)?;
        if let Some(entry) = &mut found {
            entry.destinations = self.destinations(key)?;
        }
        Ok(found)
    }

    /// A virtual server without its destinations.
    fn look_up(&mut self, key: &ServiceKey) -> Result<Option<ServiceEntry>, Error> {
        let mut found = None;
        let answer =
            self.ask("IPVS_CMD_GET_SERVICE", cmd::GET_SERVICE, 0, Some(key), |command, attributes| {
                found = service_reply(command, attributes)?;
                Ok(())
            });
        match answer {
            Ok(()) => Ok(found),
            Err(Error::Refused { errno: Errno::SRCH, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Applies operations in order. One that fails does not stop those after it: this is not a transaction.
    ///
    /// As many as fit 192 KiB go into one `send`, and the kernel answers only for those that fail and the last.
    ///
    /// # Errors
    /// [`Error::needs_resync`] tells whether the kernel's state is unknown. Operations that the kernel refuses
    /// are no error here, but among [`Applied::failures`].
    pub fn apply<I>(&mut self, operations: I) -> Result<Applied, Error>
    where
        I: IntoIterator,
        I::Item: Borrow<Operation>,
    {
        let mut applied = Applied::default();
        self.chunk.clear();
        for operation in operations {
            if !self.chunk.push(self.requests.family, operation.borrow()) {
                self.send_chunk(&mut applied)?;
                self.chunk.push(self.requests.family, operation.borrow());
            }
        }
        if !self.chunk.is_empty() {
            self.send_chunk(&mut applied)?;
        }
        Ok(applied)
    }

    fn send_chunk(&mut self, applied: &mut Applied) -> Result<(), Error> {
        exchange::batch(&mut self.commands, &mut self.requests.sequence, self.chunk.bytes_mut(), applied)?;
        self.chunk.clear();
        Ok(())
    }

    /// An empty batch for [`Ipvs::apply_batch`].
    pub fn batch(&self) -> Batch {
        Batch::new(self.requests.family)
    }

    /// Applies operations encoded before, as [`Ipvs::apply`] does.
    ///
    /// # Errors
    /// See [`Ipvs::apply`].
    pub fn apply_batch(&mut self, batch: &mut Batch) -> Result<Applied, Error> {
        let mut applied = Applied::default();
        for chunk in batch.chunks_mut() {
            exchange::batch(
                &mut self.commands,
                &mut self.requests.sequence,
                chunk.bytes_mut(),
                &mut applied,
            )?;
        }
        Ok(applied)
    }

    fn command(
        &mut self,
        name: &'static str,
        command: u8,
        body: impl FnOnce(&mut Writer<'_>),
    ) -> Result<(), Error> {
        let request = Request { name, command, flags: 0 };
        self.requests.send(&mut self.commands, &request, body, |_, _| Ok(()))?;
        Ok(())
    }

    /// A question, of one service where there is a key.
    fn ask(
        &mut self,
        name: &'static str,
        command: u8,
        flags: u16,
        key: Option<&ServiceKey>,
        on_reply: impl FnMut(u8, Attributes<'_>) -> Result<(), Malformed>,
    ) -> Result<(), Error> {
        let request = Request { name, command, flags };
        let body = |message: &mut Writer<'_>| {
            if let Some(key) = key {
                message.nested(top::SERVICE, |attributes| encode::service_key(attributes, key));
            }
        };
        let socket = if key.is_some() { &mut self.look_ups } else { &mut self.queries };
        self.requests.send(socket, &request, body, on_reply)?;
        Ok(())
    }
}

fn service_reply(command: u8, attributes: Attributes<'_>) -> Result<Option<ServiceEntry>, Malformed> {
    service_of_reply(command, attributes)?.map(decode::service_entry).transpose()
}

/// The attributes of a virtual server, if that is what the reply has.
fn service_of_reply(command: u8, attributes: Attributes<'_>) -> Result<Option<Attributes<'_>>, Malformed> {
    if command != cmd::NEW_SERVICE {
        return Ok(None);
    }
    let service = attributes.find(top::SERVICE)?.ok_or(Malformed::new("reply", "service"))?;
    Ok(Some(service.nested()))
}

struct Request {
    /// For errors.
    name: &'static str,
    command: u8,
    flags: u16,
}

/// What requests over either socket share.
struct Requests {
    /// The kernel's number of the IPVS family.
    family: u16,
    sequence: u32,
    /// Reused by each request.
    bytes: Vec<u8>,
}

impl Requests {
    /// Asks for the number of the IPVS family, which loads the module.
    fn resolve(socket: &mut Socket) -> Result<Self, Error> {
        let (mut bytes, mut sequence) = (Vec::new(), 1);
        Writer::new(&mut bytes).message(ctrl::FAMILY, 0, (ctrl::CMD_GETFAMILY, ctrl::VERSION), |message| {
            message.put(ctrl::ATTR_FAMILY_NAME, IPVS_GENL_NAME);
        });
        let mut family = None;
        let answer = exchange::query(socket, &mut sequence, "CTRL_CMD_GETFAMILY", &mut bytes, |message| {
            let (_, attributes) = message.generic()?;
            let attribute = attributes.find(ctrl::ATTR_FAMILY_ID)?;
            family = attribute.and_then(|attribute| attribute.u16());
            Ok(())
        });
        match answer {
            Err(Error::Refused { errno: Errno::NOENT, .. }) => return Err(Error::Unavailable),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        let family = family.ok_or(Malformed::new("generic netlink family", "number"))?;
        Ok(Self { family, sequence, bytes })
    }

    /// Sends a request; replies come as command and attributes. Returns in how many pieces they came.
    fn send(
        &mut self,
        socket: &mut Socket,
        request: &Request,
        body: impl FnOnce(&mut Writer<'_>),
        mut on_reply: impl FnMut(u8, Attributes<'_>) -> Result<(), Malformed>,
    ) -> Result<usize, Error> {
        self.bytes.clear();
        let header = (request.command, IPVS_GENL_VERSION);
        Writer::new(&mut self.bytes).message(self.family, request.flags, header, body);
        exchange::query(socket, &mut self.sequence, request.name, &mut self.bytes, |message| {
            match message.generic()? {
                (command, attributes) if message.kind == self.family => on_reply(command, attributes),
                _ => Ok(()),
            }
        })
    }
}
