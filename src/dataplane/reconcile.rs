//! PURE: what a virtual server should be and what the kernel lists → the IPVS operations between them.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use sheave_ipvs::{
    Destination, DestinationEntry, Family, ForwardingMethod, Operation, Protocol, SchedulerName, Service,
    ServiceEntry, ServiceFlags, ServiceKey, TunnelFlags, TunnelType,
};

use super::{fou, standin, wishes};
use crate::cluster::{self, Encapsulation};
use crate::plan::{Forwarding, Scheduler, VipPort, VirtualServer};

/// Marks a virtual server as ours, since IPVS has no owner: the third scheduler flag, which no scheduler reads
/// (`mh` and `sh` read the first two: include/uapi/linux/ip_vs.h).
pub const OURS: ServiceFlags = ServiceFlags::SCHED3;

/// A virtual server in the kernel's terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    service: Service,
    /// In canonical order.
    destinations: Vec<Destination>,
    /// Those of them that terminate.
    pub closing: BTreeSet<DestinationKey>,
    /// Its endpoints, under whichever address the kernel may have been given them.
    endpoints: BTreeSet<DestinationKey>,
    /// The scheduler's table depends on the order in which destinations were added.
    ordered: bool,
    /// Its packets belong to no connections that could end.
    datagrams: bool,
}

/// A destination in the kernel's terms: address and port.
pub type DestinationKey = (IpAddr, u16);

/// What to do, and what stays to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// In this order.
    pub operations: Vec<Operation>,
    /// Destinations remain at weight 0 until their connections are gone: look again.
    pub draining: bool,
    /// Some of them get weight 0 only now: from then on their connections count, and without any they can go at once.
    pub lowered: bool,
    /// Destinations are deleted and added again: their connections must survive that
    /// (`net.ipv4.vs.expire_nodest_conn` = 0 meanwhile).
    pub reorders: bool,
    /// The kernel's virtual server of this address is somebody else's: nothing is done.
    pub foreign: bool,
}

/// The kernel's key of a virtual server.
pub fn service_key(vip: &VipPort) -> ServiceKey {
    let protocol = match vip.protocol {
        cluster::Protocol::Tcp => Protocol::Tcp,
        cluster::Protocol::Udp => Protocol::Udp,
        cluster::Protocol::Sctp => Protocol::Sctp,
    };
    ServiceKey::Address { protocol, address: vip.address, port: vip.port }
}

/// The kernel's key of what clients within the cluster get, by their mark.
pub fn internal_key(vip: &VipPort, mark: u32) -> ServiceKey {
    ServiceKey::Fwmark { family: Family::of(vip.address), mark }
}

/// The plan's key of a virtual server; `None` for one that matches a firewall mark.
pub fn vip_port(key: &ServiceKey) -> Option<VipPort> {
    let ServiceKey::Address { protocol, address, port } = *key else { return None };
    let protocol = match protocol {
        Protocol::Tcp => cluster::Protocol::Tcp,
        Protocol::Udp => cluster::Protocol::Udp,
        Protocol::Sctp => cluster::Protocol::Sctp,
    };
    Some(VipPort { address, port, protocol })
}

impl Wanted {
    /// Translates a planned virtual server for the clients that `key` stands for. *Nat* destinations that are `refused` are
    /// tunnelled to where an agent accepts, and else left out.
    pub fn new(server: &VirtualServer, key: ServiceKey, refused: impl Fn(IpAddr) -> bool) -> Self {
        let service = service(server, key);
        let endpoints = destinations(server, &key)
            .iter()
            .flat_map(|planned| {
                [planned.address, standin::of(planned.address)].map(|address| (address, planned.port))
            })
            .collect();
        let planned: Vec<_> = destinations(server, &key)
            .iter()
            .filter_map(|planned| {
                let refused = planned.forwarding.is_nat() && refused(planned.address);
                let forwarding = match planned.forwarding {
                    Forwarding::Nat if refused => return None,
                    Forwarding::NatOrTunnel if refused => Forwarding::Tunnel,
                    forwarding => forwarding,
                };
                Some((planned.terminating, destination(planned, forwarding)))
            })
            .collect();
        let terminating = planned.iter().filter(|(terminating, _)| *terminating);
        Self {
            service,
            closing: terminating.map(|(_, to)| (to.address, to.port)).collect(),
            destinations: planned.into_iter().map(|(_, to)| to).collect(),
            endpoints,
            ordered: ["mh", "sh", "dh"].contains(&service.scheduler.as_str()),
            datagrams: server.vip.protocol == cluster::Protocol::Udp,
        }
    }

    /// Whether it has a destination for new connections.
    pub fn takes_connections(&self) -> bool {
        self.destinations.iter().any(|destination| destination.weight > 0)
    }

    /// Addresses and ports of its destinations, as the kernel is given them.
    pub fn keys(&self) -> impl Iterator<Item = DestinationKey> {
        self.destinations.iter().map(|destination| (destination.address, destination.port))
    }
}

/// Whom clients are sent to that `key` stands for: those within the cluster are told by a mark.
pub fn destinations<'a>(server: &'a VirtualServer, key: &ServiceKey) -> &'a [crate::plan::Destination] {
    match key {
        ServiceKey::Address { .. } => &server.destinations,
        ServiceKey::Fwmark { .. } => wishes::internal(server),
    }
}

/// A planned virtual server in the kernel's terms, under `key`, apart from its destinations.
pub fn service(server: &VirtualServer, key: ServiceKey) -> Service {
    // Persistence by mark gives new connections the VIP's port at the endpoint (`ip_vs_sched_persist`), which is wrong where IPVS
    // itself rewrites. There clients keep their endpoint by the hash of their address.
    let rewritten = |planned: &crate::plan::Destination| {
        planned.forwarding == Forwarding::Masquerade && planned.port != server.vip.port
    };
    if matches!(key, ServiceKey::Fwmark { .. })
        && server.persistence.is_some()
        && destinations(server, &key).iter().any(rewritten)
    {
        return Service {
            key,
            scheduler: scheduler_name(Scheduler::Mh),
            flags: OURS | ServiceFlags::MH_FALLBACK,
            timeout: 0,
            netmask: key.family().bits(),
            pe_name: None,
        };
    }
    let mut flags = OURS;
    // The hashing schedulers `mh` and `sh` have the same flags under two names.
    if server.scheduler_flags.fallback {
        flags = flags | ServiceFlags::MH_FALLBACK;
    }
    if server.scheduler_flags.port {
        flags = flags | ServiceFlags::MH_PORT;
    }
    if server.persistence.is_some() {
        flags = flags | ServiceFlags::PERSISTENT;
    }
    Service {
        key,
        scheduler: scheduler_name(server.scheduler),
        flags,
        timeout: server.persistence.unwrap_or(0),
        netmask: key.family().bits(),
        pe_name: None,
    }
}

fn destination(planned: &crate::plan::Destination, forwarding: Forwarding) -> Destination {
    let (address, method) = match forwarding {
        Forwarding::Tunnel => (planned.address, ForwardingMethod::Tunnel),
        Forwarding::Nat | Forwarding::NatOrTunnel => (standin::of(planned.address), ForwardingMethod::Tunnel),
        Forwarding::Masquerade => (planned.address, ForwardingMethod::Masquerade),
    };
    let tunnel = match (forwarding, planned.encapsulation) {
        // Without a checksum of its own (RFC 6935): the packet inside has one, and that of a packet which a network card has
        // still to complete would be wrong once the rules have rewritten the outer addresses (`nft_payload_l4csum_update`).
        (Forwarding::Tunnel, Encapsulation::Gue) => {
            TunnelType::Gue { port: fou::PORT, flags: TunnelFlags::empty() }
        }
        _ => TunnelType::Ipip,
    };
    Destination {
        address,
        port: planned.port,
        forwarding: method,
        weight: planned.weight,
        upper_threshold: 0,
        lower_threshold: 0,
        tunnel,
    }
}

/// The kernel's name of a scheduler.
pub fn scheduler_name(scheduler: Scheduler) -> SchedulerName {
    let name = match scheduler {
        Scheduler::Rr => "rr",
        Scheduler::Wrr => "wrr",
        Scheduler::Lc => "lc",
        Scheduler::Wlc => "wlc",
        Scheduler::Lblc => "lblc",
        Scheduler::Lblcr => "lblcr",
        Scheduler::Dh => "dh",
        Scheduler::Sh => "sh",
        Scheduler::Sed => "sed",
        Scheduler::Nq => "nq",
        Scheduler::Fo => "fo",
        Scheduler::Ovf => "ovf",
        Scheduler::Mh => "mh",
        Scheduler::Twos => "twos",
    };
    name.parse().expect("every name above is shorter than IP_VS_SCHEDNAME_MAXLEN")
}

/// Compares `wanted` (`None`: the Service is gone) with what the kernel lists.
///
/// What is wanted comes before what is not goes, so that new connections find a destination in every moment. A destination
/// that is not wanted any more goes to weight 0 and is deleted when its connections are gone
/// (UDP has none that could end: at once). One of `closing`, which terminated when it was wanted last, is deleted at once: its endpoint
/// is gone, and what connections are left had better learn it. A virtual server without wanted destinations stays as long as one
/// drains. Destinations of a hashing scheduler are brought into canonical order, so that every director has the
/// same table; one with weight 0 is added with its weight first, which keeps the table equal to that of
/// a director that knew it before.
pub fn steps(
    wanted: Option<&Wanted>,
    listed: Option<&ServiceEntry>,
    closing: &BTreeSet<DestinationKey>,
) -> Steps {
    let mut steps = Steps::default();
    match (wanted, listed) {
        (_, Some(listed)) if !listed.service.flags.contains(OURS) => steps.foreign = true,
        (None, Some(listed)) => steps.operations.push(Operation::DelService(listed.service.key)),
        (Some(wanted), None) if !wanted.destinations.is_empty() => {
            steps.operations.reserve(1 + wanted.destinations.len());
            steps.operations.push(Operation::AddService(wanted.service));
            for destination in &wanted.destinations {
                steps.add(wanted, destination);
            }
        }
        (Some(wanted), Some(listed)) => steps.change(wanted, listed, closing),
        (_, None) => {}
    }
    steps
}

impl Steps {
    fn add(&mut self, wanted: &Wanted, destination: &Destination) {
        let key = wanted.service.key;
        let weight = destination.weight.max(1);
        self.operations.push(Operation::AddDestination(key, Destination { weight, ..*destination }));
        if destination.weight == 0 {
            self.operations.push(Operation::SetDestination(key, *destination));
        }
    }

    fn change(&mut self, wanted: &Wanted, listed: &ServiceEntry, closing: &BTreeSet<DestinationKey>) {
        let key = wanted.service.key;
        let index: HashMap<DestinationKey, usize> = wanted
            .destinations
            .iter()
            .enumerate()
            .map(|(index, destination)| ((destination.address, destination.port), index))
            .collect();
        // The kernel lists the newest first.
        let present: Vec<(Option<usize>, &DestinationEntry)> = listed
            .destinations
            .iter()
            .rev()
            .map(|entry| (index.get(&(entry.destination.address, entry.destination.port)).copied(), entry))
            .collect();
        let unwanted = || present.iter().filter(|(wanted, _)| wanted.is_none()).map(|(_, entry)| entry);
        if wanted.destinations.is_empty() {
            unwanted().for_each(|entry| self.leave(wanted, entry, closing));
            if !self.draining {
                self.operations = vec![Operation::DelService(key)];
            }
            return;
        }
        if listed.service != wanted.service {
            self.operations.push(Operation::SetService(wanted.service));
        }
        let mut held: Vec<Option<&Destination>> = vec![None; wanted.destinations.len()];
        for (index, entry) in &present {
            if let Some(slot) = index.and_then(|index| held.get_mut(index)) {
                *slot = Some(&entry.destination);
            }
        }
        // Up to here the kernel's order is the canonical one; later ones move to the end, one by one.
        let in_order = present
            .iter()
            .filter_map(|(index, _)| *index)
            .enumerate()
            .take_while(|(at, index)| at == index)
            .count();
        for (at, (destination, held)) in wanted.destinations.iter().zip(held).enumerate() {
            match held {
                Some(held) if !wanted.ordered || at < in_order => {
                    if held != destination {
                        self.operations.push(Operation::SetDestination(key, *destination));
                    }
                }
                Some(_) => {
                    self.reorders = true;
                    self.operations.push(Operation::DelDestination(
                        key,
                        destination.address,
                        destination.port,
                    ));
                    self.add(wanted, destination);
                }
                None => self.add(wanted, destination),
            }
        }
        unwanted().for_each(|entry| self.leave(wanted, entry, closing));
    }

    /// A destination that nobody wants.
    fn leave(&mut self, wanted: &Wanted, entry: &DestinationEntry, closing: &BTreeSet<DestinationKey>) {
        let key = wanted.service.key;
        let Destination { address, port, weight, .. } = entry.destination;
        // One that is reached otherwise from now on is not gone.
        let gone = |key| closing.contains(&key) && !wanted.endpoints.contains(&key);
        let at_once = wanted.datagrams || gone((address, port));
        if at_once || weight == 0 && entry.active_connections == 0 && entry.inactive_connections == 0 {
            self.operations.push(Operation::DelDestination(key, address, port));
            return;
        }
        self.draining = true;
        if weight != 0 {
            self.lowered = true;
            self.operations
                .push(Operation::SetDestination(key, Destination { weight: 0, ..entry.destination }));
        }
    }
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
