//! A configuration that changes while sessions stand.

use super::*;

/// Who is a client, and whether there are any, changes while sessions stand; those that need not hear of it do not.
#[test]
fn live_changes() {
    let mut reflector = Reflector::with_all();
    reflector.receive(2, &announce(2, attributes(), &[A]));
    reflector.receive(100, &announce(100, attributes(), &[B]));
    reflector.told();
    let set_client = |reflector: &mut Reflector, number, client| {
        reflector.rib.set_client(address(number), client);
        reflector.learnt.set_client(address(number), client);
        reflector.follow();
    };
    set_client(&mut reflector, 101, true);
    assert_eq!(reflector.sent(101), [format!("+{B} via 100")]);
    assert_eq!(reflector.told(), [0; 0]);
    set_client(&mut reflector, 100, true);
    assert_eq!(reflector.told(), CLIENTS.into_iter().chain([101]).collect::<Vec<_>>());
    set_client(&mut reflector, 100, false);
    set_client(&mut reflector, 101, false);
    assert_eq!(reflector.sent(101), [format!("-{B}")]);
    reflector.told();

    // Another cluster, and none: known routes are told so, and nothing is kept for nothing.
    reflector.learnt.set_reflector(Some([8, 8, 8, 8].into()));
    reflector.follow();
    assert_eq!(reflector.updates(4)[0].attributes.cluster_list, [Ipv4Addr::new(8, 8, 8, 8)]);
    reflector.told();
    reflector.learnt.set_reflector(None);
    reflector.follow();
    assert_eq!(reflector.sent(4), [format!("-{A}"), format!("-{B}")]);
    assert_eq!(reflector.learnt.peers().count(), 0);
    assert!(reflector.rib.is_empty());
    // And again: peers are asked for what was not kept.
    reflector.learnt.set_reflector(Some(CLUSTER));
    assert!(reflector.learnt.awaits_session(address(2), true));
    assert!(!reflector.learnt.awaits_session(address(200), false));
}
