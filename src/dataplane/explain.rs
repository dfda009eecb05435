//! What the kernel holds of single virtual servers, compared with the plan, in plain words. Nothing is changed.
//!
//! Each thing is asked for by its key, so that the cost does not depend on how many others there are:
//!
//! ```text
//! IPVS      one virtual server with its destinations ──► reconcile::steps ──► differences   (what a repair would do)
//! routes    the route that a packet for the VIP matches
//! nftables  each element that a packet for it meets; the rules only where somebody made a transaction
//! host      our devices, our sysctls
//! ```

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::lookup::Found;
use super::netfilter::{self, RulesNow};
use super::virtual_servers::View;
use super::{Dataplane, RouteError, differences, route_lookup, sysctl, tunnel, vip_net};
use crate::observe::explain::{Difference, Kernel, KernelElement, KernelRoute};
use crate::plan::{NodePlan, RewriteKey, RewriteSide, VipKind, VipPort};

/// A virtual server that is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its key.
    pub vip: VipPort,
    /// Endpoints that may stand behind it.
    pub endpoints: BTreeSet<IpAddr>,
}

impl Dataplane {
    /// Looks at what the kernel holds of some virtual servers that are in the plan; `period`: how often
    /// [`Self::check`] is called.
    pub async fn explain(
        &mut self,
        plan: &NodePlan,
        asked: &[Asked],
        period: Duration,
        now: Instant,
    ) -> Kernel {
        let mut report = Report { kernel: Kernel::default(), period };
        report.kernel.problems = self.problems_of(plan, asked);
        self.explain_devices(plan, &mut report).await;
        self.explain_netfilter(plan, asked, now, &mut report);
        self.explain_servers(plan, asked, &mut report);
        self.explain_routes(plan, asked, &mut report).await;
        let Kernel { elements, differences, .. } = &mut report.kernel;
        elements.sort_unstable();
        elements.dedup();
        differences.sort_unstable();
        differences.dedup();
        report.kernel
    }

    /// Why this node does not forward for a VIP that is in the plan, if it does not.
    pub fn obstacles(&self, plan: &NodePlan, vip: IpAddr) -> Vec<String> {
        let first = VipPort { address: vip, port: 0, protocol: crate::cluster::Protocol::Tcp };
        let broken = self.broken.iter().map(|(part, why)| format!("{}: {why}", part.name()));
        let route = self.routes.failure(plan, vip).map(str::to_owned);
        let servers = self.servers.failed.range(first..).take_while(|(failed, _)| failed.address == vip);
        let servers = servers.map(|(vip, why)| format!("virtual server {vip}: {why}"));
        let pending =
            self.pending.contains(&vip).then(|| "the last change of it is not in the kernel yet".into());
        let wants = self.verification.wants(vip).map(str::to_owned);
        let obstacles: Vec<String> = broken.chain(route).chain(servers).chain(pending).chain(wants).collect();
        if obstacles.is_empty() && self.is_to_be_asked(plan, vip) {
            return vec!["the kernel has yet to be asked for all it takes".into()];
        }
        obstacles
    }

    fn problems_of(&self, plan: &NodePlan, asked: &[Asked]) -> Vec<String> {
        let mut problems: BTreeSet<String> =
            asked.iter().flat_map(|asked| self.obstacles(plan, asked.vip.address)).collect();
        problems.extend(self.unseen.iter().map(|(part, why)| format!("{}: {why}", part.name())));
        for Asked { vip, endpoints } in asked {
            for (key, why) in
                rewrite_keys(*vip, endpoints).filter_map(|key| self.netfilter.refused().get_key_value(&key))
            {
                problems.insert(format!("endpoint {} of {}: {why}", key.endpoint, key.vip));
            }
        }
        problems.into_iter().collect()
    }

    async fn explain_devices(&self, plan: &NodePlan, report: &mut Report) {
        let Differences { found, unknown } = self.device_differences(plan).await;
        found.into_iter().for_each(|what| report.differs(what));
        report.kernel.problems.extend(unknown);
    }

    /// Our devices and settings.
    pub(super) async fn device_differences(&self, plan: &NodePlan) -> Differences {
        let Differences { mut found, mut unknown } = Differences::default();
        let ipv6 = plan.node.addresses.iter().any(IpAddr::is_ipv6);
        for tunnel in tunnel::Tunnel::ALL.into_iter().filter(|one| ipv6 || *one == tunnel::Tunnel::V4) {
            let name = tunnel.name();
            match tunnel::find(&self.handle, name).await {
                Ok(Some(link)) if !tunnel.is_ours(&link, tunnel.local()) => {
                    found.push(format!("the device {name} is not Sheave's"));
                }
                Ok(Some(link)) if !tunnel::is_up(&link) => {
                    found.push(format!("the device {name} is down"));
                }
                Ok(Some(_)) => {}
                Ok(None) => {
                    found.push(format!("there is no device {name}: nothing tunnelled is taken in"));
                }
                Err(error) => unknown.push(error.to_string()),
            }
        }
        let mut settings = sysctl::namespace(ipv6);
        for name in self.uplinks.iter().map(|uplink| uplink.name.as_str()).chain([tunnel::TUNNEL4]) {
            match sysctl::interface(name, ipv6) {
                Ok(more) => settings.extend(more),
                Err(error) => unknown.push(error.to_string()),
            }
        }
        for wanted in settings {
            match sysctl::read(&wanted.path) {
                Ok(value) if value == wanted.value => {}
                Ok(value) => found.push(format!(
                    "sysctl {} is {value}; planned is {}",
                    wanted.path.replace('/', "."),
                    wanted.value
                )),
                Err(error) => unknown.push(error.to_string()),
            }
        }
        Differences { found, unknown }
    }

    fn explain_netfilter(&mut self, plan: &NodePlan, asked: &[Asked], now: Instant, report: &mut Report) {
        let within = report.period.max(self.netfilter.pauses_for(now));
        match self.netfilter.rules_now() {
            Ok(RulesNow::AsPlanned) => {}
            Ok(RulesNow::Absent) => {
                return report.differs_within(netfilter::NO_TABLE.into(), within);
            }
            Ok(RulesNow::Otherwise) => {
                report.differs_within(netfilter::OTHER_RULES.into(), within);
            }
            Err(error) => report.kernel.problems.push(error.to_string()),
        }
        for Asked { vip, endpoints } in asked {
            let keys = rewrite_keys(*vip, endpoints);
            for (element, wanted) in self.netfilter.elements_of(plan, *vip, keys) {
                let found = match self.netfilter.look_up(&element) {
                    Ok(found) => found,
                    Err(error) => {
                        report.kernel.problems.push(error.to_string());
                        continue;
                    }
                };
                if let Some(what) = found.differs(&element, wanted) {
                    report.differs_within(what, within);
                }
                if wanted || found != Found::Absent {
                    let held = found == Found::Held;
                    let (set, element) = (element.set().into(), element.text());
                    report.kernel.elements.push(KernelElement { set, element, held });
                }
            }
        }
    }

    fn explain_servers(&mut self, plan: &NodePlan, asked: &[Asked], report: &mut Report) {
        for Asked { vip, .. } in asked {
            let Some(server) = plan.virtual_servers.get(vip) else { continue };
            let (refused, numbers) = (self.netfilter.refused(), self.netfilter.numbers());
            let view = View { plan, local: &self.local, refused, numbers };
            let looked = match self.servers.explain(view, vip) {
                Ok(looked) => looked,
                Err(error) => {
                    report.kernel.problems.push(error.to_string());
                    continue;
                }
            };
            let stand_ins = differences::stand_ins(server);
            let stands_for = |address: IpAddr| stand_ins.get(&address).copied();
            for looked in looked {
                let within = if looked.listed.is_some() {
                    report.period.saturating_mul(self.servers.rounds(plan))
                } else {
                    report.period
                };
                for what in differences::words(&looked.steps, looked.listed.as_ref(), &stands_for) {
                    report.differs_within(what, within);
                }
                if let Some(listed) = &looked.listed {
                    let described =
                        differences::describe(listed, looked.internal, &looked.wanted, &stands_for);
                    report.kernel.virtual_servers.push(described);
                }
            }
        }
    }

    async fn explain_routes(&self, plan: &NodePlan, asked: &[Asked], report: &mut Report) {
        let is_vip = |asked: &&Asked| {
            plan.virtual_servers.get(&asked.vip).is_some_and(|server| server.kind != VipKind::NodePort)
        };
        let vips: BTreeSet<IpAddr> = asked.iter().filter(is_vip).map(|asked| asked.vip.address).collect();
        for address in vips {
            match self.route_difference(plan, address).await {
                Ok((route, differs)) => {
                    differs.into_iter().for_each(|what| report.differs(what));
                    report.kernel.routes.push(KernelRoute { address, route });
                }
                Err(error) => report.kernel.problems.push(error.to_string()),
            }
        }
    }

    /// The route that packets for a VIP match, and what is wrong with it.
    pub(super) async fn route_difference(
        &self,
        plan: &NodePlan,
        address: IpAddr,
    ) -> Result<(Option<String>, Option<String>), RouteError> {
        let matched = route_lookup::look_up(&self.handle, address).await?;
        let planned = vip_net(plan, address);
        let is_taken = self.local.contains(&address);
        let differs = match &matched {
            Some(route) if is_taken || route.local && route.ours && route.prefix == planned => None,
            Some(route) if route.local => Some(format!(
                "a packet for {address} is taken in by {}; planned is a route of Sheave's, local {planned}",
                route.text
            )),
            Some(route) => Some(format!(
                "there is no route local {planned}: a packet for {address} goes along {}",
                route.text
            )),
            None => Some(format!("there is no route local {planned}: {address} is unreachable from here")),
        };
        Ok((matched.map(|route| route.text), differs))
    }
}

/// What is not as planned, and why that could not be told, in words.
#[derive(Debug, Default)]
pub(super) struct Differences {
    pub(super) found: Vec<String>,
    pub(super) unknown: Vec<String>,
}

/// An explanation in the making.
struct Report {
    kernel: Kernel,
    period: Duration,
}

impl Report {
    fn differs(&mut self, what: String) {
        self.differs_within(what, self.period);
    }

    fn differs_within(&mut self, what: String, within: Duration) {
        self.kernel.differences.push(Difference { what, repaired_within_seconds: within.as_secs() });
    }
}

/// The rewrites that a virtual server may have.
pub(super) fn rewrite_keys(vip: VipPort, endpoints: &BTreeSet<IpAddr>) -> impl Iterator<Item = RewriteKey> {
    let sides = [RewriteSide::Endpoint, RewriteSide::Director];
    endpoints
        .iter()
        .filter(move |endpoint| endpoint.is_ipv4() == vip.address.is_ipv4())
        .flat_map(move |endpoint| sides.map(|side| RewriteKey { endpoint: *endpoint, side, vip }))
}
