//! What passes to a pod as the work in its namespace ends one way or another: outcomes are made up, the rest is real.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::super::RouteError;
use super::super::nft::NftError;
use super::enter::{Id, Namespace};
use super::worker::{Done, Order, Outcome, Worker};
use super::{GRACE, Inside, Pair, PodError, Pods, Surroundings};
use crate::builders::mk_rewrite;
use crate::cluster::Protocol;
use crate::dataplane::sysctl::Sysctls;
use crate::plan::{AcceptedIn, NodePlan, Rewrite, RewriteKey, RewriteSide, VipPort};

const VIP: &str = "2001:db8::80";
const OTHER: &str = "2001:db8::81";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pod() -> IpAddr {
    ip("fd00:244:2::11")
}

fn key(vip: &str) -> RewriteKey {
    let vip = VipPort { address: ip(vip), port: 80, protocol: Protocol::Tcp };
    RewriteKey { endpoint: pod(), side: RewriteSide::Endpoint, vip }
}

/// A node whose pods' worker is the test.
struct World {
    pods: Pods,
    sysctls: Sysctls,
    local: BTreeSet<IpAddr>,
    plan: NodePlan,
    orders: UnboundedReceiver<Vec<Order>>,
    outcomes: UnboundedSender<Outcome>,
    directory: tempfile::TempDir,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (worker, orders, outcomes) = Worker::hanging();
        Self {
            pods: Pods::with(worker, directory.path()).unwrap(),
            sysctls: Sysctls::open(directory.path()).unwrap(),
            local: BTreeSet::new(),
            plan: NodePlan::default(),
            orders,
            outcomes,
            directory,
            now: Instant::now(),
        }
    }

    /// One where the pod takes in [`VIP`].
    async fn prepared() -> Self {
        let mut world = Self::new();
        world.wish(VIP, Some(AcceptedIn::Pod)).await;
        world.answer(Ok(())).unwrap();
        assert_eq!(world.passing(), [VIP]);
        world
    }

    /// The agent starts again.
    fn restarted(self) -> Self {
        let passing: Vec<Pair> = self.pods.passing.iter().copied().collect();
        let (worker, orders, outcomes) = Worker::hanging();
        let mut pods = Pods::with(worker, self.directory.path()).unwrap();
        assert!(pods.may_adopt());
        pods.adopt(passing);
        Self { pods, orders, outcomes, ..self }
    }

    fn parts(&mut self) -> (&mut Pods, &NodePlan, Surroundings<'_>) {
        let node = Surroundings { sysctls: &mut self.sysctls, local: &self.local, uplinks: &[] };
        (&mut self.pods, &self.plan, node)
    }

    async fn wish(&mut self, vip: &str, accepted_in: Option<AcceptedIn>) {
        let key = key(vip);
        match accepted_in {
            Some(accepted_in) => {
                let rewrite = Rewrite { target_port: 80, accepted_in, ..mk_rewrite(true) };
                self.plan.rewrites.insert(key, rewrite);
            }
            None => drop(self.plan.rewrites.remove(&key)),
        }
        let now = self.now;
        let (pods, plan, node) = self.parts();
        pods.apply(plan, &[key].into(), node, now).await;
    }

    async fn sync(&mut self) {
        let now = self.now;
        let (pods, plan, node) = self.parts();
        pods.sync(plan, node, now).await;
    }

    /// What is done each second, the rules being written in between.
    fn tick(&mut self) {
        let now = self.now;
        let (pods, _, node) = self.parts();
        pods.take_in(node);
        pods.expire(now);
        let (pods, _, node) = self.parts();
        pods.settle(node);
    }

    /// Verifies all.
    fn check(&mut self) {
        let (pods, _, node) = self.parts();
        pods.check(node);
    }

    /// What is ordered next, if anything.
    fn ordered(&mut self) -> Option<Option<Inside>> {
        let orders = self.orders.try_recv().ok()?;
        let [Order { endpoint, wanted, .. }] = <[Order; 1]>::try_from(orders).unwrap();
        assert_eq!(endpoint, pod());
        Some(wanted)
    }

    /// Ends what is ordered next; gives what that was.
    fn answer(&mut self, result: Result<(), PodError>) -> Option<Option<Inside>> {
        let wanted = self.ordered()?;
        // A namespace that is there.
        let path = PathBuf::from("/proc/self/ns/net");
        let namespace = wanted.as_ref().map(|_| Namespace { id: Id::of(&path).unwrap(), path });
        let result = result.map(|()| Done { namespace, changed: true, device: None });
        self.outcomes.send(Outcome { endpoint: pod(), wanted: wanted.clone(), result }).unwrap();
        let (pods, _, node) = self.parts();
        pods.take_in(node);
        Some(wanted)
    }

    fn passing(&self) -> Vec<String> {
        self.pods.passing.iter().map(|pair| pair.vip.to_string()).collect()
    }
}

fn takes(wanted: &Option<Inside>) -> Vec<String> {
    wanted.iter().flat_map(|inside| inside.routes.iter().map(ToString::to_string)).collect()
}

fn netlink(number: i32) -> PodError {
    RouteError::io("list addresses".into(), &io::Error::from_raw_os_error(number)).into()
}

#[tokio::test(start_paused = true)]
async fn only_what_was_found_missing_turns_packets_to_the_node() {
    use rustix::io::Errno;
    let path = || PathBuf::from("/run/netns/x");
    let refused = |text: &str| NftError::Refused(text.into());
    let passing = [
        netlink(Errno::AGAIN.raw_os_error()),
        netlink(Errno::NOBUFS.raw_os_error()),
        netlink(Errno::INTR.raw_os_error()),
        netlink(Errno::NOMEM.raw_os_error()),
        netlink(Errno::BUSY.raw_os_error()),
        netlink(Errno::TIMEDOUT.raw_os_error()),
        RouteError::of("list routes")(rtnetlink::Error::RequestFailed).into(),
        PodError::Enter { path: path(), error: io::Error::from_raw_os_error(Errno::MFILE.raw_os_error()) },
        PodError::Enter { path: path(), error: io::Error::from_raw_os_error(Errno::PERM.raw_os_error()) },
        PodError::Slow(Duration::from_secs(10)),
        PodError::Busy,
        PodError::Thread(io::Error::other("no")),
        PodError::Unseen { path: path(), why: "no".into() },
        PodError::NoDirectory("no".into()),
        PodError::Listing(refused("netlink: Error: cache initialization failed: Operation not permitted")),
        PodError::Nft(refused("Could not process rule: No buffer space available")),
        PodError::Nft(NftError::Spawn(io::Error::from_raw_os_error(Errno::MFILE.raw_os_error()))),
    ];
    let findings = [
        netlink(Errno::PERM.raw_os_error()),
        RouteError::new("sheave6".into(), "the interface exists and is not Sheave's").into(),
        PodError::NotFound,
        PodError::Vanished(path()),
        PodError::Ambiguous(path(), path()),
        PodError::NotBehind { path: path(), device: "veth1".into() },
        PodError::HostNetwork,
        PodError::NoLoopback,
        PodError::Elsewhere,
        PodError::SourceCheck("veth1".into()),
        PodError::Nft(refused("Could not process rule: Operation not supported")),
    ];
    let all = passing.map(|error| (error, true)).into_iter().chain(findings.map(|error| (error, false)));
    for (error, stands) in all {
        let name = format!("{error:?}");
        let gone = error.is_gone();
        let mut world = World::prepared().await;
        world.pods.changes();
        world.check();
        world.answer(Err(error)).unwrap();
        assert_eq!(world.passing() == [VIP], stands, "{name}");
        assert_eq!(world.pods.changes().is_empty(), stands, "{name}: turned and back");
        assert_eq!(world.pods.failed(), usize::from(!gone), "{name}: of what is gone a second look tells");
        // It is looked at again, and all is well.
        world.check();
        world.answer(Ok(())).unwrap();
        assert_eq!((world.passing(), world.pods.failed()), (vec![VIP.to_owned()], 0), "{name}: later");
    }
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_hangs_costs_a_change_a_moment_once() {
    let mut world = World::new();
    let began = tokio::time::Instant::now();
    world.wish(VIP, Some(AcceptedIn::Pod)).await;
    assert!((GRACE..GRACE * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
    let began = tokio::time::Instant::now();
    for vip in [OTHER, "2001:db8::82"] {
        world.wish(vip, Some(AcceptedIn::Pod)).await;
    }
    world.sync().await;
    world.check();
    world.tick();
    assert!(began.elapsed().is_zero(), "{:?}", began.elapsed());
    assert_eq!(world.passing(), [""; 0], "nothing before it is prepared");
    // What was wished meanwhile follows, and passes once it is there.
    assert_eq!(takes(&world.answer(Ok(())).unwrap()), [VIP]);
    assert_eq!(world.passing(), [VIP]);
    assert_eq!(takes(&world.answer(Ok(())).unwrap()), [VIP, OTHER, "2001:db8::82"]);
    assert_eq!(world.passing(), [VIP, OTHER, "2001:db8::82"]);
    assert_eq!(world.ordered(), None);
}

#[tokio::test(start_paused = true)]
async fn the_node_takes_over_before_anything_is_taken_out_of_a_pod() {
    let mut world = World::prepared().await;
    world.wish(OTHER, Some(AcceptedIn::Pod)).await;
    world.answer(Ok(())).unwrap();
    world.wish(OTHER, None).await;
    assert_eq!(takes(&world.answer(Ok(())).unwrap()), [VIP, OTHER], "it lingers");
    world.now += Duration::from_secs(6);
    world.pods.expire(world.now);
    assert_eq!(world.passing(), [VIP]);
    world.check();
    world.sync().await;
    assert_eq!(world.ordered().map(|wanted| takes(&wanted)), None, "the rules are not written yet");
}

#[tokio::test(start_paused = true)]
async fn what_is_being_taken_out_does_not_pass_though_it_is_wished_again() {
    let mut world = World::prepared().await;
    world.wish(VIP, None).await;
    world.now += Duration::from_secs(6);
    world.tick();
    // It is under way, and may be done at any moment.
    world.wish(VIP, Some(AcceptedIn::Pod)).await;
    assert_eq!(world.passing(), [""; 0]);
    assert_eq!(world.answer(Ok(())), Some(None));
    assert_eq!(world.passing(), [""; 0]);
    assert_eq!(takes(&world.answer(Ok(())).unwrap()), [VIP]);
    assert_eq!(world.passing(), [VIP]);
}

#[tokio::test(start_paused = true)]
async fn what_an_agent_before_let_pass_goes_on_until_it_was_looked_at() {
    let mut world = World::prepared().await.restarted();
    world.sync().await;
    assert_eq!(world.passing(), [VIP], "not looked at yet");
    world.answer(Err(PodError::Busy)).unwrap();
    assert_eq!(world.passing(), [VIP], "could not be looked at");
    world.check();
    world.answer(Err(PodError::NotFound)).unwrap();
    assert_eq!(world.passing(), [""; 0], "not there");

    // What is not wished any more does not pass, and is taken out once the rules say so.
    let mut world = World::prepared().await.restarted();
    world.plan.rewrites.clear();
    world.sync().await;
    assert_eq!((world.passing(), world.ordered()), (vec![], None));
    world.tick();
    assert_eq!(world.answer(Ok(())), Some(None));
    assert!(!world.pods.may_adopt());
}
