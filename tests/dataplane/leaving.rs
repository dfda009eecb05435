//! What is asked of connections: which need this node, and which a VIP that goes still has.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use sheave::cluster::Protocol;
use sheave::plan::{Delta, Forwarding, NodePlan, VipKind, VipPort};

use super::namespace::{address, in_namespace, shell};
use super::{open, serve, vip};

const REMOTE: [(&str, Forwarding); 2] =
    [("10.244.2.10", Forwarding::Tunnel), ("10.244.2.11", Forwarding::Tunnel)];

fn plan(vip: VipPort) -> NodePlan {
    let mut plan = NodePlan::new("node-a");
    plan.node.addresses = vec![address("10.0.0.11"), address("fd00:10::11")];
    plan.node.tunnel_sources = ["10.0.0.11", "10.0.0.12", "fd00:10::11"].map(address).into();
    serve(&mut plan, vip, VipKind::LoadBalancerIP, &REMOTE);
    plan
}

/// How many destinations IPVS has for a VIP; `None`: not even a virtual server.
fn destinations(vip: &str) -> Option<usize> {
    let servers = shell("ipvsadm", "-Sn");
    let of_vip: Vec<&str> = servers.lines().filter(|line| line.contains(&format!("-t {vip} "))).collect();
    of_vip.len().checked_sub(1)
}

#[test]
fn a_vip_that_is_planned_no_more_is_forwarded_until_its_change_comes() {
    in_namespace("leaving", async |node| {
        let web = vip("192.0.2.80", Protocol::Tcp, 80);
        let (mut plan, now) = (plan(web), Instant::now());
        let mut dataplane = open(node, &plan, now).await;
        // Nobody answers; what has been asked is a connection to IPVS, on each of its destinations.
        for _ in 0..32 {
            let to = SocketAddr::new(web.address, web.port);
            TcpStream::connect_timeout(&to, Duration::from_millis(15)).unwrap_err();
        }
        let delta = serve(&mut plan, web, VipKind::LoadBalancerIP, &REMOTE[..1]);
        dataplane.apply(&plan, &delta, now).await;
        assert_eq!((dataplane.draining(), destinations("192.0.2.80:80")), (1, Some(2)));

        plan.virtual_servers.remove(&web);
        plan.vips.remove(&web.address);
        for second in 1..3 {
            dataplane.tick(&plan, now + Duration::from_secs(second)).await;
            assert_eq!(destinations("192.0.2.80:80"), Some(2), "second {second}");
        }
        let gone = Delta { virtual_servers: [web].into(), vips: [web.address].into(), ..Delta::default() };
        dataplane.apply(&plan, &gone, now + Duration::from_secs(3)).await;
        assert_eq!((dataplane.draining(), destinations("192.0.2.80:80")), (0, None));
        assert_eq!(dataplane.problems(), [""; 0]);
    });
}

#[test]
fn connections_of_clients_outside_are_found_in_the_own_namespace() {
    in_namespace("connections", async |node| {
        let dns = vip("192.0.2.53", Protocol::Udp, 53);
        let plan = plan(dns);
        let mut dataplane = open(node, &plan, Instant::now()).await;
        shell("ip", "addr add 203.0.113.7/32 dev lo");
        for client in ["203.0.113.7", "10.0.0.11"] {
            let socket = UdpSocket::bind((client, 40000)).unwrap();
            socket.send_to(b"a question", (dns.address, dns.port)).unwrap();
        }
        let lately = Duration::from_secs(60);
        let look = dataplane.look_for_connections(&plan, lately).unwrap();
        let end = Instant::now() + Duration::from_secs(30);
        while !look.is_over() {
            assert!(Instant::now() < end);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let passing = look.end().0.unwrap();
        let some: Vec<String> =
            passing.some.iter().map(|one| format!("{} → {}", one.client, one.vip)).collect();
        assert_eq!((passing.count, some), (1, vec!["203.0.113.7:40000 → UDP 192.0.2.53:53".to_owned()]));
    });
}
