//! How the kernel routes what comes for one address: one question, whatever the number of routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::RouteError;
use super::routing::{PROTOCOL, ip};

/// The route that an address matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matched {
    /// Its destination.
    pub prefix: IpNet,
    /// Packets are taken in here.
    pub local: bool,
    /// It is one of ours.
    pub ours: bool,
    /// As `ip route` would write it, without device.
    pub text: String,
}

/// The route that packets for an address match (`ip route get fibmatch`), if any does.
///
/// # Errors
/// [`RouteError`] when the kernel does not answer.
pub async fn look_up(handle: &Handle, address: IpAddr) -> Result<Option<Matched>, RouteError> {
    let what = format!("look up the route to {address}");
    let mut request = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(address, IpNet::from(address).prefix_len())
        .map_err(|error| RouteError::new(what.clone(), error))?
        .build();
    // A question says nothing of these: the connection has the kernel check strictly.
    request.header.table = RouteHeader::RT_TABLE_UNSPEC;
    request.header.protocol = RouteProtocol::Unspec;
    request.header.scope = RouteScope::Universe;
    request.header.kind = RouteType::Unspec;
    request.header.flags = RouteFlags::FibMatch;
    let mut answer = std::pin::pin!(handle.route().get(request).execute());
    match answer.try_next().await {
        Ok(message) => Ok(message.map(|message| matched(&message, address))),
        Err(error) if is_unreachable(&error) => Ok(None),
        Err(error) => Err(RouteError::of(&what)(error)),
    }
}

fn matched(message: &RouteMessage, address: IpAddr) -> Matched {
    let (mut destination, mut gateway) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            _ => {}
        }
    }
    // A default route has none.
    let unspecified = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let prefix = IpNet::new(destination.unwrap_or(unspecified), message.header.destination_prefix_length)
        .unwrap_or_else(|_| address.into());
    let kind = match message.header.kind {
        RouteType::Unicast => String::new(),
        other => format!("{} ", format!("{other:?}").to_lowercase()),
    };
    let via = gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
    Matched {
        prefix,
        local: message.header.kind == RouteType::Local,
        ours: message.header.protocol == RouteProtocol::Other(PROTOCOL),
        text: format!("{kind}{prefix}{via}"),
    }
}

/// No route at all (ENETUNREACH), or one that says so (EHOSTUNREACH, EACCES, EINVAL of a blackhole).
fn is_unreachable(error: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(message) = error else { return false };
    matches!(message.raw_code(), -101 | -113 | -13)
}
