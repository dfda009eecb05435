//! Whether the kernel has what a VIP takes, asked of the kernel: before the VIP is announced, and in turn as long as it is.
//!
//! What was written was acknowledged, but others may have come in between, or stand in the way: a routing rule before the
//! table that has our route, another route that wins. A packet for the VIP would meet:
//!
//! | asked | cost |
//! |---|---|
//! | the devices and settings of acceptance | once, however many VIPs |
//! | the route that the VIP matches | one question for each VIP |
//! | its virtual servers: that they are as planned, with a destination that takes connections where one is planned | one for each port; of many VIPs one listing |
//! | its elements of nftables, and the rules | the ruleset's generation: where nobody else made a transaction, what was written holds |
//!
//! What differs is repaired at once, and asked for once more. A VIP that wants for something still is not forwarded
//! ([`Dataplane::holds`]), so that it is withdrawn, and no other; it is asked for again as others are looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use futures_util::{StreamExt as _, stream};
use ipnet::IpNet;

use super::Dataplane;
use super::explain::rewrite_keys;
use super::netfilter::{self, RulesNow};
use super::virtual_servers::View;
use crate::cluster::Protocol;
use crate::plan::{Delta, NodePlan, VipPort};

/// How many VIPs are asked for each time the kernel is looked at.
const EACH_TIME: usize = 100;
/// How many questions about routes may be on their way.
const AT_ONCE: usize = 64;

/// The VIPs to be announced, as far as the kernel was asked.
#[derive(Debug, Default)]
pub struct Verification {
    /// The kernel had all of it.
    verified: BTreeSet<IpAddr>,
    /// It did not, or could not be asked: why.
    wanting: BTreeMap<IpAddr, String>,
    /// Those of them for which it could not be asked.
    unasked: BTreeSet<IpAddr>,
    /// Who is still to be asked for in this round.
    round: std::vec::IntoIter<IpAddr>,
    /// How often some were asked for out of turn that no change was about.
    asked: u64,
}

impl Verification {
    /// What a VIP wants for.
    pub fn wants(&self, vip: IpAddr) -> Option<&str> {
        self.wanting.get(&vip).map(String::as_str)
    }

    /// All VIPs that want for something.
    pub fn wanting(&self) -> &BTreeMap<IpAddr, String> {
        &self.wanting
    }

    /// How often some were asked for that no change was about: they had failed, and did not any more.
    pub fn asked(&self) -> u64 {
        self.asked
    }

    /// Whether a VIP was asked for.
    fn knows(&self, vip: IpAddr) -> bool {
        self.verified.contains(&vip) || self.wanting.contains_key(&vip)
    }

    /// Whether the kernel could be asked for each of them.
    pub fn is_complete(&self) -> bool {
        self.unasked.is_empty()
    }

    fn forget(&mut self, vip: IpAddr) {
        self.verified.remove(&vip);
        self.wanting.remove(&vip);
        self.unasked.remove(&vip);
    }

    /// What asking came to. One that could not be asked for is left as it was, if it ever was verified: looking in vain
    /// says nothing of it.
    fn answered(&mut self, vip: IpAddr, answer: Answer) {
        if matches!(answer, Answer::Unknown(_)) && self.verified.contains(&vip) {
            return;
        }
        self.forget(vip);
        match answer {
            Answer::Whole => {
                self.verified.insert(vip);
            }
            Answer::Wants(why) => {
                self.wanting.insert(vip, why);
            }
            Answer::Unknown(why) => {
                self.wanting.insert(vip, why);
                self.unasked.insert(vip);
            }
        }
    }

    /// Whose turn it is, and those that want for something.
    fn next_of_round(&mut self) -> BTreeSet<IpAddr> {
        if self.round.len() == 0 {
            self.round = self.verified.iter().copied().collect::<Vec<_>>().into_iter();
        }
        self.wanting.keys().copied().chain(self.round.by_ref().take(EACH_TIME)).collect()
    }
}

/// What the kernel says of a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Whole,
    Wants(String),
    Unknown(String),
}

impl Answer {
    /// The worse of two.
    fn and(self, other: impl FnOnce() -> Self) -> Self {
        match self {
            Self::Wants(_) => self,
            Self::Whole => other(),
            Self::Unknown(_) => match other() {
                wants @ Self::Wants(_) => wants,
                _ => self,
            },
        }
    }
}

impl Dataplane {
    /// Asks for what a change brings and was not asked for, as far as it is written. One that wants for something waits for its turn.
    pub(super) async fn verify_change(&mut self, plan: &NodePlan, delta: &Delta, now: Instant) {
        let announced = delta.announcements.iter().map(IpNet::addr);
        let mut new: BTreeSet<IpAddr> = super::addresses(delta).chain(announced).collect();
        new.retain(|vip| self.is_due(plan, *vip) && self.verification.wants(*vip).is_none());
        let known = |vip: &IpAddr| ports(&delta.virtual_servers, *vip).next().is_some();
        // Ports that were there before and are announced for the first time had no endpoints, unless the announcement alone is new.
        let ports = match new.iter().all(known) {
            true => delta.virtual_servers.clone(),
            false => plan.virtual_servers.keys().copied().collect(),
        };
        self.verify(plan, &new, &ports, now).await;
    }

    /// Asks for all that are to be announced and were not asked for, as far as they are written; and for those that want for something.
    pub(super) async fn verify_all(&mut self, plan: &NodePlan, now: Instant) {
        let Verification { verified, wanting, .. } = &self.verification;
        let planned = plan.announcements.keys().filter(|prefix| plan.vips.contains_key(&prefix.addr()));
        let mut vips: BTreeSet<IpAddr> = verified.iter().chain(wanting.keys()).copied().collect();
        vips.extend(planned.map(IpNet::addr));
        vips.retain(|vip| self.is_due(plan, *vip));
        self.verify(plan, &vips, &plan.virtual_servers.keys().copied().collect(), now).await;
    }

    /// Asks again for those for which the kernel could not be asked.
    pub(super) async fn verify_unasked(&mut self, plan: &NodePlan, now: Instant) {
        let mut vips = self.verification.unasked.clone();
        vips.retain(|vip| self.is_due(plan, *vip));
        if !vips.is_empty() {
            self.verify(plan, &vips, &plan.virtual_servers.keys().copied().collect(), now).await;
        }
    }

    /// Asks for those whose turn it is, and for all that were never asked for and can be announced now: what was in their way went, or
    /// was repaired, and no change was about it. Gives what had to be repaired, in words.
    pub(super) async fn verify_some(&mut self, plan: &NodePlan, now: Instant) -> Vec<String> {
        let mut vips = self.verification.next_of_round();
        let planned = plan.announcements.keys().map(IpNet::addr);
        let new: Vec<IpAddr> =
            planned.filter(|vip| self.is_to_be_asked(plan, *vip) && self.is_written(plan, *vip)).collect();
        self.verification.asked += u64::from(!new.is_empty());
        vips.extend(new);
        vips.retain(|vip| {
            let asked = self.verification.verified.contains(vip) && self.can_be_announced(plan, *vip);
            asked || self.is_due(plan, *vip)
        });
        let ports = plan.virtual_servers.keys().filter(|port| vips.contains(&port.address));
        let ports = ports.copied().collect();
        self.verify(plan, &vips, &ports, now).await
    }

    fn can_be_announced(&self, plan: &NodePlan, vip: IpAddr) -> bool {
        plan.announcements.contains_key(&IpNet::from(vip)) && self.is_written(plan, vip)
    }

    /// Whether a VIP is to be announced and the kernel was not asked for it.
    pub(super) fn is_to_be_asked(&self, plan: &NodePlan, vip: IpAddr) -> bool {
        plan.vips.contains_key(&vip)
            && plan.announcements.contains_key(&IpNet::from(vip))
            && !self.verification.knows(vip)
    }

    /// Whether it can be announced once the kernel was asked for it. What cannot be is to be asked for again when it can.
    fn is_due(&mut self, plan: &NodePlan, vip: IpAddr) -> bool {
        if !self.can_be_announced(plan, vip) {
            self.verification.forget(vip);
            return false;
        }
        !self.verification.verified.contains(&vip)
    }

    async fn verify(
        &mut self,
        plan: &NodePlan,
        vips: &BTreeSet<IpAddr>,
        ports: &BTreeSet<VipPort>,
        now: Instant,
    ) -> Vec<String> {
        if vips.is_empty() {
            return Vec::new();
        }
        let mut done = Vec::new();
        let mut answers = self.ask(plan, vips, ports).await;
        let is_news = |vip: &IpAddr, answer: &Answer| {
            matches!(answer, Answer::Wants(_)) && self.verification.wants(*vip).is_none()
        };
        if answers.iter().any(|(vip, answer)| is_news(vip, answer)) {
            done = self.put_all(plan, now).await;
            answers = self.ask(plan, vips, ports).await;
        }
        for (vip, answer) in answers {
            self.verification.answered(vip, answer);
        }
        done
    }

    /// Asks the kernel for each of these, and for those of `ports` that are theirs.
    async fn ask(
        &mut self,
        plan: &NodePlan,
        vips: &BTreeSet<IpAddr>,
        of: &BTreeSet<VipPort>,
    ) -> BTreeMap<IpAddr, Answer> {
        let devices = self.device_differences(plan).await;
        let devices = match (devices.found.into_iter().next(), devices.unknown.into_iter().next()) {
            (Some(why), _) => Answer::Wants(why),
            (None, Some(why)) => Answer::Unknown(why),
            (None, None) => Answer::Whole,
        };
        let (rules, elements) = self.ask_rules();
        let asked: Vec<VipPort> = vips.iter().flat_map(|vip| ports(of, *vip)).collect();
        let (refused, numbers) = (self.netfilter.refused(), self.netfilter.numbers());
        let view = View { plan, local: &self.local, refused, numbers };
        let servers = self.servers.wanting(view, &asked);
        let server = |vip: IpAddr| match &servers {
            Ok(wanting) => ports(of, vip)
                .find_map(|port| wanting.get(&port))
                .map_or(Answer::Whole, |why| Answer::Wants(why.clone())),
            Err(error) => Answer::Unknown(error.to_string()),
        };
        let routes = stream::iter(vips).map(|vip| self.route_difference(plan, *vip));
        let routes: Vec<_> = routes.buffered(AT_ONCE).collect().await;
        let mut answers = BTreeMap::new();
        for (vip, route) in vips.iter().zip(routes) {
            let route = match route {
                Ok((_, None)) => Answer::Whole,
                Ok((_, Some(why))) => Answer::Wants(why),
                Err(error) => Answer::Unknown(error.to_string()),
            };
            let answer = devices.clone().and(|| rules.clone()).and(|| route).and(|| server(*vip));
            let answer = if elements { answer.and(|| self.ask_elements(plan, *vip, of)) } else { answer };
            answers.insert(*vip, answer);
        }
        answers
    }

    /// How our rules stand, and whether elements are to be asked for.
    fn ask_rules(&mut self) -> (Answer, bool) {
        match self.netfilter.is_untouched() {
            Ok(true) => return (Answer::Whole, false),
            Ok(false) => {}
            Err(error) => return (Answer::Unknown(error.to_string()), false),
        }
        let rules = match self.netfilter.rules_now() {
            Ok(RulesNow::AsPlanned) => Answer::Whole,
            Ok(RulesNow::Absent) => Answer::Wants(netfilter::NO_TABLE.into()),
            Ok(RulesNow::Otherwise) => Answer::Wants(netfilter::OTHER_RULES.into()),
            Err(error) => Answer::Unknown(error.to_string()),
        };
        (rules, true)
    }

    fn ask_elements(&mut self, plan: &NodePlan, vip: IpAddr, of: &BTreeSet<VipPort>) -> Answer {
        for port in ports(of, vip) {
            let Some(server) = plan.virtual_servers.get(&port) else { continue };
            let destinations = server.destinations.iter().chain(server.internal.iter().flatten());
            let endpoints = destinations.map(|destination| destination.address).collect();
            for (element, wanted) in self.netfilter.elements_of(plan, port, rewrite_keys(port, &endpoints)) {
                match self.netfilter.look_up(&element) {
                    Ok(found) => {
                        if let Some(why) = found.differs(&element, wanted) {
                            return Answer::Wants(why);
                        }
                    }
                    Err(error) => return Answer::Unknown(error.to_string()),
                }
            }
        }
        Answer::Whole
    }
}

/// Those of some virtual servers that are a VIP's.
fn ports(of: &BTreeSet<VipPort>, vip: IpAddr) -> impl Iterator<Item = VipPort> {
    let first = VipPort { address: vip, port: 0, protocol: Protocol::Tcp };
    of.range(first..).copied().take_while(move |port| port.address == vip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_in_vain_says_nothing_of_a_vip_that_was_verified() {
        let vip: IpAddr = [192, 0, 2, 80].into();
        let (unknown, wants) = (Answer::Unknown("no answer".into()), Answer::Wants("no route".into()));
        let histories: [(&str, &[&Answer], Option<&str>, bool); 7] = [
            ("all is there", &[&Answer::Whole], None, true),
            ("it cannot be looked at first", &[&unknown], Some("no answer"), false),
            ("nor the next time", &[&unknown, &unknown, &Answer::Whole], None, true),
            ("it was verified", &[&Answer::Whole, &unknown], None, true),
            ("it was, and something is missing", &[&Answer::Whole, &wants], Some("no route"), true),
            (
                "and then it cannot be looked at",
                &[&Answer::Whole, &wants, &unknown],
                Some("no answer"),
                false,
            ),
            ("and it is mended", &[&Answer::Whole, &wants, &Answer::Whole], None, true),
        ];
        for (name, answers, expected, complete) in histories {
            let mut verification = Verification::default();
            answers.iter().for_each(|answer| verification.answered(vip, (*answer).clone()));
            assert_eq!((verification.wants(vip), verification.is_complete()), (expected, complete), "{name}");
        }
    }

    #[test]
    fn what_is_missing_outweighs_what_is_not_known() {
        let (unknown, wants) = (Answer::Unknown("no answer".into()), Answer::Wants("no route".into()));
        for (one, other, both) in [
            (&Answer::Whole, &Answer::Whole, &Answer::Whole),
            (&Answer::Whole, &unknown, &unknown),
            (&unknown, &Answer::Whole, &unknown),
            (&unknown, &wants, &wants),
            (&wants, &unknown, &wants),
        ] {
            assert_eq!(one.clone().and(|| other.clone()), *both);
        }
    }

    #[test]
    fn each_has_its_turn_and_what_is_missing_every_time() {
        let mut verification = Verification::default();
        let vip = |last: u16| IpAddr::from([10, 0, last.to_be_bytes()[0], last.to_be_bytes()[1]]);
        (0..250).for_each(|last| verification.answered(vip(last), Answer::Whole));
        verification.answered(vip(999), Answer::Wants("no route".into()));
        let turns: Vec<BTreeSet<IpAddr>> = (0..3).map(|_| verification.next_of_round()).collect();
        assert_eq!(turns.iter().map(BTreeSet::len).collect::<Vec<_>>(), [101, 101, 51]);
        assert!(turns.iter().all(|turn| turn.contains(&vip(999))));
        assert_eq!(turns.iter().flatten().collect::<BTreeSet<_>>().len(), 251);
    }
}
