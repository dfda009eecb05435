//! Uplinks: the interfaces towards other nodes and clients, found from the routing table.
//!
//! They decide the segment size of clients (smallest MTU) and need `accept_local`: the direct reply to a client
//! on a director has a VIP as source, which is a local address there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::{RouteError, tunnel};

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
    addresses.retain(|address| {
        *address != IpAddr::from(tunnel::LOCAL4) && *address != IpAddr::from(tunnel::LOCAL6)
    });
    Ok(addresses)
}

/// The interfaces that some route with a gateway leaves by, or that hold one of
/// `node_addresses`; never the loopback device.
///
/// # Errors
/// [`RouteError`] when the kernel does not answer.
pub async fn list(handle: &Handle, node_addresses: &[IpAddr]) -> Result<Vec<Uplink>, RouteError> {
    let mut indices = BTreeSet::new();
    for mut request in
        [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
    {
        request.header.table = RouteHeader::RT_TABLE_UNSPEC;
        request.header.kind = RouteType::Unicast;
        request.header.protocol = RouteProtocol::Unspec;
        let mut answer = std::pin::pin!(handle.route().get(request).execute());
        while let Some(message) = answer.try_next().await.map_err(RouteError::of("list routes"))? {
            indices.extend(gateway_devices(&message));
        }
    }
    let mut answer = std::pin::pin!(handle.address().get().execute());
    while let Some(message) = answer.try_next().await.map_err(RouteError::of("list addresses"))? {
        if message.attributes.iter().any(
            |attribute| matches!(attribute, AddressAttribute::Address(address) if node_addresses.contains(address)),
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

/// Devices of a route's next hops that have a gateway.
fn gateway_devices(route: &RouteMessage) -> Vec<u32> {
    let is_gateway =
        |attribute: &RouteAttribute| matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_));
    let mut devices = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) if route.attributes.iter().any(is_gateway) => devices.push(*index),
            RouteAttribute::MultiPath(hops) => devices.extend(
                hops.iter()
                    .filter(|hop| hop.attributes.iter().any(is_gateway))
                    .map(|hop| hop.interface_index),
            ),
            _ => {}
        }
    }
    devices
}
