//! Connections, packets and bytes: of the node, and of single virtual servers within bounds.
//!
//! With very many virtual servers their series would be most of what a Prometheus holds. Beyond the limit they are left
//! out, never summed up: a sum over what changes would jump back. The node's own totals are the kernel's.

use std::fs;

use sheave_ipvs::Stats;

use super::exposition::{Families, Labels};
use super::snapshot::float;
use crate::cluster::ServiceName;
use crate::config::{Observe, VirtualServerMetrics};
use crate::plan::{Planner, VipKind, VipPort};

/// Counters of those virtual servers that have metrics of their own.
#[derive(Debug, Default)]
pub struct Traffic {
    shown: Vec<VirtualServer>,
    /// How many are left out because of the limit.
    pub omitted: usize,
}

/// One virtual server's counters.
#[derive(Clone, Debug)]
struct VirtualServer {
    service: ServiceName,
    kind: VipKind,
    vip: VipPort,
    stats: Stats,
}

/// Which virtual servers have metrics of their own.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    mode: VirtualServerMetrics,
    limit: usize,
}

impl Wanted {
    /// As the config says.
    pub fn new(config: &Observe) -> Self {
        Self { mode: config.virtual_server_metrics, limit: config.virtual_server_metrics_limit }
    }

    /// Whether there can be any.
    pub fn any(self) -> bool {
        self.mode != VirtualServerMetrics::Off && self.limit > 0
    }

    /// Picks among what the kernel lists. Where there are too many, Services that ask for it go first, then by name.
    pub fn pick(self, planner: &Planner, listed: impl IntoIterator<Item = (VipPort, Stats)>) -> Traffic {
        let asks = |service: &ServiceName| planner.settings_of(service).and_then(|settings| settings.metrics);
        let mut picked: Vec<(bool, VirtualServer)> = listed
            .into_iter()
            .filter_map(|(vip, stats)| {
                let server = planner.plan().virtual_servers.get(&vip)?;
                let asked = asks(&server.service);
                let wanted = match self.mode {
                    VirtualServerMetrics::All => asked != Some(false),
                    VirtualServerMetrics::Annotated => asked == Some(true),
                    VirtualServerMetrics::Off => false,
                };
                let server = VirtualServer { service: server.service.clone(), kind: server.kind, vip, stats };
                wanted.then_some((asked == Some(true), server))
            })
            .collect();
        picked.sort_unstable_by(|(a_asks, a), (b_asks, b)| {
            (b_asks, &a.service, a.kind, a.vip).cmp(&(a_asks, &b.service, b.kind, b.vip))
        });
        let omitted = picked.len().saturating_sub(self.limit);
        picked.truncate(self.limit);
        Traffic { shown: picked.into_iter().map(|(_, server)| server).collect(), omitted }
    }
}

/// Name, help, counter.
type Count = (&'static str, &'static str, fn(&Stats) -> u64);

const COUNTS: [Count; 5] = [
    ("sheave_virtual_server_connections_total", "Connections scheduled by this node", |s| s.connections),
    ("sheave_virtual_server_incoming_packets_total", "Packets from clients", |s| s.incoming_packets),
    (
        "sheave_virtual_server_outgoing_packets_total",
        "Packets to clients; 0 unless replies pass this node",
        |s| s.outgoing_packets,
    ),
    ("sheave_virtual_server_incoming_bytes_total", "Bytes from clients", |s| s.incoming_bytes),
    (
        "sheave_virtual_server_outgoing_bytes_total",
        "Bytes to clients; 0 unless replies pass this node",
        |s| s.outgoing_bytes,
    ),
];

impl Traffic {
    /// Adds its families.
    pub fn add_to(&self, families: &mut Families) {
        let texts: Vec<[String; 4]> = self
            .shown
            .iter()
            .map(|server| {
                let VipPort { address, port, protocol } = server.vip;
                [address.to_string(), port.to_string(), protocol.to_string(), format!("{:?}", server.kind)]
            })
            .collect();
        let labels: Vec<_> = self
            .shown
            .iter()
            .zip(&texts)
            .map(|(server, [vip, port, protocol, kind])| {
                [
                    ("namespace", &*server.service.namespace),
                    ("service", &*server.service.name),
                    ("kind", kind.as_str()),
                    ("vip", vip.as_str()),
                    ("port", port.as_str()),
                    ("protocol", protocol.as_str()),
                ]
            })
            .collect();
        for (name, help, count) in COUNTS {
            let values = self.shown.iter().map(|server| float(count(&server.stats)));
            families.counter(name, help, labels.iter().map(|labels| labels as Labels<'_>).zip(values));
        }
    }
}

/// Adds what IPVS counts on this node as a whole.
pub fn add_node(families: &mut Families) {
    // Of the network namespace of this thread, which is the agent's.
    let Some(totals) =
        fs::read_to_string("/proc/thread-self/net/ip_vs_stats").ok().as_deref().and_then(totals)
    else {
        return;
    };
    let names = [
        (
            "sheave_ipvs_connections_total",
            "Connections scheduled on this node, whoever owns the virtual server",
        ),
        ("sheave_ipvs_incoming_packets_total", "Packets from clients to any virtual server of this node"),
        ("sheave_ipvs_outgoing_packets_total", "Packets to clients from any virtual server of this node"),
        ("sheave_ipvs_incoming_bytes_total", "Bytes from clients to any virtual server of this node"),
        ("sheave_ipvs_outgoing_bytes_total", "Bytes to clients from any virtual server of this node"),
    ];
    for ((name, help), total) in names.into_iter().zip(totals) {
        families.counter(name, help, [(&[][..], float(total))]);
    }
}

/// The five totals below two lines of headings, in hexadecimal (`ip_vs_stats_show` in ip_vs_ctl.c).
fn totals(text: &str) -> Option<[u64; 5]> {
    let mut fields =
        text.lines().nth(2)?.split_ascii_whitespace().map(|field| u64::from_str_radix(field, 16).ok());
    let totals = [fields.next()??, fields.next()??, fields.next()??, fields.next()??, fields.next()??];
    fields.next().is_none().then_some(totals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_read_as_the_kernel_writes_them() {
        let text = "   Total Incoming Outgoing         Incoming         Outgoing
   Conns  Packets  Packets            Bytes            Bytes
      1F      2A0        0         ABCDEF01                0

 Conns/s   Pkts/s   Pkts/s          Bytes/s          Bytes/s
       0        0        0                0                0
";
        assert_eq!(totals(text), Some([0x1f, 0x2a0, 0, 0xabcd_ef01, 0]));
        for strange in ["", "a\nb\n", "a\nb\n1 2 3 4\n", "a\nb\n1 2 3 4 5 6\n", "a\nb\n1 2 x 4 5\n"] {
            assert_eq!(totals(strange), None, "{strange:?}");
        }
    }
}
