//! kube-router's annotations of a Node, as its documentation (`docs/bgp.md`) and sources have them.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use sheave_bgp::Password;

use super::bfd::KubeRouterBfd;
use super::peer::{self, Peer};
use super::reader::{self, Reader};
use super::{Communities, node};
use crate::yaml;

/// What begins each of them.
const PREFIX: &str = "kube-router.io/";
const PEERS: &str = "kube-router.io/peers";
const PEER_IPS: &str = "kube-router.io/peer.ips";
const PEER_ASNS: &str = "kube-router.io/peer.asns";
const PEER_PASSWORDS: &str = "kube-router.io/peer.passwords";
const PEER_LOCAL_IPS: &str = "kube-router.io/peer.localips";
const PEER_PORTS: &str = "kube-router.io/peer.ports";
/// The own ASN.
pub(super) const ASN: &str = "kube-router.io/node.asn";
/// Communities of all that is announced.
pub(super) const COMMUNITIES: &str = "kube-router.io/node.bgp.communities";
/// The ASN to prepend.
pub(super) const PREPEND_AS: &str = "kube-router.io/path-prepend.as";
/// How often.
pub(super) const PREPEND_REPEAT: &str = "kube-router.io/path-prepend.repeat-n";
/// Makes the Node a route reflector, of that cluster.
pub(super) const RR_SERVER: &str = "kube-router.io/rr.server";
/// Makes it a client of those; of which cluster says nothing about whom it peers with.
pub(super) const RR_CLIENT: &str = "kube-router.io/rr.client";
const POD_CIDR: &str = "kube-router.io/pod-cidr";
const POD_CIDRS: &str = "kube-router.io/pod-cidrs";

/// Those that are acted on.
const HEARD: [&str; 14] = [
    RR_SERVER,
    RR_CLIENT,
    PEERS,
    PEER_IPS,
    PEER_ASNS,
    PEER_PASSWORDS,
    PEER_LOCAL_IPS,
    PEER_PORTS,
    ASN,
    COMMUNITIES,
    PREPEND_AS,
    PREPEND_REPEAT,
    POD_CIDR,
    POD_CIDRS,
];

/// Warns of those that are not acted on: `bgp-local-addresses` and the like.
pub(super) fn warn_of_unheard(reader: &mut Reader<'_>, keys: impl Iterator<Item = impl AsRef<str>>) {
    for key in keys {
        let key = key.as_ref();
        if key.starts_with(PREFIX) && !HEARD.contains(&key) {
            reader.warn("NotYetHonoured", format!("{key} is not acted on by this version"));
        }
    }
}

/// One of [`PEERS`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPeer {
    remoteip: IpAddr,
    remoteasn: u32,
    #[serde(default)]
    localip: Option<String>,
    #[serde(default, deserialize_with = "encoded")]
    password: Option<Password>,
    #[serde(default)]
    port: Option<u16>,
    #[serde(default)]
    bfd: Option<KubeRouterBfd>,
}

/// Its fields.
const FIELDS: [&str; 6] = ["remoteip", "remoteasn", "localip", "password", "port", "bfd"];

/// How those of the parser's words begin that quote nothing of what is written.
const QUOTES_NOTHING: [&str; 6] = [
    "anchors and aliases ",
    "missing field",
    "a password ",
    "is not text",
    "expected a number of",
    "invalid IP address syntax",
];

/// A password that slipped to where a field's name or another value belongs is quoted by the parser: only what cannot be one
/// is told.
fn tellable(yaml::Error { line, field, message }: yaml::Error) -> yaml::Error {
    let (peer, path) = field.split_once('.').unwrap_or((&field, ""));
    let name = path.split(['.', '[']).next().unwrap_or_default();
    let field = match (peer.starts_with('['), FIELDS.contains(&name)) {
        (true, true) => format!("{peer}.{name}"),
        (true, false) => peer.to_owned(),
        (false, _) => String::new(),
    };
    let message = if QUOTES_NOTHING.iter().any(|begin| message.starts_with(begin)) {
        message
    } else {
        format!("is not a YAML list of peers, each with fields of {} only", FIELDS.join(", "))
    };
    yaml::Error { line, field, message }
}

/// Its peers: of the one annotation where that is there, else of the older lists.
pub(super) fn peers(reader: &mut Reader<'_>) -> Option<Result<Vec<Peer>, ()>> {
    if let Some(text) = reader.text(PEERS) {
        let mut without_bfd = Vec::new();
        let written = |peer| written_peer(peer, &mut without_bfd);
        let peers = reader.checked(PEERS, node::read_list(text, written, tellable, peer::check));
        without_bfd.iter().for_each(|why| reader.warn("PeerWithoutBFD", format!("{PEERS}: {why}")));
        return Some(peers);
    }
    let ips = reader.text(PEER_IPS)?;
    let list = |key| reader.text(key).map(items).unwrap_or_default();
    let parsed =
        lists(&items(ips), &list(PEER_ASNS), &list(PEER_PASSWORDS), &list(PEER_LOCAL_IPS), &list(PEER_PORTS));
    Some(match parsed {
        Ok(peers) => Ok(peers),
        Err((key, wrong)) => reader.checked(key, Err(wrong)),
    })
}

/// A peer whose BFD cannot be had has a session without, and is told of in `without_bfd`: others need theirs.
fn written_peer(peer: WrittenPeer, without_bfd: &mut Vec<String>) -> Result<Peer, String> {
    let WrittenPeer { remoteip, remoteasn, localip, password, port, bfd } = peer;
    if remoteasn == 0 {
        return Err("remoteasn: 0 is reserved (RFC 7607)".into());
    }
    let bfd = bfd.map_or(Ok(None), KubeRouterBfd::read).unwrap_or_else(|wrong| {
        without_bfd.push(format!("{wrong}; the session with {remoteip} is without BFD"));
        None
    });
    let default = Peer::new(remoteip, remoteasn);
    Ok(Peer {
        port: port.unwrap_or(default.port),
        local_address: localip.as_deref().map_or(Ok(None), local_address)?,
        password,
        bfd,
        ..default
    })
}

/// The older lists: one item for each peer, and lists but the first two may be absent; items may be empty.
fn lists(
    ips: &[&str],
    asns: &[&str],
    passwords: &[&str],
    local_ips: &[&str],
    ports: &[&str],
) -> Result<Vec<Peer>, (&'static str, String)> {
    for (key, list, optional) in [
        (PEER_ASNS, asns, false),
        (PEER_PASSWORDS, passwords, true),
        (PEER_LOCAL_IPS, local_ips, true),
        (PEER_PORTS, ports, true),
    ] {
        if list.len() != ips.len() && !(optional && list.is_empty()) {
            let (has, needs) = (list.len(), ips.len());
            return Err((
                key,
                format!("has {has} items, and {PEER_IPS} has {needs}: give one for each peer"),
            ));
        }
    }
    let mut peers = Vec::with_capacity(ips.len());
    for (index, (ip, asn)) in ips.iter().zip(asns).enumerate() {
        let address = ip.parse().map_err(|_| (PEER_IPS, format!("`{ip}` is not an IP address")))?;
        let mut peer = Peer::new(address, reader::asn(asn).map_err(|wrong| (PEER_ASNS, wrong))?);
        let of = |list: &[&str]| list.get(index).copied().unwrap_or_default().to_owned();
        peer.local_address = local_address(&of(local_ips)).map_err(|wrong| (PEER_LOCAL_IPS, wrong))?;
        peer.password = decode(&of(passwords)).map_err(|wrong| (PEER_PASSWORDS, wrong))?;
        let port = of(ports);
        if !port.is_empty() {
            peer.port = port.parse().map_err(|_| (PEER_PORTS, format!("`{port}` is not a TCP port")))?;
        }
        peers.push(peer);
    }
    peer::check(&peers).map_err(|(field, message)| (PEER_IPS, format!("{field}: {message}")))?;
    Ok(peers)
}

/// What overrides the Node's pod CIDRs: the list where that is there, else the older single one.
pub(super) fn pod_cidrs(reader: &mut Reader<'_>, last: &Option<Vec<IpNet>>) -> Option<Vec<IpNet>> {
    reader.either((POD_CIDRS, cidrs), (POD_CIDR, cidrs), last)
}

/// Communities by number, pair or name.
pub(super) fn communities(text: &str) -> Result<Communities, String> {
    let mut communities = Communities::default();
    for item in items(text).into_iter().filter(|item| !item.is_empty()) {
        match item.parse::<u32>() {
            Ok(number) => drop(communities.standard.insert(number)),
            Err(_) => communities.extend(&item.parse()?),
        }
    }
    Ok(communities)
}

fn cidrs(text: &str) -> Result<Vec<IpNet>, String> {
    items(text).into_iter().map(reader::cidr).collect()
}

fn local_address(text: &str) -> Result<Option<IpAddr>, String> {
    match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| format!("localip: `{text}` is not an IP address")),
    }
}

/// Items between commas, empty ones too.
fn items(text: &str) -> Vec<&str> {
    if text.trim().is_empty() { Vec::new() } else { text.split(',').map(str::trim).collect() }
}

fn encoded<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Password>, D::Error> {
    // Not even what is wrong with it may show it.
    let text = Option::<String>::deserialize(d).map_err(|_| D::Error::custom("is not text"))?;
    text.map_or(Ok(None), |text| decode(&text)).map_err(D::Error::custom)
}

/// The password as it is once decoded, line ends included, which is what kube-router signs with.
fn decode(text: &str) -> Result<Option<Password>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let bytes = STANDARD.decode(text).map_err(|_| "a password is not base64".to_owned())?;
    Password::new(bytes).map(Some).map_err(|error| error.to_string())
}
