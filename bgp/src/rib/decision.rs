//! The decision process: which of several routes to a prefix are used (RFC 4271 §9.1.2.2, RFC 4456 §9, RFC 9494 §4.3).

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use super::path::{Path, Source};

/// A route that may be used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    pub(super) path: &'a Path,
    pub(super) source: &'a Source,
}

/// Those to use: the best first, then those that are as good but for its name (multipath).
///
/// All candidates are looked at together, in the RFC's order of steps: what comes out does not depend on the order in which
/// they came, as it would if they were compared two by two (RFC 4451 §2.4). Step e, the interior cost, is the same
/// for all: next hops are on a link of this node, or the route is no candidate.
pub(super) fn select<'a>(mut candidates: Vec<Candidate<'a>>) -> Vec<Candidate<'a>> {
    if candidates.len() < 2 {
        return candidates;
    }
    keep_least(&mut candidates, |&Candidate { path, .. }| {
        // What is kept for want of anything else (RFC 9494 §4.3) comes last; degree of preference (§9.1.1): the highest; steps a, b.
        (path.is_long_lived_stale(), Reverse(path.local_pref()), path.as_path_length(), path.origin())
    });
    keep_least_med(&mut candidates);
    keep_least(&mut candidates, |candidate| candidate.source.ibgp);
    if let Some((best, _)) = candidates.iter().enumerate().min_by_key(|(_, candidate)| name(candidate)) {
        candidates.swap(0, best);
    }
    candidates
}

fn keep_least<K: Ord>(candidates: &mut Vec<Candidate<'_>>, key: impl Fn(&Candidate<'_>) -> K) {
    if let Some(least) = candidates.iter().map(&key).min() {
        candidates.retain(|candidate| key(candidate) == least);
    }
}

/// Step c: metrics of different neighbouring ASes say nothing of each other.
fn keep_least_med(candidates: &mut Vec<Candidate<'_>>) {
    let mut metrics = candidates.iter().map(|candidate| candidate.path.med());
    let first = metrics.next();
    if metrics.all(|metric| Some(metric) == first) {
        return;
    }
    let mut least: HashMap<Option<u32>, u32> = HashMap::new();
    for Candidate { path, .. } in candidates.iter() {
        least.entry(path.neighbour_as()).and_modify(|med| *med = path.med().min(*med)).or_insert(path.med());
    }
    candidates.retain(|candidate| least.get(&candidate.path.neighbour_as()) == Some(&candidate.path.med()));
}

/// Steps f and g, with those of RFC 4456 §9: what tells equals apart.
fn name(candidate: &Candidate<'_>) -> (Ipv4Addr, usize, IpAddr) {
    let Candidate { path, source } = candidate;
    let attributes = &path.attributes;
    (attributes.originator_id.unwrap_or(source.router_id), attributes.cluster_list.len(), source.peer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Community;
    use crate::wire::{AsPath, Origin, PathAttributes, Segment, SegmentKind};

    fn path(change: impl FnOnce(&mut PathAttributes)) -> Path {
        let mut attributes = PathAttributes {
            origin: Some(Origin::Igp),
            as_path: Some(AsPath::sequence(vec![65001, 65009])),
            ..PathAttributes::default()
        };
        change(&mut attributes);
        Path { next_hop: IpAddr::from([10, 0, 0, 9]).into(), attributes }
    }

    fn source(number: u8, ibgp: bool) -> Source {
        Source {
            peer: [10, 0, 0, number].into(),
            router_id: [10, 9, 9, number].into(),
            asn: 65001,
            ibgp,
            role: None,
            local: [10, 0, 0, 1].into(),
            extended_next_hop: false,
            interface: None,
            client: false,
        }
    }

    /// Each step decides where those before it are silent, and against all that come after it.
    #[test]
    fn steps_in_order() {
        let asns = |asns: &[u32]| Some(AsPath::sequence(asns.to_vec()));
        let with = |kind, asns: &[u32]| {
            let confederation = Segment { kind, asns: asns.to_vec() };
            let sequence = Segment { kind: SegmentKind::Sequence, asns: vec![65001] };
            Some(AsPath { segments: vec![confederation, sequence] })
        };
        // The better one has the higher name; `multipath` says whether both are used.
        let cases: Vec<(&str, Path, bool, Path, bool, bool)> = vec![
            (
                "a last resort",
                path(|a| a.local_pref = Some(1)),
                true,
                path(|a| a.communities = vec![Community::LLGR_STALE]),
                false,
                false,
            ),
            (
                "LOCAL_PREF",
                path(|a| a.local_pref = Some(101)),
                true,
                path(|a| a.as_path = None),
                false,
                false,
            ),
            (
                "about to be withdrawn",
                path(|_| {}),
                false,
                path(|a| {
                    a.local_pref = Some(200);
                    a.communities = vec![Community::GRACEFUL_SHUTDOWN];
                }),
                true,
                false,
            ),
            ("no LOCAL_PREF is 100", path(|_| {}), false, path(|a| a.local_pref = Some(99)), true, false),
            (
                "length of the AS_PATH",
                path(|a| {
                    a.as_path = asns(&[65001]);
                    a.origin = Some(Origin::Incomplete);
                }),
                false,
                path(|_| {}),
                false,
                false,
            ),
            (
                "a set counts as one",
                path(|a| a.as_path = with(SegmentKind::Set, &[1, 2, 3])),
                false,
                path(|a| a.as_path = asns(&[65001, 65002, 65003])),
                false,
                false,
            ),
            (
                "a confederation counts for nothing",
                path(|a| a.as_path = with(SegmentKind::ConfedSequence, &[1, 2, 3])),
                false,
                path(|_| {}),
                false,
                false,
            ),
            (
                "ORIGIN",
                path(|a| a.med = Some(9)),
                false,
                path(|a| a.origin = Some(Origin::Egp)),
                false,
                false,
            ),
            ("MED", path(|a| a.med = Some(4)), true, path(|a| a.med = Some(5)), false, false),
            ("no MED is the best", path(|_| {}), false, path(|a| a.med = Some(1)), false, false),
            ("eBGP over iBGP", path(|_| {}), false, path(|_| {}), true, false),
        ];
        for (name, better, better_ibgp, worse, worse_ibgp, multipath) in cases {
            let (high, low) = (source(9, better_ibgp), source(2, worse_ibgp));
            let good = Candidate { path: &better, source: &high };
            let bad = Candidate { path: &worse, source: &low };
            for both in [vec![good, bad], vec![bad, good]] {
                let selected = select(both);
                assert_eq!(selected[0].source, &high, "{name}");
                assert_eq!(selected.len() == 2, multipath, "{name}");
            }
        }
    }

    /// Names tell which of equals is the best; all of them are used.
    #[test]
    fn names_decide_among_equals() {
        let plain = path(|_| {});
        let originated = |id: [u8; 4], clusters: &[[u8; 4]]| {
            path(|a| {
                a.originator_id = Some(id.into());
                a.cluster_list = clusters.iter().map(|&cluster| cluster.into()).collect();
            })
        };
        let cases = [
            ("router id", plain.clone(), 2, plain.clone(), 3),
            ("ORIGINATOR_ID in its place", originated([10, 9, 9, 1], &[[9; 4]]), 3, plain, 2),
            (
                "the shorter CLUSTER_LIST",
                originated([10, 9, 9, 1], &[[9; 4]]),
                3,
                originated([10, 9, 9, 1], &[[9; 4]; 2]),
                2,
            ),
            (
                "the peer's address",
                originated([10, 9, 9, 1], &[[9; 4]]),
                2,
                originated([10, 9, 9, 1], &[[7; 4]]),
                3,
            ),
        ];
        for (name, better, better_number, worse, worse_number) in cases {
            let sources = [source(better_number, true), source(worse_number, true)];
            let good = Candidate { path: &better, source: &sources[0] };
            let bad = Candidate { path: &worse, source: &sources[1] };
            for both in [vec![good, bad], vec![bad, good]] {
                let selected = select(both);
                assert_eq!(selected.len(), 2, "{name}");
                assert_eq!(selected[0].source, &sources[0], "{name}");
            }
        }
    }

    /// The MEDs of 65001 leave its better one; that of 65002 has no say in it, nor has 65001 in its.
    #[test]
    fn metrics_are_compared_within_an_as() {
        let of = |asn: u32, med: u32| {
            path(move |a| {
                a.as_path = Some(AsPath::sequence(vec![asn, 65009]));
                a.med = Some(med);
            })
        };
        let paths = [of(65001, 20), of(65001, 10), of(65002, 30)];
        let sources = [source(1, false), source(2, false), source(3, false)];
        let all: Vec<Candidate<'_>> =
            paths.iter().zip(&sources).map(|(path, source)| Candidate { path, source }).collect();
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1]] {
            let selected = select(order.map(|index| all[index]).to_vec());
            let peers: Vec<IpAddr> = selected.iter().map(|candidate| candidate.source.peer).collect();
            assert_eq!(peers, [sources[1].peer, sources[2].peer], "{order:?}");
        }
    }
}
