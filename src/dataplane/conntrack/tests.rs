//! The thread, and what it says. What it does to a kernel is for the lab: `integration/lab test --scenario conntrack`.

use super::*;
use crate::dataplane::namespace::{in_namespace, ip};

#[test]
fn words_name_the_remedy_and_what_stays() {
    let missing = io::Error::from_raw_os_error(22);
    let forbidden = io::Error::from_raw_os_error(1);
    for (case, error, ways, expected, absent) in [
        ("a probe", &missing, 0, "load module nf_conntrack_netlink", "stay"),
        ("entries are left", &missing, 3, "entries of 3 rewrites", "none"),
        ("another reason", &forbidden, 0, "Operation not permitted", "module"),
    ] {
        let words = words(error, ways);
        assert!(words.contains(expected) && !words.contains(absent), "{case}: {words}");
    }
}

/// Two endpoints behind one VIP, told apart by the client's address; each has entries of its own in the request's direction.
const RULES: &str = "table inet test {
  chain zone {
    type filter hook output priority raw; policy accept;
    ip daddr 10.96.0.10 ct original zone set ip saddr map { 10.0.0.5 : 5, 10.0.0.6 : 6 }
  }
  chain rewrite {
    type nat hook output priority -100; policy accept;
    ip saddr 10.0.0.5 ip daddr 10.96.0.10 udp dport 53 dnat ip to 10.244.1.5:5353
    ip saddr 10.0.0.6 ip daddr 10.96.0.10 udp dport 53 dnat ip to 10.244.1.6:5353
  }
}
";

/// Sends datagrams to the VIP that become entries, from so many ports of a client.
fn send(client: &str, ports: u16) {
    for port in 20_000..20_000 + ports {
        let socket = std::net::UdpSocket::bind((client, port)).unwrap();
        socket.send_to(b"?", "10.96.0.10:53").unwrap();
    }
}

/// In a network namespace with these rules. `None` where this process may not have one, or the kernel lacks something.
fn beside_rules<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    let prepared = || {
        for address in ["10.0.0.5", "10.0.0.6", "10.244.1.5", "10.244.1.6"] {
            ip(&format!("address add {address}/32 dev lo"));
        }
        ip("link set lo up");
        ip("route add 10.96.0.10/32 dev lo");
        (super::super::nft::transact(RULES).is_ok() && probe().is_ok()).then(work)
    };
    in_namespace(prepared).flatten()
}

/// What a kernel does. Where it cannot be asked (no root, no nftables), nothing is tested here; the lab does it all.
#[test]
fn entries_of_one_endpoint_go_and_those_of_others_stay() {
    let way = |from: &str| Stale {
        vip: VipPort {
            address: "10.96.0.10".parse().unwrap(),
            port: 53,
            protocol: crate::cluster::Protocol::Udp,
        },
        from: from.parse().unwrap(),
    };
    let (five, six) = (way("10.244.1.5:5353"), way("10.244.1.6:5353"));
    let ran = beside_rules(|| {
        send("10.0.0.5", 200);
        send("10.0.0.6", 3);
        let mut table = Table::open().unwrap();
        let other_port = way("10.244.1.5:53");
        for (case, ways, expected) in [
            ("nothing", vec![], 0),
            ("another target port", vec![other_port], 0),
            ("more than a batch", vec![five], 200),
            ("those are gone", vec![five], 0),
            ("two ways at once", vec![five, six], 3),
        ] {
            assert_eq!(table.delete(&ways.into_iter().collect()).unwrap(), expected, "{case}");
        }
    });
    if ran.is_none() {
        eprintln!("skipped: no network namespace with nftables and conntrack here");
    }
}

#[test]
fn the_thread_tells_what_it_did() {
    beside_rules(|| {
        send("10.0.0.5", 5);
        let conntrack = Conntrack::start().unwrap();
        let vip = VipPort {
            address: "10.96.0.10".parse().unwrap(),
            port: 53,
            protocol: crate::cluster::Protocol::Udp,
        };
        conntrack.forget(vec![Stale { vip, from: "10.244.1.5:5353".parse().unwrap() }]);
        let end = Instant::now() + std::time::Duration::from_secs(10);
        while conntrack.passes() == Passes::default() && Instant::now() < end {
            thread::yield_now();
        }
        assert_eq!(conntrack.passes(), Passes { ok: 1, failed: 0 });
        assert_eq!(conntrack.problems().next(), None);
        let news = conntrack.news();
        assert_eq!(news.iter().map(|pass| (pass.ipv4, pass.deleted)).collect::<Vec<_>>(), [(true, 5)]);
        assert_eq!(conntrack.news(), []);
    });
}

#[test]
fn a_table_that_is_nearly_full_is_told_of() {
    for (count, max, told) in
        [(0, 100, false), (89, 100, false), (90, 100, true), (100, 100, true), (5, 0, false)]
    {
        assert_eq!(judge_fullness(count, max).is_some(), told, "{count} of {max}");
    }
}
