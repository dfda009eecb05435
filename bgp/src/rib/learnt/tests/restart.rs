//! Peers that are away for a while, beyond what RFC 4724 has.

use super::*;

/// Both sides keep routes over NOTIFICATIONs (RFC 8538 §4.1): what is stale outlives further ends of the session, for so long in all.
#[test]
fn sessions_that_end_often() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let peer = address(2);
    let of = |prefixes: &[&str]| announce(2, attributes(&[65001]), prefixes);
    let [a, b] = [A, B].map(|prefix| format!("{prefix} via 2"));
    for (often, kept) in [(true, vec![a.clone(), b]), (false, vec![a])] {
        let agreed = Negotiated { graceful_notification: often, ..negotiated(Some(restart(true))) };
        let mut learnt = Learnt::new(OWN);
        learnt.set_policy(peer, Some(everything()));
        learnt.peer_up(source(2), &agreed, start);
        learnt.receive(peer, &of(&[A, B])).unwrap();
        learnt.peer_down(peer, Some(&agreed), start);
        learnt.peer_up(source(2), &agreed, at(100));
        learnt.receive(peer, &of(&[A])).unwrap();
        learnt.peer_down(peer, Some(&agreed), at(110));
        assert_eq!(used(&learnt), kept, "{often}");
        assert_eq!(learnt.deadline(peer), Some(at(230)));
        // Its time is over, and what was told since has another.
        learnt.peer_up(source(2), &agreed, at(200));
        learnt.receive(peer, &of(&[A])).unwrap();
        learnt.peer_down(peer, Some(&agreed), at(300));
        assert_eq!(used(&learnt), kept[..1], "{often}");
        learnt.expire(peer, at(420));
        assert_empty(&learnt);
    }
}
