//! The config file.

use std::path::Path;
use std::time::Duration;

use sheave::config::{
    Bfd, Config, ForwardingTo, ImportTo, MarkMask, OnExit, PeerAsn, Role, VirtualServerMetrics,
};
use sheave::plan::{AnnouncementKind, Forwarding, Scheduler};
use sheave_bgp::{
    Community, ExportPolicy, ImportPolicy, LargeCommunity, LimitAction, MaxPrefixes, PrefixFilter,
};

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("sheave.yaml"), text).map_err(|error| error.to_string())
}

/// Every key of the documented schema.
const EVERYTHING: &str = "
router: {asn: 64512, routerId: auto, listen: {port: 179}, gracefulRestart: {restartTime: 120s, longLived: {staleTime: 1h}},
  peers: [{address: 10.0.0.1, asn: 65001, port: 179, localAddress: null, passwordFile: null, multihop: null, ttlSecurity: null, holdTime: 90s,
           bfd: {transmitInterval: 300ms, receiveInterval: 300ms, detectMultiplier: 3, multihop: null, passive: false, keys: [{id: 1, algorithm: meticulous-sha1, file: /k}]},
           nextHop: self, families: [ipv4, ipv6], import: none, export: all}],
  dynamicPeers: [{prefix: 10.0.0.0/24, asn: 65001}], import: {table: 254, onExit: keep},
  bmp: [{address: 10.0.0.9, port: 11019, statisticsInterval: 60s, queueKiB: 8192, tables: [locRib, adjRibOut]}]}
announce: {clusterIPs: false, externalIPs: true, loadBalancerIPs: true, podCIDRs: false, kernelTables: [], aggregate: [], communities: []}
services: {forwarding: tunnel, encapsulation: ipip, acceptance: node, serviceCIDRs: [], nodePortAddresses: [primary],
  scheduler: {external: mh, internal: rr}, externalIPs: {allow: []}, markMask: 0x3fff}
observe: {metrics: \"0.0.0.0:10249\", health: \"0.0.0.0:10256\", virtualServerMetrics: annotated,
  virtualServerMetricsLimit: 2000, status: /run/sheave/status.sock}
drain: {annotation: true, taints: [], wait: 5s, limit: 1m}
";

#[test]
fn every_key_parses() {
    let config = parse(EVERYTHING).unwrap();
    let peer = &config.router.peers[0];
    assert_eq!(config.router.asn, Some(64512));
    assert_eq!((peer.asn, peer.hold_time), (PeerAsn::Number(65001), Duration::from_secs(90)));
    let keys = peer.bfd.as_ref().unwrap().keys.clone();
    assert_eq!(peer.bfd, Some(Bfd { keys, ..Bfd::default() }));
    let long_lived = config.router.graceful_restart.and_then(|graceful| graceful.long_lived);
    assert_eq!(long_lived.map(|long_lived| long_lived.stale_time), Some(Duration::from_secs(3600)));
}

#[test]
fn the_schema_shows_the_defaults() {
    let mut config = parse(EVERYTHING).unwrap();
    config.router = Config::default().router;
    assert_eq!(config, Config::default());
    assert_eq!(MarkMask::default().mask(), 0x3fff);
    for nothing in ["", "# nothing\n", "---\n", "{}"] {
        assert_eq!(parse(nothing).unwrap(), Config::default(), "{nothing:?}");
    }
}

#[test]
fn listeners_are_addresses_or_off() {
    for (text, metrics) in [
        ("{}", Ok(Some("0.0.0.0:10249"))),
        ("{metrics: '127.0.0.1:9090'}", Ok(Some("127.0.0.1:9090"))),
        ("{metrics: '[::1]:9090'}", Ok(Some("[::1]:9090"))),
        ("{metrics: ''}", Ok(None)),
        ("{metrics: null}", Ok(None)),
        ("{metrics: 10249}", Err("`10249` is not an address with a port")),
        ("{metrics: localhost:1}", Err("`localhost:1` is not an address with a port")),
    ] {
        let parsed = parse(&format!("observe: {text}"))
            .map(|config| config.observe.metrics.map(|address| address.to_string()));
        match metrics {
            Ok(expected) => assert_eq!(parsed.unwrap().as_deref(), expected, "{text}"),
            Err(expected) => {
                let error = parsed.unwrap_err();
                assert!(error.contains(expected) && error.contains("observe.metrics"), "{text}: {error}");
            }
        }
    }
    let off = parse("observe: {virtualServerMetrics: off, virtualServerMetricsLimit: 0}").unwrap().observe;
    assert_eq!(
        (off.virtual_server_metrics, off.virtual_server_metrics_limit),
        (VirtualServerMetrics::Off, 0)
    );
}

#[test]
fn bfd_of_peers() {
    let parse_bfd =
        |bfd: &str| parse(&format!("router: {{asn: 1, peers: [{{address: 10.0.0.1, asn: 1, bfd: {bfd}}}]}}"));
    for (text, words) in [
        ("{}", "300ms 300ms 3 []"),
        ("{transmitInterval: 50ms, receiveInterval: 1s, detectMultiplier: 5}", "50ms 1s 5 []"),
        ("{keys: [{id: 7, file: /k}]}", "300ms 300ms 3 [7 MeticulousSha1 file /k]"),
        (
            "{keys: [{id: 0, algorithm: simple, secret: {name: sheave-bgp, key: bfd}}, {id: 255, algorithm: md5, file: /k}]}",
            "300ms 300ms 3 [0 Simple Secret sheave-bgp (key bfd), 255 Md5 file /k]",
        ),
    ] {
        let bfd = parse_bfd(text).unwrap().router.peers[0].bfd.clone().unwrap();
        let keys = bfd.keys.iter().map(|key| format!("{} {:?} {}", key.id, key.algorithm, key.source));
        let written = format!(
            "{:?} {:?} {} [{}]",
            bfd.transmit_interval,
            bfd.receive_interval,
            bfd.detect_multiplier,
            keys.collect::<Vec<_>>().join(", ")
        );
        assert_eq!(written, words, "{text}");
    }
    for (text, field, wrong) in [
        ("{transmitInterval: 9ms}", "bfd.transmitInterval", "an interval of BFD is 10ms to 60s"),
        ("{receiveInterval: 61s}", "bfd.receiveInterval", "an interval of BFD is 10ms to 60s"),
        ("{detectMultiplier: 0}", "bfd.detectMultiplier", "1 to 255"),
        ("{keys: [{id: 256, file: /k}]}", "bfd.keys[0].id", "a number of 0 to 255"),
        ("{keys: [{id: 1}]}", "bfd.keys", "give its `file` or its `secret`"),
        ("{keys: [{id: 1, file: /k, secret: {name: s}}]}", "bfd.keys", "give one of them"),
        ("{keys: [{id: 1, file: /k}, {id: 1, file: /l}]}", "bfd.keys", "id 1 is listed twice"),
        ("{keys: [{id: 1, algorithm: sha256, file: /k}]}", "bfd.keys", "`sha256` is not one of simple, md5"),
        ("{keys: [{id: 1, key: secret!}]}", "bfd.keys", "unknown field"),
    ] {
        let error = parse_bfd(text).unwrap_err();
        assert!(
            error.contains(wrong) && error.contains(field) && error.starts_with("sheave.yaml:1:"),
            "{text}: {error}"
        );
        assert!(!error.contains("secret!"), "{error}");
    }
    let error =
        parse("router: {asn: 1, peers: [{interface: eth1, asn: 1, bfd: {multihop: true}}]}").unwrap_err();
    assert!(error.contains("bfd.multihop") && error.contains("leave it out"), "{error}");
    let text = "router: {asn: 1, dynamicPeers: [{prefix: 10.0.0.0/24, asn: 1, bfd: {}}], mesh: {bfd: {detectMultiplier: 5}}}";
    let router = parse(text).unwrap().router;
    assert_eq!(router.dynamic_peers[0].template().bfd, Some(Bfd::default()));
    assert_eq!(router.mesh.unwrap().bfd.unwrap().detect_multiplier, 5);
}

/// As BIRD and FRR choose, which use another port then.
#[test]
fn bfd_is_over_as_many_hops_as_the_session() {
    for (peer, multihop) in [
        ("address: 10.0.0.1, asn: 2, bfd: {}", false),
        ("address: 10.0.0.1, asn: external, bfd: {}", false),
        ("address: 10.0.0.1, asn: 1, bfd: {}", true),
        ("address: 10.0.0.1, asn: internal, bfd: {}", true),
        ("address: 10.0.0.1, asn: 1, bfd: {multihop: false}", false),
        ("address: 10.0.0.1, asn: 2, multihop: 3, bfd: {}", true),
        ("address: 10.0.0.1, asn: 2, ttlSecurity: 1, bfd: {}", false),
        ("address: 10.0.0.1, asn: 2, ttlSecurity: 2, bfd: {}", true),
        ("address: 10.0.0.1, asn: 2, bfd: {multihop: true}", true),
        ("address: 'fe80::1', interface: eth1, asn: 1, bfd: {}", false),
        ("interface: eth1, asn: internal, bfd: {}", false),
    ] {
        let config = parse(&format!("router: {{asn: 1, peers: [{{{peer}}}]}}")).unwrap();
        let peer = &config.router.peers[0];
        assert_eq!(peer.has_multihop_bfd(peer.bfd.as_ref().unwrap(), Some(1)), multihop, "{peer:?}");
    }
}

#[test]
fn a_bmp_station_needs_an_address() {
    let short = parse("router: {bmp: [{address: 10.0.0.9}]}").unwrap();
    assert_eq!(short.router.bmp, parse(EVERYTHING).unwrap().router.bmp);
}

#[test]
fn a_peer_needs_little() {
    let config = parse("router:\n  asn: 1\n  peers:\n  - address: fd00::1\n    asn: 1\n").unwrap();
    let peer = &config.router.peers[0];
    assert_eq!((peer.port, peer.hold_time, peer.families.len()), (179, Duration::from_secs(90), 2));
    assert_eq!(
        (peer.send_hold_time, peer.delay_open, peer.role, peer.require_role),
        (None, None, None, false)
    );
    for (text, role) in [("rs-client", Role::RsClient), ("rs", Role::Rs), ("customer", Role::Customer)] {
        let text = format!("router: {{asn: 1, peers: [{{address: 10.0.0.1, asn: 2, role: {text}}}]}}");
        assert_eq!(parse(&text).unwrap().router.peers[0].role, Some(role));
    }
    for (text, name, extended) in [
        ("address: 'fd00::1'", "fd00::1", false),
        ("address: 'fd00::1', extendedNextHop: true", "fd00::1", true),
        ("address: 'fe80::1', interface: eth0", "fe80::1%eth0", true),
        ("address: 'fe80::1', interface: eth0, extendedNextHop: false", "fe80::1%eth0", false),
        ("interface: eth0", "eth0", true),
        ("interface: eth0, extendedNextHop: false", "eth0", false),
        ("address: default-gateway-ipv4", "default-gateway-ipv4", false),
        ("address: default-gateway-ipv6", "default-gateway-ipv6", false),
    ] {
        let config = parse(&format!("router: {{asn: 1, peers: [{{asn: 1, {text}}}]}}")).unwrap();
        let peer = &config.router.peers[0];
        assert_eq!((peer.name().as_str(), peer.extends_next_hop()), (name, extended), "{text}");
    }
    for (text, asn, number) in [
        ("65001", PeerAsn::Number(65001), Some(65001)),
        ("'65001'", PeerAsn::Number(65001), Some(65001)),
        ("external", PeerAsn::External, None),
        ("internal", PeerAsn::Internal, Some(1)),
    ] {
        let config =
            parse(&format!("router: {{asn: 1, peers: [{{interface: eth0, asn: {text}}}]}}")).unwrap();
        let read = config.router.peers[0].asn;
        assert_eq!((read, read.number(config.router.asn)), (asn, number), "{text}");
    }
    assert_eq!(
        parse("services: {scheduler: {internal: wlc}}").unwrap().services.scheduler.internal,
        Scheduler::Wlc
    );
}

fn import(text: &str) -> Result<Option<ImportPolicy>, String> {
    let text = format!("router: {{asn: 1, peers: [{{address: 10.0.0.1, asn: 2, import: {text}}}]}}");
    parse(&text).map(|config| config.router.peers[0].import.clone())
}

#[test]
fn imports() {
    let range = |within: &str, min_length, max_length| PrefixFilter {
        within: within.parse().unwrap(),
        min_length,
        max_length,
    };
    let policy = |prefixes: &[PrefixFilter], limit: Option<(usize, usize, LimitAction)>| {
        let max_prefixes = limit.map(|(limit, warn_at, action)| MaxPrefixes { limit, warn_at, action });
        Some(ImportPolicy { prefixes: prefixes.into(), max_prefixes })
    };
    let restart = |seconds| LimitAction::Restart(Duration::from_secs(seconds));
    let default = range("0.0.0.0/0", 0, 0);
    for (text, expected) in [
        ("none", None),
        ("null", None),
        ("{prefixes: [0.0.0.0/0]}", policy(&[default], None)),
        (
            "{prefixes: [10.1.2.3/8, 'fd00::/8', {prefix: 10.0.0.0/8, le: 24}, {prefix: 10.0.0.0/8, ge: 16}]}",
            policy(
                &[
                    range("10.0.0.0/8", 8, 8),
                    range("fd00::/8", 8, 8),
                    range("10.0.0.0/8", 8, 24),
                    range("10.0.0.0/8", 16, 32),
                ],
                None,
            ),
        ),
        (
            "{prefixes: [{prefix: '2001:db8::/32', ge: 48, le: 64}]}",
            policy(&[range("2001:db8::/32", 48, 64)], None),
        ),
        ("{prefixes: [0.0.0.0/0], maxPrefixes: 10}", policy(&[default], Some((10, 8, restart(300))))),
        (
            "{prefixes: [0.0.0.0/0], maxPrefixes: {limit: 10, warnAt: 50, idleHold: 30s}}",
            policy(&[default], Some((10, 5, restart(30)))),
        ),
        (
            "{prefixes: [0.0.0.0/0], maxPrefixes: {limit: 10, action: warn}}",
            policy(&[default], Some((10, 8, LimitAction::Warn))),
        ),
        (
            "{prefixes: [0.0.0.0/0], maxPrefixes: {limit: 10, action: tearDown}}",
            policy(&[default], Some((10, 8, LimitAction::TearDown))),
        ),
    ] {
        assert_eq!(import(text).as_ref(), Ok(&expected), "{text}");
    }
    for (text, field, remedy) in [
        ("all", "import", "`all` is neither `none` nor a map such as {prefixes: [10.0.0.0/8]}"),
        ("{prefixes: []}", "import", "write `import: none`"),
        ("{maxPrefixes: 3}", "import", "prefixes"),
        ("{prefix: [10.0.0.0/8]}", "import.prefix", "unknown field `prefix`"),
        ("{prefixes: [10.0.0.0/33]}", "import.prefixes[0]", "is not a CIDR such as"),
        ("{prefixes: [10.0.0.0/8, {prefix: ten}]}", "import.prefixes[1].prefix", "is not a CIDR such as"),
        ("{prefixes: [{prefix: 10.0.0.0/8, ge: 4}]}", "import.prefixes[0]", "it takes 8 <= ge <= le <= 32"),
        ("{prefixes: [{prefix: 10.0.0.0/8, ge: 20, le: 16}]}", "import.prefixes[0]", "8 <= ge <= le <= 32"),
        ("{prefixes: [{prefix: 10.0.0.0/8, le: 64}]}", "import.prefixes[0]", "8 <= ge <= le <= 32"),
        ("{prefixes: [10.0.0.0/8], maxPrefixes: 0}", "import.maxPrefixes", "use `import: none`"),
        ("{prefixes: [10.0.0.0/8], maxPrefixes: many}", "import.maxPrefixes", "is not a number of prefixes"),
        ("{prefixes: [10.0.0.0/8], maxPrefixes: {limit: 5, warnAt: 120}}", "import.maxPrefixes", "1 to 100"),
        (
            "{prefixes: [10.0.0.0/8], maxPrefixes: {limit: 5, action: drop}}",
            "import.maxPrefixes.action",
            "expected one of warn, restart, tearDown",
        ),
        (
            "{prefixes: [10.0.0.0/8], maxPrefixes: {limit: 5, action: warn, idleHold: 3s}}",
            "import.maxPrefixes",
            "goes with `action: restart` alone",
        ),
        (
            "{prefixes: [10.0.0.0/8], maxPrefixes: {limit: 5, idleHold: 0s}}",
            "import.maxPrefixes.idleHold",
            "held down for 1s to 24h",
        ),
        (
            "{prefixes: [10.0.0.0/8], maxPrefixes: {limit: 5, idleHold: 584years}}",
            "import.maxPrefixes.idleHold",
            "write `action: tearDown`",
        ),
    ] {
        let error = import(text).unwrap_err();
        let place = format!("sheave.yaml:1: router.peers[0].{field}: ");
        assert!(error.starts_with(&place) && error.contains(remedy), "{text}: {error}");
    }

    let to = |text: &str| parse(&format!("router: {text}")).map(|config| config.router.import);
    assert_eq!(to("{}"), Ok(ImportTo { table: 254, on_exit: OnExit::Keep }));
    let elsewhere = ImportTo { table: 100, on_exit: OnExit::Remove };
    assert_eq!(to("{import: {table: 100, onExit: remove}}"), Ok(elsewhere));
    for text in
        ["{import: {table: 0}}", "{import: {table: 255}}", "{import: {table: 9}}\nannounce: {exportTable: 9}"]
    {
        let error = to(text).unwrap_err();
        assert!(error.contains("router.import.table: ") && error.contains("take 254 (main)"), "{error}");
    }
}

fn export(text: &str) -> Result<ExportPolicy, String> {
    let peer = format!("router: {{asn: 1, peers: [{{address: 10.0.0.1, asn: 2, export: {text}}}]}}");
    let range =
        format!("router: {{asn: 1, dynamicPeers: [{{prefix: 10.0.0.0/24, asn: 2, export: {text}}}]}}");
    let of_peer = parse(&peer).map(|config| config.router.peers[0].export.clone());
    // Ranges have the same.
    let of_range = parse(&range).map(|config| config.router.dynamic_peers[0].template().export);
    assert_eq!(of_range, of_peer.clone().map_err(|error| error.replace("peers[0]", "dynamicPeers[0]")));
    of_peer
}

#[test]
fn exports() {
    let all = ExportPolicy::default();
    let exactly = |prefix: &str| PrefixFilter::exactly(prefix.parse().unwrap());
    for (text, expected) in [
        ("all", all.clone()),
        ("null", all.clone()),
        ("{}", all.clone()),
        ("none", ExportPolicy { kinds: Some([].into()), ..all.clone() }),
        (
            "{prefixes: [192.0.2.0/24, {prefix: 10.0.0.0/8, le: 32}]}",
            ExportPolicy {
                prefixes: Some(vec![
                    exactly("192.0.2.0/24"),
                    PrefixFilter { max_length: 32, ..exactly("10.0.0.0/8") },
                ]),
                ..all.clone()
            },
        ),
        (
            "{kinds: [LoadBalancerIP, Aggregate]}",
            ExportPolicy {
                kinds: Some(
                    [AnnouncementKind::LoadBalancerIP.number(), AnnouncementKind::Aggregate.number()].into(),
                ),
                ..all.clone()
            },
        ),
        (
            "{communities: ['64512:1', no-export, '64512:1:2'], localPref: 50, med: 0, asPathPrepend: 2}",
            ExportPolicy {
                communities: [Community(64512 << 16 | 1), Community::NO_EXPORT].into(),
                large_communities: [LargeCommunity { global: 64512, data1: 1, data2: 2 }].into(),
                local_pref: Some(50),
                med: Some(0),
                as_path_prepend: 2,
                ..all
            },
        ),
    ] {
        assert_eq!(export(text).as_ref(), Ok(&expected), "{text}");
    }
    for (text, field, remedy) in [
        ("some", "export", "`some` is neither `all` nor `none` nor a map such as {prefixes: [10.0.0.0/8]}"),
        ("{prefixes: []}", "export.prefixes", "write `export: none`"),
        ("{kinds: []}", "export.kinds", "write `export: none`"),
        ("{kinds: [PodCIDRs]}", "export.kinds[0]", "PodCIDR"),
        ("{prefixes: [10.0.0.0/33]}", "export.prefixes[0]", "is not a CIDR such as"),
        ("{communities: [a]}", "export.communities", "`a` is not a community"),
        ("{asPathPrepend: 11}", "export.asPathPrepend", "`11` is not a number of 0 to 10"),
        ("{metric: 11}", "export.metric", "unknown field `metric`"),
    ] {
        let error = export(text).unwrap_err();
        let place = format!("sheave.yaml:1: router.peers[0].{field}: ");
        assert!(error.starts_with(&place) && error.contains(remedy), "{text}: {error}");
    }
}

#[test]
fn forwarding_is_for_all_clients_or_for_each_kind() {
    const TUNNEL: Forwarding = Forwarding::Tunnel;
    const NAT: Forwarding = Forwarding::Nat;
    for (text, external, internal) in [
        ("{}", TUNNEL, TUNNEL),
        ("{forwarding: tunnel}", TUNNEL, TUNNEL),
        ("{forwarding: nat}", NAT, NAT),
        ("{forwarding: {internal: nat}}", TUNNEL, NAT),
        ("{forwarding: {external: nat}}", NAT, TUNNEL),
        ("{forwarding: {external: tunnel, internal: nat}}", TUNNEL, NAT),
        ("{forwarding: {}}", TUNNEL, TUNNEL),
    ] {
        let read = parse(&format!("services: {text}")).unwrap().services.forwarding;
        assert_eq!(read, ForwardingTo { external, internal }, "{text}");
    }
}

#[test]
fn errors_name_file_line_field_and_remedy() {
    for (text, expected) in [
        (
            "router:\n  peers:\n  - {address: 10.0.0.1, asn: 1}\n",
            "sheave.yaml:2: router.asn: missing, but there are peers: give this cluster's autonomous system number",
        ),
        (
            "router:\n  asn: 1\n  peers:\n  - address: 10.0.0.1\n    asn: 1\n    passwordFile: /a\n    passwordSecret: {name: b}\n",
            "sheave.yaml:7: router.peers[0].passwordSecret: there is a passwordFile too: give one of them",
        ),
        (
            "router: {asn: 1, peers: [{address: 10.0.0.1, asn: 1, ttlSecurity: 0}]}",
            "sheave.yaml:1: router.peers[0].ttlSecurity: a peer on the same link is 1 hop away: 1 to 255, or null",
        ),
        (
            "router:\n  asn: 1\n  peers:\n  - address: 10.0.0.1\n    asn: 1\n    multihop: 2\n    ttlSecurity: 2\n",
            "sheave.yaml:6: router.peers[0].multihop: there is ttlSecurity too, which sends with TTL 255: leave \
             ttlSecurity, as the number of hops",
        ),
        (
            "router:\n  asn: 1\n  peers:\n  - {address: 10.0.0.1, asn: 1}\n  - {address: 10.0.0.1, asn: 2}\n",
            "sheave.yaml:5: router.peers[1].address: 10.0.0.1 is listed twice: a peer has one session",
        ),
        (
            "router:\n  asn: 1\n  peers:\n  - {address: 10.0.0.1, asn: 1, holdTime: 2s}\n",
            "sheave.yaml:4: router.peers[0].holdTime: a hold time is 0s (never) or whole seconds of 3s to 65535s",
        ),
        (
            "router: {asn: 1, dynamicPeers: [{prefix: 10.0.0.0/24, asn: 1}, {prefix: 10.0.0.7/24, asn: 2}]}",
            "sheave.yaml:1: router.dynamicPeers[1].prefix: 10.0.0.0/24 is listed twice",
        ),
        (
            "router: {asn: 1, dynamicPeers: [{prefix: 10.0.0.0/24, asn: 1, limit: 0}]}",
            "sheave.yaml:1: router.dynamicPeers[0].limit: 0 would let nobody connect: give how many there may be, or remove the \
             range",
        ),
        (
            "router: {asn: 1, dynamicPeers: [{prefix: 10.0.0.0/24, asn: 1, multihop: 2, ttlSecurity: 2}]}",
            "sheave.yaml:1: router.dynamicPeers[0].multihop: there is ttlSecurity too, which sends with TTL 255: leave \
             ttlSecurity, as the number of hops",
        ),
        (
            "router: {asn: 1, listen: {port: 0}, dynamicPeers: [{prefix: 10.0.0.0/24, asn: 1}]}",
            "sheave.yaml:1: router.listen.port: 0 lets nobody connect, and router.dynamicPeers are to: give a port, 179 by default",
        ),
        (
            "router: {dynamicPeers: [{prefix: 10.0.0.0/24, asn: 1}]}",
            "sheave.yaml:1: router.asn: missing, but there are peers: give this cluster's autonomous system number",
        ),
        (
            "router: {asn: 1, peers: [{address: 10.0.0.1, asn: 1, sendHoldTime: 2s}]}",
            "sheave.yaml:1: router.peers[0].sendHoldTime: a send hold time is null (8min, or twice the hold time) or 3s to 24h",
        ),
        (
            "router: {asn: 1, peers: [{address: 10.0.0.1, asn: 1, delayOpen: 5m}]}",
            "sheave.yaml:1: router.peers[0].delayOpen: an OPEN is delayed by 1s to 240s, or null: not at all",
        ),
        (
            "router: {asn: 1, peers: [{asn: 2}]}",
            "sheave.yaml:1: router.peers[0].address: missing: give the peer's address, or the interface that it is to be found on",
        ),
        (
            "router: {asn: 1, peers: [{interface: eth1, asn: 2}, {interface: eth1, asn: 3}]}",
            "sheave.yaml:1: router.peers[1].interface: eth1 is listed twice: a peer has one session",
        ),
        (
            "router: {asn: 1, peers: [{address: default-gateway-ipv4, interface: eth1, asn: 2}]}",
            "sheave.yaml:1: router.peers[0].interface: is the default route's: leave it out",
        ),
        (
            "router: {asn: 1, peers: [{address: 10.0.0.1, interface: eth1, asn: 2}]}",
            "sheave.yaml:1: router.peers[0].interface: is for a link-local address, such as fe80::1, or for none: leave out this or the address",
        ),
        (
            "router: {asn: 1, peers: [{interface: eth1, asn: 2, localAddress: 10.0.0.1}]}",
            "sheave.yaml:1: router.peers[0].localAddress: is of another address family than the peer's address",
        ),
        (
            "router: {asn: 1, peers: [{address: default-gateway, asn: 2}]}",
            "sheave.yaml:1: router.peers[0].address: `default-gateway` is neither an IP address nor default-gateway-ipv4 or \
             default-gateway-ipv6; leave it out for a peer that is found on its `interface`",
        ),
        (
            "router: {asn: 1, peers: [{address: 10.0.0.1, asn: else}]}",
            "sheave.yaml:1: router.peers[0].asn: `else` is neither an autonomous system number nor `external` or `internal`",
        ),
        (
            "router: {asn: 1, peers: [{address: 10.0.0.1, asn: 0}]}",
            "sheave.yaml:1: router.peers[0].asn: 0 is reserved (RFC 7607)",
        ),
        (
            "router: {asn: 1, peers: [{address: 'fe80::1', asn: 1}]}",
            "sheave.yaml:1: router.peers[0].interface: missing: fe80::1 is link-local, give the interface that it is behind",
        ),
        (
            "router: {asn: 1, peers: [{address: 'fd00::1', asn: 1, interface: eth0}]}",
            "sheave.yaml:1: router.peers[0].interface: is for a link-local address, such as fe80::1, or for none: leave out this or the address",
        ),
        (
            "router: {asn: 1, peers: [{address: 10.0.0.1, asn: 1, extendedNextHop: true}]}",
            "sheave.yaml:1: router.peers[0].extendedNextHop: is for sessions over IPv6, which carry IPv4 by it: leave it out",
        ),
        (
            "router: {asn: 1, peers: [{address: 10.0.0.1, asn: 2, requireRole: true}]}",
            "sheave.yaml:1: router.peers[0].requireRole: there is no role that the peer's could fit: give this node's `role`",
        ),
        (
            "router: {shutdownMessage: ''}",
            "sheave.yaml:1: router.shutdownMessage: a shutdown message has 1 to 255 bytes, this one has 0",
        ),
        (
            "router:\n  gracefulRestart: {restartTime: 2h}\n",
            "sheave.yaml:2: router.gracefulRestart.restartTime: a restart time is whole seconds of 1s to 4095s; 0s beside longLived",
        ),
        (
            "router: {asn: 1, peers: [{address: 10.0.0.1, asn: 2, addPaths: {all: true}}]}",
            "sheave.yaml:1: router.peers[0].addPaths.all: unknown field `all`, expected one of receive, send",
        ),
        (
            "router:\n  gracefulRestart: {restartTime: 0s}\n",
            "sheave.yaml:2: router.gracefulRestart.restartTime: 0s lets peers drop the routes at once: give 1s to 4095s, or \
             longLived beside it; gracefulRestart: null turns it off",
        ),
        (
            "router:\n  gracefulRestart: {longLived: {staleTime: 200d}}\n",
            "sheave.yaml:2: router.gracefulRestart.longLived.staleTime: a stale time is whole seconds of 1s to 16777215s (194 days)",
        ),
        (
            "router:\n  asn: 1\n  peers:\n  - {address: 10.0.0.1, asn: 1, holdTime: 90}\n",
            "sheave.yaml:4: router.peers[0].holdTime: `90` is not a duration such as 120s, 300ms or 1h",
        ),
        (
            "router:\n  bmp:\n  - {address: 10.0.0.9}\n  - {address: 10.0.0.9, port: 11019}\n",
            "sheave.yaml:4: router.bmp[1].address: 10.0.0.9 port 11019 is listed twice: a station has one connection",
        ),
        (
            "router:\n  bmp:\n  - {address: 10.0.0.9, queueKiB: 1}\n",
            "sheave.yaml:3: router.bmp[0].queueKiB: a queue is 64 to 1048576 KiB",
        ),
        (
            "router:\n  bmp:\n  - {address: 10.0.0.9, statisticsInterval: 10ms}\n",
            "sheave.yaml:3: router.bmp[0].statisticsInterval: an interval of reports is 0s (never) or 1s to 24h",
        ),
        (
            "router:\n  bmp:\n  - {address: 10.0.0.9, statisticsInterval: 500000000000years}\n",
            "sheave.yaml:3: router.bmp[0].statisticsInterval: an interval of reports is 0s (never) or 1s to 24h",
        ),
        (
            "router:\n  bmp:\n  - {address: 10.0.0.9, tables: [locRIB]}\n",
            "sheave.yaml:3: router.bmp[0].tables[0]: unknown variant `locRIB`, expected one of adjRibIn, adjRibInPostPolicy, locRib, adjRibOut",
        ),
        (
            "router:\n  bmp:\n  - {address: 10.0.0.9, port: 0}\n",
            "sheave.yaml:3: router.bmp[0].port: no station listens on port 0: give the one that it does, 11019 by custom",
        ),
        (
            "announce:\n  clusterIP: true\n",
            "sheave.yaml:2: announce.clusterIP: unknown field `clusterIP`, expected one of clusterIPs, externalIPs, \
             loadBalancerIPs, podCIDRs, kernelTables, defaultRoutes, exportTable, aggregate, communities",
        ),
        (
            "announce:\n  kernelTables: [119, 255]\n",
            "sheave.yaml:2: announce.kernelTables[1]: 255 is no table of routes to elsewhere: 1 to 4294967295, but not \
             255 (local)",
        ),
        (
            "announce:\n  aggregate: [192.0.2.0/24, 192.0.2.1]\n",
            "sheave.yaml:2: announce.aggregate[1]: 192.0.2.1/32 is everything or a single address: give a range that \
             virtual IPs are taken from",
        ),
        (
            "announce:\n  exportTable: 254\n",
            "sheave.yaml:2: announce.exportTable: 254 is a table that the kernel forwards by or looks things up in: take \
             one that no rule of `ip rule` leads to, such as 120",
        ),
        (
            "services:\n  markMask: 5\n",
            "sheave.yaml:2: services.markMask: 0x5 is not a mask of at least two bits in a row, such as 0x3fff",
        ),
        (
            "services:\n  nodePortAddresses: [all]\n",
            "sheave.yaml:2: services.nodePortAddresses[0]: `all` is neither `primary` nor a CIDR such as 10.0.0.0/8",
        ),
        (
            "services:\n  forwarding: dsr\n",
            "sheave.yaml:2: services.forwarding: `dsr` is neither `tunnel` nor `nat`",
        ),
        (
            "services:\n  forwarding:\n    external: tunnel\n    internal: masquerade\n",
            "sheave.yaml:4: services.forwarding.internal: `masquerade` is neither `tunnel` nor `nat`",
        ),
        (
            "services:\n  forwarding: {inside: nat}\n",
            "sheave.yaml:2: services.forwarding.inside: unknown field `inside`, expected one of external, internal",
        ),
        (
            "services:\n  forwarding: []\n",
            "sheave.yaml:2: services.forwarding: invalid type: sequence, expected `tunnel`, `nat`, or one of them for \
             each of `external` and `internal`",
        ),
    ] {
        assert_eq!(parse(text).unwrap_err(), expected, "{text}");
    }
}
