//! Interfaces, addresses and routes: the uplinks and their MTU, and whether what the agent needs for itself is free.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::super::error::{DataplaneError, RouteError};
use super::super::ruleset::{IPV4_HEADER, IPV6_HEADER, Rules, TABLE};
use super::super::tunnel::{self, LOCAL4, Tunnel};
use super::super::uplink::{self, Uplink};
use super::super::{routing, standin};
use super::Finding;
use super::owners::first_few;
use crate::plan::NodePlan;

/// The smallest MTU that IPv6 allows (RFC 8200 section 5): what must fit inside a tunnel packet.
const IPV6_MINIMUM_MTU: u32 = 1280;

/// What rtnetlink tells of this network namespace.
pub struct Network {
    /// Interfaces towards other nodes.
    pub uplinks: Vec<Uplink>,
    /// Whether the node speaks IPv6: its Node says so, or, where that is not known, an uplink has an address.
    pub ipv6: bool,
    /// All interfaces, by their names.
    pub devices: BTreeSet<String>,
    addresses: Vec<Held>,
    /// Of others, with a prefix that the agent needs for itself.
    routes: Vec<Held>,
    tunnels: Vec<(Tunnel, Occupied)>,
    /// How many routes carry our protocol number.
    marked_routes: usize,
}

/// An address or a route's prefix, and its interface.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    prefix: IpNet,
    device: String,
}

/// What is there under the name of a tunnel device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occupied {
    Free,
    ByUs,
    ByOthers,
}

impl Network {
    /// Lists it.
    ///
    /// # Errors
    /// [`DataplaneError`] when the kernel does not answer.
    pub async fn read(plan: &NodePlan) -> Result<Self, DataplaneError> {
        let (connection, handle, _) =
            rtnetlink::new_connection_with_strict_check().map_err(DataplaneError::Rtnetlink)?;
        tokio::spawn(connection);
        let uplinks = uplink::list(&handle, &plan.node).await?;
        let mut tunnels = Vec::new();
        let mut own = Vec::new();
        for tunnel in Tunnel::ALL {
            let occupied = match tunnel::find(&handle, tunnel.name()).await? {
                None => Occupied::Free,
                Some(link) if tunnel.is_ours(&link, tunnel.local()) => {
                    own.push(link.header.index);
                    Occupied::ByUs
                }
                Some(_) => Occupied::ByOthers,
            };
            tunnels.push((tunnel, occupied));
        }
        let devices = devices(&handle).await?;
        let addresses = addresses(&handle, &devices, &own).await?;
        let ipv6 = if plan.node.addresses.is_empty() {
            addresses.iter().any(|held| {
                is_global6(held.prefix.addr()) && uplinks.iter().any(|uplink| uplink.name == held.device)
            })
        } else {
            plan.node.addresses.iter().any(IpAddr::is_ipv6)
        };
        Ok(Self {
            ipv6,
            routes: routes(&handle, &devices).await?,
            devices: devices.into_values().collect(),
            marked_routes: routing::list_all(&handle).await?.len(),
            uplinks,
            addresses,
            tunnels,
        })
    }

    /// Everything there is to say of it. `has_table`: there is a table `inet sheave`.
    pub fn judge(&self, rules: Rules, has_table: bool, plan: &NodePlan) -> Vec<Finding> {
        let mut findings = judge_uplinks(&self.uplinks, rules, self.ipv6);
        let held: Vec<IpAddr> = self.addresses.iter().map(|held| held.prefix.addr()).collect();
        findings.extend(judge_node_addresses(&plan.node.addresses, &held));
        findings.extend(self.tunnels.iter().map(|(tunnel, occupied)| judge_tunnel(*tunnel, *occupied)));
        findings.push(judge_reserved("addresses", &self.addresses));
        findings.push(judge_reserved("routes", &self.routes));
        findings.extend(judge_vips(plan, &self.addresses));
        let agent_was_here =
            has_table || self.tunnels.iter().any(|(_, occupied)| *occupied == Occupied::ByUs);
        findings.extend(judge_marked_routes(self.marked_routes, agent_was_here));
        findings
    }
}

async fn devices(handle: &Handle) -> Result<BTreeMap<u32, String>, RouteError> {
    let mut names = BTreeMap::new();
    let mut answer = std::pin::pin!(handle.link().get().execute());
    while let Some(link) = answer.try_next().await.map_err(RouteError::of("list interfaces"))? {
        if let Some(name) = uplink::name(&link) {
            names.insert(link.header.index, name);
        }
    }
    Ok(names)
}

/// All addresses but those of interfaces of ours.
async fn addresses(
    handle: &Handle,
    devices: &BTreeMap<u32, String>,
    own: &[u32],
) -> Result<Vec<Held>, RouteError> {
    let mut held = Vec::new();
    let mut answer = std::pin::pin!(handle.address().get().execute());
    while let Some(message) = answer.try_next().await.map_err(RouteError::of("list addresses"))? {
        let index = message.header.index;
        if own.contains(&index) {
            continue;
        }
        let of = |attribute: &AddressAttribute| match attribute {
            // Of a point-to-point interface `Address` is the other end.
            AddressAttribute::Local(address) | AddressAttribute::Address(address) => Some(*address),
            _ => None,
        };
        let mut found: Vec<IpAddr> = message.attributes.iter().filter_map(of).collect();
        found.dedup();
        held.extend(
            found.into_iter().map(|address| Held { prefix: address.into(), device: name(devices, index) }),
        );
    }
    Ok(held)
}

/// Routes that others made (not those which the kernel made for an address) to what the agent needs for itself.
async fn routes(handle: &Handle, devices: &BTreeMap<u32, String>) -> Result<Vec<Held>, RouteError> {
    let mut held = Vec::new();
    for mut request in
        [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
    {
        request.header.table = RouteHeader::RT_TABLE_UNSPEC;
        request.header.kind = RouteType::Unspec;
        request.header.protocol = RouteProtocol::Unspec;
        let mut answer = std::pin::pin!(handle.route().get(request).execute());
        while let Some(message) = answer.try_next().await.map_err(RouteError::of("list routes"))? {
            let ours = RouteProtocol::Other(routing::PROTOCOL);
            if [RouteProtocol::Kernel, ours].contains(&message.header.protocol) {
                continue;
            }
            if let Some(prefix) = prefix(&message).filter(|prefix| is_reserved(*prefix)) {
                let index = message.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                });
                let device = index.map_or_else(|| "no interface".into(), |index| name(devices, index));
                held.push(Held { prefix, device });
            }
        }
    }
    Ok(held)
}

fn name(devices: &BTreeMap<u32, String>, index: u32) -> String {
    devices.get(&index).cloned().unwrap_or_else(|| format!("interface {index}"))
}

fn prefix(message: &RouteMessage) -> Option<IpNet> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => routing::ip(address),
        _ => None,
    })?;
    IpNet::new(address, message.header.destination_prefix_length).ok()
}

/// Whether packets for it should go to the tunnel devices and nowhere else.
fn is_reserved(prefix: IpNet) -> bool {
    // `tunnel::LOCAL6` is among the stand-ins.
    prefix == IpNet::from(IpAddr::from(LOCAL4))
        || standin::ranges().iter().any(|range| range.contains(&prefix))
}

fn is_global6(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if !address.is_loopback() && !address.is_unicast_link_local())
}

fn judge_uplinks(uplinks: &[Uplink], rules: Rules, ipv6: bool) -> Vec<Finding> {
    if uplinks.is_empty() {
        return vec![Finding::warn(
            "uplinks",
            format!(
                "none: no route has a gateway, no interface an address of this node; MTU {} is assumed",
                rules.mtu
            ),
            "add the default route; with --manifests, give --node the name of this node's Node",
        )];
    }
    let names: Vec<String> =
        uplinks.iter().map(|uplink| format!("{} (MTU {})", uplink.name, uplink.mtu)).collect();
    let names = names.join(", ");
    let mut findings = vec![if uplinks.iter().all(|uplink| uplink.mtu == rules.mtu) {
        Finding::ok("uplinks", names)
    } else {
        Finding::warn(
            "uplinks",
            format!("{names}: the smallest MTU is in force for all clients"),
            "give all of them the same MTU",
        )
    }];
    let needed = IPV6_MINIMUM_MTU + IPV6_HEADER;
    let too_small: Vec<&str> =
        uplinks.iter().filter(|uplink| uplink.mtu < needed).map(|uplink| uplink.name.as_str()).collect();
    let mut sizes = format!("clients are told TCP segments of {} bytes over IPv4", rules.mss(IPV4_HEADER));
    if ipv6 && too_small.is_empty() {
        sizes.push_str(&format!(", {} over IPv6", rules.mss(IPV6_HEADER)));
    }
    findings.push(Finding::ok("segment size", sizes));
    if ipv6 && !too_small.is_empty() {
        findings.push(Finding::fail(
            "IPv6 MTU",
            format!(
                "{} has less than {needed} bytes: an IPv6 packet of 1280 must fit inside a tunnel packet",
                too_small.join(", ")
            ),
            format!("raise its MTU to {needed} or more"),
        ));
    }
    findings
}

/// VIP routes have the node's first address of each family as source, which the kernel takes only if it is held.
fn judge_node_addresses(node: &[IpAddr], held: &[IpAddr]) -> Vec<Finding> {
    let first = |v4: bool| node.iter().find(|address| address.is_ipv4() == v4);
    [first(true), first(false)]
        .into_iter()
        .flatten()
        .map(|address| {
            let subject = format!("node address {address}");
            if held.contains(address) {
                Finding::ok(subject, "held by an interface")
            } else {
                Finding::fail(
                    subject,
                    "the Node has it, no interface here does",
                    "give --node the name of this node's Node, or add the address",
                )
            }
        })
        .collect()
}

fn judge_tunnel(tunnel: Tunnel, occupied: Occupied) -> Finding {
    let subject = format!("interface {}", tunnel.name());
    match occupied {
        Occupied::Free => Finding::ok(subject, "absent: the agent makes it"),
        Occupied::ByUs => Finding::ok(subject, "there: an agent has run here, the next one adopts it"),
        Occupied::ByOthers => Finding::fail(
            subject,
            "there, and not Sheave's",
            format!(
                "the agent needs the name: rename it (`ip link set {} name …`) or remove it",
                tunnel.name()
            ),
        ),
    }
}

fn judge_reserved(what: &str, held: &[Held]) -> Finding {
    let [four, six] = standin::ranges();
    let subject = format!("{what} within {four}, {six}, {LOCAL4}");
    let taken: Vec<String> = held
        .iter()
        .filter(|held| is_reserved(held.prefix))
        .map(|Held { prefix, device }| format!("{prefix} ({device})"))
        .collect();
    if taken.is_empty() {
        return Finding::ok(subject, "none of others");
    }
    Finding::fail(
        subject,
        first_few(&taken),
        "the agent needs these ranges inside this node: move what is there elsewhere",
    )
}

/// A virtual IP that is an address of this host stays the host's: whoever has it answers here, NodeLocal DNSCache for one.
fn judge_vips(plan: &NodePlan, held: &[Held]) -> Option<Finding> {
    let taken: Vec<String> = held
        .iter()
        .filter(|held| plan.vips.contains_key(&held.prefix.addr()))
        .map(|Held { prefix, device }| format!("{} ({device})", prefix.addr()))
        .collect();
    (!taken.is_empty()).then(|| {
        Finding::warn(
            "virtual IPs",
            format!("addresses of this host: {}; it serves them itself, Sheave does not", first_few(&taken)),
            "if that is not meant, remove the address; a virtual IP needs none",
        )
    })
}

/// Routes with our protocol number where nothing else of ours is.
fn judge_marked_routes(marked: usize, agent_was_here: bool) -> Option<Finding> {
    let number = routing::PROTOCOL;
    (marked > 0 && !agent_was_here).then(|| {
        Finding::warn(
            format!("routes with protocol {number}"),
            format!("{marked}, though neither table inet {TABLE} nor a tunnel device is here: the agent takes them for its own and removes them"),
            "if they are another program's, have it use another protocol number (`ip route show proto 83 table all`)",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::Severity::{self, Fail, Ok as Fine, Warn};
    use super::*;
    use crate::config::MarkMask;

    fn severities(findings: &[Finding]) -> Vec<Severity> {
        findings.iter().map(|finding| finding.severity).collect()
    }

    #[test]
    fn uplinks_and_their_mtu() {
        for (case, mtus, ipv6, expected, words) in [
            ("none", &[][..], false, &[Warn][..], "MTU 1500 is assumed"),
            ("one", &[1500], false, &[Fine, Fine], "1440 bytes over IPv4"),
            ("both families", &[1500], true, &[Fine, Fine], "1440 bytes over IPv4, 1400 over IPv6"),
            ("jumbo frames", &[9000, 9000], true, &[Fine, Fine], "8940 bytes over IPv4, 8900 over IPv6"),
            ("different", &[9000, 1500], true, &[Warn, Fine], "1440 bytes"),
            ("just enough for IPv6", &[1320], true, &[Fine, Fine], "1220 over IPv6"),
            ("too small for IPv6", &[1319], true, &[Fine, Fine, Fail], "less than 1320"),
            ("small, IPv4 alone", &[1319], false, &[Fine, Fine], "1259 bytes over IPv4"),
        ] {
            let uplinks: Vec<Uplink> = mtus
                .iter()
                .enumerate()
                .map(|(index, mtu)| Uplink { name: format!("eth{index}"), mtu: *mtu })
                .collect();
            let mtu = super::super::super::smallest_mtu(&uplinks);
            let findings = judge_uplinks(&uplinks, Rules::new(MarkMask::default(), mtu, &[], false), ipv6);
            assert_eq!(severities(&findings), expected, "{case}: {findings:?}");
            assert!(findings.iter().any(|finding| finding.found.contains(words)), "{case}: {findings:?}");
        }
    }

    #[test]
    fn what_the_agent_needs_for_itself() {
        for (prefix, reserved) in [
            ("192.88.99.8/32", true),
            ("192.0.0.9/32", false),
            ("192.0.0.0/24", false),
            ("240.0.0.0/4", true),
            ("250.1.0.0/16", true),
            ("0.0.0.0/0", false),
            ("224.0.0.0/3", false),
            ("100::8/128", true),
            ("100::/64", true),
            ("100::/56", false),
            ("2001:db8::/64", false),
        ] {
            let held = Held { prefix: prefix.parse().unwrap(), device: "eth0".into() };
            let finding = judge_reserved("routes", &[held]);
            assert_eq!(finding.severity == Fail, reserved, "{finding:?}");
            assert_eq!(finding.found.contains(prefix), reserved, "{finding:?}");
        }
    }

    #[test]
    fn the_node_must_be_this_one() {
        let addresses =
            |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        for (case, node, held, expected) in [
            ("unknown", &[][..], &["10.0.0.1"][..], &[][..]),
            ("this one", &["10.0.0.1", "fd00::1"], &["fd00::1", "10.0.0.1"], &[Fine, Fine]),
            ("second addresses do not matter", &["10.0.0.1", "10.0.0.2"], &["10.0.0.1"], &[Fine]),
            ("another one", &["10.0.0.2"], &["10.0.0.1"], &[Fail]),
        ] {
            let findings = judge_node_addresses(&addresses(node), &addresses(held));
            assert_eq!(severities(&findings), expected, "{case}");
        }
    }

    #[test]
    fn virtual_ips_of_the_host() {
        let mut plan = NodePlan::default();
        plan.vips.insert("10.96.0.10".parse().unwrap(), 1);
        for (held, expected) in [("10.0.0.1", None), ("10.96.0.10", Some("10.96.0.10 (nodelocaldns)"))] {
            let held = Held { prefix: held.parse::<IpAddr>().unwrap().into(), device: "nodelocaldns".into() };
            let finding = judge_vips(&plan, &[held]);
            assert_eq!(finding.is_some(), expected.is_some());
            assert!(finding.is_none_or(|finding| finding.found.contains(expected.unwrap())));
        }
    }

    #[test]
    fn names_and_routes_of_an_agent_before() {
        for (occupied, severity) in
            [(Occupied::Free, Fine), (Occupied::ByUs, Fine), (Occupied::ByOthers, Fail)]
        {
            assert_eq!(judge_tunnel(Tunnel::V4, occupied).severity, severity, "{occupied:?}");
        }
        for (marked, agent_was_here, expected) in
            [(0, false, None), (0, true, None), (7, true, None), (7, false, Some(Warn))]
        {
            let finding = judge_marked_routes(marked, agent_was_here);
            assert_eq!(finding.map(|finding| finding.severity), expected, "{marked} {agent_was_here}");
        }
    }
}
