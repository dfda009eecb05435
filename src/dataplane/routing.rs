//! Routes of ours over rtnetlink: VIPs as `local` routes, what leads stand-ins to the tunnel devices, and what a node's own
//! routing daemon is to announce.
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
/// `RT_TABLE_MAIN` and `RT_TABLE_LOCAL` (linux/rtnetlink.h): where routes are that this node forwards by.
pub const MAIN_TABLE: u32 = 254;
const LOCAL_TABLE: u32 = 255;

/// What the kernel does with a packet that a route of ours matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Takes it in as its own.
    Local,
    /// Sends it out of a device.
    Device,
    /// Refuses it, unless any other route matches.
    Unreachable,
}

/// A route of ours; its table and prefix are its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// In which table.
    pub table: u32,
    /// What it does.
    pub kind: Kind,
    /// Index of the device; 0 where there is none.
    pub device: u32,
    /// Source address of packets that this node itself sends along it.
    pub source: Option<IpAddr>,
}

/// Whether this node forwards by the routes of a table: those of others are for a routing daemon to read.
pub fn forwards(table: u32) -> bool {
    matches!(table, MAIN_TABLE | LOCAL_TABLE)
}

/// Routes of ours that this node forwards by; their prefixes are their keys.
///
/// # Errors
/// [`RouteError`] when the kernel does not answer.
pub async fn list(handle: &Handle) -> Result<BTreeMap<IpNet, Route>, RouteError> {
    Ok(list_all(handle).await?.into_iter().filter(|(_, route)| forwards(route.table)).collect())
}

/// All routes of ours, in any table.
///
/// # Errors
/// [`RouteError`] when the kernel does not answer.
pub async fn list_all(handle: &Handle) -> Result<Vec<(IpNet, Route)>, RouteError> {
    list_of(handle, PROTOCOL, "list routes", parse).await
}

/// What `parse` makes of the routes with a protocol number, in any table.
///
/// # Errors
/// [`RouteError`], with that action, when the kernel does not answer.
pub async fn list_of<T>(
    handle: &Handle,
    protocol: u8,
    action: &str,
    parse: impl Fn(&RouteMessage) -> Option<T>,
) -> Result<Vec<T>, RouteError> {
    let protocol = RouteProtocol::Other(protocol);
    let mut routes = Vec::new();
    for mut request in
        [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
    {
        // With strict checking, which the connection has, the kernel filters by what the header says.
        request.header.table = RouteHeader::RT_TABLE_UNSPEC;
        request.header.kind = RouteType::Unspec;
        request.header.protocol = protocol;
        let mut answer = std::pin::pin!(handle.route().get(request).execute());
        while let Some(message) = answer.try_next().await.map_err(RouteError::of(action))? {
            if message.header.protocol == protocol {
                routes.extend(parse(&message));
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

/// Removes all routes of ours, whatever table they are in. Gives how many there were.
///
/// # Errors
/// [`RouteError`] of the first that could not be removed.
pub async fn clear(handle: &Handle) -> Result<usize, RouteError> {
    let held = list_all(handle).await?;
    for (prefix, route) in &held {
        delete(handle, *prefix, route).await?;
    }
    Ok(held.len())
}

fn message(prefix: IpNet, route: &Route) -> Result<RouteMessage, RouteError> {
    let invalid = |reason: &dyn std::fmt::Display| RouteError::new(format!("route {prefix}"), reason);
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(prefix.addr(), prefix.prefix_len())
        .map_err(|error| invalid(&error))?
        .table_id(route.table)
        .protocol(RouteProtocol::Other(PROTOCOL));
    builder = match route.kind {
        Kind::Local => builder.output_interface(route.device).kind(RouteType::Local).scope(RouteScope::Host),
        Kind::Device => {
            builder.output_interface(route.device).kind(RouteType::Unicast).scope(RouteScope::Link)
        }
        // Behind what anybody else has for that prefix.
        Kind::Unreachable => builder.kind(RouteType::Unreachable).priority(u32::MAX),
    };
    if let Some(source) = route.source {
        builder = builder.pref_source(source).map_err(|error| invalid(&error))?;
    }
    Ok(builder.build())
}

impl Route {
    /// Takes packets in.
    pub fn local(device: u32, source: Option<IpAddr>) -> Self {
        Self { table: LOCAL_TABLE, kind: Kind::Local, device, source }
    }

    /// Refuses what nothing else matches.
    pub fn unreachable() -> Self {
        Self { table: MAIN_TABLE, kind: Kind::Unreachable, device: 0, source: None }
    }

    /// Leads to a device, by a table.
    pub fn through(device: u32, table: u32) -> Self {
        Self { table, kind: Kind::Device, device, source: None }
    }
}

fn parse(message: &RouteMessage) -> Option<(IpNet, Route)> {
    let (mut destination, mut device, mut source) = (None, None, None);
    let mut table = u32::from(message.header.table);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::Table(id) => table = *id,
            _ => {}
        }
    }
    let kind = match message.header.kind {
        RouteType::Local => Kind::Local,
        RouteType::Unicast => Kind::Device,
        // For IPv6 the kernel names the loopback device.
        RouteType::Unreachable => {
            device = Some(0);
            Kind::Unreachable
        }
        _ => return None,
    };
    let prefix = IpNet::new(destination?, message.header.destination_prefix_length).ok()?;
    Some((prefix, Route { table, kind, device: device?, source }))
}

/// The IP address within a route attribute.
pub(crate) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
