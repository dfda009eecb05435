use proptest::prelude::*;
use sheave_ipvs::Stats;

use super::*;
use crate::builders::{mk_destination, mk_virtual_server};
use crate::plan::VipKind;

/// What `ip_vs_ctl.c` does with operations, as far as it matters here.
#[derive(Clone, Debug, Default)]
struct Kernel(Option<ServiceEntry>);

impl Kernel {
    fn apply(&mut self, operations: &[Operation]) {
        for operation in operations {
            match *operation {
                Operation::AddService(service) => {
                    assert!(self.0.is_none(), "EEXIST");
                    self.0 = Some(ServiceEntry { service, stats: Stats::default(), destinations: vec![] });
                }
                Operation::SetService(service) => self.0.as_mut().expect("ESRCH").service = service,
                Operation::DelService(_) => drop(self.0.take().expect("ESRCH")),
                Operation::AddDestination(_, destination) => {
                    let entries = &mut self.0.as_mut().expect("ESRCH").destinations;
                    assert!(
                        !entries.iter().any(|entry| id(entry) == (destination.address, destination.port))
                    );
                    entries.insert(0, entry(destination, 0));
                }
                Operation::SetDestination(_, destination) => {
                    let entries = &mut self.0.as_mut().expect("ESRCH").destinations;
                    let at = entries.iter_mut().find(|e| id(e) == (destination.address, destination.port));
                    at.expect("ENOENT").destination = destination;
                }
                Operation::DelDestination(_, address, port) => {
                    let entries = &mut self.0.as_mut().expect("ESRCH").destinations;
                    let at = entries.iter().position(|e| id(e) == (address, port)).expect("ENOENT");
                    entries.remove(at);
                }
                ref other => panic!("{other:?}"),
            }
        }
    }

    /// Destinations in the order of their addition.
    fn destinations(&self) -> Vec<Destination> {
        self.0.iter().flat_map(|s| s.destinations.iter().rev().map(|entry| entry.destination)).collect()
    }
}

fn id(entry: &DestinationEntry) -> (IpAddr, u16) {
    (entry.destination.address, entry.destination.port)
}

fn entry(destination: Destination, connections: u32) -> DestinationEntry {
    DestinationEntry {
        destination,
        active_connections: connections,
        inactive_connections: 0,
        persistent_connections: 0,
        stats: Stats::default(),
    }
}

fn server(protocol: cluster::Protocol, scheduler: Scheduler, endpoints: &[(u8, u32)]) -> Wanted {
    let server = planned(protocol, scheduler, endpoints);
    Wanted::new(&server, service_key(&server.vip), |_| false)
}

/// A virtual server on 10.96.0.80:80 with tunnel destinations 10.244.0.N:8080, with weights.
fn planned(protocol: cluster::Protocol, scheduler: Scheduler, endpoints: &[(u8, u32)]) -> VirtualServer {
    let mut destinations: Vec<_> = endpoints
        .iter()
        .map(|&(last, weight)| crate::plan::Destination {
            weight,
            terminating: weight == 0,
            ..mk_destination(IpAddr::from([10, 244, 0, last]), Forwarding::Tunnel)
        })
        .collect();
    destinations.sort();
    destinations.dedup_by_key(|destination| destination.address);
    let vip = VipPort { address: IpAddr::from([10, 96, 0, 80]), port: 80, protocol };
    VirtualServer { scheduler, destinations, ..mk_virtual_server(vip, VipKind::ClusterIP) }
}

/// Without memory of destinations that the plan had with weight 0.
fn plain(wanted: Option<&Wanted>, listed: Option<&ServiceEntry>) -> Steps {
    steps(wanted, listed, &BTreeSet::new())
}

fn mh(endpoints: &[(u8, u32)]) -> Wanted {
    server(cluster::Protocol::Tcp, Scheduler::Mh, endpoints)
}

fn held(wanted: &Wanted) -> Kernel {
    let mut kernel = Kernel::default();
    kernel.apply(&plain(Some(wanted), None).operations);
    kernel
}

#[test]
fn another_encapsulation_changes_destinations_where_they_are() {
    let endpoints = &[(1, 1), (2, 0), (3, 1)];
    let [ipip, gue] = [Encapsulation::Ipip, Encapsulation::Gue].map(|encapsulation| {
        let mut server = planned(cluster::Protocol::Tcp, Scheduler::Mh, endpoints);
        server.destinations.iter_mut().for_each(|each| each.encapsulation = encapsulation);
        Wanted::new(&server, service_key(&server.vip), |_| false)
    });
    for (from, to) in [(&ipip, &gue), (&gue, &ipip)] {
        let mut kernel = held(from);
        let steps = plain(Some(to), kernel.0.as_ref());
        assert!(!steps.reorders && !steps.draining);
        let in_place = |operation: &Operation| matches!(operation, Operation::SetDestination(..));
        assert!(steps.operations.iter().all(in_place), "{:?}", steps.operations);
        kernel.apply(&steps.operations);
        assert_eq!(kernel.destinations(), to.destinations);
    }
    let tunnel = TunnelType::Gue { port: fou::PORT, flags: TunnelFlags::empty() };
    assert!(gue.destinations.iter().all(|destination| destination.tunnel == tunnel));
}

#[test]
fn a_new_virtual_server_is_added_in_canonical_order_and_marked_ours() {
    let wanted = mh(&[(3, 1), (1, 1), (2, 1)]);
    let kernel = held(&wanted);
    assert_eq!(kernel.destinations(), wanted.destinations);
    assert!(kernel.0.unwrap().service.flags.contains(OURS));
}

#[test]
fn weight_0_is_added_with_its_weight_first() {
    let operations = plain(Some(&mh(&[(1, 0)])), None).operations;
    let weights: Vec<_> = operations
        .iter()
        .filter_map(|operation| match operation {
            Operation::AddDestination(_, d) | Operation::SetDestination(_, d) => Some(d.weight),
            _ => None,
        })
        .collect();
    assert_eq!(weights, [1, 0]);
}

#[test]
fn a_foreign_virtual_server_is_left_alone() {
    let wanted = mh(&[(1, 1)]);
    let mut listed = held(&wanted).0.unwrap();
    listed.service.flags = ServiceFlags::MH_FALLBACK;
    for wanted in [Some(&wanted), None] {
        let steps = plain(wanted, Some(&listed));
        assert!(steps.foreign && steps.operations.is_empty());
    }
}

#[test]
fn a_destination_drains_before_it_goes() {
    let mut kernel = held(&mh(&[(1, 1), (2, 1)]));
    kernel.0.as_mut().unwrap().destinations[0].active_connections = 3;
    let fewer = mh(&[(1, 1)]);

    let first = plain(Some(&fewer), kernel.0.as_ref());
    assert!(first.draining && !first.reorders);
    kernel.apply(&first.operations);
    assert_eq!(kernel.destinations()[1].weight, 0);

    let second = plain(Some(&fewer), kernel.0.as_ref());
    assert!(second.draining && second.operations.is_empty());

    kernel.0.as_mut().unwrap().destinations[0].active_connections = 0;
    let third = plain(Some(&fewer), kernel.0.as_ref());
    assert!(!third.draining);
    kernel.apply(&third.operations);
    assert_eq!(kernel.destinations(), fewer.destinations);
}

#[test]
fn a_udp_destination_goes_at_once() {
    let udp = |endpoints: &[_]| server(cluster::Protocol::Udp, Scheduler::Rr, endpoints);
    let mut kernel = held(&udp(&[(1, 1), (2, 1)]));
    kernel.0.as_mut().unwrap().destinations[0].inactive_connections = 9;
    let steps = plain(Some(&udp(&[(1, 1)])), kernel.0.as_ref());
    assert!(!steps.draining);
    kernel.apply(&steps.operations);
    assert_eq!(kernel.destinations().len(), 1);
}

#[test]
fn the_last_destination_drains_before_the_virtual_server_goes() {
    let mut kernel = held(&mh(&[(1, 1)]));
    kernel.0.as_mut().unwrap().destinations[0].active_connections = 1;
    let empty = mh(&[]);
    let first = plain(Some(&empty), kernel.0.as_ref());
    assert!(first.draining);
    kernel.apply(&first.operations);
    assert!(kernel.0.is_some());
    kernel.0.as_mut().unwrap().destinations[0].active_connections = 0;
    kernel.apply(&plain(Some(&empty), kernel.0.as_ref()).operations);
    assert!(kernel.0.is_none());
    assert_eq!(plain(Some(&empty), None), Steps::default());
}

#[test]
fn a_deleted_service_takes_its_virtual_server_along() {
    let mut kernel = held(&mh(&[(1, 1)]));
    kernel.apply(&plain(None, kernel.0.as_ref()).operations);
    assert!(kernel.0.is_none());
}

#[test]
fn only_what_comes_after_a_new_destination_moves() {
    let mut kernel = held(&mh(&[(1, 1), (3, 1), (5, 1)]));
    let wanted = mh(&[(1, 1), (3, 1), (4, 1), (5, 1)]);
    let steps = plain(Some(&wanted), kernel.0.as_ref());
    assert!(steps.reorders);
    assert_eq!(steps.operations.len(), 3, "add 4, delete and add 5: {:?}", steps.operations);
    kernel.apply(&steps.operations);
    assert_eq!(kernel.destinations(), wanted.destinations);
}

#[test]
fn order_is_nothing_to_a_scheduler_that_does_not_hash() {
    let rr = |endpoints: &[_]| server(cluster::Protocol::Tcp, Scheduler::Rr, endpoints);
    let kernel = held(&rr(&[(1, 1), (5, 1)]));
    let steps = plain(Some(&rr(&[(1, 1), (3, 1), (5, 1)])), kernel.0.as_ref());
    assert_eq!((steps.operations.len(), steps.reorders), (1, false));
}

#[test]
fn an_endpoint_that_has_terminated_takes_its_connections_along() {
    let (terminating, gone) = (mh(&[(1, 1), (2, 0)]), mh(&[(1, 1)]));
    let mut kernel = held(&terminating);
    kernel.0.as_mut().unwrap().destinations[0].active_connections = 3;
    assert_eq!(plain(Some(&terminating), kernel.0.as_ref()), Steps::default(), "it may take its time");
    let after = steps(Some(&gone), kernel.0.as_ref(), &terminating.closing);
    assert!(!after.draining);
    kernel.apply(&after.operations);
    assert_eq!(kernel.destinations(), gone.destinations);
}

#[test]
fn the_last_endpoint_that_has_terminated_takes_the_virtual_server_along() {
    let (terminating, gone) = (mh(&[(1, 0)]), mh(&[]));
    let mut kernel = held(&terminating);
    kernel.0.as_mut().unwrap().destinations[0].active_connections = 3;
    kernel.apply(&steps(Some(&gone), kernel.0.as_ref(), &terminating.closing).operations);
    assert!(kernel.0.is_none());
}

#[test]
fn one_that_got_connections_while_it_terminated_goes_like_any_other() {
    let mut server = planned(cluster::Protocol::Tcp, Scheduler::Mh, &[(1, 1)]);
    server.destinations[0].terminating = true;
    let fallback = Wanted::new(&server, service_key(&server.vip), |_| false);
    let mut kernel = held(&fallback);
    kernel.0.as_mut().unwrap().destinations[0].active_connections = 3;
    kernel.apply(&steps(Some(&mh(&[])), kernel.0.as_ref(), &fallback.closing).operations);
    assert!(kernel.0.is_none());
}

#[test]
fn clients_within_the_cluster_have_a_service_of_their_mark() {
    let outside = planned(cluster::Protocol::Udp, Scheduler::Rr, &[(1, 1)]);
    let inside = planned(cluster::Protocol::Udp, Scheduler::Rr, &[(1, 1), (2, 1)]);
    let server = VirtualServer { internal: Some(inside.destinations), persistence: Some(60), ..outside };
    let key = internal_key(&server.vip, 0x2001);
    let wanted = Wanted::new(&server, key, |_| false);
    assert_eq!(key, ServiceKey::Fwmark { family: Family::V4, mark: 0x2001 });
    assert_eq!(wanted.service.timeout, 60);
    let mut kernel = held(&wanted);
    assert_eq!(kernel.destinations().len(), 2);
    // The protocol is that of the virtual server, which a mark does not tell.
    kernel.0.as_mut().unwrap().destinations[0].inactive_connections = 9;
    let fewer = Wanted::new(&VirtualServer { internal: None, ..server }, key, |_| false);
    let steps = plain(Some(&fewer), kernel.0.as_ref());
    assert!(!steps.draining);
    kernel.apply(&steps.operations);
    assert_eq!(kernel.destinations(), fewer.destinations);
}

#[test]
fn new_connections_find_a_destination_while_all_are_replaced() {
    let server = |forwarding| {
        let mut server = planned(cluster::Protocol::Tcp, Scheduler::Rr, &[(1, 1), (2, 1)]);
        server.destinations.iter_mut().for_each(|each| each.forwarding = forwarding);
        Wanted::new(&server, service_key(&server.vip), |_| false)
    };
    let (tunnel, nat) = (server(Forwarding::Tunnel), server(Forwarding::NatOrTunnel));
    for (from, to) in [(&tunnel, &nat), (&nat, &tunnel)] {
        let mut kernel = held(from);
        kernel.0.as_mut().unwrap().destinations.iter_mut().for_each(|held| held.active_connections = 1);
        let steps = plain(Some(to), kernel.0.as_ref());
        assert!(steps.draining, "established connections go on");
        for operation in &steps.operations {
            kernel.apply(std::slice::from_ref(operation));
            let open = kernel.destinations().iter().filter(|held| held.weight > 0).count();
            assert!(open >= 2, "{open} after {operation}");
        }
        let open = kernel.destinations().into_iter().filter(|held| held.weight > 0);
        assert_eq!(open.collect::<Vec<_>>(), to.destinations);
    }
}

#[test]
fn what_cannot_be_rewritten_is_tunnelled_to_where_an_agent_accepts() {
    let mut server = planned(cluster::Protocol::Tcp, Scheduler::Rr, &[(1, 1), (2, 1), (3, 1)]);
    for (destination, forwarding) in
        server.destinations.iter_mut().zip([Forwarding::Nat, Forwarding::NatOrTunnel, Forwarding::Tunnel])
    {
        destination.forwarding = forwarding;
        destination.encapsulation = Encapsulation::Gue;
    }
    let given = |refused: bool| -> Vec<(String, bool)> {
        let wanted = Wanted::new(&server, service_key(&server.vip), |_| refused);
        let gue = |to: &Destination| matches!(to.tunnel, TunnelType::Gue { .. });
        wanted.destinations.iter().map(|to| (to.address.to_string(), gue(to))).collect()
    };
    let text = |address: &str, gue| (address.to_owned(), gue);
    assert_eq!(
        given(false),
        [text("250.244.0.1", false), text("250.244.0.2", false), text("10.244.0.3", true)]
    );
    assert_eq!(given(true), [text("10.244.0.2", true), text("10.244.0.3", true)]);
}

#[test]
fn persistence_by_mark_is_not_for_endpoints_whose_port_ipvs_rewrites() {
    let tunnel = planned(cluster::Protocol::Tcp, Scheduler::Rr, &[(1, 1)]);
    let forwarded = |forwarding, port| {
        let mut server = VirtualServer { persistence: Some(60), ..tunnel.clone() };
        server.destinations[0].forwarding = forwarding;
        server.destinations[0].port = port;
        service(&server, internal_key(&server.vip, 0x2001))
    };
    for (forwarding, port, scheduler, timeout) in [
        (Forwarding::Tunnel, 8080, "rr", 60),
        (Forwarding::Nat, 8080, "rr", 60),
        (Forwarding::Masquerade, 80, "rr", 60),
        (Forwarding::Masquerade, 8080, "mh", 0),
    ] {
        let service = forwarded(forwarding, port);
        assert_eq!(
            (service.scheduler.as_str(), service.timeout),
            (scheduler, timeout),
            "{forwarding:?} {port}"
        );
    }
}

fn endpoints() -> impl Strategy<Value = Vec<(u8, u32)>> {
    prop::collection::vec((1u8..12, 0u32..2), 0..8)
}

proptest! {
    /// Whatever came before, the kernel ends as a director that starts now would build it, draining ones apart;
    /// and once it does, nothing more is done.
    #[test]
    fn every_history_ends_in_the_same_table(
        history in prop::collection::vec((endpoints(), prop::collection::vec(0u32..2, 12)), 1..6),
    ) {
        let mut kernel = Kernel::default();
        for (endpoints, connections) in history {
            let wanted = mh(&endpoints);
            if let Some(entry) = &mut kernel.0 {
                for (destination, connections) in entry.destinations.iter_mut().zip(connections) {
                    destination.active_connections = connections;
                }
            }
            let before = kernel.clone();
            let steps = plain(Some(&wanted), kernel.0.as_ref());
            kernel.apply(&steps.operations);
            let live: Vec<_> = kernel
                .destinations()
                .into_iter()
                .filter(|d| wanted.destinations.iter().any(|w| (w.address, w.port) == (d.address, d.port)))
                .collect();
            prop_assert_eq!(&live, &wanted.destinations);
            for entry in before.0.iter().flat_map(|service| &service.destinations) {
                let kept = kernel.0.iter().flat_map(|service| &service.destinations).any(|e| id(e) == id(entry));
                prop_assert!(kept || entry.active_connections == 0, "{entry:?} had connections");
            }
            // Connections of what was added again are the kernel's to keep; here they count as none.
            let again = plain(Some(&wanted), kernel.0.as_ref());
            prop_assert!(again.operations.iter().all(|o| matches!(o, Operation::DelDestination(..) | Operation::DelService(_))));
        }
    }

    /// Agents come and go; connections are lost with endpoints that have terminated, and in no other way; nothing that is
    /// not planned stays once its connections are gone.
    #[test]
    fn weight_0_ends(
        history in prop::collection::vec(
            (endpoints(), prop::collection::vec(0u32..2, 12), any::<bool>()),
            1..8,
        ),
    ) {
        let mut kernel = Kernel::default();
        let mut closing = BTreeSet::new();
        let mut last = mh(&[]);
        for (endpoints, connections, restarts) in history {
            if restarts {
                closing.clear();
            }
            for (entry, connections) in
                kernel.0.iter_mut().flat_map(|service| &mut service.destinations).zip(connections)
            {
                entry.active_connections = connections;
            }
            let before = kernel.clone();
            last = mh(&endpoints);
            let steps = steps(Some(&last), kernel.0.as_ref(), &closing);
            kernel.apply(&steps.operations);
            let kept = |id| kernel.destinations().iter().any(|d| (d.address, d.port) == id);
            for entry in before.0.iter().flat_map(|service| &service.destinations) {
                let may_go = entry.active_connections == 0 || closing.contains(&id(entry));
                prop_assert!(kept(id(entry)) || may_go, "{entry:?} had connections");
                let wanted = last.destinations.iter().any(|d| (d.address, d.port) == id(entry));
                prop_assert!(!closing.contains(&id(entry)) || wanted || !kept(id(entry)), "{entry:?} lingers");
            }
            let unplanned = kernel.destinations().len() > last.destinations.len();
            prop_assert!(steps.draining == unplanned, "whoever stays is looked at again");
            closing = last.closing.clone();
        }
        for _ in 0..2 {
            for entry in kernel.0.iter_mut().flat_map(|service| &mut service.destinations) {
                entry.active_connections = 0;
            }
            kernel.apply(&plain(Some(&last), kernel.0.as_ref()).operations);
        }
        prop_assert_eq!(kernel.destinations(), last.destinations);
    }
}
