//! Whose an endpoint's address is: that of the namespace to which the node's own routing leads.
//!
//! A pod may give itself any address, another pod's among them, and with the processes of the host in sight so may whoever
//! makes a namespace in a pod. Which namespaces hang on the node's device nobody can choose: the kernel says of each end
//! of a veth in which namespace the other one is (`IFLA_LINK_NETNSID`).

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::super::netlink::{self, Request, Socket};
use super::super::route_lookup::is_unreachable;
use super::super::uplink;
use super::super::{RouteError, tunnel};
use super::PodError;
use super::enter::Namespace;

/// `RTM_GETNSID` (linux/rtnetlink.h) and its attributes (linux/net_namespace.h).
const RTM_GETNSID: u16 = 90;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;

/// How this node reaches an endpoint.
#[derive(Debug)]
pub struct Path {
    /// What its packets leave by.
    pub device: Device,
    /// The namespaces at the other end of it, or of its ports where it is a bridge, as this node numbers them. None where
    /// the device has no other end (macvlan, Open vSwitch).
    behind: BTreeSet<i32>,
}

/// A device of the node towards a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// It has an IPv4 address of its own.
    pub has_address: bool,
}

impl Path {
    /// Whether a namespace is at the other end, as far as can be told.
    ///
    /// # Errors
    /// [`PodError`] where the kernel does not answer.
    pub fn leads_to(&self, namespace: &Namespace) -> Result<bool, PodError> {
        if self.behind.is_empty() {
            return Ok(true);
        }
        let number = number_of(namespace).map_err(|error| {
            PodError::Route(RouteError::io(format!("number of {}", namespace.path.display()), &error))
        })?;
        Ok(number.is_some_and(|number| self.behind.contains(&number)))
    }
}

/// Of the namespaces that have an endpoint's address the one whose it is.
///
/// # Errors
/// [`PodError`] where none is, or more than one may be: it names them.
pub fn choose(candidates: &[Namespace], path: Option<&Path>) -> Result<Namespace, PodError> {
    let mut behind = Vec::new();
    for namespace in candidates {
        if path.map_or(Ok(true), |path| path.leads_to(namespace))? {
            behind.push(namespace);
        }
    }
    match (&behind[..], candidates, path) {
        ([one], ..) => Ok((*one).clone()),
        ([one, other, ..], ..) => Err(PodError::Ambiguous(one.path.clone(), other.path.clone())),
        ([], [claims, ..], Some(Path { device, .. })) => {
            Err(PodError::NotBehind { path: claims.path.clone(), device: device.name.clone() })
        }
        ([], ..) => Err(PodError::NotFound),
    }
}

/// How this node reaches an endpoint. `None` where nothing is told by it: IPv6 has no checks of what comes from there.
///
/// # Errors
/// [`PodError`] where it does not do so by a device of its own.
pub async fn path_to(handle: &Handle, endpoint: IpAddr) -> Result<Option<Path>, PodError> {
    let none = || if endpoint.is_ipv4() { Err(PodError::Elsewhere) } else { Ok(None) };
    let Some(index) = route_to(handle, endpoint).await?.as_ref().and_then(device_of) else { return none() };
    let what = format!("interface {index}");
    let mut answer = std::pin::pin!(handle.link().get().match_index(index).execute());
    let link = answer.try_next().await.map_err(RouteError::of(&what))?;
    let link = link.ok_or_else(|| RouteError::new(what.clone(), "is gone"))?;
    let name = uplink::name(&link).ok_or_else(|| RouteError::new(what, "has no name"))?;
    if [tunnel::TUNNEL4, tunnel::TUNNEL6, "lo"].contains(&name.as_str()) {
        return none();
    }
    let behind = match other_end(&link) {
        Some(number) => BTreeSet::from([number]),
        None => behind_ports(handle, index).await?,
    };
    let has_address = has_address(handle, index).await?;
    Ok(Some(Path { device: Device { name, has_address }, behind }))
}

/// Where the kernel would send a packet for this address; `None`: nowhere.
async fn route_to(handle: &Handle, address: IpAddr) -> Result<Option<RouteMessage>, PodError> {
    let what = format!("route to {address}");
    let mut request = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(address, IpNet::from(address).prefix_len())
        .map_err(|error| RouteError::new(what.clone(), error))?
        .build();
    // With strict checking, which the connection has, nothing else may be asked for.
    request.header.table = RouteHeader::RT_TABLE_UNSPEC;
    request.header.kind = RouteType::Unspec;
    request.header.protocol = RouteProtocol::Unspec;
    request.header.scope = RouteScope::Universe;
    request.attributes.retain(|attribute| matches!(attribute, RouteAttribute::Destination(_)));
    let mut answer = std::pin::pin!(handle.route().get(request).execute());
    match answer.try_next().await {
        Err(error) if is_unreachable(&error) => Ok(None),
        answer => Ok(answer.map_err(RouteError::of(&what))?),
    }
}

/// The device that a route leaves by, where it has no gateway.
fn device_of(route: &RouteMessage) -> Option<u32> {
    let via_gateway =
        |attribute: &RouteAttribute| matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_));
    let device = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    device.filter(|_| !route.attributes.iter().any(via_gateway))
}

/// The namespace at the other end of a device, where that is another one.
fn other_end(link: &LinkMessage) -> Option<i32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkNetNsId(number) => Some(*number),
        _ => None,
    })
}

/// The namespaces at the other ends of a bridge's ports.
async fn behind_ports(handle: &Handle, bridge: u32) -> Result<BTreeSet<i32>, PodError> {
    let mut numbers = BTreeSet::new();
    let mut answer = std::pin::pin!(handle.link().get().execute());
    while let Some(link) = answer.try_next().await.map_err(RouteError::of("list interfaces"))? {
        if link.attributes.contains(&LinkAttribute::Controller(bridge)) {
            numbers.extend(other_end(&link));
        }
    }
    Ok(numbers)
}

async fn has_address(handle: &Handle, index: u32) -> Result<bool, PodError> {
    let mut answer = std::pin::pin!(handle.address().get().set_link_index_filter(index).execute());
    let mut has_address = false;
    while let Some(message) = answer.try_next().await.map_err(RouteError::of("list addresses"))? {
        has_address |= message.header.index == index
            && message
                .attributes
                .iter()
                .any(|attribute| matches!(attribute, AddressAttribute::Local(address) if address.is_ipv4()));
    }
    Ok(has_address)
}

/// How the namespace of this thread numbers another one; `None` where nothing leads there.
fn number_of(namespace: &Namespace) -> io::Result<Option<i32>> {
    let file = OwnedFd::from(File::open(&namespace.path)?);
    let attributes = netlink::attribute(NETNSA_FD, &file.as_raw_fd().to_ne_bytes());
    let request = Request { kind: RTM_GETNSID, flags: 0, header: [0; 4], attributes: &attributes };
    let mut number = None;
    Socket::open(None)?.ask(request, |_, answer| {
        let found = netlink::find(answer, NETNSA_NSID).and_then(|value| value.first_chunk());
        number = found.map(|value| i32::from_ne_bytes(*value));
    })?;
    // -1: it has none (`NETNSA_NSID_NOT_ASSIGNED`).
    Ok(number.filter(|number| *number >= 0))
}
