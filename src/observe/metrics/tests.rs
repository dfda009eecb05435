//! What is exported reads as Prometheus' text format, and is what `docs/metrics.md` says.

use std::collections::{BTreeMap, BTreeSet};

use sheave_bgp::runtime::{FamilyStatus, LastError, SessionStatus};
use sheave_bgp::session::{Down, Negotiated, State};
use sheave_bgp::{
    BfdStatus, BmpCounters, BmpStationStatus, Counters, FamilyCounts, LearntStatus, PeerStatus, SpeakerStatus,
};
use sheave_ipvs::Stats;

use super::*;
use crate::cluster::{Protocol, Watch};
use crate::config::{Config, VirtualServerMetrics};
use crate::plan::{ByFamily, Planner, VipPort, WithoutLocalEndpoints};

/// A family as read.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    help: String,
    /// Names of labels, `le` left out.
    labels: BTreeSet<String>,
    samples: BTreeMap<String, f64>,
}

/// Reads the text format 0.0.4, strictly.
fn read(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    assert!(text.ends_with('\n'), "the last line has no end");
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(!families.contains_key(name), "{name} is there twice");
            assert!(!help.is_empty() && help.trim() == help, "{line}");
            current = name.into();
            families.insert(name.into(), Family { help: help.into(), ..Family::default() });
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, current, "{line}");
            let family = families.get_mut(name).unwrap();
            assert!(family.kind.is_empty() && family.samples.is_empty(), "{line}");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            family.kind = kind.into();
        } else {
            let family = families.get_mut(&current).unwrap();
            sample(line, &current, family);
        }
    }
    families.iter().for_each(|(name, family)| check(name, family));
    families
}

fn sample(line: &str, family_name: &str, family: &mut Family) {
    let (series, value) = line.rsplit_once(' ').unwrap();
    let (name, labels) = match series.split_once('{') {
        Some((name, rest)) => (name, rest.strip_suffix('}').unwrap_or_else(|| panic!("{line}"))),
        None => (series, ""),
    };
    let suffix = name.strip_prefix(family_name).unwrap_or_else(|| panic!("{line} in {family_name}"));
    let suffixes: &[&str] = if family.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
    assert!(suffixes.contains(&suffix), "{line}");
    let mut rest = labels;
    while !rest.is_empty() {
        let (label, value) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
        let (value, after) = value.split_once('"').unwrap_or_else(|| panic!("{line}"));
        assert!(!value.contains(['\\', '\n']), "{line}: this reader knows no escapes");
        assert!(label.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{line}");
        if label != "le" {
            family.labels.insert(label.into());
        }
        rest = after.strip_prefix(',').unwrap_or(after);
    }
    let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
    assert!(value.is_finite(), "{line}");
    assert!(family.samples.insert(series.into(), value).is_none(), "{line} is there twice");
}

/// What `promtool check metrics` would complain of, and more.
fn check(name: &str, family: &Family) {
    assert!(!family.samples.is_empty(), "{name} has no samples");
    assert!(!family.help.ends_with('.'), "{name}: {}", family.help);
    // kube-proxy's own slip is kept.
    let total = name.ends_with("_total") && name != "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
    assert_eq!(total, family.kind == "counter", "{name}: counters, and they alone, end in _total");
    for wrong in ["_milliseconds", "_ms", "_kilobytes", "_count", "_sum", "_bucket", "_info_total"] {
        assert!(!name.ends_with(wrong), "{name}");
    }
    if family.kind == "counter" {
        assert!(family.samples.values().all(|value| *value >= 0.0), "{name}");
    }
    if family.kind == "histogram" {
        // By the labels besides `le`, which comes last.
        let mut of = BTreeMap::<String, Vec<(f64, f64)>>::new();
        for (series, value) in &family.samples {
            let Some((labels, bound)) = series.split_once("le=\"") else { continue };
            let labels = labels.strip_prefix(&format!("{name}_bucket{{")).unwrap().trim_end_matches(',');
            let bound = bound.trim_end_matches("\"}").replace("+Inf", "inf").parse().unwrap();
            of.entry(labels.into()).or_default().push((bound, *value));
        }
        for (labels, buckets) in &mut of {
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(buckets.is_sorted_by_key(|(_, value)| *value), "{name} is not cumulative");
            let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            let (bound, count) = buckets.last().unwrap();
            assert!(bound.is_infinite(), "{name} has no +Inf");
            assert_eq!(*count, family.samples[&format!("{name}_count{labels}")], "{name}");
        }
    }
}

fn peer() -> PeerStatus {
    PeerStatus {
        address: "10.0.0.254".parse().unwrap(),
        asn: 65001,
        interface: None,
        range: None,
        state: State::Established,
        since: SystemTime::UNIX_EPOCH + Duration::from_secs(7),
        uptime: Some(Duration::from_secs(5)),
        last_error: Some(LastError { at: SystemTime::UNIX_EPOCH, reason: Down::ConnectionClosed }),
        bfd: Some(BfdStatus {
            detection_time: Duration::from_millis(150),
            ups: 2,
            failures: 1,
            ..BfdStatus::default()
        }),
        session: Some(SessionStatus {
            local: "10.0.0.1:179".parse().unwrap(),
            negotiated: Negotiated {
                asn: 65001,
                router_id: std::net::Ipv4Addr::LOCALHOST,
                hold_time: Duration::from_secs(90),
                families: sheave_bgp::Families::ALL,
                extended_next_hop: false,
                four_octet_asn: true,
                route_refresh: true,
                enhanced_refresh: true,
                extended_messages: true,
                graceful_restart: None,
                graceful_notification: false,
                long_lived: Vec::new(),
                paths_received: sheave_bgp::Families::NONE,
                paths_sent: sheave_bgp::Families::NONE,
            },
            families: vec![FamilyStatus {
                family: sheave_bgp::Family::Ipv4Unicast,
                next_hop: None,
                prefixes_sent: 3,
                prefixes_pending: 1,
                end_of_rib_sent: true,
            }],
        }),
        counters: Counters { established: 2, updates_sent: 9, ..Counters::default() },
    }
}

fn vip(number: u8) -> VipPort {
    VipPort { address: std::net::IpAddr::from([10, 96, 0, number]), port: 80, protocol: Protocol::Tcp }
}

/// A planner with Services of one virtual server each; `metrics` is their annotation.
fn planner(services: &[(&str, u8, Option<&str>)]) -> Planner {
    use crate::builders::mk_service;
    use crate::cluster::{Event, Object, Service, ServicePort};
    let mut planner = Planner::new("node-a", Config::default());
    planner.handle(services.iter().map(|(name, number, metrics)| {
        Event::Apply(Object::Service(Arc::new(Service {
            annotations: metrics.iter().map(|value| ("sheave.io/metrics".into(), (*value).into())).collect(),
            cluster_ips: vec![vip(*number).address],
            ports: vec![ServicePort { name: None, protocol: Protocol::Tcp, port: 80, node_port: None }],
            ..mk_service(name)
        })))
    }));
    planner
}

fn wanted(mode: VirtualServerMetrics, limit: usize) -> Wanted {
    Wanted::new(&crate::config::Observe {
        virtual_server_metrics: mode,
        virtual_server_metrics_limit: limit,
        ..crate::config::Observe::default()
    })
}

/// Something of everything that can be exported.
fn everything() -> String {
    let (metrics, health) = (Metrics::default(), Health::default());
    metrics.network_programming.observe(0.3);
    metrics.sync.observe(0.0042);
    health.watch(&Watch { resource: "services", state: WatchState::Watching });
    health.watch(&Watch {
        resource: "nodes",
        state: WatchState::Down { since: SystemTime::UNIX_EPOCH, error: "away".into() },
    });
    health.watch(&Watch { resource: "servicecidrs", state: WatchState::NotServed });
    let stats = Stats { connections: 5, incoming_bytes: u64::from(u32::MAX) + 1, ..Stats::default() };
    let planner = planner(&[("web", 80, None)]);
    let snapshot = Snapshot {
        warnings: BTreeMap::from([("InvalidAnnotation", 2)]),
        without_local_endpoints: WithoutLocalEndpoints {
            external: ByFamily { ipv4: 0, ipv6: 2 },
            ..WithoutLocalEndpoints::default()
        },
        drain: DrainSnapshot { since: Some(SystemTime::UNIX_EPOCH), ..DrainSnapshot::default() },
        problems: BTreeMap::from([("kernel", 0)]),
        passes: vec![("IPVS", Passes { ok: 4, failed: 1 })],
        traffic: wanted(VirtualServerMetrics::All, 10).pick(&planner, [(vip(80), stats)]),
        speaker: Some(SpeakerStatus {
            asn: 64512,
            router_id: std::net::Ipv4Addr::LOCALHOST,
            routes: 3,
            reflected: 1,
            peers: vec![peer()],
            dynamic: vec![sheave_bgp::DynamicPeersStatus {
                prefix: "10.0.0.0/24".parse().unwrap(),
                limit: 100,
                peers: 2,
                refused: 1,
            }],
        }),
        bmp: vec![BmpStationStatus {
            address: "10.0.0.9:11019".parse().unwrap(),
            connected: Some(SystemTime::UNIX_EPOCH),
            last_error: None,
            queued: 7,
            counters: BmpCounters { connections: 3, cut_off: 2, bytes_sent: 1000 },
        }],
        learnt: Some(LearntStatus {
            routes: 2,
            complete: true,
            pending: 0,
            peers: BTreeMap::from([(
                [10, 0, 0, 254].into(),
                vec![(
                    sheave_bgp::Family::Ipv4Unicast,
                    FamilyCounts { received: 3, accepted: 2, end_of_rib: true, long_lived: 0 },
                )],
            )]),
        }),
        ..Snapshot::default()
    };
    metrics.render(&health, Some(&snapshot))
}

#[test]
fn the_exposition_is_valid() {
    let text = everything();
    let families = read(&text);
    for line in [
        "sheave_watch_up{resource=\"services\"} 1",
        "sheave_watch_up{resource=\"nodes\"} 0",
        "sheave_watch_down_since_timestamp_seconds{resource=\"nodes\"} 0",
        "sheave_bgp_session_up{peer=\"10.0.0.254\",asn=\"65001\"} 1",
        "sheave_bfd_session_up{peer=\"10.0.0.254\",asn=\"65001\"} 0",
        "sheave_bfd_sessions_failed_total{peer=\"10.0.0.254\",asn=\"65001\"} 1",
        "sheave_bfd_detection_time_seconds{peer=\"10.0.0.254\",asn=\"65001\"} 0.15",
        "sheave_bgp_last_error_timestamp_seconds{peer=\"10.0.0.254\",asn=\"65001\",reason=\"ConnectionClosed\"} 0",
        "sheave_bgp_dynamic_peers{prefix=\"10.0.0.0/24\"} 2",
        "sheave_bgp_dynamic_peers_limit{prefix=\"10.0.0.0/24\"} 100",
        "sheave_bgp_dynamic_peers_refused_total{prefix=\"10.0.0.0/24\"} 1",
        "sheave_bgp_prefixes_sent{peer=\"10.0.0.254\",asn=\"65001\",family=\"ipv4\"} 3",
        "sheave_bmp_station_up{station=\"10.0.0.9:11019\"} 1",
        "sheave_bmp_cut_off_total{station=\"10.0.0.9:11019\"} 2",
        "sheave_bmp_queued_bytes{station=\"10.0.0.9:11019\"} 7",
        "sheave_bgp_prefixes_held{peer=\"10.0.0.254\",asn=\"65001\",family=\"ipv4\"} 3",
        "sheave_bgp_prefixes_accepted{peer=\"10.0.0.254\",asn=\"65001\",family=\"ipv4\"} 2",
        "sheave_kernel_passes_total{part=\"IPVS\",result=\"error\"} 1",
        "sheave_virtual_server_connections_total{namespace=\"default\",service=\"web\",kind=\"ClusterIP\",vip=\"10.96.0.80\",port=\"80\",protocol=\"TCP\"} 5",
        "sheave_virtual_server_incoming_bytes_total{namespace=\"default\",service=\"web\",kind=\"ClusterIP\",vip=\"10.96.0.80\",port=\"80\",protocol=\"TCP\"} 4294967296",
        "sheave_warnings{reason=\"InvalidAnnotation\"} 2",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"internal\",ip_family=\"IPv4\"} 0",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\",ip_family=\"IPv6\"} 2",
    ] {
        assert!(text.lines().any(|has| has == line), "{line} in\n{text}");
    }
    assert!(!text.contains("servicecidrs\"} 0\nsheave_watch_up"), "what is not served is not watched");
    let buckets = |name: &str| families[name].samples.keys().filter(|series| series.contains("le=")).count();
    assert_eq!(buckets("kubeproxy_network_programming_duration_seconds"), 2 + 59 + 12 + 7 + 1);
    assert_eq!(buckets("kubeproxy_sync_proxy_rules_duration_seconds"), 15 + 1);
}

/// Whoever watches sessions must not see nothing where there is none.
#[test]
fn a_peer_without_a_session_has_its_series_whatever_the_reason() {
    let render = |snapshot: &Snapshot| Metrics::default().render(&Health::default(), Some(snapshot));
    let range = |prefix: &str, peers| sheave_bgp::DynamicPeersStatus {
        prefix: prefix.parse().unwrap(),
        limit: 100,
        peers,
        refused: 0,
    };
    let no_speaker = Snapshot {
        absent: vec![("10.0.0.253".into(), 65001), ("eth1".into(), 0)],
        empty_ranges: vec![range("10.0.0.0/24", 0)],
        ..Snapshot::default()
    };
    let speaker = SpeakerStatus {
        asn: 64512,
        router_id: std::net::Ipv4Addr::LOCALHOST,
        routes: 0,
        reflected: 0,
        peers: vec![peer()],
        dynamic: vec![range("10.1.0.0/24", 2)],
    };
    let down = [
        "sheave_bgp_session_up{peer=\"10.0.0.253\",asn=\"65001\"} 0",
        "sheave_bgp_session_up{peer=\"eth1\",asn=\"0\"} 0",
        "sheave_bgp_dynamic_peers{prefix=\"10.0.0.0/24\"} 0",
        "sheave_bgp_dynamic_peers_limit{prefix=\"10.0.0.0/24\"} 100",
    ];
    let up = [
        "sheave_bgp_session_up{peer=\"10.0.0.254\",asn=\"65001\"} 1",
        "sheave_bgp_dynamic_peers{prefix=\"10.1.0.0/24\"} 2",
    ];
    let texts = [render(&no_speaker), render(&Snapshot { speaker: Some(speaker), ..no_speaker })];
    for (name, text, lines) in [
        ("no speaker", &texts[0], &down[..]),
        ("beside a session", &texts[1], &down[..]),
        ("the session", &texts[1], &up[..]),
    ] {
        read(text);
        for line in lines {
            assert!(text.lines().any(|has| has == *line), "{name}: {line} in\n{text}");
        }
    }
    let families = read(&render(&Snapshot::default()));
    assert!(!families.contains_key("sheave_bgp_session_up"), "nobody is configured");
}

#[test]
fn without_the_loop_what_is_counted_is_still_told() {
    let families = read(&Metrics::default().render(&Health::default(), None));
    assert_eq!(families["sheave_scrape_complete"].samples["sheave_scrape_complete"], 0.0);
    assert!(families.contains_key("kubeproxy_sync_proxy_rules_duration_seconds"));
    assert!(families.contains_key("process_resident_memory_bytes"));
    assert!(!families.contains_key("sheave_virtual_servers"));
}

/// Families that only a kernel with IPVS tells.
const OF_THE_KERNEL: &str = "sheave_ipvs_";

#[test]
fn the_documentation_says_what_is_exported() {
    let documented: BTreeSet<String> = include_str!("../../../docs/metrics.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter(|line| {
            line.contains(" | counter | ") || line.contains(" | gauge | ") || line.contains(" | histogram | ")
        })
        .map(|line| format!("| `{line}"))
        .collect();
    let row = |(name, family): (&String, &Family)| {
        let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        format!("| `{name}` | {} | {} | {} |", family.kind, labels.join(", "), family.help)
            .replace("|  |", "| |")
    };
    let exported: BTreeSet<String> = read(&everything()).iter().map(row).collect();
    let missing: Vec<_> = exported.difference(&documented).collect();
    assert!(missing.is_empty(), "not in docs/metrics.md:\n{missing:#?}");
    let gone: Vec<_> = documented
        .difference(&exported)
        .filter(|row| !row.starts_with(&format!("| `{OF_THE_KERNEL}")))
        .collect();
    assert!(gone.is_empty(), "in docs/metrics.md alone:\n{gone:#?}");
}

#[test]
fn virtual_servers_have_metrics_within_bounds() {
    let planner = planner(&[("a", 1, None), ("b", 2, Some("false")), ("c", 3, Some("true")), ("d", 4, None)]);
    let listed: Vec<_> = [4, 3, 9, 2, 1].map(|number| (vip(number), Stats::default())).into();
    use VirtualServerMetrics::{All, Annotated, Off};
    for (name, mode, limit, shown, omitted) in [
        ("all but those that do not want", All, 10, "c a d", 0),
        ("those who ask go first", All, 2, "c a", 1),
        ("those who ask alone", Annotated, 10, "c", 0),
        ("none", Off, 10, "", 0),
        ("a limit of nothing", All, 0, "", 3),
    ] {
        let traffic = wanted(mode, limit).pick(&planner, listed.clone());
        let mut families = Families::default();
        traffic.add_to(&mut families);
        let families = families.into_inner();
        let names: Vec<&str> = families
            .first()
            .into_iter()
            .flat_map(|family| family.get_metric())
            .map(|metric| metric.get_label()[1].value())
            .collect();
        assert_eq!((names.join(" ").as_str(), traffic.omitted), (shown, omitted), "{name}");
    }
    assert!(!wanted(Off, 10).any() && !wanted(All, 0).any() && wanted(Annotated, 1).any());
}

#[tokio::test]
async fn scrapes_that_wait_together_ask_once() {
    let (question, mut questions) = mpsc::channel(4);
    let site = Arc::new(MetricsSite::new(Arc::default(), Arc::default(), question));
    let scrape = || {
        let site = Arc::clone(&site);
        tokio::spawn(async move { site.text().await })
    };
    let mut asker = async || match questions.recv().await {
        Some(Question::Snapshot(asker)) => (asker, questions.len()),
        other => panic!("{other:?}"),
    };
    for round in ["the first", "a later one is not told what the first was"] {
        let first = scrape();
        let (gone, _) = asker().await;
        let others: Vec<_> = (0..40).map(|_| scrape()).collect();
        // Whoever asked goes away: one of the others asks instead, and nobody waits for the first answer.
        first.abort();
        let (asker, more) = asker().await;
        assert_eq!((gone.is_closed(), asker.is_closed(), more), (true, false, 0), "{round}");
        drop(asker.send(Snapshot { vips: 4711, ..Snapshot::default() }));
        for other in others {
            let text = String::from_utf8(other.await.unwrap().to_vec()).unwrap();
            assert!(text.contains("sheave_vips 4711\n"), "{round}: {text}");
        }
    }
    assert!(questions.is_empty());
}
