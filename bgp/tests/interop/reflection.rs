//! Route reflection (RFC 4456): with other daemons as clients of ours, and ours as clients of theirs.
//!
//! All daemons are in one namespace, each with addresses of its own, and connect to us. One session over IPv4 bears both
//! families.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde_json::Value;
use sheave_bgp::session::AddPaths;
use sheave_bgp::{
    Attributes, ImportPolicy, LearntChange, NextHop, PeerConfig, PrefixFilter, Speaker, SpeakerConfig,
};

use crate::lab::Lab;
use crate::{OUR_ASN, announce, in_lab, peer_config, speaker_config, start, withdraw};

const CLUSTER: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);
const BIRD: Host = Host(2);
const FRR: Host = Host(3);
const GOBGP: Host = Host(4);

/// The end of addresses and of a router id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Host(u8);

impl Host {
    fn v4(self) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, self.0).into()
    }

    fn v6(self) -> IpAddr {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, self.0.into()).into()
    }

    /// What it announces.
    fn prefixes(self) -> [String; 2] {
        [format!("198.51.{}.0/24", self.0), format!("2001:db8:{}::/48", self.0)]
    }

    fn next_hops(self) -> [IpAddr; 2] {
        [self.v4(), self.v6()]
    }
}

/// A daemon that has a session with each of `peers`: as their reflector, or their client that announces its prefixes.
trait Reflecting: Sync {
    fn programs(&self) -> &'static [&'static str];
    fn start(&self, lab: &mut Lab, peers: &[Host], reflector: bool);
}

struct Bird;
struct Frr;
struct GoBgp;

impl Reflecting for Bird {
    fn programs(&self) -> &'static [&'static str] {
        crate::bird::PROGRAMS
    }

    fn start(&self, lab: &mut Lab, peers: &[Host], reflector: bool) {
        let (v4, v6) = (BIRD.v4(), BIRD.v6());
        let [prefix4, prefix6] = BIRD.prefixes();
        let (reflects, exported) = if reflector {
            (format!("rr client; rr cluster id {CLUSTER};"), "source = RTS_BGP")
        } else {
            (String::new(), "source = RTS_STATIC")
        };
        let session = |peer: &Host| {
            format!(
                "protocol bgp peer{} {{
                    local {v4} as {OUR_ASN}; neighbor {} as {OUR_ASN}; {reflects}
                    connect delay time 1; connect retry time 1; error wait time 1, 2;
                    ipv4 {{ import all; add paths rx; export where {exported}; }};
                    ipv6 {{ import all; add paths rx; export where {exported}; next hop address {v6}; }};
                }}\n",
                peer.0,
                peer.v4()
            )
        };
        let sessions: String = peers.iter().map(session).collect();
        let config = lab.write(
            "bird.conf",
            &format!(
                "log stderr all;
                 router id {v4};
                 protocol device {{ }}
                 protocol direct {{ ipv4; ipv6; }}
                 protocol static {{ ipv4; route {prefix4} blackhole; }}
                 protocol static {{ ipv6; route {prefix6} blackhole; }}
                 {sessions}"
            ),
        );
        lab.start_beside(&["bird", "-f", "-c", &config, "-s", &lab.path("bird.ctl")]);
    }
}

impl Reflecting for Frr {
    fn programs(&self) -> &'static [&'static str] {
        &["../lib/frr/bgpd", "vtysh"]
    }

    fn start(&self, lab: &mut Lab, peers: &[Host], reflector: bool) {
        let neighbors = |options: &[String]| -> String {
            let of = |peer: &Host| {
                options.iter().map(|o| format!(" neighbor {} {o}\n", peer.v4())).collect::<String>()
            };
            peers.iter().map(of).collect()
        };
        let session = ["timers connect 1".to_owned(), format!("update-source {}", FRR.v4())];
        let session = [&[format!("remote-as {OUR_ASN}")][..], &session].concat();
        let mut family = vec!["activate".to_owned()];
        let (mut cluster, mut networks) = (String::new(), [String::new(), String::new()]);
        let mut own_next_hop = Vec::new();
        if reflector {
            family.push("route-reflector-client".to_owned());
            cluster = format!(" bgp cluster-id {CLUSTER}\n");
        } else {
            networks = FRR.prefixes().map(|prefix| format!(" network {prefix}\n"));
            own_next_hop.push("route-map V6 out".to_owned());
        }
        let [networks4, networks6] = networks;
        let config = lab.write(
            "frr.conf",
            &format!(
                "router bgp {OUR_ASN}\n bgp router-id {}\n no bgp network import-check\n no bgp default ipv4-unicast\n{cluster}{}\
                 address-family ipv4 unicast\n{networks4}{} exit-address-family\n\
                 address-family ipv6 unicast\n{networks6}{} exit-address-family\n\
                 route-map V6 permit 10\n set ipv6 next-hop global {}\n",
                FRR.v4(),
                neighbors(&session),
                neighbors(&family),
                neighbors(&[&family[..], &own_next_hop].concat()),
                FRR.v6(),
            ),
        );
        let (directory, pid) = (lab.path(""), lab.path("frr.pid"));
        // It listens nowhere.
        let program = [
            "/usr/lib/frr/bgpd",
            "--no_zebra",
            "--no_kernel",
            "--skip_runas",
            "--vty_port",
            "0",
            "--bgp_port",
            "0",
        ];
        let files =
            ["--config_file", &config, "--pid_file", &pid, "--vty_socket", &directory, "--log", "stdout"];
        lab.start_beside(&[&program[..], &files].concat());
    }
}

impl Reflecting for GoBgp {
    fn programs(&self) -> &'static [&'static str] {
        &["gobgpd", "gobgp"]
    }

    fn start(&self, lab: &mut Lab, peers: &[Host], reflector: bool) {
        let mut config =
            format!("[global.config]\nas = {OUR_ASN}\nrouter-id = \"{}\"\nport = -1\n", GOBGP.v4());
        for peer in peers {
            config += &format!(
                "[[neighbors]]
                   [neighbors.config]
                     neighbor-address = \"{}\"
                     peer-as = {OUR_ASN}
                   [neighbors.timers.config]
                     connect-retry = 1
                     idle-hold-time-after-reset = 1
                   [neighbors.transport.config]
                     local-address = \"{}\"
                   [neighbors.route-reflector.config]
                     route-reflector-client = {reflector}
                     route-reflector-cluster-id = \"{CLUSTER}\"
                ",
                peer.v4(),
                GOBGP.v4()
            );
            for family in ["ipv4-unicast", "ipv6-unicast"] {
                config += &format!(
                    "[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"{family}\"\n\
                     [neighbors.afi-safis.add-paths.config]\nreceive = true\n"
                );
            }
        }
        let config = lab.write("gobgpd.toml", &config);
        let api = format!("--api-hosts={}", gobgp_target(lab));
        lab.start_beside(&["gobgpd", "--config-file", &config, &api, "--pprof-disable", "--log-plain"]);
    }
}

fn gobgp_target(lab: &Lab) -> String {
    format!("unix://{}", lab.path("gobgp.sock"))
}

fn gobgp(lab: &Lab, command: &str) -> String {
    let target = gobgp_target(lab);
    let mut program = vec!["gobgp", "--target", &target];
    program.extend(command.split_whitespace());
    lab.ask(&program)
}

/// `ipv4` or `ipv6`.
fn family(prefix: &str) -> &'static str {
    if prefix.contains(':') { "ipv6" } else { "ipv4" }
}

/// What there is of a route: next hop, ORIGINATOR_ID, CLUSTER_LIST.
fn at_bird(lab: &Lab, prefix: &str) -> String {
    let answer = lab.birdc(&format!("show route all {prefix}"));
    let attribute = |name: &str| {
        let line = answer.lines().find_map(|line| line.trim().strip_prefix(name));
        line.unwrap_or_default().trim().to_owned()
    };
    ["BGP.next_hop:", "BGP.originator_id:", "BGP.cluster_list:"].map(attribute).join(" ")
}

fn at_frr(lab: &Lab, prefix: &str) -> String {
    let directory = lab.path("");
    let command = format!("show bgp {} unicast {prefix} json", family(prefix));
    let answer = lab.ask(&["vtysh", "--vty_socket", &directory, "-d", "bgpd", "-c", &command]);
    let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
    let path = &answer["paths"][0];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    [text(&path["nexthops"][0]["ip"]), text(&path["originatorId"]), text(&path["clusterList"]["list"][0])]
        .join(" ")
}

fn at_gobgp(lab: &Lab, prefix: &str) -> String {
    let answer = gobgp(lab, &format!("global rib {prefix} -a {} -j", family(prefix)));
    let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
    let path = &answer[prefix][0];
    let attribute =
        |code: u64| path["attrs"].as_array().into_iter().flatten().find(move |a| a["type"] == code);
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    [
        text(attribute(3).or_else(|| attribute(14)).map(|hop| &hop["nexthop"])),
        text(attribute(9).map(|originator| &originator["value"])),
        text(attribute(10).map(|clusters| &clusters["value"][0])),
    ]
    .join(" ")
}

/// What all daemons take.
const PROGRAMS: [&str; 6] = ["bird", "birdc", "../lib/frr/bgpd", "vtysh", "gobgpd", "gobgp"];

/// A reflector of ours, and every daemon to be a client of it.
async fn reflector_of_all(lab: &mut Lab, ours: Host) -> Speaker {
    for host in [BIRD, FRR, GOBGP] {
        lab.add_addresses_at_peer(host.next_hops());
    }
    let daemons: [&dyn Reflecting; 3] = [&Bird, &Frr, &GoBgp];
    daemons.iter().for_each(|daemon| daemon.start(lab, &[ours], false));
    let speaker = start(speaker_config(Some(ours.v4()))).await;
    speaker.set_reflector(Some(CLUSTER));
    speaker
}

/// Of each daemon the others have its routes, of both families: as it sent them, begun by it, and once through our cluster.
#[test]
fn daemons_are_our_clients() {
    in_lab(&PROGRAMS, |mut lab| async move {
        let ours = Host(1);
        let speaker = reflector_of_all(&mut lab, ours).await;
        let client =
            |host: Host| PeerConfig { passive: true, client: true, ..peer_config(host.v4(), OUR_ASN) };
        speaker.set_peers([BIRD, FRR, GOBGP].map(client).into());
        let tell_gobgp = |what: &str| {
            for (prefix, hop) in GOBGP.prefixes().iter().zip(GOBGP.next_hops()) {
                gobgp(&lab, &format!("global rib {what} {prefix} nexthop {hop} -a {}", family(prefix)));
            }
        };

        type Ask = fn(&Lab, &str) -> String;
        let views: [(Host, Ask); 3] = [(BIRD, at_bird), (FRR, at_frr), (GOBGP, at_gobgp)];
        let wrong = || {
            let mut wrong = Vec::new();
            for (at, ask) in views {
                for from in [BIRD, FRR, GOBGP].into_iter().filter(|from| *from != at) {
                    for (prefix, hop) in from.prefixes().iter().zip(from.next_hops()) {
                        let (found, expected) = (ask(&lab, prefix), format!("{hop} {} {CLUSTER}", from.v4()));
                        if found != expected {
                            wrong.push(format!("{prefix} at {at:?}: {found}, expected {expected}"));
                        }
                    }
                }
            }
            wrong
        };
        // It may begin to listen between the one and the other.
        let told = || {
            let holds = |prefix: &String| {
                gobgp(&lab, &format!("global rib -a {}", family(prefix))).contains(prefix.as_str())
            };
            GOBGP.prefixes().iter().all(holds)
        };
        lab.until(
            "GoBGP to take its routes",
            || {
                tell_gobgp("add");
                told()
            },
            String::new,
        )
        .await;
        lab.until("all routes", || wrong().is_empty(), || wrong().join("\n")).await;
        let status = speaker.status();
        assert_eq!((status.routes, status.reflected), (6, 6));
        assert!(speaker.learnt_routes().take(9).is_empty());

        tell_gobgp("del");
        let gone = || {
            let at = |ask: Ask| GOBGP.prefixes().iter().all(|prefix| ask(&lab, prefix).trim().is_empty());
            at(at_bird) && at(at_frr)
        };
        lab.until("what GoBGP withdrew to go", gone, || wrong().join("\n")).await;
        assert_eq!(speaker.status().reflected, 4);
    });
}

/// The next hops of all paths that there are to a prefix.
fn next_hops_at_bird(lab: &Lab, prefix: &str) -> BTreeSet<String> {
    let answer = lab.birdc(&format!("show route all {prefix}"));
    let hop = |line: &str| Some(line.trim().strip_prefix("BGP.next_hop:")?.trim().to_owned());
    answer.lines().filter_map(hop).collect()
}

fn next_hops_at_frr(lab: &Lab, prefix: &str) -> BTreeSet<String> {
    let directory = lab.path("");
    let command = format!("show bgp {} unicast {prefix} json", family(prefix));
    let answer = lab.ask(&["vtysh", "--vty_socket", &directory, "-d", "bgpd", "-c", &command]);
    let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
    let paths = answer["paths"].as_array().into_iter().flatten();
    paths.filter_map(|path| Some(path["nexthops"][0]["ip"].as_str()?.to_owned())).collect()
}

fn next_hops_at_gobgp(lab: &Lab, prefix: &str) -> BTreeSet<String> {
    let answer = gobgp(lab, &format!("global rib {prefix} -a {} -j", family(prefix)));
    let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
    let attributes =
        answer[prefix].as_array().into_iter().flatten().filter_map(|path| path["attrs"].as_array());
    let hop = |attribute: &Value| Some(attribute["nexthop"].as_str()?.to_owned());
    attributes.filter_map(|all| all.iter().find_map(hop)).collect()
}

/// Where several nodes announce a VIP, the reflector itself among them, clients that take several paths have all of them, as they come and
/// go; without the option they have one.
#[test]
fn all_paths_to_clients() {
    in_lab(&PROGRAMS, |mut lab| async move {
        const VIPS: [&str; 2] = ["192.0.2.80/32", "2001:db8:2::80/128"];
        let (ours, nodes) = (Host(1), [Host(5), Host(6)]);
        let speaker = reflector_of_all(&mut lab, ours).await;
        speaker.update(announce(&VIPS, &Attributes::default()));
        let peers = |send| -> Vec<PeerConfig> {
            let client = |host: Host| PeerConfig {
                passive: true,
                client: true,
                add_paths: AddPaths { receive: false, send },
                ..session(ours, host)
            };
            [BIRD, FRR, GOBGP].into_iter().chain(nodes).map(client).collect()
        };
        speaker.set_peers(peers(true));
        let mut clients = Vec::new();
        for host in nodes {
            lab.add_address(host.v4());
            let IpAddr::V4(router_id) = host.v4() else { unreachable!("it is one") };
            let client = start(SpeakerConfig { router_id, ..speaker_config(None) }).await;
            client.update(announce(&VIPS, &Attributes::default()));
            client.set_peers(vec![PeerConfig { local_address: Some(host.v4()), ..session(host, ours) }]);
            clients.push(client);
        }

        type Ask = fn(&Lab, &str) -> BTreeSet<String>;
        let views: [Ask; 3] = [next_hops_at_bird, next_hops_at_frr, next_hops_at_gobgp];
        let held = || views.map(|ask| VIPS.map(|vip| ask(&lab, vip)));
        let all = |hosts: &[Host]| {
            let hops =
                [0, 1].map(|family| hosts.iter().map(move |host| host.next_hops()[family].to_string()));
            vec![hops.map(Iterator::collect::<BTreeSet<_>>); 3]
        };
        let until = async |what: &str, hosts: &[Host]| {
            lab.until(what, || held()[..] == all(hosts)[..], || format!("{:#?}", held())).await;
        };
        until("every node's path", &[ours, nodes[0], nodes[1]]).await;
        clients[0].update(withdraw(&VIPS));
        until("what one withdrew to go", &[ours, nodes[1]]).await;
        speaker.update(withdraw(&VIPS));
        until("the reflector's own to go", &[nodes[1]]).await;
        clients[0].update(announce(&VIPS, &Attributes::default()));
        until("the other again", &nodes).await;
        speaker.set_peers(peers(false));
        // FRR 8.4 sweeps no path of a peer behind one that it has again: it keeps the other until its stale timer has run out.
        let [at_bird, _, at_gobgp] = views;
        let best = || [at_bird, at_gobgp].iter().all(|ask| ask(&lab, VIPS[0]) == all(&nodes[..1])[0][0]);
        lab.until("the best alone", best, || format!("{:#?}", held())).await;
    });
}

/// A session between two of ours, or of ours with a daemon, whose own next hops are told in both families.
fn session(own: Host, peer: Host) -> PeerConfig {
    let (IpAddr::V4(v4), IpAddr::V6(v6)) = (own.v4(), own.v6()) else { unreachable!("they are") };
    PeerConfig { next_hop_v4: Some(v4), next_hop_v6: Some(v6), ..peer_config(peer.v4(), OUR_ASN) }
}

/// Two of our speakers know of each other by way of a daemon's reflector.
fn clients_of(daemon: &'static dyn Reflecting, host: Host) {
    in_lab(daemon.programs(), move |mut lab| async move {
        let (first, second) = (Host(1), Host(5));
        lab.add_addresses_at_peer(host.next_hops());
        lab.add_address(second.v4());
        daemon.start(&mut lab, &[first, second], true);
        let everything = |within: &str| PrefixFilter {
            within: within.parse().unwrap(),
            min_length: 0,
            max_length: within.parse::<IpNet>().unwrap().max_prefix_len(),
        };
        let policy =
            ImportPolicy { prefixes: vec![everything("0.0.0.0/0"), everything("::/0")], max_prefixes: None };
        let client = async |own: Host| {
            let IpAddr::V4(router_id) = own.v4() else { unreachable!("it is one") };
            let speaker = start(SpeakerConfig { router_id, ..speaker_config(Some(own.v4())) }).await;
            speaker.set_imports(&BTreeMap::from([(host.v4(), policy.clone())]));
            speaker.set_peers(vec![PeerConfig { passive: true, ..session(own, host) }]);
            let prefixes = own.prefixes();
            speaker.update(announce(&prefixes.each_ref().map(String::as_str), &Attributes::default()));
            speaker
        };
        let speakers = [client(first).await, client(second).await];
        let [one, other] = &speakers;
        let state = || format!("{:#?}\n{:#?}", one.learnt(), other.learnt());
        let routes = |speaker: &Speaker| speaker.learnt().routes;
        lab.until("both to learn", || routes(one) == 2 && routes(other) == 2, state).await;
        for (speaker, from) in [(one, second), (other, first)] {
            let mut learnt = speaker.learnt_routes().take(9);
            learnt.sort();
            let route = |(prefix, hop): (&String, IpAddr)| -> LearntChange {
                (prefix.parse().unwrap(), Some([NextHop::from(hop)].into()))
            };
            let expected: Vec<_> = from.prefixes().iter().zip(from.next_hops()).map(route).collect();
            assert_eq!(learnt, expected);
        }
        one.update(withdraw(&first.prefixes().each_ref().map(String::as_str)));
        lab.until("what was withdrawn to go", || routes(other) == 0, state).await;
    });
}

#[test]
fn clients_of_bird() {
    clients_of(&Bird, BIRD);
}

#[test]
fn clients_of_frr() {
    clients_of(&Frr, FRR);
}

#[test]
fn clients_of_gobgp() {
    clients_of(&GoBgp, GOBGP);
}
