//! Links, what is on them and default routes, as a real kernel tells of them.

use std::time::Duration;

use sheave::tables::{FollowingLinks, Gateway, Surroundings, follow_links};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::LIMIT;
use super::namespace::{in_namespace, shell};

/// Interfaces, nets and gateways, in words.
fn words(now: &Surroundings) -> String {
    let interfaces = now.interfaces.keys().cloned();
    let nets = now.on_link.iter().map(ToString::to_string);
    let gateways = now.gateways_v4.iter().chain(&now.gateways_v6);
    let gateways = gateways.map(|Gateway { address, interface }| format!("via {address} {interface}"));
    let all: Vec<String> =
        interfaces.chain(nets).chain(gateways).filter(|word| !word.starts_with("fe80::/")).collect();
    all.join(", ")
}

async fn until(links: &mut FollowingLinks, what: &str, expected: &str) {
    let mut last = String::new();
    let reached = timeout(LIMIT, async {
        loop {
            links.changed().await;
            last = links.now().map(|now| words(&now)).unwrap_or_default();
            if last == expected {
                return;
            }
        }
    });
    assert!(reached.await.is_ok(), "{what}: {last}, not {expected}");
}

#[test]
fn surroundings_are_followed() {
    in_namespace("surroundings", async |_| {
        let mut links = follow_links(&Handle::current()).unwrap();
        let start = "up0, 10.0.0.0/24, fd00:10::/64, via 10.0.0.1 up0, via fd00:10::1 up0";
        until(&mut links, "the start", start).await;

        for line in ["link add up1 type dummy", "link set up1 up", "addr add 10.0.1.11/24 dev up1"] {
            shell("ip", line);
        }
        let more = "up0, up1, 10.0.0.0/24, 10.0.1.0/24, fd00:10::/64, via 10.0.0.1 up0, via fd00:10::1 up0";
        until(&mut links, "another link", more).await;
        shell("ip", "route replace default nexthop via 10.0.0.1 nexthop via inet6 fe80::1 dev up1");
        shell("ip", "-6 route replace default via fe80::1 dev up1");
        let two = "up0, up1, 10.0.0.0/24, 10.0.1.0/24, fd00:10::/64, via 10.0.0.1 up0, via fe80::1 up1, via fe80::1 up1";
        until(&mut links, "two gateways, one of them by its IPv6 address", two).await;

        // Learnt routes are none that peers are found by, and say nothing of links.
        shell("ip", "route add default via 10.0.0.9 proto 85 metric 8192");
        shell("ip", "route add 198.51.100.0/24 via 10.0.0.9 proto 85 metric 8192");
        assert!(timeout(Duration::from_millis(300), links.changed()).await.is_err());

        shell("ip", "link set up1 down");
        let one = "up0, 10.0.0.0/24, fd00:10::/64, via 10.0.0.1 up0";
        until(&mut links, "a link that is down", one).await;
        shell("ip", "route replace default via 10.0.0.1");
        shell("ip", "link set up1 up");
        until(&mut links, "and back", &more.replace(", via fd00:10::1 up0", "")).await;
        shell("ip", "addr del 10.0.1.11/24 dev up1");
        until(&mut links, "its address goes", "up0, up1, 10.0.0.0/24, fd00:10::/64, via 10.0.0.1 up0").await;
        shell("ip", "link set up1 down");
        shell("ip", "link set up1 name eth7");
        shell("ip", "link set eth7 up");
        until(&mut links, "another name", "eth7, up0, 10.0.0.0/24, fd00:10::/64, via 10.0.0.1 up0").await;
        shell("ip", "link del eth7");
        until(&mut links, "it is gone", one).await;
    });
}
