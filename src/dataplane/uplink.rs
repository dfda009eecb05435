//! Uplinks: the interfaces towards other nodes and clients, found from the routing table. The devices of an overlay
//! network between the nodes are among them.
//!
//! They decide the segment size of clients (smallest MTU) and need `accept_local`: the direct reply to a client
//! on a director has a VIP as source, which is a local address there. Nor may they check sources strictly: an outer
//! packet has the other node's address as its source, and through an overlay it does not come the way that leads there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::{RouteError, routing, tunnel};
use crate::plan::NodeState;

/// An interface towards other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Its name.
    pub name: String,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// Every address of this host, those of the tunnel devices left out.
///
/// # Errors
/// [`RouteError`] when the kernel does not answer.
pub async fn local_addresses(handle: &Handle) -> Result<BTreeSet<IpAddr>, RouteError> {
    let mut addresses = BTreeSet::new();
    let mut answer = std::pin::pin!(handle.address().get().execute());
    while let Some(message) = answer.try_next().await.map_err(RouteError::of("list addresses"))? {
        // Beside a peer's address, `Local` is the own one.
        let own = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
        addresses.extend(own.or_else(|| {
            message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
        }));
    }
    // No VIP is link-local, and each pod's device has such an address: they come and go with the pods.
    let link_local = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    addresses.retain(|address| {
        *address != IpAddr::from(tunnel::LOCAL4)
            && *address != IpAddr::from(tunnel::LOCAL6)
            && !link_local(address)
    });
    Ok(addresses)
}

/// The interfaces that hold one of the node's addresses, or that some route leaves by which has a gateway or leads to
/// pods of other nodes; never the loopback device.
///
/// # Errors
/// [`RouteError`] when the kernel does not answer.
pub async fn list(handle: &Handle, node: &NodeState) -> Result<Vec<Uplink>, RouteError> {
    let remote_pods = Disjoint::new(&node.remote_pod_cidrs);
    let mut indices = BTreeSet::new();
    for mut request in
        [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
    {
        request.header.table = RouteHeader::RT_TABLE_UNSPEC;
        request.header.kind = RouteType::Unicast;
        request.header.protocol = RouteProtocol::Unspec;
        let mut answer = std::pin::pin!(handle.route().get(request).execute());
        while let Some(message) = answer.try_next().await.map_err(RouteError::of("list routes"))? {
            let to_pods = prefix(&message).is_some_and(|prefix| remote_pods.overlaps(prefix));
            indices.extend(devices(&message, to_pods));
        }
    }
    let mut answer = std::pin::pin!(handle.address().get().execute());
    while let Some(message) = answer.try_next().await.map_err(RouteError::of("list addresses"))? {
        if message.attributes.iter().any(
            |attribute| matches!(attribute, AddressAttribute::Address(address) if node.addresses.contains(address)),
        ) {
            indices.insert(message.header.index);
        }
    }
    let mut uplinks = BTreeMap::new();
    let mut answer = std::pin::pin!(handle.link().get().execute());
    while let Some(link) = answer.try_next().await.map_err(RouteError::of("list interfaces"))? {
        if indices.contains(&link.header.index)
            && !link.header.flags.contains(LinkFlags::Loopback)
            && let (Some(name), Some(mtu)) = (name(&link), tunnel::mtu(&link))
            && ![tunnel::TUNNEL4, tunnel::TUNNEL6].contains(&name.as_str())
        {
            uplinks.insert(name.clone(), Uplink { name, mtu });
        }
    }
    Ok(uplinks.into_values().collect())
}

/// The name of an interface.
pub(super) fn name(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

/// Devices of a route's next hops: of `all`, or of those that have a gateway.
fn devices(route: &RouteMessage, all: bool) -> Vec<u32> {
    let is_gateway =
        |attribute: &RouteAttribute| matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_));
    let counts = |attributes: &[RouteAttribute]| all || attributes.iter().any(is_gateway);
    let mut devices = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) if counts(&route.attributes) => devices.push(*index),
            RouteAttribute::MultiPath(hops) => devices
                .extend(hops.iter().filter(|hop| counts(&hop.attributes)).map(|hop| hop.interface_index)),
            _ => {}
        }
    }
    devices
}

/// Where a route leads; `None` for a default route.
fn prefix(route: &RouteMessage) -> Option<IpNet> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => routing::ip(address),
        _ => None,
    })?;
    IpNet::new(address, route.header.destination_prefix_length).ok().filter(|net| net.prefix_len() > 0)
}

/// Prefixes of which none overlaps another, so that a search takes one comparison on either side.
struct Disjoint(BTreeMap<IpAddr, IpNet>);

impl Disjoint {
    fn new(prefixes: &BTreeSet<IpNet>) -> Self {
        let aggregated = IpNet::aggregate(&prefixes.iter().copied().collect());
        Self(aggregated.into_iter().map(|net| (net.network(), net)).collect())
    }

    /// Whether one of them lies within `prefix` or around it.
    fn overlaps(&self, prefix: IpNet) -> bool {
        let around = self.0.range(..=prefix.network()).next_back();
        let within = self.0.range(prefix.network()..=prefix.broadcast()).next();
        around.is_some_and(|(_, net)| net.contains(&prefix)) || within.is_some()
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::route::{RouteAddress, RouteNextHop};

    use super::*;

    #[test]
    fn routes_to_pods_of_other_nodes() {
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
        let pods = Disjoint::new(&nets(&["10.244.2.0/24", "10.244.3.0/24", "fd00:244:2::/64"]));
        for (case, prefix, expected) in [
            ("a whole pod CIDR", "10.244.2.0/24", true),
            ("a block of one", "10.244.3.64/26", true),
            ("the last address of one", "10.244.3.255/32", true),
            ("all pods", "10.244.0.0/16", true),
            ("IPv6", "fd00:244:2::/64", true),
            ("all pods, IPv6", "fd00:244::/32", true),
            ("own pods", "10.244.1.0/24", false),
            ("after the last", "10.244.4.0/24", false),
            ("another network", "10.0.0.0/24", false),
            ("own pods, IPv6", "fd00:244:1::/64", false),
        ] {
            assert_eq!(pods.overlaps(prefix.parse().unwrap()), expected, "{case}");
        }
        assert!(!Disjoint::new(&nets(&[])).overlaps("10.0.0.0/8".parse().unwrap()));
    }

    fn route(destination: &str, more: &[RouteAttribute]) -> RouteMessage {
        let net: IpNet = destination.parse().unwrap();
        let mut route = RouteMessage::default();
        route.header.destination_prefix_length = net.prefix_len();
        if let IpAddr::V4(address) = net.network()
            && net.prefix_len() > 0
        {
            route.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(address)));
        }
        route.attributes.extend_from_slice(more);
        route
    }

    #[test]
    fn devices_of_routes() {
        let gateway = RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::new(10, 0, 0, 1)));
        let hop = |index, attributes: &[RouteAttribute]| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop.attributes = attributes.to_vec();
            hop
        };
        let hops = RouteAttribute::MultiPath(vec![hop(4, std::slice::from_ref(&gateway)), hop(5, &[])]);
        for (case, route, to_pods, expected) in [
            ("default", route("0.0.0.0/0", &[RouteAttribute::Oif(2), gateway]), false, &[2][..]),
            ("no gateway", route("10.9.0.0/24", &[RouteAttribute::Oif(3)]), false, &[]),
            ("no gateway, to pods", route("10.244.2.0/24", &[RouteAttribute::Oif(3)]), true, &[3]),
            ("several paths", route("10.9.0.0/24", std::slice::from_ref(&hops)), false, &[4]),
            ("several paths, to pods", route("10.244.2.0/24", &[hops]), true, &[4, 5]),
        ] {
            assert_eq!(devices(&route, to_pods), expected, "{case}");
        }
        assert_eq!(prefix(&route("0.0.0.0/0", &[])), None);
        assert_eq!(prefix(&route("10.244.2.0/24", &[])), Some("10.244.2.0/24".parse().unwrap()));
    }
}
