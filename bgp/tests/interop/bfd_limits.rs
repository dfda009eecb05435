//! BFD where the system has no more to give: each test in a process of its own, whose limits it sets.

use std::fs;
use std::net::UdpSocket;
use std::thread;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sheave_bgp::bfd::State;
use sheave_bgp::{Bfd, BfdPeer};

use crate::alone::alone;
use crate::bfd::{MS, one_hop, patient};
use crate::lab::Lab;
use crate::{in_lab, until};

/// Runs `work` with as much of a resource as `current`.
async fn limited<T>(resource: Resource, current: u64, work: impl Future<Output = T>) -> T {
    let before = getrlimit(resource);
    setrlimit(resource, Rlimit { current: Some(current), ..before }).unwrap();
    let result = work.await;
    setrlimit(resource, before).unwrap();
    result
}

/// Sessions between link-local addresses go on when there is no descriptor to be had: whose a packet is takes none.
#[test]
fn no_descriptors() {
    alone("bfd_limits::no_descriptors", || {
        in_lab(&[], |lab| async move {
            let open = |theirs: usize| {
                let bfd = Bfd::start().unwrap();
                let interface = Some("link0".to_owned());
                bfd.open(BfdPeer { interface, ..one_hop(Lab::LINK_LOCAL[theirs]) }, patient(), Vec::new())
            };
            let sessions = [open(1), lab.at_peer(|| open(0))];
            let statuses = sessions.each_ref().map(|session| session.status());
            let agreed = || statuses.iter().all(|status| status.borrow().detection_time == 500 * MS);
            until("both sessions", agreed).await;
            limited(Resource::Nofile, 3, async {
                assert!(UdpSocket::bind("127.0.0.1:0").is_err());
                tokio::time::sleep(3 * 500 * MS).await;
            })
            .await;
            for status in statuses {
                let status = status.borrow().clone();
                assert_eq!((status.state, status.ups, status.failures), (State::Up, 1, 0), "{status:?}");
            }
        });
    });
}

/// Without a thread there is no BFD, and whoever asked for it goes on.
#[test]
fn no_thread() {
    alone("bfd_limits::no_thread", || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
            let kilobytes: u64 = size.trim().trim_end_matches(" kB").parse().unwrap();
            // And too little for a thread's stack.
            let enough = (kilobytes + 1024) * 1024;
            limited(Resource::As, enough, async {
                assert!(thread::Builder::new().spawn(|| ()).is_err());
                assert!(Bfd::start().is_err());
            })
            .await;
            assert!(Bfd::start().is_ok());
        });
    });
}
