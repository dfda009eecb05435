//! Which prefixes a Service has this node announce, and with which attributes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::model::{Announcement, AnnouncementKind, VipKind, VirtualServer};
use super::service::ServicePlanner;
use crate::cluster::TrafficPolicy;
use crate::config::Communities;

impl ServicePlanner<'_> {
    pub(super) fn announces(&self, kind: VipKind) -> bool {
        let (own, general) = match kind {
            VipKind::ClusterIP => (self.settings.announce_cluster_ips, self.context.announce.cluster_ips),
            VipKind::ExternalIP => (self.settings.announce_external_ips, self.context.announce.external_ips),
            VipKind::LoadBalancerIP => {
                (self.settings.announce_load_balancer_ips, self.context.announce.load_balancer_ips)
            }
            VipKind::NodePort => return false,
        };
        own.unwrap_or(general)
    }

    /// The VIPs that nodes announce which have endpoints behind them.
    pub(super) fn announced(&self) -> BTreeSet<IpNet> {
        let vips = self.vips(&mut Vec::new()).into_iter();
        vips.filter(|(_, kind)| self.announces(*kind)).map(|(address, _)| address.into()).collect()
    }

    /// A VIP is announced where this node has endpoints behind it for clients from outside.
    pub(super) fn announcements(
        &self,
        vips: &BTreeMap<IpAddr, VipKind>,
        servers: &[VirtualServer],
    ) -> Vec<Announcement> {
        let works = |address: IpAddr| {
            servers.iter().any(|server| server.vip.address == address && server.takes_connections())
        };
        if self.context.excluded_from_load_balancers {
            return Vec::new();
        }
        let mut announced =
            vips.iter().filter(|(address, kind)| self.announces(**kind) && works(**address)).peekable();
        if announced.peek().is_none() {
            return Vec::new();
        }
        let Communities { standard, large } = self.communities();
        announced
            .filter_map(|(address, &vip)| {
                let kind = match vip {
                    VipKind::ClusterIP => AnnouncementKind::ClusterIP,
                    VipKind::ExternalIP => AnnouncementKind::ExternalIP,
                    VipKind::LoadBalancerIP => AnnouncementKind::LoadBalancerIP,
                    VipKind::NodePort => return None,
                };
                Some(Announcement {
                    prefix: IpNet::from(*address),
                    kind,
                    service: Some(self.service.name.clone()),
                    local: self.policy(vip) == TrafficPolicy::Local,
                    communities: standard.clone(),
                    large_communities: large.clone(),
                    local_pref: self.settings.local_pref,
                    med: self.settings.med,
                    as_path_prepend: self
                        .settings
                        .path_prepend
                        .unwrap_or_default()
                        .saturating_add(self.context.announce.path_prepend),
                })
            })
            .collect()
    }

    fn communities(&self) -> Communities {
        let mut communities = self.context.announce.communities.clone();
        if let Some(own) = &self.settings.communities {
            communities.extend(own);
        }
        communities
    }
}
