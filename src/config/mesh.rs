//! `router.mesh`, `router.routeReflector` and what annotations of Nodes say of both: sessions between nodes.
//!
//! Every two nodes of one autonomous system have a session, unless one of them is a client of route reflectors: then the
//! other has to be one (RFC 4456). Both ends come to the same, each from the Nodes alone.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use sheave_bgp::ImportPolicy;

use super::bfd::Bfd;
use super::kube_router;
use super::peer::{self, AddressFamily, Peer, PeerSource, SecretKey};
use super::reader::{self, Reader};
use super::{NodeSettings, Router, import};
use crate::cluster::Node;

/// The annotation that makes a Node a route reflector, or a client of those.
pub(super) const ROUTE_REFLECTOR: &str = "sheave.io/route-reflector";

/// `router.mesh`: sessions with other nodes, which need not be listed.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Mesh {
    /// Which of the routes that nodes announce are taken over; `None`: none.
    #[serde(deserialize_with = "import::policy")]
    pub import: Option<ImportPolicy>,
    /// A file with the password of these sessions (TCP MD5, RFC 2385).
    pub password_file: Option<PathBuf>,
    /// A Secret with it.
    pub password_secret: Option<SecretKey>,
    /// The hold time to propose, 90 s by default.
    #[serde(deserialize_with = "peer::hold_time_of")]
    pub hold_time: Duration,
    /// BFD (RFC 5880) beside these sessions.
    pub bfd: Option<Bfd>,
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            import: None,
            password_file: None,
            password_secret: None,
            hold_time: peer::hold_time(),
            bfd: None,
        }
    }
}

/// `router.routeReflector`: what internal peers that are clients announce is passed on (RFC 4456).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct RouteReflector {
    /// Its CLUSTER_ID; `auto` (`None`) takes the router id.
    #[serde(deserialize_with = "cluster_id_or_auto")]
    pub cluster_id: Option<Ipv4Addr>,
}

/// What a Node's annotation says of route reflection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reflection {
    /// A client.
    Client,
    /// A reflector, of that cluster.
    Server(Ipv4Addr),
}

/// A Node as a member of the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MeshMember {
    asn: Option<u32>,
    reflection: Option<Reflection>,
}

impl MeshMember {
    /// What this node's own annotations say.
    pub fn of(settings: &NodeSettings) -> Self {
        Self { asn: settings.asn, reflection: settings.reflection }
    }

    /// Reads another node's annotations; `last` is what was in force so far. What is wrong with them its own agent says.
    pub fn read(node: &Node, last: Option<&Self>) -> Self {
        let mut reader = Reader::new(String::new(), &node.annotations);
        let last = last.copied().unwrap_or_default();
        Self { asn: asn(&mut reader, &last.asn), reflection: Reflection::read(&mut reader, &last.reflection) }
    }
}

/// A Node's own autonomous system.
pub(super) fn asn(reader: &mut Reader<'_>, last: &Option<u32>) -> Option<u32> {
    reader.either(("sheave.io/asn", reader::asn), (kube_router::ASN, reader::asn), last)
}

impl Reflection {
    /// Ours, or else kube-router's.
    pub(super) fn read(reader: &mut Reader<'_>, last: &Option<Self>) -> Option<Self> {
        if reader.text(ROUTE_REFLECTOR).is_some() {
            reader.read(ROUTE_REFLECTOR, Self::parse, last)
        } else if reader.text(kube_router::RR_SERVER).is_some() {
            reader.read(kube_router::RR_SERVER, |text| cluster_id(text).map(Self::Server), last)
        } else {
            reader.text(kube_router::RR_CLIENT).map(|_| Self::Client)
        }
    }

    /// `client`, or `server` with a cluster id.
    fn parse(text: &str) -> Result<Self, String> {
        match *reader::words(text).collect::<Vec<_>>() {
            ["client"] => Ok(Self::Client),
            ["server", cluster] => cluster_id(cluster).map(Self::Server),
            _ => Err(format!(
                "`{text}` is neither `client` nor `server` with a cluster id, such as `server 10.0.0.1`"
            )),
        }
    }

    fn is_server(self) -> bool {
        matches!(self, Self::Server(_))
    }
}

/// An IPv4 address, or its number (RFC 4456 section 7).
fn cluster_id(text: &str) -> Result<Ipv4Addr, String> {
    let id = text.parse().or_else(|_| text.parse::<u32>().map(Ipv4Addr::from)).ok();
    id.filter(|id| !id.is_unspecified()).ok_or_else(|| {
        format!("`{text}` is not a cluster id: an IPv4 address such as 10.0.0.1, or a number from 1 on")
    })
}

fn cluster_id_or_auto<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Ipv4Addr>, D::Error> {
    match &*String::deserialize(d)? {
        "auto" => Ok(None),
        text => cluster_id(text).map(Some).map_err(|wrong| D::Error::custom(format!("{wrong}; or `auto`"))),
    }
}

/// `true`, `false`, or a map.
pub(super) fn mesh<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Mesh>, D::Error> {
    struct Wanted(Option<Mesh>);
    impl<'de> Deserialize<'de> for Wanted {
        fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
            Mesh::deserialize(d).map(|mesh| Self(Some(mesh)))
        }
    }
    let Wanted(mesh) =
        import::short_or_map(d, "`true`, `false`, or a map with `import`", |text| match text {
            "true" => Ok(Wanted(Some(Mesh::default()))),
            "false" | "" => Ok(Wanted(None)),
            _ => Err(format!("`{text}` is neither `true`, `false` nor a map such as {{import: none}}")),
        })?;
    if mesh.as_ref().is_some_and(|mesh| mesh.password_file.is_some() && mesh.password_secret.is_some()) {
        return Err(D::Error::custom("there are passwordFile and passwordSecret: give one of them"));
    }
    Ok(mesh)
}

impl Mesh {
    /// This node's peers among `others`; `router` is what is in force here, of which `asn` holds for those that do not say another.
    pub fn peers<'a>(
        &self,
        router: &Router,
        asn: Option<u32>,
        (own, member): (&Node, MeshMember),
        others: impl Iterator<Item = (&'a Node, MeshMember)>,
    ) -> Vec<Peer> {
        let Some(own_asn) = router.asn else { return Vec::new() };
        let mut peers = BTreeMap::new();
        for (node, other) in others {
            let (ours, theirs) = (member.reflection, other.reflection);
            let meets = |one: Option<Reflection>, other: Option<Reflection>| {
                one != Some(Reflection::Client) || other.is_some_and(Reflection::is_server)
            };
            if other.asn.or(asn) != Some(own_asn) || !meets(ours, theirs) || !meets(theirs, ours) {
                continue;
            }
            let both = |v4: bool| Some((first(own, v4)?, first(node, v4)?));
            let (v4, v6) = (both(true), both(false));
            // Both ends have to choose the same.
            let Some((local, address)) = v4.or(v6) else { continue };
            let families = [(v4, AddressFamily::Ipv4), (v6, AddressFamily::Ipv6)];
            let peer = Peer {
                port: router.listen.port,
                local_address: Some(local),
                password_file: self.password_file.clone(),
                password_secret: self.password_secret.clone(),
                hold_time: self.hold_time,
                bfd: self.bfd.clone(),
                families: families.iter().filter(|(both, _)| both.is_some()).map(|(_, of)| *of).collect(),
                import: self.import.clone(),
                route_reflector_client: theirs == Some(Reflection::Client),
                source: PeerSource::Mesh,
                ..Peer::new(address, own_asn)
            };
            peers.insert(address, peer);
        }
        let listed = |address: &IpAddr| router.peers.iter().any(|peer| peer.address.ip() == Some(*address));
        peers.retain(|address, _| !listed(address) && !own.addresses.contains(address));
        peers.into_values().collect()
    }
}

/// A Node's first address of a family.
fn first(node: &Node, v4: bool) -> Option<IpAddr> {
    node.addresses.iter().find(|address| address.is_ipv4() == v4).copied()
}
