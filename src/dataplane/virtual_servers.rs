//! Virtual servers: each reconciled with what the kernel lists for it, all operations of a change in one batch.
//!
//! One whose clients within the cluster get other destinations is two services in the kernel: that of its address, and
//! that of the mark which the rules give to these clients' packets ([`super::ruleset`]). Once it has a mark it keeps both, with
//! equal destinations if it comes to that, until there are none: so no connection loses its service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use foldhash::HashMap;
use sheave_ipvs::{Errno, Family, Ipvs, Operation, Service, ServiceEntry, ServiceKey, Stats, Timeouts};

use super::numbers::Numbers;
use super::reconcile::{self, DestinationKey, Steps, Wanted};
use super::rewrites::Refused;
use super::{differences, sysctl, wishes};
use crate::plan::{NodePlan, RewriteKey, RewriteSide, VipPort, VirtualServer};

/// Up to how many virtual servers have all their destinations looked at by each [`VirtualServers::check`].
const EACH_TIME: usize = 500;
/// In how many times it has looked at all.
const ROUND: usize = 20;

/// IPVS, and what is to be looked at again.
pub struct VirtualServers {
    ipvs: Ipvs,
    draining: BTreeSet<VipPort>,
    /// Destinations that terminated, as the plan had them when their service was last reconciled.
    closing: HashMap<ServiceKey, BTreeSet<DestinationKey>>,
    /// Whether IPVS holds a service for the mark of these, as of the last look; taken by [`Self::marked`].
    marked: BTreeMap<VipPort, bool>,
    /// Whose destinations are still to be looked at in this round.
    round: std::vec::IntoIter<VipPort>,
    /// Of how many each time.
    step: usize,
    /// Virtual servers that the kernel does not hold as planned, with the reason.
    pub failed: BTreeMap<VipPort, String>,
    /// Messages sent since the start.
    pub messages: u64,
    /// Time the kernel took for them.
    pub time: Duration,
}

/// What went wrong with IPVS as a whole.
#[derive(Debug, thiserror::Error)]
pub enum VirtualServersError {
    /// The kernel's answer.
    #[error(transparent)]
    Ipvs(#[from] sheave_ipvs::Error),
    /// A setting around a batch.
    #[error(transparent)]
    Sysctl(#[from] sysctl::SysctlError),
}

impl VirtualServers {
    /// Opens IPVS.
    ///
    /// # Errors
    /// [`sheave_ipvs::Error`] where the kernel has none.
    pub fn open() -> Result<Self, VirtualServersError> {
        Ok(Self {
            ipvs: Ipvs::open()?,
            draining: BTreeSet::new(),
            closing: HashMap::default(),
            marked: BTreeMap::new(),
            round: Vec::new().into_iter(),
            step: EACH_TIME,
            failed: BTreeMap::new(),
            messages: 0,
            time: Duration::ZERO,
        })
    }

    /// Lists all virtual servers and makes ours what the plan says. Gives how many operations that took.
    ///
    /// # Errors
    /// [`VirtualServersError`]: what the kernel holds is unknown then, and another sync is due.
    pub fn sync(&mut self, view: View<'_>) -> Result<usize, VirtualServersError> {
        let mut listed: HashMap<ServiceKey, ServiceEntry> =
            self.ipvs.dump()?.into_iter().map(|entry| (entry.service.key, entry)).collect();
        self.draining.clear();
        self.failed.clear();
        let mut vips: BTreeSet<VipPort> = view.plan.virtual_servers.keys().copied().collect();
        vips.extend(view.numbers.vips());
        let ours = listed.values().filter(|entry| entry.service.flags.contains(reconcile::OURS));
        let (known, strays): (Vec<_>, Vec<_>) = ours
            .map(|entry| (entry.service.key, view.vip(&entry.service.key)))
            .partition(|(_, vip)| vip.is_some());
        vips.extend(known.into_iter().filter_map(|(_, vip)| vip));
        let removed = self.remove(strays.into_iter().map(|(key, _)| key))?;
        let vips: Vec<VipPort> = vips.into_iter().collect();
        Ok(removed + self.run(view, &vips, |_, key| Ok(listed.remove(key)))?)
    }

    /// Looks at all virtual servers, and at the destinations of some: of all that are wanted in [`ROUND`] calls, of
    /// [`EACH_TIME`] at least, of those that are not as they should be, and of `also`. Makes them what the plan says.
    /// Gives how many operations that took.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn check(&mut self, view: View<'_>, also: BTreeSet<VipPort>) -> Result<usize, VirtualServersError> {
        let mut chosen = also;
        chosen.extend(self.failed.keys());
        chosen.extend(self.next_of_round(view));
        let mut listed = HashMap::<ServiceKey, Service>::default();
        self.ipvs.scan_services(|service| {
            listed.insert(service.key, service);
        })?;
        let mut strays = Vec::new();
        for (key, service) in &listed {
            let is_ours = service.flags.contains(reconcile::OURS);
            let Some(vip) = view.vip(key) else {
                strays.extend(is_ours.then_some(*key));
                continue;
            };
            let differs = match view.server(&vip) {
                Some(server) => {
                    !self.is_held(&vip, server, key) || reconcile::service(server, *key) != *service
                }
                None => is_ours,
            };
            if differs {
                chosen.insert(vip);
            }
        }
        for vip in view.plan.virtual_servers.keys() {
            if let Some(server) = view.server(vip)
                && view.keys(vip).any(|key| !listed.contains_key(&key) && self.is_held(vip, server, &key))
            {
                chosen.insert(*vip);
            }
        }
        let removed = self.remove(strays)?;
        let vips: Vec<VipPort> = chosen.into_iter().collect();
        // Listed without its destinations; where it is not, it may have been left out by the kernel's dump.
        let count = self.run(view, &vips, |ipvs, key| match listed.get(key) {
            Some(service) => Ok(Some(ServiceEntry {
                service: *service,
                stats: Stats::default(),
                destinations: ipvs.destinations(key)?,
            })),
            None => ipvs.service(key),
        })?;
        Ok(removed + count)
    }

    /// Whether the kernel should hold this service of a virtual server.
    fn is_held(&self, vip: &VipPort, server: &VirtualServer, key: &ServiceKey) -> bool {
        self.draining.contains(vip) || !reconcile::destinations(server, key).is_empty()
    }

    /// Removes services of ours whose mark nobody has: the rules were lost, or are those of another mask.
    fn remove(&mut self, strays: impl IntoIterator<Item = ServiceKey>) -> Result<usize, VirtualServersError> {
        let operations: Vec<Operation> = strays.into_iter().map(Operation::DelService).collect();
        if !operations.is_empty() {
            self.ipvs.apply(&operations)?;
        }
        Ok(operations.len())
    }

    fn next_of_round(&mut self, view: View<'_>) -> impl Iterator<Item = VipPort> {
        if self.round.len() == 0 {
            let all: Vec<VipPort> = view.plan.virtual_servers.keys().copied().collect();
            self.step = all.len().div_ceil(ROUND).max(EACH_TIME);
            self.round = all.into_iter();
        }
        self.round.by_ref().take(self.step)
    }

    /// Reconciles these virtual servers. Gives how many operations that took.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn apply(&mut self, view: View<'_>, vips: &BTreeSet<VipPort>) -> Result<usize, VirtualServersError> {
        let vips: Vec<VipPort> = vips.iter().copied().collect();
        self.run(view, &vips, Ipvs::service)
    }

    /// Looks again at those that drain. One that the plan has no more goes with the change that takes it away, which may come later than
    /// the plan: it is forwarded until then. Gives how many operations that took.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn drain(&mut self, view: View<'_>) -> Result<usize, VirtualServersError> {
        let is_planned = |vip: &&VipPort| view.plan.virtual_servers.contains_key(*vip);
        let draining: BTreeSet<VipPort> = self.draining.iter().filter(is_planned).copied().collect();
        if draining.is_empty() {
            return Ok(0);
        }
        let result = self.apply(view, &draining);
        if result.is_err() {
            self.draining.extend(draining);
        }
        result
    }

    /// What the kernel holds of a virtual server, and what would be done about it; nothing is.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn explain(&mut self, view: View<'_>, vip: &VipPort) -> Result<Vec<Looked>, VirtualServersError> {
        view.keys(vip)
            .map(|key| {
                let wanted = view.wanted(vip, key);
                let listed = self.ipvs.service(&key)?;
                let closing = self.closing.get(&key).cloned().unwrap_or_default();
                let steps = reconcile::steps(wanted.as_ref(), listed.as_ref(), &closing);
                let wanted = wanted.iter().flat_map(Wanted::keys).collect();
                Ok(Looked { internal: matches!(key, ServiceKey::Fwmark { .. }), wanted, listed, steps })
            })
            .collect()
    }

    /// Which of some virtual servers the kernel does not hold as planned, and in what. Connections that destinations drain are not asked for.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn wanting(
        &mut self,
        view: View<'_>,
        vips: &[VipPort],
    ) -> Result<BTreeMap<VipPort, String>, VirtualServersError> {
        let all = if vips.len() > EACH_TIME {
            let dumped = self.ipvs.dump()?.into_iter().map(|entry| (entry.service.key, entry));
            Some(dumped.collect::<HashMap<ServiceKey, ServiceEntry>>())
        } else {
            None
        };
        let mut wanting = BTreeMap::new();
        for vip in vips {
            for key in view.keys(vip) {
                let (Some(server), Some(wanted)) = (view.server(vip), view.wanted(vip, key)) else {
                    continue;
                };
                let listed = match &all {
                    Some(all) => all.get(&key).cloned(),
                    None => self.ipvs.service(&key)?,
                };
                let mut steps = reconcile::steps(Some(&wanted), listed.as_ref(), &BTreeSet::new());
                steps.operations.retain(|operation| !matches!(operation, Operation::DelDestination(..)));
                let stand_ins = differences::stand_ins(server);
                let stands_for = |address: IpAddr| stand_ins.get(&address).copied();
                let words = differences::words(&steps, listed.as_ref(), &stands_for);
                if let Some(why) = words.into_iter().next() {
                    wanting.entry(*vip).or_insert(why);
                }
            }
        }
        Ok(wanting)
    }

    /// How many calls of [`Self::check`] it takes until all destinations have been looked at.
    pub fn rounds(&self, plan: &NodePlan) -> u32 {
        let rounds = plan.virtual_servers.len().div_ceil(self.step.max(EACH_TIME));
        u32::try_from(rounds).unwrap_or(u32::MAX).max(1)
    }

    /// How many have destinations that drain.
    pub fn draining(&self) -> usize {
        self.draining.len()
    }

    /// Whether IPVS holds a service for their mark: of those looked at since the last call.
    pub fn marked(&mut self) -> BTreeMap<VipPort, bool> {
        std::mem::take(&mut self.marked)
    }

    /// The counters of ours, for all clients together.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn traffic(&mut self, numbers: &Numbers) -> Result<Vec<(VipPort, Stats)>, VirtualServersError> {
        let mut sums = HashMap::<VipPort, Stats>::default();
        for entry in self.ipvs.services()? {
            if entry.service.flags.contains(reconcile::OURS)
                && let Some(vip) = vip_of(numbers, &entry.service.key)
            {
                *sums.entry(vip).or_default() += entry.stats;
            }
        }
        Ok(sums.into_iter().collect())
    }

    /// How long the kernel remembers connections for which nothing comes.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn timeouts(&mut self) -> Result<Timeouts, VirtualServersError> {
        Ok(self.ipvs.timeouts()?)
    }

    /// Everything in the kernel that is ours, with connection counts.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn list(&mut self) -> Result<Vec<ServiceEntry>, VirtualServersError> {
        let mut entries = self.ipvs.dump()?;
        entries.retain(|entry| entry.service.flags.contains(reconcile::OURS));
        Ok(entries)
    }

    /// Removes all of ours. Gives how many there were.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn clear(&mut self) -> Result<usize, VirtualServersError> {
        let ours: Vec<Operation> =
            self.list()?.iter().map(|entry| Operation::DelService(entry.service.key)).collect();
        self.ipvs.apply(&ours)?;
        Ok(ours.len())
    }

    /// Reconciles; looks once more at what somebody else changed in between, and at what may have no connections
    /// to wait for.
    fn run(
        &mut self,
        view: View<'_>,
        vips: &[VipPort],
        listed: impl FnMut(&mut Ipvs, &ServiceKey) -> Result<Option<ServiceEntry>, sheave_ipvs::Error>,
    ) -> Result<usize, VirtualServersError> {
        let (count, again) = self.reconcile(view, vips, listed)?;
        if again.is_empty() {
            return Ok(count);
        }
        let (more, _) = self.reconcile(view, &again, Ipvs::service)?;
        Ok(count + more)
    }

    /// Gives the count of operations, and the virtual servers to look at once more.
    fn reconcile(
        &mut self,
        view: View<'_>,
        vips: &[VipPort],
        mut listed: impl FnMut(&mut Ipvs, &ServiceKey) -> Result<Option<ServiceEntry>, sheave_ipvs::Error>,
    ) -> Result<(usize, Vec<VipPort>), VirtualServersError> {
        let mut operations = Vec::new();
        let mut reorders = false;
        let mut again = BTreeSet::new();
        let mut closing = Vec::new();
        for vip in vips {
            self.failed.remove(vip);
            self.draining.remove(vip);
            for key in view.keys(vip) {
                let wanted = view.wanted(vip, key);
                let listed = listed(&mut self.ipvs, &key)?;
                let known = self.closing.get(&key);
                let Steps { operations: mut more, draining, lowered, reorders: also, foreign } =
                    reconcile::steps(wanted.as_ref(), listed.as_ref(), known.unwrap_or(&BTreeSet::new()));
                closing.push((key, wanted.as_ref().map(|wanted| wanted.closing.clone()).unwrap_or_default()));
                if matches!(key, ServiceKey::Fwmark { .. }) {
                    let comes = matches!(more.first(), Some(Operation::AddService(_)));
                    let goes = matches!(more.first(), Some(Operation::DelService(_)));
                    self.marked.insert(*vip, !foreign && (comes || listed.is_some() && !goes));
                }
                operations.append(&mut more);
                reorders |= also;
                if draining {
                    self.draining.insert(*vip);
                }
                if lowered {
                    again.insert(*vip);
                }
                if foreign && wanted.is_some() {
                    self.failed.insert(*vip, FOREIGN.into());
                } else if matches!(key, ServiceKey::Address { .. })
                    && view.server(vip).is_some_and(VirtualServer::takes_connections)
                    && !wanted.as_ref().is_some_and(Wanted::takes_connections)
                {
                    self.failed.insert(*vip, OUT_OF_REACH.into());
                }
            }
        }
        if operations.is_empty() {
            self.remember(closing);
            return Ok((0, Vec::new()));
        }
        if reorders {
            sysctl::write(sysctl::EXPIRE_NODEST_CONN, "0")?;
        }
        let began = Instant::now();
        let applied = self.ipvs.apply(&operations);
        self.time += began.elapsed();
        if reorders {
            sysctl::write(sysctl::EXPIRE_NODEST_CONN, "1")?;
        }
        let applied = applied?;
        self.remember(closing);
        self.messages += applied.messages as u64;
        for failure in applied.failures {
            if let Some(operation) = operations.get(failure.index)
                && let Some(vip) = view.vip(&operation.key())
            {
                if matches!(operation, Operation::AddService(Service { key: ServiceKey::Fwmark { .. }, .. }))
                {
                    self.marked.insert(vip, false);
                }
                let why = format!("{operation}: {} ({})", operation.explain(failure.errno), failure.errno);
                self.failed.insert(vip, why);
                // There already, or gone: a listing of the whole table can miss entries while somebody changes it.
                if matches!(failure.errno, Errno::EXIST | Errno::SRCH | Errno::NOENT) {
                    again.insert(vip);
                }
            }
        }
        Ok((operations.len(), again.into_iter().collect()))
    }

    fn remember(&mut self, closing: Vec<(ServiceKey, BTreeSet<DestinationKey>)>) {
        for (key, closing) in closing {
            if closing.is_empty() {
                self.closing.remove(&key);
            } else {
                self.closing.insert(key, closing);
            }
        }
    }
}

/// A virtual server that was looked at.
pub struct Looked {
    /// It is for clients within the cluster alone.
    pub internal: bool,
    /// Addresses and ports of the destinations that it is to have.
    pub wanted: BTreeSet<(IpAddr, u16)>,
    /// As the kernel has it.
    pub listed: Option<ServiceEntry>,
    /// What would be done about it.
    pub steps: Steps,
}

/// What decides on a virtual server.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// What is wanted.
    pub plan: &'a NodePlan,
    /// Addresses of this host that are not ours.
    pub local: &'a BTreeSet<IpAddr>,
    /// Rewrites that the rules do not hold.
    pub refused: &'a BTreeMap<RewriteKey, Refused>,
    /// Marks of clients within the cluster.
    pub numbers: &'a Numbers,
}

impl View<'_> {
    fn server(&self, vip: &VipPort) -> Option<&VirtualServer> {
        wishes::server(self.plan, self.local, vip)
    }

    /// The services of a virtual server.
    fn keys(self, vip: &VipPort) -> impl Iterator<Item = ServiceKey> + use<> {
        let internal = self.numbers.vip_mark(vip).map(|mark| reconcile::internal_key(vip, mark));
        std::iter::once(reconcile::service_key(vip)).chain(internal)
    }

    fn vip(self, key: &ServiceKey) -> Option<VipPort> {
        vip_of(self.numbers, key)
    }

    /// What the kernel shall have: no destination that would be refused here.
    fn wanted(self, vip: &VipPort, key: ServiceKey) -> Option<Wanted> {
        let server = self.server(vip)?;
        let refused = |endpoint| {
            let key = RewriteKey { endpoint, side: RewriteSide::Director, vip: *vip };
            self.refused.contains_key(&key)
        };
        Some(Wanted::new(server, key, refused))
    }
}

/// The virtual server that a service belongs to, if it is one that could be ours.
pub fn vip_of(numbers: &Numbers, key: &ServiceKey) -> Option<VipPort> {
    match *key {
        ServiceKey::Address { .. } => reconcile::vip_port(key),
        ServiceKey::Fwmark { family, mark } => numbers.marked_vip(family == Family::V4, mark),
    }
}

/// Why one whose endpoints are all left out takes no connections, though the plan has it do so.
const OUT_OF_REACH: &str = "none of its endpoints can be reached from here: for each a rewrite is refused";

/// Why a virtual server of another owner is in the way.
const FOREIGN: &str = "the kernel has a virtual server of another owner here: stop that owner and remove it \
                       (kube-proxy: `kube-proxy --cleanup`; else `ipvsadm -D`)";
