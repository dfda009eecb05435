//! Routes that lead to next hops, over rtnetlink.
//!
//! Every one carries [`PROTOCOL`] and [`METRIC`]: a route of ours stands behind what others have for its prefix, in a place of
//! its own, so that neither takes the other's.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use rtnetlink::packet_core::Emitable as _;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType, RouteVia,
};
use rtnetlink::{Handle, RouteMessageBuilder, RouteNextHopBuilder};
use sheave_bgp::NextHop;

use super::follow::{NLM_F_REPLACE, RTM_DELROUTE, RTM_NEWROUTE};
use crate::dataplane::error::{RouteError, names_nothing};
use crate::dataplane::netlink::{Request, Socket};
use crate::dataplane::routing::{ip, list_of};

/// Route protocol number of routes that are learnt (`rtm_protocol`, linux/rtnetlink.h): unassigned there and in iproute2's
/// `rt_protos`.
pub const PROTOCOL: u8 = 85;
/// Behind what DHCP clients, router advertisements, operators and routing daemons use.
pub const METRIC: u32 = 8192;

/// linux/netlink.h.
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
/// How much the kernel is asked in one go: as many answers as wait in a socket of the default size, and less than it takes to be sent.
const MESSAGES: usize = 100;
const BYTES: usize = 64 << 10;

/// Where packets go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ways {
    /// Next hops, sorted; each gets its share of the flows.
    pub(super) hops: Arc<[NextHop]>,
    /// Source address of packets that this node itself sends.
    pub(super) source: Option<IpAddr>,
}

/// A table and a prefix.
pub(super) type Key = (u32, IpNet);

/// All routes of ours, in any table.
pub(super) async fn list(handle: &Handle) -> Result<Vec<(Key, Ways)>, RouteError> {
    list_of(handle, PROTOCOL, "list learnt routes", parse).await
}

/// What is to become of a route of ours.
pub(super) struct Change<'a> {
    pub(super) key: Key,
    /// `None`: it goes. One that is gone already counts as removed.
    pub(super) ways: Option<&'a Ways>,
    /// It takes the place of the one of ours that is there. Another's stays.
    pub(super) replaces: bool,
}

impl Change<'_> {
    /// As rtnetlink has it, without the header of the message.
    fn body(&self) -> Result<Vec<u8>, RouteError> {
        let message = message(self.key, self.ways)?;
        let mut body = vec![0; message.buffer_len()];
        message.emit(&mut body);
        Ok(body)
    }

    fn request<'a>(&self, body: &'a [u8]) -> Request<'a> {
        let (header, attributes) = body.split_first_chunk().expect("`struct rtmsg` has 12 bytes");
        let (kind, flags) = match (self.ways, self.replaces) {
            (None, _) => (RTM_DELROUTE, 0),
            (Some(_), true) => (RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE),
            (Some(_), false) => (RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL),
        };
        Request { kind, flags, header: *header, attributes }
    }

    fn outcome(&self, answer: io::Result<()>) -> Result<(), RouteError> {
        let (_, prefix) = self.key;
        match (answer, self.ways) {
            (Err(error), None) if names_nothing(&error) => Ok(()),
            (Err(error), None) => Err(RouteError::new(format!("delete route {prefix}"), error)),
            (Err(error), Some(ways)) => {
                let hops: Vec<String> = ways.hops.iter().map(ToString::to_string).collect();
                Err(RouteError::new(format!("add route {prefix} via {}", hops.join(", ")), error))
            }
            (Ok(()), _) => Ok(()),
        }
    }
}

/// Has the kernel make changes, in this order and many in one go. Gives what came of each.
///
/// # Errors
/// Of the socket: what came of any of them is not known.
pub(super) fn write(socket: &mut Socket, changes: &[Change<'_>]) -> io::Result<Vec<Result<(), RouteError>>> {
    let mut outcomes = Vec::with_capacity(changes.len());
    let (mut batch, mut bytes) = (Vec::<(usize, Vec<u8>)>::new(), 0);
    for (index, change) in changes.iter().enumerate() {
        outcomes.push(change.body().map(|body| {
            bytes += body.len();
            batch.push((index, body));
        }));
        if batch.len() < MESSAGES && bytes < BYTES && index + 1 < changes.len() {
            continue;
        }
        let requests: Vec<Request<'_>> =
            batch.iter().map(|(index, body)| changes[*index].request(body)).collect();
        for ((index, _), answer) in batch.iter().zip(socket.ask_all(&requests)?) {
            outcomes[*index] = changes[*index].outcome(answer);
        }
        batch.clear();
        bytes = 0;
    }
    Ok(outcomes)
}

/// The route, or all there is of it.
fn message((table, prefix): Key, ways: Option<&Ways>) -> Result<RouteMessage, RouteError> {
    let invalid = |reason: &dyn std::fmt::Display| RouteError::new(format!("route {prefix}"), reason);
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(prefix.addr(), prefix.prefix_len())
        .map_err(|error| invalid(&error))?
        .table_id(table)
        .protocol(RouteProtocol::Other(PROTOCOL))
        .kind(RouteType::Unicast)
        .scope(RouteScope::Universe)
        .priority(METRIC);
    let Some(Ways { hops, source }) = ways else { return Ok(builder.build()) };
    builder = match hops[..] {
        [NextHop { address, interface }] => {
            let builder = builder.gateway(address).map_err(|error| invalid(&error))?;
            interface.into_iter().fold(builder, RouteMessageBuilder::output_interface)
        }
        _ => {
            let next = |hop: &NextHop| {
                let builder = if prefix.addr().is_ipv4() {
                    RouteNextHopBuilder::new_ipv4()
                } else {
                    RouteNextHopBuilder::new_ipv6()
                };
                let builder = hop.interface.into_iter().fold(builder, RouteNextHopBuilder::interface);
                builder.via(hop.address).map(RouteNextHopBuilder::build)
            };
            let hops = hops.iter().map(next).collect::<Result<_, _>>().map_err(|error| invalid(&error))?;
            builder.multipath(hops)
        }
    };
    if let Some(source) = source {
        builder = builder.pref_source(*source).map_err(|error| invalid(&error))?;
    }
    Ok(builder.build())
}

fn parse(message: &RouteMessage) -> Option<(Key, Ways)> {
    let mut destination = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut table = u32::from(message.header.table);
    let (mut source, mut single, mut device, mut hops) = (None, None, None, Vec::new());
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => single = gateway(attribute),
            RouteAttribute::MultiPath(ways) => {
                hops.extend(ways.iter().filter_map(|way| {
                    Some(hop(way.attributes.iter().find_map(gateway)?, Some(way.interface_index)))
                }));
            }
            _ => {}
        }
    }
    hops.extend(single.map(|gateway| hop(gateway, device)));
    hops.sort_unstable();
    let prefix = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
    Some(((table, prefix), Ways { hops: hops.into(), source }))
}

fn gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        // IPv4 by way of IPv6.
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

/// As it is learnt: the interface belongs to a link-local address alone.
fn hop(address: IpAddr, device: Option<u32>) -> NextHop {
    let link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    NextHop { address, interface: device.filter(|_| link_local) }
}
