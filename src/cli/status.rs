//! `sheave status`: what the local agent says of itself.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use super::{Format, failed, print};
use crate::observe::columns::columns;
use crate::observe::status::{self, Health, Imported, Status};

/// Show health, watches, peers, announcements, virtual servers with their endpoints, and problems of the local agent
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  sheave status
  sheave status -o json | jq '.virtualServers[] | select(.inKernel | not)'

Exit codes: 0 done; 1 no agent answers on the socket, or it reports problems; 2 usage.")]
pub(super) struct Args {
    /// The agent's status socket (`observe.status` in its config)
    #[arg(long, value_name = "PATH", default_value = "/run/sheave/status.sock")]
    socket: PathBuf,

    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// Runs the subcommand.
pub(super) fn run(args: Args) -> ExitCode {
    let Args { socket, output } = args;
    let asked = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .and_then(|runtime| runtime.block_on(status::ask(&socket)));
    let status = match asked {
        Ok(status) => status,
        Err(error) => {
            return failed(&format!(
                "{}: {error}; is the agent running, and is this its `observe.status`?",
                socket.display()
            ));
        }
    };
    let text = output.text(&status, table);
    let printed = text
        .map_err(|error| error.to_string())
        .and_then(|text| print(&text).map_err(|error| error.to_string()));
    match printed {
        Err(error) => failed(&error),
        Ok(()) if status.problems.is_empty() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
    }
}

fn table(status: &Status) -> String {
    let Status {
        node,
        version,
        ready,
        holding,
        drain,
        health,
        watches,
        peers,
        bmp,
        imported,
        reflected,
        announcements,
        virtual_servers,
        problems,
        warnings,
    } = status;
    let mut text = String::new();
    let state = match (ready, holding) {
        (true, _) => "ready",
        (false, true) => "waiting for the source, announcing what was announced before",
        (false, false) => "waiting for the source",
    };
    let _ = writeln!(text, "node {node}, sheave {version}: {state}, {}", health_words(health));
    if let Some(words) = drain.words() {
        let _ = writeln!(text, "drain: {words}");
    }
    for (title, lines) in [("problems", problems), ("warnings", warnings)] {
        if !lines.is_empty() {
            let _ = writeln!(text, "\n{title}:");
            for line in lines {
                let _ = writeln!(text, "  {line}");
            }
        }
    }
    section(
        &mut text,
        ["WATCH", "STATE", "SINCE", "ERROR"],
        watches.iter().map(|watch| {
            let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
            [watch.resource.clone(), watch.state.clone(), or_none(&watch.since), or_none(&watch.error)]
        }),
    );
    section(
        &mut text,
        ["SERVED", "ADDRESS", "LISTENING"],
        health.listeners.iter().map(|listener| {
            let listening = if listener.listening { "yes" } else { "no" };
            [listener.name.clone(), listener.address.clone(), listening.into()]
        }),
    );
    if *imported != Imported::default() {
        let Imported { prefixes, in_kernel, kept } = imported;
        let _ = writeln!(
            text,
            "\nroutes learnt of peers: {prefixes}, {in_kernel} of them in the kernel; {kept} of sessions before kept"
        );
    }
    if *reflected > 0 {
        let _ = writeln!(text, "\nroutes passed on as route reflector: {reflected}");
    }
    section(
        &mut text,
        ["PEER", "ASN", "STATE", "UP", "PREFIXES", "RECEIVED", "ACCEPTED", "LAST ERROR"],
        peers.iter().map(|peer| {
            let or_none = |count: Option<usize>| count.map_or_else(|| "-".into(), |count| count.to_string());
            [
                match &peer.range {
                    Some(range) => format!("{} of {range}", peer.address),
                    None => peer.address.clone(),
                },
                if peer.asn == 0 { "external".into() } else { peer.asn.to_string() },
                peer.state.clone(),
                peer.uptime_seconds.map_or_else(|| "-".into(), |seconds| format!("{seconds}s")),
                peer.prefixes_sent.to_string(),
                or_none(peer.prefixes_received),
                or_none(peer.prefixes_accepted),
                peer.last_error.clone().unwrap_or_else(|| "-".into()),
            ]
        }),
    );
    section(
        &mut text,
        [
            "BFD WITH",
            "STATE",
            "PEER'S STATE",
            "SENT EVERY",
            "HEARD EVERY",
            "SILENCE NOTICED AFTER",
            "UP",
            "FAILED",
            "LAST DOWN",
            "PEER'S LAST DOWN",
            "PROBLEM",
        ],
        peers.iter().filter_map(|peer| {
            let bfd = peer.bfd.as_ref()?;
            let time = |micros| humantime::format_duration(Duration::from_micros(micros)).to_string();
            Some([
                peer.address.clone(),
                bfd.state.clone(),
                bfd.remote_state.clone(),
                time(bfd.transmit_interval_us),
                time(bfd.receive_interval_us),
                time(bfd.detection_time_us),
                bfd.ups.to_string(),
                bfd.failures.to_string(),
                bfd.diagnostic.clone(),
                bfd.remote_diagnostic.clone(),
                bfd.problem.clone().unwrap_or_else(|| "-".into()),
            ])
        }),
    );
    section(
        &mut text,
        ["BMP STATION", "CONNECTED", "QUEUED", "CUT OFF", "LAST ERROR"],
        bmp.iter().map(|station| {
            [
                station.address.clone(),
                station.connected_seconds.map_or_else(|| "no".into(), |seconds| format!("{seconds}s")),
                station.queued_bytes.to_string(),
                station.cut_off.to_string(),
                station.last_error.clone().unwrap_or_else(|| "-".into()),
            ]
        }),
    );
    section(
        &mut text,
        ["PREFIX", "KIND", "SERVICE", "ANNOUNCED"],
        announcements.iter().map(|announcement| {
            [
                announcement.prefix.clone(),
                announcement.kind.clone(),
                announcement.service.clone().unwrap_or_else(|| "-".into()),
                {
                    let announced = match &announcement.aggregate {
                        _ if !announcement.announced => "no".into(),
                        Some(aggregate) => format!("by {aggregate}"),
                        None => "yes".into(),
                    };
                    match &announcement.withheld_from[..] {
                        [] => announced,
                        peers => format!("{announced}, not to {}", peers.join(", ")),
                    }
                },
            ]
        }),
    );
    section(
        &mut text,
        [
            "SERVICE",
            "KIND",
            "VIRTUAL SERVER",
            "SCHEDULER",
            "ENDPOINT",
            "FORWARDING",
            "WEIGHT",
            "ACTIVE",
            "INACTIVE",
        ],
        virtual_servers.iter().flat_map(|server| {
            let head =
                [server.service.clone(), server.kind.clone(), server.vip.clone(), server.scheduler.clone()];
            let none = server.destinations.is_empty().then(|| {
                let [service, kind, vip, scheduler] = head.clone();
                let empty = || "-".to_string();
                let none = if server.drops { "none: dropped" } else { "none: refused" };
                [service, kind, vip, scheduler, none.into(), empty(), empty(), empty(), empty()]
            });
            let of_all = server.destinations.iter().map(|destination| ("", destination));
            let internal =
                server.internal.iter().flatten().map(|destination| (" in the cluster", destination));
            none.into_iter().chain(of_all.chain(internal).map(move |(clients, destination)| {
                let [service, kind, vip, scheduler] = head.clone();
                let vip = format!("{vip}{clients}");
                [
                    service,
                    kind,
                    vip,
                    scheduler,
                    destination.endpoint.clone(),
                    destination.forwarding.clone(),
                    destination.weight.map_or_else(|| "not in kernel".into(), |weight| weight.to_string()),
                    destination.active_connections.to_string(),
                    destination.inactive_connections.to_string(),
                ]
            }))
        }),
    );
    text
}

/// What `/healthz` would tell, in words.
fn health_words(health: &Health) -> String {
    let Health { healthy, node_eligible, last_updated, listeners: _ } = health;
    let mut words = match (healthy, node_eligible) {
        (true, true) => "healthy".into(),
        (true, false) => "healthy, but its Node is missing or about to go, or it drains".into(),
        (false, _) => "unhealthy: the kernel does not take changes".to_string(),
    };
    if let Some(at) = last_updated {
        let _ = write!(words, ", kernel as planned at {at}");
    }
    words
}

/// A table; nothing where there are no rows.
fn section<const N: usize>(text: &mut String, head: [&str; N], rows: impl Iterator<Item = [String; N]>) {
    let rows: Vec<[String; N]> = std::iter::once(head.map(String::from)).chain(rows).collect();
    if rows.len() == 1 {
        return;
    }
    text.push('\n');
    for line in columns(&rows) {
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::status::{Drain, Listener, Watch};

    fn serving() -> Drain {
        Drain {
            phase: "serving".into(),
            since: None,
            asked_by: Vec::new(),
            overdue: false,
            connections: 0,
            some_connections: Vec::new(),
            kept: Vec::new(),
        }
    }

    #[test]
    fn a_drain_is_shown() {
        let since = Some("2026-11-20T16:00:00Z".into());
        let drain =
            Drain { phase: "drained".into(), since, asked_by: vec!["taint a:NoExecute".into()], ..serving() };
        let text = table(&Status { drain, ..status(true, true) });
        assert!(
            text.contains("\ndrain: drained, since 2026-11-20T16:00:00Z, by taint a:NoExecute\n"),
            "{text}"
        );
    }

    fn status(healthy: bool, node_eligible: bool) -> Status {
        Status {
            node: "node-a".into(),
            version: "1.2.3".into(),
            ready: true,
            holding: false,
            drain: serving(),
            health: Health {
                healthy,
                node_eligible,
                last_updated: Some("2026-11-20T16:00:00.000000000Z".into()),
                listeners: vec![Listener {
                    name: "observe.health".into(),
                    address: "0.0.0.0:10256".into(),
                    listening: false,
                }],
            },
            watches: vec![
                Watch {
                    resource: "nodes".into(),
                    state: "down".into(),
                    since: Some("2026-11-20T15:00:00.000000000Z".into()),
                    error: Some("connection refused".into()),
                },
                Watch { resource: "services".into(), state: "watching".into(), since: None, error: None },
            ],
            peers: Vec::new(),
            bmp: Vec::new(),
            imported: Imported::default(),
            reflected: 0,
            announcements: Vec::new(),
            virtual_servers: Vec::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn what_is_learnt_of_peers_is_shown() {
        let peer = |address: &str, received, accepted| status::Peer {
            address: address.into(),
            asn: 65001,
            range: None,
            state: "Established".into(),
            uptime_seconds: Some(7),
            prefixes_sent: 1,
            prefixes_received: received,
            prefixes_accepted: accepted,
            last_error: None,
            bfd: None,
        };
        let bfd = status::Bfd {
            state: "Down".into(),
            remote_state: "AdminDown".into(),
            diagnostic: "neighbor signaled session down".into(),
            remote_diagnostic: "administratively down".into(),
            transmit_interval_us: 1_000_000,
            receive_interval_us: 50_000,
            detection_time_us: 150_000,
            ups: 2,
            failures: 1,
            problem: None,
        };
        let status = Status {
            peers: vec![
                peer("10.0.0.1", Some(3), Some(2)),
                status::Peer { bfd: Some(bfd), ..peer("10.0.0.2", None, None) },
            ],
            imported: Imported { prefixes: 2, in_kernel: 1, kept: 4 },
            ..status(true, true)
        };
        let text = table(&status);
        let shown = "
routes learnt of peers: 2, 1 of them in the kernel; 4 of sessions before kept

PEER      ASN    STATE        UP  PREFIXES  RECEIVED  ACCEPTED  LAST ERROR
10.0.0.1  65001  Established  7s  1         3         2         -
10.0.0.2  65001  Established  7s  1         -         -         -

BFD WITH  STATE  PEER'S STATE  SENT EVERY  HEARD EVERY  SILENCE NOTICED AFTER  UP  FAILED  LAST DOWN                       PEER'S LAST DOWN       PROBLEM
10.0.0.2  Down   AdminDown     1s          50ms         150ms                  2   1       neighbor signaled session down  administratively down  -
";
        assert!(text.ends_with(shown), "{text}");
    }

    #[test]
    fn what_becomes_of_packets_without_an_endpoint_is_shown() {
        let server = |vip: &str, drops| status::VirtualServer {
            service: "default/web".into(),
            kind: "LoadBalancerIP".into(),
            vip: vip.into(),
            scheduler: "mh".into(),
            in_kernel: false,
            drops,
            destinations: Vec::new(),
            internal: None,
        };
        let virtual_servers = vec![server("TCP 192.0.2.80:80", false), server("TCP 192.0.2.81:80", true)];
        let text = table(&Status { virtual_servers, ..status(true, true) });
        let shown = "
SERVICE      KIND            VIRTUAL SERVER     SCHEDULER  ENDPOINT       FORWARDING  WEIGHT  ACTIVE  INACTIVE
default/web  LoadBalancerIP  TCP 192.0.2.80:80  mh         none: refused  -           -       -       -
default/web  LoadBalancerIP  TCP 192.0.2.81:80  mh         none: dropped  -           -       -       -
";
        assert!(text.ends_with(shown), "{text}");
    }

    #[test]
    fn health_and_watches_are_shown() {
        assert_eq!(
            table(&status(true, true)),
            "\
node node-a, sheave 1.2.3: ready, healthy, kernel as planned at 2026-11-20T16:00:00.000000000Z

WATCH     STATE     SINCE                           ERROR
nodes     down      2026-11-20T15:00:00.000000000Z  connection refused
services  watching  -                               -

SERVED          ADDRESS        LISTENING
observe.health  0.0.0.0:10256  no
"
        );
        for (healthy, node_eligible, words) in [
            (true, false, "healthy, but its Node is missing or about to go, or it drains"),
            (false, true, "unhealthy: the kernel does not take changes"),
            (false, false, "unhealthy: the kernel does not take changes"),
        ] {
            let text = table(&status(healthy, node_eligible));
            assert!(text.contains(words), "{text}");
        }
    }
}
