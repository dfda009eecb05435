//! Which Service a target means, and what is near where it means none.

use std::net::SocketAddr;

use super::Target;
use crate::cluster::{self, Protocol, ServiceName};
use crate::plan::{self, Planner, VipPort};

/// How many near matches are named.
const NEAR: usize = 5;
/// Up to how many letters a name may be off to be near.
const TYPOS: usize = 2;

/// There is no such target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotFound(String);

/// The Service that an address and port lead to, or that names the address in vain.
pub(super) fn holder(
    planner: &Planner,
    target: &Target,
    address: SocketAddr,
    protocol: Option<Protocol>,
) -> Result<ServiceName, NotFound> {
    let servers = &planner.plan().virtual_servers;
    let mut found: Vec<_> =
        Target::vip_ports(address, protocol).filter_map(|vip| servers.get(&vip)).collect();
    found.dedup_by_key(|server| &server.service);
    match &found[..] {
        [one] => return Ok(one.service.clone()),
        [] => {}
        many => {
            let names: Vec<_> =
                many.iter().map(|one| format!("{} ({})", one.service, one.vip.protocol)).collect();
            return Err(NotFound(format!(
                "{target} is of several Services: add /tcp, /udp or /sctp: {}",
                names.join(", ")
            )));
        }
    }
    let index = planner.index();
    let ip = address.ip();
    let names = |name: &&ServiceName| {
        index.service(name).is_some_and(|service| {
            let named = service.external_ips.contains(&ip)
                || service.load_balancer_ips.iter().any(|one| one.address == ip);
            let has_port = |port: &cluster::ServicePort| {
                port.port == address.port() && protocol.is_none_or(|protocol| protocol == port.protocol)
            };
            named && service.ports.iter().any(has_port)
        })
    };
    if let Some(name) = index.service_names().filter(names).min() {
        return Ok(name.clone());
    }
    let node = &planner.plan().node;
    let mut near: Vec<&plan::VirtualServer> =
        servers.values().filter(|server| server.vip.address == ip).collect();
    near.sort_unstable_by_key(|server| server.vip);
    let what = if node.addresses.contains(&ip) {
        format!("{target}: no Service has that node port at this address of the node")
    } else if node.tunnel_sources.contains(&ip) {
        format!("{target}: {ip} is another node's address: ask the agent there")
    } else if near.is_empty() {
        near = servers.values().filter(|server| server.vip.port == address.port()).collect();
        near.sort_unstable_by_key(|server| {
            (server.vip.address.is_ipv4() != ip.is_ipv4(), server.kind, server.vip)
        });
        format!("{target}: no Service has the address {ip} on this node")
    } else {
        format!("{target}: no Service has that port at {ip}")
    };
    let near = near.into_iter().map(|server| {
        let VipPort { address, port, protocol } = server.vip;
        let protocol = protocol.to_string().to_lowercase();
        format!("{}/{protocol} ({})", SocketAddr::new(address, port), server.service)
    });
    Err(NotFound(what + &these(near)))
}

/// That there is no such Service.
pub(super) fn no_such_service(planner: &Planner, name: &ServiceName) -> NotFound {
    let mut near: Vec<(usize, &ServiceName)> = planner
        .index()
        .service_names()
        .filter_map(|other| {
            let typos = typos(&other.to_string(), &name.to_string());
            let same_name = other.name == name.name;
            (same_name || typos <= TYPOS).then_some((if same_name { 0 } else { typos }, other))
        })
        .collect();
    near.sort_unstable();
    let near = near.into_iter().map(|(_, other)| other.to_string());
    NotFound(format!("there is no Service {name}") + &these(near))
}

fn these(near: impl Iterator<Item = String>) -> String {
    let near: Vec<String> = near.take(NEAR).collect();
    if near.is_empty() { String::new() } else { format!("; there is {}", near.join(", ")) }
}

/// How many letters have to be put in, taken out or replaced to make one name of the other (Levenshtein).
fn typos(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_that_are_off() {
        for (one, other, off) in [
            ("", "", 0),
            ("web", "web", 0),
            ("web", "wev", 1),
            ("web", "we", 1),
            ("web", "bew", 2),
            ("", "web", 3),
        ] {
            assert_eq!((typos(one, other), typos(other, one)), (off, off), "{one} {other}");
        }
    }
}
