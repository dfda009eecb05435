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
pub(super) fn is_unreachable(error: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(message) = error else { return false };
    matches!(message.raw_code(), -101 | -113 | -13 | -22)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::namespace::{in_namespace, ip};

    #[test]
    fn the_route_is_the_one_that_a_packet_matches() {
        let test = || {
            for line in [
                "link set lo up",
                "link add up0 type veth peer name up1",
                "addr add 10.0.0.11/24 dev up0",
                "addr add fd00:10::11/64 dev up0 nodad",
                "link set up0 up",
                "link set up1 up",
                "route add local 192.0.2.80/32 dev lo proto 83",
                "-6 route add local fd00:96::/112 dev lo proto 83",
                "route add blackhole 192.0.2.82/32",
            ] {
                ip(line);
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection_with_strict_check().unwrap();
                tokio::spawn(connection);
                let text = async |address: &str| {
                    let matched = look_up(&handle, address.parse().unwrap()).await.unwrap();
                    matched.map(|route| (route.text, route.local, route.ours))
                };
                let route = |text: &str, local, ours| Some((text.to_owned(), local, ours));
                assert_eq!(text("192.0.2.80").await, route("local 192.0.2.80/32", true, true));
                assert_eq!(text("fd00:96::80").await, route("local fd00:96::/112", true, true));
                assert_eq!(text("10.0.0.11").await, route("local 10.0.0.11/32", true, false));
                assert_eq!(text("192.0.2.81").await, None);
                assert_eq!(text("2001:db8::1").await, None);
                assert_eq!(text("192.0.2.82").await, None);
                ip("route add default via 10.0.0.1");
                ip("-6 route add default via fd00:10::1");
                assert_eq!(text("192.0.2.81").await, route("0.0.0.0/0 via 10.0.0.1", false, false));
                assert_eq!(text("2001:db8::1").await, route("::/0 via fd00:10::1", false, false));
            });
        };
        in_namespace(test);
    }
}
