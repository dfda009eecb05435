//! Kernel routing tables, both ways, against a real kernel.

#![expect(clippy::unwrap_used, reason = "a failure is the report of a test")]

#[path = "tables/import.rs"]
mod import;
#[path = "tables/importer.rs"]
mod importer;
mod namespace;
#[path = "tables/surroundings.rs"]
mod surroundings;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sheave::dataplane::{self, Dataplane, Lock};
use sheave::plan::NodePlan;
use sheave::tables::{ExportTable, Following, follow};
use tokio::runtime::Handle;
use tokio::time::timeout;

use self::namespace::{dump, in_namespace, shell};

/// How soon a change must be told of; emulation is slow.
const LIMIT: Duration = Duration::from_secs(10);

/// What is told to be there, after all that was told so far.
struct Listener {
    following: Following,
    there: BTreeSet<IpNet>,
    /// How often something was told.
    told: usize,
}

impl Listener {
    fn start(tables: &[u32], default_routes: bool) -> Self {
        let following = follow(tables, default_routes, &Handle::current()).unwrap();
        Self { following, there: BTreeSet::new(), told: 0 }
    }

    /// Waits until exactly these are there.
    async fn until(&mut self, what: &str, expected: &[&str]) {
        let expected: BTreeSet<IpNet> = expected.iter().map(|text| text.parse().unwrap()).collect();
        let end = Instant::now() + LIMIT;
        while self.told == 0 || self.there != expected {
            let left = end.saturating_duration_since(Instant::now());
            let news = timeout(left, self.following.next()).await;
            assert!(news.is_ok(), "{what}: {:?} is told, not {expected:?}", self.there);
            let news = news.unwrap().unwrap();
            self.told += 1;
            for prefix in news.came {
                assert!(self.there.insert(prefix), "{what}: {prefix} came twice");
            }
            for prefix in news.gone {
                assert!(self.there.remove(&prefix), "{what}: {prefix} went twice");
            }
        }
    }

    /// Nothing is told for a while.
    async fn quiet(&mut self, what: &str) {
        let told = timeout(Duration::from_millis(300), self.following.next()).await;
        assert!(told.is_err(), "{what}: {told:?}");
    }
}

/// Runs lines of `ip -batch`.
fn batch(lines: &str) {
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    ip.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(ip.wait().unwrap().success());
}

#[test]
fn routes_are_told_of_as_they_come_and_go() {
    in_namespace("follow", async |_| {
        batch(
            "route add 10.1.0.0/16 dev lo table 119
             route add 2001:db8:1::/48 dev lo table 119
             route add default dev lo table 119
             route add ::/0 dev lo table 119
             route add blackhole 10.66.0.0/16 table 119
             route add unreachable 2001:db8:66::/48 table 119
             route add 10.67.0.0/16 dev up0 table 119 proto 83
             route add 10.68.0.0/16 dev up0
             route add 169.254.7.0/24 dev up0 table 119
             route add 10.3.0.0/16 via 10.0.0.2 table 70000",
        );
        let before = dump();
        let mut listener = Listener::start(&[119, 70000, 4711], false);
        let first = ["10.1.0.0/16", "10.3.0.0/16", "2001:db8:1::/48"];
        listener.until("what is there at the start", &first).await;
        assert_eq!(dump(), before, "who follows changes nothing");
        assert_eq!(listener.told, 1, "all at once");

        for (add, del, prefix) in [
            (
                "route add 10.2.0.0/24 via 10.0.0.2 table 119",
                "route del 10.2.0.0/24 table 119",
                "10.2.0.0/24",
            ),
            (
                "-6 route add 2001:db8:2::/64 via fd00:10::2 table 119",
                "-6 route del 2001:db8:2::/64 table 119",
                "2001:db8:2::/64",
            ),
            ("route add 192.0.2.7/32 dev lo table 4711", "route del 192.0.2.7/32 table 4711", "192.0.2.7/32"),
        ] {
            shell("ip", add);
            listener.until(add, &[&first[..], &[prefix]].concat()).await;
            shell("ip", del);
            listener.until(del, &first).await;
        }

        // None of these makes a difference, and so none is told.
        batch(
            "route add 10.9.0.0/16 dev up0
             route add 10.1.0.0/16 dev lo metric 7 table 119
             route add 10.1.0.0/16 dev up0 table 4711
             route del 10.1.0.0/16 dev lo metric 7 table 119
             route replace 10.1.0.0/16 dev up0 table 119
             route replace 2001:db8:1::/48 via fd00:10::2 table 119
             route add 10.8.0.0/16 dev up0 table 119 proto 83
             route add prohibit 10.7.0.0/16 table 119",
        );
        listener.quiet("nothing became different").await;

        shell("ip", "route flush table 119");
        shell("ip", "-6 route flush table 119");
        listener.until("all gone", &["10.1.0.0/16", "10.3.0.0/16"]).await;
    });
}

#[test]
fn default_routes_are_told_of_if_asked_for() {
    in_namespace("default", async |_| {
        let mut listener = Listener::start(&[254], true);
        listener.until("those of the main table", &["0.0.0.0/0", "::/0"]).await;
    });
}

#[test]
fn the_kernel_does_not_say_which_routes_go_with_something_else() {
    in_namespace("silent", async |_| {
        batch(
            "link add up1 type dummy
             addr add 10.0.1.11/24 dev up1
             link set up1 up
             link add up2 type dummy
             link set up2 up
             nexthop add id 7 via 10.0.0.2 dev up0",
        );
        let stays = "10.1.0.0/16";
        shell("ip", "route add 10.1.0.0/16 dev up0 table 119");
        // Those that go with an address are of the main table alone.
        let mut listener = Listener::start(&[119, 254], false);
        listener.until("the start", &[stays]).await;
        for (what, add, removal, prefix) in [
            (
                "a device that is down",
                "route add 10.2.0.0/16 via 10.0.1.2 table 119",
                "link set up1 down",
                "10.2.0.0/16",
            ),
            (
                "a device that is gone",
                "route add 10.3.0.0/16 dev up2 table 119",
                "link del up2",
                "10.3.0.0/16",
            ),
            (
                "an address",
                "route add 10.4.0.0/16 dev up0 src 10.0.0.12",
                "addr del 10.0.0.12/32 dev up0",
                "10.4.0.0/16",
            ),
            ("a nexthop object", "route add 10.5.0.0/16 nhid 7 table 119", "nexthop del id 7", "10.5.0.0/16"),
        ] {
            if what == "an address" {
                shell("ip", "addr add 10.0.0.12/32 dev up0");
            }
            shell("ip", add);
            listener.until(what, &[stays, prefix]).await;
            shell("ip", removal);
            listener.until(what, &[stays]).await;
        }
        // Of IPv6, one way of two; then the other.
        let six = "2001:db8:6::/48";
        shell("ip", "-6 route add 2001:db8:6::/48 via fd00:10::2 table 119");
        shell("ip", "-6 route append 2001:db8:6::/48 via fd00:10::3 table 119");
        listener.until("two ways", &[stays, six]).await;
        shell("ip", "-6 route del 2001:db8:6::/48 via fd00:10::2 table 119");
        listener.quiet("one way is left").await;
        shell("ip", "-6 route del 2001:db8:6::/48 via fd00:10::3 table 119");
        listener.until("none is left", &[stays]).await;
        // Of IPv4, two in one place.
        shell("ip", "route append 10.1.0.0/16 dev lo table 119");
        shell("ip", "route del 10.1.0.0/16 dev up0 table 119");
        listener.quiet("another one is left").await;
        shell("ip", "route del 10.1.0.0/16 table 119");
        listener.until("the last one", &[]).await;
    });
}

/// While nobody reads, as this thread's runtime stands still.
#[test]
fn notifications_that_were_left_out_are_made_up_for() {
    in_namespace("overrun", async |_| {
        let mut listener = Listener::start(&[119], false);
        listener.until("the start", &[]).await;
        let (mut lines, mut prefixes) = (String::new(), Vec::new());
        for number in 0..5_000 {
            let prefix = format!("10.{}.{}.{}/32", 1 + number / 65536, number / 256 % 256, number % 256);
            writeln!(lines, "route add {prefix} dev lo table 119").unwrap();
            prefixes.push(prefix);
        }
        batch(&lines);
        listener.until("all of them", &prefixes.iter().map(String::as_str).collect::<Vec<_>>()).await;
        assert!(listener.told <= 4, "in few pieces, not in {}", listener.told);
        batch(&lines.replace("route add", "route del"));
        listener.until("none of them", &[]).await;
    });
}

fn exported(table: u32) -> String {
    let mut text = String::new();
    for family in ["-4", "-6"] {
        let all = shell("ip", &format!("{family} route show table all proto 83"));
        for line in all.lines().filter(|line| line.contains(&format!("table {table}"))) {
            text += line.split_whitespace().next().unwrap();
            text += " ";
        }
    }
    text.trim_end().into()
}

/// It is left alone, told of, and no matter of the others.
#[test]
fn a_route_of_somebody_else_keeps_no_other_out() {
    in_namespace("foreign", async |_| {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let (theirs, ours, gone) = (net("192.0.2.80/32"), net("192.0.2.81/32"), net("192.0.2.82/32"));
        shell("ip", "route add 192.0.2.80/32 dev up0 table 120 proto 30");
        let mut export = ExportTable::open(Some(120)).unwrap();
        export.change([gone], []).await;
        export.complete().await;
        export.change([theirs, ours], [gone]).await;
        assert_eq!(exported(120), "192.0.2.81");
        assert!(
            export.problem().is_some_and(|problem| problem.contains("192.0.2.80/32")),
            "{:?}",
            export.problem()
        );
        export.sync().await;
        assert_eq!(exported(120), "192.0.2.81");
        assert!(shell("ip", "route show table 120").contains("192.0.2.80 dev up0 proto 30"));
        shell("ip", "route del 192.0.2.80/32 dev up0 table 120");
        export.sync().await;
        assert_eq!((exported(120).as_str(), export.problem()), ("192.0.2.80 192.0.2.81", None));
    });
}

#[test]
fn what_is_announced_is_in_the_table_over_restarts_and_nothing_else() {
    in_namespace("export", async |node| {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let (web4, web6, other) = (net("192.0.2.80/32"), net("2001:db8::80/128"), net("192.0.2.81/32"));
        // Somebody else's.
        shell("ip", "route add 198.51.100.0/24 dev up0 table 120 proto 30");

        let mut first = ExportTable::open(Some(120)).unwrap();
        first.change([web4, web6, other], []).await;
        first.complete().await;
        assert_eq!(first.problem(), None);
        assert_eq!(exported(120), "192.0.2.80 192.0.2.81 2001:db8::80");
        assert!(first.holds(&web4) && first.holds(&web6));
        first.change([], [other]).await;
        assert_eq!(exported(120), "192.0.2.80 2001:db8::80");
        drop(first);

        // The next agent finds one gone of which it does not know yet; nothing goes before all is known.
        let mut second = ExportTable::open(Some(120)).unwrap();
        second.tick(Instant::now()).await;
        assert_eq!(exported(120), "192.0.2.80 2001:db8::80");
        second.change([web6], []).await;
        assert_eq!(exported(120), "192.0.2.80 2001:db8::80");
        second.complete().await;
        assert_eq!(exported(120), "2001:db8::80");

        // What others remove is back, and the dataplane leaves it alone.
        shell("ip", "-6 route del 2001:db8::80/128 table 120");
        second.sync().await;
        let mut dataplane = Dataplane::open(&node.settings).unwrap();
        let mut plan = NodePlan::default();
        plan.node.addresses = vec![namespace::address("10.0.0.11")];
        dataplane.sync(&plan, Instant::now()).await;
        assert_eq!(exported(120), "2001:db8::80");
        drop(dataplane);

        // What the kernel refuses is told, and tried again.
        shell("ip", "link set lo down");
        second.change([web4], []).await;
        assert!(
            second
                .problem()
                .is_some_and(|problem| problem.starts_with("announce.exportTable 120: add route")),
            "{:?}",
            second.problem()
        );
        assert!(!second.holds(&web4));
        shell("ip", "link set lo up");
        second.tick(Instant::now() + Duration::from_secs(60)).await;
        assert_eq!(second.problem(), None);
        assert_eq!(exported(120), "192.0.2.80 2001:db8::80");

        // Another table: what the first one has goes only when the other has all.
        drop(second);
        let mut third = ExportTable::open(Some(121)).unwrap();
        third.change([web4], []).await;
        assert_eq!((exported(120), exported(121)), ("192.0.2.80 2001:db8::80".into(), "192.0.2.80".into()));
        third.complete().await;
        assert_eq!((exported(120), exported(121)), (String::new(), "192.0.2.80".into()));

        let lock = Lock::take(&node.settings.state_directory).unwrap();
        dataplane::cleanup(&node.settings, &lock).await.unwrap();
        assert_eq!(exported(121), "");
        assert!(shell("ip", "route show table 120").starts_with("198.51.100.0/24 dev up0"));
    });
}

#[test]
fn without_a_table_what_an_agent_before_wrote_goes() {
    in_namespace("unexport", async |_| {
        shell("ip", "route add 192.0.2.80/32 dev lo table 120 proto 83");
        let mut none = ExportTable::open(None).unwrap();
        none.change(["192.0.2.80/32".parse().unwrap()], []).await;
        assert_eq!(exported(120), "192.0.2.80");
        none.complete().await;
        assert_eq!(exported(120), "");
        assert!(!none.holds(&"192.0.2.80/32".parse().unwrap()));
    });
}

#[test]
fn what_no_service_has_in_an_aggregate_is_unreachable() {
    in_namespace("aggregate", async |node| {
        let nets =
            |texts: &[&str]| texts.iter().map(|text| text.parse::<IpNet>().unwrap()).collect::<BTreeSet<_>>();
        let (v4, v6) = ("192.0.2.0/24", "2001:db8:2::/64");
        let mut plan = NodePlan::default();
        plan.node.addresses = vec![namespace::address("10.0.0.11"), namespace::address("fd00:10::11")];
        plan.node.service_cidrs = nets(&["10.96.0.0/16"]);
        // Within the service CIDR the guard refuses.
        plan.node.aggregates = nets(&[v4, v6, "10.96.1.0/24"]);
        // More of somebody's own within it, and for all of it, stays in use.
        batch("route add 192.0.2.128/25 dev up0\nroute add 2001:db8:2::/64 via fd00:10::2");
        let mut dataplane = Dataplane::open(&node.settings).unwrap();
        assert!(!dataplane.ends(&plan, v4.parse().unwrap()), "before the first look");
        dataplane.sync(&plan, Instant::now()).await;
        assert_eq!(dataplane.problems(), [""; 0]);
        assert_eq!(dataplane.sync(&plan, Instant::now()).await, [""; 0], "a second look finds nothing to do");
        for aggregate in [v4, v6, "10.96.1.0/24"] {
            assert!(dataplane.ends(&plan, aggregate.parse().unwrap()), "{aggregate}");
        }
        assert!(!dataplane.ends(&plan, "198.51.100.0/24".parse().unwrap()));
        let routes = [shell("ip", "route show proto 83"), shell("ip", "-6 route show proto 83")].concat();
        for line in ["unreachable 192.0.2.0/24", "unreachable 2001:db8:2::/64 dev lo"] {
            assert!(routes.contains(line), "{line} is not in\n{routes}");
        }
        assert!(!routes.contains("10.96.1.0/24"), "{routes}");
        let unreachable = Command::new("ip").args(["route", "get", "192.0.2.1"]).output().unwrap();
        assert!(!unreachable.status.success(), "{}", String::from_utf8_lossy(&unreachable.stdout));
        assert!(shell("ip", "route get 192.0.2.129").contains("dev up0"));
        assert!(shell("ip", "-6 route get 2001:db8:2::1").contains("via fd00:10::2"));

        plan.node.aggregates = nets(&[v6]);
        dataplane.sync(&plan, Instant::now()).await;
        assert!(!shell("ip", "route show proto 83").contains("192.0.2.0/24"));
        drop(dataplane);
        let lock = Lock::take(&node.settings.state_directory).unwrap();
        dataplane::cleanup(&node.settings, &lock).await.unwrap();
        assert_eq!(shell("ip", "-6 route show proto 83"), "");
        assert!(shell("ip", "-6 route show 2001:db8:2::/64").contains("via fd00:10::2"));
    });
}
