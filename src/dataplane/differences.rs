//! PURE: what the kernel holds of a virtual server, and how that differs from what it should, in plain words.
//!
//! What would be done about it is the reconciler's answer ([`Steps`]); here is only how a reader is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use sheave_ipvs::{Destination, Operation, Service, ServiceEntry, ServiceFlags};

use super::reconcile::Steps;
use super::standin;
use crate::observe::explain::{KernelDestination, KernelServer};
use crate::plan::VirtualServer;

/// Says of an endpoint's stand-in whose it is.
type StandsFor<'a> = &'a dyn Fn(IpAddr) -> Option<IpAddr>;

/// A virtual server as the kernel lists it, in canonical order; `wanted`: the destinations that are to stay.
pub fn describe(
    entry: &ServiceEntry,
    internal: bool,
    wanted: &BTreeSet<(IpAddr, u16)>,
    stands_for: StandsFor<'_>,
) -> KernelServer {
    let mut destinations: Vec<_> = entry.destinations.iter().collect();
    destinations.sort_unstable_by_key(|entry| (entry.destination.address, entry.destination.port));
    let destinations = destinations.into_iter().map(|entry| {
        let Destination { address, port, forwarding, weight, .. } = entry.destination;
        KernelDestination {
            destination: SocketAddr::new(address, port).to_string(),
            stands_for: stands_for(address).map(|endpoint| SocketAddr::new(endpoint, port).to_string()),
            forwarding: forwarding.to_string(),
            weight,
            draining: !wanted.contains(&(address, port)),
            active_connections: entry.active_connections,
            inactive_connections: entry.inactive_connections,
        }
    });
    KernelServer {
        key: entry.service.key.to_string(),
        internal,
        scheduler: scheduling(&entry.service),
        destinations: destinations.collect(),
    }
}

/// What `steps` would change, in words.
pub fn words(steps: &Steps, listed: Option<&ServiceEntry>, stands_for: StandsFor<'_>) -> Vec<String> {
    let name = |address: IpAddr, port: u16| {
        let text = SocketAddr::new(address, port);
        match stands_for(address) {
            Some(endpoint) => format!("{text} (stands for {})", SocketAddr::new(endpoint, port)),
            None => text.to_string(),
        }
    };
    let held = |address: IpAddr, port: u16| {
        let destinations = listed.into_iter().flat_map(|entry| &entry.destinations);
        destinations.map(|entry| &entry.destination).find(|held| (held.address, held.port) == (address, port))
    };
    let added: BTreeSet<(IpAddr, u16)> = steps
        .operations
        .iter()
        .filter_map(|operation| match operation {
            Operation::AddDestination(_, new) => Some((new.address, new.port)),
            _ => None,
        })
        .collect();
    let mut words = Vec::new();
    if steps.foreign
        && let Some(listed) = listed
    {
        words.push(format!("IPVS has {} of another owner, which is left alone", listed.service.key));
    }
    for operation in &steps.operations {
        words.push(match operation {
            Operation::AddService(service) => format!("IPVS has no virtual server {}", service.key),
            Operation::SetService(planned) => {
                let now = listed.map(|entry| scheduling(&entry.service)).unwrap_or_default();
                format!("IPVS schedules {} by {now}; planned is {}", planned.key, scheduling(planned))
            }
            Operation::DelService(key) => format!("IPVS has a virtual server {key} that is not planned"),
            // A virtual server that is not there has none: said already.
            Operation::AddDestination(key, new)
                if listed.is_some() && held(new.address, new.port).is_none() =>
            {
                format!("IPVS has no destination {} in {key}", name(new.address, new.port))
            }
            Operation::SetDestination(key, planned) if !added.contains(&(planned.address, planned.port)) => {
                let Some(held) = held(planned.address, planned.port) else { continue };
                let what = if held.weight != planned.weight {
                    format!("weight {}; planned is {}", held.weight, planned.weight)
                } else if held.forwarding != planned.forwarding {
                    format!("{}; planned is {}", held.forwarding, planned.forwarding)
                } else {
                    "other settings than planned".into()
                };
                format!("IPVS has destination {} in {key} with {what}", name(held.address, held.port))
            }
            Operation::DelDestination(key, address, port) if !added.contains(&(*address, *port)) => {
                format!("IPVS has a destination {} in {key} that is not planned", name(*address, *port))
            }
            _ => continue,
        });
    }
    if steps.reorders
        && let Some(listed) = listed
    {
        words.push(format!(
            "IPVS has the destinations of {} in another order than other nodes: some connections would not survive a \
             change of director",
            listed.service.key
        ));
    }
    words
}

/// Addresses that stand for endpoints of a virtual server, and for which.
pub fn stand_ins(server: &VirtualServer) -> BTreeMap<IpAddr, IpAddr> {
    let destinations = server.destinations.iter().chain(server.internal.iter().flatten());
    let nat = destinations.filter(|destination| destination.forwarding.is_nat());
    nat.map(|destination| (standin::of(destination.address), destination.address)).collect()
}

/// Scheduler, flags and persistence as `ipvsadm` names them.
fn scheduling(service: &Service) -> String {
    let Service { scheduler, flags, timeout, .. } = service;
    let mut extra = Vec::new();
    for (flag, name) in [(ServiceFlags::SCHED1, "fallback"), (ServiceFlags::SCHED2, "port")] {
        if flags.contains(flag) {
            extra.push(format!("{scheduler}-{name}"));
        }
    }
    if flags.contains(ServiceFlags::PERSISTENT) {
        extra.push(format!("persistent {timeout} s"));
    }
    if extra.is_empty() { scheduler.to_string() } else { format!("{scheduler} ({})", extra.join(", ")) }
}

#[cfg(test)]
mod tests {
    use sheave_ipvs::{DestinationEntry, ForwardingMethod, ServiceKey, Stats};

    use super::*;
    use crate::builders::{mk_destination, mk_virtual_server};
    use crate::cluster::Protocol;
    use crate::dataplane::reconcile::{self, Wanted};
    use crate::plan::{Forwarding, VipKind, VipPort};

    fn ip(last: u8) -> IpAddr {
        [10, 244, 2, last].into()
    }

    fn server() -> VirtualServer {
        let vip = VipPort { address: [192, 0, 2, 80].into(), port: 80, protocol: Protocol::Tcp };
        let destination = |last, forwarding| mk_destination(ip(last), forwarding);
        VirtualServer {
            destinations: vec![destination(10, Forwarding::Tunnel), destination(11, Forwarding::Nat)],
            ..mk_virtual_server(vip, VipKind::LoadBalancerIP)
        }
    }

    /// What the kernel would list had all been done as planned.
    fn listed(server: &VirtualServer) -> ServiceEntry {
        let of = |address, weight| DestinationEntry {
            destination: Destination { weight, ..Destination::new(address, 8080, ForwardingMethod::Tunnel) },
            active_connections: 2,
            inactive_connections: 0,
            persistent_connections: 0,
            stats: Stats::default(),
        };
        ServiceEntry {
            service: reconcile::service(server, reconcile::service_key(&server.vip)),
            stats: Stats::default(),
            destinations: vec![of(standin::of(ip(11)), 1), of(ip(10), 1)],
        }
    }

    #[test]
    fn each_difference_has_its_words() {
        type Change = fn(&mut ServiceEntry);
        let cases: [(&str, Change, &[&str]); 8] = [
            ("as planned", |_| {}, &[]),
            (
                "a destination is gone",
                |entry| entry.destinations.truncate(1),
                &[
                    "IPVS has no destination 10.244.2.10:8080 in TCP 192.0.2.80:80",
                    "IPVS has the destinations of TCP 192.0.2.80:80 in another order than other nodes: some connections \
                     would not survive a change of director",
                ],
            ),
            (
                "the stand-in is gone",
                |entry| entry.destinations = entry.destinations.split_off(1),
                &[
                    "IPVS has no destination 250.244.2.11:8080 (stands for 10.244.2.11:8080) in TCP 192.0.2.80:80",
                ],
            ),
            (
                "a weight",
                |entry| entry.destinations[1].destination.weight = 0,
                &["IPVS has destination 10.244.2.10:8080 in TCP 192.0.2.80:80 with weight 0; planned is 1"],
            ),
            (
                "a method",
                |entry| entry.destinations[1].destination.forwarding = ForwardingMethod::DirectRoute,
                &[
                    "IPVS has destination 10.244.2.10:8080 in TCP 192.0.2.80:80 with direct route; planned is tunnel",
                ],
            ),
            (
                "one more",
                |entry| {
                    let mut more = entry.destinations[1];
                    more.destination.address = ip(99);
                    more.active_connections = 0;
                    more.destination.weight = 0;
                    entry.destinations.insert(0, more);
                },
                &["IPVS has a destination 10.244.2.99:8080 in TCP 192.0.2.80:80 that is not planned"],
            ),
            (
                "the scheduler",
                |entry| {
                    entry.service.scheduler = "rr".parse().expect("a name");
                    entry.service.flags = reconcile::OURS;
                },
                &["IPVS schedules TCP 192.0.2.80:80 by rr; planned is mh (mh-fallback, mh-port)"],
            ),
            (
                "somebody else's",
                |entry| entry.service.flags = ServiceFlags::empty(),
                &["IPVS has TCP 192.0.2.80:80 of another owner, which is left alone"],
            ),
        ];
        let server = server();
        let wanted = Wanted::new(&server, reconcile::service_key(&server.vip), |_| false);
        let stands_for = |address| (address == standin::of(ip(11))).then_some(ip(11));
        for (case, change, expected) in cases {
            let mut entry = listed(&server);
            change(&mut entry);
            let steps = reconcile::steps(Some(&wanted), Some(&entry), &BTreeSet::new());
            assert_eq!(words(&steps, Some(&entry), &stands_for), expected, "{case}");
        }
        let steps = reconcile::steps(Some(&wanted), None, &BTreeSet::new());
        assert_eq!(words(&steps, None, &stands_for), ["IPVS has no virtual server TCP 192.0.2.80:80"]);
    }

    #[test]
    fn destinations_come_in_order_with_what_they_stand_for() {
        let server = server();
        let entry = listed(&server);
        let wanted = BTreeSet::from([(ip(10), 8080)]);
        let stands_for = |address| (address == standin::of(ip(11))).then_some(ip(11));
        let described = describe(&entry, false, &wanted, &stands_for);
        assert_eq!(
            (&*described.key, &*described.scheduler),
            ("TCP 192.0.2.80:80", "mh (mh-fallback, mh-port)")
        );
        let lines: Vec<_> = described
            .destinations
            .iter()
            .map(|one| (&*one.destination, one.stands_for.as_deref(), one.draining))
            .collect();
        assert_eq!(
            lines,
            [("10.244.2.10:8080", None, false), ("250.244.2.11:8080", Some("10.244.2.11:8080"), true)]
        );
        assert!(matches!(entry.service.key, ServiceKey::Address { .. }));
    }
}
