//! Routes of ours over rtnetlink: VIPs as `local` routes, and what leads stand-ins to the tunnel devices.
//!
//! Every route carries [`PROTOCOL`], which makes it ours: only such routes are ever changed or removed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::RouteError;

/// Route protocol number of our routes (`rtm_protocol`, linux/rtnetlink.h): unassigned there and in
/// iproute2's `rt_protos`.
pub const PROTOCOL: u8 = 83;
/// `RT_TABLE_LOCAL` (linux/rtnetlink.h).
const LOCAL_TABLE: u8 = 255;

/// What the kernel does with a packet that a route of ours matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Takes it in as its own.
    Local,
    /// Sends it out of a device.
    Device,
}

/// A route of ours; its prefix is its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// What it does.
    pub kind: Kind,
    /// Index of the device.
    pub device: u32,
    /// Source address of packets that this node itself sends along it.
    pub source: Option<IpAddr>,
}

/// All routes of ours, in any table.
///
/// # Errors
/// [`RouteError`] when the kernel does not answer.
pub async fn list(handle: &Handle) -> Result<BTreeMap<IpNet, Route>, RouteError> {
    let mut routes = BTreeMap::new();
    for mut request in
        [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
    {
        // With strict checking, which the connection has, the kernel filters by what the header says.
        request.header.table = RouteHeader::RT_TABLE_UNSPEC;
        request.header.kind = RouteType::Unspec;
        request.header.protocol = RouteProtocol::Other(PROTOCOL);
        let mut answer = std::pin::pin!(handle.route().get(request).execute());
        while let Some(message) = answer.try_next().await.map_err(RouteError::of("list routes"))? {
            if message.header.protocol == RouteProtocol::Other(PROTOCOL)
                && let Some((prefix, route)) = parse(&message)
            {
                routes.insert(prefix, route);
            }
        }
    }
    Ok(routes)
}

/// Adds a route; with `replaces`, in place of the one of ours that has its prefix. One of another owner stays.
///
/// # Errors
/// [`RouteError`] naming the prefix.
pub async fn put(handle: &Handle, prefix: IpNet, route: &Route, replaces: bool) -> Result<(), RouteError> {
    let request = handle.route().add(message(prefix, route)?);
    let request = if replaces { request.replace() } else { request };
    request.execute().await.map_err(RouteError::of(&format!("add route {prefix}")))
}

/// Removes a route of ours; one that is gone already counts as removed.
///
/// # Errors
/// [`RouteError`] naming the prefix.
pub async fn delete(handle: &Handle, prefix: IpNet, route: &Route) -> Result<(), RouteError> {
    match handle.route().del(message(prefix, route)?).execute().await {
        Err(error) if !super::is_absent(&error) => {
            Err(RouteError::of(&format!("delete route {prefix}"))(error))
        }
        _ => Ok(()),
    }
}

fn message(prefix: IpNet, route: &Route) -> Result<RouteMessage, RouteError> {
    let invalid = |reason: &dyn std::fmt::Display| RouteError::new(format!("route {prefix}"), reason);
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(prefix.addr(), prefix.prefix_len())
        .map_err(|error| invalid(&error))?
        .output_interface(route.device)
        .protocol(RouteProtocol::Other(PROTOCOL));
    builder = match route.kind {
        Kind::Local => {
            builder.kind(RouteType::Local).scope(RouteScope::Host).table_id(u32::from(LOCAL_TABLE))
        }
        Kind::Device => builder.kind(RouteType::Unicast).scope(RouteScope::Link),
    };
    if let Some(source) = route.source {
        builder = builder.pref_source(source).map_err(|error| invalid(&error))?;
    }
    Ok(builder.build())
}

fn parse(message: &RouteMessage) -> Option<(IpNet, Route)> {
    let (mut destination, mut device, mut source) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Oif(index) => device = Some(*index),
            _ => {}
        }
    }
    let kind = match message.header.kind {
        RouteType::Local => Kind::Local,
        RouteType::Unicast => Kind::Device,
        _ => return None,
    };
    let prefix = IpNet::new(destination?, message.header.destination_prefix_length).ok()?;
    Some((prefix, Route { kind, device: device?, source }))
}

/// The IP address within a route attribute.
pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
