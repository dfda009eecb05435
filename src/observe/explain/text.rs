//! An explanation for people, in the order that a packet goes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use super::super::columns::columns;
use super::{Agent, Announcement, Endpoint, Explanation, Kernel, KernelServer, VirtualServer};

/// Width of the labels at the left.
const LABEL: usize = 12;

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target: _, node, agent, service, virtual_servers, health_check, warnings, kernel } = self;
        let by = match agent {
            None => "planned from manifests".to_owned(),
            Some(Agent { version, ready: true, .. }) => format!("sheave {version}"),
            Some(Agent { version, ready: false, holding: true, .. }) => {
                format!(
                    "sheave {version}, which waits for its source and announces what was announced before"
                )
            }
            Some(Agent { version, .. }) => format!("sheave {version}, which waits for its source"),
        };
        writeln!(f, "Service {}, seen from {node} ({by})", service.name)?;
        let drain = agent.iter().filter_map(|agent| agent.drain.words());
        field(f, "drain", drain)?;
        if let Some(why) = &service.skipped {
            writeln!(f, "  left alone: {why}")?;
        }
        let left_out = service.left_out.iter().map(|left| format!("{}: {}", left.address, left.why));
        field(f, "not bound", left_out)?;
        let health_check = health_check.iter().map(|check| {
            let (port, count) = (check.port, check.local_endpoints);
            let status = if count > 0 { 200 } else { 503 };
            format!("port {port} answers {status}: {count} ready endpoints on this node")
        });
        field(f, "health check", health_check)?;
        field(f, "warnings", warnings.iter().cloned())?;
        for server in virtual_servers {
            write_server(f, server)?;
        }
        kernel.as_ref().map_or(Ok(()), |kernel| write_kernel(f, kernel))
    }
}

fn write_server(f: &mut fmt::Formatter<'_>, server: &VirtualServer) -> fmt::Result {
    let VirtualServer {
        address,
        port,
        protocol,
        kind,
        service_port,
        held_by,
        route,
        source_ranges,
        scheduler,
        scheduler_flags,
        persistence_seconds,
        policy,
        internal_differs,
        endpoints,
        otherwise,
        announcement,
    } = server;
    let name = service_port.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    writeln!(f, "\n{kind} {protocol} {}{name}", SocketAddr::new(*address, *port))?;
    if let Some(holder) = held_by {
        return field(
            f,
            "conflict",
            [format!("the older Service {holder} has it: nothing is done for this one")],
        );
    }
    write_announcement(f, announcement)?;
    let routed = match route {
        Some(prefix) => format!("by route local {prefix}, to IPVS on this node"),
        None => "to the node's own address, to IPVS on this node".into(),
    };
    field(f, "taken in", [routed])?;
    let allowed = match source_ranges.as_deref() {
        None => "everyone".to_owned(),
        Some([]) => "nobody: loadBalancerSourceRanges has none of this family; all others are dropped".into(),
        Some(ranges) => format!("{}; all others are dropped", ranges.join(", ")),
    };
    field(f, "allowed", [allowed])?;
    let mut extra = scheduler_flags.clone();
    extra.extend(persistence_seconds.map(|seconds| format!("persistent {seconds} s")));
    let extra = if extra.is_empty() { String::new() } else { format!(" ({})", extra.join(", ")) };
    field(f, "scheduled", [format!("{scheduler}{extra}, among {policy}")])?;
    write_endpoints(f, server, endpoints, *internal_differs)?;
    let takes = endpoints.iter().any(|endpoint| endpoint.external.weight.is_some_and(|weight| weight > 0));
    let is_node_port = route.is_none();
    let otherwise = match (takes, &**otherwise) {
        (true, _) if is_node_port => return Ok(()),
        (true, _) => format!("other ports of {address} are refused, ping is answered"),
        (false, "dropped") => "dropped: the traffic policy leaves no endpoint on this node".into(),
        (false, _) => "refused at once: no endpoint gets connections".into(),
    };
    field(f, "otherwise", [otherwise])
}

/// Attributes in words.
pub(super) fn attributes(
    communities: impl Iterator<Item = String>,
    local_pref: Option<u32>,
    med: Option<u32>,
    as_path_prepend: u8,
) -> Vec<String> {
    communities
        .map(|community| format!("community {community}"))
        .chain(local_pref.map(|value| format!("LOCAL_PREF {value} (iBGP)")))
        .chain(med.map(|value| format!("MED {value}")))
        .chain((as_path_prepend > 0).then(|| format!("own AS {as_path_prepend} more times")))
        .collect()
}

fn write_announcement(f: &mut fmt::Formatter<'_>, announcement: &Announcement) -> fmt::Result {
    let Announcement {
        prefix,
        aggregate,
        table,
        communities,
        large_communities,
        local_pref,
        med,
        as_path_prepend,
        why_not,
        peers,
    } = announcement;
    let communities = [communities, large_communities].into_iter().flatten().cloned();
    let attributes = attributes(communities, *local_pref, *med, *as_path_prepend);
    let mut lines = Vec::new();
    if let Some(why) = why_not {
        lines.push(format!("no: {why}"));
    }
    if let Some(prefix) = prefix {
        let prefix = match aggregate {
            Some(aggregate) => format!("{prefix} by its aggregate {aggregate}"),
            None => prefix.clone(),
        };
        let all: Vec<String> = std::iter::once(prefix).chain(attributes).collect();
        if why_not.is_none() {
            lines.push(all.join(", "));
            lines.extend(table.map(|table| format!("  to kernel table {table}")));
        }
        let mut alike = BTreeMap::<(Option<&str>, &[String]), Vec<String>>::new();
        for peer in peers {
            let asn = peer.asn.map_or_else(|| "external".to_owned(), |asn| asn.to_string());
            let name = format!("{} (AS {asn})", peer.address);
            // What it would be told with is of no interest then.
            let with = if peer.why_not.is_none() { &peer.with[..] } else { &[] };
            alike.entry((peer.why_not.as_deref(), with)).or_default().push(name);
        }
        lines.extend(alike.into_iter().map(|((why_not, with), peers)| match why_not {
            None if with.is_empty() => format!("  to {}", peers.join(", ")),
            None => format!("  to {}: with {}", peers.join(", "), with.join(", ")),
            Some(why) => format!("  not to {}: {why}", peers.join(", ")),
        }));
    }
    field(f, "announced", lines)
}

fn write_endpoints(
    f: &mut fmt::Formatter<'_>,
    server: &VirtualServer,
    endpoints: &[Endpoint],
    internal_differs: bool,
) -> fmt::Result {
    let same_family = |endpoint: &&Endpoint| endpoint.address.is_ipv4() == server.address.is_ipv4();
    let rows = endpoints.iter().filter(same_family).map(|endpoint| row(endpoint, internal_differs));
    let (rows, whys): (Vec<_>, Vec<_>) = rows.unzip();
    let mut lines: Vec<String> =
        columns(&rows).zip(whys).map(|(cells, why)| format!("{cells}  {why}")).collect();
    let others = endpoints.len() - rows.len();
    if rows.is_empty() {
        lines.push(match others {
            0 => "none: no EndpointSlice lists any".into(),
            _ => format!("none of this address family; {others} of the other"),
        });
    }
    field(f, "endpoints", lines)
}

/// Address, node, weight and forwarding; and why.
fn row(endpoint: &Endpoint, internal_differs: bool) -> ([String; 4], String) {
    let Endpoint {
        address,
        port,
        node,
        slice: _,
        external,
        internal,
        forwarding,
        internal_forwarding,
        accepted_in,
    } = endpoint;
    let weight = |weight: Option<u32>| {
        weight.map_or_else(|| "not used".to_owned(), |weight| format!("weight {weight}"))
    };
    let mut why = vec![external.why.clone()];
    if internal_differs && internal != external {
        why.push(format!("within the cluster {}: {}", weight(internal.weight), internal.why));
    }
    why.extend(forwarding.iter().map(|forwarding| forwarding.why.clone()));
    let inside = internal_forwarding.iter();
    why.extend(inside.map(|inside| format!("within the cluster {}: {}", inside.method, inside.why)));
    match accepted_in.as_deref() {
        Some("pod") => why.push("accepted within its pod".into()),
        Some(_) => why.push("accepted on this node".into()),
        None => {}
    }
    let cells = [
        port.map_or_else(|| address.to_string(), |port| SocketAddr::new(*address, port).to_string()),
        node.clone().unwrap_or_else(|| "-".into()),
        weight(external.weight),
        forwarding.as_ref().map_or_else(
            || "-".into(),
            |forwarding| match &forwarding.encapsulation {
                Some(encapsulation) => format!("{} {encapsulation}", forwarding.method),
                None => forwarding.method.clone(),
            },
        ),
    ];
    (cells, why.join("; "))
}

fn write_kernel(f: &mut fmt::Formatter<'_>, kernel: &Kernel) -> fmt::Result {
    let Kernel { virtual_servers, routes, elements, differences, problems } = kernel;
    writeln!(f, "\nThe kernel now")?;
    field(f, "IPVS", virtual_servers.iter().flat_map(server_lines))?;
    let route = |route: &Option<String>| route.clone().unwrap_or_else(|| "none".into());
    field(f, "routes", routes.iter().map(|one| format!("{}: {}", one.address, route(&one.route))))?;
    let absent = |held: bool| if held { "" } else { " (not there)" };
    let elements = elements.iter().map(|one| format!("{} {}{}", one.set, one.element, absent(one.held)));
    field(f, "nftables", elements)?;
    field(f, "problems", problems.iter().cloned())?;
    if differences.is_empty() {
        let but = if problems.is_empty() {
            "The kernel holds just that."
        } else {
            "Else the kernel holds just that."
        };
        return writeln!(f, "\n{but}");
    }
    writeln!(f, "\nNot as planned:")?;
    for difference in differences {
        writeln!(
            f,
            "  {}; it is looked at and repaired within {} s",
            difference.what, difference.repaired_within_seconds
        )?;
    }
    Ok(())
}

fn server_lines(server: &KernelServer) -> impl Iterator<Item = String> {
    let internal = if server.internal { ", for clients within the cluster" } else { "" };
    let head = format!("{} {}{internal}", server.key, server.scheduler);
    let destinations = server.destinations.iter().map(|one| {
        let stands_for =
            one.stands_for.as_ref().map(|endpoint| format!(" for {endpoint}")).unwrap_or_default();
        let draining = if one.draining { ", draining" } else { "" };
        format!(
            "  {}{stands_for} {} weight {}{draining}: {} active, {} inactive connections",
            one.destination, one.forwarding, one.weight, one.active_connections, one.inactive_connections
        )
    });
    std::iter::once(head).chain(destinations)
}

/// Lines behind a label; nothing where there is none.
fn field(f: &mut fmt::Formatter<'_>, label: &str, lines: impl IntoIterator<Item = String>) -> fmt::Result {
    for (index, line) in lines.into_iter().enumerate() {
        let label = if index == 0 { label } else { "" };
        writeln!(f, "  {label:LABEL$}  {line}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Difference, KernelDestination, KernelElement, KernelRoute};
    use super::*;

    struct Text<'a>(&'a Kernel);

    impl fmt::Display for Text<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write_kernel(f, self.0)
        }
    }

    #[test]
    fn the_kernel_and_what_is_not_as_planned() {
        let destination = |destination: &str, stands_for: Option<&str>, draining: bool| KernelDestination {
            destination: destination.into(),
            stands_for: stands_for.map(str::to_owned),
            forwarding: "tunnel".into(),
            weight: u32::from(!draining),
            draining,
            active_connections: 3,
            inactive_connections: 1,
        };
        let mut kernel = Kernel {
            virtual_servers: vec![KernelServer {
                key: "TCP 192.0.2.80:80".into(),
                internal: false,
                scheduler: "mh (mh-fallback, mh-port)".into(),
                destinations: vec![
                    destination("10.244.2.11:8080", None, false),
                    destination("10.244.2.12:8080", None, true),
                    destination("251.0.113.10:8080", Some("203.0.113.10:8080"), false),
                ],
            }],
            routes: vec![KernelRoute {
                address: [192, 0, 2, 80].into(),
                route: Some("local 192.0.2.80/32".into()),
            }],
            elements: vec![
                KernelElement { set: "mark4".into(), element: "251.0.113.10 : 8193".into(), held: false },
                KernelElement { set: "vips4".into(), element: "192.0.2.80".into(), held: true },
            ],
            differences: Vec::new(),
            problems: Vec::new(),
        };
        let held = "
The kernel now
  IPVS          TCP 192.0.2.80:80 mh (mh-fallback, mh-port)
                  10.244.2.11:8080 tunnel weight 1: 3 active, 1 inactive connections
                  10.244.2.12:8080 tunnel weight 0, draining: 3 active, 1 inactive connections
                  251.0.113.10:8080 for 203.0.113.10:8080 tunnel weight 1: 3 active, 1 inactive connections
  routes        192.0.2.80: local 192.0.2.80/32
  nftables      mark4 251.0.113.10 : 8193 (not there)
                vips4 192.0.2.80
";
        assert_eq!(Text(&kernel).to_string(), format!("{held}\nThe kernel holds just that.\n"));
        let what = "nftables' mark4 has no element 251.0.113.10 : 8193";
        kernel.differences.push(Difference { what: what.into(), repaired_within_seconds: 15 });
        let told = format!("{held}\nNot as planned:\n  {what}; it is looked at and repaired within 15 s\n");
        assert_eq!(Text(&kernel).to_string(), told);
    }
}
