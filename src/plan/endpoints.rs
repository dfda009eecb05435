//! Which endpoints of a Service port get connections on this node, exactly as kube-proxy chooses
//! (`CategorizeEndpoints` in `pkg/proxy/topology.go`).
//!
//! ```text
//! EndpointSlices ──list()──► [Listed], by address ──┬─► cluster set: hints, else everywhere
//!                                                   └─► local set: those of this node
//! ```
//!
//! Each set has its own fallback: where none of its endpoints is ready, those that terminate and still serve are used.
//! `ready` alone makes an endpoint usable, so that `publishNotReadyAddresses` holds for pods that terminate, too.
//! [`Sets`] answers for any one endpoint; destinations and explanations both come from that answer.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::net::IpAddr;

use crate::cluster::{Endpoint, EndpointPort, EndpointSlice, Hints, ServicePort, SliceName};

/// What becomes of an endpoint at a virtual server. Prints in plain words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointUse {
    /// It is ready and gets connections.
    Ready,
    /// It terminates, but serves still, and none of the set is ready: it gets connections.
    Fallback,
    /// It terminates: it keeps the connections it has and gets no new ones.
    Draining,
    /// It is not ready.
    NotReady,
    /// It is on another node, or on none that is known, and the traffic policy is `Local`.
    NotOnThisNode,
    /// Its hints are for other nodes, and all ready endpoints have such hints.
    ForOtherNodes,
    /// Its hints are for other zones, and all ready endpoints have such hints.
    ForOtherZones,
    /// The same address is listed with another target port too, and one address can have one alone.
    OtherTargetPort {
        /// The one that counts.
        used: u16,
    },
    /// Another slice lists it too, and what that says counts.
    ListedTwice,
    /// Its address is of the other family.
    OtherFamily,
    /// Its slice has no port of that name and protocol.
    NoSuchPort,
}

impl EndpointUse {
    /// The weight of its destination, if it is to have one.
    pub fn weight(&self) -> Option<u32> {
        match self {
            Self::Ready | Self::Fallback => Some(1),
            Self::Draining => Some(0),
            _ => None,
        }
    }
}

impl fmt::Display for EndpointUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready: gets connections",
            Self::Fallback => "terminating, but serving, and none is ready: gets connections",
            Self::Draining => "terminating: keeps its connections, gets no new ones",
            Self::NotReady => "not ready",
            Self::NotOnThisNode => "not on this node, and the traffic policy is Local",
            Self::ForOtherNodes => "its hints are for other nodes",
            Self::ForOtherZones => "its hints are for other zones",
            Self::OtherTargetPort { used } => {
                return write!(f, "its address is listed with target port {used} too, which is used");
            }
            Self::ListedTwice => "another slice lists it too, and counts",
            Self::OtherFamily => "of the other address family",
            Self::NoSuchPort => "its slice has no port of that name and protocol",
        })
    }
}

/// Whose hints count for the cluster set, as those of the ready endpoints tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Topology {
    /// Nobody's: endpoints everywhere are used.
    #[default]
    Anywhere,
    /// Endpoints meant for this node's zone (`hints.forZones`).
    SameZone,
    /// Endpoints meant for this node (`hints.forNodes`).
    SameNode,
}

/// An endpoint as a slice lists it behind a Service port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listed<'a> {
    /// The target port.
    pub(super) port: u16,
    /// The endpoint.
    pub(super) endpoint: &'a Endpoint,
    /// Which slice.
    pub(super) slice: &'a SliceName,
}

impl<'a> Listed<'a> {
    /// Which of two that have one address counts: the same choice whatever the order of the slices.
    fn rank(&self) -> impl Ord + use<'a> {
        let Endpoint { ready, serving, terminating, node, .. } = self.endpoint;
        let usable = (*ready, *serving && *terminating, *terminating);
        (Reverse(usable), self.port, node.is_none(), node, self.slice)
    }
}

/// The endpoints behind a Service port.
#[derive(Debug, Default)]
pub(super) struct Endpoints<'a> {
    /// One for each address.
    pub(super) by_address: BTreeMap<IpAddr, Listed<'a>>,
    /// Those that another of the same address outranks.
    pub(super) outranked: Vec<Listed<'a>>,
}

impl<'a> Endpoints<'a> {
    /// All that the slices list behind a port, of both families.
    pub(super) fn list(port: &ServicePort, slices: &[&'a EndpointSlice]) -> Self {
        let mut endpoints = Self::default();
        for slice in slices {
            for target in slice.ports.iter().filter(|target| belongs(port, target)) {
                for endpoint in &slice.endpoints {
                    endpoints.add(Listed { port: target.port, endpoint, slice: &slice.name });
                }
            }
        }
        endpoints
    }

    fn add(&mut self, mut new: Listed<'a>) {
        match self.by_address.entry(new.endpoint.address) {
            Entry::Vacant(entry) => {
                entry.insert(new);
            }
            Entry::Occupied(mut entry) => {
                if new.rank() < entry.get().rank() {
                    std::mem::swap(entry.get_mut(), &mut new);
                }
                self.outranked.push(new);
            }
        }
    }

    /// Addresses that are ready with two target ports: the address, the port that counts and the other.
    pub(super) fn ambiguous(&self) -> impl Iterator<Item = (IpAddr, u16, u16)> {
        self.outranked.iter().filter(|left| left.endpoint.ready).filter_map(|left| {
            let used = self.by_address.get(&left.endpoint.address)?;
            (used.port != left.port).then_some((left.endpoint.address, used.port, left.port))
        })
    }

    /// What there is for one family.
    pub(super) fn of_family(&self, family: IpAddr) -> impl Iterator<Item = &Listed<'a>> {
        self.by_address.values().filter(move |listed| same_family(listed.endpoint.address, family))
    }
}

/// Whether a slice's port is behind a Service port.
pub(super) fn belongs(port: &ServicePort, target: &EndpointPort) -> bool {
    target.name == port.name && target.protocol == port.protocol
}

/// Whether two addresses are of one family.
pub(super) fn same_family(one: IpAddr, other: IpAddr) -> bool {
    one.is_ipv4() == other.is_ipv4()
}

/// The cluster set and the local set of one family: what decides on each endpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sets<'a> {
    node: &'a str,
    zone: Option<&'a str>,
    /// Whose hints count for the cluster set.
    pub(super) topology: Topology,
    ready: Found,
    fallback: Found,
}

/// Whether there is an endpoint of a kind.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    anywhere: bool,
    here: bool,
}

impl Found {
    fn note(&mut self, here: bool) {
        self.anywhere = true;
        self.here |= here;
    }
}

impl<'a> Sets<'a> {
    /// Looks at all endpoints of a family, as `node` in `zone` sees them.
    pub(super) fn new<'e>(
        endpoints: impl Iterator<Item = &'e Endpoint>,
        node: &'a str,
        zone: Option<&'a str>,
    ) -> Self {
        let mut sets = Self {
            node,
            zone,
            topology: Topology::Anywhere,
            ready: Found::default(),
            fallback: Found::default(),
        };
        // Hints count where every ready endpoint has some, and some are for here.
        let (mut all_for_nodes, mut some_for_node) = (true, false);
        let (mut all_for_zones, mut some_for_zone) = (true, false);
        for endpoint in endpoints {
            let here = sets.is_here(endpoint);
            if endpoint.ready {
                sets.ready.note(here);
                let hints = endpoint.hints.as_deref();
                all_for_nodes &= hints.is_some_and(|hints| !hints.nodes.is_empty());
                all_for_zones &= hints.is_some_and(|hints| !hints.zones.is_empty());
                some_for_node |= hints.is_some_and(|hints| sets.for_node(hints));
                some_for_zone |= hints.is_some_and(|hints| sets.for_zone(hints));
            } else if endpoint.serving && endpoint.terminating {
                sets.fallback.note(here);
            }
        }
        if all_for_nodes && some_for_node {
            sets.topology = Topology::SameNode;
        } else if all_for_zones && some_for_zone {
            sets.topology = Topology::SameZone;
        }
        sets
    }

    /// Whether the cluster set has an endpoint for connections; where it has none, the local set has none.
    pub(super) fn has_any(&self) -> bool {
        self.ready.anywhere || self.fallback.anywhere
    }

    /// Whether the local set has an endpoint for connections.
    pub(super) fn has_local(&self) -> bool {
        self.ready.here || self.fallback.here
    }

    /// What the cluster set makes of an endpoint.
    pub(super) fn in_cluster(&self, endpoint: &Endpoint) -> EndpointUse {
        if !endpoint.ready && !endpoint.terminating {
            return EndpointUse::NotReady;
        }
        if !endpoint.ready && endpoint.serving && !self.ready.anywhere {
            return EndpointUse::Fallback;
        }
        // A terminating endpoint has lost its hints, as a rule: whoever may have used it keeps it for its connections.
        let hints = endpoint.hints.as_deref();
        match (self.topology, hints) {
            (Topology::SameNode, Some(hints)) if !hints.nodes.is_empty() && !self.for_node(hints) => {
                EndpointUse::ForOtherNodes
            }
            (Topology::SameZone, Some(hints)) if !hints.zones.is_empty() && !self.for_zone(hints) => {
                EndpointUse::ForOtherZones
            }
            _ if endpoint.ready => EndpointUse::Ready,
            _ => EndpointUse::Draining,
        }
    }

    /// What the local set makes of an endpoint; hints do not matter there.
    pub(super) fn in_local(&self, endpoint: &Endpoint) -> EndpointUse {
        let Endpoint { ready, serving, terminating, .. } = *endpoint;
        if !self.is_here(endpoint) {
            EndpointUse::NotOnThisNode
        } else if ready {
            EndpointUse::Ready
        } else if !terminating {
            EndpointUse::NotReady
        } else if serving && !self.ready.here {
            EndpointUse::Fallback
        } else {
            EndpointUse::Draining
        }
    }

    fn is_here(&self, endpoint: &Endpoint) -> bool {
        endpoint.node.as_deref() == Some(self.node)
    }

    fn for_node(&self, hints: &Hints) -> bool {
        hints.nodes.iter().any(|node| **node == *self.node)
    }

    fn for_zone(&self, hints: &Hints) -> bool {
        self.zone.is_some_and(|zone| hints.zones.iter().any(|hinted| **hinted == *zone))
    }
}
