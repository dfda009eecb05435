//! The nftables ruleset as text: one table of ours, `inet sheave`. Its sets and maps are filled element by
//! element ([`super::elements`]); its rules change only with the settings below.
//!
//! ```text
//! from the wire ─► vip_in ─► outer ──(IPIP or GUE for an endpoint here: mark, destination := our tunnel)───────┐
//!                  notrack   │                                                                              │
//! from this node ─► vip_out ─► loop ──(the same for own pods and stand-ins)──► lo ─► outer ──────────────────┤
//!                                                                                                           ▼
//!        the inner packet, on sheave4/sheave6: zone (UDP) ─► inner (dnat by mark) ─► clear (unknown: refuse) ─► forward ─► source_nat
//!        to a VIP: internal_in, internal_out (from within the cluster: mark; no new connections: refuse) ─► IPVS
//!        to a VIP, and IPVS left it: guard (refuse, answer ping).   SYN-ACK from a VIP: mss
//! ```

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::tunnel::{self, TUNNEL4, TUNNEL6};
use super::{fou, standin};
use crate::config::MarkMask;

/// Name of the table; its family is `inet`.
pub const TABLE: &str = "sheave";

/// Maps that packets fill: verification tag of an SCTP packet that belongs to no association → the VIP it was sent to.
pub const FILLED_BY_PACKETS: [&str; 2] = ["ended4", "ended6"];

/// What the rules (not the elements) depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Packet mark bits to use.
    pub mask: MarkMask,
    /// Smallest MTU of the uplinks, in bytes.
    pub mtu: u32,
    /// This node's primary IPv4 address: source of what it sends for others.
    pub node4: Option<Ipv4Addr>,
    /// This node's primary IPv6 address.
    pub node6: Option<Ipv6Addr>,
    /// What comes in GUE is taken in too ([`super::fou`]).
    pub gue: bool,
}

/// Bytes of an IPv4 header without options.
pub const IPV4_HEADER: u32 = 20;
/// Bytes of an IPv6 header.
pub const IPV6_HEADER: u32 = 40;
/// Bytes of a TCP header without options.
const TCP_HEADER: u32 = 20;
/// Bytes of a UDP header and of GUE's (draft-ietf-intarea-gue section 3.1), without optional fields.
const GUE_HEADERS: u32 = 8 + 4;

/// Any number will do, as long as it stays: with another one, an agent's rules would not know a flow that was there before.
const ZONE_SEED: u32 = 0x5ea7e;

impl Rules {
    /// The rules of a node with these addresses, the primary ones first.
    pub fn new(mask: MarkMask, mtu: u32, addresses: &[IpAddr], gue: bool) -> Self {
        Self {
            mask,
            mtu,
            gue,
            node4: addresses.iter().find_map(|address| match address {
                IpAddr::V4(address) => Some(*address),
                IpAddr::V6(_) => None,
            }),
            node6: addresses.iter().find_map(|address| match address {
                IpAddr::V6(address) => Some(*address),
                IpAddr::V4(_) => None,
            }),
        }
    }

    /// A transaction for `nft -f` that puts all rules in force at once, whatever was there, and leaves elements
    /// as they are.
    pub fn transaction(self) -> String {
        let mut text = format!("add table inet {TABLE}\nflush table inet {TABLE}\ntable inet {TABLE} {{\n");
        for family in [&FAMILY4, &FAMILY6] {
            text.push_str(&family.sets());
        }
        text.push_str(&self.chains());
        text.push_str("}\n");
        text
    }

    /// As [`Self::transaction`], with a table of sets of any other shape replaced, elements and all.
    pub fn replacement(self) -> String {
        format!("add table inet {TABLE}\ndelete table inet {TABLE}\n{}", self.transaction())
    }

    fn chains(self) -> String {
        let mut text = String::new();
        let mut chain = |name: &str, hook: &str, rules: &[String]| {
            let _ = writeln!(text, "  chain {name} {{");
            if !hook.is_empty() {
                let _ = writeln!(text, "    type {hook}; policy accept;");
            }
            for rule in rules {
                let _ = writeln!(text, "    {rule}");
            }
            let _ = writeln!(text, "  }}");
        };
        let families = [(&FAMILY4, self.mss(IPV4_HEADER)), (&FAMILY6, self.mss(IPV6_HEADER))];
        let each = |rule: &dyn Fn(&FamilyNames) -> Vec<String>| -> Vec<String> {
            families.iter().flat_map(|(family, _)| rule(family)).collect()
        };
        let (mask, bit) = (self.mask.mask(), self.mask.bit());
        let keep = !mask;
        // The mark stays on what IPVS makes of a packet: so its tunnel packets are told from those of others.
        let ours = format!("meta mark set meta mark | {bit:#x}");

        chain(
            "to_vip",
            "",
            &each(&|f| {
                vec![
                    // Addresses of this host that others gave it.
                    format!("{} daddr @taken{} return", f.ip, f.suffix),
                    format!(
                        "{ip} daddr . meta l4proto . th dport @restricted{n} \
                         {ip} daddr . meta l4proto . th dport . {ip} saddr != @sources{n} drop",
                        ip = f.ip,
                        n = f.suffix
                    ),
                    format!("{ip} daddr @vips{n} notrack {ours}", ip = f.ip, n = f.suffix),
                    format!(
                        "{ip} daddr . meta l4proto . th dport @nodeports{n} notrack {ours}",
                        ip = f.ip,
                        n = f.suffix
                    ),
                ]
            }),
        );
        // Before conntrack (-200): with an entry for the VIP, a connection that moves between directors dies.
        chain(
            "vip_in",
            "filter hook prerouting priority -301",
            &[format!("iifname != {{ \"{TUNNEL4}\", \"{TUNNEL6}\" }} jump to_vip")],
        );
        chain("vip_out", "filter hook output priority -301", &{
            // What the SCTP stack said for `refer`, in the name of the VIP.
            let mut rules = each(&|f| {
                self.node(f).map_or_else(Vec::new, |node| {
                    vec![format!(
                        "{ip} saddr {node} sctp chunk abort exists {ip} saddr set sctp vtag map @ended{n} notrack",
                        ip = f.ip,
                        n = f.suffix
                    )]
                })
            });
            rules.push("jump to_vip".into());
            rules
        });
        // Replies from VIPs: this node has not tracked what they answer, and firewalls drop what is `ct state invalid`.
        // Not where a pod's reply leaves, which has the pod's address still.
        chain(
            "vip_reply",
            "filter hook prerouting priority -301",
            &std::iter::once(format!("iifname {{ \"{TUNNEL4}\", \"{TUNNEL6}\" }} accept"))
                .chain(each(&|f| {
                    vec![format!(
                        "{ip} saddr != @taken{n} {ip} saddr @vips{n} notrack",
                        ip = f.ip,
                        n = f.suffix
                    )]
                }))
                .collect::<Vec<_>>(),
        );

        // A UDP client goes on from one port when its endpoint goes. Without these its packets, meant for another endpoint by
        // now, would meet what conntrack knows of them, and go where the last one was. Replies need no zone.
        chain(
            "zone",
            "filter hook prerouting priority -301",
            &each(&|f| {
                let zone = |datagrams: &str| {
                    format!(
                        "iifname \"{}\" {datagrams} ct original zone set jhash meta mark & {mask:#x} mod 65535 seed {ZONE_SEED:#x} offset 1",
                        f.tunnel
                    )
                };
                vec![zone("meta l4proto udp"), zone(f.icmp_error_of_udp)]
            }),
        );

        // For an endpoint that takes in this VIP's packets itself; not from itself, since it would answer itself.
        let direct = |f: &FamilyNames, then: &str| {
            format!(
                "{outer} {ip} daddr . {source} != @direct{n} {ip} daddr . {destination} @direct{n} goto {then}{n}",
                outer = f.outer,
                ip = f.ip,
                source = f.inner_source,
                destination = f.inner_destination,
                n = f.suffix
            )
        };
        let catch = |f: &FamilyNames, outer: &str, then: &str| {
            vec![
                format!("{outer} meta mark set {} daddr map @mark{} goto {then}{}", f.ip, f.suffix, f.suffix),
                // A pod that is gone: taken in to be refused; else it would bounce until its TTL is spent.
                format!(
                    "{outer} {} daddr @pods{} meta mark set meta mark & {keep:#x} | {bit:#x} goto {then}{}",
                    f.ip, f.suffix, f.suffix
                ),
            ]
        };
        // What other nodes may send here.
        let taken_in = |f: &FamilyNames| -> Vec<String> {
            std::iter::once(f.outer.to_owned()).chain(self.gue.then(|| f.gue())).collect()
        };
        for (f, _) in &families {
            // From a node that is not this one: what this one sends to itself it loops through lo.
            let from_node = [
                format!("{} saddr != @nodes{} drop", f.ip, f.suffix),
                "iifname != \"lo\" fib saddr type local drop".into(),
            ];
            let from_node = |then: String| [&from_node[..], &[then]].concat();
            chain(
                &format!("take{}", f.suffix),
                "",
                &from_node(format!("notrack {} daddr set {}", f.ip, f.local)),
            );
            // A pod that is gone costs one hop more: its packets must not go round between this node and its router.
            chain(&format!("pass{}", f.suffix), "", &from_node(format!("notrack {} set 2 accept", f.hops)));
            let source = self.node(f).map(|node| format!(" {} saddr set {node}", f.ip)).unwrap_or_default();
            chain(
                &format!("send{}", f.suffix),
                "",
                &[format!("notrack meta mark set meta mark & {keep:#x} {} set 1{source} accept", f.hops)],
            );
            chain(&format!("turn{}", f.suffix), "", &[format!("notrack {} daddr set {}", f.ip, f.local)]);
        }
        let mut outer = each(&|f| {
            let from_wire =
                |outer: String| format!("iifname != \"lo\" {outer} {} daddr {} drop", f.ip, f.stand_ins);
            let mut rules = vec![format!("iifname != \"lo\" {} daddr {} drop", f.ip, f.local)];
            rules.extend(taken_in(f).into_iter().map(from_wire));
            // Looped by ourselves, with the mark it needs; IPv6's address lies in the range of the stand-ins.
            rules.push(format!("{} daddr {} accept", f.ip, f.local));
            rules
        });
        outer.extend(each(&|f| vec![direct(f, "pass")]));
        outer.extend(each(&|f| taken_in(f).iter().flat_map(|outer| catch(f, outer, "take")).collect()));
        chain("outer", "filter hook prerouting priority raw", &outer);
        let mut turned = each(&|f| vec![direct(f, "send")]);
        // To this node itself directors send IP in IP alone.
        turned.extend(each(&|f| catch(f, f.outer, "turn")));
        // To another node: from the address that every node knows, not from that of whichever link it leaves by
        // (IPv6 source selection heeds no route's `src` here, RFC 6724 rule 5). Without conntrack, or a CNI that masquerades
        // what goes to pods from elsewhere (flannel, Calico towards its tunnels) gives it an address that is no node's.
        turned.extend(each(&|f| {
            let from = |node: IpAddr| format!(" {} saddr set {node}", f.ip);
            let leave = |outer: String| {
                format!(
                    "{outer} meta mark & {bit:#x} == {bit:#x} meta mark set meta mark & {keep:#x} notrack{}",
                    self.node(f).map(from).unwrap_or_default()
                )
            };
            // Sent whether or not this node takes it in itself. Not what a client here sends in GUE to a VIP.
            let gue = format!("{} {} daddr != @vips{}", f.gue(), f.ip, f.suffix);
            vec![leave(f.outer.to_owned()), leave(gue)]
        }));
        chain("loop", "route hook output priority raw", &turned);

        chain(
            "inner",
            "nat hook prerouting priority dstnat",
            &each(&|f| {
                vec![format!(
                    "iifname \"{}\" dnat {} to meta mark & {mask:#x} . meta l4proto . {} daddr . th dport map @endpoints{}",
                    f.tunnel, f.ip, f.ip, f.suffix
                )]
            }),
        );
        chain(
            "refuse",
            "",
            &["meta l4proto tcp reject with tcp reset".into(), "reject with icmpx port-unreachable".into()],
        );
        // No ICMP ends an SCTP association that stands, an ABORT alone does, and the kernel's SCTP stack sends one at what belongs to
        // no association (RFC 9260 section 8.4), carrying the same verification tag. An INIT, which has the tag 0, would reach
        // whoever listens. To the VIP IPVS would schedule it again: so to the node's own address, and back in `vip_out`.
        let refer = |f: &FamilyNames| -> Option<String> {
            self.node(f).map(|node| {
                format!(
                    "{ip} daddr @vips{n} sctp vtag != 0 update @ended{n} {{ sctp vtag : {ip} daddr }} {ip} daddr set {node} accept",
                    ip = f.ip,
                    n = f.suffix
                )
            })
        };
        let mut cleared = vec![
            format!("meta mark set meta mark & {keep:#x}"),
            // Out of its connection's window, and so not rewritten: that a reset would end the connection is what it may be for.
            "meta l4proto tcp ct state invalid drop".into(),
        ];
        cleared.extend(each(&|f| {
            let mut rules = vec![format!("{} daddr @taken{} return", f.ip, f.suffix)];
            rules.extend(refer(f));
            rules.push(format!("{} daddr @vips{} goto refuse", f.ip, f.suffix));
            rules.push(format!(
                "{ip} daddr . meta l4proto . th dport @nodeports{n} goto refuse",
                ip = f.ip,
                n = f.suffix
            ));
            rules
        }));
        chain("cleared", "", &cleared);
        // After dstnat (-100): what still goes to a VIP is what no map knew, and must not be scheduled again.
        chain(
            "clear",
            "filter hook prerouting priority -90",
            &[format!(
                "iifname {{ \"{TUNNEL4}\", \"{TUNNEL6}\" }} meta mark & {bit:#x} == {bit:#x} jump cleared"
            )],
        );
        // Not rewritten either: it would reach the client from the pod's own address, and be answered by a reset.
        chain(
            "invalid",
            "filter hook forward priority filter",
            &each(&|f| {
                vec![format!("{} saddr @own{} meta l4proto tcp ct state invalid drop", f.ip, f.suffix)]
            }),
        );
        // IPVS schedules at 99 of the input hook and at -98 of output (ip_vs_core.c), and looks for a service of the packet's
        // mark first. It must be that and nothing else, so it is set at the last moment.
        let to_internal = |from: &dyn Fn(&FamilyNames) -> String| {
            let mut rules = each(&|f| {
                vec![format!(
                    "{}meta mark set {} daddr . meta l4proto . th dport map @internal{}",
                    from(f),
                    f.ip,
                    f.suffix
                )]
            });
            rules.push("tcp flags & (syn | ack) == syn jump opening".into());
            rules.push("sctp vtag 0 jump opening".into());
            rules
        };
        chain(
            "no_answer",
            "",
            &each(&|f| vec![format!("{} daddr . meta l4proto . th dport @dropped{} drop", f.ip, f.suffix)]),
        );
        // While the last destinations drain, IPVS would refuse by ICMP alone, at which IPv6 clients try again.
        chain("turned_away", "", &["jump no_answer".into(), "goto refuse".into()]);
        let number = mask & !bit;
        chain(
            "opening",
            "",
            &each(&|f| {
                vec![format!(
                    "meta mark & {number:#x} . {} daddr . meta l4proto . th dport @closing{} goto turned_away",
                    f.ip, f.suffix
                )]
            }),
        );
        let from_clients = |f: &FamilyNames| format!("{} saddr @clients{} ", f.ip, f.suffix);
        chain("internal_in", "filter hook input priority 97", &to_internal(&from_clients));
        chain("internal_out", "filter hook output priority -99", &to_internal(&|_| String::new()));

        // After IPVS, so that the SCTP stack itself may answer.
        chain("turn_down", "", &["sctp vtag != 0 accept".into(), "goto refuse".into()]);
        // IPVS takes its packets at 98 and 99 of the input hook (ip_vs_core.c); 99 and below would hit real traffic.
        chain(
            "guard",
            "filter hook input priority 101",
            &each(&|f| {
                vec![
                    // As kube-proxy does: not what answers a connection that this node opened from such a port.
                    format!(
                        "{ip} daddr . meta l4proto . th dport @dropped{n} ct state != {{ established, related }} drop",
                        ip = f.ip,
                        n = f.suffix
                    ),
                    format!(
                        "{ip} daddr . meta l4proto . th dport @closed{n} ct state != {{ established, related }} goto turn_down",
                        ip = f.ip,
                        n = f.suffix
                    ),
                    format!("{} daddr @taken{} accept", f.ip, f.suffix),
                    format!("{} daddr @vips{} {} type echo-request accept", f.ip, f.suffix, f.icmp),
                    format!("{} daddr @vips{} goto turn_down", f.ip, f.suffix),
                ]
            }),
        );
        chain(
            "mss",
            "filter hook postrouting priority 150",
            &families
                .iter()
                .map(|(f, mss)| {
                    format!(
                        "{} saddr @vips{} tcp flags & (syn|rst) == syn tcp option maxseg size set {mss}",
                        f.ip, f.suffix
                    )
                })
                .collect::<Vec<_>>(),
        );
        chain(
            "source_nat",
            "nat hook postrouting priority srcnat",
            &each(&|f| {
                vec![
                    // A pod that reached itself would answer itself.
                    format!(
                        "iifname \"{}\" ct status dnat {} saddr . {} daddr @hairpin{} {}",
                        f.tunnel,
                        f.ip,
                        f.ip,
                        f.suffix,
                        self.source_nat(f)
                    ),
                    // As director: the reply of an endpoint that is not ours would miss this node, unless it is to one
                    // of our pods. Those keep their address, which network policies go by.
                    format!(
                        "iifname \"{tunnel}\" ct status dnat {ip} saddr != @pods{n} {ip} daddr != @own{n} {}",
                        self.source_nat(f),
                        tunnel = f.tunnel,
                        ip = f.ip,
                        n = f.suffix
                    ),
                ]
            }),
        );
        text
    }

    fn node(self, family: &FamilyNames) -> Option<IpAddr> {
        if family.suffix == '4' { self.node4.map(IpAddr::V4) } else { self.node6.map(IpAddr::V6) }
    }

    /// To the node's own address: that of the outgoing link need not be routed to.
    fn source_nat(self, family: &FamilyNames) -> String {
        match self.node(family) {
            Some(node) => format!("snat {} to {node}", family.ip),
            None => "masquerade".into(),
        }
    }

    /// The largest segment whose packet still fits the uplink inside a tunnel packet of its own family, whichever encapsulation
    /// directors choose: connections outlive a change of it.
    pub fn mss(self, ip_header: u32) -> u32 {
        let gue = if self.gue { GUE_HEADERS } else { 0 };
        self.mtu.saturating_sub(2 * ip_header + gue + TCP_HEADER)
    }
}

/// What differs between the families.
struct FamilyNames {
    suffix: char,
    ip: &'static str,
    address: &'static str,
    /// Matches an outer packet of IP in IP.
    outer: &'static str,
    /// Protocol number of what a tunnel carries, and its version as an IP header begins with it.
    inner: (u8, u8),
    /// The inner packet's addresses in it.
    inner_source: &'static str,
    inner_destination: &'static str,
    hops: &'static str,
    icmp: &'static str,
    /// Matches an ICMP error about a UDP packet without options or extension headers.
    icmp_error_of_udp: &'static str,
    tunnel: &'static str,
    local: IpAddr,
    stand_ins: ipnet::IpNet,
}

const FAMILY4: FamilyNames = FamilyNames {
    suffix: '4',
    ip: "ip",
    address: "ipv4_addr",
    // nft's name `ipip` is protocol 94.
    outer: "ip protocol 4",
    inner: (4, 4),
    inner_source: "@th,96,32",
    inner_destination: "@th,128,32",
    hops: "ip ttl",
    icmp: "icmp",
    icmp_error_of_udp: "icmp type { destination-unreachable, time-exceeded, parameter-problem } @th,136,8 17",
    tunnel: TUNNEL4,
    local: IpAddr::V4(tunnel::LOCAL4),
    stand_ins: ipnet::IpNet::V4(standin::RANGE4),
};

const FAMILY6: FamilyNames = FamilyNames {
    suffix: '6',
    ip: "ip6",
    address: "ipv6_addr",
    outer: "ip6 nexthdr 41",
    inner: (41, 6),
    inner_source: "@th,64,128",
    inner_destination: "@th,192,128",
    hops: "ip6 hoplimit",
    icmp: "icmpv6",
    icmp_error_of_udp: "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } @th,112,8 17",
    tunnel: TUNNEL6,
    local: IpAddr::V6(tunnel::LOCAL6),
    stand_ins: ipnet::IpNet::V6(standin::RANGE6),
};

impl FamilyNames {
    /// Matches an outer packet of GUE exactly as IPVS makes it: its header (version 0, no control message, no optional field,
    /// the inner protocol, no flag), then an IP header of this family. A pod may have a UDP server on that port, and what it
    /// is sent does not begin so.
    fn gue(&self) -> String {
        let (protocol, version) = self.inner;
        let header = u32::from(protocol) << 16;
        format!("udp dport {} @th,64,32 {header:#x} @th,96,4 {version}", fou::PORT)
    }

    fn sets(&self) -> String {
        let Self { suffix: n, address, ip, inner_destination, .. } = self;
        format!(
            "  set nodes{n} {{ type {address}; }}
  set vips{n} {{ type {address}; flags interval; }}
  set taken{n} {{ type {address}; }}
  set pods{n} {{ type {address}; flags interval; }}
  set own{n} {{ type {address}; }}
  set hairpin{n} {{ type {address} . {address}; }}
  set nodeports{n} {{ type {address} . inet_proto . inet_service; }}
  set closed{n} {{ type {address} . inet_proto . inet_service; }}
  set dropped{n} {{ type {address} . inet_proto . inet_service; }}
  set closing{n} {{ type mark . {address} . inet_proto . inet_service; }}
  set clients{n} {{ type {address}; flags interval; }}
  map internal{n} {{ type {address} . inet_proto . inet_service : mark; }}
  set restricted{n} {{ type {address} . inet_proto . inet_service; }}
  set sources{n} {{ type {address} . inet_proto . inet_service . {address}; flags interval; }}
  set direct{n} {{ typeof {ip} daddr . {inner_destination}; }}
  map mark{n} {{ type {address} : mark; }}
  map endpoints{n} {{ type mark . inet_proto . {address} . inet_service : {address} . inet_service; }}
  map ended{n} {{ typeof sctp vtag : {ip} daddr; size 4096; flags dynamic,timeout; timeout 2s; }}
"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(gue: bool) -> Rules {
        Rules::new(MarkMask::default(), 1500, &["10.0.0.11".parse().unwrap()], gue)
    }

    #[test]
    fn segments_fit_the_largest_encapsulation_that_is_taken_in() {
        let sizes = |gue| [IPV4_HEADER, IPV6_HEADER].map(|header| rules(gue).mss(header));
        assert_eq!((sizes(false), sizes(true)), ([1440, 1400], [1428, 1388]));
    }

    #[test]
    fn gue_is_told_by_its_header_and_taken_in_only_where_the_kernel_can() {
        let matches =
            ["udp dport 6080 @th,64,32 0x40000 @th,96,4 4", "udp dport 6080 @th,64,32 0x290000 @th,96,4 6"];
        // To a stand-in, to an endpoint, to a pod that is gone; and on the way out.
        for (gue, expected) in [(true, 3 + 1), (false, 1)] {
            let text = rules(gue).transaction();
            for outer in matches {
                let count = text.lines().filter(|line| line.contains(outer)).count();
                assert_eq!(count, expected, "{outer}, taken in: {gue}\n{text}");
            }
        }
    }
}
