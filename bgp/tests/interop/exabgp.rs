//! ExaBGP. It has no table, and so keeps nothing over a restart of ours: what it tells its helper process makes a table here.
//! Connections that it takes have the kernel's TTL until they stand, so that TTL security works on those alone that it makes.

use std::collections::BTreeMap;
use std::fs;

use ipnet::IpNet;
use serde_json::Value;
use sheave_bgp::{Community, LargeCommunity};

use crate::OUR_ASN;
use crate::daemon::{Daemon, FED, FEEDERS, Route, Setup, Told, numbers};
use crate::lab::Lab;

/// ExaBGP.
pub(crate) struct ExaBgp;

cells! { ExaBgp:
    routes: every
    route_refresh: every
    peer_restart_reconnects: every
    passwords: every
    ttl_security: passive
    ttl_security_of_one_side: ebgp
    short_hold_time: ebgp
    no_hold_time: ebgp
    why_the_peer_leaves: every
    several_paths: every
    wrong_asn_is_told: every
}

/// Its helper process: commands come by a FIFO, what it tells goes to a file, and both end with it.
const HELPER: &str = "exec 3<>commands; cat <&3 & cat >received; kill $!\n";

impl Daemon for ExaBgp {
    fn programs(&self) -> &'static [&'static str] {
        &["exabgp"]
    }

    fn start(&self, lab: &mut Lab, setup: &Setup) {
        let mut routes = String::new();
        if setup.add_paths {
            for (id, (v4, v6, _)) in (1..).zip(FEEDERS) {
                for (prefix, next_hop) in FED.into_iter().zip([v4, v6]) {
                    routes += &format!("route {prefix} next-hop {next_hop} path-information {id};");
                }
            }
        }
        start_with(lab, setup, &routes);
    }

    fn is_established(&self, lab: &Lab, _: &Setup) -> bool {
        let states = told(lab).filter(|event| event["type"] == "state");
        states.last().is_some_and(|event| event["neighbor"]["state"] == "up")
    }

    fn route(&self, lab: &Lab, _: &Setup, prefix: IpNet) -> Option<Route> {
        table(lab).remove(&prefix)
    }

    fn ask_refresh(&self, lab: &Lab, _: &Setup) {
        command(lab, "announce route-refresh ipv4 unicast");
        command(lab, "announce route-refresh ipv6 unicast");
    }

    fn shut_down(&self, lab: &Lab, setup: &Setup, _: &str) -> String {
        // With graceful restart it closes without a NOTIFICATION.
        command(lab, &format!("neighbor {} teardown 2", setup.ours));
        "connection closed".to_owned()
    }

    fn was_told(&self, lab: &Lab, setup: &Setup, event: Told) -> bool {
        (self.describe(lab, setup) + &lab.read("log")).contains(match event {
            Told::Shutdown => "Administrative Shutdown",
            Told::WrongAsn => "Bad Peer AS",
        })
    }

    fn describe(&self, lab: &Lab, _: &Setup) -> String {
        lab.read("received")
    }

    fn has_enhanced_refresh(&self) -> bool {
        true
    }
}

/// Starts it with `routes` beside those of [`Setup::announced`], in its own syntax.
pub(crate) fn start_with(lab: &mut Lab, setup: &Setup, routes: &str) {
    let Setup { ours, theirs, asn, hold_time, connects, .. } = setup;
    let mut options = String::new();
    if let Some(password) = setup.password {
        options += &format!("md5-password \"{password}\";");
    }
    let add_path = if setup.add_paths { "add-path send/receive;" } else { "" };
    if setup.ttl_security {
        options += "outgoing-ttl 255; incoming-ttl 255;";
    }
    let routes = setup.announced().map(|prefix| format!("route {prefix} next-hop self;")).concat() + routes;
    let helper = lab.write("helper.sh", &format!("cd {}; {HELPER}", lab.path("")));
    let config = lab.write(
        "exabgp.conf",
        &format!(
            "process helper {{ run /bin/sh {helper}; encoder json; }}
             neighbor {ours} {{
               router-id 10.0.0.2;
               local-address {theirs}; local-as {asn}; peer-as {OUR_ASN};
               hold-time {hold_time};
               passive {};
               {options}
               family {{ ipv4 unicast; ipv6 unicast; }}
               capability {{ graceful-restart 60; route-refresh enable; {add_path} }}
               static {{ {routes} }}
               api {{ processes [ helper ]; neighbor-changes;
                 receive {{ parsed; update; notification; }} send {{ parsed; notification; }} }}
             }}",
            !connects
        ),
    );
    let fifo = lab.path("commands");
    if !fs::exists(&fifo).unwrap() {
        lab.ask(&["mkfifo", &fifo]);
    }
    let bind = format!("exabgp.tcp.bind={theirs}");
    let environment =
        ["env", &bind, "exabgp.daemon.user=root", "exabgp.daemon.drop=false", "exabgp.api.cli=false"];
    lab.start(&[&environment[..], &["exabgp", &config]].concat());
}

/// Gives it a command of its API.
pub(crate) fn command(lab: &Lab, text: &str) {
    fs::write(lab.path("commands"), format!("{text}\n")).unwrap();
}

/// What it has told since it started.
fn told(lab: &Lab) -> impl Iterator<Item = Value> {
    let lines: Vec<Value> =
        lab.read("received").lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    lines.into_iter()
}

fn table(lab: &Lab) -> BTreeMap<IpNet, Route> {
    let mut table = BTreeMap::new();
    for event in told(lab) {
        if event["type"] == "state" {
            table.clear();
        }
        let update = &event["neighbor"]["message"]["update"];
        let families = |field: &str| update[field].as_object().cloned().unwrap_or_default();
        for prefixes in families("withdraw").values() {
            for nlri in prefixes.as_array().unwrap() {
                table.remove(&nlri["nlri"].as_str().unwrap().parse().unwrap());
            }
        }
        for next_hops in families("announce").values() {
            for (next_hop, prefixes) in next_hops.as_object().unwrap() {
                for nlri in prefixes.as_array().into_iter().flatten() {
                    let prefix = nlri["nlri"].as_str().unwrap().parse().unwrap();
                    table.insert(prefix, route(next_hop, &update["attribute"]));
                }
            }
        }
    }
    table
}

fn route(next_hop: &str, attributes: &Value) -> Route {
    let number = |name: &str| attributes[name].as_u64().map(|n| u32::try_from(n).unwrap());
    let lists =
        |name: &str| attributes[name].as_array().into_iter().flatten().map(numbers).collect::<Vec<_>>();
    Route {
        next_hop: next_hop.parse().unwrap(),
        as_path: numbers(&attributes["as-path"]),
        local_pref: number("local-preference"),
        med: number("med"),
        communities: lists("community").iter().map(|c| Community(c[0] << 16 | c[1])).collect(),
        large_communities: lists("large-community")
            .iter()
            .map(|c| LargeCommunity { global: c[0], data1: c[1], data2: c[2] })
            .collect(),
    }
}
