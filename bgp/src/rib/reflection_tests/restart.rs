//! Clients that restart, a reflector that does, and one that goes.

use super::*;

/// While a client restarts its routes are passed on; what it has not told again is withdrawn.
#[test]
fn restart_of_a_client() {
    let mut reflector = Reflector::with([3]);
    reflector.up(2, Some(graceful(false)));
    reflector.receive(2, &announce(2, attributes(), &[A, B]));
    assert_eq!(reflector.sent(3).len(), 2);
    reflector.down(2, Some(&graceful(false)));
    assert_eq!(reflector.sent(3), [""; 0]);
    // Whoever comes meanwhile hears of them too.
    reflector.up(4, None);
    assert_eq!(reflector.sent(4).iter().filter(|word| word.starts_with('+')).count(), 2);
    reflector.up(2, Some(graceful(true)));
    reflector.receive(2, &announce(2, attributes(), &[A]));
    assert_eq!(reflector.sent(3), [""; 0]);
    reflector.receive(2, &Update::end_of_rib_marker(Family::Ipv4Unicast));
    assert_eq!(reflector.sent(3), [format!("-{B}")]);
    // It goes again, and stays away: nothing of it is left.
    reflector.down(2, Some(&graceful(false)));
    assert_eq!(reflector.sent(3), [""; 0]);
    let late = reflector.learnt.deadline(address(2)).unwrap();
    reflector.learnt.expire(address(2), late);
    reflector.follow();
    assert_eq!(reflector.sent(3), [format!("-{A}")]);
    assert!(!reflector.learnt.peers().any(|peer| peer == address(2)));
}

/// A task that ends takes what it would have expired along.
#[test]
fn a_peer_that_is_forgotten_while_it_restarts() {
    let mut reflector = Reflector::with([3]);
    reflector.up(2, Some(graceful(false)));
    reflector.receive(2, &announce(2, attributes(), &[A]));
    reflector.sent(3);
    reflector.down(2, Some(&graceful(false)));
    reflector.learnt.peer_gone(address(2));
    reflector.follow();
    assert_eq!(reflector.sent(3), [format!("-{A}")]);
}

/// End-of-RIB of a reflector that has restarted comes after those of its peers, or when they are not waited for any more.
#[test]
fn restart_of_the_reflector() {
    let ends = |reflector: &mut Reflector| {
        reflector.sent(2).into_iter().filter(|word| word.starts_with("end")).count()
    };
    let restarted = |others: bool| {
        let mut reflector = Reflector::new(true);
        reflector.learnt.await_peers([2, 3].map(address), others);
        reflector.up(2, Some(graceful(false)));
        for family in Family::ALL {
            reflector.receive(2, &Update::end_of_rib_marker(family));
        }
        reflector.rib.initial_routes_complete();
        reflector.follow();
        reflector
    };
    let tell_all = |reflector: &mut Reflector| {
        reflector.up(3, Some(graceful(false)));
        reflector.receive(3, &announce(3, attributes(), &[A]));
        reflector.receive(3, &Update::end_of_rib_marker(Family::Ipv4Unicast));
        assert_eq!(ends(reflector), 0, "of one family only");
        reflector.receive(3, &Update::end_of_rib_marker(Family::Ipv6Unicast));
    };

    let mut reflector = restarted(false);
    assert_eq!(ends(&mut reflector), 0, "a peer has not come yet");
    tell_all(&mut reflector);
    assert_eq!(ends(&mut reflector), 2);

    for (name, graceful_restart) in [("does not say", None), ("restarts itself", Some(graceful(true)))] {
        let mut reflector = restarted(false);
        reflector.up(3, graceful_restart);
        assert_eq!(ends(&mut reflector), 2, "not waited for: {name}");
    }

    let mut reflector = restarted(true);
    tell_all(&mut reflector);
    assert_eq!(ends(&mut reflector), 0, "others may come from a range");
    reflector.learnt.stop_waiting();
    reflector.follow();
    assert_eq!(ends(&mut reflector), 2);

    // Ours are waited for as ever, and a speaker that passes nothing on waits for no peer.
    let mut reflector = Reflector::new(true);
    reflector.learnt.await_peers([address(3)], true);
    reflector.learnt.set_reflector(None);
    reflector.up(2, None);
    assert_eq!(ends(&mut reflector), 0);
    reflector.rib.initial_routes_complete();
    reflector.follow();
    assert_eq!(ends(&mut reflector), 2);
    // Nor does one that starts cold.
    let mut reflector = Reflector::new(false);
    reflector.learnt.await_peers([address(3)], true);
    reflector.up(2, None);
    assert_eq!(ends(&mut reflector), 2);
}

/// A speaker that goes has its peers keep what they hold.
#[test]
fn frozen() {
    let mut reflector = Reflector::with(CLIENTS);
    reflector.receive(2, &announce(2, attributes(), &[A]));
    reflector.told();
    reflector.learnt.freeze();
    reflector.down(2, None);
    assert_eq!(reflector.sent(3), [""; 0]);
}
