//! What becomes of a rewrite that leaves the plan, and of what conntrack knows of it.

use super::*;
use crate::builders::{mk_rewrite, mk_virtual_server};
use crate::cluster::Protocol;
use crate::config::MarkMask;
use crate::plan::{VipKind, VipPort};

fn key(protocol: Protocol) -> RewriteKey {
    let vip = VipPort { address: "10.96.0.80".parse().unwrap(), port: 80, protocol };
    RewriteKey { endpoint: "10.244.1.5".parse().unwrap(), side: RewriteSide::Endpoint, vip }
}

fn rewrite(terminating: bool) -> Rewrite {
    Rewrite { terminating, ..mk_rewrite(true) }
}

fn plan(vip: VipPort, served: bool) -> NodePlan {
    let mut plan = NodePlan::default();
    if served {
        plan.virtual_servers.insert(vip, mk_virtual_server(vip, VipKind::ClusterIP));
    }
    plan
}

fn numbers() -> Numbers {
    Numbers::new(MarkMask::new(0x7fff).unwrap(), HashMap::new(), HashMap::new())
}

#[test]
fn what_leaves_the_plan_lingers_unless_it_is_gone() {
    const MOMENT: Duration = Duration::from_millis(10);
    for (case, protocol, terminating, served, held_for, forgotten) in [
        ("TCP, gone", Protocol::Tcp, true, true, None, true),
        ("SCTP, gone", Protocol::Sctp, true, true, None, true),
        ("UDP, gone", Protocol::Udp, true, true, None, true),
        ("TCP, out of the Service", Protocol::Tcp, false, true, Some(LINGER), false),
        ("SCTP, out of the Service", Protocol::Sctp, false, true, Some(LINGER), false),
        ("UDP, out of the Service", Protocol::Udp, false, true, Some(LINGER), true),
        ("TCP, the Service is gone", Protocol::Tcp, false, false, Some(LINGER), false),
    ] {
        let (mut rewrites, mut numbers, now) = (Rewrites::default(), numbers(), Instant::now());
        let key = key(protocol);
        let plan = plan(key.vip, served);
        rewrites.hold(&mut numbers, key, rewrite(terminating), &mut Changes::default());
        let mut changes = Changes::default();
        rewrites.follow(&mut numbers, &plan, key, now, &mut changes);
        if let Some(held_for) = held_for {
            assert!(changes.gone.is_empty(), "{case}");
            assert_eq!(rewrites.take_stale(), [], "{case}: late directors still use it");
            assert_eq!(rewrites.due(now + held_for - MOMENT), [], "{case}");
            assert_eq!(rewrites.due(now + held_for), [key], "{case}");
            rewrites.drop(&mut numbers, key, &mut changes);
        }
        assert!(rewrites.elements(&numbers).is_empty() && !changes.gone.is_empty(), "{case}");
        let stale = Stale { vip: key.vip, from: "10.244.1.5:8080".parse().unwrap() };
        assert_eq!(rewrites.take_stale(), if forgotten { vec![stale] } else { vec![] }, "{case}");
        assert_eq!(rewrites.take_stale(), [], "{case}: told once");
    }
}

#[test]
fn that_an_endpoint_terminates_or_does_not_changes_nothing_in_the_table() {
    let (mut rewrites, mut numbers) = (Rewrites::default(), numbers());
    let key = key(Protocol::Udp);
    rewrites.hold(&mut numbers, key, rewrite(false), &mut Changes::default());
    for terminating in [true, false] {
        let mut changes = Changes::default();
        rewrites.hold(&mut numbers, key, rewrite(terminating), &mut changes);
        assert!(changes.gone.is_empty() && changes.new.is_empty(), "{terminating}");
        assert_eq!(rewrites.held[&key].terminating, terminating);
    }
    assert_eq!(rewrites.take_stale(), []);
}

#[test]
fn another_target_port_leaves_the_number_as_it_is() {
    let (mut rewrites, mut numbers) = (Rewrites::default(), numbers());
    let (key, captured) =
        (key(Protocol::Tcp), Captured { endpoint: key(Protocol::Tcp).endpoint, side: RewriteSide::Endpoint });
    rewrites.hold(&mut numbers, key, rewrite(false), &mut Changes::default());
    let (before, mut changes) = (numbers.mark(captured), Changes::default());
    rewrites.hold(&mut numbers, key, Rewrite { target_port: 8081, ..rewrite(false) }, &mut changes);
    assert!(before.is_some());
    assert_eq!(numbers.mark(captured), before);
    let of_rewrite = |element: &Element| matches!(element, Element::Endpoint(..));
    assert!(changes.gone.iter().chain(&changes.new).all(of_rewrite), "{changes:?}");
    assert_eq!((changes.gone.len(), changes.new.len()), (1, 1));
    rewrites.drop(&mut numbers, key, &mut changes);
    assert_eq!(numbers.mark(captured), None, "counted once");
}

#[test]
fn after_a_restart_what_nobody_wants_is_found_and_forgotten() {
    let (mut before, mut numbers, now) = (Rewrites::default(), numbers(), Instant::now());
    let wanted = RewriteKey { endpoint: "10.244.1.6".parse().unwrap(), ..key(Protocol::Udp) };
    let unwanted = key(Protocol::Udp);
    for key in [wanted, unwanted] {
        before.hold(&mut numbers, key, rewrite(false), &mut Changes::default());
    }
    let found = before.elements(&numbers);

    let mut plan = plan(wanted.vip, true);
    plan.rewrites.insert(wanted, rewrite(true));
    let mut after = Rewrites::default();
    after.adopt(&mut numbers, &found);
    after.rebuild(&mut numbers, &plan, now);
    assert_eq!(after.elements(&numbers), found, "both are held, the one lingers");
    assert!(after.held[&wanted].terminating, "what the plan knows counts");
    assert_eq!(after.due(now + LINGER), [unwanted]);
    after.rebuild(&mut numbers, &plan, now + LINGER);
    assert_eq!(after.take_stale().len(), 1);
}

#[test]
fn what_is_dispensable_comes_last_and_says_what_happens_instead() {
    let now = Instant::now();
    let director = |last: u8, terminating, dispensable| {
        let key = RewriteKey {
            endpoint: IpAddr::from([10, 244, 2, last]),
            side: RewriteSide::Director,
            ..key(Protocol::Tcp)
        };
        (key, Rewrite { dispensable, ..rewrite(terminating) })
    };
    // 15 numbers, of which one is kept.
    let mut numbers = Numbers::new(MarkMask::new(0x1f).unwrap(), HashMap::new(), HashMap::new());
    let mut plan = plan(key(Protocol::Tcp).vip, true);
    plan.rewrites.extend((0..20).map(|last| director(last, false, true)));
    plan.rewrites.extend([(key(Protocol::Tcp), rewrite(false)), director(20, false, false)]);
    let mut rewrites = Rewrites::default();
    rewrites.rebuild(&mut numbers, &plan, now);
    rewrites.rebuild_dispensable(&mut numbers, &plan);
    assert_eq!((rewrites.held.len(), rewrites.refused.len()), (14, 8));
    assert!(rewrites.refused.keys().all(|key| plan.rewrites[key].dispensable));
    let why = rewrites.refused.values().next().unwrap().to_string();
    assert!(why.contains("services.markMask") && why.contains("tunnel"), "{why}");

    // The numbers that are free again go to what was refused; what is not dispensable finds the one that was kept.
    let (last, kept) = director(21, false, false);
    rewrites.hold(&mut numbers, last, kept, &mut Changes::default());
    assert!(!rewrites.refused.contains_key(&last));
    let held = rewrites.held.iter().find(|(_, held)| held.dispensable).map(|(key, _)| *key).unwrap();
    plan.rewrites.remove(&held);
    rewrites.drop(&mut numbers, held, &mut Changes::default());
    rewrites.drop(&mut numbers, last, &mut Changes::default());
    let refused = *rewrites.refused.keys().next().unwrap();
    rewrites.follow(&mut numbers, &plan, refused, now, &mut Changes::default());
    assert!(rewrites.held.contains_key(&refused));
}
