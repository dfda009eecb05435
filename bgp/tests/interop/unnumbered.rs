//! Sessions with peers whose addresses nobody configures: they are learnt of router advertisements (RFC 4861).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddrV6};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use sheave_bgp::session::State;
use sheave_bgp::{
    Attributes, ImportPolicy, NextHop, PeerConfig, PrefixFilter, RouterDiscovery, Shutdown, Speaker,
    SpeakerConfig,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::Handle;

use crate::bird::PROGRAMS as BIRD;
use crate::frr::vtysh;
use crate::lab::Lab;
use crate::{OUR_ASN, announce, in_lab, only_peer, peer_config, speaker_config, start, until};

const THEIR_ASN: u32 = 65002;
const OURS: [&str; 2] = ["192.0.2.80/32", "2001:db8::80/128"];
const THEIRS: [&str; 2] = ["198.51.100.0/24", "2001:db8:1::/48"];
const FRR: &[&str] = &["../lib/frr/bgpd", "../lib/frr/zebra", "vtysh"];

/// The number of the interface at our end.
fn link0() -> u32 {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, None).unwrap();
    rustix::net::netdevice::name_to_index(&socket, "link0").unwrap()
}

fn discover() -> RouterDiscovery {
    let mut discovery = RouterDiscovery::new(Handle::current());
    discovery.set_links(&BTreeMap::from([("link0".to_owned(), link0())]));
    discovery
}

fn neighbour(discovery: &RouterDiscovery) -> Option<Ipv6Addr> {
    discovery.links()["link0"].neighbour
}

async fn await_neighbour(lab: &Lab, discovery: &RouterDiscovery) -> IpAddr {
    let heard = || neighbour(discovery).is_some();
    lab.until("a neighbour", heard, || format!("{:?}", discovery.links())).await;
    neighbour(discovery).unwrap().into()
}

async fn started() -> Speaker {
    let listen = Some(vec!["[::]:179".parse().unwrap()]);
    let speaker = start(SpeakerConfig { listen, ..speaker_config(None) }).await;
    speaker.update(announce(&OURS, &Attributes::default()));
    speaker
}

/// The peer at an address that was discovered, and all that it announces is imported.
fn peer_at(speaker: &Speaker, address: IpAddr) {
    let prefixes = THEIRS.iter().map(|prefix| PrefixFilter::exactly(prefix.parse().unwrap())).collect();
    speaker.set_imports(&BTreeMap::from([(address, ImportPolicy { prefixes, max_prefixes: None })]));
    speaker.set_peers(vec![PeerConfig {
        interface: Some("link0".into()),
        extended_next_hop: true,
        next_hop_v4: None,
        next_hop_v6: None,
        ..peer_config(address, THEIR_ASN)
    }]);
}

/// Waits until its routes lead to it, through that interface.
async fn await_routes_of(speaker: &Speaker, peer: IpAddr) {
    until("its routes", || speaker.learnt().routes == THEIRS.len()).await;
    let mut changes = BTreeMap::new();
    until("next hops", || speaker.learnt().pending > 0).await;
    changes.extend(speaker.learnt_routes().take(9));
    let hop = NextHop { address: peer, interface: Some(link0()) };
    for prefix in THEIRS {
        let hops = changes[&prefix.parse().unwrap()].clone();
        assert_eq!(hops.as_deref(), Some(&[hop][..]), "{prefix}");
    }
}

/// `neighbor INTERFACE interface` of FRR: both learn each other, whoever connects; both families are in its kernel by our link-local
/// address, and its routes lead back to it. When its address becomes another, the session follows.
#[test]
fn frr_learns_us_and_is_learnt() {
    for asn in ["external", &THEIR_ASN.to_string()] {
        let remote = if asn == "external" { asn.to_owned() } else { OUR_ASN.to_string() };
        in_lab(FRR, move |mut lab| async move {
            lab.unnumber();
            start_frr(&mut lab, &remote);
            let discovery = discover();
            let speaker = started().await;
            let peer = await_neighbour(&lab, &discovery).await;
            peer_at(&speaker, peer);
            await_session(&lab, &speaker).await;
            await_routes_of(&speaker, peer).await;
            let ours = only_peer(&speaker).session.unwrap().local.ip();
            for prefix in OURS {
                let show = || {
                    lab.ask(&[
                        "ip",
                        if prefix.contains(':') { "-6" } else { "-4" },
                        "route",
                        "show",
                        "proto",
                        "bgp",
                    ])
                };
                let installed = || show().contains(&format!("{ours} dev link0"));
                lab.until(&format!("{prefix} by {ours}"), installed, show).await;
            }

            let moved: IpAddr = "fe80::99".parse().unwrap();
            lab.move_peer(peer, moved);
            until("the other address", || neighbour(&discovery) == Some("fe80::99".parse().unwrap())).await;
            peer_at(&speaker, moved);
            await_session(&lab, &speaker).await;
            await_routes_of(&speaker, moved).await;
            assert_eq!(discovery.links()["link0"].other, None);

            // A restart: the peer keeps the routes.
            let show = || lab.ask(&["ip", "route", "show", "proto", "bgp"]);
            lab.until("the route by our address", || show().contains("via inet6 fe80::"), show).await;
            speaker.shutdown(Shutdown::GracefulRestart).await;
            let sessions = || vtysh(&lab, &["show bgp neighbors"]);
            lab.until("the end of the session", || !sessions().contains("BGP state = Established"), sessions)
                .await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(show().contains("via inet6 fe80::"), "{}\n{}", show(), sessions());
        });
    }
}

async fn await_session(lab: &Lab, speaker: &Speaker) {
    let established = || only_peer(speaker).state == State::Established;
    let state = || {
        format!(
            "{:?}\n{}",
            only_peer(speaker),
            vtysh(lab, &["show bgp neighbors", "show bgp ipv4 unicast", "show running-config"])
        )
    };
    lab.until("a session", established, state).await;
}

fn start_frr(lab: &mut Lab, remote: &str) {
    let [v4, v6] = THEIRS;
    let config = lab.write(
        "frr.conf",
        &format!(
            "router bgp {THEIR_ASN}\n bgp router-id 10.0.0.2\n no bgp ebgp-requires-policy\n no bgp network import-check\n no bgp default \
             ipv4-unicast\n neighbor link0 interface remote-as {remote}\n neighbor link0 timers connect 1\n\
             address-family ipv4 unicast\n  network {v4}\n  neighbor link0 activate\n exit-address-family\n\
             address-family ipv6 unicast\n  network {v6}\n  neighbor link0 activate\n exit-address-family\n"
        ),
    );
    let (directory, api) = (lab.path(""), lab.path("zserv"));
    let (pid, zebra_pid) = (lab.path("frr.pid"), lab.path("zebra.pid"));
    let shared = ["--vty_port", "0", "--vty_socket", &directory, "--log", "stdout", "-z", &api];
    // zebra insists on being its own user.
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o777)).unwrap();
    let zebra = ["/usr/lib/frr/zebra", "--pid_file", &zebra_pid];
    lab.start_beside(&[&zebra[..], &shared].concat());
    let bgpd = ["/usr/lib/frr/bgpd", "--skip_runas", "--config_file", &config, "--pid_file", &pid];
    lab.start(&[&bgpd[..], &shared].concat());
}

/// BIRD advertises itself by its radv protocol, and takes sessions from the link.
#[test]
fn bird_is_learnt() {
    in_lab(BIRD, |mut lab| async move {
        lab.unnumber();
        let [v4, v6] = THEIRS;
        lab.start_bird_with(&format!(
            "protocol device {{}}\nprotocol static {{ ipv4; route {v4} blackhole; }}\nprotocol static {{ ipv6; route {v6} blackhole; }}\n\
             protocol radv {{ interface \"link0\" {{ max ra interval 4; default lifetime 0; }}; }}\n\
             protocol bgp peer {{ local as {THEIR_ASN}; neighbor range fe80::/10 as {OUR_ASN}; interface \"link0\"; direct;\n\
             ipv4 {{ extended next hop on; import all; export where source = RTS_STATIC; next hop self; }};\n\
             ipv6 {{ import all; export where source = RTS_STATIC; next hop self; }}; }}\n"
        ));
        let discovery = discover();
        let speaker = started().await;
        let peer = await_neighbour(&lab, &discovery).await;
        peer_at(&speaker, peer);
        let ours = || only_peer(&speaker).session.map(|session| session.local.ip());
        lab.until("a session", || ours().is_some(), || lab.birdc("show protocols all")).await;
        await_routes_of(&speaker, peer).await;
        for prefix in OURS {
            let gateway = format!("via {} on link0", ours().unwrap());
            lab.wait_for(&format!("show route for {prefix}"), &[&gateway]).await;
        }
        speaker.shutdown(Shutdown::Cease).await;
    });
}

/// An advertisement that has come from another link, or says that it is from another address than one of the link, tells nothing; nor
/// does one through another interface. A good one does.
#[test]
fn advertisements_from_elsewhere_are_not_heard() {
    in_lab(&[], |lab| async move {
        lab.unnumber();
        let discovery = discover();
        let advertise = |hops: u32| {
            lab.at_peer(|| {
                let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap();
                let index = rustix::net::netdevice::name_to_index(&socket, "link0").unwrap();
                socket.set_multicast_hops_v6(hops).unwrap();
                let all_nodes = SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, index);
                let advertisement = sheave_bgp::discovery::Message::Advertisement.bytes();
                // Not before the address is the interface's alone.
                socket.send_to(&advertisement, &all_nodes.into()).is_ok()
            })
        };
        lab.until("an address to send from", || advertise(64), String::new).await;
        for _ in 0..20 {
            assert!(advertise(64) && advertise(254));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(neighbour(&discovery), None, "{:?}", discovery.links());
        lab.until("a good one", || advertise(255) && neighbour(&discovery).is_some(), String::new).await;
        let address = lab.ask(&["ip", "-6", "addr", "show", "dev", "link0"]);
        assert!(address.contains(&neighbour(&discovery).unwrap().to_string()), "{address}");
    });
}
