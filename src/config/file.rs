//! The config file.

use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use sheave_bgp::ExportPolicy;
use sheave_bgp::wire::ShutdownMessage;

use super::bmp::{self, BmpStation};
use super::mesh::{self, Mesh, RouteReflector};
use super::peer::{self, DynamicPeer, Peer, duration};
use super::{Communities, Conntrack, Drain, ForwardingTo, ImportTo, MarkMask, reader};
use crate::cluster::Encapsulation;
use crate::plan::{AcceptedIn, Scheduler};
use crate::yaml;

/// `RT_TABLE_DEFAULT` and `RT_TABLE_LOCAL` (linux/rtnetlink.h); `RT_TABLE_MAIN` lies between.
const DEFAULT_TABLE: u32 = 253;
const LOCAL_TABLE: u32 = 255;

/// Why a config file is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{}: {source}; give the path of a readable file to --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file says something that is wrong.
    #[error("{}{place}: {message}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Line and field, as far as they are known, ready to be put behind the file's name.
        place: String,
        /// What is wrong and what would be right.
        message: String,
    },
}

/// The whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Config {
    /// The BGP speaker.
    pub router: Router,
    /// What is announced.
    pub announce: Announce,
    /// How Services are programmed.
    pub services: Services,
    /// Where this node can be observed.
    pub observe: Observe,
    /// What makes this node drain, and how.
    pub drain: Drain,
}

/// `router`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Router {
    /// The local autonomous system; needed as soon as there are peers.
    pub asn: Option<u32>,
    /// BGP identifier; `auto` (`None`) takes the node's primary IPv4 address.
    #[serde(deserialize_with = "auto")]
    pub router_id: Option<Ipv4Addr>,
    /// Where peers may connect to.
    pub listen: Listen,
    /// Graceful restart (RFC 4724), on by default; `null` turns it off.
    pub graceful_restart: Option<GracefulRestart>,
    /// What peers' operators are told when sessions are shut down (RFC 9003).
    #[serde(deserialize_with = "shutdown_message")]
    pub shutdown_message: Option<ShutdownMessage>,
    /// The peers.
    pub peers: Vec<Peer>,
    /// Where more peers may connect from, which need not be listed one by one.
    pub dynamic_peers: Vec<DynamicPeer>,
    /// Monitoring stations that are told of sessions and routes.
    pub bmp: Vec<BmpStation>,
    /// Where routes go that are taken over of peers.
    pub import: ImportTo,
    /// Sessions with all other nodes of the same autonomous system.
    #[serde(deserialize_with = "mesh::mesh")]
    pub mesh: Option<Mesh>,
    /// Passes on what internal peers announce.
    pub route_reflector: Option<RouteReflector>,
}

impl Default for Router {
    fn default() -> Self {
        Self {
            asn: None,
            router_id: None,
            listen: Listen::default(),
            graceful_restart: Some(GracefulRestart::default()),
            shutdown_message: None,
            peers: Vec::new(),
            dynamic_peers: Vec::new(),
            bmp: Vec::new(),
            import: ImportTo::default(),
            mesh: None,
            route_reflector: None,
        }
    }
}

impl Router {
    /// Whether there is anyone to have a session with.
    pub fn has_peers(&self) -> bool {
        !(self.peers.is_empty() && self.dynamic_peers.is_empty())
    }

    /// Whether BFD beside sessions is over one hop, over several, or both.
    pub fn bfd_is_multihop(&self) -> BTreeSet<bool> {
        let mesh = self.mesh.iter().zip(self.asn).map(|(mesh, asn)| Peer {
            bfd: mesh.bfd.clone(),
            ..Peer::new(Ipv4Addr::UNSPECIFIED.into(), asn)
        });
        let ranges = self.dynamic_peers.iter().map(DynamicPeer::template);
        let of = |peer: Peer| Some(peer.has_multihop_bfd(peer.bfd.as_ref()?, self.asn));
        self.peers.iter().cloned().chain(ranges).chain(mesh).filter_map(of).collect()
    }

    /// Peers by name and ranges, and the export policy of each.
    pub fn exports(&self) -> impl Iterator<Item = (String, &ExportPolicy)> {
        let peers = self.peers.iter().map(|peer| (peer.name(), &peer.export));
        peers.chain(self.dynamic_peers.iter().map(|range| (range.prefix.to_string(), &range.export)))
    }
}

/// `router.listen`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Listen {
    /// TCP port, 179 by default; 0: peers cannot connect, this node connects to them.
    pub port: u16,
}

impl Default for Listen {
    fn default() -> Self {
        Self { port: 179 }
    }
}

/// `router.gracefulRestart`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct GracefulRestart {
    /// How long peers keep the routes of a speaker that is gone; whole seconds, at most 4095; 0 with `long_lived` alone.
    #[serde(deserialize_with = "restart_time")]
    pub restart_time: Duration,
    /// Long-lived graceful restart (RFC 9494).
    pub long_lived: Option<LongLived>,
}

impl GracefulRestart {
    fn keeps_nothing(&self) -> bool {
        self.restart_time.is_zero() && self.long_lived.is_none()
    }
}

impl Default for GracefulRestart {
    fn default() -> Self {
        Self { restart_time: Duration::from_secs(120), long_lived: None }
    }
}

/// `router.gracefulRestart.longLived`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LongLived {
    /// How long they keep them after that, as a last resort.
    #[serde(deserialize_with = "stale_time")]
    pub stale_time: Duration,
}

/// `announce`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Announce {
    /// Cluster IPs.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: bool,
    /// External IPs.
    #[serde(rename = "externalIPs")]
    pub external_ips: bool,
    /// Load-balancer IPs.
    #[serde(rename = "loadBalancerIPs")]
    pub load_balancer_ips: bool,
    /// This node's pod CIDRs.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: bool,
    /// Routes of these kernel tables.
    pub kernel_tables: Vec<u32>,
    /// Default routes among them too.
    pub default_routes: bool,
    /// The kernel table that what is announced is written to, for a routing daemon of this node to announce.
    pub export_table: Option<u32>,
    /// Prefixes to announce in place of what is inside them.
    #[serde(deserialize_with = "cidrs")]
    pub aggregate: Vec<IpNet>,
    /// Communities of everything that is announced.
    pub communities: Communities,
    /// How many more times the own ASN is prepended to everything that is announced; a Node's annotations say so.
    #[serde(skip)]
    pub path_prepend: u8,
}

impl Default for Announce {
    fn default() -> Self {
        Self {
            cluster_ips: false,
            external_ips: true,
            load_balancer_ips: true,
            pod_cidrs: false,
            kernel_tables: Vec::new(),
            default_routes: false,
            export_table: None,
            aggregate: Vec::new(),
            communities: Communities::default(),
            path_prepend: 0,
        }
    }
}

/// `services`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Services {
    /// `tunnel`, or `nat` where the fabric checks sources strictly; or each for some clients.
    pub forwarding: ForwardingTo,
    /// What tunnelled packets are wrapped in.
    pub encapsulation: Encapsulation,
    /// Where endpoints take tunnelled packets in.
    #[serde(deserialize_with = "accepted_in")]
    pub acceptance: AcceptedIn,
    /// The cluster's Service IP ranges: each is bound by one route.
    #[serde(rename = "serviceCIDRs", deserialize_with = "cidrs")]
    pub service_cidrs: Vec<IpNet>,
    /// Where pods are, besides the own Node's `podCIDRs`: their connections are not bound by `externalTrafficPolicy: Local`.
    #[serde(rename = "clusterCIDRs", deserialize_with = "cidrs")]
    pub cluster_cidrs: Vec<IpNet>,
    /// Which of this node's addresses node ports listen on.
    pub node_port_addresses: Vec<NodePortAddresses>,
    /// Schedulers.
    pub scheduler: Schedulers,
    /// External IPs.
    #[serde(rename = "externalIPs")]
    pub external_ips: ExternalIps,
    /// Packet mark bits that are ours.
    pub mark_mask: MarkMask,
    /// This node answers no ARP request for a VIP.
    #[serde(rename = "strictARP")]
    pub strict_arp: bool,
    /// Room and patience of connection tracking.
    pub conntrack: Conntrack,
    /// `spec.loadBalancerClass` of the load-balancer Services that are ours, besides those without a class.
    pub load_balancer_class: Option<String>,
}

impl Default for Services {
    fn default() -> Self {
        Self {
            forwarding: ForwardingTo::default(),
            encapsulation: Encapsulation::Ipip,
            acceptance: AcceptedIn::Node,
            service_cidrs: Vec::new(),
            cluster_cidrs: Vec::new(),
            node_port_addresses: vec![NodePortAddresses::Primary],
            scheduler: Schedulers::default(),
            external_ips: ExternalIps::default(),
            mark_mask: MarkMask::default(),
            strict_arp: false,
            conntrack: Conntrack::default(),
            load_balancer_class: None,
        }
    }
}

/// One of `services.nodePortAddresses`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// This Node's first address of each family.
    Primary,
    /// This Node's addresses within a CIDR.
    Within(IpNet),
}

/// `services.scheduler`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Schedulers {
    /// For VIPs that are reached from outside: external IPs, load-balancer IPs, announced cluster IPs.
    pub external: Scheduler,
    /// For the others.
    pub internal: Scheduler,
}

impl Default for Schedulers {
    fn default() -> Self {
        Self { external: Scheduler::Mh, internal: Scheduler::Rr }
    }
}

/// `services.externalIPs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ExternalIps {
    /// Where Services may claim external IPs; nowhere by default (CVE-2020-8554).
    #[serde(deserialize_with = "cidrs")]
    pub allow: Vec<IpNet>,
}

/// `observe`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Observe {
    /// Where `/metrics` is served; `None`: nowhere. An unspecified address means all of both families.
    #[serde(deserialize_with = "listener")]
    pub metrics: Option<SocketAddr>,
    /// Where `/healthz`, `/livez` and `/readyz` are served; as `metrics`.
    #[serde(deserialize_with = "listener")]
    pub health: Option<SocketAddr>,
    /// Which Services' virtual servers have metrics of their own.
    pub virtual_server_metrics: VirtualServerMetrics,
    /// How many virtual servers have them at most.
    pub virtual_server_metrics_limit: usize,
    /// The Unix socket that `sheave status` asks.
    pub status: PathBuf,
}

impl Default for Observe {
    fn default() -> Self {
        Self {
            metrics: Some(SocketAddr::from(([0, 0, 0, 0], 10249))),
            health: Some(SocketAddr::from(([0, 0, 0, 0], 10256))),
            virtual_server_metrics: VirtualServerMetrics::Annotated,
            virtual_server_metrics_limit: 2000,
            status: PathBuf::from("/run/sheave/status.sock"),
        }
    }
}

/// `observe.virtualServerMetrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VirtualServerMetrics {
    /// All but those with the annotation `sheave.io/metrics: "false"`.
    All,
    /// Those with the annotation `sheave.io/metrics: "true"` alone.
    Annotated,
    /// None.
    Off,
}

impl Config {
    /// Reads a config file.
    ///
    /// # Errors
    /// If it cannot be read or says something wrong; the error names file, line and field.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
        Self::parse(path, &text)
    }

    /// Reads the text of a config file; `path` is for errors.
    ///
    /// # Errors
    /// If it says something wrong.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        // Comments alone say nothing, and nothing is required.
        if text.lines().all(|line| matches!(line.trim().as_bytes(), [] | [b'#', ..] | b"---")) {
            return Ok(Self::default());
        }
        yaml::read(text, PhantomData::<Self>).and_then(Self::checked).map_err(
            |yaml::Error { line, field, message }| {
                let line = line.or_else(|| yaml::line_of(text, &field));
                let line = line.map_or_else(String::new, |line| format!(":{line}"));
                let field = if field.is_empty() { field } else { format!(": {field}") };
                Error::Wrong { path: path.into(), place: line + &field, message }
            },
        )
    }

    /// What no field can tell alone.
    fn checked(self) -> Result<Self, yaml::Error> {
        let wrong = |field: String, message: String| yaml::Error { line: None, field, message };
        let Router { asn, peers, dynamic_peers, bmp, .. } = &self.router;
        if asn.is_none() && (self.router.has_peers() || self.router.mesh.is_some()) {
            return Err(wrong(
                "router.asn".into(),
                "missing, but there are peers: give this cluster's autonomous system number".into(),
            ));
        }
        if *asn == Some(0) {
            return Err(wrong("router.asn".into(), "0 is reserved (RFC 7607)".into()));
        }
        if self.router.graceful_restart.is_some_and(|graceful| graceful.keeps_nothing()) {
            let message = "0s lets peers drop the routes at once: give 1s to 4095s, or longLived beside it; \
                           gracefulRestart: null turns it off";
            return Err(wrong("router.gracefulRestart.restartTime".into(), message.into()));
        }
        peer::check(peers).map_err(|(field, message)| wrong(format!("router.peers{field}"), message))?;
        bmp::check(bmp).map_err(|(field, message)| wrong(format!("router.bmp{field}"), message))?;
        peer::check_dynamic(dynamic_peers)
            .map_err(|(field, message)| wrong(format!("router.dynamicPeers{field}"), message))?;
        if self.router.listen.port == 0 && !dynamic_peers.is_empty() {
            let message =
                "0 lets nobody connect, and router.dynamicPeers are to: give a port, 179 by default";
            return Err(wrong("router.listen.port".into(), message.into()));
        }
        if self.router.listen.port == 0 && self.router.mesh.is_some() {
            let message =
                "0 lets nobody connect, and nodes are to (router.mesh): give a port, 179 by default";
            return Err(wrong("router.listen.port".into(), message.into()));
        }
        for (index, table) in self.announce.kernel_tables.iter().enumerate() {
            if matches!(*table, 0 | LOCAL_TABLE) {
                let message = format!(
                    "{table} is no table of routes to elsewhere: 1 to 4294967295, but not 255 (local)"
                );
                return Err(wrong(format!("announce.kernelTables[{index}]"), message));
            }
        }
        for (index, prefix) in self.announce.aggregate.iter().enumerate() {
            if prefix.prefix_len() == 0 || prefix.prefix_len() == prefix.max_prefix_len() {
                let message = format!(
                    "{prefix} is everything or a single address: give a range that virtual IPs are taken from"
                );
                return Err(wrong(format!("announce.aggregate[{index}]"), message));
            }
        }
        if let Some(table @ (0 | DEFAULT_TABLE..=LOCAL_TABLE)) = self.announce.export_table {
            let message = format!(
                "{table} is a table that the kernel forwards by or looks things up in: take one that no rule of \
                 `ip rule` leads to, such as 120"
            );
            return Err(wrong("announce.exportTable".into(), message));
        }
        let ImportTo { table, .. } = self.router.import;
        let why = match table {
            0 | LOCAL_TABLE => Some("no table of routes to elsewhere"),
            _ if self.announce.export_table == Some(table) => Some("announce.exportTable"),
            _ => None,
        };
        if let Some(why) = why {
            let message =
                format!("{table} is {why}: take 254 (main), or a table that rules of yours lead to");
            return Err(wrong("router.import.table".into(), message));
        }
        self.drain.check().map_err(|(field, message)| wrong(format!("drain.{field}"), message))?;
        Ok(self)
    }
}

/// An address and port; null or nothing turns a listener off.
fn listener<'de, D: Deserializer<'de>>(d: D) -> Result<Option<SocketAddr>, D::Error> {
    match Option::<String>::deserialize(d)?.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| {
            D::Error::custom(format_args!(
                "`{text}` is not an address with a port such as 0.0.0.0:10249; \"\" turns it off"
            ))
        }),
    }
}

/// RFC 4724 section 3: 12 bits.
fn restart_time<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    let time = duration(d)?;
    if time.subsec_nanos() != 0 || time.as_secs() > 4095 {
        return Err(D::Error::custom("a restart time is whole seconds of 1s to 4095s; 0s beside longLived"));
    }
    Ok(time)
}

/// RFC 9494 section 3.1: 24 bits.
fn stale_time<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    let time = duration(d)?;
    if time.subsec_nanos() != 0 || !(1..=16_777_215).contains(&time.as_secs()) {
        return Err(D::Error::custom("a stale time is whole seconds of 1s to 16777215s (194 days)"));
    }
    Ok(time)
}

fn shutdown_message<'de, D: Deserializer<'de>>(d: D) -> Result<Option<ShutdownMessage>, D::Error> {
    let text = Option::<String>::deserialize(d)?;
    text.map(ShutdownMessage::new).transpose().map_err(D::Error::custom)
}

fn auto<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Ipv4Addr>, D::Error> {
    match &*String::deserialize(d)? {
        "auto" => Ok(None),
        text => text
            .parse()
            .map(Some)
            .map_err(|_| D::Error::custom(format_args!("`{text}` is neither `auto` nor an IPv4 address"))),
    }
}

fn accepted_in<'de, D: Deserializer<'de>>(d: D) -> Result<AcceptedIn, D::Error> {
    let text = String::deserialize(d)?;
    reader::accepted_in(&text).map_err(D::Error::custom)
}

/// CIDRs, or addresses that stand for themselves; host bits cleared.
fn cidrs<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<IpNet>, D::Error> {
    Vec::<String>::deserialize(d)?.iter().map(|text| reader::cidr(text).map_err(D::Error::custom)).collect()
}

impl<'de> Deserialize<'de> for NodePortAddresses {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match &*String::deserialize(d)? {
            "primary" => Ok(Self::Primary),
            text => reader::cidr(text).map(Self::Within).map_err(|_| {
                D::Error::custom(format_args!("`{text}` is neither `primary` nor a CIDR such as 10.0.0.0/8"))
            }),
        }
    }
}
