//! Learnt routes in a real kernel's tables.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sheave::tables::{ImportCounts, ImportTable, remove_imported};
use sheave_bgp::{LearntChange, NextHop};

use super::LIMIT;
use super::namespace::{address, in_namespace, shell};

pub const MAIN: u32 = 254;
pub const V4: &str = "198.51.100.0/24";
pub const V6: &str = "2001:db8:1::/48";

fn open(table: u32) -> ImportTable {
    let mut import = ImportTable::open(table).unwrap();
    import.source_from(&[address("10.0.0.11"), address("fd00:10::11")]);
    import
}

fn learnt(prefix: &str, hops: &[&str]) -> LearntChange {
    let hops: Vec<NextHop> = hops.iter().map(|hop| address(hop).into()).collect();
    (prefix.parse::<IpNet>().unwrap(), (!hops.is_empty()).then(|| hops.into()))
}

/// What `ip` shows of a prefix, in one line and without what the kernel adds.
pub fn shown(prefix: &str) -> String {
    let family = if prefix.contains(':') { "-6" } else { "-4" };
    let text = shell("ip", &format!("{family} route show table all exact {prefix}"));
    text.split_whitespace()
        .filter(|word| !matches!(*word, "linkdown" | "pref" | "medium"))
        .collect::<Vec<_>>()
        .join(" ")
}

/// One of ours: to these next hops.
fn expected(prefix: &str, hops: &[&str]) -> String {
    let source = if prefix.contains(':') { "fd00:10::11" } else { "10.0.0.11" };
    match hops {
        [] => String::new(),
        [hop] => {
            let via = format!("via {hop} dev up0 proto 85 ");
            format!("{prefix} {via}src {source} metric 8192")
        }
        _ => {
            let ways: String =
                hops.iter().map(|hop| format!(" nexthop via {hop} dev up0 weight 1")).collect();
            format!("{prefix} proto 85 src {source} metric 8192{ways}")
        }
    }
}

pub fn counts(in_kernel: usize, kept: usize) -> ImportCounts {
    ImportCounts { in_kernel, kept }
}

/// What the kernel tells of routes meanwhile.
struct Monitor {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Monitor {
    /// Once it listens: it has told of the first mark.
    fn start() -> Self {
        let mut child = Command::new("ip").args(["monitor", "route"]).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let end = Instant::now() + LIMIT;
        loop {
            shell("ip", "route add 192.0.2.1 dev up0");
            shell("ip", "route del 192.0.2.1 dev up0");
            match lines.recv_timeout(Duration::from_millis(200)) {
                Ok(_) => return Self { child, lines },
                Err(error) => assert!(Instant::now() < end, "ip monitor: {error}"),
            }
        }
    }

    /// All that was told before the last mark.
    fn told(mut self) -> Vec<String> {
        shell("ip", "route add 192.0.2.2 dev up0");
        let mut told = Vec::new();
        loop {
            let line = self.lines.recv_timeout(LIMIT).unwrap();
            if line.starts_with("192.0.2.2 ") {
                break;
            }
            if !line.contains("192.0.2.1 ") {
                told.push(line);
            }
        }
        shell("ip", "route del 192.0.2.2 dev up0");
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        told
    }
}

#[test]
fn routes_follow_what_is_learnt() {
    in_namespace("import", async |_| {
        let mut import = open(MAIN);
        let steps: [(&str, &[&str], &[&str]); 5] = [
            ("two", &["10.0.0.2", "10.0.0.3"], &["fd00:10::2", "fd00:10::3"]),
            ("one less", &["10.0.0.3"], &["fd00:10::3"]),
            ("three", &["10.0.0.2", "10.0.0.3", "10.0.0.4"], &["fd00:10::2", "fd00:10::3", "fd00:10::4"]),
            ("another", &["10.0.0.5"], &["fd00:10::5"]),
            ("none", &[], &[]),
        ];
        for (name, v4, v6) in steps {
            import.change(vec![learnt(V4, v4), learnt(V6, v6)]).await;
            assert_eq!(import.problem(), None, "{name}");
            assert_eq!((shown(V4), shown(V6)), (expected(V4, v4), expected(V6, v6)), "{name}");
            assert_eq!(import.counts(), counts(usize::from(!v4.is_empty()) * 2, 0), "{name}");
        }
    });
}

/// Many routes lose a gateway at once: each is replaced, and none is ever gone.
#[test]
fn a_path_goes_and_no_route_with_it() {
    in_namespace("import-many", async |_| {
        let is_v4 = |n: u32| n.is_multiple_of(2);
        let prefix = |n: u32| match is_v4(n) {
            true => format!("198.18.{}.{}", n / 256, n % 256),
            false => format!("2001:db8:{n:x}::/48"),
        };
        let by = |which: std::ops::Range<u32>, v4: &[&str], v6: &[&str]| -> Vec<LearntChange> {
            let with_length = |n| if is_v4(n) { format!("{}/32", prefix(n)) } else { prefix(n) };
            which.map(|n| learnt(&with_length(n), if is_v4(n) { v4 } else { v6 })).collect()
        };
        let mut import = open(MAIN);
        import.change(by(0..2500, &["10.0.0.2", "10.0.0.3"], &["fd00:10::2", "fd00:10::3"])).await;
        assert_eq!((import.problem(), import.counts()), (None, counts(2500, 0)));
        let monitor = Monitor::start();
        // As many as wait in the monitor's socket.
        import.change(by(0..120, &["10.0.0.3"], &["fd00:10::3"])).await;
        let told = monitor.told();
        let way = |n| if is_v4(n) { "via 10.0.0.3" } else { "via fd00:10::3" };
        for n in 0..120 {
            let line = format!("{} {} dev up0 proto 85", prefix(n), way(n));
            assert!(told.iter().any(|told| told.starts_with(&line)), "{line}: {told:#?}");
        }
        assert_eq!(told.len(), 120, "and nothing else: {told:#?}");
        import.change(by(120..2500, &["10.0.0.3"], &["fd00:10::3"])).await;
        assert_eq!((import.problem(), import.counts()), (None, counts(2500, 0)));
        for n in [120, 121, 2498, 2499] {
            let shown = shown(&prefix(n));
            assert!(shown.contains(way(n)) && !shown.contains("nexthop"), "{shown}");
        }
        import.change(by(0..2500, &[], &[])).await;
        assert_eq!((import.problem(), remove_imported().await), (None, Ok(0)));
    });
}

/// Others' routes to the same prefix stay as they are, and stand before ours, whoever comes first.
#[test]
fn routes_of_others_are_left_alone() {
    in_namespace("import-others", async |_| {
        let defaults = || (shell("ip", "-4 route show default"), shell("ip", "-6 route show default"));
        let before = defaults();
        let mut import = open(MAIN);
        let both = [learnt("0.0.0.0/0", &["10.0.0.2"]), learnt("::/0", &["fd00:10::2"])];
        import.change(both.into()).await;
        assert_eq!(import.problem(), None);
        let now = defaults();
        for (before, now) in [(before.0.trim(), &now.0), (before.1.trim(), &now.1)] {
            assert!(now.starts_with(before) && now.contains("proto 85"), "{now}");
        }
        for (to, hop) in [("203.0.113.7", "10.0.0.1"), ("2001:db8:9::7", "fd00:10::1")] {
            let route = shell("ip", &format!("route get {to}"));
            assert!(route.contains(&format!("via {hop}")), "{route}");
        }
        import.change(vec![learnt("0.0.0.0/0", &[]), learnt("::/0", &[])]).await;
        assert_eq!(defaults(), before);

        // In the very place that ours would take.
        for (prefix, hop, theirs) in [(V4, "10.0.0.2", "10.0.0.9"), (V6, "fd00:10::2", "fd00:10::9")] {
            shell("ip", &format!("route add {prefix} via {theirs} metric 8192 proto static"));
            let before = shown(prefix);
            import.change(vec![learnt(prefix, &[hop])]).await;
            let problem = import.problem().unwrap();
            assert!(problem.contains(prefix) && problem.contains("File exists"), "{problem}");
            assert_eq!((shown(prefix), import.counts()), (before, counts(0, 0)));
            import.change(vec![learnt(prefix, &[])]).await;
            assert_eq!(import.problem(), None);
            assert!(shown(prefix).contains(theirs));
        }
    });
}

/// A next hop that cannot be reached is told of, costs the others nothing, and is used once it can.
#[test]
fn a_next_hop_that_is_on_no_link() {
    in_namespace("import-hops", async |_| {
        shell("ip", "link add up1 type dummy");
        shell("ip", "link set up1 up");
        let mut import = open(MAIN);
        shell("ip", "route del default");
        shell("ip", "-6 route del default");
        let hops = [
            ("198.51.100.0/24", ["10.0.0.2", "10.9.0.2"]),
            ("2001:db8:1::/48", ["fd00:10::2", "fd00:99::2"]),
        ];
        import.change(hops.map(|(prefix, hops)| learnt(prefix, &hops)).into()).await;
        let problem = import.problem().unwrap();
        assert!(problem.contains("next hops have to be on a link of this node"), "{problem}");
        assert!(problem.contains("1 more routes are refused"), "{problem}");
        for (prefix, [good, _]) in hops {
            assert_eq!(shown(prefix), expected(prefix, &[good]));
        }
        shell("ip", "addr add 10.9.0.1/24 dev up1");
        shell("ip", "addr add fd00:99::1/64 dev up1 nodad");
        import.tick(Instant::now() + Duration::from_secs(10), false, true).await;
        assert_eq!(import.problem(), None);
        for (prefix, [_, other]) in hops {
            assert!(shown(prefix).contains(&format!("nexthop via {other} dev up1")), "{}", shown(prefix));
        }
        // Of three, two: those stay as they are while the third is tried.
        let three = ["10.0.0.2", "10.0.0.3", "10.77.0.2"];
        import.change(vec![learnt(V4, &three[..2])]).await;
        import.change(vec![learnt(V4, &three)]).await;
        assert_eq!(shown(V4), expected(V4, &three[..2]));
        assert!(import.problem().is_some_and(|problem| problem.contains(V4)));
        // None is left that could be used.
        shell("ip", "addr del 10.9.0.1/24 dev up1");
        import.change(vec![learnt(V4, &["10.9.0.2"])]).await;
        assert_eq!(shown(V4), "");
        assert!(import.problem().is_some());
    });
}

/// What an agent before left stays until all is told, or until its time is over; then what nobody told of goes, from other
/// tables too.
#[test]
fn routes_of_an_agent_before_are_taken_over() {
    in_namespace("import-adopt", async |_| {
        for by_time in [false, true] {
            let mut before = open(MAIN);
            let both = ["10.0.0.2", "10.0.0.3"];
            before
                .change(vec![learnt(V4, &both), learnt("203.0.113.0/24", &both), learnt(V6, &["fd00:10::2"])])
                .await;
            let mut elsewhere = open(119);
            elsewhere.change(vec![learnt("192.0.2.0/24", &both)]).await;
            drop((before, elsewhere));

            let mut import = open(MAIN);
            let start = Instant::now();
            import.bound(start + Duration::from_secs(120));
            import.tick(start, false, true).await;
            assert_eq!(import.counts(), counts(0, 4));
            // The first peer is back, and tells of a route.
            import.change(vec![learnt(V4, &["10.0.0.2"])]).await;
            assert_eq!((shown(V4), import.counts()), (expected(V4, &["10.0.0.2"]), counts(1, 3)));
            import.change(vec![learnt(V4, &both)]).await;
            import.tick(start + Duration::from_secs(119), false, true).await;
            import.tick(start + Duration::from_secs(119), true, false).await;
            assert_eq!((shown(V6), import.counts()), (expected(V6, &["fd00:10::2"]), counts(1, 3)));
            let (now, complete) =
                if by_time { (start + Duration::from_secs(121), false) } else { (start, true) };
            import.tick(now, complete, true).await;
            assert_eq!((shown(V4), shown(V6)), (expected(V4, &both), String::new()));
            assert_eq!(import.counts(), counts(1, 0));

            // What others take away is put back.
            shell("ip", "route del 198.51.100.0/24 metric 8192");
            import.tick(now, true, true).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            import.check().await;
            assert_eq!(shown(V4), expected(V4, &both));
            assert_eq!(remove_imported().await, Ok(1));
            assert_eq!((shown(V4), remove_imported().await), (String::new(), Ok(0)));
        }
    });
}

/// Link-local next hops have their interface: several of them, of both families of prefixes, and of one interface that comes back with
/// another number. What is listed is as it was made.
#[test]
fn link_local_next_hops() {
    in_namespace("import-link-local", async |_| {
        for name in ["eth1", "eth2"] {
            shell("ip", &format!("link add {name} type dummy"));
            shell("ip", &format!("link set {name} up"));
        }
        let index = |name: &str| -> u32 {
            let link = shell("ip", &format!("-o link show {name}"));
            link.split(':').next().unwrap().parse().unwrap()
        };
        let hop = |of: &str, name: &str| NextHop { address: address(of), interface: Some(index(name)) };
        let learnt =
            |prefix: &str, hops: &[NextHop]| -> LearntChange { (prefix.parse().unwrap(), Some(hops.into())) };
        let mut import = open(MAIN);
        for (name, hops) in [
            ("one", vec![hop("fe80::1", "eth1")]),
            ("two", vec![hop("fe80::1", "eth1"), hop("fe80::2", "eth2")]),
            ("the same address twice", vec![hop("fe80::1", "eth1"), hop("fe80::1", "eth2")]),
            ("the other one", vec![hop("fe80::2", "eth2")]),
        ] {
            import.change(vec![learnt(V4, &hops), learnt(V6, &hops)]).await;
            assert_eq!(import.problem(), None, "{name}");
            for (prefix, via) in [(V4, "via inet6"), (V6, "via")] {
                let shown = shown(prefix);
                for hop in &hops {
                    let name = if hop.interface == Some(index("eth1")) { "eth1" } else { "eth2" };
                    assert!(shown.contains(&format!("{via} {} dev {name}", hop.address)), "{name}: {shown}");
                }
                assert_eq!(shown.matches(" via ").count(), hops.len(), "{name}: {shown}");
            }
            // Looked at again, nothing differs.
            let mut again = open(MAIN);
            again.change(vec![learnt(V4, &hops), learnt(V6, &hops)]).await;
            assert_eq!((again.problem(), again.counts()), (None, counts(2, 0)), "{name}");
        }
        let monitor = Monitor::start();
        let mut again = open(MAIN);
        let hops = [hop("fe80::2", "eth2")];
        again.change(vec![learnt(V4, &hops), learnt(V6, &hops)]).await;
        assert_eq!(monitor.told(), [""; 0], "what is there is left alone");

        shell("ip", "link del eth2");
        shell("ip", "link add eth2 type dummy");
        shell("ip", "link set eth2 up");
        let hops = [hop("fe80::2", "eth2")];
        import.change(vec![learnt(V4, &hops), learnt(V6, &hops)]).await;
        import.check().await;
        assert_eq!(import.problem(), None);
        assert!(shown(V4).contains("via inet6 fe80::2 dev eth2"), "{}", shown(V4));
        assert!(shown(V6).contains("via fe80::2 dev eth2"), "{}", shown(V6));
    });
}

/// IPv4 by way of IPv6 is listed as it was made: nothing is made anew.
#[test]
fn ipv4_by_ipv6_next_hops() {
    in_namespace("import", async |_| {
        let mut import = open(MAIN);
        for hops in [&["fd00:10::2"][..], &["fd00:10::2", "fd00:10::3"]] {
            import.change(vec![learnt(V4, hops)]).await;
            assert_eq!(import.problem(), None);
            let monitor = Monitor::start();
            import.check().await;
            import.settle().await;
            assert_eq!(monitor.told(), [""; 0], "{hops:?}");
            assert!(hops.iter().all(|hop| shown(V4).contains(&format!("via inet6 {hop}"))), "{}", shown(V4));
        }
    });
}

/// An address that this host does not have costs no route that stands.
#[test]
fn a_source_that_is_not_here_changes_nothing() {
    in_namespace("import", async |_| {
        let mut import = open(MAIN);
        let hops: [&[&str]; 2] = [&["10.0.0.2"], &["fd00:10::2", "fd00:10::3"]];
        import.change(vec![learnt(V4, hops[0]), learnt(V6, hops[1])]).await;
        let before = (shown(V4), shown(V6));
        import.source_from(&[address("10.0.0.99"), address("fd00:10::99")]);
        import.settle().await;
        assert_eq!((shown(V4), shown(V6)), before);
        assert!(import.problem().is_some_and(|problem| problem.contains("the Node's address")));
        import.source_from(&[address("10.0.0.11"), address("fd00:10::11")]);
        import.tick(Instant::now() + Duration::from_secs(60), true, true).await;
        assert_eq!(import.problem(), None);
    });
}
