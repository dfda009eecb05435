//! GoBGP.

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value;
use sheave_bgp::{Community, LargeCommunity};

use crate::OUR_ASN;
use crate::daemon::{Daemon, FEEDERS, Restart, Route, Setup, Told, numbers};
use crate::lab::Lab;

/// GoBGP.
pub(crate) struct GoBgp;

cells! { GoBgp:
    routes: every
    graceful_restart_keeps_routes: every
    cold_start_sweeps_at_once: every
    peer_restart_reconnects: every
    passwords: every
    ttl_security: ebgp
    ttl_security_of_one_side: ebgp
    short_hold_time: ebgp
    why_the_peer_leaves: every
    notifications_keep_routes: every
    several_paths: every
    away_for_long: every
    wrong_asn_is_told: every
}

impl Daemon for GoBgp {
    fn programs(&self) -> &'static [&'static str] {
        &["gobgpd", "gobgp"]
    }

    fn start(&self, lab: &mut Lab, setup: &Setup) {
        let Setup { ours, theirs, asn, hold_time, connects, ttl_security, .. } = setup;
        let password = setup.password.map(|text| format!("auth-password = \"{text}\"")).unwrap_or_default();
        // Feeders come by IPv4, whatever the session.
        let listens: &[IpAddr] = if setup.add_paths { &[Lab::V4[1], Lab::V6[1]] } else { &[*theirs] };
        let listens: Vec<String> = listens.iter().map(|address| format!("\"{address}\"")).collect();
        let listens = listens.join(", ");
        let mut config = format!(
            "[global.config]
               as = {asn}
               router-id = \"10.0.0.2\"
               local-address-list = [{listens}]
             [[neighbors]]
               [neighbors.config]
                 neighbor-address = \"{ours}\"
                 peer-as = {OUR_ASN}
                 {password}
               [neighbors.timers.config]
                 hold-time = {hold_time}
                 connect-retry = 1
                 idle-hold-time-after-reset = 1
               [neighbors.transport.config]
                 passive-mode = {}
                 local-address = \"{theirs}\"
               [neighbors.ttl-security.config]
                 enabled = {ttl_security}
                 ttl-min = 255
               [neighbors.graceful-restart.config]
                 enabled = true
                 restart-time = {}
            ",
            !connects,
            setup.restart.map_or(60, |restart| restart.time),
        );
        if setup.restart.is_some() {
            config += "notification-enabled = true\n";
            if setup.restart.is_some_and(|restart| restart.stale_time > 0) {
                config += "long-lived-enabled = true\n";
            }
        }
        for family in ["ipv4-unicast", "ipv6-unicast"] {
            config += &format!(
                "[[neighbors.afi-safis]]
                   [neighbors.afi-safis.config]
                     afi-safi-name = \"{family}\"
                   [neighbors.afi-safis.mp-graceful-restart.config]
                     enabled = true
                "
            );
            if setup.add_paths {
                config += "[neighbors.afi-safis.add-paths.config]
                             receive = true
                             send-max = 8
                          ";
            }
            if let Some(Restart { stale_time: time @ 1.., .. }) = setup.restart {
                config += &format!(
                    "[neighbors.afi-safis.long-lived-graceful-restart.config]
                       enabled = true
                       restart-time = {time}
                    "
                );
            }
        }
        for (feeder, _, asn) in FEEDERS.into_iter().filter(|_| setup.add_paths) {
            config += &format!(
                "[[neighbors]]
                   [neighbors.config]
                     neighbor-address = \"{feeder}\"
                     peer-as = {asn}
                   [neighbors.transport.config]
                     passive-mode = true
                   [[neighbors.afi-safis]]
                     [neighbors.afi-safis.config]
                       afi-safi-name = \"ipv4-unicast\"
                   [[neighbors.afi-safis]]
                     [neighbors.afi-safis.config]
                       afi-safi-name = \"ipv6-unicast\"
                "
            );
        }
        let config = lab.write("gobgpd.toml", &config);
        let api = format!("--api-hosts={}", target(lab));
        // A socket that an earlier life has left would be in its way.
        let program = format!(
            "rm -f {}; exec gobgpd --config-file {config} {api} --pprof-disable --log-plain",
            lab.path("gobgp.sock")
        );
        lab.start(&["sh", "-c", &program]);
        for prefix in setup.announced() {
            let family = if prefix.contains(':') { "ipv6" } else { "ipv4" };
            for _ in 0..100 {
                if gobgp(lab, &format!("global rib -a {family}")).contains(prefix) {
                    break;
                }
                thread::sleep(Duration::from_millis(50));
                gobgp(lab, &format!("global rib add {prefix} -a {family}"));
            }
        }
    }

    fn is_established(&self, lab: &Lab, setup: &Setup) -> bool {
        // SESSION_STATE of its API.
        json(lab, &format!("neighbor {}", setup.ours))["state"]["session_state"] == 6
    }

    fn route(&self, lab: &Lab, setup: &Setup, prefix: IpNet) -> Option<Route> {
        let family = if prefix.addr().is_ipv4() { "ipv4" } else { "ipv6" };
        let answer = json(lab, &format!("global rib {prefix} -a {family}"));
        let path = answer.get(prefix.to_string())?.get(0)?;
        let attribute = |code: u64| path["attrs"].as_array()?.iter().find(|a| a["type"] == code);
        let segments = attribute(2).and_then(|path| path["as_paths"].as_array());
        let number = |value: &Value| value.as_u64().map(|n| u32::try_from(n).unwrap());
        let large = attribute(32).and_then(|list| list["value"].as_array()).into_iter().flatten();
        let large = large.map(|c| LargeCommunity {
            global: number(&c["ASN"]).unwrap(),
            data1: number(&c["LocalData1"]).unwrap(),
            data2: number(&c["LocalData2"]).unwrap(),
        });
        Some(Route {
            next_hop: attribute(3).or_else(|| attribute(14))?["nexthop"].as_str()?.parse().ok()?,
            as_path: segments.into_iter().flatten().flat_map(|segment| numbers(&segment["asns"])).collect(),
            local_pref: attribute(5).and_then(|a| number(&a["value"])).filter(|_| setup.is_ibgp()),
            med: attribute(4).and_then(|a| number(&a["metric"])),
            communities: attribute(8)
                .map(|a| numbers(&a["communities"]).into_iter().map(Community).collect())
                .unwrap_or_default(),
            large_communities: large.collect(),
        })
    }

    fn ask_refresh(&self, _: &Lab, _: &Setup) {
        unreachable!("it keeps all that it was sent, and never asks");
    }

    fn shut_down(&self, lab: &Lab, setup: &Setup, message: &str) -> String {
        gobgp(lab, &format!("neighbor {} shutdown --reason {message}", setup.ours));
        format!("peer sent NOTIFICATION: Cease/Administrative Shutdown: \"{message}\"")
    }

    fn was_told(&self, lab: &Lab, setup: &Setup, event: Told) -> bool {
        match event {
            // Of a hard reset it does not tell what that is for.
            Told::Shutdown => {
                let log = lab.read("log");
                ["administrative shutdown", "Reason=hard-reset"].iter().any(|text| log.contains(text))
            }
            // Before a session stands it only counts them.
            Told::WrongAsn => {
                let neighbor = json(lab, &format!("neighbor {}", setup.ours));
                neighbor["state"]["messages"]["received"]["notification"].as_u64() > Some(0)
            }
        }
    }

    fn describe(&self, lab: &Lab, setup: &Setup) -> String {
        let session = gobgp(lab, &format!("neighbor {}", setup.ours));
        session + &gobgp(lab, "global rib -a ipv4") + &gobgp(lab, "global rib -a ipv6")
    }

    fn has_enhanced_refresh(&self) -> bool {
        false
    }

    fn keeps_next_hops(&self, setup: &Setup) -> bool {
        setup.is_ibgp()
    }
}

fn target(lab: &Lab) -> String {
    format!("unix://{}", lab.path("gobgp.sock"))
}

fn gobgp(lab: &Lab, command: &str) -> String {
    let target = target(lab);
    let mut program = vec!["gobgp", "--target", &target];
    program.extend(command.split_whitespace());
    lab.ask(&program)
}

/// What is no JSON is null: gobgpd may not be there yet.
fn json(lab: &Lab, command: &str) -> Value {
    serde_json::from_str(&gobgp(lab, &format!("{command} -j"))).unwrap_or_default()
}
