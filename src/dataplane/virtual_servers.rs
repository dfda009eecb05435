//! Virtual servers: each reconciled with what the kernel lists for it, all operations of a change in one batch.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use foldhash::HashMap;
use sheave_ipvs::{Errno, Ipvs, Operation, Service, ServiceEntry, Stats};

use super::reconcile::{self, Steps, Wanted};
use super::sysctl;
use crate::plan::{NodePlan, RewriteKey, RewriteSide, VipKind, VipPort, VirtualServer};

/// Up to how many virtual servers have all their destinations looked at by each [`VirtualServers::check`].
const EACH_TIME: usize = 500;
/// In how many times it has looked at all.
const ROUND: usize = 20;

/// IPVS, and what is to be looked at again.
pub struct VirtualServers {
    ipvs: Ipvs,
    draining: BTreeSet<VipPort>,
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
    pub fn sync(
        &mut self,
        plan: &NodePlan,
        local: &BTreeSet<IpAddr>,
        refused: &Refused,
    ) -> Result<usize, VirtualServersError> {
        let listed: HashMap<VipPort, ServiceEntry> = self
            .ipvs
            .dump()?
            .into_iter()
            .filter_map(|entry| Some((reconcile::vip_port(&entry.service.key)?, entry)))
            .collect();
        self.draining.clear();
        self.failed.clear();
        let gone = listed.iter().filter(|(vip, entry)| {
            !plan.virtual_servers.contains_key(vip) && entry.service.flags.contains(reconcile::OURS)
        });
        let mut vips: Vec<VipPort> =
            plan.virtual_servers.keys().chain(gone.map(|(vip, _)| vip)).copied().collect();
        vips.sort_unstable();
        self.run(View { plan, local, refused }, &vips, |_, vip| Ok(listed.get(vip).cloned()))
    }

    /// Looks at all virtual servers, and at the destinations of some: of all that are wanted in [`ROUND`] calls, of
    /// [`EACH_TIME`] at least, of those that are not as they should be, and of `also`. Makes them what the plan says.
    /// Gives how many operations that took.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn check(
        &mut self,
        plan: &NodePlan,
        local: &BTreeSet<IpAddr>,
        refused: &Refused,
        also: BTreeSet<VipPort>,
    ) -> Result<usize, VirtualServersError> {
        let view = View { plan, local, refused };
        let mut chosen = also;
        chosen.extend(self.failed.keys());
        chosen.extend(self.next_of_round(view));
        let mut listed = HashMap::<VipPort, Service>::default();
        self.ipvs.scan_services(|service| {
            if let Some(vip) = reconcile::vip_port(&service.key) {
                listed.insert(vip, service);
            }
        })?;
        let is_held = |vip: &VipPort| {
            self.draining.contains(vip)
                || view.server(vip).is_some_and(|server| !server.destinations.is_empty())
        };
        chosen.extend(
            listed
                .iter()
                .filter(|(vip, service)| match view.server(vip) {
                    Some(server) => !is_held(vip) || reconcile::service(server) != **service,
                    None => service.flags.contains(reconcile::OURS),
                })
                .map(|(vip, _)| *vip),
        );
        chosen.extend(plan.virtual_servers.keys().filter(|vip| is_held(vip) && !listed.contains_key(vip)));
        let vips: Vec<VipPort> = chosen.into_iter().collect();
        // Listed without its destinations; where it is not, it may have been left out by the kernel's dump.
        self.run(view, &vips, |ipvs, vip| match listed.get(vip) {
            Some(service) => Ok(Some(ServiceEntry {
                service: *service,
                stats: Stats::default(),
                destinations: ipvs.destinations(&service.key)?,
            })),
            None => look_up(ipvs, vip),
        })
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
    pub fn apply(
        &mut self,
        plan: &NodePlan,
        local: &BTreeSet<IpAddr>,
        refused: &Refused,
        vips: &BTreeSet<VipPort>,
    ) -> Result<usize, VirtualServersError> {
        let vips: Vec<VipPort> = vips.iter().copied().collect();
        self.run(View { plan, local, refused }, &vips, look_up)
    }

    /// Looks again at those that drain. Gives how many operations that took.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn drain(
        &mut self,
        plan: &NodePlan,
        local: &BTreeSet<IpAddr>,
        refused: &Refused,
    ) -> Result<usize, VirtualServersError> {
        if self.draining.is_empty() {
            return Ok(0);
        }
        let draining = std::mem::take(&mut self.draining);
        let result = self.apply(plan, local, refused, &draining);
        if result.is_err() {
            self.draining.extend(draining);
        }
        result
    }

    /// What the kernel holds of a virtual server, and what would be done about it; nothing is.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn explain(
        &mut self,
        plan: &NodePlan,
        local: &BTreeSet<IpAddr>,
        refused: &Refused,
        vip: &VipPort,
    ) -> Result<Vec<Looked>, VirtualServersError> {
        let wanted = View { plan, local, refused }.wanted(vip);
        let listed = look_up(&mut self.ipvs, vip)?;
        let steps = reconcile::steps(wanted.as_ref(), listed.as_ref());
        let wanted = wanted.iter().flat_map(Wanted::keys).collect();
        Ok(vec![Looked { internal: false, wanted, listed, steps }])
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

    /// The counters of ours.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn traffic(&mut self) -> Result<Vec<(VipPort, Stats)>, VirtualServersError> {
        let ours = |entry: &ServiceEntry| entry.service.flags.contains(reconcile::OURS);
        let listed = self.ipvs.services()?.into_iter().filter(ours);
        Ok(listed.filter_map(|entry| Some((reconcile::vip_port(&entry.service.key)?, entry.stats))).collect())
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
        listed: impl FnMut(&mut Ipvs, &VipPort) -> Result<Option<ServiceEntry>, sheave_ipvs::Error>,
    ) -> Result<usize, VirtualServersError> {
        let (count, again) = self.reconcile(view, vips, listed)?;
        if again.is_empty() {
            return Ok(count);
        }
        let (more, _) = self.reconcile(view, &again, look_up)?;
        Ok(count + more)
    }

    /// Gives the count of operations, and the virtual servers to look at once more.
    fn reconcile(
        &mut self,
        view: View<'_>,
        vips: &[VipPort],
        mut listed: impl FnMut(&mut Ipvs, &VipPort) -> Result<Option<ServiceEntry>, sheave_ipvs::Error>,
    ) -> Result<(usize, Vec<VipPort>), VirtualServersError> {
        let mut operations = Vec::new();
        let mut reorders = false;
        let mut again = BTreeSet::new();
        for vip in vips {
            let wanted = view.wanted(vip);
            let listed = listed(&mut self.ipvs, vip)?;
            let Steps { operations: mut more, draining, lowered, reorders: also, foreign } =
                reconcile::steps(wanted.as_ref(), listed.as_ref());
            self.failed.remove(vip);
            self.draining.remove(vip);
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
            }
        }
        if operations.is_empty() {
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
        self.messages += applied.messages as u64;
        for failure in applied.failures {
            if let Some(operation) = operations.get(failure.index)
                && let Some(vip) = reconcile::vip_port(&operation.key())
            {
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

/// Rewrites that the rules do not hold, with the reason.
pub type Refused = BTreeMap<RewriteKey, String>;

/// What decides on a virtual server.
#[derive(Clone, Copy)]
struct View<'a> {
    plan: &'a NodePlan,
    local: &'a BTreeSet<IpAddr>,
    refused: &'a Refused,
}

impl View<'_> {
    /// What is planned, except on an address that others gave this host.
    fn server(&self, vip: &VipPort) -> Option<&VirtualServer> {
        let server = self.plan.virtual_servers.get(vip)?;
        (server.kind == VipKind::NodePort || !self.local.contains(&vip.address)).then_some(server)
    }

    /// What the kernel shall have: no destination that would be refused here.
    fn wanted(self, vip: &VipPort) -> Option<Wanted> {
        let server = self.server(vip)?;
        let refused = |endpoint| {
            let key = RewriteKey { endpoint, side: RewriteSide::Director, vip: *vip };
            self.refused.contains_key(&key)
        };
        Some(Wanted::new(server, refused))
    }
}

/// Why a virtual server of another owner is in the way.
const FOREIGN: &str = "the kernel has a virtual server of another owner here: stop that owner and remove it \
                       (kube-proxy: `kube-proxy --cleanup`; else `ipvsadm -D`)";

fn look_up(ipvs: &mut Ipvs, vip: &VipPort) -> Result<Option<ServiceEntry>, sheave_ipvs::Error> {
    ipvs.service(&reconcile::service_key(vip))
}
