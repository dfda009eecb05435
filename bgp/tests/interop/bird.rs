//! BIRD 2.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use sheave_bgp::session::State;
use sheave_bgp::wire::AS_TRANS;
use sheave_bgp::{Attributes, Families, Password, PeerConfig, RouteChanges, Shutdown, Speaker};

use crate::daemon::{Daemon, FEEDERS, Restart, Route, Setup, Told, plain};
use crate::lab::Lab;
use crate::{OUR_ASN, in_lab, only_peer, peer_config, speaker_config, until};

/// BIRD, with one BGP protocol called `peer`.
pub(crate) struct Bird;

cells! { Bird:
    routes: every
    route_refresh: every
    graceful_restart_keeps_routes: every
    cold_start_sweeps_at_once: every
    peer_restart_reconnects: every
    passwords: every
    ttl_security: every
    ttl_security_of_one_side: ebgp
    short_hold_time: ebgp
    no_hold_time: ebgp
    why_the_peer_leaves: every
    away_for_long: every
    several_paths: every
    wrong_asn_is_told: every
    collision: active
}

/// BIRD's.
pub(crate) const PROGRAMS: &[&str] = &["bird", "birdc"];

impl Daemon for Bird {
    fn programs(&self) -> &'static [&'static str] {
        PROGRAMS
    }

    fn start(&self, lab: &mut Lab, setup: &Setup) {
        let mut options = format!("hold time {};", setup.hold_time);
        if !setup.connects {
            options += "passive on;";
        }
        if setup.ttl_security {
            options += "ttl security on;";
        }
        if let Some(Restart { time, stale_time }) = setup.restart {
            options += &format!(
                "graceful restart time {time}; long lived graceful restart on; long lived stale time {stale_time};"
            );
        }
        if let Some(password) = setup.password {
            options += &format!("password \"{password}\";");
        }
        for (feeder, _, asn) in FEEDERS.into_iter().filter(|_| setup.add_paths) {
            options += &format!(
                "}} protocol bgp {{
                     local {} as {}; neighbor {feeder} as {asn}; passive on;
                     ipv4 {{ import all; export where false; }}; ipv6 {{ import all; export where false; }};",
                Lab::V4[1],
                setup.asn
            );
        }
        lab.start_bird(setup.theirs, setup.asn, setup.ours, OUR_ASN, &options);
        if setup.add_paths {
            lab.edit_bird("import all;", "import all; add paths on;");
            lab.edit_bird("export none;", "export all;");
            lab.edit_bird("export where source = RTS_STATIC;", "export all;");
            lab.restart_bird();
        }
    }

    fn is_established(&self, lab: &Lab, _: &Setup) -> bool {
        lab.birdc("show protocols peer").contains("Established")
    }

    fn route(&self, lab: &Lab, setup: &Setup, prefix: IpNet) -> Option<Route> {
        let answer = lab.birdc(&format!("show route protocol peer all {prefix}"));
        let attribute = |name: &str| {
            answer.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':').map(str::trim))
        };
        // Communities as in `(64512,100) (64512,200)`.
        let lists = |name| {
            let words = attribute(name).unwrap_or_default().split_inclusive(')');
            words.map(|word| word.replace(['(', ')', ' '], "").replace(',', ":")).collect::<Vec<_>>()
        };
        Some(Route {
            next_hop: attribute("BGP.next_hop")?.split(' ').next()?.parse().ok()?,
            as_path: attribute("BGP.as_path")?.split_whitespace().map(|asn| asn.parse().unwrap()).collect(),
            local_pref: attribute("BGP.local_pref").filter(|_| setup.is_ibgp()).map(|n| n.parse().unwrap()),
            med: attribute("BGP.med").map(|n| n.parse().unwrap()),
            communities: lists("BGP.community").iter().map(|c| c.parse().unwrap()).collect(),
            large_communities: lists("BGP.large_community").iter().map(|c| c.parse().unwrap()).collect(),
        })
    }

    fn ask_refresh(&self, lab: &Lab, _: &Setup) {
        lab.birdc("reload in peer");
    }

    fn shut_down(&self, lab: &Lab, _: &Setup, message: &str) -> String {
        lab.birdc(&format!("disable peer \"{message}\""));
        format!("peer sent NOTIFICATION: Cease/Administrative Shutdown: \"{message}\"")
    }

    fn was_told(&self, lab: &Lab, setup: &Setup, event: Told) -> bool {
        (self.describe(lab, setup) + &lab.read("log")).contains(match event {
            Told::Shutdown => "Administrative shutdown",
            Told::WrongAsn => "Bad peer AS",
        })
    }

    fn describe(&self, lab: &Lab, _: &Setup) -> String {
        lab.birdc("show protocols all peer") + &lab.birdc("show route protocol peer")
    }

    fn has_enhanced_refresh(&self) -> bool {
        true
    }
}

impl Lab {
    /// Starts BIRD, with `options` added to its protocol `peer`; of those that are there already they win.
    pub(crate) fn start_bird(
        &mut self,
        local: IpAddr,
        local_asn: u32,
        peer: IpAddr,
        peer_asn: u32,
        options: &str,
    ) {
        let (v4, v6) = match peer {
            IpAddr::V4(_) => ("where source = RTS_STATIC", "none"),
            IpAddr::V6(_) => ("none", "where source = RTS_STATIC"),
        };
        let config = self.write(
            "bird.conf",
            &format!(
                "log stderr all;
                 router id 10.0.0.2;
                 protocol device {{ }}
                 protocol direct {{ ipv4; ipv6; }}
                 protocol static {{ ipv4; route 198.51.100.0/24 blackhole; route 203.0.113.0/24 blackhole; }}
                 protocol static {{ ipv6; route 2001:db8:1::/48 blackhole; route 2001:db8:2::/48 blackhole; }}
                 protocol bgp peer {{
                     local {local} as {local_asn};
                     neighbor {peer} as {peer_asn};
                     hold time 9;
                     graceful restart on;
                     connect delay time 1; connect retry time 1; error wait time 1, 2;
                     ipv4 {{ import all; export {v4}; extended next hop on; }};
                     ipv6 {{ import all; export {v6}; }};
                     {options}
                 }}"
            ),
        );
        self.run_bird(&config, &[]);
    }

    /// Starts BIRD with that configuration.
    pub(crate) fn start_bird_with(&mut self, config: &str) {
        let config = self.write("bird.conf", &format!("log stderr all;\nrouter id 10.0.0.2;\n{config}"));
        self.run_bird(&config, &[]);
    }

    fn run_bird(&mut self, config: &str, options: &[&str]) {
        let control = self.path("bird.ctl");
        self.start(&[&["bird", "-f", "-c", config, "-s", &control], options].concat());
    }

    /// Changes something in BIRD's configuration, for its next start.
    pub(crate) fn edit_bird(&self, what: &str, becomes: &str) {
        let text = self.read("bird.conf");
        assert!(text.contains(what));
        self.write("bird.conf", &text.replace(what, becomes));
    }

    /// Kills BIRD, without a word to its peer, and starts it again.
    pub(crate) fn restart_bird(&mut self) {
        self.run_bird(&self.path("bird.conf"), &[]);
    }

    /// The same, with BIRD telling its peer that it has kept forwarding meanwhile.
    pub(crate) fn recover_bird(&mut self) {
        self.run_bird(&self.path("bird.conf"), &["-R"]);
    }

    /// Waits until BIRD has logged that.
    pub(crate) async fn wait_for_log(&self, text: &str) {
        self.until(&format!("{text} in the log"), || self.read("log").contains(text), || self.read("log"))
            .await;
    }

    /// What `birdc` answers.
    pub(crate) fn birdc(&self, command: &str) -> String {
        let control = self.path("bird.ctl");
        let mut program = vec!["birdc", "-s", &control];
        program.extend(command.split_whitespace());
        self.ask(&program)
    }

    /// Waits until BIRD's answer to `command` has all of `parts`.
    pub(crate) async fn wait_for(&self, command: &str, parts: &[&str]) {
        let found = |answer: &str| parts.iter().all(|part| answer.contains(part));
        self.wait(command, found, &format!("{parts:?}")).await;
    }

    /// Waits until BIRD's answer to `command` is as `wanted` says, which `description` puts into words.
    pub(crate) async fn wait(&self, command: &str, wanted: impl Fn(&str) -> bool, description: &str) {
        let state = || self.birdc(command) + &self.birdc("show protocols all peer");
        self.until(description, || wanted(&self.birdc(command)), state).await;
    }
}

pub(crate) const BIRD_ASN: u32 = 65001;

/// A peer whose families change starts over, an unchanged one keeps its session, a removed one is told.
#[test]
fn peers_change_live() {
    in_lab(Bird.programs(), |mut lab| async move {
        let [ours, birds] = Lab::V4;
        lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, "passive on;");
        let speaker = Speaker::start(speaker_config(None)).await.unwrap();
        let config = PeerConfig {
            families: Families { ipv4_unicast: true, ..Families::NONE },
            ..peer_config(birds, BIRD_ASN)
        };
        speaker.set_peers(vec![config.clone()]);
        speaker.update(plain(&["192.0.2.1/32", "2001:db8::1/128"]));
        lab.wait_for("show route protocol peer", &["192.0.2.1/32"]).await;
        assert!(!lab.birdc("show route protocol peer").contains("2001:db8::1/128"));

        let since = only_peer(&speaker).since;
        speaker.set_peers(vec![config.clone()]);
        assert_eq!(only_peer(&speaker).since, since);

        speaker.set_peers(vec![PeerConfig { families: Families::ALL, ..config }]);
        lab.wait_for("show route protocol peer", &["192.0.2.1/32", "2001:db8::1/128"]).await;

        speaker.set_peers(Vec::new());
        lab.wait_for("show protocols all peer", &["Peer de-configured"]).await;
        assert_eq!(speaker.status().peers, []);
        lab.wait("show route protocol peer", |answer| !answer.contains("192.0.2.1/32"), "no route").await;
    });
}

pub(crate) fn password(text: &str) -> Option<Password> {
    Some(Password::new(text.as_bytes()).unwrap())
}

/// A peer that takes extended messages is sent them (RFC 8654).
#[test]
fn extended_messages() {
    const COUNT: u32 = 10_000;
    in_lab(Bird.programs(), |mut lab| async move {
        let [ours, birds] = Lab::V4;
        lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, "passive on; enable extended messages on;");
        let speaker = Speaker::start(speaker_config(None)).await.unwrap();
        let hosts = (0..COUNT).map(|n| IpAddr::from(Ipv4Addr::from(0xc612_0000 + n)).into());
        let announce = hosts.map(|host| (host, Attributes::default())).collect();
        speaker.update(RouteChanges { announce, withdraw: Vec::new() });
        speaker.set_peers(vec![peer_config(birds, BIRD_ASN)]);
        lab.wait_for("show route count protocol peer", &["10000 of "]).await;
        assert!(only_peer(&speaker).session.unwrap().negotiated.extended_messages);
        // 13,000 prefixes of 32 bits fit into one; the others are the End-of-RIBs.
        until("End-of-RIBs", || only_peer(&speaker).counters.updates_sent == 3).await;
        speaker.shutdown(Shutdown::Cease).await;
    });
}

/// What a wrong password looks like is said; its change leaves other sessions alone, even at the same listener.
#[test]
fn a_password_changes_live() {
    in_lab(Bird.programs(), |mut lab| async move {
        let ([ours, birds], [_, birds_v6]) = (Lab::V4, Lab::V6);
        let second = "} protocol bgp second { local fd00::2 as 65001; neighbor fd00::1 as 4200000001; passive on; \
                      password \"second\"; ipv6 { import all; export none; };";
        lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, &format!("password \"first\"; passive on; {second}"));
        let speaker = Speaker::start(speaker_config(None)).await.unwrap();
        let peers = |text: &str| {
            let first = PeerConfig { password: password(text), ..peer_config(birds, BIRD_ASN) };
            vec![first, PeerConfig { password: password("second"), ..peer_config(birds_v6, BIRD_ASN) }]
        };
        let peer = |address: IpAddr| {
            speaker.status().peers.into_iter().find(|peer| peer.address == address).unwrap()
        };
        speaker.set_peers(peers("wrong"));
        until("the other session", || peer(birds_v6).state == State::Established).await;
        let since = peer(birds_v6).since;
        until("the reason", || {
            let error = peer(birds).last_error.map(|error| error.reason.to_string());
            error.is_some_and(|error| error.contains("its password (TCP MD5) is not the one configured here"))
        })
        .await;
        speaker.set_peers(peers("first"));
        until("a session", || peer(birds).state == State::Established).await;
        assert_eq!(peer(birds_v6).since, since);
        speaker.shutdown(Shutdown::Cease).await;
    });
}

/// A speaker without capabilities: IPv4 only, AS_TRANS for an ASN of four octets, and AS4_PATH, which BIRD merges into
/// the path.
#[test]
fn old_speaker() {
    in_lab(Bird.programs(), |mut lab| async move {
        let [ours, birds] = Lab::V4;
        lab.start_bird(birds, BIRD_ASN, ours, AS_TRANS.into(), "passive on; capabilities off;");
        let speaker = Speaker::start(speaker_config(None)).await.unwrap();
        speaker.set_peers(vec![peer_config(birds, BIRD_ASN)]);
        speaker.update(plain(&["192.0.2.1/32", "2001:db8::1/128"]));
        lab.wait_for(
            "show route all for 192.0.2.1/32",
            &["BGP.as_path: 4200000001", "BGP.next_hop: 10.0.0.1"],
        )
        .await;
        let negotiated = only_peer(&speaker).session.unwrap().negotiated;
        assert_eq!(negotiated.families, Families { ipv4_unicast: true, ..Families::NONE });
        assert!(!negotiated.four_octet_asn && !negotiated.route_refresh);
        until("BIRD's routes", || only_peer(&speaker).counters.prefixes_received == 2).await;
        speaker.shutdown(Shutdown::Cease).await;
    });
}
