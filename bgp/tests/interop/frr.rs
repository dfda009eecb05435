//! FRR: `bgpd` alone, without zebra.
//!
//! It tries to connect to a peer that restarts only once (`PEER_STATUS_NSF_WAIT`): whether that succeeds is a matter of
//! luck, so that restarts are tried with us as the one who connects.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use crate::OUR_ASN;
use crate::daemon::{Daemon, FEEDERS, Restart, Route, Setup, Told, numbers};
use crate::lab::Lab;

/// FRR.
pub(crate) struct Frr;

cells! { Frr:
    routes: every
    route_refresh: every
    graceful_restart_keeps_routes: active
    cold_start_sweeps_at_once: active
    peer_restart_reconnects: every
    passwords: every
    ttl_security: every
    ttl_security_of_one_side: ebgp
    short_hold_time: ebgp
    no_hold_time: ebgp
    why_the_peer_leaves: every
    notifications_keep_routes: every
    several_paths: every
    away_for_long: active
    wrong_asn_is_told: every
    collision: active
}

impl Daemon for Frr {
    fn programs(&self) -> &'static [&'static str] {
        &["../lib/frr/bgpd", "vtysh"]
    }

    fn start(&self, lab: &mut Lab, setup: &Setup) {
        let Setup { ours, asn, hold_time, .. } = setup;
        let neighbor = format!(" neighbor {ours}");
        let keepalive = hold_time / 3;
        let mut options = vec![
            format!("remote-as {OUR_ASN}"),
            format!("timers {keepalive} {hold_time}"),
            "timers connect 1".to_owned(),
        ];
        if !setup.connects {
            options.push("passive".to_owned());
        }
        if setup.ttl_security {
            options.push("ttl-security hops 1".to_owned());
        }
        let mut global = String::new();
        if let Some(Restart { time, stale_time }) = setup.restart {
            options.push("graceful-restart".to_owned());
            global += &format!(
                " bgp graceful-restart restart-time {time}\n bgp graceful-restart preserve-fw-state\n"
            );
            global += " bgp graceful-restart notification\n";
            if stale_time > 0 {
                global += &format!(" bgp long-lived-graceful-restart stale-time {stale_time}\n");
            }
        }
        if let Some(password) = setup.password {
            options.push(format!("password {password}"));
        }
        let options: String = options.iter().map(|option| format!("{neighbor} {option}\n")).collect();
        let networks: String = setup.announced().map(|prefix| format!("  network {prefix}\n")).concat();
        let mut of_family = format!(" {neighbor} activate\n");
        if setup.add_paths {
            of_family += &format!(" {neighbor} addpath-tx-all-paths\n");
            for (feeder, _, asn) in FEEDERS {
                global += &format!(" neighbor {feeder} remote-as {asn}\n neighbor {feeder} passive\n");
                of_family += &format!("  neighbor {feeder} activate\n");
            }
        }
        let family = |name: &str, networks: &str| {
            format!(" address-family {name} unicast\n{networks}{of_family} exit-address-family\n")
        };
        let families = match ours {
            IpAddr::V4(_) => family("ipv4", &networks) + &family("ipv6", ""),
            IpAddr::V6(_) => family("ipv4", "") + &family("ipv6", &networks),
        };
        let config = lab.write(
            "frr.conf",
            &format!(
                "debug bgp neighbor-events\nrouter bgp {asn}\n bgp router-id 10.0.0.2\n no bgp ebgp-requires-policy\n no bgp network \
                 import-check\n no bgp default ipv4-unicast\n{global}{options}{families}"
            ),
        );
        let (directory, pid) = (lab.path(""), lab.path("frr.pid"));
        let program = ["/usr/lib/frr/bgpd", "--no_zebra", "--no_kernel", "--skip_runas", "--vty_port", "0"];
        let files =
            ["--config_file", &config, "--pid_file", &pid, "--vty_socket", &directory, "--log", "stdout"];
        lab.start(&[&program[..], &files].concat());
    }

    fn is_established(&self, lab: &Lab, setup: &Setup) -> bool {
        json(lab, &format!("show bgp neighbors {} json", setup.ours))[setup.ours.to_string()]["bgpState"]
            == "Established"
    }

    fn route(&self, lab: &Lab, setup: &Setup, prefix: IpNet) -> Option<Route> {
        let family = if prefix.addr().is_ipv4() { "ipv4" } else { "ipv6" };
        let answer = json(lab, &format!("show bgp {family} unicast {prefix} json"));
        let path = answer["paths"].get(0)?;
        let segments = path["aspath"]["segments"].as_array()?;
        let number = |name: &str| path[name].as_u64().map(|n| n.try_into().unwrap());
        let list = |name: &str| {
            let text = path[name]["string"].as_str().unwrap_or_default();
            text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        Some(Route {
            next_hop: path["nexthops"][0]["ip"].as_str()?.parse().ok()?,
            as_path: segments.iter().flat_map(|segment| numbers(&segment["list"])).collect(),
            local_pref: number("locPrf").filter(|_| setup.is_ibgp()),
            med: number("metric"),
            communities: list("community").iter().map(|c| c.parse().unwrap()).collect(),
            large_communities: list("largeCommunity").iter().map(|c| c.parse().unwrap()).collect(),
        })
    }

    fn ask_refresh(&self, lab: &Lab, setup: &Setup) {
        for family in ["ipv4", "ipv6"] {
            vtysh(lab, &[&format!("clear bgp {family} unicast {} soft in", setup.ours)]);
        }
    }

    fn shut_down(&self, lab: &Lab, setup: &Setup, message: &str) -> String {
        let shutdown = format!("neighbor {} shutdown message {message}", setup.ours);
        vtysh(lab, &["configure terminal", &format!("router bgp {}", setup.asn), &shutdown]);
        format!("peer sent NOTIFICATION: Cease/Administrative Shutdown: \"{message}\"")
    }

    fn was_told(&self, lab: &Lab, setup: &Setup, event: Told) -> bool {
        (self.describe(lab, setup) + &lab.read("log")).contains(match event {
            Told::Shutdown => "Administrative Shutdown",
            Told::WrongAsn => "Bad Peer AS",
        })
    }

    fn describe(&self, lab: &Lab, setup: &Setup) -> String {
        vtysh(lab, &[&format!("show bgp neighbors {}", setup.ours), "show bgp ipv4", "show bgp ipv6"])
    }

    fn has_enhanced_refresh(&self) -> bool {
        true
    }

    /// Without zebra it does not know who is on the link.
    fn keeps_next_hops(&self, setup: &Setup) -> bool {
        setup.is_ibgp()
    }
}

pub(crate) fn vtysh(lab: &Lab, commands: &[&str]) -> String {
    let directory = lab.path("");
    let mut program = vec!["vtysh", "--vty_socket", &directory, "-d", "bgpd"];
    program.extend(commands.iter().flat_map(|command| ["-c", command]));
    lab.ask(&program)
}

/// What is no JSON is null: bgpd may not be there yet.
fn json(lab: &Lab, command: &str) -> Value {
    serde_json::from_str(&vtysh(lab, &[command])).unwrap_or_default()
}
