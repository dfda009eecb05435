//! BGP sessions.

use std::time::SystemTime;

use sheave_bgp::runtime::FamilyStatus;
use sheave_bgp::session::{Down, State};
use sheave_bgp::{
    Counters, DynamicPeersStatus, Family, FamilyCounts, LearntStatus, PeerStatus, SpeakerStatus,
};

use super::exposition::Families;
use super::seconds;
use super::snapshot::{float, number};

/// Name, help, and what to read.
type Count<From, Number> = (&'static str, &'static str, fn(&From) -> Number);

/// Adds whether there is a session with each peer; `absent` are those that none can be made with.
pub fn add_up<'a>(
    sessions: impl Iterator<Item = &'a PeerStatus>,
    absent: &[(String, u32)],
    families: &mut Families,
) {
    let sessions = sessions.map(|peer| (peer.name(), peer.asn, peer.state == State::Established));
    let absent = absent.iter().map(|(name, asn)| (name.clone(), *asn, false));
    let peers: Vec<_> = sessions.chain(absent).map(|(name, asn, up)| (name, asn.to_string(), up)).collect();
    let labels: Vec<_> =
        peers.iter().map(|(name, asn, up)| ([("peer", name.as_str()), ("asn", asn.as_str())], *up)).collect();
    families.gauge(
        "sheave_bgp_session_up",
        "Whether the session with a peer is Established",
        labels.iter().map(|(labels, up)| (&labels[..], f64::from(*up))),
    );
}

/// Adds the families of all sessions.
pub fn add_to(speaker: &SpeakerStatus, families: &mut Families) {
    let peers: Vec<(String, String, &PeerStatus)> =
        speaker.peers.iter().map(|peer| (peer.name(), peer.asn.to_string(), peer)).collect();
    let labels: Vec<_> = peers
        .iter()
        .map(|(address, asn, peer)| ([("peer", address.as_str()), ("asn", asn.as_str())], *peer))
        .collect();
    families.gauge(
        "sheave_bgp_session_state_since_timestamp_seconds",
        "Since when the session is in its state",
        labels.iter().map(|(labels, peer)| (&labels[..], seconds(peer.since))),
    );
    let watched = || labels.iter().filter_map(|(labels, peer)| Some((&labels[..], peer.bfd.as_ref()?)));
    families.gauge(
        "sheave_bfd_session_up",
        "Whether BFD beside the session with a peer is up",
        watched().map(|(labels, bfd)| (labels, f64::from(bfd.state == sheave_bgp::bfd::State::Up))),
    );
    families.counter(
        "sheave_bfd_sessions_up_total",
        "How often it came up",
        watched().map(|(labels, bfd)| (labels, float(bfd.ups))),
    );
    families.counter(
        "sheave_bfd_sessions_failed_total",
        "How often it went down, but for when an operator of either side took it down",
        watched().map(|(labels, bfd)| (labels, float(bfd.failures))),
    );
    families.gauge(
        "sheave_bfd_detection_time_seconds",
        "How long silence takes to be noticed by it",
        watched().map(|(labels, bfd)| (labels, bfd.detection_time.as_secs_f64())),
    );
    let counters: [Count<Counters, u64>; 10] = [
        ("sheave_bgp_sessions_established_total", "How often the session became Established", |c| {
            c.established
        }),
        ("sheave_bgp_updates_sent_total", "UPDATE messages sent", |c| c.updates_sent),
        ("sheave_bgp_updates_received_total", "UPDATE messages received", |c| c.updates_received),
        ("sheave_bgp_prefixes_received_total", "Reachable prefixes in received UPDATE messages", |c| {
            c.prefixes_received
        }),
        ("sheave_bgp_prefixes_withdrawn_total", "Withdrawn prefixes in received UPDATE messages", |c| {
            c.prefixes_withdrawn
        }),
        (
            "sheave_bgp_malformed_updates_total",
            "Received UPDATE messages with malformed attributes, treated as RFC 7606 says",
            |c| c.malformed_updates,
        ),
        (
            "sheave_bgp_notifications_sent_total",
            "Sessions and attempts that this side ended with a NOTIFICATION",
            |c| c.notifications_sent,
        ),
        (
            "sheave_bgp_notifications_received_total",
            "Sessions and attempts that the peer ended with a NOTIFICATION",
            |c| c.notifications_received,
        ),
        ("sheave_bgp_sent_bytes_total", "Bytes sent to a peer", |c| c.bytes_sent),
        ("sheave_bgp_received_bytes_total", "Bytes received from a peer", |c| c.bytes_received),
    ];
    for (name, help, count) in counters {
        families.counter(
            name,
            help,
            labels.iter().map(|(labels, peer)| (&labels[..], float(count(&peer.counters)))),
        );
    }
    let errors: Vec<_> = peers
        .iter()
        .filter_map(|(address, asn, peer)| {
            let error = peer.last_error.as_ref()?;
            let labels =
                [("peer", address.as_str()), ("asn", asn.as_str()), ("reason", reason(&error.reason))];
            Some((labels, error.at))
        })
        .collect();
    families.gauge(
        "sheave_bgp_last_error_timestamp_seconds",
        "When the last session or attempt ended, by what ended it; `sheave status` has it in words",
        errors.iter().map(|(labels, at): &(_, SystemTime)| (&labels[..], seconds(*at))),
    );
    let per_family: Vec<_> = peers
        .iter()
        .flat_map(|(address, asn, peer)| {
            peer.session.iter().flat_map(|session| &session.families).map(move |status| {
                (
                    [("peer", address.as_str()), ("asn", asn.as_str()), ("family", family(status.family))],
                    status,
                )
            })
        })
        .collect();
    let gauges: [Count<FamilyStatus, usize>; 2] = [
        ("sheave_bgp_prefixes_sent", "Prefixes that the peer was told and not withdrawn", |f| {
            f.prefixes_sent
        }),
        ("sheave_bgp_prefixes_pending", "Changes that the peer has yet to be told", |f| f.prefixes_pending),
    ];
    for (name, help, count) in gauges {
        families.gauge(
            name,
            help,
            per_family.iter().map(|(labels, status)| (&labels[..], number(count(status)))),
        );
    }
    families.gauge(
        "sheave_bgp_reflected_prefixes",
        "Prefixes that are passed on between internal peers, as route reflector",
        [(&[][..], number(speaker.reflected))],
    );
}

/// Adds the families of ranges that peers connect from.
pub fn add_ranges<'a>(ranges: impl Iterator<Item = &'a DynamicPeersStatus>, families: &mut Families) {
    let ranges: Vec<_> = ranges.map(|range| (range.prefix.to_string(), range)).collect();
    let ranges: Vec<_> =
        ranges.iter().map(|(prefix, range)| ([("prefix", prefix.as_str())], *range)).collect();
    families.gauge(
        "sheave_bgp_dynamic_peers",
        "Peers that have connected from a range, including those that went a short while ago",
        ranges.iter().map(|(labels, range)| (&labels[..], number(range.peers))),
    );
    families.gauge(
        "sheave_bgp_dynamic_peers_limit",
        "How many there may be",
        ranges.iter().map(|(labels, range)| (&labels[..], number(range.limit))),
    );
    families.counter(
        "sheave_bgp_dynamic_peers_refused_total",
        "Connections refused because the range had as many peers as it may have",
        ranges.iter().map(|(labels, range)| (&labels[..], float(range.refused))),
    );
}

/// Adds the families of what is learnt.
pub fn add_learnt(learnt: &LearntStatus, speaker: &SpeakerStatus, families: &mut Families) {
    families.gauge(
        "sheave_bgp_learnt_prefixes",
        "Prefixes that some peer announces and its import policy lets in",
        [(&[][..], number(learnt.routes))],
    );
    let peers: Vec<_> = speaker
        .peers
        .iter()
        .filter_map(|peer| Some((peer.name(), peer.asn.to_string(), learnt.peers.get(&peer.address)?)))
        .collect();
    let per_family: Vec<_> = peers
        .iter()
        .flat_map(|(peer, asn, counts)| {
            counts.iter().map(move |(of, counts)| {
                ([("peer", peer.as_str()), ("asn", asn), ("family", family(*of))], counts)
            })
        })
        .collect();
    let gauges: [Count<FamilyCounts, usize>; 2] = [
        (
            "sheave_bgp_prefixes_held",
            "Prefixes that a peer announces of which something is imported or passed on",
            |counts| counts.received,
        ),
        ("sheave_bgp_prefixes_accepted", "Those of them that its import policy lets in", |counts| {
            counts.accepted
        }),
    ];
    for (name, help, count) in gauges {
        families.gauge(
            name,
            help,
            per_family.iter().map(|(labels, counts)| (&labels[..], number(count(counts)))),
        );
    }
}

/// What ended a session, as one of few words.
fn reason(down: &Down) -> &'static str {
    match down {
        Down::NotificationReceived(_) => "NotificationReceived",
        Down::Error(_) => "Error",
        Down::ConnectionClosed => "ConnectionClosed",
        Down::ConnectFailed(_) => "ConnectFailed",
        Down::Stopped => "Stopped",
        Down::Reset => "Reset",
    }
}

fn family(family: Family) -> &'static str {
    match family {
        Family::Ipv4Unicast => "ipv4",
        Family::Ipv6Unicast => "ipv6",
    }
}
