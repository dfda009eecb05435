//! Several paths of a client to a prefix (RFC 7911), and those that are a last resort (RFC 9494).

use super::*;
use crate::rib::RouteChanges;
use crate::session::LongLived;
use crate::{Attributes, Community};

/// One of all paths is passed on, the best; when it goes, the next.
#[test]
fn the_best_of_all_paths() {
    for prefix in [A, V6] {
        let mut reflector = Reflector::with([2, 3, 4]);
        let preferred = |local_pref| PathAttributes { local_pref: Some(local_pref), ..attributes() };
        let path = |id, hop, local_pref| of_path(id, announce(hop, preferred(local_pref), &[prefix]));
        let gone = |id| of_path(id, withdraw(&[prefix]));
        let via = |hop: u8| vec![format!("+{prefix} via {hop}")];
        let steps = [
            (2, path(1, 21, 100), via(21)),
            (2, path(2, 22, 200), via(22)),
            (4, path(1, 41, 150), vec![]),
            // The same name is another path of another peer.
            (4, gone(2), vec![]),
            (2, path(1, 23, 100), vec![]),
            (2, gone(2), via(41)),
            (4, gone(1), via(23)),
            (2, gone(1), vec![format!("-{prefix}")]),
        ];
        for (number, (peer, update, told)) in steps.into_iter().enumerate() {
            reflector.receive(peer, &update);
            assert_eq!(reflector.sent(3), told, "{prefix}, step {number}");
        }
    }
}

/// Who takes several has all that others announce, and ours: each keeps its name as others come, change and go (RFC 7911 §3), and the name
/// of one that went is not soon another's.
#[test]
fn all_paths() {
    for prefix in [A, V6] {
        let mut reflector = Reflector::with([2, 3]);
        reflector.up_with(4, &Negotiated { paths_sent: Families::ALL, ..negotiated(4, None) });
        reflector.sent(4);
        let names = |reflector: &mut Reflector| {
            let mut told: Vec<String> = Vec::new();
            for update in reflector.updates(4) {
                let hop = next_hop(&update);
                told.extend(update.reachable().map(|nlri| format!("+{} via {hop}", nlri.path_id)));
                told.extend(update.unreachable().map(|nlri| format!("-{}", nlri.path_id)));
            }
            told.sort();
            told
        };
        let preferred = |hop, local_pref| {
            announce(hop, PathAttributes { local_pref: Some(local_pref), ..attributes() }, &[prefix])
        };
        reflector.receive(2, &preferred(21, 100));
        reflector.receive(3, &preferred(31, 100));
        reflector.receive(4, &preferred(41, 300));
        assert_eq!(names(&mut reflector), ["+2 via 21", "+3 via 31"], "{prefix}: not its own");
        reflector.receive(3, &preferred(31, 200));
        assert_eq!(names(&mut reflector), ["+3 via 31"], "{prefix}: another order is no news");
        let net = prefix.parse().unwrap();
        let ours = RouteChanges { announce: vec![(net, Attributes::default())], withdraw: vec![] };
        reflector.rib.apply(ours);
        assert_eq!(names(&mut reflector), ["+1 via 1"], "{prefix}");
        reflector.receive(2, &withdraw(&[prefix]));
        reflector.receive(2, &preferred(22, 100));
        assert_eq!(names(&mut reflector), ["+5 via 22", "-2"], "{prefix}");
        // One that comes and goes unseen is not told of.
        reflector.receive(3, &withdraw(&[prefix]));
        reflector.receive(3, &preferred(32, 100));
        reflector.receive(3, &withdraw(&[prefix]));
        reflector.rib.apply(RouteChanges { announce: vec![], withdraw: vec![net] });
        assert_eq!(names(&mut reflector), ["-1", "-3"], "{prefix}");
        reflector.rib.refresh(address(4), Family::of(&net));
        assert_eq!(names(&mut reflector), ["+5 via 22"], "{prefix}: asked again");
        reflector.down(2, None);
        assert_eq!(names(&mut reflector), ["-5"], "{prefix}");
    }
}

/// A client that is away for long: what it announced is for those that know a last resort when they see one (RFC 9494 §4.3), and for
/// nobody while there is anything else.
#[test]
fn a_last_resort() {
    let agreed = |number| {
        let offer = |family| LongLived { family, forwarding: true, stale_time: Duration::from_secs(3600) };
        Negotiated { long_lived: Family::ALL.map(offer).into(), ..negotiated(number, Some(graceful(false))) }
    };
    let routes =
        |words: Vec<String>| words.into_iter().filter(|word| !word.starts_with("end")).collect::<Vec<_>>();
    let mut reflector = Reflector::with([4]);
    reflector.up_with(2, &agreed(2));
    reflector.up_with(3, &agreed(3));
    let start = reflector.now;
    // Both routes are as good as any, but for who has them.
    reflector.receive(2, &announce(2, attributes(), &[A, B]));
    reflector.receive(4, &announce(4, attributes(), &[B]));
    assert_eq!(routes(reflector.sent(3)), [A, B].map(|prefix| format!("+{prefix} via 2")));
    assert_eq!(reflector.sent(4), [A, B].map(|prefix| format!("+{prefix} via 2")));

    reflector.down_with(2, Some(&agreed(2)));
    assert_eq!((reflector.sent(3), reflector.sent(4)), (vec![], vec![]), "it may be back");
    reflector.learnt.expire(address(2), start + Duration::from_secs(120));
    reflector.follow();
    let updates = reflector.updates(3);
    let marked = |update: &Update| update.attributes.communities == [Community::LLGR_STALE];
    let told: Vec<_> = updates.iter().map(|update| (next_hop(update), marked(update))).collect();
    assert_eq!(told, [(2, true), (4, false)], "{updates:?}");
    assert_eq!(reflector.sent(4), [A, B].map(|prefix| format!("-{prefix}")), "its own is no news to it");
    // Whoever comes is told what it understands.
    reflector.up(100, None);
    assert_eq!(routes(reflector.sent(100)), [format!("+{B} via 4")]);

    // Nothing of it is left when that time is over too.
    reflector.learnt.expire(address(2), start + Duration::from_secs(3720));
    reflector.follow();
    assert_eq!((reflector.sent(3), routes(reflector.sent(100))), (vec![format!("-{A}")], vec![]));
    assert!(!reflector.learnt.peers().any(|peer| peer == address(2)));
}
