//! What the annotations of this node's Node say.
//!
//! ```text
//! config file ──────────────┐
//!                           ├─► [NodeSettings::apply] ──► the Config in force
//! Node ─► [NodeSettings] ───┘
//! ```
//!
//! kube-router's annotations of the same meaning are read where ours is absent. One that does not parse changes
//! nothing: the last good value stays in force, and a warning says so.

use std::marker::PhantomData;
use std::net::Ipv4Addr;

use ipnet::IpNet;
use serde::Deserialize;
use sheave_bgp::bfd::Algorithm;

use super::drain::DRAIN;
use super::mesh::{self, ROUTE_REFLECTOR, Reflection, RouteReflector};
use super::peer::{self, DynamicPeer, Peer, PeerSource, Wrong};
use super::reader::{self, Reader};
use super::{Communities, Config, kube_router};
use crate::cluster::{ACCEPTS_ANNOTATION, Node};
use crate::plan::Warning;
use crate::yaml;

/// Settings of this node; what is `None` is left to the config.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeSettings {
    /// `sheave.io/peers`: besides those of the config, and in place of one with the same address (the same interface, where it has none).
    pub peers: Option<Vec<Peer>>,
    /// `sheave.io/dynamic-peers`: besides those of the config, and in place of one with the same prefix.
    pub dynamic_peers: Option<Vec<DynamicPeer>>,
    /// `sheave.io/asn`.
    pub asn: Option<u32>,
    /// `sheave.io/router-id`.
    pub router_id: Option<Ipv4Addr>,
    /// `sheave.io/communities`, besides those of the config.
    pub communities: Option<Communities>,
    /// `sheave.io/path-prepend`, besides what a Service asks for.
    pub path_prepend: Option<u8>,
    /// kube-router's `path-prepend.as`; only the own ASN can be prepended.
    pub prepend_asn: Option<u32>,
    /// kube-router's `pod-cidrs`, in place of the Node's own.
    pub pod_cidrs: Option<Vec<IpNet>>,
    /// `sheave.io/route-reflector`, whatever the config says.
    pub reflection: Option<Reflection>,
    /// `sheave.io/drain`.
    pub drain: Option<bool>,
}

const PEERS: &str = "sheave.io/peers";
const DYNAMIC_PEERS: &str = "sheave.io/dynamic-peers";
const PATH_PREPEND: &str = "sheave.io/path-prepend";

/// Our annotations of a Node.
const KNOWN: [&str; 9] = [
    PEERS,
    DYNAMIC_PEERS,
    "sheave.io/asn",
    "sheave.io/router-id",
    "sheave.io/communities",
    PATH_PREPEND,
    ROUTE_REFLECTOR,
    DRAIN,
    ACCEPTS_ANNOTATION,
];

impl NodeSettings {
    /// Reads this node's annotations; `last` is what was in force so far.
    pub fn read(node: &Node, last: Option<&Self>) -> (Self, Vec<Warning>) {
        let mut reader = Reader::new(object(&node.name), &node.annotations);
        let empty = Self::default();
        let last = last.unwrap_or(&empty);

        let peers = match reader.text(PEERS) {
            Some(text) => {
                Some(reader.checked(PEERS, read_list(text, Ok::<Peer, String>, |wrong| wrong, check_peers)))
            }
            None => kube_router::peers(&mut reader),
        };
        let peers = match peers {
            Some(Ok(mut peers)) => {
                peers.iter_mut().for_each(|peer| peer.source = PeerSource::Annotation);
                Some(peers)
            }
            Some(Err(())) => last.peers.clone(),
            None => None,
        };
        let kube_router_prepends = reader.text(PATH_PREPEND).is_none();
        let settings = Self {
            peers,
            dynamic_peers: reader.read(DYNAMIC_PEERS, dynamic_peers, &last.dynamic_peers),
            asn: mesh::asn(&mut reader, &last.asn),
            router_id: reader.read("sheave.io/router-id", router_id, &last.router_id),
            communities: reader.either(
                ("sheave.io/communities", str::parse),
                (kube_router::COMMUNITIES, kube_router::communities),
                &last.communities,
            ),
            path_prepend: reader.either(
                (PATH_PREPEND, reader::prepend),
                (kube_router::PREPEND_REPEAT, reader::prepend),
                &last.path_prepend,
            ),
            prepend_asn: kube_router_prepends
                .then(|| reader.read(kube_router::PREPEND_AS, reader::asn, &last.prepend_asn))
                .flatten(),
            pod_cidrs: kube_router::pod_cidrs(&mut reader, &last.pod_cidrs),
            reflection: Reflection::read(&mut reader, &last.reflection),
            drain: reader.read(DRAIN, reader::boolean, &last.drain),
        };

        reader.warn_of_unknown(&KNOWN);
        kube_router::warn_of_unheard(&mut reader, node.annotations.keys());
        (settings, reader.warnings)
    }

    /// The file's config as these settings change it. They add, and settle what the file leaves open or says else:
    ///
    /// - peers are added to the file's; of two with the same address the Node's counts, whole; so are ranges, by their prefix,
    /// - `asn` and `routerId` are the Node's where it has them,
    /// - a route reflector, with its cluster, or none, is what the Node says,
    /// - communities are added, and so is the prepending to that of each Service.
    pub fn apply(&self, file: &Config) -> Config {
        let mut config = file.clone();
        let router = &mut config.router;
        router.asn = self.asn.or(router.asn);
        router.router_id = self.router_id.or(router.router_id);
        router.route_reflector = match self.reflection {
            Some(Reflection::Server(cluster_id)) => Some(RouteReflector { cluster_id: Some(cluster_id) }),
            Some(Reflection::Client) => None,
            None => router.route_reflector,
        };
        let own = self.peers.as_deref().unwrap_or_default();
        router.peers.retain(|peer| own.iter().all(|own| !own.is(peer)));
        router.peers.extend(own.iter().cloned());
        let own = self.dynamic_peers.as_deref().unwrap_or_default();
        router.dynamic_peers.retain(|range| own.iter().all(|own| own.prefix != range.prefix));
        router.dynamic_peers.extend(own.iter().cloned());
        if let Some(communities) = &self.communities {
            config.announce.communities.extend(communities);
        }
        config.announce.path_prepend = self.path_prepend.unwrap_or_default();
        config
    }

    /// What does not fit together in the config in force on the node of that name.
    pub fn conflicts(&self, node: &str, config: &Config) -> Vec<Warning> {
        let warning = |reason, message| Warning { object: object(node), reason, message };
        let mut warnings = Vec::new();
        let own = config.router.asn;
        if own.is_none() && config.router.has_peers() {
            let message = "there are peers, but no autonomous system number: annotate the Node with sheave.io/asn, \
                           or set router.asn in the config";
            warnings.push(warning("NoASN", message.into()));
        }
        let other = self.prepend_asn.filter(|asn| own.is_some_and(|own| own != *asn));
        if let Some(asn) = other.filter(|_| self.path_prepend.is_some()) {
            let message = format!(
                "{} is {asn}, and only the own number can be prepended: it is, as often as asked for",
                kube_router::PREPEND_AS
            );
            warnings.push(warning("NotYetHonoured", message));
        }
        let peers = config.router.peers.iter().map(|peer| (format!("peer {}", peer.name()), peer.clone()));
        let ranges = config.router.dynamic_peers.iter();
        let ranges = ranges.map(|range| (format!("range {}", range.prefix), range.template()));
        for (name, peer) in peers.chain(ranges).filter(|(_, peer)| peer.route_reflector_client) {
            let why = match (config.router.route_reflector, own) {
                (None, _) => {
                    "this node is no route reflector: give router.routeReflector, or annotate the Node".into()
                }
                (Some(_), Some(own)) if peer.asn.number(Some(own)) != Some(own) => {
                    format!(
                        "clients of a route reflector are of its own AS, {own}, and it is of {}",
                        peer.asn
                    )
                }
                _ => continue,
            };
            let message = format!("routeReflectorClient of {name}: nothing is passed on, since {why}");
            warnings.push(warning("RouteReflectorClient", message));
        }
        for range in &config.router.dynamic_peers {
            if range.template().password_source().is_none() {
                continue;
            }
            let unsigned = |peer: &&Peer| peer.password_source().is_none() && peer.password.is_none();
            let is_within =
                |peer: &&Peer| peer.address.ip().is_some_and(|address| range.prefix.contains(&address));
            let within = config.router.peers.iter().filter(is_within);
            warnings.extend(within.filter(unsigned).map(|peer| {
                let message = format!(
                    "peer {} has no password and lies in the range {} of router.dynamicPeers, which has one: it cannot connect \
                     to this node, only be connected to; give it a password, or take another range",
                    peer.name(),
                    range.prefix
                );
                warning("PeerWithoutPassword", message)
            }));
        }
        if config.router.listen.port == 0 {
            warnings.extend(config.router.peers.iter().filter(|peer| peer.passive).map(|peer| {
                let message = format!(
                    "peer {} is to connect to this node, which listens nowhere: give router.listen.port, or leave \
                     `passive` out",
                    peer.name()
                );
                warning("PassivePeer", message)
            }));
            warnings.extend(config.router.dynamic_peers.iter().map(|range| {
                let message = format!(
                    "peers of {} are to connect to this node, which listens nowhere: give router.listen.port, or remove                      the range",
                    range.prefix
                );
                warning("PassivePeer", message)
            }));
        }
        warnings
    }
}

fn object(node: &str) -> String {
    format!("Node {node}")
}

fn dynamic_peers(text: &str) -> Result<Vec<DynamicPeer>, String> {
    read_list(text, Ok::<DynamicPeer, String>, |wrong| wrong, check_ranges)
}

fn check_peers(peers: &[Peer]) -> Result<(), Wrong> {
    peer::check(peers)?;
    show_no_key(peers.iter())
}

fn check_ranges(ranges: &[DynamicPeer]) -> Result<(), Wrong> {
    peer::check_dynamic(ranges)?;
    let templates: Vec<_> = ranges.iter().map(DynamicPeer::template).collect();
    show_no_key(templates.iter())
}

/// Who may edit Nodes may name files and Secrets that peers know the content of, but must not have it sent to whom they like.
fn show_no_key<'a>(peers: impl Iterator<Item = &'a Peer>) -> Result<(), Wrong> {
    let shows =
        |peer: &Peer| peer.bfd.iter().flat_map(|bfd| &bfd.keys).any(|key| key.algorithm == Algorithm::Simple);
    match peers.enumerate().find(|(_, peer)| shows(peer)) {
        Some((index, _)) => {
            let message =
                "`simple` sends the key itself: only the config file may ask for that, take sha1 or md5 here";
            Err((format!("[{index}].bfd.keys"), message.into()))
        }
        None => Ok(()),
    }
}

/// A YAML list of peers, or of ranges of them; errors have line and field. `tellable` makes of the parser's words what may be told,
/// `check` says what is wrong with the list.
pub(super) fn read_list<'t, W: Deserialize<'t>, T>(
    text: &'t str,
    mut item: impl FnMut(W) -> Result<T, String>,
    tellable: fn(yaml::Error) -> yaml::Error,
    check: fn(&[T]) -> Result<(), Wrong>,
) -> Result<Vec<T>, String> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let place = |line: Option<u64>, field: &str, message: &str| {
        let line = line.or_else(|| yaml::line_of(text, field));
        let line = line.map_or_else(String::new, |line| format!("line {line}: "));
        let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
        format!("{line}{field}{message}")
    };
    let written = yaml::read_annotation(text, PhantomData::<Vec<W>>)
        .map_err(tellable)
        .map_err(|yaml::Error { line, field, message }| place(line, &field, &message))?;
    let mut items = Vec::with_capacity(written.len());
    for (index, written) in written.into_iter().enumerate() {
        items.push(item(written).map_err(|message| place(None, &format!("[{index}]"), &message))?);
    }
    check(&items).map_err(|(field, message)| place(None, &field, &message))?;
    Ok(items)
}

fn router_id(text: &str) -> Result<Ipv4Addr, String> {
    text.parse()
        .ok()
        .filter(|id: &Ipv4Addr| !id.is_unspecified())
        .ok_or_else(|| format!("`{text}` is not an IPv4 address such as 10.0.0.1"))
}
